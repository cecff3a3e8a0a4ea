//! What the workloads have in common: a stream that is there for the run, writing to it, reading
//! everything back, and the report.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::Value;

use super::connection::ClientPlan;
use super::control::{Control, MAX_RECORD_BYTES, control_plan};
use super::ledger::{Audit, Book, KEY_BYTES_MAX, Keys, RecordSource};
use super::outcome::ApiReport;
use super::put::{Put, PutPlan, on_runtime, put};
use super::read::{Read, ShardToRead, read};
use super::settings::Target;
use crate::drive::Progress;
use crate::error::BenchError;
use crate::limits::Limits;
use crate::machine::{Machine, resident_bytes_max};
use crate::million::watch;
use crate::report::Report;

/// A stream that is deleted when this goes, however the run ends.
pub struct StreamOfRun {
    plan: ClientPlan,
    /// Its name.
    pub name: String,
    /// Its ARN.
    pub arn: String,
    /// Its shards.
    pub shards: Vec<String>,
    /// How long it took to be ACTIVE, milliseconds.
    pub created_ms: u64,
}

impl StreamOfRun {
    /// Creates the target's stream and waits until it is ACTIVE and takes such records.
    ///
    /// # Errors
    /// [`BenchError`], among others when there is one of that name.
    pub fn create(
        target: &Target,
        shards: u32,
        record_bytes: usize,
    ) -> Result<StreamOfRun, BenchError> {
        let plan = control_plan(&target.plan);
        let name = target.stream.clone();
        eprintln!("creating stream {name} with {shards} shards at {} ...", target.url);
        let began = Instant::now();
        on_runtime(async {
            let client = plan.client();
            Control::new(&client).create_stream(&name, shards).await
        })?;
        // From here on it is there, and goes with this.
        let mut stream =
            StreamOfRun { plan, name, arn: String::new(), shards: Vec::new(), created_ms: 0 };
        let (arn, created_ms, found) = on_runtime(async {
            let client = stream.plan.client();
            let mut control = Control::new(&client);
            let arn = control.wait_active(&stream.name).await?;
            let created_ms = began.elapsed().as_millis() as u64;
            if (record_bytes + KEY_BYTES_MAX) as u64 > MAX_RECORD_BYTES {
                control.allow_large_records(&stream.name, &arn).await?;
            }
            Ok((arn, created_ms, control.shards(&stream.name).await?))
        })?;
        if found.len() != shards as usize {
            let (found, expected) = (found.len(), shards);
            return Err(BenchError::ShardCount { stream: stream.name.clone(), found, expected });
        }
        stream.arn = arn;
        stream.created_ms = created_ms;
        stream.shards = found;
        Ok(stream)
    }

    /// Registers a consumer, which goes with the stream; answers its ARN.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn register_consumer(&self, name: &str) -> Result<String, BenchError> {
        on_runtime(async {
            let client = self.plan.client();
            Control::new(&client).register_consumer(&self.arn, name).await
        })
    }

    /// All of its shards, to be read.
    #[must_use]
    pub fn shards_to_read(&self) -> Vec<ShardToRead> {
        let name = || self.name.clone();
        let shard = |shard: &String| ShardToRead { stream: 0, name: name(), shard: shard.clone() };
        self.shards.iter().map(shard).collect()
    }
}

impl Drop for StreamOfRun {
    fn drop(&mut self) {
        let deleted = on_runtime(async {
            let client = self.plan.client();
            Control::new(&client).delete_stream(&self.name).await
        });
        if let Err(error) = deleted {
            eprintln!("warning: stream {} could not be deleted: {error}", self.name);
        }
    }
}

/// Does something for each of `count` things, so many at a time, each with a connection.
///
/// # Errors
/// The first that comes; what is under way then comes to its end, and nothing more is begun.
pub fn on_controls(
    plan: &ClientPlan,
    connections: usize,
    count: u32,
    work: impl AsyncFn(&mut Control<'_>, u32) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let next = AtomicU32::new(0);
    on_runtime(async {
        let client = plan.client();
        let (client, next, work) = (&client, &next, &work);
        let lanes = (0..connections.min(count as usize)).map(async |_| {
            let mut control = Control::new(client);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                if let Err(error) = work(&mut control, number).await {
                    next.store(count, Ordering::Relaxed);
                    return Err(error);
                }
            }
        });
        join_all(lanes).await.into_iter().collect()
    })
}

/// Puts, with a line a second for who waits.
///
/// # Errors
/// [`BenchError`].
pub fn put_watched(plan: &PutPlan<'_>, records_max: Option<u64>) -> Result<Put, BenchError> {
    let progress = Arc::new(Progress { records_max, ..Progress::default() });
    let watcher = watch(progress.clone());
    let outcome = put(plan, &progress);
    progress.done.store(true, Ordering::Relaxed);
    let _ = watcher.join();
    outcome
}

/// A report in the making.
pub struct Run {
    /// What every report has.
    pub report: Report,
    /// What those of runs through the API have.
    pub api: ApiReport,
}

impl Run {
    /// A report without figures yet.
    #[must_use]
    pub fn new(workload: &'static str, target: &Target, settings: Value, shards: u32) -> Run {
        let settings = target.settings_with(settings);
        let report =
            Report::new(workload, &settings, Machine::here(Path::new(".")), None::<Limits>);
        Run { report, api: ApiReport::new(target, &target.stream, shards) }
    }

    /// Takes what came of writing.
    pub fn take_put(&mut self, put: &Put) {
        let span_s = put.span.as_secs_f64().max(1e-9);
        let report = &mut self.report;
        report.records_per_s = Some(put.records as f64 / span_s);
        report.bytes_per_s = Some(put.bytes as f64 / span_s);
        report.batches_per_s = Some(put.requests as f64 / span_s);
        report.processors_busy = Some(put.processor_s / span_s);
        if put.bytes > 0 {
            report.cpu_s_per_gb = Some(put.processor_s / (put.bytes as f64 / 1e9));
        } else {
            report.failures.push("nothing was acknowledged within the span that counts".into());
        }
        report.set_latency(&put.latency_us);
        self.take_counts(put);
    }

    /// Takes what was counted, without rates.
    pub fn take_counts(&mut self, put: &Put) {
        self.report.resident_bytes_max = resident_bytes_max();
        self.report.failures.extend(put.cut_short.map(str::to_owned));
        self.api.take(&put.counts);
        self.api.note_throttles();
        let errors = self.api.errors_line();
        if !errors.is_empty() {
            let last = put.counts.last_error.clone().unwrap_or_default();
            let what = format!("errors while it was written: {errors}; the last: {last}");
            self.report.failures.push(what);
        }
    }

    /// Reads shards back and holds them against what was acknowledged.
    ///
    /// # Errors
    /// [`BenchError`] when they cannot be read.
    pub fn read_back(
        &mut self,
        client: &ClientPlan,
        shards: &[ShardToRead],
        connections: usize,
        (books, keys, source): (&[Book], &Keys, &RecordSource),
    ) -> Result<Read, BenchError> {
        let acknowledged: u64 = books.iter().map(Book::acknowledged).sum();
        eprintln!("reading {acknowledged} acknowledged records back ...");
        let audit = Audit::new(books, keys, source);
        let back = read(client, shards, connections, &audit)?;
        let audited = audit.finish();
        self.report.verified = audited.deviations.is_empty() && acknowledged > 0;
        self.report.failures.extend(audited.deviations);
        let span_s = back.span.as_secs_f64().max(1e-9);
        self.report.read_back_bytes_per_s = Some(back.bytes as f64 / span_s);
        self.api.read_records = Some(back.records);
        self.api.read_records_per_s = Some(back.records as f64 / span_s);
        self.api.read_bytes_per_s = Some(back.bytes as f64 / span_s);
        self.api.read_requests = Some(back.counts.requests);
        self.api.read_throttled = Some(back.counts.throttled_requests);
        if back.counts.throttled_requests > 0 {
            let refused = back.counts.throttled_requests;
            self.api.note(format!(
                "reading met limits: {refused} requests were refused for the moment (a shard gives \
                 2 MiB and takes 5 calls a second); the rate is that of the limits"
            ));
        }
        if back.counts.errors_total() > 0 {
            let mut errors = ApiReport::default();
            errors.take(&back.counts);
            let errors = errors.errors_line();
            self.report.failures.push(format!("errors while it was read: {errors}"));
        }
        Ok(back)
    }

    /// Prints the report, writes it if a file was named, and answers whether the run passed.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub fn finish(self, json: Option<&Path>) -> Result<bool, BenchError> {
        let Run { mut report, api } = self;
        report.api = Some(api);
        report.passed = report.verified && report.failures.is_empty();
        report.print();
        report.write_json(json)?;
        Ok(report.passed)
    }
}
