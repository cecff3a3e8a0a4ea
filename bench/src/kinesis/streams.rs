//! The workload `streams`: very many streams through the API, created and deleted so many at a
//! time, and records to random ones of them at a steady rate in between.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::connection::ClientPlan;
use super::control::control_plan;
use super::ledger::{Book, Keys, RecordId, RecordSource};
use super::put::PutPlan;
use super::read::ShardToRead;
use super::run::{Run, on_controls, put_watched};
use super::settings::{PutSettings, StreamsArgs, Target};
use crate::error::BenchError;

/// How often a line is printed while streams are created.
const TELL: Duration = Duration::from_secs(5);

/// Runs the workload; answers whether it passed.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(args: &StreamsArgs) -> Result<bool, BenchError> {
    let target = Target::new(&args.target, &args.access)?;
    let settings = PutSettings::of_streams(args)?;
    let source = RecordSource::new(settings.record_bytes);
    let keys = Keys::Alone { streams: args.streams };
    let streams = StreamsOfRun::new(&target, args);
    eprintln!(
        "creating {} streams with {} shards at {}, {} at a time ...",
        args.streams, args.shards, args.target, args.connections
    );
    let began = Instant::now();
    streams.create()?;
    let created_ms = began.elapsed().as_millis() as u64;
    eprintln!("created in {:.1} s", created_ms as f64 / 1000.0);
    let put = put_watched(
        &PutPlan {
            settings: &settings,
            client: &target.plan,
            streams: &streams.names,
            keys: &keys,
            source: &source,
        },
        None,
    )?;
    let mut of_workload = settings.report();
    of_workload["streams"] = json!(args.streams);
    of_workload["shards"] = json!(args.shards);
    let mut run = Run::new("streams", &target, of_workload, args.shards);
    run.api.streams = Some(args.streams);
    run.api.created_ms = Some(created_ms);
    run.take_put(&put);
    let shards = streams.shards_written(&put.books, &keys)?;
    let written = (put.books.as_slice(), &keys, &source);
    run.read_back(&target.plan, &shards, settings.connections, written)?;
    eprintln!("deleting {} streams ...", args.streams);
    drop(streams);
    run.finish(args.json.as_deref())
}

/// Streams that are deleted when this goes, however the run ends.
struct StreamsOfRun {
    plan: ClientPlan,
    names: Vec<String>,
    shards: Vec<u32>,
    connections: usize,
    /// Which of them are ours to delete.
    created: Vec<AtomicBool>,
}

impl StreamsOfRun {
    fn new(target: &Target, args: &StreamsArgs) -> StreamsOfRun {
        StreamsOfRun {
            plan: control_plan(&target.plan),
            names: (0..args.streams).map(|at| format!("{}-{at:05}", target.stream)).collect(),
            shards: (0..args.streams).map(|at| share(args.shards, args.streams, at)).collect(),
            connections: args.connections,
            created: (0..args.streams).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Creates them and waits until all are ACTIVE.
    fn create(&self) -> Result<(), BenchError> {
        let done = AtomicU32::new(0);
        let told = Mutex::new(Instant::now());
        let count = self.names.len() as u32;
        on_controls(&self.plan, self.connections, count, async |control, at| {
            let name = &self.names[at as usize];
            control.create_stream(name, self.shards[at as usize]).await?;
            self.created[at as usize].store(true, Ordering::Relaxed);
            control.wait_active(name).await?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            let mut told = told.lock().expect("nobody panics with it");
            if told.elapsed() > TELL {
                *told = Instant::now();
                eprintln!("{done} of {count} streams are there");
            }
            Ok(())
        })
    }

    /// All shards of the streams that acknowledged something.
    fn shards_written(&self, books: &[Book], keys: &Keys) -> Result<Vec<ShardToRead>, BenchError> {
        let mut written = BTreeSet::new();
        for (lane, book) in (0..).zip(books) {
            for (number, _) in book.acknowledged_places() {
                written.insert(keys.stream(RecordId { lane, number }));
            }
        }
        let written: Vec<u32> = written.into_iter().collect();
        eprintln!("listing the shards of {} streams ...", written.len());
        let found = Mutex::new(Vec::new());
        let count = written.len() as u32;
        on_controls(&self.plan, self.connections, count, async |control, at| {
            let stream = written[at as usize];
            let name = &self.names[stream as usize];
            let shards = control.shards(name).await?;
            let expected = self.shards[stream as usize];
            if shards.len() != expected as usize {
                let (stream, found) = (name.clone(), shards.len());
                return Err(BenchError::ShardCount { stream, found, expected });
            }
            let shard = |shard| ShardToRead { stream, name: name.clone(), shard };
            let mut found = found.lock().expect("nobody panics with it");
            found.extend(shards.into_iter().map(shard));
            Ok(())
        })?;
        Ok(found.into_inner().expect("nobody panics with it"))
    }
}

impl Drop for StreamsOfRun {
    fn drop(&mut self) {
        let created = self.names.iter().zip(&self.created);
        let created = created.filter(|(_, created)| created.load(Ordering::Relaxed));
        let names: Vec<&String> = created.map(|(name, _)| name).collect();
        let (left, first) = (AtomicU32::new(0), Mutex::new(None));
        let count = names.len() as u32;
        let deleted = on_controls(&self.plan, self.connections, count, async |control, at| {
            match control.delete_stream(names[at as usize]).await {
                // A server that is gone would be waited for as often as there are streams.
                Err(BenchError::Call { operation, source }) if source.is_of_connection() => {
                    return Err(BenchError::Call { operation, source });
                }
                // One that could not be deleted does not keep the others.
                Err(error) => {
                    left.fetch_add(1, Ordering::Relaxed);
                    first.lock().expect("nobody panics with it").get_or_insert(error);
                }
                Ok(()) => {}
            }
            Ok(())
        });
        let first = first.into_inner().expect("nobody panics with it");
        match (deleted, first) {
            (Err(error), _) => {
                let begins = names.first().map_or("", |name| name.as_str());
                eprintln!("warning: streams from {begins} on could not be deleted: {error}");
            }
            (Ok(()), Some(error)) => {
                let left = left.into_inner();
                eprintln!("warning: {left} streams could not be deleted, the first: {error}");
            }
            (Ok(()), None) => {}
        }
    }
}

/// The shards of one stream of so many that share them evenly.
fn share(shards: u32, streams: u32, at: u32) -> u32 {
    let upto = |at: u32| u64::from(shards) * u64::from(at) / u64::from(streams);
    (upto(at + 1) - upto(at)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_the_shards() {
        for (shards, streams) in [(100_000, 10_000), (10, 10), (11, 10), (1_000_000, 99_999)] {
            let shares: Vec<u32> = (0..streams).map(|at| share(shards, streams, at)).collect();
            assert_eq!(shares.iter().sum::<u32>(), shards);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(*least >= 1 && most - least <= 1);
        }
    }
}
