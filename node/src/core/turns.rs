//! Turns: who waits for something scarce is served by bytes, evenly among accounts, and among the
//! shards of each.
//!
//! What is scarce is given to the account that was given least since others wait, and to its shard
//! that was. How many bytes a turn takes is known behind it, and counted then: surplus round robin
//! (Adiseshu, Parulkar and Varghese, 1996), in its form without rounds, where who begins to wait
//! starts level with whose turn it is (start-time fair queueing, Goyal, Vin and Cheng, 1996).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use super::fairness::AccountPlace;

/// For whom somebody waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// The account.
    pub account: AccountPlace,
    /// Place of the account's shard.
    pub shard: u32,
}

/// A line, and what it was given.
#[derive(Debug, Default)]
struct Line<Q> {
    given_bytes: u64,
    waiting: Q,
}

/// Lines of those that wait. What a line was given is remembered while somebody waits in any.
#[derive(Debug)]
struct Lines<K, Q> {
    all: HashMap<K, Line<Q>>,
    /// Lines in which somebody waits; who was given least is first.
    order: BTreeSet<(u64, K)>,
    /// What the line had been given whose turn was last.
    level_bytes: u64,
}

impl<K, Q> Default for Lines<K, Q> {
    fn default() -> Lines<K, Q> {
        Lines { all: HashMap::new(), order: BTreeSet::new(), level_bytes: 0 }
    }
}

impl<K: Copy + Ord + Hash, Q: Default> Lines<K, Q> {
    /// The line, in which somebody comes to wait.
    fn enter(&mut self, key: K) -> &mut Q {
        let line = self.all.entry(key).or_default();
        if !self.order.contains(&(line.given_bytes, key)) {
            // Nobody saves up while others wait.
            line.given_bytes = line.given_bytes.max(self.level_bytes);
            self.order.insert((line.given_bytes, key));
        }
        &mut line.waiting
    }

    /// The line whose turn it is, of those that may have one.
    fn next(&mut self, may: impl Fn(K) -> bool) -> Option<(K, &mut Q)> {
        let (given_bytes, key) = *self.order.iter().find(|(_, key)| may(*key))?;
        self.level_bytes = self.level_bytes.max(given_bytes);
        Some((key, &mut self.all.get_mut(&key).expect("it is in the order").waiting))
    }

    /// Nobody waits in the line any more.
    fn leave(&mut self, key: K) {
        self.order.remove(&(self.all[&key].given_bytes, key));
        if self.order.is_empty() {
            self.all.clear();
            self.level_bytes = 0;
        }
    }

    /// The line was given so much.
    fn charge(&mut self, key: K, bytes: u64) {
        let line = self.all.entry(key).or_default();
        if self.order.remove(&(line.given_bytes, key)) {
            line.given_bytes += bytes;
            self.order.insert((line.given_bytes, key));
        } else {
            line.given_bytes = line.given_bytes.max(self.level_bytes) + bytes;
        }
    }
}

/// Those that wait: see the module.
#[derive(Debug)]
pub struct Turns<T> {
    accounts: Lines<AccountPlace, Lines<u32, VecDeque<T>>>,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { accounts: Lines::default() }
    }
}

impl<T> Turns<T> {
    /// Waits behind the others of its shard.
    pub fn wait(&mut self, of: Party, item: T) {
        self.accounts.enter(of.account).enter(of.shard).push_back(item);
    }

    /// Waits on, before the others of its shard: it had its turn and could not use it.
    pub fn wait_on(&mut self, of: Party, item: T) {
        self.accounts.enter(of.account).enter(of.shard).push_front(item);
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts.order.is_empty()
    }

    /// Whose turn it is, of the accounts that may have one; it does not wait any more.
    pub fn next(&mut self, may: impl Fn(AccountPlace) -> bool) -> Option<(Party, T)> {
        let (account, shards) = self.accounts.next(may)?;
        let (shard, waiting) = shards.next(|_| true).expect("somebody waits in a line");
        let item = waiting.pop_front().expect("somebody waits in a line");
        if waiting.is_empty() {
            shards.leave(shard);
            if shards.order.is_empty() {
                self.accounts.leave(account);
            }
        }
        Some((Party { account, shard }, item))
    }

    /// A turn took so many bytes.
    pub fn charge(&mut self, of: Party, bytes: u64) {
        self.accounts.charge(of.account, bytes);
        let account = self.accounts.all.get_mut(&of.account).expect("just charged");
        account.waiting.charge(of.shard, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(account: u32, shard: u32) -> Party {
        Party { account: AccountPlace(account), shard }
    }

    /// Gives `count` turns to parties that all wait again at once; what each turn takes is the
    /// item. Answers the bytes each was given.
    fn give(turns: &mut Turns<u64>, count: usize) -> HashMap<(u32, u32), u64> {
        let mut given = HashMap::new();
        for _ in 0..count {
            let (of, bytes) = turns.next(|_| true).expect("somebody waits");
            *given.entry((of.account.0, of.shard)).or_default() += bytes;
            turns.charge(of, bytes);
            turns.wait(of, bytes);
        }
        given
    }

    /// One shard with many connections, or with large frames, left the others little.
    #[test]
    fn accounts_get_the_same_bytes_and_so_do_the_shards_of_each() {
        let mut turns = Turns::default();
        (0..63).for_each(|_| turns.wait(party(1, 10), 1000));
        turns.wait(party(1, 11), 1_000_000);
        turns.wait(party(2, 20), 10);
        turns.wait(party(3, 30), 64_000);
        let given = give(&mut turns, 1_000_000);
        let of = |account, shard| given[&(account, shard)];
        assert!(of(1, 10).abs_diff(of(1, 11)) <= 1_000_000, "{given:?}");
        let accounts = [of(1, 10) + of(1, 11), of(2, 20), of(3, 30)];
        let (least, most) = (accounts.iter().min().unwrap(), accounts.iter().max().unwrap());
        assert!(most - least <= 1_064_000, "{given:?}");
    }

    #[test]
    fn who_waits_anew_neither_has_saved_up_nor_is_in_debt() {
        let mut turns = Turns::default();
        turns.wait(party(1, 1), 1000);
        give(&mut turns, 1000);
        turns.wait(party(2, 2), 1000);
        turns.wait(party(3, 3), 1000);
        let given = give(&mut turns, 300);
        let shares = [(1, 1), (2, 2), (3, 3)].map(|of| given[&of]);
        assert!(shares.iter().all(|bytes| (99_000..=101_000).contains(bytes)), "{given:?}");
    }

    #[test]
    fn a_debt_outlives_a_moment_without_waiting() {
        let mut turns = Turns::default();
        turns.wait(party(1, 1), 0);
        turns.wait(party(2, 2), 0);
        assert_eq!(turns.next(|_| true), Some((party(1, 1), 0)));
        turns.charge(party(1, 1), 5000);
        turns.charge(party(2, 2), 10);
        turns.wait(party(1, 1), 1);
        assert_eq!(turns.next(|_| true), Some((party(2, 2), 0)));
        turns.wait(party(2, 2), 2);
        assert_eq!(turns.next(|_| true), Some((party(2, 2), 2)));
        assert_eq!(turns.next(|_| true), Some((party(1, 1), 1)));
        assert!(turns.is_empty() && turns.accounts.all.is_empty(), "nothing is kept for nobody");
    }

    /// Of an account that was passed over while the others went ahead, a second one that came to
    /// wait was put in line as well as the first.
    #[test]
    fn who_may_have_no_turn_keeps_its_place() {
        let mut turns = Turns::default();
        turns.wait(party(1, 1), 1);
        turns.wait(party(2, 2), 2);
        let but_the_first = |account| account != AccountPlace(1);
        for _ in 0..3 {
            let (of, item) = turns.next(but_the_first).expect("the second waits");
            turns.charge(of, 1000);
            turns.wait(of, item);
        }
        turns.wait(party(1, 1), 3);
        turns.charge(party(1, 1), 10);
        let order: Vec<u64> =
            std::iter::from_fn(|| turns.next(|_| true)).map(|next| next.1).collect();
        assert_eq!(order, [1, 3, 2]);
        assert!(turns.is_empty());
    }

    #[test]
    fn who_could_not_use_its_turn_has_the_next() {
        let mut turns = Turns::default();
        turns.wait(party(1, 1), 1);
        turns.wait(party(1, 1), 2);
        turns.wait(party(2, 2), 3);
        let (of, item) = turns.next(|account| account != AccountPlace(2)).unwrap();
        assert_eq!(item, 1);
        turns.wait_on(of, item);
        assert_eq!(turns.next(|_| true), Some((party(1, 1), 1)));
        assert_eq!(turns.next(|account| account == AccountPlace(2)), Some((party(2, 2), 3)));
        assert_eq!(turns.next(|_| true), Some((party(1, 1), 2)));
        assert_eq!(turns.next(|_| true), None);
    }
}
