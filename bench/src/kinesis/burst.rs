//! The workload `burst` through the API: what the token bucket of one shard lets pass, by
//! PutRecord.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use super::connection::{Client, Connection};
use super::encode::{Encoding, put_record};
use super::run::{Run, StreamOfRun};
use super::scan;
use super::settings::{BurstArgs, Target};
use crate::burst::{BurstTarget, Fate, KEY, LARGE_BYTES, Scenario};
use crate::error::BenchError;

/// A router that remembers how long a shard has nothing left counts from when it was told, which
/// is later by what a refusal of 10 MiB takes to come back.
const LAG: Duration = Duration::from_millis(250);

/// Runs the workload; answers whether every assertion held.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(args: &BurstArgs, url: &str) -> Result<bool, BenchError> {
    let target = Target::new(url, &args.through.access)?;
    let stream = StreamOfRun::create(&target, 1, LARGE_BYTES as usize)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let client = target.plan.client();
    let shard = ApiShard {
        runtime: runtime.map_err(BenchError::Threads)?,
        connection: client.connection(),
        client: &client,
        stream: &stream.name,
        buffer: Vec::new(),
        answer: Vec::new(),
        requests: 0,
        refused: 0,
    };
    let started = Instant::now();
    let mut scenario = Scenario::new(shard);
    scenario.play()?;
    let mut run = Run::new("burst", &target, json!({}), 1);
    run.api.created_ms = Some(stream.created_ms);
    let (shard, deviations, stored_bytes) = scenario.end();
    run.api.requests = shard.requests;
    run.api.throttled_requests = shard.refused;
    run.report.bytes_per_s = Some(stored_bytes as f64 / started.elapsed().as_secs_f64());
    run.report.failures = deviations;
    drop(shard);
    drop(stream);
    let Run { mut report, api } = run;
    report.api = Some(api);
    report.verified = report.failures.is_empty();
    report.passed = report.verified;
    for failure in &report.failures {
        println!("  FAILED: {failure}");
    }
    println!("  {}", if report.passed { "passed" } else { "failed" });
    report.write_json(args.common.json.as_deref())?;
    Ok(report.passed)
}

/// One shard, written through the API.
struct ApiShard<'s> {
    runtime: tokio::runtime::Runtime,
    connection: Connection<'s>,
    client: &'s Client,
    stream: &'s str,
    buffer: Vec<u8>,
    answer: Vec<u8>,
    requests: u64,
    refused: u64,
}

impl BurstTarget for ApiShard<'_> {
    fn lag(&self) -> Duration {
        LAG
    }

    fn send(&mut self, data: &[u8]) -> Result<Result<Fate, String>, BenchError> {
        let encoding: Encoding = self.client.encoding();
        put_record(encoding, &mut self.buffer, self.stream, KEY, data);
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let called = self.connection.call("PutRecord", &body, &mut self.answer);
        let called = self.runtime.block_on(called);
        self.buffer = body.try_into_mut().map(Vec::from).unwrap_or_default();
        self.requests += 1;
        match called {
            Ok(()) => Ok(scan::put_record(encoding, &self.answer)
                .map(|_| Fate::Passed)
                .map_err(|error| error.to_string())),
            Err(error) if error.kind() == "ProvisionedThroughputExceededException" => {
                self.refused += 1;
                Ok(Ok(Fate::Refused))
            }
            Err(source) => Err(BenchError::Call { operation: "PutRecord", source }),
        }
    }

    fn wait_until(&mut self, due: Instant) -> Result<(), BenchError> {
        // The connection is looked after meanwhile.
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            self.runtime.block_on(async { tokio::time::sleep(left).await });
        }
        Ok(())
    }
}
