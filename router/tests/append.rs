//! The writer against a node: each record once and in order, whatever breaks on the way.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{
    AskingRoutes, PATIENCE, Proxy, Random, TestNode, fetcher, read_all, records_of, shard, writer,
};
use thalweg_client::Admin;
use thalweg_router::route::{AnswerMemory, AppendError, LinkLimits, Writer, WriterConfig};
use thalweg_wire::build::NewRecord;
use thalweg_wire::control::{OpenExtent, Rate, ShardLimits};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ExtentId, Offset};

/// What callers were told of their records, by shard.
#[derive(Default)]
struct Told {
    stored: BTreeMap<u32, BTreeMap<u64, u64>>,
    unknown: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Calls of which some records were stored and others throttled.
    mixed_calls: u64,
    /// Numbers of each task on each shard, in the order of its calls.
    orders: Vec<(u32, Vec<u64>)>,
}

impl Told {
    fn join(&mut self, other: Told) {
        for (index, offsets) in other.stored {
            let of_shard = self.stored.entry(index).or_default();
            for (offset, number) in offsets {
                let known = of_shard.insert(offset, number);
                assert_eq!(known, None, "two records were told one offset");
            }
        }
        self.unknown.extend(other.unknown);
        self.refused.extend(other.refused);
        self.mixed_calls += other.mixed_calls;
        self.orders.extend(other.orders);
    }

    /// Holds what is stored against what was told.
    async fn check(&self, routes: &Arc<AskingRoutes>, shards: u32) {
        let fetcher = fetcher(routes, &AnswerMemory::new(64 << 20));
        let mut places = BTreeMap::new();
        for index in 0..shards {
            let numbers = read_all(&fetcher, shard(index)).await;
            for (offset, number) in self.stored.get(&index).into_iter().flatten() {
                assert_eq!(numbers.get(*offset as usize), Some(number), "at its offset");
            }
            for (offset, number) in (0_u64..).zip(numbers) {
                assert_eq!(places.insert(number, offset), None, "{number} is there twice");
                assert!(!self.refused.contains(&number), "{number} is stored, and was refused");
                let told = self.stored.get(&index).is_some_and(|of| of.contains_key(&offset));
                assert!(told || self.unknown.contains(&number), "{number} comes from nowhere");
            }
        }
        for (_, order) in &self.orders {
            let offsets: Vec<u64> = order.iter().filter_map(|n| places.get(n).copied()).collect();
            assert!(offsets.is_sorted(), "a task's records are in the order of its calls");
        }
    }
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// One task's calls, one after the other, on one shard; up to seven records each.
async fn call_again_and_again(writer: Writer, index: u32, run: Arc<Run>, seed: u64) -> Told {
    let (mut told, mut random, mut order) = (Told::default(), Random(seed | 1), Vec::new());
    while !run.stop.load(Ordering::Relaxed) {
        let count = 1 + random.below(7);
        let first = NEXT_NUMBER.fetch_add(count, Ordering::Relaxed);
        let numbers: Vec<u64> = (first..first + count).collect();
        let data_bytes = match random.below(20) {
            0 => 8 + random.below(60_000),
            _ => 8 + random.below(500),
        };
        let records = records_of(&numbers, data_bytes as usize);
        let appended = writer.append(shard(index), records).await;
        let results: Vec<_> = appended.records().collect();
        assert_eq!(results.len(), numbers.len());
        let is_throttled =
            |result: &Result<_, _>| matches!(result, Err(AppendError::Throttled { .. }));
        let is_mixed = results.iter().any(Result::is_ok) && results.iter().any(is_throttled);
        told.mixed_calls += u64::from(is_mixed);
        for (number, result) in numbers.iter().zip(results) {
            match result {
                Ok(position) => {
                    let of_shard = told.stored.entry(index).or_default();
                    assert_eq!(of_shard.insert(position.offset.0, *number), None);
                }
                Err(AppendError::OutcomeUnknown { .. }) => drop(told.unknown.insert(*number)),
                Err(_) => {
                    told.refused.insert(*number);
                    run.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        order.extend(numbers);
    }
    told.orders.push((index, order));
    told
}

/// What the tasks of a load share.
#[derive(Default)]
struct Run {
    stop: AtomicBool,
    /// Records that were refused so far.
    refused: AtomicU64,
}

struct Load {
    run: Arc<Run>,
    tasks: Vec<tokio::task::JoinHandle<Told>>,
}

impl Load {
    fn start(writer: &Writer, shards: u32, tasks_per_shard: u64) -> Load {
        let run = Arc::new(Run::default());
        let task = |task: u64| {
            let index = (task % u64::from(shards)) as u32;
            let seed = (task + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            tokio::spawn(call_again_and_again(writer.clone(), index, run.clone(), seed))
        };
        let tasks = (0..u64::from(shards) * tasks_per_shard).map(task).collect();
        Load { run, tasks }
    }

    fn refused(&self) -> u64 {
        self.run.refused.load(Ordering::Relaxed)
    }

    async fn finish(self) -> Told {
        self.run.stop.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        for task in self.tasks {
            let ended = tokio::time::timeout(PATIENCE, task).await;
            told.join(ended.expect("calls are answered").expect("a task ends well"));
        }
        told
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_connections_that_are_cut_each_record_is_stored_once_and_in_order() {
    let node = TestNode::start(2, 6, None);
    let mut proxies = Vec::new();
    for (seed, address) in (5..).zip(node.addresses()) {
        proxies.push(Proxy::start(address, 300_000, seed).await);
    }
    let routes = AskingRoutes::new(proxies.iter().map(|proxy| proxy.address).collect());
    let load = Load::start(&writer(&routes), 6, 4);
    let started = Instant::now();
    while proxies.iter().any(|proxy| proxy.cuts() < 40) {
        assert!(started.elapsed() < PATIENCE, "connections are cut");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxies.iter().for_each(Proxy::calm);
    let told = load.finish().await;
    let stored: usize = told.stored.values().map(BTreeMap::len).sum();
    assert!(stored > 500, "{stored} records");
    assert!(node.node().counters().duplicates > 0, "answers were lost, and batches sent again");
    assert_eq!((&told.refused, &told.unknown), (&BTreeSet::new(), &BTreeSet::new()));
    told.check(&routes, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_restarted_in_mid_stream_loses_and_doubles_nothing() {
    let mut node = TestNode::start(2, 4, None);
    let routes = AskingRoutes::new(node.addresses());
    let load = Load::start(&writer(&routes), 4, 4);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node = tokio::task::spawn_blocking(move || {
            node.restart();
            node
        })
        .await
        .expect("the node comes back");
        routes.set_cores(node.addresses());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let told = load.finish().await;
    assert!(told.stored.values().map(BTreeMap::len).sum::<usize>() > 200);
    assert_eq!(told.refused, BTreeSet::new());
    told.check(&routes, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttled_cut_and_restarted_at_once_nothing_is_lost_or_doubled() {
    let limits = ShardLimits {
        bytes: Rate { per_s: 2 << 20, capacity: 1 << 20 },
        records: Rate { per_s: 1500, capacity: 300 },
    };
    let mut node = TestNode::start(1, 3, Some(limits));
    let proxy = Proxy::start(node.addresses()[0], 1_000_000, 9).await;
    let routes = AskingRoutes::new(vec![proxy.address]);
    let load = Load::start(&writer(&routes), 3, 6);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        node = tokio::task::spawn_blocking(move || {
            node.restart();
            node
        })
        .await
        .expect("the node comes back");
        proxy.set_target(node.addresses()[0]);
    }
    let started = Instant::now();
    while proxy.cuts() < 5 || load.refused() <= 50 {
        assert!(started.elapsed() < PATIENCE, "connections are cut, and records are refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy.calm();
    let told = load.finish().await;
    let stored: usize = told.stored.values().map(BTreeMap::len).sum();
    assert!(stored > 200 && told.refused.len() > 50, "{stored} and {}", told.refused.len());
    told.check(&routes, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_while_batches_are_rebuilt_lose_and_double_nothing() {
    let limits = ShardLimits {
        bytes: Rate { per_s: 1 << 20, capacity: 256 << 10 },
        records: Rate { per_s: 500, capacity: 30 },
    };
    let node = TestNode::start(2, 4, Some(limits));
    let mut proxies = Vec::new();
    for (seed, address) in (21..).zip(node.addresses()) {
        proxies.push(Proxy::start(address, 300_000, seed).await);
    }
    let routes = AskingRoutes::new(proxies.iter().map(|proxy| proxy.address).collect());
    let load = Load::start(&writer(&routes), 4, 6);
    let started = Instant::now();
    while proxies.iter().any(|proxy| proxy.cuts() < 20) {
        assert!(started.elapsed() < PATIENCE, "connections are cut");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxies.iter().for_each(Proxy::calm);
    let told = load.finish().await;
    assert!(node.node().counters().duplicates > 0, "answers were lost, and batches sent again");
    assert!(told.mixed_calls > 10, "{} calls were split", told.mixed_calls);
    assert_eq!(told.unknown, BTreeSet::new());
    told.check(&routes, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_node_records_are_refused_in_time_and_nothing_piles_up() {
    let mut node = TestNode::start(1, 2, None);
    let routes = AskingRoutes::new(node.addresses());
    let config = WriterConfig {
        link: LinkLimits { backoff: support::BACKOFF, ..LinkLimits::default() },
        patience: Duration::from_millis(800),
        bytes_max: 16 << 20,
        shard_bytes_max: 12 << 20,
    };
    let writer = Writer::new(routes.clone(), config);
    let one = |number: u64, bytes| writer.append(shard(0), records_of(&[number], bytes));
    assert!(one(1, 100).await.parts()[0].result.is_ok());
    node.stop();
    let started = Instant::now();
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let writer = writer.clone();
            tokio::spawn(async move {
                writer.append(shard(0), records_of(&[number + 10], 1 << 20)).await
            })
        })
        .collect();
    let (mut unreachable, mut overloaded, mut unknown) = (0, 0, 0);
    for task in tasks {
        assert!(writer.bytes_under_way() <= 12 << 20, "one shard does not use up all");
        match task.await.expect("a task ends well").parts()[0].result {
            Err(AppendError::Unreachable { .. }) => unreachable += 1,
            Err(AppendError::Overloaded { .. }) => overloaded += 1,
            // Of what left before the end of the connection was seen.
            Err(AppendError::OutcomeUnknown { .. }) => unknown += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(unknown <= 8, "{unknown} of a window");
    assert!(unreachable + unknown >= 11 && overloaded >= 1, "{unreachable} {overloaded}");
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(writer.bytes_under_way(), 0);
    node.restart();
    routes.set_cores(node.addresses());
    assert!(one(2, 100).await.parts()[0].result.is_ok(), "it goes on as soon as there is a node");
    let fetcher = fetcher(&routes, &AnswerMemory::new(0));
    assert_eq!(read_all(&fetcher, shard(0)).await, [1, 2]);
    let nowhere = writer.append(shard(77), records_of(&[3], 8)).await;
    assert!(matches!(nowhere.parts()[0].result, Err(AppendError::NoRoute { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_node_refuses_takes_no_other_with_it() {
    let node = TestNode::start(1, 1, None);
    // A shard of the lower half of the hash keys.
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let range = HashRange::of_initial_shard(0, 2);
    let extent = ExtentId { shard: shard(5), epoch: Epoch(1) };
    let open = OpenExtent::alone(extent, range, Offset(0));
    admin.open_extent(&open).expect("a new shard can be opened");
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let tasks: Vec<_> = (0..100_u64)
        .map(|call| {
            let writer = writer.clone();
            tokio::spawn(async move {
                let mut records = records_of(&[call], 8);
                if call % 10 == 3 {
                    let data = call.to_le_bytes();
                    let hash_key = HashKey(u128::MAX);
                    let record = NewRecord { hash_key, client_time_ms: 0, key: b"k", data: &data };
                    records.push(&record).expect("a record of a size that may be");
                }
                writer.append(shard(5), records).await.parts().to_vec()
            })
        })
        .collect();
    for (call, task) in tasks.into_iter().enumerate() {
        let parts = task.await.expect("a task ends well");
        match parts.last().expect("one at least").result {
            Ok(_) => assert_ne!(call % 10, 3),
            Err(AppendError::Refused { refusal, .. }) => {
                assert_eq!((refusal.code, call % 10), (ErrorCode::HashOutOfRange, 3));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_thousand_shards_share_frames() {
    let node = TestNode::start(2, 1000, None);
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let round = async |round: u64| {
        let calls = (0..1000).map(|index| {
            let number = round * 1000 + u64::from(index);
            let writer = writer.clone();
            async move {
                let appended = writer.append(shard(index), records_of(&[number], 100)).await;
                assert!(appended.parts()[0].result.is_ok(), "{appended:?}");
            }
        });
        futures_join(calls).await;
    };
    round(0).await;
    let before = node.node().counters();
    for number in 1..4 {
        round(number).await;
    }
    let after = node.node().counters();
    assert_eq!(after.batches_appended - before.batches_appended, 3000);
    let frames = after.frames_received - before.frames_received;
    assert!(frames < 1000, "{frames} frames for 3,000 batches");
    let fetcher = fetcher(&routes, &AnswerMemory::new(0));
    for index in [0, 1, 500, 999] {
        let numbers = read_all(&fetcher, shard(index)).await;
        assert_eq!(numbers, [0, 1, 2, 3].map(|round| round * 1000 + u64::from(index)));
    }
}

/// Polls futures side by side in one task.
async fn futures_join(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_of_one_shard_make_few_batches() {
    let node = TestNode::start(1, 1, None);
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let tasks: Vec<_> = (0..100_u64)
        .map(|task| {
            let writer = writer.clone();
            tokio::spawn(async move {
                let mut last = None;
                for call in 0..50 {
                    let numbers = [task * 1000 + call];
                    let appended = writer.append(shard(0), records_of(&numbers, 200)).await;
                    let offset = appended.parts()[0].result.expect("it is stored").first_offset;
                    assert!(last < Some(offset));
                    last = Some(offset);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task ends well");
    }
    let counters = node.node().counters();
    assert_eq!(counters.records_appended, 5000);
    assert!(counters.batches_appended < 500, "{} batches", counters.batches_appended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_ten_mebibytes_travel_beside_small_ones() {
    let node = TestNode::start(1, 2, None);
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let largest = (10 << 20) - 1;
    let large: Vec<_> = (0..6)
        .map(|number| {
            let writer = writer.clone();
            tokio::spawn(async move {
                writer.append(shard(number % 2), records_of(&[u64::from(number)], largest)).await
            })
        })
        .collect();
    for number in 100..200 {
        let appended = writer.append(shard(0), records_of(&[number], 300)).await;
        assert!(appended.parts()[0].result.is_ok());
    }
    for task in large {
        assert!(task.await.expect("a task ends well").parts()[0].result.is_ok());
    }
    // One call of a mebibyte and a bit is several batches, in order.
    let numbers: Vec<u64> = (1000..1300).collect();
    let appended = writer.append(shard(1), records_of(&numbers, 10_000)).await;
    assert!(appended.parts().len() >= 3);
    let offsets: Vec<u64> =
        appended.records().map(|record| record.expect("it is stored").offset.0).collect();
    assert!(offsets.windows(2).all(|pair| pair[0] + 1 == pair[1]), "together and in order");
    let fetcher = fetcher(&routes, &AnswerMemory::new(0));
    let small = read_all(&fetcher, shard(0)).await;
    assert_eq!(small.iter().filter(|number| **number >= 100).count(), 100);
    assert_eq!(small.len(), 103);
    assert!(read_all(&fetcher, shard(1)).await.ends_with(&numbers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_neither_loses_nor_repeats_what_others_bring() {
    let node = TestNode::start(1, 2, None);
    let proxy = Proxy::start(node.addresses()[0], 40_000, 3).await;
    let routes = AskingRoutes::new(vec![proxy.address]);
    let writer = writer(&routes);
    let load = Load::start(&writer, 2, 4);
    let mut random = Random(77);
    let mut dropped = BTreeSet::new();
    for _ in 0..400 {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let index = random.below(2) as u32;
        let call = writer.append(shard(index), records_of(&[number], 100));
        let patience = Duration::from_micros(random.below(600));
        // Whether it ended in time or not: it may be stored.
        let _ = tokio::time::timeout(patience, call).await;
        dropped.insert(number);
    }
    proxy.calm();
    let mut told = load.finish().await;
    told.unknown.extend(dropped);
    assert_eq!(told.refused, BTreeSet::new());
    told.check(&routes, 2).await;
    let started = Instant::now();
    while writer.bytes_under_way() > 0 {
        assert!(started.elapsed() < PATIENCE, "room of dropped calls is given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
