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

/// The partition key of every record.
pub const KEY: &str = "burst";
/// Key and data of a large record together.
pub const LARGE_BYTES: u64 = SHARD_BYTES_CAPACITY;
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
    let producer = Producer::connect(config)?;
    let hash_key = HashKey::of_partition_key(KEY.as_bytes());
    let mut scenario = Scenario::new(NodeShard { producer, hash_key });
    scenario.play()?;
    let (_, deviations, stored_bytes) = scenario.end();
    let mut report = Report::new("burst", settings, Machine::here(node.dir()), limits);
    report.set_node(&node.counters());
    report.bytes_per_s = Some(stored_bytes as f64 / started.elapsed().as_secs_f64());
    report.failures = deviations;
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
pub enum Fate {
    /// It is stored.
    Passed,
    /// The shard's limits did not let it through.
    Refused,
}

/// The shard that is written, however it is reached.
pub trait BurstTarget {
    /// Sends one record of these data under [`KEY`] and waits for its fate, or for what else went
    /// wrong with it.
    ///
    /// # Errors
    /// [`BenchError`] when the target is lost.
    fn send(&mut self, data: &[u8]) -> Result<Result<Fate, String>, BenchError>;

    /// Waits for a moment.
    ///
    /// # Errors
    /// [`BenchError`] when the target is lost meanwhile.
    fn wait_until(&mut self, due: Instant) -> Result<(), BenchError>;

    /// How much later than the bucket is full a record that needs all of it is sent: the bucket's
    /// clock is not ours, and who stands before it may remember a refusal a moment too long.
    fn lag(&self) -> Duration;
}

/// The steps of the workload.
pub struct Scenario<T> {
    target: T,
    started: Instant,
    deviations: Vec<String>,
    stored_bytes: u64,
    data: Vec<u8>,
}

impl<T: BurstTarget> Scenario<T> {
    /// Of a shard to which nothing was written yet.
    pub fn new(target: T) -> Scenario<T> {
        let started = Instant::now();
        Scenario { target, started, deviations: Vec::new(), stored_bytes: 0, data: Vec::new() }
    }

    /// The target, what was not as expected, and the bytes that were stored.
    pub fn end(self) -> (T, Vec<String>, u64) {
        (self.target, self.deviations, self.stored_bytes)
    }

    /// Plays all of it; takes about 45 s.
    ///
    /// # Errors
    /// [`BenchError`] when the target is lost.
    pub fn play(&mut self) -> Result<(), BenchError> {
        self.expect("a 10 MiB record on an idle shard", Fate::Passed, LARGE_BYTES)?;
        let first = Instant::now();
        self.expect("a second one at once", Fate::Refused, LARGE_BYTES)?;
        self.target.wait_until(first + Duration::from_secs(9))?;
        self.expect("a second one after 9 s without base load", Fate::Refused, LARGE_BYTES)?;
        self.target.wait_until(first + Duration::from_secs(10) + self.target.lag())?;
        self.expect("a second one after 10 s without base load", Fate::Passed, LARGE_BYTES)?;

        let burst = Instant::now();
        self.base_load(burst, 10, MIB / 2)?;
        self.expect("another after 10 s at 0.5 MiB/s", Fate::Refused, LARGE_BYTES)?;
        self.base_load(burst + Duration::from_secs(10), 10, MIB / 2)?;
        // The base load took its half of twenty seconds to the last byte.
        self.target.wait_until(burst + Duration::from_secs(20) + self.target.lag() * 2)?;
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
            self.target.wait_until(due)?;
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

    /// Sends one record of so many bytes, key and data together.
    fn send(&mut self, bytes: u64) -> Result<Fate, BenchError> {
        self.data.clear();
        self.data.resize(bytes as usize - KEY.len(), self.stored_bytes as u8);
        Ok(match self.target.send(&self.data)? {
            Ok(Fate::Passed) => {
                self.stored_bytes += bytes;
                Fate::Passed
            }
            Ok(Fate::Refused) => Fate::Refused,
            Err(what) => {
                self.deviations.push(what);
                Fate::Refused
            }
        })
    }
}

/// One shard of a node.
struct NodeShard {
    producer: Producer,
    hash_key: HashKey,
}

impl BurstTarget for NodeShard {
    fn lag(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn send(&mut self, data: &[u8]) -> Result<Result<Fate, String>, BenchError> {
        let (key_bytes, data_bytes) = (KEY.len() as u32, data.len() as u32);
        let mut batch = BatchBuilder::new(BatchRoom { records: 1, key_bytes, data_bytes });
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        batch.push(&NewRecord {
            hash_key: self.hash_key,
            client_time_ms: wall.as_millis() as u64,
            key: KEY.as_bytes(),
            data,
        });
        self.producer.submit(0, batch, 0);
        let deadline = Instant::now() + ANSWER;
        loop {
            self.producer.poll(Duration::from_millis(20))?;
            if let Some(outcome) = self.producer.next_outcome() {
                return Ok(match outcome.result {
                    Ok(_) => Ok(Fate::Passed),
                    Err(ProducerError::Refused(refusal))
                        if refusal.code == ErrorCode::Throttled =>
                    {
                        Ok(Fate::Refused)
                    }
                    Err(error) => Err(error.to_string()),
                });
            }
            if Instant::now() > deadline {
                return Ok(Err("a record was not answered within 5 s".into()));
            }
        }
    }

    fn wait_until(&mut self, due: Instant) -> Result<(), BenchError> {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            self.producer.poll(left)?;
        }
        Ok(())
    }
}
