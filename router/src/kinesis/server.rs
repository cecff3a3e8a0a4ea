//! The transport: HTTP/1.1 and HTTP/2, with TLS or without, on one port.
//!
//! A request is received as a whole, within limits, and handed to an [`Api`]; its answer is one
//! document or an event stream. What the operations mean, and who may call them, is not known
//! here. Without TLS, HTTP/2 is spoken to clients that begin with it (RFC 9113, 3.3): SDKs of
//! JavaScript and Java do so with Kinesis.

mod answer;
mod api;
mod connection;
mod connections;
mod counts;
mod events;
mod exchange;
mod front;
mod intake;
mod limits;
mod room;
mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use api::{Api, ApiRequest, ApiResponse};
pub use connections::ARRIVALS_MAX;
pub use counts::{Refusals, ServerCounts};
pub use events::{EVENTS_BYTES_MAX, EventSendError, EventSender, EventStream, event_channel};
pub use limits::{ANSWER_BYTES_FREE, BODY_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX, REFUSALS_MAX};
pub use limits::{Limits, LimitsError};
pub use room::{AnswerRoom, CountedBytes};
pub use tls::{TlsError, TlsIdentity};

use connection::{Surroundings, serve};
use connections::Arrival;
use front::Front;

/// Where `GET` tells if the server is well: 200, or 503 while it is drained.
pub const HEALTH_PATH: &str = "/health";

/// Where `GET` gives metrics.
pub const METRICS_PATH: &str = "/metrics";

/// How they are encoded: the text format of Prometheus, which has a version of its own.
pub(crate) const METRICS_CONTENT_TYPE: &str =
    prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// Makes the text for [`METRICS_PATH`], in the text format of Prometheus. It is called for each
/// request, on a thread where it may take its time.
pub type MetricsText = Arc<dyn Fn(&ServerCounts) -> String + Send + Sync>;

/// Connections that the system may keep for the server until it accepts them.
const BACKLOG: u32 = 1024;

/// Pause after the system could not give a connection: it has none to spare at the moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a server is set up.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where it listens. `[::]` takes IPv4 as well.
    pub listen: SocketAddr,
    /// With TLS or, if `None`, without.
    pub tls: Option<TlsIdentity>,
    /// What it allows.
    pub limits: Limits,
    /// Serves [`METRICS_PATH`] if there is one. Whoever can connect can read it.
    pub metrics: Option<MetricsText>,
}

impl ServerConfig {
    /// A server without TLS and metrics, with the usual limits.
    pub fn plain(listen: SocketAddr) -> ServerConfig {
        ServerConfig { listen, tls: None, limits: Limits::default(), metrics: None }
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServerConfig")
            .field("listen", &self.listen)
            .field("tls", &self.tls)
            .field("limits", &self.limits)
            .field("metrics", &self.metrics.is_some())
            .finish()
    }
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The limits make no sense.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The address cannot be listened at.
    #[error(
        "cannot listen at {address} ({source}): is the address one of this machine, and its port \
         free and above 1023? Without IPv6, listen at 0.0.0.0 instead of [::]"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had to be cut off at the deadline; 0 if all came to their end.
    pub connections_cut: usize,
}

/// A server at work. Dropping it cuts everything off at once.
pub struct Server {
    local_addr: SocketAddr,
    drain: CancellationToken,
    surroundings: Surroundings,
    counts: Arc<dyn Fn() -> ServerCounts + Send + Sync>,
}

impl Server {
    /// Listens, and serves `api` from now on. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start<A: Api>(config: ServerConfig, api: A) -> Result<Server, StartError> {
        config.limits.check()?;
        let address = config.listen;
        let listening = listen(address).and_then(|listener| {
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        });
        let (listener, local_addr) =
            listening.map_err(|source| StartError::Listen { address, source })?;
        let front = Arc::new(Front::new(api, config.limits, config.metrics));
        let surroundings = Surroundings {
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
            tls: config.tls.map(|identity| TlsAcceptor::from(identity.config())),
        };
        let drain = front.drain.clone();
        let counted = front.clone();
        surroundings.tasks.spawn(accept(listener, front, surroundings.clone()));
        let counts = Arc::new(move || counted.counts());
        Ok(Server { local_addr, drain, surroundings, counts })
    }

    /// Where it listens: the port is the system's choice if it was 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What was counted so far.
    pub fn counts(&self) -> ServerCounts {
        (self.counts)()
    }

    /// Tells what was counted so far, whenever it is asked, for those who do not have the server.
    pub fn counts_source(&self) -> Arc<dyn Fn() -> ServerCounts + Send + Sync> {
        self.counts.clone()
    }

    /// Comes to an end: takes no more connections and requests, lets what is under way finish
    /// until the deadline, then cuts it off. Event streams end after what is queued. HTTP/2
    /// clients are told by GOAWAY, others by `Connection: close`.
    pub async fn drain(self, deadline: Duration) -> Drained {
        self.drain.cancel();
        self.surroundings.tasks.close();
        if timeout(deadline, self.surroundings.tasks.wait()).await.is_ok() {
            return Drained { connections_cut: 0 };
        }
        let connections_cut = self.counts().connections_open as usize;
        self.surroundings.kill.cancel();
        self.surroundings.tasks.wait().await;
        Drained { connections_cut }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain.cancel();
        self.surroundings.kill.cancel();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("local_addr", &self.local_addr).finish()
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        // The system's default is a setting: `[::]` means both here, whatever it is.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // A restart must not wait for connections of the run before to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept<A: Api>(listener: TcpListener, front: Arc<Front<A>>, surroundings: Surroundings) {
    let mut failures = 0u64;
    loop {
        let accepted = tokio::select! {
            biased;
            () = front.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                failures = 0;
                take(&front, &surroundings, socket, peer);
            }
            // The client was gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    let advice = "raise the limit of open files, or lower connections_max";
                    tracing::warn!(%error, failures, advice, "no connection can be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn take<A: Api>(
    front: &Arc<Front<A>>,
    surroundings: &Surroundings,
    socket: TcpStream,
    peer: SocketAddr,
) {
    let Some(arrival) = front.connections.admit() else { return note_refused(front) };
    if let Arrival::Waiting { .. } = &arrival {
        let displaced = front.counters.connections_displaced.add_one();
        if displaced.is_power_of_two() {
            let advice = "are many clients idle, or is somebody keeping others out?";
            tracing::warn!(displaced, advice, "connections_max are open: idle ones are closed");
        }
    }
    // Answers are written as a whole: nothing is gained by waiting for more.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a connection is gone already");
        return;
    }
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let (front, tasks) = (front.clone(), surroundings.tasks.clone());
    let surroundings = surroundings.clone();
    tasks.spawn(async move {
        let place = tokio::select! {
            place = arrival.place() => place,
            () = front.drain.cancelled() => return,
        };
        let Some(place) = place else { return note_refused(&front) };
        front.counters.connections_accepted.add_one();
        let connection = front.connections.open_in(place);
        serve(front, surroundings, socket, peer, &connection).await;
    });
}

fn note_refused<A>(front: &Front<A>) {
    let refused = front.counters.connections_refused.add_one();
    // Once for the first, then ever more rarely.
    if refused.is_power_of_two() {
        tracing::warn!(refused, "connections are refused: connections_max are open, none idle");
    }
}
