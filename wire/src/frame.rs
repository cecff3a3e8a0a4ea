//! The frame: what a connection carries in either direction. A 32-byte header names kind, length
//! and correlation; the payload follows. Answers carry the correlation of their request and may
//! overtake each other.

use thiserror::Error;

use crate::checksum::crc32c;
use crate::codec::{put, u16_at, u32_at, u64_at};
use crate::error::{ErrorCode, Refusal};
use crate::limits;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// First four bytes of a frame: "THWF".
pub const MAGIC: u32 = u32::from_le_bytes(*b"THWF");
/// The protocol version this build speaks.
pub const VERSION: u8 = 1;
/// Alignment of each batch within a payload.
pub const PAYLOAD_ALIGN: usize = crate::batch::BATCH_ALIGN;
const CRC_AT: usize = 28;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal, $payload_max:expr;)*) => {
        /// What a frame is. Requests are odd, what answers them is the even number after.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum FrameKind { $($(#[doc = $doc])* $name = $value,)* }

        impl FrameKind {
            /// Every kind, in order.
            pub const ALL: &'static [FrameKind] = &[$(FrameKind::$name),*];

            /// The kind with this number.
            #[must_use]
            pub fn from_number(number: u8) -> Option<FrameKind> {
                match number { $($value => Some(FrameKind::$name),)* _ => None }
            }

            /// Largest payload of the kind: a longer one is refused before it is received.
            #[must_use]
            pub const fn payload_bytes_max(self) -> u32 {
                match self { $(FrameKind::$name => $payload_max,)* }
            }
        }
    };
}

/// Payload of commands and small answers.
const SMALL: u32 = 512;
/// Payload of a fetch's answer: what was asked for, or one batch of the largest size.
const FETCHED: u32 = limits::FRAME_PAYLOAD_BYTES_MAX + limits::FETCH_BYTES_MAX;

kinds! {
    /// Asks who the node is; empty.
    Hello = 1, SMALL;
    /// [`crate::control::NodeDescription`].
    HelloAnswer = 2, 4096;
    /// Batches to append; `items` counts them.
    Produce = 3, limits::FRAME_PAYLOAD_BYTES_MAX;
    /// One [`crate::produce::Ack`] a batch, in the request's order; then the
    /// [`crate::produce::Verdicts`] of those that were refused in part.
    ProduceAnswer = 4, limits::FRAME_BATCHES_MAX * crate::produce::ACK_BYTES as u32
        + limits::FRAME_VERDICT_BYTES_MAX;
    /// [`crate::fetch::FetchRequest`].
    Fetch = 5, SMALL;
    /// [`crate::fetch::FetchAnswer`], then batches; `items` counts them.
    FetchAnswer = 6, FETCHED;
    /// [`crate::subscribe::SubscribeRequest`].
    Subscribe = 7, SMALL;
    /// Pushed under a subscription's correlation: as a fetch's answer.
    SubscribeEvent = 8, FETCHED;
    /// [`crate::subscribe::Credit`]; has no answer.
    Credit = 9, SMALL;
    /// [`crate::control::OpenExtent`].
    OpenExtent = 11, SMALL;
    /// [`crate::control::FenceExtent`].
    FenceExtent = 13, SMALL;
    /// [`crate::control::SealExtent`].
    SealExtent = 15, SMALL;
    /// [`crate::control::TrimShard`].
    TrimShard = 17, SMALL;
    /// [`crate::control::ControlAnswer`]: answers the four above, and [`FrameKind::DeleteShard`].
    ControlAnswer = 18, SMALL;
    /// [`crate::control::DescribeRequest`].
    Describe = 19, SMALL;
    /// [`crate::control::ShardDescription`] a shard; `items` counts them.
    DescribeAnswer = 20,
        limits::DESCRIBE_SHARDS_MAX * crate::control::SHARD_DESCRIPTION_BYTES as u32;
    /// [`crate::control::DeleteShard`].
    DeleteShard = 21, SMALL;
    /// [`ErrorAnswer`]: the request as a whole was refused. After some codes the connection
    /// closes.
    Error = 254, SMALL;
}

/// What is wrong with a frame. Each closes the connection: the next frame cannot be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// Not a frame.
    #[error("a frame begins with THWF, not {found:#010x}: the peer speaks another protocol")]
    Magic {
        /// What stands there.
        found: u32,
    },
    /// Another protocol version.
    #[error("protocol version {found}; this build speaks {VERSION}")]
    Version {
        /// What stands there.
        found: u8,
    },
    /// The header's checksum does not match.
    #[error("the frame header's checksum does not match: it was damaged on the way")]
    Checksum,
    /// A kind that no version has.
    #[error("frame kind {found} does not exist")]
    Kind {
        /// What stands there.
        found: u8,
    },
    /// Longer than its kind may be.
    #[error("a {kind:?} frame of {found} bytes; the limit is {limit}")]
    TooLarge {
        /// The kind.
        kind: FrameKind,
        /// Bytes of the payload.
        found: u32,
        /// Bytes that the kind may have.
        limit: u32,
    },
    /// A field of the payload is out of its range, or the payload has another length.
    #[error("the payload of a {kind:?} frame is malformed: {what}")]
    Payload {
        /// The kind.
        kind: FrameKind,
        /// What is wrong.
        what: &'static str,
    },
}

impl FrameError {
    /// The refusal that tells a peer.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            FrameError::Magic { .. } | FrameError::Payload { .. } => ErrorCode::Malformed.into(),
            FrameError::Version { .. } => {
                Refusal::new(ErrorCode::UnsupportedVersion, u64::from(VERSION))
            }
            FrameError::Checksum => ErrorCode::ChecksumMismatch.into(),
            FrameError::Kind { .. } => ErrorCode::UnsupportedKind.into(),
            FrameError::TooLarge { limit, .. } => {
                Refusal::new(ErrorCode::TooLarge, u64::from(limit))
            }
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Items in the payload, where the kind counts them; else zero.
    pub items: u32,
    /// The sender's name for the request.
    pub correlation: u64,
}

impl FrameHeader {
    /// The 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        put(&mut bytes, 8, self.payload_bytes.to_le_bytes());
        put(&mut bytes, 12, self.items.to_le_bytes());
        put(&mut bytes, 16, self.correlation.to_le_bytes());
        let crc = crc32c(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, crc.to_le_bytes());
        bytes
    }

    /// Takes a header apart and holds its length against the kind's limit.
    ///
    /// # Errors
    /// [`FrameError`], the first thing that is wrong.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let found = u32_at(bytes, 0);
        if found != MAGIC {
            return Err(FrameError::Magic { found });
        }
        // The version comes before the checksum: another version may place that elsewhere.
        if bytes[4] != VERSION {
            return Err(FrameError::Version { found: bytes[4] });
        }
        if crc32c(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(FrameError::Checksum);
        }
        let kind = FrameKind::from_number(bytes[5]).ok_or(FrameError::Kind { found: bytes[5] })?;
        if u16_at(bytes, 6) != 0 || u32_at(bytes, 24) != 0 {
            return Err(FrameError::Payload { kind, what: "reserved header bytes are not zero" });
        }
        let (found, limit) = (u32_at(bytes, 8), kind.payload_bytes_max());
        if found > limit {
            return Err(FrameError::TooLarge { kind, found, limit });
        }
        let (items, correlation) = (u32_at(bytes, 12), u64_at(bytes, 16));
        Ok(FrameHeader { kind, payload_bytes: found, items, correlation })
    }

    /// Header and payload together.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_bytes as usize
    }
}

/// A whole frame with a small payload.
#[must_use]
pub fn small_frame(kind: FrameKind, items: u32, correlation: u64, payload: &[u8]) -> Vec<u8> {
    let payload_bytes = u32::try_from(payload.len()).expect("a small payload");
    let header = FrameHeader { kind, payload_bytes, items, correlation };
    [&header.encode()[..], payload].concat()
}

/// Bytes of an [`ErrorAnswer`].
pub const ERROR_ANSWER_BYTES: usize = 16;

/// The request as a whole was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorAnswer(pub Refusal);

impl ErrorAnswer {
    /// Code (u16), zero, hint (u64).
    #[must_use]
    pub fn encode(&self) -> [u8; ERROR_ANSWER_BYTES] {
        let mut bytes = [0; ERROR_ANSWER_BYTES];
        put(&mut bytes, 0, (self.0.code as u16).to_le_bytes());
        put(&mut bytes, 8, self.0.hint.to_le_bytes());
        bytes
    }

    /// Takes the payload of an error frame apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(payload: &[u8]) -> Result<ErrorAnswer, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::Error, what };
        exact(payload, ERROR_ANSWER_BYTES, FrameKind::Error)?;
        let code = ErrorCode::from_number(u16_at(payload, 0)).ok_or(malformed("unknown code"))?;
        Ok(ErrorAnswer(Refusal { code, hint: u64_at(payload, 8) }))
    }
}

/// Refuses a payload of another length than `length`.
pub(crate) fn exact(payload: &[u8], length: usize, kind: FrameKind) -> Result<(), FrameError> {
    if payload.len() == length {
        Ok(())
    } else {
        Err(FrameError::Payload { kind, what: "its length is not that of its kind" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FrameHeader =
        FrameHeader { kind: FrameKind::Produce, payload_bytes: 4096, items: 3, correlation: 99 };

    #[test]
    fn headers_round_trip() {
        assert_eq!(FrameHeader::decode(&HEADER.encode()), Ok(HEADER));
        for kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_number(*kind as u8), Some(*kind));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut bytes = HEADER.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    fn forged(change: impl FnOnce(&mut [u8; 32])) -> Result<FrameHeader, FrameError> {
        let mut bytes = HEADER.encode();
        change(&mut bytes);
        let crc = crc32c(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, crc.to_le_bytes());
        FrameHeader::decode(&bytes)
    }

    #[test]
    fn forged_headers_are_refused() {
        assert_eq!(forged(|bytes| bytes[5] = 200), Err(FrameError::Kind { found: 200 }));
        assert_eq!(forged(|bytes| bytes[4] = 2), Err(FrameError::Version { found: 2 }));
        assert!(matches!(forged(|bytes| bytes[24] = 1), Err(FrameError::Payload { .. })));
        let huge = forged(|bytes| put(bytes, 8, u32::MAX.to_le_bytes()));
        assert!(matches!(huge, Err(FrameError::TooLarge { found: u32::MAX, .. })));
    }

    #[test]
    fn golden_frame_header() {
        let text: String = HEADER.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, GOLDEN);
    }

    const GOLDEN: &str = "54485746010300000010000003000000630000000000000000000000e924f7c7";

    #[test]
    fn errors_round_trip() {
        let answer = ErrorAnswer(Refusal::new(ErrorCode::TooSlow, 77));
        assert_eq!(ErrorAnswer::decode(&answer.encode()), Ok(answer));
        assert!(ErrorAnswer::decode(&[0; ERROR_ANSWER_BYTES]).is_err());
        assert!(ErrorAnswer::decode(&[]).is_err());
    }
}
