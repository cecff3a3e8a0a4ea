//! What is too old goes, and nothing else.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::router::{TestClient, TestRouter};
use thalweg_router::control::record::shard_id;
use thalweg_router::control::retention::{Retention, RetentionSettings, Sweep};
use thalweg_router::control::store::embedded::EmbeddedStore;
use thalweg_wire::fetch::FetchFrom;
use thalweg_wire::ids::Offset;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// One that looks as soon as there may be something.
fn retention(router: &TestRouter) -> Retention<EmbeddedStore> {
    let settings =
        RetentionSettings { grain: u32::MAX, shards_per_s: 10_000, ..RetentionSettings::default() };
    Retention::new(
        router.store.clone(),
        router.catalog.clone(),
        router.known_node.clone(),
        router.fetcher.clone(),
        router.now_ms.clone(),
        settings,
    )
}

async fn put(client: &TestClient, count: usize) {
    for _ in 0..count {
        let input = json!({ "StreamName": "orders", "PartitionKey": "k", "Data": "AA==" });
        client.call("PutRecord", input).await;
    }
}

/// The oldest offset that a shard keeps, and the one behind its last record.
async fn kept(router: &TestRouter, index: u32) -> (u64, u64) {
    let shard = shard_id(router.stream("orders").id(), index);
    let latest = router.fetcher.fetch(shard, FetchFrom::Latest, 1, Duration::ZERO).await;
    let latest = latest.expect("it is read");
    (latest.head().earliest.0, latest.head().committed.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_records_go_and_young_ones_stay() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 1).await;
    let mut retention = retention(&router);
    put(&client, 3).await;
    let between_ms = (router.now_ms)() + 20;
    tokio::time::sleep(Duration::from_millis(40)).await;
    put(&client, 2).await;
    assert_eq!(retention.sweep().await.expect("a sweep"), Sweep::default());
    assert_eq!(kept(&router, 0).await, (0, 5));

    // The horizon comes to lie between them.
    let ahead = between_ms + DAY.as_millis() as u64 - (router.now_ms)();
    router.advance(Duration::from_millis(ahead));
    let swept = retention.sweep().await.expect("a sweep");
    assert_eq!(swept, Sweep { trimmed: 1, ..Sweep::default() });
    assert_eq!(kept(&router, 0).await, (3, 5));
    // What is kept is whole.
    let shard = shard_id(router.stream("orders").id(), 0);
    let from = FetchFrom::Earliest;
    let fetched = router.fetcher.fetch(shard, from, 1 << 20, Duration::ZERO).await;
    let offsets: Vec<Offset> =
        fetched.expect("it is read").records().map(|record| record.offset).collect();
    assert_eq!(offsets.first(), Some(&Offset(3)));

    // A longer retention keeps them.
    let longer = json!({ "StreamName": "orders", "RetentionPeriodHours": 48 });
    client.call("IncreaseStreamRetentionPeriod", longer).await;
    client.wait_until_active("orders").await;
    router.advance(DAY / 2);
    assert_eq!(retention.sweep().await.expect("a sweep"), Sweep::default());
    assert_eq!(kept(&router, 0).await, (3, 5));
    let shorter = json!({ "StreamName": "orders", "RetentionPeriodHours": 24 });
    client.call("DecreaseStreamRetentionPeriod", shorter).await;
    client.wait_until_active("orders").await;
    assert_eq!(retention.sweep().await.expect("a sweep").trimmed, 1);
    assert_eq!(kept(&router, 0).await, (5, 5));
    assert_eq!(retention.sweep().await.expect("a sweep"), Sweep::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_shards_go_with_their_records() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("orders", 1).await;
    let mut retention = retention(&router);
    put(&client, 3).await;
    for (shard, key) in [("0", "9"), ("1", "4")] {
        let split =
            json!({ "StreamName": "orders", "ShardToSplit": shard, "NewStartingHashKey": key });
        client.call("SplitShard", split).await;
        client.wait_until_active("orders").await;
    }
    let room = || async { router.known_node.room_now().await.expect("the node answers") };
    let before = room().await;
    let indexes = || router.stream("orders").shards().map(|(index, _)| index).collect::<Vec<_>>();
    assert_eq!(retention.sweep().await.expect("a sweep"), Sweep::default());
    assert_eq!(indexes(), [0, 1, 2, 3, 4]);
    router.advance(DAY + Duration::from_secs(1));
    let swept = retention.sweep().await.expect("a sweep");
    assert_eq!(swept, Sweep { removed: 2, ..Sweep::default() });
    assert_eq!(indexes(), [2, 3, 4]);
    assert_eq!(room().await, before + 2, "their places are others'");
    // The stream goes on: to write, to be split, to be listed, to be deleted.
    put(&client, 1).await;
    let listed = client.call("ListShards", json!({ "StreamName": "orders" })).await;
    let parents: Vec<&Value> =
        listed["Shards"].as_array().expect("a list").iter().map(|s| &s["ParentShardId"]).collect();
    let (first, second) = ("shardId-000000000000", "shardId-000000000001");
    assert_eq!(parents, [first, second, second]);
    let merge = json!({ "StreamName": "orders", "ShardToMerge": "3", "AdjacentShardToMerge": "4" });
    client.call("MergeShards", merge).await;
    client.wait_until_active("orders").await;
    assert_eq!(indexes(), [2, 3, 4, 5]);
    client.call("DeleteStream", json!({ "StreamName": "orders" })).await;
    client.wait_until_gone("orders").await;
    assert_eq!(retention.sweep().await.expect("a sweep"), Sweep::default());
}
