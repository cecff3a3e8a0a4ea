//! Streams, shards, extents: what is recorded of them, and who brings it about.
//!
//! A change is one transaction of the [`store`]: state and intent. The [`catalog`] shows what the
//! store has; the [`reconciler`] brings intents to their end by commands to [`nodes`].

pub mod catalog;
pub mod nodes;
pub mod reconciler;
pub mod record;
pub mod reshard;
pub mod retention;
pub mod room;
pub mod store;
pub mod timer;
pub mod usage;

use std::sync::Arc;

/// The wall clock, milliseconds since 1970.
pub type NowMs = Arc<dyn Fn() -> u64 + Send + Sync>;

/// This machine's.
#[must_use]
pub fn system_clock() -> NowMs {
    Arc::new(|| {
        use timer::Clock;
        timer::SystemClock.wall_us() / 1000
    })
}
