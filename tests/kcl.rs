//! The Java KCL reads from `thalweg dev`, as its users run it: polling and with enhanced fan-out,
//! through a split and a merge under load. What is done and checked is in `kcl.py`. What the
//! applications and the producer are answered is held against the service model on the way
//! (`clients/tap.py`).

mod support;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::tap::{Seen, Tap, python, root, seen};
use support::{PATIENCE, directory, thalweg, two_free_ports};

/// The clients: the applications go by their names, `POLLING` and `FAN_OUT` in `kcl.py`.
const CLIENTS: [&str; 3] = ["producer", "polling", "fan-out"];

/// What must have been seen on the way, or nothing was checked. The SDK for Java speaks CBOR, and
/// JSON where the answer is an event stream.
const SEEN: [Seen; 4] = [
    seen(
        "producer",
        "1.1",
        "json",
        &[
            ("CreateStream", "ok"),
            ("PutRecords", "ok"),
            ("SplitShard", "ok"),
            ("MergeShards", "ok"),
            ("ListShards", "ok"),
        ],
    ),
    seen(
        "polling",
        "2",
        "cbor",
        &[("ListShards", "ok"), ("GetShardIterator", "ok"), ("GetRecords", "ok")],
    ),
    seen(
        "fan-out",
        "2",
        "cbor",
        &[("RegisterStreamConsumer", "ok"), ("DescribeStreamConsumer", "ok"), ("ListShards", "ok")],
    ),
    seen("fan-out", "2", "json", &[("SubscribeToShard", "SubscribeToShardEvent")]),
];

/// A running `thalweg dev`.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Access keys: one that may do anything, and one for the KCL that may do what docs/kcl.md says.
fn write_credentials(path: &Path) {
    let docs = std::fs::read_to_string(root().join("docs/kcl.md")).expect("the documents");
    let policy = docs.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
    let policy = policy.expect("a policy in docs/kcl.md");
    let credentials = format!(
        "[[key]]\n\
         access_key_id = \"THALTESTS00000000001\"\n\
         secret_access_key = \"0123456789012345678901234567890123456789\"\n\
         account_id = \"123456789012\"\n\
         [[key]]\n\
         access_key_id = \"THALTESTS00000000002\"\n\
         secret_access_key = \"abcdefghijabcdefghijabcdefghijabcdefghij\"\n\
         account_id = \"123456789012\"\n\
         user = \"kcl\"\n\
         policies = ['''{policy}''']\n"
    );
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(credentials.as_bytes()));
    written.expect("a new file");
}

/// Starts `thalweg dev` at an address, and waits until it serves. Warnings go to `log`.
fn start_dev(address: &str, data_dir: &Path, log: &Path) -> Dev {
    let child = thalweg(&["--log", "warn", "dev", "--memory-bytes", "128MiB"])
        .args(["--listen", address, "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log).expect("a new file"))
        .spawn();
    let mut dev = Dev(child.expect("the program can be started"));
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        if let Some(status) = dev.0.try_wait().expect("a child can be asked") {
            panic!("it ended: {status}");
        }
        assert!(started.elapsed() < PATIENCE, "it does not serve");
        std::thread::sleep(Duration::from_millis(5));
    }
    dev
}

#[test]
fn the_java_kcl_reads_each_record_once_through_a_split_and_a_merge() {
    let directory = directory();
    let (data_dir, log) = (directory.path().join("d"), directory.path().join("log"));
    let kcl_dir = directory.path().join("kcl");
    for new in [&data_dir, &kcl_dir] {
        DirBuilder::new().mode(0o700).create(new).expect("a new directory");
    }
    let credentials = data_dir.join("credentials.toml");
    write_credentials(&credentials);
    let port = two_free_ports();
    let mut dev = start_dev(&format!("127.0.0.1:{port}"), &data_dir, &log);
    let tap = Tap::start(port, &CLIENTS);

    let read = python("kcl", "kcl.py")
        .args(CLIENTS.map(|client| tap.endpoint(client)))
        .arg(&credentials)
        .arg(&kcl_dir)
        .status()
        .expect("python can be run");

    let report = tap.finish();
    let asked = Command::new("kill").args(["-TERM", &dev.0.id().to_string()]).status();
    assert!(asked.expect("kill can be run").success());
    let ended = dev.0.wait().expect("it ends");
    let warnings = std::fs::read_to_string(&log).expect("its log");
    // What deviates may be why an application failed.
    report.assert_no_deviations();
    assert!(read.success(), "kcl.py: {read}; warnings of thalweg dev:\n{warnings}");
    report.assert_seen(&SEEN);
    assert_eq!(ended.code(), Some(0));
    assert_eq!(warnings, "", "nothing of this is worth a warning");
}
