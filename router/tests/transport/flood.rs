//! Floods of HTTP/2: the memory of a server that is flooded stays where it was.

use std::time::Duration;

use thalweg_router::kinesis::server::{HEAD_BYTES_MAX, REFUSALS_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::child::ServerProcess;
use crate::http2::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, PRIORITY, RESET, SETTINGS,
    WINDOW_UPDATE, call_block, frame, setting,
};
use crate::support::Client;

/// What a flood may leave in memory: buffers of one connection, and what the allocator keeps.
const GROWTH_BYTES_MAX: usize = 8 << 20;

/// Bytes of each flood. Kept, the smallest frames would be five times as much.
const FLOOD_BYTES: usize = 4 << 20;

/// Sends `unit` again and again, until all is sent or the server takes no more.
async fn flood(server: &ServerProcess, prelude: &[u8], unit: &[u8], is_reading: bool) -> usize {
    let stream = TcpStream::connect(server.address).await.expect("the server listens");
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut sink = vec![0; 64 << 10];
        while is_reading && reader.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        // Kept open without being read, if it is not.
        reader
    });
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), prelude].concat();
    let mut sent = 0;
    while sent < FLOOD_BYTES {
        while bytes.len() < 64 << 10 {
            bytes.extend_from_slice(unit);
        }
        let written = timeout(Duration::from_millis(300), writer.write_all(&bytes)).await;
        if !matches!(written, Ok(Ok(()))) {
            break;
        }
        sent += bytes.len();
        bytes.clear();
    }
    reading.abort();
    sent
}

#[tokio::test]
async fn floods_do_not_grow_the_server() {
    let server = ServerProcess::start(None);
    let mut client = Client::new(TcpStream::connect(server.address).await.expect("it listens"));
    for _ in 0..50 {
        assert_eq!(client.call("Echo", vec![b'a'; 300_000]).await.status, 200);
    }
    // A request whose body never ends, and one whose head never does.
    let open = frame(HEADERS, END_HEADERS, 1, &call_block("Echo", &[]));
    let headless = frame(HEADERS, 0, 1, &call_block("Echo", &[]));
    let filler = vec![0x20; 16 << 10];
    let floods: [(&str, &[u8], Vec<u8>); 10] = [
        ("pings", &[], frame(PING, 0, 0, b"12345678")),
        ("empty settings", &[], frame(SETTINGS, 0, 0, &[])),
        ("settings", &[], frame(SETTINGS, 0, 0, &setting(1, 0))),
        ("priorities", &[], frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 1])),
        ("window updates", &[], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("resets of nothing", &open, frame(RESET, 0, 1, &[0, 0, 0, 8])),
        ("empty data", &open, frame(DATA, 0, 1, &[])),
        ("data byte by byte", &open, frame(DATA, 0, 1, b"x")),
        ("padding", &open, frame(DATA, 8, 1, &[&[255][..], &[0; 255]].concat())),
        ("continuations", &headless, frame(CONTINUATION, 0, 1, &filler)),
    ];
    let before = server.resident_bytes();
    for (name, prelude, unit) in &floods {
        for is_reading in [true, false] {
            let sent = flood(&server, prelude, unit, is_reading).await;
            let now = server.resident_bytes();
            let growth = now.saturating_sub(before);
            println!("{name}, read {is_reading}: {sent} bytes sent, {} KiB more", growth >> 10);
            assert!(growth < GROWTH_BYTES_MAX, "{name}: {before} bytes before, {now} after");
            let answer = client.call("Echo", "still there").await;
            assert_eq!(answer.text(), "still there", "{name}");
        }
    }
}

/// Many connections, each with as much as it may hold: the sum is bounded by the limits.
#[tokio::test]
async fn bodies_that_never_end_are_bounded() {
    let server = ServerProcess::start(None);
    let before = server.resident_bytes();
    let mut streams = Vec::new();
    // 100 bodies of 16 MiB are announced, 5 MiB come of each; 32 have room.
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        let length = format!("content-length: {}\r\n", 16 << 20);
        let head = crate::support::head("Echo", &length);
        stream.write_all(&head).await.expect("the server reads");
        streams.push(stream);
    }
    let piece = vec![b'x'; 5 << 20];
    for stream in &mut streams {
        // Who has no room is not read, and refused after a while.
        let _ = timeout(Duration::from_millis(20), stream.write_all(&piece)).await;
    }
    let growth = server.resident_bytes().saturating_sub(before);
    println!("{} MiB more", growth >> 20);
    // 32 times 5 MiB, and small change for each connection.
    assert!(growth < 200 << 20, "{growth} bytes more");
    let mut client = Client::new(TcpStream::connect(server.address).await.expect("it listens"));
    drop(streams);
    assert_eq!(client.call("Echo", "still there").await.text(), "still there");
}

/// Heads were kept while what follows them was waited for: 16 connections, 250 MB of them.
#[tokio::test]
async fn heads_of_requests_that_are_refused_are_bounded() {
    const CONNECTIONS: usize = 16;
    const STREAMS: u32 = 250;
    const HEAD_BYTES: usize = 60_000;
    let server = ServerProcess::start(None);
    let before = server.resident_bytes();
    let long = "a".repeat(HEAD_BYTES);
    let block = call_block("Nothing", &[("x-long", &long)]);
    let mut pieces = block.chunks(16_000);
    let first = pieces.next().expect("a block");
    let rest: Vec<&[u8]> = pieces.collect();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        stream.write_all(PREFACE).await.expect("the server reads");
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        for number in 0..STREAMS {
            bytes.extend(frame(HEADERS, 0, 2 * number + 1, first));
            for (place, piece) in rest.iter().enumerate() {
                let flags = if place + 1 == rest.len() { END_HEADERS } else { 0 };
                bytes.extend(frame(CONTINUATION, flags, 2 * number + 1, piece));
            }
        }
        // Who is refused too often is cut off.
        let _ = timeout(Duration::from_secs(5), stream.write_all(&bytes)).await;
        connections.push(stream);
    }
    let growth = server.resident_bytes().saturating_sub(before);
    println!("{} MiB more", growth >> 20);
    // As many heads as may be, and small change for each connection.
    let most = REFUSALS_MAX * 2 * HEAD_BYTES_MAX + CONNECTIONS * (2 << 20);
    assert!(growth < most, "{growth} bytes more");
    let mut client = Client::new(TcpStream::connect(server.address).await.expect("it listens"));
    assert_eq!(client.call("Echo", "still there").await.text(), "still there");
}
