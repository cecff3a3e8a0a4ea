//! A shard's limits through the writer: each record is judged by itself, whoever brought it.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{AskingRoutes, TestNode, fetcher, read_all, records_of, shard, writer};
use thalweg_router::route::{AnswerMemory, AppendError, Appended, ShardRecords, Writer};
use thalweg_wire::build::NewRecord;
use thalweg_wire::control::{Rate, ShardLimits};
use thalweg_wire::hash_range::HashKey;

/// One call's records, of these numbers and sizes; the key counts.
fn records(of: &[(u64, usize)]) -> ShardRecords {
    let bytes: usize = of.iter().map(|(_, bytes)| bytes - 1).sum();
    let mut records = ShardRecords::with_room(of.len() as u32, of.len() as u64, bytes as u64);
    for (number, bytes) in of {
        let mut data = vec![*number as u8; bytes - 1];
        data[..8].copy_from_slice(&number.to_le_bytes());
        let (hash_key, key) = (HashKey(1), &b"k"[..]);
        let record = NewRecord { hash_key, client_time_ms: 0, key, data: &data };
        records.push(&record).expect("a record of a size that may be");
    }
    records
}

/// What became of each record: its offset, or how long it is to wait in microseconds.
fn fates(appended: &Appended) -> Vec<Result<u64, u64>> {
    let fate = |fate| match fate {
        Ok(thalweg_router::route::Position { offset, .. }) => Ok(offset.0),
        Err(AppendError::Throttled { wait_us, .. }) => Err(wait_us),
        Err(other) => panic!("{other}"),
    };
    appended.records().map(fate).collect()
}

fn offsets(fates: &[Result<u64, u64>]) -> Vec<Option<u64>> {
    fates.iter().map(|fate| fate.ok()).collect()
}

fn limits(bytes: Rate, records: Rate) -> ShardLimits {
    ShardLimits { bytes, records }
}

/// So much that nothing is ever refused for it.
const PLENTY: Rate = Rate { per_s: 1 << 30, capacity: 1 << 30 };

async fn start(shards: u32, limits: ShardLimits) -> (TestNode, Arc<AskingRoutes>, Writer) {
    let node = TestNode::start(1, shards, Some(limits));
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    (node, routes, writer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_too_large_for_now_takes_no_other_with_it() {
    // So little a second that nothing comes back while the test runs.
    let bytes = Rate { per_s: 1, capacity: 10_000 };
    let (_node, routes, writer) = start(1, limits(bytes, PLENTY)).await;
    let call = records(&[(1, 1000), (2, 9500), (3, 1000), (4, 1000)]);
    let appended = writer.append(shard(0), call).await;
    let told = fates(&appended);
    assert_eq!(offsets(&told), [Some(0), None, Some(1), Some(2)]);
    assert_eq!(appended.parts().len(), 3);
    let wait_us = told[1].expect_err("it is throttled");
    assert!((490_000_000..=500_000_000).contains(&wait_us), "{wait_us} for 500 bytes");
    // Three fit into the 7,000 bytes that are left.
    let told = fates(&writer.append(shard(0), records(&[5, 6, 7, 8].map(|at| (at, 2000)))).await);
    assert_eq!(offsets(&told), [Some(3), Some(4), Some(5), None]);
    let told = fates(&writer.append(shard(0), records(&[(9, 2000), (10, 2000)])).await);
    assert_eq!(offsets(&told), [None, None]);
    let told = fates(&writer.append(shard(0), records(&[(11, 400), (12, 601), (13, 600)])).await);
    assert_eq!(offsets(&told)[0], Some(6));
    let memory = AnswerMemory::new(64 << 20);
    let stored = read_all(&fetcher(&routes, &memory), shard(0)).await;
    assert!(stored.starts_with(&[1, 3, 4, 5, 6, 7, 11]), "{stored:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_calls_that_travel_together_each_is_judged_by_itself() {
    let bytes = Rate { per_s: 1, capacity: 10_000 };
    let (node, routes, writer) = start(1, limits(bytes, PLENTY)).await;
    assert_eq!(fates(&writer.append(shard(0), records(&[(1, 1000)])).await), [Ok(0)]);
    // The first leaves at once; what comes with the others waits for its answer.
    let (first, large, small, mixed) = tokio::join!(
        writer.append(shard(0), records(&[(2, 1000)])),
        writer.append(shard(0), records(&[(3, 9000), (4, 9000)])),
        writer.append(shard(0), records(&[(5, 3000), (6, 3000)])),
        writer.append(shard(0), records(&[(7, 3000), (8, 1000)])),
    );
    assert_eq!(fates(&first), [Ok(1)]);
    assert_eq!(offsets(&fates(&large)), [None, None]);
    assert_eq!(fates(&small), [Ok(2), Ok(3)]);
    assert_eq!(offsets(&fates(&mixed)), [None, Some(4)]);
    assert!(node.node().counters().batches_appended <= 4);
    let memory = AnswerMemory::new(64 << 20);
    assert_eq!(read_all(&fetcher(&routes, &memory), shard(0)).await, [1, 2, 5, 6, 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_record_is_told_the_wait_and_no_other_is_refused_for_it() {
    let records = Rate { per_s: 1000, capacity: 1000 };
    let (_node, routes, writer) = start(1, limits(PLENTY, records)).await;
    // The way is known: what follows is joined while the first is on its way.
    let started = Instant::now();
    assert!(writer.append(shard(0), records_of(&[1], 8)).await.parts()[0].result.is_ok());
    let tasks: Vec<_> = (0..300_u64)
        .map(|call| {
            let (writer, first) = (writer.clone(), 10 + call * 10);
            tokio::spawn(async move {
                let numbers: Vec<u64> = (first..first + 5).collect();
                fates(&writer.append(shard(0), records_of(&numbers, 8)).await)
            })
        })
        .collect();
    let (mut stored, mut throttled) = (0, 0);
    for task in tasks {
        for fate in task.await.expect("a task ends well") {
            match fate {
                Ok(_) => stored += 1,
                Err(wait_us) => {
                    assert!((1..=1000).contains(&wait_us), "a record comes back in 1 ms");
                    throttled += 1;
                }
            }
        }
    }
    // 999 at once, and one more every millisecond.
    let most = 1000 + started.elapsed().as_millis();
    assert!(stored >= 999, "each record is judged by itself, {stored} passed");
    assert!(stored <= most, "{stored} of {most}");
    assert_eq!(stored + throttled, 1500);
    let memory = AnswerMemory::new(64 << 20);
    assert_eq!(read_all(&fetcher(&routes, &memory), shard(0)).await.len(), 1 + stored as usize);
}

/// Bytes a second that come back, and most that a shard keeps: as 1 MiB/s and 10 MiB, smaller.
const BYTES: Rate = Rate { per_s: 256 << 10, capacity: 512 << 10 };
const RECORDS: Rate = Rate { per_s: 100, capacity: 200 };

/// As large a record as a full shard takes; how long it is to wait if that is not now.
async fn burst(writer: &Writer, index: u32) -> Result<u64, u64> {
    let call = records(&[(7, BYTES.capacity as usize)]);
    fates(&writer.append(shard(index), call).await)[0]
}

/// Brings a share of the rate, in percent, as calls of four records; until so much time has passed.
/// None of them is ever throttled.
async fn base(writer: &Writer, index: u32, percent: u64, duration: Duration) {
    let (started, mut brought) = (Instant::now(), 0);
    while started.elapsed() < duration {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let due = started.elapsed().as_micros() as u64 * BYTES.per_s * percent / 100 / 1_000_000;
        let bytes = ((due - brought) / 4) as usize;
        brought += 4 * bytes as u64;
        let told = fates(&writer.append(shard(index), records(&[(9, bytes); 4])).await);
        assert!(told.iter().all(Result::is_ok), "{told:?} beside a base of {percent} %");
    }
}

/// The bursts of large records, each on a shard of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_taken_once_its_bytes_have_come_back() {
    let (_node, _routes, writer) = start(4, limits(BYTES, RECORDS)).await;
    let idle = async {
        assert!(burst(&writer, 0).await.is_ok());
        let wait_us = burst(&writer, 0).await.expect_err("it was just used up");
        assert!(wait_us <= 2_000_000, "{wait_us} of two seconds");
        tokio::time::sleep(Duration::from_micros(wait_us)).await;
        assert!(burst(&writer, 0).await.is_ok(), "as soon as was said");
    };
    let beside_half = async {
        assert!(burst(&writer, 1).await.is_ok());
        base(&writer, 1, 50, Duration::from_secs(2)).await;
        assert!(burst(&writer, 1).await.is_err(), "half came back");
        base(&writer, 1, 50, Duration::from_millis(2400)).await;
        // What the last of the base took of a full bucket.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(burst(&writer, 1).await.is_ok());
    };
    let beside_all = async {
        assert!(burst(&writer, 2).await.is_ok());
        for _ in 0..4 {
            base(&writer, 2, 95, Duration::from_secs(1)).await;
            assert!(burst(&writer, 2).await.is_err(), "nothing is left for it");
        }
    };
    let by_count = async {
        let numbers: Vec<u64> = (0..400).collect();
        let started = Instant::now();
        let told = fates(&writer.append(shard(3), records_of(&numbers, 8)).await);
        let stored = told.iter().filter(|fate| fate.is_ok()).count();
        let most = 200 + started.elapsed().as_millis() as usize / 10 + 1;
        assert!((200..=most).contains(&stored), "{stored}, of {most}");
        assert!(told[..200].iter().all(Result::is_ok), "the first ones, in order");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(burst(&writer, 3).await.is_ok(), "its bytes are there");
    };
    tokio::join!(idle, beside_half, beside_all, by_count);
}

/// Whoever brings too much gets the rate and no more, however it is split, and loses nothing of it
/// to tokens that are held in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_brings_far_too_much_gets_the_rate() {
    let (_node, routes, writer) = start(1, limits(BYTES, PLENTY)).await;
    let started = Instant::now();
    let task = |task: u64| {
        let writer = writer.clone();
        tokio::spawn(async move {
            let mut random = support::Random(task * 77 + 1);
            let (mut stored, mut split) = (0, 0);
            while started.elapsed() < Duration::from_secs(2) {
                let sizes: Vec<(u64, usize)> = (0..1 + random.below(9))
                    .map(|_| (1, 9 + random.below(20_000) as usize))
                    .collect();
                let told = fates(&writer.append(shard(0), records(&sizes)).await);
                let of_call = sizes.iter().zip(&told).filter(|(_, fate)| fate.is_ok());
                stored += of_call.clone().map(|((_, bytes), _)| *bytes as u64).sum::<u64>();
                split += u64::from((1..told.len()).contains(&of_call.count()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (stored, split)
        })
    };
    let tasks: Vec<_> = (0..8).map(task).collect();
    let (mut stored, mut split) = (0, 0);
    for task in tasks {
        let of_task = task.await.expect("a task ends well");
        (stored, split) = (stored + of_task.0, split + of_task.1);
    }
    let most = BYTES.capacity + started.elapsed().as_millis() as u64 * BYTES.per_s / 1000;
    assert!(stored <= most, "{stored} of {most}");
    assert!(stored >= most * 3 / 4, "{stored} of {most}");
    assert!(split > 5, "{split} calls were split");
    let memory = AnswerMemory::new(64 << 20);
    assert!(!read_all(&fetcher(&routes, &memory), shard(0)).await.is_empty());
}
