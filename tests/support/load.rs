//! Producers that are under way while something happens to their node, and what they were told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thalweg_client::{
    ClientError, Outcome, Producer, ProducerConfig, ProducerError, Reader, ReaderConfig,
};
use thalweg_wire::build::{BatchBuilder, BatchRoom, NewRecord};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::hash_range::HashKey;

use super::{PATIENCE, STREAM};

/// Numbers of records, by shard and offset.
pub(crate) type Records = BTreeMap<(u32, u64), u64>;

/// No number is given twice: a record that is there twice is found by it.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// What is produced.
pub(crate) struct LoadConfig {
    pub producer: ProducerConfig,
    /// Batches without an answer.
    pub batches_under_way: usize,
    /// Bytes of data of each record, by the number of the batch.
    pub data_bytes: fn(u64) -> u32,
    /// Bytes of data a second, at most.
    pub bytes_per_s: u64,
}

impl LoadConfig {
    /// A producer to some shards, all of the stream's when none is named, that sends again until
    /// its batches are stored.
    pub(crate) fn new(node: SocketAddr, shards: &[u32]) -> LoadConfig {
        let producer = ProducerConfig {
            shards: shards.to_vec(),
            retry_for: PATIENCE,
            ..ProducerConfig::new(node, STREAM)
        };
        LoadConfig {
            producer,
            batches_under_way: 32,
            // Every tenth batch is large enough to be written from where it was received.
            data_bytes: |round| if round.is_multiple_of(10) { 20_000 } else { 200 },
            bytes_per_s: u64::MAX,
        }
    }
}

/// A batch that was acked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckedBatch {
    pub shard: u32,
    pub first_offset: u64,
    pub records: u64,
    /// What the load's clock said when the ack had come.
    pub mark: u64,
}

/// What a load was told.
#[derive(Default)]
pub(crate) struct Told {
    pub acked: Records,
    /// In the order of the acks.
    pub batches: Vec<AckedBatch>,
    /// Batches that were refused for good, by code.
    pub refused: BTreeMap<u16, u64>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    acked_bytes: AtomicU64,
    refused: Mutex<BTreeMap<u16, u64>>,
}

/// A producer on a thread of its own.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Told>>,
}

impl Load {
    pub(crate) fn start(config: LoadConfig) -> Load {
        Load::start_with_clock(config, || 0)
    }

    /// Notes with each ack what `clock` says when it has come.
    pub(crate) fn start_with_clock(
        config: LoadConfig,
        clock: impl Fn() -> u64 + Send + 'static,
    ) -> Load {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || produce(config, &of_thread, &clock));
        Load { shared, thread: Some(thread) }
    }

    /// Records acked so far.
    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Bytes of their data.
    pub(crate) fn acked_bytes(&self) -> u64 {
        self.shared.acked_bytes.load(Ordering::Relaxed)
    }

    /// Batches refused for good so far, in this way.
    pub(crate) fn refused(&self, code: ErrorCode) -> u64 {
        let refused = self.shared.refused.lock().expect("nobody panics with it");
        refused.get(&(code as u16)).copied().unwrap_or_default()
    }

    /// Waits until `more` records were acked from now on.
    #[track_caller]
    pub(crate) fn wait_for_acks(&self, more: u64) {
        let enough = self.acked() + more;
        let started = Instant::now();
        while self.acked() < enough {
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!ended, "the producer gave up");
            assert!(started.elapsed() < PATIENCE, "no progress: {} of {enough}", self.acked());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes nothing new, waits for what is under way.
    pub(crate) fn finish(mut self) -> Told {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is finished once");
        thread.join().expect("the producer ends well")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// A batch of up to seven records, all of a lane's first hash key; with their numbers.
fn batch(hash_key: HashKey, round: u64, data_bytes: u32) -> (BatchBuilder, Vec<u64>) {
    let records = 1 + (round % 7) as u32;
    let room = BatchRoom { records, key_bytes: records, data_bytes: records * data_bytes };
    let mut batch = BatchBuilder::new(room);
    let first = NEXT_NUMBER.fetch_add(u64::from(records), Ordering::Relaxed);
    let numbers: Vec<u64> = (first..first + u64::from(records)).collect();
    for number in &numbers {
        let mut data = vec![*number as u8; data_bytes as usize];
        data[..8].copy_from_slice(&number.to_le_bytes());
        batch.push(&NewRecord { hash_key, client_time_ms: 1, key: b"k", data: &data });
    }
    (batch, numbers)
}

/// Produces until told to stop; answers what it was told.
fn produce(config: LoadConfig, shared: &Shared, clock: &impl Fn() -> u64) -> Told {
    let mut producer = Producer::connect(config.producer).expect("the node serves");
    let mut under_way: BTreeMap<u64, (u32, Vec<u64>, u64)> = BTreeMap::new();
    let mut told = Told::default();
    let (mut round, mut sent_bytes) = (0, 0_u64);
    let started = Instant::now();
    let mut deadline = None;
    loop {
        let allowed_bytes = config.bytes_per_s as f64 * started.elapsed().as_secs_f64();
        let may_send =
            under_way.len() < config.batches_under_way && (sent_bytes as f64) <= allowed_bytes;
        if shared.stop.load(Ordering::Relaxed) {
            let due = *deadline.get_or_insert(Instant::now() + PATIENCE);
            if under_way.is_empty() {
                return told;
            }
            assert!(Instant::now() < due, "batches are not answered");
        } else if may_send {
            let lane = round as usize % producer.lanes().len();
            if producer.has_room(lane) {
                let shard = producer.lanes()[lane].shard.index;
                let hash_key = producer.lanes()[lane].range.start;
                let data_bytes = (config.data_bytes)(round);
                let (batch, numbers) = batch(hash_key, round, data_bytes);
                producer.submit(lane, batch, round);
                let bytes = u64::from(data_bytes) * numbers.len() as u64;
                sent_bytes += bytes;
                under_way.insert(round, (shard, numbers, bytes));
            }
            round += 1;
        }
        let wait = if may_send { Duration::ZERO } else { Duration::from_millis(1) };
        producer.poll(wait).expect("the node comes back in time");
        while let Some(outcome) = producer.next_outcome() {
            let batch = under_way.remove(&outcome.tag).expect("answered once");
            take_outcome(&outcome, batch, clock(), &mut told, shared);
        }
    }
}

fn take_outcome(
    outcome: &Outcome,
    (shard, numbers, bytes): (u32, Vec<u64>, u64),
    mark: u64,
    told: &mut Told,
    shared: &Shared,
) {
    match outcome.result {
        Ok(written) => {
            let (first_offset, records) = (written.first_offset.0, numbers.len() as u64);
            for (offset, number) in (first_offset..).zip(numbers) {
                let known = told.acked.insert((shard, offset), number);
                assert_eq!(known, None, "two acked records have one offset");
            }
            told.batches.push(AckedBatch { shard, first_offset, records, mark });
            shared.acked.fetch_add(records, Ordering::Relaxed);
            shared.acked_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Err(ProducerError::Refused(refusal) | ProducerError::OutcomeUnknown(refusal)) => {
            *told.refused.entry(refusal.code as u16).or_default() += 1;
            let mut shared = shared.refused.lock().expect("nobody panics with it");
            shared.clone_from(&told.refused);
        }
    }
}

/// Sends one batch to a shard, once; answers how it was refused, if it was.
pub(crate) fn refusal_of_write(node: SocketAddr, shard: u32) -> Option<ErrorCode> {
    let config = LoadConfig::new(node, &[shard]).producer;
    let config = ProducerConfig { retry_for: Duration::ZERO, ..config };
    let mut producer = Producer::connect(config).expect("the node serves");
    let (batch, _) = batch(producer.lanes()[0].range.start, 1, 200);
    producer.submit(0, batch, 0);
    let due = Instant::now() + PATIENCE;
    loop {
        producer.poll(Duration::from_millis(10)).expect("the node serves");
        if let Some(outcome) = producer.next_outcome() {
            let refusal = outcome.result.err()?;
            let (ProducerError::Refused(why) | ProducerError::OutcomeUnknown(why)) = refusal;
            return Some(why.code);
        }
        assert!(Instant::now() < due, "a write is not answered");
    }
}

/// Everything that can be read, without a gap; what is altered or there twice is an error of the
/// test.
///
/// # Errors
/// What the reader says.
pub(crate) fn read_everything(node: SocketAddr) -> Result<Records, ClientError> {
    let mut reader = Reader::connect(ReaderConfig::new(node, STREAM))?;
    let shards: Vec<u32> = reader.shards().iter().map(|shard| shard.id.index).collect();
    let mut found = Records::new();
    reader.read_all(|place, batch| {
        for record in batch.records() {
            let number = u64::from_le_bytes(record.data[..8].try_into().expect("8 bytes"));
            assert!(record.data[8..].iter().all(|byte| *byte == number as u8), "its own bytes");
            found.insert((shards[place], record.offset.0), number);
        }
    })?;
    let numbers: std::collections::BTreeSet<u64> = found.values().copied().collect();
    assert_eq!(numbers.len(), found.len(), "no record is there twice");
    Ok(found)
}
