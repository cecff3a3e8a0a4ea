//! From one segment to the next: the footer of the one, header and snapshot of the other.

use thalweg_wire::batch::HEADER_BYTES;
use thalweg_wire::codec::put;
use thalweg_wire::ids::Lsn;
use thalweg_wire::limits::BODY_BYTES_MAX;

use super::archive::record_frames;
use super::extent::{RECORD_BYTES_MAX, RECORD_FIXED_BYTES};
use super::footer::{Trailer, encode_footer};
use super::format::{
    FrameKind, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentOrigin, padded_frame_bytes,
};
use super::index::SegmentIndex;
use super::retention::Held;
use super::segments::{
    AppendRefusal, GATHER_BYTES, Log, OpenSegment, Retiring, SEGMENT_BATCHES_MAX, SealedSegment,
};
use super::writer::Unit;
use crate::config::BLOCK_BYTES;
use crate::io::{Io, Piece};

/// Bytes of a snapshot's end: count of its records, the next number, zero.
const SNAPSHOT_END_BYTES: usize = 16;
/// Part of a segment that a snapshot leaves to what follows it, at least: one over it.
const REST_SHARE: u64 = 8;
/// The rest has room for the largest frame, and for what is put around it, where a segment is not
/// too small for that.
const REST_BYTES_MIN: u64 = padded_frame_bytes((BODY_BYTES_MAX as usize + HEADER_BYTES) as u64)
    + RECORD_BYTES_MAX as u64
    + 4 * BLOCK_BYTES;

/// How much of a segment a snapshot may take.
const fn snapshot_bytes_max(segment_bytes: u64) -> u64 {
    let most = segment_bytes / 16 * 11;
    let rest = if REST_BYTES_MIN < most { REST_BYTES_MIN } else { most };
    let share = segment_bytes / REST_SHARE;
    segment_bytes - if share > rest { share } else { rest }
}

/// How much of a segment the extents may take when another shard's is opened. What is there may
/// grow by its producers, and a restart opens each extent anew before what has ended is archived:
/// hence three tenths of what a segment could take.
const fn extents_bytes_max(segment_bytes: u64) -> u64 {
    snapshot_bytes_max(segment_bytes) / 10 * 3
}

impl Log {
    /// Leaves the open segment for the next: footer, then header and snapshot of the next.
    ///
    /// # Errors
    /// [`AppendRefusal`]; the open segment takes appends still, or there is none.
    pub fn roll(&mut self, io: &mut impl Io) -> Result<(), AppendRefusal> {
        if self.free.is_empty() {
            return Err(self.without_segment());
        }
        if self.retiring.as_ref().is_some_and(|old| !self.writer.is_durable(old.footer_unit)) {
            return Err(AppendRefusal::Busy);
        }
        self.close_gather(io);
        if let Some(old) = self.retiring.take() {
            self.spare_index = Some(old.index);
        }
        if self.open.is_some() {
            self.seal_open(io)?;
        }
        self.begin_segment(io)
    }

    /// Whether the log has room for another extent's record in its snapshots.
    ///
    /// # Errors
    /// [`AppendRefusal::ManyExtents`].
    pub fn check_extents(&self) -> Result<(), AppendRefusal> {
        let full = self.snapshot_bytes > extents_bytes_max(self.identity.segment_bytes);
        if full { Err(AppendRefusal::ManyExtents) } else { Ok(()) }
    }

    /// How many more extents of new shards [`Log::check_extents`] lets in.
    #[must_use]
    pub fn extents_room(&self) -> u64 {
        let bytes_max = extents_bytes_max(self.identity.segment_bytes);
        let one_bytes = RECORD_FIXED_BYTES as u64;
        // The least snapshot has its end: that of the first segment, when there is none yet.
        let listed_bytes = self.snapshot_bytes.max(SNAPSHOT_END_BYTES as u64);
        // The last one may begin at the limit.
        bytes_max.checked_sub(listed_bytes).map_or(0, |free| free / one_bytes + 1)
    }

    fn seal_open(&mut self, io: &mut impl Io) -> Result<(), AppendRefusal> {
        let open = self.open.as_ref().expect("there is an open segment");
        let end = Lsn(open.base.0 + open.position);
        let (footer_at, footer) =
            encode_footer(&open.index, open.sequence, open.base, end, self.identity.segment_bytes);
        let buffer = self.allocate(io, footer.len()).ok_or(AppendRefusal::NoMemory)?;
        io.memory_mut().bytes_mut(buffer)[..footer.len()].copy_from_slice(&footer);
        let open = self.open.take().expect("there is an open segment");
        let piece = Piece { buffer, start: 0, bytes: footer.len() as u32 };
        // A footer takes no positions of the log: the next frame stands in the next segment.
        let unit = Unit { file: open.file, at: footer_at, piece, start: end, end };
        let footer_unit = self.writer.push(unit);
        self.bytes_written += footer.len() as u64;
        let trailer = &footer[footer.len() - BLOCK_BYTES as usize..];
        let trailer =
            Trailer::decode(trailer, open.sequence, self.identity.segment_bytes).expect("as made");
        let (file, base, held) = (open.file, open.base, open.held);
        let segment = SealedSegment { file, base, trailer, order: open.sequence, held };
        self.sealed.insert(open.sequence, segment);
        self.leaving.look_again();
        self.retiring = Some(Retiring { sequence: open.sequence, index: open.index, footer_unit });
        Ok(())
    }

    fn begin_segment(&mut self, io: &mut impl Io) -> Result<(), AppendRefusal> {
        let listed = || self.extents.values().filter(|extent| !extent.is_deleted);
        let listed_count = listed().count() as u64;
        let hot = listed().filter(|extent| !self.is_archived(extent));
        let snapshot = record_frames(hot.map(|extent| &extent.record));
        let segments = self.segment_entries();
        let archived = self.archived_records();
        let archived_frames: Vec<Vec<u8>> = archived
            .iter()
            .map(|records| {
                let mut payload = Vec::new();
                records.encode_into(&mut payload);
                payload
            })
            .collect();
        // All memory is had before anything is changed.
        let ending = [SNAPSHOT_END_BYTES];
        let frames = snapshot.iter().chain(&segments).chain(&archived_frames);
        let frames = frames.map(Vec::len).chain(ending);
        let snapshot_bytes: u64 = frames.clone().map(|bytes| bytes as u64).sum();
        if snapshot_bytes > snapshot_bytes_max(self.identity.segment_bytes) {
            if !std::mem::replace(&mut self.told_many_extents, true) {
                tracing::error!(
                    log = self.identity.log,
                    extents = listed_count,
                    snapshot_bytes,
                    "the log cannot go on: its extents fill a segment; format a directory with \
                     larger segments, or trim and seal shards"
                );
            }
            return Err(AppendRefusal::ManyExtents);
        }
        let buffers = gathers_of(SEGMENT_HEADER_BYTES, frames);
        while self.spare_gathers.len() < buffers {
            match self.allocate(io, GATHER_BYTES) {
                Some(buffer) => self.spare_gathers.push(buffer),
                None => {
                    self.release_spare_gathers(io);
                    return Err(AppendRefusal::NoMemory);
                }
            }
        }
        self.told_many_extents = false;
        self.snapshot_bytes = snapshot_bytes;
        let free = self.free.pop_front().expect("a free segment was seen");
        let sequence = self.last_sequence + 1;
        let first_live = self.sealed.first_key_value().map_or(sequence, |(first, _)| *first);
        let header = SegmentHeader {
            disk: self.identity.disk,
            log: self.identity.log,
            sequence,
            first_live_sequence: first_live,
            base: self.next_base,
            previous_end: self.appended(),
            segment_bytes: self.identity.segment_bytes,
            boot: self.identity.boot,
            origin: SegmentOrigin::Appended,
        };
        let index = self.spare_index.take();
        let mut index = index.unwrap_or_else(|| SegmentIndex::new(SEGMENT_BATCHES_MAX));
        index.clear();
        let (file, base) = (free.file, self.next_base);
        let held = Held::default();
        self.open = Some(OpenSegment { sequence, file, base, position: 0, index, held });
        self.last_sequence = sequence;
        self.next_base = Lsn(base.0 + self.identity.segment_bytes);
        self.open_gather(io, SEGMENT_HEADER_BYTES)?;
        let gather = self.gather.as_mut().expect("just opened");
        gather.bytes = SEGMENT_HEADER_BYTES;
        let place = &mut io.memory_mut().bytes_mut(gather.buffer)[..SEGMENT_HEADER_BYTES];
        place.copy_from_slice(&header.encode());
        for frame in &snapshot {
            self.append_record(io, FrameKind::Snapshot, 0, frame);
        }
        for frame in &segments {
            self.append_record(io, FrameKind::Segments, 0, frame);
        }
        for frame in &archived_frames {
            self.append_record(io, FrameKind::Archived, 0, frame);
        }
        self.archives.note_snapshot(&archived);
        let mut end = [0; SNAPSHOT_END_BYTES];
        put(&mut end, 0, listed_count.to_le_bytes());
        put(&mut end, 8, self.next_extent.to_le_bytes());
        self.append_record(io, FrameKind::SnapshotEnd, 0, &end);
        self.release_spare_gathers(io);
        Ok(())
    }

    fn release_spare_gathers(&mut self, io: &mut impl Io) {
        self.spare_gathers.drain(..).for_each(|buffer| io.memory_mut().release(buffer));
    }
}

/// How many buffers frames with payloads of these lengths are gathered in, behind `first_bytes`.
fn gathers_of(first_bytes: usize, payloads: impl Iterator<Item = usize>) -> usize {
    let (mut buffers, mut used) = (1, first_bytes);
    for payload_bytes in payloads {
        let bytes = padded_frame_bytes(payload_bytes as u64) as usize;
        if used + bytes > GATHER_BYTES {
            (buffers, used) = (buffers + 1, 0);
        }
        used += bytes;
    }
    buffers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::FRAME_HEADER_BYTES;
    use crate::log::segments::SNAPSHOT_FRAME_BYTES;

    #[test]
    fn frames_share_buffers_where_they_fit() {
        let usual = SNAPSHOT_FRAME_BYTES + 300;
        assert_eq!(gathers_of(SEGMENT_HEADER_BYTES, [8].into_iter()), 1);
        assert_eq!(gathers_of(SEGMENT_HEADER_BYTES, [usual; 2].into_iter()), 1);
        assert_eq!(gathers_of(SEGMENT_HEADER_BYTES, [usual; 100].into_iter()), 50);
        let largest = SNAPSHOT_FRAME_BYTES + RECORD_BYTES_MAX;
        assert_eq!(gathers_of(SEGMENT_HEADER_BYTES, [largest; 3].into_iter()), 3);
        let full = GATHER_BYTES - FRAME_HEADER_BYTES;
        assert_eq!(gathers_of(SEGMENT_HEADER_BYTES, [full, 8].into_iter()), 3);
    }
}
