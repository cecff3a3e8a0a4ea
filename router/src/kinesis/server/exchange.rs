//! What goes on at a connection: which limits of time run, and who is cut off when one is over.
//!
//! hyper limits sizes; of time it knows only what it waits for itself. So a connection notes here
//! what happens to it ([`Activity`]) and each answer on its way notes how it is taken
//! ([`Exchange`]). Both are looked at beside hyper's futures, which are dropped when a limit is
//! over: that closes the connection, or resets the HTTP/2 stream.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::limits::Limits;

/// Why a connection ends before its client ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// It had no request for too long. Its client may still be there.
    Idle,
    /// The head of a request did not come to its end.
    SlowHead,
    /// The client does not take what is sent.
    Stalled,
}

/// A connection's recent past. Times are milliseconds since `base`, 0 for "not now".
pub(super) struct Activity {
    base: Instant,
    /// Requests under way.
    requests: AtomicUsize,
    /// Since when there is none.
    quiet_since_ms: AtomicU64,
    /// Since when the head of the next one is being received.
    head_since_ms: AtomicU64,
    /// Since when the socket takes nothing.
    blocked_since_ms: AtomicU64,
    /// Event streams whose sender lives: it decides about their clients.
    held: AtomicUsize,
    /// Whether bytes between requests may be something else than a head.
    is_http2: AtomicBool,
}

impl Activity {
    pub(super) fn new() -> Activity {
        Activity {
            base: Instant::now(),
            requests: AtomicUsize::new(0),
            quiet_since_ms: AtomicU64::new(1),
            head_since_ms: AtomicU64::new(0),
            blocked_since_ms: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            is_http2: AtomicBool::new(false),
        }
    }

    fn now_ms(&self) -> u64 {
        self.base.elapsed().as_millis() as u64 + 1
    }

    /// From here on bytes are those of requests: what came before was a TLS handshake.
    pub(super) fn begin(&self, is_http2: bool) {
        self.is_http2.store(is_http2, Relaxed);
        self.head_since_ms.store(0, Relaxed);
        self.quiet_since_ms.store(self.now_ms(), Relaxed);
    }

    /// Time without requests counts from now on: the connection is about to end.
    pub(super) fn settle(&self) {
        self.quiet_since_ms.store(self.now_ms(), Relaxed);
    }

    /// The connection speaks HTTP/2.
    pub(super) fn is_http2(&self) {
        self.is_http2.store(true, Relaxed);
    }

    /// Bytes came.
    pub(super) fn received(&self) {
        if self.requests.load(Relaxed) == 0 && self.head_since_ms.load(Relaxed) == 0 {
            self.head_since_ms.store(self.now_ms(), Relaxed);
        }
    }

    /// The socket took bytes.
    pub(super) fn sent(&self) {
        if self.blocked_since_ms.load(Relaxed) != 0 {
            self.blocked_since_ms.store(0, Relaxed);
        }
    }

    /// The socket takes no bytes.
    pub(super) fn blocked(&self) {
        if self.blocked_since_ms.load(Relaxed) == 0 {
            self.blocked_since_ms.store(self.now_ms(), Relaxed);
        }
    }

    /// Time for the client to take something counts from now on, if there is anything to take.
    fn restart_blocked(&self) {
        if self.blocked_since_ms.load(Relaxed) != 0 {
            self.blocked_since_ms.store(self.now_ms(), Relaxed);
        }
    }

    fn request_begins(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.head_since_ms.store(0, Relaxed);
    }

    fn request_ends(&self) {
        self.quiet_since_ms.store(self.now_ms(), Relaxed);
        self.requests.fetch_sub(1, Relaxed);
    }

    /// Since when nothing has happened, if there is neither a request under way nor an answer that
    /// the client has not taken. The head of a request that begins is something that happened; with
    /// HTTP/2, what comes may be of no request.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_busy = self.requests.load(Relaxed) > 0 || self.blocked_since_ms.load(Relaxed) != 0;
        let head_since_ms = match self.is_http2.load(Relaxed) {
            true => 0,
            false => self.head_since_ms.load(Relaxed),
        };
        let since_ms = self.quiet_since_ms.load(Relaxed).max(head_since_ms);
        (!is_busy).then(|| self.base + Duration::from_millis(since_ms))
    }

    /// Which limit runs and when it is over; the nearest if several do.
    fn next_cut(&self, limits: &Limits) -> Option<(u64, Cut)> {
        let mut next: Option<(u64, Cut)> = None;
        let mut consider = |since_ms: u64, time: Duration, cut: Cut| {
            let until_ms = since_ms.saturating_add(time.as_millis() as u64);
            if next.is_none_or(|(nearest_ms, _)| until_ms < nearest_ms) {
                next = Some((until_ms, cut));
            }
        };
        if self.requests.load(Relaxed) == 0 {
            consider(self.quiet_since_ms.load(Relaxed), limits.idle_time, Cut::Idle);
            let head_since_ms = self.head_since_ms.load(Relaxed);
            if head_since_ms != 0 && !self.is_http2.load(Relaxed) {
                consider(head_since_ms, limits.head_time, Cut::SlowHead);
            }
        }
        let blocked_since_ms = self.blocked_since_ms.load(Relaxed);
        if blocked_since_ms != 0 && self.held.load(Relaxed) == 0 {
            consider(blocked_since_ms, limits.stall_time, Cut::Stalled);
        }
        next
    }

    /// Resolves when a limit is over. What begins while this sleeps is noticed within half of the
    /// shortest limit, so that a connection costs no timer per request.
    pub(super) async fn watch(&self, limits: &Limits) -> Cut {
        let shortest = limits.head_time.min(limits.stall_time).min(limits.idle_time);
        let look_again = (shortest / 2).max(Duration::from_millis(1));
        loop {
            let pause = match self.next_cut(limits) {
                Some((until_ms, cut)) => {
                    let left_ms = until_ms.saturating_sub(self.now_ms());
                    if left_ms == 0 {
                        return cut;
                    }
                    look_again.min(Duration::from_millis(left_ms))
                }
                None => look_again,
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// A request under way, for as long as this lives.
pub(super) struct UnderWay(Arc<Activity>);

impl UnderWay {
    pub(super) fn new(activity: Arc<Activity>) -> UnderWay {
        activity.request_begins();
        UnderWay(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.request_ends();
    }
}

/// How an answer is taken.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// There is none, or it does not depend on the client yet.
    Quiet,
    /// An event stream whose sender lives.
    Held,
    /// The client took a part at this time and has the next one to take.
    Taking(Instant),
    /// The sender of an event stream has given its client up. Nothing follows.
    Aborted,
}

/// The place where answers are sent: one HTTP/2 stream, or an HTTP/1.1 connection.
pub(super) struct Exchange {
    activity: Arc<Activity>,
    is_http2: bool,
    phase: Mutex<Phase>,
    changed: Notify,
}

tokio::task_local! {
    /// The exchange of the task that polls a request's future.
    pub(super) static EXCHANGE: Arc<Exchange>;
}

impl Exchange {
    pub(super) fn new(activity: Arc<Activity>, is_http2: bool) -> Arc<Exchange> {
        let phase = Mutex::new(Phase::Quiet);
        Arc::new(Exchange { activity, is_http2, phase, changed: Notify::new() })
    }

    /// The connection.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// An event stream begins.
    pub(super) fn hold(&self) {
        self.enter(Phase::Held);
    }

    /// The client took a part of an answer and has another to take.
    pub(super) fn take(&self) {
        self.enter(Phase::Taking(Instant::now()));
        // An HTTP/1.1 connection that is not read blocks its socket, which `Activity` notes.
        if self.is_http2 {
            self.changed.notify_one();
        }
    }

    /// The same, if nobody else decides about the client.
    pub(super) fn take_unless_held(&self) {
        if !matches!(*self.phase(), Phase::Held) {
            self.take();
        }
    }

    /// The answer is over.
    pub(super) fn rest(&self) {
        self.enter(Phase::Quiet);
    }

    /// The client is given up.
    pub(super) fn abort(&self) {
        self.enter(Phase::Aborted);
        self.changed.notify_one();
    }

    /// Resolves when the client has taken nothing for too long, or was given up.
    pub(super) async fn overdue(&self, stall_time: Duration) {
        loop {
            let phase = *self.phase();
            match phase {
                Phase::Aborted => return,
                Phase::Taking(since) if self.is_http2 => {
                    let left = stall_time.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        return;
                    }
                    let change = self.changed.notified();
                    if tokio::time::timeout(left, change).await.is_err() {
                        continue;
                    }
                }
                Phase::Quiet | Phase::Held | Phase::Taking(_) => self.changed.notified().await,
            }
        }
    }

    fn enter(&self, next: Phase) {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Aborted) {
            return;
        }
        let is_held = |phase: &Phase| matches!(phase, Phase::Held);
        if is_held(&next) {
            self.activity.held.fetch_add(1, Relaxed);
        }
        if is_held(&phase) {
            self.activity.restart_blocked();
            self.activity.held.fetch_sub(1, Relaxed);
        }
        *phase = next;
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            head_time: Duration::from_millis(1_000),
            stall_time: Duration::from_millis(2_000),
            idle_time: Duration::from_millis(3_000),
            ..Limits::default()
        }
    }

    #[test]
    fn an_idle_connection_has_its_idle_time_and_no_more() {
        let activity = Activity::new();
        assert_eq!(activity.next_cut(&limits()), Some((3_001, Cut::Idle)));
    }

    #[test]
    fn a_head_has_less_time_than_an_idle_connection() {
        let activity = Activity::new();
        activity.received();
        let (until_ms, cut) = activity.next_cut(&limits()).expect("a limit runs");
        assert_eq!(cut, Cut::SlowHead);
        assert!(until_ms >= 1_001);
        activity.is_http2();
        assert_eq!(activity.next_cut(&limits()).map(|(_, cut)| cut), Some(Cut::Idle));
    }

    #[test]
    fn no_limit_runs_while_a_request_is_under_way() {
        let activity = Arc::new(Activity::new());
        activity.received();
        let first = UnderWay::new(activity.clone());
        let second = UnderWay::new(activity.clone());
        assert_eq!(activity.next_cut(&limits()), None);
        activity.received();
        drop(first);
        assert_eq!(activity.next_cut(&limits()), None);
        drop(second);
        assert_eq!(activity.next_cut(&limits()).map(|(_, cut)| cut), Some(Cut::Idle));
    }

    #[test]
    fn a_blocked_socket_stalls_unless_an_event_stream_is_held() {
        let activity = Arc::new(Activity::new());
        let _under_way = UnderWay::new(activity.clone());
        let exchange = Exchange::new(activity.clone(), false);
        activity.blocked();
        assert_eq!(activity.next_cut(&limits()).map(|(_, cut)| cut), Some(Cut::Stalled));
        exchange.hold();
        assert_eq!(activity.next_cut(&limits()), None);
        exchange.take();
        assert_eq!(activity.next_cut(&limits()).map(|(_, cut)| cut), Some(Cut::Stalled));
        activity.sent();
        assert_eq!(activity.next_cut(&limits()), None);
    }

    #[test]
    fn a_hold_ends_once_however_it_ends() {
        let activity = Arc::new(Activity::new());
        let exchange = Exchange::new(activity.clone(), true);
        exchange.hold();
        exchange.take_unless_held();
        assert_eq!(activity.held.load(Relaxed), 1);
        exchange.abort();
        exchange.rest();
        assert_eq!(activity.held.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn an_answer_that_is_taken_is_not_overdue() {
        let exchange = Exchange::new(Arc::new(Activity::new()), true);
        let stall_time = Duration::from_millis(150);
        let mut overdue = std::pin::pin!(exchange.overdue(stall_time));
        for _ in 0..6 {
            exchange.take();
            let pause = Duration::from_millis(40);
            assert!(tokio::time::timeout(pause, &mut overdue).await.is_err());
        }
        let patience = Duration::from_secs(5);
        assert!(tokio::time::timeout(patience, &mut overdue).await.is_ok());
    }

    #[tokio::test]
    async fn an_abort_ends_a_hold_at_once() {
        let exchange = Exchange::new(Arc::new(Activity::new()), false);
        exchange.hold();
        let waiting = exchange.clone();
        let task = tokio::spawn(async move { waiting.overdue(Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        exchange.abort();
        let patience = Duration::from_secs(5);
        assert!(tokio::time::timeout(patience, task).await.is_ok());
    }
}
