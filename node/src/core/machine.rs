//! A core, turning: takes completions, messages and ticks, and emits operations.
//!
//! It never blocks and never reads a clock: time is handed to it. One turn takes all completions
//! in, then settles: what became durable is answered, what may be written is submitted, what
//! waits is sent. Nothing is decided twice within a turn.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use slab::Slab;
use thalweg_wire::control::ExtentState;
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind};
use thalweg_wire::ids::Epoch;
use thalweg_wire::limits;

use super::acknowledge::{Pending, ProduceInProgress};
use super::connection::{
    Connection, ConnectionKey, Connections, Ending, LARGE_FRAME_BYTES, LARGE_FRAMES_MAX, Payload,
    Progress,
};
use super::fairness::Accounts;
use super::fetch::{Fetch, FooterCache};
use super::memory::Shortage;
pub use super::message::{CoreMessage, CoreRequest, CoreSettings, Time};
use super::reads::{Reading, Reads};
use super::shard::{Placement, Shards};
use super::subscribe::Subscriptions;
use super::upkeep::{Filling, Upkeep};
use crate::counters::Counters;
use crate::io::arena::PAGE_BYTES;
use crate::io::{Completion, ConnectionId, Errno, Io, Piece, Token};
use crate::log::segments::Log;
use crate::metrics::{Distributions, Gauges};

/// Frames smaller than this have a second to arrive, whatever the minimum rate.
const FRAME_GRACE_US: u64 = 1_000_000;
/// How often slow senders and readers are looked for.
const TICK_US: u64 = 100_000;
/// How long a connection that is closing may take to accept its last answer.
const LAST_ANSWER_US: u64 = 1_000_000;
/// While memory is short, a connection whose peer has not taken what is being sent to it for so
/// long is closed: its output cannot leave memory, and everybody's batches wait for that.
const STALLED_US: u64 = 5_000_000;
/// A core wakes at least this often, to look after what no completion tells of.
const IDLE_US: u64 = 1_000_000;

/// A core. `I` is the world: a ring, a simulator, or nothing.
pub struct Core<I: Io> {
    pub(super) io: I,
    pub(super) time: Time,
    pub(super) settings: CoreSettings,
    pub(super) placement: Arc<Placement>,
    pub(super) logs: Vec<Log>,
    pub(super) shards: Shards,
    /// Answers that wait for a log, in the order of their positions.
    pub(super) pending: Vec<VecDeque<Pending>>,
    pub(super) produces: Slab<ProduceInProgress>,
    /// Memory of answers that were sent, for the next; as many as were ever on their way at once.
    pub(super) spare_answers: Vec<Vec<u8>>,
    /// Memory for the batches of the frame that is served.
    pub(super) spare_pieces: Vec<Piece>,
    pub(super) fetches: Slab<Fetch>,
    /// What is read from each log.
    pub(super) reading: Vec<Reading>,
    pub(super) reads: Reads,
    /// When waiting fetches are answered though nothing came: time and fetch.
    pub(super) fetches_due: BTreeSet<(u64, u32)>,
    pub(super) subscriptions: Subscriptions,
    pub(super) footers: FooterCache,
    pub(super) counters: Counters,
    pub(super) distributions: Arc<Distributions>,
    pub(super) connections: Connections,
    pub(super) accounts: Accounts,
    serials: u64,
    /// Connections whose output or input may go on, to be looked at once a turn.
    pub(super) touched: Vec<ConnectionId>,
    /// Memory for the next round of them.
    spare: Vec<ConnectionId>,
    waiting_for_memory: VecDeque<ConnectionKey>,
    large_frames: u32,
    pub(super) shortage: Shortage,
    pub(super) requests: Vec<CoreRequest>,
    pub(super) filling: Vec<Filling>,
    /// Since when a log's sync is in flight.
    pub(super) sync_began_us: Vec<Option<u64>>,
    pub(super) upkeep: Upkeep,
    /// Whether shards wait for space to be opened after the start.
    pub(super) has_unopened_shards: bool,
    next_tick_us: u64,
    /// Whether a tick has something to look after: a frame that is due, a connection that ends.
    pub(super) watching: bool,
    stopping: bool,
}

impl<I: Io> Core<I> {
    /// A core with its logs, whose state was recovered.
    #[must_use]
    pub fn new(
        io: I,
        settings: CoreSettings,
        placement: Arc<Placement>,
        logs: Vec<Log>,
        time: Time,
    ) -> Core<I> {
        let mut accounts = Accounts::new(settings.in_flight_bytes.clone());
        let shards = Shards::from_logs(&logs, &mut accounts, time.now_us);
        for place in shards.places() {
            placement.claim(shards.at(place).id, settings.core);
        }
        let memory_bytes = io.memory().total_bytes();
        let footers = FooterCache::new(memory_bytes / 16);
        let count = logs.len();
        let upkeep = Upkeep::new(&settings, count, time);
        Core {
            io,
            time,
            settings,
            placement,
            logs,
            shards,
            pending: (0..count).map(|_| VecDeque::new()).collect(),
            produces: Slab::new(),
            spare_answers: Vec::new(),
            spare_pieces: Vec::new(),
            fetches: Slab::new(),
            reading: (0..count).map(|_| Reading::default()).collect(),
            reads: Reads::new(memory_bytes),
            fetches_due: BTreeSet::new(),
            subscriptions: Subscriptions::default(),
            footers,
            counters: Counters::default(),
            distributions: Arc::default(),
            connections: Connections::default(),
            accounts,
            serials: 0,
            touched: Vec::new(),
            spare: Vec::new(),
            waiting_for_memory: VecDeque::new(),
            large_frames: 0,
            shortage: Shortage::default(),
            requests: Vec::new(),
            filling: vec![Filling::default(); count],
            sync_began_us: vec![None; count],
            upkeep,
            has_unopened_shards: false,
            next_tick_us: time.now_us,
            watching: false,
            stopping: false,
        }
    }

    /// Seals what an earlier start left open and opens it anew under the next epoch: what a
    /// controller would do, for a node that has none. Counts those it opened. A shard on a full
    /// disk stays closed until there is space for its record.
    ///
    /// # Errors
    /// The refusal of the first shard that could not be opened for another reason; what is open
    /// already is passed over the next time.
    pub fn reopen_shards(&mut self, opened: &mut usize) -> Result<(), Refusal> {
        let mut without_space = false;
        for place in self.shards.places() {
            let newest = self.shards.at(place).newest();
            let record = &self.logs[newest.log as usize].extent(newest.number).record;
            if record.state == ExtentState::Open && record.boot != self.settings.boot {
                let mut open = record.open;
                open.extent.epoch = Epoch(open.extent.epoch.0 + 1);
                open.first_offset = record.end;
                match self.open_next(place, open) {
                    Err(refusal) if refusal.code == ErrorCode::NoSpace => without_space = true,
                    other => {
                        other?;
                        *opened += 1;
                    }
                }
            }
        }
        self.has_unopened_shards = without_space;
        Ok(())
    }

    /// One turn: takes in what completed, then settles. Answers how long nothing will happen by
    /// itself, in microseconds.
    pub fn turn(&mut self, time: Time, completions: &mut Vec<Completion>) -> u64 {
        self.time = time;
        for completion in completions.drain(..) {
            self.take_in(completion);
        }
        self.tick();
        self.settle();
        self.idle_us()
    }

    /// The world, to wait for completions.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// The world.
    #[must_use]
    pub fn io(&self) -> &I {
        &self.io
    }

    /// The world alone: the core ends here, wherever it was.
    #[must_use]
    pub fn into_io(self) -> I {
        self.io
    }

    /// The logs.
    #[must_use]
    pub fn logs(&self) -> &[Log] {
        &self.logs
    }

    /// The shards.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        for log in &self.logs {
            let (groups, bytes, syncs) = log.figures();
            counters.groups_written += groups;
            counters.bytes_written += bytes;
            counters.syncs += syncs;
        }
        counters
    }

    /// Has the core observe into these from now on.
    pub fn set_distributions(&mut self, distributions: Arc<Distributions>) {
        self.distributions = distributions;
    }

    /// Its figures of the moment: looked up, nothing is walked through but the logs.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let memory = self.io.memory();
        let mut gauges = Gauges {
            connections: self.connections.len() as u64,
            subscriptions: self.subscriptions.count() as u64,
            shards: self.shards.count() as u64,
            limited_shards: self.shards.limited_count() as u64,
            room_shards: self.room_shards(),
            produces_open: self.produces.len() as u64,
            fetches_open: self.fetches.len() as u64,
            uncommitted_bytes: self.accounts.in_flight_bytes(),
            logs: self.logs.len() as u64,
            buffer_bytes: memory.total_bytes() as u64,
            buffer_free_bytes: memory.free_bytes() as u64,
            buffer_read_bytes: self.reads.kept_bytes() as u64,
            buffer_footer_bytes: self.footers.bytes() as u64,
            ..Gauges::default()
        };
        for log in &self.logs {
            gauges.logs_failed += u64::from(log.failed().is_some());
            gauges.logs_without_space += u64::from(log.has_no_space());
            gauges.buffer_tail_bytes += log.cache().bytes() as u64;
            let (sealed, open) = (log.sealed_count() as u64, u64::from(log.has_open_segment()));
            let (free, leaving) = (log.free_segments() as u64, log.leaving_count() as u64);
            gauges.segments_sealed += sealed;
            gauges.segments_open += open;
            gauges.segments_free += free;
            gauges.segments_leaving += leaving;
            let segments = sealed + open + free + leaving;
            gauges.segment_bytes += segments * log.identity().segment_bytes;
        }
        gauges
    }

    /// What the core asks for; each request once.
    pub fn take_requests(&mut self) -> Vec<CoreRequest> {
        std::mem::take(&mut self.requests)
    }

    /// Something was told from outside.
    pub fn tell(&mut self, message: CoreMessage) {
        match message {
            CoreMessage::SegmentReady { log, segment } => self.filled(log, Ok(segment)),
            CoreMessage::SegmentFailed { log, errno } => self.filled(log, Err(errno)),
            CoreMessage::Merged { log, result } => self.merged(log, result),
            CoreMessage::Scrubbed { log, result } => self.scrubbed(log, result),
            CoreMessage::Stop => self.stopping = true,
        }
    }

    /// Whether everything that was taken has been answered and made durable.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let logs_idle =
            self.logs.iter().all(|log| !log.is_busy() && (log.is_idle() || log.failed().is_some()));
        logs_idle
            && self.pending.iter().all(VecDeque::is_empty)
            && self.connections.values().all(|connection| connection.output.is_empty())
    }

    /// Shuts all connections down; answers how many there are.
    pub fn shut_connections(&mut self) -> usize {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        ids.iter().for_each(|id| self.shut(*id));
        ids.len()
    }

    fn take_in(&mut self, completion: Completion) {
        let Completion { token, result } = completion;
        match token {
            Token::Accept => self.accepted(result),
            Token::Receive(id) => self.received(id, result),
            Token::Send(id) => self.sent(id, result),
            Token::Shutdown(id) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.ending = Ending::Shutdown { completed: true };
                    self.touched.push(id);
                }
            }
            Token::Close(id) => self.closed(id),
            Token::Write { log, unit } => {
                let failed_before = self.logs[log as usize].failed();
                self.logs[log as usize].on_write(&mut self.io, unit, result);
                self.note_result(log, failed_before);
            }
            Token::Sync { log } => {
                let failed_before = self.logs[log as usize].failed();
                self.logs[log as usize].on_sync(&mut self.io, result);
                self.note_result(log, failed_before);
            }
            Token::Read { read } => self.read_completed(read, result),
            Token::Wake => {}
        }
    }

    /// Notes when a sync begins and how long it took.
    fn note_sync(&mut self, log: u32) {
        let began_us = &mut self.sync_began_us[log as usize];
        if self.logs[log as usize].is_syncing() {
            began_us.get_or_insert(self.time.now_us);
        } else if let Some(began_us) = began_us.take() {
            let took_us = self.time.now_us - began_us;
            self.counters.sync_us_max = self.counters.sync_us_max.max(took_us);
            self.distributions.sync_us.observe(took_us);
            self.accounts.synced(took_us, self.time.now_us);
        }
    }

    /// Takes note of a write or sync that ended, and says so when it stopped its log.
    fn note_result(&mut self, log: u32, failed_before: Option<Errno>) {
        self.note_sync(log);
        if failed_before.is_none()
            && let Some(errno) = self.logs[log as usize].failed()
        {
            let identity = self.logs[log as usize].identity();
            tracing::error!(
                disk = %identity.disk, log = identity.log, class = identity.retention_class, %errno,
                "the log stopped after a failed write or sync; nothing more is acked from it: \
                 check the disk, then restart the node"
            );
        }
    }

    fn settle(&mut self) {
        (0..self.logs.len()).for_each(|log| self.acknowledge(log));
        self.resume_turns();
        for log in 0..self.logs.len() {
            self.give_back(log);
            self.logs[log].pump(&mut self.io);
            self.note_sync(log as u32);
        }
        self.request_segments();
        (0..self.logs.len()).for_each(|log| self.resume_fetches(log));
        self.resume_subscriptions();
        self.resume_receives();
        // Going on with one may touch it, or another, again.
        while !self.touched.is_empty() {
            let mut touched = std::mem::replace(&mut self.touched, std::mem::take(&mut self.spare));
            touched.drain(..).for_each(|id| self.go_on(id));
            self.spare = touched;
        }
    }

    fn accepted(&mut self, result: Result<u32, Errno>) {
        let id = match result {
            Ok(id) => ConnectionId(id),
            Err(errno) => {
                tracing::warn!(%errno, "a connection could not be accepted");
                return;
            }
        };
        let key = ConnectionKey { id, serial: self.serials };
        self.serials += 1;
        let full = self.stopping || self.connections.len() >= self.settings.connections_max;
        let head = if full { None } else { self.allocate(PAGE_BYTES) };
        match head {
            Some(head) => {
                self.counters.connections_accepted += 1;
                self.connections.insert(id, Connection::new(key, head));
                self.touched.push(id);
            }
            None => {
                self.counters.connections_refused += 1;
                let (open, most) = (self.connections.len(), self.settings.connections_max);
                let stopping = self.stopping;
                tracing::warn!(open, most, stopping, "a connection is refused: for want of room");
                self.io.close(id);
            }
        }
    }

    fn received(&mut self, id: ConnectionId, result: Result<u32, Errno>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match result {
            Ok(bytes) if bytes > 0 => {
                connection.on_received(bytes as usize);
                self.serve_frames(id);
            }
            _ => {
                tracing::debug!(?result, "a connection ended");
                // The peer ended the stream, or it broke. What was taken from it is finished, and
                // answered if it still listens.
                connection.receiving = false;
                if connection.ending == Ending::No {
                    self.shut(id);
                }
            }
        }
        self.touched.push(id);
    }

    /// Serves the frames that have arrived on a connection, as far as it may.
    pub(super) fn serve_frames(&mut self, id: ConnectionId) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if connection.receiving || !connection.takes_frames() || self.stopping {
                return;
            }
            let key = connection.key;
            if !self.accounts.give_turn(connection) {
                return;
            }
            match connection.next_frame(&mut self.io) {
                Progress::Frame(header, payload) => {
                    if header.payload_bytes as usize > LARGE_FRAME_BYTES {
                        self.large_frames -= 1;
                    }
                    connection.frame_due_us = None;
                    self.counters.frames_received += 1;
                    self.serve(key, &header, payload);
                }
                Progress::NeedsBytes => {
                    if connection.is_within_frame() && connection.frame_due_us.is_none() {
                        connection.frame_due_us = Some(self.time.now_us + FRAME_GRACE_US);
                        self.watching = true;
                    }
                    return;
                }
                Progress::NeedsBuffer(bytes, payload_bytes) => {
                    if !self.start_body(key, bytes, payload_bytes) {
                        return;
                    }
                }
                Progress::Refused(refusal) => return self.refuse_connection(key, refusal),
            }
        }
    }

    /// Gives a frame its buffer; false when it must wait for one.
    fn start_body(&mut self, key: ConnectionKey, bytes: usize, payload_bytes: usize) -> bool {
        let large = payload_bytes > LARGE_FRAME_BYTES;
        let buffer = if large && self.large_frames >= LARGE_FRAMES_MAX {
            None
        } else {
            self.allocate_for_receiving(bytes)
        };
        let connection = self.connections.get_mut(&key.id).expect("its frame is being served");
        let Some(buffer) = buffer else {
            if !std::mem::replace(&mut connection.waits_for_memory, true) {
                self.waiting_for_memory.push_back(key);
            }
            // The sender is not late while it is us who do not receive.
            connection.frame_due_us = None;
            return false;
        };
        self.large_frames += u32::from(large);
        connection.start_body(&mut self.io, buffer);
        let allowed_us =
            payload_bytes as u64 * 1_000_000 / self.settings.min_frame_bytes_per_s.max(1);
        connection.frame_due_us = Some(self.time.now_us + allowed_us.max(FRAME_GRACE_US));
        self.watching = true;
        true
    }

    /// Connections that waited for memory go on, in the order they came.
    fn resume_receives(&mut self) {
        while let Some(key) = self.waiting_for_memory.front().copied() {
            self.waiting_for_memory.pop_front();
            let Some(connection) = self.connection(key) else { continue };
            connection.waits_for_memory = false;
            self.serve_frames(key.id);
            self.touched.push(key.id);
            if self.connection(key).is_some_and(|connection| connection.waits_for_memory) {
                // Still none: it keeps its turn.
                let last = self.waiting_for_memory.pop_back().expect("it was put in last");
                self.waiting_for_memory.push_front(last);
                return;
            }
        }
    }

    pub(super) fn connection(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.connections.get_mut(&key.id).filter(|connection| connection.key == key)
    }

    fn serve(&mut self, key: ConnectionKey, header: &FrameHeader, payload: Payload) {
        match header.kind {
            FrameKind::Produce => return self.produce(key, header, payload),
            FrameKind::Fetch => self.fetch(key, header, payload.piece),
            FrameKind::Subscribe => self.subscribe(key, header, payload.piece),
            FrameKind::Credit => self.credit(key, payload.piece),
            FrameKind::Hello
            | FrameKind::Describe
            | FrameKind::OpenExtent
            | FrameKind::FenceExtent
            | FrameKind::SealExtent
            | FrameKind::TrimShard
            | FrameKind::DeleteShard => self.control(key, header, payload.piece),
            _ => self.refuse_request(key, header.correlation, ErrorCode::UnsupportedKind.into()),
        }
        if payload.owned {
            self.io.memory_mut().release(payload.piece.buffer);
        }
    }

    /// Answers a request as a whole with a refusal.
    pub(super) fn refuse_request(&mut self, key: ConnectionKey, correlation: u64, why: Refusal) {
        self.counters.refusals += 1;
        self.answer(key, FrameKind::Error, 0, correlation, &ErrorAnswer(why).encode());
    }

    /// Tells a peer that does not keep to the protocol, and closes. Only its own connection is
    /// touched.
    pub(super) fn refuse_connection(&mut self, key: ConnectionKey, why: Refusal) {
        self.refuse_request(key, 0, why);
        let due_us = self.time.now_us + LAST_ANSWER_US;
        if let Some(connection) = self.connection(key)
            && connection.ending == Ending::No
        {
            connection.ending = Ending::AfterOutput(due_us);
            self.watching = true;
            self.touched.push(key.id);
        }
    }

    /// Appends a small answer to a connection's output, if the connection is still there.
    pub(super) fn answer(
        &mut self,
        key: ConnectionKey,
        kind: FrameKind,
        items: u32,
        correlation: u64,
        payload: &[u8],
    ) {
        let payload_bytes = payload.len() as u32;
        let header = FrameHeader { kind, payload_bytes, items, correlation };
        self.push_output(key, &header.encode());
        self.push_output(key, payload);
    }

    /// Appends bytes to a connection's output. A connection for whose answer there is no memory
    /// is closed: what it was told of is durable, and repetitions are recognised.
    pub(super) fn push_output(&mut self, key: ConnectionKey, bytes: &[u8]) {
        let Some(connection) =
            self.connections.get_mut(&key.id).filter(|connection| connection.key == key)
        else {
            return;
        };
        let (logs, reads) = (&mut self.logs, &mut self.reads);
        let pushed = connection.output.push_bytes(self.io.memory_mut(), bytes, |memory| {
            loop {
                if let Some(page) = memory.allocate(PAGE_BYTES) {
                    return Some(page);
                }
                let evicted = logs.iter_mut().find_map(|log| log.cache_mut().evict());
                memory.release(evicted.or_else(|| reads.forget_oldest())?);
            }
        });
        self.touched.push(key.id);
        if !pushed {
            self.memory_is_short();
            tracing::warn!("a connection is closed: no memory for its answers");
            self.shut(key.id);
        }
    }

    fn sent(&mut self, id: ConnectionId, result: Result<u32, Errno>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let memory = self.io.memory_mut();
        let sent = result.map_or(usize::MAX, |bytes| bytes as usize);
        if !connection.output.on_sent(memory, sent) {
            tracing::debug!(?result, "a send failed or was cut short: the connection is closed");
            self.shut(id);
        } else if connection.takes_events() {
            self.subscriptions.resume(connection.held_back.drain(..));
        }
        self.touched.push(id);
    }

    /// Sends, receives, or brings to its end, whatever the connection's state asks for.
    fn go_on(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if matches!(connection.ending, Ending::No | Ending::AfterOutput(_)) {
            self.send(id);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.ending {
            Ending::No => {
                if !connection.receiving && !connection.waits() {
                    // Frames may have been left while it was not allowed to have more taken.
                    self.serve_frames(id);
                    self.receive(id);
                }
            }
            Ending::AfterOutput(_) => {
                if connection.output.is_empty() {
                    self.shut(id);
                    self.go_on(id);
                }
            }
            Ending::Shutdown { completed } => {
                if completed && !connection.receiving && !connection.output.is_sending() {
                    connection.ending = Ending::Closing;
                    self.io.close(id);
                }
            }
            Ending::Closing => {}
        }
    }

    fn receive(&mut self, id: ConnectionId) {
        let stopping = self.stopping;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let may = connection.takes_frames() && !connection.waits() && !stopping;
        if may && !connection.receiving {
            connection.receive(&mut self.io);
        }
        // What serving added to the output goes out in this turn.
        self.send(id);
    }

    fn send(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let pieces = connection.output.start_send();
        if !pieces.is_empty() {
            self.io.send(id, pieces);
            connection.send_began_us = self.time.now_us;
        }
    }

    fn shut(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if matches!(connection.ending, Ending::No | Ending::AfterOutput(_)) {
            connection.ending = Ending::Shutdown { completed: false };
            self.io.shutdown(id);
            self.touched.push(id);
        }
    }

    fn closed(&mut self, id: ConnectionId) {
        if let Some(mut connection) = self.connections.remove(&id) {
            for (_, serial) in &connection.subscriptions {
                self.end_subscription(*serial);
            }
            let large = connection.release(&mut self.io);
            self.large_frames -= u32::from(large);
        }
    }

    fn tick(&mut self) {
        while let Some((due_us, fetch)) = self.fetches_due.first().copied() {
            if due_us > self.time.now_us {
                break;
            }
            self.fetches_due.pop_first();
            self.fetch_is_due(fetch);
        }
        self.look_after_segments();
        if !self.watching || self.time.now_us < self.next_tick_us {
            return;
        }
        self.next_tick_us = self.time.now_us + TICK_US;
        let now_us = self.time.now_us;
        let late = |due: Option<u64>| due.is_some_and(|due_us| due_us <= now_us);
        let mut slow = Vec::new();
        let mut overdue = Vec::new();
        let mut stalled = Vec::new();
        let is_short = self.shortage.lasts(now_us);
        self.watching = self.shortage.is_there();
        for connection in self.connections.values() {
            self.watching |= connection.frame_due_us.is_some() || connection.ending != Ending::No;
            match connection.ending {
                Ending::AfterOutput(due_us) if late(Some(due_us)) => {
                    overdue.push(connection.key.id)
                }
                Ending::No if late(connection.frame_due_us) => slow.push(connection.key),
                Ending::No if is_short && connection.has_stalled(now_us, STALLED_US) => {
                    stalled.push(connection.key.id)
                }
                _ => {}
            }
        }
        overdue.into_iter().for_each(|id| self.shut(id));
        for id in stalled {
            tracing::warn!("a connection is closed: memory is short and it takes nothing");
            self.counters.stalled_readers_closed += 1;
            self.shut(id);
        }
        let rate = self.settings.min_frame_bytes_per_s;
        for key in slow {
            self.refuse_connection(key, Refusal::new(ErrorCode::TooSlow, rate));
        }
    }

    /// How long nothing happens by itself.
    fn idle_us(&self) -> u64 {
        let tick = self.watching.then_some(self.next_tick_us);
        let fetch = self.fetches_due.first().map(|(due_us, _)| *due_us);
        let upkeep = Some(self.upkeep.next_us());
        let fill = self.filling.iter().filter_map(Filling::retry_us).min();
        let next = [tick, fetch, fill, upkeep].into_iter().flatten().min();
        let until = next.map_or(IDLE_US, |due_us| due_us.saturating_sub(self.time.now_us));
        until.min(IDLE_US)
    }
}

/// A request's answer never carries more items than its frame may.
const _: () = assert!(limits::FRAME_BATCHES_MAX <= u16::MAX as u32);
