//! `thalweg router`: the Kinesis API before a storage node elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use prometheus_client::collector::Collector;
use thalweg_router::{Access, Router, RouterConfig, RouterError, TlsFiles};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::Failure;
use crate::signals::{Stop, stop_on_signals};

/// Arguments of `thalweg router`.
#[derive(Args, Debug)]
pub(crate) struct RouterArgs {
    /// Address of any core of the storage node. The way there must be trusted: nodes ask nobody
    /// who they are
    #[arg(long, env = "THALWEG_ROUTER_NODE", value_name = "ADDRESS:PORT")]
    node: SocketAddr,

    /// Address and port to serve the API on; [::] takes IPv4 as well
    #[arg(
        long,
        env = "THALWEG_ROUTER_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "[::]:4567"
    )]
    listen: SocketAddr,

    /// File of the metadata store, made when it is missing. It belongs to the node's data
    #[arg(long, env = "THALWEG_ROUTER_STORE", value_name = "FILE")]
    store: PathBuf,

    /// File of the access keys, TOML, mode 0600
    #[arg(long, env = "THALWEG_ROUTER_CREDENTIALS", value_name = "FILE")]
    credentials: PathBuf,

    /// Certificate chain to serve TLS with, PEM, the server's own first [default: no TLS]
    #[arg(long, env = "THALWEG_ROUTER_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// Its private key, PEM
    #[arg(long, env = "THALWEG_ROUTER_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,

    /// Address and port to serve metrics on, for Prometheus, under the path /metrics: to whoever can
    /// connect, without TLS. Without it they are served with the API
    #[arg(long, env = "THALWEG_ROUTER_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,

    /// No limits of shards, of calls and of counts, but for a million shards a stream: for raw
    /// benchmarks
    #[arg(long)]
    unlimited: bool,
}

impl RouterArgs {
    /// What a router is started with.
    fn config(&self) -> RouterConfig {
        let access = Access::Keys { credentials: self.credentials.clone() };
        let files = self.tls_certificate.clone().zip(self.tls_key.clone());
        RouterConfig {
            tls: files.map(|(certificate, key)| TlsFiles { certificate, key }),
            limits: !self.unlimited,
            metrics_listen: self.metrics_listen,
            ..RouterConfig::new(self.listen, self.store.clone(), access)
        }
    }

    /// Serves until a signal comes.
    ///
    /// # Errors
    /// Why the router did not start, or had to end.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let config = self.config();
        if config.tls.is_none() && !config.listen.ip().is_loopback() {
            warn!("without TLS, whoever is on the way can read what is sent");
        }
        let stop = stop_on_signals().map_err(Failure::Signals)?;
        let on_start = |router: &Router| {
            info!("the API is served on {}", router.address());
            if let Some(address) = router.metrics_address() {
                info!("metrics are served on http://{address}/metrics");
            }
        };
        serve_router(config, self.node, stop, Vec::new(), on_start)
    }
}

/// Runs a router until a signal asks it to stop, or it cannot go on. Its metrics show `more` than
/// its own. `on_start` is told of it once it serves.
///
/// # Errors
/// Why the router did not start, or had to end.
pub(crate) fn serve_router(
    config: RouterConfig,
    node: SocketAddr,
    stop: Arc<Stop>,
    more: Vec<Box<dyn Collector>>,
    on_start: impl FnOnce(&Router),
) -> Result<(), Failure> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().build().map_err(Failure::Threads)?;
    runtime.block_on(async {
        let mut router = Router::start_showing(config, node, more).await?;
        stop.serves();
        on_start(&router);
        let asked = asked(stop).map_err(Failure::Threads)?;
        let ended: Option<RouterError> = tokio::select! {
            _ = asked => None,
            error = router.ended() => Some(error),
        };
        info!("stopping: calls that are under way come to their end");
        let drained = router.stop().await;
        if drained.connections_cut > 0 {
            warn!(connections = drained.connections_cut, "cut off: they took too long");
        }
        ended.map_or(Ok(()), |error| Err(error.into()))
    })
}

/// Tells when a signal has asked to stop.
fn asked(stop: Arc<Stop>) -> std::io::Result<oneshot::Receiver<()>> {
    let (to, asked) = oneshot::channel();
    std::thread::Builder::new().name("stop".into()).spawn(move || {
        stop.wait();
        // Nobody waits any more when the router has ended by itself.
        let _ = to.send(());
    })?;
    Ok(asked)
}
