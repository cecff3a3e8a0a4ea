//! What waits for the writer: bounded in number and bytes, first come, first served.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::{
    CommitError, LeaseError, LeaseId, Revision, StoreError, TRANSACTION_BYTES_MAX, Transaction,
};

/// Operations that may wait. Ours: far more than a router has in flight.
pub(super) const QUEUE_OPERATIONS_MAX: usize = 4096;
/// Bytes of keys and values that may wait. Ours.
pub(super) const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Operations that one durable commit takes. Ours: an `fdatasync` is shared well by then, and the
/// first of them does not wait long for the last.
pub(super) const GROUP_OPERATIONS_MAX: usize = 256;
/// Bytes after which a group takes no further operation. Ours.
pub(super) const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

// The largest transaction fits into an empty queue and an empty group.
const _: () = assert!(TRANSACTION_BYTES_MAX <= QUEUE_BYTES_MAX);
const _: () = assert!(TRANSACTION_BYTES_MAX <= GROUP_BYTES_MAX);

/// Where an answer goes.
pub(super) type To<T, E> = oneshot::Sender<Result<T, E>>;

/// An operation that changes something.
#[derive(Debug)]
pub(super) enum Job {
    /// A transaction, checked against the limits.
    Commit { transaction: Transaction, to: To<Revision, CommitError> },
    /// A lease to grant, its time to live checked.
    Grant { ttl_s: u32, to: To<LeaseId, LeaseError> },
    /// A lease to end.
    Revoke { lease: LeaseId, to: To<(), LeaseError> },
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Commit { transaction, .. } => transaction.bytes(),
            Job::Grant { .. } | Job::Revoke { .. } => 0,
        }
    }

    /// Answers that nothing was done. Whoever asked may have gone.
    pub(super) fn refuse(self, why: StoreError) {
        match self {
            Job::Commit { to, .. } => drop(to.send(Err(why.into()))),
            Job::Grant { to, .. } => drop(to.send(Err(why.into()))),
            Job::Revoke { to, .. } => drop(to.send(Err(why.into()))),
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    bytes: usize,
    /// Why nothing is taken any more.
    end: Option<StoreError>,
}

impl Queue {
    /// Adds a job.
    ///
    /// # Errors
    /// Why it was not taken; it is dropped.
    pub(super) fn push(&self, job: Job) -> Result<(), StoreError> {
        let mut waiting = self.lock();
        if let Some(end) = &waiting.end {
            return Err(end.clone());
        }
        let bytes = waiting.bytes + job.bytes();
        if waiting.jobs.len() >= QUEUE_OPERATIONS_MAX || bytes > QUEUE_BYTES_MAX {
            return Err(StoreError::Overloaded { waiting: waiting.jobs.len() });
        }
        waiting.bytes = bytes;
        waiting.jobs.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The next group, in order; waits for one, at most for `wait`, after which it is empty. `None`
    /// when the queue has ended.
    pub(super) fn take(&self, wait: Option<Duration>) -> Option<Vec<Job>> {
        let is_idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && waiting.end.is_none();
        let waiting = self.lock();
        let mut waiting = match wait {
            None => {
                self.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner)
            }
            Some(wait) => {
                let answer = self.changed.wait_timeout_while(waiting, wait, is_idle);
                answer.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if waiting.end.is_some() {
            return None;
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while group.len() < GROUP_OPERATIONS_MAX
            && let Some(job) =
                waiting.jobs.pop_front_if(|job| bytes + job.bytes() <= GROUP_BYTES_MAX)
        {
            bytes += job.bytes();
            group.push(job);
        }
        waiting.bytes -= bytes;
        Some(group)
    }

    /// Takes nothing any more and refuses what waits; the first reason stands.
    pub(super) fn end(&self, why: StoreError) {
        let mut waiting = self.lock();
        let why = waiting.end.get_or_insert(why).clone();
        let jobs = std::mem::take(&mut waiting.jobs);
        waiting.bytes = 0;
        drop(waiting);
        self.changed.notify_all();
        jobs.into_iter().for_each(|job| job.refuse(why.clone()));
    }

    /// Operations that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held half-changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::VALUE_BYTES_MAX;
    use super::*;

    type Answer = oneshot::Receiver<Result<Revision, CommitError>>;

    fn job(value_bytes: usize) -> (Job, Answer) {
        let (to, answer) = oneshot::channel();
        let transaction = Transaction::new().put("k", vec![0; value_bytes]);
        (Job::Commit { transaction, to }, answer)
    }

    fn bytes_of(job: &Job) -> usize {
        job.bytes()
    }

    #[test]
    fn jobs_come_in_order_and_in_bounded_groups() {
        let queue = Queue::default();
        for place in 0..GROUP_OPERATIONS_MAX + 1 {
            queue.push(job(place).0).unwrap();
        }
        let group = queue.take(None).unwrap();
        let sizes: Vec<usize> = group.iter().map(bytes_of).collect();
        assert_eq!(sizes, (1..=GROUP_OPERATIONS_MAX).collect::<Vec<_>>());
        assert_eq!(queue.take(None).unwrap().len(), 1);
        assert_eq!(queue.take(Some(Duration::from_millis(1))).unwrap().len(), 0);
        for _ in 0..9 {
            queue.push(job(VALUE_BYTES_MAX).0).unwrap();
        }
        let group = queue.take(None).unwrap();
        assert!(group.iter().map(bytes_of).sum::<usize>() <= GROUP_BYTES_MAX);
        assert_eq!(group.len() + queue.len(), 9);
    }

    #[test]
    fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
        let queue = Queue::default();
        while queue.len() < QUEUE_OPERATIONS_MAX {
            queue.push(job(0).0).unwrap();
        }
        let refused = queue.push(job(0).0);
        assert_eq!(refused, Err(StoreError::Overloaded { waiting: QUEUE_OPERATIONS_MAX }));
        assert_eq!(queue.take(None).unwrap().len(), GROUP_OPERATIONS_MAX);
        queue.push(job(0).0).unwrap();

        let queue = Queue::default();
        let mut taken = 0;
        while queue.push(job(VALUE_BYTES_MAX).0).is_ok() {
            taken += 1;
        }
        assert!(taken > 16 && taken * VALUE_BYTES_MAX <= QUEUE_BYTES_MAX, "{taken}");
        queue.take(None).unwrap();
        queue.push(job(VALUE_BYTES_MAX).0).unwrap();
    }

    #[test]
    fn an_ended_queue_refuses_what_waits_and_what_comes() {
        let queue = Queue::default();
        let (first, mut answer) = job(1);
        queue.push(first).unwrap();
        queue.end(StoreError::Closed);
        queue.end(StoreError::Stopped { cause: "later".into() });
        assert_eq!(answer.try_recv().unwrap(), Err(StoreError::Closed.into()));
        assert_eq!(queue.push(job(1).0), Err(StoreError::Closed));
        assert!(queue.take(None).is_none());
    }
}
