//! Who has subscribed to which shard through this router: one subscription for each consumer and
//! shard, which a later one takes over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// How long after a subscription began another one is refused (API reference, SubscribeToShard).
pub(super) const TAKEOVER_AFTER: Duration = Duration::from_secs(5);
/// Subscriptions above which those are looked for that are over.
const FORGET_AT_MIN: usize = 1024;

/// What can be subscribed to once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct SubscriptionKey {
    /// The stream's incarnation.
    pub(super) stream: u64,
    /// The consumer's name.
    pub(super) consumer: String,
    /// When it was registered: another of the same name is another.
    pub(super) consumer_created_ms: u64,
    /// The shard's index.
    pub(super) shard: u32,
}

/// See the module. A clone is another handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Subscriptions(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    current: HashMap<SubscriptionKey, Current>,
    tickets: u64,
    forget_at: usize,
}

#[derive(Debug)]
struct Current {
    ticket: u64,
    began: Instant,
    has_ended: bool,
    taken_over: CancellationToken,
}

impl Current {
    /// Whether it began so lately that none may take it over.
    fn is_young(&self, now: Instant) -> bool {
        now < self.began + TAKEOVER_AFTER
    }
}

/// A subscription that has begun. Dropped, it has ended.
#[derive(Debug)]
pub(super) struct Ticket {
    all: Subscriptions,
    key: SubscriptionKey,
    number: u64,
    taken_over: CancellationToken,
}

impl Ticket {
    /// Resolves when another subscription has taken this one over.
    pub(super) fn taken_over(&self) -> CancellationToken {
        self.taken_over.clone()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.all.table();
        if let Some(current) = table.current.get_mut(&self.key) {
            current.has_ended |= current.ticket == self.number;
        }
    }
}

impl Subscriptions {
    /// Begins a subscription, which takes over the one before it; `None` when that began less than
    /// [`TAKEOVER_AFTER`] ago, whether it still lasts or not.
    pub(super) fn begin(&self, key: SubscriptionKey) -> Option<Ticket> {
        self.begin_at(key, Instant::now())
    }

    /// Whether [`Subscriptions::begin`] would begin none now.
    pub(super) fn refuses(&self, key: &SubscriptionKey) -> bool {
        self.refuses_at(key, Instant::now())
    }

    fn refuses_at(&self, key: &SubscriptionKey, now: Instant) -> bool {
        self.table().current.get(key).is_some_and(|current| current.is_young(now))
    }

    fn begin_at(&self, key: SubscriptionKey, now: Instant) -> Option<Ticket> {
        let is_young = |current: &Current| current.is_young(now);
        let mut table = self.table();
        if let Some(current) = table.current.get(&key) {
            if is_young(current) {
                return None;
            }
            current.taken_over.cancel();
        }
        if table.current.len() >= table.forget_at.max(FORGET_AT_MIN) {
            table.current.retain(|_, current| !current.has_ended || is_young(current));
            table.forget_at = table.current.len() * 2;
        }
        table.tickets += 1;
        let (number, taken_over) = (table.tickets, CancellationToken::new());
        let current = Current {
            ticket: number,
            began: now,
            has_ended: false,
            taken_over: taken_over.clone(),
        };
        table.current.insert(key.clone(), current);
        drop(table);
        Some(Ticket { all: self.clone(), key, number, taken_over })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nobody panics with it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(shard: u32) -> SubscriptionKey {
        SubscriptionKey { stream: 1, consumer: "c".to_owned(), consumer_created_ms: 5, shard }
    }

    #[test]
    fn a_subscription_is_taken_over_after_five_seconds() {
        let (all, start) = (Subscriptions::default(), Instant::now());
        let first = all.begin_at(key(0), start).expect("the first");
        assert!(all.begin_at(key(0), start).is_none());
        assert!(all.begin_at(key(1), start).is_some(), "another shard, another subscription");
        let other = SubscriptionKey { consumer_created_ms: 6, ..key(0) };
        assert!(all.begin_at(other, start).is_some(), "and so is another consumer");
        let just_before = start + TAKEOVER_AFTER - Duration::from_millis(1);
        assert!(all.begin_at(key(0), just_before).is_none());
        assert!(all.refuses_at(&key(0), just_before) && !all.refuses_at(&key(2), just_before));
        assert!(!first.taken_over().is_cancelled());
        let later = start + TAKEOVER_AFTER;
        assert!(!all.refuses_at(&key(0), later));
        let second = all.begin_at(key(0), later).expect("five seconds have passed");
        assert!(first.taken_over().is_cancelled());
        drop(first);
        assert!(all.begin_at(key(0), later).is_none(), "the end of the first changes nothing");
        assert!(!second.taken_over().is_cancelled());
    }

    #[test]
    fn the_end_of_a_subscription_does_not_shorten_the_five_seconds() {
        let (all, start) = (Subscriptions::default(), Instant::now());
        drop(all.begin_at(key(0), start).expect("the first"));
        assert!(all.begin_at(key(0), start).is_none());
        assert!(all.begin_at(key(0), start + TAKEOVER_AFTER).is_some());
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (all, start) = (Subscriptions::default(), Instant::now());
        let lasting = all.begin_at(key(u32::MAX), start).expect("the first");
        for shard in 0..10_000 {
            let now = start + Duration::from_millis(50) * shard;
            drop(all.begin_at(key(shard), now).expect("another shard"));
        }
        assert!(all.table().current.len() <= 2 * FORGET_AT_MIN);
        assert!(all.table().current.contains_key(&key(u32::MAX)));
        drop(lasting);
    }
}
