//! What lies on a simulated disk when the server starts, and what the start
//! makes of it: for a test that puts the same bytes on a real file system and
//! has the disk half of the log read them back.

use std::ops::Range;

use wal::Lsn;
use wal::sector::Blank;
use wire::id::ShardId;

use crate::damage::Finding;
use crate::world::World;

/// One shard's disk before a start, and the shard after it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Which shard, of how many.
    pub shard: ShardId,
    /// How many shards the node has.
    pub shards: u16,
    /// The seed of the hash that names users.
    pub seed: [u64; 2],
    /// Which layout it is of: 0 for the first, which needs no snapshot.
    pub generation: u64,
    /// The log's secret.
    pub salt: u64,
    /// Log bytes in a segment.
    pub segment_bytes: u64,
    /// The segments that are there, by number, with what stands where nothing was
    /// written; the last one may be short.
    pub segments: Vec<(u64, Blank, Vec<u8>)>,
    /// The numbers in the names of those that do not have their own, by number.
    pub names: Vec<(u64, u64)>,
    /// One whose head says that it is of a newer format.
    pub newer: Option<u64>,
    /// What cannot be read of them, or was cut off, ascending.
    pub holes: Vec<Range<Lsn>>,
    /// The snapshots, by where their replay begins; rotten ones included.
    pub snapshots: Vec<(Lsn, Vec<u8>)>,
    /// How many of those were good.
    pub good: usize,
    /// Where the log went on.
    pub end: Lsn,
    /// Bytes that were cut off its end.
    pub cut: u64,
    /// Every user: name, first and last inbox seq of what waits.
    pub inboxes: Vec<(Vec<u8>, u64, u64)>,
}

/// One shard's disk before a repair, and what that makes of it.
#[derive(Clone, Debug)]
pub struct Wreck {
    /// The disk; what a start makes of it is empty.
    pub image: Image,
    /// Ranges of the log that are told to be lost.
    pub lost: Vec<(Lsn, Lsn)>,
    /// Where the log ends.
    pub end: Lsn,
    /// Where it can go on.
    pub fresh: Lsn,
    /// Where the replay of the snapshot began that was read.
    pub snapshot: Option<Lsn>,
    /// Segments that are given up.
    pub aside: Vec<u64>,
    /// Messages that waited and cannot be read.
    pub given_up: u64,
    /// What is kept: position and length.
    pub waiting: Vec<(Lsn, u32)>,
}

impl World {
    /// Keeps an image of every disk at every start from now on.
    pub fn keep_images(&mut self) {
        self.images = Some(Vec::new());
    }

    /// The images since then.
    pub fn take_images(&mut self) -> Vec<Image> {
        self.images.take().unwrap_or_default()
    }

    /// The disks before repairs since then.
    pub fn take_wrecks(&mut self) -> Vec<Wreck> {
        std::mem::take(&mut self.wrecks)
    }

    /// What a repair finds, when images are kept.
    pub(crate) fn keep_wreck(&mut self, shard: usize, finding: &Finding) {
        let Some(image) = self.image(shard) else { return };
        let waiting = finding.salvage.waiting();
        self.wrecks.push(Wreck {
            image,
            lost: finding.lost.clone(),
            end: finding.end,
            fresh: finding.fresh.lsn,
            snapshot: finding.snapshot,
            aside: finding.aside.iter().copied().collect(),
            given_up: finding.given_up,
            waiting: waiting.iter().map(|it| (it.lsn, it.len)).collect(),
        });
    }

    /// The same where files are not what their names say.
    pub(crate) fn keep_strange(&mut self, shard: usize) {
        if self.images.is_some() {
            let finding = self.look(shard);
            self.keep_wreck(shard, &finding);
        }
    }

    /// The disk of a shard before a start, when images are kept.
    pub(crate) fn image(&self, shard: usize) -> Option<Image> {
        self.images.as_ref()?;
        let disk = &self.layout.disks[shard];
        let segments = disk.segments(0).filter(|(index, ..)| !disk.lacks(*index));
        Some(Image {
            shard: shard as ShardId,
            shards: self.layout.shards,
            seed: self.seed,
            salt: self.layout.salts[shard],
            generation: self.layout.generation,
            segment_bytes: self.knobs.log.segment_bytes,
            segments: segments
                .map(|(index, _, bytes)| (index, disk.blank(index), bytes.to_vec()))
                .collect(),
            names: disk.names.mixed(),
            newer: disk.names.newer,
            holes: disk.written_segments().into_iter().flat_map(|it| disk.holes_in(it)).collect(),
            snapshots: disk.snapshots.iter().map(|it| (it.start, it.bytes.clone())).collect(),
            good: disk.snapshots.iter().filter(|it| !it.is_rotten).count(),
            end: 0,
            cut: 0,
            inboxes: Vec::new(),
        })
    }

    /// What the start made of it.
    pub(crate) fn keep_image(
        &mut self,
        image: Option<Image>,
        end: Lsn,
        cut: u64,
        brain: &shard::Shard,
    ) {
        let (Some(mut image), Some(images)) = (image, &mut self.images) else { return };
        (image.end, image.cut) = (end, cut);
        image.inboxes =
            brain.inboxes().map(|(name, first, last)| (name.to_vec(), first, last)).collect();
        images.push(image);
    }
}
