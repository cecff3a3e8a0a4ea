//! The embedded metadata store: one redb file in the router's own process, for one router.
//!
//! - `queue`: what waits to be written. `writer` takes it in groups and makes each group durable
//!   with one commit of the file. `tables` has what stands in the file.
//! - Reads run on tokio's blocking threads, each on a state of its own that no commit disturbs. In
//!   memory a get takes 2 us and the way to another thread and back 25 us more (`examples/
//!   store_rate.rs`), but a page that is not in memory waits for the disk, and a disk that hangs
//!   would take the threads that serve requests with it. Routers look things up in what they follow
//!   by a watch, not here, so that the difference does not matter.
//! - `watch`: changes as they come. `lease`: when leases end. `pins`: listings under way.
//! - `snapshot`: the whole store as a file, and back.
//!
//! **What was answered is durable.** redb writes a commit with checksums and one `fdatasync`; after
//! a crash it finds the last commit that is whole (its design document, "1PC+C"). A failure of the
//! file is final: the store answers nothing more until it is opened again.

mod files;
mod lease;
mod pins;
mod queue;
mod snapshot;
mod tables;
mod watch;
mod writer;

#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTableMetadata};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};

use self::lease::Deadlines;
use self::pins::Pins;
use self::queue::{Job, Queue};
use self::tables::{Fault, HistoryLimits, IdentityFault, State, Tables};
use self::watch::{Progress, Tail};
use self::writer::{Writer, answer_of};
use super::{
    CommitError, Entry, Generation, LEASE_TTL_S_MAX, LEASE_TTL_S_MIN, LeaseError, LeaseId, Page,
    PageRequest, ReadError, Revision, Store, StoreError, Transaction, WatchError,
};

pub use self::snapshot::{RESTORE_JUMP, Restored, SnapshotError, SnapshotFile, restore};
pub use self::watch::{EmbeddedWatch, WATCHES_MAX};
pub use self::writer::LEASES_MAX;

/// Reads at once; others wait. Ours: it bounds the blocking threads that they take.
pub const READS_MAX: usize = 16;
/// Least memory for pages of the file. Ours: the paths of one commit.
pub const CACHE_BYTES_MIN: usize = 1024 * 1024;

/// How an embedded store is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EmbeddedOptions {
    /// Memory for pages of the file, in bytes; at least [`CACHE_BYTES_MIN`].
    pub cache_bytes: usize,
    /// Changes that are kept for watches that are behind.
    pub history_changes_max: u64,
    /// Bytes of these changes: keys, values, and 64 each.
    pub history_bytes_max: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions {
            cache_bytes: 64 * 1024 * 1024,
            history_changes_max: 100_000,
            history_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process, or another part of this one, has it open.
    #[error(
        "{} is in use by another router: stop that one, or name another file; several routers need \
         etcd", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is some other file.
    #[error(
        "{} is not a metadata store: name the file of one, or one that does not exist yet",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// It is of another version.
    #[error(
        "{} has format {found}, this version reads format {supported}: run the version that wrote \
         it", path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        supported: u64,
    },
    /// It is a snapshot: opened as it is, it would pass for the store that it was taken of.
    #[error("{} is a snapshot: restore it into a new file and open that", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
    },
    /// Its bytes are not what was written.
    #[error(
        "{} is damaged ({what}): keep it, check the disk, and restore the last snapshot into a new \
         file", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The options are out of range.
    #[error(
        "options out of range: the cache has at least {CACHE_BYTES_MIN} bytes, the history at least \
         one change and one byte"
    )]
    Options,
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How a store fares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The last revision.
    pub revision: Revision,
    /// Watches may begin here at the earliest.
    pub compacted: Revision,
    /// Changes in the history.
    pub history_changes: u64,
    /// Bytes of the history, as [`EmbeddedOptions::history_bytes_max`] counts them.
    pub history_bytes: u64,
    /// Operations that wait for the writer.
    pub waiting: usize,
    /// Why it answers nothing more.
    pub end: Option<StoreError>,
}

/// The embedded store. Clones are one store; when the last is dropped it is closed, which may wait
/// for one commit. Its methods are called within a tokio runtime.
#[derive(Clone)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    closer: Arc<Closer>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("EmbeddedStore");
        shown.field("generation", &self.shared.generation).field("status", &self.status());
        shown.finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in a file; makes it when there is no such file. Reads the whole file to
    /// check it, and blocks for so long: for the start of a process.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: EmbeddedOptions) -> Result<EmbeddedStore, OpenError> {
        options.check()?;
        let io_error = |source| OpenError::Io { path: path.to_path_buf(), source };
        if !path.try_exists().map_err(io_error)? {
            make(path)?;
        }
        let database =
            builder(options.cache_bytes).open(path).map_err(|error| open_error(path, error))?;
        // Whoever made the file may have died before its name was durable.
        files::sync_directory_of(path).map_err(io_error)?;
        EmbeddedStore::start(path, database, options)
    }

    /// Opens the store on another device than a file.
    #[cfg(test)]
    pub(crate) fn open_on(
        device: impl redb::StorageBackend,
        options: EmbeddedOptions,
    ) -> Result<EmbeddedStore, OpenError> {
        let path = Path::new("device");
        let is_new = device.len().is_ok_and(|length| length == 0);
        let database = builder(options.cache_bytes)
            .create_with_backend(device)
            .map_err(|error| open_error(path, error))?;
        if is_new {
            create(&database).map_err(|fault| fault_error(path, fault))?;
        }
        EmbeddedStore::start(path, database, options)
    }

    fn start(
        path: &Path,
        database: Database,
        options: EmbeddedOptions,
    ) -> Result<EmbeddedStore, OpenError> {
        let generation = identify(path, &database)?;
        let fault = |fault| fault_error(path, fault);
        let (state, leases) = load(&database).map_err(fault)?;
        let mut deadlines = Deadlines::default();
        for (lease, ttl_s, _) in &leases {
            deadlines.insert(*lease, *ttl_s, Duration::ZERO);
        }
        let database = Arc::new(database);
        let shared = Arc::new(Shared {
            generation,
            opened: Instant::now(),
            database: Mutex::new(Some(database.clone())),
            queue: Queue::default(),
            progress: tokio::sync::watch::Sender::new(Progress { state, end: None }),
            tail: Mutex::default(),
            deadlines: Mutex::new(deadlines),
            pins: Mutex::default(),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            watches: Arc::new(AtomicUsize::new(0)),
        });
        let limits = HistoryLimits {
            changes_max: options.history_changes_max,
            bytes_max: options.history_bytes_max,
        };
        let leases: HashMap<LeaseId, u32> =
            leases.into_iter().map(|(lease, _, keys)| (lease, keys)).collect();
        let writer = Writer::new(shared.clone(), database, limits, state, leases);
        let thread = std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io { path: path.to_path_buf(), source })?;
        let closer = Closer { shared: shared.clone(), thread: Mutex::new(Some(thread)) };
        Ok(EmbeddedStore { shared, closer: Arc::new(closer) })
    }

    /// How it fares.
    #[must_use]
    pub fn status(&self) -> Status {
        let Progress { state, end } = self.shared.progress.borrow().clone();
        Status {
            revision: state.revision,
            compacted: state.compacted,
            history_changes: state.history_changes,
            history_bytes: state.history_bytes,
            waiting: self.shared.queue.len(),
            end,
        }
    }

    /// Closes the store, for its clones and watches too. What waits is refused; a commit that is
    /// under way is finished and answered. Afterwards the file is free.
    pub async fn close(self) {
        let closer = self.closer.clone();
        // It only fails with the runtime, and then dropping the last clone closes.
        drop(tokio::task::spawn_blocking(move || closer.close()).await);
    }

    async fn submit<T, E: writer::Unknown>(
        &self,
        job: impl FnOnce(queue::To<T, E>) -> Job,
    ) -> Result<T, E> {
        let (to, answer) = oneshot::channel();
        self.shared.queue.push(job(to))?;
        answer_of(answer).await
    }
}

impl Store for EmbeddedStore {
    type Watch = EmbeddedWatch;

    fn generation(&self) -> Generation {
        self.shared.generation
    }

    async fn get(&self, key: Bytes) -> Result<Option<Entry>, ReadError> {
        let read = move |shared: &Shared| tables::read_entry(&*shared.begin_read()?, &key);
        Ok(read_blocking(&self.shared, read).await?)
    }

    async fn range(&self, request: PageRequest) -> Result<Page, ReadError> {
        request.check()?;
        let at = request.at;
        let page = read_blocking(&self.shared, move |shared| shared.read_page(&request)).await?;
        match (page, at) {
            (Some(page), _) => Ok(page),
            (None, at) => Err(ReadError::Compacted { asked: at.unwrap_or_default() }),
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.check()?;
        self.submit(|to| Job::Commit { transaction, to }).await
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<EmbeddedWatch, WatchError> {
        EmbeddedWatch::new(&self.shared, prefix, after).await
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, LeaseError> {
        if !(LEASE_TTL_S_MIN..=LEASE_TTL_S_MAX).contains(&ttl_s) {
            return Err(LeaseError::Ttl { ttl_s });
        }
        self.submit(|to| Job::Grant { ttl_s, to }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.shared.check_open()?;
        let now = self.shared.now();
        let is_there = self.shared.deadlines().keep_alive(lease, now);
        if is_there { Ok(()) } else { Err(LeaseError::NotFound { lease }) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.submit(|to| Job::Revoke { lease, to }).await
    }
}

/// What the store's clones, its watches and its writer share.
struct Shared {
    generation: Generation,
    opened: Instant,
    /// Until it is closed.
    database: Mutex<Option<Arc<Database>>>,
    queue: Queue,
    progress: tokio::sync::watch::Sender<Progress>,
    tail: Mutex<Tail>,
    deadlines: Mutex<Deadlines>,
    pins: Mutex<Pins>,
    reads: Arc<Semaphore>,
    watches: Arc<AtomicUsize>,
}

impl Shared {
    /// Time since the store was opened.
    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    fn deadlines(&self) -> MutexGuard<'_, Deadlines> {
        lock(&self.deadlines)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        lock(&self.pins)
    }

    fn check_open(&self) -> Result<(), StoreError> {
        self.progress.borrow().end.clone().map_or(Ok(()), Err)
    }

    /// Begins to read the newest durable state.
    fn begin_read(&self) -> Result<Arc<ReadTransaction>, Fault> {
        match &*lock(&self.database) {
            Some(database) => Ok(Arc::new(database.begin_read()?)),
            None => Err(redb::Error::DatabaseClosed.into()),
        }
    }

    /// Reads a page; `None` when its revision cannot be read.
    fn read_page(&self, request: &PageRequest) -> Result<Option<Page>, Fault> {
        let kept = request.at.and_then(|at| self.pins().get(at, self.now()));
        let transaction = match kept {
            Some(transaction) => transaction,
            None => self.begin_read()?,
        };
        let page = tables::read_page(&transaction, request)?;
        if request.at.is_some_and(|at| at != page.revision) {
            return Ok(None);
        }
        if page.more {
            self.pins().keep(page.revision, transaction, self.now());
        }
        Ok(Some(page))
    }

    /// Stops the store for good. The first reason stands.
    fn stop(&self, cause: Arc<str>) {
        let is_first = self.end(StoreError::Stopped { cause: cause.clone() });
        if is_first {
            tracing::error!(%cause, "the metadata store stopped: nothing is answered any more");
        }
    }

    /// Answers nothing more; true when that is new.
    fn end(&self, why: StoreError) -> bool {
        // Reads first: whoever is refused by the queue finds them refused as well.
        let is_first = self.progress.send_if_modified(|progress| {
            let is_first = progress.end.is_none();
            progress.end.get_or_insert(why.clone());
            is_first
        });
        self.queue.end(why);
        is_first
    }
}

/// Closes the store with its last clone.
struct Closer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Closer {
    fn close(&self) {
        self.shared.end(StoreError::Closed);
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the writer was told as the store's end.
            drop(thread.join());
        }
        self.shared.pins().clear();
        lock(&self.shared.database).take();
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs a read on a blocking thread, when it is its turn.
async fn read_blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    read: impl FnOnce(&Shared) -> Result<T, Fault> + Send + 'static,
) -> Result<T, StoreError> {
    let Ok(turn) = shared.reads.clone().acquire_owned().await else {
        return Err(StoreError::Closed);
    };
    let shared = shared.clone();
    let read = tokio::task::spawn_blocking(move || {
        shared.check_open()?;
        let answer = read(&shared);
        drop(turn);
        answer.map_err(|fault| shared.judge_read(&fault))
    });
    match read.await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Closed),
    }
}

impl Shared {
    /// What becomes of the store after a failed read. Its file is no longer what it was taken for,
    /// so it stops, unless that is already under way.
    fn judge_read(&self, fault: &Fault) -> StoreError {
        if let Err(end) = self.check_open() {
            return end;
        }
        let cause: Arc<str> = fault.to_string().into();
        match fault {
            Fault::Redb(redb::Error::DatabaseClosed) => StoreError::Closed,
            // The writer met the failure itself and is about to say so.
            Fault::Redb(redb::Error::PreviousIo) => StoreError::Stopped { cause },
            _ => {
                self.stop(cause.clone());
                StoreError::Stopped { cause }
            }
        }
    }
}

impl EmbeddedOptions {
    fn check(&self) -> Result<(), OpenError> {
        let is_valid = self.cache_bytes >= CACHE_BYTES_MIN
            && self.history_changes_max > 0
            && self.history_bytes_max > 0;
        if is_valid { Ok(()) } else { Err(OpenError::Options) }
    }
}

/// A file that is damaged is found here, not by whoever comes upon the damage.
fn builder(cache_bytes: usize) -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    builder
}

/// The generation of a store.
fn identify(path: &Path, database: &Database) -> Result<Generation, OpenError> {
    let path = path.to_path_buf();
    match tables::read_identity(database) {
        Ok(identity) if identity.is_snapshot => Err(OpenError::Snapshot { path }),
        Ok(identity) => Ok(identity.generation),
        Err(fault) => Err(identity_error(path, fault)),
    }
}

fn identity_error(path: PathBuf, fault: IdentityFault) -> OpenError {
    match fault {
        IdentityFault::NotOurs => OpenError::NotOurs { path },
        IdentityFault::Format(found) => {
            OpenError::Format { path, found, supported: tables::FORMAT_VERSION }
        }
        IdentityFault::Fault(fault) => fault_error(&path, fault),
    }
}

/// The generation of a store that is made.
const FIRST_GENERATION: Generation = Generation(1);

/// Makes the file of a new store.
fn make(path: &Path) -> Result<(), OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_path_buf(), source };
    let made = files::new_file(path).and_then(|file| {
        let database = builder(CACHE_BYTES_MIN).create(file.path()).map_err(io::Error::other)?;
        create(&database).map_err(io::Error::other)?;
        files::publish(database, file, path)
    });
    match made {
        // Somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(io_error),
    }
}

/// Makes the tables.
fn create(database: &Database) -> Result<(), Fault> {
    let transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction)?;
    tables::write_identity(&mut tables.meta, FIRST_GENERATION, false)?;
    State::new().write(&mut tables.meta)?;
    drop(tables);
    Ok(transaction.commit()?)
}

/// What the writer begins with: the state, and each lease's time to live and number of keys.
#[expect(clippy::type_complexity, reason = "the rows of one table, used once")]
fn load(database: &Database) -> Result<(State, Vec<(LeaseId, u32, u32)>), Fault> {
    let transaction = database.begin_read()?;
    let state = tables::read_state(&transaction)?;
    let rows = transaction.open_table(tables::HISTORY)?.len()?;
    if rows != state.history_changes {
        return tables::damaged("the history has another number of rows than is counted");
    }
    Ok((state, tables::read_leases(&transaction)?))
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse { path }
        }
        DatabaseError::UpgradeRequired(_) => OpenError::NotOurs { path },
        DatabaseError::Storage(error) => storage_error(path, error.into()),
        error => OpenError::Damaged { path, what: error.to_string() },
    }
}

fn fault_error(path: &Path, fault: Fault) -> OpenError {
    match fault {
        Fault::Redb(error) => storage_error(path.to_path_buf(), error),
        Fault::Damaged { what } => OpenError::Damaged { path: path.into(), what: what.into() },
    }
}

fn storage_error(path: PathBuf, error: redb::Error) -> OpenError {
    match error {
        // redb's word for a file that does not begin as its own do.
        redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
            OpenError::NotOurs { path }
        }
        redb::Error::Io(source) => OpenError::Io { path, source },
        error => OpenError::Damaged { path, what: error.to_string() },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
