//! A connection of a peer to one core, in frames.

use thalweg_node::core::machine::Core;
use thalweg_node::io::ConnectionId;
use thalweg_node::io::sim::SimIo;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::frame::{ErrorAnswer, FRAME_HEADER_BYTES, FrameHeader, FrameKind};

/// A peer's side of a connection.
pub(crate) struct Link {
    pub core: usize,
    connection: ConnectionId,
    inbox: Vec<u8>,
}

impl Link {
    pub(crate) fn connect(cores: &mut [Core<SimIo>], core: usize) -> Link {
        let connection = cores[core].io_mut().connect();
        Link { core, connection, inbox: Vec::new() }
    }

    /// The frames that have come; `None` when the connection is gone.
    pub(crate) fn take(
        &mut self,
        cores: &mut [Core<SimIo>],
    ) -> Option<Vec<(FrameHeader, Vec<u8>)>> {
        let bytes = cores[self.core].io_mut().peer_takes(self.connection)?;
        self.inbox.extend(bytes);
        let mut frames = Vec::new();
        while let Some(header) = self.inbox.first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode(header).expect("a core sends frames");
            if self.inbox.len() < header.frame_bytes() {
                break;
            }
            let frame = self.inbox.drain(..header.frame_bytes());
            let payload: Vec<u8> = frame.skip(FRAME_HEADER_BYTES).collect();
            if header.kind == FrameKind::Error {
                // Time passed while a frame was on its way; the connection ends.
                let ErrorAnswer(refusal) = ErrorAnswer::decode(&payload).expect("an error");
                assert_eq!(refusal.code, ErrorCode::TooSlow, "a peer did nothing wrong");
                continue;
            }
            frames.push((header, payload));
        }
        Some(frames)
    }

    pub(crate) fn send(&self, cores: &mut [Core<SimIo>], bytes: &[u8]) {
        cores[self.core].io_mut().peer_sends(self.connection, bytes);
    }

    pub(crate) fn end(&self, cores: &mut [Core<SimIo>]) {
        cores[self.core].io_mut().peer_ends(self.connection);
    }
}
