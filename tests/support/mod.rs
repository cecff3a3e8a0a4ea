//! A node as a process of its own, for whole-system tests.
#![allow(dead_code)]

pub(crate) mod dev;
pub(crate) mod load;
pub(crate) mod loop_disk;
#[path = "../../router/tests/support/prometheus.rs"]
pub(crate) mod prometheus;
pub(crate) mod recorded_disk;
pub(crate) mod tap;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use thalweg_client::{Admin, Producer, ProducerConfig};
use thalweg_wire::build::NewRecord;
use thalweg_wire::control::{OpenExtent, ShardLimits};
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId, StreamId};
use thalweg_wire::produce::{Ack, decode_acks};

/// The stream of the tests.
pub(crate) const STREAM: StreamId = StreamId(9);
/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory on a disk with direct I/O, gone with its handle.
pub(crate) fn directory() -> tempfile::TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(parent).expect("a directory for the test")
}

/// A command of the program.
pub(crate) fn thalweg(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(arguments);
    command
}

/// Runs a command that is expected to end by itself.
pub(crate) fn run(arguments: &[&str]) -> Output {
    thalweg(arguments).output().expect("the program can be started")
}

/// A port with a free one behind it.
pub(crate) fn two_free_ports() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = first.local_addr().expect("it is bound").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
    panic!("no two free ports side by side");
}

/// What is served at `/metrics`, held against the format.
pub(crate) fn scrape(address: SocketAddr) -> prometheus::Scrape {
    let mut stream = TcpStream::connect(address).expect("metrics are served there");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("a request can be sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer is text");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_ascii_lowercase().contains("text/plain; version=0.0.4"), "{head}");
    prometheus::Scrape::parse(text).unwrap_or_else(|wrong| panic!("{wrong} in\n{text}"))
}

/// A node with two small cores on fixed ports.
pub(crate) struct NodeProcess {
    child: Child,
    pub port: u16,
    data_dirs: Vec<PathBuf>,
    cores: u16,
    sizes: NodeSizes,
}

/// How large a node is.
#[derive(Clone, Copy)]
pub(crate) struct NodeSizes {
    pub memory_bytes: u64,
    pub segment_bytes: u64,
}

/// Small ones, that are filled within moments.
pub(crate) const SMALL: NodeSizes = NodeSizes { memory_bytes: 160 << 20, segment_bytes: 16 << 20 };

impl NodeProcess {
    /// Starts a node and waits until it serves.
    pub(crate) fn start(data_dir: &Path, port: u16, cores: u16) -> NodeProcess {
        NodeProcess::start_on(&[data_dir.to_path_buf()], port, cores, SMALL)
    }

    /// The same on several disks, of another size.
    pub(crate) fn start_on(
        data_dirs: &[PathBuf],
        port: u16,
        cores: u16,
        sizes: NodeSizes,
    ) -> NodeProcess {
        let mut command = thalweg(&["--log", "warn", "node"]);
        command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--cores", &cores.to_string()])
            .args(["--memory-bytes", &sizes.memory_bytes.to_string()])
            .args(["--segment-bytes", &sizes.segment_bytes.to_string(), "--prefill-bytes", "0"])
            .stdin(Stdio::null());
        for data_dir in data_dirs {
            command.arg("--data-dir").arg(data_dir);
        }
        let child = command.spawn().expect("the program can be started");
        let mut node = NodeProcess { child, port, data_dirs: data_dirs.to_vec(), cores, sizes };
        node.wait_until_it_serves();
        node
    }

    fn wait_until_it_serves(&mut self) {
        let started = Instant::now();
        while Admin::connect(self.address(0), PATIENCE).and_then(|mut admin| admin.hello()).is_err()
        {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                panic!("the node ended: {status}");
            }
            assert!(started.elapsed() < PATIENCE, "the node does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a running child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Starts it anew on the same directory and ports.
    pub(crate) fn restart(&mut self) {
        self.kill();
        *self = NodeProcess::start_on(&self.data_dirs.clone(), self.port, self.cores, self.sizes);
    }

    /// The address of a core.
    pub(crate) fn address(&self, core: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port + core))
    }

    /// Asks it to stop; answers its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &id]).status();
        assert!(asked.expect("kill can be run").success());
        self.child.wait().expect("it ends").code()
    }

    /// Most memory that it has had resident, bytes.
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the node is alive");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
        kib.expect("the kernel tells") * 1024
    }

    /// Opens the stream's shards, in turn over the cores.
    pub(crate) fn open_shards(&self, shards: u32, limits: Option<ShardLimits>) {
        for index in 0..shards {
            let core = (index % u32::from(self.cores)) as u16;
            let mut admin = Admin::connect(self.address(core), PATIENCE).expect("the node serves");
            admin.open_extent(&open(index, shards, limits)).expect("a new shard can be opened");
        }
    }

    /// Opens the stream's shards, in turn over the disks.
    pub(crate) fn open_shards_on_disks(&self, shards: u32) {
        let mut admin = Admin::connect(self.address(0), PATIENCE).expect("the node serves");
        let disks = admin.hello().expect("it tells its disks").disks;
        for index in 0..shards {
            let mut command = open(index, shards, None);
            command.replicas[0] = disks[index as usize % disks.len()];
            admin.open_extent(&command).expect("a new shard can be opened");
        }
    }

    /// A raw connection to a core.
    pub(crate) fn raw(&self, core: u16) -> TcpStream {
        let stream = TcpStream::connect(self.address(core)).expect("the node accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that opens a shard of the tests' stream.
pub(crate) fn open(index: u32, shards: u32, limits: Option<ShardLimits>) -> OpenExtent {
    OpenExtent {
        limits,
        ..OpenExtent::alone(
            ExtentId { shard: ShardId { stream: STREAM, index }, epoch: Epoch(1) },
            HashRange::of_initial_shard(index, shards),
            Offset(0),
        )
    }
}

/// A frame with batches.
pub(crate) fn produce_frame(items: u32, payload: &[u8]) -> Vec<u8> {
    small_frame(FrameKind::Produce, items, 5, payload)
}

/// The next frame; `None` when the node closed the connection.
pub(crate) fn receive(stream: &mut TcpStream) -> Option<(FrameHeader, Vec<u8>)> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let header = FrameHeader::decode(&header).expect("a node sends frames");
    let mut payload = vec![0; header.payload_bytes as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

/// The answer to the first batch of the frame that is answered next.
pub(crate) fn first_ack(stream: &mut TcpStream) -> Ack {
    let (header, payload) = receive(stream).expect("an answer");
    assert_eq!(header.kind, FrameKind::ProduceAnswer);
    let mut acks = decode_acks(&payload, header.items).expect("acks");
    acks.next().expect("one at least").expect("a valid ack")
}

/// Appends `count` records, numbered from `from` on, by key, through the batching producer; waits for their acks.
pub(crate) fn append(node: SocketAddr, from: u64, count: u64) {
    append_sized(node, from, count, 8);
}

/// The same with so many bytes of data each, which begin with the number.
pub(crate) fn append_sized(node: SocketAddr, from: u64, count: u64, data_bytes: usize) {
    append_to(node, STREAM, from..from + count, data_bytes);
}

/// The same to another stream.
pub(crate) fn append_to(
    node: SocketAddr,
    stream: StreamId,
    numbers: Range<u64>,
    data_bytes: usize,
) {
    let config =
        ProducerConfig { linger: Duration::from_millis(1), ..ProducerConfig::new(node, stream) };
    let count = numbers.end - numbers.start;
    let mut producer = Producer::connect(config).expect("the node serves");
    let mut acked = 0;
    let mut take = |producer: &mut Producer| {
        while let Some(outcome) = producer.next_outcome() {
            outcome.result.expect("a record is stored");
            acked += u64::from(outcome.records);
        }
    };
    for number in numbers {
        let key = format!("key-{number}");
        let key = key.as_bytes();
        let mut data = number.to_le_bytes().to_vec();
        data.resize(data_bytes, 7);
        let hash_key = HashKey::of_partition_key(key);
        let record = NewRecord { hash_key, client_time_ms: number, key, data: &data };
        while !producer.append(&record).expect("a shard covers the key") {
            producer.poll(Duration::from_millis(1)).expect("the node serves");
            take(&mut producer);
        }
    }
    while !producer.is_idle() {
        producer.flush();
        producer.poll(Duration::from_millis(1)).expect("the node serves");
        take(&mut producer);
    }
    assert_eq!(acked, count);
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
