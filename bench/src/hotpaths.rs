//! The paths that every record takes, each alone: for criterion, which times them, and for the
//! instruction counts that guard them in CI.

use std::sync::Arc;

use rkyv::util::AlignedVec;
use thalweg_node::core::bucket::TokenBucket;
use thalweg_node::core::fairness::IN_FLIGHT_BYTES;
use thalweg_node::core::machine::{Core, CoreMessage, CoreRequest, CoreSettings, Time};
use thalweg_node::core::shard::Placement;
use thalweg_node::io::noop::NoopIo;
use thalweg_node::io::{Completion, ConnectionId, FileId, Io, Wait};
use thalweg_node::log::index::{Location, SegmentIndex, Target};
use thalweg_node::log::segments::{FreeSegment, Log, LogIdentity, LogState};
use thalweg_wire::batch::Batch;
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::control::{OpenExtent, ShardLimits};
use thalweg_wire::frame::{FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{
    BootId, DiskId, Epoch, ExtentId, Lsn, Offset, ProducerId, ShardId, StreamId,
};
use thalweg_wire::produce::padded_bytes;

use crate::front_door::put_records;
use crate::kinesis::encode::Encoding;

const SHARD: ShardId = ShardId { stream: StreamId(1), index: 0 };
const SEGMENT_BYTES: u64 = 256 << 20;

/// A path, ready to be taken again and again.
pub struct HotPath {
    /// Its name in baselines.
    pub name: &'static str,
    /// Makes the path; what it answers takes it once.
    pub make: fn() -> Box<dyn FnMut() -> u64>,
}

/// All of them.
pub const HOT_PATHS: &[HotPath] = &[
    HotPath { name: "batch_build_1000x100", make: batch_build },
    HotPath { name: "batch_check_1000x100", make: batch_check },
    HotPath { name: "crc32c_512k", make: crc_512k },
    HotPath { name: "frame_header_decode", make: frame_decode },
    HotPath { name: "token_bucket_take", make: bucket_take },
    HotPath { name: "index_find_in_65536", make: index_find },
    HotPath { name: "core_batch_10x100", make: || core_path(10, 100) },
    HotPath { name: "core_batch_1000x100", make: || core_path(1000, 100) },
    HotPath { name: "router_put_records_500x1024_json", make: || put_records(Encoding::Json) },
    HotPath { name: "router_put_records_500x1024_cbor", make: || put_records(Encoding::Cbor) },
];

fn identity(sequence: u64) -> BatchIdentity {
    BatchIdentity {
        shard: SHARD,
        epoch: Epoch(1),
        producer: ProducerId(1),
        sequence,
        request_id: 0,
    }
}

fn fill(builder: &mut BatchBuilder, records: u32, data: &[u8]) {
    for number in 0..u128::from(records) {
        let hash_key = HashKey(number << 64);
        builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"key-0000001", data });
    }
}

fn room(records: u32, record_bytes: u32) -> BatchRoom {
    BatchRoom { records, key_bytes: records * 11, data_bytes: records * record_bytes }
}

fn batch_build() -> Box<dyn FnMut() -> u64> {
    let mut builder = BatchBuilder::new(room(1000, 100));
    Box::new(move || {
        builder.clear();
        fill(&mut builder, 1000, &[7; 100]);
        builder.finish(&identity(0)).len() as u64
    })
}

fn batch_check() -> Box<dyn FnMut() -> u64> {
    let mut builder = BatchBuilder::new(room(1000, 100));
    fill(&mut builder, 1000, &[7; 100]);
    let mut bytes: AlignedVec<16> = AlignedVec::new();
    bytes.extend_from_slice(builder.finish(&identity(0)));
    Box::new(move || {
        let batch = Batch::check(&bytes, &HashRange::FULL).expect("a valid batch");
        batch.charged_bytes()
    })
}

fn crc_512k() -> Box<dyn FnMut() -> u64> {
    let bytes = vec![7; 512 << 10];
    Box::new(move || u64::from(crc32c(&bytes)))
}

fn frame_decode() -> Box<dyn FnMut() -> u64> {
    let kind = FrameKind::Produce;
    let header = FrameHeader { kind, payload_bytes: 4096, items: 1, correlation: 1 }.encode();
    Box::new(move || {
        let header = FrameHeader::decode(&header).expect("a valid header");
        u64::from(header.payload_bytes)
    })
}

fn bucket_take() -> Box<dyn FnMut() -> u64> {
    let mut bucket = TokenBucket::full(ShardLimits::KINESIS.bytes, 0);
    let mut now_us = 0;
    Box::new(move || {
        now_us += 1000;
        let wait_us = bucket.wait_us(1000, now_us);
        if wait_us == 0 {
            bucket.take(1000);
        }
        wait_us
    })
}

fn index_find() -> Box<dyn FnMut() -> u64> {
    let mut index = SegmentIndex::new(1 << 16);
    for at in 0..1_u64 << 16 {
        let location = Location {
            first_offset: Offset(at),
            records: 1,
            batch_bytes: 100,
            lsn: Lsn(at * 192),
            append_time_ms: at,
        };
        index.push(0, location);
    }
    let mut offset = 0;
    Box::new(move || {
        offset = (offset + 40_503) % (1 << 16);
        let found = index.from(0, Target::Offset(Offset(offset))).next();
        found.expect("every offset is there").lsn.0
    })
}

/// A core on the device that does nothing: one batch from frame to ack.
fn core_path(records: u32, record_bytes: u32) -> Box<dyn FnMut() -> u64> {
    let mut core = NoopCore::new(records, record_bytes);
    Box::new(move || core.append_one())
}

/// A core with one shard on a device that does nothing.
pub struct NoopCore {
    core: Core<NoopIo>,
    connection: ConnectionId,
    completions: Vec<Completion>,
    builder: BatchBuilder,
    frame: Vec<u8>,
    sequence: u64,
    now_us: u64,
    files: u32,
}

impl NoopCore {
    /// A core with its shard open.
    #[must_use]
    pub fn new(records: u32, record_bytes: u32) -> NoopCore {
        let disk = DiskId([1; 16]);
        let identity = LogIdentity {
            index: 0,
            disk,
            log: 0,
            retention_class: 0,
            segment_bytes: SEGMENT_BYTES,
            boot: BootId(1),
        };
        let mut log = Log::new(identity, LogState::empty(0));
        log.add_free(FreeSegment { file: FileId(0) });
        let settings = CoreSettings {
            core: 0,
            ports: vec![1],
            disks: vec![disk],
            boot: BootId(1),
            min_frame_bytes_per_s: 1,
            connections_max: 8,
            in_flight_bytes: IN_FLIGHT_BYTES,
            free_segments_min: 2,
            free_segments_max: 3,
            retention_ms: Default::default(),
            merge_after_us: 60_000_000,
            archive_records_min: usize::MAX,
            scrub_period_us: None,
        };
        let placement = Arc::new(Placement::default());
        let io = NoopIo::instant(64 << 20);
        let mut core = Core::new(io, settings, placement, vec![log], Time::default());
        let connection = core.io_mut().connect();
        let mut builder = BatchBuilder::new(room(records, record_bytes));
        fill(&mut builder, records, &vec![7; record_bytes as usize]);
        let mut noop = NoopCore {
            core,
            connection,
            completions: Vec::new(),
            builder,
            frame: Vec::new(),
            sequence: 0,
            now_us: 0,
            files: 1,
        };
        noop.open_shard();
        noop
    }

    fn open_shard(&mut self) {
        let open = OpenExtent::alone(
            ExtentId { shard: SHARD, epoch: Epoch(1) },
            HashRange::FULL,
            Offset(0),
        );
        let frame = small_frame(FrameKind::OpenExtent, 0, 1, &open.encode());
        self.exchange(&frame);
    }

    /// Sends one batch; answers when it is acked, with the count of batches so far.
    pub fn append_one(&mut self) -> u64 {
        let batch = self.builder.finish(&identity(self.sequence));
        let payload_bytes = padded_bytes(batch.len());
        let header = FrameHeader {
            kind: FrameKind::Produce,
            payload_bytes: payload_bytes as u32,
            items: 1,
            correlation: self.sequence,
        };
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend_from_slice(&header.encode());
        frame.extend_from_slice(batch);
        frame.resize(header.frame_bytes(), 0);
        self.exchange(&frame);
        self.frame = frame;
        self.sequence += 1;
        self.core.counters().batches_appended
    }

    fn exchange(&mut self, frame: &[u8]) {
        let before = self.core.io().sent_bytes();
        self.core.io_mut().feed(self.connection, frame);
        while self.core.io().sent_bytes() == before {
            self.now_us += 10;
            let time = Time { now_us: self.now_us, wall_ms: self.now_us / 1000 };
            self.core.turn(time, &mut self.completions);
            for request in self.core.take_requests() {
                let CoreRequest::FillSegment { log } = request else { continue };
                let segment = FreeSegment { file: FileId(self.files) };
                self.files += 1;
                self.core.tell(CoreMessage::SegmentReady { log, segment });
            }
            let polled = self.core.io_mut().poll(&mut self.completions, Wait::No);
            polled.expect("the device does nothing, and that works");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_can_be_taken() {
        for path in HOT_PATHS {
            let mut take = (path.make)();
            (0..3).for_each(|_| {
                take();
            });
        }
    }

    #[test]
    fn a_core_on_the_noop_device_acks_every_batch() {
        let mut core = NoopCore::new(10, 100);
        for batch in 1..=100 {
            assert_eq!(core.append_one(), batch);
        }
        assert_eq!(core.core.counters().refusals, 0);
    }
}
