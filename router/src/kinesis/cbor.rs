//! Reading and writing CBOR (RFC 8949) where it lies: strings are borrowed from the body, and what
//! nobody asked for is skipped without being kept.
//!
//! Lengths that a body claims are never allocated, only compared with what is there. The code is our
//! own because it is short and because half of the time of a PutRecords went into the heads of
//! items, eight a record, when `ciborium-ll` read them: 121 us instead of 56 us for 500 records of
//! 1 KiB. Tests hold it against `ciborium` and the examples of the RFC.

use std::borrow::Cow;

use super::validate::Invalid;

/// Levels of lists, maps and tags within a value that is skipped.
pub(crate) const DEPTH_MAX: usize = 64;

/// The tag of a point in time (RFC 8949, section 3.4.2).
pub(crate) const TAG_TIMESTAMP: u64 = 1;

/// The simple values that bodies have (RFC 8949, section 3.3).
pub(crate) mod simple {
    pub(crate) const FALSE: u8 = 20;
    pub(crate) const TRUE: u8 = 21;
    pub(crate) const NULL: u8 = 22;
    pub(crate) const UNDEFINED: u8 = 23;
}

/// The body is no CBOR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed {
    /// What is wrong.
    what: &'static str,
    /// Where, in bytes from the body's start.
    at: usize,
}

impl From<Malformed> for Invalid {
    fn from(malformed: Malformed) -> Invalid {
        let Malformed { what, at } = malformed;
        Invalid::serialization(format!("The body is not valid CBOR: {what} at byte {at}"))
    }
}

/// A body and how far it was read.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

/// The head of an item. What a length counts stands behind the head; `None` says that pieces or
/// elements follow up to a break.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Header {
    Positive(u64),
    /// The number is -1 less this.
    Negative(u64),
    Bytes(Option<usize>),
    Text(Option<usize>),
    Array(Option<usize>),
    Map(Option<usize>),
    Tag(u64),
    Simple(u8),
    Float(f64),
    Break,
}

/// What is left of a list or map.
#[derive(Debug)]
pub(crate) struct Items {
    /// `None` when a break ends it.
    left: Option<usize>,
}

/// The head of a value, behind its tags.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Head {
    /// The innermost tag.
    pub(crate) tag: Option<u64>,
    /// Never a tag and never a break.
    pub(crate) header: Header,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { body, at: 0 }
    }

    /// The head of the next value.
    pub(crate) fn value(&mut self) -> Result<Head, Malformed> {
        let mut tag = None;
        for _ in 0..=DEPTH_MAX {
            match self.header()? {
                Header::Tag(inner) => tag = Some(inner),
                Header::Break => return Err(self.malformed("a break where a value belongs")),
                header => return Ok(Head { tag, header }),
            }
        }
        Err(self.malformed("too many tags"))
    }

    /// The text behind its head. Only a text in pieces is copied.
    pub(crate) fn text(&mut self, length: Option<usize>) -> Result<Cow<'a, str>, Malformed> {
        let at = self.at;
        let invalid = |_| Malformed { what: "text that is no UTF-8", at };
        match length {
            Some(length) => {
                let bytes = self.take(length)?;
                Ok(Cow::Borrowed(std::str::from_utf8(bytes).map_err(|_| invalid(()))?))
            }
            None => {
                let pieces = self.pieces(|header| match header {
                    Header::Text(Some(length)) => Some(length),
                    _ => None,
                })?;
                Ok(Cow::Owned(String::from_utf8(pieces).map_err(|_| invalid(()))?))
            }
        }
    }

    /// The bytes behind their head. Only bytes in pieces are copied.
    pub(crate) fn bytes(&mut self, length: Option<usize>) -> Result<Cow<'a, [u8]>, Malformed> {
        match length {
            Some(length) => Ok(Cow::Borrowed(self.take(length)?)),
            None => Ok(Cow::Owned(self.pieces(|header| match header {
                Header::Bytes(Some(length)) => Some(length),
                _ => None,
            })?)),
        }
    }

    /// A map's key, which is a text in all bodies of the API.
    pub(crate) fn key(&mut self) -> Result<Cow<'a, str>, Malformed> {
        match self.value()?.header {
            Header::Text(length) => self.text(length),
            _ => Err(self.malformed("a key that is no text")),
        }
    }

    /// Begins a list or map behind its head.
    pub(crate) fn items(&self, length: Option<usize>) -> Items {
        Items { left: length }
    }

    /// Whether another element or pair follows.
    pub(crate) fn more(&mut self, items: &mut Items) -> Result<bool, Malformed> {
        match &mut items.left {
            Some(0) => Ok(false),
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => match self.body.get(self.at) {
                None => Err(self.malformed("the end of the body within a list or map")),
                Some(&BREAK) => {
                    self.at += 1;
                    Ok(false)
                }
                Some(_) => Ok(true),
            },
        }
    }

    /// Passes over the next value.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        let head = self.value()?;
        self.skip_rest(&head, DEPTH_MAX)
    }

    /// Passes over what stands behind a head.
    pub(crate) fn skip_rest(&mut self, head: &Head, depth: usize) -> Result<(), Malformed> {
        let values_each = match head.header {
            Header::Bytes(length) => return self.bytes(length).map(drop),
            Header::Text(length) => return self.text(length).map(drop),
            Header::Array(_) => 1,
            Header::Map(_) => 2,
            _ => return Ok(()),
        };
        let (Header::Array(length) | Header::Map(length)) = head.header else { return Ok(()) };
        if depth == 0 {
            return Err(self.malformed("too many levels"));
        }
        let mut items = self.items(length);
        while self.more(&mut items)? {
            for _ in 0..values_each {
                let head = self.value()?;
                self.skip_rest(&head, depth - 1)?;
            }
        }
        Ok(())
    }

    /// Makes sure that nothing stands behind the value.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.at == self.body.len() { Ok(()) } else { Err(self.malformed("more than one value")) }
    }

    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// The next head (RFC 8949, section 3): three bits say what it is, five bits are its argument or
    /// say how many bytes of argument follow.
    #[inline]
    fn header(&mut self) -> Result<Header, Malformed> {
        let start = self.at;
        let end = Malformed { what: "the end of the body", at: start };
        let undefined = Malformed { what: "a head that is not defined", at: start };
        let initial = *self.body.get(start).ok_or(end)?;
        let (major, minor) = (initial >> 5, initial & 0x1f);
        let bytes = match minor {
            ..24 | 31 => 0,
            24..28 => 1 << (minor - 24),
            _ => return Err(undefined),
        };
        let argument = self.body.get(start + 1..start + 1 + bytes).ok_or(end)?;
        self.at = start + 1 + bytes;
        let value = match bytes {
            0 => u64::from(minor),
            _ => argument.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        let is_open = minor == 31;
        // What does not fit is longer than any body.
        let length = (!is_open).then(|| usize::try_from(value).unwrap_or(usize::MAX));
        match major {
            0 if !is_open => Ok(Header::Positive(value)),
            1 if !is_open => Ok(Header::Negative(value)),
            2 => Ok(Header::Bytes(length)),
            3 => Ok(Header::Text(length)),
            4 => Ok(Header::Array(length)),
            5 => Ok(Header::Map(length)),
            6 if !is_open => Ok(Header::Tag(value)),
            7 if bytes == 1 && value < 32 => Err(undefined),
            7 => Ok(match bytes {
                2 => Header::Float(half_to_f64(value as u16)),
                4 => Header::Float(f64::from(f32::from_bits(value as u32))),
                8 => Header::Float(f64::from_bits(value)),
                _ if is_open => Header::Break,
                _ => Header::Simple(value as u8),
            }),
            _ => Err(undefined),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        match self.body[self.at..].get(..length) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(self.malformed("a string longer than the body")),
        }
    }

    fn pieces(
        &mut self,
        length_of: impl Fn(Header) -> Option<usize>,
    ) -> Result<Vec<u8>, Malformed> {
        let mut whole = Vec::new();
        loop {
            match self.header()? {
                Header::Break => return Ok(whole),
                header => match length_of(header) {
                    Some(length) => whole.extend_from_slice(self.take(length)?),
                    None => return Err(self.malformed("a piece of another type than its string")),
                },
            }
        }
    }
}

/// The byte that ends a list, map or string of unknown length.
pub(crate) const BREAK: u8 = 0xff;

/// What a float of 16 bits is (RFC 8949, appendix D).
fn half_to_f64(half: u16) -> f64 {
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff));
    let value = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2_f64.powi(exponent - 25),
    };
    if half >> 15 == 1 { -value } else { value }
}

/// Writes a head, numbers in the fewest bytes and floats in eight.
pub(crate) fn write_head(out: &mut Vec<u8>, header: Header) {
    let (major, value) = match header {
        Header::Positive(value) => (0, Some(value)),
        Header::Negative(value) => (1, Some(value)),
        Header::Bytes(length) => (2, length.map(|length| length as u64)),
        Header::Text(length) => (3, length.map(|length| length as u64)),
        Header::Array(length) => (4, length.map(|length| length as u64)),
        Header::Map(length) => (5, length.map(|length| length as u64)),
        Header::Tag(value) => (6, Some(value)),
        Header::Simple(value) => (7, Some(u64::from(value))),
        Header::Break => (7, None),
        Header::Float(value) => {
            out.push(7 << 5 | 27);
            return out.extend_from_slice(&value.to_be_bytes());
        }
    };
    let major = major << 5;
    match value {
        None => out.push(major | 31),
        Some(value @ ..24) => out.push(major | value as u8),
        Some(value @ ..0x100) => out.extend_from_slice(&[major | 24, value as u8]),
        Some(value @ ..0x1_0000) => {
            let [high, low] = (value as u16).to_be_bytes();
            out.extend_from_slice(&[major | 25, high, low]);
        }
        Some(value @ ..0x1_0000_0000) => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        Some(value) => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// Writes a text.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    write_head(out, Header::Text(Some(text.len())));
    out.extend_from_slice(text.as_bytes());
}

/// Writes bytes.
pub(crate) fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_head(out, Header::Bytes(Some(bytes.len())));
    out.extend_from_slice(bytes);
}

/// Writes a whole number.
pub(crate) fn write_integer(out: &mut Vec<u8>, value: i64) {
    write_head(out, integer_header(value));
}

/// Writes a point in time as the service and the Java SDKs do: tag 1 and milliseconds, where RFC
/// 8949 has seconds (`SdkCborGenerator` of the AWS SDK for Java, versions 1 and 2).
pub(crate) fn write_timestamp(out: &mut Vec<u8>, ms: i64) {
    write_head(out, Header::Tag(TAG_TIMESTAMP));
    write_integer(out, ms);
}

fn integer_header(value: i64) -> Header {
    match u64::try_from(value) {
        Ok(value) => Header::Positive(value),
        Err(_) => Header::Negative(!value as u64),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let pair = |pair: &[u8]| {
            u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal")
        };
        digits.chunks(2).map(pair).collect()
    }

    fn header(text: &str) -> Result<Header, Malformed> {
        Reader::new(&hex(text)).value().map(|head| head.header)
    }

    #[test]
    fn heads_are_those_of_the_examples_in_rfc_8949() {
        assert_eq!(header("00"), Ok(Header::Positive(0)));
        assert_eq!(header("1903e8"), Ok(Header::Positive(1000)));
        assert_eq!(header("1bffffffffffffffff"), Ok(Header::Positive(u64::MAX)));
        assert_eq!(header("20"), Ok(Header::Negative(0)));
        assert_eq!(header("f93c00"), Ok(Header::Float(1.0)));
        assert_eq!(header("fa47c35000"), Ok(Header::Float(100_000.0)));
        assert_eq!(header("fb7e37e43c8800759c"), Ok(Header::Float(1.0e300)));
        assert_eq!(header("f90001"), Ok(Header::Float(5.960_464_477_539_063e-8)));
        assert_eq!(header("f90400"), Ok(Header::Float(0.000_061_035_156_25)));
        assert_eq!(header("f97bff"), Ok(Header::Float(65504.0)));
        assert_eq!(header("f9c400"), Ok(Header::Float(-4.0)));
        assert_eq!(header("f9fc00"), Ok(Header::Float(f64::NEG_INFINITY)));
        assert!(matches!(header("f97e00"), Ok(Header::Float(value)) if value.is_nan()));
        assert_eq!(header("f8ff"), Ok(Header::Simple(255)));
        assert_eq!(header("f4"), Ok(Header::Simple(20)));
        assert_eq!(header("f6"), Ok(Header::Simple(22)));
        assert_eq!(header("9f"), Ok(Header::Array(None)));
        assert_eq!(header("a2"), Ok(Header::Map(Some(2))));
    }

    #[test]
    fn tags_stand_before_their_value() {
        let body = hex("d9d9f7 c1 1a514b67b0");
        let head = Reader::new(&body).value().expect("is a value");
        assert_eq!(head, Head { tag: Some(1), header: Header::Positive(1_363_896_240) });
        let many = [vec![0xc1; DEPTH_MAX + 1], vec![0x00]].concat();
        assert_eq!(Reader::new(&many).value().expect_err("too many").what, "too many tags");
    }

    #[test]
    fn strings_are_borrowed_unless_they_come_in_pieces() {
        let body = hex("64 49455446");
        let mut reader = Reader::new(&body);
        let Header::Text(length) = reader.value().expect("a text").header else { panic!("text") };
        assert!(matches!(reader.text(length), Ok(Cow::Borrowed("IETF"))));
        let body = hex("5f 42 0102 43 030405 ff");
        let mut reader = Reader::new(&body);
        let Header::Bytes(length) = reader.value().expect("bytes").header else { panic!("bytes") };
        let bytes = reader.bytes(length).expect("two pieces");
        assert!(matches!(&bytes, Cow::Owned(bytes) if *bytes == [1, 2, 3, 4, 5]));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn what_is_no_cbor_is_refused_with_its_place() {
        let skip = |text: &str| {
            let body = hex(text);
            let mut reader = Reader::new(&body);
            reader.skip().and_then(|()| reader.end()).map_err(|m| (m.what, m.at))
        };
        assert_eq!(skip("a1 61 61 01"), Ok(()));
        assert_eq!(skip("82 01"), Err(("the end of the body", 2)));
        assert_eq!(skip("9f 01"), Err(("the end of the body within a list or map", 2)));
        assert_eq!(skip("1c"), Err(("a head that is not defined", 0)));
        assert_eq!(skip("1f"), Err(("a head that is not defined", 0)));
        assert_eq!(skip("f814"), Err(("a head that is not defined", 0)));
        assert_eq!(skip("df"), Err(("a head that is not defined", 0)));
        assert_eq!(skip("19 03"), Err(("the end of the body", 0)));
        assert_eq!(skip("ff"), Err(("a break where a value belongs", 1)));
        assert_eq!(skip("63 6161"), Err(("a string longer than the body", 1)));
        assert_eq!(skip("5bffffffffffffffff 00"), Err(("a string longer than the body", 9)));
        assert_eq!(skip("9bffffffffffffffff 00"), Err(("the end of the body", 10)));
        assert_eq!(skip("62 c328"), Err(("text that is no UTF-8", 1)));
        assert_eq!(skip("7f 41 61 ff"), Err(("a piece of another type than its string", 2)));
        assert_eq!(skip("7f 7f ff ff"), Err(("a piece of another type than its string", 2)));
        assert_eq!(skip("01 02"), Err(("more than one value", 1)));
    }

    #[test]
    fn levels_are_limited_by_number_not_by_the_stack() {
        let deep = |levels: usize| [vec![0x81; levels], vec![0x00]].concat();
        assert_eq!(Reader::new(&deep(DEPTH_MAX)).skip(), Ok(()));
        let error = Reader::new(&deep(DEPTH_MAX + 1)).skip().expect_err("too deep");
        assert_eq!(error.what, "too many levels");
        assert!(Reader::new(&vec![0x9f; 1 << 20]).skip().is_err());
    }

    #[test]
    fn heads_are_written_in_the_fewest_bytes() {
        let written = |value| {
            let mut out = Vec::new();
            write_integer(&mut out, value);
            out
        };
        assert_eq!(written(23), hex("17"));
        assert_eq!(written(24), hex("1818"));
        assert_eq!(written(-1), hex("20"));
        assert_eq!(written(-1000), hex("3903e7"));
        assert_eq!(written(i64::MIN), hex("3b7fffffffffffffff"));
        let mut out = Vec::new();
        write_timestamp(&mut out, 1_363_896_240_123);
        assert_eq!(out, hex("c1 1b 0000013d8e8d07fb"));
    }

    /// Simple values of one byte more are those from 32 on.
    fn headers() -> impl Strategy<Value = Header> {
        let length = || prop::option::of(any::<u32>().prop_map(|length| length as usize));
        prop_oneof![
            any::<u64>().prop_map(Header::Positive),
            (0_u32..64).prop_map(|shift| Header::Positive(u64::MAX >> shift)),
            any::<u64>().prop_map(Header::Negative),
            length().prop_map(Header::Bytes),
            length().prop_map(Header::Text),
            length().prop_map(Header::Array),
            length().prop_map(Header::Map),
            any::<u64>().prop_map(Header::Tag),
            prop_oneof![0_u8..24, 32_u8..].prop_map(Header::Simple),
            any::<f64>().prop_filter("is a number", |f| !f.is_nan()).prop_map(Header::Float),
            Just(Header::Break),
        ]
    }

    proptest! {
        #[test]
        fn a_head_is_read_as_it_was_written(header in headers()) {
            let mut out = Vec::new();
            write_head(&mut out, header);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.header(), Ok(header));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn halves_are_what_another_reader_makes_of_them(half in any::<u16>()) {
            let body = [&[0xf9][..], &half.to_be_bytes()].concat();
            let other: f64 = ciborium::from_reader(body.as_slice()).expect("is a float");
            let ours = half_to_f64(half);
            prop_assert!(ours == other || (ours.is_nan() && other.is_nan()));
        }

        #[test]
        fn any_bytes_are_skipped_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&body);
            if reader.skip().is_ok() {
                prop_assert!(reader.at <= body.len());
            }
        }
    }
}
