//! The seam between a core and the world: operations go down, completions come up.
//!
//! A core emits operations through [`Io`] and is told of their completions later, in whatever
//! order they happen. In production the other side is a ring ([`ring`]), in tests a seeded
//! simulator ([`sim`]), in benchmarks a device that does nothing ([`noop`]).

pub mod arena;
pub mod noop;
pub mod ring;
pub mod sim;
pub mod verdict;
pub mod wake;

pub use arena::{Arena, BufferId, Piece};
pub use verdict::Errno;

/// An accepted connection, until it is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ConnectionId(pub u32);

/// A file handed to the ring, until it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FileId(pub u32);

/// What an operation was, so that its completion finds its way. The core makes them; the other
/// side brings them back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// A connection was accepted; the result is its [`ConnectionId`].
    Accept,
    /// A receive on this connection; the result counts bytes, 0 at the peer's end.
    Receive(ConnectionId),
    /// A send on this connection; the result counts bytes.
    Send(ConnectionId),
    /// Both directions of the connection were ended.
    Shutdown(ConnectionId),
    /// The connection is closed.
    Close(ConnectionId),
    /// A write of unit `unit` of log `log`; the result counts bytes.
    Write {
        /// Index of the log in its core.
        log: u32,
        /// The writer's number for what it writes.
        unit: u64,
    },
    /// A sync of log `log`.
    Sync {
        /// Index of the log in its core.
        log: u32,
    },
    /// A read from a log; the result counts bytes.
    Read {
        /// The core's number for it.
        read: u32,
    },
    /// Messages wait in the core's mailbox.
    Wake,
}

/// An operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Which.
    pub token: Token,
    /// What the kernel said: a count, or an error.
    pub result: Result<u32, Errno>,
}

/// How long [`Io::poll`] may wait for a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all: there is other work.
    No,
    /// So many microseconds.
    UpTo(u64),
}

/// A network that accepts, and disks that write. At most one receive and one send are in flight
/// on a connection; a buffer that is received or read into cannot be looked at meanwhile.
pub trait Io {
    /// The memory that operations name.
    fn memory(&self) -> &Arena;
    /// The memory that operations name, to be changed.
    fn memory_mut(&mut self) -> &mut Arena;

    /// Receives into `into`; with `all`, completes only when it is full or the stream ends.
    fn receive(&mut self, connection: ConnectionId, into: Piece, all: bool);
    /// Sends the pieces in order.
    fn send(&mut self, connection: ConnectionId, pieces: &[Piece]);
    /// Ends both directions: what is in flight on the connection completes soon. It completes
    /// itself, and must have before the connection is closed: a ring looks a connection up when it
    /// gets to the operation, and its place may be another's by then.
    fn shutdown(&mut self, connection: ConnectionId);
    /// Closes a connection on which nothing is in flight, a shutdown included.
    fn close(&mut self, connection: ConnectionId);

    /// Writes `from` at byte `at`; with `durable`, completes only when it would survive a crash.
    fn write(&mut self, token: Token, file: FileId, at: u64, from: Piece, durable: bool);
    /// Makes durable what had completed on the file when this was called.
    fn sync(&mut self, token: Token, file: FileId);
    /// Reads at byte `at`.
    fn read(&mut self, token: Token, file: FileId, at: u64, into: Piece);

    /// Starts what was emitted; waits as `wait` says; appends what has completed.
    ///
    /// # Errors
    /// When the mechanism itself fails; the core cannot go on.
    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<(), Errno>;
}
