//! The parts of a signature, from the Authorization header or from the query.

use std::borrow::Cow;

use base64_simd::STANDARD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use percent_encoding::percent_decode_str;
use ring::digest;

use crate::kinesis::sigv4::error::{AuthError, HeaderPart, QueryPart, excerpt};
use crate::kinesis::sigv4::time::SignatureTime;

/// Longest time for which a query is signed, 7 days (IAM user guide, "Elements of an AWS API
/// request signature").
const EXPIRES_S_MAX: i64 = 604_800;

const X_AMZ_ALGORITHM: &str = "X-Amz-Algorithm";
const X_AMZ_DATE: &str = "x-amz-date";
pub(super) const X_AMZ_SECURITY_TOKEN: &str = "x-amz-security-token";
/// In the query, where names are told apart by case.
pub(super) const SECURITY_TOKEN_PARAMETER: &str = "X-Amz-Security-Token";
/// The signature itself is the one parameter that is not signed.
pub(super) const SIGNATURE_PARAMETER: &str = "X-Amz-Signature";

/// A query, decoded, in the order in which it was sent.
pub(super) struct Query<'a> {
    pub(super) pairs: Vec<(Decoded<'a>, Decoded<'a>)>,
}

type Decoded<'a> = Cow<'a, [u8]>;

/// The parts of a signature, not judged yet.
#[derive(Debug)]
pub(super) struct Parameters<'a> {
    pub(super) form: Form,
    pub(super) algorithm: Cow<'a, str>,
    pub(super) credential: Cow<'a, str>,
    pub(super) signed_headers: Cow<'a, str>,
    pub(super) signature: Cow<'a, str>,
    date: Cow<'a, str>,
    /// Whether the date is that of the header `Date`, which may have HTTP's form.
    is_date_header: bool,
    expires: Option<Cow<'a, str>>,
    pub(super) session_token: Option<Cow<'a, [u8]>>,
}

/// Where a signature is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Header,
    Query,
}

impl<'a> Query<'a> {
    /// The parameters of a query. A plus sign is one, and what is not properly encoded stays as it
    /// is: a signature of it will not match.
    pub(super) fn parse(query: &'a str) -> Query<'a> {
        let decode = |text: &'a str| Cow::from(percent_decode_str(text));
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Query { pairs: pairs.collect() }
    }

    /// The first parameter of that name.
    fn get(&self, name: &str) -> Option<&Decoded<'a>> {
        self.pairs.iter().find(|(found, _)| **found == *name.as_bytes()).map(|(_, value)| value)
    }

    /// The first parameter of that name as text; none when it is empty.
    fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get(name).map(|value| String::from_utf8_lossy(value)).filter(|text| !text.is_empty())
    }
}

impl<'a> Parameters<'a> {
    /// Takes a signature apart.
    ///
    /// # Errors
    /// [`AuthError`], if there is none, or two, or a part of it is missing.
    pub(super) fn find(
        headers: &'a HeaderMap,
        query: &'a Query<'_>,
    ) -> Result<Parameters<'a>, AuthError> {
        let authorization = header(headers, AUTHORIZATION.as_str());
        match (authorization, query.get(X_AMZ_ALGORITHM).is_some()) {
            (Some(_), true) => Err(AuthError::HeaderAndQuery),
            (None, false) => Err(AuthError::NotSigned),
            (Some(authorization), false) => Parameters::of_header(authorization, headers),
            (None, true) => Parameters::of_query(query, headers),
        }
    }

    /// When it was signed.
    ///
    /// # Errors
    /// [`AuthError::Date`].
    pub(super) fn time(&self) -> Result<SignatureTime, AuthError> {
        let time = SignatureTime::from_basic(&self.date);
        let time = time.or_else(|| {
            self.is_date_header.then(|| SignatureTime::from_http_date(&self.date)).flatten()
        });
        time.ok_or_else(|| AuthError::Date { found: excerpt(&self.date) })
    }

    /// For how many seconds it was signed, where it says so.
    ///
    /// # Errors
    /// [`AuthError::Expires`].
    pub(super) fn expires_s(&self) -> Result<Option<i64>, AuthError> {
        let Some(expires) = &self.expires else { return Ok(None) };
        let is_number = expires.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = expires.parse().ok().filter(|s| is_number && (1..=EXPIRES_S_MAX).contains(s));
        seconds.map(Some).ok_or_else(|| AuthError::Expires { found: excerpt(expires) })
    }

    fn of_header(
        authorization: Cow<'a, str>,
        headers: &'a HeaderMap,
    ) -> Result<Parameters<'a>, AuthError> {
        let digest = || {
            let digest = digest::digest(&digest::SHA256, authorization.as_bytes());
            STANDARD.encode_to_string(digest)
        };
        // Clients separate the parts by commas, blanks or both.
        let mut parts = authorization.split([',', ' ', '\t']).filter(|part| !part.is_empty());
        let algorithm = parts.next().unwrap_or_default();
        let (mut credential, mut signature, mut signed_headers) = (None, None, None);
        for part in parts {
            let Some((name, value)) = part.split_once('=') else {
                return Err(AuthError::NoPair { digest: digest() });
            };
            match name {
                "Credential" => credential = Some(value),
                "Signature" => signature = Some(value),
                "SignedHeaders" => signed_headers = Some(value),
                _ => {}
            }
        }
        let of_amz = header(headers, X_AMZ_DATE);
        let is_date_header = of_amz.is_none();
        let date = of_amz.or_else(|| header(headers, DATE.as_str()));
        let present = |value: Option<&str>| value.is_some_and(|value| !value.is_empty());
        let missing: Vec<HeaderPart> = [
            (HeaderPart::Credential, present(credential)),
            (HeaderPart::Signature, present(signature)),
            (HeaderPart::SignedHeaders, present(signed_headers)),
            (HeaderPart::Date, date.is_some()),
        ]
        .into_iter()
        .filter_map(|(part, is_there)| (!is_there).then_some(part))
        .collect();
        let (Some(credential), Some(signature), Some(signed_headers), Some(date), true) =
            (credential, signature, signed_headers, date, missing.is_empty())
        else {
            return Err(AuthError::HeaderIncomplete { missing, digest: digest() });
        };
        Ok(Parameters {
            form: Form::Header,
            algorithm: Cow::Owned(algorithm.to_owned()),
            credential: Cow::Owned(credential.to_owned()),
            signed_headers: Cow::Owned(signed_headers.to_owned()),
            signature: Cow::Owned(signature.to_owned()),
            date,
            is_date_header,
            expires: None,
            session_token: session_token_header(headers),
        })
    }

    fn of_query(query: &'a Query<'_>, headers: &'a HeaderMap) -> Result<Parameters<'a>, AuthError> {
        let mut missing = Vec::new();
        let mut take = |name: &'static str| {
            let value = query.text(name);
            if value.is_none() {
                missing.push(QueryPart(name));
            }
            value.unwrap_or_default()
        };
        let algorithm = take(X_AMZ_ALGORITHM);
        let credential = take("X-Amz-Credential");
        let signature = take(SIGNATURE_PARAMETER);
        let signed_headers = take("X-Amz-SignedHeaders");
        let date = take("X-Amz-Date");
        if !missing.is_empty() {
            return Err(AuthError::QueryIncomplete { missing });
        }
        let token = query.get(SECURITY_TOKEN_PARAMETER).map(|token| Cow::Borrowed(&**token));
        Ok(Parameters {
            form: Form::Query,
            algorithm,
            credential,
            signed_headers,
            signature,
            date,
            is_date_header: false,
            expires: query.get("X-Amz-Expires").map(|value| String::from_utf8_lossy(value)),
            session_token: token.or_else(|| session_token_header(headers)),
        })
    }
}

/// A header as text; none when it is empty.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let value = headers.get(name)?.as_bytes().trim_ascii();
    (!value.is_empty()).then(|| String::from_utf8_lossy(value))
}

fn session_token_header(headers: &HeaderMap) -> Option<Cow<'_, [u8]>> {
    headers.get(X_AMZ_SECURITY_TOKEN).map(|value| Cow::Borrowed(value.as_bytes()))
}
