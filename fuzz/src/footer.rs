//! Footers and trailers: whatever passes the check can be searched, and what it names lies in its
//! segment.
//!
//! An input is a byte that says what is repaired, bytes 16 to 56 of the trailer, then the
//! directory and the entries.

use thalweg_node::config::BLOCK_BYTES;
use thalweg_node::log::footer::{Footer, Trailer};
use thalweg_node::log::format::FRAME_HEADER_BYTES;
use thalweg_node::log::index::{Location, Target};
use thalweg_node::log::scrub::scrub;
use thalweg_node::log::stored::StoredSegment;
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{align_up, put, u32_at};
use thalweg_wire::ids::{Lsn, Offset};

use crate::files::{FILE_BYTES, MemoryFiles};
use crate::{ready, repair};

/// Magic, version and checksums fit.
pub const REPAIR_CHECKSUMS: u8 = 1;
/// The footer stands where its length says, under the segment's generation.
pub const REPAIR_PLACE: u8 = 2;
/// The counts add up to the bytes that are there.
pub const REPAIR_COUNTS: u8 = 4;

/// Generation of the segment.
pub const GENERATION: u64 = 9;
/// Position of the segment.
pub const BASE: Lsn = Lsn(FILE_BYTES * 8);
/// Bytes of the trailer that an input has, and where they stand.
pub const TRAILER_FIELDS: std::ops::Range<usize> = 16..56;
const PART_BYTES: usize = 32;

/// Runs an input.
///
/// # Panics
/// When what passed the check is not what it must be.
pub fn run(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let Some((fields, body)) = rest.split_at_checked(TRAILER_FIELDS.len()) else { return };
    let body = &body[..body.len().min((FILE_BYTES - 2 * BLOCK_BYTES) as usize)];
    let mut block = vec![0; BLOCK_BYTES as usize];
    block[TRAILER_FIELDS].copy_from_slice(fields);
    repair_trailer(*mode, &mut block, body);
    let trailer = match Trailer::decode(&block, GENERATION, FILE_BYTES) {
        Ok(trailer) => trailer,
        Err(fault) => {
            let _ = fault.to_string();
            return;
        }
    };
    let encoded = Trailer::decode(&trailer.encode(), GENERATION, FILE_BYTES);
    assert_eq!(encoded, Ok(trailer));
    let mut bytes = body.to_vec();
    bytes.resize((FILE_BYTES - BLOCK_BYTES - trailer.footer_at) as usize, 0);
    match Footer::check(&bytes, &trailer, BASE) {
        Ok(footer) => search(&footer, &trailer),
        Err(fault) => {
            let _ = fault.to_string();
            return;
        }
    }
    // Who reads what the footer names finds nothing there, and says so.
    let mut file = vec![0; FILE_BYTES as usize];
    put(&mut file, trailer.footer_at as usize, &bytes);
    let segment =
        StoredSegment { file: 0, sequence: GENERATION, base: BASE, trailer, is_archive: false };
    let report = ready(scrub(&MemoryFiles::new(vec![file]), &segment)).expect("memory is read");
    assert_eq!(report.damaged, u64::from(trailer.entries));
}

fn repair_trailer(mode: u8, block: &mut [u8], body: &[u8]) {
    if mode & REPAIR_COUNTS != 0 {
        let parts = (body.len() / PART_BYTES) as u32;
        let extents = u32_at(block, 40).min(parts);
        put(block, 40, extents.to_le_bytes());
        put(block, 44, (parts - extents).to_le_bytes());
    }
    if mode & REPAIR_PLACE != 0 {
        put(block, 16, GENERATION.to_le_bytes());
        let counted = (u64::from(u32_at(block, 40)) + u64::from(u32_at(block, 44))) * 32;
        let footer_at = (FILE_BYTES - BLOCK_BYTES).wrapping_sub(align_up(counted, BLOCK_BYTES));
        put(block, 32, footer_at.to_le_bytes());
    }
    if mode & REPAIR_CHECKSUMS != 0 {
        let counted = (u64::from(u32_at(block, 40)) + u64::from(u32_at(block, 44))) * 32;
        if let Some(body) = body.get(..counted as usize) {
            put(block, 48, crc32c(body).to_le_bytes());
        }
        repair::block(block, repair::TRAILER_MAGIC);
    }
}

fn search(footer: &Footer<'_>, trailer: &Trailer) {
    let mut entries = 0;
    let mut last_extent = None;
    for part in footer.parts() {
        assert!(last_extent < Some(part.extent), "extents come in the order of their numbers");
        last_extent = Some(part.extent);
        let all: Vec<Location> = footer.from(part.extent, Target::Offset(Offset(0))).collect();
        let (batches, bytes, last_time_ms) = footer.sums(&part);
        let first = all.first().expect("an extent in a footer has a batch");
        let last = all.last().expect("the same");
        assert_eq!(
            (part.first_offset, part.first_time_ms),
            (first.first_offset, first.append_time_ms)
        );
        assert_eq!((batches as usize, last_time_ms), (all.len(), last.append_time_ms));
        let sum: u64 = all.iter().map(|location| u64::from(location.batch_bytes)).sum();
        assert_eq!(u64::from(bytes), sum);
        for location in &all {
            let start = location.lsn.0 - BASE.0;
            let end = start + FRAME_HEADER_BYTES as u64 + u64::from(location.batch_bytes);
            assert!(start >= BLOCK_BYTES && end <= trailer.footer_at, "it lies in the segment");
            let by_offset = footer.from(part.extent, Target::Offset(location.first_offset)).next();
            assert_eq!(by_offset, Some(*location));
            let by_time = footer.from(part.extent, Target::Time(location.append_time_ms)).next();
            let by_time = by_time.expect("the batch itself, or one before it");
            assert_eq!(by_time.append_time_ms, location.append_time_ms);
        }
        let behind = footer.from(part.extent, Target::Offset(last.end_offset())).next();
        assert_eq!(behind, None);
        entries += batches;
    }
    assert_eq!(entries, trailer.entries, "every batch is some extent's");
}
