//! Histories of a log, written as a node would have written them but for what the input's choices
//! make wrong: so an input gets behind every check that comes before the one it fails.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use thalweg_node::config::BLOCK_BYTES;
use thalweg_node::log::archive::ArchivedRecords;
use thalweg_node::log::extent::{
    ExtentEnd, ExtentRecord, ExtentTrim, ForgottenShard, Producers, Remembered,
};
use thalweg_node::log::footer::{encode_footer, footer_bytes};
use thalweg_node::log::format::{FrameKind, LogFrame, SegmentHeader, SegmentOrigin};
use thalweg_node::log::index::{Location, SegmentIndex};
use thalweg_node::log::retention::SegmentEntry;
use thalweg_wire::batch::BatchHeader;
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{align_up, put};
use thalweg_wire::control::{ExtentState, OpenExtent};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ExtentId, Lsn, Offset, ProducerId, ShardId, StreamId};

use crate::files::{BOOT, DISK, FILE_BYTES, FILES, LOG};

/// Batches that a footer of a history has, at most.
const BATCHES_MAX: usize = 128;

/// The files of the log that the choices come to.
///
/// # Errors
/// When there are not enough of them.
pub fn files(choices: &mut Unstructured<'_>) -> Result<Vec<Vec<u8>>> {
    let mut log = LogSoFar::default();
    let mut files = crate::segment::empty_files();
    let count = choices.int_in_range(0..=FILES - 1)? + 1;
    for (place, file) in files.iter_mut().enumerate().take(count) {
        log.write_segment(choices, file, place + 1 == count)?;
    }
    if choices.ratio(1, 32)? {
        files[FILES - 1].truncate(BLOCK_BYTES as usize);
    }
    Ok(files)
}

/// As a rule what is right; now and then what is near it, or anything.
fn mostly(choices: &mut Unstructured<'_>, right: u64) -> Result<u64> {
    Ok(match choices.arbitrary::<u8>()? {
        0xfc => right.wrapping_add(1),
        0xfd => right.wrapping_sub(1),
        0xfe => u64::MAX - u64::from(choices.arbitrary::<u8>()?),
        0xff => choices.arbitrary()?,
        _ => right,
    })
}

#[derive(Default)]
struct LogSoFar {
    extents: BTreeMap<u32, ExtentRecord>,
    /// The segments that count.
    listed: BTreeMap<u64, SegmentEntry>,
    /// Archives, whether they count or not, and the extents that they have.
    archives: BTreeMap<u64, (SegmentEntry, BTreeSet<u32>)>,
    sequence: u64,
    next_base: u64,
    end: u64,
}

/// A segment that is being written.
struct Segment<'a> {
    file: &'a mut [u8],
    header: SegmentHeader,
    position: u64,
    index: SegmentIndex,
    /// Last end and time of each extent in the index: nothing else may follow there.
    last: BTreeMap<u32, (Offset, u64)>,
    /// Whether the index has every batch that was written.
    whole: bool,
}

impl Segment<'_> {
    fn lsn(&self) -> Lsn {
        Lsn(self.header.base.0.wrapping_add(self.position))
    }

    /// Writes a frame, if there is room for it.
    fn push(
        &mut self,
        choices: &mut Unstructured<'_>,
        kind: FrameKind,
        extent: u32,
        payload: &[u8],
    ) -> Result<bool> {
        let lsn = self.lsn();
        let frame = LogFrame {
            kind,
            generation: self.header.sequence,
            boot: BOOT,
            lsn: Lsn(mostly(choices, lsn.0)?),
            durable: Lsn(mostly(choices, self.header.base.0)?),
            extent,
            payload_bytes: payload.len() as u32,
            payload_crc: if kind == FrameKind::Batch { 0 } else { crc32c(payload) },
        };
        let room = FILE_BYTES - footer_bytes(1, BATCHES_MAX);
        if self.position + frame.padded_bytes() > room {
            return Ok(false);
        }
        let at = self.position as usize;
        put(self.file, at, frame.encode());
        put(self.file, at + frame.encode().len(), payload);
        self.position += frame.padded_bytes();
        Ok(true)
    }

    fn note(&mut self, extent: u32, header: &BatchHeader, location: Location) {
        let first = (header.first_offset, 0);
        let (end, time_ms) = self.last.get(&extent).copied().unwrap_or(first);
        let follows = end == location.first_offset && time_ms <= location.append_time_ms;
        let end = location.first_offset.0.checked_add(u64::from(location.records));
        if let Some(end) = end.filter(|_| follows && self.index.len() < BATCHES_MAX) {
            self.index.push(extent, location);
            self.last.insert(extent, (Offset(end), location.append_time_ms));
        } else {
            self.whole = false;
        }
    }
}

impl LogSoFar {
    fn write_segment(
        &mut self,
        choices: &mut Unstructured<'_>,
        file: &mut [u8],
        is_last: bool,
    ) -> Result<()> {
        let merged = choices.ratio(1, 8)?;
        self.sequence = mostly(choices, self.sequence.wrapping_add(1))?;
        let first_listed = self.listed.first_key_value().map(|(sequence, _)| *sequence);
        let header = SegmentHeader {
            disk: DISK,
            log: LOG,
            sequence: self.sequence,
            first_live_sequence: mostly(choices, first_listed.unwrap_or(self.sequence))?,
            base: Lsn(mostly(choices, self.next_base)?),
            previous_end: Lsn(mostly(choices, self.end)?),
            segment_bytes: FILE_BYTES,
            boot: BOOT,
            origin: if merged { SegmentOrigin::Merged } else { SegmentOrigin::Appended },
        };
        put(file, 0, header.encode());
        self.next_base = header.base.0.wrapping_add(FILE_BYTES);
        let mut segment = Segment {
            file,
            header,
            position: BLOCK_BYTES,
            index: SegmentIndex::new(BATCHES_MAX),
            last: BTreeMap::new(),
            whole: true,
        };
        let archive = merged && choices.arbitrary()?;
        if archive {
            self.write_archive(choices, &mut segment)?;
        } else if !merged {
            self.write_snapshot(choices, &mut segment)?;
        }
        while segment.position < FILE_BYTES && !choices.is_empty() && !archive {
            if !self.write_frame(choices, &mut segment)? {
                break;
            }
        }
        segment.position = align_up(segment.position, BLOCK_BYTES);
        self.finish(choices, segment, is_last)
    }

    fn write_snapshot(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: &mut Segment<'_>,
    ) -> Result<()> {
        let mut records = Vec::new();
        let mut named: BTreeMap<u64, Vec<(u32, u32)>> = BTreeMap::new();
        for (number, record) in &self.extents {
            let has = |archive: &&u64| self.archives[*archive].1.contains(number);
            let known = self.listed.keys().filter(|listed| self.archives.contains_key(listed));
            match known.clone().find(has) {
                Some(archive) if !choices.ratio(1, 8)? => {
                    named.entry(*archive).or_default().push((*number, *number));
                }
                _ => record.encode_into(&mut records),
            }
        }
        if !records.is_empty() {
            segment.push(choices, FrameKind::Snapshot, 0, &records)?;
        }
        for (sequence, ranges) in named {
            let mut payload = Vec::new();
            let sequence = mostly(choices, sequence)?;
            ArchivedRecords { sequence, ranges }.encode_into(&mut payload);
            segment.push(choices, FrameKind::Archived, 0, &payload)?;
        }
        if !self.listed.is_empty() && !choices.ratio(1, 4)? {
            let mut listed = Vec::new();
            self.listed.values().for_each(|entry| entry.encode_into(&mut listed));
            segment.push(choices, FrameKind::Segments, 0, &listed)?;
        }
        let count = mostly(choices, self.extents.len() as u64)?;
        let mut end = count.to_le_bytes().to_vec();
        if !choices.ratio(1, 4)? {
            let next =
                self.extents.last_key_value().map_or(0, |(number, _)| number.wrapping_add(1));
            end.extend(mostly(choices, u64::from(next))?.to_le_bytes());
        }
        segment.push(choices, FrameKind::SnapshotEnd, 0, &end)?;
        Ok(())
    }

    /// Writes the records of some extents.
    fn write_archive(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: &mut Segment<'_>,
    ) -> Result<()> {
        let (mut records, mut numbers) = (Vec::new(), BTreeSet::new());
        for (number, record) in &self.extents {
            if record.state == ExtentState::Sealed || choices.ratio(1, 8)? {
                record.encode_into(&mut records);
                numbers.insert(*number);
            }
        }
        if !records.is_empty() {
            segment.push(choices, FrameKind::Snapshot, 0, &records)?;
        }
        let sequence = segment.header.sequence;
        let end = Lsn(align_up(segment.position, BLOCK_BYTES).wrapping_add(segment.header.base.0));
        self.archives.insert(sequence, (SegmentEntry { sequence, end, order: sequence }, numbers));
        Ok(())
    }

    /// Writes one frame, or ends the unit; false at the end of the segment.
    fn write_frame(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: &mut Segment<'_>,
    ) -> Result<bool> {
        let known: Vec<u32> = self.extents.keys().copied().collect();
        let kind = choices.int_in_range(0..=15)?;
        if kind == 15 {
            return Ok(false);
        }
        if known.is_empty() || kind == 0 {
            return self.write_open(choices, segment);
        }
        let number = known[choices.choose_index(known.len())?];
        match kind {
            1 => {
                segment.position = align_up(segment.position, BLOCK_BYTES);
                Ok(true)
            }
            2 => {
                let record = self.extents.get_mut(&number).expect("it was listed");
                let state =
                    if choices.arbitrary()? { ExtentState::Sealed } else { ExtentState::Fenced };
                let end = Offset(mostly(choices, record.end.0)?);
                (record.state, record.end) = (state, end);
                let end = ExtentEnd { state, recovery_epoch: Epoch(choices.arbitrary()?), end };
                segment.push(choices, FrameKind::End, number, &end.encode())
            }
            3 => {
                let record = self.extents.get_mut(&number).expect("it was listed");
                record.first_kept = Offset(mostly(choices, record.end.0)?);
                let trim = ExtentTrim { first_kept: record.first_kept };
                segment.push(choices, FrameKind::Trim, number, &trim.encode())
            }
            4 => {
                let released = self.take_listed(choices)?;
                segment.push(choices, FrameKind::Release, 0, &released)
            }
            5 if !self.archives.is_empty() && choices.arbitrary()? => {
                let archives: Vec<SegmentEntry> =
                    self.archives.values().map(|(entry, _)| *entry).collect();
                let entry = archives[choices.choose_index(archives.len())?];
                let mut payload = Vec::new();
                entry.encode_into(&mut payload);
                self.listed.insert(entry.sequence, entry);
                segment.push(choices, FrameKind::Merge, 0, &payload)
            }
            5 => {
                let listed = self.listed.last_key_value().map(|(_, entry)| *entry);
                let sequence = mostly(choices, listed.map_or(1, |entry| entry.sequence))?;
                let end = Lsn(mostly(choices, listed.map_or(0, |entry| entry.end.0))?);
                let entry = SegmentEntry { sequence, end, order: choices.arbitrary()? };
                let mut payload = Vec::new();
                entry.encode_into(&mut payload);
                payload.extend(self.take_listed(choices)?);
                self.listed.insert(sequence, entry);
                segment.push(choices, FrameKind::Merge, 0, &payload)
            }
            6 => self.write_forget(choices, segment, number),
            _ => self.write_batch(choices, segment, number),
        }
    }

    /// Deletes the shard of an extent; mostly it has ended and is empty.
    fn write_forget(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: &mut Segment<'_>,
        number: u32,
    ) -> Result<bool> {
        let shard = self.extents[&number].open.extent.shard;
        let of_shard = |record: &&ExtentRecord| record.open.extent.shard == shard;
        if choices.ratio(7, 8)? {
            for record in self.extents.values().filter(of_shard) {
                let state = ExtentState::Sealed;
                let end = ExtentEnd { state, recovery_epoch: Epoch(0), end: record.end };
                let trim = ExtentTrim { first_kept: record.end };
                let whole = segment.push(choices, FrameKind::End, record.number, &end.encode())?
                    && segment.push(choices, FrameKind::Trim, record.number, &trim.encode())?;
                if !whole {
                    return Ok(false);
                }
            }
        }
        self.extents.retain(|_, record| record.open.extent.shard != shard);
        segment.push(choices, FrameKind::Forget, 0, &ForgottenShard { shard }.encode())
    }

    fn take_listed(&mut self, choices: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let first = self.listed.pop_first().map_or(1, |(sequence, _)| sequence);
        Ok(mostly(choices, first)?.to_le_bytes().to_vec())
    }

    fn write_open(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: &mut Segment<'_>,
    ) -> Result<bool> {
        let next = self.extents.last_key_value().map_or(0, |(number, _)| number.wrapping_add(1));
        let shard = ShardId { stream: StreamId(1), index: choices.int_in_range(0..=1)? };
        let of_shard = |record: &&ExtentRecord| record.open.extent.shard == shard;
        let older = self.extents.values().rfind(of_shard);
        let epoch = older.map_or(1, |record| record.open.extent.epoch.0.wrapping_add(1)).max(1);
        let end = older.map_or(0, |record| record.end.0);
        let mut producers = Producers::default();
        for producer in 0..choices.int_in_range(0..=2)? {
            let stored = Remembered { first_offset: Offset(end), append_time_ms: 1 };
            producers.record(ProducerId(producer), 0, stored);
        }
        let first_offset = Offset(mostly(choices, end)?);
        let open = OpenExtent::alone(
            ExtentId { shard, epoch: Epoch(mostly(choices, epoch)?.max(1)) },
            HashRange::FULL,
            first_offset,
        );
        let record = ExtentRecord {
            number: mostly(choices, u64::from(next))? as u32,
            open,
            state: ExtentState::Open,
            recovery_epoch: Epoch(0),
            end: first_offset,
            first_kept: first_offset,
            last_append_ms: mostly(choices, 1)?,
            boot: BOOT,
            producers,
        };
        for record in self.extents.values_mut().filter(|record| record.open.extent.shard == shard) {
            (record.state, record.producers) = (ExtentState::Sealed, Producers::default());
        }
        let mut payload = Vec::new();
        record.encode_into(&mut payload);
        // Producers come last; what they remember is anything the input likes.
        if record.producers.count() > 0 && choices.ratio(1, 8)? {
            let at = payload.len() - 48 + choices.int_in_range(0..=47)?;
            payload[at] = choices.arbitrary()?;
        }
        let number = record.number;
        self.extents.insert(number, record);
        segment.push(choices, FrameKind::Open, number, &payload)
    }

    fn write_batch(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: &mut Segment<'_>,
        number: u32,
    ) -> Result<bool> {
        let record = self.extents.get_mut(&number).expect("it was listed");
        let records = choices.int_in_range(1..=3)?;
        let room = BatchRoom { records, key_bytes: 8, data_bytes: 256 };
        let mut builder = BatchBuilder::new(room);
        let data = vec![7; choices.int_in_range(0..=80)?];
        for _ in 0..records {
            let hash_key = HashKey(u128::from(choices.arbitrary::<u8>()?) << 120);
            builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"k", data: &data });
        }
        let identity = BatchIdentity {
            shard: record.open.extent.shard,
            epoch: record.open.extent.epoch,
            producer: ProducerId(choices.int_in_range(0..=2)?),
            sequence: 0,
            request_id: 0,
        };
        let mut batch = builder.finish(&identity).to_vec();
        let made = BatchHeader::decode(&batch).expect("as built");
        let header = BatchHeader {
            sequence: mostly(choices, 1)?,
            first_offset: Offset(mostly(choices, record.end.0)?),
            append_time_ms: mostly(choices, record.last_append_ms)?,
            ..made
        };
        put(&mut batch, 0, header.encode());
        let location = Location {
            first_offset: header.first_offset,
            records: header.records,
            batch_bytes: batch.len() as u32,
            lsn: segment.lsn(),
            append_time_ms: header.append_time_ms,
        };
        record.end = Offset(header.first_offset.0.saturating_add(u64::from(records)));
        record.last_append_ms = record.last_append_ms.max(header.append_time_ms);
        let fits = segment.push(choices, FrameKind::Batch, number, &batch)?;
        if fits {
            segment.note(number, &header, location);
        }
        Ok(fits)
    }

    /// The footer, as a rule; the segment is one that counts from here on.
    fn finish(
        &mut self,
        choices: &mut Unstructured<'_>,
        segment: Segment<'_>,
        is_last: bool,
    ) -> Result<()> {
        let end = segment.lsn();
        let Segment { file, header, index, whole, .. } = segment;
        let positions_fit = header.base.0.checked_add(FILE_BYTES).is_some();
        if whole && positions_fit && (!is_last || choices.ratio(1, 8)?) && !choices.ratio(1, 8)? {
            let (footer_at, footer) =
                encode_footer(&index, header.sequence, header.base, end, FILE_BYTES);
            put(file, footer_at as usize, &footer);
        }
        self.end = mostly(choices, end.0)?;
        let listed =
            SegmentEntry { sequence: header.sequence, end: Lsn(self.end), order: header.sequence };
        if header.origin == SegmentOrigin::Appended || choices.ratio(1, 4)? {
            self.listed.insert(header.sequence, listed);
        }
        Ok(())
    }
}
