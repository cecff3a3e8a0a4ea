//! Archives: segments with the records of extents that have ended, so that snapshots need not
//! repeat them.
//!
//! Each start of a node ends all extents and opens new ones: their records would add up in the
//! snapshots until no segment could hold one. What cannot change any more but by a trim is written
//! aside once. An archive is made and counts like a merged segment ([`super::merge`]); a snapshot
//! names those of its records that count, and whatever changes is in snapshots again.
//!
//! An archive that the newest snapshot names stays until the next snapshot does not: until then
//! nothing else says what is in it.

use std::collections::{BTreeMap, BTreeSet};

use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{align_up, u32_at, u64_at};
use thalweg_wire::control::ExtentState;
use thalweg_wire::ids::Lsn;

use super::extent::{ExtentRecord, MalformedRecord, RECORD_FIXED_BYTES};
use super::format::{FRAME_HEADER_BYTES, FrameKind, LogFrame, SEGMENT_HEADER_BYTES};
use super::merge::MergeJob;
use super::recovery::LogFiles;
use super::segments::{Extent, Log, SNAPSHOT_FRAME_BYTES};
use crate::config::BLOCK_BYTES;
use crate::io::Errno;

/// Records of one archive, at most: what is encoded of them in one go takes milliseconds.
const ARCHIVE_RECORDS_MAX: usize = 65_536;
/// An archive is worth its segment when it has this part of one: one over it.
const WORTH_SHARE: u64 = 32;
/// Bytes before the ranges of an [`ArchivedRecords`].
const ARCHIVED_FIXED_BYTES: usize = 8;
const RANGE_BYTES: usize = 8;
/// Bytes read at a time.
const WINDOW_BYTES: u64 = 1 << 20;

/// Records of extents that have ended, from which on they are archived: fewer are not worth a
/// segment of so many bytes.
#[must_use]
pub const fn archive_records_min(segment_bytes: u64) -> usize {
    let records = (segment_bytes / WORTH_SHARE) as usize / RECORD_FIXED_BYTES;
    if records < ARCHIVE_RECORDS_MAX / 2 { records } else { ARCHIVE_RECORDS_MAX / 2 }
}

/// How many records an archive may have in a segment of so many bytes.
const fn archive_records_max(segment_bytes: u64) -> usize {
    let frames = segment_bytes - SEGMENT_HEADER_BYTES as u64 - 2 * BLOCK_BYTES;
    let whole = frames / align_up(SNAPSHOT_FRAME_BYTES as u64 + 512, BLOCK_BYTES);
    let records = whole as usize * (SNAPSHOT_FRAME_BYTES / RECORD_FIXED_BYTES);
    if records < ARCHIVE_RECORDS_MAX { records } else { ARCHIVE_RECORDS_MAX }
}

/// Numbers of extents, from the first to the last of each range.
pub(super) type Ranges = Vec<(u32, u32)>;

/// Which records of an archive count, as a snapshot names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArchivedRecords {
    /// The archive's segment.
    pub sequence: u64,
    /// Numbers of the extents whose records count, in order: the first and the last of each range.
    pub ranges: Vec<(u32, u32)>,
}

impl ArchivedRecords {
    /// Appends them to `bytes`.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.sequence.to_le_bytes());
        for (first, last) in &self.ranges {
            bytes.extend(first.to_le_bytes());
            bytes.extend(last.to_le_bytes());
        }
    }

    /// Takes the payload of a frame apart.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(payload: &[u8]) -> Result<ArchivedRecords, MalformedRecord> {
        let malformed = MalformedRecord::new("a list of archived records");
        let rest = payload.get(ARCHIVED_FIXED_BYTES..).ok_or(malformed)?;
        let (ranges, []) = rest.as_chunks::<RANGE_BYTES>() else { return Err(malformed) };
        let ranges: Ranges =
            ranges.iter().map(|range| (u32_at(range, 0), u32_at(range, 4))).collect();
        let ordered = ranges.iter().all(|(first, last)| first <= last)
            && ranges.is_sorted_by(|(_, last), (first, _)| last < first);
        if !ordered {
            return Err(malformed);
        }
        Ok(ArchivedRecords { sequence: u64_at(payload, 0), ranges })
    }
}

/// Whether one of the ranges, which are in order, has a number.
pub(super) fn has_number(ranges: &[(u32, u32)], number: u32) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= number);
    behind > 0 && number <= ranges[behind - 1].1
}

/// What a log knows of its archives, beside the extents that are in them.
#[derive(Debug, Default)]
pub(super) struct Archives {
    /// Those that the snapshot of the open segment names.
    pub(super) in_snapshot: BTreeSet<u64>,
    /// Records that have ended and are in no archive, at most.
    ended: usize,
    /// The snapshot names an archive that was found damaged.
    damaged: bool,
}

impl Archives {
    /// For a log that begins with these extents.
    pub(super) fn new(extents: &BTreeMap<u32, Extent>) -> Archives {
        let ended = |extent: &&Extent| extent.archived.is_none() && may_rest(&extent.record);
        Archives { ended: extents.values().filter(ended).count(), ..Archives::default() }
    }

    /// A snapshot was written that names these archives.
    pub(super) fn note_snapshot(&mut self, named: &[ArchivedRecords]) {
        self.in_snapshot = named.iter().map(|records| records.sequence).collect();
        self.damaged = false;
    }

    /// An extent was opened; it may follow another, which has ended by that.
    pub(super) fn note_opened(&mut self) {
        self.ended += 1;
    }
}

/// Whether nothing but a trim can change a record any more, as long as its shard has a later
/// extent: that one has its producers.
fn may_rest(record: &ExtentRecord) -> bool {
    record.state == ExtentState::Sealed && record.producers.count() == 0
}

impl Log {
    /// Whether enough extents may have ended for an archive.
    #[must_use]
    pub fn wants_archive(&self, records_min: usize) -> bool {
        self.archives.ended >= records_min && self.may_copy()
    }

    /// Begins an archive of extents that have ended, if there are enough of them. `ended` are
    /// numbers of extents that their shards have later ones of. Smaller archives are joined with
    /// it. Files in the job are the ring's.
    pub fn begin_archive(&mut self, mut ended: Vec<u32>, records_min: usize) -> Option<MergeJob> {
        ended.retain(|number| {
            let extent = &self.extents[number];
            !self.is_archived(extent) && may_rest(&extent.record)
        });
        self.archives.ended = ended.len();
        if !self.wants_archive(records_min.max(1)) {
            return None;
        }
        ended.sort_unstable();
        let records_max = archive_records_max(self.identity.segment_bytes);
        ended.truncate(records_max);
        self.archives.ended -= ended.len();
        self.join_archives(&mut ended, records_max);
        let mut job = self.new_job();
        for number in &ended {
            self.unarchive(*number);
            self.extent_mut(*number).archived = Some(job.sequence);
        }
        let records = ended.iter().map(|number| &self.extents[number].record);
        job.records = record_frames(records);
        self.begin_copying(&job, ended);
        Some(job)
    }

    /// Adds the extents of smaller archives, as far as there is room for all of one.
    fn join_archives(&self, numbers: &mut Vec<u32>, records_max: usize) {
        let mut smallest: Vec<(u32, u64)> = self
            .sealed
            .iter()
            .filter(|(_, segment)| segment.held.records > 0)
            .map(|(sequence, segment)| (segment.held.records, *sequence))
            .collect();
        smallest.sort_unstable();
        let (mut count, mut joined) = (numbers.len(), BTreeSet::new());
        for (records, sequence) in smallest {
            count += records as usize;
            if count > records_max {
                break;
            }
            joined.insert(sequence);
        }
        if !joined.is_empty() {
            let is_joined =
                |extent: &Extent| extent.archived.is_some_and(|at| joined.contains(&at));
            let extents = self.extents.iter().filter(|(_, extent)| is_joined(extent));
            numbers.extend(extents.map(|(number, _)| *number));
            numbers.sort_unstable();
        }
    }

    /// Whether an archive that counts has an extent's record.
    pub(super) fn is_archived(&self, extent: &Extent) -> bool {
        extent.archived.is_some_and(|sequence| self.sealed.contains_key(&sequence))
    }

    /// An extent's record is not in an archive any more: it changed, is forgotten, or is in
    /// another soon.
    pub(super) fn unarchive(&mut self, number: u32) {
        let Some(sequence) = self.extent_mut(number).archived.take() else { return };
        let Some(segment) = self.sealed.get_mut(&sequence) else { return };
        segment.held.records -= 1;
        if segment.held.records == 0 {
            self.leaving.look_again();
        }
    }

    /// An archive was damaged: what it has is in snapshots, and in another archive, again.
    pub fn give_up_archive(&mut self, sequence: u64) {
        let numbers: Vec<u32> = self
            .extents
            .iter()
            .filter(|(_, extent)| extent.archived == Some(sequence))
            .map(|(number, _)| *number)
            .collect();
        self.archives.ended += numbers.len();
        self.archives.damaged |= self.archives.in_snapshot.contains(&sequence);
        numbers.into_iter().for_each(|number| self.unarchive(number));
    }

    /// Whether the next snapshot should come soon: the newest names a damaged archive.
    #[must_use]
    pub fn needs_snapshot(&self) -> bool {
        self.archives.damaged
    }

    /// The extents of a job whose archive will not be; those that changed meanwhile are not its.
    pub(super) fn forget_archive(&mut self, sequence: u64, numbers: &[u32]) {
        for number in numbers {
            let Some(extent) = self.extents.get_mut(number) else { continue };
            if extent.archived == Some(sequence) {
                extent.archived = None;
                self.archives.ended += 1;
            }
        }
    }

    /// How many of the extents of a job its archive has now, and the bytes of their records.
    pub(super) fn count_archived(&self, sequence: u64, numbers: &[u32]) -> (u32, u64) {
        let extents = numbers.iter().filter_map(|number| self.extents.get(number));
        let archived = extents.filter(|extent| extent.archived == Some(sequence));
        archived.fold((0, 0), |(records, bytes), extent| {
            (records + 1, bytes + extent.record.encoded_bytes() as u64)
        })
    }

    /// What the archives have that counts, in payloads of frames.
    pub(super) fn archived_records(&self) -> Vec<ArchivedRecords> {
        let mut ranges: BTreeMap<u64, Ranges> = BTreeMap::new();
        for (number, extent) in &self.extents {
            let Some(sequence) = extent.archived.filter(|_| self.is_archived(extent)) else {
                continue;
            };
            let ranges = ranges.entry(sequence).or_default();
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *number => *last = *number,
                _ => ranges.push((*number, *number)),
            }
        }
        let per_frame = (SNAPSHOT_FRAME_BYTES - ARCHIVED_FIXED_BYTES) / RANGE_BYTES;
        let frames = ranges.iter().flat_map(|(sequence, ranges)| {
            let frame =
                |ranges: &[_]| ArchivedRecords { sequence: *sequence, ranges: ranges.into() };
            ranges.chunks(per_frame).map(frame)
        });
        frames.collect()
    }
}

/// Records in payloads of snapshot frames.
pub(super) fn record_frames<'a>(records: impl Iterator<Item = &'a ExtentRecord>) -> Vec<Vec<u8>> {
    let (mut frames, mut payload) = (Vec::new(), Vec::new());
    for record in records {
        record.encode_into(&mut payload);
        if payload.len() >= SNAPSHOT_FRAME_BYTES {
            frames.push(std::mem::take(&mut payload));
        }
    }
    if !payload.is_empty() {
        frames.push(payload);
    }
    frames
}

/// An archive's segment, as its readers find it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArchiveAt {
    pub(super) file: usize,
    pub(super) sequence: u64,
    pub(super) base: Lsn,
    pub(super) end: Lsn,
}

/// Reads all records of an archive; `None` when it is damaged.
///
/// # Errors
/// When the disk refuses.
pub(super) async fn read_archive(
    files: &impl LogFiles,
    archive: ArchiveAt,
) -> Result<Option<Vec<ExtentRecord>>, Errno> {
    let mut records = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let Some(end) = archive.end.0.checked_sub(archive.base.0) else { return Ok(None) };
    while at < end {
        let window_at = at & !(BLOCK_BYTES - 1);
        let bytes = (align_up(end, BLOCK_BYTES) - window_at).min(WINDOW_BYTES);
        let window = files.read(archive.file, window_at, bytes as usize).await?;
        let Some(read) = take_frames(&window, window_at, at, &archive, &mut records) else {
            return Ok(None);
        };
        if read == at {
            return Ok(None);
        }
        at = read;
    }
    Ok(Some(records))
}

/// Takes the records of the whole frames of a window from `at` on; answers where it stopped.
fn take_frames(
    window: &[u8],
    window_at: u64,
    mut at: u64,
    archive: &ArchiveAt,
    records: &mut Vec<ExtentRecord>,
) -> Option<u64> {
    let end = archive.end.0 - archive.base.0;
    while at < end {
        let rest = &window[(at - window_at) as usize..];
        if rest.len() < FRAME_HEADER_BYTES {
            break;
        }
        if rest[..FRAME_HEADER_BYTES] == [0; FRAME_HEADER_BYTES] && end - at < BLOCK_BYTES {
            // Behind the last frame there are zeroes to the end of the block.
            return Some(end);
        }
        let lsn = Lsn(archive.base.0 + at);
        let frame = LogFrame::decode(rest, archive.sequence, lsn).ok()?;
        let behind = rest.get(FRAME_HEADER_BYTES..)?;
        let Some(payload) = behind.get(..frame.payload_bytes as usize) else { break };
        if frame.kind != FrameKind::Snapshot || crc32c(payload) != frame.payload_crc {
            return None;
        }
        records.extend(ExtentRecord::decode_all(payload).ok()?);
        at += frame.padded_bytes();
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_their_encoding_and_find_their_numbers() {
        let records = ArchivedRecords { sequence: 7, ranges: vec![(0, 3), (5, 5), (9, 12)] };
        let mut bytes = Vec::new();
        records.encode_into(&mut bytes);
        assert_eq!(ArchivedRecords::decode(&bytes), Ok(records.clone()));
        let found: Vec<u32> =
            (0..20).filter(|number| has_number(&records.ranges, *number)).collect();
        assert_eq!(found, [0, 1, 2, 3, 5, 9, 10, 11, 12]);
        assert!(ArchivedRecords::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(ArchivedRecords::decode(&bytes[..7]).is_err());
        for ranges in [vec![(3, 2)], vec![(0, 3), (3, 4)], vec![(5, 6), (1, 2)]] {
            let mut bytes = Vec::new();
            ArchivedRecords { sequence: 7, ranges }.encode_into(&mut bytes);
            assert!(ArchivedRecords::decode(&bytes).is_err());
        }
    }

    #[test]
    fn an_archive_fits_into_its_segment() {
        for segment_bytes in [1 << 20, 16 << 20, 64 << 20, 4 << 30_u64] {
            let records = archive_records_max(segment_bytes) as u64;
            let per_frame = SNAPSHOT_FRAME_BYTES.div_ceil(RECORD_FIXED_BYTES) as u64;
            let frame =
                super::super::format::padded_frame_bytes(per_frame * RECORD_FIXED_BYTES as u64);
            let bytes = records.div_ceil(per_frame) * frame;
            let room = segment_bytes - SEGMENT_HEADER_BYTES as u64 - 2 * BLOCK_BYTES;
            assert!(bytes <= room, "{segment_bytes}: {bytes}");
            assert!(archive_records_min(segment_bytes) as u64 <= records);
        }
    }
}
