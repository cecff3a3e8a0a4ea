//! What a server counts, for its metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A server's counters at one time. Those without another unit count from the start on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerCounts {
    /// Connections that are open.
    pub connections_open: u64,
    /// Connections that were accepted.
    pub connections_accepted: u64,
    /// Connections that were closed at once for want of room.
    pub connections_refused: u64,
    /// Connections that were closed, and HTTP/2 streams that were reset, because their client was
    /// too slow.
    pub clients_cut: u64,
    /// Requests whose head came, those for health and metrics not counted.
    pub requests: u64,
    /// Requests that are under way.
    pub requests_open: u64,
    /// Requests that were answered with 503 for want of room.
    pub requests_refused: u64,
    /// Event streams that are open.
    pub event_streams_open: u64,
    /// Bytes of bodies in memory.
    pub bodies_bytes: u64,
    /// Bytes of answers that wait for their clients.
    pub answers_bytes: u64,
}

/// The counters that are no one else's.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections_accepted: Counter,
    pub(super) connections_refused: Counter,
    pub(super) clients_cut: Counter,
    pub(super) requests: Counter,
    pub(super) requests_refused: Counter,
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) -> u64 {
        self.0.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
