//! The link: a connection to one core of a node, shared by many tasks.
//!
//! Requests are sent without waiting for the answers before them and are matched to their answers
//! by correlation. A task of its own connects, receives, and connects again when the connection
//! broke (`connection`); what was under way then fails, and is told whether it left
//! (`in_flight`). Nothing is sent twice here: who may repeat a request knows so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thalweg_wire::error::Refusal;
use thalweg_wire::frame::{FrameError, FrameHeader, FrameKind};
use thalweg_wire::subscribe::{Credit, SubscribeRequest};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::connection::supervise;
use super::in_flight::{Shared, Waiting, answer_of};
use super::outgoing::OutBatch;
use super::payload::{AnswerMemory, Payload, Reservation};
use super::subscription::{EventQueue, Subscription};

/// Limits of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkLimits {
    /// Requests under way at a time; more wait in turn. A node stops receiving from a connection
    /// with 1,024 of them (docs/protocol.md, Connection).
    pub requests_max: usize,
    /// Bytes of their payloads; room for one of the largest size at the least.
    pub request_bytes_max: usize,
    /// Frames of batches under way: above it, batches wait and join one frame.
    pub produce_frames_max: usize,
    /// Bytes of batches under way above which no further frame is sent.
    pub produce_bytes_max: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a node may owe the answer to batches before its connection counts as broken.
    pub answer_timeout: Duration,
    /// First and longest pause between tries to connect.
    pub backoff: (Duration, Duration),
}

impl Default for LinkLimits {
    fn default() -> LinkLimits {
        LinkLimits {
            requests_max: 512,
            request_bytes_max: 32 << 20,
            produce_frames_max: 64,
            produce_bytes_max: 16 << 20,
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(20), Duration::from_secs(1)),
        }
    }
}

/// Why a connection is of no use.
#[derive(Clone, Debug, Error)]
pub enum Failure {
    /// It could not be made.
    #[error("it cannot be reached ({0}): is the node running there?")]
    Connect(Arc<std::io::Error>),
    /// It broke.
    #[error("the connection broke ({0})")]
    Broken(Arc<std::io::Error>),
    /// Something took too long.
    #[error("nothing came for {wait_ms} ms: the node is overloaded or hangs")]
    TimedOut {
        /// How long it was waited for, milliseconds.
        wait_ms: u64,
    },
    /// The node sent what is no frame.
    #[error("the node sent what is no frame: {0}")]
    Frame(#[from] FrameError),
    /// The node sent a frame that answers nothing, or more than it was granted.
    #[error("the node sent a {kind:?} frame where none belongs: do the versions match?")]
    Unexpected {
        /// The frame's kind.
        kind: FrameKind,
    },
    /// The node did not take what was sent, and closed.
    #[error("the node refused what was sent and closed the connection: {0}")]
    Refused(Refusal),
    /// Nobody uses the link any more.
    #[error("the link was closed")]
    Closed,
}

/// Why a request has no answer.
#[derive(Clone, Debug, Error)]
pub enum LinkError {
    /// It did not leave: it has no effect.
    #[error("{address}: nothing was sent: {failure}")]
    NotSent {
        /// The core.
        address: SocketAddr,
        /// Why.
        failure: Failure,
    },
    /// It left, and no answer came: whether it has an effect is not known.
    #[error("{address}: the outcome is unknown: {failure}")]
    OutcomeUnknown {
        /// The core.
        address: SocketAddr,
        /// Why.
        failure: Failure,
    },
    /// The node does not serve such a request.
    #[error("{address} refused: {refusal}")]
    Refused {
        /// The core.
        address: SocketAddr,
        /// Its answer.
        refusal: Refusal,
    },
    /// The payload is larger than a frame of its kind may be.
    #[error("a {kind:?} frame of {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// The frame's kind.
        kind: FrameKind,
        /// Bytes of its payload.
        bytes: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// There is no memory for the answer. It was not asked for, or came and was not kept.
    #[error("{address}: there is no memory for an answer of {bytes} bytes: ask again later")]
    NoMemory {
        /// The core.
        address: SocketAddr,
        /// Bytes of the answer, or of the least of it.
        bytes: usize,
    },
    /// The connection has as many subscriptions as a node serves on one.
    #[error("{address} has {limit} subscriptions on this connection: use another one")]
    Subscriptions {
        /// The core.
        address: SocketAddr,
        /// The limit.
        limit: u32,
    },
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it is: a kind that is answered once. Batches go another way.
    pub kind: FrameKind,
    /// Items of its payload, where the kind counts them.
    pub items: u32,
    /// Its payload, in pieces that are written from where they lie.
    pub payload: Vec<Bytes>,
    /// How long the whole may take, waiting for its turn included.
    pub timeout: Duration,
}

impl Request {
    /// A small request with a small answer.
    #[must_use]
    pub fn small(kind: FrameKind, payload: &[u8], timeout: Duration) -> Request {
        let payload = vec![Bytes::copy_from_slice(payload)];
        Request { kind, items: 0, payload, timeout }
    }
}

/// What answered a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The frame's header.
    pub header: FrameHeader,
    /// Its payload, 16-aligned; a clone shares the bytes.
    pub payload: Payload,
}

/// How a link stands.
#[derive(Clone, Debug)]
pub enum LinkCondition {
    /// A first try is under way, or the first after a connection that worked.
    Connecting,
    /// There is a connection.
    Up,
    /// The last try failed, or the connection did nothing; the next try comes after a pause.
    Down(Failure),
}

/// A link. A clone is another handle; with the last one the connection is closed.
#[derive(Clone)]
pub struct NodeLink {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

/// Ends the link when dropped.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.closed.notify_one();
    }
}

impl std::fmt::Debug for NodeLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeLink")
            .field("address", &self.shared.address)
            .field("condition", &*self.shared.condition.borrow())
            .finish_non_exhaustive()
    }
}

impl NodeLink {
    /// A link to a core. It connects in the background, now and again whenever the connection
    /// breaks. To be called within a tokio runtime.
    #[must_use]
    pub fn connect(address: SocketAddr, limits: LinkLimits, memory: &AnswerMemory) -> NodeLink {
        let shared = Arc::new(Shared::new(address, limits, memory.clone()));
        tokio::spawn(supervise(shared.clone()));
        NodeLink { handle: Arc::new(Handle(shared.clone())), shared }
    }

    /// The core.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Whether there is another handle than this.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.handle) > 1
    }

    /// How it stands, and every change of that.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<LinkCondition> {
        self.shared.condition.subscribe()
    }

    /// Sends a request and waits for its answer. Dropped before, it is not sent, or its answer is
    /// of no interest; nobody else's request is touched.
    ///
    /// # Errors
    /// [`LinkError`], which tells whether it may have had an effect.
    pub async fn request(&self, request: Request) -> Result<Answer, LinkError> {
        self.request_with(request, None).await
    }

    /// The same with memory for the answer. A longer answer is received if there is memory for it
    /// when it comes: whatever is behind it on the connection would wait as well. Answers of some
    /// kilobytes need none.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(super) async fn request_with(
        &self,
        request: Request,
        reservation: Option<Reservation>,
    ) -> Result<Answer, LinkError> {
        let shared = &*self.shared;
        let (kind, timeout) = (request.kind, request.timeout);
        let bytes = request.payload.iter().map(Bytes::len).sum();
        let limit = kind.payload_bytes_max() as usize;
        let Some(answered_by) = answer_of(kind).filter(|_| bytes <= limit) else {
            return Err(LinkError::TooLarge { kind, bytes, limit });
        };
        let deadline = Instant::now() + timeout;
        let timed_out = || Failure::TimedOut { wait_ms: timeout.as_millis() as u64 };
        let answer = async {
            let permits = shared.take_turn(bytes).await;
            shared.wait_until_up().await?;
            let (sender, receiver) = oneshot::channel();
            let who = Waiting::Answer { answered_by, sender, reservation, permits };
            Ok((shared.enqueue(request, who)?, receiver))
        };
        let sent = tokio::time::timeout_at(deadline, answer).await;
        let (sent, receiver) = sent
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(|failure| shared.not_sent(failure))?;
        match tokio::time::timeout_at(deadline, receiver).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(shared.unknown(Failure::Closed))),
            Err(_) if sent.take_back() => Err(shared.not_sent(timed_out())),
            Err(_) => Err(shared.unknown(timed_out())),
        }
    }

    /// Subscribes to a shard: `bytes_max` of the request is the first credit.
    ///
    /// # Errors
    /// [`LinkError::NotSent`], [`LinkError::Subscriptions`]. A refusal by the node is an event.
    pub async fn subscribe(&self, request: &SubscribeRequest) -> Result<Subscription, LinkError> {
        let shared = &*self.shared;
        let timeout = shared.limits.answer_timeout;
        let ready = async {
            let credit = shared.memory.reserve(request.0.bytes_max as usize).await;
            shared.wait_until_up().await.map(|()| credit)
        };
        let wait_ms = timeout.as_millis() as u64;
        let ready = tokio::time::timeout(timeout, ready).await;
        let credit = ready
            .unwrap_or(Err(Failure::TimedOut { wait_ms }))
            .map_err(|failure| shared.not_sent(failure))?;
        let queue = Arc::new(EventQueue::new(credit));
        let correlation = shared.subscribe(request, &queue)?;
        Ok(Subscription::new(self.clone(), correlation, queue))
    }

    /// Queues a batch, whose owner will be told what became of it; whether there was a
    /// connection to queue it for.
    pub(super) fn send_batch(&self, batch: OutBatch) -> bool {
        self.shared.send_batch(batch)
    }

    /// Whether batches can be sent.
    pub(super) fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    pub(super) fn memory(&self) -> &AnswerMemory {
        &self.shared.memory
    }

    pub(super) fn send_credit(&self, subscription: u64, bytes: u32) -> Result<(), LinkError> {
        self.shared.send_credit(Credit::Grant { subscription, bytes })
    }

    /// Ends a subscription, if it has not ended by itself.
    pub(super) fn cancel_subscription(&self, subscription: u64) {
        self.shared.cancel_subscription(subscription);
    }
}
