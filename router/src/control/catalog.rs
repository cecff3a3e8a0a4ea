//! The route cache's first half: every stream with its shards and consumers as the store has them,
//! in memory, found without a lock.
//!
//! It is made from a snapshot and kept up by a watch, revision by revision: what a revision changed
//! together is seen together, so that the open shards of a stream cover all hash keys whenever it
//! is looked at. Every router builds the same from the same store.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use bytes::Bytes;
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{ShardId, StreamId};
use thiserror::Error;
use tokio::sync::watch;

use super::record::{
    ConsumerRecord, ConsumerStatus, RecordError, RecordKey, STREAMS_PREFIX, ShardRecord,
    StreamName, StreamRecord, decode_record, shard_id,
};
use super::room::shards_to_make;
use super::store::{
    Change, ChangeSet, Entry, ReadError, Revision, Store, Watch, WatchError, snapshot,
};
use super::usage::{Usage, UsageSums};
use crate::metrics::stream::{ConsumerCounts, ShardCounts, StreamCounts};

/// A record, and the revision that put it last: what a change of it must expect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<R> {
    /// The record.
    pub record: R,
    /// Its revision.
    pub mod_revision: Revision,
}

/// A stream with everything that belongs to it, as of one revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stream {
    /// Its name.
    pub name: StreamName,
    /// Its record.
    pub record: StreamRecord,
    /// The record's revision.
    pub mod_revision: Revision,
    shards: BTreeMap<u32, Arc<Versioned<ShardRecord>>>,
    consumers: BTreeMap<String, Arc<Versioned<ConsumerRecord>>>,
    /// Open shards by their first hash key.
    open: Vec<(HashKey, u32)>,
    counts: Arc<StreamCounts>,
    /// Of all shards, while the stream has enhanced monitoring.
    shard_counts: BTreeMap<u32, Arc<ShardCounts>>,
    consumer_counts: BTreeMap<String, Arc<ConsumerCounts>>,
}

impl Stream {
    fn new(name: StreamName, record: StreamRecord, mod_revision: Revision) -> Stream {
        Stream {
            name,
            record,
            mod_revision,
            shards: BTreeMap::new(),
            consumers: BTreeMap::new(),
            open: Vec::new(),
            counts: Arc::default(),
            shard_counts: BTreeMap::new(),
            consumer_counts: BTreeMap::new(),
        }
    }

    /// A stream out of its records and no store, without consumers.
    #[must_use]
    pub fn of_records(
        name: StreamName,
        record: StreamRecord,
        shards: impl IntoIterator<Item = (u32, ShardRecord)>,
    ) -> Stream {
        let mod_revision = Revision::default();
        let mut stream = Stream::new(name, record, mod_revision);
        let versioned = |record| Arc::new(Versioned { record, mod_revision });
        stream.shards =
            shards.into_iter().map(|(index, shard)| (index, versioned(shard))).collect();
        stream.note_open();
        stream
    }

    /// The incarnation.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.record.stream_id()
    }

    /// A shard by its index.
    #[must_use]
    pub fn shard(&self, index: u32) -> Option<&Versioned<ShardRecord>> {
        self.shards.get(&index).map(Arc::as_ref)
    }

    /// Its shards in the order of their indexes, closed ones included.
    pub fn shards(&self) -> impl Iterator<Item = (u32, &ShardRecord)> + '_ {
        self.shards.iter().map(|(index, shard)| (*index, &shard.record))
    }

    /// The same behind an index.
    pub fn shards_after(&self, index: u32) -> impl Iterator<Item = (u32, &ShardRecord)> + '_ {
        let behind = (Bound::Excluded(index), Bound::Unbounded);
        self.shards.range(behind).map(|(index, shard)| (*index, &shard.record))
    }

    /// Its open shards in the order of their hash keys.
    pub fn open_shards(&self) -> impl ExactSizeIterator<Item = (u32, &ShardRecord)> + '_ {
        self.open.iter().map(|(_, index)| (*index, &self.shards[index].record))
    }

    /// The open shard that has a hash key; none while the stream is being created or deleted.
    #[must_use]
    pub fn shard_of(&self, key: HashKey) -> Option<u32> {
        let behind = self.open.partition_point(|(start, _)| *start <= key);
        let (_, index) = self.open[..behind].last()?;
        self.shards[index].record.range.contains(key).then_some(*index)
    }

    /// The shards that a shard's records went on in: none while it is open.
    pub fn children(&self, parent: u32) -> impl Iterator<Item = (u32, &ShardRecord)> + '_ {
        self.shards_after(parent).filter(move |(_, shard)| shard.parents.contains(&parent))
    }

    /// A consumer by its name.
    #[must_use]
    pub fn consumer(&self, name: &str) -> Option<&Versioned<ConsumerRecord>> {
        self.consumers.get(name).map(Arc::as_ref)
    }

    /// Its consumers in the order of their names.
    pub fn consumers(&self) -> impl ExactSizeIterator<Item = (&str, &ConsumerRecord)> + '_ {
        self.consumers.iter().map(|(name, consumer)| (name.as_str(), &consumer.record))
    }

    /// What is counted of it, since the router began or the stream was created.
    #[must_use]
    pub fn counts(&self) -> &StreamCounts {
        &self.counts
    }

    /// What is counted of a shard: while shard-level metrics are enabled, since they were.
    #[must_use]
    pub fn shard_counts(&self, index: u32) -> Option<&ShardCounts> {
        self.shard_counts.get(&index).map(Arc::as_ref)
    }

    /// The same of all its shards, in the order of their indexes.
    pub fn all_shard_counts(&self) -> impl Iterator<Item = (u32, &ShardCounts)> + '_ {
        self.shard_counts.iter().map(|(index, counts)| (*index, counts.as_ref()))
    }

    /// What is counted of a consumer.
    #[must_use]
    pub fn consumer_counts(&self, name: &str) -> Option<&Arc<ConsumerCounts>> {
        self.consumer_counts.get(name)
    }

    /// The same of all its consumers, in the order of their names.
    pub fn all_consumer_counts(&self) -> impl Iterator<Item = (&str, &ConsumerCounts)> + '_ {
        self.consumer_counts.iter().map(|(name, counts)| (name.as_str(), counts.as_ref()))
    }

    /// Whether something is to become of it or of a consumer of it.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let is_settled = |consumer: &Arc<Versioned<ConsumerRecord>>| {
            consumer.record.status == ConsumerStatus::Active
        };
        self.record.intent.is_some() || !self.consumers.values().all(is_settled)
    }

    fn note_open(&mut self) {
        let open = self.shards.iter().filter(|(_, shard)| shard.record.is_open());
        self.open = open.map(|(index, shard)| (shard.record.range.start, *index)).collect();
        self.open.sort_unstable();
    }

    /// Has what is counted follow what there is: what stays goes on counting.
    fn note_counts(&mut self) {
        if self.record.metrics.is_empty() {
            self.shard_counts.clear();
        } else {
            self.shard_counts.retain(|index, _| self.shards.contains_key(index));
            for index in self.shards.keys() {
                self.shard_counts.entry(*index).or_default();
            }
        }
        self.consumer_counts.retain(|name, _| self.consumers.contains_key(name));
        for name in self.consumers.keys() {
            if !self.consumer_counts.contains_key(name) {
                self.consumer_counts.insert(name.clone(), Arc::default());
            }
        }
    }
}

/// Why the catalog cannot be made, or not be kept up. The router that has it must not go on.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CatalogError {
    /// The store did not answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store's watch ended.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// What it has cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Streams that have work, see [`Stream::has_work`].
#[derive(Debug, Default)]
struct AtWork {
    /// Each with the shards that it is to get, those among them that are open already.
    streams: BTreeMap<StreamName, (Arc<Stream>, u64)>,
    /// Their sum.
    shards_to_make: u64,
}

impl AtWork {
    fn remove(&mut self, name: &StreamName) {
        if let Some((_, shards)) = self.streams.remove(name) {
            self.shards_to_make -= shards;
        }
    }

    fn put(&mut self, name: &StreamName, stream: Arc<Stream>) {
        self.remove(name);
        let shards = shards_to_make(&stream, |_| false);
        self.streams.insert(name.clone(), (stream, shards));
        self.shards_to_make += shards;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Catalog {
    by_name: papaya::HashMap<StreamName, Arc<Stream>>,
    by_id: papaya::HashMap<u64, Arc<Stream>>,
    /// For listings.
    names: RwLock<BTreeSet<StreamName>>,
    usage: UsageSums,
    at_work: RwLock<AtWork>,
    revision: watch::Sender<Revision>,
    /// Counts changes of streams that have something to become of them.
    intents: watch::Sender<u64>,
}

impl Catalog {
    /// Everything that the store has, and the watch that tells what changes from there on.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn open<S: Store>(store: &S) -> Result<(Arc<Catalog>, S::Watch), CatalogError> {
        let prefix = Bytes::from_static(STREAMS_PREFIX.as_bytes());
        let found = snapshot(store, prefix.clone()).await?;
        let catalog = Arc::new(Catalog::empty(found.revision));
        catalog.load(found.entries)?;
        let watch = store.watch(prefix, found.revision).await?;
        Ok((catalog, watch))
    }

    fn empty(revision: Revision) -> Catalog {
        Catalog {
            by_name: papaya::HashMap::new(),
            by_id: papaya::HashMap::new(),
            names: RwLock::default(),
            usage: UsageSums::default(),
            at_work: RwLock::default(),
            revision: watch::Sender::new(revision),
            intents: watch::Sender::new(0),
        }
    }

    /// Keeps the catalog up until the watch ends.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn follow(&self, mut watch: impl Watch) -> Result<(), CatalogError> {
        loop {
            let changes = watch.next().await?;
            self.apply(changes)?;
        }
    }

    /// A stream by its name.
    #[must_use]
    pub fn stream(&self, name: &StreamName) -> Option<Arc<Stream>> {
        self.by_name.pin().get(name).cloned()
    }

    /// A stream by its incarnation.
    #[must_use]
    pub fn stream_of(&self, id: StreamId) -> Option<Arc<Stream>> {
        self.by_id.pin().get(&id.0).cloned()
    }

    /// A shard's record and its stream.
    #[must_use]
    pub fn stream_of_shard(&self, shard: ShardId) -> Option<Arc<Stream>> {
        self.stream_of(shard.stream).filter(|stream| stream.shard(shard.index).is_some())
    }

    /// Names of an account's streams in a region behind a name, in order; at most so many.
    #[must_use]
    pub fn names_after(&self, after: &StreamName, count: usize) -> Vec<StreamName> {
        let names = self.names();
        names
            .range((Bound::Excluded(after.clone()), Bound::Unbounded))
            .take_while(|name| name.account_id == after.account_id && name.region == after.region)
            .take(count)
            .cloned()
            .collect()
    }

    /// All streams, in no order.
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.by_name.pin().values().cloned().collect()
    }

    /// Streams of which, or of whose consumers, something is to become; in the order of their names.
    #[must_use]
    pub fn streams_at_work(&self) -> Vec<Arc<Stream>> {
        let at_work = self.at_work.read().expect("nobody panics with it");
        at_work.streams.values().map(|(stream, _)| stream.clone()).collect()
    }

    /// How many shards those are to get, with the ones of these that are open already.
    #[must_use]
    pub fn shards_to_make(&self) -> u64 {
        self.at_work.read().expect("nobody panics with it").shards_to_make
    }

    /// What an account has in a region, by all revisions that are seen: see [`Catalog::wait_for`].
    #[must_use]
    pub fn usage(&self, account_id: &str, region: &str) -> Usage {
        self.usage.of(account_id, region)
    }

    /// Waits until what a revision changed is seen here.
    pub async fn wait_for(&self, revision: Revision) {
        let mut seen = self.revision.subscribe();
        // The sender is this catalog's own.
        let _ = seen.wait_for(|seen| *seen >= revision).await;
    }

    /// Every change: the revision that is seen.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Rises whenever a stream changed that has work left.
    #[must_use]
    pub fn intents(&self) -> watch::Receiver<u64> {
        self.intents.subscribe()
    }

    /// Has whoever waits for intents look once more.
    pub fn look_again(&self) {
        self.intents.send_modify(|count| *count += 1);
    }

    fn names(&self) -> RwLockReadGuard<'_, BTreeSet<StreamName>> {
        self.names.read().expect("nobody panics with it")
    }

    fn load(&self, entries: Vec<Entry>) -> Result<(), CatalogError> {
        let mut entries = entries.into_iter().peekable();
        while let Some(first) = entries.peek() {
            let name = RecordKey::decode(&first.key)?.stream().clone();
            let mut stream = None;
            while let Some(entry) = entries.next_if(|entry| {
                RecordKey::decode(&entry.key).is_ok_and(|key| *key.stream() == name)
            }) {
                let key = RecordKey::decode(&entry.key)?;
                put(&mut stream, key, &entry.key, &entry.value.0, entry.mod_revision)?;
            }
            self.replace(&name, stream);
        }
        Ok(())
    }

    /// Takes a revision's changes in.
    ///
    /// # Errors
    /// When one cannot be read; nothing of the revision is seen then.
    fn apply(&self, changes: ChangeSet) -> Result<(), CatalogError> {
        let mut changed: BTreeMap<StreamName, Option<Stream>> = BTreeMap::new();
        for change in changes.changes {
            let key = RecordKey::decode(change.key())?;
            let stream = changed
                .entry(key.stream().clone())
                .or_insert_with_key(|name| self.stream(name).map(|stream| Stream::clone(&stream)));
            match change {
                Change::Put { key: bytes, value, .. } => {
                    put(stream, key, &bytes, &value.0, changes.revision)?;
                }
                Change::Delete { .. } => delete(stream, &key),
            }
        }
        for (name, stream) in changed {
            self.replace(&name, stream);
        }
        self.revision.send_replace(changes.revision);
        Ok(())
    }

    fn replace(&self, name: &StreamName, stream: Option<Stream>) {
        let by_name = self.by_name.pin();
        let before = by_name.get(name).cloned();
        let Some(mut stream) = stream else {
            by_name.remove(name);
            if let Some(before) = before {
                self.by_id.pin().remove(&before.record.id);
                self.usage.replace(name, Some(&before), None);
            }
            self.names.write().expect("nobody panics with it").remove(name);
            self.note_work(name, None);
            return;
        };
        stream.note_open();
        stream.note_counts();
        let stream = Arc::new(stream);
        if let Some(before) = before.as_ref().filter(|before| before.record.id != stream.record.id)
        {
            self.by_id.pin().remove(&before.record.id);
        }
        self.by_id.pin().insert(stream.record.id, stream.clone());
        by_name.insert(name.clone(), stream.clone());
        if before.is_none() {
            self.names.write().expect("nobody panics with it").insert(name.clone());
        }
        self.usage.replace(name, before.as_deref(), Some(&stream));
        self.note_work(name, Some(stream).filter(|stream| stream.has_work()));
    }

    /// Keeps a stream among those that have work, or does not any more.
    fn note_work(&self, name: &StreamName, stream: Option<Arc<Stream>>) {
        let mut at_work = self.at_work.write().expect("nobody panics with it");
        match stream {
            Some(stream) => {
                at_work.put(name, stream);
                drop(at_work);
                self.look_again();
            }
            None => at_work.remove(name),
        }
    }
}

fn put(
    stream: &mut Option<Stream>,
    key: RecordKey,
    bytes: &[u8],
    value: &[u8],
    mod_revision: Revision,
) -> Result<(), RecordError> {
    let orphan = || RecordError::Document {
        key: String::from_utf8_lossy(bytes).into_owned(),
        cause: "its stream has no record".to_owned(),
    };
    match key {
        RecordKey::Stream(name) => {
            let record: StreamRecord = decode_record(bytes, value)?;
            match stream {
                Some(stream) if stream.record.id == record.id => {
                    (stream.record, stream.mod_revision) = (record, mod_revision);
                }
                // Of another incarnation nothing was counted.
                Some(stream) => {
                    stream.counts = Arc::default();
                    stream.shard_counts.clear();
                    stream.consumer_counts.clear();
                    (stream.record, stream.mod_revision) = (record, mod_revision);
                }
                None => *stream = Some(Stream::new(name, record, mod_revision)),
            }
        }
        RecordKey::Shard(_, index) => {
            let record = decode_record(bytes, value)?;
            let stream = stream.as_mut().ok_or_else(orphan)?;
            stream.shards.insert(index, Arc::new(Versioned { record, mod_revision }));
        }
        RecordKey::Consumer(_, name) => {
            let record = decode_record(bytes, value)?;
            let stream = stream.as_mut().ok_or_else(orphan)?;
            stream.consumers.insert(name, Arc::new(Versioned { record, mod_revision }));
        }
    }
    Ok(())
}

fn delete(stream: &mut Option<Stream>, key: &RecordKey) {
    match (key, stream.as_mut()) {
        (RecordKey::Stream(_), _) => *stream = None,
        (RecordKey::Shard(_, index), Some(stream)) => {
            stream.shards.remove(index);
        }
        (RecordKey::Consumer(_, name), Some(stream)) => {
            stream.consumers.remove(name);
        }
        (_, None) => {}
    }
}

/// Names every shard of a stream.
pub fn shard_ids(stream: &Stream) -> impl Iterator<Item = ShardId> + '_ {
    stream.shards().map(|(index, _)| shard_id(stream.id(), index))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use thalweg_wire::hash_range::HashRange;

    use super::super::record::{
        Intent, NewShard, ReshardStep, Resize, ShardEnd, StreamMode, StreamStatus, encode_record,
    };
    use super::super::store::Value;
    use super::*;

    /// What may happen to a stream. What needs a stream does nothing where there is none.
    #[derive(Clone, Debug)]
    enum Happening {
        /// Its record is put: incarnation, status, intent, mode.
        Stream(u64, StreamStatus, Option<Intent>, StreamMode),
        /// A shard is put, open or closed.
        Shard(u32, bool),
        /// A consumer is put.
        Consumer(ConsumerStatus),
        /// A shard goes.
        ShardGoes(u32),
        /// The stream goes with all that it has.
        Goes,
    }

    fn intent() -> impl Strategy<Value = Option<Intent>> {
        let steps = |parents: u32, children: u32| {
            let child = |index| NewShard { index, range: HashRange::FULL };
            let children = (0..children).map(child).collect();
            vec![ReshardStep { parents: (0..parents).collect(), children }]
        };
        prop_oneof![
            2 => Just(None),
            1 => (0..9_u32).prop_map(|shards| Some(Intent::Create { shards })),
            1 => (1..3_u32, 0..9_u32).prop_map(move |(parents, open_max)| {
                let resize = (open_max > 3).then_some(Resize { target: 3, open_max });
                Some(Intent::Reshard { steps: steps(parents, 3 - parents), resize })
            }),
            1 => Just(Some(Intent::Settle)),
            1 => Just(Some(Intent::Delete { unborn: Vec::new() })),
        ]
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let status = prop_oneof![
            Just(StreamStatus::Creating),
            Just(StreamStatus::Deleting),
            Just(StreamStatus::Active),
            Just(StreamStatus::Updating),
        ];
        let mode = prop_oneof![Just(StreamMode::Provisioned), Just(StreamMode::OnDemand)];
        let consumer = prop_oneof![Just(ConsumerStatus::Creating), Just(ConsumerStatus::Active)];
        prop_oneof![
            4 => (0..2_u64, status, intent(), mode)
                .prop_map(|(id, status, intent, mode)| Happening::Stream(id, status, intent, mode)),
            3 => (0..5_u32, any::<bool>())
                .prop_map(|(index, is_open)| Happening::Shard(index, is_open)),
            1 => consumer.prop_map(Happening::Consumer),
            1 => (0..5_u32).prop_map(Happening::ShardGoes),
            2 => Just(Happening::Goes),
        ]
    }

    /// Two accounts, two regions, two streams in each.
    fn name(number: u64) -> StreamName {
        StreamName {
            account_id: (number & 1).to_string(),
            region: (number >> 1 & 1).to_string(),
            name: (number >> 2).to_string(),
        }
    }

    fn change(key: &RecordKey, record: &impl serde::Serialize) -> Change {
        Change::Put { key: key.encode(), value: Value(encode_record(record)), lease: None }
    }

    fn changes(catalog: &Catalog, number: u64, happening: &Happening) -> Vec<Change> {
        let name = name(number);
        let there = catalog.stream(&name);
        let goes = |key: RecordKey| Change::Delete { key: key.encode() };
        match (happening, there) {
            (Happening::Stream(id, status, intent, mode), _) => {
                let record: StreamRecord = serde_json::from_value(serde_json::json!({
                    "version": 1, "id": number * 10 + id, "created_ms": 0, "status": status,
                    "intent": intent, "next_shard": 0, "mode": mode, "retention_hours": 24,
                    "max_record_kib": 1024,
                }))
                .expect("a record");
                vec![change(&RecordKey::Stream(name), &record)]
            }
            (Happening::Shard(index, is_open), Some(_)) => {
                let range = HashRange::of_initial_shard(*index, 5);
                let end = (!is_open).then_some(ShardEnd { offset: 0, closed_ms: 0 });
                let (version, created_s, parents, node) = (1, 1, Vec::new(), 0);
                let record = ShardRecord { version, range, created_s, parents, end, node };
                vec![change(&RecordKey::Shard(name, *index), &record)]
            }
            (Happening::Consumer(status), Some(_)) => {
                let (tags, policy) = (BTreeMap::new(), None);
                let record =
                    ConsumerRecord { version: 1, created_ms: 0, status: *status, tags, policy };
                vec![change(&RecordKey::Consumer(name, "reader".to_owned()), &record)]
            }
            (Happening::ShardGoes(index), Some(stream)) if stream.shard(*index).is_some() => {
                vec![goes(RecordKey::Shard(name, *index))]
            }
            (Happening::Goes, Some(stream)) => {
                let shards = stream.shards().map(|(index, _)| index);
                let shards = shards.map(|index| goes(RecordKey::Shard(name.clone(), index)));
                let consumers = stream.consumers().map(|(reader, _)| reader.to_owned());
                let consumers = consumers
                    .map(|reader| goes(RecordKey::Consumer(name.clone(), reader.to_owned())));
                let stream = [goes(RecordKey::Stream(name.clone()))];
                shards.chain(consumers).chain(stream).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The sums and the streams that have work are what a look through all streams finds.
    #[track_caller]
    fn assert_kept_up(catalog: &Catalog) {
        let mut counted = BTreeMap::<(String, String), Usage>::new();
        let (mut at_work, mut to_make) = (BTreeSet::new(), 0);
        for stream in catalog.streams() {
            let account = (stream.name.account_id.clone(), stream.name.region.clone());
            *counted.entry(account).or_default() += Usage::of_stream(&stream);
            if stream.has_work() {
                at_work.insert(stream.name.clone());
                to_make += shards_to_make(&stream, |_| false);
            }
        }
        for number in 0..4 {
            let StreamName { account_id, region, .. } = name(number);
            let kept = catalog.usage(&account_id, &region);
            assert_eq!(kept, counted.get(&(account_id, region)).copied().unwrap_or_default());
        }
        assert_eq!(catalog.usage.entries(), counted.len(), "nobody without streams is kept");
        let kept = catalog.streams_at_work();
        let is_latest = |stream: &Arc<Stream>| {
            catalog.stream(&stream.name).is_some_and(|latest| Arc::ptr_eq(&latest, stream))
        };
        assert!(kept.iter().all(is_latest), "as they are now");
        assert!(kept.iter().map(|stream| &stream.name).eq(&at_work));
        assert_eq!(catalog.shards_to_make(), to_make);
    }

    proptest! {
        #[test]
        fn what_is_kept_up_is_what_a_fresh_count_finds(
            revisions in proptest::collection::vec(
                proptest::collection::btree_map(0..8_u64, happening(), 1..4),
                1..60,
            ),
        ) {
            let catalog = Catalog::empty(Revision(0));
            for (revision, happenings) in (1..).zip(revisions) {
                let changes = happenings
                    .iter()
                    .flat_map(|(number, happening)| changes(&catalog, *number, happening))
                    .collect();
                let changes = ChangeSet { revision: Revision(revision), changes };
                catalog.apply(changes).expect("records that can be read");
                assert_kept_up(&catalog);
            }
        }
    }
}
