//! The simulated disk and the real one agree: what lies on a disk at a start in
//! the simulator, torn writes, stale bytes, deleted segments and rotten
//! snapshots included, is put on a real file system, and the disk half of the
//! log must read back the same log end and the same inboxes from it.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // a real disk

use std::fs;
use std::path::Path;

use shard::{KeyHasher, Options, Replay};
use sim::{Image, Plant, World};
use wal::disk::{DataDir, OpenOptions, SEGMENT_BYTES_MIN};
use wal::manifest::Manifest;
use wal::segment::{SegmentHeader, file_bytes};
use wal::{FORMAT, Log, LogOptions};

/// Some without snapshots and cleaning, more with both, some with other numbers
/// of shards, and some whose disks fill, rot or fail in the sync alone.
const SEEDS: [std::ops::Range<u64>; 4] =
    [0..10, 10_000..10_030, 3_000_000..3_000_040, 6_000_000..6_000_030];

#[test]
fn every_start_reads_the_same_from_a_real_disk() {
    let (mut starts, mut rotten, mut torn, mut from_snapshots, mut later) = (0, 0, 0, 0, 0);
    for seed in SEEDS.into_iter().flatten() {
        let mut world = World::new(seed, Plant::None, false);
        world.keep_images();
        let outcome = world.live();
        assert_eq!(outcome.violation, None, "seed {seed}");
        for image in world.take_images() {
            check(seed, &image);
            starts += 1;
            rotten += usize::from(image.good < image.snapshots.len());
            torn += usize::from(image.cut > 0);
            from_snapshots += usize::from(image.good > 0);
            later += usize::from(image.generation > 0);
        }
    }
    // Otherwise this would show nothing.
    assert!(starts > 80 && torn > 8, "{starts} starts, {torn} torn");
    assert!(later > 20, "{later} of a layout after the first");
    assert!(rotten > 0 && from_snapshots > 10, "{rotten} rotten, {from_snapshots} snapshots");
}

fn check(seed: u64, image: &Image) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), image);
    let open = OpenOptions {
        shards: None,
        default_shards: image.shards,
        segment_bytes: SEGMENT_BYTES_MIN,
    };
    let data = DataDir::open(dir.path(), open).unwrap();
    let shard = data.shard(image.shard);
    let mut replay = Replay::new(options(image), KeyHasher::new(image.seed), image.segment_bytes);
    let what = format!("seed {seed}, shard {}, end {}", image.shard, image.end);
    let recovered =
        shard.recover(&mut replay, &mut |_| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(recovered.start.lsn, image.end, "{what}");
    assert_eq!(recovered.torn.map_or(0, |torn| torn.bytes), image.cut, "{what}");
    assert_eq!(recovered.snapshot.is_some(), image.good > 0, "{what}");
    let log = LogOptions {
        tail_bytes: image.segment_bytes as usize,
        segment_bytes: image.segment_bytes,
        commit_bytes_max: image.segment_bytes as usize,
        ..LogOptions::default()
    };
    let log = Log::new(log, recovered.start);
    let brain = replay.finish(&recovered.start, log, recovered.segments);
    let inboxes: Vec<_> =
        brain.inboxes().map(|(name, first, last)| (name.to_vec(), first, last)).collect();
    assert_eq!(inboxes, image.inboxes, "{what}");
}

/// Lays the image out as a data directory.
fn put(dir: &Path, image: &Image) {
    let mut salts = vec![1; usize::from(image.shards)];
    salts[usize::from(image.shard)] = image.salt;
    let layout = match image.generation {
        0 => dir.to_path_buf(),
        generation => dir.join(format!("gen-{generation:04}")),
    };
    for shard in 0..image.shards {
        fs::create_dir_all(layout.join(format!("shard-{shard:04}"))).unwrap();
    }
    let shard = layout.join(format!("shard-{:04}", image.shard));
    for (index, bytes) in &image.segments {
        let header = SegmentHeader {
            log_id: image.salt,
            shard: image.shard,
            base: index * image.segment_bytes,
            segment_bytes: image.segment_bytes,
        };
        let mut file = header.encode().to_vec();
        file.extend_from_slice(bytes);
        file.resize(file_bytes(image.segment_bytes) as usize, 0);
        fs::write(shard.join(format!("segment-{index:010}.log")), file).unwrap();
    }
    for (start, bytes) in &image.snapshots {
        fs::write(shard.join(format!("snapshot-{start:020}.snap")), bytes).unwrap();
    }
    let manifest = Manifest {
        format: FORMAT,
        shards: image.shards,
        seed: image.seed,
        salts,
        segment_bytes: image.segment_bytes,
        generation: image.generation,
    };
    manifest.store(dir).unwrap();
}

fn options(image: &Image) -> Options {
    Options {
        shard: image.shard,
        shards: image.shards,
        node: 1,
        users_max: 100_000,
        waiting_messages_max: usize::MAX,
        pairs_max: usize::MAX,
        inbox_messages_max: usize::MAX,
        inbox_bytes_max: 1 << 30,
        retention_ms: 30 * 24 * 60 * 60 * 1000,
        pairs_kept_ms: 7 * 24 * 60 * 60 * 1000,
        handshake_ms: 3_000,
        logins_per_second: 0,
    }
}
