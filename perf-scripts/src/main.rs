//! Performance tools: machine facts, comparison of revisions, history, profiles, counts.
//!
//! This file knows arguments and exit codes only; each command has a file of its own.

mod bench;
mod compare;
mod count;
mod decision;
mod history;
mod machine;
mod outcome;
mod process;
mod profile;
mod report;
mod revision;
mod saved;
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, builder::RangedU64ValueParser};
use thiserror::Error;

use bench::BenchError;
use compare::CompareError;
use count::CountError;
use decision::Verdict;
use history::HistoryError;
use machine::Machine;
use outcome::{Comparison, SaveError};
use profile::ProfileError;
use report::Metric;
use revision::{Repository, RevisionError};
use saved::SavedError;

/// Something could not be done, or a run failed.
const EXIT_FAILED: u8 = 1;
/// Nothing can be measured on this machine.
const EXIT_UNSUITABLE: u8 = 2;
/// Slower than the threshold allows.
const EXIT_REGRESSION: u8 = 3;
/// Too noisy to say, and a decision was required.
const EXIT_UNDECIDED: u8 = 4;
/// The arguments are wrong. Not clap's 2, which means an unsuitable machine here.
const EXIT_USAGE: u8 = 64;
/// SIGINT or SIGTERM, as a shell reports it.
const EXIT_INTERRUPTED: u8 = 130;

/// Performance tools for Thalweg.
#[derive(Parser)]
#[command(
    name = "thalweg-perf",
    after_help = "Exit codes: 0 passed; 1 failed, also a run that lost data; 2 unsuitable machine; \
                  3 regression; 4 undecided (with --require-decision); 64 wrong arguments; \
                  130 interrupted"
)]
struct Arguments {
    /// Repository to work in [default: the one around the current directory]
    #[arg(long, value_name = "DIR", global = true, default_value = ".", hide_default_value = true)]
    repository: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows facts about this machine and warns of what spoils a measurement
    Machine(MachineArguments),
    /// Compares two revisions by runs in turns, or two files of saved reports
    Compare(CompareArguments),
    /// Measures the working tree and appends one line to the history, or shows it
    History(HistoryArguments),
    /// Samples a run: top symbols by thread, flame graph in perf-results/flame.svg
    Profile(ProfileArguments),
    /// Counts instructions of the hot paths against the committed baseline
    Count(CountArguments),
}

#[derive(Args)]
struct MachineArguments {
    /// Directory on the disk to look at; it need not exist yet
    #[arg(long, value_name = "DIR", default_value = ".")]
    data_dir: PathBuf,
    /// Also write facts and warnings to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct CompareArguments {
    /// Revision to compare with (commit, branch, tag, `.` for the working tree), or a report file
    base: String,
    /// Revision that is judged, or a report file
    head: String,
    /// Pairs of runs to plan with [8..=200]
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = pairs_range())]
    pairs: u64,
    /// Pairs to go on to if the planned ones do not decide [8..=200; default: twice --pairs]
    #[arg(long, value_name = "N", value_parser = pairs_range())]
    pairs_max: Option<u64>,
    /// Pairs of BASE against itself, to measure the machine's noise [8..=200]
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = pairs_range())]
    calibration_pairs: u64,
    /// A regression is a change for the worse by more than this, per cent [0.1..=50]
    #[arg(long, value_name = "PERCENT", default_value_t = 2.5, value_parser = percent)]
    threshold: f64,
    /// Metrics that decide, may be repeated or separated by commas; others shown decide nothing
    #[arg(
        long = "metric",
        value_name = "METRIC",
        value_delimiter = ',',
        default_values_t = [Metric::RecordsPerS, Metric::CpuSPerGb]
    )]
    metrics: Vec<Metric>,
    /// Exit with 4 if the runs do not decide; otherwise 0 and the table says so
    #[arg(long)]
    require_decision: bool,
    /// Compare files even if their workloads, settings or machines differ
    #[arg(long)]
    force: bool,
    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    run_limit: RunLimit,
    /// Arguments of `thalweg bench` [default: million --seconds 2]
    #[arg(last = true, value_name = "BENCH ARGS")]
    bench: Vec<String>,
}

#[derive(Args)]
struct HistoryArguments {
    /// Show the history as a table and measure nothing
    #[arg(long)]
    show: bool,
    /// The history, from the top of the repository
    #[arg(long, value_name = "FILE", default_value = history::FILE)]
    path: PathBuf,
    /// Do not time a build from nothing, which takes minutes; build_s is then null
    #[arg(long)]
    skip_build_time: bool,
    #[command(flatten)]
    run_limit: RunLimit,
    /// Arguments of `thalweg bench` [default: million]
    #[arg(last = true, value_name = "BENCH ARGS")]
    bench: Vec<String>,
}

#[derive(Args)]
struct ProfileArguments {
    /// Samples a second and processor, Hz [1..=20000]
    #[arg(
        long,
        value_name = "HZ",
        default_value_t = 999,
        value_parser = clap::value_parser!(u32).range(1..=20_000)
    )]
    frequency_hz: u32,
    /// Symbols to list for each thread name [1..=1000]
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole(1, 1000))]
    top: u64,
    #[command(flatten)]
    run_limit: RunLimit,
    /// Arguments of `thalweg bench` [default: million]
    #[arg(last = true, value_name = "BENCH ARGS")]
    bench: Vec<String>,
}

#[derive(Args)]
struct CountArguments {
    /// Operations to count over for each path [10..=1000000]
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole(10, 1_000_000))]
    iterations: u64,
    /// More instructions than the baseline by more than this fail, per cent [0.1..=50]
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = percent)]
    threshold: f64,
    /// The baseline, from the top of the repository
    #[arg(long, value_name = "FILE", default_value = count::BASELINE)]
    baseline: PathBuf,
    /// Make what is counted the new baseline, and pass
    #[arg(long)]
    update: bool,
    /// Write the table to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct RunLimit {
    /// Stop a run that takes longer than this, seconds [1..=86400]
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = whole(1, 86_400))]
    run_timeout_s: u64,
}

impl RunLimit {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.run_timeout_s)
    }
}

fn whole(least: u64, most: u64) -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(least..=most)
}

fn pairs_range() -> RangedU64ValueParser {
    whole(decision::PAIRS_MIN as u64, 200)
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.1..=50.0).contains(&percent) => Ok(percent),
        _ => Err("expected a number from 0.1 to 50".to_owned()),
    }
}

/// Anything that ends a command early.
#[derive(Debug, Error)]
enum CommandError {
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Count(#[from] CountError),
    #[error(transparent)]
    Revision(#[from] RevisionError),
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error("cannot catch interrupts: {0}")]
    Signals(std::io::Error),
    #[error("{file} is a file and {other} is not; compare two revisions or two report files")]
    Mixed { file: String, other: String },
    #[error("saved reports are not run again: leave out `-- BENCH ARGS`, or name two revisions")]
    BenchArgumentsForFiles,
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        // Whatever failed then failed because of that.
        if process::interrupted() {
            return EXIT_INTERRUPTED;
        }
        match self {
            Self::Compare(CompareError::Unsuitable { .. })
            | Self::Compare(CompareError::Run { source: BenchError::Unsuitable { .. }, .. })
            | Self::History(HistoryError::Bench(BenchError::Unsuitable { .. }))
            | Self::Profile(ProfileError::Bench { source: BenchError::Unsuitable { .. } }) => {
                EXIT_UNSUITABLE
            }
            Self::Mixed { .. } | Self::BenchArgumentsForFiles => EXIT_USAGE,
            Self::Compare(CompareError::Arguments(_)) => EXIT_USAGE,
            _ => EXIT_FAILED,
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing is left to do if even this cannot be printed.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => EXIT_USAGE.into(),
            };
        }
    };
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code().into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    process::catch_interrupts().map_err(CommandError::Signals)?;
    let repository = || Repository::find(&arguments.repository);
    match &arguments.task {
        Task::Machine(task) => machine(task),
        Task::Compare(task) => compare(task, repository),
        Task::History(task) => history(task, &repository()?),
        Task::Profile(task) => {
            let options = profile::Options {
                frequency_hz: task.frequency_hz,
                top: task.top as usize,
                run_limit: task.run_limit.duration(),
            };
            print!("{}", profile::profile(&repository()?, &task.bench, options)?);
            Ok(ExitCode::SUCCESS)
        }
        Task::Count(task) => count(task, &repository()?),
    }
}

fn machine(task: &MachineArguments) -> Result<ExitCode, CommandError> {
    let machine = Machine::observe(&task.data_dir);
    print!("{machine}");
    if let Some(path) = &task.json {
        outcome::save_json(&machine, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(
    task: &CompareArguments,
    repository: impl Fn() -> Result<Repository, RevisionError>,
) -> Result<ExitCode, CommandError> {
    // What decides is also shown, and so is the tail of the latency, which is too noisy to decide.
    let mut shown = vec![Metric::RecordsPerS, Metric::CpuSPerGb, Metric::P99Us];
    shown.extend(&task.metrics);
    let mut metrics: Vec<Metric> = Vec::new();
    for metric in shown {
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    let is_file = |name: &str| PathBuf::from(name).is_file();
    let comparison = match (is_file(&task.base), is_file(&task.head)) {
        (true, true) if !task.bench.is_empty() => return Err(CommandError::BenchArgumentsForFiles),
        (true, true) => {
            let options = saved::Options {
                metrics: &metrics,
                deciding: &task.metrics,
                threshold_percent: task.threshold,
                force: task.force,
            };
            saved::compare_files(task.base.as_ref(), task.head.as_ref(), &options)?
        }
        (true, false) => {
            let (file, other) = (task.base.clone(), task.head.clone());
            return Err(CommandError::Mixed { file, other });
        }
        (false, true) => {
            let (file, other) = (task.head.clone(), task.base.clone());
            return Err(CommandError::Mixed { file, other });
        }
        (false, false) => {
            let options = compare::Options {
                pairs: task.pairs as usize,
                pairs_max: task.pairs_max.unwrap_or(task.pairs * 2) as usize,
                calibration_pairs: task.calibration_pairs as usize,
                metrics,
                deciding: task.metrics.clone(),
                threshold_percent: task.threshold,
                run_limit: task.run_limit.duration(),
            };
            let mut bench = task.bench.clone();
            if bench.is_empty() {
                bench = compare::BENCH_ARGUMENTS.map(str::to_owned).to_vec();
            }
            compare::compare_revisions(&repository()?, &task.base, &task.head, &bench, &options)?
        }
    };
    print!("{comparison}");
    if let Some(path) = &task.json {
        comparison.save(path)?;
    }
    Ok(compare_exit(&comparison, task.require_decision))
}

fn compare_exit(comparison: &Comparison, require_decision: bool) -> ExitCode {
    match comparison.verdict {
        None => {
            println!(
                "no verdict is possible: {} and {} runs, {} a side are needed",
                comparison.base_runs,
                comparison.head_runs,
                saved::RUNS_MIN
            );
            if require_decision { EXIT_UNDECIDED.into() } else { ExitCode::SUCCESS }
        }
        Some(Verdict::Undecided) => {
            println!("too noisy to tell: run on a quieter machine, longer, or with more --pairs");
            if require_decision { EXIT_UNDECIDED.into() } else { ExitCode::SUCCESS }
        }
        Some(Verdict::Regression) => EXIT_REGRESSION.into(),
        Some(Verdict::NoRegression | Verdict::Improvement) => ExitCode::SUCCESS,
    }
}

fn history(task: &HistoryArguments, repository: &Repository) -> Result<ExitCode, CommandError> {
    if task.show {
        let entries = history::read(&repository.root().join(&task.path))?;
        print!("{}", history::Table(&entries));
        return Ok(ExitCode::SUCCESS);
    }
    let clean_build = !task.skip_build_time;
    let limit = task.run_limit.duration();
    let entry = history::append(repository, &task.path, &task.bench, clean_build, limit)?;
    print!("{}", history::Table(&[entry]));
    Ok(ExitCode::SUCCESS)
}

fn count(task: &CountArguments, repository: &Repository) -> Result<ExitCode, CommandError> {
    let path = repository.root().join(&task.baseline);
    // An update replaces the baseline, and with it one that is damaged.
    let baseline = match count::read_baseline(&path) {
        Err(CountError::Baseline { .. }) if task.update => count::Instructions::new(),
        other => other?,
    };
    let counted = count::count(repository, task.iterations)?;
    let rows = count::against(&baseline, &counted, task.threshold);
    print!("{}", count::Table(&rows));
    if let Some(path) = &task.json {
        outcome::save_json(&rows, path)?;
    }
    if task.update {
        count::write_baseline(&path, &counted)?;
        return Ok(ExitCode::SUCCESS);
    }
    let passes = rows.iter().all(|row| row.status.passes());
    Ok(if passes { ExitCode::SUCCESS } else { EXIT_REGRESSION.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent_and_every_option_is_explained() {
        let mut command = Arguments::command();
        command.build();
        command.clone().debug_assert();
        for task in command.get_subcommands().filter(|task| task.get_name() != "help") {
            for argument in task.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", task.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn percentages_have_limits() {
        assert_eq!(percent("2.5"), Ok(2.5));
        for text in ["0", "-1", "51", "NaN", "many"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
