//! How much is read of a shard: calls, bytes and records a second, shared by all who call
//! GetRecords.
//!
//! Bytes and records are charged when they have been read, for nobody knows before what an answer
//! will hold: an answer may be larger than what is left. What is left is then used up, and nothing
//! is read until all of it has come back. So after 10 MiB nothing is read for 5 s, and after 2 MiB
//! within a moment for 1 s, which is what the API reference says (GetRecords). Answers of whatever
//! size, one after the other, come to 2 MiB/s.
//!
//! A shard that nobody has read for some seconds needs no memory here: it has all that it can have.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use thalweg_wire::ids::ShardId;

/// Bytes that a shard gives a second (API reference, GetRecords).
const BYTES_PER_S: f64 = 2.0 * 1024.0 * 1024.0;
/// Records that it gives a second (developer guide, quotas and limits).
const RECORDS_PER_S: f64 = 2000.0;
/// Calls of GetRecords that it takes a second, and of GetShardIterator (API reference).
const CALLS_PER_S: f64 = 5.0;
/// Locks, so that readers of different shards rarely meet.
const STRIPES: usize = 64;
/// Shards of a stripe above which those that nobody reads are looked for.
const SHARDS_MIN: usize = 64;

/// An allowance: what comes back in a second is also the most there is.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: f64,
    per_s: f64,
    /// It was used up, and has not come back as a whole.
    is_spent: bool,
}

impl Allowance {
    fn full(per_s: f64) -> Allowance {
        Allowance { left: per_s, per_s, is_spent: false }
    }

    fn is_full(&self) -> bool {
        self.left >= self.per_s
    }

    fn refill(&mut self, seconds: f64) {
        self.left = (self.left + seconds * self.per_s).min(self.per_s);
        self.is_spent &= !self.is_full();
    }

    /// Takes some, more than there is if need be.
    fn charge(&mut self, amount: f64) {
        self.left -= amount;
        self.is_spent |= self.left <= 0.0;
    }

    /// Takes one, if there is one.
    fn take_one(&mut self) -> bool {
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// What a shard has left.
#[derive(Debug)]
struct ShardAllowances {
    bytes: Allowance,
    records: Allowance,
    calls: Allowance,
    iterators: Allowance,
    refilled: Instant,
}

impl ShardAllowances {
    fn full(now: Instant) -> ShardAllowances {
        ShardAllowances {
            bytes: Allowance::full(BYTES_PER_S),
            records: Allowance::full(RECORDS_PER_S),
            calls: Allowance::full(CALLS_PER_S),
            iterators: Allowance::full(CALLS_PER_S),
            refilled: now,
        }
    }

    fn all(&mut self) -> [&mut Allowance; 4] {
        [&mut self.bytes, &mut self.records, &mut self.calls, &mut self.iterators]
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.all().into_iter().for_each(|allowance| allowance.refill(seconds));
        self.refilled = self.refilled.max(now);
    }

    fn is_full(&mut self) -> bool {
        self.all().into_iter().all(|allowance| allowance.is_full())
    }
}

/// A part of the shards.
#[derive(Debug, Default)]
struct Stripe {
    shards: HashMap<ShardId, ShardAllowances>,
    /// Count of shards at which those are forgotten that have all.
    forget_at: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct ReadLimits {
    stripes: [Mutex<Stripe>; STRIPES],
}

impl Default for ReadLimits {
    fn default() -> ReadLimits {
        ReadLimits { stripes: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl ReadLimits {
    /// Whether a call of GetShardIterator may be served now; it counts if so.
    pub(super) fn admit_iterator(&self, shard: ShardId) -> bool {
        self.with(shard, Instant::now(), |shard| shard.iterators.take_one())
    }

    /// Whether a call of GetRecords may be served now; it counts if so.
    pub(super) fn admit_read(&self, shard: ShardId) -> bool {
        self.admit_read_at(shard, Instant::now())
    }

    fn admit_read_at(&self, shard: ShardId, now: Instant) -> bool {
        self.with(shard, now, |shard| {
            !shard.bytes.is_spent && !shard.records.is_spent && shard.calls.take_one()
        })
    }

    /// So much was read.
    pub(super) fn charge(&self, shard: ShardId, records: usize, bytes: usize) {
        self.charge_at(shard, records, bytes, Instant::now());
    }

    fn charge_at(&self, shard: ShardId, records: usize, bytes: usize, now: Instant) {
        self.with(shard, now, |shard| {
            shard.bytes.charge(bytes as f64);
            shard.records.charge(records as f64);
        });
    }

    fn with<R>(
        &self,
        shard: ShardId,
        now: Instant,
        ask: impl FnOnce(&mut ShardAllowances) -> R,
    ) -> R {
        let mut stripe = self.stripe(shard);
        stripe.make_room(now);
        let shard = stripe.shards.entry(shard).or_insert_with(|| ShardAllowances::full(now));
        shard.refill(now);
        ask(shard)
    }

    fn stripe(&self, shard: ShardId) -> MutexGuard<'_, Stripe> {
        // Streams' ids are random, and a stream's shards count up.
        let stripe = shard.stream.0.wrapping_add(u64::from(shard.index)) as usize % STRIPES;
        self.stripes[stripe].lock().expect("nobody panics with it")
    }
}

impl Stripe {
    /// Forgets the shards that have all, now and then.
    fn make_room(&mut self, now: Instant) {
        if self.shards.len() < self.forget_at.max(SHARDS_MIN) {
            return;
        }
        self.shards.retain(|_, shard| {
            shard.refill(now);
            !shard.is_full()
        });
        self.forget_at = self.shards.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use thalweg_wire::ids::StreamId;

    use super::*;

    const SHARD: ShardId = ShardId { stream: StreamId(7), index: 1 };
    const MIB: usize = 1 << 20;

    struct Reader {
        limits: ReadLimits,
        start: Instant,
    }

    impl Reader {
        fn new() -> Reader {
            Reader { limits: ReadLimits::default(), start: Instant::now() }
        }

        /// Reads at a time, if that is allowed.
        fn read(&self, at_ms: u64, records: usize, bytes: usize) -> bool {
            let now = self.start + Duration::from_millis(at_ms);
            let admitted = self.limits.admit_read_at(SHARD, now);
            if admitted {
                self.limits.charge_at(SHARD, records, bytes, now);
            }
            admitted
        }
    }

    #[test]
    fn ten_mebibytes_silence_a_shard_for_five_seconds() {
        let reader = Reader::new();
        assert!(reader.read(0, 10, 10 * MIB));
        for at_ms in [1, 1000, 2500, 4990] {
            assert!(!reader.read(at_ms, 1, 1), "{at_ms}");
        }
        assert!(reader.read(5001, 10, 10 * MIB));
        assert!(!reader.read(10_000, 1, 1));
        assert!(reader.read(10_002, 1, 1));
    }

    #[test]
    fn two_mebibytes_at_once_silence_it_for_one() {
        let reader = Reader::new();
        assert!(reader.read(0, 1, MIB) && reader.read(0, 1, MIB));
        assert!(!reader.read(990, 1, 1));
        assert!(reader.read(1001, 1, 1));
    }

    #[test]
    fn whoever_reads_two_mebibytes_a_second_is_never_refused() {
        let reader = Reader::new();
        for half in 0..100 {
            assert!(reader.read(half * 501, 500, MIB), "{half}");
        }
    }

    #[test]
    fn records_are_limited_like_bytes() {
        let reader = Reader::new();
        assert!(reader.read(0, 10_000, 1000));
        assert!(!reader.read(4990, 1, 1));
        assert!(reader.read(5001, 1000, 1000));
        assert!(reader.read(5300, 1000, 1000), "a second's worth is not used up yet");
    }

    #[test]
    fn five_calls_a_second_are_served_and_refusals_cost_nothing() {
        let reader = Reader::new();
        for call in 0..5 {
            assert!(reader.read(0, 0, 0), "{call}");
        }
        for at_ms in [0, 10, 100, 190] {
            assert!(!reader.read(at_ms, 0, 0));
        }
        assert!(reader.read(201, 0, 0));
        assert!(!reader.read(202, 0, 0));
    }

    /// In the long run nobody gets more than the rate, however the answers are cut.
    #[test]
    fn no_pattern_of_reading_exceeds_the_rate() {
        for answer in [1000, 100_000, MIB, 3 * MIB, 10 * MIB] {
            let reader = Reader::new();
            let (seconds, mut bytes) = (120, 0);
            for tick in 0..seconds * 100 {
                if reader.read(tick * 10, 1, answer) {
                    bytes += answer;
                }
            }
            let most = (seconds as usize + 1) * 2 * MIB + answer;
            assert!(bytes <= most, "{answer}: {bytes} bytes in {seconds} s");
        }
    }

    #[test]
    fn shards_that_nobody_reads_are_forgotten() {
        let limits = ReadLimits::default();
        let start = Instant::now();
        let shard = |index| ShardId { index: index * STRIPES as u32, ..SHARD };
        for index in 0..10_000 {
            let now = start + Duration::from_millis(u64::from(index) * 100);
            assert!(limits.admit_read_at(shard(index), now));
        }
        assert!(limits.stripe(shard(0)).shards.len() < 2 * SHARDS_MIN);
    }
}
