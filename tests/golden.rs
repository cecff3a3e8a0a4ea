//! A data directory of each format version, made from docs/format.md alone, is read and continued.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;

use support::{PATIENCE, directory, first_ack, produce_frame};
use thalweg_client::{Admin, Reader, ReaderConfig};
use thalweg_node::{Node, NodeConfig, StartError};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::control::ExtentState;
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{Epoch, Offset, ProducerId, ShardId, StreamId};
use thalweg_wire::produce::padded_bytes;

const SEGMENT_BYTES: u64 = 16 << 20;
const SHARD: ShardId = ShardId { stream: StreamId(7), index: 3 };
const FIRST_BATCH: &[u8] = include_bytes!("../wire/golden/batch-v1.bin");
const DISK: &[u8] = include_bytes!("../node/golden/disk-v1.bin");
const SEGMENT_1_FRONT: &[u8] = include_bytes!("../node/golden/segment-1-front-v1.bin");
const SEGMENT_1_BACK: &[u8] = include_bytes!("../node/golden/segment-1-back-v1.bin");
const SEGMENT_2_FRONT: &[u8] = include_bytes!("../node/golden/segment-2-front-v1.bin");

const RELEASED_FRONT: &[u8] = include_bytes!("../node/golden/segment-2-released-front-v1.bin");
const MERGED_FRONT: &[u8] = include_bytes!("../node/golden/segment-2-merged-front-v1.bin");
const SEGMENT_3_FRONT: &[u8] = include_bytes!("../node/golden/segment-3-front-v1.bin");
const SEGMENT_3_BACK: &[u8] = include_bytes!("../node/golden/segment-3-back-v1.bin");

const DELETED_FRONT: &[u8] = include_bytes!("../node/golden/segment-2-deleted-front-v1.bin");

const ARCHIVED_FRONT: &[u8] = include_bytes!("../node/golden/segment-2-archived-front-v1.bin");
const ARCHIVE_FRONT: &[u8] = include_bytes!("../node/golden/segment-3-archive-front-v1.bin");
const ARCHIVE_BACK: &[u8] = include_bytes!("../node/golden/segment-3-archive-back-v1.bin");

fn write_segment(path: &Path, front: &[u8], back: &[u8]) {
    let file = std::fs::File::create(path).expect("a new file");
    file.set_len(SEGMENT_BYTES).expect("space for a segment");
    file.write_all_at(front, 0).expect("it can be written");
    let back_at = SEGMENT_BYTES - back.len() as u64;
    file.write_all_at(back, back_at).expect("it can be written");
}

fn start(dir: &Path) -> Node {
    try_start(dir).expect("a directory of this format is read")
}

fn try_start(dir: &Path) -> Result<Node, StartError> {
    let config = NodeConfig {
        data_dirs: vec![dir.to_path_buf()],
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        cores: 1,
        memory_bytes: 64 << 20,
        segment_bytes: SEGMENT_BYTES,
        prefill_bytes: 0,
        ..NodeConfig::default()
    };
    Node::start(config)
}

fn batches(node: &Node) -> Vec<Vec<u8>> {
    let config = ReaderConfig::new(node.addresses()[0], SHARD.stream);
    let mut batches = Vec::new();
    let read = Reader::connect(config).expect("it serves").read_all(|_, batch| {
        batches.push([&batch.header.encode()[..], batch.body()].concat());
    });
    read.expect("everything can be read");
    batches
}

/// The second batch as its producer sent it, under the epoch of now.
fn second_batch_again(epoch: Epoch) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchRoom { records: 2, key_bytes: 10, data_bytes: 10 });
    for (at, key) in [b"key-0", b"key-1"].into_iter().enumerate() {
        let data = vec![at as u8; at];
        let hash_key = HashKey::of_partition_key(key);
        builder.push(&NewRecord { hash_key, client_time_ms: 100 + at as u64, key, data: &data });
    }
    let identity = BatchIdentity {
        shard: SHARD,
        epoch,
        producer: ProducerId(11),
        sequence: 14,
        request_id: 17,
    };
    let mut bytes = builder.finish(&identity).to_vec();
    bytes.resize(padded_bytes(bytes.len()), 0);
    bytes
}

fn data_directory(segments: &[(&[u8], &[u8])]) -> tempfile::TempDir {
    let data = directory();
    let log = data.path().join("log-000");
    std::fs::create_dir(&log).expect("a new directory");
    std::fs::write(data.path().join("disk"), DISK).expect("it can be written");
    for (place, (front, back)) in segments.iter().enumerate() {
        write_segment(&log.join(format!("segment-{place:08}")), front, back);
    }
    data
}

/// Earliest and committed offset of the one shard.
fn bounds(node: &Node) -> (Offset, Offset) {
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let shard = admin.describe(SHARD.stream).expect("it answers")[0];
    (shard.earliest, shard.committed)
}

#[test]
fn a_released_segment_does_not_count() {
    let segments = [(SEGMENT_1_FRONT, SEGMENT_1_BACK), (RELEASED_FRONT, &[][..])];
    let data = data_directory(&segments);
    for _ in 0..2 {
        let node = start(data.path());
        assert_eq!(bounds(&node), (Offset(46), Offset(48)));
        assert_eq!(batches(&node).len(), 1);
        node.stop();
    }
}

#[test]
fn a_merged_segment_counts_in_the_place_of_others() {
    let segments = [
        (SEGMENT_1_FRONT, SEGMENT_1_BACK),
        (MERGED_FRONT, &[][..]),
        (SEGMENT_3_FRONT, SEGMENT_3_BACK),
    ];
    // The second time its footer is damaged: it is made anew from the segment's frames.
    for back in [SEGMENT_3_BACK, &[][..]] {
        let segments = [segments[0], segments[1], (SEGMENT_3_FRONT, back)];
        let data = data_directory(&segments);
        for _ in 0..2 {
            let node = start(data.path());
            assert_eq!(bounds(&node), (Offset(43), Offset(48)));
            let batches = batches(&node);
            assert_eq!((batches.len(), &batches[0][..]), (2, FIRST_BATCH));
            node.stop();
        }
    }
}

#[test]
fn an_archive_has_the_extents_that_a_snapshot_leaves_to_it() {
    let segments = [
        (SEGMENT_1_FRONT, SEGMENT_1_BACK),
        (ARCHIVED_FRONT, &[][..]),
        (ARCHIVE_FRONT, ARCHIVE_BACK),
    ];
    // The second time its trailer is damaged: it is made anew from the segment's frames.
    for back in [ARCHIVE_BACK, &[][..]] {
        let segments = [segments[0], segments[1], (ARCHIVE_FRONT, back)];
        let data = data_directory(&segments);
        for _ in 0..2 {
            let node = start(data.path());
            assert_eq!(bounds(&node), (Offset(43), Offset(46)));
            assert_eq!(batches(&node), [FIRST_BATCH]);
            node.stop();
        }
    }
    // Without it nothing is known of what the first segment has.
    let data = data_directory(&segments[..2]);
    let error = try_start(data.path()).err().expect("an archive is missing").to_string();
    assert!(error.contains("segment 3 of the log is missing"), "{error}");
}

#[test]
fn a_deleted_shard_is_no_more() {
    let segments = [(SEGMENT_1_FRONT, SEGMENT_1_BACK), (DELETED_FRONT, &[][..])];
    let data = data_directory(&segments);
    for _ in 0..2 {
        let node = start(data.path());
        let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
        assert_eq!(admin.hello().expect("it answers").shards, 0);
        assert!(admin.describe(SHARD.stream).expect("it answers").is_empty());
        node.stop();
    }
}

#[test]
fn a_directory_of_version_1_is_read_and_continued() {
    let segments = [(SEGMENT_1_FRONT, SEGMENT_1_BACK), (SEGMENT_2_FRONT, &[][..])];
    let data = data_directory(&segments);

    // Twice: the second time, what the first wrote behind it is read, too.
    for epoch in [6, 7] {
        let node = start(data.path());
        let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
        let shard = admin.describe(SHARD.stream).expect("it answers")[0];
        assert_eq!(shard.extent.shard, SHARD);
        assert_eq!((shard.earliest, shard.committed), (Offset(43), Offset(48)));
        assert_eq!(shard.extent.epoch, Epoch(epoch), "the golden extent is of epoch 5");
        assert_eq!(shard.state, ExtentState::Open);
        let batches = batches(&node);
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[0], FIRST_BATCH, "stored bytes are served unchanged");

        // Its producer is remembered: what it sends again is told where it stands.
        let mut stream = TcpStream::connect(node.addresses()[0]).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let frame = produce_frame(1, &second_batch_again(Epoch(epoch)));
        stream.write_all(&frame).expect("it is connected");
        let stored = first_ack(&mut stream).result.expect("a repetition is acked");
        assert!(stored.duplicate);
        let stands = (stored.first_offset, stored.append_time_ms);
        assert_eq!(stands, (Offset(46), 1_700_000_000_005));
        node.stop();
    }
}
