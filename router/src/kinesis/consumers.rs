//! Consumers of a stream: registered by name, known by an ARN that says when.
//!
//! A consumer is a record beside its stream's. It is made as CREATING or marked as DELETING here;
//! the reconciler takes it from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::codec::{timestamp, timestamp_ms};
use super::error::{ApiError, ErrorKind};
use super::policy::RequestTags;
use super::resource::ResourceName;
use super::service::{
    CHANGE_ATTEMPTS_MAX, Call, Resource, Service, check_same, not_active, not_found,
    parse_stream_arn, read,
};
use super::tags::check_new_tags;
use super::token::{TokenContent, TokenError, TokenKind, next_token_error};
use crate::control::catalog::{Stream, Versioned};
use crate::control::record::{
    ConsumerRecord, ConsumerStatus, RECORD_VERSION, RecordKey, StreamMode, StreamName,
    StreamStatus, encode_record,
};
use crate::control::store::{Expectation, Store, Transaction};

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &[
    "RegisterStreamConsumer",
    "DeregisterStreamConsumer",
    "DescribeStreamConsumer",
    "ListStreamConsumers",
];

/// Consumers of a stream (API reference, RegisterStreamConsumer).
const CONSUMERS_MAX: usize = 20;
/// The same of an on-demand stream whose account has committed itself to a minimum of throughput.
const CONSUMERS_MAX_ADVANTAGE: usize = 50;
/// Consumers of a stream that are being made at a time (API reference, RegisterStreamConsumer).
const CREATING_MAX: usize = 5;
/// Consumers of one answer (API reference, ListStreamConsumers).
const LIST_MAX: usize = 100;

/// What a consumer's ARN says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ConsumerName {
    /// Its stream.
    pub(super) stream: StreamName,
    /// Its name.
    pub(super) name: String,
    /// When it was registered, seconds since 1970.
    pub(super) created_s: u64,
}

/// `STREAM-ARN/consumer/NAME:SECONDS`.
///
/// # Errors
/// InvalidArgumentException.
pub(super) fn parse_consumer_arn(arn: &str) -> Result<ConsumerName, ApiError> {
    match ResourceName::parse(arn)? {
        ResourceName::Consumer { stream, name, created_s } => {
            Ok(ConsumerName { stream, name, created_s })
        }
        ResourceName::Stream(_) => {
            Err(ApiError::invalid_argument(format!("{arn} is no ARN of a consumer.")))
        }
    }
}

/// The service's error for a consumer that is not there.
pub(super) fn no_consumer(consumer: &ConsumerName) -> ApiError {
    let ConsumerName { stream, name, created_s } = consumer;
    ApiError::resource_not_found(format!(
        "Consumer {name} with creation timestamp {created_s} under stream: {}, account {} not \
         found.",
        stream.name, stream.account_id
    ))
}

/// A consumer that was found, with its stream.
pub(super) struct FoundConsumer {
    pub(super) stream: Arc<Stream>,
    pub(super) name: String,
    pub(super) consumer: Versioned<ConsumerRecord>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RegisterInput {
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    consumer_name: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NamedInput {
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    consumer_name: Option<String>,
    #[serde(rename = "ConsumerARN")]
    consumer_arn: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListInput {
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    next_token: Option<String>,
    max_results: Option<usize>,
    stream_creation_timestamp: Option<Value>,
}

/// Where a listing goes on: behind a consumer of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ListPlace {
    stream: u64,
    after: String,
}

impl TokenContent for ListPlace {
    const KIND: TokenKind = TokenKind::ListStreamConsumers;

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.stream.to_be_bytes());
        to.extend_from_slice(self.after.as_bytes());
    }

    fn decode(content: &[u8]) -> Option<ListPlace> {
        let (stream, after) = content.split_first_chunk()?;
        let after = String::from_utf8(after.to_vec()).ok()?;
        Some(ListPlace { stream: u64::from_be_bytes(*stream), after })
    }
}

impl<S: Store + Clone> Service<S> {
    /// Serves the operations of this file.
    pub(super) async fn consumers(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        match call.operation.name.as_str() {
            "RegisterStreamConsumer" => self.register_consumer(call, read(input)?).await.map(Some),
            "DeregisterStreamConsumer" => {
                self.deregister_consumer(call, &read(input)?).await.map(|()| None)
            }
            "DescribeStreamConsumer" => self.describe_consumer(call, &read(input)?).map(Some),
            "ListStreamConsumers" => self.list_consumers(call, read(input)?).await.map(Some),
            other => unreachable!("{other} is no operation of this file"),
        }
    }

    async fn register_consumer(
        &self,
        call: &Call,
        input: RegisterInput,
    ) -> Result<Value, ApiError> {
        let name = &input.consumer_name;
        let mut stream = self.authorized_stream(call, None, Some(&input.stream_arn))?;
        let record = ConsumerRecord {
            version: RECORD_VERSION,
            created_ms: call.now_ms,
            status: ConsumerStatus::Creating,
            tags: input.tags,
            policy: None,
        };
        if !record.tags.is_empty() {
            // Whoever registers a consumer with tags must be allowed both (API reference).
            let arn = record.arn(&stream.name, name);
            let account_id = &stream.name.account_id;
            let asked = Resource { arn: &arn, account_id, policy: None, tags: None };
            self.authorize_on(
                call,
                "kinesis:TagResource",
                &asked,
                RequestTags::Tags(&record.tags),
            )?;
            let told = format!(
                "consumer {name} of stream {} under account {}",
                stream.name.name, stream.name.account_id
            );
            check_new_tags(&record.tags, &told)?;
        }
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let most = self.consumers_max(&stream).await?;
            check_room(&stream, name, most)?;
            let key = RecordKey::Consumer(stream.name.clone(), name.clone()).encode();
            // The stream's record is put as it is: of two who register at once, with room for one,
            // the other has to look again.
            let stream_key = RecordKey::Stream(stream.name.clone()).encode();
            let transaction = Transaction::new()
                .expect(stream_key.clone(), Expectation::ModRevision(stream.mod_revision))
                .expect(key.clone(), Expectation::Absent)
                .put(stream_key, encode_record(&stream.record))
                .put(key, encode_record(&record));
            if self.commit(transaction).await?.is_some() {
                return Ok(json!({ "Consumer": describe(&stream, name, &record) }));
            }
            let now = self.stream(&stream.name)?;
            check_same(&stream, &now)?;
            stream = now;
        }
        Err(contended(&stream))
    }

    /// How many consumers a stream may have.
    async fn consumers_max(&self, stream: &Stream) -> Result<usize, ApiError> {
        if !self.settings.limits {
            return Ok(usize::MAX);
        }
        let has_advantage = stream.record.mode == StreamMode::OnDemand
            && self.is_owner_committed(&stream.name, (self.ground.now_ms)()).await?;
        Ok(if has_advantage { CONSUMERS_MAX_ADVANTAGE } else { CONSUMERS_MAX })
    }

    async fn deregister_consumer(&self, call: &Call, input: &NamedInput) -> Result<(), ApiError> {
        let mut found = self.authorized_consumer(call, input)?;
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let FoundConsumer { stream, name, consumer } = &found;
            if consumer.record.status == ConsumerStatus::Deleting {
                return Ok(());
            }
            self.wait_for_second_after(consumer.record.created_ms).await;
            let key = RecordKey::Consumer(stream.name.clone(), name.clone()).encode();
            let status = ConsumerStatus::Deleting;
            let record = ConsumerRecord { status, ..consumer.record.clone() };
            let transaction = Transaction::new()
                .expect(key.clone(), Expectation::ModRevision(consumer.mod_revision))
                .put(key, encode_record(&record));
            if self.commit(transaction).await?.is_some() {
                return Ok(());
            }
            found = self.authorized_consumer(call, input)?;
        }
        Err(contended(&found.stream))
    }

    /// Waits until the second in which a consumer was registered is over, a second at most. Its ARN
    /// has the second, and the next consumer of its name is to have another ARN (API model,
    /// Consumer).
    async fn wait_for_second_after(&self, created_ms: u64) {
        let over_ms = (created_ms / 1000 + 1) * 1000;
        let left_ms = over_ms.saturating_sub((self.ground.now_ms)()).min(1000);
        tokio::time::sleep(Duration::from_millis(left_ms)).await;
    }

    fn describe_consumer(&self, call: &Call, input: &NamedInput) -> Result<Value, ApiError> {
        let FoundConsumer { stream, name, consumer } = self.authorized_consumer(call, input)?;
        let mut description = describe(&stream, &name, &consumer.record);
        description.insert("StreamARN".to_owned(), stream.name.arn().into());
        Ok(json!({ "ConsumerDescription": description }))
    }

    async fn list_consumers(&self, call: &Call, input: ListInput) -> Result<Value, ApiError> {
        let stream = self.authorized_stream(call, None, Some(&input.stream_arn))?;
        if input.next_token.is_some() && input.stream_creation_timestamp.is_some() {
            return Err(ApiError::invalid_argument(
                "NextToken and StreamCreationTimestamp cannot be provided together.",
            ));
        }
        if let Some(created) = &input.stream_creation_timestamp
            && timestamp_ms(created).map(|ms| ms / 1000)
                != Some((stream.record.created_ms / 1000) as i64)
        {
            return Err(not_found(&stream.name));
        }
        let after = match &input.next_token {
            None => String::new(),
            Some(token) => match self.tokens.open::<ListPlace>(token).await {
                Ok(place) if place.stream == stream.record.id => place.after,
                Ok(_) => return Err(next_token_error(TokenError::Invalid)),
                Err(error) => return Err(next_token_error(error)),
            },
        };
        let most = input.max_results.unwrap_or(LIST_MAX).min(LIST_MAX);
        let mut consumers: Vec<(&str, &ConsumerRecord)> =
            stream.consumers().filter(|(name, _)| **name > *after).take(most + 1).collect();
        let mut output = Map::new();
        if consumers.len() > most {
            consumers.truncate(most);
            let (last, _) = consumers.last().expect("at least one is asked for");
            let place = ListPlace { stream: stream.record.id, after: (*last).to_owned() };
            let token = self.tokens.seal(&place).await.map_err(next_token_error)?;
            output.insert("NextToken".to_owned(), token.into());
        }
        let consumers: Vec<Value> = consumers
            .into_iter()
            .map(|(name, record)| describe(&stream, name, record).into())
            .collect();
        output.insert("Consumers".to_owned(), consumers.into());
        Ok(output.into())
    }

    /// The consumer that a request names, if the caller may do to it what the request asks for.
    fn authorized_consumer(
        &self,
        call: &Call,
        input: &NamedInput,
    ) -> Result<FoundConsumer, ApiError> {
        let by_arn = input.consumer_arn.as_deref().map(parse_consumer_arn).transpose()?;
        let stream = input.stream_arn.as_deref().map(parse_stream_arn).transpose()?;
        if let Some(wanted) = by_arn {
            let contradicts = stream.is_some_and(|stream| stream != wanted.stream)
                || input.consumer_name.as_ref().is_some_and(|name| *name != wanted.name);
            if contradicts {
                return Err(ApiError::invalid_argument(format!(
                    "ConsumerARN names the consumer {} of the stream {}, and StreamARN or \
                     ConsumerName another one.",
                    wanted.name,
                    wanted.stream.arn()
                )));
            }
            return self.authorized_consumer_of(call, &wanted);
        }
        let (Some(stream), Some(name)) = (stream, input.consumer_name.clone()) else {
            return Err(ApiError::invalid_argument(
                "Either ConsumerARN, or both StreamARN and ConsumerName must be specified.",
            ));
        };
        // Its message says what to do; below, it would become that of a consumer that is not there.
        call.check_region(&stream)?;
        let known = self.ground.catalog.stream(&stream);
        let known = known.as_ref().and_then(|stream| stream.consumer(&name));
        let created_s = known.map_or(0, |consumer| consumer.record.created_ms / 1000);
        let wanted = ConsumerName { stream, name, created_s };
        self.authorized_consumer_of(call, &wanted).map_err(|error| match error.kind {
            ErrorKind::ResourceNotFound => ApiError::resource_not_found(format!(
                "Consumer {}, account {} not found.",
                wanted.name, wanted.stream.account_id
            )),
            _ => error,
        })
    }

    /// The consumer of an ARN, if the caller may do to it what the call asks for.
    ///
    /// # Errors
    /// AccessDeniedException, ResourceNotFoundException.
    pub(super) fn authorized_consumer_of(
        &self,
        call: &Call,
        wanted: &ConsumerName,
    ) -> Result<FoundConsumer, ApiError> {
        let ConsumerName { stream: stream_name, name, created_s } = wanted;
        call.check_region(stream_name)?;
        let stream = self.ground.catalog.stream(stream_name);
        let consumer = stream.as_ref().and_then(|stream| stream.consumer(name)).cloned();
        let consumer = consumer.filter(|found| found.record.created_ms / 1000 == *created_s);
        let arn = format!("{}/consumer/{name}:{created_s}", stream_name.arn());
        let asked = Resource {
            arn: &arn,
            account_id: &stream_name.account_id,
            policy: consumer.as_ref().and_then(|found| found.record.policy.as_deref()),
            tags: consumer.as_ref().map(|found| &found.record.tags),
        };
        // Who may not ask does not learn whether there is such a consumer.
        self.authorize_on(call, &call.action(), &asked, RequestTags::Nothing)?;
        match (stream, consumer) {
            (Some(stream), Some(consumer)) => {
                Ok(FoundConsumer { stream, name: name.clone(), consumer })
            }
            _ => Err(no_consumer(wanted)),
        }
    }
}

/// Whether a stream may have another consumer.
fn check_room(stream: &Stream, name: &str, most: usize) -> Result<(), ApiError> {
    let StreamName { name: stream_name, account_id, .. } = &stream.name;
    if stream.consumer(name).is_some() {
        return Err(ApiError::resource_in_use(format!(
            "Consumer {name} under stream {stream_name} already exists for account {account_id}."
        )));
    }
    match stream.record.status {
        StreamStatus::Active => {}
        StreamStatus::Deleting => return Err(not_found(&stream.name)),
        StreamStatus::Creating | StreamStatus::Updating => return Err(not_active(stream)),
    }
    if stream.consumers().len() >= most {
        return Err(ApiError::limit_exceeded(format!(
            "Stream {stream_name} under account {account_id} has {most} consumers, which is as \
             many as it may have: deregister one first."
        )));
    }
    let is_creating =
        |(_, consumer): &(&str, &ConsumerRecord)| consumer.status == ConsumerStatus::Creating;
    let creating = stream.consumers().filter(is_creating).count();
    if most != usize::MAX && creating >= CREATING_MAX {
        return Err(ApiError::limit_exceeded(format!(
            "Stream {stream_name} under account {account_id} has {CREATING_MAX} consumers in the \
             CREATING state, which is as many as it may have at a time: try again later."
        )));
    }
    Ok(())
}

/// A consumer as the API shows it. Those of a stream that goes go with it, though their records do
/// not say so.
fn describe(stream: &Stream, name: &str, record: &ConsumerRecord) -> Map<String, Value> {
    let created_ms = i64::try_from(record.created_ms).unwrap_or(i64::MAX);
    let status = match stream.record.status {
        StreamStatus::Deleting => ConsumerStatus::Deleting,
        _ => record.status,
    };
    let members = [
        ("ConsumerName", Value::from(name)),
        ("ConsumerARN", record.arn(&stream.name, name).into()),
        ("ConsumerStatus", status.as_str().into()),
        ("ConsumerCreationTimestamp", timestamp(created_ms)),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn contended(stream: &Stream) -> ApiError {
    ApiError::limit_exceeded(format!(
        "The consumers of stream {} under account {} are being changed by others; try again.",
        stream.name.name, stream.name.account_id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_says_stream_name_and_second() {
        let record = ConsumerRecord {
            version: RECORD_VERSION,
            created_ms: 1_795_521_600_987,
            status: ConsumerStatus::Active,
            tags: BTreeMap::new(),
            policy: None,
        };
        let stream = StreamName {
            account_id: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            name: "orders".to_owned(),
        };
        let arn = record.arn(&stream, "billing.1");
        let found = parse_consumer_arn(&arn).expect("it is an ARN");
        let name = "billing.1".to_owned();
        assert_eq!(found, ConsumerName { stream, name, created_s: 1_795_521_600 });
    }

    #[test]
    fn what_is_no_arn_of_a_consumer_is_refused() {
        let stream = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";
        for rest in [
            "",
            "/consumer/",
            "/consumer/a",
            "/consumer/:5",
            "/consumer/a:",
            "/consumer/a:b",
            "/consumer/a:-5",
            "/consumer/a/b:5",
            "/other/consumer/a:5",
            "/consumers/a:5",
        ] {
            let refused = parse_consumer_arn(&format!("{stream}{rest}"));
            let error = refused.expect_err("it is none");
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{rest}");
        }
        assert!(parse_consumer_arn("arn:aws:s3:::stream/orders/consumer/a:5").is_err());
    }

    #[test]
    fn a_place_in_a_listing_round_trips() {
        let place = ListPlace { stream: 7, after: "billing".to_owned() };
        let mut bytes = Vec::new();
        place.encode(&mut bytes);
        assert_eq!(ListPlace::decode(&bytes), Some(place));
        assert_eq!(ListPlace::decode(&bytes[..7]), None);
    }
}
