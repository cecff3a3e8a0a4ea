//! A shard's lane in the router: what its calls bring, until each is answered.
//!
//! A lone call leaves at once. While its batch is on its way, what comes is gathered and leaves as
//! one batch with the answer; from 64 KiB on it does not wait for that, and up to eight batches are
//! under way. What an answer means, what is sent again and under which sequence is decided by the
//! client's [`Lane`]; here is what surrounds it: the calls, the link, routes and time.
//!
//! Records are independent of each other. When the shard's limits take only some of a batch, the node
//! stores nothing, says which, and holds the tokens for those under the batch's request id
//! (docs/protocol.md, Produce): the others are refused here, and the batch is sent again at once
//! without them.
//!
//! Whoever holds a lane's state may take that of its link, never the other way round.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use slab::Slab;
use thalweg_client::lane::{Lane, Left, Reaction};
use thalweg_wire::build::BatchIdentity;
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, ProducerId, ShardId};
use thalweg_wire::produce::{Ack, Verdicts};
use tokio::sync::Semaphore;

use super::bundle::{Bundle, Room};
use super::link::NodeLink;
use super::outgoing::{BatchOwner, LONE_BATCH_BYTES, OutBatch};
use super::routes::{Route, Stale};
use super::writer::{AppendError, Context};

/// So many bytes that wait do not wait for an answer. A batch of as many travels alone anyway.
const GATHERED_BYTES: usize = LONE_BATCH_BYTES;
/// Routes are asked for again at most this often, by each lane.
const REFRESH_US: u64 = 20_000;
/// How long a shard's refusal is taken to hold for others as well: what was granted and then
/// failed is given back, so that a refusal is no promise.
const HINT_US_MAX: u64 = 1_000_000;
/// How long a lane without anything to do is kept.
const IDLE_US_MAX: u64 = 600_000_000;

/// See the module.
pub(super) struct ShardLane {
    shard: ShardId,
    context: Arc<Context>,
    me: Weak<ShardLane>,
    /// Bytes that calls may have here.
    room: Arc<Semaphore>,
    state: Mutex<LaneState>,
}

struct LaneState {
    lane: Lane,
    link: Option<NodeLink>,
    /// Where the lane goes once nothing of it is under way: answers come on the link that asked.
    next_link: Option<NodeLink>,
    /// Not in the lane yet, in order.
    waiting: VecDeque<Bundle>,
    waiting_bytes: usize,
    /// In the lane, by the lane's names for them.
    under_way: Slab<Bundle>,
    /// When somebody will look again.
    alarm_us: Option<u64>,
    is_refreshing: bool,
    refreshed_us: u64,
    throttled: Option<ThrottleHint>,
    /// Batches that were formed.
    requests: u64,
    used_us: u64,
}

/// What a refusal says of others: until then, a record of as many bytes is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ThrottleHint {
    bytes: u64,
    until_us: u64,
}

impl ShardLane {
    /// An empty lane.
    pub(super) fn new(shard: ShardId, context: &Arc<Context>) -> Arc<ShardLane> {
        Arc::new_cyclic(|me| {
            // Throttling is told to the caller; the range is known to who routes.
            let mut lane = Lane::new(shard, HashRange::FULL, Epoch(0), random_identity(), false);
            lane.set_patience_us(context.patience_us());
            // The catalog knows the children that its records go to.
            lane.end_when_closed();
            let state = LaneState {
                lane,
                link: None,
                next_link: None,
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                under_way: Slab::new(),
                alarm_us: None,
                is_refreshing: false,
                refreshed_us: 0,
                throttled: None,
                requests: 0,
                used_us: context.now_us(),
            };
            let room = Arc::new(Semaphore::new(context.config.shard_bytes_max));
            let (context, me) = (context.clone(), me.clone());
            ShardLane { shard, context, me, room, state: Mutex::new(state) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Waits, in turn, until there is room for so many bytes of a call.
    pub(super) async fn take_room(&self, bytes: usize) -> Room {
        let open = "room is never closed";
        let permits = |max: usize| u32::try_from(bytes.min(max)).expect("at most 4 GiB");
        let of_shard = permits(self.context.config.shard_bytes_max);
        let of_shard = self.room.clone().acquire_many_owned(of_shard).await.expect(open);
        let of_all = permits(self.context.config.bytes_max);
        let of_all = self.context.room.clone().acquire_many_owned(of_all).await.expect(open);
        (of_shard, of_all)
    }

    /// Takes what a call brings: its bundles leave in order and together.
    pub(super) fn submit(&self, bundles: Vec<Bundle>) {
        let mut state = self.lock();
        state.used_us = self.context.now_us();
        for bundle in bundles {
            state.waiting_bytes += bundle.bytes();
            state.waiting.push_back(bundle);
        }
        if state.link.is_none() && state.next_link.is_none() {
            match self.context.routes.route(self.shard) {
                Some(route) => self.follow(&mut state, route),
                None => self.refresh(&mut state, None),
            }
        }
        self.pump(&mut state);
    }

    /// The shard.
    pub(super) fn shard(&self) -> ShardId {
        self.shard
    }

    /// The link to a core has a connection.
    pub(super) fn on_link_up(&self, address: SocketAddr) {
        let mut state = self.lock();
        let is_there = |link: &NodeLink| link.address() == address;
        if state.link.iter().chain(&state.next_link).any(is_there) {
            self.pump(&mut state);
        }
    }

    /// Time passed. Gives up what nobody could be found for, asks for routes where that may help;
    /// whether the lane is of use yet.
    pub(super) fn on_tick(&self) -> bool {
        let mut state = self.lock();
        let (now_us, patience_us) = (self.context.now_us(), self.context.patience_us());
        let is_overdue = |bundle: &Bundle| now_us >= bundle.since_us + patience_us;
        let is_connected = state.link.as_ref().is_some_and(NodeLink::is_up);
        while let Some(bundle) = state.waiting.pop_front_if(|bundle| is_overdue(bundle)) {
            state.waiting_bytes -= bundle.bytes();
            bundle.tell_error(&match is_connected {
                true => AppendError::Overloaded { shard: self.shard },
                false => self.unreachable(),
            });
        }
        let is_stuck = !is_connected && state.lane.is_quiet();
        if is_stuck && state.under_way.iter().any(|(_, bundle)| is_overdue(bundle)) {
            let reaction = state.lane.give_up_waiting(GIVEN_UP);
            self.react(&mut state, reaction, None);
            self.settle(&mut state);
        }
        if is_stuck && !state.is_idle() {
            self.refresh(&mut state, None);
        }
        self.pump(&mut state);
        !(state.is_idle() && now_us >= state.used_us + IDLE_US_MAX)
    }

    fn unreachable(&self) -> AppendError {
        let waited_ms = self.context.patience_us() / 1000;
        AppendError::Unreachable { shard: self.shard, waited_ms }
    }

    /// Sends what may leave now.
    fn pump(&self, state: &mut LaneState) {
        if state.next_link.is_some() {
            if !state.lane.is_quiet() {
                return;
            }
            state.link = state.next_link.take();
        }
        let Some(link) = state.link.clone().filter(NodeLink::is_up) else { return };
        let now_us = self.context.now_us();
        self.form_batches(state, now_us);
        let me = self.me.upgrade().expect("it is borrowed here");
        while let Some((batch, sequence)) = state.lane.next_to_send(now_us) {
            let bundle = &state.under_way[batch as usize];
            let header = bundle.header(BatchIdentity {
                shard: self.shard,
                epoch: state.lane.epoch,
                producer: state.lane.producer,
                sequence,
                request_id: bundle.request_id,
            });
            let out = OutBatch { header, body: bundle.body(), owner: me.clone(), batch };
            if !link.send_batch(out) {
                // The connection broke just now: the lane is told as soon as this ends.
                state.lane.on_not_sent(batch);
                break;
            }
        }
        if let Some(at_us) = state.lane.waits_until_us(now_us) {
            self.set_alarm(state, at_us);
        }
    }

    /// Makes batches of what waits, as far as it may leave.
    fn form_batches(&self, state: &mut LaneState, now_us: u64) {
        while !state.lane.is_full() {
            state.drop_abandoned();
            let Some(front) = state.waiting.front() else { return };
            let may_leave = match state.lane.is_empty() {
                true => true,
                // What was taken apart leaves one by one: behind one that is refused it would
                // leave in vain.
                false => !front.is_apart && state.waiting_bytes >= GATHERED_BYTES,
            };
            if !may_leave {
                return;
            }
            let Some(first) = self.take_front(state, now_us) else { continue };
            let mut bundle = Bundle::join(first, |joins| {
                loop {
                    state.drop_abandoned();
                    if !state.waiting.front().is_some_and(joins) {
                        return None;
                    }
                    let next = self.take_front(state, now_us);
                    if next.is_some() {
                        return next;
                    }
                }
            });
            state.requests += 1;
            bundle.request_id = state.requests;
            let batch = state.under_way.insert(bundle);
            state.lane.push(u32::try_from(batch).expect("a lane's window is small"));
        }
    }

    /// Takes what comes next, without the records of which a refusal says that they would be
    /// refused as well. None when that leaves nothing.
    fn take_front(&self, state: &mut LaneState, now_us: u64) -> Option<Bundle> {
        let mut bundle = state.waiting.pop_front()?;
        state.waiting_bytes -= bundle.bytes();
        let Some(hint) = state.throttled.filter(|hint| hint.until_us > now_us) else {
            return Some(bundle);
        };
        let kept: Vec<bool> = bundle.record_bytes().map(|bytes| bytes < hint.bytes).collect();
        let (shard, wait_us) = (self.shard, hint.until_us - now_us);
        let error = AppendError::Throttled { shard, wait_us };
        if !kept.contains(&true) {
            bundle.tell_error(&error);
            return None;
        }
        bundle.keep(&kept, &error);
        Some(bundle)
    }

    /// The shard's limits take some of a batch's records, or none.
    fn on_partly_throttled(
        &self,
        state: &mut LaneState,
        batch: u32,
        refusal: Refusal,
        verdicts: Verdicts<'_>,
    ) {
        let (now_us, shard) = (self.context.now_us(), self.shard);
        let taken: Vec<bool> = verdicts.iter().collect();
        let records = state.under_way.get(batch as usize).map(|bundle| bundle.builder().records());
        let is_answer = records.is_some_and(|records| records as usize == taken.len());
        if !is_answer || !taken.contains(&true) {
            let refusal = match is_answer {
                true => Refusal { code: ErrorCode::Throttled, ..refusal },
                // Nothing is stored, and what would be is not known.
                false => refusal,
            };
            if !is_answer {
                let verdicts = taken.len();
                tracing::warn!(%shard, ?records, verdicts, "a node's verdicts are of another batch");
            }
            let reaction = state.lane.on_ack(batch, &Ack::refused(refusal), now_us);
            return self.react(state, reaction, Some(refusal));
        }
        if state.lane.on_partly_throttled(batch, refusal, now_us) {
            let wait_us = refusal.hint;
            let bundle = &mut state.under_way[batch as usize];
            let first = bundle.record_bytes().zip(&taken).find(|(_, taken)| !**taken);
            state.throttled = first.map(|(bytes, _)| ThrottleHint::new(bytes, wait_us, now_us));
            bundle.keep(&taken, &AppendError::Throttled { shard, wait_us });
        }
    }

    fn react(&self, state: &mut LaneState, reaction: Reaction, refusal: Option<Refusal>) {
        match reaction {
            Reaction::None => {}
            Reaction::RefreshRoute => self.refresh(state, refusal),
            Reaction::ChangeProducer => state.lane.change_producer(random_identity()),
        }
    }

    /// Tells the calls of batches that left the lane.
    fn settle(&self, state: &mut LaneState) {
        while let Some(left) = state.lane.take_done() {
            let bundle = state.under_way.remove(left.batch as usize);
            match left.result {
                Ok(stored) => bundle.tell_stored(&stored),
                Err(refusal) => self.settle_refused(state, bundle, &left, refusal),
            }
        }
    }

    fn settle_refused(&self, state: &mut LaneState, bundle: Bundle, left: &Left, refusal: Refusal) {
        let shard = self.shard;
        if left.outcome_unknown {
            let refusal = Some(refusal).filter(|refusal| *refusal != GIVEN_UP);
            return bundle.tell_error(&AppendError::OutcomeUnknown { shard, refusal });
        }
        if judges_the_records(refusal.code) && bundle.calls() > 1 {
            return state.put_back_halves(bundle);
        }
        let error = match refusal {
            GIVEN_UP => self.unreachable(),
            Refusal { code: ErrorCode::PartlyThrottled, hint: wait_us } => {
                AppendError::Throttled { shard, wait_us }
            }
            Refusal { code: ErrorCode::Throttled, hint: wait_us } => {
                // The wait is that of the first.
                let bytes = bundle.record_bytes().next().expect("a batch has at least one record");
                let hint = ThrottleHint::new(bytes, wait_us, self.context.now_us());
                state.throttled = Some(hint);
                AppendError::Throttled { shard, wait_us }
            }
            refusal => AppendError::Refused { shard, refusal },
        };
        bundle.tell_error(&error);
    }

    /// Asks where the shard is now, unless that is being asked or just was.
    fn refresh(&self, state: &mut LaneState, refusal: Option<Refusal>) {
        let now_us = self.context.now_us();
        let just_asked = state.refreshed_us > 0 && now_us < state.refreshed_us + REFRESH_US;
        if state.is_refreshing || just_asked {
            return;
        }
        state.is_refreshing = true;
        let address = state.link.as_ref().map(NodeLink::address);
        let route = address.map(|address| Route { epoch: state.lane.epoch, address });
        let me = self.me.upgrade().expect("it is borrowed here");
        tokio::spawn(async move {
            let (stale, routes) = (Stale { route, refusal }, &me.context.routes);
            let found = routes.refresh(me.shard, stale);
            let found = tokio::time::timeout(me.context.config.patience, found).await;
            // Without an answer, what is known is as good as it gets.
            me.on_refreshed(found.unwrap_or_else(|_| routes.route(me.shard)));
        });
    }

    fn on_refreshed(&self, route: Option<Route>) {
        let mut state = self.lock();
        state.is_refreshing = false;
        state.refreshed_us = self.context.now_us();
        match route {
            Some(route) => self.follow(&mut state, route),
            None => {
                // What is in the lane is judged by who it is sent to, or given up in the end.
                state.waiting_bytes = 0;
                for bundle in std::mem::take(&mut state.waiting) {
                    bundle.tell_error(&AppendError::NoRoute { shard: self.shard });
                }
            }
        }
        self.pump(&mut state);
    }

    fn follow(&self, state: &mut LaneState, route: Route) {
        state.lane.epoch = state.lane.epoch.max(route.epoch);
        let is_there = |link: &NodeLink| link.address() == route.address;
        state.next_link = match state.link.as_ref().is_some_and(is_there) {
            true => None,
            false => Some(self.context.link(route.address)),
        };
    }

    /// Has somebody look again when a pause is over.
    fn set_alarm(&self, state: &mut LaneState, at_us: u64) {
        if state.alarm_us.is_some_and(|alarm_us| alarm_us <= at_us) {
            return;
        }
        state.alarm_us = Some(at_us);
        let (at, me) = (self.context.clock + Duration::from_micros(at_us), self.me.clone());
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            if let Some(me) = me.upgrade() {
                let mut state = me.lock();
                state.alarm_us = state.alarm_us.filter(|alarm_us| *alarm_us > at_us);
                me.pump(&mut state);
            }
        });
    }
}

impl BatchOwner for ShardLane {
    fn on_answer(&self, batch: u32, ack: &Ack, verdicts: Verdicts<'_>) {
        let mut state = self.lock();
        let refusal = ack.result.err();
        match refusal {
            Some(refusal) if refusal.code == ErrorCode::PartlyThrottled => {
                self.on_partly_throttled(&mut state, batch, refusal, verdicts);
            }
            _ => {
                let reaction = state.lane.on_ack(batch, ack, self.context.now_us());
                self.react(&mut state, reaction, refusal);
            }
        }
        if refusal.is_some_and(|refusal| refusal.code == ErrorCode::StaleEpoch) {
            // The lane goes on under the epoch that it was told; others ask for the route, too.
            self.refresh(&mut state, refusal);
        }
        self.settle(&mut state);
        self.pump(&mut state);
    }

    fn on_lost(&self, never_left: &[u32]) {
        let mut state = self.lock();
        never_left.iter().for_each(|batch| state.lane.on_not_sent(*batch));
        state.lane.on_connection_lost();
        self.settle(&mut state);
        if !state.is_idle() {
            self.refresh(&mut state, None);
        }
        self.pump(&mut state);
    }
}

impl ThrottleHint {
    /// A record of so many bytes would be taken after so long, not before.
    fn new(bytes: u64, wait_us: u64, now_us: u64) -> ThrottleHint {
        ThrottleHint { bytes, until_us: now_us + wait_us.min(HINT_US_MAX) }
    }
}

impl LaneState {
    /// Lets go of what comes next if nobody would learn that it is stored.
    fn drop_abandoned(&mut self) {
        while let Some(bundle) = self.waiting.pop_front_if(|bundle| bundle.is_abandoned()) {
            self.waiting_bytes -= bundle.bytes();
        }
    }

    /// Has the calls of each half of a bundle judged by themselves.
    fn put_back_halves(&mut self, bundle: Bundle) {
        let (first, second) = bundle.halve();
        for half in [second, first] {
            self.waiting_bytes += half.bytes();
            self.waiting.push_front(half);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }
}

/// How a batch leaves the lane that nobody could be found for. A node does not send it as the
/// answer to a batch that was never in doubt.
const GIVEN_UP: Refusal = Refusal { code: ErrorCode::Stopping, hint: u64::MAX };

/// Whether a refusal is for what the records are, so that each call's may be judged otherwise. The
/// shard's limits judge each record anyway.
fn judges_the_records(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::HashOutOfRange | ErrorCode::BatchInvalid | ErrorCode::TooLarge)
}

/// A new identity: random, so that no two producers share one.
fn random_identity() -> ProducerId {
    ProducerId(getrandom::u64().expect("the system's random source works once it has started"))
}
