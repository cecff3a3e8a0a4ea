//! Where reading begins, and the shard iterators that name it.
//!
//! A shard iterator is a token (see [`super::token`]): the stream's incarnation, the shard and the
//! place where it goes on. Nothing is kept of it here, so that any router serves any iterator.
//! LATEST becomes an offset before it is answered: what is put after the answer is read.

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::Deserialize;
use serde_json::{Value, json};
use thalweg_wire::fetch::FetchFrom;
use thalweg_wire::ids::{Offset, StreamId};
use thalweg_wire::sequence_number::{SequenceNumber, SequenceNumberError};

use super::codec::timestamp_ms;
use super::error::{ApiError, ErrorKind};
use super::put::{dry_run, throttle_message};
use super::service::{Call, Service, check_serving, read};
use super::shards::index_of;
use super::token::{TokenContent, TokenError, TokenKind};
use crate::control::catalog::Stream;
use crate::control::record::{ShardRecord, StreamName, shard_id, shard_name};
use crate::control::retention::is_expired;
use crate::control::store::Store;
use crate::route::FetchError;

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &["GetShardIterator"];

/// A place in a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// At an offset; where that is trimmed, at the oldest record.
    Offset(Offset),
    /// At the first record that came at or after this time, milliseconds since 1970.
    Time(u64),
    /// At the oldest record.
    Earliest,
}

impl Place {
    /// As a node is asked for it.
    pub(super) fn fetch_from(self) -> FetchFrom {
        match self {
            Place::Offset(offset) => FetchFrom::Offset(offset),
            Place::Time(time_ms) => FetchFrom::Time(time_ms),
            Place::Earliest => FetchFrom::Earliest,
        }
    }
}

/// What a shard iterator holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ShardIterator {
    /// The stream's incarnation.
    pub(super) stream: StreamId,
    /// The shard's index.
    pub(super) shard: u32,
    /// Where to go on.
    pub(super) place: Place,
}

/// Stream (u64), shard (u32), what the place is (u8), its value (u64): big-endian.
const ITERATOR_BYTES: usize = 21;

impl TokenContent for ShardIterator {
    const KIND: TokenKind = TokenKind::ShardIterator;

    fn encode(&self, to: &mut Vec<u8>) {
        let (kind, value) = match self.place {
            Place::Offset(offset) => (0, offset.0),
            Place::Time(time_ms) => (1, time_ms),
            Place::Earliest => (2, 0),
        };
        to.extend_from_slice(&self.stream.0.to_be_bytes());
        to.extend_from_slice(&self.shard.to_be_bytes());
        to.push(kind);
        to.extend_from_slice(&u64::to_be_bytes(value));
    }

    fn decode(content: &[u8]) -> Option<ShardIterator> {
        let content: &[u8; ITERATOR_BYTES] = content.try_into().ok()?;
        let value = u64::from_be_bytes(*content.last_chunk()?);
        let place = match content[12] {
            0 => Place::Offset(Offset(value)),
            1 => Place::Time(value),
            2 => Place::Earliest,
            _ => return None,
        };
        let stream = StreamId(u64::from_be_bytes(*content.first_chunk()?));
        let shard = u32::from_be_bytes(*content[8..].first_chunk()?);
        Some(ShardIterator { stream, shard, place })
    }
}

/// Where a caller wants to begin: the members of GetShardIterator and of a StartingPosition.
#[derive(Debug)]
pub(super) struct StartingPosition {
    /// `ShardIteratorType`.
    pub(super) kind: String,
    /// Of AT_SEQUENCE_NUMBER and AFTER_SEQUENCE_NUMBER.
    pub(super) sequence_number: Option<String>,
    /// Of AT_TIMESTAMP: seconds since 1970. The API has no other use for it.
    pub(super) timestamp: Option<Value>,
}

/// Where reading begins, as far as that is known without asking the shard's node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    At(Place),
    /// Behind the newest record of an open shard.
    Latest,
}

impl StartingPosition {
    /// Judges the position. `operation` is what a message calls the caller's operation.
    ///
    /// # Errors
    /// InvalidArgumentException, in the service's words.
    pub(super) fn start(
        &self,
        operation: &str,
        stream: &StreamName,
        (index, shard): (u32, &ShardRecord),
        now_ms: u64,
    ) -> Result<Start, ApiError> {
        match (self.kind.as_str(), &self.sequence_number) {
            ("TRIM_HORIZON", None) => Ok(Start::At(Place::Earliest)),
            ("LATEST", None) => Ok(match &shard.end {
                Some(end) => Start::At(Place::Offset(Offset(end.offset))),
                None => Start::Latest,
            }),
            ("AT_TIMESTAMP", None) => {
                self.time(now_ms).map(|time_ms| Start::At(Place::Time(time_ms)))
            }
            (kind @ ("AT_SEQUENCE_NUMBER" | "AFTER_SEQUENCE_NUMBER"), Some(number)) => {
                let offset = offset_of(operation, stream, (index, shard), number)?;
                Ok(Start::At(Place::Offset(match kind {
                    "AT_SEQUENCE_NUMBER" => offset.at,
                    _ => offset.after,
                })))
            }
            (kind, number) => {
                let number = if number.is_some() { "also a" } else { "no" };
                Err(ApiError::invalid_argument(format!(
                    "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and \
                     StartingSequenceNumber or (2) TRIM_HORIZON or LATEST and no \
                     StartingSequenceNumber. Request specified {kind} and {number} \
                     StartingSequenceNumber."
                )))
            }
        }
    }

    fn time(&self, now_ms: u64) -> Result<u64, ApiError> {
        let time_ms = self.timestamp.as_ref().and_then(timestamp_ms).ok_or_else(|| {
            ApiError::invalid_argument(
                "Must specify timestampInMillis parameter for iterator of type AT_TIMESTAMP. \
                 Current request has no timestamp parameter.",
            )
        })?;
        // A time before 1970 is before all records.
        let time_ms = u64::try_from(time_ms).unwrap_or(0);
        if time_ms > now_ms {
            return Err(ApiError::invalid_argument(format!(
                "The timestampInMillis parameter cannot be greater than the \
                 currentTimestampInMillis. timestampInMillis: {time_ms}, \
                 currentTimestampInMillis: {now_ms}"
            )));
        }
        Ok(time_ms)
    }
}

/// The offsets that a sequence number stands for.
struct NumberedOffset {
    at: Offset,
    after: Offset,
}

/// Judges a sequence number of a shard.
fn offset_of(
    operation: &str,
    stream: &StreamName,
    (index, shard): (u32, &ShardRecord),
    text: &str,
) -> Result<NumberedOffset, ApiError> {
    let invalid = |why: &str| {
        ApiError::invalid_argument(format!(
            "StartingSequenceNumber {text} used in {operation} on shard {} in stream {} under \
             account {} is invalid{why}.",
            shard_name(index),
            stream.name,
            stream.account_id
        ))
    };
    const FOREIGN: &str = " because it did not come from this stream";
    let number = SequenceNumber::from_decimal(text).map_err(|error| match error {
        SequenceNumberError::NotANumber => invalid(""),
        SequenceNumberError::OtherVersion => invalid(FOREIGN),
    })?;
    if number.shard_index != index {
        return Err(ApiError::invalid_argument(format!(
            "Invalid StartingSequenceNumber. It encodes {}, while it was used in a call to a \
             shard with {}",
            shard_name(number.shard_index),
            shard_name(index)
        )));
    }
    if number.shard_created_s != shard.created_s {
        return Err(invalid(FOREIGN));
    }
    let at = number.sequence_index;
    let after = if number.time_s == PLACE_TIME_S { at } else { at.saturating_add(1) };
    Ok(NumberedOffset { at: Offset(at), after: Offset(after) })
}

/// The second of a sequence number that names a place between records instead of a record: no
/// record has it.
const PLACE_TIME_S: u64 = 0;

/// The sequence number of the place before an offset. At it and after it, reading begins with the
/// record that has, or will have, that offset; its own number is higher.
pub(super) fn place_number(index: u32, shard: &ShardRecord, before: Offset) -> String {
    let number = SequenceNumber {
        shard_created_s: shard.created_s,
        sequence_index: before.0,
        time_s: PLACE_TIME_S,
        shard_index: index,
    };
    number.to_decimal()
}

/// A shard of a stream, by its name, in any of the ways in which the service takes it: see
/// [`index_of`]. One that has expired is not there any more.
///
/// # Errors
/// ResourceNotFoundException, in the service's words.
pub(super) fn find_shard<'a>(
    stream: &'a Stream,
    name: &str,
    now_ms: u64,
) -> Result<(u32, &'a ShardRecord), ApiError> {
    let index = index_of(name, &stream.name)?;
    let shard = stream.shard(index).map(|shard| &shard.record);
    let shard = shard.filter(|shard| !is_expired(stream, shard, now_ms));
    Ok((index, shard.ok_or_else(|| no_shard(stream, index))?))
}

/// The service's error for a shard that is not there, or not any more.
pub(super) fn no_shard(stream: &Stream, index: u32) -> ApiError {
    ApiError::resource_not_found(format!(
        "Shard {} in stream {} under account {} does not exist",
        shard_name(index),
        stream.name.name,
        stream.name.account_id
    ))
}

/// What a caller is told when a node does not give what was asked for, or there is no memory for it:
/// it may try again.
pub(super) fn read_failure(error: &FetchError) -> ApiError {
    if matches!(error, FetchError::NoMemory { .. }) {
        tracing::debug!(%error, "a shard could not be read");
        return ApiError::service_unavailable(
            "There is no memory for what is to be read now: try again later.",
        );
    }
    tracing::warn!(%error, "a shard could not be read");
    internal_failure()
}

/// The failure of an operation whose model names its type.
pub(super) fn internal_failure() -> ApiError {
    let message = ApiError::internal_failure().message;
    ApiError::new(ErrorKind::InternalFailureException, message)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetShardIteratorInput {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_id: String,
    shard_iterator_type: String,
    starting_sequence_number: Option<String>,
    timestamp: Option<Value>,
    #[serde(default)]
    dry_run: bool,
}

impl<S: Store + Clone> Service<S> {
    /// Serves the operations of this file.
    pub(super) async fn iterators(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        let input: GetShardIteratorInput = read(input)?;
        let (name, arn) = (input.stream_name.as_deref(), input.stream_arn.as_deref());
        let stream = self.authorized_stream(call, name, arn)?;
        check_serving(&stream)?;
        let shard = find_shard(&stream, &input.shard_id, call.now_ms)?;
        let position = StartingPosition {
            kind: input.shard_iterator_type,
            sequence_number: input.starting_sequence_number,
            timestamp: input.timestamp,
        };
        let start = position.start("GetShardIterator", &stream.name, shard, call.now_ms)?;
        if self.settings.limits
            && !self.reading.limits.admit_iterator(shard_id(stream.id(), shard.0))
        {
            return Err(ApiError::throughput_exceeded(throttle_message(&stream, shard.0)));
        }
        if input.dry_run {
            return Err(dry_run());
        }
        let place = self.resolve(&stream, shard.0, start).await?;
        let iterator = ShardIterator { stream: stream.id(), shard: shard.0, place };
        let token = self.seal_iterator(&iterator).await?;
        Ok(Some(json!({ "ShardIterator": token })))
    }

    /// Asks a shard's node where its records end, if that is where reading begins.
    ///
    /// # Errors
    /// InternalFailureException when the node does not answer.
    pub(super) async fn resolve(
        &self,
        stream: &Stream,
        shard: u32,
        start: Start,
    ) -> Result<Place, ApiError> {
        let Start::At(place) = start else {
            let shard = shard_id(stream.id(), shard);
            let wait = std::time::Duration::ZERO;
            let latest = self.ground.fetcher.fetch(shard, FetchFrom::Latest, 0, wait).await;
            let latest = latest.map_err(|error| read_failure(&error))?;
            return Ok(Place::Offset(latest.head().next));
        };
        Ok(place)
    }

    /// The text of a shard iterator.
    ///
    /// # Errors
    /// InternalFailureException: there are no keys.
    pub(super) async fn seal_iterator(&self, iterator: &ShardIterator) -> Result<String, ApiError> {
        self.tokens.seal(iterator).await.map_err(|error| no_token(&error))
    }

    /// What a shard iterator says.
    ///
    /// # Errors
    /// InvalidArgumentException when it is none of ours; ExpiredIteratorException.
    pub(super) async fn open_iterator(&self, text: &str) -> Result<ShardIterator, ApiError> {
        self.tokens.open(text).await.map_err(|error| no_token(&error))
    }
}

/// What is wrong with an iterator, in the service's words.
fn no_token(error: &TokenError) -> ApiError {
    match error {
        TokenError::Invalid => ApiError::invalid_argument("Invalid ShardIterator."),
        TokenError::Expired { issued_ms, now_ms, lifetime } => ApiError::new(
            ErrorKind::ExpiredIterator,
            format!(
                "Iterator expired. The iterator was created at time {} while right now it is {} \
                 which is further in the future than the tolerated delay of {} milliseconds.",
                utc_text(*issued_ms),
                utc_text(*now_ms),
                lifetime.as_millis()
            ),
        ),
        TokenError::Keys(error) => {
            tracing::error!(%error, "a shard iterator can be neither made nor read");
            internal_failure()
        }
    }
}

/// As `Thu Jan 22 01:22:02 UTC 2015`: how the service has times in messages.
fn utc_text(ms: u64) -> String {
    let time = DateTime::from_secs((ms / 1000) as i64);
    let date = time.fmt(Format::HttpDate).unwrap_or_default();
    // As `Thu, 22 Jan 2015 01:22:02 GMT`.
    let parts: Vec<&str> = date.split([',', ' ']).filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [weekday, day, month, year, clock, _] => {
            format!("{weekday} {month} {day} {clock} UTC {year}")
        }
        _ => format!("{ms} ms since 1970"),
    }
}

#[cfg(test)]
mod tests {
    use thalweg_wire::hash_range::HashRange;

    use super::*;
    use crate::control::record::{RECORD_VERSION, ShardEnd};

    const NOW_MS: u64 = 1_795_521_600_500;
    const CREATED_S: u64 = 1_795_000_000;

    fn shard(end: Option<u64>) -> ShardRecord {
        let end = end.map(|offset| ShardEnd { offset, closed_ms: NOW_MS });
        let (range, parents) = (HashRange::FULL, Vec::new());
        ShardRecord { version: RECORD_VERSION, range, created_s: CREATED_S, parents, end, node: 0 }
    }

    fn name() -> StreamName {
        StreamName {
            account_id: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            name: "orders".to_owned(),
        }
    }

    fn start(
        kind: &str,
        number: Option<&str>,
        timestamp: Option<f64>,
        shard: &ShardRecord,
    ) -> Result<Start, String> {
        let position = StartingPosition {
            kind: kind.to_owned(),
            sequence_number: number.map(str::to_owned),
            timestamp: timestamp.map(Value::from),
        };
        let start = position.start("GetShardIterator", &name(), (17, shard), NOW_MS);
        start.map_err(|error| {
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            error.message
        })
    }

    fn number(offset: u64, time_s: u64) -> SequenceNumber {
        SequenceNumber {
            shard_created_s: CREATED_S,
            sequence_index: offset,
            time_s,
            shard_index: 17,
        }
    }

    #[test]
    fn each_type_begins_where_it_says() {
        let (open, closed) = (shard(None), shard(Some(50)));
        let at = |offset| Ok(Start::At(Place::Offset(Offset(offset))));
        assert_eq!(start("TRIM_HORIZON", None, None, &open), Ok(Start::At(Place::Earliest)));
        assert_eq!(start("LATEST", None, None, &open), Ok(Start::Latest));
        assert_eq!(start("LATEST", None, None, &closed), at(50));
        let time = Ok(Start::At(Place::Time(1_795_521_600_123)));
        assert_eq!(start("AT_TIMESTAMP", None, Some(1_795_521_600.123), &open), time);
        let early = start("AT_TIMESTAMP", None, Some(-5.0), &open);
        assert_eq!(early, Ok(Start::At(Place::Time(0))));
        let record = number(9, CREATED_S + 3).to_decimal();
        assert_eq!(start("AT_SEQUENCE_NUMBER", Some(&record), None, &open), at(9));
        assert_eq!(start("AFTER_SEQUENCE_NUMBER", Some(&record), None, &open), at(10));
    }

    /// A number that names a place, as a continuation does, is no record's: nothing is passed over
    /// after it, and nothing is given twice at it.
    #[test]
    fn at_and_after_a_place_are_the_same() {
        let open = shard(None);
        for offset in [0, 9, u64::MAX] {
            let place = place_number(17, &open, Offset(offset));
            for kind in ["AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"] {
                let found = start(kind, Some(&place), None, &open);
                assert_eq!(found, Ok(Start::At(Place::Offset(Offset(offset)))), "{kind}");
            }
            assert!(place < number(offset, CREATED_S).to_decimal());
        }
        assert!(place_number(17, &open, Offset(9)) > number(8, NOW_MS / 1000).to_decimal());
    }

    #[test]
    fn positions_that_contradict_themselves_are_refused_in_the_services_words() {
        let open = shard(None);
        let record = number(9, CREATED_S).to_decimal();
        for (kind, number, specified) in [
            ("AT_SEQUENCE_NUMBER", None, "AT_SEQUENCE_NUMBER and no StartingSequenceNumber."),
            ("AFTER_SEQUENCE_NUMBER", None, "AFTER_SEQUENCE_NUMBER and no StartingSequenceNumber."),
            ("LATEST", Some(&*record), "LATEST and also a StartingSequenceNumber."),
            ("TRIM_HORIZON", Some(&*record), "TRIM_HORIZON and also a StartingSequenceNumber."),
            ("AT_TIMESTAMP", Some(&*record), "AT_TIMESTAMP and also a StartingSequenceNumber."),
        ] {
            let message = start(kind, number, None, &open).expect_err("it is refused");
            let first = "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and \
                         StartingSequenceNumber or (2) TRIM_HORIZON or LATEST and no \
                         StartingSequenceNumber. Request specified ";
            assert_eq!(message, format!("{first}{specified}"));
        }
        let message = start("AT_TIMESTAMP", None, None, &open).expect_err("no time");
        assert!(message.starts_with("Must specify timestampInMillis parameter"), "{message}");
        let message = start("AT_TIMESTAMP", None, Some(1_795_521_600.501), &open);
        assert_eq!(
            message.expect_err("it lies ahead"),
            "The timestampInMillis parameter cannot be greater than the \
             currentTimestampInMillis. timestampInMillis: 1795521600501, \
             currentTimestampInMillis: 1795521600500"
        );
    }

    #[test]
    fn numbers_of_other_shards_and_streams_are_refused_in_the_services_words() {
        let open = shard(None);
        let refused = |number: &str| {
            start("AT_SEQUENCE_NUMBER", Some(number), None, &open).expect_err("it is refused")
        };
        let other_shard = SequenceNumber { shard_index: 3, ..number(0, CREATED_S) }.to_decimal();
        assert_eq!(
            refused(&other_shard),
            "Invalid StartingSequenceNumber. It encodes shardId-000000000003, while it was used \
             in a call to a shard with shardId-000000000017"
        );
        let used = |number: &str| {
            format!(
                "StartingSequenceNumber {number} used in GetShardIterator on shard \
                 shardId-000000000017 in stream orders under account 123456789012 is invalid"
            )
        };
        let foreign = SequenceNumber { shard_created_s: 5, ..number(0, CREATED_S) }.to_decimal();
        for number in [&*foreign, "0", "1"] {
            let because = " because it did not come from this stream.";
            assert_eq!(refused(number), used(number) + because);
        }
        let too_long = "9".repeat(129);
        assert_eq!(refused(&too_long), used(&too_long) + ".");
    }

    #[test]
    fn iterators_round_trip_and_nothing_else_is_one() {
        for place in [Place::Offset(Offset(u64::MAX)), Place::Time(NOW_MS), Place::Earliest] {
            let iterator = ShardIterator { stream: StreamId(0x1234_5678_9abc), shard: 17, place };
            let mut bytes = Vec::new();
            iterator.encode(&mut bytes);
            assert_eq!(ShardIterator::decode(&bytes), Some(iterator));
            assert_eq!(ShardIterator::decode(&bytes[1..]), None);
            bytes[12] = 3;
            assert_eq!(ShardIterator::decode(&bytes), None);
        }
    }

    #[test]
    fn an_iterator_that_has_expired_is_told_so_in_the_services_words() {
        let error = no_token(&TokenError::Expired {
            issued_ms: 1_421_889_722_000,
            now_ms: 1_421_890_022_001,
            lifetime: std::time::Duration::from_secs(300),
        });
        assert_eq!(error.kind, ErrorKind::ExpiredIterator);
        assert_eq!(
            error.message,
            "Iterator expired. The iterator was created at time Thu Jan 22 01:22:02 UTC 2015 \
             while right now it is Thu Jan 22 01:27:02 UTC 2015 which is further in the future \
             than the tolerated delay of 300000 milliseconds."
        );
    }
}
