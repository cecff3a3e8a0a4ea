//! Fetch frames: reading a shard by offset or by time.

use crate::codec::{put, u16_at, u32_at, u64_at};
use crate::error::{Refusal, status_from_number, status_number};
use crate::frame::{FrameError, FrameKind, exact};
use crate::ids::{Epoch, Offset, ShardId, StreamId};
use crate::limits;

/// Bytes of a [`FetchRequest`].
pub const FETCH_REQUEST_BYTES: usize = 48;
/// Bytes of a [`FetchAnswer`], before the batches.
pub const FETCH_ANSWER_BYTES: usize = 64;

/// Where reading begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchFrom {
    /// At the batch that holds this offset.
    Offset(Offset),
    /// At the first batch appended at or after this time, milliseconds since 1970.
    Time(u64),
    /// At the oldest record that is kept.
    Earliest,
    /// Behind the last committed record.
    Latest,
}

/// Asks for committed batches of one shard. The first batch of the answer may begin before the
/// offset asked for: batches are not cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchRequest {
    /// The shard.
    pub shard: ShardId,
    /// The extent to read, or zero for whatever extents of the shard this node holds.
    pub epoch: Epoch,
    /// Where to begin.
    pub from: FetchFrom,
    /// Bytes of batches to answer with; at least one batch is answered whatever its size.
    pub bytes_max: u32,
    /// How long to wait at the end of the shard for something to answer with, milliseconds.
    pub wait_ms: u32,
}

impl FetchRequest {
    /// Stream (u64), shard (u32), from (u32), epoch (u64), value (u64), bytes (u32), wait (u32),
    /// zero (u64).
    #[must_use]
    pub fn encode(&self) -> [u8; FETCH_REQUEST_BYTES] {
        let (from, value) = match self.from {
            FetchFrom::Offset(offset) => (0_u32, offset.0),
            FetchFrom::Time(time_ms) => (1, time_ms),
            FetchFrom::Earliest => (2, 0),
            FetchFrom::Latest => (3, 0),
        };
        let mut bytes = [0; FETCH_REQUEST_BYTES];
        put(&mut bytes, 0, self.shard.stream.0.to_le_bytes());
        put(&mut bytes, 8, self.shard.index.to_le_bytes());
        put(&mut bytes, 12, from.to_le_bytes());
        put(&mut bytes, 16, self.epoch.0.to_le_bytes());
        put(&mut bytes, 24, value.to_le_bytes());
        put(&mut bytes, 32, self.bytes_max.to_le_bytes());
        put(&mut bytes, 36, self.wait_ms.to_le_bytes());
        bytes
    }

    /// Takes a request apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<FetchRequest, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::Fetch, what };
        exact(payload, FETCH_REQUEST_BYTES, FrameKind::Fetch)?;
        let value = u64_at(payload, 24);
        let from = match u32_at(payload, 12) {
            0 => FetchFrom::Offset(Offset(value)),
            1 => FetchFrom::Time(value),
            2 if value == 0 => FetchFrom::Earliest,
            3 if value == 0 => FetchFrom::Latest,
            _ => return Err(malformed("no such place to begin")),
        };
        let (bytes_max, wait_ms) = (u32_at(payload, 32), u32_at(payload, 36));
        if bytes_max > limits::FETCH_BYTES_MAX || wait_ms > limits::FETCH_WAIT_MS_MAX {
            return Err(malformed("asks for more bytes, or waits longer, than may be"));
        }
        if u64_at(payload, 40) != 0 {
            return Err(malformed("reserved bytes are not zero"));
        }
        let shard = ShardId { stream: StreamId(u64_at(payload, 0)), index: u32_at(payload, 8) };
        Ok(FetchRequest { shard, epoch: Epoch(u64_at(payload, 16)), from, bytes_max, wait_ms })
    }
}

/// What precedes the batches of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchAnswer {
    /// Served, or why not; a refusal carries no batches.
    pub status: Result<(), Refusal>,
    /// Oldest offset that is kept.
    pub earliest: Offset,
    /// Where to fetch from next.
    pub next: Offset,
    /// End of the committed records when the answer was made.
    pub committed: Offset,
    /// Append time of the last committed batch, milliseconds since 1970; zero before the first.
    pub last_append_ms: u64,
    /// Whether the extent is sealed and `next` is its end: nothing follows here.
    pub sealed_end: bool,
}

impl FetchAnswer {
    /// Status (u16), flags (u16), zero (u32), hint (u64), earliest, next, committed, last append
    /// time (u64 each), zero.
    #[must_use]
    pub fn encode(&self) -> [u8; FETCH_ANSWER_BYTES] {
        let mut bytes = [0; FETCH_ANSWER_BYTES];
        let status = status_number(self.status.map_err(|refusal| refusal.code));
        put(&mut bytes, 0, status.to_le_bytes());
        put(&mut bytes, 2, u16::from(self.sealed_end).to_le_bytes());
        put(&mut bytes, 8, self.status.map_or_else(|refusal| refusal.hint, |()| 0).to_le_bytes());
        put(&mut bytes, 16, self.earliest.0.to_le_bytes());
        put(&mut bytes, 24, self.next.0.to_le_bytes());
        put(&mut bytes, 32, self.committed.0.to_le_bytes());
        put(&mut bytes, 40, self.last_append_ms.to_le_bytes());
        bytes
    }

    /// Takes the head of a fetch answer's payload apart; the batches follow it.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(payload: &[u8]) -> Result<FetchAnswer, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::FetchAnswer, what };
        if payload.len() < FETCH_ANSWER_BYTES {
            return Err(malformed("shorter than its fixed part"));
        }
        let status = status_from_number(u16_at(payload, 0)).ok_or(malformed("unknown status"))?;
        let hint = u64_at(payload, 8);
        Ok(FetchAnswer {
            status: status.map_err(|code| Refusal { code, hint }),
            sealed_end: match u16_at(payload, 2) {
                0 => false,
                1 => true,
                _ => return Err(malformed("unknown flags")),
            },
            earliest: Offset(u64_at(payload, 16)),
            next: Offset(u64_at(payload, 24)),
            committed: Offset(u64_at(payload, 32)),
            last_append_ms: u64_at(payload, 40),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn requests_round_trip_and_bounds_hold() {
        let shard = ShardId { stream: StreamId(1), index: 2 };
        let froms = [
            FetchFrom::Offset(Offset(4)),
            FetchFrom::Time(5),
            FetchFrom::Earliest,
            FetchFrom::Latest,
        ];
        for from in froms {
            let request =
                FetchRequest { shard, epoch: Epoch(3), from, bytes_max: 1024, wait_ms: 7 };
            assert_eq!(FetchRequest::decode(&request.encode()), Ok(request));
            let greedy = FetchRequest { bytes_max: limits::FETCH_BYTES_MAX + 1, ..request };
            assert!(FetchRequest::decode(&greedy.encode()).is_err());
            let patient = FetchRequest { wait_ms: limits::FETCH_WAIT_MS_MAX + 1, ..request };
            assert!(FetchRequest::decode(&patient.encode()).is_err());
            assert!(FetchRequest::decode(&request.encode()[1..]).is_err());
        }
    }

    #[test]
    fn answers_round_trip() {
        let answer = FetchAnswer {
            status: Ok(()),
            earliest: Offset(1),
            next: Offset(2),
            committed: Offset(3),
            last_append_ms: 4,
            sealed_end: true,
        };
        assert_eq!(FetchAnswer::decode(&answer.encode()), Ok(answer));
        let refused = FetchAnswer { status: Err(Refusal::new(ErrorCode::Trimmed, 8)), ..answer };
        assert_eq!(FetchAnswer::decode(&refused.encode()), Ok(refused));
        assert!(FetchAnswer::decode(&answer.encode()[..63]).is_err());
    }
}
