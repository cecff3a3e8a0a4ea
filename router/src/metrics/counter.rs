//! Counters and distributions that many tasks add to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one; answers the sum.
    pub fn add_one(&self) -> u64 {
        self.0.fetch_add(1, Relaxed) + 1
    }

    /// Adds some.
    pub fn add(&self, more: u64) {
        // Most of what can be counted is nothing most of the time.
        if more > 0 {
            self.0.fetch_add(more, Relaxed);
        }
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A distribution in fixed buckets. To observe takes two additions.
#[derive(Debug)]
pub struct Histogram<const BUCKETS: usize> {
    /// Rising. A bound belongs to its bucket.
    bounds: &'static [u64; BUCKETS],
    counts: [AtomicU64; BUCKETS],
    beyond: AtomicU64,
    sum: AtomicU64,
}

impl<const BUCKETS: usize> Histogram<BUCKETS> {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: &'static [u64; BUCKETS]) -> Histogram<BUCKETS> {
        Histogram {
            bounds,
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Takes a value in.
    pub fn observe(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(place).unwrap_or(&self.beyond).fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// What was observed so far.
    #[must_use]
    pub fn read(&self) -> Distribution {
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        Distribution {
            buckets: self.bounds.iter().copied().zip(counts).collect(),
            beyond: self.beyond.load(Relaxed),
            sum: self.sum.load(Relaxed),
        }
    }
}

/// A distribution as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Distribution {
    /// Upper bounds, which belong to their buckets, and how many values each bucket has.
    pub buckets: Vec<(u64, u64)>,
    /// Values above the last bound.
    pub beyond: u64,
    /// Of all values.
    pub sum: u64,
}

impl Distribution {
    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum::<u64>() + self.beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[0, 10, 20]);
        for value in [0, 1, 10, 11, 20, 21, 1000] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!(read.buckets, [(0, 1), (10, 2), (20, 2)]);
        assert_eq!((read.beyond, read.count(), read.sum), (2, 7, 1063));
    }

    #[test]
    fn what_many_add_adds_up() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for more in [0, 2, 3] {
                        counter.add(more);
                    }
                    counter.add_one();
                });
            }
        });
        assert_eq!(counter.get(), 24);
    }
}
