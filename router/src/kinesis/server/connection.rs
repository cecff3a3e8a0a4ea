//! A connection: TLS, the version of HTTP, and the limits that hyper keeps or is watched for.

use std::fmt::Display;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Api;
use super::connections::OpenConnection;
use super::counts::Counters;
use super::exchange::{Activity, Cut, EXCHANGE, Exchange};
use super::front::{Front, Line};
use super::limits::{HEAD_BYTES_MAX, Limits};
use super::tls::ALPN_HTTP2;

/// Bytes of bodies that an HTTP/2 client may send before they are received: what a connection can
/// make the server hold without asking, and with a round trip of 1 ms still 1 GB/s.
const HTTP2_WINDOW_BYTES: u32 = 1 << 20;

/// Bytes of a frame of HTTP/2: fewer, larger frames of a body cost less, and a frame is buffered
/// as a whole.
const HTTP2_FRAME_BYTES_MAX: u32 = 64 << 10;

/// Streams that a client may open and reset before the server has looked at them (CVE-2023-44487,
/// "rapid reset"); then the connection is closed. Streams that were looked at cost the client as
/// much as the server.
const HTTP2_PENDING_RESETS_MAX: usize = 20;

/// Streams that the server may have to reset for errors of the client (RUSTSEC-2024-0003); then
/// the connection is closed.
const HTTP2_ERROR_RESETS_MAX: usize = 256;

/// Bytes that hyper may hold of what an HTTP/2 stream is to send.
const HTTP2_SEND_BYTES_MAX: usize = 256 << 10;

/// How often an HTTP/2 client is asked if it is still there, and how long it may take to answer.
/// An event stream to a client that vanished is found out so.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIME: Duration = Duration::from_secs(20);

/// How long a connection that ends may take to tell its client.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// What HTTP/2 connections begin with (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection needs beside the front.
#[derive(Clone)]
pub(super) struct Surroundings {
    /// All tasks of the server.
    pub(super) tasks: TaskTracker,
    /// Cancelled when nothing is waited for any more.
    pub(super) kill: CancellationToken,
    pub(super) tls: Option<TlsAcceptor>,
}

/// Serves a connection until it ends, or until the server does.
pub(super) async fn serve<A: Api>(
    front: Arc<Front<A>>,
    surroundings: Surroundings,
    socket: TcpStream,
    peer: SocketAddr,
    connection: &OpenConnection,
) {
    let activity = connection.activity.clone();
    let socket = Watched::new(socket, activity.clone());
    let Some(acceptor) = surroundings.tls.clone() else {
        let line = Line { peer, is_tls: false };
        return serve_http(front, surroundings, connection, socket, line).await;
    };
    let handshake = timeout(front.limits.head_time, acceptor.accept(socket));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        () = front.drain.cancelled() => return,
        () = connection.leave.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => {
            activity.begin(stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2));
            let line = Line { peer, is_tls: true };
            serve_http(front, surroundings, connection, stream, line).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => {
            front.counters.clients_cut.add_one();
            tracing::debug!(%peer, "a TLS handshake took too long");
        }
    }
}

async fn serve_http<A: Api, S>(
    front: Arc<Front<A>>,
    surroundings: Surroundings,
    open: &OpenConnection,
    stream: S,
    line: Line,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (limits, activity) = (&front.limits, &open.activity);
    let spawner = Spawner {
        activity: activity.clone(),
        counters: front.counters.clone(),
        tasks: surroundings.tasks,
        kill: surroundings.kill.clone(),
        stall_time: limits.stall_time,
    };
    let builder = builder(spawner, limits.requests_per_connection_max);
    let service = {
        let front = front.clone();
        service_fn(move |request: Request<Incoming>| front.clone().answer(line, request))
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Requests of HTTP/1.1 are polled with the connection; those of HTTP/2 have their own exchange.
    let exchange = Exchange::new(activity.clone(), false);
    let first = tokio::select! {
        biased;
        result = drive(connection.as_mut(), &exchange) => return note_end(line, result),
        () = surroundings.kill.cancelled() => return,
        () = front.drain.cancelled() => None,
        () = open.leave.cancelled() => None,
        cut = activity.watch(limits) => Some(cut),
        () = exchange.overdue(limits.stall_time) => Some(Cut::Stalled),
    };
    if matches!(first, Some(Cut::SlowHead | Cut::Stalled)) {
        return cut_off(&front, line, first);
    }
    // What is under way comes to its end, and then the client has some time to see it.
    connection.as_mut().graceful_shutdown();
    activity.settle();
    let closing = Limits { idle_time: CLOSE_TIME, ..limits.clone() };
    let last = tokio::select! {
        biased;
        result = drive(connection.as_mut(), &exchange) => return note_end(line, result),
        () = surroundings.kill.cancelled() => return,
        cut = activity.watch(&closing) => Some(cut),
        () = exchange.overdue(limits.stall_time) => Some(Cut::Stalled),
    };
    if last != Some(Cut::Idle) {
        cut_off(&front, line, last);
    }
}

/// Polls a connection of HTTP/1.1 within its exchange.
fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    exchange: &Arc<Exchange>,
) -> impl Future<Output = C::Output> {
    poll_fn(move |context| {
        EXCHANGE.sync_scope(exchange.clone(), || connection.as_mut().poll(context))
    })
}

fn cut_off<A>(front: &Front<A>, line: Line, cut: Option<Cut>) {
    front.counters.clients_cut.add_one();
    tracing::debug!(peer = %line.peer, ?cut, "a client was cut off");
}

fn note_end<E: Display>(line: Line, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::debug!(peer = %line.peer, %error, "a connection failed");
    }
}

fn builder(spawner: Spawner, requests_max: u32) -> auto::Builder<Spawner> {
    let mut builder = auto::Builder::new(spawner);
    // Headers are limited to 100 by hyper itself. Heads have their time from `Activity`, because
    // hyper's would be that of idle connections too. A client that has said all it has to say may
    // still wait for the answer (RFC 9112, 9.6, on half-closed connections).
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(requests_max)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(HTTP2_ERROR_RESETS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_frame_size(HTTP2_FRAME_BYTES_MAX)
        .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIME);
    builder
}

/// Runs the streams of an HTTP/2 connection, each a task of its own that is watched.
#[derive(Clone)]
struct Spawner {
    activity: Arc<Activity>,
    counters: Arc<Counters>,
    tasks: TaskTracker,
    kill: CancellationToken,
    stall_time: Duration,
}

impl<F> Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let exchange = Exchange::new(self.activity.clone(), true);
        let Spawner { counters, kill, stall_time, .. } = self.clone();
        let watched = async move {
            let watch = exchange.clone();
            tokio::select! {
                biased;
                () = EXCHANGE.scope(exchange, stream) => {}
                () = watch.overdue(stall_time) => {
                    counters.clients_cut.add_one();
                }
                () = kill.cancelled() => {}
            }
        };
        self.tasks.spawn(watched);
    }
}

/// A socket that notes what happens to it.
struct Watched {
    socket: TcpStream,
    activity: Arc<Activity>,
    /// Bytes of HTTP/2's preface that came, until it is clear which version this is.
    preface_bytes: Option<usize>,
}

impl Watched {
    fn new(socket: TcpStream, activity: Arc<Activity>) -> Watched {
        Watched { socket, activity, preface_bytes: Some(0) }
    }

    fn note_received(&mut self, bytes: &[u8]) {
        self.activity.received();
        let Some(seen) = self.preface_bytes else { return };
        let expected = &HTTP2_PREFACE[seen..];
        let compared = expected.len().min(bytes.len());
        if bytes[..compared] != expected[..compared] {
            self.preface_bytes = None;
        } else if compared == expected.len() {
            self.preface_bytes = None;
            self.activity.is_http2();
        } else {
            self.preface_bytes = Some(seen + compared);
        }
    }

    fn note_sent(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(_)) => self.activity.sent(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.blocked(),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(context, buffer))?;
        let bytes = &buffer.filled()[before..];
        if !bytes.is_empty() {
            this.note_received(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.socket).poll_write(context, bytes);
        this.note_sent(&outcome);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.socket).poll_write_vectored(context, pieces);
        this.note_sent(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}
