//! How much space a node that gives space back may take.

use std::collections::VecDeque;
use std::time::Duration;

use crate::settings::Soak;

/// Segments of each log beyond those that hold what was written lately: the open one; the one
/// before it in which a part has aged; a merged one of which a part has; one that is being merged
/// into; one that a scrub still reads; five in wait (three, and two more that are kept); three
/// that were asked for before others came back.
const ALLOWED_SEGMENTS: u64 = 13;
/// Segments of each log beyond those that are written, where none is given back: as above without
/// what comes from giving back.
pub const SPARE_SEGMENTS: u64 = 6;
/// Records stay for so long beyond their time: a core looks once a second, a segment that is being
/// copied waits for that, and the file of one that was released for its removal.
const LAG: Duration = Duration::from_secs(5);
/// The end of a segment stays empty where the next batch does not fit; its footer is not counted
/// with the batches.
const FILLED_SHARE: f64 = 0.95;

/// What a node's files may take at most: what it wrote within the retention, and an allowance.
#[derive(Debug)]
pub struct DiskBound {
    /// The allowance.
    pub allowance_bytes: u64,
    retention: Duration,
    /// When how much had been written, the oldest first; one older than what counts.
    written: VecDeque<(Duration, u64)>,
}

impl DiskBound {
    /// Of the node of this run.
    #[must_use]
    pub fn new(settings: &Soak) -> DiskBound {
        DiskBound {
            allowance_bytes: ALLOWED_SEGMENTS
                * settings.common.logs() as u64
                * settings.segment_bytes,
            retention: Duration::from_secs(settings.retention_s),
            written: VecDeque::from([(Duration::ZERO, 0)]),
        }
    }

    /// For how long what was written counts.
    #[must_use]
    pub fn counted_for(&self) -> Duration {
        self.retention + LAG
    }

    /// What the files may take at `now`, when so many bytes have been written since the start.
    pub fn allowed(&mut self, now: Duration, written: u64) -> u64 {
        self.written.push_back((now, written));
        let from = now.saturating_sub(self.counted_for());
        while self.written.get(1).is_some_and(|(at, _)| *at <= from) {
            self.written.pop_front();
        }
        let (_, before) = self.written[0];
        ((written - before) as f64 / FILLED_SHARE) as u64 + self.allowance_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_lately_counts() {
        let mut bound = DiskBound {
            allowance_bytes: 1000,
            retention: Duration::from_secs(10),
            written: VecDeque::from([(Duration::ZERO, 0)]),
        };
        let mut allowed = |at_s, written| bound.allowed(Duration::from_secs(at_s), written);
        let worth = |bytes: f64| (bytes / FILLED_SHARE) as u64;
        assert_eq!(allowed(1, 100), 1000 + worth(100.0));
        assert_eq!(allowed(15, 1500), 1000 + worth(1500.0), "all of it is younger than 15 s");
        assert_eq!(allowed(16, 1600), 1000 + worth(1500.0), "what came in the first second is not");
        assert_eq!(allowed(60, 1600), 1000, "nothing was written any more");
        assert!(bound.written.len() <= 2, "what does not count is forgotten");
    }
}
