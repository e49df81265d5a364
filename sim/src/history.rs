//! The records one shard handed to its disk, in order: to compare with what
//! recovery reads, and to know what all of them say.

use wal::Lsn;
use wal::commit::COMMIT_BYTES;

/// The records in the bytes of a commit at this position, each with its own.
pub(crate) fn records_of(lsn: Lsn, commit: &[u8]) -> impl Iterator<Item = (Lsn, &[u8])> {
    // How long the records are stands in the commit record itself.
    let used = u32::from_le_bytes(commit[20..24].try_into().expect("four bytes")) as usize;
    let mut at = COMMIT_BYTES;
    std::iter::from_fn(move || {
        let bytes = commit.get(at..used).filter(|rest| !rest.is_empty())?;
        let len = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
        let start = lsn + at as Lsn;
        at += len;
        Some((start, &bytes[..len]))
    })
}

struct Written {
    lsn: Lsn,
    bytes: Vec<u8>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct History {
    records: Vec<Written>,
    /// What crashes took: after how many records, and the records.
    lost: Vec<(usize, Vec<Written>)>,
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
    /// A commit that a crash tore may become whole with the torn write of the
    /// next life, where both have a sector in common: inside of the same long
    /// body, say. It follows the same records, and neither was acknowledged. Both
    /// lives may have begun with the same ones, where the clock was set back.
    ///
    /// # Errors
    /// When that is not what stood there in this history, or might have.
    pub(crate) fn compare(
        &mut self,
        n: usize,
        lsn: Lsn,
        bytes: &[u8],
        durable: Lsn,
    ) -> Result<(), String> {
        let is_it = |record: &Written| record.lsn == lsn && record.bytes == bytes;
        if self.records.get(n).is_some_and(is_it) {
            for (after, lost) in &mut self.lost {
                if *after == n && lost.len() > 1 && is_it(&lost[0]) {
                    lost.remove(0);
                    *after += 1;
                }
            }
            return Ok(());
        }
        let revived = self.lost.iter().position(|(after, lost)| *after == n && is_it(&lost[0]));
        match revived {
            Some(at) if lsn >= durable => {
                let other = self.records.split_off(n);
                let (_, revived) = std::mem::replace(&mut self.lost[at], (n, other));
                self.lost.retain(|(after, lost)| *after <= n && !lost.is_empty());
                self.records.extend(revived);
                Ok(())
            }
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
        let lost = self.records.split_off(kept);
        self.lost.retain(|(after, _)| *after <= kept);
        if !lost.is_empty() {
            self.lost.push((kept, lost));
        }
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
