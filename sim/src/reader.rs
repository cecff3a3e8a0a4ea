//! Readers and subscribers: what they saw once must stay.

use rkyv::util::AlignedVec;
use thalweg_node::core::machine::Core;
use thalweg_node::io::sim::{SimIo, SimRandom};
use thalweg_wire::batch::Batch;
use thalweg_wire::checksum::body_hash;
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, Offset};
use thalweg_wire::produce::padded_bytes;
use thalweg_wire::subscribe::Credit;

use crate::history::{History, Outcome};
use crate::link::Link;
use crate::model::{Model, Stored};
use crate::world::shard_id;

/// A batch that came: where it stands, and how many bytes it counts.
pub(crate) struct Seen {
    pub first_offset: u64,
    pub append_time_ms: u64,
    pub stored: Stored,
    pub bytes: u64,
}

/// Takes the batches of an answer apart; each is whole.
pub(crate) fn batches_of(header: &FrameHeader, payload: &[u8]) -> Vec<Seen> {
    let mut bytes: AlignedVec<16> = AlignedVec::new();
    bytes.extend_from_slice(&payload[FETCH_ANSWER_BYTES..]);
    let mut at = 0;
    let mut batches = Vec::new();
    for _ in 0..header.items {
        let batch = Batch::check(&bytes[at..], &HashRange::FULL).expect("a whole batch");
        let padded = padded_bytes(batch.header.batch_bytes());
        batches.push(Seen {
            first_offset: batch.header.first_offset.0,
            append_time_ms: batch.header.append_time_ms,
            stored: Stored { records: batch.header.records, body_hash: body_hash(batch.body()) },
            bytes: padded as u64,
        });
        at += padded;
    }
    assert_eq!(at, bytes.len(), "an answer has nothing but its batches");
    batches
}

/// See the module.
pub(crate) struct SimReader {
    shard: u32,
    subscribes: bool,
    link: Option<Link>,
    from: FetchFrom,
    /// Where the next batch begins, once one has come.
    next: Option<u64>,
    asked: bool,
    /// Bytes that may still be pushed.
    credit: u64,
    correlation: u64,
    /// It came to something damaged, and reads no further.
    stopped: bool,
    /// It ends its connection and begins again.
    leaves: bool,
    random: SimRandom,
}

impl SimReader {
    pub(crate) fn new(number: u64, history: &History, seed: u64) -> SimReader {
        let mut random = SimRandom::new(seed);
        SimReader {
            shard: random.below(u64::from(history.shards)) as u32,
            subscribes: number % 2 == 1,
            link: None,
            from: FetchFrom::Earliest,
            next: None,
            asked: false,
            credit: 0,
            correlation: number,
            stopped: false,
            leaves: false,
            random,
        }
    }

    /// The node is gone.
    pub(crate) fn lose(&mut self) {
        self.link = None;
    }

    pub(crate) fn turn(
        &mut self,
        cores: &mut [Core<SimIo>],
        routes: &[usize],
        history: &History,
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        if self.stopped {
            return;
        }
        let core = routes[self.shard as usize];
        let Some(link) = &mut self.link else {
            self.begin_again(model, history);
            self.link = Some(Link::connect(cores, core));
            return;
        };
        match link.take(cores) {
            None => self.link = None,
            Some(frames) => {
                for (header, payload) in frames {
                    self.take(&header, &payload, history, (model, outcome));
                }
                if std::mem::take(&mut self.leaves) {
                    // A connection that nobody ends is one of those that a core may have.
                    self.link.take().expect("frames came from it").end(cores);
                    return;
                }
                self.ask(cores);
            }
        }
    }

    /// Goes on where it was, or begins elsewhere.
    fn begin_again(&mut self, model: &Model, history: &History) {
        self.asked = false;
        self.credit = 0;
        // What it had seen may be gone where writes go astray.
        let known = self.next.filter(|_| !history.may_lose());
        self.from = match (known, self.random.below(6)) {
            (Some(next), 0..=2) => FetchFrom::Offset(Offset(next)),
            (_, 3) if !history.may_lose() => {
                let (asked, end) = (model.trim_asked(self.shard), model.end(self.shard));
                let place = asked + self.random.below(end.saturating_sub(asked) + 1);
                FetchFrom::Offset(Offset(place.min(end)))
            }
            (_, 4) => FetchFrom::Time(1_000_000_000 + self.random.below(100_000)),
            (_, 5) => FetchFrom::Latest,
            _ => FetchFrom::Earliest,
        };
        self.next = None;
    }

    fn ask(&mut self, cores: &mut [Core<SimIo>]) {
        let Some(link) = &self.link else { return };
        if self.subscribes && self.asked {
            // Whoever takes batches grants as much again, sooner or later.
            if self.credit < 100_000 && self.random.once_in(3) {
                let bytes = 1 + self.random.below(200_000) as u32;
                self.credit += u64::from(bytes);
                let credit = Credit::Grant { subscription: self.correlation, bytes };
                link.send(cores, &small_frame(FrameKind::Credit, 0, 0, &credit.encode()));
            }
            return;
        }
        if self.asked || self.random.once_in(3) {
            return;
        }
        self.asked = true;
        self.correlation += 1000;
        let bytes_max = self.random.below(300_000) as u32;
        let wait_ms = self.random.below(200) as u32;
        let request = FetchRequest {
            shard: shard_id(self.shard),
            epoch: Epoch(0),
            from: self.next.map_or(self.from, |next| FetchFrom::Offset(Offset(next))),
            bytes_max,
            wait_ms,
        };
        self.credit = u64::from(bytes_max);
        let kind = if self.subscribes { FrameKind::Subscribe } else { FrameKind::Fetch };
        link.send(cores, &small_frame(kind, 0, self.correlation, &request.encode()));
    }

    fn take(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        history: &History,
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        let kind = if self.subscribes { FrameKind::SubscribeEvent } else { FrameKind::FetchAnswer };
        assert_eq!(header.kind, kind, "a reader did nothing wrong");
        assert_eq!(header.correlation, self.correlation, "it asks one thing at a time");
        let answer = FetchAnswer::decode(payload).expect("a fetch answer");
        if !self.subscribes {
            self.asked = false;
        }
        if let Err(refusal) = answer.status {
            self.asked = false;
            return self.refused(refusal, history, outcome);
        }
        let batches = batches_of(header, payload);
        if self.subscribes {
            let bytes: u64 = batches.iter().map(|batch| batch.bytes).sum();
            assert!(bytes <= self.credit, "{bytes} bytes came, {} were granted", self.credit);
            self.credit -= bytes;
            // A subscription ends where a sealed shard does; the next goes on with its next extent.
            self.asked = !answer.sealed_end;
        }
        for batch in &batches {
            self.see(batch, model);
            outcome.read += 1;
        }
        if batches.is_empty() && self.next.is_none() && !matches!(self.from, FetchFrom::Time(_)) {
            self.next = Some(answer.next.0);
        }
    }

    fn see(&mut self, batch: &Seen, model: &mut Model) {
        let end = batch.first_offset + u64::from(batch.stored.records);
        match (self.next, self.from) {
            (Some(next), _) | (None, FetchFrom::Offset(Offset(next))) => assert!(
                batch.first_offset <= next && next < end,
                "shard {}: {next} is next, {} to {end} came",
                self.shard,
                batch.first_offset
            ),
            (None, FetchFrom::Time(time_ms)) => {
                assert!(batch.append_time_ms >= time_ms, "a batch from before the time asked for");
            }
            (None, _) => {}
        }
        model.see(self.shard, batch.first_offset, batch.stored);
        self.next = Some(end);
    }

    fn refused(&mut self, refusal: Refusal, history: &History, outcome: &mut Outcome) {
        match refusal.code {
            ErrorCode::Trimmed => {
                self.next = None;
                self.from = FetchFrom::Earliest;
            }
            ErrorCode::Corrupt if history.may_damage() => {
                outcome.refused_reads += 1;
                self.stopped = true;
            }
            ErrorCode::ReadFailed if history.disk_errors > 0 => outcome.refused_reads += 1,
            ErrorCode::BeyondEnd if history.may_lose() => self.leaves = true,
            // Not opened yet.
            ErrorCode::UnknownShard => self.leaves = true,
            ErrorCode::Overloaded => {}
            _ => panic!("shard {}: {refusal}", self.shard),
        }
    }
}
