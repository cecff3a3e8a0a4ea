//! Space comes back: what is trimmed or has aged leaves the disk, what is kept stays, and what is
//! damaged there is found.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::{PATIENCE, STREAM, append_sized, directory, open, wait_for};
use thalweg_client::{Admin, ClientError, Reader, ReaderConfig};
use thalweg_node::{Node, NodeConfig};
use thalweg_wire::control::{FenceExtent, OpenExtent, SealExtent, ShardDescription, TrimShard};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId};

const SEGMENT_BYTES: u64 = 16 << 20;
const SHARDS: u32 = 8;

fn start(dir: &Path, change: impl FnOnce(&mut NodeConfig)) -> Node {
    let mut config = NodeConfig {
        data_dirs: vec![dir.to_path_buf()],
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        cores: 1,
        memory_bytes: 96 << 20,
        segment_bytes: SEGMENT_BYTES,
        prefill_bytes: 0,
        ..NodeConfig::default()
    };
    change(&mut config);
    Node::start(config).expect("the node starts")
}

fn admin(node: &Node) -> Admin {
    Admin::connect(node.addresses()[0], PATIENCE).expect("it serves")
}

fn open_shards(node: &Node) {
    for index in 0..SHARDS {
        admin(node).open_extent(&open(index, SHARDS, None)).expect("a new shard can be opened");
    }
}

/// Appends 8 KiB records, numbered from `from` on: 128 a MiB.
fn append(node: &Node, from: u64, mib: u64) -> u64 {
    append_sized(node.addresses()[0], from, mib * 128, 8 << 10);
    from + mib * 128
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir.join("log-000")).expect("a log's directory");
    let mut paths: Vec<_> = files.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn bounds(node: &Node) -> Vec<(Offset, Offset)> {
    let shards = admin(node).describe(STREAM).expect("it answers");
    shards.iter().map(|shard| (shard.earliest, shard.committed)).collect()
}

fn trim(node: &Node, shard: usize, first_kept: Offset) {
    let shard = ShardId { stream: STREAM, index: shard as u32 };
    admin(node).trim_shard(&TrimShard { shard, first_kept }).expect("a trim is durable");
}

fn numbers(node: &Node) -> Result<BTreeSet<u64>, ClientError> {
    let mut reader = Reader::connect(ReaderConfig::new(node.addresses()[0], STREAM))?;
    let mut numbers = BTreeSet::new();
    reader.read_all(|_, batch| {
        for record in batch.records() {
            let number = record.data[..8].try_into().expect("8 bytes");
            assert!(numbers.insert(u64::from_le_bytes(number)), "a record is there twice");
        }
    })?;
    Ok(numbers)
}

#[test]
fn what_is_trimmed_gives_its_files_back() {
    let dir = directory();
    let node = start(dir.path(), |_| {});
    open_shards(&node);
    let mut next = 0;
    for _ in 0..16 {
        next = append(&node, next, 16);
        for (shard, (_, committed)) in bounds(&node).into_iter().enumerate() {
            trim(&node, shard, committed);
        }
    }
    // 256 MiB went through 16 files of 16 MiB and more.
    assert!(segments(dir.path()).len() < 12, "{:?}", segments(dir.path()));
    assert!(node.counters().segments_released >= 10, "{:?}", node.counters());
    let first_kept = next;
    next = append(&node, next, 4);
    node.stop();
    let node = start(dir.path(), |_| {});
    let kept = numbers(&node).expect("what is kept can be read");
    assert!(kept.is_superset(&(first_kept..next).collect()));
}

#[test]
fn what_stays_behind_is_copied_forward() {
    let dir = directory();
    let node = start(dir.path(), |config| config.merge_after_s = 1);
    open_shards(&node);
    // Of eight shards one is never trimmed: it keeps an eighth of each segment.
    let mut next = 0;
    for _ in 0..6 {
        next = append(&node, next, 14);
        for (shard, (_, committed)) in bounds(&node).into_iter().enumerate().skip(1) {
            trim(&node, shard, committed);
        }
    }
    wait_for("a merge", || node.counters().bytes_copied > 0);
    let before = numbers(&node).expect("what is kept can be read");
    let last = bounds(&node);
    node.stop();
    let node = start(dir.path(), |_| {});
    assert_eq!(numbers(&node).expect("what is kept can be read"), before);
    assert_eq!(bounds(&node), last);
}

#[test]
fn what_has_aged_leaves() {
    let dir = directory();
    let node = start(dir.path(), |config| config.retention_s = vec![1]);
    open_shards(&node);
    append(&node, 0, 40);
    wait_for("the end of the first records", || {
        bounds(&node).iter().all(|(earliest, committed)| earliest == committed)
    });
    wait_for("the release of their segments", || node.counters().segments_released >= 3);
    let next = append(&node, 10_000, 1);
    assert_eq!(numbers(&node).expect("it can be read"), (10_000..next).collect());
}

/// What is kept for long lies in segments of its own: nothing of it has to be copied for the space
/// of the others to come back.
#[test]
fn what_has_aged_leaves_and_nothing_of_another_class_is_copied() {
    let dir = directory();
    let change = |config: &mut NodeConfig| {
        config.retention_s = vec![1, 0];
        config.merge_after_s = 0;
    };
    let node = start(dir.path(), change);
    for index in 0..SHARDS {
        let retention_class = u8::from(index == 0);
        let open = OpenExtent { retention_class, ..open(index, SHARDS, None) };
        admin(&node).open_extent(&open).expect("a new shard can be opened");
    }
    append(&node, 0, 48);
    wait_for("the end of the records of class 0", || {
        bounds(&node).iter().skip(1).all(|(earliest, committed)| earliest == committed)
    });
    wait_for("the release of their segments", || node.counters().segments_released >= 2);
    let kept = numbers(&node).expect("what is kept can be read");
    assert_eq!(bounds(&node)[0].0, Offset(0));
    assert!(kept.len() > 500, "an eighth of 6144: {}", kept.len());
    assert_eq!(node.counters().bytes_copied, 0);
    node.stop();
    let node = start(dir.path(), change);
    assert_eq!(numbers(&node).expect("what is kept can be read"), kept);
}

/// Of a shard whose records are to be kept for longer from now on, those before have no gap to
/// those after, and a trim takes both.
#[test]
fn a_shard_goes_on_in_another_class() {
    let dir = directory();
    let node = start(dir.path(), |_| {});
    open_shards(&node);
    let next = append(&node, 0, 24);
    let extents = admin(&node).describe(STREAM).expect("it answers");
    for (index, ShardDescription { extent, committed, .. }) in (0..).zip(extents) {
        let recovery_epoch = Epoch(extent.epoch.0 + 1);
        let mut admin = admin(&node);
        admin.fence_extent(&FenceExtent { extent, recovery_epoch }).expect("it is fenced");
        let seal = SealExtent { extent, recovery_epoch, end: committed };
        admin.seal_extent(&seal).expect("it is sealed where it was fenced");
        let next = OpenExtent {
            extent: ExtentId { epoch: recovery_epoch, ..extent },
            first_offset: committed,
            retention_class: 1 + (index % 2) as u8,
            ..open(index, SHARDS, None)
        };
        admin.open_extent(&next).expect("the next extent can be opened");
    }
    let next = append(&node, next, 24);
    assert_eq!(numbers(&node).expect("it can be read"), (0..next).collect());
    node.stop();
    let node = start(dir.path(), |_| {});
    assert_eq!(numbers(&node).expect("it can be read"), (0..next).collect());
    for (shard, (_, committed)) in bounds(&node).into_iter().enumerate() {
        trim(&node, shard, committed);
    }
    wait_for("the release of all three logs", || node.counters().segments_released >= 3);
    node.stop();
    let node = start(dir.path(), |_| {});
    assert_eq!(numbers(&node).expect("it can be read"), BTreeSet::new());
    append(&node, next, 4);
}

#[test]
fn a_scrub_finds_what_is_damaged_and_readers_are_refused_it() {
    let dir = directory();
    let node = start(dir.path(), |config| {
        config.scrub_period_s = 1;
        config.scrub_bytes_per_s = 1 << 30;
    });
    open_shards(&node);
    append(&node, 0, 40);
    wait_for("a first pass", || node.counters().bytes_scrubbed > 30 << 20);
    assert_eq!(node.counters().batches_damaged, 0);
    // In the middle of the records of the first segment.
    let path = &segments(dir.path())[0];
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("a segment");
    let (mut byte, at) = ([0], SEGMENT_BYTES / 2 + 1000);
    file.read_exact_at(&mut byte, at).expect("it can be read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("it can be written");
    file.sync_all().expect("it can be synced");
    wait_for("the finding", || node.counters().batches_damaged > 0);
    node.stop();
    // With nothing of it in memory.
    let node = start(dir.path(), |config| config.scrub_period_s = 0);
    match numbers(&node) {
        Err(ClientError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::Corrupt),
        other => panic!("damaged records were served, or something else happened: {other:?}"),
    }
    append(&node, 20_000, 1);
}
