//! Sending on a schedule that does not wait for answers.
//!
//! With a rate, each batch has an intended send time, and its latency counts from there: a node
//! that stalls is charged for everything that should have been sent meanwhile. At the maximum
//! there is no such schedule: a batch is intended for the moment at which the windows let it go,
//! and the figure that counts is the throughput.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use slab::Slab;
use thalweg_client::{Producer, ProducerConfig};
use thalweg_wire::checksum::{Chain, body_hash};
use thalweg_wire::ids::StreamId;

use crate::embedded::Target;
use crate::error::BenchError;
use crate::generator::{KeyTable, Source, batch_room};
use crate::machine::processor_seconds;
use crate::settings::{Rate, Workload};

/// What comes before the span that counts.
pub const WARM_UP: Duration = Duration::from_secs(1);
/// How long unanswered batches are waited for at the end.
const DRAIN: Duration = Duration::from_secs(30);
/// Bytes of the tail that is remembered: less than what a node keeps in memory.
pub const TAIL_BYTES: usize = 64 << 20;
/// Longest sleep of a generator thread.
const NAP: Duration = Duration::from_millis(5);

/// What one shard acked, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardLog {
    /// Offset after the last acked record.
    pub end: u64,
    /// Chain over the acked batches.
    pub chain: Chain,
}

/// What came of a drive.
pub struct Driven {
    /// Records acked within the span that counts.
    pub records: u64,
    /// Bytes of their batches.
    pub bytes: u64,
    /// Batches acked within the span.
    pub batches: u64,
    /// The span.
    pub span: Duration,
    /// Microseconds from intended send to ack, of batches intended within the span.
    pub latency_us: Histogram<u64>,
    /// Seconds of processor time of the whole process within the span.
    pub processor_s: f64,
    /// What each shard acked over all.
    pub shards: Vec<ShardLog>,
    /// The batches acked last, up to [`TAIL_BYTES`]: shard and first offset, oldest first.
    pub tail: Vec<(u32, u64)>,
    /// Batches that were refused, or whose outcome is not known; with the first reason.
    pub failures: (u64, Option<String>),
}

/// What a drive and who watches it tell each other.
#[derive(Default)]
pub struct Progress {
    /// Acked records after which the drive ends, before its time is over; what is under way then
    /// is waited for.
    pub records_max: Option<u64>,
    /// Records acked.
    pub records: AtomicU64,
    /// Longest latency since it was last looked at, microseconds.
    pub latency_us_max: AtomicU64,
    /// What was acked since somebody took it, for who reports while the drive goes on.
    pub acked: Option<Mutex<Acked>>,
    /// Set when the drive is over.
    pub done: AtomicBool,
}

/// What was acked in some time.
pub struct Acked {
    /// Records.
    pub records: u64,
    /// Microseconds from the intended sends of their batches.
    pub latency_us: Histogram<u64>,
}

impl Default for Acked {
    fn default() -> Acked {
        Acked { records: 0, latency_us: new_histogram() }
    }
}

/// Threads and connections of a drive.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Generator threads.
    pub threads: usize,
    /// Connections of each thread to each core.
    pub connections_per_core: usize,
}

impl Layout {
    /// As many threads as processors, connections and shards allow.
    #[must_use]
    pub fn new(workload: &Workload, cores: usize) -> Layout {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = workload.connections.unwrap_or(processors * cores).max(1);
        // A thread is connected to every core.
        let threads = processors.min(wanted.div_ceil(cores)).min(workload.shards as usize).max(1);
        let connections_per_core = (wanted / (threads * cores)).max(1);
        Layout { threads, connections_per_core }
    }

    /// Connections in all.
    #[must_use]
    pub fn connections(&self, cores: usize) -> usize {
        self.threads * self.connections_per_core * cores
    }
}

/// Drives a node whose shards are open.
///
/// # Errors
/// [`BenchError`] when the node is lost.
pub fn drive(
    workload: &Workload,
    layout: Layout,
    target: &Target,
    progress: &Arc<Progress>,
) -> Result<Driven, BenchError> {
    let keys = Arc::new(KeyTable::new(workload.shards));
    let start = Instant::now() + Duration::from_millis(50);
    let begin = start + WARM_UP;
    let span = Duration::from_secs(workload.seconds);
    let threads: Vec<_> = (0..layout.threads)
        .map(|thread| {
            let generator = GeneratorPlan {
                workload: workload.clone(),
                shards: shards_of(thread, layout.threads, target.addresses.len(), workload.shards),
                node: target.addresses[0],
                stream: target.stream,
                connections_per_core: layout.connections_per_core,
                keys: keys.clone(),
                progress: progress.clone(),
                start,
                begin,
                end: begin + span,
                tail_bytes_max: TAIL_BYTES / layout.threads,
            };
            std::thread::Builder::new()
                .name(format!("generator-{thread}"))
                .spawn(move || generator.run())
                .expect("a thread for the generator")
        })
        .collect();
    let (span, processor_s) = match progress.records_max {
        None => (span, measure_processor(begin, span)),
        Some(_) => measure_threads(begin, &threads),
    };
    let mut driven = Driven {
        records: 0,
        bytes: 0,
        batches: 0,
        span,
        latency_us: new_histogram(),
        processor_s,
        shards: vec![ShardLog::default(); workload.shards as usize],
        tail: Vec::new(),
        failures: (0, None),
    };
    for thread in threads {
        let part = thread.join().map_err(|_| BenchError::Panicked)??;
        driven.records += part.records;
        driven.bytes += part.bytes;
        driven.batches += part.batches;
        driven.latency_us.add(&part.latency_us).expect("histograms of one range");
        for (shard, log) in part.shards {
            driven.shards[shard as usize] = log;
        }
        driven.tail.extend(part.tail.into_iter().map(|(shard, first, _)| (shard, first)));
        driven.failures.0 += part.failures.0;
        driven.failures.1 = driven.failures.1.or(part.failures.1);
    }
    Ok(driven)
}

/// A histogram of microseconds.
#[must_use]
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("valid bounds")
}

/// Sleeps through the span; answers the processor time that the process used in it, seconds.
#[must_use]
pub fn measure_processor(begin: Instant, span: Duration) -> f64 {
    std::thread::sleep(begin.saturating_duration_since(Instant::now()));
    let before = processor_seconds();
    std::thread::sleep((begin + span).saturating_duration_since(Instant::now()));
    processor_seconds() - before
}

/// Sleeps until the threads end, which may be before `begin`; answers the span from then on, and
/// the processor time that the process used in it, seconds.
fn measure_threads<T>(begin: Instant, threads: &[JoinHandle<T>]) -> (Duration, f64) {
    let ended = || threads.iter().all(JoinHandle::is_finished);
    while Instant::now() < begin && !ended() {
        std::thread::sleep(NAP.min(begin.saturating_duration_since(Instant::now())));
    }
    let before = processor_seconds();
    while !ended() {
        std::thread::sleep(NAP);
    }
    (begin.elapsed(), processor_seconds() - before)
}

/// Shards of a thread: each thread has some of every core.
fn shards_of(thread: usize, threads: usize, cores: usize, shards: u32) -> Vec<u32> {
    let of_thread = |index: &u32| *index as usize / cores % threads == thread;
    let some: Vec<u32> = (0..shards).filter(of_thread).collect();
    if shards as usize >= threads * cores {
        return some;
    }
    (0..shards).filter(|index| *index as usize % threads == thread).collect()
}

struct GeneratorPlan {
    workload: Workload,
    shards: Vec<u32>,
    node: SocketAddr,
    stream: StreamId,
    connections_per_core: usize,
    keys: Arc<KeyTable>,
    progress: Arc<Progress>,
    start: Instant,
    begin: Instant,
    end: Instant,
    tail_bytes_max: usize,
}

struct Part {
    records: u64,
    bytes: u64,
    batches: u64,
    latency_us: Histogram<u64>,
    shards: Vec<(u32, ShardLog)>,
    tail: VecDeque<(u32, u64, usize)>,
    tail_bytes: usize,
    tail_bytes_max: usize,
    failures: (u64, Option<String>),
}

impl Part {
    fn note_tail(&mut self, shard: u32, first: u64, bytes: usize) {
        self.tail.push_back((shard, first, bytes));
        self.tail_bytes += bytes;
        while self.tail_bytes > self.tail_bytes_max {
            let (_, _, bytes) = self.tail.pop_front().expect("bytes of what is there");
            self.tail_bytes -= bytes;
        }
    }
}

struct SentBatch {
    intended: Instant,
    body_hash: u64,
}

struct Generator {
    plan: GeneratorPlan,
    producer: Producer,
    source: Source,
    sent: Slab<SentBatch>,
    part: Part,
    next_lane: usize,
}

impl GeneratorPlan {
    fn run(self) -> Result<Part, BenchError> {
        let source = Source::new(&self.workload)?;
        let config = ProducerConfig {
            shards: self.shards.clone(),
            connections_per_core: self.connections_per_core,
            window_bytes: self.workload.window_bytes,
            batch: batch_room(&self.workload),
            ..ProducerConfig::new(self.node, self.stream)
        };
        let producer = Producer::connect(config)?;
        let shards =
            producer.lanes().iter().map(|lane| (lane.shard.index, ShardLog::default())).collect();
        let part = Part {
            records: 0,
            bytes: 0,
            batches: 0,
            latency_us: new_histogram(),
            shards,
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_bytes_max: self.tail_bytes_max,
            failures: (0, None),
        };
        let sent = Slab::new();
        Generator { plan: self, producer, source, sent, part, next_lane: 0 }.run()
    }

    /// Whether as much was acked as the drive is for.
    fn has_enough(&self) -> bool {
        let records = || self.progress.records.load(Ordering::Relaxed);
        self.progress.records_max.is_some_and(|most| records() >= most)
    }

    /// Time between two batches of this thread; none at the maximum.
    fn interval(&self) -> Option<Duration> {
        match self.workload.rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => {
                let share = self.shards.len() as f64 / f64::from(self.workload.shards);
                let batches = rate as f64 * share / f64::from(self.workload.batch_records());
                Some(Duration::from_secs_f64(1.0 / batches))
            }
        }
    }
}

impl Generator {
    fn run(mut self) -> Result<Part, BenchError> {
        std::thread::sleep(self.plan.start.saturating_duration_since(Instant::now()));
        match self.plan.interval() {
            Some(interval) => self.run_at(interval)?,
            None => self.run_at_most()?,
        }
        let deadline = Instant::now() + DRAIN;
        while !self.producer.is_idle() && Instant::now() < deadline {
            self.producer.poll(NAP)?;
            self.take_outcomes();
        }
        if !self.sent.is_empty() {
            let unanswered = self.sent.len() as u64;
            self.fail(unanswered, "batches were not answered within 30 s".into());
        }
        Ok(self.part)
    }

    fn run_at(&mut self, interval: Duration) -> Result<(), BenchError> {
        let mut intended = self.plan.start;
        loop {
            let now = Instant::now();
            while intended <= now && intended < self.plan.end {
                let Some(lane) = self.lane_with_room() else { break };
                self.send(lane, intended);
                intended += interval;
            }
            if intended >= self.plan.end || self.plan.has_enough() {
                return Ok(());
            }
            let wait = intended.saturating_duration_since(Instant::now()).min(NAP);
            // Late already: then what must come first is room.
            let wait = if intended <= now { NAP } else { wait };
            self.producer.poll(wait)?;
            self.take_outcomes();
        }
    }

    fn run_at_most(&mut self) -> Result<(), BenchError> {
        while Instant::now() < self.plan.end && !self.plan.has_enough() {
            while let Some(lane) = self.lane_with_room() {
                self.send(lane, Instant::now());
            }
            self.producer.poll(NAP)?;
            self.take_outcomes();
        }
        Ok(())
    }

    /// The next lane in turn that takes a batch.
    fn lane_with_room(&mut self) -> Option<usize> {
        let count = self.part.shards.len();
        let lane = (0..count)
            .map(|step| (self.next_lane + step) % count)
            .find(|lane| self.producer.has_room(*lane))?;
        self.next_lane = lane + 1;
        Some(lane)
    }

    fn send(&mut self, lane: usize, intended: Instant) {
        let shard = self.part.shards[lane].0;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut batch = self.producer.builder();
        let records = self.plan.workload.batch_records();
        let time_ms = wall.as_millis() as u64;
        self.source.fill(&mut batch, &self.plan.keys, shard, records, time_ms);
        let body_hash = body_hash(batch.close());
        let tag = self.sent.insert(SentBatch { intended, body_hash });
        self.producer.submit(lane, batch, tag as u64);
    }

    fn take_outcomes(&mut self) {
        let now = Instant::now();
        while let Some(outcome) = self.producer.next_outcome() {
            let sent = self.sent.remove(outcome.tag as usize);
            let written = match outcome.result {
                Ok(written) => written,
                Err(error) => {
                    self.fail(1, error.to_string());
                    continue;
                }
            };
            let (_, log) = &mut self.part.shards[outcome.lane];
            let (first, records) = (written.first_offset.0, outcome.records);
            log.chain.absorb_hashed(first, records, sent.body_hash);
            if first != log.end {
                let what = format!("an ack named offset {first} where {} was due", log.end);
                self.fail(1, what);
                continue;
            }
            log.end = first + u64::from(records);
            self.part.note_tail(self.part.shards[outcome.lane].0, first, outcome.bytes);
            self.count(&outcome, sent.intended, now);
        }
    }

    fn count(&mut self, outcome: &thalweg_client::Outcome, intended: Instant, now: Instant) {
        let plan = &self.plan;
        let latency_us = now.saturating_duration_since(intended).as_micros() as u64;
        plan.progress.records.fetch_add(u64::from(outcome.records), Ordering::Relaxed);
        plan.progress.latency_us_max.fetch_max(latency_us, Ordering::Relaxed);
        if let Some(acked) = &plan.progress.acked {
            let mut acked = acked.lock().unwrap_or_else(PoisonError::into_inner);
            acked.records += u64::from(outcome.records);
            acked.latency_us.saturating_record(latency_us.max(1));
        }
        if now >= plan.begin && now < plan.end {
            self.part.records += u64::from(outcome.records);
            self.part.bytes += outcome.bytes as u64;
            self.part.batches += 1;
        }
        if intended >= plan.begin && intended < plan.end {
            self.part.latency_us.saturating_record(latency_us.max(1));
        }
    }

    fn fail(&mut self, count: u64, why: String) {
        self.part.failures.0 += count;
        self.part.failures.1.get_or_insert(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_one_thread() {
        for (threads, cores, shards) in [(2, 2, 1024), (1, 4, 3), (2, 2, 2), (3, 2, 7), (2, 2, 3)] {
            let mut all: Vec<u32> =
                (0..threads).flat_map(|thread| shards_of(thread, threads, cores, shards)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..shards).collect::<Vec<u32>>());
        }
        assert_eq!(shards_of(0, 2, 2, 8), [0, 1, 4, 5], "some of every core");
    }
}
