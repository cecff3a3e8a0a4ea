//! A bundle: the records of one or more calls, in order, that make one batch of a shard.
//!
//! Calls that came while a batch was on its way are joined: their columns are copied together once.
//! Nobody is refused for what another brought. A shard's limits judge each record by itself: what
//! they do not take is taken out. Else a batch is judged as a whole: a bundle that is refused is
//! taken apart, half by half, until each call has been judged by itself.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_wire::batch::HEADER_BYTES;
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom};
use thalweg_wire::limits::{BATCH_RECORDS_MAX, BODY_BYTES_MANY_RECORDS_MAX};
use thalweg_wire::produce::Stored;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::outgoing::LONE_BATCH_BYTES;
use super::writer::{AppendError, Part};

/// Body of a joined batch: above it, joining copies more than a batch of its own costs.
const JOINED_BODY_BYTES_MAX: u64 = 256 << 10;
const _: () = assert!(JOINED_BODY_BYTES_MAX <= BODY_BYTES_MANY_RECORDS_MAX as u64);

/// What a call's records may fill, until they are answered: of its shard, of all.
pub(super) type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What one call has in a bundle.
pub(super) struct CallPart {
    /// All of its records, in order; at least one is in the batch.
    runs: Vec<Run>,
    answer: oneshot::Sender<Vec<Part>>,
    _room: Arc<Room>,
}

/// Records of a call that share their fate.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Run {
    records: u32,
    /// Why they were taken out of the batch; none for those in it.
    refused: Option<AppendError>,
}

impl CallPart {
    /// A call with so many records, and who waits for what becomes of them.
    pub(super) fn new(
        records: u32,
        answer: oneshot::Sender<Vec<Part>>,
        room: Arc<Room>,
    ) -> CallPart {
        CallPart { runs: vec![Run { records, refused: None }], answer, _room: room }
    }

    /// Records in the batch.
    fn records(&self) -> u32 {
        let in_batch = self.runs.iter().filter(|run| run.refused.is_none());
        in_batch.map(|run| run.records).sum()
    }

    /// Takes out those of its records in the batch for which `kept` is false.
    fn keep(&mut self, kept: &[bool], error: &AppendError) {
        let (mut kept, mut runs) = (kept.iter(), Vec::<Run>::new());
        let mut add = |records, refused| match runs.last_mut() {
            Some(run) if run.refused == refused => run.records += records,
            _ => runs.push(Run { records, refused }),
        };
        for run in &self.runs {
            if run.refused.is_some() {
                add(run.records, run.refused);
                continue;
            }
            for kept in kept.by_ref().take(run.records as usize) {
                add(1, (!kept).then_some(*error));
            }
        }
        self.runs = runs;
    }

    /// Answers the call, if somebody still waits for it; `result_of` says what became of so many
    /// records, the next ones in the batch.
    fn tell(self, mut result_of: impl FnMut(u32) -> Result<Stored, AppendError>) {
        let part = |run: &Run| Part {
            records: run.records,
            result: match run.refused {
                Some(error) => Err(error),
                None => result_of(run.records),
            },
        };
        // Who waited may be gone.
        let _ = self.answer.send(self.runs.iter().map(part).collect());
    }
}

/// See the module.
pub(super) struct Bundle {
    /// Closed.
    builder: Arc<BatchBuilder>,
    calls: Vec<CallPart>,
    /// Whether it was taken apart: it is not joined again.
    pub(super) is_apart: bool,
    /// Its name with the shard's limits: tokens are held under it.
    pub(super) request_id: u64,
    /// When the oldest of its calls came.
    pub(super) since_us: u64,
}

impl Bundle {
    /// Of one call.
    pub(super) fn new(builder: BatchBuilder, call: CallPart, now_us: u64) -> Bundle {
        let (builder, calls) = (Arc::new(builder), vec![call]);
        Bundle { builder, calls, is_apart: false, request_id: 0, since_us: now_us }
    }

    /// The batch.
    pub(super) fn builder(&self) -> &BatchBuilder {
        &self.builder
    }

    /// The header under an identity. Several records are judged one by one.
    pub(super) fn header(&self, identity: BatchIdentity) -> [u8; HEADER_BYTES] {
        match self.builder.records() {
            1 => self.builder.header(&identity),
            _ => self.builder.header_partial(&identity),
        }
    }

    /// The body, shared.
    pub(super) fn body(&self) -> Bytes {
        struct Body(Arc<BatchBuilder>);
        impl AsRef<[u8]> for Body {
            fn as_ref(&self) -> &[u8] {
                self.0.body()
            }
        }
        Bytes::from_owner(Body(self.builder.clone()))
    }

    /// Bytes of the body.
    pub(super) fn bytes(&self) -> usize {
        self.builder.body().len()
    }

    /// Calls in it.
    pub(super) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.calls.iter().all(|call| call.answer.is_closed())
    }

    /// Whether it leaves by itself: it is large, or was taken apart.
    pub(super) fn is_alone(&self) -> bool {
        self.is_apart || self.bytes() >= LONE_BATCH_BYTES
    }

    fn room(&self) -> BatchRoom {
        self.builder.room_of(0..self.builder.records())
    }

    /// Joins those of a queue's first bundles that may be.
    pub(super) fn join(
        first: Bundle,
        mut next: impl FnMut(&dyn Fn(&Bundle) -> bool) -> Option<Bundle>,
    ) -> Bundle {
        if first.is_alone() {
            return first;
        }
        let mut room = first.room();
        let mut bundles = vec![first];
        let joins = |room: &BatchRoom, bundle: &Bundle| {
            let sum = add(room, &bundle.room());
            !bundle.is_alone()
                && sum.records <= BATCH_RECORDS_MAX
                && sum.body_bytes() <= JOINED_BODY_BYTES_MAX
        };
        while let Some(bundle) = next(&|bundle| joins(&room, bundle)) {
            room = add(&room, &bundle.room());
            bundles.push(bundle);
        }
        if bundles.len() == 1 {
            return bundles.remove(0);
        }
        let mut builder = BatchBuilder::new(room);
        let (mut calls, since_us) = (Vec::with_capacity(bundles.len()), bundles[0].since_us);
        for bundle in bundles {
            builder.push_range(&bundle.builder, 0..bundle.builder.records());
            calls.extend(bundle.calls);
        }
        builder.close();
        let builder = Arc::new(builder);
        Bundle { builder, calls, is_apart: false, request_id: 0, since_us }
    }

    /// Partition keys and data of each record, bytes.
    pub(super) fn record_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.builder.records()).map(|at| {
            let room = self.builder.room_of(at..at + 1);
            u64::from(room.key_bytes) + u64::from(room.data_bytes)
        })
    }

    /// Takes out the records for which `kept` is false, in order, for this reason; calls of which
    /// nothing is left are answered. The others are told with the rest of their records. Never
    /// of a batch that may be stored: its sequence stands for what was in it.
    ///
    /// # Panics
    /// When there is not one verdict for each record, or nothing is kept.
    pub(super) fn keep(&mut self, kept: &[bool], error: &AppendError) {
        assert_eq!(kept.len(), self.builder.records() as usize, "a verdict for each record");
        if kept.iter().all(|kept| *kept) {
            return;
        }
        let ranges = ranges_of(kept);
        assert!(!ranges.is_empty(), "a batch has at least one record");
        let rooms = ranges.iter().map(|range| self.builder.room_of(range.clone()));
        let room = rooms.reduce(|sum, room| add(&sum, &room)).expect("at least one");
        let mut builder = BatchBuilder::new(room);
        ranges.into_iter().for_each(|range| builder.push_range(&self.builder, range));
        builder.close();
        self.builder = Arc::new(builder);
        let mut rest = kept;
        for mut call in std::mem::take(&mut self.calls) {
            let (of_call, of_others) = rest.split_at(call.records() as usize);
            rest = of_others;
            call.keep(of_call, error);
            if call.records() > 0 {
                self.calls.push(call);
            } else {
                call.tell(|_| Err(*error));
            }
        }
    }

    /// Takes it apart: the calls of the first half, and those of the second.
    ///
    /// # Panics
    /// When it has one call only.
    pub(super) fn halve(mut self) -> (Bundle, Bundle) {
        assert!(self.calls.len() > 1, "a call is not taken apart");
        let second = self.calls.split_off(self.calls.len() / 2);
        let cut = self.calls.iter().map(CallPart::records).sum();
        let part = |records: Range<u32>, calls| {
            let mut builder = BatchBuilder::new(self.builder.room_of(records.clone()));
            builder.push_range(&self.builder, records);
            builder.close();
            let (builder, since_us) = (Arc::new(builder), self.since_us);
            Bundle { builder, calls, is_apart: true, request_id: 0, since_us }
        };
        let second = part(cut..self.builder.records(), second);
        (part(0..cut, self.calls), second)
    }

    /// Tells each call where its records stand.
    pub(super) fn tell_stored(self, stored: &Stored) {
        let mut next_offset = stored.first_offset;
        for call in self.calls {
            call.tell(|records| {
                let first_offset = next_offset;
                next_offset = next_offset.after(u64::from(records));
                Ok(Stored { first_offset, ..*stored })
            });
        }
    }

    /// Tells each call why its records in the batch are not stored, or not known to be.
    pub(super) fn tell_error(self, error: &AppendError) {
        self.calls.into_iter().for_each(|call| call.tell(|_| Err(*error)));
    }
}

/// The records that are kept, as ranges.
fn ranges_of(kept: &[bool]) -> Vec<Range<u32>> {
    let mut end = 0;
    kept.chunk_by(|one, other| one == other)
        .filter_map(|chunk| {
            let start = end;
            end += chunk.len() as u32;
            chunk[0].then_some(start..end)
        })
        .collect()
}

fn add(one: &BatchRoom, other: &BatchRoom) -> BatchRoom {
    BatchRoom {
        records: one.records + other.records,
        key_bytes: one.key_bytes + other.key_bytes,
        data_bytes: one.data_bytes + other.data_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use thalweg_wire::build::NewRecord;
    use thalweg_wire::hash_range::HashKey;
    use thalweg_wire::ids::{Offset, ShardId, StreamId};
    use tokio::sync::Semaphore;

    type Answer = oneshot::Receiver<Vec<Part>>;

    async fn bundle(records: u32, data_bytes: usize) -> (Bundle, Answer) {
        let data = vec![records as u8; data_bytes];
        let all = records * data_bytes as u32;
        let mut builder =
            BatchBuilder::new(BatchRoom { records, key_bytes: records, data_bytes: all });
        for _ in 0..records {
            let (hash_key, key) = (HashKey(1), &b"k"[..]);
            builder.push(&NewRecord { hash_key, client_time_ms: 0, key, data: &data });
        }
        builder.close();
        let room = Arc::new(Semaphore::new(2));
        let permit = || room.clone().acquire_owned();
        let room = Arc::new((permit().await.unwrap(), permit().await.unwrap()));
        let (answer, receiver) = oneshot::channel();
        (Bundle::new(builder, CallPart::new(records, answer, room), 7), receiver)
    }

    async fn bundles(sizes: &[(u32, usize)]) -> (VecDeque<Bundle>, Vec<Answer>) {
        let (mut queue, mut answers) = (VecDeque::new(), Vec::new());
        for (records, data_bytes) in sizes {
            let (bundle, answer) = bundle(*records, *data_bytes).await;
            queue.push_back(bundle);
            answers.push(answer);
        }
        (queue, answers)
    }

    fn join(queue: &mut VecDeque<Bundle>) -> Bundle {
        let first = queue.pop_front().unwrap();
        Bundle::join(first, |joins| queue.pop_front_if(|bundle| joins(bundle)))
    }

    #[tokio::test]
    async fn calls_are_joined_and_each_is_told_its_offset() {
        let (mut queue, answers) = bundles(&[(2, 10), (1, 500), (3, 0), (1, 70_000), (1, 1)]).await;
        let joined = join(&mut queue);
        assert_eq!((joined.calls(), joined.builder().records()), (3, 6));
        assert_eq!(joined.since_us, 7);
        assert_eq!(join(&mut queue).calls(), 1, "a large one is not copied");
        let stored = Stored { first_offset: Offset(100), append_time_ms: 5, duplicate: false };
        joined.tell_stored(&stored);
        let mut offsets = Vec::new();
        for answer in answers.into_iter().take(3) {
            offsets.push(answer.await.unwrap()[0].result.unwrap().first_offset.0);
        }
        assert_eq!(offsets, [100, 102, 103]);
    }

    #[tokio::test]
    async fn a_joined_batch_keeps_to_its_limits() {
        let (mut queue, _answers) = bundles(&[(1, 60_000); 9]).await;
        assert_eq!(join(&mut queue).calls(), 4);
        let (mut queue, _answers) = bundles(&[(1500, 1); 30]).await;
        let joined = join(&mut queue);
        assert!(joined.bytes() <= JOINED_BODY_BYTES_MAX as usize);
        assert!(joined.calls() > 1);
    }

    /// How many records, and the offset of the first or nothing if they are refused.
    fn told(answer: &mut Answer) -> Vec<(u32, Option<u64>)> {
        let parts = answer.try_recv().expect("it is answered");
        let offset = |part: &Part| part.result.ok().map(|stored| stored.first_offset.0);
        parts.iter().map(|part| (part.records, offset(part))).collect()
    }

    const SHARD: ShardId = ShardId { stream: StreamId(1), index: 0 };
    const THROTTLED: AppendError = AppendError::Throttled { shard: SHARD, wait_us: 5 };
    const LATER: AppendError = AppendError::Throttled { shard: SHARD, wait_us: 9 };

    /// Verdicts, written as digits.
    fn kept(verdicts: &str) -> Vec<bool> {
        verdicts.chars().map(|verdict| verdict == '1').collect()
    }

    #[tokio::test]
    async fn what_is_taken_out_is_refused_and_the_rest_stays_as_it_was() {
        let (mut queue, mut answers) = bundles(&[(3, 10), (2, 20), (4, 30)]).await;
        let mut joined = join(&mut queue);
        let body = joined.body();
        joined.keep(&kept("111111111"), &THROTTLED);
        assert_eq!(joined.body(), body);
        assert_eq!(joined.record_bytes().collect::<Vec<_>>(), [11, 11, 11, 21, 21, 31, 31, 31, 31]);
        joined.keep(&kept("101001011"), &THROTTLED);
        assert_eq!(joined.record_bytes().collect::<Vec<_>>(), [11, 11, 31, 31, 31]);
        assert_eq!(told(&mut answers[1]), [(2, None)], "nothing of it is left");
        assert_eq!(joined.calls(), 2);
        // Once more, with another wait.
        joined.keep(&kept("11011"), &LATER);
        assert!(answers[0].try_recv().is_err() && answers[2].try_recv().is_err());
        joined.tell_stored(&Stored {
            first_offset: Offset(50),
            append_time_ms: 1,
            duplicate: false,
        });
        assert_eq!(told(&mut answers[0]), [(1, Some(50)), (1, None), (1, Some(51))]);
        let parts = answers[2].try_recv().expect("it is answered");
        let results: Vec<_> = parts
            .iter()
            .map(|part| (part.records, part.result.map(|stored| stored.first_offset.0)))
            .collect();
        assert_eq!(results, [(1, Err(LATER)), (1, Err(THROTTLED)), (2, Ok(52))]);
    }

    #[tokio::test]
    async fn what_was_rebuilt_is_the_batch_of_what_was_kept() {
        let (mut queue, _answers) = bundles(&[(2, 10), (1, 500), (2, 10)]).await;
        let (mut smaller, _) = bundles(&[(2, 10), (2, 10)]).await;
        let mut joined = join(&mut queue);
        joined.keep(&kept("11011"), &THROTTLED);
        assert_eq!(joined.body(), join(&mut smaller).body());
        let (first, second) = joined.halve();
        assert_eq!((first.builder().records(), second.builder().records()), (2, 2));
    }

    #[tokio::test]
    async fn an_error_leaves_what_was_refused_before_refused() {
        let (mut bundle, mut answer) = bundle(3, 10).await;
        bundle.keep(&kept("101"), &THROTTLED);
        let gone = AppendError::OutcomeUnknown { shard: SHARD, refusal: None };
        bundle.tell_error(&gone);
        let results: Vec<_> = answer.try_recv().unwrap().iter().map(|part| part.result).collect();
        assert_eq!(results, [Err(gone), Err(THROTTLED), Err(gone)]);
    }

    #[tokio::test]
    #[should_panic(expected = "at least one record")]
    async fn a_bundle_is_not_emptied() {
        let (mut bundle, _answer) = bundle(3, 10).await;
        bundle.keep(&kept("000"), &THROTTLED);
    }

    #[tokio::test]
    async fn halves_hold_what_was_whole() {
        let (mut queue, answers) = bundles(&[(2, 10), (1, 500), (3, 0)]).await;
        let data: Vec<u8> = queue.iter().flat_map(|bundle| bundle.body().to_vec()).collect();
        assert!(!data.is_empty());
        let bodies: Vec<Bytes> = queue.iter().map(Bundle::body).collect();
        let (first, second) = join(&mut queue).halve();
        assert_eq!((first.calls(), second.calls()), (1, 2));
        assert_eq!(first.body(), bodies[0]);
        assert!(first.is_alone() && second.is_alone());
        let (second, third) = second.halve();
        assert_eq!((second.body(), third.body()), (bodies[1].clone(), bodies[2].clone()));
        drop(answers);
        assert!(second.is_abandoned());
    }
}
