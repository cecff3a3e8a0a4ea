//! The Kinesis front door: parses, authenticates, authorises, throttles, routes and builds batches.

pub mod config;
pub mod control;
pub mod kinesis;
pub mod metrics;
pub mod route;
pub mod start;

pub use config::{Access, RouterConfig, RouterConfigError, TlsFiles};
pub use start::{Router, RouterError};
