//! What a node shows of itself while it runs: counters, figures of the moment, distributions.
//!
//! Each core has its own, which it alone writes and whoever asks reads: no lock, no addition across
//! cores, no cache line that two cores write. Counters and distributions are up to date at the end
//! of each turn; figures of the moment are taken once a second.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use thalweg_wire::ids::DiskId;

use crate::counters::{Counters, SharedCounters};
use crate::io::Errno;

/// How old a core's figures of the moment may be before it takes them anew, microseconds.
pub const GAUGES_PERIOD_US: u64 = 1_000_000;

/// A distribution in buckets of powers of two: the first has what is not above 2^`FIRST`, each of
/// the next what is not above twice that, the last all the rest. Only the core that owns it
/// observes: two loads and two stores.
#[derive(Debug)]
pub struct Histogram<const FIRST: u32, const BUCKETS: usize> {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl<const FIRST: u32, const BUCKETS: usize> Default for Histogram<FIRST, BUCKETS> {
    fn default() -> Self {
        Histogram { counts: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0) }
    }
}

impl<const FIRST: u32, const BUCKETS: usize> Histogram<FIRST, BUCKETS> {
    /// Takes a value in; only the core that owns it does.
    pub fn observe(&self, value: u64) {
        let add = |cell: &AtomicU64, more: u64| {
            // One writer: nothing can come between the two.
            cell.store(cell.load(Relaxed).wrapping_add(more), Relaxed);
        };
        add(&self.counts[Self::bucket_of(value)], 1);
        add(&self.sum, value);
    }

    /// What was observed so far.
    #[must_use]
    pub fn read(&self) -> Distribution {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let (rest, bounded) = counts.split_last().expect("a distribution has a bucket");
        Distribution {
            buckets: (FIRST..).zip(bounded).map(|(bits, count)| (1_u64 << bits, *count)).collect(),
            beyond: *rest,
            sum: self.sum.load(Relaxed),
        }
    }

    fn bucket_of(value: u64) -> usize {
        // The exponent of the least power of two that is not below the value.
        let bits = u64::BITS - value.saturating_sub(1).leading_zeros();
        (bits.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
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

/// What a core does again and again, and how much of it at a time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Distributions {
    /// Microseconds from a batch's append until it is acknowledged: durable, and readers see it.
    /// Bounds from 32 us to 8.4 s.
    pub commit_us: Histogram<5, 20>,
    /// Microseconds that a sync takes, or a write that is its own. Bounds from 32 us to 8.4 s.
    pub sync_us: Histogram<5, 20>,
    /// Batches that are committed together. Bounds from 1 to 16,384.
    pub commit_batches: Histogram<0, 16>,
    /// Records that are committed together. Bounds from 1 to 262,144.
    pub commit_records: Histogram<0, 20>,
    /// Bytes of batches that are committed together. Bounds from 512 to 33,554,432.
    pub commit_bytes: Histogram<9, 18>,
}

macro_rules! gauges {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A core's figures of the moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Gauges { $($(#[doc = $doc])* pub $name: u64,)* }

        /// Figures that a core publishes and others read.
        #[derive(Debug, Default)]
        pub struct SharedGauges { $($name: AtomicU64,)* }

        impl SharedGauges {
            /// Publishes; only the core that owns them does.
            pub fn publish(&self, gauges: &Gauges) {
                $(self.$name.store(gauges.$name, Relaxed);)*
            }

            /// What was published last.
            #[must_use]
            pub fn read(&self) -> Gauges {
                Gauges { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

gauges! {
    /// Connections that are open.
    connections,
    /// Subscriptions that have not ended.
    subscriptions,
    /// Shards that the core serves.
    shards,
    /// Shards with write limits: each has a bucket for bytes and one for records.
    limited_shards,
    /// New shards that the core can open beside them now.
    room_shards,
    /// Produce frames whose answer waits for the log.
    produces_open,
    /// Fetches under way or waiting, those of subscriptions among them.
    fetches_open,
    /// Bytes of batches that were appended and are not durable.
    uncommitted_bytes,
    /// Logs.
    logs,
    /// Logs that stopped after a failed write or sync.
    logs_failed,
    /// Logs that found no space for another segment.
    logs_without_space,
    /// Segments that are whole.
    segments_sealed,
    /// Segments that take appends.
    segments_open,
    /// Files in wait for the next segments.
    segments_free,
    /// Segments in which nothing is kept, whose files cannot be used yet.
    segments_leaving,
    /// Bytes of all these files.
    segment_bytes,
    /// Bytes of buffers in all.
    buffer_bytes,
    /// Bytes of buffers that nothing is in.
    buffer_free_bytes,
    /// Bytes of buffers with the tails of logs.
    buffer_tail_bytes,
    /// Bytes of buffers with what was read from disk and may be wanted again.
    buffer_read_bytes,
    /// Bytes of buffers with footers of segments.
    buffer_footer_bytes,
}

impl Gauges {
    /// Bytes of buffers with anything else: what is received, written and sent.
    #[must_use]
    pub fn buffer_work_bytes(&self) -> u64 {
        let known = self.buffer_free_bytes
            + self.buffer_tail_bytes
            + self.buffer_read_bytes
            + self.buffer_footer_bytes;
        // Part of what was read may be sent at the moment, and so count twice.
        self.buffer_bytes.saturating_sub(known)
    }
}

/// What one core shows. Apart from every other core's in memory: no cache line has two of them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreMetrics {
    pub(crate) counters: SharedCounters,
    pub(crate) gauges: SharedGauges,
    pub(crate) distributions: Arc<Distributions>,
}

impl CoreMetrics {
    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.read()
    }

    /// Its figures of the moment.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        self.gauges.read()
    }

    /// Its distributions.
    #[must_use]
    pub fn distributions(&self) -> &Distributions {
        &self.distributions
    }
}

/// What a node shows: a handle that may outlive it.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    cores: Vec<Arc<CoreMetrics>>,
    disks: Vec<(DiskId, PathBuf)>,
}

/// Space of the file system that a disk's directory is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// Bytes that the node may still take.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl NodeMetrics {
    pub(crate) fn new(cores: Vec<Arc<CoreMetrics>>, disks: Vec<(DiskId, PathBuf)>) -> NodeMetrics {
        NodeMetrics { cores, disks }
    }

    /// Its cores, in their order.
    #[must_use]
    pub fn cores(&self) -> &[Arc<CoreMetrics>] {
        &self.cores
    }

    /// Its disks, in the order of the data directories, and what the system says of their space.
    /// It is asked now, which may take a while when a disk is busy.
    pub fn disk_spaces(&self) -> impl Iterator<Item = (DiskId, Result<DiskSpace, Errno>)> + '_ {
        self.disks.iter().map(|(disk, dir)| {
            let space = rustix::fs::statvfs(dir).map(|stat| DiskSpace {
                free_bytes: stat.f_bavail * stat.f_frsize,
                total_bytes: stat.f_blocks * stat.f_frsize,
            });
            (*disk, space.map_err(|errno| Errno(errno.raw_os_error())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::<5, 4>::default();
        for value in [0, 1, 31, 32, 33, 64, 65, 128, 129, u64::MAX >> 1] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!(read.buckets, [(32, 4), (64, 2), (128, 2)]);
        assert_eq!((read.beyond, read.count()), (2, 10));
        assert_eq!(read.sum, (u64::MAX >> 1) + 483);
    }

    #[test]
    fn the_bounds_are_what_the_documentation_says() {
        let bounds = |distribution: Distribution| {
            let of = |bucket: Option<&(u64, u64)>| bucket.expect("there are some").0;
            (of(distribution.buckets.first()), of(distribution.buckets.last()))
        };
        let all = Distributions::default();
        assert_eq!(bounds(all.commit_us.read()), (32, 8_388_608));
        assert_eq!(bounds(all.sync_us.read()), (32, 8_388_608));
        assert_eq!(bounds(all.commit_batches.read()), (1, 16_384));
        assert_eq!(bounds(all.commit_records.read()), (1, 262_144));
        assert_eq!(bounds(all.commit_bytes.read()), (512, 33_554_432));
    }

    #[test]
    fn a_disk_that_is_not_there_has_no_space_to_tell() {
        let disk = DiskId([7; 16]);
        let here = (disk, PathBuf::from("."));
        let gone = (disk, PathBuf::from("./there-is-no-such-directory"));
        let metrics = NodeMetrics::new(Vec::new(), vec![here, gone]);
        let spaces: Vec<_> = metrics.disk_spaces().map(|(_, space)| space).collect();
        let space = spaces[0].expect("this directory is somewhere");
        assert!(space.total_bytes >= space.free_bytes && space.total_bytes > 0);
        assert!(spaces[1].is_err());
    }
}
