//! What stands in the file: five tables, their rows, and the only code that reads and writes them.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number, see [`State`] and the names below |
//! | `entries` | key | (mod revision, lease or 0, value) |
//! | `history` | (revision, place in it) | (1 put or 0 delete, lease or 0, key, value) |
//! | `leases` | lease | time to live in seconds |
//! | `lease-keys` | (lease, key) | nothing |
//!
//! `compacted <= revision`; the history holds every change of the revisions behind `compacted`, up
//! to and with `revision`, without a gap.

use std::ops::Bound;

use bytes::Bytes;
use redb::{
    ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use thiserror::Error;

use super::super::{Change, ChangeSet, Entry, Generation, LeaseId, Page, Revision, Value};
use super::super::{PAGE_BYTES_MAX, PageRequest, prefix_end};

/// Version of the tables and rows.
pub(super) const FORMAT_VERSION: u64 = 1;
/// What a change costs in the history beside its key and value, so that the bound on bytes also
/// bounds small ones: key of the row, lengths, and its part of the tree.
pub(super) const HISTORY_ROW_BYTES: u64 = 64;
/// Rows of the history that a commit removes beyond as many as it adds.
pub(super) const COMPACTION_ROWS_MAX: u64 = 256;

pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
pub(super) const ENTRIES: TableDefinition<'static, &'static [u8], EntryRow> =
    TableDefinition::new("entries");
pub(super) const HISTORY: TableDefinition<'static, (u64, u32), HistoryRow> =
    TableDefinition::new("history");
pub(super) const LEASES: TableDefinition<'static, u64, u32> = TableDefinition::new("leases");
pub(super) const LEASE_KEYS: TableDefinition<'static, (u64, &'static [u8]), ()> =
    TableDefinition::new("lease-keys");

/// [`FORMAT_VERSION`] of the file.
pub(super) const FORMAT: &str = "format";
/// The [`Generation`].
pub(super) const GENERATION: &str = "generation";
/// One in a file that is a snapshot, to be restored and not opened.
pub(super) const SNAPSHOT: &str = "snapshot";
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
const HISTORY_CHANGES: &str = "history-changes";
const HISTORY_BYTES: &str = "history-bytes";
const NEXT_LEASE: &str = "next-lease";

type EntryRow = (u64, u64, &'static [u8]);
type HistoryRow = (u8, u64, &'static [u8], &'static [u8]);

const KIND_DELETE: u8 = 0;
const KIND_PUT: u8 = 1;

/// What went wrong with the file.
#[derive(Debug, Error)]
pub(super) enum Fault {
    /// Said by redb: I/O, or damage that its checksums found.
    #[error("{0}")]
    Redb(#[from] redb::Error),
    /// The rows contradict each other.
    #[error("the metadata store's file is damaged: {what}")]
    Damaged { what: &'static str },
}

macro_rules! faults_of_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for Fault {
            fn from(error: redb::$error) -> Fault {
                Fault::Redb(error.into())
            }
        })*
    };
}

faults_of_redb!(StorageError, TableError, TransactionError, CommitError);

/// A fault of rows that contradict each other.
pub(super) fn damaged<T>(what: &'static str) -> Result<T, Fault> {
    Err(Fault::Damaged { what })
}

/// The numbers that change with each commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct State {
    /// The last revision.
    pub revision: Revision,
    /// The last revision whose changes are not in the history any more.
    pub compacted: Revision,
    /// Changes in the history.
    pub history_changes: u64,
    /// Their keys and values, and [`HISTORY_ROW_BYTES`] each.
    pub history_bytes: u64,
    /// The next lease to be granted.
    pub next_lease: u64,
}

impl State {
    /// Of a store that nothing was written to.
    pub(super) fn new() -> State {
        State { next_lease: 1, ..State::default() }
    }

    pub(super) fn read(meta: &impl ReadableTable<&'static str, u64>) -> Result<State, Fault> {
        let state = State {
            revision: Revision(meta_row(meta, REVISION)?),
            compacted: Revision(meta_row(meta, COMPACTED)?),
            history_changes: meta_row(meta, HISTORY_CHANGES)?,
            history_bytes: meta_row(meta, HISTORY_BYTES)?,
            next_lease: meta_row(meta, NEXT_LEASE)?,
        };
        if state.compacted > state.revision || state.next_lease == 0 {
            return damaged("its revisions contradict each other");
        }
        Ok(state)
    }

    pub(super) fn write(&self, meta: &mut Table<'_, &'static str, u64>) -> Result<(), Fault> {
        meta.insert(REVISION, self.revision.0)?;
        meta.insert(COMPACTED, self.compacted.0)?;
        meta.insert(HISTORY_CHANGES, self.history_changes)?;
        meta.insert(HISTORY_BYTES, self.history_bytes)?;
        meta.insert(NEXT_LEASE, self.next_lease)?;
        Ok(())
    }
}

/// A number of the table `meta`.
pub(super) fn meta_row(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &'static str,
) -> Result<u64, Fault> {
    match meta.get(name)? {
        Some(row) => Ok(row.value()),
        None => damaged("a row of the table meta is missing"),
    }
}

/// How much of the history to keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct HistoryLimits {
    pub changes_max: u64,
    pub bytes_max: u64,
}

/// The tables within a write transaction.
pub(super) struct Tables<'txn> {
    pub meta: Table<'txn, &'static str, u64>,
    pub entries: Table<'txn, &'static [u8], EntryRow>,
    pub history: Table<'txn, (u64, u32), HistoryRow>,
    pub leases: Table<'txn, u64, u32>,
    pub lease_keys: Table<'txn, (u64, &'static [u8]), ()>,
}

impl<'txn> Tables<'txn> {
    /// Opens the tables; makes those that are not there.
    pub(super) fn open(transaction: &'txn WriteTransaction) -> Result<Tables<'txn>, Fault> {
        Ok(Tables {
            meta: transaction.open_table(META)?,
            entries: transaction.open_table(ENTRIES)?,
            history: transaction.open_table(HISTORY)?,
            leases: transaction.open_table(LEASES)?,
            lease_keys: transaction.open_table(LEASE_KEYS)?,
        })
    }

    /// The revision that last put a key, and its lease.
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<(Revision, Option<LeaseId>)>, Fault> {
        let row = self.entries.get(key)?;
        Ok(row.map(|row| {
            let (revision, lease, _) = row.value();
            (Revision(revision), lease_id(lease))
        }))
    }

    /// Makes a revision of changes: of the keys, the leases' keys and the history. `leases` has the
    /// lease that each key had before.
    pub(super) fn apply(
        &mut self,
        state: &mut State,
        set: &ChangeSet,
        leases: &[Option<LeaseId>],
    ) -> Result<(), Fault> {
        for (place, (change, old_lease)) in (0..).zip(set.changes.iter().zip(leases)) {
            if let Some(old_lease) = old_lease {
                self.lease_keys.remove((old_lease.0, &change.key()[..]))?;
            }
            let row_key = (set.revision.0, place);
            match change {
                Change::Put { key, value, lease } => {
                    let lease = lease_number(*lease);
                    let (key, value) = (&key[..], &value.0[..]);
                    self.entries.insert(key, (set.revision.0, lease, value))?;
                    if lease != 0 {
                        self.lease_keys.insert((lease, key), ())?;
                    }
                    self.history.insert(row_key, (KIND_PUT, lease, key, value))?;
                }
                Change::Delete { key } => {
                    self.entries.remove(&key[..])?;
                    self.history.insert(row_key, (KIND_DELETE, 0, &key[..], &[][..]))?;
                }
            }
            state.history_changes += 1;
            state.history_bytes += history_bytes(change.bytes());
        }
        state.revision = set.revision;
        Ok(())
    }

    /// The keys attached to a lease.
    pub(super) fn keys_of(&self, lease: LeaseId) -> Result<Vec<Bytes>, Fault> {
        let from: (u64, &[u8]) = (lease.0, &[]);
        let to: (u64, &[u8]) = (lease.0 + 1, &[]);
        let mut keys = Vec::new();
        for row in self.lease_keys.range(from..to)? {
            keys.push(Bytes::copy_from_slice(row?.0.value().1));
        }
        Ok(keys)
    }

    /// Removes the oldest revisions of the history until it is within its limits, or `rows_max`
    /// rows are gone; of the revision that reaches this, all.
    pub(super) fn compact(
        &mut self,
        state: &mut State,
        limits: HistoryLimits,
        rows_max: u64,
    ) -> Result<(), Fault> {
        let mut rows = 0;
        while rows < rows_max
            && (state.history_changes > limits.changes_max
                || state.history_bytes > limits.bytes_max)
        {
            let Some(oldest) = self.history.first()?.map(|(key, _)| key.value().0) else {
                return damaged("the history has fewer rows than are counted");
            };
            while let Some(bytes) = self.pop_change_of(oldest)? {
                let changes = state.history_changes.checked_sub(1);
                let (Some(changes), Some(bytes)) =
                    (changes, state.history_bytes.checked_sub(bytes))
                else {
                    return damaged("the history has more rows than are counted");
                };
                state.history_changes = changes;
                state.history_bytes = bytes;
                rows += 1;
            }
            state.compacted = Revision(oldest);
        }
        Ok(())
    }

    /// Removes the history's first row if it is of this revision; answers what it counted.
    fn pop_change_of(&mut self, revision: u64) -> Result<Option<u64>, Fault> {
        let is_of = self.history.first()?.is_some_and(|(key, _)| key.value().0 == revision);
        if !is_of {
            return Ok(None);
        }
        let row = self.history.pop_first()?;
        Ok(row.map(|(_, row)| {
            let (_, _, key, value) = row.value();
            history_bytes(key.len() + value.len())
        }))
    }
}

/// Reads the state as of a read transaction.
pub(super) fn read_state(transaction: &ReadTransaction) -> Result<State, Fault> {
    State::read(&transaction.open_table(META)?)
}

/// Reads an entry.
pub(super) fn read_entry(
    transaction: &ReadTransaction,
    key: &Bytes,
) -> Result<Option<Entry>, Fault> {
    let row = transaction.open_table(ENTRIES)?.get_owned(&key[..])?;
    Ok(row.map(|row| entry(key.clone(), row.value())))
}

/// Reads a page that was checked.
pub(super) fn read_page(
    transaction: &ReadTransaction,
    request: &PageRequest,
) -> Result<Page, Fault> {
    let revision = read_state(transaction)?.revision;
    let end = prefix_end(&request.prefix);
    let from = match &request.after {
        Some(after) => Bound::Excluded(&after[..]),
        None => Bound::Included(&request.prefix[..]),
    };
    let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut page = Page { revision, entries: Vec::new(), more: false };
    let mut bytes = 0;
    for row in transaction.open_table(ENTRIES)?.range_owned::<&[u8]>((from, to))? {
        let (key, row) = row?;
        let entry = entry(Bytes::copy_from_slice(key.value()), row.value());
        let entry_bytes = entry.key.len() + entry.value.0.len();
        let is_full = page.entries.len() == request.limit as usize
            || (!page.entries.is_empty() && bytes + entry_bytes > PAGE_BYTES_MAX);
        if is_full {
            page.more = true;
            break;
        }
        bytes += entry_bytes;
        page.entries.push(entry);
    }
    Ok(page)
}

/// Changes out of the history, or how far it is compacted.
#[derive(Debug)]
pub(super) enum History {
    /// Whole revisions, in order, without a gap.
    Changes(Vec<ChangeSet>),
    /// Some of what was asked for is gone.
    Compacted(Revision),
}

/// Reads the revisions after one, until `changes_max` changes or `bytes_max` bytes are there.
pub(super) fn read_history(
    transaction: &ReadTransaction,
    after: Revision,
    changes_max: usize,
    bytes_max: usize,
) -> Result<History, Fault> {
    let state = read_state(transaction)?;
    if after < state.compacted {
        return Ok(History::Compacted(state.compacted));
    }
    let (mut sets, mut changes, mut bytes) = (Vec::<ChangeSet>::new(), 0, 0);
    for row in transaction.open_table(HISTORY)?.range_owned((after.0 + 1, 0)..)? {
        let (key, row) = row?;
        let (revision, place) = key.value();
        let change = history_change(row.value())?;
        let expected = sets.last().map_or(after, |set| set.revision);
        if place == 0 {
            if changes >= changes_max || bytes >= bytes_max {
                return Ok(History::Changes(sets));
            }
            if revision != expected.0 + 1 {
                return damaged("a revision is missing in the history");
            }
            sets.push(ChangeSet { revision: Revision(revision), changes: Vec::new() });
        }
        changes += 1;
        bytes += change.bytes();
        match sets.last_mut() {
            Some(set) if set.revision.0 == revision && set.changes.len() == place as usize => {
                set.changes.push(change);
            }
            _ => return damaged("a change is missing in the history"),
        }
    }
    let end = sets.last().map_or(after, |set| set.revision);
    if end != state.revision {
        return damaged("the newest revisions are missing in the history");
    }
    Ok(History::Changes(sets))
}

/// Every lease: its id, time to live in seconds, and number of keys.
pub(super) fn read_leases(
    transaction: &ReadTransaction,
) -> Result<Vec<(LeaseId, u32, u32)>, Fault> {
    let mut leases = Vec::new();
    for row in transaction.open_table(LEASES)?.range_owned::<u64>(..)? {
        let (id, ttl_s) = row?;
        leases.push((LeaseId(id.value()), ttl_s.value(), 0));
    }
    for row in transaction.open_table(LEASE_KEYS)?.range_owned::<(u64, &[u8])>(..)? {
        let id = LeaseId(row?.0.value().0);
        match leases.binary_search_by_key(&id, |lease| lease.0) {
            Ok(place) => leases[place].2 += 1,
            Err(_) => return damaged("a key is attached to a lease that is not there"),
        }
    }
    Ok(leases)
}

/// What a file says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub generation: Generation,
    pub is_snapshot: bool,
}

/// Reads what a file says of itself.
pub(super) fn read_identity(database: &redb::Database) -> Result<Identity, IdentityFault> {
    use redb::TableError::{TableDoesNotExist, TableIsMultimap, TableTypeMismatch};
    let transaction = database.begin_read().map_err(Fault::from)?;
    let meta = match transaction.open_table(META) {
        Err(TableDoesNotExist(_) | TableTypeMismatch { .. } | TableIsMultimap(_)) => {
            return Err(IdentityFault::NotOurs);
        }
        meta => meta.map_err(Fault::from)?,
    };
    // Only the version's own row has a place that no version may change.
    let format = match meta.get(FORMAT).map_err(Fault::from)? {
        Some(row) => row.value(),
        None => return Err(IdentityFault::NotOurs),
    };
    if format != FORMAT_VERSION {
        return Err(IdentityFault::Format(format));
    }
    let generation = Generation(meta_row(&meta, GENERATION)?);
    let is_snapshot = meta_row(&meta, SNAPSHOT)? != 0;
    Ok(Identity { generation, is_snapshot })
}

/// Why a file is not one of ours, of this version.
#[derive(Debug, Error)]
pub(super) enum IdentityFault {
    #[error("not a metadata store")]
    NotOurs,
    #[error("format {0}")]
    Format(u64),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Writes what a file says of itself.
pub(super) fn write_identity(
    meta: &mut Table<'_, &'static str, u64>,
    generation: Generation,
    is_snapshot: bool,
) -> Result<(), Fault> {
    meta.insert(FORMAT, FORMAT_VERSION)?;
    meta.insert(GENERATION, generation.0)?;
    meta.insert(SNAPSHOT, u64::from(is_snapshot))?;
    Ok(())
}

fn entry(key: Bytes, (revision, lease, value): (u64, u64, &[u8])) -> Entry {
    Entry {
        key,
        value: Value(Bytes::copy_from_slice(value)),
        mod_revision: Revision(revision),
        lease: lease_id(lease),
    }
}

fn history_change((kind, lease, key, value): (u8, u64, &[u8], &[u8])) -> Result<Change, Fault> {
    let key = Bytes::copy_from_slice(key);
    match kind {
        KIND_DELETE => Ok(Change::Delete { key }),
        KIND_PUT => {
            let value = Value(Bytes::copy_from_slice(value));
            Ok(Change::Put { key, value, lease: lease_id(lease) })
        }
        _ => damaged("a change in the history is neither put nor delete"),
    }
}

fn history_bytes(change_bytes: usize) -> u64 {
    change_bytes as u64 + HISTORY_ROW_BYTES
}

fn lease_id(number: u64) -> Option<LeaseId> {
    (number != 0).then_some(LeaseId(number))
}

fn lease_number(lease: Option<LeaseId>) -> u64 {
    lease.map_or(0, |lease| lease.0)
}
