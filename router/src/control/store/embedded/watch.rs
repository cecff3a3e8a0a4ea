//! Watches: from the newest changes in memory, or from the history for who is further behind.
//!
//! A watch pulls: it knows how far it has come and is woken when there is more. Nothing is queued
//! for it, so that a slow one costs no memory, and it loses nothing before the history does, which
//! it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::super::{Change, ChangeSet, Revision, StoreError, Watch, WatchError};
use super::tables::{HISTORY_ROW_BYTES, History, State, read_history, read_state};
use super::{Shared, read_blocking};

/// Watches at once. Ours: a router needs a few.
pub const WATCHES_MAX: usize = 1024;
/// Revisions that are kept in memory for watches that keep up. Ours.
const TAIL_REVISIONS_MAX: usize = 4096;
/// Bytes of them. Ours.
const TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Changes that are read from the history at a time. Ours.
const READ_CHANGES_MAX: usize = 1024;
/// Bytes after which no further revision is read at a time. Ours.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// Where the store is, for those who wait.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// As of the last durable commit.
    pub state: State,
    /// Why there will be no further one.
    pub end: Option<StoreError>,
}

/// The newest revisions, without a gap.
#[derive(Debug, Default)]
pub(super) struct Tail {
    sets: VecDeque<Arc<ChangeSet>>,
    bytes: usize,
}

impl Tail {
    /// Adds the next revision.
    pub(super) fn push(&mut self, set: ChangeSet) {
        self.bytes += set_bytes(&set);
        self.sets.push_back(Arc::new(set));
        while self.sets.len() > TAIL_REVISIONS_MAX || self.bytes > TAIL_BYTES_MAX {
            let Some(oldest) = self.sets.pop_front() else { break };
            self.bytes -= set_bytes(&oldest);
        }
    }

    /// Revisions after one, at most [`READ_CHANGES_MAX`]; `None` when the tail does not reach back
    /// that far.
    fn after(&self, revision: Revision) -> Option<Vec<Arc<ChangeSet>>> {
        let first = self.sets.front()?.revision;
        let skip = (revision.0 + 1).checked_sub(first.0)?;
        let skip = usize::try_from(skip).ok()?.min(self.sets.len());
        Some(self.sets.range(skip..).take(READ_CHANGES_MAX).cloned().collect())
    }
}

fn set_bytes(set: &ChangeSet) -> usize {
    set.changes.iter().map(|change| change.bytes() + HISTORY_ROW_BYTES as usize).sum()
}

/// A watch of the embedded store.
pub struct EmbeddedWatch {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    prefix: Bytes,
    /// Everything up to here was told or is in `ready`.
    position: Revision,
    ready: VecDeque<ChangeSet>,
    _place: Place,
}

impl std::fmt::Debug for EmbeddedWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("EmbeddedWatch");
        shown.field("prefix", &self.prefix).field("position", &self.position);
        shown.finish_non_exhaustive()
    }
}

impl EmbeddedWatch {
    /// Begins a watch.
    pub(super) async fn new(
        shared: &Arc<Shared>,
        prefix: Bytes,
        after: Revision,
    ) -> Result<EmbeddedWatch, WatchError> {
        let progress = shared.progress.subscribe();
        let Progress { state, end } = progress.borrow().clone();
        if let Some(end) = end {
            return Err(end.into());
        }
        if after > state.revision {
            // A read may show what is durable and about to be published here.
            let read = |shared: &Shared| read_state(&*shared.begin_read()?);
            let current = read_blocking(shared, read).await?.revision;
            if after > current {
                return Err(WatchError::Ahead { after, current });
            }
        }
        if after < state.compacted {
            return Err(WatchError::Compacted { after, compacted: state.compacted });
        }
        let place = Place::take(&shared.watches)?;
        let shared = shared.clone();
        let ready = VecDeque::new();
        Ok(EmbeddedWatch { shared, progress, prefix, position: after, ready, _place: place })
    }

    /// Takes what is there behind the position.
    async fn fill(&mut self) -> Result<(), WatchError> {
        let after = self.position;
        let tail = self.shared.tail().after(after);
        let sets = match tail {
            Some(sets) => sets,
            None => self.read(after).await?,
        };
        let Some(last) = sets.last() else { return Ok(()) };
        self.position = last.revision;
        let prefix = &self.prefix;
        self.ready.extend(sets.iter().filter_map(|set| select(set, prefix)));
        Ok(())
    }

    async fn read(&self, after: Revision) -> Result<Vec<Arc<ChangeSet>>, WatchError> {
        let read = move |shared: &Shared| {
            read_history(&*shared.begin_read()?, after, READ_CHANGES_MAX, READ_BYTES_MAX)
        };
        match read_blocking(&self.shared, read).await? {
            History::Changes(sets) => Ok(sets.into_iter().map(Arc::new).collect()),
            History::Compacted(compacted) => Err(WatchError::Compacted { after, compacted }),
        }
    }
}

/// The part of a revision that has the prefix.
fn select(set: &ChangeSet, prefix: &[u8]) -> Option<ChangeSet> {
    let is_ours = |change: &&Change| change.key().starts_with(prefix);
    let changes: Vec<Change> = set.changes.iter().filter(is_ours).cloned().collect();
    (!changes.is_empty()).then_some(ChangeSet { revision: set.revision, changes })
}

impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<ChangeSet, WatchError> {
        loop {
            if let Some(set) = self.ready.pop_front() {
                return Ok(set);
            }
            let Progress { state, end } = self.progress.borrow_and_update().clone();
            if self.position < state.compacted {
                let (after, compacted) = (self.position, state.compacted);
                return Err(WatchError::Compacted { after, compacted });
            }
            if self.position < state.revision {
                self.fill().await?;
                continue;
            }
            if let Some(end) = end {
                return Err(end.into());
            }
            if self.progress.changed().await.is_err() {
                return Err(StoreError::Closed.into());
            }
        }
    }

    fn revision(&self) -> Revision {
        self.ready.front().map_or(self.position, |next| Revision(next.revision.0 - 1))
    }
}

/// One of the [`WATCHES_MAX`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(watches: &Arc<AtomicUsize>) -> Result<Place, WatchError> {
        let room = |count| (count < WATCHES_MAX).then_some(count + 1);
        match watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Place(watches.clone())),
            Err(count) => Err(WatchError::TooMany { count }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(revision: u64, value_bytes: usize) -> ChangeSet {
        let value = vec![0; value_bytes].into();
        let change = Change::Put { key: "key".into(), value, lease: None };
        ChangeSet { revision: Revision(revision), changes: vec![change] }
    }

    fn revisions(sets: Option<Vec<Arc<ChangeSet>>>) -> Option<Vec<u64>> {
        sets.map(|sets| sets.iter().map(|set| set.revision.0).collect())
    }

    #[test]
    fn the_tail_answers_from_where_it_reaches_back_to() {
        let mut tail = Tail::default();
        assert!(tail.after(Revision(0)).is_none(), "an empty one knows nothing");
        (5..8).for_each(|revision| tail.push(set(revision, 1)));
        assert_eq!(revisions(tail.after(Revision(3))), None);
        assert_eq!(revisions(tail.after(Revision(4))), Some(vec![5, 6, 7]));
        assert_eq!(revisions(tail.after(Revision(6))), Some(vec![7]));
        assert_eq!(revisions(tail.after(Revision(7))), Some(vec![]));
    }

    #[test]
    fn the_tail_is_bounded_by_revisions_and_bytes() {
        let mut tail = Tail::default();
        (1..=TAIL_REVISIONS_MAX as u64 + 9).for_each(|revision| tail.push(set(revision, 1)));
        assert_eq!(tail.sets.len(), TAIL_REVISIONS_MAX);
        assert_eq!(revisions(tail.after(Revision(9))).unwrap().len(), READ_CHANGES_MAX);
        (5000..5020).for_each(|revision| tail.push(set(revision, 512 * 1024)));
        assert!(tail.bytes <= TAIL_BYTES_MAX && tail.sets.len() == 7, "{}", tail.sets.len());
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let watches = Arc::new(AtomicUsize::new(WATCHES_MAX - 1));
        let last = Place::take(&watches).unwrap();
        let refused = Place::take(&watches).map(|_| ());
        assert_eq!(refused, Err(WatchError::TooMany { count: WATCHES_MAX }));
        drop(last);
        drop(Place::take(&watches).unwrap());
        assert_eq!(watches.load(Ordering::Relaxed), WATCHES_MAX - 1);
    }
}
