//! Hash keys and the ranges of shards.
//!
//! A partition key's MD5, read as an unsigned 128-bit big-endian integer, falls into exactly one
//! open shard of a stream (API reference, PutRecord). Hash keys travel as 16 big-endian bytes: an
//! MD5 digest needs no conversion and bytes compare as numbers.

use md5::{Digest, Md5};

/// A hash key as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HashKey(pub u128);

impl HashKey {
    /// The hash key of a partition key.
    #[must_use]
    pub fn of_partition_key(key: &[u8]) -> HashKey {
        HashKey(u128::from_be_bytes(Md5::digest(key).into()))
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From what travelled.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> HashKey {
        HashKey(u128::from_be_bytes(bytes))
    }
}

/// Hash keys from `start` to `end`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HashRange {
    /// First hash key.
    pub start: HashKey,
    /// Last hash key.
    pub end: HashKey,
}

impl HashRange {
    /// All hash keys.
    pub const FULL: HashRange = HashRange { start: HashKey(0), end: HashKey(u128::MAX) };

    /// Whether `key` lies within.
    #[must_use]
    pub fn contains(&self, key: HashKey) -> bool {
        self.start <= key && key <= self.end
    }

    /// The range of shard `index` of `count` in a new stream: equal widths, the last takes the
    /// rest, as Kinesis does.
    ///
    /// # Panics
    /// When `index` is not below `count`.
    #[must_use]
    pub fn of_initial_shard(index: u32, count: u32) -> HashRange {
        assert!(index < count, "shard {index} of {count}");
        if count == 1 {
            return HashRange::FULL;
        }
        // floor(2^128 / count) without 2^128: (2^128 - 1) / count differs only when count
        // divides 2^128, that is for powers of two, where one must be added.
        let width = u128::MAX / u128::from(count) + u128::from(count.is_power_of_two());
        let start = width * u128::from(index);
        let end = if index + 1 == count { u128::MAX } else { start + (width - 1) };
        HashRange { start: HashKey(start), end: HashKey(end) }
    }

    /// The shard of a new stream of `count` shards into which `key` falls.
    #[must_use]
    pub fn initial_shard_of(key: HashKey, count: u32) -> u32 {
        if count <= 1 {
            return 0;
        }
        let width = u128::MAX / u128::from(count) + u128::from(count.is_power_of_two());
        u32::try_from(key.0 / width).unwrap_or(u32::MAX).min(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_of_known_key() {
        // RFC 1321, A.5.
        assert_eq!(HashKey::of_partition_key(b"abc").0, 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
    }

    #[test]
    fn initial_shards_tile_the_key_space() {
        for count in [1, 2, 3, 4, 7, 64, 1000, 1024, 20_000] {
            let mut next = 0_u128;
            for index in 0..count {
                let range = HashRange::of_initial_shard(index, count);
                assert_eq!(range.start.0, next);
                assert_eq!(HashRange::initial_shard_of(range.start, count), index);
                assert_eq!(HashRange::initial_shard_of(range.end, count), index);
                next = range.end.0.wrapping_add(1);
            }
            assert_eq!(next, 0, "the last range ends at 2^128 - 1");
        }
    }

    #[test]
    fn four_shards_as_kinesis_lists_them() {
        let second = HashRange::of_initial_shard(1, 4);
        assert_eq!(second.start.0.to_string(), "85070591730234615865843651857942052864");
        assert_eq!(second.end.0.to_string(), "170141183460469231731687303715884105727");
    }
}
