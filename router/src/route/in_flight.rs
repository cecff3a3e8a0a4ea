//! What is under way on a link: what waits to be sent, who waits for which answer, and what a lost
//! connection means for each.
//!
//! **Invariant:** written <= framed. A frame has left when it ends at or below what was written;
//! of others, nothing can have been carried out, because a node takes whole frames only.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use thalweg_wire::fetch::FetchAnswer;
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind};
use thalweg_wire::limits::{FRAME_PAYLOAD_BYTES_MAX, SUBSCRIPTIONS_PER_CONNECTION_MAX};
use thalweg_wire::produce::{Ack, Verdicts, decode_answers};
use thalweg_wire::subscribe::{Credit, SubscribeRequest};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;

use super::link::{Answer, Failure, LinkCondition, LinkError, LinkLimits, Request};
use super::outgoing::{BatchOwner, OutBatch, OutFrame, OutRequest, Queue, Round, frame_bytes};
use super::payload::{AnswerMemory, Payload, Reservation};
use super::subscription::EventQueue;

/// How often it is looked whether the node owes an answer for too long.
const OVERDUE_CHECKS: Duration = Duration::from_millis(250);

/// The kind that answers a request; none for what is not answered once.
pub(super) fn answer_of(kind: FrameKind) -> Option<FrameKind> {
    match kind {
        FrameKind::Hello => Some(FrameKind::HelloAnswer),
        FrameKind::Produce => Some(FrameKind::ProduceAnswer),
        FrameKind::Fetch => Some(FrameKind::FetchAnswer),
        FrameKind::OpenExtent
        | FrameKind::FenceExtent
        | FrameKind::SealExtent
        | FrameKind::TrimShard
        | FrameKind::DeleteShard => Some(FrameKind::ControlAnswer),
        FrameKind::Describe => Some(FrameKind::DescribeAnswer),
        _ => None,
    }
}

/// A request's turn: so many of it may be under way.
pub(super) type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What becomes of a large frame that begins to arrive.
pub(super) enum Reception {
    /// It is received; in memory that was reserved, if it counts.
    Kept(Option<Reservation>),
    /// It is passed over.
    PassedOver,
}

/// Who waits for a frame's answer.
pub(super) enum Waiting {
    Answer {
        answered_by: FrameKind,
        sender: oneshot::Sender<Result<Answer, LinkError>>,
        reservation: Option<Reservation>,
        permits: Turn,
    },
    Batches {
        batches: Vec<(Arc<dyn BatchOwner>, u32)>,
        bytes: usize,
    },
}

struct Awaited {
    who: Waiting,
    /// Where its frame ends among the bytes of the connection, once it is in a frame.
    ends_at: Option<u64>,
    /// When it was put into one.
    since: Instant,
    /// How long it may take from then on.
    timeout: Duration,
}

#[derive(Default)]
struct State {
    is_up: bool,
    /// Never given twice: what a cancelled subscription is still sent is nobody else's.
    last_correlation: u64,
    queue: Queue,
    awaited: HashMap<u64, Awaited>,
    /// Bytes put into frames on this connection: at least those written.
    framed: u64,
    produce_frames: usize,
    produce_bytes: usize,
    subscriptions: HashMap<u64, Arc<EventQueue>>,
}

impl State {
    fn next_correlation(&mut self) -> u64 {
        self.last_correlation += 1;
        self.last_correlation
    }

    /// The next frame, if there is anything to send now.
    fn next_frame(&mut self, limits: &LinkLimits) -> Option<OutFrame> {
        while let Some(request) = self.queue.pop_request() {
            let is_awaited = answer_of(request.kind).is_some();
            let correlation = request.correlation;
            if is_awaited && !self.awaited.contains_key(&correlation) {
                // Taken back meanwhile.
                continue;
            }
            let frame = OutFrame::Request(request);
            self.framed += frame_bytes(&frame);
            if let Some(awaited) = self.awaited.get_mut(&correlation) {
                (awaited.ends_at, awaited.since) = (Some(self.framed), Instant::now());
            }
            return Some(frame);
        }
        if self.produce_frames >= limits.produce_frames_max
            || self.produce_bytes >= limits.produce_bytes_max
        {
            return None;
        }
        let batches = self.queue.pop_batches()?;
        let owners = batches.iter().map(|batch| (batch.owner.clone(), batch.batch)).collect();
        let correlation = self.next_correlation();
        let frame = OutFrame::Batches(correlation, batches);
        let bytes = frame.header().payload_bytes as usize;
        self.framed += frame_bytes(&frame);
        self.produce_frames += 1;
        self.produce_bytes += bytes;
        let awaited = Awaited {
            who: Waiting::Batches { batches: owners, bytes },
            ends_at: Some(self.framed),
            since: Instant::now(),
            timeout: limits.answer_timeout,
        };
        self.awaited.insert(correlation, awaited);
        Some(frame)
    }
}

pub(super) struct Shared {
    pub(super) address: SocketAddr,
    pub(super) limits: LinkLimits,
    pub(super) memory: AnswerMemory,
    state: Mutex<State>,
    /// Bytes that the system took on this connection. Only the writer adds.
    written: AtomicU64,
    /// When bytes last came, by `clock`.
    received_us: AtomicU64,
    clock: Instant,
    /// There is something to write, or room for more under way.
    pub(super) work: Notify,
    /// The last handle is gone.
    pub(super) closed: Notify,
    pub(super) condition: watch::Sender<LinkCondition>,
    requests: Arc<Semaphore>,
    request_bytes: Arc<Semaphore>,
}

/// A request that is under way; dropped before it is in a frame, it never is.
pub(super) struct Sent<'a> {
    shared: &'a Shared,
    correlation: u64,
}

impl Sent<'_> {
    /// Whether it could be taken back: it has not left.
    pub(super) fn take_back(&self) -> bool {
        let mut state = self.shared.lock();
        let is_framed = |awaited: &Awaited| awaited.ends_at.is_some();
        match state.awaited.get(&self.correlation) {
            Some(awaited) if !is_framed(awaited) => {
                state.awaited.remove(&self.correlation);
                true
            }
            _ => false,
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.take_back();
    }
}

impl Shared {
    pub(super) fn new(address: SocketAddr, limits: LinkLimits, memory: AnswerMemory) -> Shared {
        let request_bytes = limits.request_bytes_max.max(FRAME_PAYLOAD_BYTES_MAX as usize);
        Shared {
            address,
            limits,
            memory,
            state: Mutex::new(State::default()),
            written: AtomicU64::new(0),
            received_us: AtomicU64::new(0),
            clock: Instant::now(),
            work: Notify::new(),
            closed: Notify::new(),
            condition: watch::Sender::new(LinkCondition::Connecting),
            requests: Arc::new(Semaphore::new(limits.requests_max.max(1))),
            request_bytes: Arc::new(Semaphore::new(request_bytes)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    pub(super) fn not_sent(&self, failure: Failure) -> LinkError {
        LinkError::NotSent { address: self.address, failure }
    }

    pub(super) fn unknown(&self, failure: Failure) -> LinkError {
        LinkError::OutcomeUnknown { address: self.address, failure }
    }

    pub(super) async fn take_turn(&self, bytes: usize) -> Turn {
        let bytes = u32::try_from(bytes).expect("held against the kind's limit");
        let open = "a semaphore of the link is never closed";
        let request = self.requests.clone().acquire_owned().await.expect(open);
        let bytes = self.request_bytes.clone().acquire_many_owned(bytes).await.expect(open);
        (request, bytes)
    }

    pub(super) async fn wait_until_up(&self) -> Result<(), Failure> {
        let mut condition = self.condition.subscribe();
        loop {
            match &*condition.borrow_and_update() {
                LinkCondition::Up => return Ok(()),
                LinkCondition::Down(failure) => return Err(failure.clone()),
                LinkCondition::Connecting => {}
            }
            condition.changed().await.map_err(|_| Failure::Closed)?;
        }
    }

    pub(super) fn enqueue(&self, request: Request, who: Waiting) -> Result<Sent<'_>, Failure> {
        let mut state = self.lock();
        if !state.is_up {
            return Err(Failure::Broken(Arc::new(ErrorKind::NotConnected.into())));
        }
        let correlation = state.next_correlation();
        let Request { kind, items, payload, timeout, .. } = request;
        let awaited = Awaited { who, ends_at: None, since: Instant::now(), timeout };
        state.awaited.insert(correlation, awaited);
        state.queue.push_request(OutRequest { kind, items, correlation, payload });
        drop(state);
        self.work.notify_one();
        Ok(Sent { shared: self, correlation })
    }

    pub(super) fn subscribe(
        &self,
        request: &SubscribeRequest,
        queue: &Arc<EventQueue>,
    ) -> Result<u64, LinkError> {
        let mut state = self.lock();
        if !state.is_up {
            let failure = Failure::Broken(Arc::new(ErrorKind::NotConnected.into()));
            return Err(self.not_sent(failure));
        }
        let limit = SUBSCRIPTIONS_PER_CONNECTION_MAX;
        if state.subscriptions.len() >= limit as usize {
            return Err(LinkError::Subscriptions { address: self.address, limit });
        }
        let correlation = state.next_correlation();
        state.subscriptions.insert(correlation, queue.clone());
        let (kind, payload) = (FrameKind::Subscribe, Bytes::copy_from_slice(&request.encode()));
        let request = OutRequest { kind, items: 0, correlation, payload: vec![payload] };
        state.queue.push_request(request);
        drop(state);
        self.work.notify_one();
        Ok(correlation)
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        self.lock().is_up
    }

    /// See [`super::link::NodeLink::send_batch`].
    pub(super) fn send_batch(&self, batch: OutBatch) -> bool {
        let mut state = self.lock();
        let is_up = state.is_up;
        if is_up {
            state.queue.push_batch(batch);
            drop(state);
            self.work.notify_one();
        }
        is_up
    }

    /// Ends a subscription, if it has not ended by itself.
    pub(super) fn cancel_subscription(&self, subscription: u64) {
        if self.lock().subscriptions.remove(&subscription).is_some() {
            // Without a connection there is nothing to cancel.
            let _ = self.send_credit(Credit::Cancel { subscription });
        }
    }

    pub(super) fn send_credit(&self, credit: Credit) -> Result<(), LinkError> {
        let mut state = self.lock();
        if !state.is_up {
            let failure = Failure::Broken(Arc::new(ErrorKind::NotConnected.into()));
            return Err(self.not_sent(failure));
        }
        let (kind, payload) = (FrameKind::Credit, Bytes::copy_from_slice(&credit.encode()));
        let request = OutRequest { kind, items: 0, correlation: 0, payload: vec![payload] };
        state.queue.push_request(request);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    pub(super) fn go_up(&self) {
        self.written.store(0, Ordering::Relaxed);
        self.lock().is_up = true;
        self.condition.send_replace(LinkCondition::Up);
    }

    /// Fails whatever is under way. Nobody writes any more.
    pub(super) fn go_down(&self, failure: &Failure, then: LinkCondition) {
        let mut state = self.lock();
        let last_correlation = state.last_correlation;
        let lost = std::mem::replace(&mut *state, State { last_correlation, ..State::default() });
        drop(state);
        // Before the owners of batches are told: they look where to send them next.
        self.condition.send_replace(then);
        let written = self.written.load(Ordering::Relaxed);
        let mut owners = LostBatches::default();
        for awaited in lost.awaited.into_values() {
            let has_left = awaited.ends_at.is_some_and(|ends_at| ends_at <= written);
            match awaited.who {
                Waiting::Answer { sender, .. } => {
                    let failure = failure.clone();
                    let error = match has_left {
                        true => self.unknown(failure),
                        false => self.not_sent(failure),
                    };
                    // Who waited may be gone.
                    let _ = sender.send(Err(error));
                }
                Waiting::Batches { batches, .. } => {
                    batches
                        .into_iter()
                        .for_each(|(owner, batch)| owners.add(owner, batch, has_left));
                }
            }
        }
        let mut queue = lost.queue;
        let (_, batches) = queue.take();
        batches.into_iter().for_each(|batch| owners.add(batch.owner, batch.batch, false));
        owners.tell();
        for subscription in lost.subscriptions.into_values() {
            subscription.fail(self.unknown(failure.clone()));
        }
    }

    /// Chooses the frames of the next round of writing.
    pub(super) fn plan(&self, frames: &mut Vec<OutFrame>) {
        let mut state = self.lock();
        let mut planned_bytes = 0;
        while !Round::is_full(planned_bytes) {
            let Some(frame) = state.next_frame(&self.limits) else { return };
            planned_bytes += frame_bytes(&frame) as usize;
            frames.push(frame);
        }
    }

    /// So many bytes were written.
    pub(super) fn on_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes came.
    pub(super) fn on_received(&self) {
        let now_us = self.clock.elapsed().as_micros() as u64;
        self.received_us.store(now_us, Ordering::Relaxed);
    }

    /// When an answer is overdue in a way that only a broken connection explains.
    pub(super) async fn overdue(&self) -> Failure {
        loop {
            tokio::time::sleep(OVERDUE_CHECKS.min(self.limits.answer_timeout / 4)).await;
            let received =
                self.clock + Duration::from_micros(self.received_us.load(Ordering::Relaxed));
            let now = Instant::now();
            let is_overdue = |awaited: &&Awaited| {
                let is_late = awaited.ends_at.is_some() && now >= awaited.since + awaited.timeout;
                match awaited.who {
                    // Acknowledgements come in the order of the log.
                    Waiting::Batches { .. } => is_late,
                    Waiting::Answer { .. } => is_late && received < awaited.since,
                }
            };
            if let Some(awaited) = self.lock().awaited.values().find(is_overdue) {
                return Failure::TimedOut { wait_ms: awaited.timeout.as_millis() as u64 };
            }
        }
    }

    /// Whether a large frame that begins to arrive is received. Nothing is waited for: memory is
    /// held by those whose answers come behind it on this connection.
    pub(super) fn reception_of(&self, header: &FrameHeader) -> Result<Reception, Failure> {
        let unexpected = Failure::Unexpected { kind: header.kind };
        let correlation = header.correlation;
        if header.kind == FrameKind::SubscribeEvent {
            let subscription = self.lock().subscriptions.get(&correlation).cloned();
            let Some(queue) = subscription else { return Ok(Reception::Kept(None)) };
            let credit = EventQueue::use_credit(&queue, header).map_err(|_| unexpected)?;
            return Ok(Reception::Kept(credit));
        }
        let bytes = header.payload_bytes as usize;
        let mut state = self.lock();
        match state.awaited.get_mut(&correlation).map(|awaited| &mut awaited.who) {
            Some(Waiting::Answer { answered_by, reservation, sender, .. })
                if *answered_by == header.kind =>
            {
                let memory = match sender.is_closed() {
                    true => None,
                    false => self.memory_for(bytes, reservation.take()),
                };
                if memory.is_some() {
                    return Ok(Reception::Kept(memory));
                }
            }
            _ => return Err(unexpected),
        }
        let given_up = state.awaited.remove(&correlation).map(|awaited| awaited.who);
        drop(state);
        if let Some(Waiting::Answer { sender, .. }) = given_up {
            // Who waited may be gone.
            let _ = sender.send(Err(LinkError::NoMemory { address: self.address, bytes }));
        }
        Ok(Reception::PassedOver)
    }

    /// So many bytes: of what was reserved, and of what is free if that is less.
    fn memory_for(&self, bytes: usize, reserved: Option<Reservation>) -> Option<Reservation> {
        let Some(mut reserved) = reserved else { return self.memory.try_reserve(bytes) };
        let missing = bytes.saturating_sub(reserved.bytes());
        if missing > 0 {
            reserved.merge(self.memory.try_reserve(missing)?);
        }
        reserved.split(bytes)
    }

    /// Takes a frame in whose payload lies in the buffer of small ones.
    pub(super) fn take_small(&self, header: FrameHeader, payload: &[u8]) -> Result<(), Failure> {
        match header.kind {
            FrameKind::ProduceAnswer => self.take_acks(&header, payload),
            FrameKind::Error => self.take_error(&header, payload),
            FrameKind::SubscribeEvent => {
                let subscription = self.lock().subscriptions.get(&header.correlation).cloned();
                let reservation = match subscription {
                    Some(queue) => EventQueue::use_credit(&queue, &header)
                        .map_err(|_| Failure::Unexpected { kind: header.kind })?,
                    None => None,
                };
                self.take_event(header, Payload::copy_of(payload, reservation))
            }
            _ => self.take_answer(header, Payload::copy_of(payload, None)),
        }
    }

    pub(super) fn take_large(&self, header: FrameHeader, payload: Payload) -> Result<(), Failure> {
        match header.kind {
            FrameKind::SubscribeEvent => self.take_event(header, payload),
            _ => self.take_answer(header, payload),
        }
    }

    /// Hands an answer to who waits for it.
    fn take_answer(&self, header: FrameHeader, payload: Payload) -> Result<(), Failure> {
        let unexpected = Failure::Unexpected { kind: header.kind };
        let who = self.lock().awaited.remove(&header.correlation).map(|awaited| awaited.who);
        match who {
            Some(Waiting::Answer { answered_by, sender, reservation, permits })
                if answered_by == header.kind =>
            {
                // What the answer did not need is free for others when it is seen.
                drop((reservation, permits));
                // Who waited may be gone.
                let _ = sender.send(Ok(Answer { header, payload }));
                Ok(())
            }
            _ => Err(unexpected),
        }
    }

    fn take_event(&self, header: FrameHeader, payload: Payload) -> Result<(), Failure> {
        let correlation = header.correlation;
        if correlation > self.lock().last_correlation {
            return Err(Failure::Unexpected { kind: header.kind });
        }
        let head = FetchAnswer::decode(&payload)?;
        // Of one that was cancelled, something may still be on its way.
        let Some(queue) = self.lock().subscriptions.get(&correlation).cloned() else {
            return Ok(());
        };
        if queue.push(header, payload, &head) {
            self.lock().subscriptions.remove(&correlation);
        }
        Ok(())
    }

    fn take_error(&self, header: &FrameHeader, payload: &[u8]) -> Result<(), Failure> {
        let refusal = ErrorAnswer::decode(payload)?.0;
        let mut state = self.lock();
        let Some(awaited) = state.awaited.remove(&header.correlation) else {
            // Not of one request: the node closes the connection.
            return Err(Failure::Refused(refusal));
        };
        match awaited.who {
            Waiting::Answer { sender, .. } => {
                drop(state);
                // Who waited may be gone.
                let _ = sender.send(Err(LinkError::Refused { address: self.address, refusal }));
            }
            Waiting::Batches { batches, bytes } => {
                state.produce_frames -= 1;
                state.produce_bytes -= bytes;
                drop(state);
                let ack = Ack::refused(refusal);
                for (owner, batch) in &batches {
                    owner.on_answer(*batch, &ack, Verdicts::default());
                }
                self.work.notify_one();
            }
        }
        Ok(())
    }

    fn take_acks(&self, header: &FrameHeader, payload: &[u8]) -> Result<(), Failure> {
        let unexpected = Failure::Unexpected { kind: header.kind };
        // Everything is looked at before anything is taken from the table: what a broken answer
        // was for is lost with the connection.
        let answers = decode_answers(payload, header.items)?.collect::<Result<Vec<_>, _>>()?;
        let mut state = self.lock();
        match state.awaited.get(&header.correlation).map(|awaited| &awaited.who) {
            Some(Waiting::Batches { batches, .. }) if batches.len() == answers.len() => {}
            Some(Waiting::Answer { answered_by: FrameKind::ProduceAnswer, .. }) => {
                drop(state);
                return self.take_answer(*header, Payload::copy_of(payload, None));
            }
            _ => return Err(unexpected),
        }
        let awaited = state.awaited.remove(&header.correlation);
        let Some(Awaited { who: Waiting::Batches { batches, bytes }, .. }) = awaited else {
            return Err(unexpected);
        };
        state.produce_frames -= 1;
        state.produce_bytes -= bytes;
        drop(state);
        for ((owner, batch), (ack, verdicts)) in batches.iter().zip(&answers) {
            owner.on_answer(*batch, ack, *verdicts);
        }
        // There is room for another frame.
        self.work.notify_one();
        Ok(())
    }
}

/// Batches of a lost connection, by the addresses of their owners, which are names here.
#[derive(Default)]
struct LostBatches(HashMap<usize, LostOf>);

struct LostOf {
    owner: Arc<dyn BatchOwner>,
    never_left: Vec<u32>,
}

impl LostBatches {
    fn add(&mut self, owner: Arc<dyn BatchOwner>, batch: u32, has_left: bool) {
        let name = Arc::as_ptr(&owner).addr();
        let of = self.0.entry(name).or_insert_with(|| LostOf { owner, never_left: Vec::new() });
        if !has_left {
            of.never_left.push(batch);
        }
    }

    fn tell(self) {
        self.0.into_values().for_each(|of| of.owner.on_lost(&of.never_left));
    }
}
