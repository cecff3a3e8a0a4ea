//! Instructions of the hot paths, counted by valgrind: free of noise, so that a change of one or
//! two per cent shows which no timing on a shared machine can tell.
//!
//! Each path runs at two numbers of iterations, and the difference divided by theirs is the cost
//! of one: start-up cancels out. Valgrind masks AVX-512 in CPUID, so code that chooses by detected
//! features takes its next best path; the count is for comparing revisions, not for absolute cost.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use thiserror::Error;

use crate::process::{self, ProcessError};
use crate::revision::{Repository, RevisionError, Scratch};

/// The committed instructions of each path, from the top of the repository.
pub(crate) const BASELINE: &str = "perf-scripts/instructions.json";
const PACKAGE: &str = "thalweg-bench";
const BINARY: &str = "hotpaths";
/// Paths that one count may cover; a list beyond it is not a list of names.
const PATHS_MAX: usize = 100;

/// Why nothing was counted.
#[derive(Debug, Error)]
pub(crate) enum CountError {
    /// valgrind is missing, or a program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No scratch directory.
    #[error(transparent)]
    Scratch(#[from] RevisionError),
    /// The program names no paths, or too many.
    #[error("`{BINARY} --list` names {count} paths; 1 to {PATHS_MAX} are expected")]
    Paths {
        /// How many it names.
        count: usize,
    },
    /// valgrind's output has no total.
    #[error("callgrind left no total in {}; does this valgrind run at all?", path.display())]
    NoTotal {
        /// Its output.
        path: PathBuf,
    },
    /// More iterations did not cost more.
    #[error(
        "{name} takes {few_instructions} instructions for {few} iterations and \
         {many_instructions} for {many}: it does not repeat its work"
    )]
    NoWork {
        /// The path.
        name: String,
        /// The smaller number of iterations.
        few: u64,
        /// The greater.
        many: u64,
        /// At the smaller.
        few_instructions: u64,
        /// At the greater.
        many_instructions: u64,
    },
    /// The baseline could not be read or written.
    #[error("cannot {action} the baseline {}: {source}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// The baseline.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The baseline is no object of numbers.
    #[error("the baseline {} is damaged: {source}; rewrite it with --update", path.display())]
    Baseline {
        /// The baseline.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Instructions of one operation by path.
pub(crate) type Instructions = BTreeMap<String, f64>;

/// One path against the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// The path.
    pub name: String,
    /// Instructions an operation that are committed.
    pub baseline: Option<f64>,
    /// Instructions an operation now.
    pub counted: Option<f64>,
    /// Whether they agree.
    pub status: Status,
}

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// Within the threshold.
    Same,
    /// Fewer by more than the threshold: progress, and a baseline that no longer guards it.
    Fewer,
    /// More by more than the threshold.
    More,
    /// Not in the baseline.
    New,
    /// In the baseline only.
    Gone,
}

impl Status {
    /// Whether the baseline still says what is. Progress does not fail a count: it is to be
    /// recorded, not punished.
    pub(crate) fn passes(self) -> bool {
        matches!(self, Self::Same | Self::Fewer)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Fewer => "fewer: record it with --update",
            Self::More => "MORE",
            Self::New => "NEW: record it with --update",
            Self::Gone => "GONE: remove it with --update",
        }
    }
}

/// Builds the hot paths and counts each of them.
pub(crate) fn count(repository: &Repository, iterations: u64) -> Result<Instructions, CountError> {
    // Before minutes of building: valgrind may be missing.
    process::output(Command::new("valgrind").arg("--version"))?;
    let target = repository.cache().join("count");
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--profile", "release", "--package", PACKAGE]);
    build.args(["--bin", BINARY]).current_dir(repository.root());
    process::run_checked(build.env("CARGO_TARGET_DIR", &target).stdout(Stdio::null()))?;
    let scratch = Scratch::new(repository.cache().join(format!("run-{}", std::process::id())))?;
    count_paths(&target.join("release").join(BINARY), iterations, &scratch.path)
}

fn count_paths(binary: &Path, iterations: u64, scratch: &Path) -> Result<Instructions, CountError> {
    let list = process::output(Command::new(binary).arg("--list"))?;
    let names: Vec<&str> = list.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.is_empty() || names.len() > PATHS_MAX {
        return Err(CountError::Paths { count: names.len() });
    }
    // Caches and pools are warm after a tenth.
    let few = iterations.div_ceil(10);
    let many = few + iterations;
    let mut counted = Instructions::new();
    for name in names {
        let few_instructions = callgrind(binary, name, few, scratch)?;
        let many_instructions = callgrind(binary, name, many, scratch)?;
        if many_instructions <= few_instructions {
            let name = name.to_owned();
            return Err(CountError::NoWork {
                name,
                few,
                many,
                few_instructions,
                many_instructions,
            });
        }
        let each = (many_instructions - few_instructions) as f64 / iterations as f64;
        // Tenths are enough to see one instruction, and keep the committed file readable.
        counted.insert(name.to_owned(), (each * 10.0).round() / 10.0);
    }
    Ok(counted)
}

fn callgrind(
    binary: &Path,
    name: &str,
    iterations: u64,
    scratch: &Path,
) -> Result<u64, CountError> {
    let path = scratch.join("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", path.display()));
    process::output(valgrind.arg(binary).arg(name).arg(iterations.to_string()))?;
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    // A file of its own for each run: the next must not read this one's total.
    let _ = std::fs::remove_file(&path);
    total(&text).ok_or(CountError::NoTotal { path })
}

/// The instructions in all, from the text of a callgrind file.
fn total(text: &str) -> Option<u64> {
    let line = |name| text.lines().find_map(|line| line.strip_prefix(name));
    line("totals:").or_else(|| line("summary:"))?.split_whitespace().next()?.parse().ok()
}

/// Sets what was counted against the baseline, by name.
pub(crate) fn against(
    baseline: &Instructions,
    counted: &Instructions,
    threshold_percent: f64,
) -> Vec<Row> {
    let names = baseline.keys().chain(counted.keys().filter(|name| !baseline.contains_key(*name)));
    let mut rows: Vec<Row> = names
        .map(|name| {
            let (baseline, counted) = (baseline.get(name).copied(), counted.get(name).copied());
            let status = match (baseline, counted) {
                (None, _) => Status::New,
                (_, None) => Status::Gone,
                (Some(was), Some(is)) if is > was * (1.0 + threshold_percent / 100.0) => {
                    Status::More
                }
                (Some(was), Some(is)) if is < was * (1.0 - threshold_percent / 100.0) => {
                    Status::Fewer
                }
                _ => Status::Same,
            };
            Row { name: name.clone(), baseline, counted, status }
        })
        .collect();
    rows.sort_by(|first, second| first.name.cmp(&second.name));
    rows
}

/// The committed instructions; without a file there are none, and every path is new.
pub(crate) fn read_baseline(path: &Path) -> Result<Instructions, CountError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|source| CountError::Baseline { path: path.into(), source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Instructions::new()),
        Err(source) => Err(CountError::File { action: "read", path: path.into(), source }),
    }
}

/// Makes what was counted the baseline.
pub(crate) fn write_baseline(path: &Path, counted: &Instructions) -> Result<(), CountError> {
    let text = serde_json::to_string_pretty(counted).expect("names and numbers are JSON") + "\n";
    std::fs::write(path, text).map_err(|source| CountError::File {
        action: "write",
        path: path.into(),
        source,
    })
}

/// Rows as a table.
pub(crate) struct Table<'a>(pub &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        writeln!(f, "{:<width$} {:>12} {:>12} {:>9}", "path", "baseline", "now", "change")?;
        for row in self.0 {
            let figure = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.1}"));
            let change = row.baseline.zip(row.counted).map(|(was, is)| (is / was - 1.0) * 100.0);
            let change = change.map_or("-".into(), |percent| format!("{percent:+.2} %"));
            let (was, is) = (figure(row.baseline), figure(row.counted));
            let line = format!(
                "{:<width$} {was:>12} {is:>12} {change:>9}  {}",
                row.name,
                row.status.text()
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fake;

    fn instructions(pairs: &[(&str, f64)]) -> Instructions {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn the_total_is_found_in_either_form() {
        assert_eq!(total("events: Ir\nsummary: 591887\n\ntotals: 591890\n"), Some(591_890));
        assert_eq!(total("version: 1\nsummary: 42 7\n"), Some(42));
        assert_eq!(total("fn=(1) totals\n"), None);
    }

    #[test]
    fn every_difference_from_the_baseline_is_named() {
        let baseline = instructions(&[("a", 100.0), ("b", 100.0), ("c", 100.0), ("gone", 1.0)]);
        let counted = instructions(&[("a", 102.0), ("b", 102.1), ("c", 97.9), ("new", 1.0)]);
        let rows = against(&baseline, &counted, 2.0);
        let statuses: Vec<Status> = rows.iter().map(|row| row.status).collect();
        use Status::{Fewer, Gone, More, New, Same};
        assert_eq!(statuses, [Same, More, Fewer, Gone, New]);
        let passing: Vec<bool> = statuses.iter().map(|status| status.passes()).collect();
        assert_eq!(passing, [true, false, true, false, false]);
        assert!(Table(&rows).to_string().contains("+2.10 %  MORE"));
    }

    #[test]
    fn a_baseline_is_read_as_written_and_may_be_missing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("instructions.json");
        assert_eq!(read_baseline(&path).unwrap(), Instructions::new());
        let counted = instructions(&[("parse", 12.5)]);
        write_baseline(&path, &counted).unwrap();
        assert_eq!(read_baseline(&path).unwrap(), counted);
        std::fs::write(&path, "[]").unwrap();
        assert!(matches!(read_baseline(&path), Err(CountError::Baseline { .. })));
    }

    #[test]
    fn a_program_without_paths_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let silent = fake::script(directory.path(), "silent", "exit 0");
        let result = count_paths(&silent, 10, directory.path());
        assert!(matches!(result, Err(CountError::Paths { count: 0 })), "{result:?}");
    }

    #[test]
    #[ignore = "needs valgrind, which not every developer has"]
    fn the_cost_of_one_iteration_is_counted_without_start_up() {
        let directory = tempfile::tempdir().unwrap();
        let body = "set -- $args\ncase $1 in --list) echo loop;; *) i=$2\n\
                    while [ $i -gt 0 ]; do i=$((i - 1)); done;; esac";
        let script = fake::script(directory.path(), "hotpaths", body);
        let once = count_paths(&script, 100, directory.path()).unwrap()["loop"];
        let again = count_paths(&script, 200, directory.path()).unwrap()["loop"];
        assert!(once > 100.0, "{once}");
        assert!((again / once - 1.0).abs() < 0.1, "{once} {again}");
    }
}
