//! The seam between the transport and the API behind it.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

use crate::kinesis::codec::Encoding;
use crate::kinesis::error::ApiError;

use super::events::EventStream;
use super::room::{AnswerRoom, CountedBytes};

/// A request whose operation is known and whose body is here as a whole. Nothing else of it was
/// looked at: who calls and what the body says is the API's affair.
pub struct ApiRequest {
    /// The operation: what follows `Kinesis_20131202.` in `X-Amz-Target`.
    pub operation: String,
    /// The encoding of the body, and of the answer.
    pub encoding: Encoding,
    /// Method, URI and headers. Over HTTP/2 the `host` header is there too: it is `:authority`.
    pub head: http::request::Parts,
    /// The body. Its memory counts until the last handle to it is gone.
    pub body: Bytes,
    /// Where a large answer is made: see [`ApiResponse::Counted`].
    pub answer_room: AnswerRoom,
    /// What the answer's `x-amzn-RequestId` will be.
    pub request_id: String,
    /// Who connected. IPv4 peers of an IPv6 socket have their IPv4 address.
    pub peer: SocketAddr,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
}

/// Tells neither the head, where session tokens are, nor the body.
impl fmt::Debug for ApiRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ApiRequest")
            .field("operation", &self.operation)
            .field("encoding", &self.encoding)
            .field("body_bytes", &self.body.len())
            .field("request_id", &self.request_id)
            .field("peer", &self.peer)
            .field("is_tls", &self.is_tls)
            .finish_non_exhaustive()
    }
}

/// What a client gets with status 200.
pub enum ApiResponse {
    /// One document in the request's encoding; empty for operations without output.
    Whole(Bytes),
    /// The same, made in the request's [`AnswerRoom`]: its memory counts already.
    Counted(CountedBytes),
    /// Messages of an event stream, sent as they come.
    Events(EventStream),
}

/// Tells no records.
impl fmt::Debug for ApiResponse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiResponse::Whole(bytes) => write!(formatter, "Whole({} bytes)", bytes.len()),
            ApiResponse::Counted(bytes) => write!(formatter, "Counted({} bytes)", bytes.len()),
            ApiResponse::Events(_) => formatter.write_str("Events"),
        }
    }
}

/// An API behind the transport.
pub trait Api: Send + Sync + 'static {
    /// Whether there is such an operation.
    fn knows(&self, operation: &str) -> bool;

    /// Whether a request with this head may be somebody's who is let in. It is asked before the
    /// request takes a place or memory, so that strangers cannot use up what callers need.
    ///
    /// # Errors
    /// What [`Api::call`] would answer, whatever the body.
    fn admits(&self, head: &http::request::Parts) -> Result<(), ApiError>;

    /// Answers a request. The future is dropped when the client is gone, at the end of a drain
    /// and after [`Limits::answer_time`](super::Limits::answer_time): what it began must then
    /// come to its end elsewhere, or be repeatable.
    fn call(
        &self,
        request: ApiRequest,
    ) -> impl Future<Output = Result<ApiResponse, ApiError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::super::room::AnswerBudget;
    use super::*;

    #[test]
    fn what_clients_send_is_not_told() {
        let secret = "a-session-token";
        let request = http::Request::post("/?X-Amz-Signature=a-session-token");
        let request = request.header("x-amz-security-token", secret).body(()).expect("a request");
        let request = ApiRequest {
            operation: "PutRecord".into(),
            encoding: Encoding::Json,
            head: request.into_parts().0,
            body: Bytes::from_static(b"a-session-token"),
            answer_room: AnswerBudget::new(1).room(),
            request_id: "an id".into(),
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            is_tls: false,
        };
        let counted = AnswerBudget::new(1).room().fill(secret.into());
        let answers = (ApiResponse::Whole(secret.into()), ApiResponse::Counted(counted));
        let told = format!("{request:?} {answers:?}");
        assert!(told.contains("PutRecord") && told.contains("an id"), "{told}");
        assert!(!told.contains(secret), "{told}");
    }
}
