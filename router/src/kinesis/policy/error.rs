//! What can be wrong with a policy, and where.

use thiserror::Error;

/// Largest policy in bytes. The service's model names no limit for a resource policy; this is ours
/// and holds for identity policies as well (those of IAM have at most 10,240 characters).
pub const POLICY_BYTES_MAX: usize = 20 * 1024;
/// Characters of a faulty value that an error repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// Why a document is no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PolicyError {
    /// Too large.
    #[error(
        "the policy has {bytes} bytes and may have {POLICY_BYTES_MAX}: use wildcards, or fewer \
         statements"
    )]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// Not JSON, or a name stands twice in one object.
    #[error("the policy is no valid JSON: {reason}")]
    Json {
        /// Where and why.
        reason: String,
    },
    /// An element is not as the policy language wants it.
    #[error("{place}: {fault}")]
    Element {
        /// The element, as in `Statement[2].Condition.Bool`.
        place: String,
        /// What is wrong with it.
        fault: PolicyFault,
    },
}

/// What is wrong with an element.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PolicyFault {
    /// It is missing.
    #[error("it is missing")]
    Missing,
    /// One of two must be there, and not both.
    #[error("one of {one} and {other} must be there, and only one")]
    OneOf {
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// There is no element of that name here.
    #[error("there is no such element here; those that may be are {allowed}")]
    Unknown {
        /// What may be here.
        allowed: &'static str,
    },
    /// Another JSON type.
    #[error("it must be {expected}")]
    Type {
        /// What it must be.
        expected: &'static str,
    },
    /// A list or object with nothing in it.
    #[error("it is empty")]
    Empty,
    /// A value that cannot be.
    #[error("\"{found}\" is not {expected}")]
    Value {
        /// What is there, cut when it is long.
        found: String,
        /// What must be there.
        expected: &'static str,
    },
    /// There is no such operator.
    #[error(
        "there is no such operator; those that are: String, Numeric, Date and Arn comparisons, \
         Bool, IpAddress, NotIpAddress and Null"
    )]
    Operator,
    /// An identity policy names a principal.
    #[error("an identity policy has none: it speaks of the identity that it is attached to")]
    PrincipalOfIdentity,
    /// A resource policy does not say of whom it speaks.
    #[error("a resource policy must say of whom it speaks: give a Principal")]
    NoPrincipal,
}

impl PolicyFault {
    pub(super) fn value(found: &str, expected: &'static str) -> PolicyFault {
        let mut shown: String = found.chars().take(SHOWN_CHARS_MAX).collect();
        if shown.len() < found.len() {
            shown.push_str("...");
        }
        PolicyFault::Value { found: shown, expected }
    }

    pub(super) fn at(self, place: impl Into<String>) -> PolicyError {
        PolicyError::Element { place: place.into(), fault: self }
    }
}
