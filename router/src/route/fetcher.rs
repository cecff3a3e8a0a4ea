//! The fetcher: reads shards, and subscribes to them, from whoever has them.
//!
//! What arrives is checked once and then read where it lies: batches and records are views of a
//! payload that any number of tasks may hold. Reading has no effect, so that a fetch is sent again
//! as long as that may help.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thalweg_client::ClientError;
use thalweg_client::reader::check_batches;
use thalweg_wire::batch::{Batch, BatchHeader};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{FrameError, FrameKind};
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{Epoch, Offset, ShardId};
use thalweg_wire::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX};
use thalweg_wire::produce::padded_bytes;
use thalweg_wire::subscribe::SubscribeRequest;
use thiserror::Error;
use tokio::time::Instant;

use super::link::{Answer, LinkError, NodeLink, Request};
use super::links::NodeLinks;
use super::payload::Payload;
use super::routes::{Route, Routes, Stale};
use super::subscription::Subscription;

/// First and longest pause before a fetch is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// How long a fetch waits for memory: as a request waits for that of its body. Who waited longer
/// would not be served any sooner by asking later, and would keep others waiting.
pub const MEMORY_WAIT: Duration = Duration::from_secs(2);
/// What a fetch asks for at the least, however little memory is free: a batch that is larger would
/// have come in vain.
const ASKED_BYTES_MIN: u32 = 256 << 10;

/// Why there is nothing to read.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The node refused: `Trimmed` and `BeyondEnd` tell where to go on, `Corrupt` where the damage
    /// is.
    #[error("{shard}: the node refused: {refusal}")]
    Refused {
        /// The shard.
        shard: ShardId,
        /// Its answer.
        refusal: Refusal,
    },
    /// There is no such shard.
    #[error("{shard}: no node has it: was its stream deleted?")]
    NoRoute {
        /// The shard.
        shard: ShardId,
    },
    /// Nobody answered in time.
    #[error("{shard}: no node answered: {last}")]
    Unreachable {
        /// The shard.
        shard: ShardId,
        /// How the last try failed.
        last: LinkError,
    },
    /// Others read so much that there is no memory for what would come, and was none for a while.
    #[error("{shard}: there is no memory for {bytes} bytes of records: try again later")]
    NoMemory {
        /// The shard.
        shard: ShardId,
        /// Bytes of the answer, or of the least of it.
        bytes: usize,
    },
    /// What came is damaged, or not what was due.
    #[error("what a node sent cannot be used: {0}")]
    Damaged(#[from] ClientError),
    /// What came is no answer.
    #[error("a node's answer cannot be read: {0}")]
    Malformed(#[from] FrameError),
}

/// Records of a shard, as they arrived. A clone shares the bytes.
#[derive(Clone, Debug)]
pub struct Fetched {
    head: FetchAnswer,
    payload: Payload,
    items: u32,
    /// Records before it were not asked for.
    from: Offset,
}

/// A record, where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchedRecord<'a> {
    /// Its offset.
    pub offset: Offset,
    /// When its leader took it, milliseconds since 1970.
    pub append_time_ms: u64,
    /// Its hash key.
    pub hash_key: HashKey,
    /// Its producer's time, milliseconds since 1970.
    pub client_time_ms: u64,
    /// Its partition key.
    pub key: &'a [u8],
    /// Its data.
    pub data: &'a [u8],
}

impl Fetched {
    /// What the node said beside the records: where to go on, what is kept and committed, and
    /// whether the shard ends here.
    #[must_use]
    pub fn head(&self) -> &FetchAnswer {
        &self.head
    }

    /// Bytes of the batches, as a subscription's credit counts them.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.payload.len() - FETCH_ANSWER_BYTES
    }

    /// The batches, in order. The first may begin before what was asked for.
    pub fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        let mut rest = &self.payload[FETCH_ANSWER_BYTES..];
        (0..self.items).map(move |_| {
            let batch = Batch::check_again(rest).expect("it was checked when it came");
            rest = &rest[padded_bytes(batch.header.batch_bytes())..];
            batch
        })
    }

    /// The records from where was asked for on, in order.
    pub fn records(&self) -> impl Iterator<Item = FetchedRecord<'_>> {
        let from = self.from;
        self.batches().flat_map(move |batch| {
            let append_time_ms = batch.header.append_time_ms;
            batch.records().filter(move |record| record.offset >= from).map(move |record| {
                FetchedRecord {
                    offset: record.offset,
                    append_time_ms,
                    hash_key: record.hash_key,
                    client_time_ms: record.client_time_ms,
                    key: record.key,
                    data: record.data,
                }
            })
        })
    }

    /// Checks an answer. `due` is the offset that is to come, where that is known, and then the
    /// one behind what came.
    fn check(
        shard: ShardId,
        answer: Answer,
        due: &mut Option<Offset>,
    ) -> Result<Fetched, FetchError> {
        let (payload, items) = (answer.payload, answer.header.items);
        let head = FetchAnswer::decode(&payload)?;
        head.status.map_err(|refusal| FetchError::Refused { shard, refusal })?;
        // Where nothing is due, the first batch is where the node found the beginning.
        let from = due.or_else(|| first_offset(&payload, items)).unwrap_or(head.next);
        let mut next = from;
        let bytes = check_batches(&payload, items, shard, &mut next, |_| {})?;
        if bytes != payload.len() - FETCH_ANSWER_BYTES {
            let what = "its batches do not fill it";
            return Err(FrameError::Payload { kind: answer.header.kind, what }.into());
        }
        *due = Some(next);
        Ok(Fetched { head, payload, items, from })
    }
}

fn first_offset(payload: &[u8], items: u32) -> Option<Offset> {
    let header = BatchHeader::decode(payload.get(FETCH_ANSWER_BYTES..)?).ok()?;
    (items > 0).then_some(header.first_offset)
}

/// See the module. A clone is another handle.
#[derive(Clone)]
pub struct Fetcher {
    routes: Arc<dyn Routes>,
    links: NodeLinks,
    patience: Duration,
}

impl Fetcher {
    /// A fetcher over links of its own; `patience` is how long a node may take to answer beyond
    /// what it was asked to wait, other tries included.
    #[must_use]
    pub fn new(routes: Arc<dyn Routes>, links: NodeLinks, patience: Duration) -> Fetcher {
        Fetcher { routes, links, patience }
    }

    /// Reads from a place on: up to so many bytes of batches (4 MiB at most, yet one batch of any
    /// size, and less where memory is short), as soon as there is something; none after `wait`
    /// (10 s at most). Memory is waited for, up to 2 s.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(
        &self,
        shard: ShardId,
        from: FetchFrom,
        bytes_max: u32,
        wait: Duration,
    ) -> Result<Fetched, FetchError> {
        let request = fetch_request(shard, from, bytes_max, wait);
        self.fetch_with(request, 0, MEMORY_WAIT).await
    }

    /// The same for an answer in the making: nothing is waited for but memory, so long. The shard
    /// may have batches of up to `batch_bytes_max`: where that is more than can be asked for, it is
    /// what is reserved.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch_page(
        &self,
        shard: ShardId,
        from: FetchFrom,
        bytes_max: u32,
        batch_bytes_max: usize,
        memory_wait: Duration,
    ) -> Result<Fetched, FetchError> {
        let request = fetch_request(shard, from, bytes_max, Duration::ZERO);
        self.fetch_with(request, batch_bytes_max, memory_wait).await
    }

    async fn fetch_with(
        &self,
        request: FetchRequest,
        batch_bytes_max: usize,
        memory_wait: Duration,
    ) -> Result<Fetched, FetchError> {
        let memory_until = Instant::now() + memory_wait;
        let FetchRequest { shard, from, .. } = request;
        let wait = Duration::from_millis(request.wait_ms.into());
        let deadline = Instant::now() + wait + self.patience;
        let ask = |route: Route| {
            let link = self.links.get(route.address);
            async move { ask(&link, request, batch_bytes_max, memory_until, deadline).await }
        };
        self.try_until(deadline, shard, ask, |answer| {
            let mut due = offset_of(from);
            Fetched::check(shard, answer, &mut due)
        })
        .await
    }

    /// Bytes of its memory that nothing fills or has reserved.
    #[must_use]
    pub fn bytes_free(&self) -> usize {
        self.links.memory().bytes_free()
    }

    /// Subscribes: `credit_bytes` of batches (4 MiB at most) may come before the first grant, and
    /// after `silence` (50 ms to 10 s) without any an empty event does.
    ///
    /// # Errors
    /// [`FetchError`]. What the node refuses after that is told by the subscription.
    pub async fn subscribe(
        &self,
        shard: ShardId,
        from: FetchFrom,
        credit_bytes: u32,
        silence: Duration,
    ) -> Result<ShardSubscription, FetchError> {
        let request = SubscribeRequest(fetch_request(shard, from, credit_bytes, silence));
        let deadline = Instant::now() + self.patience;
        let ask = |route: Route| {
            let link = self.links.get(route.address);
            async move { link.subscribe(&request).await }
        };
        self.try_until(deadline, shard, ask, |subscription| {
            let awaits_time = matches!(from, FetchFrom::Time(_));
            Ok(ShardSubscription { shard, subscription, due: offset_of(from), awaits_time })
        })
        .await
    }

    /// Asks who has the shard, again elsewhere as long as that may help and there is time.
    async fn try_until<A, T, F: Future<Output = Result<A, LinkError>> + Send>(
        &self,
        deadline: Instant,
        shard: ShardId,
        ask: impl Fn(Route) -> F,
        take: impl Fn(A) -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut known = self.routes.route(shard);
        let mut pause = PAUSE.0;
        loop {
            let Some(route) = known else {
                let found = self.refresh(deadline, shard, Stale { route: None, refusal: None });
                known = Some(found.await.ok_or(FetchError::NoRoute { shard })?);
                continue;
            };
            let (error, refusal) = match ask(route).await {
                Ok(answer) => match take(answer) {
                    Err(FetchError::Refused { shard, refusal }) if is_elsewhere(refusal.code) => {
                        (FetchError::Refused { shard, refusal }, Some(refusal))
                    }
                    other => return other,
                },
                Err(LinkError::NoMemory { bytes, .. }) => {
                    return Err(FetchError::NoMemory { shard, bytes });
                }
                Err(last) => (FetchError::Unreachable { shard, last }, None),
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            let stale = Stale { route: Some(route), refusal };
            known = self.refresh(deadline, shard, stale).await;
            if known.is_none() {
                return Err(FetchError::NoRoute { shard });
            }
            if known == Some(route) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }

    /// A newer route, or what is known when nobody finds one in time.
    async fn refresh(&self, deadline: Instant, shard: ShardId, stale: Stale) -> Option<Route> {
        let found = tokio::time::timeout_at(deadline, self.routes.refresh(shard, stale)).await;
        found.unwrap_or_else(|_| self.routes.route(shard))
    }
}

/// Asks a core for as much as there is memory for, and again for a batch that is larger than that,
/// once there is memory for it: how large it is, nobody knew. Of a shard whose batches may be larger
/// than any request, the largest is reserved at once: answers that are passed over take the way of
/// those that are not.
async fn ask(
    link: &NodeLink,
    mut request: FetchRequest,
    batch_bytes_max: usize,
    memory_until: Instant,
    deadline: Instant,
) -> Result<Answer, LinkError> {
    let (memory, address) = (link.memory(), link.address());
    let wanted = request.bytes_max as usize + FETCH_ANSWER_BYTES;
    let least = wanted.min(ASKED_BYTES_MIN as usize + FETCH_ANSWER_BYTES);
    let (reserved, bytes) = if batch_bytes_max > FETCH_BYTES_MAX as usize {
        let needed = batch_bytes_max + FETCH_ANSWER_BYTES;
        (memory.reserve_needed(needed, memory_until).await, needed)
    } else {
        (memory.reserve_some(wanted, least, memory_until).await, least)
    };
    let mut reserved = reserved.ok_or(LinkError::NoMemory { address, bytes })?;
    let answer_bytes_max = reserved.bytes().min(wanted);
    request.bytes_max = (answer_bytes_max - FETCH_ANSWER_BYTES) as u32;
    loop {
        let sent = Request {
            kind: FrameKind::Fetch,
            items: 0,
            payload: vec![Bytes::copy_from_slice(&request.encode())],
            timeout: deadline.saturating_duration_since(Instant::now()),
        };
        let bytes = match link.request_with(sent, Some(reserved)).await {
            Err(LinkError::NoMemory { bytes, .. }) => bytes,
            answered => return answered,
        };
        reserved = memory
            .reserve_needed(bytes, memory_until.min(deadline))
            .await
            .ok_or(LinkError::NoMemory { address, bytes })?;
    }
}

fn fetch_request(shard: ShardId, from: FetchFrom, bytes_max: u32, wait: Duration) -> FetchRequest {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).min(FETCH_WAIT_MS_MAX);
    FetchRequest {
        shard,
        epoch: Epoch(0),
        from,
        bytes_max: bytes_max.min(FETCH_BYTES_MAX),
        wait_ms,
    }
}

fn offset_of(from: FetchFrom) -> Option<Offset> {
    match from {
        FetchFrom::Offset(offset) => Some(offset),
        _ => None,
    }
}

/// Whether a shard may be served elsewhere, or by the same node again soon.
fn is_elsewhere(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::UnknownShard
            | ErrorCode::WrongCore
            | ErrorCode::ExtentElsewhere
            | ErrorCode::Overloaded
            | ErrorCode::Stopping
    )
}

/// A subscription whose events are checked: in order, without a gap. Dropped, it is cancelled.
pub struct ShardSubscription {
    shard: ShardId,
    subscription: Subscription,
    /// The offset that comes next, once that is known.
    due: Option<Offset>,
    /// Whether it began at a time that no batch has reached yet.
    awaits_time: bool,
}

impl ShardSubscription {
    /// The next event: records, or none after a silence; the last one says so in its head. None
    /// after the last, and after an error: subscribe again, from [`ShardSubscription::due`].
    /// Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Result<Fetched, FetchError>> {
        let shard = self.shard;
        let answer = match self.subscription.next().await? {
            Ok(answer) => answer,
            Err(last) => return Some(Err(FetchError::Unreachable { shard, last })),
        };
        let mut due = self.due;
        let fetched = Fetched::check(shard, answer, &mut due);
        // From a time that nothing has reached yet, the first batch is wherever it will be.
        if fetched.as_ref().is_ok_and(|fetched| fetched.items > 0 || !self.awaits_time) {
            (self.due, self.awaits_time) = (due, false);
        }
        Some(fetched)
    }

    /// The offset that comes next, once the node has told where the subscription began.
    #[must_use]
    pub fn due(&self) -> Option<Offset> {
        self.due
    }

    /// Allows so many bytes of batches more; see [`Subscription::grant`].
    ///
    /// # Errors
    /// [`LinkError`] when the connection is gone.
    pub async fn grant(&mut self, bytes: u32) -> Result<(), LinkError> {
        self.subscription.grant(bytes).await
    }

    /// Bytes granted that no event has used yet.
    #[must_use]
    pub fn credit_bytes(&self) -> usize {
        self.subscription.credit_bytes()
    }
}
