//! The commands from outside, on a small repository whose bench reports invented figures.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Costs `COST` with a noise of 2 % that is the same in every test, and ends with `EXIT`.
const BENCH: &str = r#"
const COST: f64 = 1.00;
const EXIT: i32 = 0;
const SLEEP_S: u64 = 0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| {
        arguments[arguments.iter().position(|word| word == flag).unwrap() + 1].clone()
    };
    let data = after("--data-dir");
    assert_eq!(std::fs::read_dir(data).unwrap().count(), 0);
    let state = std::env::var("FAKE_STATE").unwrap();
    let seed: u64 = std::fs::read_to_string(&state).map_or(1, |text| text.parse().unwrap());
    let next = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    std::fs::write(&state, next.to_string()).unwrap();
    let noise = (next >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    let cost = COST * (1.0 + 0.04 * noise);
    println!("exit {EXIT}");
    std::thread::sleep(std::time::Duration::from_secs(SLEEP_S));
    if EXIT != 0 {
        std::process::exit(EXIT);
    }
    let speed = 1e6 / cost;
    std::fs::write(after("--json"), format!(
        "{{\"workload\":\"{}\",\"records_per_s\":{speed},\"cpu_s_per_gb\":{cost},\"p99_us\":null,\
         \"verified\":true,\"passed\":true,\"extra\":{{}}}}", arguments[2])).unwrap();
}
"#;

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    /// A repository with one commit, tagged `base`.
    fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        let repository = fixture.repository();
        std::fs::create_dir_all(repository.join("src")).unwrap();
        std::fs::create_dir_all(fixture.temp()).unwrap();
        let manifest = "[package]\nname = \"thalweg\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        std::fs::write(repository.join("Cargo.toml"), manifest).unwrap();
        std::fs::write(repository.join("src/main.rs"), BENCH).unwrap();
        let cargo =
            Command::new("cargo").arg("generate-lockfile").current_dir(&repository).output();
        assert!(cargo.unwrap().status.success());
        fixture.git(&["init", "--quiet"]);
        fixture.commit("base");
        fixture
    }

    fn repository(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("target")
    }

    fn temp(&self) -> PathBuf {
        self.directory.path().join("temp")
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=test", "-c", "user.email=test@example.org"]);
        let output = git.args(arguments).current_dir(self.repository()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn edit(&self, from: &str, to: &str) {
        let source = BENCH.replace(from, to);
        assert_ne!(source, BENCH);
        std::fs::write(self.repository().join("src/main.rs"), source).unwrap();
    }

    fn commit(&self, tag: &str) {
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "-m", tag]);
        self.git(&["tag", tag]);
    }

    fn tool(&self, arguments: &[&str]) -> Command {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_thalweg-perf"));
        tool.args(arguments)
            .current_dir(self.repository())
            .env("CARGO_TARGET_DIR", self.target())
            .env("TMPDIR", self.temp())
            .env("FAKE_STATE", self.directory.path().join("state"));
        tool
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.tool(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        (status.code(), text.into_owned())
    }

    /// Neither worktrees nor runs are left behind.
    fn assert_clean(&self) {
        assert_eq!(self.git(&["worktree", "list"]).lines().count(), 1);
        assert_eq!(std::fs::read_dir(self.temp()).unwrap().count(), 0);
        let runs = std::fs::read_dir(self.target().join("perf")).into_iter().flatten();
        let names = runs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|name| name.starts_with("run-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_slower_commit_fails_an_identical_one_passes() {
    let fixture = Fixture::new();
    fixture.edit("COST: f64 = 1.00", "COST: f64 = 1.05");
    fixture.commit("slow");
    let result = fixture.directory.path().join("result.json");
    let saved = result.to_str().unwrap();

    let (code, text) = fixture.run(&["compare", "base", "slow", "--json", saved]);
    assert_eq!(code, Some(3), "{text}");
    let found = json(&result);
    assert_eq!(found["verdict"], "regression");
    assert_eq!(found["bench"], "million --seconds 2");
    assert_eq!(found["metrics"][0]["metric"], "records_per_s");
    assert!(found["metrics"][0]["noise"]["low"].is_number(), "{found}");
    assert!(found["machine"]["kernel"].is_string(), "{found}");
    fixture.assert_clean();

    // Both binaries are kept now: without a compiler's work, and without the source, it goes on.
    let (code, text) = fixture.run(&["compare", "slow", "base", "--json", saved]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(json(&result)["verdict"], "improvement");

    let (code, text) = fixture.run(&["compare", "base", "base", "--require-decision"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no regression at a confidence of"), "{text}");

    // The working tree is the slow one as well.
    let (code, text) = fixture.run(&["compare", "base", ".", "--", "burst"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("bench burst"), "{text}");
    fixture.assert_clean();
}

#[test]
fn a_run_that_fails_ends_the_comparison() {
    let fixture = Fixture::new();
    for (tag, code) in [("lossy", 1), ("unsuitable", 2), ("broken", 7)] {
        fixture.edit("EXIT: i32 = 0", &format!("EXIT: i32 = {code}"));
        fixture.commit(tag);
    }
    for (tag, expected) in [("lossy", 1), ("unsuitable", 2), ("broken", 1)] {
        let (code, text) = fixture.run(&["compare", "base", tag]);
        assert_eq!(code, Some(expected), "{tag}: {text}");
        assert!(text.contains("error: head: "), "{text}");
        fixture.assert_clean();
    }
    std::fs::write(fixture.repository().join("src/main.rs"), "does not compile").unwrap();
    fixture.commit("uncompiled");
    let (code, text) = fixture.run(&["compare", "base", "uncompiled"]);
    assert_eq!(code, Some(1), "{text}");
    fixture.assert_clean();
}

#[test]
fn an_interrupt_stops_the_bench_and_cleans_up() {
    let fixture = Fixture::new();
    fixture.edit("SLEEP_S: u64 = 0", "SLEEP_S: u64 = 60");
    let mut tool = fixture.tool(&["compare", ".", "."]);
    let mut child = tool.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let log = fixture.target().join(format!("perf/run-{}/bench.log", child.id()));
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("exit 0")) {
        assert!(started.elapsed() < Duration::from_secs(120), "the bench never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    fixture.assert_clean();
}

#[test]
fn the_history_grows_by_a_line_each_run() {
    let fixture = Fixture::new();
    let (code, text) = fixture.run(&["history"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = fixture.run(&["history", "--skip-build-time", "--", "--rate", "9"]);
    assert_eq!(code, Some(0), "{text}");
    let history = fixture.repository().join("docs/performance-history.jsonl");
    let text = std::fs::read_to_string(history).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["revision"], fixture.git(&["rev-parse", "base"]).trim());
    // The first line made the tree differ, but only by the history itself.
    assert_eq!((&lines[0]["dirty"], &lines[1]["dirty"]), (&false.into(), &false.into()));
    assert!(lines[0]["build_s"].as_f64().unwrap() > 0.0);
    assert!(lines[1]["build_s"].is_null());
    assert_eq!(lines[1]["bench"], "million --rate 9");
    assert!(lines[0]["binary_bytes"].as_u64().unwrap() > 10_000);
    let (code, text) = fixture.run(&["history", "--show"]);
    assert_eq!((code, text.lines().count()), (Some(0), 3), "{text}");
}

#[test]
fn wrong_arguments_are_told_from_an_unsuitable_machine() {
    let fixture = Fixture::new();
    for arguments in [
        &["compare", "base"][..],
        &["compare", "base", "base", "--pairs", "3"],
        &["compare", "base", "Cargo.toml"],
        &["compare", "base", "base", "--", "--json", "mine"],
        &["nonsense"],
    ] {
        let (code, text) = fixture.run(arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {text}");
    }
    assert_eq!(fixture.run(&["--help"]).0, Some(0));
    let (code, text) = fixture.run(&["compare", "base", "nowhere"]);
    assert_eq!(code, Some(1), "{text}");
}
