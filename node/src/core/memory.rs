//! Who gets a buffer: what is taken already comes before what comes from outside, and that before
//! what is read. Tails in memory and what was read give way to all of them.

use super::machine::Core;
use crate::io::{BufferId, Io};
use crate::log::segments::{AppendRefusal, Log};

/// Memory is short when so long after it was first refused it still is.
const SHORTAGE_US: u64 = 1_000_000;

/// Memory that was refused.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    since_us: Option<u64>,
    /// Whether it was since the last tick.
    again: bool,
}

impl Shortage {
    /// Whether memory was refused of late.
    pub(super) fn is_there(&self) -> bool {
        self.since_us.is_some()
    }

    /// Asked once a tick: whether memory is refused all the time.
    pub(super) fn lasts(&mut self, now_us: u64) -> bool {
        if !std::mem::take(&mut self.again) {
            self.since_us = None;
        }
        self.since_us.is_some_and(|since_us| now_us >= since_us + SHORTAGE_US)
    }
}

impl<I: Io> Core<I> {
    /// A buffer at the expense of the tails in memory and of what was read.
    pub(super) fn allocate(&mut self, bytes: usize) -> Option<BufferId> {
        loop {
            if let Some(buffer) = self.io.memory_mut().allocate(bytes) {
                return Some(buffer);
            }
            if !self.let_go() {
                return None;
            }
        }
    }

    /// Lets go of the oldest part of the largest tail in memory, or of what was read longest ago;
    /// false when there is neither.
    fn let_go(&mut self) -> bool {
        let largest = self.logs.iter_mut().max_by_key(|log| log.cache().bytes());
        let Some(buffer) = largest.and_then(|log| log.cache_mut().evict()) else {
            return self.forget_oldest_read();
        };
        self.io.memory_mut().release(buffer);
        true
    }

    /// Appends to a log, or makes room for it, at the expense of all tails in memory: a log by
    /// itself lets go of its own only.
    pub(super) fn with_log<T>(
        &mut self,
        log: u32,
        mut append: impl FnMut(&mut Log, &mut I) -> Result<T, AppendRefusal>,
    ) -> Result<T, AppendRefusal> {
        loop {
            match append(&mut self.logs[log as usize], &mut self.io) {
                Err(AppendRefusal::NoMemory) if self.let_go() => {}
                result => {
                    if matches!(result, Err(AppendRefusal::NoMemory)) {
                        self.memory_is_short();
                    }
                    return result;
                }
            }
        }
    }

    /// Somebody did not get the memory that it needs.
    pub(super) fn memory_is_short(&mut self) {
        self.shortage.since_us.get_or_insert(self.time.now_us);
        self.shortage.again = true;
        self.watching = true;
    }

    /// A buffer for bytes from outside: it leaves enough memory to finish what was taken.
    pub(super) fn allocate_for_receiving(&mut self, bytes: usize) -> Option<BufferId> {
        self.allocate_keeping(self.io.memory().total_bytes() / 8, bytes)
    }

    /// A buffer for bytes from disk: it leaves a quarter more, so that readers who take their time
    /// do not keep batches from being received.
    pub(super) fn allocate_for_reading(&mut self, bytes: usize) -> Option<BufferId> {
        self.allocate_keeping(self.io.memory().total_bytes() / 8 * 3, bytes)
    }

    fn allocate_keeping(&mut self, reserve: usize, bytes: usize) -> Option<BufferId> {
        let memory = self.io.memory();
        let tails: usize = self.logs.iter().map(|log| log.cache().bytes()).sum();
        let spare = memory.free_bytes() + tails + self.reads.kept_bytes();
        let enough = spare >= bytes + reserve;
        let buffer = enough.then(|| self.allocate(bytes)).flatten();
        if buffer.is_none() {
            self.memory_is_short();
        }
        buffer
    }
}
