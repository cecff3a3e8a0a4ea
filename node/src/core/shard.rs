//! The shards that a core serves, and which core of the node serves which.

use std::collections::{BTreeMap, HashMap};
use std::sync::RwLock;

use thalweg_wire::control::OpenExtent;
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, Lsn, Offset, ShardId};

use super::fairness::{AccountId, AccountPlace, Accounts};
use super::throttle::Buckets;
use crate::log::segments::Log;

/// Where an extent is: the log of the core, and the log's number for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentPlace {
    /// Index of the log in its core.
    pub log: u32,
    /// The log's number.
    pub number: u32,
}

/// A shard: its chain of extents on this node.
#[derive(Debug)]
pub struct Shard {
    /// Which.
    pub id: ShardId,
    /// Its extents, oldest first; none when nobody has the place.
    pub extents: Vec<ExtentPlace>,
    /// End of the committed records: readers see none beyond.
    pub committed: Offset,
    /// Append time of the last committed batch, milliseconds since 1970.
    pub committed_ms: u64,
    /// Whose it is.
    pub account: AccountPlace,
    /// Write limits; none for raw benchmarks.
    pub buckets: Option<Buckets>,
    /// Fetches that wait for a commit.
    pub waiting: Vec<u32>,
}

impl Shard {
    /// The extent that takes appends, or took the last.
    #[must_use]
    pub fn newest(&self) -> ExtentPlace {
        *self.extents.last().expect("a shard has an extent")
    }

    /// The oldest offset from which on everything is kept. When the node died, some logs may have
    /// remembered a trim and others not: it holds for all extents before one that it took a part
    /// of, or the whole.
    #[must_use]
    pub fn earliest(&self, logs: &[Log]) -> Offset {
        let record = |place: &ExtentPlace| &logs[place.log as usize].extent(place.number).record;
        let mut earliest = record(&self.newest()).end;
        for record in self.extents.iter().rev().map(record) {
            if record.end < earliest {
                break;
            }
            earliest = record.first_kept.max(record.open.first_offset);
            if earliest > record.open.first_offset {
                break;
            }
        }
        earliest
    }
}

/// The shards of a core.
#[derive(Debug, Default)]
pub struct Shards {
    all: Vec<Shard>,
    places: HashMap<ShardId, u32>,
    ordered: BTreeMap<ShardId, u32>,
    /// How many have write limits.
    limited: usize,
    /// Shards that are deleted, and can be found until that is durable.
    leaving: Vec<Deleted>,
    /// Places of deleted shards that somebody may still name.
    left: Vec<u32>,
    /// Places that nobody names.
    free: Vec<u32>,
}

/// A shard that is deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// Its place.
    pub place: u32,
    /// Logs, and the position of each behind what says so. Where all are durable, it is deleted
    /// for good, and nothing waits that was appended before.
    pub after: Vec<(u32, Lsn)>,
}

impl Shards {
    /// The shards that the extents of `logs` make up.
    #[must_use]
    pub fn from_logs(logs: &[Log], accounts: &mut Accounts, now_us: u64) -> Shards {
        let mut chains: BTreeMap<ShardId, Vec<(Epoch, ExtentPlace)>> = BTreeMap::new();
        for (log, content) in (0..).zip(logs) {
            for (number, extent) in content.extents() {
                let id = extent.record.open.extent;
                let place = ExtentPlace { log, number: *number };
                chains.entry(id.shard).or_default().push((id.epoch, place));
            }
        }
        let mut shards = Shards::default();
        for (id, mut chain) in chains {
            chain.sort_by_key(|(epoch, _)| *epoch);
            let extents: Vec<ExtentPlace> = chain.into_iter().map(|(_, place)| place).collect();
            let newest = extents.last().expect("a chain has an extent");
            let record = &logs[newest.log as usize].extent(newest.number).record;
            shards.insert(Shard {
                id,
                committed: record.end,
                committed_ms: record.last_append_ms,
                buckets: record.open.limits.as_ref().map(|limits| Buckets::empty(limits, now_us)),
                waiting: Vec::new(),
                account: accounts.place(account_of(&record.open)),
                extents,
            });
        }
        shards
    }

    /// Takes a shard in; answers its place.
    pub fn insert(&mut self, shard: Shard) -> u32 {
        let place = self.free.pop().unwrap_or(self.all.len() as u32);
        self.places.insert(shard.id, place);
        self.ordered.insert(shard.id, place);
        self.limited += usize::from(shard.buckets.is_some());
        match self.all.get_mut(place as usize) {
            Some(free) => *free = shard,
            None => self.all.push(shard),
        }
        place
    }

    /// A shard is deleted, for good where the logs are durable up to these positions.
    pub fn delete(&mut self, deleted: Deleted) {
        self.set_buckets(deleted.place, None);
        self.leaving.push(deleted);
    }

    /// What is known of the deletion of a shard that can still be found.
    #[must_use]
    pub fn deletion_of(&self, place: u32) -> Option<&Deleted> {
        self.leaving.iter().find(|deleted| deleted.place == place)
    }

    /// Whether shards that are deleted can still be found.
    #[must_use]
    pub fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Shards that `is_durable` says are deleted for good are not found any more; answers those
    /// that were until now. Their places keep what those who read need.
    pub fn unlist_deleted(&mut self, is_durable: impl Fn(&Deleted) -> bool) -> Vec<ShardId> {
        let Shards { all, places, ordered, leaving, left, .. } = self;
        let gone = leaving.extract_if(.., |deleted| is_durable(deleted));
        let unlisted = gone.map(|Deleted { place, .. }| {
            left.push(place);
            let id = all[place as usize].id;
            places.remove(&id);
            ordered.remove(&id);
            id
        });
        unlisted.collect()
    }

    /// Whether places of shards that are not found any more are not free yet.
    #[must_use]
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Gives those places free that nobody names; answers the extents that were there.
    pub fn free_left(&mut self, is_named: impl Fn(u32) -> bool) -> Vec<ExtentPlace> {
        let unused: Vec<u32> = self.left.extract_if(.., |place| !is_named(*place)).collect();
        let mut extents = Vec::new();
        for place in unused {
            extents.append(&mut self.all[place as usize].extents);
            self.free.push(place);
        }
        extents
    }

    /// Gives a shard other write limits, or none.
    pub fn set_buckets(&mut self, place: u32, buckets: Option<Buckets>) {
        let shard = &mut self.all[place as usize];
        self.limited -= usize::from(shard.buckets.is_some());
        self.limited += usize::from(buckets.is_some());
        shard.buckets = buckets;
    }

    /// How many have write limits.
    #[must_use]
    pub fn limited_count(&self) -> usize {
        self.limited
    }

    /// The place of a shard.
    #[must_use]
    pub fn find(&self, id: ShardId) -> Option<u32> {
        self.places.get(&id).copied()
    }

    /// The shard at a place.
    #[must_use]
    pub fn at(&self, place: u32) -> &Shard {
        &self.all[place as usize]
    }

    /// The shard at a place, to be changed.
    pub fn at_mut(&mut self, place: u32) -> &mut Shard {
        &mut self.all[place as usize]
    }

    /// Shards from an id on, in the order of ids.
    pub fn from(&self, id: ShardId) -> impl Iterator<Item = &Shard> {
        self.ordered.range(id..).map(|(_, place)| self.at(*place))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ordered.len()
    }

    /// The place of each shard, in the order of ids.
    #[must_use]
    pub fn places(&self) -> Vec<u32> {
        self.ordered.values().copied().collect()
    }

    /// How many places there are, those of deleted shards among them.
    #[must_use]
    pub fn places_count(&self) -> u32 {
        self.all.len() as u32
    }
}

/// Which core serves which shard. It is asked only about shards that the asked core does not
/// have, and changed only when a shard comes or goes: never on the way of a record.
#[derive(Debug, Default)]
pub struct Placement {
    cores: RwLock<HashMap<ShardId, u16>>,
}

impl Placement {
    /// Claims a shard for a core; answers the core that has it.
    pub fn claim(&self, shard: ShardId, core: u16) -> u16 {
        let mut cores = self.cores.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *cores.entry(shard).or_insert(core)
    }

    /// A shard was deleted: whichever core is asked first has it, should it come again.
    pub fn release(&self, shard: ShardId) {
        let mut cores = self.cores.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        cores.remove(&shard);
    }

    /// The core that serves a shard.
    #[must_use]
    pub fn core_of(&self, shard: ShardId) -> Option<u16> {
        let cores = self.cores.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        cores.get(&shard).copied()
    }
}

/// Whose shard a command opens.
#[must_use]
pub fn account_of(open: &OpenExtent) -> AccountId {
    match open.account {
        0 => AccountId::Stream(open.extent.shard.stream),
        account => AccountId::Named(account),
    }
}

/// The range that a shard's newest extent covers.
#[must_use]
pub fn range_of(shard: &Shard, logs: &[Log]) -> HashRange {
    let place = shard.newest();
    logs[place.log as usize].extent(place.number).record.open.range
}
