//! The workload `latency` through the API: PutRecord at a steady rate, and how long after its
//! intended send a record was delivered by SubscribeToShard.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::ledger::{Book, Keys, RecordSource};
use super::put::{Put, PutPlan};
use super::run::{Run, StreamOfRun, put_watched};
use super::settings::{LatencyArgs, PutSettings, Target};
use super::subscribe::{ARRIVAL, Delivery, Following, Subscriptions};
use crate::drive::new_histogram;
use crate::error::BenchError;

/// The consumer's name.
const CONSUMER: &str = "thalweg-bench";
/// How long all shards may take to be subscribed to.
const SUBSCRIBE: Duration = Duration::from_secs(60);
/// How long it is listened after that: what comes twice may come late.
const LATE: Duration = Duration::from_millis(500);
/// How often it is looked whether all has come.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the workload; answers whether it passed.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(args: &LatencyArgs, url: &str) -> Result<bool, BenchError> {
    let access = &args.through.access;
    let target = Target::new(url, access)?;
    let settings = PutSettings::of_latency(args, access.http2)?;
    let source = RecordSource::new(settings.record_bytes);
    let keys = Keys::of_shards(settings.lanes() as u32, settings.shards, 1, 1);
    let stream = StreamOfRun::create(&target, settings.shards, settings.record_bytes)?;
    let plan = PutPlan {
        settings: &settings,
        client: &target.plan,
        streams: std::slice::from_ref(&stream.name),
        keys: &keys,
        source: &source,
    };
    let mut run = Run::new("latency", &target, settings.report(), settings.shards);
    run.api.created_ms = Some(stream.created_ms);
    let put = if args.subscribe {
        let consumer_arn = stream.register_consumer(CONSUMER)?;
        let following = Following::default();
        let subscriptions = Subscriptions {
            client: &target.plan,
            consumer_arn: &consumer_arn,
            shards: &stream.shards,
            keys: &keys,
            source: &source,
            following: &following,
        };
        let (put, deliveries) = put_and_follow(&plan, &subscriptions)?;
        take_deliveries(&mut run, &put, &deliveries);
        run.report.failures.extend(following.compare(&deliveries, &put.books));
        put
    } else {
        put_watched(&plan, None)?
    };
    run.take_put(&put);
    let shards = stream.shards_to_read();
    let written = (put.books.as_slice(), &keys, &source);
    run.read_back(&target.plan, &shards, settings.connections, written)?;
    drop(stream);
    run.finish(args.latency.common.json.as_deref())
}

/// Puts while the shards are subscribed to, and waits until what was acknowledged has come, or
/// nothing comes any more.
fn put_and_follow(
    plan: &PutPlan<'_>,
    subscriptions: &Subscriptions<'_>,
) -> Result<(Put, Vec<Delivery>), BenchError> {
    let following = subscriptions.following;
    let (ready, is_ready) = mpsc::channel();
    std::thread::scope(|scope| {
        let follower = scope.spawn(move || subscriptions.run(&ready));
        let ended = || follower.is_finished();
        eprintln!("subscribing to {} shards ...", subscriptions.shards.len());
        // The sender goes with a follower that fails.
        let subscribed = is_ready.recv_timeout(SUBSCRIBE).is_ok();
        let put = if subscribed { Some(put_watched(plan, None)) } else { None };
        if let Some(Ok(put)) = &put {
            let acknowledged: u64 = put.books.iter().map(Book::acknowledged).sum();
            let delivered = || following.delivered.load(Ordering::Relaxed);
            let (mut before, mut last) = (delivered(), Instant::now());
            while delivered() < acknowledged && last.elapsed() < ARRIVAL && !ended() {
                std::thread::sleep(LOOK);
                if delivered() > before {
                    (before, last) = (delivered(), Instant::now());
                }
            }
            std::thread::sleep(LATE);
        }
        following.over.store(true, Ordering::Relaxed);
        let deliveries = follower.join().map_err(|_| BenchError::Panicked)?;
        match put {
            Some(put) => Ok((put?, deliveries?)),
            None => {
                deliveries?;
                Err(BenchError::NotSubscribed { seconds: SUBSCRIBE.as_secs() })
            }
        }
    })
}

/// The time from a record's intended send to its delivery, of those intended within the span.
fn take_deliveries(run: &mut Run, put: &Put, deliveries: &[Delivery]) {
    let mut latency_us = new_histogram();
    for (id, at) in deliveries.iter().map(Delivery::arrival) {
        // A request has one record here.
        let Some(due) = put.schedule.due(id.lane, id.number) else { continue };
        if put.schedule.counts(due) {
            let us = at.saturating_duration_since(due).as_micros() as u64;
            latency_us.saturating_record(us.max(1));
        }
    }
    let api = &mut run.api;
    api.delivered = Some(deliveries.len() as u64);
    if !latency_us.is_empty() {
        api.delivery_p50_us = Some(latency_us.value_at_quantile(0.5));
        api.delivery_p99_us = Some(latency_us.value_at_quantile(0.99));
        api.delivery_p999_us = Some(latency_us.value_at_quantile(0.999));
        api.delivery_max_us = Some(latency_us.max());
    }
}
