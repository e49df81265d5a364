//! Files whose heads say something else than their names: segments under each
//! other's names, as after a directory was put together by hand, and one that a
//! newer version wrote. Somebody does that while the server is down. A start is
//! refused for both. The newer one is the operator's to take away again; to the
//! others a repair gives their names, with the parts of `wal` that production does it
//! with, and may be interrupted after each of them. That a real start and a real
//! repair do so with these very files, `sim/tests/real_disk.rs` shows.

use std::collections::{BTreeMap, BTreeSet};

use wal::names::{misnamed, next_exchange};
use wal::segment::{HeaderError, SegmentHeader};
use wal::{FORMAT, Restore};
use wire::id::ShardId;

use crate::chance::Chance;
use crate::plant::Plant;
use crate::world::World;

/// What is not as it should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// The numbers in the names of segments that do not have their own.
    of: BTreeMap<u64, u64>,
    /// A segment that says to be of a newer format.
    pub(crate) newer: Option<u64>,
}

impl Names {
    /// Whether each file is what its name says.
    pub(crate) fn is_plain(&self) -> bool {
        self.of.is_empty() && self.newer.is_none()
    }

    /// The number in the name of this segment.
    pub(crate) fn of(&self, segment: u64) -> u64 {
        self.of.get(&segment).copied().unwrap_or(segment)
    }

    /// What stands under this name is deleted; which segment that was, if any.
    pub(crate) fn delete(&mut self, name: u64) -> Option<u64> {
        let found = self.of.iter().find(|(_, it)| **it == name).map(|(segment, _)| *segment);
        let is_elsewhere = self.of.contains_key(&name);
        let segment = found.or((!is_elsewhere).then_some(name))?;
        self.of.remove(&segment);
        Some(segment)
    }

    /// Those that do not have their own, and the names that they have.
    pub(crate) fn mixed(&self) -> Vec<(u64, u64)> {
        self.of.iter().map(|(segment, name)| (*segment, *name)).collect()
    }

    /// Some of these get each other's names, or one that none had.
    fn mix(&mut self, own: &[u64], chance: &mut Chance) -> bool {
        let moved: Vec<u64> = if chance.below(2) == 0 {
            // Two of them only, if there are so many.
            let one = chance.below(own.len() as u64) as usize;
            let other = chance.below(own.len() as u64) as usize;
            BTreeSet::from([own[one], own[other]]).into_iter().collect()
        } else {
            let share = chance.pick(&[1, 2, 4]);
            own.iter().copied().filter(|_| chance.below(share) == 0).collect()
        };
        let mut names = moved.clone();
        let last = own.last().copied().unwrap_or(0);
        let free: Vec<u64> = (0..last + 4).filter(|it| own.binary_search(it).is_err()).collect();
        if chance.below(3) == 0 {
            names.push(chance.pick(&free));
        }
        if moved.is_empty() || names.len() < 2 {
            return false;
        }
        let by = chance.within(1, names.len() as u64 - 1) as usize;
        let mixed = (by..).zip(moved).map(|(n, it)| (it, names[n % names.len()]));
        self.of = mixed.collect();
        true
    }

    /// Of the segments that are there those under these names change places.
    fn exchange(&mut self, there: &[u64], one: u64, other: u64) {
        let at = |name| there.iter().copied().find(|segment| self.of(*segment) == name);
        let moved = [(at(one), other), (at(other), one)];
        for (segment, name) in moved.into_iter().filter_map(|(it, name)| Some((it?, name))) {
            self.of.insert(segment, name);
        }
        self.of.retain(|segment, name| segment != name);
    }
}

impl World {
    /// Somebody was at the directories.
    pub(crate) fn mix_names(&mut self) {
        let chance = &mut self.names_chance;
        for shard in 0..self.layout.disks.len() {
            let disk = &mut self.layout.disks[shard];
            let own = disk.written_segments();
            if !disk.names.is_plain() || own.is_empty() {
                continue;
            }
            let mixes = chance.permille(self.knobs.misnames) && disk.names.mix(&own, chance);
            if chance.permille(self.knobs.newer) {
                disk.names.newer = Some(chance.pick(&own));
            }
            let (count, newer) = (disk.names.of.len() as u64, disk.names.newer.is_some());
            self.stats.misnamed += u64::from(mixes);
            self.stats.newer += u64::from(newer);
            if mixes || newer {
                let args = [shard as u64, count, newer.into(), 0];
                self.trace.note(self.now_ns, "names: shard, changed, newer", args);
            }
        }
    }

    /// What an operator does about that before the server starts. Whether it
    /// came to its end; otherwise somebody begins it again.
    ///
    /// # Errors
    /// A promise that was broken.
    pub(crate) fn see_to_names(&mut self) -> Result<bool, String> {
        for shard in 0..self.layout.disks.len() {
            if self.layout.disks[shard].names.is_plain() {
                continue;
            }
            self.keep_strange(shard);
            if self.layout.disks[shard].names.newer.is_some() {
                if !self.refuses(shard) {
                    return Err(format!("shard {shard} starts on what a newer version wrote"));
                }
                // It was put there by mistake.
                self.layout.disks[shard].names.newer = None;
            }
            if self.refuses(shard) && !self.rename(shard) {
                return Ok(false);
            }
            if self.refuses(shard) {
                return Err(format!("shard {shard} has other names and is refused all the same"));
            }
        }
        Ok(true)
    }

    /// What the heads say of the files of a shard, by the numbers in their names.
    fn heads(&self, shard: usize) -> BTreeMap<u64, Result<(), HeaderError>> {
        let disk = &self.layout.disks[shard];
        let header = |segment| SegmentHeader {
            log_id: self.layout.salts[shard],
            shard: shard as ShardId,
            base: segment * self.knobs.log.segment_bytes,
            segment_bytes: self.knobs.log.segment_bytes,
        };
        let read = |segment: u64| {
            let name = disk.names.of(segment);
            if disk.names.newer == Some(segment) {
                return (name, Err(HeaderError::OtherFormat(FORMAT + 1)));
            }
            (name, header(name).expect(&header(segment).encode()))
        };
        disk.written_segments().into_iter().map(read).collect()
    }

    /// Whether a start is refused for what the heads say.
    fn refuses(&self, shard: usize) -> bool {
        let heads = self.heads(shard);
        let mut strange = heads
            .iter()
            .filter(|(_, head)| head.is_err_and(|why: HeaderError| why.is_another_file()));
        if self.plant != Plant::TrustNames {
            return strange.next().is_some();
        }
        // What is missing altogether is no matter of names.
        let names = &self.layout.disks[shard].names;
        let is_elsewhere = |it: &u64| names.of.contains_key(it);
        names.newer.is_some() || self.needed(shard).iter().any(is_elsewhere)
    }

    /// The segments that a start looks at because it cannot do without.
    fn needed(&self, shard: usize) -> Vec<u64> {
        let mut replay = self.empty_replay(shard);
        let loaded = self.newest_whole(shard, &mut replay);
        let from = loaded.map_or(0, |(start, _)| start.lsn / self.knobs.log.segment_bytes);
        let mut needed = self.layout.disks[shard].written_segments();
        needed.retain(|segment| *segment >= from);
        needed.extend(replay.needed().into_iter().map(|(index, ..)| index));
        needed
    }

    /// Gives the segments their names; whether nothing came in between.
    fn rename(&mut self, shard: usize) -> bool {
        let segment_bytes = self.knobs.log.segment_bytes;
        loop {
            let says = |name, head| match head {
                Ok(()) => Some(name),
                Err(HeaderError::OtherBase(lsn)) => Some(lsn / segment_bytes),
                Err(_) => None,
            };
            let heads = self.heads(shard).into_iter();
            let heads = heads.map(|(name, head)| (name, says(name, head))).collect();
            let Some((one, other)) = next_exchange(&mut misnamed(&heads)) else { return true };
            let disk = &mut self.layout.disks[shard];
            let there = disk.written_segments();
            disk.names.exchange(&there, one, other);
            self.stats.renamed += 1;
            if self.names_chance.below(6) == 0 {
                return false;
            }
        }
    }
}
