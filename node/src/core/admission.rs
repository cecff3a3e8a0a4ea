//! Admission: whether a batch may be stored, and where it stands if so.
//!
//! The order of the questions is part of the protocol. A repetition is recognised before
//! anything else could refuse it: its original was stored, and its sender must learn that. Then
//! the tenure, then the sequence, the bytes, and the buckets last, so that what is refused for
//! another reason costs no tokens.

use thalweg_wire::batch::{Batch, BatchHeader, HEADER_BYTES, assign};
use thalweg_wire::control::ExtentState;
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Lsn, ShardId};
use thalweg_wire::produce::Stored;

use super::machine::Core;
use super::shard::ExtentPlace;
use super::throttle::{Cost, Grant, Request};
use crate::io::{Io, Piece};
use crate::log::extent::SequenceVerdict;
use crate::log::segments::Placement;

/// A batch that was stored, or had been: its answer waits for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The log.
    pub log: u32,
    /// What must be durable before the answer leaves.
    pub lsn: Lsn,
    /// Place of the shard.
    pub shard: u32,
    /// Records stored; zero for a repetition.
    pub records: u32,
    /// Bytes of the batch that are on their way with it; zero for a repetition.
    pub bytes: u32,
    /// The answer.
    pub answer: Result<Stored, Refusal>,
}

/// Why a batch was not stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Objection {
    /// As a whole.
    Refused(Refusal),
    /// Of its records, which are independent, the shard's limits take some, and tokens are held for
    /// those.
    Partly {
        /// Whether each is taken.
        taken: Vec<bool>,
        /// How long until the first of the others would be.
        wait_us: u64,
    },
}

impl<R: Into<Refusal>> From<R> for Objection {
    fn from(refusal: R) -> Objection {
        Objection::Refused(refusal.into())
    }
}

impl<I: Io> Core<I> {
    /// Stores the batch in `piece`, or says why not.
    pub(super) fn admit(
        &mut self,
        piece: Piece,
        placement: Placement,
    ) -> Result<Admitted, Objection> {
        let header =
            BatchHeader::decode(self.io.memory().piece(piece)).map_err(|error| error.refusal())?;
        let shard = self.place_of(header.shard)?;
        let place = self.shards.at(shard).newest();
        let verdict = {
            let record = &self.logs[place.log as usize].extent(place.number).record;
            let verdict = record.producers.judge(header.producer, header.sequence);
            match verdict {
                SequenceVerdict::Duplicate(original) => {
                    let answer = Ok(Stored {
                        first_offset: original.first_offset,
                        append_time_ms: original.append_time_ms,
                        duplicate: true,
                    });
                    return Ok(self.admit_again(place.log, shard, answer));
                }
                SequenceVerdict::Forgotten => {
                    let answer = Err(ErrorCode::DuplicateForgotten.into());
                    return Ok(self.admit_again(place.log, shard, answer));
                }
                other => other,
            }
        };
        self.check_tenure(place, &header)?;
        match verdict {
            SequenceVerdict::Gap(expected) => {
                return Err(Refusal::new(ErrorCode::SequenceGap, expected).into());
            }
            SequenceVerdict::Unknown => return Err(ErrorCode::ProducerUnknown.into()),
            _ => {}
        }
        let cost = self.check_bytes(place, header, piece)?;
        let grant = self.check_buckets(shard, &header, piece, cost)?;
        Ok(self.store(shard, place, header, piece, placement, (grant, cost))?)
    }

    /// A repetition: its original was appended before now, and when this is durable, so is that.
    fn admit_again(&mut self, log: u32, shard: u32, answer: Result<Stored, Refusal>) -> Admitted {
        self.counters.duplicates += 1;
        let lsn = self.logs[log as usize].appended();
        Admitted { log, lsn, shard, records: 0, bytes: 0, answer }
    }

    /// The place of a shard, or where else to ask for it.
    pub(super) fn place_of(&self, shard: ShardId) -> Result<u32, Refusal> {
        self.shards.find(shard).ok_or_else(|| match self.placement.core_of(shard) {
            Some(core) if core != self.settings.core => {
                let port = self.settings.ports[core as usize];
                Refusal::new(ErrorCode::WrongCore, u64::from(port))
            }
            _ => ErrorCode::UnknownShard.into(),
        })
    }

    fn check_tenure(&self, place: ExtentPlace, header: &BatchHeader) -> Result<(), Refusal> {
        let record = &self.logs[place.log as usize].extent(place.number).record;
        let current = record.open.extent.epoch;
        if header.epoch != current {
            return Err(Refusal::new(ErrorCode::StaleEpoch, current.0));
        }
        let is_former = record.boot != self.settings.boot;
        if is_former && record.state == ExtentState::Open && self.has_unopened_shards {
            return Err(ErrorCode::NoSpace.into());
        }
        if record.state != ExtentState::Open || is_former {
            return Err(Refusal::new(ErrorCode::ExtentClosed, record.end.0));
        }
        Ok(())
    }

    fn check_bytes(
        &self,
        place: ExtentPlace,
        header: BatchHeader,
        piece: Piece,
    ) -> Result<Cost, Refusal> {
        let range = &self.logs[place.log as usize].extent(place.number).record.open.range;
        let bytes = self.io.memory().piece(piece);
        let body = bytes.get(HEADER_BYTES..header.batch_bytes()).ok_or(ErrorCode::Malformed)?;
        let batch = Batch::check_body(header, body, range).map_err(|error| error.refusal())?;
        Ok(Cost { bytes: batch.charged_bytes(), records: u64::from(header.records) })
    }

    /// Asks the shard's limits, and takes nothing of what a batch needs as a whole.
    fn check_buckets(
        &mut self,
        shard: u32,
        header: &BatchHeader,
        piece: Piece,
        cost: Cost,
    ) -> Result<Grant, Objection> {
        let now_us = self.time.now_us;
        let Some(buckets) = &mut self.shards.at_mut(shard).buckets else {
            return Ok(Grant::Buckets);
        };
        let request = request_of(header);
        let wait_us = match buckets.ask(request, cost, now_us) {
            Ok(grant) => return Ok(grant),
            Err(wait_us) => wait_us,
        };
        self.counters.batches_throttled += 1;
        if !header.is_partial() || header.records == 1 {
            self.counters.records_throttled += u64::from(header.records);
            return Err(Refusal::new(ErrorCode::Throttled, wait_us).into());
        }
        let batch = Batch::check(self.io.memory().piece(piece), &HashRange::FULL)
            .map_err(|error| error.refusal())?;
        let sizes = batch.records().map(|record| (record.key.len() + record.data.len()) as u64);
        let (taken, wait_us) = buckets.hold(request, sizes, now_us);
        self.counters.records_throttled += taken.iter().filter(|taken| !**taken).count() as u64;
        Err(Objection::Partly { taken, wait_us })
    }

    fn store(
        &mut self,
        shard: u32,
        place: ExtentPlace,
        mut header: BatchHeader,
        piece: Piece,
        placement: Placement,
        (grant, cost): (Grant, Cost),
    ) -> Result<Admitted, Refusal> {
        let bytes = piece.bytes as usize;
        self.with_log(place.log, |log, io| log.reserve_batch(io, bytes, placement))?;
        let log = &mut self.logs[place.log as usize];
        if let Some(buckets) = &mut self.shards.at_mut(shard).buckets {
            buckets.take(grant, request_of(&header), cost);
        }
        let record = &log.extent(place.number).record;
        header.first_offset = record.end;
        // Append times never fall within a shard, whatever the wall clock does.
        header.append_time_ms = self.time.wall_ms.max(record.last_append_ms);
        let start = piece.start as usize;
        let bytes = &mut self.io.memory_mut().bytes_mut(piece.buffer)[start..];
        let in_place = bytes.first_chunk_mut::<HEADER_BYTES>().expect("a checked batch");
        assign(in_place, header.first_offset, header.append_time_ms);
        let lsn = match placement {
            Placement::Copied => log.append_copy(&mut self.io, place.number, piece, &header),
            Placement::InPlace => {
                log.append_in_place(&mut self.io, place.number, piece.buffer, &header)
            }
        };
        self.counters.batches_appended += 1;
        self.counters.records_appended += u64::from(header.records);
        self.counters.bytes_appended += u64::from(piece.bytes);
        let answer = Ok(Stored {
            first_offset: header.first_offset,
            append_time_ms: header.append_time_ms,
            duplicate: false,
        });
        let account = self.shards.at(shard).account;
        self.accounts.appended(account, u64::from(piece.bytes), self.time.now_us);
        let (log, records, bytes) = (place.log, header.records, piece.bytes);
        Ok(Admitted { log, lsn, shard, records, bytes, answer })
    }
}

fn request_of(header: &BatchHeader) -> Request {
    Request { producer: header.producer, request_id: header.request_id }
}
