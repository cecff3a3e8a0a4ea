//! What a core is told, and what it asks of the world outside.

use std::ops::RangeInclusive;

use thalweg_wire::ids::{BootId, DiskId};
use thalweg_wire::limits::RETENTION_CLASSES;

use crate::io::{Errno, FileId};
use crate::log::merge::{MergeError, MergeJob, Merged};
use crate::log::scrub::ScrubReport;
use crate::log::segments::FreeSegment;
use crate::log::stored::StoredSegment;

/// Time, as the core is told it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Time {
    /// Microseconds since some moment; never runs back.
    pub now_us: u64,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// What a core is told when it is made.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// Which core of the node.
    pub core: u16,
    /// Port of each core.
    pub ports: Vec<u16>,
    /// The node's disks.
    pub disks: Vec<DiskId>,
    /// This start of the node.
    pub boot: BootId,
    /// See [`crate::config::NodeConfig`].
    pub min_frame_bytes_per_s: u64,
    /// See [`crate::config::NodeConfig`].
    pub connections_max: usize,
    /// Bounds of the bytes of batches that may be on their way when several accounts write.
    pub in_flight_bytes: RangeInclusive<u64>,
    /// Segments that each log should have in wait, zero-filled or used before.
    pub free_segments_min: usize,
    /// Segments that a log keeps in wait at most; the files of others are removed.
    pub free_segments_max: usize,
    /// How long records of each retention class are kept by a node that is its own controller, in
    /// milliseconds; for ever without.
    pub retention_ms: [Option<u64>; RETENTION_CLASSES as usize],
    /// For how long a segment has been nearly empty when it is copied forward, in microseconds.
    pub merge_after_us: u64,
    /// Records of extents that have ended, from which on a log archives them.
    pub archive_records_min: usize,
    /// How often everything stored is read and checked, in microseconds; never without.
    pub scrub_period_us: Option<u64>,
}

/// What a core asks of the world outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CoreRequest {
    /// A zero-filled segment for this log of the core.
    FillSegment {
        /// Index of the log in its core.
        log: u32,
    },
    /// The file of a segment is not needed any more. Nothing is in flight on it.
    RemoveSegment {
        /// Index of the log in its core.
        log: u32,
        /// The file.
        file: FileId,
    },
    /// Segments of a log to merge. Files in the job are named as [`FileId`] names them.
    Merge {
        /// Index of the log in its core.
        log: u32,
        /// What to do.
        job: MergeJob,
    },
    /// A segment to read and check; its file is named as [`FileId`] names it.
    Scrub {
        /// Index of the log in its core.
        log: u32,
        /// The segment.
        segment: StoredSegment,
    },
}

/// What a core is told from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CoreMessage {
    /// A segment was filled.
    SegmentReady {
        /// Index of the log in its core.
        log: u32,
        /// The segment.
        segment: FreeSegment,
    },
    /// A segment could not be filled.
    SegmentFailed {
        /// Index of the log in its core.
        log: u32,
        /// Why.
        errno: Errno,
    },
    /// Segments were merged, or not.
    Merged {
        /// Index of the log in its core.
        log: u32,
        /// What came of it.
        result: Result<Merged, MergeError>,
    },
    /// A segment was scrubbed.
    Scrubbed {
        /// Index of the log in its core.
        log: u32,
        /// What was found.
        result: Result<ScrubReport, Errno>,
    },
    /// The node stops: take nothing more, finish what was taken.
    Stop,
}
