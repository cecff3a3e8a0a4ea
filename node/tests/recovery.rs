//! Logs whose checksums all fit and whose content no node wrote: recovery ends, and says what is
//! wrong. Each case stopped it or kept it busy for ever; fuzz/ found most of them.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use thalweg_node::io::Errno;
use thalweg_node::log::archive::ArchivedRecords;
use thalweg_node::log::extent::{ExtentEnd, ExtentRecord, Producers};
use thalweg_node::log::footer::encode_footer;
use thalweg_node::log::format::{
    FrameKind, LogFrame, SegmentHeader, SegmentOrigin, sequence_before,
};
use thalweg_node::log::index::{Location, SegmentIndex};
use thalweg_node::log::recovery::{Bytes, LogFiles, RecoveredLog, RecoveryError, recover};
use thalweg_node::log::retention::SegmentEntry;
use thalweg_wire::batch::BatchHeader;
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::put;
use thalweg_wire::control::{ExtentState, OpenExtent};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{
    BootId, DiskId, Epoch, ExtentId, Lsn, Offset, ProducerId, ShardId, StreamId,
};

const DISK: DiskId = DiskId([1; 16]);
const BOOT: BootId = BootId(21);
const SEGMENT_BYTES: u64 = 64 << 10;
const SHARD: ShardId = ShardId { stream: StreamId(1), index: 0 };
/// Recovery of two small files takes far fewer.
const READS_MAX: u32 = 1000;

struct Files {
    files: RefCell<Vec<Vec<u8>>>,
    reads: Cell<u32>,
}

impl LogFiles for Files {
    fn sizes(&self) -> Vec<u64> {
        self.files.borrow().iter().map(|file| file.len() as u64).collect()
    }

    async fn read(&self, file: usize, at: u64, bytes: usize) -> Result<Bytes, Errno> {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() < READS_MAX, "recovery does not end");
        let mut content = Bytes::with_capacity(bytes);
        content.extend_from_slice(&self.files.borrow()[file][at as usize..at as usize + bytes]);
        Ok(content)
    }

    async fn write(&self, file: usize, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        put(&mut self.files.borrow_mut()[file], at as usize, bytes);
        Ok(())
    }

    async fn sync(&self, _file: usize) -> Result<(), Errno> {
        Ok(())
    }
}

fn recovered(files: &[&SegmentFile]) -> Result<RecoveredLog, RecoveryError> {
    all_recovered(files).map(|mut logs| logs.remove(0))
}

fn all_recovered(files: &[&SegmentFile]) -> Result<Vec<RecoveredLog>, RecoveryError> {
    let segment_bytes = files[0].bytes.len() as u64;
    let files = files.iter().map(|file| file.bytes.clone()).collect();
    let files = Files { files: RefCell::new(files), reads: Cell::new(0) };
    let future = pin!(recover(&files, DISK, 0, segment_bytes));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("files in memory never let wait"),
    }
}

#[track_caller]
fn contradicts(files: &[&SegmentFile], says: &str) {
    let error = recovered(files).expect_err(says);
    assert!(matches!(&error, RecoveryError::Contradiction { what, .. } if what == says), "{error}");
}

/// A segment in the making.
struct SegmentFile {
    bytes: Vec<u8>,
    header: SegmentHeader,
    position: usize,
}

impl SegmentFile {
    fn new(sequence: u64, base: u64, segment_bytes: u64) -> SegmentFile {
        let header = SegmentHeader {
            disk: DISK,
            log: 0,
            sequence,
            first_live_sequence: 1,
            base: Lsn(base),
            previous_end: Lsn(base),
            segment_bytes,
            boot: BOOT,
            origin: SegmentOrigin::Appended,
        };
        let mut bytes = vec![0; segment_bytes as usize];
        put(&mut bytes, 0, header.encode());
        SegmentFile { bytes, header, position: 4096 }
    }

    /// The log's first segment, with extent 0 open from offset 0 on.
    fn first() -> SegmentFile {
        let mut file = SegmentFile::new(1, 0, SEGMENT_BYTES);
        file.push(FrameKind::SnapshotEnd, 0, &0_u64.to_le_bytes());
        let mut open = Vec::new();
        record(0).encode_into(&mut open);
        file.push(FrameKind::Open, 0, &open);
        file
    }

    fn frame(&self, kind: FrameKind, extent: u32, payload: &[u8]) -> LogFrame {
        LogFrame {
            kind,
            generation: self.header.sequence,
            boot: BOOT,
            lsn: Lsn(self.header.base.0 + self.position as u64),
            durable: Lsn(0),
            extent,
            payload_bytes: payload.len() as u32,
            payload_crc: if kind == FrameKind::Batch { 0 } else { crc32c(payload) },
        }
    }

    fn push(&mut self, kind: FrameKind, extent: u32, payload: &[u8]) {
        let frame = self.frame(kind, extent, payload);
        put(&mut self.bytes, self.position, frame.encode());
        put(&mut self.bytes, self.position + 64, payload);
        self.position += frame.padded_bytes() as usize;
    }

    fn batch(&mut self, first_offset: u64, append_time_ms: u64, sequence: u64) {
        self.push(FrameKind::Batch, 0, &batch(first_offset, append_time_ms, sequence));
    }
}

fn record(number: u32) -> ExtentRecord {
    ExtentRecord {
        number,
        open: OpenExtent::alone(
            ExtentId { shard: SHARD, epoch: Epoch(1) },
            HashRange::FULL,
            Offset(0),
        ),
        state: ExtentState::Open,
        recovery_epoch: Epoch(0),
        end: Offset(0),
        first_kept: Offset(0),
        last_append_ms: 0,
        boot: BOOT,
        producers: Producers::default(),
    }
}

/// One record of extent 0.
fn batch(first_offset: u64, append_time_ms: u64, sequence: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchRoom { records: 1, key_bytes: 1, data_bytes: 3 });
    builder.push(&NewRecord { hash_key: HashKey(1), client_time_ms: 1, key: b"k", data: b"abc" });
    let (epoch, producer) = (Epoch(1), ProducerId(1));
    let identity = BatchIdentity { shard: SHARD, epoch, producer, sequence, request_id: 0 };
    let mut bytes = builder.finish(&identity).to_vec();
    let sent = BatchHeader::decode(&bytes).unwrap();
    let stored = BatchHeader { first_offset: Offset(first_offset), append_time_ms, ..sent };
    put(&mut bytes, 0, stored.encode());
    bytes
}

#[test]
fn what_a_node_wrote_is_read() {
    let mut file = SegmentFile::first();
    (0..3).for_each(|at| file.batch(at, at, at));
    let log = recovered(&[&file]).unwrap();
    assert_eq!((log.extents[&0].record.end, log.report.batches), (Offset(3), 3));
}

#[test]
fn batches_that_do_not_follow_each_other_are_a_contradiction() {
    let mut falls = SegmentFile::first();
    falls.batch(0, 9, 0);
    falls.batch(1, 8, 1);
    contradicts(&[&falls], "a batch that does not follow its extent");

    // The end was moved, and the batch stands there.
    let mut moved = SegmentFile::first();
    moved.batch(0, 0, 0);
    let end = ExtentEnd { state: ExtentState::Fenced, recovery_epoch: Epoch(1), end: Offset(5) };
    moved.push(FrameKind::End, 0, &end.encode());
    moved.batch(5, 0, 1);
    contradicts(&[&moved], "a batch that does not follow its extent");

    let mut long = SegmentFile::first();
    let mut payload = batch(0, 0, 0);
    payload.extend([0; 8]);
    long.push(FrameKind::Batch, 0, &payload);
    contradicts(&[&long], "a batch that does not follow its extent");
}

/// Their positions overflowed, here or in the log that went on from them.
#[test]
fn segments_at_the_end_of_all_positions_are_a_contradiction() {
    for (sequence, base) in [(1, u64::MAX - 4095), (u64::MAX, 0), (0, 0)] {
        let file = SegmentFile::new(sequence, base, SEGMENT_BYTES);
        contradicts(&[&file], "no log gets to its sequence or position");
    }
}

/// One of the two was read, whichever came last, and the other forgotten.
#[test]
fn two_files_that_are_the_same_segment_are_a_contradiction() {
    contradicts(
        &[&SegmentFile::first(), &SegmentFile::first()],
        "another file is the same segment",
    );
}

/// The footer was written over them.
#[test]
fn frames_where_the_footer_belongs_are_a_contradiction() {
    let mut file = SegmentFile::first();
    let mut next = 0;
    while file.position + 320 <= SEGMENT_BYTES as usize {
        file.batch(next, 0, next);
        next += 1;
    }
    contradicts(&[&file], "its frames leave no room for a footer");
}

/// It was waited for with ever the same window of the file.
#[test]
fn a_frame_longer_than_any_ends_the_log() {
    let mut file = SegmentFile::new(1, 0, 20 << 20);
    file.push(FrameKind::SnapshotEnd, 0, &0_u64.to_le_bytes());
    let frame = LogFrame { payload_bytes: 17 << 20, ..file.frame(FrameKind::Snapshot, 0, &[]) };
    put(&mut file.bytes, file.position, frame.encode());
    assert_eq!(recovered(&[&file]).unwrap().end, Lsn(8192));
}

#[test]
fn an_extent_behind_which_there_is_no_number_is_a_contradiction() {
    let mut file = SegmentFile::first();
    let mut open = Vec::new();
    record(u32::MAX).encode_into(&mut open);
    file.push(FrameKind::Open, u32::MAX, &open);
    let error = recovered(&[&file]).unwrap_err();
    assert!(matches!(error, RecoveryError::Contradiction { .. }), "{error}");
}

/// Its checksum matched, so it was believed: what it said of the segment was not there.
#[test]
fn a_footer_that_is_not_true_to_its_segment_is_made_anew() {
    let mut older = SegmentFile::first();
    older.batch(0, 0, 0);
    let end = Lsn(8192);
    let mut index = SegmentIndex::new(1);
    let (lsn, first_offset) = (Lsn(SEGMENT_BYTES - 64), Offset(0));
    index.push(0, Location { first_offset, records: 1, batch_bytes: 5000, lsn, append_time_ms: 0 });
    let (footer_at, footer) = encode_footer(&index, 1, Lsn(0), end, SEGMENT_BYTES);
    put(&mut older.bytes, footer_at as usize, &footer);

    let mut newest = SegmentFile::new(2, SEGMENT_BYTES, SEGMENT_BYTES);
    let header = SegmentHeader { previous_end: end, ..newest.header };
    put(&mut newest.bytes, 0, header.encode());
    let mut snapshot = Vec::new();
    ExtentRecord { end: Offset(1), ..record(0) }.encode_into(&mut snapshot);
    newest.push(FrameKind::Snapshot, 0, &snapshot);
    newest.push(FrameKind::SnapshotEnd, 0, &1_u64.to_le_bytes());
    let log = recovered(&[&older, &newest]).unwrap();
    let run = log.extents[&0].runs[0];
    assert_eq!((run.sequence, run.batches, run.bytes), (1, 1, batch(0, 0, 0).len() as u32));
}

/// A segment that never counted made a log of its class at the first start, and none at the second.
#[test]
fn a_class_whose_segments_never_counted_has_no_log() {
    let first = SegmentFile::first();
    let other = SegmentFile::new(sequence_before(3) + 1, 0, SEGMENT_BYTES);
    let logs = all_recovered(&[&first, &other]).unwrap();
    assert_eq!((logs.len(), &logs[0].free[..]), (1, &[1][..]));
    let mut counts = SegmentFile::new(sequence_before(3) + 1, 0, SEGMENT_BYTES);
    counts.header.first_live_sequence = counts.header.sequence;
    put(&mut counts.bytes, 0, counts.header.encode());
    counts.push(FrameKind::SnapshotEnd, 0, &0_u64.to_le_bytes());
    assert_eq!(all_recovered(&[&first, &counts]).unwrap().len(), 2);
}

/// An archive that has two records of one shard, both of which ended.
fn archive(sequence: u64) -> SegmentFile {
    let mut file = SegmentFile::new(sequence, SEGMENT_BYTES, SEGMENT_BYTES);
    file.header.origin = SegmentOrigin::Merged;
    put(&mut file.bytes, 0, file.header.encode());
    let mut records = Vec::new();
    for number in 0..2 {
        ExtentRecord { state: ExtentState::Sealed, ..record(number) }.encode_into(&mut records);
    }
    file.push(FrameKind::Snapshot, 0, &records);
    file
}

/// A segment whose snapshot names an archive and has extent 2 itself, and says that all are `count`.
fn naming(named: &[ArchivedRecords], end: u64, count: u64) -> SegmentFile {
    let mut file = SegmentFile::new(3, 2 * SEGMENT_BYTES, SEGMENT_BYTES);
    let mut payload = Vec::new();
    record(2).encode_into(&mut payload);
    file.push(FrameKind::Snapshot, 0, &payload);
    payload.clear();
    SegmentEntry { sequence: 2, end: Lsn(end), order: 2 }.encode_into(&mut payload);
    file.push(FrameKind::Segments, 0, &payload);
    for records in named {
        payload.clear();
        records.encode_into(&mut payload);
        file.push(FrameKind::Archived, 0, &payload);
    }
    file.push(FrameKind::SnapshotEnd, 0, &count.to_le_bytes());
    file
}

#[test]
fn an_archive_has_what_a_snapshot_leaves_to_it_or_the_log_is_refused() {
    let (archive, end) = (archive(2), SEGMENT_BYTES + 8192);
    let all = |ranges: &[(u32, u32)]| [ArchivedRecords { sequence: 2, ranges: ranges.to_vec() }];
    let log = recovered(&[&archive, &naming(&all(&[(1, 1)]), end, 2)]).unwrap();
    // Of a shard's older extents those of which nothing is kept are forgotten.
    assert_eq!(log.extents.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(log.extents[&1].archived, Some(2));
    let held = |log: &RecoveredLog| log.sealed.iter().map(|held| held.held.records).sum::<u32>();
    assert_eq!(held(&log), 1);

    let lacks = "the snapshot lacks extents";
    contradicts(&[&archive, &naming(&all(&[(1, 1)]), end, 3)], lacks);
    contradicts(&[&archive, &naming(&all(&[(7, 9)]), end, 2)], lacks);
    let other = [ArchivedRecords { sequence: 1, ranges: vec![(1, 1)] }];
    let missing = recovered(&[&archive, &naming(&other, end, 2)]).expect_err("it is not there");
    assert!(matches!(missing, RecoveryError::Missing { sequence: 1 }), "{missing}");
    let beyond = "an archive that does not count, or not so far";
    contradicts(&[&archive, &naming(&all(&[(1, 1)]), 9 * SEGMENT_BYTES, 2)], beyond);
    for at in [4096 + 70, 4096 + 2] {
        let mut damaged = SegmentFile { bytes: archive.bytes.clone(), ..archive };
        damaged.bytes[at] ^= 1;
        let error = recovered(&[&damaged, &naming(&all(&[(1, 1)]), end, 2)]).expect_err("damaged");
        assert!(matches!(error, RecoveryError::DamagedArchive { sequence: 2 }), "{error}");
    }
}
