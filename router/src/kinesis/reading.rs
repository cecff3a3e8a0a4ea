//! What GetRecords and SubscribeToShard have in common: records as readers see them, and the end
//! of a shard.

use thalweg_wire::ids::Offset;
use thalweg_wire::sequence_number::{DecimalWriter, SequenceNumber};

use super::answers::{ChildShardView, EncryptionType, RecordView, RecordsWriter};
use super::put::{NO_PARTITION_KEY, encryption_type};
use super::read_limits::ReadLimits;
use super::subscriptions::Subscriptions;
use crate::control::catalog::Stream;
use crate::control::record::shard_name;
use crate::route::{Fetched, FetchedRecord};

/// What a router remembers of its readers.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// How much of each shard is read.
    pub(super) limits: ReadLimits,
    /// Who has subscribed.
    pub(super) subscriptions: Subscriptions,
}

/// A shard whose records are written into an answer.
#[derive(Clone, Debug)]
pub(super) struct RecordSource {
    index: u32,
    created_s: u64,
    encryption: EncryptionType,
    numbers: DecimalWriter,
}

impl RecordSource {
    /// A shard of a stream; `None` when it is not there.
    pub(super) fn new(stream: &Stream, index: u32) -> Option<RecordSource> {
        Some(RecordSource {
            index,
            created_s: stream.shard(index)?.record.created_s,
            encryption: encryption_type(stream),
            numbers: DecimalWriter::new(),
        })
    }

    /// Writes a record as it lies.
    pub(super) fn push(&mut self, writer: &mut RecordsWriter<'_>, record: &FetchedRecord<'_>) {
        let number = SequenceNumber {
            shard_created_s: self.created_s,
            sequence_index: record.offset.0,
            time_s: record.append_time_ms / 1000,
            shard_index: self.index,
        };
        let is_none = record.key == NO_PARTITION_KEY;
        // A native producer's key may be no text.
        let key = String::from_utf8_lossy(record.key);
        writer.push(&RecordView {
            sequence_number: self.numbers.write(number),
            arrival_time_ms: record.append_time_ms,
            data: record.data,
            partition_key: (!is_none).then_some(&key),
            encryption_type: Some(self.encryption),
        });
    }
}

/// What a batch takes beside its record, and more: header, index, padding.
const BATCH_OVERHEAD_BYTES: usize = 8 << 10;
/// Largest batch of a stream whose records have at most 1 MiB: docs/format.md, Batch.
pub(super) const BATCH_BYTES_MIN: usize = (1 << 20) + BATCH_OVERHEAD_BYTES;

/// Bytes of the largest batch of a stream: that of its largest record at the least. There may be
/// larger ones from before its settings changed.
pub(super) fn largest_batch_bytes(stream: &Stream) -> usize {
    (stream.record.max_record_bytes() + BATCH_OVERHEAD_BYTES).max(BATCH_BYTES_MIN)
}

/// Bytes of a record as limits count them: data and partition key.
pub(super) fn record_bytes(record: &FetchedRecord<'_>) -> usize {
    record.key.len() + record.data.len()
}

/// How far a reader is behind: nothing if it has read to the end of what is committed, else the
/// time since the last record that it was given came, which is never nothing.
pub(super) fn millis_behind(fetched: &Fetched, next: Offset, last_ms: u64, now_ms: u64) -> u64 {
    if next >= fetched.head().committed { 0 } else { now_ms.saturating_sub(last_ms).max(1) }
}

/// The shards that follow a closed one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Children(Vec<Child>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Child {
    shard_id: String,
    parents: Vec<String>,
    start: String,
    end: String,
}

impl Children {
    /// The children of a shard, if it is closed and nothing of it follows at `next`. A shard that
    /// its node has ended is open to readers until its children are seen: the KCL takes an end
    /// without children for a fault, and asks again for ever.
    pub(super) fn at_end(stream: &Stream, index: u32, next: Offset) -> Option<Children> {
        let end = stream.shard(index)?.record.end?;
        if next.0 < end.offset {
            return None;
        }
        let child = |(index, shard): (u32, &crate::control::record::ShardRecord)| Child {
            shard_id: shard_name(index),
            parents: shard.parents.iter().copied().map(shard_name).collect(),
            start: shard.range.start.0.to_string(),
            end: shard.range.end.0.to_string(),
        };
        let children: Vec<Child> = stream.children(index).map(child).collect();
        (!children.is_empty()).then_some(Children(children))
    }

    /// Hands the children to who writes them into an answer.
    pub(super) fn with_views<R>(&self, write: impl FnOnce(&[ChildShardView<'_>]) -> R) -> R {
        let parents: Vec<Vec<&str>> =
            self.0.iter().map(|child| child.parents.iter().map(String::as_str).collect()).collect();
        let views: Vec<ChildShardView<'_>> = self
            .0
            .iter()
            .zip(&parents)
            .map(|(child, parents)| ChildShardView {
                shard_id: &child.shard_id,
                parent_shards: parents,
                starting_hash_key: &child.start,
                ending_hash_key: &child.end,
            })
            .collect();
        write(&views)
    }
}
