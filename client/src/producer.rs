//! The producer: records to batches, batches to shards, each stored once.
//!
//! It is driven by the thread that owns it: [`Producer::poll`] sends, receives and sleeps. Many
//! batches are under way at a time; each shard's leave in order. A batch is copied nowhere between
//! the caller's [`BatchBuilder`] and the socket, unless it is small: then it is gathered with
//! others into one frame. After a lost connection or a node's restart everything unanswered is
//! sent again under the same sequences, and the node recognises what it has.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slab::Slab;
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{ErrorAnswer, FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{Epoch, Offset, ProducerId, StreamId};
use thalweg_wire::limits::{FRAME_BATCHES_MAX, FRAME_MANY_BATCHES_BYTES_MAX};
use thalweg_wire::produce::{decode_acks, padded_bytes};
use thiserror::Error;

use crate::admin::Admin;
use crate::connection::{Inbox, connect, would_block, write_pieces};
use crate::error::ClientError;
use crate::lane::{Lane, Left, Reaction};

/// A batch below this is gathered with others into one frame.
const SMALL_BATCH_BYTES: usize = 16 << 10;
/// First and longest wait between tries to reach a node.
const BACKOFF_US: (u64, u64) = (20_000, 1_000_000);
/// How long a node may take to answer a question about routes.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Routes are asked for again at most this often.
const REFRESH_US: u64 = 50_000;

/// How a producer works.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Address of any core of the node.
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
    /// How long an unreachable node is tried.
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

/// A stored batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// When the shard's leader took it, milliseconds since 1970.
    pub append_time_ms: u64,
    /// Whether an earlier try had stored it.
    pub duplicate: bool,
}

/// Why a batch was not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProducerError {
    /// It was refused, and is not stored.
    #[error("the batch was refused: {0}")]
    Refused(Refusal),
    /// It was refused after an earlier try whose answer was lost: it may be stored, once.
    #[error("the batch may or may not be stored (it was refused after a lost answer: {0})")]
    OutcomeUnknown(Refusal),
}

/// What became of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Place of the shard in [`Producer::lanes`].
    pub lane: usize,
    /// What the caller named the batch; zero for those of [`Producer::append`].
    pub tag: u64,
    /// Records in it.
    pub records: u32,
    /// Bytes of it.
    pub bytes: usize,
    /// Stored, or why not.
    pub result: Result<Written, ProducerError>,
}

struct BatchUnderWay {
    builder: BatchBuilder,
    lane: usize,
    tag: u64,
    bytes: usize,
}

/// A frame that is being written: gathered bytes, then at most one large batch.
#[derive(Default)]
struct OutFrame {
    bytes: Vec<u8>,
    large: Option<u32>,
    total: usize,
    written: usize,
}

struct Link {
    core: usize,
    address: SocketAddr,
    stream: Option<TcpStream>,
    inbox: Inbox,
    /// Batches to be put into frames.
    queue: VecDeque<u32>,
    out: OutFrame,
    /// The batches of each frame that is not answered, by correlation.
    frames: Slab<Vec<u32>>,
    spare_lists: Vec<Vec<u32>>,
    bytes_under_way: usize,
}

impl Link {
    fn new(core: usize, address: SocketAddr) -> Link {
        Link {
            core,
            address,
            stream: None,
            inbox: Inbox::default(),
            queue: VecDeque::new(),
            out: OutFrame::default(),
            frames: Slab::new(),
            spare_lists: Vec::new(),
            bytes_under_way: 0,
        }
    }

    fn wants_to_write(&self) -> bool {
        self.out.written < self.out.total || !self.queue.is_empty()
    }
}

/// See the module.
pub struct Producer {
    config: ProducerConfig,
    clock: Instant,
    links: Vec<Link>,
    lanes: Vec<Lane>,
    link_of_lane: Vec<usize>,
    /// Lanes by the start of their ranges.
    by_range: Vec<(HashKey, usize)>,
    batches: Slab<BatchUnderWay>,
    spare_builders: Vec<BatchBuilder>,
    /// Batches that `append` is filling: a lane's, and until when.
    filling: Vec<Option<(BatchBuilder, u64)>>,
    filling_count: usize,
    /// Lanes to be looked at for something to send later.
    delayed: Vec<usize>,
    outcomes: VecDeque<Outcome>,
    refresh_at_us: Option<u64>,
    refreshed_us: u64,
    unreachable_since_us: Option<u64>,
    backoff_us: u64,
}

impl Producer {
    /// Connects to every core of a node and learns its shards.
    ///
    /// # Errors
    /// [`ClientError`] when the node cannot be reached or has none of the shards.
    pub fn connect(config: ProducerConfig) -> Result<Producer, ClientError> {
        let mut producer = Producer {
            clock: Instant::now(),
            links: Vec::new(),
            lanes: Vec::new(),
            link_of_lane: Vec::new(),
            by_range: Vec::new(),
            batches: Slab::new(),
            spare_builders: Vec::new(),
            filling: Vec::new(),
            filling_count: 0,
            delayed: Vec::new(),
            outcomes: VecDeque::new(),
            refresh_at_us: None,
            refreshed_us: 0,
            unreachable_since_us: None,
            backoff_us: BACKOFF_US.0,
            config,
        };
        producer.refresh()?;
        if producer.lanes.is_empty() {
            return Err(ClientError::NoShard);
        }
        Ok(producer)
    }

    /// The lanes, one a shard, in the order of shards.
    #[must_use]
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The lane of a hash key.
    ///
    /// # Errors
    /// [`ClientError::NoShard`] when no shard has it.
    pub fn lane_of(&self, key: HashKey) -> Result<usize, ClientError> {
        let after = self.by_range.partition_point(|(start, _)| *start <= key);
        let (_, lane) = self.by_range[..after].last().ok_or(ClientError::NoShard)?;
        if self.lanes[*lane].range.contains(key) { Ok(*lane) } else { Err(ClientError::NoShard) }
    }

    /// An empty builder, used before if there is one.
    pub fn builder(&mut self) -> BatchBuilder {
        self.spare_builders.pop().unwrap_or_else(|| BatchBuilder::new(self.config.batch))
    }

    /// Whether [`Producer::submit`] would take a batch for the lane now.
    #[must_use]
    pub fn has_room(&self, lane: usize) -> bool {
        let link = &self.links[self.link_of_lane[lane]];
        !self.lanes[lane].is_full() && link.bytes_under_way < self.config.window_bytes
    }

    /// Hands a batch over; its outcome comes from [`Producer::next_outcome`] under `tag`.
    ///
    /// # Panics
    /// When there is no room: ask [`Producer::has_room`] first.
    pub fn submit(&mut self, lane: usize, mut builder: BatchBuilder, tag: u64) {
        assert!(self.has_room(lane), "room is asked for first");
        let bytes = builder.close().len();
        self.links[self.link_of_lane[lane]].bytes_under_way += bytes;
        let batch = self.batches.insert(BatchUnderWay { builder, lane, tag, bytes });
        self.lanes[lane].push(batch as u32);
        self.pump_lane(lane);
    }

    /// Appends a record; false when there is no room for its batch now: poll, then try again.
    ///
    /// # Errors
    /// [`ClientError::NoShard`].
    pub fn append(&mut self, record: &NewRecord<'_>) -> Result<bool, ClientError> {
        let lane = self.lane_of(record.hash_key)?;
        let full = self.filling[lane].as_ref().is_some_and(|(batch, _)| !batch.fits(record));
        if full {
            if !self.has_room(lane) {
                return Ok(false);
            }
            self.submit_filling(lane);
        }
        if self.filling[lane].is_none() {
            let until_us = self.now_us() + self.config.linger.as_micros() as u64;
            let builder = self.builder();
            self.filling[lane] = Some((builder, until_us));
            self.filling_count += 1;
        }
        let (builder, _) = self.filling[lane].as_mut().expect("just made");
        if !builder.fits(record) {
            // Larger than a batch of the usual size: one of its own.
            let data_bytes = record.data.len() as u32;
            let key_bytes = record.key.len() as u32;
            *builder = BatchBuilder::new(BatchRoom { records: 1, key_bytes, data_bytes });
        }
        builder.push(record);
        Ok(true)
    }

    /// Sends what [`Producer::append`] holds back, as far as there is room.
    pub fn flush(&mut self) {
        for lane in 0..self.filling.len() {
            if self.filling[lane].is_some() && self.has_room(lane) {
                self.submit_filling(lane);
            }
        }
    }

    /// Whether every batch has its outcome.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.batches.is_empty() && self.filling_count == 0
    }

    /// The outcome of a batch; those of a shard come in the order of its offsets.
    pub fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Sends and receives; waits for at most `timeout` when there is nothing to do and no outcome
    /// to take.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when no node could be reached for too long; batches under way
    /// may have been stored.
    pub fn poll(&mut self, timeout: Duration) -> Result<(), ClientError> {
        let now_us = self.now_us();
        self.refresh_if_due(now_us)?;
        self.submit_lingering(now_us);
        for lane in std::mem::take(&mut self.delayed) {
            self.pump_lane(lane);
        }
        for link in 0..self.links.len() {
            self.write(link);
        }
        let timeout =
            if self.outcomes.is_empty() { self.wait(timeout, now_us) } else { Duration::ZERO };
        for link in self.wait_for_sockets(timeout)? {
            self.read(link)?;
        }
        for link in 0..self.links.len() {
            self.write(link);
        }
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    /// As long as `timeout` says, but not beyond what is due earlier.
    fn wait(&self, timeout: Duration, now_us: u64) -> Duration {
        let delayed =
            self.delayed.iter().filter_map(|lane| self.lanes[*lane].waits_until_us(now_us));
        let lingering = if self.filling_count == 0 {
            None
        } else {
            self.filling.iter().flatten().map(|(_, until_us)| *until_us).min()
        };
        let due = delayed.chain(lingering).chain(self.refresh_at_us).min();
        due.map_or(timeout, |due| timeout.min(Duration::from_micros(due.saturating_sub(now_us))))
    }

    fn wait_for_sockets(&self, timeout: Duration) -> Result<Vec<usize>, ClientError> {
        let mut places = Vec::with_capacity(self.links.len());
        let mut sockets = Vec::with_capacity(self.links.len());
        for (place, link) in self.links.iter().enumerate() {
            if let Some(stream) = &link.stream {
                let mut flags = PollFlags::IN;
                if link.wants_to_write() {
                    flags |= PollFlags::OUT;
                }
                places.push(place);
                sockets.push(PollFd::new(stream, flags));
            }
        }
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // A signal ends the wait early, which is as good as a timeout.
        let _ = poll(&mut sockets, Some(&timeout));
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let ready = places.into_iter().zip(&sockets);
        Ok(ready
            .filter(|(_, socket)| socket.revents().intersects(readable))
            .map(|(place, _)| place)
            .collect())
    }

    fn submit_lingering(&mut self, now_us: u64) {
        if self.filling_count == 0 {
            return;
        }
        for lane in 0..self.filling.len() {
            let due = self.filling[lane].as_ref().is_some_and(|(_, until_us)| *until_us <= now_us);
            if due && self.has_room(lane) {
                self.submit_filling(lane);
            }
        }
    }

    fn submit_filling(&mut self, lane: usize) {
        if let Some((builder, _)) = self.filling[lane].take() {
            self.filling_count -= 1;
            self.submit(lane, builder, 0);
        }
    }

    /// Queues what the lane may send now.
    fn pump_lane(&mut self, lane: usize) {
        let now_us = self.now_us();
        let link = self.link_of_lane[lane];
        if self.links[link].stream.is_none() {
            return;
        }
        while let Some((batch, sequence)) = self.lanes[lane].next_to_send(now_us) {
            let of = &self.lanes[lane];
            let identity = BatchIdentity {
                shard: of.shard,
                epoch: of.epoch,
                producer: of.producer,
                sequence,
                request_id: self.batches[batch as usize].tag,
            };
            self.batches[batch as usize].builder.finish(&identity);
            self.links[link].queue.push_back(batch);
        }
        if self.lanes[lane].waits_until_us(now_us).is_some() {
            self.delayed.push(lane);
        }
    }

    /// Writes frames until the socket takes no more or nothing is left.
    fn write(&mut self, link: usize) {
        let Producer { links, batches, .. } = self;
        let link_state = &mut links[link];
        loop {
            if link_state.stream.is_none() {
                return;
            }
            if link_state.out.written == link_state.out.total && !next_frame(link_state, batches) {
                return;
            }
            let Some(stream) = &mut link_state.stream else { return };
            match write_frame(stream, &link_state.out, batches) {
                Ok(written) => link_state.out.written += written,
                Err(error) if would_block(&error) => return,
                Err(_) => return self.lose(link),
            }
        }
    }

    /// Reads what has arrived on a link and takes the answers in.
    fn read(&mut self, link: usize) -> Result<(), ClientError> {
        let link_state = &mut self.links[link];
        let Some(stream) = &mut link_state.stream else { return Ok(()) };
        match link_state.inbox.read_from(stream) {
            Ok(1..) => {}
            Err(error) if would_block(&error) => return Ok(()),
            Ok(0) | Err(_) => {
                self.lose(link);
                return Ok(());
            }
        }
        let now_us = self.now_us();
        loop {
            let link_state = &mut self.links[link];
            let (header, payload) = match link_state.inbox.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            };
            match header.kind {
                FrameKind::ProduceAnswer => {}
                FrameKind::Error => return Err(ErrorAnswer::decode(payload)?.0.into()),
                kind => {
                    return Err(ClientError::UnexpectedAnswer { kind: format!("{kind:?}") });
                }
            }
            let Some(batches) = link_state.frames.try_remove(header.correlation as usize) else {
                return Err(ClientError::UnexpectedAnswer { kind: "ProduceAnswer".into() });
            };
            let mut lanes = Vec::with_capacity(batches.len());
            for (batch, ack) in batches.iter().zip(decode_acks(payload, header.items)?) {
                let lane = self.batches[*batch as usize].lane;
                if self.lanes[lane].on_ack(*batch, &ack?, now_us) == Reaction::RefreshRoute {
                    self.refresh_at_us = Some(self.refreshed_us + REFRESH_US);
                }
                lanes.push(lane);
            }
            let link_state = &mut self.links[link];
            let mut list = batches;
            list.clear();
            link_state.spare_lists.push(list);
            for lane in lanes {
                self.settle_lane(lane);
            }
        }
    }

    /// Hands out the outcomes of a lane and sends what may follow.
    fn settle_lane(&mut self, lane: usize) {
        while let Some(left) = self.lanes[lane].take_done() {
            self.report(lane, &left);
        }
        self.pump_lane(lane);
    }

    fn report(&mut self, lane: usize, left: &Left) {
        let batch = self.batches.remove(left.batch as usize);
        self.links[self.link_of_lane[lane]].bytes_under_way -= batch.bytes;
        let unknown =
            matches!(left.result, Err(refusal) if refusal.code == ErrorCode::ProducerUnknown);
        if unknown {
            self.lanes[lane].change_producer(new_producer_id());
        }
        let result = match left.result {
            Ok(stored) => Ok(Written {
                first_offset: stored.first_offset,
                append_time_ms: stored.append_time_ms,
                duplicate: stored.duplicate,
            }),
            Err(refusal) if left.outcome_unknown => Err(ProducerError::OutcomeUnknown(refusal)),
            Err(refusal) => Err(ProducerError::Refused(refusal)),
        };
        let mut builder = batch.builder;
        let (records, bytes, tag) = (builder.records(), batch.bytes, batch.tag);
        builder.clear();
        self.spare_builders.push(builder);
        self.outcomes.push_back(Outcome { lane, tag, records, bytes, result });
    }

    /// The connection is gone; everything on it is sent again once routes are known anew.
    fn lose(&mut self, link: usize) {
        let state = &mut self.links[link];
        state.stream = None;
        state.inbox = Inbox::default();
        state.queue.clear();
        state.frames.clear();
        state.out = OutFrame::default();
        for lane in 0..self.lanes.len() {
            if self.link_of_lane[lane] == link {
                self.lanes[lane].on_connection_lost();
            }
        }
        let now_us = self.now_us();
        self.unreachable_since_us.get_or_insert(now_us);
        self.refresh_at_us = Some(now_us);
    }

    fn refresh_if_due(&mut self, now_us: u64) -> Result<(), ClientError> {
        if self.refresh_at_us.is_none_or(|due_us| now_us < due_us) {
            return Ok(());
        }
        match self.refresh() {
            Ok(()) => {
                self.backoff_us = BACKOFF_US.0;
                self.unreachable_since_us = None;
                Ok(())
            }
            Err(error) => {
                let since_us = *self.unreachable_since_us.get_or_insert(now_us);
                let tried = Duration::from_micros(now_us.saturating_sub(since_us));
                if tried >= self.config.retry_for {
                    let (seconds, last) = (tried.as_secs(), Box::new(error));
                    return Err(ClientError::Unreachable { seconds, last });
                }
                self.refresh_at_us = Some(now_us + self.backoff_us);
                self.backoff_us = (self.backoff_us * 2).min(BACKOFF_US.1);
                Ok(())
            }
        }
    }

    /// Learns the node's cores and shards; connects what is not connected.
    fn refresh(&mut self) -> Result<(), ClientError> {
        let node = self.config.node;
        let description = Admin::connect(node, ADMIN_TIMEOUT)?.hello()?;
        let cores: Vec<SocketAddr> =
            description.ports.iter().map(|port| SocketAddr::new(node.ip(), *port)).collect();
        let mut shards = Vec::new();
        for (core, address) in cores.iter().enumerate() {
            let found = Admin::connect(*address, ADMIN_TIMEOUT)?.describe(self.config.stream)?;
            shards.extend(found.into_iter().map(|shard| (core, shard)));
        }
        shards.sort_by_key(|(_, shard)| shard.extent.shard);
        self.connect_links(&cores)?;
        for (core, shard) in shards {
            let index = shard.extent.shard.index;
            let wanted = self.config.shards.is_empty() || self.config.shards.contains(&index);
            if wanted {
                self.route(core, &shard);
            }
        }
        self.by_range =
            self.lanes.iter().enumerate().map(|(at, lane)| (lane.range.start, at)).collect();
        self.by_range.sort_unstable();
        self.refresh_at_us = None;
        self.refreshed_us = self.now_us();
        (0..self.lanes.len()).for_each(|lane| self.pump_lane(lane));
        Ok(())
    }

    fn connect_links(&mut self, cores: &[SocketAddr]) -> Result<(), ClientError> {
        let count = self.config.connections_per_core.max(1);
        if self.links.is_empty() {
            for (core, address) in cores.iter().enumerate() {
                self.links.extend((0..count).map(|_| Link::new(core, *address)));
            }
        }
        for link in &mut self.links {
            // A node that came back with fewer cores serves their shards on others.
            link.core = link.core.min(cores.len() - 1);
            if link.stream.is_none() || link.address != cores[link.core] {
                link.address = cores[link.core];
                let stream = connect(link.address, ADMIN_TIMEOUT)?;
                let address = link.address;
                stream
                    .set_nonblocking(true)
                    .map_err(|source| ClientError::Connection { address, source })?;
                link.stream = Some(stream);
            }
        }
        Ok(())
    }

    /// Notes where a shard is.
    fn route(&mut self, core: usize, shard: &thalweg_wire::control::ShardDescription) {
        let id = shard.extent.shard;
        let of_core: Vec<usize> =
            (0..self.links.len()).filter(|link| self.links[*link].core == core).collect();
        let known = self.lanes.iter().position(|lane| lane.shard == id);
        let Some(lane) = known else {
            let link = of_core[self.lanes.len() % of_core.len()];
            self.lanes.push(Lane::new(
                id,
                shard.range,
                shard.extent.epoch,
                new_producer_id(),
                self.config.repeat_throttled,
            ));
            self.link_of_lane.push(link);
            self.filling.push(None);
            return;
        };
        let epoch: Epoch = shard.extent.epoch;
        self.lanes[lane].epoch = self.lanes[lane].epoch.max(epoch);
        let link = self.link_of_lane[lane];
        if self.links[link].core != core {
            self.move_lane(lane, of_core[lane % of_core.len()]);
        }
    }

    /// What the lane has under way counts on its new link.
    fn move_lane(&mut self, lane: usize, link: usize) {
        let bytes: usize = self
            .batches
            .iter()
            .filter(|(_, batch)| batch.lane == lane)
            .map(|(_, batch)| batch.bytes)
            .sum();
        let old = std::mem::replace(&mut self.link_of_lane[lane], link);
        self.links[old].bytes_under_way -= bytes;
        self.links[link].bytes_under_way += bytes;
    }
}

/// A new identity: random, so that no two producers share one.
fn new_producer_id() -> ProducerId {
    ProducerId(getrandom::u64().expect("the system's random source works once it has started"))
}

/// Puts batches of the queue into the link's next frame; false when there are none.
fn next_frame(link: &mut Link, batches: &Slab<BatchUnderWay>) -> bool {
    let Some(first) = link.queue.pop_front() else { return false };
    let mut list = link.spare_lists.pop().unwrap_or_default();
    let out = &mut link.out;
    out.bytes.clear();
    out.bytes.resize(FRAME_HEADER_BYTES, 0);
    out.written = 0;
    list.push(first);
    let first_bytes = batches[first as usize].builder.bytes();
    out.large = (first_bytes.len() >= SMALL_BATCH_BYTES).then_some(first);
    let mut payload_bytes = padded_bytes(first_bytes.len());
    if out.large.is_none() {
        push_padded(&mut out.bytes, first_bytes);
        while let Some(next) = link.queue.front().copied() {
            let bytes = batches[next as usize].builder.bytes();
            let total = payload_bytes + padded_bytes(bytes.len());
            let fits = bytes.len() < SMALL_BATCH_BYTES
                && list.len() < FRAME_BATCHES_MAX as usize
                && total <= FRAME_MANY_BATCHES_BYTES_MAX as usize;
            if !fits {
                break;
            }
            link.queue.pop_front();
            list.push(next);
            push_padded(&mut out.bytes, bytes);
            payload_bytes = total;
        }
    }
    let items = list.len() as u32;
    let correlation = link.frames.insert(list) as u64;
    let kind = FrameKind::Produce;
    let header = FrameHeader { kind, payload_bytes: payload_bytes as u32, items, correlation };
    out.bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    out.total = header.frame_bytes();
    true
}

fn push_padded(bytes: &mut Vec<u8>, batch: &[u8]) {
    bytes.extend_from_slice(batch);
    bytes.resize(bytes.len() + padded_bytes(batch.len()) - batch.len(), 0);
}

fn write_frame(
    stream: &mut impl Write,
    out: &OutFrame,
    batches: &Slab<BatchUnderWay>,
) -> std::io::Result<usize> {
    let large = out.large.map_or(&[][..], |batch| batches[batch as usize].builder.bytes());
    let padding = [0; 16];
    let padding = &padding[..out.total - out.bytes.len() - large.len()];
    let written = write_pieces(stream, [&out.bytes[..], large, padding].into_iter(), out.written)?;
    if written == 0 { Err(std::io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}
