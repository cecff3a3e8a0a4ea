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
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind};
use thalweg_wire::ids::{Epoch, ProducerId};
use thalweg_wire::produce::decode_acks;

use crate::error::ClientError;
use crate::lane::{Lane, Left, Reaction};
use crate::link::{BatchUnderWay, Batches, Link};
use crate::outcome::{Outcome, ProducerError, Written};

/// Outcomes that may wait to be taken; with more, there is no room.
const OUTCOMES_MAX: usize = 64 << 10;

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
    /// Where a lane goes once nothing of it is under way: answers come on the link that asked.
    next_link_of_lane: Vec<Option<usize>>,
    links: Vec<Link>,
    batches: Batches,
    spare_builders: Vec<BatchBuilder>,
    /// Lanes that wait for time to pass, each named once.
    delayed: VecDeque<usize>,
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
            next_link_of_lane: Vec::new(),
            links: Vec::new(),
            batches: Batches::new(),
            spare_builders: Vec::new(),
            delayed: VecDeque::new(),
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
        self.next_link_of_lane.push(None);
        self.is_delayed.push(false);
        self.lanes.len() - 1
    }

    /// A shard was found under an epoch; a lower one than is known is old news.
    pub(crate) fn set_epoch(&mut self, lane: usize, epoch: Epoch) {
        let lane = &mut self.lanes[lane];
        lane.epoch = lane.epoch.max(epoch);
    }

    /// A shard was found behind a link. What is under way on another is answered, or lost, there
    /// before the lane goes on here.
    pub(crate) fn move_lane(&mut self, lane: usize, link: usize, now_us: u64) {
        let is_there = self.link_of_lane[lane] == link;
        self.next_link_of_lane[lane] = (!is_there).then_some(link);
        self.pump(lane, now_us);
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
    pub(crate) fn submit(&mut self, lane: usize, mut builder: BatchBuilder, tag: u64, now_us: u64) {
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
            let Some(lane) = self.delayed.pop_front() else { return };
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
    pub(crate) fn on_link_down(&mut self, link: usize, now_us: u64) {
        self.links[link].go_down();
        for lane in 0..self.lanes.len() {
            if self.link_of_lane[lane] == link {
                self.lanes[lane].on_connection_lost();
                self.settle(lane, now_us);
                self.pump(lane, now_us);
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
            self.settle(lane, now_us);
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

    /// Hands out the outcomes of a lane.
    fn settle(&mut self, lane: usize, now_us: u64) {
        while let Some(left) = self.lanes[lane].take_done() {
            self.report(lane, &left, now_us);
        }
    }

    fn report(&mut self, lane: usize, left: &Left, now_us: u64) {
        let batch = self.batches.remove(left.batch as usize);
        self.links[self.link_of_lane[lane]].bytes_under_way -= batch.bytes;
        let result = match left.result {
            Ok(stored) => Ok(Written {
                first_offset: stored.first_offset,
                append_time_ms: stored.append_time_ms,
                duplicate: stored.duplicate,
            }),
            Err(refusal) if left.outcome_unknown => Err(ProducerError::OutcomeUnknown(refusal)),
            Err(refusal) => Err(ProducerError::Refused(refusal)),
        };
        self.outcomes.push_back(Outcome {
            lane,
            tag: batch.tag,
            records: batch.builder.records(),
            bytes: batch.bytes,
            latency: Duration::from_micros(now_us.saturating_sub(batch.submitted_us)),
            result,
        });
        self.keep_builder(batch.builder);
    }

    /// Keeps a builder for use again, unless it was made for another size of batch.
    fn keep_builder(&mut self, mut builder: BatchBuilder) {
        if builder.room() == self.config.batch {
            builder.clear();
            self.spare_builders.push(builder);
        }
    }

    /// Queues what the lane may send now.
    fn pump(&mut self, lane: usize, now_us: u64) {
        if let Some(link) = self.next_link_of_lane[lane] {
            if !self.lanes[lane].is_quiet() {
                return;
            }
            self.next_link_of_lane[lane] = None;
            self.change_link(lane, link);
        }
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
            self.delayed.push_back(lane);
        }
    }

    /// The bytes of the lane's batches count on its new link from now on.
    fn change_link(&mut self, lane: usize, link: usize) {
        let of_lane = self.batches.iter().filter(|(_, batch)| batch.lane == lane);
        let bytes: usize = of_lane.map(|(_, batch)| batch.bytes).sum();
        let old = std::mem::replace(&mut self.link_of_lane[lane], link);
        self.links[old].bytes_under_way -= bytes;
        self.links[link].bytes_under_way += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap};
    use thalweg_wire::batch::Batch;
    use thalweg_wire::build::NewRecord;
    use thalweg_wire::error::{ErrorCode, Refusal};
    use thalweg_wire::frame::{FRAME_HEADER_BYTES, small_frame};
    use thalweg_wire::hash_range::{HashKey, HashRange};
    use thalweg_wire::ids::{Offset, ShardId, StreamId};
    use thalweg_wire::limits::PRODUCER_WINDOW;
    use thalweg_wire::produce::{Ack, Stored, split_batches};

    const SHARDS: usize = 3;
    const LINKS: usize = 2;
    const ROOM: BatchRoom = BatchRoom { records: 1, key_bytes: 1, data_bytes: 6000 };

    /// Xorshift: the same seed, the same history.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }

        fn once_in(&mut self, count: u64) -> bool {
            self.below(count) == 0
        }
    }

    fn shard(index: usize) -> ShardId {
        ShardId { stream: StreamId(1), index: index as u32 }
    }

    #[derive(Default)]
    struct KnownProducer {
        next: u64,
        offsets: BTreeMap<u64, u64>,
    }

    /// A shard as a node judges batches for it, in the order of docs/protocol.md.
    struct ModelShard {
        epoch: u64,
        core: usize,
        producers: HashMap<u64, KnownProducer>,
        /// Tag of the batch at each offset.
        log: Vec<u64>,
    }

    impl ModelShard {
        fn judge(&mut self, batch: &Batch<'_>, core: usize, random: &mut Random) -> Ack {
            let header = batch.header;
            if core != self.core {
                return Ack::refused(ErrorCode::WrongCore);
            }
            let known = self.producers.get(&header.producer.0);
            let next = known.map(|known| known.next);
            if let Some(offset) = known.and_then(|known| known.offsets.get(&header.sequence)) {
                let first_offset = Offset(*offset);
                let stored = Stored { first_offset, append_time_ms: 1, duplicate: true };
                return Ack { result: Ok(stored) };
            }
            assert!(next.is_none_or(|next| header.sequence >= next), "beyond the window");
            if header.epoch.0 != self.epoch {
                return Ack::refused(Refusal::new(ErrorCode::StaleEpoch, self.epoch));
            }
            match next {
                Some(next) if header.sequence > next => {
                    return Ack::refused(Refusal::new(ErrorCode::SequenceGap, next));
                }
                None if header.sequence > 0 => return Ack::refused(ErrorCode::ProducerUnknown),
                _ => {}
            }
            match random.below(40) {
                0 => return Ack::refused(Refusal::new(ErrorCode::Throttled, 700)),
                1 => return Ack::refused(ErrorCode::Overloaded),
                2 => return Ack::refused(ErrorCode::HashOutOfRange),
                _ => {}
            }
            let offset = self.log.len() as u64;
            self.log.push(header.request_id);
            let known = self.producers.entry(header.producer.0).or_default();
            known.next = header.sequence + 1;
            known.offsets.insert(header.sequence, offset);
            known.offsets.retain(|sequence, _| sequence + PRODUCER_WINDOW as u64 >= known.next);
            let first_offset = Offset(offset);
            Ack { result: Ok(Stored { first_offset, append_time_ms: 1, duplicate: false }) }
        }
    }

    /// A pipeline, a node, and connections that lose what they carry.
    struct World {
        random: Random,
        pipeline: Pipeline,
        shards: Vec<ModelShard>,
        now_us: u64,
        /// Bytes on their way to the node, by link.
        requests: Vec<Vec<u8>>,
        /// Frames on their way back, by link.
        answers: Vec<Vec<Vec<u8>>>,
        submitted: Vec<Vec<u64>>,
        outcomes: Vec<Vec<Outcome>>,
        next_tag: u64,
    }

    impl World {
        fn new(seed: u64) -> World {
            let config = PipelineConfig { window_bytes: 40_000, batch: ROOM };
            let mut last = 0;
            let identities = Box::new(move || {
                last += 1;
                ProducerId(last)
            });
            let mut pipeline = Pipeline::new(config, identities);
            for link in 0..LINKS {
                pipeline.add_link();
                pipeline.on_link_up(link, 0);
            }
            let mut shards = Vec::new();
            for index in 0..SHARDS {
                let identity = pipeline.new_identity();
                let lane = Lane::new(shard(index), HashRange::FULL, Epoch(1), identity, true);
                let core = index % LINKS;
                pipeline.add_lane(lane, core);
                let (producers, log) = (HashMap::new(), Vec::new());
                shards.push(ModelShard { epoch: 1, core, producers, log });
            }
            World {
                random: Random(seed | 1),
                pipeline,
                shards,
                now_us: 0,
                requests: vec![Vec::new(); LINKS],
                answers: vec![Vec::new(); LINKS],
                submitted: vec![Vec::new(); SHARDS],
                outcomes: vec![Vec::new(); SHARDS],
                next_tag: 0,
            }
        }

        fn submit(&mut self) {
            let lane = self.random.below(SHARDS as u64) as usize;
            if !self.pipeline.has_room(lane) {
                return;
            }
            let mut builder = self.pipeline.builder();
            let data = vec![lane as u8; self.random.below(6000) as usize];
            let (hash_key, key) = (HashKey(1), &b"k"[..]);
            builder.push(&NewRecord { hash_key, client_time_ms: 0, key, data: &data });
            self.pipeline.submit(lane, builder, self.next_tag, self.now_us);
            self.submitted[lane].push(self.next_tag);
            self.next_tag += 1;
        }

        /// The connection takes some bytes of what the pipeline has to write.
        fn write(&mut self, link: usize) {
            struct Limited<'a>(&'a mut Vec<u8>, usize);
            impl Write for Limited<'_> {
                fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                    if self.1 == 0 {
                        return Err(std::io::ErrorKind::WouldBlock.into());
                    }
                    let count = bytes.len().min(self.1);
                    self.0.extend_from_slice(&bytes[..count]);
                    self.1 -= count;
                    Ok(count)
                }
                fn flush(&mut self) -> std::io::Result<()> {
                    Ok(())
                }
            }
            if self.pipeline.wants_to_write(link) {
                let limit = self.random.below(9000) as usize;
                let _ = self.pipeline.write_to(link, &mut Limited(&mut self.requests[link], limit));
            }
        }

        /// The node serves the next whole frame.
        fn serve(&mut self, link: usize) {
            let request = &mut self.requests[link];
            let Some(header) = request.first_chunk::<FRAME_HEADER_BYTES>() else { return };
            let header = FrameHeader::decode(header).unwrap();
            if request.len() < header.frame_bytes() {
                return;
            }
            let frame: Vec<u8> = request.drain(..header.frame_bytes()).collect();
            let mut acks = Vec::new();
            for place in split_batches(&frame[FRAME_HEADER_BYTES..], header.items).unwrap() {
                let mut aligned = rkyv::util::AlignedVec::<16>::new();
                aligned.extend_from_slice(&frame[FRAME_HEADER_BYTES..][place]);
                let batch = Batch::check(&aligned, &HashRange::FULL).unwrap();
                let of = &mut self.shards[batch.header.shard.index as usize];
                acks.extend(of.judge(&batch, link, &mut self.random).encode());
            }
            let (kind, correlation) = (FrameKind::ProduceAnswer, header.correlation);
            self.answers[link].push(small_frame(kind, header.items, correlation, &acks));
        }

        /// An answer arrives; they overtake each other.
        fn answer(&mut self, link: usize) {
            if self.answers[link].is_empty() {
                return;
            }
            let place = self.random.below(self.answers[link].len() as u64) as usize;
            let frame = self.answers[link].swap_remove(place);
            let header = FrameHeader::decode(frame.first_chunk().unwrap()).unwrap();
            let payload = &frame[FRAME_HEADER_BYTES..];
            self.pipeline.on_frame(link, &header, payload, self.now_us).unwrap();
            self.take_outcomes();
        }

        fn lose(&mut self, link: usize) {
            // What had reached the node may be served all the same.
            while self.random.once_in(2) && !self.requests[link].is_empty() {
                let before = self.requests[link].len();
                self.serve(link);
                if self.requests[link].len() == before {
                    break;
                }
            }
            self.requests[link].clear();
            self.answers[link].clear();
            self.pipeline.on_link_down(link, self.now_us);
            self.take_outcomes();
        }

        fn refresh_routes(&mut self) {
            for link in 0..LINKS {
                if !self.pipeline.is_up(link) {
                    self.pipeline.on_link_up(link, self.now_us);
                }
            }
            for lane in 0..SHARDS {
                let of = &self.shards[lane];
                self.pipeline.set_epoch(lane, Epoch(of.epoch));
                if self.pipeline.link_of(lane) != of.core {
                    self.pipeline.move_lane(lane, of.core, self.now_us);
                }
            }
        }

        fn take_outcomes(&mut self) {
            while let Some(outcome) = self.pipeline.next_outcome() {
                self.outcomes[outcome.lane].push(outcome);
            }
        }

        /// The producer is forgotten, as when others took its place. Not while its first batch may
        /// be under way: a node takes sequence zero of whomever it does not know.
        fn forget(&mut self, index: usize) {
            let window = PRODUCER_WINDOW as u64;
            self.shards[index].producers.retain(|_, known| known.next <= window);
        }

        fn step(&mut self, faults: bool) {
            let link = self.random.below(LINKS as u64) as usize;
            let index = self.random.below(SHARDS as u64) as usize;
            match self.random.below(if faults { 200 } else { 190 }) {
                0..60 => self.submit(),
                60..100 => self.write(link),
                100..130 => self.serve(link),
                130..160 => self.answer(link),
                160..185 => {
                    self.now_us += self.random.below(3000);
                    self.pipeline.on_time(self.now_us);
                }
                185..190 => self.refresh_routes(),
                190..194 => self.lose(link),
                194..196 => self.shards[index].epoch += 1,
                196..198 => self.shards[index].core = link,
                _ if self.random.once_in(8) => self.forget(index),
                _ => {}
            }
        }

        /// Without faults and new batches, everything comes to an end.
        fn finish(&mut self) {
            for _ in 0..20_000 {
                if self.pipeline.is_idle() {
                    return;
                }
                self.refresh_routes();
                for link in 0..LINKS {
                    self.write(link);
                    self.serve(link);
                    self.answer(link);
                }
                self.now_us += 1000;
                self.pipeline.on_time(self.now_us);
            }
            panic!("batches are left without an outcome");
        }

        fn check(&self) -> [usize; 3] {
            let mut counts = [0; 3];
            for index in 0..SHARDS {
                let tags: Vec<u64> = self.outcomes[index].iter().map(|found| found.tag).collect();
                assert_eq!(tags, self.submitted[index], "one outcome each, in order");
                let log = &self.shards[index].log;
                let mut last = None;
                for outcome in &self.outcomes[index] {
                    let stored = log.iter().filter(|tag| **tag == outcome.tag).count();
                    match outcome.result {
                        Ok(written) => {
                            assert_eq!(stored, 1);
                            assert_eq!(log[written.first_offset.0 as usize], outcome.tag);
                            assert!(last < Some(written.first_offset), "in the order of offsets");
                            last = Some(written.first_offset);
                            counts[0] += 1;
                        }
                        Err(ProducerError::Refused(_)) => {
                            assert_eq!(stored, 0);
                            counts[1] += 1;
                        }
                        Err(ProducerError::OutcomeUnknown(_)) => {
                            assert!(stored <= 1);
                            counts[2] += 1;
                        }
                    }
                }
            }
            counts
        }
    }

    #[test]
    fn whatever_happens_each_batch_is_stored_once_or_its_fate_is_told() {
        let mut totals = [0; 3];
        for seed in 1..300_u64 {
            let mut world = World::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            (0..3000).for_each(|_| world.step(true));
            world.finish();
            let counts = world.check();
            (0..3).for_each(|kind| totals[kind] += counts[kind]);
        }
        // The histories reach what they are for.
        let [stored, refused, unknown] = totals;
        assert!(stored > 20_000 && refused > 500 && unknown > 500, "{totals:?}");
    }

    #[test]
    fn with_nothing_lost_nothing_is_unknown() {
        for seed in 1..50 {
            let mut world = World::new(seed);
            (0..3000).for_each(|_| world.step(false));
            world.finish();
            assert_eq!(world.check()[2], 0);
        }
    }

    #[test]
    fn a_connection_lost_after_any_byte_loses_and_doubles_nothing() {
        let mut whole = World::new(1);
        (0..6).for_each(|_| whole.submit());
        let mut bytes = Vec::new();
        (0..LINKS).for_each(|link| whole.pipeline.write_to(link, &mut bytes).unwrap());
        for cut in (0..=bytes.len()).step_by(97) {
            let mut world = World::new(1);
            (0..6).for_each(|_| world.submit());
            for link in 0..LINKS {
                let mut sent = Vec::new();
                world.pipeline.write_to(link, &mut sent).unwrap();
                sent.truncate(cut);
                world.requests[link] = sent;
                world.serve(link);
                world.lose(link);
            }
            world.finish();
            let [stored, refused, unknown] = world.check();
            assert_eq!((stored + refused, unknown), (world.next_tag as usize, 0));
        }
    }

    #[test]
    fn frames_that_answer_nothing_are_errors() {
        let mut world = World::new(1);
        world.submit();
        let lane = world.submitted.iter().position(|tags| !tags.is_empty()).unwrap();
        let link = world.pipeline.link_of(lane);
        world.pipeline.write_to(link, &mut Vec::new()).unwrap();
        let ack = Ack::refused(ErrorCode::Overloaded).encode();
        let refused = ErrorAnswer(ErrorCode::TooSlow.into()).encode();
        for (kind, items, correlation, payload) in [
            (FrameKind::ProduceAnswer, 1, 77, &ack[..]),
            (FrameKind::HelloAnswer, 0, 0, &[]),
            (FrameKind::Error, 0, 0, &refused),
            (FrameKind::ProduceAnswer, 2, 0, &[ack, ack].concat()),
        ] {
            let payload_bytes = payload.len() as u32;
            let header = FrameHeader { kind, payload_bytes, items, correlation };
            assert!(world.pipeline.on_frame(link, &header, payload, 0).is_err(), "{kind:?}");
        }
        world.lose(link);
        world.finish();
        assert_eq!(world.check().iter().sum::<usize>(), 1);
    }

    #[test]
    fn a_builder_of_another_size_is_not_given_out_again() {
        let mut world = World::new(1);
        let room = BatchRoom { records: 1, key_bytes: 1, data_bytes: 9000 };
        let mut builder = BatchBuilder::new(room);
        let (hash_key, key, data) = (HashKey(1), &b"k"[..], &[1; 9000][..]);
        builder.push(&NewRecord { hash_key, client_time_ms: 0, key, data });
        world.pipeline.submit(0, builder, 0, 0);
        world.submitted[0].push(0);
        world.finish();
        assert_eq!(world.pipeline.builder().room(), ROOM);
    }

    #[test]
    fn latency_counts_from_submission_to_answer() {
        let mut world = World::new(1);
        world.now_us = 1000;
        world.submit();
        world.now_us = 5000;
        world.finish();
        let latency = world.outcomes.iter().flatten().next().unwrap().latency;
        assert!(latency >= Duration::from_micros(4000) && latency < Duration::from_secs(1));
    }
}
