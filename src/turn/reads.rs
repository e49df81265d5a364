//! Reads of the log: those that wait for a buffer, in the order of the disk, those
//! that are under way, and those that have come back.
//!
//! When many come back at once their messages lie mixed in the same stretch of
//! the log. In the order in which they asked, each message would be a read of
//! its own; in the order of the log one read serves everybody who waits for
//! something near, and whoever asks for a part of what is under way, or held for
//! others, gets it from there. The sweep goes on from where it is and begins again at the start, so that
//! nobody waits for more than one round of it.
//!
//! What the disk does not give is asked for again: by itself, then less of it, so
//! that a bad sector takes with it only what stands there, and in the end once
//! more after a while.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use net::ReadBuf;
use wal::{BLOCK, Lsn};

use super::log_io::Reader;

/// Most bytes of a read that serves several.
const JOINED_BYTES_MAX: u64 = 256 * 1024;
/// A read bridges this much that nobody asked for.
const GAP_BYTES_MAX: u64 = 64 * 1024;

/// After this long a read that has failed is tried for the last time.
const LATER_NS: u64 = 1_000_000_000;

/// Where a read was given up, what lies as near as this is not waited for again
/// for a while: a lost stretch of the disk is to cost its inboxes that time once,
/// and not once for each message.
const NEAR_BYTES: u64 = 16 << 20;
const GIVEN_UP_NS: u64 = 60_000_000_000;

/// Who is served by one read: its buffer is taken until each has had a burst of
/// it.
const JOINED_MAX: usize = 64;

/// So many together will soon ask for what lies between what they have asked for
/// now.
const CROWD: usize = 4;

/// Another one's read serves who gets so much of it, or all that was asked for:
/// one burst.
const SHARE_BYTES: u64 = 64 * 1024;

/// A read of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) reader: Reader,
    pub(super) lsn: Lsn,
    /// Without so many bytes there is nothing to be had.
    pub(super) len_min: u32,
    len: u32,
    /// As far as more is wanted, with much between.
    len_wide: u32,
    /// It has failed: nothing is read together with it.
    is_alone: bool,
    /// It is not tried again.
    is_last: bool,
}

impl Read {
    /// Of so many bytes: at least, better, and if others read there, too.
    pub(super) fn new(reader: Reader, lsn: Lsn, (len_min, len, len_wide): (u32, u32, u32)) -> Read {
        Read { reader, lsn, len_min, len, len_wide, is_alone: false, is_last: false }
    }

    fn end(&self) -> Lsn {
        self.lsn + u64::from(self.len)
    }

    /// Whether a stretch has enough of it.
    fn is_served_by(&self, stretch: &Range<Lsn>) -> bool {
        let enough = u64::from(self.len).min(SHARE_BYTES).max(self.len_min.into());
        !self.is_alone && stretch.start <= self.lsn && self.lsn + enough <= stretch.end
    }
}

/// A read of the disk.
#[derive(Debug, Default)]
struct Flight {
    /// Those who wait for their part of it; none when there is no such read.
    readers: VecDeque<Read>,
    /// What it is good for.
    good: Range<Lsn>,
    /// Nobody else is served by it.
    is_alone: bool,
    /// What it has brought.
    back: Option<(ReadBuf, u32)>,
}

impl Flight {
    fn takes(&self, read: &Read) -> bool {
        let has_room = (1..JOINED_MAX).contains(&self.readers.len());
        has_room && !self.is_alone && read.is_served_by(&self.good)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiting: BTreeMap<(Lsn, u64), Read>,
    /// Under way or held, by their tag.
    flights: Vec<Flight>,
    /// What has failed, and when it is tried again; the next one first.
    later: VecDeque<(u64, Read)>,
    /// Tells apart those that want the same place.
    count: u64,
    /// Where the sweep is.
    head: Lsn,
    /// Where the last one was given up, and when.
    given_up: Option<(Lsn, u64)>,
}

impl Reads {
    /// Waits for its turn, or joins the readers of another one that will do.
    pub(super) fn ask(&mut self, read: Read) {
        match self.flights.iter_mut().find(|flight| flight.takes(&read)) {
            Some(flight) => flight.readers.push_back(read),
            None => self.push(read),
        }
    }

    /// One that is free.
    pub(super) fn tag(&self) -> usize {
        let free = self.flights.iter().position(|flight| flight.readers.is_empty());
        free.unwrap_or(self.flights.len())
    }

    /// A read of the disk for these has begun, up to `end`.
    pub(super) fn began(&mut self, tag: usize, reads: Vec<Read>, end: Lsn) {
        if tag == self.flights.len() {
            self.flights.push(Flight::default());
        }
        let (good, is_alone) = (reads[0].lsn..end, reads[0].is_alone);
        self.flights[tag] = Flight { readers: reads.into(), good, is_alone, back: None };
    }

    /// It has brought so many bytes, which are held until everybody is served.
    pub(super) fn came_back(&mut self, tag: usize, buffer: ReadBuf, len: u32) {
        let flight = &mut self.flights[tag];
        flight.good.end = flight.good.end.min(block_start(flight.good.start) + Lsn::from(len));
        flight.back = Some((buffer, len));
    }

    /// The next one to be served by what came back: the read, the buffer and how
    /// much is in it, and the position of its first byte.
    pub(super) fn reader(&self, tag: usize) -> (Read, &ReadBuf, u32, Lsn) {
        let flight = &self.flights[tag];
        let (buffer, len) = flight.back.as_ref().expect("it has come back");
        let read = *flight.readers.front().expect("somebody waits for it");
        (read, buffer, *len, block_start(flight.good.start))
    }

    /// Whether a device waits for what this one has brought.
    pub(super) fn is_for_devices(&self, tag: usize) -> bool {
        self.flights[tag].readers.iter().any(|read| read.reader != Reader::Cleaner)
    }

    /// That one is served. The buffer, if it was the last.
    pub(super) fn served(&mut self, tag: usize) -> Option<ReadBuf> {
        let flight = &mut self.flights[tag];
        flight.readers.pop_front();
        let (buffer, _) = flight.back.take_if(|_| flight.readers.is_empty())?;
        Some(buffer)
    }

    /// It has failed; whom it was for.
    pub(super) fn failed(&mut self, tag: usize) -> VecDeque<Read> {
        std::mem::take(&mut self.flights[tag].readers)
    }

    fn push(&mut self, read: Read) {
        self.count += 1;
        self.waiting.insert((read.lsn, self.count), read);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes back what [`next`](Reads::next) gave and could not be started: the
    /// sweep goes on with it, or every second place would be passed over.
    pub(super) fn put_back(&mut self, reads: Vec<Read>) {
        self.head = reads.first().map_or(self.head, |read| read.lsn);
        reads.into_iter().for_each(|read| self.push(read));
    }

    /// The disk did not give this one, which it was asked for together with others
    /// or not; whether it will be tried again.
    pub(super) fn try_again(&mut self, now_ns: u64, read: Read, was_shared: bool) -> bool {
        let read = Read { is_alone: true, ..read };
        if was_shared {
            // It may be the others' part that is bad.
            self.push(read);
        } else if read.len > read.len_min {
            self.push(Read { len: read.len_min.max(read.len / 2), ..read });
        } else if !read.is_last && !self.is_near_given_up(now_ns, read.lsn) {
            self.later.push_back((now_ns + LATER_NS, Read { is_last: true, ..read }));
        } else {
            self.given_up = Some((read.lsn, now_ns));
            return false;
        }
        true
    }

    fn is_near_given_up(&self, now_ns: u64, lsn: Lsn) -> bool {
        self.given_up.is_some_and(|(place, at_ns)| {
            lsn.abs_diff(place) < NEAR_BYTES && now_ns.saturating_sub(at_ns) < GIVEN_UP_NS
        })
    }

    /// Lets those wait with the others again whose time has come.
    pub(super) fn wake(&mut self, now_ns: u64) {
        while let Some(&(due_ns, read)) = self.later.front()
            && due_ns <= now_ns
        {
            self.later.pop_front();
            self.push(read);
        }
    }

    /// The next reads that one read of the disk can serve, the first of them
    /// first; `is_beside` says whether two places are in one file.
    pub(super) fn next(&mut self, is_beside: impl Fn(Lsn, Lsn) -> bool) -> Vec<Read> {
        let ahead = self.waiting.range((self.head, 0)..).next();
        let Some((&key, &first)) = ahead.or_else(|| self.waiting.first_key_value()) else {
            return Vec::new();
        };
        let mut end = first.end();
        let mut keys = vec![key];
        let joined_max = if first.is_alone { 0 } else { JOINED_MAX - 1 };
        for (&key, read) in self.waiting.range(key..).skip(1).take(joined_max) {
            let is_near = read.lsn <= end + GAP_BYTES_MAX;
            let fits = read.end() <= first.lsn + JOINED_BYTES_MAX || read.end() <= end;
            if !is_near || !fits || read.is_alone || !is_beside(first.lsn, read.lsn) {
                break;
            }
            end = end.max(read.end());
            keys.push(key);
        }
        // Others may wait for the same stretch: they are next.
        self.head = if keys.len() < JOINED_MAX { end } else { first.lsn };
        keys.iter().filter_map(|key| self.waiting.remove(key)).collect()
    }
}

/// How much is read for those that are served together: as far as a crowd will
/// want it, but not beyond `end_max`, where its file or the durable log ends.
pub(super) fn stretch(reads: &[Read], end_max: Lsn) -> u32 {
    let first = reads.first().expect("there is one at least").lsn;
    let wide_max = end_max.min(first + JOINED_BYTES_MAX);
    let is_crowd = reads.len() >= CROWD;
    let end = |read: &Read| match is_crowd {
        true => read.end().max(wide_max.min(read.lsn + u64::from(read.len_wide))),
        false => read.end(),
    };
    let end = reads.iter().map(end).max().expect("there is one at least");
    (end.min(end_max) - first) as u32
}

/// Reads begin on a block.
fn block_start(lsn: Lsn) -> Lsn {
    lsn / BLOCK as Lsn * BLOCK as Lsn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(list: &[(Lsn, u32)]) -> Reads {
        let mut reads = Reads::default();
        for &(lsn, len) in list {
            reads.push(Read::new(Reader::Cleaner, lsn, (len, len, len)));
        }
        reads
    }

    fn next(reads: &mut Reads) -> Vec<Lsn> {
        reads.next(|a, b| a / 1_000_000 == b / 1_000_000).iter().map(|read| read.lsn).collect()
    }

    #[test]
    fn what_lies_near_is_read_together() {
        let mut reads = reads(&[(9_000, 100), (100, 100), (100, 100), (900_000, 100), (200, 50)]);
        assert_eq!(next(&mut reads), [100, 100, 200, 9_000]);
        assert_eq!(next(&mut reads), [900_000]);
        assert!(next(&mut reads).is_empty());
    }

    #[test]
    fn everybody_gets_a_turn_where_buffers_are_few() {
        // Eight far from each other, who ask for the next place as soon as they
        // have one; each time a buffer comes back one read starts and the next
        // one finds none.
        let mut reads = reads(&[0, 1, 2, 3, 4, 5, 6, 7].map(|place| (place * 1_000_000, 100)));
        let mut served = [0; 8];
        for _ in 0..80 {
            let read = reads.next(|_, _| false)[0];
            served[(read.lsn / 1_000_000) as usize] += 1;
            reads.push(Read { lsn: read.lsn + 1, ..read });
            let refused = reads.next(|_, _| false);
            reads.put_back(refused);
        }
        assert_eq!(served, [10; 8]);
    }

    #[test]
    fn a_read_stays_in_its_file_and_its_bounds() {
        let mut reads = reads(&[(999_900, 100), (1_000_000, 100), (1_200_000, 90_000)]);
        assert_eq!(next(&mut reads), [999_900]);
        assert_eq!(next(&mut reads), [1_000_000]);
        reads.push(Read::new(Reader::Cleaner, 1_250_000, (1, 250_000, 250_000)));
        assert_eq!(next(&mut reads), [1_200_000]);
        assert_eq!(next(&mut reads), [1_250_000]);
    }

    #[test]
    fn the_sweep_goes_on_and_begins_again() {
        let mut reads = reads(&[(500_000, 100), (700_000, 100)]);
        assert_eq!(next(&mut reads), [500_000]);
        reads.push(Read::new(Reader::Cleaner, 100, (1, 1, 1)));
        assert_eq!(next(&mut reads), [700_000]);
        assert_eq!(next(&mut reads), [100]);
    }

    #[test]
    fn a_crowd_is_served_in_parts() {
        let mut reads = reads(&[(100, 10); JOINED_MAX + 1]);
        assert_eq!(next(&mut reads).len(), JOINED_MAX);
        assert_eq!(next(&mut reads).len(), 1);
    }

    /// Half, by itself; then as little as will do; then once more, later.
    #[test]
    fn what_has_failed_is_tried_again() {
        let mut reads = Reads::default();
        reads.push(Read::new(Reader::Cleaner, 100, (150, 500, 500)));
        for len in [500, 250, 150] {
            let first = reads.next(|_, _| true)[0];
            assert_eq!((first.lsn, first.len), (100, len));
            assert!(reads.try_again(7, first, false));
            if len == 500 {
                reads.push(Read::new(Reader::Cleaner, 200, (100, 100, 100)));
            }
        }
        assert_eq!(next(&mut reads), [200], "nobody waits with it");
        reads.wake(LATER_NS);
        assert!(next(&mut reads).is_empty(), "it is not time yet");
        reads.wake(LATER_NS + 7);
        let last = reads.next(|_, _| true)[0];
        assert!(!reads.try_again(8, last, false));
    }

    #[test]
    fn what_has_failed_in_company_is_tried_by_itself() {
        let mut reads = reads(&[(100, 10), (200, 10)]);
        let both = reads.next(|_, _| true);
        assert_eq!(both.len(), 2);
        // Near what was given up just now, where nothing is waited for.
        reads.given_up = Some((100, 5));
        both.iter().for_each(|read| assert!(reads.try_again(6, *read, true)));
        for lsn in [100, 200] {
            let alone = reads.next(|_, _| true);
            assert_eq!((alone.len(), alone[0].lsn, alone[0].len), (1, lsn, 10));
            assert!(!reads.try_again(7, alone[0], false));
        }
    }

    /// What lies beside it is given up at its first failure, for a while.
    #[test]
    fn a_lost_stretch_is_waited_for_once() {
        let mut reads = Reads::default();
        let place = NEAR_BYTES;
        let read = |lsn| Read::new(Reader::Cleaner, lsn, (10, 10, 10));
        assert!(reads.try_again(5, read(place), false));
        reads.wake(5 + LATER_NS);
        let last = reads.next(|_, _| true)[0];
        assert!(!reads.try_again(6 + LATER_NS, last, false));
        assert!(!reads.try_again(7 + LATER_NS, read(place + 100), false));
        assert!(
            reads.try_again(7 + LATER_NS, read(place + 100 + NEAR_BYTES), false),
            "that is far away"
        );
        assert!(
            reads.try_again(7 + LATER_NS + GIVEN_UP_NS, read(place + 200), false),
            "that is long ago"
        );
    }

    #[test]
    fn the_stretch_reaches_to_the_last_end() {
        let mut reads = reads(&[(100, 5_000), (200, 50)]);
        let together = reads.next(|_, _| true);
        assert_eq!(stretch(&together, Lsn::MAX), 5_000);
        assert_eq!(stretch(&together, 4_100), 4_000);
    }

    fn wide(lsn: Lsn) -> Read {
        Read::new(Reader::Cleaner, lsn, (10, 100, 500_000))
    }

    #[test]
    fn a_crowd_reads_what_it_will_want() {
        let few = [100, 200, 300].map(wide);
        assert_eq!(stretch(&few, Lsn::MAX), 300);
        let crowd = [100, 200, 300, 400].map(wide);
        assert_eq!(u64::from(stretch(&crowd, Lsn::MAX)), JOINED_BYTES_MAX);
        assert_eq!(stretch(&crowd, 50_100), 50_000, "nothing beyond the durable end");
        let narrow = [100, 200, 300, 400].map(|lsn| Read { len_wide: 100, ..wide(lsn) });
        assert_eq!(stretch(&narrow, Lsn::MAX), 400, "nobody wants more");
    }

    #[test]
    fn who_asks_for_what_is_under_way_waits_for_it() {
        let mut reads = reads(&[(1_000, 100_000)]);
        let first = reads.next(|_, _| true);
        let tag = reads.tag();
        reads.began(tag, first, 101_000);
        let ask = |reads: &mut Reads, lsn, len| {
            reads.ask(Read::new(Reader::Cleaner, lsn, (10, len, len)));
            !reads.is_empty() && !reads.next(|_, _| true).is_empty()
        };
        assert!(ask(&mut reads, 999, 10), "that lies before it");
        assert!(!ask(&mut reads, 1_000, 10));
        assert!(!ask(&mut reads, 100_990, 10));
        assert!(ask(&mut reads, 100_991, 10), "that lies behind it");
        assert!(!ask(&mut reads, 30_000, 200_000), "a burst of it is there");
        assert!(ask(&mut reads, 40_000, 200_000), "less is not");
        assert_eq!(reads.tag(), 1, "it is under way");
        let lsns: Vec<Lsn> = reads.failed(tag).iter().map(|read| read.lsn).collect();
        assert_eq!(lsns, [1_000, 1_000, 100_990, 30_000]);
        assert_eq!(reads.tag(), tag);
        assert!(ask(&mut reads, 1_000, 10), "it has ended");
    }

    #[test]
    fn what_has_failed_waits_for_nobody() {
        let mut reads = reads(&[(100, 1_000)]);
        let first = reads.next(|_, _| true);
        reads.began(0, first, 1_100);
        let failed = Read { is_alone: true, ..wide(200) };
        reads.ask(failed);
        assert_eq!(reads.next(|_, _| true), [failed]);
        reads.began(1, vec![failed], 1_100);
        reads.failed(0);
        reads.ask(wide(200));
        assert_eq!(reads.next(|_, _| true).len(), 1, "nobody waits with it");
    }
}
