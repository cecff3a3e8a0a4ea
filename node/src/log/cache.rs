//! The tail of a log in memory: what was written last is read from where it was written from.

use std::collections::VecDeque;

use thalweg_wire::ids::Lsn;

use crate::io::BufferId;

/// A written part of the log and the buffer that still has its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    start: Lsn,
    end: Lsn,
    buffer: BufferId,
    bytes: usize,
}

/// Parts in the order of their positions; the oldest leaves first. The cache holds one reference
/// of each buffer.
#[derive(Debug, Default)]
pub struct TailCache {
    parts: VecDeque<Part>,
    bytes: usize,
}

impl TailCache {
    /// Takes over a reference to the buffer of a durable part that follows all others.
    pub fn push(&mut self, start: Lsn, end: Lsn, buffer: BufferId, bytes: usize) {
        debug_assert!(self.parts.back().is_none_or(|last| last.end <= start));
        self.parts.push_back(Part { start, end, buffer, bytes });
        self.bytes += bytes;
    }

    /// The buffer that holds position `lsn`, and where in it.
    #[must_use]
    pub fn find(&self, lsn: Lsn) -> Option<(BufferId, usize)> {
        let place = self.parts.partition_point(|part| part.end <= lsn);
        let part = self.parts.get(place).filter(|part| part.start <= lsn)?;
        Some((part.buffer, (lsn.0 - part.start.0) as usize))
    }

    /// Lets go of the oldest part; the caller releases the reference.
    pub fn evict(&mut self) -> Option<BufferId> {
        let part = self.parts.pop_front()?;
        self.bytes -= part.bytes;
        Some(part.buffer)
    }

    /// Bytes of buffers held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_found_until_they_are_evicted() {
        let mut cache = TailCache::default();
        cache.push(Lsn(0), Lsn(4096), BufferId(1), 4096);
        cache.push(Lsn(4096), Lsn(12288), BufferId(2), 8192);
        cache.push(Lsn(65536), Lsn(69632), BufferId(3), 4096);
        assert_eq!(cache.find(Lsn(64)), Some((BufferId(1), 64)));
        assert_eq!(cache.find(Lsn(4096)), Some((BufferId(2), 0)));
        assert_eq!(cache.find(Lsn(20000)), None, "between segments");
        assert_eq!(cache.find(Lsn(69631)), Some((BufferId(3), 4095)));
        assert_eq!(cache.find(Lsn(69632)), None);
        assert_eq!((cache.evict(), cache.bytes()), (Some(BufferId(1)), 12288));
        assert_eq!(cache.find(Lsn(64)), None);
    }
}
