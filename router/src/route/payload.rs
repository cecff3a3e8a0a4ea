//! Payloads that arrived: aligned, so that batches are read where they lie; shared, so that many
//! hold one; counted against a budget for as long as anybody does.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use rkyv::util::AlignedVec;
use thalweg_wire::frame::{FrameKind, PAYLOAD_ALIGN};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// What a fetch that does not know its need takes of the memory that is free, at most: one part of
/// so many. However many fetch, there is some left for the next one.
const FREE_PARTS: usize = 4;
/// A need beyond this is a large one: no batch of more than one record is (docs/format.md, Batch).
const LARGE_NEED_BYTES: usize = 2 << 20;

/// Memory that answers may fill, bytes: shared by as many links as are given it. What is asked for
/// is reserved before it is asked, so that a reader that keeps its answers holds up those who ask
/// for more, and nobody whose answer is on its way.
#[derive(Clone, Debug)]
pub struct AnswerMemory {
    budget: Arc<Semaphore>,
    bytes_max: usize,
    /// The turn of those who need much: see [`AnswerMemory::reserve_needed`].
    large_needs: Arc<Mutex<()>>,
}

impl AnswerMemory {
    /// So many bytes; room for one answer of the largest size at the least, 14 MiB.
    #[must_use]
    pub fn new(bytes_max: usize) -> AnswerMemory {
        let largest = FrameKind::FetchAnswer.payload_bytes_max() as usize;
        let bytes_max = bytes_max.clamp(largest, u32::MAX as usize);
        AnswerMemory {
            budget: Arc::new(Semaphore::new(bytes_max)),
            bytes_max,
            large_needs: Arc::default(),
        }
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes that nothing fills or has reserved.
    #[must_use]
    pub fn bytes_free(&self) -> usize {
        self.budget.available_permits()
    }

    /// Waits, in turn, until so many bytes are free, and takes them.
    pub(super) async fn reserve(&self, bytes: usize) -> Reservation {
        let taken = self.budget.clone().acquire_many_owned(self.permits(bytes)).await;
        Reservation { taken: Some(taken.expect("a budget is never closed")), home: None }
    }

    /// Takes so many bytes if they are free and nobody waits for them.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let taken = self.budget.clone().try_acquire_many_owned(self.permits(bytes)).ok()?;
        Some(Reservation { taken: Some(taken), home: None })
    }

    /// Takes bytes for an answer whose size is not known: as many as are wanted, a part of what is
    /// free if that is less, yet so many at the least, which are waited for.
    pub(super) async fn reserve_some(
        &self,
        wanted: usize,
        least: usize,
        until: Instant,
    ) -> Option<Reservation> {
        let bytes = (self.bytes_free() / FREE_PARTS).clamp(least, wanted.max(least));
        match self.try_reserve(bytes) {
            Some(reserved) => Some(reserved),
            None => timeout_at(until, self.reserve(bytes)).await.ok(),
        }
    }

    /// Takes bytes for an answer of a size that is known, and waits for them. Who waits for much
    /// holds up all who come later until there is as much: so one of them does so at a time, and
    /// who needs little waits for one of them at most.
    pub(super) async fn reserve_needed(&self, bytes: usize, until: Instant) -> Option<Reservation> {
        let reserved = async {
            let _turn = match bytes > LARGE_NEED_BYTES {
                true => Some(self.large_needs.lock().await),
                false => None,
            };
            self.reserve(bytes).await
        };
        timeout_at(until, reserved).await.ok()
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.bytes_max)).expect("at most 4 GiB in all")
    }
}

/// Where a reservation goes when it is not needed any more.
pub(super) trait Home: Send + Sync {
    /// Keeps it for what comes next.
    fn take_back(&self, reservation: Reservation);
}

/// Bytes taken from an [`AnswerMemory`]. Dropped, they go to their home, while there is one, and
/// else back to the memory.
pub(super) struct Reservation {
    /// None once it was dropped.
    taken: Option<OwnedSemaphorePermit>,
    home: Option<Weak<dyn Home>>,
}

impl Reservation {
    /// Bytes.
    pub(super) fn bytes(&self) -> usize {
        self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// The same with a home.
    pub(super) fn with_home(mut self, home: Weak<dyn Home>) -> Reservation {
        self.home = Some(home);
        self
    }

    /// The same without.
    pub(super) fn without_home(mut self) -> Reservation {
        self.home = None;
        self
    }

    /// Adds what was reserved of the same memory.
    pub(super) fn merge(&mut self, mut more: Reservation) {
        match (&mut self.taken, more.taken.take()) {
            (Some(taken), Some(more)) => taken.merge(more),
            (taken, more) => *taken = taken.take().or(more),
        }
    }

    /// Takes so many bytes off, without a home, if there are as many.
    pub(super) fn split(&mut self, bytes: usize) -> Option<Reservation> {
        let taken = self.taken.as_mut()?.split(bytes)?;
        Some(Reservation { taken: Some(taken), home: None })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(home) = self.home.take().and_then(|home| home.upgrade()) {
            home.take_back(Reservation { taken: self.taken.take(), home: None });
        }
    }
}

/// A payload. A clone is another handle of the same bytes.
#[derive(Clone)]
pub struct Payload(Arc<Held>);

struct Held {
    bytes: AlignedVec<PAYLOAD_ALIGN>,
    /// What the bytes count as; small ones count for nothing.
    _reservation: Option<Reservation>,
}

impl Payload {
    pub(super) fn new(
        bytes: AlignedVec<PAYLOAD_ALIGN>,
        reservation: Option<Reservation>,
    ) -> Payload {
        Payload(Arc::new(Held { bytes, _reservation: reservation }))
    }

    /// A copy of bytes that lie elsewhere.
    pub(super) fn copy_of(bytes: &[u8], reservation: Option<Reservation>) -> Payload {
        let mut copy = AlignedVec::with_capacity(bytes.len());
        copy.extend_from_slice(bytes);
        Payload::new(copy, reservation)
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// Without the bytes: what users store is nobody else's to print.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_count_until_the_last_handle_is_gone() {
        let memory = AnswerMemory::new(20 << 20);
        let mut reserved = memory.reserve(1000).await;
        let part = reserved.split(600).expect("there are as many");
        assert!(reserved.split(401).is_none());
        let payload = Payload::copy_of(&[7; 600], Some(part));
        drop(reserved);
        let other = payload.clone();
        drop(payload);
        assert_eq!(memory.bytes_free(), memory.bytes_max() - 600);
        assert_eq!(other.as_ptr() as usize % PAYLOAD_ALIGN, 0);
        assert_eq!(format!("{other:?}"), "Payload(600 bytes)");
        drop(other);
        assert_eq!(memory.bytes_free(), memory.bytes_max());
    }

    #[tokio::test]
    async fn who_wants_more_than_there_is_gets_all_of_it() {
        let memory = AnswerMemory::new(0);
        let all = memory.reserve(usize::MAX).await;
        assert_eq!(all.bytes(), FrameKind::FetchAnswer.payload_bytes_max() as usize);
        assert!(memory.try_reserve(1).is_none());
        assert!(memory.reserve_some(1, 1, Instant::now()).await.is_none());
        assert!(memory.reserve_needed(1, Instant::now()).await.is_none());
        drop(all);
        assert!(memory.try_reserve(1).is_some());
    }

    #[tokio::test]
    async fn whoever_comes_finds_some_left() {
        let memory = AnswerMemory::new(16 << 20);
        let mut taken = Vec::new();
        for _ in 0..20 {
            let some = memory.reserve_some(4 << 20, 1 << 10, Instant::now()).await;
            taken.push(some.expect("there is some left"));
        }
        assert_eq!(taken[0].bytes(), 4 << 20);
        assert_eq!(taken[1].bytes(), 3 << 20);
        assert!(taken[19].bytes() >= 1 << 10, "{} bytes", taken[19].bytes());
        assert!(memory.bytes_free() > 0);
    }

    /// Who needs much waits in a line of its own: the next one's need does not stand before
    /// whoever came meanwhile and needs little.
    #[tokio::test]
    async fn who_needs_little_waits_for_one_who_needs_much_at_most() {
        let memory = AnswerMemory::new(20 << 20);
        let much = 12 << 20;
        let until = Instant::now() + std::time::Duration::from_secs(60);
        let first = memory.reserve_needed(much, until).await.expect("all is free");
        let needy = [(); 5].map(|()| {
            let memory = memory.clone();
            tokio::spawn(async move { memory.reserve_needed(much, until).await })
        });
        tokio::task::yield_now().await;
        let little = tokio::spawn({
            let memory = memory.clone();
            async move {
                drop(memory.reserve_some(1 << 10, 1 << 10, until).await?);
                memory.reserve_needed(1 << 20, until).await.map(drop)
            }
        });
        tokio::task::yield_now().await;
        drop(first);
        // The second who needs much has it, and keeps it; four are left to wait.
        let patience = std::time::Duration::from_secs(10);
        let had = tokio::time::timeout(patience, little).await.expect("it does not wait longer");
        assert!(had.expect("no panic").is_some());
        assert_eq!(needy.iter().filter(|one| one.is_finished()).count(), 1);
        needy.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
