//! The reconciler is cut off at every commit of a stream's whole life, before the store has it and
//! after, and goes on in a new one: shards are made once, their parents end in the revision in
//! which they are seen, and whenever it is looked at the open ones cover all hash keys once.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use support::{PATIENCE, TestNode};
use thalweg_router::control::catalog::{Catalog, Stream};
use thalweg_router::control::nodes::Node;
use thalweg_router::control::reconciler::{Reconciler, ShardSettings};
use thalweg_router::control::record::{
    Intent, NewShard, RECORD_VERSION, RecordKey, ReshardStep, StreamMode, StreamName, StreamRecord,
    StreamStatus, encode_record,
};
use thalweg_router::control::store::embedded::{EmbeddedOptions, EmbeddedStore};
use thalweg_router::control::store::{
    ChangeSet, CommitError, Entry, Expectation, Generation, LeaseError, LeaseId, Page, PageRequest,
    ReadError, Revision, Store, StoreError, Transaction, Watch, WatchError,
};
use thalweg_router::control::{NowMs, system_clock};
use thalweg_router::route::{AnswerMemory, LinkLimits, NodeLinks};
use thalweg_wire::hash_range::{HashKey, HashRange};

/// Which commit is cut off, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// The store does not have it.
    Before,
    /// The store has it, and nobody is told.
    After,
}

/// A store whose connection breaks for good at one commit.
#[derive(Clone)]
struct CutStore {
    inner: EmbeddedStore,
    left: Arc<AtomicI64>,
    cut: Cut,
}

impl Store for CutStore {
    type Watch = <EmbeddedStore as Store>::Watch;

    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    async fn get(&self, key: Bytes) -> Result<Option<Entry>, ReadError> {
        self.inner.get(key).await
    }

    async fn range(&self, request: PageRequest) -> Result<Page, ReadError> {
        self.inner.range(request).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        match (self.left.fetch_sub(1, Ordering::SeqCst), self.cut) {
            (1.., _) => self.inner.commit(transaction).await,
            (0, Cut::After) => {
                self.inner.commit(transaction).await?;
                Err(StoreError::Closed.into())
            }
            _ => Err(StoreError::Closed.into()),
        }
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<Self::Watch, WatchError> {
        self.inner.watch(prefix, after).await
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, LeaseError> {
        self.inner.grant(ttl_s).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.inner.revoke(lease).await
    }
}

/// A second passes between any two looks at it: nothing waits for one to be over.
fn clock() -> NowMs {
    let (machine_ms, looks) = (system_clock(), AtomicU64::new(0));
    Arc::new(move || machine_ms() + looks.fetch_add(1000, Ordering::Relaxed))
}

/// A router's control, until it is cut off.
struct Control {
    catalog: Arc<Catalog>,
    left: Arc<AtomicI64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Control {
    async fn start(store: &EmbeddedStore, node: &TestNode, left: i64, cut: Cut) -> Control {
        let left = Arc::new(AtomicI64::new(left));
        let store = CutStore { inner: store.clone(), left: left.clone(), cut };
        let links = NodeLinks::new(LinkLimits::default(), AnswerMemory::new(0));
        let node = Node::new(node.addresses()[0], links);
        node.learn().await.expect("the node tells what it has");
        let (catalog, watch) = Catalog::open(&store).await.expect("the store can be read");
        let settings = ShardSettings { limits: None, generation: store.generation() };
        let reconciler = Reconciler::new(store, catalog.clone(), node, clock(), settings);
        let follower = catalog.clone();
        let tasks = vec![
            tokio::spawn(async move { drop(follower.follow(watch).await) }),
            tokio::spawn(reconciler.run()),
        ];
        Control { catalog, left, tasks }
    }

    /// Waits until nothing is left to do; false when it was cut off before.
    async fn settles(&self) -> bool {
        let mut changes = self.catalog.changes();
        let started = tokio::time::Instant::now();
        loop {
            let stream = self.catalog.stream(&name());
            if let Some(stream) = &stream {
                assert_tiled(stream);
            }
            if stream.is_none_or(|stream| !stream.has_work()) {
                return true;
            }
            if self.left.load(Ordering::SeqCst) < 0 {
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "nothing comes of it");
            let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
        }
    }

    fn end(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn name() -> StreamName {
    StreamName {
        account_id: "123456789012".to_owned(),
        region: "us-east-1".to_owned(),
        name: "orders".to_owned(),
    }
}

/// The open shards of a stream that has been made cover all hash keys once; of one that is being
/// made or deleted they may yet not.
#[track_caller]
fn assert_tiled(stream: &Stream) {
    if matches!(stream.record.status, StreamStatus::Creating | StreamStatus::Deleting) {
        return;
    }
    let mut next = Some(0);
    for (index, shard) in stream.open_shards() {
        assert_eq!(next, Some(shard.range.start.0), "shard {index} follows without a gap");
        next = shard.range.end.0.checked_add(1);
        for parent in &shard.parents {
            let parent = stream.shard(*parent).expect("a parent is there");
            assert!(!parent.record.is_open(), "a parent has ended");
            assert!(parent.record.created_s < shard.created_s, "numbers rise");
        }
    }
    assert_eq!(next, None, "up to the last hash key");
}

fn record(intent: Intent, status: StreamStatus, next_shard: u32) -> StreamRecord {
    StreamRecord {
        version: RECORD_VERSION,
        id: 77,
        created_ms: 1,
        status,
        intent: Some(intent),
        next_shard,
        mode: StreamMode::Provisioned,
        retention_hours: 24,
        encryption: Default::default(),
        metrics: BTreeSet::new(),
        tags: BTreeMap::new(),
        policy: None,
        max_record_kib: 1024,
        warm_mibps: None,
        distributes: false,
        resized_ms: Vec::new(),
        mode_changed_ms: Vec::new(),
        key_changed_ms: Vec::new(),
        key_dropped_ms: Vec::new(),
    }
}

/// What the API asks for, one after the other: three shards, the middle one split, its second part
/// merged with the last, all of it deleted.
fn wishes() -> Vec<StreamRecord> {
    let range = |index| HashRange::of_initial_shard(index, 3);
    let middle = HashKey(1 << 127);
    let lower = HashRange { start: range(1).start, end: HashKey(middle.0 - 1) };
    let upper = HashRange { start: middle, end: range(1).end };
    let merged = HashRange { start: middle, end: range(2).end };
    let step = |parents: &[u32], children: &[(u32, HashRange)]| ReshardStep {
        parents: parents.to_vec(),
        children: children
            .iter()
            .map(|(index, range)| NewShard { index: *index, range: *range })
            .collect(),
    };
    let reshard = |step: ReshardStep| Intent::Reshard { steps: vec![step], resize: None };
    let split = reshard(step(&[1], &[(3, lower), (4, upper)]));
    let merge = reshard(step(&[4, 2], &[(5, merged)]));
    vec![
        record(Intent::Create { shards: 3 }, StreamStatus::Creating, 0),
        record(split, StreamStatus::Updating, 5),
        record(merge, StreamStatus::Updating, 6),
        record(Intent::Delete { unborn: Vec::new() }, StreamStatus::Deleting, 6),
    ]
}

async fn wish(store: &EmbeddedStore, record: &StreamRecord) -> Revision {
    let key = RecordKey::Stream(name()).encode();
    let found = store.get(key.clone()).await.expect("the store can be read");
    let expected = match found {
        None => Expectation::Absent,
        Some(entry) => Expectation::ModRevision(entry.mod_revision),
    };
    let transaction =
        Transaction::new().expect(key.clone(), expected).put(key, encode_record(record));
    store.commit(transaction).await.expect("nobody else changes it")
}

/// Every revision as it was seen by who watches from the beginning.
async fn history(store: &EmbeddedStore) -> Vec<ChangeSet> {
    let prefix = Bytes::from_static(b"stream/");
    let now = store.range(PageRequest::first(prefix.clone())).await.expect("it can be read");
    let until = now.revision;
    let mut watch = store.watch(prefix, Revision(0)).await.expect("nothing was let go yet");
    let mut changes = Vec::new();
    while watch.revision() < until {
        changes.push(watch.next().await.expect("the store can be read"));
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconciler_that_is_cut_off_at_any_commit_makes_everything_once() {
    for cut in [Cut::Before, Cut::After] {
        let mut cuts = 0;
        loop {
            let directory = support::data_directory();
            let node = TestNode::start(1, 0, None);
            let store =
                EmbeddedStore::open(&directory.path().join("store"), EmbeddedOptions::default())
                    .expect("the store can be opened");
            // The one that is cut off, once; then one that is not.
            let mut control = Control::start(&store, &node, cuts, cut).await;
            let mut was_cut = false;
            for (place, record) in wishes().iter().enumerate() {
                let revision = wish(&store, record).await;
                control.catalog.wait_for(revision).await;
                if !control.settles().await {
                    assert!(!was_cut, "the second one is not cut off");
                    was_cut = true;
                    control.end();
                    control = Control::start(&store, &node, i64::MAX, cut).await;
                    assert!(control.settles().await);
                }
                let stream = control.catalog.stream(&name());
                let open = stream.map(|stream| {
                    assert_eq!(stream.record.status, StreamStatus::Active);
                    stream.open_shards().map(|(index, _)| index).collect::<Vec<u32>>()
                });
                let expected =
                    [Some(vec![0, 1, 2]), Some(vec![0, 3, 4, 2]), Some(vec![0, 3, 5]), None];
                assert_eq!(open, expected[place], "{cut:?} commit {cuts}");
            }
            control.end();
            // Each shard was made once, whatever was tried.
            let mut made = BTreeMap::<u32, u32>::new();
            for change in history(&store).await {
                for change in change.changes {
                    let is_put =
                        matches!(&change, thalweg_router::control::store::Change::Put { .. });
                    if let (true, Ok(RecordKey::Shard(_, index))) =
                        (is_put, RecordKey::decode(change.key()))
                    {
                        *made.entry(index).or_default() += 1;
                    }
                }
            }
            // Three end by a reshard: made, then put once more with their end.
            let expected = BTreeMap::from([(0, 1), (1, 2), (2, 2), (3, 1), (4, 2), (5, 1)]);
            assert_eq!(made, expected, "{cut:?} commit {cuts}");
            if !was_cut {
                assert!(cuts >= 4, "{cuts} commits make such a life");
                break;
            }
            cuts += 1;
        }
    }
}
