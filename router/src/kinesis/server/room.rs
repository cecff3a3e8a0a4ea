//! The memory of answers: it counts from when an answer is made until the last of its bytes is
//! sent, or given up.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::ANSWER_BYTES_FREE;

/// The memory that the answers of a server share.
pub(super) struct AnswerBudget {
    free: Arc<Semaphore>,
    bytes_max: usize,
}

impl AnswerBudget {
    pub(super) fn new(bytes_max: usize) -> AnswerBudget {
        AnswerBudget { free: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// Bytes of answers that are made, or wait for their clients.
    pub(super) fn bytes_used(&self) -> usize {
        self.bytes_max - self.free.available_permits()
    }

    /// Room for an answer, of which nothing is there yet.
    pub(super) fn room(&self) -> AnswerRoom {
        AnswerRoom { free: self.free.clone(), taken: None }
    }
}

/// Room for one answer. It grows as the answer does, never waits, and counts what is allocated.
///
/// An answer of up to [`ANSWER_BYTES_FREE`] takes none, and so has always room.
pub struct AnswerRoom {
    /// Bytes of all answers.
    free: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl AnswerRoom {
    /// Bytes that the answer could have now.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        (self.bytes_taken() + self.free.available_permits()).max(ANSWER_BYTES_FREE)
    }

    /// Makes it room for an answer of so many bytes in all; whether there are as many.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let missing = bytes.saturating_sub(self.bytes_taken());
        if bytes <= ANSWER_BYTES_FREE || missing == 0 {
            return true;
        }
        let Ok(permits) = u32::try_from(missing) else { return false };
        let Ok(more) = self.free.clone().try_acquire_many_owned(permits) else { return false };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        true
    }

    /// The answer, which keeps its room until its last bytes are dropped. Room was made for all
    /// that it has allocated.
    #[must_use]
    pub fn fill(self, answer: Vec<u8>) -> CountedBytes {
        let allocated = answer.capacity();
        debug_assert!(
            allocated <= self.bytes_taken().max(ANSWER_BYTES_FREE),
            "{allocated} bytes in a room of {}",
            self.bytes_taken()
        );
        CountedBytes(Bytes::from_owner(Occupied { answer, _room: self }))
    }

    /// The same of bytes that somebody else allocated; `None` when there is no room for them.
    pub(super) fn fill_with(mut self, answer: Bytes) -> Option<CountedBytes> {
        if answer.len() <= ANSWER_BYTES_FREE {
            return Some(CountedBytes(answer));
        }
        let has_room = self.grow_to(answer.len());
        has_room.then(|| CountedBytes(Bytes::from_owner(Occupied { answer, _room: self })))
    }

    fn bytes_taken(&self) -> usize {
        self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl fmt::Debug for AnswerRoom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AnswerRoom({} bytes)", self.bytes_taken())
    }
}

/// An answer whose memory counts.
pub struct CountedBytes(Bytes);

impl CountedBytes {
    /// Its bytes, each piece of which keeps the whole counted.
    pub(super) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// An answer in its room.
struct Occupied<A> {
    answer: A,
    _room: AnswerRoom,
}

impl<A: AsRef<[u8]>> AsRef<[u8]> for Occupied<A> {
    fn as_ref(&self) -> &[u8] {
        self.answer.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_takes_what_it_allocates_and_no_more_than_there_is() {
        let budget = AnswerBudget::new(1 << 20);
        let mut room = budget.room();
        assert_eq!(room.bytes_max(), 1 << 20);
        assert!(room.grow_to(300_000) && room.grow_to(500_000) && room.grow_to(400_000));
        assert_eq!(budget.bytes_used(), 500_000);
        let mut other = budget.room();
        assert!(!other.grow_to(600_000));
        assert_eq!(other.bytes_max(), (1 << 20) - 500_000);
        assert!(other.grow_to((1 << 20) - 500_000));
        assert!(!room.grow_to(500_001) && !room.grow_to(usize::MAX));
        assert_eq!(room.bytes_max(), 500_000);
        drop(other);
        let mut answer = Vec::with_capacity(500_000);
        answer.extend_from_slice(&[7; 1000]);
        let answer = room.fill(answer).into_bytes();
        assert_eq!(answer, [7; 1000][..]);
        assert_eq!(budget.bytes_used(), 500_000, "what is allocated counts");
        drop(answer);
        assert_eq!(budget.bytes_used(), 0);
    }

    /// The last piece of an answer holds all of it in memory, and its room was given back when that
    /// piece was handed over.
    #[test]
    fn an_answer_counts_until_its_last_piece_is_gone() {
        let budget = AnswerBudget::new(1 << 20);
        let bytes = ANSWER_BYTES_FREE + 1;
        let answer = budget.room().fill_with(vec![7; bytes].into()).expect("there is room");
        let mut rest = answer.into_bytes();
        let last = rest.split_off(bytes - 1);
        drop(rest);
        assert_eq!(budget.bytes_used(), bytes);
        drop(last);
        assert_eq!(budget.bytes_used(), 0);
    }

    #[test]
    fn small_answers_have_always_room() {
        let budget = AnswerBudget::new(1);
        let mut room = budget.room();
        assert_eq!(room.bytes_max(), ANSWER_BYTES_FREE);
        assert!(room.grow_to(ANSWER_BYTES_FREE) && !room.grow_to(ANSWER_BYTES_FREE + 1));
        assert_eq!(room.fill(vec![7; ANSWER_BYTES_FREE]).len(), ANSWER_BYTES_FREE);
        let small = Bytes::from(vec![7; ANSWER_BYTES_FREE]);
        assert!(budget.room().fill_with(small).is_some());
        assert!(budget.room().fill_with(vec![7; ANSWER_BYTES_FREE + 1].into()).is_none());
    }
}
