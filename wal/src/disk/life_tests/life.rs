//! A shard that runs on a real file system, with one inbox.

use std::fs;
use std::ops::ControlFlow;

use tempfile::TempDir;

use super::super::tests::{SEGMENT_BYTES, log_options, options, read_at, write_out};
use super::inbox::Inbox;
use super::names;
use crate::clean::{Walker, Want};
use crate::disk::*;
use crate::record::tests::message;
use crate::snapshot::{Kind, Writer};
use crate::{Log, LogStart, Lsn, Message, Record};

const BODY: [u8; 10_000] = [7; 10_000];
const READ_BYTES: u32 = 64 << 10;

/// A shard that runs.
pub(super) struct Life {
    data: DataDir,
    pub(super) log: Log,
    pub(super) segments: Segments,
    pub(super) inbox: Inbox,
    pub(super) snapshots: Vec<Lsn>,
    pub(super) recovered: Recovered,
}

impl Life {
    pub(super) fn start(dir: &TempDir) -> Life {
        Life::try_start(dir).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn try_start(dir: &TempDir) -> Result<Life, RecoverError> {
        let data = DataDir::open(dir.path(), options(Some(1))).unwrap();
        let shard = data.shard(0);
        let mut inbox = Inbox::new();
        let recovered = shard.recover(&mut inbox, &mut |_| {})?;
        let end = recovered.start.lsn;
        inbox.space.present(recovered.segments.iter().copied(), end);
        let segments = shard.open_segments(end, DirectMode::BufferedFdatasync).unwrap();
        let log = Log::new(log_options(), recovered.start);
        let snapshots = recovered.snapshots.clone();
        Ok(Life { data, log, segments, inbox, snapshots, recovered })
    }

    pub(super) fn shard(&self) -> ShardDir {
        self.data.shard(0)
    }

    pub(super) fn append(&mut self, record: &Record<'_>) -> (Lsn, u32) {
        let at = self.log.append(record, 1).unwrap();
        write_out(&mut self.log, &mut self.segments);
        (at.lsn, at.len)
    }

    pub(super) fn push(&mut self, messages: u64) {
        for _ in 0..messages {
            let seq = self.inbox.last + 1;
            let (lsn, len) =
                self.append(&Record::Message(Message { inbox_seq: seq, ..message(&BODY) }));
            self.inbox.put(seq, lsn, len, self.log.end());
        }
    }

    pub(super) fn ack(&mut self, seq: u64) {
        let key = message(b"").key;
        self.append(&Record::Ack { key, device: 1, seq, exact: false });
        self.inbox.burn(seq, self.log.end());
    }

    /// A snapshot that began at `start`, frame by frame.
    pub(super) fn encode(&self, start: LogStart) -> Vec<Vec<u8>> {
        let mut frames = vec![Vec::new()];
        let mut writer = Writer::new(0, &start, &mut frames[0]);
        for payload in self.inbox.payloads(self.log.end()) {
            frames.push(Vec::new());
            writer.frame(Kind::State, &payload, frames.last_mut().unwrap());
        }
        let mut from = Some(0);
        while let Some(at) = from {
            let mut payload = Vec::new();
            from = self.inbox.space.encode(at, self.log.end(), &mut payload);
            frames.push(Vec::new());
            writer.frame(Kind::Space, &payload, frames.last_mut().unwrap());
        }
        frames.push(Vec::new());
        writer.end(self.log.end(), frames.last_mut().unwrap());
        frames
    }

    /// Writes so many frames of a snapshot that began at `start`.
    pub(super) fn write_snapshot(&self, start: LogStart, frames_max: usize) -> SnapshotFile {
        let mut file = SnapshotFile::create(&self.shard(), start.lsn).unwrap();
        for frame in self.encode(start).iter().take(frames_max) {
            file.write(frame).unwrap();
        }
        file
    }

    pub(super) fn begin_snapshot(&self, frames_max: usize) -> SnapshotFile {
        self.write_snapshot(self.log.checkpoint(), frames_max)
    }

    pub(super) fn snapshot(&mut self) {
        self.snapshot_while(|_| {});
    }

    /// A snapshot that begins before something happens and ends after it.
    pub(super) fn snapshot_while(&mut self, happens: impl FnOnce(&mut Life)) {
        let start = self.log.checkpoint();
        happens(self);
        let bytes = self.write_snapshot(start, usize::MAX).finish().unwrap().bytes;
        let start = start.lsn;
        let found = fs::metadata(self.shard().snapshot_path(start)).unwrap().len();
        assert_eq!(bytes, found);
        self.snapshots.retain(|known| *known != start);
        self.snapshots.push(start);
        self.snapshots.drain(..self.snapshots.len().saturating_sub(SNAPSHOTS_KEPT));
    }

    /// Copies what still waits in the next victim to the log's end.
    pub(super) fn clean(&mut self) {
        let Some(victim) = self.inbox.space.victim(0, self.log.durable(), 0) else { return };
        let mut walker = Walker::new(self.recovered.start.salt, victim, SEGMENT_BYTES, READ_BYTES);
        while let Some(Want { lsn, len, .. }) = walker.want() {
            let (fd, offset) = self.segments.locate(lsn).unwrap();
            let bytes = read_at(fd, len as usize, offset).unwrap();
            let mut moved = Vec::new();
            let waiting = &self.inbox.waiting;
            let sink = &mut |lsn, _, record: Record<'_>| {
                if let Record::Message(m) | Record::Moved(m) = record
                    && waiting.get(&m.inbox_seq).is_some_and(|(at, _)| *at == lsn)
                {
                    moved.push(m.inbox_seq);
                }
                ControlFlow::Continue(())
            };
            walker.feed(lsn, &bytes, sink).unwrap();
            for seq in moved {
                let record = Message { inbox_seq: seq, ..message(&BODY) };
                let (lsn, len) = self.append(&Record::Moved(record));
                self.inbox.put(seq, lsn, len, self.log.end());
            }
        }
        assert_eq!(self.inbox.space.live(victim), (0, 0));
    }

    /// The segments that may be deleted, taken out of those that are open.
    pub(super) fn discard(&mut self) -> Vec<(u64, Removal)> {
        let below = match self.snapshots[..] {
            [older, _] => older,
            _ => return Vec::new(),
        };
        let dead: Vec<u64> = self.inbox.space.dead(below, self.log.durable()).collect();
        let removals = dead.into_iter().filter_map(|segment| {
            self.inbox.space.forget(segment);
            Some((segment, self.segments.remove(segment)?))
        });
        removals.collect()
    }

    pub(super) fn delete(&mut self) {
        for (_, removal) in self.discard() {
            removal.run().unwrap();
        }
    }

    pub(super) fn waiting(&self) -> Vec<u64> {
        self.inbox.waiting.keys().copied().collect()
    }

    /// Every message that waits is where it is said to be.
    pub(super) fn check_bodies(&self) {
        for (seq, (lsn, len)) in &self.inbox.waiting {
            let (fd, offset) = self.segments.locate(*lsn).expect("its segment is there");
            let bytes = read_at(fd, *len as usize, offset).unwrap();
            match crate::record::verify(&bytes, self.recovered.start.salt, *lsn) {
                Ok(Record::Message(m) | Record::Moved(m)) => assert_eq!(m.inbox_seq, *seq),
                other => panic!("message {seq} is not at {lsn}: {other:?}"),
            }
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        names(&self.shard())
    }
}
