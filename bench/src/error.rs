//! Why a workload could not be run.

use std::path::PathBuf;

use thalweg_client::ClientError;
use thalweg_node::StartError;
use thiserror::Error;

/// See the module.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A setting is out of its range.
    #[error("--{flag} is {found}: it must be {expected}")]
    Setting {
        /// The flag.
        flag: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node was lost, or what it sent was wrong.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The machine's own limits could not be measured.
    #[error("the machine's limits cannot be measured: {what}: {source}")]
    Limits {
        /// Which.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A node in a process of its own could not be used.
    #[error("{what}: {source}")]
    Process {
        /// What happened.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system did not let a generator have a lower priority.
    #[error(
        "the noisy generator cannot run at nice {nice}: {errno}: allow the system call setpriority"
    )]
    Priority {
        /// The nice value asked for.
        nice: i32,
        /// What the system said.
        errno: rustix::io::Errno,
    },
    /// The disk has too little space for what the run writes.
    #[error(
        "{}: the run needs {needed_mib} MiB and {free_mib} MiB are free: free some, or ask for less",
        dir.display()
    )]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// What it needs.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// A generator thread ended early.
    #[error("a generator thread panicked")]
    Panicked,
}

impl BenchError {
    /// 2 when the machine does not suit, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            BenchError::Start(error) => error.exit_code(),
            BenchError::Limits { .. } | BenchError::NoSpace { .. } => 2,
            _ => 1,
        }
    }
}
