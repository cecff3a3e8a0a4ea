//! SIGKILL under load, again and again: every acked record is there, at its offset, once; an
//! idempotent producer that never noticed a thing makes no duplicates.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{NodeProcess, PATIENCE, STREAM, directory, two_free_ports};
use thalweg_client::{Producer, ProducerConfig, Reader, ReaderConfig};
use thalweg_wire::build::{BatchBuilder, BatchRoom, NewRecord};
use thalweg_wire::hash_range::HashRange;

const SHARDS: u32 = 6;

/// Numbers of records, by shard and offset.
type Records = BTreeMap<(u32, u64), u64>;

/// Crashes in all; more in the long mode.
fn crashes() -> u64 {
    let wanted = std::env::var("THALWEG_CRASHES").ok().and_then(|count| count.parse().ok());
    wanted.unwrap_or(5)
}

fn batch(shard: u32, next_number: &mut u64, round: u64) -> (BatchBuilder, Vec<u64>) {
    let records = 1 + (round % 7) as u32;
    // Every tenth batch is large enough to be written from where it was received.
    let data_bytes = if round.is_multiple_of(10) { 20_000 } else { 200 };
    let room = BatchRoom { records, key_bytes: records, data_bytes: records * data_bytes };
    let mut batch = BatchBuilder::new(room);
    let range = HashRange::of_initial_shard(shard, SHARDS);
    let mut numbers = Vec::new();
    for _ in 0..records {
        let mut data = vec![*next_number as u8; data_bytes as usize];
        data[..8].copy_from_slice(&next_number.to_le_bytes());
        let record = NewRecord { hash_key: range.start, client_time_ms: 1, key: b"k", data: &data };
        batch.push(&record);
        numbers.push(*next_number);
        *next_number += 1;
    }
    (batch, numbers)
}

/// Produces until told to stop; answers what was acked, by shard and offset.
fn produce(config: ProducerConfig, stop: &AtomicBool, acked_count: &AtomicU64) -> Records {
    let mut producer = Producer::connect(config).expect("the node serves");
    let mut under_way: BTreeMap<u64, (u32, Vec<u64>)> = BTreeMap::new();
    let mut acked = Records::new();
    let (mut round, mut next_number) = (0, 0);
    let mut deadline = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            let due = *deadline.get_or_insert(Instant::now() + PATIENCE);
            if under_way.is_empty() {
                return acked;
            }
            assert!(Instant::now() < due, "batches are not answered");
        } else if under_way.len() < 32 {
            let lane = round as usize % SHARDS as usize;
            if producer.has_room(lane) {
                let shard = producer.lanes()[lane].shard.index;
                let (batch, numbers) = batch(shard, &mut next_number, round);
                producer.submit(lane, batch, round);
                under_way.insert(round, (shard, numbers));
            }
            round += 1;
        }
        let wait = if under_way.len() < 32 { Duration::ZERO } else { Duration::from_millis(10) };
        producer.poll(wait).expect("the node comes back in time");
        while let Some(outcome) = producer.next_outcome() {
            let (shard, numbers) = under_way.remove(&outcome.tag).expect("answered once");
            let written = outcome.result.expect("an idempotent producer loses nothing");
            for (offset, number) in (written.first_offset.0..).zip(numbers) {
                let known = acked.insert((shard, offset), number);
                assert_eq!(known, None, "two acked records have one offset");
                acked_count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn read_everything(node: &NodeProcess) -> Records {
    let mut reader =
        Reader::connect(ReaderConfig::new(node.address(0), STREAM)).expect("it serves");
    let shards: Vec<u32> = reader.shards().iter().map(|shard| shard.id.index).collect();
    let mut found = Records::new();
    let read = reader.read_all(|place, batch| {
        for record in batch.records() {
            let number = u64::from_le_bytes(record.data[..8].try_into().expect("8 bytes"));
            assert!(record.data[8..].iter().all(|byte| *byte == number as u8), "its own bytes");
            found.insert((shards[place], record.offset.0), number);
        }
    });
    read.expect("everything can be read, without a gap");
    found
}

#[test]
fn killed_under_load_a_node_loses_nothing_and_repeats_nothing() {
    let data = directory();
    let mut node = NodeProcess::start(data.path(), two_free_ports(), 2);
    node.open_shards(SHARDS, None);
    let (stop, acked_count) = (AtomicBool::new(false), AtomicU64::new(0));
    let config =
        ProducerConfig { retry_for: PATIENCE, ..ProducerConfig::new(node.address(0), STREAM) };
    let acked = std::thread::scope(|scope| {
        let producing = scope.spawn(|| produce(config, &stop, &acked_count));
        for crash in 0..crashes() {
            // Each crash comes after some progress, at a moment of its own.
            let enough = acked_count.load(Ordering::Relaxed) + 200 + crash * 37;
            let started = Instant::now();
            while acked_count.load(Ordering::Relaxed) < enough && !producing.is_finished() {
                assert!(started.elapsed() < PATIENCE, "no progress after crash {crash}");
                std::thread::sleep(Duration::from_millis(1));
            }
            node.restart();
        }
        stop.store(true, Ordering::Relaxed);
        producing.join().expect("the producer ends well")
    });
    // Once more, so that nothing is read from what is only in memory.
    node.restart();
    let found = read_everything(&node);
    for (place, number) in &acked {
        assert_eq!(found.get(place), Some(number), "an acked record is where its ack said");
    }
    let numbers: BTreeSet<u64> = found.values().copied().collect();
    assert_eq!(numbers.len(), found.len(), "no record is there twice");
    assert!(acked.len() as u64 > 200 * crashes());
    println!("{} crashes, {} records acked, {} found", crashes(), acked.len(), found.len());
}
