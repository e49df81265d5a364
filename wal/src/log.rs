//! The tail of the log and the pipeline of writes, without I/O.
//!
//! Records are appended to an open batch in the tail; [`Log::next_write`] seals
//! a batch into a commit and hands it out as one write; [`Log::written`] tells
//! what became of it and moves `durable`. While a write is in flight the next
//! batch gathers: that is group commit without a timer.
//!
//! Invariants: `durable <= end <= durable + tail_bytes`, so bytes that are in
//! flight are never overwritten; `end` never passes the place that there is on the
//! disk, so every write has one; no record and no write straddles a multiple of
//! `tail_bytes`; after one failed write nothing is handed out and `durable`
//! never moves again. Nothing is allocated after [`Log::new`].

use std::collections::VecDeque;

use crate::commit::{COMMIT_BYTES, Commit};
use crate::record::{self, Header, Record};
use crate::tail::Tail;
use crate::{BLOCK, BLOCK_LSN, Lsn, block_end, sector};

const COMMIT_LSN: Lsn = COMMIT_BYTES as Lsn;

/// What is left of the place for commits that only mark a position: whoever has
/// used up all of a full disk needs one between two snapshots.
const MARKS_LSN: Lsn = 2 * BLOCK_LSN;

/// Sizes of one log. [`LogOptions::check`] says which go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The window kept in memory, bytes; a multiple of [`BLOCK`], at least four.
    pub tail_bytes: usize,
    /// Log bytes in one segment file; a multiple of `tail_bytes`.
    pub segment_bytes: u64,
    /// The longest single write, bytes; a multiple of [`BLOCK`].
    pub commit_bytes_max: usize,
    /// Writes that may be in flight at once, at least 1.
    pub writes_in_flight_max: usize,
    /// While one write is in flight, another starts only when at least this many
    /// bytes wait.
    pub pipeline_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            tail_bytes: 8 << 20,
            segment_bytes: 64 << 20,
            commit_bytes_max: 1 << 20,
            writes_in_flight_max: 2,
            pipeline_bytes: 16 << 10,
        }
    }
}

impl LogOptions {
    /// Whether these sizes can work together.
    ///
    /// # Errors
    /// A sentence for the operator that says which one cannot be.
    pub fn check(&self) -> Result<(), &'static str> {
        let blocks = |bytes: usize| bytes > 0 && bytes.is_multiple_of(BLOCK);
        if !blocks(self.tail_bytes) || self.tail_bytes < 4 * BLOCK {
            return Err("the log's tail must be a multiple of 4096 bytes and at least 16 KiB");
        }
        if self.segment_bytes == 0 || !self.segment_bytes.is_multiple_of(self.tail_bytes as u64) {
            return Err("the segment size must be a multiple of the log's tail");
        }
        if !blocks(self.commit_bytes_max) || self.commit_bytes_max > self.tail_bytes {
            return Err("the longest write must be a multiple of 4096 bytes and fit in the tail");
        }
        // Its sectors of zeroes are counted in two bytes.
        if self.commit_bytes_max >= sector::SECTOR << 16 {
            return Err("the longest write must be below 32 MiB");
        }
        if self.writes_in_flight_max == 0 {
            return Err("at least one write must be allowed in flight");
        }
        Ok(())
    }

    /// The longest record such a log accepts, bytes. At most half of the tail,
    /// so that padding up to its end plus the record always fit.
    pub fn record_bytes_max(&self) -> usize {
        let half = self.tail_bytes / 2 / BLOCK * BLOCK;
        half.min(self.commit_bytes_max) - COMMIT_BYTES
    }
}

/// Where a log goes on: what recovery returns, and where a replay may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// The log's secret, part of every checksum.
    pub salt: u64,
    /// Where the next commit begins, a multiple of [`BLOCK`].
    pub lsn: Lsn,
    /// Checksum of the last record, which the next one chains to.
    pub prev_crc: u32,
    /// Number of the last commit, 0 when there is none.
    pub commit_seq: u64,
    /// The highest clock reading found, Unix ms.
    pub hlc_ms: u64,
}

impl LogStart {
    /// An empty log.
    pub fn fresh(salt: u64) -> LogStart {
        LogStart { salt, lsn: 0, prev_crc: 0, commit_seq: 0, hlc_ms: 0 }
    }
}

/// Where a record was put. It is stored when `durable() >= lsn + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its first byte.
    pub lsn: Lsn,
    /// Its length in bytes.
    pub len: u32,
}

/// Why a record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too much waits for the disk; ask again after the next completion. Or its
    /// next segment is not there yet, see [`Log::give_place`]. Also for a record
    /// beyond [`LogOptions::record_bytes_max`], which never fits.
    Full,
    /// A write failed; this log takes nothing any more.
    Poisoned,
}

/// One write to carry out: `len` bytes of [`Log::write_bytes`] at log position
/// `lsn`, durable before it is reported as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// First byte, a multiple of [`BLOCK`].
    pub lsn: Lsn,
    /// Length in bytes, a multiple of [`BLOCK`].
    pub len: u32,
}

/// The log of one shard: its tail in memory and its writes in flight.
pub struct Log {
    options: LogOptions,
    record_bytes_max: usize,
    salt: u64,
    tail: Tail,
    /// Where this run began; nothing before it is in the tail.
    start: Lsn,
    durable: Lsn,
    /// Commits never say that more than this is durable.
    vouched_max: Lsn,
    /// Where the segments end that are on the disk.
    place: Lsn,
    /// Behind this position there is place for cleaning only.
    common: Lsn,
    end: Lsn,
    /// Checksum of the last sealed record.
    prev_crc: u32,
    commit_seq: u64,
    hlc_ms: u64,
    /// The batch that appends go to; holds at least one record.
    open: Option<Batch>,
    /// Batches that are complete but not sealed yet, oldest first.
    closed: VecDeque<Batch>,
    /// Writes handed out and not yet part of `durable`, oldest first.
    flying: VecDeque<Flight>,
    poisoned: bool,
}

/// A commit before it is sealed.
#[derive(Clone, Copy)]
struct Batch {
    start: Lsn,
    /// End of its last record.
    used_end: Lsn,
    /// End of its padding; meaningless while it is open.
    end: Lsn,
    /// No record of it may end behind this: it is as long as a write may be
    /// there, or the tail is at its end.
    end_max: Lsn,
    hlc_ms: u64,
}

struct Flight {
    lsn: Lsn,
    end: Lsn,
    done: bool,
}

/// Where the next record goes.
enum Place {
    /// Into the open batch, at the log's end.
    Open,
    /// Into a new batch at this block boundary.
    Next(Lsn),
    /// Into a new batch at this multiple of the tail, after padding up to it.
    NextLap(Lsn),
}

impl Log {
    /// A log that goes on at `start`, with an empty tail.
    ///
    /// # Panics
    /// When [`LogOptions::check`] refuses the options, or `start` is not on a
    /// block boundary.
    pub fn new(options: LogOptions, start: LogStart) -> Log {
        if let Err(why) = options.check() {
            panic!("{why}");
        }
        assert!(start.lsn.is_multiple_of(BLOCK_LSN), "a commit starts on a block");
        // Two neighbours together are longer than a commit may be, or stand at
        // the end of the tail.
        let closed_max = 2 * (options.tail_bytes / options.commit_bytes_max) + 4;
        Log {
            options,
            record_bytes_max: options.record_bytes_max(),
            salt: start.salt,
            tail: Tail::new(options.tail_bytes),
            start: start.lsn,
            durable: start.lsn,
            vouched_max: Lsn::MAX,
            place: Lsn::MAX,
            common: Lsn::MAX,
            end: start.lsn,
            prev_crc: start.prev_crc,
            commit_seq: start.commit_seq,
            hlc_ms: start.hlc_ms,
            open: None,
            closed: VecDeque::with_capacity(closed_max),
            flying: VecDeque::with_capacity(options.writes_in_flight_max),
            poisoned: false,
        }
    }

    /// Has its commits vouch for nothing from `end` on. A repair goes on in a
    /// segment of its own, and what stands between the end that it found and that
    /// segment is a torn tail: whoever repairs again, because the first repair was
    /// interrupted, must not take it for something that had been confirmed.
    pub fn vouching_up_to(mut self, end: Lsn) -> Log {
        self.vouched_max = end;
        self
    }

    /// On the disk there is place up to `end`, from `common` on for cleaning only;
    /// without a word there is as much as one likes.
    ///
    /// # Panics
    /// When it takes away a place that is used.
    pub fn give_place(&mut self, end: Lsn, common: Lsn) {
        assert!(end >= block_end(self.end), "what was appended keeps its place");
        (self.place, self.common) = (end, common.min(end.saturating_sub(MARKS_LSN)));
    }

    /// Whether the longest record has no place on the disk.
    pub fn lacks_place(&self) -> bool {
        let end = self.end_after(self.record_bytes_max as Lsn).1;
        end > self.place.saturating_sub(MARKS_LSN)
    }

    /// Bytes of whole blocks that cleaning can append.
    pub fn place_left(&self) -> Lsn {
        self.place.saturating_sub(MARKS_LSN).saturating_sub(block_end(self.end))
    }

    /// Whether one record of this length would be accepted now. For several
    /// records ask for their sum and two blocks.
    pub fn room(&self, record_bytes: usize) -> bool {
        !self.poisoned && self.place_checked(record_bytes, self.common).is_some()
    }

    /// The same for a copy that cleaning makes, which gives more place than it takes.
    pub fn room_to_clean(&self, record_bytes: usize) -> bool {
        let place = self.place.saturating_sub(MARKS_LSN);
        !self.poisoned && self.place_checked(record_bytes, place).is_some()
    }

    /// Leaves the rest of the segment empty where that is no longer than a write
    /// may be and another segment follows; whether the log goes on in that one.
    pub fn leave_segment(&mut self) -> bool {
        let next = block_end(self.end);
        let lap_end = self.lap_end(next.max(1) - 1);
        let ends_segment = lap_end.is_multiple_of(self.options.segment_bytes);
        let is_short = lap_end - next <= self.options.commit_bytes_max as Lsn;
        let has_tail = lap_end + BLOCK_LSN - self.durable <= self.tail.bytes() as Lsn;
        let has_place = lap_end + BLOCK_LSN <= self.place;
        if self.poisoned || !(ends_segment && is_short && has_tail && has_place) {
            return false;
        }
        if self.end < lap_end {
            self.pad_to(lap_end);
        }
        true
    }

    /// Puts a record into the open batch. Allocates nothing; the checksum is
    /// made when the batch is sealed. The last two blocks of the place on the disk
    /// are for those who ask for no room first, because theirs has to be the next
    /// commit.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn append(&mut self, record: &Record<'_>, hlc_ms: u64) -> Result<Appended, Refused> {
        if self.poisoned {
            return Err(Refused::Poisoned);
        }
        let len = record::encoded_len(record);
        let place = self.place_checked(len, self.place).ok_or(Refused::Full)?;
        self.open_at(place);
        let lsn = self.end;
        record::encode(record, self.tail.get_mut(lsn, len));
        self.end += len as Lsn;
        self.hlc_ms = self.hlc_ms.max(hlc_ms);
        let open = self.open.as_mut().expect("a batch was opened");
        open.used_end = self.end;
        open.hlc_ms = self.hlc_ms;
        Ok(Appended { lsn, len: len as u32 })
    }

    /// Seals the next commit and hands it out, if the pipeline allows one more
    /// write. Call it at the end of a turn until it answers `None`.
    pub fn next_write(&mut self) -> Option<Write> {
        if self.poisoned || self.flying.len() >= self.options.writes_in_flight_max {
            return None;
        }
        let handed_out = self.flying.back().map_or(self.durable, |flight| flight.end);
        let waiting = block_end(self.end) - handed_out;
        if !self.flying.is_empty() && waiting < self.options.pipeline_bytes as Lsn {
            return None;
        }
        let batch = self.closed.pop_front().or_else(|| {
            self.close(block_end(self.end));
            self.closed.pop_front()
        })?;
        self.seal(&batch);
        self.flying.push_back(Flight { lsn: batch.start, end: batch.end, done: false });
        Some(Write { lsn: batch.start, len: (batch.end - batch.start) as u32 })
    }

    /// The bytes of a write, aligned to [`BLOCK`] in memory. They stay where
    /// they are and as they are until it is reported as [`Log::written`].
    ///
    /// # Panics
    /// When that write is not in flight.
    pub fn write_bytes(&self, write: &Write) -> &[u8] {
        let known = self.flying.iter().any(|flight| flight.lsn == write.lsn);
        assert!(known, "only a write in flight has stable bytes");
        self.tail.get(write.lsn, write.len as usize)
    }

    /// A write was completed and is durable, or, not `ok`, failed. Returns the
    /// durable end of the log.
    ///
    /// After a failure the log is poisoned for ever: a failed write or fsync is
    /// never tried again and called good.
    ///
    /// # Panics
    /// When no write at `lsn` is in flight.
    pub fn written(&mut self, lsn: Lsn, ok: bool) -> Lsn {
        let flight = self.flying.iter_mut().find(|flight| flight.lsn == lsn && !flight.done);
        flight.expect("a completion belongs to a write in flight").done = true;
        self.poisoned |= !ok;
        if self.poisoned {
            self.flying.retain(|flight| !flight.done);
            return self.durable;
        }
        while self.flying.front().is_some_and(|flight| flight.done) {
            let flight = self.flying.pop_front().expect("looked at above");
            assert!(flight.lsn == self.durable, "durable moves without a gap");
            self.durable = flight.end;
        }
        self.durable
    }

    /// The end of what the disk has confirmed, without a gap.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// The end of what was appended.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// Where a replay can begin that is to see everything from now on: the start
    /// of the first commit that is not sealed yet. What stands before it is
    /// sealed, so the checksum that the next commit chains to is known.
    pub fn checkpoint(&self) -> LogStart {
        let batch = self.closed.front().or(self.open.as_ref());
        let lsn = batch.map_or(self.end, |batch| batch.start);
        assert!(lsn.is_multiple_of(BLOCK_LSN), "a commit starts on a block");
        LogStart {
            salt: self.salt,
            lsn,
            prev_crc: self.prev_crc,
            commit_seq: self.commit_seq,
            hlc_ms: self.hlc_ms,
        }
    }

    /// The memory that so many bytes are about to be appended to, or less of it
    /// where the tail begins anew. What stands there means nothing.
    pub fn coming(&self, bytes: usize) -> &[u8] {
        let left = self.lap_end(self.end) - self.end;
        self.tail.get(self.end, bytes.min(left as usize))
    }

    /// Its sizes.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// Whether a write failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Writes handed out whose outcome has not been told.
    pub fn in_flight(&self) -> usize {
        self.flying.iter().filter(|flight| !flight.done).count()
    }

    /// The record at `lsn`, as long as it is in the tail; `None` when it has
    /// left it. No checksum is computed: the bytes never left memory.
    pub fn get(&self, lsn: Lsn, len: u32) -> Option<Record<'_>> {
        let end = lsn.checked_add(len.into())?;
        if lsn < self.tail_start() || end > self.end {
            return None;
        }
        if lsn % self.tail.bytes() as Lsn + Lsn::from(len) > self.tail.bytes() as Lsn {
            return None;
        }
        record::decode(self.tail.get(lsn, len as usize)).ok()
    }

    /// The oldest position still in the tail.
    fn tail_start(&self) -> Lsn {
        self.start.max(block_end(self.end).saturating_sub(self.tail.bytes() as Lsn))
    }

    /// Where a record of this length would go, if it may go anywhere now, with so
    /// much place on the disk.
    fn place_checked(&self, record_bytes: usize, place_end: Lsn) -> Option<Place> {
        if record_bytes > self.record_bytes_max {
            return None;
        }
        let (place, end) = self.end_after(record_bytes as Lsn);
        // Bytes that are not durable yet must not be overwritten.
        let has_tail = end - self.durable <= self.tail.bytes() as Lsn;
        (has_tail && end <= place_end).then_some(place)
    }

    /// Where a record of so many bytes would go, and the end of its last block.
    fn end_after(&self, bytes: Lsn) -> (Place, Lsn) {
        let place = self.place(bytes);
        let end = match place {
            Place::Open => self.end + bytes,
            Place::Next(at) | Place::NextLap(at) => at + COMMIT_LSN + bytes,
        };
        (place, block_end(end))
    }

    fn place(&self, bytes: Lsn) -> Place {
        if self.open.as_ref().is_some_and(|open| self.end + bytes <= open.end_max) {
            return Place::Open;
        }
        let next = block_end(self.end);
        let lap_end = self.lap_end(next);
        if next + COMMIT_LSN + bytes <= lap_end {
            Place::Next(next)
        } else {
            Place::NextLap(lap_end)
        }
    }

    /// The multiple of the tail's size after `lsn`.
    fn lap_end(&self, lsn: Lsn) -> Lsn {
        let lap = self.tail.bytes() as Lsn;
        (lsn / lap + 1) * lap
    }

    /// Makes the place the log's end, closing what stands before it.
    fn open_at(&mut self, place: Place) {
        let at = match place {
            Place::Open => return,
            Place::Next(at) => {
                self.close(at);
                at
            }
            Place::NextLap(at) => {
                self.pad_to(at);
                at
            }
        };
        let end = at + COMMIT_LSN;
        let end_max = self.lap_end(at).min(at + self.options.commit_bytes_max as Lsn);
        self.open = Some(Batch { start: at, used_end: end, end, end_max, hlc_ms: self.hlc_ms });
        self.end = end;
    }

    /// Closes the open batch, if there is one, padded up to `end`.
    fn close(&mut self, end: Lsn) {
        if let Some(open) = self.open.take() {
            self.closed.push_back(Batch { end, ..open });
            self.end = end;
        }
    }

    /// Fills the log up to the end of the lap: with the open batch's padding, or
    /// with a commit of nothing but padding where that would be too long.
    fn pad_to(&mut self, lap_end: Lsn) {
        let longest = self.options.commit_bytes_max as Lsn;
        match self.open {
            Some(open) if lap_end - open.start <= longest => return self.close(lap_end),
            _ => self.close(block_end(self.end)),
        }
        let start = self.end;
        let used_end = start + COMMIT_LSN;
        let (end, end_max) = (lap_end, lap_end);
        self.closed.push_back(Batch { start, used_end, end, end_max, hlc_ms: self.hlc_ms });
        self.end = lap_end;
    }

    /// Writes the commit record, zeroes the padding and chains every record to
    /// the one before it. Only now, because the first record says what is known
    /// only now, and each checksum covers the one before.
    fn seal(&mut self, batch: &Batch) {
        let len = (batch.end - batch.start) as usize;
        let used = (batch.used_end - batch.start) as usize;
        assert!(len <= self.options.commit_bytes_max && used <= len, "a commit keeps its limit");
        self.commit_seq += 1;
        let bytes = self.tail.get_mut(batch.start, len);
        bytes[used..].fill(0);
        // No checksum is there yet, but wherever one stands a length or a kind does.
        let zero_sectors = sector::zeroes(bytes, used);
        let commit = Commit {
            commit_bytes: len as u32,
            record_bytes: used as u32,
            lsn_durable: self.durable.min(self.vouched_max),
            hlc_ms: batch.hlc_ms,
            seq: self.commit_seq,
            zero_sectors,
        };
        let mut prev = commit.seal(bytes, self.salt, batch.start, self.prev_crc);
        let mut at = COMMIT_BYTES;
        while at < used {
            let header = Header::read(&bytes[at..used]).expect("a record was encoded here");
            let record = &mut bytes[at..at + header.len as usize];
            prev = record::stamp(record, self.salt, batch.start + at as Lsn, prev);
            at += header.len as usize;
        }
        assert!(at == used, "records fill the commit exactly");
        self.prev_crc = prev;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::tests::message;

    const SALT: u64 = 77;

    fn options() -> LogOptions {
        LogOptions {
            tail_bytes: 16 * BLOCK,
            segment_bytes: 64 * BLOCK as u64,
            commit_bytes_max: 4 * BLOCK,
            writes_in_flight_max: 2,
            pipeline_bytes: 2 * BLOCK,
        }
    }

    fn log() -> Log {
        Log::new(options(), LogStart::fresh(SALT))
    }

    /// Appends a message record of exactly this length.
    fn append(log: &mut Log, len: usize) -> Result<Appended, Refused> {
        let body = vec![0xab; len - record::encoded_len(&Record::Message(message(b"")))];
        log.append(&Record::Message(message(&body)), 5)
    }

    #[test]
    fn golden_commit() {
        let mut log = log();
        let record = Record::Ack { key: message(b"").key, device: 2, seq: 3, exact: true };
        log.append(&record, 0x0011_2233_4455).unwrap();
        let write = log.next_write().unwrap();
        let bytes = log.write_bytes(&write);
        assert_eq!(bytes.len(), BLOCK);
        let hex: String = bytes[..96].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "30000000035e392d0000000001000000001000006000000000000000000000005544332211000000\
             0100000000000000300000008725392f035e392d03010807100f0e0d0c0b0a090807060504030201\
             02000000000000000300000000000000"
        );
        assert!(bytes[96..].iter().all(|byte| *byte == 0), "padding is zero");
    }

    #[test]
    fn one_write_then_pipelining_by_size() {
        let mut log = log();
        assert_eq!(log.next_write(), None, "nothing to write");
        let first = append(&mut log, 200).unwrap();
        assert_eq!(first.lsn, COMMIT_LSN);
        assert_eq!(log.next_write(), Some(Write { lsn: 0, len: 4096 }));
        assert_eq!(log.next_write(), None);
        append(&mut log, 200).unwrap();
        assert_eq!(log.next_write(), None, "too little waits for a second write");
        append(&mut log, 4096).unwrap();
        assert_eq!(log.next_write(), Some(Write { lsn: 4096, len: 8192 }));
        append(&mut log, 9000).unwrap();
        assert_eq!(log.next_write(), None, "two are in flight");
        assert_eq!((log.in_flight(), log.durable()), (2, 0));

        assert_eq!(log.written(4096, true), 0, "a gap remains");
        assert_eq!(log.in_flight(), 1);
        assert_eq!(log.written(0, true), 3 * 4096);
        assert!(log.durable() >= first.lsn + u64::from(first.len));
        assert_eq!(log.next_write(), Some(Write { lsn: 3 * 4096, len: 3 * 4096 }));
    }

    /// Over several laps of the tail.
    #[test]
    fn what_is_appended_next_lies_where_it_is_said_to_come() {
        let mut log = log();
        let tail = log.options().tail_bytes;
        for n in 0..200 {
            let coming = log.coming(3 * BLOCK).as_ptr_range();
            let left = tail - (log.end() as usize) % tail;
            assert_eq!(log.coming(3 * BLOCK).len(), left.min(3 * BLOCK));
            let appended = append(&mut log, 200 + n % 7 * 100).unwrap();
            let place = log.tail.get(appended.lsn, appended.len as usize).as_ptr_range();
            let is_new_lap = appended.lsn as usize % tail == COMMIT_BYTES;
            assert!(is_new_lap || coming.start <= place.start && place.end <= coming.end);
            while let Some(write) = log.next_write() {
                log.written(write.lsn, true);
            }
        }
        assert!(log.end() as usize > 3 * tail);
    }

    #[test]
    fn a_failed_write_poisons_for_ever() {
        let mut log = log();
        append(&mut log, 200).unwrap();
        let first = log.next_write().unwrap();
        append(&mut log, 8192).unwrap();
        let second = log.next_write().unwrap();
        append(&mut log, 200).unwrap();
        assert_eq!(log.written(first.lsn, false), 0);
        assert!(log.is_poisoned() && !log.room(200));
        assert_eq!(append(&mut log, 200), Err(Refused::Poisoned));
        assert_eq!(log.next_write(), None);
        assert_eq!(log.written(second.lsn, true), 0, "durable never moves again");
        assert_eq!((log.next_write(), log.in_flight()), (None, 0));
    }

    /// What stands before a repair's segment and behind the end that it found was
    /// never confirmed, however often it writes.
    #[test]
    fn a_repair_vouches_for_nothing_behind_the_end_it_found() {
        let start = LogStart { lsn: options().segment_bytes, ..LogStart::fresh(SALT) };
        let mut log = Log::new(options(), start).vouching_up_to(2 * BLOCK as Lsn);
        for _ in 0..2 {
            append(&mut log, 200).unwrap();
            let write = log.next_write().unwrap();
            let (_, commit) = Commit::read(log.write_bytes(&write), SALT, write.lsn).unwrap();
            assert_eq!(commit.lsn_durable, 2 * BLOCK as Lsn);
            assert!(log.written(write.lsn, true) > write.lsn);
        }
    }

    #[test]
    fn full_until_the_disk_has_confirmed() {
        let mut log = log();
        let mut appended = 0;
        while append(&mut log, 3000).is_ok() {
            appended += 1;
        }
        assert!(appended >= 16 * 4096 / 3000 - 4, "only {appended} fit");
        assert!(!log.room(3000) && !log.is_poisoned());
        while let Some(write) = log.next_write() {
            log.written(write.lsn, true);
        }
        assert_eq!(log.durable(), log.end());
        assert!(log.room(options().record_bytes_max()));
        assert!(!log.room(options().record_bytes_max() + 1));
    }

    #[test]
    fn the_tail_keeps_what_fits() {
        let mut log = log();
        let mut all = Vec::new();
        for _ in 0..40 {
            all.push(append(&mut log, 3000).unwrap());
            while let Some(write) = log.next_write() {
                log.written(write.lsn, true);
            }
        }
        let kept: Vec<bool> = all.iter().map(|a| log.get(a.lsn, a.len).is_some()).collect();
        let first = kept.iter().position(|kept| *kept).unwrap();
        assert!(kept[first..].iter().all(|kept| *kept), "the newest are there");
        assert_eq!(kept.len() - first, 16, "one block each, sixteen blocks");
        assert_eq!(log.get(log.end(), 100), None);
        assert_eq!(log.get(u64::MAX, 100), None);
        assert_eq!(log.get(log.end() - 4096, 4097), None);
    }

    #[test]
    fn memory_is_aligned() {
        let mut log = log();
        append(&mut log, 200).unwrap();
        let write = log.next_write().unwrap();
        assert!(log.write_bytes(&write).as_ptr().addr().is_multiple_of(BLOCK));
    }

    #[test]
    fn options_that_cannot_work_are_named() {
        let check = |edit: fn(&mut LogOptions), word: &str| {
            let mut options = options();
            edit(&mut options);
            assert!(options.check().unwrap_err().contains(word));
        };
        assert_eq!(LogOptions::default().check(), Ok(()));
        check(|o| o.tail_bytes = 5000, "tail");
        check(|o| o.tail_bytes = BLOCK, "tail");
        check(|o| o.segment_bytes = 17 * 4096, "segment");
        check(|o| o.commit_bytes_max = 32 * BLOCK, "write");
        check(|o| o.writes_in_flight_max = 0, "flight");
    }

    /// One step of a random life.
    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        Several(Vec<usize>),
        Write,
        Complete(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = 120..options().record_bytes_max() + 1;
        prop_oneof![
            4 => (120usize..2000).prop_map(Step::Append),
            1 => len.prop_map(Step::Append),
            1 => prop::collection::vec(120usize..1500, 1..8).prop_map(Step::Several),
            3 => Just(Step::Write),
            3 => (0usize..4).prop_map(Step::Complete),
        ]
    }

    proptest! {
        /// Writes are contiguous, aligned, within their limits and within a lap;
        /// what is in flight does not change; `room` says what `append` does.
        #[test]
        fn any_life_keeps_the_invariants(
            steps in prop::collection::vec(step(), 1..200),
            in_flight in 1usize..4,
            commit_blocks in 1usize..8,
        ) {
            let mut options = options();
            options.writes_in_flight_max = in_flight;
            options.commit_bytes_max = commit_blocks * BLOCK;
            let mut log = Log::new(options, LogStart { lsn: 5 * 4096, ..LogStart::fresh(1) });
            let mut next = 5 * 4096;
            let mut flying: Vec<(Write, Vec<u8>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Append(len) => {
                        let room = log.room(len);
                        prop_assert_eq!(append(&mut log, len).is_ok(), room);
                    }
                    Step::Several(lens) => {
                        if log.room(lens.iter().sum::<usize>() + 2 * BLOCK) {
                            for len in lens {
                                prop_assert!(append(&mut log, len).is_ok());
                            }
                        }
                    }
                    Step::Write => {
                        if let Some(write) = log.next_write() {
                            prop_assert_eq!(write.lsn, next);
                            next += u64::from(write.len);
                            prop_assert!(write.len as usize <= options.commit_bytes_max);
                            flying.push((write, log.write_bytes(&write).to_vec()));
                        }
                    }
                    Step::Complete(which) if !flying.is_empty() => {
                        let (write, bytes) = flying.remove(which % flying.len());
                        prop_assert_eq!(log.write_bytes(&write), &bytes[..]);
                        log.written(write.lsn, true);
                    }
                    Step::Complete(_) => {}
                }
                prop_assert!(log.durable() <= log.end());
                prop_assert!(log.end() <= log.durable() + options.tail_bytes as u64);
                prop_assert_eq!(log.in_flight(), flying.len());
            }
            // Everything gets out, and then the longest record has room.
            for (write, _) in flying {
                log.written(write.lsn, true);
            }
            while let Some(write) = log.next_write() {
                log.written(write.lsn, true);
            }
            prop_assert_eq!(log.durable(), block_end(log.end()));
            prop_assert!(log.room(options.record_bytes_max()));
        }

        /// Nothing is appended that has no place; whoever asks for room leaves
        /// two blocks of it, and what is for cleaning to cleaning; with more place
        /// it goes on.
        #[test]
        fn nothing_is_appended_without_a_place(
            steps in prop::collection::vec((0u8..6, 200usize..9000, 0u64..20), 1..300),
        ) {
            const SEGMENT: Lsn = 64 * BLOCK_LSN;
            let mut log = log();
            let (mut place, mut common) = (SEGMENT, SEGMENT);
            log.give_place(place, common);
            for (what, len, blocks) in steps {
                let before = log.end();
                match what {
                    0 | 1 => {
                        let room = log.room(len);
                        if room {
                            prop_assert!(append(&mut log, len).is_ok());
                            let end = common.min(place - MARKS_LSN);
                            prop_assert!(block_end(log.end()) <= end);
                        }
                    }
                    2 => if log.room_to_clean(len) {
                        prop_assert!(append(&mut log, len).is_ok());
                        prop_assert!(block_end(log.end()) <= place - MARKS_LSN);
                    },
                    3 => if append(&mut log, len).is_err() {
                        prop_assert_eq!(log.end(), before);
                    },
                    4 => {
                        place += blocks / 10 * SEGMENT;
                        common = place - blocks % 2 * SEGMENT;
                        log.give_place(place, common);
                    }
                    _ => {
                        if log.leave_segment() {
                            prop_assert!(log.end().is_multiple_of(SEGMENT) && log.end() < place);
                        }
                        while let Some(write) = log.next_write() {
                            prop_assert!(write.lsn + u64::from(write.len) <= place);
                            log.written(write.lsn, true);
                        }
                    }
                }
                prop_assert!(block_end(log.end()) <= place);
                prop_assert!(!log.lacks_place() || place - log.end() < 32 * BLOCK_LSN);
            }
            while let Some(write) = log.next_write() {
                log.written(write.lsn, true);
            }
            log.give_place(place + SEGMENT, place + SEGMENT);
            prop_assert!(log.room(log.options.record_bytes_max()) && !log.lacks_place());
        }
    }
}
