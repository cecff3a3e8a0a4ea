//! Produce frames: taken apart into batches, each judged and stored or refused by itself.

use thalweg_wire::error::ErrorCode;
use thalweg_wire::frame::FrameHeader;
use thalweg_wire::produce::{Ack, split_batches};

use super::acknowledge::ProduceInProgress;
use super::admission::Objection;
use super::connection::{ConnectionKey, PAYLOAD_AT, Payload};
use super::machine::Core;
use crate::io::{Io, Piece};
use crate::log::format::FRAME_HEADER_BYTES;
use crate::log::segments::{IN_PLACE_BYTES_MIN, Placement};

impl<I: Io> Core<I> {
    /// Serves a produce frame. Its answer leaves when every batch has one.
    pub(super) fn produce(&mut self, key: ConnectionKey, header: &FrameHeader, payload: Payload) {
        let Piece { buffer, start, .. } = payload.piece;
        let mut pieces = std::mem::take(&mut self.spare_pieces);
        pieces.clear();
        let payload_bytes = self.io.memory().piece(payload.piece);
        let split = split_batches(payload_bytes, header.items).map(|places| {
            pieces.extend(places.map(|place| Piece {
                buffer,
                start: start + place.start as u32,
                bytes: place.len() as u32,
            }));
        });
        if let Err(error) = split {
            self.release_payload(payload);
            return self.refuse_connection(key, error.refusal());
        }
        if let Some(connection) = self.connection(key) {
            connection.requests += 1;
        }
        let answer = self.spare_answers.pop().unwrap_or_default();
        let in_progress = ProduceInProgress::new(key, header.correlation, pieces.len(), answer);
        let produce = self.produces.insert(in_progress) as u32;
        // A large batch alone in its frame is written from where it was received.
        let in_place = payload.owned
            && pieces.len() == 1
            && pieces[0].start as usize == PAYLOAD_AT
            && FRAME_HEADER_BYTES + pieces[0].bytes as usize >= IN_PLACE_BYTES_MIN;
        let placement = if in_place { Placement::InPlace } else { Placement::Copied };
        let (mut kept, mut wrote_for) = (false, None);
        for (item, piece) in (0..).zip(&pieces) {
            match self.admit(*piece, placement) {
                Ok(admitted) => {
                    kept |= in_place && admitted.records > 0;
                    wrote_for = Some(self.party_of(admitted.shard));
                    self.wait_for_commit(produce, item, admitted);
                }
                Err(Objection::Refused(refusal)) => {
                    self.decide(produce, item, Ack::refused(refusal));
                }
                Err(Objection::Partly { taken, wait_us }) => {
                    self.decide_partly(produce, item, wait_us, &taken);
                }
            }
        }
        self.spare_pieces = pieces;
        if wrote_for.is_some()
            && let Some(connection) = self.connection(key)
        {
            connection.wrote_for = wrote_for;
        }
        if !kept {
            self.release_payload(payload);
        }
    }

    fn release_payload(&mut self, payload: Payload) {
        if payload.owned {
            self.io.memory_mut().release(payload.piece.buffer);
        }
    }

    /// Counts what was refused.
    pub(super) fn count_refusal(&mut self, code: ErrorCode) {
        self.counters.refusals += 1;
        // Not louder: a hostile peer must not fill anybody's logs.
        tracing::debug!(?code, "a batch is refused");
    }
}
