//! A link against a peer that the test plays: answers out of order, connections that break, peers
//! that are silent or no nodes at all.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::PATIENCE;
use support::peer::Peer;
use thalweg_router::route::{
    AnswerMemory, Failure, LinkCondition, LinkError, LinkLimits, NodeLink, Request,
};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer, FetchFrom, FetchRequest};
use thalweg_wire::frame::{ErrorAnswer, FrameKind, small_frame};
use thalweg_wire::ids::{Epoch, Offset, ShardId, StreamId};
use thalweg_wire::subscribe::{Credit, SubscribeRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn limits() -> LinkLimits {
    LinkLimits {
        requests_max: 3,
        backoff: (Duration::from_millis(5), Duration::from_millis(20)),
        answer_timeout: Duration::from_secs(5),
        ..LinkLimits::default()
    }
}

fn link(address: SocketAddr) -> NodeLink {
    NodeLink::connect(address, limits(), &AnswerMemory::new(0))
}

async fn wait_until_up(link: &NodeLink) {
    let mut condition = link.condition();
    let up = condition.wait_for(|condition| matches!(condition, LinkCondition::Up));
    tokio::time::timeout(PATIENCE, up).await.expect("it is tried again").expect("it lives");
}

/// Asks with a payload of two pieces; answers the answer's payload.
async fn ask(link: NodeLink, word: &'static str, timeout: Duration) -> Result<Vec<u8>, LinkError> {
    let (front, back) = word.split_at(1);
    let payload = vec![Bytes::from_static(front.as_bytes()), Bytes::from_static(back.as_bytes())];
    let kind = FrameKind::Hello;
    let request = Request { kind, items: 0, payload, timeout };
    link.request(request).await.map(|answer| answer.payload.to_vec())
}

#[tokio::test]
async fn answers_find_who_asked_whatever_their_order() {
    let (peer, address) = Peer::start().await;
    let link = link(address);
    let asked: Vec<_> = ["one", "two", "three", "four", "five"]
        .map(|word| tokio::spawn(ask(link.clone(), word, PATIENCE)))
        .into_iter()
        .collect();
    let mut connection = peer.accept().await;
    let mut frames = Vec::new();
    for _ in 0..3 {
        frames.push(connection.receive().await);
    }
    assert!(connection.is_silent().await, "three at a time");
    for answered in 0..5 {
        let (header, payload) = frames.pop().expect("as many as were asked");
        connection.send(FrameKind::HelloAnswer, header.correlation, &payload).await;
        if answered < 2 {
            // The next in line has its turn.
            frames.push(connection.receive().await);
        }
    }
    for (task, word) in asked.into_iter().zip(["one", "two", "three", "four", "five"]) {
        assert_eq!(task.await.unwrap().expect("an answer"), word.as_bytes());
    }
}

#[tokio::test]
async fn a_lost_connection_tells_what_left_from_what_did_not() {
    let (peer, address) = Peer::start().await;
    let link = link(address);
    let first = tokio::spawn(ask(link.clone(), "first", PATIENCE));
    let mut connection = peer.accept().await;
    let (header, _) = connection.receive().await;
    connection.send(FrameKind::HelloAnswer, header.correlation, b"").await;
    first.await.unwrap().expect("an answer");
    // A request that is larger than what the sockets hold does not leave as a whole.
    let small = tokio::spawn(ask(link.clone(), "small", PATIENCE));
    connection.receive().await;
    let bulk = Bytes::from(vec![7; 10 << 20]);
    let large =
        Request { kind: FrameKind::Produce, items: 1, payload: vec![bulk], timeout: PATIENCE };
    let of_task = link.clone();
    let large = tokio::spawn(async move { of_task.request(large).await.map(|_| ()) });
    connection.0.read_exact(&mut [0; 1000]).await.expect("it begins to leave");
    drop(connection);
    assert!(matches!(small.await.unwrap(), Err(LinkError::OutcomeUnknown { .. })));
    assert!(matches!(large.await.unwrap(), Err(LinkError::NotSent { .. })));
    // It is connected again by itself.
    let again = tokio::spawn(ask(link.clone(), "again", PATIENCE));
    let mut connection = peer.accept().await;
    let (header, payload) = connection.receive().await;
    connection.send(FrameKind::HelloAnswer, header.correlation, &payload).await;
    assert_eq!(again.await.unwrap().expect("an answer"), b"again");
    // The last handle closes it.
    drop(link);
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn a_deadline_ends_a_request_and_a_late_answer_is_nobodys() {
    let (peer, address) = Peer::start().await;
    let link = link(address);
    let short = Duration::from_millis(50);
    let slow = tokio::spawn(ask(link.clone(), "slow", short));
    let mut connection = peer.accept().await;
    let (late, _) = connection.receive().await;
    let error = slow.await.unwrap().expect_err("nobody answered");
    assert!(matches!(
        error,
        LinkError::OutcomeUnknown { failure: Failure::TimedOut { wait_ms: 50 }, .. }
    ));
    let next = tokio::spawn(ask(link.clone(), "next", PATIENCE));
    let (header, payload) = connection.receive().await;
    connection.send(FrameKind::HelloAnswer, late.correlation, b"late").await;
    connection.send(FrameKind::HelloAnswer, header.correlation, &payload).await;
    assert_eq!(next.await.unwrap().expect("an answer"), b"next");
    // Who waits for its turn for too long has sent nothing.
    let holders: Vec<_> =
        (0..3).map(|_| tokio::spawn(ask(link.clone(), "hold", PATIENCE))).collect();
    for _ in 0..3 {
        connection.receive().await;
    }
    let error = ask(link.clone(), "late", short).await.expect_err("no turn");
    assert!(matches!(error, LinkError::NotSent { failure: Failure::TimedOut { .. }, .. }));
    assert!(connection.is_silent().await);
    holders.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn who_cannot_be_reached_is_told_at_once_and_tried_again() {
    let (peer, address) = Peer::start().await;
    drop(peer);
    let link = link(address);
    let error = ask(link.clone(), "one", PATIENCE).await.expect_err("nobody is there");
    assert!(matches!(&error, LinkError::NotSent { failure: Failure::Connect(_), .. }), "{error}");
    assert!(error.to_string().contains("is the node running there?"));
    let listener = TcpListener::bind(address).await.expect("the port is free again");
    wait_until_up(&link).await;
    // A node that accepts and hangs up is no better than none.
    drop(listener.accept().await.expect("it accepts"));
    let mut condition = link.condition();
    let down = condition.wait_for(|condition| matches!(condition, LinkCondition::Down(_)));
    tokio::time::timeout(PATIENCE, down).await.expect("it is noticed").expect("it lives");
}

#[tokio::test]
async fn what_is_no_answer_breaks_the_connection() {
    let (peer, address) = Peer::start().await;
    let link = link(address);
    let refusal = ErrorAnswer(Refusal::new(ErrorCode::TooSlow, 7)).encode();
    let broken: [(Vec<u8>, &str); 5] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n0000000".to_vec(), "no frame"),
        (small_frame(FrameKind::HelloAnswer, 0, 999, b""), "where none belongs"),
        (small_frame(FrameKind::Produce, 0, 1, b""), "a node sends no such frames"),
        (small_frame(FrameKind::SubscribeEvent, 0, 9999, &[0; 64]), "where none belongs"),
        (small_frame(FrameKind::Error, 0, 0, &refusal), "minimum rate"),
    ];
    for (bytes, says) in broken {
        let mut connection = peer.accept().await;
        wait_until_up(&link).await;
        let asked = tokio::spawn(ask(link.clone(), "question", PATIENCE));
        connection.receive().await;
        connection.0.write_all(&bytes).await.expect("the link reads");
        let error = asked.await.unwrap().expect_err("no answer").to_string();
        assert!(error.contains(says) && error.contains("outcome is unknown"), "{error}");
        assert!(connection.is_closed().await);
    }
    // An answer of another kind than was asked for, too.
    let mut connection = peer.accept().await;
    wait_until_up(&link).await;
    let asked = tokio::spawn(ask(link.clone(), "question", PATIENCE));
    let (header, _) = connection.receive().await;
    connection.send(FrameKind::ControlAnswer, header.correlation, b"").await;
    assert!(matches!(asked.await.unwrap(), Err(LinkError::OutcomeUnknown { .. })));
    // A request that is not served is refused alone.
    let mut connection = peer.accept().await;
    wait_until_up(&link).await;
    let asked = tokio::spawn(ask(link.clone(), "question", PATIENCE));
    let (header, _) = connection.receive().await;
    let refusal = ErrorAnswer(ErrorCode::UnsupportedKind.into()).encode();
    connection.send(FrameKind::Error, header.correlation, &refusal).await;
    assert!(matches!(asked.await.unwrap(), Err(LinkError::Refused { .. })));
    assert!(connection.is_silent().await, "it is not closed");
}

#[tokio::test]
async fn requests_beyond_their_limits_are_not_sent() {
    let (_peer, address) = Peer::start().await;
    let link = link(address);
    let request = Request::small(FrameKind::Hello, &[0; 513], PATIENCE);
    let error = link.request(request).await.expect_err("the limit is 512");
    assert!(matches!(error, LinkError::TooLarge { bytes: 513, limit: 512, .. }));
}

fn subscribe_request(credit: u32) -> SubscribeRequest {
    SubscribeRequest(FetchRequest {
        shard: ShardId { stream: StreamId(1), index: 0 },
        epoch: Epoch(0),
        from: FetchFrom::Latest,
        bytes_max: credit,
        wait_ms: 100,
    })
}

fn event(bytes: usize) -> Vec<u8> {
    let head = FetchAnswer {
        status: Ok(()),
        earliest: Offset(0),
        next: Offset(0),
        committed: Offset(0),
        last_append_ms: 0,
        sealed_end: false,
    };
    [&head.encode()[..], &vec![0; bytes]].concat()
}

#[tokio::test]
async fn a_subscription_is_granted_what_there_is_memory_for_and_cancelled_when_dropped() {
    let (peer, address) = Peer::start().await;
    let memory = AnswerMemory::new(0);
    let link = NodeLink::connect(address, limits(), &memory);
    let of_task = link.clone();
    let subscribing =
        tokio::spawn(async move { of_task.subscribe(&subscribe_request(9000)).await });
    let mut connection = peer.accept().await;
    let (header, payload) = connection.receive().await;
    assert_eq!(SubscribeRequest::decode(&payload), Ok(subscribe_request(9000)));
    let mut subscription = subscribing.await.unwrap().expect("it subscribes");
    for bytes in [2000, 6000] {
        connection.send(FrameKind::SubscribeEvent, header.correlation, &event(bytes)).await;
    }
    let first = subscription.next().await.expect("an event").expect("no error");
    assert_eq!(first.payload.len(), 2000 + FETCH_ANSWER_BYTES);
    let second = subscription.next().await.expect("an event").expect("no error");
    assert_eq!(subscription.credit_bytes(), 1000);
    assert_eq!(memory.bytes_free(), memory.bytes_max() - 9000);
    // Who keeps everything is granted nothing more.
    let rest = memory.bytes_free() as u32;
    subscription.grant(rest).await.expect("there is as much");
    let (credit, payload) = connection.receive().await;
    assert_eq!(credit.kind, FrameKind::Credit);
    let subscription_name = header.correlation;
    let grant = Credit::Grant { subscription: subscription_name, bytes: rest };
    assert_eq!(Credit::decode(&payload), Ok(grant));
    let more = tokio::time::timeout(Duration::from_millis(50), subscription.grant(5000));
    assert!(more.await.is_err());
    drop(second);
    tokio::time::timeout(PATIENCE, subscription.grant(5000)).await.expect("now").expect("it is up");
    connection.receive().await;
    drop((subscription, first));
    let (_, payload) = connection.receive().await;
    let cancel = Credit::Cancel { subscription: subscription_name };
    assert_eq!(Credit::decode(&payload), Ok(cancel));
    // What was on its way meanwhile is nobody's.
    connection.send(FrameKind::SubscribeEvent, subscription_name, &event(5000)).await;
    let asked = tokio::spawn(ask(link.clone(), "question", PATIENCE));
    let (header, _) = connection.receive().await;
    connection.send(FrameKind::HelloAnswer, header.correlation, b"").await;
    asked.await.unwrap().expect("an answer");
    assert_eq!(memory.bytes_free(), memory.bytes_max());
}

/// The link waited, at the head of an answer, until there was memory for it. Whatever came behind it
/// waited as well, and with it those who would have given memory back.
#[tokio::test]
async fn an_answer_for_which_there_is_no_memory_holds_up_none_behind_it() {
    let (peer, address) = Peer::start().await;
    let memory = AnswerMemory::new(0);
    let link = NodeLink::connect(address, limits(), &memory);
    let mut connection = peer.accept().await;
    let (mut fetches, mut correlations) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (link, request) = (link.clone(), Request::small(FrameKind::Fetch, b"", PATIENCE));
        fetches.push(tokio::spawn(async move { link.request(request).await }));
        correlations.push(connection.receive().await.0.correlation);
    }
    for (correlation, bytes) in correlations.into_iter().zip([10 << 20, 10 << 20, 5000]) {
        connection.send(FrameKind::FetchAnswer, correlation, &event(bytes)).await;
    }
    let mut answers = Vec::new();
    for fetch in fetches {
        answers.push(fetch.await.expect("no panic"));
    }
    let [Ok(first), Err(second), Ok(third)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(first.payload.len(), (10 << 20) + FETCH_ANSWER_BYTES);
    let needed = (10 << 20) + FETCH_ANSWER_BYTES;
    assert!(matches!(second, LinkError::NoMemory { bytes, .. } if *bytes == needed), "{second}");
    assert_eq!(third.payload.len(), 5000 + FETCH_ANSWER_BYTES);
    drop(answers);
    assert_eq!(memory.bytes_free(), memory.bytes_max());
}

#[tokio::test]
async fn a_node_that_sends_more_than_it_was_granted_is_no_node() {
    let (peer, address) = Peer::start().await;
    let link = link(address);
    let of_task = link.clone();
    let subscribing =
        tokio::spawn(async move { of_task.subscribe(&subscribe_request(1000)).await });
    let mut connection = peer.accept().await;
    let (header, _) = connection.receive().await;
    let mut subscription = subscribing.await.unwrap().expect("it subscribes");
    connection.send(FrameKind::SubscribeEvent, header.correlation, &event(1001)).await;
    let event = subscription.next().await.expect("an event");
    assert!(matches!(
        event,
        Err(LinkError::OutcomeUnknown { failure: Failure::Unexpected { .. }, .. })
    ));
    assert!(subscription.next().await.is_none());
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn a_node_that_hangs_is_given_up() {
    let (peer, address) = Peer::start().await;
    let limits = LinkLimits { answer_timeout: Duration::from_millis(200), ..limits() };
    let link = NodeLink::connect(address, limits, &AnswerMemory::new(0));
    let asked = tokio::spawn(ask(link.clone(), "question", Duration::from_millis(100)));
    let mut connection = peer.accept().await;
    connection.receive().await;
    assert!(asked.await.unwrap().is_err());
    let started = Instant::now();
    assert!(connection.is_closed().await, "nothing came since it was asked");
    assert!(started.elapsed() < Duration::from_secs(5));
}
