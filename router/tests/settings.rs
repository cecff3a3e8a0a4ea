//! What can be chosen for streams and accounts, through the whole router.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::router::{RouterOptions, TestClient, TestRouter};
use thalweg_router::kinesis::service::ServiceSettings;

const ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/s";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Changes a setting and waits until the stream is active again; answers its summary.
async fn change(client: &TestClient, operation: &str, input: Value) -> Value {
    client.call(operation, input).await;
    client.wait_until_active("s").await
}

async fn create_on_demand(client: &TestClient) {
    let input = json!({ "StreamName": "s", "StreamModeDetails": { "StreamMode": "ON_DEMAND" } });
    client.call("CreateStream", input).await;
    client.wait_until_active("s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_goes_up_by_one_operation_and_down_by_the_other() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let hours = |hours: i64| json!({ "StreamName": "s", "RetentionPeriodHours": hours });
    let (increase, decrease) = ("IncreaseStreamRetentionPeriod", "DecreaseStreamRetentionPeriod");
    let refused = "InvalidArgumentException";
    for operation in [increase, decrease] {
        assert_eq!(
            client.fail(operation, hours(23), refused).await,
            "Minimum allowed retention period is 24 hours. Requested retention period (23 hours) \
             is too short."
        );
        assert_eq!(
            client.fail(operation, hours(8761), refused).await,
            "Maximum allowed retention period is 8760 hours. Requested retention period (8761 \
             hours) is too long."
        );
        client.fail(operation, hours(i64::from(i32::MIN)), refused).await;
    }
    assert_eq!(
        client.fail(decrease, hours(48), refused).await,
        "Requested retention period (48 hours) for stream s can not be longer than existing \
         retention period (24 hours). Use IncreaseRetentionPeriod API."
    );
    let summary = change(&client, increase, hours(8760)).await;
    assert_eq!(summary["RetentionPeriodHours"], 8760);
    assert_eq!(
        client.fail(increase, hours(8759), refused).await,
        "Requested retention period (8759 hours) for stream s can not be shorter than existing \
         retention period (8760 hours). Use DecreaseRetentionPeriod API."
    );
    // A call whose answer was lost is repeated.
    change(&client, increase, hours(8760)).await;
    let summary = change(&client, decrease, hours(30)).await;
    assert_eq!(summary["RetentionPeriodHours"], 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_updating_until_it_is_settled_and_serves_meanwhile() {
    let router = TestRouter::start().await;
    router.create_stream("s", 1).await;
    let directory = router.stop().await;
    let options = RouterOptions { reconciles: false, ..RouterOptions::default() };
    let router = TestRouter::start_in(directory, options).await;
    let client = router.client();
    let input = json!({ "StreamARN": ARN, "MaxRecordSizeInKiB": 10_240 });
    client.call("UpdateMaxRecordSize", input.clone()).await;
    let summary = client.call("DescribeStreamSummary", json!({ "StreamName": "s" })).await;
    let summary = &summary["StreamDescriptionSummary"];
    assert_eq!(summary["StreamStatus"], "UPDATING");
    assert_eq!(summary["MaxRecordSizeInKiB"], 10_240);
    assert_eq!(summary["OpenShardCount"], 1);
    let message = client.fail("UpdateMaxRecordSize", input, "ResourceInUseException").await;
    assert_eq!(
        message,
        "Stream s under account 123456789012 not ACTIVE, instead in state UPDATING"
    );
    let put = json!({ "StreamName": "s", "PartitionKey": "k", "Data": "AAAA" });
    client.call("PutRecord", put).await;
    let directory = router.stop().await;

    let router = TestRouter::start_in(directory, RouterOptions::default()).await;
    let summary = router.client().wait_until_active("s").await;
    assert_eq!(summary["MaxRecordSizeInKiB"], 10_240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_record_follows_its_setting() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let put = |bytes: usize| {
        let data = "A".repeat(bytes / 3 * 4);
        json!({ "StreamName": "s", "PartitionKey": "k", "Data": data })
    };
    let two_mib = 2 << 20;
    let size = |kib: u64| json!({ "StreamARN": ARN, "MaxRecordSizeInKiB": kib });
    // Clients that send what is too large in another way look for this message; there was another,
    // of another type.
    let too_long = |at: &str| {
        format!(
            "Value at '{at}' failed to satisfy constraint: Member must have length less than or \
             equal to 1048576"
        )
    };
    let invalid = "ValidationException";
    let message = client.fail("PutRecord", put(two_mib), invalid).await;
    assert_eq!(message, format!("1 validation error detected: {}", too_long("data")));
    let records = |count: usize| {
        let small = json!({ "PartitionKey": "k", "Data": "AAAA" });
        let large = json!({ "PartitionKey": "k", "Data": "A".repeat(two_mib / 3 * 4) });
        let mut records = vec![small];
        records.resize(count, large);
        json!({ "StreamName": "s", "Records": records })
    };
    let message = client.fail("PutRecords", records(3), invalid).await;
    let (first, second) = (too_long("records.2.member.data"), too_long("records.3.member.data"));
    assert_eq!(message, format!("2 validation errors detected: {first}; {second}"));
    // The data alone would do.
    let with_key =
        json!({ "StreamName": "s", "PartitionKey": "kk", "Data": "A".repeat((1 << 20) / 3 * 4) });
    let message = client.fail("PutRecord", with_key, "InvalidArgumentException").await;
    assert!(message.contains("1048577 bytes with its partition key"), "{message}");
    for kib in [1023, 10_241] {
        client.fail("UpdateMaxRecordSize", size(kib), "ValidationException").await;
    }
    change(&client, "UpdateMaxRecordSize", size(2049)).await;
    client.call("PutRecord", put(two_mib)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_enabled_and_disabled_by_name_or_all() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let metrics = |names: &[&str]| json!({ "StreamName": "s", "ShardLevelMetrics": names });
    let told = client.call("EnableEnhancedMonitoring", metrics(&["OutgoingBytes"])).await;
    assert_eq!(
        told,
        json!({ "StreamName": "s", "StreamARN": ARN, "CurrentShardLevelMetrics": [],
            "DesiredShardLevelMetrics": ["OutgoingBytes"] })
    );
    client.wait_until_active("s").await;
    let told = client.call("EnableEnhancedMonitoring", metrics(&["ALL"])).await;
    assert_eq!(told["CurrentShardLevelMetrics"], json!(["OutgoingBytes"]));
    let all = json!([
        "IncomingBytes",
        "IncomingRecords",
        "IteratorAgeMilliseconds",
        "OutgoingBytes",
        "OutgoingRecords",
        "ReadProvisionedThroughputExceeded",
        "WriteProvisionedThroughputExceeded",
    ]);
    assert_eq!(told["DesiredShardLevelMetrics"], all);
    client.wait_until_active("s").await;
    let some = metrics(&["IncomingBytes", "IncomingRecords"]);
    let told = client.call("DisableEnhancedMonitoring", some).await;
    assert_eq!(told["CurrentShardLevelMetrics"], all);
    assert_eq!(told["DesiredShardLevelMetrics"].as_array().map(Vec::len), Some(5));
    let summary = client.wait_until_active("s").await;
    let listed = &summary["EnhancedMonitoring"][0]["ShardLevelMetrics"];
    assert_eq!(*listed, told["DesiredShardLevelMetrics"]);
    let told = client.call("DisableEnhancedMonitoring", metrics(&["ALL"])).await;
    assert_eq!(told["DesiredShardLevelMetrics"], json!([]));
    client.wait_until_active("s").await;
    client.fail("EnableEnhancedMonitoring", metrics(&["Some"]), "ValidationException").await;
    client.fail("EnableEnhancedMonitoring", metrics(&[]), "ValidationException").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_is_recorded_reported_and_limited() {
    let options = RouterOptions { service: ServiceSettings::default(), ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let key = |id: &str| json!({ "StreamName": "s", "EncryptionType": "KMS", "KeyId": id });
    let summary = change(&client, "StartStreamEncryption", key("alias/aws/kinesis")).await;
    assert_eq!(
        (&summary["EncryptionType"], &summary["KeyId"]),
        (&json!("KMS"), &json!("alias/aws/kinesis"))
    );
    let put = json!({ "StreamName": "s", "PartitionKey": "k", "Data": "AAAA" });
    assert_eq!(client.call("PutRecord", put.clone()).await["EncryptionType"], "KMS");
    let none = json!({ "StreamName": "s", "EncryptionType": "NONE", "KeyId": "alias/k" });
    for operation in ["StartStreamEncryption", "StopStreamEncryption"] {
        client.fail(operation, none.clone(), "InvalidArgumentException").await;
    }
    client.fail("StartStreamEncryption", key("no key"), "KMSNotFoundException").await;
    // StopStreamEncryption's model has no such error, and answered it all the same.
    client.fail("StopStreamEncryption", key("no key"), "InvalidArgumentException").await;
    router.advance(Duration::from_secs(1));
    // The same key again is no other one.
    for at in 0..24 {
        change(&client, "StartStreamEncryption", key(&format!("alias/k{at}"))).await;
        change(&client, "StartStreamEncryption", key(&format!("alias/k{at}"))).await;
        router.advance(Duration::from_secs(1));
    }
    let refused = "LimitExceededException";
    let message = client.fail("StartStreamEncryption", key("alias/more"), refused).await;
    assert!(message.contains("25 times in 24 hours"), "{message}");
    let summary = change(&client, "StopStreamEncryption", key("alias/k23")).await;
    assert_eq!((&summary["EncryptionType"], summary.get("KeyId")), (&json!("NONE"), None));
    assert_eq!(client.call("PutRecord", put).await["EncryptionType"], "NONE");
    router.advance(DAY);
    change(&client, "StartStreamEncryption", key("alias/more")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_changes_twice_a_day() {
    let options = RouterOptions { service: ServiceSettings::default(), ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let client = router.client();
    router.create_stream("s", 2).await;
    let mode =
        |mode: &str| json!({ "StreamARN": ARN, "StreamModeDetails": { "StreamMode": mode } });
    let summary = change(&client, "UpdateStreamMode", mode("ON_DEMAND")).await;
    assert_eq!(summary["StreamModeDetails"]["StreamMode"], "ON_DEMAND");
    assert_eq!(summary["OpenShardCount"], 2, "their number stays");
    assert_eq!(summary["RecordDistributionStrategy"], "USER_PARTITION_KEY");
    // The same again is no change.
    change(&client, "UpdateStreamMode", mode("ON_DEMAND")).await;
    let strategy = |name: &str| json!({ "StreamARN": ARN, "RecordDistributionStrategy": name });
    client.call("UpdateStreamRecordDistributionStrategy", strategy("AUTO")).await;
    let summary = client.wait_until_active("s").await;
    assert_eq!(summary["RecordDistributionStrategy"], "AUTO");
    // Records need no key now.
    client.call("PutRecord", json!({ "StreamName": "s", "Data": "AAAA" })).await;

    router.advance(Duration::from_secs(3600));
    let summary = change(&client, "UpdateStreamMode", mode("PROVISIONED")).await;
    assert_eq!(summary["OpenShardCount"], 2);
    let keyless = json!({ "StreamName": "s", "Data": "AAAA" });
    client.try_call("PutRecord", keyless).await.expect_err("a key is needed again");
    let refused = "InvalidArgumentException";
    client.fail("UpdateStreamRecordDistributionStrategy", strategy("AUTO"), refused).await;
    let third = mode("ON_DEMAND");
    let message = client.fail("UpdateStreamMode", third.clone(), "LimitExceededException").await;
    assert!(message.contains("2 times in 24 hours"), "{message}");
    // 24 hours after the first, there is one more.
    router.advance(DAY - Duration::from_secs(3600));
    change(&client, "UpdateStreamMode", third).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commitment_lasts_for_a_day_and_unlocks_warm_throughput() {
    let router = TestRouter::start().await;
    let client = router.client();
    let settings =
        |status: &str| json!({ "MinimumThroughputBillingCommitment": { "Status": status } });
    let described = async || {
        let told = client.call("DescribeAccountSettings", json!({})).await;
        told["MinimumThroughputBillingCommitment"].clone()
    };
    assert_eq!(described().await, json!({ "Status": "DISABLED" }));
    create_on_demand(&client).await;
    // It was shown without a commitment as well.
    let without = client.wait_until_active("s").await;
    assert_eq!(without.get("WarmThroughput"), None);
    let warm = |mibps: u32| json!({ "StreamName": "s", "WarmThroughputMiBps": mibps });
    let message = client.fail("UpdateStreamWarmThroughput", warm(8), "ValidationException").await;
    assert!(message.contains("UpdateAccountSettings"), "{message}");

    let enabled = client.call("UpdateAccountSettings", settings("ENABLED")).await;
    let enabled = &enabled["MinimumThroughputBillingCommitment"];
    assert_eq!(described().await, *enabled);
    let time = |name: &str| enabled[name].as_f64().expect("a time");
    assert_eq!(time("EarliestAllowedEndAt") - time("StartedAt"), DAY.as_secs_f64());
    // Another region has settings of its own.
    let elsewhere = client.in_region("eu-west-1");
    let told = elsewhere.call("DescribeAccountSettings", json!({})).await;
    assert_eq!(told["MinimumThroughputBillingCommitment"]["Status"], "DISABLED");

    let told = client.call("UpdateStreamWarmThroughput", warm(4)).await;
    assert_eq!(
        told,
        json!({ "StreamName": "s", "StreamARN": ARN,
            "WarmThroughput": { "TargetMiBps": 4, "CurrentMiBps": 4 } })
    );
    client.wait_until_active("s").await;
    let mode = json!({ "StreamMode": "ON_DEMAND" });
    let input = json!({ "StreamName": "w", "StreamModeDetails": mode, "WarmThroughputMiBps": 9 });
    client.call("CreateStream", input).await;
    let summary = client.wait_until_active("w").await;
    assert_eq!(summary["WarmThroughput"], json!({ "TargetMiBps": 9, "CurrentMiBps": 9 }));
    assert_eq!(summary["OpenShardCount"], 9);

    let ended = client.call("UpdateAccountSettings", settings("DISABLED")).await;
    let status = &ended["MinimumThroughputBillingCommitment"]["Status"];
    assert_eq!(*status, "ENABLED_UNTIL_EARLIEST_ALLOWED_END");
    router.advance(DAY);
    let after = described().await;
    assert_eq!(
        (&after["Status"], &after["EndedAt"]),
        (&json!("DISABLED"), &enabled["EarliestAllowedEndAt"])
    );
    client.fail("UpdateStreamWarmThroughput", warm(4), "ValidationException").await;
    let after = client.wait_until_active("w").await;
    assert_eq!(after.get("WarmThroughput"), None);
}

/// A record without a partition key was shown with `"\0"` for one when its stream did not distribute
/// records any more, a record whose key is `"\0"` without one when it did; and of a record without a
/// key, a byte less than allowed was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_without_a_partition_key_never_has_one() {
    let router = TestRouter::start().await;
    let client = router.client();
    create_on_demand(&client).await;
    let strategy = |name: &str| json!({ "StreamARN": ARN, "RecordDistributionStrategy": name });
    client.call("UpdateStreamRecordDistributionStrategy", strategy("AUTO")).await;
    client.call("PutRecord", json!({ "StreamName": "s", "Data": "AAAA" })).await;
    let odd = json!({ "StreamName": "s", "Data": "AAAB", "PartitionKey": "\0" });
    client.call("PutRecord", odd).await;
    for strategies in ["AUTO", "USER_PARTITION_KEY"] {
        client.call("UpdateStreamRecordDistributionStrategy", strategy(strategies)).await;
        let mut seen = Vec::new();
        for shard in 0..4 {
            let from = json!({ "StreamName": "s", "ShardId": shard.to_string(),
                "ShardIteratorType": "TRIM_HORIZON" });
            let iterator = client.call("GetShardIterator", from).await;
            let told = client.call("GetRecords", iterator).await;
            let records = told["Records"].as_array().expect("a list").clone();
            seen.extend(
                records
                    .iter()
                    .map(|record| (record["Data"].clone(), record.get("PartitionKey").cloned())),
            );
        }
        seen.sort_by_key(|(data, _)| data.to_string());
        assert_eq!(seen, [(json!("AAAA"), None), (json!("AAAB"), Some(json!("\0")))]);
    }
    client.call("UpdateStreamRecordDistributionStrategy", strategy("AUTO")).await;
    let zeros = |bytes: usize| "AAAA".repeat(bytes / 3) + ["", "AA==", "AAA="][bytes % 3];
    let put = |bytes: usize| json!({ "StreamName": "s", "Data": zeros(bytes) });
    client.call("PutRecord", put(1 << 20)).await;
    client.fail("PutRecord", put((1 << 20) + 1), "ValidationException").await;
    // At the nodes, something stands for the key.
    change(
        &client,
        "UpdateMaxRecordSize",
        json!({ "StreamARN": ARN, "MaxRecordSizeInKiB": 10_240 }),
    )
    .await;
    client.fail("PutRecord", put(10 << 20), "InvalidArgumentException").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provisioned_stream_has_no_warm_throughput() {
    let router = TestRouter::start().await;
    let client = router.client();
    router.create_stream("s", 1).await;
    let settings = json!({ "MinimumThroughputBillingCommitment": { "Status": "ENABLED" } });
    client.call("UpdateAccountSettings", settings).await;
    let input = json!({ "StreamName": "s", "WarmThroughputMiBps": 8 });
    let message = client.fail("UpdateStreamWarmThroughput", input, "ValidationException").await;
    assert!(message.contains("UpdateShardCount"), "{message}");
    let input = json!({ "StreamARN": ARN, "WarmThroughputMiBps": 8,
        "StreamModeDetails": { "StreamMode": "PROVISIONED" } });
    client.fail("UpdateStreamMode", input, "ValidationException").await;
    let summary = client.wait_until_active("s").await;
    assert_eq!(summary.get("WarmThroughput"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_warmed_by_splits_and_cools_down_by_merges() {
    let router = TestRouter::start().await;
    let client = router.client();
    create_on_demand(&client).await;
    let settings = json!({ "MinimumThroughputBillingCommitment": { "Status": "ENABLED" } });
    client.call("UpdateAccountSettings", settings).await;
    let warm = |mibps: u32| json!({ "StreamName": "s", "WarmThroughputMiBps": mibps });
    let put =
        |at: u32| json!({ "StreamName": "s", "PartitionKey": at.to_string(), "Data": "AAAA" });
    for (mibps, shards) in [(20, 20), (20, 20), (6, 6), (0, 4)] {
        let before = router.stream("s").open_shards().len();
        let told = client.call("UpdateStreamWarmThroughput", warm(mibps)).await;
        let throughput = json!({ "TargetMiBps": mibps, "CurrentMiBps": before });
        assert_eq!(told["WarmThroughput"], throughput);
        // It serves meanwhile.
        for at in 0..20 {
            client.call("PutRecord", put(at)).await;
        }
        let summary = client.wait_until_active("s").await;
        assert_eq!(summary["OpenShardCount"], shards);
        let throughput = json!({ "TargetMiBps": mibps, "CurrentMiBps": shards });
        assert_eq!(summary["WarmThroughput"], throughput);
        let stream = router.stream("s");
        let sizes = stream.open_shards().map(|(_, shard)| shard.range.end.0 - shard.range.start.0);
        let (least, most) =
            sizes.fold((u128::MAX, 0), |(least, most), size| (least.min(size), most.max(size)));
        assert!(most - least <= most / 256, "{least} {most}");
    }
    // Shards that are closed end above all their records, and their children begin above that.
    let stream = router.stream("s");
    let described = client.call("DescribeStream", json!({ "StreamName": "s" })).await;
    let shards = described["StreamDescription"]["Shards"].as_array().expect("a list");
    let number =
        |shard: &Value, name: &str| shard["SequenceNumberRange"][name].as_str().map(str::to_owned);
    let mut closed = 0;
    for child in shards {
        for name in ["ParentShardId", "AdjacentParentShardId"] {
            let Some(parent) = child.get(name) else { continue };
            let parent = shards.iter().find(|shard| shard["ShardId"] == *parent);
            let ending = number(parent.expect("it is kept"), "EndingSequenceNumber");
            assert!(
                ending.expect("it is closed") < number(child, "StartingSequenceNumber").unwrap()
            );
            closed += 1;
        }
    }
    assert!(closed > 0 && stream.shards().count() == shards.len());
}
