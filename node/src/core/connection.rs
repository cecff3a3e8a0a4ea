//! Connections: receiving frames, each straight into the memory it is written to the log from.
//!
//! A connection has one page, the head. What arrives goes there; a frame that fits is served from
//! it. A larger frame gets a buffer of its own: the part that is in the head is copied, the rest
//! received behind it in one operation. The buffer leaves room before the payload for the header
//! of a log frame, so that a large batch is written from where it was received.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use thalweg_wire::codec::align_up;
use thalweg_wire::error::Refusal;
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader};

use super::output::Output;
use super::turns::Party;
use crate::io::arena::PAGE_BYTES;
use crate::io::{BufferId, ConnectionId, Io, Piece};
use crate::log::format::FRAME_HEADER_BYTES as LOG_FRAME_BYTES;

/// Where the payload begins in a frame's own buffer.
pub const PAYLOAD_AT: usize = LOG_FRAME_BYTES;
/// A connection with so many bytes to send is not received from.
const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// A connection with so many bytes to send gets no events: what waits to be sent cannot leave
/// memory, and a slow subscriber did not ask for all of it at this moment.
const EVENT_OUTPUT_BYTES_MAX: usize = 1 << 20;
/// A connection with so many requests unanswered is not received from.
const REQUESTS_MAX: u32 = 1024;
/// Payloads above this count as large: at most [`LARGE_FRAMES_MAX`] a core at a time.
pub const LARGE_FRAME_BYTES: usize = 1 << 20;
/// See [`LARGE_FRAME_BYTES`].
pub const LARGE_FRAMES_MAX: u32 = 2;

/// Names a connection for ever: its place may be taken by another, its serial is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionKey {
    /// Place in the ring.
    pub id: ConnectionId,
    /// Count of accepted connections before it.
    pub serial: u64,
}

/// A frame that is received into a buffer of its own.
#[derive(Clone, Copy, Debug)]
struct Body {
    header: FrameHeader,
    buffer: BufferId,
    received: usize,
}

/// Where a whole frame's payload lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    /// The bytes.
    pub piece: Piece,
    /// Whether the buffer is the frame's own: whoever serves the frame takes over its reference.
    /// Else it is the connection's head, to be read before the next receive.
    pub owned: bool,
}

/// What a connection's bytes came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// A whole frame; there may be more.
    Frame(FrameHeader, Payload),
    /// More must be received.
    NeedsBytes,
    /// A buffer of so many bytes is needed for the next frame, whose payload has as many as the
    /// second figure says.
    NeedsBuffer(usize, usize),
    /// Not a frame: the connection closes with this answer.
    Refused(Refusal),
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It does not.
    No,
    /// When what waits has been sent, or at this time at the latest (microseconds).
    AfterOutput(u64),
    /// It is being shut down; it closes when nothing is in flight.
    Shutdown {
        /// Whether the shutdown itself has completed.
        completed: bool,
    },
    /// The close is in flight.
    Closing,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Which.
    pub key: ConnectionKey,
    head: BufferId,
    head_start: usize,
    head_end: usize,
    body: Option<Body>,
    /// Whether a receive is in flight.
    pub receiving: bool,
    /// Whether it waits for memory.
    pub waits_for_memory: bool,
    /// The shard that it wrote for last, and whose that is.
    pub wrote_for: Option<Party>,
    /// Whether it waits for its turn.
    pub waits_for_turn: bool,
    /// When the frame that is being received must be whole, microseconds.
    pub frame_due_us: Option<u64>,
    /// What waits to be sent.
    pub output: Output,
    /// When the send that is in flight began, microseconds.
    pub send_began_us: u64,
    /// Requests that were taken and not answered.
    pub requests: u32,
    /// Its subscriptions: what it named each, and the core's own name for it.
    pub subscriptions: Vec<(u64, u64)>,
    /// Those that wait until some of the output has left.
    pub held_back: Vec<u64>,
    /// How it ends.
    pub ending: Ending,
}

/// The connections of a core.
pub type Connections = HashMap<ConnectionId, Connection, BuildHasherDefault<PlaceHasher>>;

/// Connections are named by small numbers that the ring chooses and nobody else: any spread will
/// do, and the order is the same in each run of a history.
#[derive(Default)]
pub struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, 6.4).
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Connection {
    /// A new connection with its head page.
    #[must_use]
    pub fn new(key: ConnectionKey, head: BufferId) -> Connection {
        Connection {
            key,
            head,
            head_start: 0,
            head_end: 0,
            body: None,
            receiving: false,
            waits_for_memory: false,
            wrote_for: None,
            waits_for_turn: false,
            frame_due_us: None,
            output: Output::default(),
            send_began_us: 0,
            requests: 0,
            subscriptions: Vec::new(),
            held_back: Vec::new(),
            ending: Ending::No,
        }
    }

    /// Whether it waits for something that the core will give it.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waits_for_memory || self.waits_for_turn
    }

    /// Whether frames are taken from it now.
    #[must_use]
    pub fn takes_frames(&self) -> bool {
        self.ending == Ending::No
            && self.requests < REQUESTS_MAX
            && self.output.bytes() < OUTPUT_BYTES_MAX
    }

    /// Whether events are pushed to it now.
    #[must_use]
    pub fn takes_events(&self) -> bool {
        self.ending == Ending::No && self.output.bytes() < EVENT_OUTPUT_BYTES_MAX
    }

    /// Whether part of a frame has arrived.
    #[must_use]
    pub fn is_within_frame(&self) -> bool {
        self.body.is_some() || self.head_end > self.head_start
    }

    /// Whether its peer has not taken what is being sent to it for so long.
    #[must_use]
    pub fn has_stalled(&self, now_us: u64, after_us: u64) -> bool {
        self.output.is_sending() && now_us >= self.send_began_us + after_us
    }

    /// Whether the frame that is being received is large.
    #[must_use]
    pub fn has_large_body(&self) -> bool {
        self.body.is_some_and(|body| body.header.payload_bytes as usize > LARGE_FRAME_BYTES)
    }

    /// Receives what is missing.
    pub fn receive(&mut self, io: &mut impl Io) {
        debug_assert!(!self.receiving);
        self.receiving = true;
        let (into, all) = match &self.body {
            Some(body) => {
                let start = (PAYLOAD_AT + body.received) as u32;
                let bytes = body.header.payload_bytes - body.received as u32;
                (Piece { buffer: body.buffer, start, bytes }, true)
            }
            None => {
                let (start, bytes) = (self.head_end as u32, (PAGE_BYTES - self.head_end) as u32);
                (Piece { buffer: self.head, start, bytes }, false)
            }
        };
        assert!(into.bytes > 0, "a receive has room");
        io.receive(self.key.id, into, all);
    }

    /// `bytes` arrived.
    pub fn on_received(&mut self, bytes: usize) {
        self.receiving = false;
        match &mut self.body {
            Some(body) => body.received += bytes,
            None => self.head_end += bytes,
        }
    }

    /// Takes the next frame, as far as it is there.
    pub fn next_frame(&mut self, io: &mut impl Io) -> Progress {
        if let Some(body) = self.body {
            if body.received < body.header.payload_bytes as usize {
                return Progress::NeedsBytes;
            }
            self.body = None;
            let bytes = body.header.payload_bytes;
            let piece = Piece { buffer: body.buffer, start: PAYLOAD_AT as u32, bytes };
            return Progress::Frame(body.header, Payload { piece, owned: true });
        }
        let there = self.head_end - self.head_start;
        if there < FRAME_HEADER_BYTES {
            self.align_head(io);
            return Progress::NeedsBytes;
        }
        let head = &io.memory().bytes(self.head)[self.head_start..];
        let header = head[..FRAME_HEADER_BYTES].try_into().expect("32 bytes are there");
        let header = match FrameHeader::decode(header) {
            Ok(header) => header,
            Err(error) => return Progress::Refused(error.refusal()),
        };
        if header.frame_bytes() <= there {
            // Batches are read where they lie, which must be aligned.
            if !self.head_start.is_multiple_of(thalweg_wire::frame::PAYLOAD_ALIGN) {
                self.align_head(io);
            }
            let start = (self.head_start + FRAME_HEADER_BYTES) as u32;
            self.head_start += header.frame_bytes();
            let piece = Piece { buffer: self.head, start, bytes: header.payload_bytes };
            return Progress::Frame(header, Payload { piece, owned: false });
        }
        if header.frame_bytes() <= PAGE_BYTES {
            self.align_head(io);
            return Progress::NeedsBytes;
        }
        let payload_bytes = header.payload_bytes as usize;
        let bytes = align_up((PAYLOAD_AT + payload_bytes) as u64, PAGE_BYTES as u64);
        Progress::NeedsBuffer(bytes as usize, payload_bytes)
    }

    /// Gives the next frame the buffer that it needs; moves there what the head has of it.
    ///
    /// # Panics
    /// When [`Connection::next_frame`] did not just ask for one.
    pub fn start_body(&mut self, io: &mut impl Io, buffer: BufferId) {
        let (head, target) = io.memory_mut().pair(self.head, buffer);
        let head = &head[self.head_start..self.head_end];
        let (header, prefix) = head.split_at(FRAME_HEADER_BYTES);
        let header = header.try_into().expect("a frame's header has 32 bytes");
        let header = FrameHeader::decode(header).expect("the header was decoded before");
        target[PAYLOAD_AT..PAYLOAD_AT + prefix.len()].copy_from_slice(prefix);
        self.body = Some(Body { header, buffer, received: prefix.len() });
        (self.head_start, self.head_end) = (0, 0);
    }

    /// Lets go of the connection's memory; answers whether a large body was among it.
    pub fn release(&mut self, io: &mut impl Io) -> bool {
        let large = self.has_large_body();
        let memory = io.memory_mut();
        memory.release(self.head);
        if let Some(body) = self.body.take() {
            memory.release(body.buffer);
        }
        self.output.clear(memory);
        large
    }

    /// Moves what the head has to its beginning.
    fn align_head(&mut self, io: &mut impl Io) {
        if self.head_start > 0 {
            let bytes = io.memory_mut().bytes_mut(self.head);
            bytes.copy_within(self.head_start..self.head_end, 0);
            (self.head_start, self.head_end) = (0, self.head_end - self.head_start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::noop::NoopIo;
    use crate::io::{Completion, Token, Wait};
    use thalweg_wire::error::ErrorCode;
    use thalweg_wire::frame::{FrameKind, small_frame};

    fn frames() -> Vec<Vec<u8>> {
        [24, 16, 4064, 0, 20_000, 48, 4065, 100_000]
            .iter()
            .enumerate()
            .map(|(at, bytes)| {
                let payload: Vec<u8> = (0..*bytes).map(|byte| (byte + at) as u8).collect();
                small_frame(FrameKind::Produce, 1, at as u64, &payload)
            })
            .collect()
    }

    /// However the bytes are cut, the same frames come out, aligned.
    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let frames = frames();
        let stream: Vec<u8> = frames.concat();
        for cut in [1, 7, 31, 33, 1000, 4096, 5000, 1_000_000] {
            let mut io = NoopIo::instant(1 << 20);
            let id = io.connect();
            let head = io.memory_mut().allocate(PAGE_BYTES).unwrap();
            let mut connection = Connection::new(ConnectionKey { id, serial: 0 }, head);
            let mut found = Vec::new();
            let mut chunks = stream.chunks(cut);
            let mut completions: Vec<Completion> = Vec::new();
            while found.len() < frames.len() {
                match connection.next_frame(&mut io) {
                    Progress::Frame(header, payload) => {
                        assert_eq!(payload.piece.start % 16, 0, "batches are read in place");
                        let bytes = io.memory().piece(payload.piece).to_vec();
                        assert_eq!(
                            small_frame(header.kind, 1, header.correlation, &bytes),
                            frames[found.len()]
                        );
                        found.push(header.correlation);
                        if payload.owned {
                            io.memory_mut().release(payload.piece.buffer);
                        }
                    }
                    Progress::NeedsBuffer(bytes, _) => {
                        let buffer = io.memory_mut().allocate(bytes).unwrap();
                        connection.start_body(&mut io, buffer);
                    }
                    Progress::NeedsBytes => {
                        connection.receive(&mut io);
                        loop {
                            io.poll(&mut completions, Wait::No).unwrap();
                            let done = completions
                                .drain(..)
                                .find(|completion| completion.token == Token::Receive(id));
                            if let Some(done) = done {
                                connection.on_received(done.result.unwrap() as usize);
                                break;
                            }
                            io.feed(id, chunks.next().expect("all frames are in the stream"));
                        }
                    }
                    Progress::Refused(refusal) => panic!("{refusal}"),
                }
            }
            assert!(!connection.is_within_frame());
            assert!(!connection.release(&mut io));
            assert_eq!(io.memory().free_bytes(), io.memory().total_bytes());
        }
    }

    #[test]
    fn garbage_is_refused() {
        let mut io = NoopIo::instant(1 << 20);
        let id = io.connect();
        let head = io.memory_mut().allocate(PAGE_BYTES).unwrap();
        let mut connection = Connection::new(ConnectionKey { id, serial: 0 }, head);
        io.feed(id, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
        connection.receive(&mut io);
        connection.on_received(37);
        let refused = connection.next_frame(&mut io);
        assert_eq!(refused, Progress::Refused(ErrorCode::Malformed.into()));
    }
}
