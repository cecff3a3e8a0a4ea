//! A log at work: appends frames and gathers small ones.

use std::collections::{BTreeMap, VecDeque};

use thalweg_wire::batch::BatchHeader;
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::align_up;
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::ids::{BootId, DiskId, Lsn, Offset};

use super::archive::Archives;
use super::cache::TailCache;
use super::extent::{ExtentRecord, RECORD_BYTES_MAX, Remembered};
use super::footer::{Trailer, footer_bytes};
use super::format::{FRAME_HEADER_BYTES, FrameKind, LogFrame, padded_frame_bytes, sequence_before};
use super::forward::Copying;
use super::index::{Location, SegmentIndex};
use super::retention::{Held, Leaving};
use super::writer::{Fate, Unit, Writer};
use crate::config::BLOCK_BYTES;
use crate::io::{BufferId, Errno, FileId, Io, Piece};

/// Batches that one segment may hold: bounds the index in memory.
pub const SEGMENT_BATCHES_MAX: usize = 64 * 1024;
/// A frame of this size and more is written from the buffer it was received into.
pub const IN_PLACE_BYTES_MIN: usize = 64 << 10;
/// Bytes gathered before they are written although the disk is busy.
pub(super) const GATHER_BYTES: usize = 256 << 10;
/// Batches leave this part of the last segment to records: one over it.
const RECORDS_SHARE: u64 = 16;
/// Bytes of extent records in one snapshot frame, and those of one record more: two such frames
/// share a buffer, unless the last record of one has many producers.
pub(super) const SNAPSHOT_FRAME_BYTES: usize = 120 << 10;
const _: () = assert!(SNAPSHOT_FRAME_BYTES + RECORD_BYTES_MAX + 128 < GATHER_BYTES);

/// Why an append was not made. Nothing of it was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendRefusal {
    /// The log stopped after a failed write or sync.
    Failed,
    /// The disk has no space for another segment.
    NoSpace,
    /// Zero-filled segments are used up for the moment.
    Busy,
    /// The log has as many extents as its segments can hold the snapshot of.
    ManyExtents,
    /// There is no memory, though nothing of this log's tail is kept in it any more.
    NoMemory,
}

impl From<AppendRefusal> for Refusal {
    fn from(refusal: AppendRefusal) -> Refusal {
        match refusal {
            AppendRefusal::Failed => ErrorCode::LogFailed.into(),
            AppendRefusal::NoSpace => ErrorCode::NoSpace.into(),
            AppendRefusal::Busy | AppendRefusal::ManyExtents | AppendRefusal::NoMemory => {
                ErrorCode::Overloaded.into()
            }
        }
    }
}

/// How a frame gets into the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Copied behind other small frames.
    Copied,
    /// Written from the buffer that it was received into.
    InPlace,
}

/// Who and what a log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogIdentity {
    /// Index of the log in its core.
    pub index: u32,
    /// The disk.
    pub disk: DiskId,
    /// Number of its directory on that disk.
    pub log: u32,
    /// Whose segments these are: a directory has a log for each retention class in use.
    pub retention_class: u8,
    /// Bytes of each segment.
    pub segment_bytes: u64,
    /// This start of the node.
    pub boot: BootId,
}

/// The batches of an extent in one segment begin here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The segment.
    pub sequence: u64,
    /// First offset in it.
    pub first_offset: Offset,
    /// Append time of the first batch, milliseconds since 1970.
    pub first_time_ms: u64,
    /// Its batches.
    pub batches: u32,
    /// Bytes of them.
    pub bytes: u32,
}

/// An extent and where its batches are.
#[derive(Clone, Debug)]
pub struct Extent {
    /// What the log remembers.
    pub record: ExtentRecord,
    /// Segments with batches of it, oldest first.
    pub runs: Vec<Run>,
    /// What was decided of its end is durable when this position is.
    pub ended: Lsn,
    /// The archive that has its record as it is, or is to have it when it counts.
    pub archived: Option<u64>,
    /// Its shard was deleted: no snapshot has it any more. It is here for those who still read.
    pub is_deleted: bool,
}

impl Extent {
    /// An extent with this record, of which no batch is known yet.
    #[must_use]
    pub fn new(record: ExtentRecord) -> Extent {
        Extent { record, runs: Vec::new(), ended: Lsn(0), archived: None, is_deleted: false }
    }
}

/// A segment that is whole: it has a footer and takes nothing more.
#[derive(Clone, Copy, Debug)]
pub struct SealedSegment {
    /// Its file.
    pub file: FileId,
    /// Position of its first byte.
    pub base: Lsn,
    /// Its last block.
    pub trailer: Trailer,
    /// Its place among the others: its sequence, or for one that took the place of others, the
    /// place of the first of them. What an extent has in segments one after the other by this
    /// order is one after the other in the extent.
    pub order: u64,
    /// What is kept in it.
    pub held: Held,
}

/// A zero-filled file in wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeSegment {
    /// The file.
    pub file: FileId,
}

/// What recovery found, and what a new log starts from.
#[derive(Debug)]
pub struct LogState {
    /// The last segment's sequence; before the first, the one before it.
    pub sequence: u64,
    /// Base of the next segment.
    pub next_base: Lsn,
    /// Where the last segment ends.
    pub end: Lsn,
    /// Segments by sequence.
    pub sealed: BTreeMap<u64, SealedSegment>,
    /// Extents by number.
    pub extents: BTreeMap<u32, Extent>,
    /// The number that the next one gets.
    pub next_extent: u32,
}

impl LogState {
    /// A log of this class without any content.
    #[must_use]
    pub fn empty(retention_class: u8) -> LogState {
        LogState {
            sequence: sequence_before(retention_class),
            next_base: Lsn(0),
            end: Lsn(0),
            sealed: BTreeMap::new(),
            extents: BTreeMap::new(),
            next_extent: 0,
        }
    }
}

pub(super) struct OpenSegment {
    pub(super) sequence: u64,
    pub(super) file: FileId,
    pub(super) base: Lsn,
    /// Where the next unit begins, in bytes from the segment's start; a multiple of the block.
    pub(super) position: u64,
    pub(super) index: SegmentIndex,
    pub(super) held: Held,
}

/// The segment before the open one, until its footer is durable and its index can go.
pub(super) struct Retiring {
    pub(super) sequence: u64,
    pub(super) index: SegmentIndex,
    pub(super) footer_unit: u64,
}

/// Small frames on their way into one unit.
pub(super) struct Gather {
    pub(super) buffer: BufferId,
    pub(super) bytes: usize,
}

/// A log.
pub struct Log {
    pub(super) identity: LogIdentity,
    pub(super) extents: BTreeMap<u32, Extent>,
    pub(super) next_extent: u32,
    pub(super) sealed: BTreeMap<u64, SealedSegment>,
    pub(super) open: Option<OpenSegment>,
    pub(super) retiring: Option<Retiring>,
    pub(super) spare_index: Option<SegmentIndex>,
    pub(super) last_sequence: u64,
    pub(super) next_base: Lsn,
    /// Where what was appended ends.
    appended: Lsn,
    pub(super) gather: Option<Gather>,
    /// Buffers put aside for the snapshot that is being written.
    pub(super) spare_gathers: Vec<BufferId>,
    pub(super) free: VecDeque<FreeSegment>,
    pub(super) no_space: bool,
    pub(super) leaving: Leaving,
    pub(super) copying: Copying,
    pub(super) archives: Archives,
    pub(super) writer: Writer,
    cache: TailCache,
    groups: u64,
    pub(super) bytes_written: u64,
    /// Bytes of the last snapshot, and of what was opened and not archived since.
    pub(super) snapshot_bytes: u64,
    /// Whether it was told that the log cannot go on.
    pub(super) told_many_extents: bool,
}

impl Log {
    /// A log that goes on from `state`, in a new segment.
    #[must_use]
    pub fn new(identity: LogIdentity, state: LogState) -> Log {
        let mut leaving = Leaving::default();
        // Segments of an earlier start may hold nothing any more.
        leaving.look_again();
        let archives = Archives::new(&state.extents);
        Log {
            identity,
            extents: state.extents,
            next_extent: state.next_extent,
            sealed: state.sealed,
            open: None,
            retiring: None,
            spare_index: None,
            last_sequence: state.sequence,
            next_base: state.next_base,
            appended: state.end,
            gather: None,
            spare_gathers: Vec::new(),
            free: VecDeque::new(),
            no_space: false,
            leaving,
            copying: Copying::default(),
            archives,
            writer: Writer::new(identity.index, state.end),
            cache: TailCache::default(),
            groups: 0,
            bytes_written: 0,
            snapshot_bytes: 0,
            told_many_extents: false,
        }
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    /// The extents by number.
    #[must_use]
    pub fn extents(&self) -> &BTreeMap<u32, Extent> {
        &self.extents
    }

    /// The extent with this number.
    ///
    /// # Panics
    /// When the log has none: numbers come from the log itself.
    #[must_use]
    pub fn extent(&self, number: u32) -> &Extent {
        &self.extents[&number]
    }

    /// The extent with this number, to be changed along with a frame that says so.
    ///
    /// # Panics
    /// When the log has none.
    pub fn extent_mut(&mut self, number: u32) -> &mut Extent {
        self.extents.get_mut(&number).expect("extent numbers come from the log")
    }

    /// Where what was appended ends: an answer that waits for this position is right for all
    /// that was appended before.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.appended
    }

    /// What survives a crash.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.writer.durable()
    }

    /// Why the log stopped, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<Errno> {
        self.writer.failed()
    }

    /// Whether nothing is on its way to the disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.writer.is_idle() && self.gather.is_none()
    }

    /// Whether the kernel is still at work for this log.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.writer.is_busy()
    }

    /// Whether a sync is in flight.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.writer.is_syncing()
    }

    /// Groups written, bytes written, syncs.
    #[must_use]
    pub fn figures(&self) -> (u64, u64, u64) {
        (self.groups, self.bytes_written, self.writer.syncs())
    }

    /// The tail in memory.
    #[must_use]
    pub fn cache(&self) -> &TailCache {
        &self.cache
    }

    /// The tail in memory, to let go of some.
    pub fn cache_mut(&mut self) -> &mut TailCache {
        &mut self.cache
    }

    /// A sealed segment.
    #[must_use]
    pub fn sealed(&self, sequence: u64) -> Option<&SealedSegment> {
        self.sealed.get(&sequence)
    }

    /// The first whole segment after this one.
    #[must_use]
    pub fn sealed_after(&self, sequence: u64) -> Option<u64> {
        let mut after = self.sealed.range(sequence + 1..).map(|(sequence, _)| *sequence);
        after.find(|sequence| !self.lacks_footer(*sequence))
    }

    /// How many segments are whole.
    #[must_use]
    pub fn sealed_count(&self) -> usize {
        self.sealed.len()
    }

    /// Whether a segment takes appends.
    #[must_use]
    pub fn has_open_segment(&self) -> bool {
        self.open.is_some()
    }

    /// File and base of a segment that has batches.
    ///
    /// # Panics
    /// When the log has no such segment: sequences come from searches.
    #[must_use]
    pub fn segment_file(&self, sequence: u64) -> (FileId, Lsn) {
        match &self.open {
            Some(open) if open.sequence == sequence => (open.file, open.base),
            _ => {
                let sealed = &self.sealed[&sequence];
                (sealed.file, sealed.base)
            }
        }
    }

    /// Makes room for one batch of so many bytes: rolls to the next segment when this one has
    /// none. After it, the append cannot be refused. The last free segment, and without one the
    /// end of the open segment, is left to records.
    ///
    /// # Errors
    /// [`AppendRefusal`] when there is no next segment, or no memory.
    pub fn reserve_batch(
        &mut self,
        io: &mut impl Io,
        batch_bytes: usize,
        placement: Placement,
    ) -> Result<(), AppendRefusal> {
        let last = self.free.is_empty();
        let kept_bytes = if last { self.identity.segment_bytes / RECORDS_SHARE } else { 0 };
        self.reserve(io, batch_bytes, placement, kept_bytes, 1)
    }

    /// Makes room for one record of so many bytes, like [`Log::reserve_batch`]. Space is only
    /// given back by writing records: they find room when batches do not.
    ///
    /// # Errors
    /// [`AppendRefusal`] when there is no next segment, or no memory.
    pub fn reserve_record(
        &mut self,
        io: &mut impl Io,
        record_bytes: usize,
    ) -> Result<(), AppendRefusal> {
        self.reserve(io, record_bytes, Placement::Copied, 0, 0)
    }

    fn reserve(
        &mut self,
        io: &mut impl Io,
        payload_bytes: usize,
        placement: Placement,
        kept_bytes: u64,
        kept_segments: usize,
    ) -> Result<(), AppendRefusal> {
        if self.writer.failed().is_some() {
            return Err(AppendRefusal::Failed);
        }
        let frame_bytes = padded_frame_bytes(payload_bytes as u64);
        if !self.fits(frame_bytes + kept_bytes) {
            if self.free.len() <= kept_segments {
                return Err(self.without_segment());
            }
            self.roll(io)?;
            assert!(self.fits(frame_bytes), "a segment has room for any frame");
        }
        let needs_gather = placement == Placement::Copied
            && self.gather.as_ref().is_none_or(|gather| {
                gather.bytes as u64 + frame_bytes > io.memory().size(gather.buffer) as u64
            });
        if needs_gather {
            self.open_gather(io, frame_bytes as usize)?;
        }
        Ok(())
    }

    pub(super) fn without_segment(&self) -> AppendRefusal {
        if self.no_space { AppendRefusal::NoSpace } else { AppendRefusal::Busy }
    }

    fn fits(&self, frame_bytes: u64) -> bool {
        let Some(open) = &self.open else { return false };
        let gathered = self.gather.as_ref().map_or(0, |gather| gather.bytes as u64);
        let end = open.position + align_up(gathered, BLOCK_BYTES) + frame_bytes + BLOCK_BYTES;
        let entries = open.index.len() + 1;
        let footer = footer_bytes(open.index.extents() + 1, entries);
        entries <= SEGMENT_BATCHES_MAX && end + footer <= self.identity.segment_bytes
    }

    /// Appends a batch that lies in `from` at byte `at`, by copying it. Its header has been
    /// assigned. Room was reserved.
    pub fn append_copy(
        &mut self,
        io: &mut impl Io,
        extent: u32,
        from: Piece,
        header: &BatchHeader,
    ) -> Lsn {
        let mut frame = self.frame(FrameKind::Batch, extent, from.bytes, 0);
        let to = self.gather_place(io, &mut frame);
        let (source, target) = io.memory_mut().pair(from.buffer, to.buffer);
        let start = to.start as usize;
        let target = &mut target[start..start + to.bytes as usize];
        let source = &source[from.start as usize..(from.start + from.bytes) as usize];
        fill_frame(target, &frame, source);
        self.note_batch(extent, &frame, header);
        self.appended
    }

    /// Appends a batch that lies in `buffer` behind room for a frame's header, from there. Its
    /// header has been assigned. Room was reserved; the buffer's reference goes to the log.
    pub fn append_in_place(
        &mut self,
        io: &mut impl Io,
        extent: u32,
        buffer: BufferId,
        header: &BatchHeader,
    ) -> Lsn {
        self.close_gather(io);
        let batch_bytes = header.batch_bytes() as u32;
        let frame = self.frame(FrameKind::Batch, extent, batch_bytes, 0);
        let frame_bytes = FRAME_HEADER_BYTES + batch_bytes as usize;
        let unit_bytes = align_up(frame_bytes as u64, BLOCK_BYTES) as usize;
        let bytes = io.memory_mut().bytes_mut(buffer);
        bytes[..FRAME_HEADER_BYTES].copy_from_slice(&frame.encode());
        // What the buffer held before must not reach the disk: it may be another tenant's.
        bytes[frame_bytes..unit_bytes].fill(0);
        io.memory_mut().shrink(buffer, unit_bytes);
        self.note_batch(extent, &frame, header);
        self.push_unit(buffer, unit_bytes);
        self.appended
    }

    /// Appends a record. Room was reserved.
    pub fn append_record(
        &mut self,
        io: &mut impl Io,
        kind: FrameKind,
        extent: u32,
        payload: &[u8],
    ) -> Lsn {
        let mut frame = self.frame(kind, extent, payload.len() as u32, crc32c(payload));
        let to = self.gather_place(io, &mut frame);
        let start = to.start as usize;
        let target = &mut io.memory_mut().bytes_mut(to.buffer)[start..start + to.bytes as usize];
        fill_frame(target, &frame, payload);
        self.appended
    }

    /// Opens an extent: takes it in and appends its record. Room was reserved for a record of the
    /// largest size. Answers the extent's number and the position to wait for.
    pub fn append_open(&mut self, io: &mut impl Io, mut record: ExtentRecord) -> (u32, Lsn) {
        let number = self.next_extent;
        self.next_extent += 1;
        record.number = number;
        let mut payload = Vec::new();
        record.encode_into(&mut payload);
        self.snapshot_bytes += payload.len() as u64;
        self.archives.note_opened();
        self.extents.insert(number, Extent::new(record));
        (number, self.append_record(io, FrameKind::Open, number, &payload))
    }

    /// Notes what a stored batch says of its producer and extent.
    fn note_batch(&mut self, extent: u32, frame: &LogFrame, header: &BatchHeader) {
        let location = Location {
            first_offset: header.first_offset,
            records: header.records,
            batch_bytes: frame.payload_bytes,
            lsn: frame.lsn,
            append_time_ms: header.append_time_ms,
        };
        let open = self.open.as_mut().expect("room was reserved");
        open.index.push(extent, location);
        let extent = self.extents.get_mut(&extent).expect("extent numbers come from the log");
        let bytes = location.batch_bytes;
        open.held.batches += 1;
        open.held.bytes += u64::from(bytes);
        open.held.last_time_ms = open.held.last_time_ms.max(location.append_time_ms);
        match extent.runs.last_mut() {
            Some(run) if run.sequence == open.sequence => {
                run.batches += 1;
                run.bytes += bytes;
            }
            _ => {
                open.held.runs += 1;
                extent.runs.push(Run {
                    sequence: open.sequence,
                    first_offset: location.first_offset,
                    first_time_ms: location.append_time_ms,
                    batches: 1,
                    bytes,
                });
            }
        }
        note_stored(&mut extent.record, header);
    }

    fn frame(&self, kind: FrameKind, extent: u32, payload_bytes: u32, crc: u32) -> LogFrame {
        let open = self.open.as_ref().expect("room was reserved");
        LogFrame {
            kind,
            generation: open.sequence,
            boot: self.identity.boot,
            lsn: Lsn(open.base.0 + open.position),
            durable: self.writer.durable(),
            extent,
            payload_bytes,
            payload_crc: crc,
        }
    }

    /// Takes the place of a frame in the gather; sets the frame's position.
    fn gather_place(&mut self, io: &mut impl Io, frame: &mut LogFrame) -> Piece {
        let bytes = frame.padded_bytes() as usize;
        let full = self
            .gather
            .as_ref()
            .is_none_or(|gather| gather.bytes + bytes > io.memory().size(gather.buffer));
        if full {
            self.open_gather(io, bytes).expect("room was reserved");
        }
        let gather = self.gather.as_mut().expect("just opened");
        let start = gather.bytes;
        gather.bytes += bytes;
        let open = self.open.as_ref().expect("room was reserved");
        let unit_start = open.base.0 + open.position;
        frame.lsn = Lsn(unit_start + start as u64);
        self.appended = Lsn(unit_start + gather.bytes as u64);
        Piece { buffer: gather.buffer, start: start as u32, bytes: bytes as u32 }
    }

    pub(super) fn open_gather(
        &mut self,
        io: &mut impl Io,
        bytes: usize,
    ) -> Result<(), AppendRefusal> {
        self.close_gather(io);
        let kept = if bytes <= GATHER_BYTES { self.spare_gathers.pop() } else { None };
        let buffer = kept.or_else(|| self.allocate(io, bytes.max(GATHER_BYTES)));
        self.gather = Some(Gather { buffer: buffer.ok_or(AppendRefusal::NoMemory)?, bytes: 0 });
        Ok(())
    }

    /// A buffer, at the expense of this log's tail in memory.
    pub fn allocate(&mut self, io: &mut impl Io, bytes: usize) -> Option<BufferId> {
        loop {
            if let Some(buffer) = io.memory_mut().allocate(bytes) {
                return Some(buffer);
            }
            let evicted = self.cache.evict()?;
            io.memory_mut().release(evicted);
        }
    }

    /// Makes what was gathered a unit.
    pub fn close_gather(&mut self, io: &mut impl Io) {
        let Some(gather) = self.gather.take() else { return };
        if gather.bytes == 0 {
            io.memory_mut().release(gather.buffer);
            return;
        }
        let unit_bytes = align_up(gather.bytes as u64, BLOCK_BYTES) as usize;
        io.memory_mut().bytes_mut(gather.buffer)[gather.bytes..unit_bytes].fill(0);
        io.memory_mut().shrink(gather.buffer, unit_bytes);
        self.push_unit(gather.buffer, unit_bytes);
    }

    /// Appends whole blocks at the open segment's position.
    fn push_unit(&mut self, buffer: BufferId, bytes: usize) {
        let open = self.open.as_mut().expect("a unit belongs to the open segment");
        let start = Lsn(open.base.0 + open.position);
        let end = Lsn(start.0 + bytes as u64);
        let piece = Piece { buffer, start: 0, bytes: bytes as u32 };
        self.writer.push(Unit { file: open.file, at: open.position, piece, start, end });
        open.position += bytes as u64;
        self.appended = end;
        self.groups += 1;
        self.bytes_written += bytes as u64;
    }

    /// Submits what may be written and synced now.
    pub fn pump(&mut self, io: &mut impl Io) {
        if self.gather.is_some() && self.writer.wants_unit() {
            self.close_gather(io);
        }
        self.writer.pump(io);
    }

    /// A write ended.
    pub fn on_write(&mut self, io: &mut impl Io, unit: u64, result: Result<u32, Errno>) {
        let (cache, memory) = (&mut self.cache, io.memory_mut());
        self.writer.on_write(unit, result, |unit, fate| keep(cache, memory, unit, fate));
        self.let_go_if_failed(io);
    }

    /// A sync ended.
    pub fn on_sync(&mut self, io: &mut impl Io, result: Result<u32, Errno>) {
        let (cache, memory) = (&mut self.cache, io.memory_mut());
        self.writer.on_sync(result, |unit, fate| keep(cache, memory, unit, fate));
        self.let_go_if_failed(io);
    }

    /// What was being gathered is never written.
    fn let_go_if_failed(&mut self, io: &mut impl Io) {
        if self.writer.failed().is_some()
            && let Some(gather) = self.gather.take()
        {
            io.memory_mut().release(gather.buffer);
        }
    }
}

/// A durable unit becomes part of the tail in memory; a footer does not.
fn keep(cache: &mut TailCache, memory: &mut crate::io::Arena, unit: Unit, fate: Fate) {
    if fate == Fate::Lost || unit.start == unit.end {
        memory.release(unit.piece.buffer);
    } else {
        let bytes = memory.size(unit.piece.buffer);
        cache.push(unit.start, unit.end, unit.piece.buffer, bytes);
    }
}

/// What a stored batch changes in its extent's record; recovery does the same.
pub fn note_stored(record: &mut ExtentRecord, header: &BatchHeader) {
    record.end = header.end_offset();
    record.last_append_ms = record.last_append_ms.max(header.append_time_ms);
    let stored =
        Remembered { first_offset: header.first_offset, append_time_ms: header.append_time_ms };
    record.producers.record(header.producer, header.sequence, stored);
}

/// Writes frame, payload and zeroes to the end of `target`.
fn fill_frame(target: &mut [u8], frame: &LogFrame, payload: &[u8]) {
    let (header, rest) = target.split_at_mut(FRAME_HEADER_BYTES);
    header.copy_from_slice(&frame.encode());
    rest[..payload.len()].copy_from_slice(payload);
    rest[payload.len()..].fill(0);
}
