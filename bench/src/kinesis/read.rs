//! GetRecords from the first record to the tip, shards side by side, as fast as they are given.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::time::sleep;

use super::connection::{CallError, Client, ClientPlan, Connection};
use super::encode::{get_records, get_shard_iterator};
use super::ledger::Audit;
use super::outcome::{Backoff, Counts, ERRORS_MAX};
use super::put::on_runtime;
use super::scan;
use crate::error::BenchError;

/// Records of an answer at most (API reference, GetRecords).
const RECORDS_PER_PAGE: u64 = 10_000;
/// Pause before a shard is asked again that had nothing and is not at its tip, or whose
/// connection failed.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a shard may give nothing before its tip.
const PATIENCE: Duration = Duration::from_secs(120);

/// A shard that is read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ShardToRead {
    /// The number of its stream.
    pub stream: u32,
    /// The name of its stream.
    pub name: String,
    /// Its id.
    pub shard: String,
}

/// What reading came to.
#[derive(Clone, Debug)]
pub struct Read {
    /// Records.
    pub records: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// How long it took.
    pub span: Duration,
    /// What was counted.
    pub counts: Counts,
}

struct Shared<'r> {
    client: &'r ClientPlan,
    shards: &'r [ShardToRead],
    audit: &'r Audit<'r>,
    next: AtomicUsize,
    errors: AtomicU64,
    stop: AtomicBool,
}

#[derive(Default)]
struct Part {
    records: u64,
    bytes: u64,
    counts: Counts,
}

/// Reads shards to their tips on so many connections; the audit is given every record.
///
/// # Errors
/// [`BenchError`]: too many errors, or a shard that gives nothing before its tip.
pub fn read(
    client: &ClientPlan,
    shards: &[ShardToRead],
    connections: usize,
    audit: &Audit<'_>,
) -> Result<Read, BenchError> {
    let shared = Shared {
        client,
        shards,
        audit,
        next: AtomicUsize::new(0),
        errors: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let connections = connections.min(shards.len()).max(1);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(connections);
    let started = Instant::now();
    let parts = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let lanes = connections * (thread + 1) / threads - connections * thread / threads;
                let shared = &shared;
                scope.spawn(move || on_runtime(run_thread(shared, lanes)))
            })
            .collect();
        let parts =
            handles.into_iter().map(|handle| handle.join().map_err(|_| BenchError::Panicked)?);
        parts.collect::<Result<Vec<_>, BenchError>>()
    })?;
    let mut read =
        Read { records: 0, bytes: 0, span: started.elapsed(), counts: Counts::default() };
    for part in parts {
        read.records += part.records;
        read.bytes += part.bytes;
        read.counts.add(&part.counts);
    }
    if shared.stop.load(Ordering::Relaxed) { Err(read.counts.too_many()) } else { Ok(read) }
}

async fn run_thread(shared: &Shared<'_>, lanes: usize) -> Result<Part, BenchError> {
    let client = shared.client.client();
    let part = RefCell::new(Part::default());
    let lanes = (0..lanes).map(|_| {
        let lane = Lane {
            shared,
            client: &client,
            part: &part,
            connection: client.connection(),
            buffer: Vec::new(),
            answer: Vec::new(),
            scratch: Vec::new(),
        };
        lane.run()
    });
    try_join_all(lanes).await?;
    Ok(part.into_inner())
}

struct Lane<'r> {
    shared: &'r Shared<'r>,
    client: &'r Client,
    part: &'r RefCell<Part>,
    connection: Connection<'r>,
    buffer: Vec<u8>,
    answer: Vec<u8>,
    scratch: Vec<u8>,
}

impl Lane<'_> {
    async fn run(mut self) -> Result<(), BenchError> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let next = self.shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(shard) = self.shared.shards.get(next) else { return Ok(()) };
            self.read_shard(shard).await?;
        }
        Ok(())
    }

    async fn read_shard(&mut self, shard: &ShardToRead) -> Result<(), BenchError> {
        let encoding = self.client.encoding();
        let audit = self.shared.audit;
        get_shard_iterator(encoding, &mut self.buffer, &shard.name, &shard.shard);
        if !self.call_until_answered("GetShardIterator").await? {
            return Ok(());
        }
        let unreadable = |source: scan::ScanError| BenchError::Call {
            operation: "GetShardIterator",
            source: source.into(),
        };
        let mut iterator = scan::shard_iterator(encoding, &self.answer).map_err(unreadable)?;
        let mut audited = audit.shard(shard.stream, &shard.shard);
        let mut last = Instant::now();
        loop {
            get_records(encoding, &mut self.buffer, &iterator, RECORDS_PER_PAGE);
            if !self.call_until_answered("GetRecords").await? {
                return Ok(());
            }
            let each = |record: &scan::RecordRead<'_>| audited.take(record);
            let page = scan::page(encoding, &self.answer, &mut self.scratch, each);
            let page = page.map_err(|source| BenchError::Call {
                operation: "GetRecords",
                source: source.into(),
            })?;
            {
                let mut part = self.part.borrow_mut();
                part.records += page.records as u64;
                part.bytes += page.bytes;
            }
            match page.next {
                None => return Ok(()),
                Some(next) => iterator = next,
            }
            if audit.is_hopeless() {
                return Ok(());
            }
            if page.records > 0 {
                last = Instant::now();
                continue;
            }
            // Some servers do not tell how far behind an answer is. An empty one is the tip then.
            if page.millis_behind.unwrap_or(0) == 0 {
                return Ok(());
            }
            if last.elapsed() > PATIENCE {
                return Err(BenchError::NothingRead { shard: shard.shard.clone() });
            }
            sleep(PAUSE).await;
        }
    }

    /// Makes the call whose body is in the buffer until it is answered; false when the run ends
    /// before. To read twice does no harm, so whatever failed on the way is tried again.
    async fn call_until_answered(&mut self, operation: &'static str) -> Result<bool, BenchError> {
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let mut backoff = Backoff::new();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let called = self.connection.call(operation, &body, &mut self.answer).await;
            self.part.borrow_mut().counts.requests += 1;
            match called {
                Ok(()) => {
                    self.buffer = body.try_into_mut().map(Vec::from).unwrap_or_default();
                    return Ok(true);
                }
                Err(error) if error.is_throttle() => {
                    self.part.borrow_mut().counts.throttled_requests += 1;
                    sleep(backoff.next_pause()).await;
                }
                Err(error) if error.is_of_connection() || is_of_server(&error) => {
                    self.part.borrow_mut().counts.error(&error);
                    if self.shared.errors.fetch_add(1, Ordering::Relaxed) >= ERRORS_MAX {
                        self.shared.stop.store(true, Ordering::Relaxed);
                    }
                    sleep(PAUSE).await;
                }
                Err(source) => return Err(BenchError::Call { operation, source }),
            }
        }
        Ok(false)
    }
}

/// Whether it is the server that failed, and may do better.
fn is_of_server(error: &CallError) -> bool {
    matches!(error, CallError::Refused { status: 500.., .. })
}
