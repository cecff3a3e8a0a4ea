//! Compares reports that were saved earlier.

use std::path::Path;

use serde_json::Value;
use thiserror::Error;

use crate::decision::{self, ALPHA};
use crate::outcome::{Comparison, MetricOutcome};
use crate::report::{Metric, Report, ReportError, read_reports};
use crate::statistics::{Interval, median, shift_interval};

/// With fewer runs on a side their scatter is not known.
pub(crate) const RUNS_MIN: usize = 5;
/// Keeps the exact count of arrangements quick.
const RUNS_MAX: usize = 100;
/// Settings that say where files lie, not what was measured.
const PLACES: [&str; 2] = ["json", "data_dir"];
/// Words in the names of machine facts that change from one moment to the next.
const PASSING: [&str; 6] = ["load", "free", "available", "used", "time", "date"];

/// Why saved reports are not compared.
#[derive(Debug, Error)]
pub(crate) enum SavedError {
    /// A file could not be read.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The runs did not do the same thing, or not on the same machine.
    #[error(
        "the runs are not comparable: {what} is {first} in one and {other} in another; \
         measure both alike, or compare all the same with --force"
    )]
    Differs {
        /// The field, with its path.
        what: String,
        /// In the first report of BASE.
        first: String,
        /// In the report that differs.
        other: String,
    },
    /// More runs than the exact intervals are made for.
    #[error("{runs} runs in one file; the limit is {RUNS_MAX}: split the file")]
    TooMany {
        /// How many there are.
        runs: usize,
    },
    /// A run that lost data or missed its limits has no speed to compare.
    #[error("a run of {file} did not pass; its speed means nothing")]
    NotPassed {
        /// The file that holds it.
        file: String,
    },
}

/// How to compare.
pub(crate) struct Options<'a> {
    /// The metrics to show.
    pub metrics: &'a [Metric],
    /// Those of them that decide.
    pub deciding: &'a [Metric],
    /// What a regression must exceed.
    pub threshold_percent: f64,
    /// Also compare what is not comparable.
    pub force: bool,
}

/// Compares the runs saved in two files. With fewer than [`RUNS_MIN`] on a side there are ratios
/// but no verdict.
pub(crate) fn compare_files(
    base: &Path,
    head: &Path,
    options: &Options<'_>,
) -> Result<Comparison, SavedError> {
    let (base_runs, head_runs) = (load(base)?, load(head)?);
    if !options.force {
        for other in base_runs.iter().chain(&head_runs) {
            check_alike(&base_runs[0], other)?;
        }
    }
    let metrics: Vec<MetricOutcome> = options
        .metrics
        .iter()
        .map(|&metric| compare_metric(metric, &base_runs, &head_runs, options))
        .collect();
    Ok(Comparison {
        base: label(base, &base_runs),
        head: label(head, &head_runs),
        bench: base_runs[0].workload.clone(),
        threshold_percent: options.threshold_percent,
        base_runs: base_runs.len(),
        head_runs: head_runs.len(),
        confidence: 1.0 - ALPHA,
        verdict: Comparison::decide(&metrics),
        metrics,
        machine: None,
    })
}

/// The file, and the revision of its runs.
fn label(path: &Path, runs: &[Report]) -> String {
    let revision = runs[0].revision.as_deref().map(|name| format!(" = {name}"));
    path.display().to_string() + &revision.unwrap_or_default()
}

fn load(path: &Path) -> Result<Vec<Report>, SavedError> {
    let runs = read_reports(path)?;
    if runs.len() > RUNS_MAX {
        return Err(SavedError::TooMany { runs: runs.len() });
    }
    if runs.iter().any(|run| run.passed == Some(false) || run.verified == Some(false)) {
        return Err(SavedError::NotPassed { file: path.display().to_string() });
    }
    Ok(runs)
}

fn compare_metric(
    metric: Metric,
    base: &[Report],
    head: &[Report],
    options: &Options<'_>,
) -> MetricOutcome {
    let values = |runs: &[Report]| runs.iter().filter_map(|run| metric.of(run)).collect::<Vec<_>>();
    let (base, head) = (values(base), values(head));
    let logs = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<_>>();
    let enough = base.len() >= RUNS_MIN && head.len() >= RUNS_MIN;
    let ratio = enough
        .then(|| shift_interval(&logs(&base), &logs(&head), ALPHA))
        .flatten()
        .map(|shift: Interval| shift.map(f64::exp));
    let (base_median, head_median) = (median(&base), median(&head));
    MetricOutcome {
        metric,
        decides: options.deciding.contains(&metric),
        ratio_median: base_median.zip(head_median).map(|(base, head)| head / base),
        base_median,
        head_median,
        ratios: Vec::new(),
        ratio,
        noise: None,
        verdict: ratio.map(|ratio| decision::judge(metric, ratio, options.threshold_percent)),
    }
}

fn check_alike(first: &Report, other: &Report) -> Result<(), SavedError> {
    let workload = |run: &Report| Value::from(run.workload.as_str());
    check_equal("workload", &workload(first), &workload(other), &|_| false)?;
    let place = |name: &str| PLACES.contains(&name);
    check_equal("settings", &first.settings, &other.settings, &place)?;
    let passing = |name: &str| name.split('_').any(|word| PASSING.contains(&word));
    check_equal("machine", &first.machine, &other.machine, &passing)
}

/// Compares two values, objects field by field but for those to `skip`. A field that only one
/// side has is a difference.
fn check_equal(
    what: &str,
    first: &Value,
    other: &Value,
    skip: &dyn Fn(&str) -> bool,
) -> Result<(), SavedError> {
    if let (Value::Object(first), Value::Object(other)) = (first, other) {
        for name in first.keys().chain(other.keys()).filter(|name| !skip(name)) {
            let of = |fields: &serde_json::Map<String, Value>| fields.get(name).cloned();
            let (first, other) = (of(first).unwrap_or_default(), of(other).unwrap_or_default());
            check_equal(&format!("{what}.{name}"), &first, &other, skip)?;
        }
        return Ok(());
    }
    if first == other {
        return Ok(());
    }
    Err(SavedError::Differs {
        what: what.to_owned(),
        first: first.to_string(),
        other: other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Verdict;
    use serde_json::json;

    const OPTIONS: Options<'static> = Options {
        metrics: &[Metric::RecordsPerS, Metric::P99Us],
        deciding: &[Metric::RecordsPerS],
        threshold_percent: 2.5,
        force: false,
    };

    fn report(records_per_s: f64) -> Value {
        json!({
            "workload": "million",
            "settings": {"seconds": 2, "data_dir": format!("/tmp/{records_per_s}")},
            "machine": {"cpu": "one", "load_average": records_per_s, "disk": {"scheduler": "none"}},
            "records_per_s": records_per_s, "p99_us": null, "passed": true, "verified": true,
        })
    }

    fn runs(speed: f64, count: usize) -> Vec<Value> {
        (0..count).map(|index| report(speed * (1.0 + index as f64 / 1000.0))).collect()
    }

    fn compare(base: &[Value], head: &[Value], force: bool) -> Result<Comparison, SavedError> {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, runs: &[Value]| {
            let path = directory.path().join(name);
            let lines: Vec<String> = runs.iter().map(Value::to_string).collect();
            std::fs::write(&path, lines.join("\n")).unwrap();
            path
        };
        let options = Options { force, ..OPTIONS };
        compare_files(&write("base.json", base), &write("head.json", head), &options)
    }

    fn differs(change: impl Fn(&mut Value)) -> String {
        let mut other = report(1e6);
        change(&mut other);
        assert!(compare(&[report(1e6)], std::slice::from_ref(&other), true).is_ok());
        match compare(&[report(1e6)], &[other], false) {
            Err(SavedError::Differs { what, .. }) => what,
            unexpected => panic!("{unexpected:?}"),
        }
    }

    #[test]
    fn five_runs_a_side_give_a_verdict() {
        let slower = compare(&runs(1e6, 5), &runs(0.95e6, 5), false).unwrap();
        assert_eq!(slower.verdict, Some(Verdict::Regression));
        let same = compare(&runs(1e6, 5), &runs(1e6, 6), false).unwrap();
        assert_eq!(same.verdict, Some(Verdict::NoRegression));
    }

    #[test]
    fn fewer_runs_give_ratios_only() {
        let outcome = compare(&[report(1e6)], &runs(0.5e6, 7), false).unwrap();
        assert_eq!(outcome.verdict, None);
        assert_eq!(outcome.metrics[0].verdict, None);
        assert!((outcome.metrics[0].ratio_median.unwrap() - 0.5).abs() < 0.01);
        assert_eq!(outcome.metrics[1].ratio_median, None, "p99 is null on both sides");
    }

    #[test]
    fn what_was_measured_otherwise_is_refused_unless_forced() {
        assert_eq!(differs(|run| run["workload"] = json!("burst")), "workload");
        assert_eq!(differs(|run| run["settings"]["seconds"] = json!(3)), "settings.seconds");
        assert_eq!(differs(|run| run["settings"]["more"] = json!(1)), "settings.more");
        assert_eq!(differs(|run| run["machine"]["cpu"] = json!("two")), "machine.cpu");
        let scheduler = differs(|run| run["machine"]["disk"]["scheduler"] = json!("bfq"));
        assert_eq!(scheduler, "machine.disk.scheduler");
        assert_eq!(differs(|run| run["machine"] = json!(null)), "machine");
    }

    #[test]
    fn a_run_that_did_not_pass_is_never_compared() {
        let mut lost = report(9e9);
        lost["passed"] = json!(false);
        let result = compare(&[report(1e6)], &[lost], true);
        assert!(matches!(result, Err(SavedError::NotPassed { .. })), "{result:?}");
    }

    #[test]
    fn too_many_runs_are_refused() {
        let result = compare(&runs(1e6, RUNS_MAX + 1), &[report(1e6)], false);
        assert!(matches!(result, Err(SavedError::TooMany { .. })), "{result:?}");
    }
}
