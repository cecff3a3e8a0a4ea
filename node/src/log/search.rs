//! Finding batches of an extent: by offset or time, in the open segment's index or in footers.

use thalweg_wire::ids::Offset;

use super::footer::Footer;
use super::index::{Location, SegmentIndex, Target};
use super::segments::Log;

/// Where to read a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The batch.
    pub location: Location,
    /// The segment it stands in.
    pub sequence: u64,
}

/// What a search came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// Everything there is, up to the caller's limit.
    Done,
    /// The footer of this segment must be in memory first.
    NeedsFooter(u64),
}

impl Log {
    /// Searches an extent for the target and what follows, below `end`, in order; hands each to
    /// `take` until it answers false. `footers` has the footers in memory.
    pub fn search<'a>(
        &'a self,
        number: u32,
        target: Target,
        end: Offset,
        footers: impl Fn(u64) -> Option<Footer<'a>>,
        mut take: impl FnMut(Found) -> bool,
    ) -> Search {
        let extent = self.extent(number);
        let runs = &extent.runs;
        // The target lies in the last run that begins at or before it. For a time, batches of
        // that very time may end the run before.
        let after = runs.partition_point(|run| match target {
            Target::Offset(offset) => run.first_offset <= offset,
            Target::Time(time_ms) => run.first_time_ms < time_ms,
        });
        for run in &runs[after.saturating_sub(1)..] {
            let sequence = run.sequence;
            let mut go_on = true;
            let mut hand = |location: Location| {
                go_on = location.first_offset < end && take(Found { location, sequence });
                go_on
            };
            if let Some(index) = self.index_in_memory(sequence) {
                index.from(number, target).all(&mut hand);
            } else if let Some(footer) = footers(sequence) {
                footer.from(number, target).all(&mut hand);
            } else {
                return Search::NeedsFooter(sequence);
            }
            if !go_on {
                break;
            }
        }
        Search::Done
    }

    fn index_in_memory(&self, sequence: u64) -> Option<&SegmentIndex> {
        match (&self.open, &self.retiring) {
            (Some(open), _) if open.sequence == sequence => Some(&open.index),
            (_, Some(old)) if old.sequence == sequence => Some(&old.index),
            _ => None,
        }
    }
}
