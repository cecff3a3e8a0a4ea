//! Answers in JSON (RFC 8259).

use std::borrow::Cow;

use memchr::memchr2;

use super::{Scan, ScanError};

/// A body and how far it was read.
pub(super) struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(body: &'a [u8]) -> Scanner<'a> {
        Scanner { body, at: 0 }
    }

    fn malformed(&self, what: &'static str) -> ScanError {
        ScanError::Malformed { what, at: self.at }
    }

    /// The next byte that is no blank, which stays.
    fn peek(&mut self) -> Result<u8, ScanError> {
        loop {
            match self.body.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(self.malformed("the end of the body")),
            }
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), ScanError> {
        if self.peek()? != byte {
            return Err(self.malformed(what));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(), ScanError> {
        if !self.body[self.at..].starts_with(word) {
            return Err(self.malformed("no value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Whether another element follows; passes over the comma, or over `close`.
    fn goes_on(&mut self, close: u8) -> Result<bool, ScanError> {
        match self.peek()? {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            byte if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.malformed("no comma and no end of a list or map")),
        }
    }

    /// A string behind its first quote, as it stands there, and whether something in it is escaped.
    fn raw_string(&mut self) -> Result<(&'a [u8], bool), ScanError> {
        self.expect(b'"', "no string")?;
        let start = self.at;
        let (mut at, mut is_escaped) = (start, false);
        loop {
            let rest = self.body.get(at..).unwrap_or_default();
            let Some(found) = memchr2(b'"', b'\\', rest) else {
                return Err(self.malformed("a string without an end"));
            };
            at += found;
            if self.body[at] == b'"' {
                self.at = at + 1;
                return Ok((&self.body[start..at], is_escaped));
            }
            is_escaped = true;
            // Whatever is escaped, it is no end.
            at += 2;
        }
    }

    fn string(&mut self) -> Result<Cow<'a, [u8]>, ScanError> {
        let start = self.at;
        let (raw, is_escaped) = self.raw_string()?;
        if !is_escaped {
            return Ok(Cow::Borrowed(raw));
        }
        // Rare in answers: another reader's business.
        let quoted = [b"\"", raw, b"\""].concat();
        let text: String = serde_json::from_slice(&quoted).map_err(|_| ScanError::Malformed {
            what: "a string with a wrong escape",
            at: start,
        })?;
        Ok(Cow::Owned(text.into_bytes()))
    }

    fn skip_number(&mut self) {
        let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        self.at += self.body[self.at..].iter().take_while(is_part).count();
    }
}

impl<'a> Scan<'a> for Scanner<'a> {
    fn map(
        &mut self,
        mut member: impl FnMut(&mut Self, &[u8]) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.expect(b'{', "no map")?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            let name = self.string()?;
            self.expect(b':', "no colon")?;
            member(self, &name)?;
            if !self.goes_on(b'}')? {
                return Ok(());
            }
        }
    }

    fn list(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.expect(b'[', "no list")?;
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.goes_on(b']')? {
                return Ok(());
            }
        }
    }

    fn text(&mut self) -> Result<Option<Cow<'a, [u8]>>, ScanError> {
        if self.peek()? == b'n' {
            self.word(b"null")?;
            return Ok(None);
        }
        self.string().map(Some)
    }

    fn data(&mut self, out: &mut Vec<u8>) -> Result<(), ScanError> {
        let start = self.at;
        let wrong = |_| ScanError::Malformed { what: "data that is not base64", at: start };
        let text = self.string()?;
        base64_simd::STANDARD.decode_append(&*text, out).map_err(wrong)
    }

    fn number(&mut self) -> Result<u64, ScanError> {
        self.peek()?;
        let start = self.at;
        self.skip_number();
        let text = std::str::from_utf8(&self.body[start..self.at]).unwrap_or_default();
        let wrong = ScanError::Malformed { what: "no whole number", at: start };
        if text.starts_with('+') {
            return Err(wrong);
        }
        text.parse().map_err(|_| wrong)
    }

    fn skip(&mut self, depth: usize) -> Result<(), ScanError> {
        let deeper = depth.checked_sub(1);
        let too_deep = ScanError::Malformed { what: "too many levels", at: self.at };
        match self.peek()? {
            b'{' => {
                let deeper = deeper.ok_or(too_deep)?;
                self.map(|scan, _| scan.skip(deeper))
            }
            b'[' => {
                let deeper = deeper.ok_or(too_deep)?;
                self.list(|scan| scan.skip(deeper))
            }
            b'"' => self.raw_string().map(drop),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            b'0'..=b'9' | b'-' => {
                self.skip_number();
                Ok(())
            }
            _ => Err(self.malformed("no value")),
        }
    }

    fn end(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Err(_) => Ok(()),
            Ok(_) => Err(self.malformed("more than one value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_may_stand_anywhere() {
        let mut scan = Scanner::new(b" { \"a\" : [ 1 , 2 ] ,\n\t\"b\" : null } \r\n");
        let mut numbers = Vec::new();
        scan.map(|scan, name| match name {
            b"a" => scan.list(|scan| {
                numbers.push(scan.number()?);
                Ok(())
            }),
            _ => {
                assert_eq!(scan.text()?, None);
                Ok(())
            }
        })
        .unwrap();
        assert_eq!(scan.end(), Ok(()));
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn escapes_are_undone() {
        let text =
            |body: &'static [u8]| Scanner::new(body).text().map(|text| text.unwrap().into_owned());
        assert_eq!(text(br#""a\"b\\c\u00e9\ud83d\ude00""#).unwrap(), "a\"b\\cé😀".as_bytes());
        for wrong in [&br#""\x""#[..], br#""\ud83d""#, br#""a\"#, br#""a"#, b"\"a\\"] {
            assert!(text(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for wrong in [&b""[..], b"{", b"{]", b"[1 2]", b"{\"a\" 1}", b"nul", b"[,]", b"\xff"] {
            let mut scan = Scanner::new(wrong);
            assert!(scan.skip(9).and_then(|()| scan.end()).is_err(), "{wrong:?}");
        }
        let mut scan = Scanner::new(b"1 2");
        scan.skip(9).unwrap();
        assert!(scan.end().is_err());
        let deep = [b'['; 100];
        let error = Scanner::new(&deep).skip(32).unwrap_err();
        assert_eq!(error, ScanError::Malformed { what: "too many levels", at: 32 });
    }

    #[test]
    fn numbers_are_whole_and_fit() {
        for (text, expected) in [
            (&b"0"[..], Some(0)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"-1", None),
            (b"+1", None),
            (b"1.5", None),
            (b"1e3", None),
            (b"x", None),
        ] {
            assert_eq!(Scanner::new(text).number().ok(), expected, "{text:?}");
        }
    }
}
