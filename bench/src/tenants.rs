//! The workload `tenants`: quiet accounts, first alone, then beside a noisy one that writes as much
//! as it can. What counts is what the noise does to the quiet ones' acks.

use std::sync::Arc;
use std::time::Duration;

use thalweg_wire::ids::StreamId;

use crate::drive::{Driven, Layout, Progress, WARM_UP, drive};
use crate::embedded::{EmbeddedNode, Target};
use crate::error::BenchError;
use crate::limits::measure;
use crate::machine::Machine;
use crate::report::{Report, grouped, print_limits};
use crate::settings::{Rate, Tenants, Workload};
use crate::verify::read_back;

/// How much longer the noise lasts than what it disturbs.
const NOISE_MORE: Duration = Duration::from_secs(1);
/// The noise is made at this nice value. Its generator may be on the processors of the node that
/// it writes to, where at the same priority it delays acks by taking processor time too: noise of
/// another machine does not.
const NOISE_NICE: i32 = 10;

/// Runs the workload; answers whether everything acked is there.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(settings: &Tenants) -> Result<bool, BenchError> {
    let (quiet, noisy) = settings.workloads();
    quiet.check()?;
    noisy.check()?;
    let limits = measure(&settings.common.data_dir)?;
    print_limits(&limits);
    let noise_s = (settings.seconds + 2) as f64 + NOISE_MORE.as_secs_f64();
    let node = EmbeddedNode::start(
        &settings.common,
        (limits.disk_write_bytes_per_s * 1.1 * noise_s) as u64,
    )?;
    let target = |stream| Target { stream: StreamId(stream), ..node.target() };
    let (loud_target, alone_target, beside_target) = (target(1), target(2), target(3));
    loud_target.open_shards(noisy.shards, None)?;
    alone_target.open_shards(quiet.shards, None)?;
    beside_target.open_shards(quiet.shards, None)?;
    let run = |workload: &Workload, target: &Target| -> Result<Driven, BenchError> {
        let layout = Layout::new(workload, target.addresses.len());
        drive(workload, layout, target, &Arc::new(Progress::default()))
    };
    eprintln!("the quiet ones alone ...");
    let alone = run(&quiet, &alone_target)?;
    eprintln!("beside a noisy one ...");
    let (loud, beside) = std::thread::scope(|scope| {
        let loud = scope.spawn(|| {
            // Of this thread alone, and of those that it starts.
            rustix::process::nice(NOISE_NICE)
                .map_err(|errno| BenchError::Priority { nice: NOISE_NICE, errno })?;
            run(&noisy, &loud_target)
        });
        std::thread::sleep(NOISE_MORE / 2);
        let beside = run(&quiet, &beside_target);
        (loud.join(), beside)
    });
    let (loud, beside) = (loud.map_err(|_| BenchError::Panicked)??, beside?);
    let mut report = Report::new("tenants", settings, Machine::here(node.dir()), limits);
    for (name, driven, target) in [
        ("alone", &alone, &alone_target),
        ("beside", &beside, &beside_target),
        ("noisy", &loud, &loud_target),
    ] {
        let back = read_back(target, &driven.shards)?;
        report.failures.extend(back.deviation.map(|why| format!("{name}: {why}")));
        if driven.failures.0 > 0 {
            let why = driven.failures.1.clone().unwrap_or_default();
            report.failures.push(format!("{name}: {} batches failed: {why}", driven.failures.0));
        }
    }
    let span_s = beside.span.as_secs_f64();
    report.records_per_s = Some(beside.records as f64 / span_s);
    report.bytes_per_s = Some(beside.bytes as f64 / span_s);
    report.batches_per_s = Some(beside.batches as f64 / span_s);
    report.noisy_records_per_s = Some(loud.records as f64 / loud.span.as_secs_f64());
    report.set_latency(&beside.latency_us);
    let (p99_alone, p99_beside) =
        (alone.latency_us.value_at_quantile(0.99), beside.latency_us.value_at_quantile(0.99));
    report.p99_alone_us = Some(p99_alone);
    report.p99_ratio = Some(p99_beside as f64 / p99_alone.max(1) as f64);
    report.set_node(&node.counters());
    report.verified = report.failures.is_empty();
    report.passed = report.verified;
    report.print();
    println!(
        "  quiet accounts: p99 {p99_alone} us alone, {p99_beside} us beside {} records/s of a \
         noisy one: {:.2} times\n",
        grouped(loud.records as f64 / loud.span.as_secs_f64()),
        p99_beside as f64 / p99_alone.max(1) as f64,
    );
    report.write_json(settings.common.json.as_deref())?;
    Ok(report.passed)
}

impl Tenants {
    /// What the quiet accounts and the noisy one do.
    #[must_use]
    pub fn workloads(&self) -> (Workload, Workload) {
        let quiet = Workload {
            common: self.common.clone(),
            seconds: self.seconds,
            rate: Rate::PerSecond(self.rate),
            record_bytes: self.record_bytes,
            batch_records: Some(self.batch_records),
            shards: self.accounts,
            connections: None,
            window_bytes: 4 << 20,
            node: None,
            input: None,
        };
        let noisy_record_bytes = self.noisy_record_bytes.unwrap_or(self.record_bytes);
        let noisy = Workload {
            // Before and after what it disturbs.
            seconds: self.seconds + NOISE_MORE.as_secs() + WARM_UP.as_secs(),
            rate: Rate::Max,
            record_bytes: noisy_record_bytes,
            window_bytes: quiet.window_bytes.max(2 * noisy_record_bytes),
            batch_records: None,
            shards: 1024,
            ..quiet.clone()
        };
        (quiet, noisy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Common;
    use std::path::PathBuf;

    #[test]
    fn the_noise_lasts_longer_than_what_it_disturbs() {
        let settings = Tenants {
            common: Common {
                data_dir: PathBuf::from("x"),
                cores: 0,
                memory_bytes: 1 << 30,
                json: None,
            },
            seconds: 5,
            accounts: 8,
            rate: 4000,
            record_bytes: 1024,
            batch_records: 10,
            noisy_record_bytes: Some(10_000_000),
        };
        let (quiet, noisy) = settings.workloads();
        assert!(quiet.check().is_ok() && noisy.check().is_ok());
        assert!(noisy.seconds > quiet.seconds);
        assert_eq!((quiet.record_bytes, noisy.record_bytes), (1024, 10_000_000));
    }
}
