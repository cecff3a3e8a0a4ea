//! Which shards end and which begin, so that a stream has as many of equal ranges as it was asked
//! for.
//!
//! A split makes a boundary between shards, a merge takes one away. So the fewest shards that live
//! for a short time only come of this: boundaries that are where they should be stay, each missing
//! one is made by a split, each that is too many is taken away by a merge. Splits come first: then
//! a record of the old shards has two generations to follow it, not a chain as long as the stream.
//! They leave off where the number of open shards would exceed what the account may have.
//!
//! What is to be done next follows from the open shards and the goal alone, so that a plan needs no
//! place to be kept: only the steps that are being made are.

use thalweg_wire::hash_range::{HashKey, HashRange};

use super::catalog::Stream;
use super::record::{Intent, NewShard, ReshardStep, Resize, StreamRecord, StreamStatus};

/// Steps that are made together, in one revision. Ours: 16 merges change 48 shards, which fits into
/// a transaction of the store; their parents are closed for as long as all of it takes.
pub const STEPS_MAX: usize = 16;
/// A boundary is where it should be when it is off by no more than this part of a shard. Ours: an
/// inequality of a thousandth is not worth the short-lived shards that its removal costs.
const TOLERANCE: u128 = 1024;

/// The record of a stream whose shards go on towards a goal, from open shards in the order of their
/// hash keys; active again when they are there.
#[must_use]
pub fn resized(record: &StreamRecord, open: &[(u32, HashRange)], resize: Resize) -> StreamRecord {
    let steps = next_steps(open, resize, record.next_shard);
    if steps.is_empty() {
        return StreamRecord { status: StreamStatus::Active, intent: None, ..record.clone() };
    }
    with_steps(record, steps, Some(resize))
}

/// The record of a stream with steps to be made.
#[must_use]
pub fn with_steps(
    record: &StreamRecord,
    steps: Vec<ReshardStep>,
    resize: Option<Resize>,
) -> StreamRecord {
    let children: usize = steps.iter().map(|step| step.children.len()).sum();
    StreamRecord {
        status: StreamStatus::Updating,
        next_shard: record.next_shard + children as u32,
        intent: Some(Intent::Reshard { steps, resize }),
        ..record.clone()
    }
}

/// A shard ends, and two begin: below a hash key within it and from there on.
#[must_use]
pub fn split(shard: u32, range: HashRange, at: HashKey, next_shard: u32) -> ReshardStep {
    let below = HashRange { start: range.start, end: HashKey(at.0 - 1) };
    let above = HashRange { start: at, end: range.end };
    let child = |index, range| NewShard { index, range };
    ReshardStep {
        parents: vec![shard],
        children: vec![child(next_shard, below), child(next_shard + 1, above)],
    }
}

/// Two shards end, the second right behind the first, and one begins.
#[must_use]
pub fn merge(first: (u32, HashRange), second: (u32, HashRange), next_shard: u32) -> ReshardStep {
    let range = HashRange { start: first.1.start, end: second.1.end };
    let children = vec![NewShard { index: next_shard, range }];
    ReshardStep { parents: vec![first.0, second.0], children }
}

/// Whether the second range begins right behind the first.
#[must_use]
pub fn are_adjacent(first: HashRange, second: HashRange) -> bool {
    first.end.0.checked_add(1) == Some(second.start.0)
}

/// A stream's open shards in the order of their hash keys.
#[must_use]
pub fn open_ranges(stream: &Stream) -> Vec<(u32, HashRange)> {
    stream.open_shards().map(|(index, shard)| (index, shard.range)).collect()
}

/// The open shards after some steps.
#[must_use]
pub fn after(open: &[(u32, HashRange)], steps: &[ReshardStep]) -> Vec<(u32, HashRange)> {
    let ended = |index: &u32| steps.iter().any(|step| step.parents.contains(index));
    let children = steps.iter().flat_map(|step| &step.children);
    let mut open: Vec<(u32, HashRange)> = open
        .iter()
        .copied()
        .filter(|(index, _)| !ended(index))
        .chain(children.map(|child| (child.index, child.range)))
        .collect();
    open.sort_unstable_by_key(|(_, range)| range.start);
    open
}

/// Most shards that are open on the way from these to so many.
#[must_use]
pub fn open_on_the_way(open: &[(u32, HashRange)], target: u32) -> u32 {
    open.len() as u32 + Boundaries::compare(open, target).missing.len() as u32
}

/// How many shards are made, short-lived ones among them, on the way from these to so many.
#[must_use]
pub fn made_on_the_way(open: &[(u32, HashRange)], target: u32) -> u32 {
    let Boundaries { missing, excess } = Boundaries::compare(open, target);
    let merges = excess.iter().filter(|excess| **excess).count();
    2 * missing.len() as u32 + merges as u32
}

/// Steps to be made together next, each of other shards; none at the goal.
fn next_steps(open: &[(u32, HashRange)], resize: Resize, next_shard: u32) -> Vec<ReshardStep> {
    let boundaries = Boundaries::compare(open, resize.target);
    let mut steps = splits(open, &boundaries, resize, next_shard);
    if steps.is_empty() {
        steps = merges(open, &boundaries, next_shard);
    }
    steps
}

/// How the boundaries between open shards differ from those that should be.
struct Boundaries {
    /// Where one is missing, in order.
    missing: Vec<HashKey>,
    /// Whether the one before each open shard is too many; never before the first.
    excess: Vec<bool>,
}

impl Boundaries {
    fn compare(open: &[(u32, HashRange)], target: u32) -> Boundaries {
        let mut excess = vec![true; open.len()];
        excess[0] = false;
        let mut missing = Vec::new();
        let tolerance = u128::MAX / u128::from(target) / TOLERANCE;
        for index in 1..target {
            let wanted = HashRange::of_initial_shard(index, target).start;
            let behind = open.partition_point(|(_, range)| range.start < wanted);
            let distance = |at: &usize| open[*at].1.start.0.abs_diff(wanted.0);
            let near = [behind - 1, behind].into_iter();
            let nearest = near.filter(|at| (1..open.len()).contains(at)).min_by_key(distance);
            match nearest.filter(|at| distance(at) <= tolerance) {
                Some(at) => excess[at] = false,
                None => missing.push(wanted),
            }
        }
        Boundaries { missing, excess }
    }

    /// Those that are missing within a range.
    fn missing_in(&self, range: HashRange) -> &[HashKey] {
        let from = self.missing.partition_point(|key| *key <= range.start);
        let to = self.missing.partition_point(|key| *key <= range.end);
        &self.missing[from..to]
    }
}

/// As many splits as there may be open shards. Where a shard lacks several boundaries the middle
/// one comes first.
fn splits(
    open: &[(u32, HashRange)],
    boundaries: &Boundaries,
    resize: Resize,
    next_shard: u32,
) -> Vec<ReshardStep> {
    let room = (resize.open_max as usize).saturating_sub(open.len()).min(STEPS_MAX);
    let mut indexes = (next_shard..).step_by(2);
    let lacking = open.iter().filter_map(|(index, range)| {
        let missing = boundaries.missing_in(*range);
        Some((*index, *range, *missing.get(missing.len() / 2)?))
    });
    let steps =
        lacking.zip(&mut indexes).map(|((index, range, at), child)| split(index, range, at, child));
    steps.take(room).collect()
}

/// Merges of neighbours, each shard in one at most.
fn merges(open: &[(u32, HashRange)], boundaries: &Boundaries, next_shard: u32) -> Vec<ReshardStep> {
    let is_whole = |at: usize| boundaries.missing_in(open[at].1).is_empty();
    let mut pairs = Vec::new();
    let mut at = 1;
    while at < open.len() && pairs.len() < STEPS_MAX {
        if boundaries.excess[at] && is_whole(at - 1) && is_whole(at) {
            pairs.push(at);
            at += 1;
        }
        at += 1;
    }
    if pairs.is_empty() {
        // Shards are still to be split, and there may be no more of them: one has to go first.
        pairs.extend(boundaries.excess.iter().position(|excess| *excess));
    }
    let steps = pairs.into_iter().zip(next_shard..);
    steps.map(|(at, child)| merge(open[at - 1], open[at], child)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn equal(count: u32) -> Vec<(u32, HashRange)> {
        (0..count).map(|index| (index, HashRange::of_initial_shard(index, count))).collect()
    }

    /// Goes all the way; answers the open shards at the end, how many were made, how many were open
    /// at most, and the longest line of descent.
    struct Way {
        open: Vec<(u32, HashRange)>,
        made: u32,
        open_max: u32,
        generations: u32,
    }

    fn go(start: &[(u32, HashRange)], target: u32, open_max: u32) -> Way {
        let resize = Resize { target, open_max };
        let first = start.iter().map(|(index, _)| index + 1).max().expect("some shards");
        let mut way =
            Way { open: start.to_vec(), made: 0, open_max: start.len() as u32, generations: 0 };
        let mut ages = std::collections::HashMap::<u32, u32>::new();
        loop {
            let steps = next_steps(&way.open, resize, first + way.made);
            if steps.is_empty() {
                return way;
            }
            assert!(steps.len() <= STEPS_MAX);
            let mut ended = std::collections::HashSet::new();
            for step in &steps {
                let age = step.parents.iter().map(|parent| ages.get(parent).unwrap_or(&0)).max();
                let age = age.expect("a parent") + 1;
                for parent in &step.parents {
                    assert!(way.open.iter().any(|(index, _)| index == parent), "it is open");
                    assert!(ended.insert(*parent), "it ends once");
                }
                assert!(matches!((step.parents.len(), step.children.len()), (1, 2) | (2, 1)));
                for child in &step.children {
                    assert_eq!(child.index, first + way.made, "indexes count on");
                    way.made += 1;
                    ages.insert(child.index, age);
                    way.generations = way.generations.max(age);
                }
            }
            way.open = after(&way.open, &steps);
            let mut next = 0_u128;
            for (_, range) in &way.open {
                assert_eq!(range.start.0, next, "they tile");
                assert!(range.start <= range.end);
                next = range.end.0.wrapping_add(1);
            }
            assert_eq!(next, 0, "they tile to the end");
            way.open_max = way.open_max.max(way.open.len() as u32);
            assert!(way.made < 100_000, "it ends");
        }
    }

    fn assert_equal_ranges(open: &[(u32, HashRange)], count: u32) {
        assert_eq!(open.len(), count as usize);
        let width = u128::MAX / u128::from(count);
        for (_, range) in open {
            let off = (range.end.0 - range.start.0).abs_diff(width);
            assert!(off <= width / 500, "{range:?} is off by {off}");
        }
    }

    #[test]
    fn doubling_and_halving_make_no_short_lived_shards() {
        // Powers of two and what is not: their boundaries differ by rounding only.
        for count in [1, 2, 3, 5, 7, 64, 1000] {
            let up = go(&equal(count), 2 * count, u32::MAX);
            assert_equal_ranges(&up.open, 2 * count);
            assert_eq!((up.made, up.generations), (2 * count, 1), "{count}");
            let down = go(&equal(2 * count), count, u32::MAX);
            assert_equal_ranges(&down.open, count);
            assert_eq!((down.made, down.generations), (count, 1), "{count}");
        }
    }

    #[test]
    fn other_counts_cost_a_split_a_new_boundary_and_a_merge_an_old_one() {
        // (from, to, made): 4 to 5 as the service does it, 15 shards in all (moto's tests).
        for (from, to, made) in [(4, 5, 11), (4, 6, 2 * 4 + 2), (5, 3, 2 * 2 + 4), (10, 15, 20 + 5)]
        {
            let way = go(&equal(from), to, u32::MAX);
            assert_equal_ranges(&way.open, to);
            assert_eq!(way.made, made, "{from} to {to}");
            assert!(way.generations <= 3, "{from} to {to}: {}", way.generations);
            assert_eq!(way.open_max.max(from), open_on_the_way(&equal(from), to));
        }
    }

    #[test]
    fn what_is_equal_already_stays() {
        for count in [1, 2, 3, 100] {
            assert_eq!(go(&equal(count), count, count).made, 0);
        }
    }

    #[test]
    fn no_more_are_open_than_may_be() {
        for (from, to) in [(4, 5), (5, 4), (10, 13), (13, 10), (7, 14), (100, 99)] {
            for room in 0..3 {
                let open_max = from.max(to) + room;
                let way = go(&equal(from), to, open_max);
                assert_equal_ranges(&way.open, to);
                assert!(way.open_max <= open_max, "{from} to {to}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_the_ranges_they_become_equal(
            starts in proptest::collection::btree_set(1..u128::MAX, 0..40),
            target in 1..60_u32,
            room in 0..20_u32,
        ) {
            let mut starts: Vec<u128> = starts.into_iter().collect();
            starts.insert(0, 0);
            let ends = starts[1..].iter().map(|start| start - 1).chain([u128::MAX]);
            let ranges = starts.iter().zip(ends).map(|(start, end)| HashRange {
                start: HashKey(*start),
                end: HashKey(end),
            });
            let open: Vec<_> = (0..).zip(ranges).collect();
            let open_max = target.max(open.len() as u32) + room;
            let way = go(&open, target, open_max);
            assert_equal_ranges(&way.open, target);
            assert!(way.open_max <= open_max);
            prop_assert_eq!(way.made, made_on_the_way(&open, target));
        }
    }

    #[test]
    fn a_record_follows_its_steps() {
        let record: StreamRecord = serde_json::from_value(serde_json::json!({
            "version": 1, "id": 1, "created_ms": 0, "status": "ACTIVE", "intent": null,
            "next_shard": 2, "mode": "PROVISIONED", "retention_hours": 24, "max_record_kib": 1024,
        }))
        .expect("a record");
        let resize = Resize { target: 4, open_max: 10 };
        let updating = resized(&record, &equal(2), resize);
        assert_eq!((updating.status, updating.next_shard), (StreamStatus::Updating, 6));
        let Some(Intent::Reshard { steps, resize: Some(goal) }) = &updating.intent else {
            panic!("{updating:?}")
        };
        assert_eq!(*goal, resize);
        let done = resized(&updating, &after(&equal(2), steps), resize);
        assert_eq!((done.status, done.intent, done.next_shard), (StreamStatus::Active, None, 6));
    }
}
