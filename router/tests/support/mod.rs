//! A node in the process of the test, routes to it, and connections that break.
#![allow(dead_code)]

pub(crate) mod peer;
pub(crate) mod prometheus;
pub(crate) mod router;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use thalweg_client::Admin;
use thalweg_node::{Node, NodeConfig};
use thalweg_router::route::{
    AnswerMemory, Fetcher, LinkLimits, NodeLinks, Request, Route, RouteFuture, Routes,
    ShardRecords, Stale, Writer, WriterConfig,
};
use thalweg_wire::build::NewRecord;
use thalweg_wire::control::{
    DescribeRequest, OpenExtent, SHARD_DESCRIPTION_BYTES, ShardDescription, ShardLimits,
};
use thalweg_wire::fetch::FetchFrom;
use thalweg_wire::frame::FrameKind;
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A shard of the tests' stream.
pub(crate) fn shard(index: u32) -> ShardId {
    ShardId { stream: StreamId(9), index }
}

/// Xorshift: the same seed, the same numbers.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A directory for a test's data that vanishes with it: here, because what is built may lie in
/// memory, where a node does not start.
pub(crate) fn data_directory() -> tempfile::TempDir {
    tempfile::tempdir_in(".").expect("the package's directory can be written to")
}

/// A small node on a directory of its own.
pub(crate) struct TestNode {
    directory: tempfile::TempDir,
    cores: usize,
    node: Option<Node>,
}

impl TestNode {
    /// Starts a node and opens shards on it, in turn over its cores.
    pub(crate) fn start(cores: usize, shards: u32, limits: Option<ShardLimits>) -> TestNode {
        let directory = data_directory();
        let mut node = TestNode { directory, cores, node: None };
        node.restart();
        for core in 0..cores {
            let mut admin = Admin::connect(node.addresses()[core], PATIENCE).expect("it serves");
            let of_core = (0..shards).filter(|index| *index as usize % cores == core);
            let opens: Vec<OpenExtent> = of_core
                .map(|index| {
                    let extent = ExtentId { shard: shard(index), epoch: Epoch(1) };
                    let range = HashRange::FULL;
                    OpenExtent { limits, ..OpenExtent::alone(extent, range, Offset(0)) }
                })
                .collect();
            admin.open_extents(&opens).expect("new shards can be opened");
        }
        node
    }

    /// Stops the node if it runs and starts it anew, on other ports.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let config = NodeConfig {
            data_dirs: vec![self.directory.path().join("d")],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cores: self.cores,
            memory_bytes: self.cores as u64 * (96 << 20),
            segment_bytes: 32 << 20,
            prefill_bytes: 0,
            ..NodeConfig::default()
        };
        self.node = Some(Node::start(config).expect("the node starts"));
    }

    pub(crate) fn stop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop();
        }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.node().addresses()
    }
}

/// Routes that ask every core which shards it has.
pub(crate) struct AskingRoutes {
    cores: Mutex<Vec<SocketAddr>>,
    known: Mutex<BTreeMap<ShardId, Route>>,
    links: NodeLinks,
    pub(crate) refreshes: AtomicU64,
}

impl AskingRoutes {
    pub(crate) fn new(cores: Vec<SocketAddr>) -> Arc<AskingRoutes> {
        let limits = LinkLimits { backoff: BACKOFF, ..LinkLimits::default() };
        Arc::new(AskingRoutes {
            cores: Mutex::new(cores),
            known: Mutex::default(),
            links: NodeLinks::new(limits, AnswerMemory::new(0)),
            refreshes: AtomicU64::new(0),
        })
    }

    /// The cores are elsewhere now.
    pub(crate) fn set_cores(&self, cores: Vec<SocketAddr>) {
        *self.cores.lock().unwrap() = cores;
    }

    async fn ask(&self, wanted: ShardId) -> Option<Route> {
        let cores = self.cores.lock().unwrap().clone();
        for address in cores {
            let describe = DescribeRequest { from: wanted }.encode();
            let request =
                Request::small(FrameKind::Describe, &describe, Duration::from_millis(500));
            let Ok(answer) = self.links.get(address).request(request).await else { continue };
            for bytes in answer.payload.chunks(SHARD_DESCRIPTION_BYTES) {
                let found = ShardDescription::decode(bytes).expect("a node describes");
                let route = Route { epoch: found.extent.epoch, address };
                self.known.lock().unwrap().insert(found.extent.shard, route);
            }
        }
        self.route(wanted)
    }
}

impl Routes for AskingRoutes {
    fn route(&self, shard: ShardId) -> Option<Route> {
        self.known.lock().unwrap().get(&shard).copied()
    }

    fn refresh(&self, shard: ShardId, _stale: Stale) -> RouteFuture<'_> {
        self.refreshes.fetch_add(1, Ordering::Relaxed);
        Box::pin(self.ask(shard))
    }
}

pub(crate) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(100));

/// A writer with pauses that suit a test.
pub(crate) fn writer(routes: &Arc<AskingRoutes>) -> Writer {
    let link = LinkLimits { backoff: BACKOFF, ..LinkLimits::default() };
    let config = WriterConfig { link, patience: PATIENCE, ..WriterConfig::default() };
    Writer::new(routes.clone(), config)
}

pub(crate) fn fetcher(routes: &Arc<AskingRoutes>, memory: &AnswerMemory) -> Fetcher {
    let limits = LinkLimits { backoff: BACKOFF, ..LinkLimits::default() };
    let links = NodeLinks::new(limits, memory.clone());
    Fetcher::new(routes.clone(), links, Duration::from_secs(10))
}

/// Records of so many bytes each, which begin with their numbers.
pub(crate) fn records_of(numbers: &[u64], data_bytes: usize) -> ShardRecords {
    let count = numbers.len();
    let mut records =
        ShardRecords::with_room(count as u32, count as u64, (count * data_bytes) as u64);
    for number in numbers {
        let mut data = vec![*number as u8; data_bytes];
        data[..8].copy_from_slice(&number.to_le_bytes());
        let (hash_key, key) = (HashKey(u128::from(*number)), &b"k"[..]);
        let record = NewRecord { hash_key, client_time_ms: *number, key, data: &data };
        records.push(&record).expect("a record of a size that may be");
    }
    records
}

/// The number of a record's data, all of which must be its own.
#[track_caller]
pub(crate) fn number_of(data: &[u8]) -> u64 {
    let number = u64::from_le_bytes(data[..8].try_into().unwrap());
    assert!(data[8..].iter().all(|byte| *byte == number as u8), "its own bytes");
    number
}

/// The numbers of all records of a shard, by offset.
pub(crate) async fn read_all(fetcher: &Fetcher, shard: ShardId) -> Vec<u64> {
    let (mut numbers, mut next) = (Vec::new(), Offset(0));
    loop {
        let from = FetchFrom::Offset(next);
        let fetched = fetcher.fetch(shard, from, 1 << 20, Duration::ZERO).await;
        let fetched = fetched.expect("a shard can be read");
        for record in fetched.records() {
            assert_eq!(record.offset.0, numbers.len() as u64, "without a gap");
            numbers.push(number_of(record.data));
        }
        next = fetched.head().next;
        if next >= fetched.head().committed {
            return numbers;
        }
    }
}

/// A proxy that cuts its connections after some bytes.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<ProxyShared>,
}

struct ProxyShared {
    target: Mutex<SocketAddr>,
    /// A connection is cut within twice as many bytes; zero for never.
    bytes_mean: AtomicU64,
    random: Mutex<Random>,
    cuts: AtomicU64,
    is_open: AtomicBool,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr, bytes_mean: u64, seed: u64) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(ProxyShared {
            target: Mutex::new(target),
            bytes_mean: AtomicU64::new(bytes_mean),
            random: Mutex::new(Random(seed | 1)),
            cuts: AtomicU64::new(0),
            is_open: AtomicBool::new(true),
        });
        let of_task = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if of_task.is_open.load(Ordering::Relaxed) {
                    tokio::spawn(carry(client, of_task.clone()));
                }
            }
        });
        Proxy { address, shared }
    }

    pub(crate) fn set_target(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Cuts no more.
    pub(crate) fn calm(&self) {
        self.shared.bytes_mean.store(0, Ordering::Relaxed);
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

async fn carry(mut client: TcpStream, shared: Arc<ProxyShared>) {
    let target = *shared.target.lock().unwrap();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let mean = shared.bytes_mean.load(Ordering::Relaxed);
    let draw = || match mean {
        0 => u64::MAX,
        mean => shared.random.lock().unwrap().below(2 * mean),
    };
    let limits = [draw(), draw()];
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = copy(from_client, to_server, limits[0], &shared) => {}
        () = copy(from_server, to_client, limits[1], &shared) => {}
    }
}

/// Copies until the end, or until so many bytes went.
async fn copy(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    limit: u64,
    shared: &ProxyShared,
) {
    let mut left = limit;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        left -= count as u64;
        let is_calm = shared.bytes_mean.load(Ordering::Relaxed) == 0;
        if left == 0 && !is_calm {
            shared.cuts.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if left == 0 {
            left = u64::MAX;
        }
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
