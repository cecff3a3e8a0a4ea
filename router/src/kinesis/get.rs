//! GetRecords: what a shard has from an iterator on, as much as an answer holds, and the iterator
//! with which to go on.

use std::future::{poll_fn, ready};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::Either;
use serde::Deserialize;
use serde_json::Value;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::Offset;
use thalweg_wire::limits::FETCH_BYTES_MAX;

use super::answers::{
    ChildShardView, END_BYTES, GetRecordsEnd, RecordsWriter, answer_bytes, record_answer_bytes,
};
use super::codec::Encoding;
use super::error::ApiError;
use super::iterators::{Place, ShardIterator, no_shard, read_failure};
use super::policy::RequestTags;
use super::put::{dry_run, throttle_message};
use super::reading::{Children, RecordSource, largest_batch_bytes, millis_behind, record_bytes};
use super::server::{AnswerRoom, ApiResponse, CountedBytes};
use super::service::{Call, Resource, Service, check_serving, not_found, parse_stream_arn, read};
use super::validate::validate_input;
use crate::control::catalog::Stream;
use crate::control::record::{shard_id, shard_name};
use crate::control::store::Store;
use crate::metrics::stream::Read;
use crate::route::{FetchError, Fetched, MEMORY_WAIT};

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
/// Bytes of a fetch below which an answer has all that it can have: what is left of its bytes would
/// rarely be a record's, and a batch comes whole.
const REST_BYTES_MIN: usize = FETCH_BYTES_MIN;
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
    encoding: Encoding,
    writer: RecordsWriter<'b>,
    room: AnswerRoom,
    source: RecordSource,
    records_max: usize,
    records: usize,
    bytes: usize,
    /// Where to go on.
    next: Place,
    millis_behind: u64,
}

/// What of a fetch belongs to an answer.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Its first records, so many.
    records: usize,
    /// Bytes of their data and partition keys.
    bytes: usize,
    /// Bytes that they have in the answer at most.
    answer_bytes: usize,
    /// Offset of the last one, and when it came.
    last: Option<(Offset, u64)>,
    /// Why the records behind them do not belong to it.
    cut: Option<Cut>,
}

/// Why an answer ends before what was fetched does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// It has as much as an answer has.
    Full,
    /// There is no memory for more.
    NoRoom,
}

/// An answer, and what is in it.
struct Outcome {
    answer: CountedBytes,
    read: Read,
}

impl<S: Store + Clone> Service<S> {
    /// GetRecords.
    pub(super) async fn get_records(
        &self,
        call: &Call,
        body: &[u8],
        room: AnswerRoom,
    ) -> Result<ApiResponse, ApiError> {
        let input = judge(call, self.decode(call, body)?)?;
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
        let answer = self.get_some(call, &stream, &iterator, &input, room).await;
        let read = answer.as_ref().ok().map(|outcome| &outcome.read);
        stream.counts().note_get_records(call.began.elapsed(), read);
        if let (Some(read), Some(counts)) = (read, stream.shard_counts(iterator.shard)) {
            counts.note_read(read);
        }
        Ok(ApiResponse::Counted(answer?.answer))
    }

    /// Reads what a caller may have now.
    async fn get_some(
        &self,
        call: &Call,
        stream: &Stream,
        iterator: &ShardIterator,
        input: &GetRecordsInput,
        room: AnswerRoom,
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
        let outcome = self.read_shard(call, stream, iterator, limit, room).await?;
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
        room: AnswerRoom,
    ) -> Result<Outcome, ApiError> {
        let index = iterator.shard;
        let source = RecordSource::new(stream, index).ok_or_else(|| no_shard(stream, index))?;
        let mut body = Vec::new();
        let mut pages = Pages::new(call.encoding, &mut body, room, source, limit, iterator.place);
        let mut end = pages.end(stream, index);
        let shard = shard_id(stream.id(), index);
        let batch_bytes_max = largest_batch_bytes(stream);
        let fetch = |pages: &Pages<'_>, memory_wait: Duration| {
            let (from, bytes_max) = (pages.next.fetch_from(), pages.fetch_bytes());
            self.ground.fetcher.fetch_page(shard, from, bytes_max, batch_bytes_max, memory_wait)
        };
        let (mut fetches, mut trims) = (0, 0);
        // The next page comes while one is written.
        let mut coming = None;
        while end.is_none() && fetches < FETCHES_MAX {
            fetches += 1;
            let fetched = match coming.take() {
                Some(coming) => coming.await,
                None => fetch(&pages, MEMORY_WAIT).await,
            };
            let goes_on = match fetched {
                Ok(fetched) => {
                    let page = pages.measure(&fetched).ok_or_else(no_room)?;
                    let goes_on = pages.take(&fetched, &page, call.now_ms);
                    if goes_on && pages.records > 0 && fetches < FETCHES_MAX {
                        // Who holds a page waits for no memory for the next one.
                        let mut next = Box::pin(fetch(&pages, Duration::ZERO));
                        // It leaves now; what comes of it is seen when its turn is.
                        let polled = poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
                        coming = match polled.await {
                            Poll::Ready(answer) => Some(Either::Left(ready(answer))),
                            Poll::Pending => Some(Either::Right(next)),
                        };
                    }
                    pages.write(&fetched, &page);
                    goes_on
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
        let room = pages.finish(next.as_deref(), end.as_ref());
        Ok(Outcome { answer: room.fill(body), read })
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

/// Judges an input by the model, but for its `Limit`: one that is too large is no violation among
/// others (API reference, GetRecords).
fn judge(call: &Call, mut input: Value) -> Result<GetRecordsInput, ApiError> {
    let limit = input["Limit"].as_u64().filter(|limit| *limit > RECORDS_MAX as u64);
    if limit.is_some() {
        input["Limit"] = RECORDS_MAX.into();
    }
    validate_input(call.operation, &input)?;
    if let Some(limit) = limit {
        return Err(ApiError::invalid_argument(format!(
            "Limit {limit} is too large: a call returns {RECORDS_MAX} records at most."
        )));
    }
    read(input)
}

/// What a reader is told for whom there is no memory.
fn no_room() -> ApiError {
    ApiError::service_unavailable("There is no room for the answer now: try again later.")
}

impl<'b> Pages<'b> {
    fn new(
        encoding: Encoding,
        body: &'b mut Vec<u8>,
        room: AnswerRoom,
        source: RecordSource,
        records_max: usize,
        next: Place,
    ) -> Pages<'b> {
        let writer = RecordsWriter::new(encoding, body);
        Pages {
            encoding,
            writer,
            room,
            source,
            records_max,
            records: 0,
            bytes: 0,
            next,
            millis_behind: 0,
        }
    }

    /// Bytes to ask a node for.
    fn fetch_bytes(&self) -> u32 {
        let records = self.records_max - self.records;
        let bytes = (records * FETCH_BYTES_PER_RECORD).min(BYTES_MAX - self.bytes);
        bytes.clamp(FETCH_BYTES_MIN, FETCH_BYTES_MAX as usize) as u32
    }

    /// Measures what of a fetch belongs to the answer, and makes room for that: for less where
    /// memory is short. `None` when there is none for the first record.
    fn measure(&mut self, fetched: &Fetched) -> Option<Page> {
        let mut answer_bytes_max = self.room.bytes_max();
        loop {
            let page = self.first_records(fetched, answer_bytes_max);
            if page.records == 0 {
                let is_nothing = self.records == 0 && page.cut == Some(Cut::NoRoom);
                return (!is_nothing).then_some(page);
            }
            if self.make_room(&page) {
                return Some(page);
            }
            // Others took it meanwhile.
            answer_bytes_max = self.room.bytes_max().min(answer_bytes_max / 2);
        }
    }

    /// The records of a fetch that an answer of so many bytes has.
    fn first_records(&self, fetched: &Fetched, answer_bytes_max: usize) -> Page {
        let (records_max, bytes_max) = (self.records_max - self.records, BYTES_MAX - self.bytes);
        let answer_bytes_max = answer_bytes_max.saturating_sub(self.written_bytes());
        let mut page = Page { records: 0, bytes: 0, answer_bytes: 0, last: None, cut: None };
        for record in fetched.records() {
            let bytes = page.bytes + record_bytes(&record);
            let answer_bytes = page.answer_bytes
                + record_answer_bytes(self.encoding, record.key, record.data.len());
            let is_first = self.records == 0 && page.records == 0;
            if page.records == records_max || (bytes > bytes_max && !is_first) {
                page.cut = Some(Cut::Full);
                break;
            }
            if answer_bytes > answer_bytes_max {
                page.cut = Some(Cut::NoRoom);
                break;
            }
            (page.records, page.bytes, page.answer_bytes) = (page.records + 1, bytes, answer_bytes);
            page.last = Some((record.offset, record.append_time_ms));
        }
        page
    }

    /// Has the answer allocate what it needs with this page, and what it may still need where it
    /// had to grow before.
    fn make_room(&mut self, page: &Page) -> bool {
        let allocated = self.writer.allocated_bytes();
        let needed = self.written_bytes() + page.answer_bytes;
        if needed <= allocated {
            return true;
        }
        let records_left = self.records_max - self.records;
        let bytes_left = BYTES_MAX.saturating_sub(self.bytes);
        let most = self.written_bytes() + answer_bytes(self.encoding, records_left, bytes_left);
        let ample = (2 * allocated).min(most).max(needed);
        let granted = [ample, needed].into_iter().find(|bytes| self.room.grow_to(*bytes));
        granted.inspect(|bytes| self.writer.allocate(*bytes)).is_some()
    }

    /// Bytes of the answer so far, and of its end.
    fn written_bytes(&self) -> usize {
        self.writer.buffer_bytes() + END_BYTES
    }

    /// Takes in what came, and answers whether there is something left, and room, for more.
    fn take(&mut self, fetched: &Fetched, page: &Page, now_ms: u64) -> bool {
        if page.cut.is_some() && page.records == 0 {
            return false;
        }
        let stays = matches!(self.next, Place::Time(_)) && self.records == 0 && page.records == 0;
        self.records += page.records;
        self.bytes += page.bytes;
        let next = match page.last {
            Some((offset, _)) if page.cut.is_some() => offset.after(1),
            // An answer may consist of records before the place alone.
            _ => fetched.head().next,
        };
        let last_ms = page.last.map_or(fetched.head().last_append_ms, |(_, time_ms)| time_ms);
        self.millis_behind = millis_behind(fetched, next, last_ms, now_ms);
        // A time that nothing has reached yet stays a time, unless the shard ends before it.
        if !stays || fetched.head().sealed_end {
            self.next = Place::Offset(next);
        }
        let is_done = self.records == self.records_max || self.bytes + REST_BYTES_MIN > BYTES_MAX;
        let is_end = fetched.head().sealed_end || next >= fetched.head().committed;
        page.cut.is_none() && !is_done && !is_end
    }

    /// Writes a page into the answer.
    fn write(&mut self, fetched: &Fetched, page: &Page) {
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

    /// Writes the end; what is left is the room.
    fn finish(self, next: Option<&str>, end: Option<&Children>) -> AnswerRoom {
        let Pages { room, writer, millis_behind, .. } = self;
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
        room
    }
}
