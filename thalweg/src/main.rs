//! The one command: `thalweg dev`, `thalweg node` and `thalweg router` serve, `thalweg bench`
//! measures, `thalweg sim` plays.
//!
//! Arguments and start-up only: what a command does stands in its own crate.

mod config;
mod dev;
mod node_metrics;
mod router_command;
mod signals;
mod size;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use thalweg_bench::BenchCommand;
use thalweg_node::{Node, NodeConfig, StartError};
use thalweg_router::RouterError;
use thalweg_sim::SimArgs;
use thiserror::Error;
use tracing::info;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

use crate::config::{ConfigError, NodeArgs, ReadyConfig};
use crate::dev::DevArgs;
use crate::node_metrics::NodeMetricsServer;
use crate::router_command::RouterArgs;
use crate::signals::stop_on_signals;
use crate::size::Size;

/// Exit codes, of every command: 2 says that the machine does not suit, and nothing else does.
const EXIT_FAILED: u8 = 1;

/// A self-hosted, durable stream store.
///
/// Exit codes: 0 done; 2 the machine does not suit (no io_uring, too little memlock or disk space,
/// a file system without direct I/O); 1 anything else.
#[derive(Parser)]
#[command(name = "thalweg", version, max_term_width = 100)]
struct Cli {
    /// What to log to stderr: off, error, warn, info, debug or trace, or such a level for a part
    /// of the program, as in info,thalweg_node=debug [default: info; warn for bench, off for sim]
    #[arg(long, global = true, env = "THALWEG_LOG", value_name = "FILTER")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the Kinesis API from this machine alone, until SIGTERM or SIGINT: storage node,
    /// metadata store and router in one process
    ///
    /// What was acknowledged is on disk. At the start it prints what to type to try it.
    Dev(DevArgs),

    /// Serve the Kinesis API before a storage node elsewhere, until SIGTERM or SIGINT
    Router(RouterArgs),

    /// Serve as a storage node until SIGTERM or SIGINT
    ///
    /// A value comes from its option, else its environment variable, else the file named by
    /// --config, else its default. A size is a count of bytes or a number with KiB, MiB, GiB or
    /// TiB.
    Node(NodeArgs),

    /// Measure and verify: run a workload against a node of its own, or against a server of the
    /// Kinesis API
    #[command(subcommand)]
    Bench(BenchCommand),

    /// Play whole lives of a node in a simulated world: crashes, failing and lying disks, broken
    /// connections, all decided by seeds
    ///
    /// Exit codes: 0 every promise was kept; 1 one was broken, and its seed is named.
    Sim(SimArgs),
}

/// Why the command failed. Each says what to do.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{filter:?} is no filter for logs ({source}): write a level, as info, or target=level")]
    LogFilter { filter: String, source: ParseError },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error("cannot make {}: {source}: choose another --data-dir", path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error("the system refused threads: {0}: raise its limit of processes")]
    Threads(#[source] std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Start(error) => error.exit_code(),
            _ => EXIT_FAILED,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print_usage(&error),
    };
    run(cli).unwrap_or_else(|failure| {
        eprintln!("thalweg: {failure}");
        ExitCode::from(failure.exit_code())
    })
}

/// Prints help, version or what is wrong with the arguments. Clap's own exit code for the latter
/// is the one that here names an unsuitable machine.
fn print_usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to tell when stdout or stderr is closed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EXIT_FAILED) } else { ExitCode::SUCCESS }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Node(arguments) => {
            let ReadyConfig { node, metrics_listen, log } = arguments.into_config()?;
            start_logs(cli.log.or(log).as_deref().unwrap_or("info"))?;
            serve(node, metrics_listen)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Dev(arguments) => {
            start_logs(cli.log.as_deref().unwrap_or("info"))?;
            arguments.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Router(arguments) => {
            start_logs(cli.log.as_deref().unwrap_or("info"))?;
            arguments.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench(command) => {
            start_logs(cli.log.as_deref().unwrap_or("warn"))?;
            Ok(thalweg_bench::run(command))
        }
        Command::Sim(arguments) => {
            // What goes wrong in there is meant to.
            start_logs(cli.log.as_deref().unwrap_or("off"))?;
            Ok(thalweg_sim::run(&arguments))
        }
    }
}

/// Debug output of this part of HTTP/2 has paths that are no paths, in which session tokens of
/// signed queries may be: it is not logged, whatever the filter says.
const TELLS_PATHS: &str = "h2::server=info";

fn start_logs(filter: &str) -> Result<(), Failure> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| Failure::LogFilter { filter: filter.to_owned(), source })?;
    // What is quieter than that stays so.
    let parsed = match parsed.max_level_hint() {
        Some(most) if most <= LevelFilter::INFO => parsed,
        _ => parsed.add_directive(TELLS_PATHS.parse().expect("a directive")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Runs a node until a signal asks it to stop. Until it serves, a signal ends the process at
/// once: to the data directories that is a crash, which they are made for.
fn serve(config: NodeConfig, metrics_listen: Option<SocketAddr>) -> Result<(), Failure> {
    let summary = Summary::of(&config);
    let stop = stop_on_signals().map_err(Failure::Signals)?;
    let node = Node::start(config)?;
    let metrics = metrics_listen.map(|listen| NodeMetricsServer::start(listen, node.metrics()));
    let metrics = metrics.transpose()?;
    stop.serves();
    summary.log(&node);
    if let Some(metrics) = &metrics {
        info!("metrics are served on http://{}/metrics", metrics.address());
    }
    stop.wait();
    info!("stopping: what was accepted is made durable and answered");
    node.stop();
    if let Some(metrics) = metrics {
        metrics.stop();
    }
    info!("stopped");
    Ok(())
}

/// What a person needs to know of a node that has started.
struct Summary {
    data_dirs: Vec<PathBuf>,
    memory: Size,
}

impl Summary {
    fn of(config: &NodeConfig) -> Summary {
        Summary { data_dirs: config.data_dirs.clone(), memory: Size(config.memory_bytes) }
    }

    fn log(&self, node: &Node) {
        for (directory, disk) in self.data_dirs.iter().zip(node.disks()) {
            info!("data directory {} is disk {disk}", directory.display());
        }
        info!("memory budget {}", self.memory);
        for (core, address) in node.addresses().iter().enumerate() {
            info!("core {core} listens on {address}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
