//! Event streams: over both versions of HTTP, to clients that take, do not take, or go.

use std::time::Duration;

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use thalweg_router::kinesis::codec::Encoding;
use thalweg_router::kinesis::error::ErrorKind;
use thalweg_router::kinesis::event_stream::{event, exception};
use thalweg_router::kinesis::server::{EventSendError, EventSender, Limits};

use crate::http2::{self, END_HEADERS, END_STREAM, Frames, HEADERS, RESET, SETTINGS, call};
use crate::support::{PATIENCE, Served, request_with, send_events, short_limits};

const SOON: Duration = Duration::from_millis(100);

/// What a client makes of a body: type and payload of each message.
fn decode(body: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut decoder = MessageFrameDecoder::new();
    let mut bytes = BytesMut::from(body);
    let mut messages = Vec::new();
    loop {
        match decoder.decode_frame(&mut bytes).expect("a sound message") {
            DecodedFrame::Complete(message) => {
                let kind = message.headers().iter().find(|header| {
                    matches!(header.name().as_str(), ":event-type" | ":exception-type")
                });
                let kind = kind.expect("a type").value().as_string().expect("text");
                messages.push((kind.as_str().to_owned(), message.payload().to_vec()));
            }
            DecodedFrame::Incomplete => {
                assert!(bytes.is_empty(), "a message is torn");
                return messages;
            }
        }
    }
}

async fn send_three(sender: EventSender) {
    let content_type = Encoding::Json.content_type();
    for payload in [&b"{\"a\":1}"[..], &vec![b'x'; 900_000]] {
        let payload = Bytes::copy_from_slice(payload);
        let message = event("SubscribeToShardEvent", content_type, payload).expect("it fits");
        sender.send(message).await.expect("the client is there");
    }
    let last = exception(ErrorKind::ResourceInUse, "taken over", Encoding::Json);
    sender.send(last.expect("it fits")).await.expect("the client is there");
}

fn assert_three(body: &[u8]) {
    let messages = decode(body);
    let kinds: Vec<&str> = messages.iter().map(|(kind, _)| kind.as_str()).collect();
    let event = "SubscribeToShardEvent";
    assert_eq!(kinds, ["initial-response", event, event, "ResourceInUseException"]);
    assert_eq!(messages[0].1, b"{}");
    assert_eq!(messages[1].1, b"{\"a\":1}");
    assert_eq!(messages[2].1, vec![b'x'; 900_000]);
    assert_eq!(messages[3].1, br#"{"message":"taken over"}"#);
}

#[tokio::test]
async fn events_come_over_http_1_1() {
    let mut served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(request_with("Events", "x-test-bytes: 100000\r\n", "")).await;
    let sender = served.sender().await;
    let sending = tokio::spawn(send_three(sender));
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/vnd.amazon.eventstream");
    assert_eq!(answer.header("x-amzn-requestid").len(), 36);
    assert_three(&answer.body);
    sending.await.expect("no panic");
    assert_eq!(client.call("Echo", "next").await.text(), "next");
    served.until("no stream", |counts| counts.event_streams_open == 0).await;
}

#[tokio::test]
async fn events_come_over_http_2() {
    let mut served = Served::start(Limits::default());
    let mut client = http2::connect(&served).await;
    let request = call("Events", &[("x-test-bytes", "100000".to_owned())], "");
    let response = client.send_request(request).await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/vnd.amazon.eventstream");
    let sending = tokio::spawn(send_three(served.sender().await));
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await;
    assert_three(&body.expect("in time").expect("a whole body").to_bytes());
    sending.await.expect("no panic");
}

/// The first message comes at once: a client's call returns with it.
#[tokio::test]
async fn a_message_is_sent_when_it_is_there() {
    let mut served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(request_with("Events", "x-test-bytes: 1000\r\n", "")).await;
    assert_eq!(client.head().await.map(|head| head.status), Some(200));
    let sender = served.sender().await;
    let first = tokio::time::timeout(PATIENCE, client.chunk()).await.expect("in time");
    assert_eq!(decode(&first.expect("a chunk"))[0].0, "initial-response");
    for _ in 0..3 {
        sender.send("heartbeat".into()).await.expect("the client is there");
        let chunk = tokio::time::timeout(PATIENCE, client.chunk()).await.expect("in time");
        assert_eq!(chunk.as_deref(), Some(&b"heartbeat"[..]));
    }
}

#[tokio::test]
async fn a_sender_learns_that_its_client_went() {
    let mut served = Served::start(Limits::default());
    // HTTP/1.1: a send finds out.
    let mut client = served.connect().await;
    client.send(request_with("Events", "x-test-bytes: 1000\r\n", "")).await;
    assert!(client.head().await.is_some());
    let sender = served.sender().await;
    drop(client);
    let (_, error) = send_events(&sender, 100, PATIENCE).await;
    assert_eq!(error, EventSendError::Gone);
    // HTTP/2: a reset tells.
    let mut client = http2::connect(&served).await;
    let request = call("Events", &[("x-test-bytes", "1000".to_owned())], "");
    let response = client.send_request(request).await.expect("an answer");
    let sender = served.sender().await;
    drop(response);
    tokio::time::timeout(PATIENCE, sender.gone()).await.expect("the sender learns it");
    served.until("no stream", |counts| counts.event_streams_open == 0).await;
}

/// What a client does not take stays with the sender, but for its queue and the socket's buffers.
#[tokio::test]
async fn a_client_that_does_not_take_holds_its_sender_back() {
    let limits = Limits { idle_time: PATIENCE, ..short_limits() };
    let mut served = Served::start(limits);
    let mut client = served.connect().await;
    client.send(request_with("Events", "x-test-bytes: 1000000\r\n", "")).await;
    let sender = served.sender().await;
    let (sent, error) = send_events(&sender, 100_000, SOON).await;
    assert_eq!(error, EventSendError::Stalled);
    // The kernel's buffers of loopback take some MiB.
    assert!((9..200).contains(&sent), "{sent} of 100 kB were taken");
    // As long as its sender has patience, so has the server.
    tokio::time::sleep(2 * short_limits().stall_time).await;
    assert_eq!(served.server.counts().clients_cut, 0);
    // Who takes again goes on.
    assert!(client.head().await.is_some());
    let mut came = 0;
    while came < sent {
        let chunk = client.chunk().await.expect("a chunk");
        came += usize::from(chunk.len() > 90_000);
        if came == sent / 2 {
            assert_eq!(sender.send("more".into()).await, Ok(()));
        }
    }
    // Without its sender, what is left has the time of any answer.
    let (_, error) = send_events(&sender, 100_000, SOON).await;
    assert_eq!(error, EventSendError::Stalled);
    drop(sender);
    served.until("the end of the stream", |counts| counts.event_streams_open == 0).await;
    assert_eq!(served.server.counts().clients_cut, 1);
}

#[tokio::test]
async fn a_sender_can_give_its_client_up() {
    let limits = Limits { idle_time: PATIENCE, stall_time: PATIENCE, ..short_limits() };
    let mut served = Served::start(limits);
    // HTTP/1.1: the connection ends, in the middle.
    let mut client = served.connect().await;
    client.send(request_with("Events", "x-test-bytes: 1000000\r\n", "")).await;
    let sender = served.sender().await;
    let (_, error) = send_events(&sender, 100_000, SOON).await;
    assert_eq!(error, EventSendError::Stalled);
    sender.abort();
    served.until("the end of the connection", |counts| counts.connections_open == 0).await;
    assert_eq!(client.try_answer().await, None);

    // HTTP/2: the stream is reset, the connection stays.
    let mut client = Frames::connect(served.address(), &setting_of_window(0)).await;
    client.until(|frame| frame.kind == SETTINGS && frame.flags == 0).await;
    let block = http2::call_block("Events", &[("x-test-bytes", "1000")]);
    client.send(&http2::frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
    let sender = served.sender().await;
    let (sent, error) = send_events(&sender, 100, SOON).await;
    assert_eq!(error, EventSendError::Stalled);
    assert!(sent < 12, "{sent} messages of 100 bytes were taken");
    sender.abort();
    assert_eq!(client.until(|frame| frame.kind == RESET).await.stream, 1);
    let block = http2::call_block("Empty", &[]);
    client.send(&http2::frame(HEADERS, END_HEADERS | END_STREAM, 3, &block)).await;
    client.until(|frame| frame.kind == HEADERS && frame.stream == 3).await;
}

#[tokio::test]
async fn event_streams_have_a_limit_of_their_own() {
    let limits = Limits { event_streams_max: 2, requests_max: 1, ..Limits::default() };
    let mut served = Served::start(limits);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = served.connect().await;
        client.send(request_with("Events", "x-test-bytes: 1000\r\n", "")).await;
        assert_eq!(client.head().await.map(|head| head.status), Some(200));
        clients.push((client, served.sender().await));
    }
    assert_eq!(served.server.counts().event_streams_open, 2);
    // They are no requests under way.
    let mut client = served.connect().await;
    assert_eq!(client.call("Echo", "a").await.status, 200);
    client.send(request_with("Events", "x-test-bytes: 1000\r\n", "")).await;
    assert_eq!(client.answer().await.status, 503);
    let refused = served.sender().await;
    assert_eq!(refused.send("x".into()).await, Err(EventSendError::Gone));
    clients.pop();
    let (_, sender) = clients.pop().expect("one is left");
    drop(sender);
    served.until("room for streams", |counts| counts.event_streams_open < 2).await;
    client.send(request_with("Events", "x-test-bytes: 1000\r\n", "")).await;
    assert_eq!(client.head().await.map(|head| head.status), Some(200));
}

fn setting_of_window(bytes: u32) -> Vec<u8> {
    http2::setting(4, bytes)
}
