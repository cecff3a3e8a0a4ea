//! The fetcher against a node: what was stored, where it lies, as far as there is memory for it.

mod support;

use std::time::{Duration, Instant};

use support::{
    AskingRoutes, PATIENCE, Proxy, TestNode, fetcher, number_of, records_of, shard, writer,
};
use thalweg_client::Admin;
use thalweg_router::route::{
    AnswerMemory, FetchError, Fetched, MEMORY_WAIT, ShardSubscription, Writer,
};
use thalweg_wire::control::{FenceExtent, SealExtent, TrimShard};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::fetch::FetchFrom;
use thalweg_wire::ids::{Epoch, ExtentId, Offset};

async fn store(writer: &Writer, index: u32, numbers: std::ops::Range<u64>, data_bytes: usize) {
    for number in numbers {
        let appended = writer.append(shard(index), records_of(&[number], data_bytes)).await;
        assert!(appended.parts()[0].result.is_ok(), "{appended:?}");
    }
}

fn numbers_of(fetched: &Fetched) -> Vec<u64> {
    fetched.records().map(|record| number_of(record.data)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_read_from_any_place_with_all_that_they_are() {
    let node = TestNode::start(2, 3, None);
    let routes = AskingRoutes::new(node.addresses());
    let (writer, fetcher) = (writer(&routes), fetcher(&routes, &AnswerMemory::new(0)));
    let all: Vec<u64> = (0..50).collect();
    let appended = writer.append(shard(1), records_of(&all, 100)).await;
    let stored = appended.parts()[0].result.expect("it is stored");
    store(&writer, 1, 50..60, 100).await;
    let fetch = |from, wait| fetcher.fetch(shard(1), from, 1 << 20, wait);
    let fetched = fetch(FetchFrom::Earliest, Duration::ZERO).await.expect("it is there");
    assert_eq!(numbers_of(&fetched), (0..60).collect::<Vec<u64>>());
    assert_eq!(fetched.head().next, Offset(60));
    let first = fetched.records().next().expect("a record");
    assert_eq!((first.offset, first.append_time_ms), (Offset(0), stored.append_time_ms));
    assert_eq!((first.key, first.client_time_ms), (&b"k"[..], 0));
    assert_eq!(fetched.batches().count(), 11);
    // A batch is not cut, but what was not asked for is not shown.
    let from = FetchFrom::Offset(Offset(47));
    let fetched = fetch(from, Duration::ZERO).await.expect("it is there");
    assert_eq!(numbers_of(&fetched), (47..60).collect::<Vec<u64>>());
    let other = fetched.clone();
    drop(fetched);
    assert_eq!(numbers_of(&other).len(), 13, "a clone has the same bytes");
    let time = FetchFrom::Time(stored.append_time_ms);
    let fetched = fetch(time, Duration::ZERO).await.expect("it is there");
    assert_eq!(fetched.records().next().expect("a record").offset, Offset(0));
    // At the end: nothing at once, or what comes.
    let fetched = fetch(FetchFrom::Latest, Duration::ZERO).await.expect("an answer");
    assert_eq!((numbers_of(&fetched).len(), fetched.head().next), (0, Offset(60)));
    let (waiting, ()) = tokio::join!(fetch(FetchFrom::Latest, PATIENCE), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        store(&writer, 1, 60..61, 100).await;
    });
    assert_eq!(numbers_of(&waiting.expect("it comes")), [60]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_tell_where_to_go_on() {
    let node = TestNode::start(1, 1, None);
    let routes = AskingRoutes::new(node.addresses());
    let (writer, fetcher) = (writer(&routes), fetcher(&routes, &AnswerMemory::new(0)));
    store(&writer, 0, 0..10, 100).await;
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let trim = TrimShard { shard: shard(0), first_kept: Offset(5) };
    admin.trim_shard(&trim).expect("committed records can be trimmed");
    for (at, refusal) in
        [(3, Refusal::new(ErrorCode::Trimmed, 5)), (11, Refusal::new(ErrorCode::BeyondEnd, 10))]
    {
        let from = FetchFrom::Offset(Offset(at));
        let refused = fetcher.fetch(shard(0), from, 1000, Duration::ZERO).await;
        match refused.map(|_| ()) {
            Err(FetchError::Refused { refusal: found, .. }) => assert_eq!(found, refusal),
            other => panic!("{other:?}"),
        }
    }
    let from = FetchFrom::Earliest;
    let nowhere = fetcher.fetch(shard(9), from, 1000, Duration::ZERO).await;
    assert!(matches!(nowhere.map(|_| ()), Err(FetchError::NoRoute { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_goes_on_through_cut_connections_and_a_restart() {
    let mut node = TestNode::start(1, 2, None);
    let proxy = Proxy::start(node.addresses()[0], 150_000, 11).await;
    let routes = AskingRoutes::new(vec![proxy.address]);
    let direct = AskingRoutes::new(node.addresses());
    store(&writer(&direct), 0, 0..400, 5000).await;
    let fetcher = fetcher(&routes, &AnswerMemory::new(0));
    let (mut next, mut numbers, mut is_restarted) = (Offset(0), Vec::new(), false);
    while numbers.len() < 400 {
        let from = FetchFrom::Offset(next);
        let fetched = fetcher.fetch(shard(0), from, 100_000, Duration::ZERO).await;
        let fetched = fetched.expect("it is asked for again");
        numbers.extend(numbers_of(&fetched));
        next = fetched.head().next;
        if numbers.len() > 200 && !is_restarted {
            is_restarted = true;
            node = tokio::task::spawn_blocking(move || {
                node.restart();
                node
            })
            .await
            .expect("the node comes back");
            proxy.set_target(node.addresses()[0]);
        }
    }
    assert_eq!(numbers, (0..400).collect::<Vec<u64>>());
    assert!(proxy.cuts() > 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_itself_alone_and_fills_no_more_than_it_was_granted() {
    let node = TestNode::start(1, 2, None);
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let memory = AnswerMemory::new(0);
    let fetcher = fetcher(&routes, &memory);
    let silence = Duration::from_millis(200);
    let subscribe = |credit| fetcher.subscribe(shard(0), FetchFrom::Earliest, credit, silence);
    let mut slow = subscribe(300_000).await.expect("it subscribes");
    let mut fast = subscribe(300_000).await.expect("it subscribes");
    let records = 400;
    let writing = tokio::spawn(async move { store(&writer, 0, 0..records, 10_000).await });
    let mut numbers = Vec::new();
    while numbers.len() < records as usize {
        let event = tokio::time::timeout(PATIENCE, fast.next()).await.expect("it comes");
        let event = event.expect("it goes on").expect("no error");
        numbers.extend(numbers_of(&event));
        let bytes = event.batch_bytes() as u32;
        drop(event);
        if bytes > 0 {
            fast.grant(bytes).await.expect("it is connected");
        }
    }
    assert_eq!(numbers, (0..records).collect::<Vec<u64>>());
    writing.await.expect("it ends well");
    // The slow one has cost what it was granted, though nobody took anything.
    assert!(memory.bytes_free() >= memory.bytes_max() - 600_000);
    // It takes what waited, and then the rest.
    let mut numbers = Vec::new();
    let mut held = 0;
    while numbers.len() < records as usize {
        let event = tokio::time::timeout(PATIENCE, slow.next()).await.expect("it comes");
        let event = event.expect("it goes on").expect("no error");
        numbers.extend(numbers_of(&event));
        assert_eq!(slow.due(), Some(Offset(numbers.len() as u64)));
        held += event.batch_bytes();
        if held >= 100_000 {
            slow.grant(held as u32).await.expect("it is connected");
            held = 0;
        }
    }
    assert_eq!(numbers, (0..records).collect::<Vec<u64>>());
    drop((slow, fast));
    let started = Instant::now();
    while memory.bytes_free() < memory.bytes_max() {
        assert!(started.elapsed() < PATIENCE, "what was granted is given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_with_its_shard() {
    let node = TestNode::start(1, 1, None);
    let routes = AskingRoutes::new(node.addresses());
    let fetcher = fetcher(&routes, &AnswerMemory::new(0));
    store(&writer(&routes), 0, 0..5, 100).await;
    let silence = Duration::from_millis(100);
    let from = FetchFrom::Offset(Offset(3));
    let mut subscription =
        fetcher.subscribe(shard(0), from, 1 << 20, silence).await.expect("it subscribes");
    let event = subscription.next().await.expect("an event").expect("no error");
    assert_eq!(numbers_of(&event), [3, 4]);
    let event = subscription.next().await.expect("an event").expect("no error");
    assert_eq!((numbers_of(&event).len(), event.head().sealed_end), (0, false));
    let mut admin = Admin::connect(node.addresses()[0], PATIENCE).expect("it serves");
    let extent = ExtentId { shard: shard(0), epoch: Epoch(1) };
    let recovery_epoch = Epoch(2);
    let end = admin.fence_extent(&FenceExtent { extent, recovery_epoch }).expect("a fence").end;
    admin.seal_extent(&SealExtent { extent, recovery_epoch, end }).expect("a seal");
    let mut is_sealed = false;
    while let Some(event) = subscription.next().await {
        is_sealed |= event.expect("no error").head().sealed_end;
    }
    assert!(is_sealed);
    // A refusal is the last event, too.
    let from = FetchFrom::Offset(Offset(99));
    let mut refused =
        fetcher.subscribe(shard(0), from, 1 << 20, silence).await.expect("it subscribes");
    let event = refused.next().await.expect("an event");
    assert!(matches!(event.map(|_| ()), Err(FetchError::Refused { .. })));
    assert!(refused.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_fill_no_more_memory_than_there_is() {
    let node = TestNode::start(1, 1, None);
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let (memory, largest) = (AnswerMemory::new(0), (10 << 20) - 1);
    let fetcher = fetcher(&routes, &memory);
    store(&writer, 0, 0..1, largest).await;
    store(&writer, 0, 1..9, 1_000_000).await;
    let fetch =
        |at| fetcher.fetch(shard(0), FetchFrom::Offset(Offset(at)), 1 << 20, Duration::ZERO);
    // More than was asked for, because a batch is not cut.
    let large = fetch(0).await.expect("it is there");
    assert_eq!(numbers_of(&large), [0]);
    let used = memory.bytes_max() - memory.bytes_free();
    assert!(used >= largest && used < largest + 5000, "{used} bytes");
    let others = [fetch(1).await, fetch(2).await, fetch(3).await, fetch(4).await];
    others.iter().for_each(|other| assert!(other.is_ok()));
    assert!(memory.bytes_free() < 1 << 20);
    let waits = tokio::time::timeout(Duration::from_millis(100), fetch(5)).await;
    assert!(waits.is_err(), "what is kept is not free for others");
    drop(large);
    assert_eq!(numbers_of(&fetch(5).await.expect("now there is")), [5]);
    drop(others);
    assert_eq!(memory.bytes_free(), memory.bytes_max());
}

/// Readers of batches larger than what can be asked for waited for the rest of their memory at the
/// link, in front of the answers of those who had it: all of them failed after ten seconds, and so
/// did whoever read small batches on the same link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_large_batches_are_served_in_turn_and_others_beside_them() {
    let node = TestNode::start(1, 2, None);
    let routes = AskingRoutes::new(node.addresses());
    let writer = writer(&routes);
    let (memory, largest) = (AnswerMemory::new(20 << 20), (10 << 20) - 1);
    let fetcher = fetcher(&routes, &memory);
    store(&writer, 0, 0..1, largest).await;
    store(&writer, 1, 0..1, 1000).await;
    let from = FetchFrom::Earliest;
    // What batches there may be is known of some, of others it is not.
    let readers = [0, largest + 8192].repeat(6).into_iter().map(|batch_bytes_max| {
        let fetcher = fetcher.clone();
        tokio::spawn(async move {
            let page = fetcher.fetch_page(shard(0), from, 4 << 20, batch_bytes_max, PATIENCE);
            page.await.map(|fetched| numbers_of(&fetched))
        })
    });
    let readers: Vec<_> = readers.collect();
    while !readers.iter().all(tokio::task::JoinHandle::is_finished) {
        let small = fetcher.fetch(shard(1), from, 4 << 20, Duration::ZERO).await;
        assert_eq!(numbers_of(&small.expect("there is room for it")), [0]);
    }
    for reader in readers {
        assert_eq!(reader.await.expect("no panic").expect("it has its turn"), [0]);
    }
    assert_eq!(memory.bytes_free(), memory.bytes_max());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_memory_is_told_so_in_time() {
    let node = TestNode::start(1, 1, None);
    let routes = AskingRoutes::new(node.addresses());
    let (memory, largest) = (AnswerMemory::new(0), (10 << 20) - 1);
    let fetcher = fetcher(&routes, &memory);
    store(&writer(&routes), 0, 0..1, largest).await;
    let from = FetchFrom::Earliest;
    let held = fetcher.fetch(shard(0), from, 1, Duration::ZERO).await.expect("it is there");
    for batch_bytes_max in [0, largest + 8192] {
        let page = fetcher.fetch_page(shard(0), from, 1, batch_bytes_max, Duration::ZERO);
        match page.await.map(|_| ()) {
            Err(FetchError::NoMemory { bytes, .. }) => assert!(bytes > largest, "{bytes}"),
            other => panic!("{other:?}"),
        }
    }
    let started = Instant::now();
    let refused = fetcher.fetch(shard(0), from, 1, Duration::ZERO).await.map(|_| ());
    assert!(matches!(refused, Err(FetchError::NoMemory { .. })), "{refused:?}");
    assert!(started.elapsed() >= MEMORY_WAIT - Duration::from_millis(50));
    drop(held);
    assert!(fetcher.fetch(shard(0), from, 1, Duration::ZERO).await.is_ok());
}

/// Subscribers that shared a small memory granted what they had done with; another one waited for
/// more than was free, and the grants of all waited behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_memory_does_not_stop_those_who_have_theirs() {
    let node = TestNode::start(1, 1, None);
    let routes = AskingRoutes::new(node.addresses());
    let memory = AnswerMemory::new(0);
    let fetcher = fetcher(&routes, &memory);
    store(&writer(&routes), 0, 0..400, 10_000).await;
    let credit = (memory.bytes_max() / 4) as u32;
    let silence = Duration::from_millis(500);
    let subscribe = || fetcher.subscribe(shard(0), FetchFrom::Earliest, credit, silence);
    let mut subscriptions = Vec::new();
    for _ in 0..3 {
        subscriptions.push(subscribe().await.expect("it subscribes"));
    }
    let fourth = subscribe();
    let waits = fetcher.fetch(shard(0), FetchFrom::Earliest, 4 << 20, Duration::ZERO);
    let read = async |mut subscription: ShardSubscription| {
        let mut numbers = Vec::new();
        while numbers.len() < 400 {
            let event = tokio::time::timeout(PATIENCE, subscription.next()).await;
            let event = event.expect("it comes").expect("it goes on").expect("no error");
            numbers.extend(numbers_of(&event));
            let bytes = event.batch_bytes() as u32;
            drop(event);
            let granted = tokio::time::timeout(Duration::from_secs(5), subscription.grant(bytes));
            granted.await.expect("it waits for nobody").expect("it is connected");
        }
        assert_eq!(numbers, (0..400).collect::<Vec<u64>>());
    };
    let all = async {
        let mut subscriptions = subscriptions.into_iter();
        let mut next = || read(subscriptions.next().expect("three"));
        tokio::join!(next(), next(), next())
    };
    let (_, waited, fourth) = tokio::join!(all, waits, fourth);
    assert!(waited.is_ok() && fourth.is_ok(), "and they have their turn in the end");
}
