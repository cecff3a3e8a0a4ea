//! `thalweg dev` as its users run it: killed under load and started again.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::dev::DevProcess;
use support::prometheus::Scrape;
use support::{PATIENCE, directory, run, scrape, two_free_ports, wait_for};

/// Times that the process is killed.
const KILLS: u64 = 6;
/// The stream that records are put into all the while.
const KEPT: &str = "kept";
/// Its shards at the beginning.
const KEPT_SHARDS: usize = 3;
/// Open shards that it has at most while it is split and merged.
const OPEN_SHARDS_MAX: usize = 6;
/// Consumers that a stream may have (API reference, RegisterStreamConsumer).
const CONSUMERS_MAX: usize = 20;
/// Where it is found.
const KEPT_ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/kept";

/// What a call came to: the answer, an error of the API, or nothing.
enum Answer {
    Output(Value),
    Error(String),
    Lost,
}

/// One call on a connection of its own, in JSON, without a signature.
fn call(address: SocketAddr, operation: &str, input: &Value) -> Answer {
    exchange(address, operation, input).unwrap_or(Answer::Lost)
}

fn exchange(address: SocketAddr, operation: &str, input: &Value) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let body = input.to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: Kinesis_20131202.{operation}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status).ok()?;
    let mut length = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        }
    }
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).ok()? };
    if status.starts_with("HTTP/1.1 200") {
        return Some(Answer::Output(value));
    }
    Some(Answer::Error(value["__type"].as_str().unwrap_or(status.trim_end()).to_owned()))
}

/// A call that must succeed.
#[track_caller]
fn output(address: SocketAddr, operation: &str, input: &Value) -> Value {
    match call(address, operation, input) {
        Answer::Output(output) => output,
        Answer::Error(error) => panic!("{operation}: {error}"),
        Answer::Lost => panic!("{operation}: no answer"),
    }
}

/// A stream's status and its open shards; `None` when there is none.
#[track_caller]
fn summary(address: SocketAddr, stream: &str) -> Option<(String, u64)> {
    match call(address, "DescribeStreamSummary", &json!({ "StreamName": stream })) {
        Answer::Output(output) => {
            let summary = &output["StreamDescriptionSummary"];
            let status = summary["StreamStatus"].as_str().expect("a status").to_owned();
            Some((status, summary["OpenShardCount"].as_u64().expect("a count")))
        }
        Answer::Error(error) if error.contains("ResourceNotFound") => None,
        Answer::Error(error) => panic!("{stream}: {error}"),
        Answer::Lost => panic!("{stream}: no answer"),
    }
}

/// Waits until nothing is to become of a stream any more; answers its open shards, `None` when it
/// is not there.
#[track_caller]
fn settled(address: SocketAddr, stream: &str) -> Option<u64> {
    let started = Instant::now();
    loop {
        match summary(address, stream) {
            None => return None,
            Some((status, shards)) if status == "ACTIVE" => return Some(shards),
            Some((status, _)) => {
                assert!(started.elapsed() < PATIENCE, "{stream} stays {status}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn base64(number: u64) -> String {
    // Digits and a filler: what is decoded is of no interest here, that it comes back is.
    format!("{number:020}")
}

/// Who was told what, over all lives of the process.
#[derive(Default)]
struct Told {
    /// Records that were acknowledged: number, by shard and sequence number.
    acked: Mutex<BTreeMap<(String, String), String>>,
    /// Shards of the streams that were asked for and were not asked to be deleted.
    streams: Mutex<BTreeMap<String, Asked>>,
    /// The same of consumers, which have no shards.
    consumers: Mutex<BTreeMap<String, Asked>>,
    /// What the values of tags may be: what was asked last, and what was not answered before.
    tags: Mutex<BTreeMap<String, BTreeSet<Option<String>>>>,
    /// Splits and merges that were granted.
    reshards: AtomicU64,
    records: AtomicU64,
    stop: AtomicBool,
}

/// What is known of a stream.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    shards: u64,
    created: bool,
    delete_asked: bool,
    deleted: bool,
}

fn put_until_stopped(address: SocketAddr, told: &Told) {
    while !told.stop.load(Ordering::Relaxed) {
        let first = told.records.fetch_add(10, Ordering::Relaxed);
        let data: Vec<String> = (first..first + 10).map(base64).collect();
        let records: Vec<Value> = data
            .iter()
            .map(|data| json!({ "Data": data, "PartitionKey": format!("key-{data}") }))
            .collect();
        let input = json!({ "StreamName": KEPT, "Records": records });
        let Answer::Output(output) = call(address, "PutRecords", &input) else {
            // It was killed, or is not back yet.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let results = output["Records"].as_array().expect("an entry for each record");
        assert_eq!(results.len(), data.len());
        let mut acked = told.acked.lock().expect("nobody panics with it");
        for (result, data) in results.iter().zip(data) {
            let Some(number) = result["SequenceNumber"].as_str() else { continue };
            let shard = result["ShardId"].as_str().expect("a shard").to_owned();
            let before = acked.insert((shard, number.to_owned()), data);
            assert_eq!(before, None, "two acknowledged records have one sequence number");
        }
    }
}

fn create_and_delete_until_stopped(address: SocketAddr, told: &Told) {
    let note = |name: &str, change: &dyn Fn(&mut Asked)| {
        change(told.streams.lock().expect("nobody panics with it").get_mut(name).expect("noted"));
    };
    for number in 0_u64.. {
        if told.stop.load(Ordering::Relaxed) {
            return;
        }
        // Some hundred streams are enough.
        std::thread::sleep(Duration::from_millis(5));
        let (name, shards) = (format!("brief-{number}"), 1 + number % 5);
        let asked = Asked { shards, ..Asked::default() };
        told.streams.lock().expect("nobody panics with it").insert(name.clone(), asked);
        let input = json!({ "StreamName": name, "ShardCount": shards });
        match call(address, "CreateStream", &input) {
            Answer::Output(_) => note(&name, &|asked| asked.created = true),
            Answer::Error(_) | Answer::Lost => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        }
        if number % 3 == 0 {
            continue;
        }
        if number % 3 == 1 {
            // Two of three are deleted, one of them while it is created, if it comes to that.
            std::thread::sleep(Duration::from_millis(20));
        }
        note(&name, &|asked| asked.delete_asked = true);
        let input = json!({ "StreamName": name, "EnforceConsumerDeletion": true });
        if let Answer::Output(_) = call(address, "DeleteStream", &input) {
            note(&name, &|asked| asked.deleted = true);
        }
    }
}

/// A shard that takes records: where its hash keys begin, where they end, and its name.
type OpenShard = (u128, u128, String);

/// The open shards of a stream, in the order of their hash keys; `None` when it is not told.
fn open_shards(address: SocketAddr, stream: &str) -> Option<Vec<OpenShard>> {
    let Answer::Output(output) = call(address, "ListShards", &json!({ "StreamName": stream }))
    else {
        return None;
    };
    assert_eq!(output["NextToken"], Value::Null, "all are told at once");
    let mut open = Vec::new();
    for shard in output["Shards"].as_array().expect("shards") {
        if shard["SequenceNumberRange"]["EndingSequenceNumber"].is_null() {
            let range = &shard["HashKeyRange"];
            let key = |name: &str| range[name].as_str().expect("a key").parse().expect("a number");
            let name = shard["ShardId"].as_str().expect("a name").to_owned();
            open.push((key("StartingHashKey"), key("EndingHashKey"), name));
        }
    }
    open.sort_unstable();
    Some(open)
}

fn split_and_merge_until_stopped(address: SocketAddr, told: &Told) {
    for turn in 0_usize.. {
        if told.stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
        let Some(open) = open_shards(address, KEPT) else { continue };
        let place = turn % open.len();
        let (operation, input) = if turn % 2 == 0 && open.len() < OPEN_SHARDS_MAX {
            let (first, last, name) = &open[place];
            let middle = first + (last - first) / 2;
            let input = json!({
                "StreamName": KEPT, "ShardToSplit": name, "NewStartingHashKey": middle.to_string(),
            });
            ("SplitShard", input)
        } else {
            let Some([left, right]) = open.get(place..place + 2) else { continue };
            let input = json!({
                "StreamName": KEPT, "ShardToMerge": left.2, "AdjacentShardToMerge": right.2,
            });
            ("MergeShards", input)
        };
        if let Answer::Output(_) = call(address, operation, &input) {
            told.reshards.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn register_and_tag_until_stopped(address: SocketAddr, told: &Told) {
    let note = |name: &str, change: &dyn Fn(&mut Asked)| {
        let mut consumers = told.consumers.lock().expect("nobody panics with it");
        change(consumers.entry(name.to_owned()).or_default());
    };
    for number in 0_u64.. {
        if told.stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
        let (key, value) = (format!("tag-{}", number % 20), number.to_string());
        let input = json!({ "StreamName": KEPT, "Tags": { &key: &value } });
        let tagged = call(address, "AddTagsToStream", &input);
        let mut tags = told.tags.lock().expect("nobody panics with it");
        let values = tags.entry(key).or_insert_with(|| BTreeSet::from([None]));
        match tagged {
            Answer::Output(_) => *values = BTreeSet::from([Some(value)]),
            Answer::Error(_) | Answer::Lost => _ = values.insert(Some(value)),
        }
        drop(tags);

        let name = format!("consumer-{number}");
        let input = json!({ "StreamARN": KEPT_ARN, "ConsumerName": name });
        note(&name, &|_| {});
        if let Answer::Output(_) = call(address, "RegisterStreamConsumer", &input) {
            note(&name, &|asked| asked.created = true);
        }
        // It cannot be deregistered before it is active; whoever stays was lost to a kill.
        std::thread::sleep(Duration::from_millis(20));
        note(&name, &|asked| asked.delete_asked = true);
        if let Answer::Output(_) = call(address, "DeregisterStreamConsumer", &input) {
            note(&name, &|asked| asked.deleted = true);
        }
    }
}

/// The open shards tile the range of hash keys, and as many are counted as there are.
fn check_shards(address: SocketAddr, told: &Told) {
    let open = open_shards(address, KEPT).expect("it is told");
    let mut next = Some(0);
    for (first, last, name) in &open {
        assert_eq!(next, Some(*first), "{name} begins where the one before it ends");
        next = last.checked_add(1);
    }
    assert_eq!(next, None, "they reach the last hash key");
    assert_eq!(settled(address, KEPT), Some(open.len() as u64));
    let streams = told.streams.lock().expect("nobody panics with it");
    let others = streams.keys().filter_map(|name| settled(address, name)).sum::<u64>();
    let limits = output(address, "DescribeLimits", &json!({}));
    assert_eq!(limits["OpenShardCount"], others + open.len() as u64);
}

/// The consumers of the kept stream and their states.
fn consumers(address: SocketAddr) -> BTreeMap<String, String> {
    let listed = output(address, "ListStreamConsumers", &json!({ "StreamARN": KEPT_ARN }));
    assert_eq!(listed["NextToken"], Value::Null, "all are told at once");
    let listed = listed["Consumers"].as_array().expect("consumers").clone();
    let text = |consumer: &Value, name: &str| consumer[name].as_str().expect("a text").to_owned();
    let of = |consumer: &Value| (text(consumer, "ConsumerName"), text(consumer, "ConsumerStatus"));
    listed.iter().map(of).collect()
}

/// Waits until nothing is to become of any consumer any more.
fn settled_consumers(address: SocketAddr) -> BTreeMap<String, String> {
    let started = Instant::now();
    loop {
        let found = consumers(address);
        if found.values().all(|status| status == "ACTIVE") {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{found:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Consumers and tags are as they were asked for; afterwards there is room for as many consumers
/// as in a new stream.
fn check_consumers_and_tags(address: SocketAddr, told: &Told) {
    let found = settled_consumers(address);
    for (name, asked) in told.consumers.lock().expect("nobody panics with it").iter() {
        match found.contains_key(name) {
            true => assert!(!asked.deleted, "{name} was deregistered, and is there"),
            false => assert!(!asked.created || asked.delete_asked, "{name} is not there"),
        }
    }
    let tags = output(address, "ListTagsForStream", &json!({ "StreamName": KEPT, "Limit": 50 }));
    let tags = tags["Tags"].as_array().expect("tags");
    for (key, values) in told.tags.lock().expect("nobody panics with it").iter() {
        let tag = tags.iter().find(|tag| tag["Key"] == key.as_str());
        let value = tag.map(|tag| tag["Value"].as_str().expect("a text").to_owned());
        assert!(values.contains(&value), "{key} is {value:?} and not of {values:?}");
    }
    for name in found.keys() {
        let input = json!({ "StreamARN": KEPT_ARN, "ConsumerName": name });
        output(address, "DeregisterStreamConsumer", &input);
    }
    let started = Instant::now();
    while !consumers(address).is_empty() {
        assert!(started.elapsed() < PATIENCE, "consumers stay");
        std::thread::sleep(Duration::from_millis(10));
    }
    for number in 0..CONSUMERS_MAX {
        let input = json!({ "StreamARN": KEPT_ARN, "ConsumerName": format!("new-{number}") });
        output(address, "RegisterStreamConsumer", &input);
        // Five are made at a time.
        settled_consumers(address);
    }
}

/// Every stream is there with all its shards, or not at all.
fn check_streams(address: SocketAddr, told: &Told) {
    let asked = told.streams.lock().expect("nobody panics with it").clone();
    for (name, asked) in &asked {
        let found = settled(address, name);
        match found {
            Some(shards) => {
                assert_eq!(shards, asked.shards, "{name}");
                assert!(!asked.deleted, "{name} was deleted, and is there");
            }
            None => assert!(
                !asked.created || asked.delete_asked,
                "{name} was created, and is not there"
            ),
        }
    }
}

/// The node has the shards of the streams that are there, and nothing of others.
fn check_nothing_is_left_behind(address: SocketAddr, told: &Told) {
    let streams = told.streams.lock().expect("nobody panics with it").clone();
    let names = streams.keys().map(String::as_str).chain([KEPT]);
    let there = names.filter(|name| settled(address, name).is_some());
    let listed = |name: &str| {
        let listed = output(address, "ListShards", &json!({ "StreamName": name }));
        listed["Shards"].as_array().expect("shards").len() as f64
    };
    let shards: f64 = there.map(listed).sum();
    let known = || scrape(address).sum("thalweg_node_shards", &[]);
    wait_for("that the node has no other shards", || known() == shards);
    assert!(shards > 0.0 && streams.values().any(|asked| asked.deleted));
}

/// Everything that a stream has: data, by shard and sequence number.
fn read_everything(address: SocketAddr, stream: &str) -> BTreeMap<(String, String), String> {
    let listed = output(address, "ListShards", &json!({ "StreamName": stream }));
    assert_eq!(listed["NextToken"], Value::Null, "all are told at once");
    let mut found = BTreeMap::new();
    for shard in listed["Shards"].as_array().expect("shards") {
        let shard = shard["ShardId"].as_str().expect("a name");
        let input =
            json!({ "StreamName": stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON" });
        let mut iterator = output(address, "GetShardIterator", &input)["ShardIterator"].clone();
        let mut last = None;
        loop {
            let got = output(address, "GetRecords", &json!({ "ShardIterator": iterator }));
            for record in got["Records"].as_array().expect("records") {
                let text = |member: &str| record[member].as_str().expect("a text").to_owned();
                let number = (text("SequenceNumber").len(), text("SequenceNumber"));
                assert!(last.as_ref() < Some(&number), "{shard} is not in order");
                last = Some(number);
                found.insert((shard.to_owned(), text("SequenceNumber")), text("Data"));
            }
            iterator = got["NextShardIterator"].clone();
            let is_empty = got["Records"].as_array().is_some_and(Vec::is_empty);
            if iterator.is_null() || (is_empty && got["MillisBehindLatest"] == 0) {
                break;
            }
        }
    }
    found
}

#[test]
fn what_was_acknowledged_outlives_kills() {
    let data = directory();
    let more = ["--no-auth", "--unlimited", "--memory-bytes", "128MiB"];
    let mut dev = DevProcess::start(&data.path().join("d"), two_free_ports(), &more);
    let address = dev.address;
    output(address, "CreateStream", &json!({ "StreamName": KEPT, "ShardCount": KEPT_SHARDS }));
    assert_eq!(settled(address, KEPT), Some(KEPT_SHARDS as u64));
    let told = Arc::new(Told::default());
    let start = |work: fn(SocketAddr, &Told)| -> JoinHandle<()> {
        let told = told.clone();
        std::thread::spawn(move || work(address, &told))
    };
    let threads = [
        start(put_until_stopped),
        start(put_until_stopped),
        start(create_and_delete_until_stopped),
        start(split_and_merge_until_stopped),
        start(register_and_tag_until_stopped),
    ];
    for kill in 0..KILLS {
        let acked = || told.acked.lock().expect("nobody panics with it").len();
        let (before, started) = (acked(), Instant::now());
        while acked() < before + 100 {
            assert!(started.elapsed() < PATIENCE, "nothing is acknowledged");
            assert!(!threads.iter().any(JoinHandle::is_finished), "a client gave up");
            std::thread::sleep(Duration::from_millis(5));
        }
        // At another moment of the streams' lives each time.
        std::thread::sleep(Duration::from_millis(kill * 37));
        dev.kill_and_restart();
    }
    told.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a client ends well");
    }
    check_streams(address, &told);
    check_shards(address, &told);
    check_nothing_is_left_behind(address, &told);
    assert!(told.reshards.load(Ordering::Relaxed) > 0, "nothing was split or merged");
    check_consumers_and_tags(address, &told);
    let found = read_everything(address, KEPT);
    let acked = told.acked.lock().expect("nobody panics with it");
    let lost: Vec<_> =
        acked.iter().filter(|&(place, data)| found.get(place) != Some(data)).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {:?}", lost.len(), acked.len(), lost.first());
    let numbers: BTreeSet<&String> = found.values().collect();
    assert_eq!(numbers.len(), found.len(), "no record is there twice");
    assert_eq!(dev.terminate(), Some(0));
}

/// Every call that is answered before a stop is kept, and clients that say nothing or half of it
/// do not hold it up.
#[test]
fn a_stop_under_load_keeps_what_was_acknowledged() {
    // After this, who is not done is cut off.
    const DRAIN: Duration = Duration::from_secs(20);
    let data = directory();
    let more = ["--no-auth", "--unlimited", "--memory-bytes", "128MiB"];
    let mut dev = DevProcess::start(&data.path().join("d"), two_free_ports(), &more);
    let address = dev.address;
    output(address, "CreateStream", &json!({ "StreamName": KEPT, "ShardCount": KEPT_SHARDS }));
    assert_eq!(settled(address, KEPT), Some(KEPT_SHARDS as u64));
    let told = Arc::new(Told::default());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let told = told.clone();
            std::thread::spawn(move || put_until_stopped(address, &told))
        })
        .collect();
    let connect = || TcpStream::connect(address).expect("it serves");
    let (idle, mut half, mut preface) = (connect(), connect(), connect());
    half.write_all(b"POST / HTTP/1.1\r\nHost").expect("it reads");
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("it reads");
    let started = Instant::now();
    while told.acked.lock().expect("nobody panics with it").len() < 500 {
        assert!(started.elapsed() < PATIENCE, "nothing is acknowledged");
        std::thread::sleep(Duration::from_millis(5));
    }
    let asked = Instant::now();
    assert_eq!(dev.terminate(), Some(0));
    assert!(asked.elapsed() < DRAIN, "{:?}", asked.elapsed());
    drop((idle, half, preface));
    told.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a client ends well");
    }
    dev.kill_and_restart();
    let found = read_everything(address, KEPT);
    let acked = told.acked.lock().expect("nobody panics with it");
    let lost = acked.iter().filter(|&(place, data)| found.get(place) != Some(data)).count();
    assert_eq!(lost, 0, "of {} are lost", acked.len());
    assert_eq!(dev.terminate(), Some(0));
}

/// A header of HTTP/2 as a literal that is not remembered (RFC 7541, 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        assert!(text.len() < 127, "its length has one byte");
        [&[text.len() as u8][..], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// However much is logged: what clients keep secret is not among it.
#[test]
fn secrets_are_in_no_log() {
    const SECRETS: [&str; 4] = [
        "session-token-f00d",
        "0123456789abcdeffedcba98",
        "partition-key-f00d",
        "c2VjcmV0IGRhdGE=",
    ];
    let [token, signature, key, data] = SECRETS;
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/kinesis/aws4_request, \
         SignedHeaders=host, Signature={signature}"
    );
    for access in [&["--no-auth"][..], &[]] {
        let directory = directory();
        let (data_dir, log) = (directory.path().join("d"), directory.path().join("log"));
        let to = std::fs::File::create(&log).expect("a file of the test");
        let more = [access, &["--memory-bytes", "64MiB"]].concat();
        let mut dev =
            DevProcess::start_logging(&data_dir, two_free_ports(), &more, "trace", to.into());
        let address = dev.address;
        let _ = call(address, "CreateStream", &json!({ "StreamName": KEPT, "ShardCount": 1 }));
        if !access.is_empty() {
            settled(address, KEPT);
        }
        let good = json!({ "StreamName": KEPT, "PartitionKey": key, "Data": data }).to_string();
        let bodies = [good.clone(), good.repeat(2), good.replace("Data\":\"", "Data\":\"@")];
        for body in &bodies {
            let head = format!(
                "POST /?X-Amz-Security-Token={token} HTTP/1.1\r\nHost: {address}\r\n\
                 Content-Type: application/x-amz-json-1.1\r\nConnection: close\r\n\
                 X-Amz-Target: Kinesis_20131202.PutRecord\r\nAuthorization: {authorization}\r\n\
                 X-Amz-Security-Token: {token}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let mut client = TcpStream::connect(address).expect("it serves");
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
            client.write_all(format!("{head}{body}").as_bytes()).expect("it reads");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        }
        // The same over HTTP/2, and a head that is none.
        for path in [format!("/?X-Amz-Security-Token={token}"), format!("/ {token}\x01")] {
            let block: Vec<u8> = [
                literal(":method", "POST"),
                literal(":scheme", "http"),
                literal(":path", &path),
                literal(":authority", "localhost"),
                literal("content-type", "application/x-amz-json-1.1"),
                literal("x-amz-target", "Kinesis_20131202.PutRecord"),
                literal("x-amz-security-token", token),
                literal("x-amz-signature", signature),
            ]
            .concat();
            let frames = [
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                frame(4, 0, 0, &[]),
                frame(1, 4, 1, &block),
                frame(0, 1, 1, good.as_bytes()),
                // GOAWAY: nothing follows.
                frame(7, 0, 0, &[0; 8]),
            ];
            let mut client = TcpStream::connect(address).expect("it serves");
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
            client.write_all(&frames.concat()).expect("it reads");
            assert!(client.read_to_end(&mut Vec::new()).is_ok_and(|bytes| bytes > 0));
        }
        assert_eq!(dev.terminate(), Some(0));
        let log = std::fs::read(&log).expect("a log");
        let log = String::from_utf8_lossy(&log);
        assert!(log.contains("h2::"), "it tells a lot");
        let credentials = std::fs::read_to_string(data_dir.join("credentials.toml"));
        let secret_key = credentials.ok().map(|text| {
            let line = text.lines().find(|line| line.starts_with("secret_access_key"));
            line.expect("a key").split('"').nth(1).expect("a text").to_owned()
        });
        assert_eq!(secret_key.is_none(), !access.is_empty());
        for secret in SECRETS.into_iter().chain(secret_key.as_deref()) {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "it is told");
        }
    }
}

#[test]
fn without_keys_it_listens_on_loopback_only() {
    let data = directory();
    let data_dir = data.path().join("d");
    let data_dir = data_dir.to_str().expect("a path of the test");
    let output = run(&["dev", "--no-auth", "--listen", "0.0.0.0:0", "--data-dir", data_dir]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--no-auth") && text.contains("127.0.0.1"), "{text}");
    assert!(!Path::new(data_dir).exists(), "nothing is made before");
}

#[test]
fn with_keys_nobody_is_let_in_without() {
    let data = directory();
    let data_dir = data.path().join("d");
    let mut dev = DevProcess::start(&data_dir, two_free_ports(), &["--memory-bytes", "64MiB"]);
    let Answer::Error(error) = call(dev.address, "ListStreams", &json!({})) else {
        panic!("it was let in, or not answered");
    };
    assert!(error.contains("MissingAuthenticationToken"), "{error}");
    assert!(data_dir.join("credentials.toml").exists());
    assert_eq!(dev.terminate(), Some(0));
}

#[test]
fn metrics_tell_of_router_and_node_what_was_put() {
    let data = directory();
    let more = ["--no-auth", "--unlimited", "--memory-bytes", "128MiB", "--cores", "2"];
    let mut dev = DevProcess::start(&data.path().join("d"), two_free_ports(), &more);
    let address = dev.address;
    output(address, "CreateStream", &json!({ "StreamName": KEPT, "ShardCount": KEPT_SHARDS }));
    assert_eq!(settled(address, KEPT), Some(KEPT_SHARDS as u64));
    let records: Vec<Value> = (0..50)
        .map(|n| json!({ "Data": base64(n), "PartitionKey": format!("key-{n:02}") }))
        .collect();
    let input = json!({ "StreamName": KEPT, "Records": records });
    for _ in 0..4 {
        assert_eq!(output(address, "PutRecords", &input)["FailedRecordCount"], 0);
    }
    let stream = [("stream", KEPT), ("region", "us-east-1"), ("account", "123456789012")];
    let started = Instant::now();
    // What a core holds at the moment is up to date within a second or two.
    let shown = loop {
        let shown = scrape(address);
        if shown.sum("thalweg_node_shards", &[]) == KEPT_SHARDS as f64 {
            break shown;
        }
        assert!(started.elapsed() < PATIENCE, "the shards are not shown");
        std::thread::sleep(Duration::from_millis(50));
    };
    // 20 digits of base64 are 15 bytes, a key has 6.
    assert_eq!(shown.get("thalweg_incoming_records_total", &stream), 200.0);
    assert_eq!(shown.get("thalweg_incoming_bytes_total", &stream), 200.0 * 21.0);
    assert_eq!(shown.get("thalweg_put_records_latency_milliseconds_count", &stream), 4.0);
    assert_eq!(shown.sum("thalweg_node_records_appended_total", &[]), 200.0);
    assert_eq!(shown.sum("thalweg_node_commit_records_sum", &[]), 200.0);
    let batches = shown.sum("thalweg_node_batches_appended_total", &[]);
    assert_eq!(shown.sum("thalweg_node_commit_duration_seconds_count", &[]), batches);
    assert_eq!(shown.sum("thalweg_node_commit_batches_sum", &[]), batches);
    let bytes = shown.sum("thalweg_node_bytes_appended_total", &[]);
    assert_eq!(shown.sum("thalweg_node_commit_bytes_sum", &[]), bytes);
    assert!(shown.sum("thalweg_node_sync_duration_seconds_count", &[]) > 0.0);
    assert_eq!(shown.sum("thalweg_node_batches_damaged_total", &[]), 0.0);
    // Three quarters of the memory are buffers; of 64 MiB segments each core has three at least.
    assert_eq!(shown.sum("thalweg_node_buffer_bytes", &[]), f64::from(96 << 20));
    assert!(shown.get("thalweg_node_segments", &[("core", "1"), ("state", "free")]) >= 1.0);
    assert!(shown.sum("thalweg_node_segment_bytes", &[]) >= f64::from(6 * (64 << 20)));
    let (free, all) = ("thalweg_node_disk_free_bytes", "thalweg_node_disk_bytes");
    assert!(shown.get(free, &[]) > 0.0 && shown.get(free, &[]) <= shown.get(all, &[]));
    assert_eq!(shown.get("thalweg_router_streams", &[("status", "ACTIVE")]), 1.0);
    check_documented(&shown);
    assert_eq!(dev.terminate(), Some(0));
}

/// The documentation has every series that there is, and none that there is not.
fn check_documented(shown: &Scrape) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("the documentation can be read");
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c| !is_part(c)).filter(|word| word.len() > "thalweg_".len());
    let named: BTreeSet<&str> = words.filter(|word| word.starts_with("thalweg_")).collect();
    for family in shown.types.keys() {
        assert!(named.contains(family.as_str()), "{family} is not documented");
    }
    for name in named {
        let is_part = |part: &str| {
            name.strip_suffix(part)
                .is_some_and(|base| shown.types.get(base).is_some_and(|kind| kind == "histogram"))
        };
        let is_known = shown.types.contains_key(name);
        assert!(is_known || is_part("_bucket") || is_part("_count"), "there is no {name}");
    }
}
