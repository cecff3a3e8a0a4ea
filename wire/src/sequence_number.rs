//! Kinesis sequence numbers, version 2: 186 bits, printed as 56 decimal digits.
//!
//! Hexadecimal digits from the top: `2`, the second in which the shard was created (9), the low
//! nibble of the shard's index (1), the sequence index (16), `00`, the second of the record (9),
//! the shard's index (8), the version `2`. The layout is what the KCL's validator checks
//! (`checkpoint/SequenceNumberValidator.java`) and was verified against a production number.

use thiserror::Error;

const SECONDS_MAX: u64 = (1 << 36) - 1;
const VERSION: u64 = 2;

/// A sequence number, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SequenceNumber {
    /// Second since 1970 in which the shard was created; at most 36 bits.
    pub shard_created_s: u64,
    /// The record's offset in its shard.
    pub sequence_index: u64,
    /// Second since 1970 of the record; at most 36 bits.
    pub time_s: u64,
    /// The shard's index.
    pub shard_index: u32,
}

/// Why a text is no sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SequenceNumberError {
    /// Not a decimal number of at most 186 bits.
    #[error("a sequence number is a decimal number of 186 bits")]
    NotANumber,
    /// A decimal number, but not of version 2.
    #[error("the number is not a version 2 sequence number (its bits do not have that layout)")]
    OtherVersion,
}

impl SequenceNumber {
    /// The decimal form.
    ///
    /// # Panics
    /// When a time exceeds 36 bits (the year 4147).
    #[must_use]
    pub fn to_decimal(self) -> String {
        let mut words = self.to_words();
        let mut groups = Vec::with_capacity(4);
        while words != [0; 3] {
            groups.push(divide(&mut words, 10_u64.pow(18)));
        }
        let mut text = groups.pop().map_or_else(String::new, |first| first.to_string());
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:018}"));
        }
        text
    }

    /// The number that `text` is the decimal form of.
    ///
    /// # Errors
    /// [`SequenceNumberError`] when `text` is something else.
    pub fn from_decimal(text: &str) -> Result<SequenceNumber, SequenceNumberError> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SequenceNumberError::NotANumber);
        }
        let mut words = [0_u64; 3];
        for digit in text.bytes() {
            let mut carry = u128::from(digit - b'0');
            for word in &mut words {
                let value = u128::from(*word) * 10 + carry;
                *word = value as u64;
                carry = value >> 64;
            }
            if carry != 0 || words[2] >> 58 != 0 {
                return Err(SequenceNumberError::NotANumber);
            }
        }
        SequenceNumber::from_words(words)
    }

    /// Bits 0..186 as three words, lowest first.
    fn to_words(self) -> [u64; 3] {
        assert!(self.shard_created_s <= SECONDS_MAX && self.time_s <= SECONDS_MAX);
        let nibble = u64::from(self.shard_index & 0xf);
        // Bits 0..4 version, 4..36 shard, 36..72 time, 72..80 zero, 80..144 sequence index,
        // 144..148 nibble, 148..184 created, 184..186 version.
        let low = VERSION | u64::from(self.shard_index) << 4 | self.time_s << 36;
        let middle = self.time_s >> 28 | self.sequence_index << 16;
        let high =
            self.sequence_index >> 48 | nibble << 16 | self.shard_created_s << 20 | VERSION << 56;
        [low, middle, high]
    }

    fn from_words([low, middle, high]: [u64; 3]) -> Result<SequenceNumber, SequenceNumberError> {
        let number = SequenceNumber {
            shard_created_s: high >> 20 & SECONDS_MAX,
            sequence_index: middle >> 16 | high << 48,
            time_s: (low >> 36 | middle << 28) & SECONDS_MAX,
            shard_index: (low >> 4) as u32,
        };
        // Whatever the fields do not hold (versions, zero byte, nibble) must match as well.
        if number.to_words() == [low, middle, high] {
            Ok(number)
        } else {
            Err(SequenceNumberError::OtherVersion)
        }
    }
}

/// Divides the number in place; answers the remainder.
fn divide(words: &mut [u64; 3], divisor: u64) -> u64 {
    let mut remainder = 0_u128;
    for word in words.iter_mut().rev() {
        let value = remainder << 64 | u128::from(*word);
        *word = (value / u128::from(divisor)) as u64;
        remainder = value % u128::from(divisor);
    }
    remainder as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a number seen in production, put together digit by digit.
    const GOLDEN: SequenceNumber = SequenceNumber {
        shard_created_s: 1_552_896_735,
        sequence_index: 0x0001_6b1f_1dda,
        time_s: 1_554_821_832,
        shard_index: 17,
    };

    #[test]
    fn golden_hexadecimal_layout() {
        let [low, middle, high] = GOLDEN.to_words();
        let text = format!("{high:015x}{middle:016x}{low:016x}");
        assert_eq!(text, "205c8f52df1000000016b1f1dda0005cacb2c8000000112");
    }

    #[test]
    fn golden_decimal() {
        let text = GOLDEN.to_decimal();
        assert_eq!(text.len(), 56);
        assert_eq!(text, GOLDEN_DECIMAL);
        assert_eq!(SequenceNumber::from_decimal(&text), Ok(GOLDEN));
    }

    /// `int("205c8f52df1000000016b1f1dda0005cacb2c8000000112", 16)`.
    const GOLDEN_DECIMAL: &str = "49593949378240586316257100628612811999143984124999500050";

    #[test]
    fn order_follows_the_offset_then_nothing_else() {
        let next = SequenceNumber { sequence_index: GOLDEN.sequence_index + 1, ..GOLDEN };
        assert!(next.to_decimal() > GOLDEN.to_decimal());
    }

    #[test]
    fn extremes_round_trip() {
        for number in [
            SequenceNumber { shard_created_s: 0, sequence_index: 0, time_s: 0, shard_index: 0 },
            SequenceNumber {
                shard_created_s: SECONDS_MAX,
                sequence_index: u64::MAX,
                time_s: SECONDS_MAX,
                shard_index: u32::MAX,
            },
        ] {
            assert_eq!(SequenceNumber::from_decimal(&number.to_decimal()), Ok(number));
        }
    }

    #[test]
    fn other_numbers_are_refused() {
        use SequenceNumberError::{NotANumber, OtherVersion};
        for (text, error) in [
            ("", NotANumber),
            ("-1", NotANumber),
            ("12a", NotANumber),
            ("0", OtherVersion),
            ("123456789", OtherVersion),
            (&"9".repeat(129), NotANumber),
        ] {
            assert_eq!(SequenceNumber::from_decimal(text), Err(error), "{text}");
        }
    }
}
