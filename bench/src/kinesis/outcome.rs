//! What came of a run through the API: counts, and what the report says of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::connection::CallError;
use super::encode::Encoding;
use super::settings::Target;
use crate::error::BenchError;

/// Errors beside throttles after which a run ends.
pub const ERRORS_MAX: u64 = 100;
/// First and longest pause before a request that was throttled is sent again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// The part of a report that only runs through the API have; its fields are described in
/// `bench/README.md`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct ApiReport {
    pub target: String,
    pub encoding: Option<Encoding>,
    pub http: &'static str,
    pub stream: String,
    pub streams: Option<u32>,
    pub shards: u32,
    pub created_ms: Option<u64>,
    pub requests: u64,
    pub throttled_requests: u64,
    pub throttled_records: u64,
    pub given_up_records: u64,
    pub unknown_records: u64,
    pub errors: BTreeMap<String, u64>,
    pub read_records: Option<u64>,
    pub read_records_per_s: Option<f64>,
    pub read_bytes_per_s: Option<f64>,
    pub read_requests: Option<u64>,
    pub read_throttled: Option<u64>,
    pub delivered: Option<u64>,
    pub delivery_p50_us: Option<u64>,
    pub delivery_p99_us: Option<u64>,
    pub delivery_p999_us: Option<u64>,
    pub delivery_max_us: Option<u64>,
    pub notes: Vec<String>,
}

impl ApiReport {
    /// A report without figures yet.
    #[must_use]
    pub fn new(target: &Target, stream: &str, shards: u32) -> ApiReport {
        ApiReport {
            target: target.url.clone(),
            encoding: Some(target.plan.encoding),
            http: target.http_name(),
            stream: stream.to_owned(),
            shards,
            ..ApiReport::default()
        }
    }

    /// Takes what was counted while it was written.
    pub fn take(&mut self, counts: &Counts) {
        self.requests += counts.requests;
        self.throttled_requests += counts.throttled_requests;
        self.throttled_records += counts.throttled_records;
        self.given_up_records += counts.given_up_records;
        self.unknown_records += counts.unknown_records;
        for (kind, count) in &counts.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
    }

    /// What a person should know of the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Notes that limits were met while it was written, if they were.
    pub fn note_throttles(&mut self) {
        let (requests, records) = (self.throttled_requests, self.throttled_records);
        if requests + records == 0 {
            return;
        }
        self.note(format!(
            "limits were met: {requests} requests and {records} records were refused for the \
             moment and sent again; the rate is that of the limits"
        ));
        if self.given_up_records > 0 {
            let records = self.given_up_records;
            self.note(format!("{records} records were still refused when the run ended"));
        }
    }

    /// The errors in one line; empty without any.
    #[must_use]
    pub fn errors_line(&self) -> String {
        errors_line(&self.errors)
    }
}

/// What is counted while a workload runs.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests that were made, whatever came of them.
    pub requests: u64,
    /// Those that were refused for the moment as a whole.
    pub throttled_requests: u64,
    /// Records of others that were.
    pub throttled_records: u64,
    /// Records that were still refused at the end.
    pub given_up_records: u64,
    /// Records of which nobody knows if they are stored.
    pub unknown_records: u64,
    /// Other errors by their types.
    pub errors: BTreeMap<String, u64>,
    /// The last of them in words.
    pub last_error: Option<String>,
}

impl Counts {
    /// Counts an error of a call.
    pub fn error(&mut self, error: &CallError) {
        self.error_of(error.kind(), error.to_string());
    }

    /// Counts an error by its type.
    pub fn error_of(&mut self, kind: &str, words: String) {
        match self.errors.get_mut(kind) {
            Some(count) => *count += 1,
            None => drop(self.errors.insert(kind.to_owned(), 1)),
        }
        self.last_error = Some(words);
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.throttled_requests += other.throttled_requests;
        self.throttled_records += other.throttled_records;
        self.given_up_records += other.given_up_records;
        self.unknown_records += other.unknown_records;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        if other.last_error.is_some() {
            self.last_error.clone_from(&other.last_error);
        }
    }

    /// Errors beside throttles.
    #[must_use]
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The error with which a run ends that has had too many.
    #[must_use]
    pub fn too_many(&self) -> BenchError {
        BenchError::TooManyErrors {
            count: self.errors_total(),
            kinds: errors_line(&self.errors),
            last: self.last_error.clone().unwrap_or_default(),
        }
    }
}

fn errors_line(errors: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    each.join(", ")
}

/// Ever longer pauses, each somewhere in the second half of its span, so that those who were
/// refused together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    pause: Duration,
    random: u64,
}

impl Backoff {
    /// From the shortest on.
    #[must_use]
    pub fn new() -> Backoff {
        let random =
            getrandom::u64().expect("the system's random source works once it has started");
        Backoff { pause: BACKOFF.0, random: random | 1 }
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.pause = BACKOFF.0;
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        // Marsaglia, "Xorshift RNGs" (2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        let pause = self.pause.mul_f64(0.5 + share / 2.0);
        self.pause = (self.pause * 2).min(BACKOFF.1);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut backoff = Backoff::new();
        let first = backoff.next_pause();
        assert!(first >= BACKOFF.0 / 2 && first <= BACKOFF.0);
        for _ in 0..20 {
            assert!(backoff.next_pause() <= BACKOFF.1);
        }
        assert!(backoff.next_pause() >= BACKOFF.1 / 2);
        backoff.reset();
        assert!(backoff.next_pause() <= BACKOFF.0);
    }

    #[test]
    fn errors_are_counted_by_type() {
        let mut counts = Counts::default();
        for _ in 0..2 {
            counts.error(&CallError::TimedOut);
        }
        let mut other = Counts::default();
        other.error_of("InternalFailure", "it failed".into());
        counts.add(&other);
        assert_eq!(counts.errors_total(), 3);
        let told = counts.too_many().to_string();
        assert!(
            told.contains("1 InternalFailure, 2 no answer") && told.contains("it failed"),
            "{told}"
        );
    }

    #[test]
    fn limits_are_noted() {
        let mut report = ApiReport::default();
        report.note_throttles();
        assert!(report.notes.is_empty());
        report.take(&Counts { throttled_records: 3, given_up_records: 1, ..Counts::default() });
        report.note_throttles();
        assert!(report.notes[0].contains("3 records were refused"), "{:?}", report.notes);
        assert!(report.notes[1].contains("1 records were still refused"));
    }
}
