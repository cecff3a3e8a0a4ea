//! A server with an API of its own, and clients that speak byte by byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_router::kinesis::codec::Encoding;
use thalweg_router::kinesis::error::ApiError;
use thalweg_router::kinesis::event_stream::{event, initial_response};
use thalweg_router::kinesis::server::{
    Api, ApiRequest, ApiResponse, EventSendError, EventSender, Limits, Server, ServerConfig,
    ServerCounts, event_channel,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

/// Nothing in a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Limits with short times, for tests that wait for them.
pub(crate) fn short_limits() -> Limits {
    Limits {
        body_room_time: Duration::from_millis(200),
        head_time: Duration::from_millis(300),
        body_time: Duration::from_millis(300),
        answer_time: Duration::from_millis(400),
        stall_time: Duration::from_millis(500),
        idle_time: Duration::from_millis(700),
        ..Limits::default()
    }
}

/// What the operations of the tests share with them.
#[derive(Clone)]
pub(crate) struct TestApi {
    /// `Gate` takes one of these before it answers.
    pub(crate) gate: Arc<Semaphore>,
    /// Calls that began, and that came to their end.
    pub(crate) begun: Arc<AtomicUsize>,
    pub(crate) ended: Arc<AtomicUsize>,
    /// Bodies that `Keep` was given.
    pub(crate) kept: Arc<Mutex<Vec<Bytes>>>,
    /// Senders of event streams, which `Events` gives to the test.
    pub(crate) senders: mpsc::UnboundedSender<EventSender>,
}

impl TestApi {
    pub(crate) fn new() -> (TestApi, mpsc::UnboundedReceiver<EventSender>) {
        let (senders, received) = mpsc::unbounded_channel();
        let api = TestApi {
            gate: Arc::new(Semaphore::new(0)),
            begun: Arc::default(),
            ended: Arc::default(),
            kept: Arc::default(),
            senders,
        };
        (api, received)
    }

    async fn answer(&self, request: ApiRequest) -> Result<ApiResponse, ApiError> {
        let number = |name: &str| -> u64 {
            let value = request.head.headers.get(name).expect("a header of the test");
            value.to_str().expect("ASCII").parse().expect("a number")
        };
        match request.operation.as_str() {
            "Echo" => Ok(ApiResponse::Whole(request.body)),
            "Empty" => Ok(ApiResponse::Whole(Bytes::new())),
            "Fail" => {
                Err(ApiError::resource_not_found("Stream a under account 000000000000 not found."))
            }
            "Sum" => {
                let sum = request.body.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                Ok(whole(format!("{} {sum}", request.body.len())))
            }
            "Who" => {
                let host = request.head.headers.get("host");
                let host = host.map_or("none", |host| host.to_str().expect("ASCII"));
                let ApiRequest { peer, is_tls, encoding, request_id, .. } = &request;
                let version = request.head.version;
                Ok(whole(format!(
                    "{version:?} {encoding:?} host={host} ip={} tls={is_tls} id={request_id}",
                    peer.ip()
                )))
            }
            "Sleep" => {
                tokio::time::sleep(Duration::from_millis(number("x-test-ms"))).await;
                Ok(whole("{}".into()))
            }
            "Gate" => {
                let permit = self.gate.acquire().await;
                permit.expect("the gate stays").forget();
                Ok(whole("{}".into()))
            }
            "Keep" => {
                self.kept.lock().expect("no panic").push(request.body);
                Ok(whole("{}".into()))
            }
            "Large" => Ok(ApiResponse::Whole(vec![b'x'; number("x-test-bytes") as usize].into())),
            "Events" => {
                let (sender, stream) = event_channel(number("x-test-bytes") as usize);
                let first = initial_response(request.encoding);
                sender.send(first).await.expect("there is room for the first");
                self.senders.send(sender).expect("the test waits for it");
                Ok(ApiResponse::Events(stream))
            }
            other => panic!("{other} is not known"),
        }
    }
}

const OPERATIONS: [&str; 10] =
    ["Echo", "Empty", "Fail", "Sum", "Who", "Sleep", "Gate", "Keep", "Large", "Events"];

impl Api for TestApi {
    fn knows(&self, operation: &str) -> bool {
        OPERATIONS.contains(&operation)
    }

    fn admits(&self, head: &http::request::Parts) -> Result<(), ApiError> {
        match head.headers.contains_key("x-test-stranger") {
            true => Err(ApiError::access_denied("A stranger is not let in.")),
            false => Ok(()),
        }
    }

    async fn call(&self, request: ApiRequest) -> Result<ApiResponse, ApiError> {
        self.begun.fetch_add(1, SeqCst);
        let answer = self.answer(request).await;
        self.ended.fetch_add(1, SeqCst);
        answer
    }
}

fn whole(text: String) -> ApiResponse {
    ApiResponse::Whole(text.into())
}

/// A server and what its API shares.
pub(crate) struct Served {
    pub(crate) server: Server,
    pub(crate) api: TestApi,
    pub(crate) senders: mpsc::UnboundedReceiver<EventSender>,
}

impl Served {
    pub(crate) fn start(limits: Limits) -> Served {
        Served::start_with(|config| config.limits = limits)
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Served {
        let mut config = ServerConfig::plain("127.0.0.1:0".parse().expect("an address"));
        change(&mut config);
        let (api, senders) = TestApi::new();
        let server = Server::start(config, api.clone()).expect("loopback can be listened at");
        Served { server, api, senders }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub(crate) async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address()).await.expect("the server listens"))
    }

    /// Waits until the counts are as wanted.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&ServerCounts) -> bool) {
        let started = Instant::now();
        while !is_so(&self.server.counts()) {
            let counts = self.server.counts();
            assert!(started.elapsed() < PATIENCE, "{what} did not come about: {counts:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn sender(&mut self) -> EventSender {
        let sender = tokio::time::timeout(PATIENCE, self.senders.recv()).await;
        sender.expect("in time").expect("the API lives")
    }
}

/// An answer of HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.unwrap_or_else(|| panic!("{name} is missing: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The name of the error that this is.
    pub(crate) fn error_type(&self) -> &str {
        self.header("x-amzn-errortype")
    }
}

/// A client of HTTP/1.1 that sends what it is told.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Client<S> {
        Client { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the server reads");
        self.stream.flush().await.expect("the server reads");
    }

    /// Sends what the server may not want to have.
    pub(crate) async fn send_if_taken(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    pub(crate) async fn call(&mut self, operation: &str, body: impl AsRef<[u8]>) -> Answer {
        self.send(request(operation, body)).await;
        self.answer().await
    }

    /// The next answer, `100 Continue` included.
    pub(crate) async fn answer(&mut self) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, self.try_answer()).await;
        answer.expect("an answer in time").expect("a whole answer")
    }

    /// The next answer, or `None` when the connection ends before it does.
    pub(crate) async fn try_answer(&mut self) -> Option<Answer> {
        let mut answer = self.head().await?;
        if answer.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let piece = self.chunk().await?;
                if piece.is_empty() {
                    break;
                }
                answer.body.extend_from_slice(&piece);
            }
        } else if let Some(bytes) = answer.headers.get("content-length") {
            answer.body = self.take(bytes.parse().expect("a length")).await?;
        }
        Some(answer)
    }

    /// The head of the next answer.
    pub(crate) async fn head(&mut self) -> Option<Answer> {
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8(head).expect("an ASCII head");
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .map(|line| line.split_once(": ").expect("name and value"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Some(Answer { status, headers, body: Vec::new() })
    }

    /// The next chunk of a chunked body, empty at its end.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.until(b"\r\n").await?;
        let size = std::str::from_utf8(&size[..size.len() - 2]).expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        let mut piece = self.take(size + 2).await?;
        piece.truncate(size);
        Some(piece)
    }

    /// Whether the connection ends without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        assert!(self.buffer.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&self.buffer));
        let mut byte = [0];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut byte)).await;
        matches!(read.expect("the end in time"), Ok(0) | Err(_))
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            let found = self.buffer.windows(end.len()).position(|window| window == end);
            if let Some(place) = found {
                return Some(self.buffer.drain(..place + end.len()).collect());
            }
            self.receive().await?;
        }
    }

    async fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < bytes {
            self.receive().await?;
        }
        Some(self.buffer.drain(..bytes).collect())
    }

    async fn receive(&mut self) -> Option<()> {
        let count = self.stream.read_buf(&mut self.buffer).await.ok()?;
        (count > 0).then_some(())
    }
}

/// A request for an operation, in JSON.
pub(crate) fn request(operation: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    request_with(operation, "", body)
}

/// The same with further headers, each with its line end.
pub(crate) fn request_with(operation: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = head(operation, &format!("{headers}content-length: {}\r\n", body.len()));
    bytes.extend_from_slice(body);
    bytes
}

/// A request's head, without a length.
pub(crate) fn head(operation: &str, headers: &str) -> Vec<u8> {
    let content_type = Encoding::Json.content_type();
    format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n\
         x-amz-target: Kinesis_20131202.{operation}\r\n{headers}\r\n"
    )
    .into_bytes()
}

/// Events of so many bytes, until the client is gone or takes nothing for `patience`.
pub(crate) async fn send_events(
    sender: &EventSender,
    bytes: usize,
    patience: Duration,
) -> (usize, EventSendError) {
    let payload = Bytes::from(vec![b'e'; bytes]);
    let content_type = Encoding::Json.content_type();
    let message = event("SubscribeToShardEvent", content_type, payload).expect("a small payload");
    let mut sent = 0;
    loop {
        match sender.send_within(message.clone(), patience).await {
            Ok(()) => sent += 1,
            Err(error) => return (sent, error),
        }
    }
}
