//! Signatures: who calls is whoever has the key, and nobody else.
//!
//! An input is a byte that says what follows. With [`IS_CHOICES`], choices: of a request, of how it
//! is signed, and of one bit that is flipped afterwards. Else the head of a request as HTTP/1.1 has
//! it (request line and headers, lines ended by LF), an empty line, and the body.
//!
//! What a signature should be is worked out here a second time, from the documentation ("Create a
//! signed AWS API request", IAM user guide) and from how botocore normalizes a path. A request is
//! let in only if that comes to the same; one that is signed here is let in until a bit of what was
//! signed is another.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arbitrary::{Result, Unstructured};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri};
use ring::{digest, hmac};
use thalweg_router::kinesis::credentials::Credentials;
use thalweg_router::kinesis::sigv4::Authenticator;

use crate::choices;

/// Choices follow.
pub const IS_CHOICES: u8 = 1;

const KEY_ID: &str = "AKIATHALWEGEXAMPLE01";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// When requests come: 2026-02-03T04:05:06Z.
const NOW_S: i64 = 1_770_091_506;
/// Times at which requests are signed: now, the edges of what is let in, and beyond them.
const SIGNED_AT: &[(&str, i64)] = &[
    ("20260203T040506Z", 0),
    ("20260203T040006Z", -300),
    ("20260203T040005Z", -301),
    ("20260203T041006Z", 300),
    ("20260203T041007Z", 301),
];
/// The first of them in the header `Date`, in the form of HTTP and as botocore writes it.
const NOW_IN_DATE_HEADER: [&str; 2] =
    ["Tue, 03 Feb 2026 04:05:06 GMT", "Tue, 03 Feb 2026 04:05:06 -0000"];
const REGION: &str = "us-east-1";
const SIGNATURE: &str = "X-Amz-Signature";
const BOTOCORE: &str = include_str!("../../router/golden/sigv4-botocore.json");

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let document = format!(
        "[[key]]\naccess_key_id = \"{KEY_ID}\"\nsecret_access_key = \"{SECRET}\"\naccount_id = \
         \"123456789012\"\n"
    );
    Authenticator::new(Credentials::from_document(&document).expect("valid credentials"))
});

/// Runs an input.
///
/// # Panics
/// When a request is let in that was not signed with the key, or one is not that was.
pub fn run(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    if mode & IS_CHOICES != 0 {
        let _ = signed_request(&mut Unstructured::new(rest));
    } else {
        any_request(rest);
    }
}

fn is_let_in(head: &Parts, body: &[u8]) -> bool {
    let now: SystemTime = UNIX_EPOCH + Duration::from_secs(NOW_S.unsigned_abs());
    match AUTHENTICATOR.authenticate(head, body, now) {
        Ok(caller) => {
            assert_eq!(caller.access_key_id.as_deref(), Some(KEY_ID));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.kind().is_empty());
            assert_eq!(error.status(), 400);
            false
        }
    }
}

fn any_request(bytes: &[u8]) {
    let split = bytes.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = split.map_or((bytes, &[][..]), |at| (&bytes[..at], &bytes[at + 2..]));
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut line = lines.next().unwrap_or_default().splitn(2, |byte| *byte == b' ');
    let (method, uri) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
    let Ok(uri) = Uri::try_from(uri) else { return };
    let Ok(method) = Method::from_bytes(method) else { return };
    let headers = lines.filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((HeaderName::from_bytes(&line[..colon]).ok()?, line[colon + 1..].to_vec()))
    });
    let Some(head) = head_of(method, uri, &headers.collect::<Vec<_>>()) else { return };
    if is_let_in(&head, body) {
        assert!(is_signed(&head, body), "let in, and not signed with the key");
    }
}

/// A request that is signed here, and then changed by a bit.
fn signed_request(choices: &mut Unstructured<'_>) -> Result<()> {
    let request = UnsignedRequest::choose(choices)?;
    let (date, age_s) = *choices.choose(SIGNED_AT)?;
    let in_query = choices.arbitrary()?;
    let expires_s = if in_query { Some(choices.int_in_range(1_i64..=400)?) } else { None };
    let Some((head, body)) = request.sign(date, expires_s) else { return Ok(()) };
    assert!(is_signed(&head, &body), "what is signed here is what is worked out here");
    let validity_s = expires_s.unwrap_or(300);
    let in_time = -validity_s <= age_s && age_s <= 300;
    assert_eq!(is_let_in(&head, &body), in_time, "{head:?}");
    if !in_time {
        return Ok(());
    }
    let Some((head, body)) = flip(choices, &head, &body)? else { return Ok(()) };
    assert_eq!(is_let_in(&head, &body), is_signed(&head, &body), "{head:?}");
    Ok(())
}

/// What is signed, before it is.
struct UnsignedRequest {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    /// Names in lower case; whether the header is signed.
    headers: Vec<(&'static str, Vec<u8>, bool)>,
    body: Vec<u8>,
}

impl UnsignedRequest {
    fn choose(choices: &mut Unstructured<'_>) -> Result<UnsignedRequest> {
        let method = choices.choose(&[Method::POST, Method::GET, Method::PUT])?.clone();
        let mut headers = vec![("host", b"127.0.0.1:4567".to_vec(), true)];
        for name in ["content-type", "x-amz-target", "x-other", "x-other", "x-more"] {
            if choices.arbitrary()? {
                let value: &[u8] = choices.arbitrary()?;
                // The operation is always signed, or else the request is refused for that.
                let signed = choices.arbitrary::<bool>()? || name == "x-amz-target";
                headers.push((name, value.to_vec(), signed));
            }
        }
        let mut query = Vec::new();
        for _ in 0..choices.int_in_range(0..=3)? {
            query.push((text(choices)?, text(choices)?));
        }
        let path = format!("/{}", text(choices)?);
        let body: &[u8] = choices.arbitrary()?;
        Ok(UnsignedRequest { method, path, query, headers, body: body.to_vec() })
    }

    /// The request, signed in the header or, for so many seconds, in the query; none when HTTP
    /// does not have such a request.
    fn sign(mut self, date: &str, expires_s: Option<i64>) -> Option<(Parts, Vec<u8>)> {
        let is_signed = |(name, _, signed): &(&'static str, Vec<u8>, bool)| signed.then_some(*name);
        // A header is signed with all its values.
        let names: BTreeSet<&str> = self.headers.iter().filter_map(is_signed).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let signed_headers = names.join(";");
        let credential = format!("{KEY_ID}/{}/{REGION}/kinesis/aws4_request", &date[..8]);
        if let Some(expires_s) = expires_s {
            let parameters = [
                ("X-Amz-Algorithm", ALGORITHM.to_owned()),
                ("X-Amz-Credential", credential.clone()),
                ("X-Amz-Date", date.to_owned()),
                ("X-Amz-Expires", expires_s.to_string()),
                ("X-Amz-SignedHeaders", signed_headers.clone()),
            ];
            self.query.extend(parameters.map(|(name, value)| (name.to_owned(), value)));
        } else {
            self.headers.push(("x-amz-date", date.as_bytes().to_vec(), false));
        }
        let query: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| {
                format!("{}={}", quoted(name.as_bytes()), quoted(value.as_bytes()))
            })
            .collect();
        let uri = format!("{}?{}", quoted_path(self.path.as_bytes()), query.join("&"));
        let mut request = Request::builder().method(self.method).uri(uri);
        for (name, value, _) in &self.headers {
            request = request.header(*name, HeaderValue::from_bytes(value).ok()?);
        }
        let mut head = request.body(()).ok()?.into_parts().0;
        let canonical = canonical_request(&head, &names, &self.body, expires_s.is_some());
        let signature = signature_of(&canonical, date, &credential)?;
        if expires_s.is_some() {
            head.uri = format!("{}&{SIGNATURE}={signature}", head.uri).parse().ok()?;
        } else {
            let value = format!(
                "{ALGORITHM} Credential={credential}, SignedHeaders={signed_headers}, \
                 Signature={signature}"
            );
            head.headers.insert(AUTHORIZATION, HeaderValue::from_str(&value).ok()?);
        }
        Some((head, self.body))
    }
}

/// A short text of few different characters, those that mean something in a URI among them.
fn text(choices: &mut Unstructured<'_>) -> Result<String> {
    let length = choices.int_in_range(0..=6)?;
    let characters: Vec<char> = "aB0/.-_~%+=&? é\u{1f600}".chars().collect();
    (0..length).map(|_| choices.choose(&characters).copied()).collect()
}

/// Flips a bit of the body, the URI or a header's value; none when there is no bit, or when HTTP
/// does not have such a request.
fn flip(
    choices: &mut Unstructured<'_>,
    head: &Parts,
    body: &[u8],
) -> Result<Option<(Parts, Vec<u8>)>> {
    let mut body = body.to_vec();
    let mut uri = head.uri.to_string().into_bytes();
    let pairs = head.headers.iter().map(|(name, value)| (name.clone(), value.as_bytes().to_vec()));
    let mut headers: Vec<(HeaderName, Vec<u8>)> = pairs.collect();
    let bytes = match choices.int_in_range(0..=headers.len() + 1)? {
        0 => &mut body,
        1 => &mut uri,
        place => &mut headers[place - 2].1,
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    let at = choices.choose_index(bytes.len())?;
    bytes[at] ^= 1 << choices.int_in_range(0..=7)?;
    let Ok(uri) = Uri::from_maybe_shared(uri) else { return Ok(None) };
    let Some(head) = head_of(head.method.clone(), uri, &headers) else { return Ok(None) };
    Ok(Some((head, body)))
}

fn head_of(method: Method, uri: Uri, headers: &[(HeaderName, Vec<u8>)]) -> Option<Parts> {
    let mut head = Request::builder().method(method).uri(uri).body(()).ok()?.into_parts().0;
    for (name, value) in headers {
        head.headers.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(head)
}

/// What a request says of its signature.
struct Said {
    algorithm: String,
    credential: String,
    signed_headers: String,
    signature: String,
    date: String,
    in_query: bool,
}

impl Said {
    /// None when a part is missing, or there are two signatures.
    fn find(head: &Parts) -> Option<Said> {
        let authorization = header(head, "authorization");
        let query = pairs(head);
        let first = |name: &str| {
            let found = query.iter().find(|(found, _)| found == name.as_bytes());
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let present = |value: Option<String>| value.filter(|value| !value.is_empty());
        match (authorization, first("X-Amz-Algorithm")) {
            (Some(authorization), None) => Said::of_header(head, &authorization),
            (None, Some(algorithm)) => Some(Said {
                algorithm,
                credential: present(first("X-Amz-Credential"))?,
                signed_headers: present(first("X-Amz-SignedHeaders"))?,
                signature: present(first(SIGNATURE))?,
                date: present(first("X-Amz-Date"))?,
                in_query: true,
            }),
            _ => None,
        }
    }

    fn of_header(head: &Parts, authorization: &str) -> Option<Said> {
        let mut parts = authorization.split([',', ' ', '\t']).filter(|part| !part.is_empty());
        let algorithm = parts.next()?.to_owned();
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in parts {
            let (name, value) = part.split_once('=')?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => continue,
            };
            *slot = Some(value.to_owned()).filter(|value| !value.is_empty());
        }
        let date = header(head, "x-amz-date").or_else(|| header(head, "date"))?;
        let is_now = NOW_IN_DATE_HEADER.contains(&date.as_str());
        Some(Said {
            algorithm,
            credential: credential?,
            signed_headers: signed_headers?,
            signature: signature?,
            date: if is_now { SIGNED_AT[0].0.to_owned() } else { date },
            in_query: false,
        })
    }
}

/// Whether a request is signed with the key, all of it that must be. When is not asked.
fn is_signed(head: &Parts, body: &[u8]) -> bool {
    let Some(said) = Said::find(head) else { return false };
    let names: BTreeSet<String> =
        said.signed_headers.split(';').map(|name| name.trim().to_ascii_lowercase()).collect();
    let has = |name: &str| names.contains(name);
    let operation_is_signed = !head.headers.contains_key("x-amz-target") || has("x-amz-target");
    if said.algorithm != ALGORITHM
        || !(has("host") || has(":authority"))
        || !operation_is_signed
        || !said.credential.starts_with(&format!("{KEY_ID}/"))
    {
        return false;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let canonical = canonical_request(head, &names, body, said.in_query);
    let expected = signature_of(&canonical, &said.date, &said.credential);
    expected.is_some_and(|expected| expected == said.signature)
}

/// The signature of a canonical request; none when the credential is not for the day and service.
fn signature_of(canonical: &[u8], date: &str, credential: &str) -> Option<String> {
    let (_, scope) = credential.trim_end_matches('/').split_once('/')?;
    let [day, region, "kinesis", "aws4_request"] = scope.split('/').collect::<Vec<_>>()[..] else {
        return None;
    };
    if date.get(..8) != Some(day) {
        return None;
    }
    let string_to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", sha256(canonical));
    let mac = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
    };
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [day, region, "kinesis", "aws4_request"] {
        key = mac(&key, part).as_ref().to_vec();
    }
    Some(hexadecimal(mac(&key, &string_to_sign).as_ref()))
}

fn canonical_request(head: &Parts, names: &[&str], body: &[u8], in_query: bool) -> Vec<u8> {
    let mut canonical = format!("{}\n", head.method).into_bytes();
    canonical.extend(canonical_path(head.uri.path()).bytes());
    let mut query: Vec<String> = pairs(head)
        .iter()
        .filter(|(name, _)| !(in_query && name == SIGNATURE.as_bytes()))
        .map(|(name, value)| format!("{}={}", quoted(name), quoted(value)))
        .collect();
    // By name, then by value: the equal sign sorts behind characters that a name may have.
    query.sort_unstable_by(|one, other| one.split('=').cmp(other.split('=')));
    canonical.extend(format!("\n{}\n", query.join("&")).bytes());
    for name in names {
        canonical.extend(format!("{name}:").bytes());
        canonical.extend(canonical_header(head, name));
        canonical.push(b'\n');
    }
    canonical.extend(format!("\n{}\n{}", names.join(";"), sha256(body)).bytes());
    canonical
}

/// As `normalize_url_path` of botocore does it, then quoted.
fn canonical_path(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/').filter(|segment| !matches!(*segment, "" | ".")) {
        if segment == ".." {
            kept.pop();
        } else {
            kept.push(segment);
        }
    }
    let end = if path.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    quoted_path(format!("/{}{end}", kept.join("/")).as_bytes())
}

/// The values of a header with single blanks, joined by commas.
fn canonical_header(head: &Parts, name: &str) -> Vec<u8> {
    if matches!(name, "host" | ":authority") {
        let host = head.headers.get("host").map(|host| host.as_bytes().trim_ascii());
        let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        return host.or(authority).unwrap_or_default().to_vec();
    }
    let folded = |value: &HeaderValue| {
        let words = value.as_bytes().split(u8::is_ascii_whitespace);
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(&b' ')
    };
    head.headers.get_all(name).iter().map(folded).collect::<Vec<_>>().join(&b',')
}

/// A header as text; none when it is empty.
fn header(head: &Parts, name: &str) -> Option<String> {
    let value = head.headers.get(name)?.as_bytes().trim_ascii();
    (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
}

/// The query, decoded. A plus sign is one.
fn pairs(head: &Parts) -> Vec<(Vec<u8>, Vec<u8>)> {
    let query = head.uri.query().unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unquoted(name.as_bytes()), unquoted(value.as_bytes()))
    });
    pairs.collect()
}

fn unquoted(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    let (mut bytes, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let code = (text[at] == b'%').then(|| Some(digit(at + 1)? << 4 | digit(at + 2)?)).flatten();
        bytes.push(code.map_or(text[at], |code| code as u8));
        at += if code.is_some() { 3 } else { 1 };
    }
    bytes
}

fn quoted(bytes: &[u8]) -> String {
    quoted_but(bytes, b"-._~")
}

fn quoted_path(bytes: &[u8]) -> String {
    quoted_but(bytes, b"-._~/")
}

fn quoted_but(bytes: &[u8], plain: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || plain.contains(byte) {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").expect("memory takes any text");
        }
    }
    text
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What the corpus begins with: requests that botocore signed, and choices.
///
/// # Panics
/// When the golden file is no JSON of its form.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    #[derive(serde::Deserialize)]
    struct Vector {
        name: String,
        method: String,
        uri: String,
        headers: Vec<(String, String)>,
        body: String,
    }
    let vectors: Vec<Vector> = serde_json::from_str(BOTOCORE).expect("the vectors are valid");
    let botocore = vectors.into_iter().map(|Vector { name, method, uri, headers, body }| {
        let headers = headers.iter().map(|(name, value)| format!("{name}:{value}\n"));
        let text = format!("{method} {uri}\n{}\n{body}", headers.collect::<String>());
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        (format!("botocore-{name}"), [&[0][..], text.as_bytes()].concat())
    });
    let choices = (1..=4).map(|seed| (format!("choices-{seed}"), choices(IS_CHOICES, seed)));
    botocore.chain(choices).collect()
}
