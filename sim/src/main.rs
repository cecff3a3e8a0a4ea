//! `thalweg sim` alone, for who changes the node: without the rest of the program to build.

use std::process::ExitCode;

use clap::Parser;
use thalweg_sim::{SimArgs, run};

/// Plays whole lives of a node in a simulated world: crashes, failing and lying disks, broken
/// connections
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    sim: SimArgs,
}

fn main() -> ExitCode {
    run(&Cli::parse().sim)
}
