//! An event stream's way to its client: a queue that is bounded in bytes.
//!
//! The API puts whole messages in at one end, the transport takes them out at the other as the
//! client takes them. Who sends more than the client takes waits; who sends to a client that is
//! gone learns so.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exchange::Exchange;

/// Most bytes an event stream may have on their way: what a reader may be credited at a node.
pub const EVENTS_BYTES_MAX: usize = 4 << 20;

/// Why an event cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EventSendError {
    /// The client is gone, or the server is being drained: end the stream.
    #[error("the client of the event stream is gone")]
    Gone,
    /// The client took nothing for as long as it was waited for; the event was not queued. Send
    /// again, or give it up with [`EventSender::abort`].
    #[error("the client of the event stream takes nothing")]
    Stalled,
}

/// A queue for an event stream with at most `bytes_max` bytes on their way, or with one message if
/// that is larger. `bytes_max` is taken as at least 1 and at most [`EVENTS_BYTES_MAX`].
pub fn event_channel(bytes_max: usize) -> (EventSender, EventStream) {
    let bytes_max = bytes_max.clamp(1, EVENTS_BYTES_MAX);
    let room = Arc::new(Semaphore::new(bytes_max));
    let client = Arc::new(Client::default());
    let (queue, messages) = unbounded_channel();
    let sender = EventSender {
        queue,
        room: room.clone(),
        bytes_max: bytes_max as u32,
        client: client.clone(),
    };
    (sender, EventStream { messages, room, client, taken: None })
}

/// The API's end of an event stream. Dropping it ends the stream once all is sent.
#[derive(Debug)]
pub struct EventSender {
    queue: UnboundedSender<Message>,
    room: Arc<Semaphore>,
    bytes_max: u32,
    client: Arc<Client>,
}

impl EventSender {
    /// Sends a message, once there is room for it.
    ///
    /// # Errors
    /// [`EventSendError::Gone`].
    pub async fn send(&self, message: Bytes) -> Result<(), EventSendError> {
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let bytes = bytes.clamp(1, self.bytes_max);
        let room = self.room.clone().acquire_many_owned(bytes);
        let room = room.await.map_err(|_| EventSendError::Gone)?;
        self.queue.send(Message { bytes: message, _room: room }).map_err(|_| EventSendError::Gone)
    }

    /// Sends a message if there is room for it within `patience`.
    ///
    /// # Errors
    /// [`EventSendError::Stalled`] if not, else [`EventSendError::Gone`].
    pub async fn send_within(
        &self,
        message: Bytes,
        patience: Duration,
    ) -> Result<(), EventSendError> {
        let sent = tokio::time::timeout(patience, self.send(message)).await;
        sent.unwrap_or(Err(EventSendError::Stalled))
    }

    /// Resolves when the client is gone or the server is being drained.
    pub async fn gone(&self) {
        self.queue.closed().await;
    }

    /// Bytes that may be sent without waiting.
    pub fn bytes_free(&self) -> usize {
        self.room.available_permits()
    }

    /// Cuts the client off without sending what is queued: an HTTP/2 stream is reset, an HTTP/1.1
    /// connection closed.
    pub fn abort(self) {
        let mut link = self.client.link();
        link.is_aborted = true;
        if let Some(exchange) = &link.exchange {
            exchange.abort();
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let mut link = self.client.link();
        link.is_sender_gone = true;
        // From now on the client has what is left to take, in the time of any other answer.
        if let Some(exchange) = link.exchange.as_ref().filter(|_| !link.is_aborted) {
            exchange.take();
        }
    }
}

/// The transport's end of an event stream, which the API hands over with its answer.
#[derive(Debug)]
pub struct EventStream {
    messages: UnboundedReceiver<Message>,
    room: Arc<Semaphore>,
    client: Arc<Client>,
    /// The room of the message that is being sent.
    taken: Option<OwnedSemaphorePermit>,
}

impl EventStream {
    /// The next message, or `None` when the sender is gone and all is sent. What the last one
    /// took of the room is free again: the client has it.
    ///
    /// For tests and other transports; a server does this by itself.
    pub async fn next(&mut self) -> Option<Bytes> {
        poll_fn(|context| self.poll_next(context)).await
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.taken = None;
        self.messages.poll_recv(context).map(|message| {
            let Message { bytes, _room: room } = message?;
            self.taken = Some(room);
            Some(bytes)
        })
    }

    /// Takes no more messages. Those that are queued still come.
    pub(super) fn close(&mut self) {
        self.room.close();
        self.messages.close();
    }

    /// Tells the sender where its messages go.
    pub(super) fn attach(&self, exchange: &Arc<Exchange>) {
        let mut link = self.client.link();
        if link.is_aborted {
            exchange.abort();
        } else if link.is_sender_gone {
            exchange.take();
        } else {
            exchange.hold();
        }
        link.exchange = Some(exchange.clone());
    }

    /// The exchange may serve another answer now.
    pub(super) fn detach(&self) {
        self.client.link().exchange = None;
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.room.close();
    }
}

/// A message and its share of the queue.
struct Message {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// What both ends know of the client.
#[derive(Default)]
struct Client(Mutex<Link>);

#[derive(Default)]
struct Link {
    exchange: Option<Arc<Exchange>>,
    is_sender_gone: bool,
    is_aborted: bool,
}

impl Client {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let link = self.link();
        formatter
            .debug_struct("Client")
            .field("is_attached", &link.exchange.is_some())
            .field("is_sender_gone", &link.is_sender_gone)
            .field("is_aborted", &link.is_aborted)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn messages_come_in_order_and_end_with_their_sender() {
        let (sender, mut stream) = event_channel(1000);
        for number in 0..10u8 {
            sender.send(Bytes::from(vec![number; 10])).await.expect("there is room");
        }
        drop(sender);
        for number in 0..10u8 {
            assert_eq!(stream.next().await, Some(Bytes::from(vec![number; 10])));
        }
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_sender_wait_until_the_client_has_taken() {
        let (sender, mut stream) = event_channel(100);
        sender.send(Bytes::from(vec![0; 60])).await.expect("there is room");
        assert_eq!(sender.bytes_free(), 40);
        let second = Bytes::from(vec![1; 60]);
        assert_eq!(sender.send_within(second.clone(), SOON).await, Err(EventSendError::Stalled));
        // The first is being sent: it still counts.
        assert!(stream.next().await.is_some());
        assert_eq!(sender.send_within(second.clone(), SOON).await, Err(EventSendError::Stalled));
        // The next is asked for: the first has been sent.
        let next = tokio::time::timeout(SOON, stream.next());
        assert!(next.await.is_err());
        assert_eq!(sender.send_within(second.clone(), PATIENCE).await, Ok(()));
        assert_eq!(stream.next().await, Some(second));
    }

    #[tokio::test]
    async fn a_message_larger_than_the_queue_goes_alone() {
        let (sender, mut stream) = event_channel(100);
        sender.send(Bytes::from(vec![0; 10_000])).await.expect("the queue is empty");
        let small = Bytes::from_static(b"x");
        assert_eq!(sender.send_within(small, SOON).await, Err(EventSendError::Stalled));
        assert_eq!(stream.next().await.map(|message| message.len()), Some(10_000));
    }

    #[tokio::test]
    async fn a_sender_learns_that_its_client_is_gone() {
        let (sender, stream) = event_channel(10);
        sender.send(Bytes::from_static(b"0123456789")).await.expect("there is room");
        let waiting = tokio::spawn(async move {
            let waited = sender.send(Bytes::from_static(b"x")).await;
            sender.gone().await;
            waited
        });
        tokio::time::sleep(SOON).await;
        drop(stream);
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        assert_eq!(outcome.expect("in time").expect("no panic"), Err(EventSendError::Gone));
    }

    #[tokio::test]
    async fn a_closed_stream_still_gives_what_is_queued() {
        let (sender, mut stream) = event_channel(10);
        sender.send(Bytes::from_static(b"last")).await.expect("there is room");
        stream.close();
        sender.gone().await;
        let refused = sender.send(Bytes::from_static(b"x")).await;
        assert_eq!(refused, Err(EventSendError::Gone));
        assert_eq!(stream.next().await, Some(Bytes::from_static(b"last")));
        assert_eq!(stream.next().await, None);
    }
}
