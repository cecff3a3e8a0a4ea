//! Errors as the API tells them: a type, a message, a status.

use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use thiserror::Error;

use super::codec::Encoding;

/// An error of the API: what a client gets instead of an answer.
///
/// The message is for the person who reads the client's log. It never holds a secret or the data
/// of a record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {message}", kind.name())]
pub struct ApiError {
    /// The type that clients tell errors apart by.
    pub kind: ErrorKind,
    /// What is wrong and what to do. An empty one is left out of the answer.
    pub message: String,
}

/// What is derived for each error type from one line: the enum, its names and its status codes.
macro_rules! error_kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal $status:ident,)*) => {
        /// The type of an error: `__type` of its answer.
        ///
        /// Types of the service model answer 400 whatever they mean, `InternalFailureException`
        /// apart: SDKs tell them apart by name (API reference, "Errors" of each operation). The
        /// others come from the front of the service (API reference, "Common Error Types").
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorKind {
            $($(#[$doc])* $kind,)*
        }

        impl ErrorKind {
            /// All types.
            pub const ALL: &[ErrorKind] = &[$(ErrorKind::$kind,)*];

            /// The name that clients know it by.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorKind::$kind => $name,)*
                }
            }

            /// The status of an answer with such an error.
            pub const fn status(self) -> StatusCode {
                match self {
                    $(ErrorKind::$kind => StatusCode::$status,)*
                }
            }
        }
    };
}

error_kinds! {
    /// The caller may not do this.
    AccessDenied "AccessDeniedException" BAD_REQUEST,
    /// A dry run that would have succeeded.
    DryRunOperation "DryRunOperationException" BAD_REQUEST,
    /// A shard iterator older than five minutes.
    ExpiredIterator "ExpiredIteratorException" BAD_REQUEST,
    /// A pagination token older than five minutes.
    ExpiredNextToken "ExpiredNextTokenException" BAD_REQUEST,
    /// The service failed; what was asked may or may not have happened. Operations that name this
    /// type in the model get it, the others get [`ErrorKind::InternalFailure`].
    InternalFailureException "InternalFailureException" INTERNAL_SERVER_ERROR,
    /// An argument that is well formed and not possible.
    InvalidArgument "InvalidArgumentException" BAD_REQUEST,
    /// The key may not be used by the caller.
    KmsAccessDenied "KMSAccessDeniedException" BAD_REQUEST,
    /// The key is disabled.
    KmsDisabled "KMSDisabledException" BAD_REQUEST,
    /// The key's state forbids its use.
    KmsInvalidState "KMSInvalidStateException" BAD_REQUEST,
    /// There is no such key.
    KmsNotFound "KMSNotFoundException" BAD_REQUEST,
    /// The account has no access to keys.
    KmsOptInRequired "KMSOptInRequired" BAD_REQUEST,
    /// Keys are used too often.
    KmsThrottling "KMSThrottlingException" BAD_REQUEST,
    /// A quota or a rate of calls is used up.
    LimitExceeded "LimitExceededException" BAD_REQUEST,
    /// A shard's throughput is used up.
    ProvisionedThroughputExceeded "ProvisionedThroughputExceededException" BAD_REQUEST,
    /// The resource's state forbids this.
    ResourceInUse "ResourceInUseException" BAD_REQUEST,
    /// There is no such stream, shard, consumer or queue.
    ResourceNotFound "ResourceNotFoundException" BAD_REQUEST,
    /// Calls come too often.
    Throttling "ThrottlingException" BAD_REQUEST,
    /// Input that breaks a constraint of the model.
    Validation "ValidationException" BAD_REQUEST,

    /// No operation can be made out, so nobody can be authorised: 403, in XML.
    OperationUndetermined "AccessDeniedException" FORBIDDEN,
    /// The signature was made for a session that is over.
    ExpiredToken "ExpiredTokenException" BAD_REQUEST,
    /// Parts of a signature are missing.
    IncompleteSignature "IncompleteSignatureException" BAD_REQUEST,
    /// The service failed; what was asked may or may not have happened.
    InternalFailure "InternalFailure" INTERNAL_SERVER_ERROR,
    /// A signature that does not fit the request.
    InvalidSignature "InvalidSignatureException" BAD_REQUEST,
    /// Neither header nor query has a signature.
    MissingAuthenticationToken "MissingAuthenticationTokenException" BAD_REQUEST,
    /// A body or head larger than any valid one.
    RequestEntityTooLarge "RequestEntityTooLarge" PAYLOAD_TOO_LARGE,
    /// More headers than any client sends.
    RequestHeadersTooLarge "RequestHeadersTooLarge" REQUEST_HEADER_FIELDS_TOO_LARGE,
    /// A body that came too slowly. SDKs try again on this name.
    RequestTimeout "RequestTimeoutException" REQUEST_TIMEOUT,
    /// A body that cannot be read.
    Serialization "SerializationException" BAD_REQUEST,
    /// There is no room for the request now; it was not begun. SDKs try again on the status.
    ServiceUnavailable "ServiceUnavailable" SERVICE_UNAVAILABLE,
    /// An operation that does not exist.
    UnknownOperation "UnknownOperationException" BAD_REQUEST,
    /// A content type that the API does not speak: 404, in XML.
    UnknownContentType "UnknownOperationException" NOT_FOUND,
    /// An access key that does not exist.
    UnrecognizedClient "UnrecognizedClientException" BAD_REQUEST,
}

impl ErrorKind {
    /// The type of this name, for errors of modules that do not know this one.
    /// [`ErrorKind::OperationUndetermined`] and [`ErrorKind::UnknownContentType`] are never found:
    /// their names belong to [`ErrorKind::AccessDenied`] and [`ErrorKind::UnknownOperation`].
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        ErrorKind::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A constructor for each type that call sites name often.
macro_rules! constructors {
    ($($function:ident $kind:ident,)*) => {
        $(
            #[doc = concat!("[`ErrorKind::", stringify!($kind), "`] with this message.")]
            pub fn $function(message: impl Into<String>) -> ApiError {
                ApiError::new(ErrorKind::$kind, message)
            }
        )*
    };
}

impl ApiError {
    /// An error of this type.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into() }
    }

    constructors! {
        access_denied AccessDenied,
        expired_iterator ExpiredIterator,
        expired_next_token ExpiredNextToken,
        invalid_argument InvalidArgument,
        limit_exceeded LimitExceeded,
        resource_in_use ResourceInUse,
        resource_not_found ResourceNotFound,
        throughput_exceeded ProvisionedThroughputExceeded,
        throttling Throttling,
        validation Validation,
        serialization Serialization,
        service_unavailable ServiceUnavailable,
        unknown_operation UnknownOperation,
    }

    /// The service failed and the caller cannot know whether anything happened. The cause goes to
    /// the log of the server, not to the client; the message is the service's own.
    pub fn internal_failure() -> ApiError {
        ApiError::new(ErrorKind::InternalFailure, INTERNAL_FAILURE_MESSAGE)
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }

    /// The body in JSON or CBOR: `__type` and, unless it is empty, `message`.
    pub fn body(&self, encoding: Encoding) -> Bytes {
        let body = ErrorBody {
            kind: self.kind.name(),
            message: Some(self.message.as_str()).filter(|message| !message.is_empty()),
        };
        match encoding {
            Encoding::Json => serde_json::to_vec(&body).expect("two strings are JSON").into(),
            Encoding::Cbor => {
                let mut bytes = Vec::with_capacity(64 + self.message.len());
                ciborium::into_writer(&body, &mut bytes).expect("two strings are CBOR");
                bytes.into()
            }
        }
    }

    /// The body for a client whose encoding cannot be made out, in the service's XML.
    pub fn xml_body(&self) -> Bytes {
        let name = self.kind.name();
        if self.message.is_empty() {
            return format!("<{name}/>\n").into();
        }
        let message = escape_xml(&self.message);
        format!("<{name}>\n  <Message>{message}</Message>\n</{name}>\n").into()
    }
}

/// What the service says of a failure of its own.
const INTERNAL_FAILURE_MESSAGE: &str = "Internal Service Failure";

#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "__type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

fn escape_xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exceptions of the service model, and which of them is a fault of the service.
    const MODELED: [(&str, u16); 18] = [
        ("AccessDeniedException", 400),
        ("DryRunOperationException", 400),
        ("ExpiredIteratorException", 400),
        ("ExpiredNextTokenException", 400),
        ("InternalFailureException", 500),
        ("InvalidArgumentException", 400),
        ("KMSAccessDeniedException", 400),
        ("KMSDisabledException", 400),
        ("KMSInvalidStateException", 400),
        ("KMSNotFoundException", 400),
        ("KMSOptInRequired", 400),
        ("KMSThrottlingException", 400),
        ("LimitExceededException", 400),
        ("ProvisionedThroughputExceededException", 400),
        ("ResourceInUseException", 400),
        ("ResourceNotFoundException", 400),
        ("ThrottlingException", 400),
        ("ValidationException", 400),
    ];

    #[test]
    fn every_exception_of_the_model_has_a_kind_and_its_status() {
        for (name, status) in MODELED {
            let kind = ErrorKind::from_name(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(kind.name(), name);
            assert_eq!(kind.status().as_u16(), status, "{name}");
        }
    }

    #[test]
    fn what_the_front_answers_has_the_status_of_the_service() {
        for (kind, status) in [
            (ErrorKind::OperationUndetermined, 403),
            (ErrorKind::UnknownContentType, 404),
            (ErrorKind::UnknownOperation, 400),
            (ErrorKind::Serialization, 400),
            (ErrorKind::MissingAuthenticationToken, 400),
            (ErrorKind::IncompleteSignature, 400),
            (ErrorKind::InvalidSignature, 400),
            (ErrorKind::UnrecognizedClient, 400),
            (ErrorKind::RequestTimeout, 408),
            (ErrorKind::RequestEntityTooLarge, 413),
            (ErrorKind::RequestHeadersTooLarge, 431),
            (ErrorKind::InternalFailure, 500),
            (ErrorKind::ServiceUnavailable, 503),
        ] {
            assert_eq!(kind.status().as_u16(), status, "{kind}");
        }
    }

    #[test]
    fn names_find_their_kind_and_no_other() {
        for kind in ErrorKind::ALL {
            let found = ErrorKind::from_name(kind.name()).expect("a name of the table");
            assert_eq!(found.name(), kind.name());
        }
        assert_eq!(ErrorKind::from_name("AccessDeniedException"), Some(ErrorKind::AccessDenied));
        assert_eq!(
            ErrorKind::from_name("UnknownOperationException"),
            Some(ErrorKind::UnknownOperation)
        );
        assert_eq!(ErrorKind::from_name("NoSuchException"), None);
    }

    #[test]
    fn json_has_type_and_message() {
        let error = ApiError::resource_not_found("Stream \"a\" under account 1 not found.");
        assert_eq!(
            error.body(Encoding::Json).as_ref(),
            br#"{"__type":"ResourceNotFoundException","message":"Stream \"a\" under account 1 not found."}"#
        );
        let silent = ApiError::unknown_operation("");
        assert_eq!(
            silent.body(Encoding::Json).as_ref(),
            br#"{"__type":"UnknownOperationException"}"#
        );
    }

    #[test]
    fn cbor_has_type_and_message() {
        let body = ApiError::validation("é").body(Encoding::Cbor);
        // a2: a map of two; 66, 67: texts of 6 and 7 bytes; 73: a text of 19 bytes.
        let mut expected = vec![0xa2, 0x66];
        expected.extend_from_slice(b"__type\x73ValidationException\x67message\x62\xc3\xa9");
        assert_eq!(body.as_ref(), expected);
    }

    #[test]
    fn xml_is_escaped() {
        let error = ApiError::new(ErrorKind::OperationUndetermined, "<a> & b");
        assert_eq!(
            error.xml_body().as_ref(),
            b"<AccessDeniedException>\n  <Message>&lt;a&gt; &amp; b</Message>\n\
              </AccessDeniedException>\n"
        );
        let silent = ApiError::new(ErrorKind::UnknownContentType, "");
        assert_eq!(silent.xml_body().as_ref(), b"<UnknownOperationException/>\n");
    }
}
