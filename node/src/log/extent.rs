//! What a log remembers of its extents: written when one is opened, changed by later frames, and
//! written again, as a snapshot, at the start of each segment, so that older segments are not
//! needed to know it.

use thalweg_wire::codec::{array_at, put, u16_at, u32_at, u64_at};
use thalweg_wire::control::{ExtentState, OPEN_EXTENT_BYTES, OpenExtent};
use thalweg_wire::ids::{BootId, Epoch, Offset, ProducerId, ShardId, StreamId};
use thalweg_wire::limits::{PRODUCER_WINDOW, PRODUCERS_PER_SHARD_MAX};
use thiserror::Error;

/// Bytes of a record before its producers.
pub(super) const RECORD_FIXED_BYTES: usize = 64 + OPEN_EXTENT_BYTES;
const PRODUCER_FIXED_BYTES: usize = 32;
const REMEMBERED_BYTES: usize = 16;
/// Largest record: as many producers as a shard remembers, each with a full window.
pub const RECORD_BYTES_MAX: usize = RECORD_FIXED_BYTES
    + PRODUCERS_PER_SHARD_MAX * (PRODUCER_FIXED_BYTES + PRODUCER_WINDOW * REMEMBERED_BYTES);
/// Bytes of an [`ExtentEnd`].
pub const EXTENT_END_BYTES: usize = 24;
/// Bytes of an [`ExtentTrim`].
pub const EXTENT_TRIM_BYTES: usize = 8;
/// Bytes of a [`ForgottenShard`].
pub const FORGOTTEN_SHARD_BYTES: usize = 16;

/// A payload that its kind of frame cannot have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("an extent's record in the log is malformed: {what}")]
pub struct MalformedRecord {
    what: &'static str,
}

impl MalformedRecord {
    /// What is malformed.
    pub(super) const fn new(what: &'static str) -> MalformedRecord {
        MalformedRecord { what }
    }
}

/// An extent as its log knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentRecord {
    /// The log's own number for it.
    pub number: u32,
    /// The command that opened it.
    pub open: OpenExtent,
    /// What it takes.
    pub state: ExtentState,
    /// The highest recovery seen.
    pub recovery_epoch: Epoch,
    /// Offset after its last record; final once sealed.
    pub end: Offset,
    /// First record that is kept.
    pub first_kept: Offset,
    /// Append time of its last batch, or of the extent before it; milliseconds since 1970.
    pub last_append_ms: u64,
    /// Start of the node that opened it: no other start appends to it.
    pub boot: BootId,
    /// Whom the shard knows. Kept for a shard's newest extent only.
    pub producers: Producers,
}

impl ExtentRecord {
    /// Appends the record to `bytes`.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + RECORD_FIXED_BYTES, 0);
        let fixed = &mut bytes[start..];
        put(fixed, 0, self.number.to_le_bytes());
        put(fixed, 4, (self.state as u16).to_le_bytes());
        put(fixed, 6, (self.producers.known.len() as u16).to_le_bytes());
        put(fixed, 8, self.recovery_epoch.0.to_le_bytes());
        put(fixed, 16, self.end.0.to_le_bytes());
        put(fixed, 24, self.first_kept.0.to_le_bytes());
        put(fixed, 32, self.last_append_ms.to_le_bytes());
        put(fixed, 40, self.boot.0.to_le_bytes());
        put(fixed, 64, self.open.encode());
        for producer in &self.producers.known {
            producer.encode_into(bytes);
        }
    }

    /// Bytes that it takes encoded.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let windows = self.producers.known.iter().map(|producer| producer.remembered as usize);
        let remembered: usize = windows.sum();
        RECORD_FIXED_BYTES
            + self.producers.known.len() * PRODUCER_FIXED_BYTES
            + remembered * REMEMBERED_BYTES
    }

    /// Takes the payload of a frame apart that has records one after the other.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<ExtentRecord>, MalformedRecord> {
        let (mut records, mut rest) = (Vec::new(), payload);
        while !rest.is_empty() {
            let (record, length) = ExtentRecord::decode(rest)?;
            records.push(record);
            rest = &rest[length..];
        }
        Ok(records)
    }

    /// Takes the first record of `bytes` apart; answers it and its length.
    ///
    /// # Errors
    /// When there is none.
    pub fn decode(bytes: &[u8]) -> Result<(ExtentRecord, usize), MalformedRecord> {
        let malformed = |what| MalformedRecord { what };
        let fixed = bytes.get(..RECORD_FIXED_BYTES).ok_or(malformed("it is cut short"))?;
        // The log gives the next extent the number after it.
        if u32_at(fixed, 0) == u32::MAX {
            return Err(malformed("it has the last number"));
        }
        let count = u16_at(fixed, 6) as usize;
        if count > PRODUCERS_PER_SHARD_MAX {
            return Err(malformed("it has too many producers"));
        }
        let mut at = RECORD_FIXED_BYTES;
        let mut known = Vec::with_capacity(count);
        for _ in 0..count {
            let (producer, length) = Producer::decode(&bytes[at..])?;
            known.push(producer);
            at += length;
        }
        let record = ExtentRecord {
            number: u32_at(fixed, 0),
            open: OpenExtent::decode_recorded(&fixed[64..])
                .map_err(|_| malformed("its command"))?,
            state: ExtentState::from_number(u16_at(fixed, 4)).ok_or(malformed("its state"))?,
            recovery_epoch: Epoch(u64_at(fixed, 8)),
            end: Offset(u64_at(fixed, 16)),
            first_kept: Offset(u64_at(fixed, 24)),
            last_append_ms: u64_at(fixed, 32),
            boot: BootId(u64_at(fixed, 40)),
            producers: Producers { known },
        };
        Ok((record, at))
    }
}

/// An extent was fenced or sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentEnd {
    /// [`ExtentState::Fenced`] or [`ExtentState::Sealed`].
    pub state: ExtentState,
    /// The recovery that asked.
    pub recovery_epoch: Epoch,
    /// Offset after the last record.
    pub end: Offset,
}

impl ExtentEnd {
    /// State (u16), zero, recovery epoch, end.
    #[must_use]
    pub fn encode(&self) -> [u8; EXTENT_END_BYTES] {
        let mut bytes = [0; EXTENT_END_BYTES];
        put(&mut bytes, 0, (self.state as u16).to_le_bytes());
        put(&mut bytes, 8, self.recovery_epoch.0.to_le_bytes());
        put(&mut bytes, 16, self.end.0.to_le_bytes());
        bytes
    }

    /// Takes one apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8]) -> Result<ExtentEnd, MalformedRecord> {
        if bytes.len() != EXTENT_END_BYTES {
            return Err(MalformedRecord { what: "the length of an end" });
        }
        let state = ExtentState::from_number(u16_at(bytes, 0))
            .filter(|state| *state != ExtentState::Open)
            .ok_or(MalformedRecord { what: "the state of an end" })?;
        let (recovery_epoch, end) = (Epoch(u64_at(bytes, 8)), Offset(u64_at(bytes, 16)));
        Ok(ExtentEnd { state, recovery_epoch, end })
    }
}

/// Records of an extent were let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentTrim {
    /// First record that is kept.
    pub first_kept: Offset,
}

impl ExtentTrim {
    /// The offset.
    #[must_use]
    pub fn encode(&self) -> [u8; EXTENT_TRIM_BYTES] {
        self.first_kept.0.to_le_bytes()
    }

    /// Takes one apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8]) -> Result<ExtentTrim, MalformedRecord> {
        if bytes.len() != EXTENT_TRIM_BYTES {
            return Err(MalformedRecord { what: "the length of a trim" });
        }
        Ok(ExtentTrim { first_kept: Offset(u64::from_le_bytes(array_at(bytes, 0))) })
    }
}

/// A shard was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForgottenShard {
    /// Which.
    pub shard: ShardId,
}

impl ForgottenShard {
    /// Stream, shard, zero.
    #[must_use]
    pub fn encode(&self) -> [u8; FORGOTTEN_SHARD_BYTES] {
        let mut bytes = [0; FORGOTTEN_SHARD_BYTES];
        put(&mut bytes, 0, self.shard.stream.0.to_le_bytes());
        put(&mut bytes, 8, self.shard.index.to_le_bytes());
        bytes
    }

    /// Takes one apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8]) -> Result<ForgottenShard, MalformedRecord> {
        if bytes.len() != FORGOTTEN_SHARD_BYTES {
            return Err(MalformedRecord { what: "the length of a forgotten shard" });
        }
        let shard = ShardId { stream: StreamId(u64_at(bytes, 0)), index: u32_at(bytes, 8) };
        Ok(ForgottenShard { shard })
    }
}

/// A stored batch of a producer, so that a repetition is told the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Remembered {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// When it was taken, milliseconds since 1970.
    pub append_time_ms: u64,
}

/// One producer: what it sent last.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Producer {
    id: ProducerId,
    next_sequence: u64,
    /// Rises with each batch of any producer: the lowest is the one silent for longest.
    last_used: u64,
    /// The last batches; that of sequence `s` at `s % PRODUCER_WINDOW`.
    window: [Remembered; PRODUCER_WINDOW],
    remembered: u8,
}

impl Producer {
    fn encode_into(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let count = self.remembered as usize;
        bytes.resize(start + PRODUCER_FIXED_BYTES + count * REMEMBERED_BYTES, 0);
        let bytes = &mut bytes[start..];
        put(bytes, 0, self.id.0.to_le_bytes());
        put(bytes, 8, self.next_sequence.to_le_bytes());
        put(bytes, 16, self.last_used.to_le_bytes());
        put(bytes, 24, (count as u64).to_le_bytes());
        for (place, sequence) in (self.next_sequence - count as u64..self.next_sequence).enumerate()
        {
            let remembered = self.window[sequence as usize % PRODUCER_WINDOW];
            let at = PRODUCER_FIXED_BYTES + place * REMEMBERED_BYTES;
            put(bytes, at, remembered.first_offset.0.to_le_bytes());
            put(bytes, at + 8, remembered.append_time_ms.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Result<(Producer, usize), MalformedRecord> {
        let malformed = MalformedRecord { what: "a producer" };
        let fixed = bytes.get(..PRODUCER_FIXED_BYTES).ok_or(malformed)?;
        let (next_sequence, count) = (u64_at(fixed, 8), u64_at(fixed, 24));
        if count > PRODUCER_WINDOW as u64 || count > next_sequence {
            return Err(malformed);
        }
        let length = PRODUCER_FIXED_BYTES + count as usize * REMEMBERED_BYTES;
        let remembered = bytes.get(PRODUCER_FIXED_BYTES..length).ok_or(malformed)?;
        let mut window = [Remembered::default(); PRODUCER_WINDOW];
        for (place, sequence) in (next_sequence - count..next_sequence).enumerate() {
            let at = place * REMEMBERED_BYTES;
            window[sequence as usize % PRODUCER_WINDOW] = Remembered {
                first_offset: Offset(u64_at(remembered, at)),
                append_time_ms: u64_at(remembered, at + 8),
            };
        }
        let producer = Producer {
            id: ProducerId(u64_at(fixed, 0)),
            next_sequence,
            last_used: u64_at(fixed, 16),
            window,
            remembered: count as u8,
        };
        Ok((producer, length))
    }
}

/// What a sequence means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SequenceVerdict {
    /// The next batch of the producer.
    Fresh,
    /// Stored before.
    Duplicate(Remembered),
    /// Stored before, too long ago to tell where.
    Forgotten,
    /// A batch before it is missing; this sequence is expected.
    Gap(u64),
    /// The producer is not known, and the batch is not its first.
    Unknown,
}

/// The producers that a shard knows, bounded; a repetition of what one of them sent last is
/// recognised.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Producers {
    known: Vec<Producer>,
}

impl Producers {
    /// What a batch with this sequence would be.
    #[must_use]
    pub fn judge(&self, id: ProducerId, sequence: u64) -> SequenceVerdict {
        let Some(producer) = self.known.iter().find(|producer| producer.id == id) else {
            let first = sequence == 0;
            return if first { SequenceVerdict::Fresh } else { SequenceVerdict::Unknown };
        };
        let next = producer.next_sequence;
        if sequence == next {
            SequenceVerdict::Fresh
        } else if sequence > next {
            SequenceVerdict::Gap(next)
        } else if next - sequence <= u64::from(producer.remembered) {
            SequenceVerdict::Duplicate(producer.window[sequence as usize % PRODUCER_WINDOW])
        } else {
            SequenceVerdict::Forgotten
        }
    }

    /// A batch judged fresh was stored. A producer that is new takes the place of the one silent
    /// for longest when there is none left.
    pub fn record(&mut self, id: ProducerId, sequence: u64, stored: Remembered) {
        let last = self.known.iter().map(|producer| producer.last_used).max().unwrap_or(0);
        let place = self.known.iter().position(|producer| producer.id == id);
        let place = place.unwrap_or_else(|| self.admit(id));
        let producer = &mut self.known[place];
        // What a log says was stored need not have been fresh: behind a gap, nothing else of the
        // producer is remembered.
        if sequence != producer.next_sequence {
            (producer.window, producer.remembered) = Default::default();
        }
        producer.window[sequence as usize % PRODUCER_WINDOW] = stored;
        producer.remembered = (producer.remembered + 1).min(PRODUCER_WINDOW as u8);
        producer.next_sequence = sequence + 1;
        // It gets to its end only when a log says so.
        producer.last_used = last.saturating_add(1);
    }

    /// How many are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.known.len()
    }

    fn admit(&mut self, id: ProducerId) -> usize {
        let window = [Remembered::default(); PRODUCER_WINDOW];
        let producer = Producer { id, next_sequence: 0, last_used: 0, window, remembered: 0 };
        if self.known.len() < PRODUCERS_PER_SHARD_MAX {
            self.known.push(producer);
            return self.known.len() - 1;
        }
        let oldest = (0..self.known.len()).min_by_key(|place| self.known[*place].last_used);
        let oldest = oldest.expect("a full table is not empty");
        self.known[oldest] = producer;
        oldest
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use thalweg_wire::hash_range::HashRange;
    use thalweg_wire::ids::ExtentId;
    use thalweg_wire::limits::SEQUENCE_MAX;

    /// An open extent of shard `index`.
    pub(crate) fn record(index: u32, epoch: u64) -> ExtentRecord {
        let shard = ShardId { stream: StreamId(1), index };
        ExtentRecord {
            number: index,
            open: OpenExtent::alone(
                ExtentId { shard, epoch: Epoch(epoch) },
                HashRange::FULL,
                Offset(0),
            ),
            state: ExtentState::Open,
            recovery_epoch: Epoch(0),
            end: Offset(3),
            first_kept: Offset(1),
            last_append_ms: 9,
            boot: BootId(8),
            producers: Producers::default(),
        }
    }

    fn stored(offset: u64) -> Remembered {
        Remembered { first_offset: Offset(offset), append_time_ms: offset * 10 }
    }

    #[test]
    fn records_round_trip_with_their_producers() {
        let mut bytes = Vec::new();
        let mut records = Vec::new();
        for index in 0..3 {
            let mut record = record(index, 2);
            for producer in 0..u64::from(index) {
                for sequence in 0..producer * 6 {
                    record.producers.record(ProducerId(producer), sequence, stored(sequence));
                }
            }
            record.encode_into(&mut bytes);
            records.push(record);
        }
        let mut at = 0;
        for record in records {
            let (decoded, length) = ExtentRecord::decode(&bytes[at..]).unwrap();
            assert_eq!(decoded, record);
            assert!(length <= RECORD_BYTES_MAX);
            at += length;
        }
        assert_eq!(at, bytes.len());
        assert!(ExtentRecord::decode(&bytes[..100]).is_err());
    }

    #[test]
    fn changes_round_trip() {
        let end =
            ExtentEnd { state: ExtentState::Sealed, recovery_epoch: Epoch(2), end: Offset(3) };
        assert_eq!(ExtentEnd::decode(&end.encode()), Ok(end));
        assert!(ExtentEnd::decode(&[0; EXTENT_END_BYTES]).is_err());
        let trim = ExtentTrim { first_kept: Offset(4) };
        assert_eq!(ExtentTrim::decode(&trim.encode()), Ok(trim));
        let forgotten = ForgottenShard { shard: ShardId { stream: StreamId(5), index: 6 } };
        assert_eq!(ForgottenShard::decode(&forgotten.encode()), Ok(forgotten));
        assert!(ForgottenShard::decode(&forgotten.encode()[1..]).is_err());
    }

    #[test]
    fn sequences_are_judged() {
        let mut producers = Producers::default();
        let id = ProducerId(7);
        assert_eq!(producers.judge(id, 0), SequenceVerdict::Fresh);
        assert_eq!(producers.judge(id, 1), SequenceVerdict::Unknown);
        for sequence in 0..20 {
            assert_eq!(producers.judge(id, sequence), SequenceVerdict::Fresh);
            producers.record(id, sequence, stored(sequence));
        }
        assert_eq!(producers.judge(id, 21), SequenceVerdict::Gap(20));
        for sequence in 12..20 {
            let verdict = SequenceVerdict::Duplicate(stored(sequence));
            assert_eq!(producers.judge(id, sequence), verdict);
        }
        assert_eq!(producers.judge(id, 11), SequenceVerdict::Forgotten);
    }

    #[test]
    fn the_producer_silent_for_longest_is_forgotten() {
        let mut producers = Producers::default();
        for id in 0..PRODUCERS_PER_SHARD_MAX as u64 {
            producers.record(ProducerId(id), 0, stored(id));
        }
        producers.record(ProducerId(0), 1, stored(100));
        producers.record(ProducerId(1000), 0, stored(101));
        assert_eq!(producers.count(), PRODUCERS_PER_SHARD_MAX);
        assert_eq!(producers.judge(ProducerId(0), 2), SequenceVerdict::Fresh);
        assert_eq!(producers.judge(ProducerId(1), 1), SequenceVerdict::Unknown);
        assert_eq!(producers.judge(ProducerId(2), 1), SequenceVerdict::Fresh);
    }

    /// Records whose checksums fit and from which counting on overflowed: producers at the end of
    /// their sequences, and more remembered than a producer had sent.
    #[test]
    fn what_was_read_never_overflows() {
        let mut old = record(3, 2);
        old.producers.record(ProducerId(1), 0, stored(0));
        let mut bytes = Vec::new();
        old.encode_into(&mut bytes);
        let producer_at = RECORD_FIXED_BYTES;
        put(&mut bytes, producer_at + 8, u64::MAX.to_le_bytes());
        put(&mut bytes, producer_at + 16, u64::MAX.to_le_bytes());
        let (mut read, _) = ExtentRecord::decode(&bytes).unwrap();
        for sequence in [SEQUENCE_MAX, 2, 1] {
            read.producers.record(ProducerId(1), sequence, stored(7));
        }
        read.producers.record(ProducerId(2), 0, stored(8));
        let again = SequenceVerdict::Duplicate(stored(7));
        assert_eq!(read.producers.judge(ProducerId(1), 1), again);
        assert_eq!(read.producers.judge(ProducerId(1), 0), SequenceVerdict::Forgotten);
        bytes.clear();
        read.encode_into(&mut bytes);
        assert_eq!(ExtentRecord::decode(&bytes).unwrap().0, read);

        put(&mut bytes, 0, u32::MAX.to_le_bytes());
        assert!(ExtentRecord::decode(&bytes).is_err(), "the next extent's number is one more");
    }
}
