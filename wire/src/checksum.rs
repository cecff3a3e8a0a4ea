//! Checksums: CRC32C guards every header and body; CRC64 chains what was read back to what was
//! written.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC32C (Castagnoli) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC32C of several pieces as if they were one.
#[must_use]
pub fn crc32c_pieces(pieces: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize() as u32
}

/// A hash over a shard's batches in order: two readers that saw the same records at the same
/// offsets with the same bytes have the same chain. It uses another polynomial than the checks
/// on the way, so that it does not trust them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chain(pub u64);

impl Chain {
    /// Appends one batch: its first offset, count of records and body.
    pub fn absorb(&mut self, first_offset: u64, count: u32, body: &[u8]) {
        let body_hash = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body);
        self.absorb_hashed(first_offset, count, body_hash);
    }

    /// Appends one batch whose body was hashed by [`body_hash`] before.
    pub fn absorb_hashed(&mut self, first_offset: u64, count: u32, body_hash: u64) {
        for word in [first_offset, u64::from(count), body_hash] {
            // A multiply-xor round (splitmix64's finaliser) makes the chain order-sensitive.
            let mut mixed = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            self.0 = mixed ^ (mixed >> 31);
        }
    }
}

/// Hash of a body as the chain takes it.
#[must_use]
pub fn body_hash(body: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnoli() {
        // Check value of CRC-32/ISCSI (RFC 3720, B.4).
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_pieces(&[b"1234", b"", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn chain_depends_on_order_offset_and_bytes() {
        let chain = |batches: &[(u64, &[u8])]| {
            let mut chain = Chain::default();
            batches.iter().for_each(|(offset, body)| chain.absorb(*offset, 1, body));
            chain
        };
        let base = chain(&[(0, b"a"), (1, b"b")]);
        assert_eq!(base, chain(&[(0, b"a"), (1, b"b")]));
        assert_ne!(base, chain(&[(0, b"b"), (1, b"a")]));
        assert_ne!(base, chain(&[(0, b"a"), (2, b"b")]));
        assert_ne!(base, chain(&[(0, b"a")]));
    }
}
