//! Frames: header and every payload that wire takes apart.
//!
//! An input is a byte that says what is repaired, then a frame. What decodes, decodes from its own
//! encoding to the same.

use std::fmt::Debug;

use thalweg_wire::batch::HEADER_BYTES;
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::put;
use thalweg_wire::control::{
    CONTROL_ANSWER_BYTES, ControlAnswer, DESCRIBE_REQUEST_BYTES, DescribeRequest,
    FENCE_EXTENT_BYTES, FenceExtent, NodeDescription, OPEN_EXTENT_BYTES, OpenExtent,
    SEAL_EXTENT_BYTES, SHARD_DESCRIPTION_BYTES, SealExtent, ShardDescription, TRIM_SHARD_BYTES,
    TrimShard,
};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FETCH_REQUEST_BYTES, FetchAnswer, FetchRequest};
use thalweg_wire::frame::{
    ERROR_ANSWER_BYTES, ErrorAnswer, FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind, MAGIC,
    PAYLOAD_ALIGN, VERSION,
};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::produce::{ACK_BYTES, Ack, decode_acks, padded_bytes, split_batches};
use thalweg_wire::sequence_number::SequenceNumber;
use thalweg_wire::subscribe::{CREDIT_BYTES, Credit, SUBSCRIBE_REQUEST_BYTES, SubscribeRequest};

use crate::{aligned, batch, repair};

/// The header's magic, version and checksum fit.
pub const REPAIR_HEADER: u8 = 1;
/// The payload is as long as the header says, and what has a fixed length has it.
pub const REPAIR_LENGTH: u8 = 2;
/// The checksums of batches fit.
pub const REPAIR_BATCHES: u8 = 4;

/// Runs an input.
///
/// # Panics
/// When something decodes to what it is not.
pub fn run(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else { return };
    if let Ok(text) = std::str::from_utf8(bytes) {
        sequence_number(text);
    }
    let Some((header, payload)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return };
    let (mut header, mut payload) = (*header, payload.to_vec());
    if mode & REPAIR_HEADER != 0 {
        put(&mut header, 0, MAGIC.to_le_bytes());
        header[4] = VERSION;
        put(&mut header, 6, [0; 2]);
        put(&mut header, 24, [0; 4]);
        if mode & REPAIR_LENGTH != 0 {
            let fixed = FrameKind::from_number(header[5]).and_then(fixed_bytes);
            payload.resize(fixed.unwrap_or(payload.len()), 0);
            put(&mut header, 8, (payload.len() as u32).to_le_bytes());
        }
        let crc = crc32c(&header[..28]);
        put(&mut header, 28, crc.to_le_bytes());
    }
    let decoded = match FrameHeader::decode(&header) {
        Ok(decoded) => decoded,
        Err(error) => return refused(&error),
    };
    assert_eq!(decoded.encode(), header, "a header is encoded as it was");
    assert!(decoded.payload_bytes <= decoded.kind.payload_bytes_max());
    assert_eq!(decoded.frame_bytes(), FRAME_HEADER_BYTES + decoded.payload_bytes as usize);
    if mode & REPAIR_BATCHES != 0 {
        repair_batches(decoded.kind, decoded.items, &mut payload);
    }
    decode_payload(&decoded, &payload);
}

fn refused(error: &FrameError) {
    let _ = (error.to_string(), error.refusal().to_string());
}

/// Bytes of payloads that have one length.
fn fixed_bytes(kind: FrameKind) -> Option<usize> {
    match kind {
        FrameKind::Hello => Some(0),
        FrameKind::Fetch => Some(FETCH_REQUEST_BYTES),
        FrameKind::Subscribe => Some(SUBSCRIBE_REQUEST_BYTES),
        FrameKind::Credit => Some(CREDIT_BYTES),
        FrameKind::OpenExtent => Some(OPEN_EXTENT_BYTES),
        FrameKind::FenceExtent => Some(FENCE_EXTENT_BYTES),
        FrameKind::SealExtent => Some(SEAL_EXTENT_BYTES),
        FrameKind::TrimShard => Some(TRIM_SHARD_BYTES),
        FrameKind::ControlAnswer => Some(CONTROL_ANSWER_BYTES),
        FrameKind::Describe => Some(DESCRIBE_REQUEST_BYTES),
        FrameKind::Error => Some(ERROR_ANSWER_BYTES),
        FrameKind::HelloAnswer
        | FrameKind::Produce
        | FrameKind::ProduceAnswer
        | FrameKind::FetchAnswer
        | FrameKind::SubscribeEvent
        | FrameKind::DescribeAnswer => None,
    }
}

fn decode_payload(header: &FrameHeader, payload: &[u8]) {
    match header.kind {
        FrameKind::Hello => {}
        FrameKind::HelloAnswer => {
            again(NodeDescription::decode(payload), |node| NodeDescription::decode(&node.encode()));
        }
        FrameKind::Produce => produce(payload, header.items),
        FrameKind::ProduceAnswer => acks(payload, header.items),
        FrameKind::Fetch => {
            again(FetchRequest::decode(payload), |fetch| FetchRequest::decode(&fetch.encode()));
        }
        FrameKind::FetchAnswer | FrameKind::SubscribeEvent => {
            again(FetchAnswer::decode(payload), |answer| FetchAnswer::decode(&answer.encode()));
            if let Some(batches) = payload.get(FETCH_ANSWER_BYTES..) {
                produce(batches, header.items);
            }
        }
        FrameKind::Subscribe => {
            again(SubscribeRequest::decode(payload), |it| SubscribeRequest::decode(&it.encode()));
        }
        FrameKind::Credit => {
            again(Credit::decode(payload), |credit| Credit::decode(&credit.encode()));
        }
        FrameKind::OpenExtent => {
            again(OpenExtent::decode(payload), |open| OpenExtent::decode(&open.encode()));
        }
        FrameKind::FenceExtent => {
            again(FenceExtent::decode(payload), |fence| FenceExtent::decode(&fence.encode()));
        }
        FrameKind::SealExtent => {
            again(SealExtent::decode(payload), |seal| SealExtent::decode(&seal.encode()));
        }
        FrameKind::TrimShard => {
            again(TrimShard::decode(payload), |trim| TrimShard::decode(&trim.encode()));
        }
        FrameKind::ControlAnswer => {
            again(ControlAnswer::decode(payload), |it| ControlAnswer::decode(&it.encode()));
        }
        FrameKind::Describe => {
            again(DescribeRequest::decode(payload), |it| DescribeRequest::decode(&it.encode()));
        }
        FrameKind::DescribeAnswer => {
            for shard in payload.chunks(SHARD_DESCRIPTION_BYTES) {
                let decoded = ShardDescription::decode(shard);
                again(decoded, |shard| ShardDescription::decode(&shard.encode()));
            }
        }
        FrameKind::Error => {
            again(ErrorAnswer::decode(payload), |error| ErrorAnswer::decode(&error.encode()));
        }
    }
}

/// What was decoded decodes from its own encoding to the same.
fn again<T: PartialEq + Debug>(
    decoded: Result<T, FrameError>,
    decode_again: impl FnOnce(&T) -> Result<T, FrameError>,
) {
    match decoded {
        Ok(value) => assert_eq!(decode_again(&value).as_ref(), Ok(&value)),
        Err(error) => refused(&error),
    }
}

fn produce(payload: &[u8], items: u32) {
    let places = match split_batches(payload, items) {
        Ok(places) => places,
        Err(error) => return refused(&error),
    };
    let (mut count, mut end) = (0, 0);
    for place in places {
        assert!(place.start == end && place.start.is_multiple_of(PAYLOAD_ALIGN));
        assert!(place.len() >= HEADER_BYTES && place.end <= payload.len());
        end = place.start + padded_bytes(place.len());
        batch::check(&mut aligned(&payload[place]), &HashRange::FULL);
        count += 1;
    }
    assert_eq!((count, end), (items, payload.len()));
}

fn acks(payload: &[u8], items: u32) {
    match decode_acks(payload, items) {
        Ok(acks) => {
            let mut count = 0;
            for ack in acks {
                again(ack, |ack| Ack::decode(&ack.encode()));
                count += 1;
            }
            assert_eq!((count, count as usize * ACK_BYTES), (items, payload.len()));
        }
        Err(error) => refused(&error),
    }
}

fn repair_batches(kind: FrameKind, items: u32, payload: &mut [u8]) {
    let batches = match kind {
        FrameKind::Produce => payload,
        FrameKind::FetchAnswer | FrameKind::SubscribeEvent => {
            let Some(batches) = payload.get_mut(FETCH_ANSWER_BYTES..) else { return };
            batches
        }
        _ => return,
    };
    let Ok(places) = split_batches(batches, items) else { return };
    for place in places.collect::<Vec<_>>() {
        repair::batch(&mut batches[place]);
    }
}

fn sequence_number(text: &str) {
    match SequenceNumber::from_decimal(text) {
        Ok(number) => {
            let decimal = number.to_decimal();
            assert_eq!(decimal, text.trim_start_matches('0'));
            assert_eq!(SequenceNumber::from_decimal(&decimal), Ok(number));
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
}
