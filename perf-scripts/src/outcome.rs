//! What a comparison found, as a table and as JSON.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::decision::{self, Verdict};
use crate::machine::Machine;
use crate::report::{Metric, short};
use crate::statistics::Interval;

/// One metric on both sides.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetricOutcome {
    /// Which.
    pub metric: Metric,
    /// Whether it takes part in the verdict.
    pub decides: bool,
    /// Median over the runs of BASE.
    pub base_median: Option<f64>,
    /// Median over the runs of HEAD.
    pub head_median: Option<f64>,
    /// HEAD/BASE of every pair, in the order measured; empty if runs were not paired.
    pub ratios: Vec<f64>,
    /// The ratios' median; of unpaired runs, the ratio of the medians.
    pub ratio_median: Option<f64>,
    /// HEAD/BASE with its interval, if there were runs enough.
    pub ratio: Option<Interval>,
    /// BASE/BASE with its interval at 95 %: this machine's noise.
    pub noise: Option<Interval>,
    /// What the interval says.
    pub verdict: Option<Verdict>,
}

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// Revision or file that was compared with.
    pub base: String,
    /// Revision or file that was compared.
    pub head: String,
    /// Arguments of the bench, or of saved runs their workload.
    pub bench: String,
    /// What a regression must exceed.
    pub threshold_percent: f64,
    /// Runs of BASE that count.
    pub base_runs: usize,
    /// Runs of HEAD that count.
    pub head_runs: usize,
    /// Confidence of the intervals shown: 1 - the error spent on the last look.
    pub confidence: f64,
    /// Every metric that was looked at.
    pub metrics: Vec<MetricOutcome>,
    /// The deciding metrics' verdict; none if there were too few runs for any.
    pub verdict: Option<Verdict>,
    /// Where it was measured; of saved runs, their reports say so.
    pub machine: Option<Machine>,
}

/// The result could not be saved.
#[derive(Debug, Error)]
#[error("cannot write the result to {}: {source}", path.display())]
pub(crate) struct SaveError {
    path: PathBuf,
    source: std::io::Error,
}

impl Comparison {
    /// The verdict of those metrics that decide.
    pub(crate) fn decide(metrics: &[MetricOutcome]) -> Option<Verdict> {
        let deciding = metrics.iter().filter(|outcome| outcome.decides);
        decision::overall(deciding.filter_map(|outcome| outcome.verdict))
    }

    /// Writes the comparison as one JSON object.
    pub(crate) fn save(&self, path: &Path) -> Result<(), SaveError> {
        save_json(self, path)
    }
}

/// Writes `value` as one indented JSON object.
pub(crate) fn save_json(value: &impl Serialize, path: &Path) -> Result<(), SaveError> {
    let text = serde_json::to_string_pretty(value).expect("keys are strings");
    std::fs::write(path, text + "\n").map_err(|source| SaveError { path: path.to_owned(), source })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "base {}  ({} runs)", self.base, self.base_runs)?;
        writeln!(f, "head {}  ({} runs)", self.head, self.head_runs)?;
        writeln!(f, "bench {}", self.bench)?;
        writeln!(
            f,
            "\n{:<16} {:>10} {:>10}  {:<25} {:<25} verdict (threshold {} %)",
            "metric", "base", "head", "head/base", "base/base", self.threshold_percent
        )?;
        for outcome in &self.metrics {
            writeln!(f, "{}", outcome.row().trim_end())?;
        }
        let verdict = self.verdict.map_or("no verdict", Verdict::text);
        writeln!(f, "\n{verdict} at a confidence of {:.0} %", self.confidence * 100.0)
    }
}

impl MetricOutcome {
    fn row(&self) -> String {
        let figure = |value: Option<f64>| value.map_or("-".to_owned(), short);
        let span = |interval: Option<Interval>| {
            interval.map(|i| format!("{:.3} [{:.3}, {:.3}]", i.estimate, i.low, i.high))
        };
        let only_median = || self.ratio_median.map(|ratio| format!("{ratio:.3}"));
        let mut row = String::new();
        write!(
            row,
            "{:<16} {:>10} {:>10}  {:<25} {:<25} ",
            self.metric,
            figure(self.base_median),
            figure(self.head_median),
            span(self.ratio).or_else(only_median).unwrap_or_else(|| "-".to_owned()),
            span(self.noise).unwrap_or_else(|| "-".to_owned()),
        )
        .expect("a string takes all that is written to it");
        row += self.verdict.map_or("", Verdict::text);
        if self.verdict.is_some() && !self.decides {
            row += " (does not decide)";
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(decides: bool, verdict: Option<Verdict>) -> MetricOutcome {
        MetricOutcome {
            metric: Metric::RecordsPerS,
            decides,
            base_median: Some(1.5e6),
            head_median: None,
            ratios: vec![0.95],
            ratio_median: Some(0.95),
            ratio: verdict.map(|_| Interval { low: 0.94, estimate: 0.95, high: 0.96 }),
            noise: None,
            verdict,
        }
    }

    #[test]
    fn only_deciding_metrics_decide() {
        let regression = Some(Verdict::Regression);
        let fine = Some(Verdict::NoRegression);
        let decide = |metrics: &[MetricOutcome]| Comparison::decide(metrics);
        assert_eq!(decide(&[outcome(false, regression), outcome(true, fine)]), fine);
        assert_eq!(decide(&[outcome(true, regression), outcome(true, fine)]), regression);
        assert_eq!(decide(&[outcome(false, regression)]), None);
    }

    #[test]
    fn a_row_shows_what_there_is() {
        let row = outcome(false, Some(Verdict::Regression)).row();
        assert!(row.contains("0.950 [0.940, 0.960]"), "{row}");
        assert!(row.ends_with("REGRESSION (does not decide)"), "{row}");
        let row = outcome(true, None).row();
        assert!(row.contains("0.950 ") && row.contains("1.500 M"), "{row}");
    }
}
