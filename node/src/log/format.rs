//! The bytes of a log on disk; `docs/format.md` has the tables.
//!
//! A segment is a file of fixed size, zero-filled before its first use. It begins with a header
//! block, goes on with frames and ends with a footer. A frame is a 64-byte header and a payload,
//! padded to 64 bytes; what follows the last frame of a write is zero up to the block's end, and
//! the next write begins with the next block: a block that holds acked bytes is never rewritten.

use thalweg_wire::checksum::{crc32c, crc32c_pieces};
use thalweg_wire::codec::{align_up, array_at, put, u16_at, u32_at, u64_at};
use thalweg_wire::ids::{BootId, DiskId, Lsn};
use thalweg_wire::limits::RETENTION_CLASSES;
use thiserror::Error;

use crate::config::BLOCK_BYTES;

/// Version of everything in a data directory.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a frame's header; also the unit to which frames are padded, so that a batch's body
/// is aligned in memory wherever it stands in the log.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of a segment's header: one block.
pub const SEGMENT_HEADER_BYTES: usize = BLOCK_BYTES as usize;
/// Bytes of a data directory's superblock.
pub const SUPERBLOCK_BYTES: usize = BLOCK_BYTES as usize;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"THALWEGD";
const SEGMENT_MAGIC: [u8; 8] = *b"THALWEGS";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TWLF");
const FRAME_CRC_AT: usize = 60;

/// Bits of a segment's sequence below its retention class.
const CLASS_SHIFT: u32 = 48;
/// Sequences from this one on are nobody's.
pub const SEQUENCE_MAX: u64 = (RETENTION_CLASSES as u64) << CLASS_SHIFT;

/// The sequence before the first of a retention class: the logs of a directory, one a class, take
/// each other's files, and no sequence may name segments of two.
#[must_use]
pub const fn sequence_before(retention_class: u8) -> u64 {
    (retention_class as u64) << CLASS_SHIFT
}

/// The retention class of the segment with this sequence, which is below [`SEQUENCE_MAX`].
#[must_use]
pub const fn class_of(sequence: u64) -> u8 {
    (sequence >> CLASS_SHIFT) as u8
}

/// What a frame in the log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum FrameKind {
    /// A batch as it travelled, patched by the leader.
    Batch = 1,
    /// An extent was opened: an [`super::extent::ExtentRecord`].
    Open = 2,
    /// An extent was fenced or sealed: an [`super::extent::ExtentEnd`].
    End = 3,
    /// A shard was trimmed: an [`super::extent::ExtentTrim`] for one of its extents.
    Trim = 4,
    /// Part of the snapshot at a segment's start: extent records.
    Snapshot = 5,
    /// The snapshot is complete; the payload is the count of its records (u64), then the number
    /// that the next extent gets (u32) and zero (u32). Numbers of extents that are forgotten stand
    /// in footers for a while, and are given to no other.
    SnapshotEnd = 6,
    /// Part of the snapshot: the older segments that count, [`super::retention::SegmentEntry`]s.
    Segments = 7,
    /// Segments in which nothing is kept any more: their sequences (u64 each).
    Release = 8,
    /// A segment takes the place of others: its [`super::retention::SegmentEntry`] and the
    /// sequences of those (u64 each), which are released.
    Merge = 9,
    /// Part of the snapshot: which records of an archive count,
    /// [`super::archive::ArchivedRecords`].
    Archived = 10,
    /// A shard was deleted: a [`super::extent::ForgottenShard`]. No extent of it that was opened
    /// before counts any more.
    Forget = 11,
}

impl FrameKind {
    fn from_number(number: u16) -> Option<FrameKind> {
        use FrameKind::{
            Archived, Batch, End, Forget, Merge, Open, Release, Segments, Snapshot, SnapshotEnd,
            Trim,
        };
        [Batch, Open, End, Trim, Snapshot, SnapshotEnd, Segments, Release, Merge, Archived, Forget]
            .into_iter()
            .find(|kind| *kind as u16 == number)
    }
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFrame {
    /// What the payload is.
    pub kind: FrameKind,
    /// Sequence of the segment: bytes of an earlier use of the file never pass for new.
    pub generation: u64,
    /// Start of the node that wrote it.
    pub boot: BootId,
    /// Where the frame stands.
    pub lsn: Lsn,
    /// What was durable when the frame was written: damage before it is corruption.
    pub durable: Lsn,
    /// The extent, by the log's own number.
    pub extent: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// CRC32C of the payload; zero for a batch, which carries its own.
    pub payload_crc: u32,
}

/// What is not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameFault {
    /// No frame's first bytes: the end of what was written, as a rule.
    #[error("no frame stands there")]
    Absent,
    /// A frame of another use of the file or another place.
    #[error("the frame belongs elsewhere")]
    Foreign,
    /// A checksum does not match, or a length is impossible.
    #[error("the frame is damaged")]
    Damaged,
}

impl LogFrame {
    /// The 64 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, FRAME_MAGIC.to_le_bytes());
        put(&mut bytes, 4, (self.kind as u16).to_le_bytes());
        put(&mut bytes, 6, FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 8, self.generation.to_le_bytes());
        put(&mut bytes, 16, self.boot.0.to_le_bytes());
        put(&mut bytes, 24, self.lsn.0.to_le_bytes());
        put(&mut bytes, 32, self.durable.0.to_le_bytes());
        put(&mut bytes, 40, self.extent.to_le_bytes());
        put(&mut bytes, 44, self.payload_bytes.to_le_bytes());
        put(&mut bytes, 48, self.payload_crc.to_le_bytes());
        let crc = crc32c(&bytes[..FRAME_CRC_AT]);
        put(&mut bytes, FRAME_CRC_AT, crc.to_le_bytes());
        bytes
    }

    /// Takes a header apart that ought to stand at `lsn` in the segment `generation`.
    ///
    /// # Errors
    /// [`FrameFault`].
    pub fn decode(bytes: &[u8], generation: u64, lsn: Lsn) -> Result<LogFrame, FrameFault> {
        let frame = LogFrame::decode_any(bytes)?;
        let at_home = frame.generation == generation && frame.lsn == lsn;
        if at_home { Ok(frame) } else { Err(FrameFault::Foreign) }
    }

    /// Takes a header apart, of whatever segment and place.
    ///
    /// # Errors
    /// [`FrameFault`].
    pub fn decode_any(bytes: &[u8]) -> Result<LogFrame, FrameFault> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(FrameFault::Absent);
        }
        if u32_at(bytes, 0) != FRAME_MAGIC {
            return Err(FrameFault::Absent);
        }
        if crc32c(&bytes[..FRAME_CRC_AT]) != u32_at(bytes, FRAME_CRC_AT) {
            return Err(FrameFault::Damaged);
        }
        if u16_at(bytes, 6) != FORMAT_VERSION {
            return Err(FrameFault::Foreign);
        }
        let kind = FrameKind::from_number(u16_at(bytes, 4)).ok_or(FrameFault::Damaged)?;
        Ok(LogFrame {
            kind,
            generation: u64_at(bytes, 8),
            boot: BootId(u64_at(bytes, 16)),
            lsn: Lsn(u64_at(bytes, 24)),
            durable: Lsn(u64_at(bytes, 32)),
            extent: u32_at(bytes, 40),
            payload_bytes: u32_at(bytes, 44),
            payload_crc: u32_at(bytes, 48),
        })
    }

    /// Header, payload and padding together.
    #[must_use]
    pub fn padded_bytes(&self) -> u64 {
        padded_frame_bytes(u64::from(self.payload_bytes))
    }
}

/// Bytes that a frame with such a payload takes in the log.
#[must_use]
pub const fn padded_frame_bytes(payload_bytes: u64) -> u64 {
    align_up(FRAME_HEADER_BYTES as u64 + payload_bytes, FRAME_HEADER_BYTES as u64)
}

/// The first block of a data directory's `disk` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Names the directory for ever.
    pub disk: DiskId,
    /// Bytes of each segment; fixed when the directory is formatted.
    pub segment_bytes: u64,
}

/// Why a header block cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HeaderFault {
    /// Another program's file, or nothing.
    #[error("it does not begin as it should")]
    Magic,
    /// Another version of the format.
    #[error("it has format version {found}; this build reads version {FORMAT_VERSION}")]
    Version {
        /// What stands there.
        found: u16,
    },
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
}

impl Superblock {
    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = header_block(SUPERBLOCK_MAGIC, SUPERBLOCK_BYTES);
        put(&mut bytes, 16, self.disk.0);
        put(&mut bytes, 32, self.segment_bytes.to_le_bytes());
        seal_block(&mut bytes);
        bytes
    }

    /// Takes the block apart.
    ///
    /// # Errors
    /// [`HeaderFault`].
    pub fn decode(bytes: &[u8]) -> Result<Superblock, HeaderFault> {
        check_block(bytes, SUPERBLOCK_MAGIC)?;
        Ok(Superblock { disk: DiskId(array_at(bytes, 16)), segment_bytes: u64_at(bytes, 32) })
    }
}

/// How a segment came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum SegmentOrigin {
    /// The log was appended to it.
    Appended = 0,
    /// What was kept of others was copied to it, or it is an archive; it has no snapshot, and
    /// counts when a frame in the log says so.
    Merged = 1,
}

/// The first block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The disk it was written on.
    pub disk: DiskId,
    /// The log on that disk.
    pub log: u32,
    /// Counts the segments of its retention class, from the one after [`sequence_before`]: the
    /// generation of its frames.
    pub sequence: u64,
    /// The oldest segment that still counts: files of older ones are free.
    pub first_live_sequence: u64,
    /// Position of the segment's first byte.
    pub base: Lsn,
    /// Where the segment before this one ends: what stands there beyond was never acked.
    pub previous_end: Lsn,
    /// Bytes of the file.
    pub segment_bytes: u64,
    /// Start of the node that opened it.
    pub boot: BootId,
    /// How it came about.
    pub origin: SegmentOrigin,
}

impl SegmentHeader {
    /// The block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = header_block(SEGMENT_MAGIC, SEGMENT_HEADER_BYTES);
        put(&mut bytes, 16, self.disk.0);
        put(&mut bytes, 32, self.log.to_le_bytes());
        put(&mut bytes, 36, (self.origin as u32).to_le_bytes());
        put(&mut bytes, 40, self.sequence.to_le_bytes());
        put(&mut bytes, 48, self.first_live_sequence.to_le_bytes());
        put(&mut bytes, 56, self.base.0.to_le_bytes());
        put(&mut bytes, 64, self.previous_end.0.to_le_bytes());
        put(&mut bytes, 72, self.segment_bytes.to_le_bytes());
        put(&mut bytes, 80, self.boot.0.to_le_bytes());
        seal_block(&mut bytes);
        bytes
    }

    /// Takes the block apart.
    ///
    /// # Errors
    /// [`HeaderFault`].
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, HeaderFault> {
        check_block(bytes, SEGMENT_MAGIC)?;
        Ok(SegmentHeader {
            disk: DiskId(array_at(bytes, 16)),
            log: u32_at(bytes, 32),
            sequence: u64_at(bytes, 40),
            first_live_sequence: u64_at(bytes, 48),
            base: Lsn(u64_at(bytes, 56)),
            previous_end: Lsn(u64_at(bytes, 64)),
            segment_bytes: u64_at(bytes, 72),
            boot: BootId(u64_at(bytes, 80)),
            origin: match u32_at(bytes, 36) {
                0 => SegmentOrigin::Appended,
                1 => SegmentOrigin::Merged,
                _ => return Err(HeaderFault::Checksum),
            },
        })
    }
}

/// A block with magic (8), version (2), zero (2) and room for the CRC (4) at byte 12.
pub(super) fn header_block(magic: [u8; 8], length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    put(&mut bytes, 0, magic);
    put(&mut bytes, 8, FORMAT_VERSION.to_le_bytes());
    bytes
}

/// Puts the CRC of everything else at byte 12.
pub(super) fn seal_block(bytes: &mut [u8]) {
    let crc = crc32c_pieces(&[&bytes[..12], &bytes[16..]]);
    put(bytes, 12, crc.to_le_bytes());
}

pub(super) fn check_block(bytes: &[u8], magic: [u8; 8]) -> Result<(), HeaderFault> {
    if bytes.len() < 16 || bytes[..8] != magic {
        return Err(HeaderFault::Magic);
    }
    let found = u16_at(bytes, 8);
    if found != FORMAT_VERSION {
        return Err(HeaderFault::Version { found });
    }
    if crc32c_pieces(&[&bytes[..12], &bytes[16..]]) != u32_at(bytes, 12) {
        return Err(HeaderFault::Checksum);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: LogFrame = LogFrame {
        kind: FrameKind::Batch,
        generation: 3,
        boot: BootId(4),
        lsn: Lsn(4096),
        durable: Lsn(64),
        extent: 5,
        payload_bytes: 100,
        payload_crc: 6,
    };

    #[test]
    fn frames_round_trip_in_their_place_only() {
        let bytes = FRAME.encode();
        assert_eq!(LogFrame::decode(&bytes, 3, Lsn(4096)), Ok(FRAME));
        assert_eq!(LogFrame::decode(&bytes, 2, Lsn(4096)), Err(FrameFault::Foreign));
        assert_eq!(LogFrame::decode(&bytes, 3, Lsn(8192)), Err(FrameFault::Foreign));
        assert_eq!(LogFrame::decode(&[0; 64], 3, Lsn(4096)), Err(FrameFault::Absent));
        assert_eq!(FRAME.padded_bytes(), 192);
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_found() {
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut bytes = FRAME.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(LogFrame::decode(&bytes, 3, Lsn(4096)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn headers_round_trip_and_damage_is_found() {
        let superblock = Superblock { disk: DiskId([7; 16]), segment_bytes: 8 };
        let segment = SegmentHeader {
            disk: DiskId([1; 16]),
            log: 2,
            sequence: 3,
            first_live_sequence: 4,
            base: Lsn(5),
            previous_end: Lsn(6),
            segment_bytes: 7,
            boot: BootId(8),
            origin: SegmentOrigin::Merged,
        };
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(segment));
        assert_eq!(SegmentHeader::decode(&superblock.encode()), Err(HeaderFault::Magic));
        let mut other = segment.encode();
        other[8] = 2;
        assert_eq!(SegmentHeader::decode(&other), Err(HeaderFault::Version { found: 2 }));
        for at in 16..SEGMENT_HEADER_BYTES {
            let mut damaged = segment.encode();
            damaged[at] ^= 1;
            assert_eq!(SegmentHeader::decode(&damaged), Err(HeaderFault::Checksum), "byte {at}");
        }
    }

    /// Bytes of format version 1: a change of layout fails here.
    #[test]
    fn golden_frame() {
        let text: String = FRAME.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "54574c46010001000300000000000000040000000000000000100000000000004000000000000000\
             05000000640000000600000000000000000000000a2bf7a4"
        );
    }
}
