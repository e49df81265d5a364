//! Another number of shards: what `src/reshard.rs` does in production, here on
//! simulated disks.
//!
//! The order of the steps is `shard::Rewrite`'s. Before each of them, and within
//! some, the server may die; a write, a sync or a snapshot may fail, which leaves
//! the old layout. What was not synced ends at a crash as writes in flight do.

use std::ops::ControlFlow;

use shard::{Load, Options, Replay, Rewrite, SnapshotPart, Step};
use wal::clean::{Walker, Want};
use wal::record::Record;
use wal::snapshot::{Kind, Writer};
use wal::{LogStart, Lsn};
use wire::id::ShardId;

use crate::disk::Disk;
use crate::history::records_of;
use crate::layout::{Layout, ReadBack};
use crate::plant::Plant;
use crate::world::World;

/// The most shards that are asked for: more than a world begins with.
const SHARDS_MAX: u64 = 6;
/// A server that dies meanwhile does so before this step. Most of the deaths
/// come early, because few messages need few steps.
const STEPS_TO_LIVE_MAX: u64 = 60;
/// The longest read of a walk; longer than any record.
const WALK_BYTES: u32 = 256 << 10;

/// How a rewriting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The new layout counts.
    Switched,
    /// The old one does; it was as it was.
    Abandoned,
    /// The server died.
    Died,
}

impl World {
    /// The number of shards that this start asks for, if it is another one.
    pub(crate) fn asked_for(&mut self) -> Option<u16> {
        if self.life < 2 || !self.resize_chance.permille(self.knobs.resize) {
            return None;
        }
        let shards = self.resize_chance.within(1, SHARDS_MAX) as u16;
        (shards != self.layout.shards).then_some(shards)
    }

    /// Rewrites everything for another number of shards.
    pub(crate) fn reshard(&mut self, shards: u16) -> Result<End, String> {
        let (from, to) = (self.layout.shards, shards);
        self.note("reshard: from, to", [from.into(), to.into(), 0, 0]);
        let dies = self.resize_chance.permille(self.knobs.resize_dies);
        self.steps_to_live = dies.then(|| self.resize_chance.within(0, STEPS_TO_LIVE_MAX));
        let old = self.read_all()?;
        if self.sweep() == End::Died {
            return Ok(End::Died);
        }
        self.layouts_made += 1;
        let mut next = Layout::after(
            &self.layout,
            shards,
            self.layouts_made,
            self.knobs.log.segment_bytes,
            self.filling,
        );
        let of = |shard: usize| (self.options(shard, shards), next.salts[shard]);
        let new: Vec<(Options, u64)> = (0..next.disks.len()).map(of).collect();
        let loads = shard::weigh(&old, shards);
        let ends: Vec<Lsn> = old.iter().map(|(_, start)| start.lsn).collect();
        let mut rewrite = Rewrite::new(old, self.knobs.log, &new)?;
        while let Some(step) = rewrite.next_step()? {
            if step == Step::Switch {
                two_snapshots(&next, &loads)?;
                return Ok(self.switch(next, &loads));
            }
            if self.dies_here() {
                return Ok(End::Died);
            }
            if self.step_fails(step, &next) {
                self.note("reshard fails", [0; 4]);
                return Ok(End::Abandoned);
            }
            match step {
                Step::Make | Step::Switch => {}
                Step::Read { shard, segment } => {
                    self.copy(&mut rewrite, &mut next, shard, segment, &ends)?;
                }
                Step::Write { shard } => write(&mut rewrite, &mut next, shard),
                Step::Sync { .. } if self.plant == Plant::SwitchUnsynced => {}
                Step::Sync { shard } => next.disks[usize::from(shard)].sync(),
                Step::Snapshot { shard } => take_snapshot(&mut rewrite, &mut next, shard),
                Step::LookBack { shard } => self.look_back(&rewrite, &mut next, shard)?,
            }
        }
        Err("a rewriting that ends without the switch".into())
    }

    /// Reads all shards of the layout that counts, for the model, too.
    fn read_all(&mut self) -> Result<Vec<(Replay, LogStart)>, String> {
        self.model.forget();
        let shards = usize::from(self.layout.shards);
        let read = |shard: usize| {
            let ReadBack { replay, start, .. } = self.read_back(shard)?;
            self.read_history(shard)?;
            Ok((replay, start))
        };
        (0..shards).map(read).collect()
    }

    /// Removes what is left of the layout before this one.
    pub(crate) fn sweep(&mut self) -> End {
        while let Some(leftover) = &mut self.leftover {
            if leftover.disks.pop().is_none() {
                self.leftover = None;
            } else if self.dies_here() {
                return End::Died;
            }
        }
        End::Abandoned
    }

    /// One more step; whether the server dies before it.
    fn dies_here(&mut self) -> bool {
        let Some(left) = self.steps_to_live else { return false };
        self.steps_to_live = left.checked_sub(1);
        left == 0
    }

    fn step_fails(&mut self, step: Step, next: &Layout) -> bool {
        let writes = matches!(step, Step::Write { .. } | Step::Sync { .. } | Step::Snapshot { .. });
        let taken: u64 = next.disks.iter().map(Disk::segment_bytes_taken).sum();
        if writes && self.free_bytes() < taken + self.knobs.log.segment_bytes {
            return true;
        }
        writes && self.resize_chance.permille(self.knobs.write_fails)
    }

    /// The new layout counts, unless the server dies just before it does.
    fn switch(&mut self, next: Layout, loads: &[Load]) -> End {
        let dies = self.dies_here();
        if dies && self.resize_chance.below(2) == 0 {
            return End::Died;
        }
        self.note("switched: shards, generation", [next.shards.into(), next.generation, 0, 0]);
        self.stats.reshardings += 1;
        self.stats.carried += loads.iter().map(|load| load.messages).sum::<u64>();
        self.leftover = Some(std::mem::replace(&mut self.layout, next));
        self.model.switch();
        if dies { End::Died } else { End::Switched }
    }

    /// Copies what waits in one old segment.
    fn copy(
        &mut self,
        rewrite: &mut Rewrite,
        next: &mut Layout,
        shard: ShardId,
        segment: u64,
        ends: &[Lsn],
    ) -> Result<(), String> {
        let shard = usize::from(shard);
        let (disk, end) = (&self.layout.disks[shard], ends[shard]);
        let salt = self.layout.salts[shard];
        let mut walker = Walker::new(salt, segment, self.knobs.log.segment_bytes, WALK_BYTES);
        while let Some(Want { lsn, len, .. }) = walker.want().filter(|want| want.lsn < end) {
            let len = u64::from(len).min(end - lsn) as usize;
            let bytes = disk.read(lsn, len)?;
            let fed = walker.feed(lsn, bytes, &mut |lsn, _, record| {
                give(rewrite, next, lsn, &record);
                ControlFlow::Continue(())
            });
            fed.map_err(|damage| format!("a walk through shard {shard}: {damage}"))?;
        }
        Ok(())
    }

    /// Reads the new shard back as the next start will.
    fn look_back(
        &mut self,
        rewrite: &Rewrite,
        next: &mut Layout,
        shard: ShardId,
    ) -> Result<(), String> {
        std::mem::swap(&mut self.layout, next);
        let found = self.read_back(usize::from(shard));
        std::mem::swap(&mut self.layout, next);
        rewrite.compare(shard, &found?.replay)?;
        if self.plant == Plant::SweepEarly {
            self.layout.disks.iter_mut().for_each(Disk::wipe);
        }
        Ok(())
    }
}

/// Damage to one snapshot must cost nothing: without any nobody knows who waits
/// for what.
fn two_snapshots(next: &Layout, loads: &[Load]) -> Result<(), String> {
    let lacks = |(disk, load): (&Disk, &Load)| load.users > 0 && disk.snapshots.len() < 2;
    match next.disks.iter().zip(loads).position(lacks) {
        Some(shard) => Err(format!("new shard {shard} has too few snapshots")),
        None => Ok(()),
    }
}

/// Gives a record to the shard whose it will be.
fn give(rewrite: &mut Rewrite, next: &mut Layout, lsn: Lsn, record: &Record<'_>) {
    if let Err(full) = rewrite.take(lsn, record) {
        write(rewrite, next, full);
        rewrite.take(lsn, record).expect("all was written");
    }
}

fn write(rewrite: &mut Rewrite, next: &mut Layout, shard: ShardId) {
    let at = usize::from(shard);
    while let Some(write) = rewrite.next_write(shard) {
        let bytes = rewrite.write_bytes(shard, &write);
        for (lsn, record) in records_of(write.lsn, bytes) {
            next.histories[at].push(lsn, record);
        }
        next.disks[at].write_cached(write.lsn, bytes);
    }
}

fn take_snapshot(rewrite: &mut Rewrite, next: &mut Layout, shard: ShardId) {
    let start = rewrite.snapshot_start(shard);
    let mut bytes = Vec::new();
    let mut writer = Writer::new(shard, &start, &mut bytes);
    let end = rewrite.snapshot(shard, &mut |part| -> Result<(), std::convert::Infallible> {
        match part {
            SnapshotPart::State(payload) => writer.frame(Kind::State, payload, &mut bytes),
            SnapshotPart::Space(payload) => writer.frame(Kind::Space, payload, &mut bytes),
        }
        Ok(())
    });
    let Ok(end) = end;
    writer.end(end, &mut bytes);
    next.disks[usize::from(shard)].name_snapshot(start.lsn, bytes, true);
}
