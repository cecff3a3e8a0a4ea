//! Fixed little-endian layouts: fields at fixed places of byte arrays. No cursor, no allocation:
//! a reader names the place that `docs/protocol.md` names.

/// A `u16` at byte `at`.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// A `u32` at byte `at`.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// A `u64` at byte `at`.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes at byte `at`.
///
/// # Panics
/// When they do not lie within `bytes`: lengths are checked before fields are read.
#[must_use]
pub fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes is an array of N bytes")
}

/// Writes `field` (some `to_le_bytes()`, or bytes as they are) at byte `at`.
pub fn put(bytes: &mut [u8], at: usize, field: impl AsRef<[u8]>) {
    let field = field.as_ref();
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// `length` rounded up to a multiple of `unit`, a power of two.
#[must_use]
pub const fn align_up(length: u64, unit: u64) -> u64 {
    (length + (unit - 1)) & !(unit - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_little_endian_and_in_place() {
        let mut bytes = [0_u8; 24];
        put(&mut bytes, 1, 0x0102_u16.to_le_bytes());
        put(&mut bytes, 4, 0x0102_0304_u32.to_le_bytes());
        put(&mut bytes, 8, u64::MAX.to_le_bytes());
        assert_eq!(bytes[..8], [0, 2, 1, 0, 4, 3, 2, 1]);
        assert_eq!(u16_at(&bytes, 1), 0x0102);
        assert_eq!(u32_at(&bytes, 4), 0x0102_0304);
        assert_eq!(u64_at(&bytes, 8), u64::MAX);
    }

    #[test]
    fn align_up_to_units() {
        assert_eq!([0, 1, 16, 17].map(|length| align_up(length, 16)), [0, 16, 16, 32]);
    }
}
