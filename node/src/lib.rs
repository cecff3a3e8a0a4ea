//! The storage node: cores that take batches from sockets, a log that makes them durable in
//! groups, and the seam through which both reach ring or simulator.

pub mod background;
pub mod config;
pub mod core;
pub mod counters;
pub mod disk;
pub mod io;
pub mod log;
pub mod metrics;
pub mod start;
mod thread;

pub use config::NodeConfig;
pub use counters::Counters;
pub use metrics::NodeMetrics;
pub use start::{Node, StartError};
