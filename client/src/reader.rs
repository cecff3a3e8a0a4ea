//! The reader: many shards at a time, fetches under way on every core, batches checked and handed
//! over where they were received.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use thalweg_wire::batch::{Batch, BatchHeader};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, Offset, ShardId, StreamId};
use thalweg_wire::produce::padded_bytes;

use crate::admin::Admin;
use crate::connection::{FrameStream, wait_for_streams};
use crate::error::ClientError;

/// How a reader works.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// Address of any core of the node.
    pub node: SocketAddr,
    /// The stream.
    pub stream: StreamId,
    /// Fetches under way to each core.
    pub depth: usize,
    /// Bytes that each fetch asks for.
    pub fetch_bytes: u32,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl ReaderConfig {
    /// A reader of a whole stream.
    #[must_use]
    pub fn new(node: SocketAddr, stream: StreamId) -> ReaderConfig {
        let timeout = Duration::from_secs(30);
        // Twice what a node reads from a disk at a time: half wait there while half are read.
        ReaderConfig { node, stream, depth: 16, fetch_bytes: 1 << 20, timeout }
    }
}

/// A shard that is read: from `next` up to `until`.
#[derive(Clone, Copy, Debug)]
pub struct ReadShard {
    /// Which.
    pub id: ShardId,
    /// The next offset.
    pub next: Offset,
    /// Where reading ends: the end of the committed records when the reader connected.
    pub until: Offset,
    link: usize,
}

struct Link {
    frames: FrameStream,
    /// Shards whose turn it is, the first first.
    turn: VecDeque<usize>,
    under_way: usize,
}

/// See the module.
pub struct Reader {
    config: ReaderConfig,
    links: Vec<Link>,
    shards: Vec<ReadShard>,
}

impl Reader {
    /// Connects to every core and learns what is there to read.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(config: ReaderConfig) -> Result<Reader, ClientError> {
        let node = config.node;
        let description = Admin::connect(node, config.timeout)?.hello()?;
        let mut links = Vec::new();
        let mut shards = Vec::new();
        for (link, port) in description.ports.iter().enumerate() {
            let address = SocketAddr::new(node.ip(), *port);
            for shard in Admin::connect(address, config.timeout)?.describe(config.stream)? {
                let (id, until) = (shard.extent.shard, shard.committed);
                shards.push(ReadShard { id, next: shard.earliest, until, link });
            }
            let frames = FrameStream::connect(address, config.timeout)?;
            links.push(Link { frames, turn: VecDeque::new(), under_way: 0 });
        }
        shards.sort_by_key(|shard| shard.id);
        Ok(Reader { config, links, shards })
    }

    /// The shards, in order, and how far each was read.
    #[must_use]
    pub fn shards(&self) -> &[ReadShard] {
        &self.shards
    }

    /// Begins elsewhere: each shard at the offset that `place` says.
    pub fn seek(&mut self, place: impl Fn(&ReadShard) -> Offset) {
        for shard in &mut self.shards {
            shard.next = place(shard);
        }
    }

    /// Reads every shard to its end; hands each batch over, with the place of its shard. Batches
    /// of a shard come in order and without a gap.
    ///
    /// # Errors
    /// [`ClientError`], also when a batch is damaged or one is missing.
    pub fn read_all(&mut self, mut take: impl FnMut(usize, &Batch<'_>)) -> Result<(), ClientError> {
        for (place, shard) in self.shards.iter().enumerate() {
            if shard.next < shard.until {
                self.links[shard.link].turn.push_back(place);
            }
        }
        loop {
            for link in &mut self.links {
                ask(link, &self.config, &self.shards);
                link.frames.write()?;
            }
            if self.links.iter().all(|link| link.under_way == 0) {
                return Ok(());
            }
            let streams = self.links.iter().map(|link| &link.frames);
            let (ready, in_time) = wait_for_streams(streams, self.config.timeout)?;
            if !in_time {
                let address = self.links[0].frames.address;
                let source = std::io::ErrorKind::TimedOut.into();
                return Err(ClientError::Connection { address, source });
            }
            for place in ready {
                self.read_link(place, &mut take)?;
            }
        }
    }

    fn read_link(
        &mut self,
        place: usize,
        take: &mut impl FnMut(usize, &Batch<'_>),
    ) -> Result<(), ClientError> {
        let Reader { links, shards, .. } = self;
        let link = &mut links[place];
        link.frames.read()?;
        while let Some((header, payload)) = link.frames.next_frame()? {
            let shard_place = take_answer(&header, payload, shards, take)?;
            link.under_way -= 1;
            let shard = &shards[shard_place];
            if shard.next < shard.until {
                link.turn.push_back(shard_place);
            }
        }
        Ok(())
    }
}

/// Asks for the shards whose turn it is, as many at a time as the depth allows.
fn ask(link: &mut Link, config: &ReaderConfig, shards: &[ReadShard]) {
    while link.under_way < config.depth {
        let Some(place) = link.turn.pop_front() else { return };
        let shard = &shards[place];
        let request = FetchRequest {
            shard: shard.id,
            epoch: Epoch(0),
            from: FetchFrom::Offset(shard.next),
            bytes_max: config.fetch_bytes,
            wait_ms: 0,
        };
        let frame = small_frame(FrameKind::Fetch, 0, place as u64, &request.encode());
        link.frames.push(&frame);
        link.under_way += 1;
    }
}

/// Takes an answer apart, checks its batches and hands them over; answers the shard's place.
fn take_answer(
    header: &FrameHeader,
    payload: &[u8],
    shards: &mut [ReadShard],
    take: &mut impl FnMut(usize, &Batch<'_>),
) -> Result<usize, ClientError> {
    if header.kind == FrameKind::Error {
        return Err(ErrorAnswer::decode(payload)?.0.into());
    }
    let place = header.correlation as usize;
    if header.kind != FrameKind::FetchAnswer || place >= shards.len() {
        return Err(ClientError::UnexpectedAnswer { kind: format!("{:?}", header.kind) });
    }
    let answer = FetchAnswer::decode(payload)?;
    answer.status?;
    let shard = &mut shards[place];
    check_batches(payload, header.items, shard.id, &mut shard.next, |batch| take(place, batch))?;
    Ok(place)
}

/// Checks the batches of a fetch's answer or an event and hands them over; `next` is the offset
/// that is due and moves on with them. Answers the bytes of the batches, as the node counts them.
///
/// # Errors
/// [`ClientError::Damaged`] when a batch is, [`ClientError::Gap`] when another was due.
pub fn check_batches(
    payload: &[u8],
    items: u32,
    id: ShardId,
    next: &mut Offset,
    mut take: impl FnMut(&Batch<'_>),
) -> Result<usize, ClientError> {
    let all = payload.get(FETCH_ANSWER_BYTES..).unwrap_or(&[]);
    let mut rest = all;
    for _ in 0..items {
        let damaged = |error| ClientError::Damaged { shard: id, error };
        let batch = Batch::check(rest, &HashRange::FULL).map_err(damaged)?;
        let BatchHeader { first_offset, .. } = batch.header;
        let holds = first_offset <= *next && *next < batch.header.end_offset();
        if batch.header.shard != id || !holds {
            return Err(ClientError::Gap { shard: id, expected: *next, found: first_offset });
        }
        *next = batch.header.end_offset();
        take(&batch);
        rest = rest.get(padded_bytes(batch.header.batch_bytes())..).unwrap_or(&[]);
    }
    Ok(all.len() - rest.len())
}
