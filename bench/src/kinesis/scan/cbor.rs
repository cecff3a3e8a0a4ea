//! Answers in CBOR (RFC 8949). Lists, maps and strings may be of unknown length.

use std::borrow::Cow;

use super::{Scan, ScanError};

/// Tags before one value.
const TAGS_MAX: usize = 8;
/// The byte that ends a list, map or string of unknown length.
const BREAK: u8 = 0xff;
const NULL: u64 = 22;

/// The kinds of items (RFC 8949, section 3.1).
mod major {
    pub(super) const UNSIGNED: u8 = 0;
    pub(super) const BYTES: u8 = 2;
    pub(super) const TEXT: u8 = 3;
    pub(super) const LIST: u8 = 4;
    pub(super) const MAP: u8 = 5;
    pub(super) const TAG: u8 = 6;
    pub(super) const SIMPLE: u8 = 7;
}

/// A body and how far it was read.
pub(super) struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

/// The head of an item: its kind, and its argument, which is none for an unknown length.
#[derive(Clone, Copy)]
struct Head {
    major: u8,
    argument: Option<u64>,
    /// Bytes of the argument, to tell a null from a float.
    argument_bytes: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(body: &'a [u8]) -> Scanner<'a> {
        Scanner { body, at: 0 }
    }

    fn malformed(&self, what: &'static str) -> ScanError {
        ScanError::Malformed { what, at: self.at }
    }

    /// The head of the next item, tags passed over.
    fn head(&mut self) -> Result<Head, ScanError> {
        for _ in 0..=TAGS_MAX {
            let head = self.any_head()?;
            if head.major != major::TAG {
                return Ok(head);
            }
        }
        Err(self.malformed("too many tags"))
    }

    fn any_head(&mut self) -> Result<Head, ScanError> {
        let end = self.malformed("the end of the body");
        let initial = *self.body.get(self.at).ok_or(end.clone())?;
        let (major, minor) = (initial >> 5, initial & 0x1f);
        let argument_bytes = match minor {
            ..24 => 0,
            24..28 => 1 << (minor - 24),
            31 if matches!(major, major::BYTES..=major::MAP) => {
                self.at += 1;
                return Ok(Head { major, argument: None, argument_bytes: 0 });
            }
            _ => return Err(self.malformed("a head that is not defined, or a break")),
        };
        let first = self.at + 1;
        let bytes = self.body.get(first..first + argument_bytes).ok_or(end)?;
        self.at = first + argument_bytes;
        let argument = match argument_bytes {
            0 => u64::from(minor),
            _ => bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        Ok(Head { major, argument: Some(argument), argument_bytes })
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ScanError> {
        let too_long = self.malformed("a string longer than the body");
        let length = usize::try_from(length).map_err(|_| too_long.clone())?;
        let bytes = self.body[self.at..].get(..length).ok_or(too_long)?;
        self.at += length;
        Ok(bytes)
    }

    /// A string of a kind behind its head. Only one in pieces is copied.
    fn string(&mut self, head: Head) -> Result<Cow<'a, [u8]>, ScanError> {
        if let Some(length) = head.argument {
            return self.take(length).map(Cow::Borrowed);
        }
        let mut whole = Vec::new();
        while !self.is_break() {
            let piece = self.any_head()?;
            match piece.argument {
                Some(length) if piece.major == head.major => {
                    whole.extend_from_slice(self.take(length)?);
                }
                _ => return Err(self.malformed("a piece of another kind than its string")),
            }
        }
        Ok(Cow::Owned(whole))
    }

    /// Whether a break follows, which is passed over.
    fn is_break(&mut self) -> bool {
        let is_break = self.body.get(self.at) == Some(&BREAK);
        self.at += usize::from(is_break);
        is_break
    }

    /// Calls `item` for each item of a list or map behind its head.
    fn items(
        &mut self,
        head: Head,
        mut item: impl FnMut(&mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        match head.argument {
            // Each takes a byte at least, so a length that is not true ends with the body.
            Some(count) => {
                for _ in 0..count {
                    item(self)?;
                }
            }
            None => {
                while !self.is_break() {
                    item(self)?;
                }
            }
        }
        Ok(())
    }

    fn head_of(&mut self, major: u8, what: &'static str) -> Result<Head, ScanError> {
        let at = self.at;
        let head = self.head()?;
        if head.major == major { Ok(head) } else { Err(ScanError::Malformed { what, at }) }
    }
}

impl<'a> Scan<'a> for Scanner<'a> {
    fn map(
        &mut self,
        mut member: impl FnMut(&mut Self, &[u8]) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        let head = self.head_of(major::MAP, "no map")?;
        self.items(head, |scan| {
            let name = scan.head_of(major::TEXT, "a name that is no text")?;
            let name = scan.string(name)?;
            member(scan, &name)
        })
    }

    fn list(
        &mut self,
        element: impl FnMut(&mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        let head = self.head_of(major::LIST, "no list")?;
        self.items(head, element)
    }

    fn text(&mut self) -> Result<Option<Cow<'a, [u8]>>, ScanError> {
        let at = self.at;
        let head = self.head()?;
        match (head.major, head.argument) {
            (major::TEXT, _) => self.string(head).map(Some),
            (major::SIMPLE, Some(NULL)) if head.argument_bytes == 0 => Ok(None),
            _ => Err(ScanError::Malformed { what: "no text", at }),
        }
    }

    fn data(&mut self, out: &mut Vec<u8>) -> Result<(), ScanError> {
        let head = self.head_of(major::BYTES, "data that is no bytes")?;
        out.extend_from_slice(&self.string(head)?);
        Ok(())
    }

    fn number(&mut self) -> Result<u64, ScanError> {
        let head = self.head_of(major::UNSIGNED, "no whole number")?;
        head.argument.ok_or_else(|| self.malformed("no whole number"))
    }

    fn skip(&mut self, depth: usize) -> Result<(), ScanError> {
        let too_deep = self.malformed("too many levels");
        let head = self.head()?;
        match head.major {
            major::BYTES | major::TEXT => self.string(head).map(drop),
            major::LIST => {
                let deeper = depth.checked_sub(1).ok_or(too_deep)?;
                self.items(head, |scan| scan.skip(deeper))
            }
            major::MAP => {
                let deeper = depth.checked_sub(1).ok_or(too_deep)?;
                self.items(head, |scan| {
                    scan.skip(deeper)?;
                    scan.skip(deeper)
                })
            }
            // The argument is all there is.
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ScanError> {
        if self.at == self.body.len() { Ok(()) } else { Err(self.malformed("more than one value")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_may_come_in_pieces() {
        let body = b"\x7f\x62ab\x61c\xff";
        assert_eq!(Scanner::new(body).text().unwrap().unwrap().as_ref(), b"abc");
        let mut data = Vec::new();
        Scanner::new(b"\x5f\x41\x01\x42\x02\x03\xff").data(&mut data).unwrap();
        assert_eq!(data, [1, 2, 3]);
        for wrong in [&b"\x7f\x62ab"[..], b"\x7f\x41\x01\xff", b"\x7f\x7f\xff\xff"] {
            assert!(Scanner::new(wrong).text().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lists_and_maps_may_be_of_unknown_length() {
        for body in [&b"\xbf\x61a\x9f\x01\x02\xff\xff"[..], b"\xa1\x61a\x82\x01\x02"] {
            let mut numbers = Vec::new();
            let mut scan = Scanner::new(body);
            scan.map(|scan, name| {
                assert_eq!(name, b"a");
                scan.list(|scan| {
                    numbers.push(scan.number()?);
                    Ok(())
                })
            })
            .unwrap();
            assert_eq!(scan.end(), Ok(()));
            assert_eq!(numbers, [1, 2]);
        }
    }

    #[test]
    fn lengths_that_are_not_there_end_with_the_body() {
        for wrong in [
            &b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..],
            b"\x7b\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xbf\x61a",
            b"\xff",
            b"\x1c",
            b"\xc1",
            b"",
        ] {
            assert!(Scanner::new(wrong).skip(9).is_err(), "{wrong:?}");
        }
        let deep = [0x81; 100];
        assert!(Scanner::new(&deep).skip(32).is_err());
        let tags = [0xc1; 100];
        assert!(Scanner::new(&tags).skip(32).is_err());
    }

    #[test]
    fn nulls_floats_and_tags_are_told_apart() {
        assert_eq!(Scanner::new(b"\xf6").text(), Ok(None));
        assert!(Scanner::new(b"\xf9\x00\x16").text().is_err(), "a float");
        assert_eq!(Scanner::new(b"\xc1\x19\x03\xe8").number(), Ok(1000));
        assert!(Scanner::new(b"\x20").number().is_err(), "negative");
        let mut scan = Scanner::new(b"\xfb\x40\x00\x00\x00\x00\x00\x00\x00");
        scan.skip(1).unwrap();
        assert_eq!(scan.end(), Ok(()));
    }
}
