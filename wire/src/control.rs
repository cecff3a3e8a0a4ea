//! Commands of a controller to a node, and what a node says of itself.

use crate::codec::{array_at, put, u16_at, u32_at, u64_at};
use crate::error::{Refusal, status_from_number, status_number};
use crate::frame::{FrameError, FrameKind, exact};
use crate::hash_range::{HashKey, HashRange};
use crate::ids::{BootId, DiskId, Epoch, ExtentId, Offset, ShardId, StreamId};
use crate::limits;

/// Bytes of an [`OpenExtent`].
pub const OPEN_EXTENT_BYTES: usize = 192;
/// Bytes of a [`FenceExtent`].
pub const FENCE_EXTENT_BYTES: usize = 32;
/// Bytes of a [`SealExtent`].
pub const SEAL_EXTENT_BYTES: usize = 40;
/// Bytes of a [`TrimShard`].
pub const TRIM_SHARD_BYTES: usize = 24;
/// Bytes of a [`DeleteShard`].
pub const DELETE_SHARD_BYTES: usize = 24;
/// Bytes of a [`ControlAnswer`].
pub const CONTROL_ANSWER_BYTES: usize = 40;
/// Bytes of a [`DescribeRequest`].
pub const DESCRIBE_REQUEST_BYTES: usize = 16;
/// Bytes of a [`ShardDescription`].
pub const SHARD_DESCRIPTION_BYTES: usize = 96;

/// Rate and burst of one token bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens that come back a second.
    pub per_s: u64,
    /// Tokens that the bucket holds.
    pub capacity: u64,
}

/// Write limits of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardLimits {
    /// Partition keys and data.
    pub bytes: Rate,
    /// Records.
    pub records: Rate,
}

impl ShardLimits {
    /// What Kinesis grants a shard.
    pub const KINESIS: ShardLimits = ShardLimits {
        bytes: Rate { per_s: limits::SHARD_BYTES_PER_S, capacity: limits::SHARD_BYTES_CAPACITY },
        records: Rate {
            per_s: limits::SHARD_RECORDS_PER_S,
            capacity: limits::SHARD_RECORDS_CAPACITY,
        },
    };
}

/// Opens an extent: from now on the node appends to the shard under this epoch. Durable before it
/// is answered. Opening the same extent again is answered as the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenExtent {
    /// Shard and epoch.
    pub extent: ExtentId,
    /// Hash keys of the shard.
    pub range: HashRange,
    /// Offset of the extent's first record: the end of the extent before it.
    pub first_offset: Offset,
    /// Second in which the shard was created, for sequence numbers.
    pub shard_created_s: u64,
    /// Write limits; none for raw benchmarks.
    pub limits: Option<ShardLimits>,
    /// Retention class, below [`limits::RETENTION_CLASSES`]: extents of one class share segments.
    pub retention_class: u8,
    /// Copies of each batch, and how many are durable before an ack: (1,1), (2,2) or (3,2).
    pub copies: u8,
    /// See `copies`.
    pub acks: u8,
    /// Disks that hold the extent; unused places are zero. All zero: any disk of this core.
    pub replicas: [DiskId; limits::REPLICAS_MAX],
    /// Generation of the metadata store that sent the command; nodes refuse lower ones.
    pub store_generation: u64,
    /// Whose the shard is: accounts share a node fairly. Zero: its stream is an account by itself.
    pub account: u64,
}

impl OpenExtent {
    /// Opens an extent of one copy, on any disk of the core, without limits.
    #[must_use]
    pub fn alone(extent: ExtentId, range: HashRange, first_offset: Offset) -> OpenExtent {
        OpenExtent {
            extent,
            range,
            first_offset,
            shard_created_s: 0,
            limits: None,
            retention_class: 0,
            copies: 1,
            acks: 1,
            replicas: [DiskId([0; 16]); limits::REPLICAS_MAX],
            store_generation: 0,
            account: 0,
        }
    }

    /// The fixed layout of docs/protocol.md.
    #[must_use]
    pub fn encode(&self) -> [u8; OPEN_EXTENT_BYTES] {
        let mut bytes = [0; OPEN_EXTENT_BYTES];
        put_extent(&mut bytes, self.extent);
        bytes[12] = self.retention_class;
        bytes[13] = self.copies;
        bytes[14] = self.acks;
        bytes[15] = u8::from(self.limits.is_some());
        put(&mut bytes, 24, self.first_offset.0.to_le_bytes());
        put_range(&mut bytes, 32, &self.range);
        put(&mut bytes, 64, self.shard_created_s.to_le_bytes());
        put(&mut bytes, 72, self.store_generation.to_le_bytes());
        if let Some(limits) = &self.limits {
            put(&mut bytes, 80, limits.bytes.per_s.to_le_bytes());
            put(&mut bytes, 88, limits.bytes.capacity.to_le_bytes());
            put(&mut bytes, 96, limits.records.per_s.to_le_bytes());
            put(&mut bytes, 104, limits.records.capacity.to_le_bytes());
        }
        for (place, disk) in self.replicas.iter().enumerate() {
            put(&mut bytes, 112 + place * 16, disk.0);
        }
        put(&mut bytes, 160, self.account.to_le_bytes());
        bytes
    }

    /// Takes a command apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<OpenExtent, FrameError> {
        let open = OpenExtent::decode_recorded(payload)?;
        if open.first_offset.0 > limits::COMMAND_OFFSET_MAX
            || open.extent.epoch.0 > limits::COMMAND_EPOCH_MAX
        {
            let what = "the first offset or the epoch is above 2^62";
            return Err(FrameError::Payload { kind: FrameKind::OpenExtent, what });
        }
        if open.retention_class >= limits::RETENTION_CLASSES {
            let what = "there is no such retention class";
            return Err(FrameError::Payload { kind: FrameKind::OpenExtent, what });
        }
        Ok(open)
    }

    /// Takes a command apart that a node made or carried out: it may have counted on from offset
    /// and epoch of one that it was given.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode_recorded(payload: &[u8]) -> Result<OpenExtent, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::OpenExtent, what };
        exact(payload, OPEN_EXTENT_BYTES, FrameKind::OpenExtent)?;
        let extent = extent_at(payload, FrameKind::OpenExtent)?;
        let range = range_at(payload, 32).ok_or(malformed("the range ends before it starts"))?;
        let rate = |at| Rate { per_s: u64_at(payload, at), capacity: u64_at(payload, at + 8) };
        let limits = match payload[15] {
            0 if payload[80..112] == [0; 32] => None,
            1 => Some(ShardLimits { bytes: rate(80), records: rate(96) }),
            _ => return Err(malformed("limits are neither given nor absent")),
        };
        if limits.is_some_and(|limits| !sane(limits.bytes) || !sane(limits.records)) {
            return Err(malformed("a rate or capacity is zero or above 2^40"));
        }
        let (copies, acks) = (payload[13], payload[14]);
        if !matches!((copies, acks), (1, 1) | (2, 2) | (3, 2)) {
            return Err(malformed("(copies, acks) is one of (1,1), (2,2), (3,2)"));
        }
        if u64_at(payload, 24) > limits::FIRST_OFFSET_MAX || extent.epoch.0 > limits::EPOCH_MAX {
            return Err(malformed("the first offset or the epoch is above 2^63"));
        }
        if payload[168..] != [0; 24] {
            return Err(malformed("reserved bytes are not zero"));
        }
        Ok(OpenExtent {
            extent,
            range,
            first_offset: Offset(u64_at(payload, 24)),
            shard_created_s: u64_at(payload, 64),
            limits,
            retention_class: payload[12],
            copies,
            acks,
            replicas: [112, 128, 144].map(|at| DiskId(array_at(payload, at))),
            store_generation: u64_at(payload, 72),
            account: u64_at(payload, 160),
        })
    }
}

/// Rates beyond this could overflow a bucket's arithmetic.
const RATE_MAX: u64 = 1 << 40;

fn sane(rate: Rate) -> bool {
    (1..=RATE_MAX).contains(&rate.per_s) && (1..=RATE_MAX).contains(&rate.capacity)
}

/// Stops an extent from taking appends and reports its end, once everything accepted before is
/// durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FenceExtent {
    /// Shard and epoch of the extent.
    pub extent: ExtentId,
    /// The recovery that asks; a lower one than the highest seen is refused.
    pub recovery_epoch: Epoch,
}

impl FenceExtent {
    /// Stream, shard, zero, epoch, recovery epoch.
    #[must_use]
    pub fn encode(&self) -> [u8; FENCE_EXTENT_BYTES] {
        let mut bytes = [0; FENCE_EXTENT_BYTES];
        put_extent(&mut bytes, self.extent);
        put(&mut bytes, 24, self.recovery_epoch.0.to_le_bytes());
        bytes
    }

    /// Takes a command apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<FenceExtent, FrameError> {
        exact(payload, FENCE_EXTENT_BYTES, FrameKind::FenceExtent)?;
        let extent = extent_at(payload, FrameKind::FenceExtent)?;
        Ok(FenceExtent { extent, recovery_epoch: Epoch(u64_at(payload, 24)) })
    }
}

/// Ends an extent for good at `end`: anything beyond is hidden.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealExtent {
    /// Shard and epoch of the extent.
    pub extent: ExtentId,
    /// The recovery that asks; a lower one than the highest seen is refused.
    pub recovery_epoch: Epoch,
    /// Offset after the extent's last record.
    pub end: Offset,
}

impl SealExtent {
    /// Stream, shard, zero, epoch, recovery epoch, end.
    #[must_use]
    pub fn encode(&self) -> [u8; SEAL_EXTENT_BYTES] {
        let mut bytes = [0; SEAL_EXTENT_BYTES];
        put_extent(&mut bytes, self.extent);
        put(&mut bytes, 24, self.recovery_epoch.0.to_le_bytes());
        put(&mut bytes, 32, self.end.0.to_le_bytes());
        bytes
    }

    /// Takes a command apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<SealExtent, FrameError> {
        exact(payload, SEAL_EXTENT_BYTES, FrameKind::SealExtent)?;
        let extent = extent_at(payload, FrameKind::SealExtent)?;
        let (recovery_epoch, end) = (Epoch(u64_at(payload, 24)), Offset(u64_at(payload, 32)));
        Ok(SealExtent { extent, recovery_epoch, end })
    }
}

/// Lets go of the records before an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrimShard {
    /// The shard.
    pub shard: ShardId,
    /// First offset to keep.
    pub first_kept: Offset,
}

impl TrimShard {
    /// Stream, shard, zero, offset.
    #[must_use]
    pub fn encode(&self) -> [u8; TRIM_SHARD_BYTES] {
        let mut bytes = [0; TRIM_SHARD_BYTES];
        put_shard(&mut bytes, self.shard);
        put(&mut bytes, 16, self.first_kept.0.to_le_bytes());
        bytes
    }

    /// Takes a command apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<TrimShard, FrameError> {
        exact(payload, TRIM_SHARD_BYTES, FrameKind::TrimShard)?;
        Ok(TrimShard { shard: shard_at(payload), first_kept: Offset(u64_at(payload, 16)) })
    }
}

/// Deletes a shard whose newest extent is sealed: its records and whatever a node knows of it.
/// When it is answered, the node has room for another in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeleteShard {
    /// The shard.
    pub shard: ShardId,
    /// The recovery that asks; a lower one than the highest seen is refused.
    pub recovery_epoch: Epoch,
}

impl DeleteShard {
    /// Stream, shard, zero, recovery epoch.
    #[must_use]
    pub fn encode(&self) -> [u8; DELETE_SHARD_BYTES] {
        let mut bytes = [0; DELETE_SHARD_BYTES];
        put_shard(&mut bytes, self.shard);
        put(&mut bytes, 16, self.recovery_epoch.0.to_le_bytes());
        bytes
    }

    /// Takes a command apart.
    ///
    /// # Errors
    /// When a field is out of its range.
    pub fn decode(payload: &[u8]) -> Result<DeleteShard, FrameError> {
        exact(payload, DELETE_SHARD_BYTES, FrameKind::DeleteShard)?;
        let recovery_epoch = Epoch(u64_at(payload, 16));
        Ok(DeleteShard { shard: shard_at(payload), recovery_epoch })
    }
}

/// What an extent takes and what it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ExtentState {
    /// Takes appends.
    Open = 1,
    /// Takes none; its end may yet be decided by a recovery.
    Fenced = 2,
    /// Ended.
    Sealed = 3,
}

impl ExtentState {
    /// The state with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<ExtentState> {
        match number {
            1 => Some(ExtentState::Open),
            2 => Some(ExtentState::Fenced),
            3 => Some(ExtentState::Sealed),
            _ => None,
        }
    }
}

/// The answer to a command. What it reveals is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlAnswer {
    /// Done, or why not.
    pub status: Result<(), Refusal>,
    /// Epoch of the shard's newest extent on this node.
    pub epoch: Epoch,
    /// Oldest offset kept.
    pub earliest: Offset,
    /// End of the extent that the command named.
    pub end: Offset,
}

impl ControlAnswer {
    /// Status (u16), zero, hint, epoch, earliest, end.
    #[must_use]
    pub fn encode(&self) -> [u8; CONTROL_ANSWER_BYTES] {
        let mut bytes = [0; CONTROL_ANSWER_BYTES];
        let status = status_number(self.status.map_err(|refusal| refusal.code));
        put(&mut bytes, 0, status.to_le_bytes());
        put(&mut bytes, 8, self.status.map_or_else(|refusal| refusal.hint, |()| 0).to_le_bytes());
        put(&mut bytes, 16, self.epoch.0.to_le_bytes());
        put(&mut bytes, 24, self.earliest.0.to_le_bytes());
        put(&mut bytes, 32, self.end.0.to_le_bytes());
        bytes
    }

    /// Takes an answer apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(payload: &[u8]) -> Result<ControlAnswer, FrameError> {
        exact(payload, CONTROL_ANSWER_BYTES, FrameKind::ControlAnswer)?;
        let status = status_from_number(u16_at(payload, 0)).ok_or(FrameError::Payload {
            kind: FrameKind::ControlAnswer,
            what: "unknown status",
        })?;
        let hint = u64_at(payload, 8);
        Ok(ControlAnswer {
            status: status.map_err(|code| Refusal { code, hint }),
            epoch: Epoch(u64_at(payload, 16)),
            earliest: Offset(u64_at(payload, 24)),
            end: Offset(u64_at(payload, 32)),
        })
    }
}

/// Asks for the shards of the core that serves this connection, in the order of their ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescribeRequest {
    /// Only shards from this one on.
    pub from: ShardId,
}

impl DescribeRequest {
    /// Stream, shard, zero.
    #[must_use]
    pub fn encode(&self) -> [u8; DESCRIBE_REQUEST_BYTES] {
        let mut bytes = [0; DESCRIBE_REQUEST_BYTES];
        put_shard(&mut bytes, self.from);
        bytes
    }

    /// Takes a request apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(payload: &[u8]) -> Result<DescribeRequest, FrameError> {
        exact(payload, DESCRIBE_REQUEST_BYTES, FrameKind::Describe)?;
        Ok(DescribeRequest { from: shard_at(payload) })
    }
}

/// A shard as a core knows it: its newest extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardDescription {
    /// Shard and epoch of the newest extent.
    pub extent: ExtentId,
    /// What that extent takes.
    pub state: ExtentState,
    /// Hash keys of the shard.
    pub range: HashRange,
    /// Oldest offset kept.
    pub earliest: Offset,
    /// End of the committed records.
    pub committed: Offset,
    /// Append time of the last committed batch, milliseconds since 1970.
    pub last_append_ms: u64,
}

impl ShardDescription {
    /// Stream, shard, state (u16), zero, epoch, earliest, committed, last append time, range.
    #[must_use]
    pub fn encode(&self) -> [u8; SHARD_DESCRIPTION_BYTES] {
        let mut bytes = [0; SHARD_DESCRIPTION_BYTES];
        put_extent(&mut bytes, self.extent);
        put(&mut bytes, 12, (self.state as u16).to_le_bytes());
        put(&mut bytes, 24, self.earliest.0.to_le_bytes());
        put_range(&mut bytes, 32, &self.range);
        put(&mut bytes, 64, self.committed.0.to_le_bytes());
        put(&mut bytes, 72, self.last_append_ms.to_le_bytes());
        bytes
    }

    /// Takes one description apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8]) -> Result<ShardDescription, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::DescribeAnswer, what };
        exact(bytes, SHARD_DESCRIPTION_BYTES, FrameKind::DescribeAnswer)?;
        Ok(ShardDescription {
            extent: ExtentId { shard: shard_at(bytes), epoch: Epoch(u64_at(bytes, 16)) },
            state: ExtentState::from_number(u16_at(bytes, 12)).ok_or(malformed("no such state"))?,
            range: range_at(bytes, 32).ok_or(malformed("the range ends before it starts"))?,
            earliest: Offset(u64_at(bytes, 24)),
            committed: Offset(u64_at(bytes, 64)),
            last_append_ms: u64_at(bytes, 72),
        })
    }
}

/// What a node says of itself, on whichever of its cores' ports it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeDescription {
    /// Made at the node's start.
    pub boot: BootId,
    /// The core that answers; it counts from zero.
    pub core: u16,
    /// Shards that the core has, those that ended among them.
    pub shards: u32,
    /// New shards that it can open now beside them.
    pub room_shards: u32,
    /// Port of each core; their count is the count of cores.
    pub ports: Vec<u16>,
    /// The node's disks.
    pub disks: Vec<DiskId>,
}

/// Cores and disks that a description has room for.
pub const NODE_CORES_MAX: usize = 1024;
/// See [`NODE_CORES_MAX`].
pub const NODE_DISKS_MAX: usize = 64;
/// Bytes of a description before its ports.
const NODE_FIXED_BYTES: usize = 24;

impl NodeDescription {
    /// Boot (u64), core (u16), cores (u16), disks (u16), zero (u16), shards (u32), room for shards
    /// (u32), ports (u16 each), disk ids.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; NODE_FIXED_BYTES];
        put(&mut bytes, 0, self.boot.0.to_le_bytes());
        put(&mut bytes, 8, self.core.to_le_bytes());
        put(&mut bytes, 10, (self.ports.len() as u16).to_le_bytes());
        put(&mut bytes, 12, (self.disks.len() as u16).to_le_bytes());
        put(&mut bytes, 16, self.shards.to_le_bytes());
        put(&mut bytes, 20, self.room_shards.to_le_bytes());
        self.ports.iter().for_each(|port| bytes.extend(port.to_le_bytes()));
        self.disks.iter().for_each(|disk| bytes.extend(disk.0));
        bytes
    }

    /// Takes a description apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(payload: &[u8]) -> Result<NodeDescription, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::HelloAnswer, what };
        if payload.len() < NODE_FIXED_BYTES {
            return Err(malformed("shorter than its fixed part"));
        }
        let (cores, disks) = (u16_at(payload, 10) as usize, u16_at(payload, 12) as usize);
        if cores == 0 || cores > NODE_CORES_MAX || disks > NODE_DISKS_MAX {
            return Err(malformed("no cores, or too many cores or disks"));
        }
        let (ports_at, disks_at) = (NODE_FIXED_BYTES, NODE_FIXED_BYTES + cores * 2);
        exact(payload, disks_at + disks * 16, FrameKind::HelloAnswer)?;
        Ok(NodeDescription {
            boot: BootId(u64_at(payload, 0)),
            core: u16_at(payload, 8),
            shards: u32_at(payload, 16),
            room_shards: u32_at(payload, 20),
            ports: (0..cores).map(|core| u16_at(payload, ports_at + core * 2)).collect(),
            disks: (0..disks).map(|disk| DiskId(array_at(payload, disks_at + disk * 16))).collect(),
        })
    }
}

fn put_shard(bytes: &mut [u8], shard: ShardId) {
    put(bytes, 0, shard.stream.0.to_le_bytes());
    put(bytes, 8, shard.index.to_le_bytes());
}

fn shard_at(bytes: &[u8]) -> ShardId {
    ShardId { stream: StreamId(u64_at(bytes, 0)), index: u32_at(bytes, 8) }
}

fn put_extent(bytes: &mut [u8], extent: ExtentId) {
    put_shard(bytes, extent.shard);
    put(bytes, 16, extent.epoch.0.to_le_bytes());
}

fn extent_at(bytes: &[u8], kind: FrameKind) -> Result<ExtentId, FrameError> {
    let shard = shard_at(bytes);
    match u64_at(bytes, 16) {
        0 => Err(FrameError::Payload { kind, what: "an extent's epoch is not zero" }),
        epoch => Ok(ExtentId { shard, epoch: Epoch(epoch) }),
    }
}

fn put_range(bytes: &mut [u8], at: usize, range: &HashRange) {
    put(bytes, at, range.start.to_bytes());
    put(bytes, at + 16, range.end.to_bytes());
}

fn range_at(bytes: &[u8], at: usize) -> Option<HashRange> {
    let start = HashKey::from_bytes(array_at(bytes, at));
    let end = HashKey::from_bytes(array_at(bytes, at + 16));
    (start <= end).then_some(HashRange { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    const SHARD: ShardId = ShardId { stream: StreamId(1), index: 2 };
    const EXTENT: ExtentId = ExtentId { shard: SHARD, epoch: Epoch(3) };

    fn open() -> OpenExtent {
        OpenExtent {
            extent: EXTENT,
            range: HashRange { start: HashKey(4), end: HashKey(5) },
            first_offset: Offset(6),
            shard_created_s: 7,
            limits: Some(ShardLimits::KINESIS),
            retention_class: limits::RETENTION_CLASSES - 1,
            copies: 3,
            acks: 2,
            replicas: [DiskId([9; 16]), DiskId([10; 16]), DiskId([11; 16])],
            store_generation: 12,
            account: 0x0a0b,
        }
    }

    #[test]
    fn commands_round_trip() {
        let open = open();
        assert_eq!(OpenExtent::decode(&open.encode()), Ok(open));
        let unlimited = OpenExtent { limits: None, ..open };
        assert_eq!(OpenExtent::decode(&unlimited.encode()), Ok(unlimited));
        let fence = FenceExtent { extent: EXTENT, recovery_epoch: Epoch(4) };
        assert_eq!(FenceExtent::decode(&fence.encode()), Ok(fence));
        let seal = SealExtent { extent: EXTENT, recovery_epoch: Epoch(4), end: Offset(5) };
        assert_eq!(SealExtent::decode(&seal.encode()), Ok(seal));
        let trim = TrimShard { shard: SHARD, first_kept: Offset(9) };
        assert_eq!(TrimShard::decode(&trim.encode()), Ok(trim));
        let delete = DeleteShard { shard: SHARD, recovery_epoch: Epoch(4) };
        assert_eq!(DeleteShard::decode(&delete.encode()), Ok(delete));
        let describe = DescribeRequest { from: SHARD };
        assert_eq!(DescribeRequest::decode(&describe.encode()), Ok(describe));
    }

    #[test]
    fn commands_out_of_range_are_refused() {
        let open = open();
        let above_epoch = Epoch(limits::COMMAND_EPOCH_MAX + 1);
        let zero_epoch = ExtentId { epoch: Epoch(0), ..EXTENT };
        for bad in [
            OpenExtent { copies: 2, acks: 1, ..open },
            OpenExtent { extent: zero_epoch, ..open },
            OpenExtent { first_offset: Offset(limits::COMMAND_OFFSET_MAX + 1), ..open },
            OpenExtent { extent: ExtentId { epoch: above_epoch, ..EXTENT }, ..open },
            OpenExtent { range: HashRange { start: HashKey(5), end: HashKey(4) }, ..open },
            OpenExtent {
                limits: Some(ShardLimits {
                    bytes: Rate { per_s: 0, capacity: 1 },
                    ..ShardLimits::KINESIS
                }),
                ..open
            },
        ] {
            assert!(OpenExtent::decode(&bad.encode()).is_err(), "{bad:?}");
        }
        assert!(OpenExtent::decode(&open.encode()[..191]).is_err());
    }

    /// The last offset stopped the node that stored a record there, the last epoch the node that
    /// counted on from it at its next start.
    #[test]
    fn a_node_can_count_on_from_every_command() {
        let extent = ExtentId { epoch: Epoch(limits::COMMAND_EPOCH_MAX), ..EXTENT };
        let first_offset = Offset(limits::COMMAND_OFFSET_MAX);
        let last = OpenExtent { extent, first_offset, ..open() };
        assert_eq!(OpenExtent::decode(&last.encode()), Ok(last));
        let extent = ExtentId { epoch: Epoch(extent.epoch.0 + 1), ..EXTENT };
        let counted_on = OpenExtent { extent, first_offset: first_offset.after(1), ..last };
        assert!(OpenExtent::decode(&counted_on.encode()).is_err());
        assert_eq!(OpenExtent::decode_recorded(&counted_on.encode()), Ok(counted_on));
        for beyond in [
            OpenExtent { first_offset: Offset(u64::MAX), ..last },
            OpenExtent { extent: ExtentId { epoch: Epoch(u64::MAX), ..EXTENT }, ..last },
        ] {
            assert!(OpenExtent::decode_recorded(&beyond.encode()).is_err());
        }
    }

    #[test]
    fn answers_round_trip() {
        let answer = ControlAnswer {
            status: Err(Refusal::new(ErrorCode::Conflict, 3)),
            epoch: Epoch(1),
            earliest: Offset(2),
            end: Offset(3),
        };
        assert_eq!(ControlAnswer::decode(&answer.encode()), Ok(answer));
        let shard = ShardDescription {
            extent: EXTENT,
            state: ExtentState::Fenced,
            range: HashRange::FULL,
            earliest: Offset(1),
            committed: Offset(2),
            last_append_ms: 3,
        };
        assert_eq!(ShardDescription::decode(&shard.encode()), Ok(shard));
        let node = NodeDescription {
            boot: BootId(1),
            core: 1,
            shards: 5,
            room_shards: 70_000,
            ports: vec![4500, 4501],
            disks: vec![DiskId([3; 16])],
        };
        assert_eq!(node.encode().len(), NODE_FIXED_BYTES + 2 * 2 + 16);
        assert_eq!(NodeDescription::decode(&node.encode()), Ok(node.clone()));
        assert!(NodeDescription::decode(&node.encode()[1..]).is_err());
    }
}
