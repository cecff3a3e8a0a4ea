//! What a node counts.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident: $merge:ident,)*) => {
        /// Sums, and highest values, since the node's start.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[doc = $doc])* pub $name: u64,)* }

        impl Counters {
            /// Each with its name.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        impl AddAssign<&Counters> for Counters {
            fn add_assign(&mut self, other: &Counters) {
                $(self.$name = $merge(self.$name, other.$name);)*
            }
        }

        /// Counters that a core publishes and others read.
        #[derive(Debug, Default)]
        pub struct SharedCounters { $($name: AtomicU64,)* }

        impl SharedCounters {
            /// Publishes; only the core that owns them does.
            pub fn publish(&self, counters: &Counters) {
                $(self.$name.store(counters.$name, Ordering::Relaxed);)*
            }

            /// What was published last.
            #[must_use]
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

fn sum(one: u64, other: u64) -> u64 {
    one + other
}

fn highest(one: u64, other: u64) -> u64 {
    one.max(other)
}

counters! {
    /// Frames that arrived whole.
    frames_received: sum,
    /// Batches stored.
    batches_appended: sum,
    /// Records stored.
    records_appended: sum,
    /// Bytes of the batches stored.
    bytes_appended: sum,
    /// Batches recognised as stored before.
    duplicates: sum,
    /// Requests and batches refused.
    refusals: sum,
    /// Connections closed because memory was short and their peers took nothing.
    stalled_readers_closed: sum,
    /// Units written to logs.
    groups_written: sum,
    /// Bytes written to logs, with headers, padding and footers.
    bytes_written: sum,
    /// Syncs, and writes that were their own.
    syncs: sum,
    /// Reads from disk.
    reads: sum,
    /// Bytes read from disk.
    bytes_read: sum,
    /// Times that what was wanted from disk was being read for another already, or just had been.
    reads_shared: sum,
    /// Fetches answered with batches.
    fetches_answered: sum,
    /// Batches answered from memory.
    batches_from_memory: sum,
    /// Batches answered from disk.
    batches_from_disk: sum,
    /// Segments in which nothing was kept any more, given up.
    segments_released: sum,
    /// Files of segments given up that were removed.
    segments_removed: sum,
    /// Bytes of batches that were copied forward.
    bytes_copied: sum,
    /// Bytes of batches that were read to be checked.
    bytes_scrubbed: sum,
    /// Batches found damaged by that.
    batches_damaged: sum,
    /// Microseconds that the slowest sync took, from its submission until the core saw its end.
    sync_us_max: highest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_add_up_and_the_slowest_counts() {
        let mut all = Counters { syncs: 2, sync_us_max: 70, ..Counters::default() };
        all += &Counters { syncs: 3, sync_us_max: 50, ..Counters::default() };
        assert_eq!((all.syncs, all.sync_us_max), (5, 70));
        let shared = SharedCounters::default();
        shared.publish(&all);
        assert_eq!(shared.read(), all);
        assert!(all.named().contains(&("syncs", 5)));
    }
}
