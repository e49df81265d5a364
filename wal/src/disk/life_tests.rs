//! A whole life on a real file system: messages come and go, snapshots are
//! taken, segments are cleaned and deleted, and at any step it all stops.

mod inbox;
mod life;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::tests::{Found, SEGMENT_BYTES, flip, options, recover};
use super::*;
use crate::FORMAT;
use crate::snapshot::tests::put_format;
use inbox::Inbox;
use life::Life;

fn names(shard: &ShardDir) -> Vec<String> {
    let entries = fs::read_dir(shard.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A life with two snapshots and segments that were deleted: of what waits,
/// some was there before the older snapshot, some came since the newer one.
fn lived(dir: &TempDir) -> Life {
    let mut life = Life::start(dir);
    life.push(190);
    life.ack(110);
    life.snapshot();
    life.push(100);
    life.snapshot_while(|life| {
        life.push(9);
        life.ack(140);
    });
    life.delete();
    life.push(30);
    life.ack(150);
    assert!(life.segments.locate(0).is_none(), "the first segment is gone");
    life
}

#[test]
fn a_snapshot_and_the_log_since_lead_to_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let life = lived(&dir);
    let (waiting, snapshots, end) = (life.waiting(), life.snapshots.clone(), life.log.durable());
    let files = life.names();
    drop(life);
    let life = Life::start(&dir);
    assert_eq!(life.waiting(), waiting);
    assert_eq!((life.recovered.start.lsn, life.recovered.torn), (end, None));
    assert_eq!(life.recovered.snapshots, snapshots);
    let loaded = life.recovered.snapshot.as_ref().unwrap();
    assert_eq!(loaded.start.lsn, snapshots[1]);
    assert_eq!(life.recovered.replayed_bytes, end - snapshots[1]);
    assert_eq!(life.names(), files, "nothing was changed");
    assert_eq!(life.inbox.resets, 1);
    life.check_bodies();
}

#[test]
fn progress_is_told_and_ends_at_the_total() {
    let dir = tempfile::tempdir().unwrap();
    drop(lived(&dir));
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    let mut last = BTreeMap::new();
    let told = &mut |progress: Progress| {
        assert!(progress.done <= progress.total);
        last.insert(format!("{:?}", progress.phase), progress.done == progress.total);
    };
    data.shard(0).recover(&mut Inbox::new(), told).unwrap();
    assert_eq!(last, BTreeMap::from([("Log".into(), true), ("Snapshot".into(), true)]));
}

#[test]
fn a_crash_while_a_snapshot_is_written_leaves_the_ones_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = lived(&dir);
    let (waiting, snapshots) = (life.waiting(), life.snapshots.clone());
    let frames = life.encode(life.log.checkpoint()).len();
    assert!(frames > 10);
    for written in 0..=frames {
        // The process is gone before the file gets its name.
        drop(life.begin_snapshot(written));
        assert!(life.names().iter().any(|name| name.ends_with(".snap.tmp")));
        drop(life);
        life = Life::start(&dir);
        assert_eq!(life.waiting(), waiting);
        assert_eq!(life.recovered.snapshots, snapshots);
        assert!(!life.names().iter().any(|name| name.ends_with(".tmp")));
    }
    life.begin_snapshot(frames).abandon();
    assert!(!life.names().iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn a_snapshot_that_cannot_get_its_name_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = lived(&dir);
    let path = life.shard().snapshot_path(life.log.checkpoint().lsn);
    fs::create_dir_all(path.join("in the way")).unwrap();
    let file = life.begin_snapshot(usize::MAX);
    assert!(file.finish().is_err());
    assert!(!life.names().iter().any(|name| name.ends_with(".tmp")));
    fs::remove_dir_all(path).unwrap();
    life.snapshot();
}

#[test]
fn a_crash_between_the_name_and_the_deletion_leaves_three() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = lived(&dir);
    let (waiting, oldest) = (life.waiting(), life.snapshots[0]);
    let path = life.shard().snapshot_path(oldest);
    let bytes = fs::read(&path).unwrap();
    life.snapshot();
    assert!(!path.exists());
    fs::write(&path, bytes).unwrap();
    let newest = life.snapshots[1];
    drop(life);
    let mut life = Life::start(&dir);
    assert_eq!(life.waiting(), waiting);
    assert_eq!(life.recovered.snapshots.len(), 3);
    assert_eq!(life.recovered.snapshots.last(), Some(&newest));
    life.push(1);
    life.snapshot();
    let kept = life.names().iter().filter(|name| name.ends_with(".snap")).count();
    assert_eq!(kept, 2, "the next one deletes both that are too old");
}

#[test]
fn a_crash_while_segments_are_deleted_leaves_dead_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = lived(&dir);
    life.ack(300);
    life.snapshot();
    life.push(1);
    life.snapshot();
    let waiting = life.waiting();
    let removals = life.discard();
    assert!(removals.len() >= 2);
    let all: Vec<u64> = removals.iter().map(|(segment, _)| *segment).collect();
    // Only the last of them was really deleted: there is a gap.
    for (segment, removal) in removals {
        if segment == *all.last().unwrap() {
            let mut remains = removal.run().unwrap();
            while let Some(rest) = remains {
                remains = rest.shrink();
            }
        }
    }
    drop(life);
    let mut life = Life::start(&dir);
    assert_eq!(life.waiting(), waiting);
    let left = &all[..all.len() - 1];
    assert!(left.iter().all(|segment| life.recovered.segments.contains(segment)));
    let again: Vec<u64> = life.discard().into_iter().map(|(segment, _)| segment).collect();
    assert_eq!(again, left, "the dead are found again");
    drop(life);
    let mut life = Life::start(&dir);
    life.delete();
    assert!(all.iter().all(|segment| !life.segments.present().any(|found| found == *segment)));
    assert_eq!(life.segments.bytes() % (SEGMENT_BYTES + 4096), 0);
}

/// Cleaning deletes by name: under that of a dead one the snapshot before the
/// newest could lose a segment that it needs.
#[test]
fn a_dead_segment_under_the_name_of_another_is_noticed_before_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::start(&dir);
    life.push(110);
    life.ack(110);
    life.snapshot();
    life.push(220);
    life.ack(330);
    life.snapshot();
    life.push(5);
    let (waiting, end) = (life.waiting(), life.log.durable());
    let shard = life.shard();
    let [older, newest] = life.snapshots[..] else { panic!("two are kept") };
    assert!(older / SEGMENT_BYTES == 1 && newest / SEGMENT_BYTES == 3, "{older}, {newest}");
    let [dead, kept, between] = [0, 2, 9].map(|segment| shard.segment_path(segment));
    let newest = shard.snapshot_path(newest);
    drop((life, shard));
    let swap = || {
        fs::rename(&dead, &between).unwrap();
        fs::rename(&kept, &dead).unwrap();
        fs::rename(&between, &kept).unwrap();
    };
    swap();
    for _ in 0..2 {
        let refused = Life::try_start(&dir).err().expect("it is not what its name says");
        assert!(refused.to_string().contains("not where its name puts it"), "{refused}");
    }
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    shard.rename(&shard.misnamed().unwrap()).unwrap();
    drop(shard);
    // A head that has rotted says nothing, and nobody needs the file.
    flip(&dead, 20);
    let mut life = Life::start(&dir);
    assert_eq!((life.waiting(), life.log.durable()), (waiting.clone(), end));
    life.delete();
    assert!(!dead.exists() && kept.exists());
    drop(life);
    flip(&newest, 100);
    assert_eq!(Life::start(&dir).waiting(), waiting);
}

#[test]
fn a_damaged_snapshot_is_replaced_by_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let life = lived(&dir);
    let (waiting, snapshots) = (life.waiting(), life.snapshots.clone());
    let path = life.shard().snapshot_path(snapshots[1]);
    let aside = PathBuf::from(format!("{}.damaged", path.display()));
    drop(life);
    let bytes = fs::metadata(&path).unwrap().len();
    let check = |spoil: &dyn Fn(), word: &str| {
        let whole = fs::read(&path).unwrap();
        spoil();
        let life = Life::start(&dir);
        assert_eq!(life.waiting(), waiting);
        assert_eq!(life.recovered.snapshots, snapshots[..1]);
        let [(found, why)] = &life.recovered.damaged[..] else { panic!("one is damaged") };
        assert!(*found == path && why.contains(word), "{why}");
        life.check_bodies();
        assert_eq!(life.recovered.foreign, [] as [PathBuf; 0]);
        drop(life);
        assert!(aside.exists() && !path.exists());
        fs::remove_file(&aside).unwrap();
        fs::write(&path, whole).unwrap();
    };
    for block in (0..bytes).step_by(512) {
        check(&|| flip(&path, (block + 77).min(bytes - 1)), "at file offset");
    }
    let cut = |len| fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    check(&|| cut(bytes - 1), "ends before it is complete");
    check(&|| cut(0), "ends before it is complete at file offset 0");
    check(&|| cut(bytes + 5), "goes on after its end");
    check(&|| fs::write(&path, b"hello, this is something else").unwrap(), "length");
    // One from another place in the log under this name.
    let other = path.with_file_name(format!("snapshot-{:020}.snap", snapshots[0]));
    check(&|| assert!(fs::copy(&other, &path).unwrap() > 0), "where its name says");
}

/// It is not set aside, and no older one stands in for it.
#[test]
fn a_snapshot_of_a_newer_version_is_left_to_that() {
    let dir = tempfile::tempdir().unwrap();
    let life = lived(&dir);
    let (path, salt) = (life.shard().snapshot_path(life.snapshots[1]), life.recovered.start.salt);
    drop(life);
    let mut bytes = fs::read(&path).unwrap();
    put_format(&mut bytes, salt, FORMAT + 1);
    fs::write(&path, &bytes).unwrap();
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    let salvaged = shard.salvage(&mut Found::default(), &mut |_| {}).map(|_| ());
    for refused in [recover(&shard).map(|_| ()), salvaged] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("has format 6 ") && said.contains("or a newer one"), "{said}");
        assert!(!said.contains("iris-shard repair"), "{said}");
    }
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn a_snapshot_that_was_set_aside_goes_with_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let life = lived(&dir);
    flip(&life.shard().snapshot_path(life.snapshots[1]), 100);
    drop(life);
    let mut life = Life::start(&dir);
    let aside = |life: &Life| life.names().iter().any(|name| name.ends_with(".damaged"));
    life.push(1);
    life.snapshot();
    assert!(aside(&life) && life.snapshots.len() == 2);
    life.push(1);
    life.snapshot();
    assert!(!aside(&life), "both that are kept are newer");
}

#[test]
fn without_any_snapshot_the_start_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let life = lived(&dir);
    let paths: Vec<_> =
        life.snapshots.iter().map(|start| life.shard().snapshot_path(*start)).collect();
    let shard = life.shard().path().to_owned();
    drop(life);
    let files = || {
        let entries = fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    let before = files();
    flip(&paths[0], 200);
    flip(&paths[1], 300);
    let error = Life::try_start(&dir).err().unwrap();
    let said = error.to_string();
    let newest = paths[1].display().to_string();
    for word in [&newest[..], "checksum of a frame is wrong", "segment-0000000000.log", "not there"]
    {
        assert!(said.contains(word), "{said}");
    }
    assert!(said.contains("nothing was changed") && files() == before);
    // Both deleted by hand.
    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    let said = Life::try_start(&dir).err().unwrap().to_string();
    assert!(said.contains("segment-0000000000.log is missing"), "{said}");
}

#[test]
fn the_whole_log_is_as_good_as_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::start(&dir);
    life.push(100);
    life.ack(20);
    life.snapshot();
    life.push(5);
    let waiting = life.waiting();
    let path = life.shard().snapshot_path(life.snapshots[0]);
    drop(life);
    flip(&path, 300);
    let life = Life::start(&dir);
    assert_eq!(life.waiting(), waiting);
    assert_eq!((life.recovered.snapshots.len(), life.recovered.damaged.len()), (0, 1));
}

#[test]
fn a_log_that_ends_with_its_segment_goes_on_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut life = Life::start(&dir);
    life.push(84);
    life.ack(84);
    assert_eq!(life.log.durable(), SEGMENT_BYTES);
    life.snapshot();
    let segment = |life: &Life, index| life.shard().segment_path(index);
    // The disk was full, and no next segment could be made.
    let ahead: Vec<u64> = life.segments.present().filter(|index| *index > 0).collect();
    ahead.iter().for_each(|index| fs::remove_file(segment(&life, *index)).unwrap());
    drop(life);
    let life = Life::start(&dir);
    assert_eq!((life.recovered.start.lsn, life.recovered.replayed_bytes), (SEGMENT_BYTES, 0));
    assert_eq!(life.segments.present().collect::<Vec<_>>(), [0, 1]);
    // Not even the one before is needed.
    fs::remove_file(segment(&life, 0)).unwrap();
    fs::remove_file(segment(&life, 1)).unwrap();
    drop(life);
    let mut life = Life::start(&dir);
    life.push(3);
    assert_eq!(life.segments.present().collect::<Vec<_>>(), [1]);
    drop(life);
    assert_eq!(Life::start(&dir).waiting(), [85, 86, 87]);
}

#[test]
fn what_a_snapshot_needs_and_is_gone_is_named() {
    let check = |spoil: &dyn Fn(&Life), words: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let life = lived(&dir);
        spoil(&life);
        drop(life);
        let said = Life::try_start(&dir).err().unwrap().to_string();
        for word in words {
            assert!(said.contains(word), "{said}");
        }
    };
    let remove =
        |life: &Life, segment| fs::remove_file(life.shard().segment_path(segment)).unwrap();
    let holds_start = |life: &Life| life.snapshots[1] / SEGMENT_BYTES;
    check(&|life| remove(life, 1), &["segment-0000000001.log is missing", "messages", "wait"]);
    check(&|life| remove(life, holds_start(life)), &["is missing although later parts"]);
    check(
        &|life| {
            let last = life.segments.present().last().unwrap();
            (holds_start(life)..=last).for_each(|segment| remove(life, segment));
        },
        &["is missing"],
    );
    check(&|life| flip(&life.shard().segment_path(1), 30), &["damaged header"]);
    check(
        &|life| {
            // The log was cut inside of what the snapshot saw durable.
            let offset = 4096 + life.snapshots[1] % SEGMENT_BYTES + 4096;
            let path = life.shard().segment_path(holds_start(life));
            let file = fs::File::options().write(true).open(path).unwrap();
            let rest = (SEGMENT_BYTES + 4096 - offset) as usize;
            file.write_all_at(&vec![0; rest], offset).unwrap();
            let last = life.segments.present().last().unwrap();
            (holds_start(life) + 1..=last).for_each(|segment| remove(life, segment));
        },
        &["the snapshot shows that the log had been acknowledged"],
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(u64),
    Ack(u64),
    Snapshot,
    HalfSnapshot,
    Clean,
    Delete,
    /// Takes segments out, and the process ends before they are deleted.
    HalfDelete,
    Restart,
    /// The newest snapshot rots, then a restart.
    Rot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..60u64).prop_map(Step::Push),
        3 => (0..100u64).prop_map(Step::Ack),
        3 => Just(Step::Snapshot),
        1 => Just(Step::HalfSnapshot),
        3 => Just(Step::Clean),
        3 => Just(Step::Delete),
        1 => Just(Step::HalfDelete),
        1 => Just(Step::Restart),
        1 => Just(Step::Rot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Whatever the order of it all, what waits is there after each restart.
    #[test]
    fn no_order_of_steps_loses_a_message(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Life::start(&dir);
        for step in steps {
            let waiting = life.waiting();
            match step {
                Step::Push(messages) => life.push(messages),
                Step::Ack(percent) => {
                    let (first, last) = (waiting.first().copied(), life.inbox.last);
                    let first = first.unwrap_or(last);
                    life.ack(first + (last - first) * percent / 100);
                }
                Step::Snapshot => life.snapshot(),
                Step::HalfSnapshot => drop(life.begin_snapshot(3)),
                Step::Clean => life.clean(),
                Step::Delete => life.delete(),
                Step::HalfDelete => drop(life.discard()),
                Step::Rot if life.snapshots.len() == 2 => {
                    flip(&life.shard().snapshot_path(life.snapshots[1]), 90);
                }
                Step::Restart | Step::Rot => {}
            }
            life.check_bodies();
            if matches!(step, Step::HalfSnapshot | Step::HalfDelete | Step::Restart | Step::Rot) {
                drop(life);
                life = Life::start(&dir);
                prop_assert_eq!(life.waiting(), waiting);
                life.check_bodies();
            }
        }
    }
}
