//! What an embedded store does beside what the model knows: files, locks, leases in time,
//! concurrency, limits, ends.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::super::{
    Change, Expectation, LEASE_KEYS_MAX, PAGE_BYTES_MAX, VALUE_BYTES_MAX, Value, Watch, snapshot,
};
use super::faults::Disk;
use super::queue::QUEUE_OPERATIONS_MAX;
use super::*;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(path, EmbeddedOptions::default())
}

fn put(key: impl Into<Bytes>, value: impl Into<Value>) -> Transaction {
    Transaction::new().put(key, value)
}

async fn value_of(store: &EmbeddedStore, key: &'static str) -> Option<Bytes> {
    store.get(key.into()).await.unwrap().map(|entry| entry.value.0)
}

#[tokio::test]
async fn a_store_is_made_once_and_opened_by_one() {
    let directory = directory();
    let path = directory.path().join("metadata");
    let store = open(&path).unwrap();
    assert_eq!(store.generation(), Generation(1));
    assert_eq!(store.commit(put("key", "value")).await, Ok(Revision(1)));
    let second = open(&path).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    let clone = store.clone();
    drop(store);
    assert_eq!(value_of(&clone, "key").await, Some("value".into()), "a clone keeps it open");
    drop(clone);
    let store = open(&path).unwrap();
    assert_eq!(value_of(&store, "key").await, Some("value".into()));
    assert_eq!((store.generation(), store.status().revision), (Generation(1), Revision(1)));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "it is for its owner alone");
}

#[tokio::test]
async fn a_closed_store_answers_nothing_and_frees_its_file() {
    let directory = directory();
    let path = directory.path().join("metadata");
    let store = open(&path).unwrap();
    store.commit(put("key", "value")).await.unwrap();
    let (clone, mut watch) = (store.clone(), store.watch(Bytes::new(), Revision(0)).await.unwrap());
    store.close().await;
    let again = open(&path).expect("the file is free though clones and watches live on");
    let closed = StoreError::Closed;
    assert_eq!(clone.commit(put("key", "2")).await, Err(closed.clone().into()));
    assert_eq!(clone.get("key".into()).await, Err(closed.clone().into()));
    assert_eq!(clone.grant(1).await, Err(closed.clone().into()));
    assert_eq!(watch.next().await.unwrap().revision, Revision(1), "what it had is told");
    assert_eq!(watch.next().await, Err(closed.into()));
    assert_eq!(value_of(&again, "key").await, Some("value".into()));
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let directory = directory();
    let letter = directory.path().join("letter.txt");
    std::fs::write(&letter, "dear").unwrap();
    assert!(matches!(open(&letter), Err(OpenError::NotOurs { .. })));
    assert_eq!(std::fs::read(&letter).unwrap(), b"dear");
    let empty = directory.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(open(&empty), Err(OpenError::NotOurs { .. })), "nobody made it a store");
    assert_eq!(std::fs::read(&empty).unwrap(), b"");
    let nowhere = directory.path().join("missing").join("metadata");
    assert!(matches!(open(&nowhere), Err(OpenError::Io { .. })));

    let foreign = directory.path().join("foreign");
    let write = |name: &str| {
        let database = Database::create(&foreign).unwrap();
        let transaction = database.begin_write().unwrap();
        let table: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new(name);
        transaction.open_table(table).unwrap().insert(1, 2).unwrap();
        transaction.commit().unwrap();
    };
    write("other");
    assert!(matches!(open(&foreign), Err(OpenError::NotOurs { .. })));
    write("meta");
    assert!(matches!(open(&foreign), Err(OpenError::NotOurs { .. })), "a table of another type");
}

#[test]
fn another_format_and_options_out_of_range_are_refused() {
    let directory = directory();
    let path = directory.path().join("metadata");
    drop(open(&path).unwrap());
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(tables::META).unwrap().insert(tables::FORMAT, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = open(&path).unwrap_err();
    assert!(matches!(refused, OpenError::Format { found: 2, supported: 1, .. }), "{refused}");

    let defaults = EmbeddedOptions::default();
    for options in [
        EmbeddedOptions { cache_bytes: CACHE_BYTES_MIN - 1, ..defaults },
        EmbeddedOptions { history_changes_max: 0, ..defaults },
        EmbeddedOptions { history_bytes_max: 0, ..defaults },
    ] {
        let path = directory.path().join("new");
        assert!(matches!(EmbeddedStore::open(&path, options), Err(OpenError::Options)));
        assert!(!path.exists());
    }
}

/// The file of version 1, as that version wrote it. It never changes.
#[tokio::test]
async fn the_first_format_is_read() {
    let directory = directory();
    let path = directory.path().join("metadata");
    std::fs::write(&path, include_bytes!("../../../../golden/store-v1.redb")).unwrap();
    let store = open(&path).unwrap();
    assert_eq!((store.generation(), store.status().revision), (Generation(1), Revision(4)));
    let found = snapshot(&store, Bytes::new()).await.unwrap();
    let expected = [("stream/a", "first again", 3, None), ("stream/b", "second", 2, Some(1))];
    let expected = expected.map(|(key, value, revision, lease)| Entry {
        key: key.into(),
        value: value.into(),
        mod_revision: Revision(revision),
        lease: lease.map(LeaseId),
    });
    assert_eq!(found.entries, expected);
    let mut watch = store.watch(Bytes::new(), Revision(3)).await.unwrap();
    let last = watch.next().await.unwrap();
    assert_eq!(last.changes, [Change::Delete { key: "stream/c".into() }]);
    assert_eq!(store.keep_alive(LeaseId(1)).await, Ok(()));
    assert_eq!(store.grant(60).await, Ok(LeaseId(2)));
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_whole() {
    let directory = directory();
    let path = directory.path().join("metadata");
    let store = open(&path).unwrap();
    for number in 0..200 {
        store.commit(put(format!("key/{number}"), vec![number; 500])).await.unwrap();
    }
    let before = snapshot(&store, Bytes::new()).await.unwrap();
    store.close().await;
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for sample in 0..64 {
        let mut bytes = whole.clone();
        let at = sample * whole.len() / 64 + sample * 7;
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        match open(&path) {
            // It was in a page that nothing uses.
            Ok(store) => {
                assert_eq!(snapshot(&store, Bytes::new()).await.unwrap(), before, "byte {at}");
            }
            Err(OpenError::Damaged { .. } | OpenError::NotOurs { .. }) => refused += 1,
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(refused > 16, "{refused} of 64 were refused");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = open(&path).unwrap_err();
    assert!(matches!(cut, OpenError::Damaged { .. } | OpenError::Io { .. }), "{cut}");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(snapshot(&open(&path).unwrap(), Bytes::new()).await.unwrap(), before);
}

#[tokio::test]
async fn the_keys_of_a_lease_vanish_with_it() {
    let store = Disk::default().open(EmbeddedOptions::default());
    for ttl_s in [0, LEASE_TTL_S_MAX + 1] {
        assert_eq!(store.grant(ttl_s).await, Err(LeaseError::Ttl { ttl_s }));
    }
    let short = store.grant(1).await.unwrap();
    let kept = store.grant(1).await.unwrap();
    let transaction = Transaction::new()
        .put_with("node/1", "a", Some(short))
        .put_with("node/2", "b", Some(short))
        .put_with("node/3", "c", Some(kept))
        .put_with("node/4", "d", None);
    let revision = store.commit(transaction).await.unwrap();
    // A key that is put without its lease stays.
    store.commit(put("node/2", "stays")).await.unwrap();
    let mut watch = store.watch("node/".into(), revision).await.unwrap();
    assert_eq!(watch.next().await.unwrap().changes.len(), 1);
    let started = std::time::Instant::now();
    let ended = loop {
        let next = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
        store.keep_alive(kept).await.expect("it is kept alive");
        if let Ok(ended) = next {
            break ended.unwrap();
        }
        assert!(started.elapsed() < LONG);
    };
    assert_eq!(ended.changes, [Change::Delete { key: "node/1".into() }]);
    assert_eq!(store.keep_alive(short).await, Err(LeaseError::NotFound { lease: short }));
    let put = Transaction::new().put_with("node/5", "e", Some(short));
    assert_eq!(store.commit(put).await, Err(CommitError::LeaseNotFound { lease: short }));
    let ended = tokio::time::timeout(LONG, watch.next()).await.unwrap().unwrap();
    assert_eq!(ended.changes, [Change::Delete { key: "node/3".into() }], "nobody keeps it alive");
    let left = snapshot(&store, Bytes::new()).await.unwrap();
    assert_eq!(left.entries.len(), 2);
}

#[tokio::test]
async fn a_lease_has_so_many_keys_at_most() {
    let store = Disk::default().open(EmbeddedOptions::default());
    let (lease, other) = (store.grant(60).await.unwrap(), store.grant(60).await.unwrap());
    let full = (0..LEASE_KEYS_MAX).fold(Transaction::new(), |transaction, number| {
        transaction.put_with(format!("key/{number}"), "value", Some(lease))
    });
    store.commit(full.clone()).await.unwrap();
    let one_more = Transaction::new().put_with("more", "value", Some(lease));
    assert_eq!(store.commit(one_more.clone()).await, Err(CommitError::LeaseFull { lease }));
    store.commit(full).await.expect("the same keys take no further place");
    // A key that leaves makes room, in whatever order.
    store.commit(one_more.clone().delete("key/0")).await.unwrap();
    let moved = Transaction::new().put_with("more", "value", Some(other));
    store.commit(moved.put_with("key/0", "value", Some(lease))).await.unwrap();
    assert_eq!(store.commit(one_more).await, Err(CommitError::LeaseFull { lease }));
    let before = store.status().revision;
    store.revoke(lease).await.unwrap();
    assert_eq!(store.status().revision, Revision(before.0 + 1), "it ends in one revision");
    let left = snapshot(&store, Bytes::new()).await.unwrap().entries;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].lease, Some(other));
}

#[tokio::test]
async fn pages_are_bounded_by_bytes() {
    let store = Disk::default().open(EmbeddedOptions::default());
    for number in 0..5 {
        store.commit(put(format!("{number}"), vec![number; VALUE_BYTES_MAX])).await.unwrap();
    }
    let mut request = PageRequest::first("");
    let mut pages = 0;
    let mut keys = Vec::new();
    loop {
        let page = store.range(request.clone()).await.unwrap();
        let bytes: usize = page.entries.iter().map(|entry| entry.value.0.len()).sum();
        assert!(bytes <= PAGE_BYTES_MAX && !page.entries.is_empty());
        pages += 1;
        keys.extend(page.entries.iter().map(|entry| entry.key.clone()));
        let Some(next) = request.next(&page) else { break };
        request = next;
    }
    assert_eq!((pages, keys), (5, ["0", "1", "2", "3", "4"].map(Bytes::from).to_vec()));
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_their_watchers() {
    let store = Disk::default().open(EmbeddedOptions::default());
    let mut watches = Vec::new();
    for _ in 0..WATCHES_MAX {
        watches.push(store.watch(Bytes::new(), Revision(0)).await.unwrap());
    }
    let refused = store.watch(Bytes::new(), Revision(0)).await.map(|_| ());
    assert_eq!(refused, Err(WatchError::TooMany { count: WATCHES_MAX }));
    watches.pop();
    store.watch(Bytes::new(), Revision(0)).await.unwrap();
}

/// Adds one to a counter; tries until no other writer comes between.
async fn count(store: &EmbeddedStore, key: &Bytes, log_key: String) -> Revision {
    loop {
        let found = store.get(key.clone()).await.unwrap();
        let (value, expectation) = match &found {
            None => (0, Expectation::Absent),
            Some(entry) => {
                let value = u64::from_le_bytes(entry.value.0[..].try_into().unwrap());
                (value, Expectation::ModRevision(entry.mod_revision))
            }
        };
        let transaction = Transaction::new()
            .expect(key.clone(), expectation)
            .put(key.clone(), (value + 1).to_le_bytes().to_vec())
            .put(log_key.clone(), "");
        match store.commit(transaction).await {
            Ok(revision) => return revision,
            Err(CommitError::Conflict(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Follows a prefix until a revision, from a snapshot taken on the way.
async fn follow(
    store: EmbeddedStore,
    prefix: &'static str,
    begin: Revision,
    end: Revision,
) -> std::collections::BTreeMap<Bytes, Entry> {
    while store.status().revision < begin {
        tokio::task::yield_now().await;
    }
    let from = snapshot(&store, prefix.into()).await.unwrap();
    let mut entries: std::collections::BTreeMap<_, _> =
        from.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    let mut watch = store.watch(prefix.into(), from.revision).await.unwrap();
    let mut last = from.revision;
    while watch.revision() < end {
        // Changes of other keys only move the watch on when it is asked.
        let next = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
        let Ok(set) = next else { continue };
        let set = set.unwrap();
        assert!(set.revision > last, "in order, and no revision twice");
        last = set.revision;
        for change in set.changes {
            assert!(change.key().starts_with(prefix.as_bytes()));
            match change {
                Change::Delete { key } => drop(entries.remove(&key)),
                Change::Put { key, value, lease } => {
                    let entry = Entry { key, value, mod_revision: last, lease };
                    entries.insert(entry.key.clone(), entry);
                }
            }
        }
    }
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_everything_while_many_write() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 150;
    let directory = directory();
    let store = open(&directory.path().join("metadata")).unwrap();
    let end = Revision(WRITERS * EACH);
    let followers: Vec<_> = [("", 0), ("counter", 0), ("log/3", 300), ("log/", 600), ("none", 900)]
        .into_iter()
        .map(|(prefix, begin)| {
            let follower = follow(store.clone(), prefix, Revision(begin), end);
            (prefix, tokio::spawn(follower))
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let counter = Bytes::from(format!("counter/{}", writer % 3));
                let mut revisions = Vec::new();
                for number in 0..EACH {
                    let log_key = format!("log/{writer}/{number}");
                    revisions.push(count(&store, &counter, log_key).await);
                }
                assert!(revisions.is_sorted(), "later answers have higher revisions");
                revisions
            })
        })
        .collect();
    let mut revisions = Vec::new();
    for writer in writers {
        revisions.append(&mut writer.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=end.0).map(Revision).collect::<Vec<_>>(), "each has its own");
    let whole = snapshot(&store, Bytes::new()).await.unwrap();
    let counted = whole.entries.iter().filter(|entry| entry.key.starts_with(b"counter"));
    let counted: u64 =
        counted.map(|entry| u64::from_le_bytes(entry.value.0[..].try_into().unwrap())).sum();
    assert_eq!(counted, WRITERS * EACH, "no increment is lost");
    for (prefix, follower) in followers {
        let followed = tokio::time::timeout(LONG, follower).await.unwrap().unwrap();
        let expected = snapshot(&store, prefix.into()).await.unwrap();
        assert_eq!(followed.into_values().collect::<Vec<_>>(), expected.entries, "{prefix:?}");
    }
}

#[tokio::test]
async fn a_watcher_that_falls_behind_reads_the_history_and_then_is_told() {
    let options = EmbeddedOptions { history_changes_max: 6000, ..EmbeddedOptions::default() };
    let store = Disk::default().open(options);
    let write = async |count: usize| {
        for _ in 0..count / 50 {
            let commits = (0..50).map(|number| store.commit(put(format!("{number}"), "value")));
            let all: Vec<_> = commits.collect();
            for answer in join_all(all).await {
                answer.unwrap();
            }
        }
    };
    let mut slow = store.watch(Bytes::new(), Revision(0)).await.unwrap();
    let mut lost = store.watch(Bytes::new(), Revision(0)).await.unwrap();
    // More than is kept in memory, less than the history has.
    write(5500).await;
    for revision in 1..=5500 {
        assert_eq!(slow.next().await.unwrap().revision, Revision(revision));
    }
    write(1000).await;
    assert_eq!(slow.next().await.unwrap().revision, Revision(5501));
    let compacted = store.status().compacted;
    assert_eq!(compacted, Revision(500));
    let told = WatchError::Compacted { after: Revision(0), compacted };
    assert_eq!(lost.next().await, Err(told));
    let whole = snapshot(&store, Bytes::new()).await.unwrap();
    assert_eq!((whole.revision, whole.entries.len()), (Revision(6500), 50));
}

/// Once, a watch from the revision that a snapshot had just shown was refused as ahead of the
/// store, and a follower went back to the start: a read sees a commit a moment before it is
/// published.
#[tokio::test]
async fn a_watch_may_begin_at_whatever_a_read_has_shown() {
    let store = Disk::default().open(EmbeddedOptions::default());
    store.commit(put("first", "value")).await.unwrap();
    let unpublished = store.shared.progress.borrow().state;
    let shown = store.commit(put("second", "value")).await.unwrap();
    store.shared.progress.send_modify(|progress| progress.state = unpublished);
    let mut watch = store.watch(Bytes::new(), shown).await.unwrap();
    let ahead = store.watch(Bytes::new(), Revision(3)).await.map(|_| ());
    assert_eq!(ahead, Err(WatchError::Ahead { after: Revision(3), current: shown }));
    let third = store.commit(put("third", "value")).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, third);
}

/// Waits for all, at the same time.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut answers: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, answer) in waiting.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *answer = Some(ready);
            }
        }
        let is_done = answers.iter().all(Option::is_some);
        if is_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

#[tokio::test]
async fn more_than_may_wait_is_refused_and_nothing_of_it_done() {
    let store = Disk::default().open(EmbeddedOptions::default());
    // More than the queue and the group under way can hold.
    let count = QUEUE_OPERATIONS_MAX * 2;
    let commits = (0..count).map(|number| store.commit(put(format!("{number}"), "value")));
    let answers = join_all(commits.collect()).await;
    let mut done = 0;
    for answer in answers {
        match answer {
            Ok(_) => done += 1,
            Err(CommitError::Store(StoreError::Overloaded { .. })) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done >= QUEUE_OPERATIONS_MAX && done < count, "{done} of {count}");
    assert_eq!(store.status().revision, Revision(done as u64));
    store.commit(put("later", "value")).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_harms_nobody() {
    let store = Disk::default().open(EmbeddedOptions::default());
    let mut watch = store.watch(Bytes::new(), Revision(0)).await.unwrap();
    for number in 0..100 {
        let commit = store.commit(put(format!("{number}"), "value"));
        drop(tokio::time::timeout(Duration::ZERO, commit).await);
        drop(tokio::time::timeout(Duration::ZERO, watch.next()).await);
    }
    let last = store.commit(put("last", "value")).await.unwrap();
    assert_eq!(last, Revision(101), "what was given up was done all the same");
    let mut watch = store.watch(Bytes::new(), Revision(0)).await.unwrap();
    for revision in 1..=last.0 {
        assert_eq!(watch.next().await.unwrap().revision, Revision(revision));
    }
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused() {
    let store = Disk::default().open(EmbeddedOptions::default());
    let refused = store.commit(put("", "value")).await;
    assert!(matches!(refused, Err(CommitError::Invalid(_))), "{refused:?}");
    let request = PageRequest { limit: 0, ..PageRequest::first("") };
    assert!(matches!(store.range(request).await, Err(ReadError::Invalid(_))));
    assert_eq!(store.get(vec![0; 5000].into()).await, Ok(None));
    assert_eq!(store.status().revision, Revision(0));
}
