//! Frames: header and every payload that wire takes apart.
//!
//! An input is a byte that says what is repaired, then a frame. What decodes, decodes from its own
//! encoding to the same.

use std::fmt::Debug;

use thalweg_client::reader::check_batches;
use thalweg_wire::batch::{Batch, BatchHeader, HEADER_BYTES};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{put, u16_at, u32_at};
use thalweg_wire::control::{
    CONTROL_ANSWER_BYTES, ControlAnswer, DELETE_SHARD_BYTES, DESCRIBE_REQUEST_BYTES, DeleteShard,
    DescribeRequest, FENCE_EXTENT_BYTES, FenceExtent, NodeDescription, OPEN_EXTENT_BYTES,
    OpenExtent, SEAL_EXTENT_BYTES, SHARD_DESCRIPTION_BYTES, SealExtent, ShardDescription,
    TRIM_SHARD_BYTES, TrimShard,
};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FETCH_REQUEST_BYTES, FetchAnswer, FetchRequest};
use thalweg_wire::frame::{
    ERROR_ANSWER_BYTES, ErrorAnswer, FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind, MAGIC,
    PAYLOAD_ALIGN, VERSION,
};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::produce::{
    ACK_BYTES, Ack, Verdicts, decode_answers, encode_verdicts, padded_bytes, split_batches,
};
use thalweg_wire::sequence_number::SequenceNumber;
use thalweg_wire::subscribe::{CREDIT_BYTES, Credit, SUBSCRIBE_REQUEST_BYTES, SubscribeRequest};

use crate::{aligned, batch, repair};

/// The header's magic, version and checksum fit.
pub const REPAIR_HEADER: u8 = 1;
/// The payload is as long as the header says, and has the length that its kind or content gives it.
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
            let kind = FrameKind::from_number(header[5]);
            let wanted = kind.and_then(|kind| match kind {
                FrameKind::ProduceAnswer => answer_bytes(u32_at(&header, 12), &payload),
                kind => fixed_bytes(kind),
            });
            payload.resize(wanted.unwrap_or(payload.len()), 0);
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
        FrameKind::DeleteShard => Some(DELETE_SHARD_BYTES),
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

/// Bytes of a produce answer of so many items, with the verdicts that they announce; none when that
/// is more than an answer may have.
fn answer_bytes(items: u32, payload: &[u8]) -> Option<usize> {
    let acks_bytes = items as usize * ACK_BYTES;
    let (acks, _) = payload.get(..acks_bytes)?.as_chunks::<ACK_BYTES>();
    let announced = |ack: &[u8; ACK_BYTES]| match u16_at(ack, 0) {
        status if status == ErrorCode::PartlyThrottled as u16 => u32_at(ack, 8).div_ceil(8),
        _ => 0,
    };
    let verdicts_bytes: usize = acks.iter().map(|ack| announced(ack) as usize).sum();
    let answer_bytes = acks_bytes + verdicts_bytes;
    let max = FrameKind::ProduceAnswer.payload_bytes_max() as usize;
    (answer_bytes <= max).then_some(answer_bytes)
}

fn decode_payload(header: &FrameHeader, payload: &[u8]) {
    match header.kind {
        FrameKind::Hello => {}
        FrameKind::HelloAnswer => {
            again(NodeDescription::decode(payload), |node| NodeDescription::decode(&node.encode()));
        }
        FrameKind::Produce => produce(payload, header.items),
        FrameKind::ProduceAnswer => answers(payload, header.items),
        FrameKind::Fetch => {
            again(FetchRequest::decode(payload), |fetch| FetchRequest::decode(&fetch.encode()));
        }
        FrameKind::FetchAnswer | FrameKind::SubscribeEvent => {
            again(FetchAnswer::decode(payload), |answer| FetchAnswer::decode(&answer.encode()));
            fetched(payload, header.items);
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
        FrameKind::DeleteShard => {
            again(DeleteShard::decode(payload), |delete| DeleteShard::decode(&delete.encode()));
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

/// The batches of a fetch's answer as a reader takes them; the first one says of which shard, and
/// which offset was due.
fn fetched(payload: &[u8], items: u32) {
    let payload = aligned(payload);
    let Some(batches) = payload.get(FETCH_ANSWER_BYTES..) else { return };
    let Ok(first) = Batch::check(batches, &HashRange::FULL) else { return };
    let BatchHeader { shard, first_offset, .. } = first.header;
    let (mut next, mut taken, mut end) = (first_offset, 0, first_offset);
    let checked = check_batches(&payload, items, shard, &mut next, |found| {
        assert!(found.header.shard == shard && found.header.first_offset <= end);
        batch::walk(found, &HashRange::FULL);
        (taken, end) = (taken + 1, found.header.end_offset());
    });
    assert_eq!(next, end, "the reader goes on behind the last batch that it took");
    match checked {
        Ok(bytes) => assert!(taken == items && bytes <= batches.len()),
        Err(error) => {
            let _ = error.to_string();
            assert!(taken < items);
        }
    }
}

fn answers(payload: &[u8], items: u32) {
    let answers = match decode_answers(payload, items) {
        Ok(answers) => answers,
        Err(error) => return refused(&error),
    };
    let (mut count, mut verdicts_at) = (0, items as usize * ACK_BYTES);
    for answer in answers {
        count += 1;
        match answer {
            Ok((ack, verdicts)) => {
                let rest = &payload[verdicts_at..];
                verdicts_at += answer_again(&ack, verdicts, rest);
            }
            // Where the verdicts of those behind it are is known to the decoder alone.
            Err(error) => return refused(&error),
        }
    }
    assert_eq!((count, verdicts_at), (items, payload.len()));
}

/// What was decoded decodes from its own encoding to the same. `rest` begins with the verdicts;
/// answers their bytes.
fn answer_again(ack: &Ack, verdicts: Verdicts<'_>, rest: &[u8]) -> usize {
    let taken: Vec<bool> = verdicts.iter().collect();
    let (bytes, bits) = match ack.result {
        Err(refusal) if refusal.code == ErrorCode::PartlyThrottled => {
            assert!(!taken.is_empty(), "a batch that was refused in part has records");
            encode_verdicts(refusal.hint, &taken)
        }
        _ => (ack.encode(), Vec::new()),
    };
    assert!(rest.starts_with(&bits), "verdicts are encoded as they were");
    let alone = [&bytes[..], &bits].concat();
    let mut again = decode_answers(&alone, 1).expect("it was one before");
    assert_eq!(again.next(), Some(Ok((*ack, verdicts))));
    assert!(again.next().is_none());
    bits.len()
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
