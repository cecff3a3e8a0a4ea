//! The log: where batches rest. One log belongs to one disk and is served by one core.
//!
//! [`format`] defines the bytes, [`extent`] what a log remembers of its extents, [`index`] and
//! [`footer`] find batches, [`writer`] makes them durable in groups, [`cache`] keeps the tail in
//! memory, [`segments`] holds them together. [`retention`] gives space back, [`forward`] and [`merge`]
//! copy what stays behind, [`archive`] keeps records of extents out of the snapshots that [`roll`]
//! writes, [`scrub`] checks what rests, [`recovery`] reads a log after a crash.

pub mod archive;
pub mod cache;
pub mod extent;
pub mod footer;
pub mod format;
pub mod forward;
pub mod index;
pub mod merge;
pub mod recovery;
pub mod retention;
pub mod roll;
mod scan;
pub mod scrub;
pub mod search;
pub mod segments;
pub mod stored;
pub mod writer;
