//! Scrub: what rests is read and checked before somebody needs it, so that damage is found while
//! a copy elsewhere may still be whole.

use thalweg_wire::ids::Offset;

use super::archive::{ArchiveAt, read_archive};
use super::footer::Footer;
use super::index::{Location, Target};
use super::recovery::LogFiles;
use super::stored::{StoredSegment, each_stored, read_footer};
use crate::io::Errno;

/// What the scrub of a segment came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubReport {
    /// Batches checked.
    pub batches: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Batches that are damaged; all of a segment's when its footer is.
    pub damaged: u64,
    /// Whether it is an archive, and damaged.
    pub damaged_archive: bool,
}

/// Reads all batches of a segment, or all records of an archive, and checks them.
///
/// # Errors
/// When the disk refuses to read.
pub async fn scrub(files: &impl LogFiles, segment: &StoredSegment) -> Result<ScrubReport, Errno> {
    let mut report = ScrubReport::default();
    if segment.is_archive {
        let StoredSegment { file, sequence, base, .. } = *segment;
        let archive = ArchiveAt { file, sequence, base, end: segment.trailer.end };
        report.damaged_archive = read_archive(files, archive).await?.is_none();
        return Ok(report);
    }
    let Some(bytes) = read_footer(files, segment).await? else {
        tracing::error!(sequence = segment.sequence, "a scrub found a damaged footer");
        report.damaged = u64::from(segment.trailer.entries);
        return Ok(report);
    };
    let footer = Footer::checked(&bytes, &segment.trailer, segment.base);
    let mut batches: Vec<(u32, Location)> = Vec::new();
    for part in footer.parts() {
        let all = footer.from(part.extent, Target::Offset(Offset(0)));
        batches.extend(all.map(|location| (part.extent, location)));
    }
    batches.sort_unstable_by_key(|(_, location)| location.lsn);
    each_stored(files, segment, &batches, async |extent, location, stored| {
        report.batches += 1;
        report.bytes += u64::from(location.batch_bytes);
        if stored.is_none() {
            report.damaged += 1;
            tracing::error!(
                sequence = segment.sequence,
                extent,
                first_offset = location.first_offset.0,
                lsn = location.lsn.0,
                "a scrub found a damaged batch; it is not served"
            );
        }
        Ok(true)
    })
    .await?;
    Ok(report)
}
