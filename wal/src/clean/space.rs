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
mod tests {
    use proptest::prelude::*;

    use super::super::hours::HOURS_MAX;
    use super::*;

    const SEGMENT: u64 = 1 << 20;
    const LEN: u32 = 1000;

    /// A log of full segments that hold so many live messages, and an empty one
    /// being written.
    fn space(live: &[u64]) -> Space {
        let mut space = Space::new(SEGMENT);
        for (segment, &count) in live.iter().enumerate() {
            space.reach(segment as u64 * SEGMENT);
            for n in 0..count {
                space.add(segment as u64 * SEGMENT + n * u64::from(LEN), LEN, 100 * HOUR_MS);
            }
        }
        space.reach(live.len() as u64 * SEGMENT);
        space
    }

    fn victim(space: &Space) -> Option<u64> {
        space.victim(HOUR_MS, u64::MAX, 0)
    }

    fn is_emptying(space: &Space, segment: usize) -> bool {
        space.emptying().nth(segment).expect("it holds something").1
    }

    #[test]
    fn the_emptiest_segment_is_the_victim() {
        assert_eq!(victim(&space(&[1000, 1000])), None);
        assert_eq!(victim(&space(&[600, 600])), None, "less than twice");
        assert_eq!(victim(&space(&[500, 499])), Some(1));
        assert_eq!(victim(&space(&[300, 300, 900])), Some(0), "the oldest of equals");
        assert_eq!(victim(&space(&[0, 700, 0, 0])), None, "the dead do not count");
        assert_eq!(victim(&space(&[0, 500, 0, 0])), Some(1));
        assert_eq!(victim(&space(&[])), None);
    }

    /// Until they stop before it is empty.
    #[test]
    fn what_its_readers_empty_is_no_victim() {
        let mut space = space(&[1000, 900]);
        let mut at = 0..1000;
        let acknowledge = |space: &mut Space, at: u64| {
            space.acknowledged(at * u64::from(LEN), LEN, 9);
        };
        at.by_ref().take(900).for_each(|at| acknowledge(&mut space, at));
        assert_eq!(victim(&space), None);
        space.tick();
        assert_eq!((is_emptying(&space, 0), victim(&space)), (true, None));
        space.tick();
        assert_eq!((is_emptying(&space, 0), victim(&space)), (false, Some(0)));
        at.by_ref().take(9).for_each(|at| acknowledge(&mut space, at));
        assert_eq!(victim(&space), Some(0), "that is too slow");
        acknowledge(&mut space, at.next().expect("ninety are left"));
        assert_eq!(victim(&space), None);
    }

    /// The one being written empties, too, but what is copied stands there.
    #[test]
    fn what_is_written_counts_though_it_is_acknowledged_at_once() {
        let mut space = space(&[500]);
        let victim = |space: &Space| space.victim(HOUR_MS, SEGMENT, 0);
        assert_eq!(victim(&space), Some(0));
        for n in 0..500 {
            space.add(SEGMENT + n * u64::from(LEN), LEN, 0);
        }
        (0..60).for_each(|n| space.acknowledged(SEGMENT + n * u64::from(LEN), LEN, 9));
        assert_eq!((is_emptying(&space, 1), victim(&space)), (true, None));
    }

    #[test]
    fn only_what_is_full_and_durable_is_a_victim() {
        let space = space(&[10, 10, 10]);
        assert_eq!(space.victim(0, SEGMENT - 1, 0), None);
        assert_eq!(space.victim(0, SEGMENT, 0), Some(0));
        let mut space = Space::new(SEGMENT);
        space.add(5, LEN, 0);
        assert_eq!(space.victim(0, 4096, 0), None, "it is being written");
    }

    #[test]
    fn what_expires_makes_a_victim() {
        let mut space = Space::new(SEGMENT);
        for n in 0..2000 {
            let hour = if n < 1000 { 10 } else { 20 };
            space.add(n * u64::from(LEN), LEN, hour * HOUR_MS + 7);
        }
        space.reach(2 * SEGMENT);
        assert_eq!(space.victim(10 * HOUR_MS + 8, u64::MAX, 0), None, "not the whole hour");
        assert_eq!(space.victim(11 * HOUR_MS, u64::MAX, 0), Some(0));
        // Half of what remains of the first segment is taken to be expired.
        let mut half = super::tests::space(&[0]);
        for n in 0..1000 {
            half.add(SEGMENT + n * u64::from(LEN), LEN, if n < 500 { HOUR_MS } else { 0 });
        }
        for n in 0..400 {
            half.sub(SEGMENT + n * u64::from(LEN), LEN, 9);
        }
        let cell = &half.cells[1];
        assert_eq!((cell.live_bytes, cell.unexpired(0)), (600_000, 600_000));
        assert_eq!(cell.unexpired(2 * HOUR_MS), 300_000);
        assert_eq!(cell.unexpired(u64::MAX), 300_000, "what never expires stays");
    }

    #[test]
    fn what_lies_beside_makes_victims_earlier() {
        let space = space(&[600, 600, 700, 700]); // 2.6 million bytes in 4 MiB
        let victim = |beside| space.victim(HOUR_MS, u64::MAX, beside);
        assert_eq!(victim(SEGMENT - 100_000), None);
        assert_eq!(victim(SEGMENT), Some(0));
        // Two thirds full is full enough, whatever lies beside.
        assert_eq!(super::tests::space(&[700, 700]).victim(HOUR_MS, u64::MAX, u64::MAX), None);
        assert_eq!(super::tests::space(&[690, 690]).victim(HOUR_MS, u64::MAX, u64::MAX), Some(0));
    }

    /// Full segments; of the first, so many messages expire in these hours.
    fn expiring(hours: &[(u64, u64)]) -> Space {
        let mut space = space(&[0, 1000]);
        let mut n = 0;
        for &(hour, count) in hours {
            for _ in 0..count {
                space.add(n * u64::from(LEN), LEN, hour * HOUR_MS);
                n += 1;
            }
        }
        space
    }

    #[test]
    fn an_eighth_is_swept_at_once_and_less_after_a_day() {
        let due = |space: &Space, hour: u64| space.expired(hour * HOUR_MS, u64::MAX);
        let mut space = expiring(&[(1, 132), (2, 30), (5, 30), (90, 800)]);
        assert_eq!(due(&space, 1), None);
        assert_eq!(space.expired(2 * HOUR_MS, SEGMENT - 1), None, "it is being written");
        assert_eq!(due(&space, 2), Some(0));
        space.swept(0, 2 * HOUR_MS);
        assert_eq!(due(&space, 3), None, "what was given up is not looked for again");
        // The second time it takes two days.
        assert_eq!(due(&space, 3 + 47), None);
        assert_eq!(due(&space, 3 + 48), Some(0));
        space.swept(0, 51 * HOUR_MS);
        assert_eq!(due(&space, 90), None);
        assert_eq!(due(&space, 91), Some(0), "nothing else is left");
        let fresh = expiring(&[(1, 3), (900, 900)]);
        assert_eq!(due(&fresh, 25), None);
        assert_eq!(due(&fresh, 26), Some(0));
    }

    /// However the hours lie and whenever somebody looks.
    #[test]
    fn a_segment_is_swept_eight_times_at_most() {
        for step in [1, 3, 7, 24, 100] {
            let each: Vec<_> = (1..=1000).map(|hour| (hour, 1)).collect();
            let mut space = expiring(&each);
            space.forget_second();
            let mut sweeps = 0;
            for now_ms in (0..3000).step_by(step).map(|hour| hour * HOUR_MS) {
                while space.expired(now_ms, u64::MAX) == Some(0) {
                    space.swept(0, now_ms);
                    sweeps += 1;
                }
            }
            assert!((1..=8).contains(&sweeps), "{sweeps} sweeps with steps of {step} hours");
            assert_eq!(space.cells[0].hours.list(), [], "all of it was given up");
        }
    }

    impl Space {
        /// Takes away what [`space`] put into the second segment.
        fn forget_second(&mut self) {
            for n in 0..1000 {
                self.sub(SEGMENT + n * u64::from(LEN), LEN, 0);
            }
            self.forget(1);
        }
    }

    #[test]
    fn the_dead_wait_for_the_snapshot_and_the_disk() {
        let mut space = space(&[1, 0, 1]);
        let dead = |space: &Space, below, durable| space.dead(below, durable).collect::<Vec<_>>();
        assert_eq!(dead(&space, u64::MAX, u64::MAX - 1)[..1], [1]);
        assert_eq!(dead(&space, 2 * SEGMENT, 0), [1]);
        assert_eq!(dead(&space, 2 * SEGMENT - 1, 0), [0; 0]);
        space.sub(0, LEN, 5000);
        assert_eq!(dead(&space, 2 * SEGMENT, 4999), [1]);
        assert_eq!(dead(&space, 2 * SEGMENT, 5000), [0, 1]);
        assert_eq!(space.total_live(), (1000, 1));
        assert_eq!(space.needed(), [(2, 1000, 1)]);
        space.forget(0);
        assert_eq!(dead(&space, 2 * SEGMENT, 5000), [1]);
    }

    #[test]
    fn a_segment_that_is_passed_over_while_nothing_is_known_is_known_later() {
        let mut space = space(&[1, 1]);
        space.reach(SEGMENT);
        for segment in [0, 1] {
            space.sub(segment * SEGMENT, LEN, 0);
            space.forget(segment);
        }
        space.reach(3 * SEGMENT);
        assert_eq!(space.dead(4 * SEGMENT, 0).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_damaged_segment_is_left_alone() {
        let mut space = space(&[1, 2]);
        space.leave(0);
        assert_eq!(victim(&space), Some(1));
        space.sub(0, LEN, 0);
        space.sub(SEGMENT, LEN, 0);
        space.sub(SEGMENT + 1000, LEN, 0);
        assert_eq!(victim(&space), None);
        assert_eq!(space.dead(2 * SEGMENT, 0).collect::<Vec<_>>(), [1]);
        space.return_to(0);
        assert_eq!(space.dead(2 * SEGMENT, 0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_restart_finds_what_is_on_the_disk() {
        let mut space = Space::new(SEGMENT);
        space.restore(7 * SEGMENT, LEN);
        space.restore(3 * SEGMENT, LEN);
        space.decode(&encoded(&super::tests::space(&[1; 9]), 0)).unwrap();
        space.present([3, 5, 7, 8, 9, 10], 8 * SEGMENT + 5);
        let known: Vec<u64> = space.cells.iter().map(|cell| cell.segment).collect();
        assert_eq!(known, [3, 5, 7, 8], "those made ahead hold nothing yet");
        assert_eq!(space.dead(8 * SEGMENT, 0).collect::<Vec<_>>(), [5]);
    }

    #[test]
    #[should_panic(expected = "was counted")]
    fn what_was_never_added_cannot_leave() {
        space(&[1, 0]).sub(SEGMENT, LEN, 0);
    }

    /// All payloads in one.
    fn encoded(space: &Space, as_of: Lsn) -> Vec<u8> {
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let mut payload = Vec::new();
            let next = space.encode(from, as_of, &mut payload);
            assert!(payload.len() < PAYLOAD_BYTES + 20 + 12 * HOURS_MAX);
            all.extend_from_slice(&payload);
            match next {
                Some(next) => from = next,
                None => return all,
            }
        }
    }

    #[test]
    fn the_hours_survive_and_are_not_counted_twice() {
        let mut before = space(&[3, 4]);
        before.add(2 * SEGMENT + 100, LEN, 50 * HOUR_MS);
        let mut after = Space::new(SEGMENT);
        after.decode(&encoded(&before, 2 * SEGMENT + 200)).unwrap();
        after.add(2 * SEGMENT + 100, LEN, 50 * HOUR_MS); // replayed
        after.add(2 * SEGMENT + 200, LEN, 60 * HOUR_MS); // new
        let hours: Vec<_> = after.cells.iter().map(|cell| cell.hours.list()).collect();
        assert_eq!(hours, [vec![(100, 3000)], vec![(100, 4000)], vec![(50, 1000), (60, 1000)]]);
        assert_eq!(after.total_live(), (2000, 2));
        assert_eq!(after.decode(&encoded(&before, 9)), Err(Malformed::Payload), "twice");
    }

    #[test]
    fn hours_are_bounded_and_payloads_are_sliced() {
        let mut space = Space::new(SEGMENT);
        for segment in 0..5 {
            for hour in (1..3000).rev() {
                space.add(segment * SEGMENT, 1, hour * HOUR_MS);
            }
        }
        assert!(space.cells.iter().all(|cell| cell.hours.list().len() == HOURS_MAX));
        let sum = |cell: &Cell| cell.hours.list().iter().map(|(_, bytes)| bytes).sum::<u64>();
        assert!(space.cells.iter().all(|cell| sum(cell) == 2999));
        let mut payload = Vec::new();
        assert_eq!(space.encode(0, 1, &mut payload), Some(3));
        let mut after = Space::new(SEGMENT);
        after.decode(&encoded(&space, 1)).unwrap();
        assert_eq!(after.cells.len(), 5);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut space = Space::new(SEGMENT);
            let _ = space.decode(&bytes);
            let _ = space.victim(HOUR_MS, u64::MAX / 2, 1 << 20);
        }

        /// Whatever happens, the sums are those of the messages that are there.
        #[test]
        fn the_sums_agree(steps in prop::collection::vec((0..6u64, any::<bool>()), 0..200)) {
            let mut space = Space::new(SEGMENT);
            let mut live: Vec<Lsn> = Vec::new();
            let mut end = 0;
            for (n, adds) in steps {
                end += n * 200_000;
                if adds || live.is_empty() {
                    space.add(end, LEN, n * HOUR_MS);
                    live.push(end);
                } else if n % 2 == 0 {
                    space.sub(live.remove(n as usize % live.len()), LEN, end);
                } else {
                    space.acknowledged(live.remove(n as usize % live.len()), LEN, end);
                    space.tick();
                }
                prop_assert_eq!(space.total_live().1, live.len() as u64);
                if let Some(victim) = space.victim(3 * HOUR_MS, end, 0) {
                    prop_assert!((victim + 1) * SEGMENT <= end);
                    prop_assert!(live.iter().any(|at| at / SEGMENT == victim));
                }
                for dead in space.dead(end, end) {
                    prop_assert!(live.iter().all(|at| at / SEGMENT != dead));
                }
            }
            let needed: u64 = space.needed().iter().map(|(_, _, messages)| messages).sum();
            prop_assert_eq!(needed, live.len() as u64);
        }
    }
}
