//! Clients of Kinesis, as their users have them, against one `thalweg dev`: side by side, each with
//! streams of its own, through a split and a merge. What they are answered is held against the
//! service model on the way (`clients/tap.py`).
//!
//! `tests/run` installs the clients. What each of them does and asserts stands in its program in
//! `clients/`.

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use support::dev::DevProcess;
use support::tap::{Outcome, PYTHON, Seen, Tap, installed, python, root, seen};
use support::{directory, two_free_ports};

/// How long all clients may take together, on two processors that do other things as well.
const PATIENCE: Duration = Duration::from_secs(240);
const REGION: &str = "us-east-1";
/// The programs in JavaScript and what they share: Node.js finds packages beside them only.
const JAVASCRIPT: [&str; 6] = [
    "common.mjs",
    "lifion.mjs",
    "lifion_client.mjs",
    "lifion_fan_out_client.mjs",
    "resolve.mjs",
    "sdk_client.mjs",
];

/// The clients: a name, and what is run in which language.
const CLIENTS: [(&str, Language); 9] = [
    ("aiokpl", Language::PythonAsync("aiokpl_client.py")),
    ("async-kinesis", Language::PythonAsync("async_kinesis_client.py")),
    ("aws-cli", Language::Python("cli_client.py")),
    ("boto3", Language::Python("boto3_client.py")),
    ("boto3-cbor", Language::Python("cbor_client.py")),
    ("lifion-kinesis", Language::JavaScript("lifion_client.mjs")),
    ("lifion-fan-out", Language::JavaScript("lifion_fan_out_client.mjs")),
    ("sdk-javascript", Language::JavaScript("sdk_client.mjs")),
    ("sdk-rust", Language::Rust),
];

/// What must have been seen on the way, or nothing was checked.
const SEEN: [Seen; 9] = [
    seen("aiokpl", "1.1", "json", &[("ListShards", "ok"), ("PutRecords", "ok")]),
    seen("async-kinesis", "1.1", "json", &[("GetRecords", "ok"), ("PutRecords", "ok")]),
    seen("aws-cli", "1.1", "json", &[("GetRecords", "ok"), ("PutRecord", "ok")]),
    seen("boto3", "1.1", "json", BOTH_WAYS),
    seen("boto3-cbor", "1.1", "cbor", BOTH_WAYS),
    seen("lifion-kinesis", "1.1", "json", &[("GetRecords", "ok"), ("ListShards", "ok")]),
    seen(
        "lifion-fan-out",
        "1.1",
        "json",
        &[
            ("RegisterStreamConsumer", "ok"),
            ("ListStreamConsumers", "ok"),
            ("SubscribeToShard", "SubscribeToShardEvent"),
        ],
    ),
    seen("sdk-javascript", "2", "json", BOTH_WAYS),
    seen("sdk-rust", "1.1", "json", BOTH_WAYS),
];
const BOTH_WAYS: &[Outcome] = &[
    ("CreateStream", "ok"),
    ("PutRecords", "ok"),
    ("SplitShard", "ok"),
    ("MergeShards", "ok"),
    ("GetRecords", "ok"),
    ("SubscribeToShard", "SubscribeToShardEvent"),
    ("DeleteStream", "ok"),
];

#[derive(Clone, Copy)]
enum Language {
    Python(&'static str),
    /// With a botocore that is not the newest: aiobotocore follows it.
    PythonAsync(&'static str),
    JavaScript(&'static str),
    Rust,
}

fn command(language: Language) -> Command {
    match language {
        Language::Python(program) => python(PYTHON, &format!("clients/{program}")),
        Language::PythonAsync(program) => python("async-clients", &format!("clients/{program}")),
        Language::JavaScript(program) => {
            let mut command = Command::new("node");
            command.arg(installed("javascript-clients").join(program));
            command
        }
        Language::Rust => Command::new(installed("rust-client/debug/thalweg-test-client")),
    }
}

/// A client under way; it is killed with its handle.
struct Running {
    name: &'static str,
    child: Child,
    output: PathBuf,
}

impl Running {
    /// Starts it with nothing of this environment but the path.
    fn start(
        (name, language): (&'static str, Language),
        endpoint: String,
        key: &Key,
        directory: &Path,
    ) -> Running {
        let output = directory.join(format!("{name}.log"));
        let file = File::create(&output).expect("a file for what it says");
        let mut command = command(language);
        let child = command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("there is one"))
            .env("HOME", directory)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("AWS_ENDPOINT_URL_KINESIS", endpoint)
            .env("AWS_REGION", REGION)
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", &key.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &key.secret_access_key)
            .env("AWS_RETRY_MODE", "standard")
            .env("AWS_MAX_ATTEMPTS", "10")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a handle can be doubled"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be run: {error}"));
        Running { name, child, output }
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `thalweg dev` keeps access keys in.
#[derive(Deserialize)]
struct Credentials {
    key: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    access_key_id: String,
    secret_access_key: String,
}

/// The key that was made at the start.
fn key(data_dir: &Path) -> Key {
    let text = std::fs::read_to_string(data_dir.join("credentials.toml")).expect("keys are made");
    let credentials: Credentials = toml::from_str(&text).expect("it is a file of keys");
    credentials.key.into_iter().next().expect("one is made")
}

/// Waits for all of them; what those said that failed.
fn failures(mut running: Vec<Running>) -> Vec<String> {
    let started = Instant::now();
    let mut failures = Vec::new();
    while !running.is_empty() && started.elapsed() < PATIENCE {
        running.retain_mut(|client| {
            let Some(status) = client.has_ended() else { return true };
            println!("{}: {status} after {:.1} s", client.name, started.elapsed().as_secs_f64());
            if !status.success() {
                failures.push(format!("{}: {status}\n{}", client.name, client.said()));
            }
            false
        });
        std::thread::sleep(Duration::from_millis(100));
    }
    failures.extend(
        running
            .iter()
            .map(|client| format!("{} does not come to its end\n{}", client.name, client.said())),
    );
    failures
}

#[test]
fn clients_get_what_the_service_would_answer() {
    for name in JAVASCRIPT {
        let to = installed("javascript-clients").join(name);
        std::fs::copy(root().join("tests/clients").join(name), to).expect("a file can be copied");
    }
    let data = directory();
    let data_dir = data.path().join("d");
    let mut dev = DevProcess::start(&data_dir, two_free_ports(), &["--memory-bytes", "128MiB"]);
    let key = key(&data_dir);
    let tap = Tap::start(dev.address.port(), &CLIENTS.map(|(name, _)| name));
    let running = CLIENTS
        .map(|client| Running::start(client, tap.endpoint(client.0), &key, data.path()))
        .into_iter()
        .collect();
    let failures = failures(running);
    let report = tap.finish();
    // What deviates may be why a client failed.
    report.assert_no_deviations();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    report.assert_seen(&SEEN);
    assert_eq!(dev.terminate(), Some(0));
}

#[test]
fn the_tap_finds_what_deviates() {
    let output = python(PYTHON, "clients/test_tap.py").output().expect("python can be run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("\nOK"), "{text}");
}
