//! Answers: headers as the service has them, bodies that are sent as they are taken.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::kinesis::codec::Encoding;
use crate::kinesis::error::ApiError;
use crate::kinesis::event_stream::EVENT_STREAM_CONTENT_TYPE;

use super::events::EventStream;
use super::exchange::{Exchange, UnderWay};

/// Bodies are handed to hyper in pieces of this size: what hyper has was given up by the limits of
/// the exchange, and HTTP/2 would take a whole body into its buffers at once.
const PIECE_BYTES_MAX: usize = 256 << 10;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const EXTENDED_REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-id-2");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// What an answer holds until it is sent or given up. Its memory is held by its bytes.
#[expect(dead_code, reason = "what is held is given back by being dropped")]
pub(super) struct Holding {
    /// The request counts as under way.
    pub(super) under_way: UnderWay,
    /// Its place among the requests, among the refusals or among the event streams.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// The body of an answer.
pub(super) struct AnswerBody {
    kind: Kind,
    /// What is left of the document, or of the message that is being sent.
    rest: Bytes,
    exchange: Arc<Exchange>,
    _holding: Holding,
}

enum Kind {
    Whole,
    Events { stream: EventStream, draining: Option<Pin<Box<WaitForCancellationFutureOwned>>> },
}

impl AnswerBody {
    pub(super) fn whole(bytes: Bytes, exchange: Arc<Exchange>, holding: Holding) -> AnswerBody {
        AnswerBody { kind: Kind::Whole, rest: bytes, exchange, _holding: holding }
    }

    /// Ends the stream after what is queued when the server is drained.
    pub(super) fn events(
        stream: EventStream,
        drain: CancellationToken,
        exchange: Arc<Exchange>,
        holding: Holding,
    ) -> AnswerBody {
        stream.attach(&exchange);
        let draining = Some(Box::pin(drain.cancelled_owned()));
        let kind = Kind::Events { stream, draining };
        AnswerBody { kind, rest: Bytes::new(), exchange, _holding: holding }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let Kind::Events { stream, draining } = &mut this.kind else {
                return Poll::Ready(None);
            };
            if let Some(drain) = draining
                && drain.as_mut().poll(context).is_ready()
            {
                *draining = None;
                stream.close();
            }
            match std::task::ready!(stream.poll_next(context)) {
                Some(message) => this.rest = message,
                None => return Poll::Ready(None),
            }
        }
        this.exchange.take_unless_held();
        let bytes = this.rest.len().min(PIECE_BYTES_MAX);
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Whole) && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.kind {
            Kind::Whole => SizeHint::with_exact(self.rest.len() as u64),
            Kind::Events { .. } => SizeHint::default(),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Kind::Events { stream, .. } = &self.kind {
            stream.detach();
        }
        self.exchange.rest();
    }
}

/// The two ids that the service gives each request.
pub(super) struct RequestIds {
    /// A UUID (version 4).
    pub(super) request_id: String,
    extended: String,
}

impl RequestIds {
    pub(super) fn new() -> RequestIds {
        // The service's second id is base64 of 72 bytes. The first ones are the UUID's.
        let mut random = [0u8; 72];
        getrandom::fill(&mut random).expect("the system's random source works once it has started");
        random[6] = random[6] & 0x0f | 0x40;
        random[8] = random[8] & 0x3f | 0x80;
        let mut request_id = String::with_capacity(36);
        for (place, byte) in random[..16].iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                request_id.push('-');
            }
            for digit in [byte >> 4, byte & 15] {
                request_id.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        RequestIds { request_id, extended: base64_simd::STANDARD.encode_to_string(random) }
    }

    fn put_into(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, ascii(&self.request_id));
        headers.insert(EXTENDED_REQUEST_ID, ascii(&self.extended));
    }
}

/// The head of an answer to an operation, and its body.
pub(super) fn success(
    ids: &RequestIds,
    content: Content,
    body: AnswerBody,
) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    ids.put_into(response.headers_mut());
    let content_type = match content {
        Content::Document(encoding) => encoding.content_type(),
        Content::Events => EVENT_STREAM_CONTENT_TYPE,
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What an answer consists of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content {
    /// A document.
    Document(Encoding),
    /// Messages of an event stream.
    Events,
}

/// An error as an answer. Without an encoding it is XML, which has no content type, as with the
/// service. The error's name stands in a header too: SDKs look there first, and the XML is read
/// by none of them.
pub(super) fn failure(
    ids: &RequestIds,
    error: &ApiError,
    encoding: Option<Encoding>,
    exchange: Arc<Exchange>,
    holding: Holding,
) -> Response<AnswerBody> {
    let body = match encoding {
        Some(encoding) => error.body(encoding),
        None => error.xml_body(),
    };
    let mut response = Response::new(AnswerBody::whole(body, exchange, holding));
    *response.status_mut() = error.status();
    let headers = response.headers_mut();
    ids.put_into(headers);
    headers.insert(ERROR_TYPE, HeaderValue::from_static(error.kind.name()));
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(encoding.content_type()));
    }
    response
}

/// An answer for people and machines that look after the server.
pub(super) fn plain(
    status: StatusCode,
    content_type: &'static str,
    text: String,
    exchange: Arc<Exchange>,
    holding: Holding,
) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(text.into(), exchange, holding));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Makes an HTTP/1.1 connection end with this answer. HTTP/2 has no such header.
pub(super) fn close_after(response: &mut Response<AnswerBody>, version: Version) {
    if version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// What a page of another origin may read (the service's list).
const CORS_EXPOSED: &str = "x-amzn-RequestId,x-amzn-ErrorType,x-amz-request-id,x-amz-id-2,\
    x-amzn-ErrorMessage,Date";
/// How long a browser may remember a preflight: two days, as with the service.
const CORS_SECONDS: &str = "172800";

/// Lets a page of another origin read the answer. Calls are signed, and browsers send nothing of
/// their own with them, so any origin may.
pub(super) fn allow_origins(headers: &mut HeaderMap) {
    headers.insert(http::header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    let exposed = HeaderValue::from_static(CORS_EXPOSED);
    headers.insert(http::header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
}

/// The answer to a browser that asks what it may send: whatever it asks for.
pub(super) fn preflight(
    ids: &RequestIds,
    asked: &HeaderMap,
    exchange: Arc<Exchange>,
    holding: Holding,
) -> Response<AnswerBody> {
    use http::header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    };
    let mut response = Response::new(AnswerBody::whole(Bytes::new(), exchange, holding));
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, ascii(&ids.request_id));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if let Some(method) = asked.get(ACCESS_CONTROL_REQUEST_METHOD) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(CORS_SECONDS));
    response
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits, letters and punctuation of base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_and_differ() {
        let (first, second) = (RequestIds::new(), RequestIds::new());
        for ids in [&first, &second] {
            let parts: Vec<&str> = ids.request_id.split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
            assert!(parts[2].starts_with('4'), "{}", ids.request_id);
            assert!(parts[3].starts_with(['8', '9', 'a', 'b']), "{}", ids.request_id);
            let extended = base64_simd::STANDARD.decode_to_vec(&ids.extended).expect("base64");
            assert_eq!(extended.len(), 72);
        }
        assert_ne!(first.request_id, second.request_id);
    }
}
