//! How fast the embedded metadata store is on a disk: `store_rate DIRECTORY`. Prints one line a
//! workload.

use std::path::Path;
use std::time::{Duration, Instant};

use thalweg_router::control::store::embedded::{EmbeddedOptions, EmbeddedStore};
use thalweg_router::control::store::{PageRequest, Store, Transaction};

/// How long each workload runs.
const RUN: Duration = Duration::from_secs(3);
/// Keys that are written and read.
const KEYS: u64 = 10_000;
/// What a shard's or an extent's row may take.
const VALUE_BYTES: usize = 200;

fn key(number: u64) -> String {
    format!("stream/{:05}/shard", number * 7919 % KEYS)
}

/// Runs a workload in so many tasks; prints how often it was done.
async fn measure<F, W>(name: &str, tasks: u64, work: W)
where
    F: Future<Output = ()> + Send,
    W: Fn(u64) -> F + Clone + Send + 'static,
{
    let started = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            let work = work.clone();
            tokio::spawn(async move {
                let mut waits_us = Vec::new();
                while started.elapsed() < RUN {
                    let begin = Instant::now();
                    work(waits_us.len() as u64 * tasks + task).await;
                    waits_us.push(begin.elapsed().as_secs_f64() * 1e6);
                }
                waits_us
            })
        })
        .collect();
    let mut waits_us = Vec::new();
    for task in running {
        waits_us.append(&mut task.await.expect("the workload runs"));
    }
    waits_us.sort_unstable_by(f64::total_cmp);
    let rate = waits_us.len() as f64 / started.elapsed().as_secs_f64();
    let at = |share: usize| waits_us[(waits_us.len() - 1) * share / 100];
    println!("{name:<28} {rate:>9.0}/s  p50 {:>7.0} us  p99 {:>7.0} us", at(50), at(99));
}

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).expect("usage: store_rate DIRECTORY");
    let directory = tempfile::tempdir_in(directory).expect("the directory can be written");
    let path = directory.path().join("metadata");
    let store =
        EmbeddedStore::open(Path::new(&path), EmbeddedOptions::default()).expect("the store opens");
    for first in (0..KEYS).step_by(100) {
        let rows = (first..first + 100)
            .fold(Transaction::new(), |rows, number| rows.put(key(number), vec![1; VALUE_BYTES]));
        store.commit(rows).await.expect("the keys are written");
    }
    let commit = {
        let store = store.clone();
        move |number| {
            let store = store.clone();
            async move {
                let transaction = Transaction::new().put(key(number), vec![2; VALUE_BYTES]);
                store.commit(transaction).await.expect("it is committed");
            }
        }
    };
    measure("commits, one at a time", 1, commit.clone()).await;
    measure("commits, 64 at a time", 64, commit).await;
    let get = {
        let store = store.clone();
        move |number| {
            let store = store.clone();
            async move {
                let found = store.get(key(number).into()).await.expect("it is read");
                assert!(found.is_some());
            }
        }
    };
    measure("gets, one at a time", 1, get.clone()).await;
    measure("gets, 64 at a time", 64, get).await;
    let page = move |number: u64| {
        let store = store.clone();
        async move {
            let after = Some(key(number).into());
            let request = PageRequest { after, limit: 100, ..PageRequest::first("stream/") };
            store.range(request).await.expect("it is read");
        }
    };
    measure("pages of 100, one at a time", 1, page).await;
}
