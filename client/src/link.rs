//! A link: what one connection to a core sends and has not been answered for.
//!
//! It decides which batches share a frame and remembers which frame carries which; it knows no
//! socket. Frames are made when the connection is free to take one: whatever became ready
//! meanwhile travels together.

use std::collections::VecDeque;
use std::io::Write;

use slab::Slab;
use thalweg_wire::build::BatchBuilder;
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, PAYLOAD_ALIGN};
use thalweg_wire::limits::{FRAME_BATCHES_MAX, FRAME_MANY_BATCHES_BYTES_MAX};
use thalweg_wire::produce::padded_bytes;

use crate::connection::write_pieces;

/// From this size on a batch travels alone: the node writes it from where it received it.
const LONE_BATCH_BYTES: usize = 64 << 10;
/// Below this size a batch is copied into its frame: a piece of its own would cost the system more
/// than the copy.
const COPIED_BATCH_BYTES: usize = 4 << 10;

/// A batch that was handed over and has no outcome yet.
pub(crate) struct BatchUnderWay {
    /// Its bytes.
    pub(crate) builder: BatchBuilder,
    /// Its shard's place.
    pub(crate) lane: usize,
    /// The caller's name for it.
    pub(crate) tag: u64,
    /// Bytes of its body.
    pub(crate) bytes: usize,
    /// When it was handed over.
    pub(crate) submitted_us: u64,
}

/// All batches under way, by number.
pub(crate) type Batches = Slab<BatchUnderWay>;

/// A part of a frame.
#[derive(Clone, Copy)]
enum Piece {
    /// Bytes of `gathered`.
    Gathered { start: usize, end: usize },
    /// A batch where it was built.
    Batch(u32),
}

/// The frame that is being written.
#[derive(Default)]
struct OutFrame {
    /// Header, small batches, padding.
    gathered: Vec<u8>,
    pieces: Vec<Piece>,
    /// Bytes of the whole frame.
    bytes: usize,
    /// How many of them were written.
    written: usize,
}

impl OutFrame {
    fn clear(&mut self) {
        self.gathered.clear();
        self.gathered.resize(FRAME_HEADER_BYTES, 0);
        self.pieces.clear();
        self.pieces.push(Piece::Gathered { start: 0, end: FRAME_HEADER_BYTES });
        (self.bytes, self.written) = (0, 0);
    }

    fn push(&mut self, batch: u32, bytes: &[u8]) {
        if bytes.len() < COPIED_BATCH_BYTES {
            self.gather(bytes);
        } else {
            self.pieces.push(Piece::Batch(batch));
        }
        self.gather(&[0; PAYLOAD_ALIGN][..padded_bytes(bytes.len()) - bytes.len()]);
    }

    fn gather(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.gathered.len();
        self.gathered.extend_from_slice(bytes);
        let now_end = self.gathered.len();
        match self.pieces.last_mut() {
            Some(Piece::Gathered { end, .. }) => *end = now_end,
            _ => self.pieces.push(Piece::Gathered { start, end: now_end }),
        }
    }

    fn complete(&mut self, header: &FrameHeader) {
        self.gathered[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        self.bytes = header.frame_bytes();
    }

    fn write_to(&mut self, target: &mut impl Write, batches: &Batches) -> std::io::Result<()> {
        while self.written < self.bytes {
            let pieces = self.pieces.iter().map(|piece| match *piece {
                Piece::Gathered { start, end } => &self.gathered[start..end],
                Piece::Batch(batch) => batches[batch as usize].builder.bytes(),
            });
            match write_pieces(target, pieces, self.written)? {
                0 => return Err(std::io::ErrorKind::WriteZero.into()),
                count => self.written += count,
            }
        }
        Ok(())
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Link {
    /// Whether there is a connection to write to.
    pub(crate) is_up: bool,
    /// Bytes of the batches of its lanes that have no outcome.
    pub(crate) bytes_under_way: usize,
    /// Batches to be put into frames.
    queue: VecDeque<u32>,
    out: OutFrame,
    /// The batches of each frame that is not answered, by correlation.
    frames: Slab<Vec<u32>>,
    spare_lists: Vec<Vec<u32>>,
}

impl Link {
    /// Whether there is anything to write.
    pub(crate) fn wants_to_write(&self) -> bool {
        self.is_up && (self.out.written < self.out.bytes || !self.queue.is_empty())
    }

    /// Queues a finished batch.
    pub(crate) fn push(&mut self, batch: u32) {
        self.queue.push_back(batch);
    }

    /// Writes until everything is written or the target takes no more, which is an error of kind
    /// `WouldBlock`.
    pub(crate) fn write_to(
        &mut self,
        target: &mut impl Write,
        batches: &Batches,
    ) -> std::io::Result<()> {
        loop {
            self.out.write_to(target, batches)?;
            if !self.make_frame(batches) {
                return Ok(());
            }
        }
    }

    /// The batches of the frame that was answered, if there is such a frame. Give the list back
    /// with [`Link::keep_list`].
    pub(crate) fn take_frame(&mut self, correlation: u64) -> Option<Vec<u32>> {
        self.frames.try_remove(usize::try_from(correlation).ok()?)
    }

    /// Keeps a list's memory.
    pub(crate) fn keep_list(&mut self, mut list: Vec<u32>) {
        list.clear();
        self.spare_lists.push(list);
    }

    /// The connection is gone, and with it every answer to come.
    pub(crate) fn go_down(&mut self) {
        self.is_up = false;
        self.queue.clear();
        self.frames.clear();
        self.out.clear();
    }

    /// Puts batches of the queue into the next frame; false when there are none.
    fn make_frame(&mut self, batches: &Batches) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let mut list = self.spare_lists.pop().unwrap_or_default();
        let mut payload_bytes = 0;
        self.out.clear();
        while let Some(batch) = self.queue.front().copied() {
            let bytes = batches[batch as usize].builder.bytes();
            let total = payload_bytes + padded_bytes(bytes.len());
            let joins = bytes.len() < LONE_BATCH_BYTES
                && list.len() < FRAME_BATCHES_MAX as usize
                && total <= FRAME_MANY_BATCHES_BYTES_MAX as usize;
            if !list.is_empty() && !joins {
                break;
            }
            self.queue.pop_front();
            self.out.push(batch, bytes);
            list.push(batch);
            payload_bytes = total;
            if bytes.len() >= LONE_BATCH_BYTES {
                break;
            }
        }
        let items = list.len() as u32;
        let correlation = self.frames.insert(list) as u64;
        let (kind, payload_bytes) = (FrameKind::Produce, payload_bytes as u32);
        self.out.complete(&FrameHeader { kind, payload_bytes, items, correlation });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thalweg_wire::build::{BatchIdentity, BatchRoom, NewRecord};
    use thalweg_wire::hash_range::HashKey;
    use thalweg_wire::ids::{Epoch, ProducerId, ShardId, StreamId};
    use thalweg_wire::produce::split_batches;

    fn batches_of(sizes: &[usize]) -> Batches {
        let mut batches = Batches::new();
        for (at, data_bytes) in sizes.iter().enumerate() {
            let data = vec![at as u8; *data_bytes];
            let room =
                BatchRoom { records: 1, key_bytes: 1, data_bytes: (*data_bytes).max(1) as u32 };
            let mut builder = BatchBuilder::new(room);
            let (hash_key, key) = (HashKey(1), &b"k"[..]);
            builder.push(&NewRecord { hash_key, client_time_ms: 0, key, data: &data });
            builder.finish(&BatchIdentity {
                shard: ShardId { stream: StreamId(1), index: 0 },
                epoch: Epoch(1),
                producer: ProducerId(1),
                sequence: at as u64,
                request_id: 0,
            });
            let bytes = builder.bytes().len();
            batches.insert(BatchUnderWay { builder, lane: 0, tag: 0, bytes, submitted_us: 0 });
        }
        batches
    }

    fn link_with(batches: &Batches) -> Link {
        let mut link = Link { is_up: true, ..Link::default() };
        (0..batches.len()).for_each(|batch| link.push(batch as u32));
        link
    }

    /// Takes so many bytes at a call, and none at every other.
    struct Slow {
        taken: Vec<u8>,
        each: usize,
        blocks: bool,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.blocks = !self.blocks;
            if self.blocks {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.each);
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Count of batches and bytes of each frame in a stream; every batch must be there, in order.
    fn frames_in(mut stream: &[u8], batches: &Batches) -> Vec<(u32, u64)> {
        let (mut frames, mut next) = (Vec::new(), 0);
        while !stream.is_empty() {
            let header = FrameHeader::decode(stream.first_chunk().unwrap()).unwrap();
            let (frame, rest) = stream.split_at(header.frame_bytes());
            let payload = &frame[FRAME_HEADER_BYTES..];
            for place in split_batches(payload, header.items).unwrap() {
                assert_eq!(payload[place], *batches[next].builder.bytes());
                next += 1;
            }
            frames.push((header.items, header.correlation));
            stream = rest;
        }
        assert_eq!(next, batches.len());
        frames
    }

    #[test]
    fn small_batches_share_a_frame_and_large_ones_travel_alone() {
        let batches = batches_of(&[100, 5000, 30_000, 70_000, 200, 0]);
        let mut link = link_with(&batches);
        let mut stream = Vec::new();
        link.write_to(&mut stream, &batches).unwrap();
        assert_eq!(frames_in(&stream, &batches), [(3, 0), (1, 1), (2, 2)]);
        assert!(!link.wants_to_write());
        assert_eq!(link.take_frame(0), Some(vec![0, 1, 2]));
        assert_eq!(link.take_frame(0), None, "answered once");
        assert_eq!(link.take_frame(u64::MAX), None);
    }

    #[test]
    fn frames_keep_to_the_limits_of_count_and_bytes() {
        let many = batches_of(&[10; 600]);
        let mut stream = Vec::new();
        link_with(&many).write_to(&mut stream, &many).unwrap();
        assert_eq!(frames_in(&stream, &many), [(256, 0), (256, 1), (88, 2)]);
        let bulky = batches_of(&[60_000; 40]);
        let mut stream = Vec::new();
        link_with(&bulky).write_to(&mut stream, &bulky).unwrap();
        let frames = frames_in(&stream, &bulky);
        assert_eq!(frames.iter().map(|(items, _)| *items).collect::<Vec<_>>(), [17, 17, 6]);
    }

    #[test]
    fn a_socket_that_takes_little_gets_the_same_bytes() {
        let batches = batches_of(&[100, 5000, 30_000, 7, 70_000, 200, 4097]);
        for each in [1000, 4099, 70_001] {
            let mut link = link_with(&batches);
            let mut slow = Slow { taken: Vec::new(), each, blocks: false };
            while link.wants_to_write() {
                match link.write_to(&mut slow, &batches) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
            frames_in(&slow.taken, &batches);
        }
    }

    #[test]
    fn after_a_lost_connection_nothing_of_the_old_frame_is_written() {
        let batches = batches_of(&[100, 30_000]);
        let mut link = link_with(&batches);
        let mut slow = Slow { taken: Vec::new(), each: 50, blocks: true };
        assert!(link.write_to(&mut slow, &batches).is_err());
        link.go_down();
        assert!(!link.wants_to_write());
        assert_eq!(link.take_frame(0), None);
        link.is_up = true;
        (0..2).for_each(|batch| link.push(batch));
        let mut stream = Vec::new();
        link.write_to(&mut stream, &batches).unwrap();
        assert_eq!(frames_in(&stream, &batches), [(2, 0)]);
    }
}
