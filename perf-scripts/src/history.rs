//! One JSON line for each measured revision, so that slow drifts are seen as well.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bench::{Bench, BenchError};
use crate::compare::data_directory;
use crate::machine::Machine;
use crate::report::short;
use crate::revision::{self, Repository, RevisionError, Scratch};

/// Where the lines are kept, from the top of the repository.
pub(crate) const FILE: &str = "docs/performance-history.jsonl";

/// Why the history was not extended or shown.
#[derive(Debug, Error)]
pub(crate) enum HistoryError {
    /// The revision could not be built.
    #[error(transparent)]
    Revision(#[from] RevisionError),
    /// The run failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The history could not be read or written.
    #[error("cannot {action} the history {}: {source}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// The history.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is no entry.
    #[error(
        "line {line} of the history {} is damaged: {source}; repair or remove it",
        path.display()
    )]
    Line {
        /// The history.
        path: PathBuf,
        /// From one.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When, in UTC, as 2030-01-31T23:59:59Z.
    pub date: String,
    /// The commit.
    pub revision: String,
    /// Whether the working tree differed from it.
    pub dirty: bool,
    /// Processor, their number, kernel, file system.
    pub machine: String,
    /// Arguments of the bench.
    pub bench: String,
    /// Durable records a second.
    pub records_per_s: Option<f64>,
    /// Durable bytes a second.
    pub bytes_per_s: Option<f64>,
    /// Median latency.
    pub p50_us: Option<f64>,
    /// 99 % latency.
    pub p99_us: Option<f64>,
    /// Processor seconds on 10^9 bytes.
    pub cpu_s_per_gb: Option<f64>,
    /// Bytes written for a byte of records.
    pub disk_write_ratio: Option<f64>,
    /// A build from nothing; `null` if it was not measured.
    pub build_s: Option<f64>,
    /// Size of the release binary.
    pub binary_bytes: u64,
}

/// Measures the working tree and appends the entry to `file`. With `clean_build` a build from
/// nothing is timed: any other build's time says only how much had changed.
pub(crate) fn append(
    repository: &Repository,
    file: &Path,
    bench_arguments: &[String],
    clean_build: bool,
    run_limit: Duration,
) -> Result<Entry, HistoryError> {
    let scratch = Scratch::new(repository.cache().join(format!("run-{}", std::process::id())))?;
    let bench = Bench::new(bench_arguments, &scratch.path, run_limit)?;
    let machine = Machine::observe(&data_directory(bench_arguments, &scratch.path));
    for warning in &machine.warnings {
        eprintln!("{warning}");
    }
    let build_s = if clean_build {
        eprintln!("timing a build from nothing");
        Some(revision::timed_clean_build(repository)?)
    } else {
        None
    };
    let binary = repository.build_in_place(&[])?;
    let binary_bytes = std::fs::metadata(&binary)
        .map_err(|source| HistoryError::File { action: "size", path: binary.clone(), source })?
        .len();
    eprintln!("running {}", bench.command_line());
    let report = bench.run(&binary)?;
    let entry = Entry {
        date: utc(SystemTime::now()),
        revision: repository.head()?,
        // The history itself changes with each entry.
        dirty: repository.dirty(Some(file))?,
        machine: summary(&machine),
        bench: bench.command_line(),
        records_per_s: report.records_per_s,
        bytes_per_s: report.bytes_per_s,
        p50_us: report.p50_us,
        p99_us: report.p99_us,
        cpu_s_per_gb: report.cpu_s_per_gb,
        disk_write_ratio: report.disk_write_ratio,
        build_s,
        binary_bytes,
    };
    append_line(&repository.root().join(file), &entry)?;
    Ok(entry)
}

fn append_line(path: &Path, entry: &Entry) -> Result<(), HistoryError> {
    if let Some(parent) = path.parent() {
        revision::make_directory(parent)?;
    }
    let line = serde_json::to_string(entry).expect("an entry's fields are plain") + "\n";
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|source| HistoryError::File { action: "append to", path: path.into(), source })
}

/// The entries of the history, oldest first.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>, HistoryError> {
    let text = std::fs::read_to_string(path).map_err(|source| HistoryError::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|source| HistoryError::Line {
                path: path.into(),
                line: index + 1,
                source,
            })
        })
        .collect()
}

/// Entries as a table.
pub(crate) struct Table<'a>(pub &'a [Entry]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:<13} {:>10} {:>10} {:>8} {:>8} {:>8} {:>6} {:>7} {:>10}  machine",
            "date",
            "revision",
            "records/s",
            "bytes/s",
            "p50 us",
            "p99 us",
            "cpu s/GB",
            "write",
            "build s",
            "binary",
        )?;
        for entry in self.0 {
            let figure = |value: Option<f64>| value.map_or("-".to_owned(), short);
            let mut revision: String = entry.revision.chars().take(12).collect();
            if entry.dirty {
                revision.write_char('+')?;
            }
            writeln!(
                f,
                "{:<20} {revision:<13} {:>10} {:>10} {:>8} {:>8} {:>8} {:>6} {:>7} {:>10}  {}",
                entry.date,
                figure(entry.records_per_s),
                figure(entry.bytes_per_s),
                figure(entry.p50_us),
                figure(entry.p99_us),
                figure(entry.cpu_s_per_gb),
                figure(entry.disk_write_ratio),
                entry.build_s.map_or("-".to_owned(), |seconds| format!("{seconds:.0}")),
                short(entry.binary_bytes as f64),
                entry.machine,
            )?;
        }
        Ok(())
    }
}

fn summary(machine: &Machine) -> String {
    let facts = &machine.facts;
    let text = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "?".to_owned());
    format!(
        "{} x{}, {}, {}",
        text(&facts.cpu),
        facts.cpus,
        text(&facts.kernel),
        text(&facts.file_system)
    )
}

/// `time` in UTC to the second, RFC 3339.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01: a leap day is then the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: &str) -> Entry {
        Entry {
            date: "2030-01-31T23:59:59Z".into(),
            revision: revision.into(),
            dirty: true,
            records_per_s: Some(1.5e6),
            binary_bytes: 12_345_678,
            ..Entry::default()
        }
    }

    #[test]
    fn entries_come_back_in_order_and_form_a_table() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/history.jsonl");
        append_line(&path, &entry("first")).unwrap();
        append_line(&path, &entry("second")).unwrap();
        let entries = read(&path).unwrap();
        assert_eq!(entries, [entry("first"), entry("second")]);
        let table = Table(&entries).to_string();
        assert_eq!(table.lines().count(), 3);
        let fields: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(fields[..4], ["2030-01-31T23:59:59Z", "second+", "1.500", "M"]);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        append_line(&path, &entry("good")).unwrap();
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "\n{\"date\":\n").unwrap();
        assert!(matches!(read(&path), Err(HistoryError::Line { line: 3, .. })));
        let missing = read(&directory.path().join("none"));
        assert!(matches!(missing, Err(HistoryError::File { .. })));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(at(1_893_455_999), "2029-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
