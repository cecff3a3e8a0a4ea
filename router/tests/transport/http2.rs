//! HTTP/2 with prior knowledge: hyper's client for what clients do, frames by hand for what they
//! should not.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use thalweg_router::kinesis::error::ErrorKind;
use thalweg_router::kinesis::server::{Limits, REFUSALS_MAX, ServerCounts};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Served, request, short_limits};

/// A client of HTTP/2 on a stream that is open.
pub(crate) async fn handshake<S>(stream: S) -> SendRequest<Full<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (client, connection) = handshake.expect("the server speaks HTTP/2");
    tokio::spawn(connection);
    client
}

pub(crate) async fn connect(served: &Served) -> SendRequest<Full<Bytes>> {
    handshake(TcpStream::connect(served.address()).await.expect("the server listens")).await
}

pub(crate) fn call(
    operation: &str,
    headers: &[(&str, String)],
    body: impl Into<Bytes>,
) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::post("http://kinesis.test:4567/")
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("Kinesis_20131202.{operation}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    request.body(Full::new(body.into())).expect("a request")
}

pub(crate) async fn text(
    client: &mut SendRequest<Full<Bytes>>,
    request: http::Request<Full<Bytes>>,
) -> (u16, String) {
    let response = tokio::time::timeout(PATIENCE, client.send_request(request)).await;
    let response = response.expect("an answer in time").expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, String::from_utf8(body.into()).expect("text"))
}

#[tokio::test]
async fn requests_run_side_by_side() {
    let served = Served::start(Limits::default());
    let client = connect(&served).await;
    let mut gated = Vec::new();
    for _ in 0..50 {
        let mut client = client.clone();
        gated.push(tokio::spawn(async move { text(&mut client, call("Gate", &[], "")).await }));
    }
    served.until("50 requests under way", |counts| counts.requests_open == 50).await;
    let mut client = client.clone();
    let body = vec![b'b'; 700_000];
    let (status, echoed) = text(&mut client, call("Echo", &[], body.clone())).await;
    assert_eq!((status, echoed.into_bytes()), (200, body));
    served.api.gate.add_permits(50);
    for task in gated {
        assert_eq!(task.await.expect("no panic"), (200, "{}".to_owned()));
    }
    assert_eq!(served.server.counts().connections_accepted, 1);
}

/// Signatures cover `host`, which HTTP/2 calls `:authority`.
#[tokio::test]
async fn the_authority_is_the_host() {
    let served = Served::start(Limits::default());
    let mut client = connect(&served).await;
    let (_, who) = text(&mut client, call("Who", &[], "")).await;
    assert!(who.starts_with("HTTP/2.0 Json host=kinesis.test:4567 ip=127.0.0.1"), "{who}");
}

#[tokio::test]
async fn errors_and_refusals_leave_the_connection_as_it_was() {
    let limits = Limits { body_bytes_max: 100_000, ..Limits::default() };
    let served = Served::start(limits);
    let mut client = connect(&served).await;
    for _ in 0..20 {
        let large = call("Echo", &[], vec![0; 3 << 20]);
        assert_eq!(text(&mut client, large).await.0, 413);
        assert_eq!(text(&mut client, call("Nothing", &[], "{}")).await.0, 400);
        assert_eq!(text(&mut client, call("Fail", &[], "{}")).await.0, 400);
        assert_eq!(text(&mut client, call("Echo", &[], "a")).await, (200, "a".to_owned()));
    }
    assert_eq!(served.server.counts().connections_accepted, 1);
}

/// A client that gives up takes its request with it.
#[tokio::test]
async fn a_request_that_is_reset_is_given_up() {
    let served = Served::start(Limits::default());
    let mut client = connect(&served).await;
    let waiting = client.send_request(call("Gate", &[], ""));
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting).await.is_err());
    served.until("nothing under way", |counts| counts.requests_open == 0).await;
    assert_eq!(served.api.begun.load(SeqCst), 1);
    assert_eq!(served.api.ended.load(SeqCst), 0);
    assert_eq!(text(&mut client, call("Echo", &[], "a")).await.0, 200);
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let served = Served::start(short_limits());
    let mut client = connect(&served).await;
    assert_eq!(text(&mut client, call("Echo", &[], "a")).await.0, 200);
    let started = Instant::now();
    served.until("the end of the connection", |counts| counts.connections_open == 0).await;
    assert!(started.elapsed() >= Duration::from_millis(600));
    assert!(client.ready().await.is_err());
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A setting of `SETTINGS`.
pub(crate) fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
}

/// A header list without compression (RFC 7541, 6.2.2).
pub(crate) fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn push_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(length as u8);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

pub(crate) fn call_block(operation: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let target = format!("Kinesis_20131202.{operation}");
    let mut all = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "localhost"),
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", &target),
    ];
    all.extend_from_slice(headers);
    header_block(&all)
}

/// A connection of HTTP/2 by hand.
pub(crate) struct Frames<S = TcpStream> {
    pub(crate) stream: S,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frames {
    /// Begins with settings of the client.
    pub(crate) async fn connect(address: std::net::SocketAddr, settings: &[u8]) -> Frames {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        stream.write_all(PREFACE).await.expect("the server reads");
        let settings = frame(SETTINGS, 0, 0, settings);
        stream.write_all(&settings).await.expect("the server reads");
        Frames { stream }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the server reads");
    }
}

impl<S: AsyncRead + Unpin> Frames<S> {
    /// The next frame, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(PATIENCE, async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        })
        .await
        .expect("a frame or the end in time")
    }

    /// The next frame that is so.
    pub(crate) async fn until(&mut self, is_so: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.expect("a frame before the end");
            if is_so(&frame) {
                return frame;
            }
        }
    }
}

#[tokio::test]
async fn requests_on_one_connection_have_a_limit() {
    let limits = Limits { requests_per_connection_max: 3, ..Limits::default() };
    let served = Served::start(limits);
    let mut client = Frames::connect(served.address(), &[]).await;
    let settings = client.until(|frame| frame.kind == SETTINGS && frame.flags == 0).await;
    let told = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]);
    assert_eq!(told, Some(&setting(3, 3)[..]));
    client.send(&frame(SETTINGS, 1, 0, &[])).await;
    let block = call_block("Gate", &[]);
    for number in 0..4 {
        let flags = END_HEADERS | END_STREAM;
        client.send(&frame(HEADERS, flags, 2 * number + 1, &block)).await;
    }
    let refused = client.until(|frame| frame.kind == RESET).await;
    // REFUSED_STREAM: the client may try again elsewhere.
    assert_eq!((refused.stream, refused.payload), (7, vec![0, 0, 0, 7]));
    assert_eq!(served.server.counts().requests_open, 3);
}

/// A client that opens no window holds an answer for a while, and only its own.
#[tokio::test]
async fn an_answer_that_is_not_taken_is_reset() {
    let limits = Limits { idle_time: PATIENCE, ..short_limits() };
    let served = Served::start(limits);
    // INITIAL_WINDOW_SIZE 0.
    let mut client = Frames::connect(served.address(), &setting(4, 0)).await;
    client.until(|frame| frame.kind == SETTINGS && frame.flags == 0).await;
    client.send(&frame(SETTINGS, 1, 0, &[])).await;
    let flags = END_HEADERS | END_STREAM;
    for (stream, bytes) in [(1, "1000"), (3, "5000000")] {
        let block = call_block("Large", &[("x-test-bytes", bytes)]);
        client.send(&frame(HEADERS, flags, stream, &block)).await;
    }
    served.until("two answers that wait", |counts| counts.requests_open == 2).await;
    let mut reset = Vec::new();
    for _ in 0..2 {
        reset.push(client.until(|frame| frame.kind == RESET).await.stream);
    }
    reset.sort_unstable();
    assert_eq!(reset, [1, 3]);
    assert_eq!(served.server.counts().answers_bytes, 0);
    assert_eq!(served.server.counts().clients_cut, 2);
    // One without a body needs no window.
    client.send(&frame(HEADERS, flags, 5, &call_block("Empty", &[]))).await;
    let answer = client.until(|frame| frame.kind == HEADERS && frame.stream == 5).await;
    assert_eq!(answer.flags, END_HEADERS | END_STREAM);
}

#[tokio::test]
async fn a_header_list_has_a_limit() {
    let served = Served::start(Limits::default());
    let mut client = connect(&served).await;
    let long = vec![("x-long", "a".repeat(60 << 10))];
    assert_eq!(text(&mut client, call("Echo", &long, "a")).await.0, 200);
    let more: Vec<_> = (0..100).map(|_| ("x-many", "a".to_owned())).collect();
    assert_eq!(text(&mut client, call("Echo", &more, "a")).await.0, 431);
    let longer = vec![("x-long", "a".repeat(70 << 10))];
    let refused = client.send_request(call("Echo", &longer, "a")).await;
    if let Ok(response) = refused {
        assert_eq!(response.status(), 431);
    }
    assert_eq!(served.api.begun.load(SeqCst), 1);
}

/// CVE-2023-44487: requests that are reset at once. The server serves others meanwhile, and what
/// it was made to begin is given up.
#[tokio::test]
async fn rapid_resets_leave_nothing_behind() {
    let served = Served::start(Limits::default());
    let mut other = served.connect().await;
    let mut client = Frames::connect(served.address(), &[]).await;
    let block = call_block("Gate", &[]);
    let mut sent = 0;
    'flood: for _ in 0..200 {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            let stream = 2 * sent + 1;
            sent += 1;
            bytes.extend_from_slice(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
            bytes.extend_from_slice(&frame(RESET, 0, stream, &[0, 0, 0, 8]));
        }
        if client.stream.write_all(&bytes).await.is_err() {
            break 'flood;
        }
        if sent % 1000 == 0 {
            assert_eq!(other.call("Echo", "a").await.text(), "a");
        }
    }
    assert!(sent < 20_000, "all of {sent} resets were taken");
    served
        .until("nothing under way", |counts| {
            counts.requests_open == 0 && counts.connections_open == 1
        })
        .await;
    assert_eq!(other.call("Echo", "a").await.text(), "a");
    assert!(served.api.begun.load(SeqCst) < 20_000);
}

/// The first bytes tell the version, however they come.
#[tokio::test]
async fn a_preface_may_come_in_pieces() {
    let served = Served::start(Limits::default());
    let mut stream = TcpStream::connect(served.address()).await.expect("the server listens");
    stream.set_nodelay(true).expect("a socket");
    for byte in PREFACE {
        stream.write_all(&[*byte]).await.expect("the server reads");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("the server reads");
    let mut client = Frames { stream };
    assert_eq!(client.next().await.map(|frame| frame.kind), Some(SETTINGS));

    let mut client = served.connect().await;
    client.stream.set_nodelay(true).expect("a socket");
    for byte in request("Echo", "piecemeal") {
        client.send([byte]).await;
    }
    assert_eq!(client.answer().await.text(), "piecemeal");
}

/// SDKs take a stream that is reset for a broken one, although its answer came first. So a refused
/// body is received to its end, as with HTTP/1.1.
#[tokio::test]
async fn a_refusal_waits_for_the_end_of_the_body() {
    let limits = Limits { body_bytes_max: 100_000, ..Limits::default() };
    let served = Served::start(limits);
    let mut client = Frames::connect(served.address(), &[]).await;
    client.until(|frame| frame.kind == SETTINGS && frame.flags == 0).await;
    let block = call_block("Echo", &[("content-length", "160000")]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
    let (reader, mut writer) = client.stream.into_split();
    let mut frames = Frames { stream: reader };
    let mut answer = std::pin::pin!(frames.until(|frame| matches!(frame.kind, HEADERS | RESET)));
    for number in 0..10 {
        let early = tokio::time::timeout(Duration::from_millis(10), &mut answer).await;
        assert_eq!(early.ok(), None);
        let flags = if number == 9 { END_STREAM } else { 0 };
        let data = frame(DATA, flags, 1, &[b'x'; 16_000]);
        writer.write_all(&data).await.expect("the server reads");
    }
    let answer = answer.await;
    assert_eq!((answer.kind, answer.stream), (HEADERS, 1));
}

/// Requests that are refused waited for their bodies, and their answers for windows, in any number.
#[tokio::test]
async fn refusals_on_all_connections_have_a_limit() {
    const STREAMS: usize = 250;
    let limits = Limits { body_time: PATIENCE, requests_max: 1, ..Limits::default() };
    let served = Served::start(limits);
    let block = call_block("Nothing", &[]);
    let health = [(":method", "GET"), (":scheme", "http"), (":path", "/health")];
    let health = header_block(&health);
    let mut clients = Vec::new();
    let mut began = 0;
    while began < REFUSALS_MAX + 10 {
        // No window for answers, and bodies that never end.
        let mut client = Frames::connect(served.address(), &setting(4, 0)).await;
        client.until(|frame| frame.kind == SETTINGS && frame.flags == 0).await;
        for number in 0..STREAMS.min(REFUSALS_MAX + 10 - began) {
            let stream = 2 * number as u32 + 1;
            let frame = match number % 2 {
                0 => frame(HEADERS, END_HEADERS, stream, &block),
                _ => frame(HEADERS, END_HEADERS | END_STREAM, stream, &health),
            };
            client.send(&frame).await;
            began += 1;
        }
        clients.push(client);
    }
    let refused = |counts: &ServerCounts| counts.refusals.of(ErrorKind::ServiceUnavailable);
    served.until("ten without a place", |counts| refused(counts) == 10).await;
    let client = clients.last_mut().expect("there are some");
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 499, &health)).await;
    let reset = client.until(|frame| frame.kind == RESET && frame.stream == 499).await;
    // REFUSED_STREAM: nothing was done.
    assert_eq!(reset.payload, [0, 0, 0, 7]);
    // Calls have places of their own, and HTTP/1.1 goes on without: nobody is waited for.
    let mut client = served.connect().await;
    assert_eq!(client.call("Echo", "a").await.text(), "a");
    client.send(crate::support::head("Nothing", "content-length: 1000\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (400, "close"));
    drop(clients);
    served.until("the end of all", |counts| counts.connections_open == 0).await;
    let mut client = connect(&served).await;
    assert_eq!(text(&mut client, call("Nothing", &[], "{}")).await.0, 400);
}
