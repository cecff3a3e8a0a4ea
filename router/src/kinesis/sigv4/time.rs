//! Times of signatures: ISO 8601 basic format in UTC, to the second.

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// A time of the form `20150830T123600Z`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SignatureTime {
    pub(super) seconds: i64,
    pub(super) basic: String,
}

impl SignatureTime {
    /// From seconds since 1970. Times that no calendar has are shown as seconds.
    pub(super) fn from_seconds(seconds: i64) -> SignatureTime {
        let extended = DateTime::from_secs(seconds).fmt(Format::DateTime);
        let mut basic = extended.unwrap_or_else(|_| seconds.to_string());
        basic.retain(|c| c != '-' && c != ':');
        SignatureTime { seconds, basic }
    }

    /// From ISO 8601 basic format.
    pub(super) fn from_basic(text: &str) -> Option<SignatureTime> {
        let bytes = text.as_bytes();
        let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
        let is_basic = bytes.len() == 16
            && digits(0..8)
            && bytes[8] == b'T'
            && digits(9..15)
            && bytes[15] == b'Z';
        if !is_basic {
            return None;
        }
        let (year, month, day) = (&text[..4], &text[4..6], &text[6..8]);
        let (hour, minute, second) = (&text[9..11], &text[11..13], &text[13..15]);
        let extended = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
        let time = DateTime::from_str(&extended, Format::DateTime).ok()?;
        Some(SignatureTime { seconds: time.secs(), basic: text.to_owned() })
    }

    /// From an HTTP date (RFC 9110, 5.6.7), with `-0000` for `GMT` as some clients write it.
    pub(super) fn from_http_date(text: &str) -> Option<SignatureTime> {
        let text = match text.strip_suffix(" -0000").or_else(|| text.strip_suffix(" +0000")) {
            Some(front) => format!("{front} GMT"),
            None => text.to_owned(),
        };
        let time = DateTime::from_str(&text, Format::HttpDate).ok()?;
        Some(SignatureTime::from_seconds(time.secs()))
    }

    /// The day, as `20150830`.
    pub(super) fn date(&self) -> &str {
        self.basic.get(..8).unwrap_or(&self.basic)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_of_one_time() {
        let expected =
            SignatureTime { seconds: 1_440_938_160, basic: "20150830T123600Z".to_owned() };
        assert_eq!(SignatureTime::from_seconds(1_440_938_160), expected);
        assert_eq!(SignatureTime::from_basic("20150830T123600Z").as_ref(), Some(&expected));
        for zone in ["GMT", "-0000", "+0000"] {
            let found = SignatureTime::from_http_date(&format!("Sun, 30 Aug 2015 12:36:00 {zone}"));
            assert_eq!(found.as_ref(), Some(&expected), "{zone}");
        }
        assert_eq!(expected.date(), "20150830");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "20150830",
            "20150830T123600",
            "2015-08-30T12:36:00Z",
            "20150830t123600z",
            "20151330T123600Z",
            "20150230T123600Z",
            "20150830T243600Z",
            "20150830T126000Z",
            "+0150830T123600Z",
            "2015083äT12360Z",
        ] {
            assert_eq!(SignatureTime::from_basic(text), None, "{text}");
        }
        for text in ["", "GMT", "30 Aug 2015 12:36:00 GMT", "Sun, 30 Aug 2015 12:36:00 CEST"] {
            assert_eq!(SignatureTime::from_http_date(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_time_or_refused(text in ".*", digits in "[0-9]{8}T[0-9]{6}Z") {
            let _ = (SignatureTime::from_basic(&text), SignatureTime::from_http_date(&text));
            if let Some(time) = SignatureTime::from_basic(&digits) {
                prop_assert_eq!(SignatureTime::from_seconds(time.seconds), time);
            }
        }

        #[test]
        fn any_number_of_seconds_can_be_shown(seconds: i64) {
            prop_assert!(!SignatureTime::from_seconds(seconds).date().is_empty());
        }
    }
}
