//! The reader: many shards at a time, fetches under way on every core, batches checked and handed
//! over where they were received.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thalweg_wire::batch::{Batch, BatchHeader};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, Offset, ShardId, StreamId};
use thalweg_wire::produce::padded_bytes;

use crate::admin::Admin;
use crate::connection::{Inbox, connect, would_block};
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
    address: SocketAddr,
    stream: TcpStream,
    inbox: Inbox,
    /// Shards whose turn it is, the first first.
    turn: VecDeque<usize>,
    under_way: usize,
    out: Vec<u8>,
    written: usize,
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
            let stream = connect(address, config.timeout)?;
            let failed = |source| ClientError::Connection { address, source };
            stream.set_nonblocking(true).map_err(failed)?;
            links.push(Link {
                address,
                stream,
                inbox: Inbox::default(),
                turn: VecDeque::new(),
                under_way: 0,
                out: Vec::new(),
                written: 0,
            });
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
                write(link)?;
            }
            if self.links.iter().all(|link| link.under_way == 0) {
                return Ok(());
            }
            for place in wait_for_sockets(&self.links, self.config.timeout)? {
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
        let address = link.address;
        let failed = |source| ClientError::Connection { address, source };
        match link.inbox.read_from(&mut link.stream) {
            Ok(0) => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) if would_block(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        while let Some((header, payload)) = link.inbox.next_frame()? {
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
        link.out.extend(frame);
        link.under_way += 1;
    }
}

fn write(link: &mut Link) -> Result<(), ClientError> {
    while link.written < link.out.len() {
        match link.stream.write(&link.out[link.written..]) {
            Ok(count) => link.written += count,
            Err(error) if would_block(&error) => return Ok(()),
            Err(source) => {
                return Err(ClientError::Connection { address: link.address, source });
            }
        }
    }
    link.out.clear();
    link.written = 0;
    Ok(())
}

fn wait_for_sockets(links: &[Link], timeout: Duration) -> Result<Vec<usize>, ClientError> {
    let mut sockets: Vec<PollFd<'_>> = links
        .iter()
        .map(|link| {
            let writes = link.written < link.out.len();
            let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            PollFd::new(&link.stream, flags)
        })
        .collect();
    let wait =
        Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let ready = match poll(&mut sockets, Some(&wait)) {
        Ok(ready) => ready,
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        Err(errno) => {
            let address = links[0].address;
            return Err(ClientError::Connection { address, source: errno.into() });
        }
    };
    if ready == 0 {
        let address = links[0].address;
        let source = std::io::ErrorKind::TimedOut.into();
        return Err(ClientError::Connection { address, source });
    }
    let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    let ready = sockets.iter().enumerate();
    Ok(ready
        .filter(|(_, socket)| socket.revents().intersects(readable))
        .map(|(place, _)| place)
        .collect())
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
    let mut rest = &payload[FETCH_ANSWER_BYTES..];
    for _ in 0..header.items {
        let damaged = |error| ClientError::Damaged { shard: shard.id, error };
        let batch = Batch::check(rest, &HashRange::FULL).map_err(damaged)?;
        let BatchHeader { first_offset, .. } = batch.header;
        let holds = first_offset <= shard.next && shard.next < batch.header.end_offset();
        if batch.header.shard != shard.id || !holds {
            return Err(ClientError::Gap {
                shard: shard.id,
                expected: shard.next,
                found: first_offset,
            });
        }
        shard.next = batch.header.end_offset();
        take(place, &batch);
        rest = rest.get(padded_bytes(batch.header.batch_bytes())..).unwrap_or(&[]);
    }
    Ok(place)
}
