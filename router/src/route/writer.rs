//! The writer: calls' records to shards, each stored once and in order, or told why not.
//!
//! The router is a producer like the client's: its batches are idempotent, those of a shard are
//! stored in the order in which they were brought, and what may have been stored although no
//! answer came is told as such. Each shard has a lane (`shard_lane`), each core a link.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use thalweg_wire::build::BatchBuilder;
use thalweg_wire::error::Refusal;
use thalweg_wire::ids::{Offset, ShardId};
use thalweg_wire::limits::RECORD_BYTES_MAX;
use thalweg_wire::produce::Stored;
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;

use super::bundle::{Bundle, CallPart};
use super::link::{LinkCondition, LinkLimits, NodeLink};
use super::links::NodeLinks;
use super::payload::AnswerMemory;
use super::routes::Routes;
use super::shard_lane::ShardLane;
use super::shard_records::ShardRecords;

/// How often it is looked what waits for too long.
const TICK: Duration = Duration::from_millis(100);
/// A call's largest record, with what surrounds it, fits into any room.
const ROOM_BYTES_MIN: usize = RECORD_BYTES_MAX as usize + (1 << 20);

/// How a writer works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterConfig {
    /// Limits of each link.
    pub link: LinkLimits,
    /// Bytes of records that have no answer yet, in all; who brings more waits in turn.
    pub bytes_max: usize,
    /// The same for each shard, so that one whose node is away does not use up all.
    pub shard_bytes_max: usize,
    /// How long a call waits for room, and for a node that takes its records.
    pub patience: Duration,
}

impl Default for WriterConfig {
    fn default() -> WriterConfig {
        WriterConfig {
            link: LinkLimits::default(),
            bytes_max: 256 << 20,
            shard_bytes_max: 24 << 20,
            patience: Duration::from_secs(5),
        }
    }
}

/// Why records were not stored, or are not known to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AppendError {
    /// The shard's rate is used up. They are not stored.
    #[error("{shard}: its rate is used up for {wait_us} us: send again after that")]
    Throttled {
        /// The shard.
        shard: ShardId,
        /// How long until as much may be brought, microseconds.
        wait_us: u64,
    },
    /// The node refused. They are not stored.
    #[error("{shard}: the node refused the records: {refusal}")]
    Refused {
        /// The shard.
        shard: ShardId,
        /// Its answer.
        refusal: Refusal,
    },
    /// No node could be reached that takes them. They are not stored.
    #[error("{shard}: no node could be reached for {waited_ms} ms: is its leader running?")]
    Unreachable {
        /// The shard.
        shard: ShardId,
        /// How long it was tried, milliseconds.
        waited_ms: u64,
    },
    /// There is no such shard. They are not stored.
    #[error("{shard}: no node has it: was its stream deleted?")]
    NoRoute {
        /// The shard.
        shard: ShardId,
    },
    /// As much is under way as may be. They are not stored.
    #[error("{shard}: too much waits to be stored: send less at a time, or more slowly")]
    Overloaded {
        /// The shard.
        shard: ShardId,
    },
    /// They left and were not answered, and how they fared cannot be known any more: they are
    /// stored once or not at all.
    #[error("{shard}: the records may or may not be stored: the answer was lost")]
    OutcomeUnknown {
        /// The shard.
        shard: ShardId,
        /// What the node said when they were sent again, if they were.
        refusal: Option<Refusal>,
    },
}

/// What became of a call's records: in parts, each of which is stored as a whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    parts: Vec<Part>,
}

/// A part of a call's records, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// How many.
    pub records: u32,
    /// Where the first stands, or why none does.
    pub result: Result<Stored, AppendError>,
}

/// Where a record stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Its offset.
    pub offset: Offset,
    /// When the leader took it, milliseconds since 1970.
    pub append_time_ms: u64,
}

impl Appended {
    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What became of each record, in order.
    pub fn records(&self) -> impl Iterator<Item = Result<Position, AppendError>> + '_ {
        self.parts.iter().flat_map(|part| {
            (0..part.records).map(move |at| {
                part.result.map(|stored| Position {
                    offset: stored.first_offset.after(u64::from(at)),
                    append_time_ms: stored.append_time_ms,
                })
            })
        })
    }
}

/// See the module. A clone is another handle; with the last one the links are closed.
#[derive(Clone)]
pub struct Writer {
    context: Arc<Context>,
    _handle: Arc<Handle>,
}

/// Ends the lanes when dropped.
struct Handle(Arc<Context>);

impl Drop for Handle {
    fn drop(&mut self) {
        // Lanes and context hold each other.
        self.0.lanes().clear();
        self.0.is_closed.send_replace(true);
    }
}

impl Writer {
    /// A writer. To be made within a tokio runtime.
    #[must_use]
    pub fn new(routes: Arc<dyn Routes>, config: WriterConfig) -> Writer {
        let within = |bytes: usize| bytes.clamp(ROOM_BYTES_MIN, u32::MAX as usize);
        let config = WriterConfig {
            bytes_max: within(config.bytes_max),
            shard_bytes_max: within(config.shard_bytes_max),
            ..config
        };
        let context = Arc::new(Context {
            config,
            routes,
            // Acknowledgements need no reservation.
            links: NodeLinks::new(config.link, AnswerMemory::new(0)),
            clock: Instant::now(),
            room: Arc::new(Semaphore::new(config.bytes_max)),
            lanes: Mutex::default(),
            is_closed: watch::Sender::new(false),
        });
        tokio::spawn(tick(Arc::downgrade(&context), context.is_closed.subscribe()));
        Writer { _handle: Arc::new(Handle(context.clone())), context }
    }

    /// Stores a call's records in a shard: in order, behind those of every call for the shard that
    /// was answered before. A shard whose rate is used up judges each record by itself: those that
    /// it takes are stored without the others. Calls that are under way at the same time keep the
    /// order in which they were begun unless the shard refuses some of them for another reason.
    /// The call is answered once what is stored of it is durable. Dropped before, the records may
    /// be stored or not; nobody else's are touched.
    pub async fn append(&self, shard: ShardId, records: ShardRecords) -> Appended {
        let builders = records.close();
        let lane = self.context.lane(shard);
        // What they take, which may be more than what they hold.
        let room_bytes = |builder: &BatchBuilder| builder.room().body_bytes() as usize;
        let bytes = builders.iter().map(room_bytes).sum();
        let patience = self.context.config.patience;
        let Ok(room) = tokio::time::timeout(patience, lane.take_room(bytes)).await else {
            let result = Err(AppendError::Overloaded { shard });
            let parts = builders.iter().map(|builder| Part { records: builder.records(), result });
            return Appended { parts: parts.collect() };
        };
        let (room, now_us) = (Arc::new(room), self.context.now_us());
        let mut answers = Vec::with_capacity(builders.len());
        let bundles = builders.into_iter().map(|builder| {
            let (answer, receiver) = oneshot::channel();
            let records = builder.records();
            answers.push((records, receiver));
            Bundle::new(builder, CallPart::new(records, answer, room.clone()), now_us)
        });
        lane.submit(bundles.collect());
        drop((room, lane));
        let mut parts = Vec::with_capacity(answers.len());
        for (records, answer) in answers {
            let gone = Err(AppendError::OutcomeUnknown { shard, refusal: None });
            let gone = |_| vec![Part { records, result: gone }];
            parts.append(&mut answer.await.unwrap_or_else(gone));
        }
        Appended { parts }
    }

    /// Bytes of records that may have no answer yet.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.context.config.bytes_max
    }

    /// Shards for which there are records, or were a moment ago.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.context.lanes().len()
    }

    /// Bytes of records that have no answer yet.
    #[must_use]
    pub fn bytes_under_way(&self) -> usize {
        self.context.config.bytes_max - self.context.room.available_permits()
    }
}

/// What lanes share.
pub(super) struct Context {
    pub(super) config: WriterConfig,
    pub(super) routes: Arc<dyn Routes>,
    links: NodeLinks,
    pub(super) clock: Instant,
    /// Bytes that calls may have in all.
    pub(super) room: Arc<Semaphore>,
    lanes: Mutex<HashMap<ShardId, Arc<ShardLane>>>,
    is_closed: watch::Sender<bool>,
}

impl Context {
    fn lanes(&self) -> std::sync::MutexGuard<'_, HashMap<ShardId, Arc<ShardLane>>> {
        self.lanes.lock().expect("nobody panics with it")
    }

    fn lane(self: &Arc<Context>, shard: ShardId) -> Arc<ShardLane> {
        let mut lanes = self.lanes();
        lanes.entry(shard).or_insert_with(|| ShardLane::new(shard, self)).clone()
    }

    /// Microseconds since the writer was made.
    pub(super) fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    pub(super) fn patience_us(&self) -> u64 {
        self.config.patience.as_micros() as u64
    }

    /// The link to a core; whoever waits for its connection is told when there is one.
    pub(super) fn link(self: &Arc<Context>, address: SocketAddr) -> NodeLink {
        let (link, made) = self.links.get_or_made(address);
        if made {
            let watched =
                WatchedLink { context: Arc::downgrade(self), address, condition: link.condition() };
            tokio::spawn(watched.watch());
        }
        link
    }

    fn all_lanes(&self) -> Vec<Arc<ShardLane>> {
        self.lanes().values().cloned().collect()
    }
}

/// Tells lanes when their link has a connection. It does not keep the link.
struct WatchedLink {
    context: Weak<Context>,
    address: SocketAddr,
    condition: watch::Receiver<LinkCondition>,
}

impl WatchedLink {
    async fn watch(mut self) {
        loop {
            let is_up = matches!(*self.condition.borrow_and_update(), LinkCondition::Up);
            let Some(context) = self.context.upgrade() else { return };
            if is_up {
                context.all_lanes().iter().for_each(|lane| lane.on_link_up(self.address));
            }
            drop(context);
            if self.condition.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Lets lanes know that time passes, and forgets those without use.
async fn tick(context: Weak<Context>, mut is_closed: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            _ = is_closed.wait_for(|is_closed| *is_closed) => return,
        }
        let Some(context) = context.upgrade() else { return };
        let useless: Vec<Arc<ShardLane>> =
            context.all_lanes().into_iter().filter(|lane| !lane.on_tick()).collect();
        for lane in useless {
            let mut lanes = context.lanes();
            // Its place in the map and this: nobody else has it, nor can get it meanwhile.
            if Arc::strong_count(&lane) == 2 {
                lanes.remove(&lane.shard());
            }
        }
    }
}
