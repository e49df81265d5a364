//! Memory that the kernel reads and writes: receive arena, send buffers, incomplete frames, disk
//! reads.
//!
//! The rule that everything here serves: **while an operation is in flight its memory is neither
//! moved, freed nor touched.** A pool hands memory to the kernel as an [`Area`] and marks it as
//! lent; until it is told that the operation ended, every other access to it fails an assertion.
//! When the hands go away with operations still in flight, the pools are leaked, never freed.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// The alignment that direct disk I/O wants, and room for the rest of a frame.
pub(crate) const PAGE: usize = 4096;
/// Size of one arena slice: sixteen messages of 1 KiB come with one receive. Only the pages that
/// are written to become memory.
const SLICE: usize = 16 << 10;
/// From one slice to the next. Most receives fill only the first lines of one; at a power of two
/// from each other these would all compete for the same few places of the caches.
const STRIDE: usize = SLICE + 5 * 64;

/// Memory lent to the kernel for one operation.
#[derive(Debug)]
pub(crate) struct Area {
    ptr: *mut u8,
    len: u32,
}

impl Area {
    /// Memory of somebody outside this crate.
    ///
    /// # Safety
    /// `ptr..ptr + len` must be readable, stay where it is and stay unmodified until the
    /// operation it is lent to has completed.
    pub(crate) unsafe fn foreign(ptr: *const u8, len: u32) -> Area {
        Area { ptr: ptr.cast_mut(), len }
    }

    pub(crate) fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }
}

/// Everything that is lent to the kernel, in one box so that it can be leaked as one.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) arena: Arena,
    pub(crate) outgoing: SendPool,
    pub(crate) partials: PartialPool,
    pub(crate) reads: ReadPool,
    pub(crate) wake: Block,
}

impl Buffers {
    pub(crate) fn new(arena_slices: usize, partial_bytes_max_total: usize) -> Buffers {
        Buffers {
            arena: Arena::new(arena_slices),
            outgoing: SendPool::default(),
            partials: PartialPool::new(partial_bytes_max_total),
            reads: ReadPool::default(),
            wake: Block::new(PAGE),
        }
    }
}

/// One page-aligned, zeroed allocation.
#[derive(Debug)]
pub(crate) struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl Block {
    fn new(bytes: usize) -> Block {
        assert!(bytes > 0);
        let layout = Layout::from_size_align(bytes, PAGE).expect("a sane buffer size");
        // SAFETY: the layout is not of size zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Block { ptr, layout }
    }

    /// The first `len` bytes, for the kernel.
    pub(crate) fn lend(&mut self, offset: usize, len: usize) -> Area {
        assert!(offset + len <= self.layout.size());
        // SAFETY: within the allocation, just checked.
        let ptr = unsafe { self.ptr.as_ptr().add(offset) };
        Area { ptr, len: len as u32 }
    }

    /// Must not be called for bytes that are lent; the pools above see to it.
    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= self.layout.size());
        // SAFETY: within the allocation, zeroed at the start, and not lent to the kernel.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().add(offset), len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

/// Slices that received bytes land in, borrowed for one turn.
#[derive(Debug)]
pub(crate) struct Arena {
    block: Block,
    free: Vec<u32>,
    lent: Box<[bool]>,
}

impl Arena {
    fn new(slices: usize) -> Arena {
        assert!(slices > 0 && slices < u32::MAX as usize);
        Arena {
            block: Block::new(slices * STRIDE),
            free: (0..slices as u32).rev().collect(),
            lent: vec![false; slices].into(),
        }
    }

    /// A free slice and its memory, lent to the kernel.
    pub(crate) fn lend(&mut self) -> Option<(u32, Area)> {
        let slice = self.free.pop()?;
        self.lent[slice as usize] = true;
        Some((slice, self.block.lend(slice as usize * STRIDE, SLICE)))
    }

    /// The operation on it ended: its bytes may be looked at.
    pub(crate) fn returned(&mut self, slice: u32) {
        assert!(self.lent[slice as usize]);
        self.lent[slice as usize] = false;
    }

    pub(crate) fn bytes(&self, slice: u32, start: u16, end: u16) -> &[u8] {
        assert!(!self.lent[slice as usize], "the kernel is writing here");
        assert!(start <= end && end as usize <= SLICE);
        let from = slice as usize * STRIDE + start as usize;
        self.block.bytes(from, (end - start) as usize)
    }

    pub(crate) fn release(&mut self, slice: u32) {
        assert!(!self.lent[slice as usize]);
        self.free.push(slice);
    }

    pub(crate) fn used(&self) -> usize {
        self.lent.len() - self.free.len()
    }
}

/// Free buffers kept for reuse, bounded by the memory they hold.
#[derive(Debug)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
    /// Larger ones are given back to the allocator.
    one_max: usize,
}

impl Spare {
    fn new(bytes_max: usize, one_max: usize) -> Spare {
        Spare { buffers: Vec::new(), bytes: 0, bytes_max, one_max }
    }

    fn take(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity == 0 || capacity > self.one_max || self.bytes + capacity > self.bytes_max {
            return;
        }
        buffer.clear();
        self.bytes += capacity;
        self.buffers.push(buffer);
    }
}

/// What one connection has to send: the part in flight, and what gathers behind it.
/// On one cache line, which is asked for ahead of time.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Outgoing {
    flying: Vec<u8>,
    /// Bytes of `flying` that the kernel has taken.
    sent: usize,
    waiting: Vec<u8>,
    lent: bool,
}

const _: () = assert!(size_of::<Outgoing>() == 64, "one line");

/// Send buffers. A connection holds one only while it has something to send.
#[derive(Debug)]
pub(crate) struct SendPool {
    entries: Vec<Outgoing>,
    free: Vec<u32>,
    spare: Spare,
}

impl Default for SendPool {
    fn default() -> SendPool {
        SendPool { entries: Vec::new(), free: Vec::new(), spare: Spare::new(16 << 20, 64 << 10) }
    }
}

impl SendPool {
    pub(crate) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(Outgoing::default());
            (self.entries.len() - 1) as u32
        })
    }

    /// Appends to what waits; never touches what is in flight.
    pub(crate) fn append(&mut self, index: u32, bytes: &[u8]) {
        let entry = &mut self.entries[index as usize];
        if entry.waiting.capacity() == 0 {
            entry.waiting = self.spare.take();
        }
        entry.waiting.extend_from_slice(bytes);
    }

    /// Where the state of a buffer is; nowhere for an index that there is none of.
    pub(crate) fn place(&self, index: u32) -> *const u8 {
        self.entries.get(index as usize).map_or(std::ptr::null(), std::ptr::from_ref).cast()
    }

    pub(crate) fn unsent(&self, index: u32) -> usize {
        let entry = &self.entries[index as usize];
        entry.flying.len() - entry.sent + entry.waiting.len()
    }

    /// Lends everything that may go out next to the kernel. `None`: nothing is left.
    pub(crate) fn lend(&mut self, index: u32) -> Option<Area> {
        let entry = &mut self.entries[index as usize];
        assert!(!entry.lent, "one send in flight per connection");
        if entry.sent == entry.flying.len() {
            entry.flying.clear();
            entry.sent = 0;
            std::mem::swap(&mut entry.flying, &mut entry.waiting);
        }
        let rest = &mut entry.flying[entry.sent..];
        if rest.is_empty() {
            return None;
        }
        entry.lent = true;
        Some(Area { ptr: rest.as_mut_ptr(), len: rest.len().min(i32::MAX as usize) as u32 })
    }

    /// The operation ended, the kernel took `sent` bytes.
    pub(crate) fn returned(&mut self, index: u32, sent: usize) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.lent && entry.sent + sent <= entry.flying.len());
        entry.lent = false;
        entry.sent += sent;
    }

    /// Takes what is unsent along, in order.
    pub(crate) fn unsent_bytes(&self, index: u32) -> Vec<u8> {
        let entry = &self.entries[index as usize];
        assert!(!entry.lent);
        [&entry.flying[entry.sent..], &entry.waiting[..]].concat()
    }

    pub(crate) fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        assert!(!entry.lent, "the kernel is reading here");
        self.spare.keep(std::mem::take(&mut entry.flying));
        self.spare.keep(std::mem::take(&mut entry.waiting));
        entry.sent = 0;
        self.free.push(index);
    }

    pub(crate) fn used(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

/// The pool of incomplete frames has reached its bound.
#[derive(Debug)]
pub(crate) struct Exhausted;

/// Received bytes that do not make a whole frame yet.
#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Consumed bytes at the front.
    start: usize,
    lent: bool,
}

/// Buffers of incomplete frames. A connection holds one only while it has such bytes.
#[derive(Debug)]
pub(crate) struct PartialPool {
    entries: Vec<Partial>,
    free: Vec<u32>,
    spare: Spare,
    /// Memory of the buffers in use.
    bytes: usize,
    bytes_max: usize,
}

/// The most one connection may leave unconsumed: twice the largest frame any protocol here has.
pub(crate) const PARTIAL_BYTES_MAX: usize = 2 << 20;

/// An incomplete frame that holds no more than this is small: a login, a short message, or what
/// came with one receive.
const SMALL_BYTES_MAX: usize = 16 << 10;

/// The most that is received into an incomplete frame at once.
const RECEIVE_BYTES_MAX: usize = 32 << 10;

impl PartialPool {
    fn new(bytes_max: usize) -> PartialPool {
        PartialPool {
            entries: Vec::new(),
            free: Vec::new(),
            spare: Spare::new(4 << 20, 64 << 10),
            bytes: 0,
            bytes_max,
        }
    }

    pub(crate) fn take(&mut self) -> u32 {
        let bytes = self.spare.take();
        self.bytes += bytes.capacity();
        let entry = Partial { bytes, start: 0, lent: false };
        match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// Makes room for `more` bytes behind those that are there.
    fn reserve(&mut self, index: u32, more: usize) -> Result<(), Exhausted> {
        let entry = &mut self.entries[index as usize];
        assert!(!entry.lent, "the kernel is writing here");
        if entry.start > 0 && entry.bytes.capacity() - entry.bytes.len() < more {
            entry.bytes.drain(..entry.start);
            entry.start = 0;
        }
        let before = entry.bytes.capacity();
        if before - entry.bytes.len() >= more {
            return Ok(());
        }
        let needed = entry.bytes.len() + more;
        // Doubling keeps the copying linear; the bound is checked before anything is allocated.
        let capacity = needed.max(before * 2).max(512);
        if needed > PARTIAL_BYTES_MAX
            || self.bytes - before + capacity > bound(self.bytes_max, capacity)
        {
            return Err(Exhausted);
        }
        entry.bytes.reserve_exact(capacity - entry.bytes.len());
        self.bytes = self.bytes - before + entry.bytes.capacity();
        Ok(())
    }

    pub(crate) fn append(&mut self, index: u32, bytes: &[u8]) -> Result<(), Exhausted> {
        self.reserve(index, bytes.len())?;
        self.entries[index as usize].bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Lends room behind the bytes that are there to the kernel, so that the rest of a large frame
    /// needs no copy.
    pub(crate) fn lend(&mut self, index: u32) -> Result<Area, Exhausted> {
        self.reserve(index, PAGE)?;
        let entry = &mut self.entries[index as usize];
        entry.lent = true;
        let room = entry.bytes.spare_capacity_mut();
        Ok(Area { ptr: room.as_mut_ptr().cast(), len: room.len().min(RECEIVE_BYTES_MAX) as u32 })
    }

    /// The operation ended, the kernel wrote `received` bytes.
    pub(crate) fn returned(&mut self, index: u32, received: usize) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.lent && entry.bytes.capacity() - entry.bytes.len() >= received);
        entry.lent = false;
        // SAFETY: the capacity was checked above and the kernel has filled these bytes.
        unsafe { entry.bytes.set_len(entry.bytes.len() + received) };
    }

    /// Unconsumed bytes. They stay put while room behind them is lent.
    pub(crate) fn bytes(&self, index: u32) -> &[u8] {
        let entry = &self.entries[index as usize];
        &entry.bytes[entry.start..]
    }

    pub(crate) fn consume(&mut self, index: u32, bytes: usize) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.start + bytes <= entry.bytes.len());
        entry.start += bytes;
    }

    pub(crate) fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        assert!(!entry.lent, "the kernel is writing here");
        self.bytes -= entry.bytes.capacity();
        self.spare.keep(std::mem::take(&mut entry.bytes));
        self.free.push(index);
    }

    /// What large frames may hold.
    pub(crate) fn bytes_max(&self) -> usize {
        bound(self.bytes_max, SMALL_BYTES_MAX + 1)
    }

    /// Memory of the buffers in use.
    pub(crate) fn held(&self) -> usize {
        self.bytes
    }
}

/// How much all may hold when one wants `capacity`. The last eighth is for small ones: whoever
/// leaves halves of large packets behind must not keep others from logging in.
fn bound(bytes_max: usize, capacity: usize) -> usize {
    if capacity <= SMALL_BYTES_MAX { bytes_max } else { bytes_max / 8 * 7 }
}

/// Size of one disk read buffer: the longest log record (256 KiB and its header) and two blocks of
/// alignment.
pub(crate) const READ_BYTES: usize = 320 << 10;

/// How many of them there may be.
const READ_BUFFERS_MAX: usize = 8;

/// A read buffer that belongs to the caller until it is given back with
/// [`Hands::release`](crate::Hands::release).
#[derive(Debug)]
#[must_use = "give it back with Hands::release, there are only a few"]
pub struct ReadBuf {
    index: u32,
    len: u32,
}

impl ReadBuf {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

#[derive(Debug)]
struct ReadBlock {
    block: Block,
    lent: bool,
}

/// Page-aligned buffers for reading the disk, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct ReadPool {
    blocks: Vec<ReadBlock>,
    free: Vec<u32>,
}

impl ReadPool {
    /// A free buffer and its first `len` bytes, lent to the kernel.
    pub(crate) fn lend(&mut self, len: u32) -> Option<(u32, Area)> {
        if self.free.is_empty() && self.blocks.len() < READ_BUFFERS_MAX {
            self.free.push(self.blocks.len() as u32);
            self.blocks.push(ReadBlock { block: Block::new(READ_BYTES), lent: false });
        }
        let index = self.free.pop()?;
        let entry = &mut self.blocks[index as usize];
        entry.lent = true;
        Some((index, entry.block.lend(0, len as usize)))
    }

    /// The operation ended, the kernel wrote `len` bytes.
    pub(crate) fn returned(&mut self, index: u32, len: u32) -> ReadBuf {
        let entry = &mut self.blocks[index as usize];
        assert!(entry.lent && len as usize <= READ_BYTES);
        entry.lent = false;
        ReadBuf { index, len }
    }

    pub(crate) fn bytes(&self, buf: &ReadBuf) -> &[u8] {
        let entry = &self.blocks[buf.index as usize];
        assert!(!entry.lent, "the kernel is writing here");
        entry.block.bytes(0, buf.len as usize)
    }

    pub(crate) fn release(&mut self, index: u32) {
        assert!(!self.blocks[index as usize].lent);
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_lends_every_slice_once() {
        let mut arena = Arena::new(3);
        let slices: Vec<u32> = (0..3).map(|_| arena.lend().unwrap().0).collect();
        assert!(arena.lend().is_none());
        assert_eq!(arena.used(), 3);
        arena.returned(slices[1]);
        arena.release(slices[1]);
        assert_eq!(arena.lend().unwrap().0, slices[1]);
    }

    #[test]
    fn slices_do_not_overlap_and_begin_on_lines_of_their_own() {
        let mut arena = Arena::new(3);
        let mut places: Vec<usize> =
            (0..3).map(|_| arena.lend().unwrap().1.ptr() as usize).collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[1] - pair[0] >= SLICE);
            assert_ne!(pair[0] % PAGE, pair[1] % PAGE);
        }
    }

    #[test]
    #[should_panic(expected = "the kernel is writing here")]
    fn a_lent_slice_cannot_be_looked_at() {
        let mut arena = Arena::new(1);
        let (slice, _area) = arena.lend().unwrap();
        arena.bytes(slice, 0, 1);
    }

    #[test]
    fn sends_keep_their_order_across_partial_completions() {
        let mut pool = SendPool::default();
        let index = pool.take();
        pool.append(index, b"hello ");
        assert_eq!(pool.lend(index).unwrap().len(), 6);
        pool.append(index, b"world");
        pool.returned(index, 2);
        assert_eq!(pool.unsent(index), 9);
        assert_eq!(pool.unsent_bytes(index), b"llo world");
        assert_eq!(pool.lend(index).unwrap().len(), 4, "the rest of the first");
        pool.returned(index, 4);
        assert_eq!(pool.lend(index).unwrap().len(), 5);
        pool.returned(index, 5);
        assert!(pool.lend(index).is_none());
        pool.release(index);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn partial_frames_grow_within_their_bound() {
        let mut pool = PartialPool::new(8192);
        let index = pool.take();
        pool.append(index, &[1; 3000]).unwrap();
        pool.consume(index, 2999);
        pool.append(index, &[2; 3000]).unwrap();
        assert_eq!(pool.bytes(index).len(), 3001);
        assert_eq!(pool.bytes(index)[..2], [1, 2]);
        assert!(pool.append(index, &[3; 8000]).is_err());
        assert_eq!(pool.bytes(index).len(), 3001, "refused, not damaged");
        pool.release(index);
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn large_partial_frames_leave_room_for_small_ones() {
        let mut pool = PartialPool::new(1 << 20);
        let large: Vec<u32> = (0..20).map(|_| pool.take()).collect();
        let taken = large.iter().filter(|index| pool.append(**index, &[1; 100 << 10]).is_ok());
        assert_eq!(taken.count(), 8);
        let small: Vec<u32> = (0..20).map(|_| pool.take()).collect();
        assert!(small.iter().all(|index| pool.append(*index, &[2; 4096]).is_ok()));
        assert!(pool.held() <= 1 << 20);
        large.into_iter().chain(small).for_each(|index| pool.release(index));
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn read_buffers_are_few_and_aligned() {
        let mut pool = ReadPool::default();
        let lent: Vec<_> = std::iter::from_fn(|| pool.lend(4096)).collect();
        assert_eq!(lent.len(), READ_BUFFERS_MAX);
        assert!(lent.iter().all(|(_, area)| area.ptr().addr() % PAGE == 0));
        let buf = pool.returned(lent[0].0, 7);
        assert_eq!(pool.bytes(&buf), [0; 7]);
        pool.release(buf.index());
        assert!(pool.lend(1).is_some());
    }
}
