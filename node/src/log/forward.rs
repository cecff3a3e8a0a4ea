//! Which segments are copied forward, and what the log does when they were.
//!
//! Segments of which little is kept, one after the other in what they hold, become one. They are
//! chosen when they have been nearly empty for a while: what is trimmed bit by bit, as everything
//! is that ages, is soon empty by itself and need not be copied.

use std::collections::BTreeMap;

use thalweg_wire::ids::Lsn;

use super::footer::footer_bytes;
use super::format::{FrameKind, SEGMENT_HEADER_BYTES};
use super::merge::{MergeError, MergeJob, Merged, merged_bytes_max};
use super::retention::{Held, RELEASED_BYTES, SEGMENT_ENTRY_BYTES, SegmentEntry};
use super::segments::{AppendRefusal, Log, Run, SEGMENT_BATCHES_MAX, SealedSegment};
use super::stored::StoredSegment;
use crate::config::BLOCK_BYTES;
use crate::io::{FileId, Io};

/// A segment is nearly empty when less than one over this of it is kept.
const SPARSE_SHARE: u64 = 4;
/// Segments that become one, at most.
const MERGED_MAX: usize = 64;

/// A merge under way.
#[derive(Debug)]
struct UnderWay {
    /// Without the records: they went to whoever does it.
    job: MergeJob,
    into: FileId,
    /// Extents whose records are archived by it.
    archived: Vec<u32>,
    /// What came of it, until the log has room to say so.
    merged: Option<Merged>,
}

/// What a log copies forward.
#[derive(Debug, Default)]
pub struct Copying {
    under_way: Option<UnderWay>,
    /// Since when segments are nearly empty, microseconds.
    sparse_since_us: BTreeMap<u64, u64>,
    /// Segments that could not be read: they stay as they are.
    damaged: Vec<u64>,
    /// The disk refused: nothing is copied until the node starts again.
    stopped: bool,
}

/// What came of a segment that was written aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TakenIn {
    /// Bytes of batches that were copied forward.
    pub batch_bytes: u64,
    /// Records of extents that were archived.
    pub records: u32,
}

impl Copying {
    /// Whether a segment is being copied from.
    #[must_use]
    pub fn has(&self, sequence: u64) -> bool {
        self.under_way
            .as_ref()
            .is_some_and(|merge| merge.job.from.iter().any(|from| from.sequence == sequence))
    }
}

/// Segments chosen so far, and what they hold together.
#[derive(Default)]
struct Group {
    sequences: Vec<u64>,
    held: Held,
}

impl Group {
    /// Takes a segment in, if the merged one would have room for it.
    fn take_in(&mut self, sequence: u64, held: &Held, segment_bytes: u64) -> bool {
        let runs = self.held.runs + held.runs;
        let (batches, bytes) = (self.held.batches + held.batches, self.held.bytes + held.bytes);
        let needed = SEGMENT_HEADER_BYTES as u64
            + merged_bytes_max(batches, bytes)
            + BLOCK_BYTES
            + footer_bytes(runs as usize, batches as usize);
        let fits = needed <= segment_bytes
            && batches <= SEGMENT_BATCHES_MAX as u64
            && self.sequences.len() < MERGED_MAX;
        if fits {
            self.sequences.push(sequence);
            self.held = Held { runs, batches, bytes, ..self.held };
        }
        fits
    }
}

impl Log {
    /// Begins a merge if there are segments that have been nearly empty for `after_us`; files in
    /// the job are the ring's.
    pub fn begin_merge(&mut self, now_us: u64, after_us: u64) -> Option<MergeJob> {
        if !self.may_copy() {
            return None;
        }
        let sequences = self.choose(now_us, after_us)?;
        let mut job = self.new_job();
        job.from = sequences.iter().map(|sequence| self.stored(*sequence)).collect();
        job.kept = self
            .extents
            .iter()
            .filter(|(_, extent)| extent.runs.iter().any(|run| sequences.contains(&run.sequence)))
            .map(|(number, extent)| (*number, extent.record.first_kept))
            .collect();
        self.begin_copying(&job, Vec::new());
        Some(job)
    }

    /// Whether the log may write another segment aside now.
    pub(super) fn may_copy(&self) -> bool {
        let stopped = self.copying.stopped || self.failed().is_some();
        // The last free segment is for records, unless no other will come: this brings some.
        let free_min = if self.no_space { 1 } else { 2 };
        !stopped && self.copying.under_way.is_none() && self.free.len() >= free_min
    }

    /// A job without content, for a free segment and under a sequence of its own.
    pub(super) fn new_job(&mut self) -> MergeJob {
        let into = self.free.pop_back().expect("there is a free segment").file;
        self.last_sequence += 1;
        let base = self.next_base;
        self.next_base = Lsn(base.0 + self.identity.segment_bytes);
        MergeJob {
            disk: self.identity.disk,
            log: self.identity.log,
            segment_bytes: self.identity.segment_bytes,
            boot: self.identity.boot,
            sequence: self.last_sequence,
            base,
            into: into.0 as usize,
            from: Vec::new(),
            kept: Vec::new(),
            records: Vec::new(),
        }
    }

    /// A job is given away.
    pub(super) fn begin_copying(&mut self, job: &MergeJob, archived: Vec<u32>) {
        let MergeJob { from, kept, .. } = job;
        let job = MergeJob { from: from.clone(), kept: kept.clone(), records: Vec::new(), ..*job };
        let into = FileId(job.into as u32);
        self.copying.under_way = Some(UnderWay { job, into, archived, merged: None });
    }

    /// A sealed segment as the background reads it; its file is the ring's.
    ///
    /// # Panics
    /// When the log has no such segment.
    #[must_use]
    pub fn stored(&self, sequence: u64) -> StoredSegment {
        let SealedSegment { file, base, trailer, held, .. } = self.sealed[&sequence];
        let is_archive = held.records > 0;
        StoredSegment { file: file.0 as usize, sequence, base, trailer, is_archive }
    }

    /// The longest list of nearly empty segments, one after the other, that fit into one.
    fn choose(&mut self, now_us: u64, after_us: u64) -> Option<Vec<u64>> {
        let segment_bytes = self.identity.segment_bytes;
        let sparse = |held: &Held| held.bytes * SPARSE_SHARE < segment_bytes;
        let mut ordered: Vec<(u64, u64)> =
            self.sealed.iter().map(|(sequence, segment)| (segment.order, *sequence)).collect();
        ordered.sort_unstable();
        let mut since_us = BTreeMap::new();
        let (mut longest, mut group) = (Group::default(), Group::default());
        for (_, sequence) in ordered {
            let held = self.sealed[&sequence].held;
            if held.runs == 0 {
                // It leaves by itself, or is an archive, and parts nothing.
                continue;
            }
            if !sparse(&held)
                || self.lacks_footer(sequence)
                || self.copying.damaged.contains(&sequence)
            {
                group = Group::default();
                continue;
            }
            let began_us = self.copying.sparse_since_us.get(&sequence).copied().unwrap_or(now_us);
            since_us.insert(sequence, began_us);
            if now_us < began_us + after_us {
                group = Group::default();
            } else if !group.take_in(sequence, &held, segment_bytes) {
                group = Group::default();
                group.take_in(sequence, &held, segment_bytes);
            }
            if group.sequences.len() > longest.sequences.len() {
                longest = Group { sequences: group.sequences.clone(), held: group.held };
            }
        }
        self.copying.sparse_since_us = since_us;
        (longest.sequences.len() > 1).then_some(longest.sequences)
    }

    /// A merge came to its end; answers the file that nobody needs any more, if it failed.
    pub fn end_merge(&mut self, result: Result<Merged, MergeError>) -> Option<FileId> {
        let merge = self.copying.under_way.as_mut().expect("a merge is under way");
        match result {
            Ok(merged) => {
                merge.merged = Some(merged);
                None
            }
            Err(error) => {
                tracing::error!(log = self.identity.log, %error, "segments were not merged");
                match error {
                    MergeError::Io(_) => self.copying.stopped = true,
                    MergeError::Damaged { sequence } => self.copying.damaged.push(sequence),
                }
                self.leaving.look_again();
                let UnderWay { job, into, archived, .. } =
                    self.copying.under_way.take().expect("it was looked at");
                self.forget_archive(job.sequence, &archived);
                Some(into)
            }
        }
    }

    /// Lets a merged segment take the place of those it was made of, or an archive count: the frame
    /// that says so is appended. Answers what that was, once.
    ///
    /// # Errors
    /// [`AppendRefusal`]; it is tried again the next time.
    pub fn take_in_merged(&mut self, io: &mut impl Io) -> Result<TakenIn, AppendRefusal> {
        let merge = self.copying.under_way.as_ref();
        let Some((job, merged)) =
            merge.and_then(|merge| Some((&merge.job, merge.merged.as_ref()?)))
        else {
            return Ok(TakenIn::default());
        };
        let order = job.from.first().map_or(job.sequence, |from| self.sealed[&from.sequence].order);
        let entry = SegmentEntry { sequence: job.sequence, end: merged.trailer.end, order };
        let mut payload = Vec::with_capacity(SEGMENT_ENTRY_BYTES + job.from.len() * RELEASED_BYTES);
        entry.encode_into(&mut payload);
        job.from.iter().for_each(|from| payload.extend(from.sequence.to_le_bytes()));
        self.reserve_record(io, payload.len())?;
        self.append_record(io, FrameKind::Merge, 0, &payload);
        let UnderWay { job, into, archived, merged } =
            self.copying.under_way.take().expect("it was looked at");
        let merged = merged.expect("it was looked at");
        let (records, record_bytes) = self.count_archived(job.sequence, &archived);
        self.snapshot_bytes = self.snapshot_bytes.saturating_sub(record_bytes);
        let held = Held { records, last_time_ms: merged.last_time_ms, ..Held::default() };
        let trailer = merged.trailer;
        let segment = SealedSegment { file: into, base: job.base, trailer, order, held };
        self.sealed.insert(job.sequence, segment);
        let mut batch_bytes = 0;
        for part in &merged.parts {
            batch_bytes += u64::from(part.bytes);
            let run = Run {
                sequence: job.sequence,
                first_offset: part.first_offset,
                first_time_ms: part.first_time_ms,
                batches: part.batches,
                bytes: part.bytes,
            };
            self.replace_runs(part.extent, run, &job);
        }
        job.from.iter().for_each(|from| self.let_leave(from.sequence));
        merged.parts.iter().for_each(|part| {
            // What was trimmed while it was copied.
            if self.extents.contains_key(&part.extent) {
                self.drop_runs(part.extent);
            }
        });
        self.leaving.look_again();
        Ok(TakenIn { batch_bytes, records })
    }

    /// One run takes the place of an extent's runs in the segments that were copied.
    fn replace_runs(&mut self, number: u32, run: Run, job: &MergeJob) {
        let copied = |run: &Run| job.from.iter().any(|from| from.sequence == run.sequence);
        // It may have been forgotten, or trimmed beyond, while it was copied.
        let Some(extent) = self.extents.get_mut(&number) else { return };
        let Some(start) = extent.runs.iter().position(copied) else { return };
        let count = extent.runs[start..].iter().take_while(|run| copied(run)).count();
        let replaced: Vec<Run> = extent.runs.splice(start..start + count, [run]).collect();
        debug_assert!(!extent.runs[start + 1..].iter().any(copied), "they lie together");
        let held = |log: &mut Log, sequence: u64, change: &mut dyn FnMut(&mut Held)| {
            change(&mut log.sealed.get_mut(&sequence).expect("it counts").held);
        };
        for old in replaced {
            held(self, old.sequence, &mut |held| held.let_go(&old));
        }
        held(self, run.sequence, &mut |held| held.take_in(&run));
    }
}
