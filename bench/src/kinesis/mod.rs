//! The workloads through the Kinesis API, against any server of it.
//!
//! [`settings`] says what to run, [`connection`] carries signed requests ([`sign`],
//! [`credentials`]), [`encode`] writes their bodies and [`scan`] reads the answers. [`control`]
//! makes streams and removes them, [`put`] writes on a schedule, [`read`] and [`subscribe`] read,
//! [`ledger`] holds what was read against what was acknowledged, [`run`] is the frame around them,
//! [`outcome`] what came of it. A file for each workload brings these together.
//!
//! The generator often shares its processors with the server it drives, so it does per record what
//! the API asks for and nothing else: a body is written once, into a buffer that is used again, and
//! an answer is read where it lies.

pub mod alarm;
pub mod burst;
pub mod catchup;
pub mod connection;
pub mod control;
pub mod credentials;
pub mod encode;
pub mod latency;
pub mod ledger;
pub mod million;
pub mod outcome;
pub mod put;
pub mod read;
pub mod run;
pub mod scan;
pub mod settings;
pub mod sign;
pub mod streams;
pub mod subscribe;
