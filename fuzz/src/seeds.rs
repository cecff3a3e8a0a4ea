//! Writes the inputs that the corpus begins with: one of every frame, the golden files, and what the
//! modules of the front door have for themselves.
//! `cargo run --bin seeds` in `fuzz/`; what fuzzing added to the corpus stays.

use std::path::Path;
use std::{fs, io};

use thalweg_fuzz::files::FILE_BYTES;
use thalweg_fuzz::{batch, body, event, footer, frame, policy, segment, signature, token};
use thalweg_node::config::BLOCK_BYTES;
use thalweg_node::io::sim::SimRandom;
use thalweg_node::log::footer::encode_footer;
use thalweg_node::log::index::{Location, SegmentIndex};
use thalweg_wire::batch::{BatchHeader, HEADER_BYTES, assign};
use thalweg_wire::codec::put;
use thalweg_wire::control::{
    ControlAnswer, DeleteShard, DescribeRequest, ExtentState, FenceExtent, NodeDescription,
    OpenExtent, SealExtent, ShardDescription, ShardLimits, TrimShard,
};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameKind, small_frame};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{BootId, DiskId, Epoch, ExtentId, Lsn, Offset, ShardId, StreamId};
use thalweg_wire::limits;
use thalweg_wire::produce::{Ack, Stored, encode_verdicts, padded_bytes};
use thalweg_wire::sequence_number::SequenceNumber;
use thalweg_wire::subscribe::Credit;

const BATCH: &[u8] = include_bytes!("../../wire/golden/batch-v1.bin");
const SEGMENT_1_FRONT: &[u8] = include_bytes!("../../node/golden/segment-1-front-v1.bin");
const SEGMENT_1_BACK: &[u8] = include_bytes!("../../node/golden/segment-1-back-v1.bin");
const SEGMENT_2_FRONT: &[u8] = include_bytes!("../../node/golden/segment-2-front-v1.bin");
const DELETED_FRONT: &[u8] = include_bytes!("../../node/golden/segment-2-deleted-front-v1.bin");
const RELEASED_FRONT: &[u8] = include_bytes!("../../node/golden/segment-2-released-front-v1.bin");
const MERGED_FRONT: &[u8] = include_bytes!("../../node/golden/segment-2-merged-front-v1.bin");
const SEGMENT_3_FRONT: &[u8] = include_bytes!("../../node/golden/segment-3-front-v1.bin");
const SEGMENT_3_BACK: &[u8] = include_bytes!("../../node/golden/segment-3-back-v1.bin");

const SHARD: ShardId = ShardId { stream: StreamId(7), index: 3 };
const EXTENT: ExtentId = ExtentId { shard: SHARD, epoch: Epoch(5) };

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, mode: u8, bytes: &[u8]| {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(format!("seed-{name}")), [&[mode][..], bytes].concat())
    };

    let repaired = frame::REPAIR_HEADER | frame::REPAIR_LENGTH | frame::REPAIR_BATCHES;
    for (kind, items, payload) in frames() {
        let frame = small_frame(kind, items, 77, &payload);
        write("frame", &format!("{kind:?}-{}", payload.len()), repaired, &frame)?;
    }
    // As one was found: verdicts, where the harness knew acks only; and what is none of a batch.
    let (ack, bits) = encode_verdicts(400_000, &[true, false, true]);
    let answer = |ack: &[u8], bits: &[u8]| {
        small_frame(FrameKind::ProduceAnswer, 1, 77, &[ack, bits].concat())
    };
    write("frame", "verdicts", 0, &answer(&ack, &bits))?;
    write("frame", "verdicts-spare-bits", 0, &answer(&ack, &[0xff]))?;
    let announcing = |records: u32| {
        let mut ack = ack;
        put(&mut ack, 8, records.to_le_bytes());
        ack
    };
    write("frame", "verdicts-of-none", 0, &answer(&announcing(0), &[]))?;
    let too_many = answer(&announcing(limits::BATCH_RECORDS_MAX + 8), &[0xff; 2048]);
    write("frame", "verdicts-too-many", 0, &too_many)?;
    write("frame", "as-sent", 0, &small_frame(FrameKind::Produce, 1, 77, &padded(BATCH)))?;
    write("frame", "sequence-number", 0, sequence_number().as_bytes())?;

    let repaired = batch::REPAIR_CHECKSUMS | batch::REPAIR_LENGTH | batch::REPAIR_FIXED;
    write("batch", "as-sent", 0, BATCH)?;
    write("batch", "repaired", repaired, BATCH)?;
    write("batch", "half-range", repaired | batch::HALF_RANGE, BATCH)?;
    write("batch", "checksums", batch::REPAIR_CHECKSUMS, BATCH)?;

    let repaired = segment::REPAIR_CHECKSUMS | segment::REPAIR_IDENTITY;
    let first = (SEGMENT_1_FRONT, SEGMENT_1_BACK);
    let third = (SEGMENT_3_FRONT, SEGMENT_3_BACK);
    let none: &[u8] = &[];
    for (name, segments) in [
        ("two", vec![first, (SEGMENT_2_FRONT, none)]),
        ("no-footer", vec![(SEGMENT_1_FRONT, none), (SEGMENT_2_FRONT, none)]),
        ("released", vec![first, (RELEASED_FRONT, none)]),
        ("deleted", vec![first, (DELETED_FRONT, none)]),
        ("merged", vec![first, (MERGED_FRONT, none), third]),
        ("merged-no-footer", vec![first, (MERGED_FRONT, none), (SEGMENT_3_FRONT, none)]),
    ] {
        write("segment", name, repaired, &sections(&segments))?;
    }
    for (seed, bytes) in [(1, 200), (2, 600), (3, 1500), (4, 3000)] {
        let mut random = SimRandom::new(seed);
        // Few of the choices that make something wrong.
        let choices: Vec<u8> = (0..bytes).map(|_| random.below(0xf8) as u8).collect();
        write("segment", &format!("history-{seed}"), segment::IS_HISTORY, &choices)?;
    }

    let repaired = footer::REPAIR_CHECKSUMS | footer::REPAIR_PLACE | footer::REPAIR_COUNTS;
    for (name, batches) in [("none", 0), ("some", 5), ("many", 60)] {
        write("footer", name, repaired, &footer_of(batches))?;
        write(
            "footer",
            &format!("{name}-checksums"),
            footer::REPAIR_CHECKSUMS,
            &footer_of(batches),
        )?;
    }
    for (target, seeds) in [
        ("body", body::seeds()),
        ("signature", signature::seeds()),
        ("token", token::seeds()),
        ("policy", policy::seeds()),
        ("event", event::seeds()),
    ] {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        for (name, input) in seeds {
            fs::write(directory.join(format!("seed-{name}")), input)?;
        }
    }
    Ok(())
}

fn padded(batch: &[u8]) -> Vec<u8> {
    let mut bytes = batch.to_vec();
    bytes.resize(padded_bytes(batch.len()), 0);
    bytes
}

/// The golden batch again, where the next one of its shard stands.
fn following_batch() -> Vec<u8> {
    let mut batch = padded(BATCH);
    let header = BatchHeader::decode(&batch).expect("the golden batch is one");
    let start = batch.first_chunk_mut::<HEADER_BYTES>().expect("it has a header");
    assign(start, header.end_offset(), header.append_time_ms + 1);
    batch
}

fn sequence_number() -> String {
    let number = SequenceNumber {
        shard_created_s: 1_552_896_735,
        sequence_index: 0x1_6b1f_1dda,
        time_s: 1_554_821_832,
        shard_index: 17,
    };
    number.to_decimal()
}

fn frames() -> Vec<(FrameKind, u32, Vec<u8>)> {
    let fetch =
        |from| FetchRequest { shard: SHARD, epoch: Epoch(5), from, bytes_max: 4096, wait_ms: 9 };
    let open = OpenExtent {
        limits: Some(ShardLimits::KINESIS),
        replicas: [DiskId([9; 16]); 3],
        store_generation: 1,
        ..OpenExtent::alone(EXTENT, HashRange::FULL, Offset(42))
    };
    let fence = FenceExtent { extent: EXTENT, recovery_epoch: Epoch(4) };
    let seal = SealExtent { extent: EXTENT, recovery_epoch: Epoch(4), end: Offset(50) };
    let trim = TrimShard { shard: SHARD, first_kept: Offset(43) };
    let delete = DeleteShard { shard: SHARD, recovery_epoch: Epoch(4) };
    let refusal = Refusal::new(ErrorCode::SequenceGap, 4);
    let stored = Stored { first_offset: Offset(9), append_time_ms: 5, duplicate: true };
    let acks = [Ack { result: Ok(stored) }, Ack::refused(refusal)].map(|ack| ack.encode()).concat();
    let (few, many) = (encode_verdicts(7, &[true, false, true]), encode_verdicts(9, &[false; 300]));
    let partly = [&few.0[..], &acks, &many.0, &few.1, &many.1].concat();
    let control = ControlAnswer {
        status: Err(refusal),
        epoch: Epoch(1),
        earliest: Offset(2),
        end: Offset(3),
    };
    let shard = ShardDescription {
        extent: EXTENT,
        state: ExtentState::Open,
        range: HashRange::FULL,
        earliest: Offset(1),
        committed: Offset(2),
        last_append_ms: 3,
    };
    let node = NodeDescription {
        boot: BootId(1),
        core: 1,
        shards: 3,
        room_shards: 65_536,
        ports: vec![4568, 4569],
        disks: vec![DiskId([3; 16])],
    };
    let answer = FetchAnswer {
        status: Ok(()),
        earliest: Offset(42),
        next: Offset(46),
        committed: Offset(46),
        last_append_ms: 4,
        sealed_end: false,
    };
    let batches = [padded(BATCH), padded(BATCH)].concat();
    let answered = [&answer.encode()[..], &padded(BATCH), &following_batch()].concat();
    let grant = Credit::Grant { subscription: 3, bytes: 9 };
    let cancel = Credit::Cancel { subscription: 3 };
    vec![
        (FrameKind::Hello, 0, Vec::new()),
        (FrameKind::HelloAnswer, 0, node.encode()),
        (FrameKind::Produce, 2, batches),
        (FrameKind::ProduceAnswer, 2, acks),
        (FrameKind::ProduceAnswer, 4, partly),
        (FrameKind::Fetch, 0, fetch(FetchFrom::Offset(Offset(42))).encode().to_vec()),
        (FrameKind::Fetch, 0, fetch(FetchFrom::Latest).encode().to_vec()),
        (FrameKind::FetchAnswer, 2, answered.clone()),
        (FrameKind::Subscribe, 0, fetch(FetchFrom::Time(1)).encode().to_vec()),
        (FrameKind::SubscribeEvent, 2, answered),
        (FrameKind::Credit, 0, grant.encode().to_vec()),
        (FrameKind::Credit, 0, cancel.encode().to_vec()),
        (FrameKind::OpenExtent, 0, open.encode().to_vec()),
        (FrameKind::FenceExtent, 0, fence.encode().to_vec()),
        (FrameKind::SealExtent, 0, seal.encode().to_vec()),
        (FrameKind::TrimShard, 0, trim.encode().to_vec()),
        (FrameKind::DeleteShard, 0, delete.encode().to_vec()),
        (FrameKind::ControlAnswer, 0, control.encode().to_vec()),
        (FrameKind::Describe, 0, DescribeRequest { from: SHARD }.encode().to_vec()),
        (FrameKind::DescribeAnswer, 2, [shard.encode(), shard.encode()].concat()),
        (FrameKind::Error, 0, ErrorAnswer(refusal).encode().to_vec()),
    ]
}

/// Sections of files that hold these fronts and backs; the golden ones are of longer segments.
fn sections(segments: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut input = Vec::new();
    for (file, (front, back)) in segments.iter().enumerate() {
        let mut back = back.to_vec();
        if !back.is_empty() {
            let trailer_at = back.len() - BLOCK_BYTES as usize;
            let footer_at = FILE_BYTES - back.len() as u64;
            put(&mut back, trailer_at + 32, footer_at.to_le_bytes());
        }
        let back_at = FILE_BYTES as usize - back.len();
        for (at, bytes) in [(0, *front), (back_at, &back[..])] {
            // Zeroes are there already.
            for (block, content) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
                let length = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                let place = (at + block * BLOCK_BYTES as usize) / segment::SECTION_UNIT;
                input.push(file as u8);
                input.extend((place as u16).to_le_bytes());
                input.extend((length as u16).to_le_bytes());
                input.extend(&content[..length]);
            }
        }
    }
    input
}

/// Fields of a trailer, directory and entries of a footer.
fn footer_of(batches: u64) -> Vec<u8> {
    let mut index = SegmentIndex::new(batches as usize);
    for at in 0..batches {
        let location = Location {
            first_offset: Offset(at / 2 * 3),
            records: 3,
            batch_bytes: 200,
            lsn: Lsn(footer::BASE.0 + BLOCK_BYTES + at * 320),
            append_time_ms: at / 6,
        };
        index.push((at % 2) as u32, location);
    }
    let end = Lsn(footer::BASE.0 + 8 * BLOCK_BYTES);
    let (_, bytes) = encode_footer(&index, footer::GENERATION, footer::BASE, end, FILE_BYTES);
    let trailer_at = bytes.len() - BLOCK_BYTES as usize;
    let body_bytes = (index.extents() + index.len()) * 32;
    let fields = &bytes[trailer_at..][footer::TRAILER_FIELDS];
    [fields, &bytes[..body_bytes]].concat()
}
