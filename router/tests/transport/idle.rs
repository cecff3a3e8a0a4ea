//! Connections beyond those that may be open: for a new one an idle one goes, and no other.

use std::time::{Duration, Instant};

use thalweg_router::kinesis::server::{Limits, TlsIdentity};
use tokio::net::TcpStream;

use crate::http2::{self, call, text};
use crate::support::{Client, PATIENCE, Served, request};
use crate::tls::{self, Made};

fn limits(connections_max: usize) -> Limits {
    // Nothing but another connection ends an idle one.
    Limits { connections_max, idle_time: 10 * PATIENCE, ..Limits::default() }
}

/// A connection that is open, and was so for longer than those after it.
async fn connect(served: &Served) -> Client<TcpStream> {
    let before = served.server.counts().connections_accepted;
    let client = served.connect().await;
    served.until("it is open", |counts| counts.connections_accepted > before).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    client
}

/// 4096 connections that said nothing kept all others out for two minutes, and could begin anew.
#[tokio::test]
async fn the_connection_that_has_been_idle_longest_goes_for_a_new_one() {
    let served = Served::start(limits(4));
    let mut silent = connect(&served).await;
    let mut used = connect(&served).await;
    let mut busy = connect(&served).await;
    busy.send(request("Gate", "")).await;
    assert_eq!(used.call("Echo", "a").await.text(), "a");
    served.until("one request under way", |counts| counts.requests_open == 1).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut begun = connect(&served).await;
    begun.send("POST / HT").await;

    // Who never asked, who has its answer, who does not come to the end of what it asks.
    let mut others = Vec::new();
    for goes in [&mut silent, &mut used, &mut begun] {
        let mut other = connect(&served).await;
        assert!(goes.is_closed().await);
        assert_eq!(other.call("Echo", "b").await.text(), "b");
        others.push(other);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut last = connect(&served).await;
    assert!(others[0].is_closed().await);
    assert_eq!(last.call("Echo", "c").await.text(), "c");
    for other in &mut others[1..] {
        assert_eq!(other.call("Echo", "d").await.text(), "d");
    }
    served.api.gate.add_permits(1);
    assert_eq!(busy.answer().await.status, 200);
    let counts = served.server.counts();
    assert_eq!((counts.connections_displaced, counts.connections_refused), (4, 0));
    assert_eq!((counts.connections_open, counts.clients_cut), (4, 0));
}

/// Each that is asked to go makes room for one: a place that is free before anybody waits for it
/// must not go to who comes later, or somebody waits for a place that nobody leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_may_come_at_a_time_as_there_are_idle_ones() {
    let served = Served::start(limits(100));
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(served.connect().await);
    }
    served.until("all places are taken", |counts| counts.connections_open == 100).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(served.connect().await);
    }
    for other in &mut others {
        assert_eq!(other.call("Echo", "a").await.text(), "a");
    }
    let counts = served.server.counts();
    assert_eq!((counts.connections_displaced, counts.connections_refused), (100, 0));
}

#[tokio::test]
async fn http_2_is_told_to_go_away_and_who_is_busy_stays() {
    let served = Served::start(limits(2));
    let mut busy = http2::connect(&served).await;
    let gated = tokio::spawn({
        let mut client = busy.clone();
        async move { text(&mut client, call("Gate", &[], "")).await }
    });
    served.until("a request under way", |counts| counts.requests_open == 1).await;
    let mut idle = http2::connect(&served).await;
    assert_eq!(text(&mut idle, call("Echo", &[], "a")).await, (200, "a".to_owned()));
    served.until("one request under way", |counts| counts.requests_open == 1).await;
    let mut other = connect(&served).await;
    assert_eq!(other.call("Echo", "b").await.text(), "b");
    let started = Instant::now();
    while !idle.is_closed() {
        assert!(started.elapsed() < PATIENCE, "it does not see that it is to go");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(text(&mut busy, call("Echo", &[], "c")).await, (200, "c".to_owned()));
    served.api.gate.add_permits(1);
    assert_eq!(gated.await.expect("no panic"), (200, "{}".to_owned()));
}

#[tokio::test]
async fn who_does_not_answer_to_goaway_is_not_waited_for_long() {
    let served = Served::start(limits(1));
    let mut silent = http2::Frames::connect(served.address(), &[]).await;
    silent.until(|frame| frame.kind == http2::SETTINGS && frame.flags == 0).await;
    let mut other = served.connect().await;
    let away = silent.until(|frame| frame.kind == http2::GOAWAY).await;
    // NO_ERROR.
    assert_eq!(away.payload[4..8], [0; 4]);
    assert_eq!(other.call("Echo", "a").await.text(), "a");
    let counts = served.server.counts();
    assert_eq!((counts.connections_displaced, counts.connections_refused), (1, 0));
}

#[tokio::test]
async fn who_does_not_begin_its_handshake_goes_too() {
    let made = Made::new();
    let identity = TlsIdentity::from_pem(made.chain.as_bytes(), made.key.as_bytes());
    let served = Served::start_with(|config| {
        config.tls = Some(identity.expect("a pair"));
        config.limits = limits(1);
    });
    let mut silent = connect(&served).await;
    let mut other = Client::new(tls::connect(served.address(), &made.certificate, &[]).await);
    assert_eq!(other.call("Echo", "a").await.text(), "a");
    assert!(silent.is_closed().await);
}
