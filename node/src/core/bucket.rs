//! The token bucket: a rate with a burst.
//!
//! Kinesis grants a shard 1 MiB/s of writes and up to 10 MiB at once (developer guide, large
//! records; re:Invent 2025 ANT423): a bucket of 10 MiB that refills at 1 MiB/s. Time comes from
//! the caller and is only ever compared with itself.

use thalweg_wire::control::Rate;

/// Tokens are kept in millionths, so that a microsecond's refill is a whole number.
const SCALE: u64 = 1_000_000;

/// A bucket. **Invariant:** over any span of `t` it grants at most `rate * t + capacity`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenBucket {
    rate: Rate,
    level_scaled: u64,
    refilled_us: u64,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rate: Rate, now_us: u64) -> TokenBucket {
        TokenBucket { rate, level_scaled: rate.capacity * SCALE, refilled_us: now_us }
    }

    /// An empty bucket: what a bucket of unknown history starts as.
    #[must_use]
    pub fn empty(rate: Rate, now_us: u64) -> TokenBucket {
        TokenBucket { rate, level_scaled: 0, refilled_us: now_us }
    }

    /// How long until `tokens` are there, in microseconds; zero when they are. More than the
    /// capacity is never there: the wait is then that for a full bucket, at least a microsecond.
    #[must_use]
    pub fn wait_us(&mut self, tokens: u64, now_us: u64) -> u64 {
        self.refill(now_us);
        let scaled = tokens.saturating_mul(SCALE);
        if scaled <= self.level_scaled {
            return 0;
        }
        let missing = scaled.min(self.rate.capacity * SCALE) - self.level_scaled;
        missing.div_ceil(self.rate.per_s).max(1)
    }

    /// Takes tokens that [`TokenBucket::wait_us`] said are there.
    ///
    /// # Panics
    /// When they are not.
    pub fn take(&mut self, tokens: u64) {
        let scaled = tokens * SCALE;
        assert!(scaled <= self.level_scaled, "tokens are taken only when they are there");
        self.level_scaled -= scaled;
    }

    /// Gives back tokens of an append that did not happen.
    pub fn refund(&mut self, tokens: u64) {
        let full = self.rate.capacity * SCALE;
        self.level_scaled = self.level_scaled.saturating_add(tokens * SCALE).min(full);
    }

    fn refill(&mut self, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.refilled_us);
        let full = self.rate.capacity * SCALE;
        let gained = u128::from(elapsed_us) * u128::from(self.rate.per_s);
        let level = u128::from(self.level_scaled) + gained;
        self.level_scaled = u64::try_from(level).unwrap_or(u64::MAX).min(full);
        self.refilled_us = self.refilled_us.max(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use thalweg_wire::control::ShardLimits;

    const MIB: u64 = 1024 * 1024;
    const SECOND_US: u64 = 1_000_000;

    fn take_if_there(bucket: &mut TokenBucket, tokens: u64, now_us: u64) -> bool {
        let there = bucket.wait_us(tokens, now_us) == 0;
        if there {
            bucket.take(tokens);
        }
        there
    }

    #[test]
    fn an_idle_shard_takes_ten_mebibytes_every_ten_seconds() {
        let mut bucket = TokenBucket::full(ShardLimits::KINESIS.bytes, 0);
        assert!(take_if_there(&mut bucket, 10 * MIB, 0));
        assert!(!take_if_there(&mut bucket, 10 * MIB, SECOND_US));
        assert_eq!(bucket.wait_us(10 * MIB, SECOND_US), 9 * SECOND_US);
        assert!(!take_if_there(&mut bucket, 10 * MIB, 10 * SECOND_US - 1));
        assert!(take_if_there(&mut bucket, 10 * MIB, 10 * SECOND_US));
    }

    #[test]
    fn under_half_the_rate_the_second_burst_passes_after_twenty_seconds() {
        let mut bucket = TokenBucket::full(ShardLimits::KINESIS.bytes, 0);
        assert!(take_if_there(&mut bucket, 10 * MIB, 0));
        for second in 1..=20 {
            assert!(take_if_there(&mut bucket, MIB / 2, second * SECOND_US));
            let passes = bucket.wait_us(10 * MIB, second * SECOND_US + 1) == 0;
            assert!(!passes, "second {second}: the half of 20 s is gone to the base load");
        }
        assert!(take_if_there(&mut bucket, 10 * MIB, 20 * SECOND_US + SECOND_US / 2));
    }

    #[test]
    fn at_the_full_rate_the_base_passes_and_a_second_burst_never() {
        let mut bucket = TokenBucket::full(ShardLimits::KINESIS.bytes, 0);
        assert!(take_if_there(&mut bucket, 10 * MIB, 0));
        for second in 1..=100 {
            assert!(!take_if_there(&mut bucket, 10 * MIB, second * SECOND_US));
            assert!(take_if_there(&mut bucket, MIB, second * SECOND_US));
        }
    }

    #[test]
    fn more_than_the_capacity_never_passes() {
        let mut bucket = TokenBucket::full(Rate { per_s: 5, capacity: 10 }, 0);
        assert!(bucket.wait_us(11, 1000 * SECOND_US) > 0);
        assert_eq!(bucket.wait_us(10, 1000 * SECOND_US), 0);
    }

    #[test]
    fn a_refund_never_overfills_and_time_never_runs_back() {
        let mut bucket = TokenBucket::empty(Rate { per_s: 5, capacity: 10 }, SECOND_US);
        assert!(bucket.wait_us(1, 0) > 0);
        bucket.refund(100);
        assert_eq!(bucket.wait_us(10, SECOND_US), 0);
        assert!(bucket.wait_us(11, SECOND_US) > 0);
    }

    proptest! {
        #[test]
        fn never_more_than_rate_times_time_plus_capacity(
            per_s in 1_u64..10_000, capacity in 1_u64..10_000,
            steps in prop::collection::vec((0_u64..2_000_000, 1_u64..5_000), 1..100),
        ) {
            let rate = Rate { per_s, capacity };
            let mut bucket = TokenBucket::full(rate, 0);
            let (mut now_us, mut granted) = (0, 0_u128);
            for (elapsed_us, tokens) in steps {
                now_us += elapsed_us;
                let wait_us = bucket.wait_us(tokens, now_us);
                if wait_us == 0 {
                    bucket.take(tokens);
                    granted += u128::from(tokens);
                } else if tokens <= capacity {
                    // The wait is exact: enough then, too little a microsecond before.
                    let mut later = bucket;
                    prop_assert_eq!(later.wait_us(tokens, now_us + wait_us), 0);
                    let mut earlier = bucket;
                    prop_assert!(earlier.wait_us(tokens, now_us + wait_us - 1) > 0);
                }
                let bound = u128::from(per_s) * u128::from(now_us) + u128::from(capacity * SCALE);
                prop_assert!(granted * u128::from(SCALE) <= bound);
            }
        }
    }
}
