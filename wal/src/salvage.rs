//! Reading what is left of a damaged log: every record that is valid by itself,
//! and exactly which bytes are not.
//!
//! A [`Scanner`](crate::Scanner) stops at the first damaged byte, because a start
//! must not go on as if nothing were missing. Here the operator has been told,
//! and everything outside the damaged bytes is to be kept. A record's checksum
//! covers the log's salt and the record's own place, so one that fits was written
//! there by this log, whatever became of its neighbours.
//!
//! Two passes: [`Survey`] looks at every block for commits and learns how far
//! the log is known to have been durable; [`Salvage`] goes through it once more.
//! Below that place everything had been written and whatever is not valid is
//! lost; from there on the first thing that does not follow is the torn tail.
//!
//! Unless no torn write can have left it, by what stands in its
//! [sectors](crate::sector): then it was written as a whole, what is valid in it is
//! kept, and the log goes on behind.
//!
//! And unless it cannot be read: a *hole* is what the disk refuses, or what was cut
//! off a file. Nobody knows how far the log went on in it, so all of it is lost,
//! and what stands behind it is looked at once more.
//!
//! Invariant: a stale record, left behind a torn tail, is never given. Stale
//! bytes stand only beyond the end of the log, and from the durable place on the
//! chain must hold as in any start. Behind a hole a commit with a new number is
//! believed, and with it the records before it that it follows.

use std::ops::Range;

use crate::commit::{COMMIT_BYTES, Commit};
use crate::log::LogStart;
use crate::record::{self, HEADER_BYTES, Header, KIND_COMMIT, Record};
use crate::recover::Restore;
use crate::sector::Blank;
use crate::{BLOCK, BLOCK_LSN, Lsn, sector, segment};

/// The shortest record of a message, bytes: no more messages than its bytes
/// divided by this were in a lost range.
pub const MESSAGE_BYTES_MIN: u64 = 112;

/// What a damaged log is read back into.
pub trait Rescue: Restore {
    /// So many bytes that had been written, most likely acknowledged, are not
    /// valid; `likely` is what they would say if their checksum did not matter,
    /// when they have the shape of a record. Comes between the records around them.
    fn lost(&mut self, bytes: u64, likely: Option<&Record<'_>>);
}

/// Learns from all blocks of a log what its commits say.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    salt: u64,
    /// Everything before it had been confirmed by the disk.
    pub durable: Lsn,
    /// Where the last commit ends that is valid by itself, stale ones included.
    pub end: Lsn,
}

impl Survey {
    /// Of the log with this salt, known to have been durable up to `vouched`.
    pub fn new(salt: u64, vouched: Lsn) -> Survey {
        Survey { salt, durable: vouched, end: vouched }
    }

    /// Looks at the log part of the segment that begins at `base`.
    pub fn segment(&mut self, base: Lsn, bytes: &[u8]) {
        for (block, at) in bytes.chunks(BLOCK).zip((base..).step_by(BLOCK)) {
            if let Ok((_, commit)) = Commit::read(block, self.salt, at) {
                self.durable = self.durable.max(commit.lsn_durable);
                self.end = self.end.max(at + Lsn::from(commit.commit_bytes));
            }
        }
    }
}

/// What stands next in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A valid record.
    Record {
        /// Its place.
        lsn: Lsn,
        /// Its length, bytes.
        len: u32,
        /// Itself.
        record: Record<'a>,
    },
    /// Bytes that had been written, most likely acknowledged, and are not valid.
    Lost {
        /// The first of them.
        from: Lsn,
        /// Their end.
        to: Lsn,
        /// What they would say if their checksum did not matter, when they have
        /// the shape of a record.
        likely: Option<Record<'a>>,
    },
}

/// Reads a damaged log, segment by segment.
#[derive(Clone, Debug)]
pub struct Salvage {
    segment_bytes: u64,
    durable: Lsn,
    /// Where the last commit ends that is valid by itself.
    written_to: Lsn,
    /// Where the next commit begins, and what is known of the ones before.
    next: LogStart,
    /// The next commit must chain to `next.prev_crc`: nothing is lost just
    /// before it.
    is_chained: bool,
    /// The end of the log was found.
    is_over: bool,
    /// What stands in the segments that come where nothing was written.
    blank: Blank,
}

/// Where the pieces go.
type Sink<'a> = &'a mut dyn FnMut(Piece<'_>);

impl Salvage {
    /// Begins at `start`, where a snapshot's replay begins; `is_exact` when that
    /// is certain to be where a commit begins and what it chains to.
    pub fn new(start: LogStart, is_exact: bool, segment_bytes: u64, survey: &Survey) -> Salvage {
        // A snapshot may vouch for a part of a commit, which was written at once.
        let durable = survey.durable.checked_next_multiple_of(BLOCK_LSN).unwrap_or(Lsn::MAX);
        Salvage {
            segment_bytes,
            durable,
            written_to: survey.end,
            next: start,
            is_chained: is_exact,
            is_over: false,
            blank: Blank::Unknown,
        }
    }

    /// As [`Scanner::blank`](crate::Scanner::blank).
    pub fn blank(&mut self, blank: Blank) {
        self.blank = blank;
    }

    /// Reads the next segment: its log part, with anything in its holes, which
    /// are whole blocks but for where one begins, ascending. Without any bytes
    /// the segment is missing.
    ///
    /// # Panics
    /// When `base` is not that of the segment that comes next.
    pub fn segment(&mut self, base: Lsn, bytes: &[u8], holes: &[Range<Lsn>], sink: Sink<'_>) {
        let end = base + self.segment_bytes;
        assert!((base..end).contains(&self.next.lsn) || self.is_over, "segments come in order");
        // Commits that began in a hole may reach as far as anything stands.
        let is_used = |block: &[u8]| !self.is_empty(block);
        let blocks = if holes.is_empty() { &[] } else { bytes };
        let used = blocks.chunks(BLOCK).rposition(is_used).map_or(0, |at| at as Lsn + 1);
        let used_to = base + used * BLOCK_LSN;
        while !self.is_over && self.next.lsn < end {
            let rest = bytes.get((self.next.lsn - base) as usize..).unwrap_or_default();
            let seen = before_hole(rest, self.next.lsn, holes);
            if let Some(commit) = self.commit(rest, end, holes) {
                self.take(&rest[..commit.commit_bytes as usize], &commit, sink);
            } else if self.next.lsn < self.durable {
                let across = hole(holes, &(self.durable..self.durable + 1));
                let to = across.map_or(self.durable, |hole| hole.end.max(used_to));
                // A snapshot may vouch for a part of a commit, which was written at once.
                let written_to = self.rotten_to(rest, seen, end, true).unwrap_or(0);
                let sure_to = self.durable.max(written_to);
                self.resync(rest, end.min(to.max(sure_to)), sure_to, sink);
            } else if let Some(hole) = hole(holes, &self.head()) {
                self.resync(rest, hole.end.max(used_to), self.durable, sink);
            } else if let Some(to) = self.rotten_to(rest, seen, end, false) {
                self.resync(rest, to, to, sink);
            } else if let Some(hole) = self.hole_behind(holes, seen) {
                // Nothing that can be read vouches for anything from here on.
                let to = hole.end.max(used_to);
                sink(Piece::Lost { from: self.next.lsn, to, likely: None });
                (self.next.lsn, self.is_chained) = (to, false);
            } else {
                self.is_over = true;
            }
        }
    }

    /// What says whether a commit begins here.
    fn head(&self) -> Range<Lsn> {
        self.next.lsn..self.next.lsn + COMMIT_BYTES as Lsn
    }

    /// Where what was written here ends, when its first record is damaged and the
    /// write cannot have been torn; in this segment, which ends at `end`. Up to a hole
    /// its bytes are `seen`.
    fn rotten_to(&self, bytes: &[u8], seen: &[u8], end: Lsn, is_vouched: bool) -> Option<Lsn> {
        let is_commit = |block: &[u8], at| Commit::read(block, self.next.salt, at).ok();
        let is_sound = is_commit(bytes, self.next.lsn).is_some();
        if is_sound || self.blank.may_be_torn(seen, None) {
            return None;
        }
        // A commit behind one that was torn vouches for this one: where none does, none was torn.
        let guesses = !is_vouched;
        let mut blocks = bytes.chunks(BLOCK).zip((self.next.lsn..).step_by(BLOCK));
        match blocks.find_map(|(block, at)| Some((at, is_commit(block, at)?.1))) {
            // It is the next but one: everything before it is this one, padding included. What was
            // lost before this one has left its number unknown.
            Some((at, commit))
                if commit.seq == self.next.commit_seq + 2
                    || guesses && !self.is_chained && commit.seq > self.next.commit_seq =>
            {
                Some(at)
            }
            None if guesses && self.written_to > end => Some(end),
            _ => Some(self.next.lsn + self.written(seen) as Lsn),
        }
    }

    /// How much of this belongs to a write whose first record is damaged, in whole
    /// blocks. Whole records do whatever they hold; other blocks until one begins
    /// with nothing, or with a commit.
    fn written(&self, bytes: &[u8]) -> usize {
        let mut at = COMMIT_BYTES;
        while at < bytes.len() {
            let lsn = self.next.lsn + at as Lsn;
            if let Some((len, _)) = self.valid(&bytes[at..], lsn) {
                at += len as usize;
                continue;
            }
            let is_next = || {
                self.blank.may_be_torn(&bytes[at..], None)
                    || Commit::read(&bytes[at..], self.next.salt, lsn).is_ok()
            };
            if lsn.is_multiple_of(BLOCK_LSN) && is_next() {
                break;
            }
            at += 1;
        }
        at.next_multiple_of(BLOCK).min(bytes.len())
    }

    /// The hole that may hide what would say that something which stands here and
    /// does not follow is damaged, and no torn tail.
    fn hole_behind<'a>(&self, holes: &'a [Range<Lsn>], bytes: &[u8]) -> Option<&'a Range<Lsn>> {
        let stands = !self.blank.is(&bytes[..BLOCK.min(bytes.len())]);
        hole(holes, &(self.next.lsn..Lsn::MAX)).filter(|_| stands)
    }

    /// The next segment is missing although one behind it is there: it had been
    /// made, so everything to its end may have been written and confirmed.
    ///
    /// # Panics
    /// As [`Salvage::segment`].
    pub fn missing(&mut self, base: Lsn, sink: Sink<'_>) {
        if !self.is_over {
            self.durable = self.durable.max(base + self.segment_bytes);
        }
        self.segment(base, &[], &[], sink);
    }

    /// The end of the log was found.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Where the log goes on if nothing is lost in it.
    pub fn end(&self) -> LogStart {
        self.next
    }

    /// The commit that should begin here, when there is one that can be taken.
    fn commit(&self, bytes: &[u8], end: Lsn, holes: &[Range<Lsn>]) -> Option<Commit> {
        let (header, commit) = Commit::read(bytes, self.next.salt, self.next.lsn).ok()?;
        let len = commit.commit_bytes as usize;
        if len > bytes.len() || self.next.lsn + Lsn::from(commit.commit_bytes) > end {
            return None;
        }
        if self.next.lsn < self.durable {
            return Some(commit);
        }
        // Nothing vouches for it: it must be what a start would take, or would
        // perhaps take if the disk gave it.
        let follows = !self.is_chained
            || header.prev == self.next.prev_crc
                && Some(commit.seq) == self.next.commit_seq.checked_add(1);
        let is_new = commit.seq > self.next.commit_seq;
        let place = self.next.lsn..self.next.lsn + Lsn::from(commit.record_bytes);
        let is_good = || {
            hole(holes, &place).is_some()
                || self.is_whole(&bytes[..commit.record_bytes as usize], header.crc)
                || !self.blank.may_be_torn(bytes, Some(&commit))
        };
        (follows && is_new && is_good()).then_some(commit)
    }

    /// Whether all records of a commit are valid and follow each other.
    fn is_whole(&self, bytes: &[u8], commit_crc: u32) -> bool {
        let (mut at, mut prev) = (COMMIT_BYTES, commit_crc);
        while at < bytes.len() {
            let lsn = self.next.lsn + at as Lsn;
            match record::check(&bytes[at..], self.next.salt, lsn) {
                Ok(header) if header.prev == prev => {
                    prev = header.crc;
                    at += header.len as usize;
                }
                _ => return false,
            }
        }
        true
    }

    /// Gives every valid record of a commit, and what is between them.
    fn take(&mut self, bytes: &[u8], commit: &Commit, sink: Sink<'_>) {
        let began = self.next.lsn;
        let header = Header::read(bytes).expect("a commit was read here");
        self.next.commit_seq = commit.seq;
        self.next.hlc_ms = self.next.hlc_ms.max(commit.hlc_ms);
        self.next.prev_crc = header.crc;
        self.is_chained = true;
        let records = &bytes[..commit.record_bytes as usize];
        let mut at = COMMIT_BYTES;
        while at < records.len() {
            at = self.record_or_gap(records, at, began, sink);
        }
        self.next.lsn = began + bytes.len() as Lsn;
    }

    /// Gives the record at `at`, or the damaged bytes there; where they end.
    fn record_or_gap(&mut self, bytes: &[u8], at: usize, began: Lsn, sink: Sink<'_>) -> usize {
        if let Some((len, record)) = self.valid(&bytes[at..], began + at as Lsn) {
            let header = Header::read(&bytes[at..]).expect("it is valid");
            self.next.prev_crc = header.crc;
            self.is_chained = true;
            sink(Piece::Record { lsn: began + at as Lsn, len, record });
            return at + len as usize;
        }
        self.is_chained = false;
        let claimed = at + Header::read(&bytes[at..]).map_or(0, |header| header.len as usize);
        let next = self.next_record(bytes, at + 1, began);
        // Its length may be what is damaged, and lead past records that are not. Or it is right, and
        // where a write was lost something stale shows from under it, if that can be.
        let is_stale = self.blank == Blank::Unknown
            && next < claimed
            && self.goes_on(bytes, claimed, began)
            && !self.leads(bytes, next, claimed, began);
        let to = if is_stale { claimed } else { next };
        let likely = (to == claimed).then(|| record::decode(&bytes[at..to]).ok()).flatten();
        sink(Piece::Lost { from: began + at as Lsn, to: began + to as Lsn, likely });
        to
    }

    /// Whether a valid record or the end stands at `at`.
    fn goes_on(&self, bytes: &[u8], at: usize, began: Lsn) -> bool {
        let record = bytes.get(at..).and_then(|rest| self.valid(rest, began + at as Lsn));
        at == bytes.len() || record.is_some()
    }

    /// Whether valid records stand one behind the other from `at` to `to`, and each says that it
    /// follows the one before it.
    fn leads(&self, bytes: &[u8], mut at: usize, to: usize, began: Lsn) -> bool {
        let mut before = None;
        while at < bytes.len() {
            let Some(header) = Header::read(&bytes[at..]) else { return false };
            if before.is_some_and(|crc| crc != header.prev) {
                return false;
            }
            if at >= to {
                break;
            }
            let Some((len, _)) = self.valid(&bytes[at..], began + at as Lsn) else { return false };
            (before, at) = (Some(header.crc), at + len as usize);
        }
        at == to
    }

    /// The first place from `at` on where a valid record stands, or the end.
    fn next_record(&self, bytes: &[u8], at: usize, began: Lsn) -> usize {
        let found =
            (at..bytes.len()).find(|at| self.valid(&bytes[*at..], began + *at as Lsn).is_some());
        found.unwrap_or(bytes.len())
    }

    /// Looks for the next commit, block by block, and for single records before
    /// it, up to `end`. From `sure_to` on they count only if the commit follows them.
    fn resync(&mut self, bytes: &[u8], end: Lsn, sure_to: Lsn, sink: Sink<'_>) {
        let began = self.next.lsn;
        let limit = (end - began) as usize;
        let bytes = &bytes[..bytes.len().min(limit)];
        let (singles, at) = self.singles(bytes);
        let commit = Commit::read(&bytes[at..], self.next.salt, began + at as Lsn).ok();
        let first = match commit {
            Some((header, commit)) if commit.seq > self.next.commit_seq => {
                first_before(&singles, bytes, header.prev)
            }
            _ => singles.len(),
        };
        let is_sure = |at: &usize| began + (*at as Lsn) < sure_to;
        let sure = singles.partition_point(is_sure);
        let (sure, rest) = (&singles[..sure], &singles[first.max(sure)..]);
        let mut lost_from = 0;
        for &single in sure.iter().chain(rest) {
            lost(lost_from, single, began, sink);
            let lsn = began + single as Lsn;
            let (len, record) = self.valid(&bytes[single..], lsn).expect("it was a moment ago");
            sink(Piece::Record { lsn, len, record });
            lost_from = single + len as usize;
        }
        // What is missing behind the bytes is lost, too.
        let to = if at < bytes.len() { at } else { limit };
        lost(lost_from, to, began, sink);
        self.next.lsn = began + to as Lsn;
        self.is_chained = false;
    }

    /// Where records stand that are valid by themselves, and the place of the
    /// commit behind them, or the end.
    fn singles(&self, bytes: &[u8]) -> (Vec<usize>, usize) {
        let began = self.next.lsn;
        let (mut singles, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let is_block = (began + at as Lsn).is_multiple_of(BLOCK_LSN);
            let block = &bytes[at..bytes.len().min(at + BLOCK)];
            if is_block && at > 0 && Commit::read(block, self.next.salt, began + at as Lsn).is_ok()
            {
                break;
            }
            if is_block && self.is_empty(block) {
                at += block.len();
                continue;
            }
            match self.valid(&bytes[at..], began + at as Lsn) {
                Some((len, _)) => {
                    singles.push(at);
                    at += len as usize;
                }
                None => at += 1,
            }
        }
        (singles, at)
    }

    /// Whether no record can begin in a block: nothing was written there, or nothing
    /// can be read.
    fn is_empty(&self, block: &[u8]) -> bool {
        self.blank.is(block) || sector::is_zero(block)
    }

    /// The record at the front of `bytes`, when it is valid by itself.
    fn valid<'a>(&self, bytes: &'a [u8], lsn: Lsn) -> Option<(u32, Record<'a>)> {
        // Cheap questions first: this is asked of every byte of a lost range.
        let header = Header::read(bytes)?;
        let len = header.len as usize;
        if !(HEADER_BYTES..=bytes.len()).contains(&len)
            || header.kind <= KIND_COMMIT
            || header.kind > record::KIND_LAST
        {
            return None;
        }
        // The shape before the checksum: bytes that look like a header again and again would have
        // it computed as often.
        record::decode(&bytes[..len]).ok()?;
        let record = record::verify(&bytes[..len], self.next.salt, lsn).ok()?;
        Some((header.len, record))
    }
}

/// What stands at `lsn` before the first hole behind it.
fn before_hole<'a>(bytes: &'a [u8], lsn: Lsn, holes: &[Range<Lsn>]) -> &'a [u8] {
    let end = hole(holes, &(lsn..Lsn::MAX)).map_or(Lsn::MAX, |hole| hole.start);
    &bytes[..bytes.len().min(end.saturating_sub(lsn) as usize)]
}

/// The first hole that has a part of this range.
fn hole<'a>(holes: &'a [Range<Lsn>], range: &Range<Lsn>) -> Option<&'a Range<Lsn>> {
    holes.iter().find(|hole| hole.start < range.end && range.start < hole.end)
}

/// Which of these records is the first of those that lead, each saying that it
/// follows the one before it, to what says that it follows the one with this
/// checksum.
fn first_before(records: &[usize], bytes: &[u8], mut crc: u32) -> usize {
    let mut first = records.len();
    for (n, at) in records.iter().enumerate().rev() {
        let header = Header::read(&bytes[*at..]).expect("a record stands there");
        if header.crc != crc {
            break;
        }
        (first, crc) = (n, header.prev);
    }
    first
}

fn lost(from: usize, to: usize, began: Lsn, sink: Sink<'_>) {
    if from < to {
        sink(Piece::Lost { from: began + from as Lsn, to: began + to as Lsn, likely: None });
    }
}

/// The number of the first segment that holds nothing of a log that was
/// surveyed: a new one can begin there.
pub fn fresh_segment(survey: &Survey, end: Lsn, segment_bytes: u64) -> u64 {
    let used = survey.end.max(survey.durable).max(end);
    segment::index(used, segment_bytes) + u64::from(!used.is_multiple_of(segment_bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;

    use std::collections::VecDeque;

    use super::*;
    use crate::log::{Log, LogOptions};
    use crate::record::tests::{Owned, any_record, message};
    use crate::sector::SECTOR;

    const SALT: u64 = 77;
    const OPTIONS: LogOptions = LogOptions {
        tail_bytes: 4 * BLOCK,
        segment_bytes: 8 * BLOCK_LSN,
        commit_bytes_max: 2 * BLOCK,
        writes_in_flight_max: 1,
        pipeline_bytes: 0,
    };

    /// A record's position and length.
    type Place = (Lsn, u32);

    /// The bytes of a log with these records, a commit for each group, and
    /// where each record stands.
    fn written(groups: &[Vec<Record<'_>>]) -> (Vec<u8>, Vec<Place>) {
        written_with(groups, 1)
    }

    /// The same with so many writes under way: what a commit says to be durable is
    /// older then.
    fn written_with(groups: &[Vec<Record<'_>>], in_flight: usize) -> (Vec<u8>, Vec<Place>) {
        let options = LogOptions { writes_in_flight_max: in_flight, ..OPTIONS };
        let mut log = Log::new(options, LogStart::fresh(SALT));
        let (mut bytes, mut places, mut flying) = (Vec::new(), Vec::new(), VecDeque::new());
        for group in groups {
            for record in group {
                if !log.room(record::encoded_len(record)) {
                    write(&mut log, &mut bytes, &mut flying, in_flight);
                    flying.drain(..).for_each(|lsn| _ = log.written(lsn, true));
                }
                let appended = log.append(record, 5).unwrap();
                places.push((appended.lsn, appended.len));
            }
            write(&mut log, &mut bytes, &mut flying, in_flight);
        }
        (bytes, places)
    }

    fn write(log: &mut Log, bytes: &mut Vec<u8>, flying: &mut VecDeque<Lsn>, in_flight: usize) {
        loop {
            if flying.len() == in_flight {
                flying.drain(..1).for_each(|lsn| _ = log.written(lsn, true));
            }
            let Some(write) = log.next_write() else { return };
            bytes.resize((write.lsn + Lsn::from(write.len)) as usize, 0);
            bytes[write.lsn as usize..].copy_from_slice(log.write_bytes(&write));
            flying.push_back(write.lsn);
        }
    }

    /// What is salvaged: places of records, lost ranges, the end.
    fn salvaged(bytes: &[u8], vouched: Lsn) -> (Vec<Place>, Vec<(Lsn, Lsn)>, LogStart) {
        salvaged_around(bytes, &[], vouched)
    }

    /// The same with holes, which are in whole segments.
    fn salvaged_around(
        bytes: &[u8],
        holes: &[Range<Lsn>],
        vouched: Lsn,
    ) -> (Vec<Place>, Vec<(Lsn, Lsn)>, LogStart) {
        salvaged_from(bytes, holes, vouched, Blank::Unknown)
    }

    fn salvaged_from(
        bytes: &[u8],
        holes: &[Range<Lsn>],
        vouched: Lsn,
        blank: Blank,
    ) -> (Vec<Place>, Vec<(Lsn, Lsn)>, LogStart) {
        let mut survey = Survey::new(SALT, vouched);
        let segments = || bytes.chunks(OPTIONS.segment_bytes as usize).zip(0..);
        let base = |index: u64| segment::base(index, OPTIONS.segment_bytes);
        segments().for_each(|(segment, index)| survey.segment(base(index), segment));
        let start = LogStart::fresh(SALT);
        let mut salvage = Salvage::new(start, true, OPTIONS.segment_bytes, &survey);
        salvage.blank(blank);
        let (mut records, mut lost) = (Vec::new(), Vec::new());
        let there = segments().last().map_or(0, |(_, index)| index + 1);
        for index in 0..fresh_segment(&survey, 0, OPTIONS.segment_bytes).max(there) {
            let segment = segments().find(|(_, at)| *at == index).map(|(bytes, _)| bytes);
            let here = base(index)..base(index + 1);
            let within = |hole: &Range<Lsn>| {
                let within = hole.start.max(here.start)..hole.end.min(here.end);
                (within.start < within.end).then_some(within)
            };
            let holes: Vec<_> = holes.iter().filter_map(within).collect();
            let mut sink = |piece: Piece<'_>| match piece {
                Piece::Record { lsn, len, .. } => records.push((lsn, len)),
                Piece::Lost { from, to, .. } => lost.push((from, to)),
            };
            salvage.segment(base(index), segment.unwrap_or_default(), &holes, &mut sink);
        }
        (records, lost, salvage.end())
    }

    /// What segments are filled with that are judged by it.
    const BLANKS: fn() -> [Blank; 2] = || [Blank::Zeroes, Blank::of_log(SALT)];

    /// As long as that many bytes, blank behind what was written.
    fn pad(bytes: &mut Vec<u8>, len: usize, blank: Blank) {
        let end = bytes.len();
        bytes.resize(len, 0);
        blank.fill(&mut bytes[end..]);
    }

    fn records(groups: &[Vec<Owned>]) -> Vec<Vec<Record<'_>>> {
        groups.iter().map(|group| group.iter().map(Owned::record).collect()).collect()
    }

    fn groups() -> impl Strategy<Value = Vec<Vec<Owned>>> {
        prop::collection::vec(prop::collection::vec(any_record(300), 1..6), 2..12)
    }

    /// All records that are not hit are found, no other is, and what is missing is
    /// told to be lost.
    fn check_found(
        places: &[Place],
        (records, lost): (&[Place], &[(Lsn, Lsn)]),
        is_hit: impl Fn(&Place) -> bool,
    ) -> Result<(), TestCaseError> {
        let expected: Vec<_> = places.iter().filter(|place| !is_hit(place)).collect();
        let found: Vec<_> = records.iter().filter(|place| !is_hit(place)).collect();
        prop_assert_eq!(found, expected);
        prop_assert!(records.iter().all(|place| places.contains(place)));
        for place in places.iter().filter(|place| !records.contains(place)) {
            prop_assert!(lost.iter().any(|(from, to)| (*from..*to).contains(&place.0)));
        }
        Ok(())
    }

    proptest! {
        /// Whatever is outside the damage is found, in order, and nothing else.
        #[test]
        fn nothing_outside_the_damage_is_lost(
            groups in groups(),
            flips in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let (mut bytes, places) = written(&records(&groups));
            let vouched = bytes.len() as Lsn;
            let flips: Vec<usize> = flips.iter().map(|at| at.index(bytes.len())).collect();
            for at in &flips {
                bytes[*at] ^= 0x10;
            }
            let is_hit = |(lsn, len): &Place| {
                flips.iter().any(|at| (*lsn..*lsn + Lsn::from(*len)).contains(&(*at as Lsn)))
            };
            let (records, lost, _) = salvaged(&bytes, vouched);
            // Two flips of one byte undo each other.
            check_found(&places, (&records, &lost), is_hit)?;
        }

        /// It makes no difference whether anything vouches for what was written as a
        /// whole, where a torn write is told by what it leaves.
        #[test]
        fn nothing_outside_the_damage_is_lost_whatever_vouches_for_it(
            groups in groups(),
            flips in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            vouched in any::<prop::sample::Index>(),
            in_flight in 1..=2_usize,
            zeroes in prop::collection::vec((any::<prop::sample::Index>(), 0..7000_usize), 0..3),
            wiped in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
            is_pattern: bool,
        ) {
            let blank = BLANKS()[usize::from(is_pattern)];
            let (body, has_zeroes) = (vec![0; 7000], !zeroes.is_empty());
            let mut records = records(&groups);
            for (at, len) in zeroes {
                let group = at.get(&groups).len();
                let group = records.iter_mut().find(|it| it.len() == group).unwrap();
                group[0] = Record::Message(message(&body[..len]));
            }
            let (mut bytes, places) = written_with(&records, in_flight);
            let end = bytes.len();
            pad(&mut bytes, end.next_multiple_of(OPTIONS.segment_bytes as usize), blank);
            let zeroes = |bytes: &[u8]| -> Vec<bool> {
                bytes.chunks(SECTOR).map(sector::is_zero).collect()
            };
            let before = zeroes(&bytes);
            // Where nothing stood nothing was lost.
            let flips: Vec<usize> = flips.iter().map(|at| at.index(end)).collect();
            let mut flips: Vec<usize> = flips.into_iter().filter(|at| bytes[*at] != 0).collect();
            // Beside a head that rots, a record that does may hide more where it holds zeroes.
            flips.truncate(if has_zeroes && !is_pattern { 1 } else { flips.len() });
            flips.iter().for_each(|at| bytes[*at] ^= 0x10);
            prop_assume!(is_pattern || zeroes(&bytes) == before);
            // Nor does a sector that is nothing but zeroes look lost beside a pattern.
            let wiped = wiped.iter().filter(|_| is_pattern);
            for at in wiped.map(|at| at.index(end / SECTOR) * SECTOR) {
                flips.extend((at..at + SECTOR).filter(|at| bytes[*at] != 0));
                bytes[at..at + SECTOR].fill(0);
            }
            let is_hit = |(lsn, len): &Place| {
                flips.iter().any(|at| (*lsn..*lsn + Lsn::from(*len)).contains(&(*at as Lsn)))
            };
            let vouched = vouched.index(end / BLOCK + 1) as Lsn * BLOCK_LSN;
            let (records, lost, went_on) = salvaged_from(&bytes, &[], vouched, blank);
            check_found(&places, (&records, &lost), is_hit)?;
            prop_assert_eq!(went_on.lsn, end as Lsn);
        }

        /// What the disk refuses costs what stands there, though nothing vouches for
        /// it, and nothing else.
        #[test]
        fn holes_cost_what_stands_in_them(
            groups in groups(),
            holes in prop::collection::vec((any::<prop::sample::Index>(), 1_u64..4), 0..4),
            cut in any::<Option<prop::sample::Index>>(),
            vouched in any::<prop::sample::Index>(),
            in_flight in 1..=2_usize,
            blank in prop::sample::select(vec![Blank::Unknown, Blank::Zeroes, Blank::of_log(SALT)]),
        ) {
            let (mut bytes, places) = written_with(&records(&groups), in_flight);
            let end = bytes.len() as Lsn;
            let begins = |block: &Lsn| {
                Commit::read(&bytes[*block as usize..], SALT, *block).is_ok()
            };
            let commits: Vec<Lsn> = (0..end).step_by(BLOCK).filter(begins).collect();
            let segment_bytes = OPTIONS.segment_bytes as usize;
            // And a segment that was made ahead.
            let len = bytes.len().next_multiple_of(segment_bytes) + segment_bytes;
            pad(&mut bytes, len, blank);
            let blocks = bytes.len() / BLOCK;
            let of_blocks = |(at, count): &(prop::sample::Index, u64)| {
                let at = at.index(blocks) as Lsn;
                at * BLOCK_LSN..(at + count).min(blocks as Lsn) * BLOCK_LSN
            };
            let mut holes: Vec<Range<Lsn>> = holes.iter().map(of_blocks).collect();
            holes.extend(cut.map(|at| {
                let at = at.index(bytes.len());
                at as Lsn..at.next_multiple_of(segment_bytes) as Lsn
            }));
            holes.sort_by_key(|hole| hole.start);
            for hole in &holes {
                bytes[hole.start as usize..hole.end as usize].fill(0);
            }
            let is_hit = |(lsn, len): &Place| {
                hole(&holes, &(*lsn..*lsn + Lsn::from(*len))).is_some()
            };
            let vouched = vouched.index(end as usize / BLOCK + 1) as Lsn * BLOCK_LSN;
            let (records, lost, went_on) = salvaged_from(&bytes, &holes, vouched, blank);
            // Where nothing says so nobody can tell whether what has neither its own
            // commit nor leads to the next was ever confirmed.
            let can_be_read = |commit: &Lsn| {
                hole(&holes, &(*commit..commit + COMMIT_BYTES as Lsn)).is_none()
            };
            let is_expected = |place: &&Place| {
                let own = commits.iter().rfind(|commit| **commit < place.0).unwrap();
                let next = commits.iter().find(|commit| **commit > place.0);
                let is_led_on = |next: &Lsn| {
                    can_be_read(next) && hole(&holes, &(place.0..*next)).is_none()
                };
                let is_sure = place.0 < vouched || can_be_read(own) || next.is_some_and(is_led_on);
                is_sure && !is_hit(place)
            };
            let expected: Vec<_> = places.iter().filter(is_expected).copied().collect();
            // Where nothing but zeroes is missing a record is whole.
            prop_assert!(records.iter().all(|place| places.contains(place)));
            let found: Vec<_> = records.iter().filter(is_expected).copied().collect();
            prop_assert_eq!(found, expected);
            for (lsn, len) in places.iter().filter(|place| !records.contains(place)) {
                let is_told = |(from, to): &(Lsn, Lsn)| *from < lsn + Lsn::from(*len) && lsn < to;
                prop_assert!(lost.iter().any(is_told), "{lsn} is not told: {lost:?} {holes:?} {places:?} {went_on:?}");
            }
            prop_assert!(went_on.lsn >= places.last().map_or(0, |(lsn, len)| lsn + Lsn::from(*len)));
            prop_assert!(went_on.lsn.is_multiple_of(BLOCK_LSN));
        }

        /// An undamaged log is read as a start reads it.
        #[test]
        fn a_whole_log_is_read_to_its_end(groups in groups()) {
            let (bytes, places) = written(&records(&groups));
            let (records, lost, end) = salvaged(&bytes, 0);
            prop_assert_eq!(records, places);
            prop_assert!(lost.is_empty());
            prop_assert_eq!(end.lsn, bytes.len() as Lsn);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40_000)) {
            let (records, lost, _) = salvaged(&bytes, bytes.len() as Lsn / BLOCK_LSN * BLOCK_LSN);
            prop_assert!(records.is_empty());
            let total: Lsn = lost.iter().map(|(from, to)| to - from).sum();
            prop_assert_eq!(total, bytes.len() as Lsn / BLOCK_LSN * BLOCK_LSN);
        }
    }

    /// A damaged length may lead to the front of a record further on.
    #[test]
    fn a_damaged_length_hides_no_record_behind_it() {
        let body = [7; 40];
        let (mut bytes, places) = written(&[vec![Record::Message(message(&body)); 5]]);
        let (from, len) = (places[0].0 as usize, u64::from(places[0].1));
        bytes[from..][..4].copy_from_slice(&(3 * len as u32).to_le_bytes());
        let header = Header::read(&bytes[from..]).expect("a header begins with its length");
        assert_eq!(u64::from(header.len), 3 * len);
        let (records, lost, _) = salvaged(&bytes, bytes.len() as Lsn);
        assert_eq!(&records, &places[1..]);
        assert_eq!(lost, [(places[0].0, places[1].0)]);
    }

    /// Nor where it leads to one, past more that is damaged.
    #[test]
    fn a_damaged_length_that_fits_hides_no_record_where_nothing_is_stale() {
        let body = [7; 40];
        let (mut bytes, places) = written(&[vec![Record::Message(message(&body)); 5]]);
        let (from, len) = (places[0].0 as usize, u64::from(places[0].1));
        bytes[from..][..4].copy_from_slice(&(3 * len as u32).to_le_bytes());
        bytes[places[2].0 as usize + 30] ^= 1;
        let (records, lost, _) = salvaged_from(&bytes, &[], bytes.len() as Lsn, Blank::Zeroes);
        assert_eq!(records, [places[1], places[3], places[4]]);
        assert_eq!(lost.len(), 2);
    }

    /// A write that was lost shows what a torn tail has left under it.
    #[test]
    fn what_is_stale_does_not_come_out_of_a_damaged_record() {
        let small = || Record::Message(message(b"small"));
        let (stale, old) = written(&[vec![small(), small(), small()]]);
        let body = [7; 600];
        let groups = [vec![Record::Message(message(&body)), small(), small()]];
        let (mut bytes, places) = written(&groups);
        let there = old[1].0 as usize..(old[1].0 + u64::from(old[1].1)) as usize;
        assert!(there.end < places[1].0 as usize);
        bytes[there.clone()].copy_from_slice(&stale[there]);
        let (records, lost, _) = salvaged(&bytes, bytes.len() as Lsn);
        assert_eq!(&records, &places[1..]);
        assert_eq!(lost, [(places[0].0, places[1].0)]);
    }

    #[test]
    fn a_torn_tail_is_not_damage() {
        let one = || vec![Record::Message(message(b"body"))];
        let (mut bytes, places) = written(&[one(), one(), one()]);
        let last = bytes.len() - BLOCK;
        bytes[last + 60] ^= 1;
        let (records, lost, end) = salvaged(&bytes, 0);
        assert_eq!((&records[..], lost), (&places[..2], vec![]));
        assert_eq!(end.lsn, last as Lsn);
        // A snapshot that has seen it makes it damage.
        let (records, lost, _) = salvaged(&bytes, bytes.len() as Lsn);
        assert_eq!((records.len(), lost.len()), (2, 1));
    }

    /// But where a torn write leaves a blank this is none.
    #[test]
    fn what_no_torn_write_leaves_is_damage() {
        let one = || vec![Record::Message(message(b"body"))];
        let (bytes, places) = written(&[one(), one(), one()]);
        let last = bytes.len() - BLOCK;
        // In its only record, and in what says that a commit begins there.
        for (at, blank) in [60, 20].into_iter().flat_map(|at| BLANKS().map(|blank| (at, blank))) {
            let mut bytes = bytes.clone();
            bytes[last + at] ^= 1;
            let (records, lost, end) = salvaged_from(&bytes, &[], 0, blank);
            let expected = if at == 60 { &places[..2] } else { &places[..] };
            assert_eq!(&records[..], expected);
            assert!(!lost.is_empty() && lost[0].0 >= last as Lsn);
            assert_eq!(end.lsn, bytes.len() as Lsn);
        }
        for blank in BLANKS() {
            let mut torn = bytes.clone();
            blank.fill(&mut torn[last..last + SECTOR]);
            torn[last + SECTOR] = 1;
            let (records, lost, end) = salvaged_from(&torn, &[], 0, blank);
            assert_eq!((&records[..], lost, end.lsn), (&places[..2], vec![], last as Lsn));
        }
    }

    /// What a snapshot vouches for may end in the middle of a record.
    #[test]
    fn a_damaged_head_hides_no_record_that_is_vouched_for_by_half() {
        let big = [7; 1700];
        let group = || vec![Record::Message(message(&big)); 4];
        let (bytes, places) = written(&[group(), group()]);
        let is_across = |(lsn, len): &Place| *lsn < BLOCK_LSN && lsn + u64::from(*len) > BLOCK_LSN;
        assert!(places.iter().any(is_across), "{places:?}");
        for blank in BLANKS() {
            for cut in [2 * BLOCK, bytes.len()] {
                let mut bytes = bytes[..cut].to_vec();
                pad(&mut bytes, OPTIONS.segment_bytes as usize, blank);
                bytes[20] ^= 1;
                let (records, lost, end) = salvaged_from(&bytes, &[], BLOCK_LSN, blank);
                assert_eq!(records, places[..cut / BLOCK * 2]);
                assert_eq!(lost[0], (0, places[0].0));
                assert_eq!(end.lsn, cut as Lsn);
            }
        }
    }

    /// Nor do two of them, one behind the other.
    #[test]
    fn two_damaged_heads_hide_no_record_that_is_vouched_for_by_half() {
        const COMMIT: usize = 2 * BLOCK;
        let big = [7; 1700];
        let groups: Vec<_> = (0..4).map(|_| vec![Record::Message(message(&big)); 4]).collect();
        let (written, places) = written_with(&groups, 2);
        assert_eq!(written.len(), groups.len() * COMMIT);
        for first in 0..groups.len() - 1 {
            for (commits, vouched) in
                (first + 2..=groups.len()).flat_map(|it| (1..=3).map(move |half| (it, half)))
            {
                for blank in BLANKS() {
                    let mut bytes = written[..commits * COMMIT].to_vec();
                    pad(&mut bytes, OPTIONS.segment_bytes as usize, blank);
                    [first, first + 1].iter().for_each(|at| bytes[at * COMMIT + 20] ^= 1);
                    let vouched = (first * COMMIT + vouched * BLOCK) as Lsn;
                    let (records, _, end) = salvaged_from(&bytes, &[], vouched, blank);
                    assert_eq!(records, places[..commits * groups[0].len()]);
                    assert_eq!(end.lsn, (commits * COMMIT) as Lsn);
                }
            }
        }
    }

    /// Nor does it bring back what stands behind a write that was torn.
    #[test]
    fn a_damaged_head_does_not_vouch_for_what_was_torn_behind_it() {
        let big = [7; 1700];
        let group = || vec![Record::Message(message(&big)); 4];
        // The third begins a segment, or does not; it was under way with the second.
        for before in 0..3 {
            let groups: Vec<_> = (0..before + 3).map(|_| group()).collect();
            let (written, places) = written_with(&groups, 2);
            let rotten = before * 2 * BLOCK;
            for blank in BLANKS() {
                let mut bytes = written.clone();
                pad(&mut bytes, written.len().next_multiple_of(8 * BLOCK), blank);
                bytes[rotten + 20] ^= 1;
                // What says the number of the damaged one is damaged, too.
                bytes[..rotten]
                    .iter_mut()
                    .skip(rotten.saturating_sub(BLOCK))
                    .for_each(|it| *it ^= 1);
                let torn = rotten + 2 * BLOCK;
                blank.fill(&mut bytes[torn..torn + SECTOR]);
                let (records, _, end) = salvaged_from(&bytes, &[], torn as Lsn, blank);
                assert!(records.iter().all(|place| place.0 < torn as Lsn), "{records:?}");
                let own = |place: &&Place| (rotten..torn).contains(&(place.0 as usize));
                assert!(places.iter().filter(own).all(|place| records.contains(place)));
                assert_eq!(end.lsn, torn as Lsn);
            }
        }
    }

    /// What the segments before it knew to be durable says nothing of its rest.
    #[test]
    fn a_missing_segment_before_another_is_lost_to_its_end() {
        let survey = Survey::new(SALT, 9 * BLOCK_LSN);
        let start = LogStart { lsn: 8 * BLOCK_LSN, ..LogStart::fresh(SALT) };
        let mut salvage = Salvage::new(start, true, OPTIONS.segment_bytes, &survey);
        let mut lost = Vec::new();
        let mut sink = |piece: Piece<'_>| match piece {
            Piece::Record { lsn, .. } => panic!("a record at {lsn}"),
            Piece::Lost { from, to, .. } => lost.push((from / BLOCK_LSN, to / BLOCK_LSN)),
        };
        salvage.missing(8 * BLOCK_LSN, &mut sink);
        // The one behind it was made ahead and holds nothing.
        salvage.segment(16 * BLOCK_LSN, &[0; 8 * BLOCK], &[], &mut sink);
        assert!(salvage.is_over());
        salvage.missing(24 * BLOCK_LSN, &mut sink);
        assert_eq!((lost, salvage.end().lsn), (vec![(8, 16)], 16 * BLOCK_LSN));
    }

    /// What is known to have been durable may end within a hole, and a commit that
    /// began in it go on behind.
    #[test]
    fn a_hole_across_the_durable_place_hides_nothing_behind_it() {
        let big = [7; 1800];
        let one = |body| vec![Record::Message(message(body))];
        let long = vec![Record::Message(message(&big)); 4];
        let (mut bytes, places) = written_with(&[one(b"a"), one(b"b"), long, one(b"c")], 2);
        bytes.resize(OPTIONS.segment_bytes as usize, 0);
        let hole = BLOCK_LSN..3 * BLOCK_LSN;
        bytes[BLOCK..3 * BLOCK].fill(0);
        let (records, lost, end) =
            salvaged_around(&bytes, std::slice::from_ref(&hole), 2 * BLOCK_LSN);
        let behind: Vec<_> = places.iter().filter(|it| it.0 >= 3 * BLOCK_LSN).copied().collect();
        assert!(behind.len() >= 2, "{places:?}");
        assert_eq!(records[0], places[0]);
        assert_eq!(&records[1..], &behind, "{lost:?}");
        assert!(end.lsn > places.last().unwrap().0);
    }

    #[test]
    fn what_is_missing_at_the_end_is_lost() {
        let (records, lost, _) = salvaged(&[], 20 * BLOCK_LSN);
        assert_eq!(records, []);
        let bases: Vec<Lsn> = lost.iter().map(|(from, _)| from / BLOCK_LSN).collect();
        assert_eq!(bases, [0, 8, 16]);
        assert_eq!(lost.last().unwrap().1, 20 * BLOCK_LSN);
    }
}
