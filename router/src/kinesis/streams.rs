//! Streams come, are described and listed, and go.
//!
//! Creating and deleting is recorded here and brought about by the reconciler: a stream is CREATING
//! until all its shards can be written to, and DELETING until nothing of it is left.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use thalweg_wire::ids::StreamId;

use super::codec::timestamp;
use super::error::ApiError;
use super::policy::RequestTags;
use super::quota::check_stream_shards;
use super::service::{Call, Resource, SHARD_MIBPS, Service, not_found, read};
use super::shard_view::{describe_shard, shown_open_shards, shown_shards};
use super::shards::index_of;
use super::tags::check_new_tags;
use super::token::{TokenContent, TokenError, TokenKind, next_token_error};
use crate::control::catalog::{Catalog, Stream};
use crate::control::record::{
    Encryption, Intent, RECORD_VERSION, RecordKey, StreamMode, StreamName, StreamRecord,
    StreamStatus, encode_record,
};
use crate::control::retention::is_expired;
use crate::control::store::{Expectation, Store, Transaction};
use crate::control::usage::Usage;

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &[
    "CreateStream",
    "DeleteStream",
    "DescribeLimits",
    "DescribeStream",
    "DescribeStreamSummary",
    "ListStreams",
];

/// Streams that an account may have CREATING at a time (API reference, CreateStream).
const CREATING_MAX: u64 = 5;
/// Shards of a stream of on-demand mode at first: 4 MiB a second (developer guide, on-demand mode).
pub(super) const ON_DEMAND_SHARDS: u32 = 4;
/// Write throughput that a stream can be readied for: 10 GiB a second (API reference,
/// UpdateStreamWarmThroughput).
const WARM_MIBPS_MAX: u32 = 10 * 1024;
/// Hours for which a new stream keeps records (API reference, CreateStream).
const RETENTION_HOURS: u32 = 24;
/// Largest record of a new stream in KiB (API reference, UpdateMaxRecordSize).
const MAX_RECORD_KIB: u32 = 1024;
/// Shards in one description, and streams in one page of a listing, at most and unless fewer are
/// asked for (API reference, DescribeStream and ListStreams).
const PAGE_MAX: usize = 100;
/// Random identities that are tried; one that is taken already comes once in centuries.
const IDENTITY_ATTEMPTS_MAX: u32 = 4;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateStream {
    stream_name: String,
    shard_count: Option<u32>,
    stream_mode_details: Option<StreamModeDetails>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(rename = "WarmThroughputMiBps")]
    warm_mibps: Option<u32>,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_kib: Option<u32>,
    record_distribution_strategy: Option<DistributionStrategy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StreamModeDetails {
    pub(super) stream_mode: StreamMode,
}

/// How records find their shards (API model, `RecordDistributionStrategy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum DistributionStrategy {
    /// Evenly, whatever their keys.
    Auto,
    /// By their partition keys.
    UserPartitionKey,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteStream {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    #[serde(default)]
    enforce_consumer_deletion: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeStream {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    limit: Option<usize>,
    exclusive_start_shard_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListStreams {
    limit: Option<usize>,
    exclusive_start_stream_name: Option<String>,
    next_token: Option<String>,
}

/// Where a listing of streams goes on: behind this one.
struct ListedUpTo(StreamName);

impl TokenContent for ListedUpTo {
    const KIND: TokenKind = TokenKind::ListStreams;

    fn encode(&self, to: &mut Vec<u8>) {
        let StreamName { account_id, region, name } = &self.0;
        to.extend_from_slice(format!("{account_id}/{region}/{name}").as_bytes());
    }

    fn decode(content: &[u8]) -> Option<ListedUpTo> {
        let mut parts = std::str::from_utf8(content).ok()?.splitn(3, '/').map(str::to_owned);
        let (account_id, region, name) = (parts.next()?, parts.next()?, parts.next()?);
        Some(ListedUpTo(StreamName { account_id, region, name }))
    }
}

impl<S: Store + Clone> Service<S> {
    /// Operations on whole streams.
    pub(super) async fn streams(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        match call.operation.name.as_str() {
            "CreateStream" => self.create_stream(call, read(input)?).await.map(|()| None),
            "DeleteStream" => self.delete_stream(call, &read(input)?).await.map(|()| None),
            "DescribeLimits" => self.describe_limits(call).map(Some),
            "DescribeStream" => self.describe_stream(call, &read(input)?).map(Some),
            "DescribeStreamSummary" => {
                self.describe_stream_summary(call, &read(input)?).await.map(Some)
            }
            "ListStreams" => self.list_streams(call, read(input)?).await.map(Some),
            other => unreachable!("{other} is not one of {OPERATIONS:?}"),
        }
    }

    async fn create_stream(&self, call: &Call, request: CreateStream) -> Result<(), ApiError> {
        let name = call.own_stream(&request.stream_name);
        let mut actions = vec![call.action()];
        if !request.tags.is_empty() {
            // Whoever creates a stream with tags must be allowed both (API reference, CreateStream).
            actions.push("kinesis:AddTagsToStream".to_owned());
        }
        let arn = name.arn();
        let asked = Resource { arn: &arn, account_id: &name.account_id, policy: None, tags: None };
        for action in actions {
            self.authorize_on(call, &action, &asked, RequestTags::Tags(&request.tags))?;
        }
        let shards = request.shards()?;
        check_stream_shards(&name, u64::from(shards))?;
        let told = format!("stream {} under account {}", name.name, name.account_id);
        check_new_tags(&request.tags, &told)?;
        if let Some(mibps) = request.warm_mibps {
            self.check_warm_throughput(call, &name, mibps).await?;
        }
        let key = RecordKey::Stream(name.clone()).encode();
        let record = request.record(call.now_ms, new_identity(&self.ground.catalog)?, shards);
        self.commit_in_quota(&name, |quota| {
            let usage = &quota.usage;
            if self.ground.catalog.stream(&name).is_some() {
                return Err(ApiError::resource_in_use(format!(
                    "Stream {} under account {} already exists.",
                    name.name, name.account_id
                )));
            }
            self.check_creating(&name, usage)?;
            if record.mode == StreamMode::OnDemand {
                self.check_on_demand_quota(&name, usage)?;
            }
            self.check_shard_quota(&name, usage, u64::from(shards))?;
            quota.check_room(&name, u64::from(shards))?;
            let transaction = Transaction::new()
                .expect(key.clone(), Expectation::Absent)
                .put(key.clone(), encode_record(&record));
            Ok(Some(transaction))
        })
        .await
    }

    fn check_creating(&self, name: &StreamName, usage: &Usage) -> Result<(), ApiError> {
        if !self.settings.limits || usage.creating < CREATING_MAX {
            return Ok(());
        }
        Err(ApiError::limit_exceeded(format!(
            "The account {} has {} streams in the CREATING state in {}, at most {CREATING_MAX} \
             are allowed. Wait until one is ACTIVE.",
            name.account_id, usage.creating, name.region
        )))
    }

    /// Whether a stream may be readied for a throughput, MiB a second.
    ///
    /// # Errors
    /// ValidationException when the account is not committed; LimitExceededException.
    pub(super) async fn check_warm_throughput(
        &self,
        call: &Call,
        stream: &StreamName,
        mibps: u32,
    ) -> Result<(), ApiError> {
        if !self.is_owner_committed(stream, call.now_ms).await? {
            return Err(ApiError::validation(format!(
                "Warm throughput is for accounts with a minimum throughput billing commitment, \
                 which the account {} has not in {}. Enable it by UpdateAccountSettings.",
                stream.account_id, stream.region
            )));
        }
        if self.settings.limits && mibps > WARM_MIBPS_MAX {
            return Err(ApiError::limit_exceeded(format!(
                "A warm throughput of {mibps} MiB a second is above the limit of \
                 {WARM_MIBPS_MAX} MiB a second."
            )));
        }
        Ok(())
    }

    /// A stream may be deleted whatever its state: one whose shards cannot be made must be able to
    /// go. The same again does nothing.
    async fn delete_stream(&self, call: &Call, request: &DeleteStream) -> Result<(), ApiError> {
        let (name, arn) = (request.stream_name.as_deref(), request.stream_arn.as_deref());
        let found = self.authorized_stream(call, name, arn)?;
        self.change_stream(&found.name, |stream| {
            if stream.record.id != found.record.id {
                // Another of the same name: that the caller may delete it was not asked.
                return Err(not_found(&found.name));
            }
            if stream.record.status == StreamStatus::Deleting {
                return Ok(stream.record.clone());
            }
            if stream.consumers().len() > 0 && !request.enforce_consumer_deletion {
                let StreamName { account_id, name, .. } = &stream.name;
                return Err(ApiError::resource_in_use(format!(
                    "DeleteStream can't delete {account_id}:{name} because there are consumers \
                     associated with this data stream. To delete {name} anyway, set the \
                     EnforceConsumerDeletion parameter to true to force the deletion of all the \
                     consumers that are associated with it."
                )));
            }
            let mut record = stream.record.clone();
            let unborn = unborn_shards(&record);
            record.status = StreamStatus::Deleting;
            record.intent = Some(Intent::Delete { unborn });
            Ok(record)
        })
        .await
    }

    fn describe_limits(&self, call: &Call) -> Result<Value, ApiError> {
        let (account_id, region) = (&call.caller.account_id, &call.caller.region);
        self.authorize(call, &call.action(), "*", account_id, None)?;
        let usage = self.usage(account_id, region);
        Ok(json!({
            "ShardLimit": self.settings.shards_max,
            "OpenShardCount": usage.open_shards,
            "OnDemandStreamCount": usage.on_demand_streams,
            "OnDemandStreamCountLimit": self.settings.on_demand_streams_max,
        }))
    }

    fn describe_stream(&self, call: &Call, request: &DescribeStream) -> Result<Value, ApiError> {
        let (name, arn) = (request.stream_name.as_deref(), request.stream_arn.as_deref());
        let stream = self.authorized_stream(call, name, arn)?;
        let after = request
            .exclusive_start_shard_id
            .as_deref()
            .map(|shard| index_of(shard, &stream.name))
            .transpose()?;
        let limit = request.limit.unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let mut shards = shown_shards(&stream, after)
            .filter(|(_, shard)| !is_expired(&stream, shard, call.now_ms));
        let shown: Vec<Value> = shards
            .by_ref()
            .take(limit)
            .map(|(index, shard)| describe_shard(index, shard))
            .collect();
        let mut description = description(&stream);
        description["Shards"] = Value::from(shown);
        description["HasMoreShards"] = Value::from(shards.next().is_some());
        Ok(json!({ "StreamDescription": description }))
    }

    async fn describe_stream_summary(
        &self,
        call: &Call,
        request: &DescribeStream,
    ) -> Result<Value, ApiError> {
        let (name, arn) = (request.stream_name.as_deref(), request.stream_arn.as_deref());
        let stream = self.authorized_stream(call, name, arn)?;
        let mut summary = description(&stream);
        summary["OpenShardCount"] = Value::from(shown_open_shards(&stream));
        summary["ConsumerCount"] = Value::from(stream.consumers().len());
        summary["MaxRecordSizeInKiB"] = Value::from(stream.record.max_record_kib);
        if stream.record.mode == StreamMode::OnDemand {
            // There is none without a commitment (API model, WarmThroughputObject).
            if self.is_owner_committed(&stream.name, call.now_ms).await? {
                summary["WarmThroughput"] = warm_throughput_view(&stream.record, &stream);
            }
            let strategy = if stream.record.distributes { "AUTO" } else { "USER_PARTITION_KEY" };
            summary["RecordDistributionStrategy"] = Value::from(strategy);
        }
        Ok(json!({ "StreamDescriptionSummary": summary }))
    }

    async fn list_streams(&self, call: &Call, request: ListStreams) -> Result<Value, ApiError> {
        self.authorize(call, &call.action(), "*", &call.caller.account_id, None)?;
        // Paginators of SDKs repeat the name of the first call beside the token.
        let after = match request.next_token {
            Some(token) => self.listed_up_to(call, &token).await?,
            None => call.own_stream(&request.exclusive_start_stream_name.unwrap_or_default()),
        };
        let limit = request.limit.unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let mut names = self.ground.catalog.names_after(&after, limit + 1);
        let has_more = names.len() > limit;
        names.truncate(limit);
        let mut page = json!({ "HasMoreStreams": has_more });
        if let Some(last) = names.last().filter(|_| has_more) {
            let token =
                self.tokens.seal(&ListedUpTo(last.clone())).await.map_err(next_token_error)?;
            page["NextToken"] = Value::from(token);
        }
        let streams: Vec<_> =
            names.iter().filter_map(|name| self.ground.catalog.stream(name)).collect();
        page["StreamNames"] = streams.iter().map(|stream| stream.name.name.as_str()).collect();
        page["StreamSummaries"] = streams.iter().map(|stream| head_view(stream)).collect();
        Ok(page)
    }

    async fn listed_up_to(&self, call: &Call, token: &str) -> Result<StreamName, ApiError> {
        let ListedUpTo(last) = self.tokens.open(token).await.map_err(next_token_error)?;
        if last != call.own_stream(&last.name) {
            return Err(next_token_error(TokenError::Invalid));
        }
        Ok(last)
    }
}

impl CreateStream {
    /// The mode that it asks for. Who says neither mode nor count of shards gets a stream of four
    /// shards (observed at the service by the authors of LocalStack and kinesis-mock), which is what
    /// the on-demand mode begins with.
    fn mode(&self) -> StreamMode {
        match (&self.stream_mode_details, self.shard_count) {
            (Some(details), _) => details.stream_mode,
            (None, Some(_)) => StreamMode::Provisioned,
            (None, None) => StreamMode::OnDemand,
        }
    }

    /// How many shards it begins with, of a request that makes sense.
    fn shards(&self) -> Result<u32, ApiError> {
        match (self.mode(), self.shard_count) {
            (StreamMode::OnDemand, Some(_)) => {
                Err(ApiError::validation("ShardCount is not expected when StreamMode=ON_DEMAND"))
            }
            (StreamMode::OnDemand, None) => {
                let for_warm = self.warm_mibps.map_or(0, warm_shards);
                Ok(for_warm.max(ON_DEMAND_SHARDS))
            }
            (StreamMode::Provisioned, None) => Err(ApiError::invalid_argument(
                "ShardCount is expected when StreamMode=PROVISIONED. Say how many shards the \
                 stream is to have, or create it with StreamMode=ON_DEMAND.",
            )),
            (StreamMode::Provisioned, Some(_)) if self.warm_mibps.is_some() => {
                Err(ApiError::validation(
                    "WarmThroughputMiBps is not expected when StreamMode=PROVISIONED",
                ))
            }
            (StreamMode::Provisioned, Some(_))
                if self.record_distribution_strategy == Some(DistributionStrategy::Auto) =>
            {
                Err(not_distributed())
            }
            (StreamMode::Provisioned, Some(count)) => Ok(count),
        }
    }

    fn record(&self, now_ms: u64, id: u64, shards: u32) -> StreamRecord {
        StreamRecord {
            version: RECORD_VERSION,
            id,
            // Clients give the time back in whole seconds.
            created_ms: now_ms / 1000 * 1000,
            status: StreamStatus::Creating,
            intent: Some(Intent::Create { shards }),
            next_shard: 0,
            mode: self.mode(),
            retention_hours: RETENTION_HOURS,
            encryption: Encryption::None,
            metrics: Default::default(),
            tags: self.tags.clone(),
            policy: None,
            max_record_kib: self.max_record_kib.unwrap_or(MAX_RECORD_KIB),
            warm_mibps: self.warm_mibps,
            distributes: self.record_distribution_strategy == Some(DistributionStrategy::Auto),
            resized_ms: Vec::new(),
            mode_changed_ms: Vec::new(),
            key_changed_ms: Vec::new(),
            key_dropped_ms: Vec::new(),
        }
    }
}

/// An identity that no stream of the catalog has: random, so that none is ever used twice.
///
/// # Errors
/// InternalFailure: the system gives no random bytes.
fn new_identity(catalog: &Catalog) -> Result<u64, ApiError> {
    for _ in 0..IDENTITY_ATTEMPTS_MAX {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| {
            tracing::error!(%error, "no identity for a stream: the system gives no random bytes");
            ApiError::internal_failure()
        })?;
        let id = u64::from_le_bytes(bytes);
        if id != 0 && catalog.stream_of(StreamId(id)).is_none() {
            return Ok(id);
        }
    }
    tracing::error!("no identity for a stream: are the system's random bytes random?");
    Err(ApiError::internal_failure())
}

/// Indexes of the shards that the steps of a reshard which are left would make.
fn unborn_shards(record: &StreamRecord) -> Vec<u32> {
    match &record.intent {
        Some(Intent::Reshard { steps, .. }) => {
            let children = steps.iter().flat_map(|step| &step.children);
            children.map(|child| child.index).collect()
        }
        _ => Vec::new(),
    }
}

/// Shards that take a throughput, MiB a second.
pub(super) fn warm_shards(mibps: u32) -> u32 {
    mibps.div_ceil(SHARD_MIBPS as u32)
}

/// What descriptions and listings have in common.
fn head_view(stream: &Stream) -> Value {
    let record = &stream.record;
    json!({
        "StreamName": stream.name.name,
        "StreamARN": stream.name.arn(),
        "StreamStatus": record.status.as_str(),
        "StreamModeDetails": { "StreamMode": record.mode.as_str() },
        "StreamCreationTimestamp": timestamp(record.created_ms as i64),
    })
}

/// What DescribeStream and DescribeStreamSummary have in common.
fn description(stream: &Stream) -> Value {
    let record = &stream.record;
    let mut view = head_view(stream);
    view["RetentionPeriodHours"] = Value::from(record.retention_hours);
    view["EnhancedMonitoring"] = json!([{ "ShardLevelMetrics": record.metrics }]);
    match &record.encryption {
        Encryption::None => view["EncryptionType"] = Value::from("NONE"),
        Encryption::Kms { key_id } => {
            view["EncryptionType"] = Value::from("KMS");
            view["KeyId"] = Value::from(key_id.as_str());
        }
    }
    view
}

/// A stream's warm throughput: what its record asks for, and what its shards take.
pub(super) fn warm_throughput_view(record: &StreamRecord, stream: &Stream) -> Value {
    let current = stream.open_shards().len() as u64 * SHARD_MIBPS;
    let target = record.warm_mibps.map_or(current, u64::from);
    json!({ "TargetMiBps": target, "CurrentMiBps": current })
}

/// The error for a stream of provisioned mode whose records are to be distributed (API reference,
/// UpdateStreamRecordDistributionStrategy).
pub(super) fn not_distributed() -> ApiError {
    ApiError::invalid_argument(
        "RecordDistributionStrategy=AUTO is not expected when StreamMode=PROVISIONED",
    )
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    fn request(input: Value) -> CreateStream {
        serde_json::from_value(input).expect("an input of the test")
    }

    #[test]
    fn a_stream_begins_with_what_its_mode_has() {
        let shards = |input| request(input).shards();
        assert_eq!(shards(json!({ "StreamName": "s", "ShardCount": 7 })), Ok(7));
        // The service takes this, and we refused it.
        let named = request(json!({ "StreamName": "s" }));
        assert_eq!((named.mode(), named.shards()), (StreamMode::OnDemand, Ok(4)));
        let on_demand = |more: Value| {
            let mut input =
                json!({ "StreamName": "s", "StreamModeDetails": { "StreamMode": "ON_DEMAND" } });
            input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            shards(input)
        };
        assert_eq!(on_demand(json!({})), Ok(4));
        assert_eq!(on_demand(json!({ "WarmThroughputMiBps": 3 })), Ok(4));
        assert_eq!(on_demand(json!({ "WarmThroughputMiBps": 100 })), Ok(100));
        assert_eq!(on_demand(json!({ "RecordDistributionStrategy": "AUTO" })), Ok(4));
        let kind = |result: Result<u32, ApiError>| result.expect_err("it makes no sense").kind;
        assert_eq!(kind(on_demand(json!({ "ShardCount": 4 }))), ErrorKind::Validation);
        let uncounted =
            json!({ "StreamName": "s", "StreamModeDetails": { "StreamMode": "PROVISIONED" } });
        assert_eq!(kind(shards(uncounted)), ErrorKind::InvalidArgument);
        let provisioned = |name: &str, value: Value| {
            kind(shards(json!({ "StreamName": "s", "ShardCount": 1, name: value })))
        };
        assert_eq!(provisioned("WarmThroughputMiBps", json!(1)), ErrorKind::Validation);
        let strategy = provisioned("RecordDistributionStrategy", json!("AUTO"));
        assert_eq!(strategy, ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_token_of_a_listing_names_a_stream_with_its_account_and_region() {
        let name = StreamName {
            account_id: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            name: "a.b-c_d".to_owned(),
        };
        let mut bytes = Vec::new();
        ListedUpTo(name.clone()).encode(&mut bytes);
        assert_eq!(ListedUpTo::decode(&bytes).map(|ListedUpTo(name)| name), Some(name));
        assert!(ListedUpTo::decode(b"123456789012/us-east-1").is_none());
        assert!(ListedUpTo::decode(&[0xff, b'/', b'/']).is_none());
    }
}
