//! A shard's write limits: bytes and records a second, taken together or not at all.
//!
//! Of a batch whose records are independent, those that find tokens have them held until the batch
//! comes again without the others. It comes under the same producer and request, or the tokens go
//! back after a while.

use thalweg_wire::control::ShardLimits;
use thalweg_wire::ids::ProducerId;

use super::bucket::TokenBucket;

/// How long tokens are held: a router sends the rest at once, and some more often if its connection
/// breaks.
const HELD_US: u64 = 1_000_000;
/// Batches for which a shard holds tokens; those of one more are not held.
const HELD_MAX: usize = 64;

/// Whose batch it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Who sends it.
    pub producer: ProducerId,
    /// What it belongs to.
    pub request_id: u64,
}

/// What a batch costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Partition keys and data.
    pub bytes: u64,
    /// Records.
    pub records: u64,
}

/// Tokens that were taken for a batch that is to come.
#[derive(Clone, Copy, Debug)]
struct Held {
    request: Request,
    cost: Cost,
    until_us: u64,
}

/// Where a batch's tokens come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grant {
    /// From the buckets.
    Buckets,
    /// They are held for it.
    Held,
}

/// Write limits at work.
#[derive(Clone, Debug)]
pub struct Buckets {
    bytes: TokenBucket,
    records: TokenBucket,
    held: Vec<Held>,
}

impl Buckets {
    /// Full ones, as a new shard has them.
    #[must_use]
    pub fn full(limits: &ShardLimits, now_us: u64) -> Buckets {
        let bytes = TokenBucket::full(limits.bytes, now_us);
        Buckets { bytes, records: TokenBucket::full(limits.records, now_us), held: Vec::new() }
    }

    /// Empty ones, as a shard has them whose history is not known.
    #[must_use]
    pub fn empty(limits: &ShardLimits, now_us: u64) -> Buckets {
        let bytes = TokenBucket::empty(limits.bytes, now_us);
        Buckets { bytes, records: TokenBucket::empty(limits.records, now_us), held: Vec::new() }
    }

    /// Where the tokens for a batch are; nothing is taken yet.
    ///
    /// # Errors
    /// How long until there are, in microseconds.
    pub fn ask(&mut self, request: Request, cost: Cost, now_us: u64) -> Result<Grant, u64> {
        self.give_back_late(now_us);
        let covers =
            |held: &Held| cost.bytes <= held.cost.bytes && cost.records <= held.cost.records;
        if self.held.iter().any(|held| held.request == request && covers(held)) {
            return Ok(Grant::Held);
        }
        match self.wait_us(cost, now_us) {
            0 => Ok(Grant::Buckets),
            wait_us => Err(wait_us),
        }
    }

    /// Takes the tokens that [`Buckets::ask`] found. What was held beyond them goes back.
    ///
    /// # Panics
    /// When it did not find them.
    pub fn take(&mut self, grant: Grant, request: Request, cost: Cost) {
        if grant == Grant::Held {
            let place = self.held.iter().position(|held| held.request == request);
            let held = self.held.swap_remove(place.expect("they were found to be held"));
            self.refund(held.cost);
        }
        self.bytes.take(cost.bytes);
        self.records.take(cost.records);
    }

    /// Holds tokens for those of a batch's records that find some, in order; answers which do, and
    /// how long until the first of the others would, in microseconds.
    pub fn hold(
        &mut self,
        request: Request,
        record_bytes: impl Iterator<Item = u64>,
        now_us: u64,
    ) -> (Vec<bool>, u64) {
        if let Some(place) = self.held.iter().position(|held| held.request == request) {
            let held = self.held.swap_remove(place);
            self.refund(held.cost);
        }
        let (mut cost, mut first_wait_us) = (Cost::default(), 0);
        let taken = record_bytes.map(|bytes| {
            let wait_us = self.wait_us(Cost { bytes, records: 1 }, now_us);
            if wait_us == 0 {
                self.bytes.take(bytes);
                self.records.take(1);
                cost = Cost { bytes: cost.bytes + bytes, records: cost.records + 1 };
            } else if first_wait_us == 0 {
                first_wait_us = wait_us;
            }
            wait_us == 0
        });
        let taken: Vec<bool> = taken.collect();
        if cost.records > 0 && self.held.len() < HELD_MAX {
            self.held.push(Held { request, cost, until_us: now_us + HELD_US });
        } else {
            self.refund(cost);
        }
        (taken, first_wait_us)
    }

    fn wait_us(&mut self, cost: Cost, now_us: u64) -> u64 {
        self.bytes.wait_us(cost.bytes, now_us).max(self.records.wait_us(cost.records, now_us))
    }

    /// Gives back what was held for batches that did not come in time.
    fn give_back_late(&mut self, now_us: u64) {
        let late = |held: &mut Held| held.until_us <= now_us;
        let back = self.held.extract_if(.., late).fold(Cost::default(), |sum, held| Cost {
            bytes: sum.bytes + held.cost.bytes,
            records: sum.records + held.cost.records,
        });
        self.refund(back);
    }

    fn refund(&mut self, cost: Cost) {
        self.bytes.refund(cost.bytes);
        self.records.refund(cost.records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use thalweg_wire::control::Rate;

    const LIMITS: ShardLimits = ShardLimits {
        bytes: Rate { per_s: 1000, capacity: 1000 },
        records: Rate { per_s: 10, capacity: 10 },
    };

    fn request(request_id: u64) -> Request {
        Request { producer: ProducerId(7), request_id }
    }

    fn cost(bytes: u64, records: u64) -> Cost {
        Cost { bytes, records }
    }

    #[test]
    fn a_batch_takes_all_or_nothing() {
        let mut buckets = Buckets::full(&LIMITS, 0);
        assert_eq!(buckets.ask(request(1), cost(1001, 1), 0), Err(1));
        assert_eq!(buckets.ask(request(1), cost(1, 11), 0), Err(1));
        assert_eq!(buckets.ask(request(1), cost(1000, 10), 0), Ok(Grant::Buckets));
        buckets.take(Grant::Buckets, request(1), cost(1000, 4));
        assert_eq!(buckets.ask(request(1), cost(10, 1), 0), Err(10_000));
        assert_eq!(buckets.ask(request(1), cost(10, 1), 10_000), Ok(Grant::Buckets));
    }

    /// A record that is too large does not take the smaller ones behind it with it.
    #[test]
    fn records_that_find_tokens_have_them_held_for_their_request() {
        let mut buckets = Buckets::full(&LIMITS, 0);
        let sizes = [400, 700, 300, 300, 300];
        let (taken, wait_us) = buckets.hold(request(1), sizes.into_iter(), 0);
        assert_eq!(taken, [true, false, true, true, false]);
        assert_eq!(wait_us, 100_000, "for the second: 700 bytes, 600 are there");
        assert_eq!(buckets.ask(request(2), cost(1, 1), 0), Err(1000), "nobody else gets them");
        assert_eq!(buckets.ask(request(1), cost(1000, 3), 0), Ok(Grant::Held));
        buckets.take(Grant::Held, request(1), cost(1000, 3));
        assert!(buckets.ask(request(1), cost(1, 1), 0).is_err(), "they are taken once");
        assert_eq!(buckets.ask(request(3), cost(1, 7), 1000), Ok(Grant::Buckets));
    }

    #[test]
    fn what_is_held_goes_back_when_its_batch_does_not_come_or_is_smaller() {
        let mut buckets = Buckets::full(&LIMITS, 0);
        buckets.hold(request(1), [600, 600].into_iter(), 0);
        assert_eq!(buckets.ask(request(1), cost(200, 1), 0), Ok(Grant::Held));
        buckets.take(Grant::Held, request(1), cost(200, 1));
        assert_eq!(buckets.ask(request(2), cost(800, 9), 0), Ok(Grant::Buckets));
        buckets.take(Grant::Buckets, request(2), cost(800, 9));
        // A second later the buckets are full again, whatever was held meanwhile.
        buckets.hold(request(3), [500, 600].into_iter(), HELD_US);
        assert!(buckets.ask(request(4), cost(1000, 9), HELD_US).is_err());
        assert_eq!(buckets.ask(request(4), cost(1000, 10), 2 * HELD_US), Ok(Grant::Buckets));
    }

    #[test]
    fn a_request_that_comes_with_more_has_to_find_tokens_like_any_other() {
        let mut buckets = Buckets::full(&LIMITS, 0);
        buckets.hold(request(1), [600, 600].into_iter(), 0);
        assert_eq!(buckets.ask(request(1), cost(700, 1), 0), Err(300_000));
        let (taken, _) = buckets.hold(request(1), [700, 400].into_iter(), 0);
        assert_eq!(taken, [true, false], "what was held for it before is there again");
    }

    #[test]
    fn tokens_are_held_for_so_many_requests() {
        let limits = ShardLimits { records: Rate { per_s: 1, capacity: 1000 }, ..LIMITS };
        let mut buckets = Buckets::full(&limits, 0);
        for id in 0..HELD_MAX as u64 + 10 {
            let (taken, _) = buckets.hold(request(id), [1, 2000].into_iter(), 0);
            assert_eq!(taken, [true, false]);
        }
        assert_eq!(buckets.held.len(), HELD_MAX);
        let left = 1000 - HELD_MAX as u64;
        assert_eq!(buckets.ask(request(0), cost(left, left), 0), Ok(Grant::Buckets));
    }

    proptest! {
        /// Whatever is asked, held, sent again or not: over any time no more is granted than rate
        /// times time and the capacity.
        #[test]
        fn no_more_is_granted_than_the_rate(
            steps in prop::collection::vec((0_u64..300_000, 0_u64..4, 1_u64..500, any::<bool>()), 1..200)
        ) {
            let mut buckets = Buckets::full(&LIMITS, 0);
            let (mut now_us, mut granted) = (0, cost(0, 0));
            for (wait_us, id, bytes, partial) in steps {
                now_us += wait_us;
                let of = request(id);
                let batch = cost(2 * bytes, 2);
                match buckets.ask(of, batch, now_us) {
                    Ok(grant) => {
                        buckets.take(grant, of, batch);
                        granted = cost(granted.bytes + batch.bytes, granted.records + 2);
                    }
                    Err(wait_us) => {
                        prop_assert!(wait_us > 0);
                        if partial {
                            let (taken, _) = buckets.hold(of, [bytes; 2].into_iter(), now_us);
                            let count = taken.iter().filter(|taken| **taken).count() as u64;
                            let rest = cost(count * bytes, count);
                            if count > 0 && buckets.ask(of, rest, now_us) == Ok(Grant::Held) {
                                buckets.take(Grant::Held, of, rest);
                                granted = cost(granted.bytes + rest.bytes, granted.records + count);
                            }
                        }
                    }
                }
                prop_assert!(granted.bytes <= 1000 + now_us / 1000);
                prop_assert!(granted.records <= 10 + now_us / 100_000);
            }
        }
    }
}
