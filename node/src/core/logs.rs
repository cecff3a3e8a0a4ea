//! Which of a core's logs an extent goes to. A directory of a disk has one for each retention class
//! in use, so that what is let go together lies together and little is copied forward. They share
//! the directory's files: one that lacks a segment is lent another's before one is zero-filled.

use std::collections::VecDeque;

use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::ids::DiskId;

use super::machine::Core;
use super::reads::Reading;
use super::upkeep::Filling;
use crate::io::Io;
use crate::log::segments::{Log, LogIdentity, LogState};

impl<I: Io> Core<I> {
    /// The log that a new shard of this class goes to: in a directory on the disk that was named,
    /// else in the one with the fewest extents.
    pub(super) fn log_for(
        &mut self,
        replicas: &[DiskId],
        retention_class: u8,
    ) -> Result<u32, Refusal> {
        let none = DiskId([0; 16]);
        let named = replicas[0];
        // Every directory has a log of class 0.
        let on_disk: Vec<u32> = (0..)
            .zip(&self.logs)
            .filter(|(_, log)| log.identity().retention_class == 0)
            .filter(|(_, log)| named == none || log.identity().disk == named)
            .map(|(place, _)| place)
            .collect();
        let extents = |place: u32| -> usize {
            self.in_directory_of(place).map(|log| self.logs[log as usize].extents().len()).sum()
        };
        // Extents differ in size: a log may be full of fewer than another has room for.
        let is_full = |place: u32| {
            let there = self.log_of_class(place, retention_class);
            there.is_some_and(|log| self.logs[log as usize].check_extents().is_err())
        };
        let working = on_disk.iter().copied().filter(|place| self.works(*place));
        let place = working.min_by_key(|place| (is_full(*place), extents(*place)));
        // A log may work after a restart; another disk never will be there.
        let why = if on_disk.is_empty() { ErrorCode::Conflict } else { ErrorCode::LogFailed };
        let place = place.ok_or_else(|| Refusal::from(why))?;
        Ok(self.log_beside(place, retention_class))
    }

    /// How many new shards of class 0 can be opened now.
    pub(super) fn room_shards(&self) -> u64 {
        let logs = (0..).zip(&self.logs).filter(|(_, log)| log.identity().retention_class == 0);
        logs.filter(|(place, _)| self.works(*place)).map(|(_, log)| log.extents_room()).sum()
    }

    /// Whether all logs in the directory of this one do.
    fn works(&self, place: u32) -> bool {
        self.in_directory_of(place).all(|log| self.logs[log as usize].failed().is_none())
    }

    /// The log of this class in the directory of another; a new one if it has none.
    pub(super) fn log_beside(&mut self, place: u32, retention_class: u8) -> u32 {
        let there = self.log_of_class(place, retention_class);
        there.unwrap_or_else(|| self.add_log(place, retention_class))
    }

    fn log_of_class(&self, place: u32, retention_class: u8) -> Option<u32> {
        let is_of_class =
            |log: &u32| self.logs[*log as usize].identity().retention_class == retention_class;
        self.in_directory_of(place).find(is_of_class)
    }

    fn add_log(&mut self, beside: u32, retention_class: u8) -> u32 {
        let beside = &self.logs[beside as usize];
        let index = self.logs.len() as u32;
        let identity = LogIdentity { index, retention_class, ..*beside.identity() };
        let mut log = Log::new(identity, LogState::empty(retention_class));
        if beside.has_no_space() {
            log.set_no_space();
        }
        self.logs.push(log);
        self.pending.push(VecDeque::new());
        self.reading.push(Reading::default());
        self.filling.push(Filling::default());
        self.sync_began_us.push(None);
        self.upkeep.add_log(self.time);
        // Enough to begin with; a sibling keeps one for records.
        self.lend_segment(index, 1);
        index
    }

    /// Gives a log a segment of a sibling that keeps so many; false when none can.
    pub(super) fn lend_segment(&mut self, to: u32, kept: usize) -> bool {
        let richest = self
            .in_directory_of(to)
            .filter(|log| *log != to)
            .max_by_key(|log| self.logs[*log as usize].free_segments());
        let lender = richest.map(|log| &mut self.logs[log as usize]);
        let Some(segment) = lender.and_then(|log| log.lend_free(kept)) else { return false };
        self.logs[to as usize].add_free(segment);
        true
    }

    /// The logs in the directory of this one, itself among them.
    pub(super) fn in_directory_of(&self, place: u32) -> impl Iterator<Item = u32> + use<'_, I> {
        let directory = |log: &LogIdentity| (log.disk, log.log);
        let wanted = directory(self.logs[place as usize].identity());
        (0..)
            .zip(&self.logs)
            .filter(move |(_, log)| directory(log.identity()) == wanted)
            .map(|(place, _)| place)
    }
}
