//! Reading through the API: iterators, GetRecords, consumers, SubscribeToShard.

mod consumers;
mod get;
mod stream;
mod subscribe;
#[path = "../support/mod.rs"]
mod support;
