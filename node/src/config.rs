//! What a node is told, as the user says it ([`NodeConfig`]) and checked ([`Settings`]).

use std::net::SocketAddr;
use std::path::PathBuf;

/// Bytes of a block: writes, reads and segments are multiples of it. It is the largest alignment
/// that direct I/O asks for on the file systems and devices served.
pub const BLOCK_BYTES: u64 = 4096;

/// A node's configuration as the user says it. Every value has a default; `Default` is what
/// `thalweg node` runs with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Data directories, one a disk. Each is formatted when it is empty.
    pub data_dirs: Vec<PathBuf>,
    /// Address to listen on. Core n listens on `port + n`; with port 0 each core has a port of
    /// its own from the system.
    pub listen: SocketAddr,
    /// Cores to run, 1 to 1024; 0 for one a processor.
    pub cores: usize,
    /// Memory budget of the node in bytes, 64 MiB a core at least: buffers, caches, indexes.
    pub memory_bytes: u64,
    /// Bytes of a log segment, 16 MiB to 4 GiB, a multiple of 1 MiB.
    pub segment_bytes: u64,
    /// Bytes of zero-filled segments to have ready before serving, over all disks.
    pub prefill_bytes: u64,
    /// Whether the node is its own controller: at start it seals what was open and opens it anew
    /// under the next epoch. Without, a controller does so.
    pub standalone: bool,
    /// Seconds that a node which is its own controller keeps the records of each retention class,
    /// the last for all that follow; 0 for ever, 365 days at most. Space is given back by whole
    /// segments, so that some are kept for longer.
    pub retention_s: Vec<u64>,
    /// Seconds for which a segment has been nearly empty when what is kept of it is copied forward.
    pub merge_after_s: u64,
    /// Seconds in which everything stored is read and checked once; 0 for never.
    pub scrub_period_s: u64,
    /// Bytes that a scrub reads of each log a second, at most.
    pub scrub_bytes_per_s: u64,
    /// Bytes a second below which a frame's sender is cut off; frames under 64 KiB have a second.
    pub min_frame_bytes_per_s: u64,
    /// Connections a core serves, 1 to 65,536; more are refused.
    pub connections_per_core_max: usize,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        NodeConfig {
            data_dirs: vec![PathBuf::from("thalweg-data")],
            listen: SocketAddr::from(([127, 0, 0, 1], 4568)),
            cores: 0,
            memory_bytes: 1 << 30,
            segment_bytes: 256 << 20,
            prefill_bytes: 1 << 30,
            standalone: true,
            retention_s: vec![0],
            merge_after_s: 60,
            scrub_period_s: 7 * 24 * 3600,
            scrub_bytes_per_s: 32 << 20,
            min_frame_bytes_per_s: 64 << 10,
            connections_per_core_max: 4096,
        }
    }
}
