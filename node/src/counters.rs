//! What a node counts.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Sums since the node's start.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[doc = $doc])* pub $name: u64,)* }

        impl AddAssign<&Counters> for Counters {
            fn add_assign(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
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

counters! {
    /// Frames that arrived whole.
    frames_received,
    /// Batches stored.
    batches_appended,
    /// Records stored.
    records_appended,
    /// Bytes of the batches stored.
    bytes_appended,
    /// Batches recognised as stored before.
    duplicates,
    /// Requests and batches refused.
    refusals,
    /// Units written to logs.
    groups_written,
    /// Bytes written to logs, with headers, padding and footers.
    bytes_written,
    /// Syncs, and writes that were their own.
    syncs,
    /// Reads from disk.
    reads,
    /// Bytes read from disk.
    bytes_read,
    /// Fetches answered with batches.
    fetches_answered,
    /// Batches answered from memory.
    batches_from_memory,
    /// Batches answered from disk.
    batches_from_disk,
}
