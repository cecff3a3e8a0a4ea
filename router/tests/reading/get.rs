//! GetShardIterator and GetRecords.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thalweg_router::kinesis::server::ANSWER_BYTES_FREE;
use thalweg_router::kinesis::service::ServiceSettings;
use thalweg_wire::sequence_number::SequenceNumber;

use crate::stream::{create, data_of, iterator, put, put_all, split};
use crate::support::PATIENCE;
use crate::support::router::{ACCOUNT, RouterOptions, TestRouter, access_key};

async fn get(router: &TestRouter, iterator: &str, limit: Option<u32>) -> Value {
    let mut input = json!({ "ShardIterator": iterator });
    if let Some(limit) = limit {
        input["Limit"] = json!(limit);
    }
    router.client().call("GetRecords", input).await
}

/// Reads from an iterator on until a number of records has come or the shard has ended.
async fn read(router: &TestRouter, mut iterator: String, count: usize) -> (Vec<Vec<u8>>, Value) {
    let (mut data, started) = (Vec::new(), Instant::now());
    loop {
        let output = get(router, &iterator, None).await;
        data.extend(data_of(&output));
        let next = output["NextShardIterator"].as_str().map(str::to_owned);
        match next {
            Some(next) if data.len() < count => iterator = next,
            _ => return (data, output),
        }
        assert!(started.elapsed() < PATIENCE, "{count} records do not come");
    }
}

fn number(record: &Value) -> SequenceNumber {
    let text = record["SequenceNumber"].as_str().expect("a text");
    SequenceNumber::from_decimal(text).expect("a sequence number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_read_from_every_place() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let mut numbers = Vec::new();
    for text in ["a", "b", "c"] {
        let put = put(&router, "s", text.as_bytes()).await;
        numbers.push(put["SequenceNumber"].as_str().expect("a text").to_owned());
    }
    let all = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    let output = get(&router, &all, None).await;
    assert_eq!(data_of(&output), [b"a", b"b", b"c"]);
    assert_eq!(output["MillisBehindLatest"], 0);
    assert_eq!(output.get("ChildShards"), None);
    for (record, put) in output["Records"].as_array().expect("a list").iter().zip(&numbers) {
        assert_eq!(record["SequenceNumber"].as_str(), Some(&**put), "what the producer was told");
        assert_eq!(
            (&record["PartitionKey"], &record["EncryptionType"]),
            (&json!("k"), &json!("NONE"))
        );
        let arrived_s = record["ApproximateArrivalTimestamp"].as_f64().expect("a time");
        assert_eq!(arrived_s as u64, number(record).time_s);
    }

    let limited = get(&router, &all, Some(2)).await;
    assert_eq!(data_of(&limited), [b"a", b"b"]);
    assert!(limited["MillisBehindLatest"].as_u64() > Some(0));
    let next = limited["NextShardIterator"].as_str().expect("the shard is open");
    assert_eq!(data_of(&get(&router, next, Some(2)).await), [b"c"]);

    let at = |kind: &str, number: &str| json!({ "ShardIteratorType": kind, "StartingSequenceNumber": number });
    for (place, expected) in [
        (at("AT_SEQUENCE_NUMBER", &numbers[1]), &[b"b", b"c"][..]),
        (at("AFTER_SEQUENCE_NUMBER", &numbers[1]), &[b"c"]),
        (at("AFTER_SEQUENCE_NUMBER", &numbers[2]), &[]),
        (json!({ "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1.5 }), &[b"a", b"b", b"c"]),
    ] {
        let from = iterator(&router, "s", place.clone()).await;
        assert_eq!(data_of(&get(&router, &from, None).await), expected, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_after_an_iterator_was_given_is_read() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    put(&router, "s", b"before").await;
    let latest = iterator(&router, "s", json!({ "ShardIteratorType": "LATEST" })).await;
    let now_s = (router.now_ms)() as f64 / 1000.0;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let now = json!({ "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": now_s });
    let by_time = iterator(&router, "s", now).await;
    let empty = get(&router, &by_time, None).await;
    assert_eq!((data_of(&empty).len(), &empty["MillisBehindLatest"]), (0, &json!(0)));
    let still_by_time = empty["NextShardIterator"].as_str().expect("the shard is open");
    put(&router, "s", b"after").await;
    for iterator in [&*latest, &by_time, still_by_time] {
        assert_eq!(data_of(&get(&router, iterator, None).await), [b"after"]);
    }
    // The same iterator gives the same again.
    assert_eq!(data_of(&get(&router, &latest, None).await), [b"after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_shard_ends_with_its_children() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let put_first = put(&router, "s", b"first").await;
    put(&router, "s", b"second").await;
    let before = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    split(&router, "s").await;
    put(&router, "s", b"third").await;

    let (data, last) = read(&router, before, usize::MAX).await;
    assert_eq!(data, [&b"first"[..], b"second"]);
    assert_eq!((last.get("NextShardIterator"), &last["MillisBehindLatest"]), (None, &json!(0)));
    let half = (1_u128 << 127).to_string();
    assert_eq!(
        last["ChildShards"],
        json!([
            {
                "ShardId": "shardId-000000000001",
                "ParentShards": ["shardId-000000000000"],
                "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": ((1_u128 << 127) - 1).to_string() },
            },
            {
                "ShardId": "shardId-000000000002",
                "ParentShards": ["shardId-000000000000"],
                "HashKeyRange": { "StartingHashKey": half, "EndingHashKey": u128::MAX.to_string() },
            },
        ])
    );
    // Whoever comes to the end by another way is told the same.
    let first = put_first["SequenceNumber"].as_str().expect("a text");
    let ending = SequenceNumber {
        sequence_index: i64::MAX as u64,
        ..SequenceNumber::from_decimal(first).expect("a sequence number")
    };
    for place in [
        json!({ "ShardIteratorType": "LATEST" }),
        json!({ "ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": ending.to_decimal() }),
        json!({ "ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": ending.to_decimal() }),
    ] {
        let at_end = iterator(&router, "s", place).await;
        let output = get(&router, &at_end, None).await;
        assert_eq!((data_of(&output).len(), &output["ChildShards"]), (0, &last["ChildShards"]));
        assert_eq!(output.get("NextShardIterator"), None);
    }
    // The children have what came later, and do not end.
    let mut data = Vec::new();
    for shard in ["shardId-000000000001", "shardId-000000000002"] {
        let place = json!({ "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON" });
        let (more, last) = read(&router, iterator(&router, "s", place).await, 0).await;
        assert!(last["NextShardIterator"].is_string());
        data.extend(more);
    }
    assert_eq!(data, [b"third"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_has_ten_mebibytes_at_most() {
    let router =
        TestRouter::start_with(RouterOptions { shard_limits: None, ..RouterOptions::default() })
            .await;
    create(&router, "s", 1, 10_240).await;
    let data: Vec<Vec<u8>> = (0..14).map(|byte| vec![byte; 1_000_000]).collect();
    put_all(&router, "s", &data[..7]).await;
    put_all(&router, "s", &data[7..]).await;
    // The largest record that there can be.
    let largest = vec![14; (10 << 20) - 1];
    put(&router, "s", &largest).await;
    let mut iterator = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    let mut read = Vec::new();
    for count in [10, 4, 1, 0] {
        let output = get(&router, &iterator, None).await;
        let data = data_of(&output);
        assert_eq!(data.len(), count);
        read.extend(data);
        let behind = output["MillisBehindLatest"].as_u64().expect("a number");
        assert_eq!(behind == 0, read.len() == 15);
        iterator = output["NextShardIterator"].as_str().expect("the shard is open").to_owned();
    }
    assert!(read[..14] == data && read[14] == largest);
}

/// Answers that were being made counted against no memory, and who read large records waited for
/// memory in front of those who had it: with 100 readers of 10 MiB each nearly all of them failed
/// after ten seconds, and with them whoever read a few small records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_large_records_do_not_keep_others_from_theirs() {
    let options = RouterOptions {
        shard_limits: None,
        // For two at a time of what is read, and for four answers.
        read_bytes: 14 << 20,
        answers_bytes: 32 << 20,
        ..RouterOptions::default()
    };
    let router = TestRouter::start_with(options).await;
    create(&router, "large", 1, 5120).await;
    create(&router, "small", 1, 1024).await;
    put(&router, "large", &vec![1; (5 << 20) - 1]).await;
    put(&router, "small", b"a").await;
    let earliest = json!({ "ShardIteratorType": "TRIM_HORIZON" });
    let large = iterator(&router, "large", earliest.clone()).await;
    let small = iterator(&router, "small", earliest).await;
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let (client, input) = (router.client(), json!({ "ShardIterator": large }));
            tokio::spawn(async move { client.try_call("GetRecords", input).await })
        })
        .collect();
    let started = Instant::now();
    while !readers.iter().all(tokio::task::JoinHandle::is_finished) {
        assert_eq!(data_of(&get(&router, &small, None).await), [b"a"]);
        assert!(started.elapsed() < PATIENCE, "large records are not read");
    }
    let mut served = 0;
    for reader in readers {
        match reader.await.expect("no panic") {
            Ok(output) => {
                assert_eq!(data_of(&output)[0].len(), (5 << 20) - 1);
                served += 1;
            }
            Err(failure) => assert_eq!(failure.kind, "ServiceUnavailable", "{failure:?}"),
        }
    }
    assert!(served >= 2, "{served} were served, and there is room for two at a time");
    let metrics = router.metrics().await;
    assert_eq!(metrics.get("thalweg_router_answers_bytes", &[]), 0.0);
    assert_eq!(metrics.get("thalweg_router_fetcher_bytes", &[]), 0.0);
}

/// Where there is no memory for more, an answer has fewer records, and the next one goes on there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_as_short_as_its_room() {
    // Small answers need no room, and for others there is none.
    let options =
        RouterOptions { shard_limits: None, answers_bytes: 1, ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    create(&router, "s", 1, 1024).await;
    let data: Vec<Vec<u8>> = (0..100).map(|byte| vec![byte; 10_000]).collect();
    put_all(&router, "s", &data).await;
    let mut next = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    let mut read = Vec::new();
    while read.len() < data.len() {
        let output = get(&router, &next, None).await;
        let some = data_of(&output);
        let bytes = some.len() * 13_336;
        assert!(bytes <= ANSWER_BYTES_FREE && !some.is_empty(), "{} records", some.len());
        read.extend(some);
        let is_behind = output["MillisBehindLatest"].as_u64() > Some(0);
        assert_eq!(is_behind, read.len() < data.len());
        next = output["NextShardIterator"].as_str().expect("the shard is open").to_owned();
    }
    assert!(read == data);

    put(&router, "s", &[7; 300_000]).await;
    let input = json!({ "ShardIterator": next });
    let failure = router.client().try_call("GetRecords", input).await.expect_err("no room");
    assert_eq!((failure.status, &*failure.kind), (503, "ServiceUnavailable"));
    assert!(failure.message.contains("try again"), "{}", failure.message);
}

/// Many small batches make one answer: a reader is not given a batch at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_has_ten_thousand_records_at_most() {
    let router =
        TestRouter::start_with(RouterOptions { shard_limits: None, ..RouterOptions::default() })
            .await;
    create(&router, "s", 1, 1024).await;
    let data: Vec<Vec<u8>> = (0..10_100_u32).map(|number| number.to_be_bytes().to_vec()).collect();
    for some in data.chunks(500) {
        put_all(&router, "s", some).await;
    }
    let all = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    let output = get(&router, &all, None).await;
    assert!(data_of(&output) == data[..10_000]);
    let next = output["NextShardIterator"].as_str().expect("the shard is open");
    assert!(data_of(&get(&router, next, None).await) == data[10_000..]);
    assert!(data_of(&get(&router, &all, Some(777)).await) == data[..777]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_good_is_refused_in_the_services_words() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    let client = router.client();
    let place = json!({ "ShardIteratorType": "TRIM_HORIZON" });
    let good = iterator(&router, "s", place).await;
    // Any way of writing a shard's name is taken that the service takes.
    for shard in ["0", "shardId-0", "shardId-00000", "anything-0"] {
        iterator(&router, "s", json!({ "ShardIteratorType": "LATEST", "ShardId": shard })).await;
    }
    let of_shard = |stream: &str, shard: &str| json!({ "StreamName": stream, "ShardId": shard, "ShardIteratorType": "LATEST" });
    for (input, message) in [
        (of_shard("t", "shardId-0"), "Stream t under account 123456789012 not found."),
        (
            of_shard("s", "shardId-7"),
            "Shard shardId-000000000007 in stream s under account 123456789012 does not exist",
        ),
        (
            of_shard("s", "shard"),
            "Could not find shard shard in stream s under account 123456789012.",
        ),
        (
            of_shard("s", "shardId-2147483648"),
            "Could not find shard shardId-2147483648 in stream s under account 123456789012.",
        ),
    ] {
        let kind = "ResourceNotFoundException";
        assert_eq!(client.fail("GetShardIterator", input, kind).await, message);
    }
    let mut changed = good.clone();
    changed.replace_range(30..31, if &good[30..31] == "A" { "B" } else { "A" });
    for iterator in ["AAAA", &changed, &good[1..], "no base64!"] {
        let input = json!({ "ShardIterator": iterator });
        let message = client.fail("GetRecords", input, "InvalidArgumentException").await;
        assert_eq!(message, "Invalid ShardIterator.");
    }
    let dry = json!({ "ShardIterator": &good, "DryRun": true });
    client.fail("GetRecords", dry, "DryRunOperationException").await;
    let other = "arn:aws:kinesis:us-east-1:123456789012:stream/other";
    let input = json!({ "ShardIterator": &good, "StreamARN": other });
    client.fail("GetRecords", input, "InvalidArgumentException").await;
    let input = json!({ "ShardIterator": &good, "Limit": 10_001 });
    let message = client.fail("GetRecords", input, "InvalidArgumentException").await;
    assert_eq!(message, "Limit 10001 is too large: a call returns 10000 records at most.");
    for limit in [0, -1] {
        let input = json!({ "ShardIterator": &good, "Limit": limit });
        client.fail("GetRecords", input, "ValidationException").await;
    }
    let input = json!({ "ShardIterator": "", "Limit": 10_001 });
    let message = client.fail("GetRecords", input, "ValidationException").await;
    assert!(!message.contains("limit"), "{message}");

    router.advance(Duration::from_secs(299));
    get(&router, &good, None).await;
    router.advance(Duration::from_secs(2));
    let input = json!({ "ShardIterator": good });
    let message = client.fail("GetRecords", input, "ExpiredIteratorException").await;
    assert!(
        message.starts_with("Iterator expired. The iterator was created at time "),
        "{message}"
    );
}

/// A shard that had expired was not listed any more, and iterators for it were given all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_has_expired_has_no_iterators() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    split(&router, "s").await;
    let place = json!({ "ShardIteratorType": "TRIM_HORIZON" });
    iterator(&router, "s", place.clone()).await;
    router.advance(Duration::from_secs(24 * 3600 + 1));
    let mut input = place;
    input["StreamName"] = json!("s");
    input["ShardId"] = json!("shardId-000000000000");
    let message =
        router.client().fail("GetShardIterator", input, "ResourceNotFoundException").await;
    assert_eq!(
        message,
        "Shard shardId-000000000000 in stream s under account 123456789012 does not exist"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iterator_of_a_stream_that_was_deleted_finds_nothing() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    put(&router, "s", b"gone").await;
    let old = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    router.client().call("DeleteStream", json!({ "StreamName": "s" })).await;
    router.client().wait_until_gone("s").await;
    // A stream of the same name is another one.
    create(&router, "s", 2, 1024).await;
    let input = json!({ "ShardIterator": old });
    router.client().fail("GetRecords", input, "ResourceNotFoundException").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_read_no_faster_than_it_may_be() {
    let router = TestRouter::start_with(RouterOptions {
        service: ServiceSettings { limits: true, ..ServiceSettings::default() },
        shard_limits: None,
        ..RouterOptions::default()
    })
    .await;
    create(&router, "s", 2, 1024).await;
    // Both keys lie in the first half of the hash keys.
    let place = json!({ "ShardIteratorType": "TRIM_HORIZON" });
    let all = iterator(&router, "s", place).await;
    let throttled = "ProvisionedThroughputExceededException";
    let message =
        "Rate exceeded for shard shardId-000000000000 in stream s under account 123456789012.";
    let input = json!({ "ShardIterator": all });
    let at_once = (0..20).map(|_| {
        let (client, input) = (router.client(), input.clone());
        tokio::spawn(async move { client.try_call("GetRecords", input).await.err() })
    });
    let mut refused = 0;
    for outcome in at_once.collect::<Vec<_>>() {
        if let Some(failure) = outcome.await.expect("it does not panic") {
            refused += 1;
            assert_eq!((failure.kind.as_str(), failure.message.as_str()), (throttled, message));
        }
    }
    assert!(refused > 0, "twenty calls at once are too many");
    // Another shard is not concerned, and the first is read again a moment later.
    let other = json!({ "ShardIteratorType": "LATEST", "ShardId": "1" });
    get(&router, &iterator(&router, "s", other).await, None).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    get(&router, &all, None).await;

    let data: Vec<Vec<u8>> = (0..3).map(|byte| vec![byte; 1_000_000]).collect();
    let records: Vec<Value> = data
        .iter()
        .map(|data| {
            let data = base64_simd::STANDARD.encode_to_string(data);
            json!({ "PartitionKey": "k", "ExplicitHashKey": "0", "Data": data })
        })
        .collect();
    let records = json!({ "StreamName": "s", "Records": records });
    router.client().call("PutRecords", records).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let read = Instant::now();
    assert_eq!(data_of(&get(&router, &all, None).await).len(), 3);
    // All that was read beyond the second's worth has to come back, and that too.
    let silence = loop {
        match router.client().try_call("GetRecords", input.clone()).await {
            Ok(_) => break read.elapsed(),
            Err(failure) => assert_eq!((&*failure.kind, &*failure.message), (throttled, message)),
        }
        assert!(read.elapsed() < PATIENCE, "it is never read again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(silence >= Duration::from_millis(1400), "{silence:?}");
}

/// Nothing is kept of an iterator: another router, behind another start of the node, goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iterator_outlives_its_router() {
    let router = TestRouter::start().await;
    create(&router, "s", 1, 1024).await;
    for text in ["a", "b", "c"] {
        put(&router, "s", text.as_bytes()).await;
    }
    let all = iterator(&router, "s", json!({ "ShardIteratorType": "TRIM_HORIZON" })).await;
    let first = get(&router, &all, Some(1)).await;
    let next = first["NextShardIterator"].as_str().expect("the shard is open").to_owned();
    let router = TestRouter::start_in(router.stop().await, RouterOptions::default()).await;
    put(&router, "s", b"d").await;
    assert_eq!(data_of(&get(&router, &next, None).await), [b"b", b"c", b"d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_is_told_so() {
    let statement = r#"{"Effect":"Allow","Action":"kinesis:GetShardIterator","Resource":"*"}"#;
    let finder = format!("policies = ['{{\"Statement\":{statement}}}']");
    let credentials = access_key("ADMIN", ACCOUNT, "")
        + &access_key("FINDER", ACCOUNT, &finder)
        + &access_key("OTHER", "999999999999", "");
    let options = RouterOptions { credentials: Some(credentials), ..RouterOptions::default() };
    let router = TestRouter::start_with(options).await;
    let with = |id: &str| router.client().with_access_key(id);
    let (admin, finder, other) = (with("ADMIN"), with("FINDER"), with("OTHER"));
    admin.call("CreateStream", json!({ "StreamName": "s", "ShardCount": 1 })).await;
    admin.wait_until_active("s").await;
    let input = json!({
        "StreamName": "s", "ShardId": "shardId-000000000000", "ShardIteratorType": "LATEST",
    });
    let output = finder.call("GetShardIterator", input).await;
    // Who has the iterator may not read for that alone.
    let input = json!({ "ShardIterator": output["ShardIterator"] });
    let message = finder.fail("GetRecords", input.clone(), "AccessDeniedException").await;
    assert!(message.contains("kinesis:GetRecords on resource: arn:aws:kinesis:"), "{message}");
    other.fail("GetRecords", input.clone(), "AccessDeniedException").await;
    admin.call("GetRecords", input).await;

    let stream = format!("arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/s");
    let named = json!({ "StreamARN": stream, "ConsumerName": "c" });
    let by_arn = json!({ "ConsumerARN": format!("{stream}/consumer/c:5") });
    for client in [&finder, &other] {
        for operation in ["RegisterStreamConsumer", "DescribeStreamConsumer"] {
            client.fail(operation, named.clone(), "AccessDeniedException").await;
        }
        // Whether there is such a consumer, they do not learn.
        for operation in ["DescribeStreamConsumer", "DeregisterStreamConsumer"] {
            client.fail(operation, by_arn.clone(), "AccessDeniedException").await;
        }
        let input = json!({ "StreamARN": stream });
        client.fail("ListStreamConsumers", input, "AccessDeniedException").await;
        let input = json!({
            "ConsumerARN": by_arn["ConsumerARN"],
            "ShardId": "shardId-000000000000",
            "StartingPosition": { "Type": "LATEST" },
        });
        client.fail("SubscribeToShard", input, "AccessDeniedException").await;
    }
}
