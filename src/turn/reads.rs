//! Reads of the log that wait for a buffer, in the order of the disk.
//!
//! When many come back at once their messages lie mixed in the same stretch of
//! the log. In the order in which they asked, each message would be a read of
//! its own; in the order of the log one read serves everybody who waits for
//! something near. The sweep goes on from where it is and begins again at the
//! start, so that nobody waits for more than one round of it.

use std::collections::BTreeMap;

use wal::Lsn;

use super::log_io::Reader;

/// Most bytes of a read that serves several.
const JOINED_BYTES_MAX: u64 = 256 * 1024;
/// A read bridges this much that nobody asked for.
const GAP_BYTES_MAX: u64 = 64 * 1024;

/// Who is served by one read: each may get a whole burst, and all that in one
/// turn.
const JOINED_MAX: usize = 8;

/// A read of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) reader: Reader,
    pub(super) lsn: Lsn,
    /// Without so many bytes there is nothing to be had.
    pub(super) len_min: u32,
    pub(super) len: u32,
}

impl Read {
    fn end(&self) -> Lsn {
        self.lsn + u64::from(self.len)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiting: BTreeMap<(Lsn, u64), Read>,
    /// Tells apart those that want the same place.
    count: u64,
    /// Where the sweep is.
    head: Lsn,
}

impl Reads {
    pub(super) fn push(&mut self, read: Read) {
        self.count += 1;
        self.waiting.insert((read.lsn, self.count), read);
    }

    /// Takes back what [`next`](Reads::next) gave and could not be started: the
    /// sweep goes on with it, or every second place would be passed over.
    pub(super) fn put_back(&mut self, reads: Vec<Read>) {
        self.head = reads.first().map_or(self.head, |read| read.lsn);
        reads.into_iter().for_each(|read| self.push(read));
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
        for (&key, read) in self.waiting.range(key..).skip(1).take(JOINED_MAX - 1) {
            let is_near = read.lsn <= end + GAP_BYTES_MAX;
            let fits = read.end() <= first.lsn + JOINED_BYTES_MAX || read.end() <= end;
            if !is_near || !fits || !is_beside(first.lsn, read.lsn) {
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

/// The whole stretch of reads that are served together.
pub(super) fn whole(reads: &[Read]) -> Read {
    let end = reads.iter().map(Read::end).max().expect("there is one at least");
    Read { len: (end - reads[0].lsn) as u32, ..reads[0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(list: &[(Lsn, u32)]) -> Reads {
        let mut reads = Reads::default();
        for &(lsn, len) in list {
            reads.push(Read { reader: Reader::Cleaner, lsn, len_min: len, len });
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
        reads.push(Read { reader: Reader::Cleaner, lsn: 1_250_000, len_min: 1, len: 250_000 });
        assert_eq!(next(&mut reads), [1_200_000]);
        assert_eq!(next(&mut reads), [1_250_000]);
    }

    #[test]
    fn the_sweep_goes_on_and_begins_again() {
        let mut reads = reads(&[(500_000, 100), (700_000, 100)]);
        assert_eq!(next(&mut reads), [500_000]);
        reads.push(Read { reader: Reader::Cleaner, lsn: 100, len_min: 1, len: 1 });
        assert_eq!(next(&mut reads), [700_000]);
        assert_eq!(next(&mut reads), [100]);
    }

    #[test]
    fn a_crowd_is_served_in_parts() {
        let mut reads = reads(&[(100, 10); JOINED_MAX + 1]);
        assert_eq!(next(&mut reads).len(), JOINED_MAX);
        assert_eq!(next(&mut reads).len(), 1);
    }

    #[test]
    fn the_whole_reaches_to_the_last_end() {
        let mut reads = reads(&[(100, 5_000), (200, 50)]);
        let together = reads.next(|_, _| true);
        assert_eq!((whole(&together).lsn, whole(&together).len), (100, 5_000));
    }
}
