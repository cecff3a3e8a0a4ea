//! How often an account may call the operations that manage streams (API reference, the
//! operations' pages; developer guide, quotas, control plane API limits).
//!
//! A scope is an operation of an account in a region, or of a stream of it. Each has a bucket of as
//! many calls as it may make in a second, kept as one number: the time at which the bucket will be
//! full again (ITU-T I.371, the generic cell rate algorithm). A bucket that is full is as good as
//! none, so that only scopes of the last second need to be remembered.
//!
//! Non-goals: the rates of shards, which are other files' (puts: the node; reads: with reading).

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

use serde_json::Value;

use super::error::ApiError;
use super::service::{Call, split_stream_arn};

/// Scopes that are remembered: 16 bytes each, and what the map adds. When more than these call
/// within a second, all begin anew.
const SCOPES_MAX: usize = 1 << 16;
const US_PER_S: u64 = 1_000_000;

/// What shares a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// An account in a region.
    Account,
    /// A stream of it.
    Stream,
}

/// Calls a second of an operation; none for those that have no such rate.
fn rate_of(operation: &str) -> Option<(u64, Scope)> {
    let rate = match operation {
        "DescribeLimits" => (1, Scope::Account),
        "CreateStream"
        | "DeleteStream"
        | "ListStreams"
        | "SplitShard"
        | "MergeShards"
        | "AddTagsToStream"
        | "RemoveTagsFromStream"
        | "ListTagsForStream"
        | "TagResource"
        | "UntagResource"
        | "ListTagsForResource"
        | "PutResourcePolicy"
        | "GetResourcePolicy"
        | "DeleteResourcePolicy"
        | "RegisterStreamConsumer"
        | "UpdateStreamWarmThroughput"
        | "DescribeAccountSettings"
        | "UpdateAccountSettings" => (5, Scope::Account),
        "DescribeStream" | "UpdateShardCount" => (10, Scope::Account),
        "DescribeStreamSummary" => (20, Scope::Account),
        "IncreaseStreamRetentionPeriod"
        | "DecreaseStreamRetentionPeriod"
        | "EnableEnhancedMonitoring"
        | "DisableEnhancedMonitoring"
        | "StartStreamEncryption"
        | "StopStreamEncryption"
        | "UpdateStreamMode"
        | "UpdateMaxRecordSize"
        | "UpdateStreamRecordDistributionStrategy"
        | "DeregisterStreamConsumer"
        | "ListStreamConsumers" => (5, Scope::Stream),
        "DescribeStreamConsumer" => (20, Scope::Stream),
        "ListShards" => (1000, Scope::Stream),
        _ => return None,
    };
    Some(rate)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CallRates {
    /// When a scope's bucket will be full, microseconds since 1970; by a hash of the scope, whose
    /// key nobody knows. Two scopes of one hash would share a rate, nothing else.
    full_at_us: Mutex<HashMap<u64, u64>>,
    hasher: RandomState,
}

impl CallRates {
    /// Takes a call's token.
    ///
    /// # Errors
    /// LimitExceededException, with the service's message, when the scope has none left.
    pub(super) fn take(&self, call: &Call, input: &Value) -> Result<(), ApiError> {
        let operation = call.operation.name.as_str();
        let Some((per_s, scope)) = rate_of(operation) else { return Ok(()) };
        let stream = stream_of(input);
        let within = stream.as_deref().filter(|_| scope == Scope::Stream);
        let (account, region) = (&call.caller.account_id, &call.caller.region);
        let hash = self.hasher.hash_one((account, region, operation, within));
        if self.take_from(hash, per_s, call.now_ms * 1000) {
            return Ok(());
        }
        // Observed: calls that name a stream are told of the stream, whatever it is that is limited.
        Err(ApiError::limit_exceeded(match stream {
            Some(stream) => format!("Rate exceeded for stream {stream} under account {account}."),
            None => format!("Rate exceeded for account {account}."),
        }))
    }

    /// Takes a token of a bucket that holds as many as come in a second; false when it has none.
    fn take_from(&self, hash: u64, per_s: u64, now_us: u64) -> bool {
        let mut full_at_us = self.full_at_us.lock().expect("nobody panics with it");
        let known = full_at_us.get(&hash).copied().unwrap_or(0);
        // A bucket is full within a second; what says otherwise was written before the clock was
        // set back.
        let full_us = if known > now_us + US_PER_S { now_us } else { known.max(now_us) };
        let after_us = full_us + US_PER_S / per_s;
        if after_us > now_us + US_PER_S {
            return false;
        }
        if full_at_us.len() >= SCOPES_MAX && !full_at_us.contains_key(&hash) {
            full_at_us.retain(|_, full_us| *full_us > now_us);
            if full_at_us.len() >= SCOPES_MAX {
                full_at_us.clear();
            }
        }
        full_at_us.insert(hash, after_us);
        true
    }
}

/// The name of the stream that an input names, in whichever way.
fn stream_of(input: &Value) -> Option<String> {
    if let Some(name) = input.get("StreamName").and_then(Value::as_str) {
        return Some(name.to_owned());
    }
    let names = ["StreamARN", "ConsumerARN", "ResourceARN"];
    let arn = names.iter().find_map(|name| input.get(name).and_then(Value::as_str))?;
    split_stream_arn(arn).ok().map(|(stream, _)| stream.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinesis::model::model;

    const NOW_US: u64 = 1_700_000_000_000_000;

    #[test]
    fn a_bucket_holds_a_seconds_calls_and_fills_evenly() {
        let rates = CallRates::default();
        let take = |now_us| rates.take_from(1, 5, now_us);
        assert!((0..5).all(|_| take(NOW_US)));
        assert!(!take(NOW_US) && !take(NOW_US + 199_999));
        assert!(take(NOW_US + 200_000) && !take(NOW_US + 200_000));
        assert!((0..4).all(|_| take(NOW_US + 1_000_000)));
        assert!(!take(NOW_US + 1_000_000));
        // Another scope has its own.
        assert!(rates.take_from(2, 1, NOW_US) && !rates.take_from(2, 1, NOW_US + 999_999));
        assert!(rates.take_from(2, 1, NOW_US + 1_000_000));
    }

    #[test]
    fn over_any_time_no_more_calls_pass_than_rate_and_capacity() {
        let rates = CallRates::default();
        let passed = (0..10_000_u64).filter(|at| rates.take_from(1, 10, NOW_US + at * 1000));
        assert_eq!(passed.count(), 10 + 99);
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let rates = CallRates::default();
        assert!((0..5).all(|_| rates.take_from(1, 5, NOW_US)));
        assert!(rates.take_from(1, 5, NOW_US - 3_600_000_000));
    }

    #[test]
    fn memory_is_bounded_and_full_buckets_go_first() {
        let rates = CallRates::default();
        for hash in 0..SCOPES_MAX as u64 - 1 {
            assert!(rates.take_from(hash, 1000, NOW_US));
        }
        let count = || rates.full_at_us.lock().unwrap().len();
        assert!((0..5).all(|_| rates.take_from(u64::MAX, 5, NOW_US)));
        assert_eq!(count(), SCOPES_MAX);
        assert!(rates.take_from(u64::MAX - 1, 5, NOW_US + 10_000));
        assert_eq!(count(), 2);
        assert!(!rates.take_from(u64::MAX, 5, NOW_US + 10_000), "its bucket was kept");
        for hash in 0..2 * SCOPES_MAX as u64 {
            assert!(rates.take_from(hash, 1, NOW_US + 20_000));
            assert!(count() <= SCOPES_MAX);
        }
    }

    #[test]
    fn every_operation_with_a_rate_is_in_the_model() {
        let limited = model().operations().iter().filter(|operation| {
            rate_of(&operation.name).is_some_and(|(per_s, _)| US_PER_S.is_multiple_of(per_s))
        });
        assert_eq!(limited.count(), 35);
    }

    #[test]
    fn a_stream_is_known_by_name_or_by_arn() {
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/s/consumer/c:1";
        assert_eq!(stream_of(&json!({ "StreamName": "s" })).as_deref(), Some("s"));
        assert_eq!(stream_of(&json!({ "ConsumerARN": arn })).as_deref(), Some("s"));
        assert_eq!(stream_of(&json!({ "StreamARN": "arn:aws" })), None);
        assert_eq!(stream_of(&json!({})), None);
    }
}
