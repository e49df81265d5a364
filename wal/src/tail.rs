//! The newest part of the log in memory: a circular buffer addressed by
//! `lsn % bytes`.
//!
//! It knows nothing about records. No range that is asked for may straddle a
//! multiple of its size, which the log guarantees by padding; so every range is
//! one slice, and every write to disk is contiguous in memory.

use crate::{BLOCK, Lsn};

/// Memory aligned to [`BLOCK`], as direct I/O wants it.
pub(crate) struct Tail {
    /// One block more than used, so that an aligned start can be chosen in safe
    /// code. Never grown, so the alignment stays.
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Tail {
    pub(crate) fn new(bytes: usize) -> Tail {
        let mut memory = vec![0; bytes + BLOCK];
        // Every page is touched now: no append meets a page fault later, and
        // the memory that a server shows after its start is what it takes.
        for page in std::hint::black_box(&mut memory[..]).chunks_mut(BLOCK) {
            page[0] = 0;
        }
        let start = memory.as_ptr().align_offset(BLOCK);
        assert!(start < BLOCK, "a byte pointer can always be aligned");
        Tail { memory, start, bytes }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&self, lsn: Lsn, len: usize) -> &[u8] {
        let at = self.place(lsn, len);
        &self.memory[at..at + len]
    }

    pub(crate) fn get_mut(&mut self, lsn: Lsn, len: usize) -> &mut [u8] {
        let at = self.place(lsn, len);
        &mut self.memory[at..at + len]
    }

    fn place(&self, lsn: Lsn, len: usize) -> usize {
        let at = (lsn % self.bytes as u64) as usize;
        assert!(at + len <= self.bytes, "nothing straddles the end of the tail");
        self.start + at
    }
}
