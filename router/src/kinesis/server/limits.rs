//! What the front door allows: every limit, its usual value and why.

use std::time::Duration;

use thiserror::Error;

/// Largest body of a request.
///
/// PutRecords carries at most 10 MiB of data and partition keys (API reference, PutRecords), and
/// JSON is the larger encoding: base64 makes 13.4 MiB of the data. To that come, for 500 records,
/// keys of 256 characters written as escapes (12 bytes each at most: 1.5 MiB) and names, hash keys
/// and punctuation (below 0.2 MiB): 15.1 MiB. The rest is room for white space.
pub const BODY_BYTES_MAX: usize = 16 << 20;

const _: () = {
    let data = (10 << 20) / 3 * 4 + 4;
    let keys = 500 * 256 * 12;
    let rest = 500 * 400;
    assert!(data + keys + rest <= BODY_BYTES_MAX);
};

/// Bytes of a request's head: a signature, a session token of some KiB and what SDKs say of
/// themselves. It is also the read buffer of an HTTP/1.1 connection, so that a connection without
/// a request holds little memory.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Headers of a request. SDKs send about twenty.
pub const HEADERS_MAX: usize = 100;

/// Requests that are being refused at a time, or ask for health or metrics: what is left of their
/// bodies is received, and their answers wait to be taken, up to 64 KiB of head each. Calls have
/// places of their own, so nobody who is refused anyway takes them away. Above, streams of HTTP/2
/// are reset; connections of HTTP/1.1 are answered and closed.
pub const REFUSALS_MAX: usize = 1024;

/// What may be in use at a time and how long it may take. All are per server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at a time. For a further one, the one that has been idle longest is closed;
    /// if none is idle, the further one is. Each costs a file descriptor and, with buffers and
    /// windows full, about 1 MiB.
    pub connections_max: usize,
    /// Requests under way at a time, from head to last byte of the answer; above, 503.
    pub requests_max: usize,
    /// Requests under way at a time on one HTTP/2 connection; clients open another connection for
    /// more. HTTP/1.1 has one at a time anyway.
    pub requests_per_connection_max: u32,
    /// Event streams open at a time; above, 503. They last for minutes, so they do not count as
    /// requests under way.
    pub event_streams_max: usize,
    /// Largest body of a request, see [`BODY_BYTES_MAX`]; above, 413.
    pub body_bytes_max: usize,
    /// Bytes of all bodies in memory, from the first byte received until the API has let go of
    /// the body. A request reserves its whole body before it is received.
    pub bodies_bytes_max: usize,
    /// How long a request waits for its share of `bodies_bytes_max`; then 503.
    pub body_room_time: Duration,
    /// Bytes of all answers in memory, those of up to [`ANSWER_BYTES_FREE`] not counted: from when
    /// the API makes them until clients have taken them. An answer beyond it is shorter or, if it
    /// cannot be, given up: 503.
    pub answers_bytes_max: usize,
    /// Time for the head of an HTTP/1.1 request, from its first byte, and for a TLS handshake.
    pub head_time: Duration,
    /// A body may take this long in any case.
    pub body_time: Duration,
    /// And a second for each of these bytes that came; then 408.
    pub body_bytes_per_second_min: usize,
    /// How long the API may take for its answer; then 500.
    pub answer_time: Duration,
    /// How long a client may take nothing of an answer that waits for it; then it is cut off.
    pub stall_time: Duration,
    /// A connection without any request for this long is closed. Longer than SDKs keep theirs
    /// (60 s in Java), so that they close first and no request meets a closing connection.
    pub idle_time: Duration,
}

/// An answer of this size never fails for want of room: all that writers get are smaller.
pub const ANSWER_BYTES_FREE: usize = 256 << 10;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            requests_max: 4096,
            requests_per_connection_max: 250,
            event_streams_max: 4096,
            body_bytes_max: BODY_BYTES_MAX,
            bodies_bytes_max: 512 << 20,
            // A wait that retries after a refusal would be no shorter.
            body_room_time: Duration::from_secs(2),
            answers_bytes_max: 512 << 20,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(10),
            // Half a Mbit/s: a slower line cannot fill a sixteenth of a shard.
            body_bytes_per_second_min: 64 << 10,
            // What botocore and the Java SDK wait for an answer at most.
            answer_time: Duration::from_secs(60),
            stall_time: Duration::from_secs(60),
            idle_time: Duration::from_secs(120),
        }
    }
}

/// Why limits cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LimitsError {
    /// Nothing could ever be served.
    #[error("{name} is 0: set it to at least 1")]
    Zero {
        /// The limit.
        name: &'static str,
    },
    /// A body that is allowed would never find room.
    #[error(
        "bodies_bytes_max is {bodies_bytes_max}, less than the {body_bytes_max} bytes of one \
         body: raise it, or lower body_bytes_max"
    )]
    NoRoomForABody {
        /// Bytes of all bodies.
        bodies_bytes_max: usize,
        /// Bytes of one.
        body_bytes_max: usize,
    },
    /// More than a count can tell.
    #[error("{name} is {value}: set it to at most {most}")]
    TooLarge {
        /// The limit.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Its largest value.
        most: usize,
    },
}

impl Limits {
    /// Whether a server can work within these.
    ///
    /// # Errors
    /// [`LimitsError`] for the first that makes no sense.
    pub fn check(&self) -> Result<(), LimitsError> {
        let counts = [
            ("connections_max", self.connections_max),
            ("requests_max", self.requests_max),
            ("requests_per_connection_max", self.requests_per_connection_max as usize),
            ("event_streams_max", self.event_streams_max),
            ("body_bytes_max", self.body_bytes_max),
            ("bodies_bytes_max", self.bodies_bytes_max),
            ("answers_bytes_max", self.answers_bytes_max),
            ("body_bytes_per_second_min", self.body_bytes_per_second_min),
        ];
        for (name, value) in counts {
            let most = u32::MAX as usize;
            if value == 0 {
                return Err(LimitsError::Zero { name });
            }
            // Bytes of a body are reserved at once, and a reservation is counted in 32 bits.
            if value > most && name == "body_bytes_max" {
                return Err(LimitsError::TooLarge { name, value, most });
            }
            if value > tokio::sync::Semaphore::MAX_PERMITS {
                let most = tokio::sync::Semaphore::MAX_PERMITS;
                return Err(LimitsError::TooLarge { name, value, most });
            }
        }
        let times = [
            ("body_room_time", self.body_room_time),
            ("head_time", self.head_time),
            ("body_time", self.body_time),
            ("answer_time", self.answer_time),
            ("stall_time", self.stall_time),
            ("idle_time", self.idle_time),
        ];
        for (name, time) in times {
            if time.is_zero() {
                return Err(LimitsError::Zero { name });
            }
        }
        if self.bodies_bytes_max < self.body_bytes_max {
            return Err(LimitsError::NoRoomForABody {
                bodies_bytes_max: self.bodies_bytes_max,
                body_bytes_max: self.body_bytes_max,
            });
        }
        Ok(())
    }

    /// How long a body may take of which so much has come.
    pub(super) fn body_time_for(&self, received_bytes: usize) -> Duration {
        let per_second = self.body_bytes_per_second_min as f64;
        self.body_time + Duration::from_secs_f64(received_bytes as f64 / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_limits_work() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn limits_that_cannot_work_are_named() {
        let none = Limits { requests_max: 0, ..Limits::default() };
        assert_eq!(none.check(), Err(LimitsError::Zero { name: "requests_max" }));
        let hasty = Limits { head_time: Duration::ZERO, ..Limits::default() };
        assert_eq!(hasty.check(), Err(LimitsError::Zero { name: "head_time" }));
        let tight = Limits { bodies_bytes_max: 1 << 20, ..Limits::default() };
        assert_eq!(
            tight.check(),
            Err(LimitsError::NoRoomForABody {
                bodies_bytes_max: 1 << 20,
                body_bytes_max: BODY_BYTES_MAX
            })
        );
        let huge = Limits { body_bytes_max: 1 << 33, bodies_bytes_max: 1 << 33, ..tight };
        assert!(matches!(huge.check(), Err(LimitsError::TooLarge { name: "body_bytes_max", .. })));
        let endless = Limits { connections_max: usize::MAX, ..Limits::default() };
        assert!(matches!(
            endless.check(),
            Err(LimitsError::TooLarge { name: "connections_max", .. })
        ));
    }

    #[test]
    fn a_body_has_time_for_what_has_come() {
        let limits = Limits {
            body_time: Duration::from_secs(3),
            body_bytes_per_second_min: 1000,
            ..Limits::default()
        };
        assert_eq!(limits.body_time_for(0), Duration::from_secs(3));
        assert_eq!(limits.body_time_for(2500), Duration::from_millis(5500));
    }
}
