//! Snapshots and cleaning in the world: written slice by slice while traffic
//! goes on, named when they count, lost with a crash, rotten, read back.

use shard::snapshot::Slice;
use shard::{Input, Replay};
use wal::snapshot::{Kind, Part, Reader, Writer};
use wal::{LogStart, Lsn, Restore};
use wire::id::ShardId;

use crate::plant::Plant;
use crate::world::{Event, World};

/// A snapshot that is being written.
pub(crate) struct Writing {
    start: LogStart,
    /// None once its last frame is written.
    writer: Option<Writer>,
    bytes: Vec<u8>,
    /// How far the log must be durable before it counts.
    end: Lsn,
    /// It is being renamed.
    is_finishing: bool,
}

impl Writing {
    /// What it takes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl World {
    /// What a read of the disk gives.
    pub(crate) fn read_disk(&mut self, shard: usize, lsn: Lsn, len: u32) -> Vec<u8> {
        match self.layout.disks[shard].read(lsn, len as usize) {
            Ok(bytes) => bytes.to_vec(),
            Err(what) => {
                self.violate(format!("shard {shard}: {what}"));
                Vec::new()
            }
        }
    }

    pub(crate) fn start_survey(&mut self, shard: usize, lsn: Lsn, len_min: u32, len: u32) {
        if !self.knobs.stores {
            return; // Unanswered, cleaning rests.
        }
        self.note("survey: shard, lsn", [shard as u64, lsn, len_min.into(), len.into()]);
        let len = self.store_chance.within(len_min.into(), len.into()) as u32;
        let delay_ns = self.store_chance.latency(self.knobs.read_ns);
        self.after(delay_ns, Event::Survey { life: self.life, shard, lsn, len });
    }

    pub(crate) fn delete(&mut self, shard: usize, segment: u64) {
        self.note("delete: shard, segment", [shard as u64, segment, 0, 0]);
        self.stats.deleted += 1;
        let gone = self.layout.disks[shard].delete_by_name(segment);
        let mut deleted =
            gone.and_then(|gone| gone.map_or(Ok(()), |it| self.nothing_waits_in(shard, it)));
        if self.plant == Plant::DeleteNext {
            // What that does must be enough to notice.
            deleted = self.layout.disks[shard].delete(segment + 1).or(Ok(()));
        }
        self.require(deleted);
    }

    /// If the server died now: whatever would wait then must not be in there.
    fn nothing_waits_in(&mut self, shard: usize, segment: u64) -> Result<(), String> {
        // In a long life this would take longer than everything else.
        let looks = self.layout.histories[shard].len() + self.model.letters_before();
        let Some(left) = self.looks_back.checked_sub(looks) else { return Ok(()) };
        self.looks_back = left;
        let mut model = self.model.forgotten();
        let durable = self.layout.disks[shard].durable();
        let records = self.layout.histories[shard].records();
        for (end, bytes) in records.take_while(|(end, _)| *end <= durable) {
            let record = wal::record::decode(bytes).map_err(|why| why.to_string())?;
            model.take(shard, end, &record, &self.ledger)?;
        }
        let segment_bytes = self.knobs.log.segment_bytes;
        let (from, to) = (segment * segment_bytes, (segment + 1) * segment_bytes);
        match model.waits_between(|user| self.is_owned(user, shard), from, to) {
            Some(id) => Err(format!("letter {id} waits in segment {segment}, which is deleted")),
            None => Ok(()),
        }
    }

    /// Begins the snapshots that are due, and some that are not.
    pub(crate) fn begin_snapshots(&mut self) {
        for shard in 0..self.cores.len() {
            if !self.knobs.stores {
                return;
            }
            let is_wanted = self.cores[shard].brain.wants_snapshot()
                || self.store_chance.permille(self.knobs.snapshot);
            let now = self.now();
            let core = &mut self.cores[shard];
            let newest = self.layout.disks[shard].snapshots.last().map(|it| it.start);
            let start = core.brain.log().checkpoint().lsn;
            let is_free = core.writing.is_none() && !core.brain.log().is_poisoned();
            if is_wanted && is_free && Some(start) > newest {
                let start = core.brain.begin_snapshot(now);
                let mut bytes = Vec::new();
                let writer = Some(Writer::new(shard as ShardId, &start, &mut bytes));
                core.writing = Some(Writing { start, writer, bytes, end: 0, is_finishing: false });
                self.note("snapshot begins: shard, lsn", [shard as u64, start.lsn, 0, 0]);
                self.next_slice(shard, self.knobs.slice_ns);
            }
        }
    }

    fn next_slice(&mut self, shard: usize, mean_ns: u64) {
        let delay_ns = self.store_chance.latency(mean_ns);
        self.after(delay_ns, Event::Slice { life: self.life, shard });
    }

    /// Writes another slice, waits for the log, or gives it its name.
    pub(crate) fn write_slice(&mut self, shard: usize) {
        let lacks_space = self.lacks_space_for_slice();
        if lacks_space {
            self.stats.snapshots_without_space += 1;
        }
        let fails = self.store_chance.permille(self.knobs.snapshot_fails) || lacks_space;
        let slice_bytes = self.knobs.slice_bytes;
        let core = &mut self.cores[shard];
        let mut writing = core.writing.take().expect("a snapshot is being written");
        if fails || core.brain.log().is_poisoned() {
            self.note("snapshot fails: shard", [shard as u64, 0, 0, 0]);
            return self.notice(shard, Input::SnapshotFailed);
        }
        let is_durable = core.brain.log().durable() >= writing.end;
        if let Some(mut writer) = writing.writer.take() {
            let mut payload = Vec::new();
            let slice = core.brain.snapshot_slice(slice_bytes, &mut payload);
            if !payload.is_empty() {
                writer.frame(Kind::State, &payload, &mut writing.bytes);
            }
            match slice {
                Slice::More => writing.writer = Some(writer),
                Slice::Done { end } => {
                    let mut from = Some(0);
                    while let Some(at) = from {
                        payload.clear();
                        from = core.brain.snapshot_space(at, &mut payload);
                        writer.frame(Kind::Space, &payload, &mut writing.bytes);
                    }
                    writer.end(end, &mut writing.bytes);
                    writing.end = end;
                }
            }
        } else if is_durable || self.plant == Plant::NameEarly {
            if writing.is_finishing {
                return self.name_snapshot(shard, writing);
            }
            writing.is_finishing = true;
        }
        let mean_ns = match writing.writer {
            Some(_) => self.knobs.slice_ns,
            None => self.knobs.disk_ns,
        };
        self.cores[shard].writing = Some(writing);
        self.next_slice(shard, mean_ns);
    }

    fn name_snapshot(&mut self, shard: usize, writing: Writing) {
        let (start, bytes) = (writing.start.lsn, writing.bytes.len() as u64);
        self.note("snapshot counts: shard, lsn, bytes", [shard as u64, start, bytes, 0]);
        self.stats.snapshots += 1;
        self.layout.disks[shard].name_snapshot(start, writing.bytes, true);
        self.notice(shard, Input::Snapshotted { start, bytes });
    }

    /// What a crash does to snapshots.
    pub(crate) fn lose_snapshots(&mut self) {
        for shard in 0..self.layout.disks.len() {
            let writing = self.cores.get_mut(shard).and_then(|core| core.writing.take());
            if let Some(writing) = writing.filter(|it| it.is_finishing)
                && self.store_chance.below(2) == 0
            {
                self.note("snapshot just counts: shard", [shard as u64, 0, 0, 0]);
                self.layout.disks[shard].name_snapshot(writing.start.lsn, writing.bytes, false);
            }
            if self.knobs.stores
                && self.store_chance.permille(self.knobs.rot)
                && self.layout.disks[shard].rot(&mut self.store_chance)
            {
                self.note("snapshot rots: shard", [shard as u64, 0, 0, 0]);
                self.stats.rotten += 1;
            }
        }
    }

    /// Reads the newest snapshot that is good; where the replay begins, and how
    /// far the log must be there.
    pub(crate) fn load_snapshot(
        &mut self,
        shard: usize,
        replay: &mut Replay,
    ) -> Result<(LogStart, Lsn), String> {
        replay.reset();
        let salt = self.layout.salts[shard];
        while let Some(newest) = self.layout.disks[shard].snapshots.last() {
            match verify(shard, salt, &newest.bytes) {
                Ok(_) if newest.is_rotten => return Err("a rotten snapshot passes".into()),
                Ok((start, end)) => {
                    feed(shard, salt, &newest.bytes, replay)?;
                    replay.loaded(start, end);
                    self.note("loaded: shard, lsn, end", [shard as u64, start.lsn, end, 0]);
                    self.stats.loads += 1;
                    return Ok((start, end));
                }
                Err(_) if newest.is_rotten => {
                    self.layout.disks[shard].snapshots.pop();
                    self.note("set aside: shard", [shard as u64, 0, 0, 0]);
                }
                Err(why) => return Err(format!("a good snapshot of shard {shard}: {why}")),
            }
        }
        if self.layout.disks[shard].needs_snapshot() {
            return Err(format!("shard {shard} has no snapshot that says who waits for what"));
        }
        Ok((LogStart::fresh(self.layout.salts[shard]), 0))
    }
}

/// Reads all of it before anything is believed.
pub(crate) fn verify(shard: usize, salt: u64, bytes: &[u8]) -> Result<(LogStart, Lsn), String> {
    let mut start = None;
    let end = walk(shard, salt, bytes, &mut |part| {
        if let Part::Start(it) = part {
            start = Some(it);
        }
        Ok(())
    })?;
    Ok((start.ok_or("it has no first frame")?, end))
}

/// Gives the payloads of a snapshot to what is read back.
pub(crate) fn feed(
    shard: usize,
    salt: u64,
    bytes: &[u8],
    replay: &mut dyn Restore,
) -> Result<(), String> {
    let taken = walk(shard, salt, bytes, &mut |part| {
        let taken = match part {
            Part::State(payload) => replay.state(payload),
            Part::Space(payload) => replay.space(payload),
            _ => Ok(()),
        };
        taken.map_err(|why| format!("a frame of a good snapshot: {why}"))
    });
    taken.map(|_| ())
}

fn walk(
    shard: usize,
    salt: u64,
    bytes: &[u8],
    each: &mut dyn FnMut(Part<'_>) -> Result<(), String>,
) -> Result<Lsn, String> {
    let mut reader = Reader::new(salt, shard as ShardId);
    let mut rest = bytes;
    while let Some((len, part)) = reader.frame(rest).map_err(|why| why.to_string())? {
        each(part)?;
        rest = &rest[len..];
    }
    reader.finish(rest.len()).map_err(|why| why.to_string())
}
