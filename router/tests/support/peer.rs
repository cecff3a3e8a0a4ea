//! A peer that the test plays: what a link sends it, and what it answers.

use std::net::SocketAddr;
use std::time::Duration;

use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, small_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::PATIENCE;

pub(crate) struct Peer(TcpListener);

impl Peer {
    pub(crate) async fn start() -> (Peer, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        (Peer(listener), address)
    }

    pub(crate) async fn accept(&self) -> Connection {
        let accepted = tokio::time::timeout(PATIENCE, self.0.accept()).await;
        Connection(accepted.expect("the link connects").expect("it accepts").0)
    }
}

pub(crate) struct Connection(pub(crate) TcpStream);

impl Connection {
    pub(crate) async fn receive(&mut self) -> (FrameHeader, Vec<u8>) {
        let frame = async {
            let mut header = [0; FRAME_HEADER_BYTES];
            self.0.read_exact(&mut header).await.expect("a header");
            let header = FrameHeader::decode(&header).expect("a frame");
            let mut payload = vec![0; header.payload_bytes as usize];
            self.0.read_exact(&mut payload).await.expect("a payload");
            (header, payload)
        };
        tokio::time::timeout(PATIENCE, frame).await.expect("a frame comes")
    }

    pub(crate) async fn send(&mut self, kind: FrameKind, correlation: u64, payload: &[u8]) {
        let frame = small_frame(kind, 0, correlation, payload);
        self.0.write_all(&frame).await.expect("the link reads");
    }

    pub(crate) async fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let peeked = self.0.peek(&mut byte);
        tokio::time::timeout(Duration::from_millis(100), peeked).await.is_err()
    }

    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        let read = self.0.read(&mut byte);
        matches!(tokio::time::timeout(PATIENCE, read).await, Ok(Ok(0) | Err(_)))
    }
}
