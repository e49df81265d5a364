//! One shard's disk: bytes in sectors, writes in flight, crashes.
//!
//! A completed write is durable, as RWF_DSYNC promises. Of a write in flight
//! at a crash each sector of 512 bytes is the old one, the new one or, on bad
//! disks, garbage. What was cut by a recovery becomes blank or, as in older
//! formats, stays where it is: only the log's chain tells then that it is stale. A
//! sync may fail by itself: its write is there or partly there, nobody knows, and
//! what completes afterwards is as doubtful until somebody reads it back. A deleted
//! segment or snapshot may come back with a crash. Snapshots are files of their own, there
//! with their name or not at all.
//!
//! A new layout is written through a cache: what was not synced can be read, and
//! ends at a crash as a write in flight does.

use std::collections::BTreeMap;
use std::ops::Range;

use wal::Lsn;
use wal::sector::{Blank, SECTOR};

use crate::chance::Chance;
use crate::names::Names;

/// How the writes in flight end at a crash.
#[derive(Clone, Copy, Debug)]
enum Tear {
    Nothing,
    Everything,
    /// The first sectors only.
    Prefix,
    /// Each sector by itself.
    Sectors,
}

struct Flight {
    id: u64,
    lsn: Lsn,
    bytes: Vec<u8>,
}

/// A snapshot under its final name.
pub struct SnapshotFile {
    /// Where its replay begins.
    pub start: Lsn,
    /// The whole file.
    pub bytes: Vec<u8>,
    /// A bit of it has flipped.
    pub(crate) is_rotten: bool,
    /// It was deleted and came back: segments that it needs may be gone.
    is_back: bool,
}

impl SnapshotFile {
    /// As it was written.
    pub fn new(start: Lsn, bytes: Vec<u8>) -> SnapshotFile {
        SnapshotFile { start, bytes, is_rotten: false, is_back: false }
    }
}

/// See the module.
pub struct Disk {
    segment_bytes: u64,
    /// How segments are filled, from which one on; ascending.
    blanks: Vec<(u64, Blank)>,
    bytes: Vec<u8>,
    /// Segments made so far.
    made: u64,
    flights: Vec<Flight>,
    /// Completed writes beyond a gap: where each begins and ends.
    done: BTreeMap<Lsn, Lsn>,
    durable: Lsn,
    /// A sync failed: no completion means anything before the next start.
    is_doubtful: bool,
    /// Deleted segments, and whether that is certain to survive a crash.
    deleted: BTreeMap<u64, bool>,
    /// Those that came back with the last crash.
    returned: Vec<u64>,
    /// Oldest first.
    pub snapshots: Vec<SnapshotFile>,
    /// Those that the newest one replaced, as long as a crash may bring them back.
    replaced: Vec<SnapshotFile>,
    /// Where a cache was written to, and what the disk has there.
    unsynced: Vec<(Lsn, Vec<u8>)>,
    /// The log alone leads to nothing, so that one snapshot must stay good.
    needs_snapshot: bool,
    /// Durable bytes that are not what they were.
    rotten: Vec<Lsn>,
    /// Sectors of writes that were under way at a crash which are neither the old
    /// ones nor the new ones.
    garbage: Vec<Lsn>,
    /// What cannot be read: the disk refuses it, the file ends before, or is gone.
    holes: Vec<Range<Lsn>>,
    pub(crate) half_mended: Option<HalfMended>,
    pub(crate) names: Names,
}

/// A repair has taken a snapshot.
pub(crate) struct HalfMended {
    /// Where.
    pub(crate) start: Lsn,
    /// What it has written, with the place of each record.
    pub(crate) records: Vec<(Lsn, Vec<u8>)>,
}

impl Disk {
    /// An empty disk, whose segments are filled like this.
    pub fn new(segment_bytes: u64, blank: Blank) -> Disk {
        Disk {
            segment_bytes,
            blanks: vec![(0, blank)],
            bytes: Vec::new(),
            made: 0,
            flights: Vec::new(),
            done: BTreeMap::new(),
            durable: 0,
            is_doubtful: false,
            deleted: BTreeMap::new(),
            returned: Vec::new(),
            snapshots: Vec::new(),
            replaced: Vec::new(),
            unsynced: Vec::new(),
            needs_snapshot: false,
            rotten: Vec::new(),
            garbage: Vec::new(),
            holes: Vec::new(),
            half_mended: None,
            names: Names::default(),
        }
    }

    /// An empty disk for a shard of a new layout.
    pub(crate) fn of_new_layout(segment_bytes: u64, blank: Blank) -> Disk {
        Disk { needs_snapshot: true, ..Disk::new(segment_bytes, blank) }
    }

    /// What stands in a segment where nothing was written.
    pub(crate) fn blank(&self, segment: u64) -> Blank {
        let of = self.blanks.iter().rfind(|(first, _)| *first <= segment);
        of.map_or(Blank::Unknown, |(_, blank)| *blank)
    }

    /// Segments that are made from here on are filled like this.
    pub(crate) fn fill_from_now_on(&mut self, blank: Blank) {
        self.blanks.push((self.place_end() / self.segment_bytes, blank));
    }

    /// Whether there are segments in which a torn write is known by what it leaves.
    pub(crate) fn tells_torn(&self) -> bool {
        self.blanks.iter().any(|(_, blank)| *blank != Blank::Unknown)
    }

    /// Fills what is there from `at` on.
    fn fill(&mut self, at: usize) {
        let size = self.segment_bytes as usize;
        let mut from = at;
        while from < self.bytes.len() {
            let to = self.bytes.len().min((from / size + 1) * size);
            self.blank((from / size) as u64).fill(&mut self.bytes[from..to]);
            from = to;
        }
    }

    /// There are so many bytes, most of them blank.
    fn grow(&mut self, end: usize) {
        let was = self.bytes.len();
        if was < end {
            self.bytes.resize(end, 0);
            self.fill(was);
        }
    }

    /// Whether the log alone leads to nothing.
    pub(crate) fn needs_snapshot(&self) -> bool {
        self.needs_snapshot
    }

    /// Writes to the cache.
    pub(crate) fn write_cached(&mut self, lsn: Lsn, bytes: &[u8]) {
        let (at, end) = (lsn as usize, lsn as usize + bytes.len());
        self.grow(end);
        self.unsynced.push((lsn, self.bytes[at..end].to_vec()));
        self.bytes[at..end].copy_from_slice(bytes);
    }

    /// Brings the cache to the disk.
    pub(crate) fn sync(&mut self) {
        self.unsynced.clear();
        self.durable = self.bytes.len() as Lsn;
    }

    /// Everything is deleted.
    pub(crate) fn wipe(&mut self) {
        let segments = self.bytes.len() as u64 / self.segment_bytes;
        self.deleted = (0..=segments).map(|segment| (segment, true)).collect();
        self.snapshots.clear();
        self.replaced.clear();
        self.holes.clear();
    }

    fn segment(&self, lsn: Lsn) -> u64 {
        lsn / self.segment_bytes
    }

    /// Deletes what has the name of a segment; which one it is.
    ///
    /// # Errors
    /// As for [`Disk::delete`].
    pub(crate) fn delete_by_name(&mut self, name: u64) -> Result<Option<u64>, String> {
        let Some(segment) = self.names.delete(name) else { return Ok(None) };
        self.delete(segment).map(|()| Some(segment))
    }

    /// Deletes a segment.
    ///
    /// # Errors
    /// When the snapshot before the newest one needs it, or there is none.
    pub fn delete(&mut self, segment: u64) -> Result<(), String> {
        let mut good = self.snapshots.iter().rev().filter(|it| !it.is_rotten);
        let older = good.nth(1).map_or(0, |it| it.start);
        self.deleted.insert(segment, false);
        if (segment + 1) * self.segment_bytes > older {
            return Err(format!("segment {segment} is deleted, the log from {older} on is needed"));
        }
        Ok(())
    }

    /// The next segment is there, with nothing in it.
    pub fn make_segment(&mut self) {
        self.made = self.place_end() / self.segment_bytes + 1;
    }

    /// Where the last segment ends.
    pub fn place_end(&self) -> Lsn {
        // Where space has no bound nobody says that a segment is made.
        let used = (self.bytes.len() as u64).div_ceil(self.segment_bytes);
        self.made.max(used) * self.segment_bytes
    }

    /// Whether everything before this position has a segment.
    pub fn has_place_for(&self, end: Lsn) -> bool {
        end <= self.place_end()
    }

    /// What the segments take that are there.
    pub fn segment_bytes_taken(&self) -> u64 {
        let segments = self.place_end() / self.segment_bytes;
        let deleted = self.deleted.range(..segments).count() as u64;
        (segments - deleted) * self.segment_bytes
    }

    /// What the snapshots take.
    pub fn snapshot_bytes_taken(&self) -> u64 {
        self.snapshots.iter().map(|it| it.bytes.len() as u64).sum()
    }

    /// Whether this segment was deleted.
    pub fn lacks(&self, segment: u64) -> bool {
        self.deleted.contains_key(&segment)
    }

    /// The segments up to this position that are there.
    pub(crate) fn present(&self, end: Lsn) -> Vec<u64> {
        (0..=self.segment(end)).filter(|segment| !self.lacks(*segment)).collect()
    }

    /// A snapshot gets its name and, unless a crash comes first, those before
    /// the one before it go.
    pub fn name_snapshot(&mut self, start: Lsn, bytes: Vec<u8>, goes_on: bool) {
        self.snapshots.push(SnapshotFile::new(start, bytes));
        if goes_on {
            let older = self.snapshots.len().saturating_sub(2);
            self.replaced = self.snapshots.drain(..older).collect();
        }
    }

    /// A crash, for those that were deleted last: nothing depends on that.
    pub(crate) fn return_snapshots(&mut self, chance: &mut Chance) -> u64 {
        let mut replaced = std::mem::take(&mut self.replaced);
        replaced.retain(|_| chance.below(2) == 0);
        replaced.iter_mut().for_each(|it| it.is_back = true);
        let count = replaced.len() as u64;
        self.snapshots.splice(..0, replaced);
        count
    }

    /// A bit of the newest snapshot flips, when something is left to start from.
    pub(crate) fn rot(&mut self, chance: &mut Chance) -> bool {
        let good = self.snapshots.iter().filter(|it| !it.is_rotten && !it.is_back).count();
        let is_last = good < 2 && (self.needs_snapshot || !self.deleted.is_empty());
        if is_last {
            return false;
        }
        let Some(newest) = self.snapshots.last_mut() else { return false };
        let at = chance.below(newest.bytes.len() as u64) as usize;
        newest.bytes[at] ^= 1 << chance.below(8);
        newest.is_rotten = true;
        true
    }

    /// Bits of one durable sector flip, near the log's end or anywhere; where.
    pub(crate) fn decay(&mut self, chance: &mut Chance) -> Option<Lsn> {
        let segments = self.written_segments();
        let (first, last) = (*segments.first()?, *segments.last()?);
        let is_tail = chance.below(3) == 0;
        let near = self.durable.saturating_sub(3 * wal::BLOCK as Lsn);
        let from = if is_tail { near } else { first * self.segment_bytes };
        let mut at = None;
        for _ in 0..8 {
            let lsn = from + chance.below(self.durable.saturating_sub(from).max(1));
            let is_there = lsn < self.durable && !self.lacks(self.segment(lsn));
            if is_there && self.bytes[lsn as usize] != 0 && self.segment(lsn) <= last {
                at = Some(lsn);
                break;
            }
        }
        let at = at?;
        let sector = at / SECTOR as Lsn * SECTOR as Lsn;
        if matches!(self.blank(self.segment(at)), Blank::Pattern(_)) && chance.below(4) == 0 {
            self.wipe_sector(sector);
            return Some(at);
        }
        self.flip(at, chance);
        for _ in 0..chance.below(3) {
            let other = sector + chance.below(SECTOR as u64);
            self.flip(other, chance);
        }
        Some(at)
    }

    /// Nothing but zeroes is left of a sector.
    fn wipe_sector(&mut self, sector: Lsn) {
        let end = (sector + SECTOR as Lsn).min(self.durable);
        for at in sector..end {
            if std::mem::take(&mut self.bytes[at as usize]) != 0 {
                self.rotten.push(at);
            }
        }
    }

    /// Some blocks cannot be read any more, or the rest of a segment is cut off,
    /// near the log's end or anywhere, or one that is not the last is gone; which.
    pub(crate) fn refuse(&mut self, chance: &mut Chance) -> Option<Range<Lsn>> {
        let block = wal::BLOCK as Lsn;
        let segments = self.written_segments();
        segments.first()?;
        let is_tail = chance.below(2) == 0;
        let near = self.segment(self.durable.saturating_sub(2 * block));
        let segment = if is_tail { near } else { chance.pick(&segments) };
        if segments.binary_search(&segment).is_err() {
            return None;
        }
        let (base, end) = (segment * self.segment_bytes, (segment + 1) * self.segment_bytes);
        let from = if is_tail { self.durable.saturating_sub(3 * block).max(base) } else { base };
        let at = from + chance.below((end - from).min(8 * block));
        let kind = chance.below(5);
        let hole = if kind == 0 && segments.last() != Some(&segment) {
            self.deleted.insert(segment, true);
            base..end
        } else if kind < 3 {
            at..end
        } else {
            let at = at / block * block;
            at..(at + chance.within(1, 3) * block).min(end)
        };
        self.holes.push(hole.clone());
        self.holes.sort_by_key(|hole| hole.start);
        Some(hole)
    }

    /// What cannot be read of a segment, ascending.
    pub(crate) fn holes_in(&self, segment: u64) -> Vec<Range<Lsn>> {
        let holes = self.holes.iter().filter(|hole| self.segment(hole.start) == segment);
        holes.cloned().collect()
    }

    /// Whether there is something that cannot be read.
    pub(crate) fn has_holes(&self) -> bool {
        !self.holes.is_empty()
    }

    /// Whether something between these positions cannot be read.
    pub(crate) fn is_in_hole(&self, from: Lsn, to: Lsn) -> bool {
        self.holes.iter().any(|hole| hole.start < to && from < hole.end)
    }

    fn flip(&mut self, lsn: Lsn, chance: &mut Chance) {
        // Twice in one byte may undo itself.
        if lsn < self.durable && !self.rotten.contains(&lsn) {
            self.bytes[lsn as usize] ^= 1 << chance.below(8);
            self.rotten.push(lsn);
        }
    }

    /// A bit of each snapshot flips; how many were good.
    pub(crate) fn rot_all(&mut self, chance: &mut Chance) -> u64 {
        let mut count = 0;
        for it in self.snapshots.iter_mut().filter(|it| !it.is_rotten) {
            if it.is_back && chance.below(2) == 0 {
                continue;
            }
            let at = chance.below(it.bytes.len() as u64) as usize;
            it.bytes[at] ^= 1 << chance.below(8);
            it.is_rotten = true;
            count += 1;
        }
        count
    }

    /// Whether a start may find damage that cleaning up one snapshot does not
    /// mend.
    pub(crate) fn has_rotted(&self) -> bool {
        let is_lost = |it: &SnapshotFile| it.is_rotten || it.is_back;
        let are_all = !self.snapshots.is_empty() && self.snapshots.iter().all(is_lost);
        let is_hurt = !self.rotten.is_empty() || !self.holes.is_empty();
        is_hurt || are_all || self.half_mended.is_some()
    }

    /// Whether a write under way at a crash has left what nobody wrote.
    pub(crate) fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Whether something between these positions has rotted or cannot be read.
    pub(crate) fn is_hit(&self, from: Lsn, to: Lsn) -> bool {
        self.rotten.iter().any(|at| (from..to).contains(at)) || self.is_in_hole(from, to)
    }

    /// Whether nothing but zeroes is left of a sector that rotted from this position
    /// on.
    pub(crate) fn has_rotted_to_zero(&self, from: Lsn) -> bool {
        let sector = |at: Lsn| at as usize / SECTOR * SECTOR;
        let is_zero = |at: usize| self.bytes[at..at + SECTOR].iter().all(|byte| *byte == 0);
        self.rotten.iter().any(|at| *at >= from && is_zero(sector(*at)))
    }

    /// The segments that something was written to and that are there.
    pub(crate) fn written_segments(&self) -> Vec<u64> {
        let segments = (self.bytes.len() as u64).div_ceil(self.segment_bytes);
        (0..segments).filter(|segment| !self.lacks(*segment)).collect()
    }

    /// A segment to its end, with zeroes where it cannot be read.
    pub fn whole_segment(&self, segment: u64) -> Vec<u8> {
        let from = (segment * self.segment_bytes) as usize;
        let to = self.bytes.len().min(from + self.segment_bytes as usize);
        let mut bytes = vec![0; self.segment_bytes as usize];
        self.blank(segment).fill(&mut bytes);
        bytes[..to - from].copy_from_slice(&self.bytes[from..to]);
        for hole in self.holes_in(segment) {
            bytes[hole.start as usize - from..hole.end as usize - from].fill(0);
        }
        bytes
    }

    /// The bytes at a position, if they are there and can be read.
    pub(crate) fn record_there(&self, lsn: Lsn, len: u32) -> Option<&[u8]> {
        let end = lsn + Lsn::from(len);
        let bytes = self.bytes.get(lsn as usize..end as usize)?;
        (!self.lacks(self.segment(lsn)) && !self.is_in_hole(lsn, end)).then_some(bytes)
    }

    /// A repair writes.
    ///
    /// # Panics
    /// When that cannot be read: what stood there may come back.
    pub fn write_durably(&mut self, lsn: Lsn, bytes: &[u8]) {
        let (at, end) = (lsn as usize, lsn as usize + bytes.len());
        assert!(self.holes_in(self.segment(lsn)).is_empty(), "a repair writes beside a hole");
        self.grow(end);
        self.bytes[at..end].copy_from_slice(bytes);
        self.deleted.remove(&self.segment(lsn));
    }

    /// A repair has taken a snapshot.
    pub(crate) fn put_snapshot(&mut self, start: Lsn, bytes: Vec<u8>) {
        self.replaced.clear();
        self.snapshots.push(SnapshotFile::new(start, bytes));
    }

    /// A repair moves a segment aside.
    pub fn set_aside(&mut self, segment: u64) {
        self.deleted.insert(segment, true);
        let segment_bytes = self.segment_bytes;
        self.holes.retain(|hole| hole.start / segment_bytes != segment);
    }

    /// A repair is done, the log goes on here. What stood in it before is known
    /// from the snapshots only.
    pub(crate) fn mended(&mut self, end: Lsn) {
        let (bytes, deleted) = (self.segment_bytes, &self.deleted);
        self.holes.retain(|hole| !deleted.contains_key(&(hole.start / bytes)));
        assert!(self.holes.is_empty(), "a repair leaves a hole where it was: {:?}", self.holes);
        self.durable = end;
        self.rotten.clear();
        self.garbage.clear();
        self.needs_snapshot = true;
    }

    /// Everything before this position is on the disk for good.
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Takes a write; nothing of it is on the disk yet.
    pub fn submit(&mut self, id: u64, lsn: Lsn, bytes: &[u8]) {
        let end = lsn as usize + bytes.len();
        self.grow(end);
        self.flights.push(Flight { id, lsn, bytes: bytes.to_vec() });
    }

    /// The write reaches the disk.
    pub fn complete(&mut self, id: u64, faults: &mut Chance) {
        if self.is_doubtful {
            // An error is told once: the next sync of the same pages is called
            // good, whatever has become of them.
            return self.fail_sync(id, faults);
        }
        let flight = self.land(id);
        let at = flight.lsn as usize;
        self.bytes[at..at + flight.bytes.len()].copy_from_slice(&flight.bytes);
        self.done.insert(flight.lsn, flight.lsn + flight.bytes.len() as Lsn);
        while let Some(end) = self.done.remove(&self.durable) {
            self.durable = end;
        }
    }

    /// The write fails; what it leaves behind is anything.
    pub fn fail(&mut self, id: u64, chance: &mut Chance, garbage_permille: u32) {
        let flight = self.land(id);
        self.tear(&flight, Tear::Sectors, chance, garbage_permille);
    }

    /// The write arrives, all of it or part, and its sync fails.
    pub(crate) fn fail_sync(&mut self, id: u64, faults: &mut Chance) {
        let flight = self.land(id);
        let tear = faults.pick(&[Tear::Everything, Tear::Everything, Tear::Prefix, Tear::Sectors]);
        self.tear(&flight, tear, faults, 0);
        self.is_doubtful = true;
    }

    /// The process or the machine dies.
    pub fn crash(&mut self, chance: &mut Chance, garbage_permille: u32) {
        let tears = [Tear::Nothing, Tear::Everything, Tear::Prefix, Tear::Sectors];
        for flight in std::mem::take(&mut self.flights) {
            let tear = chance.pick(&tears);
            self.tear(&flight, tear, chance, garbage_permille);
        }
        // Latest first, so that the oldest bytes are put back last.
        for (lsn, before) in std::mem::take(&mut self.unsynced).into_iter().rev() {
            let tear = chance.pick(&tears);
            let lost = Flight { id: 0, lsn, bytes: before };
            self.tear(&lost, tear, chance, garbage_permille);
        }
        self.done.clear();
        self.is_doubtful = false;
        // Deleting is not synced: nothing depends on it.
        let returned = &mut self.returned;
        returned.clear();
        self.deleted.retain(|segment, is_certain| {
            *is_certain |= chance.below(2) == 0;
            if !*is_certain {
                returned.push(*segment);
            }
            *is_certain
        });
    }

    /// One that came back stays deleted after all; whether there was one.
    pub(crate) fn keep_deleted(&mut self) -> bool {
        let segment = self.returned.pop();
        self.deleted.extend(segment.map(|segment| (segment, true)));
        segment.is_some()
    }

    /// Recovery found the end of the log here, and the boot flushed the disk.
    pub fn recovered(&mut self, end: Lsn) {
        self.durable = end;
        self.rotten.retain(|at| *at < end);
        self.garbage.clear();
    }

    /// A start blanks what stands behind the end of the log, where that tells
    /// something.
    pub fn blank_behind(&mut self, end: Lsn) {
        let is_told = |segment: &u64| self.blank(*segment) != Blank::Unknown;
        let last = self.segment(self.bytes.len() as Lsn);
        let first = (self.segment(end)..=last).find(is_told).unwrap_or(last + 1);
        self.fill(end.max(first * self.segment_bytes) as usize);
    }

    /// What a read of `len` bytes gives; it ends where the segment does.
    ///
    /// # Errors
    /// When the segment was deleted.
    pub fn read(&self, lsn: Lsn, len: usize) -> Result<&[u8], String> {
        if self.lacks(self.segment(lsn)) {
            return Err(format!("a read at {lsn}, which was deleted"));
        }
        let segment_end = (lsn / self.segment_bytes + 1) * self.segment_bytes;
        let end = (lsn + len as Lsn).min(segment_end).min(self.bytes.len() as Lsn);
        Ok(&self.bytes[lsn as usize..end as usize])
    }

    /// The segments from the one that holds `start`, as recovery reads them:
    /// number, base and bytes.
    pub fn segments(&self, start: Lsn) -> impl Iterator<Item = (u64, Lsn, &[u8])> {
        let size = self.segment_bytes as usize;
        let first = self.segment(start) as usize;
        let all = self.bytes.chunks(size).enumerate().skip(first);
        all.map(move |(n, bytes)| (n as u64, (n * size) as Lsn, bytes))
    }

    /// The bytes of one record.
    pub(crate) fn record(&self, lsn: Lsn, len: u32) -> &[u8] {
        &self.bytes[lsn as usize..lsn as usize + len as usize]
    }

    fn land(&mut self, id: u64) -> Flight {
        let at = self.flights.iter().position(|flight| flight.id == id);
        self.flights.swap_remove(at.expect("a write lands once"))
    }

    fn tear(&mut self, flight: &Flight, tear: Tear, chance: &mut Chance, garbage_permille: u32) {
        let sectors = (flight.bytes.len() / SECTOR) as u64;
        let kept = chance.below(sectors + 1);
        for (n, sector) in flight.bytes.chunks(SECTOR).enumerate() {
            let lands = match tear {
                Tear::Nothing => false,
                Tear::Everything => true,
                Tear::Prefix => (n as u64) < kept,
                Tear::Sectors => chance.below(2) == 0,
            };
            let at = flight.lsn as usize + n * SECTOR;
            let place = &mut self.bytes[at..at + SECTOR];
            if chance.permille(garbage_permille) {
                place.fill_with(|| chance.bits() as u8);
                self.garbage.push(at as Lsn);
            } else if lands {
                place.copy_from_slice(sector);
            }
        }
    }
}
