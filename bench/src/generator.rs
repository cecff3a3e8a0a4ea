//! Records: unique bytes, or the lines of a file; keys whose hashes fall into each shard.

use std::path::Path;

use thalweg_wire::build::{BatchBuilder, BatchRoom, NewRecord};
use thalweg_wire::hash_range::{HashKey, HashRange};

use crate::error::BenchError;
use crate::settings::Workload;

/// Longest partition key that is made.
pub const KEY_BYTES_MAX: usize = 12;
/// Keys of each shard.
const KEYS_PER_SHARD: usize = 8;
/// Random bytes that records are cut from.
const POOL_BYTES: usize = 4 << 20;
/// Bytes at the start of a record that make it unlike any other: shard and running number.
const STAMP_BYTES: usize = 16;

/// Partition keys with their hashes, made once: MD5 is no part of what is measured.
pub struct KeyTable {
    keys: Vec<Vec<(HashKey, Vec<u8>)>>,
}

impl KeyTable {
    /// Keys for each shard of a new stream.
    #[must_use]
    pub fn new(shards: u32) -> KeyTable {
        let mut keys: Vec<Vec<(HashKey, Vec<u8>)>> = vec![Vec::new(); shards as usize];
        let mut missing = shards as usize * KEYS_PER_SHARD;
        for number in 0_u64.. {
            let key = format!("key-{number:07}").into_bytes();
            let hash = HashKey::of_partition_key(&key);
            let shard = &mut keys[HashRange::initial_shard_of(hash, shards) as usize];
            if shard.len() < KEYS_PER_SHARD {
                debug_assert!(key.len() <= KEY_BYTES_MAX);
                shard.push((hash, key));
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        KeyTable { keys }
    }

    /// A key of a shard; which, turns with `number`.
    #[must_use]
    pub fn key(&self, shard: u32, number: u64) -> (HashKey, &[u8]) {
        let keys = &self.keys[shard as usize];
        let (hash, key) = &keys[number as usize % keys.len()];
        (*hash, key)
    }
}

/// Where records come from.
pub enum Source {
    /// Cut from a pool and stamped.
    Pool {
        /// Random bytes.
        bytes: Vec<u8>,
        /// Bytes of each record.
        record_bytes: usize,
        /// Where the next record is cut.
        at: usize,
        /// Records made so far.
        made: u64,
    },
    /// Lines, again and again.
    Lines {
        /// The lines without their ends.
        lines: Vec<Vec<u8>>,
        /// The next one.
        at: usize,
    },
}

impl Source {
    /// The source that the settings ask for.
    ///
    /// # Errors
    /// [`BenchError::File`] when the input cannot be read or has no line that fits.
    pub fn new(workload: &Workload) -> Result<Source, BenchError> {
        match &workload.input {
            Some(path) => Source::lines(path, workload.record_bytes),
            None => {
                let record_bytes = workload.record_bytes;
                let mut bytes = vec![0; POOL_BYTES.max(record_bytes * 2)];
                let filled = getrandom::fill(&mut bytes);
                filled.expect("the system's random source works once it has started");
                Ok(Source::Pool { bytes, record_bytes, at: 0, made: 0 })
            }
        }
    }

    /// Lines longer than `line_bytes_max` are cut.
    fn lines(path: &Path, line_bytes_max: usize) -> Result<Source, BenchError> {
        let failed = |source| BenchError::File { path: path.to_path_buf(), source };
        let text = std::fs::read(path).map_err(failed)?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Vec<Vec<u8>> =
            lines.map(|line| line[..line.len().min(line_bytes_max)].to_vec()).collect();
        if lines.is_empty() {
            return Err(failed(std::io::Error::other("it has no lines")));
        }
        Ok(Source::Lines { lines, at: 0 })
    }

    /// The next record's data.
    fn next(&mut self, shard: u32) -> &[u8] {
        match self {
            Source::Pool { bytes, record_bytes, at, made } => {
                if *at + *record_bytes > bytes.len() {
                    *at = *made as usize % 61;
                }
                let record = &mut bytes[*at..*at + *record_bytes];
                record[..8].copy_from_slice(&made.to_le_bytes());
                record[8..12].copy_from_slice(&shard.to_le_bytes());
                record[12..STAMP_BYTES].copy_from_slice(&[0x54, 0x57, 0x52, 0x31]);
                *made += 1;
                *at += *record_bytes;
                record
            }
            Source::Lines { lines, at } => {
                let line = &lines[*at];
                *at = (*at + 1) % lines.len();
                line
            }
        }
    }

    /// Fills a batch with `records` records for a shard.
    pub fn fill(
        &mut self,
        batch: &mut BatchBuilder,
        keys: &KeyTable,
        shard: u32,
        records: u32,
        client_time_ms: u64,
    ) {
        for number in 0..u64::from(records) {
            let (hash_key, key) = keys.key(shard, number);
            let data = self.next(shard);
            batch.push(&NewRecord { hash_key, client_time_ms, key, data });
        }
    }
}

/// Room for the batches of a workload.
#[must_use]
pub fn batch_room(workload: &Workload) -> BatchRoom {
    let records = workload.batch_records();
    BatchRoom {
        records,
        key_bytes: records * KEY_BYTES_MAX as u32,
        data_bytes: records * workload.record_bytes as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_fall_into_their_shards() {
        let table = KeyTable::new(64);
        for shard in 0..64 {
            for number in 0..KEYS_PER_SHARD as u64 {
                let (hash, key) = table.key(shard, number);
                assert_eq!(hash, HashKey::of_partition_key(key));
                assert!(HashRange::of_initial_shard(shard, 64).contains(hash));
            }
        }
    }

    #[test]
    fn no_record_is_like_another() {
        let bytes = vec![5; POOL_BYTES];
        let mut source = Source::Pool { bytes, record_bytes: 100, at: 0, made: 0 };
        let all: HashSet<Vec<u8>> = (0..100_000).map(|at| source.next(at % 7).to_vec()).collect();
        assert_eq!(all.len(), 100_000);
    }

    #[test]
    fn lines_come_again_and_again() {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        std::fs::write(file.path(), "one\n\ntwo two\n").unwrap();
        let mut source = Source::lines(file.path(), 5).unwrap();
        let three: Vec<Vec<u8>> = (0..3).map(|_| source.next(0).to_vec()).collect();
        assert_eq!(three, [b"one".to_vec(), b"two t".to_vec(), b"one".to_vec()]);
    }
}
