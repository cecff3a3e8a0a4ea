//! A subscription on a link: events under credit.
//!
//! What is granted is reserved first, so that the node never has leave to send what there is no
//! memory for; an event takes its bytes of that with it, and leaves them to its subscription. So
//! events wait here for a slow reader without standing before anybody else's, who grants as much as
//! it has done with waits for nobody, and who keeps its events waits until there is more memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use thalweg_wire::fetch::{FETCH_ANSWER_BYTES, FetchAnswer};
use thalweg_wire::frame::FrameHeader;
use tokio::sync::Notify;

use super::link::{Answer, LinkError, NodeLink};
use super::payload::{Home, Payload, Reservation};

/// A subscription to a shard. Dropped, it is cancelled.
pub struct Subscription {
    link: NodeLink,
    correlation: u64,
    queue: Arc<EventQueue>,
}

impl Subscription {
    pub(super) fn new(link: NodeLink, correlation: u64, queue: Arc<EventQueue>) -> Subscription {
        Subscription { link, correlation, queue }
    }

    /// The next event, laid out as the answer of a fetch; none after the last: one that tells of
    /// the end of the shard or a refusal, or an error. Of silences that nobody took, only the last
    /// is kept. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Result<Answer, LinkError>> {
        loop {
            let arrived = self.queue.arrived.notified();
            {
                let mut state = self.queue.lock();
                if let Some(event) = state.events.pop_front() {
                    return Some(event);
                }
                if state.has_ended {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Allows the node so many bytes of batches more. The memory is that of events that were taken
    /// and dropped; beyond it, this waits until there is more. A batch larger than what was granted
    /// and not used does not come, and neither does anything else: a record of the largest size
    /// needs 10,488,000 bytes. Cancelling the wait grants nothing.
    ///
    /// # Errors
    /// [`LinkError`] when the connection is gone; [`Subscription::next`] tells so, too.
    pub async fn grant(&mut self, bytes: u32) -> Result<(), LinkError> {
        let mut more = EventQueue::reuse(&self.queue, bytes as usize);
        let missing = bytes as usize - more.as_ref().map_or(0, Reservation::bytes);
        if missing > 0 {
            let new = self.link.memory().reserve(missing).await;
            match &mut more {
                Some(more) => more.merge(new),
                None => more = Some(new),
            }
        }
        let Some(more) = more else { return Ok(()) };
        let granted = u32::try_from(more.bytes()).expect("no more than was asked for");
        if !self.queue.add_credit(more) {
            return Ok(());
        }
        self.link.send_credit(self.correlation, granted)
    }

    /// Bytes granted that no event has used yet.
    #[must_use]
    pub fn credit_bytes(&self) -> usize {
        self.queue.lock().credit.as_ref().map_or(0, Reservation::bytes)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.link.cancel_subscription(self.correlation);
    }
}

/// Events that arrived and were not taken.
pub(super) struct EventQueue {
    state: Mutex<EventState>,
    arrived: Notify,
}

struct EventState {
    events: VecDeque<Result<Answer, LinkError>>,
    /// Bytes granted and not used.
    credit: Option<Reservation>,
    /// Bytes of events that are gone.
    returned: Option<Reservation>,
    has_ended: bool,
}

/// The node sent more than it was granted.
pub(super) struct BeyondCredit;

impl EventQueue {
    pub(super) fn new(credit: Reservation) -> EventQueue {
        let state = EventState {
            events: VecDeque::new(),
            credit: Some(credit),
            returned: None,
            has_ended: false,
        };
        EventQueue { state: Mutex::new(state), arrived: Notify::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, EventState> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Whether it goes on, so that more may be granted.
    fn add_credit(&self, more: Reservation) -> bool {
        // On its way home it would meet the lock.
        let more = more.without_home();
        let mut state = self.lock();
        if let Some(credit) = &mut state.credit {
            credit.merge(more);
        }
        state.credit.is_some()
    }

    /// Bytes of events that are gone, as many as there are up to `bytes`.
    fn reuse(queue: &Arc<EventQueue>, bytes: usize) -> Option<Reservation> {
        let mut state = queue.lock();
        let returned = state.returned.as_mut()?;
        let reused = returned.split(bytes.min(returned.bytes()))?;
        Some(reused.with_home(EventQueue::home(queue)))
    }

    fn home(queue: &Arc<EventQueue>) -> Weak<dyn Home> {
        let queue: Weak<EventQueue> = Arc::downgrade(queue);
        queue
    }

    /// Takes the bytes of an event's batches from the credit.
    pub(super) fn use_credit(
        queue: &Arc<EventQueue>,
        header: &FrameHeader,
    ) -> Result<Option<Reservation>, BeyondCredit> {
        let bytes = (header.payload_bytes as usize).saturating_sub(FETCH_ANSWER_BYTES);
        let mut state = queue.lock();
        let Some(credit) = state.credit.as_mut().filter(|_| bytes > 0) else { return Ok(None) };
        let used = credit.split(bytes).ok_or(BeyondCredit)?;
        Ok(Some(used.with_home(EventQueue::home(queue))))
    }

    /// Takes an event in; whether it is the last.
    pub(super) fn push(&self, header: FrameHeader, payload: Payload, head: &FetchAnswer) -> bool {
        let is_last = head.sealed_end || head.status.is_err();
        let mut state = self.lock();
        let is_silence = |payload: &Payload| payload.len() == FETCH_ANSWER_BYTES;
        let was_silence = match state.events.back() {
            Some(Ok(event)) => is_silence(&event.payload),
            _ => false,
        };
        if was_silence && is_silence(&payload) {
            state.events.pop_back();
        }
        state.events.push_back(Ok(Answer { header, payload }));
        if is_last {
            state.end();
        }
        drop(state);
        self.arrived.notify_one();
        is_last
    }

    /// The connection is gone.
    pub(super) fn fail(&self, error: LinkError) {
        let mut state = self.lock();
        state.events.push_back(Err(error));
        state.end();
        drop(state);
        self.arrived.notify_one();
    }
}

impl Home for EventQueue {
    fn take_back(&self, reservation: Reservation) {
        let mut state = self.lock();
        if state.has_ended {
            return;
        }
        match &mut state.returned {
            Some(returned) => returned.merge(reservation),
            None => state.returned = Some(reservation),
        }
    }
}

impl EventState {
    fn end(&mut self) {
        self.has_ended = true;
        (self.credit, self.returned) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::payload::AnswerMemory;
    use thalweg_wire::frame::FrameKind;
    use thalweg_wire::ids::Offset;

    fn event(items: u32, bytes: usize, sealed_end: bool) -> (FrameHeader, Payload, FetchAnswer) {
        let head = FetchAnswer {
            status: Ok(()),
            earliest: Offset(0),
            next: Offset(0),
            committed: Offset(0),
            last_append_ms: 0,
            sealed_end,
        };
        let payload = [&head.encode()[..], &vec![0; bytes]].concat();
        let (kind, payload_bytes) = (FrameKind::SubscribeEvent, payload.len() as u32);
        let header = FrameHeader { kind, payload_bytes, items, correlation: 1 };
        (header, Payload::copy_of(&payload, None), head)
    }

    #[tokio::test]
    async fn events_use_the_credit_and_no_more() {
        let memory = AnswerMemory::new(0);
        let queue = Arc::new(EventQueue::new(memory.reserve(1000).await));
        let (header, ..) = event(1, 600, false);
        let first = EventQueue::use_credit(&queue, &header).ok().flatten().expect("enough");
        assert_eq!(first.bytes(), 600);
        assert!(EventQueue::use_credit(&queue, &header).is_err());
        // What the event took is used again, and not free for others meanwhile.
        drop(first);
        assert_eq!(memory.bytes_free(), memory.bytes_max() - 1000);
        drop(EventQueue::reuse(&queue, 500));
        let reused = EventQueue::reuse(&queue, 700).expect("as much as there is");
        assert_eq!(reused.bytes(), 600);
        assert!(queue.add_credit(reused));
        let held = EventQueue::use_credit(&queue, &header).ok().flatten().expect("enough");
        let (header, payload, head) = event(0, 0, true);
        assert!(queue.push(header, payload, &head));
        assert!(!queue.add_credit(memory.reserve(200).await));
        assert_eq!(memory.bytes_free(), memory.bytes_max() - 600);
        drop(held);
        assert_eq!(memory.bytes_free(), memory.bytes_max(), "what was granted is given back");
    }

    #[tokio::test]
    async fn silences_do_not_pile_up() {
        let queue = EventQueue::new(AnswerMemory::new(0).reserve(1000).await);
        for (items, kept) in [(0, 1), (0, 1), (1, 2), (1, 3), (0, 4), (0, 4)] {
            let (header, payload, head) = event(items, items as usize * 128, false);
            assert!(!queue.push(header, payload, &head));
            assert_eq!(queue.lock().events.len(), kept);
        }
    }
}
