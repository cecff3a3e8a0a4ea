//! What must hold: offsets are the witness. What was acked, or read, is there after every crash, at
//! its offset, with its bytes, until it is trimmed; offsets have no gap; what is there was sent,
//! and is there once; the end of a fenced extent stands.

use std::collections::{BTreeMap, HashSet};

/// A batch as it was acked or read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub records: u32,
    pub body_hash: u64,
}

#[derive(Default)]
struct ShardModel {
    /// Batches acked or read, by first offset.
    known: BTreeMap<u64, Stored>,
    /// Where each batch stands, by its hash.
    places: BTreeMap<u64, u64>,
    trim_asked: u64,
    trim_acked: u64,
    /// Highest end that a fence or seal has told.
    ended: u64,
}

/// See the module.
pub(crate) struct Model {
    shards: Vec<ShardModel>,
    sent: HashSet<u64>,
}

impl Model {
    pub(crate) fn new(shards: u32) -> Model {
        Model { shards: (0..shards).map(|_| ShardModel::default()).collect(), sent: HashSet::new() }
    }

    fn shard(&mut self, shard: u32) -> &mut ShardModel {
        &mut self.shards[shard as usize]
    }

    /// A batch is about to be sent.
    pub(crate) fn send(&mut self, body_hash: u64) {
        assert!(self.sent.insert(body_hash), "batches are unlike each other");
    }

    /// A batch was acked, or somebody read it.
    pub(crate) fn see(&mut self, shard: u32, first_offset: u64, stored: Stored) {
        assert!(self.sent.contains(&stored.body_hash), "a batch is there that nobody sent");
        let state = self.shard(shard);
        if let Some(known) = state.known.get(&first_offset) {
            assert_eq!(*known, stored, "shard {shard} has two batches at offset {first_offset}");
            return;
        }
        let end = first_offset + u64::from(stored.records);
        let before = state.known.range(..first_offset).next_back();
        assert!(
            before.is_none_or(|(at, other)| at + u64::from(other.records) <= first_offset),
            "shard {shard}: {before:?} reaches into {first_offset}"
        );
        let after = state.known.range(first_offset..end).next();
        assert!(after.is_none(), "shard {shard}: {first_offset} reaches into {after:?}");
        let place = state.places.insert(stored.body_hash, first_offset);
        assert_eq!(place, None, "shard {shard} has a batch twice, again at {first_offset}");
        state.known.insert(first_offset, stored);
    }

    /// The end of what is known to be stored.
    pub(crate) fn end(&self, shard: u32) -> u64 {
        let last = self.shards[shard as usize].known.last_key_value();
        last.map_or(0, |(at, stored)| at + u64::from(stored.records))
    }

    /// The first offset that may be asked for without being told that it was trimmed.
    pub(crate) fn trim_asked(&self, shard: u32) -> u64 {
        self.shards[shard as usize].trim_asked
    }

    pub(crate) fn ask_trim(&mut self, shard: u32, first_kept: u64) {
        let state = self.shard(shard);
        state.trim_asked = state.trim_asked.max(first_kept);
    }

    pub(crate) fn ack_trim(&mut self, shard: u32, first_kept: u64) {
        let state = self.shard(shard);
        state.trim_acked = state.trim_acked.max(first_kept);
    }

    /// A fence or seal was answered.
    pub(crate) fn end_extent(&mut self, shard: u32, end: u64) {
        let state = self.shard(shard);
        state.ended = state.ended.max(end);
    }

    /// The node started: what is committed and kept of a shard.
    pub(crate) fn check_start(
        &mut self,
        shard: u32,
        committed: u64,
        earliest: u64,
        may_lose: bool,
    ) {
        let end = self.end(shard);
        let state = self.shard(shard);
        if may_lose {
            // A write went astray: what it was to hold may be gone, with all behind it.
            let lost = state.known.split_off(&committed);
            lost.values().for_each(|stored| {
                state.places.remove(&stored.body_hash);
            });
            if let Some((at, stored)) = state.known.last_key_value().map(|(at, old)| (*at, *old))
                && at + u64::from(stored.records) > committed
            {
                state.known.remove(&at);
                state.places.remove(&stored.body_hash);
            }
            state.ended = state.ended.min(committed);
            state.trim_acked = state.trim_acked.min(earliest);
            return;
        }
        assert!(
            end <= committed,
            "shard {shard}: {end} were stored, {committed} are after a crash"
        );
        let ended = state.ended;
        assert!(ended <= committed, "shard {shard}: it ended at {ended}, {committed} are there");
        self.check_earliest(shard, earliest);
    }

    /// What is kept of a shard lies between what was asked for and what was answered.
    pub(crate) fn check_earliest(&self, shard: u32, earliest: u64) {
        let ShardModel { trim_asked, trim_acked, .. } = self.shards[shard as usize];
        assert!(
            trim_acked <= earliest && earliest <= trim_asked,
            "shard {shard}: trims to {trim_acked} were acked, to {trim_asked} asked for; it begins \
             at {earliest}"
        );
    }

    /// A shard was read from what is kept to its end, and these were there.
    pub(crate) fn check_all(&self, shard: u32, earliest: u64, found: &BTreeMap<u64, Stored>) {
        for (offset, stored) in &self.shards[shard as usize].known {
            if offset + u64::from(stored.records) > earliest {
                assert_eq!(found.get(offset), Some(stored), "shard {shard} at {offset}");
            }
        }
    }
}
