//! Building a batch: the archive is written in its final place as records arrive, so that a
//! record's bytes are copied once between the caller and the socket.

use std::ops::Range;

use crate::batch::{BatchHeader, ENTRY_BYTES, FLAG_PARTIAL, HEADER_BYTES, ROOT_BYTES};
use crate::checksum::crc32c;
use crate::codec::{align_up, put, u32_at};
use crate::hash_range::HashKey;
use crate::ids::{Epoch, Offset, ProducerId, ShardId};
use crate::limits;

/// What a batch has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchRoom {
    /// Records.
    pub records: u32,
    /// Bytes of all partition keys.
    pub key_bytes: u32,
    /// Bytes of all data.
    pub data_bytes: u32,
}

impl BatchRoom {
    /// Bytes of the body when all the room is used.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        let columns = u64::from(self.records) * ENTRY_BYTES as u64
            + u64::from(self.key_bytes)
            + u64::from(self.data_bytes);
        align_up(columns, 4) + ROOT_BYTES as u64
    }
}

/// Who sends a batch, where to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchIdentity {
    /// The shard.
    pub shard: ShardId,
    /// Epoch of the route that led here.
    pub epoch: Epoch,
    /// The producer.
    pub producer: ProducerId,
    /// The producer's count of batches to this shard.
    pub sequence: u64,
    /// The caller's request.
    pub request_id: u64,
}

/// A record to append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewRecord<'a> {
    /// Hash key: MD5 of the partition key, or the caller's explicit one.
    pub hash_key: HashKey,
    /// The producer's time, milliseconds since 1970.
    pub client_time_ms: u64,
    /// Partition key, 1 to 256 characters of UTF-8.
    pub key: &'a [u8],
    /// Data.
    pub data: &'a [u8],
}

/// A batch in the making. Its memory is reused from batch to batch.
#[derive(Debug)]
pub struct BatchBuilder {
    room: BatchRoom,
    /// Header, index column, keys, data; each at its place for a full batch.
    bytes: Vec<u8>,
    records: u32,
    key_bytes: u32,
    data_bytes: u32,
    /// Bytes and CRC of the body, once it is complete.
    closed: Option<(usize, u32)>,
}

impl BatchBuilder {
    /// An empty batch.
    ///
    /// # Panics
    /// When the room is beyond the limits of a batch.
    #[must_use]
    pub fn new(room: BatchRoom) -> BatchBuilder {
        let body_bytes = room.body_bytes();
        assert!(
            body_bytes <= u64::from(limits::BODY_BYTES_MANY_RECORDS_MAX)
                || (room.records == 1 && body_bytes <= u64::from(limits::BODY_BYTES_MAX)),
            "{room:?} is beyond the limits of a batch"
        );
        assert!((1..=limits::BATCH_RECORDS_MAX).contains(&room.records));
        let bytes = vec![0; HEADER_BYTES + body_bytes as usize];
        BatchBuilder { room, bytes, records: 0, key_bytes: 0, data_bytes: 0, closed: None }
    }

    /// What it was made for.
    #[must_use]
    pub fn room(&self) -> BatchRoom {
        self.room
    }

    /// Records so far.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Bytes of keys and data so far.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        u64::from(self.key_bytes) + u64::from(self.data_bytes)
    }

    /// Whether `record` still fits.
    #[must_use]
    pub fn fits(&self, record: &NewRecord<'_>) -> bool {
        self.has_room(record.key.len(), record.data.len())
    }

    /// Whether a record of such a key and so much data still fits.
    #[must_use]
    pub fn has_room(&self, key_bytes: usize, data_bytes: usize) -> bool {
        self.closed.is_none()
            && self.records < self.room.records
            && self.key_bytes as usize + key_bytes <= self.room.key_bytes as usize
            && self.data_bytes as usize + data_bytes <= self.room.data_bytes as usize
    }

    /// Adds a record.
    ///
    /// # Panics
    /// When it does not fit: ask [`BatchBuilder::fits`] first.
    pub fn push(&mut self, record: &NewRecord<'_>) {
        self.push_written(record, record.data.len(), |place| place.copy_from_slice(record.data));
    }

    /// Adds a record of which data of `data_bytes` is written straight to its place, for who has it
    /// in another form; the data that stands in `record` is left aside.
    ///
    /// # Panics
    /// When it does not fit: ask [`BatchBuilder::has_room`] first.
    pub fn push_written(
        &mut self,
        record: &NewRecord<'_>,
        data_bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let has_room = self.has_room(record.key.len(), data_bytes);
        assert!(has_room, "the batch has no room for the record");
        let key_at = self.keys_at() + self.key_bytes as usize;
        let data_at = self.data_at() + self.data_bytes as usize;
        put(&mut self.bytes, key_at, record.key);
        write(&mut self.bytes[data_at..data_at + data_bytes]);
        self.key_bytes += record.key.len() as u32;
        self.data_bytes += data_bytes as u32;
        let entry_at = HEADER_BYTES + self.records as usize * ENTRY_BYTES;
        let entry = &mut self.bytes[entry_at..entry_at + ENTRY_BYTES];
        put(entry, 0, record.hash_key.to_bytes());
        put(entry, 16, record.client_time_ms.to_le_bytes());
        put(entry, 24, self.key_bytes.to_le_bytes());
        put(entry, 28, self.data_bytes.to_le_bytes());
        self.records += 1;
    }

    /// The room that some of its records take, exactly.
    ///
    /// # Panics
    /// When it has fewer records.
    #[must_use]
    pub fn room_of(&self, records: Range<u32>) -> BatchRoom {
        let columns = self.columns();
        let (first, last) = (columns.ends_before(records.start), columns.ends_before(records.end));
        BatchRoom {
            records: records.end - records.start,
            key_bytes: last.0 - first.0,
            data_bytes: last.1 - first.1,
        }
    }

    /// Adds some records of another batch, in their order: a copy of each column, whatever their
    /// number. The other may be closed already.
    ///
    /// # Panics
    /// When they do not fit, or the other has fewer.
    pub fn push_range(&mut self, other: &BatchBuilder, records: Range<u32>) {
        let added = other.room_of(records.clone());
        assert!(
            self.closed.is_none()
                && self.records + added.records <= self.room.records
                && self.key_bytes + added.key_bytes <= self.room.key_bytes
                && self.data_bytes + added.data_bytes <= self.room.data_bytes,
            "the batch has no room for the records"
        );
        let columns = other.columns();
        let (key_start, data_start) = columns.ends_before(records.start);
        let key_at = self.keys_at() + self.key_bytes as usize;
        let data_at = self.data_at() + self.data_bytes as usize;
        put(&mut self.bytes, key_at, part(columns.keys, key_start, added.key_bytes));
        put(&mut self.bytes, data_at, part(columns.data, data_start, added.data_bytes));
        let entries = part(columns.entries, records.start, added.records);
        let entry_at = HEADER_BYTES + self.records as usize * ENTRY_BYTES;
        let places = self.bytes[entry_at..].as_chunks_mut::<ENTRY_BYTES>().0;
        for (place, entry) in places.iter_mut().zip(entries) {
            *place = *entry;
            // Modulo 2^32: what is taken away may be more than what is there, not than the sum.
            let key_end = u32_at(entry, 24).wrapping_sub(key_start).wrapping_add(self.key_bytes);
            let data_end = u32_at(entry, 28).wrapping_sub(data_start).wrapping_add(self.data_bytes);
            put(place, 24, key_end.to_le_bytes());
            put(place, 28, data_end.to_le_bytes());
        }
        self.records += added.records;
        self.key_bytes += added.key_bytes;
        self.data_bytes += added.data_bytes;
    }

    /// Completes the body; answers it. Records are not taken any more until `clear`.
    ///
    /// # Panics
    /// When the batch has no record.
    pub fn close(&mut self) -> &[u8] {
        assert!(self.records > 0, "a batch has at least one record");
        if self.closed.is_none() {
            let body_bytes = self.close_columns();
            let body = &self.bytes[HEADER_BYTES..HEADER_BYTES + body_bytes];
            self.closed = Some((body_bytes, crc32c(body)));
        }
        self.body()
    }

    /// The body of a batch that was closed.
    ///
    /// # Panics
    /// When it was not.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        let (body_bytes, _) = self.closed.expect("the batch was closed");
        &self.bytes[HEADER_BYTES..HEADER_BYTES + body_bytes]
    }

    /// Header and body of a batch that was finished.
    ///
    /// # Panics
    /// When it was not.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let (body_bytes, _) = self.closed.expect("the batch was closed");
        &self.bytes[..HEADER_BYTES + body_bytes]
    }

    /// Completes the batch under an identity; answers header and body. The body is made once: to
    /// send a batch again under another identity costs its header only.
    ///
    /// # Panics
    /// When the batch has no record.
    pub fn finish(&mut self, identity: &BatchIdentity) -> &[u8] {
        self.finish_flagged(identity, 0)
    }

    /// The same for a batch whose records are independent: when a shard's limits do not take all of
    /// it, its leader says which of them they would.
    ///
    /// # Panics
    /// When the batch has no record.
    pub fn finish_partial(&mut self, identity: &BatchIdentity) -> &[u8] {
        self.finish_flagged(identity, FLAG_PARTIAL)
    }

    fn finish_flagged(&mut self, identity: &BatchIdentity, flags: u16) -> &[u8] {
        self.close();
        let header = self.header_flagged(identity, flags);
        put(&mut self.bytes, 0, header);
        self.bytes()
    }

    /// The header of a closed batch under an identity, for who sends header and body from two
    /// places: so the batch can be shared while it is sent.
    ///
    /// # Panics
    /// When the batch was not closed.
    #[must_use]
    pub fn header(&self, identity: &BatchIdentity) -> [u8; HEADER_BYTES] {
        self.header_flagged(identity, 0)
    }

    /// The same of a batch whose records are independent, as of [`BatchBuilder::finish_partial`].
    ///
    /// # Panics
    /// When the batch was not closed.
    #[must_use]
    pub fn header_partial(&self, identity: &BatchIdentity) -> [u8; HEADER_BYTES] {
        self.header_flagged(identity, FLAG_PARTIAL)
    }

    fn header_flagged(&self, identity: &BatchIdentity, flags: u16) -> [u8; HEADER_BYTES] {
        let (body_bytes, body_crc) = self.closed.expect("the batch was closed");
        let header = BatchHeader {
            flags,
            body_bytes: body_bytes as u32,
            records: self.records,
            body_crc,
            shard: identity.shard,
            producer: identity.producer,
            sequence: identity.sequence,
            request_id: identity.request_id,
            first_offset: Offset(0),
            append_time_ms: 0,
            epoch: identity.epoch,
        };
        header.encode()
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        (self.records, self.key_bytes, self.data_bytes) = (0, 0, 0);
        self.closed = None;
    }

    /// Where the columns stand: apart until the batch is closed, then side by side.
    fn columns(&self) -> Columns<'_> {
        let entries = &self.bytes[HEADER_BYTES..][..self.records as usize * ENTRY_BYTES];
        let (keys_at, data_at) = match self.closed {
            None => (self.keys_at(), self.data_at()),
            Some(_) => {
                let keys_at = HEADER_BYTES + entries.len();
                (keys_at, keys_at + self.key_bytes as usize)
            }
        };
        Columns {
            entries: entries.as_chunks().0,
            keys: &self.bytes[keys_at..][..self.key_bytes as usize],
            data: &self.bytes[data_at..][..self.data_bytes as usize],
        }
    }

    fn keys_at(&self) -> usize {
        HEADER_BYTES + self.room.records as usize * ENTRY_BYTES
    }

    fn data_at(&self) -> usize {
        self.keys_at() + self.room.key_bytes as usize
    }

    /// Moves the columns together, writes the root behind them; answers the body's length.
    fn close_columns(&mut self) -> usize {
        let (keys_at, data_at) = (self.keys_at(), self.data_at());
        let (key_bytes, data_bytes) = (self.key_bytes as usize, self.data_bytes as usize);
        let keys_to = HEADER_BYTES + self.records as usize * ENTRY_BYTES;
        let data_to = keys_to + key_bytes;
        if keys_to != keys_at {
            self.bytes.copy_within(keys_at..keys_at + key_bytes, keys_to);
        }
        if data_to != data_at {
            self.bytes.copy_within(data_at..data_at + data_bytes, data_to);
        }
        let columns_end = data_to + data_bytes;
        let root_at = align_up(columns_end as u64, 4) as usize;
        self.bytes[columns_end..root_at].fill(0);
        // The root is three archived vectors: an offset relative to its own place, a length.
        let columns =
            [(HEADER_BYTES, self.records), (keys_to, self.key_bytes), (data_to, self.data_bytes)];
        for (place, (column_at, length)) in columns.into_iter().enumerate() {
            let pointer_at = root_at + place * 8;
            let relative = column_at as i64 - pointer_at as i64;
            let relative = i32::try_from(relative).expect("a body is smaller than 2 GiB");
            put(&mut self.bytes, pointer_at, relative.to_le_bytes());
            put(&mut self.bytes, pointer_at + 4, length.to_le_bytes());
        }
        root_at + ROOT_BYTES - HEADER_BYTES
    }
}

/// The columns of a builder.
struct Columns<'a> {
    entries: &'a [[u8; ENTRY_BYTES]],
    keys: &'a [u8],
    data: &'a [u8],
}

impl Columns<'_> {
    /// Ends of the key and of the data before a record: where its own begin.
    fn ends_before(&self, record: u32) -> (u32, u32) {
        match (record as usize).checked_sub(1) {
            None => (0, 0),
            Some(before) => (u32_at(&self.entries[before], 24), u32_at(&self.entries[before], 28)),
        }
    }
}

/// `count` items of a column, from `start` on.
fn part<T>(column: &[T], start: u32, count: u32) -> &[T] {
    &column[start as usize..][..count as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, BatchError, Body, Entry, assign};
    use crate::hash_range::HashRange;
    use crate::ids::StreamId;
    use rkyv::util::AlignedVec;

    const IDENTITY: BatchIdentity = BatchIdentity {
        shard: ShardId { stream: StreamId(7), index: 3 },
        epoch: Epoch(5),
        producer: ProducerId(11),
        sequence: 13,
        request_id: 17,
    };

    fn aligned(bytes: &[u8]) -> AlignedVec<16> {
        let mut copy = AlignedVec::new();
        copy.extend_from_slice(bytes);
        copy
    }

    fn sample(count: u32) -> Vec<(HashKey, String, Vec<u8>)> {
        (0..count)
            .map(|at| {
                let key = format!("key-{at}");
                (HashKey::of_partition_key(key.as_bytes()), key, vec![at as u8; at as usize % 5])
            })
            .collect()
    }

    fn build(room: BatchRoom, records: &[(HashKey, String, Vec<u8>)]) -> AlignedVec<16> {
        aligned(builder_of(room, records).finish(&IDENTITY))
    }

    const ROOM: BatchRoom = BatchRoom { records: 50, key_bytes: 1000, data_bytes: 1000 };

    #[test]
    fn data_written_in_place_makes_the_same_batch() {
        let records = sample(20);
        let mut builder = BatchBuilder::new(ROOM);
        for (hash_key, key, data) in &records {
            let (hash_key, key) = (*hash_key, key.as_bytes());
            let record = NewRecord { hash_key, client_time_ms: 9, key, data: &[] };
            assert!(builder.has_room(key.len(), data.len()));
            builder.push_written(&record, data.len(), |place| place.copy_from_slice(data));
        }
        let mut copied = BatchBuilder::new(ROOM);
        for (hash_key, key, data) in &records {
            let (hash_key, key) = (*hash_key, key.as_bytes());
            copied.push(&NewRecord { hash_key, client_time_ms: 9, key, data });
        }
        assert_eq!(builder.finish(&IDENTITY), copied.finish(&IDENTITY));
        builder.clear();
        let longer = ROOM.data_bytes as usize + 1;
        assert!(!builder.has_room(1, longer) && builder.has_room(1, longer - 1));
    }

    #[test]
    fn what_is_built_is_byte_for_byte_what_rkyv_serializes() {
        for count in [1, 2, 7, 49, 50] {
            let records = sample(count);
            let built = build(ROOM, &records);
            let mut body = Body { index: vec![], keys: vec![], data: vec![] };
            for (time, (hash_key, key, data)) in (100..).zip(&records) {
                body.keys.extend_from_slice(key.as_bytes());
                body.data.extend_from_slice(data);
                body.index.push(Entry {
                    hash_key: hash_key.to_bytes(),
                    client_time_ms: time,
                    key_end: body.keys.len() as u32,
                    data_end: body.data.len() as u32,
                });
            }
            let expected = rkyv::to_bytes::<rkyv::rancor::Error>(&body).unwrap();
            assert_eq!(built[HEADER_BYTES..], expected[..], "{count} records");
        }
    }

    #[test]
    fn a_batch_is_finished_again_under_another_identity() {
        let mut builder = BatchBuilder::new(ROOM);
        let record = NewRecord { hash_key: HashKey(1), client_time_ms: 2, key: b"k", data: b"d" };
        builder.push(&record);
        let first = builder.finish(&IDENTITY).to_vec();
        assert!(!builder.fits(&record), "a finished batch takes no records");
        let again = builder.finish(&BatchIdentity { sequence: 14, ..IDENTITY }).to_vec();
        assert_eq!(first[HEADER_BYTES..], again[HEADER_BYTES..]);
        assert_eq!(BatchHeader::decode(&again).unwrap().sequence, 14);
        assert_eq!(builder.bytes(), again);
    }

    fn builder_of(room: BatchRoom, records: &[(HashKey, String, Vec<u8>)]) -> BatchBuilder {
        let mut builder = BatchBuilder::new(room);
        for (time, (hash_key, key, data)) in (100..).zip(records) {
            let (key, hash_key) = (key.as_bytes(), *hash_key);
            builder.push(&NewRecord { hash_key, client_time_ms: time, key, data });
        }
        builder
    }

    #[test]
    fn batches_joined_and_taken_apart_are_those_of_the_same_records() {
        let records = sample(40);
        let whole = builder_of(ROOM, &records).finish(&IDENTITY).to_vec();
        for cut in [0, 1, 17, 39, 40] {
            for close_first in [false, true] {
                let mut parts = [ROOM, ROOM].map(BatchBuilder::new);
                let mut all = builder_of(ROOM, &records);
                if close_first {
                    all.close();
                }
                parts[0].push_range(&all, 0..cut);
                parts[1].push_range(&all, cut..40);
                if close_first && (1..40).contains(&cut) {
                    parts.iter_mut().for_each(|part| drop(part.close().to_vec()));
                }
                let room = all.room_of(0..40);
                assert_eq!(u64::from(room.key_bytes + room.data_bytes), all.charged_bytes());
                let mut joined = BatchBuilder::new(room);
                parts.iter().for_each(|part| joined.push_range(part, 0..part.records()));
                assert_eq!(joined.finish(&IDENTITY), whole, "cut at {cut}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "no room")]
    fn what_does_not_fit_is_not_joined() {
        let builder = builder_of(ROOM, &sample(40));
        let mut small = BatchBuilder::new(BatchRoom { records: 39, ..ROOM });
        small.push_range(&builder, 0..40);
    }

    #[test]
    fn header_and_body_apart_are_the_finished_batch() {
        let mut builder = builder_of(ROOM, &sample(7));
        builder.close();
        let apart = [&builder.header(&IDENTITY)[..], builder.body()].concat();
        assert_eq!(builder.finish(&IDENTITY), apart);
    }

    #[test]
    fn records_come_back() {
        let records = sample(20);
        let mut built = build(ROOM, &records);
        let header: &mut [u8; HEADER_BYTES] = (&mut built[..HEADER_BYTES]).try_into().unwrap();
        assign(header, Offset(1000), 99);
        let batch = Batch::check(&built, &HashRange::FULL).unwrap();
        assert_eq!(batch.header.first_offset, Offset(1000));
        assert_eq!(batch.header.end_offset(), Offset(1020));
        assert_eq!(batch.header.append_time_ms, 99);
        assert_eq!((batch.header.epoch, batch.header.sequence), (Epoch(5), 13));
        let mut charged = 0;
        for (at, (record, (hash_key, key, data))) in batch.records().zip(&records).enumerate() {
            assert_eq!(record.offset, Offset(1000 + at as u64));
            assert_eq!((record.hash_key, record.key), (*hash_key, key.as_bytes()));
            assert_eq!((record.data, record.client_time_ms), (&data[..], 100 + at as u64));
            charged += key.len() + data.len();
        }
        assert_eq!(batch.charged_bytes(), charged as u64);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let built = build(ROOM, &sample(3));
        for bit in 0..built.len() * 8 {
            let mut damaged = built.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::check(&damaged, &HashRange::FULL).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let built = build(ROOM, &sample(3));
        for length in 0..built.len() {
            assert!(Batch::check(&aligned(&built[..length]), &HashRange::FULL).is_err());
        }
    }

    /// Changes the body and makes both checksums fit again, as a hostile sender would.
    fn forge(built: &[u8], change: impl FnOnce(&mut BatchHeader, &mut [u8])) -> AlignedVec<16> {
        let mut forged = aligned(built);
        let mut header = BatchHeader::decode(&forged).unwrap();
        change(&mut header, &mut forged[HEADER_BYTES..]);
        header.body_crc = crc32c(&forged[HEADER_BYTES..]);
        forged[..HEADER_BYTES].copy_from_slice(&header.encode());
        forged
    }

    #[test]
    fn forged_bodies_are_refused() {
        let built = build(ROOM, &sample(3));
        let check = |forged: AlignedVec<16>| {
            Batch::check(&forged, &HashRange::FULL).map(|_| ()).unwrap_err()
        };
        let end_of_first = 28;
        let falling = forge(&built, |_, body| put(body, end_of_first, 2_u32.to_le_bytes()));
        assert!(matches!(check(falling), BatchError::Index { .. }));
        let beyond = forge(&built, |_, body| put(body, 2 * ENTRY_BYTES + 28, 99_u32.to_le_bytes()));
        assert!(matches!(check(beyond), BatchError::Index { .. }));
        let empty_key = forge(&built, |_, body| put(body, 24, 0_u32.to_le_bytes()));
        assert_eq!(check(empty_key), BatchError::Index { record: 0 });
        let more = forge(&built, |header, _| header.records += 1);
        assert!(matches!(check(more), BatchError::Index { .. }));
        let last_sequence = forge(&built, |header, _| header.sequence = u64::MAX);
        assert!(matches!(check(last_sequence), BatchError::Limit { .. }));
        let none = forge(&built, |header, _| header.records = 0);
        assert!(matches!(check(none), BatchError::Index { .. }));
        let flagged = forge(&built, |header, _| header.flags = 2);
        assert_eq!(check(flagged), BatchError::Flags { flags: 2 });
        let out_of_archive = forge(&built, |_, body| {
            let root_at = body.len() - ROOT_BYTES;
            put(body, root_at, i32::MIN.to_le_bytes());
        });
        assert_eq!(check(out_of_archive), BatchError::Archive);
    }

    /// A batch that passed the check and whose records could not be walked: offsets overflowed.
    #[test]
    fn offsets_beyond_the_limit_are_refused() {
        let at = |offset| {
            let mut built = build(ROOM, &sample(3));
            let header = built.first_chunk_mut::<HEADER_BYTES>().unwrap();
            assign(header, Offset(offset), 0);
            Batch::check(&built, &HashRange::FULL)
                .map(|batch| batch.records().last().unwrap().offset)
        };
        let limit = limits::FIRST_OFFSET_MAX;
        assert_eq!(at(limit), Ok(Offset(limit + 2)));
        for beyond in [limit + 1, u64::MAX] {
            assert!(matches!(at(beyond), Err(BatchError::Limit { .. })));
        }
    }

    #[test]
    fn hash_keys_outside_the_shard_are_refused() {
        let records = sample(8);
        let built = build(ROOM, &records);
        let end = records.iter().map(|record| record.0).max().unwrap();
        let all = HashRange { start: HashKey(0), end };
        assert!(Batch::check(&built, &all).is_ok());
        let one_out = HashRange { start: HashKey(0), end: HashKey(end.0 - 1) };
        let record = records.iter().position(|record| record.0 == end).unwrap() as u32;
        let found = Batch::check(&built, &one_out).map(|_| ()).unwrap_err();
        assert_eq!(found, BatchError::HashOutOfRange { record });
    }

    #[test]
    fn a_record_of_the_largest_size_fits_a_batch_of_its_own() {
        let data = vec![7; limits::RECORD_BYTES_MAX as usize - 3];
        let room = BatchRoom { records: 1, key_bytes: 3, data_bytes: data.len() as u32 };
        let built = build(room, &[(HashKey(1), "abc".into(), data)]);
        let batch = Batch::check(&built, &HashRange::FULL).unwrap();
        assert_eq!(batch.charged_bytes(), u64::from(limits::RECORD_BYTES_MAX));
    }

    /// Bytes made by golden/make.py from the format alone: a change of layout fails here.
    #[test]
    fn golden_batch() {
        let golden = include_bytes!("../golden/batch-v1.bin");
        let mut built = build(ROOM, &sample(4));
        let header: &mut [u8; HEADER_BYTES] = (&mut built[..HEADER_BYTES]).try_into().unwrap();
        assign(header, Offset(42), 1_700_000_000_000);
        assert_eq!(built[..], golden[..]);
        let batch = Batch::check(&built, &HashRange::FULL).unwrap();
        assert_eq!(batch.records().last().unwrap().key, b"key-3");
    }
}
