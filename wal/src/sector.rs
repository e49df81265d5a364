//! What a torn write leaves behind, and what it cannot leave.
//!
//! A disk writes a sector whole or not at all. A segment is filled with zeroes
//! before anything is written to it, and a start *zeroes* what a torn tail has
//! left: it makes zeroes of it before the log goes on. So where a write has lost
//! a sector there are zeroes. A commit that is not valid and has lost none was
//! written as a whole, and is damaged since.
//!
//! A sector may hold nothing but zeroes by right, in the middle of a body. So
//! each commit says how many of its sectors do.

use crate::commit::Commit;

/// What a disk writes whole or not at all, bytes; 4,096 on many, which is a
/// multiple of it.
pub const SECTOR: usize = 512;

/// How many sectors of a commit hold nothing but zeroes, up to the one in which
/// its records end. The first one does not: the commit's own record stands there.
pub(crate) fn zeroes(commit: &[u8], record_bytes: usize) -> u16 {
    let used = record_bytes.next_multiple_of(SECTOR).min(commit.len());
    let zeroes = commit[..used].chunks(SECTOR).skip(1).filter(|it| is_zero(it)).count();
    zeroes.try_into().unwrap_or(u16::MAX)
}

/// Whether a write that began here, and did not leave what it was to leave, may
/// have lost a sector; with its first record, when that one is valid.
pub(crate) fn may_be_torn(bytes: &[u8], commit: Option<&Commit>) -> bool {
    match commit {
        Some(commit) => zeroes(bytes, commit.record_bytes as usize) > commit.zero_sectors,
        None => is_zero(&bytes[..SECTOR.min(bytes.len())]),
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_of_zeroes_are_counted_up_to_the_end_of_the_records() {
        let mut bytes = vec![7; 4 * SECTOR];
        assert_eq!(zeroes(&bytes, 4 * SECTOR), 0);
        bytes[SECTOR..].fill(0);
        let count = |used| zeroes(&bytes, used);
        assert_eq!([SECTOR, SECTOR + 1, 2 * SECTOR, 3 * SECTOR + 1].map(count), [0, 1, 1, 3]);
        bytes[2 * SECTOR - 1] = 1;
        assert_eq!(zeroes(&bytes, 4 * SECTOR), 2);
    }

    #[test]
    fn without_its_first_record_the_first_sector_tells() {
        assert!(may_be_torn(&[], None) && may_be_torn(&[0; 100], None));
        let mut bytes = vec![0; 2 * SECTOR];
        bytes[SECTOR] = 1;
        assert!(may_be_torn(&bytes, None));
        bytes[SECTOR - 1] = 1;
        assert!(!may_be_torn(&bytes, None));
    }
}
