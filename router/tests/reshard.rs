//! Splits, merges and counts of shards, through the whole router.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::router::{RouterOptions, TestClient, TestRouter};
use support::{PATIENCE, Random};
use thalweg_router::control::catalog::Stream;
use thalweg_router::control::record::StreamStatus;
use thalweg_router::kinesis::service::ServiceSettings;

const IN_USE: &str = "ResourceInUseException";
const INVALID: &str = "InvalidArgumentException";
const LIMIT: &str = "LimitExceededException";
const NOT_FOUND: &str = "ResourceNotFoundException";

/// Counts are limited, and so are rates of calls: see [`calm`].
fn limited(shards_max: u32) -> RouterOptions {
    let service = ServiceSettings { limits: true, shards_max, ..ServiceSettings::default() };
    RouterOptions { service, ..RouterOptions::default() }
}

/// Waits until a stream is active without calling, and for the router another second has passed:
/// it may be called again.
async fn calm(router: &TestRouter, stream: &str) -> Arc<Stream> {
    let started = Instant::now();
    loop {
        let found = router.catalog.stream(&TestRouter::name_of(stream));
        match found.filter(|found| found.record.status == StreamStatus::Active) {
            Some(found) => {
                router.advance(Duration::from_secs(1));
                return found;
            }
            None => assert!(started.elapsed() < PATIENCE, "{stream} does not become active"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Creates a stream where calls are limited.
async fn create(router: &TestRouter, stream: &str, shards: u32) {
    let input = json!({ "StreamName": stream, "ShardCount": shards });
    router.client().call("CreateStream", input).await;
    calm(router, stream).await;
}

/// All shards of a stream, page by page.
async fn shards(client: &TestClient, stream: &str) -> Vec<Value> {
    let mut answer = client.call("ListShards", json!({ "StreamName": stream })).await;
    let mut shards = answer["Shards"].as_array().expect("a list").clone();
    while let Some(token) = answer["NextToken"].as_str() {
        answer = client.call("ListShards", json!({ "NextToken": token })).await;
        shards.extend(answer["Shards"].as_array().expect("a list").iter().cloned());
    }
    shards
}

fn id(shard: &Value) -> &str {
    shard["ShardId"].as_str().expect("an id")
}

fn is_open(shard: &Value) -> bool {
    shard["SequenceNumberRange"].get("EndingSequenceNumber").is_none()
}

fn range(shard: &Value) -> (u128, u128) {
    let key = |name: &str| {
        let text = shard["HashKeyRange"][name].as_str().expect("a key");
        text.parse().expect("a number")
    };
    (key("StartingHashKey"), key("EndingHashKey"))
}

fn parents(shard: &Value) -> Vec<&str> {
    let names = ["ParentShardId", "AdjacentParentShardId"];
    names.iter().filter_map(|name| shard[*name].as_str()).collect()
}

/// Ids of the shards that a filter lets through.
async fn filtered(client: &TestClient, stream: &str, filter: Value) -> Vec<String> {
    let input = json!({ "StreamName": stream, "ShardFilter": filter });
    let answer = client.call("ListShards", input).await;
    let shards = answer["Shards"].as_array().expect("a list");
    shards.iter().map(|shard| id(shard).to_owned()).collect()
}

fn named(indexes: &[u32]) -> Vec<String> {
    indexes.iter().map(|index| format!("shardId-{index:012}")).collect()
}

/// What holds of a stream's shards whenever nobody reshards it: open ones tile the hash keys;
/// a closed one has children that follow it, and its number ends below theirs; a lone child has two
/// parents.
fn assert_sound(shards: &[Value]) {
    let by_id: BTreeMap<&str, &Value> = shards.iter().map(|shard| (id(shard), shard)).collect();
    assert_eq!(by_id.len(), shards.len(), "each is listed once");
    let mut open: Vec<_> = shards.iter().filter(|shard| is_open(shard)).map(range).collect();
    open.sort_unstable();
    let mut next = 0_u128;
    for (start, end) in open {
        assert_eq!(start, next, "they tile: {shards:?}");
        next = end.wrapping_add(1);
    }
    assert_eq!(next, 0, "they tile to the end");
    let mut children = BTreeMap::<&str, Vec<&Value>>::new();
    for shard in shards {
        for parent in parents(shard) {
            children.entry(parent).or_default().push(shard);
            assert!(!is_open(by_id[parent]), "{parent} has a child and is open");
            let end = by_id[parent]["SequenceNumberRange"]["EndingSequenceNumber"].as_str();
            let start = shard["SequenceNumberRange"]["StartingSequenceNumber"].as_str();
            assert!(end < start, "{parent} ends behind the beginning of {}", id(shard));
        }
    }
    for shard in shards.iter().filter(|shard| !is_open(shard)) {
        let children = children.get(id(shard)).map_or(&[][..], Vec::as_slice);
        match children {
            [lone] => assert_eq!(parents(lone).len(), 2, "{}", id(lone)),
            [_, _] => assert!(children.iter().all(|child| parents(child).len() == 1)),
            _ => panic!("{} has {} children", id(shard), children.len()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_and_a_merge_of_its_children() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 1).await;
    let put = async |key: &str| {
        let input = json!({
            "StreamName": "orders", "PartitionKey": "k", "Data": "AA==", "ExplicitHashKey": key,
        });
        client.call("PutRecord", input).await
    };
    let before = put("5").await;
    // As the service takes it: any word before the number.
    let split = json!({
        "StreamName": "orders", "ShardToSplit": "shard-0", "NewStartingHashKey": "1000",
    });
    assert_eq!(client.call("SplitShard", split).await, json!({}));
    client.wait_until_active("orders").await;
    let all = shards(&client, "orders").await;
    assert_sound(&all);
    assert_eq!(all.iter().map(range).collect::<Vec<_>>()[1..], [(0, 999), (1000, u128::MAX)]);
    let number = |answer: &Value| answer["SequenceNumber"].as_str().expect("a number").to_owned();
    let (low, high) = (put("999").await, put("1000").await);
    assert_eq!([&low["ShardId"], &high["ShardId"]], [id(&all[1]), id(&all[2])]);
    let end = all[0]["SequenceNumberRange"]["EndingSequenceNumber"].as_str().expect("an end");
    assert!(number(&before).as_str() < end && end < number(&low).as_str());

    let merge = |first: &str, second: &str| json!({ "StreamName": "orders", "ShardToMerge": first, "AdjacentShardToMerge": second });
    let message = client.fail("MergeShards", merge("2", "1"), INVALID).await;
    assert_eq!(
        message,
        "Shards shardId-000000000002 and shardId-000000000001 in stream orders under account \
         123456789012 are not an adjacent pair of shards eligible for merging"
    );
    client.call("MergeShards", merge("1", "2")).await;
    client.wait_until_active("orders").await;
    let all = shards(&client, "orders").await;
    assert_sound(&all);
    assert_eq!(parents(&all[3]), [id(&all[1]), id(&all[2])]);
    assert!(number(&high) < number(&put("999").await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_split_or_merged_is_told_so() {
    let router = TestRouter::start_with(limited(4)).await;
    let client = router.client();
    create(&router, "orders", 3).await;
    let split = |shard: &str, key: &str| json!({ "StreamName": "orders", "ShardToSplit": shard, "NewStartingHashKey": key });
    for (shard, told) in [("shardId-5", "shardId-000000000005"), ("2147483648", "2147483648")] {
        let message = client.fail("SplitShard", split(shard, "7"), NOT_FOUND).await;
        calm(&router, "orders").await;
        let expected =
            format!("Could not find shard {told} in stream orders under account 123456789012.");
        assert_eq!(message, expected);
    }
    for key in ["0", "1", "113427455640312821154458202477256070484", &"9".repeat(39)] {
        let message = client.fail("SplitShard", split("0", key), INVALID).await;
        calm(&router, "orders").await;
        assert_eq!(
            message,
            format!(
                "NewStartingHashKey {key} used in SplitShard() on shard shardId-000000000000 in \
                 stream orders under account 123456789012 is not both greater than one plus the \
                 shard's StartingHashKey 0 and less than the shard's EndingHashKey \
                 113427455640312821154458202477256070484."
            )
        );
    }
    client.call("SplitShard", split("0", "2")).await;
    let other = json!({ "StreamName": "orders", "ShardToMerge": "1", "AdjacentShardToMerge": "2" });
    match client.try_call("MergeShards", other).await {
        Err(failure) => {
            assert_eq!(failure.kind, IN_USE);
            assert_eq!(
                failure.message,
                "Stream orders under account 123456789012 not ACTIVE, instead in state UPDATING"
            );
        }
        // The split was quicker; there are four shards then, and three again.
        Ok(_) => {
            calm(&router, "orders").await;
            let again = split("5", "300000000000000000000000000000000000000");
            client.call("SplitShard", again).await;
        }
    }
    calm(&router, "orders").await;
    let open = router.stream("orders").open_shards().last().expect("an open shard").0;
    let middle = "330000000000000000000000000000000000000";
    let message = client.fail("SplitShard", split(&open.to_string(), middle), LIMIT).await;
    assert!(
        message.starts_with(
            "This request would exceed the shard limit for the account 123456789012 in us-east-1. \
             Current shard count for the account: 4. Limit: 4. Number of additional shards that \
             would have resulted from this request: 1."
        ),
        "{message}"
    );
    let merge = json!({
        "StreamName": "orders", "ShardToMerge": "0", "AdjacentShardToMerge": "1",
    });
    let message = client.fail("MergeShards", merge, INVALID).await;
    assert_eq!(
        message,
        "Shard shardId-000000000000 in stream orders under account 123456789012 has already been \
         merged or split, and thus is not eligible for merging or splitting."
    );
    let on_demand = json!({
        "StreamName": "demand", "StreamModeDetails": { "StreamMode": "ON_DEMAND" },
    });
    // An on-demand stream begins with as many shards as all may have here.
    let router = TestRouter::start().await;
    let client = router.client();
    client.call("CreateStream", on_demand).await;
    client.wait_until_active("demand").await;
    for (operation, input) in [
        ("SplitShard", json!({ "ShardToSplit": "0", "NewStartingHashKey": "9" })),
        ("MergeShards", json!({ "ShardToMerge": "0", "AdjacentShardToMerge": "1" })),
        ("UpdateShardCount", json!({ "TargetShardCount": 5, "ScalingType": "UNIFORM_SCALING" })),
    ] {
        let mut input = input;
        input["StreamName"] = json!("demand");
        let message = client.fail(operation, input, "ValidationException").await;
        assert!(message.contains("is in On-Demand mode"), "{message}");
    }
}

/// While a stream is being made, SplitShard and MergeShards said that its shards are not there, and
/// clients gave up; the API has ResourceInUseException for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_a_stream_that_comes_or_goes_are_not_looked_for() {
    let options = RouterOptions { reconciles: false, ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let client = router.client();
    let split = json!({ "StreamName": "s", "ShardToSplit": "0", "NewStartingHashKey": "1000000" });
    let merge = json!({ "StreamName": "s", "ShardToMerge": "0", "AdjacentShardToMerge": "1" });
    client.call("CreateStream", json!({ "StreamName": "s", "ShardCount": 2 })).await;
    for state in ["CREATING", "DELETING"] {
        for (operation, input) in [("SplitShard", &split), ("MergeShards", &merge)] {
            let message = client.fail(operation, input.clone(), IN_USE).await;
            assert_eq!(
                message,
                format!("Stream s under account 123456789012 not ACTIVE, instead in state {state}")
            );
        }
        client.call("DeleteStream", json!({ "StreamName": "s" })).await;
    }
}

/// Without limits, a stream remembered every UpdateShardCount of a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_changes_of_a_count_are_remembered_than_are_limited() {
    let router = TestRouter::start().await;
    let client = router.client();
    create(&router, "s", 1).await;
    let input =
        json!({ "StreamName": "s", "TargetShardCount": 1, "ScalingType": "UNIFORM_SCALING" });
    for _ in 0..12 {
        client.call("UpdateShardCount", input.clone()).await;
        calm(&router, "s").await;
        router.advance(Duration::from_millis(2));
    }
    assert_eq!(router.stream("s").record.resized_ms.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_go_up_and_down_within_limits() {
    let router = TestRouter::start_with(limited(40)).await;
    let client = router.client();
    create(&router, "orders", 4).await;
    let resize = |count: u32| {
        json!({
            "StreamName": "orders", "TargetShardCount": count, "ScalingType": "UNIFORM_SCALING",
        })
    };
    for (count, told) in [
        (9, "UpdateShardCount cannot scale up over double your current open shard count."),
        (1, "UpdateShardCount cannot scale down below half your current open shard count."),
    ] {
        let message = client.fail("UpdateShardCount", resize(count), LIMIT).await;
        assert!(message.starts_with(told), "{message}");
    }
    let mut before = 4;
    for (times, count) in [8, 5, 3, 6, 6, 12, 24, 12, 7, 13].into_iter().enumerate() {
        let answer = client.call("UpdateShardCount", resize(count)).await;
        assert_eq!(answer["CurrentShardCount"], before, "{times}");
        assert_eq!(answer["TargetShardCount"], count);
        assert_eq!(answer["StreamARN"], "arn:aws:kinesis:us-east-1:123456789012:stream/orders");
        assert_eq!(calm(&router, "orders").await.open_shards().len(), count as usize);
        let all = shards(&client, "orders").await;
        assert_sound(&all);
        let width = u128::MAX / u128::from(count);
        for shard in all.iter().filter(|shard| is_open(shard)) {
            let (start, end) = range(shard);
            assert!((end - start).abs_diff(width) < width / 500, "{shard}");
        }
        if times == 0 {
            assert_eq!(all.len(), 12, "a doubling makes no short-lived shards");
        }
        before = count;
    }
    let message = client.fail("UpdateShardCount", resize(14), LIMIT).await;
    assert!(message.contains("10 times in the last 24 hours"), "{message}");
    router.advance(Duration::from_secs(24 * 3600));
    client.call("UpdateShardCount", resize(14)).await;
    calm(&router, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_keep_their_order_while_their_shards_change() {
    let router = TestRouter::start().await;
    router.create_stream("orders", 2).await;
    let writers: Vec<_> = (0..4_u32)
        .map(|writer| {
            let client = router.client();
            tokio::spawn(async move {
                let mut last = String::new();
                for number in 0..150_u32 {
                    let input = json!({
                        "StreamName": "orders", "PartitionKey": format!("key-{writer}"),
                        "Data": "AA==",
                    });
                    let answer = client.call("PutRecord", input).await;
                    let sequence = answer["SequenceNumber"].as_str().expect("a number").to_owned();
                    assert!(last < sequence, "{writer}: {number}: {last} before {sequence}");
                    last = sequence;
                }
            })
        })
        .collect();
    let client = router.client();
    for count in [4, 3, 6, 5, 3, 2] {
        let input = json!({
            "StreamName": "orders", "TargetShardCount": count, "ScalingType": "UNIFORM_SCALING",
        });
        client.call("UpdateShardCount", input).await;
        client.wait_until_active("orders").await;
    }
    for writer in writers {
        writer.await.expect("every record is stored, in order");
    }
    assert_sound(&shards(&client, "orders").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_stops_on_the_way_goes_on_after_its_start() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut directory = None;
    let mut count = 3_u32;
    for round in 0..8 {
        let router = match directory.take() {
            None => {
                let router = TestRouter::start().await;
                router.create_stream("orders", count).await;
                router
            }
            Some(directory) => TestRouter::start_in(directory, RouterOptions::default()).await,
        };
        let client = router.client();
        let summary = client.wait_until_active("orders").await;
        assert_eq!(summary["OpenShardCount"], count, "round {round}");
        let all = shards(&client, "orders").await;
        assert_sound(&all);
        // Each shard takes records, whatever was opened twice.
        for shard in all.iter().filter(|shard| is_open(shard)) {
            let input = json!({
                "StreamName": "orders", "PartitionKey": "k", "Data": "AA==",
                "ExplicitHashKey": shard["HashKeyRange"]["EndingHashKey"],
            });
            assert_eq!(client.call("PutRecord", input).await["ShardId"], id(shard));
        }
        count = if count > 10 { count / 2 + 1 } else { count * 2 - 1 };
        let input = json!({
            "StreamName": "orders", "TargetShardCount": count, "ScalingType": "UNIFORM_SCALING",
        });
        client.call("UpdateShardCount", input).await;
        tokio::time::sleep(Duration::from_millis(random.below(40))).await;
        directory = Some(router.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_listed_by_what_they_were_when() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 2).await;
    let now_s = || (router.now_ms)() as f64 / 1000.0;
    let at = |kind: &str, time: f64| json!({ "Type": kind, "Timestamp": time });
    let pause = || tokio::time::sleep(Duration::from_millis(30));
    let mut times = vec![now_s()];
    for (shard, key) in [("0", "9"), ("1", "200000000000000000000000000000000000000")] {
        pause().await;
        let split = json!({
            "StreamName": "orders", "ShardToSplit": shard, "NewStartingHashKey": key,
        });
        client.call("SplitShard", split).await;
        client.wait_until_active("orders").await;
        pause().await;
        times.push(now_s());
    }
    let list = async |filter: Value| filtered(&client, "orders", filter).await;
    let plain = |kind: &str| json!({ "Type": kind });
    assert_eq!(list(plain("FROM_TRIM_HORIZON")).await, named(&[0, 1, 2, 3, 4, 5]));
    assert_eq!(list(plain("AT_TRIM_HORIZON")).await, named(&[0, 1]));
    assert_eq!(list(plain("AT_LATEST")).await, named(&[2, 3, 4, 5]));
    assert_eq!(list(at("AT_TIMESTAMP", 0.0)).await, named(&[0, 1]));
    assert_eq!(list(at("AT_TIMESTAMP", times[0])).await, named(&[0, 1]));
    assert_eq!(list(at("AT_TIMESTAMP", times[1])).await, named(&[1, 2, 3]));
    assert_eq!(list(at("AT_TIMESTAMP", times[2])).await, named(&[2, 3, 4, 5]));
    assert_eq!(list(at("FROM_TIMESTAMP", 0.0)).await, named(&[0, 1, 2, 3, 4, 5]));
    assert_eq!(list(at("FROM_TIMESTAMP", times[1])).await, named(&[1, 2, 3, 4, 5]));
    assert_eq!(list(at("FROM_TIMESTAMP", times[2])).await, named(&[2, 3, 4, 5]));
    let after = json!({ "Type": "AFTER_SHARD_ID", "ShardId": "shardId-000000000003" });
    assert_eq!(list(after).await, named(&[4, 5]));
    for filter in [
        json!({ "Type": "AFTER_SHARD_ID" }),
        json!({ "Type": "AT_TIMESTAMP" }),
        json!({ "Type": "FROM_TIMESTAMP", "ShardId": "shardId-000000000003", "Timestamp": 1 }),
        json!({ "Type": "AT_LATEST", "Timestamp": 1 }),
    ] {
        let input = json!({ "StreamName": "orders", "ShardFilter": filter });
        client.fail("ListShards", input, INVALID).await;
    }
    let start = json!({ "StreamName": "orders", "ExclusiveStartShardId": "shardId-000000000004" });
    let answer = client.call("ListShards", start).await;
    assert_eq!(answer["Shards"].as_array().expect("a list").len(), 1);

    // A day later all but the open ones are past, whether they have been removed or not.
    router.advance(Duration::from_secs(25 * 3600));
    assert_eq!(list(plain("FROM_TRIM_HORIZON")).await, named(&[2, 3, 4, 5]));
    assert_eq!(list(plain("AT_TRIM_HORIZON")).await, named(&[2, 3, 4, 5]));
    assert_eq!(list(at("AT_TIMESTAMP", times[0])).await, named(&[2, 3, 4, 5]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_by_its_token_alone() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 5).await;
    router.create_stream("others", 1).await;
    let first = json!({ "StreamName": "orders", "MaxResults": 2 });
    let answer = client.call("ListShards", first.clone()).await;
    let token = answer["NextToken"].as_str().expect("a token").to_owned();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut page = answer;
    loop {
        let listed = page["Shards"].as_array().expect("a list").clone();
        assert!(listed.iter().all(|shard| seen.insert(id(shard).to_owned())), "each once");
        let Some(token) = page["NextToken"].as_str() else { break };
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";
        let next = json!({ "NextToken": token, "MaxResults": 2, "StreamARN": arn });
        page = client.call("ListShards", next).await;
    }
    assert_eq!(seen.len(), 5);
    let input = json!({ "NextToken": token, "MaxResults": 10000 });
    let rest = client.call("ListShards", input).await;
    assert_eq!(rest["Shards"].as_array().expect("a list").len(), 3);

    for (member, value) in [
        ("StreamName", json!("orders")),
        ("ExclusiveStartShardId", json!("shardId-000000000001")),
        ("StreamCreationTimestamp", json!(1)),
    ] {
        let mut input = json!({ "NextToken": token });
        input[member] = value;
        let message = client.fail("ListShards", input, INVALID).await;
        assert_eq!(message, format!("NextToken and {member} cannot be provided together."));
    }
    let other = "arn:aws:kinesis:us-east-1:123456789012:stream/others";
    client.fail("ListShards", json!({ "NextToken": token, "StreamARN": other }), INVALID).await;
    client.fail("ListShards", json!({ "NextToken": "AAAA" }), INVALID).await;
    let message = client.fail("ListShards", json!({}), INVALID).await;
    assert_eq!(message, "Either NextToken or StreamName should be provided.");
    router.advance(Duration::from_secs(301));
    let input = json!({ "NextToken": token });
    client.fail("ListShards", input.clone(), "ExpiredNextTokenException").await;

    // A stream of the same name is another one.
    let summary = client.wait_until_active("orders").await;
    let created = summary["StreamCreationTimestamp"].clone();
    let answer = client.call("ListShards", first).await;
    let token = answer["NextToken"].as_str().expect("a token").to_owned();
    client.call("DeleteStream", json!({ "StreamName": "orders" })).await;
    client.wait_until_gone("orders").await;
    router.advance(Duration::from_secs(10));
    router.create_stream("orders", 5).await;
    client.fail("ListShards", json!({ "NextToken": token }), NOT_FOUND).await;
    let input = json!({ "StreamName": "orders", "StreamCreationTimestamp": created });
    client.fail("ListShards", input, NOT_FOUND).await;
    let now = client.wait_until_active("orders").await["StreamCreationTimestamp"].clone();
    let input = json!({ "StreamName": "orders", "StreamCreationTimestamp": now });
    let answer = client.call("ListShards", input).await;
    assert_eq!(answer["Shards"].as_array().expect("a list").len(), 5);
}
