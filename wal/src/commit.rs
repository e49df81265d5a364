//! The record that every write to disk begins with.
//!
//! It says how long the write is, so that recovery takes all of it or nothing;
//! and how far the log was known to be durable when it was sealed, so that
//! recovery can tell a torn tail (never acknowledged, may be cut) from damage
//! (acknowledged once, must stop the boot).

use crate::record::{HEADER_BYTES, Header, KIND_COMMIT, Malformed, Put, Take, check, stamp};
use crate::{BLOCK, Lsn};

/// Bytes of a commit record, header included.
pub const COMMIT_BYTES: usize = HEADER_BYTES + 32;

/// What stands at the beginning of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Length of the whole write in bytes, a multiple of [`BLOCK`].
    pub commit_bytes: u32,
    /// Length of what is not padding, this record included. Without it, a write
    /// that lost its last sectors would look complete where zeroes stand.
    pub record_bytes: u32,
    /// The durable end of the log at the moment the commit was sealed.
    pub lsn_durable: Lsn,
    /// The highest hybrid-logical-clock reading given with its records, Unix ms.
    pub hlc_ms: u64,
    /// Number of this commit in its log, from 1.
    pub seq: u64,
    /// How many of its sectors hold nothing but zeroes, up to the one in which its
    /// records end: what tells a lost one in segments that were filled with zeroes.
    /// Versions before [`FORMAT_ZEROED`](crate::FORMAT_ZEROED) say 0.
    pub zero_sectors: u16,
}

impl Commit {
    /// Writes it at the front of its commit and returns its checksum.
    pub(crate) fn seal(&self, bytes: &mut [u8], salt: u64, lsn: Lsn, prev: u32) -> u32 {
        let len = COMMIT_BYTES as u32;
        // It is of no partition, and has that place for something else.
        let partition = self.zero_sectors;
        let header = Header { len, crc: 0, prev: 0, kind: KIND_COMMIT, flags: 0, partition };
        header.write(bytes);
        let mut put = Put::new(&mut bytes[HEADER_BYTES..COMMIT_BYTES]);
        put.u32(self.commit_bytes);
        put.u32(self.record_bytes);
        put.u64(self.lsn_durable);
        put.u64(self.hlc_ms);
        put.u64(self.seq);
        stamp(&mut bytes[..COMMIT_BYTES], salt, lsn, prev)
    }

    /// Reads the commit record at the front of `bytes` and checks it against
    /// itself: checksum with its own stored `prev`, and sizes that are possible.
    /// Whether its records follow is not looked at.
    pub(crate) fn read(bytes: &[u8], salt: u64, lsn: Lsn) -> Result<(Header, Commit), Malformed> {
        // Kind and length first: recovery asks this of every block of a file.
        let header = Header::read(bytes).ok_or(Malformed::Length)?;
        if header.kind != KIND_COMMIT {
            return Err(Malformed::Kind(header.kind));
        }
        if header.len as usize != COMMIT_BYTES {
            return Err(Malformed::Length);
        }
        check(bytes, salt, lsn)?;
        let payload = &bytes[HEADER_BYTES..];
        let commit = Commit::fields(payload, header.partition).ok_or(Malformed::Length)?;
        if !commit.is_possible(lsn) {
            return Err(Malformed::Payload);
        }
        Ok((header, commit))
    }

    fn fields(payload: &[u8], zero_sectors: u16) -> Option<Commit> {
        let mut take = Take(payload);
        Some(Commit {
            commit_bytes: take.u32()?,
            record_bytes: take.u32()?,
            lsn_durable: take.u64()?,
            hlc_ms: take.u64()?,
            seq: take.u64()?,
            zero_sectors,
        })
    }

    fn is_possible(&self, lsn: Lsn) -> bool {
        let sizes = COMMIT_BYTES as u32..=self.commit_bytes;
        (self.commit_bytes as usize).is_multiple_of(BLOCK)
            && sizes.contains(&self.record_bytes)
            && self.lsn_durable <= lsn
    }
}
