//! SubscribeToShard.

use std::time::{Duration, Instant};

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use bytes::BytesMut;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use thalweg_router::control::record::shard_id;
use thalweg_router::kinesis::check::check_output;
use thalweg_router::kinesis::model::model;
use thalweg_router::kinesis::service::ServiceSettings;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::consumers::register;
use crate::stream::{create, data_of, iterator, put, put_all, split};
use crate::support::PATIENCE;
use crate::support::router::{ACCOUNT, REGION, RouterOptions, TestRouter};

/// A message of an event stream.
#[derive(Debug)]
struct Message {
    kind: String,
    name: String,
    payload: Value,
}

/// A subscription as a client has it. Dropped, its connection is closed.
#[derive(Debug)]
struct Subscription {
    body: Incoming,
    buffer: BytesMut,
    decoder: MessageFrameDecoder,
    carrier: JoinHandle<()>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

impl Subscription {
    async fn try_begin(router: &TestRouter, consumer: &str, start: Value) -> Result<Self, Value> {
        Subscription::try_begin_at(router, consumer, 0, start).await
    }

    async fn try_begin_at(
        router: &TestRouter,
        consumer: &str,
        shard: usize,
        start: Value,
    ) -> Result<Self, Value> {
        let shard = format!("shardId-{shard:012}");
        let input = json!({
            "ConsumerARN": consumer, "ShardId": shard, "StartingPosition": start,
        });
        let socket = TcpStream::connect(router.address()).await.expect("the server listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("HTTP/1.1");
        let carrier = tokio::spawn(async move { drop(connection.await) });
        let request = hyper::Request::post("/")
            .header("host", "localhost")
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "Kinesis_20131202.SubscribeToShard")
            .body(Full::new(Bytes::from(input.to_string())))
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        if !answer.status().is_success() {
            let body = answer.into_body().collect().await.expect("it is whole").to_bytes();
            carrier.abort();
            return Err(serde_json::from_slice(&body).expect("JSON"));
        }
        assert_eq!(answer.headers()["content-type"], "application/vnd.amazon.eventstream");
        let body = answer.into_body();
        Ok(Subscription {
            body,
            buffer: BytesMut::new(),
            decoder: MessageFrameDecoder::new(),
            carrier,
        })
    }

    async fn begin(router: &TestRouter, consumer: &str, start: Value) -> Subscription {
        let mut subscription =
            Subscription::try_begin(router, consumer, start).await.expect("it is granted");
        let first = subscription.next().await.expect("a message");
        assert_eq!((first.name.as_str(), &first.payload), ("initial-response", &json!({})));
        subscription
    }

    /// The next message; none at the end of the stream.
    async fn next(&mut self) -> Option<Message> {
        let next = async {
            loop {
                if let DecodedFrame::Complete(message) =
                    self.decoder.decode_frame(&mut self.buffer).expect("messages")
                {
                    return Some(message);
                }
                let frame = self.body.frame().await?.expect("the stream goes on");
                self.buffer.extend_from_slice(frame.data_ref().expect("data"));
            }
        };
        let message = tokio::time::timeout(PATIENCE, next).await.expect("a message in time")?;
        let header = |name: &str| {
            let found = message.headers().iter().find(|header| header.name().as_str() == name);
            found.map(|header| header.value().as_string().expect("a text").as_str().to_owned())
        };
        let kind = header(":message-type").expect("a type");
        let name = header(":event-type").or_else(|| header(":exception-type")).expect("a name");
        let payload: Value = serde_json::from_slice(message.payload()).expect("JSON");
        if name == "SubscribeToShardEvent" {
            let operation = model().operation("SubscribeToShard").expect("an operation");
            let output = json!({ "EventStream": { "SubscribeToShardEvent": payload } });
            assert_eq!(check_output(operation, &output), Vec::<String>::new());
        }
        Some(Message { kind, name, payload })
    }

    /// The next event.
    async fn event(&mut self) -> Value {
        let message = self.next().await.expect("the stream goes on");
        assert_eq!(
            (message.kind.as_str(), message.name.as_str()),
            ("event", "SubscribeToShardEvent")
        );
        message.payload
    }

    /// The data of so many records, however many events they come in, and the last event.
    async fn records(&mut self, count: usize) -> (Vec<Vec<u8>>, Value) {
        let mut data = Vec::new();
        loop {
            let event = self.event().await;
            data.extend(data_of(&event));
            if data.len() >= count {
                return (data, event);
            }
        }
    }
}

fn trim_horizon() -> Value {
    json!({ "Type": "TRIM_HORIZON" })
}

async fn unlimited() -> TestRouter {
    TestRouter::start_with(RouterOptions { shard_limits: None, ..RouterOptions::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_pushed_and_a_continuation_goes_on() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let (one, two) = (register(&router, "c").await, register(&router, "d").await);
    put(&router, "s", b"a").await;
    put(&router, "s", b"b").await;
    let mut from_start = Subscription::begin(&router, &one, trim_horizon()).await;
    let (data, event) = from_start.records(2).await;
    assert_eq!(data, [b"a", b"b"]);
    assert_eq!(event["MillisBehindLatest"], 0);
    let mut from_end = Subscription::begin(&router, &two, json!({ "Type": "LATEST" })).await;
    // What is put once the subscription has begun is pushed to both.
    put(&router, "s", b"c").await;
    let (data, event) = from_start.records(1).await;
    assert_eq!(data, [b"c"]);
    assert_eq!(from_end.records(1).await.0, [b"c"]);
    // An idle consumer is told where it stands, by a number that goes on either way.
    let continuation = event["ContinuationSequenceNumber"].clone();
    drop((from_start, from_end));
    put(&router, "s", b"d").await;
    for (consumer, kind) in [("e", "AT_SEQUENCE_NUMBER"), ("f", "AFTER_SEQUENCE_NUMBER")] {
        let consumer = register(&router, consumer).await;
        let start = json!({ "Type": kind, "SequenceNumber": continuation });
        let mut subscription = Subscription::begin(&router, &consumer, start).await;
        assert_eq!(subscription.records(1).await.0, [b"d"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_consumer_is_told_where_it_stands() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    let mut subscription =
        Subscription::begin(&router, &consumer, json!({ "Type": "LATEST" })).await;
    let first = subscription.event().await;
    let began = Instant::now();
    let second = subscription.event().await;
    let between = began.elapsed();
    assert!((3..10).contains(&between.as_secs()), "{between:?}");
    for event in [&first, &second] {
        assert_eq!((data_of(event).len(), &event["MillisBehindLatest"]), (0, &json!(0)));
        assert!(event["ContinuationSequenceNumber"].is_string());
    }
    // From there on, nothing is passed over that came before the consumer came back.
    drop(subscription);
    put(&router, "s", b"a").await;
    let start = json!({
        "Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": second["ContinuationSequenceNumber"],
    });
    let mut subscription = Subscription::begin(&router, &consumer, start).await;
    assert_eq!(subscription.records(1).await.0, [b"a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_subscription_takes_over_after_five_seconds() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    let dry = json!({ "ConsumerARN": &consumer, "ShardId": "shardId-000000000000",
        "StartingPosition": trim_horizon(), "DryRun": true });
    let client = router.client();
    client.fail("SubscribeToShard", dry.clone(), "DryRunOperationException").await;
    let began = Instant::now();
    let mut first = Subscription::begin(&router, &consumer, trim_horizon()).await;
    let message = "Another active subscription exists for this consumer: 123456789012:s:shardId-000000000000:c";
    // A dry run said that it would succeed, which it would not.
    assert_eq!(client.fail("SubscribeToShard", dry, "ResourceInUseException").await, message);
    let mut refusals = 0;
    let mut second = loop {
        match Subscription::try_begin(&router, &consumer, trim_horizon()).await {
            Ok(subscription) => break subscription,
            Err(refusal) => {
                assert_eq!(refusal["__type"], "ResourceInUseException");
                assert_eq!(refusal["message"], message);
            }
        }
        refusals += 1;
        assert!(began.elapsed() < PATIENCE, "it is never taken over");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(refusals > 0 && began.elapsed() >= Duration::from_secs(5));
    let last = loop {
        let message = first.next().await.expect("it says why it ends");
        if message.kind == "exception" {
            break message;
        }
    };
    assert_eq!(
        (last.name.as_str(), &last.payload["message"]),
        ("ResourceInUseException", &json!(message))
    );
    assert!(first.next().await.is_none(), "the stream has ended");
    second.next().await.expect("the initial response");
    put(&router, "s", b"a").await;
    assert_eq!(second.records(1).await.0, [b"a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_shard_ends_the_stream_with_its_children() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let (one, two) = (register(&router, "c").await, register(&router, "d").await);
    put(&router, "s", b"a").await;
    let mut subscription = Subscription::begin(&router, &one, trim_horizon()).await;
    assert_eq!(subscription.records(1).await.0, [b"a"]);
    split(&router, "s").await;
    let mut late = Subscription::begin(&router, &two, json!({ "Type": "LATEST" })).await;
    for subscription in [&mut subscription, &mut late] {
        let last = loop {
            let event = subscription.event().await;
            assert_eq!(data_of(&event).len(), 0);
            if event.get("ChildShards").is_some() {
                break event;
            }
        };
        assert_eq!(last.get("ContinuationSequenceNumber"), None);
        let children = last["ChildShards"].as_array().expect("a list");
        let ids: Vec<&Value> = children.iter().map(|child| &child["ShardId"]).collect();
        assert_eq!(ids, ["shardId-000000000001", "shardId-000000000002"]);
        assert!(
            children.iter().all(|child| child["ParentShards"] == json!(["shardId-000000000000"]))
        );
        assert!(subscription.next().await.is_none(), "the stream has ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_deregistered_gets_nothing_more() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    router.client().call("DeregisterStreamConsumer", json!({ "ConsumerARN": consumer })).await;
    let last = loop {
        let message = subscription.next().await.expect("it says why it ends");
        if message.kind == "exception" {
            break message;
        }
    };
    assert_eq!(last.name, "ResourceNotFoundException");
    let refused = Subscription::try_begin(&router, &consumer, trim_horizon()).await;
    assert_eq!(refused.expect_err("it is gone")["__type"], "ResourceNotFoundException");
}

/// A client that takes nothing for a while loses nothing, and what it does not take waits at the
/// node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_gets_everything_in_order() {
    let router = unlimited().await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    let data: Vec<Vec<u8>> = (0..40).map(|byte| vec![byte; 500_000]).collect();
    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    for some in data.chunks(10) {
        put_all(&router, "s", some).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(subscription.records(40).await.0 == data);
}

/// A batch that is larger than any credit comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_records_are_pushed() {
    let router = unlimited().await;
    create(&router, "s", 1, 10_240).await;
    let consumer = register(&router, "c").await;
    let data: Vec<Vec<u8>> = [1000, (10 << 20) - 1, 3 << 20, 6 << 20, 1000]
        .iter()
        .zip(0..)
        .map(|(bytes, byte)| vec![byte; *bytes])
        .collect();
    for data in &data {
        put(&router, "s", data).await;
    }
    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    assert!(subscription.records(5).await.0 == data);
}

/// The credit of a subscription is that of the largest record at its beginning. What was put before
/// that was lowered, or after it was raised, has a batch beyond all of the credit: the node sends
/// nothing then, and it is fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_beyond_the_credit_are_pushed_when_the_largest_changes() {
    let router = unlimited().await;
    create(&router, "s", 1, 10_240).await;
    let consumer = register(&router, "c").await;
    let size = async |kib: u32| {
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
        let input = json!({ "StreamARN": arn, "MaxRecordSizeInKiB": kib });
        router.client().call("UpdateMaxRecordSize", input).await;
        router.client().wait_until_active("s").await;
    };
    let (large, small) = (vec![1; 6 << 20], vec![2; 1000]);
    put(&router, "s", &large).await;
    put(&router, "s", &small).await;
    size(1024).await;
    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    assert!(subscription.records(2).await.0 == [large.clone(), small.clone()]);
    size(10_240).await;
    put(&router, "s", &large).await;
    put(&router, "s", &small).await;
    assert!(subscription.records(2).await.0 == [large, small]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_gets_two_mebibytes_a_second() {
    let router = TestRouter::start_with(RouterOptions {
        service: ServiceSettings { limits: true, ..ServiceSettings::default() },
        shard_limits: None,
        ..RouterOptions::default()
    })
    .await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    let data: Vec<Vec<u8>> = (0..8).map(|byte| vec![byte; (1 << 20) - 1]).collect();
    put_all(&router, "s", &data).await;
    let began = Instant::now();
    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    assert!(subscription.records(8).await.0 == data);
    let took = began.elapsed();
    // Seven events have to be paid for before the last one leaves.
    assert!(took >= Duration::from_millis(3200), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// A shard that its node has ended is not at its end for readers until its children are seen: the
/// KCL would take an end without children for a fault and ask again for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_does_not_end_before_its_children_are_seen() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    put(&router, "s", b"a").await;
    let shard = shard_id(router.stream("s").id(), 0);
    router.known_node.seal(shard).await.expect("the node ends the shard");

    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    assert_eq!(subscription.records(1).await.0, [b"a"]);
    let event = subscription.event().await;
    assert_eq!((data_of(&event).len(), event.get("ChildShards")), (0, None));
    assert!(event["ContinuationSequenceNumber"].is_string());
    let place = json!({ "ShardIteratorType": "TRIM_HORIZON" });
    let mut iterator = iterator(&router, "s", place).await;
    for count in [1, 0, 0] {
        let input = json!({ "ShardIterator": iterator });
        let output = router.client().call("GetRecords", input).await;
        assert_eq!((data_of(&output).len(), output.get("ChildShards")), (count, None));
        iterator = output["NextShardIterator"].as_str().expect("it goes on").to_owned();
    }

    split(&router, "s").await;
    let last = loop {
        let event = subscription.event().await;
        if event.get("ChildShards").is_some() {
            break event;
        }
    };
    assert_eq!(last.get("ContinuationSequenceNumber"), None);
    let input = json!({ "ShardIterator": iterator });
    let output = router.client().call("GetRecords", input).await;
    assert_eq!(output["ChildShards"], last["ChildShards"]);
    assert_eq!(output.get("NextShardIterator"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_is_counted_for_its_consumer() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let consumer = register(&router, "c").await;
    register(&router, "idle").await;
    put_all(&router, "s", &[b"one".to_vec(), b"three".to_vec()]).await;
    let mut subscription = Subscription::begin(&router, &consumer, trim_horizon()).await;
    assert_eq!(subscription.records(2).await.0.len(), 2);
    let refused = Subscription::try_begin(&router, &consumer, trim_horizon()).await;
    assert_eq!(refused.expect_err("one lasts")["__type"], "ResourceInUseException");

    let labels = [("account", ACCOUNT), ("region", REGION), ("stream", "s"), ("consumer", "c")];
    let started = Instant::now();
    // An event counts once it is on its way, which may be after its client has it.
    let shown = loop {
        let shown = router.metrics().await;
        if shown.find("thalweg_subscribe_to_shard_event_records_total", &labels) == Some(2.0) {
            break shown;
        }
        assert!(started.elapsed() < PATIENCE, "the event is not counted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let get = |name: &str| shown.get(&format!("thalweg_subscribe_to_shard_{name}"), &labels);
    assert_eq!((get("success_total"), get("rate_exceeded_total")), (1.0, 1.0));
    assert_eq!(get("event_bytes_total"), 10.0);
    assert!(get("event_success_total") >= 1.0);
    assert_eq!(get("event_millis_behind_latest_count"), get("event_success_total"));
    assert_eq!(get("event_millis_behind_latest_sum"), 0.0);
    assert!(shown.names_with("consumer", "idle").is_empty(), "it has not subscribed");
    assert_eq!(shown.get("thalweg_router_event_streams_open", &[]), 1.0);

    let input = json!({ "ConsumerARN": consumer });
    router.client().call("DeregisterStreamConsumer", input).await;
    while !router.metrics().await.names_with("consumer", "c").is_empty() {
        assert!(started.elapsed() < PATIENCE, "the consumer stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until so many subscriptions have their memory, and no more.
async fn until_reserved(router: &TestRouter, subscriptions: usize) {
    // A record and what is around it.
    let bytes = subscriptions * ((1 << 20) + (8 << 10));
    let started = Instant::now();
    loop {
        let reserved = router.metrics().await.get("thalweg_router_subscriptions_bytes", &[]);
        if reserved == bytes as f64 {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{reserved} bytes for {subscriptions}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each subscription held a MiB of the memory of all reads, whether anything came or not: 62 of them
/// with `thalweg dev`, and every GetRecords failed after ten seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_take_no_memory_of_other_reads() {
    // Room for one answer of the largest size: for 13 subscriptions.
    const MOST: usize = 13;
    const SHARDS: usize = 7;
    let options = RouterOptions { subscribe_bytes: 0, ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    create(&router, "s", SHARDS as u32, 1024).await;
    put(&router, "s", b"before").await;
    let consumers = [register(&router, "one").await, register(&router, "two").await];
    let mut granted = Vec::new();
    let mut refused = Vec::new();
    for consumer in &consumers {
        for shard in 0..SHARDS {
            let latest = json!({ "Type": "LATEST" });
            match Subscription::try_begin_at(&router, consumer, shard, latest).await {
                Ok(subscription) => granted.push(subscription),
                Err(error) => refused.push(error),
            }
            // A grant is told a moment before its memory is taken.
            until_reserved(&router, granted.len()).await;
        }
    }
    assert_eq!((granted.len(), refused.len()), (MOST, 1));
    assert_eq!(refused[0]["__type"], "LimitExceededException", "{}", refused[0]);
    let mut found = Vec::new();
    for shard in 0..SHARDS {
        let start = json!({
            "ShardId": format!("shardId-{shard:012}"), "ShardIteratorType": "TRIM_HORIZON",
        });
        let iterator = iterator(&router, "s", start).await;
        let input = json!({ "ShardIterator": iterator });
        found.extend(data_of(&router.client().call("GetRecords", input).await));
    }
    assert_eq!(found, [b"before".to_vec()]);
    // One that ends makes room.
    drop(granted.pop());
    until_reserved(&router, MOST - 1).await;
    let latest = json!({ "Type": "LATEST" });
    Subscription::try_begin_at(&router, &consumers[1], SHARDS - 1, latest).await.expect("room");
}
