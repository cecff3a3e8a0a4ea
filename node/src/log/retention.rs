//! How a log gives space back: records are trimmed, segments in which nothing is kept any more
//! are released, and their files become segments again.
//!
//! The order makes it safe. A trim is a frame in the log, a release is a frame behind the trims
//! that allow it, and a file is used again when the release is durable and no read of it is in
//! flight. So recovery either finds a segment counted and its file untouched, or released.

use std::collections::{HashMap, VecDeque};

use thalweg_wire::codec::{put, u64_at};
use thalweg_wire::ids::{Lsn, Offset, ShardId};

use super::extent::{
    EXTENT_TRIM_BYTES, ExtentRecord, ExtentTrim, FORGOTTEN_SHARD_BYTES, ForgottenShard,
    MalformedRecord, RECORD_FIXED_BYTES,
};
use super::format::FrameKind;
use super::segments::{AppendRefusal, Extent, FreeSegment, Log, Run, SNAPSHOT_FRAME_BYTES};
use crate::io::{FileId, Io};
use thalweg_wire::control::ExtentState;

/// Bytes of a [`SegmentEntry`].
pub const SEGMENT_ENTRY_BYTES: usize = 24;
/// Bytes of a segment's sequence in a release.
pub(super) const RELEASED_BYTES: usize = 8;
/// Segments that one frame releases.
const RELEASED_MAX: usize = 1024;

/// A segment that counts, as the snapshot of a later one names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentEntry {
    /// Its sequence.
    pub sequence: u64,
    /// Position after its last frame.
    pub end: Lsn,
    /// See [`super::segments::SealedSegment::order`].
    pub order: u64,
}

impl SegmentEntry {
    /// Appends the entry to `bytes`.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + SEGMENT_ENTRY_BYTES, 0);
        put(&mut bytes[start..], 0, self.sequence.to_le_bytes());
        put(&mut bytes[start..], 8, self.end.0.to_le_bytes());
        put(&mut bytes[start..], 16, self.order.to_le_bytes());
    }

    fn decode(bytes: &[u8; SEGMENT_ENTRY_BYTES]) -> SegmentEntry {
        SegmentEntry {
            sequence: u64_at(bytes, 0),
            end: Lsn(u64_at(bytes, 8)),
            order: u64_at(bytes, 16),
        }
    }

    /// Takes the payload of a frame apart.
    ///
    /// # Errors
    /// When it is no list of entries.
    pub fn decode_all(
        payload: &[u8],
    ) -> Result<impl Iterator<Item = SegmentEntry> + '_, MalformedRecord> {
        let (entries, rest) = payload.as_chunks::<SEGMENT_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(MalformedRecord::new("a list of segments"));
        }
        Ok(entries.iter().map(SegmentEntry::decode))
    }
}

/// Takes the payload of a release apart: sequences.
///
/// # Errors
/// When it is none.
pub fn decode_release(payload: &[u8]) -> Result<impl Iterator<Item = u64> + '_, MalformedRecord> {
    let (sequences, rest) = payload.as_chunks::<RELEASED_BYTES>();
    if !rest.is_empty() {
        return Err(MalformedRecord::new("a release"));
    }
    Ok(sequences.iter().map(|bytes| u64::from_le_bytes(*bytes)))
}

/// Takes the payload of a merge apart: the new segment, and those whose place it takes.
///
/// # Errors
/// When it is none.
pub fn decode_merge(
    payload: &[u8],
) -> Result<(SegmentEntry, impl Iterator<Item = u64> + '_), MalformedRecord> {
    let (entry, replaced) = payload
        .split_first_chunk::<SEGMENT_ENTRY_BYTES>()
        .ok_or(MalformedRecord::new("a merge"))?;
    Ok((SegmentEntry::decode(entry), decode_release(replaced)?))
}

/// What is kept in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Runs of extents of which something is kept.
    pub runs: u32,
    /// Batches in those runs.
    pub batches: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Records of extents, in an archive.
    pub records: u32,
    /// Append time of the last batch, kept or not; milliseconds since 1970, 0 without any.
    pub last_time_ms: u64,
}

impl Held {
    /// Whether nothing is kept in the segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs == 0 && self.records == 0
    }

    /// A run is in the segment.
    pub fn take_in(&mut self, run: &Run) {
        self.runs += 1;
        self.batches += u64::from(run.batches);
        self.bytes += u64::from(run.bytes);
    }

    pub(super) fn let_go(&mut self, run: &Run) {
        self.runs -= 1;
        self.batches -= u64::from(run.batches);
        self.bytes -= u64::from(run.bytes);
    }
}

/// A segment that was released, until its file can be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Released {
    pub(super) file: FileId,
    /// The release is durable when this position is.
    pub(super) after: Lsn,
}

/// Segments on their way out of the log, and who still reads.
#[derive(Debug, Default)]
pub struct Leaving {
    pub(super) released: VecDeque<Released>,
    /// Reads in flight of each file that has any.
    readers: HashMap<FileId, u32>,
    /// Something changed by which a segment may be empty.
    look_again: bool,
}

impl Leaving {
    /// Something changed by which a segment may be empty now.
    pub fn look_again(&mut self) {
        self.look_again = true;
    }
}

impl Log {
    /// Lets go of the records of an extent before `first_kept`; answers whether that says
    /// anything new. Segments in which nothing is kept are released by [`Log::release_empty`].
    ///
    /// # Errors
    /// [`AppendRefusal`]; nothing was changed then.
    pub fn trim(
        &mut self,
        io: &mut impl Io,
        number: u32,
        first_kept: Offset,
    ) -> Result<bool, AppendRefusal> {
        let record = &self.extent(number).record;
        let first_kept = first_kept.min(record.end);
        if first_kept <= record.first_kept {
            // A seal may have hidden records since.
            self.drop_runs(number);
            return Ok(false);
        }
        self.reserve_record(io, EXTENT_TRIM_BYTES)?;
        self.extent_mut(number).record.first_kept = first_kept;
        let payload = ExtentTrim { first_kept }.encode();
        self.append_record(io, FrameKind::Trim, number, &payload);
        self.unarchive(number);
        self.drop_runs(number);
        Ok(true)
    }

    /// Forgets the runs of an extent of which nothing is kept.
    pub(super) fn drop_runs(&mut self, number: u32) {
        let extent = self.extents.get_mut(&number).expect("extent numbers come from the log");
        let dropped = dropped_runs(extent);
        let runs: Vec<_> = extent.runs.drain(..dropped).collect();
        for run in runs {
            let held = match &mut self.open {
                Some(open) if open.sequence == run.sequence => &mut open.held,
                _ => &mut self.sealed.get_mut(&run.sequence).expect("a run's segment counts").held,
            };
            held.let_go(&run);
            self.leaving.look_again |= held.is_empty();
        }
    }

    /// Whether an extent ended and nothing of it is kept.
    #[must_use]
    pub fn is_gone(&self, number: u32) -> bool {
        is_gone(self.extent(number))
    }

    /// Forgets an extent that ended and of which nothing is kept; false when it must stay.
    pub fn forget_extent(&mut self, number: u32) -> bool {
        let gone = self.is_gone(number);
        if gone {
            self.leave_snapshots(number);
            self.extents.remove(&number);
        }
        gone
    }

    /// Forgets a shard that was deleted: all extents that the log ever had of it, those among them
    /// that only a crash could bring back. `newest` is the one that is here, and of which nothing is
    /// kept; it stays until [`Log::drop_deleted`].
    ///
    /// # Errors
    /// [`AppendRefusal`]; nothing was changed then.
    ///
    /// # Panics
    /// When something of the newest is kept.
    pub fn forget_shard(
        &mut self,
        io: &mut impl Io,
        shard: ShardId,
        newest: Option<u32>,
    ) -> Result<(), AppendRefusal> {
        self.reserve_record(io, FORGOTTEN_SHARD_BYTES)?;
        self.append_record(io, FrameKind::Forget, 0, &ForgottenShard { shard }.encode());
        if let Some(number) = newest {
            assert!(self.is_gone(number), "what is deleted has ended and is empty");
            self.leave_snapshots(number);
            self.extent_mut(number).is_deleted = true;
        }
        Ok(())
    }

    /// Nobody reads an extent of a deleted shard any more.
    ///
    /// # Panics
    /// When its shard was not deleted.
    pub fn drop_deleted(&mut self, number: u32) {
        let dropped = self.extents.remove(&number).is_some_and(|extent| extent.is_deleted);
        assert!(dropped, "extent {number} was deleted");
    }

    /// The next snapshot does not have the extent. What was counted of its producers counts on
    /// until then.
    fn leave_snapshots(&mut self, number: u32) {
        if !self.is_archived(self.extent(number)) {
            let one_bytes = RECORD_FIXED_BYTES as u64;
            self.snapshot_bytes = self.snapshot_bytes.saturating_sub(one_bytes);
        }
        self.unarchive(number);
    }

    /// Releases the segments in which nothing is kept.
    ///
    /// # Errors
    /// [`AppendRefusal`]; what could not be released is tried again the next time.
    pub fn release_empty(&mut self, io: &mut impl Io) -> Result<(), AppendRefusal> {
        if !self.leaving.look_again || self.open.is_none() {
            return Ok(());
        }
        let stays = |sequence: u64| self.lacks_footer(sequence) || self.copying.has(sequence);
        let (mut empty, mut later) = (Vec::new(), false);
        for (sequence, _) in self.sealed.iter().filter(|(_, segment)| segment.held.is_empty()) {
            if self.archives.in_snapshot.contains(sequence) {
                // The next snapshot does not name it; then it is looked at again.
                continue;
            }
            if stays(*sequence) || empty.len() == RELEASED_MAX {
                later = true;
            } else {
                empty.push(*sequence);
            }
        }
        if !empty.is_empty() {
            self.reserve_record(io, empty.len() * RELEASED_BYTES)?;
            let payload: Vec<u8> = empty.iter().flat_map(|at| at.to_le_bytes()).collect();
            self.append_record(io, FrameKind::Release, 0, &payload);
        }
        self.leaving.look_again = later;
        empty.into_iter().for_each(|sequence| self.let_leave(sequence));
        Ok(())
    }

    /// A segment does not count any more, as the frame that was appended last says.
    pub(super) fn let_leave(&mut self, sequence: u64) {
        let segment = self.sealed.remove(&sequence).expect("it counted");
        if self.retiring.as_ref().is_some_and(|old| old.sequence == sequence) {
            self.spare_index = self.retiring.take().map(|old| old.index);
        }
        let after = self.appended();
        self.leaving.released.push_back(Released { file: segment.file, after });
    }

    /// Whether the footer of a sealed segment is not durable yet.
    pub(super) fn lacks_footer(&self, sequence: u64) -> bool {
        self.retiring
            .as_ref()
            .is_some_and(|old| old.sequence == sequence && !self.writer.is_durable(old.footer_unit))
    }

    /// The file of a released segment, once it can be used for something else.
    pub fn take_released(&mut self) -> Option<FileId> {
        let durable = self.durable();
        let Leaving { released, readers, .. } = &mut self.leaving;
        let place = released
            .iter()
            .position(|segment| segment.after <= durable && !readers.contains_key(&segment.file))?;
        released.remove(place).map(|segment| segment.file)
    }

    /// Segments released whose files cannot be used yet.
    #[must_use]
    pub fn leaving_count(&self) -> usize {
        self.leaving.released.len()
    }

    /// A read of this file begins.
    pub fn begin_read(&mut self, file: FileId) {
        *self.leaving.readers.entry(file).or_insert(0) += 1;
    }

    /// A read of this file ended.
    ///
    /// # Panics
    /// When none had begun.
    pub fn end_read(&mut self, file: FileId) {
        let readers = self.leaving.readers.get_mut(&file).expect("the read began");
        *readers -= 1;
        if *readers == 0 {
            self.leaving.readers.remove(&file);
        }
    }

    /// A zero-filled segment is ready.
    pub fn add_free(&mut self, segment: FreeSegment) {
        self.free.push_back(segment);
        self.no_space = false;
    }

    /// No segment could be zero-filled.
    pub fn set_no_space(&mut self) {
        self.no_space = true;
    }

    /// Whether the last try to have one failed.
    #[must_use]
    pub fn has_no_space(&self) -> bool {
        self.no_space
    }

    /// A segment in wait, for another log of the directory, unless only `kept` are left then.
    pub fn lend_free(&mut self, kept: usize) -> Option<FreeSegment> {
        if self.free.len() > kept { self.free.pop_back() } else { None }
    }

    /// Zero-filled segments in wait.
    #[must_use]
    pub fn free_segments(&self) -> usize {
        self.free.len()
    }

    /// A file to use as a segment, now or later, unless `spares_max` are in wait.
    pub fn reuse(&mut self, file: FileId, spares_max: usize) -> bool {
        let wanted = self.free.len() < spares_max;
        if wanted {
            self.add_free(FreeSegment { file });
        }
        wanted
    }

    /// Up to where an extent's records are all in segments that ended before `cutoff_ms`: what
    /// can be trimmed by age without looking at single batches.
    #[must_use]
    pub fn aged_until(&self, number: u32, cutoff_ms: u64) -> Option<Offset> {
        let extent = self.extent(number);
        let aged = |sequence: u64| {
            self.sealed.get(&sequence).is_some_and(|old| old.held.last_time_ms < cutoff_ms)
        };
        let count = extent.runs.iter().take_while(|run| aged(run.sequence)).count();
        (count > 0).then(|| run_end(extent, count - 1))
    }

    /// Whether a segment has ended before `cutoff_ms` and something is kept in it.
    #[must_use]
    pub fn has_aged(&self, cutoff_ms: u64) -> bool {
        let aged = |held: &Held| held.runs > 0 && held.last_time_ms < cutoff_ms;
        self.sealed.values().any(|segment| aged(&segment.held))
    }

    /// Leaves the open segment when all that was appended to it is older than `cutoff_ms`, so
    /// that its records can be let go though nothing follows them.
    ///
    /// # Errors
    /// [`AppendRefusal`] when there is no next segment.
    pub fn end_aged_segment(
        &mut self,
        io: &mut impl Io,
        cutoff_ms: u64,
    ) -> Result<(), AppendRefusal> {
        let aged = |held: &Held| held.runs > 0 && held.last_time_ms < cutoff_ms;
        if self.open.as_ref().is_some_and(|open| aged(&open.held)) { self.roll(io) } else { Ok(()) }
    }

    /// The older segments that count, in payloads of frames.
    pub(super) fn segment_entries(&self) -> Vec<Vec<u8>> {
        let entries: Vec<SegmentEntry> = self
            .sealed
            .iter()
            .map(|(sequence, segment)| SegmentEntry {
                sequence: *sequence,
                end: segment.trailer.end,
                order: segment.order,
            })
            .collect();
        let encode = |entries: &[SegmentEntry]| {
            let mut payload = Vec::new();
            entries.iter().for_each(|entry| entry.encode_into(&mut payload));
            payload
        };
        entries.chunks(SNAPSHOT_FRAME_BYTES / SEGMENT_ENTRY_BYTES).map(encode).collect()
    }
}

/// Where the run at `place` ends.
fn run_end(extent: &Extent, place: usize) -> Offset {
    extent.runs.get(place + 1).map_or(extent.record.end, |next| next.first_offset)
}

/// How many of an extent's runs, from the first on, have nothing that is kept.
#[must_use]
pub fn dropped_runs(extent: &Extent) -> usize {
    let ExtentRecord { state, first_kept: kept, end, .. } = extent.record;
    if state == ExtentState::Sealed && kept >= end {
        // What lies beyond the end was hidden by the seal.
        return extent.runs.len();
    }
    (0..extent.runs.len()).take_while(|place| run_end(extent, *place) <= kept).count()
}

/// Whether an extent ended and nothing of it is kept: only a shard's newest is remembered then.
#[must_use]
pub fn is_gone(extent: &Extent) -> bool {
    let record = &extent.record;
    record.state == ExtentState::Sealed && record.first_kept >= record.end && extent.runs.is_empty()
}
