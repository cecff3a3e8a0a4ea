//! The tap between clients and `thalweg dev` (`tests/clients/tap.py`): it hands on what they say to
//! each other, and holds what `thalweg dev` answers against the service model.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::Deserialize;

/// Where the newest boto3 is, and what the tap needs.
pub(crate) const PYTHON: &str = "kinesis-clients";

/// Where the repository is.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Something that `tests/run` installs.
pub(crate) fn installed(path: &str) -> PathBuf {
    let path = root().join("target").join(path);
    assert!(path.exists(), "{} is missing: tests/run installs it", path.display());
    path
}

/// A program in `tests/`, with the packages of one of the environments.
pub(crate) fn python(environment: &str, program: &str) -> Command {
    let mut command = Command::new(installed(environment).join("bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(root().join("tests").join(program));
    command
}

/// A tap under way; it is killed with its handle.
pub(crate) struct Tap {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Where it listens on 127.0.0.1, by clients.
    ports: BTreeMap<String, u16>,
}

impl Tap {
    /// Starts it before the port of a `thalweg dev`, with a port of its own for each client.
    pub(crate) fn start(port: u16, clients: &[&str]) -> Tap {
        let mut command = python(PYTHON, "clients/tap.py");
        command.arg(port.to_string()).args(clients);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the tap says where it listens");
        let ports = serde_json::from_str(&line).expect("ports by clients");
        Tap { child, stdout, ports }
    }

    /// Where a client finds `thalweg dev`.
    pub(crate) fn endpoint(&self, client: &str) -> String {
        format!("http://127.0.0.1:{}", self.ports[client])
    }

    /// Ends it, once its clients have ended.
    pub(crate) fn finish(mut self) -> Report {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).expect("the tap reports");
        assert!(self.child.wait().expect("it ends").success());
        let report: Report = serde_json::from_str(&text).expect("a report");
        for (seen, count) in &report.observed {
            println!("{}: {count}", seen.join(" "));
        }
        report
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the tap has to tell in the end.
#[derive(Deserialize)]
pub(crate) struct Report {
    /// Client, HTTP version, encoding, operation and outcome, and how often.
    observed: Vec<([String; 5], u64)>,
    deviations: Vec<String>,
}

/// What must have been seen on the way, or nothing was checked.
pub(crate) struct Seen {
    client: &'static str,
    http: &'static str,
    encoding: &'static str,
    outcomes: &'static [Outcome],
}

/// An operation, and what came of it: see `tests/clients/tap.py`.
pub(crate) type Outcome = (&'static str, &'static str);

pub(crate) const fn seen(
    client: &'static str,
    http: &'static str,
    encoding: &'static str,
    outcomes: &'static [Outcome],
) -> Seen {
    Seen { client, http, encoding, outcomes }
}

impl Report {
    #[track_caller]
    pub(crate) fn assert_no_deviations(&self) {
        assert!(self.deviations.is_empty(), "{:#?}", self.deviations);
    }

    #[track_caller]
    pub(crate) fn assert_seen(&self, seen: &[Seen]) {
        for Seen { client, http, encoding, outcomes } in seen {
            for (operation, outcome) in *outcomes {
                let expected = [*client, *http, *encoding, *operation, *outcome];
                let is_seen = self.observed.iter().any(|(seen, _)| *seen == expected);
                assert!(is_seen, "{expected:?} was not seen");
            }
        }
    }
}
