//! The oracle of the directory's size.
//!
//! At rest a shard's segments take no more than twice the bytes of what waits,
//! and the one that is being written; nobody has to send anything for it. Under
//! a steady load one more may be dead: it waits for two snapshots, each of which
//! is taken at a tick, so that what died, or was appended, within the last ticks
//! comes on top. Segments made ahead of need do not exist here.

use std::collections::VecDeque;

use wal::Lsn;

use crate::world::World;

/// So many ticks let go of what is dead: one in which it is noticed, one for
/// each snapshot, one to spare.
const TICKS: usize = 4;

/// What is remembered of one shard.
#[derive(Default)]
pub(crate) struct Pace {
    /// Where the log ended at the last ticks, and how many bytes waited.
    seen: VecDeque<(Lsn, u64)>,
    /// For so many ticks the segments have been too many.
    over: usize,
}

impl World {
    /// At rest: the first shard whose segments are too many, in words.
    pub(crate) fn waiting_space(&mut self) -> Option<String> {
        let shards = if self.knobs.stores { self.cores.len() } else { 0 };
        // Damaged segments stay until a repair.
        let is_over = |world: &mut World, at: usize| {
            let is_whole = !world.layout.disks[at].has_rotted();
            is_whole && world.surplus(at) > world.knobs.log.segment_bytes
        };
        let over = (0..shards).find(|at| is_over(self, *at))?;
        Some(format!("shard {over} to free {} bytes", self.surplus(over)))
    }

    /// At a tick of a steady world.
    pub(crate) fn watch_space(&mut self) {
        for shard in 0..self.cores.len() {
            let surplus = self.surplus(shard);
            let core = &mut self.cores[shard];
            let (end, live) = (core.brain.log().end(), core.brain.metrics().counters.waiting_bytes);
            let pace = &mut core.pace;
            pace.seen.push_back((end, live));
            if pace.seen.len() > TICKS + 1 {
                pace.seen.pop_front();
            }
            let appended = end - pace.seen[0].0;
            let most = pace.seen.iter().map(|(_, live)| *live).max().unwrap_or(live);
            // What dies makes twice as much too many.
            let allowed = 2 * self.knobs.log.segment_bytes + appended + 2 * (most - live);
            pace.over = if surplus > allowed { pace.over + 1 } else { 0 };
            if pace.over > TICKS {
                self.violate(format!(
                    "the segments of shard {shard} take {surplus} bytes more than twice what \
                     waits, {allowed} are allowed"
                ));
            }
        }
    }

    /// Bytes of a shard's segments beyond twice those that wait.
    fn surplus(&mut self, shard: usize) -> u64 {
        let brain = &mut self.cores[shard].brain;
        let (end, live) = (brain.log().end(), brain.metrics().counters.waiting_bytes);
        let segments = self.layout.disks[shard].present(end).len() as u64;
        (segments * self.knobs.log.segment_bytes).saturating_sub(2 * live)
    }
}
