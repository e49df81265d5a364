//! The records one shard handed to its disk, in order: to compare with what
//! recovery reads, and to know what all of them say.

use wal::Lsn;

struct Written {
    lsn: Lsn,
    bytes: Vec<u8>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct History {
    records: Vec<Written>,
}

impl History {
    /// A record was handed to the disk.
    pub(crate) fn push(&mut self, lsn: Lsn, bytes: &[u8]) {
        self.records.push(Written { lsn, bytes: bytes.to_vec() });
    }

    /// The number of the first record at or behind this position.
    pub(crate) fn first_from(&self, lsn: Lsn) -> usize {
        self.records.partition_point(|record| record.lsn < lsn)
    }

    /// Recovery read this as the record number `n`.
    ///
    /// # Errors
    /// When that is not what stood there in this history.
    pub(crate) fn compare(&self, n: usize, lsn: Lsn, bytes: &[u8]) -> Result<(), String> {
        match self.records.get(n) {
            Some(record) if record.lsn == lsn && record.bytes == bytes => Ok(()),
            _ => Err(format!("recovery read a record at {lsn} that is not of this history")),
        }
    }

    /// Recovery read up to this record; the rest was lost.
    ///
    /// # Errors
    /// When something lost had been durable.
    pub(crate) fn cut(&mut self, kept: usize, durable: Lsn) -> Result<(), String> {
        if let Some(lost) = self.records.get(kept)
            && lost.lsn + lost.bytes.len() as Lsn <= durable
        {
            return Err(format!("the durable record at {} was lost", lost.lsn));
        }
        self.records.truncate(kept);
        Ok(())
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Every record that is left, with the position behind it.
    pub(crate) fn records(&self) -> impl Iterator<Item = (Lsn, &[u8])> {
        self.records.iter().map(|it| (it.lsn + it.bytes.len() as Lsn, &it.bytes[..]))
    }
}
