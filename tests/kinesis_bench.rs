//! `thalweg bench --target` against a `thalweg dev` with access keys: that each workload does what
//! its report says, in both encodings, and that it fails when it must.

mod support;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{PATIENCE, directory, thalweg, two_free_ports};
use thalweg_bench::kinesis::connection::{ClientPlan, Endpoint, HttpVersion};
use thalweg_bench::kinesis::control::Control;
use thalweg_bench::kinesis::credentials::Credentials;
use thalweg_bench::kinesis::encode::Encoding;
use thalweg_bench::kinesis::put::on_runtime;

/// A running `thalweg dev`.
struct Dev {
    child: Child,
    address: SocketAddr,
    data: tempfile::TempDir,
}

impl Dev {
    fn start(more: &[&str]) -> Dev {
        let data = directory();
        let address = SocketAddr::from(([127, 0, 0, 1], two_free_ports()));
        let mut command = thalweg(&["--log", "warn", "dev", "--memory-bytes", "128MiB"]);
        command.args(["--listen", &address.to_string(), "--data-dir"]).arg(data.path().join("d"));
        command.args(more).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("the program can be started");
        let mut dev = Dev { child, address, data };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = dev.child.try_wait().expect("a child can be asked") {
                panic!("it ended: {status}");
            }
            assert!(started.elapsed() < PATIENCE, "it does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        dev
    }

    fn credentials(&self) -> PathBuf {
        self.data.path().join("d/credentials.toml")
    }

    /// A workload against it, as its users type it.
    fn bench(&self, workload: &str, more: &[&str]) -> Command {
        bench(self.address, &self.credentials(), workload, more)
    }

    /// Runs a workload that passes; answers its report.
    #[track_caller]
    fn report(&self, workload: &str, more: &[&str]) -> Value {
        let json = self.data.path().join("report.json");
        let mut command = self.bench(workload, more);
        let output = command.arg("--json").arg(&json).output().expect("it can be started");
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(0), "{workload} {more:?}: {text}");
        let report = std::fs::read(&json).expect("the report was written");
        let report: Value = serde_json::from_slice(&report).expect("a report is JSON");
        std::fs::remove_file(&json).expect("it is ours");
        assert_eq!(report["workload"], workload);
        assert_eq!(report["settings"]["target"], format!("http://{}", self.address));
        assert_eq!(report["failures"], json!([]));
        assert_eq!((&report["verified"], &report["passed"]), (&json!(true), &json!(true)));
        assert_eq!(report["api"]["errors"], json!({}));
        assert!(text.contains(&self.address.to_string()), "the target is named: {text}");
        report
    }

    /// A call that must succeed.
    #[track_caller]
    fn call(&self, operation: &'static str, input: &Value) -> Value {
        let plan = ClientPlan {
            endpoint: Endpoint::parse(&format!("http://{}", self.address)).expect("a URL"),
            version: HttpVersion::One,
            encoding: Encoding::Json,
            credentials: Credentials::find(Some(&self.credentials())).expect("a key"),
            region: "us-east-1".into(),
        };
        let called = on_runtime(async {
            let client = plan.client();
            Control::new(&client).call(operation, input).await
        });
        called.expect("it is answered")
    }

    /// The streams that are there.
    fn streams(&self) -> Value {
        self.call("ListStreams", &json!({}))["StreamNames"].clone()
    }

    /// Waits until the streams that were deleted are gone.
    #[track_caller]
    fn expect_no_streams(&self) {
        let started = Instant::now();
        while self.streams() != json!([]) {
            assert!(started.elapsed() < PATIENCE, "they stay: {}", self.streams());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bench(target: SocketAddr, credentials: &Path, workload: &str, more: &[&str]) -> Command {
    let mut command = thalweg(&["bench", workload, "--target", &format!("http://{target}")]);
    command.arg("--credentials").arg(credentials).args(more);
    command.args(["--region", "us-east-1"]).stdin(Stdio::null());
    command
}

fn text_of(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

fn number(report: &Value, name: &str) -> u64 {
    report["api"][name].as_u64().unwrap_or_else(|| panic!("{name} is missing: {report}"))
}

/// Records that were acknowledged within the span, at least.
fn records_in_span(report: &Value) -> f64 {
    let figure = |value: &Value| value.as_f64().expect("a number");
    figure(&report["records_per_s"]) * figure(&report["settings"]["seconds"])
}

#[test]
fn million_writes_and_reads_back_in_both_encodings() {
    let dev = Dev::start(&["--unlimited"]);
    let ways: [&[&str]; 3] = [
        &["--encoding", "json"],
        &["--encoding", "cbor", "--shards-per-request", "1"],
        &["--encoding", "cbor", "--http2", "--in-flight", "3", "--connections", "2"],
    ];
    for way in ways {
        let common = ["--seconds", "1", "--shards", "5", "--batch-records", "50"];
        let report = dev.report("million", &[&common, way].concat());
        let settings = &report["settings"];
        assert_eq!((&settings["shards"], &settings["batch_records"]), (&json!(5), &json!(50)));
        assert_eq!(settings["encoding"], way[1]);
        assert_eq!(report["api"]["encoding"], way[1]);
        let http = if way.contains(&"--http2") { "2" } else { "1.1" };
        assert_eq!(report["api"]["http"], http);
        assert!(records_in_span(&report) >= 50.0, "{report}");
        // The warm-up is read back as well.
        assert!(number(&report, "read_records") as f64 >= records_in_span(&report), "{report}");
        assert!(report["p50_us"].as_u64() > Some(0) && report["p99_us"] != Value::Null);
        assert_eq!(report["limits"], Value::Null);
        assert_eq!(number(&report, "throttled_requests") + number(&report, "throttled_records"), 0);
    }
    dev.expect_no_streams();
}

#[test]
fn latency_is_steady_and_is_told_to_the_subscriber() {
    let dev = Dev::start(&["--unlimited"]);
    for encoding in ["json", "cbor"] {
        let common = ["--seconds", "2", "--rate", "100", "--shards", "2", "--subscribe"];
        let report = dev.report("latency", &[&common[..], &["--encoding", encoding]].concat());
        // What was intended within the span was sent, whatever the answers took.
        let records = records_in_span(&report);
        assert!((100.0..=300.0).contains(&records), "{report}");
        let read = number(&report, "read_records");
        assert!((200..=310).contains(&read), "{read} of 300, the warm-up included");
        assert_eq!(number(&report, "delivered"), read);
        for figure in ["delivery_p50_us", "delivery_p99_us", "delivery_p999_us", "delivery_max_us"]
        {
            assert!(number(&report, figure) > 0, "{figure}");
        }
    }
    // Alone, with the name of the stream given.
    let report = dev.report("latency", &["--seconds", "1", "--stream", "my-own", "--http2"]);
    assert_eq!(report["api"]["stream"], "my-own");
    assert_eq!(report["api"]["delivered"], Value::Null);
    dev.expect_no_streams();
}

#[test]
fn catchup_reads_what_it_wrote() {
    let dev = Dev::start(&["--unlimited"]);
    for encoding in ["json", "cbor"] {
        let common = ["--records", "5000", "--record-bytes", "500", "--shards", "3"];
        let report = dev.report("catchup", &[&common[..], &["--encoding", encoding]].concat());
        let read = number(&report, "read_records");
        assert!((5000..10_000).contains(&read), "{read}");
        assert!(report["api"]["read_records_per_s"].as_f64() > Some(0.0));
        assert!(report["api"]["read_bytes_per_s"].as_f64() > Some(0.0));
        assert_eq!(report["settings"]["records"], 5000);
    }
    dev.expect_no_streams();
}

#[test]
fn limits_bind_and_are_told() {
    // A shard takes 1,000 records at once and 1,000 a second then.
    let dev = Dev::start(&[]);
    let report =
        dev.report("catchup", &["--records", "2500", "--record-bytes", "100", "--shards", "1"]);
    assert!(number(&report, "throttled_records") > 0, "{report}");
    assert_eq!(number(&report, "given_up_records"), 0);
    let notes = report["api"]["notes"].to_string();
    assert!(notes.contains("limits were met"), "{notes}");
    assert!(number(&report, "read_records") >= 2500);
}

#[test]
fn streams_come_are_written_and_go() {
    let dev = Dev::start(&["--unlimited"]);
    let report = dev.report(
        "streams",
        &["--streams", "12", "--shards", "30", "--seconds", "1", "--rate", "200"],
    );
    assert_eq!((number(&report, "streams"), number(&report, "shards")), (12, 30));
    assert!(number(&report, "read_records") >= 200, "{report}");
    assert!(report["p99_us"].as_u64() > Some(0));
    dev.expect_no_streams();
}

/// `cargo test -p thalweg --test kinesis_bench burst -- --ignored`
#[test]
#[ignore = "a bucket fills in its own time: 45 s, and a machine that keeps up with it"]
fn burst_asserts_the_bucket() {
    let dev = Dev::start(&[]);
    for encoding in ["json", "cbor"] {
        let report = dev.report("burst", &["--encoding", encoding]);
        assert!(number(&report, "throttled_requests") >= 9, "{report}");
    }
    dev.expect_no_streams();
}

#[test]
fn a_wrong_secret_ends_it_at_once() {
    let dev = Dev::start(&["--unlimited"]);
    let right = std::fs::read_to_string(dev.credentials()).expect("the file is there");
    let secret_of = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("secret_access_key = "));
        line.expect("a secret").trim_matches('"').to_owned()
    };
    let (secret, wrong) = (secret_of(&right), "0123456789abcdef0123456789abcdef01234567");
    let file = dev.data.path().join("wrong.toml");
    std::fs::write(&file, right.replace(&secret, wrong)).expect("it can be written");
    for workload in ["million", "latency", "catchup", "burst", "streams"] {
        let output = bench(dev.address, &file, workload, &[]).output().expect("it can be started");
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{workload}: {text}");
        assert!(text.contains("InvalidSignatureException"), "{workload}: {text}");
        assert!(!text.contains(wrong), "{workload} shows the secret");
    }
    assert_eq!(dev.streams(), json!([]));
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dev = Dev::start(&["--unlimited"]);
    let nobody = SocketAddr::from(([127, 0, 0, 1], two_free_ports()));
    let output = bench(nobody, &dev.credentials(), "million", &[]).output();
    let output = output.expect("it can be started");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot be reached") && text.contains(&nobody.to_string()), "{text}");
    let missing = dev.data.path().join("none.toml");
    let output = bench(dev.address, &missing, "million", &[]).output().expect("it can be started");
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output).contains("none.toml"), "{}", text_of(&output));
}

#[test]
fn a_stream_that_is_there_is_left_alone() {
    let dev = Dev::start(&["--unlimited"]);
    dev.call("CreateStream", &json!({ "StreamName": "taken", "ShardCount": 1 }));
    let output = dev.bench("million", &["--stream", "taken"]).output().expect("it can be started");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ResourceInUseException") && text.contains("taken"), "{text}");
    // Of several that have no place, those are deleted that the run created.
    let several = ["--stream", "taken", "--streams", "5", "--shards", "5", "--connections", "1"];
    dev.call("CreateStream", &json!({ "StreamName": "taken-00003", "ShardCount": 1 }));
    let output = dev.bench("streams", &several).output().expect("it can be started");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("taken-00003"), "{text}");
    let started = Instant::now();
    while dev.streams() != json!(["taken", "taken-00003"]) {
        assert!(started.elapsed() < PATIENCE, "there are {}", dev.streams());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_that_goes_away_ends_it() {
    let mut dev = Dev::start(&["--unlimited"]);
    for workload in ["million", "latency"] {
        let mut command = dev.bench(workload, &["--seconds", "300", "--shards", "2"]);
        let mut child =
            command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let mut seen = String::new();
        // A line a second tells that it is under way.
        let under_way = lines.by_ref().map_while(Result::ok).any(|line| {
            seen.push_str(&line);
            line.contains("slowest ack")
        });
        assert!(under_way, "{workload}: {seen}");
        dev.child.kill().expect("a running child can be killed");
        dev.child.wait().expect("a killed child ends");
        let killed = Instant::now();
        let rest: String = lines.map_while(Result::ok).collect();
        assert_eq!(child.wait().expect("it ends").code(), Some(1), "{workload}: {rest}");
        assert!(killed.elapsed() < PATIENCE, "{workload} goes on");
        assert!(rest.contains("too many errors"), "{workload}: {rest}");
        assert!(rest.contains("could not be deleted"), "{workload}: {rest}");
        dev = Dev::start(&["--unlimited"]);
    }
}
