//! What can go wrong between a client and a node.

use std::net::SocketAddr;

use thalweg_wire::batch::BatchError;
use thalweg_wire::error::Refusal;
use thalweg_wire::frame::FrameError;
use thalweg_wire::ids::{Offset, ShardId};
use thalweg_wire::limits::{PARTITION_KEY_BYTES_MAX, RECORD_BYTES_MAX};
use thiserror::Error;

/// Why a client cannot go on.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("the connection to {address} failed ({source}): is the node running there?")]
    Connection {
        /// The node's core.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node sent what is no frame.
    #[error("the node sent what is no frame: {0}")]
    Frame(#[from] FrameError),
    /// The node sent a frame that answers nothing.
    #[error("the node answered with a {kind} frame where none belongs")]
    UnexpectedAnswer {
        /// The frame's kind.
        kind: String,
    },
    /// The node refused.
    #[error("the node refused: {0}")]
    Refused(#[from] Refusal),
    /// A batch that was read is damaged.
    #[error("{shard}: a batch is damaged: {error}")]
    Damaged {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        error: BatchError,
    },
    /// Records are missing between what was read.
    #[error("{shard}: offset {} was expected and {} came", expected.0, found.0)]
    Gap {
        /// The shard.
        shard: ShardId,
        /// Where reading should have gone on.
        expected: Offset,
        /// Where it went on.
        found: Offset,
    },
    /// No node could be reached for too long.
    #[error("no node answered for {seconds} s; last: {last}")]
    Unreachable {
        /// How long it was tried.
        seconds: u64,
        /// The last failure.
        last: Box<ClientError>,
    },
    /// A record that no batch can hold.
    #[error(
        "a record with a key of {key_bytes} bytes and {data_bytes} bytes of data: a key has 1 to \
         {PARTITION_KEY_BYTES_MAX}, both together at most {RECORD_BYTES_MAX}; split the data"
    )]
    RecordSize {
        /// Bytes of its partition key.
        key_bytes: usize,
        /// Bytes of its data.
        data_bytes: usize,
    },
    /// A hash key that no shard of the stream covers.
    #[error("no open shard covers the hash key: the stream's shards are not all open")]
    NoShard,
}
