//! Messages of an event stream: what SubscribeToShard answers with instead of one document.
//!
//! A message is a prelude (total length, length of the headers, CRC), headers, a payload and a
//! CRC ("Event Stream Encoding", Amazon Transcribe and Smithy guides). The first one is the
//! `initial-response`: with it a client's call returns. botocore and the Go SDK fail without it,
//! the Java SDK hands it to the response's handler. An exception is the last message.

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use aws_smithy_types::str_bytes::StrBytes;
use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;

use super::codec::Encoding;
use super::error::ErrorKind;

/// The content type of a body made of such messages.
pub const EVENT_STREAM_CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";

/// Largest payload of a message: the encoding's specification, kept by the decoders of older SDKs.
/// Newer ones take 24 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// The bytes of a message beside headers and payload: three lengths and checksums of the prelude,
/// one checksum at the end.
const OVERHEAD_BYTES: usize = 16;

/// More than the headers of any message made here: three names and values, each below 64 bytes.
const HEADERS_BYTES_MAX: usize = 3 * 2 * 64;

/// A record of 10 MiB in base64 is a payload that fits.
const _: () = assert!((10 << 20) / 3 * 4 + 4096 <= PAYLOAD_BYTES_MAX);

/// Why there is no message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventStreamError {
    /// The payload is too large for clients.
    #[error(
        "a payload of {bytes} bytes in an event stream: the SDKs take at most \
         {PAYLOAD_BYTES_MAX}; send fewer records in an event"
    )]
    PayloadTooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The encoder refused.
    #[error("a message could not be encoded ({reason})")]
    Encoding {
        /// What it said.
        reason: String,
    },
}

/// The message with which a stream begins: the operation's output without its events, which is an
/// empty structure for SubscribeToShard.
pub fn initial_response(encoding: Encoding) -> Bytes {
    let payload: &'static [u8] = match encoding {
        Encoding::Json => b"{}",
        // A map of no entries.
        Encoding::Cbor => b"\xa0",
    };
    encode(":event-type", "initial-response", encoding.content_type(), "event", payload.into())
        .expect("two bytes of payload fit")
}

/// An event: `event_type` is the name of the member of the event stream's union, the payload that
/// member's structure, encoded as `content_type` says.
///
/// # Errors
/// [`EventStreamError::PayloadTooLarge`] above [`PAYLOAD_BYTES_MAX`].
pub fn event(
    event_type: &'static str,
    content_type: &'static str,
    payload: Bytes,
) -> Result<Bytes, EventStreamError> {
    encode(":event-type", event_type, content_type, "event", payload)
}

/// An exception: the last message of a stream that failed.
///
/// # Errors
/// [`EventStreamError::PayloadTooLarge`] when the message is larger than [`PAYLOAD_BYTES_MAX`].
pub fn exception(
    kind: ErrorKind,
    message: &str,
    encoding: Encoding,
) -> Result<Bytes, EventStreamError> {
    let body = ExceptionBody { message };
    let payload = match encoding {
        Encoding::Json => serde_json::to_vec(&body).expect("a string is JSON"),
        Encoding::Cbor => {
            let mut bytes = Vec::with_capacity(16 + message.len());
            ciborium::into_writer(&body, &mut bytes).expect("a string is CBOR");
            bytes
        }
    };
    let content_type = encoding.content_type();
    encode(":exception-type", kind.name(), content_type, "exception", payload.into())
}

#[derive(Serialize)]
struct ExceptionBody<'a> {
    message: &'a str,
}

/// Headers in the service's order.
fn encode(
    type_header: &'static str,
    type_name: &'static str,
    content_type: &'static str,
    message_type: &'static str,
    payload: Bytes,
) -> Result<Bytes, EventStreamError> {
    let bytes = payload.len();
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(EventStreamError::PayloadTooLarge { bytes });
    }
    let message = Message::new(payload)
        .add_header(text_header(type_header, type_name))
        .add_header(text_header(":content-type", content_type))
        .add_header(text_header(":message-type", message_type));
    let mut frame = Vec::with_capacity(OVERHEAD_BYTES + HEADERS_BYTES_MAX + bytes);
    write_message_to(&message, &mut frame)
        .map_err(|error| EventStreamError::Encoding { reason: error.to_string() })?;
    Ok(frame.into())
}

fn text_header(name: &'static str, value: &'static str) -> Header {
    Header::new(name, HeaderValue::String(StrBytes::from(value)))
}

#[cfg(test)]
mod tests {
    use aws_smithy_eventstream::frame::read_message_from;

    use super::*;

    fn text(message: &Message, name: &str) -> String {
        let header = message.headers().iter().find(|header| header.name().as_str() == name);
        let header = header.unwrap_or_else(|| panic!("{name} is missing"));
        header.value().as_string().expect("a text").as_str().to_owned()
    }

    /// The bytes are what the service itself sends, checksums included.
    #[test]
    fn the_initial_response_is_the_services() {
        let expected: &[u8] = b"\0\0\0r\0\0\0`\xab\x82\r\x9e\
            \x0b:event-type\x07\0\x10initial-response\
            \r:content-type\x07\0\x1aapplication/x-amz-json-1.1\
            \r:message-type\x07\0\x05event{}\xac\xaek}";
        assert_eq!(initial_response(Encoding::Json), expected);
    }

    #[test]
    fn an_initial_response_in_cbor_is_an_empty_map() {
        let frame = initial_response(Encoding::Cbor);
        let message = read_message_from(&mut &frame[..]).expect("a whole message");
        assert_eq!(text(&message, ":content-type"), "application/x-amz-cbor-1.1");
        assert_eq!(message.payload().as_ref(), [0xa0]);
    }

    #[test]
    fn an_exception_is_laid_out_like_the_services() {
        let frame = exception(ErrorKind::KmsAccessDenied, "no \"key\"", Encoding::Json)
            .expect("a short message");
        // Headers of the service's own message of this kind: 112 bytes.
        assert_eq!(frame[4..8], [0, 0, 0, 112]);
        let headers: &[u8] = b"\x0f:exception-type\x07\0\x18KMSAccessDeniedException\
            \r:content-type\x07\0\x1aapplication/x-amz-json-1.1\
            \r:message-type\x07\0\texception";
        assert_eq!(&frame[12..12 + 112], headers);
        let message = read_message_from(&mut &frame[..]).expect("a whole message");
        assert_eq!(message.payload().as_ref(), br#"{"message":"no \"key\""}"#);
    }

    #[test]
    fn an_exception_in_cbor_has_its_message() {
        let frame =
            exception(ErrorKind::ResourceInUse, "busy", Encoding::Cbor).expect("a short message");
        let message = read_message_from(&mut &frame[..]).expect("a whole message");
        assert_eq!(message.payload().as_ref(), b"\xa1\x67message\x64busy");
    }

    #[test]
    fn an_event_has_its_payload_unchanged() {
        let payload = Bytes::from(vec![7u8; 3 << 20]);
        let content_type = Encoding::Json.content_type();
        let frame = event("SubscribeToShardEvent", content_type, payload.clone()).expect("3 MiB");
        let message = read_message_from(&mut &frame[..]).expect("a whole message");
        assert_eq!(text(&message, ":event-type"), "SubscribeToShardEvent");
        assert_eq!(text(&message, ":message-type"), "event");
        assert_eq!(message.payload(), &payload);
    }

    #[test]
    fn a_payload_has_a_limit() {
        let content_type = Encoding::Json.content_type();
        let most = Bytes::from(vec![0u8; PAYLOAD_BYTES_MAX]);
        assert!(event("SubscribeToShardEvent", content_type, most).is_ok());
        let more = Bytes::from(vec![0u8; PAYLOAD_BYTES_MAX + 1]);
        assert_eq!(
            event("SubscribeToShardEvent", content_type, more),
            Err(EventStreamError::PayloadTooLarge { bytes: PAYLOAD_BYTES_MAX + 1 })
        );
    }

    #[test]
    fn the_room_for_headers_suffices() {
        let frame = exception(ErrorKind::ProvisionedThroughputExceeded, "", Encoding::Json)
            .expect("a short message");
        assert!(frame.len() <= OVERHEAD_BYTES + HEADERS_BYTES_MAX);
    }
}
