//! Batches: whatever passes the check can be walked.
//!
//! An input is a byte that says what is repaired, then the batch.

use thalweg_wire::batch::{BATCH_ALIGN, Batch, BatchHeader, HEADER_BYTES, MAGIC, VERSION, assign};
use thalweg_wire::codec::put;
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::Offset;
use thalweg_wire::limits;

use crate::{aligned, repair};

/// The batch's checksums fit.
pub const REPAIR_CHECKSUMS: u8 = 1;
/// The body is as long as the header says.
pub const REPAIR_LENGTH: u8 = 2;
/// Magic, version, flags and reserved bytes are as they should be.
pub const REPAIR_FIXED: u8 = 4;
/// The shard has half of the hash keys.
pub const HALF_RANGE: u8 = 8;

/// Runs an input.
///
/// # Panics
/// When what passed the check is not what it must be.
pub fn run(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else { return };
    let mut bytes = aligned(bytes);
    if bytes.len() >= HEADER_BYTES {
        if mode & REPAIR_FIXED != 0 {
            put(&mut bytes, 0, MAGIC.to_le_bytes());
            put(&mut bytes, 4, VERSION.to_le_bytes());
            put(&mut bytes, 6, [0; 2]);
            put(&mut bytes, 56, [0; 4]);
            put(&mut bytes, 88, [0; 36]);
        }
        if mode & REPAIR_LENGTH != 0 {
            let body_bytes = (bytes.len() - HEADER_BYTES) as u32;
            put(&mut bytes, 8, body_bytes.to_le_bytes());
        }
        if mode & REPAIR_CHECKSUMS != 0 {
            repair::batch(&mut bytes);
        }
    }
    let end = if mode & HALF_RANGE != 0 { HashKey(u128::MAX / 2) } else { HashKey(u128::MAX) };
    check(&mut bytes, &HashRange { start: HashKey(0), end });
}

/// Checks a batch, and walks it when it passes.
///
/// # Panics
/// When what passed is not what it must be.
pub fn check(bytes: &mut [u8], range: &HashRange) {
    // An empty copy has no memory that could be aligned.
    assert!(bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(BATCH_ALIGN));
    let header = match Batch::check(bytes, range) {
        Ok(batch) => {
            walk(&batch, range);
            batch.header
        }
        Err(error) => {
            let _ = (error.to_string(), error.refusal().to_string());
            return;
        }
    };
    assert_eq!(header.encode(), bytes[..HEADER_BYTES], "a header is encoded as it was");
    // Where a leader puts it, it is the same batch.
    let in_place = bytes.first_chunk_mut::<HEADER_BYTES>().expect("a header was there");
    assign(in_place, Offset(1000), 7);
    let assigned = Batch::check(bytes, range).expect("it was one before");
    let same = BatchHeader { first_offset: Offset(1000), append_time_ms: 7, ..header };
    assert_eq!(assigned.header, same);
}

/// Walks a batch that passed the check, to its last record.
///
/// # Panics
/// When it is not what it must be.
pub fn walk(batch: &Batch<'_>, range: &HashRange) {
    let body = batch.body().as_ptr_range();
    let within = |bytes: &[u8]| {
        let place = bytes.as_ptr_range();
        bytes.is_empty() || (body.start <= place.start && place.end <= body.end)
    };
    let records = batch.records();
    assert_eq!(records.len(), batch.header.records as usize);
    let (mut count, mut charged) = (0, 0);
    for record in records {
        assert_eq!(record.offset.0, batch.header.first_offset.0 + count);
        assert!((1..=limits::PARTITION_KEY_BYTES_MAX as usize).contains(&record.key.len()));
        assert!(record.key.len() + record.data.len() <= limits::RECORD_BYTES_MAX as usize);
        assert!(range.contains(record.hash_key));
        assert!(within(record.key) && within(record.data), "a slice lies in the body");
        charged += (record.key.len() + record.data.len()) as u64;
        count += 1;
    }
    assert_eq!(charged, batch.charged_bytes());
    assert_eq!(batch.header.first_offset.0 + count, batch.header.end_offset().0);
    assert_eq!(batch.body().len() + HEADER_BYTES, batch.header.batch_bytes());
}
