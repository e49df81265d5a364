//! From the bytes of the segments back to records.
//!
//! The scanner follows the chain from commit to commit. Where it breaks there
//! are two cases, and confusing them loses messages or refuses to boot for
//! nothing: a **torn tail** was never acknowledged and is cut; **damage** was, or
//! may have been, and must stop the boot. The difference is in the commits
//! further on: each says how far the log was durable when it was sealed. If one
//! of them says "beyond this place", what stood here had been confirmed. And
//! a write that was torn has lost a sector, so that what stood there before shows,
//! a [pattern](crate::sector); what has lost none is damage as well.
//!
//! What it cannot see: last commits, which no later commit vouches for, of which a
//! sector never reached the disk although that said so look like a torn tail. That
//! is reported as such, never silently. A log that came to rest or was closed ends
//! with a commit that holds nothing else.

use std::fmt;

use crate::commit::{COMMIT_BYTES, Commit};
use crate::log::{LogOptions, LogStart};
use crate::record::{self, Header, Malformed, Record};
use crate::sector::Blank;
use crate::{BLOCK, BLOCK_LSN, Lsn, segment};

/// Receives each record in log order: its lsn, its length in bytes, itself.
pub type Sink<'a> = &'a mut dyn FnMut(Lsn, u32, Record<'_>);

/// What a snapshot and a log are read back into.
///
/// The order of the calls: `reset`; then, when there is a snapshot, its `state`
/// and `space` payloads in the order in which they were written and `loaded`;
/// then `record` for each record from the snapshot's start on, or from the
/// log's beginning; then `needed`. A snapshot that turns out to be damaged half
/// way is followed by another `reset`.
pub trait Restore {
    /// Forgets everything.
    fn reset(&mut self);

    /// Takes one payload of the shard's state, as the shard once wrote it.
    ///
    /// # Errors
    /// [`Malformed`] when it is none; the snapshot is not used then.
    fn state(&mut self, payload: &[u8]) -> Result<(), Malformed>;

    /// Takes one payload of the table of [`Space`](crate::clean::Space).
    ///
    /// # Errors
    /// As for [`Restore::state`].
    fn space(&mut self, payload: &[u8]) -> Result<(), Malformed>;

    /// The snapshot is complete: the replay begins at `start`, and the state
    /// was taken piece by piece until the log's end was `end`.
    fn loaded(&mut self, start: LogStart, end: Lsn);

    /// Takes the next record of the log.
    fn record(&mut self, lsn: Lsn, len: u32, record: &Record<'_>);

    /// After the replay: each segment that holds waiting messages, with their
    /// bytes and their number.
    fn needed(&self) -> Vec<(u64, u64, u64)>;
}

/// Acknowledged bytes are not what they were, or cannot be understood: booting
/// on would lose messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in the segment's file, bytes from its start.
    pub offset: u64,
    /// The position in the log.
    pub lsn: Lsn,
    /// What is wrong there.
    pub what: What,
    /// What proves that this place had been acknowledged, when that is how it
    /// was found.
    pub proof: Option<Proof>,
}

/// What proves that a place of the log had been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A commit that stands later, at this position.
    Commit(Lsn),
    /// The snapshot, which got its name when the log was durable up to this
    /// position.
    Snapshot(Lsn),
    /// All sectors of the write, none of which is missing. Nothing says that it
    /// was confirmed, but it was written, and is not what it was.
    Sectors,
}

/// What is wrong at a position of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// No commit begins here: nothing was written, or the files end.
    NoCommit,
    /// The commit's first record is not valid.
    Commit(Malformed),
    /// The commit claims to go beyond its segment.
    TooLong,
    /// The commit is valid in itself but does not follow the one before it.
    Chain,
    /// A record inside the commit is not valid.
    Record(Malformed),
    /// A valid record that this version cannot read.
    Unreadable(Malformed),
    /// The segment before this one is not there.
    Gap,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::NoCommit => f.write_str("no commit begins there"),
            What::Commit(why) => write!(f, "a commit begins there but {why}"),
            What::TooLong => f.write_str("the commit there claims to be longer than its segment"),
            What::Chain => f.write_str("the commit there does not follow the one before it"),
            What::Record(why) => write!(f, "a record of the commit there is damaged: {why}"),
            What::Unreadable(why) => write!(f, "a record there is intact but unreadable: {why}"),
            What::Gap => f.write_str("the segment before it is missing"),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { segment, offset, lsn, what, proof } = self;
        write!(
            f,
            "segment {segment} is damaged at file offset {offset} (log position {lsn}): {what}"
        )?;
        match proof {
            None => Ok(()),
            Some(Proof::Commit(lsn)) => {
                write!(f, "; the commit at position {lsn} shows that it had been acknowledged")
            }
            Some(Proof::Snapshot(lsn)) => write!(
                f,
                "; the snapshot shows that the log had been acknowledged up to position {lsn}"
            ),
            Some(Proof::Sectors) => f.write_str(
                "; it was written and has changed since: a write that a crash has torn lacks whole \
                 sectors, and this one has them all",
            ),
        }
    }
}

impl std::error::Error for Damage {}

/// A tail that was never acknowledged and has been cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where it was cut; the next commit is written here.
    pub lsn: Lsn,
    /// How many bytes the sectors had from there on that were not blank. Leftovers of earlier
    /// cuts, which the log never grew over, count again.
    pub bytes: u64,
}

/// Reads a log, segment by segment.
pub struct Scanner {
    salt: u64,
    segment_bytes: u64,
    /// Base of the segment that must come next.
    base: Lsn,
    /// Where the next commit should begin.
    lsn: Lsn,
    /// What it must chain to; unknown when the log's beginning was cleaned away.
    prev_crc: Option<u32>,
    commit_seq: Option<u64>,
    hlc_ms: u64,
    known_durable: Lsn,
    /// How far a snapshot says that the log was durable.
    vouched: Lsn,
    /// Set once the chain broke at `lsn`; from then on the scanner only looks
    /// ahead.
    broken: Option<What>,
    /// No torn write can have left what stands there.
    is_rotten: bool,
    /// What stands in the segments that come where nothing was written.
    blank: Blank,
    /// Bytes of sectors that are not blank from `lsn` on.
    cut_bytes: u64,
    #[cfg(any(test, feature = "planted"))]
    chain_ignored: bool,
}

impl Scanner {
    /// A scanner for the log with this salt whose first present segment begins
    /// at `first_base_lsn`. Of the options only `segment_bytes` matters: the
    /// other sizes may have been different when the log was written.
    ///
    /// When that is not 0, what the first commit must chain to is not known.
    pub fn new(salt: u64, options: LogOptions, first_base_lsn: Lsn) -> Scanner {
        let from_start = first_base_lsn == 0;
        Scanner {
            salt,
            segment_bytes: options.segment_bytes,
            base: first_base_lsn,
            lsn: first_base_lsn,
            prev_crc: from_start.then_some(LogStart::fresh(salt).prev_crc),
            commit_seq: from_start.then_some(0),
            hlc_ms: 0,
            known_durable: first_base_lsn,
            vouched: 0,
            broken: None,
            is_rotten: false,
            blank: Blank::Unknown,
            cut_bytes: 0,
            #[cfg(any(test, feature = "planted"))]
            chain_ignored: false,
        }
    }

    /// A scanner that begins in the middle, at [`Log::checkpoint`]: the first
    /// segment it is given is the one that holds `start.lsn`, the first record
    /// it gives is the first one from there on. `vouched` is how far the log is
    /// known to have been durable; an end before it is damage, not a torn tail.
    ///
    /// [`Log::checkpoint`]: crate::Log::checkpoint
    pub fn resume(start: LogStart, vouched: Lsn, options: LogOptions) -> Scanner {
        let bytes = options.segment_bytes;
        Scanner {
            lsn: start.lsn,
            prev_crc: Some(start.prev_crc),
            commit_seq: Some(start.commit_seq),
            hlc_ms: start.hlc_ms,
            known_durable: start.lsn,
            vouched,
            ..Scanner::new(
                start.salt,
                options,
                segment::base(segment::index(start.lsn, bytes), bytes),
            )
        }
    }

    /// What stands in the segments that come where nothing was written, see
    /// [`segment::blank`]. Unless it is said that is not known.
    pub fn blank(&mut self, blank: Blank) {
        self.blank = blank;
    }

    /// Plants a bug for the simulator's own test: stale commits pass.
    #[cfg(any(test, feature = "planted"))]
    pub fn ignore_chain(&mut self) {
        self.chain_ignored = true;
    }

    /// The first position of the segment that comes next.
    pub fn next_base(&self) -> Lsn {
        self.base
    }

    /// Reads the next segment: `bytes` is its log part, without the file's
    /// header, and may be shorter than a whole segment. Feed all segments, in
    /// order, even after the end of the log was found: damage is recognised by
    /// what comes later.
    ///
    /// # Errors
    /// [`Damage`]; the records given to `sink` so far are valid but not all.
    pub fn segment(&mut self, base: Lsn, bytes: &[u8], sink: Sink<'_>) -> Result<(), Damage> {
        if base != self.base {
            return Err(self.damage_at(self.base, What::Gap, None));
        }
        self.base += self.segment_bytes;
        let bytes = &bytes[..bytes.len().min(self.segment_bytes as usize)];
        // In the first segment after a snapshot the log goes on further in.
        let mut at = bytes.len().min(self.lsn.saturating_sub(base) as usize);
        while self.broken.is_none() && self.lsn < self.base {
            let rest = &bytes[at..];
            match self.commit(rest) {
                Ok(commit) => {
                    self.deliver(&rest[..commit.record_bytes as usize], sink)?;
                    at += commit.commit_bytes as usize;
                    self.lsn += Lsn::from(commit.commit_bytes);
                }
                Err(what) => {
                    self.is_rotten = !self.may_be_torn(rest);
                    self.broken = Some(what);
                }
            }
        }
        match self.broken {
            Some(what) => self.look_ahead(base + at as Lsn, &bytes[at..], what),
            None => Ok(()),
        }
    }

    /// The durable end that the commits themselves vouch for: everything before
    /// it had been confirmed by the disk, what is between it and the end of the
    /// log may still stand in a cache only.
    pub fn known_durable(&self) -> Lsn {
        self.known_durable
    }

    /// Where the log goes on, and what was cut, if anything.
    ///
    /// # Errors
    /// [`Damage`] when the log ends before the place up to which it is known to
    /// have been durable, or in what no torn write can have left; all other damage
    /// shows in [`Scanner::segment`].
    pub fn finish(self) -> Result<(LogStart, Option<Torn>), Damage> {
        if self.lsn < self.vouched {
            let what = self.broken.unwrap_or(What::NoCommit);
            return Err(self.damage_at(self.lsn, what, Some(Proof::Snapshot(self.vouched))));
        }
        if let Some(what) = self.broken.filter(|_| self.is_rotten) {
            return Err(self.damage_at(self.lsn, what, Some(Proof::Sectors)));
        }
        let start = LogStart {
            salt: self.salt,
            lsn: self.lsn,
            prev_crc: self.prev_crc.unwrap_or(0),
            commit_seq: self.commit_seq.unwrap_or(0),
            hlc_ms: self.hlc_ms,
        };
        let torn = (self.cut_bytes > 0).then_some(Torn { lsn: self.lsn, bytes: self.cut_bytes });
        Ok((start, torn))
    }

    /// Checks the commit at `self.lsn`, which `bytes` begins with, from its
    /// first to its last record, and takes it into the chain.
    fn commit(&mut self, bytes: &[u8]) -> Result<Commit, What> {
        let (header, commit) =
            Commit::read(bytes, self.salt, self.lsn).map_err(|why| match why {
                Malformed::Length | Malformed::Kind(0) => What::NoCommit,
                why => What::Commit(why),
            })?;
        if bytes.len() < commit.commit_bytes as usize {
            return Err(What::TooLong);
        }
        if !self.is_next(&header, &commit) {
            return Err(What::Chain);
        }
        let last_crc = self.records(&bytes[..commit.record_bytes as usize], header.crc)?;
        self.prev_crc = Some(last_crc);
        self.commit_seq = Some(commit.seq);
        self.hlc_ms = self.hlc_ms.max(commit.hlc_ms);
        self.known_durable = self.known_durable.max(commit.lsn_durable);
        Ok(commit)
    }

    /// Checks the records after the commit record; returns the last checksum.
    fn records(&self, bytes: &[u8], commit_crc: u32) -> Result<u32, What> {
        let mut prev = commit_crc;
        let mut at = COMMIT_BYTES;
        while at < bytes.len() {
            let lsn = self.lsn + at as Lsn;
            let header = record::check(&bytes[at..], self.salt, lsn).map_err(What::Record)?;
            if !self.follows(&header, Some(prev)) {
                return Err(What::Chain);
            }
            prev = header.crc;
            at += header.len as usize;
        }
        Ok(prev)
    }

    /// Whether this commit is the one that follows the last one.
    fn is_next(&self, header: &Header, commit: &Commit) -> bool {
        let seq_follows = self.commit_seq.is_none_or(|seq| seq.checked_add(1) == Some(commit.seq));
        seq_follows && self.follows(header, self.prev_crc)
    }

    /// Whether a crash can have left this where the next commit should stand.
    fn may_be_torn(&self, bytes: &[u8]) -> bool {
        match Commit::read(bytes, self.salt, self.lsn) {
            Ok((header, commit)) => {
                let is_within = commit.commit_bytes as usize <= bytes.len();
                !is_within
                    || !self.is_next(&header, &commit)
                    || self.blank.may_be_torn(bytes, Some(&commit))
            }
            Err(_) => self.blank.may_be_torn(bytes, None),
        }
    }

    fn follows(&self, header: &Header, prev: Option<u32>) -> bool {
        #[cfg(any(test, feature = "planted"))]
        if self.chain_ignored {
            return true;
        }
        prev.is_none_or(|prev| prev == header.prev)
    }

    /// Gives the records of a checked commit to the sink.
    fn deliver(&self, bytes: &[u8], sink: Sink<'_>) -> Result<(), Damage> {
        let mut at = COMMIT_BYTES;
        while at < bytes.len() {
            let lsn = self.lsn + at as Lsn;
            let header = Header::read(&bytes[at..]).expect("checked before");
            let len = header.len as usize;
            // Its checksum is right, so this log wrote it: no torn write, but
            // another version's record. Cutting it would lose it.
            let record = record::decode(&bytes[at..at + len])
                .map_err(|why| self.damage_at(lsn, What::Unreadable(why), None))?;
            sink(lsn, header.len, record);
            at += len;
        }
        Ok(())
    }

    /// Looks at every block from `lsn` on for a commit that proves that the
    /// place where the chain broke had been acknowledged.
    fn look_ahead(&mut self, lsn: Lsn, bytes: &[u8], what: What) -> Result<(), Damage> {
        for (block, at) in bytes.chunks(BLOCK).zip((lsn..).step_by(BLOCK)) {
            if self.blank.is(block) {
                continue;
            }
            self.cut_bytes += self.blank.written(block);
            match Commit::read(block, self.salt, at) {
                Ok((_, commit)) if commit.lsn_durable > self.lsn => {
                    return Err(self.damage_at(self.lsn, what, Some(Proof::Commit(at))));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn damage_at(&self, lsn: Lsn, what: What, proof: Option<Proof>) -> Damage {
        Damage {
            segment: segment::index(lsn, self.segment_bytes),
            offset: segment::file_offset(lsn, self.segment_bytes),
            lsn,
            what,
            proof,
        }
    }
}

const _: () = assert!(BLOCK_LSN as usize == BLOCK && COMMIT_BYTES <= BLOCK);
