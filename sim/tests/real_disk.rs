//! The simulated disk and the real one agree: what lies on a disk at a start in
//! the simulator, torn writes, stale bytes, deleted segments and rotten
//! snapshots included, is put on a real file system, and the disk half of the
//! log must read back the same log end and the same inboxes from it; and where
//! something is damaged, a repair must find the same.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // a real disk

use std::fs;
use std::path::Path;

use shard::{KeyHasher, Options, Replay, Salvage};
use sim::{Image, Plant, World, Wreck};
use wal::disk::{DataDir, OpenOptions, Records, SEGMENT_BYTES_MIN};
use wal::manifest::Manifest;
use wal::segment::{SegmentHeader, file_bytes};
use wal::{BLOCK, FORMAT, Log, LogOptions, Lsn, Record};

/// Some without snapshots and cleaning, more with both, some with other numbers
/// of shards, some whose disks fill, rot or fail in the sync alone, some in which
/// messages are set aside, and some in which appends gather.
const SEEDS: [std::ops::Range<u64>; 7] = [
    0..10,
    10_000..10_030,
    3_000_000..3_000_040,
    6_000_000..6_000_020,
    7_000_000..7_000_020,
    8_000_000..8_000_020,
    12_000_000..12_000_020,
];

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

/// Worlds in which repairs are due, torn ones among them, and such with segments
/// that are cut short or gone.
const WRECKED: [std::ops::Range<u64>; 4] =
    [6_000_000..6_000_040, 9_740_395..9_740_396, 10_000_000..10_000_140, 12_000_000..12_000_140];

#[test]
fn every_repair_finds_the_same_on_a_real_disk() {
    let (mut wrecks, mut with_losses, mut given_up, mut without_snapshot) = (0, 0, 0, 0);
    let mut cut = 0;
    for seed in WRECKED.into_iter().flatten() {
        let mut world = World::new(seed, Plant::None, false);
        world.keep_images();
        let outcome = world.live();
        assert_eq!(outcome.violation, None, "seed {seed}");
        let wrecks_here = world.take_wrecks().into_iter().enumerate();
        // A file can be cut here; that a disk refuses blocks, `tests/repair.rs` shows.
        for (n, wreck) in
            wrecks_here.filter(|(_, wreck)| wreck.image.holes.iter().all(is_cut(wreck)))
        {
            cut += usize::from(!wreck.image.holes.is_empty());
            check_wreck(&format!("seed {seed}, wreck {n}"), &wreck);
            wrecks += 1;
            with_losses += usize::from(!wreck.lost.is_empty());
            given_up += usize::from(wreck.given_up > 0);
            without_snapshot += usize::from(wreck.snapshot.is_none());
        }
    }
    // Otherwise this would show nothing.
    assert!(wrecks > 30 && with_losses > 5, "{wrecks} wrecks, {with_losses} with lost ranges");
    assert!(given_up > 3 && without_snapshot > 3, "{given_up} and {without_snapshot}");
    assert!(cut > 5, "{cut} with segments that are cut short");
}

/// Whether a hole reaches to the end of its segment.
fn is_cut(wreck: &Wreck) -> impl Fn(&std::ops::Range<Lsn>) -> bool {
    let segment_bytes = wreck.image.segment_bytes;
    move |hole| hole.end.is_multiple_of(segment_bytes)
}

fn check_wreck(what: &str, wreck: &Wreck) {
    let image = &wreck.image;
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), image);
    let shard = DataDir::open_as_it_is(dir.path()).unwrap().shard(image.shard);
    let hasher = KeyHasher::new(image.seed);
    let mut salvage = Salvage::new(options(image), hasher, image.segment_bytes);
    let found = shard.salvage(&mut salvage, &mut |_| {}).unwrap();
    // As `iris-shard repair` does.
    let mut records = Records::new(&shard);
    let mut given_up = 0;
    for placed in salvage.waiting() {
        let record = records.get(placed.lsn, placed.len);
        let message = record.as_ref().and_then(Record::message);
        if !message.is_some_and(|message| salvage.is_it(&placed, message)) {
            salvage.give_up(&placed);
            given_up += 1;
        }
    }
    let lost: Vec<(Lsn, Lsn)> = found.lost.iter().map(|it| (it.lsn, it.lsn + it.bytes)).collect();
    let waiting: Vec<(Lsn, u32)> = salvage.waiting().iter().map(|it| (it.lsn, it.len)).collect();
    assert_eq!(lost, wreck.lost, "{what}");
    assert_eq!((found.end(), found.fresh.lsn), (wreck.end, wreck.fresh), "{what}");
    assert_eq!(found.snapshot.map(|it| it.start.lsn), wreck.snapshot, "{what}");
    assert_eq!(found.aside, wreck.aside, "{what}");
    assert_eq!((given_up, waiting), (wreck.given_up, wreck.waiting.clone()), "{what}");
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
        let (base, end) = (index * image.segment_bytes, (index + 1) * image.segment_bytes);
        if let Some(cut) = image.holes.iter().find(|hole| hole.end == end) {
            file.truncate((cut.start - base) as usize + BLOCK);
        }
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
