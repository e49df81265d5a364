//! The simulated disk and the real one agree: what lies on a disk at a start in
//! the simulator, torn writes, stale bytes, deleted segments and rotten
//! snapshots included, is put on a real file system, and the disk half of the
//! log must read back the same log end and the same inboxes from it; and where
//! something is damaged, a repair must find the same.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // a real disk

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use shard::{KeyHasher, Options, Replay, Salvage};
use sim::{Image, Plant, World, Wreck};
use tempfile::TempDir;
use wal::disk::{DataDir, OpenOptions, Records, RecoverError, SEGMENT_BYTES_MIN, ShardDir};
use wal::manifest::Manifest;
use wal::sector::Blank;
use wal::segment::{SegmentHeader, file_bytes};
use wal::{BLOCK, FORMAT, FORMAT_ZEROED, Log, LogOptions, Lsn, Record};

/// Some without snapshots and cleaning, more with both, some with other numbers
/// of shards, some whose disks fill, rot or fail in the sync alone, some in which
/// messages are set aside, some in which appends gather, and some in which torn
/// ends become zeroes or a pattern, or one after the other.
const SEEDS: [Range<u64>; 11] = [
    0..10,
    10_000..10_030,
    3_000_000..3_000_040,
    6_000_000..6_000_020,
    7_000_000..7_000_020,
    8_000_000..8_000_020,
    12_000_000..12_000_020,
    14_000_000..14_000_020,
    15_000_000..15_000_040,
    19_000_000..19_000_040,
    20_000_000..20_000_100,
];

#[test]
fn every_start_reads_the_same_from_a_real_disk() {
    let (mut starts, mut rotten, mut torn, mut from_snapshots, mut later) = (0, 0, 0, 0, 0);
    let mut upgraded = 0;
    for seed in SEEDS.into_iter().flatten() {
        let (images, _) = disks(seed);
        for image in images {
            let dir = put(&image);
            check_start(&format!("seed {seed}"), &image, &start(dir.path(), &image).unwrap());
            starts += 1;
            rotten += usize::from(image.good < image.snapshots.len());
            torn += usize::from(image.cut > 0);
            from_snapshots += usize::from(image.good > 0);
            later += usize::from(image.generation > 0);
            upgraded += usize::from(image.segments.windows(2).any(|it| it[0].1 != it[1].1));
        }
    }
    // Otherwise this would show nothing.
    assert!(starts > 80 && torn > 8, "{starts} starts, {torn} torn");
    assert!(later > 20, "{later} of a layout after the first");
    assert!(upgraded > 5, "{upgraded} with segments of several versions");
    assert!(rotten > 0 && from_snapshots > 10, "{rotten} rotten, {from_snapshots} snapshots");
}

/// The disks of a world before its starts and before its repairs.
fn disks(seed: u64) -> (Vec<Image>, Vec<Wreck>) {
    let mut world = World::new(seed, Plant::None, false);
    world.keep_images();
    let outcome = world.live();
    assert_eq!(outcome.violation, None, "seed {seed}");
    (world.take_images(), world.take_wrecks())
}

/// What a start makes of a disk: where the log ends, what was cut off there,
/// whether there was a snapshot, and the inboxes.
#[derive(Debug, PartialEq)]
struct Started {
    end: Lsn,
    cut: u64,
    has_snapshot: bool,
    inboxes: Vec<(Vec<u8>, u64, u64)>,
}

fn start(dir: &Path, image: &Image) -> Result<Started, RecoverError> {
    let shard = open(dir, image);
    let mut replay = Replay::new(options(image), KeyHasher::new(image.seed), image.segment_bytes);
    let recovered = shard.recover(&mut replay, &mut |_| {})?;
    let log = LogOptions {
        tail_bytes: image.segment_bytes as usize,
        segment_bytes: image.segment_bytes,
        commit_bytes_max: image.segment_bytes as usize,
        ..LogOptions::default()
    };
    let log = Log::new(log, recovered.start);
    let brain = replay.finish(&recovered.start, log, recovered.segments);
    Ok(Started {
        end: recovered.start.lsn,
        cut: recovered.torn.map_or(0, |torn| torn.bytes),
        has_snapshot: recovered.snapshot.is_some(),
        inboxes: brain.inboxes().map(|(name, first, last)| (name.to_vec(), first, last)).collect(),
    })
}

fn open(dir: &Path, image: &Image) -> ShardDir {
    let open = OpenOptions {
        shards: None,
        default_shards: image.shards,
        segment_bytes: SEGMENT_BYTES_MIN,
    };
    DataDir::open(dir, open).unwrap().shard(image.shard)
}

fn check_start(what: &str, image: &Image, started: &Started) {
    let what = format!("{what}, shard {}, end {}", image.shard, image.end);
    assert_eq!(started.end, image.end, "{what}");
    assert_eq!(started.cut, image.cut, "{what}");
    assert_eq!(started.has_snapshot, image.good > 0, "{what}");
    assert_eq!(started.inboxes, image.inboxes, "{what}");
}

/// Worlds in which repairs are due, torn ones among them, and such with segments
/// that are cut short or gone, and such with what nobody wrote at the log's end.
const WRECKED: [Range<u64>; 8] = [
    6_000_000..6_000_040,
    9_740_395..9_740_396,
    10_000_000..10_000_140,
    12_000_000..12_000_140,
    15_000_000..15_000_100,
    16_000_000..16_000_060,
    19_000_000..19_000_100,
    20_000_000..20_000_060,
];

#[test]
fn every_repair_finds_the_same_on_a_real_disk() {
    let (mut wrecks, mut with_losses, mut given_up, mut without_snapshot) = (0, 0, 0, 0);
    let mut cut = 0;
    for seed in WRECKED.into_iter().flatten() {
        let is_fit = |it: &Wreck| can_be_put(it) && !is_strange(it);
        for wreck in disks(seed).1.into_iter().filter(is_fit) {
            cut += usize::from(!wreck.image.holes.is_empty());
            let dir = put(&wreck.image);
            check_finding(&format!("seed {seed}"), &wreck, &look(dir.path(), &wreck.image));
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

/// A file can be cut here; that a disk refuses blocks, `tests/unreadable.rs`
/// shows.
fn can_be_put(wreck: &Wreck) -> bool {
    wreck.image.holes.iter().all(|hole| hole.end.is_multiple_of(wreck.image.segment_bytes))
}

/// The shard as a repair looks at it.
fn look(dir: &Path, image: &Image) -> ShardDir {
    DataDir::open_as_it_is(dir).unwrap().shard(image.shard)
}

fn check_finding(what: &str, wreck: &Wreck, shard: &ShardDir) {
    let image = &wreck.image;
    let hasher = KeyHasher::new(image.seed);
    let mut salvage = Salvage::new(options(image), hasher, image.segment_bytes);
    let found = shard.salvage(&mut salvage, &mut |_| {}).unwrap();
    // As `iris-shard repair` does.
    let mut records = Records::new(shard);
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

/// Somebody was at the directory.
fn is_strange(wreck: &Wreck) -> bool {
    !wreck.image.names.is_empty() || wreck.image.newer.is_some()
}

/// Worlds in which somebody was at the directories; the later ones hold segments that
/// several versions have made.
const STRANGE: [Range<u64>; 2] = [17_000_000..17_000_400, 20_000_000..20_000_200];

#[test]
fn files_that_are_not_what_their_names_say_cost_nothing() {
    let (mut mixed, mut damaged, mut newer) = (0, 0, 0);
    for seed in STRANGE.into_iter().flatten() {
        for wreck in disks(seed).1.into_iter().filter(can_be_put).filter(is_strange) {
            let (what, image) = (format!("seed {seed}"), &wreck.image);
            let dir = put(image);
            let before = segments(dir.path());
            let refused = start(dir.path(), image).expect_err("it must be refused");
            assert!(segments(dir.path()) == before, "{what}: something has changed");
            let is_whole = wreck.lost.is_empty() && wreck.given_up == 0 && wreck.aside.is_empty();
            let said = refused.to_string();
            if image.newer.is_some() {
                assert!(said.contains("or a newer one"), "{what}: {said}");
                check_newer(&what, image, dir.path());
                newer += 1;
                continue;
            }
            assert!(!is_whole || said.contains("iris-shard repair"), "{what}: {said}");
            let shard = look(dir.path(), image);
            let misnamed = shard.misnamed().unwrap();
            let told: Vec<(u64, u64)> = misnamed.iter().map(|it| (it.segment, it.name)).collect();
            assert_eq!(sorted(told), image.names, "{what}");
            check_finding(&what, &wreck, &shard.read_by_heads(&misnamed));
            shard.rename(&misnamed).unwrap();
            let plain = Image { names: Vec::new(), ..image.clone() };
            assert!(segments(dir.path()) == segments(put(&plain).path()), "{what}");
            check_finding(&what, &wreck, &shard);
            drop(shard);
            if is_whole {
                let started = start(dir.path(), image).unwrap();
                assert_eq!(started, start(put(&plain).path(), image).unwrap(), "{what}");
                assert_eq!(started.end, wreck.end, "{what}");
            }
            mixed += 1;
            damaged += usize::from(!is_whole);
        }
    }
    // Otherwise this would show nothing.
    assert!(mixed > 30 && damaged > 2 && newer > 20, "{mixed}, {damaged} damaged, {newer} newer");
}

/// Nobody judges what a newer version wrote, and not a byte changes.
fn check_newer(what: &str, image: &Image, dir: &Path) {
    let before = files(dir);
    let mut salvage = Salvage::new(options(image), KeyHasher::new(image.seed), image.segment_bytes);
    let said = look(dir, image).salvage(&mut salvage, &mut |_| {}).unwrap_err();
    assert!(said.to_string().contains("or a newer one"), "{what}: {said}");
    assert!(files(dir) == before, "{what}: something has changed");
}

fn sorted(mut pairs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    pairs.sort_unstable();
    pairs
}

/// All files by their paths in here, with their bytes, the lock's apart.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), PathBuf::from(entry.file_name()));
        if path.is_dir() {
            let within = files(&path).into_iter();
            found.extend(within.map(|(path, bytes)| (name.join(path), bytes)));
        } else if name != Path::new("lock") {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

/// The segments with their bytes.
fn segments(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = files(dir);
    found.retain(|path, _| path.extension().is_some_and(|extension| extension == "log"));
    found
}

fn shard_path(dir: &Path, image: &Image) -> PathBuf {
    layout_path(dir, image).join(format!("shard-{:04}", image.shard))
}

fn layout_path(dir: &Path, image: &Image) -> PathBuf {
    match image.generation {
        0 => dir.to_path_buf(),
        generation => dir.join(format!("gen-{generation:04}")),
    }
}

/// Has the head of a segment say that it is of this format.
fn put_format(file: &mut [u8], format: u32) {
    file[8..12].copy_from_slice(&format.to_le_bytes());
    let checksum = crc32c::crc32c(&file[..40]);
    file[40..44].copy_from_slice(&checksum.to_le_bytes());
}

/// Lays the image out as a data directory.
fn put(image: &Image) -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut salts = vec![1; usize::from(image.shards)];
    salts[usize::from(image.shard)] = image.salt;
    for shard in 0..image.shards {
        fs::create_dir_all(layout_path(dir, image).join(format!("shard-{shard:04}"))).unwrap();
    }
    let shard = shard_path(dir, image);
    for (index, blank, bytes) in &image.segments {
        let header = SegmentHeader {
            log_id: image.salt,
            shard: image.shard,
            base: index * image.segment_bytes,
            segment_bytes: image.segment_bytes,
        };
        let mut file = header.encode().to_vec();
        match blank {
            Blank::Unknown => put_format(&mut file, FORMAT_ZEROED - 1),
            Blank::Zeroes => put_format(&mut file, FORMAT_ZEROED),
            Blank::Pattern(_) => {}
        }
        file.extend_from_slice(bytes);
        let end = file.len();
        file.resize(file_bytes(image.segment_bytes) as usize, 0);
        blank.fill(&mut file[end..]);
        let (base, end) = (index * image.segment_bytes, (index + 1) * image.segment_bytes);
        if let Some(cut) = image.holes.iter().find(|hole| hole.end == end) {
            file.truncate((cut.start - base) as usize + BLOCK);
        }
        if image.newer == Some(*index) {
            put_format(&mut file, FORMAT + 1);
        }
        let renamed = image.names.iter().find(|(segment, _)| segment == index);
        let name = renamed.map_or(*index, |(_, name)| *name);
        fs::write(shard.join(format!("segment-{name:010}.log")), file).unwrap();
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
    temp
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
        vouch_after_ms: shard::VOUCH_AFTER_MS,
    }
}
