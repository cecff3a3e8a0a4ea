//! What rests in a segment, read and checked: one rule for what readers are served, what is
//! copied forward and what a scrub looks at.

use thalweg_wire::batch::{BatchHeader, HEADER_BYTES};
use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::align_up;
use thalweg_wire::ids::Lsn;

use super::footer::{Footer, Trailer};
use super::format::{FRAME_HEADER_BYTES, LogFrame};
use super::index::Location;
use super::recovery::{Bytes, LogFiles};
use crate::config::BLOCK_BYTES;
use crate::io::Errno;

/// Bytes read at a time, unless a single batch is larger.
const WINDOW_BYTES: u64 = 1 << 20;
/// Batches that lie no further apart than this are read together.
const GAP_BYTES: u64 = 64 << 10;

/// Holds a stored frame and its batch against what the index says of them; answers the batch's
/// header, or nothing when they are damaged or another's.
#[must_use]
pub fn check_stored(bytes: &[u8], sequence: u64, location: &Location) -> Option<BatchHeader> {
    let frame = LogFrame::decode(bytes, sequence, location.lsn).ok()?;
    let batch = bytes[FRAME_HEADER_BYTES..].get(..location.batch_bytes as usize)?;
    let header = BatchHeader::decode(batch).ok()?;
    let intact = frame.payload_bytes == location.batch_bytes
        && header.first_offset == location.first_offset
        && header.records == location.records
        && header.batch_bytes() == batch.len()
        && crc32c(&batch[HEADER_BYTES..]) == header.body_crc;
    intact.then_some(header)
}

/// A sealed segment, with its file by its place in the list of a [`LogFiles`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredSegment {
    /// Its file.
    pub file: usize,
    /// Its sequence.
    pub sequence: u64,
    /// Position of its first byte.
    pub base: Lsn,
    /// Its last block.
    pub trailer: Trailer,
    /// Whether it has records of extents, and no batches.
    pub is_archive: bool,
}

/// Reads a segment's footer; `None` when it is damaged.
///
/// # Errors
/// When the disk refuses.
pub async fn read_footer(
    files: &impl LogFiles,
    segment: &StoredSegment,
) -> Result<Option<Bytes>, Errno> {
    let length = align_up(segment.trailer.body_bytes(), BLOCK_BYTES) as usize;
    let bytes = match length {
        0 => Bytes::new(),
        _ => files.read(segment.file, segment.trailer.footer_at, length).await?,
    };
    Ok(Footer::check(&bytes, &segment.trailer, segment.base).is_ok().then_some(bytes))
}

/// Reads the batches at `wanted`, which are in the order of their positions, a window at a time;
/// hands each to `take` with the bytes of its frame and batch if they are intact, and stops when
/// it answers false.
///
/// # Errors
/// When the disk refuses.
pub async fn each_stored(
    files: &impl LogFiles,
    segment: &StoredSegment,
    wanted: &[(u32, Location)],
    mut take: impl AsyncFnMut(u32, &Location, Option<&[u8]>) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    let start_of = |location: &Location| location.lsn.0 - segment.base.0;
    let end_of = |location: &Location| {
        start_of(location) + FRAME_HEADER_BYTES as u64 + u64::from(location.batch_bytes)
    };
    let mut rest = wanted;
    while let Some((_, first)) = rest.first() {
        let window_at = start_of(first) & !(BLOCK_BYTES - 1);
        let mut end = end_of(first);
        let close = |end: u64, next: &Location| {
            start_of(next) <= end + GAP_BYTES && end_of(next) - window_at <= WINDOW_BYTES
        };
        let mut count = 1;
        while let Some((_, next)) = rest.get(count).filter(|(_, next)| close(end, next)) {
            // Batches of different extents may overlap where a footer is not true.
            end = end.max(end_of(next));
            count += 1;
        }
        let bytes = (align_up(end, BLOCK_BYTES) - window_at) as usize;
        let window = files.read(segment.file, window_at, bytes).await?;
        let (group, after) = rest.split_at(count);
        for (extent, location) in group {
            let range =
                (start_of(location) - window_at) as usize..(end_of(location) - window_at) as usize;
            let stored = &window[range];
            let intact = check_stored(stored, segment.sequence, location).is_some();
            if !take(*extent, location, intact.then_some(stored)).await? {
                return Ok(());
            }
        }
        rest = after;
    }
    Ok(())
}
