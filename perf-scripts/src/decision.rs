//! When a comparison has seen enough, and what it says.
//!
//! A ratio HEAD/BASE is known only within an interval. It is a regression if the whole interval
//! lies beyond the threshold on the worse side, and no regression if the whole interval stays
//! within; anything else is undecided and asks for more pairs. A machine that is too noisy thus
//! ends undecided, neither in a false alarm nor in false comfort.
//!
//! Looking several times at a growing sample and stopping at the first decision would err more
//! often than one look. So the looks are fixed in advance and the error of 5 % that a 95 %
//! interval allows is spent across them: whatever their dependence, all intervals of a comparison
//! hold at once with at least 95 % (Bonferroni). Each look's interval is that much wider.

use serde::Serialize;

use crate::report::Metric;
use crate::statistics::Interval;

/// The share of comparisons in which an interval may miss the true ratio.
pub(crate) const ALPHA: f64 = 0.05;
/// Spent on the look at half the planned pairs: enough for differences nobody doubts.
const ALPHA_EARLY: f64 = 0.01;
/// Spent on looking again at the greatest number of pairs.
const ALPHA_LATE: f64 = 0.02;
/// With fewer pairs no interval of 99 % exists.
pub(crate) const PAIRS_MIN: usize = 8;

/// A number of pairs after which the intervals are looked at, and the error spent on that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Look {
    /// Pairs measured by then.
    pub pairs: usize,
    /// 1 - confidence of this look's intervals.
    pub alpha: f64,
}

/// The looks of a comparison: at half the `planned` pairs if that is enough for an interval, at
/// the planned pairs, and at `max` pairs if that is more. Their alphas sum to [`ALPHA`].
pub(crate) fn looks(planned: usize, max: usize) -> Vec<Look> {
    let mut looks = Vec::new();
    let mut left = ALPHA;
    let half = planned.div_ceil(2);
    if half >= PAIRS_MIN {
        looks.push(Look { pairs: half, alpha: ALPHA_EARLY });
        left -= ALPHA_EARLY;
    }
    if max > planned {
        looks.push(Look { pairs: planned, alpha: left - ALPHA_LATE });
        left = ALPHA_LATE;
    }
    looks.push(Look { pairs: max.max(planned), alpha: left });
    looks
}

/// What an interval says about a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Wholly beyond the threshold on the worse side.
    Regression,
    /// The interval reaches across the threshold.
    Undecided,
    /// Wholly on the good side of the threshold.
    NoRegression,
    /// Wholly beyond the threshold on the better side.
    Improvement,
}

impl Verdict {
    /// As a person reads it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Regression => "REGRESSION",
            Self::Undecided => "undecided",
            Self::NoRegression => "no regression",
            Self::Improvement => "improvement",
        }
    }
}

/// Judges the ratio HEAD/BASE of `metric`.
pub(crate) fn judge(metric: Metric, ratio: Interval, threshold_percent: f64) -> Verdict {
    let (least, most) = (1.0 - threshold_percent / 100.0, 1.0 + threshold_percent / 100.0);
    let (beyond_least, beyond_most) = (ratio.high < least, ratio.low > most);
    let (worse, better, within) = if metric.higher_is_better() {
        (beyond_least, beyond_most, ratio.low >= least)
    } else {
        (beyond_most, beyond_least, ratio.high <= most)
    };
    match (worse, better, within) {
        (true, _, _) => Verdict::Regression,
        (_, true, _) => Verdict::Improvement,
        (_, _, true) => Verdict::NoRegression,
        _ => Verdict::Undecided,
    }
}

/// One verdict of several deciding metrics: one regression is one too many, and nothing is cleared
/// as long as one of them is undecided. `None` if there are none.
pub(crate) fn overall(verdicts: impl IntoIterator<Item = Verdict>) -> Option<Verdict> {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Regression => 0,
        Verdict::Undecided => 1,
        Verdict::NoRegression => 2,
        Verdict::Improvement => 3,
    };
    verdicts.into_iter().min_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::noise::Noise;
    use crate::statistics::paired_interval;

    fn interval(low: f64, high: f64) -> Interval {
        Interval { low, estimate: (low + high) / 2.0, high }
    }

    #[test]
    fn the_looks_spend_five_percent_together() {
        for (planned, max) in [(8, 8), (8, 9), (15, 15), (15, 30), (16, 200), (30, 8)] {
            let looks = looks(planned, max);
            let spent: f64 = looks.iter().map(|look| look.alpha).sum();
            assert!((spent - ALPHA).abs() < 1e-12, "{looks:?}");
            assert!(looks.windows(2).all(|pair| pair[0].pairs < pair[1].pairs), "{looks:?}");
            for look in looks {
                assert!(paired_interval(&vec![0.0; look.pairs], look.alpha).is_some(), "{look:?}");
            }
        }
        let pairs: Vec<usize> = looks(15, 30).iter().map(|look| look.pairs).collect();
        assert_eq!(pairs, [8, 15, 30]);
    }

    #[test]
    fn a_verdict_needs_the_whole_interval() {
        use Metric::{CpuSPerGb, RecordsPerS};
        use Verdict::{Improvement, NoRegression, Regression, Undecided};
        for (metric, low, high, verdict) in [
            (RecordsPerS, 0.93, 0.97, Regression),
            (RecordsPerS, 0.93, 0.98, Undecided),
            (RecordsPerS, 0.98, 1.10, NoRegression),
            (RecordsPerS, 1.03, 1.10, Improvement),
            (CpuSPerGb, 1.03, 1.07, Regression),
            (CpuSPerGb, 1.02, 1.07, Undecided),
            (CpuSPerGb, 0.90, 1.02, NoRegression),
            (CpuSPerGb, 0.90, 0.97, Improvement),
        ] {
            assert_eq!(judge(metric, interval(low, high), 2.5), verdict, "{metric} {low} {high}");
        }
    }

    #[test]
    fn the_worst_metric_speaks_for_all() {
        use Verdict::{Improvement, NoRegression, Regression, Undecided};
        assert_eq!(overall([]), None);
        assert_eq!(overall([Improvement, NoRegression]), Some(NoRegression));
        assert_eq!(overall([NoRegression, Undecided]), Some(Undecided));
        assert_eq!(overall([Undecided, Regression, Improvement]), Some(Regression));
    }

    /// The share of comparisons, all looks included, that end in each verdict.
    fn shares(change: f64, noise_of_ratio: f64) -> impl Fn(Verdict) -> f64 {
        let trials = 300;
        let mut noise = Noise::new(7);
        let mut ends = Vec::new();
        for _ in 0..trials {
            let logs: Vec<f64> =
                (0..30).map(|_| (1.0 + change).ln() + noise_of_ratio * noise.normal()).collect();
            let verdicts = looks(15, 30).into_iter().map(|look| {
                let ratio = paired_interval(&logs[..look.pairs], look.alpha).unwrap();
                judge(Metric::CpuSPerGb, ratio.map(f64::exp), 2.5)
            });
            let mut end = Verdict::Undecided;
            for verdict in verdicts {
                end = verdict;
                if end != Verdict::Undecided {
                    break;
                }
            }
            ends.push(end);
        }
        move |verdict| ends.iter().filter(|end| **end == verdict).count() as f64 / trials as f64
    }

    #[test]
    fn five_percent_is_caught_and_nothing_is_not_when_ratios_scatter_by_three() {
        let slower = shares(0.05, 0.03);
        assert!(slower(Verdict::Regression) > 0.9, "{}", slower(Verdict::Regression));
        assert_eq!(slower(Verdict::Improvement), 0.0);
        let same = shares(0.0, 0.03);
        assert_eq!(same(Verdict::Regression), 0.0);
        assert!(same(Verdict::NoRegression) > 0.9, "{}", same(Verdict::NoRegression));
    }

    #[test]
    fn a_change_at_the_threshold_is_flagged_no_more_often_than_promised() {
        let borderline = shares(0.025, 0.03);
        assert!(borderline(Verdict::Regression) < 0.05, "{}", borderline(Verdict::Regression));
    }

    #[test]
    fn a_hopelessly_noisy_machine_ends_undecided() {
        let same = shares(0.0, 0.5);
        assert!(same(Verdict::Undecided) > 0.9, "{}", same(Verdict::Undecided));
        assert!(same(Verdict::Regression) < 0.05, "{}", same(Verdict::Regression));
    }
}
