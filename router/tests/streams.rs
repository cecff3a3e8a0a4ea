//! Streams from their creation to their end, through the whole router.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::router::{ACCOUNT, Failure, RouterOptions, TestClient, TestRouter, access_key};
use support::wait_for;
use thalweg_router::control::record::{
    Intent, NewShard, RecordKey, ReshardStep, StreamStatus, encode_record, shard_id,
};
use thalweg_router::control::store::{Store, Transaction};
use thalweg_router::kinesis::model::model;
use thalweg_router::kinesis::service::ServiceSettings;
use thalweg_wire::hash_range::{HashKey, HashRange};

const SECOND: Duration = Duration::from_secs(1);

/// With limits on counts and rates of calls.
fn limited() -> RouterOptions {
    RouterOptions { service: ServiceSettings::default(), ..RouterOptions::default() }
}

fn names(page: &Value) -> Vec<&str> {
    let names = page["StreamNames"].as_array().expect("a list").iter();
    names.map(|name| name.as_str().expect("a name")).collect()
}

/// Each creation changes the account's quota. A dozen at a time failed each other's transactions
/// until some were told that others were changing streams, ResourceInUseException.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_are_created_at_a_time() {
    let router = TestRouter::start().await;
    let names: Vec<String> = (0..40).map(|number| format!("s{number}")).collect();
    let creations =
        names.iter().map(|name| {
            let client = router.client();
            async move {
                client.call("CreateStream", json!({ "StreamName": name, "ShardCount": 1 })).await
            }
        });
    futures_util::future::join_all(creations).await;
    for name in &names {
        router.client().wait_until_active(name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_created_described_listed_and_deleted() {
    let router = TestRouter::start().await;
    let client = router.client();
    let target = json!({ "StreamName": "s" });
    assert_eq!(
        client.fail("DescribeStream", target.clone(), "ResourceNotFoundException").await,
        "Stream s under account 123456789012 not found."
    );
    let input = json!({ "StreamName": "s", "ShardCount": 3, "Tags": { "team": "red" },
        "MaxRecordSizeInKiB": 2048 });
    assert_eq!(client.call("CreateStream", input.clone()).await, json!({}));
    assert_eq!(
        client.fail("CreateStream", input, "ResourceInUseException").await,
        "Stream s under account 123456789012 already exists."
    );
    let summary = client.wait_until_active("s").await;
    let created = summary["StreamCreationTimestamp"].as_u64().expect("whole seconds");
    assert!(created.abs_diff((router.now_ms)() / 1000) < 60);
    let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
    assert_eq!(
        summary,
        json!({
            "StreamName": "s", "StreamARN": arn, "StreamStatus": "ACTIVE",
            "StreamModeDetails": { "StreamMode": "PROVISIONED" },
            "RetentionPeriodHours": 24, "StreamCreationTimestamp": created,
            "EnhancedMonitoring": [{ "ShardLevelMetrics": [] }], "EncryptionType": "NONE",
            "OpenShardCount": 3, "ConsumerCount": 0, "MaxRecordSizeInKiB": 2048,
        })
    );
    assert_eq!(router.stream("s").record.tags["team"], "red");

    let described = client.call("DescribeStream", json!({ "StreamARN": arn })).await;
    let described = &described["StreamDescription"];
    assert_eq!(described["HasMoreShards"], false);
    let shards = described["Shards"].as_array().expect("a list");
    let ranges: Vec<&Value> = shards.iter().map(|shard| &shard["HashKeyRange"]).collect();
    assert_eq!(
        json!(ranges),
        json!([
            { "StartingHashKey": "0",
              "EndingHashKey": "113427455640312821154458202477256070484" },
            { "StartingHashKey": "113427455640312821154458202477256070485",
              "EndingHashKey": "226854911280625642308916404954512140969" },
            { "StartingHashKey": "226854911280625642308916404954512140970",
              "EndingHashKey": "340282366920938463463374607431768211455" },
        ])
    );
    let first = json!({ "StreamName": "s", "Limit": 1, "ExclusiveStartShardId":
        "shardId-000000000000" });
    let page = client.call("DescribeStream", first).await;
    let page = &page["StreamDescription"];
    assert_eq!(page["Shards"], json!([shards[1]]));
    assert_eq!(page["HasMoreShards"], true);
    let unknown = json!({ "StreamName": "s", "ExclusiveStartShardId": "shard-x" });
    assert_eq!(
        client.fail("DescribeStream", unknown, "ResourceNotFoundException").await,
        "Could not find shard shard-x in stream s under account 123456789012."
    );

    let put = json!({ "StreamName": "s", "PartitionKey": "k", "Data": "AAAA" });
    let stored = client.call("PutRecord", put.clone()).await;
    let number = stored["SequenceNumber"].as_str().expect("a number");
    let shard = shards.iter().find(|shard| shard["ShardId"] == stored["ShardId"]);
    let range = &shard.expect("one of the stream's")["SequenceNumberRange"];
    assert!(range["StartingSequenceNumber"].as_str().expect("a number") < number);
    assert_eq!(range.get("EndingSequenceNumber"), None);

    let listed = client.call("ListStreams", json!({})).await;
    assert_eq!(names(&listed), ["s"]);
    assert_eq!(listed["HasMoreStreams"], false);
    assert_eq!(
        listed["StreamSummaries"],
        json!([{ "StreamName": "s", "StreamARN": arn, "StreamStatus": "ACTIVE",
            "StreamModeDetails": { "StreamMode": "PROVISIONED" },
            "StreamCreationTimestamp": created }])
    );
    let elsewhere = client.in_region("eu-west-1").call("ListStreams", json!({})).await;
    assert_eq!(names(&elsewhere), Vec::<&str>::new());

    assert_eq!(client.call("DeleteStream", target.clone()).await, json!({}));
    client.wait_until_gone("s").await;
    client.fail("DeleteStream", target, "ResourceNotFoundException").await;
    client.fail("PutRecord", put, "ResourceNotFoundException").await;
    // Another of the same name is another.
    router.create_stream("s", 1).await;
    let again = client.call("DescribeStream", json!({ "StreamName": "s" })).await;
    assert_eq!(again["StreamDescription"]["Shards"].as_array().expect("a list").len(), 1);
}

/// A request that was signed for one region found the streams of all by their ARNs, iterators and
/// tokens: a region's endpoint has that region's streams alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_not_found_from_another_region() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 2).await;
    let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
    let shard = "shardId-000000000000";
    let input = json!({ "StreamARN": arn, "ConsumerName": "c" });
    let consumer = client.call("RegisterStreamConsumer", input).await;
    let consumer = consumer["Consumer"]["ConsumerARN"].clone();
    let input = json!({ "StreamName": "s", "ShardId": shard, "ShardIteratorType": "LATEST" });
    let iterator = client.call("GetShardIterator", input).await["ShardIterator"].clone();
    let page = client.call("ListShards", json!({ "StreamARN": arn, "MaxResults": 1 })).await;
    let start = json!({ "Type": "LATEST" });
    let calls = [
        ("DescribeStream", json!({ "StreamARN": arn })),
        ("DeleteStream", json!({ "StreamARN": arn })),
        ("PutRecord", json!({ "StreamARN": arn, "PartitionKey": "k", "Data": "AA==" })),
        (
            "PutRecords",
            json!({ "StreamARN": arn, "Records": [{ "PartitionKey": "k", "Data": "AA==" }] }),
        ),
        (
            "GetShardIterator",
            json!({ "StreamARN": arn, "ShardId": shard, "ShardIteratorType": "LATEST" }),
        ),
        ("GetRecords", json!({ "ShardIterator": iterator })),
        ("ListShards", json!({ "StreamARN": arn })),
        ("ListShards", json!({ "NextToken": page["NextToken"] })),
        ("ListStreamConsumers", json!({ "StreamARN": arn })),
        ("RegisterStreamConsumer", json!({ "StreamARN": arn, "ConsumerName": "d" })),
        ("DescribeStreamConsumer", json!({ "ConsumerARN": consumer })),
        ("DescribeStreamConsumer", json!({ "StreamARN": arn, "ConsumerName": "c" })),
        (
            "SubscribeToShard",
            json!({ "ConsumerARN": consumer, "ShardId": shard, "StartingPosition": start }),
        ),
        ("ListTagsForResource", json!({ "ResourceARN": arn })),
        ("TagResource", json!({ "ResourceARN": consumer, "Tags": { "a": "b" } })),
        ("GetResourcePolicy", json!({ "ResourceARN": arn })),
        ("UpdateMaxRecordSize", json!({ "StreamARN": arn, "MaxRecordSizeInKiB": 2048 })),
    ];
    let elsewhere = client.in_region("eu-west-1");
    for (operation, input) in calls {
        elsewhere.fail(operation, input, "ResourceNotFoundException").await;
    }
    assert_eq!(
        elsewhere
            .fail("DescribeStream", json!({ "StreamARN": arn }), "ResourceNotFoundException")
            .await,
        "Stream s under account 123456789012 not found: it is of us-east-1, and the request was \
         signed for eu-west-1. Set the client's region to the stream's."
    );
    // Of a consumer, that became one that is not there.
    let named = json!({ "StreamARN": arn, "ConsumerName": "c" });
    let message =
        elsewhere.fail("DescribeStreamConsumer", named, "ResourceNotFoundException").await;
    assert!(message.contains("Set the client's region"), "{message}");
    client.call("DescribeStream", json!({ "StreamARN": arn })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_listed_in_pages() {
    let router = TestRouter::start().await;
    let client = router.client();
    for at in 0..7 {
        router.create_stream(&format!("s{at}"), 1).await;
    }
    let first = client.call("ListStreams", json!({ "Limit": 3 })).await;
    assert_eq!(names(&first), ["s0", "s1", "s2"]);
    assert_eq!(first["HasMoreStreams"], true);
    // As paginators do it, the first call's input comes again.
    let input = json!({ "Limit": 3, "ExclusiveStartStreamName": "s",
        "NextToken": first["NextToken"] });
    let second = client.call("ListStreams", input).await;
    assert_eq!(names(&second), ["s3", "s4", "s5"]);
    let last = json!({ "Limit": 3, "ExclusiveStartStreamName": "s5" });
    let third = client.call("ListStreams", last).await;
    assert_eq!((names(&third), third.get("NextToken")), (vec!["s6"], None));
    assert_eq!(third["HasMoreStreams"], false);

    let token = json!({ "NextToken": first["NextToken"] });
    let elsewhere = client.in_region("eu-west-1");
    elsewhere.fail("ListStreams", token.clone(), "InvalidArgumentException").await;
    let none = json!({ "NextToken": "none" });
    client.fail("ListStreams", none, "InvalidArgumentException").await;
    router.advance(Duration::from_secs(301));
    client.fail("ListStreams", token, "ExpiredNextTokenException").await;
}

/// Each listing had words of its own for a token that cannot be used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_every_listing_are_refused_in_the_same_words() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 2).await;
    router.create_stream("t", 1).await;
    let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
    for name in ["c", "d"] {
        let input = json!({ "StreamARN": arn, "ConsumerName": name });
        client.call("RegisterStreamConsumer", input).await;
    }
    let listings = [
        ("ListStreams", json!({ "Limit": 1 }), json!({})),
        ("ListShards", json!({ "StreamName": "s", "MaxResults": 1 }), json!({})),
        (
            "ListStreamConsumers",
            json!({ "StreamARN": arn, "MaxResults": 1 }),
            json!({ "StreamARN": arn }),
        ),
    ];
    let mut tokens = Vec::new();
    for (operation, first, next) in listings {
        let page = client.call(operation, first).await;
        tokens.push((operation, next, page["NextToken"].clone()));
    }
    let refused = async |token: Option<&Value>, kind: &str| {
        let mut messages = Vec::new();
        for (operation, next, own) in &tokens {
            let mut input = next.clone();
            input["NextToken"] = token.unwrap_or(own).clone();
            messages.push(client.fail(operation, input, kind).await);
        }
        messages.dedup();
        messages
    };
    let invalid = refused(Some(&json!("none")), "InvalidArgumentException").await;
    assert!(invalid.len() == 1 && invalid[0].starts_with("NextToken is invalid"), "{invalid:?}");
    router.advance(Duration::from_secs(301));
    let expired = refused(None, "ExpiredNextTokenException").await;
    let told = "NextToken is expired: it can be used for 300 seconds. Begin the listing anew.";
    assert_eq!(expired, [told]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_many_shards_is_described_a_hundred_at_a_time() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 230).await;
    let (mut input, mut seen) = (json!({ "StreamName": "s", "Limit": 10_000 }), Vec::new());
    loop {
        let page = client.call("DescribeStream", input.clone()).await;
        let page = &page["StreamDescription"];
        let shards = page["Shards"].as_array().expect("a list");
        let ids = shards.iter().map(|shard| shard["ShardId"].as_str().expect("a name").to_owned());
        seen.extend(ids);
        assert_eq!(page["HasMoreShards"].as_bool(), Some(seen.len() < 230));
        if seen.len() >= 230 {
            break;
        }
        assert_eq!(shards.len(), 100);
        input["ExclusiveStartShardId"] = json!(seen.last());
    }
    let all: Vec<String> = (0..230).map(|index| format!("shardId-{index:012}")).collect();
    assert_eq!(seen, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_make_no_sense_are_refused() {
    let router = TestRouter::start().await;
    let client = router.client();
    let on_demand = json!({ "StreamMode": "ON_DEMAND" });
    for (input, kind) in [
        (json!({ "StreamName": "a b", "ShardCount": 1 }), "ValidationException"),
        (json!({ "StreamName": "s", "ShardCount": 0 }), "ValidationException"),
        (
            json!({ "StreamName": "s", "StreamModeDetails": { "StreamMode": "PROVISIONED" } }),
            "InvalidArgumentException",
        ),
        (
            json!({ "StreamName": "s", "ShardCount": 1, "StreamModeDetails": on_demand }),
            "ValidationException",
        ),
        (
            json!({ "StreamName": "s", "ShardCount": 1, "MaxRecordSizeInKiB": 1023 }),
            "ValidationException",
        ),
        (
            json!({ "StreamName": "s", "ShardCount": 1, "RecordDistributionStrategy": "AUTO" }),
            "InvalidArgumentException",
        ),
        // The account has not committed itself.
        (
            json!({ "StreamName": "s", "StreamModeDetails": on_demand, "WarmThroughputMiBps": 9 }),
            "ValidationException",
        ),
    ] {
        client.fail("CreateStream", input, kind).await;
    }
    for operation in ["DescribeStream", "DescribeStreamSummary", "DeleteStream"] {
        let message = client.fail(operation, json!({}), "InvalidArgumentException").await;
        assert_eq!(message, "Either StreamName or StreamARN must be specified.");
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/other";
        let two = json!({ "StreamName": "s", "StreamARN": arn });
        client.fail(operation, two, "InvalidArgumentException").await;
    }
    assert_eq!(router.catalog.streams().len(), 0);
}

/// The model's pattern lets the ARN of a consumer pass for its stream's, and so did we: a
/// DeleteStream with the ARN of a consumer deleted the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_arn_of_a_consumer_names_no_stream() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let own = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
    let shard = "shardId-000000000000";
    for (operation, more) in [
        ("DeleteStream", json!({})),
        ("DescribeStreamSummary", json!({})),
        ("ListShards", json!({})),
        ("ListStreamConsumers", json!({})),
        ("ListTagsForStream", json!({})),
        ("AddTagsToStream", json!({ "Tags": { "a": "b" } })),
        ("RegisterStreamConsumer", json!({ "ConsumerName": "c" })),
        ("DescribeStreamConsumer", json!({ "ConsumerName": "c" })),
        ("UpdateMaxRecordSize", json!({ "MaxRecordSizeInKiB": 2048 })),
        ("PutRecord", json!({ "Data": "AAAA", "PartitionKey": "k" })),
        ("GetShardIterator", json!({ "ShardId": shard, "ShardIteratorType": "LATEST" })),
    ] {
        for rest in ["/consumer/c:1700000000", "/", "/more"] {
            let mut input = more.clone();
            input["StreamARN"] = json!(format!("{own}{rest}"));
            let message = client.fail(operation, input, "InvalidArgumentException").await;
            assert_eq!(message, format!("{own}{rest} is no ARN of a stream."));
        }
    }
    client.wait_until_active("s").await;
}

/// Of a body that broke a constraint, an operation of queues said so, and left it to the next try
/// to say that it is not served at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_and_channels_are_not_served_whatever_is_asked() {
    let router = TestRouter::start().await;
    let client = router.client();
    let of_others = model().operations().iter().map(|operation| operation.name.as_str());
    let of_others: Vec<&str> =
        of_others.filter(|name| name.contains("Queue") || name.contains("Channel")).collect();
    assert_eq!(of_others.len(), 17);
    for operation in of_others {
        for input in [json!({}), json!({ "QueueARN": 7, "ChannelARN": [] }), json!([])] {
            let message = client.fail(operation, input, "UnknownOperationException").await;
            assert_eq!(message, format!("{operation} is not served by this version."));
        }
    }
}

/// DescribeStream took only the long form of a shard's name behind which to go on, where ListShards
/// takes every form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_goes_on_behind_a_shard_by_any_of_its_names() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 3).await;
    for name in ["shardId-000000000001", "shardId-1", "1"] {
        let input = json!({ "StreamName": "s", "ExclusiveStartShardId": name });
        let told = client.call("DescribeStream", input.clone()).await;
        let shards = &told["StreamDescription"]["Shards"];
        assert_eq!(shards[0]["ShardId"], "shardId-000000000002", "{name}");
        assert_eq!(*shards, client.call("ListShards", input).await["Shards"], "{name}");
    }
    let input = json!({ "StreamName": "s", "ExclusiveStartShardId": "none" });
    let message = client.fail("DescribeStream", input, "ResourceNotFoundException").await;
    assert_eq!(message, "Could not find shard none in stream s under account 123456789012.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_consumers_is_deleted_only_when_that_is_said() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    register(&router, "s", 45).await;
    let message =
        client.fail("DeleteStream", json!({ "StreamName": "s" }), "ResourceInUseException").await;
    assert_eq!(
        message,
        "DeleteStream can't delete 123456789012:s because there are consumers associated with \
         this data stream. To delete s anyway, set the EnforceConsumerDeletion parameter to true \
         to force the deletion of all the consumers that are associated with it."
    );
    let summary = client.wait_until_active("s").await;
    assert_eq!(summary["ConsumerCount"], 45);
    let input = json!({ "StreamName": "s", "EnforceConsumerDeletion": true });
    client.call("DeleteStream", input).await;
    client.wait_until_gone("s").await;
    let page = thalweg_router::control::store::PageRequest::first("stream/");
    assert_eq!(router.store.range(page).await.expect("a page").entries, []);
}

/// While their stream was being deleted, its consumers were shown as ACTIVE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_go_with_their_stream() {
    let options = RouterOptions { reconciles: false, ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let client = router.client();
    client.call("CreateStream", json!({ "StreamName": "s", "ShardCount": 1 })).await;
    register(&router, "s", 1).await;
    let input = json!({ "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/s" });
    let before = client.call("ListStreamConsumers", input.clone()).await;
    assert_eq!(before["Consumers"][0]["ConsumerStatus"], "ACTIVE");
    let delete = json!({ "StreamName": "s", "EnforceConsumerDeletion": true });
    client.call("DeleteStream", delete).await;
    let after = client.call("ListStreamConsumers", input).await;
    assert_eq!(after["Consumers"][0]["ConsumerStatus"], "DELETING");
    let arn = json!({ "ConsumerARN": after["Consumers"][0]["ConsumerARN"] });
    let told = client.call("DescribeStreamConsumer", arn).await;
    assert_eq!(told["ConsumerDescription"]["ConsumerStatus"], "DELETING");
}

/// Who was writing when a stream went was told of a failure of the service (500), and tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_while_a_stream_goes_is_told_that_it_is_not_there() {
    let router = TestRouter::start().await;
    for round in 0..10 {
        router.create_stream("s", 4).await;
        let write = |writer: u32, client: TestClient| async move {
            let mut record = json!({ "PartitionKey": writer.to_string(), "Data": "AAAA" });
            let (operation, input) = match writer % 2 {
                0 => ("PutRecords", json!({ "StreamName": "s", "Records": [record] })),
                _ => {
                    record["StreamName"] = json!("s");
                    ("PutRecord", record)
                }
            };
            for _ in 0..100_000 {
                match client.try_call(operation, input.clone()).await {
                    Err(failure) if failure.kind != "ProvisionedThroughputExceededException" => {
                        return failure;
                    }
                    _ => {}
                }
            }
            panic!("the stream never goes");
        };
        let writers: Vec<_> =
            (0..8).map(|writer| tokio::spawn(write(writer, router.client()))).collect();
        tokio::time::sleep(Duration::from_millis(5 * round)).await;
        router.advance(Duration::from_secs(1));
        router.client().call("DeleteStream", json!({ "StreamName": "s" })).await;
        for writer in writers {
            let failure = writer.await.expect("it ends");
            assert_eq!(failure.kind, "ResourceNotFoundException", "{failure:?}");
            assert_eq!(failure.message, "Stream s under account 123456789012 not found.");
        }
        router.client().wait_until_gone("s").await;
    }
}

/// Gives a stream consumers, in its records.
async fn register(router: &TestRouter, stream: &str, count: usize) {
    use thalweg_router::control::record::{ConsumerRecord, ConsumerStatus, RECORD_VERSION};
    let mut transaction = Transaction::new();
    for at in 0..count {
        let key = RecordKey::Consumer(TestRouter::name_of(stream), format!("c{at}"));
        let record = ConsumerRecord {
            version: RECORD_VERSION,
            created_ms: 1000,
            status: ConsumerStatus::Active,
            tags: Default::default(),
            policy: None,
        };
        transaction = transaction.put(key.encode(), encode_record(&record));
    }
    let revision = router.store.commit(transaction).await.expect("it is committed");
    router.catalog.wait_for(revision).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reshard_had_begun_goes_with_its_stream() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let stream = router.stream("s");
    // The reshard cannot be made: shard 7 is not there. Its child is at the node already, as when
    // a router was killed between the two.
    let child = shard_id(stream.id(), 1);
    open_at_node(&router, child).await;
    let new = NewShard { index: 1, range: HashRange { start: HashKey(0), end: HashKey(9) } };
    let steps = vec![ReshardStep { parents: vec![7], children: vec![new] }];
    let mut record = stream.record.clone();
    (record.status, record.intent) =
        (StreamStatus::Updating, Some(Intent::Reshard { steps, resize: None }));
    let key = RecordKey::Stream(stream.name.clone()).encode();
    let transaction = Transaction::new().put(key, encode_record(&record));
    let revision = router.store.commit(transaction).await.expect("it is committed");
    router.catalog.wait_for(revision).await;

    let target = json!({ "StreamName": "s" });
    let summary = client.call("DescribeStreamSummary", target.clone()).await;
    assert_eq!(summary["StreamDescriptionSummary"]["StreamStatus"], "UPDATING");
    client.call("DeleteStream", target.clone()).await;
    client.wait_until_gone("s").await;
    let left = router.known_node.describe_shard(child).await.expect("the node answers");
    assert_eq!(left, None, "the node has nothing of it");
}

/// A stream that was deleted and made again within a second had the old one's sequence numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_made_again_has_other_sequence_numbers() {
    let router = TestRouter::start().await;
    let client = router.client();
    let mut last = String::new();
    for _ in 0..4 {
        router.create_stream("s", 1).await;
        let record = json!({ "StreamName": "s", "PartitionKey": "k", "Data": "MQ==" });
        let put = client.call("PutRecord", record).await;
        let number = put["SequenceNumber"].as_str().expect("a number").to_owned();
        assert!(number > last, "{number} after {last}");
        last = number;
        client.call("DeleteStream", json!({ "StreamName": "s" })).await;
        client.wait_until_gone("s").await;
    }
}

async fn open_at_node(router: &TestRouter, shard: thalweg_wire::ids::ShardId) {
    use thalweg_wire::control::OpenExtent;
    use thalweg_wire::ids::{Epoch, ExtentId, Offset};
    let extent = ExtentId { shard, epoch: Epoch(1) };
    let open = OpenExtent::alone(extent, HashRange::FULL, Offset(0));
    router.known_node.open(&open).await.expect("it is opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_limited() {
    let mut options = limited();
    (options.service.shards_max, options.service.on_demand_streams_max) = (10, 1);
    let router = TestRouter::start_with(options).await;
    let client = router.client();
    let create = |name: &str, shards: u32| json!({ "StreamName": name, "ShardCount": shards });
    assert_eq!(
        client.fail("CreateStream", create("s", 11), "LimitExceededException").await,
        "This request would exceed the shard limit for the account 123456789012 in us-east-1. \
         Current shard count for the account: 0. Limit: 10. Number of additional shards that \
         would have resulted from this request: 11."
    );
    let on_demand = |name: &str| json!({ "StreamName": name, "StreamModeDetails": { "StreamMode": "ON_DEMAND" } });
    client.call("CreateStream", on_demand("d")).await;
    client.wait_until_active("d").await;
    client.fail("CreateStream", on_demand("e"), "LimitExceededException").await;
    client.call("CreateStream", create("p", 6)).await;
    client.wait_until_active("p").await;
    let message = client.fail("CreateStream", create("q", 1), "LimitExceededException").await;
    assert!(message.contains("Current shard count for the account: 10. Limit: 10."), "{message}");
    assert_eq!(
        client.call("DescribeLimits", json!({})).await,
        json!({ "ShardLimit": 10, "OpenShardCount": 10, "OnDemandStreamCount": 1,
            "OnDemandStreamCountLimit": 1 })
    );
    // Another region has its own.
    let elsewhere = client.in_region("eu-west-1");
    let limits = elsewhere.call("DescribeLimits", json!({})).await;
    assert_eq!(limits["OpenShardCount"], 0);
}

/// Without the limits of accounts, a count of shards went up to 2^31, and its stream was never
/// made: a stream has a million shards at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_has_a_million_shards_at_most() {
    let router = TestRouter::start().await;
    let client = router.client();
    let limit = "LimitExceededException";
    router.create_stream("s", 1).await;
    let on_demand = json!({ "StreamMode": "ON_DEMAND" });
    let input = json!({ "StreamName": "d", "StreamModeDetails": on_demand });
    client.call("CreateStream", input).await;
    client.wait_until_active("d").await;
    let commitment = json!({ "MinimumThroughputBillingCommitment": { "Status": "ENABLED" } });
    client.call("UpdateAccountSettings", commitment).await;
    let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/d";
    for count in [1_000_001, i32::MAX] {
        for (operation, input) in [
            ("CreateStream", json!({ "StreamName": "n", "ShardCount": count })),
            (
                "CreateStream",
                json!({ "StreamName": "n", "StreamModeDetails": on_demand,
                    "WarmThroughputMiBps": count }),
            ),
            (
                "UpdateShardCount",
                json!({ "StreamName": "s", "TargetShardCount": count,
                    "ScalingType": "UNIFORM_SCALING" }),
            ),
            (
                "UpdateStreamWarmThroughput",
                json!({ "StreamName": "d", "WarmThroughputMiBps": count }),
            ),
            (
                "UpdateStreamMode",
                json!({ "StreamARN": arn, "StreamModeDetails": on_demand,
                    "WarmThroughputMiBps": count }),
            ),
        ] {
            let message = client.fail(operation, input, limit).await;
            let told = format!("would have {count} open shards, and a stream has 1000000 at most");
            assert!(message.contains(&told), "{operation}: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_streams_are_created_at_a_time_however_many_ask_at_once() {
    let options = RouterOptions { reconciles: false, ..limited() };
    let router = TestRouter::start_with(options).await;
    let input = |at: u32| json!({ "StreamName": format!("s{at}"), "ShardCount": 1 });
    for at in 0..3 {
        router.client().call("CreateStream", input(at)).await;
    }
    // The rate is five calls a second.
    router.advance(SECOND);
    let tasks: Vec<_> = (3..8)
        .map(|at| {
            let client = router.client();
            tokio::spawn(async move { client.try_call("CreateStream", input(at)).await })
        })
        .collect();
    let mut created = 3;
    for task in tasks {
        match task.await.expect("it ends well") {
            Ok(_) => created += 1,
            Err(Failure { kind, message, .. }) => {
                assert_eq!(kind, "LimitExceededException", "{message}");
                assert!(message.contains("5 streams in the CREATING state"), "{message}");
            }
        }
    }
    let streams = router.catalog.streams();
    assert_eq!((created, streams.len()), (5, 5));
    assert!(streams.iter().all(|stream| stream.record.status == StreamStatus::Creating));
    router.advance(SECOND);
    let client = router.client();
    let input = json!({ "StreamName": "more", "ShardCount": 1 });
    let message = client.fail("CreateStream", input, "LimitExceededException").await;
    assert!(message.contains("5 streams in the CREATING state"), "{message}");
    // While they are made, no shard is shown, and each can be deleted.
    let target = json!({ "StreamName": streams[0].name.name });
    let described = client.call("DescribeStream", target.clone()).await;
    assert_eq!(described["StreamDescription"]["Shards"], json!([]));
    client.call("DeleteStream", target.clone()).await;
    let described = client.call("DescribeStream", target).await;
    assert_eq!(described["StreamDescription"]["StreamStatus"], "DELETING");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_limited_by_account_or_stream_and_refill() {
    let router = TestRouter::start_with(limited()).await;
    let client = router.client();
    router.create_stream("s", 1).await;
    router.advance(SECOND);
    let frozen = (router.now_ms)();
    let passed = calls(&client, "ListStreams", json!({}), 20).await;
    assert!(passed.iter().all(|failure| failure.is_none()
        || *failure == Some("Rate exceeded for account 123456789012.".to_owned())));
    // The machine's clock goes on: five, and one more for each fifth of a second.
    let elapsed_ms = (router.now_ms)() - frozen;
    let count = passed.iter().filter(|failure| failure.is_none()).count() as u64;
    assert!((5..=6 + elapsed_ms / 200).contains(&count), "{count} in {elapsed_ms} ms");
    router.advance(SECOND);
    client.call("ListStreams", json!({})).await;
    // Another region has its own; so has another stream.
    client.in_region("eu-west-1").call("ListStreams", json!({})).await;
    let hours = |stream: &str| json!({ "StreamName": stream, "RetentionPeriodHours": 24 });
    let failures = calls(&client, "IncreaseStreamRetentionPeriod", hours("s"), 20).await;
    let told = "Rate exceeded for stream s under account 123456789012.";
    assert!(failures.iter().flatten().any(|message| message == told), "{failures:?}");
    let other =
        client.fail("IncreaseStreamRetentionPeriod", hours("t"), "ResourceNotFoundException");
    assert!(other.await.contains(ACCOUNT));
}

/// Calls an operation so many times; answers the messages of those that fail.
async fn calls(
    client: &TestClient,
    operation: &str,
    input: Value,
    count: usize,
) -> Vec<Option<String>> {
    let mut answers = Vec::new();
    for _ in 0..count {
        let answer = client.try_call(operation, input.clone()).await;
        answers.push(answer.err().map(|failure| failure.message));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_told_so_and_learns_nothing() {
    let statement = r#"{"Effect":"Allow","Action":"kinesis:CreateStream","Resource":"*"}"#;
    let creator = format!("policies = ['{{\"Statement\":{statement}}}']");
    let credentials = access_key("ADMIN", ACCOUNT, "")
        + &access_key("CREATOR", ACCOUNT, &creator)
        + &access_key("OTHER", "999999999999", "");
    let options = RouterOptions { credentials: Some(credentials), ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let with = |id: &str| router.client().with_access_key(id);
    let (admin, creator, other) = (with("ADMIN"), with("CREATOR"), with("OTHER"));
    creator.call("CreateStream", json!({ "StreamName": "s", "ShardCount": 1 })).await;
    admin.wait_until_active("s").await;
    let tagged = json!({ "StreamName": "t", "ShardCount": 1, "Tags": { "a": "b" } });
    let message = creator.fail("CreateStream", tagged, "AccessDeniedException").await;
    assert!(message.contains("kinesis:AddTagsToStream"), "{message}");
    for operation in ["DescribeStream", "DescribeStreamSummary", "DeleteStream"] {
        for stream in ["s", "none"] {
            let input = json!({ "StreamName": stream });
            creator.fail(operation, input, "AccessDeniedException").await;
            let arn = format!("arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/{stream}");
            let input = json!({ "StreamARN": arn });
            other.fail(operation, input, "AccessDeniedException").await;
        }
    }
    for operation in ["ListStreams", "DescribeLimits", "DescribeAccountSettings"] {
        creator.fail(operation, json!({}), "AccessDeniedException").await;
    }
    // The other account has streams of its own, and of the same name.
    other.call("CreateStream", json!({ "StreamName": "s", "ShardCount": 2 })).await;
    let summary = other.wait_until_active("s").await;
    assert_eq!(summary["StreamARN"], "arn:aws:kinesis:us-east-1:999999999999:stream/s");
    let unsigned = router.client().try_call("ListStreams", json!({})).await;
    let failure = unsigned.expect_err("it is not signed");
    assert_eq!(failure.kind, "MissingAuthenticationTokenException");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_the_router() {
    let router = TestRouter::start().await;
    router.create_stream("s", 2).await;
    let put = json!({ "StreamName": "s", "PartitionKey": "k", "Data": "AAAA" });
    let before = router.client().call("PutRecord", put.clone()).await;
    let described = router.client().call("DescribeStream", json!({ "StreamName": "s" })).await;
    let directory = router.stop().await;

    let router = TestRouter::start_in(directory, RouterOptions::default()).await;
    let again = router.client().call("DescribeStream", json!({ "StreamName": "s" })).await;
    assert_eq!(again, described);
    let after = router.client().call("PutRecord", put).await;
    assert_eq!(after["ShardId"], before["ShardId"]);
    let number = |answer: &Value| answer["SequenceNumber"].as_str().expect("one").to_owned();
    assert!(number(&after) > number(&before));
    let directory = router.stop().await;

    // A stream that was being created when the router ended is made by the next.
    let options = || RouterOptions { reconciles: false, ..RouterOptions::default() };
    let router = TestRouter::start_in(directory, options()).await;
    let client = router.client();
    client.call("CreateStream", json!({ "StreamName": "t", "ShardCount": 150 })).await;
    client.call("DeleteStream", json!({ "StreamName": "s" })).await;
    let directory = router.stop().await;
    let router = TestRouter::start_in(directory, RouterOptions::default()).await;
    let client = router.client();
    let summary = client.wait_until_active("t").await;
    assert_eq!(summary["OpenShardCount"], 150);
    client.wait_until_gone("s").await;
    wait_for("nothing is left to do", || {
        router.catalog.streams().iter().all(|stream| !stream.has_work())
    });
}
