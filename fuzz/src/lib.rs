//! What the fuzz targets do with an input, a module a target. See README.md.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rkyv::util::AlignedVec;
use thalweg_node::io::sim::SimRandom;

pub mod batch;
pub mod body;
pub mod event;
pub mod files;
pub mod footer;
pub mod frame;
pub mod history;
pub mod policy;
pub mod repair;
pub mod segment;
pub mod signature;
pub mod token;

/// A copy that is aligned as a batch is in memory.
#[must_use]
pub fn aligned(bytes: &[u8]) -> AlignedVec<16> {
    let mut copy = AlignedVec::with_capacity(bytes.len());
    copy.extend_from_slice(bytes);
    copy
}

/// The value of a future that never waits.
///
/// # Panics
/// When it does.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("files in memory never let wait"),
    }
}

/// An input that begins with this mode and goes on with choices by chance, 64 times the seed.
fn choices(mode: u8, seed: u64) -> Vec<u8> {
    let mut random = SimRandom::new(seed);
    let choices = (0..64 * seed).map(|_| random.below(256) as u8);
    std::iter::once(mode).chain(choices).collect()
}
