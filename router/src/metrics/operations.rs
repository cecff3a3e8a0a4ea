//! How often each operation was called, how it ended and how long it took.

use std::collections::BTreeMap;
use std::time::Duration;

use super::counter::{Counter, Distribution, Histogram};
use super::stream::{LATENCY_US, Latency};
use crate::kinesis::error::ErrorKind;
use crate::kinesis::model::{Operation, model};

/// How a call ended that is no error.
const NO_ERROR: &str = "none";

/// See the module. The operations stand in the model's order.
#[derive(Debug)]
pub struct OperationCounts(Vec<OneOperation>);

#[derive(Debug)]
struct OneOperation {
    succeeded: Counter,
    /// By [`ErrorKind`].
    failed: [Counter; ErrorKind::ALL.len()],
    latency_us: Latency,
}

impl Default for OperationCounts {
    fn default() -> OperationCounts {
        let one = |_: &Operation| OneOperation {
            succeeded: Counter::default(),
            failed: std::array::from_fn(|_| Counter::default()),
            latency_us: Histogram::new(&LATENCY_US),
        };
        OperationCounts(model().operations().iter().map(one).collect())
    }
}

impl OperationCounts {
    /// A call ended.
    pub fn note(&self, operation: &Operation, took: Duration, error: Option<ErrorKind>) {
        let counts = &self.0[operation.index];
        let ended = match error {
            None => &counts.succeeded,
            Some(kind) => &counts.failed[kind as usize],
        };
        ended.add_one();
        counts.latency_us.observe(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Each way in which calls of each operation ended so far: operation, error's name, how often.
    pub(super) fn ends(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        self.called().flat_map(|(operation, counts)| {
            // Some types share a name.
            let mut by_name = BTreeMap::from([(NO_ERROR, counts.succeeded.get())]);
            for kind in ErrorKind::ALL {
                *by_name.entry(kind.name()).or_insert(0) += counts.failed[*kind as usize].get();
            }
            let ended = by_name.into_iter().filter(|(_, count)| *count > 0);
            ended.map(move |(name, count)| (operation, name, count))
        })
    }

    /// How long calls of each operation took that was called.
    pub(super) fn latencies_us(&self) -> impl Iterator<Item = (&'static str, Distribution)> + '_ {
        self.called().map(|(operation, counts)| (operation, counts.latency_us.read()))
    }

    fn called(&self) -> impl Iterator<Item = (&'static str, &OneOperation)> {
        let all = model().operations().iter().zip(&self.0);
        all.filter(|(_, counts)| counts.latency_us.read().count() > 0)
            .map(|(operation, counts)| (operation.name.as_str(), counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_count_by_how_they_end() {
        let counts = OperationCounts::default();
        assert_eq!(counts.ends().count(), 0, "nothing was called");
        let operation = |name| model().operation(name).expect("an operation of the model");
        let (put, list) = (operation("PutRecord"), operation("ListStreams"));
        let took = Duration::from_millis(2);
        counts.note(put, took, None);
        counts.note(put, took, None);
        // These two have the same name.
        counts.note(put, took, Some(ErrorKind::AccessDenied));
        counts.note(put, took, Some(ErrorKind::OperationUndetermined));
        counts.note(list, took, Some(ErrorKind::Throttling));
        let mut ends: Vec<_> = counts.ends().collect();
        ends.sort_unstable();
        assert_eq!(
            ends,
            [
                ("ListStreams", "ThrottlingException", 1),
                ("PutRecord", "AccessDeniedException", 2),
                ("PutRecord", "none", 2),
            ]
        );
        let latencies: Vec<_> = counts.latencies_us().collect();
        let counted = latencies.iter().map(|(name, latency)| (*name, latency.count(), latency.sum));
        let mut counted: Vec<_> = counted.collect();
        counted.sort_unstable();
        assert_eq!(counted, [("ListStreams", 1, 2000), ("PutRecord", 4, 8000)]);
    }
}
