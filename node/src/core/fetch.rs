//! Fetches: committed batches of a shard, from the tail in memory or from disk, sent as they rest.
//!
//! A fetch finds its batches, waits for a commit when there are none, loads the footers it needs
//! to find them, reads what is not in memory, checks what it read, and answers. Bytes from disk
//! are never sent unchecked; bytes from memory were checked when they came.

use std::cell::Cell;
use std::collections::HashMap;

use thalweg_wire::codec::align_up;
use thalweg_wire::control::ExtentState;
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{FrameHeader, FrameKind};
use thalweg_wire::ids::{Epoch, Offset};
use thalweg_wire::limits;
use thalweg_wire::produce::padded_bytes;

use super::connection::ConnectionKey;
use super::machine::Core;
use super::reads::{Shared, Wanted};
use super::shard::ExtentPlace;
use crate::config::BLOCK_BYTES;
use crate::io::{BufferId, Errno, Io, Piece};
use crate::log::footer::{Footer, Trailer};
use crate::log::format::FRAME_HEADER_BYTES;
use crate::log::index::Target;
use crate::log::search::{Found, Search};
use crate::log::segments::Log;
use crate::log::stored::check_stored;

/// Batches that lie no further apart than this are read in one operation.
const READ_GAP_BYTES: u64 = 16 << 10;
/// Bytes of one read, unless a single batch is larger.
const READ_BYTES_MAX: u64 = 1 << 20;

/// For whom a fetch is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// Whom to answer.
    pub connection: ConnectionKey,
    /// The answer's correlation.
    pub correlation: u64,
    /// The subscription whose event the answer is.
    pub subscription: Option<u64>,
}

impl Asker {
    fn kind(&self) -> FrameKind {
        match self.subscription {
            None => FrameKind::FetchAnswer,
            Some(_) => FrameKind::SubscribeEvent,
        }
    }
}

/// A fetch on its way.
#[derive(Debug)]
pub struct Fetch {
    asker: Asker,
    request: FetchRequest,
    shard: u32,
    due_us: u64,
    /// Reads that it waits for.
    reads_left: usize,
    /// The footer that is read for it.
    footer: Option<FooterRead>,
    parts: Vec<Part>,
    failed: Option<Refusal>,
    state: State,
}

impl Fetch {
    /// The place of the shard that it reads.
    pub(super) fn shard(&self) -> u32 {
        self.shard
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// For a commit, until it is due.
    WaitsForCommit,
    /// For its turn at the disk, or for memory.
    WaitsForTurn,
    /// For a footer or batches from disk.
    Reads,
}

/// A footer that is being read. The fetch has a reference of the buffer.
#[derive(Clone, Copy, Debug)]
struct FooterRead {
    log: u32,
    sequence: u64,
    buffer: BufferId,
}

/// One batch of the answer.
#[derive(Clone, Copy, Debug)]
struct Part {
    log: u32,
    found: Found,
    /// Where the batch's frame lies; the part has a reference of the buffer.
    buffer: BufferId,
    start: usize,
    from_disk: bool,
}

/// What a look at the shard came to.
enum Look {
    Found {
        log: u32,
        found: Vec<Found>,
    },
    NeedsFooter {
        log: u32,
        sequence: u64,
    },
    /// Nothing now; there will be, from this offset on.
    Nothing {
        next: Offset,
    },
    /// Nothing ever: the end of the last extent.
    SealedEnd {
        next: Offset,
    },
    /// The next batch is larger than the subscription's credit.
    NoCredit,
}

/// Footers in memory, bounded; the one unused for longest leaves first.
#[derive(Debug)]
pub struct FooterCache {
    footers: HashMap<(u32, u64), CachedFooter>,
    bytes: usize,
    bytes_max: usize,
    uses: Cell<u64>,
}

#[derive(Clone, Debug)]
struct CachedFooter {
    buffer: BufferId,
    bytes: usize,
    last_use: Cell<u64>,
}

impl FooterCache {
    /// An empty cache of at most `bytes_max`, or one footer.
    #[must_use]
    pub fn new(bytes_max: usize) -> FooterCache {
        FooterCache { footers: HashMap::new(), bytes: 0, bytes_max, uses: Cell::new(0) }
    }

    /// Bytes of the footers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn next_use(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }

    /// Takes a footer in; hands the buffers of those that leave to `release`.
    fn insert(
        &mut self,
        key: (u32, u64),
        buffer: BufferId,
        bytes: usize,
        mut release: impl FnMut(BufferId),
    ) {
        let footer = CachedFooter { buffer, bytes, last_use: Cell::new(self.next_use()) };
        self.bytes += bytes;
        if let Some(same) = self.footers.insert(key, footer) {
            self.bytes -= same.bytes;
            release(same.buffer);
        }
        while self.bytes > self.bytes_max && self.footers.len() > 1 {
            let oldest = self.footers.iter().min_by_key(|(_, footer)| footer.last_use.get());
            let oldest = *oldest.expect("more than one").0;
            let footer = self.footers.remove(&oldest).expect("just found");
            self.bytes -= footer.bytes;
            release(footer.buffer);
        }
    }
}

impl<I: Io> Core<I> {
    /// Serves a fetch.
    pub(super) fn fetch(&mut self, key: ConnectionKey, header: &FrameHeader, piece: Piece) {
        let request = match FetchRequest::decode(self.io.memory().piece(piece)) {
            Ok(request) => request,
            Err(error) => return self.refuse_connection(key, error.refusal()),
        };
        let correlation = header.correlation;
        let shard = match self.place_of(request.shard) {
            Ok(shard) => shard,
            Err(refusal) => {
                let kind = FrameKind::FetchAnswer;
                return self.refuse_reader(key, kind, correlation, None, refusal);
            }
        };
        if let Some(connection) = self.connection(key) {
            connection.requests += 1;
        }
        self.start_fetch(
            Asker { connection: key, correlation, subscription: None },
            shard,
            request,
        );
    }

    /// Starts a fetch; its answer comes when there is one.
    pub(super) fn start_fetch(&mut self, asker: Asker, shard: u32, request: FetchRequest) {
        let fetch = self.fetches.insert(Fetch {
            asker,
            request,
            shard,
            due_us: self.time.now_us + u64::from(request.wait_ms) * 1000,
            reads_left: 0,
            footer: None,
            parts: Vec::new(),
            failed: None,
            state: State::WaitsForTurn,
        });
        if let Some(serial) = asker.subscription {
            self.subscriptions.set_fetch(serial, fetch as u32);
        }
        self.go_on_fetch(fetch as u32);
    }

    /// Forgets a fetch that nobody wants any more, if it waits for a commit; in another state it
    /// finds out by itself.
    pub(super) fn forget_waiting(&mut self, id: u32) {
        let Some(fetch) = self.fetches.get(id as usize) else { return };
        if fetch.state == State::WaitsForCommit {
            self.fetches_due.remove(&(fetch.due_us, id));
            self.shards.at_mut(fetch.shard).waiting.retain(|waiting| *waiting != id);
            self.fetches.remove(id as usize);
        }
    }

    /// Looks at the shard again and does what the look asks for.
    fn go_on_fetch(&mut self, id: u32) {
        let asker = self.fetches[id as usize].asker;
        if !self.is_wanted(&asker) {
            self.fetches.remove(id as usize);
            return;
        }
        match self.look(id) {
            Err(refusal) => self.finish_fetch(id, Err(refusal)),
            Ok(Look::SealedEnd { next }) => self.answer_empty(id, next, true),
            Ok(Look::NoCredit) => {
                let fetch = self.fetches.remove(id as usize);
                let serial = asker.subscription.expect("only subscriptions have credit");
                self.rest_subscription(serial, fetch.request.from);
            }
            Ok(Look::Nothing { next }) => {
                let fetch = &mut self.fetches[id as usize];
                if self.time.now_us >= fetch.due_us {
                    return self.answer_empty(id, next, false);
                }
                if matches!(fetch.request.from, FetchFrom::Latest | FetchFrom::Earliest) {
                    fetch.request.from = FetchFrom::Offset(next);
                }
                fetch.state = State::WaitsForCommit;
                self.fetches_due.insert((fetch.due_us, id));
                let shard = fetch.shard;
                self.shards.at_mut(shard).waiting.push(id);
            }
            Ok(Look::NeedsFooter { log, sequence }) => {
                if !self.read_footer(id, log, sequence) {
                    self.wait_for_turn(id, log);
                }
            }
            Ok(Look::Found { log, found }) => {
                if !self.gather_parts(id, log, &found) {
                    self.wait_for_turn(id, log);
                }
            }
        }
    }

    /// Whether anybody still waits for the answer.
    fn is_wanted(&mut self, asker: &Asker) -> bool {
        self.connection(asker.connection).is_some()
            && asker.subscription.is_none_or(|serial| self.subscriptions.has(serial))
    }

    fn wait_for_turn(&mut self, id: u32, log: u32) {
        let fetch = &mut self.fetches[id as usize];
        fetch.state = State::WaitsForTurn;
        let shard = fetch.shard;
        let party = self.party_of(shard);
        self.reading[log as usize].wait(party, id);
    }

    /// Commits happened for which these fetches wait.
    pub(super) fn wake_fetches(&mut self, waiting: Vec<u32>) {
        for id in waiting {
            let Some(fetch) = self.fetches.get(id as usize) else { continue };
            if fetch.state == State::WaitsForCommit {
                self.fetches_due.remove(&(fetch.due_us, id));
                self.go_on_fetch(id);
            }
        }
    }

    /// A fetch has waited for as long as it wanted to.
    pub(super) fn fetch_is_due(&mut self, id: u32) {
        let shard = self.fetches[id as usize].shard;
        self.shards.at_mut(shard).waiting.retain(|waiting| *waiting != id);
        self.go_on_fetch(id);
    }

    /// Fetches that waited for their turn go on, in order, until one has to wait again.
    pub(super) fn resume_fetches(&mut self, log: usize) {
        while let Some(id) = self.reading[log].begin_turn() {
            self.go_on_fetch(id);
            if !self.reading[log].end_turn() {
                return;
            }
        }
    }

    /// Finds what the fetch asks for, from the extent on in which it begins.
    fn look(&mut self, id: u32) -> Result<Look, Refusal> {
        let fetch = &self.fetches[id as usize];
        let (shard, request) = (self.shards.at(fetch.shard), fetch.request);
        let (committed, earliest) = (shard.committed, shard.earliest(&self.logs));
        let extents: Vec<ExtentPlace> = shard
            .extents
            .iter()
            .copied()
            .filter(|place| {
                request.epoch == Epoch(0) || epoch_of(&self.logs, *place) == request.epoch
            })
            .collect();
        if extents.is_empty() {
            return Err(ErrorCode::UnknownShard.into());
        }
        let target = match request.from {
            FetchFrom::Offset(offset) if offset < earliest => {
                return Err(Refusal::new(ErrorCode::Trimmed, earliest.0));
            }
            FetchFrom::Offset(offset) if offset > committed => {
                return Err(Refusal::new(ErrorCode::BeyondEnd, committed.0));
            }
            FetchFrom::Offset(offset) => Target::Offset(offset),
            FetchFrom::Time(time_ms) => Target::Time(time_ms),
            FetchFrom::Earliest => Target::Offset(earliest),
            FetchFrom::Latest => Target::Offset(committed),
        };
        let bytes_max = u64::from(request.bytes_max);
        // An answer holds a batch at least; an event no more than its credit.
        let first_max =
            fetch.asker.subscription.map_or(u64::MAX, |serial| self.subscriptions.credit(serial));
        for (at, place) in extents.iter().enumerate() {
            let log = &self.logs[place.log as usize];
            let record = &log.extent(place.number).record;
            let end = record.end.min(committed);
            let last = at + 1 == extents.len();
            if !last && matches!(target, Target::Offset(offset) if offset >= record.end) {
                continue;
            }
            // What a trim covers that this extent's log did not remember.
            if !last && record.end <= earliest {
                continue;
            }
            // Batches that were let go are not found by their time either.
            let from = match target {
                Target::Offset(offset) => Target::Offset(offset.max(record.first_kept)),
                Target::Time(time_ms) => Target::Time(time_ms),
            };
            let mut found = Vec::new();
            let mut bytes = 0;
            let mut no_credit = false;
            let footers =
                |sequence| cached_footer(&self.footers, &self.io, log, place.log, sequence);
            let search = log.search(place.number, from, end, footers, |next| {
                let batch_bytes = padded_bytes(next.location.batch_bytes as usize) as u64;
                if next.location.end_offset() <= record.first_kept {
                    return true;
                }
                let fits = if found.is_empty() {
                    no_credit = batch_bytes > first_max;
                    !no_credit
                } else {
                    bytes + batch_bytes <= bytes_max
                        && found.len() < limits::FETCH_BATCHES_MAX as usize
                };
                if fits {
                    bytes += batch_bytes;
                    found.push(next);
                }
                fits
            });
            if !found.is_empty() {
                // What lies in segments whose footers are not in memory is for the next fetch.
                return Ok(Look::Found { log: place.log, found });
            }
            if no_credit {
                return Ok(Look::NoCredit);
            }
            if let Search::NeedsFooter(sequence) = search {
                return Ok(Look::NeedsFooter { log: place.log, sequence });
            }
            if last && record.state == ExtentState::Sealed {
                return Ok(Look::SealedEnd { next: record.end });
            }
        }
        Ok(Look::Nothing { next: committed })
    }

    /// Reads a footer; false when there is no memory for it.
    fn read_footer(&mut self, id: u32, log: u32, sequence: u64) -> bool {
        let Some(sealed) = self.logs[log as usize].sealed(sequence).copied() else {
            self.finish_fetch(id, Err(ErrorCode::Corrupt.into()));
            return true;
        };
        let bytes = align_up(sealed.trailer.body_bytes(), BLOCK_BYTES).max(BLOCK_BYTES) as usize;
        if !self.reading[log as usize].admits(id, bytes) {
            return false;
        }
        let (file, at) = (sealed.file, sealed.trailer.footer_at);
        // The cache of footers keeps it.
        let wanted = Wanted { log, sequence, file, at, bytes, wanted_bytes: bytes, keep: false };
        let Some(Shared { buffer, .. }) = self.want(id, wanted) else { return false };
        self.io.memory_mut().retain(buffer);
        let fetch = &mut self.fetches[id as usize];
        fetch.footer = Some(FooterRead { log, sequence, buffer });
        fetch.reads_left = 1;
        fetch.state = State::Reads;
        true
    }

    /// Takes the batches from memory or starts to read them; false when there is no memory for
    /// that, and then nothing was started.
    fn gather_parts(&mut self, id: u32, log: u32, found: &[Found]) -> bool {
        let cache = self.logs[log as usize].cache();
        let on_disk = found.iter().filter(|found| cache.find(found.location.lsn).is_none());
        let bytes: usize = on_disk.map(|found| found.location.batch_bytes as usize).sum();
        if bytes > 0 && !self.reading[log as usize].admits(id, bytes) {
            return false;
        }
        let mut at = 0;
        while at < found.len() {
            let lsn = found[at].location.lsn;
            if let Some((buffer, start)) = self.logs[log as usize].cache().find(lsn) {
                self.io.memory_mut().retain(buffer);
                let part = Part { log, found: found[at], buffer, start, from_disk: false };
                self.fetches[id as usize].parts.push(part);
                at += 1;
                continue;
            }
            let places = found[at..].iter().map(|found| self.place_of_batches(log, &[*found]));
            let count = match self.reads.count_shared(places) {
                0 => self.read_together(log, &found[at..]),
                shared => shared,
            };
            if !self.read_batches(id, log, &found[at..at + count]) {
                // What was found so far is an answer; with nothing found, it waits.
                break;
            }
            at += count;
        }
        let fetch = &self.fetches[id as usize];
        if fetch.parts.is_empty() {
            return false;
        }
        if fetch.reads_left == 0 {
            self.finish_fetch(id, Ok(()));
        }
        true
    }

    /// How many of the batches are read in one operation: those that lie close together.
    fn read_together(&self, log: u32, found: &[Found]) -> usize {
        let end_of = |found: &Found| {
            found.location.lsn.0 + FRAME_HEADER_BYTES as u64 + u64::from(found.location.batch_bytes)
        };
        let (first, mut end) = (&found[0], end_of(&found[0]));
        let mut count = 1;
        for next in &found[1..] {
            let close = next.sequence == first.sequence
                && next.location.lsn.0 <= end + READ_GAP_BYTES
                && end_of(next) - first.location.lsn.0 <= READ_BYTES_MAX;
            let in_memory = self.logs[log as usize].cache().find(next.location.lsn).is_some();
            if !close || in_memory {
                break;
            }
            end = end_of(next);
            count += 1;
        }
        count
    }

    /// Where batches lie that are close together in a segment.
    fn place_of_batches(&self, log: u32, found: &[Found]) -> Wanted {
        let sequence = found[0].sequence;
        let (file, base) = self.logs[log as usize].segment_file(sequence);
        let last = found.last().expect("at least one batch").location;
        let at = (found[0].location.lsn.0 - base.0) & !(BLOCK_BYTES - 1);
        let end = last.lsn.0 - base.0 + FRAME_HEADER_BYTES as u64 + u64::from(last.batch_bytes);
        let bytes = (align_up(end, BLOCK_BYTES) - at) as usize;
        Wanted { log, sequence, file, at, bytes, wanted_bytes: (end - at) as usize, keep: true }
    }

    fn read_batches(&mut self, id: u32, log: u32, found: &[Found]) -> bool {
        let wanted = self.place_of_batches(log, found);
        let Some(Shared { read, buffer, start }) = self.want(id, wanted) else { return false };
        let fetch = &mut self.fetches[id as usize];
        if read.is_some() {
            fetch.reads_left += 1;
            fetch.state = State::Reads;
        }
        let first = found[0].location.lsn.0 & !(BLOCK_BYTES - 1);
        for found in found {
            self.io.memory_mut().retain(buffer);
            let start = start + (found.location.lsn.0 - first) as usize;
            fetch.parts.push(Part { log, found: *found, buffer, start, from_disk: true });
        }
        true
    }

    /// A read that the fetch waits for ended.
    pub(super) fn fetch_has_read(&mut self, id: u32, result: Result<(), Errno>) {
        let fetch = &mut self.fetches[id as usize];
        fetch.reads_left -= 1;
        if let Err(Errno(number)) = result {
            fetch.failed = Some(Refusal::new(ErrorCode::ReadFailed, number.unsigned_abs().into()));
        }
        if fetch.reads_left > 0 {
            return;
        }
        match (fetch.footer.take(), fetch.failed) {
            (None, None) => self.finish_fetch(id, Ok(())),
            (None, Some(refusal)) => self.finish_fetch(id, Err(refusal)),
            (Some(footer), Some(refusal)) => {
                self.io.memory_mut().release(footer.buffer);
                self.finish_fetch(id, Err(refusal));
            }
            (Some(footer), None) => {
                if self.keep_footer(footer.log, footer.sequence, footer.buffer) {
                    self.go_on_fetch(id);
                } else {
                    self.finish_fetch(id, Err(ErrorCode::Corrupt.into()));
                }
            }
        }
    }

    /// Checks a footer that was read and keeps it; false when it is damaged.
    fn keep_footer(&mut self, log: u32, sequence: u64, buffer: BufferId) -> bool {
        let is_there = self.footers.footers.contains_key(&(log, sequence));
        let sealed = self.logs[log as usize].sealed(sequence).filter(|_| !is_there);
        let Some(sealed) = sealed else {
            // Another read it too, or it was released meanwhile: whoever needed it looks again.
            self.io.memory_mut().release(buffer);
            return true;
        };
        let bytes = self.io.memory().bytes(buffer);
        if let Err(fault) = Footer::check(bytes, &sealed.trailer, sealed.base) {
            tracing::error!(log, sequence, %fault, "a segment's footer is damaged");
            self.io.memory_mut().release(buffer);
            return false;
        }
        let (size, memory) = (bytes.len(), self.io.memory_mut());
        self.footers.insert((log, sequence), buffer, size, |buffer| memory.release(buffer));
        true
    }

    /// Answers the fetch with its parts, or with a refusal.
    fn finish_fetch(&mut self, id: u32, result: Result<(), Refusal>) {
        let fetch = self.fetches.remove(id as usize);
        if !self.is_wanted(&fetch.asker) {
            return self.drop_fetch(&fetch);
        }
        let result = result.and_then(|()| {
            let mut from_disk = fetch.parts.iter().filter(|part| part.from_disk);
            let damaged = from_disk.find(|part| !self.is_intact(fetch.shard, part));
            let Some(Part { log, found, .. }) = damaged else { return Ok(()) };
            tracing::error!(
                lsn = found.location.lsn.0,
                sequence = found.sequence,
                "stored records are damaged; they are not served"
            );
            self.forget_reads_of(*log, found.sequence);
            Err(Refusal::new(ErrorCode::Corrupt, found.location.first_offset.0))
        });
        let memory = self.io.memory_mut();
        match result {
            Ok(()) => self.send_parts(&fetch),
            Err(refusal) => {
                fetch.parts.iter().for_each(|part| memory.release(part.buffer));
                let Asker { connection, correlation, subscription } = fetch.asker;
                let (kind, shard) = (fetch.asker.kind(), Some(fetch.shard));
                self.refuse_reader(connection, kind, correlation, shard, refusal);
                subscription.into_iter().for_each(|serial| self.end_subscription(serial));
            }
        }
        self.fetch_done(&fetch.asker);
    }

    /// A fetch counts as a request of its connection; a subscription's do not.
    fn fetch_done(&mut self, asker: &Asker) {
        if asker.subscription.is_none() {
            self.request_done(asker.connection);
        }
    }

    /// Holds a batch from disk against everything that is known of it.
    fn is_intact(&self, shard: u32, part: &Part) -> bool {
        let bytes = &self.io.memory().bytes(part.buffer)[part.start..];
        let header = check_stored(bytes, part.found.sequence, &part.found.location);
        header.is_some_and(|header| header.shard == self.shards.at(shard).id)
    }

    fn send_parts(&mut self, fetch: &Fetch) {
        let batch_bytes = |part: &Part| padded_bytes(part.found.location.batch_bytes as usize);
        let bytes: usize = fetch.parts.iter().map(batch_bytes).sum();
        let last = fetch.parts.last().expect("an answer with batches").found.location;
        let answer = self.describe_answer(fetch.shard, last.end_offset());
        let header = FrameHeader {
            kind: fetch.asker.kind(),
            payload_bytes: (FETCH_ANSWER_BYTES + bytes) as u32,
            items: fetch.parts.len() as u32,
            correlation: fetch.asker.correlation,
        };
        let key = fetch.asker.connection;
        self.push_output(key, &header.encode());
        self.push_output(key, &answer.encode());
        self.counters.fetches_answered += 1;
        for part in &fetch.parts {
            let from_disk = u64::from(part.from_disk);
            self.counters.batches_from_disk += from_disk;
            self.counters.batches_from_memory += 1 - from_disk;
            // Behind a batch in the log stand zeroes up to the next frame: its padding here.
            let piece = Piece {
                buffer: part.buffer,
                start: (part.start + FRAME_HEADER_BYTES) as u32,
                bytes: batch_bytes(part) as u32,
            };
            match self.connection(key) {
                Some(connection) => connection.output.push_piece(piece),
                None => self.io.memory_mut().release(part.buffer),
            }
        }
        if let Some(serial) = fetch.asker.subscription {
            self.event_sent(serial, bytes as u64, last.end_offset());
        }
    }

    /// Nobody waits for it any more.
    fn drop_fetch(&mut self, fetch: &Fetch) {
        let memory = self.io.memory_mut();
        fetch.parts.iter().for_each(|part| memory.release(part.buffer));
        self.fetch_done(&fetch.asker);
    }

    fn describe_answer(&self, shard: u32, next: Offset) -> FetchAnswer {
        let shard = self.shards.at(shard);
        FetchAnswer {
            status: Ok(()),
            earliest: shard.earliest(&self.logs),
            next,
            committed: shard.committed,
            last_append_ms: shard.committed_ms,
            sealed_end: false,
        }
    }

    fn answer_empty(&mut self, id: u32, next: Offset, sealed_end: bool) {
        let fetch = self.fetches.remove(id as usize);
        let answer = FetchAnswer { sealed_end, ..self.describe_answer(fetch.shard, next) };
        let Asker { connection, correlation, subscription } = fetch.asker;
        self.answer(connection, fetch.asker.kind(), 0, correlation, &answer.encode());
        match subscription {
            Some(serial) if sealed_end => self.end_subscription(serial),
            Some(serial) => self.event_sent(serial, 0, next),
            None => {}
        }
        self.fetch_done(&fetch.asker);
    }

    /// Refuses a fetch, or a subscription: it ends.
    pub(super) fn refuse_reader(
        &mut self,
        key: ConnectionKey,
        kind: FrameKind,
        correlation: u64,
        shard: Option<u32>,
        refusal: Refusal,
    ) {
        self.counters.refusals += 1;
        let known = shard.map(|shard| self.describe_answer(shard, self.shards.at(shard).committed));
        let unknown = FetchAnswer {
            status: Ok(()),
            earliest: Offset(0),
            next: Offset(0),
            committed: Offset(0),
            last_append_ms: 0,
            sealed_end: false,
        };
        let answer = FetchAnswer { status: Err(refusal), ..known.unwrap_or(unknown) };
        self.answer(key, kind, 0, correlation, &answer.encode());
    }
}

fn epoch_of(logs: &[Log], place: ExtentPlace) -> Epoch {
    logs[place.log as usize].extent(place.number).record.open.extent.epoch
}

/// A footer that is in memory, ready to be searched.
fn cached_footer<'a>(
    cache: &FooterCache,
    io: &'a impl Io,
    log: &Log,
    place: u32,
    sequence: u64,
) -> Option<Footer<'a>> {
    let cached = cache.footers.get(&(place, sequence))?;
    cached.last_use.set(cache.next_use());
    let sealed = log.sealed(sequence)?;
    let trailer: &Trailer = &sealed.trailer;
    Some(Footer::checked(io.memory().bytes(cached.buffer), trailer, sealed.base))
}
