//! The producer: records to batches, batches to shards, each stored once.
//!
//! It is driven by the thread that owns it: [`Producer::poll`] sends, receives and sleeps. Many
//! batches are under way at a time; each shard's leave in order. A batch is copied nowhere between
//! the caller's [`BatchBuilder`] and the socket, unless it is so small that copying is cheaper.
//! After a lost connection or a node's restart everything unanswered is sent again under the same
//! sequences, and the node recognises what it has.
//!
//! Here are its sockets and its clock; what it decides is in `pipeline`, `lane` and `link`.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thalweg_wire::build::{BatchBuilder, BatchRoom, NewRecord};
use thalweg_wire::control::ShardDescription;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{ProducerId, StreamId};
use thalweg_wire::limits::{PARTITION_KEY_BYTES_MAX, RECORD_BYTES_MAX};

use crate::batcher::Batcher;
use crate::connection::{Inbox, connect, would_block};
use crate::error::ClientError;
use crate::lane::Lane;
use crate::outcome::Outcome;
use crate::pipeline::{Pipeline, PipelineConfig};
use crate::route::{Discovery, RouteMap, discover};

/// First and longest wait between tries to reach a node.
const BACKOFF_US: (u64, u64) = (20_000, 1_000_000);
/// How long a node may take to answer a question about routes.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Routes are asked for again at most this often.
const REFRESH_US: u64 = 50_000;

/// How a producer works.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Address of any core of the node. After a restart the node is looked for here first, then
    /// where its cores were.
    pub node: SocketAddr,
    /// The stream.
    pub stream: StreamId,
    /// Shards to write to, by index; all of the stream's when empty.
    pub shards: Vec<u32>,
    /// Connections to each core.
    pub connections_per_core: usize,
    /// Bytes of batches under way on each connection.
    pub window_bytes: usize,
    /// Size of the batches that [`Producer::append`] makes.
    pub batch: BatchRoom,
    /// How long [`Producer::append`] may hold a batch back for more records.
    pub linger: Duration,
    /// Whether batches that a shard's limits refuse are sent again when they say, or reported.
    pub repeat_throttled: bool,
    /// How long an unreachable node is tried, and how long a batch is sent again that is refused in
    /// a way that may pass.
    pub retry_for: Duration,
}

impl ProducerConfig {
    /// A producer to all shards of a stream, with one connection a core.
    #[must_use]
    pub fn new(node: SocketAddr, stream: StreamId) -> ProducerConfig {
        ProducerConfig {
            node,
            stream,
            shards: Vec::new(),
            connections_per_core: 1,
            window_bytes: 8 << 20,
            batch: BatchRoom { records: 500, key_bytes: 16 << 10, data_bytes: 512 << 10 },
            linger: Duration::from_millis(5),
            repeat_throttled: true,
            retry_for: Duration::from_secs(30),
        }
    }
}

/// A connection to a core, or where one will be.
struct Socket {
    core: usize,
    address: SocketAddr,
    stream: Option<TcpStream>,
    inbox: Inbox,
}

/// Since when a node cannot be reached, and when it is tried next.
struct Trouble {
    since_us: u64,
    last: ClientError,
}

/// See the module.
pub struct Producer {
    config: ProducerConfig,
    clock: Instant,
    pipeline: Pipeline,
    batcher: Batcher,
    routes: RouteMap,
    /// One a link, in their order.
    sockets: Vec<Socket>,
    /// The address of each core when routes were last learned.
    cores: Vec<SocketAddr>,
    /// Lanes whose batches have waited long enough and found no room.
    overdue: Vec<usize>,
    refresh_at_us: Option<u64>,
    refreshed_us: u64,
    /// Ends with an answer, not with a connection: a node that accepts and hangs up is no better
    /// than none.
    trouble: Option<Trouble>,
    backoff_us: u64,
}

impl Producer {
    /// Connects to every core of a node and learns its shards.
    ///
    /// # Errors
    /// [`ClientError`] when the node cannot be reached or has none of the shards.
    pub fn connect(config: ProducerConfig) -> Result<Producer, ClientError> {
        let pipeline_config =
            PipelineConfig { window_bytes: config.window_bytes, batch: config.batch };
        let mut producer = Producer {
            clock: Instant::now(),
            pipeline: Pipeline::new(pipeline_config, Box::new(random_identity)),
            batcher: Batcher::new(micros(config.linger)),
            routes: RouteMap::default(),
            sockets: Vec::new(),
            cores: Vec::new(),
            overdue: Vec::new(),
            refresh_at_us: None,
            refreshed_us: 0,
            trouble: None,
            backoff_us: BACKOFF_US.0,
            config,
        };
        producer.refresh()?;
        if producer.lanes().is_empty() {
            return Err(ClientError::NoShard);
        }
        Ok(producer)
    }

    /// The lanes, one a shard: in the order of shards, those found later behind.
    #[must_use]
    pub fn lanes(&self) -> &[Lane] {
        self.pipeline.lanes()
    }

    /// The lane of a hash key.
    ///
    /// # Errors
    /// [`ClientError::NoShard`] when no shard has it.
    pub fn lane_of(&self, key: HashKey) -> Result<usize, ClientError> {
        self.routes.lane_of_key(key).ok_or(ClientError::NoShard)
    }

    /// An empty builder, used before if there is one.
    pub fn builder(&mut self) -> BatchBuilder {
        self.pipeline.builder()
    }

    /// Whether [`Producer::submit`] would take a batch for the lane now. There is no room either
    /// while tens of thousands of outcomes wait to be taken.
    #[must_use]
    pub fn has_room(&self, lane: usize) -> bool {
        self.pipeline.has_room(lane)
    }

    /// Hands a batch over; its outcome comes from [`Producer::next_outcome`] under `tag`, its
    /// builder from [`Producer::builder`] if it has the configured room.
    ///
    /// # Panics
    /// When there is no room: ask [`Producer::has_room`] first.
    pub fn submit(&mut self, lane: usize, builder: BatchBuilder, tag: u64) {
        let now_us = self.now_us();
        self.pipeline.submit(lane, builder, tag, now_us);
    }

    /// Appends a record; false when there is no room for its batch now: poll, take outcomes, try
    /// again.
    ///
    /// # Errors
    /// [`ClientError::NoShard`], [`ClientError::RecordSize`].
    pub fn append(&mut self, record: &NewRecord<'_>) -> Result<bool, ClientError> {
        check_size(record)?;
        let lane = self.lane_of(record.hash_key)?;
        match self.batcher.fits(lane, record) {
            Some(true) => {
                self.batcher.push(lane, record);
                return Ok(true);
            }
            Some(false) if !self.has_room(lane) => return Ok(false),
            Some(false) => self.submit_filling(lane),
            None => {}
        }
        let mut builder = self.builder();
        if !builder.fits(record) {
            // Larger than a batch of the usual size: one of its own.
            let data_bytes = record.data.len() as u32;
            let key_bytes = record.key.len() as u32;
            builder = BatchBuilder::new(BatchRoom { records: 1, key_bytes, data_bytes });
        }
        self.batcher.begin(lane, builder, micros(self.clock.elapsed()));
        self.batcher.push(lane, record);
        Ok(true)
    }

    /// Sends what [`Producer::append`] holds back, as far as there is room.
    pub fn flush(&mut self) {
        let lanes: Vec<usize> = self.batcher.lanes().collect();
        for lane in lanes {
            if self.has_room(lane) {
                self.submit_filling(lane);
            }
        }
    }

    /// Whether every batch has its outcome.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pipeline.is_idle() && self.batcher.is_empty()
    }

    /// The outcome of a batch; those of a shard come in the order of its offsets.
    pub fn next_outcome(&mut self) -> Option<Outcome> {
        self.pipeline.next_outcome()
    }

    /// Sends and receives; waits for at most `timeout` when there is nothing to do and no outcome
    /// to take.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when no node could be reached for too long,
    /// [`ClientError::Refused`] when the node does not speak this protocol. Batches under way may
    /// have been stored.
    pub fn poll(&mut self, timeout: Duration) -> Result<(), ClientError> {
        let now_us = self.now_us();
        self.refresh_if_due(now_us)?;
        self.submit_lingering(now_us);
        self.pipeline.on_time(now_us);
        self.write_all();
        let has_outcomes = self.pipeline.has_outcomes();
        let timeout = if has_outcomes { Duration::ZERO } else { self.wait(timeout, now_us) };
        for link in self.wait_for_sockets(timeout) {
            self.read(link)?;
        }
        if self.pipeline.take_wants_routes() {
            self.refresh_at_us.get_or_insert(self.refreshed_us + REFRESH_US);
        }
        self.write_all();
        Ok(())
    }

    fn now_us(&self) -> u64 {
        micros(self.clock.elapsed())
    }

    /// As long as `timeout` says, but not beyond what is due earlier.
    fn wait(&self, timeout: Duration, now_us: u64) -> Duration {
        let delayed = self.pipeline.next_due_us(now_us);
        let due = [delayed, self.batcher.next_due_us(), self.refresh_at_us];
        let due = due.into_iter().flatten().min();
        due.map_or(timeout, |due| timeout.min(Duration::from_micros(due.saturating_sub(now_us))))
    }

    /// Sleeps until a socket is ready or the time is over; answers the links to be read.
    fn wait_for_sockets(&self, timeout: Duration) -> Vec<usize> {
        let mut links = Vec::with_capacity(self.sockets.len());
        let mut polled = Vec::with_capacity(self.sockets.len());
        for (link, socket) in self.sockets.iter().enumerate() {
            if let Some(stream) = &socket.stream {
                let wants_to_write = self.pipeline.wants_to_write(link);
                let flags = if wants_to_write { PollFlags::OUT } else { PollFlags::empty() };
                links.push(link);
                polled.push(PollFd::new(stream, PollFlags::IN | flags));
            }
        }
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // A signal ends the wait early, which is as good as a timeout.
        let _ = poll(&mut polled, Some(&timeout));
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let mut ready = polled.iter().map(|socket| socket.revents().intersects(readable));
        links.retain(|_| ready.next() == Some(true));
        links
    }

    fn submit_lingering(&mut self, now_us: u64) {
        let mut lanes = std::mem::take(&mut self.overdue);
        self.batcher.take_due(now_us, &mut lanes);
        lanes.retain(|lane| {
            let has_room = self.pipeline.has_room(*lane);
            if has_room {
                self.submit_filling(*lane);
            }
            !has_room
        });
        self.overdue = lanes;
    }

    fn submit_filling(&mut self, lane: usize) {
        if let Some(builder) = self.batcher.take(lane) {
            self.submit(lane, builder, 0);
        }
    }

    fn write_all(&mut self) {
        for link in 0..self.sockets.len() {
            if !self.pipeline.wants_to_write(link) {
                continue;
            }
            let socket = &mut self.sockets[link];
            let Some(stream) = &mut socket.stream else { continue };
            match self.pipeline.write_to(link, stream) {
                Ok(()) => {}
                Err(error) if would_block(&error) => {}
                Err(source) => {
                    let address = socket.address;
                    self.lose(link, ClientError::Connection { address, source });
                }
            }
        }
    }

    /// Reads what has arrived on a link and takes the answers in.
    fn read(&mut self, link: usize) -> Result<(), ClientError> {
        let now_us = self.now_us();
        let socket = &mut self.sockets[link];
        let address = socket.address;
        let Some(stream) = &mut socket.stream else { return Ok(()) };
        let source = match socket.inbox.read_from(stream) {
            Ok(1..) => return self.take_frames(link, now_us),
            Err(error) if would_block(&error) => return Ok(()),
            Ok(0) => std::io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        };
        self.lose(link, ClientError::Connection { address, source });
        Ok(())
    }

    fn take_frames(&mut self, link: usize, now_us: u64) -> Result<(), ClientError> {
        loop {
            let error = match self.sockets[link].inbox.next_frame() {
                Ok(None) => return Ok(()),
                Ok(Some((header, payload))) => {
                    match self.pipeline.on_frame(link, &header, payload, now_us) {
                        Ok(()) => {
                            self.trouble = None;
                            self.backoff_us = BACKOFF_US.0;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if is_final(&error) {
                return Err(error);
            }
            self.lose(link, error);
            return Ok(());
        }
    }

    /// The connection is gone; everything on it is sent again once routes are known anew.
    fn lose(&mut self, link: usize, error: ClientError) {
        let now_us = self.now_us();
        self.disconnect(link, now_us);
        self.note_trouble(error, now_us);
    }

    fn disconnect(&mut self, link: usize, now_us: u64) {
        let socket = &mut self.sockets[link];
        socket.stream = None;
        socket.inbox.clear();
        self.pipeline.on_link_down(link, now_us);
    }

    fn note_trouble(&mut self, error: ClientError, now_us: u64) {
        let since_us = self.trouble.as_ref().map_or(now_us, |trouble| trouble.since_us);
        self.trouble = Some(Trouble { since_us, last: error });
        self.refresh_at_us = Some(now_us + self.backoff_us);
        self.backoff_us = (self.backoff_us * 2).min(BACKOFF_US.1);
    }

    fn refresh_if_due(&mut self, now_us: u64) -> Result<(), ClientError> {
        if self.refresh_at_us.is_none_or(|due_us| now_us < due_us) {
            return Ok(());
        }
        self.refresh_at_us = None;
        if let Err(error) = self.refresh() {
            self.note_trouble(error, now_us);
        } else if self.pipeline.is_idle() {
            // Nothing waits for the answer that would end it.
            self.trouble = None;
            self.backoff_us = BACKOFF_US.0;
        }
        let retry_for_us = micros(self.config.retry_for);
        match self.trouble.take() {
            Some(trouble) if now_us - trouble.since_us >= retry_for_us => {
                let seconds = (now_us - trouble.since_us) / 1_000_000;
                Err(ClientError::Unreachable { seconds, last: Box::new(trouble.last) })
            }
            trouble => {
                self.trouble = trouble;
                Ok(())
            }
        }
    }

    /// Learns the node's cores and shards; connects what is not connected.
    fn refresh(&mut self) -> Result<(), ClientError> {
        let mut addresses = vec![self.config.node];
        addresses.extend(self.cores.iter().filter(|core| **core != self.config.node));
        let Discovery { cores, shards } = discover(&addresses, self.config.stream, ADMIN_TIMEOUT)?;
        self.add_sockets(&cores);
        self.cores = cores;
        self.route(&shards);
        self.connect_sockets()?;
        self.refreshed_us = self.now_us();
        Ok(())
    }

    /// A node that came back with more cores gets as many connections to them as to the others.
    fn add_sockets(&mut self, cores: &[SocketAddr]) {
        let known = self.sockets.iter().map(|socket| socket.core + 1).max().unwrap_or(0);
        for (core, address) in cores.iter().enumerate().skip(known) {
            for _ in 0..self.config.connections_per_core.max(1) {
                self.pipeline.add_link();
                let (address, inbox) = (*address, Inbox::default());
                self.sockets.push(Socket { core, address, stream: None, inbox });
            }
        }
    }

    fn connect_sockets(&mut self) -> Result<(), ClientError> {
        for link in 0..self.sockets.len() {
            let Some(address) = self.cores.get(self.sockets[link].core).copied() else {
                continue;
            };
            if self.sockets[link].address != address {
                // The node came back on another port.
                self.disconnect(link, self.now_us());
                self.sockets[link].address = address;
            }
            if self.sockets[link].stream.is_none() {
                let stream = connect(address, ADMIN_TIMEOUT)?;
                stream
                    .set_nonblocking(true)
                    .map_err(|source| ClientError::Connection { address, source })?;
                self.sockets[link].stream = Some(stream);
            }
            if !self.pipeline.is_up(link) {
                self.pipeline.on_link_up(link, self.now_us());
            }
        }
        Ok(())
    }

    /// Notes where shards are: new ones get lanes, those that moved another link.
    fn route(&mut self, shards: &[(usize, ShardDescription)]) {
        let now_us = self.now_us();
        let mut links_of_core: Vec<Vec<usize>> = vec![Vec::new(); self.cores.len()];
        for (link, socket) in self.sockets.iter().enumerate() {
            if let Some(links) = links_of_core.get_mut(socket.core) {
                links.push(link);
            }
        }
        let wanted: std::collections::HashSet<u32> = self.config.shards.iter().copied().collect();
        let mut added = Vec::new();
        // How many shards of each core were seen: its links take turns.
        let mut turns = vec![0; self.cores.len()];
        for (core, found) in shards {
            let shard = found.extent.shard;
            if !wanted.is_empty() && !wanted.contains(&shard.index) {
                continue;
            }
            let links = &links_of_core[*core];
            let link = links[turns[*core] % links.len()];
            turns[*core] += 1;
            match self.routes.lane_of_shard(shard) {
                Some(lane) => {
                    self.pipeline.set_epoch(lane, found.extent.epoch);
                    if self.sockets[self.pipeline.link_of(lane)].core != *core {
                        self.pipeline.move_lane(lane, link, now_us);
                    }
                }
                None => added.push((shard, found.range, self.add_lane(found, link))),
            }
        }
        self.batcher.resize(self.pipeline.lanes().len());
        self.routes.add(added.into_iter());
    }

    fn add_lane(&mut self, found: &ShardDescription, link: usize) -> usize {
        let (shard, epoch) = (found.extent.shard, found.extent.epoch);
        let identity = self.pipeline.new_identity();
        let repeat_throttled = self.config.repeat_throttled;
        let mut lane = Lane::new(shard, found.range, epoch, identity, repeat_throttled);
        lane.set_patience_us(micros(self.config.retry_for));
        self.pipeline.add_lane(lane, link)
    }
}

/// Whether trying again on another connection would end the same way.
fn is_final(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refusal) => matches!(
            refusal.code,
            ErrorCode::UnsupportedVersion | ErrorCode::UnsupportedKind | ErrorCode::Malformed
        ),
        _ => false,
    }
}

fn check_size(record: &NewRecord<'_>) -> Result<(), ClientError> {
    let (key_bytes, data_bytes) = (record.key.len(), record.data.len());
    let fits = (1..=PARTITION_KEY_BYTES_MAX as usize).contains(&key_bytes)
        && key_bytes + data_bytes <= RECORD_BYTES_MAX as usize;
    if fits { Ok(()) } else { Err(ClientError::RecordSize { key_bytes, data_bytes }) }
}

/// A new identity: random, so that no two producers share one.
fn random_identity() -> ProducerId {
    ProducerId(getrandom::u64().expect("the system's random source works once it has started"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
