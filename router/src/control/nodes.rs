//! The nodes as a controller sees them: who they are, which of their cores has which shard, and
//! the commands that open, end, trim and delete what is on them.
//!
//! What a node has is asked of the node itself: its cores' ports and its shards' epochs change
//! with each of its starts. The answers are the routes that records follow; a route that turned
//! out to be old is looked up again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::try_join_all;
use thalweg_wire::control::{
    ControlAnswer, DeleteShard, DescribeRequest, ExtentState, FenceExtent, NodeDescription,
    OpenExtent, SHARD_DESCRIPTION_BYTES, SealExtent, ShardDescription, TrimShard,
};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{FrameError, FrameKind};
use thalweg_wire::ids::{BootId, Epoch, ExtentId, Offset, ShardId, StreamId};
use thiserror::Error;
use tokio::time::Instant;

use crate::route::{LinkError, NodeLink, NodeLinks, Request, Route, RouteFuture, Routes, Stale};

/// How long a node may take to answer a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a command is sent again for which a node had no room; it doubles up to the longest.
const REPEAT_AFTER: Duration = Duration::from_millis(5);
const REPEAT_AFTER_MAX: Duration = Duration::from_millis(200);
/// A shard is looked up again at most once in so long.
const LOOK_UP_AGAIN: Duration = Duration::from_millis(20);
/// How long a node may take to tell its room for shards: whoever creates a stream waits for it.
const ROOM_TIMEOUT: Duration = Duration::from_millis(500);
/// How old what it told may be, and how long it is not asked again when it did not tell.
const ROOM_AGE_MAX: Duration = Duration::from_millis(100);
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Why a node did not do what it was told.
#[derive(Clone, Debug, Error)]
pub enum NodeError {
    /// It could not be asked, or did not answer.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It refused.
    #[error("{address} refused {command:?}: {refusal}")]
    Refused {
        /// The core.
        address: SocketAddr,
        /// The command.
        command: FrameKind,
        /// Why.
        refusal: Refusal,
    },
    /// What it answered is no answer.
    #[error("{address} answered what is no answer ({source}): is it of another version?")]
    Answer {
        /// The core.
        address: SocketAddr,
        /// What is wrong with it.
        source: FrameError,
    },
    /// None of its cores has room for another shard.
    #[error(
        "the node at {address} has no room for another shard: give it more cores or another data \
         directory; it goes on by itself then (docs/operations.md, Shards)"
    )]
    Full {
        /// Where the node was looked for.
        address: SocketAddr,
    },
    /// It has no such shard.
    #[error("the node at {address} has no {shard}: was its data directory exchanged?")]
    NoShard {
        /// Where the node was looked for.
        address: SocketAddr,
        /// The shard.
        shard: ShardId,
    },
}

impl NodeError {
    /// Whether the same command may succeed later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            NodeError::Link(_) | NodeError::Full { .. } => true,
            NodeError::Refused { refusal, .. } => matches!(
                refusal.code,
                ErrorCode::Overloaded
                    | ErrorCode::NoSpace
                    | ErrorCode::LogFailed
                    | ErrorCode::Stopping
                    | ErrorCode::WrongCore
            ),
            NodeError::Answer { .. } | NodeError::NoShard { .. } => false,
        }
    }
}

/// Where a shard is, as its node said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Address of the core.
    pub address: SocketAddr,
    /// Epoch of its newest extent.
    pub epoch: Epoch,
    /// What that extent takes.
    pub state: ExtentState,
}

impl Location {
    fn route(self) -> Route {
        Route { epoch: self.epoch, address: self.address }
    }
}

/// A node in one of its starts.
#[derive(Clone, Debug)]
struct Start {
    boot: BootId,
    /// Addresses of its cores.
    cores: Vec<SocketAddr>,
}

/// A node: commands to it, and routes to its shards.
pub struct Node {
    /// Any of its cores: where it is looked for.
    address: SocketAddr,
    links: NodeLinks,
    start: ArcSwapOption<Start>,
    locations: papaya::HashMap<ShardId, Location>,
    /// When shards were last looked up because a route had failed.
    looked_up: Mutex<HashMap<ShardId, Instant>>,
    /// Deals new shards out to the cores.
    next_core: AtomicUsize,
    /// New shards whose opening was begun here, and those of which it has ended, well or not.
    openings: (AtomicU64, AtomicU64),
    /// The room for shards that it told last.
    told_room: Mutex<Option<ToldRoom>>,
}

/// New shards whose opening was begun, and of which it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Openings {
    begun: u64,
    ended: u64,
}

impl Openings {
    /// Shards that are being opened.
    #[must_use]
    pub fn under_way(self) -> u64 {
        self.begun - self.ended
    }
}

/// Counts an opening as ended, also one that is given up before its end.
struct Opening<'a>(&'a AtomicU64);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a node told of its room.
#[derive(Clone, Debug)]
struct ToldRoom {
    asked: Instant,
    /// Openings that were begun before it was asked.
    begun: u64,
    room: Result<u64, NodeError>,
}

impl ToldRoom {
    /// What is left of it when so many openings were begun; none when it is too old.
    fn left(&self, now: Instant, begun: u64) -> Option<Result<u64, NodeError>> {
        let age_max = if self.room.is_ok() { ROOM_AGE_MAX } else { ROOM_PAUSE };
        let left = self.room.clone().map(|room| room.saturating_sub(begun - self.begun));
        (now < self.asked + age_max).then_some(left)
    }
}

impl Node {
    /// A node that is looked for at the address of any of its cores.
    #[must_use]
    pub fn new(address: SocketAddr, links: NodeLinks) -> Arc<Node> {
        Arc::new(Node {
            address,
            links,
            start: ArcSwapOption::empty(),
            locations: papaya::HashMap::new(),
            looked_up: Mutex::default(),
            next_core: AtomicUsize::new(0),
            openings: Default::default(),
            told_room: Mutex::default(),
        })
    }

    /// Learns its cores and all its shards.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn learn(&self) -> Result<(), NodeError> {
        let start = self.hello().await?;
        let mut count = 0;
        for core in &start.cores {
            let mut from = Some(ShardId { stream: StreamId(0), index: 0 });
            while let Some(request) = from {
                let shards = self.describe(*core, request).await?;
                count += shards.len();
                from = shards.last().and_then(|last| after(last.extent.shard));
                shards.iter().for_each(|shard| self.note(*core, shard));
            }
        }
        tracing::info!(address = %self.address, cores = start.cores.len(), shards = count, "a node");
        self.start.store(Some(Arc::new(start)));
        Ok(())
    }

    /// What the node says of all its shards now.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn describe_all(&self) -> Result<Vec<ShardDescription>, NodeError> {
        let mut described = Vec::new();
        for core in self.cores().await? {
            let mut from = Some(ShardId { stream: StreamId(0), index: 0 });
            while let Some(request) = from {
                let shards = self.describe(core, request).await?;
                from = shards.last().and_then(|last| after(last.extent.shard));
                described.extend(shards);
            }
        }
        Ok(described)
    }

    /// Where a shard is, as far as that is known.
    #[must_use]
    pub fn location(&self, shard: ShardId) -> Option<Location> {
        self.locations.pin().get(&shard).copied()
    }

    /// How many new shards its cores can open, as they say now.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn room_now(&self) -> Result<u64, NodeError> {
        let (asked, begun) = (Instant::now(), self.openings().begun);
        let room = self.ask_room().await;
        let told = ToldRoom { asked, begun, room: room.clone() };
        *self.told_room.lock().expect("nobody panics with it") = Some(told);
        room
    }

    /// The same as they said a moment ago, less all that were opened since.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn recent_room(&self) -> Result<u64, NodeError> {
        let begun = self.openings().begun;
        let told = self.told_room.lock().expect("nobody panics with it").clone();
        match told.and_then(|told| told.left(Instant::now(), begun)) {
            Some(left) => left,
            None => self.room_now().await,
        }
    }

    async fn ask_room(&self) -> Result<u64, NodeError> {
        let first = self.ask(self.address, ROOM_TIMEOUT).await?;
        let others = (0..).zip(&first.ports).filter(|(core, _)| *core != first.core);
        let others = others
            .map(|(_, port)| self.ask(SocketAddr::new(self.address.ip(), *port), ROOM_TIMEOUT));
        let others = try_join_all(others).await?;
        Ok([first].iter().chain(&others).map(|core| u64::from(core.room_shards)).sum())
    }

    /// New shards that were and are being opened.
    #[must_use]
    pub fn openings(&self) -> Openings {
        // In this order none has ended that was not begun.
        let ended = self.openings.1.load(Ordering::SeqCst);
        Openings { begun: self.openings.0.load(Ordering::SeqCst), ended }
    }

    /// Opens a new shard's first extent on one of the cores, or its next where it is. The same
    /// again does nothing.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn open(&self, open: &OpenExtent) -> Result<(), NodeError> {
        let shard = open.extent.shard;
        match self.location(shard) {
            // It was opened before; the node's later starts gave it later epochs.
            Some(location) if location.epoch >= open.extent.epoch => return Ok(()),
            Some(location) => {
                let address = location.address;
                self.command(address, FrameKind::OpenExtent, &open.encode()).await?;
                self.note_open(open, address);
            }
            None => {
                if self.look_up(shard).await?.is_none() {
                    self.open_new(open).await?;
                }
            }
        }
        Ok(())
    }

    /// Opens a new shard on the next core in turn that has room for it.
    async fn open_new(&self, open: &OpenExtent) -> Result<(), NodeError> {
        let cores = self.cores().await?;
        self.openings.0.fetch_add(1, Ordering::SeqCst);
        let _opening = Opening(&self.openings.1);
        let first = self.next_core.fetch_add(1, Ordering::Relaxed) % cores.len();
        for core in cores[first..].iter().chain(&cores[..first]) {
            match self.command(*core, FrameKind::OpenExtent, &open.encode()).await {
                Err(NodeError::Refused { refusal, .. })
                    if refusal.code == ErrorCode::TooManyShards => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    self.note_open(open, *core);
                    return Ok(());
                }
            }
        }
        Err(NodeError::Full { address: self.address })
    }

    fn note_open(&self, open: &OpenExtent, address: SocketAddr) {
        let location = Location { address, epoch: open.extent.epoch, state: ExtentState::Open };
        self.locations.pin().insert(open.extent.shard, location);
    }

    /// Ends a shard: it takes no records any more. Answers the offset after its last one; the same
    /// again answers the same.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn seal(&self, shard: ShardId) -> Result<Offset, NodeError> {
        let mut location = self.found(shard).await?;
        loop {
            match self.seal_extent(shard, location).await {
                Err(refused) => location = self.moved(shard, location, refused).await?,
                sealed => return sealed,
            }
        }
    }

    /// Where a shard is now that was not there any more, or not the same: in another start of the
    /// node it has another extent. A command that was refused for another reason is refused.
    async fn moved(
        &self,
        shard: ShardId,
        location: Location,
        refused: NodeError,
    ) -> Result<Location, NodeError> {
        if !matches!(refused, NodeError::Refused { refusal, .. } if is_moved(refusal.code)) {
            return Err(refused);
        }
        self.learn_start().await?;
        let now = self.look_up(shard).await?;
        let now = now.ok_or(NodeError::NoShard { address: self.address, shard })?;
        if now == location { Err(refused) } else { Ok(now) }
    }

    async fn seal_extent(&self, shard: ShardId, location: Location) -> Result<Offset, NodeError> {
        let extent = ExtentId { shard, epoch: location.epoch };
        // One controller, which does the same again until it is done: its recovery needs no number
        // above that of the tenure it ends.
        let recovery_epoch = location.epoch;
        let fence = FenceExtent { extent, recovery_epoch };
        let fenced =
            self.command(location.address, FrameKind::FenceExtent, &fence.encode()).await?;
        let seal = SealExtent { extent, recovery_epoch, end: fenced.end };
        self.command(location.address, FrameKind::SealExtent, &seal.encode()).await?;
        self.locations.pin().insert(shard, Location { state: ExtentState::Sealed, ..location });
        Ok(fenced.end)
    }

    /// Lets go of a shard's records before an offset.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn trim(&self, shard: ShardId, first_kept: Offset) -> Result<(), NodeError> {
        let location = self.found(shard).await?;
        let trim = TrimShard { shard, first_kept };
        self.command(location.address, FrameKind::TrimShard, &trim.encode()).await?;
        Ok(())
    }

    /// Ends a shard and deletes it: the node has room for another. One that it does not have is
    /// deleted.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn delete(&self, shard: ShardId) -> Result<(), NodeError> {
        match self.delete_sealed(shard).await {
            Err(NodeError::NoShard { .. }) => {}
            deleted => deleted?,
        }
        self.locations.pin().remove(&shard);
        self.looked_up.lock().expect("nobody panics with it").remove(&shard);
        Ok(())
    }

    async fn delete_sealed(&self, shard: ShardId) -> Result<(), NodeError> {
        self.seal(shard).await?;
        let mut location = self.found(shard).await?;
        loop {
            // See `seal_extent`.
            let delete = DeleteShard { shard, recovery_epoch: location.epoch }.encode();
            match self.command(location.address, FrameKind::DeleteShard, &delete).await {
                Err(refused) => location = self.moved(shard, location, refused).await?,
                Ok(_) => return Ok(()),
            }
        }
    }

    /// What its core says of a shard now; `None` when no core has it.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn describe_shard(
        &self,
        shard: ShardId,
    ) -> Result<Option<ShardDescription>, NodeError> {
        let known = self.location(shard).map(|location| location.address);
        let cores = self.cores().await?;
        let others = cores.iter().copied().filter(|core| Some(*core) != known);
        for core in known.into_iter().chain(others) {
            let found = self.describe(core, shard).await?;
            if let Some(found) = found.first().filter(|found| found.extent.shard == shard) {
                self.note(core, found);
                return Ok(Some(*found));
            }
        }
        Ok(None)
    }

    async fn found(&self, shard: ShardId) -> Result<Location, NodeError> {
        if let Some(location) = self.location(shard) {
            return Ok(location);
        }
        let found = self.look_up(shard).await?;
        found.ok_or(NodeError::NoShard { address: self.address, shard })
    }

    async fn look_up(&self, shard: ShardId) -> Result<Option<Location>, NodeError> {
        let found = self.describe_shard(shard).await?;
        Ok(found.and_then(|_| self.location(shard)))
    }

    fn note(&self, core: SocketAddr, shard: &ShardDescription) {
        let ShardDescription { extent, state, .. } = *shard;
        let location = Location { address: core, epoch: extent.epoch, state };
        self.locations.pin().insert(extent.shard, location);
    }

    async fn cores(&self) -> Result<Vec<SocketAddr>, NodeError> {
        if let Some(start) = &*self.start.load() {
            return Ok(start.cores.clone());
        }
        self.learn_start().await
    }

    /// Asks the node who it is now.
    async fn learn_start(&self) -> Result<Vec<SocketAddr>, NodeError> {
        let start = self.hello().await?;
        let cores = start.cores.clone();
        let is_new = self.start.load().as_ref().is_none_or(|known| known.boot != start.boot);
        if is_new {
            tracing::info!(address = %self.address, "the node has started anew");
        }
        self.start.store(Some(Arc::new(start)));
        Ok(cores)
    }

    async fn hello(&self) -> Result<Start, NodeError> {
        let description = self.ask(self.address, COMMAND_TIMEOUT).await?;
        let cores = description.ports.iter().map(|port| SocketAddr::new(self.address.ip(), *port));
        Ok(Start { boot: description.boot, cores: cores.collect() })
    }

    /// Asks a core who it is.
    async fn ask(&self, core: SocketAddr, timeout: Duration) -> Result<NodeDescription, NodeError> {
        let request = Request::small(FrameKind::Hello, &[], timeout);
        let answer = self.link(core).request(request).await?;
        NodeDescription::decode(&answer.payload)
            .map_err(|source| NodeError::Answer { address: core, source })
    }

    async fn describe(
        &self,
        core: SocketAddr,
        from: ShardId,
    ) -> Result<Vec<ShardDescription>, NodeError> {
        let request = DescribeRequest { from }.encode();
        let request = Request::small(FrameKind::Describe, &request, COMMAND_TIMEOUT);
        let answer = self.link(core).request(request).await?;
        let shards = answer.payload.chunks(SHARD_DESCRIPTION_BYTES).map(ShardDescription::decode);
        shards
            .collect::<Result<_, _>>()
            .map_err(|source| NodeError::Answer { address: core, source })
    }

    /// Sends a command, again when the node has no room for it at the moment: it does the same
    /// once or twice.
    async fn command(
        &self,
        core: SocketAddr,
        kind: FrameKind,
        payload: &[u8],
    ) -> Result<ControlAnswer, NodeError> {
        let (started, mut pause) = (Instant::now(), REPEAT_AFTER);
        loop {
            let request = Request::small(kind, payload, COMMAND_TIMEOUT);
            let answer = self.link(core).request(request).await?;
            let answer = ControlAnswer::decode(&answer.payload)
                .map_err(|source| NodeError::Answer { address: core, source })?;
            match answer.status {
                Ok(()) => return Ok(answer),
                Err(refusal)
                    if refusal.code == ErrorCode::Overloaded
                        && started.elapsed() < COMMAND_TIMEOUT =>
                {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(REPEAT_AFTER_MAX);
                }
                Err(refusal) => {
                    return Err(NodeError::Refused { address: core, command: kind, refusal });
                }
            }
        }
    }

    /// Where a shard is to whom a route failed; what is known, without news.
    async fn refreshed(&self, shard: ShardId, stale: Stale) -> Option<Location> {
        let known = self.location(shard);
        if known.is_some() && known.map(Location::route) != stale.route {
            return known;
        }
        if !self.may_look_up(shard) {
            return known;
        }
        let looked_up = match self.learn_start().await {
            Ok(_) => self.look_up(shard).await,
            Err(error) => Err(error),
        };
        looked_up.unwrap_or_else(|error| {
            tracing::debug!(%shard, %error, "a route could not be looked up");
            known
        })
    }

    fn link(&self, core: SocketAddr) -> NodeLink {
        self.links.get(core)
    }

    /// Whether a shard may be looked up again now; if so, that counts as having been done.
    fn may_look_up(&self, shard: ShardId) -> bool {
        let now = Instant::now();
        let mut looked_up = self.looked_up.lock().expect("nobody panics with it");
        let may = looked_up.get(&shard).is_none_or(|last| now >= *last + LOOK_UP_AGAIN);
        if may {
            looked_up.retain(|_, last| now < *last + LOOK_UP_AGAIN);
            looked_up.insert(shard, now);
        }
        may
    }
}

/// Whether the refusal says that a shard is not where, or not what, it was thought to be.
fn is_moved(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::WrongCore
            | ErrorCode::UnknownShard
            | ErrorCode::StaleEpoch
            | ErrorCode::ExtentClosed
            | ErrorCode::Conflict
            | ErrorCode::StaleRecovery
    )
}

/// The next shard that there could be.
fn after(shard: ShardId) -> Option<ShardId> {
    match shard.index.checked_add(1) {
        Some(index) => Some(ShardId { index, ..shard }),
        None => Some(ShardId { stream: StreamId(shard.stream.0.checked_add(1)?), index: 0 }),
    }
}

/// Routes of records that are written: to shards that take some.
impl Routes for Node {
    fn route(&self, shard: ShardId) -> Option<Route> {
        self.location(shard).map(Location::route)
    }

    fn refresh(&self, shard: ShardId, stale: Stale) -> RouteFuture<'_> {
        Box::pin(async move {
            let location = self.refreshed(shard, stale).await?;
            // One that has ended takes none: there is no route for them any more.
            (location.state == ExtentState::Open).then(|| location.route())
        })
    }
}

/// Routes of records that are read: to shards that have some, ended or not.
pub struct ReadRoutes(pub Arc<Node>);

impl Routes for ReadRoutes {
    fn route(&self, shard: ShardId) -> Option<Route> {
        self.0.route(shard)
    }

    fn refresh(&self, shard: ShardId, stale: Stale) -> RouteFuture<'_> {
        Box::pin(async move { Some(self.0.refreshed(shard, stale).await?.route()) })
    }
}
