//! What becomes of a batch.

use std::time::Duration;

use thalweg_wire::error::Refusal;
use thalweg_wire::ids::Offset;
use thiserror::Error;

/// A stored batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// When the shard's leader took it, milliseconds since 1970.
    pub append_time_ms: u64,
    /// Whether an earlier try had stored it.
    pub duplicate: bool,
}

/// Why a batch was not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProducerError {
    /// It was refused, and is not stored.
    #[error("the batch was refused: {0}")]
    Refused(Refusal),
    /// It was refused after an earlier try whose answer was lost: it may be stored, once.
    #[error("the batch may or may not be stored (it was refused after a lost answer: {0})")]
    OutcomeUnknown(Refusal),
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Place of the shard among the producer's lanes.
    pub lane: usize,
    /// What the caller named the batch; zero for those that the producer made of records.
    pub tag: u64,
    /// Records in it.
    pub records: u32,
    /// Bytes of its body.
    pub bytes: usize,
    /// From when it was handed over to its answer.
    pub latency: Duration,
    /// Stored, or why not.
    pub result: Result<Written, ProducerError>,
}
