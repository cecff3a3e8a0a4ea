//! Histories of each kind, and of all kinds together.

use thalweg_sim::{History, Outcome, play};

fn check(history: &History) -> Outcome {
    match std::panic::catch_unwind(|| play(history)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            eprintln!("failed: {history:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn sum(seeds: u64, history: impl Fn(u64) -> History) -> Outcome {
    let mut sum = Outcome::default();
    (0..seeds).for_each(|seed| sum.add(&check(&history(seed))));
    sum
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..24 {
        let history = History::of_seed(seed);
        let (first, second) = (check(&history), check(&history));
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first.trace, check(&History { seed: seed + 1000, ..history }).trace);
    }
}

#[test]
fn without_faults_everything_is_acked() {
    for seed in 0..20 {
        let outcome = check(&History::calm(seed));
        assert_eq!(outcome.acked, outcome.sent, "seed {seed}");
        assert!(outcome.acked > 100 && outcome.segments > 2, "seed {seed}: {outcome:?}");
        assert!(outcome.read > 0, "seed {seed}: {outcome:?}");
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
    let sum =
        sum(60, |seed| History { crash_every: 150, cut_recoveries: 3, ..History::calm(seed) });
    assert!(sum.crashes > 100 && sum.cut_recoveries > 20, "{sum:?}");
}

#[test]
fn failed_and_short_operations_are_never_followed_by_an_ack() {
    let sum = sum(60, |seed| History {
        disk_errors: 150,
        crash_every: 400,
        cores_max: 2,
        disks: 2,
        ..History::calm(seed)
    });
    assert!(sum.failed_logs > 10, "{sum:?}");
}

#[test]
fn broken_connections_make_no_duplicates() {
    for seed in 0..40 {
        let history = History { broken_connections: 60, ..History::calm(seed) };
        let outcome = check(&history);
        assert_eq!(outcome.acked, outcome.sent, "seed {seed}");
    }
    let sum = sum(40, |seed| History { broken_connections: 60, ..History::calm(seed) });
    assert!(sum.duplicates > 0, "repetitions were recognised: {sum:?}");
}

#[test]
fn trimmed_records_leave_and_all_others_stay() {
    let sum = sum(60, |seed| History {
        batches: 400,
        trims: 4,
        keeper: seed % 2 == 1,
        crash_every: 600,
        broken_connections: 300,
        ..History::calm(seed)
    });
    assert!(sum.released > 200 && sum.trims > 1000, "{sum:?}");
    assert!(sum.bytes_copied > 1 << 20 && sum.bytes_scrubbed > 1 << 20, "{sum:?}");
}

#[test]
fn a_crash_at_every_operation_of_a_trim_is_survived() {
    let history = |seed| History { batches: 250, trims: 4, keeper: true, ..History::calm(seed) };
    // Of one in which segments are released and copied forward.
    let (calm, whole) = (0..100)
        .map(|seed| (history(seed), check(&history(seed))))
        .find(|(_, whole)| whole.released > 3 && whole.bytes_copied > 0)
        .expect("a seed with a merge");
    for operation in (1..whole.operations).step_by(31) {
        check(&History { crash_at: Some(operation), ..calm });
    }
}

#[test]
fn a_crash_at_every_operation_of_an_archive_is_survived() {
    let history =
        |seed| History { batches: 250, fences: 6, trims: 20, keeper: true, ..History::calm(seed) };
    let (calm, whole) = (0..100)
        .map(|seed| (history(seed), check(&history(seed))))
        .find(|(_, whole)| whole.archived > 10 && whole.trims > 10 && whole.released > 1)
        .expect("a seed with archives");
    for operation in (1..whole.operations).step_by(97) {
        check(&History { crash_at: Some(operation), crash_every: 300, ..calm });
    }
}

#[test]
fn extents_are_archived_through_crashes() {
    let sum = sum(60, |seed| History {
        fences: 10,
        trims: 12,
        crash_every: 200,
        cut_recoveries: 4,
        disk_errors: if seed % 3 == 0 { 2000 } else { 0 },
        ..History::calm(seed)
    });
    assert!(sum.archived > 500 && sum.crashes > 60, "{sum:?}");
}

#[test]
fn a_fenced_extent_ends_where_it_was_said_to() {
    let sum = sum(60, |seed| History {
        fences: 10,
        crash_every: if seed % 2 == 0 { 0 } else { 200 },
        cores_max: 2,
        ..History::calm(seed)
    });
    assert!(sum.fences > 300, "{sum:?}");
}

#[test]
fn a_deleted_shard_does_not_come_back() {
    let sum = sum(60, |seed| History {
        guests: 8,
        classes: 1 + (seed % 3) as u8,
        cores_max: 2,
        trims: 10,
        crash_every: if seed % 2 == 0 { 0 } else { 200 },
        cut_recoveries: 4,
        disk_errors: if seed % 5 == 0 { 1500 } else { 0 },
        broken_connections: if seed % 4 == 0 { 300 } else { 0 },
        ..History::calm(seed)
    });
    assert!(sum.deleted > 300 && sum.crashes > 60, "{sum:?}");
}

#[test]
fn extents_of_another_retention_class_follow_in_another_log() {
    let sum = sum(60, |seed| History {
        classes: 3,
        fences: 12,
        trims: 8,
        crash_every: if seed % 2 == 0 { 0 } else { 200 },
        cut_recoveries: 4,
        batches: 250,
        ..History::calm(seed)
    });
    assert!(sum.fences > 300 && sum.trims > 300, "{sum:?}");
    assert!(sum.logs > 150, "most have all three classes in the end: {sum:?}");
}

#[test]
fn damage_is_refused_and_never_served() {
    let sum = sum(60, |seed| History {
        bit_flips: 20,
        batches: 300,
        readers: 4,
        crash_every: 500,
        ..History::calm(seed)
    });
    assert!(sum.flips > 300 && sum.damaged > 10 && sum.refused_reads > 10, "{sum:?}");
}

#[test]
fn a_full_disk_takes_no_more_and_goes_on_when_there_is_space() {
    let sum = sum(40, |seed| History {
        segments_max: Some(8),
        trims: 10,
        batches: 400,
        ..History::calm(seed)
    });
    assert!(sum.full > 0 && sum.acked == sum.sent, "{sum:?}");
}

#[test]
fn anything_may_happen() {
    let seeds = std::env::var("THALWEG_SEEDS").ok().and_then(|count| count.parse().ok());
    let sum = sum(seeds.unwrap_or(60), History::of_seed);
    assert!(sum.acked > sum.sent / 2, "{sum:?}");
}
