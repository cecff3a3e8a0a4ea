//! What is counted of a stream, by the names that CloudWatch has for it (developer guide, "Monitor
//! the Amazon Kinesis Data Streams service with Amazon CloudWatch").
//!
//! A stream that nobody uses costs some words: what belongs to an operation is made when it is
//! first called. The counters of a shard are there while its stream has enhanced monitoring.

use std::sync::OnceLock;
use std::time::Duration;

use super::counter::{Counter, Histogram};

/// Bounds of latencies, microseconds: from a quarter of a millisecond to ten seconds.
pub(super) const LATENCY_US: [u64; 15] = [
    250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];
/// Bounds of how far readers are behind, milliseconds: nothing, to a week.
const BEHIND_MS: [u64; 10] =
    [0, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000, 21_600_000, 86_400_000, 604_800_000];

/// How long calls take, microseconds.
pub(super) type Latency = Histogram<{ LATENCY_US.len() }>;
/// How far readers are behind, milliseconds.
pub(super) type Behind = Histogram<{ BEHIND_MS.len() }>;

/// What became of some records that were to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Records stored.
    pub records: u64,
    /// Data and partition keys of those.
    pub bytes: u64,
    /// Records that found their shard's rate used up.
    pub throttled: u64,
    /// Records that failed for another reason.
    pub failed: u64,
}

impl Written {
    /// A record with so many bytes is stored.
    pub fn add_stored(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as u64;
    }

    /// Adds what became of others.
    pub fn add(&mut self, other: &Written) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.throttled += other.throttled;
        self.failed += other.failed;
    }

    fn total(&self) -> u64 {
        self.records + self.throttled + self.failed
    }
}

/// What a call read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Read {
    /// Records.
    pub records: u64,
    /// Data and partition keys.
    pub bytes: u64,
    /// How far its reader is behind, milliseconds.
    pub behind_ms: u64,
}

/// What is counted of a stream. What was counted is no part of what a stream is: any two are equal.
#[derive(Debug, Default)]
pub struct StreamCounts {
    put_record: OnceLock<Box<PutRecordCounts>>,
    put_records: OnceLock<Box<PutRecordsCounts>>,
    get_records: OnceLock<Box<GetRecordsCounts>>,
    pub(super) incoming_bytes: Counter,
    pub(super) incoming_records: Counter,
    pub(super) write_throttled: Counter,
    pub(super) read_throttled: Counter,
}

/// Of PutRecord.
#[derive(Debug)]
pub(super) struct PutRecordCounts {
    pub(super) bytes: Counter,
    pub(super) success: Counter,
    pub(super) latency_us: Latency,
}

/// Of PutRecords.
#[derive(Debug)]
pub(super) struct PutRecordsCounts {
    pub(super) bytes: Counter,
    pub(super) success: Counter,
    pub(super) total_records: Counter,
    pub(super) successful_records: Counter,
    pub(super) failed_records: Counter,
    pub(super) throttled_records: Counter,
    pub(super) latency_us: Latency,
}

/// Of GetRecords.
#[derive(Debug)]
pub(super) struct GetRecordsCounts {
    pub(super) bytes: Counter,
    pub(super) records: Counter,
    pub(super) success: Counter,
    pub(super) latency_us: Latency,
    pub(super) iterator_age_ms: Behind,
}

impl StreamCounts {
    /// A call of PutRecord ended.
    pub fn note_put_record(&self, took: Duration, written: &Written) {
        let counts = self.put_record.get_or_init(|| {
            Box::new(PutRecordCounts {
                bytes: Counter::default(),
                success: Counter::default(),
                latency_us: Histogram::new(&LATENCY_US),
            })
        });
        self.note_written(written);
        counts.bytes.add(written.bytes);
        counts.success.add(u64::from(written.records > 0));
        counts.latency_us.observe(microseconds(took));
    }

    /// A call of PutRecords ended.
    pub fn note_put_records(&self, took: Duration, written: &Written) {
        let counts = self.put_records.get_or_init(|| {
            Box::new(PutRecordsCounts {
                bytes: Counter::default(),
                success: Counter::default(),
                total_records: Counter::default(),
                successful_records: Counter::default(),
                failed_records: Counter::default(),
                throttled_records: Counter::default(),
                latency_us: Histogram::new(&LATENCY_US),
            })
        });
        self.note_written(written);
        counts.bytes.add(written.bytes);
        counts.success.add(u64::from(written.records > 0));
        counts.total_records.add(written.total());
        counts.successful_records.add(written.records);
        counts.failed_records.add(written.failed);
        counts.throttled_records.add(written.throttled);
        counts.latency_us.observe(microseconds(took));
    }

    fn note_written(&self, written: &Written) {
        self.incoming_bytes.add(written.bytes);
        self.incoming_records.add(written.records);
        self.write_throttled.add(written.throttled);
    }

    /// A call of GetRecords ended: with what it read, or an error.
    pub fn note_get_records(&self, took: Duration, read: Option<&Read>) {
        let counts = self.get_records.get_or_init(|| {
            Box::new(GetRecordsCounts {
                bytes: Counter::default(),
                records: Counter::default(),
                success: Counter::default(),
                latency_us: Histogram::new(&LATENCY_US),
                iterator_age_ms: Histogram::new(&BEHIND_MS),
            })
        });
        counts.latency_us.observe(microseconds(took));
        if let Some(read) = read {
            counts.success.add_one();
            counts.bytes.add(read.bytes);
            counts.records.add(read.records);
            counts.iterator_age_ms.observe(read.behind_ms);
        }
    }

    /// A call of GetRecords found its shard's rate used up.
    pub fn note_read_throttled(&self) {
        self.read_throttled.add_one();
    }

    /// Once it was called.
    pub(super) fn put_record(&self) -> Option<&PutRecordCounts> {
        self.put_record.get().map(Box::as_ref)
    }

    /// Once it was called.
    pub(super) fn put_records(&self) -> Option<&PutRecordsCounts> {
        self.put_records.get().map(Box::as_ref)
    }

    /// Once it was called.
    pub(super) fn get_records(&self) -> Option<&GetRecordsCounts> {
        self.get_records.get().map(Box::as_ref)
    }

    /// Whether anybody has written, or tried to.
    pub(super) fn is_written(&self) -> bool {
        self.put_record.get().is_some() || self.put_records.get().is_some()
    }
}

/// What is counted of a shard under enhanced monitoring. Any two are equal, see [`StreamCounts`].
#[derive(Debug)]
pub struct ShardCounts {
    pub(super) incoming_bytes: Counter,
    pub(super) incoming_records: Counter,
    pub(super) write_throttled: Counter,
    pub(super) outgoing_bytes: Counter,
    pub(super) outgoing_records: Counter,
    pub(super) read_throttled: Counter,
    pub(super) iterator_age_ms: Behind,
}

impl Default for ShardCounts {
    fn default() -> ShardCounts {
        ShardCounts {
            incoming_bytes: Counter::default(),
            incoming_records: Counter::default(),
            write_throttled: Counter::default(),
            outgoing_bytes: Counter::default(),
            outgoing_records: Counter::default(),
            read_throttled: Counter::default(),
            iterator_age_ms: Histogram::new(&BEHIND_MS),
        }
    }
}

impl ShardCounts {
    /// Records were to be written.
    pub fn note_written(&self, written: &Written) {
        self.incoming_bytes.add(written.bytes);
        self.incoming_records.add(written.records);
        self.write_throttled.add(written.throttled);
    }

    /// A call of GetRecords read some.
    pub fn note_read(&self, read: &Read) {
        self.outgoing_bytes.add(read.bytes);
        self.outgoing_records.add(read.records);
        self.iterator_age_ms.observe(read.behind_ms);
    }

    /// A call of GetRecords found the shard's rate used up.
    pub fn note_read_throttled(&self) {
        self.read_throttled.add_one();
    }
}

/// What is counted of a consumer. Any two are equal, see [`StreamCounts`].
#[derive(Debug)]
pub struct ConsumerCounts {
    pub(super) subscribed: Counter,
    pub(super) rate_exceeded: Counter,
    pub(super) events: Counter,
    pub(super) event_bytes: Counter,
    pub(super) event_records: Counter,
    pub(super) event_behind_ms: Behind,
}

impl Default for ConsumerCounts {
    fn default() -> ConsumerCounts {
        ConsumerCounts {
            subscribed: Counter::default(),
            rate_exceeded: Counter::default(),
            events: Counter::default(),
            event_bytes: Counter::default(),
            event_records: Counter::default(),
            event_behind_ms: Histogram::new(&BEHIND_MS),
        }
    }
}

impl ConsumerCounts {
    /// A subscription began.
    pub fn note_subscribed(&self) {
        self.subscribed.add_one();
    }

    /// One was refused, because another began a moment ago.
    pub fn note_rate_exceeded(&self) {
        self.rate_exceeded.add_one();
    }

    /// An event was sent.
    pub fn note_event(&self, read: &Read) {
        self.events.add_one();
        self.event_bytes.add(read.bytes);
        self.event_records.add(read.records);
        self.event_behind_ms.observe(read.behind_ms);
    }

    /// Whether it has subscribed, or tried to.
    pub(super) fn is_used(&self) -> bool {
        self.subscribed.get() + self.rate_exceeded.get() > 0
    }
}

macro_rules! always_equal {
    ($($counts:ident),*) => {$(
        impl PartialEq for $counts {
            fn eq(&self, _: &$counts) -> bool {
                true
            }
        }

        impl Eq for $counts {}
    )*};
}

always_equal!(StreamCounts, ShardCounts, ConsumerCounts);

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A thousand streams that nobody uses take a hundred kilobytes for this.
const _: () = assert!(size_of::<StreamCounts>() <= 96);

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: Written = Written { records: 3, bytes: 100, throttled: 2, failed: 1 };

    #[test]
    fn what_nobody_used_is_not_there() {
        let counts = StreamCounts::default();
        assert!(!counts.is_written());
        counts.note_put_record(Duration::from_millis(3), &Written::default());
        assert!(counts.is_written());
        assert!(counts.put_records().is_none() && counts.get_records().is_none());
        let put = counts.put_record().expect("it was called");
        assert_eq!((put.success.get(), put.latency_us.read().sum), (0, 3000));
    }

    #[test]
    fn both_ways_of_writing_count_as_incoming() {
        let counts = StreamCounts::default();
        counts.note_put_records(Duration::ZERO, &WRITTEN);
        let one = Written { records: 1, bytes: 7, ..Written::default() };
        counts.note_put_record(Duration::ZERO, &one);
        assert_eq!((counts.incoming_records.get(), counts.incoming_bytes.get()), (4, 107));
        assert_eq!(counts.write_throttled.get(), 2);
        let put = counts.put_records().expect("it was called");
        let records = [
            &put.total_records,
            &put.successful_records,
            &put.failed_records,
            &put.throttled_records,
        ];
        assert_eq!(records.map(Counter::get), [6, 3, 1, 2]);
        assert_eq!((put.success.get(), put.bytes.get()), (1, 100));
    }

    #[test]
    fn a_call_that_failed_has_a_latency_and_no_age() {
        let counts = StreamCounts::default();
        counts.note_get_records(Duration::from_micros(9), None);
        let read = Read { records: 2, bytes: 10, behind_ms: 50 };
        counts.note_get_records(Duration::from_micros(1), Some(&read));
        let get = counts.get_records().expect("it was called");
        assert_eq!((get.latency_us.read().count(), get.success.get()), (2, 1));
        assert_eq!((get.iterator_age_ms.read().count(), get.iterator_age_ms.read().sum), (1, 50));
    }
}
