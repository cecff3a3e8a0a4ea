//! Listings under way: read transactions kept for their next pages, so that all pages show one
//! revision. What they show cannot be written over, so they are few and do not last.

use std::sync::Arc;
use std::time::Duration;

use redb::ReadTransaction;

use super::super::Revision;

/// Revisions kept at once. Ours: listings that begin at one revision share one.
pub(super) const PINS_MAX: usize = 8;
/// How long a listing may wait between two pages. Ours: far longer than a page takes.
pub(super) const PIN_IDLE_MAX: Duration = Duration::from_secs(10);
/// How long a listing may last. Ours: the space that is written meanwhile is not used again.
pub(super) const PIN_AGE_MAX: Duration = Duration::from_secs(60);

/// The revisions kept.
#[derive(Default)]
pub(super) struct Pins(Vec<Pin>);

struct Pin {
    revision: Revision,
    transaction: Arc<ReadTransaction>,
    made: Duration,
    used: Duration,
}

impl Pins {
    /// The transaction that shows a revision.
    pub(super) fn get(
        &mut self,
        revision: Revision,
        now: Duration,
    ) -> Option<Arc<ReadTransaction>> {
        self.release(now);
        let pin = self.0.iter_mut().find(|pin| pin.revision == revision)?;
        pin.used = now;
        Some(pin.transaction.clone())
    }

    /// Keeps a transaction, in place of the one unused for longest if need be.
    pub(super) fn keep(
        &mut self,
        revision: Revision,
        transaction: Arc<ReadTransaction>,
        now: Duration,
    ) {
        if self.get(revision, now).is_some() {
            return;
        }
        if self.0.len() == PINS_MAX {
            let oldest = self.0.iter().enumerate().min_by_key(|(_, pin)| pin.used);
            let oldest = oldest.map_or(0, |(place, _)| place);
            self.0.swap_remove(oldest);
        }
        self.0.push(Pin { revision, transaction, made: now, used: now });
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Lets go of those that have waited or lasted too long.
    pub(super) fn release(&mut self, now: Duration) {
        self.0.retain(|pin| {
            now.saturating_sub(pin.used) <= PIN_IDLE_MAX
                && now.saturating_sub(pin.made) <= PIN_AGE_MAX
        });
    }
}

#[cfg(test)]
mod tests {
    use redb::ReadableDatabase;
    use redb::backends::InMemoryBackend;

    use super::*;

    fn transaction() -> Arc<ReadTransaction> {
        let database =
            redb::Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        Arc::new(database.begin_read().unwrap())
    }

    #[test]
    fn a_listing_is_let_go_when_it_waits_or_lasts_too_long() {
        let (mut pins, ms) = (Pins::default(), Duration::from_millis(1));
        pins.keep(Revision(1), transaction(), Duration::ZERO);
        let mut now = Duration::ZERO;
        while now + PIN_IDLE_MAX <= PIN_AGE_MAX {
            now += PIN_IDLE_MAX;
            assert!(pins.get(Revision(1), now).is_some());
        }
        assert!(pins.get(Revision(1), PIN_AGE_MAX + ms).is_none(), "it lasted too long");
        pins.keep(Revision(2), transaction(), now);
        assert!(pins.get(Revision(2), now + PIN_IDLE_MAX + ms).is_none(), "it waited too long");
    }

    #[test]
    fn the_one_unused_for_longest_makes_room() {
        let (mut pins, ms) = (Pins::default(), Duration::from_millis(1));
        for revision in 0..PINS_MAX as u64 {
            pins.keep(Revision(revision), transaction(), ms * revision as u32);
        }
        let now = ms * 100;
        assert!(pins.get(Revision(0), now).is_some());
        pins.keep(Revision(99), transaction(), now);
        assert_eq!(pins.0.len(), PINS_MAX);
        assert!(pins.get(Revision(1), now).is_none());
        assert!(pins.get(Revision(0), now).is_some() && pins.get(Revision(99), now).is_some());
    }
}
