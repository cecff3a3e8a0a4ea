//! Streams that the tests read.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::router::TestRouter;

/// Creates a stream and waits until it is active.
pub(crate) async fn create(router: &TestRouter, name: &str, shards: u32, max_record_kib: u32) {
    let input = json!({
        "StreamName": name, "ShardCount": shards, "MaxRecordSizeInKiB": max_record_kib,
    });
    router.client().call("CreateStream", input).await;
    router.client().wait_until_active(name).await;
}

/// Splits shard 0 of a stream of one shard in half, into the shards 1 and 2.
pub(crate) async fn split(router: &TestRouter, name: &str) {
    let input = json!({
        "StreamName": name,
        "ShardToSplit": "shardId-000000000000",
        "NewStartingHashKey": (1_u128 << 127).to_string(),
    });
    router.client().call("SplitShard", input).await;
    router.client().wait_until_active(name).await;
}

/// Puts a record.
pub(crate) async fn put(router: &TestRouter, name: &str, data: &[u8]) -> Value {
    let input = json!({
        "StreamName": name,
        "PartitionKey": "k",
        "Data": base64_simd::STANDARD.encode_to_string(data),
    });
    router.client().call("PutRecord", input).await
}

/// Puts records in one call.
pub(crate) async fn put_all(router: &TestRouter, name: &str, data: &[Vec<u8>]) {
    let record = |data: &Vec<u8>| json!({ "PartitionKey": "k", "Data": base64_simd::STANDARD.encode_to_string(data) });
    let records: Vec<Value> = data.iter().map(record).collect();
    let input = json!({ "StreamName": name, "Records": records });
    let output = router.client().call("PutRecords", input).await;
    assert_eq!(output["FailedRecordCount"], 0, "{output}");
}

/// The data of an answer's or event's records.
#[track_caller]
pub(crate) fn data_of(output: &Value) -> Vec<Vec<u8>> {
    let records = output["Records"].as_array().expect("a list");
    let data = |record: &Value| {
        let text = record["Data"].as_str().expect("a text");
        base64_simd::STANDARD.decode_to_vec(text).expect("base64")
    };
    records.iter().map(data).collect()
}

/// A shard iterator.
pub(crate) async fn iterator(router: &TestRouter, name: &str, rest: Value) -> String {
    let mut input = json!({ "StreamName": name, "ShardId": "shardId-000000000000" });
    for (member, value) in rest.as_object().expect("members") {
        input[member] = value.clone();
    }
    let output = router.client().call("GetShardIterator", input).await;
    output["ShardIterator"].as_str().expect("an iterator").to_owned()
}

/// Waits for a moment, in which nothing is expected to happen.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
