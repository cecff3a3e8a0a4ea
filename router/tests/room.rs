//! A node whose logs are nearly full of shards: what it has room for is made, and for the rest
//! whoever asks is told at once.

mod support;

use std::net::SocketAddr;

use serde_json::json;
use support::PATIENCE;
use support::router::{RouterOptions, TestClient, TestRouter};
use thalweg_client::Admin;
use thalweg_router::control::nodes::NodeError;
use thalweg_router::control::reconciler::{Reconciler, ShardSettings};
use thalweg_router::control::store::Store;
use thalweg_wire::control::OpenExtent;
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, ExtentId, Offset, ShardId, StreamId};

const LIMIT: &str = "LimitExceededException";
const NOT_FOUND: &str = "ResourceNotFoundException";

/// Segments of the smallest size, and limits of accounts off: room is none of them.
fn small() -> RouterOptions {
    RouterOptions { segment_bytes: 16 << 20, ..RouterOptions::default() }
}

fn extent(stream: u64, index: u32) -> OpenExtent {
    let shard = ShardId { stream: StreamId(stream), index };
    OpenExtent::alone(ExtentId { shard, epoch: Epoch(1) }, HashRange::FULL, Offset(0))
}

/// Opens shards of somebody else on a core, until it has room for so many.
fn fill(core: SocketAddr, room: u32) {
    let mut admin = Admin::connect(core, PATIENCE).expect("it serves");
    let told = admin.hello().expect("it answers");
    let stream = 1000 + u64::from(told.core);
    let opens: Vec<_> = (0..told.room_shards - room).map(|index| extent(stream, index)).collect();
    admin.open_extents(&opens).expect("there is room");
    assert_eq!(admin.hello().expect("it answers").room_shards, room);
}

async fn start_with_room(options: RouterOptions, rooms: &[u32]) -> TestRouter {
    let cores = rooms.len();
    let router = TestRouter::start_with(RouterOptions { cores, ..options }).await;
    let (addresses, rooms) = (router.node().addresses(), rooms.to_vec());
    let fill_all = move || addresses.iter().zip(rooms).for_each(|(core, room)| fill(*core, room));
    tokio::task::spawn_blocking(fill_all).await.expect("it is filled");
    router
}

async fn room(router: &TestRouter) -> u64 {
    router.known_node.room_now().await.expect("the node answers")
}

/// Creates a stream, which must be refused; answers the message.
async fn refused(client: &TestClient, stream: &str, shards: u32) -> String {
    let input = json!({ "StreamName": stream, "ShardCount": shards });
    let message = client.fail("CreateStream", input, LIMIT).await;
    client.fail("DescribeStream", json!({ "StreamName": stream }), NOT_FOUND).await;
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_beyond_the_nodes_room_is_refused_at_once() {
    let router = start_with_room(small(), &[10]).await;
    let client = router.client();
    router.create_stream("first", 6).await;
    let message = refused(&client, "second", 5).await;
    for told in
        ["it has room for: 4.", "make for stream second under account", ": 5.", "more cores"]
    {
        assert!(message.contains(told), "{message}");
    }
    router.create_stream("second", 4).await;
    assert_eq!(room(&router).await, 0);
    refused(&client, "third", 1).await;

    // What is there goes on.
    let record = json!({ "StreamName": "first", "PartitionKey": "k", "Data": "MQ==" });
    client.call("PutRecord", record).await;

    // What the message says to do: the shards of a stream go with it.
    assert!(message.contains("Delete streams"), "{message}");
    client.call("DeleteStream", json!({ "StreamName": "first" })).await;
    client.wait_until_gone("first").await;
    assert_eq!(room(&router).await, 6);
    router.create_stream("first", 6).await;
    assert_eq!(room(&router).await, 0);
    refused(&client, "third", 1).await;

    // The other thing that it says.
    let directory = router.stop().await;
    let options = RouterOptions { cores: 2, ..small() };
    let router = TestRouter::start_in(directory, options).await;
    assert!(room(&router).await > 5_000);
    router.create_stream("third", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_needs_one_place_and_whatever_makes_shards_asks() {
    let router = start_with_room(small(), &[5]).await;
    let client = router.client();
    router.create_stream("orders", 4).await;
    let split = |shard: &str, key: &str| json!({ "StreamName": "orders", "ShardToSplit": shard, "NewStartingHashKey": key });
    let (first, next) = ("shardId-000000000000", "shardId-000000000001");
    let message = client.fail("SplitShard", split(first, "1000"), LIMIT).await;
    assert!(message.contains("room for: 1.") && message.contains(": 2."), "{message}");
    let resize = |count: u32| {
        let scaling = "UNIFORM_SCALING";
        json!({ "StreamName": "orders", "TargetShardCount": count, "ScalingType": scaling })
    };
    let message = client.fail("UpdateShardCount", resize(8), LIMIT).await;
    assert!(message.contains(": 8."), "{message}");
    let message = client.fail("UpdateShardCount", resize(2), LIMIT).await;
    assert!(message.contains(": 2."), "{message}");
    let on_demand = json!({ "StreamMode": "ON_DEMAND" });
    let input = json!({ "StreamName": "other", "StreamModeDetails": on_demand });
    let message = client.fail("CreateStream", input, LIMIT).await;
    assert!(message.contains(": 4."), "{message}");

    let merge = |first: &str, next: &str| json!({ "StreamName": "orders", "ShardToMerge": first, "AdjacentShardToMerge": next });
    // There are as many as that.
    client.call("UpdateShardCount", resize(4)).await;
    client.call("MergeShards", merge(first, next)).await;
    client.wait_until_active("orders").await;
    assert_eq!(router.stream("orders").open_shards().len(), 3);
    assert_eq!(room(&router).await, 0);
    let (second, third) = ("shardId-000000000002", "shardId-000000000003");
    let message = client.fail("MergeShards", merge(second, third), LIMIT).await;
    assert!(message.contains("room for: 0."), "{message}");
    // What makes no shards needs no room.
    let arn = router.stream("orders").name.arn();
    let input = json!({ "StreamARN": arn, "StreamModeDetails": { "StreamMode": "ON_DEMAND" } });
    client.call("UpdateStreamMode", input).await;
    let active = client.wait_until_active("orders").await;
    assert_eq!(active["StreamModeDetails"]["StreamMode"], "ON_DEMAND");
    // Readying it for a throughput makes shards.
    let commitment = json!({ "MinimumThroughputBillingCommitment": { "Status": "ENABLED" } });
    client.call("UpdateAccountSettings", commitment).await;
    let input = json!({ "StreamName": "orders", "WarmThroughputMiBps": 6 });
    let message = client.fail("UpdateStreamWarmThroughput", input, LIMIT).await;
    assert!(message.contains("room for: 0."), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_core_is_passed_over() {
    let router = start_with_room(small(), &[0, 6]).await;
    assert_eq!(room(&router).await, 6);
    refused(&router.client(), "orders", 7).await;
    router.create_stream("orders", 6).await;
    let full = router.known_node.open(&extent(3, 0)).await.expect_err("no core has room");
    assert!(matches!(full, NodeError::Full { .. }), "{full}");
    assert!(full.to_string().contains("more cores"), "{full}");
    assert_eq!(router.known_node.openings().under_way(), 0);
}

/// Of streams that nobody has begun to make yet, their shards are not free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streams_are_still_to_get_is_not_given_twice() {
    let options = RouterOptions { reconciles: false, ..small() };
    let router = start_with_room(options, &[10]).await;
    let client = router.client();
    let create = |stream: &str, shards: u32| {
        client.call("CreateStream", json!({ "StreamName": stream, "ShardCount": shards }))
    };
    create("first", 6).await;
    let message = refused(&client, "second", 5).await;
    let told =
        "room for: 4 (without those that streams being created or resharded are still to get: 6)";
    assert!(message.contains(told), "{message}");
    create("second", 4).await;
    refused(&client, "third", 1).await;
    // A stream that is to go gets none any more.
    client.call("DeleteStream", json!({ "StreamName": "first" })).await;
    create("third", 6).await;
    refused(&client, "fourth", 1).await;
}

/// Streams for which others took the room that there was waited with all places of the reconciler
/// taken: no other stream was made, changed or deleted any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_wait_for_room_hold_nobody_up() {
    let options = RouterOptions { reconciles: false, ..small() };
    let router = start_with_room(options, &[100]).await;
    let client = router.client();
    let stream = |number: u32| format!("stream-{number:03}");
    // More than are worked on at a time, and the last in their order.
    for number in 0..=80 {
        let input = json!({ "StreamName": stream(number), "ShardCount": 1 });
        client.call("CreateStream", input).await;
    }
    let core = router.node().addresses()[0];
    let others = tokio::task::spawn_blocking(move || {
        let opens: Vec<_> = (0..100).map(|index| extent(5, index)).collect();
        Admin::connect(core, PATIENCE).expect("it serves").open_extents(&opens)
    });
    others.await.expect("it ends").expect("there is room");

    let settings = ShardSettings { limits: None, generation: router.store.generation() };
    let (store, catalog) = (router.store.clone(), router.catalog.clone());
    let (node, now_ms) = (router.known_node.clone(), router.now_ms.clone());
    let reconciler = tokio::spawn(Reconciler::new(store, catalog, node, now_ms, settings).run());
    client.call("DeleteStream", json!({ "StreamName": stream(80) })).await;
    client.wait_until_gone(&stream(80)).await;
    let waiting = router.catalog.streams_at_work();
    assert_eq!(waiting.len(), 80, "they wait on");
    reconciler.abort();
}

/// However many ask at once, no stream is begun for which there is no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_refused_gets_its_shards() {
    let router = start_with_room(small(), &[10]).await;
    let client = router.client();
    let asked = (0..12).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            let stream = format!("stream-{number}");
            let input = json!({ "StreamName": stream, "ShardCount": 2 });
            client.try_call("CreateStream", input).await.map(|_| stream)
        })
    });
    let asked: Vec<_> = asked.collect();
    let mut created = Vec::new();
    for answer in asked {
        match answer.await.expect("it ends") {
            Ok(stream) => created.push(stream),
            Err(failure) => assert_eq!(failure.kind, LIMIT, "{failure:?}"),
        }
    }
    for stream in &created {
        client.wait_until_active(stream).await;
    }
    assert_eq!(room(&router).await, 10 - 2 * created.len() as u64);
    // Who was refused while others were made may find room now; it is used up to its end.
    for number in created.len()..5 {
        router.create_stream(&format!("later-{number}"), 2).await;
    }
    refused(&client, "none", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_node_that_cannot_be_asked_streams_are_recorded() {
    let mut router = TestRouter::start_with(small()).await;
    router.stop_node();
    let client = router.client();
    client.call("CreateStream", json!({ "StreamName": "orders", "ShardCount": 3 })).await;
    let answer = client.call("DescribeStream", json!({ "StreamName": "orders" })).await;
    assert_eq!(answer["StreamDescription"]["StreamStatus"], "CREATING");
}
