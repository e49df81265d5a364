//! The records one shard handed to its disk, in order, to compare with what
//! recovery reads.

use wal::Lsn;

use crate::trace::digest;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Written {
    lsn: Lsn,
    len: u32,
    digest: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct History {
    records: Vec<Written>,
}

impl History {
    /// A record was handed to the disk.
    pub(crate) fn push(&mut self, lsn: Lsn, len: u32, bytes: &[u8]) {
        self.records.push(Written { lsn, len, digest: digest(bytes) });
    }

    /// Recovery read this as the record number `n`.
    ///
    /// # Errors
    /// When that is not what stood there in this history.
    pub(crate) fn compare(&self, n: usize, lsn: Lsn, len: u32, bytes: &[u8]) -> Result<(), String> {
        let found = Written { lsn, len, digest: digest(bytes) };
        if self.records.get(n) == Some(&found) {
            return Ok(());
        }
        Err(format!("recovery read a record at {lsn} that is not of this history"))
    }

    /// Recovery read this many records; the rest was lost.
    ///
    /// # Errors
    /// When something lost had been durable.
    pub(crate) fn cut(&mut self, kept: usize, durable: Lsn) -> Result<(), String> {
        if let Some(lost) = self.records.get(kept)
            && lost.lsn + Lsn::from(lost.len) <= durable
        {
            return Err(format!("the durable record at {} was lost", lost.lsn));
        }
        self.records.truncate(kept);
        Ok(())
    }
}
