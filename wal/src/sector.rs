//! What a torn write leaves behind, and what it cannot leave.
//!
//! A disk writes a sector whole or not at all. A segment is filled with a
//! [pattern](Blank) before anything is written to it, and a start *blanks* what a
//! torn tail has left: it puts the pattern there again before the log goes on. So
//! where a write has lost a sector the pattern stands. A commit that is not valid
//! and has lost none was written as a whole, and is damaged since.
//!
//! Format 4 filled its segments with zeroes, which a body may hold by right. So
//! each commit says how many of its sectors do. A sector that rots to nothing but
//! zeroes looks lost there; beside a pattern it is damage like any other.

use crate::commit::Commit;

/// What a disk writes whole or not at all, bytes; 4,096 on many, which is a
/// multiple of it.
pub const SECTOR: usize = 512;

/// The pattern repeats after so many bytes.
const UNIT: usize = 16;

/// What stands in a segment where the log has not been yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Blank {
    /// Anything: what writes that were cut have left, otherwise zeroes. Formats
    /// before [`FORMAT_ZEROED`](crate::FORMAT_ZEROED).
    #[default]
    Unknown,
    /// Zeroes. Formats before [`FORMAT_PATTERN`](crate::FORMAT_PATTERN).
    Zeroes,
    /// These bytes again and again. No body holds them: who sends one does not
    /// know the log's salt.
    Pattern([u8; UNIT]),
}

impl Blank {
    /// The pattern of the log with this salt. At its front length and kind are 0, so
    /// that no block of it is taken for a commit.
    pub fn of_log(salt: u64) -> Blank {
        // Every bit of the salt in every byte (the finalizer of SplitMix64), and never zeroes.
        let mut word = salt.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word = (word ^ (word >> 31)) | 1;
        let mut unit = [0; UNIT];
        unit[4..12].copy_from_slice(&word.to_le_bytes());
        Blank::Pattern(unit)
    }

    fn unit(self) -> [u8; UNIT] {
        match self {
            Blank::Unknown | Blank::Zeroes => [0; UNIT],
            Blank::Pattern(unit) => unit,
        }
    }

    /// Makes bytes blank that begin at a multiple of a sector.
    pub fn fill(self, bytes: &mut [u8]) {
        let unit = self.unit();
        let (chunks, rest) = bytes.as_chunks_mut();
        chunks.fill(unit);
        rest.copy_from_slice(&unit[..rest.len()]);
    }

    /// Whether bytes that begin at a multiple of a sector are blank, all of them.
    pub fn is(self, bytes: &[u8]) -> bool {
        let unit = self.unit();
        let (chunks, rest) = bytes.as_chunks();
        chunks.iter().all(|chunk: &[u8; UNIT]| *chunk == unit) && *rest == unit[..rest.len()]
    }

    /// How many bytes the sectors have that are not blank.
    pub(crate) fn written(self, bytes: &[u8]) -> u64 {
        let sectors = bytes.chunks(SECTOR).filter(|sector| !self.is(sector));
        sectors.map(|sector| sector.len() as u64).sum()
    }

    /// Whether a write that began here, and did not leave what it was to leave, may
    /// have lost a sector; with its first record, when that one is valid.
    pub(crate) fn may_be_torn(self, bytes: &[u8], commit: Option<&Commit>) -> bool {
        let lost = |commit: &Commit| self.sectors(bytes, commit.record_bytes as usize);
        match (self, commit) {
            (Blank::Unknown, _) => true,
            (_, None) => self.is(&bytes[..SECTOR.min(bytes.len())]),
            (Blank::Zeroes, Some(commit)) => lost(commit) > usize::from(commit.zero_sectors),
            (Blank::Pattern(_), Some(commit)) => lost(commit) > 0,
        }
    }

    /// How many sectors of a commit are blank, up to the one in which its records
    /// end. The first one is not: the commit's own record stands there.
    fn sectors(self, commit: &[u8], record_bytes: usize) -> usize {
        let used = record_bytes.next_multiple_of(SECTOR).min(commit.len());
        commit[..used].chunks(SECTOR).skip(1).filter(|it| self.is(it)).count()
    }
}

/// How many sectors of a commit hold nothing but zeroes, as it says of itself.
pub(crate) fn zeroes(commit: &[u8], record_bytes: usize) -> u16 {
    Blank::Zeroes.sectors(commit, record_bytes).try_into().unwrap_or(u16::MAX)
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    Blank::Zeroes.is(bytes)
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
        for blank in [Blank::Zeroes, Blank::of_log(7)] {
            let mut bytes = vec![0; 2 * SECTOR];
            blank.fill(&mut bytes);
            assert!(blank.may_be_torn(&[], None) && blank.may_be_torn(&bytes[..100], None));
            bytes[SECTOR] ^= 1;
            assert!(blank.may_be_torn(&bytes, None));
            bytes[SECTOR - 1] ^= 1;
            assert!(!blank.may_be_torn(&bytes, None));
        }
    }

    #[test]
    fn with_its_first_record_its_own_zeroes_are_no_lost_sectors() {
        let commit = |zero_sectors| Commit {
            commit_bytes: 4096,
            record_bytes: 3 * SECTOR as u32,
            lsn_durable: 0,
            hlc_ms: 0,
            seq: 1,
            zero_sectors,
        };
        let mut bytes = vec![7; 4096];
        bytes[SECTOR..2 * SECTOR].fill(0);
        let is_torn = |blank: Blank, count| blank.may_be_torn(&bytes, Some(&commit(count)));
        assert!(is_torn(Blank::Zeroes, 0) && !is_torn(Blank::Zeroes, 1));
        let pattern = Blank::of_log(7);
        assert!(!is_torn(pattern, 0));
        pattern.fill(&mut bytes[SECTOR..2 * SECTOR]);
        assert!(pattern.may_be_torn(&bytes, Some(&commit(1))));
        // What stands behind its records is padding.
        pattern.fill(&mut bytes[SECTOR..]);
        bytes[SECTOR..3 * SECTOR].fill(7);
        assert!(!pattern.may_be_torn(&bytes, Some(&commit(0))));
    }

    #[test]
    fn golden_pattern() {
        let Blank::Pattern(unit) = Blank::of_log(0xaabb) else { panic!("a log has a pattern") };
        let hex: String = unit.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "00000000250cdec5c5c94aa100000000");
        assert_ne!(Blank::of_log(0xaabb), Blank::of_log(0xaabc));
        let mut bytes = [1; 40];
        Blank::of_log(0xaabb).fill(&mut bytes);
        assert_eq!(
            (&bytes[..16], &bytes[16..32], &bytes[32..]),
            (&unit[..], &unit[..], &unit[..8])
        );
        assert!(Blank::of_log(0xaabb).is(&bytes) && !is_zero(&bytes));
    }
}
