//! Starting a router, and stopping it: what stands on what, in the order in which it is needed.
//!
//! The store is opened, the node is asked what it has, the catalog is read; then the tasks run that
//! keep it up and bring about what it says; then the API is served. A router without one of its
//! tasks would answer from what was once true: the end of any is the end of the router.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thalweg_wire::control::ShardLimits;
use thiserror::Error;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::config::{Access, RouterConfig, RouterConfigError, TlsFiles};
use crate::control::catalog::{Catalog, CatalogError};
use crate::control::nodes::{Node, NodeError, ReadRoutes};
use crate::control::reconciler::{Reconciler, ShardSettings};
use crate::control::retention::{Retention, RetentionSettings};
use crate::control::store::Store;
use crate::control::store::embedded::{EmbeddedOptions, EmbeddedStore, OpenError};
use crate::control::system_clock;
use crate::kinesis::credentials::{Credentials, CredentialsError};
use crate::kinesis::principal::PrincipalError;
use crate::kinesis::server::{
    ARRIVALS_MAX, Drained, Limits, MetricsText, Server, ServerConfig, StartError, TlsError,
    TlsIdentity,
};
use crate::kinesis::service::{Ground, Service, ServiceSettings};
use crate::kinesis::sigv4::Authenticator;
use crate::metrics::router::RouterCollector;
use crate::metrics::serve::serve;
use crate::route::{AnswerMemory, Fetcher, LinkLimits, NodeLinks, Writer, WriterConfig};

/// How long a node may take to be there when a router starts: both may be started at once, and a
/// node recovers its logs first.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before it is asked again.
const NODE_AGAIN: Duration = Duration::from_millis(200);
/// How long a node may take to answer a read, beyond what it was asked to wait.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// How long who reads metrics may take when a router stops.
const METRICS_DRAIN: Duration = Duration::from_secs(1);
/// Files open beside the connections of clients: the store, credentials and policies, links to the
/// cores of the node, and what the system's libraries need.
const OPEN_FILES_BESIDE: u64 = 512;

/// Why a router did not start, or had to end. Each says what to do.
#[derive(Debug, Error)]
pub enum RouterError {
    /// The configuration says what must not be.
    #[error(transparent)]
    Config(#[from] RouterConfigError),
    /// The metadata store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The access keys cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The account of whoever comes without a key is none.
    #[error(transparent)]
    Principal(#[from] PrincipalError),
    /// A file of the TLS identity cannot be read.
    #[error("{}: {source}: name a PEM file that this user may read", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Certificate and key are of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The node is not there, or answers what it should not.
    #[error(
        "no storage node can be used at {address} ({source}): is it running, and is that the \
             address of one of its cores?"
    )]
    Node {
        /// Where it was looked for.
        address: SocketAddr,
        /// What happened.
        source: NodeError,
    },
    /// What the store has cannot be read, or no longer be followed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The API cannot be served.
    #[error(transparent)]
    Server(#[from] StartError),
    /// A task ended that should not.
    #[error("the {task} ended ({reason}): the log says more; restart the router")]
    TaskEnded {
        /// Which.
        task: &'static str,
        /// How.
        reason: String,
    },
}

/// A running router. Dropping it cuts everything off.
pub struct Router {
    server: Server,
    /// Where metrics have an address of their own.
    metrics_server: Option<Server>,
    store: EmbeddedStore,
    tasks: JoinSet<RouterError>,
    drain_time: Duration,
}

impl Router {
    /// Starts a router before a node that is looked for at the address of any of its cores. When
    /// this returns, the API is served. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RouterError`].
    pub async fn start(config: RouterConfig, node: SocketAddr) -> Result<Router, RouterError> {
        Router::start_showing(config, node, Vec::new()).await
    }

    /// Starts a router whose metrics show more than its own: those of the node in the same process.
    ///
    /// # Errors
    /// [`RouterError`].
    pub async fn start_showing(
        config: RouterConfig,
        node: SocketAddr,
        more: Vec<Box<dyn Collector>>,
    ) -> Result<Router, RouterError> {
        config.check()?;
        raise_open_files();
        // What needs nobody else comes first: a mistake there is told at once.
        let tls = config.tls.as_ref().map(read_identity).transpose()?;
        let authenticator = authenticator(&config.access)?;
        let store = open_store(config.store.clone()).await?;

        let link_limits = LinkLimits::default();
        let command_links = NodeLinks::new(link_limits, AnswerMemory::new(0));
        let node = learned_node(node, command_links).await?;
        let (catalog, watch) = Catalog::open(&store).await?;
        let now_ms = system_clock();
        let settings = ShardSettings {
            limits: config.limits.then_some(ShardLimits::KINESIS),
            generation: store.generation(),
        };
        let reconciler =
            Reconciler::new(store.clone(), catalog.clone(), node.clone(), now_ms.clone(), settings);
        let mut tasks = JoinSet::new();
        let followed = catalog.clone();
        tasks.spawn(async move {
            match followed.follow(watch).await {
                Ok(()) => ended("catalog's watch", "without a reason"),
                Err(error) => error.into(),
            }
        });
        tasks.spawn(async move {
            reconciler.run().await;
            ended("reconciler", "without a reason")
        });

        let writer_config =
            WriterConfig { bytes_max: config.write_bytes_max, ..WriterConfig::default() };
        let writer = Writer::new(node.clone(), writer_config);
        let read_memory = AnswerMemory::new(config.read_bytes_max);
        let read_links = NodeLinks::new(link_limits, read_memory.clone());
        let read_routes = Arc::new(ReadRoutes(node.clone()));
        let fetcher = Fetcher::new(read_routes.clone(), read_links, READ_PATIENCE);
        let subscribe_memory = AnswerMemory::new(config.subscribe_bytes_max);
        let subscribe_links = NodeLinks::new(link_limits, subscribe_memory.clone());
        let subscribe_fetcher = Fetcher::new(read_routes, subscribe_links, READ_PATIENCE);
        let retention = Retention::new(
            store.clone(),
            catalog.clone(),
            node.clone(),
            fetcher.clone(),
            now_ms.clone(),
            RetentionSettings::default(),
        );
        tasks.spawn(async move {
            retention.run().await;
            ended("retention", "without a reason")
        });
        let ground = Ground {
            store: store.clone(),
            catalog: catalog.clone(),
            node,
            writer: writer.clone(),
            fetcher,
            subscribe_fetcher,
            authenticator,
            now_ms,
        };
        let settings = ServiceSettings { limits: config.limits, ..ServiceSettings::default() };
        let service = Service::new(ground, settings);
        let operations = service.operation_counts();
        let own = RouterCollector { operations, catalog, writer, read_memory, subscribe_memory };
        let text = own.into_text(more);
        let metrics = config.metrics_listen.is_none().then(|| text.clone());
        let server_config = ServerConfig { tls, metrics, ..ServerConfig::plain(config.listen) };
        let server = Server::start(server_config, service)?;
        let counts = server.counts_source();
        // What the API's server counted is of interest there, and not what this one does.
        let apart: MetricsText = Arc::new(move |_| text(&counts()));
        let metrics_server =
            config.metrics_listen.map(|listen| serve(listen, apart)).transpose()?;
        Ok(Router { server, metrics_server, store, tasks, drain_time: config.drain_time })
    }

    /// Where the API is served: the port is the system's choice if it was 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Where metrics are served, if that is an address of their own.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_server.as_ref().map(Server::local_addr)
    }

    /// Returns when the router cannot go on, and why. It should be stopped then.
    pub async fn ended(&mut self) -> RouterError {
        match self.tasks.join_next().await {
            Some(Ok(error)) => error,
            Some(Err(error)) => panicked(&error),
            // After it had told once.
            None => ended("router's last task", "it was told before"),
        }
    }

    /// Takes nothing more, lets calls that are under way end, closes the store. What a stream was
    /// to become is recorded, and the next router goes on with it.
    pub async fn stop(mut self) -> Drained {
        let drained = self.server.drain(self.drain_time).await;
        if let Some(server) = self.metrics_server {
            server.drain(METRICS_DRAIN).await;
        }
        self.tasks.shutdown().await;
        self.store.close().await;
        drained
    }
}

/// Takes what the system grants of open files. Its usual soft limit, 1024, is less than the
/// connections that are served: whoever opened those kept the store from its file as well.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where this is refused, what there was has to do.
    let _ = setrlimit(Resource::Nofile, raised);
    let connections = Limits::default().connections_max + ARRIVALS_MAX;
    let wanted = connections as u64 + OPEN_FILES_BESIDE;
    if let Some(granted) = getrlimit(Resource::Nofile).current.filter(|granted| *granted < wanted) {
        let advice = "raise the limit of open files (ulimit -n, LimitNOFILE)";
        tracing::warn!(granted, wanted, advice, "too many connections can use up all open files");
    }
}

fn ended(task: &'static str, reason: &str) -> RouterError {
    RouterError::TaskEnded { task, reason: reason.to_owned() }
}

fn panicked(error: &JoinError) -> RouterError {
    RouterError::TaskEnded { task: "task of the router", reason: error.to_string() }
}

fn read_identity(files: &TlsFiles) -> Result<TlsIdentity, RouterError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| RouterError::TlsFile { path: path.to_owned(), source })
    };
    Ok(TlsIdentity::from_pem(&read(&files.certificate)?, &read(&files.key)?)?)
}

fn authenticator(access: &Access) -> Result<Authenticator, RouterError> {
    match access {
        Access::Keys { credentials } => Ok(Authenticator::new(Credentials::open(credentials)?)),
        Access::Open { account_id, region } => Ok(Authenticator::open(account_id, region)?),
    }
}

/// It is read as a whole, which blocks.
async fn open_store(path: PathBuf) -> Result<EmbeddedStore, RouterError> {
    let within = tokio::runtime::Handle::current();
    let open = move || {
        let _within = within.enter();
        EmbeddedStore::open(&path, EmbeddedOptions::default())
    };
    match tokio::task::spawn_blocking(open).await {
        Ok(opened) => Ok(opened?),
        Err(error) => Err(panicked(&error)),
    }
}

/// The node, once it has told what it has.
async fn learned_node(address: SocketAddr, links: NodeLinks) -> Result<Arc<Node>, RouterError> {
    let node = Node::new(address, links);
    let started = Instant::now();
    loop {
        match node.learn().await {
            Ok(()) => return Ok(node),
            Err(error) if error.may_pass() && started.elapsed() < NODE_PATIENCE => {
                tracing::info!(%address, %error, "waiting for the storage node");
                tokio::time::sleep(NODE_AGAIN).await;
            }
            Err(source) => return Err(RouterError::Node { address, source }),
        }
    }
}
