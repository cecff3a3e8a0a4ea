//! What accounts have of that which is limited: sums by account and region, which the catalog keeps
//! up with every stream that it replaces. Who asks looks up one sum, however many streams there
//! are.

use std::collections::HashMap;
use std::ops::{AddAssign, SubAssign};
use std::sync::RwLock;

use super::catalog::Stream;
use super::record::{Intent, StreamMode, StreamName, StreamStatus};

/// What an account has in a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Streams, those that are being deleted among them. The others count what these do not have.
    pub streams: u64,
    /// Streams that are being created.
    pub creating: u64,
    /// Open shards.
    pub open_shards: u64,
    /// The same, with those that are to come.
    pub shards: u64,
    /// Streams of on-demand mode.
    pub on_demand_streams: u64,
}

impl Usage {
    /// What one stream adds.
    #[must_use]
    pub fn of_stream(stream: &Stream) -> Usage {
        let open = stream.open_shards().len() as u64;
        let shards = match &stream.record.intent {
            Some(Intent::Create { shards }) => u64::from(*shards),
            Some(Intent::Reshard { steps, resize }) => {
                let after = steps.iter().fold(open as i64, |open, step| {
                    open + step.children.len() as i64 - step.parents.len() as i64
                });
                let on_the_way = resize.map_or(0, |resize| u64::from(resize.open_max));
                open.max(u64::try_from(after).unwrap_or(0)).max(on_the_way)
            }
            // What goes is not counted any more.
            Some(Intent::Delete { .. }) => return Usage { streams: 1, ..Usage::default() },
            Some(Intent::Settle) | None => open,
        };
        let is_creating = stream.record.status == StreamStatus::Creating;
        Usage {
            streams: 1,
            creating: u64::from(is_creating),
            open_shards: if is_creating { 0 } else { open },
            shards,
            on_demand_streams: u64::from(stream.record.mode == StreamMode::OnDemand),
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, more: Usage) {
        self.streams += more.streams;
        self.creating += more.creating;
        self.open_shards += more.open_shards;
        self.shards += more.shards;
        self.on_demand_streams += more.on_demand_streams;
    }
}

impl SubAssign for Usage {
    fn sub_assign(&mut self, less: Usage) {
        self.streams -= less.streams;
        self.creating -= less.creating;
        self.open_shards -= less.open_shards;
        self.shards -= less.shards;
        self.on_demand_streams -= less.on_demand_streams;
    }
}

/// See the module. An account without streams in a region has no entry.
#[derive(Debug, Default)]
pub(super) struct UsageSums(RwLock<HashMap<(String, String), Usage>>);

impl UsageSums {
    /// What an account has in a region.
    pub(super) fn of(&self, account_id: &str, region: &str) -> Usage {
        let sums = self.0.read().expect("nobody panics with it");
        sums.get(&(account_id.to_owned(), region.to_owned())).copied().unwrap_or_default()
    }

    /// Notes that a stream is not what it was: `before` is counted off, `after` is counted.
    pub(super) fn replace(
        &self,
        name: &StreamName,
        before: Option<&Stream>,
        after: Option<&Stream>,
    ) {
        let key = (name.account_id.clone(), name.region.clone());
        let mut sums = self.0.write().expect("nobody panics with it");
        let sum = sums.entry(key.clone()).or_default();
        // First what is more: then no number is below zero in between.
        after.into_iter().for_each(|stream| *sum += Usage::of_stream(stream));
        before.into_iter().for_each(|stream| *sum -= Usage::of_stream(stream));
        if sum.streams == 0 {
            sums.remove(&key);
        }
    }

    /// Accounts and regions that have an entry.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.0.read().expect("nobody panics with it").len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{NewShard, ReshardStep, Resize, ShardRecord, StreamRecord};
    use super::*;
    use thalweg_wire::hash_range::HashRange;

    fn name(account_id: &str) -> StreamName {
        StreamName {
            account_id: account_id.to_owned(),
            region: "us-east-1".to_owned(),
            name: "orders".to_owned(),
        }
    }

    fn stream(status: StreamStatus, intent: Option<Intent>, open: u32) -> Stream {
        let record: StreamRecord = serde_json::from_value(serde_json::json!({
            "version": 1, "id": 1, "created_ms": 0, "status": "ACTIVE", "intent": null,
            "next_shard": open, "mode": "ON_DEMAND", "retention_hours": 24, "max_record_kib": 1024,
        }))
        .expect("a record");
        let shards = (0..open).map(|index| {
            let range = HashRange::of_initial_shard(index, open);
            let parents = Vec::new();
            (index, ShardRecord { version: 1, range, created_s: 1, parents, end: None, node: 0 })
        });
        let record = StreamRecord { status, intent, ..record };
        Stream::of_records(name("1"), record, shards)
    }

    #[test]
    fn a_stream_counts_as_what_it_is_to_become() {
        let usage = |status, intent, open| {
            let Usage { streams, creating, open_shards, shards, on_demand_streams } =
                Usage::of_stream(&stream(status, intent, open));
            [streams, creating, open_shards, shards, on_demand_streams]
        };
        let range = HashRange::FULL;
        let step = |parents: &[u32], children: &[u32]| ReshardStep {
            parents: parents.to_vec(),
            children: children.iter().map(|index| NewShard { index: *index, range }).collect(),
        };
        let reshard = |steps, resize| Some(Intent::Reshard { steps, resize });
        let resize = Some(Resize { target: 5, open_max: 7 });
        let create = Some(Intent::Create { shards: 3 });
        assert_eq!(usage(StreamStatus::Active, None, 4), [1, 0, 4, 4, 1]);
        assert_eq!(usage(StreamStatus::Creating, create, 2), [1, 1, 0, 3, 1]);
        assert_eq!(usage(StreamStatus::Updating, Some(Intent::Settle), 4), [1, 0, 4, 4, 1]);
        let split = reshard(vec![step(&[0], &[4, 5])], None);
        assert_eq!(usage(StreamStatus::Updating, split, 4), [1, 0, 4, 5, 1]);
        let merge = reshard(vec![step(&[0, 1], &[4])], None);
        assert_eq!(usage(StreamStatus::Updating, merge, 4), [1, 0, 4, 4, 1]);
        let resized = reshard(vec![step(&[0], &[4, 5])], resize);
        assert_eq!(usage(StreamStatus::Updating, resized, 4), [1, 0, 4, 7, 1]);
        let delete = Some(Intent::Delete { unborn: Vec::new() });
        assert_eq!(usage(StreamStatus::Deleting, delete, 4), [1, 0, 0, 0, 0]);
    }

    #[test]
    fn an_account_without_streams_has_no_entry() {
        let sums = UsageSums::default();
        let some = stream(StreamStatus::Active, None, 2);
        let going = stream(StreamStatus::Deleting, Some(Intent::Delete { unborn: vec![] }), 2);
        sums.replace(&name("1"), None, Some(&some));
        sums.replace(&name("2"), None, Some(&some));
        sums.replace(&name("2"), Some(&some), Some(&going));
        assert_eq!((sums.of("1", "us-east-1").shards, sums.of("1", "elsewhere").shards), (2, 0));
        assert_eq!((sums.of("2", "us-east-1").streams, sums.entries()), (1, 2));
        sums.replace(&name("2"), Some(&going), None);
        sums.replace(&name("1"), Some(&some), None);
        // One that never was.
        sums.replace(&name("3"), None, None);
        assert_eq!((sums.of("1", "us-east-1"), sums.entries()), (Usage::default(), 0));
    }
}
