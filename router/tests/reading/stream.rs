//! Streams that the tests read, made and changed by what the store has of them.

use std::time::Duration;

use serde_json::{Value, json};
use thalweg_router::control::record::{RecordKey, encode_record};
use thalweg_router::control::store::{Expectation, Store, Transaction};
use thalweg_wire::hash_range::HashKey;

use crate::support::PATIENCE;
use crate::support::router::TestRouter;

/// Creates a stream and waits until it is active.
pub(crate) async fn create(router: &TestRouter, name: &str, shards: u32, max_record_kib: u32) {
    let input = json!({
        "StreamName": name, "ShardCount": shards, "MaxRecordSizeInKiB": max_record_kib,
    });
    router.client().call("CreateStream", input).await;
    router.client().wait_until_active(name).await;
}

/// Has something become of a stream.
pub(crate) async fn intend(router: &TestRouter, name: &str, status: &str, intent: Value) {
    let stream = router.stream(name);
    let mut record = serde_json::to_value(&stream.record).expect("a record is JSON");
    record["status"] = json!(status);
    record["intent"] = intent;
    let key = RecordKey::Stream(stream.name.clone()).encode();
    let transaction = Transaction::new()
        .expect(key.clone(), Expectation::ModRevision(stream.mod_revision))
        .put(key, encode_record(&record));
    router.store.commit(transaction).await.expect("nobody else changes it");
}

/// Splits shard 0 of a stream of one shard into the shards 1 and 2.
pub(crate) async fn split(router: &TestRouter, name: &str) {
    let half = HashKey(1 << 127);
    let child = |index: u32, start: HashKey, end: HashKey| json!({ "index": index, "range": [start.0.to_string(), end.0.to_string()] });
    let children = [child(1, HashKey(0), HashKey(half.0 - 1)), child(2, half, HashKey(u128::MAX))];
    let steps = json!([{ "parents": [0], "children": children }]);
    intend(router, name, "UPDATING", json!({ "do": "reshard", "steps": steps })).await;
    wait_until_settled(router, name).await;
}

async fn wait_until_settled(router: &TestRouter, name: &str) {
    let mut changes = router.catalog.changes();
    let settled = async {
        loop {
            changes.mark_unchanged();
            let stream = router.catalog.stream(&TestRouter::name_of(name));
            if stream.is_some_and(|stream| stream.record.intent.is_none()) {
                return;
            }
            changes.changed().await.expect("the catalog is there");
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("the stream is settled in time");
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
