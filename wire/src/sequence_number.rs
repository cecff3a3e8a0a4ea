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

/// Digits of every number in decimal: the version at the top makes it no shorter and no longer.
pub const DECIMAL_DIGITS: usize = 56;

/// Numbers are written in groups of so many digits, as many as a word has room for.
const GROUP_DIGITS: usize = 18;
const GROUP: u64 = 10_u64.pow(GROUP_DIGITS as u32);
const GROUPS: usize = DECIMAL_DIGITS.div_ceil(GROUP_DIGITS);
/// What the next sequence index adds, in such groups: bit 80 of the number.
const INDEX_STEP: [u64; 2] =
    [((1_u128 << 80) % GROUP as u128) as u64, ((1_u128 << 80) / GROUP as u128) as u64];
const _: () = assert!(INDEX_STEP[1] < GROUP);

/// Writes numbers in decimal, quickly where each follows the one before it: records that were
/// appended together differ in their sequence index alone, and that is a sum instead of a division
/// of 186 bits.
#[derive(Clone, Debug)]
pub struct DecimalWriter {
    last: Option<SequenceNumber>,
    /// The last number, lowest group first.
    groups: [u64; GROUPS],
    digits: [u8; DECIMAL_DIGITS],
}

impl Default for DecimalWriter {
    fn default() -> DecimalWriter {
        DecimalWriter { last: None, groups: [0; GROUPS], digits: [b'0'; DECIMAL_DIGITS] }
    }
}

impl DecimalWriter {
    /// One that has written nothing yet.
    #[must_use]
    pub fn new() -> DecimalWriter {
        DecimalWriter::default()
    }

    /// The decimal form of a number.
    ///
    /// # Panics
    /// When a time exceeds 36 bits (the year 4147).
    pub fn write(&mut self, number: SequenceNumber) -> &str {
        let next = self.last.and_then(|last| {
            let sequence_index = last.sequence_index.checked_add(1)?;
            Some(SequenceNumber { sequence_index, ..last })
        });
        if next == Some(number) {
            let mut carry = 0;
            for (group, step) in self.groups.iter_mut().zip(INDEX_STEP.into_iter().chain([0, 0])) {
                let sum = *group + step + carry;
                (*group, carry) = (sum % GROUP, sum / GROUP);
            }
        } else {
            let mut words = number.to_words();
            self.groups.fill_with(|| divide(&mut words, GROUP));
        }
        self.last = Some(number);
        let mut end = DECIMAL_DIGITS;
        for mut group in self.groups {
            let start = end.saturating_sub(GROUP_DIGITS);
            for digit in self.digits[start..end].iter_mut().rev() {
                (*digit, group) = (b'0' + (group % 10) as u8, group / 10);
            }
            end = start;
        }
        std::str::from_utf8(&self.digits).expect("digits are text")
    }
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
    /// The decimal form: [`DECIMAL_DIGITS`] digits.
    ///
    /// # Panics
    /// When a time exceeds 36 bits (the year 4147).
    #[must_use]
    pub fn to_decimal(self) -> String {
        DecimalWriter::new().write(self).to_owned()
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

    /// A number follows from the one before it as it follows from its bits, digit by digit.
    #[test]
    fn runs_of_numbers_are_written_like_each_alone() {
        let alone = |number: SequenceNumber| {
            let mut words = number.to_words();
            let mut text = String::new();
            while words != [0; 3] {
                text.insert(0, char::from(b'0' + divide(&mut words, 10) as u8));
            }
            text
        };
        let mut writer = DecimalWriter::new();
        for first in [0, 0x0001_6b1f_1dda, u64::from(u32::MAX) - 40, u64::MAX - 80] {
            // Far enough for carries; then a gap, the same again, and another second.
            for index in (first..first + 80).chain([first + 3, first + 3, first + 4]) {
                for time_s in [5, 5, 6] {
                    let number = SequenceNumber { sequence_index: index, time_s, ..GOLDEN };
                    assert_eq!(writer.write(number), alone(number));
                }
                let number = SequenceNumber { sequence_index: index, ..GOLDEN };
                assert_eq!(writer.write(number), alone(number));
            }
            for index in first..first + 80 {
                let number = SequenceNumber { sequence_index: index, ..GOLDEN };
                assert_eq!(writer.write(number), alone(number));
            }
        }
        let last = SequenceNumber { sequence_index: u64::MAX, ..GOLDEN };
        writer.write(last);
        let first = SequenceNumber { sequence_index: 0, ..GOLDEN };
        assert_eq!(writer.write(first), alone(first));
    }

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
