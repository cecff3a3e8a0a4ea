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

            /// What they are, in the order of [`Counters::named`].
            pub const DESCRIPTIONS: &[Description] = &[$(Description {
                name: stringify!($name),
                text: concat!($($doc),*).trim_ascii(),
                is_sum: matches!(Merge::$merge, Merge::Sum),
            },)*];
        }

        impl AddAssign<&Counters> for Counters {
            fn add_assign(&mut self, other: &Counters) {
                $(self.$name = Merge::$merge.of(self.$name, other.$name);)*
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

/// What a counter is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// What it counts, in words.
    pub text: &'static str,
    /// Whether it only rises, and cores add up; else it is the highest value so far.
    pub is_sum: bool,
}

/// How the counters of several cores become one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Merge {
    Sum,
    Highest,
}

impl Merge {
    fn of(self, one: u64, other: u64) -> u64 {
        match self {
            Merge::Sum => one + other,
            Merge::Highest => one.max(other),
        }
    }
}

counters! {
    /// Frames that arrived whole.
    frames_received: Sum,
    /// Batches stored.
    batches_appended: Sum,
    /// Records stored.
    records_appended: Sum,
    /// Bytes of the batches stored.
    bytes_appended: Sum,
    /// Batches recognised as stored before.
    duplicates: Sum,
    /// Requests and batches refused.
    refusals: Sum,
    /// Batches that the write limits of their shard did not take, or not as a whole.
    batches_throttled: Sum,
    /// Records that the write limits of their shard did not take.
    records_throttled: Sum,
    /// Connections accepted.
    connections_accepted: Sum,
    /// Connections closed at once for want of room.
    connections_refused: Sum,
    /// Connections closed because memory was short and their peers took nothing.
    stalled_readers_closed: Sum,
    /// Units written to logs.
    groups_written: Sum,
    /// Bytes written to logs, with headers, padding and footers.
    bytes_written: Sum,
    /// Syncs, and writes that were their own.
    syncs: Sum,
    /// Reads from disk.
    reads: Sum,
    /// Bytes read from disk.
    bytes_read: Sum,
    /// Times that what was wanted from disk was being read for another already, or just had been.
    reads_shared: Sum,
    /// Fetches answered with batches.
    fetches_answered: Sum,
    /// Batches answered from memory.
    batches_from_memory: Sum,
    /// Batches answered from disk.
    batches_from_disk: Sum,
    /// Segments in which nothing was kept any more, given up.
    segments_released: Sum,
    /// Files of segments given up that were removed.
    segments_removed: Sum,
    /// Bytes of batches that were copied forward.
    bytes_copied: Sum,
    /// Extents that have ended whose records were archived.
    extents_archived: Sum,
    /// Bytes of batches that were read to be checked.
    bytes_scrubbed: Sum,
    /// Batches found damaged by that.
    batches_damaged: Sum,
    /// Microseconds that the slowest sync took, from its submission until the core saw its end.
    sync_us_max: Highest,
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

    #[test]
    fn each_is_described_by_its_documentation() {
        let named = Counters::default().named();
        assert_eq!(named.len(), Counters::DESCRIPTIONS.len());
        for ((name, _), described) in named.iter().zip(Counters::DESCRIPTIONS) {
            assert_eq!(described.name, *name);
            assert!(described.text.ends_with('.'), "{name}: {}", described.text);
            assert_eq!(described.is_sum, !name.ends_with("_max"), "{name}");
        }
    }
}
