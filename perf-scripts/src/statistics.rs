//! Distribution-free estimates and intervals for small, noisy samples.
//!
//! Benchmarks on shared machines give few runs with heavy tails, so nothing here assumes a normal
//! distribution. Both intervals are exact at every sample size: they come from counting the rank
//! statistic's null distribution, where a percentile bootstrap of eight to thirty pairs would be
//! too narrow and would promise more than it keeps. They need no random numbers either: the same
//! runs always give the same interval.

use serde::{Deserialize, Serialize};

/// An estimate with the interval around it. In [`compare`](crate::compare) both are logarithms of
/// ratios until they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    /// Lower end.
    pub low: f64,
    /// The Hodges-Lehmann estimate.
    pub estimate: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// The same interval on another scale; `transform` must be increasing.
    pub(crate) fn map(self, transform: impl Fn(f64) -> f64) -> Self {
        Self {
            low: transform(self.low),
            estimate: transform(self.estimate),
            high: transform(self.high),
        }
    }
}

/// The middle of `values`, or the mean of the two middle ones; `None` without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    Some(median_of_sorted(&sorted(values.to_vec())))
}

/// Centre of paired `differences` with its interval at confidence `1 - alpha`: the median of the
/// Walsh averages, and the interval that Wilcoxon's signed-rank test does not reject.
///
/// `None` if there are too few differences for that confidence (fewer than six at 0.05).
pub(crate) fn paired_interval(differences: &[f64], alpha: f64) -> Option<Interval> {
    let mut averages = Vec::with_capacity(differences.len() * (differences.len() + 1) / 2);
    for (index, first) in differences.iter().enumerate() {
        averages.extend(differences[index..].iter().map(|second| (first + second) / 2.0));
    }
    interval_by_rank(averages, &signed_rank_counts(differences.len()), alpha)
}

/// Shift from `base` to `head`, samples that are not paired, with its interval at confidence
/// `1 - alpha`: the median of all differences, and the interval that the Mann-Whitney test does
/// not reject.
///
/// `None` if there are too few values for that confidence (fewer than four a side at 0.05).
pub(crate) fn shift_interval(base: &[f64], head: &[f64], alpha: f64) -> Option<Interval> {
    let differences = head.iter().flat_map(|h| base.iter().map(move |b| h - b)).collect();
    interval_by_rank(differences, &rank_sum_counts(base.len(), head.len()), alpha)
}

/// Cuts as many of the candidates off either end as the null distribution allows: `counts[k]` is
/// the number of equally likely arrangements in which the rank statistic is `k`.
fn interval_by_rank(candidates: Vec<f64>, counts: &[f64], alpha: f64) -> Option<Interval> {
    let candidates = sorted(candidates);
    let arrangements: f64 = counts.iter().sum();
    let mut tail = 0.0;
    let cut = counts
        .iter()
        .take_while(|count| {
            tail += **count / arrangements;
            tail <= alpha / 2.0
        })
        .count();
    // The statistic is symmetric: a tail of less than one half never passes the middle.
    let low = *candidates.get(cut.checked_sub(1)?)?;
    let high = candidates[candidates.len() - cut];
    Some(Interval { low, estimate: median_of_sorted(&candidates), high })
}

/// In how many of the 2^n sign patterns the positive ranks sum to `k`, for every `k`.
fn signed_rank_counts(n: usize) -> Vec<f64> {
    let mut counts = vec![0.0; n * (n + 1) / 2 + 1];
    counts[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..counts.len()).rev() {
            counts[sum] += counts[sum - rank];
        }
    }
    counts
}

/// In how many choices of `m` among `m + n` ranks the Mann-Whitney statistic is `k`, for every `k`.
fn rank_sum_counts(m: usize, n: usize) -> Vec<f64> {
    // `ways[chosen][u]`: the chosen items' statistic, where an item's share is the number of
    // items not chosen that rank below it.
    let mut ways = vec![vec![0.0; m * n + 1]; m + 1];
    ways[0][0] = 1.0;
    for rank in 0..m + n {
        for chosen in (1..=m.min(rank + 1)).rev() {
            let below = rank + 1 - chosen;
            if below > n {
                continue;
            }
            let (fewer, more) = ways.split_at_mut(chosen);
            for (u, count) in more[0].iter_mut().enumerate().skip(below) {
                *count += fewer[chosen - 1][u - below];
            }
        }
    }
    ways.swap_remove(m)
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median_of_sorted(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Seeded noise for the tests of this crate.
#[cfg(test)]
pub(crate) mod noise {
    /// Splitmix64: small, and good enough to test statistics with.
    pub(crate) struct Noise(u64);

    impl Noise {
        pub(crate) fn new(seed: u64) -> Self {
            Self(seed)
        }

        /// Uniform in `0..1`.
        pub(crate) fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Centred at zero with standard deviation one (Irwin-Hall of twelve).
        pub(crate) fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::noise::Noise;
    use super::*;

    #[test]
    fn the_median_of_nothing_one_and_several() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn signed_ranks_are_counted_exactly() {
        assert_eq!(signed_rank_counts(3), [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
        // Tables of the signed-rank test: n = 15 at 0.05 keeps T <= 25 in the lower tail.
        let counts = signed_rank_counts(15);
        let tail = |k: usize| counts[..=k].iter().sum::<f64>() / 32768.0;
        assert!(tail(25) <= 0.025 && tail(26) > 0.025);
    }

    #[test]
    fn rank_sums_are_counted_exactly() {
        assert_eq!(rank_sum_counts(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
        assert_eq!(rank_sum_counts(1, 3), [1.0; 4]);
        // Tables of the Mann-Whitney test: 10 and 10 at 0.05 keeps U <= 23; 5 and 8 keeps U <= 6.
        for (m, n, critical) in [(10, 10, 23), (5, 8, 6), (8, 5, 6)] {
            let counts = rank_sum_counts(m, n);
            let all: f64 = counts.iter().sum();
            let tail = |k: usize| counts[..=k].iter().sum::<f64>() / all;
            assert!(tail(critical) <= 0.025 && tail(critical + 1) > 0.025, "{m} {n}");
        }
    }

    #[test]
    fn too_few_values_give_no_interval() {
        assert_eq!(paired_interval(&[], 0.05), None);
        assert_eq!(paired_interval(&[1.0; 5], 0.05), None);
        assert!(paired_interval(&[1.0; 6], 0.05).is_some());
        assert_eq!(paired_interval(&[1.0; 7], 0.01), None);
        assert!(paired_interval(&[1.0; 8], 0.01).is_some());
        assert_eq!(shift_interval(&[1.0; 3], &[1.0; 3], 0.05), None);
        assert!(shift_interval(&[1.0; 4], &[1.0; 4], 0.05).is_some());
    }

    #[test]
    fn the_smallest_interval_spans_all_values() {
        let interval = paired_interval(&[6.0, 1.0, 2.0, 5.0, 3.0, 4.0], 0.05).unwrap();
        assert_eq!(interval, Interval { low: 1.0, estimate: 3.5, high: 6.0 });
        let shift = shift_interval(&[0.0; 4], &[1.0, 2.0, 3.0, 4.0], 0.05).unwrap();
        assert_eq!(shift, Interval { low: 1.0, estimate: 2.5, high: 4.0 });
    }

    #[test]
    fn one_wild_run_does_not_move_the_interval_far() {
        let mut differences = vec![0.01; 15];
        differences[7] = 50.0;
        let interval = paired_interval(&differences, 0.05).unwrap();
        assert_eq!((interval.low, interval.estimate, interval.high), (0.01, 0.01, 0.01));
    }

    #[test]
    fn intervals_cover_the_truth_as_often_as_they_promise() {
        let trials = 2000;
        let mut noise = Noise::new(1);
        let (mut paired, mut shifted) = (0, 0);
        for _ in 0..trials {
            // A heavy tail: every tenth value is ten times as far off.
            let mut value = || noise.normal() * if noise.uniform() < 0.1 { 10.0 } else { 1.0 };
            let first: Vec<f64> = (0..8).map(|_| value()).collect();
            let second: Vec<f64> = (0..9).map(|_| value()).collect();
            let covers = |interval: Interval| interval.low <= 0.0 && 0.0 <= interval.high;
            paired += u32::from(covers(paired_interval(&first, 0.05).unwrap()));
            shifted += u32::from(covers(shift_interval(&first, &second, 0.05).unwrap()));
        }
        // Three standard errors below 95 %.
        assert!(paired >= 1870, "{paired} of {trials}");
        assert!(shifted >= 1870, "{shifted} of {trials}");
    }
}
