//! The native client: a pipelined, idempotent [`Producer`], a [`Reader`], a [`Subscriber`], and [`Admin`] for a
//! node's commands. No async runtime: each is driven by the thread that owns it and sleeps in
//! `poll`.
//!
//! The way of a record: [`producer`] finds its shard (`route`), gathers it into a batch
//! (`batcher`) and hands that to its shard's [`lane`], which gives it a sequence; its `link` puts it
//! into a frame for a [`connection`]. `pipeline` holds lanes and links together and knows neither
//! sockets nor clocks.

pub mod admin;
mod batcher;
pub mod connection;
pub mod error;
pub mod lane;
mod link;
pub mod outcome;
mod pipeline;
pub mod producer;
pub mod reader;
mod route;
pub mod subscriber;

pub use admin::Admin;
pub use error::ClientError;
pub use outcome::{Outcome, ProducerError, Written};
pub use producer::{Producer, ProducerConfig};
pub use reader::{Reader, ReaderConfig};
pub use subscriber::{Event, Subscriber, SubscriberConfig};
