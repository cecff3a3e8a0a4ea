//! Where the processor's time goes: samples of a bench run by `perf`, as a table and a flame graph.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use inferno::collapse::Collapse;
use inferno::{collapse::perf as collapse, flamegraph};
use thiserror::Error;

use crate::bench::{Bench, BenchError};
use crate::process::{self, ProcessError};
use crate::revision::{self, PRODUCT, Repository, RevisionError, Scratch};

/// Where samples and graph are written, from the top of the repository.
const DIRECTORY: &str = "perf-results";

/// Why there is no profile.
#[derive(Debug, Error)]
pub(crate) enum ProfileError {
    /// perf is missing or failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The binary could not be built.
    #[error(transparent)]
    Revision(#[from] RevisionError),
    /// The run failed below perf.
    #[error(
        "{source}\nif perf may not sample: sysctl kernel.perf_event_paranoid=1, or run as root"
    )]
    Bench {
        /// What went wrong.
        source: BenchError,
    },
    /// perf took no sample.
    #[error(
        "perf took no sample; let it with sysctl kernel.perf_event_paranoid=1, and let the bench \
         run for some seconds"
    )]
    NoSamples,
    /// The stacks could not be folded or drawn.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How to sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Samples a second and processor.
    pub frequency_hz: u32,
    /// Symbols to list for each thread name.
    pub top: usize,
    /// How long the run may take.
    pub run_limit: Duration,
}

/// The table of symbols, and where the graph lies.
pub(crate) struct Profile {
    threads: Vec<Thread>,
    cpu_ns: u64,
    top: usize,
    graph: PathBuf,
}

/// All threads of one name.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    name: String,
    cpu_ns: u64,
    /// Time spent in each symbol itself, the most first.
    symbols: Vec<(String, u64)>,
}

/// Samples a run of the working tree.
pub(crate) fn profile(
    repository: &Repository,
    bench_arguments: &[String],
    options: Options,
) -> Result<Profile, ProfileError> {
    // Before minutes of building: perf may be missing.
    process::output(Command::new("perf").arg("--version"))?;
    let directory = repository.root().join(DIRECTORY);
    revision::make_directory(&directory)?;
    let scratch = Scratch::new(repository.cache().join(format!("run-{}", std::process::id())))?;
    let bench = Bench::new(bench_arguments, &scratch.path, options.run_limit)
        .map_err(|source| ProfileError::Bench { source })?;
    eprintln!("building with frame pointers");
    let binary = build(repository)?;

    eprintln!("sampling {}", bench.command_line());
    let data = directory.join("perf.data");
    let frequency = options.frequency_hz.to_string();
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "--event", "cpu-clock", "--freq", &frequency, "-g"]);
    perf.arg("--output").arg(&data).arg("--").arg(&binary);
    bench.run_below(perf, &binary).map_err(|source| ProfileError::Bench { source })?;

    let folded = fold(&script(&data)?).map_err(file_error("fold", &data))?;
    let threads = threads(&folded);
    let cpu_ns = threads.iter().map(|thread| thread.cpu_ns).sum();
    if cpu_ns == 0 {
        return Err(ProfileError::NoSamples);
    }
    let stacks = directory.join("stacks.folded");
    std::fs::write(&stacks, &folded).map_err(file_error("write", &stacks))?;
    let graph = directory.join("flame.svg");
    draw(&folded, &bench.command_line(), &graph).map_err(file_error("draw", &graph))?;
    Ok(Profile { threads, cpu_ns, top: options.top, graph })
}

/// Release code whose stacks `perf` can walk. The other flags move every function, so this build
/// has a target directory of its own.
fn build(repository: &Repository) -> Result<PathBuf, ProfileError> {
    let target = repository.cache().join("profile");
    let rustflags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut command = revision::cargo_build(repository.root(), &target);
    command.env("RUSTFLAGS", rustflags + " -C force-frame-pointers=yes");
    process::run_checked(&mut command)?;
    Ok(target.join("release").join(PRODUCT))
}

/// The samples as text. Inlined functions are not resolved: that takes minutes for seconds of run.
fn script(data: &Path) -> Result<String, ProcessError> {
    let mut perf = Command::new("perf");
    process::output(perf.args(["script", "--no-inline", "--input"]).arg(data))
}

/// One line a stack: thread name and frames from the outermost, then their processor time in
/// ns: a sample of cpu-clock stands for as much time as has passed since the one before.
fn fold(script: &str) -> std::io::Result<String> {
    let mut folded = Vec::new();
    let mut options = collapse::Options::default();
    options.nthreads = 1;
    collapse::Folder::from(options).collapse(script.as_bytes(), &mut folded)?;
    Ok(String::from_utf8_lossy(&folded).into_owned())
}

fn draw(folded: &str, title: &str, path: &Path) -> std::io::Result<()> {
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    options.count_name = "ns".to_owned();
    options.deterministic = true;
    flamegraph::from_lines(&mut options, folded.lines(), BufWriter::new(File::create(path)?))
}

/// Self time of each symbol for each thread name, the busiest first.
fn threads(folded: &str) -> Vec<Thread> {
    let mut by_name: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for line in folded.lines() {
        let Some((stack, cpu_ns)) = line.rsplit_once(' ') else { continue };
        let Ok(cpu_ns) = cpu_ns.parse::<u64>() else { continue };
        let name = stack.split(';').next().unwrap_or(stack);
        let leaf = stack.rsplit(';').next().unwrap_or(stack);
        *by_name.entry(name).or_default().entry(leaf).or_default() += cpu_ns;
    }
    let thread = |(name, symbols): (&str, BTreeMap<&str, u64>)| {
        let mut symbols: Vec<(String, u64)> =
            symbols.into_iter().map(|(symbol, cpu_ns)| (symbol.to_owned(), cpu_ns)).collect();
        // Stable: symbols of equal time stay in the order of their names.
        symbols.sort_by_key(|(_, cpu_ns)| Reverse(*cpu_ns));
        let cpu_ns = symbols.iter().map(|(_, cpu_ns)| cpu_ns).sum();
        Thread { name: name.to_owned(), cpu_ns, symbols }
    };
    let mut threads: Vec<Thread> = by_name.into_iter().map(thread).collect();
    threads.sort_by_key(|thread| Reverse(thread.cpu_ns));
    threads
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        for thread in &self.threads {
            let share = percent(thread.cpu_ns, self.cpu_ns);
            writeln!(f, "{}  {:.2} s, {share:.1} %", thread.name, thread.cpu_ns as f64 / 1e9)?;
            for (symbol, cpu_ns) in thread.symbols.iter().take(self.top) {
                writeln!(f, "  {:>5.1} %  {symbol}", percent(*cpu_ns, thread.cpu_ns))?;
            }
        }
        writeln!(f, "flame graph: {}", self.graph.display())
    }
}

fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> ProfileError + use<> {
    let path = path.to_owned();
    move |source| ProfileError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
core-0  10/11  100.0:  1000000 cpu-clock:pppH:
\t  55a crc+0x1 (/bin/thalweg)
\t  55b append+0x2 (/bin/thalweg)

core-0  10/11  100.1:  1000000 cpu-clock:pppH:
\t  55b append+0x9 (/bin/thalweg)

background  10/12  100.2:  1000000 cpu-clock:pppH:
\t  55a crc+0x1 (/bin/thalweg)

core-0  10/11  100.3:  1000000 cpu-clock:pppH:
\t  55a crc+0x4 (/bin/thalweg)
\t  55b append+0x2 (/bin/thalweg)

";

    #[test]
    fn time_counts_for_the_innermost_function_of_their_thread() {
        let threads = threads(&fold(SCRIPT).unwrap());
        let symbols = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<Vec<_>>()
        };
        assert_eq!(
            threads,
            [
                Thread {
                    name: "core-0".into(),
                    cpu_ns: 3_000_000,
                    symbols: symbols(&[("crc", 2_000_000), ("append", 1_000_000)]),
                },
                Thread {
                    name: "background".into(),
                    cpu_ns: 1_000_000,
                    symbols: symbols(&[("crc", 1_000_000)]),
                },
            ]
        );
    }

    #[test]
    fn the_graph_names_functions_and_title() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flame.svg");
        draw(&fold(SCRIPT).unwrap(), "million --seconds 2", &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.contains("<svg") && svg.contains("million --seconds 2"), "{svg}");
        assert!(svg.contains("append (3,000,000 ns, 75.00%)"), "{svg}");
    }

    #[test]
    fn the_table_shows_the_top_of_each_thread() {
        let threads = threads(&fold(SCRIPT).unwrap());
        let profile = Profile { threads, cpu_ns: 4_000_000, top: 1, graph: "flame.svg".into() };
        assert_eq!(
            profile.to_string(),
            "core-0  0.00 s, 75.0 %\n   66.7 %  crc\n\
             background  0.00 s, 25.0 %\n  100.0 %  crc\nflame graph: flame.svg\n"
        );
    }
}
