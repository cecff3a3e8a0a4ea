//! Metrics: what a router counts, and how it is shown in the text format of Prometheus.
//!
//! Counters hang on what a request has looked up anyway: those of a stream, its shards and its
//! consumers on the catalog's [`Stream`](crate::control::catalog::Stream) ([`stream`]), those of an
//! operation in a table by its place in the model ([`operations`]). Counting is some relaxed
//! additions a request and shard. Who asks for the text has it made from what is there: what a
//! request locks is locked for it no longer than to read a length ([`exposition`], [`streams`],
//! [`router`]).

mod counter;
pub mod exposition;
pub mod operations;
pub mod router;
pub mod serve;
pub mod stream;
mod streams;

pub use counter::{Counter, Distribution, Histogram};
