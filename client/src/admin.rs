//! A node's commands, asked one at a time: what a controller, a benchmark or a person needs.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use thalweg_wire::control::{
    ControlAnswer, DescribeRequest, FenceExtent, NodeDescription, OpenExtent,
    SHARD_DESCRIPTION_BYTES, SealExtent, ShardDescription, TrimShard,
};
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind, small_frame};
use thalweg_wire::ids::{ShardId, StreamId};
use thalweg_wire::limits::DESCRIBE_SHARDS_MAX;

use crate::connection::{Inbox, connect};
use crate::error::ClientError;

/// A connection to one core of a node.
pub struct Admin {
    address: SocketAddr,
    stream: TcpStream,
    inbox: Inbox,
    correlation: u64,
}

impl Admin {
    /// Connects to a core; every answer is waited for at most as long as `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Connection`].
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Admin, ClientError> {
        let stream = connect(address, timeout)?;
        let failed = |source| ClientError::Connection { address, source };
        stream.set_read_timeout(Some(timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(timeout)).map_err(failed)?;
        Ok(Admin { address, stream, inbox: Inbox::default(), correlation: 0 })
    }

    /// Who the node is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn hello(&mut self) -> Result<NodeDescription, ClientError> {
        let (header, payload) = self.ask(FrameKind::Hello, &[])?;
        expect(&header, FrameKind::HelloAnswer)?;
        Ok(NodeDescription::decode(&payload)?)
    }

    /// Opens an extent.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or a failed connection.
    pub fn open_extent(&mut self, open: &OpenExtent) -> Result<ControlAnswer, ClientError> {
        self.command(FrameKind::OpenExtent, &open.encode())
    }

    /// Opens many extents, all asked for before the first answer is awaited.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the first refusal, or a failed connection. The connection is
    /// of no more use then: answers may still come.
    pub fn open_extents(&mut self, opens: &[OpenExtent]) -> Result<(), ClientError> {
        self.command_many(FrameKind::OpenExtent, opens, OpenExtent::encode)
    }

    /// Lets go of the oldest records of many shards, like [`Admin::open_extents`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the first refusal, or a failed connection. The connection is
    /// of no more use then: answers may still come.
    pub fn trim_shards(&mut self, trims: &[TrimShard]) -> Result<(), ClientError> {
        self.command_many(FrameKind::TrimShard, trims, TrimShard::encode)
    }

    /// Fences an extent; the answer has its end.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or a failed connection.
    pub fn fence_extent(&mut self, fence: &FenceExtent) -> Result<ControlAnswer, ClientError> {
        self.command(FrameKind::FenceExtent, &fence.encode())
    }

    /// Seals a fenced extent.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or a failed connection.
    pub fn seal_extent(&mut self, seal: &SealExtent) -> Result<ControlAnswer, ClientError> {
        self.command(FrameKind::SealExtent, &seal.encode())
    }

    /// Lets go of a shard's oldest records.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or a failed connection.
    pub fn trim_shard(&mut self, trim: &TrimShard) -> Result<ControlAnswer, ClientError> {
        self.command(FrameKind::TrimShard, &trim.encode())
    }

    /// The shards of a stream that this core serves, in order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn describe(&mut self, stream: StreamId) -> Result<Vec<ShardDescription>, ClientError> {
        let mut shards = Vec::new();
        let mut from = ShardId { stream, index: 0 };
        loop {
            let request = DescribeRequest { from };
            let (header, payload) = self.ask(FrameKind::Describe, &request.encode())?;
            expect(&header, FrameKind::DescribeAnswer)?;
            let before = shards.len();
            for bytes in payload.chunks(SHARD_DESCRIPTION_BYTES) {
                let shard = ShardDescription::decode(bytes)?;
                if shard.extent.shard.stream == stream {
                    shards.push(shard);
                }
            }
            let of_stream = (shards.len() - before) as u32;
            let last = shards.last().map(|shard| shard.extent.shard.index);
            match last.and_then(|index| index.checked_add(1)) {
                Some(index) if of_stream == DESCRIBE_SHARDS_MAX => from.index = index,
                _ => return Ok(shards),
            }
        }
    }

    fn command_many<C, const BYTES: usize>(
        &mut self,
        kind: FrameKind,
        commands: &[C],
        encode: impl Fn(&C) -> [u8; BYTES],
    ) -> Result<(), ClientError> {
        // As many as their answers fit into socket buffers that nobody reads meanwhile.
        for group in commands.chunks(512) {
            for command in group {
                self.send(kind, &encode(command))?;
            }
            for _ in group {
                let (header, payload) = self.receive()?;
                expect(&header, FrameKind::ControlAnswer)?;
                ControlAnswer::decode(&payload)?.status?;
            }
        }
        Ok(())
    }

    fn command(&mut self, kind: FrameKind, payload: &[u8]) -> Result<ControlAnswer, ClientError> {
        let (header, payload) = self.ask(kind, payload)?;
        expect(&header, FrameKind::ControlAnswer)?;
        let answer = ControlAnswer::decode(&payload)?;
        answer.status?;
        Ok(answer)
    }

    fn ask(
        &mut self,
        kind: FrameKind,
        payload: &[u8],
    ) -> Result<(FrameHeader, Vec<u8>), ClientError> {
        self.send(kind, payload)?;
        self.receive()
    }

    fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), ClientError> {
        self.correlation += 1;
        let frame = small_frame(kind, 0, self.correlation, payload);
        let address = self.address;
        let failed = |source| ClientError::Connection { address, source };
        self.stream.write_all(&frame).map_err(failed)
    }

    fn receive(&mut self) -> Result<(FrameHeader, Vec<u8>), ClientError> {
        let address = self.address;
        let failed = |source| ClientError::Connection { address, source };
        loop {
            if let Some((header, payload)) = self.inbox.next_frame()? {
                if header.kind == FrameKind::Error {
                    return Err(ErrorAnswer::decode(payload)?.0.into());
                }
                return Ok((header, payload.to_vec()));
            }
            if self.inbox.read_from(&mut self.stream).map_err(failed)? == 0 {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

pub(crate) fn expect(header: &FrameHeader, kind: FrameKind) -> Result<(), ClientError> {
    if header.kind == kind {
        return Ok(());
    }
    Err(ClientError::UnexpectedAnswer { kind: format!("{:?}", header.kind) })
}
