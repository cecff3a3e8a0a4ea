//! A controller that opens, fences, seals and trims, and asks again whatever it got no answer to.

use std::collections::BTreeMap;

use thalweg_node::core::machine::Core;
use thalweg_node::io::sim::{SimIo, SimRandom};
use thalweg_wire::control::{ControlAnswer, FenceExtent, OpenExtent, SealExtent, TrimShard};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::frame::{FrameHeader, FrameKind, small_frame};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, ExtentId, Offset};

use crate::history::{History, Outcome};
use crate::link::Link;
use crate::model::Model;
use crate::world::shard_id;

/// What the controller is about to do with a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Rest,
    Open { first_offset: u64 },
    Fence,
    Seal { end: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Shard {
    step: Step,
    /// Of the newest extent, as far as is known; of the one to open, while it is.
    epoch: u64,
    asked: bool,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Step { shard: u32 },
    Trim { shard: u32, first_kept: u64 },
}

/// See the module.
pub(crate) struct Controller {
    links: Vec<Link>,
    shards: Vec<Shard>,
    /// Commands under way, by core and correlation.
    commands: BTreeMap<(usize, u64), Command>,
    correlation: u64,
}

impl Controller {
    pub(crate) fn new(shards: u32) -> Controller {
        let shard = Shard { step: Step::Open { first_offset: 0 }, epoch: 1, asked: false };
        Controller {
            links: Vec::new(),
            shards: vec![shard; shards as usize],
            commands: BTreeMap::new(),
            correlation: 0,
        }
    }

    /// Whether every shard is open, as far as it knows.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.shards.iter().all(|shard| shard.step == Step::Rest)
    }

    pub(crate) fn connect(&mut self, cores: &mut [Core<SimIo>]) {
        self.commands.clear();
        self.shards.iter_mut().for_each(|shard| shard.asked = false);
        self.links = (0..cores.len()).map(|core| Link::connect(cores, core)).collect();
    }

    pub(crate) fn turn(
        &mut self,
        cores: &mut [Core<SimIo>],
        routes: &[usize],
        history: &History,
        random: &mut SimRandom,
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        for core in 0..self.links.len() {
            match self.links[core].take(cores) {
                Some(frames) => {
                    for (header, payload) in frames {
                        self.take(core, &header, &payload, (model, outcome));
                    }
                }
                None => {
                    self.links[core] = Link::connect(cores, core);
                    self.commands.retain(|(of, _), _| *of != core);
                    let lost =
                        (0..).zip(&mut self.shards).filter(|(shard, _)| routes[*shard] == core);
                    lost.for_each(|(_, shard)| shard.asked = false);
                }
            }
        }
        if random.once_in(history.fences) {
            let shard = &mut self.shards[random.below(u64::from(history.shards)) as usize];
            if shard.step == Step::Rest {
                shard.step = Step::Fence;
            }
        }
        if random.once_in(history.trims) {
            self.trim(cores, routes, history, random, model);
        }
        for shard in 0..self.shards.len() {
            if self.shards[shard].step != Step::Rest && !self.shards[shard].asked {
                self.ask_step(cores, routes, history, shard as u32);
            }
        }
    }

    fn trim(
        &mut self,
        cores: &mut [Core<SimIo>],
        routes: &[usize],
        history: &History,
        random: &mut SimRandom,
        model: &mut Model,
    ) {
        let mut shard = random.below(u64::from(history.shards)) as u32;
        if history.keeper && !random.once_in(50) {
            shard = shard.max(1).min(history.shards - 1);
        }
        if matches!(self.shards[shard as usize].step, Step::Open { .. }) {
            // It may not be there yet.
            return;
        }
        let first_kept = random.below(model.end(shard) + 1);
        model.ask_trim(shard, first_kept);
        let trim = TrimShard { shard: shard_id(shard), first_kept: Offset(first_kept) };
        let command = Command::Trim { shard, first_kept };
        self.ask(cores, routes[shard as usize], FrameKind::TrimShard, &trim.encode(), command);
    }

    fn ask_step(
        &mut self,
        cores: &mut [Core<SimIo>],
        routes: &[usize],
        history: &History,
        shard: u32,
    ) {
        let Shard { step, epoch, .. } = self.shards[shard as usize];
        let extent = ExtentId { shard: shard_id(shard), epoch: Epoch(epoch) };
        // Each recovery has the number of the extent that it ends: a later one is never lower.
        let recovery_epoch = Epoch(epoch);
        let (kind, payload) = match step {
            Step::Rest => return,
            Step::Open { first_offset } => {
                let open = open(extent, first_offset, history.classes);
                (FrameKind::OpenExtent, open.encode().to_vec())
            }
            Step::Fence => {
                let fence = FenceExtent { extent, recovery_epoch };
                (FrameKind::FenceExtent, fence.encode().to_vec())
            }
            Step::Seal { end } => {
                let seal = SealExtent { extent, recovery_epoch, end: Offset(end) };
                (FrameKind::SealExtent, seal.encode().to_vec())
            }
        };
        self.shards[shard as usize].asked = true;
        self.ask(cores, routes[shard as usize], kind, &payload, Command::Step { shard });
    }

    fn ask(
        &mut self,
        cores: &mut [Core<SimIo>],
        core: usize,
        kind: FrameKind,
        payload: &[u8],
        command: Command,
    ) {
        self.correlation += 1;
        self.commands.insert((core, self.correlation), command);
        self.links[core].send(cores, &small_frame(kind, 0, self.correlation, payload));
    }

    fn take(
        &mut self,
        core: usize,
        header: &FrameHeader,
        payload: &[u8],
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        assert_eq!(header.kind, FrameKind::ControlAnswer, "a controller did nothing wrong");
        let answer = ControlAnswer::decode(payload).expect("a control answer");
        let command = self.commands.remove(&(core, header.correlation));
        match command.expect("a command that was sent") {
            Command::Trim { shard, first_kept } => match answer.status {
                Ok(()) => {
                    assert!(answer.earliest.0 >= first_kept, "an acknowledged trim holds");
                    model.ack_trim(shard, first_kept);
                    outcome.trims += 1;
                }
                Err(refusal) => assert!(passes(refusal.code), "a trim: {refusal}"),
            },
            Command::Step { shard } => self.take_step(shard, &answer, (model, outcome)),
        }
    }

    fn take_step(
        &mut self,
        number: u32,
        answer: &ControlAnswer,
        (model, outcome): (&mut Model, &mut Outcome),
    ) {
        let shard = &mut self.shards[number as usize];
        shard.asked = false;
        match (answer.status, shard.step) {
            (Ok(()), Step::Open { .. }) => shard.step = Step::Rest,
            (Ok(()), Step::Fence) => {
                outcome.fences += 1;
                model.end_extent(number, answer.end.0);
                shard.step = Step::Seal { end: answer.end.0 };
            }
            (Ok(()), Step::Seal { end }) => {
                assert_eq!(answer.end.0, end, "a seal ends where it says");
                shard.epoch += 1;
                shard.step = Step::Open { first_offset: end };
            }
            (Ok(()), Step::Rest) => unreachable!("nothing was asked"),
            (Err(refusal), step) => match refusal.code {
                code if passes(code) => {}
                // A node that started anew opened the next itself.
                ErrorCode::StaleEpoch | ErrorCode::Conflict => {
                    shard.epoch = shard.epoch.max(refusal.hint);
                    shard.step = Step::Rest;
                }
                // The same, and nothing of the extent was kept.
                ErrorCode::UnknownShard if step == Step::Fence => {
                    shard.epoch += 1;
                    shard.step = Step::Rest;
                }
                ErrorCode::UnknownShard if matches!(step, Step::Seal { .. }) => {
                    let Step::Seal { end } = step else { unreachable!("just matched") };
                    shard.epoch += 1;
                    shard.step = Step::Open { first_offset: end };
                }
                _ => panic!("shard {number}, {step:?}: {refusal}"),
            },
        }
    }
}

/// Whether a command that was refused so may be asked for again.
pub(crate) fn passes(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::LogFailed | ErrorCode::Overloaded | ErrorCode::NoSpace | ErrorCode::Stopping
    )
}

/// The command that opens an extent, of a class that follows from its epoch.
pub(crate) fn open(extent: ExtentId, first_offset: u64, classes: u8) -> OpenExtent {
    OpenExtent {
        // Most extents of a shard are of another class than the one before.
        retention_class: ((u64::from(extent.shard.index) + extent.epoch.0) % u64::from(classes))
            as u8,
        // Accounts of several shards each.
        account: u64::from(extent.shard.index % 3),
        ..OpenExtent::alone(extent, HashRange::FULL, Offset(first_offset))
    }
}
