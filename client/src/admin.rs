//! A node's commands, asked one at a time: what a controller, a benchmark or a person needs.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use thalweg_wire::control::{
    ControlAnswer, DeleteShard, DescribeRequest, FenceExtent, NodeDescription, OpenExtent,
    SHARD_DESCRIPTION_BYTES, SealExtent, ShardDescription, TrimShard,
};
use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::frame::{ErrorAnswer, FrameHeader, FrameKind, small_frame};
use thalweg_wire::ids::{ShardId, StreamId};
use thalweg_wire::limits::DESCRIBE_SHARDS_MAX;

use crate::connection::{Inbox, connect};
use crate::error::ClientError;

/// Pause before a command is repeated that a node had no room for; it doubles up to the longest.
const REPEAT_AFTER: Duration = Duration::from_millis(5);
const REPEAT_AFTER_MAX: Duration = Duration::from_millis(200);

/// A connection to one core of a node. A command for which the node has no room at the moment is
/// repeated until the time for its answer is over: it does the same once or twice.
pub struct Admin {
    address: SocketAddr,
    timeout: Duration,
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
        Ok(Admin { address, timeout, stream, inbox: Inbox::default(), correlation: 0 })
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

    /// Deletes a shard whose newest extent is sealed.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or a failed connection.
    pub fn delete_shard(&mut self, delete: &DeleteShard) -> Result<ControlAnswer, ClientError> {
        self.command(FrameKind::DeleteShard, &delete.encode())
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
            let mut patience = Patience::new(self.timeout);
            let mut left: Vec<[u8; BYTES]> = group.iter().map(&encode).collect();
            while !left.is_empty() {
                let first = self.correlation + 1;
                for command in &left {
                    self.send(kind, command)?;
                }
                let mut refused = Vec::new();
                for _ in 0..left.len() {
                    // Refusals overtake answers that wait for the disk.
                    let (correlation, answer) = self.receive_control()?;
                    let place = correlation.checked_sub(first).map(|place| place as usize);
                    let command = place.and_then(|place| left.get(place));
                    let command = command.ok_or_else(|| ClientError::UnexpectedAnswer {
                        kind: "an answer to nothing that was asked".into(),
                    })?;
                    match answer.status {
                        Err(refusal) if patience.allows(refusal) => refused.push(*command),
                        status => status?,
                    }
                }
                left = refused;
                if !left.is_empty() {
                    patience.pause();
                }
            }
        }
        Ok(())
    }

    fn command(&mut self, kind: FrameKind, payload: &[u8]) -> Result<ControlAnswer, ClientError> {
        let mut patience = Patience::new(self.timeout);
        loop {
            self.send(kind, payload)?;
            let (_, answer) = self.receive_control()?;
            match answer.status {
                Ok(()) => return Ok(answer),
                Err(refusal) if patience.allows(refusal) => patience.pause(),
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// An answer to a command, and its correlation.
    fn receive_control(&mut self) -> Result<(u64, ControlAnswer), ClientError> {
        let (header, payload) = self.receive()?;
        expect(&header, FrameKind::ControlAnswer)?;
        Ok((header.correlation, ControlAnswer::decode(&payload)?))
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

/// How long a command is repeated.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new(timeout: Duration) -> Patience {
        Patience { until: Instant::now() + timeout, pause: REPEAT_AFTER }
    }

    /// Whether what was refused so may be asked for again.
    fn allows(&self, refusal: Refusal) -> bool {
        refusal.code == ErrorCode::Overloaded && Instant::now() + self.pause < self.until
    }

    fn pause(&mut self) {
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(REPEAT_AFTER_MAX);
    }
}
