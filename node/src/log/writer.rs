//! Group commit: makes the units of a log durable in order, with few syncs.
//!
//! Watermarks, each at most the one before it:
//! `appended >= submitted >= written >= durable`, where `written` is the end of the *contiguous*
//! prefix of completed writes: writes complete out of order, and a sync makes durable only what
//! had completed when it was submitted.
//!
//! One sync is in flight at a time and at most one group of writes overlaps it (more starve the
//! device's flush). A sync is submitted when no write is in flight or enough waits for it. A small
//! unit with nothing around it is written and synced in one operation. The units of the next
//! segment wait until all of the one before are durable: a segment that has a successor is whole.
//!
//! A failed write or sync is final: nothing is submitted, and nothing acked, ever after.

use std::collections::VecDeque;

use thalweg_wire::ids::Lsn;

use crate::io::verdict::{LogVerdict, on_sync, on_write};
use crate::io::{Errno, FileId, Io, Piece, Token};

/// Writes in flight at a time.
const WRITES_MAX: usize = 16;
/// Bytes of writes that may overlap one sync.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// With writes in flight, a sync waits until so many bytes are written.
const SYNC_BYTES_MIN: u64 = 128 << 10;
/// A lone unit up to this size is written and synced in one operation.
const LONE_BYTES_MAX: u32 = 64 << 10;

/// A part of the log that is written in one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unit {
    /// The segment's file.
    pub file: FileId,
    /// Where in the file; a multiple of the block.
    pub at: u64,
    /// What to write; whole blocks. The writer holds one reference of its buffer.
    pub piece: Piece,
    /// Position of the first byte.
    pub start: Lsn,
    /// What is durable once this unit and all before it are.
    pub end: Lsn,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    InFlight,
    Written,
    /// Handed back after a failure.
    Lost,
}

/// What became of a unit that the writer is done with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is durable.
    Durable,
    /// The log failed before it was: it may be there after a restart, or not.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Writer {
    log: u32,
    /// Units that are not durable, oldest first.
    units: VecDeque<(Unit, State)>,
    /// The number of `units[0]`; numbers rise by one.
    first: u64,
    submitted: usize,
    written: usize,
    writes_in_flight: usize,
    /// Bytes submitted since the last sync was.
    group_bytes: u64,
    /// Units that the sync in flight covers.
    syncing: Option<usize>,
    /// The oldest unit is being written and synced in one operation.
    lone: bool,
    durable: Lsn,
    failed: Option<Errno>,
    syncs: u64,
}

impl Writer {
    /// A writer for log `log` of its core, whose content up to `durable` is durable.
    #[must_use]
    pub fn new(log: u32, durable: Lsn) -> Writer {
        Writer {
            log,
            units: VecDeque::with_capacity(1024),
            first: 0,
            submitted: 0,
            written: 0,
            writes_in_flight: 0,
            group_bytes: 0,
            syncing: None,
            lone: false,
            durable,
            failed: None,
            syncs: 0,
        }
    }

    /// Appends a unit; answers its number.
    pub fn push(&mut self, unit: Unit) -> u64 {
        debug_assert!(unit.at.is_multiple_of(crate::config::BLOCK_BYTES));
        debug_assert!(self.units.back().is_none_or(|(last, _)| last.end <= unit.end));
        self.units.push_back((unit, State::Waiting));
        self.first + self.units.len() as u64 - 1
    }

    /// Whether unit `number` is durable.
    #[must_use]
    pub fn is_durable(&self, number: u64) -> bool {
        number < self.first
    }

    /// Everything before this position survives a crash.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Why the log stopped, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<Errno> {
        self.failed
    }

    /// Syncs and synced writes so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Whether nothing waits, is in flight, or is written and not durable.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether a unit appended now would be submitted at once: the moment to close a group that
    /// is still being gathered.
    #[must_use]
    pub fn wants_unit(&self) -> bool {
        self.submitted == self.units.len() && self.writes_in_flight == 0
    }

    /// Whether the kernel is still at work for this log.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.writes_in_flight > 0 || self.syncing.is_some()
    }

    /// Whether a sync is in flight, or a write that is its own.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.syncing.is_some() || self.lone
    }

    /// Submits whatever may be.
    pub fn pump(&mut self, io: &mut impl Io) {
        if self.failed.is_some() {
            return;
        }
        self.submit_sync(io);
        while let Some((unit, _)) = self.units.get(self.submitted).copied() {
            let next_segment = self.units.front().is_some_and(|(first, _)| first.file != unit.file);
            let full = self.writes_in_flight >= WRITES_MAX || self.group_bytes >= GROUP_BYTES_MAX;
            if full || self.lone || next_segment {
                break;
            }
            self.units[self.submitted].1 = State::InFlight;
            self.lone = self.units.len() == 1
                && self.syncing.is_none()
                && unit.piece.bytes <= LONE_BYTES_MAX;
            let token = Token::Write { log: self.log, unit: self.first + self.submitted as u64 };
            io.write(token, unit.file, unit.at, unit.piece, self.lone);
            self.submitted += 1;
            self.writes_in_flight += 1;
            self.group_bytes += u64::from(unit.piece.bytes);
        }
    }

    fn submit_sync(&mut self, io: &mut impl Io) {
        if self.syncing.is_some() || self.written == 0 {
            return;
        }
        let bytes = |units: usize| -> u64 {
            self.units.iter().take(units).map(|(unit, _)| u64::from(unit.piece.bytes)).sum()
        };
        let written = bytes(self.written);
        if self.writes_in_flight == 0 || written >= SYNC_BYTES_MIN {
            let file = self.units[0].0.file;
            io.sync(Token::Sync { log: self.log }, file);
            self.syncing = Some(self.written);
            self.syncs += 1;
            self.group_bytes = self.group_bytes.saturating_sub(written);
        }
    }

    /// The write of unit `number` ended. Units that the writer is done with are handed to `done`:
    /// those that became durable, and after a failure all that the kernel does not work on.
    pub fn on_write(
        &mut self,
        number: u64,
        result: Result<u32, Errno>,
        done: impl FnMut(Unit, Fate),
    ) {
        let place = (number - self.first) as usize;
        let (unit, state) = &mut self.units[place];
        assert_eq!(*state, State::InFlight, "a unit is written once");
        *state = State::Written;
        let verdict = on_write(result, unit.piece.bytes);
        self.writes_in_flight -= 1;
        if let LogVerdict::Stop(errno) = verdict {
            self.failed.get_or_insert(errno);
        }
        if self.failed.is_some() {
            return self.give_up(done);
        }
        while self.units.get(self.written).is_some_and(|(_, state)| *state == State::Written) {
            self.written += 1;
        }
        if std::mem::take(&mut self.lone) {
            self.syncs += 1;
            self.group_bytes = 0;
            self.advance(1, done);
        }
    }

    /// The sync ended; see [`Writer::on_write`].
    pub fn on_sync(&mut self, result: Result<u32, Errno>, done: impl FnMut(Unit, Fate)) {
        let covered = self.syncing.take().expect("one sync is in flight");
        if let LogVerdict::Stop(errno) = on_sync(result) {
            self.failed.get_or_insert(errno);
        }
        // A write that failed meanwhile stops the log, though this sync succeeded.
        match self.failed {
            Some(_) => self.give_up(done),
            None => self.advance(covered, done),
        }
    }

    /// Nothing is written any more: other logs of the core can use the memory. Units stay in their
    /// places, by which the writes in flight name them.
    fn give_up(&mut self, mut done: impl FnMut(Unit, Fate)) {
        for (unit, state) in &mut self.units {
            if matches!(state, State::Waiting | State::Written) {
                *state = State::Lost;
                done(*unit, Fate::Lost);
            }
        }
    }

    fn advance(&mut self, count: usize, mut done: impl FnMut(Unit, Fate)) {
        for _ in 0..count {
            let (unit, state) = self.units.pop_front().expect("a durable unit was pending");
            assert_eq!(state, State::Written, "only what was written becomes durable");
            self.durable = self.durable.max(unit.end);
            done(unit, Fate::Durable);
        }
        self.first += count as u64;
        self.submitted -= count;
        self.written -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::noop::NoopIo;
    use crate::io::{BufferId, Completion, Wait};

    const FILE: FileId = FileId(1);

    struct Bench {
        io: NoopIo,
        writer: Writer,
        durable: Vec<u64>,
        lost: Vec<u64>,
    }

    impl Bench {
        fn new() -> Bench {
            let io = NoopIo::manual(1 << 20);
            Bench { io, writer: Writer::new(0, Lsn(0)), durable: Vec::new(), lost: Vec::new() }
        }

        fn push(&mut self, file: FileId, block: u64, blocks: u32) {
            let piece = Piece { buffer: BufferId(0), start: 0, bytes: blocks * 4096 };
            let (start, end) = (Lsn(block * 4096), Lsn((block + u64::from(blocks)) * 4096));
            self.writer.push(Unit { file, at: block * 4096, piece, start, end });
        }

        /// Pumps; answers what was submitted.
        fn pump(&mut self) -> Vec<Token> {
            self.writer.pump(&mut self.io);
            self.io.submitted()
        }

        fn complete(&mut self, token: Token, result: Result<u32, Errno>) {
            let Bench { durable, lost, .. } = self;
            let done = |unit: Unit, fate: Fate| match fate {
                Fate::Durable => durable.push(unit.start.0 / 4096),
                Fate::Lost => lost.push(unit.start.0 / 4096),
            };
            match token {
                Token::Write { unit, .. } => self.writer.on_write(unit, result, done),
                Token::Sync { .. } => self.writer.on_sync(result, done),
                other => panic!("the writer did not submit {other:?}"),
            }
        }
    }

    fn write(unit: u64) -> Token {
        Token::Write { log: 0, unit }
    }
    const SYNC: Token = Token::Sync { log: 0 };

    #[test]
    fn a_lone_small_unit_is_one_operation() {
        let mut bench = Bench::new();
        bench.push(FILE, 0, 1);
        assert_eq!(bench.pump(), [write(0)]);
        bench.push(FILE, 1, 1);
        assert_eq!(bench.pump(), [], "nothing overlaps a write that is its own sync");
        bench.complete(write(0), Ok(4096));
        assert_eq!((bench.writer.durable(), &bench.durable[..]), (Lsn(4096), &[0][..]));
        assert_eq!(bench.pump(), [write(1)]);
    }

    #[test]
    fn only_the_contiguous_prefix_at_the_syncs_submission_becomes_durable() {
        let mut bench = Bench::new();
        (0..3).for_each(|block| bench.push(FILE, block * 64, 64));
        assert_eq!(bench.pump(), [write(0), write(1), write(2)]);
        bench.complete(write(2), Ok(64 * 4096));
        assert_eq!(bench.pump(), [], "unit 0 is missing");
        bench.complete(write(0), Ok(64 * 4096));
        assert_eq!(bench.pump(), [SYNC]);
        bench.complete(write(1), Ok(64 * 4096));
        assert_eq!(bench.pump(), [], "one sync at a time");
        bench.complete(SYNC, Ok(0));
        assert_eq!(bench.durable, [0], "1 and 2 completed after the sync was submitted");
        assert_eq!(bench.pump(), [SYNC]);
        bench.complete(SYNC, Ok(0));
        assert_eq!(bench.durable, [0, 64, 128]);
        assert!(bench.writer.is_idle());
    }

    #[test]
    fn a_small_group_waits_for_the_writes_in_flight() {
        let mut bench = Bench::new();
        bench.push(FILE, 0, 1);
        bench.push(FILE, 1, 1);
        assert_eq!(bench.pump(), [write(0), write(1)]);
        bench.complete(write(0), Ok(4096));
        assert_eq!(bench.pump(), []);
        bench.complete(write(1), Ok(4096));
        assert_eq!(bench.pump(), [SYNC]);
    }

    #[test]
    fn the_next_segment_waits_until_this_one_is_durable() {
        let mut bench = Bench::new();
        bench.push(FILE, 0, 32);
        bench.push(FileId(2), 32, 1);
        assert_eq!(bench.pump(), [write(0)]);
        bench.complete(write(0), Ok(32 * 4096));
        assert_eq!(bench.pump(), [SYNC]);
        bench.complete(SYNC, Ok(0));
        assert_eq!(bench.pump(), [write(1)]);
    }

    #[test]
    fn a_failure_is_final_and_nothing_becomes_durable_after_it() {
        for short in [Ok(4095), Err(Errno::IO)] {
            let mut bench = Bench::new();
            bench.push(FILE, 0, 64);
            bench.push(FILE, 64, 1);
            bench.pump();
            bench.complete(write(0), Ok(64 * 4096));
            assert_eq!(bench.pump(), [SYNC]);
            bench.complete(write(1), short);
            bench.complete(SYNC, Ok(0));
            assert!(bench.durable.is_empty() && bench.writer.failed().is_some());
            bench.push(FILE, 65, 1);
            assert_eq!(bench.pump(), []);
        }
        let mut bench = Bench::new();
        bench.push(FILE, 0, 64);
        bench.pump();
        bench.complete(write(0), Ok(64 * 4096));
        bench.pump();
        bench.complete(SYNC, Err(Errno::IO));
        assert!(bench.durable.is_empty());
        assert_eq!(bench.pump(), [], "a failed sync is not tried again");
    }

    /// Their buffers were never released: a disk that failed while much waited for it took the
    /// memory of the core's other disks with it.
    #[test]
    fn after_a_failure_every_unit_is_handed_back_once_the_kernel_is_done_with_it() {
        let mut bench = Bench::new();
        (0..20).for_each(|block| bench.push(FILE, block * 64, 64));
        assert_eq!(bench.pump().len(), 16);
        bench.complete(write(0), Ok(64 * 4096));
        assert_eq!(bench.pump()[0], SYNC);
        bench.complete(write(3), Err(Errno::IO));
        let handed_back = |bench: &Bench| bench.lost.iter().map(|at| at / 64).collect::<Vec<_>>();
        assert_eq!(handed_back(&bench), [0, 3, 17, 18, 19], "16 was submitted with the sync");
        bench.complete(SYNC, Ok(0));
        for unit in [16, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
            bench.complete(write(unit), Ok(64 * 4096));
            assert_eq!(handed_back(&bench).last(), Some(&unit));
        }
        assert_eq!((bench.lost.len(), bench.durable.len()), (20, 0), "each once");
    }

    #[test]
    fn a_group_that_overlaps_a_sync_is_bounded() {
        let mut bench = Bench::new();
        (0..8).for_each(|block| bench.push(FILE, block * 256, 256));
        assert_eq!(bench.pump().len(), 8, "8 MiB");
        bench.complete(write(0), Ok(1 << 20));
        assert_eq!(bench.pump(), [SYNC]);
        (8..20).for_each(|block| bench.push(FILE, block * 256, 256));
        assert_eq!(bench.pump(), [write(8)], "one in, one out");
        let mut completions: Vec<Completion> = Vec::new();
        bench.io.poll(&mut completions, Wait::No).unwrap();
        assert!(completions.is_empty(), "a manual device completes nothing by itself");
    }
}
