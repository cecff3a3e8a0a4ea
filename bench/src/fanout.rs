//! The workload `fanout`: one shard, written at a steady rate, pushed to many subscribers. What
//! counts is how long a record takes from its intended send to each of them, and that each gets
//! all of them once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use thalweg_client::{Event, Producer, ProducerConfig, Subscriber, SubscriberConfig};
use thalweg_wire::build::{BatchRoom, NewRecord};
use thalweg_wire::checksum::{Chain, body_hash};
use thalweg_wire::fetch::FetchFrom;

use crate::drive::{ShardLog, WARM_UP, measure_processor, new_histogram};
use crate::embedded::{EmbeddedNode, Target};
use crate::error::BenchError;
use crate::generator::{KEY_BYTES_MAX, KeyTable};
use crate::limits::measure;
use crate::machine::Machine;
use crate::report::{Report, print_limits};
use crate::settings::Fanout;

/// How long what was acked may take to come.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Longest sleep of a thread: how late it sees that all has been sent.
const NAP: Duration = Duration::from_millis(100);

/// Runs the workload; answers whether every subscriber got everything.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(settings: &Fanout) -> Result<bool, BenchError> {
    settings.check()?;
    let limits = measure(&settings.common.data_dir)?;
    print_limits(&limits);
    let bytes = settings.rate * settings.record_bytes as u64 * (settings.seconds + 2) * 2;
    let node = EmbeddedNode::start(&settings.common, bytes)?;
    let target = node.target();
    target.open_shards(1, None)?;
    let start = Instant::now() + Duration::from_millis(200);
    let plan = Arc::new(Plan {
        settings: settings.clone(),
        target,
        start,
        begin: start + WARM_UP,
        span: Duration::from_secs(settings.seconds),
        sent_until: AtomicU64::new(u64::MAX),
    });
    let subscribers: Vec<_> = (0..settings.subscribers)
        .map(|_| {
            // Before the first record: each sees all of them.
            let config = SubscriberConfig {
                from: FetchFrom::Earliest,
                ..SubscriberConfig::new(plan.target.addresses[0], plan.target.stream)
            };
            let (subscriber, plan) = (Subscriber::connect(config)?, plan.clone());
            Ok(std::thread::spawn(move || listen(subscriber, &plan)))
        })
        .collect::<Result<_, BenchError>>()?;
    let writer = {
        let plan = plan.clone();
        std::thread::spawn(move || write(&plan))
    };
    let processor_s = measure_processor(plan.begin, plan.span);
    let written = writer.join().map_err(|_| BenchError::Panicked)?;
    // Who listens must learn that there is no more, whatever became of the writer.
    let end = written.as_ref().map_or(0, |written| written.log.end);
    plan.sent_until.store(end, Ordering::Release);
    let mut report = Report::new("fanout", settings, Machine::here(node.dir()), limits);
    let mut latency_us = new_histogram();
    for (number, thread) in subscribers.into_iter().enumerate() {
        let heard = thread.join().map_err(|_| BenchError::Panicked)??;
        latency_us.add(&heard.latency_us).expect("histograms of one range");
        if let Ok(written) = &written
            && heard.log != written.log
        {
            report.failures.push(format!(
                "subscriber {number}: {} records were acked and {} came, or others",
                written.log.end, heard.log.end
            ));
        }
    }
    let written = written?;
    let counters = node.counters();
    report.failures.extend(written.failure);
    if counters.batches_from_disk > counters.batches_appended {
        let reads = counters.batches_from_disk;
        report.failures.push(format!("batches were read from disk {reads} times"));
    }
    let span_s = plan.span.as_secs_f64();
    report.records_per_s = Some(written.records as f64 / span_s);
    report.bytes_per_s = Some(written.bytes as f64 / span_s);
    report.batches_per_s = Some(written.batches as f64 / span_s);
    report.processors_busy = Some(processor_s / span_s);
    report.set_latency(&latency_us);
    report.set_node(&counters);
    report.verified = report.failures.is_empty();
    report.passed = report.verified;
    report.print();
    report.write_json(settings.common.json.as_deref())?;
    Ok(report.passed)
}

struct Plan {
    settings: Fanout,
    target: Target,
    start: Instant,
    /// When the span that counts begins.
    begin: Instant,
    span: Duration,
    /// The offset after the last record, once it is known.
    sent_until: AtomicU64,
}

impl Plan {
    /// Whether what was to be sent then counts.
    fn counts(&self, intended: Instant) -> bool {
        intended >= self.begin && intended < self.begin + self.span
    }
}

struct Written {
    log: ShardLog,
    records: u64,
    bytes: u64,
    batches: u64,
    failure: Option<String>,
}

/// Sends batches on a schedule; each record is stamped with when it was to be sent.
fn write(plan: &Plan) -> Result<Written, BenchError> {
    let Fanout { rate, record_bytes, batch_records, .. } = plan.settings;
    let room = BatchRoom {
        records: batch_records,
        key_bytes: batch_records * KEY_BYTES_MAX as u32,
        data_bytes: batch_records * record_bytes as u32,
    };
    let config = ProducerConfig {
        batch: room,
        ..ProducerConfig::new(plan.target.addresses[0], plan.target.stream)
    };
    let mut producer = Producer::connect(config)?;
    let keys = KeyTable::new(1);
    let interval = Duration::from_secs_f64(f64::from(batch_records) / rate as f64);
    let mut data = vec![0x5a; record_bytes];
    let (mut log, mut hashes) = (ShardLog::default(), std::collections::VecDeque::new());
    let mut written = Written { log, records: 0, bytes: 0, batches: 0, failure: None };
    let mut intended = plan.start;
    let end = plan.begin + plan.span;
    while intended < end || !producer.is_idle() {
        while intended <= Instant::now() && intended < end && producer.has_room(0) {
            let mut batch = producer.builder();
            let stamp = (intended - plan.start).as_micros() as u64;
            data[..8].copy_from_slice(&stamp.to_le_bytes());
            for number in 0..u64::from(batch_records) {
                let (hash_key, key) = keys.key(0, number);
                data[8..16].copy_from_slice(&number.to_le_bytes());
                batch.push(&NewRecord { hash_key, client_time_ms: stamp, key, data: &data });
            }
            hashes.push_back((intended, body_hash(batch.close())));
            producer.submit(0, batch, 0);
            intended += interval;
        }
        producer.poll(intended.saturating_duration_since(Instant::now()).min(NAP))?;
        while let Some(outcome) = producer.next_outcome() {
            let (intended, hash) = hashes.pop_front().expect("outcomes come in the order of sends");
            let stored = match outcome.result {
                Ok(stored) => stored,
                Err(error) => {
                    written.failure.get_or_insert(error.to_string());
                    continue;
                }
            };
            log.chain.absorb_hashed(stored.first_offset.0, outcome.records, hash);
            log.end = stored.first_offset.after(u64::from(outcome.records)).0;
            if plan.counts(intended) {
                written.records += u64::from(outcome.records);
                written.bytes += outcome.bytes as u64;
                written.batches += 1;
            }
        }
    }
    Ok(Written { log, ..written })
}

struct Heard {
    log: ShardLog,
    latency_us: Histogram<u64>,
}

/// Takes what is pushed until everything has come, or does not any more.
fn listen(mut subscriber: Subscriber, plan: &Plan) -> Result<Heard, BenchError> {
    let mut heard =
        Heard { log: ShardLog { end: 0, chain: Chain::default() }, latency_us: new_histogram() };
    let mut last = Instant::now();
    loop {
        let until = plan.sent_until.load(Ordering::Acquire);
        if heard.log.end >= until || (until != u64::MAX && last.elapsed() > ARRIVAL) {
            return Ok(heard);
        }
        subscriber.poll(NAP, |_, event| {
            let Event::Batch(batch) = event else { return };
            last = Instant::now();
            heard.log.chain.absorb(batch.header.first_offset.0, batch.header.records, batch.body());
            heard.log.end = batch.header.end_offset().0;
            let Some(stamp) = batch.records().next().map(|record| record.client_time_ms) else {
                return;
            };
            let intended = plan.start + Duration::from_micros(stamp);
            if plan.counts(intended) {
                let latency = last.saturating_duration_since(intended).as_micros() as u64;
                heard.latency_us.saturating_record(latency.max(1));
            }
        })?;
    }
}
