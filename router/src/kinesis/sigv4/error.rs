//! Why a caller is not let in, in the service's words.
//!
//! The types and messages are those that AWS's services of this protocol give, gathered from the
//! IAM user guide ("Troubleshoot signed requests"), and from what users and the authors of
//! emulators saw. None repeats an Authorization header or a session token.

use std::fmt;

use thiserror::Error;

/// Characters of what a caller sent that a message repeats.
const SHOWN_CHARS_MAX: usize = 128;
/// Bytes of a canonical request that a message repeats.
const CANONICAL_BYTES_MAX: usize = 8 * 1024;

/// Headers that a signature may name; more are refused before any is looked at.
pub const SIGNED_HEADERS_MAX: usize = 128;

/// Why a request is not taken for anybody's. The text is the message of the answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AuthError {
    /// Signed in the header and in the query.
    #[error(
        "Found both 'X-Amz-Algorithm' as a query-string param and 'Authorization' as HTTP header."
    )]
    HeaderAndQuery,
    /// Not signed.
    #[error("Missing Authentication Token")]
    NotSigned,
    /// The header has a part without an equal sign.
    #[error(
        "Invalid key=value pair (missing equal-sign) in Authorization header (hashed with SHA-256 \
         and encoded with Base64): '{digest}'."
    )]
    NoPair {
        /// SHA-256 of the header, Base64.
        digest: String,
    },
    /// The header, or another that goes with it, lacks something.
    #[error(
        "{}(Hashed with SHA-256 and encoded with Base64) Authorization={digest}",
        Joined(.missing)
    )]
    HeaderIncomplete {
        /// What is missing, in order.
        missing: Vec<HeaderPart>,
        /// SHA-256 of the header, Base64.
        digest: String,
    },
    /// The query lacks something.
    #[error("{}Re-examine the query-string parameters.", Joined(.missing))]
    QueryIncomplete {
        /// What is missing, in order.
        missing: Vec<QueryPart>,
    },
    /// The date has another form.
    #[error(
        "Date must be in ISO-8601 'basic format'. Got '{found}'. See \
         http://en.wikipedia.org/wiki/ISO_8601"
    )]
    Date {
        /// What is there.
        found: String,
    },
    /// The time for which a query is signed is out of range.
    #[error("X-Amz-Expires must be a number of seconds from 1 to 604800, got '{found}'")]
    Expires {
        /// What is there.
        found: String,
    },
    /// Signed too long ago.
    #[error("Signature expired: {signed_at} is now earlier than {earliest} ({now} - {tolerance})")]
    Expired {
        /// When it was signed, as `20150830T123600Z`.
        signed_at: String,
        /// When it may have been signed at the earliest.
        earliest: String,
        /// When that was found out.
        now: String,
        /// How long a signature is valid.
        tolerance: Tolerance,
    },
    /// Signed in the future.
    #[error(
        "Signature not yet current: {signed_at} is still later than {latest} ({now} + {tolerance})"
    )]
    NotYetCurrent {
        /// When it was signed, as `20150830T123600Z`.
        signed_at: String,
        /// When it may have been signed at the latest.
        latest: String,
        /// When that was found out.
        now: String,
        /// How far clocks may differ.
        tolerance: Tolerance,
    },
    /// A header that must be signed is not.
    #[error("{header} must be a 'SignedHeader' in the AWS Authorization.")]
    HeaderNotSigned {
        /// Which.
        header: &'static str,
    },
    /// More signed headers than are looked at.
    #[error("SignedHeaders may name {SIGNED_HEADERS_MAX} headers at most, got {count}")]
    TooManySignedHeaders {
        /// How many.
        count: usize,
    },
    /// Another algorithm.
    #[error("Unsupported AWS 'algorithm': '{found}' (only AWS4-HMAC-SHA256 for now). ")]
    Algorithm {
        /// What is there.
        found: String,
    },
    /// The credential has another form.
    #[error(
        "Credential must have exactly 5 slash-delimited elements, e.g. \
         keyid/date/region/service/term, got '{found}'"
    )]
    Credential {
        /// What is there.
        found: String,
    },
    /// The credential is for another region, service or day.
    #[error("{}", Joined(.faults).trim())]
    Scope {
        /// What is wrong, in order.
        faults: Vec<ScopeFault>,
    },
    /// No such access key.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// Not the session token of the key.
    #[error("The security token included in the request is invalid")]
    SessionToken,
    /// The body is not part of what was signed.
    #[error(
        "The payload must be signed: x-amz-content-sha256 is '{found}' and must be the SHA-256 of \
         the body. Configure the client to sign payloads."
    )]
    PayloadNotSigned {
        /// What is there.
        found: String,
    },
    /// Another signature. The strings are for who wrote the client; a session token in them is
    /// replaced, and what is long is cut.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check \
         your AWS Secret Access Key and signing method. Consult the service documentation for \
         details.\n\nThe Canonical String for this request should have \
         been\n'{canonical_request}'\n\nThe String-to-Sign should have been\n'{string_to_sign}'\n"
    )]
    Mismatch {
        /// What the request comes to.
        canonical_request: String,
        /// What the signature should have been of.
        string_to_sign: String,
    },
}

/// Parts that a signature in the header consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderPart {
    /// `Credential`.
    Credential,
    /// `Signature`.
    Signature,
    /// `SignedHeaders`.
    SignedHeaders,
    /// `X-Amz-Date` or `Date`.
    Date,
}

/// A parameter that a signature in the query consists of, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueryPart(pub &'static str);

/// What a credential is wrongly scoped to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScopeFault {
    /// A region that is none, or not served.
    Region {
        /// What is there.
        found: String,
    },
    /// Another service.
    Service {
        /// The one that it should be.
        expected: &'static str,
    },
    /// Another end.
    Terminator {
        /// What is there.
        found: String,
    },
    /// Another day than the request's.
    Date {
        /// What is there.
        found: String,
        /// When the request was signed, as `20150830T123600Z`.
        signed_at: String,
    },
}

/// A time that is tolerated, told in minutes where it is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tolerance {
    /// The seconds.
    pub seconds: i64,
}

impl AuthError {
    /// The error's `__type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            AuthError::NotSigned => "MissingAuthenticationTokenException",
            AuthError::NoPair { .. }
            | AuthError::HeaderIncomplete { .. }
            | AuthError::QueryIncomplete { .. }
            | AuthError::Date { .. }
            | AuthError::Expires { .. }
            | AuthError::TooManySignedHeaders { .. }
            | AuthError::Algorithm { .. }
            | AuthError::Credential { .. } => "IncompleteSignatureException",
            AuthError::UnknownKey | AuthError::SessionToken => "UnrecognizedClientException",
            AuthError::HeaderAndQuery
            | AuthError::Expired { .. }
            | AuthError::NotYetCurrent { .. }
            | AuthError::HeaderNotSigned { .. }
            | AuthError::Scope { .. }
            | AuthError::PayloadNotSigned { .. }
            | AuthError::Mismatch { .. } => "InvalidSignatureException",
        }
    }

    /// The HTTP status of an answer in JSON or CBOR: 400 for all of them. (An answer in XML, to a
    /// request whose content type is neither, has 403.)
    #[must_use]
    pub fn status(&self) -> u16 {
        400
    }

    pub(super) fn mismatch(canonical_request: String, string_to_sign: String) -> AuthError {
        let mut canonical_request = canonical_request;
        if canonical_request.len() > CANONICAL_BYTES_MAX {
            let end = canonical_request.floor_char_boundary(CANONICAL_BYTES_MAX);
            canonical_request.truncate(end);
            canonical_request.push_str("...");
        }
        AuthError::Mismatch { canonical_request, string_to_sign }
    }
}

/// Part of what a caller sent, for a message: cut when it is long, and with nothing in it that
/// could pass for another line of a log.
pub(super) fn excerpt(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).map(visible).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Sentences, each with a blank behind it.
struct Joined<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Joined<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| write!(formatter, "{part} "))
    }
}

impl<T: fmt::Display> Joined<'_, T> {
    fn trim(&self) -> String {
        self.to_string().trim_end().to_owned()
    }
}

impl fmt::Display for HeaderPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            HeaderPart::Credential => "Credential",
            HeaderPart::Signature => "Signature",
            HeaderPart::SignedHeaders => "SignedHeaders",
            HeaderPart::Date => {
                return formatter.write_str(
                    "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' \
                     header.",
                );
            }
        };
        write!(formatter, "Authorization header requires '{name}' parameter.")
    }
}

impl fmt::Display for QueryPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AWS query-string parameters must include '{}'.", self.0)
    }
}

impl fmt::Display for ScopeFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScopeFault::Region { found } => {
                write!(formatter, "Credential should be scoped to a valid region, not '{found}'.")
            }
            ScopeFault::Service { expected } => {
                write!(formatter, "Credential should be scoped to correct service: '{expected}'.")
            }
            ScopeFault::Terminator { found } => write!(
                formatter,
                "Credential should be scoped with a valid terminator: 'aws4_request', not \
                 '{found}'."
            ),
            ScopeFault::Date { found, signed_at } => write!(
                formatter,
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date \
                 from HTTP: '{found}' != '{}', from '{signed_at}'.",
                signed_at.get(..8).unwrap_or(signed_at)
            ),
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            seconds if seconds % 60 == 0 => write!(formatter, "{} min.", seconds / 60),
            seconds => write!(formatter, "{seconds} s."),
        }
    }
}
