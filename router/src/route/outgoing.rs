//! What a link has to send: requests as frames, batches that are put into frames when the
//! connection is free to take one, so that whatever became ready meanwhile travels together.
//!
//! A batch's body is written from where it was built. Small pieces are gathered: a piece of its own
//! would cost the system more than the copy.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::sync::Arc;

use bytes::Bytes;
use thalweg_client::connection::write_pieces;
use thalweg_wire::batch::HEADER_BYTES;
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, PAYLOAD_ALIGN};
use thalweg_wire::limits::{FRAME_BATCHES_MAX, FRAME_MANY_BATCHES_BYTES_MAX};
use thalweg_wire::produce::{Ack, Verdicts, padded_bytes};

/// From this size on a batch travels alone: the node writes it from where it received it
/// (docs/protocol.md, Produce).
pub(super) const LONE_BATCH_BYTES: usize = 64 << 10;
/// Below this size a piece is copied.
const COPIED_PIECE_BYTES: usize = 4 << 10;
/// Bytes after which no further frame joins a round of writing.
const ROUND_BYTES: usize = 256 << 10;

/// Who is told what became of its batches. All its batches under way are on one link.
pub(super) trait BatchOwner: Send + Sync {
    /// A batch was answered, with a verdict for each record if the shard's limits take only some.
    fn on_answer(&self, batch: u32, ack: &Ack, verdicts: Verdicts<'_>);
    /// The connection is gone. These batches never left; all others of the owner's that are not
    /// answered may have arrived.
    fn on_lost(&self, never_left: &[u32]);
}

/// A batch to be sent.
pub(super) struct OutBatch {
    /// Header, under the identity it is sent with.
    pub(super) header: [u8; HEADER_BYTES],
    /// Body.
    pub(super) body: Bytes,
    /// Who is told.
    pub(super) owner: Arc<dyn BatchOwner>,
    /// The owner's name for it.
    pub(super) batch: u32,
}

impl OutBatch {
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// A request to be sent.
pub(super) struct OutRequest {
    /// What it is.
    pub(super) kind: FrameKind,
    /// Items of its payload.
    pub(super) items: u32,
    /// Its name.
    pub(super) correlation: u64,
    /// Its payload, in pieces.
    pub(super) payload: Vec<Bytes>,
}

/// A frame whose parts are known and not yet laid out.
pub(super) enum OutFrame {
    /// A request.
    Request(OutRequest),
    /// Batches, under a correlation.
    Batches(u64, Vec<OutBatch>),
}

impl OutFrame {
    /// The frame's header.
    pub(super) fn header(&self) -> FrameHeader {
        match self {
            OutFrame::Request(request) => FrameHeader {
                kind: request.kind,
                payload_bytes: request.payload.iter().map(Bytes::len).sum::<usize>() as u32,
                items: request.items,
                correlation: request.correlation,
            },
            OutFrame::Batches(correlation, batches) => FrameHeader {
                kind: FrameKind::Produce,
                payload_bytes: batches
                    .iter()
                    .map(|batch| padded_bytes(batch.bytes()))
                    .sum::<usize>() as u32,
                items: batches.len() as u32,
                correlation: *correlation,
            },
        }
    }
}

/// What waits to be sent.
#[derive(Default)]
pub(super) struct Queue {
    requests: VecDeque<OutRequest>,
    batches: VecDeque<OutBatch>,
}

impl Queue {
    /// Queues a request.
    pub(super) fn push_request(&mut self, request: OutRequest) {
        self.requests.push_back(request);
    }

    /// Queues a batch.
    pub(super) fn push_batch(&mut self, batch: OutBatch) {
        self.batches.push_back(batch);
    }

    /// The next request.
    pub(super) fn pop_request(&mut self) -> Option<OutRequest> {
        self.requests.pop_front()
    }

    /// The batches of the next frame: as many small ones as may be, or one large one.
    pub(super) fn pop_batches(&mut self) -> Option<Vec<OutBatch>> {
        let mut batches = vec![self.batches.pop_front()?];
        let mut payload_bytes = padded_bytes(batches[0].bytes());
        if batches[0].bytes() >= LONE_BATCH_BYTES {
            return Some(batches);
        }
        while let Some(next) = self.batches.front() {
            payload_bytes += padded_bytes(next.bytes());
            let joins = next.bytes() < LONE_BATCH_BYTES
                && batches.len() < FRAME_BATCHES_MAX as usize
                && payload_bytes <= FRAME_MANY_BATCHES_BYTES_MAX as usize;
            if !joins {
                break;
            }
            batches.extend(self.batches.pop_front());
        }
        Some(batches)
    }

    /// Everything that waits; nothing does any more.
    pub(super) fn take(&mut self) -> (VecDeque<OutRequest>, VecDeque<OutBatch>) {
        (std::mem::take(&mut self.requests), std::mem::take(&mut self.batches))
    }
}

/// A part of what is being written.
enum Piece {
    /// Bytes of `gathered`.
    Gathered { start: usize, end: usize },
    /// Bytes elsewhere.
    Shared(Bytes),
}

/// The frames that are being written.
#[derive(Default)]
pub(super) struct Round {
    gathered: Vec<u8>,
    pieces: Vec<Piece>,
    bytes: usize,
    written: usize,
}

impl Round {
    /// Whether no further frame joins.
    pub(super) fn is_full(planned_bytes: usize) -> bool {
        planned_bytes >= ROUND_BYTES
    }

    /// Whether everything was written.
    pub(super) fn is_done(&self) -> bool {
        self.written == self.bytes
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.gathered.clear();
        self.pieces.clear();
        (self.bytes, self.written) = (0, 0);
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, frame: OutFrame) {
        let header = frame.header();
        self.bytes += header.frame_bytes();
        self.gather(&header.encode());
        match frame {
            OutFrame::Request(request) => {
                request.payload.into_iter().for_each(|piece| self.push_piece(piece));
            }
            OutFrame::Batches(_, batches) => {
                for batch in batches {
                    let bytes = batch.bytes();
                    self.gather(&batch.header);
                    self.push_piece(batch.body);
                    self.gather(&[0; PAYLOAD_ALIGN][..padded_bytes(bytes) - bytes]);
                }
            }
        }
    }

    fn push_piece(&mut self, piece: Bytes) {
        if piece.len() < COPIED_PIECE_BYTES {
            self.gather(&piece);
        } else {
            self.pieces.push(Piece::Shared(piece));
        }
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

    /// Writes once; answers how many bytes went.
    ///
    /// # Errors
    /// What the target said; `WouldBlock` when it takes nothing now.
    pub(super) fn write_to(&mut self, target: &mut impl Write) -> std::io::Result<usize> {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Gathered { start, end } => &self.gathered[*start..*end],
            Piece::Shared(bytes) => &bytes[..],
        });
        match write_pieces(target, pieces, self.written)? {
            0 => Err(ErrorKind::WriteZero.into()),
            count => {
                self.written += count;
                Ok(count)
            }
        }
    }
}

/// Bytes of a frame on the wire.
pub(super) fn frame_bytes(frame: &OutFrame) -> u64 {
    (FRAME_HEADER_BYTES + frame.header().payload_bytes as usize) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
    use thalweg_wire::hash_range::HashKey;
    use thalweg_wire::ids::{Epoch, ProducerId, ShardId, StreamId};
    use thalweg_wire::produce::split_batches;

    struct Nobody;

    impl BatchOwner for Nobody {
        fn on_answer(&self, _batch: u32, _ack: &Ack, _verdicts: Verdicts<'_>) {}
        fn on_lost(&self, _never_left: &[u32]) {}
    }

    fn batch(number: u32, data_bytes: usize) -> (OutBatch, Vec<u8>) {
        let data = vec![number as u8; data_bytes];
        let room = BatchRoom { records: 1, key_bytes: 1, data_bytes: data_bytes as u32 };
        let mut builder = BatchBuilder::new(room);
        let (hash_key, key) = (HashKey(1), &b"k"[..]);
        builder.push(&NewRecord { hash_key, client_time_ms: 0, key, data: &data });
        let identity = BatchIdentity {
            shard: ShardId { stream: StreamId(1), index: 0 },
            epoch: Epoch(1),
            producer: ProducerId(1),
            sequence: u64::from(number),
            request_id: 0,
        };
        let whole = builder.finish(&identity).to_vec();
        let (header, body) = whole.split_first_chunk().unwrap();
        let body = Bytes::copy_from_slice(body);
        (OutBatch { header: *header, body, owner: Arc::new(Nobody), batch: number }, whole)
    }

    /// Batches of these sizes in frames, as bytes; and the count of each frame.
    fn frames_of(sizes: &[usize], each: usize) -> Vec<u32> {
        let (mut queue, mut wholes) = (Queue::default(), Vec::new());
        for (number, size) in (0..).zip(sizes) {
            let (batch, whole) = batch(number, *size);
            queue.push_batch(batch);
            wholes.push(whole);
        }
        let (mut round, mut correlation) = (Round::default(), 0);
        while let Some(batches) = queue.pop_batches() {
            round.push(OutFrame::Batches(correlation, batches));
            correlation += 1;
        }
        let mut stream = Vec::new();
        while !round.is_done() {
            round.write_to(&mut Limited(&mut stream, each)).unwrap();
        }
        let (mut counts, mut rest, mut wholes) = (Vec::new(), &stream[..], wholes.iter());
        while !rest.is_empty() {
            let header = FrameHeader::decode(rest.first_chunk().unwrap()).unwrap();
            assert_eq!(header.correlation, counts.len() as u64);
            let payload = &rest[FRAME_HEADER_BYTES..header.frame_bytes()];
            for place in split_batches(payload, header.items).unwrap() {
                assert_eq!(&payload[place], wholes.next().unwrap());
            }
            counts.push(header.items);
            rest = &rest[header.frame_bytes()..];
        }
        assert!(wholes.next().is_none());
        counts
    }

    struct Limited<'a>(&'a mut Vec<u8>, usize);

    impl Write for Limited<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn small_batches_share_a_frame_and_large_ones_travel_alone() {
        for each in [1, 1000, 4099, usize::MAX] {
            assert_eq!(frames_of(&[100, 5000, 30_000, 70_000, 200, 0], each), [3, 1, 2]);
        }
    }

    #[test]
    fn frames_keep_to_the_limits_of_count_and_bytes() {
        assert_eq!(frames_of(&[10; 600], usize::MAX), [256, 256, 88]);
        assert_eq!(frames_of(&[60_000; 40], usize::MAX), [17, 17, 6]);
    }

    #[test]
    fn a_request_goes_out_in_its_pieces() {
        let payload: Vec<Bytes> = [&b"abc"[..], &[5; 9000], b"", b"z"].map(Bytes::from).to_vec();
        let whole = payload.concat();
        let mut round = Round::default();
        let (kind, items, correlation) = (FrameKind::Fetch, 2, 8);
        round.push(OutFrame::Request(OutRequest { kind, items, correlation, payload }));
        let mut stream = Vec::new();
        while !round.is_done() {
            round.write_to(&mut stream).unwrap();
        }
        let payload_bytes = whole.len() as u32;
        let header = FrameHeader { kind, payload_bytes, items, correlation };
        assert_eq!(stream, [&header.encode()[..], &whole].concat());
    }
}
