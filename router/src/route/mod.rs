//! The way to the nodes: links that carry frames, a writer that appends, a fetcher that reads.
//!
//! A record's way: [`ShardRecords`] lays out what one call has for one shard; [`Writer`] hands it
//! to the shard's lane (`shard_lane`), which gathers it with what others brought meanwhile
//! (`bundle`) and sends it, once and in order, over the [`NodeLink`] to the core that its route
//! names (`in_flight`, `connection`, `outgoing`, `incoming`). [`Fetcher`] reads over links of its own, so that answers of
//! megabytes do not stand before acknowledgements.

mod bundle;
mod connection;
mod fetcher;
mod in_flight;
mod incoming;
mod link;
mod links;
mod outgoing;
mod payload;
mod routes;
mod shard_lane;
mod shard_records;
mod subscription;
mod writer;

pub use fetcher::{FetchError, Fetched, FetchedRecord, Fetcher, MEMORY_WAIT, ShardSubscription};
pub use link::{Answer, Failure, LinkCondition, LinkError, LinkLimits, NodeLink, Request};
pub use links::NodeLinks;
pub use payload::{AnswerMemory, Payload};
pub use routes::{Route, RouteFuture, Routes, Stale};
pub use shard_records::{RecordSizeError, ShardRecords};
pub use subscription::Subscription;
pub use writer::{AppendError, Appended, Part, Position, Writer, WriterConfig};
