//! The native client: a pipelined, idempotent [`Producer`], a [`Reader`], and [`Admin`] for a
//! node's commands. No async runtime: each is driven by the thread that owns it and sleeps in
//! `poll`.

pub mod admin;
pub mod connection;
pub mod error;
pub mod lane;
pub mod producer;
pub mod reader;

pub use admin::Admin;
pub use error::ClientError;
pub use producer::{Outcome, Producer, ProducerConfig, ProducerError, Written};
pub use reader::{Reader, ReaderConfig};
