//! Another layout, ended at every step of being made: the manifest names one
//! that is whole, and the rest is found and removed.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;

use super::tests::{Found, log_options, options};
use super::*;
use crate::record::tests::message;
use crate::{Log, Record};

/// A directory of two shards, the first of which holds some messages.
fn written() -> (TempDir, DataDir) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    write(&data.shard(0), 300);
    (dir, data)
}

fn write(shard: &ShardDir, messages: u64) {
    let start = shard.recover(&mut Found::default(), &mut |_| {}).unwrap().start;
    let mut segments = shard.open_segments(start.lsn, probe(shard.path())).unwrap();
    let mut log = Log::new(log_options(), start);
    for inbox_seq in 0..messages {
        let message = crate::Message { inbox_seq, ..message(&[7; 9_000]) };
        while log.append(&Record::Message(message), 1).is_err() {
            let write = log.next_write().unwrap();
            segments.write(write.lsn, log.write_bytes(&write)).unwrap();
            log.written(write.lsn, true);
        }
    }
    while let Some(write) = log.next_write() {
        segments.write(write.lsn, log.write_bytes(&write)).unwrap();
        log.written(write.lsn, true);
    }
    segments.sync().unwrap();
}

fn seqs(shard: &ShardDir) -> Vec<u64> {
    let mut found = Found::default();
    shard.recover(&mut found, &mut |_| {}).unwrap();
    found.seqs
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name != "lock" && !name.starts_with("manifest."));
    names.sort();
    names
}

/// After a start: what is there of layouts that do not count.
fn leftovers(dir: &Path, shards: u16, generation: u64) -> usize {
    let data = DataDir::open(dir, options(None)).unwrap();
    assert_eq!((data.manifest().shards, data.manifest().generation), (shards, generation));
    let removed = data.leftovers().unwrap().remove();
    assert!(removed.iter().all(|(_, outcome)| outcome.is_ok()), "{removed:?}");
    assert!(data.leftovers().unwrap().is_empty());
    removed.len()
}

#[test]
fn a_crash_at_any_step_leaves_one_layout() {
    // Chosen, directories made, written to, switched, the old one half removed.
    for step in 0..5 {
        let (dir, mut data) = written();
        let next = data.next_generation(3).unwrap();
        assert_eq!(next.manifest().generation, 1);
        if step >= 1 {
            next.make().unwrap();
        }
        if step >= 2 {
            let shard = next.shard(2);
            drop(shard.open_segments(0, probe(shard.path())).unwrap());
            fs::write(shard.path().join("snapshot-00000000000000000000.snap.tmp"), b"x").unwrap();
        }
        if step >= 3 {
            data.switch(next).unwrap();
        } else {
            drop(next); // it holds the lock
        }
        if step >= 4 {
            fs::remove_file(dir.path().join("shard-0000/segment-0000000000.log")).unwrap();
            fs::remove_dir(dir.path().join("shard-0001")).unwrap();
        }
        drop(data);
        let is_new = step >= 3;
        let (shards, generation) = if is_new { (3, 1) } else { (2, 0) };
        let expected = [0, 1, 1, 2, 1][step];
        assert_eq!(leftovers(dir.path(), shards, generation), expected, "step {step}");
        let kept: &[&str] = if is_new { &["gen-0001"] } else { &["shard-0000", "shard-0001"] };
        assert_eq!(names(dir.path()), kept, "step {step}");
        if !is_new {
            let data = DataDir::open(dir.path(), options(None)).unwrap();
            assert_eq!(seqs(&data.shard(0)), (0..300).collect::<Vec<_>>());
        }
    }
}

/// Every shard of a later layout has a snapshot from the beginning.
#[test]
fn an_empty_shard_of_a_later_layout_has_lost_everything() {
    let (dir, mut data) = written();
    data.note_begun();
    let next = data.next_generation(1).unwrap();
    next.make().unwrap();
    data.switch(next).unwrap();
    let recovered = data.shard(0).recover(&mut Found::default(), &mut |_| {});
    assert!(matches!(recovered, Err(RecoverError::NoState { damaged: None, .. })));
    drop((data, dir));
}

#[test]
fn a_start_syncs_the_names_in_the_layout_that_counts() {
    let (dir, mut data) = written();
    let next = data.next_generation(1).unwrap();
    next.make().unwrap();
    data.switch(next).unwrap();
    drop(data);
    super::data_dir::SYNCED.take();
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    let synced = super::data_dir::SYNCED.take();
    assert!([dir.path().into(), dir.path().join("gen-0001")].iter().all(|it| synced.contains(it)));
    drop(data);
}

#[test]
fn generations_follow_each_other() {
    let (dir, mut data) = written();
    let salts = data.manifest().salts.clone();
    for (n, shards) in [3, 1, 4].into_iter().enumerate() {
        let next = data.next_generation(shards).unwrap();
        next.make().unwrap();
        data.switch(next).unwrap();
        assert_eq!(data.manifest().generation, n as u64 + 1);
        assert_eq!(data.manifest().salts.len(), usize::from(shards));
        assert!(data.manifest().salts.iter().all(|salt| !salts.contains(salt)));
    }
    assert!(data.shard(3).path().ends_with("gen-0003/shard-0003"));
    drop(data);
    assert_eq!(leftovers(dir.path(), 4, 3), 4, "two shards and two generations");
    assert_eq!(names(dir.path()), ["gen-0003"]);
}

#[test]
fn an_abandoned_layout_leaves_nothing() {
    let (dir, data) = written();
    let next = data.next_generation(2).unwrap();
    next.make().unwrap();
    let shard = next.shard(0);
    drop(shard.open_segments(0, probe(shard.path())).unwrap());
    let error = shard.recover(&mut Found::default(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RecoverError::NoState { damaged: None, .. }), "{error}");
    next.abandon();
    assert_eq!(names(dir.path()), ["shard-0000", "shard-0001"]);
    assert_eq!(seqs(&data.shard(0)).len(), 300);
    assert!(data.next_generation(0).is_err() && data.next_generation(5000).is_err());
}

#[test]
fn what_is_not_ours_stays() {
    let (dir, mut data) = written();
    fs::write(dir.path().join("shard-0000/notes.txt"), b"mine").unwrap();
    fs::create_dir(dir.path().join("gen-now")).unwrap();
    fs::create_dir(dir.path().join("gen-0000")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("shard-0001"), dir.path().join("shard-0007"))
        .unwrap();
    let next = data.next_generation(1).unwrap();
    next.make().unwrap();
    data.switch(next).unwrap();
    let outcomes = data.leftovers().unwrap().remove();
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(failed.len() == 1 && failed[0].0.ends_with("shard-0000"), "{outcomes:?}");
    assert_eq!(names(dir.path()), ["gen-0000", "gen-0001", "gen-now", "shard-0000", "shard-0007"]);
    assert_eq!(names(&dir.path().join("shard-0000")), ["notes.txt"]);
    // A number that could not be freed is not used again.
    fs::create_dir(dir.path().join("gen-0005")).unwrap();
    assert_eq!(data.next_generation(2).unwrap().manifest().generation, 6);
}

#[test]
fn a_walk_sees_what_a_replay_sees() {
    let (_dir, data) = written();
    let shard = data.shard(0);
    let recovered = shard.recover(&mut Found::default(), &mut |_| {}).unwrap();
    let (mut walked, mut records) = (Vec::new(), 0);
    for index in recovered.segments {
        let sink = &mut |_, _, record: Record<'_>| {
            records += 1;
            if let Record::Message(message) = record {
                walked.push(message.inbox_seq);
            }
            ControlFlow::Continue(())
        };
        shard.each_record(index, recovered.start.lsn, sink).unwrap();
    }
    assert_eq!(walked, (0..300).collect::<Vec<_>>());
    let mut first = 0;
    let sink = &mut |_, _, _: Record<'_>| {
        first += 1;
        ControlFlow::Break(())
    };
    shard.each_record(0, recovered.start.lsn, sink).unwrap();
    assert!(first == 1 && records >= 300);
}
