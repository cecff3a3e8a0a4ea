//! Signed requests over HTTP/1.1, one at a time on a connection, or over HTTP/2, several.
//!
//! Certificates are verified against those that the system trusts; nothing turns that off.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::credentials::Credentials;
use super::encode::Encoding;
use super::scan::{self, ScanError};
use super::sign::Signer;
use crate::error::BenchError;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Largest answer: GetRecords has 10 MiB of data and keys, more in base64 and with escapes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What an HTTP/2 peer may send before it is told that there is room: a GetRecords answer.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const X_AMZ_TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// Error types that say "later" (API reference, the operations' errors; SDK retry modes).
const THROTTLES: [&str; 8] = [
    "ProvisionedThroughputExceededException",
    "LimitExceededException",
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "KMSThrottlingException",
    "SlowDown",
];

/// The version of HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[serde(rename = "1.1")]
    One,
    /// HTTP/2; without TLS with prior knowledge (RFC 9113, section 3.3).
    #[serde(rename = "2")]
    Two,
}

/// A server of the API.
#[derive(Clone)]
pub struct Endpoint {
    authority: Authority,
    port: u16,
    /// What certificates are verified against; none without TLS.
    tls_roots: Option<Arc<RootCertStore>>,
}

/// How requests are made: a server, an access key, an encoding. What a thread needs for its
/// connections.
pub struct Client {
    endpoint: Endpoint,
    version: HttpVersion,
    encoding: Encoding,
    signer: RefCell<Signer>,
    /// Of requests over HTTP/2, which name the server there.
    uri: Uri,
}

/// From what [`Client`]s are made, on any thread.
#[derive(Clone)]
pub struct ClientPlan {
    /// The server.
    pub endpoint: Endpoint,
    /// The version of HTTP.
    pub version: HttpVersion,
    /// The encoding of bodies.
    pub encoding: Encoding,
    /// The access key.
    pub credentials: Credentials,
    /// The region that is signed for.
    pub region: String,
}

/// A connection, made when it is first needed, and again after it was lost.
pub struct Connection<'c> {
    client: &'c Client,
    sender: Option<Sender>,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// Why a call has no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// The server cannot be reached.
    #[error("{target} cannot be reached ({source}): does the server run, and listen there?")]
    Connect {
        /// Host and port.
        target: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke. The request may have been carried out.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// What the HTTP client says.
        reason: String,
    },
    /// No answer came. The request may have been carried out.
    #[error("no answer came within {} s", ANSWER.as_secs())]
    TimedOut,
    /// An answer is larger than any valid one.
    #[error("an answer has more than {} MiB", ANSWER_BYTES_MAX >> 20)]
    TooLarge,
    /// The server answered with an error.
    #[error("{kind}: {message} (status {status})")]
    Refused {
        /// The error's type, or the status where there is none.
        kind: String,
        /// What the server says.
        message: String,
        /// Status of HTTP.
        status: u16,
    },
    /// The answer is not one of the API.
    #[error("the answer is not one of the API: {0}")]
    Unreadable(#[from] ScanError),
    /// What a header has to carry cannot stand in one.
    #[error("{what} cannot stand in a header of HTTP: look for a blank or control character in it")]
    Header {
        /// Which.
        what: &'static str,
    },
}

impl CallError {
    /// What errors are counted by.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            CallError::Connect { .. } => "no connection",
            CallError::Lost { .. } => "connection lost",
            CallError::TimedOut => "no answer",
            CallError::TooLarge => "answer too large",
            CallError::Refused { kind, .. } => kind,
            CallError::Unreadable(_) => "unreadable answer",
            CallError::Header { .. } => "header",
        }
    }

    /// Whether the server asks to come again later, and has done nothing.
    #[must_use]
    pub fn is_throttle(&self) -> bool {
        match self {
            CallError::Refused { kind, status, .. } => {
                THROTTLES.contains(&kind.as_str()) || matches!(status, 429 | 503)
            }
            _ => false,
        }
    }

    /// Whether it is the connection that failed, and another may do.
    #[must_use]
    pub fn is_of_connection(&self) -> bool {
        matches!(self, CallError::Connect { .. } | CallError::Lost { .. } | CallError::TimedOut)
    }
}

/// Whether an error type, of a call or of a record, says "later".
#[must_use]
pub fn is_throttle_kind(kind: &str) -> bool {
    THROTTLES.contains(&kind)
}

impl Endpoint {
    /// Takes a URL apart: `http://HOST:PORT` or `https://HOST`.
    ///
    /// # Errors
    /// [`BenchError::Target`], [`BenchError::Certificates`].
    pub fn parse(url: &str) -> Result<Endpoint, BenchError> {
        // What stands before an @ may be a secret.
        let shown = url.rsplit('@').next().unwrap_or(url);
        let wrong = |what| BenchError::Target { url: shown.to_owned(), what };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        let parts = uri.into_parts();
        let scheme =
            parts.scheme.ok_or_else(|| wrong("it does not begin with http:// or https://"))?;
        let tls = match scheme.as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("it begins neither with http:// nor with https://")),
        };
        let authority = parts.authority.ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("keys do not belong into a URL: see --credentials"));
        }
        if parts.path_and_query.is_some_and(|path| path != "/") {
            return Err(wrong("the API is served at /: leave the path out"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let tls_roots = if tls { Some(system_roots()?) } else { None };
        Ok(Endpoint { authority, port, tls_roots })
    }

    /// Host and port, as the URL has them.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// The host without the brackets of IPv6.
    fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    fn connect_error(&self, source: io::Error) -> CallError {
        CallError::Connect { target: format!("{}:{}", self.authority.host(), self.port), source }
    }

    async fn connect(&self, version: HttpVersion) -> Result<Sender, CallError> {
        let connecting = async {
            let socket = TcpStream::connect((self.host(), self.port)).await?;
            socket.set_nodelay(true)?;
            let Some(roots) = &self.tls_roots else { return self.begin(version, socket).await };
            let name = ServerName::try_from(self.host().to_owned()).map_err(io::Error::other)?;
            let tls = tls_config(roots, version)?;
            let socket = TlsConnector::from(Arc::new(tls)).connect(name, socket).await?;
            let offered = socket.get_ref().1.alpn_protocol();
            if version == HttpVersion::Two && offered != Some(b"h2") {
                return Err(io::Error::other("it does not speak HTTP/2"));
            }
            self.begin(version, socket).await
        };
        let connected = timeout(CONNECT, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|source| self.connect_error(source))
    }

    async fn begin<T>(&self, version: HttpVersion, socket: T) -> io::Result<Sender>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(socket);
        // A connection that fails tells it to whoever waits for an answer on it.
        match version {
            HttpVersion::One => {
                let (sender, connection) =
                    http1::Builder::new().handshake(io).await.map_err(io::Error::other)?;
                tokio::spawn(connection);
                Ok(Sender::One(sender))
            }
            HttpVersion::Two => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.initial_stream_window_size(STREAM_WINDOW_BYTES);
                builder.initial_connection_window_size(CONNECTION_WINDOW_BYTES);
                let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
                tokio::spawn(connection);
                Ok(Sender::Two(sender))
            }
        }
    }
}

/// What the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
fn system_roots() -> Result<Arc<RootCertStore>, BenchError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let reason = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(BenchError::Certificates { reason });
    }
    Ok(Arc::new(roots))
}

fn tls_config(roots: &Arc<RootCertStore>, version: HttpVersion) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = match version {
        HttpVersion::One => vec![b"http/1.1".to_vec()],
        HttpVersion::Two => vec![b"h2".to_vec()],
    };
    Ok(config)
}

impl ClientPlan {
    /// A client for the current thread.
    #[must_use]
    pub fn client(&self) -> Client {
        let endpoint = self.endpoint.clone();
        let scheme = if endpoint.tls_roots.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(endpoint.authority.clone())
            .path_and_query("/")
            .build()
            .expect("parts of a URL are one");
        let signer = RefCell::new(Signer::new(self.credentials.clone(), &self.region));
        Client { endpoint, version: self.version, encoding: self.encoding, signer, uri }
    }

    /// The same with another encoding.
    #[must_use]
    pub fn with_encoding(&self, encoding: Encoding) -> ClientPlan {
        ClientPlan { encoding, ..self.clone() }
    }

    /// The same with another version of HTTP.
    #[must_use]
    pub fn with_version(&self, version: HttpVersion) -> ClientPlan {
        ClientPlan { version, ..self.clone() }
    }
}

impl Client {
    /// How bodies are encoded.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// A connection that is not made yet.
    #[must_use]
    pub fn connection(&self) -> Connection<'_> {
        Connection { client: self, sender: None }
    }

    fn request(
        &self,
        operation: &'static str,
        body: &Bytes,
    ) -> Result<http::Request<Full<Bytes>>, CallError> {
        let (target, authority) = (target_of(operation), self.endpoint.authority());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let content_type = self.encoding.content_type();
        let before = [("content-type", content_type), ("host", authority)];
        let mut signer = self.signer.borrow_mut();
        let signed = signer.sign(&before, &[("x-amz-target", &target)], body, now.as_secs());
        let value =
            |what, text: &str| HeaderValue::from_str(text).map_err(|_| CallError::Header { what });
        let mut request = http::Request::post("/")
            .header(CONTENT_TYPE, HeaderValue::from_static(content_type))
            .header(X_AMZ_TARGET, value("an operation", &target)?)
            .header(X_AMZ_DATE, value("a date", &signed.date)?)
            .header(
                AUTHORIZATION,
                value("the access key id, or the region,", &signed.authorization)?,
            );
        if let Some(token) = signer.session_token() {
            request = request.header(X_AMZ_SECURITY_TOKEN, value("the session token", token)?);
        }
        request = match self.version {
            HttpVersion::One => request.header(HOST, value("the host", authority)?),
            HttpVersion::Two => request.uri(self.uri.clone()),
        };
        Ok(request.body(Full::new(body.clone())).expect("all of it was looked at"))
    }
}

fn target_of(operation: &'static str) -> String {
    // The API's version (service model, `targetPrefix`).
    format!("Kinesis_20131202.{operation}")
}

impl Connection<'_> {
    /// Another sender of requests on the same connection, if that can be: over HTTP/2.
    ///
    /// # Errors
    /// [`CallError`] when there is none yet and it cannot be made.
    pub async fn share(&mut self) -> Result<Self, CallError> {
        let client = self.client;
        let sender = match self.sender().await? {
            Sender::One(_) => None,
            Sender::Two(sender) => Some(Sender::Two(sender.clone())),
        };
        Ok(Connection { client, sender })
    }

    /// Calls an operation; the answer's body is put into `answer`, which is emptied before.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(
        &mut self,
        operation: &'static str,
        body: &Bytes,
        answer: &mut Vec<u8>,
    ) -> Result<(), CallError> {
        let called = timeout(ANSWER, self.exchange(operation, body, answer)).await;
        let called = called.unwrap_or(Err(CallError::TimedOut));
        if called.as_ref().is_err_and(CallError::is_of_connection) {
            // What comes on it now belongs to nobody.
            self.sender = None;
        }
        let status = called?;
        if status == 200 { Ok(()) } else { Err(refusal(status, answer)) }
    }

    async fn exchange(
        &mut self,
        operation: &'static str,
        body: &Bytes,
        answer: &mut Vec<u8>,
    ) -> Result<u16, CallError> {
        answer.clear();
        let response = self.send(operation, body).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| lost(&error))?.into_data() else { continue };
            if answer.len() + data.len() > ANSWER_BYTES_MAX {
                return Err(CallError::TooLarge);
            }
            answer.extend_from_slice(&data);
        }
        Ok(status)
    }

    /// Sends a request and returns when the head of its answer has come, whatever it says.
    async fn send(
        &mut self,
        operation: &'static str,
        body: &Bytes,
    ) -> Result<http::Response<Incoming>, CallError> {
        let request = self.client.request(operation, body)?;
        let sent = match self.sender().await? {
            Sender::One(sender) => {
                sender.ready().await.map_err(|error| lost(&error))?;
                sender.send_request(request).await
            }
            Sender::Two(sender) => {
                sender.ready().await.map_err(|error| lost(&error))?;
                sender.send_request(request).await
            }
        };
        sent.map_err(|error| lost(&error))
    }

    /// Calls an operation whose answer is a stream; returns its body when the head has come.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn open_stream(
        &mut self,
        operation: &'static str,
        body: &Bytes,
    ) -> Result<Incoming, CallError> {
        let opened = timeout(ANSWER, async {
            let response = self.send(operation, body).await?;
            let status = response.status().as_u16();
            if status == 200 {
                return Ok(response.into_body());
            }
            let whole = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            let whole = whole
                .collect()
                .await
                .map_err(|error| CallError::Lost { reason: error.to_string() })?;
            Err(refusal(status, &whole.to_bytes()))
        });
        opened.await.unwrap_or(Err(CallError::TimedOut))
    }

    async fn sender(&mut self) -> Result<&mut Sender, CallError> {
        let is_closed = match &self.sender {
            None => true,
            Some(Sender::One(sender)) => sender.is_closed(),
            Some(Sender::Two(sender)) => sender.is_closed(),
        };
        if is_closed {
            self.sender = Some(self.client.endpoint.connect(self.client.version).await?);
        }
        Ok(self.sender.as_mut().expect("it was made if it was not there"))
    }
}

fn lost(error: &hyper::Error) -> CallError {
    use std::error::Error;
    let cause = error.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
    CallError::Lost { reason: format!("{error}{cause}") }
}

fn refusal(status: u16, body: &[u8]) -> CallError {
    match scan::error(body) {
        Some(error) => CallError::Refused { kind: error.kind, message: error.message, status },
        None => {
            let (kind, message) = (format!("status {status}"), scan::shown(body));
            CallError::Refused { kind, message, status }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn plan(url: &str) -> ClientPlan {
        ClientPlan {
            endpoint: Endpoint::parse(url).unwrap(),
            version: HttpVersion::One,
            encoding: Encoding::Json,
            credentials: Credentials {
                access_key_id: "THALEXAMPLE".into(),
                secret_access_key: "a-secret".into(),
                session_token: None,
            },
            region: "us-east-1".into(),
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, authority, host, port) in [
            ("http://127.0.0.1:4567", "127.0.0.1:4567", "127.0.0.1", 4567),
            ("http://localhost/", "localhost", "localhost", 80),
            ("http://[::1]:4567", "[::1]:4567", "::1", 4567),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!(
                (endpoint.authority(), endpoint.host(), endpoint.port),
                (authority, host, port)
            );
        }
        for wrong in [
            "",
            "127.0.0.1",
            "127.0.0.1:4567",
            "/",
            "ftp://a",
            "http://",
            "http://a/path",
            "http://a/?b",
            "http://key:secret@a/",
        ] {
            let Err(error) = Endpoint::parse(wrong) else { panic!("{wrong} is taken") };
            let error = error.to_string();
            assert!(error.contains("--target") && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    /// Answers each connection once with these bytes; returns what one call came to.
    fn answered(answer: &'static [u8]) -> Result<Vec<u8>, CallError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let mut read = 0;
                while !request[..read].ends_with(b"{}") {
                    read += socket.read(&mut request[read..]).await.unwrap();
                }
                let head = String::from_utf8_lossy(&request[..read]).to_ascii_lowercase();
                assert!(head.contains("x-amz-target: kinesis_20131202.liststreams"), "{head}");
                assert!(head.contains("authorization: aws4-hmac-sha256"), "{head}");
                socket.write_all(answer).await.unwrap();
            });
            let client = plan(&format!("http://{address}")).client();
            let mut body = b"before".to_vec();
            let mut connection = client.connection();
            let called =
                connection.call("ListStreams", &Bytes::from_static(b"{}"), &mut body).await;
            called.map(|()| body)
        })
    }

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let good = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        assert_eq!(good.unwrap(), b"{}");
        let refused = answered(
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 45\r\n\r\n\
              {\"__type\":\"a#LimitExceededException\",\"b\":[1]}",
        )
        .unwrap_err();
        assert!(refused.is_throttle(), "{refused}");
        assert_eq!(refused.kind(), "LimitExceededException");
        let busy = answered(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").unwrap_err();
        assert!(busy.is_throttle() && busy.to_string().contains("busy"), "{busy}");
        let other = answered(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n").unwrap_err();
        assert_eq!(other.kind(), "status 404");
        assert!(!other.is_throttle() && !other.is_of_connection());
    }

    #[test]
    fn a_connection_that_breaks_is_told() {
        let cut = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}").unwrap_err();
        assert!(cut.is_of_connection(), "{cut}");
        let nothing = answered(b"").unwrap_err();
        assert_eq!(nothing.kind(), "connection lost");
        let no_http = answered(b"hello\r\n\r\n").unwrap_err();
        assert_eq!(no_http.kind(), "connection lost");
    }

    /// Calls a server that has a certificate of its own for `localhost`.
    async fn call_over_tls(roots: RootCertStore, tls: Arc<rustls::ServerConfig>) -> CallResult {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            // A client that does not trust the certificate goes.
            let accepted = tokio_rustls::TlsAcceptor::from(tls).accept(socket).await;
            let Ok(mut socket) = accepted else { return };
            let (mut request, mut read) = ([0; 4096], 0);
            while !request[..read].ends_with(b"{}") {
                read += socket.read(&mut request[read..]).await.unwrap();
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
            socket.write_all(answer).await.unwrap();
        });
        let mut plan = plan(&format!("http://localhost:{port}"));
        plan.endpoint.tls_roots = Some(Arc::new(roots));
        let (client, mut answer) = (plan.client(), Vec::new());
        let body = Bytes::from_static(b"{}");
        client.connection().call("ListStreams", &body, &mut answer).await.map(|()| answer)
    }

    type CallResult = Result<Vec<u8>, CallError>;

    #[test]
    fn certificates_are_verified() {
        let identity = |host: &str| {
            let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key.into())
                .unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(made.cert.der().clone()).unwrap();
            (roots, Arc::new(tls))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (trusted, tls) = identity("localhost");
            assert_eq!(call_over_tls(trusted, tls.clone()).await.unwrap(), b"{}");
            let (others, _) = identity("localhost");
            let error = call_over_tls(others, tls).await.unwrap_err();
            assert_eq!(error.kind(), "no connection");
            assert!(error.to_string().contains("certificate"), "{error}");
            let (trusted, tls) = identity("another.host");
            let error = call_over_tls(trusted, tls).await.unwrap_err();
            assert!(error.to_string().contains("certificate"), "{error}");
        });
    }

    #[test]
    fn who_is_not_there_is_named() {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = plan(&format!("http://{free}")).client();
        let called = runtime.block_on(async {
            client.connection().call("ListStreams", &Bytes::new(), &mut Vec::new()).await
        });
        let error = called.unwrap_err();
        assert!(error.to_string().contains(&free.to_string()), "{error}");
        assert_eq!(error.kind(), "no connection");
    }
}
