//! The workload `catchup`: writes an amount, restarts the node so that nothing of it is in memory,
//! and reads everything back from disk, as consumers do that were away for hours.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use thalweg_node::NodeConfig;

use crate::drive::{Layout, Progress, drive};
use crate::embedded::EmbeddedNode;
use crate::error::BenchError;
use crate::limits::measure;
use crate::machine::{Machine, resident_bytes_max};
use crate::million::{note_failures, take_figures, watch};
use crate::report::{Report, print_limits};
use crate::settings::{Catchup, Workload};
use crate::verify::read_back;

/// Segments of each log beyond those that are written: the last free one is not for batches, the
/// end of one is left empty where a batch does not fit, and a start that need not fill any has
/// three in wait.
const SPARE_SEGMENTS: u64 = 5;
/// What is stored may be more than thought by so much.
const SIZE_MARGIN: f64 = 1.03;

/// Runs the workload; answers whether everything that was acked is there.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(settings: &Catchup) -> Result<bool, BenchError> {
    settings.check()?;
    let workload = settings.as_workload();
    let limits = measure(&settings.common.data_dir)?;
    print_limits(&limits);
    let logs = settings.common.logs();
    let records = records_of(settings);
    let prefill = prefill_bytes(&workload, records, logs);
    eprintln!("zero-filling {} MiB of segments ...", prefill >> 20);
    // Refuses to start without space for all of them.
    let mut node = EmbeddedNode::start(&settings.common, prefill)?;
    let target = node.target();
    target.open_shards(settings.shards, None)?;
    let layout = Layout::new(&workload, target.addresses.len());
    let progress = Arc::new(Progress { records_max: Some(records), ..Progress::default() });
    let watcher = watch(progress.clone());
    let driven = drive(&workload, layout, &target, &progress);
    progress.done.store(true, Ordering::Relaxed);
    let _ = watcher.join();
    let driven = driven?;
    let mut report = Report::new("catchup", settings, Machine::here(node.dir()), limits);
    if driven.records > 0 {
        take_figures(&mut report, &driven, &limits);
    } else {
        // All of it went through in the warm-up.
        note_failures(&mut report, &driven);
    }
    let acked: u64 = driven.shards.iter().map(|shard| shard.end).sum();
    if acked < records {
        report.failures.push(format!("{acked} of {records} records were acked in time"));
    }
    let while_writing = node.counters();
    eprintln!("restarting the node ...");
    report.restart_ms = Some(node.restart()?.as_millis() as u64);
    eprintln!("reading everything back ...");
    let back = read_back(&node.target(), &driven.shards)?;
    report.resident_bytes_max = resident_bytes_max();
    report.verified = back.deviation.is_none();
    report.failures.extend(back.deviation.clone());
    report.read_back_bytes_per_s = Some(back.bytes_per_s());
    report.disk_read_ratio = Some(back.bytes_per_s() / limits.disk_read_bytes_per_s);
    let mut counters = node.counters();
    if counters.batches_from_memory > 0 {
        let batches = counters.batches_from_memory;
        report.failures.push(format!("{batches} batches were not read from disk"));
    }
    counters += &while_writing;
    report.set_node(&counters);
    report.passed = report.verified && report.failures.is_empty();
    report.print();
    report.write_json(settings.common.json.as_deref())?;
    Ok(report.passed)
}

/// Records whose data are as much as was asked for.
fn records_of(settings: &Catchup) -> u64 {
    (settings.gib << 30).div_ceil(settings.record_bytes as u64)
}

/// What `records` take in the segments of so many logs, with what is under way when they are
/// acked, so that no segment is filled while they are written.
fn prefill_bytes(workload: &Workload, records: u64, logs: usize) -> u64 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let under_way = (workload.window_bytes * processors * logs) as f64;
    let stored = records as f64 * workload.stored_bytes_per_record() + under_way;
    let segment_bytes = NodeConfig::default().segment_bytes;
    // Shards are dealt out to logs in turn: one has as many as any other, or one more.
    let shards_of_log = u64::from(workload.shards).div_ceil(logs as u64);
    let share = shards_of_log as f64 / f64::from(workload.shards);
    let of_log = (stored * SIZE_MARGIN * share) as u64;
    (of_log.div_ceil(segment_bytes) + SPARE_SEGMENTS) * segment_bytes * logs as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Common;

    fn settings(shards: u32) -> Catchup {
        let common = Common { data_dir: "x".into(), cores: 2, memory_bytes: 512 << 20, json: None };
        Catchup { common, gib: 4, record_bytes: 1024, batch_records: None, shards }
    }

    #[test]
    fn segments_suffice_for_the_log_with_most_shards() {
        let segment_bytes = NodeConfig::default().segment_bytes;
        let of_log = |shards| {
            let settings = settings(shards);
            let bytes = prefill_bytes(&settings.as_workload(), records_of(&settings), 2);
            assert!(bytes.is_multiple_of(2 * segment_bytes), "the same for each log");
            bytes / 2
        };
        let spare = SPARE_SEGMENTS * segment_bytes;
        assert!(of_log(64) >= (2 << 30) + spare && of_log(64) < (5 << 29) + spare);
        assert!(of_log(3) >= (4 << 30) * 2 / 3 + spare, "one of the two has two of three shards");
        assert!(of_log(1) >= (4 << 30) + spare);
    }

    #[test]
    fn as_much_is_written_as_was_asked_for() {
        assert_eq!(records_of(&settings(1)), 4 << 20);
        let uneven = Catchup { record_bytes: 1000, ..settings(1) };
        assert!(records_of(&uneven) * 1000 >= 4 << 30);
        assert!(Catchup { gib: 0, ..settings(1) }.check().is_err());
    }
}
