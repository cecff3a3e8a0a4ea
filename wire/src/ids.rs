//! Identifiers and positions. Each is a type of its own, so that an epoch is never added to an
//! offset.

use std::fmt;

/// A stream's incarnation: a stream deleted and created again under its name is another stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub u64);

/// A shard of a stream incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId {
    /// The stream's incarnation.
    pub stream: StreamId,
    /// Index within the stream; Kinesis writes it as `shardId-%012d`.
    pub index: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shardId-{:012} of stream {:016x}", self.index, self.stream.0)
    }
}

/// Fencing number of a shard; rises with every change of leader. Zero names no tenure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// Index of a record within its shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` records later.
    ///
    /// # Panics
    /// When the shard's 2^64 offsets are used up, which no shard lives to see.
    #[must_use]
    pub fn after(self, count: u64) -> Offset {
        Offset(self.0.checked_add(count).expect("a shard has fewer than 2^64 records"))
    }
}

/// Position in a log, in bytes since its beginning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

/// The part of a shard written under one leader tenure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExtentId {
    /// The shard.
    pub shard: ShardId,
    /// The tenure.
    pub epoch: Epoch,
}

/// A producer's identity for idempotence: random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProducerId(pub u64);

/// Made when a data directory is formatted; names the directory for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskId(pub [u8; 16]);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Made at each start of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BootId(pub u64);
