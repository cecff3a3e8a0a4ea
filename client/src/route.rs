//! Routes: which core of which address serves a shard, and which shard has a hash key.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use thalweg_wire::control::ShardDescription;
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{ShardId, StreamId};

use crate::admin::Admin;
use crate::error::ClientError;

/// What a node says of itself and of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Discovery {
    /// The address of each core.
    pub(crate) cores: Vec<SocketAddr>,
    /// The stream's shards with the cores that serve them, in the order of shards.
    pub(crate) shards: Vec<(usize, ShardDescription)>,
}

/// Asks a node for its cores and for a stream's shards. Of the addresses, the first that answers is
/// asked.
///
/// # Errors
/// [`ClientError`], of the last address if none answers.
pub(crate) fn discover(
    addresses: &[SocketAddr],
    stream: StreamId,
    timeout: Duration,
) -> Result<Discovery, ClientError> {
    let mut last = ClientError::NoShard;
    for address in addresses {
        match Admin::connect(*address, timeout).and_then(|mut admin| admin.hello()) {
            Ok(node) => {
                let ports = node.ports.iter();
                let cores = ports.map(|port| SocketAddr::new(address.ip(), *port)).collect();
                return describe(cores, stream, timeout);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn describe(
    cores: Vec<SocketAddr>,
    stream: StreamId,
    timeout: Duration,
) -> Result<Discovery, ClientError> {
    let mut shards = Vec::new();
    for (core, address) in cores.iter().enumerate() {
        let found = Admin::connect(*address, timeout)?.describe(stream)?;
        shards.extend(found.into_iter().map(|shard| (core, shard)));
    }
    shards.sort_by_key(|(_, shard)| shard.extent.shard);
    Ok(Discovery { cores, shards })
}

/// The lanes by shard and by hash key.
#[derive(Default)]
pub(crate) struct RouteMap {
    by_shard: HashMap<ShardId, usize>,
    /// In the order of their starts.
    by_range: Vec<(HashRange, usize)>,
}

impl RouteMap {
    /// The lane of a shard.
    pub(crate) fn lane_of_shard(&self, shard: ShardId) -> Option<usize> {
        self.by_shard.get(&shard).copied()
    }

    /// The lane of a hash key.
    pub(crate) fn lane_of_key(&self, key: HashKey) -> Option<usize> {
        let after = self.by_range.partition_point(|(range, _)| range.start <= key);
        let (range, lane) = self.by_range[..after].last()?;
        range.contains(key).then_some(*lane)
    }

    /// Adds lanes.
    pub(crate) fn add(&mut self, lanes: impl Iterator<Item = (ShardId, HashRange, usize)>) {
        for (shard, range, lane) in lanes {
            if self.by_shard.insert(shard, lane).is_none() {
                self.by_range.push((range, lane));
            }
        }
        self.by_range.sort_unstable_by_key(|(range, _)| range.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(indexes: &[u32], count: u32) -> RouteMap {
        let mut map = RouteMap::default();
        map.add(indexes.iter().enumerate().map(|(lane, index)| {
            let shard = ShardId { stream: StreamId(1), index: *index };
            (shard, HashRange::of_initial_shard(*index, count), lane)
        }));
        map
    }

    #[test]
    fn keys_find_the_lane_of_their_range() {
        let map = map(&[2, 0, 3, 1], 4);
        for (index, lane) in [(0, 1), (1, 3), (2, 0), (3, 2)] {
            let range = HashRange::of_initial_shard(index, 4);
            assert_eq!(map.lane_of_key(range.start), Some(lane));
            assert_eq!(map.lane_of_key(range.end), Some(lane));
            let shard = ShardId { stream: StreamId(1), index };
            assert_eq!(map.lane_of_shard(shard), Some(lane));
        }
    }

    #[test]
    fn a_key_of_a_shard_that_is_not_there_has_no_lane() {
        let map = map(&[1, 3], 4);
        for index in [0, 2] {
            let range = HashRange::of_initial_shard(index, 4);
            assert_eq!(map.lane_of_key(range.start), None);
            assert_eq!(map.lane_of_key(range.end), None);
        }
        assert_eq!(RouteMap::default().lane_of_key(HashKey(0)), None);
    }
}
