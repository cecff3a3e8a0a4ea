//! Compares two revisions by running them in turns.
//!
//! Runs come in pairs, one of either side right after the other, so that a machine that changes
//! over minutes changes both alike; the order alternates (A B, B A, A B, ...), so that neither
//! profits from being first. Only the ratio within each pair counts.
//!
//! A calibration comes first: the same pairing with two copies of BASE. It shows the noise of the
//! machine beside the result, and if two copies of one binary differ by more than the threshold,
//! then the set-up is broken and no verdict is given at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::bench::{Bench, BenchError};
use crate::decision::{self, ALPHA, Look, Verdict};
use crate::machine::Machine;
use crate::outcome::{Comparison, MetricOutcome};
use crate::report::{Metric, Report};
use crate::revision::{self, PRODUCT, Repository, RevisionError, Scratch};
use crate::statistics::{Interval, median, paired_interval};

/// The bench's arguments if none are given: short runs, since pairs are worth more than seconds.
pub(crate) const BENCH_ARGUMENTS: [&str; 3] = ["million", "--seconds", "2"];

/// How to compare.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Pairs to plan with.
    pub pairs: usize,
    /// Pairs to go on to if the planned ones do not decide.
    pub pairs_max: usize,
    /// Pairs of BASE against itself.
    pub calibration_pairs: usize,
    /// The metrics to show.
    pub metrics: Vec<Metric>,
    /// Those of them that decide.
    pub deciding: Vec<Metric>,
    /// What a regression must exceed.
    pub threshold_percent: f64,
    /// How long one run may take.
    pub run_limit: Duration,
}

/// Why there is no comparison.
#[derive(Debug, Error)]
pub(crate) enum CompareError {
    /// A revision could not be resolved or built.
    #[error(transparent)]
    Revision(#[from] RevisionError),
    /// A run failed.
    #[error("{side}: {source}")]
    Run {
        /// Which of the two.
        side: &'static str,
        /// What went wrong.
        source: BenchError,
    },
    /// The bench's arguments are wrong.
    #[error(transparent)]
    Arguments(BenchError),
    /// Two copies of one binary were told apart.
    #[error(
        "two copies of the same binary differ in {metric}: {:.3} [{:.3}, {:.3}], beyond \
         {threshold_percent} %; this machine is unsuitable. See `machine` for what disturbs it",
        noise.estimate, noise.low, noise.high
    )]
    Unsuitable {
        /// In which figure.
        metric: Metric,
        /// By which ratio.
        noise: Interval,
        /// What they must not differ by.
        threshold_percent: f64,
    },
    /// A deciding metric is missing from a report.
    #[error(
        "a report has no {metric} (missing, null or not positive), which is to decide; choose \
         what decides with --metric"
    )]
    MetricMissing {
        /// Which one.
        metric: Metric,
    },
}

/// Which binary runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Base,
    Head,
}

/// Reports of two runs, one right after the other.
struct Pair {
    base: Report,
    head: Report,
}

/// The pairs of a comparison, and the look at which it ended.
struct Ending {
    pairs: Vec<Pair>,
    look: Look,
}

/// Builds and compares two revisions.
pub(crate) fn compare_revisions(
    repository: &Repository,
    base: &str,
    head: &str,
    bench_arguments: &[String],
    options: &Options,
) -> Result<Comparison, CompareError> {
    let (base_revision, head_revision) = (repository.resolve(base)?, repository.resolve(head)?);
    let scratch = Scratch::new(repository.cache().join(format!("run-{}", std::process::id())))?;
    let bench = Bench::new(bench_arguments, &scratch.path, options.run_limit)
        .map_err(CompareError::Arguments)?;
    // Before the build, whose load is none of the machine's own.
    let machine = Machine::observe(&data_directory(bench_arguments, &scratch.path));
    for warning in &machine.warnings {
        eprintln!("{warning}");
    }
    eprintln!("building {base}");
    let base_build = repository.build(&base_revision)?;
    let head_build = if head_revision == base_revision {
        base_build.clone()
    } else {
        eprintln!("building {head}");
        repository.build(&head_revision)?
    };
    // Copies under names of one length: the length of a path shifts the stack, and the place of
    // a file in the page cache differs even between two copies of the same binary.
    let place = |side: &str, binary: &Path| -> Result<PathBuf, RevisionError> {
        let directory = scratch.path.join(side);
        revision::make_directory(&directory)?;
        revision::copy(binary, &directory.join(PRODUCT))?;
        Ok(directory.join(PRODUCT))
    };
    let base_binary = place("base", &base_build.binary)?;
    let twin_binary = place("twin", &base_build.binary)?;
    let head_binary = place("head", &head_build.binary)?;

    eprintln!("calibrating: base against itself, {} pairs", options.calibration_pairs);
    let noise = calibrate(options, |side| run(&bench, side, &base_binary, &twin_binary, "base"))?;
    eprintln!("comparing: {} pairs, at most {}", options.pairs, options.pairs_max);
    let ending = measure(options, |side| run(&bench, side, &base_binary, &head_binary, "head"))?;
    let metrics = judge_all(&ending, &noise, options);
    Ok(Comparison {
        base: format!("{base} = {}", base_build.label),
        head: format!("{head} = {}", head_build.label),
        bench: bench.command_line(),
        threshold_percent: options.threshold_percent,
        base_runs: ending.pairs.len(),
        head_runs: ending.pairs.len(),
        confidence: 1.0 - ending.look.alpha,
        verdict: Comparison::decide(&metrics),
        metrics,
        machine: Some(machine),
    })
}

/// Where the runs' data will lie: what the arguments name, or else below `scratch`.
pub(crate) fn data_directory(arguments: &[String], scratch: &Path) -> PathBuf {
    let named = arguments.iter().enumerate().find_map(|(index, word)| {
        match word.strip_prefix("--data-dir")? {
            "" => arguments.get(index + 1).map(PathBuf::from),
            value => value.strip_prefix('=').map(PathBuf::from),
        }
    });
    named.unwrap_or_else(|| scratch.to_owned())
}

fn run(
    bench: &Bench,
    side: Side,
    base: &Path,
    head: &Path,
    head_name: &'static str,
) -> Result<Report, CompareError> {
    let (binary, side) = match side {
        Side::Base => (base, "base"),
        Side::Head => (head, head_name),
    };
    bench.run(binary).map_err(|source| CompareError::Run { side, source })
}

/// The noise of each metric, or the verdict that this machine cannot measure.
fn calibrate(
    options: &Options,
    mut run: impl FnMut(Side) -> Result<Report, CompareError>,
) -> Result<Vec<Option<Interval>>, CompareError> {
    warm_up(options, &mut run)?;
    let pairs = (0..options.calibration_pairs)
        .map(|index| measure_pair(index, &mut run))
        .collect::<Result<Vec<_>, _>>()?;
    let noise = |metric: &Metric| ratio_interval(&ratios(*metric, &pairs), ALPHA);
    for metric in &options.deciding {
        let Some(noise) = noise(metric) else { continue };
        let verdict = decision::judge(*metric, noise, options.threshold_percent);
        if matches!(verdict, Verdict::Regression | Verdict::Improvement) {
            return Err(CompareError::Unsuitable {
                metric: *metric,
                noise,
                threshold_percent: options.threshold_percent,
            });
        }
    }
    Ok(options.metrics.iter().map(noise).collect())
}

/// Measures pairs until a look decides or the last one is over.
fn measure(
    options: &Options,
    mut run: impl FnMut(Side) -> Result<Report, CompareError>,
) -> Result<Ending, CompareError> {
    warm_up(options, &mut run)?;
    let looks = decision::looks(options.pairs, options.pairs_max);
    let mut pairs = Vec::new();
    for look in &looks {
        while pairs.len() < look.pairs {
            pairs.push(measure_pair(pairs.len(), &mut run)?);
        }
        if decided(&pairs, look.alpha, options) {
            return Ok(Ending { pairs, look: *look });
        }
        eprintln!("{} pairs do not decide", pairs.len());
    }
    let look = *looks.last().expect("there is always a look at the greatest number of pairs");
    Ok(Ending { pairs, look })
}

/// One run of either side that does not count, and tells whether the report has what decides.
fn warm_up(
    options: &Options,
    run: &mut impl FnMut(Side) -> Result<Report, CompareError>,
) -> Result<(), CompareError> {
    for side in [Side::Base, Side::Head] {
        let report = run(side)?;
        if let Some(metric) = options.deciding.iter().find(|m| m.of(&report).is_none()) {
            return Err(CompareError::MetricMissing { metric: *metric });
        }
    }
    Ok(())
}

fn measure_pair(
    index: usize,
    run: &mut impl FnMut(Side) -> Result<Report, CompareError>,
) -> Result<Pair, CompareError> {
    if index.is_multiple_of(2) {
        let base = run(Side::Base)?;
        Ok(Pair { base, head: run(Side::Head)? })
    } else {
        let head = run(Side::Head)?;
        Ok(Pair { base: run(Side::Base)?, head })
    }
}

/// One regression decides; to clear HEAD, every deciding metric must be clear.
fn decided(pairs: &[Pair], alpha: f64, options: &Options) -> bool {
    let verdicts = options.deciding.iter().map(|&metric| {
        let interval = ratio_interval(&ratios(metric, pairs), alpha);
        let judge = |interval| decision::judge(metric, interval, options.threshold_percent);
        interval.map_or(Verdict::Undecided, judge)
    });
    !matches!(decision::overall(verdicts), None | Some(Verdict::Undecided))
}

fn judge_all(ending: &Ending, noise: &[Option<Interval>], options: &Options) -> Vec<MetricOutcome> {
    let outcome = |(&metric, &noise): (&Metric, &Option<Interval>)| {
        let values = |side: fn(&Pair) -> &Report| {
            let values = ending.pairs.iter().filter_map(|pair| metric.of(side(pair)));
            values.collect::<Vec<f64>>()
        };
        let ratios = ratios(metric, &ending.pairs);
        let ratio = ratio_interval(&ratios, ending.look.alpha);
        let decides = options.deciding.contains(&metric);
        let verdict = ratio.map(|ratio| decision::judge(metric, ratio, options.threshold_percent));
        MetricOutcome {
            metric,
            decides,
            base_median: median(&values(|pair| &pair.base)),
            head_median: median(&values(|pair| &pair.head)),
            ratio_median: median(&ratios),
            ratios,
            ratio,
            noise,
            // A deciding metric that runs lost on the way must not be cleared by its absence.
            verdict: verdict.or(decides.then_some(Verdict::Undecided)),
        }
    };
    options.metrics.iter().zip(noise).map(outcome).collect()
}

fn ratios(metric: Metric, pairs: &[Pair]) -> Vec<f64> {
    pairs.iter().filter_map(|pair| Some(metric.of(&pair.head)? / metric.of(&pair.base)?)).collect()
}

/// Ratios are symmetric on the logarithmic scale only: twice as fast is as far from equal as
/// half as fast.
fn ratio_interval(ratios: &[f64], alpha: f64) -> Option<Interval> {
    let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    Some(paired_interval(&logs, alpha)?.map(f64::exp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::noise::Noise;

    fn options() -> Options {
        Options {
            pairs: 15,
            pairs_max: 30,
            calibration_pairs: 10,
            metrics: vec![Metric::RecordsPerS, Metric::CpuSPerGb, Metric::P99Us],
            deciding: vec![Metric::RecordsPerS, Metric::CpuSPerGb],
            threshold_percent: 2.5,
            run_limit: Duration::from_secs(1),
        }
    }

    /// Runs whose head is `slowdown` slower, on a machine that scatters by 2 % and drifts slower
    /// by half a percent each run.
    fn machine(slowdown: f64) -> impl FnMut(Side) -> Result<Report, CompareError> {
        let (mut noise, mut drift) = (Noise::new(3), 1.0);
        move |side| {
            drift *= 1.005;
            let mut cost = drift * (1.0 + 0.02 * noise.normal());
            if side == Side::Head {
                cost *= 1.0 + slowdown;
            }
            Ok(Report {
                records_per_s: Some(1e6 / cost),
                cpu_s_per_gb: Some(cost),
                p99_us: None,
                ..Report::default()
            })
        }
    }

    fn verdict(slowdown: f64) -> (Option<Verdict>, usize) {
        let options = options();
        let noise = calibrate(&options, machine(0.0)).unwrap();
        let ending = measure(&options, machine(slowdown)).unwrap();
        let metrics = judge_all(&ending, &noise, &options);
        (Comparison::decide(&metrics), ending.pairs.len())
    }

    #[test]
    fn a_planted_slowdown_of_five_percent_is_caught_on_a_drifting_machine() {
        assert_eq!(verdict(0.05).0, Some(Verdict::Regression));
    }

    #[test]
    fn identical_revisions_pass_on_a_drifting_machine() {
        assert_eq!(verdict(0.0).0, Some(Verdict::NoRegression));
    }

    #[test]
    fn a_large_difference_is_decided_at_the_first_look() {
        assert_eq!(verdict(0.5), (Some(Verdict::Regression), 8));
    }

    #[test]
    fn the_order_alternates() {
        let mut order = String::new();
        let mut run = |side| {
            order.push(if side == Side::Base { 'A' } else { 'B' });
            Ok(Report::default())
        };
        for index in 0..3 {
            measure_pair(index, &mut run).unwrap();
        }
        assert_eq!(order, "ABBAAB");
    }

    #[test]
    fn a_machine_that_tells_twins_apart_is_unsuitable() {
        let result = calibrate(&options(), machine(0.2));
        assert!(matches!(result, Err(CompareError::Unsuitable { .. })), "{result:?}");
    }

    #[test]
    fn a_missing_metric_must_not_decide_but_may_be_shown() {
        let mut options = options();
        assert!(measure(&options, machine(0.0)).is_ok());
        options.deciding.push(Metric::P99Us);
        let result = measure(&options, machine(0.0)).map(|ending| ending.pairs.len());
        let missing = matches!(result, Err(CompareError::MetricMissing { metric: Metric::P99Us }));
        assert!(missing, "{result:?}");
    }

    #[test]
    fn the_data_directory_is_found_among_the_arguments() {
        let find = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            data_directory(&words, Path::new("/scratch"))
        };
        assert_eq!(find("million --data-dir /a"), Path::new("/a"));
        assert_eq!(find("million --data-dir=/b"), Path::new("/b"));
        assert_eq!(find("million --seconds 2"), Path::new("/scratch"));
    }
}
