//! The layout that counts: for so many shards, each with its disk, and what was
//! ever written to it.

use shard::Replay;
use wal::Lsn;

use crate::disk::Disk;
use crate::history::History;

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
    pub(crate) fn first(shards: u16, segment_bytes: u64) -> Layout {
        Layout::new(shards, 0, 0, || Disk::new(segment_bytes))
    }

    /// One that follows another, empty. No two have a secret in common, not even
    /// with one that never came to count; `attempts` is their number.
    pub(crate) fn after(before: &Layout, shards: u16, attempts: u64, segment_bytes: u64) -> Layout {
        let disk = || Disk::of_new_layout(segment_bytes);
        Layout::new(shards, before.generation + 1, attempts, disk)
    }

    fn new(shards: u16, generation: u64, attempts: u64, disk: impl Fn() -> Disk) -> Layout {
        Layout {
            shards,
            generation,
            salts: (0..shards)
                .map(|shard| 0x5eed_0000 + (attempts << 8) + u64::from(shard))
                .collect(),
            disks: (0..shards).map(|_| disk()).collect(),
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
