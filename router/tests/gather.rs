//! The writer against a node that the test plays: what leaves when, what is sent again, and how.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rkyv::util::AlignedVec;
use support::peer::{Connection, Peer};
use support::{BACKOFF, PATIENCE, records_of, shard};
use thalweg_router::route::{
    AppendError, Appended, LinkLimits, Route, RouteFuture, Routes, Stale, Writer, WriterConfig,
};
use thalweg_wire::batch::{Batch, BatchHeader};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{FrameKind, small_frame};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, Offset, ShardId};
use thalweg_wire::produce::{Ack, Stored, encode_verdicts, split_batches};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

/// Routes as the test says, which remember why they were asked.
struct SaidRoutes {
    route: Mutex<Option<Route>>,
    asked: Mutex<Vec<Stale>>,
}

impl SaidRoutes {
    fn to(address: SocketAddr) -> Arc<SaidRoutes> {
        let route = Mutex::new(Some(Route { epoch: Epoch(1), address }));
        Arc::new(SaidRoutes { route, asked: Mutex::default() })
    }
}

impl Routes for SaidRoutes {
    fn route(&self, _shard: ShardId) -> Option<Route> {
        *self.route.lock().unwrap()
    }

    fn refresh(&self, shard: ShardId, stale: Stale) -> RouteFuture<'_> {
        self.asked.lock().unwrap().push(stale);
        Box::pin(async move { self.route(shard) })
    }
}

fn writer(routes: &Arc<SaidRoutes>, link: LinkLimits) -> Writer {
    let link = LinkLimits { backoff: BACKOFF, ..link };
    let config = WriterConfig { link, patience: PATIENCE, ..WriterConfig::default() };
    Writer::new(routes.clone(), config)
}

fn append(writer: &Writer, index: u32, numbers: &[u64], bytes: usize) -> JoinHandle<Appended> {
    let (writer, records) = (writer.clone(), records_of(numbers, bytes));
    tokio::spawn(async move { writer.append(shard(index), records).await })
}

async fn result_of(call: JoinHandle<Appended>) -> Result<u64, AppendError> {
    let appended = tokio::time::timeout(PATIENCE, call).await.expect("it is answered");
    let parts = appended.expect("a task ends well").parts().to_vec();
    assert_eq!(parts.len(), 1);
    parts[0].result.map(|stored| stored.first_offset.0)
}

/// What became of each record: its offset, or why it has none.
async fn fates_of(call: JoinHandle<Appended>) -> Vec<Result<u64, AppendError>> {
    let appended = tokio::time::timeout(PATIENCE, call).await.expect("it is answered");
    let fates = appended.expect("a task ends well");
    fates.records().map(|fate| fate.map(|position| position.offset.0)).collect()
}

/// A produce frame: its correlation, and its batches with the numbers of their records.
struct Frame {
    correlation: u64,
    batches: Vec<(BatchHeader, Vec<u64>)>,
}

impl Frame {
    async fn receive(connection: &mut Connection) -> Frame {
        let (header, payload) = connection.receive().await;
        assert_eq!(header.kind, FrameKind::Produce);
        let batches = split_batches(&payload, header.items).expect("a produce frame");
        let batches = batches.map(|place| {
            let mut aligned = AlignedVec::<16>::new();
            aligned.extend_from_slice(&payload[place]);
            let batch = Batch::check(&aligned, &HashRange::FULL).expect("a batch");
            let number = |data: &[u8]| u64::from_le_bytes(data[..8].try_into().unwrap());
            (batch.header, batch.records().map(|record| number(record.data)).collect())
        });
        Frame { correlation: header.correlation, batches: batches.collect() }
    }

    fn numbers(&self) -> Vec<Vec<u64>> {
        self.batches.iter().map(|(_, numbers)| numbers.clone()).collect()
    }

    /// Answers its one batch with a verdict for each record, as a digit.
    async fn answer_partly(&self, connection: &mut Connection, wait_us: u64, verdicts: &str) {
        let verdicts: Vec<bool> = verdicts.chars().map(|verdict| verdict == '1').collect();
        let (ack, bits) = encode_verdicts(wait_us, &verdicts);
        let payload = [&ack[..], &bits].concat();
        let kind = FrameKind::ProduceAnswer;
        let frame = thalweg_wire::frame::small_frame(kind, 1, self.correlation, &payload);
        connection.0.write_all(&frame).await.expect("the link reads");
    }

    /// Answers every batch alike.
    async fn answer(&self, connection: &mut Connection, ack: Ack) {
        let acks = ack.encode().repeat(self.batches.len());
        let items = self.batches.len() as u32;
        let kind = FrameKind::ProduceAnswer;
        let frame = small_frame(kind, items, self.correlation, &acks);
        connection.0.write_all(&frame).await.expect("the link reads");
    }
}

fn stored(offset: u64) -> Ack {
    let first_offset = Offset(offset);
    Ack { result: Ok(Stored { first_offset, append_time_ms: 1, duplicate: false }) }
}

fn refused(code: ErrorCode, hint: u64) -> Ack {
    Ack::refused(Refusal::new(code, hint))
}

#[tokio::test]
async fn a_lone_call_leaves_at_once_and_what_comes_meanwhile_as_one_batch() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let writer = writer(&routes, LinkLimits::default());
    let first = append(&writer, 0, &[1, 2], 100);
    let mut connection = peer.accept().await;
    let frame = Frame::receive(&mut connection).await;
    assert_eq!(frame.numbers(), [[1, 2]]);
    assert_eq!((frame.batches[0].0.epoch, frame.batches[0].0.sequence), (Epoch(1), 0));
    let calls = [append(&writer, 0, &[3], 50), append(&writer, 0, &[4, 5], 1000)];
    let dropped = append(&writer, 0, &[6], 50);
    let last = append(&writer, 0, &[7], 50);
    assert!(connection.is_silent().await, "they are gathered");
    dropped.abort();
    assert!(dropped.await.is_err());
    frame.answer(&mut connection, stored(70)).await;
    assert_eq!(result_of(first).await, Ok(70));
    let frame = Frame::receive(&mut connection).await;
    assert_eq!(frame.numbers(), [[3, 4, 5, 7]], "nobody waits for 6");
    assert_eq!(frame.batches[0].0.sequence, 1);
    frame.answer(&mut connection, stored(72)).await;
    for (call, offset) in calls.into_iter().chain([last]).zip([72, 73, 75]) {
        assert_eq!(result_of(call).await, Ok(offset));
    }
    assert_eq!(writer.bytes_under_way(), 0);
}

#[tokio::test]
async fn large_calls_do_not_wait_and_eight_batches_are_under_way_at_most() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let writer = writer(&routes, LinkLimits::default());
    let calls: Vec<_> = (0..10).map(|number| append(&writer, 0, &[number], 70_000)).collect();
    let mut connection = peer.accept().await;
    let mut frames = Vec::new();
    for number in 0..8 {
        let frame = Frame::receive(&mut connection).await;
        assert_eq!(frame.numbers(), [[number]], "alone in its frame");
        assert_eq!(frame.batches[0].0.sequence, number);
        frames.push(frame);
    }
    assert!(connection.is_silent().await, "eight are under way");
    // Answers overtake each other; who waits behind is told only by its own.
    frames[1].answer(&mut connection, stored(1)).await;
    assert!(connection.is_silent().await);
    frames[0].answer(&mut connection, stored(0)).await;
    for number in 8..10 {
        frames.push(Frame::receive(&mut connection).await);
        assert_eq!(frames.last().unwrap().numbers(), [[number]]);
    }
    for (number, frame) in (2..).zip(&frames[2..]) {
        frame.answer(&mut connection, stored(number)).await;
    }
    for (number, call) in (0..).zip(calls) {
        assert_eq!(result_of(call).await, Ok(number));
    }
}

#[tokio::test]
async fn small_batches_of_many_shards_share_the_frame_after_the_one_under_way() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let link = LinkLimits { produce_frames_max: 1, ..LinkLimits::default() };
    let writer = writer(&routes, link);
    let mut calls = vec![append(&writer, 0, &[0], 100)];
    let mut connection = peer.accept().await;
    let first = Frame::receive(&mut connection).await;
    for number in 1..40 {
        calls.push(append(&writer, number, &[number.into()], 100));
    }
    assert!(connection.is_silent().await);
    first.answer(&mut connection, stored(9)).await;
    let frame = Frame::receive(&mut connection).await;
    assert_eq!(frame.batches.len(), 39);
    frame.answer(&mut connection, stored(9)).await;
    for call in calls {
        assert_eq!(result_of(call).await, Ok(9));
    }
}

#[tokio::test]
async fn after_a_lost_connection_the_same_is_sent_again() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let writer = writer(&routes, LinkLimits::default());
    let calls: Vec<_> = (0..3).map(|number| append(&writer, 0, &[number], 70_000)).collect();
    let mut connection = peer.accept().await;
    let mut before = Vec::new();
    for _ in 0..3 {
        before.push(Frame::receive(&mut connection).await);
    }
    before[1].answer(&mut connection, stored(1)).await;
    connection.is_silent().await;
    drop(connection);
    let mut connection = peer.accept().await;
    for at in [0, 2] {
        let again = Frame::receive(&mut connection).await;
        assert_eq!(again.batches[0], before[at].batches[0], "same identity, same sequence");
        again.answer(&mut connection, stored(at as u64)).await;
    }
    for (number, call) in (0..).zip(calls) {
        assert_eq!(result_of(call).await, Ok(number));
    }
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_leaves_the_outcome_unknown() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let writer = writer(&routes, LinkLimits::default());
    let call = append(&writer, 0, &[1], 100);
    let mut connection = peer.accept().await;
    let lost = Frame::receive(&mut connection).await;
    drop(connection);
    let mut connection = peer.accept().await;
    let again = Frame::receive(&mut connection).await;
    assert_eq!(again.batches, lost.batches);
    again.answer(&mut connection, refused(ErrorCode::DuplicateForgotten, 0)).await;
    let error = result_of(call).await.expect_err("it was refused");
    assert!(matches!(error, AppendError::OutcomeUnknown { refusal: Some(_), .. }));
    // Nothing else is sent under an identity of which something may be stored.
    let call = append(&writer, 0, &[2], 100);
    let frame = Frame::receive(&mut connection).await;
    assert_ne!(frame.batches[0].0.producer, lost.batches[0].0.producer);
    assert_eq!(frame.batches[0].0.sequence, 0);
    frame.answer(&mut connection, stored(3)).await;
    assert_eq!(result_of(call).await, Ok(3));
}

#[tokio::test]
async fn a_stale_route_is_asked_for_anew_and_followed() {
    let (peer, address) = Peer::start().await;
    let (other_peer, other) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let writer = writer(&routes, LinkLimits::default());
    let call = append(&writer, 0, &[1], 100);
    let mut connection = peer.accept().await;
    let frame = Frame::receive(&mut connection).await;
    frame.answer(&mut connection, refused(ErrorCode::StaleEpoch, 5)).await;
    let frame = Frame::receive(&mut connection).await;
    assert_eq!(frame.batches[0].0.epoch, Epoch(5), "the hint is followed at once");
    *routes.route.lock().unwrap() = Some(Route { epoch: Epoch(6), address: other });
    tokio::time::sleep(Duration::from_millis(30)).await;
    frame.answer(&mut connection, refused(ErrorCode::WrongCore, other.port().into())).await;
    let mut elsewhere = other_peer.accept().await;
    let frame = Frame::receive(&mut elsewhere).await;
    assert_eq!((frame.batches[0].0.epoch, frame.batches[0].0.sequence), (Epoch(6), 0));
    frame.answer(&mut elsewhere, stored(8)).await;
    assert_eq!(result_of(call).await, Ok(8));
    let asked = routes.asked.lock().unwrap();
    let reasons: HashMap<ErrorCode, u64> =
        asked.iter().filter_map(|stale| stale.refusal).map(|why| (why.code, why.hint)).collect();
    assert_eq!(reasons[&ErrorCode::StaleEpoch], 5);
    assert_eq!(reasons[&ErrorCode::WrongCore], u64::from(other.port()));
}

#[tokio::test]
async fn calls_refused_together_are_judged_one_by_one() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let writer = writer(&routes, LinkLimits::default());
    let first = append(&writer, 0, &[0], 100);
    let mut connection = peer.accept().await;
    let frame = Frame::receive(&mut connection).await;
    let calls: Vec<_> = (1..9).map(|number| append(&writer, 0, &[number], 100)).collect();
    assert!(connection.is_silent().await);
    frame.answer(&mut connection, stored(0)).await;
    assert_eq!(result_of(first).await, Ok(0));
    // The fourth of the eight does not pass.
    let outside = refused(ErrorCode::HashOutOfRange, 0);
    let mut sent = Vec::new();
    for (numbers, ack) in [
        (vec![1, 2, 3, 4, 5, 6, 7, 8], outside),
        (vec![1, 2, 3, 4], outside),
        (vec![1, 2], stored(1)),
        (vec![3, 4], outside),
        (vec![3], stored(3)),
        (vec![4], outside),
        (vec![5, 6, 7, 8], stored(4)),
    ] {
        let frame = Frame::receive(&mut connection).await;
        assert_eq!(frame.numbers(), [numbers]);
        sent.push(frame.batches[0].0.sequence);
        frame.answer(&mut connection, ack).await;
    }
    assert_eq!(sent, [1, 1, 1, 2, 2, 3, 3], "what was refused has left no gap");
    for (number, call) in (1..9).zip(calls) {
        match result_of(call).await {
            Ok(offset) => assert_eq!(offset, number - u64::from(number > 4)),
            Err(AppendError::Refused { refusal, .. }) => {
                assert_eq!((refusal.code, number), (ErrorCode::HashOutOfRange, 4));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A writer whose way is known and whose first batch is under way on this connection: what comes
/// now is gathered.
async fn busy_writer(
    peer: &Peer,
    address: SocketAddr,
) -> (Writer, Connection, Frame, JoinHandle<Appended>) {
    let writer = writer(&SaidRoutes::to(address), LinkLimits::default());
    let first = append(&writer, 0, &[0], 100);
    let mut connection = peer.accept().await;
    let frame = Frame::receive(&mut connection).await;
    (writer, connection, frame, first)
}

#[tokio::test]
async fn records_that_find_no_tokens_are_refused_and_the_others_sent_again_at_once() {
    let (peer, address) = Peer::start().await;
    let (writer, mut connection, under_way, before) = busy_writer(&peer, address).await;
    let calls = [&[1, 2][..], &[3], &[4], &[5, 6, 7]];
    let [first, second, third, last] = calls.map(|numbers| append(&writer, 0, numbers, 100));
    assert!(connection.is_silent().await);
    under_way.answer(&mut connection, stored(0)).await;
    assert_eq!(result_of(before).await, Ok(0));
    let whole = Frame::receive(&mut connection).await;
    assert_eq!(whole.numbers(), [[1, 2, 3, 4, 5, 6, 7]]);
    let header = whole.batches[0].0;
    assert!(header.is_partial());
    assert!(!under_way.batches[0].0.is_partial(), "there is nothing to choose from");
    assert_ne!(header.request_id, under_way.batches[0].0.request_id);
    let waits = append(&writer, 0, &[8, 9], 50);
    whole.answer_partly(&mut connection, 900_000, "1010101").await;
    let rebuilt = Frame::receive(&mut connection).await;
    assert_eq!(rebuilt.numbers(), [[1, 3, 5, 7]]);
    let BatchHeader { producer, sequence, request_id, .. } = rebuilt.batches[0].0;
    assert_eq!(
        (producer, sequence, request_id),
        (header.producer, header.sequence, header.request_id)
    );
    let throttled = Err(AppendError::Throttled { shard: shard(0), wait_us: 900_000 });
    assert_eq!(fates_of(third).await, [throttled], "it need not wait for the others");
    assert!(!first.is_finished());
    rebuilt.answer(&mut connection, stored(1)).await;
    assert_eq!(fates_of(first).await, [Ok(1), throttled]);
    assert_eq!(fates_of(second).await, [Ok(2)]);
    assert_eq!(fates_of(last).await, [Ok(3), throttled, Ok(4)]);
    let behind = Frame::receive(&mut connection).await;
    assert_eq!((behind.numbers(), behind.batches[0].0.sequence), (vec![vec![8, 9]], 2));
    assert_ne!(behind.batches[0].0.request_id, request_id);
    // Of 101 bytes with its key nothing passes before: it is not even sent, a smaller one is.
    let (large, small) = (append(&writer, 0, &[10], 100), append(&writer, 0, &[11], 99));
    assert!(connection.is_silent().await);
    behind.answer(&mut connection, stored(5)).await;
    assert_eq!(fates_of(waits).await, [Ok(5), Ok(6)]);
    let AppendError::Throttled { wait_us, .. } = result_of(large).await.expect_err("it is spared")
    else {
        panic!("it is throttled");
    };
    assert!((1..900_000).contains(&wait_us), "{wait_us} are left");
    let next = Frame::receive(&mut connection).await;
    assert_eq!(next.numbers(), [[11]]);
    next.answer(&mut connection, stored(7)).await;
    assert_eq!(result_of(small).await, Ok(7));
    assert_eq!(writer.bytes_under_way(), 0);
}

#[tokio::test]
async fn if_no_record_finds_tokens_all_are_throttled_and_nothing_is_sent_again() {
    let (peer, address) = Peer::start().await;
    let (writer, mut connection, under_way, before) = busy_writer(&peer, address).await;
    under_way.answer(&mut connection, stored(0)).await;
    assert_eq!(result_of(before).await, Ok(0));
    // The second is of a node that judges what was not asked.
    for (verdicts, wait_us) in [("000", 7), ("0110", 8)] {
        let call = append(&writer, 0, &[1, 2, 3], 100);
        let frame = Frame::receive(&mut connection).await;
        assert_eq!(frame.batches[0].0.sequence, 1);
        frame.answer_partly(&mut connection, wait_us, verdicts).await;
        let throttled = Err(AppendError::Throttled { shard: shard(0), wait_us });
        assert_eq!(fates_of(call).await, [throttled; 3]);
        assert!(connection.is_silent().await);
    }
}

#[tokio::test]
async fn what_was_sent_behind_a_rebuilt_batch_follows_it() {
    let (peer, address) = Peer::start().await;
    let writer = writer(&SaidRoutes::to(address), LinkLimits::default());
    let calls = [append(&writer, 0, &[1, 2, 3], 40_000), append(&writer, 0, &[4], 70_000)];
    let mut connection = peer.accept().await;
    let first = Frame::receive(&mut connection).await;
    let second = Frame::receive(&mut connection).await;
    first.answer_partly(&mut connection, 5, "101").await;
    assert!(connection.is_silent().await, "the second is not answered yet");
    second.answer(&mut connection, refused(ErrorCode::ProducerUnknown, 0)).await;
    for (numbers, sequence) in [(vec![1, 3], 0), (vec![4], 1)] {
        let frame = Frame::receive(&mut connection).await;
        assert_eq!((frame.numbers(), frame.batches[0].0.sequence), (vec![numbers], sequence));
        frame.answer(&mut connection, stored(10 * (sequence + 1))).await;
    }
    let [first, second] = calls;
    let throttled = Err(AppendError::Throttled { shard: shard(0), wait_us: 5 });
    assert_eq!(fates_of(first).await, [Ok(10), throttled, Ok(11)]);
    assert_eq!(fates_of(second).await, [Ok(20)]);
}

#[tokio::test]
async fn what_may_be_stored_is_sent_again_as_it_was_and_rebuilt_once_it_is_known_not_to_be() {
    let (peer, address) = Peer::start().await;
    let writer = writer(&SaidRoutes::to(address), LinkLimits::default());
    let call = append(&writer, 0, &[1, 2, 3, 4], 100);
    let mut connection = peer.accept().await;
    let whole = Frame::receive(&mut connection).await;
    // The verdicts are lost with the connection.
    drop(connection);
    let mut connection = peer.accept().await;
    let again = Frame::receive(&mut connection).await;
    assert_eq!(again.batches, whole.batches);
    again.answer_partly(&mut connection, 5, "1101").await;
    let rebuilt = Frame::receive(&mut connection).await;
    assert_eq!(rebuilt.numbers(), [[1, 2, 4]]);
    drop(connection);
    let mut connection = peer.accept().await;
    let again = Frame::receive(&mut connection).await;
    assert_eq!(again.batches, rebuilt.batches, "it may be stored");
    // The tokens were held for too long.
    again.answer_partly(&mut connection, 6, "011").await;
    let last = Frame::receive(&mut connection).await;
    assert_eq!(last.numbers(), [[2, 4]]);
    assert_eq!(last.batches[0].0.sequence, 0);
    last.answer(&mut connection, stored(3)).await;
    let throttled = |wait_us| Err(AppendError::Throttled { shard: shard(0), wait_us });
    assert_eq!(fates_of(call).await, [throttled(6), Ok(3), throttled(5), Ok(4)]);
}

#[tokio::test]
async fn who_finds_no_node_gives_up_and_what_never_left_is_not_in_doubt() {
    let (peer, address) = Peer::start().await;
    let routes = SaidRoutes::to(address);
    let link = LinkLimits { backoff: BACKOFF, produce_frames_max: 1, ..LinkLimits::default() };
    let patience = Duration::from_millis(500);
    let config = WriterConfig { link, patience, ..WriterConfig::default() };
    let writer = Writer::new(routes.clone(), config);
    let left = append(&writer, 0, &[1], 100);
    let mut connection = peer.accept().await;
    Frame::receive(&mut connection).await;
    // Of another shard, and queued behind the frame under way.
    let queued = append(&writer, 1, &[2], 100);
    let gathered = append(&writer, 0, &[3], 100);
    assert!(connection.is_silent().await);
    drop((connection, peer));
    let error = result_of(left).await.expect_err("nobody is there");
    assert!(matches!(error, AppendError::OutcomeUnknown { refusal: None, .. }), "{error}");
    for call in [queued, gathered] {
        let error = result_of(call).await.expect_err("nobody is there");
        assert!(matches!(error, AppendError::Unreachable { waited_ms: 500, .. }), "{error}");
    }
    assert!(!routes.asked.lock().unwrap().is_empty(), "it was looked for elsewhere");
    *routes.route.lock().unwrap() = None;
    let error = result_of(append(&writer, 7, &[4], 8)).await.expect_err("there is no such shard");
    assert!(matches!(error, AppendError::NoRoute { .. }));
    assert_eq!(writer.bytes_under_way(), 0);
}
