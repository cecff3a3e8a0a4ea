//! The API of Amazon Kinesis Data Streams.
//!
//! A request's way: [`server`] receives it, [`sigv4`] finds out who sent it, [`codec`] or
//! [`records`] reads it, `validate` holds it against the [`model`], [`policy`] says if it may be
//! done, and [`service`] hands it to the file of its operation; [`answers`] and [`event_stream`]
//! write what carries records back.

mod accounts;
pub mod answers;
mod call_rates;
pub mod caller;
mod cbor;
pub mod check;
pub mod codec;
#[cfg(test)]
mod constraints_test;
mod consumers;
pub mod credentials;
pub mod error;
pub mod event_stream;
mod get;
mod iterators;
pub mod model;
mod policies;
pub mod policy;
pub mod principal;
mod put;
mod quota;
mod read_limits;
mod reading;
pub mod records;
mod reshard;
mod resource;
pub mod server;
pub mod service;
mod settings;
mod shard_view;
mod shards;
mod signing_key;
pub mod sigv4;
mod straight;
mod streams;
mod subscribe;
mod subscriptions;
mod tags;
pub mod token;
pub mod validate;

pub use put::PutRecordsPath;
