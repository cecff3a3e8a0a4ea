//! Reading a log after whatever ended it.
//!
//! Sealed segments have footers; only the last segment is scanned. A log's content is its
//! contiguous prefix: units are written side by side, so that a crash leaves holes, and what lies
//! behind a hole was never acked. Two things tell a hole from damage: a frame behind it that
//! names a later position as durable (then bytes that were acked are gone: corruption, and the
//! log is not opened), or none that does (then it is unknown, and was never promised).
//!
//! What was recovered is synced and its end recorded, in the footer given to the last segment,
//! before anyone is told of it; the log goes on in a new segment, so that a hole filled later
//! cannot bring back what lay behind it.

use std::collections::BTreeMap;

use rkyv::util::AlignedVec;
use thalweg_wire::batch::Batch;
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{align_up, u64_at};
use thalweg_wire::control::ExtentState;
use thalweg_wire::ids::{DiskId, Lsn};
use thiserror::Error;

use super::extent::{ExtentEnd, ExtentRecord, ExtentTrim, MalformedRecord};
use super::footer::{Footer, Trailer, encode_footer};
use super::format::{
    FRAME_HEADER_BYTES, FrameKind, HeaderFault, LogFrame, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::index::{Location, SegmentIndex};
use super::segments::{Extent, LogState, Run, SEGMENT_BATCHES_MAX, SealedSegment, note_stored};
use crate::config::BLOCK_BYTES;
use crate::io::{Errno, FileId};

/// Bytes read and examined at a time; more than the largest frame.
const WINDOW_BYTES: usize = 16 << 20;

/// Bytes read from a segment, aligned as a block is.
pub type Bytes = AlignedVec<4096>;

/// The files of one log, read and written by whoever recovers it.
pub trait LogFiles {
    /// Each file with its size in bytes; a file's place in the list is its name here.
    fn sizes(&self) -> Vec<u64>;
    /// Reads; places and lengths are multiples of the block.
    fn read(
        &self,
        file: usize,
        at: u64,
        bytes: usize,
    ) -> impl Future<Output = Result<Bytes, Errno>>;
    /// Writes; places and lengths are multiples of the block.
    fn write(&self, file: usize, at: u64, bytes: &[u8]) -> impl Future<Output = Result<(), Errno>>;
    /// Makes durable what was written.
    fn sync(&self, file: usize) -> impl Future<Output = Result<(), Errno>>;
}

/// Why a log cannot be opened.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// The disk refused.
    #[error("I/O failed while the log was read ({0}): check the disk; nothing was changed")]
    Io(Errno),
    /// Another version of the format.
    #[error(
        "a segment has format version {found}, this build reads version {}: run a build that \
         reads it, or use another data directory",
        super::format::FORMAT_VERSION
    )]
    Version {
        /// What stands there.
        found: u16,
    },
    /// A file of another log, disk or segment size.
    #[error(
        "a segment belongs to another disk or log, or has another size: files were copied between \
         data directories; put them back"
    )]
    Foreign,
    /// A segment between two others is not there.
    #[error("segment {sequence} of the log is missing: put its file back, or restore the disk")]
    Missing {
        /// Its sequence.
        sequence: u64,
    },
    /// Bytes that were acked are damaged.
    #[error(
        "records that were acked are damaged at position {} of segment {sequence} (a later frame \
         names {} as durable): restore the disk from a replica or a copy",
        at.0, durable.0
    )]
    Corrupt {
        /// The segment.
        sequence: u64,
        /// Where the readable prefix ends.
        at: Lsn,
        /// What was durable according to a frame behind it.
        durable: Lsn,
    },
    /// Frames pass their checksums and contradict each other.
    #[error("segment {sequence} contradicts itself at position {}: {what}", at.0)]
    Contradiction {
        /// The segment.
        sequence: u64,
        /// Where.
        at: Lsn,
        /// What is wrong.
        what: String,
    },
}

impl From<Errno> for RecoveryError {
    fn from(errno: Errno) -> RecoveryError {
        RecoveryError::Io(errno)
    }
}

/// What recovery read, for the log of a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Segments that count.
    pub segments: u64,
    /// Bytes of the last segment that were scanned.
    pub scanned_bytes: u64,
    /// Batches found in it.
    pub batches: u64,
    /// Frames behind a hole, never acked, dropped.
    pub dropped_frames: u64,
}

/// A log's content, with files by their places in [`LogFiles::sizes`].
#[derive(Debug)]
pub struct RecoveredLog {
    /// Whose segments, oldest first: sequence, file, base, trailer.
    pub sealed: Vec<(u64, usize, Lsn, Trailer)>,
    /// Extents by number.
    pub extents: BTreeMap<u32, Extent>,
    /// Files ready to become segments.
    pub free: Vec<usize>,
    /// Files whose filling was not finished: they can be deleted.
    pub unfinished: Vec<usize>,
    /// What was read.
    pub report: RecoveryReport,
}

impl RecoveredLog {
    /// The state a log goes on from, with files as the ring names them.
    #[must_use]
    pub fn into_state(self, segment_bytes: u64, file: impl Fn(usize) -> FileId) -> LogState {
        let Some((sequence, _, base, trailer)) = self.sealed.last().copied() else {
            return LogState::empty();
        };
        let sealed = self.sealed.iter().map(|(sequence, place, base, trailer)| {
            (*sequence, SealedSegment { file: file(*place), base: *base, trailer: *trailer })
        });
        LogState {
            sequence,
            next_base: Lsn(base.0 + segment_bytes),
            end: trailer.end,
            sealed: sealed.collect(),
            extents: self.extents,
        }
    }
}

/// Reads the log `log` of disk `disk`.
///
/// # Errors
/// [`RecoveryError`] when what is there cannot be trusted; nothing was changed then but headers
/// of segments that never began.
pub async fn recover(
    files: &impl LogFiles,
    disk: DiskId,
    log: u32,
    segment_bytes: u64,
) -> Result<RecoveredLog, RecoveryError> {
    let mut inventory = take_inventory(files, disk, log, segment_bytes).await?;
    let mut report = RecoveryReport::default();
    let mut extents = BTreeMap::new();
    let mut scanned = None;
    while let Some((sequence, segment)) = inventory.segments.pop_last() {
        match scan(files, &segment, true).await? {
            Some(scan) => {
                scanned = Some((sequence, segment, scan));
                break;
            }
            // Its beginning never became durable, so nothing in it was acked.
            None => inventory.blank(files, segment.file).await?,
        }
    }
    let mut sealed = seal_older(files, &inventory, scanned.as_ref()).await?;
    if let Some((sequence, segment, scan)) = scanned {
        let (trailer, _) = write_footer(files, &segment, &scan.index, scan.end).await?;
        report = scan.report;
        extents = scan.extents;
        sealed.push((sequence, segment.file, segment.header.base, trailer));
    }
    report.segments = sealed.len() as u64;
    let mut recovered = RecoveredLog {
        sealed,
        extents: BTreeMap::new(),
        free: inventory.free,
        unfinished: inventory.unfinished,
        report,
    };
    recovered.extents = with_runs(files, &recovered.sealed, extents).await?;
    Ok(recovered)
}

#[derive(Clone, Copy)]
struct Segment {
    file: usize,
    header: SegmentHeader,
}

struct Inventory {
    segments: BTreeMap<u64, Segment>,
    free: Vec<usize>,
    unfinished: Vec<usize>,
}

impl Inventory {
    /// Makes a file whose header never counted a free one.
    async fn blank(&mut self, files: &impl LogFiles, file: usize) -> Result<(), RecoveryError> {
        files.write(file, 0, &aligned_zeroes(SEGMENT_HEADER_BYTES)).await?;
        files.sync(file).await?;
        self.free.push(file);
        Ok(())
    }
}

fn aligned_zeroes(bytes: usize) -> Bytes {
    let mut zeroes = Bytes::with_capacity(bytes);
    zeroes.resize(bytes, 0);
    zeroes
}

async fn take_inventory(
    files: &impl LogFiles,
    disk: DiskId,
    log: u32,
    segment_bytes: u64,
) -> Result<Inventory, RecoveryError> {
    let mut inventory =
        Inventory { segments: BTreeMap::new(), free: Vec::new(), unfinished: Vec::new() };
    let mut torn = Vec::new();
    for (file, size) in files.sizes().into_iter().enumerate() {
        if size < segment_bytes {
            inventory.unfinished.push(file);
            continue;
        }
        let block = files.read(file, 0, SEGMENT_HEADER_BYTES).await?;
        match SegmentHeader::decode(&block) {
            Ok(header) => {
                let ours = header.disk == disk && header.log == log;
                if !ours || header.segment_bytes != segment_bytes || size != segment_bytes {
                    return Err(RecoveryError::Foreign);
                }
                inventory.segments.insert(header.sequence, Segment { file, header });
            }
            Err(HeaderFault::Version { found }) => return Err(RecoveryError::Version { found }),
            Err(_) if block.iter().all(|byte| *byte == 0) => inventory.free.push(file),
            Err(_) => torn.push(file),
        }
    }
    let first_live = inventory
        .segments
        .last_key_value()
        .map_or(0, |(_, newest)| newest.header.first_live_sequence);
    let live = inventory.segments.split_off(&first_live);
    inventory.free.extend(inventory.segments.values().map(|segment| segment.file));
    inventory.segments = live;
    let mut expected = first_live;
    for sequence in inventory.segments.keys() {
        if *sequence != expected {
            return Err(RecoveryError::Missing { sequence: expected });
        }
        expected += 1;
    }
    for file in torn {
        refuse_if_it_counted(files, file, expected, &inventory, segment_bytes).await?;
        inventory.blank(files, file).await?;
    }
    Ok(inventory)
}

/// A header that was being written when the node died is as good as none, but one that was
/// damaged later is not: then frames behind it name positions of this very segment as durable.
async fn refuse_if_it_counted(
    files: &impl LogFiles,
    file: usize,
    sequence: u64,
    inventory: &Inventory,
    segment_bytes: u64,
) -> Result<(), RecoveryError> {
    let base = inventory
        .segments
        .last_key_value()
        .map_or(Lsn(0), |(_, last)| Lsn(last.header.base.0 + segment_bytes));
    let behind =
        frames_behind(files, file, sequence, base, SEGMENT_HEADER_BYTES as u64, segment_bytes)
            .await?;
    match behind.durable {
        Some(durable) if durable > base => {
            Err(RecoveryError::Corrupt { sequence, at: base, durable })
        }
        _ => Ok(()),
    }
}

/// Footers of all segments before the scanned one; a damaged footer is made anew from its
/// segment.
async fn seal_older(
    files: &impl LogFiles,
    inventory: &Inventory,
    scanned: Option<&(u64, Segment, Scan)>,
) -> Result<Vec<(u64, usize, Lsn, Trailer)>, RecoveryError> {
    let mut sealed = Vec::new();
    let headers: Vec<(u64, Segment)> =
        inventory.segments.iter().map(|(sequence, segment)| (*sequence, *segment)).collect();
    for (place, (sequence, segment)) in headers.iter().enumerate() {
        let next = headers.get(place + 1).map(|(_, next)| next.header);
        let next = next.or(scanned.map(|(_, segment, _)| segment.header));
        let end = next.map(|next| next.previous_end);
        let trailer = match read_footer(files, segment).await? {
            Some((trailer, _)) if Some(trailer.end) == end => trailer,
            _ => rebuild_footer(files, segment, end).await?,
        };
        sealed.push((*sequence, segment.file, segment.header.base, trailer));
    }
    Ok(sealed)
}

async fn read_footer(
    files: &impl LogFiles,
    segment: &Segment,
) -> Result<Option<(Trailer, Bytes)>, RecoveryError> {
    let header = &segment.header;
    let trailer_at = header.segment_bytes - BLOCK_BYTES;
    let block = files.read(segment.file, trailer_at, BLOCK_BYTES as usize).await?;
    let Ok(trailer) = Trailer::decode(&block, header.sequence, header.segment_bytes) else {
        return Ok(None);
    };
    let length = (trailer_at - trailer.footer_at) as usize;
    let bytes = if length == 0 {
        Bytes::new()
    } else {
        files.read(segment.file, trailer.footer_at, length).await?
    };
    Ok(Footer::check(&bytes, &trailer, header.base).is_ok().then_some((trailer, bytes)))
}

async fn rebuild_footer(
    files: &impl LogFiles,
    segment: &Segment,
    end: Option<Lsn>,
) -> Result<Trailer, RecoveryError> {
    let sequence = segment.header.sequence;
    let at = segment.header.base;
    let scan = scan(files, segment, false).await?;
    let scan = scan.ok_or(RecoveryError::Corrupt { sequence, at, durable: end.unwrap_or(at) })?;
    if let Some(end) = end.filter(|end| *end != scan.end) {
        return Err(RecoveryError::Corrupt { sequence, at: scan.end, durable: end });
    }
    Ok(write_footer(files, segment, &scan.index, scan.end).await?.0)
}

async fn write_footer(
    files: &impl LogFiles,
    segment: &Segment,
    index: &SegmentIndex,
    end: Lsn,
) -> Result<(Trailer, Vec<u8>), RecoveryError> {
    let header = &segment.header;
    let (footer_at, footer) =
        encode_footer(index, header.sequence, header.base, end, header.segment_bytes);
    files.write(segment.file, footer_at, &footer).await?;
    // The scanned frames may have been in the device's cache only: this sync is theirs, too.
    files.sync(segment.file).await?;
    let block = &footer[footer.len() - BLOCK_BYTES as usize..];
    let trailer = Trailer::decode(block, header.sequence, header.segment_bytes);
    Ok((trailer.expect("as made"), footer))
}

/// The extents with the segments that hold their batches.
async fn with_runs(
    files: &impl LogFiles,
    sealed: &[(u64, usize, Lsn, Trailer)],
    records: BTreeMap<u32, ExtentRecord>,
) -> Result<BTreeMap<u32, Extent>, RecoveryError> {
    let mut extents: BTreeMap<u32, Extent> = records
        .into_iter()
        .map(|(number, record)| (number, Extent { record, runs: Vec::new() }))
        .collect();
    for (sequence, file, base, trailer) in sealed {
        let length = align_up(trailer.body_bytes(), BLOCK_BYTES) as usize;
        if length == 0 {
            continue;
        }
        let bytes = files.read(*file, trailer.footer_at, length).await?;
        let footer = Footer::check(&bytes, trailer, *base).map_err(|fault| {
            RecoveryError::Contradiction { sequence: *sequence, at: *base, what: fault.to_string() }
        })?;
        for part in footer.parts() {
            if let Some(extent) = extents.get_mut(&part.extent) {
                extent.runs.push(Run {
                    sequence: *sequence,
                    first_offset: part.first_offset,
                    first_time_ms: part.first_time_ms,
                });
            }
        }
    }
    Ok(extents)
}

struct Scan {
    extents: BTreeMap<u32, ExtentRecord>,
    index: SegmentIndex,
    end: Lsn,
    report: RecoveryReport,
}

/// Reads a segment from its first frame to the end of its contiguous prefix. `None` when its
/// snapshot is not complete and nothing says that it was acked.
async fn scan(
    files: &impl LogFiles,
    segment: &Segment,
    is_last: bool,
) -> Result<Option<Scan>, RecoveryError> {
    let header = &segment.header;
    let mut state = ScanState {
        sequence: header.sequence,
        base: header.base,
        extents: BTreeMap::new(),
        index: SegmentIndex::new(SEGMENT_BATCHES_MAX),
        snapshot_complete: false,
        report: RecoveryReport::default(),
    };
    let mut position = SEGMENT_HEADER_BYTES as u64;
    loop {
        let window_at = position & !(BLOCK_BYTES - 1);
        let bytes = (header.segment_bytes - window_at).min(WINDOW_BYTES as u64) as usize;
        if bytes == 0 {
            break;
        }
        let window = files.read(segment.file, window_at, bytes).await?;
        let (next, step) = state.walk(&window, window_at, position, header.segment_bytes)?;
        position = next;
        state.report.scanned_bytes = position;
        match step {
            Step::MoreBytes => {}
            Step::End => break,
        }
    }
    let end = Lsn(header.base.0 + position);
    let behind = frames_behind(
        files,
        segment.file,
        header.sequence,
        header.base,
        position,
        header.segment_bytes,
    )
    .await?;
    if let Some(durable) = behind.durable.filter(|durable| is_last && *durable > end) {
        return Err(RecoveryError::Corrupt { sequence: header.sequence, at: end, durable });
    }
    state.report.dropped_frames = behind.frames;
    if !state.snapshot_complete {
        return Ok(None);
    }
    Ok(Some(Scan { extents: state.extents, index: state.index, end, report: state.report }))
}

enum Step {
    /// The frame at this position reaches beyond the window.
    MoreBytes,
    /// The prefix ends here.
    End,
}

struct ScanState {
    sequence: u64,
    base: Lsn,
    extents: BTreeMap<u32, ExtentRecord>,
    index: SegmentIndex,
    snapshot_complete: bool,
    report: RecoveryReport,
}

impl ScanState {
    /// Walks the frames of a window from `position` on; answers where it stopped, and why.
    fn walk(
        &mut self,
        window: &[u8],
        window_at: u64,
        mut position: u64,
        segment_bytes: u64,
    ) -> Result<(u64, Step), RecoveryError> {
        loop {
            let at = (position - window_at) as usize;
            let rest = &window[at..];
            if rest.len() < FRAME_HEADER_BYTES {
                let ended = window_at + window.len() as u64 == segment_bytes;
                return Ok((position, if ended { Step::End } else { Step::MoreBytes }));
            }
            let lsn = Lsn(self.base.0 + position);
            let frame = LogFrame::decode(rest, self.sequence, lsn)
                .ok()
                .filter(|frame| position + frame.padded_bytes() <= segment_bytes);
            let Some(frame) = frame else {
                // Behind the last frame of a unit there are zeroes to the end of the block.
                let block_end = align_up(position, BLOCK_BYTES);
                let padding = &rest[..(block_end - position) as usize];
                if padding.is_empty() || padding.iter().any(|byte| *byte != 0) {
                    return Ok((align_up(position, BLOCK_BYTES), Step::End));
                }
                position = block_end;
                continue;
            };
            let Some(payload) =
                rest.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + frame.payload_bytes as usize)
            else {
                return Ok((position, Step::MoreBytes));
            };
            if !self.apply(&frame, payload)? {
                return Ok((align_up(position, BLOCK_BYTES), Step::End));
            }
            position += frame.padded_bytes();
        }
    }

    /// Takes a frame in; false when its payload is not whole.
    fn apply(&mut self, frame: &LogFrame, payload: &[u8]) -> Result<bool, RecoveryError> {
        if frame.kind == FrameKind::Batch {
            return self.apply_batch(frame, payload);
        }
        if crc32c(payload) != frame.payload_crc {
            return Ok(false);
        }
        self.apply_record(frame, payload).map_err(|what| self.contradiction(frame, what))?;
        Ok(true)
    }

    fn contradiction(&self, frame: &LogFrame, what: impl ToString) -> RecoveryError {
        let (sequence, at) = (self.sequence, frame.lsn);
        RecoveryError::Contradiction { sequence, at, what: what.to_string() }
    }

    fn apply_batch(&mut self, frame: &LogFrame, payload: &[u8]) -> Result<bool, RecoveryError> {
        let Some(record) = self.extents.get_mut(&frame.extent) else {
            return Err(self.contradiction(frame, "a batch of an extent that was not opened"));
        };
        let Ok(batch) = Batch::check(payload, &record.open.range) else { return Ok(false) };
        let header = batch.header;
        let of_extent = header.shard == record.open.extent.shard
            && header.epoch == record.open.extent.epoch
            && header.first_offset == record.end
            && header.batch_bytes() == payload.len();
        if !of_extent {
            return Err(self.contradiction(frame, "a batch that does not follow its extent"));
        }
        note_stored(record, &header);
        self.report.batches += 1;
        self.index.push(
            frame.extent,
            Location {
                first_offset: header.first_offset,
                records: header.records,
                batch_bytes: frame.payload_bytes,
                lsn: frame.lsn,
                append_time_ms: header.append_time_ms,
            },
        );
        Ok(true)
    }

    fn apply_record(&mut self, frame: &LogFrame, payload: &[u8]) -> Result<(), String> {
        let text = |malformed: MalformedRecord| malformed.to_string();
        match frame.kind {
            FrameKind::Snapshot => {
                let mut at = 0;
                while at < payload.len() {
                    let (record, length) = ExtentRecord::decode(&payload[at..]).map_err(text)?;
                    self.extents.insert(record.number, record);
                    at += length;
                }
            }
            FrameKind::SnapshotEnd => {
                if payload.len() != 8 || u64_at(payload, 0) != self.extents.len() as u64 {
                    return Err("the snapshot lacks extents".into());
                }
                self.snapshot_complete = true;
            }
            FrameKind::Open => {
                let (record, _) = ExtentRecord::decode(payload).map_err(text)?;
                end_older(&mut self.extents, &record);
                self.extents.insert(record.number, record);
            }
            FrameKind::End => {
                let end = ExtentEnd::decode(payload).map_err(text)?;
                let record = self.known(frame.extent)?;
                record.state = end.state;
                record.recovery_epoch = end.recovery_epoch;
                record.end = end.end;
            }
            FrameKind::Trim => {
                let trim = ExtentTrim::decode(payload).map_err(text)?;
                self.known(frame.extent)?.first_kept = trim.first_kept;
            }
            FrameKind::Batch => unreachable!("batches are applied apart"),
        }
        Ok(())
    }

    fn known(&mut self, extent: u32) -> Result<&mut ExtentRecord, String> {
        self.extents.get_mut(&extent).ok_or_else(|| "an extent that was not opened".into())
    }
}

/// An extent that was opened ends those before it: a node that is its own controller says both in
/// one frame, so that no crash comes between. Only the newest keeps the shard's producers.
fn end_older(extents: &mut BTreeMap<u32, ExtentRecord>, opened: &ExtentRecord) {
    let shard = opened.open.extent.shard;
    for record in extents.values_mut().filter(|record| record.open.extent.shard == shard) {
        record.state = ExtentState::Sealed;
        record.producers = Default::default();
    }
}

#[derive(Default)]
struct Behind {
    frames: u64,
    durable: Option<Lsn>,
}

/// Frames of this generation from `position` on, wherever a unit may begin, and the latest
/// position that one of them names as durable.
async fn frames_behind(
    files: &impl LogFiles,
    file: usize,
    sequence: u64,
    base: Lsn,
    position: u64,
    segment_bytes: u64,
) -> Result<Behind, RecoveryError> {
    let mut behind = Behind::default();
    let mut window_at = align_up(position, BLOCK_BYTES);
    while window_at < segment_bytes {
        let bytes = (segment_bytes - window_at).min(WINDOW_BYTES as u64);
        let window = files.read(file, window_at, bytes as usize).await?;
        for at in (0..window.len()).step_by(BLOCK_BYTES as usize) {
            let lsn = Lsn(base.0 + window_at + at as u64);
            if let Ok(frame) = LogFrame::decode(&window[at..], sequence, lsn) {
                behind.frames += 1;
                behind.durable = behind.durable.max(Some(frame.durable));
            }
        }
        window_at += bytes;
    }
    Ok(behind)
}
