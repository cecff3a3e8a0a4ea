//! What cannot work is refused at the start, with the remedy in the message and an exit code that
//! tells an unsuitable machine (2) from a wrong call (1); what can, stops in order when asked.

mod support;

use std::net::{SocketAddr, TcpStream};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use support::{NodeProcess, PATIENCE, directory, run, scrape, thalweg, two_free_ports};
use thalweg_wire::checksum::crc32c_pieces;

/// Runs a small node with `more` options; the small ones' defaults give way to them.
fn node(data_dir: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["node", "--data-dir", data_dir];
    for (flag, value) in [
        ("--listen", "127.0.0.1:0"),
        ("--cores", "1"),
        ("--memory-bytes", "64MiB"),
        ("--segment-bytes", "16MiB"),
        ("--prefill-bytes", "0"),
    ] {
        if !more.contains(&flag) {
            arguments.extend([flag, value]);
        }
    }
    arguments.extend(more);
    run(&arguments)
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_directory_in_use_or_not_ours_is_refused() {
    let data = directory();
    let path = data.path().join("d");
    let running = NodeProcess::start(&path, two_free_ports(), 1);
    let text = path.to_str().expect("a path of the test");
    refused(&node(text, &[]), 1, &["in use by another node", "--data-dir"]);
    drop(running);
    let foreign = directory();
    std::fs::write(foreign.path().join("letter"), "dear").expect("it can be written");
    let text = foreign.path().to_str().expect("a path of the test");
    refused(&node(text, &[]), 1, &["not a Thalweg data directory", "empty directory"]);
}

#[test]
fn another_format_or_segment_size_is_refused() {
    let data = directory();
    let path = data.path().join("d");
    assert_eq!(NodeProcess::start(&path, two_free_ports(), 1).terminate(), Some(0));
    let text = path.to_str().expect("a path of the test");
    let other = node(text, &["--segment-bytes", "32MiB"]);
    refused(&other, 1, &["16777216", "33554432", "--segment-bytes"]);
    let superblock = path.join("disk");
    let mut block = std::fs::read(&superblock).expect("it is there");
    block[8] = 2;
    let crc = crc32c_pieces(&[&block[..12], &block[16..]]);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&superblock, block).expect("it can be written");
    refused(&node(text, &[]), 1, &["format version 2", "reads version 1"]);
}

#[test]
fn a_file_system_that_forgets_is_refused() {
    let shm = std::path::Path::new("/dev/shm");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("Linux has it");
    let is_tmpfs = mounts.lines().any(|line| line.contains(" /dev/shm tmpfs "));
    if !shm.is_dir() || !is_tmpfs {
        println!("skipped: /dev/shm is no tmpfs here");
        return;
    }
    let dir = tempfile::tempdir_in(shm).expect("a directory for the test");
    let text = dir.path().join("d");
    refused(&node(text.to_str().expect("a path"), &[]), 2, &["tmpfs", "ext4 or XFS"]);
}

#[test]
fn no_space_and_a_taken_port_are_refused() {
    let data = directory();
    let text = data.path().join("d");
    let text = text.to_str().expect("a path of the test");
    let output = node(text, &["--prefill-bytes", "1000TiB"]);
    refused(&output, 2, &["bytes free", "--prefill-bytes"]);
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    refused(&node(text, &["--listen", &address]), 1, &["cannot listen", &address]);
}

/// Without being asked to, a node listens where it has to and nowhere else.
#[test]
fn metrics_are_served_where_it_is_asked() {
    let data = directory();
    let path = data.path().join("d");
    let port = two_free_ports();
    let address = SocketAddr::from(([127, 0, 0, 1], port + 1));
    let mut command = thalweg(&["--log", "warn", "node", "--cores", "1", "--prefill-bytes", "0"]);
    command
        .arg("--data-dir")
        .arg(&path)
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--memory-bytes", "64MiB", "--segment-bytes", "16MiB"])
        .args(["--metrics-listen", &address.to_string()])
        .stdin(Stdio::null());
    let mut child = command.spawn().expect("the program can be started");
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        let ended = child.try_wait().expect("a child can be asked");
        assert!(ended.is_none() && started.elapsed() < PATIENCE, "it does not serve: {ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown = scrape(address);
    assert_eq!(shown.sum("thalweg_node_buffer_bytes", &[("core", "0")]), f64::from(48 << 20));
    assert!(shown.types.keys().all(|name| !name.starts_with("thalweg_router")));
    child.kill().expect("a running child can be killed");
    child.wait().expect("a killed child ends");
    let text = path.to_str().expect("a path of the test");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    refused(&node(text, &["--metrics-listen", &address]), 1, &["cannot listen", &address]);
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let data = directory();
    let text = data.path().join("d");
    let text = text.to_str().expect("a path of the test");
    refused(&node(text, &["--memory-bytes", "1MiB"]), 1, &["memory", "64 MiB a core"]);
    refused(&node(text, &["--segment-bytes", "1MiB"]), 1, &["segment", "16 MiB to 4 GiB"]);
    refused(&node(text, &["--cores", "5000"]), 1, &["cores"]);
    let file = data.path().join("node.toml");
    std::fs::write(&file, "memroy_bytes = \"1GiB\"\n").expect("it can be written");
    let file = file.to_str().expect("a path of the test");
    refused(&node(text, &["--config", file]), 1, &["memroy_bytes", "memory_bytes"]);
}

/// Locked memory is not limited for a process with CAP_IPC_LOCK: it is dropped where there is a
/// tool for that.
#[test]
fn too_little_locked_memory_is_refused() {
    let has = |tool: &str| {
        std::process::Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    if !has("setpriv") || !has("prlimit") {
        println!("skipped: no setpriv or prlimit here");
        return;
    }
    let data = directory();
    let path = data.path().join("d");
    let program = thalweg(&[]).get_program().to_owned();
    let output = std::process::Command::new("prlimit")
        .args(["--memlock=1048576:1048576", "setpriv", "--inh-caps=-ipc_lock"])
        .args(["--bounding-set=-ipc_lock", "--"])
        .arg(program)
        .args(["node", "--listen", "127.0.0.1:0", "--cores", "1", "--memory-bytes", "64MiB"])
        .args(["--segment-bytes", "16MiB", "--prefill-bytes", "0", "--data-dir"])
        .arg(&path)
        .output()
        .expect("prlimit can be run");
    refused(&output, 2, &["locked in memory", "ulimit -l", "--memory-bytes"]);
}

/// The kernel's switch for io_uring is one for the whole machine: here the call alone is refused,
/// as that switch and a container's filter would.
#[test]
fn a_system_without_io_uring_is_refused() {
    let data = directory();
    let program = thalweg(&[]).get_program().to_owned();
    for errno in ["EPERM", "ENOSYS"] {
        let output = std::process::Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=io_uring_setup", "-o", "/dev/null", "-e"])
            .arg(format!("inject=io_uring_setup:error={errno}"))
            .arg(&program)
            .args(["node", "--listen", "127.0.0.1:0", "--cores", "1", "--memory-bytes", "64MiB"])
            .args(["--segment-bytes", "16MiB", "--prefill-bytes", "0", "--data-dir"])
            .arg(data.path().join("d"))
            .output()
            .expect("tests/run installs strace");
        refused(&output, 2, &["io_uring", "kernel.io_uring_disabled"]);
    }
}

#[test]
fn help_and_version_are_there() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["node", "--help"],
        &["bench", "--help"],
        &["bench", "million", "--help"],
        &["bench", "burst", "--help"],
        &["bench", "latency", "--help"],
        &["bench", "limits", "--help"],
        &["bench", "fanout", "--help"],
        &["bench", "catchup", "--help"],
        &["bench", "shards", "--help"],
        &["bench", "soak", "--help"],
    ] {
        let output = run(arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
}
