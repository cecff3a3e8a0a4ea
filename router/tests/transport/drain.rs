//! Coming to an end: what is under way finishes, nothing new begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use thalweg_router::kinesis::server::{Drained, EventSendError, Limits};
use tokio::net::TcpStream;

use crate::http2::{self, call, text};
use crate::support::{Client, PATIENCE, Served, head, request, request_with};

#[tokio::test]
async fn idle_connections_end_at_once() {
    let served = Served::start(Limits::default());
    let address = served.address();
    let mut fresh = served.connect().await;
    let mut used = served.connect().await;
    assert_eq!(used.call("Echo", "a").await.text(), "a");
    let mut multiplexed = http2::connect(&served).await;
    assert_eq!(text(&mut multiplexed, call("Echo", &[], "a")).await.0, 200);
    let started = Instant::now();
    assert_eq!(served.server.drain(PATIENCE).await, Drained { connections_cut: 0 });
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(fresh.is_closed().await);
    assert!(used.is_closed().await);
    assert!(multiplexed.ready().await.is_err());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn what_is_under_way_finishes() {
    let served = Served::start(Limits::default());
    let mut waiting = served.connect().await;
    waiting.send(request("Gate", "")).await;
    let mut sending = served.connect().await;
    sending.send(head("Echo", "content-length: 10\r\n")).await;
    sending.send("01234").await;
    let client = http2::connect(&served).await;
    let gated = tokio::spawn({
        let mut client = client.clone();
        async move { text(&mut client, call("Gate", &[], "")).await }
    });
    served.until("three requests under way", |counts| counts.requests_open == 3).await;

    let gate = served.api.gate.clone();
    let drain = tokio::spawn(served.server.drain(PATIENCE));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!drain.is_finished());
    gate.add_permits(2);
    let answer = waiting.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    assert!(waiting.is_closed().await);
    sending.send("56789").await;
    let answer = sending.answer().await;
    assert_eq!((answer.text(), answer.header("connection")), ("0123456789", "close"));
    assert_eq!(gated.await.expect("no panic"), (200, "{}".to_owned()));
    assert_eq!(drain.await.expect("no panic"), Drained { connections_cut: 0 });
}

#[tokio::test]
async fn http_2_is_told_to_go_away() {
    let served = Served::start(Limits::default());
    let mut client = http2::Frames::connect(served.address(), &[]).await;
    client.until(|frame| frame.kind == http2::SETTINGS && frame.flags == 0).await;
    let flags = http2::END_HEADERS | http2::END_STREAM;
    let block = http2::call_block("Gate", &[]);
    client.send(&http2::frame(http2::HEADERS, flags, 1, &block)).await;
    served.until("a request under way", |counts| counts.requests_open == 1).await;
    let gate = served.api.gate.clone();
    let drain = tokio::spawn(served.server.drain(PATIENCE));
    let away = client.until(|frame| frame.kind == http2::GOAWAY).await;
    // NO_ERROR, and no stream is refused yet.
    assert_eq!(away.payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    // Until it is, whoever asks learns what goes on: status 503, in the code of RFC 7541.
    let health = [(":method", "GET"), (":scheme", "http"), (":path", "/health")];
    let block = http2::header_block(&health);
    client.send(&http2::frame(http2::HEADERS, flags, 3, &block)).await;
    let answer = client.until(|frame| frame.kind == http2::HEADERS).await;
    assert_eq!(answer.stream, 3);
    assert!(answer.payload.windows(3).any(|bytes| bytes == [0x6c, 0x0c, 0xff]), "{answer:?}");
    gate.add_permits(1);
    let answer = client.until(|frame| frame.kind == http2::HEADERS).await;
    assert_eq!(answer.stream, 1);
    // It does not answer the ping that follows GOAWAY, and is not waited for.
    assert_eq!(drain.await.expect("no panic"), Drained { connections_cut: 0 });
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_at_the_deadline() {
    let served = Served::start(Limits::default());
    let mut stuck = served.connect().await;
    stuck.send(request("Gate", "")).await;
    let client = http2::connect(&served).await;
    let gated = tokio::spawn({
        let mut client = client.clone();
        async move { client.send_request(call("Gate", &[], "")).await.is_err() }
    });
    served.until("two requests under way", |counts| counts.requests_open == 2).await;
    let started = Instant::now();
    let drained = served.server.drain(Duration::from_millis(300)).await;
    assert_eq!(drained, Drained { connections_cut: 2 });
    assert!((300..3000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(stuck.is_closed().await);
    assert!(gated.await.expect("no panic"));
    assert_eq!(served.api.ended.load(SeqCst), 0);
}

#[tokio::test]
async fn event_streams_end_after_what_is_queued() {
    let mut served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(request_with("Events", "x-test-bytes: 100000\r\n", "")).await;
    assert_eq!(client.head().await.map(|head| head.status), Some(200));
    assert!(client.chunk().await.is_some());
    let sender = served.sender().await;
    for _ in 0..10 {
        sender.send("x".repeat(1000).into()).await.expect("there is room");
    }
    let drain = tokio::spawn(served.server.drain(PATIENCE));
    tokio::time::timeout(PATIENCE, sender.gone()).await.expect("the sender learns it");
    assert_eq!(sender.send("x".into()).await, Err(EventSendError::Gone));
    for _ in 0..10 {
        assert_eq!(client.chunk().await.map(|chunk| chunk.len()), Some(1000));
    }
    // The end of a chunked body: nothing was cut.
    assert_eq!(client.chunk().await, Some(Vec::new()));
    assert_eq!(drain.await.expect("no panic"), Drained { connections_cut: 0 });
}

#[tokio::test]
async fn a_dropped_server_cuts_all_off() {
    let served = Served::start(Limits::default());
    let address = served.address();
    let mut stuck = served.connect().await;
    stuck.send(request("Gate", "")).await;
    served.until("a request under way", |counts| counts.requests_open == 1).await;
    drop(served.server);
    assert!(stuck.is_closed().await);
    let started = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Under load every call that the API finished is answered as a whole, and no answer is torn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_lost_in_a_drain() {
    let served = Served::start(Limits::default());
    let address = served.address();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for number in 0..16 {
        let answered = answered.clone();
        clients.push(tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.expect("the server listens");
            let mut client = Client::new(stream);
            let body = vec![number; 1 + 20_000 * usize::from(number)];
            loop {
                if !client.send_if_taken(request("Echo", &body)).await {
                    return;
                }
                match client.try_answer().await {
                    Some(answer) => {
                        assert_eq!((answer.status, &answer.body), (200, &body));
                        answered.fetch_add(1, SeqCst);
                    }
                    None => return,
                }
            }
        }));
    }
    let multiplexed = http2::connect(&served).await;
    for _ in 0..16 {
        let (answered, mut client) = (answered.clone(), multiplexed.clone());
        clients.push(tokio::spawn(async move {
            let body = "b".repeat(3000);
            while let Ok(response) = client.send_request(call("Echo", &[], body.clone())).await {
                let echoed = http_body_util::BodyExt::collect(response.into_body()).await;
                assert_eq!(echoed.expect("a whole answer").to_bytes(), body.as_bytes());
                answered.fetch_add(1, SeqCst);
            }
        }));
    }
    let started = Instant::now();
    while answered.load(SeqCst) < 500 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ended = served.api.ended.clone();
    assert_eq!(served.server.drain(PATIENCE).await, Drained { connections_cut: 0 });
    for client in clients {
        client.await.expect("no torn answer");
    }
    assert_eq!(answered.load(SeqCst), ended.load(SeqCst));
}
