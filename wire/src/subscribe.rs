//! Subscribe frames: a shard's batches pushed as they commit, under credit.
//!
//! Events look like fetch answers and carry the correlation of the subscription. The node sends
//! no more bytes of batches than it was granted, so that a slow reader costs no memory.

use crate::codec::{put, u32_at, u64_at};
use crate::fetch::{FETCH_REQUEST_BYTES, FetchRequest};
use crate::frame::{FrameError, FrameKind, exact};

/// Bytes of a [`SubscribeRequest`].
pub const SUBSCRIBE_REQUEST_BYTES: usize = FETCH_REQUEST_BYTES;
/// Bytes of a [`Credit`].
pub const CREDIT_BYTES: usize = 16;

/// Opens a subscription. The layout is a fetch's; `bytes_max` is the first credit and `wait_ms`
/// the longest silence before an event without batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscribeRequest(pub FetchRequest);

impl SubscribeRequest {
    /// As a fetch request.
    #[must_use]
    pub fn encode(&self) -> [u8; SUBSCRIBE_REQUEST_BYTES] {
        self.0.encode()
    }

    /// Takes a request apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<SubscribeRequest, FrameError> {
        FetchRequest::decode(payload).map(SubscribeRequest)
    }
}

/// Grants a subscription more bytes, or ends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Credit {
    /// So many bytes of batches more.
    Grant {
        /// Correlation of the subscription.
        subscription: u64,
        /// Bytes.
        bytes: u32,
    },
    /// No event is wanted any more.
    Cancel {
        /// Correlation of the subscription.
        subscription: u64,
    },
}

impl Credit {
    /// Subscription (u64), bytes (u32), cancel (u32).
    #[must_use]
    pub fn encode(&self) -> [u8; CREDIT_BYTES] {
        let (subscription, bytes, cancel) = match *self {
            Credit::Grant { subscription, bytes } => (subscription, bytes, 0_u32),
            Credit::Cancel { subscription } => (subscription, 0, 1),
        };
        let mut payload = [0; CREDIT_BYTES];
        put(&mut payload, 0, subscription.to_le_bytes());
        put(&mut payload, 8, bytes.to_le_bytes());
        put(&mut payload, 12, cancel.to_le_bytes());
        payload
    }

    /// Takes a credit apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<Credit, FrameError> {
        exact(payload, CREDIT_BYTES, FrameKind::Credit)?;
        let (subscription, bytes) = (u64_at(payload, 0), u32_at(payload, 8));
        match (bytes, u32_at(payload, 12)) {
            (1.., 0) => Ok(Credit::Grant { subscription, bytes }),
            (0, 1) => Ok(Credit::Cancel { subscription }),
            _ => Err(FrameError::Payload {
                kind: FrameKind::Credit,
                what: "neither a grant of some bytes nor a cancellation",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_round_trip() {
        let grant = Credit::Grant { subscription: 3, bytes: 9 };
        let cancel = Credit::Cancel { subscription: 3 };
        for credit in [grant, cancel] {
            assert_eq!(Credit::decode(&credit.encode()), Ok(credit));
        }
        assert!(Credit::decode(&[0; CREDIT_BYTES]).is_err());
    }
}
