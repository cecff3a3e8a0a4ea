//! Where the batches of a sealed segment stand: on disk, at the segment's end, searched there.
//!
//! A footer is a directory of extents, sorted by number, and their entries, sorted by offset
//! within each; a trailer in the segment's last block says where they are. It is written before
//! the next segment's first byte: a segment that has a successor has a footer.

use thalweg_wire::checksum::crc32c;
use thalweg_wire::codec::{align_up, put, u32_at, u64_at};
use thalweg_wire::ids::{Lsn, Offset};
use thalweg_wire::limits::FIRST_OFFSET_MAX;
use thiserror::Error;

use super::format::{FRAME_HEADER_BYTES, HeaderFault, check_block, header_block, seal_block};
use super::index::{Location, SegmentIndex, Target};
use crate::config::BLOCK_BYTES;

const TRAILER_MAGIC: [u8; 8] = *b"THALWEGF";
/// Bytes of an extent in the directory.
const EXTENT_BYTES: usize = 32;
/// Bytes of a batch's entry.
const ENTRY_BYTES: usize = 32;

/// The last block of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Sequence of the segment.
    pub generation: u64,
    /// Position after the segment's last frame.
    pub end: Lsn,
    /// Where the footer begins, in bytes from the segment's start.
    pub footer_at: u64,
    /// Extents in the directory.
    pub extents: u32,
    /// Entries behind it.
    pub entries: u32,
    /// CRC32C of directory and entries.
    pub crc: u32,
}

/// Why a footer cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FooterFault {
    /// The trailer is none.
    #[error("the segment's trailer: {0}")]
    Trailer(#[from] HeaderFault),
    /// It is another use's of the file.
    #[error("the trailer is of generation {found}, the segment of {expected}")]
    Generation {
        /// What stands there.
        found: u64,
        /// What should.
        expected: u64,
    },
    /// Counts or places contradict each other.
    #[error("the trailer points outside of the segment")]
    Place,
    /// The checksum does not match.
    #[error("the footer's checksum does not match")]
    Checksum,
    /// The checksum matches, and directory and entries are not what a segment has.
    #[error("the footer contradicts itself")]
    Contradiction,
}

impl Trailer {
    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = header_block(TRAILER_MAGIC, BLOCK_BYTES as usize);
        put(&mut bytes, 16, self.generation.to_le_bytes());
        put(&mut bytes, 24, self.end.0.to_le_bytes());
        put(&mut bytes, 32, self.footer_at.to_le_bytes());
        put(&mut bytes, 40, self.extents.to_le_bytes());
        put(&mut bytes, 44, self.entries.to_le_bytes());
        put(&mut bytes, 48, self.crc.to_le_bytes());
        seal_block(&mut bytes);
        bytes
    }

    /// Takes the last block of a segment apart.
    ///
    /// # Errors
    /// [`FooterFault`].
    pub fn decode(
        block: &[u8],
        generation: u64,
        segment_bytes: u64,
    ) -> Result<Trailer, FooterFault> {
        check_block(block, TRAILER_MAGIC)?;
        let trailer = Trailer {
            generation: u64_at(block, 16),
            end: Lsn(u64_at(block, 24)),
            footer_at: u64_at(block, 32),
            extents: u32_at(block, 40),
            entries: u32_at(block, 44),
            crc: u32_at(block, 48),
        };
        if trailer.generation != generation {
            return Err(FooterFault::Generation {
                found: trailer.generation,
                expected: generation,
            });
        }
        let end = trailer.footer_at.checked_add(align_up(trailer.body_bytes(), BLOCK_BYTES));
        if !trailer.footer_at.is_multiple_of(BLOCK_BYTES)
            || end != Some(segment_bytes - BLOCK_BYTES)
        {
            return Err(FooterFault::Place);
        }
        Ok(trailer)
    }

    /// Bytes of directory and entries.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        u64::from(self.extents) * EXTENT_BYTES as u64 + u64::from(self.entries) * ENTRY_BYTES as u64
    }
}

/// Bytes at the end of a segment that a footer needs.
#[must_use]
pub fn footer_bytes(extents: usize, entries: usize) -> u64 {
    align_up((extents * EXTENT_BYTES + entries * ENTRY_BYTES) as u64, BLOCK_BYTES) + BLOCK_BYTES
}

/// Footer and trailer of a segment: what stands from `footer_at` to the segment's end.
#[must_use]
pub fn encode_footer(
    index: &SegmentIndex,
    generation: u64,
    base: Lsn,
    end: Lsn,
    segment_bytes: u64,
) -> (u64, Vec<u8>) {
    let (extents, entries) = (index.extents(), index.len());
    let length = footer_bytes(extents, entries);
    let mut bytes = vec![0; length as usize];
    let (mut directory_at, mut entry) = (0, 0);
    for (extent, locations) in index.by_extent() {
        let first_entry = entry;
        for location in locations {
            let at = extents * EXTENT_BYTES + entry * ENTRY_BYTES;
            if entry == first_entry {
                put(&mut bytes, directory_at + 16, location.first_offset.0.to_le_bytes());
                put(&mut bytes, directory_at + 24, location.append_time_ms.to_le_bytes());
            }
            put(&mut bytes, at, location.first_offset.0.to_le_bytes());
            put(&mut bytes, at + 8, location.append_time_ms.to_le_bytes());
            put(&mut bytes, at + 16, location.records.to_le_bytes());
            put(&mut bytes, at + 20, location.batch_bytes.to_le_bytes());
            let position = u32::try_from(location.lsn.0 - base.0).expect("segments end at 4 GiB");
            put(&mut bytes, at + 24, position.to_le_bytes());
            entry += 1;
        }
        put(&mut bytes, directory_at, extent.to_le_bytes());
        put(&mut bytes, directory_at + 4, (first_entry as u32).to_le_bytes());
        put(&mut bytes, directory_at + 8, ((entry - first_entry) as u32).to_le_bytes());
        directory_at += EXTENT_BYTES;
    }
    let body_bytes = extents * EXTENT_BYTES + entries * ENTRY_BYTES;
    let trailer = Trailer {
        generation,
        end,
        footer_at: segment_bytes - length,
        extents: extents as u32,
        entries: entries as u32,
        crc: crc32c(&bytes[..body_bytes]),
    };
    let trailer_at = bytes.len() - BLOCK_BYTES as usize;
    bytes[trailer_at..].copy_from_slice(&trailer.encode());
    (trailer.footer_at, bytes)
}

/// An extent's part of a segment, as the directory has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentPart {
    /// The log's number of the extent.
    pub extent: u32,
    /// First offset in the segment.
    pub first_offset: Offset,
    /// Append time of the first batch, milliseconds since 1970.
    pub first_time_ms: u64,
    first_entry: u32,
    entries: u32,
}

/// A footer in memory.
#[derive(Clone, Copy, Debug)]
pub struct Footer<'a> {
    directory: &'a [u8],
    entries: &'a [u8],
    base: Lsn,
}

impl<'a> Footer<'a> {
    /// Checks the bytes of a footer against its trailer: what passes can be searched, and leads to
    /// places in the segment.
    ///
    /// # Errors
    /// [`FooterFault`] when they do not match, or contradict themselves.
    pub fn check(bytes: &'a [u8], trailer: &Trailer, base: Lsn) -> Result<Self, FooterFault> {
        let body = bytes.get(..trailer.body_bytes() as usize).ok_or(FooterFault::Place)?;
        if crc32c(body) != trailer.crc {
            return Err(FooterFault::Checksum);
        }
        let footer = Footer::checked(body, trailer, base);
        if footer.is_sound(trailer) { Ok(footer) } else { Err(FooterFault::Contradiction) }
    }

    /// Whether the directory covers the entries in order, and each part's follow each other.
    fn is_sound(&self, trailer: &Trailer) -> bool {
        let (mut next_entry, mut last_extent) = (0, None);
        for part in self.parts() {
            let entries = self.entries_of(&part);
            let Some(first) = entries.first() else { return false };
            let begins = (part.first_offset.0, part.first_time_ms);
            let in_order = last_extent < Some(part.extent) && part.first_entry == next_entry;
            let whole = entries.len() == part.entries as usize;
            let named = begins == (u64_at(first, 0), u64_at(first, 8));
            if !in_order || !whole || !named || !follow_each_other(entries, trailer.footer_at) {
                return false;
            }
            next_entry += part.entries;
            last_extent = Some(part.extent);
        }
        next_entry == trailer.entries
    }

    /// The same for bytes that were checked when they were read.
    #[must_use]
    pub fn checked(bytes: &'a [u8], trailer: &Trailer, base: Lsn) -> Self {
        let body = &bytes[..trailer.body_bytes() as usize];
        let (directory, entries) = body.split_at(trailer.extents as usize * EXTENT_BYTES);
        Footer { directory, entries, base }
    }

    /// The extents that the segment has batches of, in the order of their numbers.
    pub fn parts(&self) -> impl Iterator<Item = ExtentPart> + 'a {
        self.directory.as_chunks::<EXTENT_BYTES>().0.iter().map(part)
    }

    /// Batches of a part, their bytes, and the append time of the last.
    #[must_use]
    pub fn sums(&self, part: &ExtentPart) -> (u32, u32, u64) {
        let entries = self.entries_of(part);
        // They lie side by side in a segment: their sum is no longer than that.
        let bytes = entries.iter().map(|entry| u32_at(entry, 20)).sum();
        (entries.len() as u32, bytes, entries.last().map_or(0, |entry| u64_at(entry, 8)))
    }

    fn entries_of(&self, part: &ExtentPart) -> &'a [[u8; ENTRY_BYTES]] {
        let (all, _) = self.entries.as_chunks::<ENTRY_BYTES>();
        // Looked at before it is known to be sound: what lies beyond the entries is not there.
        let start = part.first_entry as usize;
        let end = start.saturating_add(part.entries as usize).min(all.len());
        all.get(start..end).unwrap_or(&[])
    }

    /// The first batch of an extent that does not lie before the target, and those after it.
    pub fn from(&self, extent: u32, target: Target) -> impl Iterator<Item = Location> + use<'a> {
        let (directory, _) = self.directory.as_chunks::<EXTENT_BYTES>();
        let found = directory.binary_search_by_key(&extent, |bytes| u32_at(bytes, 0));
        let entries: &'a [[u8; ENTRY_BYTES]] =
            found.map_or(&[], |place| self.entries_of(&part(&directory[place])));
        let base = self.base;
        let start = entries.partition_point(|bytes| target.is_after(&location(bytes, base)));
        entries[start..].iter().map(move |bytes| location(bytes, base))
    }
}

/// Whether batches of an extent lie in the order of their offsets, without a gap between these, at
/// or after each other's time, and within the segment's frames.
fn follow_each_other(entries: &[[u8; ENTRY_BYTES]], frames_end: u64) -> bool {
    let (mut position, mut next, mut time_ms) = (BLOCK_BYTES, None, 0);
    entries.iter().all(|bytes| {
        let entry = location(bytes, Lsn(0));
        let (start, first_offset) = (entry.lsn.0, entry.first_offset);
        let end = start + FRAME_HEADER_BYTES as u64 + u64::from(entry.batch_bytes);
        let in_place = position <= start && end <= frames_end;
        let countable = entry.records > 0 && first_offset.0 <= FIRST_OFFSET_MAX;
        if !in_place || !countable || next.is_some_and(|next| next != first_offset) {
            return false;
        }
        let in_time = time_ms <= entry.append_time_ms;
        (position, next, time_ms) = (end, Some(entry.end_offset()), entry.append_time_ms);
        in_time
    })
}

fn part(bytes: &[u8; EXTENT_BYTES]) -> ExtentPart {
    ExtentPart {
        extent: u32_at(bytes, 0),
        first_entry: u32_at(bytes, 4),
        entries: u32_at(bytes, 8),
        first_offset: Offset(u64_at(bytes, 16)),
        first_time_ms: u64_at(bytes, 24),
    }
}

fn location(bytes: &[u8; ENTRY_BYTES], base: Lsn) -> Location {
    Location {
        first_offset: Offset(u64_at(bytes, 0)),
        append_time_ms: u64_at(bytes, 8),
        records: u32_at(bytes, 16),
        batch_bytes: u32_at(bytes, 20),
        lsn: Lsn(base.0 + u64::from(u32_at(bytes, 24))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: u64 = 16 << 20;

    fn index() -> SegmentIndex {
        let mut index = SegmentIndex::new(100);
        for at in 0..50_u64 {
            for extent in [7, 3] {
                let location = Location {
                    first_offset: Offset(at * 2),
                    records: 2,
                    batch_bytes: 300,
                    lsn: Lsn(SEGMENT_BYTES + 4096 + at * 1024 + u64::from(extent) * 64),
                    append_time_ms: at / 3,
                };
                index.push(extent, location);
            }
        }
        index
    }

    #[test]
    fn a_footer_finds_what_the_index_finds() {
        let index = index();
        let (base, end) = (Lsn(SEGMENT_BYTES), Lsn(SEGMENT_BYTES + 99_968));
        let (footer_at, bytes) = encode_footer(&index, 9, base, end, SEGMENT_BYTES);
        assert_eq!(footer_at + bytes.len() as u64, SEGMENT_BYTES);
        let trailer = Trailer::decode(&bytes[bytes.len() - 4096..], 9, SEGMENT_BYTES).unwrap();
        assert_eq!((trailer.end, trailer.footer_at), (end, footer_at));
        let footer = Footer::check(&bytes, &trailer, base).unwrap();
        let numbers: Vec<u32> = footer.parts().map(|part| part.extent).collect();
        assert_eq!(numbers, [3, 7]);
        for extent in [3, 7, 5] {
            for at in 0..101 {
                let targets = [Target::Offset(Offset(at)), Target::Time(at)];
                for target in targets {
                    let expected: Vec<_> = index.from(extent, target).collect();
                    let found: Vec<_> = footer.from(extent, target).collect();
                    assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn damage_and_other_generations_are_refused() {
        let base = Lsn(SEGMENT_BYTES);
        let (_, bytes) = encode_footer(&index(), 9, base, base, SEGMENT_BYTES);
        let block = &bytes[bytes.len() - 4096..];
        let other = Trailer::decode(block, 8, SEGMENT_BYTES);
        assert_eq!(other, Err(FooterFault::Generation { found: 9, expected: 8 }));
        assert_eq!(Trailer::decode(block, 9, SEGMENT_BYTES * 2), Err(FooterFault::Place));
        let trailer = Trailer::decode(block, 9, SEGMENT_BYTES).unwrap();
        for at in 0..trailer.body_bytes() as usize {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            let fault = Footer::check(&damaged, &trailer, base).map(|_| ()).unwrap_err();
            assert_eq!(fault, FooterFault::Checksum);
        }
        assert!(Footer::check(&bytes[..100], &trailer, base).is_err());
    }

    /// Footers whose checksum matched and whose content led out of the segment: sums and positions
    /// overflowed, searches read beyond the file.
    #[test]
    fn contradictions_are_refused_though_the_checksum_matches() {
        let base = Lsn(SEGMENT_BYTES);
        let (_, bytes) = encode_footer(&index(), 9, base, base, SEGMENT_BYTES);
        let trailer = Trailer::decode(&bytes[bytes.len() - 4096..], 9, SEGMENT_BYTES).unwrap();
        let entry = |at: usize| 2 * EXTENT_BYTES + at * ENTRY_BYTES;
        let forged = |at: usize, field: &[u8]| {
            let mut forged = bytes.clone();
            put(&mut forged, at, field);
            let crc = crc32c(&forged[..trailer.body_bytes() as usize]);
            Footer::check(&forged, &Trailer { crc, ..trailer }, base).map(|_| ())
        };
        assert_eq!(forged(entry(0), &0_u64.to_le_bytes()), Ok(()), "as it was");
        for (what, at, field) in [
            ("extents out of order", 0, &9_u32.to_le_bytes()[..]),
            ("entries left out", 4, &1_u32.to_le_bytes()),
            ("entries beyond the last", EXTENT_BYTES + 8, &u32::MAX.to_le_bytes()),
            ("an extent without entries", 8, &0_u32.to_le_bytes()),
            ("another first offset", 16, &1_u64.to_le_bytes()),
            ("another first time", 24, &1_u64.to_le_bytes()),
            ("a gap between offsets", entry(3), &7_u64.to_le_bytes()),
            ("the last offset", entry(0), &u64::MAX.to_le_bytes()),
            ("a time that falls", entry(30) + 8, &0_u64.to_le_bytes()),
            ("no records", entry(49) + 16, &0_u32.to_le_bytes()),
            ("a batch over the next", entry(5) + 20, &u32::MAX.to_le_bytes()),
            ("a batch beyond the frames", entry(49) + 24, &u32::MAX.to_le_bytes()),
            ("a batch in the header", entry(0) + 24, &64_u32.to_le_bytes()),
        ] {
            assert_eq!(forged(at, field), Err(FooterFault::Contradiction), "{what}");
        }
    }
}
