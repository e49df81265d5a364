//! A disk twice, a simulated one and a real one, which are told the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::AddAssign;
use std::path::PathBuf;

use sim::{Chance, Disk, SECTOR};
use tempfile::TempDir;
use wal::disk::{
    DataDir, DataDirError, DirectMode, OpenOptions, SEGMENT_BYTES_MIN, Segments, ShardDir,
    SnapshotFile,
};
use wal::record::Malformed;
use wal::recover::Scanner;
use wal::snapshot::{FRAME_BYTES, Kind, Writer};
use wal::{BLOCK, Log, LogOptions, LogStart, Lsn, Message, Record, Restore, Write};
use wire::id::{Class, MessageId, UserKey};

use super::server::deadline::Deadline;
use super::server::mounted::Mounted;

const SEGMENT_BYTES: u64 = SEGMENT_BYTES_MIN;
const COMMIT_BYTES_MAX: usize = 128 << 10;
/// Snapshots are written in pieces of this size, which [`SnapshotFile`] hands to
/// the disk at once.
const PIECE: u64 = 256 << 10;
/// What the files take that the simulated disk does not know of: headers, the
/// manifest. Less than any step needs.
const BESIDE: u64 = PIECE / 2;

/// How large a volume must be that has so much space for segments and snapshots.
pub(crate) fn room_for(space: u64) -> u64 {
    assert!(space.is_multiple_of(PIECE), "both have space for the same pieces");
    space + BESIDE
}

/// What the real one lies on.
pub(crate) enum Place {
    Dir(TempDir),
    Memory(Mounted),
    Disk(Mounted),
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) written: u32,
    pub(crate) made: u32,
    pub(crate) deleted: u32,
    pub(crate) snapshots: u32,
    /// Steps that found no space.
    pub(crate) full: u32,
    pub(crate) crashes: u32,
    /// Of these after the disk had failed.
    pub(crate) failed: u32,
    /// Sectors that were written and not there afterwards.
    pub(crate) lost: u32,
    /// Files that were deleted and there afterwards.
    pub(crate) came_back: u32,
}

impl Tally {
    pub(crate) fn is_empty(&self) -> bool {
        self.crashes == 0
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.written += other.written;
        self.made += other.made;
        self.deleted += other.deleted;
        self.snapshots += other.snapshots;
        self.full += other.full;
        self.crashes += other.crashes;
        self.failed += other.failed;
        self.lost += other.lost;
        self.came_back += other.came_back;
    }
}

/// The real one, opened.
struct Real {
    _data: DataDir,
    shard: ShardDir,
    segments: Segments,
}

/// A write that no sync has covered yet.
struct Flight {
    write: Write,
    before: Vec<u8>,
    bytes: Vec<u8>,
}

/// A snapshot that is being written.
struct Writing {
    start: LogStart,
    file: SnapshotFile,
    bytes: Vec<u8>,
    written: u64,
    /// How far the log must be durable before it counts.
    end: Lsn,
}

/// See the module.
pub(crate) struct Twin {
    chance: Chance,
    mode: DirectMode,
    /// What segments and snapshots may take.
    space: Option<u64>,
    foreign: u64,
    sim: Disk,
    /// Dropped before what it lies on.
    real: Option<Real>,
    log: Log,
    flights: Vec<Flight>,
    writing: Option<Writing>,
    /// Where the replay of each snapshot begins and how far it vouches.
    starts: BTreeMap<Lsn, (LogStart, Lsn)>,
    /// Deleted since the last crash, and not known to stay so: segments, and
    /// snapshots with their bytes.
    deleted: Vec<u64>,
    older: BTreeMap<Lsn, Vec<u8>>,
    pub(crate) tally: Tally,
    place: Place,
}

impl Twin {
    /// Both empty.
    pub(crate) fn new(seed: u64, place: Place, mode: DirectMode, space: Option<u64>) -> Twin {
        let mut twin = Twin {
            chance: Chance::new(seed),
            mode,
            space,
            foreign: 0,
            sim: Disk::new(SEGMENT_BYTES),
            real: None,
            log: Log::new(options(), LogStart::fresh(0)),
            flights: Vec::new(),
            writing: None,
            starts: BTreeMap::new(),
            deleted: Vec::new(),
            older: BTreeMap::new(),
            tally: Tally::default(),
            place,
        };
        twin.start();
        twin.check();
        twin
    }

    /// One step of the script.
    pub(crate) fn step(&mut self) {
        match self.chance.below(100) {
            0..40 => self.append(),
            40..60 => self.sync(),
            60..68 => self.delete(),
            68..88 => self.snapshot(),
            88..93 => self.others_write(),
            93..97 => {
                self.make_segment();
            }
            _ => self.crash(),
        }
        self.check();
    }

    fn root(&self) -> PathBuf {
        match &self.place {
            Place::Dir(dir) => dir.path().into(),
            Place::Memory(mounted) | Place::Disk(mounted) => mounted.path().into(),
        }
    }

    fn real(&mut self) -> &mut Real {
        self.real.as_mut().expect("it is open")
    }

    fn segment_path(&self, index: u64) -> PathBuf {
        self.shard_path().join(format!("segment-{index:010}.log"))
    }

    fn shard_path(&self) -> PathBuf {
        self.root().join("data/shard-0000")
    }

    /// As the world reckons it.
    fn free_bytes(&self) -> u64 {
        let writing = self.writing.as_ref().map_or(0, |it| it.written);
        let taken = self.sim.segment_bytes_taken() + self.sim.snapshot_bytes_taken() + writing;
        self.space.map_or(u64::MAX, |space| space - self.foreign - taken)
    }

    fn append(&mut self) {
        // As the server does: a whole segment is ahead of the log's end.
        while !self.sim.has_place_for(self.log.end() + SEGMENT_BYTES) && self.make_segment() {}
        for _ in 0..self.chance.within(1, 6) {
            let body = vec![self.chance.bits() as u8; self.chance.pick(&[10, 3_000, 60_000])];
            let has_place = self.sim.has_place_for(self.log.end() + 2 * COMMIT_BYTES_MAX as Lsn);
            if !has_place || self.log.append(&message(&body), 1).is_err() {
                break;
            }
        }
        self.commit();
    }

    /// As many writes as may be under way.
    fn commit(&mut self) {
        while let Some(write) = self.log.next_write() {
            self.submit(write).expect("there is space");
        }
    }

    /// Both take a write; whether the real one was pleased.
    fn submit(&mut self, write: Write) -> io::Result<()> {
        let Write { lsn, len } = write;
        let bytes = self.log.write_bytes(&write).to_vec();
        let from = (lsn % SEGMENT_BYTES) as usize;
        let before = self.sim.whole_segment(lsn / SEGMENT_BYTES)[from..][..bytes.len()].to_vec();
        self.sim.submit(lsn, lsn, &bytes);
        let segments = &mut self.real.as_mut().expect("it is open").segments;
        assert!(segments.has_space_for(lsn + Lsn::from(len)), "as the simulated one says");
        let written = segments.write(lsn, self.log.write_bytes(&write));
        self.flights.push(Flight { write, before, bytes });
        self.tally.written += 1;
        written
    }

    fn sync(&mut self) {
        self.real().segments.sync().expect("the disk is well");
        let mut ids: Vec<Lsn> = self.flights.iter().map(|flight| flight.write.lsn).collect();
        while !ids.is_empty() {
            let at = self.chance.below(ids.len() as u64) as usize;
            let lsn = ids.swap_remove(at);
            self.sim.complete(lsn, &mut self.chance);
            self.log.written(lsn, true);
        }
        self.flights.clear();
        self.commit();
    }

    /// Whether there was space for it, on both.
    fn make_segment(&mut self) -> bool {
        let has_space = self.free_bytes() >= SEGMENT_BYTES;
        let segments = &mut self.real().segments;
        assert_eq!(segments.lacks_space(Lsn::MAX), !has_space, "known before it is tried");
        match segments.wants_next(Lsn::MAX).expect("one is always due then").run() {
            Ok(prepared) => {
                segments.adopt(prepared);
                assert!(has_space, "the simulated disk had no space for a segment");
                self.sim.make_segment();
                self.tally.made += 1;
            }
            Err(error) => self.must_be_full(has_space, &error),
        }
        has_space
    }

    fn must_be_full(&mut self, has_space: bool, error: &io::Error) {
        assert!(!has_space, "the simulated disk had space: {error}");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        self.tally.full += 1;
    }

    /// One that no snapshot that is kept needs.
    fn delete(&mut self) {
        let [older, _] = &self.sim.snapshots[..] else { return };
        let dead = 0..older.start / SEGMENT_BYTES;
        let Some(segment) = { dead }.find(|segment| !self.sim.lacks(*segment)) else { return };
        let removal = self.real().segments.remove(segment).expect("it is not the last one");
        let remains = removal.run().unwrap().expect("it has one name");
        if self.chance.below(2) == 0 {
            // Its space goes in two ways.
            remains.shrink();
        }
        self.sim.delete(segment).unwrap();
        self.deleted.push(segment);
        self.tally.deleted += 1;
    }

    /// Begins one, goes on with it, or gives it its name.
    fn snapshot(&mut self) {
        let Some(mut writing) = self.writing.take() else { return self.begin_snapshot() };
        let left = writing.bytes.len() as u64 - writing.written;
        if left > 0 {
            let free = self.free_bytes() - if self.space.is_some() { writing.written } else { 0 };
            let has_space = free >= PIECE;
            match writing.file.write(&writing.bytes[writing.written as usize..][..PIECE as usize]) {
                Ok(()) => {
                    assert!(has_space, "the simulated disk had no space for a piece");
                    writing.written += PIECE;
                    self.writing = Some(writing);
                }
                Err(error) => {
                    self.must_be_full(has_space, &error);
                    writing.file.abandon();
                }
            }
            return;
        }
        while self.log.durable() < writing.end {
            self.sync();
        }
        writing.file.finish().unwrap();
        let start = writing.start.lsn;
        let known: Vec<(Lsn, Vec<u8>)> =
            self.sim.snapshots.iter().map(|it| (it.start, it.bytes.clone())).collect();
        self.sim.name_snapshot(start, writing.bytes, true);
        self.starts.insert(start, (writing.start, writing.end));
        let is_kept = |start: &Lsn| self.sim.snapshots.iter().any(|it| it.start == *start);
        self.older.extend(known.into_iter().filter(|(start, _)| !is_kept(start)));
        self.tally.snapshots += 1;
    }

    fn begin_snapshot(&mut self) {
        let start = self.log.checkpoint();
        if self.sim.snapshots.last().map_or(0, |it| it.start) >= start.lsn {
            return;
        }
        let mut bytes = Vec::new();
        let mut writer = Writer::new(0, &start, &mut bytes);
        let mut end = Vec::new();
        Writer::new(0, &start, &mut Vec::new()).end(self.log.end(), &mut end);
        let pieces = self.chance.within(1, 3) * PIECE;
        let payload = pieces as usize - bytes.len() - FRAME_BYTES - end.len();
        writer.frame(Kind::State, &vec![self.chance.bits() as u8; payload], &mut bytes);
        writer.end(self.log.end(), &mut bytes);
        assert_eq!(bytes.len() as u64, pieces);
        let file = SnapshotFile::create(&self.real().shard, start.lsn).unwrap();
        self.writing = Some(Writing { start, file, bytes, written: 0, end: self.log.end() });
    }

    /// Others fill the volume, or leave it.
    fn others_write(&mut self) {
        if self.space.is_none() {
            return;
        }
        let ballast = self.root().join("ballast");
        if self.foreign > 0 {
            fs::remove_file(ballast).unwrap();
            self.foreign = 0;
        } else {
            let pieces = self.free_bytes() / PIECE;
            self.foreign = self.chance.within(pieces / 2, pieces) * PIECE;
            fs::write(ballast, vec![1; self.foreign as usize]).unwrap();
        }
    }

    /// The process dies, or the machine, or the disk and then the process.
    pub(crate) fn crash(&mut self) {
        self.tally.crashes += 1;
        let is_cut = match &self.place {
            Place::Disk(disk) => {
                let is_cut = self.chance.below(3) > 0;
                is_cut && disk.fail_with_eio().is_some()
            }
            _ => false,
        };
        if is_cut && self.chance.below(2) == 0 {
            self.fail();
        }
        self.writing = None;
        self.real = None;
        if let Place::Disk(disk) = &self.place
            && is_cut
        {
            disk.unmount();
            disk.mount();
        }
        self.sim.crash(&mut self.chance, 0);
        self.align_segments(is_cut);
        self.align_bytes(is_cut);
        self.align_snapshots(is_cut);
        self.start();
    }

    /// The disk answers nothing but errors.
    fn fail(&mut self) {
        self.tally.failed += 1;
        let has_place = self.sim.has_place_for(self.log.end() + 2 * COMMIT_BYTES_MAX as Lsn);
        let is_taken = has_place && self.log.append(&message(&[1; 9_000]), 1).is_ok();
        if let Some(write) = is_taken.then(|| self.log.next_write()).flatten() {
            let written = self.submit(write);
            let synced = self.real().segments.sync();
            assert!(written.and(synced).is_err(), "a write on a failing disk");
            self.sim.fail(write.lsn, &mut self.chance, 0);
            self.log.written(write.lsn, false);
            assert!(self.log.is_poisoned());
        }
        let next = self.real().segments.wants_next(Lsn::MAX).expect("one is always due then");
        assert!(next.run().is_err(), "a segment on a failing disk");
        if let Some(writing) = self.writing.take() {
            assert!(writing.file.finish().is_err(), "a snapshot on a failing disk");
        }
    }

    /// Segments stay, and deleted ones stay so or, after a power cut, come back
    /// as they were.
    fn align_segments(&mut self, is_cut: bool) {
        for segment in std::mem::take(&mut self.deleted) {
            let base = segment * SEGMENT_BYTES;
            if self.segment_path(segment).exists() {
                assert!(is_cut, "segment {segment} came back from nowhere");
                let bytes = self.sim.whole_segment(segment);
                assert!(self.real_segment(segment) == bytes, "segment {segment} came back changed");
                self.sim.write_durably(base, &bytes);
                self.tally.came_back += 1;
            } else {
                self.sim.set_aside(segment);
            }
        }
    }

    /// Of what was written and not synced each sector is the old one or the new.
    fn align_bytes(&mut self, is_cut: bool) {
        for Flight { write, before, bytes } in std::mem::take(&mut self.flights) {
            let from = (write.lsn % SEGMENT_BYTES) as usize;
            let found =
                self.real_segment(write.lsn / SEGMENT_BYTES)[from..][..bytes.len()].to_vec();
            let sectors = found.chunks(SECTOR).zip(bytes.chunks(SECTOR).zip(before.chunks(SECTOR)));
            for (n, (found, (new, old))) in sectors.enumerate() {
                assert!(found == new || is_cut && found == old, "sector {n} of {write:?}");
                self.tally.lost += u32::from(found != new);
            }
            self.sim.write_durably(write.lsn, &found);
        }
    }

    /// Snapshots stay, and after a power cut older ones may come back.
    fn align_snapshots(&mut self, is_cut: bool) {
        for (start, bytes) in std::mem::take(&mut self.older).into_iter().rev() {
            let path = self.shard_path().join(format!("snapshot-{start:020}.snap"));
            if path.exists() {
                assert!(is_cut, "{} came back from nowhere", path.display());
                assert!(fs::read(&path).unwrap() == bytes, "{} came back changed", path.display());
                self.sim.snapshots.insert(0, sim::SnapshotFile::new(start, bytes));
                self.tally.came_back += 1;
            }
        }
    }

    /// Both go on where the log ends, which is the same place.
    fn start(&mut self) {
        let open = OpenOptions { shards: None, default_shards: 1, segment_bytes: SEGMENT_BYTES };
        let data = self.open(open);
        let (shard, salt) = (data.shard(0), data.manifest().salts[0]);
        let recovered = shard.recover(&mut Nobody, &mut |_| {}).unwrap();
        let (start, cut) = self.read_back(salt);
        assert_eq!((recovered.start, recovered.torn.map(|torn| torn.bytes)), (start, cut));
        let newest = recovered.snapshot.map(|it| it.start.lsn);
        assert_eq!(newest, self.sim.snapshots.last().map(|it| it.start));
        self.sim.recovered(start.lsn);
        self.log = Log::new(options(), start);
        let needs_segment = !self.sim.has_place_for(start.lsn + 1);
        if needs_segment && self.free_bytes() < SEGMENT_BYTES {
            let refused = shard.open_segments(start.lsn, self.mode).err();
            let refused = refused.expect("the simulated disk had no space to start").to_string();
            assert!(refused.contains("space"), "{refused}");
            self.tally.full += 1;
            self.others_write();
        }
        let segments = shard.open_segments(start.lsn, self.mode).unwrap();
        if needs_segment {
            self.sim.make_segment();
        }
        self.real = Some(Real { _data: data, shard, segments });
    }

    /// A program that another test has just started may still have the lock.
    fn open(&self, options: OpenOptions) -> DataDir {
        let deadline = Deadline::new();
        loop {
            match DataDir::open(self.root().join("data"), options) {
                Err(error @ DataDirError::Locked { .. }) => deadline.pause(|| error.to_string()),
                opened => return opened.unwrap(),
            }
        }
    }

    /// Where the simulated log ends, and how much is cut off there.
    fn read_back(&self, salt: u64) -> (LogStart, Option<u64>) {
        let newest = self.sim.snapshots.last().map(|it| self.starts[&it.start]);
        let (from, vouched) = newest.unwrap_or((LogStart::fresh(salt), 0));
        let mut scanner = Scanner::resume(from, vouched, options());
        for (index, base, bytes) in self.sim.segments(from.lsn) {
            assert!(!self.sim.lacks(index), "segment {index} is needed");
            scanner.segment(base, bytes, &mut |_, _, _| {}).unwrap();
        }
        let (start, torn) = scanner.finish().unwrap();
        (start, torn.map(|torn| torn.bytes))
    }

    /// The real segment's log bytes.
    fn real_segment(&self, segment: u64) -> Vec<u8> {
        fs::read(self.segment_path(segment)).unwrap().split_off(BLOCK)
    }

    /// Both say the same.
    fn check(&mut self) {
        let end = self.sim.place_end();
        let real = self.real.as_ref().expect("it is open");
        assert!(real.segments.has_space_for(end) && !real.segments.has_space_for(end + 1));
        let mut expected: Vec<String> = Vec::new();
        for segment in 0..end / SEGMENT_BYTES {
            let lsn = segment * SEGMENT_BYTES;
            let is_there = !self.sim.lacks(segment);
            assert_eq!(real.segments.locate(lsn).is_some(), is_there, "segment {segment}");
            if is_there {
                expected.push(format!("segment-{segment:010}.log"));
            } else if lsn < self.log.end() {
                assert!(self.sim.read(lsn, 1).is_err());
            }
        }
        for it in &self.sim.snapshots {
            let name = format!("snapshot-{:020}.snap", it.start);
            assert!(fs::read(self.shard_path().join(&name)).unwrap() == it.bytes, "{name}");
            expected.push(name);
        }
        if let Some(writing) = &self.writing {
            expected.push(format!("snapshot-{:020}.snap.tmp", writing.start.lsn));
        }
        expected.sort_unstable();
        assert_eq!(self.names(), expected);
        self.check_bytes();
        self.check_space();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.shard_path()).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut names: Vec<String> = entries.map(|entry| name(entry).unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// A segment, as far as the log is durable.
    fn check_bytes(&mut self) {
        let durable = self.log.durable();
        let segment = self.chance.below(durable / SEGMENT_BYTES + 1);
        if self.sim.lacks(segment) || segment * SEGMENT_BYTES >= durable {
            return;
        }
        let lsn = segment * SEGMENT_BYTES;
        let len = SEGMENT_BYTES.min(durable - lsn) as usize;
        let real = self.real_segment(segment);
        let simulated = self.sim.read(lsn, len).unwrap();
        assert!(real[..len] == *simulated, "the bytes of segment {segment}");
    }

    fn check_space(&self) {
        let (Some(_), Place::Memory(memory)) = (self.space, &self.place) else { return };
        let stat = rustix::fs::statvfs(memory.path()).unwrap();
        let (real, simulated) = (stat.f_bavail * stat.f_frsize, self.free_bytes());
        assert!((simulated..simulated + 2 * BESIDE).contains(&real), "{real} of {simulated}");
    }
}

fn options() -> LogOptions {
    LogOptions {
        tail_bytes: SEGMENT_BYTES as usize,
        segment_bytes: SEGMENT_BYTES,
        commit_bytes_max: COMMIT_BYTES_MAX,
        writes_in_flight_max: 4,
        pipeline_bytes: 1,
    }
}

fn message(body: &[u8]) -> Record<'_> {
    Record::Message(Message {
        key: UserKey(7),
        to: b"bob",
        inbox_seq: 1,
        id: MessageId::new(1, 0, 0, 0),
        from: b"alice",
        from_key: UserKey(3),
        device: 1,
        send_seq: 1,
        time_ms: 1,
        expires_ms: 0,
        class: Class::Guaranteed,
        flags: 0,
        body,
    })
}

/// Remembers nothing: what the records mean is not the disk's.
struct Nobody;

impl Restore for Nobody {
    fn reset(&mut self) {}

    fn state(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn space(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn loaded(&mut self, _: LogStart, _: Lsn) {}

    fn record(&mut self, _: Lsn, _: u32, _: &Record<'_>) {}

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        Vec::new()
    }
}
