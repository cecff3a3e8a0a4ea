//! The workload `shards`: very many shards of which few are written. What counts is how long the
//! node takes to start with them, the memory it holds, and what it does while nothing happens.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use thalweg_client::{Producer, ProducerConfig};
use thalweg_node::NodeConfig;
use thalweg_wire::build::{BatchRoom, NewRecord};
use thalweg_wire::checksum::body_hash;

use crate::drive::ShardLog;
use crate::embedded::{DirectoryOfRun, Target};
use crate::error::BenchError;
use crate::limits::measure;
use crate::machine::Machine;
use crate::process::NodeProcess;
use crate::report::{Report, print_limits};
use crate::settings::Shards;
use crate::verify::read_back;

/// Zero-filled segments of each log before the first start: enough that the second need not fill
/// any.
const SEGMENTS: u64 = 5;
/// How long a node is left alone before it counts as idle: a segment takes the place of the one
/// it began at its start, zero-filled in the background.
const SETTLE: Duration = Duration::from_secs(3);
/// Batches that each active shard gets, and records of each.
const BATCHES: u64 = 10;
const BATCH_RECORDS: u32 = 10;
const RECORD_BYTES: usize = 1024;
const KEY: &[u8] = b"active";
/// How long a batch may be unanswered.
const ANSWER: Duration = Duration::from_secs(30);

/// Runs the workload; answers whether the active shards have after the restart what they acked.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(settings: &Shards) -> Result<bool, BenchError> {
    settings.check()?;
    let limits = measure(&settings.common.data_dir)?;
    print_limits(&limits);
    let dir = DirectoryOfRun::make(&settings.common.data_dir)?;
    let disk = dir.path().join("disk-0");
    let logs = settings.common.logs();
    let prefill = SEGMENTS * NodeConfig::default().segment_bytes * logs as u64;
    let (node, _) = NodeProcess::start(&settings.common, &disk, prefill)?;
    eprintln!("opening {} shards ...", settings.shards);
    let began = Instant::now();
    node.target().open_shards(settings.shards, None)?;
    eprintln!(
        "opened in {:.1} s; writing to {} ...",
        began.elapsed().as_secs_f64(),
        settings.active
    );
    let mut report = Report::new("shards", settings, Machine::here(dir.path()), limits);
    let acked = write(settings, &node.target(), &mut report)?;
    node.stop()?;
    eprintln!("starting again ...");
    let (node, took) = NodeProcess::start(&settings.common, &disk, 0)?;
    report.restart_ms = Some(took.as_millis() as u64);
    std::thread::sleep(SETTLE);
    eprintln!("{} ms; idle for {} s ...", took.as_millis(), settings.seconds);
    let (before, began) = (node.usage()?, Instant::now());
    std::thread::sleep(Duration::from_secs(settings.seconds));
    let (after, span_s) = (node.usage()?, began.elapsed().as_secs_f64());
    report.processors_busy = Some((after.processor_s - before.processor_s) / span_s);
    report.resident_bytes = Some(after.resident_bytes);
    report.resident_bytes_max = after.resident_bytes_max;
    eprintln!("reading back ...");
    let back = read_back(&node.target(), &acked)?;
    report.verified = back.deviation.is_none() && back.records > 0;
    report.failures.extend(back.deviation);
    node.stop()?;
    report.passed = report.verified && report.failures.is_empty();
    report.print();
    report.write_json(settings.common.json.as_deref())?;
    Ok(report.passed)
}

/// The shards that are written, spread over all.
fn active_shards(settings: &Shards) -> Vec<u32> {
    let (shards, active) = (u64::from(settings.shards), u64::from(settings.active));
    (0..active).map(|number| (number * shards / active) as u32).collect()
}

/// Writes a little to each active shard; answers what every shard acked.
fn write(
    settings: &Shards,
    target: &Target,
    report: &mut Report,
) -> Result<Vec<ShardLog>, BenchError> {
    let room = BatchRoom {
        records: BATCH_RECORDS,
        key_bytes: BATCH_RECORDS * KEY.len() as u32,
        data_bytes: BATCH_RECORDS * RECORD_BYTES as u32,
    };
    let config = ProducerConfig {
        shards: active_shards(settings),
        batch: room,
        ..ProducerConfig::new(target.addresses[0], target.stream)
    };
    let mut producer = Producer::connect(config)?;
    let lanes: Vec<_> =
        producer.lanes().iter().map(|lane| (lane.shard.index, lane.range.start)).collect();
    let mut acked = vec![ShardLog::default(); settings.shards as usize];
    let mut hashes = HashMap::new();
    let mut data = [0x5a; RECORD_BYTES];
    let mut due = (0..BATCHES).flat_map(|_| lanes.iter().enumerate()).zip(0_u64..).peekable();
    let deadline = Instant::now() + ANSWER;
    while due.peek().is_some() || !producer.is_idle() {
        while let Some(((lane, (index, hash_key)), tag)) =
            due.next_if(|((lane, _), _)| producer.has_room(*lane))
        {
            let mut batch = producer.builder();
            for number in 0..BATCH_RECORDS {
                data[..8].copy_from_slice(&tag.to_le_bytes());
                data[8..12].copy_from_slice(&number.to_le_bytes());
                data[12..16].copy_from_slice(&index.to_le_bytes());
                let (hash_key, key) = (*hash_key, KEY);
                batch.push(&NewRecord { hash_key, client_time_ms: tag, key, data: &data });
            }
            hashes.insert(tag, body_hash(batch.close()));
            producer.submit(lane, batch, tag);
        }
        producer.poll(Duration::from_millis(20))?;
        while let Some(outcome) = producer.next_outcome() {
            let hash = hashes.remove(&outcome.tag).expect("each batch has one outcome");
            match outcome.result {
                Ok(stored) => {
                    let log = &mut acked[lanes[outcome.lane].0 as usize];
                    log.chain.absorb_hashed(stored.first_offset.0, outcome.records, hash);
                    log.end = stored.first_offset.after(u64::from(outcome.records)).0;
                }
                Err(error) => report.failures.push(error.to_string()),
            }
        }
        if Instant::now() > deadline {
            report.failures.push(format!("{} batches were not answered", hashes.len()));
            break;
        }
    }
    Ok(acked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Common;

    #[test]
    fn active_shards_are_spread_over_all() {
        let common = Common { data_dir: "x".into(), cores: 0, memory_bytes: 512 << 20, json: None };
        let some = Shards { common, shards: 10, active: 4, seconds: 1 };
        assert_eq!(active_shards(&some), [0, 2, 5, 7]);
        let all = Shards { active: 10, ..some.clone() };
        assert_eq!(active_shards(&all), (0..10).collect::<Vec<u32>>());
        assert!(all.check().is_ok());
        assert!(Shards { active: 11, ..some.clone() }.check().is_err());
        assert!(Shards { active: 0, ..some }.check().is_err());
    }
}
