//! The workloads `million` and `latency`: drive, read back, report.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thalweg_node::NodeConfig;

use crate::drive::{Driven, Layout, Progress, WARM_UP, drive};
use crate::embedded::{EmbeddedNode, Target};
use crate::error::BenchError;
use crate::limits::{Limits, measure};
use crate::machine::{Machine, resident_bytes_max};
use crate::report::{Report, grouped, print_limits};
use crate::settings::{Rate, Workload};
use crate::verify::{read_back, read_tail};

/// Nobody writes faster than this through one core: bounds what is zero-filled beforehand. (1.5e9
/// was seen.)
const CORE_BYTES_PER_S_MAX: f64 = 1.75e9;
/// How much faster than the probe the disk may turn out to be.
const PROBE_MARGIN: f64 = 1.1;
/// How long the tail is read.
const TAIL_SPAN: Duration = Duration::from_secs(1);

/// Runs the workload; answers whether it passed.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(name: &'static str, workload: &Workload) -> Result<bool, BenchError> {
    workload.check()?;
    eprintln!("measuring the machine's limits ...");
    let limits = measure(&workload.common.data_dir)?;
    print_limits(&limits);
    let (node, target) = match workload.node {
        Some(address) => (None, Target::running(address)?),
        None => {
            let prefill = prefill_bytes(workload, &limits);
            eprintln!("zero-filling {} MiB of segments ...", prefill >> 20);
            let node = EmbeddedNode::start(&workload.common, prefill)?;
            let target = node.target();
            (Some(node), target)
        }
    };
    target.open_shards(workload.shards, None)?;
    let cores = target.addresses.len();
    let layout = Layout::new(workload, cores);
    eprintln!(
        "{} shards, {cores} cores, {} generator threads, {} connections",
        workload.shards,
        layout.threads,
        layout.connections(cores),
    );
    let progress = Arc::new(Progress::default());
    let watcher = watch(progress.clone());
    let driven = drive(workload, layout, &target, &progress);
    progress.done.store(true, Ordering::Relaxed);
    let _ = watcher.join();
    let driven = driven?;
    let machine = Machine::here(&workload.common.data_dir);
    let mut report = Report::new(name, workload, machine, limits);
    take_figures(&mut report, &driven, &limits);
    // The budget is the node's; what reading needs of its own memory is not held against it.
    report.resident_bytes_max = resident_bytes_max();
    read(&mut report, &target, node.as_ref(), &driven, &limits)?;
    if let Some(node) = &node {
        report.set_node(&node.counters());
    }
    report.passed = report.verified && report.failures.is_empty();
    report.print();
    report.write_json(workload.common.json.as_deref())?;
    Ok(report.passed)
}

/// What the run can write at most, so that no segment is filled while the clock runs.
fn prefill_bytes(workload: &Workload, limits: &Limits) -> u64 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let disk = limits.disk_write_bytes_per_s * PROBE_MARGIN;
    let most = disk.min(CORE_BYTES_PER_S_MAX * processors as f64);
    let per_record = workload.stored_bytes_per_record();
    let offered = match workload.rate {
        Rate::Max => most,
        Rate::PerSecond(rate) => most.min(rate as f64 * per_record * 1.2),
    };
    let written = offered * (workload.seconds as f64 + WARM_UP.as_secs_f64() + 0.25);
    // A log's last free segment is not for batches.
    written as u64 + NodeConfig::default().segment_bytes * processors as u64
}

/// The figures of a drive.
pub fn take_figures(report: &mut Report, driven: &Driven, limits: &Limits) {
    let span_s = driven.span.as_secs_f64();
    let bytes_per_s = driven.bytes as f64 / span_s;
    report.records_per_s = Some(driven.records as f64 / span_s);
    report.bytes_per_s = Some(bytes_per_s);
    report.batches_per_s = Some(driven.batches as f64 / span_s);
    report.disk_write_ratio = Some(bytes_per_s / limits.disk_write_bytes_per_s);
    if driven.bytes > 0 {
        report.cpu_s_per_gb = Some(driven.processor_s / (driven.bytes as f64 / 1e9));
    }
    report.set_latency(&driven.latency_us);
    note_failures(report, driven);
    if driven.records == 0 {
        report.failures.push("nothing was acked within the span that counts".into());
    }
}

/// The batches that were not stored.
pub fn note_failures(report: &mut Report, driven: &Driven) {
    if driven.failures.0 > 0 {
        let why = driven.failures.1.clone().unwrap_or_default();
        report.failures.push(format!("{} batches failed, the first: {why}", driven.failures.0));
    }
}

fn read(
    report: &mut Report,
    target: &Target,
    node: Option<&EmbeddedNode>,
    driven: &Driven,
    limits: &Limits,
) -> Result<(), BenchError> {
    // A node in another process does not tell where it read from.
    let counters = || node.map(EmbeddedNode::counters);
    eprintln!("reading the tail from memory ...");
    let before = counters();
    let tail = read_tail(target, &driven.tail, TAIL_SPAN)?;
    let after = counters();
    if let (Some(before), Some(after)) = (&before, &after)
        && after.batches_from_disk == before.batches_from_disk
        && tail.records > 0
    {
        report.warm_tail_bytes_per_s = Some(tail.bytes_per_s());
    }
    eprintln!("reading everything back ...");
    let back = read_back(target, &driven.shards)?;
    report.verified = back.deviation.is_none();
    report.failures.extend(back.deviation.clone());
    // Mostly from memory, the figure would not be the disk's.
    if let (Some(after), Some(end)) = (after, counters())
        && end.batches_from_disk - after.batches_from_disk
            > end.batches_from_memory - after.batches_from_memory
    {
        report.read_back_bytes_per_s = Some(back.bytes_per_s());
        report.disk_read_ratio = Some(back.bytes_per_s() / limits.disk_read_bytes_per_s);
    }
    Ok(())
}

/// A line a second on stderr while the drive goes on.
pub fn watch(progress: Arc<Progress>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut last, mut at) = (0, Instant::now());
        let mut second = 0;
        while !progress.done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            let elapsed = at.elapsed().as_secs_f64();
            if elapsed < 1.0 {
                continue;
            }
            let records = progress.records.load(Ordering::Relaxed);
            let latency_us = progress.latency_us_max.swap(0, Ordering::Relaxed);
            let rate = grouped((records - last) as f64 / elapsed);
            second += 1;
            let latency_ms = latency_us as f64 / 1000.0;
            eprintln!("{second:>4} s  {rate:>12} records/s  slowest ack {latency_ms:.1} ms");
            (last, at) = (records, Instant::now());
        }
    })
}
