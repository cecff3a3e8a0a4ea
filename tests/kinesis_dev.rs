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
use support::{PATIENCE, directory, run, scrape, two_free_ports};

/// Times that the process is killed.
const KILLS: u64 = 6;
/// The stream that records are put into all the while.
const KEPT: &str = "kept";
/// Its shards.
const KEPT_SHARDS: usize = 3;

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
    records: AtomicU64,
    stop: AtomicBool,
}

/// What is known of a stream.
#[derive(Clone, Copy, Debug)]
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
        let asked = Asked { shards, created: false, delete_asked: false, deleted: false };
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
    assert_eq!(settled(address, KEPT), Some(KEPT_SHARDS as u64));
}

/// Everything that a stream has: data, by shard and sequence number.
fn read_everything(address: SocketAddr, stream: &str) -> BTreeMap<(String, String), String> {
    let described = output(address, "DescribeStream", &json!({ "StreamName": stream }));
    let mut found = BTreeMap::new();
    for shard in described["StreamDescription"]["Shards"].as_array().expect("shards") {
        let shard = shard["ShardId"].as_str().expect("a name");
        let input =
            json!({ "StreamName": stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON" });
        let mut iterator = output(address, "GetShardIterator", &input)["ShardIterator"].clone();
        loop {
            let got = output(address, "GetRecords", &json!({ "ShardIterator": iterator }));
            for record in got["Records"].as_array().expect("records") {
                let text = |member: &str| record[member].as_str().expect("a text").to_owned();
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
    let found = read_everything(address, KEPT);
    let acked = told.acked.lock().expect("nobody panics with it");
    let lost: Vec<_> =
        acked.iter().filter(|&(place, data)| found.get(place) != Some(data)).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {:?}", lost.len(), acked.len(), lost.first());
    let numbers: BTreeSet<&String> = found.values().collect();
    assert_eq!(numbers.len(), found.len(), "no record is there twice");
    assert_eq!(dev.terminate(), Some(0));
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
