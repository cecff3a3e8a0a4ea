//! The workload `soak`: a steady rate for hours while everything that looks after a node's data
//! is at work: records age and are trimmed, segments are released and used again, zero-filled,
//! copied forward, scrubbed. What counts is that nothing changes: not the latency, not the memory,
//! not the space on disk, and that who follows the tail gets every record once.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use thalweg_node::{Counters, NodeConfig};

use crate::drive::{Acked, Driven, Layout, Progress, ShardLog, drive, new_histogram};
use crate::embedded::EmbeddedNode;
use crate::error::BenchError;
use crate::follow::{Followed, follow, subscribe, trim_steadily};
use crate::limits::measure;
use crate::machine::{Machine, file_bytes, free_bytes, resident_bytes, resident_bytes_max};
use crate::million::take_figures;
use crate::report::{Report, grouped, print_limits};
use crate::settings::Soak;
use crate::space::{DiskBound, SPARE_SEGMENTS};

/// How often space and time are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Memory may grow by so much from the first windows to the last.
const MEMORY_GROWTH_MAX: f64 = 1.10;
/// The 99th percentile may rise by so much from the first third to the last.
const P99_GROWTH_MAX: f64 = 2.0;

/// What happened in a window. All but the last two are of the window alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Window {
    /// When it ended, since the start.
    pub end_s: u64,
    pub is_warm_up: bool,
    pub records_per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    /// The process, at its end.
    pub resident_bytes: u64,
    /// Most that the node's files took.
    pub disk_bytes_max: u64,
    pub segments_released: u64,
    pub bytes_copied: u64,
    pub bytes_scrubbed: u64,
    pub batches_damaged: u64,
}

/// Runs the workload; answers whether nothing was lost and nothing grew.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(settings: &Soak) -> Result<bool, BenchError> {
    settings.check()?;
    let limits = measure(&settings.common.data_dir)?;
    print_limits(&limits);
    let node = start(settings)?;
    let target = node.target();
    target.open_shards(settings.shards, None)?;
    let workload = settings.as_workload();
    let layout = Layout::new(&workload, target.addresses.len());
    let progress =
        Arc::new(Progress { acked: Some(Mutex::new(Acked::default())), ..Progress::default() });
    let subscriber = subscribe(&target, settings.shards, settings.followed)?;
    let ends = OnceLock::new();
    let mut watch = Watch::new(settings, &node);
    let (driven, followed, trimmed) = std::thread::scope(|scope| {
        let drive = scope.spawn(|| {
            let driven = drive(&workload, layout, &target, &progress);
            // Whatever became of the drive, the others must learn that it is over.
            let none = || vec![ShardLog::default(); settings.shards as usize];
            let _ = ends.set(driven.as_ref().map_or_else(|_| none(), |all| all.shards.clone()));
            progress.done.store(true, Ordering::Relaxed);
            driven
        });
        let follower = scope.spawn(|| follow(subscriber, &ends));
        let trimmer = scope.spawn(|| {
            let after = settings.trim_after();
            after.map_or(Ok(()), |after| trim_steadily(&target, after, &progress.done))
        });
        watch.until_done(&progress);
        let panicked = |_| BenchError::Panicked;
        let driven: Result<Driven, BenchError> = drive.join().map_err(panicked).flatten();
        let followed: Result<Followed, BenchError> = follower.join().map_err(panicked).flatten();
        let trimmed: Result<(), BenchError> = trimmer.join().map_err(panicked).flatten();
        (driven, followed, trimmed)
    });
    let (driven, followed) = (driven?, followed?);
    trimmed?;
    let mut report = Report::new("soak", settings, Machine::here(node.dir()), limits);
    take_figures(&mut report, &driven, &limits);
    report.processors_busy = Some(driven.processor_s / driven.span.as_secs_f64());
    report.resident_bytes = Some(resident_bytes());
    report.resident_bytes_max = resident_bytes_max();
    let counters = node.counters();
    report.set_node(&counters);
    let lost = followed.deviations(&driven.shards);
    report.verified = lost.is_empty();
    report.failures.extend(lost);
    report.failures.extend(watch.verdict(settings, &counters));
    report.windows = Some(watch.windows);
    report.passed = report.verified && report.failures.is_empty();
    report.print();
    report.write_json(settings.common.json.as_deref())?;
    Ok(report.passed)
}

/// Starts the node: with little retention and whatever follows from it, or, without churn, with
/// segments for all that will be written.
fn start(settings: &Soak) -> Result<EmbeddedNode, BenchError> {
    let logs = settings.common.logs() as u64;
    let bytes_per_s = settings.stored_bytes_per_s();
    let config = NodeConfig { segment_bytes: settings.segment_bytes, ..NodeConfig::default() };
    if settings.no_churn {
        let written = bytes_per_s * (settings.seconds + 3) as f64;
        let of_log = (written / logs as f64) as u64 / config.segment_bytes + SPARE_SEGMENTS;
        let prefill_bytes = of_log * logs * config.segment_bytes;
        eprintln!("zero-filling {} MiB of segments ...", prefill_bytes >> 20);
        let config =
            NodeConfig { retention_s: vec![0], scrub_period_s: 0, prefill_bytes, ..config };
        return EmbeddedNode::start_with(&settings.common, config);
    }
    let bound = DiskBound::new(settings);
    let retained_s = bound.counted_for().as_secs_f64();
    let needed = (bytes_per_s * retained_s) as u64 + bound.allowance_bytes;
    let free = free_bytes(&settings.common.data_dir)?;
    if free < needed {
        let dir = settings.common.data_dir.clone();
        return Err(BenchError::NoSpace { dir, needed_mib: needed >> 20, free_mib: free >> 20 });
    }
    let config = NodeConfig {
        // Segments are zero-filled while the clock runs.
        prefill_bytes: 0,
        retention_s: vec![settings.retention_s],
        merge_after_s: settings.merge_after_s(),
        scrub_period_s: settings.retention_s,
        ..config
    };
    EmbeddedNode::start_with(&settings.common, config)
}

/// Who looks at the node while it is driven.
struct Watch<'a> {
    node: &'a EmbeddedNode,
    window: Duration,
    warm_up: Duration,
    /// Windows that count, after the warm-up.
    counted: usize,
    windows: Vec<Window>,
    /// Of the first and the last third of those that count.
    thirds: [Histogram<u64>; 2],
    /// None where nothing is given back.
    bound: Option<DiskBound>,
    disk_bytes_max: u64,
    too_large: Option<String>,
    before: Counters,
}

impl<'a> Watch<'a> {
    fn new(settings: &Soak, node: &'a EmbeddedNode) -> Watch<'a> {
        Watch {
            node,
            window: Duration::from_secs(settings.window_s),
            warm_up: Duration::from_secs(settings.warm_up_s()),
            counted: settings.counted_windows() as usize,
            windows: Vec::new(),
            thirds: [new_histogram(), new_histogram()],
            bound: (!settings.no_churn).then(|| DiskBound::new(settings)),
            disk_bytes_max: 0,
            too_large: None,
            before: node.counters(),
        }
    }

    fn until_done(&mut self, progress: &Progress) {
        let started = Instant::now();
        let (mut due, mut taken) = (started + self.window, started);
        while !progress.done.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            let counters = self.node.counters();
            self.look_at_disk(started.elapsed(), &counters);
            if Instant::now() < due {
                continue;
            }
            due += self.window;
            let acked = progress.acked.as_ref().expect("a soak has windows");
            let acked = std::mem::take(&mut *acked.lock().unwrap_or_else(PoisonError::into_inner));
            let span = taken.elapsed();
            taken += span;
            self.end_window(started.elapsed(), span, &acked, counters);
        }
    }

    fn look_at_disk(&mut self, elapsed: Duration, counters: &Counters) {
        let bytes = file_bytes(self.node.dir());
        self.disk_bytes_max = self.disk_bytes_max.max(bytes);
        let Some(bound) = &mut self.bound else { return };
        let allowed = bound.allowed(elapsed, counters.bytes_written);
        if bytes > allowed {
            let (found, allowed) = (bytes >> 20, allowed >> 20);
            let at_s = elapsed.as_secs();
            self.too_large.get_or_insert(format!(
                "after {at_s} s the node's files took {found} MiB, more than {allowed} MiB"
            ));
        }
    }

    fn end_window(&mut self, end: Duration, span: Duration, acked: &Acked, counters: Counters) {
        let latency_us = &acked.latency_us;
        let before = std::mem::replace(&mut self.before, counters);
        let after = &self.before;
        let window = Window {
            end_s: end.as_secs(),
            is_warm_up: end <= self.warm_up + LOOK,
            records_per_s: acked.records as f64 / span.as_secs_f64(),
            p50_us: latency_us.value_at_quantile(0.5),
            p99_us: latency_us.value_at_quantile(0.99),
            p999_us: latency_us.value_at_quantile(0.999),
            max_us: latency_us.max(),
            resident_bytes: resident_bytes(),
            disk_bytes_max: std::mem::take(&mut self.disk_bytes_max),
            segments_released: after.segments_released - before.segments_released,
            bytes_copied: after.bytes_copied - before.bytes_copied,
            bytes_scrubbed: after.bytes_scrubbed - before.bytes_scrubbed,
            batches_damaged: after.batches_damaged,
        };
        let place = self.windows.iter().filter(|window| !window.is_warm_up).count();
        if let Some(third) = third_of(place, self.counted).filter(|_| !window.is_warm_up) {
            self.thirds[third].add(latency_us).expect("histograms of one range");
        }
        print_window(&window);
        self.windows.push(window);
    }

    /// What is wrong.
    fn verdict(&self, settings: &Soak, counters: &Counters) -> Vec<String> {
        let mut wrong: Vec<String> = self.too_large.clone().into_iter().collect();
        let counted: Vec<&Window> =
            self.windows.iter().filter(|window| !window.is_warm_up).collect();
        let resident: Vec<u64> = counted.iter().map(|window| window.resident_bytes).collect();
        wrong.extend(memory_growth(&resident));
        let p99 = [0, 1].map(|third| self.thirds[third].value_at_quantile(0.99));
        wrong.extend(p99_growth(p99));
        if counters.batches_damaged > 0 {
            wrong.push(format!("{} batches are damaged", counters.batches_damaged));
        }
        let idle = [
            ("released a segment", counters.segments_released),
            ("copied anything forward", counters.bytes_copied),
            ("scrubbed anything", counters.bytes_scrubbed),
        ];
        for (what, count) in idle {
            if count == 0 && !settings.no_churn {
                wrong.push(format!("the node never {what}: the run was too short or too slow"));
            }
        }
        wrong
    }
}

/// Which third a window belongs to, of so many: the first, the last, or neither.
fn third_of(place: usize, count: usize) -> Option<usize> {
    let third = count / 3;
    match place {
        place if place < third => Some(0),
        place if (count - third..count).contains(&place) => Some(1),
        _ => None,
    }
}

/// Memory of the windows that count, in their order: the last third is held against the first.
fn memory_growth(resident: &[u64]) -> Option<String> {
    let most = |third| {
        let places = (0..resident.len()).filter(|place| third_of(*place, resident.len()) == third);
        places.map(|place| resident[place]).max()
    };
    let (Some(first), Some(last)) = (most(Some(0)), most(Some(1))) else {
        return Some("there are no three windows to compare".into());
    };
    let grown = last as f64 > first as f64 * MEMORY_GROWTH_MAX;
    grown.then(|| format!("memory grew from {} to {} MiB", first >> 20, last >> 20))
}

fn p99_growth([first, last]: [u64; 2]) -> Option<String> {
    let grown = last as f64 > first as f64 * P99_GROWTH_MAX;
    grown.then(|| format!("p99 rose from {first} us in the first third to {last} us in the last"))
}

fn print_window(window: &Window) {
    println!(
        "{:>7} s{} {:>11} records/s  p50 {} p99 {} p99.9 {} us  memory {} MiB  disk {} MiB  \
         released {}  copied {} MiB  scrubbed {} MiB  damaged {}",
        window.end_s,
        if window.is_warm_up { "*" } else { " " },
        grouped(window.records_per_s),
        window.p50_us,
        window.p99_us,
        window.p999_us,
        window.resident_bytes >> 20,
        window.disk_bytes_max >> 20,
        window.segments_released,
        window.bytes_copied >> 20,
        window.bytes_scrubbed >> 20,
        window.batches_damaged,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirds_are_equal_and_apart() {
        let of = |count| (0..count).map(|place| third_of(place, count)).collect::<Vec<_>>();
        assert_eq!(of(3), [Some(0), None, Some(1)]);
        assert_eq!(of(5), [Some(0), None, None, None, Some(1)]);
        assert_eq!(of(6), [Some(0), Some(0), None, None, Some(1), Some(1)]);
        assert_eq!(of(2), [None, None]);
        assert_eq!(third_of(7, 6), None, "a window that the plan did not have");
    }

    #[test]
    fn memory_that_grows_is_told() {
        assert_eq!(memory_growth(&[100, 150, 110]), None);
        assert!(memory_growth(&[100 << 20, 0, 111 << 20]).unwrap().contains("100 to 111 MiB"));
        assert!(memory_growth(&[100, 100]).is_some(), "nothing was compared");
    }

    #[test]
    fn latency_that_rises_is_told() {
        assert_eq!(p99_growth([500, 1000]), None);
        assert!(p99_growth([500, 1001]).is_some());
    }
}
