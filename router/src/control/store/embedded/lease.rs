//! When leases end. Only in memory: a restart gives each of them its whole time again, as a new
//! leader of etcd does. Time comes as an argument, as time since the store was opened.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::super::LeaseId;

/// The deadlines of all leases.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_lease: HashMap<LeaseId, Deadline>,
    by_time: BTreeSet<(Duration, LeaseId)>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    time_to_live: Duration,
    at: Duration,
}

impl Deadlines {
    /// A lease begins.
    pub(super) fn insert(&mut self, lease: LeaseId, ttl_s: u32, now: Duration) {
        let time_to_live = Duration::from_secs(u64::from(ttl_s));
        let at = now + time_to_live;
        self.by_lease.insert(lease, Deadline { time_to_live, at });
        self.by_time.insert((at, lease));
    }

    /// Gives a lease its whole time again; false when it is not there.
    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Duration) -> bool {
        let Some(deadline) = self.by_lease.get_mut(&lease) else { return false };
        self.by_time.remove(&(deadline.at, lease));
        deadline.at = now + deadline.time_to_live;
        self.by_time.insert((deadline.at, lease));
        true
    }

    /// A lease ends.
    pub(super) fn remove(&mut self, lease: LeaseId) {
        if let Some(deadline) = self.by_lease.remove(&lease) {
            self.by_time.remove(&(deadline.at, lease));
        }
    }

    /// Takes out leases whose time is over, the earliest first, `count_max` at most. They cannot be
    /// kept alive from here on.
    pub(super) fn expired(&mut self, now: Duration, count_max: usize) -> Vec<LeaseId> {
        let mut expired = Vec::new();
        while expired.len() < count_max
            && let Some(&(at, lease)) = self.by_time.first()
            && at <= now
        {
            self.remove(lease);
            expired.push(lease);
        }
        expired
    }

    /// When the next lease ends.
    pub(super) fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const A: LeaseId = LeaseId(1);
    const B: LeaseId = LeaseId(2);

    #[test]
    fn a_lease_ends_when_its_time_is_over_and_no_earlier() {
        let mut deadlines = Deadlines::default();
        deadlines.insert(B, 5, S);
        deadlines.insert(A, 2, S);
        assert_eq!(deadlines.next(), Some(3 * S));
        assert_eq!(deadlines.expired(3 * S - Duration::from_millis(1), 9), vec![]);
        assert_eq!(deadlines.expired(3 * S, 9), vec![A]);
        assert!(!deadlines.keep_alive(A, 3 * S), "what has ended stays ended");
        assert_eq!(deadlines.expired(9 * S, 9), vec![B]);
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn kept_alive_it_goes_on_and_revoked_it_does_not() {
        let mut deadlines = Deadlines::default();
        deadlines.insert(A, 2, Duration::ZERO);
        deadlines.insert(B, 2, Duration::ZERO);
        assert!(deadlines.keep_alive(A, S));
        assert_eq!(deadlines.expired(2 * S, 9), vec![B]);
        assert_eq!(deadlines.next(), Some(3 * S));
        deadlines.remove(A);
        deadlines.remove(A);
        assert_eq!((deadlines.next(), deadlines.expired(9 * S, 9)), (None, vec![]));
    }

    #[test]
    fn those_that_end_at_once_end_in_bounded_parts() {
        let mut deadlines = Deadlines::default();
        (0..5).for_each(|id| deadlines.insert(LeaseId(id), 1, Duration::ZERO));
        assert_eq!(deadlines.expired(S, 3).len(), 3);
        assert_eq!(deadlines.next(), Some(S));
        assert_eq!(deadlines.expired(S, 3).len(), 2);
    }
}
