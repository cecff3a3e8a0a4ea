//! A whole router in the process of the test: node, store, catalog, reconciler, service and server
//! on a port of its own, and a small client that speaks JSON.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use ring::{digest, hmac};
use serde_json::{Value, json};
use thalweg_node::{Node, NodeConfig};
use thalweg_router::control::NowMs;
use thalweg_router::control::catalog::{Catalog, Stream};
use thalweg_router::control::nodes;
use thalweg_router::control::reconciler::{Reconciler, ShardSettings};
use thalweg_router::control::record::StreamName;
use thalweg_router::control::store::Store;
use thalweg_router::control::store::embedded::{EmbeddedOptions, EmbeddedStore};
use thalweg_router::kinesis::check::check_output;
use thalweg_router::kinesis::credentials::Credentials;
use thalweg_router::kinesis::model::model;
use thalweg_router::kinesis::server::{Limits, Server, ServerConfig};
use thalweg_router::kinesis::service::{Ground, Service, ServiceSettings};
use thalweg_router::kinesis::sigv4::Authenticator;
use thalweg_router::metrics::router::RouterCollector;
use thalweg_router::route::{AnswerMemory, Fetcher, LinkLimits, NodeLinks, Writer, WriterConfig};
use thalweg_wire::control::ShardLimits;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::prometheus::Scrape;
use super::{BACKOFF, PATIENCE, data_directory};

/// Whose everything is without authentication.
pub(crate) const ACCOUNT: &str = "123456789012";
/// Where everything is unless a client says otherwise.
pub(crate) const REGION: &str = "us-east-1";

/// How a router of a test is set up.
pub(crate) struct RouterOptions {
    pub(crate) service: ServiceSettings,
    /// Write limits of shards.
    pub(crate) shard_limits: Option<ShardLimits>,
    /// The credentials file's text; without, everybody is let in as [`ACCOUNT`]'s root user.
    pub(crate) credentials: Option<String>,
    pub(crate) cores: usize,
    /// Of the node's logs: how many shards a core has room for follows from it.
    pub(crate) segment_bytes: u64,
    /// Bytes of what is read and not yet part of an answer.
    pub(crate) read_bytes: usize,
    /// Bytes of answers.
    pub(crate) answers_bytes: usize,
    /// Bytes on their way to subscribers.
    pub(crate) subscribe_bytes: usize,
    /// Whether intents are brought about; without, streams stay as they were recorded.
    pub(crate) reconciles: bool,
}

impl Default for RouterOptions {
    /// As in production, but for the rates of calls: tests come quicker than people.
    fn default() -> RouterOptions {
        RouterOptions {
            service: ServiceSettings { limits: false, ..ServiceSettings::default() },
            shard_limits: Some(ShardLimits::KINESIS),
            credentials: None,
            cores: 1,
            segment_bytes: 32 << 20,
            read_bytes: 64 << 20,
            answers_bytes: Limits::default().answers_bytes_max,
            subscribe_bytes: 64 << 20,
            reconciles: true,
        }
    }
}

/// See the module. To be used within a tokio runtime.
pub(crate) struct TestRouter {
    directory: Option<tempfile::TempDir>,
    node: Option<Node>,
    server: Server,
    tasks: Vec<JoinHandle<()>>,
    /// How far ahead of the machine's clock the router's is, milliseconds.
    ahead_ms: Arc<AtomicU64>,
    pub(crate) store: EmbeddedStore,
    pub(crate) catalog: Arc<Catalog>,
    /// The node as the router sees it.
    pub(crate) known_node: Arc<nodes::Node>,
    pub(crate) writer: Writer,
    pub(crate) fetcher: Fetcher,
    pub(crate) now_ms: NowMs,
}

impl TestRouter {
    /// One with the default options, on a new directory.
    pub(crate) async fn start() -> TestRouter {
        TestRouter::start_with(RouterOptions::default()).await
    }

    pub(crate) async fn start_with(options: RouterOptions) -> TestRouter {
        TestRouter::start_in(data_directory(), options).await
    }

    /// One on a directory that another has left, see [`TestRouter::stop`].
    pub(crate) async fn start_in(
        directory: tempfile::TempDir,
        options: RouterOptions,
    ) -> TestRouter {
        let node = Node::start(NodeConfig {
            data_dirs: vec![directory.path().join("node")],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cores: options.cores,
            memory_bytes: options.cores as u64 * (96 << 20),
            segment_bytes: options.segment_bytes,
            prefill_bytes: 0,
            ..NodeConfig::default()
        })
        .expect("the node starts");
        let path = directory.path().join("store");
        let store = EmbeddedStore::open(&path, EmbeddedOptions::default())
            .expect("the store can be opened");

        let limits = LinkLimits { backoff: BACKOFF, ..LinkLimits::default() };
        let read_memory = AnswerMemory::new(options.read_bytes);
        let command_links = NodeLinks::new(limits, AnswerMemory::new(0));
        let known_node = nodes::Node::new(node.addresses()[0], command_links);
        known_node.learn().await.expect("the node tells what it has");
        let (catalog, watch) = Catalog::open(&store).await.expect("the store can be read");
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let of_clock = ahead_ms.clone();
        let now_ms: NowMs = Arc::new(move || machine_ms() + of_clock.load(Ordering::Relaxed));

        let follower = catalog.clone();
        let settings =
            ShardSettings { limits: options.shard_limits, generation: store.generation() };
        let (of_reconciler, of_node) = (catalog.clone(), known_node.clone());
        let reconciler =
            Reconciler::new(store.clone(), of_reconciler, of_node, now_ms.clone(), settings);
        let mut tasks = vec![tokio::spawn(async move {
            let ended = follower.follow(watch).await;
            panic!("the catalog is not kept up any more: {ended:?}");
        })];
        if options.reconciles {
            tasks.push(tokio::spawn(reconciler.run()));
        }

        let config = WriterConfig { link: limits, patience: PATIENCE, ..WriterConfig::default() };
        let writer = Writer::new(known_node.clone(), config);
        let read_routes = Arc::new(nodes::ReadRoutes(known_node.clone()));
        let read_links = NodeLinks::new(limits, read_memory.clone());
        let fetcher = Fetcher::new(read_routes.clone(), read_links, Duration::from_secs(10));
        let subscribe_memory = AnswerMemory::new(options.subscribe_bytes);
        let subscribe_links = NodeLinks::new(limits, subscribe_memory.clone());
        let subscribe_fetcher = Fetcher::new(read_routes, subscribe_links, Duration::from_secs(10));
        let authenticator = match &options.credentials {
            None => Authenticator::open(ACCOUNT, REGION).expect("an account"),
            Some(text) => Authenticator::new(
                Credentials::from_document(text).expect("credentials of the test"),
            ),
        };
        let ground = Ground {
            store: store.clone(),
            catalog: catalog.clone(),
            node: known_node.clone(),
            writer: writer.clone(),
            fetcher: fetcher.clone(),
            subscribe_fetcher,
            authenticator,
            now_ms: now_ms.clone(),
        };
        let service = Service::new(ground, options.service);
        let shown = RouterCollector {
            operations: service.operation_counts(),
            catalog: catalog.clone(),
            writer: writer.clone(),
            read_memory,
            subscribe_memory,
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let metrics = Some(shown.into_text(Vec::new()));
        let limits = Limits { answers_bytes_max: options.answers_bytes, ..Limits::default() };
        let config = ServerConfig { metrics, limits, ..ServerConfig::plain(listen) };
        let server = Server::start(config, service).expect("the server starts");
        TestRouter {
            directory: Some(directory),
            node: Some(node),
            server,
            tasks,
            ahead_ms,
            store,
            catalog,
            known_node,
            writer,
            fetcher,
            now_ms,
        }
    }

    /// Ends it in good order; what is left is in the directory, for another to go on with.
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        self.end();
        let directory = self.directory.take().expect("it is there until the end");
        let store = self.store.clone();
        // Its service and tasks hold the store, and end by and by.
        drop(self);
        store.close().await;
        directory
    }

    fn end(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(node) = self.node.take() {
            node.stop();
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// What it shows of itself, held against the format.
    pub(crate) async fn metrics(&self) -> Scrape {
        let (status, text) = get_metrics(self.address()).await;
        assert_eq!(status, 200, "{text}");
        Scrape::parse(&text).unwrap_or_else(|wrong| panic!("{wrong} in\n{text}"))
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs until the end")
    }

    /// Ends the node alone: the router cannot ask it any more.
    pub(crate) fn stop_node(&mut self) {
        self.node.take().expect("it runs").stop();
    }

    /// Moves the router's clock on. The node's stays as it is.
    pub(crate) fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// A client that does not sign; its calls are for [`ACCOUNT`] in [`REGION`].
    pub(crate) fn client(&self) -> TestClient {
        TestClient {
            address: self.address(),
            region: REGION.to_owned(),
            key: None,
            now_ms: self.now_ms.clone(),
        }
    }

    /// The name of a stream of the tests' account and region.
    pub(crate) fn name_of(stream: &str) -> StreamName {
        StreamName {
            account_id: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            name: stream.to_owned(),
        }
    }

    /// A stream as the router sees it; it must be there.
    #[track_caller]
    pub(crate) fn stream(&self, stream: &str) -> Arc<Stream> {
        self.catalog.stream(&TestRouter::name_of(stream)).expect("there is such a stream")
    }

    /// Creates a provisioned stream and waits until it is active.
    pub(crate) async fn create_stream(&self, stream: &str, shards: u32) {
        let client = self.client();
        client.call("CreateStream", json!({ "StreamName": stream, "ShardCount": shards })).await;
        client.wait_until_active(stream).await;
    }
}

impl Drop for TestRouter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks for metrics; answers status and text.
pub(crate) async fn get_metrics(address: SocketAddr) -> (u16, String) {
    let socket = TcpStream::connect(address).await.expect("the server listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("HTTP/1.1");
    let carrier = tokio::spawn(connection);
    let request = hyper::Request::get("/metrics").header("host", "localhost");
    let request = request.body(Full::new(Bytes::new())).expect("a request");
    let answer = sender.send_request(request).await.expect("an answer comes");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("the answer is whole").to_bytes();
    carrier.abort();
    (status, String::from_utf8(body.to_vec()).expect("the answer is text"))
}

fn machine_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis() as u64
}

/// An error that the API answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    /// `__type`.
    pub(crate) kind: String,
    pub(crate) message: String,
}

/// A client of the API in JSON 1.1 over HTTP/1.1, a connection a call.
#[derive(Clone)]
pub(crate) struct TestClient {
    address: SocketAddr,
    region: String,
    /// Access key id and secret.
    key: Option<(String, String)>,
    now_ms: NowMs,
}

/// Whether an operation's model has an error, or all operations do (API reference, "Common Error
/// Types", and what comes before an operation is known).
fn is_declared(operation: &str, kind: &str) -> bool {
    const COMMON: [&str; 12] = [
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignatureException",
        "InternalFailure",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "RequestTimeoutException",
        "SerializationException",
        "ServiceUnavailable",
        "UnknownOperationException",
        "UnrecognizedClientException",
        "ValidationException",
    ];
    let own = model().operation(operation).into_iter().flat_map(|described| &described.errors);
    COMMON.contains(&kind) || own.into_iter().any(|id| model().shape(*id).name == kind)
}

/// An entry of a credentials file: a user of an account with its name for id. `more` are further
/// lines, as policies.
pub(crate) fn access_key(id: &str, account: &str, more: &str) -> String {
    format!(
        "[[key]]\naccess_key_id = \"{id}\"\nsecret_access_key = \"{}\"\n\
         account_id = \"{account}\"\nuser = \"{id}\"\n{more}\n",
        secret_of(id)
    )
}

fn secret_of(id: &str) -> String {
    format!("0123456789abcdef{id}")
}

impl TestClient {
    /// The same, signing with an access key.
    pub(crate) fn with_key(&self, id: &str, secret: &str) -> TestClient {
        TestClient { key: Some((id.to_owned(), secret.to_owned())), ..self.clone() }
    }

    /// The same, signing with a key of [`access_key`].
    pub(crate) fn with_access_key(&self, id: &str) -> TestClient {
        self.with_key(id, &secret_of(id))
    }

    /// The same in another region, which only who signs can name.
    pub(crate) fn in_region(&self, region: &str) -> TestClient {
        let key = self.key.clone().or_else(|| Some(("KEY".to_owned(), "no secret".to_owned())));
        TestClient { region: region.to_owned(), key, ..self.clone() }
    }

    /// Calls an operation, which must succeed. What it answers is held against the model.
    #[track_caller]
    pub(crate) fn call(
        &self,
        operation: &str,
        input: Value,
    ) -> impl Future<Output = Value> + Send + use<> {
        let (client, operation) = (self.clone(), operation.to_owned());
        let caller = std::panic::Location::caller();
        async move {
            let what = shown(&operation, &input);
            match client.try_call(&operation, input).await {
                Ok(output) => output,
                Err(failure) => panic!("{caller}: {what}: {failure:?}"),
            }
        }
    }

    /// Calls an operation, which must fail with this type; answers the message.
    #[track_caller]
    pub(crate) fn fail(
        &self,
        operation: &str,
        input: Value,
        kind: &str,
    ) -> impl Future<Output = String> + Send + use<> {
        let (client, operation, kind) = (self.clone(), operation.to_owned(), kind.to_owned());
        let caller = std::panic::Location::caller();
        async move {
            let what = shown(&operation, &input);
            match client.try_call(&operation, input).await {
                Ok(output) => panic!("{caller}: {what} succeeds: {output}"),
                Err(failure) => {
                    assert_eq!(failure.kind, kind, "{caller}: {what}: {failure:?}");
                    failure.message
                }
            }
        }
    }

    /// Calls an operation.
    pub(crate) async fn try_call(&self, operation: &str, input: Value) -> Result<Value, Failure> {
        let body = Bytes::from(input.to_string());
        let socket = TcpStream::connect(self.address).await.expect("the server listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("HTTP/1.1");
        let carrier = tokio::spawn(connection);
        let request = self.request(operation, &body).body(Full::new(body)).expect("a request");
        let answered = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let answer = answered.expect("an answer comes in time").expect("an answer comes");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("the answer is whole").to_bytes();
        carrier.abort();
        let value: Value = match body.is_empty() {
            true => json!({}),
            false => serde_json::from_slice(&body).expect("the answer is JSON"),
        };
        if status.is_success() {
            let described = model().operation(operation).expect("an operation of the model");
            assert_eq!(check_output(described, &value), Vec::<String>::new(), "{value}");
            return Ok(value);
        }
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        assert!(is_declared(operation, &text("__type")), "{operation}: {value}");
        Err(Failure { status: status.as_u16(), kind: text("__type"), message: text("message") })
    }

    /// Waits until a stream is active; answers its summary.
    pub(crate) async fn wait_until_active(&self, stream: &str) -> Value {
        let started = std::time::Instant::now();
        loop {
            let input = json!({ "StreamName": stream });
            let summary = self.call("DescribeStreamSummary", input).await;
            if summary["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE" {
                return summary["StreamDescriptionSummary"].clone();
            }
            assert!(started.elapsed() < PATIENCE, "{stream} does not become active: {summary}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until there is no such stream.
    pub(crate) async fn wait_until_gone(&self, stream: &str) {
        let started = std::time::Instant::now();
        loop {
            let input = json!({ "StreamName": stream });
            match self.try_call("DescribeStreamSummary", input).await {
                Ok(summary) => {
                    assert!(started.elapsed() < PATIENCE, "{stream} does not go: {summary}");
                }
                Err(failure) => {
                    assert_eq!(failure.kind, "ResourceNotFoundException", "{failure:?}");
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn request(&self, operation: &str, body: &[u8]) -> hyper::http::request::Builder {
        let target = format!("Kinesis_20131202.{operation}");
        let host = self.address.to_string();
        let request = hyper::Request::post("/")
            .header("host", &host)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", &target);
        let Some((id, secret)) = &self.key else { return request };
        let time = basic_time((self.now_ms)() / 1000);
        let (date, region) = (&time[..8], &self.region);
        let scope = format!("{date}/{region}/kinesis/aws4_request");
        let signed = "host;x-amz-date;x-amz-target";
        let canonical = format!(
            "POST\n/\n\nhost:{host}\nx-amz-date:{time}\nx-amz-target:{target}\n\n{signed}\n{}",
            sha256(body)
        );
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [date, region, "kinesis", "aws4_request"] {
            key = hmac_sha256(&key, part.as_bytes());
        }
        let signature = hexadecimal(&hmac_sha256(&key, to_sign.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={signed}, \
             Signature={signature}"
        );
        request.header("x-amz-date", time).header("authorization", authorization)
    }
}

/// A call for a person, and not the data of its records.
fn shown(operation: &str, input: &Value) -> String {
    format!("{operation} of {}", input.to_string().chars().take(500).collect::<String>())
}

/// As `20131202T000000Z`.
fn basic_time(seconds: u64) -> String {
    let time = aws_smithy_types::DateTime::from_secs(seconds as i64);
    let text =
        time.fmt(aws_smithy_types::date_time::Format::DateTime).expect("a year of four digits");
    text.replace(['-', ':'], "")
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
