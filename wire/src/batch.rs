//! The batch: records of one shard that travel, rest and are served as the same bytes.
//!
//! A 128-byte header is followed by the body, an rkyv archive of three columns: an index of
//! fixed-size entries, one blob of partition keys and one of data. A body is read where it lies.
//! Two checks make that safe for bytes from outside: rkyv's checked access, which costs about
//! the same for one record as for a thousand, and one linear scan over the index, which proves
//! what checked access does not know of: ends that rise and stay within their blobs.

use std::fmt;

use rkyv::rancor::Failure;
use rkyv::{Archive, Serialize};
use thiserror::Error;

use crate::checksum::crc32c;
use crate::codec::{array_at, put, u16_at, u32_at, u64_at};
use crate::error::{ErrorCode, Refusal};
use crate::hash_range::{HashKey, HashRange};
use crate::ids::{Epoch, Offset, ProducerId, ShardId, StreamId};
use crate::limits;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Alignment of header and body in memory: the archive's columns are read in place.
pub const BATCH_ALIGN: usize = 16;
/// First four bytes of a batch: "TWB1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"TWB1");
/// The version this build writes; it reads no other yet.
pub const VERSION: u16 = 1;

/// The records of the batch are independent: each is admitted or refused by itself.
pub const FLAG_PARTIAL: u16 = 1;
/// Both blobs are sealed; the body begins with key id, nonce and tag.
pub const FLAG_ENCRYPTED: u16 = 2;

const CLIENT_CRC_AT: usize = 60;
const HEADER_CRC_AT: usize = 124;

/// One record's entry in the index column. Ends are exclusive and count from the blob's start;
/// a record begins where the one before it ends.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Hash key, big-endian.
    pub hash_key: [u8; 16],
    /// The producer's time, milliseconds since 1970.
    pub client_time_ms: u64,
    /// End of the record's partition key.
    pub key_end: u32,
    /// End of the record's data.
    pub data_end: u32,
}

/// Bytes of an archived [`Entry`].
pub const ENTRY_BYTES: usize = 32;
/// Bytes of an archived [`Body`]'s root, which is the archive's end.
pub const ROOT_BYTES: usize = 24;
const _: () = assert!(size_of::<ArchivedEntry>() == ENTRY_BYTES);
const _: () = assert!(size_of::<ArchivedBody>() == ROOT_BYTES);
const _: () = assert!(align_of::<ArchivedEntry>() <= BATCH_ALIGN);

/// The columns.
#[derive(Archive, Serialize, Debug, PartialEq, Eq)]
pub struct Body {
    /// One entry a record.
    pub index: Vec<Entry>,
    /// Partition keys, one after the other.
    pub keys: Vec<u8>,
    /// Data, one record after the other.
    pub data: Vec<u8>,
}

/// What is wrong with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BatchError {
    /// Fewer bytes than the header says.
    #[error("a batch of {needed} bytes has only {present}")]
    Truncated {
        /// Bytes that the batch needs.
        needed: usize,
        /// Bytes that are there.
        present: usize,
    },
    /// Not a batch.
    #[error("a batch begins with TWB1, not {found:#010x}")]
    Magic {
        /// What stands there.
        found: u32,
    },
    /// Another format version.
    #[error("batch format version {found}; this build reads {VERSION}")]
    Version {
        /// What stands there.
        found: u16,
    },
    /// Flags that this build does not serve.
    #[error("batch flags {flags:#06x} are not served by this version")]
    Flags {
        /// What stands there.
        flags: u16,
    },
    /// A checksum does not match.
    #[error("the checksum of the batch's {part} does not match: it was damaged on the way")]
    Checksum {
        /// `header` or `body`.
        part: &'static str,
    },
    /// A size or count beyond its limit.
    #[error("{what} is {found}; the limit is {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// How much there was.
        found: u64,
        /// How much may be.
        limit: u64,
    },
    /// The archive does not pass checked access.
    #[error("the batch's body is not a valid archive")]
    Archive,
    /// The index contradicts itself, the header or the blobs.
    #[error("the batch's index contradicts its columns at record {record}")]
    Index {
        /// Index of the first record that does.
        record: u32,
    },
    /// A hash key outside the shard.
    #[error("the hash key of record {record} lies outside the shard's range: refresh the route")]
    HashOutOfRange {
        /// Index of the first such record.
        record: u32,
    },
}

impl BatchError {
    /// The refusal that tells a peer.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            BatchError::Truncated { .. } | BatchError::Magic { .. } => ErrorCode::Malformed.into(),
            BatchError::Version { .. } => {
                Refusal::new(ErrorCode::UnsupportedVersion, u64::from(VERSION))
            }
            BatchError::Flags { .. } => ErrorCode::Unsupported.into(),
            BatchError::Checksum { .. } => ErrorCode::ChecksumMismatch.into(),
            BatchError::Limit { limit, .. } => Refusal::new(ErrorCode::TooLarge, limit),
            BatchError::Archive | BatchError::Index { .. } => ErrorCode::BatchInvalid.into(),
            BatchError::HashOutOfRange { .. } => ErrorCode::HashOutOfRange.into(),
        }
    }
}

/// The header, taken apart. The client part comes from the producer and never changes; the server
/// part is patched in place by the shard's leader. A producer sends the epoch of its route in
/// the server part, zero in the offset and time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// [`FLAG_PARTIAL`], [`FLAG_ENCRYPTED`].
    pub flags: u16,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// Records in the body.
    pub records: u32,
    /// CRC32C of the body.
    pub body_crc: u32,
    /// The shard.
    pub shard: ShardId,
    /// Who sends.
    pub producer: ProducerId,
    /// Counts the producer's batches to this shard from zero.
    pub sequence: u64,
    /// Names the caller's request, for verdicts and logs.
    pub request_id: u64,
    /// Offset of the first record.
    pub first_offset: Offset,
    /// When the leader took the batch, milliseconds since 1970.
    pub append_time_ms: u64,
    /// The leader's tenure.
    pub epoch: Epoch,
}

impl BatchHeader {
    /// Header and body together.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes as usize
    }

    /// Whether its records are independent.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.flags & FLAG_PARTIAL != 0
    }

    /// The offset after the last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.first_offset.after(u64::from(self.records))
    }

    /// The 128 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, MAGIC.to_le_bytes());
        put(&mut bytes, 4, VERSION.to_le_bytes());
        put(&mut bytes, 6, self.flags.to_le_bytes());
        put(&mut bytes, 8, self.body_bytes.to_le_bytes());
        put(&mut bytes, 12, self.records.to_le_bytes());
        put(&mut bytes, 16, self.body_crc.to_le_bytes());
        put(&mut bytes, 20, self.shard.index.to_le_bytes());
        put(&mut bytes, 24, self.shard.stream.0.to_le_bytes());
        put(&mut bytes, 32, self.producer.0.to_le_bytes());
        put(&mut bytes, 40, self.sequence.to_le_bytes());
        put(&mut bytes, 48, self.request_id.to_le_bytes());
        let client_crc = crc32c(&bytes[..CLIENT_CRC_AT]);
        put(&mut bytes, CLIENT_CRC_AT, client_crc.to_le_bytes());
        put(&mut bytes, 64, self.first_offset.0.to_le_bytes());
        put(&mut bytes, 72, self.append_time_ms.to_le_bytes());
        put(&mut bytes, 80, self.epoch.0.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Takes a header apart. Every field is checked but the body's bytes.
    ///
    /// # Errors
    /// The first thing that is wrong, outermost first.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BatchError::Truncated { needed: HEADER_BYTES, present: bytes.len() });
        }
        let found = u32_at(bytes, 0);
        if found != MAGIC {
            return Err(BatchError::Magic { found });
        }
        let found = u16_at(bytes, 4);
        if found != VERSION {
            return Err(BatchError::Version { found });
        }
        if crc32c(&bytes[..CLIENT_CRC_AT]) != u32_at(bytes, CLIENT_CRC_AT)
            || crc32c(&bytes[..HEADER_CRC_AT]) != u32_at(bytes, HEADER_CRC_AT)
        {
            return Err(BatchError::Checksum { part: "header" });
        }
        let header = BatchHeader {
            flags: u16_at(bytes, 6),
            body_bytes: u32_at(bytes, 8),
            records: u32_at(bytes, 12),
            body_crc: u32_at(bytes, 16),
            shard: ShardId { stream: StreamId(u64_at(bytes, 24)), index: u32_at(bytes, 20) },
            producer: ProducerId(u64_at(bytes, 32)),
            sequence: u64_at(bytes, 40),
            request_id: u64_at(bytes, 48),
            first_offset: Offset(u64_at(bytes, 64)),
            append_time_ms: u64_at(bytes, 72),
            epoch: Epoch(u64_at(bytes, 80)),
        };
        if header.flags & !FLAG_PARTIAL != 0 {
            return Err(BatchError::Flags { flags: header.flags });
        }
        if array_at::<4>(bytes, 56) != [0; 4] || bytes[88..HEADER_CRC_AT] != [0; 36] {
            return Err(BatchError::Index { record: 0 });
        }
        header.check_limits()?;
        Ok(header)
    }

    fn check_limits(&self) -> Result<(), BatchError> {
        let within = |what, found: u64, limit: u64| {
            if found <= limit { Ok(()) } else { Err(BatchError::Limit { what, found, limit }) }
        };
        within("records in a batch", self.records.into(), limits::BATCH_RECORDS_MAX.into())?;
        within("a body", self.body_bytes.into(), limits::BODY_BYTES_MAX.into())?;
        within("a sequence", self.sequence, limits::SEQUENCE_MAX)?;
        within("a first offset", self.first_offset.0, limits::FIRST_OFFSET_MAX)?;
        if self.body_bytes > limits::BODY_BYTES_MANY_RECORDS_MAX {
            within("records in a body above 1 MiB", self.records.into(), 1)?;
        }
        if self.records == 0 || (self.body_bytes as usize) < ROOT_BYTES {
            return Err(BatchError::Index { record: 0 });
        }
        Ok(())
    }
}

/// The leader's patch: where the batch stands in its shard. The epoch is already there.
pub fn assign(header: &mut [u8; HEADER_BYTES], first_offset: Offset, append_time_ms: u64) {
    put(header, 64, first_offset.0.to_le_bytes());
    put(header, 72, append_time_ms.to_le_bytes());
    seal(header);
}

fn seal(header: &mut [u8; HEADER_BYTES]) {
    let crc = crc32c(&header[..HEADER_CRC_AT]);
    put(header, HEADER_CRC_AT, crc.to_le_bytes());
}

/// A batch whose every byte has been checked.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// The header.
    pub header: BatchHeader,
    columns: &'a ArchivedBody,
    body: &'a [u8],
}

/// Without the records: what users store is nobody else's to print.
impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("header", &self.header).finish_non_exhaustive()
    }
}

/// One record of a batch, where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Its offset; counts from zero in a batch that no leader has taken yet.
    pub offset: Offset,
    /// Hash key.
    pub hash_key: HashKey,
    /// The producer's time, milliseconds since 1970.
    pub client_time_ms: u64,
    /// Partition key.
    pub key: &'a [u8],
    /// Data.
    pub data: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Checks a header and body that lie together, [`BATCH_ALIGN`]-aligned; bytes behind the body
    /// are not looked at.
    ///
    /// # Errors
    /// [`BatchError`], the first thing that is wrong.
    pub fn check(bytes: &'a [u8], range: &HashRange) -> Result<Batch<'a>, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        let needed = header.batch_bytes();
        let body = bytes
            .get(HEADER_BYTES..needed)
            .ok_or(BatchError::Truncated { needed, present: bytes.len() })?;
        Batch::check_body(header, body, range)
    }

    /// Checks a body against its header: CRC, checked access, scan.
    ///
    /// # Errors
    /// [`BatchError`], the first thing that is wrong.
    pub fn check_body(
        header: BatchHeader,
        body: &'a [u8],
        range: &HashRange,
    ) -> Result<Batch<'a>, BatchError> {
        if crc32c(body) != header.body_crc {
            return Err(BatchError::Checksum { part: "body" });
        }
        Batch::access(header, body, range)
    }

    fn access(
        header: BatchHeader,
        body: &'a [u8],
        range: &HashRange,
    ) -> Result<Batch<'a>, BatchError> {
        let columns =
            rkyv::access::<ArchivedBody, Failure>(body).map_err(|_| BatchError::Archive)?;
        scan(&header, columns, range)?;
        Ok(Batch { header, columns, body })
    }

    /// Takes a batch apart again whose bytes were checked before and have not changed: everything
    /// is checked but the body's checksum.
    ///
    /// # Errors
    /// [`BatchError`], the first thing that is wrong.
    pub fn check_again(bytes: &'a [u8]) -> Result<Batch<'a>, BatchError> {
        let header = BatchHeader::decode(bytes)?;
        let needed = header.batch_bytes();
        let body = bytes
            .get(HEADER_BYTES..needed)
            .ok_or(BatchError::Truncated { needed, present: bytes.len() })?;
        Batch::access(header, body, &HashRange::FULL)
    }

    /// The body's bytes.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Bytes that count against limits: partition keys and data.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        (self.columns.keys.len() + self.columns.data.len()) as u64
    }

    /// The records in order.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'a>> + use<'a> {
        let (mut key_start, mut data_start) = (0, 0);
        let (columns, first_offset) = (self.columns, self.header.first_offset);
        columns.index.iter().enumerate().map(move |(at, entry)| {
            let (key_end, data_end) =
                (entry.key_end.to_native() as usize, entry.data_end.to_native() as usize);
            let record = Record {
                offset: first_offset.after(at as u64),
                hash_key: HashKey::from_bytes(entry.hash_key),
                client_time_ms: entry.client_time_ms.to_native(),
                key: &columns.keys[key_start..key_end],
                data: &columns.data[data_start..data_end],
            };
            (key_start, data_start) = (key_end, data_end);
            record
        })
    }
}

/// One pass over the index. Violations are gathered without a branch a record and searched for
/// only when there was one.
fn scan(header: &BatchHeader, columns: &ArchivedBody, range: &HashRange) -> Result<(), BatchError> {
    let index = columns.index.as_slice();
    if index.len() != header.records as usize {
        return Err(BatchError::Index { record: index.len().min(header.records as usize) as u32 });
    }
    let (mut key_start, mut data_start) = (0_u32, 0_u32);
    // One subtraction and one comparison a record instead of two comparisons.
    let (first, width) = (range.start.0, range.end.0.wrapping_sub(range.start.0));
    let mut sound = range.start <= range.end;
    for entry in index {
        let (key_end, data_end) = (entry.key_end.to_native(), entry.data_end.to_native());
        // A key has 1 to PARTITION_KEY_BYTES_MAX bytes; wrapping makes a falling end a huge length.
        let key_bytes = key_end.wrapping_sub(key_start);
        sound &= key_bytes.wrapping_sub(1) < limits::PARTITION_KEY_BYTES_MAX;
        let data_bytes = data_end.wrapping_sub(data_start);
        let record_bytes = u64::from(key_bytes) + u64::from(data_bytes);
        sound &= record_bytes <= u64::from(limits::RECORD_BYTES_MAX);
        sound &= HashKey::from_bytes(entry.hash_key).0.wrapping_sub(first) <= width;
        (key_start, data_start) = (key_end, data_end);
    }
    sound &= key_start as usize == columns.keys.len() && data_start as usize == columns.data.len();
    if sound { Ok(()) } else { Err(first_violation(index, range)) }
}

#[cold]
fn first_violation(index: &[ArchivedEntry], range: &HashRange) -> BatchError {
    let (mut key_start, mut data_start) = (0_u32, 0_u32);
    for (record, entry) in (0..).zip(index) {
        let (key_end, data_end) = (entry.key_end.to_native(), entry.data_end.to_native());
        let key_bytes = key_end.checked_sub(key_start);
        let data_bytes = data_end.checked_sub(data_start);
        match (key_bytes, data_bytes) {
            (Some(key), Some(data))
                if (1..=limits::PARTITION_KEY_BYTES_MAX).contains(&key)
                    && data <= limits::RECORD_BYTES_MAX - key => {}
            _ => return BatchError::Index { record },
        }
        if !range.contains(HashKey::from_bytes(entry.hash_key)) {
            return BatchError::HashOutOfRange { record };
        }
        (key_start, data_start) = (key_end, data_end);
    }
    BatchError::Index { record: index.len() as u32 }
}
