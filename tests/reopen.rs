//! What a restart keeps, whatever else changes with it: shards on another count of cores and on two
//! disks, what is known of producers, ends, trims; and the batching producer over all of it.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{
    PATIENCE, STREAM, append, append_to, directory, open, produce_frame, receive, wait_for,
};
use thalweg_client::{Admin, ClientError, Reader, ReaderConfig};
use thalweg_node::{Node, NodeConfig};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::control::{
    ControlAnswer, DeleteShard, FenceExtent, OpenExtent, SealExtent, TrimShard,
};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::frame::{FrameKind, small_frame};
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ProducerId, ShardId, StreamId};
use thalweg_wire::produce::padded_bytes;

const SHARDS: u32 = 5;

fn start(disks: &[std::path::PathBuf], cores: usize) -> Node {
    let config = NodeConfig {
        data_dirs: disks.to_vec(),
        listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        cores,
        memory_bytes: 240 << 20,
        segment_bytes: 16 << 20,
        prefill_bytes: 0,
        ..NodeConfig::default()
    };
    Node::start(config).expect("the node starts")
}

/// Numbers of all records, sorted.
fn read(node: &Node) -> Vec<u64> {
    read_of(node, STREAM)
}

/// The same of another stream.
fn read_of(node: &Node, stream: StreamId) -> Vec<u64> {
    let mut reader =
        Reader::connect(ReaderConfig::new(node.addresses()[0], stream)).expect("serves");
    let mut numbers = Vec::new();
    let all = reader.read_all(|_, batch| {
        for record in batch.records() {
            assert_eq!(record.hash_key, HashKey::of_partition_key(record.key));
            numbers.push(u64::from_le_bytes(record.data.try_into().expect("8 bytes")));
        }
    });
    all.expect("everything can be read, without a gap");
    numbers.sort_unstable();
    numbers
}

#[test]
fn shards_live_on_with_other_cores_and_two_disks() {
    let data = directory();
    let disks = [data.path().join("one"), data.path().join("two")];
    let node = start(&disks, 2);
    for index in 0..SHARDS {
        let core = index as usize % 2;
        let mut admin = Admin::connect(node.addresses()[core], PATIENCE).expect("serves");
        // Named disks are used in turn; unnamed, the core chooses.
        let mut command = open(index, SHARDS, None);
        if index < 4 {
            command.replicas[0] = node.disks()[index as usize / 2];
        }
        admin.open_extent(&command).expect("a new shard can be opened");
        let elsewhere = (core + 1) % 2;
        let mut other = Admin::connect(node.addresses()[elsewhere], PATIENCE).expect("serves");
        let refused = other.open_extent(&command).expect_err("a shard has one core");
        let port = u64::from(node.addresses()[core].port());
        assert!(
            matches!(refused, ClientError::Refused(why)
                if why.code == ErrorCode::WrongCore && why.hint == port),
            "{refused}"
        );
    }
    append(node.addresses()[0], 0, 3000);
    assert_eq!(read(&node), (0..3000).collect::<Vec<u64>>());
    node.stop();
    let mut records = 3000;
    for cores in [1, 3, 2] {
        let node = start(&disks, cores);
        assert_eq!(read(&node), (0..records).collect::<Vec<u64>>(), "{cores} cores");
        append(node.addresses()[0], records, 500);
        records += 500;
        assert_eq!(read(&node), (0..records).collect::<Vec<u64>>(), "{cores} cores");
        node.stop();
    }
}

#[test]
fn fences_seals_and_trims_survive() {
    let data = directory();
    let disks = [data.path().join("one")];
    let node = start(&disks, 1);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("serves");
    let command = open(0, 1, None);
    admin.open_extent(&command).expect("a new shard can be opened");
    append(node.addresses()[0], 0, 1000);
    let extent = command.extent;
    let trim = TrimShard { shard: extent.shard, first_kept: Offset(1) };
    admin.trim_shard(&trim).expect("committed records can be trimmed");
    let fence = FenceExtent { extent, recovery_epoch: Epoch(3) };
    let end = admin.fence_extent(&fence).expect("an extent can be fenced").end;
    assert_eq!(end, Offset(1000));
    let older = FenceExtent { extent, recovery_epoch: Epoch(2) };
    assert_eq!(code(admin.fence_extent(&older).expect_err("older")), ErrorCode::StaleRecovery);
    node.stop();

    // A fence is a controller's: a node that starts again leaves the extent as it is.
    let node = start(&disks, 1);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("serves");
    assert_eq!(code(admin.fence_extent(&older).expect_err("older")), ErrorCode::StaleRecovery);
    let beyond = SealExtent { extent, recovery_epoch: Epoch(3), end: Offset(1001) };
    assert_eq!(code(admin.seal_extent(&beyond).expect_err("beyond")), ErrorCode::BeyondEnd);
    let seal = SealExtent { end, ..beyond };
    admin.seal_extent(&seal).expect("a fenced extent can be sealed");
    admin.seal_extent(&seal).expect("asked again, it is answered as before");
    let mut next = command;
    next.extent.epoch = Epoch(4);
    assert_eq!(code(admin.open_extent(&next).expect_err("a hole")), ErrorCode::Conflict);
    next.first_offset = end;
    admin.open_extent(&next).expect("the next extent begins where this one ended");
    append(node.addresses()[0], 1000, 200);
    node.stop();

    let node = start(&disks, 1);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("serves");
    let shard = admin.describe(STREAM).expect("it answers")[0];
    assert_eq!((shard.earliest, shard.committed), (Offset(1), Offset(1200)));
    assert_eq!(shard.extent.epoch, Epoch(5), "the open extent was sealed and opened anew");
    let numbers = read(&node);
    assert_eq!(numbers.last(), Some(&1199));
    assert!(numbers.len() >= 1199, "what was trimmed may come along with its batch");
}

fn code(error: ClientError) -> ErrorCode {
    match error {
        ClientError::Refused(why) => why.code,
        other => panic!("{other}"),
    }
}

/// What core 0 of a node says of itself: its shards, and how many more it has room for.
fn shards_and_room(node: &Node) -> (u32, u32) {
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let description = admin.hello().expect("it answers");
    (description.shards, description.room_shards)
}

/// Extents without a limit filled every segment with their own snapshot, and the node did not start
/// again.
#[test]
fn a_log_takes_no_more_extents_than_it_can_start_with() {
    let dir = directory();
    let disks = [dir.path().to_path_buf()];
    let node = start(&disks, 1);
    let (shards, room) = shards_and_room(&node);
    assert!(shards == 0 && room > 5_000, "{shards} shards and room for {room}");
    let some: Vec<_> = (0..4000).map(|index| open(index, room, None)).collect();
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    admin.open_extents(&some).expect("there is room");
    assert_eq!(shards_and_room(&node), (4000, room - 4000));
    node.stop();

    // The start opens each anew and forgets what it was, which needs no room of new ones. The
    // snapshot lists a segment more, in fewer bytes than an extent has.
    let node = start(&disks, 1);
    let (shards, left) = shards_and_room(&node);
    assert_eq!(shards, 4000);
    assert!((room - 4001..=room - 4000).contains(&left), "room for {left} of {room}");
    let others: Vec<_> = (4000..4000 + left).map(|index| open(index, room, None)).collect();
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    admin.open_extents(&others).expect("it has the room that it tells of");
    assert_eq!(shards_and_room(&node), (4000 + left, 0));
    let one_more = open(room, room + 1, None);
    assert_eq!(code(admin.open_extent(&one_more).expect_err("full")), ErrorCode::TooManyShards);
    // What is there goes on.
    append(node.addresses()[0], 0, 10);
    let count = |node: &Node| {
        let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
        admin.describe(STREAM).expect("it answers").len()
    };
    let opened = count(&node);
    assert_eq!(opened as u32, 4000 + left);
    node.stop();
    for _ in 0..2 {
        let node = start(&disks, 1);
        assert_eq!((count(&node), shards_and_room(&node).0), (opened, opened as u32));
        node.stop();
    }
}

/// Each start left an extent of every shard behind, and their records added up in the snapshots
/// until no segment could hold one: the log could not go on.
#[test]
fn restarts_do_not_add_up() {
    let dir = directory();
    let disks = [dir.path().to_path_buf()];
    let shards = 5_000;
    let node = start(&disks, 1);
    let opens: Vec<_> = (0..shards).map(|index| open(index, shards, None)).collect();
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    admin.open_extents(&opens).expect("there is room for them");
    drop(admin);
    // Without archives 1.3 MiB more each time, of 5.4 that a snapshot may have.
    let mut node = node;
    let mut records = 0;
    for round in 0..7 {
        append(node.addresses()[0], records, 40_000);
        records += 40_000;
        let started = Instant::now();
        while round > 0 && node.counters().extents_archived < 4_000 {
            assert!(started.elapsed() < PATIENCE, "nothing is archived");
            std::thread::sleep(Duration::from_millis(10));
        }
        node.stop();
        node = start(&disks, 1);
    }
    assert_eq!(read(&node), (0..records).collect::<Vec<u64>>());
    node.stop();
}

/// Ends an extent; answers the offset after its last record.
fn end(admin: &mut Admin, extent: ExtentId) -> Offset {
    let recovery_epoch = extent.epoch;
    let fence = FenceExtent { extent, recovery_epoch };
    let end = admin.fence_extent(&fence).expect("an extent can be fenced").end;
    let seal = SealExtent { extent, recovery_epoch, end };
    admin.seal_extent(&seal).expect("a fenced extent can be sealed").end
}

/// What deleted streams had been took room for good: a log that was full of their shards stayed
/// full.
#[test]
fn a_deleted_shard_leaves_nothing_behind() {
    const OTHER: StreamId = StreamId(10);
    let dir = directory();
    let disks = [dir.path().to_path_buf()];
    let node = start(&disks, 1);
    let address = node.addresses()[0];
    let mut admin = Admin::connect(address, PATIENCE).expect("it serves");
    let kept = ShardId { stream: OTHER, index: 0 };
    let kept = OpenExtent { extent: ExtentId { shard: kept, epoch: Epoch(1) }, ..open(0, 1, None) };
    admin.open_extent(&kept).expect("a new shard can be opened");
    append_to(address, OTHER, 0..500, 8);
    let before = shards_and_room(&node);

    // One that was in the logs of three retention classes; the first remembers nothing of it but
    // what a start reads there.
    let mut opened = open(0, 1, None);
    for class in 0..3 {
        opened.retention_class = class;
        admin.open_extent(&opened).expect("an extent can be opened");
        append(address, opened.first_offset.0, 300);
        if class == 1 {
            let trim = TrimShard { shard: opened.extent.shard, first_kept: Offset(400) };
            admin.trim_shard(&trim).expect("committed records can be trimmed");
        }
        let delete =
            DeleteShard { shard: opened.extent.shard, recovery_epoch: opened.extent.epoch };
        let refused = admin.delete_shard(&delete).expect_err("it takes records");
        assert_eq!(code(refused), ErrorCode::Conflict);
        opened.first_offset = end(&mut admin, opened.extent);
        opened.extent.epoch.0 += 1;
    }
    assert_eq!(opened.first_offset, Offset(900));
    let (shard, recovery_epoch) = (opened.extent.shard, Epoch(3));
    let stale = DeleteShard { shard, recovery_epoch: Epoch(2) };
    let refused = admin.delete_shard(&stale).expect_err("a later recovery ended it");
    assert_eq!(code(refused), ErrorCode::StaleRecovery);
    let delete = DeleteShard { shard, recovery_epoch };
    let deleted = admin.delete_shard(&delete).expect("a shard that has ended can be deleted");
    assert_eq!((deleted.epoch, deleted.end), (Epoch(3), Offset(900)));
    assert!(admin.describe(STREAM).expect("it answers").is_empty());
    assert_eq!(shards_and_room(&node), before);
    // Who lost the answer may ask again; in the end nothing is known of the shard.
    wait_for("that nothing is known of it", || match admin.delete_shard(&delete) {
        Ok(again) => {
            assert_eq!(again, deleted);
            false
        }
        Err(refused) => {
            assert_eq!(code(refused), ErrorCode::UnknownShard);
            true
        }
    });
    node.stop();

    let node = start(&disks, 1);
    let address = node.addresses()[0];
    let mut admin = Admin::connect(address, PATIENCE).expect("it serves");
    assert!(admin.describe(STREAM).expect("it answers").is_empty());
    assert_eq!(shards_and_room(&node).0, 1);
    // One of the same name is another.
    admin.open_extent(&open(0, 1, None)).expect("a new shard can be opened");
    append(address, 7000, 200);
    append_to(address, OTHER, 500..700, 8);
    node.stop();
    let node = start(&disks, 1);
    assert_eq!(read(&node), (7000..7200).collect::<Vec<u64>>());
    assert_eq!(read_of(&node, OTHER), (0..700).collect::<Vec<u64>>());
    node.stop();
}

/// Shards that came and went took places for good.
#[test]
fn shards_come_and_go_without_end() {
    let dir = directory();
    let disks = [dir.path().to_path_buf()];
    let node = start(&disks, 1);
    let (_, room) = shards_and_room(&node);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let count = 1000;
    for round in 0..u64::from(room / count + 3) {
        let stream = StreamId(100 + round);
        let opens: Vec<OpenExtent> = (0..count)
            .map(|index| {
                let extent = ExtentId { shard: ShardId { stream, index }, epoch: Epoch(1) };
                OpenExtent { extent, ..open(index, count, None) }
            })
            .collect();
        admin.open_extents(&opens).expect("there is room again");
        for open in &opens {
            end(&mut admin, open.extent);
            let delete = DeleteShard { shard: open.extent.shard, recovery_epoch: Epoch(1) };
            admin.delete_shard(&delete).expect("it has ended");
        }
        let (shards, now) = shards_and_room(&node);
        assert!(shards == 0 && now + 10 > room, "{shards} shards and room for {now} of {room}");
    }
    node.stop();
    let node = start(&disks, 1);
    assert_eq!(shards_and_room(&node).0, 0);
    node.stop();
}

/// A seal that hid records nobody had been told of left them to a shard that was deleted: the node
/// stopped.
#[test]
fn a_shard_whose_seal_hid_records_can_be_deleted() {
    let dir = directory();
    let disks = [dir.path().to_path_buf()];
    let node = start(&disks, 1);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let mut hidden = 0;
    for index in 0..50 {
        let command = open(index, 50, None);
        admin.open_extent(&command).expect("a new shard can be opened");
        let (extent, recovery_epoch) = (command.extent, Epoch(1));
        let (range, shard) = (command.range, extent.shard);
        let mut builder = BatchBuilder::new(BatchRoom { records: 1, key_bytes: 1, data_bytes: 9 });
        let record =
            NewRecord { hash_key: range.start, client_time_ms: 1, key: b"k", data: &[7; 9] };
        builder.push(&record);
        let (producer, epoch) = (ProducerId(1), extent.epoch);
        let identity = BatchIdentity { shard, epoch, producer, sequence: 0, request_id: 0 };
        let mut batch = builder.finish(&identity).to_vec();
        batch.resize(padded_bytes(batch.len()), 0);
        let fence = FenceExtent { extent, recovery_epoch };
        let seal = SealExtent { extent, recovery_epoch, end: Offset(0) };
        let frames = [
            produce_frame(1, &batch),
            small_frame(FrameKind::FenceExtent, 0, 6, &fence.encode()),
            small_frame(FrameKind::SealExtent, 0, 7, &seal.encode()),
        ];
        // All of it comes before the record is durable, as a rule.
        let mut stream = TcpStream::connect(node.addresses()[0]).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.write_all(&frames.concat()).expect("it is connected");
        let answers: Vec<_> = (0..3).map(|_| receive(&mut stream).expect("an answer")).collect();
        let sealed = answers.iter().find(|(header, _)| header.correlation == 7);
        let sealed = ControlAnswer::decode(&sealed.expect("it was sent").1).expect("an answer");
        if sealed.status.is_err() {
            continue;
        }
        hidden += 1;
        let delete = DeleteShard { shard, recovery_epoch };
        admin.delete_shard(&delete).expect("it has ended");
    }
    assert!(hidden > 0, "every record was durable at once");
    node.stop();
    let node = start(&disks, 1);
    assert_eq!(shards_and_room(&node).0, 50 - hidden);
    node.stop();
}
