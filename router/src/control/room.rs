//! Room for shards: how many more the node can open, less those that streams are to get anyway.
//!
//! It is asked before a change is recorded that makes shards: one that the node has no room for
//! would wait for it, and nobody would be told why.

use std::time::Duration;

use super::catalog::{Catalog, Stream};
use super::nodes::{Node, NodeError};
use super::record::{Intent, shard_id};
use super::reshard::{after, made_on_the_way, open_ranges};

/// How often the node is asked, at most, for a moment at which no shard is being opened, and how
/// long until the next. Ours: a shard is open after milliseconds.
const EXACT_ATTEMPTS_MAX: u32 = 10;
const EXACT_PAUSE: Duration = Duration::from_millis(20);

/// Places for new shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// So many can be opened, and nobody has been told that they are theirs.
    pub free: u64,
    /// So many more are for streams that are being created or resharded.
    pub promised: u64,
}

impl Room {
    fn of(node_room: u64, promised: u64) -> Room {
        Room { free: node_room.saturating_sub(promised), promised }
    }

    /// What there is at the least, from what the node said a moment ago. Cheap, however many
    /// streams are at work.
    ///
    /// # Errors
    /// The node cannot be asked.
    pub async fn at_least(node: &Node, catalog: &Catalog) -> Result<Room, NodeError> {
        // Shards of these that are open already are counted twice: not free, and promised.
        let promised = catalog.shards_to_make();
        Ok(Room::of(node.recent_room().await?, promised))
    }

    /// What there is now. Counts shard by shard what streams at work do not have yet, so it is for
    /// the case that the least is not enough.
    ///
    /// # Errors
    /// The node cannot be asked.
    pub async fn exactly(node: &Node, catalog: &Catalog) -> Result<Room, NodeError> {
        let mut attempt = 1;
        loop {
            let before = node.openings();
            let promised = promised(node, catalog);
            let room = Room::of(node.room_now().await?, promised);
            // What is opened meanwhile may count as promised and be there: then there is more.
            let is_exact = before.under_way() == 0 && node.openings() == before;
            if is_exact || attempt == EXACT_ATTEMPTS_MAX {
                return Ok(room);
            }
            attempt += 1;
            tokio::time::sleep(EXACT_PAUSE).await;
        }
    }
}

fn promised(node: &Node, catalog: &Catalog) -> u64 {
    let of_stream = |stream: &Stream| {
        let is_there = |index| node.location(shard_id(stream.id(), index)).is_some();
        shards_to_make(stream, is_there)
    };
    catalog.streams_at_work().iter().map(|stream| of_stream(stream)).sum()
}

/// How many shards are still to be opened until nothing is left to become of a stream, without
/// those that are there.
#[must_use]
pub fn shards_to_make(stream: &Stream, is_there: impl Fn(u32) -> bool) -> u64 {
    match &stream.record.intent {
        Some(Intent::Create { shards }) => {
            (0..*shards).filter(|index| !is_there(*index)).count() as u64
        }
        Some(Intent::Reshard { steps, resize }) => {
            let children = steps.iter().flat_map(|step| &step.children);
            let now = children.filter(|child| !is_there(child.index)).count() as u64;
            let then = resize.map_or(0, |resize| {
                made_on_the_way(&after(&open_ranges(stream), steps), resize.target)
            });
            now + u64::from(then)
        }
        Some(Intent::Settle | Intent::Delete { .. }) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use thalweg_wire::hash_range::{HashKey, HashRange};

    use super::super::record::{Resize, ShardRecord, StreamName, StreamRecord};
    use super::super::reshard::{merge, resized, split, with_steps};
    use super::*;

    fn stream(open: u32) -> Stream {
        let record: StreamRecord = serde_json::from_value(serde_json::json!({
            "version": 1, "id": 1, "created_ms": 0, "status": "ACTIVE", "intent": null,
            "next_shard": open, "mode": "PROVISIONED", "retention_hours": 24,
            "max_record_kib": 1024,
        }))
        .expect("a record");
        let shards = (0..open).map(|index| {
            let range = HashRange::of_initial_shard(index, open);
            let parents = Vec::new();
            (index, ShardRecord { version: 1, range, created_s: 1, parents, end: None, node: 0 })
        });
        let [account_id, region, name] = ["1", "us-east-1", "orders"].map(str::to_owned);
        Stream::of_records(StreamName { account_id, region, name }, record, shards)
    }

    fn with_intent(mut stream: Stream, intent: Option<Intent>) -> Stream {
        stream.record.intent = intent;
        stream
    }

    #[test]
    fn what_is_promised_is_not_free() {
        assert_eq!(Room::of(10, 3), Room { free: 7, promised: 3 });
        assert_eq!(Room::of(10, 10), Room { free: 0, promised: 10 });
        assert_eq!(Room::of(10, 11), Room { free: 0, promised: 11 });
    }

    #[test]
    fn a_stream_is_to_get_what_its_intent_makes_and_it_does_not_have() {
        let none = |_| false;
        let create = || with_intent(stream(0), Some(Intent::Create { shards: 5 }));
        assert_eq!(shards_to_make(&create(), none), 5);
        assert_eq!(shards_to_make(&create(), |index| index < 2), 3);
        assert_eq!(shards_to_make(&create(), |_| true), 0);
        for intent in [None, Some(Intent::Settle), Some(Intent::Delete { unborn: vec![4, 5] })] {
            assert_eq!(shards_to_make(&with_intent(stream(4), intent), none), 0);
        }
    }

    #[test]
    fn a_split_makes_two_shards_and_a_merge_one() {
        let stream = stream(4);
        let open = open_ranges(&stream);
        let middle = HashKey(open[0].1.start.0 + 1000);
        let steps = vec![split(0, open[0].1, middle, 4), merge(open[1], open[2], 6)];
        let record = with_steps(&stream.record, steps, None);
        let stream = with_intent(stream, record.intent);
        assert_eq!(shards_to_make(&stream, |_| false), 3);
        assert_eq!(shards_to_make(&stream, |index| index == 5), 2);
    }

    #[test]
    fn a_resize_makes_all_shards_of_its_way() {
        for (from, target, made) in [(1, 2, 2), (4, 8, 8), (8, 4, 4), (4, 5, 11), (40, 80, 80)] {
            let stream = stream(from);
            let open = open_ranges(&stream);
            assert_eq!(made_on_the_way(&open, target), made, "{from} to {target}");
            let resize = Resize { target, open_max: 100 };
            let record = resized(&stream.record, &open, resize);
            // Its first steps, and those that follow them.
            let stream = with_intent(stream, record.intent);
            assert_eq!(shards_to_make(&stream, |_| false), u64::from(made), "{from} to {target}");
            let first = stream.record.next_shard;
            assert_eq!(shards_to_make(&stream, |index| index == first), u64::from(made) - 1);
        }
    }
}
