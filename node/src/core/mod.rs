//! A core: the state machine that owns shards, connections and logs, and never blocks.
//!
//! The way of a record: [`connection`] receives a frame, [`ingest`] takes its batches apart,
//! [`admission`] decides and assigns by a shard's limits ([`throttle`]), the log makes them durable, [`acknowledge`] answers;
//! [`fairness`] keeps accounts from filling the way for others, who waits does so in [`turns`].
//! [`fetch`] reads back by way of [`reads`], [`subscribe`] pushes, [`control`] obeys a controller,
//! [`logs`] chooses where it lies, `memory` who gets buffers, [`upkeep`] gives space back and has what rests checked,
//! [`machine`] turns it all.

pub mod acknowledge;
pub mod admission;
pub mod bucket;
pub mod connection;
pub mod control;
pub mod fairness;
pub mod fetch;
pub mod ingest;
pub mod logs;
pub mod machine;
mod memory;
pub mod message;
pub mod output;
pub mod reads;
pub mod shard;
pub mod subscribe;
pub mod throttle;
pub mod turns;
pub mod upkeep;
