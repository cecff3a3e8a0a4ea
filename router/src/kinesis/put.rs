//! PutRecord and PutRecords: records find their shards, travel there side by side, and each is told
//! what became of it.
//!
//! The records of a call for one shard stay in the call's order. A shard that ends while they are on
//! their way has not taken them, or tells where it did; those that it has not are dealt out anew
//! among its children, once they are there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use thalweg_wire::build::NewRecord;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::Offset;
use thalweg_wire::limits::RECORD_BYTES_MAX;
use thalweg_wire::sequence_number::{DecimalWriter, SequenceNumber};
use tokio::time::Instant;

use super::answers::{EncryptionType, PutRecordsWriter, encode_put_record};
use super::codec::Encoding;
use super::error::{ApiError, ErrorKind};
use super::records::{
    Entry, PutRecordRequest, PutRecordsRequest, StreamReference, decode_put_record,
    decode_put_records,
};
use super::server::ApiResponse;
use super::service::{Call, Service, check_serving, not_found};
use super::sigv4::Authenticator;
use super::validate::{VIOLATIONS_MAX, violated};
use crate::control::catalog::Stream;
use crate::control::record::{Encryption, shard_id, shard_name};
use crate::control::store::Store;
use crate::metrics::stream::Written;
use crate::route::{AppendError, Position, ShardRecords};

/// Data and partition keys of a PutRecords request at most (API reference, PutRecords).
const REQUEST_BYTES_MAX: usize = 10 << 20;
/// How long records wait for a shard that has ended to have children. A reshard takes milliseconds;
/// a node that restarts, some seconds.
const RESHARD_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const RESHARD_LOOK: Duration = Duration::from_millis(5);
/// What an entry says whose records may or may not be stored (API model, PutRecordsResultEntry).
const INTERNAL_FAILURE: (&str, &str) = ("InternalFailure", "Internal Service Failure");

/// A record that has its place among the hash keys.
struct Placed<'a> {
    /// Its index in the request.
    index: usize,
    hash_key: HashKey,
    entry: &'a Entry<'a>,
}

/// Where a record is stored.
#[derive(Clone, Copy, Debug)]
struct Stored {
    shard: u32,
    /// Second in which the shard was created.
    created_s: u64,
    position: Position,
}

impl Stored {
    fn number(&self) -> SequenceNumber {
        SequenceNumber {
            shard_created_s: self.created_s,
            sequence_index: self.position.offset.0,
            time_s: self.position.append_time_ms / 1000,
            shard_index: self.shard,
        }
    }
}

/// What became of a call's records.
struct Outcome {
    /// Of each, in their order.
    fates: Vec<Fate>,
    /// Of all.
    written: Written,
}

/// What became of a record.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Stored(Stored),
    /// Its shard's rate is used up.
    Throttled {
        shard: u32,
    },
    /// It may or may not be stored.
    Failed,
}

impl<S: Store + Clone> Service<S> {
    /// PutRecord.
    pub(super) async fn put_record(
        &self,
        call: &Call,
        body: &[u8],
    ) -> Result<ApiResponse, ApiError> {
        let request = decode_put_record(call.encoding, body)?;
        let stream = self.stream_to_write(call, &request.stream)?;
        let mut written = Written::default();
        let answer = self.put_one(call, &stream, request, &mut written).await;
        stream.counts().note_put_record(call.began.elapsed(), &written);
        answer
    }

    async fn put_one(
        &self,
        call: &Call,
        stream: &Stream,
        request: PutRecordRequest<'_>,
        written: &mut Written,
    ) -> Result<ApiResponse, ApiError> {
        check_serving(stream)?;
        if let Some(number) = &request.sequence_number_for_ordering {
            check_ordering(stream, number)?;
        }
        let entries = [request.record];
        let placed = place(stream, &entries, None)?;
        if request.dry_run {
            return Err(dry_run());
        }
        let outcome = self.store_records(stream, placed, 1).await;
        *written = outcome.written;
        match outcome.fates[0] {
            Fate::Stored(stored) => {
                let mut body = Vec::new();
                encode_put_record(
                    call.encoding,
                    &mut body,
                    &shard_name(stored.shard),
                    &stored.number().to_decimal(),
                    Some(encryption_type(stream)),
                );
                Ok(ApiResponse::Whole(body.into()))
            }
            Fate::Throttled { shard } => {
                Err(ApiError::throughput_exceeded(throttle_message(stream, shard)))
            }
            Fate::Failed => {
                self.check_still_there(stream)?;
                Err(ApiError::internal_failure())
            }
        }
    }

    /// PutRecords.
    pub(super) async fn put_records(
        &self,
        call: &Call,
        body: &[u8],
    ) -> Result<ApiResponse, ApiError> {
        let request = decode_put_records(call.encoding, body)?;
        let stream = self.stream_to_write(call, &request.stream)?;
        let mut written = Written::default();
        let answer = self.put_many(call, &stream, &request, &mut written).await;
        stream.counts().note_put_records(call.began.elapsed(), &written);
        answer
    }

    async fn put_many(
        &self,
        call: &Call,
        stream: &Stream,
        request: &PutRecordsRequest<'_>,
        written: &mut Written,
    ) -> Result<ApiResponse, ApiError> {
        check_serving(stream)?;
        let placed = place(stream, &request.records, Some(REQUEST_BYTES_MAX))?;
        if request.dry_run {
            return Err(dry_run());
        }
        let outcome = self.store_records(stream, placed, request.records.len()).await;
        *written = outcome.written;
        if outcome.fates.iter().all(|fate| matches!(fate, Fate::Failed)) {
            self.check_still_there(stream)?;
        }
        let body = answer(call.encoding, stream, &outcome.fates);
        Ok(ApiResponse::Whole(Bytes::from(body)))
    }

    /// Whether a stream into which nothing could be written may be written to after all.
    ///
    /// # Errors
    /// ResourceNotFoundException: it has gone meanwhile, and to try again is in vain.
    fn check_still_there(&self, stream: &Stream) -> Result<(), ApiError> {
        match self.ground.catalog.stream_of(stream.id()) {
            Some(now) => check_serving(&now),
            None => Err(not_found(&stream.name)),
        }
    }

    /// The stream of a write, if the caller may write to it.
    fn stream_to_write(
        &self,
        call: &Call,
        named: &StreamReference<'_>,
    ) -> Result<Arc<Stream>, ApiError> {
        let (name, arn) = (named.name.as_deref(), named.arn.as_deref());
        self.authorized_stream(call, name, arn)
    }

    /// Stores records, those of each shard together; answers what became of each, in their order.
    async fn store_records(
        &self,
        stream: &Stream,
        placed: Vec<Placed<'_>>,
        count: usize,
    ) -> Outcome {
        let mut fates = vec![Fate::Failed; count];
        let mut written = Written::default();
        let deadline = Instant::now() + RESHARD_PATIENCE;
        let mut left = placed;
        while !left.is_empty() {
            // As it is now: its shards may be others than when the call began.
            let Some(now) = self.ground.catalog.stream_of(stream.id()) else { break };
            let (groups, homeless) = by_shard(&now, left);
            let appends =
                groups.into_iter().map(|(shard, records)| self.append(&now, shard, records));
            left = homeless;
            for (shard, appended, records) in join_all(appends).await {
                let mut of_shard = Written::default();
                for (record, result) in records.into_iter().zip(appended) {
                    match result {
                        Ok(stored) => {
                            of_shard.add_stored(bytes_of(record.entry));
                            fates[record.index] = Fate::Stored(stored);
                        }
                        Err(AppendError::Throttled { .. }) => {
                            of_shard.throttled += 1;
                            fates[record.index] = Fate::Throttled { shard };
                        }
                        Err(error) if is_to_be_dealt_anew(&error) => left.push(record),
                        Err(error) => {
                            tracing::debug!(stream = %stream.name, %error, "a record failed");
                        }
                    }
                }
                written.add(&of_shard);
                if let Some(counts) = now.shard_counts(shard) {
                    counts.note_written(&of_shard);
                }
            }
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            left.sort_unstable_by_key(|record| record.index);
            self.wait_for_other_shards(&now, &left, deadline).await;
        }
        written.failed = count as u64 - written.records - written.throttled;
        Outcome { fates, written }
    }

    /// Appends a shard's records, and says where each stands.
    async fn append<'a>(
        &self,
        stream: &Stream,
        shard: u32,
        records: Vec<Placed<'a>>,
    ) -> (u32, Vec<Result<Stored, AppendError>>, Vec<Placed<'a>>) {
        let created_s = stream.shard(shard).map_or(0, |shard| shard.record.created_s);
        let batch = lay_out(&records);
        let appended = self.ground.writer.append(shard_id(stream.id(), shard), batch).await;
        let stored = |position| Stored { shard, created_s, position };
        let results = appended.records().map(|result| result.map(stored)).collect();
        (shard, results, records)
    }

    /// Waits until one of the records would go to another shard than it does in `stream`, or
    /// to one at all.
    async fn wait_for_other_shards(
        &self,
        stream: &Stream,
        records: &[Placed<'_>],
        deadline: Instant,
    ) {
        while Instant::now() < deadline {
            tokio::time::sleep(RESHARD_LOOK).await;
            let Some(now) = self.ground.catalog.stream_of(stream.id()) else { return };
            let moved = |record: &Placed<'_>| {
                now.shard_of(record.hash_key) != stream.shard_of(record.hash_key)
            };
            if records.iter().any(moved) {
                return;
            }
        }
    }
}

/// A shard's records as they leave for its node.
fn lay_out(records: &[Placed<'_>]) -> ShardRecords {
    let keys: usize = records.iter().map(|record| key_of(record.entry).len()).sum();
    let data: usize = records.iter().map(|record| record.entry.data.len()).sum();
    let mut batch = ShardRecords::with_room(records.len() as u32, keys as u64, data as u64);
    for Placed { hash_key, entry, .. } in records {
        let (hash_key, key) = (*hash_key, key_of(entry));
        let record = NewRecord { hash_key, client_time_ms: 0, key, data: &[] };
        let pushed = batch.push_written(&record, entry.data.len(), |place| {
            entry.data.copy_to(place);
        });
        pushed.expect("sizes were judged before");
    }
    batch
}

/// The answer to PutRecords.
fn answer(encoding: Encoding, stream: &Stream, fates: &[Fate]) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + fates.len() * 160);
    let mut numbers = DecimalWriter::new();
    let mut writer = PutRecordsWriter::new(encoding, &mut body);
    for fate in fates {
        match *fate {
            Fate::Stored(stored) => {
                let number = numbers.write(stored.number());
                writer.push_stored(&shard_name(stored.shard), number);
            }
            Fate::Throttled { shard } => {
                let code = ErrorKind::ProvisionedThroughputExceeded.name();
                writer.push_failed(code, &throttle_message(stream, shard));
            }
            Fate::Failed => writer.push_failed(INTERNAL_FAILURE.0, INTERNAL_FAILURE.1),
        }
    }
    writer.finish(Some(encryption_type(stream)));
    body
}

/// Whether the records were not stored because their shard takes none any more.
fn is_to_be_dealt_anew(error: &AppendError) -> bool {
    match error {
        AppendError::NoRoute { .. } => true,
        AppendError::Refused { refusal, .. } => matches!(
            refusal.code,
            ErrorCode::ExtentClosed | ErrorCode::HashOutOfRange | ErrorCode::UnknownShard
        ),
        _ => false,
    }
}

/// Records by the open shard that has their hash keys; those that have none now.
#[allow(clippy::type_complexity)]
fn by_shard<'a>(
    stream: &Stream,
    records: Vec<Placed<'a>>,
) -> (Vec<(u32, Vec<Placed<'a>>)>, Vec<Placed<'a>>) {
    let mut groups: Vec<(u32, Vec<Placed<'a>>)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let mut homeless = Vec::new();
    for record in records {
        let Some(shard) = stream.shard_of(record.hash_key) else {
            homeless.push(record);
            continue;
        };
        let place = *places.entry(shard).or_insert_with(|| {
            groups.push((shard, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(record);
    }
    (groups, homeless)
}

/// Judges a request's records and finds their hash keys.
fn place<'a>(
    stream: &Stream,
    entries: &'a [Entry<'a>],
    request_bytes_max: Option<usize>,
) -> Result<Vec<Placed<'a>>, ApiError> {
    check_constraints(stream, entries, request_bytes_max.is_some())?;
    let mut request_bytes = 0;
    let mut placed = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let bytes = bytes_of(entry);
        // What stands for a partition key that is not there takes its room at the nodes.
        let room = RECORD_BYTES_MAX as usize - (key_of(entry).len() + entry.data.len() - bytes);
        let record_bytes_max = stream.record.max_record_bytes().min(room);
        if bytes > record_bytes_max {
            return Err(ApiError::invalid_argument(format!(
                "Record {} has {bytes} bytes with its partition key, which is more than the \
                 stream's maximum record size of {record_bytes_max} bytes.",
                index + 1
            )));
        }
        request_bytes += bytes;
        placed.push(Placed { index, hash_key: hash_key_of(stream, entry)?, entry });
    }
    match request_bytes_max {
        Some(most) if request_bytes > most => {
            Err(ApiError::invalid_argument(format!("Records size exceeds {} MB limit", most >> 20)))
        }
        _ => Ok(placed),
    }
}

/// The partition key of a record whose producer gave none, as streams that distribute their records
/// allow: it must have one at the nodes, and readers are not told of this one, whatever the stream
/// does with its records by then. It is a byte that no text has, so that it is nobody's key.
pub(super) const NO_PARTITION_KEY: &[u8] = &[0xff];

fn key_of<'a>(entry: &'a Entry<'_>) -> &'a [u8] {
    entry.partition_key.as_deref().map_or(NO_PARTITION_KEY, str::as_bytes)
}

/// Bytes of a record as limits count them: data and partition key.
fn bytes_of(entry: &Entry<'_>) -> usize {
    entry.data.len() + entry.partition_key.as_deref().map_or(0, str::len)
}

/// What of a request's records breaks constraints that depend on the stream, in the words in which
/// the service tells of those that do not: data that is larger than its records may be (observed at
/// the service by users of the KPL 1.0.6), and a partition key that is not there.
fn check_constraints(
    stream: &Stream,
    entries: &[Entry<'_>],
    is_one_of_many: bool,
) -> Result<(), ApiError> {
    let data_bytes_max = stream.record.max_record_bytes();
    let violations = (1_usize..).zip(entries).flat_map(|(number, entry)| {
        let place = |member: &str| match is_one_of_many {
            true => format!("records.{number}.member.{member}"),
            false => member.to_owned(),
        };
        let data = (entry.data.len() > data_bytes_max).then(|| {
            format!(
                "Value at '{}' failed to satisfy constraint: Member must have length less than or \
                 equal to {data_bytes_max}",
                place("data")
            )
        });
        let needs_key = entry.partition_key.is_none() && !stream.record.distributes;
        let key = needs_key.then(|| {
            format!(
                "Value null at '{}' failed to satisfy constraint: Member must not be null",
                place("partitionKey")
            )
        });
        data.into_iter().chain(key)
    });
    Ok(violated(violations.take(VIOLATIONS_MAX).collect())?)
}

fn hash_key_of(stream: &Stream, entry: &Entry<'_>) -> Result<HashKey, ApiError> {
    if stream.record.distributes {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| {
            tracing::error!(%error, "the system gives no random numbers");
            ApiError::internal_failure()
        })?;
        return Ok(HashKey::from_bytes(random));
    }
    match &entry.explicit_hash_key {
        Some(text) => text.parse().map(HashKey).map_err(|_| {
            ApiError::invalid_argument(format!(
                "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. \
                 Specified value was {text}"
            ))
        }),
        None => Ok(HashKey::of_partition_key(key_of(entry))),
    }
}

/// A number that a record's is to exceed must be one of this stream. Every later record's does.
fn check_ordering(stream: &Stream, number: &str) -> Result<(), ApiError> {
    let is_known = SequenceNumber::from_decimal(number).is_ok_and(|number| {
        stream
            .shard(number.shard_index)
            .is_some_and(|shard| shard.record.created_s == number.shard_created_s)
    });
    if is_known || number == "0" {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!(
        "ExclusiveMinimumSequenceNumber {number} used in PutRecord on stream {} under account {} \
         is invalid.",
        stream.name.name, stream.name.account_id
    )))
}

/// What is answered to a dry run of what would succeed.
pub(super) fn dry_run() -> ApiError {
    let message = "Request would have succeeded, but the DryRun parameter was specified.";
    ApiError::new(ErrorKind::DryRunOperation, message)
}

/// How a stream's records are encrypted at rest.
pub(super) fn encryption_type(stream: &Stream) -> EncryptionType {
    match stream.record.encryption {
        Encryption::None => EncryptionType::None,
        Encryption::Kms { .. } => EncryptionType::Kms,
    }
}

/// What is said when a shard's rate is used up, as observed at the service.
pub(super) fn throttle_message(stream: &Stream, shard: u32) -> String {
    format!(
        "Rate exceeded for shard {} in stream {} under account {}.",
        shard_name(shard),
        stream.name.name,
        stream.name.account_id
    )
}

/// The way of a PutRecords request through the router but for HTTP, sockets and the wait for the
/// node: for counts of instructions and benchmarks, which take it again and again.
pub struct PutRecordsPath {
    authenticator: Authenticator,
    head: http::request::Parts,
    body: Vec<u8>,
    encoding: Encoding,
    at: SystemTime,
    stream: Stream,
}

impl PutRecordsPath {
    /// Of a signed request that comes at a time, for a stream whose shards are open.
    #[must_use]
    pub fn new(
        authenticator: Authenticator,
        (head, body): (http::request::Parts, Vec<u8>),
        encoding: Encoding,
        at: SystemTime,
        stream: Stream,
    ) -> PutRecordsPath {
        PutRecordsPath { authenticator, head, body, encoding, at, stream }
    }

    /// Takes it once; answers the bytes of the batches that leave for the node and of the answer.
    ///
    /// # Errors
    /// What the request's caller would be told.
    pub fn take(&self) -> Result<usize, ApiError> {
        self.authenticator.authenticate(&self.head, &self.body, self.at)?;
        let request = decode_put_records(self.encoding, &self.body)?;
        let placed = place(&self.stream, &request.records, Some(REQUEST_BYTES_MAX))?;
        let (groups, homeless) = by_shard(&self.stream, placed);
        if let Some(record) = homeless.first() {
            let message = format!("No shard is open for the hash key {}.", record.hash_key.0);
            return Err(ApiError::invalid_argument(message));
        }
        let mut fates = vec![Fate::Failed; request.records.len()];
        let mut batch_bytes = 0;
        for (shard, records) in groups {
            batch_bytes += lay_out(&records).close().iter().map(|b| b.body().len()).sum::<usize>();
            let created_s = self.stream.shard(shard).map_or(0, |shard| shard.record.created_s);
            for (offset, record) in (0..).zip(records) {
                let position =
                    Position { offset: Offset(offset), append_time_ms: 1000 * created_s };
                fates[record.index] = Fate::Stored(Stored { shard, created_s, position });
            }
        }
        Ok(batch_bytes + answer(self.encoding, &self.stream, &fates).len())
    }
}
