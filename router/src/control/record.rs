//! What the store has of each stream, shard and consumer: documents of their own, named by keys
//! that sort as they are listed.
//!
//! A stream is its record and those of its shards. What is to become of it stands in its record as
//! an [`Intent`], written in the same transaction that made it visible; the reconciler brings it
//! about, from wherever a crash left it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thalweg_wire::hash_range::{HashKey, HashRange};
use thalweg_wire::ids::{Offset, ShardId, StreamId};
use thalweg_wire::limits::{SHARD_BYTES_PER_S, SHARD_RECORDS_PER_S};
use thiserror::Error;

/// Version of the documents; another is not read.
pub const RECORD_VERSION: u32 = 1;
/// Prefix of everything that is known of streams.
pub const STREAMS_PREFIX: &str = "stream/";
/// Prefix of the settings of accounts.
pub const ACCOUNTS_PREFIX: &str = "account/";

/// A stream's name with what it is unique within.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamName {
    /// Twelve digits.
    pub account_id: String,
    /// As `us-east-1`.
    pub region: String,
    /// 1 to 128 characters of `[a-zA-Z0-9_.-]`.
    pub name: String,
}

impl StreamName {
    /// `arn:aws:kinesis:REGION:ACCOUNT:stream/NAME`.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:kinesis:{}:{}:stream/{}", self.region, self.account_id, self.name)
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn())
    }
}

/// Where a stream is in its life (API model, `StreamStatus`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StreamStatus {
    /// Its shards are being made.
    Creating,
    /// Its records and shards are going.
    Deleting,
    /// It serves, and takes changes.
    Active,
    /// It serves while something changes.
    Updating,
}

impl StreamStatus {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StreamStatus::Creating => "CREATING",
            StreamStatus::Deleting => "DELETING",
            StreamStatus::Active => "ACTIVE",
            StreamStatus::Updating => "UPDATING",
        }
    }
}

/// Who decides how many shards there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StreamMode {
    /// Whoever owns the stream.
    Provisioned,
    /// The service, by what is written.
    OnDemand,
}

impl StreamMode {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StreamMode::Provisioned => "PROVISIONED",
            StreamMode::OnDemand => "ON_DEMAND",
        }
    }
}

/// A shard that is to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewShard {
    /// Its index.
    pub index: u32,
    /// Its hash keys.
    #[serde(with = "range_text")]
    pub range: HashRange,
}

/// One step of a reshard: one or two shards end, one or two begin, in one revision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReshardStep {
    /// Indexes of the shards that end: of a merge the one named first, then the adjacent one.
    pub parents: Vec<u32>,
    /// The shards that begin; together they cover what the parents did.
    pub children: Vec<NewShard>,
}

/// How many shards of equal ranges a stream is to have in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resize {
    /// So many.
    pub target: u32,
    /// So many of them may be open on the way.
    pub open_max: u32,
}

/// What is to become of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Intent {
    /// Its first shards are made: so many, of equal ranges.
    Create {
        /// How many.
        shards: u32,
    },
    /// Some shards end and others begin.
    Reshard {
        /// Made together, in one revision; no shard is in two of them.
        steps: Vec<ReshardStep>,
        /// What then follows, until it is reached.
        #[serde(default)]
        resize: Option<Resize>,
    },
    /// Its settings have changed; it is active again when everybody who serves it knows.
    Settle,
    /// Everything of it goes.
    Delete {
        /// Indexes of shards that a reshard may have opened on nodes and that it did not come to
        /// record.
        #[serde(default)]
        unborn: Vec<u32>,
    },
}

/// How data is kept at rest (API model, `EncryptionType`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Encryption {
    /// As it came.
    #[default]
    None,
    /// Under a key of the key management service.
    Kms {
        /// As the caller named it.
        key_id: String,
    },
}

/// A stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The incarnation: a stream deleted and created again is another.
    pub id: u64,
    /// When it was created, milliseconds since 1970.
    pub created_ms: u64,
    /// Where it is in its life.
    pub status: StreamStatus,
    /// What is to become of it. None of an active stream.
    pub intent: Option<Intent>,
    /// Index of the next shard.
    pub next_shard: u32,
    /// Who decides how many shards there are.
    pub mode: StreamMode,
    /// How long records are kept, 24 to 8,760.
    pub retention_hours: u32,
    /// How data is kept at rest.
    #[serde(default)]
    pub encryption: Encryption,
    /// Shard-level metrics that were asked for, by their names.
    #[serde(default)]
    pub metrics: BTreeSet<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its resource policy, as it came.
    #[serde(default)]
    pub policy: Option<String>,
    /// Largest record with its key, 1,024 to 10,240.
    pub max_record_kib: u32,
    /// Write throughput that it was asked to be ready for.
    #[serde(default)]
    pub warm_mibps: Option<u32>,
    /// Whether records may come without a partition key (`AUTO`).
    #[serde(default)]
    pub distributes: bool,
    /// When each change was made that is limited by the day, milliseconds since 1970: oldest first.
    #[serde(default)]
    pub resized_ms: Vec<u64>,
    /// The same of changes of mode.
    #[serde(default)]
    pub mode_changed_ms: Vec<u64>,
    /// The same of encryption keys.
    #[serde(default)]
    pub key_changed_ms: Vec<u64>,
    /// The same of ends of encryption.
    #[serde(default)]
    pub key_dropped_ms: Vec<u64>,
}

impl StreamRecord {
    /// The incarnation.
    #[must_use]
    pub fn stream_id(&self) -> StreamId {
        StreamId(self.id)
    }

    /// Largest record with its key in bytes.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        self.max_record_kib as usize * 1024
    }
}

/// How a shard ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardEnd {
    /// The offset after its last record.
    pub offset: u64,
    /// When, milliseconds since 1970.
    pub closed_ms: u64,
}

/// A shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Its hash keys.
    #[serde(with = "range_text")]
    pub range: HashRange,
    /// Second in which it was created: above its parents', so that its sequence numbers are.
    pub created_s: u64,
    /// Indexes of its parents: of a merge the one named first, then the adjacent one.
    #[serde(default)]
    pub parents: Vec<u32>,
    /// Its end, once it is closed.
    #[serde(default)]
    pub end: Option<ShardEnd>,
    /// The node that has it.
    pub node: u64,
}

impl ShardRecord {
    /// Whether it takes records.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end.is_none()
    }
}

/// Where a consumer is in its life (API model, `ConsumerStatus`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConsumerStatus {
    /// It is being made known.
    Creating,
    /// It is going.
    Deleting,
    /// It can subscribe.
    Active,
}

impl ConsumerStatus {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConsumerStatus::Creating => "CREATING",
            ConsumerStatus::Deleting => "DELETING",
            ConsumerStatus::Active => "ACTIVE",
        }
    }
}

/// A registered consumer of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConsumerRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// When it was registered, milliseconds since 1970; its ARN has the seconds.
    pub created_ms: u64,
    /// Where it is in its life.
    pub status: ConsumerStatus,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its resource policy, as it came.
    #[serde(default)]
    pub policy: Option<String>,
}

impl ConsumerRecord {
    /// `STREAM-ARN/consumer/NAME:SECONDS`.
    #[must_use]
    pub fn arn(&self, stream: &StreamName, name: &str) -> String {
        format!("{}/consumer/{name}:{}", stream.arn(), self.created_ms / 1000)
    }
}

/// What an account chose for a region.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AccountRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// When the commitment to a minimum of throughput began, milliseconds since 1970.
    #[serde(default)]
    pub committed_ms: Option<u64>,
    /// When it ended, or will.
    #[serde(default)]
    pub commitment_ends_ms: Option<u64>,
}

/// The key of an account's [`AccountRecord`] in a region.
#[must_use]
pub fn account_key(account_id: &str, region: &str) -> Bytes {
    Bytes::from(format!("{ACCOUNTS_PREFIX}{account_id}/{region}/settings"))
}

/// The key that every change puts which uses up a quota of an account in a region: two of them that
/// each were within it, and together are not, cannot both be made.
#[must_use]
pub fn quota_key(account_id: &str, region: &str) -> Bytes {
    Bytes::from(format!("{ACCOUNTS_PREFIX}{account_id}/{region}/quota"))
}

/// A key that the store has, taken apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RecordKey {
    /// A stream.
    Stream(StreamName),
    /// A shard, by its index.
    Shard(StreamName, u32),
    /// A consumer, by its name.
    Consumer(StreamName, String),
}

impl RecordKey {
    /// The key's bytes. Everything of a stream lies together: its record first.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let stream = self.stream();
        let of_stream =
            format!("{STREAMS_PREFIX}{}/{}/{}/", stream.account_id, stream.region, stream.name);
        let key = match self {
            RecordKey::Stream(_) => of_stream,
            RecordKey::Shard(_, index) => format!("{of_stream}shard/{index:010}"),
            RecordKey::Consumer(_, name) => format!("{of_stream}consumer/{name}"),
        };
        Bytes::from(key)
    }

    /// The stream that it is of.
    #[must_use]
    pub fn stream(&self) -> &StreamName {
        match self {
            RecordKey::Stream(stream)
            | RecordKey::Shard(stream, _)
            | RecordKey::Consumer(stream, _) => stream,
        }
    }

    /// Takes a key under [`STREAMS_PREFIX`] apart.
    ///
    /// # Errors
    /// When it is none that this version writes.
    pub fn decode(key: &[u8]) -> Result<RecordKey, RecordError> {
        let unknown = || RecordError::Key { key: String::from_utf8_lossy(key).into_owned() };
        let text = std::str::from_utf8(key).map_err(|_| unknown())?;
        let rest = text.strip_prefix(STREAMS_PREFIX).ok_or_else(unknown)?;
        let mut parts = rest.splitn(4, '/').map(str::to_owned);
        let mut part = || parts.next().ok_or_else(unknown);
        let stream = StreamName { account_id: part()?, region: part()?, name: part()? };
        let rest = part()?;
        if rest.is_empty() {
            return Ok(RecordKey::Stream(stream));
        }
        match rest.split_once('/') {
            Some(("shard", index)) => {
                index.parse().map(|index| RecordKey::Shard(stream, index)).map_err(|_| unknown())
            }
            Some(("consumer", name)) => Ok(RecordKey::Consumer(stream, name.to_owned())),
            _ => Err(unknown()),
        }
    }
}

/// Why something in the store cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RecordError {
    /// A key of no kind that is known.
    #[error("the metadata store has a key {key:?} of another version: use the build that wrote it")]
    Key {
        /// The key.
        key: String,
    },
    /// A document that is none.
    #[error(
        "the record {key:?} in the metadata store cannot be read ({cause}): use the build that wrote it, or restore the store"
    )]
    Document {
        /// Its key.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// A document's bytes.
#[must_use]
pub fn encode_record<R: Serialize>(record: &R) -> Bytes {
    Bytes::from(serde_json::to_vec(record).expect("records have text keys and finite numbers"))
}

/// Takes a document apart.
///
/// # Errors
/// When it is none, or of another version.
pub fn decode_record<R: for<'a> Deserialize<'a>>(
    key: &[u8],
    value: &[u8],
) -> Result<R, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let wrong = |cause: String| RecordError::Document {
        key: String::from_utf8_lossy(key).into_owned(),
        cause,
    };
    let versioned: Versioned =
        serde_json::from_slice(value).map_err(|error| wrong(error.to_string()))?;
    if versioned.version != RECORD_VERSION {
        return Err(wrong(format!("version {}, not {RECORD_VERSION}", versioned.version)));
    }
    serde_json::from_slice(value).map_err(|error| wrong(error.to_string()))
}

/// The API's name of a shard.
#[must_use]
pub fn shard_name(index: u32) -> String {
    format!("shardId-{index:012}")
}

/// Bytes a second that a shard takes, for documents that count in MiB.
pub const SHARD_MIBPS: u64 = SHARD_BYTES_PER_S >> 20;
const _: () = assert!(SHARD_MIBPS == 1 && SHARD_RECORDS_PER_S == 1000);

/// A shard of a stream.
#[must_use]
pub fn shard_id(stream: StreamId, index: u32) -> ShardId {
    ShardId { stream, index }
}

/// The end of a shard, as an offset.
#[must_use]
pub fn end_offset(end: &ShardEnd) -> Offset {
    Offset(end.offset)
}

/// Ranges as two decimal numbers: JSON has no numbers of 128 bits.
mod range_text {
    use super::{HashKey, HashRange};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(range: &HashRange, to: S) -> Result<S::Ok, S::Error> {
        (range.start.0.to_string(), range.end.0.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<HashRange, D::Error> {
        let (first, last) = <(String, String)>::deserialize(from)?;
        let key = |text: &str| text.parse().map(HashKey).map_err(D::Error::custom);
        let range = HashRange { start: key(&first)?, end: key(&last)? };
        if range.start > range.end {
            return Err(D::Error::custom("a range ends before it begins"));
        }
        Ok(range)
    }
}
