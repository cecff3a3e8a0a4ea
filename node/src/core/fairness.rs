//! Fairness between accounts: no account fills the way to the disk with its batches while others
//! use it too.
//!
//! What an account has on its way, appended and not durable, is counted. As long as one account
//! writes there is no limit. When several do, the sum is kept so small that a batch finds a short
//! queue, and an account beyond its share of it waits: its connections are not served, and by and
//! by not received from. They are served again in [`turns`](super::turns) of accounts, then of
//! shards.
//!
//! How short a queue may be is the disk's to say, and found as BBR (Cardwell and others, 2016)
//! finds a path's: the rate at which bytes become durable, times what a sync takes when the disk
//! is at its quickest. More would only wait.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use thalweg_wire::ids::StreamId;

use super::connection::{Connection, ConnectionKey};
use super::machine::Core;
use super::turns::{Party, Turns};
use crate::io::Io;

/// Bounds of the bytes on their way in a core, when several accounts write: below, a disk with
/// quick syncs is not kept at work; above, a group commit takes no more at a time.
pub const IN_FLIGHT_BYTES: RangeInclusive<u64> = 256 << 10..=8 << 20;
/// Times the bytes that become durable during a sync. At once it could only shrink: what is on its
/// way is written first, then synced. At twice it settles where both take as long.
const QUEUE_GAIN: u64 = 2;
/// Bytes that became durable are counted in windows of this length.
const WINDOW_US: u64 = 50_000;
/// The best of so many windows is the disk's rate.
const WINDOWS: usize = 8;
/// The quickest sync of this period and of the one before counts.
const SYNC_PERIOD_US: u64 = 10_000_000;
/// However many others there are, an account may have on its way what one over this of that is.
const SHARES_MAX: u64 = 32;
/// Accounts that wrote within one or two of these count as writing.
const ROUND_US: u64 = 500_000;

/// Whose a shard is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccountId {
    /// As the command that opened it says.
    Named(u64),
    /// It says nothing: each stream is for itself.
    Stream(StreamId),
}

/// How many bytes may be on their way.
#[derive(Debug)]
struct Queue {
    bounds: RangeInclusive<u64>,
    bytes_max: u64,
    /// Bytes that became durable in the last windows.
    windows: [u64; WINDOWS],
    /// Counts windows; the place of the present one follows from it.
    window: u64,
    /// The quickest sync of this period, and of the one before.
    sync_us: (Option<u64>, Option<u64>),
    period: u64,
}

impl Queue {
    fn new(bounds: RangeInclusive<u64>) -> Queue {
        let bytes_max = *bounds.start();
        let windows = [0; WINDOWS];
        Queue { bounds, bytes_max, windows, window: 0, sync_us: (None, None), period: 0 }
    }

    fn became_durable(&mut self, bytes: u64, now_us: u64) {
        let window = now_us / WINDOW_US;
        let over = window.saturating_sub(self.window).min(WINDOWS as u64);
        for step in 1..=over {
            self.windows[((window + step - over) % WINDOWS as u64) as usize] = 0;
        }
        self.window = window;
        self.windows[(window % WINDOWS as u64) as usize] += bytes;
        if over > 0 {
            self.settle();
        }
    }

    fn synced(&mut self, took_us: u64, now_us: u64) {
        let period = now_us / SYNC_PERIOD_US;
        if period != self.period {
            self.sync_us = (None, self.sync_us.0.filter(|_| period == self.period + 1));
            self.period = period;
        }
        self.sync_us.0 = Some(self.sync_us.0.map_or(took_us, |least| least.min(took_us)));
    }

    fn settle(&mut self) {
        let quickest = [self.sync_us.0, self.sync_us.1].into_iter().flatten().min().unwrap_or(0);
        let most = self.windows.iter().max().expect("there are some");
        let bytes = QUEUE_GAIN * most * quickest / WINDOW_US;
        self.bytes_max = bytes.clamp(*self.bounds.start(), *self.bounds.end());
    }
}

#[derive(Debug, Default)]
struct Account {
    in_flight_bytes: u64,
    /// The round in which it wrote last.
    round: u64,
}

/// An account's place in its core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AccountPlace(pub(super) u32);

/// The accounts of a core's shards.
#[derive(Debug)]
pub struct Accounts {
    all: Vec<Account>,
    places: HashMap<AccountId, AccountPlace>,
    in_flight_bytes: u64,
    queue: Queue,
    round: u64,
    round_ends_us: u64,
    /// Accounts that wrote in this round, and in the one before.
    writing: (u64, u64),
    /// Connections that wait for their turn.
    turns: Turns<ConnectionKey>,
}

impl Accounts {
    /// None yet; how many bytes all together may have on their way when several write is within
    /// these bounds.
    #[must_use]
    pub fn new(in_flight_bytes: RangeInclusive<u64>) -> Accounts {
        Accounts {
            all: Vec::new(),
            places: HashMap::new(),
            in_flight_bytes: 0,
            queue: Queue::new(in_flight_bytes),
            round: 0,
            round_ends_us: 0,
            writing: (0, 0),
            turns: Turns::default(),
        }
    }

    /// The place of an account, new or not.
    pub fn place(&mut self, id: AccountId) -> AccountPlace {
        let next = AccountPlace(self.all.len() as u32);
        let place = *self.places.entry(id).or_insert(next);
        if place == next {
            self.all.push(Account::default());
        }
        place
    }

    fn at(&mut self, place: AccountPlace) -> &mut Account {
        &mut self.all[place.0 as usize]
    }

    /// A batch of the account was appended.
    pub fn appended(&mut self, place: AccountPlace, bytes: u64, now_us: u64) {
        self.begin_round(now_us);
        let account = &mut self.all[place.0 as usize];
        if account.round != self.round {
            account.round = self.round;
            self.writing.0 += 1;
        }
        account.in_flight_bytes += bytes;
        self.in_flight_bytes += bytes;
    }

    /// A batch of the account is durable, or never will be.
    pub fn left(&mut self, place: AccountPlace, bytes: u64, now_us: u64) {
        self.at(place).in_flight_bytes -= bytes;
        self.in_flight_bytes -= bytes;
        self.queue.became_durable(bytes, now_us);
    }

    /// Bytes of all accounts that are on their way.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// A sync took so long.
    pub fn synced(&mut self, took_us: u64, now_us: u64) {
        self.queue.synced(took_us, now_us);
    }

    fn begin_round(&mut self, now_us: u64) {
        if now_us < self.round_ends_us {
            return;
        }
        // After a silence both are over.
        let silent = now_us >= self.round_ends_us + ROUND_US;
        self.writing = (0, if silent { 0 } else { self.writing.0 });
        self.round += 1;
        self.round_ends_us = now_us + ROUND_US;
    }

    /// Whether another frame of the account may be served.
    #[must_use]
    pub fn may_go_on(&self, place: AccountPlace) -> bool {
        let writing = self.writing.0.max(self.writing.1);
        if writing < 2 || self.in_flight_bytes < self.queue.bytes_max {
            return true;
        }
        let share = self.queue.bytes_max / writing.min(SHARES_MAX);
        self.all[place.0 as usize].in_flight_bytes < share
    }

    /// Whether the connection's next frame may be served; if not, it waits for its turn. A
    /// connection is of the shard that it wrote for last.
    pub fn give_turn(&mut self, connection: &mut Connection) -> bool {
        let Some(party) = connection.wrote_for else { return true };
        if self.may_go_on(party.account) {
            return true;
        }
        // Its sender is not late while it is us who do not take the frame.
        connection.frame_due_us = None;
        if !std::mem::replace(&mut connection.waits_for_turn, true) {
            self.turns.wait(party, connection.key);
        }
        false
    }

    /// The connection whose turn it is, of the accounts that may go on.
    fn next_turn(&mut self) -> Option<(Party, ConnectionKey)> {
        if self.turns.is_empty() {
            return None;
        }
        let mut turns = std::mem::take(&mut self.turns);
        let next = turns.next(|account| self.may_go_on(account));
        self.turns = turns;
        next
    }
}

impl<I: Io> Core<I> {
    /// A shard, and whose it is.
    pub(super) fn party_of(&self, shard: u32) -> Party {
        Party { account: self.shards.at(shard).account, shard }
    }

    /// Connections that waited for their turn go on, as far as they may.
    pub(super) fn resume_turns(&mut self) {
        while let Some((party, key)) = self.accounts.next_turn() {
            let Some(connection) = self.connection(key) else { continue };
            connection.waits_for_turn = false;
            let before = self.counters.bytes_appended;
            self.serve_frames(key.id);
            self.accounts.turns.charge(party, self.counters.bytes_appended - before);
            self.touched.push(key.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ConnectionId;

    const BYTES_MIN: u64 = *IN_FLIGHT_BYTES.start();

    fn accounts() -> (Accounts, AccountPlace, AccountPlace) {
        let mut accounts = Accounts::new(IN_FLIGHT_BYTES);
        let noisy = accounts.place(AccountId::Named(1));
        let quiet = accounts.place(AccountId::Stream(StreamId(1)));
        assert_ne!(noisy, quiet);
        assert_eq!(accounts.place(AccountId::Named(1)), noisy);
        (accounts, noisy, quiet)
    }

    fn key(number: u32) -> ConnectionKey {
        ConnectionKey { id: ConnectionId(number), serial: u64::from(number) }
    }

    #[test]
    fn an_account_alone_has_no_limit() {
        let (mut accounts, noisy, _) = accounts();
        accounts.appended(noisy, 100 << 20, 0);
        assert!(accounts.may_go_on(noisy));
    }

    #[test]
    fn beside_others_an_account_keeps_to_its_share_of_a_short_queue() {
        let (mut accounts, noisy, quiet) = accounts();
        accounts.appended(quiet, 1000, 0);
        accounts.left(quiet, 1000, 0);
        accounts.appended(noisy, BYTES_MIN - 1, 1000);
        assert!(accounts.may_go_on(noisy), "what others do not use is its");
        accounts.appended(noisy, 2, 2000);
        assert!(!accounts.may_go_on(noisy) && accounts.may_go_on(quiet));
        accounts.left(noisy, BYTES_MIN / 2, 2000);
        assert!(accounts.may_go_on(noisy));
        // The other has not written for a while.
        accounts.appended(noisy, BYTES_MIN, 2 * ROUND_US + 10);
        assert!(accounts.may_go_on(noisy));
    }

    #[test]
    fn connections_wait_for_the_turn_of_their_account() {
        let (mut accounts, noisy, quiet) = accounts();
        let party = |account, shard| Party { account, shard };
        accounts.turns.wait(party(noisy, 1), key(1));
        accounts.turns.wait(party(noisy, 1), key(2));
        accounts.turns.wait(party(quiet, 2), key(3));
        accounts.appended(quiet, 1, 0);
        accounts.appended(noisy, BYTES_MIN, 0);
        assert_eq!(accounts.next_turn(), Some((party(quiet, 2), key(3))));
        assert_eq!(accounts.next_turn(), None, "the noisy one is beyond its share");
        accounts.left(noisy, BYTES_MIN, 0);
        let order: Vec<_> = std::iter::from_fn(|| accounts.next_turn()).collect();
        assert_eq!(order, [(party(noisy, 1), key(1)), (party(noisy, 1), key(2))]);
    }

    /// Where the queue settles on a disk that takes `rate` bytes a microsecond and `sync_us` for a
    /// sync, and how much of the rate is left, if all that may be on its way always is.
    fn settled(rate: u64, sync_us: u64) -> (u64, f64) {
        let mut queue = Queue::new(IN_FLIGHT_BYTES);
        let (mut now_us, mut bytes) = (0, 0);
        while now_us < 3_000_000 {
            let group = queue.bytes_max;
            now_us += group / rate + sync_us;
            bytes += group;
            queue.synced(sync_us, now_us);
            queue.became_durable(group, now_us);
        }
        (queue.bytes_max, bytes as f64 / (now_us * rate) as f64)
    }

    #[test]
    fn the_queue_is_what_the_disk_takes_during_a_sync() {
        let (bytes, share) = settled(2000, 70);
        assert!(bytes == BYTES_MIN && share > 0.5, "quick syncs: {bytes}, {share}");
        let (bytes, share) = settled(500, 5000);
        assert!((2_000_000..4_000_000).contains(&bytes), "slow syncs: {bytes}");
        assert!(share > 0.4, "half of the time is for writing, half for the sync: {share}");
    }

    #[test]
    fn the_queue_forgets() {
        let mut queue = Queue::new(IN_FLIGHT_BYTES);
        queue.synced(100, 0);
        queue.became_durable(100 << 20, 10);
        queue.became_durable(1, WINDOW_US);
        assert_eq!(queue.bytes_max, 2 * (100 << 20) * 100 / WINDOW_US, "of the best window");
        queue.synced(5000, SYNC_PERIOD_US);
        queue.became_durable(1, SYNC_PERIOD_US);
        assert_eq!(queue.bytes_max, BYTES_MIN, "the disk took next to nothing since");
        assert_eq!(queue.sync_us, (Some(5000), Some(100)));
        queue.synced(4000, 2 * SYNC_PERIOD_US);
        assert_eq!(queue.sync_us, (Some(4000), Some(5000)));
        queue.synced(6000, 9 * SYNC_PERIOD_US);
        assert_eq!(queue.sync_us, (Some(6000), None), "nothing is known of the time between");
    }
}
