//! Retention: what is older than a stream keeps its records goes, and closed shards whose records
//! are all gone go with them.
//!
//! A sweep asks the nodes what their shards have, some hundred bytes a shard and none of it records.
//! That settles the shards that are empty and those whose last record is too old. Of the others the
//! first record that is young enough is looked for by its time, but only when the oldest one that
//! was seen last has become too old by a good part of the retention: so a shard of a day's retention
//! costs a read and a trim every quarter of an hour, however many records it gets. Reads and trims
//! follow one another at a pace that nodes do not feel. So records outlive their retention by some
//! minutes, and never fall short of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use thalweg_wire::control::ShardDescription;
use thalweg_wire::fetch::FetchFrom;
use thalweg_wire::ids::ShardId;
use thiserror::Error;

use super::NowMs;
use super::catalog::{Catalog, Stream};
use super::nodes::{Node, NodeError};
use super::record::{RecordKey, ShardRecord, StreamStatus, shard_id};
use super::store::{CommitError, Expectation, Store, Transaction};
use crate::route::{FetchError, Fetcher};

/// Shards whose records go by in one transaction: well below what the store takes.
const SHARDS_PER_TRANSACTION: usize = 100;
const HOUR_MS: u64 = 3600 * 1000;

/// How much a sweep may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetentionSettings {
    /// Pause between two sweeps.
    pub period: Duration,
    /// A shard is looked at when its oldest record is too old by this part of its retention.
    pub grain: u32,
    /// Shards looked at or trimmed a second.
    pub shards_per_s: u32,
    /// Bytes of records read a second, to find how old they are.
    pub bytes_per_s: u64,
}

impl Default for RetentionSettings {
    /// A hundred thousand shards of a day's retention, all of them written to, take 111 looks a
    /// second.
    fn default() -> RetentionSettings {
        RetentionSettings {
            period: Duration::from_secs(300),
            grain: 96,
            shards_per_s: 200,
            bytes_per_s: 16 << 20,
        }
    }
}

/// What a sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sweep {
    /// Shards of which records were trimmed.
    pub trimmed: usize,
    /// Shards that are not known any more.
    pub removed: usize,
    /// Shards that could not be dealt with; the next sweep comes to them again.
    pub failed: usize,
}

/// The time before which a stream's records have gone, milliseconds since 1970.
#[must_use]
pub fn horizon_ms(stream: &Stream, now_ms: u64) -> u64 {
    now_ms.saturating_sub(retention_ms(stream))
}

/// Whether a shard was closed so long ago that none of its records is kept. It is not shown any
/// more (developer guide, "Data routing, data persistence, and shard state after a reshard").
#[must_use]
pub fn is_expired(stream: &Stream, shard: &ShardRecord, now_ms: u64) -> bool {
    shard.end.is_some_and(|end| end.closed_ms < horizon_ms(stream, now_ms))
}

/// See the module.
pub struct Retention<S> {
    store: S,
    catalog: Arc<Catalog>,
    node: Arc<Node>,
    fetcher: Fetcher,
    now_ms: NowMs,
    settings: RetentionSettings,
    /// No record of a shard is older than this, milliseconds since 1970.
    oldest_ms: HashMap<ShardId, u64>,
}

/// Why a shard could not be dealt with.
#[derive(Debug, Error)]
enum ShardError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl<S: Store + Clone> Retention<S> {
    /// One that has to be run.
    #[must_use]
    pub fn new(
        store: S,
        catalog: Arc<Catalog>,
        node: Arc<Node>,
        fetcher: Fetcher,
        now_ms: NowMs,
        settings: RetentionSettings,
    ) -> Retention<S> {
        let oldest_ms = HashMap::new();
        Retention { store, catalog, node, fetcher, now_ms, settings, oldest_ms }
    }

    /// Sweeps until it is dropped.
    pub async fn run(mut self) {
        loop {
            match self.sweep().await {
                Ok(sweep) if sweep == Sweep::default() => {}
                Ok(Sweep { trimmed, removed, failed }) => {
                    tracing::debug!(trimmed, removed, failed, "old records went");
                }
                Err(error) => tracing::warn!(%error, "old records stay for now"),
            }
            tokio::time::sleep(self.settings.period).await;
        }
    }

    /// Goes through all streams once.
    ///
    /// # Errors
    /// When the nodes do not tell what they have.
    pub async fn sweep(&mut self) -> Result<Sweep, NodeError> {
        let described = self.node.describe_all().await?;
        let described: HashMap<ShardId, ShardDescription> =
            described.into_iter().map(|shard| (shard.extent.shard, shard)).collect();
        self.oldest_ms.retain(|shard, _| described.contains_key(shard));
        let mut sweep = Sweep::default();
        for stream in self.catalog.streams() {
            let served = [StreamStatus::Active, StreamStatus::Updating];
            if served.contains(&stream.record.status) {
                self.sweep_stream(&stream, &described, &mut sweep).await;
            }
        }
        Ok(sweep)
    }

    async fn sweep_stream(
        &mut self,
        stream: &Stream,
        described: &HashMap<ShardId, ShardDescription>,
        sweep: &mut Sweep,
    ) {
        let mut expired = Vec::new();
        for (index, shard) in stream.shards() {
            let id = shard_id(stream.id(), index);
            let description = described.get(&id);
            // As it is now: a sweep takes a while, and the retention may have grown meanwhile.
            let Some(now) = self.catalog.stream_of(stream.id()) else { return };
            let now_ms = (self.now_ms)();
            let horizon_ms = horizon_ms(&now, now_ms);
            // The nodes' clocks may differ: their last record counts as well.
            let last_ms = description.map_or(0, |shard| shard.last_append_ms);
            if is_expired(&now, shard, now_ms) && last_ms < horizon_ms {
                self.pace(0).await;
                match self.node.delete(id).await {
                    Ok(()) => expired.push(index),
                    Err(error) => note_failure(id, &error.into(), sweep),
                }
                // Soon, for its retention may grow: then it would be shown, and be nowhere.
                if expired.len() == SHARDS_PER_TRANSACTION {
                    self.remove(stream, &std::mem::take(&mut expired), sweep).await;
                }
                continue;
            }
            let Some(description) = description else { continue };
            let grain_ms = retention_ms(&now) / u64::from(self.settings.grain.max(1));
            let oldest_ms = self.oldest_ms.get(&id).copied().unwrap_or(shard.created_s * 1000);
            if description.earliest == description.committed
                || oldest_ms.min(last_ms) + grain_ms >= horizon_ms
            {
                continue;
            }
            match self.trim(id, description, horizon_ms).await {
                Ok(true) => sweep.trimmed += 1,
                Ok(false) => {}
                Err(error) => note_failure(id, &error, sweep),
            }
        }
        self.remove(stream, &expired, sweep).await;
    }

    /// Removes shards from the store that the node has deleted.
    async fn remove(&mut self, stream: &Stream, indexes: &[u32], sweep: &mut Sweep) {
        if indexes.is_empty() {
            return;
        }
        match self.remove_from_store(stream, indexes).await {
            Ok(()) => sweep.removed += indexes.len(),
            // Who else changed it may have deleted the stream.
            Err(CommitError::Conflict(_)) => {}
            Err(error) => {
                tracing::warn!(stream = %stream.name, %error, "expired shards stay for now");
                sweep.failed += indexes.len();
            }
        }
    }

    /// Lets go of a shard's records that are too old; answers whether there were any.
    async fn trim(
        &mut self,
        shard: ShardId,
        description: &ShardDescription,
        horizon_ms: u64,
    ) -> Result<bool, ShardError> {
        let (first_kept, oldest_ms) = if description.last_append_ms < horizon_ms {
            self.pace(0).await;
            (description.committed, description.last_append_ms)
        } else {
            let from = FetchFrom::Time(horizon_ms);
            // One batch, as small as it is.
            let fetched = self.fetcher.fetch(shard, from, 1, Duration::ZERO).await?;
            self.pace(fetched.batch_bytes() as u64).await;
            match fetched.batches().next() {
                Some(batch) => (batch.header.first_offset, batch.header.append_time_ms),
                None => (fetched.head().next, horizon_ms),
            }
        };
        self.oldest_ms.insert(shard, oldest_ms);
        if first_kept <= description.earliest {
            return Ok(false);
        }
        self.node.trim(shard, first_kept).await?;
        Ok(true)
    }

    async fn remove_from_store(
        &mut self,
        stream: &Stream,
        indexes: &[u32],
    ) -> Result<(), CommitError> {
        let mut transaction = Transaction::new();
        for index in indexes {
            let Some(shard) = stream.shard(*index) else { continue };
            let key = RecordKey::Shard(stream.name.clone(), *index).encode();
            transaction = transaction
                .expect(key.clone(), Expectation::ModRevision(shard.mod_revision))
                .delete(key);
        }
        let revision = self.store.commit(transaction).await?;
        self.catalog.wait_for(revision).await;
        for index in indexes {
            self.oldest_ms.remove(&shard_id(stream.id(), *index));
        }
        Ok(())
    }

    /// Waits for as long as a shard and the bytes read for it may cost.
    async fn pace(&self, bytes: u64) {
        let by_shard = Duration::from_secs(1) / self.settings.shards_per_s.max(1);
        let by_bytes =
            Duration::from_secs_f64(bytes as f64 / self.settings.bytes_per_s.max(1) as f64);
        tokio::time::sleep(by_shard.max(by_bytes)).await;
    }
}

fn note_failure(shard: ShardId, error: &ShardError, sweep: &mut Sweep) {
    tracing::warn!(%shard, %error, "old records of a shard stay for now");
    sweep.failed += 1;
}

fn retention_ms(stream: &Stream) -> u64 {
    u64::from(stream.record.retention_hours) * HOUR_MS
}
