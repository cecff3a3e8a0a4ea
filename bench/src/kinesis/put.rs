//! PutRecords and PutRecord on a schedule.
//!
//! A lane sends one request after the other; the lanes of a thread share its connections. With a
//! rate each lane has times of its own at which its requests are due, spread evenly among the
//! lanes', and a request's latency counts from there: a server that stalls is charged for
//! everything that should have been sent meanwhile. At the maximum a request is due when its lane
//! is free.
//!
//! What a server refuses for the moment is sent again after a pause, record by record; the
//! request's latency goes on until all of it is acknowledged. What failed otherwise is not sent
//! again: it may be stored.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::time::sleep;

use super::alarm::Alarm;
use super::connection::{CallError, Client, ClientPlan, Connection, is_throttle_kind};
use super::encode::{PutRecordsBody, put_record};
use super::ledger::{Book, Keys, RecordId, RecordSource, place_of};
use super::outcome::{Backoff, Counts, ERRORS_MAX};
use super::scan::{self, PutResult, ScanError};
use super::settings::{PutSettings, RECORDS_MAX};
use crate::drive::{Progress, WARM_UP, new_histogram};
use crate::error::BenchError;
use crate::machine::processor_seconds;
use crate::settings::Rate;

/// How long after the end what was due before it is sent, and what is refused for the moment is
/// sent again.
const DRAIN: Duration = Duration::from_secs(30);
/// Pause after a connection could not be made or broke.
const RECONNECT: Duration = Duration::from_millis(100);
/// How often it is looked whether a run is over.
const NAP: Duration = Duration::from_millis(5);
/// Before the first request: threads start meanwhile.
const LEAD: Duration = Duration::from_millis(50);

/// What is put, and where.
pub struct PutPlan<'p> {
    /// The workload.
    pub settings: &'p PutSettings,
    /// How the server is spoken to.
    pub client: &'p ClientPlan,
    /// The streams, by the numbers that [`Keys`] give.
    pub streams: &'p [String],
    /// The records' keys.
    pub keys: &'p Keys,
    /// The records' data.
    pub source: &'p RecordSource,
}

/// When requests are due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The first request, of the warm-up.
    pub start: Instant,
    /// From here on it counts.
    pub begin: Instant,
    /// Nothing is begun any more.
    pub end: Instant,
    /// Between two requests of a lane; none at the maximum.
    interval: Option<Duration>,
    lanes: u32,
}

/// What came of it.
pub struct Put {
    /// Records acknowledged within the span that counts.
    pub records: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// Requests of which something was acknowledged within it.
    pub requests: u64,
    /// The span.
    pub span: Duration,
    /// Microseconds from the intended send to the acknowledgement of all of a request.
    pub latency_us: Histogram<u64>,
    /// Seconds of processor time of this process within the span.
    pub processor_s: f64,
    /// What was acknowledged, by lane.
    pub books: Vec<Book>,
    /// What was counted, the warm-up included.
    pub counts: Counts,
    /// When requests were due.
    pub schedule: Schedule,
    /// Why the figures are not those of the whole run, if they are not.
    pub cut_short: Option<&'static str>,
}

impl Schedule {
    fn new(settings: &PutSettings) -> Schedule {
        let start = Instant::now() + LEAD;
        let begin = start + WARM_UP;
        let lanes = settings.lanes() as u32;
        let interval = match settings.rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => {
                let requests = rate as f64 / f64::from(settings.request_records);
                Some(Duration::from_secs_f64(f64::from(lanes) / requests))
            }
        };
        Schedule {
            start,
            begin,
            end: begin + Duration::from_secs(settings.seconds),
            interval,
            lanes,
        }
    }

    /// When a lane's request is due, by its number; none at the maximum.
    #[must_use]
    pub fn due(&self, lane: u32, request: u64) -> Option<Instant> {
        let interval = self.interval?.as_secs_f64();
        let share = f64::from(lane) / f64::from(self.lanes);
        Some(self.start + Duration::from_secs_f64(interval * (request as f64 + share)))
    }

    /// Whether a moment is within the span that counts.
    #[must_use]
    pub fn counts(&self, at: Instant) -> bool {
        at >= self.begin && at < self.end
    }
}

/// What the threads of a run have in common.
struct Shared<'p> {
    plan: &'p PutPlan<'p>,
    schedule: Schedule,
    progress: &'p Progress,
    errors: AtomicU64,
    stop: AtomicBool,
    /// Records are not remembered any more.
    is_full: AtomicBool,
    /// Not everything that was due was sent.
    is_behind: AtomicBool,
}

/// What one thread counted.
struct Part {
    records: u64,
    requests: u64,
    latency_us: Histogram<u64>,
    counts: Counts,
}

/// Puts until the time is over, or as many records are acknowledged as `progress` asks for.
///
/// # Errors
/// [`BenchError::TooManyErrors`], [`BenchError::Threads`].
pub fn put(plan: &PutPlan<'_>, progress: &Arc<Progress>) -> Result<Put, BenchError> {
    let settings = plan.settings;
    let schedule = Schedule::new(settings);
    let shared = Shared {
        plan,
        schedule,
        progress,
        errors: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        is_full: AtomicBool::new(false),
        is_behind: AtomicBool::new(false),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(settings.connections);
    let run = |thread: usize| {
        let first = settings.connections * thread / threads;
        let behind = settings.connections * (thread + 1) / threads;
        let shared = &shared;
        move || on_runtime(run_thread(shared, first, behind))
    };
    let ended = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        let ended = || handles.iter().all(ScopedJoinHandle::is_finished);
        nap_until(|| Instant::now() >= schedule.begin || ended());
        let (before, began) = (processor_seconds(), Instant::now());
        let has_end = progress.records_max.is_none();
        nap_until(|| (has_end && Instant::now() >= schedule.end) || ended());
        let span = if has_end { schedule.end - schedule.begin } else { began.elapsed() };
        let measured = (span, processor_seconds() - before);
        let parts =
            handles.into_iter().map(|handle| handle.join().map_err(|_| BenchError::Panicked)?);
        Ok::<_, BenchError>((measured, parts.collect::<Result<Vec<_>, BenchError>>()?))
    });
    let ((span, processor_s), parts) = ended?;
    let mut put = Put {
        records: 0,
        bytes: 0,
        requests: 0,
        span,
        latency_us: new_histogram(),
        processor_s,
        books: Vec::new(),
        counts: Counts::default(),
        schedule,
        cut_short: shared.cut_short(),
    };
    for (part, books) in parts {
        put.records += part.records;
        put.requests += part.requests;
        put.latency_us.add(&part.latency_us).expect("histograms of one range");
        put.counts.add(&part.counts);
        put.books.extend(books);
    }
    put.bytes = put.records * settings.record_bytes as u64;
    if shared.stop.load(Ordering::Relaxed) {
        return Err(put.counts.too_many());
    }
    Ok(put)
}

fn nap_until(over: impl Fn() -> bool) {
    while !over() {
        std::thread::sleep(NAP);
    }
}

/// Runs a future on a runtime of the current thread.
///
/// # Errors
/// [`BenchError::Threads`], or the future's own.
pub fn on_runtime<T>(future: impl Future<Output = Result<T, BenchError>>) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(BenchError::Threads)?.block_on(future)
}

/// The lanes of connections `first` to `behind`, in their order.
async fn run_thread(
    shared: &Shared<'_>,
    first: usize,
    behind: usize,
) -> Result<(Part, Vec<Book>), BenchError> {
    let client = shared.plan.client.client();
    let part = RefCell::new(Part {
        records: 0,
        requests: 0,
        latency_us: new_histogram(),
        counts: Counts::default(),
    });
    let in_flight = shared.plan.settings.in_flight;
    let connections = (first..behind).map(|connection| {
        let (client, part) = (&client, &part);
        async move {
            let mut made = client.connection();
            let mut lanes = Vec::new();
            for at in 0..in_flight {
                let number = (connection * in_flight + at) as u32;
                let shared_connection = if at + 1 == in_flight {
                    std::mem::replace(&mut made, client.connection())
                } else {
                    // Where it cannot be made, each lane finds out for itself.
                    made.share().await.unwrap_or_else(|_| client.connection())
                };
                lanes.push(Lane::new(shared, client, part, number, shared_connection)?);
            }
            let books = try_join_all(lanes.into_iter().map(Lane::run)).await?;
            Ok::<_, BenchError>(books)
        }
    });
    let books = try_join_all(connections).await?.into_iter().flatten().collect();
    Ok((part.into_inner(), books))
}

struct Lane<'r> {
    shared: &'r Shared<'r>,
    client: &'r Client,
    part: &'r RefCell<Part>,
    number: u32,
    connection: Connection<'r>,
    alarm: Alarm,
    book: Book,
    backoff: Backoff,
    /// Bodies are written into memory that was used before.
    buffer: Vec<u8>,
    answer: Vec<u8>,
    data: Vec<u8>,
    /// Records of the request under way that are not acknowledged.
    pending: Vec<u64>,
    /// Those of them that are to be sent again.
    again: Vec<u64>,
}

impl<'r> Lane<'r> {
    fn new(
        shared: &'r Shared<'r>,
        client: &'r Client,
        part: &'r RefCell<Part>,
        number: u32,
        connection: Connection<'r>,
    ) -> Result<Lane<'r>, BenchError> {
        Ok(Lane {
            shared,
            client,
            part,
            number,
            connection,
            alarm: Alarm::new().map_err(BenchError::Threads)?,
            book: Book::default(),
            backoff: Backoff::new(),
            buffer: Vec::new(),
            answer: Vec::new(),
            data: Vec::new(),
            pending: Vec::new(),
            again: Vec::new(),
        })
    }

    async fn run(mut self) -> Result<Book, BenchError> {
        let Schedule { start, end, .. } = self.shared.schedule;
        let records = u64::from(self.shared.plan.settings.request_records);
        let records_max = RECORDS_MAX / self.shared.plan.settings.lanes() as u64;
        self.alarm.wait_until(start).await.map_err(BenchError::Threads)?;
        for request in 0_u64.. {
            let due = self.shared.schedule.due(self.number, request);
            let intended = due.unwrap_or_else(Instant::now);
            let first = request * records;
            if intended >= end || self.has_enough() {
                break;
            }
            if first + records > records_max {
                self.shared.is_full.store(true, Ordering::Relaxed);
                break;
            }
            if Instant::now() > end + DRAIN {
                self.shared.is_behind.store(true, Ordering::Relaxed);
                break;
            }
            self.alarm.wait_until(intended).await.map_err(BenchError::Threads)?;
            if self.is_stopped() {
                break;
            }
            self.book.begin(records);
            self.pending.extend(first..first + records);
            self.put_all(intended).await;
        }
        Ok(self.book)
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn has_enough(&self) -> bool {
        let progress = self.shared.progress;
        let records = || progress.records.load(Ordering::Relaxed);
        self.is_stopped() || progress.records_max.is_some_and(|most| records() >= most)
    }

    /// Sends what is pending until it is acknowledged, or will not be.
    async fn put_all(&mut self, intended: Instant) {
        self.backoff.reset();
        let (sent, mut acknowledged) = (self.pending.len(), 0);
        loop {
            let more = self.put_once().await;
            let now = Instant::now();
            self.note(more, now);
            acknowledged += more;
            if self.pending.is_empty() {
                if acknowledged == sent {
                    self.note_latency(intended, now);
                }
                return;
            }
            if now > self.shared.schedule.end + DRAIN || self.is_stopped() {
                // It took as long at least: the slowest are not left out of the figures.
                self.note_latency(intended, now);
                let given_up = self.pending.drain(..).len() as u64;
                self.part.borrow_mut().counts.given_up_records += given_up;
                return;
            }
            sleep(self.backoff.next_pause()).await;
        }
    }

    /// One request with what is pending; what stays pending is to be sent again. Answers how many
    /// records were acknowledged.
    async fn put_once(&mut self) -> usize {
        let body = self.body();
        let operation = if self.is_single() { "PutRecord" } else { "PutRecords" };
        let called = self.connection.call(operation, &body, &mut self.answer).await;
        self.buffer = reused(body);
        self.part.borrow_mut().counts.requests += 1;
        let error = match called {
            Ok(()) => match self.take_answer() {
                Ok(acknowledged) => return acknowledged,
                Err(error) => CallError::from(error),
            },
            Err(error) => error,
        };
        if error.is_throttle() {
            self.part.borrow_mut().counts.throttled_requests += 1;
            return 0;
        }
        // Its records may or may not be stored.
        let unknown = self.pending.drain(..).len() as u64;
        {
            let counts = &mut self.part.borrow_mut().counts;
            counts.error(&error);
            counts.unknown_records += unknown;
        }
        self.shared.count_errors(1);
        if error.is_of_connection() {
            sleep(RECONNECT).await;
        }
        0
    }

    fn is_single(&self) -> bool {
        self.shared.plan.settings.request_records == 1
    }

    fn body(&mut self) -> Bytes {
        let Shared { plan, .. } = self.shared;
        let encoding = self.client.encoding();
        let mut buffer = std::mem::take(&mut self.buffer);
        let first = RecordId { lane: self.number, number: self.pending[0] };
        let stream = &plan.streams[plan.keys.stream(first) as usize];
        if self.is_single() {
            plan.source.fill(first, &mut self.data);
            put_record(encoding, &mut buffer, stream, &plan.keys.key(first), &self.data);
        } else {
            let mut body = PutRecordsBody::new(encoding, &mut buffer, stream, self.pending.len());
            for number in &self.pending {
                let id = RecordId { lane: self.number, number: *number };
                plan.source.fill(id, &mut self.data);
                body.push(&plan.keys.key(id), &self.data);
            }
            body.finish();
        }
        buffer.into()
    }

    /// Takes an answer in: what is stored goes into the book, what was refused for the moment stays
    /// pending. Answers how many records are stored. Of an answer that is wrong nothing counts.
    fn take_answer(&mut self) -> Result<usize, ScanError> {
        let Lane { book, pending, again, part, shared, client, answer, number, .. } = self;
        let encoding = client.encoding();
        if shared.plan.settings.request_records == 1 {
            let place = scan::put_record(encoding, answer)?;
            let id = RecordId { lane: *number, number: pending[0] };
            let stream = shared.plan.keys.stream(id);
            book.acknowledge(pending[0], place_of(stream, &place.shard, &place.number));
            pending.clear();
            return Ok(1);
        }
        let mut places = Vec::with_capacity(pending.len());
        let mut failures = Vec::new();
        again.clear();
        scan::put_records(encoding, answer, pending.len(), |at, result| match result {
            PutResult::Stored(place) => {
                places.push((pending[at], place_of(0, &place.shard, &place.number)));
            }
            PutResult::Failed { code, .. } if is_throttle_kind(&code) => again.push(pending[at]),
            PutResult::Failed { code, message } => failures.push((code, message)),
        })?;
        for (number, place) in &places {
            book.acknowledge(*number, *place);
        }
        std::mem::swap(pending, again);
        let counts = &mut part.borrow_mut().counts;
        counts.throttled_records += pending.len() as u64;
        counts.unknown_records += failures.len() as u64;
        for (code, message) in &failures {
            counts.error_of(code, format!("a record: {code}: {message}"));
        }
        shared.count_errors(failures.len() as u64);
        Ok(places.len())
    }

    fn note(&self, acknowledged: usize, now: Instant) {
        let records = acknowledged as u64;
        self.shared.progress.records.fetch_add(records, Ordering::Relaxed);
        let mut part = self.part.borrow_mut();
        if self.shared.counts(now) {
            part.requests += u64::from(acknowledged > 0);
            part.records += records;
        }
    }

    fn note_latency(&self, intended: Instant, now: Instant) {
        let latency_us = now.saturating_duration_since(intended).as_micros() as u64;
        self.shared.progress.latency_us_max.fetch_max(latency_us, Ordering::Relaxed);
        if self.shared.counts(intended) {
            self.part.borrow_mut().latency_us.saturating_record(latency_us.max(1));
        }
    }
}

impl Shared<'_> {
    fn cut_short(&self) -> Option<&'static str> {
        if self.is_behind.load(Ordering::Relaxed) {
            return Some(
                "requests that were due were still unsent 30 s after the end: the server is slower \
                 than --rate",
            );
        }
        let is_full = self.is_full.load(Ordering::Relaxed);
        is_full.then_some(
            "the run ended early, with all records that it can remember: ask for fewer --seconds",
        )
    }

    fn count_errors(&self, errors: u64) {
        if errors > 0 && self.errors.fetch_add(errors, Ordering::Relaxed) + errors > ERRORS_MAX {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a moment is within the span that counts, which has no end but the last record where
    /// a run is for a number of them.
    fn counts(&self, at: Instant) -> bool {
        let schedule = self.schedule;
        at >= schedule.begin && (at < schedule.end || self.progress.records_max.is_some())
    }
}

/// The memory of a body that nobody else has any more.
fn reused(body: Bytes) -> Vec<u8> {
    match body.try_into_mut() {
        Ok(mut memory) => {
            memory.clear();
            memory.into()
        }
        // A request that failed may still be on its way out.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rate: Rate, connections: usize) -> PutSettings {
        PutSettings {
            seconds: 2,
            rate,
            record_bytes: 100,
            request_records: 10,
            request_shards: 1,
            shards: 1,
            connections,
            in_flight: 1,
        }
    }

    #[test]
    fn lanes_share_a_rate_evenly() {
        let schedule = Schedule::new(&settings(Rate::PerSecond(1000), 4));
        let mut due: Vec<Duration> = (0..4)
            .flat_map(|lane| (0..25).map(move |request| (lane, request)))
            .map(|(lane, request)| schedule.due(lane, request).unwrap() - schedule.start)
            .collect();
        due.sort_unstable();
        // 100 requests of 10 records in a second, each 10 ms behind the one before.
        for (at, due) in due.iter().enumerate() {
            let off = due.as_secs_f64() - at as f64 * 0.010;
            assert!(off.abs() < 1e-6, "request {at} is due at {due:?}");
        }
        assert!(schedule.counts(schedule.begin) && !schedule.counts(schedule.end));
        assert!(!schedule.counts(schedule.start));
    }

    #[test]
    fn at_the_maximum_nothing_is_due() {
        let schedule = Schedule::new(&settings(Rate::Max, 4));
        assert_eq!(schedule.due(0, 0), None);
    }

    #[test]
    fn the_memory_of_a_body_is_used_again() {
        let mut buffer = Vec::with_capacity(1000);
        buffer.extend_from_slice(b"a body");
        let at = buffer.as_ptr();
        let body = Bytes::from(buffer);
        let sent = body.clone();
        drop(sent);
        let again = reused(body);
        assert!(again.is_empty() && again.capacity() >= 1000);
        assert_eq!(again.as_ptr(), at);
        let body = Bytes::from(vec![1; 10]);
        let held = body.clone();
        assert_eq!(reused(body).capacity(), 0);
        assert_eq!(held.len(), 10);
    }
}
