//! The writer: the one thread that changes the file. It takes whatever waits, judges each
//! transaction by itself in the order of arrival, and makes all of them durable in one commit of
//! the file. While that commit waits for the disk, the next group gathers.
//!
//! An answer leaves when everything it tells is durable. That holds for a failed compare too: what
//! it was judged against may be of the same group.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use redb::{Database, Durability, WriteTransaction};

use super::super::{
    Change, ChangeSet, CommitError, Conflict, LEASE_KEYS_MAX, LeaseError, LeaseId, Revision,
    StoreError, Transaction,
};
use super::Shared;
use super::queue::{Job, To};
use super::tables::{COMPACTION_ROWS_MAX, Fault, HistoryLimits, State, Tables};

/// Leases at once. Ours: a node and a router have one each.
pub const LEASES_MAX: usize = 16 * 1024;
/// Leases whose end one group takes. Ours.
const EXPIRED_PER_GROUP_MAX: usize = 64;

/// The thread's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    database: Arc<Database>,
    limits: HistoryLimits,
    state: State,
    /// Every lease, and how many keys it has.
    leases: HashMap<LeaseId, u32>,
}

/// What a group has done, until it is durable.
#[derive(Default)]
struct Group {
    /// If there is anything to commit.
    is_changed: bool,
    sets: Vec<ChangeSet>,
    granted: Vec<(LeaseId, u32)>,
    revoked: Vec<LeaseId>,
    answers: Vec<Answer>,
}

/// An answer that waits for the commit; it is told if that failed.
type Answer = Box<dyn FnOnce(Result<(), &Failure>) + Send>;

impl Group {
    fn fail(self, failure: &Failure) {
        self.answers.into_iter().for_each(|answer| answer(Err(failure)));
    }
}

/// The store has stopped and said why.
struct Stopped;

/// Why a group was not committed.
enum Failure {
    /// It did not come to a commit: nothing of it will ever be there.
    NotDone(Arc<str>),
    /// The commit itself failed: it may be durable or not.
    Unknown(Arc<str>),
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        database: Arc<Database>,
        limits: HistoryLimits,
        state: State,
        leases: HashMap<LeaseId, u32>,
    ) -> Writer {
        Writer { shared, database, limits, state, leases }
    }

    /// Runs until the queue ends, or something fails.
    pub(super) fn run(mut self) {
        let _guard = StopOnPanic(self.shared.clone());
        loop {
            let now = self.shared.now();
            let wait = self.shared.deadlines().next().map(|at| at.saturating_sub(now));
            let Some(jobs) = self.shared.queue.take(wait) else { return };
            let now = self.shared.now();
            let expired = self.shared.deadlines().expired(now, EXPIRED_PER_GROUP_MAX);
            if jobs.is_empty() && expired.is_empty() {
                continue;
            }
            self.shared.pins().release(now);
            if self.commit_group(jobs, &expired).is_err() {
                return;
            }
        }
    }

    /// Judges and commits a group, and answers it. After an error the store has stopped.
    fn commit_group(&mut self, jobs: Vec<Job>, expired: &[LeaseId]) -> Result<(), Stopped> {
        let mut jobs = VecDeque::from(jobs);
        let mut group = Group::default();
        let transaction = match self.prepare(&mut jobs, expired, &mut group) {
            Ok(transaction) => transaction,
            Err(fault) => {
                let cause: Arc<str> = fault.to_string().into();
                self.shared.stop(cause.clone());
                let stopped = StoreError::Stopped { cause: cause.clone() };
                jobs.into_iter().for_each(|job| job.refuse(stopped.clone()));
                group.fail(&Failure::NotDone(cause));
                return Err(Stopped);
            }
        };
        if group.is_changed
            && let Err(error) = transaction.commit()
        {
            // A sync that is tried again proves nothing (Rebello et al., "Can Applications Recover
            // from fsync Failures?", USENIX ATC 2020).
            let cause: Arc<str> = Fault::from(error).to_string().into();
            self.shared.stop(cause.clone());
            group.fail(&Failure::Unknown(cause));
            return Err(Stopped);
        }
        self.publish(group);
        Ok(())
    }

    /// Does everything but the commit. Jobs that were not looked at stay in `jobs`.
    fn prepare(
        &mut self,
        jobs: &mut VecDeque<Job>,
        expired: &[LeaseId],
        group: &mut Group,
    ) -> Result<WriteTransaction, Fault> {
        let mut transaction = self.database.begin_write()?;
        // The default, said all the same: everything rests on it.
        transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        let mut tables = Tables::open(&transaction)?;
        let changes_before = self.state.history_changes;
        for lease in expired {
            self.revoke(&mut tables, *lease, group)?;
        }
        while let Some(job) = jobs.pop_front() {
            match job {
                Job::Commit { transaction, to } => {
                    let revision = self.state.revision;
                    let answer = self.judge(&mut tables, transaction, group)?;
                    let is_change = self.state.revision != revision;
                    group.answers.push(answer_later(to, answer, is_change));
                }
                Job::Grant { ttl_s, to } => {
                    let answer = self.grant(&mut tables, ttl_s, group)?;
                    let is_change = answer.is_ok();
                    group.answers.push(answer_later(to, answer, is_change));
                }
                Job::Revoke { lease, to } => {
                    let is_change = self.revoke(&mut tables, lease, group)?;
                    let answer =
                        if is_change { Ok(()) } else { Err(LeaseError::NotFound { lease }) };
                    group.answers.push(answer_later(to, answer, is_change));
                }
            }
        }
        if group.is_changed {
            let added = self.state.history_changes - changes_before;
            tables.compact(&mut self.state, self.limits, added + COMPACTION_ROWS_MAX)?;
            self.state.write(&mut tables.meta)?;
        }
        drop(tables);
        Ok(transaction)
    }

    /// Judges a transaction, and makes its changes if it may.
    fn judge(
        &mut self,
        tables: &mut Tables<'_>,
        transaction: Transaction,
        group: &mut Group,
    ) -> Result<Result<Revision, CommitError>, Fault> {
        for (index, compare) in transaction.compares.iter().enumerate() {
            let found = tables.find(&compare.key)?.map(|(revision, _)| revision);
            if !compare.holds(found) {
                let (key, expectation) = (compare.key.clone(), compare.expectation);
                return Ok(Err(Conflict { index, key, expectation, found }.into()));
            }
        }
        let mut changes = Vec::with_capacity(transaction.changes.len());
        let mut old_leases = Vec::with_capacity(transaction.changes.len());
        for change in transaction.changes {
            let found = tables.find(change.key())?;
            if found.is_some() || matches!(change, Change::Put { .. }) {
                old_leases.push(found.and_then(|(_, lease)| lease));
                changes.push(change);
            }
        }
        if let Err(refusal) = self.attach(&changes, &old_leases) {
            return Ok(Err(refusal));
        }
        self.change(tables, changes, &old_leases, group)?;
        Ok(Ok(self.state.revision))
    }

    /// Counts the keys of leases anew, if all leases that are named take them.
    fn attach(
        &mut self,
        changes: &[Change],
        old_leases: &[Option<LeaseId>],
    ) -> Result<(), CommitError> {
        let mut counts: HashMap<LeaseId, u32> = HashMap::new();
        let count_of = |lease| self.leases.get(&lease).copied();
        // What leaves makes room first: the order within a transaction does not matter.
        for lease in old_leases.iter().flatten() {
            if let Some(count) = count_of(*lease) {
                let count = counts.entry(*lease).or_insert(count);
                *count = count.saturating_sub(1);
            }
        }
        for change in changes {
            if let Change::Put { lease: Some(lease), .. } = change {
                let lease = *lease;
                let Some(count) = count_of(lease) else {
                    return Err(CommitError::LeaseNotFound { lease });
                };
                *counts.entry(lease).or_insert(count) += 1;
            }
        }
        if let Some((lease, _)) = counts.iter().find(|(_, count)| **count > LEASE_KEYS_MAX) {
            return Err(CommitError::LeaseFull { lease: *lease });
        }
        self.leases.extend(counts);
        Ok(())
    }

    /// Makes the next revision, unless there is nothing to change.
    fn change(
        &mut self,
        tables: &mut Tables<'_>,
        changes: Vec<Change>,
        old_leases: &[Option<LeaseId>],
        group: &mut Group,
    ) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let set = ChangeSet { revision: Revision(self.state.revision.0 + 1), changes };
        tables.apply(&mut self.state, &set, old_leases)?;
        group.sets.push(set);
        group.is_changed = true;
        Ok(())
    }

    fn grant(
        &mut self,
        tables: &mut Tables<'_>,
        ttl_s: u32,
        group: &mut Group,
    ) -> Result<Result<LeaseId, LeaseError>, Fault> {
        if self.leases.len() >= LEASES_MAX {
            return Ok(Err(LeaseError::TooMany { count: self.leases.len() }));
        }
        let lease = LeaseId(self.state.next_lease);
        self.state.next_lease += 1;
        tables.leases.insert(lease.0, ttl_s)?;
        self.leases.insert(lease, 0);
        group.granted.push((lease, ttl_s));
        group.is_changed = true;
        Ok(Ok(lease))
    }

    /// Ends a lease and deletes its keys; false when it is not there.
    fn revoke(
        &mut self,
        tables: &mut Tables<'_>,
        lease: LeaseId,
        group: &mut Group,
    ) -> Result<bool, Fault> {
        if self.leases.remove(&lease).is_none() {
            return Ok(false);
        }
        let keys = tables.keys_of(lease)?;
        let old_leases = vec![Some(lease); keys.len()];
        let changes = keys.into_iter().map(|key| Change::Delete { key }).collect();
        self.change(tables, changes, &old_leases, group)?;
        tables.leases.remove(lease.0)?;
        group.revoked.push(lease);
        group.is_changed = true;
        Ok(true)
    }

    /// Shows what is durable now: to watches first, so that who has an answer finds them there.
    fn publish(&mut self, group: Group) {
        let now = self.shared.now();
        let mut deadlines = self.shared.deadlines();
        for (lease, ttl_s) in group.granted {
            deadlines.insert(lease, ttl_s, now);
        }
        group.revoked.into_iter().for_each(|lease| deadlines.remove(lease));
        drop(deadlines);
        let mut tail = self.shared.tail();
        group.sets.into_iter().for_each(|set| tail.push(set));
        drop(tail);
        let state = self.state;
        self.shared.progress.send_if_modified(|progress| {
            let is_new = progress.state != state;
            progress.state = state;
            is_new
        });
        group.answers.into_iter().for_each(|answer| answer(Ok(())));
    }
}

/// An error that can say that the outcome is unknown.
pub(super) trait Unknown: From<StoreError> {
    fn unknown(cause: Arc<str>) -> Self;
}

impl Unknown for CommitError {
    fn unknown(cause: Arc<str>) -> CommitError {
        CommitError::OutcomeUnknown { cause }
    }
}

impl Unknown for LeaseError {
    fn unknown(cause: Arc<str>) -> LeaseError {
        LeaseError::OutcomeUnknown { cause }
    }
}

/// Waits for the answer to a job. When nobody gives one, the writer is gone.
pub(super) async fn answer_of<T, E: Unknown>(
    answer: tokio::sync::oneshot::Receiver<Result<T, E>>,
) -> Result<T, E> {
    answer.await.unwrap_or_else(|_| Err(E::unknown("the writer ended before it answered".into())))
}

/// An answer for after the commit. When the outcome of the commit is unknown, so is that of what
/// changed something; whoever changed nothing is told that the store stopped.
fn answer_later<T, E>(to: To<T, E>, result: Result<T, E>, is_change: bool) -> Answer
where
    T: Send + 'static,
    E: Unknown + Send + 'static,
{
    Box::new(move |outcome| {
        let answer = match outcome {
            Ok(()) => result,
            Err(Failure::Unknown(cause)) if is_change => Err(E::unknown(cause.clone())),
            Err(Failure::Unknown(cause) | Failure::NotDone(cause)) => {
                Err(StoreError::Stopped { cause: cause.clone() }.into())
            }
        };
        // Whoever asked may have gone.
        drop(to.send(answer));
    })
}

/// Stops the store when the writer panics, rather than let it hang.
struct StopOnPanic(Arc<Shared>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop("the writer panicked".into());
        }
    }
}
