//! What the transport costs by itself: requests a second and processor time, with an API that does
//! nothing. `cargo test --release -p thalweg-router --test transport load -- --ignored --nocapture`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::child::ServerProcess;
use crate::support::request;
use crate::{http2, tls};

const SECONDS: u64 = 4;

/// The size of 500 records of 1 KiB in base64.
const LARGE_BYTES: usize = 700_000;

/// Sends the same request again and again; answers are empty.
async fn send_all<S>(mut stream: S, request: Arc<Vec<u8>>, tally: Arc<Tally>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut answer = Vec::with_capacity(4096);
    while !tally.is_over.load(Relaxed) {
        stream.write_all(&request).await.expect("the server reads");
        stream.flush().await.expect("the server reads");
        answer.clear();
        while !answer.ends_with(b"\r\n\r\n") {
            let count = stream.read_buf(&mut answer).await.expect("the server answers");
            assert!(count > 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        tally.count.fetch_add(1, Relaxed);
    }
}

#[derive(Default)]
struct Tally {
    count: AtomicUsize,
    is_over: AtomicBool,
}

async fn measure(name: &str, server: &ServerProcess, tally: Arc<Tally>) {
    // The first second is not counted.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (count, cpu, started) = (tally.count.load(Relaxed), server.cpu_seconds(), Instant::now());
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let count = (tally.count.load(Relaxed) - count) as f64;
    let cpu = server.cpu_seconds() - cpu;
    let rate = count / started.elapsed().as_secs_f64();
    tally.is_over.store(true, Relaxed);
    let resident = server.resident_bytes() >> 20;
    println!(
        "{name:40} {rate:8.0} requests/s, {:6.1} us of CPU each, {resident} MiB",
        cpu / count * 1e6
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: alone, in release mode"]
async fn requests_a_second() {
    let server = ServerProcess::start(None);
    let small = Arc::new(request("Empty", [b'x'; 200]));
    let large = Arc::new(request("Empty", vec![b'x'; LARGE_BYTES]));
    for (body, bytes) in [("200 B", &small), ("700 KB", &large)] {
        for connections in [1, 32] {
            let tally = Arc::new(Tally::default());
            let mut clients = Vec::new();
            for _ in 0..connections {
                let stream = TcpStream::connect(server.address).await.expect("it listens");
                stream.set_nodelay(true).expect("a socket");
                clients.push(tokio::spawn(send_all(stream, bytes.clone(), tally.clone())));
            }
            let name = format!("HTTP/1.1, {body}, {connections} connections");
            measure(&name, &server, tally).await;
            for client in clients {
                client.await.expect("no panic");
            }
        }
    }
    for (body, bytes) in [("200 B", 200), ("700 KB", LARGE_BYTES)] {
        let tally = Arc::new(Tally::default());
        let body_bytes = Bytes::from(vec![b'x'; bytes]);
        let mut clients = Vec::new();
        for _ in 0..2 {
            let stream = TcpStream::connect(server.address).await.expect("it listens");
            stream.set_nodelay(true).expect("a socket");
            let connection = http2::handshake(stream).await;
            for _ in 0..16 {
                let (mut client, tally) = (connection.clone(), tally.clone());
                let body_bytes = body_bytes.clone();
                clients.push(tokio::spawn(async move {
                    while !tally.is_over.load(Relaxed) {
                        let call = http2::call("Empty", &[], body_bytes.clone());
                        let answer = client.send_request(call).await.expect("an answer");
                        assert_eq!(answer.status(), 200);
                        tally.count.fetch_add(1, Relaxed);
                    }
                }));
            }
        }
        measure(&format!("HTTP/2, {body}, 2 connections of 16"), &server, tally).await;
        for client in clients {
            client.await.expect("no panic");
        }
    }
    drop(server);

    let made = tls::Made::new();
    let server = ServerProcess::start(Some((&made.chain, &made.key)));
    for (body, bytes) in [("200 B", &small), ("700 KB", &large)] {
        let tally = Arc::new(Tally::default());
        let mut clients = Vec::new();
        for _ in 0..32 {
            let stream = tls::connect(server.address, &made.certificate, &[]).await;
            clients.push(tokio::spawn(send_all(stream, bytes.clone(), tally.clone())));
        }
        measure(&format!("HTTP/1.1 and TLS, {body}, 32 connections"), &server, tally).await;
        for client in clients {
            client.await.expect("no panic");
        }
    }
}
