//! Sizes as people write them: `64MiB`.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use thiserror::Error;

/// A count of bytes that can be written with a binary unit, on the command line, in the
/// environment and in a file alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size(pub(crate) u64);

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum SizeError {
    /// No number, or an unknown unit.
    #[error("{text:?} is no size: write bytes, or a number with KiB, MiB, GiB or TiB, as 64MiB")]
    Form {
        /// What was written.
        text: String,
    },
    /// More than 2^64 - 1 bytes.
    #[error("{text:?} is beyond 2^64 - 1 bytes")]
    Range {
        /// What was written.
        text: String,
    },
}

/// Units and their powers of two. The bare number comes last: every text ends with it.
const UNITS: [(&str, u32); 6] =
    [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0), ("", 0)];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let form = || SizeError::Form { text: text.to_owned() };
        let range = || SizeError::Range { text: text.to_owned() };
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?.trim_end(), *shift)))
            .ok_or_else(form)?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(form());
        }
        let number: u64 = digits.parse().map_err(|_| range())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(range)
    }
}

/// The largest unit that divides the size, so that what is printed can be written back.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        let largest = UNITS[..4].iter().rev().find(|(_, shift)| divides(*shift));
        let (unit, shift) = largest.unwrap_or(&("", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size: a count of bytes, or a text as \"64MiB\"")
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size is not negative"))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_printed_back() {
        for (text, bytes, printed) in [
            ("0", 0, "0"),
            ("4097", 4097, "4097"),
            ("512B", 512, "512"),
            ("64KiB", 64 << 10, "64KiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("3 TiB", 3 << 40, "3TiB"),
            ("18446744073709551615", u64::MAX, "18446744073709551615"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size, Size(bytes), "{text}");
            assert_eq!(size.to_string(), printed);
            assert_eq!(printed.parse(), Ok(size));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "MiB", "-1", "+1", "1.5GiB", "64MB", "64mib", "1e9", "64MiB/s"] {
            let found = text.parse::<Size>();
            assert_eq!(found, Err(SizeError::Form { text: text.to_owned() }), "{text}");
        }
        for text in ["18446744073709551616", "16777216TiB"] {
            let found = text.parse::<Size>();
            assert_eq!(found, Err(SizeError::Range { text: text.to_owned() }), "{text}");
        }
    }
}
