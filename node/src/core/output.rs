//! What waits to be sent on a connection: pieces of buffers, in order.
//!
//! Small answers are written one behind the other into a page; batches are pieces of the buffers
//! they rest in. Each piece holds one reference of its buffer until it has been sent.

use std::collections::VecDeque;

use crate::io::arena::PAGE_BYTES;
use crate::io::ring::SEND_PIECES_MAX;
use crate::io::{Arena, BufferId, Piece};

/// See the module.
#[derive(Debug, Default)]
pub struct Output {
    queue: VecDeque<Piece>,
    /// Pieces that are being sent.
    in_flight: Vec<Piece>,
    /// The page that takes the next small answer, and how much of it is used. It has a reference
    /// of its own.
    page: Option<(BufferId, usize)>,
    bytes: usize,
}

impl Output {
    /// Bytes that wait or are being sent.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a send is in flight.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether nothing waits and nothing is being sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends bytes, copied. `allocate` gives a page when one is needed; false when it has none.
    #[must_use]
    pub fn push_bytes(
        &mut self,
        memory: &mut Arena,
        mut bytes: &[u8],
        mut allocate: impl FnMut(&mut Arena) -> Option<BufferId>,
    ) -> bool {
        while !bytes.is_empty() {
            let (page, used) = match self.page.take() {
                Some((page, used)) if used < PAGE_BYTES => (page, used),
                full => {
                    if let Some((page, _)) = full {
                        memory.release(page);
                    }
                    let Some(page) = allocate(memory) else { return false };
                    (page, 0)
                }
            };
            let count = bytes.len().min(PAGE_BYTES - used);
            memory.bytes_mut(page)[used..used + count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.page = Some((page, used + count));
            self.bytes += count;
            match self.queue.back_mut() {
                Some(last) if last.buffer == page && (last.start + last.bytes) as usize == used => {
                    last.bytes += count as u32;
                }
                _ => {
                    memory.retain(page);
                    let (start, bytes) = (used as u32, count as u32);
                    self.queue.push_back(Piece { buffer: page, start, bytes });
                }
            }
        }
        true
    }

    /// Appends a piece; takes over one reference of its buffer.
    pub fn push_piece(&mut self, piece: Piece) {
        self.bytes += piece.bytes as usize;
        self.queue.push_back(piece);
    }

    /// What to send next; nothing while a send is in flight or when nothing waits.
    pub fn start_send(&mut self) -> &[Piece] {
        if !self.in_flight.is_empty() {
            return &[];
        }
        let count = self.queue.len().min(SEND_PIECES_MAX);
        self.in_flight.extend(self.queue.drain(..count));
        &self.in_flight
    }

    /// The send ended, having sent `sent` bytes; answers whether that was all of it.
    pub fn on_sent(&mut self, memory: &mut Arena, sent: usize) -> bool {
        let expected: usize = self.in_flight.iter().map(|piece| piece.bytes as usize).sum();
        self.in_flight.drain(..).for_each(|piece| memory.release(piece.buffer));
        self.bytes -= expected;
        if self.bytes == 0
            && let Some((page, _)) = self.page.take()
        {
            // An idle connection holds no memory for answers.
            memory.release(page);
        }
        sent == expected
    }

    /// Lets go of everything that is not in flight.
    pub fn clear(&mut self, memory: &mut Arena) {
        for piece in self.queue.drain(..) {
            self.bytes -= piece.bytes as usize;
            memory.release(piece.buffer);
        }
        if let Some((page, _)) = self.page.take() {
            memory.release(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_memory_comes_back() {
        let mut memory = Arena::new(1).unwrap();
        let mut output = Output::default();
        let mut expected = Vec::new();
        for at in 0..300_u32 {
            let bytes = [at as u8; 50];
            expected.extend(bytes);
            assert!(output.push_bytes(&mut memory, &bytes, |memory| memory.allocate(1)));
        }
        let other = memory.allocate(5000).unwrap();
        memory.bytes_mut(other)[..5000].fill(9);
        expected.extend([9; 5000]);
        output.push_piece(Piece { buffer: other, start: 0, bytes: 5000 });
        let mut sent: Vec<u8> = Vec::new();
        while !output.is_empty() {
            let pieces = output.start_send().to_vec();
            assert!(output.start_send().is_empty(), "one send at a time");
            let before = sent.len();
            pieces.iter().for_each(|piece| sent.extend(memory.piece(*piece)));
            assert!(output.on_sent(&mut memory, sent.len() - before));
        }
        assert_eq!(sent, expected);
        assert_eq!(memory.free_bytes(), memory.total_bytes());
    }

    #[test]
    fn a_short_send_is_told() {
        let mut memory = Arena::new(1).unwrap();
        let mut output = Output::default();
        assert!(output.push_bytes(&mut memory, b"abc", |memory| memory.allocate(1)));
        output.start_send();
        assert!(!output.on_sent(&mut memory, 2));
        assert!(!output.push_bytes(&mut memory, b"abc", |_| None));
    }
}
