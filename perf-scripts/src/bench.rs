//! Runs the benchmark and reads its report.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use thiserror::Error;

use crate::process::{self, ProcessError};
use crate::report::{self, Report, ReportError};
use crate::revision::{self, RevisionError};

/// The workload if the arguments name none.
const WORKLOAD: &str = "million";
/// Flags of the bench that are set here and nowhere else.
const OWN_FLAG: &str = "--json";

/// Why a run gave no report.
#[derive(Debug, Error)]
pub(crate) enum BenchError {
    /// The bench arguments contain a flag that is set here.
    #[error("{OWN_FLAG} of the bench is set by this command; give --json before the `--`")]
    OwnFlag,
    /// The run failed: data was lost, damaged, or the run missed its own limits.
    #[error(
        "the run failed with {}: its revision loses data or misses its limits, and its speed \
         means nothing\n{output}", binary.display()
    )]
    Failed {
        /// What ran.
        binary: PathBuf,
        /// The end of its output.
        output: String,
    },
    /// The bench refuses to measure here.
    #[error("the bench says that this machine is unsuitable\n{output}")]
    Unsuitable {
        /// The end of its output, with its reasons.
        output: String,
    },
    /// Neither passed nor failed.
    #[error("the bench {} broke off ({status})\n{output}", binary.display())]
    Broken {
        /// What ran.
        binary: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of its output.
        output: String,
    },
    /// The log could not be made.
    #[error("cannot write {}: {source}", path.display())]
    Log {
        /// Where it was to lie.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The report is missing or no report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The run's data directory could not be made or removed.
    #[error(transparent)]
    Scratch(#[from] RevisionError),
    /// The bench could not be run to its end.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// How to run the benchmark, the same way each time.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    arguments: Vec<String>,
    scratch: PathBuf,
    limit: Duration,
}

impl Bench {
    /// Runs will get `arguments`, keep report, log and data below `scratch`, and be stopped at
    /// `limit`. Arguments that begin with a flag, or none, mean the workload `million`.
    pub(crate) fn new(
        arguments: &[String],
        scratch: &Path,
        limit: Duration,
    ) -> Result<Self, BenchError> {
        if arguments.iter().any(|word| word.split('=').next() == Some(OWN_FLAG)) {
            return Err(BenchError::OwnFlag);
        }
        let mut arguments = arguments.to_vec();
        if arguments.first().is_none_or(|word| word.starts_with('-')) {
            arguments.insert(0, WORKLOAD.to_owned());
        }
        Ok(Self { arguments, scratch: scratch.to_owned(), limit })
    }

    /// The arguments as a person would type them.
    pub(crate) fn command_line(&self) -> String {
        self.arguments.join(" ")
    }

    /// One run of `binary`, directly.
    pub(crate) fn run(&self, binary: &Path) -> Result<Report, BenchError> {
        self.run_below(Command::new(binary), binary)
    }

    /// One run of `binary` as the last arguments of `command`, a profiler for instance.
    ///
    /// Unless the arguments name a data directory, each run starts with an empty one: what an
    /// earlier run left behind would be recovered first, at the later run's expense.
    pub(crate) fn run_below(
        &self,
        mut command: Command,
        binary: &Path,
    ) -> Result<Report, BenchError> {
        let report = self.scratch.join("report.json");
        let log = self.scratch.join("bench.log");
        let data = self.scratch.join("data");
        // A report left by the run before must not pass for this one's.
        let _ = std::fs::remove_file(&report);
        let log_error = |source| BenchError::Log { path: log.clone(), source };
        let output = File::create(&log).map_err(log_error)?;
        command.arg("bench").args(&self.arguments).arg(OWN_FLAG).arg(&report);
        command.stdout(output.try_clone().map_err(log_error)?).stderr(output);
        if !self.arguments.iter().any(|word| word.starts_with("--data-dir")) {
            revision::remove_directory(&data)?;
            revision::make_directory(&data)?;
            command.arg("--data-dir").arg(&data);
        }
        let status = process::run(&mut command, Some(self.limit))?;
        self.settle(&data)?;
        let output = || process::log_tail(&log);
        match status.code() {
            Some(0) => {}
            Some(1) => {
                return Err(BenchError::Failed { binary: binary.to_owned(), output: output() });
            }
            Some(2) => return Err(BenchError::Unsuitable { output: output() }),
            _ => {
                let binary = binary.to_owned();
                return Err(BenchError::Broken { binary, status, output: output() });
            }
        }
        let report = report::read_reports(&report)?.swap_remove(0);
        // The exit status says so too; a bench in which they disagree is not to be believed.
        if report.passed == Some(false) || report.verified == Some(false) {
            return Err(BenchError::Failed { binary: binary.to_owned(), output: output() });
        }
        Ok(report)
    }

    /// Removes the run's data and waits until the file system has forgotten it, so that the next
    /// run does not pay for it.
    fn settle(&self, data: &Path) -> Result<(), BenchError> {
        revision::remove_directory(data)?;
        process::run_checked(Command::new("sync").arg("-f").arg(&self.scratch))?;
        Ok(())
    }
}

/// Fake benches for the tests of this crate.
#[cfg(test)]
pub(crate) mod fake {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    /// An executable shell script at `directory/name`; `$json` and `$data` hold the bench's flags.
    pub(crate) fn script(directory: &Path, name: &str, body: &str) -> PathBuf {
        let path = directory.join(name);
        let text = format!(
            "#!/bin/sh\nargs=\"$*\"\nwhile [ $# -gt 0 ]; do case $1 in\n--json) json=$2;;\n\
             --data-dir) data=$2;;\nesac; shift; done\n{body}\n"
        );
        // Renamed into place: a file that another thread's fork holds open for writing cannot
        // be executed.
        let draft = path.with_extension("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).unwrap();
        let copied = std::process::Command::new("cp").arg("-p").args([&draft, &path]).status();
        assert!(copied.unwrap().success());
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str], body: &str) -> Result<Report, BenchError> {
        let directory = tempfile::tempdir().unwrap();
        let script = fake::script(directory.path(), "bench", body);
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        Bench::new(&arguments, directory.path(), Duration::from_secs(20))?.run(&script)
    }

    #[test]
    fn the_workload_is_million_unless_named() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let line = |arguments: &[&str]| {
            let limit = Duration::from_secs(1);
            Bench::new(&words(arguments), Path::new("/"), limit).unwrap().command_line()
        };
        assert_eq!(line(&[]), "million");
        assert_eq!(line(&["--seconds", "2"]), "million --seconds 2");
        assert_eq!(line(&["burst", "--rate", "max"]), "burst --rate max");
    }

    #[test]
    fn a_run_gets_an_empty_data_directory() {
        let body = "[ -z \"$(ls \"$data\")\" ] || exit 9\ntouch \"$data/left\"\n\
                    echo \"{\\\"workload\\\": \\\"$args\\\"}\" > \"$json\"";
        let report = run(&["burst"], body).unwrap();
        assert!(report.workload.starts_with("bench burst --json "), "{}", report.workload);
    }

    #[test]
    fn a_data_directory_of_the_user_is_left_alone() {
        let body = "echo \"{\\\"workload\\\": \\\"$data\\\"}\" > \"$json\"";
        assert_eq!(run(&["--data-dir", "/mine"], body).unwrap().workload, "/mine");
    }

    #[test]
    fn exit_codes_become_errors() {
        let failed = run(&[], "echo lost 3 records; exit 1").unwrap_err();
        assert!(matches!(&failed, BenchError::Failed { output, .. } if output == "lost 3 records"));
        assert!(matches!(run(&[], "exit 2").unwrap_err(), BenchError::Unsuitable { .. }));
        assert!(matches!(run(&[], "exit 3").unwrap_err(), BenchError::Broken { .. }));
        assert!(matches!(run(&[], "kill -9 $$").unwrap_err(), BenchError::Broken { .. }));
        assert!(matches!(run(&[], "exit 0").unwrap_err(), BenchError::Report(_)));
    }

    #[test]
    fn a_report_that_contradicts_its_exit_code_is_a_failed_run() {
        for field in ["passed", "verified"] {
            let body = format!("echo '{{\"workload\":\"w\",\"{field}\":false}}' > \"$json\"");
            assert!(matches!(run(&[], &body).unwrap_err(), BenchError::Failed { .. }));
        }
    }

    #[test]
    fn the_report_file_is_not_the_users_to_choose() {
        assert!(matches!(run(&["--json", "x"], "").unwrap_err(), BenchError::OwnFlag));
        assert!(matches!(run(&["--json=x"], "").unwrap_err(), BenchError::OwnFlag));
    }
}
