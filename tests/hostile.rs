//! Hostile and broken senders: each gets a typed error and loses its own connection at most; a
//! well-behaved one beside it notices nothing, and memory stays within the budget.

mod support;

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use support::{
    NodeProcess, PATIENCE, STREAM, directory, first_ack, produce_frame, receive, two_free_ports,
};
use thalweg_client::Admin;
use thalweg_wire::batch::{BatchHeader, HEADER_BYTES};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::control::OpenExtent;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::fetch::{FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameKind, small_frame};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ProducerId, ShardId};
use thalweg_wire::limits::FETCH_BYTES_MAX;
use thalweg_wire::produce::padded_bytes;

const BUDGET_BYTES: u64 = 160 << 20;
/// What a process has beside its budget: its program, which the system counts as it is touched, and
/// stacks. Unoptimised, the program alone has tens of MiB.
const PROGRAM_BYTES: u64 = 32 << 20;

/// A valid batch of one record for shard 0 of one.
fn batch(producer: u64, sequence: u64) -> Vec<u8> {
    batch_of(producer, sequence, 100)
}

/// The same with so many bytes of data.
fn batch_of(producer: u64, sequence: u64, data_bytes: u32) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchRoom { records: 1, key_bytes: 1, data_bytes });
    let (hash_key, data) = (HashKey(1), vec![7; data_bytes as usize]);
    builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"k", data: &data });
    let identity = BatchIdentity {
        shard: ShardId { stream: STREAM, index: 0 },
        epoch: Epoch(1),
        producer: ProducerId(producer),
        sequence,
        request_id: 0,
    };
    let mut bytes = builder.finish(&identity).to_vec();
    bytes.resize(padded_bytes(bytes.len()), 0);
    bytes
}

/// A sender beside the hostile ones, whose connection is never touched.
struct Witness {
    stream: TcpStream,
    sequence: u64,
}

impl Witness {
    fn appends(&mut self, after: &str) {
        self.appends_sized(after, 100);
    }

    fn appends_sized(&mut self, after: &str, data_bytes: u32) {
        let frame = produce_frame(1, &batch_of(1, self.sequence, data_bytes));
        self.stream.write_all(&frame).expect("the witness is connected");
        let ack = first_ack(&mut self.stream);
        assert!(ack.result.is_ok(), "after {after}: {ack:?}");
        self.sequence += 1;
    }
}

fn start() -> (tempfile::TempDir, NodeProcess, Witness) {
    let data = directory();
    let node = NodeProcess::start(data.path(), two_free_ports(), 1);
    node.open_shards(1, None);
    let witness = Witness { stream: node.raw(0), sequence: 0 };
    (data, node, witness)
}

fn patched(frame: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = frame.to_vec();
    change(&mut frame);
    let crc = crc32c(&frame[..28]);
    frame[28..32].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// A command that opens an extent of a shard that the node does not have.
fn open_extent(epoch: u64, first_offset: u64) -> Vec<u8> {
    let shard = ShardId { stream: STREAM, index: 77 };
    let open = OpenExtent {
        store_generation: 1,
        ..OpenExtent::alone(
            ExtentId { shard, epoch: Epoch(epoch) },
            HashRange::FULL,
            Offset(first_offset),
        )
    };
    small_frame(FrameKind::OpenExtent, 0, 1, &open.encode())
}

#[test]
fn what_is_no_frame_gets_a_typed_error_and_ends_that_connection_alone() {
    let (_data, node, mut witness) = start();
    let valid = produce_frame(1, &batch(2, 0));
    let mut flipped = valid.clone();
    flipped[9] ^= 1;
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        ("http", b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(), ErrorCode::Malformed),
        ("another version", patched(&valid, |frame| frame[4] = 9), ErrorCode::UnsupportedVersion),
        ("a flipped bit", flipped, ErrorCode::ChecksumMismatch),
        ("an unknown kind", patched(&valid, |frame| frame[5] = 99), ErrorCode::UnsupportedKind),
        (
            "a huge length",
            patched(&valid, |frame| frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes())),
            ErrorCode::TooLarge,
        ),
        ("no batches", produce_frame(0, &batch(2, 0)), ErrorCode::Malformed),
        ("more batches than there are", produce_frame(3, &batch(2, 0)), ErrorCode::Malformed),
        ("bytes behind the batch", produce_frame(1, &[0; 4000]), ErrorCode::Malformed),
        ("half a fetch", small_frame(FrameKind::Fetch, 0, 1, &[1; 20]), ErrorCode::Malformed),
        // The first record there stopped the node; so did its next start.
        ("an extent at the last offset", open_extent(1, u64::MAX), ErrorCode::Malformed),
        ("an extent of the last epoch", open_extent(u64::MAX, 0), ErrorCode::Malformed),
        (
            "half a command",
            small_frame(FrameKind::OpenExtent, 0, 1, &[1; 192]),
            ErrorCode::Malformed,
        ),
    ];
    for (what, bytes, expected) in cases {
        let mut hostile = node.raw(0);
        hostile.write_all(&bytes).expect("the node accepts");
        let (header, payload) = receive(&mut hostile).expect("a typed error comes first");
        assert_eq!(header.kind, FrameKind::Error, "{what}");
        let refusal = ErrorAnswer::decode(&payload).expect("a typed error").0;
        assert_eq!(refusal.code, expected, "{what}");
        assert!(receive(&mut hostile).is_none(), "{what}: the connection is closed");
        witness.appends(what);
    }
}

#[test]
fn a_bad_batch_is_refused_alone() {
    let (_data, node, mut witness) = start();
    let forge = |change: &dyn Fn(&mut BatchHeader, &mut [u8])| {
        let mut bytes = batch(2, 0);
        let mut header = BatchHeader::decode(&bytes).expect("a valid batch");
        change(&mut header, &mut bytes[HEADER_BYTES..]);
        let body = HEADER_BYTES..HEADER_BYTES + header.body_bytes as usize;
        header.body_crc = crc32c(&bytes[body]);
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        bytes
    };
    let mut flipped = batch(2, 0);
    flipped[HEADER_BYTES + 40] ^= 1;
    let cases = [
        ("a flipped bit in the body", flipped, ErrorCode::ChecksumMismatch),
        (
            "an end beyond its blob",
            forge(&|_, body| body[28..32].copy_from_slice(&u32::MAX.to_le_bytes())),
            ErrorCode::BatchInvalid,
        ),
        ("a count that lies", forge(&|header, _| header.records = 2), ErrorCode::BatchInvalid),
        ("a flag of later", forge(&|header, _| header.flags = 2), ErrorCode::Unsupported),
        ("no such shard", forge(&|header, _| header.shard.index = 77), ErrorCode::UnknownShard),
        ("an old tenure", forge(&|header, _| header.epoch = Epoch(7)), ErrorCode::StaleEpoch),
        ("a gap", forge(&|header, _| header.producer = ProducerId(1)), ErrorCode::SequenceGap),
        (
            "an unknown producer",
            forge(&|header, _| header.sequence = 3),
            ErrorCode::ProducerUnknown,
        ),
    ];
    (0..20).for_each(|_| witness.appends("nothing"));
    for (what, bytes, expected) in cases {
        // The same connection goes on: a batch is refused, not its sender.
        let mut sender = node.raw(0);
        let bytes = if expected == ErrorCode::SequenceGap {
            let mut header = BatchHeader::decode(&bytes).expect("a valid batch");
            header.sequence = witness.sequence + 5;
            [&header.encode()[..], &bytes[HEADER_BYTES..]].concat()
        } else {
            bytes
        };
        sender.write_all(&produce_frame(1, &bytes)).expect("the node accepts");
        let refusal = first_ack(&mut sender).result.expect_err(what);
        assert_eq!(refusal.code, expected, "{what}");
        sender.write_all(&small_frame(FrameKind::Hello, 0, 1, &[])).expect("still connected");
        let (header, _) = receive(&mut sender).expect("an answer");
        assert_eq!(header.kind, FrameKind::HelloAnswer, "{what}");
        witness.appends(what);
    }
}

#[test]
fn broken_streams_and_random_bytes_harm_nobody_else() {
    let (_data, node, mut witness) = start();
    let valid = produce_frame(1, &batch(2, 0));
    for cut in (0..valid.len()).step_by(7) {
        let mut broken = node.raw(0);
        broken.write_all(&valid[..cut]).expect("the node accepts");
        if cut.is_multiple_of(2) {
            broken.shutdown(Shutdown::Write).expect("it is connected");
            // Half-closed within a frame: there is nothing to answer.
            assert!(cut == 0 || receive(&mut broken).is_none());
        }
    }
    witness.appends("truncated frames");
    let mut random = 0x1234_5678_9abc_def1_u64;
    for round in 0..2000 {
        let mut bytes = valid.clone();
        for _ in 0..=round % 4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let at = (random >> 33) as usize % bytes.len();
            bytes[at] ^= 1 << (random >> 20 & 7);
        }
        // Half of them with a header that passes its check, so that what is behind is reached.
        let bytes = if round % 2 == 0 { patched(&bytes, |_| {}) } else { bytes };
        let mut hostile = node.raw(0);
        let _ = hostile.write_all(&bytes);
        let _ = hostile.shutdown(Shutdown::Write);
        if round % 200 == 0 {
            witness.appends("random bytes");
        }
    }
    witness.appends("random bytes");
    let resident = node.resident_bytes_max();
    assert!(resident < BUDGET_BYTES + PROGRAM_BYTES, "{resident} bytes resident");
}

#[test]
fn a_sender_that_stalls_within_a_frame_is_cut_off() {
    let (_data, node, mut witness) = start();
    let mut slow = node.raw(0);
    slow.write_all(&produce_frame(1, &batch(2, 0))[..100]).expect("the node accepts");
    let (header, payload) = receive(&mut slow).expect("a typed error");
    assert_eq!(header.kind, FrameKind::Error);
    assert_eq!(ErrorAnswer::decode(&payload).expect("typed").0.code, ErrorCode::TooSlow);
    assert!(receive(&mut slow).is_none());
    witness.appends("a slow sender");
    let mut admin = Admin::connect(node.address(0), PATIENCE).expect("the node serves");
    assert_eq!(admin.describe(STREAM).expect("it answers").len(), 1);
}

/// What readers had asked for and did not take held all memory, for as long as they liked: nobody's
/// batches were received any more.
#[test]
fn readers_that_take_nothing_do_not_stop_the_others() {
    const BATCH_BYTES: u32 = 1 << 20;
    const BATCHES: u64 = 192;
    let (_data, node, mut witness) = start();
    (0..BATCHES).for_each(|_| witness.appends_sized("nothing", BATCH_BYTES));
    let mut stalled = Vec::new();
    for at in 0..BATCHES / 4 {
        let mut reader = node.raw(0);
        let request = FetchRequest {
            shard: ShardId { stream: STREAM, index: 0 },
            epoch: Epoch(0),
            from: FetchFrom::Offset(Offset(at * 4)),
            bytes_max: FETCH_BYTES_MAX,
            wait_ms: 0,
        };
        let frame = small_frame(FrameKind::Fetch, 0, at, &request.encode());
        reader.write_all(&frame.repeat(5)).expect("the node accepts");
        stalled.push(reader);
    }
    // The first of them may still find room.
    for _ in 0..8 {
        witness.appends_sized("readers that take nothing", BATCH_BYTES);
    }
    let resident = node.resident_bytes_max();
    assert!(resident < BUDGET_BYTES + PROGRAM_BYTES, "{resident} bytes resident");
}
