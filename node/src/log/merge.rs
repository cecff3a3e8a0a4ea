//! Copying forward: what lives long in segments that are nearly empty is written again, together,
//! into one segment that takes their place.
//!
//! The new segment is written aside, whole and durable with its footer, before the log says that
//! it counts; the frame that says so releases those it replaces. Batches are copied as they lie;
//! only the frames around them are made anew. A damaged batch is not copied: the merge is given
//! up, and what is there stays for a copy elsewhere to repair.
//!
//! An archive ([`super::archive`]) is written in the same way, of records instead of batches.

use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::align_up;
use thalweg_wire::ids::{BootId, DiskId, Lsn, Offset};
use thiserror::Error;

use super::footer::{Footer, Trailer, encode_footer};
use super::format::{
    FRAME_HEADER_BYTES, FrameKind, LogFrame, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentOrigin,
};
use super::index::{Location, SegmentIndex, Target};
use super::recovery::LogFiles;
use super::stored::{StoredSegment, each_stored, read_footer};
use crate::config::BLOCK_BYTES;
use crate::io::Errno;

/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;

/// Segments to merge, or records to archive, and the segment to make of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeJob {
    /// The disk.
    pub disk: DiskId,
    /// The log's number on that disk.
    pub log: u32,
    /// Bytes of each segment.
    pub segment_bytes: u64,
    /// This start of the node.
    pub boot: BootId,
    /// Sequence of the segment to make: never given to another.
    pub sequence: u64,
    /// Its first position.
    pub base: Lsn,
    /// Its file.
    pub into: usize,
    /// The segments to copy from, in the order of what they hold.
    pub from: Vec<StoredSegment>,
    /// Extents of which something is kept, by number, with the first offset that is.
    pub kept: Vec<(u32, Offset)>,
    /// Records of extents for an archive, in payloads of frames; then there are no segments.
    pub records: Vec<Vec<u8>>,
}

impl MergeJob {
    fn frame(&self, kind: FrameKind, at: u64, extent: u32, payload_bytes: u32) -> LogFrame {
        LogFrame {
            kind,
            generation: self.sequence,
            boot: self.boot,
            lsn: Lsn(self.base.0 + at),
            // It says nothing of the log's own end.
            durable: Lsn(0),
            extent,
            payload_bytes,
            payload_crc: 0,
        }
    }
}

/// The part of an extent in a merged segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergedPart {
    /// The log's number of the extent.
    pub extent: u32,
    /// First offset in the segment.
    pub first_offset: Offset,
    /// Append time of the first batch, milliseconds since 1970.
    pub first_time_ms: u64,
    /// Batches.
    pub batches: u32,
    /// Bytes of the batches.
    pub bytes: u32,
}

/// A merged segment, durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged {
    /// Its last block.
    pub trailer: Trailer,
    /// What it has, by extent.
    pub parts: Vec<MergedPart>,
    /// Append time of its last batch, milliseconds since 1970.
    pub last_time_ms: u64,
}

/// Why segments were not merged. What was there is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MergeError {
    /// The disk refused.
    #[error("I/O failed ({0})")]
    Io(Errno),
    /// A batch or footer is damaged.
    #[error("segment {sequence} is damaged")]
    Damaged {
        /// The segment.
        sequence: u64,
    },
}

impl From<Errno> for MergeError {
    fn from(errno: Errno) -> MergeError {
        MergeError::Io(errno)
    }
}

/// Bytes on their way into the new segment, written in whole blocks.
struct Output<'a, F> {
    files: &'a F,
    file: usize,
    /// What was not written yet; it begins at `written`.
    buffer: Vec<u8>,
    written: u64,
}

impl<F: LogFiles> Output<'_, F> {
    fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    async fn push(&mut self, frame: &LogFrame, payload: &[u8]) -> Result<(), Errno> {
        let end = self.buffer.len() + frame.padded_bytes() as usize;
        self.buffer.extend(frame.encode());
        self.buffer.extend(payload);
        self.buffer.resize(end, 0);
        if self.buffer.len() >= WRITE_BYTES { self.write(false).await } else { Ok(()) }
    }

    /// Writes the whole blocks; all of it, with `rest`.
    async fn write(&mut self, rest: bool) -> Result<(), Errno> {
        let block = BLOCK_BYTES as usize;
        if rest {
            self.buffer.resize(align_up(self.buffer.len() as u64, BLOCK_BYTES) as usize, 0);
        }
        let whole = self.buffer.len() / block * block;
        if whole > 0 {
            self.files.write(self.file, self.written, &self.buffer[..whole]).await?;
            self.buffer.drain(..whole);
            self.written += whole as u64;
        }
        Ok(())
    }
}

/// Makes one segment of several, or an archive.
///
/// # Errors
/// [`MergeError`]; the new segment does not count then, whatever was written to it.
pub async fn merge(files: &impl LogFiles, job: &MergeJob) -> Result<Merged, MergeError> {
    let header = SegmentHeader {
        disk: job.disk,
        log: job.log,
        sequence: job.sequence,
        first_live_sequence: 0,
        base: job.base,
        previous_end: Lsn(0),
        segment_bytes: job.segment_bytes,
        boot: job.boot,
        origin: SegmentOrigin::Merged,
    };
    // The sequence is on the disk before any frame that bears it: no other segment gets it.
    files.write(job.into, 0, &header.encode()).await?;
    files.sync(job.into).await?;
    let entries: u32 = job.from.iter().map(|segment| segment.trailer.entries).sum();
    let mut index = SegmentIndex::new(entries as usize);
    let mut output = Output {
        files,
        file: job.into,
        buffer: Vec::with_capacity(2 * WRITE_BYTES),
        written: SEGMENT_HEADER_BYTES as u64,
    };
    for records in &job.records {
        let frame = job.frame(FrameKind::Snapshot, output.position(), 0, records.len() as u32);
        output.push(&LogFrame { payload_crc: crc32c(records), ..frame }, records).await?;
    }
    for segment in &job.from {
        copy(files, job, segment, &mut output, &mut index).await?;
    }
    let end = Lsn(job.base.0 + align_up(output.position(), BLOCK_BYTES));
    output.write(true).await?;
    let (footer_at, footer) = encode_footer(&index, job.sequence, job.base, end, job.segment_bytes);
    assert!(job.base.0 + footer_at >= end.0, "what is merged was chosen to fit");
    files.write(job.into, footer_at, &footer).await?;
    files.sync(job.into).await?;
    let trailer = &footer[footer.len() - BLOCK_BYTES as usize..];
    let trailer = Trailer::decode(trailer, job.sequence, job.segment_bytes).expect("as made");
    let mut merged = Merged { trailer, parts: Vec::new(), last_time_ms: 0 };
    for (extent, locations) in index.by_extent() {
        merged.parts.push(part_of(extent, locations, &mut merged.last_time_ms));
    }
    Ok(merged)
}

fn part_of(
    extent: u32,
    locations: impl Iterator<Item = Location>,
    last_time_ms: &mut u64,
) -> MergedPart {
    let mut locations = locations.peekable();
    let first = *locations.peek().expect("an extent in an index has a batch");
    let mut part = MergedPart {
        extent,
        first_offset: first.first_offset,
        first_time_ms: first.append_time_ms,
        batches: 0,
        bytes: 0,
    };
    for location in locations {
        part.batches += 1;
        part.bytes += location.batch_bytes;
        *last_time_ms = location.append_time_ms.max(*last_time_ms);
    }
    part
}

/// Copies what is kept of one segment.
async fn copy<F: LogFiles>(
    files: &F,
    job: &MergeJob,
    segment: &StoredSegment,
    output: &mut Output<'_, F>,
    index: &mut SegmentIndex,
) -> Result<(), MergeError> {
    let damaged = MergeError::Damaged { sequence: segment.sequence };
    let bytes = read_footer(files, segment).await?.ok_or(damaged)?;
    let footer = Footer::checked(&bytes, &segment.trailer, segment.base);
    let mut wanted: Vec<(u32, Location)> = Vec::new();
    for part in footer.parts() {
        let Ok(place) = job.kept.binary_search_by_key(&part.extent, |(extent, _)| *extent) else {
            continue;
        };
        let kept = footer.from(part.extent, Target::Offset(job.kept[place].1));
        wanted.extend(kept.map(|location| (part.extent, location)));
    }
    wanted.sort_unstable_by_key(|(_, location)| location.lsn);
    let mut intact = true;
    each_stored(files, segment, &wanted, async |extent, location, stored| {
        let Some(stored) = stored else {
            intact = false;
            return Ok(false);
        };
        let lsn = Lsn(job.base.0 + output.position());
        let frame = job.frame(FrameKind::Batch, output.position(), extent, location.batch_bytes);
        output.push(&frame, &stored[FRAME_HEADER_BYTES..]).await?;
        index.push(extent, Location { lsn, ..*location });
        Ok(true)
    })
    .await?;
    if intact { Ok(()) } else { Err(damaged) }
}

/// Bytes that batches take in a merged segment, at most.
#[must_use]
pub const fn merged_bytes_max(batches: u64, batch_bytes: u64) -> u64 {
    // Each has a frame's header, and less than one unit of padding.
    batch_bytes + batches * 2 * FRAME_HEADER_BYTES as u64
}
