//! The store against a model in memory, over any sequence of operations, restarts and crashes.
//!
//! Each operation waits for its answer, so after a crash everything that the model has is there.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::{
    Change, ChangeSet, CommitError, Compare, Conflict, Entry, Expectation, LEASE_KEYS_MAX,
    LeaseError, LeaseId, PageRequest, ReadError, Revision, Store, Transaction, Value, Watch,
    WatchError, prefix_end, snapshot,
};
use super::faults::Disk;
use super::tables::HISTORY_ROW_BYTES;
use super::{EmbeddedOptions, EmbeddedStore};

const OPTIONS: EmbeddedOptions = EmbeddedOptions {
    cache_bytes: super::CACHE_BYTES_MIN,
    history_changes_max: 12,
    history_bytes_max: 1200,
};

/// Few keys, so that they are met again; one begins with another, one with the highest byte.
const KEYS: [&[u8]; 7] = [b"a", b"a/", b"a/1", b"a/2", b"b", b"\xff", b"\xff\xff1"];
const PREFIXES: [&[u8]; 5] = [b"", b"a", b"a/", b"c", b"\xff"];

#[derive(Clone, Debug)]
enum Operation {
    Commit {
        compares: Vec<(Index, Guess)>,
        changes: Vec<(Index, Wanted)>,
    },
    Get {
        key: Index,
    },
    Page {
        prefix: Index,
        after: Option<Index>,
        limit: u32,
    },
    /// A listing in pages, with a change between them.
    List {
        prefix: Index,
        limit: u32,
        change: Index,
    },
    Grant,
    Revoke {
        lease: Index,
    },
    /// A watch from a share of the revisions, some beyond the last.
    Watch {
        prefix: Index,
        share: u8,
    },
    Reopen {
        crash: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Guess {
    Absent,
    Present,
    /// The right revision, or one so many below.
    Revision(u8),
}

#[derive(Clone, Debug)]
enum Wanted {
    Put { value_bytes: u16, lease: Option<Index> },
    Delete,
}

fn operation() -> impl Strategy<Value = Operation> {
    let index = any::<Index>;
    // As a rule the guess is right, so that transactions with several compares get through.
    let guess = prop_oneof![
        1 => Just(Guess::Absent),
        1 => Just(Guess::Present),
        6 => prop_oneof![5 => Just(0), 1 => 1..4_u8].prop_map(Guess::Revision),
    ];
    let value_bytes = prop_oneof![9 => 0..64_u16, 1 => 300..1500_u16];
    let put = (value_bytes, proptest::option::weighted(0.3, index()));
    let put = put.prop_map(|(value_bytes, lease)| Wanted::Put { value_bytes, lease });
    let wanted = prop_oneof![3 => put, 1 => Just(Wanted::Delete)];
    let compares = prop::collection::vec((index(), guess), 0..3);
    let changes = prop::collection::vec((index(), wanted), 0..4);
    prop_oneof![
        10 => (compares, changes)
            .prop_map(|(compares, changes)| Operation::Commit { compares, changes }),
        1 => index().prop_map(|key| Operation::Get { key }),
        2 => (index(), proptest::option::of(index()), 1..5_u32)
            .prop_map(|(prefix, after, limit)| Operation::Page { prefix, after, limit }),
        1 => (index(), 1..4_u32, index())
            .prop_map(|(prefix, limit, change)| Operation::List { prefix, limit, change }),
        1 => Just(Operation::Grant),
        1 => index().prop_map(|lease| Operation::Revoke { lease }),
        3 => (index(), any::<u8>()).prop_map(|(prefix, share)| Operation::Watch { prefix, share }),
        1 => any::<bool>().prop_map(|crash| Operation::Reopen { crash }),
    ]
}

/// What the store is taken for.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Bytes, Entry>,
    history: Vec<ChangeSet>,
    compacted: u64,
    leases: BTreeMap<LeaseId, BTreeSet<Bytes>>,
    /// Of all leases there ever were, the highest.
    last_lease: u64,
    /// All leases there ever were.
    all_leases: Vec<LeaseId>,
}

impl Model {
    fn revision(&self) -> Revision {
        Revision(self.history.len() as u64)
    }

    fn judge(&self, transaction: &Transaction) -> Result<(), CommitError> {
        for (index, Compare { key, expectation }) in transaction.compares.iter().enumerate() {
            let found = self.entries.get(key).map(|entry| entry.mod_revision);
            let holds = match expectation {
                Expectation::Absent => found.is_none(),
                Expectation::Present => found.is_some(),
                Expectation::ModRevision(revision) => found == Some(*revision),
            };
            if !holds {
                let (key, expectation) = (key.clone(), *expectation);
                return Err(Conflict { index, key, expectation, found }.into());
            }
        }
        for change in &transaction.changes {
            if let Change::Put { lease: Some(lease), .. } = change
                && !self.leases.contains_key(lease)
            {
                return Err(CommitError::LeaseNotFound { lease: *lease });
            }
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) {
        let is_change = |change: &&Change| match change {
            Change::Put { .. } => true,
            Change::Delete { key } => self.entries.contains_key(key),
        };
        let changes: Vec<Change> = changes.iter().filter(is_change).cloned().collect();
        if changes.is_empty() {
            return;
        }
        let revision = Revision(self.revision().0 + 1);
        for change in &changes {
            if let Some(old) = self.entries.remove(change.key())
                && let Some(keys) = old.lease.and_then(|lease| self.leases.get_mut(&lease))
            {
                keys.remove(change.key());
            }
            if let Change::Put { key, value, lease } = change {
                let (key, value, lease) = (key.clone(), value.clone(), *lease);
                if let Some(lease) = lease {
                    self.leases.get_mut(&lease).unwrap().insert(key.clone());
                }
                let entry = Entry { key: key.clone(), value, mod_revision: revision, lease };
                self.entries.insert(key, entry);
            }
        }
        self.history.push(ChangeSet { revision, changes });
        let is_over = |(changes, bytes)| {
            changes > OPTIONS.history_changes_max || bytes > OPTIONS.history_bytes_max
        };
        while is_over(self.history_size()) {
            self.compacted += 1;
        }
    }

    /// Changes and bytes that are kept.
    fn history_size(&self) -> (u64, u64) {
        let kept = self.history[self.compacted as usize..].iter().flat_map(|set| &set.changes);
        let bytes = kept.clone().map(|change| change.bytes() as u64 + HISTORY_ROW_BYTES).sum();
        (kept.count() as u64, bytes)
    }

    fn with_prefix(&self, prefix: &[u8]) -> Vec<Entry> {
        let is_ours = |entry: &&Entry| entry.key.starts_with(prefix);
        self.entries.values().filter(is_ours).cloned().collect()
    }
}

/// The store under test, and its model.
struct World {
    disk: Disk,
    store: Option<EmbeddedStore>,
    model: Model,
}

fn key(index: Index) -> Bytes {
    Bytes::from_static(KEYS[index.index(KEYS.len())])
}

impl World {
    fn store(&self) -> &EmbeddedStore {
        self.store.as_ref().expect("it is open between operations")
    }

    async fn run(&mut self, operation: Operation) {
        match operation {
            Operation::Commit { compares, changes } => self.commit(compares, changes).await,
            Operation::Get { key: index } => {
                let found = self.store().get(key(index)).await.unwrap();
                assert_eq!(found.as_ref(), self.model.entries.get(&key(index)));
            }
            Operation::Page { prefix, after, limit } => self.page(prefix, after, limit).await,
            Operation::List { prefix, limit, change } => self.list(prefix, limit, change).await,
            Operation::Grant => {
                let lease = self.store().grant(60).await.unwrap();
                assert!(lease.0 > self.model.last_lease, "an id is never used again");
                self.model.last_lease = lease.0;
                self.model.all_leases.push(lease);
                self.model.leases.insert(lease, BTreeSet::new());
            }
            Operation::Revoke { lease } => self.revoke(lease).await,
            Operation::Watch { prefix, share } => self.watch(prefix, share).await,
            Operation::Reopen { crash } => self.reopen(crash).await,
        }
        self.check_status();
    }

    fn check_status(&self) {
        let status = self.store().status();
        assert_eq!(status.revision, self.model.revision());
        assert_eq!(status.compacted, Revision(self.model.compacted));
        let size = (status.history_changes, status.history_bytes);
        assert_eq!(size, self.model.history_size());
    }

    async fn commit(&mut self, compares: Vec<(Index, Guess)>, changes: Vec<(Index, Wanted)>) {
        let mut transaction = Transaction::new();
        for (index, guess) in compares {
            let found = self.model.entries.get(&key(index)).map(|entry| entry.mod_revision);
            let expectation = match (guess, found) {
                (Guess::Absent, _) | (Guess::Revision(0), None) => Expectation::Absent,
                (Guess::Present, _) => Expectation::Present,
                (Guess::Revision(below), found) => {
                    let revision = found.unwrap_or_default().0.saturating_sub(u64::from(below));
                    Expectation::ModRevision(Revision(revision))
                }
            };
            transaction = transaction.expect(key(index), expectation);
        }
        for (index, wanted) in changes {
            if transaction.changes.iter().any(|change| change.key() == &key(index)) {
                continue;
            }
            transaction = match wanted {
                Wanted::Delete => transaction.delete(key(index)),
                Wanted::Put { value_bytes, lease } => {
                    let value = Value::from(vec![value_bytes as u8; usize::from(value_bytes)]);
                    let leases = &self.model.all_leases;
                    let lease = lease.filter(|_| !leases.is_empty());
                    transaction.put_with(key(index), value, lease.map(|lease| *lease.get(leases)))
                }
            };
        }
        let expected = self.model.judge(&transaction).map(|()| {
            self.model.apply(&transaction.changes);
            self.model.revision()
        });
        assert_eq!(self.store().commit(transaction).await, expected);
    }

    async fn page(&self, prefix: Index, after: Option<Index>, limit: u32) {
        let prefix = Bytes::from_static(PREFIXES[prefix.index(PREFIXES.len())]);
        let after = after.map(key);
        let request = PageRequest { prefix, after, limit, at: None };
        let answer = self.store().range(request.clone()).await;
        if let Err(fault) = request.check() {
            assert_eq!(answer, Err(ReadError::Invalid(fault)));
            return;
        }
        let page = answer.unwrap();
        let mut expected = self.model.with_prefix(&request.prefix);
        expected.retain(|entry| request.after.as_ref().is_none_or(|after| entry.key > *after));
        assert_eq!(page.more, expected.len() > limit as usize);
        expected.truncate(limit as usize);
        assert_eq!((page.entries, page.revision), (expected, self.model.revision()));
    }

    async fn list(&mut self, prefix: Index, limit: u32, change: Index) {
        let prefix = Bytes::from_static(PREFIXES[prefix.index(PREFIXES.len())]);
        let first = PageRequest { limit, ..PageRequest::first(prefix.clone()) };
        let (expected, revision) = (self.model.with_prefix(&prefix), self.model.revision());
        let mut page = self.store().range(first.clone()).await.unwrap();
        let mut entries = page.entries.clone();
        while let Some(next) = first.next(&page) {
            self.commit(vec![], vec![(change, Wanted::Delete)]).await;
            let put = Wanted::Put { value_bytes: entries.len() as u16, lease: None };
            self.commit(vec![], vec![(change, put)]).await;
            page = self.store().range(next).await.unwrap();
            assert_eq!(page.revision, revision, "all pages are of one revision");
            entries.append(&mut page.entries.clone());
        }
        assert_eq!(entries, expected);
        let never = PageRequest { at: Some(Revision(u64::MAX)), ..first };
        let refused = ReadError::Compacted { asked: Revision(u64::MAX) };
        assert_eq!(self.store().range(never).await, Err(refused));
        let whole = snapshot(self.store(), prefix.clone()).await.unwrap();
        assert_eq!(whole.entries, self.model.with_prefix(&prefix));
        assert_eq!(whole.revision, self.model.revision());
    }

    async fn revoke(&mut self, lease: Index) {
        if self.model.all_leases.is_empty() {
            return;
        }
        let lease = *lease.get(&self.model.all_leases);
        let expected = match self.model.leases.get(&lease).cloned() {
            None => Err(LeaseError::NotFound { lease }),
            Some(keys) => {
                let deletes: Vec<_> = keys.into_iter().map(|key| Change::Delete { key }).collect();
                self.model.apply(&deletes);
                self.model.leases.remove(&lease);
                Ok(())
            }
        };
        assert_eq!(self.store().revoke(lease).await, expected);
        assert_eq!(self.store().keep_alive(lease).await, Err(LeaseError::NotFound { lease }));
    }

    async fn watch(&self, prefix: Index, share: u8) {
        let prefix = Bytes::from_static(PREFIXES[prefix.index(PREFIXES.len())]);
        let current = self.model.revision();
        let after = Revision((current.0 + 2) * u64::from(share) / 255);
        let watch = self.store().watch(prefix.clone(), after).await;
        let compacted = Revision(self.model.compacted);
        if after > current {
            assert_eq!(watch.map(|_| ()), Err(WatchError::Ahead { after, current }));
            return;
        }
        if after < compacted {
            assert_eq!(watch.map(|_| ()), Err(WatchError::Compacted { after, compacted }));
            return;
        }
        let mut watch = watch.unwrap();
        for set in &self.model.history[after.0 as usize..] {
            let is_ours = |change: &&Change| change.key().starts_with(&prefix);
            let changes: Vec<Change> = set.changes.iter().filter(is_ours).cloned().collect();
            if !changes.is_empty() {
                assert!(watch.revision() < set.revision);
                let told = watch.next().await.unwrap();
                assert_eq!(told, ChangeSet { revision: set.revision, changes });
            }
        }
        // There is nothing more, and that is known as of now.
        let more = tokio::time::timeout(std::time::Duration::ZERO, watch.next()).await;
        assert!(more.is_err(), "{more:?}");
    }

    async fn reopen(&mut self, crash: bool) {
        if crash {
            // Nothing that was not synced is left.
            let left = self.disk.cut(|| false);
            self.store.take().unwrap().close().await;
            self.disk = left;
        } else {
            self.store.take().unwrap().close().await;
        }
        self.store = Some(self.disk.open(OPTIONS));
        for lease in &self.model.all_leases {
            let is_there = self.store().keep_alive(*lease).await.is_ok();
            assert_eq!(is_there, self.model.leases.contains_key(lease));
        }
        let whole = snapshot(self.store(), Bytes::new()).await.unwrap();
        assert_eq!(whole.entries, self.model.with_prefix(b""));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_the_model_is(operations in prop::collection::vec(operation(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let store = Some(disk.open(OPTIONS));
            let mut world = World { disk, store, model: Model::default() };
            for operation in operations {
                world.run(operation).await;
            }
            world.reopen(true).await;
        });
    }
}

#[test]
fn every_kind_of_key_is_in_the_model_test() {
    assert!(KEYS.iter().any(|key| prefix_end(key).is_none()));
    assert!(KEYS.len() < LEASE_KEYS_MAX as usize, "the model has no full leases");
}
