//! The workload `burst`: what the token bucket of one shard lets pass, and when.
//!
//! A shard takes 10 MiB at once and 1 MiB/s on. The steps follow what AWS showed of it (re:Invent
//! 2025, ANT423): every pass and every refusal is asserted.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_client::{Producer, ProducerConfig, ProducerError};
use thalweg_wire::build::{BatchBuilder, BatchRoom, NewRecord};
use thalweg_wire::control::ShardLimits;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::limits::SHARD_BYTES_CAPACITY;

use crate::embedded::EmbeddedNode;
use crate::error::BenchError;
use crate::limits::measure;
use crate::machine::Machine;
use crate::report::Report;
use crate::settings::Common;

const KEY: &[u8] = b"burst";
/// Key and data together.
const LARGE_BYTES: u64 = SHARD_BYTES_CAPACITY;
const MIB: u64 = 1 << 20;
/// Records of the base load in a second.
const BASE_PER_S: u32 = 16;
/// The base load runs so long behind its refill: the bucket's clock is not ours.
const BASE_LAG: Duration = Duration::from_millis(25);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs the workload; answers whether every assertion held.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(settings: &Common) -> Result<bool, BenchError> {
    let limits = measure(&settings.data_dir)?;
    let node = EmbeddedNode::start(settings, 0)?;
    let target = node.target();
    target.open_shards(1, Some(ShardLimits::KINESIS))?;
    let config = ProducerConfig {
        repeat_throttled: false,
        window_bytes: 64 << 20,
        ..ProducerConfig::new(target.addresses[0], target.stream)
    };
    let started = Instant::now();
    let mut scenario = Scenario {
        producer: Producer::connect(config)?,
        hash_key: HashKey::of_partition_key(KEY),
        started,
        deviations: Vec::new(),
        stored_bytes: 0,
    };
    scenario.play()?;
    let mut report = Report::new("burst", settings, Machine::here(node.dir()), limits);
    report.set_node(&node.counters());
    report.bytes_per_s = Some(scenario.stored_bytes as f64 / started.elapsed().as_secs_f64());
    report.failures = scenario.deviations;
    report.verified = report.failures.is_empty();
    report.passed = report.verified;
    for failure in &report.failures {
        println!("  FAILED: {failure}");
    }
    println!("  {}", if report.passed { "passed" } else { "failed" });
    report.write_json(settings.json.as_deref())?;
    Ok(report.passed)
}

/// What happened to a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Passed,
    Refused,
}

struct Scenario {
    producer: Producer,
    hash_key: HashKey,
    started: Instant,
    deviations: Vec<String>,
    stored_bytes: u64,
}

impl Scenario {
    fn play(&mut self) -> Result<(), BenchError> {
        self.expect("a 10 MiB record on an idle shard", Fate::Passed, LARGE_BYTES)?;
        let first = Instant::now();
        self.expect("a second one at once", Fate::Refused, LARGE_BYTES)?;
        self.wait_until(first + Duration::from_secs(9))?;
        self.expect("a second one after 9 s without base load", Fate::Refused, LARGE_BYTES)?;
        self.wait_until(first + Duration::from_millis(10_050))?;
        self.expect("a second one after 10 s without base load", Fate::Passed, LARGE_BYTES)?;

        let burst = Instant::now();
        self.base_load(burst, 10, MIB / 2)?;
        self.expect("another after 10 s at 0.5 MiB/s", Fate::Refused, LARGE_BYTES)?;
        self.base_load(burst + Duration::from_secs(10), 10, MIB / 2)?;
        // The base load took its half of twenty seconds to the last byte.
        self.wait_until(burst + Duration::from_millis(20_100))?;
        self.expect("another after 20 s at 0.5 MiB/s", Fate::Passed, LARGE_BYTES)?;

        let burst = Instant::now();
        for span in 0..6 {
            self.base_load(burst + Duration::from_secs(span * 2), 2, MIB)?;
            let what = format!("another after {} s at 1 MiB/s", span * 2 + 2);
            self.expect(&what, Fate::Refused, LARGE_BYTES)?;
        }
        Ok(())
    }

    /// `bytes` a second in equal records for some seconds from `start` on; none may be refused.
    fn base_load(&mut self, start: Instant, seconds: u32, bytes: u64) -> Result<(), BenchError> {
        let each = bytes / u64::from(BASE_PER_S);
        let mut refused = 0;
        for number in 1..=seconds * BASE_PER_S {
            let due = start + Duration::from_secs(1) * number / BASE_PER_S + BASE_LAG;
            self.wait_until(due)?;
            refused += u32::from(self.send(each)? == Fate::Refused);
        }
        let what = format!("{seconds} s of {:.1} MiB/s", bytes as f64 / MIB as f64);
        self.note(&what, "unthrottled", refused == 0);
        Ok(())
    }

    fn expect(&mut self, what: &str, expected: Fate, bytes: u64) -> Result<(), BenchError> {
        let fate = self.send(bytes)?;
        let outcome = if fate == Fate::Passed { "passes" } else { "is refused" };
        self.note(what, outcome, fate == expected);
        Ok(())
    }

    fn note(&mut self, what: &str, outcome: &str, as_expected: bool) {
        let at_s = self.started.elapsed().as_secs_f64();
        let verdict = if as_expected { "" } else { "  NOT AS EXPECTED" };
        println!("  {at_s:6.2} s  {what}: {outcome}{verdict}");
        if !as_expected {
            self.deviations.push(format!("{what}: {outcome}"));
        }
    }

    fn wait_until(&mut self, due: Instant) -> Result<(), BenchError> {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            self.producer.poll(left)?;
        }
        Ok(())
    }

    /// Sends one record of so many bytes, key and data together; waits for its fate.
    fn send(&mut self, bytes: u64) -> Result<Fate, BenchError> {
        let data_bytes = bytes as u32 - KEY.len() as u32;
        let room = BatchRoom { records: 1, key_bytes: KEY.len() as u32, data_bytes };
        let mut batch = BatchBuilder::new(room);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let data = vec![self.stored_bytes as u8; data_bytes as usize];
        batch.push(&NewRecord {
            hash_key: self.hash_key,
            client_time_ms: wall.as_millis() as u64,
            key: KEY,
            data: &data,
        });
        self.producer.submit(0, batch, 0);
        let deadline = Instant::now() + ANSWER;
        loop {
            self.producer.poll(Duration::from_millis(20))?;
            if let Some(outcome) = self.producer.next_outcome() {
                return Ok(match outcome.result {
                    Ok(_) => {
                        self.stored_bytes += bytes;
                        Fate::Passed
                    }
                    Err(ProducerError::Refused(refusal))
                        if refusal.code == ErrorCode::Throttled =>
                    {
                        Fate::Refused
                    }
                    Err(error) => {
                        self.deviations.push(error.to_string());
                        Fate::Refused
                    }
                });
            }
            if Instant::now() > deadline {
                self.deviations.push("a record was not answered within 5 s".into());
                return Ok(Fate::Refused);
            }
        }
    }
}
