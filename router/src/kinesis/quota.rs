//! What an account has of that which is limited, and changes that use more of it.
//!
//! What there is stands in the records of streams, and the catalog has the sums. A change that uses
//! more of it puts the account's quota key beside them and expects it as it was when it judged: so
//! of two that come at once, on whichever routers, one judges again.

use std::cell::Cell;

use bytes::Bytes;

use super::error::ApiError;
use super::service::{CHANGE_ATTEMPTS_MAX, Service};
use crate::control::record::{StreamName, quota_key};
use crate::control::room::Room;
use crate::control::store::{Expectation, Store, Transaction};
use crate::control::usage::Usage;

/// What stands under a quota key: it only matters when it was put.
const QUOTA_VALUE: &[u8] = b"{\"version\":1}";

/// Open shards of a stream at most, with limits of accounts or without: each has a record in the
/// store and a place in memory, and a count beyond that is a slip of whoever typed it. Fifty times
/// what an account has by default.
const STREAM_SHARDS_MAX: u64 = 1_000_000;

/// What a change is judged by.
pub(super) struct Quota {
    /// What the account has in the region.
    pub(super) usage: Usage,
    room: KnownRoom,
    /// Whether more must be known of the node's room than is, to judge by it.
    is_open: Cell<bool>,
}

/// What is known of the node's room for shards. To know more costs more.
#[derive(Clone, Copy)]
enum KnownRoom {
    /// Nobody wanted to know.
    Nothing,
    /// There is so much at the least.
    AtLeast(Room),
    /// There is so much.
    Exactly(Room),
    /// The node cannot be asked. What is changed waits for it anyway.
    Unknown,
}

impl Quota {
    fn new(usage: Usage, room: KnownRoom) -> Quota {
        Quota { usage, room, is_open: Cell::new(false) }
    }

    /// Whether the node can open as many new shards as a change makes, short-lived ones among them:
    /// with limits of accounts or without. To be asked last: when too little is known the answer
    /// is no, and the change is judged again by more.
    ///
    /// # Errors
    /// LimitExceededException, with what to do.
    pub(super) fn check_room(&self, stream: &StreamName, made: u64) -> Result<(), ApiError> {
        let room = match self.room {
            _ if made == 0 => return Ok(()),
            KnownRoom::Unknown => return Ok(()),
            KnownRoom::AtLeast(room) | KnownRoom::Exactly(room) if made <= room.free => {
                return Ok(());
            }
            KnownRoom::Exactly(room) => room,
            KnownRoom::Nothing | KnownRoom::AtLeast(_) => {
                self.is_open.set(true);
                return Err(ApiError::internal_failure());
            }
        };
        Err(no_room(stream, made, room))
    }
}

fn no_room(stream: &StreamName, made: u64, room: Room) -> ApiError {
    let promised = match room.promised {
        0 => String::new(),
        promised => format!(
            " (without those that streams being created or resharded are still to get: {promised})"
        ),
    };
    ApiError::limit_exceeded(format!(
        "This request would exceed the storage node's room for shards, which is no limit of the \
         account. Shards that it has room for: {}{promised}. Shards that this request would make \
         for stream {} under account {}: {made}. Delete streams that are not needed, or give \
         the node more cores or another data directory (docs/operations.md, Shards).",
        room.free, stream.name, stream.account_id
    ))
}

impl<S: Store + Clone> Service<S> {
    /// What an account has in a region now.
    pub(super) fn usage(&self, account_id: &str, region: &str) -> Usage {
        self.ground.catalog.usage(account_id, region)
    }

    /// Makes a change that uses up a quota of the account and region of a stream, and waits until
    /// it is seen. `judge` is told what the account has, and answers the transaction, which must
    /// change a record of the stream; it is asked again when others were quicker, and when it asks
    /// for room of which too little is known.
    ///
    /// # Errors
    /// What `judge` says, or that the store did not take it.
    pub(super) async fn commit_in_quota(
        &self,
        stream: &StreamName,
        mut judge: impl FnMut(&Quota) -> Result<Option<Transaction>, ApiError>,
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
            let usage = self.usage(account_id, region);
            let Some(transaction) = self.judged(usage, &mut judge).await? else { return Ok(()) };
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

    /// What `judge` says when it knows enough of the node's room.
    async fn judged(
        &self,
        usage: Usage,
        judge: &mut impl FnMut(&Quota) -> Result<Option<Transaction>, ApiError>,
    ) -> Result<Option<Transaction>, ApiError> {
        let (node, catalog) = (&self.ground.node, &self.ground.catalog);
        let mut room = KnownRoom::Nothing;
        loop {
            let quota = Quota::new(usage, room);
            let judged = judge(&quota);
            if !quota.is_open.get() {
                return judged;
            }
            let asked = match room {
                KnownRoom::Nothing => Room::at_least(node, catalog).await.map(KnownRoom::AtLeast),
                _ => Room::exactly(node, catalog).await.map(KnownRoom::Exactly),
            };
            room = asked.unwrap_or_else(|error| {
                tracing::debug!(%error, "the node does not tell its room for shards");
                KnownRoom::Unknown
            });
        }
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

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    #[test]
    fn room_is_judged_by_when_enough_is_known_of_it() {
        let stream = StreamName {
            account_id: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            name: "orders".to_owned(),
        };
        let judge = |room, made| {
            let quota = Quota::new(Usage::default(), room);
            let judged = quota.check_room(&stream, made);
            (judged, quota.is_open.get())
        };
        let room = Room { free: 3, promised: 0 };
        // What makes no shards needs no room.
        for known in [KnownRoom::Nothing, KnownRoom::Unknown, KnownRoom::AtLeast(room)] {
            assert_eq!(judge(known, 0), (Ok(()), false));
        }
        assert_eq!(judge(KnownRoom::Exactly(Room { free: 0, ..room }), 0), (Ok(()), false));
        assert!(judge(KnownRoom::Nothing, 1).1, "it is to be asked");
        assert_eq!(judge(KnownRoom::Unknown, 1000), (Ok(()), false));
        assert_eq!(judge(KnownRoom::AtLeast(room), 3), (Ok(()), false));
        assert!(judge(KnownRoom::AtLeast(room), 4).1, "there may be more");
        assert_eq!(judge(KnownRoom::Exactly(room), 3), (Ok(()), false));
        let (refused, is_open) = judge(KnownRoom::Exactly(Room { promised: 7, ..room }), 4);
        let error = refused.expect_err("too many");
        assert_eq!((error.kind, is_open), (ErrorKind::LimitExceeded, false));
        for told in ["room for: 3 (without", "to get: 7)", "123456789012: 4.", "more cores"] {
            assert!(error.message.contains(told), "{error}");
        }
        let error = judge(KnownRoom::Exactly(room), 4).0.expect_err("too many");
        assert!(error.message.contains("room for: 3. "), "{error}");
    }
}
