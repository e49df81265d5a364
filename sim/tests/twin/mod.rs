//! A disk twice, a simulated one and a real one, which are told the same.

mod check;
mod crash;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::AddAssign;
use std::path::PathBuf;

use sim::{Chance, Disk};
use tempfile::TempDir;
use wal::disk::{DataDir, DirectMode, SEGMENT_BYTES_MIN, Segments, ShardDir, SnapshotFile};
use wal::sector::{Blank, SECTOR};
use wal::snapshot::{FRAME_BYTES, Kind, Writer};
use wal::{BLOCK, Log, LogOptions, LogStart, Lsn, Message, Record, Write};
use wire::id::{Class, MessageId, UserKey};

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
    /// Of these the power was cut, or the disk failed.
    pub(crate) cut: u32,
    /// Of these a write was tried on the failed disk.
    pub(crate) failed: u32,
    /// Sectors that were written and not there afterwards.
    pub(crate) lost: u32,
    /// The same on the simulated disk.
    pub(crate) simulated_lost: u32,
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
        self.cut += other.cut;
        self.failed += other.failed;
        self.lost += other.lost;
        self.simulated_lost += other.simulated_lost;
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

impl Flight {
    /// How many sectors are as they were before it.
    fn lost_of(&self, found: &[u8]) -> u32 {
        let is_lost = |(n, found): (usize, &[u8])| {
            let at = n * SECTOR..n * SECTOR + found.len();
            let is_new = self.bytes[at.clone()] == *found;
            assert!(is_new || self.before[at] == *found, "sector {n} of {:?}", self.write);
            u32::from(!is_new)
        };
        found.chunks(SECTOR).enumerate().map(is_lost).sum()
    }
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
    /// Segments deleted since the last crash, and the snapshots that the newest
    /// one replaced since then, with their bytes: they may come back.
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
            sim: Disk::new(SEGMENT_BYTES, Blank::Unknown),
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
        assert_eq!(segments.lacks_space(0), !has_space, "known before it is tried");
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
        let has_space = self.free_bytes() >= PIECE;
        let Some(mut writing) = self.writing.take() else { return self.begin_snapshot() };
        let left = writing.bytes.len() as u64 - writing.written;
        if left > 0 {
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
        // Before it got its name the directory was synced, and with it what went
        // before.
        self.older = known.into_iter().filter(|(start, _)| !is_kept(start)).collect();
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

    /// The real segment's log bytes.
    fn real_segment(&self, segment: u64) -> Vec<u8> {
        fs::read(self.segment_path(segment)).unwrap().split_off(BLOCK)
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
