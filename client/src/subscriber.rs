//! The subscriber: batches of many shards, pushed by the node as they commit.
//!
//! The node sends as much as it was granted; what was handed over is granted again. Who takes
//! batches slowly is sent them slowly, and holds up nobody else.

use std::net::SocketAddr;
use std::time::Duration;

use thalweg_wire::batch::{Batch, BatchHeader};
use thalweg_wire::error::Refusal;
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind, small_frame};
use thalweg_wire::ids::{Epoch, Offset, ShardId, StreamId};
use thalweg_wire::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX};
use thalweg_wire::subscribe::{Credit, SubscribeRequest};

use crate::admin::Admin;
use crate::connection::{FrameStream, wait_for_streams};
use crate::error::ClientError;
use crate::reader::check_batches;

/// How a subscriber works.
#[derive(Clone, Debug)]
pub struct SubscriberConfig {
    /// Address of any core of the node.
    pub node: SocketAddr,
    /// The stream.
    pub stream: StreamId,
    /// Indexes of the shards, or none for all that the stream has now.
    pub shards: Vec<u32>,
    /// Where each shard begins. An offset is for one shard; for several, use the others.
    pub from: FetchFrom,
    /// Bytes of batches that the node may send of each shard ahead of what was taken. A batch that
    /// is larger never comes: not below 11 MiB where records of the largest size may occur.
    pub credit_bytes: u32,
    /// Longest silence of a shard, at most 10 s: then the node says that there is nothing.
    pub silence: Duration,
    /// How long connecting may take.
    pub timeout: Duration,
}

impl SubscriberConfig {
    /// A subscriber of a whole stream, from now on.
    #[must_use]
    pub fn new(node: SocketAddr, stream: StreamId) -> SubscriberConfig {
        SubscriberConfig {
            node,
            stream,
            shards: Vec::new(),
            from: FetchFrom::Latest,
            credit_bytes: CREDIT_BYTES,
            silence: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
        }
    }
}

/// More than the largest batch.
const CREDIT_BYTES: u32 = 12 << 20;

/// A shard that is subscribed to.
#[derive(Clone, Copy, Debug)]
pub struct SubscribedShard {
    /// Which.
    pub id: ShardId,
    /// The offset that comes next, once the node has told where the subscription began.
    pub next: Option<Offset>,
    /// Whether no event follows any more.
    pub ended: bool,
    link: usize,
    /// Bytes taken and not granted again.
    owed: u32,
    /// Whether it began at a time that no batch has reached yet.
    awaits_time: bool,
}

/// What the node pushed.
#[derive(Debug)]
pub enum Event<'a> {
    /// A batch. Those of a shard come in order and without a gap.
    Batch(&'a Batch<'a>),
    /// There was nothing for as long as [`SubscriberConfig::silence`].
    Silence,
    /// The shard was sealed, and everything of it has come.
    Sealed,
    /// The subscription ended before its time; subscribe again at what was due.
    Refused(Refusal),
}

/// See the module.
pub struct Subscriber {
    config: SubscriberConfig,
    links: Vec<FrameStream>,
    shards: Vec<SubscribedShard>,
}

impl Subscriber {
    /// Connects to every core and subscribes to the shards that are there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(config: SubscriberConfig) -> Result<Subscriber, ClientError> {
        let node = config.node;
        let description = Admin::connect(node, config.timeout)?.hello()?;
        let (mut links, mut shards) = (Vec::new(), Vec::new());
        for (link, port) in description.ports.iter().enumerate() {
            let address = SocketAddr::new(node.ip(), *port);
            for shard in Admin::connect(address, config.timeout)?.describe(config.stream)? {
                let id = shard.extent.shard;
                if config.shards.is_empty() || config.shards.contains(&id.index) {
                    let (next, ended, owed, awaits_time) = (None, false, 0, false);
                    shards.push(SubscribedShard { id, next, ended, link, owed, awaits_time });
                }
            }
            links.push(FrameStream::connect(address, config.timeout)?);
        }
        shards.sort_by_key(|shard| shard.id);
        let mut subscriber = Subscriber { config, links, shards };
        for place in 0..subscriber.shards.len() {
            subscriber.subscribe(place, subscriber.config.from);
        }
        subscriber.links.iter_mut().try_for_each(FrameStream::write)?;
        Ok(subscriber)
    }

    fn subscribe(&mut self, place: usize, from: FetchFrom) {
        let config = &self.config;
        let shard = &mut self.shards[place];
        shard.next = match from {
            FetchFrom::Offset(offset) => Some(offset),
            _ => None,
        };
        shard.awaits_time = matches!(from, FetchFrom::Time(_));
        let wait_ms = u32::try_from(config.silence.as_millis()).unwrap_or(u32::MAX);
        let request = SubscribeRequest(FetchRequest {
            shard: shard.id,
            epoch: Epoch(0),
            from,
            bytes_max: config.credit_bytes.min(FETCH_BYTES_MAX),
            wait_ms: wait_ms.min(FETCH_WAIT_MS_MAX),
        });
        let link = &mut self.links[shard.link];
        link.push(&small_frame(FrameKind::Subscribe, 0, place as u64, &request.encode()));
        if let Some(bytes) = config.credit_bytes.checked_sub(FETCH_BYTES_MAX + 1) {
            grant(link, place, bytes + 1);
        }
    }

    /// The shards, in order, and how far each has come.
    #[must_use]
    pub fn shards(&self) -> &[SubscribedShard] {
        &self.shards
    }

    /// Ends the subscription to a shard. What is on its way still comes.
    pub fn cancel(&mut self, place: usize) {
        let credit = Credit::Cancel { subscription: place as u64 };
        let frame = small_frame(FrameKind::Credit, 0, 0, &credit.encode());
        self.links[self.shards[place].link].push(&frame);
    }

    /// Hands over what was pushed, with the place of its shard; waits for at most `timeout` when
    /// there is nothing. Answers how many events there were.
    ///
    /// # Errors
    /// [`ClientError`], also when a batch is damaged or one is missing. The connection is of no
    /// more use then: subscribe again from what was due.
    pub fn poll(
        &mut self,
        timeout: Duration,
        mut take: impl FnMut(usize, &Event<'_>),
    ) -> Result<usize, ClientError> {
        self.links.iter_mut().try_for_each(FrameStream::write)?;
        let (ready, _) = wait_for_streams(self.links.iter(), timeout)?;
        let mut events = 0;
        let Subscriber { config, links, shards } = self;
        for place in ready {
            let link = &mut links[place];
            link.read()?;
            let mut owing = Vec::new();
            while let Some((header, payload)) = link.next_frame()? {
                let place = take_event(&header, payload, shards, &mut take)?;
                events += 1;
                if shards[place].owed >= config.credit_bytes / 2 {
                    owing.push((place, std::mem::take(&mut shards[place].owed)));
                }
            }
            owing.into_iter().for_each(|(place, bytes)| grant(link, place, bytes));
            link.write()?;
        }
        Ok(events)
    }
}

fn grant(link: &mut FrameStream, place: usize, bytes: u32) {
    let credit = Credit::Grant { subscription: place as u64, bytes };
    link.push(&small_frame(FrameKind::Credit, 0, 0, &credit.encode()));
}

/// Takes an event apart and hands over what it holds; answers the shard's place.
fn take_event(
    header: &FrameHeader,
    payload: &[u8],
    shards: &mut [SubscribedShard],
    take: &mut impl FnMut(usize, &Event<'_>),
) -> Result<usize, ClientError> {
    if header.kind == FrameKind::Error {
        return Err(ErrorAnswer::decode(payload)?.0.into());
    }
    let place = header.correlation as usize;
    if header.kind != FrameKind::SubscribeEvent || place >= shards.len() {
        return Err(ClientError::UnexpectedAnswer { kind: format!("{:?}", header.kind) });
    }
    let shard = &mut shards[place];
    let answer = FetchAnswer::decode(payload)?;
    if let Err(refusal) = answer.status {
        shard.ended = true;
        take(place, &Event::Refused(refusal));
        return Ok(place);
    }
    let mut next = match shard.next {
        Some(next) => next,
        // The first batch is where the node found the beginning.
        None => first_offset(payload, header.items).unwrap_or(answer.next),
    };
    let hand = |batch: &Batch<'_>| take(place, &Event::Batch(batch));
    let bytes = check_batches(payload, header.items, shard.id, &mut next, hand)?;
    // From a time that nothing has reached yet, the first batch is wherever it will be.
    if header.items > 0 || !shard.awaits_time {
        shard.next = Some(next);
        shard.awaits_time = false;
    }
    shard.owed += bytes as u32;
    if answer.sealed_end {
        shard.ended = true;
        take(place, &Event::Sealed);
    } else if header.items == 0 {
        take(place, &Event::Silence);
    }
    Ok(place)
}

fn first_offset(payload: &[u8], items: u32) -> Option<Offset> {
    let batch = payload.get(FETCH_ANSWER_BYTES..)?;
    let header = BatchHeader::decode(batch).ok()?;
    (items > 0).then_some(header.first_offset)
}
