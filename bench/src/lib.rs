//! The load generator: workloads against a node of its own, verified, as figures and as ratios to
//! what the machine can do.
//!
//! [`settings`] says what to run, [`limits`] what the machine can do, [`generator`] makes records,
//! [`drive`] sends them on a schedule that does not wait for answers, [`verify`] reads everything
//! back, [`report`] says what came of it. [`kinesis`] has the workloads that go through the Kinesis
//! API instead, against any server of it.

pub mod burst;
pub mod catchup;
pub mod drive;
pub mod embedded;
pub mod error;
pub mod fanout;
pub mod follow;
mod front_door;
pub mod generator;
pub mod hotpaths;
pub mod kinesis;
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
        BenchCommand::Million(settings) => match &settings.through.target {
            Some(url) => kinesis::million::run(settings, url),
            None => million::run("million", &settings.workload),
        },
        BenchCommand::Latency(settings) => match &settings.through.target {
            Some(url) => kinesis::latency::run(settings, url),
            None => million::run("latency", &settings.latency.as_workload()),
        },
        BenchCommand::Burst(settings) => match &settings.through.target {
            Some(url) => kinesis::burst::run(settings, url),
            None => burst::run(&settings.common),
        },
        BenchCommand::Fanout(settings) => fanout::run(settings),
        BenchCommand::Tenants(settings) => tenants::run(settings),
        BenchCommand::Catchup(settings) => match &settings.through.target {
            Some(url) => kinesis::catchup::run(settings, url),
            None => catchup::run(&settings.catchup),
        },
        BenchCommand::Streams(settings) => kinesis::streams::run(settings),
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
