//! All memory that I/O touches: one mapping a core, cut into buffers of whole pages.
//!
//! Pages come from a buddy allocator that gives back the tail of a block it does not need, so a
//! buffer wastes less than a page. Freed blocks are reused last in, first out: the memory most
//! likely to be in the processor's cache. Buffers are counted references: a batch that rests in
//! the tail cache and is on its way to three readers is one buffer.
//!
//! **Invariant:** while the kernel may write to a buffer (a receive or a read is in flight) the
//! buffer is on loan and its bytes cannot be borrowed here; that is asserted, not assumed.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a page of the arena: also the block of direct I/O.
pub const PAGE_BYTES: usize = crate::config::BLOCK_BYTES as usize;
/// Pages of the largest buffer, 16 MiB: a batch of the largest size with room to spare.
const ORDER_MAX: u32 = 12;
const NONE: u32 = u32::MAX;
const NOT_FREE: u8 = u8::MAX;

/// Names a buffer for as long as it has references.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct BufferId(pub(crate) u32);

/// A part of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The buffer.
    pub buffer: BufferId,
    /// First byte.
    pub start: u32,
    /// Count of bytes.
    pub bytes: u32,
}

#[derive(Clone, Copy)]
struct Buffer {
    page: u32,
    pages: u32,
    references: u32,
    on_loan: bool,
}

/// See the module.
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    pages: Pages,
    buffers: Vec<Buffer>,
    unused_ids: Vec<u32>,
}

// SAFETY: the mapping belongs to the arena alone; a core makes its arena and moves it once into
// its thread.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps `bytes`, rounded up to 16 MiB, without touching them.
    ///
    /// # Errors
    /// When the system has no such mapping to give.
    pub fn new(bytes: usize) -> Result<Arena, rustix::io::Errno> {
        let unit = PAGE_BYTES << ORDER_MAX;
        let bytes = bytes.max(1).div_ceil(unit) * unit;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )?
        };
        // Large pages make pinning and copying cheaper; a system without them still works.
        // SAFETY: the range is the mapping just made, and the advice does not change its content.
        let _ = unsafe { rustix::mm::madvise(base, bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast()).expect("a mapping is not at address zero");
        let pages = Pages::new((bytes / PAGE_BYTES) as u32);
        Ok(Arena { base, bytes, pages, buffers: Vec::new(), unused_ids: Vec::new() })
    }

    /// A buffer of `bytes`, rounded up to pages, with one reference; `None` when the arena has no
    /// such room. Its content is what was there before.
    pub fn allocate(&mut self, bytes: usize) -> Option<BufferId> {
        let pages = u32::try_from(bytes.max(1).div_ceil(PAGE_BYTES)).ok()?;
        let page = self.pages.take(pages)?;
        let buffer = Buffer { page, pages, references: 1, on_loan: false };
        if let Some(id) = self.unused_ids.pop() {
            self.buffers[id as usize] = buffer;
            return Some(BufferId(id));
        }
        self.buffers.push(buffer);
        Some(BufferId(self.buffers.len() as u32 - 1))
    }

    /// One reference more.
    pub fn retain(&mut self, id: BufferId) {
        let buffer = self.entry_mut(id);
        buffer.references += 1;
    }

    /// One reference less; the last one frees the buffer.
    pub fn release(&mut self, id: BufferId) {
        let buffer = self.entry_mut(id);
        buffer.references -= 1;
        if buffer.references == 0 {
            assert!(!buffer.on_loan, "a buffer is freed while the kernel may write to it");
            let (page, pages) = (buffer.page, buffer.pages);
            self.pages.give(page, pages);
            self.unused_ids.push(id.0);
        }
    }

    /// Gives the buffer's pages from byte `bytes` on back.
    pub fn shrink(&mut self, id: BufferId, bytes: usize) {
        let keep = bytes.max(1).div_ceil(PAGE_BYTES) as u32;
        let buffer = self.entry_mut(id);
        assert!(keep <= buffer.pages && !buffer.on_loan);
        let (from, count) = (buffer.page + keep, buffer.pages - keep);
        buffer.pages = keep;
        self.pages.give(from, count);
    }

    /// Bytes that the buffer has.
    #[must_use]
    pub fn size(&self, id: BufferId) -> usize {
        self.entry(id).pages as usize * PAGE_BYTES
    }

    /// Bytes that no buffer has.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.pages.free as usize * PAGE_BYTES
    }

    /// Bytes of the arena.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.bytes
    }

    /// The buffer's bytes.
    ///
    /// # Panics
    /// While the buffer is on loan to the kernel.
    #[must_use]
    pub fn bytes(&self, id: BufferId) -> &[u8] {
        let (address, length) = self.place(id);
        // SAFETY: the range lies within the mapping and belongs to this buffer alone (the
        // allocator hands out each page once); nothing writes to it while `self` is borrowed,
        // since the buffer is not on loan.
        unsafe { std::slice::from_raw_parts(address, length) }
    }

    /// The buffer's bytes, to be changed.
    ///
    /// # Panics
    /// While the buffer is on loan to the kernel.
    #[must_use]
    pub fn bytes_mut(&mut self, id: BufferId) -> &mut [u8] {
        let (address, length) = self.place(id);
        // SAFETY: as in `bytes`; `self` is borrowed exclusively, so that no other slice exists.
        unsafe { std::slice::from_raw_parts_mut(address, length) }
    }

    /// Two different buffers, one to read and one to change.
    ///
    /// # Panics
    /// When they are the same, or one is on loan.
    #[must_use]
    pub fn pair(&mut self, from: BufferId, to: BufferId) -> (&[u8], &mut [u8]) {
        assert_ne!(from, to, "a buffer cannot be borrowed twice");
        let ((from, from_bytes), (to, to_bytes)) = (self.place(from), self.place(to));
        // SAFETY: as in `bytes_mut`; different buffers have different pages.
        unsafe {
            let from = std::slice::from_raw_parts(from.cast_const(), from_bytes);
            (from, std::slice::from_raw_parts_mut(to, to_bytes))
        }
    }

    /// The bytes of a piece.
    #[must_use]
    pub fn piece(&self, piece: Piece) -> &[u8] {
        let start = piece.start as usize;
        &self.bytes(piece.buffer)[start..start + piece.bytes as usize]
    }

    /// Address of the mapping, to register it with the kernel.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Address of a piece, for an operation that the kernel reads from.
    pub(crate) fn address(&self, piece: Piece) -> *const u8 {
        self.address_of(piece).cast_const()
    }

    /// Address of a piece, for an operation that the kernel writes through. Until the buffer is
    /// [`Arena::returned`] its bytes cannot be borrowed.
    pub(crate) fn loan(&mut self, piece: Piece) -> *mut u8 {
        let buffer = self.entry_mut(piece.buffer);
        assert!(!buffer.on_loan, "two operations would write to one buffer");
        buffer.on_loan = true;
        self.address_of(piece)
    }

    /// The kernel has finished with the buffer.
    pub(crate) fn returned(&mut self, id: BufferId) {
        self.entry_mut(id).on_loan = false;
    }

    /// Takes all buffers back, when there is no kernel any more that could write to them.
    pub(crate) fn end_loans(&mut self) {
        self.buffers.iter_mut().for_each(|buffer| buffer.on_loan = false);
    }

    fn address_of(&self, piece: Piece) -> *mut u8 {
        let buffer = self.entry(piece.buffer);
        let end = piece.start as usize + piece.bytes as usize;
        assert!(end <= buffer.pages as usize * PAGE_BYTES, "a piece reaches beyond its buffer");
        let offset = buffer.page as usize * PAGE_BYTES + piece.start as usize;
        // SAFETY: the offset lies within the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn place(&self, id: BufferId) -> (*mut u8, usize) {
        let buffer = self.entry(id);
        assert!(!buffer.on_loan, "the kernel may be writing to the buffer");
        // SAFETY: the buffer's pages lie within the mapping.
        let address = unsafe { self.base.as_ptr().add(buffer.page as usize * PAGE_BYTES) };
        (address, buffer.pages as usize * PAGE_BYTES)
    }

    fn entry(&self, id: BufferId) -> &Buffer {
        let buffer = &self.buffers[id.0 as usize];
        assert!(buffer.references > 0, "the buffer was freed");
        buffer
    }

    fn entry_mut(&mut self, id: BufferId) -> &mut Buffer {
        let buffer = &mut self.buffers[id.0 as usize];
        assert!(buffer.references > 0, "the buffer was freed");
        buffer
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.buffers.iter().any(|buffer| buffer.references > 0 && buffer.on_loan) {
            // The kernel may still write here: the address range must never be given to others.
            return;
        }
        // SAFETY: the mapping is the arena's own and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The buddy allocator: free blocks of 2^order pages in one list an order.
struct Pages {
    /// Order of the free block that begins at a page, else [`NOT_FREE`].
    order: Vec<u8>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heads: [u32; ORDER_MAX as usize + 1],
    free: u32,
}

impl Pages {
    fn new(count: u32) -> Pages {
        let mut pages = Pages {
            order: vec![NOT_FREE; count as usize],
            next: vec![NONE; count as usize],
            previous: vec![NONE; count as usize],
            heads: [NONE; ORDER_MAX as usize + 1],
            free: 0,
        };
        // Given back from the top, so that the lowest block is taken first.
        for block in (0..count >> ORDER_MAX).rev() {
            pages.give(block << ORDER_MAX, 1 << ORDER_MAX);
        }
        pages
    }

    fn take(&mut self, count: u32) -> Option<u32> {
        let wanted = count.next_power_of_two().trailing_zeros();
        let order = (wanted..=ORDER_MAX).find(|order| self.heads[*order as usize] != NONE)?;
        let page = self.heads[order as usize];
        self.unlink(page, order);
        self.free -= 1 << order;
        self.give(page + count, (1 << order) - count);
        Some(page)
    }

    /// Frees any run of pages: as the fewest aligned blocks, each merged with its buddies.
    fn give(&mut self, mut page: u32, mut count: u32) {
        self.free += count;
        while count > 0 {
            let order = page.trailing_zeros().min(count.ilog2()).min(ORDER_MAX);
            self.give_block(page, order);
            page += 1 << order;
            count -= 1 << order;
        }
    }

    fn give_block(&mut self, mut page: u32, mut order: u32) {
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            if u32::from(self.order[buddy as usize]) != order {
                break;
            }
            self.unlink(buddy, order);
            page &= !(1 << order);
            order += 1;
        }
        let head = self.heads[order as usize];
        if head != NONE {
            self.previous[head as usize] = page;
        }
        self.order[page as usize] = order as u8;
        self.next[page as usize] = head;
        self.previous[page as usize] = NONE;
        self.heads[order as usize] = page;
    }

    fn unlink(&mut self, page: u32, order: u32) {
        let (previous, next) = (self.previous[page as usize], self.next[page as usize]);
        if previous == NONE {
            self.heads[order as usize] = next;
        } else {
            self.next[previous as usize] = next;
        }
        if next != NONE {
            self.previous[next as usize] = previous;
        }
        self.order[page as usize] = NOT_FREE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_memory_can_be_had_and_comes_back() {
        let mut arena = Arena::new(32 << 20).unwrap();
        let total = arena.free_bytes();
        assert_eq!(total, 32 << 20);
        let large = arena.allocate(16 << 20).unwrap();
        let small = arena.allocate(1).unwrap();
        assert_eq!((arena.size(large), arena.size(small)), (16 << 20, PAGE_BYTES));
        assert!(arena.allocate(16 << 20).is_none());
        arena.release(small);
        assert!(arena.allocate(16 << 20).is_some());
        assert_eq!(arena.free_bytes(), 0);
        arena.release(large);
        assert_eq!(arena.free_bytes(), 16 << 20);
    }

    #[test]
    fn a_buffer_lives_as_long_as_its_references() {
        let mut arena = Arena::new(1).unwrap();
        let buffer = arena.allocate(5000).unwrap();
        arena.bytes_mut(buffer)[4999] = 7;
        arena.retain(buffer);
        arena.release(buffer);
        assert_eq!(arena.piece(Piece { buffer, start: 4999, bytes: 1 }), [7]);
        arena.shrink(buffer, 1);
        assert_eq!(arena.size(buffer), PAGE_BYTES);
        arena.release(buffer);
        assert_eq!(arena.free_bytes(), arena.total_bytes());
    }

    #[test]
    #[should_panic(expected = "may be writing")]
    fn a_buffer_on_loan_cannot_be_read() {
        let mut arena = Arena::new(1).unwrap();
        let buffer = arena.allocate(1).unwrap();
        arena.loan(Piece { buffer, start: 0, bytes: 1 });
        let _ = arena.bytes(buffer);
    }

    proptest! {
        #[test]
        fn buffers_never_overlap(sizes in prop::collection::vec((1_usize..3_000_000, any::<bool>()), 1..200)) {
            let mut arena = Arena::new(48 << 20).unwrap();
            let mut held: Vec<BufferId> = Vec::new();
            for (bytes, free_one) in sizes {
                if let Some(id) = arena.allocate(bytes) {
                    let tag = id.0.to_le_bytes();
                    let content = arena.bytes_mut(id);
                    prop_assert!(content.len() >= bytes && content.len() < bytes + PAGE_BYTES);
                    let last = content.len() - 4;
                    content[..4].copy_from_slice(&tag);
                    content[last..].copy_from_slice(&tag);
                    held.push(id);
                }
                if free_one && !held.is_empty() {
                    let id = held.remove(bytes % held.len());
                    arena.release(id);
                }
                for id in &held {
                    let content = arena.bytes(*id);
                    prop_assert_eq!(&content[..4], &id.0.to_le_bytes());
                    prop_assert_eq!(&content[content.len() - 4..], &id.0.to_le_bytes());
                }
            }
            held.into_iter().for_each(|id| arena.release(id));
            prop_assert_eq!(arena.free_bytes(), arena.total_bytes());
            // Everything merged again: the largest buffers can be had.
            prop_assert!(arena.allocate(16 << 20).is_some());
        }
    }
}
