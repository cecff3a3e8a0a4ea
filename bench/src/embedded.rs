//! A node in the same process, in a directory of its own, with shards opened as a controller would.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_client::Admin;
use thalweg_node::{Counters, Node, NodeConfig};
use thalweg_wire::control::{OpenExtent, ShardLimits};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId, StreamId};

use crate::error::BenchError;
use crate::settings::Common;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A node that goes when this does, with its data.
pub struct EmbeddedNode {
    node: Option<Node>,
    config: NodeConfig,
    dir: DirectoryOfRun,
}

/// A directory that this run made and removes.
pub struct DirectoryOfRun {
    path: PathBuf,
    parent_was_made: bool,
}

impl DirectoryOfRun {
    /// Makes one below `parent`.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub fn make(parent: &Path) -> Result<DirectoryOfRun, BenchError> {
        let parent_was_made = !parent.exists();
        let path = parent.join(format!("run-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .map_err(|source| BenchError::File { path: path.clone(), source })?;
        Ok(DirectoryOfRun { path, parent_was_made })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DirectoryOfRun {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("warning: {} could not be removed: {error}", self.path.display());
        }
        if let Some(parent) = self.path.parent()
            && self.parent_was_made
        {
            // Left where others put something there meanwhile.
            let _ = std::fs::remove_dir(parent);
        }
    }
}

impl EmbeddedNode {
    /// Starts a node with `prefill_bytes` of zero-filled segments.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn start(settings: &Common, prefill_bytes: u64) -> Result<EmbeddedNode, BenchError> {
        EmbeddedNode::start_with(settings, NodeConfig { prefill_bytes, ..NodeConfig::default() })
    }

    /// Starts a node with what `config` says beyond the settings of every workload.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn start_with(settings: &Common, config: NodeConfig) -> Result<EmbeddedNode, BenchError> {
        let dir = DirectoryOfRun::make(&settings.data_dir)?;
        let config = NodeConfig {
            data_dirs: vec![dir.path.join("disk-0")],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cores: settings.cores,
            memory_bytes: settings.memory_bytes,
            ..config
        };
        Ok(EmbeddedNode { node: Some(Node::start(config.clone())?), config, dir })
    }

    /// Stops the node and starts it again on its directory, on other ports; answers how long the
    /// start took. It has nothing of the data in memory then, and neither has the system: a node
    /// reads and writes past the page cache.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn restart(&mut self) -> Result<Duration, BenchError> {
        drop(self.node.take());
        // Segments that were filled for the run and not used are still there.
        let config = NodeConfig { prefill_bytes: 0, ..self.config.clone() };
        let started = Instant::now();
        self.node = Some(Node::start(config)?);
        Ok(started.elapsed())
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node runs until it is dropped")
    }

    /// The address of each core.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.node().addresses()
    }

    /// What the node has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.node().counters()
    }

    /// The directory of the node's data.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.path
    }

    /// The node as a target for workloads.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { addresses: self.addresses(), stream: StreamId(1) }
    }
}

/// Where a workload writes to: a node's cores, and the stream.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address of each core.
    pub addresses: Vec<SocketAddr>,
    /// The stream.
    pub stream: StreamId,
}

impl Target {
    /// A node that runs already, by the address of any of its cores; a stream of its own.
    ///
    /// # Errors
    /// [`BenchError::Client`] when it does not answer.
    pub fn running(node: SocketAddr) -> Result<Target, BenchError> {
        let description = Admin::connect(node, ADMIN_TIMEOUT)?.hello()?;
        let ports = description.ports.iter();
        let addresses = ports.map(|port| SocketAddr::new(node.ip(), *port)).collect();
        let stream = getrandom::u64().expect("the system's random source works by now");
        Ok(Target { addresses, stream: StreamId(stream) })
    }

    /// Opens the shards of the stream, in turn over the cores.
    ///
    /// # Errors
    /// [`BenchError::Client`].
    pub fn open_shards(&self, shards: u32, limits: Option<ShardLimits>) -> Result<(), BenchError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Target { addresses, stream } = self;
        for (core, address) in addresses.iter().enumerate() {
            let opens: Vec<OpenExtent> = (0..shards)
                .filter(|index| *index as usize % addresses.len() == core)
                .map(|index| OpenExtent {
                    shard_created_s: now.as_secs(),
                    limits,
                    ..OpenExtent::alone(
                        ExtentId { shard: ShardId { stream: *stream, index }, epoch: Epoch(1) },
                        HashRange::of_initial_shard(index, shards),
                        Offset(0),
                    )
                })
                .collect();
            Admin::connect(*address, ADMIN_TIMEOUT)?.open_extents(&opens)?;
        }
        Ok(())
    }
}

impl Drop for EmbeddedNode {
    fn drop(&mut self) {
        // Before its directory goes.
        drop(self.node.take());
    }
}
