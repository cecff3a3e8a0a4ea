//! The metadata store: what is known of streams, shards, extents, nodes and leases. Small and
//! strongly consistent.
//!
//! Keys and values are bytes. Whatever changes, changes in a [`Transaction`]: compares, then puts
//! and deletes, all or nothing. A transaction that changes something raises the store's revision by
//! one, and every key remembers the revision that last changed it. [`Store::watch`] tells every
//! change after a revision, in order.
//!
//! [`embedded`] is one file in the router's own process, for one router. The trait asks for nothing
//! that etcd does not have (its API: KV, Watch, Lease), so that many routers can share one.
//!
//! Non-goals: large values, many writes a second, reads of a past revision other than to finish a
//! listing.

pub mod embedded;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

/// Compares of one transaction, and likewise puts and deletes together: etcd's default for
/// `--max-txn-ops`, which it holds against the longest of its lists (etcd, `checkTxnRequest`).
pub const TRANSACTION_OPERATIONS_MAX: usize = 128;
/// Bytes of keys and values in one transaction: what fits into etcd's default request of 1.5 MiB
/// with room for its encoding (etcd documentation, system limits).
pub const TRANSACTION_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a key. Ours: names of streams, consumers and nodes fit many times.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a value. Ours: a transaction carries at least one of any size.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;
/// Entries in one page of a listing. Ours.
pub const PAGE_ENTRIES_MAX: u32 = 1024;
/// Bytes of keys and values after which a page takes no further entry. Ours; below the 4 MiB that
/// gRPC clients take by default.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Shortest time to live of a lease in seconds: etcd counts them in seconds.
pub const LEASE_TTL_S_MIN: u32 = 1;
/// Longest time to live of a lease in seconds. Ours: what nobody keeps alive is gone a day later.
pub const LEASE_TTL_S_MAX: u32 = 86_400;
/// Keys attached to one lease, so that its end is one transaction.
pub const LEASE_KEYS_MAX: u32 = TRANSACTION_OPERATIONS_MAX as u32;
/// Times that [`snapshot`] begins anew when what it reads from was let go meanwhile. Ours.
pub const SNAPSHOT_ATTEMPTS_MAX: u32 = 5;

const _: () = assert!(KEY_BYTES_MAX + VALUE_BYTES_MAX <= TRANSACTION_BYTES_MAX);

/// A state of the store; each transaction that changes something makes the next. Zero is the empty
/// store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of the store this is: one when it is made, higher after each restore. Nodes refuse
/// who speaks for a lower one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease of the store. Never zero, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The value of a key. It may hold a secret, so `Debug` tells its length only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Value(pub Bytes);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

impl<T: Into<Bytes>> From<T> for Value {
    fn from(bytes: T) -> Value {
        Value(bytes.into())
    }
}

/// A key as it stands in the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Value,
    /// The revision that put it last.
    pub mod_revision: Revision,
    /// The lease with which it vanishes.
    pub lease: Option<LeaseId>,
}

/// What a compare asks of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expectation {
    /// The key is not there.
    Absent,
    /// The key is there.
    Present,
    /// The key is there and was last put by this revision.
    ModRevision(Revision),
}

/// A condition of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What must hold of it.
    pub expectation: Expectation,
}

impl Compare {
    /// If the condition holds of a key that was last put by `found`; `None` is a key that is not
    /// there.
    #[must_use]
    pub fn holds(&self, found: Option<Revision>) -> bool {
        match self.expectation {
            Expectation::Absent => found.is_none(),
            Expectation::Present => found.is_some(),
            Expectation::ModRevision(expected) => found == Some(expected),
        }
    }
}

/// A change of one key: what a transaction asks for, and what a watch tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The key has this value.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Value,
        /// The lease with which it vanishes.
        lease: Option<LeaseId>,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Change {
    /// The key that changes.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put { key, .. } | Change::Delete { key } => key,
        }
    }

    /// Bytes of key and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Change::Put { key, value, .. } => key.len() + value.0.len(),
            Change::Delete { key } => key.len(),
        }
    }
}

/// What one revision changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeSet {
    /// The revision; also the mod revision of every key that it put.
    pub revision: Revision,
    /// Its changes, each of another key. Deletes of keys that were not there are left out.
    pub changes: Vec<Change>,
}

/// Compares, and what to change if all of them hold. All or nothing.
///
/// A transaction that changes nothing (no puts, and deletes of keys that are not there) leaves the
/// revision as it is and answers it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// Conditions, judged in order against the state before the transaction.
    pub compares: Vec<Compare>,
    /// Changes, each of another key.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// A transaction without conditions and changes.
    #[must_use]
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Bytes>, expectation: Expectation) -> Transaction {
        self.compares.push(Compare { key: key.into(), expectation });
        self
    }

    /// Adds a put.
    #[must_use]
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Value>) -> Transaction {
        self.put_with(key, value, None)
    }

    /// Adds a put of a key that vanishes with a lease.
    #[must_use]
    pub fn put_with(
        mut self,
        key: impl Into<Bytes>,
        value: impl Into<Value>,
        lease: Option<LeaseId>,
    ) -> Transaction {
        self.changes.push(Change::Put { key: key.into(), value: value.into(), lease });
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Transaction {
        self.changes.push(Change::Delete { key: key.into() });
        self
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let compares = self.compares.iter().map(|compare| compare.key.len()).sum::<usize>();
        compares + self.changes.iter().map(Change::bytes).sum::<usize>()
    }

    /// Holds the transaction against the limits above. Every engine does so before anything else.
    ///
    /// # Errors
    /// [`TransactionFault`].
    pub fn check(&self) -> Result<(), TransactionFault> {
        if self.compares.len() > TRANSACTION_OPERATIONS_MAX {
            return Err(TransactionFault::Compares { count: self.compares.len() });
        }
        if self.changes.len() > TRANSACTION_OPERATIONS_MAX {
            return Err(TransactionFault::Changes { count: self.changes.len() });
        }
        self.compares.iter().try_for_each(|compare| check_key(&compare.key))?;
        for change in &self.changes {
            check_key(change.key())?;
            if let Change::Put { value, .. } = change
                && value.0.len() > VALUE_BYTES_MAX
            {
                return Err(TransactionFault::ValueSize { value_bytes: value.0.len() });
            }
        }
        let bytes = self.bytes();
        if bytes > TRANSACTION_BYTES_MAX {
            return Err(TransactionFault::Size { bytes });
        }
        let mut keys: Vec<&Bytes> = self.changes.iter().map(Change::key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(TransactionFault::KeyTwice { key: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

fn check_key(key: &Bytes) -> Result<(), TransactionFault> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(TransactionFault::KeySize { key_bytes: key.len() });
    }
    Ok(())
}

/// Which page of a listing to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// Keys that begin with this; all keys when it is empty.
    pub prefix: Bytes,
    /// Only keys behind this one: the last of the page before. It begins with the prefix.
    pub after: Option<Bytes>,
    /// Entries at most, 1 to [`PAGE_ENTRIES_MAX`].
    pub limit: u32,
    /// Answer as of this revision, which the listing's first page told; `None` for the newest.
    pub at: Option<Revision>,
}

impl PageRequest {
    /// The first page of a listing, as large as it may be.
    #[must_use]
    pub fn first(prefix: impl Into<Bytes>) -> PageRequest {
        PageRequest { prefix: prefix.into(), after: None, limit: PAGE_ENTRIES_MAX, at: None }
    }

    /// The page behind `page` at the same revision; `None` when that was the last.
    #[must_use]
    pub fn next(&self, page: &Page) -> Option<PageRequest> {
        let last = page.entries.last().filter(|_| page.more)?;
        Some(PageRequest { after: Some(last.key.clone()), at: Some(page.revision), ..self.clone() })
    }

    /// Holds the request against the limits above. Every engine does so before anything else.
    ///
    /// # Errors
    /// [`PageFault`].
    pub fn check(&self) -> Result<(), PageFault> {
        if self.limit == 0 || self.limit > PAGE_ENTRIES_MAX {
            return Err(PageFault::Limit { limit: self.limit });
        }
        match &self.after {
            Some(after) if !after.starts_with(&self.prefix) => Err(PageFault::AfterOutside),
            _ => Ok(()),
        }
    }
}

/// A part of a listing, in the order of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The revision that the page shows.
    pub revision: Revision,
    /// At most as many as asked for; fewer when they are large.
    pub entries: Vec<Entry>,
    /// If there are keys behind the last entry. Then there is an entry.
    pub more: bool,
}

/// All keys with a prefix as of one revision; what changes from there on is told by a watch after
/// that revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// In the order of keys.
    pub entries: Vec<Entry>,
}

/// The smallest key behind all keys that begin with `prefix`; `None` when no key is behind them.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Why a transaction is none.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TransactionFault {
    /// Too many compares.
    #[error("{count} compares, at most {TRANSACTION_OPERATIONS_MAX}: split the transaction")]
    Compares {
        /// How many.
        count: usize,
    },
    /// Too many puts and deletes.
    #[error(
        "{count} puts and deletes, at most {TRANSACTION_OPERATIONS_MAX}: split the transaction"
    )]
    Changes {
        /// How many.
        count: usize,
    },
    /// Too many bytes.
    #[error("{bytes} bytes, at most {TRANSACTION_BYTES_MAX}: split the transaction")]
    Size {
        /// Of all keys and values.
        bytes: usize,
    },
    /// A key that cannot be one.
    #[error("a key of {key_bytes} bytes, it has 1 to {KEY_BYTES_MAX}: use a shorter name")]
    KeySize {
        /// Its bytes.
        key_bytes: usize,
    },
    /// A value that is too large.
    #[error("a value of {value_bytes} bytes, at most {VALUE_BYTES_MAX}: split it over keys")]
    ValueSize {
        /// Its bytes.
        value_bytes: usize,
    },
    /// Two changes of one key.
    #[error("the key {key:?} is changed twice in one transaction: change it once")]
    KeyTwice {
        /// The key.
        key: Bytes,
    },
}

/// Why a page cannot be asked for.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PageFault {
    /// The limit is out of range.
    #[error("a page of {limit} entries, it has 1 to {PAGE_ENTRIES_MAX}: change the limit")]
    Limit {
        /// What was asked for.
        limit: u32,
    },
    /// The key to go on behind is not one of the listing.
    #[error("the key to go on after does not begin with the prefix: give the last page's last key")]
    AfterOutside,
}

/// What may come in the way of any operation. Of an operation that changes something it also says
/// that nothing was done.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store stopped for good after a failure.
    #[error(
        "the metadata store stopped after a failure ({cause}): it answers nothing more, what it \
         had answered before is kept; check the disk, its free space and the kernel's log, then \
         restart; if it does not open again, restore a snapshot"
    )]
    Stopped {
        /// The failure.
        cause: Arc<str>,
    },
    /// This process has closed the store.
    #[error("the metadata store is closed: this router is stopping, ask another one")]
    Closed,
    /// Too much waits already.
    #[error("{waiting} operations wait for the metadata store already: try again later")]
    Overloaded {
        /// How many.
        waiting: usize,
    },
}

/// Why a read failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReadError {
    /// The page cannot be asked for.
    #[error("{0}")]
    Invalid(#[from] PageFault),
    /// The revision asked for cannot be read any more, or never was.
    #[error("revision {asked} cannot be read any more: begin the listing anew")]
    Compacted {
        /// The revision.
        asked: Revision,
    },
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The compare that failed. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "compare {index} failed: {key:?} was expected {expectation:?} and last put by {found:?}: read \
     again and decide again"
)]
pub struct Conflict {
    /// Its place in the transaction.
    pub index: usize,
    /// Its key.
    pub key: Bytes,
    /// What it asked for.
    pub expectation: Expectation,
    /// The revision that last put the key; `None` when it is not there.
    pub found: Option<Revision>,
}

/// Why a transaction was not committed, or is not known to be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CommitError {
    /// A compare failed.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// It may have been committed or not; it was not tried again. Only reading tells.
    #[error(
        "the outcome of the transaction is unknown ({cause}): read what it was to change before \
         going on; do not just send it again"
    )]
    OutcomeUnknown {
        /// What happened.
        cause: Arc<str>,
    },
    /// It breaks a limit.
    #[error("{0}")]
    Invalid(#[from] TransactionFault),
    /// A put names a lease that is not there.
    #[error("the lease {lease} has ended: grant another one")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// A put names a lease that has as many keys as it may.
    #[error("the lease {lease} has {LEASE_KEYS_MAX} keys already: grant another one")]
    LeaseFull {
        /// The lease.
        lease: LeaseId,
    },
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an operation on a lease failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LeaseError {
    /// The time to live is out of range.
    #[error("a time to live of {ttl_s} s, it is {LEASE_TTL_S_MIN} to {LEASE_TTL_S_MAX} s")]
    Ttl {
        /// What was asked for.
        ttl_s: u32,
    },
    /// There is no such lease.
    #[error("the lease {lease} has ended: grant another one and put its keys again")]
    NotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// There are as many leases as there may be.
    #[error("there are {count} leases already: revoke some, or wait until they end")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// It may have been granted or revoked, or not. A lease whose id nobody learned ends by itself.
    #[error("the outcome is unknown ({cause}): grant another lease, or revoke again")]
    OutcomeUnknown {
        /// What happened.
        cause: Arc<str>,
    },
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a watch cannot begin or go on.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WatchError {
    /// Changes after the revision are not kept any more.
    #[error(
        "changes after revision {after} are gone, those after {compacted} are kept: take a \
         snapshot again and watch from its revision"
    )]
    Compacted {
        /// Up to where the watcher had them.
        after: Revision,
        /// The last revision whose changes are gone.
        compacted: Revision,
    },
    /// The store is not that far: the watcher knows another life of it.
    #[error(
        "the store is at revision {current}, before {after}: forget what was read, take a snapshot \
         again and watch from its revision"
    )]
    Ahead {
        /// What was asked for.
        after: Revision,
        /// Where the store is.
        current: Revision,
    },
    /// There are as many watches as there may be.
    #[error("there are {count} watches already: end some")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A metadata store. Clones are one store.
///
/// Operations are linearizable: what was answered is seen by whatever begins afterwards. An
/// operation whose future is dropped may have been done all the same.
pub trait Store: Clone + Send + Sync + 'static {
    /// What [`Store::watch`] answers.
    type Watch: Watch;

    /// Which life of the store this is.
    fn generation(&self) -> Generation;

    /// The entry of a key.
    fn get(&self, key: Bytes) -> impl Future<Output = Result<Option<Entry>, ReadError>> + Send;

    /// A page of a listing. Pages after the first may ask for the first one's revision, so that
    /// the listing is of one state; the answer is [`ReadError::Compacted`] when that is not kept
    /// any more, as it is for some seconds at least while the listing goes on.
    fn range(&self, request: PageRequest) -> impl Future<Output = Result<Page, ReadError>> + Send;

    /// Commits a transaction; answers the revision that it made, or the current one if it changed
    /// nothing. What was answered is durable. Nothing is tried again inside.
    fn commit(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<Revision, CommitError>> + Send;

    /// Watches the keys with a prefix: every change after a revision, in order, none left out.
    fn watch(
        &self,
        prefix: Bytes,
        after: Revision,
    ) -> impl Future<Output = Result<Self::Watch, WatchError>> + Send;

    /// Grants a lease with a time to live in seconds. Its keys are deleted when it has not been
    /// kept alive for that long, or some time later: a lease cleans up, and nothing's safety may
    /// rest on when it ends. A restart of the store gives every lease its whole time again.
    fn grant(&self, ttl_s: u32) -> impl Future<Output = Result<LeaseId, LeaseError>> + Send;

    /// Gives a lease its whole time to live again.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<(), LeaseError>> + Send;

    /// Ends a lease; its keys are deleted, in one revision.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), LeaseError>> + Send;
}

/// A watch of a prefix.
pub trait Watch: Send + 'static {
    /// The next revision that changed keys with the prefix, with these changes only. Waits until
    /// there is one. A call that is given up loses nothing; after an error the watch is over.
    fn next(&mut self) -> impl Future<Output = Result<ChangeSet, WatchError>> + Send;

    /// Everything up to this revision has been told. It also rises, in [`Watch::next`], with
    /// changes of other keys; a later watch may begin here.
    fn revision(&self) -> Revision;
}

/// Reads all keys with a prefix as of one revision, page by page.
///
/// # Errors
/// [`ReadError`]; `Compacted` only after [`SNAPSHOT_ATTEMPTS_MAX`] attempts.
pub async fn snapshot<S: Store>(store: &S, prefix: Bytes) -> Result<Snapshot, ReadError> {
    let mut attempt = 1;
    loop {
        match read_pages(store, PageRequest::first(prefix.clone())).await {
            Err(ReadError::Compacted { .. }) if attempt < SNAPSHOT_ATTEMPTS_MAX => attempt += 1,
            answer => return answer,
        }
    }
}

async fn read_pages<S: Store>(store: &S, first: PageRequest) -> Result<Snapshot, ReadError> {
    let mut page = store.range(first.clone()).await?;
    let mut snapshot = Snapshot { revision: page.revision, entries: Vec::new() };
    while let Some(next) = first.next(&page) {
        snapshot.entries.append(&mut page.entries);
        page = store.range(next).await?;
    }
    snapshot.entries.append(&mut page.entries);
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: usize) -> Bytes {
        vec![b'k'; bytes].into()
    }

    #[test]
    fn a_transaction_is_held_against_every_limit() {
        let numbered = |at: usize| Bytes::from(format!("key-{at}"));
        let mut most = Transaction::new();
        for at in 0..TRANSACTION_OPERATIONS_MAX {
            most = most.expect(numbered(at), Expectation::Absent).put(numbered(at), "value");
        }
        assert_eq!(most.check(), Ok(()));
        assert_eq!(
            most.clone().expect("one more", Expectation::Present).check(),
            Err(TransactionFault::Compares { count: TRANSACTION_OPERATIONS_MAX + 1 })
        );
        assert_eq!(
            most.delete("one more").check(),
            Err(TransactionFault::Changes { count: TRANSACTION_OPERATIONS_MAX + 1 })
        );
        for key_bytes in [0, KEY_BYTES_MAX + 1] {
            let fault = Err(TransactionFault::KeySize { key_bytes });
            assert_eq!(Transaction::new().delete(key(key_bytes)).check(), fault);
            assert_eq!(Transaction::new().put(key(key_bytes), "value").check(), fault);
            let compare = Transaction::new().expect(key(key_bytes), Expectation::Absent);
            assert_eq!(compare.check(), fault);
        }
        let value = |value_bytes| vec![0; value_bytes];
        let largest = Transaction::new().put(key(KEY_BYTES_MAX), value(VALUE_BYTES_MAX));
        assert_eq!(largest.check(), Ok(()));
        assert_eq!(
            largest.clone().put("second", value(VALUE_BYTES_MAX)).check(),
            Err(TransactionFault::Size { bytes: KEY_BYTES_MAX + 6 + 2 * VALUE_BYTES_MAX })
        );
        assert_eq!(
            Transaction::new().put("key", value(VALUE_BYTES_MAX + 1)).check(),
            Err(TransactionFault::ValueSize { value_bytes: VALUE_BYTES_MAX + 1 })
        );
        let twice = Transaction::new().put("b", "1").put("a", "1").delete("b");
        assert_eq!(twice.check(), Err(TransactionFault::KeyTwice { key: "b".into() }));
    }

    #[test]
    fn a_page_request_is_held_against_its_limits_and_leads_to_the_next() {
        let first = PageRequest { limit: 2, ..PageRequest::first("a/") };
        assert_eq!(first.check(), Ok(()));
        for limit in [0, PAGE_ENTRIES_MAX + 1] {
            let request = PageRequest { limit, ..first.clone() };
            assert_eq!(request.check(), Err(PageFault::Limit { limit }));
        }
        let outside = PageRequest { after: Some("b/1".into()), ..first.clone() };
        assert_eq!(outside.check(), Err(PageFault::AfterOutside));
        let entry = |key: &'static str| Entry {
            key: key.into(),
            value: "value".into(),
            mod_revision: Revision(3),
            lease: None,
        };
        let entries = vec![entry("a/1"), entry("a/2")];
        let mut page = Page { revision: Revision(7), entries, more: true };
        let next = first.next(&page).unwrap();
        assert_eq!(next.check(), Ok(()));
        assert_eq!((next.after, next.at), (Some("a/2".into()), Some(Revision(7))));
        page.more = false;
        assert_eq!(first.next(&page), None);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(prefix_end(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(prefix_end(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff, 0xff]), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn a_value_is_not_shown() {
        let transaction = Transaction::new().put("user", "password");
        let shown = format!("{transaction:?}");
        assert!(shown.contains("user") && shown.contains("8 bytes"), "{shown}");
        assert!(!shown.contains("password"), "{shown}");
    }

    #[test]
    fn compares_judge_presence_and_revision() {
        let judge = |expectation, found| Compare { key: key(1), expectation }.holds(found);
        let at = |revision| Some(Revision(revision));
        assert!(judge(Expectation::Absent, None) && !judge(Expectation::Absent, at(1)));
        assert!(judge(Expectation::Present, at(1)) && !judge(Expectation::Present, None));
        let third = Expectation::ModRevision(Revision(3));
        assert!(judge(third, at(3)) && !judge(third, at(2)) && !judge(third, None));
    }
}
