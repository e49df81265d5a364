//! The disk transport: writes of the log, reads back. What is written, and why, is not known here.
//!
//! A write is durable when it completes: either the kernel is told so with the write itself
//! (`RWF_DSYNC`, one journal-free command on a preallocated file) or an fdatasync is linked behind
//! it, for file systems without.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use crate::buf::{Area, READ_BYTES, ReadBuf};
use crate::conn::NONE;
use crate::event::Event;
use crate::hands::Hands;

/// How a write becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// The write itself is synchronous (`RWF_DSYNC`).
    Dsync,
    /// The write, then an fdatasync linked to it. A short or failed write skips the fdatasync.
    ThenFdatasync,
}

/// All read buffers are with the caller or in flight; try again after a `release`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoBuffer;

/// The most one read may ask for, in bytes.
pub const READ_BYTES_MAX: u32 = READ_BYTES as u32;

/// The operations in flight.
#[derive(Debug, Default)]
pub(crate) struct DiskOps {
    entries: Vec<DiskOp>,
    free: Vec<u32>,
    /// Writes whose memory the kernel still reads. It belongs to the caller.
    pub(crate) writing: usize,
}

#[derive(Debug)]
struct DiskOp {
    tag: u64,
    /// Completions that are still to come.
    left: u8,
    /// Bytes asked for.
    len: u32,
    /// Read buffer, or `NONE`.
    buffer: u32,
    /// Results so far, as the kernel gives them.
    transferred: i32,
    synced: i32,
}

impl DiskOps {
    fn insert(&mut self, op: DiskOp) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = op;
                slot
            }
            None => {
                self.entries.push(op);
                (self.entries.len() - 1) as u32
            }
        }
    }

    fn remove(&mut self, slot: u32) -> &DiskOp {
        self.free.push(slot);
        &self.entries[slot as usize]
    }
}

impl DiskOp {
    /// What became of a write.
    fn written(&self) -> io::Result<u32> {
        let bytes = checked(self.transferred)?;
        // After a short write the sync was skipped, which says nothing new.
        if bytes == self.len {
            checked(self.synced)?;
        }
        Ok(bytes)
    }
}

fn checked(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl Hands {
    /// Queues a write; it goes to the kernel with the next flush and ends with `Event::Written`.
    ///
    /// # Safety
    /// `ptr..ptr + len` must be readable, stay valid and stay unmodified until the `Written` event
    /// with this tag was reaped, or until these hands were dropped. `fd` must stay open as long.
    ///
    /// Dropping waits for writes in flight, so that the memory may be freed behind it. A disk that
    /// does not answer for some ten seconds would make that a lie, and what the kernel then writes
    /// would be whatever the memory holds by that time: the process is aborted instead. To end in
    /// order with a disk that may hang, reap all writes before dropping. The hands must not be
    /// leaked with writes in flight unless their memory is, too.
    pub unsafe fn write(
        &mut self,
        tag: u64,
        fd: RawFd,
        ptr: *const u8,
        len: u32,
        offset: u64,
        mode: WriteMode,
    ) {
        let slot = self.disk.insert(DiskOp {
            tag,
            left: match mode {
                WriteMode::Dsync => 1,
                WriteMode::ThenFdatasync => 2,
            },
            len,
            buffer: NONE,
            transferred: 0,
            synced: 0,
        });
        // SAFETY: the caller promises exactly what an area needs.
        let area = unsafe { Area::foreign(ptr, len) };
        self.disk.writing += 1;
        self.ring.write(fd, &area, offset, mode, slot);
    }

    /// Queues a read into a pooled, page-aligned buffer; it goes to the kernel with the next flush
    /// and ends with `Event::Read`. `fd` must stay open until then. For files opened with
    /// `O_DIRECT`, `offset` and `len` must be multiples of the block size.
    ///
    /// # Errors
    /// [`NoBuffer`] when all of the few buffers are taken.
    ///
    /// # Panics
    /// If `len` is more than [`READ_BYTES_MAX`].
    pub fn read(&mut self, tag: u64, fd: RawFd, offset: u64, len: u32) -> Result<(), NoBuffer> {
        assert!(len <= READ_BYTES_MAX, "a read larger than its buffer");
        let (buffer, area) = self.buffers.reads.lend(len).ok_or(NoBuffer)?;
        let slot =
            self.disk.insert(DiskOp { tag, left: 1, len, buffer, transferred: 0, synced: 0 });
        self.ring.read(fd, &area, offset, slot);
        Ok(())
    }

    /// The bytes that a read brought.
    pub fn read_bytes(&self, buf: &ReadBuf) -> &[u8] {
        self.buffers.reads.bytes(buf)
    }

    /// Gives a read buffer back.
    pub fn release(&mut self, buf: ReadBuf) {
        self.buffers.reads.release(buf.index());
    }

    pub(crate) fn on_write(&mut self, slot: u32, result: i32) {
        self.disk.writing -= 1;
        self.disk.entries[slot as usize].transferred = result;
        self.on_written_part(slot);
    }

    pub(crate) fn on_sync(&mut self, slot: u32, result: i32) {
        self.disk.entries[slot as usize].synced = result;
        self.on_written_part(slot);
    }

    fn on_written_part(&mut self, slot: u32) {
        let op = &mut self.disk.entries[slot as usize];
        op.left -= 1;
        if op.left == 0 {
            let op = self.disk.remove(slot);
            let (tag, result) = (op.tag, op.written());
            self.pending.push(Event::Written { tag, result });
        }
    }

    pub(crate) fn on_read(&mut self, slot: u32, result: i32) {
        let op = self.disk.remove(slot);
        let (tag, buffer) = (op.tag, op.buffer);
        let result = checked(result);
        let len = *result.as_ref().unwrap_or(&0);
        let buf = self.buffers.reads.returned(buffer, len);
        let result = match result {
            Ok(len) => Ok((buf, len)),
            Err(error) => {
                self.release(buf);
                Err(error)
            }
        };
        self.pending.push(Event::Read { tag, result });
    }
}
