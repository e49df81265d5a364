//! After each step both disks say the same.

use std::{fs, io};

use super::{BESIDE, Place, SEGMENT_BYTES, Twin};
use crate::server::deadline::Deadline;

impl Twin {
    /// Both say the same.
    pub(super) fn check(&mut self) {
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

    /// A program that another test has just started may still have a file that is
    /// deleted: the space comes when it lets go.
    fn check_space(&self) {
        let (Some(_), Place::Memory(memory)) = (self.space, &self.place) else { return };
        let simulated = self.free_bytes();
        let deadline = Deadline::new();
        loop {
            let stat = rustix::fs::statvfs(memory.path()).unwrap();
            let real = stat.f_bavail * stat.f_frsize;
            assert!(real <= simulated + BESIDE, "{real} of {simulated}");
            if real >= simulated {
                return;
            }
            deadline.pause(|| format!("{real} of {simulated}"));
        }
    }
}
