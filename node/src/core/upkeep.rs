//! What a core does for what rests: records that have aged are trimmed, segments in which nothing
//! is kept are released and their files used again or removed, nearly empty ones are copied
//! forward, and everything is read and checked from time to time.
//!
//! A controller trims by command. A node that is its own controller does it by age, whole
//! segments at a time: looking at single batches would read what is about to be thrown away.

use std::collections::HashSet;

use super::machine::{Core, CoreRequest, CoreSettings, Time};
use super::shard::ExtentPlace;
use thalweg_wire::limits::RETENTION_CLASSES;

use crate::io::{Errno, FileId, Io};
use crate::log::merge::{MergeError, Merged};
use crate::log::scrub::ScrubReport;
use crate::log::segments::{FreeSegment, Log};

/// How often a core looks after its segments.
const LOOK_US: u64 = 1_000_000;
/// Shards among which one look finds aged records; it goes on with the others after a while, for
/// commits not to wait for it.
const AGED_SHARDS_MAX: u32 = 10_000;
const LOOK_ON_US: u64 = 20_000;
/// A filled disk is asked again after this long.
const NO_SPACE_RETRY_US: u64 = 5_000_000;
/// A node that has just started has other things to do than to scrub.
const FIRST_SCRUB_US: u64 = 600_000_000;

/// When what is to be done.
#[derive(Debug)]
pub struct Upkeep {
    retention_ms: [Option<u64>; RETENTION_CLASSES as usize],
    merge_after_us: u64,
    archive_records_min: usize,
    scrub_period_us: Option<u64>,
    started: Time,
    next_us: u64,
    /// The shard from which on the look for aged records goes on.
    aged_from: u32,
    first_scrub_us: u64,
    scrubs: Vec<Scrub>,
}

/// Segments that are being zero-filled for a log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filling {
    requested: usize,
    /// When a disk that is full is asked again.
    retry_us: Option<u64>,
}

impl Filling {
    pub(super) fn retry_us(&self) -> Option<u64> {
        self.retry_us
    }
}

/// How far the scrub of a log is.
#[derive(Clone, Copy, Debug)]
struct Scrub {
    /// When the next pass begins, or this one did.
    began_us: u64,
    /// Segments up to this one were scrubbed in this pass.
    after: u64,
    /// The file that is read now.
    reads: Option<FileId>,
}

impl Upkeep {
    /// For `logs` logs, from `started` on.
    #[must_use]
    pub fn new(settings: &CoreSettings, logs: usize, started: Time) -> Upkeep {
        let first_us = settings.scrub_period_us.map_or(0, |period| period.min(FIRST_SCRUB_US));
        let mut upkeep = Upkeep {
            retention_ms: settings.retention_ms,
            merge_after_us: settings.merge_after_us,
            archive_records_min: settings.archive_records_min,
            scrub_period_us: settings.scrub_period_us,
            started,
            next_us: started.now_us,
            aged_from: 0,
            first_scrub_us: first_us,
            scrubs: Vec::new(),
        };
        (0..logs).for_each(|_| upkeep.add_log(started));
        upkeep
    }

    /// Looks after one log more.
    pub(super) fn add_log(&mut self, time: Time) {
        let began_us = time.now_us + self.first_scrub_us;
        self.scrubs.push(Scrub { began_us, after: 0, reads: None });
    }

    /// When to look next.
    #[must_use]
    pub fn next_us(&self) -> u64 {
        self.next_us
    }

    /// What was appended before this to a retention class need not be kept. By a clock that cannot jump: the wall
    /// clock's time at the start, and what the steady clock has counted since. A wall clock that
    /// is set wrongly while the node runs throws no records away.
    fn cutoff_ms(&self, retention_class: u8, now_us: u64) -> Option<u64> {
        let retention_ms = self.retention_ms[usize::from(retention_class)]?;
        let elapsed_ms = (now_us - self.started.now_us) / 1000;
        let now_ms = self.started.wall_ms + elapsed_ms;
        Some(now_ms.saturating_sub(retention_ms))
    }
}

impl<I: Io> Core<I> {
    /// Looks after the segments, if it is time to.
    pub(super) fn look_after_segments(&mut self) {
        let now_us = self.time.now_us;
        if now_us < self.upkeep.next_us {
            return;
        }
        self.upkeep.next_us = now_us + LOOK_US;
        if self.has_unopened_shards {
            // What is refused for want of memory is asked for again as well.
            let _ = self.reopen_shards(&mut 0);
        }
        self.free_left();
        self.trim_aged(now_us);
        for log in 0..self.logs.len() {
            // First, for it is needed seldom, and merges may be wanted at all times.
            self.archive_ended(log);
            let after_us = self.upkeep.merge_after_us;
            if let Some(job) = self.logs[log].begin_merge(now_us, after_us) {
                self.requests.push(CoreRequest::Merge { log: log as u32, job });
            }
            self.scrub_next(log);
        }
    }

    /// Has segments zero-filled for the logs that have too few in wait and none to borrow. Each log
    /// for itself: one disk that is full holds up no other.
    pub(super) fn request_segments(&mut self) {
        let least = self.settings.free_segments_min;
        for place in 0..self.logs.len() {
            while self.logs[place].free_segments() < least && self.lend_segment(place as u32, least)
            {
            }
            let log = &self.logs[place];
            let filling = &mut self.filling[place];
            if filling.retry_us.is_some_and(|due_us| self.time.now_us < due_us) {
                continue;
            }
            filling.retry_us = None;
            if log.failed().is_some() {
                continue;
            }
            // A disk that was full may have space for one, and not for several side by side.
            let missing = least.saturating_sub(log.free_segments());
            let wanted = if log.has_no_space() { missing.min(1) } else { missing };
            for _ in filling.requested..wanted {
                filling.requested += 1;
                self.requests.push(CoreRequest::FillSegment { log: place as u32 });
            }
        }
    }

    /// A segment was zero-filled, or not.
    pub(super) fn filled(&mut self, log: u32, result: Result<FreeSegment, Errno>) {
        let place = log as usize;
        let (filling, log_state) = (&mut self.filling[place], &mut self.logs[place]);
        filling.requested = filling.requested.saturating_sub(1);
        match result {
            Ok(segment) => {
                if log_state.has_no_space() {
                    tracing::info!(log, "there is space for a segment again");
                }
                log_state.add_free(segment);
            }
            Err(errno) => {
                if !log_state.has_no_space() {
                    tracing::warn!(log, %errno, "a segment could not be zero-filled; reads go on");
                }
                log_state.set_no_space();
                filling.retry_us = Some(self.time.now_us + NO_SPACE_RETRY_US);
            }
        }
    }

    /// Gives the places of deleted shards to others, when nobody reads there any more.
    fn free_left(&mut self) {
        if !self.shards.has_left() {
            return;
        }
        let fetched = self.fetches.iter().map(|(_, fetch)| fetch.shard());
        let named: HashSet<u32> = fetched.chain(self.subscriptions.shards()).collect();
        for ExtentPlace { log, number } in self.shards.free_left(|place| named.contains(&place)) {
            self.logs[log as usize].drop_deleted(number);
        }
    }

    /// Lets go of what has aged. A shard's extents in their order, whatever logs they are in: what
    /// is kept of it has no gap.
    fn trim_aged(&mut self, now_us: u64) {
        let cutoffs: Vec<Option<u64>> = (self.logs.iter())
            .map(|log| self.upkeep.cutoff_ms(log.identity().retention_class, now_us))
            .collect();
        let mut has_aged = false;
        for (place, cutoff_ms) in cutoffs.iter().enumerate() {
            let Some(cutoff_ms) = *cutoff_ms else { continue };
            // Without space for its records a trim comes later; without a disk, never.
            let _ = self.with_log(place as u32, |log, io| log.end_aged_segment(io, cutoff_ms));
            has_aged |= self.logs[place].has_aged(cutoff_ms);
        }
        if !has_aged {
            return;
        }
        let all = self.shards.places_count();
        let from = self.upkeep.aged_from.min(all);
        let until = all.min(from + AGED_SHARDS_MAX);
        for shard in from..until {
            self.trim_aged_shard(shard, &cutoffs);
        }
        self.upkeep.aged_from = if until == all { 0 } else { until };
        if until < all {
            self.upkeep.next_us = now_us + LOOK_ON_US;
        }
    }

    fn trim_aged_shard(&mut self, shard: u32, cutoffs: &[Option<u64>]) {
        let mut trimmed = false;
        for at in 0..self.shards.at(shard).extents.len() {
            let ExtentPlace { log, number } = self.shards.at(shard).extents[at];
            let Some(cutoff_ms) = cutoffs[log as usize] else { break };
            if let Some(first_kept) = self.logs[log as usize].aged_until(number, cutoff_ms) {
                let trim = self.with_log(log, |log, io| log.trim(io, number, first_kept));
                let Ok(is_new) = trim else { break };
                trimmed |= is_new;
            }
            let record = &self.logs[log as usize].extent(number).record;
            if record.first_kept < record.end {
                break;
            }
        }
        if trimmed {
            self.forget_extents(shard);
        }
    }

    /// Releases segments in which nothing is kept; uses the files of those released again, or has
    /// them removed.
    pub(super) fn give_back(&mut self, log: usize) {
        let leaving = self.logs[log].leaving_count();
        // Without space for the record that says so, it is done when there is some.
        let taken_in = self.with_log(log as u32, Log::take_in_merged).unwrap_or_default();
        self.counters.bytes_copied += taken_in.batch_bytes;
        self.counters.extents_archived += u64::from(taken_in.records);
        let _ = self.with_log(log as u32, Log::release_empty);
        self.counters.segments_released += (self.logs[log].leaving_count() - leaving) as u64;
        while let Some(file) = self.logs[log].take_released() {
            if !self.logs[log].reuse(file, self.settings.free_segments_max) {
                self.remove_file(log as u32, file);
            }
        }
    }

    fn remove_file(&mut self, log: u32, file: FileId) {
        self.counters.segments_removed += 1;
        self.requests.push(CoreRequest::RemoveSegment { log, file });
    }

    /// Has the records of extents that have ended written aside, if there are enough of them.
    fn archive_ended(&mut self, log: usize) {
        if self.logs[log].needs_snapshot() {
            // Without a segment for it, it is tried again.
            let _ = self.with_log(log as u32, Log::roll);
        }
        let records_min = self.upkeep.archive_records_min;
        if !self.logs[log].wants_archive(records_min) {
            return;
        }
        let mut ended = Vec::new();
        for shard in 0..self.shards.places_count() {
            let [older @ .., _] = &self.shards.at(shard).extents[..] else { continue };
            let here = older.iter().filter(|place| place.log == log as u32);
            ended.extend(here.map(|place| place.number));
        }
        if let Some(job) = self.logs[log].begin_archive(ended, records_min) {
            self.requests.push(CoreRequest::Merge { log: log as u32, job });
        }
    }

    /// A merge came to its end.
    pub(super) fn merged(&mut self, log: u32, result: Result<Merged, MergeError>) {
        if let Some(file) = self.logs[log as usize].end_merge(result) {
            self.remove_file(log, file);
        }
    }

    /// Has the next segment scrubbed, if a pass is under way or due.
    fn scrub_next(&mut self, log: usize) {
        let Some(period_us) = self.upkeep.scrub_period_us else { return };
        let scrub = &mut self.upkeep.scrubs[log];
        if scrub.reads.is_some() || self.time.now_us < scrub.began_us {
            return;
        }
        let Some(sequence) = self.logs[log].sealed_after(scrub.after) else {
            *scrub = Scrub { began_us: scrub.began_us + period_us, after: 0, reads: None };
            return;
        };
        let segment = self.logs[log].stored(sequence);
        let file = FileId(segment.file as u32);
        (scrub.after, scrub.reads) = (sequence, Some(file));
        // Whatever becomes of the segment meanwhile, its file is not used for another.
        self.logs[log].begin_read(file);
        self.requests.push(CoreRequest::Scrub { log: log as u32, segment });
    }

    /// A segment was scrubbed: the next.
    pub(super) fn scrubbed(&mut self, log: u32, result: Result<ScrubReport, Errno>) {
        let file = self.upkeep.scrubs[log as usize].reads.take().expect("a scrub is under way");
        self.logs[log as usize].end_read(file);
        match result {
            Ok(report) => {
                self.counters.bytes_scrubbed += report.bytes;
                self.counters.batches_damaged += report.damaged;
                if report.damaged_archive {
                    let sequence = self.upkeep.scrubs[log as usize].after;
                    tracing::error!(
                        log,
                        sequence,
                        "a scrub found a damaged archive of extents; it is made anew: check the disk"
                    );
                    self.logs[log as usize].give_up_archive(sequence);
                }
            }
            Err(errno) => {
                tracing::error!(log, %errno, "a scrub could not read a segment: check the disk");
                self.counters.batches_damaged += 1;
            }
        }
        self.scrub_next(log as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fairness::IN_FLIGHT_BYTES;
    use crate::io::noop::NoopIo;
    use crate::log::segments::{LogIdentity, LogState};
    use std::sync::Arc;
    use thalweg_wire::ids::{BootId, DiskId};

    const RETENTION_MS: [Option<u64>; 8] =
        [Some(10_000), Some(20_000), None, None, None, None, None, None];

    fn settings() -> CoreSettings {
        CoreSettings {
            core: 0,
            ports: Vec::new(),
            disks: Vec::new(),
            boot: BootId(1),
            min_frame_bytes_per_s: 1,
            connections_max: 1,
            in_flight_bytes: IN_FLIGHT_BYTES,
            free_segments_min: 3,
            free_segments_max: 3,
            retention_ms: RETENTION_MS,
            merge_after_us: 0,
            archive_records_min: 1,
            scrub_period_us: None,
        }
    }

    /// A wall clock set forward by a year made records a year older.
    #[test]
    fn a_jump_of_the_wall_clock_ages_nothing() {
        let started = Time { now_us: 5_000_000, wall_ms: 1_000_000 };
        let upkeep = Upkeep::new(&settings(), 1, started);
        assert_eq!(upkeep.cutoff_ms(0, 5_000_000), Some(990_000));
        assert_eq!(upkeep.cutoff_ms(0, 25_000_000), Some(1_010_000));
        assert_eq!(upkeep.cutoff_ms(1, 25_000_000), Some(1_000_000));
        assert_eq!(upkeep.cutoff_ms(2, 25_000_000), None);
    }

    /// Asks of two logs: how many segments each wants filled at a time.
    fn requests(core: &mut Core<NoopIo>, now_us: u64) -> [usize; 2] {
        core.turn(Time { now_us, wall_ms: 0 }, &mut Vec::new());
        let mut counts = [0, 0];
        for request in core.take_requests() {
            let CoreRequest::FillSegment { log } = request else { panic!("{request:?}") };
            counts[log as usize] += 1;
        }
        counts
    }

    /// One disk that was full put off the others of its core, five seconds at a time; and with
    /// space for one segment, several were filled side by side and none fitted.
    #[test]
    fn a_full_disk_is_asked_for_one_segment_and_holds_up_no_other() {
        let log = |index| {
            let disk = DiskId([index as u8; 16]);
            let (segment_bytes, boot) = (16 << 20, BootId(1));
            let identity =
                LogIdentity { index, disk, log: 0, retention_class: 0, segment_bytes, boot };
            Log::new(identity, LogState::empty(0))
        };
        let io = NoopIo::instant(16 << 20);
        let logs = vec![log(0), log(1)];
        let mut core = Core::new(io, settings(), Arc::default(), logs, Time::default());
        assert_eq!(requests(&mut core, 0), [3, 3]);
        (0..3).for_each(|_| core.filled(0, Err(Errno::NO_SPACE)));
        assert_eq!(requests(&mut core, 3_000_000), [0, 0]);
        (0..3).for_each(|_| core.filled(1, Err(Errno::NO_SPACE)));
        assert_eq!(requests(&mut core, 4_999_999), [0, 0]);
        assert_eq!(requests(&mut core, 5_000_000), [1, 0]);
        core.filled(0, Ok(FreeSegment { file: FileId(1) }));
        assert_eq!(requests(&mut core, 5_000_001), [2, 0], "it is not full any more");
        assert_eq!(requests(&mut core, 8_000_000), [0, 1]);
    }
}
