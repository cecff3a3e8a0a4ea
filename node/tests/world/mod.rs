//! The world of a history: one core on a simulated disk, producers that use the client's own
//! decisions, a model of what was acked, and the judge that holds the disk against it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rkyv::util::AlignedVec;
use thalweg_client::lane::Lane;
use thalweg_node::core::machine::{Core, CoreMessage, CoreRequest, CoreSettings, Time};
use thalweg_node::core::shard::Placement;
use thalweg_node::counters::Counters;
use thalweg_node::io::sim::{SimDisk, SimFaults, SimIo, SimRandom};
use thalweg_node::io::{ConnectionId, FileId, Io, Wait};
use thalweg_node::log::merge::merge;
use thalweg_node::log::recovery::{LogFiles, recover};
use thalweg_node::log::scrub::scrub;
use thalweg_node::log::segments::{FreeSegment, Log, LogIdentity};
use thalweg_wire::batch::Batch;
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::checksum::body_hash;
use thalweg_wire::control::{ControlAnswer, OpenExtent, TrimShard};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{BootId, DiskId, Epoch, ExtentId, Offset, ProducerId, ShardId, StreamId};
use thalweg_wire::produce::{decode_acks, padded_bytes};

const SEGMENT_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: usize = 16 << 20;
const SHARDS: u32 = 3;
const PRODUCERS: u64 = 2;
/// Turns after which a history that has not come to its end is stuck.
const TURNS_MAX: u64 = 200_000;

/// What happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Batches that each producer sends.
    pub batches: u64,
    /// The power fails at this operation.
    pub crash_at: Option<u64>,
    /// The power fails once in so many operations; never when zero.
    pub crash_every: u64,
    /// A write, sync or read fails or is cut short once in so many; never when zero.
    pub disk_errors: u64,
    /// A connection breaks once in so many receives or sends; never when zero.
    pub broken_connections: u64,
    /// A shard is trimmed once in so many turns; never when zero.
    pub trims: u64,
    /// Shard 0 is written little and hardly ever trimmed: its records stay behind in segments of
    /// which nothing else is kept.
    pub keeper: bool,
}

impl History {
    /// Nothing goes wrong.
    pub(crate) fn calm(seed: u64) -> History {
        History {
            seed,
            batches: 120,
            crash_at: None,
            crash_every: 0,
            disk_errors: 0,
            broken_connections: 0,
            trims: 0,
            keeper: false,
        }
    }

    /// Nothing goes wrong, and not for long.
    pub(crate) fn short(seed: u64) -> History {
        History { batches: 20, ..History::calm(seed) }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outcome {
    pub sent: u64,
    pub acked: u64,
    pub duplicates: u64,
    pub crashes: u64,
    pub failed_logs: u64,
    pub segments: u64,
    pub released: u64,
    pub bytes_copied: u64,
    pub bytes_scrubbed: u64,
    pub trims: u64,
    pub operations: u64,
    pub trace: u64,
}

/// Plays a history to its end and judges it.
///
/// # Panics
/// When a promise is broken.
pub(crate) fn play(history: &History) -> Outcome {
    let mut world = World::new(*history);
    world.start();
    let mut turns = 0;
    while !world.producers.iter().all(SimProducer::is_done) {
        world.turn();
        turns += 1;
        assert!(turns < TURNS_MAX, "the history is stuck");
    }
    world.history.crash_every = 0;
    world.history.disk_errors = 0;
    world.crash();
    world.start();
    world.judge();
    world.outcome
}

type Acked = BTreeMap<u64, (u32, u64)>;

struct World {
    history: History,
    random: SimRandom,
    disk: SimDisk,
    core: Option<Core<SimIo>>,
    now_us: u64,
    boot: u64,
    operations_before: u64,
    producers: Vec<SimProducer>,
    /// Of each shard, by first offset: records and body hash of what was acked.
    acked: Vec<Acked>,
    trimmer: Trimmer,
    /// What the running core has counted.
    counters: Counters,
    outcome: Outcome,
}

fn shard_id(index: u32) -> ShardId {
    ShardId { stream: StreamId(1), index }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a simulated disk never lets wait"),
    }
}

impl World {
    fn new(history: History) -> World {
        let mut random = SimRandom::new(history.seed);
        let producers =
            (0..PRODUCERS).map(|number| SimProducer::new(number, &history, random.any())).collect();
        World {
            random,
            disk: SimDisk::default(),
            core: None,
            now_us: 1_000_000,
            boot: 0,
            operations_before: 0,
            producers,
            acked: vec![Acked::new(); SHARDS as usize],
            trimmer: Trimmer::default(),
            counters: Counters::default(),
            outcome: Outcome::default(),
            history,
        }
    }

    /// Recovers and starts a core; opens the shards the first time.
    fn start(&mut self) {
        self.boot += 1;
        let disk_id = DiskId([1; 16]);
        let recovered = ready(recover(&self.disk, disk_id, 0, SEGMENT_BYTES));
        let recovered = recovered.expect("what a crash leaves can be read");
        let mut free: Vec<FileId> =
            recovered.free.iter().map(|file| FileId(*file as u32)).collect();
        let state = recovered.into_state(|file| FileId(file as u32));
        let identity = LogIdentity {
            index: 0,
            disk: disk_id,
            log: 0,
            segment_bytes: SEGMENT_BYTES,
            boot: BootId(self.boot),
        };
        while free.len() < 2 {
            free.push(self.disk.add_file(SEGMENT_BYTES));
        }
        let mut log = Log::new(identity, state);
        free.into_iter().for_each(|file| log.add_free(FreeSegment { file }));
        let errors = self.history.disk_errors;
        let faults = SimFaults {
            write_error: errors,
            short_write: errors,
            sync_error: errors,
            short_read: errors,
            broken_connection: self.history.broken_connections,
        };
        let io = SimIo::new(MEMORY_BYTES, self.disk.clone(), self.random.any(), faults);
        let settings = CoreSettings {
            core: 0,
            ports: vec![1],
            disks: vec![disk_id],
            boot: BootId(self.boot),
            min_frame_bytes_per_s: 1,
            connections_max: 64,
            free_segments_min: 3,
            free_segments_max: 4,
            retention_ms: None,
            merge_after_us: 1_000_000,
            scrub_period_us: Some(3_000_000),
        };
        let placement = Arc::new(Placement::default());
        let mut core = Core::new(io, settings, placement, vec![log], self.time());
        for (index, acked) in (0..).zip(&self.acked) {
            let found = core.shards().find(shard_id(index));
            let end = found.map_or(0, |place| core.shards().at(place).committed.0);
            let last =
                acked.last_key_value().map_or(0, |(at, (records, _))| at + u64::from(*records));
            assert!(last <= end, "shard {index}: {last} were acked, {end} are there after a crash");
        }
        core.reopen_shards(&mut 0).expect("there are free segments");
        self.core = Some(core);
        if self.boot == 1 || self.core().shards().count() < SHARDS as usize {
            self.open_shards();
        }
        self.connect_producers();
    }

    fn core(&mut self) -> &mut Core<SimIo> {
        self.core.as_mut().expect("a core runs")
    }

    fn time(&self) -> Time {
        // The wall clock jumps, also backwards.
        let jump = self.now_us / 1000 % 977 * 50;
        Time { now_us: self.now_us, wall_ms: 1_000_000_000 + self.now_us / 1000 - jump }
    }

    /// One turn of the core; false when it was crashed and started anew.
    fn step(&mut self) -> bool {
        self.now_us += 1 + self.random.below(500);
        // Now and then nothing happens for a while.
        if self.random.once_in(20) {
            self.now_us += self.random.below(300_000);
        }
        let time = self.time();
        let core = self.core.as_mut().expect("a core runs");
        let mut completions = Vec::new();
        core.io_mut().poll(&mut completions, Wait::No).expect("a simulated poll works");
        core.turn(time, &mut completions);
        for request in core.take_requests() {
            match request {
                CoreRequest::FillSegment { log } => {
                    let file = self.disk.add_file(SEGMENT_BYTES);
                    core.tell(CoreMessage::SegmentReady { log, segment: FreeSegment { file } });
                }
                CoreRequest::RemoveSegment { file, .. } => self.disk.remove_file(file),
                CoreRequest::Merge { log, job } => {
                    let result = ready(merge(&self.disk, &job));
                    core.tell(CoreMessage::Merged { log, result });
                }
                CoreRequest::Scrub { log, segment } => {
                    let result = ready(scrub(&self.disk, &segment));
                    core.tell(CoreMessage::Scrubbed { log, result });
                }
            }
        }
        self.counters = core.counters();
        let operations = self.operations_before + core.io().operations();
        let crash = self.history.crash_at.is_some_and(|at| operations >= at)
            || self.random.once_in(self.history.crash_every);
        let failed = core.logs()[0].failed().is_some();
        if failed {
            // A node with a failed log goes on answering; its operator restarts it some time.
            if self.random.once_in(20) {
                self.outcome.failed_logs += 1;
                self.crash();
                self.start();
                return false;
            }
        } else if crash {
            self.history.crash_at = None;
            self.crash();
            self.start();
            return false;
        }
        true
    }

    fn turn(&mut self) {
        if !self.step() {
            return;
        }
        for place in 0..self.producers.len() {
            let producer = &mut self.producers[place];
            let core = self.core.as_mut().expect("a core runs");
            let Some(bytes) = core.io_mut().peer_takes(producer.connection) else {
                producer.lose_connection();
                producer.connection = core.io_mut().connect();
                continue;
            };
            let acks = producer.take(&bytes, self.now_us);
            for ack in acks {
                self.outcome.acked += 1;
                self.outcome.duplicates += u64::from(ack.duplicate);
                let known = self.acked[ack.shard as usize]
                    .insert(ack.first_offset, (ack.records, ack.body_hash));
                assert_eq!(known, None, "two acked batches have one offset");
            }
            let frames = producer.send(self.now_us, &mut self.random, &mut self.outcome.sent);
            core.io_mut().peer_sends(producer.connection, &frames);
        }
        self.trim();
    }

    /// Trims a shard now and then, up to anywhere in what was acked.
    fn trim(&mut self) {
        let core = self.core.as_mut().expect("a core runs");
        let connection = self.trimmer.connection.expect("connected at the start");
        let Some(bytes) = core.io_mut().peer_takes(connection) else {
            self.trimmer.connect(core.io_mut());
            return;
        };
        self.outcome.trims += self.trimmer.take(&bytes);
        if self.random.once_in(self.history.trims) {
            let mut shard = self.random.below(u64::from(SHARDS)) as u32;
            if self.history.keeper && !self.random.once_in(50) {
                shard = shard.max(1);
            }
            let last = self.acked[shard as usize].last_key_value();
            let end = last.map_or(0, |(offset, (records, _))| offset + u64::from(*records));
            let first_kept = self.random.below(end + 1);
            let frame = self.trimmer.ask(shard, first_kept);
            core.io_mut().peer_sends(connection, &frame);
        }
    }

    fn crash(&mut self) {
        let core = self.core.take().expect("a core runs");
        self.outcome.crashes += 1;
        self.operations_before += core.io().operations();
        self.outcome.operations = self.operations_before;
        let trace = core.io().trace();
        self.outcome.trace = self.outcome.trace.rotate_left(7) ^ trace;
        let counters = std::mem::take(&mut self.counters);
        self.outcome.released += counters.segments_released;
        self.outcome.bytes_copied += counters.bytes_copied;
        self.outcome.bytes_scrubbed += counters.bytes_scrubbed;
        assert_eq!(counters.batches_damaged, 0, "nothing damages what rests");
        core.into_io().crash();
        self.producers.iter_mut().for_each(SimProducer::lose_connection);
    }

    fn connect_producers(&mut self) {
        for place in 0..self.producers.len() {
            let connection = self.core().io_mut().connect();
            self.producers[place].connection = connection;
        }
        let core = self.core.as_mut().expect("a core runs");
        self.trimmer.connect(core.io_mut());
    }

    /// Sends one frame on a connection of its own and waits for the answer.
    fn ask(&mut self, kind: FrameKind, payload: &[u8]) -> Option<(FrameHeader, Vec<u8>)> {
        let connection = self.core().io_mut().connect();
        let frame = small_frame(kind, 0, 1, payload);
        self.core().io_mut().peer_sends(connection, &frame);
        let mut received = Vec::new();
        loop {
            if !self.step() {
                return None;
            }
            received.extend(self.core().io_mut().peer_takes(connection)?);
            if let Some(header) = received.first_chunk::<FRAME_HEADER_BYTES>() {
                let header = FrameHeader::decode(header).expect("a core sends frames");
                if received.len() >= header.frame_bytes() {
                    self.core().io_mut().peer_ends(connection);
                    return Some((header, received.split_off(FRAME_HEADER_BYTES)));
                }
            }
        }
    }

    fn open_shards(&mut self) {
        for index in 0..SHARDS {
            let open = OpenExtent {
                extent: ExtentId { shard: shard_id(index), epoch: Epoch(1) },
                range: HashRange::FULL,
                first_offset: Offset(0),
                shard_created_s: 1,
                limits: None,
                retention_class: 0,
                copies: 1,
                acks: 1,
                replicas: [DiskId([0; 16]); 3],
                store_generation: 0,
            };
            // Asked again until it is answered, as a controller does.
            loop {
                let boot = self.boot;
                let answer = self.ask(FrameKind::OpenExtent, &open.encode());
                if self.boot != boot {
                    // The core that was started anew opened the rest itself.
                    return;
                }
                let Some((_, payload)) = answer else { continue };
                match ControlAnswer::decode(&payload).expect("a control answer").status {
                    Ok(()) => break,
                    Err(refusal) if refusal.code == ErrorCode::LogFailed => {}
                    // Opened before a crash, and anew after it.
                    Err(refusal) if refusal.code == ErrorCode::StaleEpoch => break,
                    Err(refusal) => panic!("{refusal}"),
                }
            }
        }
    }

    /// Reads every shard through the core and holds it against what was acked and sent.
    fn judge(&mut self) {
        for index in 0..SHARDS {
            let mut next = None;
            let mut earliest;
            let mut seen = std::collections::BTreeSet::new();
            let mut found = Acked::new();
            loop {
                let request = FetchRequest {
                    shard: shard_id(index),
                    epoch: Epoch(0),
                    from: next.map_or(FetchFrom::Earliest, |next| FetchFrom::Offset(Offset(next))),
                    bytes_max: 200_000,
                    wait_ms: 0,
                };
                let answered = self.ask(FrameKind::Fetch, &request.encode());
                // A connection may break here as well.
                let Some((header, payload)) = answered else { continue };
                let answer = FetchAnswer::decode(&payload).expect("a fetch answer");
                answer.status.expect("committed records can be read");
                earliest = answer.earliest.0;
                let mut batches: AlignedVec<16> = AlignedVec::new();
                batches.extend_from_slice(&payload[FETCH_ANSWER_BYTES..]);
                let mut at = 0;
                for _ in 0..header.items {
                    let batch =
                        Batch::check(&batches[at..], &HashRange::FULL).expect("a whole batch");
                    let at_offset = batch.header.first_offset.0;
                    // The first one read may begin before what is kept.
                    let expected = next.unwrap_or(at_offset.min(earliest));
                    assert_eq!(at_offset, expected, "offsets have no gap");
                    let (records, hash) = (batch.header.records, body_hash(batch.body()));
                    assert!(seen.insert(hash), "a batch is there twice");
                    let sent = self.producers.iter().any(|producer| producer.made.contains(&hash));
                    assert!(sent, "a batch is there that nobody sent");
                    found.insert(at_offset, (records, hash));
                    next = Some(at_offset + u64::from(records));
                    at += padded_bytes(batch.header.batch_bytes());
                }
                if header.items == 0 {
                    let end = next.unwrap_or(earliest);
                    assert_eq!(answer.committed.0, end, "everything committed was read");
                    break;
                }
            }
            let (asked, acked) = self.trimmer.bounds(index);
            assert!(acked <= earliest && earliest <= asked, "{acked} <= {earliest} <= {asked}");
            for (offset, acked) in &self.acked[index as usize] {
                if offset + u64::from(acked.0) <= earliest {
                    continue;
                }
                assert_eq!(found.get(offset), Some(acked), "shard {index} offset {offset}");
            }
        }
        self.outcome.segments = self.core().logs()[0].sealed_count() as u64;
        let files = self.disk.sizes().iter().filter(|bytes| **bytes > 0).count() as u64;
        // Free ones, the open one, and those on their way from one to the other.
        assert!(files <= self.outcome.segments + 10, "{files} files: {:?}", self.outcome);
    }
}

/// Who trims: what was asked and what was acknowledged, of each shard.
#[derive(Default)]
struct Trimmer {
    connection: Option<ConnectionId>,
    asked: [u64; SHARDS as usize],
    acked: [u64; SHARDS as usize],
    frames: BTreeMap<u64, (u32, u64)>,
    correlation: u64,
    inbox: Vec<u8>,
}

impl Trimmer {
    fn connect(&mut self, io: &mut SimIo) {
        self.frames.clear();
        self.inbox.clear();
        self.connection = Some(io.connect());
    }

    fn ask(&mut self, shard: u32, first_kept: u64) -> Vec<u8> {
        self.correlation += 1;
        self.frames.insert(self.correlation, (shard, first_kept));
        let asked = &mut self.asked[shard as usize];
        *asked = first_kept.max(*asked);
        let trim = TrimShard { shard: shard_id(shard), first_kept: Offset(first_kept) };
        small_frame(FrameKind::TrimShard, 0, self.correlation, &trim.encode())
    }

    /// Takes what the core sent; answers how many trims it acknowledged.
    fn take(&mut self, bytes: &[u8]) -> u64 {
        self.inbox.extend_from_slice(bytes);
        let mut acknowledged = 0;
        while let Some(header) = self.inbox.first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode(header).expect("a core sends frames");
            if self.inbox.len() < header.frame_bytes() {
                break;
            }
            let payload: Vec<u8> =
                self.inbox.drain(..header.frame_bytes()).skip(FRAME_HEADER_BYTES).collect();
            let answer = ControlAnswer::decode(&payload).expect("a control answer");
            let (shard, first_kept) =
                self.frames.remove(&header.correlation).expect("a trim that was sent");
            match answer.status {
                Ok(()) => {
                    assert!(answer.earliest.0 >= first_kept, "an acknowledged trim holds");
                    let acked = &mut self.acked[shard as usize];
                    *acked = first_kept.max(*acked);
                    acknowledged += 1;
                }
                Err(refusal) => assert!(
                    matches!(refusal.code, ErrorCode::LogFailed | ErrorCode::Overloaded),
                    "{refusal}"
                ),
            }
        }
        acknowledged
    }

    /// The latest offset that was asked to be kept first, and that was acknowledged.
    fn bounds(&self, shard: u32) -> (u64, u64) {
        (self.asked[shard as usize], self.acked[shard as usize])
    }
}

struct AckSeen {
    shard: u32,
    first_offset: u64,
    records: u32,
    body_hash: u64,
    duplicate: bool,
}

struct Made {
    builder: BatchBuilder,
    shard: u32,
    body_hash: u64,
}

/// A producer whose decisions are the client's.
struct SimProducer {
    number: u64,
    connection: ConnectionId,
    lanes: Vec<Lane>,
    batches: Vec<Option<Made>>,
    left: u64,
    keeper: bool,
    frames: BTreeMap<u64, Vec<u32>>,
    correlation: u64,
    inbox: Vec<u8>,
    random: SimRandom,
    made: std::collections::BTreeSet<u64>,
}

impl SimProducer {
    fn new(number: u64, history: &History, seed: u64) -> SimProducer {
        let lane = |index| {
            let id = ProducerId(number * 100 + u64::from(index));
            Lane::new(shard_id(index), HashRange::FULL, Epoch(1), id, true)
        };
        SimProducer {
            number,
            connection: ConnectionId(0),
            lanes: (0..SHARDS).map(lane).collect(),
            batches: Vec::new(),
            left: history.batches,
            keeper: history.keeper,
            frames: BTreeMap::new(),
            correlation: 0,
            inbox: Vec::new(),
            random: SimRandom::new(seed),
            made: Default::default(),
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0 && self.lanes.iter().all(Lane::is_empty)
    }

    fn lose_connection(&mut self) {
        self.frames.clear();
        self.inbox.clear();
        self.lanes.iter_mut().for_each(Lane::on_connection_lost);
    }

    fn make(&mut self) -> u32 {
        let mut shard = self.random.below(u64::from(SHARDS)) as u32;
        if self.keeper && !self.random.once_in(4) {
            shard = shard.max(1);
        }
        // Small ones are gathered; large ones are written from where they were received.
        let large = self.random.once_in(6);
        let records = 1 + self.random.below(if large { 3 } else { 8 }) as u32;
        let record_bytes = if large { 30_000 } else { 1 + self.random.below(2000) as u32 };
        let room = BatchRoom {
            records,
            key_bytes: records * 3,
            data_bytes: records * (record_bytes + 16),
        };
        let mut builder = BatchBuilder::new(room);
        for _ in 0..records {
            let mut data = vec![self.random.any() as u8; record_bytes as usize];
            data.extend(self.number.to_le_bytes());
            data.extend(self.left.to_le_bytes());
            let hash_key = HashKey(u128::from(self.random.any()));
            builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"key", data: &data });
        }
        self.left -= 1;
        let body_hash = body_hash(builder.close());
        self.made.insert(body_hash);
        self.batches.push(Some(Made { builder, shard, body_hash }));
        self.batches.len() as u32 - 1
    }

    /// Frames to send now.
    fn send(&mut self, now_us: u64, chance: &mut SimRandom, sent: &mut u64) -> Vec<u8> {
        while self.left > 0 && chance.once_in(3) {
            let full: Vec<bool> = self.lanes.iter().map(Lane::is_full).collect();
            if full.iter().any(|full| *full) {
                break;
            }
            let batch = self.make();
            let shard = self.batches[batch as usize].as_ref().expect("just made").shard;
            self.lanes[shard as usize].push(batch);
            *sent += 1;
        }
        let mut frames = Vec::new();
        let mut group: Vec<(u32, Vec<u8>)> = Vec::new();
        for lane in &mut self.lanes {
            while let Some((batch, sequence)) = lane.next_to_send(now_us) {
                let identity = BatchIdentity {
                    shard: lane.shard,
                    epoch: lane.epoch,
                    producer: lane.producer,
                    sequence,
                    request_id: 0,
                };
                let made = self.batches[batch as usize].as_mut().expect("not yet answered");
                let mut bytes = made.builder.finish(&identity).to_vec();
                bytes.resize(padded_bytes(bytes.len()), 0);
                group.push((batch, bytes));
                if chance.once_in(2) {
                    frames.extend(frame(&mut self.frames, &mut self.correlation, &mut group));
                }
            }
        }
        frames.extend(frame(&mut self.frames, &mut self.correlation, &mut group));
        frames
    }

    /// Takes what the core sent; answers the acks in it.
    fn take(&mut self, bytes: &[u8], now_us: u64) -> Vec<AckSeen> {
        self.inbox.extend_from_slice(bytes);
        let mut seen = Vec::new();
        while let Some(header) = self.inbox.first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode(header).expect("a core sends frames");
            if self.inbox.len() < header.frame_bytes() {
                break;
            }
            let payload: Vec<u8> =
                self.inbox.drain(..header.frame_bytes()).skip(FRAME_HEADER_BYTES).collect();
            assert_eq!(header.kind, FrameKind::ProduceAnswer, "a producer did nothing wrong");
            let batches = self.frames.remove(&header.correlation).expect("a frame that was sent");
            let acks = decode_acks(&payload, header.items).expect("acks");
            for (batch, ack) in batches.iter().zip(acks) {
                let made = self.batches[*batch as usize].as_ref().expect("answered once");
                self.lanes[made.shard as usize].on_ack(*batch, &ack.expect("an ack"), now_us);
            }
            for lane in 0..self.lanes.len() {
                while let Some(left) = self.lanes[lane].take_done() {
                    seen.push(self.finish(left.batch, left.result));
                }
            }
        }
        seen
    }

    fn finish(
        &mut self,
        batch: u32,
        result: Result<thalweg_wire::produce::Stored, thalweg_wire::error::Refusal>,
    ) -> AckSeen {
        let made = self.batches[batch as usize].take().expect("answered once");
        let stored = result.expect("nothing is refused for good in these histories");
        AckSeen {
            shard: made.shard,
            first_offset: stored.first_offset.0,
            records: made.builder.records(),
            body_hash: made.body_hash,
            duplicate: stored.duplicate,
        }
    }
}

fn frame(
    frames: &mut BTreeMap<u64, Vec<u32>>,
    correlation: &mut u64,
    group: &mut Vec<(u32, Vec<u8>)>,
) -> Vec<u8> {
    if group.is_empty() {
        return Vec::new();
    }
    *correlation += 1;
    let items = group.len() as u32;
    let payload: Vec<u8> = group.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    frames.insert(*correlation, group.drain(..).map(|(batch, _)| batch).collect());
    small_frame(FrameKind::Produce, items, *correlation, &payload)
}
