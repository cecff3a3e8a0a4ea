//! The batcher: records of each shard become batches, by count, bytes and time.
//!
//! It knows neither clocks nor connections: it says which batches are full or have waited long
//! enough, and hands them out when asked.

use std::collections::VecDeque;

use thalweg_wire::build::{BatchBuilder, NewRecord};

/// A batch that takes records.
struct Filling {
    builder: BatchBuilder,
    /// Tells it from the batches of its lane before and after.
    number: u64,
}

/// When a batch has waited long enough.
struct Due {
    at_us: u64,
    lane: usize,
    number: u64,
}

/// See the module.
pub(crate) struct Batcher {
    linger_us: u64,
    /// The batch of each lane that takes records, if any.
    filling: Vec<Option<Filling>>,
    count: usize,
    made: u64,
    /// In the order of time: every batch lingers equally long. An entry whose batch has left in
    /// the meantime is passed over.
    due: VecDeque<Due>,
}

impl Batcher {
    /// Without batches.
    pub(crate) fn new(linger_us: u64) -> Batcher {
        Batcher { linger_us, filling: Vec::new(), count: 0, made: 0, due: VecDeque::new() }
    }

    /// Makes place for lanes up to `lanes`.
    pub(crate) fn resize(&mut self, lanes: usize) {
        self.filling.resize_with(lanes, || None);
    }

    /// Whether no batch takes records.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a record fits the lane's batch; `None` when the lane has none.
    pub(crate) fn fits(&self, lane: usize, record: &NewRecord<'_>) -> Option<bool> {
        self.filling[lane].as_ref().map(|filling| filling.builder.fits(record))
    }

    /// Begins a batch of a lane that has none.
    pub(crate) fn begin(&mut self, lane: usize, builder: BatchBuilder, now_us: u64) {
        debug_assert!(self.filling[lane].is_none());
        let number = self.made;
        self.made += 1;
        self.count += 1;
        self.filling[lane] = Some(Filling { builder, number });
        self.due.push_back(Due { at_us: now_us + self.linger_us, lane, number });
    }

    /// Adds a record that fits.
    pub(crate) fn push(&mut self, lane: usize, record: &NewRecord<'_>) {
        let filling = self.filling[lane].as_mut().expect("a batch was begun");
        filling.builder.push(record);
    }

    /// Takes the lane's batch away.
    pub(crate) fn take(&mut self, lane: usize) -> Option<BatchBuilder> {
        let filling = self.filling[lane].take()?;
        self.count -= 1;
        Some(filling.builder)
    }

    /// Lanes whose batches have waited long enough, each named once.
    pub(crate) fn take_due(&mut self, now_us: u64, lanes: &mut Vec<usize>) {
        while let Some(due) = self.due.front()
            && (due.at_us <= now_us || !self.is_current(due))
        {
            let due = self.due.pop_front().expect("just seen");
            if self.is_current(&due) {
                lanes.push(due.lane);
            }
        }
    }

    /// When the next batch will have waited long enough.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.due.iter().find(|due| self.is_current(due)).map(|due| due.at_us)
    }

    /// Lanes that have a batch.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = usize> + '_ {
        let some = |(lane, filling): (usize, &Option<Filling>)| filling.as_ref().map(|_| lane);
        self.filling.iter().enumerate().filter_map(some)
    }

    fn is_current(&self, due: &Due) -> bool {
        self.filling[due.lane].as_ref().is_some_and(|filling| filling.number == due.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thalweg_wire::build::BatchRoom;
    use thalweg_wire::hash_range::HashKey;

    const ROOM: BatchRoom = BatchRoom { records: 2, key_bytes: 8, data_bytes: 100 };

    fn record(data: &[u8]) -> NewRecord<'_> {
        NewRecord { hash_key: HashKey(1), client_time_ms: 0, key: b"key", data }
    }

    fn due(batcher: &mut Batcher, now_us: u64) -> Vec<usize> {
        let mut lanes = Vec::new();
        batcher.take_due(now_us, &mut lanes);
        lanes
    }

    fn begin(batcher: &mut Batcher, lane: usize, now_us: u64) {
        batcher.begin(lane, BatchBuilder::new(ROOM), now_us);
        batcher.push(lane, &record(b"data"));
    }

    #[test]
    fn a_batch_is_full_by_count_or_by_bytes() {
        let mut batcher = Batcher::new(10);
        batcher.resize(1);
        assert_eq!(batcher.fits(0, &record(b"a")), None);
        begin(&mut batcher, 0, 0);
        assert_eq!(batcher.fits(0, &record(&[0; 96])), Some(true));
        assert_eq!(batcher.fits(0, &record(&[0; 97])), Some(false), "by bytes");
        batcher.push(0, &record(b"b"));
        assert_eq!(batcher.fits(0, &record(b"c")), Some(false), "by count");
        assert_eq!(batcher.take(0).unwrap().records(), 2);
        assert!(batcher.take(0).is_none() && batcher.is_empty());
    }

    #[test]
    fn batches_are_due_in_time_and_once() {
        let mut batcher = Batcher::new(10);
        batcher.resize(3);
        begin(&mut batcher, 0, 0);
        begin(&mut batcher, 2, 5);
        assert_eq!(batcher.next_due_us(), Some(10));
        assert_eq!(due(&mut batcher, 9), []);
        assert_eq!(due(&mut batcher, 10), [0]);
        assert_eq!(due(&mut batcher, 10), [], "named once");
        assert_eq!(batcher.lanes().collect::<Vec<_>>(), [0, 2], "still there until taken");
        assert_eq!(batcher.next_due_us(), Some(15));
        assert_eq!(due(&mut batcher, 100), [2]);
    }

    #[test]
    fn a_batch_that_left_full_does_not_make_the_next_one_due() {
        let mut batcher = Batcher::new(10);
        batcher.resize(1);
        begin(&mut batcher, 0, 0);
        batcher.take(0);
        begin(&mut batcher, 0, 7);
        assert_eq!(batcher.next_due_us(), Some(17));
        assert_eq!(due(&mut batcher, 10), []);
        assert_eq!(due(&mut batcher, 17), [0]);
        assert_eq!(batcher.next_due_us(), None);
    }

    #[test]
    fn what_is_remembered_stays_small_however_many_batches_pass() {
        let mut batcher = Batcher::new(1_000_000);
        batcher.resize(1);
        for now_us in 0..10_000 {
            begin(&mut batcher, 0, now_us);
            batcher.take(0);
            assert_eq!(due(&mut batcher, now_us), []);
        }
        assert!(batcher.due.len() <= 1);
    }
}
