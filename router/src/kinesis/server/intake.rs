//! Receiving bodies: as much as there is memory for, as fast as they must come.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::limits::Limits;

/// Bytes of a refused request's body that are received and thrown away, so that its client gets
/// to read the refusal: a connection closed with bytes unread is reset, answer and all, and SDKs
/// take an HTTP/2 stream that is reset for a broken one although its answer came first. Twice the
/// largest valid body.
const DISCARD_BYTES_MAX: usize = 32 << 20;

/// Why a body was not received, as clients are told.
#[derive(Debug, Error)]
pub(super) enum IntakeError {
    /// It is larger than any valid body.
    #[error("The request's body is larger than {bytes_max} bytes.")]
    TooLarge {
        /// The most it may have.
        bytes_max: usize,
    },
    /// There was no memory for it in time.
    #[error("There is no room for the request's body now: try again later.")]
    NoRoom,
    /// It came too slowly.
    #[error("{received_bytes} bytes of the request's body came in {seconds} s: that is too slow.")]
    TooSlow {
        /// What came.
        received_bytes: usize,
        /// In how long.
        seconds: u64,
    },
    /// It did not come to its end, or is not framed as HTTP says.
    #[error("The request's body could not be read: {0}.")]
    Broken(#[from] hyper::Error),
}

/// A body that was received with an error, and whether the connection can serve another request.
pub(super) struct Failed {
    pub(super) error: IntakeError,
    pub(super) is_connection_usable: bool,
}

/// The memory for all bodies of a server.
pub(super) struct Intake {
    room: Arc<Semaphore>,
    bytes_max: usize,
}

impl Intake {
    pub(super) fn new(limits: &Limits) -> Intake {
        let bytes_max = limits.bodies_bytes_max;
        Intake { room: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// Bytes of bodies in memory, or reserved.
    pub(super) fn bytes_used(&self) -> usize {
        self.bytes_max - self.room.available_permits()
    }

    /// Receives a body as a whole. Its bytes count until the last handle to them is gone.
    ///
    /// Room is reserved once and for all of it, so that two bodies never wait for each other: for
    /// as much as its length says, or for the largest body if it does not say.
    pub(super) async fn receive(
        &self,
        mut body: Incoming,
        limits: &Limits,
        is_continue_expected: bool,
    ) -> Result<Bytes, Failed> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let bytes_max = limits.body_bytes_max;
        let declared = body.size_hint().exact();
        let declared = declared.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let room_bytes = declared.unwrap_or(bytes_max);
        let refused = if room_bytes > bytes_max {
            IntakeError::TooLarge { bytes_max }
        } else {
            match self.reserve(room_bytes, limits.body_room_time).await {
                Some(room) => return collect(body, declared, room, limits).await,
                None => IntakeError::NoRoom,
            }
        };
        let is_connection_usable = discard(&mut body, limits, is_continue_expected).await;
        Err(Failed { error: refused, is_connection_usable })
    }

    async fn reserve(&self, bytes: usize, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        let room = self.room.clone().acquire_many_owned(bytes);
        timeout(patience, room).await.ok()?.ok()
    }
}

/// Receives what is left of a refused request's body and throws it away. Tells whether it came to
/// its end, without which an HTTP/1.1 connection is of no more use.
///
/// Nothing is received of a body that is given up: above all of one whose client waits to be asked
/// for it, and is answered instead.
pub(super) async fn discard(body: &mut Incoming, limits: &Limits, is_given_up: bool) -> bool {
    if body.is_end_stream() {
        return true;
    }
    if is_given_up {
        return false;
    }
    let started = Instant::now();
    let mut received_bytes = 0;
    while received_bytes <= DISCARD_BYTES_MAX {
        let until = started + limits.body_time_for(received_bytes);
        match tokio::time::timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) => received_bytes += frame.data_ref().map_or(0, Bytes::len),
            Ok(None) => return true,
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
    false
}

async fn collect(
    mut body: Incoming,
    declared: Option<usize>,
    mut room: OwnedSemaphorePermit,
    limits: &Limits,
) -> Result<Bytes, Failed> {
    let unusable = |error| Failed { error, is_connection_usable: false };
    let mut bytes = Vec::with_capacity(declared.unwrap_or_default());
    let started = Instant::now();
    let mut deadline = std::pin::pin!(sleep_until(started + limits.body_time));
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut deadline => {
                let until = started + limits.body_time_for(bytes.len());
                if Instant::now() >= until {
                    let seconds = started.elapsed().as_secs();
                    let received_bytes = bytes.len();
                    return Err(unusable(IntakeError::TooSlow { received_bytes, seconds }));
                }
                deadline.as_mut().reset(until);
                continue;
            }
        };
        let frame = match frame {
            None => break,
            Some(frame) => frame.map_err(|error| unusable(error.into()))?,
        };
        // Trailers say nothing to this API.
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > limits.body_bytes_max {
            let error = IntakeError::TooLarge { bytes_max: limits.body_bytes_max };
            drop((bytes, room));
            let is_connection_usable = discard(&mut body, limits, false).await;
            return Err(Failed { error, is_connection_usable });
        }
        grow_for(&mut bytes, data.len(), limits.body_bytes_max);
        bytes.extend_from_slice(data);
    }
    // A body that did not say its length gives back what it did not need.
    let surplus = room.num_permits().saturating_sub(bytes.capacity());
    drop(room.split(surplus));
    Ok(Bytes::from_owner(Received { bytes, _room: room }))
}

/// Makes room for `more` bytes: twice what there was, and never more than was reserved.
fn grow_for(bytes: &mut Vec<u8>, more: usize, bytes_max: usize) {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let capacity = needed.max(bytes.capacity() * 2).min(bytes_max);
        bytes.reserve_exact(capacity - bytes.len());
    }
}

/// A body and its share of the memory.
struct Received {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
