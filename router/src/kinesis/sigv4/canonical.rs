//! The canonical request: what of a request is signed, in the one form that both sides come to
//! (IAM user guide, "Create a signed AWS API request").
//!
//! For services other than S3 the path is normalized and encoded a second time.

use http::HeaderMap;
use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::kinesis::sigv4::error::{AuthError, SIGNED_HEADERS_MAX};
use crate::kinesis::sigv4::parameters::{
    Form, Parameters, Query, SECURITY_TOKEN_PARAMETER, SIGNATURE_PARAMETER, X_AMZ_SECURITY_TOKEN,
};

/// All that is not unreserved (RFC 3986, 2.3) is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// Names under which the host is signed: HTTP/1.1's and HTTP/2's.
const HOSTS: [&str; 2] = ["host", ":authority"];

/// What stands for a session token where the request is shown.
const NOT_SHOWN: &str = "(not shown)";

/// The names of the signed headers, lower case, sorted, each once.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct SignedHeaders {
    names: Vec<String>,
}

/// Whether a session token is left in: as it was signed, or for people to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum View {
    Signed,
    Shown,
}

impl SignedHeaders {
    /// The names of a list that is separated by semicolons.
    ///
    /// # Errors
    /// [`AuthError::TooManySignedHeaders`].
    pub(super) fn parse(list: &str) -> Result<SignedHeaders, AuthError> {
        let count = list.split(';').count();
        if count > SIGNED_HEADERS_MAX {
            return Err(AuthError::TooManySignedHeaders { count });
        }
        let mut names: Vec<String> =
            list.split(';').map(|name| name.trim().to_ascii_lowercase()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(SignedHeaders { names })
    }

    /// Whether a header is among them.
    pub(super) fn contain(&self, name: &str) -> bool {
        self.names.binary_search_by(|found| found.as_str().cmp(name)).is_ok()
    }

    /// Whether the host is among them.
    pub(super) fn contain_host(&self) -> bool {
        HOSTS.iter().any(|name| self.contain(name))
    }
}

/// The canonical form of a request whose body has that SHA-256, in hexadecimal. Bytes, since the
/// values of headers need not be text.
pub(super) fn canonical_request(
    head: &Parts,
    query: &Query<'_>,
    parameters: &Parameters<'_>,
    signed_headers: &SignedHeaders,
    payload_hash: &str,
    view: View,
) -> Vec<u8> {
    let mut line = String::with_capacity(256);
    line.push_str(head.method.as_str());
    line.push('\n');
    push_path(&mut line, head.uri.path());
    line.push('\n');
    push_query(&mut line, query, parameters.form, view);
    line.push('\n');
    let mut canonical = Vec::with_capacity(1024);
    canonical.extend_from_slice(line.as_bytes());
    for name in &signed_headers.names {
        canonical.extend_from_slice(name.as_bytes());
        canonical.push(b':');
        if view == View::Shown && name == X_AMZ_SECURITY_TOKEN {
            canonical.extend_from_slice(NOT_SHOWN.as_bytes());
        } else {
            push_header(&mut canonical, head, name);
        }
        canonical.push(b'\n');
    }
    canonical.push(b'\n');
    canonical.extend_from_slice(signed_headers.names.join(";").as_bytes());
    canonical.push(b'\n');
    canonical.extend_from_slice(payload_hash.as_bytes());
    canonical
}

fn push_path(canonical: &mut String, path: &str) {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    for segment in &segments {
        canonical.push('/');
        canonical.extend(percent_encode(segment.as_bytes(), ENCODED_IN_PATH));
    }
    if segments.is_empty() || path.ends_with('/') {
        canonical.push('/');
    }
}

fn push_query(canonical: &mut String, query: &Query<'_>, form: Form, view: View) {
    let is_signed = |name: &[u8]| form == Form::Header || *name != *SIGNATURE_PARAMETER.as_bytes();
    let encode = |bytes: &[u8]| percent_encode(bytes, ENCODED).to_string();
    let pairs = query.pairs.iter().filter(|(name, _)| is_signed(name));
    let mut pairs: Vec<(String, String)> =
        pairs.map(|(name, value)| (encode(name), encode(value))).collect();
    pairs.sort_unstable();
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index > 0 {
            canonical.push('&');
        }
        canonical.push_str(name);
        canonical.push('=');
        let is_hidden = view == View::Shown && name == SECURITY_TOKEN_PARAMETER;
        canonical.push_str(if is_hidden { NOT_SHOWN } else { value });
    }
}

/// The values of a header, joined by commas, each trimmed and with one blank for several.
fn push_header(canonical: &mut Vec<u8>, head: &Parts, name: &str) {
    if HOSTS.contains(&name) {
        canonical.extend_from_slice(host(&head.headers, head));
        return;
    }
    for (index, value) in head.headers.get_all(name).iter().enumerate() {
        if index > 0 {
            canonical.push(b',');
        }
        let words = value.as_bytes().split(u8::is_ascii_whitespace);
        for (index, word) in words.filter(|word| !word.is_empty()).enumerate() {
            if index > 0 {
                canonical.push(b' ');
            }
            canonical.extend_from_slice(word);
        }
    }
}

/// The host that a request is for: HTTP/1.1 has it in a header, HTTP/2 in the URI.
fn host<'a>(headers: &'a HeaderMap, head: &'a Parts) -> &'a [u8] {
    match (headers.get(http::header::HOST), head.uri.authority()) {
        (Some(host), _) => host.as_bytes().trim_ascii(),
        (None, Some(authority)) => authority.as_str().as_bytes(),
        (None, None) => b"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> String {
        let mut canonical = String::new();
        push_path(&mut canonical, path);
        canonical
    }

    fn query(query: &str, form: Form) -> String {
        let mut canonical = String::new();
        push_query(&mut canonical, &Query::parse(query), form, View::Signed);
        canonical
    }

    fn headers(pairs: &[(&str, &str)], name: &str) -> String {
        let mut request = http::Request::builder().uri("http://in-uri:4567/");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let mut canonical = Vec::new();
        push_header(&mut canonical, &head, name);
        String::from_utf8(canonical).expect("text, as the values are")
    }

    #[test]
    fn paths_are_normalized_and_encoded_again() {
        for (sent, expected) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/./", "/"),
            ("/a/b/../..", "/"),
            ("/../..", "/"),
            ("/a/", "/a/"),
            ("//a//b", "/a/b"),
            ("/a/.", "/a"),
            ("/a/b/..", "/a"),
            ("/a%20b", "/a%2520b"),
            ("/-._~09AZaz", "/-._~09AZaz"),
            ("/a:b+c", "/a%3Ab%2Bc"),
            ("/ሴ", "/%E1%88%B4"),
        ] {
            assert_eq!(path(sent), expected, "{sent}");
        }
    }

    #[test]
    fn queries_are_decoded_encoded_and_sorted() {
        for (sent, expected) in [
            ("", ""),
            ("&&", ""),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1&A=3", "A=3&a=1&a=2"),
            ("a&b=", "a=&b="),
            ("a=b=c", "a=b%3Dc"),
            ("a=%7e%2f%20", "a=~%2F%20"),
            ("a=+", "a=%2B"),
            ("a=%zz&b=%", "a=%25zz&b=%25"),
            ("ሴ=bar", "%E1%88%B4=bar"),
            ("a=%ff", "a=%FF"),
            ("a-b=1&a=2", "a=2&a-b=1"),
        ] {
            assert_eq!(query(sent, Form::Header), expected, "{sent}");
        }
        let signed = "X-Amz-Signature=1&x-amz-signature=2";
        assert_eq!(query(signed, Form::Query), "x-amz-signature=2");
        assert_eq!(query(signed, Form::Header), "X-Amz-Signature=1&x-amz-signature=2");
    }

    #[test]
    fn headers_are_trimmed_folded_and_joined() {
        let pairs = [("a", "  x \t y  "), ("A", "\"p   q\""), ("b", ""), ("host", "in-header")];
        assert_eq!(headers(&pairs, "a"), "x y,\"p q\"");
        assert_eq!(headers(&pairs, "b"), "");
        assert_eq!(headers(&pairs, "none"), "");
        assert_eq!(headers(&pairs, "no header"), "");
        assert_eq!(headers(&pairs, "host"), "in-header");
        assert_eq!(headers(&pairs[..1], "host"), "in-uri:4567");
        assert_eq!(headers(&pairs[..1], ":authority"), "in-uri:4567");
    }

    /// Bytes that are no UTF-8 were all signed as one replacement character: a header could be
    /// changed on the way from one such byte to another, and the signature still matched.
    #[test]
    fn headers_are_signed_byte_by_byte() {
        for name in ["x-latin-1", "host"] {
            let canonical = |value: &'static [u8]| {
                let request = http::Request::builder().header(name, value);
                let (head, ()) = request.body(()).expect("a request").into_parts();
                let mut canonical = Vec::new();
                push_header(&mut canonical, &head, name);
                canonical
            };
            assert_eq!(canonical(b" caf\xe9"), b"caf\xe9", "{name}");
            assert_ne!(canonical(b"caf\xe9"), canonical(b"caf\xea"), "{name}");
        }
    }

    #[test]
    fn names_of_headers_are_sorted_and_told_once() {
        let signed = SignedHeaders::parse("X-Amz-Date;host; Date;HOST").expect("a few");
        assert_eq!(signed.names, ["date", "host", "x-amz-date"]);
        assert!(signed.contain("date") && signed.contain_host() && !signed.contain("Date"));
        assert!(!SignedHeaders::parse("hosts").expect("one").contain_host());
        let many = vec!["a"; SIGNED_HEADERS_MAX + 1].join(";");
        let expected = Err(AuthError::TooManySignedHeaders { count: SIGNED_HEADERS_MAX + 1 });
        assert_eq!(SignedHeaders::parse(&many), expected);
    }
}
