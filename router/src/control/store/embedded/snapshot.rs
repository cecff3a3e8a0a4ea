//! The whole store as a file, and back.
//!
//! A snapshot is a file of redb too, with all entries and leases as of one revision and no history.
//! It says of itself that it is a snapshot, so that it is not opened by mistake: a store that is
//! set back must say so, by a higher generation.

use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, Key, ReadTransaction, ReadableTableMetadata, TableDefinition, Value,
    WriteTransaction,
};
use thiserror::Error;

use super::super::{Generation, Revision, StoreError};
use super::files::{new_file, publish};
use super::tables::{
    ENTRIES, Fault, HISTORY, LEASE_KEYS, LEASES, META, State, Tables, damaged, read_identity,
    read_state, write_identity,
};
use super::{EmbeddedStore, OpenError, builder, fault_error, identity_error, open_error};

/// How far a restored store jumps ahead of its snapshot, in revisions and in ids of leases: farther
/// than any store came after a snapshot was taken, so that what was handed out then is not handed
/// out again for something else. The number that etcd's documentation gives for the same purpose
/// (disaster recovery, `--bump-revision`).
pub const RESTORE_JUMP: u64 = 1_000_000_000;
/// Memory for pages while a file is written or checked. Ours.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// A snapshot that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotFile {
    /// The generation of the store.
    pub generation: Generation,
    /// The revision that it shows.
    pub revision: Revision,
    /// How many keys it has.
    pub entries: u64,
}

/// A store that was restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Its generation, above all others.
    pub generation: Generation,
    /// Where its revisions go on from.
    pub revision: Revision,
    /// How many keys it has.
    pub entries: u64,
}

/// Why a snapshot was not written or restored.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// There is a file of that name.
    #[error("{} exists already: name a file that does not", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("{} cannot be written ({cause}): check the disk and its free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },
    /// There is no generation above the one given.
    #[error("no generation is above {above}: check the number that was given")]
    Generation {
        /// The one given.
        above: Generation,
    },
    /// What was to be restored cannot be read.
    #[error(transparent)]
    Source(#[from] OpenError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EmbeddedStore {
    /// Writes a snapshot of the newest revision to a file that does not exist yet. The store goes
    /// on meanwhile; the space that it writes until then is not used again before.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn write_snapshot(&self, path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let generation = self.shared.generation;
        let path = path.to_path_buf();
        super::read_blocking(&self.shared, move |shared| {
            match write(&*shared.begin_read()?, generation, &path) {
                Ok(written) => Ok(Ok(written)),
                Err(WriteFault::Source(fault)) => Err(fault),
                Err(WriteFault::Target(error)) => Ok(Err(error)),
            }
        })
        .await?
    }
}

/// Restores a snapshot, or the file of a store that is closed, to a file that does not exist yet.
///
/// The restored store has a generation above the snapshot's and above `generation_above`, the
/// highest that any node reports (zero when there is none): the store may have been restored from
/// the same snapshot before. Its revisions and leases go on [`RESTORE_JUMP`] further, and watches
/// from before begin with a snapshot of their own.
///
/// # Errors
/// [`SnapshotError`]; the source is left as it is.
pub fn restore(
    source: &Path,
    target: &Path,
    generation_above: Generation,
) -> Result<Restored, SnapshotError> {
    let written = |error| write_error(target, error);
    let file = new_file(target).map_err(written)?;
    // Keeps a router from opening the source meanwhile. A store that crashed cannot be locked so:
    // it is recovered in the copy.
    let _lock = match builder(CACHE_BYTES).open_read_only(source) {
        Ok(lock) => Some(lock),
        Err(DatabaseError::RepairAborted) => None,
        Err(error) => return Err(open_error(source, error).into()),
    };
    std::fs::copy(source, file.path()).map_err(written)?;
    let database =
        builder(CACHE_BYTES).create(file.path()).map_err(|error| open_error(source, error))?;
    let identity =
        read_identity(&database).map_err(|fault| identity_error(source.to_path_buf(), fault))?;
    let highest = identity.generation.max(generation_above);
    let Some(generation) = highest.0.checked_add(1).map(Generation) else {
        return Err(SnapshotError::Generation { above: highest });
    };
    let restored = raise(&database, generation).map_err(|fault| fault_error(source, fault))?;
    publish(database, file, target).map_err(written)?;
    Ok(restored)
}

/// Makes a copy the store that goes on from it.
fn raise(database: &Database, generation: Generation) -> Result<Restored, Fault> {
    let transaction = database.begin_write()?;
    transaction.delete_table(HISTORY)?;
    let mut tables = Tables::open(&transaction)?;
    let old = State::read(&tables.meta)?;
    let (revision, lease) = (
        old.revision.0.checked_add(RESTORE_JUMP).map(Revision),
        old.next_lease.checked_add(RESTORE_JUMP),
    );
    let (Some(revision), Some(next_lease)) = (revision, lease) else {
        return damaged("its revisions are out of range");
    };
    let compacted = revision;
    let state = State { revision, compacted, next_lease, ..State::new() };
    state.write(&mut tables.meta)?;
    write_identity(&mut tables.meta, generation, false)?;
    let entries = tables.entries.len()?;
    drop(tables);
    transaction.commit()?;
    Ok(Restored { generation, revision, entries })
}

/// Whose fault it is that a snapshot was not written.
enum WriteFault {
    Source(Fault),
    Target(SnapshotError),
}

fn write(
    from: &ReadTransaction,
    generation: Generation,
    path: &Path,
) -> Result<SnapshotFile, WriteFault> {
    let written = |error| WriteFault::Target(write_error(path, error));
    let file = new_file(path).map_err(written)?;
    let to_target = |cause: String| {
        WriteFault::Target(SnapshotError::Write { path: path.to_path_buf(), cause })
    };
    let database =
        builder(CACHE_BYTES).create(file.path()).map_err(|error| to_target(error.to_string()))?;
    let old = read_state(from).map_err(WriteFault::Source)?;
    let fill = || -> Result<u64, CopyFault> {
        let transaction = database.begin_write().map_err(target)?;
        let entries = copy_table(from, &transaction, ENTRIES)?;
        copy_table(from, &transaction, LEASES)?;
        copy_table(from, &transaction, LEASE_KEYS)?;
        // A file of this format has all tables.
        transaction.open_table(HISTORY).map_err(target)?;
        let mut meta = transaction.open_table(META).map_err(target)?;
        let (revision, next_lease) = (old.revision, old.next_lease);
        let state = State { revision, compacted: revision, next_lease, ..State::new() };
        state.write(&mut meta).map_err(CopyFault::Target)?;
        write_identity(&mut meta, generation, true).map_err(CopyFault::Target)?;
        drop(meta);
        transaction.commit().map_err(target)?;
        Ok(entries)
    };
    let entries = fill().map_err(|fault| match fault {
        CopyFault::Source(fault) => WriteFault::Source(fault),
        CopyFault::Target(fault) => to_target(fault.to_string()),
    })?;
    publish(database, file, path).map_err(written)?;
    Ok(SnapshotFile { generation, revision: old.revision, entries })
}

enum CopyFault {
    Source(Fault),
    Target(Fault),
}

fn target(error: impl Into<Fault>) -> CopyFault {
    CopyFault::Target(error.into())
}

fn source(error: impl Into<Fault>) -> CopyFault {
    CopyFault::Source(error.into())
}

/// Copies a table; answers its number of rows.
fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<u64, CopyFault> {
    let rows = from.open_table(table).map_err(source)?;
    let mut copy = to.open_table(table).map_err(target)?;
    let mut count = 0;
    for row in rows.range_owned::<K::SelfType<'_>>(..).map_err(source)? {
        let (key, value) = row.map_err(source)?;
        copy.insert(key.value(), value.value()).map_err(target)?;
        count += 1;
    }
    Ok(count)
}

fn write_error(path: &Path, error: io::Error) -> SnapshotError {
    let path = path.to_path_buf();
    match error.kind() {
        io::ErrorKind::AlreadyExists => SnapshotError::Exists { path },
        _ => SnapshotError::Write { path, cause: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::super::super::{
        Expectation, LeaseId, Snapshot, Store, Transaction, WatchError, snapshot,
    };
    use super::super::EmbeddedOptions;
    use super::*;

    struct Files {
        _directory: TempDir,
        store: PathBuf,
        snapshot: PathBuf,
        restored: PathBuf,
    }

    fn files() -> Files {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (store, snapshot, restored) = (path("store"), path("snapshot"), path("restored"));
        Files { _directory: directory, store, snapshot, restored }
    }

    fn open(path: &Path) -> EmbeddedStore {
        EmbeddedStore::open(path, EmbeddedOptions::default()).unwrap()
    }

    async fn all(store: &EmbeddedStore) -> Snapshot {
        snapshot(store, Bytes::new()).await.unwrap()
    }

    /// Writes some keys, takes a snapshot, writes on; what the snapshot has.
    async fn write_some(store: &EmbeddedStore, path: &Path) -> (Snapshot, LeaseId) {
        let lease = store.grant(60).await.unwrap();
        for number in 0..50 {
            let key = format!("key/{number}");
            let lease = (number % 2 == 0).then_some(lease);
            let transaction = Transaction::new().put_with(key, vec![number; 3000], lease);
            store.commit(transaction).await.unwrap();
        }
        store.commit(Transaction::new().delete("key/7")).await.unwrap();
        let taken = all(store).await;
        let written = store.write_snapshot(path).await.unwrap();
        let expected = SnapshotFile {
            generation: store.generation(),
            revision: taken.revision,
            entries: taken.entries.len() as u64,
        };
        assert_eq!(written, expected);
        store.commit(Transaction::new().put("later", "value")).await.unwrap();
        (taken, lease)
    }

    #[tokio::test]
    async fn a_restored_store_has_what_the_snapshot_has_in_a_higher_generation() {
        let files = files();
        let store = open(&files.store);
        let (taken, lease) = write_some(&store, &files.snapshot).await;
        let later_lease = store.grant(60).await.unwrap();
        let lost = all(&store).await.revision;

        let told = restore(&files.snapshot, &files.restored, Generation(0)).unwrap();
        let revision = Revision(taken.revision.0 + RESTORE_JUMP);
        let entries = taken.entries.len() as u64;
        assert_eq!(told, Restored { generation: Generation(2), revision, entries });
        let restored = open(&files.restored);
        assert_eq!(restored.generation(), Generation(2));
        let found = all(&restored).await;
        assert_eq!((found.revision, &found.entries), (revision, &taken.entries));
        restored.keep_alive(lease).await.expect("leases begin anew");
        assert!(restored.grant(60).await.unwrap() > later_lease);

        // Whoever was ahead of the snapshot is told, and can overwrite nothing.
        let watch = restored.watch(Bytes::new(), lost).await.map(|_| ());
        assert_eq!(watch, Err(WatchError::Compacted { after: lost, compacted: revision }));
        let stale = Transaction::new().expect("key/1", Expectation::ModRevision(lost));
        restored.commit(stale.put("key/1", "stale")).await.unwrap_err();
        restored.revoke(lease).await.unwrap();
        let left = all(&restored).await;
        assert!(left.entries.iter().all(|entry| entry.lease.is_none()));
        assert_eq!((left.revision, left.entries.len()), (Revision(revision.0 + 1), 24));
    }

    #[tokio::test]
    async fn restored_again_it_is_above_every_generation_that_was_seen() {
        let files = files();
        let store = open(&files.store);
        write_some(&store, &files.snapshot).await;
        let again = restore(&files.snapshot, &files.restored, Generation(6)).unwrap();
        assert_eq!(again.generation, Generation(7));
        let beyond = files.restored.with_extension("beyond");
        let refused = restore(&files.snapshot, &beyond, Generation(u64::MAX)).unwrap_err();
        assert!(matches!(refused, SnapshotError::Generation { .. }), "{refused}");
        assert!(!beyond.exists());
        // A snapshot of a restored store keeps what that has reached.
        let second = files.snapshot.with_extension("second");
        let restored = open(&files.restored);
        assert_eq!(restored.write_snapshot(&second).await.unwrap().generation, Generation(7));
        let third = files.restored.with_extension("third");
        assert_eq!(restore(&second, &third, Generation(0)).unwrap().generation, Generation(8));
    }

    #[tokio::test]
    async fn the_file_of_a_closed_store_can_be_restored_and_that_of_an_open_one_cannot() {
        let files = files();
        let store = open(&files.store);
        write_some(&store, &files.snapshot).await;
        let now = all(&store).await;
        let refused = restore(&files.store, &files.restored, Generation(0)).unwrap_err();
        assert!(matches!(refused, SnapshotError::Source(OpenError::InUse { .. })), "{refused}");
        store.close().await;
        restore(&files.store, &files.restored, Generation(0)).unwrap();
        assert_eq!(all(&open(&files.restored)).await.entries, now.entries);
    }

    #[tokio::test]
    async fn nothing_is_overwritten_or_passes_for_what_it_is_not() {
        let files = files();
        let store = open(&files.store);
        write_some(&store, &files.snapshot).await;
        let refused = store.write_snapshot(&files.snapshot).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::Exists { .. }), "{refused}");
        let refused = restore(&files.snapshot, &files.store, Generation(0)).unwrap_err();
        assert!(matches!(refused, SnapshotError::Exists { .. }), "{refused}");
        let options = EmbeddedOptions::default();
        let refused = EmbeddedStore::open(&files.snapshot, options).unwrap_err();
        assert!(matches!(refused, OpenError::Snapshot { .. }), "{refused}");
        let nowhere = files.store.join("below a file");
        let refused = store.write_snapshot(&nowhere).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::Write { .. }), "{refused}");
        store.commit(Transaction::new().put("goes", "on")).await.unwrap();
        let missing = restore(&nowhere, &files.restored, Generation(0)).unwrap_err();
        assert!(matches!(missing, SnapshotError::Source(OpenError::Io { .. })), "{missing}");
    }

    #[tokio::test]
    async fn a_damaged_snapshot_is_not_restored() {
        let files = files();
        let store = open(&files.store);
        let (taken, _) = write_some(&store, &files.snapshot).await;
        let whole = std::fs::read(&files.snapshot).unwrap();
        let mut refused = 0;
        for sample in 0..32 {
            let mut bytes = whole.clone();
            bytes[sample * whole.len() / 32 + sample * 5] ^= 1;
            std::fs::write(&files.snapshot, &bytes).unwrap();
            match restore(&files.snapshot, &files.restored, Generation(0)) {
                Err(SnapshotError::Source(_)) => refused += 1,
                Err(error) => panic!("sample {sample}: {error}"),
                // It was in a page that nothing uses.
                Ok(_) => {
                    assert_eq!(all(&open(&files.restored)).await.entries, taken.entries);
                    std::fs::remove_file(&files.restored).unwrap();
                }
            }
        }
        assert!(refused > 8, "{refused}");
        std::fs::write(&files.snapshot, &whole[..whole.len() - 5000]).unwrap();
        restore(&files.snapshot, &files.restored, Generation(0)).unwrap_err();
        std::fs::write(&files.snapshot, "dear").unwrap();
        restore(&files.snapshot, &files.restored, Generation(0)).unwrap_err();
        let directory = files.store.parent().unwrap();
        let left: Vec<_> = std::fs::read_dir(directory).unwrap().collect();
        assert_eq!(left.len(), 2, "nothing half made is left: {left:?}");
    }
}
