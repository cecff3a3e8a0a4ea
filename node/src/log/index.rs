//! Where the batches of the open segment stand: in memory, bounded, filled as they are appended.
//!
//! One table serves all extents. An extent's entries form a chain backward; each entry also
//! points far back (the "jump pointers" of a skew-binary list: Myers, "An applicative
//! random-access stack", 1983), so that an offset or a time is found in logarithmic steps though
//! entries are only ever added.

use std::collections::HashMap;

use thalweg_wire::ids::{Lsn, Offset};

const NONE: u32 = u32::MAX;

/// Where a batch stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// Records in it.
    pub records: u32,
    /// Bytes of the batch, without its frame's header.
    pub batch_bytes: u32,
    /// Where its frame begins.
    pub lsn: Lsn,
    /// When it was taken, milliseconds since 1970.
    pub append_time_ms: u64,
}

impl Location {
    /// The offset after its last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.first_offset.after(u64::from(self.records))
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    location: Location,
    previous: u32,
    jump: u32,
    depth: u32,
    next: u32,
}

/// First and last entry of an extent.
#[derive(Clone, Copy, Debug)]
struct Chain {
    first: u32,
    last: u32,
}

/// What is looked for in a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The batch that holds this offset.
    Offset(Offset),
    /// The first batch taken at or after this time.
    Time(u64),
}

impl Target {
    /// Whether `location` lies wholly before the target. Along a chain this turns from true to
    /// false once.
    #[must_use]
    pub fn is_after(self, location: &Location) -> bool {
        match self {
            Target::Offset(offset) => location.end_offset() <= offset,
            Target::Time(time_ms) => location.append_time_ms < time_ms,
        }
    }
}

/// The batches of one segment.
#[derive(Debug)]
pub struct SegmentIndex {
    entries: Vec<Entry>,
    chains: HashMap<u32, Chain>,
    entries_max: usize,
}

impl SegmentIndex {
    /// An empty index with room for `entries_max` batches.
    #[must_use]
    pub fn new(entries_max: usize) -> SegmentIndex {
        let entries = Vec::with_capacity(entries_max);
        SegmentIndex { entries, chains: HashMap::new(), entries_max }
    }

    /// Whether no further batch fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.entries_max
    }

    /// Batches in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Extents in it.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.chains.len()
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.chains.clear();
    }

    /// Whether a batch can be added: there is room, and it follows the extent's last one.
    #[must_use]
    pub fn takes(&self, extent: u32, location: &Location) -> bool {
        let follows = |chain: &Chain| {
            let last = &self.entries[chain.last as usize].location;
            last.end_offset() == location.first_offset
                && last.append_time_ms <= location.append_time_ms
        };
        !self.is_full() && self.chains.get(&extent).is_none_or(follows)
    }

    /// Adds the next batch of an extent.
    ///
    /// # Panics
    /// When the index is full, or the batch does not follow the extent's last one.
    pub fn push(&mut self, extent: u32, location: Location) {
        assert!(!self.is_full(), "a segment is left before its index is full");
        let place = self.entries.len() as u32;
        let chain = self.chains.entry(extent).or_insert(Chain { first: place, last: NONE });
        let previous = std::mem::replace(&mut chain.last, place);
        let (jump, depth) = match self.entries.get(previous as usize).copied() {
            None => (NONE, 0),
            Some(last) => {
                assert_eq!(last.location.end_offset(), location.first_offset);
                assert!(last.location.append_time_ms <= location.append_time_ms);
                (self.jump_behind(previous, &last), last.depth + 1)
            }
        };
        if previous != NONE {
            self.entries[previous as usize].next = place;
        }
        self.entries.push(Entry { location, previous, jump, depth, next: NONE });
    }

    /// Where the entry after `previous` jumps: over both of its jumps when they are of one
    /// length, else to itself.
    fn jump_behind(&self, previous: u32, last: &Entry) -> u32 {
        if last.jump == NONE {
            return previous;
        }
        let jump = &self.entries[last.jump as usize];
        let same = jump.jump != NONE
            && last.depth - jump.depth == jump.depth - self.entries[jump.jump as usize].depth;
        if same { jump.jump } else { previous }
    }

    /// The first batch of an extent that does not lie before the target, and those after it;
    /// nothing when all lie before it.
    pub fn from(&self, extent: u32, target: Target) -> impl Iterator<Item = Location> + '_ {
        let start = self.chains.get(&extent).map_or(NONE, |chain| self.find(chain, target));
        let mut place = start;
        std::iter::from_fn(move || {
            let entry = self.entries.get(place as usize)?;
            place = entry.next;
            Some(entry.location)
        })
    }

    fn find(&self, chain: &Chain, target: Target) -> u32 {
        if target.is_after(&self.entries[chain.last as usize].location) {
            return NONE;
        }
        // Back while the place reached does not lie before the target.
        let mut place = chain.last;
        loop {
            let entry = &self.entries[place as usize];
            let reaches =
                |to: u32| to != NONE && !target.is_after(&self.entries[to as usize].location);
            if reaches(entry.jump) {
                place = entry.jump;
            } else if reaches(entry.previous) {
                place = entry.previous;
            } else {
                return place;
            }
        }
    }

    /// Every extent with its batches in order; extents in the order of their numbers.
    pub fn by_extent(&self) -> impl Iterator<Item = (u32, impl Iterator<Item = Location> + '_)> {
        let mut chains: Vec<(u32, u32)> =
            self.chains.iter().map(|(extent, chain)| (*extent, chain.first)).collect();
        chains.sort_unstable();
        chains.into_iter().map(move |(extent, first)| {
            let mut place = first;
            let locations = std::iter::from_fn(move || {
                let entry = self.entries.get(place as usize)?;
                place = entry.next;
                Some(entry.location)
            });
            (extent, locations)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(first: u64, records: u32, time_ms: u64) -> Location {
        Location {
            first_offset: Offset(first),
            records,
            batch_bytes: 100,
            lsn: Lsn(first * 64),
            append_time_ms: time_ms,
        }
    }

    #[test]
    fn every_offset_and_time_is_found() {
        let mut index = SegmentIndex::new(3000);
        let mut next = [10_u64, 500];
        for at in 0..1500_u32 {
            for extent in 0..2 {
                let records = at % 3 + 1;
                index.push(extent, location(next[extent as usize], records, u64::from(at / 4)));
                next[extent as usize] += u64::from(records);
            }
        }
        assert!(index.is_full() && !index.takes(0, &location(next[0], 1, 375)));
        for (extent, first) in [(0, 10), (1, 500)] {
            for offset in first..next[extent as usize] {
                let found = index.from(extent, Target::Offset(Offset(offset))).next().unwrap();
                assert!(
                    found.first_offset <= Offset(offset) && Offset(offset) < found.end_offset()
                );
            }
            assert!(
                index.from(extent, Target::Offset(Offset(next[extent as usize]))).next().is_none()
            );
            let all: Vec<_> = index.from(extent, Target::Offset(Offset(0))).collect();
            assert_eq!((all.len(), all[0].first_offset), (1500, Offset(first)));
            for time in 0..375 {
                let found = index.from(extent, Target::Time(time)).next().unwrap();
                assert_eq!(found, all[time as usize * 4], "the first batch of its time");
            }
            assert!(index.from(extent, Target::Time(375)).next().is_none());
        }
        assert!(index.from(2, Target::Offset(Offset(0))).next().is_none());
    }

    #[test]
    fn a_lookup_takes_logarithmic_steps() {
        let mut index = SegmentIndex::new(1 << 16);
        (0..1 << 16).for_each(|at| index.push(0, location(at, 1, 0)));
        let mut steps_max = 0;
        for offset in (0..1 << 16).step_by(997) {
            let target = Target::Offset(Offset(offset));
            let (mut place, mut steps) = (index.chains[&0].last, 0);
            while index.entries[place as usize].location.first_offset > Offset(offset) {
                let entry = &index.entries[place as usize];
                let jump = entry.jump;
                let far = jump != NONE && !target.is_after(&index.entries[jump as usize].location);
                place = if far { jump } else { entry.previous };
                steps += 1;
            }
            steps_max = steps_max.max(steps);
        }
        assert!(steps_max <= 3 * 16, "{steps_max} steps for 65,536 entries");
    }

    #[test]
    fn extents_come_in_order_with_their_batches() {
        let mut index = SegmentIndex::new(4);
        for (extent, first) in [(9, 0), (2, 0), (9, 1), (2, 1)] {
            index.push(extent, location(first, 1, 0));
        }
        let all: Vec<(u32, Vec<u64>)> = index
            .by_extent()
            .map(|(extent, batches)| (extent, batches.map(|at| at.first_offset.0).collect()))
            .collect();
        assert_eq!(all, [(2, vec![0, 1]), (9, vec![0, 1])]);
        index.clear();
        assert!(index.is_empty() && index.extents() == 0);
    }
}
