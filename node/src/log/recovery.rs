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
use thalweg_wire::codec::align_up;
use thalweg_wire::ids::{DiskId, Lsn};
use thiserror::Error;

use super::extent::ExtentRecord;
use super::footer::{Footer, Trailer, encode_footer};
use super::format::{
    HeaderFault, LogFrame, SEGMENT_HEADER_BYTES, SEQUENCE_MAX, SegmentHeader, SegmentOrigin,
    class_of, sequence_before,
};
use super::index::SegmentIndex;
use super::retention::{Held, SegmentEntry, dropped_runs, is_gone};
use super::scan::{Scan, each_block, scan};
use super::segments::{Extent, LogState, Run, SealedSegment};
use crate::config::BLOCK_BYTES;
use crate::io::{Errno, FileId};

/// Positions above this are nobody's; a log counts on from those it finds.
const BASE_MAX: u64 = 1 << 62;

/// Bytes read from a segment, aligned as a block is.
pub type Bytes = AlignedVec<4096>;

/// The files of one directory, read and written by whoever recovers it.
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
    /// Records of extents that have ended are damaged.
    #[error(
        "segment {sequence}, which has what is known of older extents, is damaged: restore the disk \
         from a replica or a copy"
    )]
    DamagedArchive {
        /// The segment.
        sequence: u64,
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

/// A segment that counts, with its footer.
#[derive(Clone, Copy, Debug)]
pub struct RecoveredSegment {
    /// Its sequence.
    pub sequence: u64,
    /// Its file.
    pub file: usize,
    /// Position of its first byte.
    pub base: Lsn,
    /// Its last block.
    pub trailer: Trailer,
    /// See [`SealedSegment::order`].
    pub order: u64,
    /// What is kept in it.
    pub held: Held,
}

/// A log's content, with files by their places in [`LogFiles::sizes`].
#[derive(Debug)]
pub struct RecoveredLog {
    /// Its retention class.
    pub retention_class: u8,
    /// Highest sequence of the class that any of the files names; without any, the one before the
    /// first.
    pub sequence: u64,
    /// Base of the next segment.
    pub next_base: Lsn,
    /// Where the last segment ends.
    pub end: Lsn,
    /// The segments that count, oldest first.
    pub sealed: Vec<RecoveredSegment>,
    /// Extents by number.
    pub extents: BTreeMap<u32, Extent>,
    /// The number that the next one gets.
    pub next_extent: u32,
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
    pub fn into_state(self, file: impl Fn(usize) -> FileId) -> LogState {
        let sealed = self.sealed.iter().map(|segment| {
            let RecoveredSegment { sequence, base, trailer, order, held, .. } = *segment;
            (sequence, SealedSegment { file: file(segment.file), base, trailer, order, held })
        });
        LogState {
            sequence: self.sequence,
            next_base: self.next_base,
            end: self.end,
            sealed: sealed.collect(),
            extents: self.extents,
            next_extent: self.next_extent,
        }
    }
}

/// Reads the logs of directory `log` on disk `disk`: one for each retention class that has segments
/// there, and at least that of class 0, which is the first and has the files that are nobody's.
///
/// # Errors
/// [`RecoveryError`] when what is there cannot be trusted; nothing was changed then but headers
/// of segments that never began, and footers that were made anew.
pub async fn recover(
    files: &impl LogFiles,
    disk: DiskId,
    log: u32,
    segment_bytes: u64,
) -> Result<Vec<RecoveredLog>, RecoveryError> {
    let Inventory { segments, mut free, unfinished, torn } =
        take_inventory(files, disk, log, segment_bytes).await?;
    let mut classes = BTreeMap::from([(0, BTreeMap::new())]);
    for (sequence, segment) in segments {
        classes.entry(class_of(sequence)).or_insert_with(BTreeMap::new).insert(sequence, segment);
    }
    let mut logs = Vec::with_capacity(classes.len());
    for (class, segments) in classes {
        logs.extend(recover_class(files, class, segments, &mut free).await?);
    }
    // Not before it is known that none of those that count is missing.
    for file in torn {
        blank(files, file, &mut free).await?;
    }
    (logs[0].free, logs[0].unfinished) = (free, unfinished);
    Ok(logs)
}

/// Reads the log of one retention class; files of it that turn out to be nobody's become `free`.
/// Without a segment that counted ever there is none, but for class 0.
async fn recover_class(
    files: &impl LogFiles,
    retention_class: u8,
    mut segments: BTreeMap<u64, Segment>,
    free: &mut Vec<usize>,
) -> Result<Option<RecoveredLog>, RecoveryError> {
    let none = (sequence_before(retention_class), Lsn(0));
    let highest = segments.values().map(|segment| segment.header);
    let (sequence, next_base) = highest.fold(none, |(sequence, base), header| {
        (sequence.max(header.sequence), base.max(Lsn(header.base.0 + header.segment_bytes)))
    });
    let mut recovered = RecoveredLog {
        retention_class,
        sequence,
        next_base,
        end: Lsn(0),
        sealed: Vec::new(),
        extents: BTreeMap::new(),
        next_extent: 0,
        free: Vec::new(),
        unfinished: Vec::new(),
        report: RecoveryReport::default(),
    };
    while let Some((sequence, segment)) = take_newest(&mut segments) {
        let Some(scan) = scan(files, &segment, Some(&segments)).await? else {
            // Its beginning never became durable, so nothing in it was acked.
            blank(files, segment.file, free).await?;
            continue;
        };
        let entries = counting_segments(&segment, &scan, &segments)?;
        recovered.sealed = seal_older(files, &mut segments, &entries).await?;
        let (trailer, _) = write_footer(files, &segment, &scan.index, scan.end).await?;
        recovered.sealed.push(segment.with_footer(trailer, sequence));
        recovered.sealed.sort_unstable_by_key(|segment| segment.sequence);
        recovered.end = scan.end;
        recovered.report = scan.report;
        recovered.next_extent = scan.next_extent;
        recovered.report.segments = recovered.sealed.len() as u64;
        recovered.extents =
            with_runs(files, &mut recovered.sealed, scan.extents, &scan.archived).await?;
        break;
    }
    // Whatever has a header and does not count was released.
    free.extend(segments.values().map(|segment| segment.file));
    let is_there = retention_class == 0 || !recovered.sealed.is_empty() || !segments.is_empty();
    Ok(is_there.then_some(recovered))
}

/// The segments before the scanned one that count, each with its end: as the scanned one lists
/// them, or, where it has no list, all from the first that its header names.
fn counting_segments(
    scanned: &Segment,
    scan: &Scan,
    segments: &BTreeMap<u64, Segment>,
) -> Result<Vec<SegmentEntry>, RecoveryError> {
    let header = &scanned.header;
    if let Some(listed) = &scan.segments {
        return Ok(listed.values().copied().collect());
    }
    let mut entries = Vec::new();
    let mut end = header.previous_end;
    for sequence in (header.first_live_sequence..header.sequence).rev() {
        let segment = segments.get(&sequence);
        let segment = segment.ok_or(RecoveryError::Missing { sequence })?;
        entries.push(SegmentEntry { sequence, end, order: sequence });
        end = segment.header.previous_end;
    }
    entries.reverse();
    Ok(entries)
}

/// A file that begins with a segment's header.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) file: usize,
    pub(super) header: SegmentHeader,
}

impl Segment {
    fn with_footer(&self, trailer: Trailer, order: u64) -> RecoveredSegment {
        let (sequence, base) = (self.header.sequence, self.header.base);
        RecoveredSegment { sequence, file: self.file, base, trailer, order, held: Held::default() }
    }
}

#[derive(Default)]
struct Inventory {
    segments: BTreeMap<u64, Segment>,
    free: Vec<usize>,
    unfinished: Vec<usize>,
    /// Files whose first block is neither a header nor zeroes.
    torn: Vec<usize>,
}

impl Inventory {
    fn take_in(&mut self, segment: Segment) -> Result<(), RecoveryError> {
        let SegmentHeader { sequence, base, .. } = segment.header;
        let contradiction =
            |what: &str| RecoveryError::Contradiction { sequence, at: base, what: what.into() };
        let is_ours = sequence < SEQUENCE_MAX && sequence > sequence_before(class_of(sequence));
        if !is_ours || base.0 > BASE_MAX {
            return Err(contradiction("no log gets to its sequence or position"));
        }
        match self.segments.insert(sequence, segment) {
            None => Ok(()),
            Some(_) => Err(contradiction("another file is the same segment")),
        }
    }

    /// The highest sequence of its class that a header names, as `sequence` is of one.
    fn newest_of_class(&self, sequence: u64) -> u64 {
        let first = sequence_before(class_of(sequence));
        let after = sequence_before(class_of(sequence) + 1);
        self.segments.range(first..after).next_back().map_or(first, |(newest, _)| *newest)
    }
}

/// The segment that a log was appended to last.
fn take_newest(segments: &mut BTreeMap<u64, Segment>) -> Option<(u64, Segment)> {
    let mut appended = segments.iter().rev();
    let newest = appended.find(|(_, segment)| segment.header.origin == SegmentOrigin::Appended);
    segments.remove_entry(&newest.map(|(sequence, _)| *sequence)?)
}

/// Makes a file whose header never counted a free one.
async fn blank(
    files: &impl LogFiles,
    file: usize,
    free: &mut Vec<usize>,
) -> Result<(), RecoveryError> {
    files.write(file, 0, &aligned_zeroes(SEGMENT_HEADER_BYTES)).await?;
    files.sync(file).await?;
    free.push(file);
    Ok(())
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
    let mut inventory = Inventory::default();
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
                inventory.take_in(Segment { file, header })?;
            }
            Err(HeaderFault::Version { found }) => return Err(RecoveryError::Version { found }),
            Err(_) if block.iter().all(|byte| *byte == 0) => inventory.free.push(file),
            Err(_) => inventory.torn.push(file),
        }
    }
    for file in &inventory.torn {
        refuse_if_it_counted(files, *file, &inventory, segment_bytes).await?;
    }
    Ok(inventory)
}

/// A header that was being written when the node died is as good as none, but one that was
/// damaged later is not: then frames behind it, of a segment after the newest of its class that has
/// a header, name positions of this very segment as durable.
async fn refuse_if_it_counted(
    files: &impl LogFiles,
    file: usize,
    inventory: &Inventory,
    segment_bytes: u64,
) -> Result<(), RecoveryError> {
    let mut refused = Ok(());
    each_block(files, file, SEGMENT_HEADER_BYTES as u64, segment_bytes, |position, block| {
        let Ok(frame) = LogFrame::decode_any(block) else { return };
        let base = Lsn(frame.lsn.0.saturating_sub(position));
        let counts = frame.generation < SEQUENCE_MAX
            && frame.generation > inventory.newest_of_class(frame.generation);
        if counts && frame.durable > base {
            let (sequence, durable) = (frame.generation, frame.durable);
            refused = Err(RecoveryError::Corrupt { sequence, at: base, durable });
        }
    })
    .await?;
    refused
}

/// Footers of the segments that count before the scanned one, which leave `segments`; a
/// damaged footer is made anew from its segment.
async fn seal_older(
    files: &impl LogFiles,
    segments: &mut BTreeMap<u64, Segment>,
    entries: &[SegmentEntry],
) -> Result<Vec<RecoveredSegment>, RecoveryError> {
    let mut sealed = Vec::new();
    for SegmentEntry { sequence, end, order } in entries.iter().copied() {
        let segment = segments.remove(&sequence);
        let segment = segment.ok_or(RecoveryError::Missing { sequence })?;
        let trailer = match read_footer(files, &segment).await? {
            Some((trailer, _)) if trailer.end == end => trailer,
            _ => rebuild_footer(files, &segment, end).await?,
        };
        sealed.push(segment.with_footer(trailer, order));
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
    end: Lsn,
) -> Result<Trailer, RecoveryError> {
    let sequence = segment.header.sequence;
    let at = segment.header.base;
    let scan = scan(files, segment, None).await?;
    let scan = scan.ok_or(RecoveryError::Corrupt { sequence, at, durable: end })?;
    if end != scan.end {
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

/// The extents with the segments that hold their batches; what is kept in each segment.
async fn with_runs(
    files: &impl LogFiles,
    sealed: &mut [RecoveredSegment],
    records: BTreeMap<u32, ExtentRecord>,
    archived: &BTreeMap<u32, u64>,
) -> Result<BTreeMap<u32, Extent>, RecoveryError> {
    let mut extents: BTreeMap<u32, Extent> = records
        .into_iter()
        .map(|(number, record)| {
            let archived = archived.get(&number).copied();
            (number, Extent { archived, ..Extent::new(record) })
        })
        .collect();
    for segment in &mut *sealed {
        let RecoveredSegment { sequence, file, base, trailer, .. } = *segment;
        let length = align_up(trailer.body_bytes(), BLOCK_BYTES) as usize;
        if length == 0 {
            continue;
        }
        let bytes = files.read(file, trailer.footer_at, length).await?;
        let footer = Footer::check(&bytes, &trailer, base).map_err(|fault| {
            RecoveryError::Contradiction { sequence, at: base, what: fault.to_string() }
        })?;
        for part in footer.parts() {
            let (batches, bytes, last_time_ms) = footer.sums(&part);
            segment.held.last_time_ms = segment.held.last_time_ms.max(last_time_ms);
            let Some(extent) = extents.get_mut(&part.extent) else { continue };
            extent.runs.push(Run {
                sequence,
                first_offset: part.first_offset,
                first_time_ms: part.first_time_ms,
                batches,
                bytes,
            });
        }
    }
    for extent in extents.values_mut() {
        extent.runs.sort_unstable_by_key(|run| run.first_offset);
        extent.runs.drain(..dropped_runs(extent));
    }
    forget_gone(&mut extents);
    for extent in extents.values_mut() {
        if let Some(archive) = extent.archived {
            match sealed.binary_search_by_key(&archive, |segment| segment.sequence) {
                Ok(place) => sealed[place].held.records += 1,
                Err(_) => extent.archived = None,
            }
        }
        for run in &extent.runs {
            let place = sealed.binary_search_by_key(&run.sequence, |segment| segment.sequence);
            let held = &mut sealed[place.expect("runs come from these segments")].held;
            held.take_in(run);
        }
    }
    Ok(extents)
}

/// Extents that ended and of which nothing is kept are forgotten, but for a shard's newest.
fn forget_gone(extents: &mut BTreeMap<u32, Extent>) {
    let mut newest = BTreeMap::new();
    for extent in extents.values() {
        let id = extent.record.open.extent;
        let epoch = newest.entry(id.shard).or_insert(id.epoch);
        *epoch = id.epoch.max(*epoch);
    }
    extents.retain(|_, extent| {
        let id = extent.record.open.extent;
        newest[&id.shard] == id.epoch || !is_gone(extent)
    });
}
