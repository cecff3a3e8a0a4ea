//! SplitShard, MergeShards and UpdateShardCount: what is asked for is judged, and written down as the
//! stream's intent. The reconciler brings it about.

use serde::Deserialize;
use serde_json::{Value, json};
use thalweg_wire::hash_range::{HashKey, HashRange};

use super::error::ApiError;
use super::quota::{Quota, check_stream_shards};
use super::service::{Call, Service, check_same, not_active, read};
use super::shards::shard_of;
use crate::control::catalog::Stream;
use crate::control::record::{
    RecordKey, Resize, ShardRecord, StreamMode, StreamName, StreamRecord, StreamStatus,
    encode_record, shard_name,
};
use crate::control::reshard::{
    are_adjacent, made_on_the_way, merge, open_on_the_way, open_ranges, resized, split, with_steps,
};
use crate::control::store::{Expectation, Store, Transaction};
use crate::control::usage::Usage;

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &["MergeShards", "SplitShard", "UpdateShardCount"];

/// UpdateShardCounts of a stream within [`DAY_MS`] (API reference, UpdateShardCount).
const RESIZES_MAX: usize = 10;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Shards up to which a stream is scaled (API reference, UpdateShardCount).
const SHARDS_MAX: u64 = 10_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SplitInput {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_to_split: String,
    new_starting_hash_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MergeInput {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_to_merge: String,
    adjacent_shard_to_merge: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResizeInput {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    target_shard_count: u32,
}

impl<S: Store + Clone> Service<S> {
    /// The operations of this file.
    pub(super) async fn reshard(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        match call.operation.name.as_str() {
            "SplitShard" => self.split_shard(call, read(input)?).await.map(|()| None),
            "MergeShards" => self.merge_shards(call, read(input)?).await.map(|()| None),
            _ => self.update_shard_count(call, read(input)?).await.map(Some),
        }
    }

    async fn split_shard(&self, call: &Call, input: SplitInput) -> Result<(), ApiError> {
        let (name, arn) = (input.stream_name.as_deref(), input.stream_arn.as_deref());
        let found = self.authorized_stream(call, name, arn)?;
        self.change_in_quota(&found.name, |stream, quota| {
            check_same(&found, stream)?;
            check_mode(stream)?;
            check_has_shards(stream)?;
            let (index, shard) = shard_of(stream, &input.shard_to_split, call.now_ms)?;
            check_stream_shards(&stream.name, stream.open_shards().len() as u64 + 1)?;
            self.check_shard_quota(&stream.name, &quota.usage, 1)?;
            let at = check_split(stream, index, shard, &input.new_starting_hash_key)?;
            check_open(stream, index, shard)?;
            check_active(stream)?;
            let step = split(index, shard.range, at, stream.record.next_shard);
            quota.check_room(&stream.name, step.children.len() as u64)?;
            Ok(with_steps(&stream.record, vec![step], None))
        })
        .await
    }

    async fn merge_shards(&self, call: &Call, input: MergeInput) -> Result<(), ApiError> {
        let (name, arn) = (input.stream_name.as_deref(), input.stream_arn.as_deref());
        let found = self.authorized_stream(call, name, arn)?;
        self.change_in_quota(&found.name, |stream, quota| {
            check_same(&found, stream)?;
            check_mode(stream)?;
            check_has_shards(stream)?;
            let first = shard_of(stream, &input.shard_to_merge, call.now_ms)?;
            let second = shard_of(stream, &input.adjacent_shard_to_merge, call.now_ms)?;
            if !are_adjacent(first.1.range, second.1.range) {
                return Err(ApiError::invalid_argument(format!(
                    "Shards {} and {} in stream {} under account {} are not an adjacent pair of \
                     shards eligible for merging",
                    shard_name(first.0),
                    shard_name(second.0),
                    stream.name.name,
                    stream.name.account_id
                )));
            }
            for (index, shard) in [first, second] {
                check_open(stream, index, shard)?;
            }
            check_active(stream)?;
            let pair = [first, second].map(|(index, shard)| (index, shard.range));
            let step = merge(pair[0], pair[1], stream.record.next_shard);
            quota.check_room(&stream.name, step.children.len() as u64)?;
            Ok(with_steps(&stream.record, vec![step], None))
        })
        .await
    }

    async fn update_shard_count(&self, call: &Call, input: ResizeInput) -> Result<Value, ApiError> {
        let (name, arn) = (input.stream_name.as_deref(), input.stream_arn.as_deref());
        let found = self.authorized_stream(call, name, arn)?;
        let target = input.target_shard_count;
        check_stream_shards(&found.name, u64::from(target))?;
        let mut current = 0;
        self.change_in_quota(&found.name, |stream, quota| {
            check_same(&found, stream)?;
            check_mode(stream)?;
            check_active(stream)?;
            let open = open_ranges(stream);
            current = open.len() as u32;
            let mut resized_ms = stream.record.resized_ms.clone();
            resized_ms.retain(|ms| ms + DAY_MS > call.now_ms);
            if self.settings.limits {
                check_resize(&stream.name, current, target, resized_ms.len())?;
                let more = u64::from(target.saturating_sub(current));
                self.check_shard_quota(&stream.name, &quota.usage, more)?;
            }
            quota.check_room(&stream.name, u64::from(made_on_the_way(&open, target)))?;
            // Without limits the list has one all the same.
            resized_ms.drain(..(resized_ms.len() + 1).saturating_sub(RESIZES_MAX));
            resized_ms.push(call.now_ms);
            let resize = Resize { target, open_max: self.open_max(&open, target, &quota.usage) };
            let record = resized(&stream.record, &open, resize);
            Ok(StreamRecord { resized_ms, ..record })
        })
        .await?;
        Ok(json!({
            "StreamName": found.name.name,
            "StreamARN": found.name.arn(),
            "CurrentShardCount": current,
            "TargetShardCount": target,
        }))
    }

    /// How many shards of a stream may be open on the way to a count: short-lived ones are part of
    /// the account's quota, and where it leaves no room for them there are fewer.
    pub(super) fn open_max(&self, open: &[(u32, HashRange)], target: u32, usage: &Usage) -> u32 {
        let wanted = open_on_the_way(open, target);
        if !self.settings.limits {
            return wanted;
        }
        let quota = u64::from(self.settings.shards_max);
        let room = (quota + open.len() as u64).saturating_sub(usage.shards);
        let least = target.max(open.len() as u32);
        wanted.min(u32::try_from(room).unwrap_or(u32::MAX)).max(least)
    }

    /// Changes a stream's record where that may use up the account's quota of shards, or the node's
    /// room for them.
    async fn change_in_quota(
        &self,
        name: &StreamName,
        mut change: impl FnMut(&Stream, &Quota) -> Result<StreamRecord, ApiError>,
    ) -> Result<(), ApiError> {
        let key = RecordKey::Stream(name.clone()).encode();
        self.commit_in_quota(name, |quota| {
            let stream = self.stream(name)?;
            let record = change(&stream, quota)?;
            let unchanged = Expectation::ModRevision(stream.mod_revision);
            let transaction = Transaction::new().expect(key.clone(), unchanged);
            Ok(Some(transaction.put(key.clone(), encode_record(&record))))
        })
        .await
    }
}

/// The key at which a shard is split, if it can be split there.
fn check_split(
    stream: &Stream,
    index: u32,
    shard: &ShardRecord,
    key: &str,
) -> Result<HashKey, ApiError> {
    let HashRange { start, end } = shard.range;
    // What is not a number of 128 bits has 39 digits, by its pattern, and is above all of them.
    let at = key.parse().ok().map(HashKey);
    let fits = |at: &HashKey| at.0 > start.0.saturating_add(1) && *at < end;
    at.filter(fits).ok_or_else(|| {
        ApiError::invalid_argument(format!(
            "NewStartingHashKey {key} used in SplitShard() on shard {} in stream {} under account \
             {} is not both greater than one plus the shard's StartingHashKey {} and less than the \
             shard's EndingHashKey {}.",
            shard_name(index),
            stream.name.name,
            stream.name.account_id,
            start.0,
            end.0
        ))
    })
}

fn check_resize(
    name: &StreamName,
    current: u32,
    target: u32,
    resizes: usize,
) -> Result<(), ApiError> {
    let (current, target) = (u64::from(current), u64::from(target));
    let limit = |what: String| {
        Err(ApiError::limit_exceeded(format!(
            "{what} Current open shard count: {current}, Target shard count: {target}"
        )))
    };
    if target > SHARDS_MAX && target >= current {
        return limit(format!(
            "Target shard count or number of open shards cannot be greater than {SHARDS_MAX}."
        ));
    }
    if current > SHARDS_MAX && target >= SHARDS_MAX {
        return limit(format!(
            "A stream of more than {SHARDS_MAX} shards can be scaled to fewer than {SHARDS_MAX} \
             only."
        ));
    }
    if target > 2 * current {
        return limit(
            "UpdateShardCount cannot scale up over double your current open shard count."
                .to_owned(),
        );
    }
    if 2 * target < current {
        return limit(
            "UpdateShardCount cannot scale down below half your current open shard count."
                .to_owned(),
        );
    }
    if resizes >= RESIZES_MAX {
        return limit(format!(
            "Stream {} under account {} has been scaled {resizes} times in the last 24 hours, at \
             most {RESIZES_MAX} are allowed.",
            name.name, name.account_id
        ));
    }
    Ok(())
}

/// Whether the stream's owner decides about its shards.
fn check_mode(stream: &Stream) -> Result<(), ApiError> {
    match stream.record.mode {
        StreamMode::Provisioned => Ok(()),
        StreamMode::OnDemand => Err(ApiError::validation(format!(
            "Request is invalid. Stream {} under account {} is in On-Demand mode.",
            stream.name.name, stream.name.account_id
        ))),
    }
}

/// Whether a stream is in a state in which it shows shards. In the others nobody is told that one is
/// not there: it may be tomorrow (API reference, SplitShard and MergeShards).
fn check_has_shards(stream: &Stream) -> Result<(), ApiError> {
    match stream.record.status {
        StreamStatus::Active | StreamStatus::Updating => Ok(()),
        StreamStatus::Creating | StreamStatus::Deleting => Err(not_active(stream)),
    }
}

fn check_active(stream: &Stream) -> Result<(), ApiError> {
    match stream.record.status {
        StreamStatus::Active => Ok(()),
        _ => Err(not_active(stream)),
    }
}

fn check_open(stream: &Stream, index: u32, shard: &ShardRecord) -> Result<(), ApiError> {
    if shard.is_open() {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!(
        "Shard {} in stream {} under account {} has already been merged or split, and thus is not \
         eligible for merging or splitting.",
        shard_name(index),
        stream.name.name,
        stream.name.account_id
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> StreamName {
        StreamName {
            account_id: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            name: "orders".to_owned(),
        }
    }

    #[test]
    fn a_stream_is_scaled_within_its_limits() {
        let verdict = |current, target, resizes| check_resize(&name(), current, target, resizes);
        for (current, target) in
            [(1, 1), (1, 2), (4, 8), (8, 4), (3, 2), (5, 3), (6000, 10_000), (12_000, 9_999)]
        {
            assert_eq!(verdict(current, target, 9), Ok(()), "{current} to {target}");
        }
        for (current, target, resizes, told) in [
            (1, 3, 0, "cannot scale up over double"),
            (5, 2, 0, "cannot scale down below half"),
            (8, 3, 0, "cannot scale down below half"),
            (6000, 10_001, 0, "cannot be greater than 10000"),
            (10_001, 10_001, 0, "cannot be greater than 10000"),
            (12_000, 11_000, 0, "fewer than 10000"),
            (4, 8, 10, "10 times in the last 24 hours"),
        ] {
            let error = verdict(current, target, resizes).expect_err("a limit");
            assert_eq!(error.kind, super::super::error::ErrorKind::LimitExceeded);
            assert!(error.message.contains(told), "{error}");
            let counts =
                format!("Current open shard count: {current}, Target shard count: {target}");
            assert!(error.message.ends_with(&counts), "{error}");
        }
    }
}
