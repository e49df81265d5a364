//! Walks through one full segment, commit by commit, from bytes that come in
//! pieces of any length.
//!
//! Every record is checked before it is given out: its checksum, its place, and
//! that it follows the one before it. What does not fit is damage, because a
//! full segment below the durable end of the log has no torn tail.

use std::ops::ControlFlow;

use crate::commit::{COMMIT_BYTES, Commit};
use crate::record::{self, HEADER_BYTES, Header, Malformed, Record};
use crate::recover::{Damage, What};
use crate::{Lsn, segment};

/// The next read: at least `len_min` bytes from `lsn` on bring the walker
/// further, more than `len` it cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// First byte.
    pub lsn: Lsn,
    /// The least that helps, bytes.
    pub len_min: u32,
    /// The most that helps, bytes.
    pub len: u32,
}

/// Reads the records of one segment.
#[derive(Clone, Debug)]
pub struct Walker {
    salt: u64,
    segment_bytes: u64,
    read_bytes_max: u32,
    segment: u64,
    /// The next commit or record begins here.
    at: Lsn,
    /// Where the records of the commit around `at` end, and where it does.
    commit: Option<(Lsn, Lsn)>,
    /// How many bytes from `at` on are needed to go on.
    needs: u32,
    /// What the next record must chain to; unknown before the first.
    prev_crc: Option<u32>,
    commit_seq: Option<u64>,
}

impl Walker {
    /// At the beginning of this segment. No read is longer than
    /// `read_bytes_max`, which the longest record must not exceed.
    pub fn new(salt: u64, segment: u64, segment_bytes: u64, read_bytes_max: u32) -> Walker {
        Walker {
            salt,
            segment_bytes,
            read_bytes_max,
            segment,
            at: segment::base(segment, segment_bytes),
            commit: None,
            needs: COMMIT_BYTES as u32,
            prev_crc: None,
            commit_seq: None,
        }
    }

    /// Which segment it walks through.
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// What to read next; `None` at the segment's end.
    pub fn want(&self) -> Option<Want> {
        let rest = self.end() - self.at;
        let len = rest.min(self.read_bytes_max.into()) as u32;
        (rest > 0).then_some(Want { lsn: self.at, len_min: self.needs.min(len), len })
    }

    /// Takes bytes from the wanted position on, and gives each whole record in
    /// them to `sink` with its lsn and length, until that breaks off. What it
    /// was not given comes with the next read.
    ///
    /// # Errors
    /// [`Damage`]; the walk is over.
    ///
    /// # Panics
    /// When `lsn` is not the wanted one.
    pub fn feed(
        &mut self,
        lsn: Lsn,
        bytes: &[u8],
        sink: &mut dyn FnMut(Lsn, u32, Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        assert!(lsn == self.at, "the bytes are those that were wanted");
        while self.at < self.end() {
            let Some(rest) = bytes.get((self.at - lsn) as usize..) else { break };
            if rest.len() < self.needs as usize {
                break;
            }
            let Some((records_end, _)) = self.commit else {
                self.enter(rest).map_err(|what| self.damage(what))?;
                continue;
            };
            let found = self.record(rest, records_end).map_err(|what| self.damage(what))?;
            let Some(record) = found else { continue };
            let (at, len) = (self.at, self.needs);
            self.advance(at + Lsn::from(len));
            if sink(at, len, record).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Goes into the commit that `bytes` begins with.
    fn enter(&mut self, bytes: &[u8]) -> Result<(), What> {
        let (header, commit) =
            Commit::read(bytes, self.salt, self.at).map_err(|why| match why {
                Malformed::Length | Malformed::Kind(0) => What::NoCommit,
                why => What::Commit(why),
            })?;
        let commit_end = self.at + Lsn::from(commit.commit_bytes);
        if commit_end > self.end() {
            return Err(What::TooLong);
        }
        let seq_follows = self.commit_seq.is_none_or(|seq| seq.checked_add(1) == Some(commit.seq));
        if !seq_follows || self.prev_crc.is_some_and(|prev| prev != header.prev) {
            return Err(What::Chain);
        }
        (self.prev_crc, self.commit_seq) = (Some(header.crc), Some(commit.seq));
        self.commit = Some((self.at + Lsn::from(commit.record_bytes), commit_end));
        self.advance(self.at + COMMIT_BYTES as Lsn);
        Ok(())
    }

    /// The record that `bytes` begins with; `None` when more bytes are needed,
    /// and `needs` says how many.
    fn record<'a>(&mut self, bytes: &'a [u8], end: Lsn) -> Result<Option<Record<'a>>, What> {
        let header = Header::read(bytes).ok_or(What::Record(Malformed::Length))?;
        let most = (end - self.at).min(self.read_bytes_max.into());
        if !(HEADER_BYTES as u64..=most).contains(&header.len.into()) {
            return Err(What::Record(Malformed::Length));
        }
        self.needs = header.len;
        let Some(bytes) = bytes.get(..header.len as usize) else { return Ok(None) };
        record::check(bytes, self.salt, self.at).map_err(What::Record)?;
        if self.prev_crc != Some(header.prev) {
            return Err(What::Chain);
        }
        let record = record::decode(bytes).map_err(What::Unreadable)?;
        self.prev_crc = Some(header.crc);
        Ok(Some(record))
    }

    /// Goes on behind the commit record or a record, over the padding if it was
    /// the commit's last one.
    fn advance(&mut self, to: Lsn) {
        match self.commit {
            Some((records_end, _)) if to < records_end => {
                (self.at, self.needs) = (to, HEADER_BYTES as u32);
            }
            Some((_, commit_end)) => {
                (self.at, self.needs) = (commit_end, COMMIT_BYTES as u32);
                self.commit = None;
            }
            None => unreachable!("a record stands in a commit"),
        }
    }

    fn end(&self) -> Lsn {
        segment::base(self.segment + 1, self.segment_bytes)
    }

    fn damage(&self, what: What) -> Damage {
        Damage {
            segment: self.segment,
            offset: segment::file_offset(self.at, self.segment_bytes),
            lsn: self.at,
            what,
            proof: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::tests::{Owned, any_record, message};
    use crate::{BLOCK, Log, LogOptions, LogStart, Scanner};

    const SALT: u64 = 0x5a17;
    const READ_MAX: u32 = 20_000;

    fn options() -> LogOptions {
        LogOptions {
            tail_bytes: 8 * BLOCK,
            segment_bytes: 16 * BLOCK as u64,
            commit_bytes_max: 4 * BLOCK,
            writes_in_flight_max: 1,
            pipeline_bytes: 0,
        }
    }

    /// The first segment of a log, filled with these records and then with
    /// whatever is needed to fill it.
    fn segment(records: &[Owned]) -> Vec<u8> {
        let mut log = Log::new(options(), LogStart::fresh(SALT));
        let mut bytes = Vec::new();
        let mut write_out = |log: &mut Log| {
            while let Some(write) = log.next_write() {
                bytes.extend_from_slice(log.write_bytes(&write));
                log.written(write.lsn, true);
            }
            bytes.len() >= options().segment_bytes as usize
        };
        for (n, owned) in records.iter().enumerate() {
            if log.append(&owned.record(), 1).is_err() || n % 5 == 4 {
                write_out(&mut log);
            }
        }
        while !write_out(&mut log) {
            log.append(&Record::Message(message(&[7; 3000])), 1).unwrap();
        }
        bytes.truncate(options().segment_bytes as usize);
        bytes
    }

    fn scanned(bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        let mut scanner = Scanner::new(SALT, options(), 0);
        let sink = &mut |lsn, len, record: Record<'_>| {
            found.push(format!("{lsn} {len} {record:?}"));
        };
        scanner.segment(0, bytes, sink).unwrap();
        found
    }

    /// Walks with reads of the lengths that `draw` chooses between the least
    /// and the most that is wanted, breaking off when `breaks` says so.
    fn walked(
        bytes: &[u8],
        mut draw: impl FnMut(u32, u32) -> u32,
        mut breaks: impl FnMut() -> bool,
    ) -> Result<Vec<String>, Damage> {
        let mut found = Vec::new();
        let mut walker = Walker::new(SALT, 0, options().segment_bytes, READ_MAX);
        while let Some(Want { lsn, len_min, len }) = walker.want() {
            assert!(len_min > 0 && len_min <= len && len <= READ_MAX);
            let len = draw(len_min, len);
            let before = (lsn, len_min);
            walker.feed(lsn, &bytes[lsn as usize..][..len as usize], &mut |lsn, len, record| {
                found.push(format!("{lsn} {len} {record:?}"));
                if breaks() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            let after = walker.want().map(|want| (want.lsn, want.len_min));
            assert_ne!(after, Some(before), "what was asked for brings it further");
        }
        Ok(found)
    }

    #[test]
    fn padding_and_empty_commits_are_walked_over() {
        // Long records leave commits of nothing but padding at the tail's end.
        let records = segment(&[]);
        assert_eq!(walked(&records, |_, most| most, || false).unwrap(), scanned(&records));
        let mut log = Log::new(options(), LogStart::fresh(SALT));
        let mut bytes = Vec::new();
        while bytes.len() < options().segment_bytes as usize {
            log.append(&Record::Message(message(&[7; 13_000])), 1).unwrap();
            while let Some(write) = log.next_write() {
                bytes.extend_from_slice(log.write_bytes(&write));
                log.written(write.lsn, true);
            }
        }
        bytes.truncate(options().segment_bytes as usize);
        assert_eq!(walked(&bytes, |least, _| least, || true).unwrap(), scanned(&bytes));
    }

    #[test]
    fn damage_has_its_place() {
        let good = segment(&[]);
        let check = |at: usize, lsn: u64, what: What| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let damage = walked(&bad, |_, most| most, || false).unwrap_err();
            assert_eq!((damage.lsn, damage.offset, damage.what), (lsn, 4096 + lsn, what));
        };
        check(4096 + 20, 4096, What::Commit(Malformed::Checksum));
        check(4096 + 12, 4096, What::NoCommit);
        check(COMMIT_BYTES + 100, 48, What::Record(Malformed::Checksum));
        check(COMMIT_BYTES + 2, 48, What::Record(Malformed::Length));
        assert!(walked(&[0; 16 * 4096], |_, most| most, || false).is_err());
        // Another valid commit of the same log, which does not follow.
        let mut bad = good.clone();
        let mut other = Log::new(options(), LogStart { prev_crc: 9, ..LogStart::fresh(SALT) });
        other.append(&Record::Message(message(&[7; 3000])), 1).unwrap();
        let write = other.next_write().unwrap();
        bad[..4096].copy_from_slice(other.write_bytes(&write));
        let damage = walked(&bad, |_, most| most, || false).unwrap_err();
        assert_eq!((damage.lsn, damage.what), (4096, What::Chain));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

        #[test]
        fn any_pieces_give_the_same_records(
            records in prop::collection::vec(any_record(2000), 0..60),
            draws in prop::collection::vec(any::<u32>(), 1..20),
            breaks in prop::collection::vec(any::<bool>(), 1..20),
        ) {
            let bytes = segment(&records);
            let (mut draws, mut breaks) = (draws.iter().cycle(), breaks.iter().cycle());
            let draw = |least: u32, most: u32| least + draws.next().unwrap() % (most - least + 1);
            let found = walked(&bytes, draw, || *breaks.next().unwrap()).unwrap();
            prop_assert_eq!(found, scanned(&bytes));
        }

        #[test]
        fn a_flipped_bit_is_noticed_or_hits_padding(at in 0usize..16 * 4096, bit in 0u8..8) {
            let mut bytes = segment(&[]);
            let whole = scanned(&bytes);
            bytes[at] ^= 1 << bit;
            if let Ok(found) = walked(&bytes, |_, most| most, || false) {
                prop_assert_eq!(found, whole);
            }
        }
    }
}
