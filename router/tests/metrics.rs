//! What a router shows of itself, held against what its clients were told.

mod support;

use serde_json::{Value, json};
use support::prometheus::Scrape;
use support::router::{ACCOUNT, REGION, RouterOptions, TestClient, TestRouter, get_metrics};
use support::{PATIENCE, TestNode, data_directory};
use thalweg_router::kinesis::service::ServiceSettings;
use thalweg_router::{Access, Router, RouterConfig};
use thalweg_wire::control::{Rate, ShardLimits};

/// The labels of a stream of the tests.
const S: [(&str, &str); 3] = [("account", ACCOUNT), ("region", REGION), ("stream", "s")];

fn record(key: &str, data: &str) -> Value {
    json!({ "PartitionKey": key, "Data": base64_simd::STANDARD.encode_to_string(data) })
}

async fn iterator(client: &TestClient, stream: &str, shard: &str) -> Value {
    let input = json!({
        "StreamName": stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON",
    });
    client.call("GetShardIterator", input).await["ShardIterator"].clone()
}

/// Puts ten records in one call; answers how many of them were stored.
async fn put_ten(client: &TestClient, stream: &str) -> u64 {
    let records: Vec<Value> = (0..10).map(|n| record(&format!("k{n}"), "12345678")).collect();
    let input = json!({ "StreamName": stream, "Records": records });
    let output = client.call("PutRecords", input).await;
    10 - output["FailedRecordCount"].as_u64().expect("a count")
}

#[test]
fn a_text_that_is_not_in_the_format_is_refused() {
    let head = "# HELP thalweg_a_total A\n# TYPE thalweg_a_total counter\n";
    let good = format!("{head}thalweg_a_total{{x=\"1\",y=\"a\\\\b\\\"c\\nd\"}} 5\n");
    let read = Scrape::parse(&good).expect("it is in the format");
    assert_eq!(read.get("thalweg_a_total", &[("x", "1"), ("y", "a\\b\"c\nd")]), 5.0);
    let histogram = "# HELP thalweg_h H\n# TYPE thalweg_h histogram\n";
    for (what, text) in [
        ("no end", head.trim_end().to_owned()),
        ("no type", "# HELP thalweg_a_total A\n".to_owned()),
        ("another's name", "# HELP a_total A\n# TYPE a_total counter\na_total 1\n".to_owned()),
        ("a counter without total", "# HELP thalweg_a A\n# TYPE thalweg_a counter\n".to_owned()),
        ("twice described", format!("{head}{head}")),
        ("no description", "thalweg_b_total 1\n".to_owned()),
        ("twice the same", format!("{head}thalweg_a_total 1\nthalweg_a_total 1\n")),
        ("a negative counter", format!("{head}thalweg_a_total -1\n")),
        ("no number", format!("{head}thalweg_a_total inf\n")),
        ("no value", format!("{head}thalweg_a_total\n")),
        ("an open label", format!("{head}thalweg_a_total{{x=\"1}} 1\n")),
        ("a raw quote", format!("{head}thalweg_a_total{{x=\"1\"2\"}} 1\n")),
        ("twice a label", format!("{head}thalweg_a_total{{x=\"1\",x=\"2\"}} 1\n")),
        ("an empty line", format!("{head}\n")),
        ("no last bucket", format!("{histogram}thalweg_h_bucket{{le=\"1\"}} 1\n")),
        (
            "buckets that fall",
            format!(
                "{histogram}thalweg_h_bucket{{le=\"1\"}} 2\nthalweg_h_bucket{{le=\"+Inf\"}} 1\n\
                 thalweg_h_sum 1\nthalweg_h_count 1\n"
            ),
        ),
    ] {
        assert!(Scrape::parse(&text).is_err(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_and_read_is_counted() {
    let few = Rate { per_s: 1, capacity: 3 };
    let limits = ShardLimits { records: few, ..ShardLimits::KINESIS };
    let router = TestRouter::start_with(RouterOptions {
        shard_limits: Some(limits),
        ..RouterOptions::default()
    })
    .await;
    let client = router.client();
    router.create_stream("s", 2).await;
    router.create_stream("unused", 3).await;
    let before = router.metrics().await;
    assert!(before.names_with("stream", "s").is_empty(), "nobody has used it");
    assert_eq!(before.get("thalweg_router_streams", &[("status", "ACTIVE")]), 2.0);
    assert_eq!(before.get("thalweg_router_open_shards", &[]), 5.0);
    assert_eq!(before.get("thalweg_router_reconciler_backlog_streams", &[]), 0.0);

    let mut put = record("k", "hello");
    put["StreamName"] = json!("s");
    client.call("PutRecord", put.clone()).await;
    put["StreamName"] = json!("missing");
    client.fail("PutRecord", put, "ResourceNotFoundException").await;
    let (mut stored, mut throttled) = (0, 0);
    for _ in 0..3 {
        let more = put_ten(&client, "s").await;
        (stored, throttled) = (stored + more, throttled + 10 - more);
    }
    assert!(stored > 0 && throttled > 0, "{stored} stored, {throttled} throttled");

    let counted = router.node().counters();
    // For a moment after a refusal the router refuses by itself.
    assert!((1..=throttled).contains(&counted.records_throttled), "{counted:?}");
    assert!((1..=counted.records_throttled).contains(&counted.batches_throttled), "{counted:?}");

    let shown = router.metrics().await;
    let get = |name: &str| shown.get(&format!("thalweg_{name}"), &S);
    let (stored, throttled) = (stored as f64, throttled as f64);
    assert_eq!(get("incoming_records_total"), 1.0 + stored);
    assert_eq!(get("incoming_bytes_total"), 6.0 + stored * 10.0);
    assert_eq!(get("write_provisioned_throughput_exceeded_total"), throttled);
    assert_eq!((get("put_record_bytes_total"), get("put_record_success_total")), (6.0, 1.0));
    assert_eq!(get("put_record_latency_milliseconds_count"), 1.0);
    assert!(get("put_record_latency_milliseconds_sum") > 0.0);
    assert_eq!(get("put_records_bytes_total"), stored * 10.0);
    assert_eq!(get("put_records_total_records_total"), 30.0);
    assert_eq!(get("put_records_successful_records_total"), stored);
    assert_eq!(get("put_records_throttled_records_total"), throttled);
    assert_eq!(get("put_records_failed_records_total"), 0.0);
    assert_eq!(get("put_records_latency_milliseconds_count"), 3.0);
    assert_eq!(shown.find("thalweg_get_records_records_total", &S), None, "nobody has read");
    assert!(shown.names_with("stream", "unused").is_empty());

    let mut read = 0;
    for shard in ["shardId-000000000000", "shardId-000000000001"] {
        let iterator = iterator(&client, "s", shard).await;
        let output = client.call("GetRecords", json!({ "ShardIterator": iterator })).await;
        read += output["Records"].as_array().expect("a list").len();
    }
    assert_eq!(read as f64, 1.0 + stored);
    let shown = router.metrics().await;
    let get = |name: &str| shown.get(&format!("thalweg_get_records_{name}"), &S);
    assert_eq!(get("records_total"), 1.0 + stored);
    assert_eq!(get("bytes_total"), 6.0 + stored * 10.0);
    assert_eq!((get("success_total"), get("latency_milliseconds_count")), (2.0, 2.0));
    assert_eq!(get("iterator_age_milliseconds_count"), 2.0);
    assert_eq!(get("iterator_age_milliseconds_sum"), 0.0, "both have read to the end");

    let calls = |operation: &str, error: &str| {
        let labels = [("operation", operation), ("error", error)];
        shown.find("thalweg_router_requests_total", &labels)
    };
    assert_eq!(calls("PutRecord", "none"), Some(1.0));
    assert_eq!(calls("PutRecord", "ResourceNotFoundException"), Some(1.0));
    assert_eq!(calls("PutRecords", "none"), Some(3.0));
    assert_eq!(calls("GetRecords", "none"), Some(2.0));
    assert_eq!(calls("MergeShards", "none"), None);
    let took =
        shown.get("thalweg_router_request_duration_seconds_count", &[("operation", "PutRecord")]);
    assert_eq!(took, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_are_too_quick_are_counted() {
    let service = ServiceSettings::default();
    let options = RouterOptions { service, ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let iterator = iterator(&client, "s", "shardId-000000000000").await;
    let (mut served, mut refused, started) = (0, 0, std::time::Instant::now());
    while refused < 3 {
        match client.try_call("GetRecords", json!({ "ShardIterator": iterator })).await {
            Ok(_) => served += 1,
            Err(failure) => {
                assert_eq!(failure.kind, "ProvisionedThroughputExceededException");
                refused += 1;
            }
        }
        assert!(started.elapsed() < PATIENCE, "nobody is refused: {served} served");
    }
    let shown = router.metrics().await;
    let get = |name: &str| shown.get(&format!("thalweg_{name}"), &S);
    assert_eq!(get("read_provisioned_throughput_exceeded_total"), 3.0);
    assert_eq!(get("get_records_success_total"), f64::from(served));
    assert_eq!(get("get_records_latency_milliseconds_count"), f64::from(served) + 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_shown_as_far_as_their_stream_asks() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 2).await;
    assert_eq!(put_ten(&client, "s").await, 10);
    let metrics = |names: &[&str]| json!({ "StreamName": "s", "ShardLevelMetrics": names });
    let some = metrics(&["IncomingRecords", "IteratorAgeMilliseconds"]);
    client.call("EnableEnhancedMonitoring", some).await;
    client.wait_until_active("s").await;
    let shown = router.metrics().await;
    assert_eq!(shown.sum("thalweg_shard_incoming_records_total", &S), 0.0, "from now on");

    assert_eq!(put_ten(&client, "s").await, 10);
    let first = "shardId-000000000000";
    let of_first = [S[0], S[1], S[2], ("shard", first)];
    let iterator = iterator(&client, "s", first).await;
    let output = client.call("GetRecords", json!({ "ShardIterator": iterator })).await;
    let read = output["Records"].as_array().expect("a list").len() as f64;
    assert!(read > 0.0 && read < 20.0, "ten keys are in both shards: {read}");
    let shown = router.metrics().await;
    assert_eq!(shown.sum("thalweg_shard_incoming_records_total", &S), 10.0);
    assert_eq!(shown.get("thalweg_shard_incoming_records_total", &of_first), read / 2.0);
    assert_eq!(shown.get("thalweg_shard_iterator_age_milliseconds_count", &of_first), 1.0);
    let names = shown.names_with("shard", first);
    assert!(!names.contains("thalweg_shard_incoming_bytes_total"), "{names:?}");
    assert!(!names.contains("thalweg_shard_outgoing_records_total"), "{names:?}");

    client.call("EnableEnhancedMonitoring", metrics(&["ALL"])).await;
    client.wait_until_active("s").await;
    let shown = router.metrics().await;
    // What was counted of the others meanwhile is theirs.
    assert_eq!(shown.get("thalweg_shard_outgoing_records_total", &of_first), read);
    assert_eq!(shown.get("thalweg_shard_outgoing_bytes_total", &of_first), read * 10.0);
    assert_eq!(shown.sum("thalweg_shard_incoming_bytes_total", &S), 100.0);
    let names = shown.names_with("shard", first);
    let families: Vec<_> = names.iter().filter(|name| name.ends_with("_total")).collect();
    assert_eq!(families.len(), 6, "{families:?}");

    client.call("DisableEnhancedMonitoring", metrics(&["ALL"])).await;
    client.wait_until_active("s").await;
    let shown = router.metrics().await;
    assert!(shown.names_with("shard", first).is_empty());
    assert_eq!(shown.get("thalweg_incoming_records_total", &S), 20.0, "streams are always shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_not_shown_and_its_successor_begins_anew() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    put_ten(&client, "s").await;
    let shown = router.metrics().await;
    assert_eq!(shown.get("thalweg_incoming_records_total", &S), 10.0);
    client.call("DeleteStream", json!({ "StreamName": "s" })).await;
    client.wait_until_gone("s").await;
    assert!(router.metrics().await.names_with("stream", "s").is_empty());
    router.create_stream("s", 1).await;
    assert!(router.metrics().await.names_with("stream", "s").is_empty());
    put_ten(&client, "s").await;
    let shown = router.metrics().await;
    assert_eq!(shown.get("thalweg_incoming_records_total", &S), 10.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_transport_is_shown() {
    let router = TestRouter::start().await;
    let client = router.client();
    client.fail("Nonsense", json!({}), "UnknownOperationException").await;
    client.call("ListStreams", json!({})).await;
    let shown = router.metrics().await;
    let refused = [("error", "UnknownOperationException")];
    assert_eq!(shown.get("thalweg_router_refusals_total", &refused), 1.0);
    assert_eq!(shown.get("thalweg_router_http_requests_total", &[]), 2.0);
    assert!(shown.get("thalweg_router_connections_accepted_total", &[]) >= 3.0);
    assert!(shown.get("thalweg_router_connections_open", &[]) >= 1.0);
    assert_eq!(shown.get("thalweg_router_writer_bytes", &[]), 0.0);
    assert_eq!(shown.get("thalweg_router_fetcher_limit_bytes", &[]), f64::from(64 << 20));
    assert_eq!(shown.get("thalweg_build_info", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_address_of_their_own_they_are_not_with_the_api() {
    let node = TestNode::start(1, 0, None);
    let directory = data_directory();
    let listen = ([127, 0, 0, 1], 0).into();
    let access = Access::Open { account_id: ACCOUNT.to_owned(), region: REGION.to_owned() };
    let config = RouterConfig::new(listen, directory.path().join("store"), access);
    let config = RouterConfig { metrics_listen: Some(listen), ..config };
    let router = Router::start(config, node.addresses()[0]).await.expect("the router starts");
    let (status, text) = get_metrics(router.address()).await;
    assert_eq!(status, 403, "{text}");
    let apart = router.metrics_address().expect("it was asked for");
    let (status, text) = get_metrics(apart).await;
    assert_eq!(status, 200, "{text}");
    let shown = Scrape::parse(&text).expect("it is in the format");
    // The one connection to the API is counted, and not those for metrics.
    assert_eq!(shown.get("thalweg_router_connections_accepted_total", &[]), 1.0);
    let refused = [("error", "AccessDeniedException")];
    assert_eq!(shown.get("thalweg_router_refusals_total", &refused), 1.0);
    router.stop().await;
}
