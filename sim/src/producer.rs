//! Producers whose decisions are the client's own: lanes decide what is sent again.

use std::collections::BTreeMap;

use thalweg_client::lane::{Lane, Reaction};
use thalweg_node::core::machine::Core;
use thalweg_node::io::sim::{SimIo, SimRandom};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::checksum::body_hash;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::frame::{FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Epoch, ProducerId};
use thalweg_wire::produce::{decode_acks, padded_bytes};

use crate::history::{History, Outcome};
use crate::link::Link;
use crate::model::{Model, Stored};
use crate::world::shard_id;

struct Made {
    builder: BatchBuilder,
    shard: u32,
    stored: Stored,
}

/// A producer.
pub(crate) struct SimProducer {
    number: u64,
    /// One to each core.
    links: Vec<Link>,
    lanes: Vec<Lane>,
    batches: Vec<Option<Made>>,
    left: u64,
    keeper: bool,
    /// Frames under way, by core and correlation.
    frames: BTreeMap<(usize, u64), Vec<u32>>,
    correlation: u64,
    identities: u64,
    random: SimRandom,
}

impl SimProducer {
    pub(crate) fn new(number: u64, history: &History, seed: u64) -> SimProducer {
        let mut producer = SimProducer {
            number,
            links: Vec::new(),
            lanes: Vec::new(),
            batches: Vec::new(),
            left: history.batches,
            keeper: history.keeper,
            frames: BTreeMap::new(),
            correlation: 0,
            identities: 0,
            random: SimRandom::new(seed),
        };
        for index in 0..history.shards {
            let id = producer.next_identity();
            producer.lanes.push(Lane::new(shard_id(index), HashRange::FULL, Epoch(1), id, true));
        }
        producer
    }

    fn next_identity(&mut self) -> ProducerId {
        self.identities += 1;
        ProducerId(self.number * 1_000_000 + self.identities)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.left == 0 && self.lanes.iter().all(Lane::is_empty)
    }

    /// The node started: connections to all of its cores.
    pub(crate) fn connect(&mut self, cores: &mut [Core<SimIo>]) {
        self.links = (0..cores.len()).map(|core| Link::connect(cores, core)).collect();
    }

    /// The node is gone.
    pub(crate) fn lose_all(&mut self) {
        self.frames.clear();
        self.links.clear();
        self.lanes.iter_mut().for_each(Lane::on_connection_lost);
    }

    /// Takes what came, sends what may be sent.
    pub(crate) fn turn(
        &mut self,
        cores: &mut [Core<SimIo>],
        routes: &[usize],
        now_us: u64,
        chance: &mut SimRandom,
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        for core in 0..self.links.len() {
            match self.links[core].take(cores) {
                Some(frames) => {
                    for (header, payload) in frames {
                        self.take(core, &header, &payload, now_us, (model, outcome));
                    }
                }
                None => {
                    self.links[core] = Link::connect(cores, core);
                    self.frames.retain(|(of, _), _| *of != core);
                    let lost =
                        (0..).zip(&mut self.lanes).filter(|(shard, _)| routes[*shard] == core);
                    lost.for_each(|(_, lane)| lane.on_connection_lost());
                }
            }
        }
        self.fill_lanes(chance, (model, outcome));
        self.send(cores, routes, now_us, chance);
    }

    fn fill_lanes(&mut self, chance: &mut SimRandom, (model, outcome): (&mut Model, &mut Outcome)) {
        while self.left > 0 && chance.once_in(3) && !self.lanes.iter().any(Lane::is_full) {
            let batch = self.make();
            let made = self.batches[batch as usize].as_ref().expect("just made");
            model.send(made.stored.body_hash);
            self.lanes[made.shard as usize].push(batch);
            outcome.sent += 1;
        }
    }

    fn make(&mut self) -> u32 {
        let shards = self.lanes.len() as u64;
        let mut shard = self.random.below(shards) as u32;
        if self.keeper && !self.random.once_in(4) {
            shard = shard.max(1).min(shards as u32 - 1);
        }
        // Small ones are gathered; large ones are written from where they were received.
        let large = self.random.once_in(6);
        let records = 1 + self.random.below(if large { 3 } else { 8 }) as u32;
        let record_bytes = if large { 30_000 } else { 1 + self.random.below(2000) as u32 };
        let room = BatchRoom {
            records,
            key_bytes: records * 3,
            data_bytes: records * (record_bytes + 16),
        };
        let mut builder = BatchBuilder::new(room);
        for _ in 0..records {
            let mut data = vec![self.random.any() as u8; record_bytes as usize];
            data.extend(self.number.to_le_bytes());
            data.extend(self.left.to_le_bytes());
            let hash_key = HashKey(u128::from(self.random.any()));
            builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"key", data: &data });
        }
        self.left -= 1;
        let body_hash = body_hash(builder.close());
        let stored = Stored { records, body_hash };
        self.batches.push(Some(Made { builder, shard, stored }));
        self.batches.len() as u32 - 1
    }

    fn send(
        &mut self,
        cores: &mut [Core<SimIo>],
        routes: &[usize],
        now_us: u64,
        chance: &mut SimRandom,
    ) {
        let mut groups: Vec<Vec<(u32, Vec<u8>)>> = vec![Vec::new(); self.links.len()];
        for (shard, core) in routes.iter().copied().enumerate() {
            while let Some((batch, sequence)) = self.lanes[shard].next_to_send(now_us) {
                let lane = &self.lanes[shard];
                let identity = BatchIdentity {
                    shard: lane.shard,
                    epoch: lane.epoch,
                    producer: lane.producer,
                    sequence,
                    request_id: 0,
                };
                let made = self.batches[batch as usize].as_mut().expect("not yet answered");
                let mut bytes = made.builder.finish(&identity).to_vec();
                bytes.resize(padded_bytes(bytes.len()), 0);
                groups[core].push((batch, bytes));
                if chance.once_in(2) {
                    self.send_frame(cores, core, &mut groups[core]);
                }
            }
        }
        for (core, group) in groups.iter_mut().enumerate() {
            self.send_frame(cores, core, group);
        }
    }

    fn send_frame(
        &mut self,
        cores: &mut [Core<SimIo>],
        core: usize,
        group: &mut Vec<(u32, Vec<u8>)>,
    ) {
        if group.is_empty() {
            return;
        }
        self.correlation += 1;
        let payload: Vec<u8> = group.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let items = group.len() as u32;
        let batches = group.drain(..).map(|(batch, _)| batch).collect();
        self.frames.insert((core, self.correlation), batches);
        let frame = small_frame(FrameKind::Produce, items, self.correlation, &payload);
        self.links[core].send(cores, &frame);
    }

    fn take(
        &mut self,
        core: usize,
        header: &FrameHeader,
        payload: &[u8],
        now_us: u64,
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        assert_eq!(header.kind, FrameKind::ProduceAnswer, "a producer did nothing wrong");
        let batches =
            self.frames.remove(&(core, header.correlation)).expect("a frame that was sent");
        let acks = decode_acks(payload, header.items).expect("acks");
        for (batch, ack) in batches.iter().zip(acks) {
            let ack = ack.expect("an ack");
            let no_space = |refusal| refusal == ErrorCode::NoSpace;
            outcome.full += u64::from(ack.result.is_err_and(|refusal| no_space(refusal.code)));
            let made = self.batches[*batch as usize].as_ref().expect("answered once");
            let shard = made.shard as usize;
            if self.lanes[shard].on_ack(*batch, &ack, now_us) == Reaction::ChangeProducer {
                let identity = self.next_identity();
                self.lanes[shard].change_producer(identity);
            }
        }
        for shard in 0..self.lanes.len() {
            while let Some(left) = self.lanes[shard].take_done() {
                let made = self.batches[left.batch as usize].take().expect("answered once");
                match left.result {
                    Ok(stored) => {
                        outcome.acked += 1;
                        outcome.duplicates += u64::from(stored.duplicate);
                        model.see(made.shard, stored.first_offset.0, made.stored);
                    }
                    Err(refusal) => {
                        let unknown = left.outcome_unknown
                            || refusal.code == ErrorCode::ProducerUnknown
                            || refusal.code == ErrorCode::DuplicateForgotten;
                        assert!(
                            unknown,
                            "nothing is refused for good in these histories: {refusal}"
                        );
                        outcome.unknown += 1;
                    }
                }
            }
        }
    }
}
