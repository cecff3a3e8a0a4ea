//! What is checked of a request, in which order, and how answers look.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use thalweg_router::kinesis::server::{Limits, ServerCounts};

use crate::support::{Answer, PATIENCE, Served, request, request_with};

const UNDETERMINED: &str = "<AccessDeniedException>\n  <Message>Unable to determine \
    service/operation name to be authorized</Message>\n</AccessDeniedException>\n";

const JSON: &str = "content-type: application/x-amz-json-1.1\r\n";
const CBOR: &str = "content-type: application/x-amz-cbor-1.1\r\n";
const ECHO: &str = "x-amz-target: Kinesis_20131202.Echo\r\n";

fn raw(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let headers = headers.concat();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

fn assert_ids(answer: &Answer) {
    let id = answer.header("x-amzn-requestid");
    assert_eq!(id.len(), 36, "{id}");
    assert_eq!(answer.header("x-amz-id-2").len(), 96);
    assert!(answer.header("date").ends_with(" GMT"));
}

#[tokio::test]
async fn an_answer_looks_like_the_services() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let answer = client.call("Echo", r#"{"StreamName":"a"}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/x-amz-json-1.1");
    assert_eq!(answer.text(), r#"{"StreamName":"a"}"#);
    assert_ids(&answer);
    assert!(!answer.headers.contains_key("x-amzn-errortype"));

    let empty = client.call("Empty", "{}").await;
    assert_eq!((empty.status, empty.header("content-length")), (200, "0"));
    assert_eq!(empty.header("content-type"), "application/x-amz-json-1.1");

    let failed = client.call("Fail", "{}").await;
    assert_eq!(failed.status, 400);
    assert_eq!(failed.error_type(), "ResourceNotFoundException");
    assert_eq!(
        failed.text(),
        r#"{"__type":"ResourceNotFoundException","message":"Stream a under account 000000000000 not found."}"#
    );
    assert_ids(&failed);
    assert_ne!(failed.header("x-amzn-requestid"), answer.header("x-amzn-requestid"));
}

#[tokio::test]
async fn cbor_is_answered_in_cbor() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send(raw("POST", "/", &[CBOR, ECHO], "\u{7f}")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (200, "\u{7f}"));
    assert_eq!(answer.header("content-type"), "application/x-amz-cbor-1.1");

    let fail = "x-amz-target: Kinesis_20131202.Fail\r\n";
    client.send(raw("POST", "/", &[CBOR, fail], "")).await;
    let failed = client.answer().await;
    assert_eq!(failed.status, 400);
    assert_eq!(failed.header("content-type"), "application/x-amz-cbor-1.1");
    assert!(failed.body.starts_with(b"\xa2\x66__type\x78\x19ResourceNotFoundException"));
}

/// Each row is refused by one check, on one connection after the other: none of them closes it.
#[tokio::test]
async fn checks_come_in_the_services_order() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let origin = "origin: http://elsewhere\r\n";
    let plain = "content-type: text/plain\r\n";
    let no_operation = "x-amz-target: Kinesis_20131202.Nothing\r\n";
    let no_service = "x-amz-target: DynamoDB_20120810.Echo\r\n";
    let unknown = "UnknownOperationException";
    let denied = "AccessDeniedException";
    let rows: [(&str, &[&str], u16, &str, bool); 13] = [
        ("GET", &[JSON, ECHO], 403, denied, true),
        ("PUT", &[JSON, ECHO], 403, denied, true),
        ("DELETE", &[], 403, denied, true),
        // A preflight is only one with an origin.
        ("OPTIONS", &[], 403, denied, true),
        ("POST", &[], 403, denied, true),
        ("POST", &[plain], 403, denied, true),
        ("POST", &[plain, ECHO], 404, unknown, true),
        ("POST", &[ECHO], 404, unknown, true),
        ("POST", &["content-type: application/json\r\n", ECHO], 404, unknown, true),
        ("POST", &[JSON], 400, unknown, false),
        ("POST", &[JSON, no_service], 400, unknown, false),
        ("POST", &[JSON, no_operation, origin], 400, unknown, false),
        ("POST", &[CBOR, no_operation], 400, unknown, false),
    ];
    for (method, headers, status, error_type, is_xml) in rows {
        client.send(raw(method, "/", headers, "{}")).await;
        let answer = client.answer().await;
        let what = format!("{method} {headers:?}: {answer:?}");
        assert_eq!(answer.status, status, "{what}");
        assert_eq!(answer.error_type(), error_type, "{what}");
        assert_eq!(!answer.headers.contains_key("content-type"), is_xml, "{what}");
        if is_xml && status == 403 {
            assert_eq!(answer.text(), UNDETERMINED, "{what}");
        }
        assert_ids(&answer);
    }
    assert_eq!(client.call("Echo", "still").await.text(), "still");
    assert_eq!(served.server.counts().connections_accepted, 1);
    assert_eq!(served.api.begun.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_path_does_not_matter() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    for path in ["/", "/any/where?X-Amz-Algorithm=a", "/health"] {
        client.send(raw("POST", path, &[JSON, ECHO], "body")).await;
        assert_eq!(client.answer().await.text(), "body", "{path}");
    }
}

/// The size is the first check: before the method, before anything else.
#[tokio::test]
async fn a_body_that_is_too_large_is_the_first_thing_refused() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let served = Served::start(limits);
    let mut client = served.connect().await;
    let large = "x".repeat(1001);
    for method in ["POST", "GET", "DELETE"] {
        client.send(raw(method, "/", &[], &large)).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.error_type()), (413, "RequestEntityTooLarge"));
        assert!(answer.text().starts_with("<RequestEntityTooLarge>"), "{}", answer.text());
    }
    client.send(raw("POST", "/", &[JSON, ECHO], &large)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 413);
    assert!(answer.text().starts_with(r#"{"__type":"RequestEntityTooLarge""#), "{answer:?}");
    let most = "y".repeat(1000);
    assert_eq!(client.call("Echo", &most).await.text(), most);
}

/// More than is received to be polite: the answer comes, and the connection ends.
#[tokio::test]
async fn a_body_without_bounds_is_refused_and_ends_the_connection() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let length = format!("content-length: {}\r\n", 1u64 << 40);
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{JSON}{ECHO}{length}\r\n")).await;
    let piece = vec![0u8; 1 << 20];
    let mut sent = 0;
    while sent < 64 && client.send_if_taken(&piece).await {
        sent += 1;
    }
    assert!(sent < 64, "the server takes {sent} MiB");
    served.until("the end of the connection", |counts| counts.connections_open == 0).await;
    assert_eq!(served.server.counts().bodies_bytes, 0);
}

#[tokio::test]
async fn pages_of_other_origins_may_call() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let asked = [
        "origin: http://elsewhere\r\n",
        "access-control-request-headers: authorization, x-amz-date\r\n",
        "access-control-request-method: POST\r\n",
    ];
    client.send(raw("OPTIONS", "/", &asked, "")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text()), (200, ""));
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-headers"), "authorization, x-amz-date");
    assert_eq!(answer.header("access-control-allow-methods"), "POST");
    assert_eq!(answer.header("access-control-max-age"), "172800");
    assert_eq!(answer.header("content-length"), "0");
    assert_eq!(answer.header("x-amzn-requestid").len(), 36);
    assert!(!answer.headers.contains_key("x-amz-id-2"));

    client.send(request_with("Echo", "origin: http://elsewhere\r\n", "body")).await;
    let answer = client.answer().await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert!(answer.header("access-control-expose-headers").contains("x-amzn-RequestId"));
    let answer = client.call("Echo", "body").await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn health_and_metrics_are_there_for_those_who_look_after_the_server() {
    let served = Served::start_with(|config| {
        let text = |counts: &ServerCounts| format!("requests {}\n", counts.requests);
        config.metrics = Some(Arc::new(text));
        config.limits.requests_max = 1;
    });
    let mut busy = served.connect().await;
    busy.send(request("Gate", "")).await;
    served.until("a request under way", |counts| counts.requests_open == 1).await;

    let mut client = served.connect().await;
    client.send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let health = client.answer().await;
    assert_eq!((health.status, health.text()), (200, "ok\n"));
    client.send("GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let metrics = client.answer().await;
    assert_eq!((metrics.status, metrics.text()), (200, "requests 1\n"));
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    served.api.gate.add_permits(1);
    assert_eq!(busy.answer().await.status, 200);
}

/// A text may have megabytes, and takes its time: who asks often does not fill the memory.
#[tokio::test]
async fn only_some_get_metrics_at_a_time() {
    const PLACES: usize = 2;
    let (gate, wait) = std::sync::mpsc::channel::<()>();
    let (wait, began) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
    let seen = began.clone();
    let served = Served::start_with(|config| {
        config.metrics = Some(Arc::new(move |_: &ServerCounts| {
            seen.fetch_add(1, Relaxed);
            let told = wait.lock().expect("nobody panics with it").recv();
            format!("{told:?}\n")
        }));
    });
    let request = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..PLACES {
        let mut client = served.connect().await;
        client.send(request).await;
        clients.push(client);
    }
    let all = |_: &ServerCounts| began.load(Relaxed) == PLACES;
    served.until("as many as may be", all).await;
    // Nobody who calls the API waits for them.
    let mut client = served.connect().await;
    assert_eq!(client.call("Echo", "body").await.text(), "body");
    client.send(request).await;
    assert_eq!(client.answer().await.status, 503);
    (0..PLACES).for_each(|_| gate.send(()).expect("it is waited for"));
    for mut waiting in clients {
        let answer = waiting.answer().await;
        assert_eq!((answer.status, answer.text()), (200, "Ok(())\n"));
    }
    // A place is free a moment after its text was taken.
    gate.send(()).expect("it can be told before");
    let started = Instant::now();
    loop {
        client.send(request).await;
        match client.answer().await.status {
            200 => break,
            status => assert_eq!(status, 503),
        }
        assert!(started.elapsed() < PATIENCE, "no place becomes free");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn without_metrics_their_path_is_any_path() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    client.send("GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 403);
}

#[tokio::test]
async fn the_api_learns_who_called_how() {
    let served = Served::start(Limits::default());
    let mut client = served.connect().await;
    let answer = client.call("Who", "").await;
    let id = answer.header("x-amzn-requestid");
    let expected = format!("HTTP/1.1 Json host=localhost ip=127.0.0.1 tls=false id={id}");
    assert_eq!(answer.text(), expected);
}

/// `[::]` takes both, and a client of IPv4 has an address of IPv4.
#[tokio::test]
async fn one_socket_takes_both_versions_of_ip() {
    let served = Served::start_with(|config| {
        config.listen = "[::]:0".parse().expect("an address");
    });
    let port = served.address().port();
    for ip in ["127.0.0.1", "[::1]"] {
        let stream = tokio::net::TcpStream::connect(format!("{ip}:{port}")).await;
        let mut client = crate::support::Client::new(stream.expect("the server listens"));
        let answer = client.call("Who", "").await;
        let seen = format!("ip={} ", ip.trim_matches(['[', ']']));
        assert!(answer.text().contains(&seen), "{}", answer.text());
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_told() {
    use thalweg_router::kinesis::server::{Server, ServerConfig, StartError};
    let served = Served::start(Limits::default());
    let (api, _senders) = crate::support::TestApi::new();
    let second = Server::start(ServerConfig::plain(served.address()), api);
    let Err(error @ StartError::Listen { .. }) = second else { panic!("{second:?}") };
    assert!(error.to_string().contains(&served.address().to_string()), "{error}");
}
