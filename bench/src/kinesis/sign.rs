//! Signing requests with AWS Signature Version 4 (IAM user guide, "Create a signed AWS API
//! request"), as far as the API has it: POST to `/`, no query, the body part of what is signed.

use std::fmt;

use ring::{digest, hmac};

use super::credentials::Credentials;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "kinesis";
const SECONDS_PER_DAY: u64 = 24 * 3600;

/// Signs for one access key, region and service. The key of the day is derived once.
pub struct Signer {
    credentials: Credentials,
    region: String,
    service: &'static str,
    /// Day since 1970 and its key.
    key: Option<(u64, hmac::Key)>,
    /// What is signed, in the making.
    text: String,
}

/// What a request carries for its signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// Value of `x-amz-date`.
    pub date: String,
    /// Value of `authorization`.
    pub authorization: String,
}

impl Signer {
    /// Signs for the API.
    #[must_use]
    pub fn new(credentials: Credentials, region: &str) -> Signer {
        Signer::for_service(credentials, region, SERVICE)
    }

    fn for_service(credentials: Credentials, region: &str, service: &'static str) -> Signer {
        let region = region.to_owned();
        Signer { credentials, region, service, key: None, text: String::new() }
    }

    /// The token that every request carries in `x-amz-security-token`, if the key has one.
    #[must_use]
    pub fn session_token(&self) -> Option<&str> {
        self.credentials.session_token.as_deref()
    }

    /// Signs a body with some headers, beside `x-amz-date` and `x-amz-security-token`, which it
    /// adds: names in lower case, sorted and before `x-amz-date` or behind
    /// `x-amz-security-token`; values without blanks at their ends. `now_s`: seconds since 1970.
    pub fn sign(
        &mut self,
        headers_before: &[(&str, &str)],
        headers_behind: &[(&str, &str)],
        body: &[u8],
        now_s: u64,
    ) -> Signature {
        let date = timestamp(now_s);
        let token = self.session_token().map(str::to_owned);
        let own = [
            Some(("x-amz-date", date.as_str())),
            token.as_deref().map(|token| ("x-amz-security-token", token)),
        ];
        let headers = || {
            headers_before
                .iter()
                .copied()
                .chain(own.iter().copied().flatten())
                .chain(headers_behind.iter().copied())
        };
        let mut names = String::with_capacity(96);
        for (name, _) in headers() {
            if !names.is_empty() {
                names.push(';');
            }
            names.push_str(name);
        }
        let text = &mut self.text;
        text.clear();
        text.push_str("POST\n/\n\n");
        for (name, value) in headers() {
            for part in [name, ":", value, "\n"] {
                text.push_str(part);
            }
        }
        text.push('\n');
        text.push_str(&names);
        text.push('\n');
        push_sha256(text, body);
        let mut string_to_sign = String::with_capacity(192);
        let scope = format!("{}/{}/{}/aws4_request", &date[..8], self.region, self.service);
        for part in [ALGORITHM, "\n", &date, "\n", &scope, "\n"] {
            string_to_sign.push_str(part);
        }
        push_sha256(&mut string_to_sign, self.text.as_bytes());
        let key = self.key_of(now_s / SECONDS_PER_DAY, &date[..8]);
        let signature = hmac::sign(key, string_to_sign.as_bytes());
        let mut authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature=",
            self.credentials.access_key_id
        );
        push_hexadecimal(&mut authorization, signature.as_ref());
        Signature { date, authorization }
    }

    fn key_of(&mut self, day: u64, date: &str) -> &hmac::Key {
        if self.key.as_ref().is_none_or(|(of, _)| *of != day) {
            let secret = &self.credentials.secret_access_key;
            self.key = Some((day, signing_key(secret, date, &self.region, self.service)));
        }
        let (_, key) = self.key.as_ref().expect("it was made if it was not there");
        key
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Signer");
        shown.field("credentials", &self.credentials).field("region", &self.region);
        shown.finish_non_exhaustive()
    }
}

/// The key of a day (`YYYYMMDD`), region and service.
fn signing_key(secret: &str, date: &str, region: &str, service: &str) -> hmac::Key {
    let prefixed = [b"AWS4", secret.as_bytes()].concat();
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, &prefixed);
    for part in [date, region, service, "aws4_request"] {
        key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
    }
    key
}

fn push_sha256(text: &mut String, bytes: &[u8]) {
    push_hexadecimal(text, digest::digest(&digest::SHA256, bytes).as_ref());
}

fn push_hexadecimal(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
}

/// `YYYYMMDDThhmmssZ` of seconds since 1970, in the Gregorian calendar.
fn timestamp(now_s: u64) -> String {
    let (days, second) = (now_s / SECONDS_PER_DAY, now_s % SECONDS_PER_DAY);
    // Years that begin in March have their leap day at the end; 719,468 days lie between the first
    // of March of the year 0 and 1970. A cycle of 400 years has 146,097 days.
    let day = days + 719_468;
    let (cycle, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on: 31, 30, 31, 30, 31 days, and again.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z", cycle * 400 + year)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use thalweg_router::kinesis::credentials::Credentials as Keys;
    use thalweg_router::kinesis::sigv4::Authenticator;

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    /// 2015-08-30 12:36:00.
    const EXAMPLE_S: u64 = 1_440_938_160;

    fn credentials(id: &str, session_token: Option<&str>) -> Credentials {
        Credentials {
            access_key_id: id.into(),
            secret_access_key: SECRET.into(),
            session_token: session_token.map(str::to_owned),
        }
    }

    fn hexadecimal(bytes: &[u8]) -> String {
        let mut text = String::new();
        push_hexadecimal(&mut text, bytes);
        text
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (seconds, expected) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (EXAMPLE_S, "20150830T123600Z"),
            (1_709_164_800, "20240229T000000Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(timestamp(seconds), expected);
        }
    }

    /// The example of the IAM user guide, "Derive a signing key" and "Calculate the signature".
    #[test]
    fn the_key_of_the_published_example_comes_out() {
        let key = signing_key(SECRET, "20150830", "us-east-1", "iam");
        let string_to_sign = "AWS4-HMAC-SHA256\n20150830T123600Z\n\
            20150830/us-east-1/iam/aws4_request\n\
            f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59";
        let signature = hmac::sign(&key, string_to_sign.as_bytes());
        assert_eq!(
            hexadecimal(signature.as_ref()),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    /// `post-vanilla` of AWS's test suite for Signature Version 4.
    #[test]
    fn a_request_of_the_published_suite_is_signed_as_there() {
        let mut signer =
            Signer::for_service(credentials("AKIDEXAMPLE", None), "us-east-1", "service");
        let signature = signer.sign(&[("host", "example.amazonaws.com")], &[], b"", EXAMPLE_S);
        assert_eq!(signature.date, "20150830T123600Z");
        assert_eq!(
            signature.authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }

    /// What the router's verifier says of a request that was signed here.
    fn verify(token: Option<&str>, body: &[u8], received: &[u8]) -> Result<String, String> {
        let mut signer = Signer::new(credentials("THALEXAMPLE", token), "eu-west-1");
        let before = [("content-type", "application/x-amz-json-1.1"), ("host", "127.0.0.1:4567")];
        let behind = [("x-amz-target", "Kinesis_20131202.ListStreams")];
        let signature = signer.sign(&before, &behind, body, EXAMPLE_S);
        let mut request = http::Request::post("/");
        for (name, value) in before.iter().chain(&behind) {
            request = request.header(*name, *value);
        }
        if let Some(token) = token {
            request = request.header("x-amz-security-token", token);
        }
        request = request.header("x-amz-date", &signature.date);
        request = request.header("authorization", &signature.authorization);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let token = token.map(|token| format!("session_token = \"{token}\"\n"));
        let keys = Keys::from_document(&format!(
            "[[key]]\naccess_key_id = \"THALEXAMPLE\"\nsecret_access_key = \"{SECRET}\"\n\
             account_id = \"123456789012\"\n{}",
            token.unwrap_or_default()
        ));
        let now = UNIX_EPOCH + Duration::from_secs(EXAMPLE_S + 1);
        Authenticator::new(keys.unwrap())
            .authenticate(&head, received, now)
            .map(|caller| caller.region)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_routers_verifier_accepts_signatures_and_no_other_body() {
        assert_eq!(verify(None, b"{}", b"{}"), Ok("eu-west-1".into()));
        assert_eq!(verify(Some("a/token+="), b"{}", b"{}"), Ok("eu-west-1".into()));
        assert!(verify(None, b"{}", b"{ }").is_err());
    }

    #[test]
    fn the_key_changes_with_the_day() {
        let mut signer = Signer::new(credentials("THALEXAMPLE", None), "eu-west-1");
        let today = signer.sign(&[("host", "a")], &[], b"", EXAMPLE_S);
        let tomorrow = signer.sign(&[("host", "a")], &[], b"", EXAMPLE_S + SECONDS_PER_DAY);
        assert!(tomorrow.authorization.contains("/20150831/"));
        assert_ne!(today.authorization, tomorrow.authorization);
        assert_eq!(today, signer.sign(&[("host", "a")], &[], b"", EXAMPLE_S));
        assert!(!format!("{signer:?}").contains(SECRET));
    }
}
