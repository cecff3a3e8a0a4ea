//! `thalweg sim`: histories from seeds, on all processors, until a budget is used up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use crate::history::{History, Outcome};
use crate::world::play;

/// Arguments of `thalweg sim`.
#[derive(Clone, Debug, Args)]
pub struct SimArgs {
    /// First seed
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Seeds to play, one after the other, from 1 [default: 1000; with --seconds as many as the
    /// time allows]
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Seconds after which no further history is begun, from 1 [default: none]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Histories played at a time, from 1 [default: one a processor]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Plays each history twice and fails if they differ
    #[arg(long)]
    twice: bool,
}

/// Progress of all threads.
struct Run {
    next: AtomicU64,
    end: u64,
    deadline: Option<Instant>,
    failed: AtomicBool,
    sum: Mutex<(u64, Outcome)>,
}

/// Plays histories and reports. Exit code 0: all promises were kept; 1: one was broken, and its
/// seed is named.
#[must_use]
pub fn run(arguments: &SimArgs) -> ExitCode {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(processors).max(1);
    let default = if arguments.seconds.is_some() { u64::MAX } else { 1000 };
    let started = Instant::now();
    let run = Run {
        next: AtomicU64::new(arguments.seed),
        end: arguments.seed.saturating_add(arguments.seeds.unwrap_or(default)),
        deadline: arguments.seconds.map(|seconds| started + Duration::from_secs(seconds)),
        failed: AtomicBool::new(false),
        sum: Mutex::new((0, Outcome::default())),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| run.play(arguments.twice));
        }
    });
    let failed = run.failed.load(Ordering::Relaxed);
    let (played, sum) = run.sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report(played, &sum, started.elapsed(), threads);
    if failed { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

impl Run {
    fn play(&self, twice: bool) {
        loop {
            let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if late || seed >= self.end || self.failed.load(Ordering::Relaxed) {
                return;
            }
            let history = History::of_seed(seed);
            let played = catch_unwind(AssertUnwindSafe(|| {
                let outcome = play(&history);
                if twice {
                    assert_eq!(outcome, play(&history), "the same seed gave another history");
                }
                outcome
            }));
            let mut sum = self.sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match played {
                Ok(outcome) => {
                    sum.0 += 1;
                    sum.1.add(&outcome);
                }
                Err(_) => {
                    self.failed.store(true, Ordering::Relaxed);
                    eprintln!(
                        "seed {seed} broke a promise; to see it alone: --seed {seed} --seeds 1"
                    );
                    eprintln!("{history:?}");
                }
            }
        }
    }
}

fn report(played: u64, sum: &Outcome, took: Duration, threads: usize) {
    let minutes = took.as_secs_f64() * threads as f64 / 60.0;
    println!(
        "{played} histories in {:.1} s on {threads} threads: {:.0} a processor minute",
        took.as_secs_f64(),
        played as f64 / minutes.max(1e-9)
    );
    println!(
        "  batches     {} sent, {} acked, {} of them twice, {} of unknown fate, {} read",
        sum.sent, sum.acked, sum.duplicates, sum.unknown, sum.read
    );
    println!(
        "  restarts    {} crashes, {} recoveries cut off, {} with a failed log, {} refused",
        sum.crashes, sum.cut_recoveries, sum.failed_logs, sum.refused_starts
    );
    println!(
        "  commands    {} fences, {} trims, {} shards deleted; {} refusals for want of space",
        sum.fences, sum.trims, sum.deleted, sum.full
    );
    println!(
        "  segments    {} released, {} bytes copied forward, {} scrubbed, {} extents archived",
        sum.released, sum.bytes_copied, sum.bytes_scrubbed, sum.archived
    );
    println!(
        "  damage      {} bits flipped, {} batches found by scrubs, {} reads refused",
        sum.flips, sum.damaged, sum.refused_reads
    );
    println!("  trace       {:016x}", sum.trace);
}
