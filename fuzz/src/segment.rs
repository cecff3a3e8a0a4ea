//! Recovery: whatever the files of a log hold, it ends, with a log or with an error that says why
//! not; and a log that was recovered is recovered again as the same.
//!
//! An input is a byte that says what follows and what is repaired. Then either sections of files
//! (which file, where in units of 64 bytes, how many bytes, the bytes), or the choices of a
//! [`crate::history`].

use arbitrary::Unstructured;
use thalweg_node::io::FileId;
use thalweg_node::log::extent::ExtentRecord;
use thalweg_node::log::footer::Footer;
use thalweg_node::log::format::class_of;
use thalweg_node::log::index::Target;
use thalweg_node::log::recovery::{Bytes, RecoveredLog, recover};
use thalweg_node::log::scrub::scrub;
use thalweg_node::log::search::Search;
use thalweg_node::log::segments::{Extent, Log, LogIdentity};
use thalweg_node::log::stored::{StoredSegment, read_footer};
use thalweg_wire::codec::u16_at;
use thalweg_wire::ids::{BootId, Offset};

use crate::files::{DISK, FILE_BYTES, FILES, LOG, MemoryFiles};
use crate::{history, ready, repair};

/// Checksums fit.
pub const REPAIR_CHECKSUMS: u8 = 1;
/// What says where frames and headers belong is right.
pub const REPAIR_IDENTITY: u8 = 2;
/// The bytes are the choices of a history.
pub const IS_HISTORY: u8 = 4;

/// Bytes of a section before its content: file, place, length.
pub const SECTION_BYTES: usize = 5;
/// What a section's place counts.
pub const SECTION_UNIT: usize = 64;

/// Runs an input.
///
/// # Panics
/// When recovery breaks its promise.
pub fn run(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else { return };
    let mut files = if mode & IS_HISTORY != 0 {
        history::files(&mut Unstructured::new(bytes)).unwrap_or_else(|_| empty_files())
    } else {
        sections(bytes)
    };
    if mode & REPAIR_CHECKSUMS != 0 {
        let whole = files.iter_mut().filter(|file| file.len() as u64 == FILE_BYTES);
        whole.for_each(|file| repair::segment(file, mode & REPAIR_IDENTITY != 0));
    }
    let files = MemoryFiles::new(files);
    let first = ready(recover(&files, DISK, LOG, FILE_BYTES));
    let second = ready(recover(&files, DISK, LOG, FILE_BYTES));
    match (first, second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first.len(), second.len());
            first.iter().zip(&second).for_each(|(first, second)| compare(first, second));
            account(&first);
            first.into_iter().for_each(|log| go_on(&files, log));
        }
        (Err(first), Err(second)) => assert_eq!(first.to_string(), second.to_string()),
        (first, second) => panic!("first {:?}, then {:?}", first.map(drop), second.map(drop)),
    }
}

/// Files of zeroes.
#[must_use]
pub fn empty_files() -> Vec<Vec<u8>> {
    vec![vec![0; FILE_BYTES as usize]; FILES]
}

fn sections(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut files = empty_files();
    while let Some((head, rest)) = bytes.split_at_checked(SECTION_BYTES) {
        let file = &mut files[head[0] as usize % FILES];
        let at = u16_at(head, 1) as usize * SECTION_UNIT % FILE_BYTES as usize;
        let length = (u16_at(head, 3) as usize).min(rest.len()).min(file.len() - at);
        file[at..at + length].copy_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    files
}

fn compare(first: &RecoveredLog, second: &RecoveredLog) {
    assert_eq!(first.end, second.end);
    assert_eq!(first.sealed.len(), second.sealed.len());
    for (one, other) in first.sealed.iter().zip(&second.sealed) {
        assert_eq!((one.sequence, one.file, one.base), (other.sequence, other.file, other.base));
        assert_eq!((one.trailer, one.order, one.held), (other.trailer, other.order, other.held));
    }
    assert_eq!(first.extents.len(), second.extents.len());
    for (one, other) in first.extents.iter().zip(&second.extents) {
        assert_eq!((one.0, &one.1.record, &one.1.runs), (other.0, &other.1.record, &other.1.runs));
        assert_eq!(one.1.archived, other.1.archived);
    }
}

/// Every file is one thing, and what is kept in segments is what extents have there.
fn account(logs: &[RecoveredLog]) {
    let mut files: Vec<usize> = Vec::new();
    for log in logs {
        files.extend(log.sealed.iter().map(|segment| segment.file));
        files.extend(log.free.iter().chain(&log.unfinished));
        account_of(log);
    }
    files.sort_unstable();
    assert_eq!(files, (0..FILES).collect::<Vec<_>>(), "every file is accounted for, once");
    assert!(logs[0].retention_class == 0 && logs.is_sorted_by_key(|log| log.retention_class));
}

fn account_of(log: &RecoveredLog) {
    let runs = log.extents.values().flat_map(|extent| &extent.runs);
    let kept: u64 = runs.map(|run| u64::from(run.bytes)).sum();
    let held: u64 = log.sealed.iter().map(|segment| segment.held.bytes).sum();
    assert_eq!(kept, held);
    for segment in &log.sealed {
        assert_eq!(class_of(segment.sequence), log.retention_class);
        assert!(segment.sequence <= log.sequence && segment.base < log.next_base);
        let of_this = |extent: &&Extent| extent.archived == Some(segment.sequence);
        let records = log.extents.values().filter(of_this).count();
        assert_eq!(segment.held.records as usize, records);
    }
    let listed = |archive| log.sealed.iter().any(|segment| segment.sequence == archive);
    assert!(log.extents.values().filter_map(|extent| extent.archived).all(listed));
    for (number, extent) in &log.extents {
        let mut bytes = Vec::new();
        extent.record.encode_into(&mut bytes);
        let (decoded, length) = ExtentRecord::decode(&bytes).expect("it is in the next snapshot");
        assert_eq!((*number, length), (extent.record.number, bytes.len()));
        assert_eq!(decoded, extent.record);
    }
}

/// What a node does with the log: it searches and reads it.
fn go_on(files: &MemoryFiles, recovered: RecoveredLog) {
    let mut footers: Vec<(StoredSegment, Bytes)> = Vec::new();
    let newest = |end| recovered.end == end;
    let ends = recovered.sealed.iter().filter(|segment| newest(segment.trailer.end)).count();
    for segment in &recovered.sealed {
        let stored = StoredSegment {
            file: segment.file,
            sequence: segment.sequence,
            base: segment.base,
            trailer: segment.trailer,
            is_archive: segment.held.records > 0,
        };
        let bytes = ready(read_footer(files, &stored)).expect("memory is read");
        footers.push((stored, bytes.expect("a segment that counts has a footer")));
        let report = ready(scrub(files, &stored)).expect("memory is read");
        assert_eq!(report.batches, u64::from(stored.trailer.entries));
        let scanned = ends == 1 && newest(stored.trailer.end);
        assert!(!scanned || report.damaged == 0, "what was scanned is whole");
    }
    let identity = LogIdentity {
        index: 0,
        disk: DISK,
        log: LOG,
        retention_class: recovered.retention_class,
        segment_bytes: FILE_BYTES,
        boot: BootId(99),
    };
    let log = Log::new(identity, recovered.into_state(|file| FileId(file as u32)));
    for (number, extent) in log.extents() {
        let footer = |sequence| {
            let (stored, bytes) = footers.iter().find(|(stored, _)| stored.sequence == sequence)?;
            Some(Footer::checked(bytes, &stored.trailer, stored.base))
        };
        let mut batches: u32 = 0;
        let all = Target::Offset(Offset(0));
        let found = log.search(*number, all, Offset(u64::MAX), footer, |_| {
            batches += 1;
            true
        });
        assert_eq!(found, Search::Done);
        assert_eq!(batches, extent.runs.iter().map(|run| run.batches).sum::<u32>());
    }
}
