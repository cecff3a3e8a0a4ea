//! The pipeline: what a producer decides, without its sockets and its clock.
//!
//! Batches come in through [`Pipeline::submit`], pass their shard's lane, wait in their link's
//! queue, and leave as outcomes when they were answered. The driver tells what happened (a link is
//! up or down, a frame came, time passed) and asks what to write. Whatever it tells in whatever
//! order, each batch has exactly one outcome, and those of a shard come in the order in which they
//! were submitted.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom};
use thalweg_wire::error::Refusal;
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind};
use thalweg_wire::ids::{Epoch, Offset, ProducerId};
use thalweg_wire::produce::decode_acks;
use thiserror::Error;

use crate::error::ClientError;
use crate::lane::{Lane, Left, Reaction};
use crate::link::{BatchUnderWay, Batches, Link};

/// Outcomes that may wait to be taken; with more, there is no room.
const OUTCOMES_MAX: usize = 64 << 10;

/// A stored batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// When the shard's leader took it, milliseconds since 1970.
    pub append_time_ms: u64,
    /// Whether an earlier try had stored it.
    pub duplicate: bool,
}

/// Why a batch was not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProducerError {
    /// It was refused, and is not stored.
    #[error("the batch was refused: {0}")]
    Refused(Refusal),
    /// It was refused after an earlier try whose answer was lost: it may be stored, once.
    #[error("the batch may or may not be stored (it was refused after a lost answer: {0})")]
    OutcomeUnknown(Refusal),
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Place of the shard among the producer's lanes.
    pub lane: usize,
    /// What the caller named the batch; zero for those that the producer made of records.
    pub tag: u64,
    /// Records in it.
    pub records: u32,
    /// Bytes of its body.
    pub bytes: usize,
    /// From when it was handed over to its answer.
    pub latency: Duration,
    /// Stored, or why not.
    pub result: Result<Written, ProducerError>,
}

/// How a pipeline works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PipelineConfig {
    /// Bytes of batches under way on each link.
    pub(crate) window_bytes: usize,
    /// Room of the builders that are kept for use again.
    pub(crate) batch: BatchRoom,
}

/// Where new identities come from. No two are alike.
pub(crate) type Identities = Box<dyn FnMut() -> ProducerId + Send>;

/// See the module.
pub(crate) struct Pipeline {
    config: PipelineConfig,
    identities: Identities,
    lanes: Vec<Lane>,
    link_of_lane: Vec<usize>,
    links: Vec<Link>,
    batches: Batches,
    spare_builders: Vec<BatchBuilder>,
    /// Lanes that wait for time to pass, each named once.
    delayed: Vec<usize>,
    is_delayed: Vec<bool>,
    /// Lanes that a frame's answers were for.
    answered: Vec<usize>,
    outcomes: VecDeque<Outcome>,
    wants_routes: bool,
}

impl Pipeline {
    /// Without lanes and links.
    pub(crate) fn new(config: PipelineConfig, identities: Identities) -> Pipeline {
        Pipeline {
            config,
            identities,
            lanes: Vec::new(),
            link_of_lane: Vec::new(),
            links: Vec::new(),
            batches: Batches::new(),
            spare_builders: Vec::new(),
            delayed: Vec::new(),
            is_delayed: Vec::new(),
            answered: Vec::new(),
            outcomes: VecDeque::new(),
            wants_routes: false,
        }
    }

    /// The lanes.
    pub(crate) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The link of a lane.
    pub(crate) fn link_of(&self, lane: usize) -> usize {
        self.link_of_lane[lane]
    }

    /// A new identity, for a lane to be added.
    pub(crate) fn new_identity(&mut self) -> ProducerId {
        (self.identities)()
    }

    /// Adds a link, which is down; answers its place.
    pub(crate) fn add_link(&mut self) -> usize {
        self.links.push(Link::default());
        self.links.len() - 1
    }

    /// Adds a lane; answers its place.
    pub(crate) fn add_lane(&mut self, lane: Lane, link: usize) -> usize {
        self.lanes.push(lane);
        self.link_of_lane.push(link);
        self.is_delayed.push(false);
        self.lanes.len() - 1
    }

    /// A shard was found under an epoch; a lower one than is known is old news.
    pub(crate) fn set_epoch(&mut self, lane: usize, epoch: Epoch) {
        let lane = &mut self.lanes[lane];
        lane.epoch = lane.epoch.max(epoch);
    }

    /// A shard was found behind another link. What is under way on the old one stays there until
    /// that link answers or goes down.
    pub(crate) fn move_lane(&mut self, lane: usize, link: usize) {
        let of_lane = self.batches.iter().filter(|(_, batch)| batch.lane == lane);
        let bytes: usize = of_lane.map(|(_, batch)| batch.bytes).sum();
        let old = std::mem::replace(&mut self.link_of_lane[lane], link);
        self.links[old].bytes_under_way -= bytes;
        self.links[link].bytes_under_way += bytes;
    }

    /// An empty builder, used before if there is one.
    pub(crate) fn builder(&mut self) -> BatchBuilder {
        self.spare_builders.pop().unwrap_or_else(|| BatchBuilder::new(self.config.batch))
    }

    /// Whether a batch for the lane may be submitted.
    pub(crate) fn has_room(&self, lane: usize) -> bool {
        let link = &self.links[self.link_of_lane[lane]];
        !self.lanes[lane].is_full()
            && link.bytes_under_way < self.config.window_bytes
            && self.outcomes.len() < OUTCOMES_MAX
    }

    /// Takes a batch over.
    ///
    /// # Panics
    /// When there is no room.
    pub(crate) fn submit(
        &mut self,
        lane: usize,
        mut builder: BatchBuilder,
        tag: u64,
        now_us: u64,
    ) {
        assert!(self.has_room(lane), "room is asked for first");
        let bytes = builder.close().len();
        self.links[self.link_of_lane[lane]].bytes_under_way += bytes;
        let batch = BatchUnderWay { builder, lane, tag, bytes, submitted_us: now_us };
        let batch = self.batches.insert(batch);
        self.lanes[lane].push(batch as u32);
        self.pump(lane, now_us);
    }

    /// Whether every batch has its outcome.
    pub(crate) fn is_idle(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether there are outcomes to take.
    pub(crate) fn has_outcomes(&self) -> bool {
        !self.outcomes.is_empty()
    }

    /// The next outcome.
    pub(crate) fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Whether an answer asked for other routes since this was last asked.
    pub(crate) fn take_wants_routes(&mut self) -> bool {
        std::mem::take(&mut self.wants_routes)
    }

    /// Time passed: what was held back until now is queued.
    pub(crate) fn on_time(&mut self, now_us: u64) {
        for _ in 0..self.delayed.len() {
            let lane = self.delayed.swap_remove(0);
            self.is_delayed[lane] = false;
            self.pump(lane, now_us);
        }
    }

    /// When [`Pipeline::on_time`] has something to do.
    pub(crate) fn next_due_us(&self, now_us: u64) -> Option<u64> {
        // A lane whose time has come in the meantime is due at once.
        let due_us = |lane: &usize| self.lanes[*lane].waits_until_us(now_us).unwrap_or(now_us);
        self.delayed.iter().map(due_us).min()
    }

    /// A link has a connection. What its lanes have to send is queued.
    pub(crate) fn on_link_up(&mut self, link: usize, now_us: u64) {
        self.links[link].is_up = true;
        for lane in 0..self.lanes.len() {
            if self.link_of_lane[lane] == link {
                self.pump(lane, now_us);
            }
        }
    }

    /// A link's connection is gone. What it carried is sent again when it is up.
    pub(crate) fn on_link_down(&mut self, link: usize) {
        self.links[link].go_down();
        for lane in 0..self.lanes.len() {
            if self.link_of_lane[lane] == link {
                self.lanes[lane].on_connection_lost();
                self.settle(lane);
            }
        }
    }

    /// Whether a link is up.
    pub(crate) fn is_up(&self, link: usize) -> bool {
        self.links[link].is_up
    }

    /// Whether a link has anything to write.
    pub(crate) fn wants_to_write(&self, link: usize) -> bool {
        self.links[link].wants_to_write()
    }

    /// Writes what a link has.
    ///
    /// # Errors
    /// What the target said; `WouldBlock` when it takes no more for now.
    pub(crate) fn write_to(&mut self, link: usize, target: &mut impl Write) -> std::io::Result<()> {
        self.links[link].write_to(target, &self.batches)
    }

    /// A frame came on a link.
    ///
    /// # Errors
    /// When it is no answer to what was asked: the connection is of no more use.
    pub(crate) fn on_frame(
        &mut self,
        link: usize,
        header: &FrameHeader,
        payload: &[u8],
        now_us: u64,
    ) -> Result<(), ClientError> {
        match header.kind {
            FrameKind::ProduceAnswer => {}
            FrameKind::Error => return Err(ErrorAnswer::decode(payload)?.0.into()),
            kind => return Err(ClientError::UnexpectedAnswer { kind: format!("{kind:?}") }),
        }
        let unexpected = || ClientError::UnexpectedAnswer { kind: "ProduceAnswer".into() };
        let list = self.links[link].take_frame(header.correlation).ok_or_else(unexpected)?;
        if list.len() != header.items as usize {
            return Err(unexpected());
        }
        let mut answered = std::mem::take(&mut self.answered);
        for (batch, ack) in list.iter().zip(decode_acks(payload, header.items)?) {
            let lane = self.batches[*batch as usize].lane;
            let reaction = self.lanes[lane].on_ack(*batch, &ack?, now_us);
            self.react(lane, reaction);
            answered.push(lane);
        }
        self.links[link].keep_list(list);
        for lane in answered.drain(..) {
            self.settle_at(lane, now_us);
            self.pump(lane, now_us);
        }
        self.answered = answered;
        Ok(())
    }

    fn react(&mut self, lane: usize, reaction: Reaction) {
        match reaction {
            Reaction::None => {}
            Reaction::RefreshRoute => self.wants_routes = true,
            Reaction::ChangeProducer => {
                let identity = self.new_identity();
                self.lanes[lane].change_producer(identity);
            }
        }
    }

    /// Queues what the lane may send now.
    fn pump(&mut self, lane: usize, now_us: u64) {
        let link = self.link_of_lane[lane];
        if !self.links[link].is_up {
            return;
        }
        while let Some((number, sequence)) = self.lanes[lane].next_to_send(now_us) {
            let of = &self.lanes[lane];
            let batch = &mut self.batches[number as usize];
            batch.builder.finish(&BatchIdentity {
                shard: of.shard,
                epoch: of.epoch,
                producer: of.producer,
                sequence,
                request_id: batch.tag,
            });
            self.links[link].push(number);
        }
        if !self.is_delayed[lane] && self.lanes[lane].waits_until_us(now_us).is_some() {
            self.is_delayed[lane] = true;
            self.delayed.push(lane);
        }
    }
}
