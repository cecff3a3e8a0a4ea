//! Limits as constants, each with its source. Those of Kinesis are the service's; the others are
//! ours and bound what a peer may ask of us.

/// Largest partition key in characters (API model, `PartitionKey.max`).
pub const PARTITION_KEY_CHARS_MAX: u32 = 256;
/// Largest partition key in bytes: every character at UTF-8's longest.
pub const PARTITION_KEY_BYTES_MAX: u32 = PARTITION_KEY_CHARS_MAX * 4;
/// Largest record: data and partition key (API model, `Data.max`; `MaxRecordSizeInKiB.max`).
pub const RECORD_BYTES_MAX: u32 = 10 * 1024 * 1024;
/// A body above this holds one record (docs/format.md).
pub const BODY_BYTES_MANY_RECORDS_MAX: u32 = 1024 * 1024;
/// Records in a batch: what 1 MiB of body can index and no more.
pub const BATCH_RECORDS_MAX: u32 = 16 * 1024;
/// Largest body: one record of the largest size with index, key, root and padding.
pub const BODY_BYTES_MAX: u32 = RECORD_BYTES_MAX + PARTITION_KEY_BYTES_MAX + 1024;
/// Batches in one produce frame.
pub const FRAME_BATCHES_MAX: u32 = 256;
/// Payload of a frame that carries several batches.
pub const FRAME_MANY_BATCHES_BYTES_MAX: u32 = 1024 * 1024;
/// Bytes of the verdicts in one produce answer: a bit a record, whole bytes a batch.
pub const FRAME_VERDICT_BYTES_MAX: u32 =
    FRAME_MANY_BATCHES_BYTES_MAX / crate::batch::ENTRY_BYTES as u32 / 8 + FRAME_BATCHES_MAX;
/// Payload of any frame: one batch of the largest size.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = BODY_BYTES_MAX + crate::batch::HEADER_BYTES as u32 + 64;
/// Bytes that one fetch may ask for; an answer holds at least one batch whatever its size.
pub const FETCH_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Batches in one fetch answer.
pub const FETCH_BATCHES_MAX: u32 = 1024;
/// Longest that a fetch may wait for records at the end of a shard, in milliseconds.
pub const FETCH_WAIT_MS_MAX: u32 = 10_000;
/// Subscriptions that one connection may have; a correlation names one.
pub const SUBSCRIPTIONS_PER_CONNECTION_MAX: u32 = 1024;
/// Shortest silence after which a subscription is told that there is nothing, in milliseconds: told
/// at once, again and again, it would keep the node busy.
pub const SUBSCRIPTION_SILENCE_MS_MIN: u32 = 50;
/// Batches that a producer may have unanswered on one shard; the node remembers as many, so that
/// each of them can be told its offset again.
pub const PRODUCER_WINDOW: usize = 8;
/// Producers that a shard remembers; the one silent for longest is forgotten first.
pub const PRODUCERS_PER_SHARD_MAX: usize = 64;
/// Shards in one describe answer.
pub const DESCRIBE_SHARDS_MAX: u32 = 1024;
/// Highest sequence of a batch: the one after it is what its producer is expected to send next.
pub const SEQUENCE_MAX: u64 = u64::MAX - 1;
/// Highest first offset of a batch or an extent: counting its records on from there does not
/// overflow.
pub const FIRST_OFFSET_MAX: u64 = 1 << 63;
/// Highest first offset at which a command opens an extent: no shard lives to get from here to
/// [`FIRST_OFFSET_MAX`].
pub const COMMAND_OFFSET_MAX: u64 = 1 << 62;
/// Highest epoch of an extent: a node counts on from the last one, at each start.
pub const EPOCH_MAX: u64 = 1 << 63;
/// Highest epoch under which a command opens an extent: no node starts as often as it takes to get
/// from here to [`EPOCH_MAX`].
pub const COMMAND_EPOCH_MAX: u64 = 1 << 62;
/// Retention classes, from 0: what is kept for about as long lies together on disk, in segments of
/// its own. Each class that a core uses costs it an open segment and an index in memory.
pub const RETENTION_CLASSES: u8 = 8;
/// Replicas of an extent (design: (3,2) is the largest layout).
pub const REPLICAS_MAX: usize = 3;

/// Bytes bucket of a shard: 10 MiB at once, 1 MiB/s on (developer guide, large records).
pub const SHARD_BYTES_CAPACITY: u64 = 10 * 1024 * 1024;
/// Refill of the bytes bucket a second.
pub const SHARD_BYTES_PER_S: u64 = 1024 * 1024;
/// Records bucket of a shard (developer guide, quotas).
pub const SHARD_RECORDS_CAPACITY: u64 = 1000;
/// Refill of the records bucket a second.
pub const SHARD_RECORDS_PER_S: u64 = 1000;

const _: () = assert!(BODY_BYTES_MANY_RECORDS_MAX < BODY_BYTES_MAX);
const _: () = assert!(BATCH_RECORDS_MAX * 32 <= BODY_BYTES_MANY_RECORDS_MAX);
