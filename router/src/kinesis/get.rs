//! GetRecords: what a shard has from an iterator on, as much as an answer holds, and the iterator
//! with which to go on.

use std::future::{poll_fn, ready};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::Either;
use serde::Deserialize;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::Offset;
use thalweg_wire::limits::FETCH_BYTES_MAX;

use super::answers::{ChildShardView, GetRecordsEnd, RecordsWriter};
use super::codec::Encoding;
use super::error::ApiError;
use super::iterators::{Place, ShardIterator, no_shard, read_failure};
use super::policy::RequestTags;
use super::put::{dry_run, throttle_message};
use super::reading::{Children, RecordSource, millis_behind, record_bytes};
use super::server::ApiResponse;
use super::service::{Call, Resource, Service, check_serving, not_found, parse_stream_arn, read};
use crate::control::catalog::Stream;
use crate::control::record::{shard_id, shard_name};
use crate::control::store::Store;
use crate::metrics::stream::Read;
use crate::route::{FetchError, Fetched};

/// Records of an answer, unless a caller wants fewer (API model, `GetRecordsInputLimit`).
const RECORDS_MAX: usize = 10_000;
/// Data and partition keys of an answer (API reference, GetRecords).
const BYTES_MAX: usize = 10 << 20;
/// Fetches for one answer. Shards whose batches are small need several; more than these take their
/// time, and a caller has to call again anyway.
const FETCHES_MAX: u32 = 16;
/// What is asked of a node for each record that a caller wants, and at the least. Batches come
/// whole: what of them is too much was sent in vain.
const FETCH_BYTES_PER_RECORD: usize = 2 << 10;
const FETCH_BYTES_MIN: usize = 16 << 10;
/// Times that reading begins anew because the place was trimmed meanwhile.
const TRIMMED_MAX: u32 = 3;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetRecordsInput {
    shard_iterator: String,
    limit: Option<usize>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// An answer in the making.
struct Pages<'b> {
    writer: RecordsWriter<'b>,
    source: RecordSource,
    records_max: usize,
    records: usize,
    bytes: usize,
    /// Where to go on.
    next: Place,
    millis_behind: u64,
}

/// What of a fetch belongs to an answer.
struct Page {
    /// Its first records, so many.
    records: usize,
    /// Bytes of their data and partition keys.
    bytes: usize,
    /// Whether more follows for which there is room.
    goes_on: bool,
}

/// An answer, and what is in it.
struct Outcome {
    body: Vec<u8>,
    read: Read,
}

impl<S: Store + Clone> Service<S> {
    /// GetRecords.
    pub(super) async fn get_records(
        &self,
        call: &Call,
        body: &[u8],
    ) -> Result<ApiResponse, ApiError> {
        let input: GetRecordsInput = read(self.input(call, body)?)?;
        let iterator = self.open_iterator(&input.shard_iterator).await?;
        let named = input.stream_arn.as_deref().map(parse_stream_arn).transpose()?;
        let Some(stream) = self.ground.catalog.stream_of(iterator.stream) else {
            return Err(match named {
                Some(name) => not_found(&name),
                None => ApiError::resource_not_found(format!(
                    "The stream of the shard iterator for {} does not exist any more.",
                    shard_name(iterator.shard)
                )),
            });
        };
        call.check_region(&stream.name)?;
        if let Some(named) = named.filter(|named| *named != stream.name) {
            return Err(ApiError::invalid_argument(format!(
                "The shard iterator is not one of the stream {}.",
                named.name
            )));
        }
        let asked = Resource {
            arn: &stream.name.arn(),
            account_id: &stream.name.account_id,
            policy: stream.record.policy.as_deref(),
            tags: Some(&stream.record.tags),
        };
        self.authorize_on(call, &call.action(), &asked, RequestTags::Nothing)?;
        let answer = self.get_some(call, &stream, &iterator, &input).await;
        let read = answer.as_ref().ok().map(|outcome| &outcome.read);
        stream.counts().note_get_records(call.began.elapsed(), read);
        if let (Some(read), Some(counts)) = (read, stream.shard_counts(iterator.shard)) {
            counts.note_read(read);
        }
        Ok(ApiResponse::Whole(answer?.body.into()))
    }

    /// Reads what a caller may have now.
    async fn get_some(
        &self,
        call: &Call,
        stream: &Stream,
        iterator: &ShardIterator,
        input: &GetRecordsInput,
    ) -> Result<Outcome, ApiError> {
        check_serving(stream)?;
        if stream.shard(iterator.shard).is_none() {
            return Err(no_shard(stream, iterator.shard));
        }
        let shard = shard_id(stream.id(), iterator.shard);
        if self.settings.limits && !self.reading.limits.admit_read(shard) {
            stream.counts().note_read_throttled();
            if let Some(counts) = stream.shard_counts(iterator.shard) {
                counts.note_read_throttled();
            }
            return Err(ApiError::throughput_exceeded(throttle_message(stream, iterator.shard)));
        }
        if input.dry_run {
            return Err(dry_run());
        }
        let limit = input.limit.map_or(RECORDS_MAX, |limit| limit.min(RECORDS_MAX));
        let outcome = self.read_shard(call, stream, iterator, limit).await?;
        if self.settings.limits {
            let Read { records, bytes, .. } = outcome.read;
            self.reading.limits.charge(shard, records as usize, bytes as usize);
        }
        Ok(outcome)
    }

    /// Reads a shard from an iterator on and writes the answer.
    async fn read_shard(
        &self,
        call: &Call,
        stream: &Stream,
        iterator: &ShardIterator,
        limit: usize,
    ) -> Result<Outcome, ApiError> {
        let index = iterator.shard;
        let source = RecordSource::new(stream, index).ok_or_else(|| no_shard(stream, index))?;
        let mut body = Vec::new();
        let mut pages = Pages::new(call.encoding, &mut body, source, limit, iterator.place);
        let mut end = pages.end(stream, index);
        let shard = shard_id(stream.id(), index);
        let fetch = |place: Place, bytes_max: u32| {
            self.ground.fetcher.fetch(shard, place.fetch_from(), bytes_max, Duration::ZERO)
        };
        let (mut fetches, mut trims) = (0, 0);
        // The next page comes while one is written.
        let mut coming = None;
        while end.is_none() && fetches < FETCHES_MAX {
            fetches += 1;
            let fetched = match coming.take() {
                Some(coming) => coming.await,
                None => fetch(pages.next, pages.fetch_bytes()).await,
            };
            let goes_on = match fetched {
                Ok(fetched) => {
                    let page = pages.take(&fetched, call.now_ms);
                    if page.goes_on && fetches < FETCHES_MAX {
                        let mut next = Box::pin(fetch(pages.next, pages.fetch_bytes()));
                        // It leaves now; what comes of it is seen when its turn is.
                        let polled = poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
                        coming = match polled.await {
                            Poll::Ready(answer) => Some(Either::Left(ready(answer))),
                            Poll::Pending => Some(Either::Right(next)),
                        };
                    }
                    pages.write(&fetched, &page);
                    page.goes_on
                }
                Err(FetchError::Refused { refusal, .. })
                    if refusal.code == ErrorCode::Trimmed && trims < TRIMMED_MAX =>
                {
                    trims += 1;
                    pages.next = Place::Offset(Offset(refusal.hint));
                    continue;
                }
                // Nothing is there yet; the place stays what it is.
                Err(FetchError::Refused { refusal, .. })
                    if refusal.code == ErrorCode::BeyondEnd =>
                {
                    false
                }
                // What was read so far is an answer.
                Err(_) if pages.records > 0 => false,
                Err(error) => return Err(self.why_unreadable(stream, index, &error)),
            };
            // A shard may have ended meanwhile, and have children.
            if let Some(now) = self.ground.catalog.stream_of(stream.id()) {
                end = pages.end(&now, index);
            }
            if !goes_on {
                break;
            }
        }
        let read = Read {
            records: pages.records as u64,
            bytes: pages.bytes as u64,
            behind_ms: pages.millis_behind,
        };
        let next = match &end {
            Some(_) => None,
            None => {
                let next = ShardIterator { place: pages.next, ..*iterator };
                Some(self.seal_iterator(&next).await?)
            }
        };
        pages.finish(next.as_deref(), end.as_ref());
        Ok(Outcome { body, read })
    }

    /// What a reader is told whose shard cannot be read.
    fn why_unreadable(&self, stream: &Stream, index: u32, error: &FetchError) -> ApiError {
        // It may have gone while it was read.
        match self.ground.catalog.stream_of(stream.id()) {
            Some(now) if check_serving(&now).is_ok() => match now.shard(index) {
                Some(_) => read_failure(error),
                None => no_shard(&now, index),
            },
            _ => not_found(&stream.name),
        }
    }
}

impl<'b> Pages<'b> {
    fn new(
        encoding: Encoding,
        body: &'b mut Vec<u8>,
        source: RecordSource,
        records_max: usize,
        next: Place,
    ) -> Pages<'b> {
        let writer = RecordsWriter::new(encoding, body);
        Pages { writer, source, records_max, records: 0, bytes: 0, next, millis_behind: 0 }
    }

    /// Bytes to ask a node for.
    fn fetch_bytes(&self) -> u32 {
        let records = self.records_max - self.records;
        let bytes = (records * FETCH_BYTES_PER_RECORD).min(BYTES_MAX - self.bytes);
        bytes.clamp(FETCH_BYTES_MIN, FETCH_BYTES_MAX as usize) as u32
    }

    /// Takes in what came: what of it belongs to the answer, and whether there is room and something
    /// left for more.
    fn take(&mut self, fetched: &Fetched, now_ms: u64) -> Page {
        let room = (self.records_max - self.records, BYTES_MAX - self.bytes);
        let mut page = Page { records: 0, bytes: 0, goes_on: false };
        let (mut last, mut is_full) = (None, false);
        for record in fetched.records() {
            let bytes = page.bytes + record_bytes(&record);
            let fits = bytes <= room.1 || (self.records == 0 && page.records == 0);
            if page.records == room.0 || !fits {
                is_full = true;
                break;
            }
            (page.records, page.bytes) = (page.records + 1, bytes);
            last = Some((record.offset, record.append_time_ms));
        }
        if is_full && page.records == 0 {
            return page;
        }
        let stays = matches!(self.next, Place::Time(_)) && self.records == 0 && page.records == 0;
        self.records += page.records;
        self.bytes += page.bytes;
        let next = match last {
            Some((offset, _)) if is_full => offset.after(1),
            // An answer may consist of records before the place alone.
            _ => fetched.head().next,
        };
        let last_ms = last.map_or(fetched.head().last_append_ms, |(_, time_ms)| time_ms);
        self.millis_behind = millis_behind(fetched, next, last_ms, now_ms);
        // A time that nothing has reached yet stays a time, unless the shard ends before it.
        if !stays || fetched.head().sealed_end {
            self.next = Place::Offset(next);
        }
        let is_done = self.records == self.records_max || self.bytes >= BYTES_MAX;
        page.goes_on =
            !is_full && !is_done && !fetched.head().sealed_end && next < fetched.head().committed;
        page
    }

    /// Writes a page into the answer.
    fn write(&mut self, fetched: &Fetched, page: &Page) {
        self.writer.reserve(page.records, page.bytes);
        for record in fetched.records().take(page.records) {
            self.source.push(&mut self.writer, &record);
        }
    }

    /// The children, if the shard's end is reached.
    fn end(&self, stream: &Stream, index: u32) -> Option<Children> {
        match self.next {
            Place::Offset(next) => Children::at_end(stream, index, next),
            Place::Time(_) | Place::Earliest => None,
        }
    }

    fn finish(self, next: Option<&str>, end: Option<&Children>) {
        let Pages { writer, millis_behind, .. } = self;
        let finish = |child_shards: &[ChildShardView<'_>]| {
            writer.finish_get_records(&GetRecordsEnd {
                next_shard_iterator: next,
                millis_behind_latest: millis_behind,
                child_shards,
            });
        };
        match end {
            Some(children) => children.with_views(finish),
            None => finish(&[]),
        }
    }
}
