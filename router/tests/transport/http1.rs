//! HTTP/1.1 in all its forms: pipelined, chunked, continued, half closed, malformed.

use std::sync::atomic::Ordering::SeqCst;

use thalweg_router::kinesis::server::{HEADERS_MAX, Limits};
use tokio::io::AsyncWriteExt;

use crate::support::{Served, head, request, request_with};

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let mut bytes = Vec::new();
    for number in 0..20 {
        let wait = format!("x-test-ms: {}\r\n", 20 - number);
        bytes.extend_from_slice(&request_with("Sleep", &wait, ""));
        bytes.extend_from_slice(&request("Echo", format!("{number}")));
    }
    client.send(bytes).await;
    for number in 0..20 {
        assert_eq!(client.answer().await.text(), "{}");
        assert_eq!(client.answer().await.text(), format!("{number}"));
    }
    assert_eq!(served.server.counts().connections_accepted, 1);
}

#[tokio::test]
async fn a_chunked_body_is_put_together() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(head("Echo", "transfer-encoding: chunked\r\n")).await;
    let mut expected = Vec::new();
    for size in [1usize, 10, 1000, 70_000, 300_000] {
        let piece = vec![b'a' + (size % 26) as u8; size];
        client.send(format!("{size:x};extension=1\r\n")).await;
        client.send(&piece).await;
        client.send("\r\n").await;
        expected.extend_from_slice(&piece);
    }
    client.send("0\r\ntrailer: ignored\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, expected);
    drop(answer);
    assert_eq!(client.call("Echo", "next").await.text(), "next");
    served.until("no body in memory", |counts| counts.bodies_bytes == 0).await;
}

#[tokio::test]
async fn a_malformed_chunk_is_refused_and_ends_the_connection() {
    let served = Served::start(Limits::default());
    for wrong in ["zz\r\nabc\r\n", "3\r\nabcdef\r\n", "ffffffffffffffffff\r\n"] {
        let mut client = served.connect().await;
        client.send(head("Echo", "transfer-encoding: chunked\r\n")).await;
        client.send("3\r\nabc\r\n").await;
        client.send(wrong).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.error_type()), (400, "SerializationException"));
        assert_eq!(answer.header("connection"), "close");
        assert!(client.is_closed().await);
    }
    assert_eq!(served.api.begun.load(SeqCst), 0);
    assert_eq!(served.server.counts().bodies_bytes, 0);
}

#[tokio::test]
async fn an_endless_body_is_refused_when_it_is_too_large() {
    let limits = Limits { body_bytes_max: 100_000, ..Limits::default() };
    let served = Served::start(limits);
    let mut client = served.connect().await;
    client.send(head("Echo", "transfer-encoding: chunked\r\n")).await;
    let mut chunk = b"4000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x4000, b'x');
    chunk.extend_from_slice(b"\r\n");
    let mut chunks = 0;
    while chunks < 4096 && client.send_if_taken(&chunk).await {
        chunks += 1;
    }
    // 32 MiB are thrown away for the sake of the answer.
    assert!((2048..4096).contains(&chunks), "{chunks} chunks were taken");
    served.until("the end of the connection", |counts| counts.connections_open == 0).await;
    assert_eq!(served.api.begun.load(SeqCst), 0);
}

#[tokio::test]
async fn a_chunked_body_that_is_too_large_but_ends_is_answered() {
    let limits = Limits { body_bytes_max: 100_000, ..Limits::default() };
    let served = Served::start(limits);
    let mut client = served.connect().await;
    client.send(head("Echo", "transfer-encoding: chunked\r\n")).await;
    client.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", 500_000, "x".repeat(500_000))).await;
    assert_eq!(client.answer().await.status, 413);
    assert_eq!(client.call("Echo", "next").await.text(), "next");
}

#[tokio::test]
async fn who_asks_before_sending_is_told_to_go_on() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(head("Echo", "expect: 100-continue\r\ncontent-length: 4\r\n")).await;
    assert_eq!(client.answer().await.status, 100);
    client.send("body").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (200, "body"));
}

/// A client that asks first and is refused sends no body, so none is waited for.
#[tokio::test]
async fn who_asks_before_sending_is_refused_before_sending() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let served = Served::start(limits);
    for (operation, length, status) in [("Echo", 1001, 413), ("Nothing", 4, 400)] {
        let mut client = served.connect().await;
        let headers = format!("expect: 100-continue\r\ncontent-length: {length}\r\n");
        client.send(head(operation, &headers)).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("connection"), "close");
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_client_that_has_said_all_still_gets_its_answer() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(request_with("Sleep", "x-test-ms: 100\r\n", "")).await;
    client.send(request("Echo", "second")).await;
    client.stream.shutdown().await.expect("half closed");
    assert_eq!(client.answer().await.text(), "{}");
    assert_eq!(client.answer().await.text(), "second");
    assert!(client.is_closed().await);
    served.until("the end of the connection", |counts| counts.connections_open == 0).await;
}

#[tokio::test]
async fn a_body_that_ends_too_soon_is_not_a_request() {
    let served = Served::start(Limits::default());
    for headers in ["content-length: 10\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = served.connect().await;
        client.send(head("Echo", headers)).await;
        client.send("5\r\nab").await;
        client.stream.shutdown().await.expect("half closed");
        if let Some(answer) = client.try_answer().await {
            assert_eq!(answer.error_type(), "SerializationException");
        }
    }
    served.until("the end of both", |counts| counts.connections_open == 0).await;
    assert_eq!(served.api.begun.load(SeqCst), 0);
    assert_eq!(served.server.counts().bodies_bytes, 0);
}

#[tokio::test]
async fn http_1_0_is_answered_once() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let request = String::from_utf8(request("Echo", "old")).expect("ASCII");
    client.send(request.replace("HTTP/1.1", "HTTP/1.0")).await;
    assert_eq!(client.answer().await.text(), "old");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let served = Served::start(Limits::default());
    for wrong in [
        "hello\r\n\r\n",
        "POST / HTTP/9.9\r\n\r\n",
        "POST / HTTP/1.1\r\nno colon\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        let mut client = served.connect().await;
        client.send(wrong).await;
        let answer = client.try_answer().await;
        assert_eq!(answer.map(|answer| answer.status), Some(400), "{wrong:?}");
        assert!(client.is_closed().await);
    }
    assert_eq!(served.server.counts().requests, 0);
}

#[tokio::test]
async fn a_head_has_limits_of_size_and_number() {
    let served = Served::start(Limits::default());
    // Host, content type, target and length are four.
    let most: String = (4..HEADERS_MAX).map(|number| format!("x-{number}: a\r\n")).collect();
    let mut client = served.connect().await;
    client.send(request_with("Echo", &most, "body")).await;
    assert_eq!(client.answer().await.text(), "body");
    client.send(request_with("Echo", &format!("{most}x-more: a\r\n"), "body")).await;
    assert_eq!(client.answer().await.status, 431);
    assert!(client.is_closed().await);

    let mut client = served.connect().await;
    let long = format!("x-long: {}\r\n", "a".repeat(60 << 10));
    client.send(request_with("Echo", &long, "body")).await;
    assert_eq!(client.answer().await.text(), "body");
    let longer = format!("x-long: {}\r\n", "a".repeat(80 << 10));
    client.send_if_taken(request_with("Echo", &longer, "body")).await;
    assert_eq!(client.answer().await.status, 431);
    // A head without an end is not waited for.
    let mut client = served.connect().await;
    client.send("POST / HTTP/1.1\r\nx-long: ").await;
    let piece = [b'a'; 16 << 10];
    let mut sent = 0;
    while sent < 1 << 10 && client.send_if_taken(&piece).await {
        sent += 1;
    }
    assert!(sent < 1 << 10);
}
