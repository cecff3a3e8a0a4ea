//! Reads from disk: few at a time, in turns of accounts and shards, and each for everybody who
//! wants the same.
//!
//! Subscribers who lag behind together, or begin together, ask for the same batches within
//! moments. What is being read is not read again for the next who asks, and what was read last
//! stays for a while: one read and one copy for any number of them.

use std::collections::{BTreeMap, VecDeque};

use slab::Slab;

use super::machine::Core;
use super::turns::{Party, Turns};
use crate::io::verdict::on_read;
use crate::io::{BufferId, Errno, FileId, Io, Piece, Token};

/// Bytes that a core reads from one log at a time; what asks for more waits. Few enough that the
/// next reads are at the disk while those before are checked and sent: with everything at the
/// disk at once, disk and processor took turns, at two thirds of the disk's rate.
const READING_BYTES_MAX: usize = 4 << 20;
/// One over this of a core's memory at most is what was read last.
const KEPT_SHARE: usize = 16;

/// What is read from one log.
#[derive(Debug, Default)]
pub struct Reading {
    /// Bytes of buffers that reads in flight fill.
    bytes: usize,
    /// Bytes of all reads that ever began.
    begun_bytes: u64,
    /// Fetches that wait for their turn.
    waiting: Turns<u32>,
    /// The one whose turn it is, while it goes on.
    turn: Option<Turn>,
}

/// A fetch that goes on.
#[derive(Clone, Copy, Debug)]
struct Turn {
    party: Party,
    fetch: u32,
    begun_bytes: u64,
    /// Whether it had to wait again.
    waits: bool,
}

impl Reading {
    /// Whether the fetch may read so many bytes now. One that is alone is never too large.
    pub fn admits(&self, fetch: u32, bytes: usize) -> bool {
        let has_turn = self.waiting.is_empty() || self.turn.is_some_and(|turn| turn.fetch == fetch);
        has_turn && (self.bytes == 0 || self.bytes + bytes <= READING_BYTES_MAX)
    }

    /// The fetch waits: behind all others of its shard, or first again.
    pub fn wait(&mut self, party: Party, fetch: u32) {
        match &mut self.turn {
            Some(turn) if turn.fetch == fetch => {
                turn.waits = true;
                self.waiting.wait_on(party, fetch);
            }
            _ => self.waiting.wait(party, fetch),
        }
    }

    /// The next fetch has its turn, if one waits.
    pub fn begin_turn(&mut self) -> Option<u32> {
        if self.waiting.is_empty() {
            return None;
        }
        let (party, fetch) = self.waiting.next(|_| true)?;
        self.turn = Some(Turn { party, fetch, begun_bytes: self.begun_bytes, waits: false });
        Some(fetch)
    }

    /// Its turn is over; false when it waits on, and everybody with it.
    pub fn end_turn(&mut self) -> bool {
        let turn = self.turn.take().expect("a turn began");
        self.waiting.charge(turn.party, self.begun_bytes - turn.begun_bytes);
        !turn.waits
    }

    fn begin(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.begun_bytes += bytes as u64;
    }

    fn end(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }
}

/// What is read: bytes of a segment, which its sequence names for ever. Its file may come to be
/// another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Index of the log in its core.
    pub log: u32,
    /// The segment.
    pub sequence: u64,
    /// Its file.
    pub file: FileId,
    /// First byte in it, a multiple of a block.
    pub at: u64,
    /// Bytes of the read, whole blocks.
    pub bytes: usize,
    /// How many of them are wanted. What lies behind may be written later.
    pub wanted_bytes: usize,
    /// Whether it is kept for a while, for others.
    pub keep: bool,
}

impl Wanted {
    fn place(&self) -> (u32, u64, u64) {
        (self.log, self.sequence, self.at)
    }

    /// Whether the other's bytes are among these.
    fn covers(&self, other: &Wanted) -> bool {
        (self.log, self.sequence) == (other.log, other.sequence)
            && self.at <= other.at
            && other.at + other.wanted_bytes as u64 <= self.at + self.wanted_bytes as u64
    }
}

/// One read from disk.
#[derive(Debug)]
pub struct DiskRead {
    /// What is read.
    pub wanted: Wanted,
    /// Where to; the read has a reference of it.
    pub buffer: BufferId,
    /// Fetches that wait for it.
    pub waiting: Vec<u32>,
    in_flight: bool,
}

/// Where in memory something is that was wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared {
    /// The read that brings it, while it is in flight.
    pub read: Option<u32>,
    /// The buffer.
    pub buffer: BufferId,
    /// Where in it.
    pub start: usize,
}

/// The reads of a core: those in flight, and those that are kept.
#[derive(Debug)]
pub struct Reads {
    all: Slab<DiskRead>,
    by_place: BTreeMap<(u32, u64, u64), u32>,
    /// Those that are over, the oldest first.
    kept: VecDeque<u32>,
    kept_bytes: usize,
    kept_bytes_max: usize,
}

impl Reads {
    /// None, in a core with so much memory.
    #[must_use]
    pub fn new(memory_bytes: usize) -> Reads {
        Reads {
            all: Slab::new(),
            by_place: BTreeMap::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            kept_bytes_max: memory_bytes / KEPT_SHARE,
        }
    }

    fn covering(&self, wanted: &Wanted) -> Option<(u32, &DiskRead)> {
        let (_, id) = self.by_place.range(..=wanted.place()).next_back()?;
        let read = &self.all[*id as usize];
        read.wanted.covers(wanted).then_some((*id, read))
    }

    /// How many of these, the first among them, a read brings or has brought already.
    pub fn count_shared(&self, mut wanted: impl Iterator<Item = Wanted>) -> usize {
        let Some((_, read)) = wanted.next().and_then(|first| self.covering(&first)) else {
            return 0;
        };
        1 + wanted.take_while(|next| read.wanted.covers(next)).count()
    }

    /// Where the bytes are, or come, that were wanted.
    fn find(&self, wanted: &Wanted) -> Option<Shared> {
        let (id, read) = self.covering(wanted)?;
        Some(Shared {
            read: read.in_flight.then_some(id),
            buffer: read.buffer,
            start: (wanted.at - read.wanted.at) as usize,
        })
    }

    fn begin(&mut self, wanted: Wanted, buffer: BufferId) -> u32 {
        let read = DiskRead { wanted, buffer, waiting: Vec::new(), in_flight: true };
        let id = self.all.insert(read) as u32;
        self.by_place.insert(wanted.place(), id);
        id
    }

    /// The fetch is told when the read is over.
    fn wait(&mut self, read: u32, fetch: u32) {
        self.all[read as usize].waiting.push(fetch);
    }

    /// A read is over: it is kept, or its buffer is the caller's.
    fn end(&mut self, id: u32, is_whole: bool) -> (Wanted, Vec<u32>, Option<BufferId>) {
        let read = &mut self.all[id as usize];
        read.in_flight = false;
        let (wanted, waiting) = (read.wanted, std::mem::take(&mut read.waiting));
        // Another may have begun at the same place, to read more.
        let is_found = self.by_place.get(&wanted.place()) == Some(&id);
        if is_whole && wanted.keep && is_found {
            self.kept.push_back(id);
            self.kept_bytes += wanted.bytes;
            return (wanted, waiting, None);
        }
        if is_found {
            self.by_place.remove(&wanted.place());
        }
        let buffer = self.all.remove(id as usize).buffer;
        (wanted, waiting, Some(buffer))
    }

    /// Lets go of the oldest that is kept, and answers its buffer.
    pub fn forget_oldest(&mut self) -> Option<BufferId> {
        let id = self.kept.pop_front()?;
        let read = self.all.remove(id as usize);
        self.kept_bytes -= read.wanted.bytes;
        if self.by_place.get(&read.wanted.place()) == Some(&id) {
            self.by_place.remove(&read.wanted.place());
        }
        Some(read.buffer)
    }

    /// Lets go of what is kept of a segment; the buffers are the caller's.
    fn forget_segment(&mut self, log: u32, sequence: u64) -> Vec<BufferId> {
        let of_segment =
            |read: &DiskRead| (read.wanted.log, read.wanted.sequence) == (log, sequence);
        // To its end and begun anew: the others keep their order.
        (0..self.kept.len())
            .filter_map(|_| {
                let id = *self.kept.front().expect("counted");
                if of_segment(&self.all[id as usize]) {
                    return self.forget_oldest();
                }
                self.kept.rotate_left(1);
                None
            })
            .collect()
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    fn is_full(&self) -> bool {
        self.kept_bytes > self.kept_bytes_max
    }
}

impl<I: Io> Core<I> {
    /// What is wanted for a fetch, from memory or by a read that begins now or is under way.
    /// `None` when there is no memory for it.
    pub(super) fn want(&mut self, fetch: u32, wanted: Wanted) -> Option<Shared> {
        let shared = match self.reads.find(&wanted) {
            Some(shared) => {
                self.counters.reads_shared += 1;
                shared
            }
            None => {
                let buffer = self.allocate_for_reading(wanted.bytes)?;
                self.reading[wanted.log as usize].begin(wanted.bytes);
                self.logs[wanted.log as usize].begin_read(wanted.file);
                let read = self.reads.begin(wanted, buffer);
                let into = Piece { buffer, start: 0, bytes: wanted.bytes as u32 };
                self.io.read(Token::Read { read }, wanted.file, wanted.at, into);
                self.counters.reads += 1;
                self.counters.bytes_read += wanted.bytes as u64;
                Shared { read: Some(read), buffer, start: 0 }
            }
        };
        if let Some(read) = shared.read {
            self.reads.wait(read, fetch);
        }
        Some(shared)
    }

    /// A read ended.
    pub(super) fn read_completed(&mut self, id: u32, result: Result<u32, Errno>) {
        let bytes = self.reads.all[id as usize].wanted.bytes;
        let result = on_read(result, bytes as u32);
        if let Err(errno) = result {
            tracing::error!(%errno, bytes, "a read from the log failed: check the disk");
        }
        let (wanted, waiting, buffer) = self.reads.end(id, result.is_ok());
        self.reading[wanted.log as usize].end(bytes);
        self.logs[wanted.log as usize].end_read(wanted.file);
        for fetch in waiting {
            self.fetch_has_read(fetch, result);
        }
        buffer.into_iter().for_each(|buffer| self.io.memory_mut().release(buffer));
        while self.reads.is_full() && self.forget_oldest_read() {}
    }

    /// Lets go of what was read longest ago; false when nothing is kept.
    pub(super) fn forget_oldest_read(&mut self) -> bool {
        let buffer = self.reads.forget_oldest();
        buffer.is_some_and(|buffer| {
            self.io.memory_mut().release(buffer);
            true
        })
    }

    /// What was read of a segment was damaged: whoever wants it again has it read again.
    pub(super) fn forget_reads_of(&mut self, log: u32, sequence: u64) {
        for buffer in self.reads.forget_segment(log, sequence) {
            self.io.memory_mut().release(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fairness::AccountPlace;

    /// Everything at the disk at once: disk and processor took turns.
    #[test]
    fn a_log_is_read_in_turns_of_bounded_bytes() {
        let party = |account, shard| Party { account: AccountPlace(account), shard };
        let mut reading = Reading::default();
        assert!(reading.admits(1, 2 * READING_BYTES_MAX), "one that is alone is never too large");
        reading.begin(READING_BYTES_MAX - 10);
        assert!(reading.admits(2, 10));
        assert!(!reading.admits(3, 11));
        reading.wait(party(0, 0), 3);
        reading.wait(party(0, 0), 4);
        reading.wait(party(1, 1), 5);
        assert!(!reading.admits(6, 1), "it would overtake those that wait");
        assert_eq!(reading.begin_turn(), Some(3));
        assert!(!reading.admits(3, 11));
        reading.wait(party(0, 0), 3);
        assert!(!reading.end_turn());
        assert_eq!(reading.begin_turn(), Some(3), "it keeps its turn");
        reading.end(READING_BYTES_MAX - 10);
        assert!(reading.admits(3, 11));
        reading.begin(11);
        assert!(reading.end_turn());
        assert_eq!(reading.begin_turn(), Some(5), "who reads much does not put off the others");
        assert!(reading.end_turn());
        assert_eq!(reading.begin_turn(), Some(4));
    }

    fn wanted(sequence: u64, at: u64, wanted_bytes: usize) -> Wanted {
        let bytes = wanted_bytes.next_multiple_of(4096);
        Wanted { log: 0, sequence, file: FileId(3), at, bytes, wanted_bytes, keep: true }
    }

    #[test]
    fn what_is_read_is_shared_while_it_comes_and_for_a_while_after() {
        let mut reads = Reads::new(KEPT_SHARE * 16384);
        let first = reads.begin(wanted(7, 8192, 10_000), BufferId(1));
        let shared = Shared { read: Some(first), buffer: BufferId(1), start: 4096 };
        assert_eq!(reads.find(&wanted(7, 12288, 5904)), Some(shared));
        let unread = [wanted(7, 12288, 5905), wanted(7, 4096, 8192), wanted(8, 8192, 10)];
        assert_eq!(unread.map(|wanted| reads.find(&wanted)), [None; 3]);
        let batches = [(8192, 4000), (8192, 9000), (16384, 1000), (16384, 3000)];
        let batches = batches.map(|(at, bytes)| wanted(7, at, bytes));
        assert_eq!(reads.count_shared(batches.into_iter()), 3);
        reads.wait(first, 5);
        reads.wait(first, 6);
        assert_eq!(reads.end(first, true), (wanted(7, 8192, 10_000), vec![5, 6], None));
        assert!(reads.find(&batches[2]).is_some_and(|shared| shared.read.is_none()));
        let second = reads.begin(wanted(8, 0, 8000), BufferId(2));
        reads.end(second, true);
        assert!(reads.is_full());
        assert_eq!(reads.forget_oldest(), Some(BufferId(1)));
        assert!(!reads.is_full() && reads.find(&batches[2]).is_none());
        assert_eq!(reads.forget_segment(0, 8), [BufferId(2)]);
        assert_eq!((reads.forget_oldest(), reads.kept_bytes), (None, 0));
        assert!(reads.by_place.is_empty() && reads.all.is_empty());
    }

    #[test]
    fn a_read_that_failed_is_not_kept_nor_one_that_a_longer_took_the_place_of() {
        let mut reads = Reads::new(1 << 20);
        let failed = reads.begin(wanted(7, 0, 4096), BufferId(1));
        assert_eq!(reads.end(failed, false).2, Some(BufferId(1)));
        let short = reads.begin(wanted(7, 0, 4096), BufferId(1));
        let long = reads.begin(wanted(7, 0, 8192), BufferId(2));
        assert_eq!(reads.end(short, true).2, Some(BufferId(1)));
        assert_eq!(reads.find(&wanted(7, 0, 10)).map(|shared| shared.read), Some(Some(long)));
        assert_eq!(reads.end(long, true).2, None);
        assert_eq!(reads.kept, [long]);
    }
}
