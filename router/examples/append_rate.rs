//! How fast the way to the nodes is, with node and router in one process and a real disk below:
//! records a second of calls with 500 records of 1 KiB from 64 tasks, and the latency of lone
//! records of 1 KiB at 500 and at 10,000 a second, whatever the answers to those before.
//!
//! `cargo run --release -p thalweg-router --example append_rate -- DIRECTORY [SHARDS] [SECONDS]`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thalweg_client::Admin;
use thalweg_node::{Node, NodeConfig};
use thalweg_router::route::{
    Route, RouteFuture, Routes, ShardRecords, Stale, Writer, WriterConfig,
};
use thalweg_wire::build::NewRecord;
use thalweg_wire::control::OpenExtent;
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId, StreamId};

const TASKS: u64 = 64;
const RECORDS_PER_CALL: u32 = 500;
const RECORD_BYTES: usize = 1024;
const LONE_PER_S: [u32; 2] = [500, 10_000];

/// Every shard on one core.
struct OneCore(SocketAddr);

impl Routes for OneCore {
    fn route(&self, _shard: ShardId) -> Option<Route> {
        Some(Route { epoch: Epoch(1), address: self.0 })
    }

    fn refresh(&self, shard: ShardId, _stale: Stale) -> RouteFuture<'_> {
        let route = self.route(shard);
        Box::pin(async move { route })
    }
}

fn shard(index: u32) -> ShardId {
    ShardId { stream: StreamId(1), index }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let parent = PathBuf::from(arguments.next().ok_or("a directory on a disk is needed")?);
    let shards: u32 = arguments.next().map_or(Ok(16), |shards| shards.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(10), |seconds| seconds.parse())?;
    let directory = tempfile::tempdir_in(parent)?;
    let node = Node::start(NodeConfig {
        data_dirs: vec![directory.path().join("d")],
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        cores: 1,
        memory_bytes: 512 << 20,
        prefill_bytes: 4 << 30,
        ..NodeConfig::default()
    })?;
    let address = node.addresses()[0];
    let opens: Vec<OpenExtent> = (0..shards)
        .map(|index| {
            let extent = ExtentId { shard: shard(index), epoch: Epoch(1) };
            OpenExtent::alone(extent, HashRange::FULL, Offset(0))
        })
        .collect();
    Admin::connect(address, Duration::from_secs(30))?.open_extents(&opens)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let writer = Writer::new(Arc::new(OneCore(address)), WriterConfig::default());
        for per_s in LONE_PER_S {
            lone(&writer, shards, seconds, per_s, &node).await;
        }
        bulk(&writer, shards, seconds, &node).await;
    });
    node.stop();
    Ok(())
}

fn records(count: u32, data: &[u8]) -> ShardRecords {
    let bytes = u64::from(count) * data.len() as u64;
    let mut records = ShardRecords::with_room(count, u64::from(count) * 8, bytes);
    for at in 0..count {
        let key = u64::from(at).to_le_bytes();
        let record = NewRecord { hash_key: HashKey(at.into()), client_time_ms: 0, key: &key, data };
        records.push(&record).expect("a record of a size that may be");
    }
    records
}

async fn bulk(writer: &Writer, shards: u32, seconds: u64, node: &Node) {
    let stored = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let before = node.counters();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (writer, stored) = (writer.clone(), stored.clone());
            tokio::spawn(async move {
                let data = vec![task as u8; RECORD_BYTES];
                let mut latencies_us = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    let index = (task % u64::from(shards)) as u32;
                    let appended =
                        writer.append(shard(index), records(RECORDS_PER_CALL, &data)).await;
                    let is_stored = appended.parts().iter().all(|part| part.result.is_ok());
                    assert!(is_stored, "{:?}", appended.parts());
                    stored.fetch_add(u64::from(RECORDS_PER_CALL), Ordering::Relaxed);
                    latencies_us.push(begun.elapsed().as_micros() as u64);
                }
                latencies_us
            })
        })
        .collect();
    let mut latencies_us = Vec::new();
    for task in tasks {
        latencies_us.extend(task.await.expect("a task ends well"));
    }
    let rate = stored.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    let after = node.counters();
    let batches = after.batches_appended - before.batches_appended;
    println!(
        "bulk: {rate:.0} records/s of {RECORD_BYTES} bytes, {TASKS} tasks, {shards} shards, \
         {batches} batches, {}",
        quantiles(latencies_us)
    );
}

async fn lone(writer: &Writer, shards: u32, seconds: u64, per_s: u32, node: &Node) {
    let started = tokio::time::Instant::now();
    let before = node.counters();
    let mut tasks = Vec::new();
    for at in 0..per_s * seconds as u32 {
        // The timer counts in milliseconds: those of one tick come together.
        tokio::time::sleep_until(started + Duration::from_secs(1) * at / per_s).await;
        let writer = writer.clone();
        tasks.push(tokio::spawn(async move {
            let begun = Instant::now();
            let appended = writer.append(shard(at % shards), records(1, &[7; RECORD_BYTES])).await;
            assert!(appended.parts()[0].result.is_ok(), "{:?}", appended.parts());
            begun.elapsed().as_micros() as u64
        }));
    }
    let mut latencies_us = Vec::new();
    for task in tasks {
        latencies_us.push(task.await.expect("a task ends well"));
    }
    let after = node.counters();
    let (batches, frames) = (
        after.batches_appended - before.batches_appended,
        after.frames_received - before.frames_received,
    );
    println!(
        "lone: {per_s} records/s of {RECORD_BYTES} bytes, {shards} shards, {} batches/s, {} \
         frames/s, {}",
        batches / seconds,
        frames / seconds,
        quantiles(latencies_us)
    );
}

fn quantiles(mut values_us: Vec<u64>) -> String {
    values_us.sort_unstable();
    let at = |share: f64| values_us[((values_us.len() - 1) as f64 * share) as usize];
    format!("p50 {} us, p99 {} us, p99.9 {} us", at(0.5), at(0.99), at(0.999))
}
