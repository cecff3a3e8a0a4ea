//! One connection: frames out without copying the batches in them, frames in where they can be
//! read in place.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rkyv::util::AlignedVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, PAYLOAD_ALIGN};

use crate::error::ClientError;

/// Bytes asked of the system for each direction of a socket.
const SOCKET_BUFFER_BYTES: usize = 2 << 20;
/// First size of the receive buffer; it grows to the largest frame.
const RECEIVE_BYTES_MIN: usize = 256 << 10;
/// From this size on a frame is received up to its end only: moving what came behind it would cost
/// more than another call.
const LARGE_FRAME_BYTES: usize = 64 << 10;

/// Frames as they arrive. It grows to the largest frame that came and no further.
pub struct Inbox {
    bytes: AlignedVec<16>,
    start: usize,
    end: usize,
    /// Where the next read ends at the latest: just behind a large frame that is arriving, so that
    /// little of what follows it must be moved.
    read_until: usize,
}

impl Default for Inbox {
    fn default() -> Inbox {
        let mut bytes = AlignedVec::new();
        bytes.resize(RECEIVE_BYTES_MIN, 0);
        Inbox { read_until: bytes.len(), bytes, start: 0, end: 0 }
    }
}

impl Inbox {
    /// Reads what is there; answers how much, zero at the stream's end. What arrived before is to
    /// be taken with [`Inbox::next_frame`] first.
    ///
    /// # Errors
    /// What the system said.
    pub fn read_from(&mut self, source: &mut impl Read) -> std::io::Result<usize> {
        if self.end == self.read_until {
            self.move_to_front();
        }
        let count = source.read(&mut self.bytes[self.end..self.read_until])?;
        self.end += count;
        Ok(count)
    }

    /// Forgets what has arrived: what comes next is of another connection.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        self.read_until = self.bytes.len();
    }

    /// The next whole frame, its payload aligned; `None` when it has not arrived in full.
    ///
    /// # Errors
    /// When what arrived is no frame.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, &[u8])>, ClientError> {
        let there = self.end - self.start;
        let Some(header) = self.bytes[self.start..self.end].first_chunk::<FRAME_HEADER_BYTES>()
        else {
            if there == 0 {
                self.clear();
            } else {
                self.move_to_front();
            }
            return Ok(None);
        };
        let header = FrameHeader::decode(header)?;
        let frame_bytes = header.frame_bytes();
        if there < frame_bytes {
            self.make_room(frame_bytes);
            return Ok(None);
        }
        if !self.start.is_multiple_of(PAYLOAD_ALIGN) {
            self.move_to_front();
        }
        let payload_at = self.start + FRAME_HEADER_BYTES;
        self.start += frame_bytes;
        Ok(Some((header, &self.bytes[payload_at..self.start])))
    }

    /// Makes the frame that is arriving fit.
    fn make_room(&mut self, frame_bytes: usize) {
        let with_next_header = frame_bytes + FRAME_HEADER_BYTES;
        if self.start + with_next_header > self.bytes.len() {
            self.move_to_front();
        }
        if self.bytes.len() < with_next_header {
            self.bytes.resize(with_next_header, 0);
        }
        let is_large = frame_bytes >= LARGE_FRAME_BYTES;
        self.read_until = if is_large { self.start + with_next_header } else { self.bytes.len() };
    }

    fn move_to_front(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.read_until = self.bytes.len();
    }
}

/// Connects, with the socket as the client wants it.
///
/// # Errors
/// [`ClientError::Connection`].
pub fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, ClientError> {
    let connection = |source| ClientError::Connection { address, source };
    let stream = TcpStream::connect_timeout(&address, timeout).map_err(connection)?;
    stream.set_nodelay(true).map_err(connection)?;
    for set in [
        rustix::net::sockopt::set_socket_send_buffer_size,
        rustix::net::sockopt::set_socket_recv_buffer_size,
    ] {
        set(&stream, SOCKET_BUFFER_BYTES).map_err(|errno| connection(errno.into()))?;
    }
    Ok(stream)
}

/// A connection that is read and written as far as it goes without waiting.
pub struct FrameStream {
    /// The peer.
    pub address: SocketAddr,
    stream: TcpStream,
    inbox: Inbox,
    out: Vec<u8>,
    written: usize,
}

impl FrameStream {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connection`].
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<FrameStream, ClientError> {
        let stream = connect(address, timeout)?;
        stream
            .set_nonblocking(true)
            .map_err(|source| ClientError::Connection { address, source })?;
        let (inbox, out) = (Inbox::default(), Vec::new());
        Ok(FrameStream { address, stream, inbox, out, written: 0 })
    }

    /// Queues a small frame.
    pub fn push(&mut self, frame: &[u8]) {
        self.out.extend_from_slice(frame);
    }

    /// Writes what is queued, as far as the socket takes it.
    ///
    /// # Errors
    /// [`ClientError::Connection`].
    pub fn write(&mut self) -> Result<(), ClientError> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if would_block(&error) => return Ok(()),
                Err(source) => return Err(self.failed(source)),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what is there; take it with [`FrameStream::next_frame`].
    ///
    /// # Errors
    /// [`ClientError::Connection`], also at the stream's end.
    pub fn read(&mut self) -> Result<(), ClientError> {
        match self.inbox.read_from(&mut self.stream) {
            Ok(0) => Err(self.failed(ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) if would_block(&error) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The next whole frame, as [`Inbox::next_frame`].
    ///
    /// # Errors
    /// When what arrived is no frame.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, &[u8])>, ClientError> {
        self.inbox.next_frame()
    }

    fn failed(&self, source: std::io::Error) -> ClientError {
        ClientError::Connection { address: self.address, source }
    }
}

/// Sleeps until a stream can be read, or written where there is something to write, or the time is
/// over; answers the places of those to be read, and whether any was ready at all.
///
/// # Errors
/// [`ClientError::Connection`] when the system refuses.
pub fn wait_for_streams<'a>(
    streams: impl Iterator<Item = &'a FrameStream>,
    timeout: Duration,
) -> Result<(Vec<usize>, bool), ClientError> {
    let mut address = None;
    let mut polled: Vec<PollFd<'_>> = streams
        .map(|frames| {
            address.get_or_insert(frames.address);
            let writes = frames.written < frames.out.len();
            let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            PollFd::new(&frames.stream, flags)
        })
        .collect();
    let wait =
        Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let ready = match (poll(&mut polled, Some(&wait)), address) {
        (Ok(ready), _) => ready > 0,
        // A signal: whoever waits looks at its clock again.
        (Err(rustix::io::Errno::INTR), _) => true,
        (Err(errno), Some(address)) => {
            return Err(ClientError::Connection { address, source: errno.into() });
        }
        (Err(_), None) => false,
    };
    let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    let places = polled.iter().enumerate();
    let places = places.filter(|(_, socket)| socket.revents().intersects(readable));
    Ok((places.map(|(place, _)| place).collect(), ready))
}

/// Whether an I/O error says only that it is not time yet.
#[must_use]
pub fn would_block(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::TimedOut)
}

/// Writes pieces in order, from byte `skip` of them on; answers how many bytes went out.
///
/// # Errors
/// What the system said.
pub fn write_pieces<'a>(
    target: &mut impl Write,
    pieces: impl Iterator<Item = &'a [u8]>,
    mut skip: usize,
) -> std::io::Result<usize> {
    let mut slices: [std::io::IoSlice<'_>; 64] = [std::io::IoSlice::new(&[]); 64];
    let mut count = 0;
    for piece in pieces {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        slices[count] = std::io::IoSlice::new(&piece[skip..]);
        skip = 0;
        count += 1;
        if count == slices.len() {
            break;
        }
    }
    if count == 0 { Ok(0) } else { target.write_vectored(&slices[..count]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thalweg_wire::frame::{FrameKind, small_frame};

    #[test]
    fn frames_come_out_whole_and_aligned_however_they_arrive() {
        let frames: Vec<Vec<u8>> = [0, 40, 16, 300_000, 7, 5000]
            .iter()
            .enumerate()
            .map(|(at, bytes)| {
                let payload = vec![at as u8; *bytes];
                small_frame(FrameKind::FetchAnswer, 0, at as u64, &payload)
            })
            .collect();
        let stream = frames.concat();
        for cut in [1, 10, 1000, 100_000, 1_000_000] {
            let mut inbox = Inbox::default();
            let mut found = 0;
            for mut chunk in stream.chunks(cut) {
                while !chunk.is_empty() {
                    inbox.read_from(&mut chunk).unwrap();
                    while let Some((header, payload)) = inbox.next_frame().unwrap() {
                        assert_eq!(payload.as_ptr() as usize % PAYLOAD_ALIGN, 0);
                        let frame = small_frame(header.kind, 0, header.correlation, payload);
                        assert_eq!(frame, frames[found]);
                        found += 1;
                    }
                }
            }
            assert_eq!(found, frames.len());
        }
    }

    #[test]
    fn the_inbox_grows_to_the_largest_frame_and_no_further() {
        let frame = small_frame(FrameKind::FetchAnswer, 0, 1, &vec![1; 700_000]);
        let stream = frame.repeat(9);
        let mut inbox = Inbox::default();
        let (mut source, mut found) = (&stream[..], 0);
        while inbox.read_from(&mut source).unwrap() > 0 {
            while inbox.next_frame().unwrap().is_some() {
                found += 1;
            }
        }
        assert_eq!(found, 9);
        assert_eq!(inbox.bytes.len(), frame.len() + FRAME_HEADER_BYTES);
    }

    #[test]
    fn garbage_is_an_error() {
        let mut inbox = Inbox::default();
        inbox.read_from(&mut &[b'x'; 64][..]).unwrap();
        assert!(matches!(inbox.next_frame(), Err(ClientError::Frame(_))));
    }

    #[test]
    fn pieces_go_out_from_any_byte_on() {
        let pieces: [&[u8]; 4] = [b"abc", b"", b"de", b"fghi"];
        for skip in 0..9 {
            let mut written = Vec::new();
            let count = write_pieces(&mut written, pieces.into_iter(), skip).unwrap();
            assert_eq!(written, b"abcdefghi"[skip..]);
            assert_eq!(count, 9 - skip);
        }
    }
}
