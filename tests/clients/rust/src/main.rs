//! The AWS SDK for Rust: a stream read with GetRecords and with SubscribeToShard through a split
//! and a merge, while records are put.
//!
//! Endpoint, region and keys stand in the environment, in the variables of AWS's SDKs. What must
//! hold is asserted: the process fails when it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{
    ChildShard, ConsumerStatus, PutRecordsRequestEntry, Record, Shard, ShardFilter,
    ShardFilterType, ShardIteratorType, StartingPosition, StreamStatus,
    SubscribeToShardEventStream,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use futures_util::future::try_join_all;
use tokio::time::sleep;

const STREAM: &str = "sdk-rust-rivers";
const PATIENCE: Duration = Duration::from_secs(60);
/// Keys: in each round one record of each is put, with the number of the round.
const KEYS: usize = 5;
const ROUNDS: u32 = 30;
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// The rounds in which the stream is split, and merged.
const SPLIT_AT: u32 = ROUNDS / 3;
const MERGE_AT: u32 = 2 * ROUNDS / 3;
/// A shard can be asked five times a second.
const POLL_PAUSE: Duration = Duration::from_millis(300);
const STATUS_PAUSE: Duration = Duration::from_millis(500);
/// All clients together call more often than an account may: it tries again.
const ATTEMPTS_MAX: u32 = 10;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let kinesis = Client::from_conf(config()?);
    kinesis.create_stream().stream_name(STREAM).shard_count(1).send().await?;
    let arn = active(&kinesis).await?;
    let consumer = register(&kinesis, &arn).await?;
    let root = shards(&kinesis, None).await?[0].shard_id().to_owned();

    let (polled, pushed) = (Reading::default(), Reading::default());
    let ((), (), ()) = tokio::try_join!(
        write(&kinesis),
        poll(&kinesis, &root, &polled),
        fan_out(&kinesis, &consumer, &root, &pushed),
    )?;
    polled.check();
    pushed.check();

    let missing = kinesis.describe_stream_summary().stream_name("no-such").send().await;
    let error = missing.expect_err("there is no such stream").into_service_error();
    assert!(error.is_resource_not_found_exception(), "{error:?}");
    kinesis.deregister_stream_consumer().consumer_arn(&consumer).send().await?;
    kinesis.delete_stream().stream_name(STREAM).enforce_consumer_deletion(true).send().await?;
    Ok(())
}

fn config() -> Result<Config, Failure> {
    let http_client = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let credentials = Credentials::new(
        env::var("AWS_ACCESS_KEY_ID")?,
        env::var("AWS_SECRET_ACCESS_KEY")?,
        None,
        None,
        "environment",
    );
    Ok(Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http_client)
        .endpoint_url(env::var("AWS_ENDPOINT_URL_KINESIS")?)
        .region(Region::new(env::var("AWS_REGION")?))
        .credentials_provider(credentials)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
        .build())
}

/// Waits until nothing is to become of the stream any more; answers its ARN.
async fn active(kinesis: &Client) -> Result<String, Failure> {
    let started = Instant::now();
    loop {
        let found = kinesis.describe_stream_summary().stream_name(STREAM).send().await?;
        let summary = found.stream_description_summary().expect("it is required");
        if *summary.stream_status() == StreamStatus::Active {
            return Ok(summary.stream_arn().to_owned());
        }
        assert!(started.elapsed() < PATIENCE, "the stream stays {:?}", summary.stream_status());
        sleep(STATUS_PAUSE).await;
    }
}

/// Registers a consumer; answers its ARN.
async fn register(kinesis: &Client, arn: &str) -> Result<String, Failure> {
    let registered =
        kinesis.register_stream_consumer().stream_arn(arn).consumer_name("gauge").send().await?;
    let consumer = registered.consumer().expect("it is required").consumer_arn().to_owned();
    let started = Instant::now();
    loop {
        let found = kinesis.describe_stream_consumer().consumer_arn(&consumer).send().await?;
        let description = found.consumer_description().expect("it is required");
        if *description.consumer_status() == ConsumerStatus::Active {
            return Ok(consumer);
        }
        assert!(started.elapsed() < PATIENCE, "the consumer is not there");
        sleep(STATUS_PAUSE).await;
    }
}

/// All shards, or those that a filter leaves.
async fn shards(kinesis: &Client, filter: Option<ShardFilter>) -> Result<Vec<Shard>, Failure> {
    let listed = kinesis.list_shards().stream_name(STREAM).set_shard_filter(filter).send().await?;
    Ok(listed.shards().to_vec())
}

/// The open shards, in the order of their hash keys.
async fn open_shards(kinesis: &Client) -> Result<Vec<Shard>, Failure> {
    let filter = ShardFilter::builder().r#type(ShardFilterType::AtLatest).build()?;
    let mut shards = shards(kinesis, Some(filter)).await?;
    shards.sort_by_key(|shard| {
        let range = shard.hash_key_range().expect("it is required");
        range.starting_hash_key().parse::<u128>().expect("it is decimal")
    });
    Ok(shards)
}

/// Splits the one open shard in the middle, or merges the two.
async fn reshard(kinesis: &Client) -> Result<(), Failure> {
    active(kinesis).await?;
    match open_shards(kinesis).await?.as_slice() {
        [shard] => {
            let middle = (1_u128 << 127).to_string();
            let split = kinesis.split_shard().stream_name(STREAM);
            split.shard_to_split(shard.shard_id()).new_starting_hash_key(middle).send().await?;
        }
        [lower, upper] => {
            let merge = kinesis.merge_shards().stream_name(STREAM);
            let merge = merge.shard_to_merge(lower.shard_id());
            merge.adjacent_shard_to_merge(upper.shard_id()).send().await?;
        }
        others => panic!("{} open shards", others.len()),
    }
    Ok(())
}

/// Puts all rounds, through a split and a merge. Nothing is put again: no put may fail.
async fn write(kinesis: &Client) -> Result<(), Failure> {
    for number in 0..ROUNDS {
        if [SPLIT_AT, MERGE_AT].contains(&number) {
            reshard(kinesis).await?;
        }
        let records: Result<Vec<_>, _> = (0..KEYS)
            .map(|key| {
                let data = Blob::new(format!("key-{key} {number}"));
                let key = format!("key-{key}");
                PutRecordsRequestEntry::builder().partition_key(key).data(data).build()
            })
            .collect();
        let put = kinesis.put_records().stream_name(STREAM).set_records(Some(records?));
        let put = put.send().await?;
        assert_eq!(put.failed_record_count(), Some(0), "{put:?}");
        sleep(ROUND_PAUSE).await;
    }
    Ok(())
}

/// What was read, and which shards were: children when all their parents have come to their end.
#[derive(Default)]
struct Reading {
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    /// Numbers of each key, in the order of reading.
    numbers: BTreeMap<String, Vec<u32>>,
    records: usize,
    started: BTreeSet<String>,
    ended: BTreeSet<String>,
}

impl Reading {
    /// Whether everything was read now.
    fn add(&self, records: &[Record]) -> bool {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            let text = str::from_utf8(record.data().as_ref()).expect("what was put is text");
            let (key, number) = text.split_once(' ').expect("what was put has two parts");
            assert_eq!(key, record.partition_key());
            let numbers = read.numbers.entry(key.to_owned()).or_default();
            numbers.push(number.parse().expect("what was put ends with a number"));
        }
        read.records += records.len();
        read.records >= KEYS * ROUNDS as usize
    }

    /// The children that can be read now that this shard was read to its end.
    fn end(&self, shard: &str, children: &[ChildShard]) -> Vec<String> {
        assert!(!children.is_empty(), "{shard} ended without children");
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.ended.insert(shard.to_owned());
        let mut ready = Vec::new();
        for child in children {
            let are_ended = child.parent_shards().iter().all(|parent| read.ended.contains(parent));
            if are_ended && read.started.insert(child.shard_id().to_owned()) {
                ready.push(child.shard_id().to_owned());
            }
        }
        ready
    }

    /// Every record once, each key's in the order in which they were put.
    fn check(&self) {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let expected: BTreeMap<String, Vec<u32>> =
            (0..KEYS).map(|key| (format!("key-{key}"), (0..ROUNDS).collect())).collect();
        assert_eq!(read.numbers, expected);
    }
}

/// Reads with GetRecords until everything is there, and once more: nothing may follow.
async fn poll(kinesis: &Client, root: &str, reading: &Reading) -> Result<(), Failure> {
    let started = Instant::now();
    let mut iterators = BTreeMap::from([(root.to_owned(), iterator(kinesis, root).await?)]);
    let (mut is_enough, mut is_last) = (false, false);
    loop {
        for (shard, shard_iterator) in std::mem::take(&mut iterators) {
            let got = kinesis.get_records().shard_iterator(shard_iterator).send().await?;
            is_enough = reading.add(got.records());
            if let Some(next) = got.next_shard_iterator() {
                iterators.insert(shard, next.to_owned());
                continue;
            }
            for child in reading.end(&shard, got.child_shards()) {
                let shard_iterator = iterator(kinesis, &child).await?;
                iterators.insert(child, shard_iterator);
            }
        }
        if is_last {
            return Ok(());
        }
        is_last = is_enough;
        assert!(started.elapsed() < PATIENCE, "what was put is not read");
        sleep(POLL_PAUSE).await;
    }
}

/// An iterator at the beginning of a shard.
async fn iterator(kinesis: &Client, shard: &str) -> Result<String, Failure> {
    let asked = kinesis.get_shard_iterator().stream_name(STREAM).shard_id(shard);
    let got = asked.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await?;
    Ok(got.shard_iterator().expect("a shard that is there has one").to_owned())
}

type Following<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// Reads a shard with SubscribeToShard, and its children after it, until everything is there.
fn fan_out<'a>(
    kinesis: &'a Client,
    consumer: &'a str,
    shard: &'a str,
    reading: &'a Reading,
) -> Following<'a> {
    Box::pin(async move {
        let started = Instant::now();
        let start = StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon).build()?;
        let asked = kinesis.subscribe_to_shard().consumer_arn(consumer).shard_id(shard);
        let mut events = asked.starting_position(start).send().await?.event_stream;
        while let Some(event) = events.recv().await? {
            let SubscribeToShardEventStream::SubscribeToShardEvent(event) = event else {
                panic!("an event of another kind: {event:?}");
            };
            let is_enough = reading.add(event.records());
            // The model requires it, so at a shard's end, where it is missing, the SDK has an empty
            // text for it.
            if event.continuation_sequence_number().is_empty() {
                let children = reading.end(shard, event.child_shards());
                let follow = |child| fan_out(kinesis, consumer, child, reading);
                try_join_all(children.iter().map(|child| follow(child))).await?;
                return Ok(());
            }
            if is_enough {
                return Ok(());
            }
            assert!(started.elapsed() < PATIENCE, "what was put is not pushed");
        }
        panic!("the subscription to {shard} ended before the shard");
    })
}
