//! What travels and what rests: batches, frames, checksums, identifiers, hash ranges, sequence
//! numbers, limits and error codes.
//!
//! Everything here is pure: no I/O, no clocks, no threads. All integers on wire and disk are
//! little-endian and sized; `docs/protocol.md` and `docs/format.md` describe every byte.

pub mod batch;
pub mod build;
pub mod checksum;
pub mod codec;
pub mod control;
pub mod error;
pub mod fetch;
pub mod frame;
pub mod hash_range;
pub mod ids;
pub mod limits;
pub mod produce;
pub mod sequence_number;
pub mod subscribe;
