//! Waking the other side of a queue: an eventfd for a core's ring, a socket for the background.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

/// Messages for a core. Whoever puts one in wakes the core's ring.
pub struct Mailbox<M> {
    messages: SegQueue<M>,
    wake: OwnedFd,
}

impl<M> Mailbox<M> {
    /// An empty mailbox, and the descriptor that the core's ring reads.
    ///
    /// # Errors
    /// When the system has no descriptor to give.
    pub fn new() -> std::io::Result<(Arc<Mailbox<M>>, OwnedFd)> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC)?;
        let read = wake.try_clone()?;
        Ok((Arc::new(Mailbox { messages: SegQueue::new(), wake }), read))
    }

    /// Puts a message in.
    pub fn push(&self, message: M) {
        self.messages.push(message);
        // The counter cannot overflow before the core reads it, and nothing else fails.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Takes the oldest message.
    pub fn pop(&self) -> Option<M> {
        self.messages.pop()
    }
}

/// Hands a stream over to glommio.
#[must_use]
pub fn adopt(stream: UnixStream) -> glommio::net::UnixStream {
    let descriptor = stream.into_raw_fd();
    // SAFETY: the descriptor was given up by its owner just now and belongs to nobody else.
    unsafe { glommio::net::UnixStream::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_wake_and_come_in_order() {
        let (mailbox, wake) = Mailbox::new().unwrap();
        mailbox.push(1);
        mailbox.push(2);
        let mut count = [0; 8];
        rustix::io::read(&wake, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 2);
        assert_eq!((mailbox.pop(), mailbox.pop(), mailbox.pop()), (Some(1), Some(2), None));
    }
}
