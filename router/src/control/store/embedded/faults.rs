//! Disks that fail, and what must hold on them: what was answered is there after a crash, whole;
//! after a failure nothing more is answered.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;
use thalweg_node::io::sim::SimRandom;

use super::super::{
    CommitError, Expectation, LeaseError, LeaseId, ReadError, Revision, Store, StoreError,
    Transaction, Watch, WatchError, snapshot,
};
use super::{EmbeddedOptions, EmbeddedStore};

/// What may be torn: a write reaches the disk in pieces of this size, in any order or not.
const SECTOR_BYTES: usize = 512;

/// A disk in memory, with what its cache holds and what would be left of it. Clones are one disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Image>>);

#[derive(Debug, Default)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync, in order.
    unsynced: Vec<Unsynced>,
    syncs: u64,
    writes: u64,
    plan: Plan,
    is_off: bool,
}

#[derive(Debug)]
enum Unsynced {
    Write { at: usize, data: Vec<u8> },
    Length(usize),
}

/// What fails, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    /// The sync with this number fails, and does nothing. Later ones succeed, as those of a kernel
    /// that has dropped the dirty pages do.
    pub fail_sync: Option<u64>,
    /// The write with this number fails, and does nothing.
    pub fail_write: Option<u64>,
    /// Reads fail.
    pub fail_reads: bool,
    /// At the sync with this number the power goes.
    pub cut_at_sync: Option<u64>,
}

impl Disk {
    /// A disk that holds this.
    pub(crate) fn with(bytes: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(Image {
            live: bytes.clone(),
            durable: bytes,
            ..Image::default()
        })))
    }

    /// Opens the store on it.
    pub(crate) fn open(&self, options: EmbeddedOptions) -> EmbeddedStore {
        EmbeddedStore::open_on(self.clone(), options).expect("the disk's store opens")
    }

    /// Counts from here on, and fails as planned.
    pub(crate) fn plan(&self, plan: Plan) {
        let mut image = self.image();
        (image.syncs, image.writes, image.plan) = (0, 0, plan);
    }

    /// Syncs and writes since the plan was made.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let image = self.image();
        (image.syncs, image.writes)
    }

    /// The power goes: nothing reaches the disk any more. Answers what is found on it afterwards:
    /// what was synced, and of what was not, the sectors that `keeps` says.
    pub(crate) fn cut(&self, mut keeps: impl FnMut() -> bool) -> Disk {
        let mut image = self.image();
        image.is_off = true;
        let mut left = image.durable.clone();
        for unsynced in &image.unsynced {
            match unsynced {
                Unsynced::Length(length) => {
                    if keeps() {
                        left.resize(*length, 0);
                    }
                }
                Unsynced::Write { at, data } => {
                    for (place, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        let at = at + place * SECTOR_BYTES;
                        // What lies beyond the length that the file kept is gone with that.
                        if keeps() && at + sector.len() <= left.len() {
                            left[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        Disk::with(left)
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap()
    }
}

fn broken() -> io::Error {
    rustix::io::Errno::IO.into()
}

impl Image {
    fn check_power(&self) -> io::Result<()> {
        if self.is_off { Err(broken()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.image().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.image();
        image.check_power()?;
        if image.plan.fail_reads {
            return Err(broken());
        }
        let at = offset as usize;
        let found = image.live.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut image = self.image();
        image.check_power()?;
        image.live.resize(length as usize, 0);
        image.unsynced.push(Unsynced::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.image();
        image.check_power()?;
        image.syncs += 1;
        let number = Some(image.syncs);
        if number == image.plan.cut_at_sync {
            image.is_off = true;
            return Err(broken());
        }
        if number == image.plan.fail_sync {
            return Err(broken());
        }
        image.durable = image.live.clone();
        image.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut image = self.image();
        image.check_power()?;
        image.writes += 1;
        if Some(image.writes) == image.plan.fail_write {
            return Err(broken());
        }
        let at = offset as usize;
        let end = at + data.len();
        if image.live.len() < end {
            image.live.resize(end, 0);
        }
        image.live[at..end].copy_from_slice(data);
        image.unsynced.push(Unsynced::Write { at, data: data.to_vec() });
        Ok(())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

const PARTS: usize = 3;

/// A transaction of several keys whose value names it.
fn whole(writer: usize, number: usize) -> Transaction {
    (0..PARTS).fold(Transaction::new(), |transaction, part| {
        let key = format!("{writer}/{number}/{part}");
        transaction.expect(key.clone(), Expectation::Absent).put(key, vec![number as u8; 300])
    })
}

/// Several writers commit until the store fails them; what was answered.
async fn write_until_it_fails(store: &EmbeddedStore, writers: usize) -> Vec<(usize, usize)> {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut answered = Vec::new();
                for number in 0..1000 {
                    match store.commit(whole(writer, number)).await {
                        Ok(_) => answered.push((writer, number)),
                        Err(CommitError::OutcomeUnknown { .. } | CommitError::Store(_)) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                answered
            })
        })
        .collect();
    let mut answered = Vec::new();
    for task in tasks {
        answered.append(&mut task.await.unwrap());
    }
    answered
}

/// What was answered is there; whatever is there is whole; the history tells the same.
async fn check(store: &EmbeddedStore, answered: &[(usize, usize)], seed: u64) {
    let found = snapshot(store, "".into()).await.unwrap();
    let keys: Vec<String> =
        found.entries.iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()).collect();
    for (writer, number) in answered {
        for part in 0..PARTS {
            let key = format!("{writer}/{number}/{part}");
            assert!(keys.binary_search(&key).is_ok(), "seed {seed}: {key} was answered");
        }
    }
    assert_eq!(keys.len() as u64, found.revision.0 * PARTS as u64, "seed {seed}: all are whole");
    let mut watch = store.watch("".into(), Revision(0)).await.unwrap();
    let mut told = Vec::new();
    while watch.revision() < found.revision {
        let set = watch.next().await.unwrap();
        assert_eq!(set.changes.len(), PARTS, "seed {seed}: a revision is whole");
        let keys = set.changes.iter().map(|change| String::from_utf8(change.key().to_vec()));
        told.extend(keys.map(Result::unwrap));
    }
    told.sort_unstable();
    assert_eq!(told, keys, "seed {seed}: the history tells what is there");
}

#[test]
fn what_was_answered_is_there_after_a_power_cut() {
    let mut answered_in_all = 0;
    for seed in 0..120 {
        let mut random = SimRandom::new(seed);
        let disk = Disk::default();
        let runtime = runtime();
        let answered = runtime.block_on(async {
            let store = disk.open(EmbeddedOptions::default());
            disk.plan(Plan { cut_at_sync: Some(1 + random.below(12)), ..Plan::default() });
            write_until_it_fails(&store, 1 + random.below(8) as usize).await
        });
        // Everything, nothing, or any part of what was on its way.
        let left = match seed % 4 {
            0 => disk.cut(|| true),
            1 => disk.cut(|| false),
            2 => disk.cut(|| random.once_in(2)),
            _ => disk.cut(|| !random.once_in(8)),
        };
        runtime.block_on(async {
            let store = left.open(EmbeddedOptions::default());
            check(&store, &answered, seed).await;
            store.commit(whole(99, 0)).await.expect("it goes on");
        });
        answered_in_all += answered.len();
    }
    assert!(answered_in_all > 1000, "{answered_in_all}");
}

/// After a failure: nothing is answered, nothing is written. How much was written until then.
async fn check_stopped(store: &EmbeddedStore, disk: &Disk, lease: LeaseId) -> u64 {
    fn is_stopped(error: &StoreError) -> bool {
        matches!(error, StoreError::Stopped { .. })
    }
    let (_, writes) = disk.counts();
    let commit = store.commit(whole(77, 0)).await;
    assert!(matches!(&commit, Err(CommitError::Store(error)) if is_stopped(error)), "{commit:?}");
    let get = store.get("0/0/0".into()).await;
    assert!(matches!(&get, Err(ReadError::Store(error)) if is_stopped(error)), "{get:?}");
    for answer in [store.keep_alive(lease).await, store.revoke(lease).await] {
        let is_told = matches!(&answer, Err(LeaseError::Store(error)) if is_stopped(error));
        assert!(is_told, "{answer:?}");
    }
    let watch = store.watch("".into(), Revision(0)).await.map(|_| ());
    assert!(matches!(&watch, Err(WatchError::Store(error)) if is_stopped(error)), "{watch:?}");
    let shown = commit.unwrap_err().to_string();
    assert!(shown.contains("restart") && shown.contains("Input/output error"), "{shown}");
    assert_eq!(disk.counts().1, writes, "nothing more is written");
    writes
}

#[test]
fn a_failed_sync_or_write_stops_the_store_for_good() {
    for seed in 0..24 {
        let number = Some(1 + seed / 2);
        let plan = match seed % 2 {
            0 => Plan { fail_sync: number, ..Plan::default() },
            _ => Plan { fail_write: number.map(|number| number * 5), ..Plan::default() },
        };
        let disk = Disk::default();
        let (answered, writes) = runtime().block_on(async {
            let store = disk.open(EmbeddedOptions::default());
            let lease = store.grant(60).await.unwrap();
            let mut watch = store.watch("".into(), Revision(0)).await.unwrap();
            disk.plan(plan);
            let answered = write_until_it_fails(&store, 4).await;
            let writes = check_stopped(&store, &disk, lease).await;
            // A watch tells what was durable, and then that there will be nothing more.
            let mut told = 0;
            let end = loop {
                match watch.next().await {
                    Ok(set) => told = set.revision.0,
                    Err(end) => break end,
                }
            };
            assert!(matches!(end, WatchError::Store(StoreError::Stopped { .. })), "{end:?}");
            assert_eq!(told, answered.len() as u64, "seed {seed}");
            store.close().await;
            (answered, writes)
        });
        assert_eq!(disk.counts().1, writes, "seed {seed}: nor when it is closed");
        let mut random = SimRandom::new(seed);
        let left = disk.cut(|| random.once_in(2));
        runtime().block_on(async {
            check(&left.open(EmbeddedOptions::default()), &answered, seed).await;
        });
    }
}

#[test]
fn an_answer_is_unknown_only_if_it_may_have_been_done() {
    let disk = Disk::default();
    let errors = runtime().block_on(async {
        let store = disk.open(EmbeddedOptions::default());
        store.commit(whole(0, 0)).await.unwrap();
        disk.plan(Plan { fail_sync: Some(1), ..Plan::default() });
        // They wait at once, so that one commit of the file may take them.
        let writes = store.commit(whole(0, 1));
        let conflicts = store.commit(whole(0, 0));
        let reads = store.commit(Transaction::new());
        tokio::join!(writes, conflicts, reads)
    });
    let (writes, conflicts, reads) = errors;
    assert!(matches!(writes, Err(CommitError::OutcomeUnknown { .. })), "{writes:?}");
    for answer in [conflicts, reads] {
        let is_told = matches!(answer, Err(CommitError::Store(StoreError::Stopped { .. })));
        assert!(is_told, "they would have changed nothing: {answer:?}");
    }
}

#[test]
fn a_failed_read_stops_the_store() {
    let options = EmbeddedOptions { cache_bytes: super::CACHE_BYTES_MIN, ..Default::default() };
    let disk = Disk::default();
    runtime().block_on(async {
        let store = disk.open(options);
        for number in 0..40 {
            let key = format!("large/{number}");
            store.commit(Transaction::new().put(key, vec![7; 100_000])).await.unwrap();
        }
        let lease = store.grant(60).await.unwrap();
        disk.plan(Plan { fail_reads: true, ..Plan::default() });
        let mut failed = false;
        for number in 0..40 {
            failed |= store.get(format!("large/{number}").into()).await.is_err();
        }
        assert!(failed, "not all of it is in memory");
        disk.plan(Plan::default());
        assert_eq!(check_stopped(&store, &disk, lease).await, 0);
    });
}
