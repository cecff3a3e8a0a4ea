//! Subscriptions: a shard's batches pushed as they commit, as far as the credit goes.
//!
//! A subscription is a fetch that begins again where it ended: it waits for a commit like any
//! other, takes batches from the tail in memory and reads what is not there any more. So one copy
//! serves every subscriber that keeps up, and one that does not falls back to the log by itself.
//! Between two fetches a subscription rests: without credit until it is granted more, and with
//! too much unsent output until that has left.

use std::collections::{HashMap, VecDeque};

use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FetchFrom, FetchRequest};
use thalweg_wire::frame::{FrameHeader, FrameKind};
use thalweg_wire::ids::Offset;
use thalweg_wire::limits::{
    FETCH_BYTES_MAX, SUBSCRIPTION_SILENCE_MS_MIN, SUBSCRIPTIONS_PER_CONNECTION_MAX,
};
use thalweg_wire::subscribe::{Credit, SubscribeRequest};

use super::connection::ConnectionKey;
use super::fetch::Asker;
use super::machine::Core;
use crate::io::{Io, Piece};

/// Bytes of batches in one event, unless a single batch is larger: so that many subscriptions of
/// one connection take turns.
const EVENT_BYTES_MAX: u32 = 1 << 20;
const _: () = assert!(EVENT_BYTES_MAX <= FETCH_BYTES_MAX);

/// A subscription.
#[derive(Clone, Copy, Debug)]
struct Subscription {
    connection: ConnectionKey,
    correlation: u64,
    shard: u32,
    /// What its next fetch asks for, but for the bytes.
    request: FetchRequest,
    /// Bytes of batches that may still be sent.
    credit: u64,
    /// The fetch that is under way for it.
    fetch: Option<u32>,
}

/// The subscriptions of a core.
#[derive(Debug, Default)]
pub struct Subscriptions {
    all: HashMap<u64, Subscription>,
    serials: u64,
    /// Those that may go on.
    ready: VecDeque<u64>,
}

impl Subscriptions {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The places of the shards that they read.
    pub fn shards(&self) -> impl Iterator<Item = u32> + '_ {
        self.all.values().map(|subscription| subscription.shard)
    }

    /// What a subscription may be sent now, in bytes.
    #[must_use]
    pub fn credit(&self, serial: u64) -> u64 {
        self.all.get(&serial).map_or(0, |subscription| subscription.credit)
    }

    /// Whether the subscription has not ended.
    #[must_use]
    pub fn has(&self, serial: u64) -> bool {
        self.all.contains_key(&serial)
    }

    /// A connection that held these back may be sent more.
    pub fn resume(&mut self, serials: impl Iterator<Item = u64>) {
        self.ready.extend(serials);
    }

    /// A fetch is under way for the subscription.
    pub fn set_fetch(&mut self, serial: u64, fetch: u32) {
        if let Some(subscription) = self.all.get_mut(&serial) {
            subscription.fetch = Some(fetch);
        }
    }
}

impl<I: Io> Core<I> {
    /// Opens a subscription.
    pub(super) fn subscribe(&mut self, key: ConnectionKey, header: &FrameHeader, piece: Piece) {
        let request = match SubscribeRequest::decode(self.io.memory().piece(piece)) {
            Ok(SubscribeRequest(request)) => {
                let wait_ms = request.wait_ms.max(SUBSCRIPTION_SILENCE_MS_MIN);
                FetchRequest { wait_ms, ..request }
            }
            Err(error) => return self.refuse_connection(key, error.refusal()),
        };
        let refuse = |core: &mut Core<I>, why: Refusal| {
            core.refuse_reader(key, FrameKind::SubscribeEvent, header.correlation, None, why);
        };
        let shard = match self.place_of(request.shard) {
            Ok(shard) => shard,
            Err(refusal) => return refuse(self, refusal),
        };
        let serial = self.subscriptions.serials;
        let Some(connection) = self.connection(key) else { return };
        if connection.subscriptions.len() >= SUBSCRIPTIONS_PER_CONNECTION_MAX as usize {
            return refuse(self, ErrorCode::Overloaded.into());
        }
        if connection.subscriptions.iter().any(|(name, _)| *name == header.correlation) {
            // Its events could not be told from the other's.
            return self.refuse_connection(key, ErrorCode::Malformed.into());
        }
        connection.subscriptions.push((header.correlation, serial));
        self.subscriptions.serials += 1;
        self.subscriptions.all.insert(
            serial,
            Subscription {
                connection: key,
                correlation: header.correlation,
                shard,
                request,
                credit: u64::from(request.bytes_max),
                fetch: None,
            },
        );
        self.subscriptions.ready.push_back(serial);
    }

    /// Grants a subscription more, or ends it. One that has ended meanwhile is no error.
    pub(super) fn credit(&mut self, key: ConnectionKey, piece: Piece) {
        let credit = match Credit::decode(self.io.memory().piece(piece)) {
            Ok(credit) => credit,
            Err(error) => return self.refuse_connection(key, error.refusal()),
        };
        let (Credit::Grant { subscription: name, .. } | Credit::Cancel { subscription: name }) =
            credit;
        let Some(connection) = self.connection(key) else { return };
        let found = connection.subscriptions.iter().find(|(correlation, _)| *correlation == name);
        let Some((_, serial)) = found.copied() else { return };
        match credit {
            Credit::Grant { bytes, .. } => {
                if let Some(subscription) = self.subscriptions.all.get_mut(&serial) {
                    subscription.credit = subscription.credit.saturating_add(u64::from(bytes));
                    self.subscriptions.ready.push_back(serial);
                }
            }
            Credit::Cancel { .. } => self.end_subscription(serial),
        }
    }

    /// Subscriptions that may go on do, each for one event at a time.
    pub(super) fn resume_subscriptions(&mut self) {
        while let Some(serial) = self.subscriptions.ready.pop_front() {
            self.go_on_subscription(serial);
        }
    }

    fn go_on_subscription(&mut self, serial: u64) {
        let Some(subscription) = self.subscriptions.all.get(&serial).copied() else { return };
        if subscription.fetch.is_some() || subscription.credit == 0 {
            return;
        }
        let Some(connection) = self.connection(subscription.connection) else { return };
        if !connection.takes_events() {
            connection.held_back.push(serial);
            return;
        }
        let bytes_max = subscription.credit.min(u64::from(EVENT_BYTES_MAX)) as u32;
        let request = FetchRequest { bytes_max, ..subscription.request };
        let asker = Asker {
            connection: subscription.connection,
            correlation: subscription.correlation,
            subscription: Some(serial),
        };
        self.start_fetch(asker, subscription.shard, request);
    }

    /// An event was sent: what it held is used up, and the subscription goes on behind it; from a
    /// time that nothing has reached yet, still from that time.
    pub(super) fn event_sent(&mut self, serial: u64, batch_bytes: u64, next: Offset) {
        let Some(subscription) = self.subscriptions.all.get_mut(&serial) else { return };
        subscription.fetch = None;
        subscription.credit = subscription.credit.saturating_sub(batch_bytes);
        if batch_bytes > 0 || !matches!(subscription.request.from, FetchFrom::Time(_)) {
            subscription.request.from = FetchFrom::Offset(next);
        }
        self.subscriptions.ready.push_back(serial);
    }

    /// The next batch is larger than the credit: the subscription rests until there is more.
    pub(super) fn rest_subscription(&mut self, serial: u64, from: FetchFrom) {
        if let Some(subscription) = self.subscriptions.all.get_mut(&serial) {
            subscription.fetch = None;
            // What was the end of the shard when it began to wait is so no more.
            subscription.request.from = from;
        }
    }

    /// No event follows any more.
    pub(super) fn end_subscription(&mut self, serial: u64) {
        let Some(subscription) = self.subscriptions.all.remove(&serial) else { return };
        if let Some(fetch) = subscription.fetch {
            self.forget_waiting(fetch);
        }
        if let Some(connection) = self.connection(subscription.connection) {
            connection.subscriptions.retain(|(_, other)| *other != serial);
        }
    }
}
