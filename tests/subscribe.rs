//! Subscriptions: what commits is pushed, once and in order, as far as the credit goes, from memory
//! and from disk, to any number of subscribers.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::{PATIENCE, STREAM, append, append_sized, append_to, directory, open, receive};
use thalweg_client::{Admin, Event, Subscriber, SubscriberConfig};
use thalweg_node::{Node, NodeConfig};
use thalweg_wire::control::{DeleteShard, FenceExtent, OpenExtent, SealExtent, TrimShard};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameKind, small_frame};
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId, StreamId};
use thalweg_wire::limits::SUBSCRIPTION_SILENCE_MS_MIN;
use thalweg_wire::subscribe::{Credit, SubscribeRequest};

fn start(dir: &tempfile::TempDir, cores: usize, shards: u32) -> Node {
    let config = NodeConfig {
        data_dirs: vec![dir.path().join("d")],
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        cores,
        memory_bytes: cores as u64 * (64 << 20),
        segment_bytes: 16 << 20,
        prefill_bytes: 0,
        ..NodeConfig::default()
    };
    let node = Node::start(config).expect("the node starts");
    for index in 0..shards {
        let address = node.addresses()[index as usize % cores];
        let mut admin = Admin::connect(address, PATIENCE).expect("it serves");
        admin.open_extent(&open(index, shards, None)).expect("a new shard can be opened");
    }
    node
}

fn config(node: &Node, from: FetchFrom) -> SubscriberConfig {
    SubscriberConfig { from, ..SubscriberConfig::new(node.addresses()[0], STREAM) }
}

/// Takes events until `count` records came; their numbers by shard, as they came.
fn take(subscriber: &mut Subscriber, count: usize) -> Vec<Vec<u64>> {
    let mut numbers = vec![Vec::new(); subscriber.shards().len()];
    let mut came = 0;
    let started = Instant::now();
    while came < count {
        came += take_next(subscriber, Duration::from_millis(100), &mut numbers);
        assert!(started.elapsed() < PATIENCE, "{came} of {count} records came");
    }
    numbers
}

/// Takes the events that are there or come within a time; answers how many records they had.
fn take_next(subscriber: &mut Subscriber, wait: Duration, numbers: &mut [Vec<u64>]) -> usize {
    let mut came = 0;
    let polled = subscriber.poll(wait, |place, event| {
        if let Event::Batch(batch) = event {
            for record in batch.records() {
                numbers[place].push(u64::from_le_bytes(record.data[..8].try_into().unwrap()));
                came += 1;
            }
        }
    });
    polled.expect("the node pushes");
    came
}

/// Each of `from..to` once; those of a shard in order.
#[track_caller]
fn assert_complete(numbers: &[Vec<u64>], from: u64, to: u64) {
    assert!(numbers.iter().all(|shard| shard.is_sorted()), "a shard's records come in order");
    let mut all: Vec<u64> = numbers.iter().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (from..to).collect::<Vec<u64>>());
}

#[test]
fn what_commits_is_pushed_from_now_or_from_the_beginning() {
    let data = directory();
    let node = start(&data, 2, 5);
    append(node.addresses()[0], 0, 500);
    let mut latest = Subscriber::connect(config(&node, FetchFrom::Latest)).expect("it subscribes");
    let mut earliest =
        Subscriber::connect(config(&node, FetchFrom::Earliest)).expect("it subscribes");
    assert_complete(&take(&mut earliest, 500), 0, 500);
    // Its subscriptions are known to have begun when the node says that there is nothing.
    let mut silent = 0;
    let mut quiet = SubscriberConfig::clone(&config(&node, FetchFrom::Latest));
    quiet.silence = Duration::from_millis(50);
    let mut quiet = Subscriber::connect(quiet).expect("it subscribes");
    while silent < 5 {
        let polled = quiet.poll(PATIENCE, |_, event| {
            assert!(matches!(event, Event::Silence), "{event:?}");
            silent += 1;
        });
        polled.expect("the node says that there is nothing");
    }
    append(node.addresses()[0], 500, 500);
    assert_complete(&take(&mut latest, 500), 500, 1000);
    assert_complete(&take(&mut quiet, 500), 500, 1000);
    assert_complete(&take(&mut earliest, 500), 500, 1000);
    node.stop();
}

/// Each of many subscribers who had fallen behind had everything read from disk for itself.
#[test]
fn who_does_not_read_holds_up_nobody_and_catches_up_from_disk_by_reads_that_are_shared() {
    let data = directory();
    let node = start(&data, 1, 1);
    let subscribe = |count: usize, from: FetchFrom| -> Vec<Subscriber> {
        (0..count)
            .map(|_| Subscriber::connect(config(&node, from)).expect("it subscribes"))
            .collect()
    };
    let mut slow = subscribe(10, FetchFrom::Earliest);
    let mut fast = subscribe(20, FetchFrom::Earliest);
    // More than the node has memory: what was first is on disk only in the end.
    let mut records = 0;
    while node.counters().bytes_appended < 80 << 20 {
        append_sized(node.addresses()[0], records, 200, 10_000);
        for subscriber in &mut fast {
            assert_complete(&take(subscriber, 200), records, records + 200);
        }
        records += 200;
    }
    let before = node.counters();
    assert_eq!(before.batches_from_disk, 0, "who keeps up is served from memory");
    // They go on side by side, as those who were away for the same time do.
    let mut numbers = vec![vec![Vec::new()]; slow.len()];
    let has_all = |numbers: &[Vec<u64>]| numbers[0].len() as u64 >= records;
    let started = Instant::now();
    while !numbers.iter().all(|numbers| has_all(numbers)) {
        for (subscriber, numbers) in slow.iter_mut().zip(&mut numbers) {
            take_next(subscriber, Duration::from_millis(1), numbers);
        }
        assert!(started.elapsed() < PATIENCE, "not all came");
    }
    numbers.iter().for_each(|numbers| assert_complete(numbers, 0, records));
    let after = node.counters();
    assert!(after.batches_from_disk > 0, "who does not is served from disk");
    assert!(after.reads_shared > after.reads);
    let (read, stored) = (after.bytes_read, after.bytes_appended);
    assert!(read < stored * 3 / 2, "{read} bytes were read of {stored} for ten subscribers");
    node.stop();
}

/// A subscription by hand: what its connection gets, frame by frame.
struct Raw(TcpStream);

impl Raw {
    fn connect(node: &Node) -> Raw {
        let stream = TcpStream::connect(node.addresses()[0]).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Raw(stream)
    }

    fn subscribe(&mut self, correlation: u64, index: u32, bytes_max: u32, wait_ms: u32) {
        let request = FetchRequest {
            shard: ShardId { stream: STREAM, index },
            epoch: Epoch(0),
            from: FetchFrom::Earliest,
            bytes_max,
            wait_ms,
        };
        let payload = SubscribeRequest(request).encode();
        self.send(&small_frame(FrameKind::Subscribe, 0, correlation, &payload));
    }

    fn credit(&mut self, credit: Credit) {
        self.send(&small_frame(FrameKind::Credit, 0, 0, &credit.encode()));
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(frame).expect("it is connected");
    }

    /// The next event: its subscription, bytes of batches, and what it tells.
    fn event(&mut self) -> (u64, usize, FetchAnswer) {
        let (header, payload) = receive(&mut self.0).expect("an event");
        assert_eq!(header.kind, FrameKind::SubscribeEvent);
        let answer = FetchAnswer::decode(&payload).expect("an event");
        (header.correlation, payload.len() - FETCH_ANSWER_BYTES, answer)
    }

    fn is_silent(&mut self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout can be set");
        let silent = self.0.peek(&mut [0]).is_err();
        self.0.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        silent
    }
}

#[test]
fn no_more_is_sent_than_was_granted_and_nothing_after_a_cancellation() {
    let data = directory();
    let node = start(&data, 1, 1);
    // Batches of one record each: one of 1,000 bytes is about 1,200.
    for number in 0..20 {
        append_sized(node.addresses()[0], number, 1, 1000);
    }
    let mut raw = Raw::connect(&node);
    raw.subscribe(7, 0, 500, 10_000);
    assert!(raw.is_silent(), "the first batch is larger than the credit");
    raw.credit(Credit::Grant { subscription: 99, bytes: 100_000 });
    assert!(raw.is_silent(), "what was granted to another does not count");
    raw.credit(Credit::Grant { subscription: 7, bytes: 3000 });
    let (correlation, bytes, answer) = raw.event();
    assert_eq!((correlation, answer.status, answer.next), (7, Ok(()), Offset(2)));
    assert!((2000..3500).contains(&bytes), "{bytes} bytes of 3,500");
    assert!(raw.is_silent());
    raw.credit(Credit::Grant { subscription: 7, bytes: 100_000 });
    assert_eq!(raw.event().2.next, Offset(20));
    append_sized(node.addresses()[0], 20, 1, 1000);
    assert_eq!(raw.event().2.next, Offset(21));
    raw.credit(Credit::Cancel { subscription: 7 });
    // The node has seen it when it answers what was sent behind it.
    raw.subscribe(8, 77, 1000, 10_000);
    let (correlation, _, answer) = raw.event();
    assert_eq!((correlation, answer.status), (8, Err(ErrorCode::UnknownShard.into())));
    append_sized(node.addresses()[0], 21, 1, 1000);
    assert!(raw.is_silent(), "no event after the cancellation");
    // The name is free again.
    raw.subscribe(7, 0, 100_000, 10_000);
    assert_eq!(raw.event().2.next, Offset(22));
    raw.subscribe(7, 0, 100_000, 10_000);
    let (header, payload) = receive(&mut raw.0).expect("an answer");
    assert_eq!(header.kind, FrameKind::Error, "two subscriptions of one name");
    let refusal = ErrorAnswer::decode(&payload).expect("an error").0;
    assert_eq!(refusal.code, ErrorCode::Malformed);
    node.stop();
}

/// A silence of nothing made the node tell so without end, until its output was full.
#[test]
fn a_silence_is_not_shorter_than_the_limit() {
    let data = directory();
    let node = start(&data, 1, 1);
    let mut raw = Raw::connect(&node);
    let started = Instant::now();
    raw.subscribe(1, 0, 1000, 0);
    for _ in 0..4 {
        assert_eq!(raw.event().2.next, Offset(0));
    }
    let least = Duration::from_millis(4 * u64::from(SUBSCRIPTION_SILENCE_MS_MIN));
    assert!(started.elapsed() >= least, "{:?}", started.elapsed());
    node.stop();
}

#[test]
fn a_subscription_ends_with_its_shard_or_where_records_are_gone() {
    let data = directory();
    let node = start(&data, 1, 1);
    append(node.addresses()[0], 0, 100);
    let mut ended = Subscriber::connect(config(&node, FetchFrom::Earliest)).expect("it subscribes");
    assert_complete(&take(&mut ended, 100), 0, 100);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let extent = open(0, 1, None).extent;
    let end = admin
        .fence_extent(&FenceExtent { extent, recovery_epoch: Epoch(2) })
        .expect("an extent can be fenced")
        .end;
    admin
        .seal_extent(&SealExtent { extent, recovery_epoch: Epoch(2), end })
        .expect("a fenced extent can be sealed");
    let mut sealed = false;
    while !sealed {
        let polled = ended.poll(PATIENCE, |_, event| {
            assert!(matches!(event, Event::Sealed), "{event:?}");
            sealed = true;
        });
        polled.expect("the end is told");
    }
    assert!(ended.shards()[0].ended);

    admin
        .trim_shard(&TrimShard { shard: extent.shard, first_kept: Offset(100) })
        .expect("committed records can be trimmed");
    let offset = FetchFrom::Offset(Offset(3));
    let mut gone = Subscriber::connect(config(&node, offset)).expect("it subscribes");
    let mut refused = None;
    while refused.is_none() {
        let polled = gone.poll(PATIENCE, |_, event| match event {
            Event::Refused(refusal) => refused = Some(*refusal),
            other => panic!("{other:?}"),
        });
        polled.expect("the refusal is told");
    }
    assert_eq!(refused, Some(Refusal::new(ErrorCode::Trimmed, 100)));
    node.stop();
}

/// Whoever still reads a deleted shard is told of its end, and gets none of the shard that would
/// have its place.
#[test]
fn a_subscription_of_a_deleted_shard_gets_no_other_shards_records() {
    const OTHER: StreamId = StreamId(10);
    let data = directory();
    let node = start(&data, 1, 1);
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let extent = open(0, 1, None).extent;
    append_sized(node.addresses()[0], 0, 3, 1000);
    let mut raw = Raw::connect(&node);
    raw.subscribe(7, 0, 500, 10_000);
    assert!(raw.is_silent(), "the first batch is larger than the credit");
    let recovery_epoch = extent.epoch;
    let fence = FenceExtent { extent, recovery_epoch };
    let end = admin.fence_extent(&fence).expect("an extent can be fenced").end;
    let seal = SealExtent { extent, recovery_epoch, end };
    admin.seal_extent(&seal).expect("a fenced extent can be sealed");
    let delete = DeleteShard { shard: extent.shard, recovery_epoch };
    admin.delete_shard(&delete).expect("it has ended");
    // For so long its place is another's, if nobody reads it.
    std::thread::sleep(Duration::from_millis(2500));
    let other = ExtentId { shard: ShardId { stream: OTHER, index: 0 }, epoch: Epoch(1) };
    let other = OpenExtent { extent: other, ..open(0, 1, None) };
    admin.open_extent(&other).expect("a new shard can be opened");
    append_to(node.addresses()[0], OTHER, 0..10, 1000);
    raw.credit(Credit::Grant { subscription: 7, bytes: 100_000 });
    let (correlation, bytes, answer) = raw.event();
    assert_eq!((correlation, bytes, answer.status), (7, 0, Ok(())));
    assert!(answer.sealed_end && answer.next == end, "{answer:?}");
    raw.subscribe(8, 0, 1000, 10_000);
    assert_eq!(raw.event().2.status, Err(ErrorCode::UnknownShard.into()));
    node.stop();
}
