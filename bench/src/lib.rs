//! The load generator: workloads against a node of its own, verified, as figures and as ratios to
//! what the machine can do.
//!
//! [`settings`] says what to run, [`limits`] what the machine can do, [`generator`] makes records,
//! [`drive`] sends them on a schedule that does not wait for answers, [`verify`] reads everything
//! back, [`report`] says what came of it.

pub mod burst;
pub mod catchup;
pub mod drive;
pub mod embedded;
pub mod error;
pub mod fanout;
pub mod follow;
pub mod generator;
pub mod hotpaths;
pub mod limits;
pub mod machine;
pub mod million;
pub mod process;
pub mod report;
pub mod settings;
pub mod shards;
pub mod soak;
pub mod space;
pub mod tenants;
pub mod verify;

use std::process::ExitCode;

pub use error::BenchError;
pub use settings::BenchCommand;

/// Runs a workload; prints its report. Exit code 0: passed; 1: failed; 2: the machine does not
/// suit.
#[must_use]
pub fn run(command: BenchCommand) -> ExitCode {
    let outcome = match &command {
        BenchCommand::Million(settings) => million::run("million", settings),
        BenchCommand::Latency(settings) => million::run("latency", &settings.as_workload()),
        BenchCommand::Burst(settings) => burst::run(settings),
        BenchCommand::Fanout(settings) => fanout::run(settings),
        BenchCommand::Tenants(settings) => tenants::run(settings),
        BenchCommand::Catchup(settings) => catchup::run(settings),
        BenchCommand::Shards(settings) => shards::run(settings),
        BenchCommand::Soak(settings) => soak::run(settings),
        BenchCommand::Limits(settings) => limits::run(settings),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
