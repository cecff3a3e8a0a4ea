//! The world of a history: a node's cores and background on simulated disks, restarted again and
//! again; those who use it; and the judge.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use thalweg_node::core::machine::{Core, CoreMessage, CoreRequest, CoreSettings, Time};
use thalweg_node::core::shard::Placement;
use thalweg_node::io::sim::{SimDisk, SimFaults, SimIo, SimRandom};
use thalweg_node::io::{Errno, FileId, Io, Wait};
use thalweg_node::log::merge::merge;
use thalweg_node::log::recovery::{LogFiles, RecoveredLog, recover};
use thalweg_node::log::scrub::scrub;
use thalweg_node::log::segments::{FreeSegment, Log, LogIdentity};
use thalweg_wire::checksum::Chain;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::fetch::{FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{FrameHeader, FrameKind, small_frame};
use thalweg_wire::ids::{BootId, DiskId, Epoch, Offset, ShardId, StreamId};

use crate::background::{Background, StepFiles, drive, next_step};
use crate::controller::Controller;
use crate::guest::Guests;
use crate::history::{History, Outcome};
use crate::link::Link;
use crate::model::Model;
use crate::producer::SimProducer;
use crate::reader::{SimReader, batches_of};

const SEGMENT_BYTES: u64 = 1 << 20;
const MEMORY_BYTES: usize = 16 << 20;
/// So little that accounts wait for each other.
const IN_FLIGHT_BYTES: RangeInclusive<u64> = 96 << 10..=192 << 10;
const FREE_SEGMENTS_MIN: usize = 3;
const FREE_SEGMENTS_MAX: usize = 4;
/// Turns after which a history that has not come to its end is stuck.
const TURNS_MAX: u64 = 400_000;
/// Turns after which a full disk is enlarged.
const TURNS_FULL_MAX: u64 = 20_000;

pub(crate) fn shard_id(index: u32) -> ShardId {
    ShardId { stream: StreamId(1), index }
}

/// Plays a history to its end and judges it.
///
/// # Panics
/// When a promise is broken.
#[must_use]
pub fn play(history: &History) -> Outcome {
    let mut world = World::new(*history);
    let mut runs = world.start();
    let mut turns = 0;
    while runs && !world.is_done() {
        runs = world.turn();
        turns += 1;
        assert!(turns < TURNS_MAX, "the history is stuck");
        if turns == TURNS_FULL_MAX {
            world.segments_max.set(u64::MAX);
        }
    }
    if runs {
        world.end();
    }
    world.outcome
}

/// A directory of logs as it outlives the node: its disk, its number there, its files.
struct Directory {
    disk: DiskId,
    number: u32,
    files: Rc<RefCell<Vec<FileId>>>,
}

struct World {
    /// What goes wrong now.
    history: History,
    /// What may have gone wrong: decides what is forgiven.
    faults: History,
    random: SimRandom,
    disk: SimDisk,
    directories: Vec<Directory>,
    cores: Vec<Core<SimIo>>,
    background: Background,
    segments_max: Rc<Cell<u64>>,
    now_us: u64,
    boot: u64,
    operations_before: u64,
    /// The core of each shard.
    routes: Vec<usize>,
    producers: Vec<SimProducer>,
    readers: Vec<SimReader>,
    controller: Controller,
    guests: Guests,
    model: Model,
    trace: Chain,
    outcome: Outcome,
}

impl World {
    fn new(history: History) -> World {
        let mut random = SimRandom::new(history.seed);
        let producers = (0..history.producers)
            .map(|number| SimProducer::new(number, &history, random.any()))
            .collect();
        let readers = (0..history.readers)
            .map(|number| SimReader::new(number, &history, random.any()))
            .collect();
        World {
            random,
            disk: SimDisk::default(),
            directories: Vec::new(),
            cores: Vec::new(),
            background: Background::default(),
            segments_max: Rc::new(Cell::new(history.segments_max.unwrap_or(u64::MAX))),
            now_us: 1_000_000,
            boot: 0,
            operations_before: 0,
            routes: Vec::new(),
            producers,
            readers,
            controller: Controller::new(history.shards),
            guests: Guests::new(history.shards),
            model: Model::new(history.shards),
            trace: Chain::default(),
            outcome: Outcome::default(),
            faults: history,
            history,
        }
    }

    fn is_done(&self) -> bool {
        self.producers.iter().all(SimProducer::is_done)
    }

    fn time(&self) -> Time {
        // The wall clock jumps, also backwards.
        let jump = self.now_us / 1000 % 977 * 50;
        Time { now_us: self.now_us, wall_ms: 1_000_000_000 + self.now_us / 1000 - jump }
    }

    fn files(&self, files: Option<Vec<FileId>>, errors: u64, seed: u64) -> StepFiles {
        let random = Rc::new(RefCell::new(SimRandom::new(seed)));
        StepFiles::new(self.disk.clone(), files, random, errors)
    }

    /// Recovers the logs and starts cores; false when the disks are damaged and the node says so.
    fn start(&mut self) -> bool {
        self.boot += 1;
        let cores = 1 + self.random.below(self.history.cores_max) as usize;
        self.make_directories(cores);
        let mut recovered = Vec::new();
        for place in 0..self.directories.len() {
            match self.recover(place) {
                Some(logs) => recovered.push(logs),
                None => {
                    self.outcome.refused_starts += 1;
                    return false;
                }
            }
        }
        let placement = Arc::new(Placement::default());
        let disks: Vec<DiskId> = (0..self.history.disks).map(disk_id).collect();
        let mut logs: Vec<Vec<Log>> = (0..cores).map(|_| Vec::new()).collect();
        for (place, recovered) in recovered.into_iter().enumerate() {
            let core = self.directories[place].number as usize % cores;
            let opened = self.open_logs(place, logs[core].len() as u32, recovered);
            logs[core].extend(opened);
        }
        let errors = self.history.disk_errors;
        let faults = SimFaults {
            write_error: errors,
            short_write: errors,
            sync_error: errors,
            short_read: errors,
            broken_connection: self.history.broken_connections,
            misdirected_write: self.history.misdirected_writes,
        };
        for (core, logs) in logs.into_iter().enumerate() {
            let io = SimIo::new(MEMORY_BYTES, self.disk.clone(), self.random.any(), faults);
            let settings = CoreSettings {
                core: core as u16,
                ports: (1..=cores as u16).collect(),
                disks: disks.clone(),
                boot: BootId(self.boot),
                min_frame_bytes_per_s: 1,
                connections_max: 64,
                in_flight_bytes: IN_FLIGHT_BYTES,
                free_segments_min: FREE_SEGMENTS_MIN,
                free_segments_max: FREE_SEGMENTS_MAX,
                retention_ms: Default::default(),
                merge_after_us: 1_000_000,
                archive_records_min: 1 + self.random.below(4) as usize,
                scrub_period_us: Some(3_000_000),
            };
            let mut core = Core::new(io, settings, placement.clone(), logs, self.time());
            core.reopen_shards(&mut 0).expect("there are free segments");
            self.cores.push(core);
        }
        self.check_start();
        self.producers.iter_mut().for_each(|producer| producer.connect(&mut self.cores));
        self.controller.connect(&mut self.cores);
        true
    }

    /// Every disk has a directory for each core at least.
    fn make_directories(&mut self, cores: usize) {
        for disk in (0..self.history.disks).map(disk_id) {
            let there = self.directories.iter().filter(|there| there.disk == disk).count();
            for number in there..cores {
                let files = Rc::new(RefCell::new(Vec::new()));
                self.directories.push(Directory { disk, number: number as u32, files });
            }
        }
    }

    /// The files of the directory that this log of a core is in.
    fn files_of(&self, core: usize, log: u32) -> Rc<RefCell<Vec<FileId>>> {
        let log = self.cores[core].logs()[log as usize].identity();
        let is_its =
            |directory: &&Directory| (directory.disk, directory.number) == (log.disk, log.log);
        self.directories.iter().find(is_its).expect("a log has a directory").files.clone()
    }

    /// Reads the logs of a directory, with all the power failures that come between.
    fn recover(&mut self, place: usize) -> Option<Vec<RecoveredLog>> {
        loop {
            let cut = self.random.once_in(self.history.cut_recoveries);
            let steps = if cut { self.random.below(40) } else { u64::MAX };
            let Directory { disk, number, .. } = self.directories[place];
            let files = self.directories[place].files.borrow().clone();
            let files = self.files(Some(files), 0, 0);
            let recovery = pin!(recover(&files, disk, number, SEGMENT_BYTES));
            match drive(recovery, steps) {
                Some(Ok(recovered)) => return Some(recovered),
                Some(Err(error)) => {
                    assert!(self.faults.may_damage(), "what a crash leaves can be read: {error}");
                    return None;
                }
                None => {
                    self.outcome.cut_recoveries += 1;
                    self.disk.crash(Vec::new(), &mut self.random);
                }
            }
        }
    }

    fn open_logs(
        &mut self,
        place: usize,
        first_index: u32,
        recovered: Vec<RecoveredLog>,
    ) -> Vec<Log> {
        let files = self.directories[place].files.clone();
        let named = files.borrow().clone();
        let mut free: Vec<FileId> = recovered[0].free.iter().map(|file| named[*file]).collect();
        for unfinished in &recovered[0].unfinished {
            let file = named[*unfinished];
            files.borrow_mut().retain(|known| *known != file);
        }
        // One for each at least: on a full disk an operator makes room for it.
        while free.len() < FREE_SEGMENTS_MIN.max(recovered.len()) {
            let is_full = count_segments(&self.disk) >= self.segments_max.get();
            if free.len() >= recovered.len() && is_full {
                break;
            }
            let file = self.disk.add_file(SEGMENT_BYTES);
            files.borrow_mut().push(file);
            free.push(file);
        }
        let Directory { disk, number, .. } = self.directories[place];
        let mut logs = Vec::new();
        for (index, recovered) in (first_index..).zip(recovered) {
            let identity = LogIdentity {
                index,
                disk,
                log: number,
                retention_class: recovered.retention_class,
                segment_bytes: SEGMENT_BYTES,
                boot: BootId(self.boot),
            };
            let mut log = Log::new(identity, recovered.into_state(|file| named[file]));
            log.add_free(FreeSegment { file: free.pop().expect("one for each") });
            logs.push(log);
        }
        free.into_iter().for_each(|file| logs[0].add_free(FreeSegment { file }));
        logs
    }

    fn check_start(&mut self) {
        let cores = self.cores.len();
        self.routes = (0..self.history.shards as usize).map(|shard| shard % cores).collect();
        for index in 0..self.history.shards {
            let (mut committed, mut earliest) = (0, 0);
            for (number, core) in self.cores.iter().enumerate() {
                let Some(place) = core.shards().find(shard_id(index)) else { continue };
                let shard = core.shards().at(place);
                (committed, earliest) = (shard.committed.0, shard.earliest(core.logs()).0);
                self.routes[index as usize] = number;
            }
            self.model.check_start(index, committed, earliest, self.faults.may_lose());
        }
        self.guests.check_start(&self.cores, self.faults.may_lose());
    }

    /// One turn of everything; false when the node was restarted and refused to.
    fn turn(&mut self) -> bool {
        if let Some(runs) = self.step() {
            return runs;
        }
        let (now_us, history) = (self.now_us, self.faults);
        let World { cores, routes, random, model, outcome, .. } = self;
        for producer in &mut self.producers {
            producer.turn(cores, routes, now_us, random, (&mut *model, &mut *outcome));
        }
        for reader in &mut self.readers {
            reader.turn(cores, routes, &history, (&mut *model, &mut *outcome));
        }
        self.guests.turn(cores, &history, random, outcome);
        self.controller.turn(cores, routes, &history, random, (model, outcome));
        true
    }

    /// One turn of the node. Nothing when it goes on; else whether it started again.
    fn step(&mut self) -> Option<bool> {
        self.now_us += 1 + self.random.below(500);
        // Now and then nothing happens for a while.
        if self.random.once_in(20) {
            self.now_us += self.random.below(300_000);
        }
        let time = self.time();
        let mut completions = Vec::new();
        for place in 0..self.cores.len() {
            let core = &mut self.cores[place];
            core.io_mut().poll(&mut completions, Wait::No).expect("a simulated poll works");
            core.turn(time, &mut completions);
            for request in core.take_requests() {
                self.request(place, request);
            }
        }
        for _ in 0..self.random.below(4) {
            if let Some((core, message)) = self.background.step(&mut self.random) {
                self.trace.absorb(self.now_us, 0, format!("{message:?}").as_bytes());
                self.cores[core].tell(message);
            }
        }
        if self.random.once_in(self.history.bit_flips) {
            self.flip_bit();
        }
        let operations: u64 = self.cores.iter().map(|core| core.io().operations()).sum();
        let operations = self.operations_before + operations;
        let failed =
            self.cores.iter().any(|core| core.logs().iter().any(|log| log.failed().is_some()));
        // A node with a failed log goes on answering; its operator restarts it some time.
        let restart = if failed {
            self.random.once_in(20)
        } else {
            self.history.crash_at.is_some_and(|at| operations >= at)
                || self.random.once_in(self.history.crash_every)
        };
        if !restart {
            return None;
        }
        self.history.crash_at = self.history.crash_at.filter(|_| failed);
        self.outcome.failed_logs += u64::from(failed);
        self.crash();
        Some(self.start())
    }

    /// What a core asks of the world outside becomes work of the background.
    fn request(&mut self, core: usize, request: CoreRequest) {
        let seed = self.random.any();
        let errors = self.history.disk_errors;
        match request {
            CoreRequest::FillSegment { log } => {
                let files = self.files_of(core, log);
                let (disk, segments_max) = (self.disk.clone(), self.segments_max.clone());
                self.background.start(core, async move {
                    next_step().await;
                    if count_segments(&disk) >= segments_max.get() {
                        return Some(CoreMessage::SegmentFailed { log, errno: Errno::NO_SPACE });
                    }
                    let file = disk.add_file(SEGMENT_BYTES);
                    files.borrow_mut().push(file);
                    Some(CoreMessage::SegmentReady { log, segment: FreeSegment { file } })
                });
            }
            CoreRequest::RemoveSegment { log, file } => {
                let files = self.files_of(core, log);
                let disk = self.disk.clone();
                self.background.start(core, async move {
                    next_step().await;
                    disk.remove_file(file);
                    files.borrow_mut().retain(|known| *known != file);
                    None
                });
            }
            CoreRequest::Merge { log, job } => {
                let files = self.files(None, errors, seed);
                self.background.start(core, async move {
                    let result = merge(&files, &job).await;
                    Some(CoreMessage::Merged { log, result })
                });
            }
            CoreRequest::Scrub { log, segment } => {
                let files = self.files(None, errors, seed);
                self.background.start(core, async move {
                    let result = scrub(&files, &segment).await;
                    Some(CoreMessage::Scrubbed { log, result })
                });
            }
        }
    }

    /// A bit of what rests flips: anywhere in a segment that is whole. (Of what was written last,
    /// one copy alone cannot tell damage from a write that was never finished.)
    fn flip_bit(&mut self) {
        let core = self.random.below(self.cores.len() as u64) as usize;
        let logs = self.cores[core].logs();
        let log = &logs[self.random.below(logs.len() as u64) as usize];
        let count = log.sealed_count() as u64;
        if count == 0 {
            return;
        }
        let mut sequence = 0;
        for _ in 0..=self.random.below(count) {
            sequence = log.sealed_after(sequence).unwrap_or(sequence);
        }
        if sequence > 0 {
            let (at, bit) = (self.random.below(SEGMENT_BYTES), self.random.below(8) as u8);
            self.disk.flip_bit(log.segment_file(sequence).0, at, bit);
            self.outcome.flips += 1;
        }
    }

    fn crash(&mut self) {
        self.outcome.crashes += 1;
        self.background.clear();
        let mut in_flight = Vec::new();
        for core in std::mem::take(&mut self.cores) {
            let counters = core.counters();
            self.outcome.released += counters.segments_released;
            self.outcome.bytes_copied += counters.bytes_copied;
            self.outcome.archived += counters.extents_archived;
            self.outcome.bytes_scrubbed += counters.bytes_scrubbed;
            self.outcome.damaged += counters.batches_damaged;
            let may_find = self.faults.may_damage() || self.faults.disk_errors > 0;
            assert!(counters.batches_damaged == 0 || may_find, "nothing damages what rests");
            self.operations_before += core.io().operations();
            self.trace.absorb(core.io().trace(), 0, &[]);
            in_flight.extend(core.into_io().stop());
        }
        self.outcome.operations = self.operations_before;
        self.disk.crash(in_flight, &mut self.random);
        self.outcome.trace = self.trace.0;
        self.producers.iter_mut().for_each(SimProducer::lose_all);
        self.readers.iter_mut().for_each(SimReader::lose);
        self.guests.lose_all();
    }

    /// Everything was sent and answered: a last restart, without faults, and judgement.
    fn end(&mut self) {
        self.history = History {
            crash_at: None,
            crash_every: 0,
            cut_recoveries: 0,
            disk_errors: 0,
            fences: 0,
            trims: 0,
            guests: 0,
            bit_flips: 0,
            misdirected_writes: 0,
            ..self.history
        };
        self.crash();
        if !self.start() {
            return;
        }
        if !self.guests.are_gone() {
            // What is deleted gives space back, but an operator makes room for the record of it.
            self.segments_max.set(u64::MAX);
        }
        // Let commands come to their end.
        for _ in 0..TURNS_MAX {
            if self.controller.is_at_rest() && self.guests.are_gone() {
                break;
            }
            assert_eq!(self.step(), None, "nothing fails any more");
            let World { cores, routes, random, model, outcome, .. } = self;
            self.guests.turn(cores, &self.history, random, outcome);
            self.controller.turn(cores, routes, &self.history, random, (model, outcome));
        }
        assert!(self.guests.are_gone(), "a shard can be deleted");
        for shard in 0..self.history.shards {
            self.judge(shard);
        }
        let logs = || self.cores.iter().flat_map(|core| core.logs());
        self.outcome.segments = logs().map(|log| log.sealed_count() as u64).sum();
        self.outcome.logs = logs().count() as u64;
        let allowed = self.outcome.segments + self.outcome.logs * 10;
        let files = count_segments(&self.disk);
        assert!(files <= allowed, "{files} segments on the disks, {allowed} allowed");
    }

    /// Reads a shard through the node and holds it against the model.
    fn judge(&mut self, shard: u32) {
        let (mut next, mut found) = (None, BTreeMap::new());
        loop {
            let request = FetchRequest {
                shard: shard_id(shard),
                epoch: Epoch(0),
                from: next.map_or(FetchFrom::Earliest, |next| FetchFrom::Offset(Offset(next))),
                bytes_max: 200_000,
                wait_ms: 0,
            };
            // A connection may break here as well.
            let Some((header, payload)) = self.ask(shard, &request) else { continue };
            let answer = FetchAnswer::decode(&payload).expect("a fetch answer");
            if let Err(refusal) = answer.status {
                let damaged = refusal.code == ErrorCode::Corrupt && self.faults.may_damage();
                assert!(damaged, "shard {shard}: committed records can be read: {refusal}");
                self.outcome.refused_reads += 1;
                return;
            }
            for batch in batches_of(&header, &payload) {
                // The first one read may begin before what is kept.
                let expected = next.unwrap_or(batch.first_offset.min(answer.earliest.0));
                assert_eq!(batch.first_offset, expected, "shard {shard}: offsets have no gap");
                self.model.see(shard, batch.first_offset, batch.stored);
                found.insert(batch.first_offset, batch.stored);
                next = Some(batch.first_offset + u64::from(batch.stored.records));
            }
            if header.items == 0 {
                let end = next.unwrap_or(answer.earliest.0);
                assert_eq!(answer.committed.0, end, "everything committed was read");
                self.model.check_earliest(shard, answer.earliest.0);
                self.model.check_all(shard, answer.earliest.0, &found);
                return;
            }
        }
    }

    /// Sends one request on a connection of its own and waits for the answer.
    fn ask(&mut self, shard: u32, request: &FetchRequest) -> Option<(FrameHeader, Vec<u8>)> {
        let mut link = Link::connect(&mut self.cores, self.routes[shard as usize]);
        let frame = small_frame(FrameKind::Fetch, 0, 1, &request.encode());
        link.send(&mut self.cores, &frame);
        for _ in 0..TURNS_MAX {
            assert_eq!(self.step(), None, "nothing fails any more");
            if let Some(answer) = link.take(&mut self.cores)?.pop() {
                link.end(&mut self.cores);
                return Some(answer);
            }
        }
        panic!("no answer comes")
    }
}

fn disk_id(number: u64) -> DiskId {
    DiskId([number as u8 + 1; 16])
}

fn count_segments(disk: &SimDisk) -> u64 {
    disk.sizes().iter().filter(|bytes| **bytes > 0).count() as u64
}
