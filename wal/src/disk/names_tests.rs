//! Names: files that are gone, that are not ours though they look like it, and
//! names that no disk has yet.

use std::fs;
use std::os::unix::fs::symlink;

use super::data_dir::SYNCED;
use super::snapshots::delete_older;
use super::tests::{Found, append, filled, options, recover, recover_again, refusal, segment_path};
use super::*;

/// A name that the process before gave and did not sync could go with a power
/// cut, and what was confirmed in the meantime with it.
#[test]
fn a_start_syncs_the_names_of_the_files() {
    let (dir, _) = filled(1);
    let synced = || SYNCED.take();
    synced();
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    assert!(synced().contains(&dir.path().into()));
    recover(&data.shard(0)).unwrap();
    assert_eq!(synced(), [dir.path().join("shard-0000")]);
}

/// Nothing in a shard's directory looks like one that was just made.
#[test]
fn a_shard_that_lost_everything_is_no_new_one() {
    let (dir, start) = filled(1);
    let path = dir.path().join("shard-0000");
    // A start that was killed before every shard had a segment.
    assert_eq!(recover(&DataDir::open(dir.path(), options(None)).unwrap().shard(1)).unwrap().1, []);
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    data.shard(1).open_segments(0, DirectMode::BufferedFdatasync).unwrap();
    data.note_begun();
    drop(data);
    assert_eq!(recover_again(&dir).unwrap().0.start, start);
    let kept = fs::read(segment_path(&dir, 0)).unwrap();
    for entry in fs::read_dir(&path).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for _ in 0..2 {
        let error = recover_again(&dir).unwrap_err();
        assert!(matches!(&error, RecoverError::NoLog { path: it } if *it == path), "{error}");
        assert!(error.to_string().contains("shard-0000 has lost all segments"), "{error}");
    }
    let look = |shard: ShardDir| shard.look_back(&mut Found::default(), &mut |_| {});
    assert!(look(Inspection::open(dir.path()).unwrap().shard(0)).is_err());
    assert!(look(DataDir::open_as_it_is(dir.path()).unwrap().shard(0)).is_err());
    assert!(look(DataDir::open_as_it_is(dir.path()).unwrap().shard(1)).is_ok());
    fs::write(segment_path(&dir, 0), kept).unwrap();
    assert_eq!(recover_again(&dir).unwrap().0.start, start);
    // The copy still stands in for a manifest that is lost.
    let manifest = fs::read(dir.path().join("manifest.toml")).unwrap();
    fs::remove_file(dir.path().join("manifest.toml")).unwrap();
    assert!(manifest_copy::has_copy(dir.path()));
    manifest_copy::restore(dir.path(), &dir.path().join("aside")).unwrap();
    assert_eq!(fs::read(dir.path().join("manifest.toml")).unwrap(), manifest);
}

/// Names that are nearly ours, and ours on what is no file.
#[test]
fn only_our_very_names_on_regular_files_are_ours() {
    let (dir, start) = filled(250);
    let shard = dir.path().join("shard-0000");
    let mut foreign = Vec::new();
    for name in ["segment-00000000002.log", "segment-18446744073709551615.log"] {
        fs::copy(segment_path(&dir, 2), shard.join(name)).unwrap();
        foreign.push(shard.join(name));
    }
    symlink(segment_path(&dir, 2), shard.join("segment-0000000077.log")).unwrap();
    foreign.push(shard.join("segment-0000000077.log"));
    let outside = dir.path().join("outside");
    fs::write(&outside, b"mine").unwrap();
    for link in
        [shard.join("snapshot-00000000000000000000.snap.tmp"), dir.path().join("manifest.toml.tmp")]
    {
        symlink(&outside, link).unwrap();
    }
    let directories = [
        "segment-0000000099.log",
        "segment-0000000003.log.tmp",
        "snapshot-00000000000000000000.snap",
        "snapshot-x.tmp",
    ];
    for name in directories {
        fs::create_dir(shard.join(name)).unwrap();
        foreign.push(shard.join(name));
    }
    fs::create_dir(dir.path().join("probe-x.tmp")).unwrap();
    foreign.sort_unstable();
    let (recovered, seqs) = recover_again(&dir).unwrap();
    assert_eq!((recovered.start, seqs.len()), (start, 250));
    assert_eq!((recovered.foreign, &recovered.segments[..]), (foreign.clone(), &[0, 1, 2][..]));
    append(&DataDir::open(dir.path(), options(None)).unwrap().shard(0), 250, 1);
    let seen = Inspection::open(dir.path()).unwrap().shard(0).files().unwrap();
    assert_eq!((seen.foreign, seen.segments.len(), seen.snapshots.len()), (foreign.clone(), 3, 0));
    delete_older(&shard).unwrap();
    assert!(foreign.iter().all(|path| path.exists()), "not ours to remove");
    assert!(!shard.join("snapshot-00000000000000000000.snap.tmp").is_symlink());
    assert!(!dir.path().join("manifest.toml.tmp").is_symlink());
    assert_eq!(fs::read(&outside).unwrap(), b"mine");
}

#[test]
fn a_lock_that_is_a_link_is_not_written_through() {
    let (dir, _) = filled(1);
    let (lock, target) = (dir.path().join("lock"), dir.path().join("precious"));
    fs::write(&target, b"mine, and longer than a process id").unwrap();
    fs::remove_file(&lock).unwrap();
    symlink(&target, &lock).unwrap();
    let error = refusal(dir.path(), options(None));
    assert!(matches!(error, DataDirError::LinkedLock { .. }), "{error}");
    assert!(matches!(DataDir::check(dir.path()), Err(DataDirError::LinkedLock { .. })));
    assert_eq!(fs::read(&target).unwrap(), b"mine, and longer than a process id");
}

#[test]
fn what_was_set_aside_is_told_of_when_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |start: u64, rest: &str| dir.path().join(format!("snapshot-{start:020}.snap{rest}"));
    for start in 1..4 {
        fs::write(path(start * 4096, ""), b"x").unwrap();
        fs::write(path(start * 4096 + 1, ".damaged"), b"x").unwrap();
    }
    assert_eq!(delete_older(dir.path()).unwrap(), [path(4097, ".damaged")]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    assert_eq!(delete_older(dir.path()).unwrap(), [] as [std::path::PathBuf; 0]);
}
