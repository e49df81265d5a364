//! How much of each segment still waits for somebody, and when it expires.
//!
//! A message counts in the segment in which it stands, from the moment it is
//! appended until it is acknowledged, dropped or copied elsewhere. A segment in
//! which nothing counts any more is dead; one in which little counts is a
//! victim: what is left is copied forward until it is dead, too.
//!
//! What has expired is estimated: how many bytes of a segment expire in which
//! hour is known, which of them are still there is not, so that acknowledged
//! messages are taken to be spread evenly over the hours.
//!
//! Invariant: the live bytes and messages of a segment are those of the inbox
//! entries that point into it. They are counted again after every restart; only
//! the hours are in the snapshot.

use crate::record::{Malformed, Take};
use crate::{Lsn, segment};

/// Live bytes are kept at one part in so many of the segments' bytes, or more.
const DISK_PER_LIVE: u64 = 2;
/// Hours told apart in one segment. A default retention of 30 days has 720.
const HOURS_MAX: usize = 1024;
const HOUR_MS: u64 = 60 * 60 * 1000;
/// The hour of what never expires.
const NEVER: u32 = u32::MAX;
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
    /// Message bytes ever appended, by the hour in which they expire, ascending.
    hours: Vec<(u32, u64)>,
    /// Their sum.
    appended: u64,
    /// Records before this position are in `hours`, though they are replayed.
    as_of: Lsn,
}

impl Space {
    /// Nothing is live.
    pub fn new(segment_bytes: u64) -> Space {
        Space { segment_bytes, cells: Vec::new(), live_bytes: 0, live_messages: 0, recent: 0 }
    }

    /// A message was appended or copied to `lsn`, or its record is replayed.
    /// `expires_ms` as in the record, 0 for never.
    pub fn add(&mut self, lsn: Lsn, len: u32, expires_ms: u64) {
        self.reach(lsn);
        let bytes = u64::from(len);
        let cell = self.put(lsn, bytes);
        if lsn >= cell.as_of {
            let hour = u32::try_from(expires_ms / HOUR_MS).unwrap_or(NEVER);
            cell.expire_in(if expires_ms == 0 { NEVER } else { hour }, bytes);
        }
    }

    /// A message that a snapshot says to wait at `lsn`. When it expires is in
    /// the snapshot's table already.
    pub fn restore(&mut self, lsn: Lsn, len: u32) {
        self.put(lsn, u64::from(len));
    }

    /// A message at `lsn` waits no more, or has been copied elsewhere. `end` is
    /// the log's end after the record that says so: the segment may not be
    /// deleted before the log is durable up to there.
    ///
    /// # Panics
    /// When it was never added.
    pub fn sub(&mut self, lsn: Lsn, len: u32, end: Lsn) {
        let bytes = u64::from(len);
        let at = self.find(segment::index(lsn, self.segment_bytes));
        let cell = &mut self.cells[at.expect("what waited was counted")];
        assert!(cell.live_messages > 0 && cell.live_bytes >= bytes, "what waited was counted");
        cell.live_bytes -= bytes;
        cell.live_messages -= 1;
        cell.emptied = cell.emptied.max(end);
        self.live_bytes -= bytes;
        self.live_messages -= 1;
    }

    /// The log has come to `end`, so that all segments up to there exist.
    pub fn reach(&mut self, end: Lsn) {
        let last = segment::index(end, self.segment_bytes);
        let next = self.cells.last().map_or(last, |cell| cell.segment + 1);
        for segment in next..=last {
            self.cells.push(Cell { segment, ..Cell::default() });
        }
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

    /// The segment's bytes are damaged. From now on it is neither cleaned nor
    /// deleted.
    pub fn leave(&mut self, segment: u64) {
        if let Ok(at) = self.find(segment) {
            self.cells[at].is_damaged = true;
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
    /// take no more than twice the bytes of what waits and has not expired.
    /// Dead ones do not count, they are as good as gone.
    pub fn victim(&self, now_ms: u64, below: Lsn) -> Option<u64> {
        let cells = || self.cells.iter().filter(|cell| !cell.is_damaged);
        let live: u64 = cells().map(|cell| cell.unexpired(now_ms)).sum();
        let full = || cells().filter(|cell| cell.live_messages > 0 && self.is_below(cell, below));
        let bytes = full().count() as u64 * self.segment_bytes;
        if bytes <= DISK_PER_LIVE.saturating_mul(live) {
            return None;
        }
        full().min_by_key(|cell| (cell.unexpired(now_ms), cell.segment)).map(|cell| cell.segment)
    }

    /// A segment that ends at or before `below` and of which at least half has
    /// probably expired, the oldest one. It holds up memory and inboxes, though
    /// the disk may have room.
    pub fn expired(&self, now_ms: u64, below: Lsn) -> Option<u64> {
        let is_old = |cell: &&Cell| {
            cell.live_messages > 0
                && !cell.is_damaged
                && self.is_below(cell, below)
                && cell.unexpired(now_ms) <= cell.live_bytes / 2
        };
        self.cells.iter().find(is_old).map(|cell| cell.segment)
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
            (cell.hours, cell.appended) = (decoded.hours, decoded.appended);
            cell.as_of = decoded.as_of;
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
    fn expire_in(&mut self, hour: u32, bytes: u64) {
        self.appended += bytes;
        let at = match self.hours.binary_search_by_key(&hour, |(hour, _)| *hour) {
            Ok(at) => at,
            Err(at) if self.hours.len() < HOURS_MAX => {
                self.hours.insert(at, (hour, 0));
                at
            }
            // Rather late than early: only an estimate becomes worse.
            Err(at) => at.min(HOURS_MAX - 1),
        };
        self.hours[at].1 += bytes;
    }

    /// Live bytes without those that have probably expired.
    fn unexpired(&self, now_ms: u64) -> u64 {
        let past = |hour: u32| hour != NEVER && (u64::from(hour) + 1) * HOUR_MS <= now_ms;
        let expired: u64 =
            self.hours.iter().take_while(|(hour, _)| past(*hour)).map(|(_, bytes)| bytes).sum();
        if expired == 0 {
            return self.live_bytes;
        }
        let left = u128::from(self.live_bytes) * u128::from(self.appended - expired);
        (left / u128::from(self.appended)) as u64
    }

    fn encode(&self, as_of: Lsn, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&as_of.to_le_bytes());
        out.extend_from_slice(&(self.hours.len() as u32).to_le_bytes());
        for (hour, bytes) in &self.hours {
            out.extend_from_slice(&hour.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }

    fn decode(take: &mut Take<'_>) -> Option<Cell> {
        let (segment, as_of) = (take.u64()?, take.u64()?);
        let count = take.u32()? as usize;
        if count > HOURS_MAX {
            return None;
        }
        let mut cell = Cell { segment, as_of, ..Cell::default() };
        for _ in 0..count {
            let (hour, bytes) = (take.u32()?, take.u64()?);
            if cell.hours.last().is_some_and(|(last, _)| *last >= hour) {
                return None;
            }
            cell.appended = cell.appended.checked_add(bytes)?;
            cell.hours.push((hour, bytes));
        }
        Some(cell)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        space.victim(HOUR_MS, u64::MAX)
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

    #[test]
    fn only_what_is_full_and_durable_is_a_victim() {
        let space = space(&[10, 10, 10]);
        assert_eq!(space.victim(0, SEGMENT - 1), None);
        assert_eq!(space.victim(0, SEGMENT), Some(0));
        let mut space = Space::new(SEGMENT);
        space.add(5, LEN, 0);
        assert_eq!(space.victim(0, 4096), None, "it is being written");
    }

    #[test]
    fn what_expires_makes_a_victim() {
        let mut space = Space::new(SEGMENT);
        for n in 0..2000 {
            let hour = if n < 1000 { 10 } else { 20 };
            space.add(n * u64::from(LEN), LEN, hour * HOUR_MS + 7);
        }
        space.reach(2 * SEGMENT);
        assert_eq!(space.victim(10 * HOUR_MS + 8, u64::MAX), None, "not the whole hour");
        assert_eq!(space.victim(11 * HOUR_MS, u64::MAX), Some(0));
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
    fn a_damaged_segment_is_left_alone() {
        let mut space = space(&[1, 2]);
        space.leave(0);
        assert_eq!(victim(&space), Some(1));
        space.sub(0, LEN, 0);
        space.sub(SEGMENT, LEN, 0);
        space.sub(SEGMENT + 1000, LEN, 0);
        assert_eq!(victim(&space), None);
        assert_eq!(space.dead(2 * SEGMENT, 0).collect::<Vec<_>>(), [1]);
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
        let hours: Vec<_> = after.cells.iter().map(|cell| cell.hours.clone()).collect();
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
        assert!(space.cells.iter().all(|cell| cell.hours.len() == HOURS_MAX));
        assert!(space.cells.iter().all(|cell| cell.appended == 2999));
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
            let _ = space.victim(HOUR_MS, u64::MAX / 2);
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
                } else {
                    space.sub(live.remove(n as usize % live.len()), LEN, end);
                }
                prop_assert_eq!(space.total_live().1, live.len() as u64);
                if let Some(victim) = space.victim(3 * HOUR_MS, end) {
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
