//! What can be chosen for a stream: retention, mode, size of records, warm throughput, metrics,
//! encryption, distribution.
//!
//! A choice is recorded, with the stream UPDATING, and the reconciler makes it ACTIVE again. The same
//! choice again changes nothing, so that a call whose answer was lost can be repeated.
//!
//! Encryption is recorded and reported, on records too, as the choice of whoever made it. There is
//! no key service: what is at rest is not encrypted by this.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ApiError, ErrorKind};
use super::quota::{Quota, check_stream_shards};
use super::service::{Call, Service, check_same, not_active, read};
use super::streams::{
    DistributionStrategy, ON_DEMAND_SHARDS, StreamModeDetails, not_distributed, warm_shards,
    warm_throughput_view,
};
use crate::control::catalog::Stream;
use crate::control::record::{
    Encryption, Intent, RecordKey, Resize, StreamMode, StreamRecord, StreamStatus, encode_record,
};
use crate::control::reshard::{made_on_the_way, open_ranges, resized};
use crate::control::store::{Expectation, Store, Transaction};

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &[
    "DecreaseStreamRetentionPeriod",
    "DisableEnhancedMonitoring",
    "EnableEnhancedMonitoring",
    "IncreaseStreamRetentionPeriod",
    "StartStreamEncryption",
    "StopStreamEncryption",
    "UpdateMaxRecordSize",
    "UpdateStreamMode",
    "UpdateStreamRecordDistributionStrategy",
    "UpdateStreamWarmThroughput",
];

/// Hours for which records can be kept: a day to a year (developer guide, retention period).
const RETENTION_HOURS: std::ops::RangeInclusive<i64> = 24..=8760;
/// Changes of mode in a day (developer guide, updating a stream).
const MODE_CHANGES_MAX: usize = 2;
/// Keys that are applied in a day, and likewise ends of encryption (API reference,
/// StartStreamEncryption and StopStreamEncryption).
const KEY_CHANGES_MAX: usize = 25;
/// The day of these limits, which rolls.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// All shard-level metrics (API model, `MetricsName`).
const METRICS: [&str; 7] = [
    "IncomingBytes",
    "IncomingRecords",
    "IteratorAgeMilliseconds",
    "OutgoingBytes",
    "OutgoingRecords",
    "ReadProvisionedThroughputExceeded",
    "WriteProvisionedThroughputExceeded",
];
const ALL_METRICS: &str = "ALL";

/// Which stream a request is about.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Target {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Retention {
    #[serde(flatten)]
    target: Target,
    retention_period_hours: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metrics {
    #[serde(flatten)]
    target: Target,
    shard_level_metrics: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EncryptionInput {
    #[serde(flatten)]
    target: Target,
    encryption_type: String,
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateStreamMode {
    #[serde(flatten)]
    target: Target,
    stream_mode_details: StreamModeDetails,
    #[serde(rename = "WarmThroughputMiBps")]
    warm_mibps: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateMaxRecordSize {
    #[serde(flatten)]
    target: Target,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_kib: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateWarmThroughput {
    #[serde(flatten)]
    target: Target,
    #[serde(rename = "WarmThroughputMiBps")]
    warm_mibps: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateDistribution {
    #[serde(flatten)]
    target: Target,
    record_distribution_strategy: DistributionStrategy,
}

/// Which way the retention is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Longer,
    Shorter,
}

impl<S: Store + Clone> Service<S> {
    /// Operations on the settings of streams.
    pub(super) async fn settings(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        let nothing = |()| None;
        match call.operation.name.as_str() {
            "IncreaseStreamRetentionPeriod" => {
                self.update_retention(call, read(input)?, Direction::Longer).await.map(nothing)
            }
            "DecreaseStreamRetentionPeriod" => {
                self.update_retention(call, read(input)?, Direction::Shorter).await.map(nothing)
            }
            "EnableEnhancedMonitoring" => {
                self.update_metrics(call, read(input)?, |some, more| some | more).await.map(Some)
            }
            "DisableEnhancedMonitoring" => {
                self.update_metrics(call, read(input)?, |some, less| some - less).await.map(Some)
            }
            "StartStreamEncryption" => self.start_encryption(call, read(input)?).await.map(nothing),
            "StopStreamEncryption" => self.stop_encryption(call, read(input)?).await.map(nothing),
            "UpdateMaxRecordSize" => {
                self.update_max_record_size(call, read(input)?).await.map(nothing)
            }
            "UpdateStreamMode" => self.update_mode(call, read(input)?).await.map(nothing),
            "UpdateStreamRecordDistributionStrategy" => {
                self.update_distribution(call, read(input)?).await.map(nothing)
            }
            "UpdateStreamWarmThroughput" => {
                self.update_warm_throughput(call, read(input)?).await.map(Some)
            }
            other => unreachable!("{other} is not one of {OPERATIONS:?}"),
        }
    }

    /// Changes the record of a stream that must be ACTIVE; it is UPDATING until everybody knows.
    /// Answers the stream as it was.
    async fn update(
        &self,
        call: &Call,
        target: &Target,
        mut change: impl FnMut(&Stream, &mut StreamRecord) -> Result<(), ApiError>,
    ) -> Result<Arc<Stream>, ApiError> {
        let (name, arn) = (target.stream_name.as_deref(), target.stream_arn.as_deref());
        let found = self.authorized_stream(call, name, arn)?;
        let mut before = found.clone();
        self.change_stream(&found.name, |stream| {
            check_same(&found, stream)?;
            before = Arc::new(stream.clone());
            updated(stream, &mut change)
        })
        .await?;
        Ok(before)
    }

    async fn update_retention(
        &self,
        call: &Call,
        request: Retention,
        direction: Direction,
    ) -> Result<(), ApiError> {
        self.update(call, &request.target, |stream, record| {
            let hours = request.retention_period_hours;
            record.retention_hours = retention(stream, hours, direction)?;
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Joins the metrics of a stream with those of the request.
    async fn update_metrics(
        &self,
        call: &Call,
        request: Metrics,
        join: impl Fn(&BTreeSet<String>, &BTreeSet<String>) -> BTreeSet<String>,
    ) -> Result<Value, ApiError> {
        let mut named = request.shard_level_metrics;
        if named.contains(ALL_METRICS) {
            named = METRICS.map(str::to_owned).into();
        }
        let mut desired = BTreeSet::new();
        let before = self
            .update(call, &request.target, |_, record| {
                record.metrics = join(&record.metrics, &named);
                desired.clone_from(&record.metrics);
                Ok(())
            })
            .await?;
        Ok(json!({
            "StreamName": before.name.name,
            "StreamARN": before.name.arn(),
            "CurrentShardLevelMetrics": before.record.metrics,
            "DesiredShardLevelMetrics": desired,
        }))
    }

    async fn start_encryption(
        &self,
        call: &Call,
        request: EncryptionInput,
    ) -> Result<(), ApiError> {
        check_encryption_type(&request)?;
        check_key_id(&request.key_id)?;
        let wanted = Encryption::Kms { key_id: request.key_id };
        self.update(call, &request.target, |stream, record| {
            if record.encryption != wanted {
                self.note_change(&mut record.key_changed_ms, call, KEY_CHANGES_MAX, || {
                    format!("Keys can be applied to the stream {}", stream.name.name)
                })?;
                record.encryption = wanted.clone();
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn stop_encryption(&self, call: &Call, request: EncryptionInput) -> Result<(), ApiError> {
        check_encryption_type(&request)?;
        // What starts encryption may not find its key; what stops it has no such error (API model).
        check_key_id(&request.key_id).map_err(|error| ApiError::invalid_argument(error.message))?;
        self.update(call, &request.target, |stream, record| {
            if record.encryption != Encryption::None {
                self.note_change(&mut record.key_dropped_ms, call, KEY_CHANGES_MAX, || {
                    format!("Encryption of the stream {} can be stopped", stream.name.name)
                })?;
                record.encryption = Encryption::None;
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn update_max_record_size(
        &self,
        call: &Call,
        request: UpdateMaxRecordSize,
    ) -> Result<(), ApiError> {
        self.update(call, &request.target, |_, record| {
            record.max_record_kib = request.max_record_kib;
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// The change takes effect at once, and the stream stays ACTIVE.
    async fn update_distribution(
        &self,
        call: &Call,
        request: UpdateDistribution,
    ) -> Result<(), ApiError> {
        let distributes = request.record_distribution_strategy == DistributionStrategy::Auto;
        let found = self.authorized_stream(call, None, request.target.stream_arn.as_deref())?;
        self.change_stream(&found.name, |stream| {
            check_same(&found, stream)?;
            check_active(stream)?;
            if distributes && stream.record.mode == StreamMode::Provisioned {
                return Err(not_distributed());
            }
            Ok(StreamRecord { distributes, ..stream.record.clone() })
        })
        .await
    }

    async fn update_mode(&self, call: &Call, request: UpdateStreamMode) -> Result<(), ApiError> {
        let mode = request.stream_mode_details.stream_mode;
        let found = self.authorized_stream(call, None, request.target.stream_arn.as_deref())?;
        if let Some(mibps) = request.warm_mibps {
            if mode == StreamMode::Provisioned {
                return Err(ApiError::validation(
                    "WarmThroughputMiBps is not expected when StreamMode=PROVISIONED",
                ));
            }
            self.check_warm_throughput(call, &found.name, mibps).await?;
        }
        self.commit_in_quota(&found.name, |quota| {
            let stream = self.stream(&found.name)?;
            check_same(&found, &stream)?;
            let record = updated(&stream, |stream, record| {
                if record.mode != mode {
                    if mode == StreamMode::OnDemand {
                        self.check_on_demand_quota(&stream.name, &quota.usage)?;
                    }
                    self.note_change(&mut record.mode_changed_ms, call, MODE_CHANGES_MAX, || {
                        format!("The mode of the stream {} can be changed", stream.name.name)
                    })?;
                    record.mode = mode;
                }
                match mode {
                    StreamMode::OnDemand => {
                        if let Some(mibps) = request.warm_mibps {
                            self.warm(stream, record, quota, mibps)?;
                        }
                    }
                    // What only the other mode has goes with it.
                    StreamMode::Provisioned => {
                        (record.warm_mibps, record.distributes) = (None, false);
                    }
                }
                Ok(())
            })?;
            Ok(replacement(&stream, &record))
        })
        .await
    }

    async fn update_warm_throughput(
        &self,
        call: &Call,
        request: UpdateWarmThroughput,
    ) -> Result<Value, ApiError> {
        let (name, arn) =
            (request.target.stream_name.as_deref(), request.target.stream_arn.as_deref());
        let found = self.authorized_stream(call, name, arn)?;
        if found.record.mode == StreamMode::Provisioned {
            return Err(ApiError::validation(format!(
                "Stream {} under account {} has the provisioned mode, which has no warm \
                 throughput. Change its number of shards by UpdateShardCount, or its mode by \
                 UpdateStreamMode.",
                found.name.name, found.name.account_id
            )));
        }
        self.check_warm_throughput(call, &found.name, request.warm_mibps).await?;
        let mut view = Value::Null;
        self.commit_in_quota(&found.name, |quota| {
            let stream = self.stream(&found.name)?;
            check_same(&found, &stream)?;
            let record = updated(&stream, |stream, record| {
                if record.mode == StreamMode::Provisioned {
                    return Err(not_active(stream));
                }
                self.warm(stream, record, quota, request.warm_mibps)
            })?;
            view = warm_throughput_view(&record, &stream);
            Ok(replacement(&stream, &record))
        })
        .await?;
        Ok(json!({
            "StreamName": found.name.name,
            "StreamARN": found.name.arn(),
            "WarmThroughput": view,
        }))
    }

    /// Has a stream of on-demand mode scale to a throughput, up or down: to a shard for each MiB a
    /// second, and to as many as a new one has at least.
    fn warm(
        &self,
        stream: &Stream,
        record: &mut StreamRecord,
        quota: &Quota,
        mibps: u32,
    ) -> Result<(), ApiError> {
        let open = open_ranges(stream);
        let target = warm_shards(mibps).max(ON_DEMAND_SHARDS);
        check_stream_shards(&stream.name, u64::from(target))?;
        let more = u64::from(target).saturating_sub(open.len() as u64);
        self.check_shard_quota(&stream.name, &quota.usage, more)?;
        quota.check_room(&stream.name, u64::from(made_on_the_way(&open, target)))?;
        record.warm_mibps = Some(mibps);
        let resize = Resize { target, open_max: self.open_max(&open, target, &quota.usage) };
        *record = resized(record, &open, resize);
        Ok(())
    }

    /// Notes a change of which there may be so many in a day.
    fn note_change(
        &self,
        made_ms: &mut Vec<u64>,
        call: &Call,
        count_max: usize,
        what: impl FnOnce() -> String,
    ) -> Result<(), ApiError> {
        made_ms.retain(|made| made + DAY_MS > call.now_ms);
        if made_ms.len() >= count_max {
            if self.settings.limits {
                let wait_s = (made_ms[0] + DAY_MS - call.now_ms).div_ceil(1000);
                return Err(ApiError::limit_exceeded(format!(
                    "{} {count_max} times in 24 hours, and was. Try again in {wait_s} seconds.",
                    what()
                )));
            }
            // Without limits the list has one all the same.
            made_ms.drain(..=made_ms.len() - count_max);
        }
        made_ms.push(call.now_ms);
        Ok(())
    }
}

/// The record of a stream after a change: of an ACTIVE one, which is UPDATING if it did change.
fn updated(
    stream: &Stream,
    mut change: impl FnMut(&Stream, &mut StreamRecord) -> Result<(), ApiError>,
) -> Result<StreamRecord, ApiError> {
    check_active(stream)?;
    let mut record = stream.record.clone();
    change(stream, &mut record)?;
    if record != stream.record && record.intent.is_none() {
        (record.status, record.intent) = (StreamStatus::Updating, Some(Intent::Settle));
    }
    Ok(record)
}

/// A transaction that exchanges a stream's record; none when it is to stay.
fn replacement(stream: &Stream, record: &StreamRecord) -> Option<Transaction> {
    if *record == stream.record {
        return None;
    }
    let key = RecordKey::Stream(stream.name.clone()).encode();
    let expected = Expectation::ModRevision(stream.mod_revision);
    Some(Transaction::new().expect(key.clone(), expected).put(key, encode_record(record)))
}

fn check_active(stream: &Stream) -> Result<(), ApiError> {
    match stream.record.status {
        StreamStatus::Active => Ok(()),
        _ => Err(not_active(stream)),
    }
}

/// The retention that a stream is to have, hours (messages as observed at the service). The one
/// that it has already is taken either way.
fn retention(stream: &Stream, hours: i64, direction: Direction) -> Result<u32, ApiError> {
    let (shortest, longest) = (RETENTION_HOURS.start(), RETENTION_HOURS.end());
    let (name, existing) = (&stream.name.name, stream.record.retention_hours);
    let message = if hours < *shortest {
        format!(
            "Minimum allowed retention period is {shortest} hours. Requested retention period \
             ({hours} hours) is too short."
        )
    } else if hours > *longest {
        format!(
            "Maximum allowed retention period is {longest} hours. Requested retention period \
             ({hours} hours) is too long."
        )
    } else if direction == Direction::Longer && hours < i64::from(existing) {
        format!(
            "Requested retention period ({hours} hours) for stream {name} can not be shorter than \
             existing retention period ({existing} hours). Use DecreaseRetentionPeriod API."
        )
    } else if direction == Direction::Shorter && hours > i64::from(existing) {
        format!(
            "Requested retention period ({hours} hours) for stream {name} can not be longer than \
             existing retention period ({existing} hours). Use IncreaseRetentionPeriod API."
        )
    } else {
        return Ok(u32::try_from(hours).expect("it is within bounds"));
    };
    Err(ApiError::invalid_argument(message))
}

fn check_encryption_type(request: &EncryptionInput) -> Result<(), ApiError> {
    if request.encryption_type == "KMS" {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!(
        "EncryptionType {} is not expected here: the only valid value is KMS.",
        request.encryption_type
    )))
}

/// Whether a key is named in one of the ways that there are (API reference, StartStreamEncryption):
/// by its ARN or its alias's, by its id, or by `alias/` and the alias's name.
fn check_key_id(key_id: &str) -> Result<(), ApiError> {
    let resource = match key_id.strip_prefix("arn:") {
        Some(arn) => {
            let parts: Vec<&str> = arn.splitn(5, ':').collect();
            match parts[..] {
                [partition, "kms", region, account, resource]
                    if partition.starts_with("aws") && !region.is_empty() =>
                {
                    let is_account =
                        account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
                    if is_account { resource } else { "" }
                }
                _ => "",
            }
        }
        None if key_id.starts_with("alias/") => key_id,
        None => &format!("key/{key_id}"),
    };
    let is_named = match (resource.strip_prefix("key/"), resource.strip_prefix("alias/")) {
        (Some(id), _) => is_key(id),
        (_, Some(alias)) => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte);
            (1..=250).contains(&alias.len()) && alias.bytes().all(allowed)
        }
        (None, None) => false,
    };
    if is_named {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::KmsNotFound,
        format!("Invalid keyId {key_id}. Name a key by its ARN, its id, or alias/ and its alias."),
    ))
}

/// Whether a text is the id of a key: a UUID, or one of a key in several regions.
fn is_key(id: &str) -> bool {
    let is_hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(digits) = id.strip_prefix("mrk-") {
        return digits.len() == 32 && is_hexadecimal(digits);
    }
    let lengths: Vec<usize> = id.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && id.split('-').all(is_hexadecimal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_in_the_ways_that_there_are() {
        let uuid = "12345678-1234-1234-1234-1234567890ab";
        for key_id in [
            uuid,
            "mrk-1234567890abcdef1234567890abcdef",
            "alias/aws/kinesis",
            "alias/My_Alias-1",
            &format!("arn:aws:kms:us-east-1:123456789012:key/{uuid}"),
            "arn:aws-cn:kms:cn-north-1:123456789012:alias/MyAlias",
        ] {
            assert_eq!(check_key_id(key_id), Ok(()), "{key_id}");
        }
        for key_id in [
            "x",
            "alias/",
            "alias/a b",
            "12345678-1234-1234-1234-1234567890ag",
            "arn:aws:kms:us-east-1:12345678901:alias/MyAlias",
            "arn:aws:s3:us-east-1:123456789012:key/12345678-1234-1234-1234-1234567890ab",
            "arn:aws:kms:us-east-1:123456789012:MyAlias",
            "arn:aws:kms",
        ] {
            let error = check_key_id(key_id).expect_err(key_id);
            assert_eq!(error.kind, ErrorKind::KmsNotFound, "{key_id}");
        }
    }
}
