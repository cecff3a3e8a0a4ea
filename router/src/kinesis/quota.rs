//! What an account has of that which is limited, and changes that use more of it.
//!
//! What there is stands in the records of streams, and the catalog has the sums. A change that uses more of it puts the account's
//! quota key beside them and expects it as it was when it judged: so of two that come at once, on
//! whichever routers, one judges again.

use bytes::Bytes;

use super::error::ApiError;
use super::service::{CHANGE_ATTEMPTS_MAX, Service};
use crate::control::record::{StreamName, quota_key};
use crate::control::store::{Expectation, Store, Transaction};
use crate::control::usage::Usage;

/// What stands under a quota key: it only matters when it was put.
const QUOTA_VALUE: &[u8] = b"{\"version\":1}";

/// Open shards of a stream at most, with limits of accounts or without: each has a record in the
/// store and a place in memory, and a count beyond that is a slip of whoever typed it. Fifty times
/// what an account has by default.
const STREAM_SHARDS_MAX: u64 = 1_000_000;

impl<S: Store + Clone> Service<S> {
    /// What an account has in a region now.
    pub(super) fn usage(&self, account_id: &str, region: &str) -> Usage {
        self.ground.catalog.usage(account_id, region)
    }

    /// Makes a change that uses up a quota of the account and region of a stream, and waits until
    /// it is seen. `judge` is told what the account has, and answers the transaction, which must
    /// change a record of the stream; it is asked again when others were quicker.
    ///
    /// # Errors
    /// What `judge` says, or that the store did not take it.
    pub(super) async fn commit_in_quota(
        &self,
        stream: &StreamName,
        mut judge: impl FnMut(&Usage) -> Result<Option<Transaction>, ApiError>,
    ) -> Result<(), ApiError> {
        let (account_id, region) = (&stream.account_id, &stream.region);
        let key = quota_key(account_id, region);
        // Of those that change quotas here, one at a time, in the order in which they came: they
        // would only fail each other's transactions. Other routers still may.
        let _turn = self.quota_turn.lock().await;
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let guard = self.ground.store.get(key.clone()).await.map_err(|error| {
                tracing::error!(%error, "the quota of an account cannot be read");
                ApiError::internal_failure()
            })?;
            let expected = match guard {
                Some(entry) => {
                    // It was put with a stream's record, so the catalog will see the revision.
                    self.ground.catalog.wait_for(entry.mod_revision).await;
                    Expectation::ModRevision(entry.mod_revision)
                }
                None => Expectation::Absent,
            };
            let Some(transaction) = judge(&self.usage(account_id, region))? else { return Ok(()) };
            let transaction = transaction
                .expect(key.clone(), expected)
                .put(key.clone(), Bytes::from_static(QUOTA_VALUE));
            if self.commit(transaction).await?.is_some() {
                return Ok(());
            }
        }
        Err(ApiError::resource_in_use(format!(
            "Streams of account {account_id} in {region} are being changed by others; try again."
        )))
    }

    /// Whether so many more shards are allowed.
    ///
    /// # Errors
    /// LimitExceededException, with the service's message.
    pub(super) fn check_shard_quota(
        &self,
        stream: &StreamName,
        usage: &Usage,
        more: u64,
    ) -> Result<(), ApiError> {
        let limit = u64::from(self.settings.shards_max);
        if !self.settings.limits || usage.shards + more <= limit {
            return Ok(());
        }
        Err(ApiError::limit_exceeded(format!(
            "This request would exceed the shard limit for the account {} in {}. Current shard \
             count for the account: {}. Limit: {limit}. Number of additional shards that would \
             have resulted from this request: {more}.",
            stream.account_id, stream.region, usage.shards
        )))
    }

    /// Whether one more stream of on-demand mode is allowed.
    ///
    /// # Errors
    /// LimitExceededException.
    pub(super) fn check_on_demand_quota(
        &self,
        stream: &StreamName,
        usage: &Usage,
    ) -> Result<(), ApiError> {
        let limit = u64::from(self.settings.on_demand_streams_max);
        if !self.settings.limits || usage.on_demand_streams < limit {
            return Ok(());
        }
        Err(ApiError::limit_exceeded(format!(
            "The account {} has {} streams of on-demand mode in {}, at most {limit} are allowed. \
             Delete one, or use the provisioned mode.",
            stream.account_id, usage.on_demand_streams, stream.region
        )))
    }
}

/// Whether a stream may have so many open shards, whatever the limits of its account.
///
/// # Errors
/// LimitExceededException.
pub(super) fn check_stream_shards(stream: &StreamName, shards: u64) -> Result<(), ApiError> {
    if shards <= STREAM_SHARDS_MAX {
        return Ok(());
    }
    Err(ApiError::limit_exceeded(format!(
        "Stream {} under account {} would have {shards} open shards, and a stream has \
         {STREAM_SHARDS_MAX} at most. Ask for fewer, or use several streams.",
        stream.name, stream.account_id
    )))
}
