//! The records of one call for one shard, laid out for the wire as they are brought.

use thalweg_wire::batch::ENTRY_BYTES;
use thalweg_wire::build::{BatchBuilder, BatchRoom, NewRecord};
use thalweg_wire::limits::{
    BATCH_RECORDS_MAX, BODY_BYTES_MANY_RECORDS_MAX, PARTITION_KEY_BYTES_MAX, RECORD_BYTES_MAX,
};
use thiserror::Error;

/// Records beyond what was expected are laid out for this many at a time.
const UNEXPECTED: BatchRoom = BatchRoom { records: 64, key_bytes: 4 << 10, data_bytes: 64 << 10 };
/// Most bytes of partition keys in a batch of a call that needs several: those of 128 keys of the
/// largest size. It bounds what the room of a batch is divided by, not what may be brought.
const KEY_BYTES_MAX: u32 = 128 << 10;
/// Most records in such a batch.
const RECORDS_MAX: u32 = 4096;
const _: () = assert!(RECORDS_MAX <= BATCH_RECORDS_MAX);

/// A record that no batch can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "a record with a key of {key_bytes} bytes and {data_bytes} bytes of data: a key has 1 to \
     {PARTITION_KEY_BYTES_MAX}, both together at most {RECORD_BYTES_MAX}; split the data"
)]
pub struct RecordSizeError {
    /// Bytes of its partition key.
    pub key_bytes: usize,
    /// Bytes of its data.
    pub data_bytes: usize,
}

/// See the module. Records of one call stay together and in order; they share one batch if they
/// fit into 1 MiB, and make several, one after the other, if not.
pub struct ShardRecords {
    /// What is expected to come yet.
    expected: Expected,
    builders: Vec<BatchBuilder>,
}

#[derive(Clone, Copy)]
struct Expected {
    records: u32,
    key_bytes: u64,
    data_bytes: u64,
}

impl ShardRecords {
    /// For so many records with so many bytes of partition keys and data: laid out without a gap
    /// if that is what comes. Other records find room, too.
    #[must_use]
    pub fn with_room(records: u32, key_bytes: u64, data_bytes: u64) -> ShardRecords {
        let expected = Expected { records, key_bytes, data_bytes };
        ShardRecords { expected, builders: Vec::new() }
    }

    /// Brings a record, which is copied to where it is sent from.
    ///
    /// # Errors
    /// When its key is empty, or it is larger than a record may be.
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<(), RecordSizeError> {
        let (data, data_bytes) = (record.data, record.data.len());
        self.push_written(record, data_bytes, |place| place.copy_from_slice(data))
    }

    /// Brings a record of which data of `data_bytes` is written straight to where it is sent from;
    /// the data that stands in `record` is left aside.
    ///
    /// # Errors
    /// When its key is empty, or it is larger than a record may be.
    pub fn push_written(
        &mut self,
        record: &NewRecord<'_>,
        data_bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(), RecordSizeError> {
        let key_bytes = record.key.len();
        if !(1..=PARTITION_KEY_BYTES_MAX as usize).contains(&key_bytes)
            || key_bytes + data_bytes > RECORD_BYTES_MAX as usize
        {
            return Err(RecordSizeError { key_bytes, data_bytes });
        }
        let sizes = (key_bytes as u32, data_bytes as u32);
        if !self.builders.last().is_some_and(|builder| builder.has_room(key_bytes, data_bytes)) {
            self.builders.push(BatchBuilder::new(self.expected.room_with(sizes)));
        }
        let builder = self.builders.last_mut().expect("one with room");
        builder.push_written(record, data_bytes, write);
        self.expected.take(sizes);
        Ok(())
    }

    /// Whether nothing was brought.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.builders.is_empty()
    }

    /// Records.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.builders.iter().map(BatchBuilder::records).sum()
    }

    /// The batches, each complete but for its header.
    pub(crate) fn close(mut self) -> Vec<BatchBuilder> {
        for builder in &mut self.builders {
            builder.close();
        }
        self.builders
    }
}

impl Expected {
    /// Room for the next batch, which begins with a record of such a key and so much data.
    fn room_with(&self, (key_bytes, data_bytes): (u32, u32)) -> BatchRoom {
        let alone = BatchRoom { records: 1, key_bytes, data_bytes };
        let all = BatchRoom {
            records: self.records.min(BATCH_RECORDS_MAX),
            key_bytes: u32::try_from(self.key_bytes).unwrap_or(u32::MAX),
            data_bytes: u32::try_from(self.data_bytes).unwrap_or(u32::MAX),
        };
        let share = BatchRoom {
            records: all.records.min(RECORDS_MAX),
            key_bytes: all.key_bytes.min(KEY_BYTES_MAX),
            ..all
        };
        let columns = share.records * ENTRY_BYTES as u32 + share.key_bytes;
        // The rest of a body but for its end.
        let share = BatchRoom {
            data_bytes: BODY_BYTES_MANY_RECORDS_MAX - columns - ENTRY_BYTES as u32,
            ..share
        };
        let is_all = u64::from(all.records) == u64::from(self.records);
        let rooms = [if is_all { all } else { share }, share, UNEXPECTED];
        let fits = |room: &&BatchRoom| {
            room.records > 0
                && room.key_bytes >= alone.key_bytes
                && room.data_bytes >= alone.data_bytes
                && room.body_bytes() <= u64::from(BODY_BYTES_MANY_RECORDS_MAX)
        };
        rooms.iter().find(fits).copied().unwrap_or(alone)
    }

    fn take(&mut self, (key_bytes, data_bytes): (u32, u32)) {
        self.records = self.records.saturating_sub(1);
        self.key_bytes = self.key_bytes.saturating_sub(key_bytes.into());
        self.data_bytes = self.data_bytes.saturating_sub(data_bytes.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use thalweg_wire::hash_range::HashKey;

    fn record<'a>(key: &'a [u8], data: &'a [u8]) -> NewRecord<'a> {
        NewRecord { hash_key: HashKey(1), client_time_ms: 0, key, data }
    }

    fn batches_of(expected: (u32, u64, u64), sizes: &[(usize, usize)]) -> Vec<BatchBuilder> {
        let mut records = ShardRecords::with_room(expected.0, expected.1, expected.2);
        for (key_bytes, data_bytes) in sizes {
            records.push(&record(&vec![b'k'; *key_bytes], &vec![1; *data_bytes])).unwrap();
        }
        assert_eq!(records.records() as usize, sizes.len());
        records.close()
    }

    fn totals(sizes: &[(usize, usize)]) -> (u32, u64, u64) {
        let keys: usize = sizes.iter().map(|size| size.0).sum();
        let data: usize = sizes.iter().map(|size| size.1).sum();
        (sizes.len() as u32, keys as u64, data as u64)
    }

    #[test]
    fn what_is_expected_is_laid_out_without_a_gap() {
        let sizes = [(5, 1000); 500];
        let batches = batches_of(totals(&sizes), &sizes);
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].room(), batches[0].room_of(0..500));
    }

    #[test]
    fn a_call_of_many_megabytes_makes_few_batches() {
        let sizes = [(256, 20_000); 500];
        let batches = batches_of(totals(&sizes), &sizes);
        assert!(batches.len() <= 11, "{} batches for 10 MB", batches.len());
        let mut sizes = [(5, 1000); 500];
        sizes[250].1 = 9_000_000;
        let batches = batches_of(totals(&sizes), &sizes);
        assert_eq!(batches.iter().map(BatchBuilder::records).collect::<Vec<_>>(), [250, 1, 249]);
    }

    #[test]
    fn records_of_a_size_that_may_not_be_are_refused() {
        let mut records = ShardRecords::with_room(1, 1, 1);
        let largest = vec![0; RECORD_BYTES_MAX as usize - 1];
        assert!(records.push(&record(b"", b"x")).is_err());
        assert!(records.push(&record(b"kk", &largest)).is_err());
        assert!(records.push(&record(&[b'k'; 1025], b"")).is_err());
        assert!(records.is_empty());
        records.push(&record(b"k", &largest)).unwrap();
        assert_eq!(records.close().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_was_expected_every_record_finds_room_in_order(
            expected in (0_u32..30_000, 0_u64..3_000_000, 0_u64..30_000_000),
            sizes in prop::collection::vec((1_usize..1025, 0_usize..400_000), 1..40),
        ) {
            let batches = batches_of(expected, &sizes);
            let records: u32 = batches.iter().map(BatchBuilder::records).sum();
            prop_assert_eq!(records as usize, sizes.len());
            let mut rest = sizes.iter();
            for batch in &batches {
                for at in 0..batch.records() {
                    let room = batch.room_of(at..at + 1);
                    let (key_bytes, data_bytes) = rest.next().unwrap();
                    prop_assert_eq!(room.key_bytes as usize, *key_bytes);
                    prop_assert_eq!(room.data_bytes as usize, *data_bytes);
                }
            }
        }
    }
}
