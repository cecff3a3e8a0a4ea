//! Children that end: with their work, at their time limit, or when the user interrupts.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use thiserror::Error;

/// Coarse enough not to disturb the measurement, fine enough for a user who waits.
const POLL: Duration = Duration::from_millis(20);
/// Bytes of a log's end that an error shows.
const LOG_TAIL_BYTES: u64 = 2000;

/// Why a child did not do its work.
#[derive(Debug, Error)]
pub(crate) enum ProcessError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}{}", remedy(program))]
    Start {
        /// What was to run.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system lost track of the child.
    #[error("cannot wait for {program}: {source}")]
    Wait {
        /// What was running.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ran longer than it may.
    #[error("{program} did not end within {limit_s} s and was stopped; raise --run-timeout-s")]
    Timeout {
        /// What was running.
        program: String,
        /// How long it may run.
        limit_s: u64,
    },
    /// It ended unsuccessfully.
    #[error("{program} failed ({status}):\n{output}")]
    Failed {
        /// What ran, with its arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to stderr.
        output: String,
    },
    /// SIGINT or SIGTERM arrived.
    #[error("interrupted")]
    Interrupted,
}

/// The Debian package that brings a program, for those that are often missing.
fn remedy(program: &str) -> &'static str {
    match program {
        "perf" => "; remedy: apt-get install linux-perf",
        "valgrind" => "; remedy: apt-get install valgrind",
        "git" => "; remedy: apt-get install git",
        _ => "",
    }
}

/// From now on SIGINT and SIGTERM do not end this process but its children, one after the other,
/// so that what was set up is also taken down.
pub(crate) fn catch_interrupts() -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(interrupt_flag()))?;
    }
    Ok(())
}

fn interrupt_flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// Runs `command` to its end. Without a limit it may take as long as it likes.
pub(crate) fn run(
    command: &mut Command,
    limit: Option<Duration>,
) -> Result<ExitStatus, ProcessError> {
    let program = name(command);
    let mut child = command
        .spawn()
        .map_err(|source| ProcessError::Start { program: program.clone(), source })?;
    let start = Instant::now();
    loop {
        match child.try_wait() {
            // Ctrl-C ends the whole process group: the child's end is then ours as well.
            Ok(Some(_)) if interrupted() => return Err(ProcessError::Interrupted),
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(source) => return Err(ProcessError::Wait { program, source }),
        }
        if interrupted() {
            stop(&mut child);
            return Err(ProcessError::Interrupted);
        }
        if let Some(limit) = limit.filter(|limit| start.elapsed() > *limit) {
            stop(&mut child);
            return Err(ProcessError::Timeout { program, limit_s: limit.as_secs() });
        }
        std::thread::sleep(POLL);
    }
}

/// Runs `command`, which must succeed; its output goes where ours goes.
pub(crate) fn run_checked(command: &mut Command) -> Result<(), ProcessError> {
    let status = run(command, None)?;
    if status.success() {
        return Ok(());
    }
    let output = "see its output above".to_owned();
    Err(ProcessError::Failed { program: command_line(command), status, output })
}

/// What `command`, which must succeed, writes to stdout.
pub(crate) fn output(command: &mut Command) -> Result<String, ProcessError> {
    let program = name(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ProcessError::Start { program, source })?;
    if interrupted() {
        return Err(ProcessError::Interrupted);
    }
    if !output.status.success() {
        return Err(ProcessError::Failed {
            program: command_line(command),
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of the log at `path`, for an error message.
pub(crate) fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).trim().to_owned())
    };
    read().unwrap_or_else(|error| format!("(no output: {error})"))
}

/// Whether SIGINT or SIGTERM has arrived.
pub(crate) fn interrupted() -> bool {
    interrupt_flag().load(Ordering::Relaxed)
}

fn stop(child: &mut Child) {
    // Both fail only if the child has ended already, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_that_hangs_is_stopped() {
        let limit = Duration::from_millis(50);
        let result = run(shell("exec sleep 60").stdout(Stdio::null()), Some(limit));
        assert!(matches!(result, Err(ProcessError::Timeout { .. })), "{result:?}");
    }

    #[test]
    fn the_exit_status_comes_back() {
        assert_eq!(run(&mut shell("exit 7"), None).unwrap().code(), Some(7));
        assert!(matches!(run_checked(&mut shell("exit 7")), Err(ProcessError::Failed { .. })));
    }

    #[test]
    fn output_is_returned_or_explained() {
        assert_eq!(output(&mut shell("echo said")).unwrap(), "said\n");
        let error = output(&mut shell("echo because >&2; exit 1")).unwrap_err().to_string();
        assert!(error.contains("because"), "{error}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let missing = |program: &str| ProcessError::Start {
            program: program.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert!(missing("perf").to_string().ends_with("apt-get install linux-perf"));
        assert!(missing("valgrind").to_string().ends_with("apt-get install valgrind"));
    }
}
