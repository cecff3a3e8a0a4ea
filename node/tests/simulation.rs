//! Histories of a core in a simulated world: producers, crashes, torn and lost writes, failed and
//! short operations, all from a seed.
//!
//! Offsets are the witness. What was acked is there after every crash, at its offset, with its
//! bytes; offsets have no gap; what is there was sent, once; nothing is acked after a failed
//! write or sync. The same seed gives the same history, byte for byte.

mod world;

use world::{History, Outcome, play};

fn check(history: &History) -> Outcome {
    match std::panic::catch_unwind(|| play(history)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            eprintln!("failed: {history:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Seeds to try; `THALWEG_SEEDS` sets more for the long mode.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let count = std::env::var("THALWEG_SEEDS").ok().and_then(|count| count.parse().ok());
    0..count.unwrap_or(default)
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..8 {
        let history = History { crash_every: 200, ..History::calm(seed) };
        let (first, second) = (check(&history), check(&history));
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first.trace, check(&History { seed: seed + 1000, ..history }).trace);
    }
}

#[test]
fn without_faults_everything_is_acked() {
    for seed in seeds(20) {
        let outcome = check(&History::calm(seed));
        assert_eq!(outcome.acked, outcome.sent, "seed {seed}");
        assert!(outcome.acked > 100 && outcome.segments > 2, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_crash_at_every_operation_loses_nothing_that_was_acked() {
    let last = check(&History::calm(7)).operations.min(600);
    for operation in 1..last {
        check(&History { crash_at: Some(operation), ..History::short(7) });
    }
}

#[test]
fn crash_after_crash_loses_nothing_that_was_acked() {
    let mut crashes = 0;
    for seed in seeds(60) {
        crashes += check(&History { crash_every: 150, ..History::calm(seed) }).crashes;
    }
    assert!(crashes > 100, "{crashes} crashes");
}

#[test]
fn failed_and_short_operations_are_never_followed_by_an_ack() {
    let mut failures = 0;
    for seed in seeds(60) {
        let history = History { disk_errors: 150, crash_every: 400, ..History::calm(seed) };
        failures += check(&history).failed_logs;
    }
    assert!(failures > 10, "{failures} logs failed");
}

#[test]
fn broken_connections_make_no_duplicates() {
    let mut duplicates = 0;
    for seed in seeds(40) {
        let history = History { broken_connections: 60, ..History::calm(seed) };
        let outcome = check(&history);
        assert_eq!(outcome.acked, outcome.sent, "seed {seed}");
        duplicates += outcome.duplicates;
    }
    assert!(duplicates > 0, "repetitions were recognised");
}

#[test]
fn trimmed_records_leave_and_all_others_stay() {
    let mut sum = Outcome::default();
    for seed in seeds(60) {
        let history = History {
            batches: 400,
            trims: 4,
            keeper: seed % 2 == 1,
            crash_every: 600,
            broken_connections: 300,
            ..History::calm(seed)
        };
        let outcome = check(&history);
        sum.released += outcome.released;
        sum.trims += outcome.trims;
        sum.bytes_copied += outcome.bytes_copied;
        sum.bytes_scrubbed += outcome.bytes_scrubbed;
    }
    assert!(sum.released > 200 && sum.trims > 1000, "{sum:?}");
    assert!(sum.bytes_copied > 1 << 20 && sum.bytes_scrubbed > 1 << 20, "{sum:?}");
}

#[test]
fn a_crash_at_every_operation_of_a_trim_is_survived() {
    let calm = History { batches: 250, trims: 4, keeper: true, ..History::calm(11) };
    let whole = check(&calm);
    assert!(whole.released > 3 && whole.bytes_copied > 0, "{whole:?}");
    for operation in (1..whole.operations).step_by(31) {
        check(&History { crash_at: Some(operation), ..calm });
    }
}
