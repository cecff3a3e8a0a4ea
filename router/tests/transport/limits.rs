//! Every limit of time, number and memory, met and kept.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use thalweg_router::kinesis::error::ErrorKind;
use thalweg_router::kinesis::server::{ANSWER_BYTES_FREE, Limits};
use tokio::io::AsyncReadExt;

use crate::support::{PATIENCE, Served, head, request, request_with, short_limits};

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let served = Served::start(short_limits());
    let mut client = served.connect().await;
    let started = Instant::now();
    // A byte now and then is no excuse.
    for byte in b"POST / HTTP/1.1\r\nhost: localhost\r\n".iter().cycle() {
        if !client.send_if_taken([*byte]).await {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(started.elapsed() >= short_limits().head_time);
    assert_eq!(served.server.counts().clients_cut, 1);
    assert_eq!(served.server.counts().connections_open, 0);
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_a_while_and_then_closed() {
    let limits = Limits { idle_time: Duration::from_millis(1500), ..short_limits() };
    let served = Served::start(limits);
    let mut silent = served.connect().await;
    let mut client = served.connect().await;
    // Longer than a head may take, shorter than the idle time.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(client.call("Echo", "there").await.text(), "there");
    }
    assert!(silent.is_closed().await);
    let started = Instant::now();
    assert!(client.is_closed().await);
    assert!(started.elapsed() >= Duration::from_millis(1200), "{:?}", started.elapsed());
    served.until("the end of both", |counts| counts.connections_open == 0).await;
    assert_eq!(served.server.counts().clients_cut, 0);
}

#[tokio::test]
async fn a_request_under_way_is_not_idle() {
    let limits = Limits { answer_time: PATIENCE, ..short_limits() };
    let served = Served::start(limits);
    let mut client = served.connect().await;
    client.send(request_with("Sleep", "x-test-ms: 1500\r\n", "")).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_refused() {
    let limits = Limits { body_bytes_per_second_min: 100_000, ..short_limits() };
    let served = Served::start(limits);
    let mut client = served.connect().await;
    client.send(head("Echo", "content-length: 100000\r\n")).await;
    client.send([b'x'; 10_000]).await;
    // 300 ms in any case, and 100 ms for what came.
    let started = Instant::now();
    let answer = client.answer().await;
    let took = started.elapsed();
    assert_eq!((answer.status, answer.error_type()), (408, "RequestTimeoutException"));
    assert!(took >= Duration::from_millis(350), "{took:?}");
    assert!(client.is_closed().await);
    assert_eq!(served.api.begun.load(SeqCst), 0);
    assert_eq!(served.server.counts().bodies_bytes, 0);
}

#[tokio::test]
async fn a_body_that_comes_fast_enough_may_take_its_time() {
    let limits = Limits { body_bytes_per_second_min: 10_000, ..short_limits() };
    let served = Served::start(limits);
    let mut client = served.connect().await;
    client.send(head("Sum", "content-length: 20000\r\n")).await;
    for _ in 0..20 {
        client.send([1; 1000]).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(client.answer().await.text(), "20000 20000");
}

#[tokio::test]
async fn connections_have_a_limit() {
    let limits = Limits { connections_max: 3, ..Limits::default() };
    let served = Served::start(limits);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = served.connect().await;
        client.send(request("Gate", "")).await;
        clients.push(client);
    }
    served.until("three that are busy", |counts| counts.requests_open == 3).await;
    let mut more = served.connect().await;
    assert!(more.is_closed().await);
    assert_eq!(served.server.counts().connections_refused, 1);
    served.api.gate.add_permits(1);
    served.until("one that is idle", |counts| counts.requests_open == 2).await;
    let mut more = served.connect().await;
    assert_eq!(more.call("Echo", "b").await.text(), "b");
}

#[tokio::test]
async fn requests_under_way_have_a_limit() {
    let limits = Limits { requests_max: 2, ..Limits::default() };
    let served = Served::start(limits);
    let mut busy = [served.connect().await, served.connect().await];
    for client in &mut busy {
        client.send(request("Gate", "")).await;
    }
    served.until("two requests under way", |counts| counts.requests_open == 2).await;
    let mut client = served.connect().await;
    let refused = client.call("Echo", "x".repeat(1 << 20)).await;
    assert_eq!((refused.status, refused.error_type()), (503, "ServiceUnavailable"));
    assert!(refused.text().contains("try again"), "{}", refused.text());
    served.api.gate.add_permits(2);
    for client in &mut busy {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(client.call("Echo", "again").await.text(), "again");
    assert_eq!(served.server.counts().refusals.of(ErrorKind::ServiceUnavailable), 1);
    served.until("none under way", |counts| counts.requests_open == 0).await;
}

/// Memory for bodies is reserved before they are received: who comes late waits, then is refused.
#[tokio::test]
async fn bodies_share_a_budget() {
    let limits = Limits {
        body_bytes_max: 1000,
        bodies_bytes_max: 2000,
        body_room_time: Duration::from_secs(1),
        body_time: PATIENCE,
        ..Limits::default()
    };
    let served = Served::start(limits);
    let mut first = served.connect().await;
    let mut second = served.connect().await;
    for client in [&mut first, &mut second] {
        client.send(head("Echo", "content-length: 1000\r\n")).await;
        client.send([b'x'; 400]).await;
    }
    served.until("a used up budget", |counts| counts.bodies_bytes == 2000).await;
    let mut late = served.connect().await;
    let started = Instant::now();
    let refused = late.call("Echo", "y").await;
    assert_eq!((refused.status, refused.error_type()), (503, "ServiceUnavailable"));
    assert!(started.elapsed() >= Duration::from_secs(1));
    // One without a body needs no memory.
    assert_eq!(late.call("Empty", "").await.status, 200);

    // Who waits gets the room that becomes free.
    late.send(request("Echo", "z")).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.send([b'x'; 600]).await;
    assert_eq!(first.answer().await.body.len(), 1000);
    assert_eq!(late.answer().await.text(), "z");
    // A client that goes away gives its share back.
    drop(second);
    served.until("no body in memory", |counts| counts.bodies_bytes == 0).await;
}

#[tokio::test]
async fn a_body_counts_until_the_api_lets_go_of_it() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    assert_eq!(client.call("Keep", [0; 5000]).await.status, 200);
    // One that does not say its length reserves for the largest, and keeps what it needs.
    client.send(head("Keep", "transfer-encoding: chunked\r\n")).await;
    client.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", 3000, "x".repeat(3000))).await;
    assert_eq!(client.answer().await.status, 200);
    let held = served.server.counts().bodies_bytes;
    assert!((8000..=5000 + 2 * 3000).contains(&held), "{held} bytes");
    let kept = served.api.kept.lock().expect("no panic").pop().expect("two bodies");
    assert_eq!(kept, "x".repeat(3000));
    drop(kept);
    assert_eq!(served.server.counts().bodies_bytes, 5000);
    served.api.kept.lock().expect("no panic").clear();
    assert_eq!(served.server.counts().bodies_bytes, 0);
}

/// The largest PutRecords in JSON: 10 MiB of data are 14 MB of base64.
#[tokio::test]
async fn the_largest_request_is_received() {
    let served = Served::start(Limits::default());
    let bytes = (10 << 20) / 3 * 4 + 100_000;
    let body: Vec<u8> = (0..bytes).map(|place| (place % 251) as u8).collect();
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    let mut client = served.connect().await;
    assert_eq!(client.call("Sum", &body).await.text(), format!("{bytes} {sum}"));
    served.until("no body in memory", |counts| counts.bodies_bytes == 0).await;
}

/// Answers that nobody takes are memory too: beyond their budget they are given up.
#[tokio::test]
async fn answers_share_a_budget_and_are_not_kept_for_ever() {
    let bytes = 20 << 20;
    let limits = Limits { answers_bytes_max: 30 << 20, ..short_limits() };
    let served = Served::start(limits);
    let large = format!("x-test-bytes: {bytes}\r\n");
    let mut lazy = served.connect().await;
    lazy.send(request_with("Large", &large, "")).await;
    served.until("an answer that waits", |counts| counts.answers_bytes == bytes as u64).await;

    let mut client = served.connect().await;
    client.send(request_with("Large", &large, "")).await;
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.error_type()), (503, "ServiceUnavailable"));
    let small = format!("x-test-bytes: {ANSWER_BYTES_FREE}\r\n");
    client.send(request_with("Large", &small, "")).await;
    assert_eq!(client.answer().await.body.len(), ANSWER_BYTES_FREE);

    served.until("the end of the lazy one", |counts| counts.answers_bytes == 0).await;
    assert_eq!(served.server.counts().clients_cut, 1);
    // What was on its way comes, and then the end, before the whole is there.
    let mut came = Vec::new();
    let end = tokio::time::timeout(PATIENCE, lazy.stream.read_to_end(&mut came)).await;
    end.expect("the end in time").ok();
    assert!(came.len() < bytes, "{} bytes came", came.len());
}

/// A client may be slow as long as it takes something.
#[tokio::test]
async fn an_answer_that_is_taken_slowly_comes_whole() {
    let served = Served::start(short_limits());
    let bytes = 12 << 20;
    let mut client = served.connect().await;
    client.send(request_with("Large", &format!("x-test-bytes: {bytes}\r\n"), "")).await;
    assert!(client.head().await.is_some());
    let mut came = 0;
    let mut piece = vec![0; 1 << 20];
    let started = Instant::now();
    loop {
        let count = client.stream.read(&mut piece).await.expect("the server sends");
        came += count;
        if count == 0 || came + (64 << 10) > bytes {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(came + (1 << 20) > bytes, "{came} bytes in {:?}", started.elapsed());
    assert_eq!(served.server.counts().clients_cut, 0);
}

#[tokio::test]
async fn an_api_that_does_not_answer_is_a_failure() {
    let served = Served::start(short_limits());
    let mut client = served.connect().await;
    let answer = client.call("Gate", "").await;
    assert_eq!((answer.status, answer.error_type()), (500, "InternalFailure"));
    assert_eq!(
        answer.text(),
        r#"{"__type":"InternalFailure","message":"Internal Service Failure"}"#
    );
    assert_eq!(client.call("Echo", "next").await.text(), "next");
}

/// Strangers took memory and places before anybody asked who they were: 32 requests that said
/// nothing of their length, 4096 whose bodies never came, and every call was refused. Who may not
/// call is found out before either is given.
#[tokio::test]
async fn strangers_take_neither_memory_nor_places() {
    let limits = Limits {
        requests_max: 2,
        body_bytes_max: 1000,
        bodies_bytes_max: 1000,
        body_time: PATIENCE,
        ..Limits::default()
    };
    let served = Served::start(limits);
    let mut strangers = Vec::new();
    for length in ["content-length: 1000\r\n", "transfer-encoding: chunked\r\n"].repeat(10) {
        let mut client = served.connect().await;
        client.send(head("Echo", &format!("x-test-stranger: yes\r\n{length}"))).await;
        strangers.push((client, length.starts_with("content-length")));
    }
    served.until("all have come", |counts| counts.requests == 20).await;
    let counts = served.server.counts();
    assert_eq!((counts.requests_open, counts.bodies_bytes), (0, 0));
    let mut client = served.connect().await;
    let most = "y".repeat(1000);
    assert_eq!(client.call("Echo", &most).await.text(), most);
    // They are told once they have said all.
    for (mut client, is_plain) in strangers {
        let rest = if is_plain { "x".repeat(1000) } else { "1\r\nx\r\n0\r\n\r\n".to_owned() };
        client.send(rest).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.error_type()), (400, "AccessDeniedException"));
    }
    assert_eq!(served.api.begun.load(SeqCst), 1);
}
