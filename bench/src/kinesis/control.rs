//! Streams come, are waited for, are described, and go: the calls that carry no records. They are
//! made in JSON, one after the other, and repeated for as long as the server says "later".

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::connection::{CallError, Client, ClientPlan, Connection};
use super::encode::Encoding;
use super::outcome::Backoff;
use crate::error::BenchError;

/// How long a server may say "later" to one call, or take to bring a stream or consumer about.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// First and longest pause between two looks at something that is being made.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// More shards than any workload makes.
const SHARDS_MAX: usize = 1_000_000;
/// Shards in a page (API reference, ListShards).
const SHARDS_PER_PAGE: u32 = 1000;
/// Bytes of a record's data and key that every stream takes (API reference, UpdateMaxRecordSize).
pub const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Largest record that a stream can be made to take, KiB (the same).
const MAX_RECORD_KIB: u32 = 10 * 1024;

/// Error types that are looked at here (service model).
const NOT_FOUND: &str = "ResourceNotFoundException";
const IN_USE: &str = "ResourceInUseException";

/// Makes calls for a workload; within a runtime of its own.
pub struct Control<'c> {
    connection: Connection<'c>,
    answer: Vec<u8>,
}

/// A plan for calls of this kind.
#[must_use]
pub fn control_plan(plan: &ClientPlan) -> ClientPlan {
    plan.with_encoding(Encoding::Json)
}

impl<'c> Control<'c> {
    /// Calls through a client, which must speak JSON: see [`control_plan`].
    #[must_use]
    pub fn new(client: &'c Client) -> Control<'c> {
        debug_assert_eq!(client.encoding(), Encoding::Json);
        Control { connection: client.connection(), answer: Vec::new() }
    }

    /// Calls an operation until the server does not say "later" any more.
    ///
    /// # Errors
    /// [`BenchError::Call`].
    pub async fn call(
        &mut self,
        operation: &'static str,
        input: &Value,
    ) -> Result<Value, BenchError> {
        let failed = |source| BenchError::Call { operation, source };
        let body = Bytes::from(serde_json::to_vec(input).expect("a value is JSON"));
        let (started, mut backoff) = (Instant::now(), Backoff::new());
        loop {
            match self.connection.call(operation, &body, &mut self.answer).await {
                Ok(()) if self.answer.is_empty() => return Ok(Value::Null),
                Ok(()) => {
                    let answer = serde_json::from_slice(&self.answer);
                    return answer.map_err(|_| failed(no_answer("JSON")));
                }
                Err(error) if is_later(operation, &error) && started.elapsed() < PATIENCE => {
                    sleep(backoff.next_pause()).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Creates a stream with so many shards. A server may say that something is in use when it is
    /// not the name, but the account that others are changing: then it is tried again.
    ///
    /// # Errors
    /// [`BenchError::Call`], among others when there is one of that name.
    pub async fn create_stream(&mut self, name: &str, shards: u32) -> Result<(), BenchError> {
        let input = json!({ "StreamName": name, "ShardCount": shards });
        let (started, mut backoff) = (Instant::now(), Backoff::new());
        loop {
            match self.call("CreateStream", &input).await {
                Err(error)
                    if is_refused(&error, IN_USE)
                        && started.elapsed() < PATIENCE
                        && self.describe(name).await?.is_none() =>
                {
                    sleep(backoff.next_pause()).await;
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    /// The summary of a stream; none if there is none.
    async fn describe(&mut self, name: &str) -> Result<Option<Value>, BenchError> {
        let input = json!({ "StreamName": name });
        match self.call("DescribeStreamSummary", &input).await {
            Ok(mut answer) => Ok(Some(answer["StreamDescriptionSummary"].take())),
            Err(error) if is_refused(&error, NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until a stream is ACTIVE; answers its ARN.
    ///
    /// # Errors
    /// [`BenchError::Call`], [`BenchError::NotActive`].
    pub async fn wait_active(&mut self, name: &str) -> Result<String, BenchError> {
        let (started, mut pause) = (Instant::now(), LOOK.0);
        loop {
            // One that was just created may not be there for all parts of a service.
            let summary = self.describe(name).await?.unwrap_or_default();
            let status = summary["StreamStatus"].as_str().unwrap_or("not there");
            if status == "ACTIVE" {
                return text(&summary, "StreamARN", "DescribeStreamSummary");
            }
            if started.elapsed() > PATIENCE {
                let (what, status) = (format!("stream {name}"), status.to_owned());
                return Err(BenchError::NotActive { what, status });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Has a stream take records of 10 MiB, and waits until it does.
    ///
    /// # Errors
    /// [`BenchError::Call`], [`BenchError::NotActive`].
    pub async fn allow_large_records(&mut self, name: &str, arn: &str) -> Result<(), BenchError> {
        let input = json!({ "StreamARN": arn, "MaxRecordSizeInKiB": MAX_RECORD_KIB });
        self.call("UpdateMaxRecordSize", &input).await?;
        self.wait_active(name).await.map(drop)
    }

    /// The ids of all shards of a stream.
    ///
    /// # Errors
    /// [`BenchError::Call`].
    pub async fn shards(&mut self, name: &str) -> Result<Vec<String>, BenchError> {
        const OPERATION: &str = "ListShards";
        let mut input = json!({ "StreamName": name, "MaxResults": SHARDS_PER_PAGE });
        let mut shards = Vec::new();
        loop {
            let answer = self.call(OPERATION, &input).await?;
            let page = answer["Shards"].as_array().map(Vec::as_slice).unwrap_or_default();
            for shard in page {
                shards.push(text(shard, "ShardId", OPERATION)?);
            }
            match answer["NextToken"].as_str() {
                // Pages of nothing, or the same ones again, would go on for ever.
                Some(token) if !page.is_empty() && shards.len() <= SHARDS_MAX => {
                    input = json!({ "NextToken": token, "MaxResults": SHARDS_PER_PAGE });
                }
                _ => return Ok(shards),
            }
        }
    }

    /// Registers a consumer and waits until it is ACTIVE; answers its ARN.
    ///
    /// # Errors
    /// [`BenchError::Call`], [`BenchError::NotActive`].
    pub async fn register_consumer(
        &mut self,
        stream_arn: &str,
        name: &str,
    ) -> Result<String, BenchError> {
        let input = json!({ "StreamARN": stream_arn, "ConsumerName": name });
        let answer = self.call("RegisterStreamConsumer", &input).await?;
        let arn = text(&answer["Consumer"], "ConsumerARN", "RegisterStreamConsumer")?;
        let (started, mut pause) = (Instant::now(), LOOK.0);
        loop {
            let input = json!({ "ConsumerARN": arn });
            let answer = self.call("DescribeStreamConsumer", &input).await?;
            let status = &answer["ConsumerDescription"]["ConsumerStatus"];
            let status = status.as_str().unwrap_or("without a status");
            if status == "ACTIVE" {
                return Ok(arn);
            }
            if started.elapsed() > PATIENCE {
                let (what, status) = (format!("consumer {name}"), status.to_owned());
                return Err(BenchError::NotActive { what, status });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Deletes a stream with its consumers.
    ///
    /// # Errors
    /// [`BenchError::Call`].
    pub async fn delete_stream(&mut self, name: &str) -> Result<(), BenchError> {
        let input = json!({ "StreamName": name, "EnforceConsumerDeletion": true });
        self.call("DeleteStream", &input).await.map(drop)
    }
}

/// Whether a call is to be made again. What is changed is in use for the moment; what is created
/// may be in use for good.
fn is_later(operation: &str, error: &CallError) -> bool {
    let creates = matches!(operation, "CreateStream" | "RegisterStreamConsumer");
    error.is_throttle() || (!creates && error.kind() == IN_USE)
}

/// Whether a call was refused with an error of this type.
fn is_refused(error: &BenchError, kind: &str) -> bool {
    matches!(error, BenchError::Call { source, .. } if source.kind() == kind)
}

fn text(
    value: &Value,
    member: &'static str,
    operation: &'static str,
) -> Result<String, BenchError> {
    let found = value[member].as_str().map(str::to_owned);
    found.ok_or_else(|| BenchError::Call { operation, source: no_answer(member) })
}

fn no_answer(missing: &'static str) -> CallError {
    CallError::Unreadable(super::scan::ScanError::Missing(missing))
}

/// A name that no other run has: `thalweg-bench-` and eight digits.
#[must_use]
pub fn random_name() -> String {
    let random = getrandom::u32().expect("the system's random source works once it has started");
    format!("thalweg-bench-{random:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_streams_and_differ() {
        let (one, other) = (random_name(), random_name());
        assert_ne!(one, other);
        assert!(
            one.len() == 22 && one.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        );
    }

    #[test]
    fn what_will_not_change_is_not_asked_again() {
        let refused = |kind: &str| CallError::Refused {
            kind: kind.into(),
            message: String::new(),
            status: 400,
        };
        assert!(is_later("CreateStream", &refused("LimitExceededException")));
        assert!(!is_later("CreateStream", &refused("ResourceInUseException")), "it is there");
        assert!(is_later("UpdateMaxRecordSize", &refused("ResourceInUseException")));
        assert!(!is_later("DeleteStream", &refused("ResourceNotFoundException")));
        assert!(!is_later("ListShards", &refused("InvalidSignatureException")));
    }
}
