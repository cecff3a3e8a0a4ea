//! ListShards.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::codec::timestamp_ms;
use super::error::ApiError;
use super::service::{Call, Service, not_active, not_found, parse_stream_arn, read};
use super::shard_view::describe_shard;
use super::token::{TokenContent, TokenKind, next_token_error};
use crate::control::catalog::Stream;
use crate::control::record::{ShardRecord, StreamName, StreamStatus, shard_name};
use crate::control::retention::{horizon_ms, is_expired};
use crate::control::store::Store;

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &["ListShards"];

/// Shards in an answer where the request says nothing, and at most (API model, ListShardsInput).
const RESULTS_MAX: usize = 1000;
/// Largest index that the service takes for one of a shard (observed by kinesalite).
const SHARD_INDEX_MAX: u32 = i32::MAX as u32;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListShardsInput {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    next_token: Option<String>,
    exclusive_start_shard_id: Option<String>,
    max_results: Option<usize>,
    stream_creation_timestamp: Option<Value>,
    shard_filter: Option<FilterInput>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FilterInput {
    #[serde(rename = "Type")]
    kind: String,
    shard_id: Option<String>,
    timestamp: Option<Value>,
}

/// Which shards are listed. Times are fixed when a listing begins, so that its pages fit together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Filter {
    /// All.
    All,
    /// Those that are open now.
    Latest,
    /// Those that were open at a time, milliseconds since 1970.
    At(u64),
    /// Those that were open at a time or later.
    From(u64),
}

/// Where a listing goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Place {
    account_id: String,
    region: String,
    name: String,
    /// The incarnation.
    id: u64,
    /// The index behind which it goes on.
    after: Option<u32>,
    filter: Filter,
}

impl TokenContent for Place {
    const KIND: TokenKind = TokenKind::ListShards;

    fn encode(&self, to: &mut Vec<u8>) {
        serde_json::to_writer(to, self).expect("memory takes it");
    }

    fn decode(content: &[u8]) -> Option<Place> {
        serde_json::from_slice(content).ok()
    }
}

impl<S: Store + Clone> Service<S> {
    /// The operations of this file.
    pub(super) async fn shards(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        self.list_shards(call, read(input)?).await.map(Some)
    }

    async fn list_shards(&self, call: &Call, input: ListShardsInput) -> Result<Value, ApiError> {
        let (stream, place) = match &input.next_token {
            Some(token) => self.listing_goes_on(call, token, &input).await?,
            None => self.listing_begins(call, &input)?,
        };
        if matches!(stream.record.status, StreamStatus::Creating | StreamStatus::Deleting) {
            // The KCL tells by it that it has to wait (KinesisShardDetector).
            return Err(not_active(&stream));
        }
        let count = input.max_results.unwrap_or(RESULTS_MAX).min(RESULTS_MAX);
        let behind: Box<dyn Iterator<Item = (u32, &ShardRecord)> + Send + '_> = match place.after {
            Some(index) => Box::new(stream.shards_after(index)),
            None => Box::new(stream.shards()),
        };
        let mut listed = behind.filter(|(_, shard)| {
            !is_expired(&stream, shard, call.now_ms) && place.filter.takes(&stream, shard)
        });
        let mut last = place.after;
        let mut shards = Vec::new();
        for (index, shard) in listed.by_ref().take(count) {
            shards.push(describe_shard(index, shard));
            last = Some(index);
        }
        let mut output = Map::new();
        output.insert("Shards".to_owned(), Value::Array(shards));
        let goes_on = listed.next().is_some();
        drop(listed);
        if goes_on {
            let token = self.tokens.seal(&Place { after: last, ..place }).await;
            output.insert("NextToken".to_owned(), Value::String(token.map_err(next_token_error)?));
        }
        Ok(Value::Object(output))
    }

    fn listing_begins(
        &self,
        call: &Call,
        input: &ListShardsInput,
    ) -> Result<(std::sync::Arc<Stream>, Place), ApiError> {
        let (name, arn) = (input.stream_name.as_deref(), input.stream_arn.as_deref());
        if name.is_none() && arn.is_none() {
            return Err(ApiError::invalid_argument(
                "Either NextToken or StreamName should be provided.",
            ));
        }
        let stream = self.authorized_stream(call, name, arn)?;
        if let Some(created) = &input.stream_creation_timestamp {
            check_creation(&stream, created)?;
        }
        let (filter, filter_after) = match &input.shard_filter {
            Some(filter) => filter.resolve(&stream, call.now_ms)?,
            None => (Filter::All, None),
        };
        let start = input.exclusive_start_shard_id.as_deref();
        let start = start.map(|id| index_of(id, &stream.name)).transpose()?;
        let StreamName { account_id, region, name } = stream.name.clone();
        let after = start.max(filter_after);
        Ok((
            stream.clone(),
            Place { account_id, region, name, id: stream.record.id, after, filter },
        ))
    }

    /// A filter beside the token says nothing new: the listing has the one that it began with.
    async fn listing_goes_on(
        &self,
        call: &Call,
        token: &str,
        input: &ListShardsInput,
    ) -> Result<(std::sync::Arc<Stream>, Place), ApiError> {
        for (name, is_given) in [
            ("StreamName", input.stream_name.is_some()),
            ("ExclusiveStartShardId", input.exclusive_start_shard_id.is_some()),
            ("StreamCreationTimestamp", input.stream_creation_timestamp.is_some()),
        ] {
            if is_given {
                return Err(ApiError::invalid_argument(format!(
                    "NextToken and {name} cannot be provided together."
                )));
            }
        }
        let place: Place = self.tokens.open(token).await.map_err(next_token_error)?;
        let name = StreamName {
            account_id: place.account_id.clone(),
            region: place.region.clone(),
            name: place.name.clone(),
        };
        let arn = name.arn();
        let given = input.stream_arn.as_deref().map(parse_stream_arn).transpose()?;
        if given.is_some_and(|given| given != name) {
            return Err(ApiError::invalid_argument(format!(
                "NextToken is of {arn}, not of the StreamARN that was provided."
            )));
        }
        let stream = self.authorized_stream(call, None, Some(&arn))?;
        // Another stream of that name has other shards.
        if stream.record.id != place.id {
            return Err(not_found(&name));
        }
        Ok((stream, place))
    }
}

impl FilterInput {
    /// Which shards it takes, and the index behind which it begins.
    fn resolve(&self, stream: &Stream, now_ms: u64) -> Result<(Filter, Option<u32>), ApiError> {
        let horizon_ms = horizon_ms(stream, now_ms);
        if self.shard_id.is_some() && self.kind != "AFTER_SHARD_ID" {
            return Err(self.excludes("ShardId"));
        }
        if self.timestamp.is_some() && !matches!(&*self.kind, "AT_TIMESTAMP" | "FROM_TIMESTAMP") {
            return Err(self.excludes("Timestamp"));
        }
        // What is older than the horizon is corrected to it (API model, ShardFilter): of the shards
        // that were open before, not all are known any more.
        let time = || -> Result<u64, ApiError> {
            let time = self.timestamp.as_ref().and_then(timestamp_ms);
            let time = time.ok_or_else(|| self.needs("Timestamp"))?;
            Ok(u64::try_from(time).unwrap_or(0).max(horizon_ms))
        };
        Ok(match self.kind.as_str() {
            "AFTER_SHARD_ID" => {
                let id = self.shard_id.as_deref().ok_or_else(|| self.needs("ShardId"))?;
                (Filter::All, Some(index_of(id, &stream.name)?))
            }
            "AT_TRIM_HORIZON" => (Filter::At(horizon_ms), None),
            "AT_LATEST" => (Filter::Latest, None),
            "AT_TIMESTAMP" => (Filter::At(time()?), None),
            "FROM_TIMESTAMP" => (Filter::From(time()?), None),
            // The model has no others.
            _ => (Filter::All, None),
        })
    }

    fn needs(&self, member: &str) -> ApiError {
        ApiError::invalid_argument(format!(
            "{member} must be provided in ShardFilter when its Type is {}.",
            self.kind
        ))
    }

    fn excludes(&self, member: &str) -> ApiError {
        ApiError::invalid_argument(format!(
            "{member} cannot be provided in ShardFilter when its Type is {}.",
            self.kind
        ))
    }
}

impl Filter {
    fn takes(self, stream: &Stream, shard: &ShardRecord) -> bool {
        let closed_ms = shard.end.map(|end| end.closed_ms);
        match self {
            Filter::All => true,
            Filter::Latest => shard.is_open(),
            // A shard is not open any more at the time when its children are: else there would be
            // two shards for a hash key.
            Filter::At(time_ms) => {
                opened_ms(stream, shard) <= time_ms && closed_ms.is_none_or(|ms| ms > time_ms)
            }
            Filter::From(time_ms) => closed_ms.is_none_or(|ms| ms >= time_ms),
        }
    }
}

/// When a shard began to take records, milliseconds since 1970: when its parents had ended. Of what
/// was there from the beginning, or longer than its parents are remembered, zero.
fn opened_ms(stream: &Stream, shard: &ShardRecord) -> u64 {
    let parents = shard.parents.iter().filter_map(|parent| stream.shard(*parent));
    parents.filter_map(|parent| parent.record.end).map(|end| end.closed_ms).max().unwrap_or(0)
}

fn check_creation(stream: &Stream, created: &Value) -> Result<(), ApiError> {
    // Clients give it back as they got it, and not all keep the milliseconds.
    let created_s = timestamp_ms(created).map(|ms| ms.div_euclid(1000));
    if created_s == i64::try_from(stream.record.created_ms / 1000).ok() {
        return Ok(());
    }
    let StreamName { name, account_id, .. } = &stream.name;
    Err(ApiError::resource_not_found(format!(
        "Stream {name} under account {account_id} with creation timestamp {created} not found."
    )))
}

/// The index of a shard by its id. The service takes whatever ends in a number, behind a hyphen or
/// alone (observed by kinesalite).
///
/// # Errors
/// ResourceNotFoundException: it can be no shard's.
pub(super) fn index_of(shard_id: &str, stream: &StreamName) -> Result<u32, ApiError> {
    let number = shard_id.split('-').nth(1).filter(|part| !part.is_empty()).unwrap_or(shard_id);
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let index = number.parse().ok().filter(|index| digits && *index <= SHARD_INDEX_MAX);
    index.ok_or_else(|| no_shard(shard_id, stream))
}

/// The index of a shard that a stream has or had lately, and its record.
///
/// # Errors
/// ResourceNotFoundException.
pub(super) fn shard_of<'s>(
    stream: &'s Stream,
    shard_id: &str,
    now_ms: u64,
) -> Result<(u32, &'s ShardRecord), ApiError> {
    let index = index_of(shard_id, &stream.name)?;
    let shard = stream.shard(index).map(|shard| &shard.record);
    let shard = shard.filter(|shard| !is_expired(stream, shard, now_ms));
    Ok((index, shard.ok_or_else(|| no_shard(&shard_name(index), &stream.name))?))
}

fn no_shard(shard_id: &str, stream: &StreamName) -> ApiError {
    ApiError::resource_not_found(format!(
        "Could not find shard {shard_id} in stream {} under account {}.",
        stream.name, stream.account_id
    ))
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
    fn shards_are_named_by_whatever_ends_in_their_number() {
        for (id, index) in [
            ("shardId-000000000007", 7),
            ("shardId-7", 7),
            ("any-7", 7),
            ("-00002147483647", 2_147_483_647),
            ("2147483647", 2_147_483_647),
        ] {
            assert_eq!(index_of(id, &name()), Ok(index), "{id}");
        }
        for id in ["2147483648", "shardId-002147483648", "ABKLFD8", "2.14E4", "+7", "shardId-", "-"]
        {
            let error = index_of(id, &name()).expect_err(id);
            let told = "in stream orders under account 123456789012.";
            assert_eq!(error.message, format!("Could not find shard {id} {told}"));
        }
    }

    #[test]
    fn a_place_is_what_it_was() {
        let StreamName { account_id, region, name } = name();
        for filter in [Filter::All, Filter::Latest, Filter::At(7), Filter::From(u64::MAX)] {
            let (account_id, region, name) = (account_id.clone(), region.clone(), name.clone());
            let place = Place { account_id, region, name, id: u64::MAX, after: Some(3), filter };
            let mut content = Vec::new();
            place.encode(&mut content);
            assert_eq!(Place::decode(&content), Some(place));
        }
        assert_eq!(Place::decode(b"{}"), None);
    }
}
