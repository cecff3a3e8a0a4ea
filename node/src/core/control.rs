//! Commands of a controller, and what a core says of itself.
//!
//! Every change is a frame in the log, and its answer waits until that is durable. A command
//! that was obeyed before is answered as then: a controller that lost an answer asks again.

use thalweg_wire::codec::align_up;
use thalweg_wire::control::{
    ControlAnswer, DeleteShard, DescribeRequest, ExtentState, FenceExtent, NodeDescription,
    OpenExtent, SHARD_DESCRIPTION_BYTES, SealExtent, ShardDescription, TrimShard,
};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{FrameError, FrameHeader, FrameKind};
use thalweg_wire::ids::{Epoch, ExtentId, Lsn, Offset};
use thalweg_wire::limits;

use super::connection::ConnectionKey;
use super::machine::Core;
use super::shard::{Deleted, ExtentPlace, Shard, account_of, range_of};
use super::throttle::Buckets;
use crate::io::{Io, Piece};
use crate::log::extent::{
    EXTENT_END_BYTES, ExtentEnd, ExtentRecord, FORGOTTEN_SHARD_BYTES, Producers, RECORD_BYTES_MAX,
};
use crate::log::format::FrameKind as LogFrameKind;

/// What a command came to: the log and position its answer waits for, the answer's content.
struct Obeyed {
    log: u32,
    lsn: Lsn,
    epoch: Epoch,
    earliest: Offset,
    end: Offset,
    /// Other logs that it was appended to as well.
    others: Vec<u32>,
}

impl<I: Io> Core<I> {
    /// Serves a command or a question.
    pub(super) fn control(&mut self, key: ConnectionKey, header: &FrameHeader, piece: Piece) {
        let payload = self.io.memory().piece(piece).to_vec();
        let result = match header.kind {
            FrameKind::Hello => {
                self.hello(key, header.correlation);
                return;
            }
            FrameKind::Describe => match DescribeRequest::decode(&payload) {
                Ok(request) => return self.describe(key, header.correlation, request),
                Err(error) => Err(error),
            },
            FrameKind::OpenExtent => OpenExtent::decode(&payload).map(|open| self.open(open)),
            FrameKind::FenceExtent => FenceExtent::decode(&payload).map(|fence| self.fence(fence)),
            FrameKind::SealExtent => SealExtent::decode(&payload).map(|seal| self.seal(seal)),
            FrameKind::TrimShard => TrimShard::decode(&payload).map(|trim| self.trim(trim)),
            FrameKind::DeleteShard => {
                DeleteShard::decode(&payload).map(|delete| self.delete(delete))
            }
            kind => Err(FrameError::Payload { kind, what: "it is no command" }),
        };
        let answer = |status, epoch, earliest, end| ControlAnswer { status, epoch, earliest, end };
        match result {
            Err(error) => self.refuse_connection(key, error.refusal()),
            Ok(Ok(obeyed)) => {
                let answer = answer(Ok(()), obeyed.epoch, obeyed.earliest, obeyed.end);
                let Obeyed { log, lsn, others, .. } = obeyed;
                self.answer_when_durable(log, lsn, others, key, header.correlation, answer);
            }
            Ok(Err(refusal)) => {
                self.counters.refusals += 1;
                let answer = answer(Err(refusal), Epoch(0), Offset(0), Offset(0));
                self.answer_control(key, header.correlation, &answer);
            }
        }
    }

    /// Sends the answer to a command.
    pub(super) fn answer_control(
        &mut self,
        key: ConnectionKey,
        correlation: u64,
        answer: &ControlAnswer,
    ) {
        self.answer(key, FrameKind::ControlAnswer, 0, correlation, &answer.encode());
    }

    fn hello(&mut self, key: ConnectionKey, correlation: u64) {
        let description = NodeDescription {
            boot: self.settings.boot,
            core: self.settings.core,
            shards: u32::try_from(self.shards.count()).unwrap_or(u32::MAX),
            room_shards: u32::try_from(self.room_shards()).unwrap_or(u32::MAX),
            ports: self.settings.ports.clone(),
            disks: self.settings.disks.clone(),
        };
        self.answer(key, FrameKind::HelloAnswer, 0, correlation, &description.encode());
    }

    fn describe(&mut self, key: ConnectionKey, correlation: u64, request: DescribeRequest) {
        let mut payload = Vec::new();
        let mut items = 0;
        for shard in self.shards.from(request.from).take(limits::DESCRIBE_SHARDS_MAX as usize) {
            let place = shard.newest();
            let record = &self.logs[place.log as usize].extent(place.number).record;
            let description = ShardDescription {
                extent: record.open.extent,
                state: record.state,
                range: range_of(shard, &self.logs),
                earliest: shard.earliest(&self.logs),
                committed: shard.committed,
                last_append_ms: shard.committed_ms,
            };
            payload.extend(description.encode());
            items += 1;
        }
        debug_assert_eq!(payload.len(), items as usize * SHARD_DESCRIPTION_BYTES);
        self.answer(key, FrameKind::DescribeAnswer, items, correlation, &payload);
    }

    fn open(&mut self, open: OpenExtent) -> Result<Obeyed, Refusal> {
        if (open.copies, open.acks) != (1, 1) {
            return Err(ErrorCode::Unsupported.into());
        }
        let id = open.extent;
        if let Some(shard) = self.shards.find(id.shard) {
            return self.open_again(shard, open);
        }
        let log = self.log_for(&open.replicas, open.retention_class)?;
        let full = |_| Refusal::from(ErrorCode::TooManyShards);
        self.logs[log as usize].check_extents().map_err(full)?;
        let owner = self.placement.claim(id.shard, self.settings.core);
        if owner != self.settings.core {
            let port = self.settings.ports[owner as usize];
            return Err(Refusal::new(ErrorCode::WrongCore, u64::from(port)));
        }
        let (place, lsn) = self.append_open(log, open, Producers::default(), 0)?;
        let buckets = open.limits.as_ref().map(|limits| Buckets::full(limits, self.time.now_us));
        self.shards.insert(Shard {
            id: id.shard,
            extents: vec![place],
            committed: open.first_offset,
            committed_ms: 0,
            buckets,
            waiting: Vec::new(),
            account: self.accounts.place(account_of(&open)),
        });
        let (epoch, first) = (id.epoch, open.first_offset);
        Ok(Obeyed { log, lsn, epoch, earliest: first, end: first, others: Vec::new() })
    }

    /// Opens an extent of a shard that is here already: the same again, or the next.
    fn open_again(&mut self, shard: u32, open: OpenExtent) -> Result<Obeyed, Refusal> {
        if self.shards.deletion_of(shard).is_some() {
            // Whichever core is asked when it is gone may open it anew.
            return Err(ErrorCode::Overloaded.into());
        }
        let place = self.shards.at(shard).newest();
        let log = &self.logs[place.log as usize];
        let record = &log.extent(place.number).record;
        let newest = record.open.extent.epoch;
        if open.extent.epoch == newest {
            if record.open != open || record.boot != self.settings.boot {
                return Err(Refusal::new(ErrorCode::Conflict, newest.0));
            }
            return Ok(self.obeyed(shard, place, log.appended()));
        }
        if open.extent.epoch < newest {
            return Err(Refusal::new(ErrorCode::StaleEpoch, newest.0));
        }
        let older_store = open.store_generation < record.open.store_generation;
        let follows = record.state == ExtentState::Sealed && record.end == open.first_offset;
        if older_store || !follows {
            return Err(Refusal::new(ErrorCode::Conflict, newest.0));
        }
        let (place, lsn) = self.open_next(shard, open)?;
        Ok(self.obeyed(shard, place, lsn))
    }

    /// Opens the extent after a shard's newest, with what the shard knows of its producers. The
    /// newest is sealed by it, where it is not yet, in the same frame of the same log. One that is
    /// sealed may be followed on the log of another retention class.
    pub(super) fn open_next(
        &mut self,
        shard: u32,
        open: OpenExtent,
    ) -> Result<(ExtentPlace, Lsn), Refusal> {
        let older = self.shards.at(shard).newest();
        let record = &self.logs[older.log as usize].extent(older.number).record;
        let (producers, last_append_ms) = (record.producers.clone(), record.last_append_ms);
        let same_limits = record.open.limits == open.limits;
        let log = match record.state {
            ExtentState::Sealed => self.log_after(older, open.retention_class)?,
            _ => older.log,
        };
        let opened = self.append_open(log, open, producers, last_append_ms)?;
        let record = &mut self.logs[older.log as usize].extent_mut(older.number).record;
        record.state = ExtentState::Sealed;
        if log == older.log {
            record.producers = Producers::default();
        }
        let now_us = self.time.now_us;
        self.shards.at_mut(shard).extents.push(opened.0);
        if !same_limits {
            // Other limits start with an empty bucket: no burst for free.
            let buckets = open.limits.as_ref().map(|limits| Buckets::empty(limits, now_us));
            self.shards.set_buckets(shard, buckets);
        }
        self.forget_extents(shard);
        Ok(opened)
    }

    /// The log for what follows a sealed extent. One log does not wait for another: only a durable
    /// seal may be followed in another.
    fn log_after(&mut self, older: ExtentPlace, retention_class: u8) -> Result<u32, Refusal> {
        let log = &self.logs[older.log as usize];
        if log.identity().retention_class == retention_class {
            return Ok(older.log);
        }
        if log.durable() < log.extent(older.number).ended {
            let failed = log.failed().is_some();
            return Err(if failed { ErrorCode::LogFailed } else { ErrorCode::Overloaded }.into());
        }
        Ok(self.log_beside(older.log, retention_class))
    }

    fn append_open(
        &mut self,
        log: u32,
        open: OpenExtent,
        producers: Producers,
        last_append_ms: u64,
    ) -> Result<(ExtentPlace, Lsn), Refusal> {
        let boot = self.settings.boot;
        self.with_log(log, |log, io| log.reserve_record(io, RECORD_BYTES_MAX))?;
        let target = &mut self.logs[log as usize];
        let record = ExtentRecord {
            number: 0,
            open,
            state: ExtentState::Open,
            recovery_epoch: Epoch(0),
            end: open.first_offset,
            first_kept: open.first_offset,
            last_append_ms,
            boot,
            producers,
        };
        let (number, lsn) = target.append_open(&mut self.io, record);
        Ok((ExtentPlace { log, number }, lsn))
    }

    fn fence(&mut self, fence: FenceExtent) -> Result<Obeyed, Refusal> {
        let (shard, place) = self.find_extent(fence.extent, fence.recovery_epoch)?;
        let record = &self.logs[place.log as usize].extent(place.number).record;
        if record.state == ExtentState::Sealed {
            return Ok(self.obeyed(shard, place, self.logs[place.log as usize].appended()));
        }
        let end = record.end;
        self.end_extent(place, ExtentState::Fenced, fence.recovery_epoch, end)
            .map(|lsn| self.obeyed(shard, place, lsn))
    }

    fn seal(&mut self, seal: SealExtent) -> Result<Obeyed, Refusal> {
        let (shard, place) = self.find_extent(seal.extent, seal.recovery_epoch)?;
        let record = &self.logs[place.log as usize].extent(place.number).record;
        match record.state {
            // A seal decides an end that others may have written beyond: only a fence stops that.
            ExtentState::Open => {
                return Err(Refusal::new(ErrorCode::Conflict, seal.extent.epoch.0));
            }
            ExtentState::Sealed if record.end != seal.end => {
                return Err(Refusal::new(ErrorCode::Conflict, seal.extent.epoch.0));
            }
            ExtentState::Sealed => {
                return Ok(self.obeyed(shard, place, self.logs[place.log as usize].appended()));
            }
            ExtentState::Fenced => {}
        }
        if seal.end > record.end || seal.end < record.open.first_offset {
            return Err(Refusal::new(ErrorCode::BeyondEnd, record.end.0));
        }
        // With one copy everything that was acked lies before the fence's end: sealing below
        // what readers saw would take it back.
        if seal.end < self.shards.at(shard).committed && place == self.shards.at(shard).newest() {
            return Err(Refusal::new(ErrorCode::Conflict, seal.extent.epoch.0));
        }
        self.end_extent(place, ExtentState::Sealed, seal.recovery_epoch, seal.end)
            .map(|lsn| self.obeyed(shard, place, lsn))
    }

    /// Stops the extent at once; the frame that says so comes after everything accepted before.
    fn end_extent(
        &mut self,
        place: ExtentPlace,
        state: ExtentState,
        recovery_epoch: Epoch,
        end: Offset,
    ) -> Result<Lsn, Refusal> {
        self.with_log(place.log, |log, io| log.reserve_record(io, EXTENT_END_BYTES))?;
        let log = &mut self.logs[place.log as usize];
        let payload = ExtentEnd { state, recovery_epoch, end }.encode();
        let lsn = log.append_record(&mut self.io, LogFrameKind::End, place.number, &payload);
        let extent = log.extent_mut(place.number);
        let record = &mut extent.record;
        (record.state, record.recovery_epoch, record.end) = (state, recovery_epoch, end);
        extent.ended = lsn;
        Ok(lsn)
    }

    fn trim(&mut self, trim: TrimShard) -> Result<Obeyed, Refusal> {
        let shard = self.place_of(trim.shard)?;
        let committed = self.shards.at(shard).committed;
        if trim.first_kept > committed {
            return Err(Refusal::new(ErrorCode::BeyondEnd, committed.0));
        }
        let newest = self.shards.at(shard).newest();
        let mut others = Vec::new();
        for place in self.shards.at(shard).extents.clone() {
            self.with_log(place.log, |log, io| log.trim(io, place.number, trim.first_kept))?;
            // Also where there was nothing new to say: what says it may not be durable yet.
            if place.log != newest.log && !others.contains(&place.log) {
                others.push(place.log);
            }
        }
        self.forget_extents(shard);
        let lsn = self.logs[newest.log as usize].appended();
        Ok(Obeyed { others, ..self.obeyed(shard, newest, lsn) })
    }

    /// Deletes a shard that has ended. Until that is durable it can be found: whoever does not find
    /// it may rely on that.
    fn delete(&mut self, delete: DeleteShard) -> Result<Obeyed, Refusal> {
        let DeleteShard { shard: id, recovery_epoch } = delete;
        let shard = self.place_of(id)?;
        let newest = self.shards.at(shard).newest();
        let record = &self.logs[newest.log as usize].extent(newest.number).record;
        let (epoch, end) = (record.open.extent.epoch, record.end);
        if recovery_epoch < record.recovery_epoch {
            return Err(Refusal::new(ErrorCode::StaleRecovery, record.recovery_epoch.0));
        }
        if record.state != ExtentState::Sealed {
            return Err(Refusal::new(ErrorCode::Conflict, epoch.0));
        }
        if self.shards.deletion_of(shard).is_none() {
            self.begin_deletion(shard, end)?;
        }
        let after = &self.shards.deletion_of(shard).expect("it has begun").after;
        let is_its = |(log, _): &&(u32, Lsn)| *log == newest.log;
        let (_, lsn) = *after.iter().find(is_its).expect("its log is among them");
        let others = after.iter().map(|(log, _)| *log).filter(|log| *log != newest.log).collect();
        Ok(Obeyed { others, ..self.obeyed(shard, newest, lsn) })
    }

    /// Has the logs forget a shard that ended at `end`.
    fn begin_deletion(&mut self, shard: u32, end: Offset) -> Result<(), Refusal> {
        // Its last records are on their way to the disk.
        if self.shards.at(shard).committed < end {
            return Err(ErrorCode::Overloaded.into());
        }
        let (id, newest) = (self.shards.at(shard).id, self.shards.at(shard).newest());
        self.trim(TrimShard { shard: id, first_kept: end })?;
        let is_empty = self.logs[newest.log as usize].is_gone(newest.number);
        if self.shards.at(shard).extents != [newest] || !is_empty {
            return Err(ErrorCode::Overloaded.into());
        }
        // A log in which the shard was before may remember extents of it that were forgotten
        // since, for nothing in it says so: a start would bring them back. The newest's log is
        // last, so that the shard is here until all others know.
        let mut logs: Vec<u32> = self.in_directory_of(newest.log).collect();
        logs.sort_by_key(|log| *log == newest.log);
        // Not one of them says so when another has no room to.
        for log in &logs {
            self.with_log(*log, |log, io| log.reserve_record(io, FORGOTTEN_SHARD_BYTES))?;
        }
        let mut after = Vec::with_capacity(logs.len());
        for log in logs {
            let number = (log == newest.log).then_some(newest.number);
            self.with_log(log, |log, io| log.forget_shard(io, id, number))?;
            after.push((log, self.logs[log as usize].appended()));
        }
        self.shards.delete(Deleted { place: shard, after });
        Ok(())
    }

    /// Shards that are deleted for good are not found any more.
    pub(super) fn unlist_deleted(&mut self) {
        let logs = &self.logs;
        let unlisted = self.shards.unlist_deleted(|deleted| {
            let is_durable = |(log, lsn): &(u32, Lsn)| logs[*log as usize].durable() >= *lsn;
            deleted.after.iter().all(is_durable)
        });
        unlisted.into_iter().for_each(|shard| self.placement.release(shard));
    }

    /// Forgets the extents of a shard that ended and of which nothing is kept, but for the newest.
    pub(super) fn forget_extents(&mut self, shard: u32) {
        let (logs, extents) = (&mut self.logs, &mut self.shards.at_mut(shard).extents);
        let newest = *extents.last().expect("a shard has an extent");
        extents.retain(|place| {
            *place == newest || !logs[place.log as usize].forget_extent(place.number)
        });
    }

    /// The extent that a command names, unless a later recovery is under way.
    fn find_extent(
        &self,
        extent: ExtentId,
        recovery_epoch: Epoch,
    ) -> Result<(u32, ExtentPlace), Refusal> {
        let shard = self.place_of(extent.shard)?;
        for place in &self.shards.at(shard).extents {
            let record = &self.logs[place.log as usize].extent(place.number).record;
            if record.open.extent == extent {
                if recovery_epoch < record.recovery_epoch {
                    return Err(Refusal::new(ErrorCode::StaleRecovery, record.recovery_epoch.0));
                }
                return Ok((shard, *place));
            }
        }
        Err(ErrorCode::UnknownShard.into())
    }

    fn obeyed(&self, shard: u32, place: ExtentPlace, lsn: Lsn) -> Obeyed {
        let newest = self.shards.at(shard).newest();
        let epoch = self.logs[newest.log as usize].extent(newest.number).record.open.extent.epoch;
        let end = self.logs[place.log as usize].extent(place.number).record.end;
        let earliest = self.shards.at(shard).earliest(&self.logs);
        Obeyed { log: place.log, lsn, epoch, earliest, end, others: Vec::new() }
    }
}

/// A record of the largest size fits a segment of the smallest.
const _: () = assert!(align_up(RECORD_BYTES_MAX as u64, 64) < 1 << 20);
