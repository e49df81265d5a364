//! What a crash leaves on both disks, and a start on it: what is on the real one
//! must be among what the rules of the simulated one allow, and the simulated one
//! goes on with the same.

use std::fs;

use sim::Disk;
use wal::disk::{DataDir, DataDirError, Nowhere, OpenOptions};
use wal::recover::Scanner;
use wal::sector::Blank;
use wal::{Log, LogStart, Lsn, Write};

use super::{COMMIT_BYTES_MAX, Place, Real, SEGMENT_BYTES, Twin, message, options};
use crate::server::deadline::Deadline;

impl Twin {
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
        self.tally.cut += u32::from(is_cut);
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

    /// Of what was written and not synced each sector is the old one or the new,
    /// on both.
    fn align_bytes(&mut self, is_cut: bool) {
        for flight in std::mem::take(&mut self.flights) {
            let Write { lsn, .. } = flight.write;
            let from = (lsn % SEGMENT_BYTES) as usize;
            let part = |segment: Vec<u8>| segment[from..][..flight.bytes.len()].to_vec();
            let found = part(self.real_segment(lsn / SEGMENT_BYTES));
            let simulated = part(self.sim.whole_segment(lsn / SEGMENT_BYTES));
            let lost = flight.lost_of(&found);
            assert!(lost == 0 || is_cut, "{lost} sectors of {:?} are gone", flight.write);
            self.tally.lost += lost;
            self.tally.simulated_lost += flight.lost_of(&simulated);
            self.sim.write_durably(lsn, &found);
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
    pub(super) fn start(&mut self) {
        let open = OpenOptions { shards: None, default_shards: 1, segment_bytes: SEGMENT_BYTES };
        let data = self.open(open);
        let (shard, salt) = (data.shard(0), data.manifest().salts[0]);
        if !self.sim.has_place_for(1) {
            self.sim = Disk::new(SEGMENT_BYTES, Blank::of_log(salt));
        }
        let recovered = shard.recover(&mut Nowhere, &mut |_| {}).unwrap();
        let (start, cut) = self.read_back(salt);
        assert_eq!((recovered.start, recovered.torn.map(|torn| torn.bytes)), (start, cut));
        let newest = recovered.snapshot.map(|it| it.start.lsn);
        assert_eq!(newest, self.sim.snapshots.last().map(|it| it.start));
        self.sim.recovered(start.lsn);
        self.sim.blank_behind(start.lsn);
        self.log = Log::new(options(), start);
        // Otherwise its segment is there: a whole one is ahead of every append.
        let needs_segment = !self.sim.has_place_for(start.lsn + 1);
        assert!(!needs_segment || self.tally.crashes == 0, "only at the first start");
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
        scanner.blank(Blank::of_log(salt));
        for (index, base, bytes) in self.sim.segments(from.lsn) {
            assert!(!self.sim.lacks(index), "segment {index} is needed");
            scanner.segment(base, bytes, &mut |_, _, _| {}).unwrap();
        }
        let (start, torn) = scanner.finish().unwrap();
        (start, torn.map(|torn| torn.bytes))
    }
}
