//! The reconciler: brings about what streams' records say is to become of them.
//!
//! Each step can be made twice: it looks at what is there first, and the store takes its result
//! only if the stream is still as it was. So a router that starts goes on wherever the last one
//! was stopped, and there is no step from which it could not.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use thalweg_wire::control::{OpenExtent, ShardLimits};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, ExtentId, Offset};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::NowMs;
use super::catalog::{Catalog, Stream};
use super::nodes::{Node, NodeError};
use super::record::{
    ConsumerStatus, Intent, NewShard, RECORD_VERSION, RecordKey, ReshardStep, Resize, ShardEnd,
    ShardRecord, StreamRecord, StreamStatus, encode_record, shard_id,
};
use super::reshard;
use super::store::{CommitError, Expectation, Generation, Revision, Store, Transaction};

/// Streams that are worked on at a time.
const STREAMS_MAX: usize = 64;
/// Commands to nodes under way for one stream.
const COMMANDS_MAX: usize = 64;
/// Shards in one transaction: well below what the store takes, with room for their stream.
const SHARDS_PER_TRANSACTION: usize = 100;
/// First and longest pause after a step that could not be made.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How long a stream that is deleted waits for its youngest shard's second to be over: longer than
/// splits of splits put that off. A clock that was set back is not waited for.
const YOUNG_MAX: Duration = Duration::from_secs(60);

/// Why a step could not be made. It is made again later.
#[derive(Debug, Error)]
enum StepError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("the shard {index} of a step is not there, or not open")]
    Parent { index: u32 },
    /// A stream of the same name would give out sequence numbers of this one.
    #[error("the second in which its youngest shard was made is not over")]
    Young { over_in: Duration },
}

/// What shards are opened with.
#[derive(Clone, Copy, Debug)]
pub struct ShardSettings {
    /// Write limits of each shard; none for raw benchmarks.
    pub limits: Option<ShardLimits>,
    /// Which life of the store commands are given in.
    pub generation: Generation,
}

/// See the module.
pub struct Reconciler<S: Store> {
    store: S,
    catalog: Arc<Catalog>,
    node: Arc<Node>,
    now_ms: NowMs,
    settings: ShardSettings,
    /// Streams that are being worked on, by incarnation.
    at_work: Mutex<HashSet<u64>>,
    /// Who makes steps has one; who waits to make one again does not.
    permits: Arc<Semaphore>,
}

impl<S: Store + Clone> Reconciler<S> {
    /// One that works on what the catalog shows.
    #[must_use]
    pub fn new(
        store: S,
        catalog: Arc<Catalog>,
        node: Arc<Node>,
        now_ms: NowMs,
        settings: ShardSettings,
    ) -> Arc<Reconciler<S>> {
        let (at_work, permits) = (Mutex::default(), Arc::new(Semaphore::new(STREAMS_MAX)));
        Arc::new(Reconciler { store, catalog, node, now_ms, settings, at_work, permits })
    }

    /// Works until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut intents = self.catalog.intents();
        loop {
            intents.mark_unchanged();
            for stream in self.catalog.streams_at_work() {
                if !self.take_up(stream.record.id) {
                    continue;
                }
                let permit = self.permit().await;
                let this = self.clone();
                tokio::spawn(async move {
                    this.settle(&stream, permit).await;
                    this.at_work().remove(&stream.record.id);
                    // What came while it was being left is seen by another look.
                    this.catalog.look_again();
                });
            }
            if intents.changed().await.is_err() {
                return;
            }
        }
    }

    fn at_work(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.at_work.lock().expect("nobody panics with it")
    }

    fn take_up(&self, id: u64) -> bool {
        self.at_work().insert(id)
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("it is never closed")
    }

    /// Works on a stream until nothing is left to do.
    async fn settle(&self, stream: &Stream, mut permit: OwnedSemaphorePermit) {
        let (mut pause, mut is_told) = (RETRY.0, false);
        loop {
            let Some(now) = self.catalog.stream(&stream.name) else { return };
            if now.record.id != stream.record.id || !now.has_work() {
                return;
            }
            match self.step(&now).await {
                Ok(revision) => {
                    self.catalog.wait_for(revision).await;
                    pause = RETRY.0;
                }
                Err(error) => {
                    match error {
                        StepError::Commit(CommitError::Conflict(_)) => {}
                        StepError::Young { over_in } => pause = over_in,
                        // Somebody has to give it room, and is told once.
                        StepError::Node(NodeError::Full { .. }) if is_told => {
                            tracing::debug!(stream = %stream.name, %error, "a stream still waits");
                        }
                        error => {
                            is_told |= matches!(error, StepError::Node(NodeError::Full { .. }));
                            tracing::warn!(stream = %stream.name, %error, "a stream waits");
                        }
                    }
                    // Others go on meanwhile.
                    drop(permit);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    permit = self.permit().await;
                }
            }
        }
    }

    /// Makes the next step; answers the revision that shows it.
    async fn step(&self, stream: &Stream) -> Result<Revision, StepError> {
        match &stream.record.intent {
            Some(Intent::Create { shards }) => self.create(stream, *shards).await,
            Some(Intent::Reshard { steps, resize }) => self.reshard(stream, steps, *resize).await,
            Some(Intent::Settle) => self.activate(stream).await,
            Some(Intent::Delete { unborn }) => self.delete(stream, unborn).await,
            None => self.settle_consumers(stream).await,
        }
    }

    async fn create(&self, stream: &Stream, count: u32) -> Result<Revision, StepError> {
        let missing: Vec<u32> = (0..count)
            .filter(|index| stream.shard(*index).is_none())
            .take(SHARDS_PER_TRANSACTION)
            .collect();
        if !missing.is_empty() {
            let created_s = (self.now_ms)() / 1000;
            let mut transaction = self.unchanged(stream);
            for index in missing {
                let range = HashRange::of_initial_shard(index, count);
                let shard = self.new_shard(range, created_s, Vec::new());
                // The stream's record stays as it is: a router that is no more could have made
                // them a moment ago.
                let key = shard_key(stream, index);
                transaction = transaction
                    .expect(key.clone(), Expectation::Absent)
                    .put(key, encode_record(&shard));
            }
            return Ok(self.store.commit(transaction).await?);
        }
        self.open_all(stream, stream.shards()).await?;
        let record = StreamRecord { next_shard: count, ..settled(&stream.record) };
        Ok(self.store.commit(self.replaced(stream, &record)).await?)
    }

    /// The parents end, then the children can be written to, then all are seen at once.
    async fn reshard(
        &self,
        stream: &Stream,
        steps: &[ReshardStep],
        resize: Option<Resize>,
    ) -> Result<Revision, StepError> {
        let made = steps.iter().map(|step| self.make_step(stream, step)).collect::<Vec<_>>();
        let record = match resize {
            None => settled(&stream.record),
            Some(resize) => {
                let open = reshard::after(&reshard::open_ranges(stream), steps);
                reshard::resized(&stream.record, &open, resize)
            }
        };
        let mut transaction = self.replaced(stream, &record);
        for Transaction { compares, changes } in try_join_all(made).await? {
            transaction.compares.extend(compares);
            transaction.changes.extend(changes);
        }
        Ok(self.store.commit(transaction).await?)
    }

    /// Makes a step at the nodes; answers what the store is to take of it.
    async fn make_step(
        &self,
        stream: &Stream,
        step: &ReshardStep,
    ) -> Result<Transaction, StepError> {
        let mut created_s = (self.now_ms)() / 1000;
        let mut transaction = Transaction::new();
        for index in &step.parents {
            let parent = stream.shard(*index).filter(|parent| parent.record.is_open());
            let parent = parent.ok_or(StepError::Parent { index: *index })?;
            let end = self.node.seal(shard_id(stream.id(), *index)).await?;
            created_s = created_s.max(parent.record.created_s + 1);
            let end = Some(ShardEnd { offset: end.0, closed_ms: (self.now_ms)() });
            let closed = ShardRecord { end, ..parent.record.clone() };
            let key = shard_key(stream, *index);
            transaction = transaction
                .expect(key.clone(), Expectation::ModRevision(parent.mod_revision))
                .put(key, encode_record(&closed));
        }
        let children: Vec<(u32, ShardRecord)> = step
            .children
            .iter()
            .map(|NewShard { index, range }| {
                (*index, self.new_shard(*range, created_s, step.parents.clone()))
            })
            .collect();
        self.open_all(stream, children.iter().map(|(index, shard)| (*index, shard))).await?;
        for (index, shard) in &children {
            let key = shard_key(stream, *index);
            transaction =
                transaction.expect(key.clone(), Expectation::Absent).put(key, encode_record(shard));
        }
        Ok(transaction)
    }

    async fn activate(&self, stream: &Stream) -> Result<Revision, StepError> {
        let record = settled(&stream.record);
        Ok(self.store.commit(self.replaced(stream, &record)).await?)
    }

    /// The nodes delete the shards, some at a time, then the store does, and at last the stream.
    async fn delete(&self, stream: &Stream, unborn: &[u32]) -> Result<Revision, StepError> {
        self.check_age(stream)?;
        let some: Vec<u32> =
            stream.shards().map(|(index, _)| index).take(SHARDS_PER_TRANSACTION).collect();
        let is_last = some.len() == stream.shards().count();
        let unborn = if is_last { unborn } else { &[] };
        // Those were never opened whose stream was deleted while it was created or resharded.
        let indexes = some.iter().chain(unborn);
        in_parts(indexes.map(|index| self.node.delete(shard_id(stream.id(), *index)))).await?;
        let mut transaction = self.unchanged(stream);
        for index in &some {
            transaction = transaction.delete(shard_key(stream, *index));
        }
        let consumers: Vec<&str> = stream.consumers().map(|(name, _)| name).collect();
        if is_last && consumers.len() < 20 {
            for name in consumers {
                let key = RecordKey::Consumer(stream.name.clone(), name.to_owned());
                transaction = transaction.delete(key.encode());
            }
            transaction = transaction.delete(stream_key(stream));
        } else if some.is_empty() {
            for name in consumers.into_iter().take(SHARDS_PER_TRANSACTION) {
                let key = RecordKey::Consumer(stream.name.clone(), name.to_owned());
                transaction = transaction.delete(key.encode());
            }
        }
        Ok(self.store.commit(transaction).await?)
    }

    /// A sequence number has the second in which its shard was made, and no name: a stream that is
    /// made again must not begin in a second of the old one.
    fn check_age(&self, stream: &Stream) -> Result<(), StepError> {
        let youngest_s = stream.shards().map(|(_, shard)| shard.created_s).max();
        let over_ms = youngest_s.map_or(0, |created_s| (created_s + 1) * 1000);
        let over_in = Duration::from_millis(over_ms.saturating_sub((self.now_ms)()));
        if over_in.is_zero() || over_in > YOUNG_MAX {
            return Ok(());
        }
        Err(StepError::Young { over_in })
    }

    async fn settle_consumers(&self, stream: &Stream) -> Result<Revision, StepError> {
        let mut transaction = Transaction::new();
        let unsettled: Vec<&str> = stream
            .consumers()
            .filter(|(_, consumer)| consumer.status != ConsumerStatus::Active)
            .map(|(name, _)| name)
            .take(SHARDS_PER_TRANSACTION)
            .collect();
        for name in unsettled {
            let consumer = stream.consumer(name).expect("just found");
            let key = RecordKey::Consumer(stream.name.clone(), name.to_owned()).encode();
            let expected = Expectation::ModRevision(consumer.mod_revision);
            transaction = transaction.expect(key.clone(), expected);
            transaction = match consumer.record.status {
                ConsumerStatus::Deleting => transaction.delete(key),
                _ => {
                    let mut record = consumer.record.clone();
                    record.status = ConsumerStatus::Active;
                    transaction.put(key, encode_record(&record))
                }
            };
        }
        Ok(self.store.commit(transaction).await?)
    }

    async fn open_all<'a>(
        &self,
        stream: &Stream,
        shards: impl Iterator<Item = (u32, &'a ShardRecord)>,
    ) -> Result<(), StepError> {
        let commands = shards.map(|(index, shard)| async move {
            let extent = ExtentId { shard: shard_id(stream.id(), index), epoch: Epoch(1) };
            let open = OpenExtent {
                shard_created_s: shard.created_s,
                limits: self.settings.limits,
                store_generation: self.settings.generation.0,
                account: account_number(&stream.name.account_id),
                ..OpenExtent::alone(extent, shard.range, Offset(0))
            };
            self.node.open(&open).await
        });
        Ok(in_parts(commands).await?)
    }

    fn new_shard(&self, range: HashRange, created_s: u64, parents: Vec<u32>) -> ShardRecord {
        ShardRecord { version: RECORD_VERSION, range, created_s, parents, end: None, node: 0 }
    }

    /// A transaction that holds only if the stream's record is as it was.
    fn unchanged(&self, stream: &Stream) -> Transaction {
        let expected = Expectation::ModRevision(stream.mod_revision);
        Transaction::new().expect(stream_key(stream), expected)
    }

    fn replaced(&self, stream: &Stream, record: &StreamRecord) -> Transaction {
        self.unchanged(stream).put(stream_key(stream), encode_record(record))
    }
}

/// Runs commands, so many at a time.
async fn in_parts<'a>(
    commands: impl Iterator<Item = impl Future<Output = Result<(), NodeError>> + Send + 'a>,
) -> Result<(), NodeError> {
    // Boxed, and gathered first: nothing but futures lives through an await.
    let mut commands: Vec<BoxFuture<'a, _>> = commands.map(FutureExt::boxed).collect();
    while !commands.is_empty() {
        let others = commands.split_off(commands.len().min(COMMANDS_MAX));
        try_join_all(std::mem::replace(&mut commands, others)).await?;
    }
    Ok(())
}

/// A stream of which nothing is left to be done.
fn settled(record: &StreamRecord) -> StreamRecord {
    StreamRecord { status: StreamStatus::Active, intent: None, ..record.clone() }
}

fn stream_key(stream: &Stream) -> bytes::Bytes {
    RecordKey::Stream(stream.name.clone()).encode()
}

fn shard_key(stream: &Stream, index: u32) -> bytes::Bytes {
    RecordKey::Shard(stream.name.clone(), index).encode()
}

/// An account as nodes know it, which share themselves out among accounts: never zero.
fn account_number(account_id: &str) -> u64 {
    account_id.parse().map_or(1, |number: u64| number.max(1))
}
