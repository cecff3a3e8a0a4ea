//! Why a workload could not be run.

use std::path::PathBuf;

use thalweg_client::ClientError;
use thalweg_node::StartError;
use thiserror::Error;

use crate::kinesis::connection::CallError;

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
    /// The target is none.
    #[error("--target {url:?}: {what}: write http://HOST:PORT or https://HOST")]
    Target {
        /// As it was named.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A credentials file is not as it must be.
    #[error("{}: {what}: name a file as `thalweg dev` makes it", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Requests cannot be signed.
    #[error(
        "there is no access key: name a file by --credentials, or set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY (any will do for a server that looks at none)"
    )]
    NoCredentials,
    /// The system trusts no certificate.
    #[error(
        "the system has no certificates to trust{reason}: install them (Debian: ca-certificates), \
         or name a file of them by SSL_CERT_FILE"
    )]
    Certificates {
        /// What was said of it, in parentheses.
        reason: String,
    },
    /// A call of the API failed.
    #[error("{operation}: {source}")]
    Call {
        /// The operation.
        operation: &'static str,
        /// Why.
        source: CallError,
    },
    /// A stream or consumer does not become ACTIVE.
    #[error("{what} does not become ACTIVE, it is {status}: see the server's log")]
    NotActive {
        /// Which.
        what: String,
        /// Its status.
        status: String,
    },
    /// A new stream has not the shards that it was created with.
    #[error("stream {stream} was created with {expected} shards and has {found}")]
    ShardCount {
        /// Its name.
        stream: String,
        /// Shards that it has.
        found: usize,
        /// Shards that it should have.
        expected: u32,
    },
    /// Calls failed too often for the run to mean anything.
    #[error("too many errors ({count}: {kinds}); the last: {last}")]
    TooManyErrors {
        /// How many.
        count: u64,
        /// How many of each type.
        kinds: String,
        /// The last one in words.
        last: String,
    },
    /// A shard gives no records and is not at its tip.
    #[error("{shard} gave nothing for two minutes and is not at its tip: see the server's log")]
    NothingRead {
        /// The shard.
        shard: String,
    },
    /// Not every shard was subscribed to.
    #[error("the shards were not all subscribed to within {seconds} s: see the server's log")]
    NotSubscribed {
        /// How long it was waited.
        seconds: u64,
    },
    /// The system refused a thread's runtime or a timer.
    #[error("the system refused a timer or poll: {0}: raise the limit of open files (ulimit -n)")]
    Threads(#[source] std::io::Error),
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
