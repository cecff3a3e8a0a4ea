//! A log against a model, over any sequence of appends, openings, fences, seals, trims,
//! deletions, archives, syncs and restarts.
//!
//! The model is a journal of what was appended, in order, with the position after it. A restart
//! keeps a prefix of the journal, at least what was durable, and the log says how much: it is
//! where the log ends. What the prefix says of extents, batches and producers is what the log must
//! have, find by offset and by time, and read.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use thalweg_node::io::sim::{SimDisk, SimFaults, SimIo, SimRandom};
use thalweg_node::io::{FileId, Io, Piece, Token, Wait};
use thalweg_node::log::extent::{
    EXTENT_END_BYTES, ExtentEnd, ExtentRecord, Producers, RECORD_BYTES_MAX, SequenceVerdict,
};
use thalweg_node::log::footer::Footer;
use thalweg_node::log::format::{FRAME_HEADER_BYTES, FrameKind};
use thalweg_node::log::index::{Location, Target};
use thalweg_node::log::merge::{MergeError, MergeJob, merge};
use thalweg_node::log::recovery::{Bytes, LogFiles, recover};
use thalweg_node::log::search::{Found, Search};
use thalweg_node::log::segments::{
    AppendRefusal, FreeSegment, IN_PLACE_BYTES_MIN, Log, LogIdentity, Placement, note_stored,
};
use thalweg_node::log::stored::{StoredSegment, check_stored, read_footer};
use thalweg_wire::batch::{BatchHeader, HEADER_BYTES, assign};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::codec::align_up;
use thalweg_wire::control::{ExtentState, OpenExtent};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{
    BootId, DiskId, Epoch, ExtentId, Lsn, Offset, ProducerId, ShardId, StreamId,
};

const DISK: DiskId = DiskId([1; 16]);
const SEGMENT_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: usize = 16 << 20;
const SHARDS: u32 = 3;
/// Polls after which something that waits for the disk is stuck.
const POLLS_MAX: u32 = 10_000;

/// What happens to the log. Shards are taken modulo their count, shares are of 256.
#[derive(Clone, Debug)]
enum Operation {
    Append {
        shard: u8,
        records: u8,
        record_bytes: u32,
        ms_later: u8,
    },
    Open {
        shard: u8,
    },
    Fence {
        shard: u8,
    },
    Seal {
        shard: u8,
    },
    Trim {
        shard: u8,
        share: u8,
    },
    /// A shard is ended, emptied and deleted; nobody reads it, or somebody does.
    Delete {
        shard: u8,
        is_read: bool,
    },
    /// An archive begins, or the one under way is written, or fails, and ends.
    Archive {
        fails: bool,
    },
    Pump,
    Sync,
    Search {
        shard: u8,
        share: u8,
    },
    Reopen {
        crash: bool,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    // Most are gathered, some are written from where they lie; a segment takes about ten of them.
    let record_bytes = prop_oneof![4 => 0..3000_u32, 1 => 20_000..200_000_u32];
    // Several batches have one time, also from one segment to the next.
    let ms_later = prop_oneof![5 => Just(0_u8), 1 => 1..4_u8];
    let append = (any::<u8>(), 1..5_u8, record_bytes, ms_later);
    prop_oneof![
        24 => append.prop_map(|(shard, records, record_bytes, ms_later)| {
            let records = if record_bytes < 20_000 { records } else { 1 };
            Operation::Append { shard, records, record_bytes, ms_later }
        }),
        1 => any::<u8>().prop_map(|shard| Operation::Open { shard }),
        1 => any::<u8>().prop_map(|shard| Operation::Fence { shard }),
        1 => any::<u8>().prop_map(|shard| Operation::Seal { shard }),
        4 => any::<(u8, u8)>().prop_map(|(shard, share)| Operation::Trim { shard, share }),
        1 => any::<(u8, bool)>().prop_map(|(shard, is_read)| Operation::Delete { shard, is_read }),
        3 => (0..8_u8).prop_map(|one| Operation::Archive { fails: one == 0 }),
        6 => Just(Operation::Pump),
        3 => Just(Operation::Sync),
        2 => any::<(u8, u8)>().prop_map(|(shard, share)| Operation::Search { shard, share }),
        2 => any::<bool>().prop_map(|crash| Operation::Reopen { crash }),
    ]
}

/// What the log was told, in its order.
#[derive(Clone, Debug)]
enum Event {
    Opened(ExtentRecord),
    Appended { number: u32, header: BatchHeader },
    Ended { number: u32, state: ExtentState },
    Trimmed { number: u32, first_kept: Offset },
    Deleted { shard: u32 },
}

/// What a prefix of the journal comes to.
#[derive(Default)]
struct Model {
    extents: BTreeMap<u32, ExtentRecord>,
    batches: BTreeMap<u32, Vec<BatchHeader>>,
}

impl Model {
    fn of(journal: &[(Lsn, Event)]) -> Model {
        let mut model = Model::default();
        for (_, event) in journal {
            model.take_in(event);
        }
        model
    }

    fn take_in(&mut self, event: &Event) {
        match event {
            Event::Opened(opened) => {
                let shard = opened.open.extent.shard;
                let older = self.extents.values_mut();
                for record in older.filter(|record| record.open.extent.shard == shard) {
                    record.state = ExtentState::Sealed;
                    record.producers = Producers::default();
                }
                self.extents.insert(opened.number, opened.clone());
                self.batches.insert(opened.number, Vec::new());
            }
            Event::Appended { number, header } => {
                note_stored(self.extents.get_mut(number).expect("opened"), header);
                self.batches.get_mut(number).expect("opened").push(*header);
            }
            Event::Ended { number, state } => {
                self.extents.get_mut(number).expect("opened").state = *state;
            }
            Event::Trimmed { number, first_kept } => {
                self.extents.get_mut(number).expect("opened").first_kept = *first_kept;
            }
            Event::Deleted { shard } => {
                self.extents.retain(|_, record| record.open.extent.shard.index != *shard);
            }
        }
    }

    fn newest(&self, shard: u32) -> Option<&ExtentRecord> {
        self.extents.values().rfind(|record| record.open.extent.shard.index == shard)
    }

    /// Whether a log may have forgotten the extent.
    fn is_gone(&self, record: &ExtentRecord) -> bool {
        let newest = self.newest(record.open.extent.shard.index).expect("it has this one");
        record.state == ExtentState::Sealed
            && record.first_kept >= record.end
            && newest.number != record.number
    }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a simulated disk never lets wait"),
    }
}

/// A log on a simulated disk, and the journal of what it was told.
struct Rig {
    disk: SimDisk,
    io: SimIo,
    log: Log,
    boot: u64,
    now_ms: u64,
    made: u64,
    journal: Vec<(Lsn, Event)>,
    model: Model,
    random: SimRandom,
    archiving: Option<MergeJob>,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let disk = SimDisk::default();
        let (mut random, boot) = (SimRandom::new(seed), 1);
        let (io, log) = start(&disk, boot, random.any()).1;
        Rig {
            disk,
            io,
            log,
            boot,
            now_ms: 1000,
            made: 0,
            journal: Vec::new(),
            model: Model::default(),
            random,
            archiving: None,
        }
    }

    fn act(&mut self, operation: &Operation) {
        match *operation {
            Operation::Append { shard, records, record_bytes, ms_later } => {
                self.now_ms += u64::from(ms_later);
                self.append(u32::from(shard) % SHARDS, records, record_bytes);
            }
            Operation::Open { shard } => {
                self.open(u32::from(shard) % SHARDS);
            }
            Operation::Fence { shard } => {
                self.end(u32::from(shard) % SHARDS, ExtentState::Open, ExtentState::Fenced)
            }
            Operation::Seal { shard } => {
                self.end(u32::from(shard) % SHARDS, ExtentState::Fenced, ExtentState::Sealed)
            }
            Operation::Trim { shard, share } => self.trim(u32::from(shard) % SHARDS, share),
            Operation::Delete { shard, is_read } => self.delete(u32::from(shard) % SHARDS, is_read),
            Operation::Archive { fails } => self.archive(fails),
            Operation::Pump => self.turn(),
            Operation::Sync => self.sync(),
            Operation::Search { shard, share } => self.look(u32::from(shard) % SHARDS, share),
            Operation::Reopen { crash } => self.reopen(crash),
        }
    }

    fn journal(&mut self, event: Event) {
        self.model.take_in(&event);
        self.journal.push((self.log.appended(), event));
    }

    /// Some of what may be done at the disk is, and what follows from it.
    fn turn(&mut self) {
        while self.log.free_segments() < 2 {
            self.log.add_free(FreeSegment { file: self.disk.add_file(SEGMENT_BYTES) });
        }
        self.log.pump(&mut self.io);
        let mut completions = Vec::new();
        self.io.poll(&mut completions, Wait::No).expect("a simulated poll works");
        for completion in completions {
            match completion.token {
                Token::Write { unit, .. } => {
                    self.log.on_write(&mut self.io, unit, completion.result);
                }
                Token::Sync { .. } => self.log.on_sync(&mut self.io, completion.result),
                other => panic!("a log does not ask for {other:?}"),
            }
        }
        while let Some(file) = self.log.take_released() {
            if !self.log.reuse(file, 3) {
                self.disk.remove_file(file);
            }
        }
    }

    fn sync(&mut self) {
        for _ in 0..POLLS_MAX {
            if self.log.is_idle() {
                assert_eq!(self.log.durable(), self.log.appended(), "all of it is durable");
                return;
            }
            self.turn();
        }
        panic!("the log is stuck");
    }

    /// Does what may have to wait for the disk.
    fn insist(&mut self, attempt: impl Fn(&mut Log, &mut SimIo) -> Result<(), AppendRefusal>) {
        for _ in 0..POLLS_MAX {
            match attempt(&mut self.log, &mut self.io) {
                Ok(()) => return,
                Err(AppendRefusal::Busy) => self.turn(),
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
        panic!("the log is stuck");
    }

    /// The extent of a shard that takes appends; a new one where there is none.
    fn open_extent(&mut self, shard: u32) -> u32 {
        match self.model.newest(shard) {
            Some(record) if record.state == ExtentState::Open && record.boot.0 == self.boot => {
                record.number
            }
            _ => self.open(shard),
        }
    }

    fn open(&mut self, shard: u32) -> u32 {
        let older = self.model.newest(shard);
        let first_offset = older.map_or(Offset(0), |record| record.end);
        let epoch = older.map_or(1, |record| record.open.extent.epoch.0 + 1);
        let mut record = ExtentRecord {
            number: 0,
            open: OpenExtent::alone(
                ExtentId {
                    shard: ShardId { stream: StreamId(1), index: shard },
                    epoch: Epoch(epoch),
                },
                HashRange::FULL,
                first_offset,
            ),
            state: ExtentState::Open,
            recovery_epoch: Epoch(0),
            end: first_offset,
            first_kept: first_offset,
            last_append_ms: older.map_or(0, |record| record.last_append_ms),
            boot: BootId(self.boot),
            producers: older.map(|record| record.producers.clone()).unwrap_or_default(),
        };
        let older = older.map(|record| record.number);
        self.insist(|log, io| log.reserve_record(io, RECORD_BYTES_MAX));
        (record.number, _) = self.log.append_open(&mut self.io, record.clone());
        if let Some(older) = older {
            let record = &mut self.log.extent_mut(older).record;
            (record.state, record.producers) = (ExtentState::Sealed, Producers::default());
            self.log.forget_extent(older);
        }
        let number = record.number;
        self.journal(Event::Opened(record));
        number
    }

    fn append(&mut self, shard: u32, records: u8, record_bytes: u32) {
        let number = self.open_extent(shard);
        let record = self.model.extents[&number].clone();
        let producer = ProducerId(self.random.below(3));
        let mut sequence = 0;
        // The sequence that this producer is expected to send.
        while record.producers.judge(producer, sequence) != SequenceVerdict::Fresh {
            sequence += 1;
        }
        self.made += 1;
        let room = BatchRoom {
            records: u32::from(records),
            key_bytes: u32::from(records),
            data_bytes: u32::from(records) * (record_bytes + 8),
        };
        let mut builder = BatchBuilder::new(room);
        for _ in 0..records {
            let mut data = vec![self.made as u8; record_bytes as usize];
            data.extend(self.made.to_le_bytes());
            let hash_key = HashKey(self.made.into());
            builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"k", data: &data });
        }
        let ExtentId { shard, epoch } = record.open.extent;
        let identity = BatchIdentity { shard, epoch, producer, sequence, request_id: self.made };
        let bytes = builder.finish(&identity);
        let in_place = FRAME_HEADER_BYTES + bytes.len() >= IN_PLACE_BYTES_MIN;
        let placement = if in_place { Placement::InPlace } else { Placement::Copied };
        self.insist(|log, io| log.reserve_batch(io, bytes.len(), placement));
        let start = if in_place { FRAME_HEADER_BYTES } else { 0 };
        let room_bytes = align_up((start + bytes.len()) as u64, 4096) as usize;
        let buffer = self.log.allocate(&mut self.io, room_bytes).expect("there is memory");
        let place = &mut self.io.memory_mut().bytes_mut(buffer)[start..start + bytes.len()];
        place.copy_from_slice(bytes);
        let append_time_ms = self.now_ms.max(record.last_append_ms);
        let header = place.first_chunk_mut::<HEADER_BYTES>().expect("a batch");
        assign(header, record.end, append_time_ms);
        let header = BatchHeader::decode(header).expect("as built");
        if in_place {
            self.log.append_in_place(&mut self.io, number, buffer, &header);
        } else {
            let from = Piece { buffer, start: 0, bytes: bytes.len() as u32 };
            self.log.append_copy(&mut self.io, number, from, &header);
            self.io.memory_mut().release(buffer);
        }
        self.journal(Event::Appended { number, header });
    }

    /// Fences or seals a shard's newest extent, if it is in the state before.
    fn end(&mut self, shard: u32, before: ExtentState, state: ExtentState) {
        let newest = self.model.newest(shard);
        let Some((number, end)) = newest
            .filter(|record| record.state == before)
            .map(|record| (record.number, record.end))
        else {
            return;
        };
        self.insist(|log, io| log.reserve_record(io, EXTENT_END_BYTES));
        self.log.extent_mut(number).record.state = state;
        let payload = ExtentEnd { state, recovery_epoch: Epoch(0), end }.encode();
        self.log.append_record(&mut self.io, FrameKind::End, number, &payload);
        self.journal(Event::Ended { number, state });
    }

    /// Trims a shard up to a share of its records, and lets go of segments that are empty then.
    fn trim(&mut self, shard: u32, share: u8) {
        let Some(newest) = self.model.newest(shard) else { return };
        let first_kept = Offset(newest.end.0 * (u64::from(share) + 1) / 256);
        let numbers: Vec<u32> = self.log.extents().keys().copied().collect();
        for number in numbers {
            let record = &self.log.extent(number).record;
            if record.open.extent.shard.index != shard || self.log.extent(number).is_deleted {
                continue;
            }
            let said = std::cell::Cell::new(false);
            self.insist(|log, io| log.trim(io, number, first_kept).map(|new| said.set(new)));
            if said.get() {
                let first_kept = self.log.extent(number).record.first_kept;
                self.journal(Event::Trimmed { number, first_kept });
            }
            if self.model.newest(shard).is_some_and(|newest| newest.number != number) {
                self.log.forget_extent(number);
            }
        }
        self.insist(|log, io| log.release_empty(io));
    }

    /// Deletes a shard, once it has ended and is empty.
    fn delete(&mut self, shard: u32, is_read: bool) {
        self.end(shard, ExtentState::Open, ExtentState::Fenced);
        self.end(shard, ExtentState::Fenced, ExtentState::Sealed);
        let Some(newest) = self.model.newest(shard).map(|newest| newest.number) else { return };
        self.trim(shard, u8::MAX);
        let id = ShardId { stream: StreamId(1), index: shard };
        self.insist(|log, io| log.forget_shard(io, id, Some(newest)));
        if !is_read {
            self.log.drop_deleted(newest);
        }
        self.journal(Event::Deleted { shard });
        self.insist(|log, io| log.release_empty(io));
    }

    /// Begins an archive of what has ended, or ends the one under way.
    fn archive(&mut self, fails: bool) {
        let Some(job) = self.archiving.take() else {
            while self.log.free_segments() < 2 {
                self.log.add_free(FreeSegment { file: self.disk.add_file(SEGMENT_BYTES) });
            }
            let newest: Vec<u32> = (0..SHARDS)
                .filter_map(|shard| self.model.newest(shard))
                .map(|record| record.number)
                .collect();
            let all = self.log.extents().iter().filter(|(_, extent)| !extent.is_deleted);
            let all = all.map(|(number, _)| *number);
            let ended = all.filter(|number| !newest.contains(number)).collect();
            self.archiving = self.log.begin_archive(ended, 1);
            return;
        };
        let result = match ready(merge(&self.disk, &job)) {
            Ok(_) if fails => Err(MergeError::Damaged { sequence: job.sequence }),
            result => result,
        };
        if let Some(file) = self.log.end_merge(result) {
            self.disk.remove_file(file);
        }
        self.insist(|log, io| log.take_in_merged(io).map(drop));
        self.insist(|log, io| log.release_empty(io));
    }

    /// The power fails, or the node stops in order; then the log is recovered.
    fn reopen(&mut self, crash: bool) {
        if !crash {
            self.sync();
        }
        let durable = self.log.durable();
        let promised = self.journal.iter().filter(|(lsn, _)| *lsn <= durable).count();
        self.boot += 1;
        self.archiving = None;
        // The old world ends before the new one begins.
        let nothing = SimIo::new(1, SimDisk::default(), 0, SimFaults::default());
        std::mem::replace(&mut self.io, nothing).crash();
        let (end, (io, log)) = start(&self.disk, self.boot, self.random.any());
        (self.io, self.log) = (io, log);
        let kept = self.journal.iter().take_while(|(lsn, _)| *lsn <= end).count();
        assert!(kept >= promised, "{promised} were durable, {kept} are there");
        self.journal.truncate(kept);
        self.model = Model::of(&self.journal);
        self.judge();
    }

    /// Holds the log against the model.
    fn judge(&mut self) {
        for record in self.model.extents.values() {
            match self.log.extents().get(&record.number) {
                Some(extent) => assert_eq!(&extent.record, record),
                None => assert!(self.model.is_gone(record), "{record:?} is forgotten"),
            }
        }
        for (number, extent) in self.log.extents() {
            let is_there = self.model.extents.contains_key(number);
            assert_eq!(is_there, !extent.is_deleted, "extent {number} was never opened");
        }
        self.judge_archives();
        for shard in 0..SHARDS {
            for share in [0, 100, 200, 255] {
                self.look(shard, share);
            }
        }
    }

    /// An archive counts as many records as there are extents that say it has theirs.
    fn judge_archives(&self) {
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for extent in self.log.extents().values() {
            let counts = extent.archived.map(|archive| counts.entry(archive).or_default());
            counts.into_iter().for_each(|count| *count += 1);
        }
        for (archive, count) in counts {
            let held = self.log.sealed(archive).map(|segment| segment.held.records);
            assert!(held.is_none_or(|held| held == count), "{archive}: {held:?}, not {count}");
        }
    }

    /// Searches the extents of a shard for all they have and, at a share of that, by offset and by
    /// time; reads what is durable.
    fn look(&self, shard: u32, share: u8) {
        let mut next: Option<Offset> = None;
        let extents = self.log.extents().values().filter(|extent| !extent.is_deleted);
        let extents = extents.map(|extent| &extent.record);
        for record in extents.filter(|record| record.open.extent.shard.index == shard) {
            if let Some(next) = next.replace(record.end) {
                assert_eq!(next, record.open.first_offset, "offsets go on from extent to extent");
            }
            let all = self.found(record.number, Target::Offset(Offset(0)));
            let batches = &self.model.batches[&record.number];
            let kept = batches.iter().filter(|header| header.end_offset() > record.first_kept);
            assert!(all.len() >= kept.count(), "what is kept is there");
            let expected = &batches[batches.len() - all.len()..];
            for (found, header) in all.iter().zip(expected) {
                self.compare(found, header);
            }
            if all.is_empty() {
                continue;
            }
            let header = &expected[all.len() * usize::from(share) / 256];
            let last = u64::from(header.records) - 1;
            for offset in [header.first_offset, header.first_offset.after(last)] {
                let found = self.found(record.number, Target::Offset(offset));
                assert_eq!(found[0].location.first_offset, header.first_offset);
            }
            let near = header.append_time_ms.saturating_sub(1)..=header.append_time_ms + 1;
            let runs = &self.log.extent(record.number).runs;
            for time_ms in near.chain(runs.iter().map(|run| run.first_time_ms)) {
                let found = self.found(record.number, Target::Time(time_ms));
                let first = expected.iter().find(|header| header.append_time_ms >= time_ms);
                assert_eq!(
                    found.first().map(|found| found.location.first_offset),
                    first.map(|header| header.first_offset),
                    "the first at or after {time_ms} ms"
                );
            }
        }
    }

    fn found(&self, number: u32, target: Target) -> Vec<Found> {
        let mut footers: BTreeMap<u64, (StoredSegment, Bytes)> = BTreeMap::new();
        loop {
            let mut all = Vec::new();
            let footer = |sequence| {
                let (segment, bytes) = footers.get(&sequence)?;
                Some(Footer::checked(bytes, &segment.trailer, segment.base))
            };
            let end = self.log.extent(number).record.end;
            let search = self.log.search(number, target, end, footer, |found| {
                all.push(found);
                true
            });
            let Search::NeedsFooter(sequence) = search else { return all };
            let sealed = self.log.sealed(sequence).expect("a run's segment counts");
            let (file, base, trailer) = (sealed.file.0 as usize, sealed.base, sealed.trailer);
            let segment = StoredSegment { file, sequence, base, trailer, is_archive: false };
            let bytes = ready(read_footer(&self.disk, &segment)).expect("the disk reads");
            footers.insert(sequence, (segment, bytes.expect("a sealed segment has a footer")));
        }
    }

    fn compare(&self, found: &Found, header: &BatchHeader) {
        let Location { first_offset, records, batch_bytes, lsn, append_time_ms } = found.location;
        assert_eq!((first_offset, records), (header.first_offset, header.records));
        assert_eq!(append_time_ms, header.append_time_ms);
        assert_eq!(batch_bytes as usize, header.batch_bytes());
        let end = lsn.0 + FRAME_HEADER_BYTES as u64 + u64::from(batch_bytes);
        if end > self.log.durable().0 {
            return;
        }
        let (file, base) = self.log.segment_file(found.sequence);
        let (start, end) = (lsn.0 - base.0, end - base.0);
        let window_at = start & !4095;
        let window_bytes = (align_up(end, 4096) - window_at) as usize;
        let window = ready(self.disk.read(file.0 as usize, window_at, window_bytes));
        let window = window.expect("the disk reads");
        let stored = &window[(start - window_at) as usize..(end - window_at) as usize];
        let read = check_stored(stored, found.sequence, &found.location);
        assert_eq!(read.as_ref(), Some(header), "what is durable can be read");
    }
}

/// Recovers the log and goes on; answers where it ended.
fn start(disk: &SimDisk, boot: u64, seed: u64) -> (Lsn, (SimIo, Log)) {
    let recovered = ready(recover(disk, DISK, 0, SEGMENT_BYTES));
    let recovered = recovered.expect("what a crash leaves can be read").remove(0);
    let (end, free) = (recovered.end, recovered.free.clone());
    let identity = LogIdentity {
        index: 0,
        disk: DISK,
        log: 0,
        retention_class: 0,
        segment_bytes: SEGMENT_BYTES,
        boot: BootId(boot),
    };
    let mut log = Log::new(identity, recovered.into_state(|file| FileId(file as u32)));
    free.into_iter().for_each(|file| log.add_free(FreeSegment { file: FileId(file as u32) }));
    (end, (SimIo::new(MEMORY_BYTES, disk.clone(), seed, SimFaults::default()), log))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_log_is_what_was_appended_to_it(
        seed: u64,
        operations in prop::collection::vec(operation(), 1..150),
    ) {
        let mut rig = Rig::new(seed);
        operations.iter().for_each(|operation| rig.act(operation));
        rig.judge();
        rig.reopen(false);
        rig.reopen(true);
    }
}

/// A log whose last extent was forgotten, for its shard had gone on in another log, gave its number
/// to the next one after a start: what footers still had of the old one was the new one's then.
#[test]
fn a_number_is_given_once() {
    let mut rig = Rig::new(3);
    for shard in 0..2 {
        rig.append(shard, 3, 1000);
    }
    let (kept, gone) = (rig.open_extent(0), rig.open_extent(1));
    assert_eq!((kept, gone), (0, 1));
    rig.end(1, ExtentState::Open, ExtentState::Fenced);
    rig.end(1, ExtentState::Fenced, ExtentState::Sealed);
    let end = rig.log.extent(gone).record.end;
    rig.insist(|log, io| log.trim(io, gone, end).map(drop));
    assert!(rig.log.forget_extent(gone));
    rig.sync();
    // Its snapshot does not have the extent; the segment before it has its batches.
    rig.insist(|log, io| log.roll(io));
    rig.sync();
    let recovered = start(&rig.disk, 2, 4).1;
    (rig.io, rig.log, rig.boot) = (recovered.0, recovered.1, 2);
    assert_eq!(rig.log.extents().keys().copied().collect::<Vec<_>>(), [kept]);
    rig.model = Model::default();
    let next = rig.open(1);
    assert_eq!(next, 2);
    assert!(rig.log.extent(next).runs.is_empty());
}
