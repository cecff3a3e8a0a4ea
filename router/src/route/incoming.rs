//! Frames as they arrive on a link.
//!
//! Small ones pass through one buffer and are looked at there. A large one is received into memory
//! of its own, which is where it is read: the memory is asked for once its header is here, so that
//! a link receives no more than there is room for. One for which there is none passes through the
//! buffer as well, and is gone.

use std::io::ErrorKind;

use rkyv::util::AlignedVec;
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind, PAYLOAD_ALIGN};

use super::payload::{Payload, Reservation};

/// Payloads from this size on are received into memory of their own.
const LARGE_PAYLOAD_BYTES: usize = 4 << 10;
/// The buffer of small frames: the largest frame that is never large, and as much again.
const INBOX_BYTES: usize = 256 << 10;
const _: () =
    assert!(INBOX_BYTES > 2 * FrameKind::DescribeAnswer.payload_bytes_max() as usize + 64);

/// What has arrived.
#[derive(Debug)]
pub(super) enum Arrived<'a> {
    /// Nothing whole: more is to be read.
    Nothing,
    /// A frame whose payload lies in the buffer of small ones.
    Small(FrameHeader, &'a [u8]),
    /// The header of a large frame: [`FrameReader::begin_large`] or [`FrameReader::pass_over`] is
    /// due.
    LargeBegins(FrameHeader),
    /// A large frame, whole.
    Large(FrameHeader, Payload),
}

struct LargeFrame {
    header: FrameHeader,
    bytes: AlignedVec<PAYLOAD_ALIGN>,
    filled: usize,
    reservation: Option<Reservation>,
}

/// See the module.
pub(super) struct FrameReader {
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    large: Option<LargeFrame>,
    /// Bytes to come that nobody wants.
    unwanted: usize,
}

impl FrameReader {
    /// For a new connection.
    pub(super) fn new() -> FrameReader {
        FrameReader { inbox: vec![0; INBOX_BYTES], start: 0, end: 0, large: None, unwanted: 0 }
    }

    /// Where the next bytes go; [`FrameReader::advance`] says how many came.
    pub(super) fn target(&mut self) -> &mut [u8] {
        match &mut self.large {
            Some(large) => &mut large.bytes[large.filled..],
            // They were all that was left of what had come.
            None if self.unwanted > 0 => &mut self.inbox[..self.unwanted.min(INBOX_BYTES)],
            None => {
                // A whole small frame fits behind what there is of it, wherever that begins.
                if self.start == self.end || self.inbox.len() - self.start < INBOX_BYTES / 2 {
                    self.inbox.copy_within(self.start..self.end, 0);
                    (self.start, self.end) = (0, self.end - self.start);
                }
                &mut self.inbox[self.end..]
            }
        }
    }

    /// So many bytes were read into the target.
    ///
    /// # Errors
    /// At the end of the stream, which is no byte.
    pub(super) fn advance(&mut self, bytes: usize) -> std::io::Result<()> {
        if bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match &mut self.large {
            Some(large) => large.filled += bytes,
            None if self.unwanted > 0 => self.unwanted -= bytes,
            None => self.end += bytes,
        }
        Ok(())
    }

    /// What has arrived next. After [`Arrived::LargeBegins`] the large frame must be begun, or
    /// passed over, before this is asked again.
    ///
    /// # Errors
    /// When what arrived is no frame.
    pub(super) fn next(&mut self) -> Result<Arrived<'_>, FrameError> {
        if let Some(large) = self.large.take() {
            if large.filled < large.bytes.len() {
                self.large = Some(large);
                return Ok(Arrived::Nothing);
            }
            let payload = Payload::new(large.bytes, large.reservation);
            return Ok(Arrived::Large(large.header, payload));
        }
        if self.unwanted > 0 {
            return Ok(Arrived::Nothing);
        }
        let there = &self.inbox[self.start..self.end];
        let Some(header) = there.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(Arrived::Nothing);
        };
        let header = FrameHeader::decode(header)?;
        let kind = header.kind;
        if !is_of_node(kind) {
            return Err(FrameError::Payload { kind, what: "a node sends no such frames" });
        }
        if is_large(&header) {
            return Ok(Arrived::LargeBegins(header));
        }
        if there.len() < header.frame_bytes() {
            return Ok(Arrived::Nothing);
        }
        let payload_at = self.start + FRAME_HEADER_BYTES;
        self.start += header.frame_bytes();
        Ok(Arrived::Small(header, &self.inbox[payload_at..self.start]))
    }

    /// Receives the large frame whose header is next into memory of its own.
    pub(super) fn begin_large(&mut self, header: FrameHeader, reservation: Option<Reservation>) {
        let mut bytes = AlignedVec::new();
        bytes.resize(header.payload_bytes as usize, 0);
        self.start += FRAME_HEADER_BYTES;
        let filled = bytes.len().min(self.end - self.start);
        bytes[..filled].copy_from_slice(&self.inbox[self.start..][..filled]);
        self.start += filled;
        self.large = Some(LargeFrame { header, bytes, filled, reservation });
    }

    /// Receives the large frame whose header is next, and keeps nothing of it.
    pub(super) fn pass_over(&mut self, header: &FrameHeader) {
        self.start += FRAME_HEADER_BYTES;
        let payload_bytes = header.payload_bytes as usize;
        let arrived = payload_bytes.min(self.end - self.start);
        self.start += arrived;
        self.unwanted = payload_bytes - arrived;
        if self.unwanted > 0 {
            (self.start, self.end) = (0, 0);
        }
    }
}

/// Whether a frame is received into memory of its own. All others fit into the buffer.
fn is_large(header: &FrameHeader) -> bool {
    let carries_batches = matches!(header.kind, FrameKind::FetchAnswer | FrameKind::SubscribeEvent);
    carries_batches && header.payload_bytes as usize >= LARGE_PAYLOAD_BYTES
}

/// Whether a node may send a frame of this kind. Others would not fit into the buffer.
fn is_of_node(kind: FrameKind) -> bool {
    matches!(
        kind,
        FrameKind::HelloAnswer
            | FrameKind::ProduceAnswer
            | FrameKind::FetchAnswer
            | FrameKind::SubscribeEvent
            | FrameKind::ControlAnswer
            | FrameKind::DescribeAnswer
            | FrameKind::Error
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use thalweg_wire::frame::small_frame;

    /// Feeds a stream in chunks; answers the frames as they were, but for large ones that are not
    /// kept.
    fn frames_of(
        mut stream: &[u8],
        cut: usize,
        is_kept: impl Fn(&FrameHeader) -> bool,
    ) -> Vec<Vec<u8>> {
        let (mut reader, mut frames) = (FrameReader::new(), Vec::new());
        while !stream.is_empty() {
            let target = reader.target();
            let count = cut.min(stream.len()).min(target.len());
            target[..count].copy_from_slice(&stream[..count]);
            reader.advance(count).unwrap();
            stream = &stream[count..];
            loop {
                let header = match reader.next().unwrap() {
                    Arrived::Nothing => break,
                    Arrived::LargeBegins(header) => header,
                    Arrived::Small(header, payload) => {
                        frames.push(small_frame(header.kind, 0, header.correlation, payload));
                        continue;
                    }
                    Arrived::Large(header, payload) => {
                        assert_eq!(payload.as_ptr() as usize % PAYLOAD_ALIGN, 0);
                        frames.push(small_frame(header.kind, 0, header.correlation, &payload));
                        continue;
                    }
                };
                match is_kept(&header) {
                    true => reader.begin_large(header, None),
                    false => reader.pass_over(&header),
                }
            }
        }
        frames
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let kinds = [FrameKind::FetchAnswer, FrameKind::SubscribeEvent];
        let mut frames: Vec<Vec<u8>> = [0, 64, 4095, 4096, 300_000, 7, 5000]
            .iter()
            .enumerate()
            .map(|(at, bytes)| small_frame(kinds[at % 2], 0, at as u64, &vec![at as u8; *bytes]))
            .collect();
        frames.push(small_frame(FrameKind::ProduceAnswer, 0, 9, &[1; 8192]));
        frames.push(small_frame(FrameKind::DescribeAnswer, 0, 10, &vec![2; 98_304]));
        let frames = vec![frames; 5].concat();
        let stream = frames.concat();
        for cut in [1, 31, 1000, 100_000, usize::MAX] {
            assert_eq!(frames_of(&stream, cut, |_| true), frames, "{cut} bytes at a time");
        }
    }

    #[test]
    fn a_frame_that_is_passed_over_leaves_those_behind_it_whole() {
        let sizes = [300_000, 5000, 100, 1_000_000, 4096];
        let frames = sizes.map(|bytes| {
            small_frame(FrameKind::FetchAnswer, 0, bytes as u64, &vec![bytes as u8; bytes])
        });
        let whole = frames.concat();
        for cut in [1, 31, 1000, 100_000, usize::MAX] {
            let kept = frames_of(&whole, cut, |header| header.payload_bytes == 5000);
            assert_eq!(kept, frames[1..3], "{cut} bytes at a time");
        }
    }

    #[test]
    fn garbage_and_the_end_are_errors() {
        let mut reader = FrameReader::new();
        assert!(reader.advance(0).is_err());
        reader.target()[..32].fill(b'x');
        reader.advance(32).unwrap();
        assert!(matches!(reader.next(), Err(FrameError::Magic { .. })));
        let mut reader = FrameReader::new();
        let produce = FrameHeader {
            kind: FrameKind::Produce,
            payload_bytes: 9_000_000,
            items: 1,
            correlation: 1,
        };
        reader.target()[..FRAME_HEADER_BYTES].copy_from_slice(&produce.encode());
        reader.advance(FRAME_HEADER_BYTES).unwrap();
        assert!(matches!(reader.next(), Err(FrameError::Payload { .. })));
    }
}
