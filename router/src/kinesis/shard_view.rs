//! A shard as the API describes it.

use serde_json::{Map, Value, json};
use thalweg_wire::sequence_number::SequenceNumber;

use crate::control::catalog::Stream;
use crate::control::record::{ShardRecord, StreamStatus, shard_name};

/// Index in the number that ends a closed shard: above that of every record, as the service has it.
const ENDING_INDEX: u64 = i64::MAX as u64;

/// The shards that descriptions and listings of a stream show, behind an index if one is given, in
/// the order of their indexes. None while the stream is made, because they are not all there, and
/// none while it goes, as the service has it.
pub(super) fn shown_shards(
    stream: &Stream,
    after: Option<u32>,
) -> impl Iterator<Item = (u32, &ShardRecord)> + '_ {
    let is_shown = !matches!(stream.record.status, StreamStatus::Creating | StreamStatus::Deleting);
    let is_behind = move |index| after.is_none_or(|after| index > after);
    // Shards in front of the index are passed over; a stream has some thousands at most.
    stream.shards().filter(move |(index, _)| is_shown && is_behind(*index))
}

/// How many of a stream's shards are open, as it is shown.
pub(super) fn shown_open_shards(stream: &Stream) -> usize {
    match stream.record.status {
        StreamStatus::Creating | StreamStatus::Deleting => 0,
        StreamStatus::Active | StreamStatus::Updating => stream.open_shards().len(),
    }
}

/// A shard in the API's form (API model, `Shard`). Parents keep their names when they are gone.
pub(super) fn describe_shard(index: u32, shard: &ShardRecord) -> Value {
    let mut view = Map::new();
    view.insert("ShardId".to_owned(), Value::from(shard_name(index)));
    let names = ["ParentShardId", "AdjacentParentShardId"];
    for (name, parent) in names.into_iter().zip(&shard.parents) {
        view.insert(name.to_owned(), Value::from(shard_name(*parent)));
    }
    view.insert("HashKeyRange".to_owned(), range_view(shard));
    let mut numbers = json!({ "StartingSequenceNumber": starting_sequence_number(index, shard) });
    if let Some(ending) = ending_sequence_number(index, shard) {
        numbers["EndingSequenceNumber"] = Value::from(ending);
    }
    view.insert("SequenceNumberRange".to_owned(), numbers);
    Value::Object(view)
}

/// A shard's hash keys in the API's form.
pub(super) fn range_view(shard: &ShardRecord) -> Value {
    json!({
        "StartingHashKey": shard.range.start.0.to_string(),
        "EndingHashKey": shard.range.end.0.to_string(),
    })
}

/// The number with which a shard begins: not above that of its first record. A child is created in
/// a second that may lie ahead of its first records' times, so the number has no time.
pub(super) fn starting_sequence_number(index: u32, shard: &ShardRecord) -> String {
    let number = SequenceNumber {
        shard_created_s: shard.created_s,
        sequence_index: 0,
        time_s: 0,
        shard_index: index,
    };
    number.to_decimal()
}

/// The number with which a closed shard ends: above that of its last record, below those of its
/// children.
pub(super) fn ending_sequence_number(index: u32, shard: &ShardRecord) -> Option<String> {
    let end = shard.end?;
    let number = SequenceNumber {
        shard_created_s: shard.created_s,
        sequence_index: ENDING_INDEX,
        time_s: end.closed_ms / 1000,
        shard_index: index,
    };
    Some(number.to_decimal())
}

#[cfg(test)]
mod tests {
    use thalweg_wire::hash_range::{HashKey, HashRange};

    use super::*;
    use crate::control::record::{RECORD_VERSION, ShardEnd};

    fn shard(created_s: u64, parents: Vec<u32>, end: Option<ShardEnd>) -> ShardRecord {
        let range = HashRange { start: HashKey(10), end: HashKey(u128::MAX) };
        ShardRecord { version: RECORD_VERSION, range, created_s, parents, end, node: 0 }
    }

    /// The number of a record, as the put path makes it.
    fn record(index: u32, shard: &ShardRecord, offset: u64, time_s: u64) -> String {
        let shard_created_s = shard.created_s;
        let number =
            SequenceNumber { shard_created_s, sequence_index: offset, time_s, shard_index: index };
        number.to_decimal()
    }

    #[test]
    fn an_open_shard_has_no_end_and_a_merged_one_two_parents() {
        let view = describe_shard(7, &shard(1_700_000_000, vec![4, 2], None));
        assert_eq!(
            view,
            json!({
                "ShardId": "shardId-000000000007",
                "ParentShardId": "shardId-000000000004",
                "AdjacentParentShardId": "shardId-000000000002",
                "HashKeyRange": {
                    "StartingHashKey": "10",
                    "EndingHashKey": "340282366920938463463374607431768211455",
                },
                "SequenceNumberRange": {
                    "StartingSequenceNumber":
                        "49646437577264581633306590767816679336670857755617132658",
                },
            })
        );
        let first = describe_shard(0, &shard(1_700_000_000, vec![], None));
        assert_eq!(first.get("ParentShardId"), None);
        assert_eq!(first.get("AdjacentParentShardId"), None);
    }

    #[test]
    fn the_numbers_of_a_shard_enclose_its_records_and_precede_its_childrens() {
        let end = Some(ShardEnd { offset: 5, closed_ms: 1_700_000_100_000 });
        let parent = shard(1_700_000_000, vec![], end);
        let child = shard(1_700_000_001, vec![3], None);
        let ending = ending_sequence_number(3, &parent).expect("it is closed");
        let in_order = [
            starting_sequence_number(3, &parent),
            // The node's clock may be behind the router's.
            record(3, &parent, 0, 1_699_999_999),
            record(3, &parent, 4, 1_700_000_099),
            ending,
            starting_sequence_number(4, &child),
            record(4, &child, 0, 1_700_000_000),
        ];
        assert!(in_order.is_sorted_by(|one, next| one < next), "{in_order:?}");
        assert!(in_order.iter().all(|number| number.len() == 56), "{in_order:?}");
        assert_eq!(ending_sequence_number(4, &child), None);
    }
}
