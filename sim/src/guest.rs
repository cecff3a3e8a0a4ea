//! Guests: shards that come, take a few records, go on in other logs and are deleted again. Until
//! somebody asks for that, a guest is there after every crash, with all that was acked; once it is
//! answered, nothing brings it back.

use thalweg_node::core::machine::Core;
use thalweg_node::io::sim::{SimIo, SimRandom};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::control::{ControlAnswer, DeleteShard, FenceExtent, SealExtent};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ProducerId};
use thalweg_wire::produce::{decode_acks, padded_bytes};

use crate::controller::{open, passes};
use crate::history::{History, Outcome};
use crate::link::Link;
use crate::world::shard_id;

/// Guests at a time.
const GUESTS_MAX: usize = 3;
/// Behind those of producers.
const PRODUCER_FIRST: u64 = 1 << 40;

/// What a guest asks for next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Open { first_offset: u64 },
    Append,
    Fence,
    Seal { end: u64 },
    Delete,
}

#[derive(Debug)]
enum Answer {
    Done,
    Goes {
        on: Step,
    },
    /// The same again.
    Waits,
}

struct Guest {
    index: u32,
    core: usize,
    link: Option<Link>,
    step: Step,
    is_asked: bool,
    /// Of the newest extent, as far as is known; of the one to open, while it is.
    epoch: u64,
    appends_left: u64,
    /// Extents that follow, in another log where there are several classes.
    moves_left: u64,
    sequence: u64,
    acked_end: u64,
    /// An opening was answered.
    is_opened: bool,
    /// It was to be deleted, and nobody knows whether it is.
    may_be_gone: bool,
}

/// See the module.
pub(crate) struct Guests {
    here: Vec<Guest>,
    /// Indexes of the shards that were deleted.
    gone: Vec<u32>,
    next_index: u32,
    correlation: u64,
}

impl Guests {
    /// None yet, beside so many shards.
    pub(crate) fn new(shards: u32) -> Guests {
        Guests { here: Vec::new(), gone: Vec::new(), next_index: shards, correlation: 0 }
    }

    /// Whether all have come to their end.
    pub(crate) fn are_gone(&self) -> bool {
        self.here.is_empty()
    }

    /// The node is gone.
    pub(crate) fn lose_all(&mut self) {
        self.here.iter_mut().for_each(Guest::lose);
    }

    /// The node started.
    pub(crate) fn check_start(&mut self, cores: &[Core<SimIo>], may_lose: bool) {
        for guest in &mut self.here {
            let id = shard_id(guest.index);
            let place = |core: &Core<SimIo>| core.shards().find(id);
            let found = cores.iter().enumerate().find_map(|(at, core)| Some((at, place(core)?)));
            let Some((core, place)) = found else {
                let may_lack = !guest.is_opened || guest.may_be_gone || may_lose;
                assert!(may_lack, "{id} was opened and is not there");
                guest.core = guest.index as usize % cores.len();
                continue;
            };
            guest.core = core;
            let committed = cores[core].shards().at(place).committed.0;
            guest.check_end(committed, may_lose);
        }
        if !may_lose {
            self.gone.iter().for_each(|index| check_gone(cores, *index));
        }
    }

    pub(crate) fn turn(
        &mut self,
        cores: &mut [Core<SimIo>],
        history: &History,
        random: &mut SimRandom,
        outcome: &mut Outcome,
    ) {
        if random.once_in(history.guests) && self.here.len() < GUESTS_MAX {
            self.here.push(Guest::new(self.next_index, random.below(cores.len() as u64), random));
            self.next_index += 1;
        }
        let Guests { here, gone, correlation, .. } = self;
        here.retain_mut(|guest| {
            *correlation += 1;
            let stays = guest.turn(cores, history, *correlation);
            if !stays {
                outcome.deleted += 1;
                gone.push(guest.index);
                if !history.may_lose() {
                    check_gone(cores, guest.index);
                }
            }
            stays
        });
    }
}

/// Whether a core knows the shard.
fn is_listed(cores: &[Core<SimIo>], index: u32) -> bool {
    cores.iter().any(|core| {
        core.shards().from(shard_id(index)).next().is_some_and(|shard| shard.id == shard_id(index))
    })
}

/// Nobody knows a shard that was deleted.
fn check_gone(cores: &[Core<SimIo>], index: u32) {
    assert!(!is_listed(cores, index), "{} was deleted and is there", shard_id(index));
}

impl Guest {
    fn new(index: u32, core: u64, random: &mut SimRandom) -> Guest {
        Guest {
            index,
            core: core as usize,
            link: None,
            step: Step::Open { first_offset: 0 },
            is_asked: false,
            epoch: 1,
            appends_left: random.below(4),
            moves_left: random.below(3),
            sequence: 0,
            acked_end: 0,
            is_opened: false,
            may_be_gone: false,
        }
    }

    fn lose(&mut self) {
        self.may_be_gone |= self.is_asked && self.step == Step::Delete;
        (self.link, self.is_asked) = (None, false);
    }

    /// What was acked is there, unless some logs know already that the guest was to be deleted.
    fn check_end(&self, end: u64, may_lose: bool) {
        let Guest { index, acked_end, may_be_gone, .. } = *self;
        let holds = acked_end <= end || may_be_gone || may_lose;
        assert!(holds, "{}: {acked_end} were acked, it ends at {end}", shard_id(index));
    }

    /// Takes its answer, and asks for what follows; false when it was deleted.
    fn turn(&mut self, cores: &mut [Core<SimIo>], history: &History, correlation: u64) -> bool {
        let core = self.core;
        let link = self.link.get_or_insert_with(|| Link::connect(cores, core));
        let Some(frames) = link.take(cores) else {
            self.lose();
            return true;
        };
        for (header, payload) in frames {
            assert!(self.is_asked, "a guest asks one thing at a time");
            self.is_asked = false;
            match self.take(&header, &payload, history) {
                Answer::Done => {
                    self.link.take().expect("an answer came").end(cores);
                    return false;
                }
                Answer::Goes { on } => self.step = on,
                Answer::Waits => {}
            }
        }
        // As a router does that lost the answer: what no core lists is deleted.
        if self.may_be_gone && !self.is_asked && !is_listed(cores, self.index) {
            self.link.take().expect("just connected").end(cores);
            return false;
        }
        if !self.is_asked {
            let frame = self.frame(history, correlation);
            self.link.as_ref().expect("just connected").send(cores, &frame);
            self.is_asked = true;
        }
        true
    }

    fn frame(&self, history: &History, correlation: u64) -> Vec<u8> {
        let shard = shard_id(self.index);
        let extent = ExtentId { shard, epoch: Epoch(self.epoch) };
        let recovery_epoch = extent.epoch;
        let command = |kind, payload: &[u8]| small_frame(kind, 0, correlation, payload);
        match self.step {
            Step::Open { first_offset } => {
                let open = open(extent, first_offset, history.classes);
                command(FrameKind::OpenExtent, &open.encode())
            }
            Step::Append => {
                let batch = self.batch(extent);
                small_frame(FrameKind::Produce, 1, correlation, &batch)
            }
            Step::Fence => {
                let fence = FenceExtent { extent, recovery_epoch };
                command(FrameKind::FenceExtent, &fence.encode())
            }
            Step::Seal { end } => {
                let seal = SealExtent { extent, recovery_epoch, end: Offset(end) };
                command(FrameKind::SealExtent, &seal.encode())
            }
            Step::Delete => {
                let delete = DeleteShard { shard, recovery_epoch };
                command(FrameKind::DeleteShard, &delete.encode())
            }
        }
    }

    /// The batch of its sequence, of one record.
    fn batch(&self, extent: ExtentId) -> Vec<u8> {
        let data = vec![self.sequence as u8; 20_000 * (1 + self.sequence as usize % 2)];
        let room = BatchRoom { records: 1, key_bytes: 3, data_bytes: data.len() as u32 };
        let mut builder = BatchBuilder::new(room);
        let hash_key = HashKey(self.sequence.into());
        builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"key", data: &data });
        let identity = BatchIdentity {
            shard: extent.shard,
            epoch: extent.epoch,
            producer: ProducerId(PRODUCER_FIRST + u64::from(self.index)),
            sequence: self.sequence,
            request_id: 0,
        };
        let mut bytes = builder.finish(&identity).to_vec();
        bytes.resize(padded_bytes(bytes.len()), 0);
        bytes
    }

    fn take(&mut self, header: &FrameHeader, payload: &[u8], history: &History) -> Answer {
        if self.step == Step::Append {
            assert_eq!(header.kind, FrameKind::ProduceAnswer, "a guest did nothing wrong");
            let ack = decode_acks(payload, header.items).expect("acks").next().expect("one");
            let Ok(stored) = ack.expect("an ack").result else {
                // The extent is not there any more, or there is no space.
                return Answer::Goes { on: Step::Fence };
            };
            self.acked_end = self.acked_end.max(stored.first_offset.0 + 1);
            self.sequence += 1;
            self.appends_left -= 1;
            return self.goes_on();
        }
        assert_eq!(header.kind, FrameKind::ControlAnswer, "a guest did nothing wrong");
        let answer = ControlAnswer::decode(payload).expect("a control answer");
        match answer.status {
            Ok(()) => self.obeyed(&answer, history),
            Err(refusal) => self.refused(refusal, history),
        }
    }

    /// Appends, while there is something to append.
    fn goes_on(&self) -> Answer {
        Answer::Goes { on: if self.appends_left > 0 { Step::Append } else { Step::Fence } }
    }

    fn obeyed(&mut self, answer: &ControlAnswer, history: &History) -> Answer {
        match self.step {
            Step::Open { .. } => {
                self.is_opened = true;
                self.goes_on()
            }
            Step::Append => unreachable!("it has answers of its own"),
            Step::Fence => Answer::Goes { on: Step::Seal { end: answer.end.0 } },
            Step::Seal { end } if self.moves_left > 0 => {
                self.moves_left -= 1;
                self.epoch += 1;
                self.appends_left += 1;
                Answer::Goes { on: Step::Open { first_offset: end } }
            }
            Step::Seal { .. } => Answer::Goes { on: Step::Delete },
            Step::Delete => {
                self.check_end(answer.end.0, history.may_lose());
                Answer::Done
            }
        }
    }

    fn refused(&mut self, refusal: Refusal, history: &History) -> Answer {
        let Refusal { code, hint } = refusal;
        let is_delete = self.step == Step::Delete;
        match code {
            code if passes(code) || code == ErrorCode::TooManyShards => {
                // The log may have taken it to the disk and failed before that was known.
                self.may_be_gone |= is_delete && code == ErrorCode::LogFailed;
                Answer::Waits
            }
            ErrorCode::UnknownShard if is_delete => {
                let may_lack = self.may_be_gone || !self.is_opened || history.may_lose();
                assert!(may_lack, "{} was opened and is not there", shard_id(self.index));
                Answer::Done
            }
            // A start of the node opened the next extent.
            ErrorCode::Conflict | ErrorCode::StaleRecovery if is_delete => {
                self.epoch = self.epoch.max(hint);
                Answer::Goes { on: Step::Fence }
            }
            // It did, or forgot an extent that was empty: whoever asks for the end is told.
            ErrorCode::StaleEpoch
            | ErrorCode::Conflict
            | ErrorCode::StaleRecovery
            | ErrorCode::BeyondEnd
            | ErrorCode::UnknownShard => Answer::Goes { on: Step::Delete },
            _ => panic!("{}, {:?}: {refusal}", shard_id(self.index), self.step),
        }
    }
}
