//! What a server counts, for its metrics.

use crate::kinesis::error::ErrorKind;
use crate::metrics::Counter;

/// A server's counters at one time. Those without another unit count from the start on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerCounts {
    /// Connections that are open.
    pub connections_open: u64,
    /// Connections that were accepted.
    pub connections_accepted: u64,
    /// Idle connections that were closed for new ones.
    pub connections_displaced: u64,
    /// Connections that were closed for want of room before they were served.
    pub connections_refused: u64,
    /// Connections that were closed, and HTTP/2 streams that were reset, because their client was
    /// too slow.
    pub clients_cut: u64,
    /// Requests whose head came, those for health and metrics not counted.
    pub requests: u64,
    /// Requests that are under way.
    pub requests_open: u64,
    /// Requests that the server itself refused.
    pub refusals: Refusals,
    /// Event streams that are open.
    pub event_streams_open: u64,
    /// Bytes of bodies in memory.
    pub bodies_bytes: u64,
    /// Bytes of answers that are made, or wait for their clients.
    pub answers_bytes: u64,
}

/// How many requests a server itself refused, by the type of the error: before the API was asked,
/// or because it did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusals([u64; ErrorKind::ALL.len()]);

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals([0; ErrorKind::ALL.len()])
    }
}

impl Refusals {
    /// How many with this type.
    #[must_use]
    pub fn of(&self, kind: ErrorKind) -> u64 {
        self.0[kind as usize]
    }

    /// Each type, and how many.
    pub fn by_kind(&self) -> impl Iterator<Item = (ErrorKind, u64)> + '_ {
        ErrorKind::ALL.iter().copied().zip(self.0)
    }
}

/// The counters that are no one else's.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) connections_accepted: Counter,
    pub(super) connections_displaced: Counter,
    pub(super) connections_refused: Counter,
    pub(super) clients_cut: Counter,
    pub(super) requests: Counter,
    /// By [`ErrorKind`].
    refusals: [Counter; ErrorKind::ALL.len()],
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            connections_accepted: Counter::default(),
            connections_displaced: Counter::default(),
            connections_refused: Counter::default(),
            clients_cut: Counter::default(),
            requests: Counter::default(),
            refusals: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Counters {
    /// The server itself refused a request.
    pub(super) fn note_refusal(&self, kind: ErrorKind) {
        self.refusals[kind as usize].add_one();
    }

    pub(super) fn refusals(&self) -> Refusals {
        Refusals(std::array::from_fn(|place| self.refusals[place].get()))
    }
}
