//! The layout that counts: for so many shards, each with its disk, and what was
//! ever written to it.

use shard::Replay;
use wal::Lsn;

use crate::disk::Disk;
use crate::filling::Filling;
use crate::history::History;
use crate::knobs::Knobs;

/// See the module.
pub(crate) struct Layout {
    pub(crate) shards: u16,
    /// 0 for the first one.
    pub(crate) generation: u64,
    /// The secrets of the logs.
    pub(crate) salts: Vec<u64>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) histories: Vec<History>,
}

impl Layout {
    /// The first layout, empty.
    pub(crate) fn first(knobs: &Knobs) -> Layout {
        Layout::new(knobs.shards, 0, 0, |salt| {
            Disk::new(knobs.log.segment_bytes, knobs.filling.blank(salt))
        })
    }

    /// One that follows another, empty. No two have a secret in common, not even
    /// with one that never came to count; `attempts` is their number.
    pub(crate) fn after(
        before: &Layout,
        shards: u16,
        attempts: u64,
        segment_bytes: u64,
        filling: Filling,
    ) -> Layout {
        Layout::new(shards, before.generation + 1, attempts, |salt| {
            Disk::of_new_layout(segment_bytes, filling.blank(salt))
        })
    }

    fn new(shards: u16, generation: u64, attempts: u64, disk: impl Fn(u64) -> Disk) -> Layout {
        let salt = |shard| 0x5eed_0000 + (attempts << 8) + u64::from(shard);
        let salts: Vec<u64> = (0..shards).map(salt).collect();
        Layout {
            shards,
            generation,
            disks: salts.iter().map(|salt| disk(*salt)).collect(),
            salts,
            histories: (0..shards).map(|_| History::default()).collect(),
        }
    }
}

/// What reading a shard back leads to.
pub(crate) struct ReadBack {
    pub(crate) replay: Replay,
    pub(crate) start: wal::LogStart,
    /// Bytes cut off the log's end.
    pub(crate) cut: Lsn,
}
