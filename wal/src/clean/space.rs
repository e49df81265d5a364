//! How much of each segment still waits for somebody, and when it expires.
//!
//! A message counts in the segment in which it stands, from the moment it is
//! appended until it is acknowledged, dropped or copied elsewhere. A segment in
//! which nothing counts any more is dead; one in which little counts is a
//! victim: what is left is copied forward until it is dead, too. Unless it
//! empties by itself: whoever comes back to a full inbox takes segment after
//! segment, and what is copied a moment before was copied for nothing.
//!
//! What has expired is estimated: how many bytes of a segment expire in which
//! hour is known, which of them are still there is not, so that acknowledged
//! messages are taken to be spread evenly over the hours.
//!
//! Invariant: the live bytes and messages of a segment are those of the inbox
//! entries that point into it. They are counted again after every restart; only
//! the hours are in the snapshot.

use super::emptying::{Collectors, Pace};
use super::hours::{HOUR_MS, Hours};
use crate::record::{Malformed, Take};
use crate::{Lsn, segment};

/// Live bytes are kept at one part in so many of the bytes on the disk, or more.
const DISK_PER_LIVE: u64 = 2;
/// A segment is swept when one part in so many of it has expired.
const SWEPT_PART: u64 = 8;
/// Or when the oldest that has expired did so this long ago; the next time it
/// is twice as long.
const SWEPT_AFTER_MS: u64 = 24 * HOUR_MS;
/// So often at most, and once more when all of it has expired: what is read for
/// it is no more than eight times what was written.
const SWEEPS_MAX: u32 = 7;
/// A payload of the snapshot ends after about so many bytes, so that writing
/// one never holds up a turn.
const PAYLOAD_BYTES: usize = 32 << 10;

/// How much of each segment of one log is live.
#[derive(Clone, Debug)]
pub struct Space {
    segment_bytes: u64,
    /// By segment, ascending: all that are on the disk and hold something.
    cells: Vec<Cell>,
    live_bytes: u64,
    live_messages: u64,
    /// The cell that was changed last, if it still is where it was.
    recent: usize,
    /// The first segment that the log has not come to, 0 for not known.
    reached: u64,
    /// How often time has passed.
    ticks: u64,
}

/// One segment.
#[derive(Clone, Debug, Default)]
struct Cell {
    segment: u64,
    live_bytes: u64,
    live_messages: u64,
    /// The log's end after the record that took the last message away.
    emptied: Lsn,
    /// Its bytes are damaged: it is neither cleaned nor deleted.
    is_damaged: bool,
    /// Message bytes ever appended, but for those that expired and were swept.
    hours: Hours,
    /// What is acknowledged in it.
    pace: Pace,
    /// How often it was swept since the start.
    sweeps: u32,
    /// Records before this position are in `hours`, though they are replayed.
    as_of: Lsn,
}

impl Space {
    /// Nothing is live.
    pub fn new(segment_bytes: u64) -> Space {
        Space {
            segment_bytes,
            cells: Vec::new(),
            live_bytes: 0,
            live_messages: 0,
            recent: 0,
            reached: 0,
            ticks: 0,
        }
    }

    /// A message was appended or copied to `lsn`, or its record is replayed.
    /// `expires_ms` as in the record, 0 for never.
    pub fn add(&mut self, lsn: Lsn, len: u32, expires_ms: u64) {
        self.reach(lsn);
        let bytes = u64::from(len);
        let cell = self.put(lsn, bytes);
        if lsn >= cell.as_of {
            cell.hours.add(expires_ms, bytes);
        }
    }

    /// A message that a snapshot says to wait at `lsn`. When it expires is in
    /// the snapshot's table already.
    pub fn restore(&mut self, lsn: Lsn, len: u32) {
        self.put(lsn, u64::from(len));
    }

    /// A message at `lsn` was given up, or has been copied elsewhere. `end` is
    /// the log's end after the record that says so: the segment may not be
    /// deleted before the log is durable up to there.
    ///
    /// # Panics
    /// When it was never added.
    pub fn sub(&mut self, lsn: Lsn, len: u32, end: Lsn) {
        self.take(lsn, len, end);
    }

    /// [`Space::sub`] for one that was acknowledged: those who do so empty the
    /// segment without help.
    ///
    /// # Panics
    /// When it was never added.
    pub fn acknowledged(&mut self, lsn: Lsn, len: u32, end: Lsn) {
        let ticks = self.ticks;
        self.take(lsn, len, end).pace.add(ticks, u64::from(len));
    }

    fn take(&mut self, lsn: Lsn, len: u32, end: Lsn) -> &mut Cell {
        let bytes = u64::from(len);
        let at = self.find(segment::index(lsn, self.segment_bytes));
        let cell = &mut self.cells[at.expect("what waited was counted")];
        assert!(cell.live_messages > 0 && cell.live_bytes >= bytes, "what waited was counted");
        cell.live_bytes -= bytes;
        cell.live_messages -= 1;
        cell.emptied = cell.emptied.max(end);
        self.live_bytes -= bytes;
        self.live_messages -= 1;
        cell
    }

    /// Time has passed, a tenth of a second each time or more.
    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// Each segment, and whether it empties so fast by itself that copying what
    /// is left would come too late to be of use.
    fn emptying(&self) -> impl Iterator<Item = (&Cell, bool)> {
        let mut collectors = Collectors::default();
        self.cells.iter().map(move |cell| {
            let live = cell.live_bytes;
            let room = if live > 0 { self.segment_bytes / DISK_PER_LIVE } else { 0 };
            (cell, collectors.reach(live, room, cell.pace.get(self.ticks)))
        })
    }

    /// The log has come to `end`, so that all segments up to there exist.
    pub fn reach(&mut self, end: Lsn) {
        let last = segment::index(end, self.segment_bytes);
        // All that is known of may have been deleted.
        let known = self.cells.last().map_or(0, |cell| cell.segment + 1).max(self.reached);
        let next = if known == 0 { last } else { known };
        for segment in next..=last {
            self.cells.push(Cell { segment, ..Cell::default() });
        }
        self.reached = next.max(last + 1);
    }

    /// After a restart: these segments are on the disk, and the log ends at
    /// `end`. Whatever else was known of has been deleted.
    pub fn present(&mut self, segments: impl IntoIterator<Item = u64>, end: Lsn) {
        let last = segment::index(end, self.segment_bytes);
        let mut present: Vec<u64> = segments.into_iter().filter(|at| *at <= last).collect();
        present.sort_unstable();
        let is_present = |segment: &u64| present.binary_search(segment).is_ok();
        self.cells.retain(|cell| cell.live_messages > 0 || is_present(&cell.segment));
        for segment in present {
            if let Err(at) = self.find(segment) {
                self.cells.insert(at, Cell { segment, ..Cell::default() });
            }
        }
    }

    /// The segment's bytes are damaged, or cannot be read. From now on it is
    /// neither cleaned nor deleted.
    pub fn leave(&mut self, segment: u64) {
        if let Ok(at) = self.find(segment) {
            self.cells[at].is_damaged = true;
        }
    }

    /// [`Space::leave`] until here: it is cleaned and deleted like any other.
    pub fn return_to(&mut self, segment: u64) {
        if let Ok(at) = self.find(segment) {
            self.cells[at].is_damaged = false;
        }
    }

    /// The segment is being deleted.
    ///
    /// # Panics
    /// When something in it still waits.
    pub fn forget(&mut self, segment: u64) {
        if let Ok(at) = self.find(segment) {
            assert!(self.cells[at].live_messages == 0, "only a dead segment is deleted");
            self.cells.remove(at);
        }
    }

    /// Bytes and messages that wait, in all segments.
    pub fn total_live(&self) -> (u64, u64) {
        (self.live_bytes, self.live_messages)
    }

    /// Bytes and messages that wait in this segment.
    pub fn live(&self, segment: u64) -> (u64, u64) {
        let cell = self.find(segment).ok().map(|at| &self.cells[at]);
        cell.map_or((0, 0), |cell| (cell.live_bytes, cell.live_messages))
    }

    /// Bytes of those in this segment that have not expired: what copying it takes.
    pub fn unexpired(&self, segment: u64, now_ms: u64) -> u64 {
        self.find(segment).map_or(0, |at| self.cells[at].unexpired(now_ms))
    }

    /// Each segment in which something waits, with the bytes and the messages
    /// of it, as [`Restore::needed`](crate::Restore::needed) wants it.
    pub fn needed(&self) -> Vec<(u64, u64, u64)> {
        let cells = self.cells.iter().filter(|cell| cell.live_messages > 0);
        cells.map(|cell| (cell.segment, cell.live_bytes, cell.live_messages)).collect()
    }

    /// The segment to clean next, among those that end at or before `below`:
    /// where the least is left, the oldest of equals. `None` while the segments
    /// and `beside_bytes` take no more than twice the bytes of what waits and has
    /// not expired, or the segments alone one and a half times. What empties by
    /// itself is as good as dead.
    ///
    /// Dead segments do not count here, so that `beside_bytes` must: how many
    /// there may be, not how many there are. A cleaned segment is dead, too,
    /// until it is deleted; were those counted, cleaning would call for more of
    /// it.
    pub fn victim(&self, now_ms: u64, below: Lsn, beside_bytes: u64) -> Option<u64> {
        // Not the one being written: copies stand there, too.
        let goes = |cell: &Cell, is_emptying| is_emptying && self.is_below(cell, below);
        let stays = |(cell, is_emptying)| (!goes(cell, is_emptying)).then_some(cell);
        let cells = || self.emptying().filter_map(stays).filter(|cell: &&Cell| !cell.is_damaged);
        let live: u64 = cells().map(|cell| cell.unexpired(now_ms)).sum();
        let full = || cells().filter(|cell| cell.live_messages > 0 && self.is_below(cell, below));
        let bytes = full().count() as u64 * self.segment_bytes;
        // Fuller than two thirds they would be copied for little.
        if bytes <= DISK_PER_LIVE.saturating_mul(live) - beside_bytes.min(live / 2) {
            return None;
        }
        full().min_by_key(|cell| (cell.unexpired(now_ms), cell.segment)).map(|cell| cell.segment)
    }

    /// The emptiest segment that ends at or before `below`, when no more than this
    /// is left of it and at least a quarter of it would be won: for a disk on which
    /// there is no other place.
    pub fn victim_for(&self, now_ms: u64, below: Lsn, bytes_max: u64) -> Option<u64> {
        let bytes_max = bytes_max.min(self.segment_bytes - self.segment_bytes / 4);
        let is_it = |cell: &&Cell| {
            let fits = cell.unexpired(now_ms) <= bytes_max;
            !cell.is_damaged && cell.live_messages > 0 && fits && self.is_below(cell, below)
        };
        let fitting = self.cells.iter().filter(is_it);
        fitting.min_by_key(|cell| (cell.unexpired(now_ms), cell.segment)).map(|cell| cell.segment)
    }

    /// A segment that ends at or before `below` and of which enough has probably
    /// expired, or long enough ago, to read it and give that up, the oldest one.
    /// It holds up memory and inboxes, though the disk may have room.
    pub fn expired(&self, now_ms: u64, below: Lsn) -> Option<u64> {
        let worth = self.segment_bytes / SWEPT_PART;
        let is_due = |cell: &&Cell| {
            !cell.is_damaged && self.is_below(cell, below) && cell.is_sweep_due(now_ms, worth)
        };
        self.cells.iter().find(is_due).map(|cell| cell.segment)
    }

    /// What had expired in this segment at `now_ms` has been given up.
    pub fn swept(&mut self, segment: u64, now_ms: u64) {
        if let Ok(at) = self.find(segment) {
            self.cells[at].hours.forget(now_ms);
            self.cells[at].sweeps += 1;
        }
    }

    /// The segments that may be deleted: nothing in them waits, they end at or
    /// before `below`, and the log is durable up to where the last message in
    /// them was taken away. Ascending.
    pub fn dead(&self, below: Lsn, durable: Lsn) -> impl Iterator<Item = u64> {
        let cells = self.cells.iter().filter(move |cell| {
            cell.live_messages == 0
                && !cell.is_damaged
                && cell.emptied <= durable
                && self.is_below(cell, below)
        });
        cells.map(|cell| cell.segment)
    }

    /// Appends a payload for the snapshot: the hours of the segments from
    /// `from` on, all messages before `as_of` among them. Answers where the next
    /// payload begins, `None` after the last.
    pub fn encode(&self, from: u64, as_of: Lsn, out: &mut Vec<u8>) -> Option<u64> {
        let first = self.find(from).unwrap_or_else(|at| at);
        let began = out.len();
        for cell in &self.cells[first..] {
            if out.len() - began >= PAYLOAD_BYTES {
                return Some(cell.segment);
            }
            cell.encode(as_of, out);
        }
        None
    }

    /// What all payloads together take, bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.cells.iter().map(|cell| 16 + cell.hours.encoded_bytes()).sum()
    }

    /// Takes a payload that [`Space::encode`] made.
    ///
    /// # Errors
    /// [`Malformed`] when it is none.
    pub fn decode(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let mut take = Take(payload);
        while !take.0.is_empty() {
            let decoded = Cell::decode(&mut take).ok_or(Malformed::Payload)?;
            let at = self.cell(decoded.segment);
            let cell = &mut self.cells[at];
            if cell.as_of > 0 {
                return Err(Malformed::Payload);
            }
            (cell.hours, cell.as_of) = (decoded.hours, decoded.as_of);
        }
        Ok(())
    }

    fn put(&mut self, lsn: Lsn, bytes: u64) -> &mut Cell {
        let at = self.cell(segment::index(lsn, self.segment_bytes));
        self.live_bytes += bytes;
        self.live_messages += 1;
        let cell = &mut self.cells[at];
        cell.live_bytes += bytes;
        cell.live_messages += 1;
        cell
    }

    /// Where the segment's cell is, made when there was none. Neighbours in an
    /// inbox are neighbours in the log, so the one before is looked at first: at
    /// a start every waiting message passes here.
    fn cell(&mut self, segment: u64) -> usize {
        if self.cells.get(self.recent).is_some_and(|cell| cell.segment == segment) {
            return self.recent;
        }
        self.recent = self.find(segment).unwrap_or_else(|at| {
            self.cells.insert(at, Cell { segment, ..Cell::default() });
            at
        });
        self.recent
    }

    /// Appends go to the last one, so it is looked at first.
    fn find(&self, segment: u64) -> Result<usize, usize> {
        match self.cells.last() {
            Some(last) if last.segment == segment => Ok(self.cells.len() - 1),
            _ => self.cells.binary_search_by_key(&segment, |cell| cell.segment),
        }
    }

    fn is_below(&self, cell: &Cell, below: Lsn) -> bool {
        segment::base(cell.segment + 1, self.segment_bytes) <= below
    }
}

impl Cell {
    /// Live bytes without those that have probably expired.
    fn unexpired(&self, now_ms: u64) -> u64 {
        self.hours.unexpired(self.live_bytes, now_ms)
    }

    fn is_sweep_due(&self, now_ms: u64, worth: u64) -> bool {
        let overdue_ms = self.hours.overdue_ms(now_ms).filter(|_| self.live_messages > 0);
        let Some(overdue_ms) = overdue_ms else { return false };
        let is_worth = self.live_bytes - self.unexpired(now_ms) >= worth;
        let is_late = overdue_ms >= SWEPT_AFTER_MS << self.sweeps.min(SWEEPS_MAX);
        self.hours.are_past(now_ms) || self.sweeps < SWEEPS_MAX && (is_worth || is_late)
    }

    fn encode(&self, as_of: Lsn, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&as_of.to_le_bytes());
        self.hours.encode(out);
    }

    fn decode(take: &mut Take<'_>) -> Option<Cell> {
        let (segment, as_of) = (take.u64()?, take.u64()?);
        Some(Cell { segment, as_of, hours: Hours::decode(take)?, ..Cell::default() })
    }
}

#[cfg(test)]
mod tests;
