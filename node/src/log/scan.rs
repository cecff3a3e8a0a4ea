//! Reading a segment frame by frame, up to the first place where no whole frame stands, and what
//! lies behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use thalweg_wire::batch::{Batch, HEADER_BYTES};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{align_up, u32_at, u64_at};
use thalweg_wire::control::ExtentState;
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{BootId, Lsn, ShardId};
use thalweg_wire::limits::BODY_BYTES_MAX;

use super::archive::{ArchiveAt, ArchivedRecords, Ranges, has_number, read_archive};
use super::extent::{ExtentEnd, ExtentRecord, ExtentTrim, ForgottenShard, MalformedRecord};
use super::footer::footer_bytes;
use super::format::{FRAME_HEADER_BYTES, FrameKind, LogFrame, SEGMENT_HEADER_BYTES, SegmentOrigin};
use super::index::{Location, SegmentIndex};
use super::recovery::{LogFiles, RecoveryError, RecoveryReport, Segment};
use super::retention::{SEGMENT_ENTRY_BYTES, SegmentEntry, decode_merge, decode_release};
use super::segments::{SEGMENT_BATCHES_MAX, note_stored};
use crate::config::BLOCK_BYTES;

/// Bytes read and examined at a time.
const WINDOW_BYTES: usize = 16 << 20;
/// Longer payloads are nobody's: a frame and what stands before it in its block fit a window.
const PAYLOAD_BYTES_MAX: u32 = WINDOW_BYTES as u32 - BLOCK_BYTES as u32 - FRAME_HEADER_BYTES as u32;
const _: () = assert!(BODY_BYTES_MAX + HEADER_BYTES as u32 <= PAYLOAD_BYTES_MAX);

/// What a segment says, up to the end of its contiguous prefix.
pub(super) struct Scan {
    pub(super) extents: BTreeMap<u32, ExtentRecord>,
    /// The number that the next extent gets.
    pub(super) next_extent: u32,
    /// Which archive has an extent's record as it is.
    pub(super) archived: BTreeMap<u32, u64>,
    /// The older segments that count, with their ends, if the snapshot lists them.
    pub(super) segments: Option<BTreeMap<u64, SegmentEntry>>,
    pub(super) index: SegmentIndex,
    pub(super) end: Lsn,
    pub(super) report: RecoveryReport,
}

/// Reads a segment from its first frame to the end of its contiguous prefix. `None` when its
/// snapshot is not complete and nothing says that it was acked. `older` are the segments before the
/// log's last, among them the archives that its snapshot names; of another segment than the last
/// only the batches are wanted, and its archives may be gone.
pub(super) async fn scan(
    files: &impl LogFiles,
    segment: &Segment,
    older: Option<&BTreeMap<u64, Segment>>,
) -> Result<Option<Scan>, RecoveryError> {
    let is_last = older.is_some();
    let header = &segment.header;
    let mut state = ScanState {
        sequence: header.sequence,
        base: header.base,
        boot: header.boot,
        extents: BTreeMap::new(),
        next_extent: 0,
        archived: BTreeMap::new(),
        named: BTreeMap::new(),
        new_archives: BTreeSet::new(),
        lacks_archived: false,
        of_shards: BTreeSet::new(),
        segments: None,
        index: SegmentIndex::new(SEGMENT_BATCHES_MAX),
        // A merged segment has none.
        snapshot_complete: header.origin == SegmentOrigin::Merged,
        origin: header.origin,
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
            Step::Archives => match older {
                Some(older) => state.take_in_named(files, older).await?,
                None => state.lacks_archived = true,
            },
            Step::End => break,
        }
    }
    let end = Lsn(header.base.0 + position);
    let behind = frames_behind(files, segment, position).await?;
    if let Some(durable) = behind.durable.filter(|durable| is_last && *durable > end) {
        return Err(RecoveryError::Corrupt { sequence: header.sequence, at: end, durable });
    }
    state.report.dropped_frames = behind.frames;
    if !state.snapshot_complete {
        return Ok(None);
    }
    if let Some(older) = older {
        state.find_in_new_archives(files, older).await?;
    }
    let ScanState { extents, next_extent, archived, segments, index, report, .. } = state;
    if position + footer_bytes(index.extents(), index.len()) > header.segment_bytes {
        return Err(RecoveryError::Contradiction {
            sequence: header.sequence,
            at: end,
            what: "its frames leave no room for a footer".into(),
        });
    }
    Ok(Some(Scan { extents, next_extent, archived, segments, index, end, report }))
}

enum Step {
    /// The frame at this position reaches beyond the window.
    MoreBytes,
    /// The snapshot is complete but for what is in the archives that it names.
    Archives,
    /// The prefix ends here.
    End,
}

struct ScanState {
    sequence: u64,
    base: Lsn,
    boot: BootId,
    extents: BTreeMap<u32, ExtentRecord>,
    /// Above the numbers of all extents that were seen or told of.
    next_extent: u32,
    /// Which archive has an extent's record as it is.
    archived: BTreeMap<u32, u64>,
    /// Archives that the snapshot names and that were not read yet, and what of them counts.
    named: BTreeMap<u64, Ranges>,
    /// Archives that count since the snapshot.
    new_archives: BTreeSet<u64>,
    /// What the archives have is not known.
    lacks_archived: bool,
    /// The same by shard: a start opens one of each, and to look through all of them each time
    /// took seconds with 100,000.
    of_shards: BTreeSet<(ShardId, u32)>,
    segments: Option<BTreeMap<u64, SegmentEntry>>,
    index: SegmentIndex,
    snapshot_complete: bool,
    origin: SegmentOrigin,
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
                // A segment is one start's: an attempt before it may have had its sequence.
                .filter(|frame| frame.boot == self.boot && frame.payload_bytes <= PAYLOAD_BYTES_MAX)
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
            if frame.kind == FrameKind::SnapshotEnd
                && !self.named.is_empty()
                && !self.lacks_archived
            {
                return Ok((position, Step::Archives));
            }
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
        let merged = self.origin == SegmentOrigin::Merged;
        let record = self.extents.get_mut(&frame.extent);
        if record.is_none() && !merged {
            return Err(self.contradiction(frame, "a batch of an extent that was not opened"));
        }
        let range = record.as_ref().map_or(HashRange::FULL, |record| record.open.range);
        let Ok(batch) = Batch::check(payload, &range) else { return Ok(false) };
        let header = batch.header;
        let of_extent = record.as_ref().is_none_or(|record| {
            header.shard == record.open.extent.shard
                && header.epoch == record.open.extent.epoch
                && header.first_offset == record.end
        });
        let location = Location {
            first_offset: header.first_offset,
            records: header.records,
            batch_bytes: frame.payload_bytes,
            lsn: frame.lsn,
            append_time_ms: header.append_time_ms,
        };
        let whole = header.batch_bytes() == payload.len();
        if !of_extent || !whole || !self.index.takes(frame.extent, &location) {
            return Err(self.contradiction(frame, "a batch that does not follow its extent"));
        }
        if let Some(record) = record {
            note_stored(record, &header);
        }
        self.report.batches += 1;
        self.index.push(frame.extent, location);
        Ok(true)
    }

    fn apply_record(&mut self, frame: &LogFrame, payload: &[u8]) -> Result<(), String> {
        let text = |malformed: MalformedRecord| malformed.to_string();
        match frame.kind {
            FrameKind::Snapshot => {
                let records = ExtentRecord::decode_all(payload).map_err(text)?;
                records.into_iter().for_each(|record| self.take_in(record));
            }
            FrameKind::Archived if self.snapshot_complete => {
                return Err("archived records outside of a snapshot".into());
            }
            FrameKind::Archived => {
                let ArchivedRecords { sequence, ranges } =
                    ArchivedRecords::decode(payload).map_err(text)?;
                self.named.entry(sequence).or_default().extend(ranges);
            }
            FrameKind::SnapshotEnd => {
                let lacks = |count| count != self.extents.len() as u64 && !self.lacks_archived;
                // Before there was the next number it had the count only.
                if !matches!(payload.len(), 8 | 16) || lacks(u64_at(payload, 0)) {
                    return Err("the snapshot lacks extents".into());
                }
                if payload.len() == 16 {
                    self.next_extent = self.next_extent.max(u32_at(payload, 8));
                }
                if self.next_extent == u32::MAX {
                    return Err("there is no number for another extent".into());
                }
                self.snapshot_complete = true;
            }
            FrameKind::Open => {
                let (record, _) = ExtentRecord::decode(payload).map_err(text)?;
                self.end_older(record.open.extent.shard);
                self.take_in(record);
            }
            FrameKind::End => {
                let end = ExtentEnd::decode(payload).map_err(text)?;
                self.archived.remove(&frame.extent);
                let Some(record) = self.known(frame.extent)? else { return Ok(()) };
                record.state = end.state;
                record.recovery_epoch = end.recovery_epoch;
                record.end = end.end;
            }
            FrameKind::Trim => {
                let trim = ExtentTrim::decode(payload).map_err(text)?;
                self.archived.remove(&frame.extent);
                let Some(record) = self.known(frame.extent)? else { return Ok(()) };
                record.first_kept = trim.first_kept;
            }
            FrameKind::Segments => {
                let listed = SegmentEntry::decode_all(payload).map_err(text)?;
                let segments = self.segments.get_or_insert_default();
                segments.extend(listed.map(|entry| (entry.sequence, entry)));
            }
            FrameKind::Release => {
                self.release(decode_release(payload).map_err(text)?)?;
            }
            FrameKind::Merge => {
                let (entry, replaced) = decode_merge(payload).map_err(text)?;
                if payload.len() == SEGMENT_ENTRY_BYTES {
                    self.new_archives.insert(entry.sequence);
                }
                self.release(replaced)?;
                self.segments.get_or_insert_default().insert(entry.sequence, entry);
            }
            FrameKind::Forget => {
                self.forget(ForgottenShard::decode(payload).map_err(text)?.shard)?;
            }
            FrameKind::Batch => unreachable!("batches are applied apart"),
        }
        Ok(())
    }

    fn release(&mut self, mut sequences: impl Iterator<Item = u64>) -> Result<(), String> {
        let listed = self.segments.get_or_insert_default();
        let all = sequences.all(|sequence| listed.remove(&sequence).is_some());
        if all { Ok(()) } else { Err("a segment is released that does not count".into()) }
    }

    fn take_in(&mut self, record: ExtentRecord) {
        // No record has the last number.
        self.next_extent = self.next_extent.max(record.number + 1);
        self.of_shards.insert((record.open.extent.shard, record.number));
        self.extents.insert(record.number, record);
    }

    /// An extent that is opened ends those before it: a node that is its own controller says both
    /// in one frame, so that no crash comes between. Only the newest keeps the shard's producers.
    fn end_older(&mut self, shard: ShardId) {
        for (_, number) in self.of_shards.range((shard, 0)..=(shard, u32::MAX)) {
            let record = self.extents.get_mut(number).expect("both have the same extents");
            record.state = ExtentState::Sealed;
            record.producers = Default::default();
        }
    }

    /// A shard was deleted, when it had ended and its records were let go.
    fn forget(&mut self, shard: ShardId) -> Result<(), String> {
        let numbers = self.of_shards.range((shard, 0)..=(shard, u32::MAX));
        let numbers: Vec<u32> = numbers.map(|(_, number)| *number).collect();
        for number in numbers {
            self.of_shards.remove(&(shard, number));
            self.archived.remove(&number);
            let record = self.extents.remove(&number).expect("both have the same extents");
            if record.state != ExtentState::Sealed || record.first_kept < record.end {
                return Err("a shard is deleted of which something is kept".into());
            }
        }
        Ok(())
    }

    /// The record of an extent; none when it is in an archive of which nothing is known.
    fn known(&mut self, extent: u32) -> Result<Option<&mut ExtentRecord>, String> {
        match self.extents.get_mut(&extent) {
            None if !self.lacks_archived => Err("an extent that was not opened".into()),
            record => Ok(record),
        }
    }

    /// Reads the archives that the snapshot names, and takes in what of them counts.
    async fn take_in_named(
        &mut self,
        files: &impl LogFiles,
        older: &BTreeMap<u64, Segment>,
    ) -> Result<(), RecoveryError> {
        for (sequence, ranges) in mem::take(&mut self.named) {
            for record in self.read(files, older, sequence).await? {
                if !has_number(&ranges, record.number) {
                    continue;
                }
                self.archived.insert(record.number, sequence);
                self.take_in(record);
            }
        }
        Ok(())
    }

    /// Finds the extents whose records are in archives that count since the snapshot, as they are:
    /// what changed while the archive was written is not.
    async fn find_in_new_archives(
        &mut self,
        files: &impl LogFiles,
        older: &BTreeMap<u64, Segment>,
    ) -> Result<(), RecoveryError> {
        for sequence in mem::take(&mut self.new_archives) {
            if self.segments.as_ref().is_none_or(|listed| !listed.contains_key(&sequence)) {
                continue;
            }
            for record in self.read(files, older, sequence).await? {
                if self.extents.get(&record.number) == Some(&record) {
                    self.archived.insert(record.number, sequence);
                }
            }
        }
        Ok(())
    }

    /// All records of an archive that counts.
    async fn read(
        &self,
        files: &impl LogFiles,
        older: &BTreeMap<u64, Segment>,
        sequence: u64,
    ) -> Result<Vec<ExtentRecord>, RecoveryError> {
        let archive = older.get(&sequence).ok_or(RecoveryError::Missing { sequence })?;
        let base = archive.header.base;
        let listed = self.segments.as_ref().and_then(|segments| segments.get(&sequence));
        let end = listed.map(|entry| entry.end).filter(|end| {
            let bytes = end.0.checked_sub(base.0);
            bytes.is_some_and(|bytes| bytes <= archive.header.segment_bytes)
        });
        let end = end.ok_or_else(|| RecoveryError::Contradiction {
            sequence,
            at: base,
            what: "an archive that does not count, or not so far".into(),
        })?;
        let at = ArchiveAt { file: archive.file, sequence, base, end };
        let records = read_archive(files, at).await?;
        records.ok_or(RecoveryError::DamagedArchive { sequence })
    }
}

#[derive(Default)]
struct Behind {
    frames: u64,
    durable: Option<Lsn>,
}

/// Frames of this segment from `position` on, wherever a unit may begin, and the latest position
/// that one of them names as durable.
async fn frames_behind(
    files: &impl LogFiles,
    segment: &Segment,
    position: u64,
) -> Result<Behind, RecoveryError> {
    let header = &segment.header;
    let mut behind = Behind::default();
    let from = align_up(position, BLOCK_BYTES);
    each_block(files, segment.file, from, header.segment_bytes, |at, block| {
        let lsn = Lsn(header.base.0 + at);
        let frame = LogFrame::decode(block, header.sequence, lsn);
        if let Some(frame) = frame.ok().filter(|frame| frame.boot == header.boot) {
            behind.frames += 1;
            behind.durable = behind.durable.max(Some(frame.durable));
        }
    })
    .await?;
    Ok(behind)
}

/// Reads a file from `position` on and hands each block to `look`, with its place.
pub(super) async fn each_block(
    files: &impl LogFiles,
    file: usize,
    position: u64,
    segment_bytes: u64,
    mut look: impl FnMut(u64, &[u8]),
) -> Result<(), RecoveryError> {
    let mut window_at = position;
    while window_at < segment_bytes {
        let bytes = (segment_bytes - window_at).min(WINDOW_BYTES as u64);
        let window = files.read(file, window_at, bytes as usize).await?;
        for at in (0..window.len()).step_by(BLOCK_BYTES as usize) {
            look(window_at + at as u64, &window[at..]);
        }
        window_at += bytes;
    }
    Ok(())
}
