//! `iris-shard repair` on directories that the real server wrote: what it says,
//! what it changes, and what a server makes of it.

mod server;

use std::fs::{self, DirEntry};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use server::files::{
    body, check, check_goes_on, command, contents, filled, find, flip, iris_shard, json,
    newest_start, numbers, pass, passed, segment, snapshots, taken, used, written,
};
use server::{PATIENCE, Server, Setup, preload};
use wal::BLOCK;
use wal::manifest::Manifest;

/// A start is refused, a look changes nothing, then it is repaired, and there is
/// nothing left to repair. What the look and the repair said.
#[track_caller]
fn repair(setup: &Setup, told: &[&str]) -> String {
    setup.check_refused(3, &["iris-shard repair"]);
    let before = contents(setup.data_dir());
    let looked = check(&iris_shard("repair", setup.data_dir(), &[]), 3, &["Nothing was changed"]);
    for word in told {
        assert!(looked.contains(word), "'{word}' is not in: {looked}");
    }
    assert!(contents(setup.data_dir()) == before, "something has changed: {looked}");
    let done = check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    // Every byte that was there still is, somewhere. The log may have gone on in a
    // segment that was made ahead.
    let after = contents(setup.data_dir());
    for (path, bytes) in &before {
        let name = path.file_name();
        let is_kept = after.iter().any(|(path, it)| {
            path.file_name() == name && it.len() == bytes.len() && it.starts_with(used(bytes))
        });
        assert!(is_kept, "{} is gone: {done}", path.display());
    }
    check(&iris_shard("repair", setup.data_dir(), &[]), 0, &["healthy"]);
    looked
}

#[test]
fn a_healthy_directory_is_left_alone() {
    let setup = written(5);
    let before = contents(setup.data_dir());
    for arguments in [&[][..], &["--yes"]] {
        let output = iris_shard("repair", setup.data_dir(), arguments);
        check(&output, 0, &["is healthy", "nothing was changed", "5 messages"]);
    }
    assert!(contents(setup.data_dir()) == before);
}

#[test]
fn a_repair_speaks_to_programs() {
    let setup = written(60);
    let dir = setup.data_dir();
    let looked = json(&iris_shard("repair", dir, &["--json", "--progress"]), 0);
    assert_eq!((&looked["healthy"], &looked["repaired"]), (&true.into(), &false.into()));
    assert_eq!(looked["shards"][0]["kept_messages"], 60);

    let path = segment(&setup, 0);
    let at = find(&path, &body(30));
    flip(&path, at);
    let looked = json(&iris_shard("repair", dir, &["--json"]), 3);
    assert_eq!((&looked["healthy"], &looked["repaired"]), (&false.into(), &false.into()));
    let shard = &looked["shards"][0];
    assert!(shard["refusal"].as_str().unwrap().contains("segment-0000000000.log"), "{shard}");
    let place = &shard["damage"]["places"][0];
    let offset = place["offset"].as_u64().unwrap() as usize;
    assert!((offset..offset + place["bytes"].as_u64().unwrap() as usize).contains(&at), "{place}");
    assert_eq!(shard["cost"]["inboxes"][0]["user"], "bob");
    assert_eq!(shard["cost"]["inboxes"][0]["recognised"], 1);
    assert_eq!(shard["kept_messages"], 59);
    assert_eq!(shard["to_move_segments"], serde_json::json!([0]));
    assert_eq!(shard["done"], Value::Null);

    let done = json(&iris_shard("repair", dir, &["--json", "--yes"]), 0);
    assert_eq!((&done["healthy"], &done["repaired"]), (&true.into(), &true.into()));
    assert_eq!(done["shards"][0]["done"]["copied_messages"], 59);
    assert!(Path::new(done["aside"].as_str().unwrap()).join("report.txt").is_file());
    assert_eq!(taken(&setup.start(), "bob").len(), 59);

    fs::remove_file(dir.join("manifest.toml")).unwrap();
    let looked = json(&iris_shard("repair", dir, &["--json"]), 3);
    assert!(looked["manifest_refused"].as_str().unwrap().contains("no manifest.toml"), "{looked}");
    let done = json(&iris_shard("repair", dir, &["--json", "--yes"]), 0);
    assert_eq!(done["repaired"], true);
}

#[test]
fn one_rotten_byte_costs_one_message() {
    let setup = written(60);
    let path = segment(&setup, 0);
    flip(&path, find(&path, &body(30)));
    let looked = repair(&setup, &["1 damaged records with its name", "segment-0000000000.log"]);
    assert!(looked.contains("What is kept: 59 messages"), "{looked}");
    let server = setup.start();
    let expected: Vec<Vec<u8>> =
        (0..60).filter(|n| *n != 30).map(|n| body(n).into_bytes()).collect();
    assert_eq!(taken(&server, "bob"), expected);
    // It goes on: what is sent now arrives behind the others, over a crash.
    let mut alice = server.v2("alice", 2);
    alice.send_and_wait(b"bob", b"afterwards", PATIENCE).unwrap();
    let server = server.crash_and_restart();
    let last = [body(59).into_bytes(), b"afterwards".to_vec()];
    assert_eq!(taken(&server, "bob"), last);
    server.stop();
    check(&iris_shard("inspect", setup.data_dir(), &[]), 0, &["1 messages"]);
}

#[test]
fn a_damaged_commit_keeps_its_messages() {
    let setup = written(60);
    let path = segment(&setup, 0);
    // The commit's own record stands at the beginning of the block.
    let block = find(&path, &body(30)) / 4096 * 4096;
    flip(&path, block + 20);
    repair(&setup, &["What is kept: 60 messages"]);
    assert_eq!(taken(&setup.start(), "bob").len(), 60);
}

#[test]
fn what_was_acknowledged_does_not_come_back() {
    let setup = written(30);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for _ in 0..20 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    let mut alice = server.v2("alice", 2);
    alice.send_and_wait(b"bob", b"the last one", PATIENCE).unwrap();
    drop((alice, bob));
    server.stop();
    let path = segment(&setup, 0);
    for n in [5, 25] {
        flip(&path, find(&path, &body(n)));
    }
    repair(&setup, &["What is kept: 10 messages"]);
    let got = taken(&setup.start(), "bob");
    let expected = (20..30).filter(|n| *n != 25).map(|n| body(n).into_bytes());
    assert_eq!(got, expected.chain([b"the last one".to_vec()]).collect::<Vec<_>>());
}

/// The messages that stand in this segment's file.
fn in_segment(setup: &Setup, index: u32) -> Vec<u64> {
    let bytes = fs::read(segment(setup, index)).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = bytes[at..].windows(32).position(|window| *window == [b'x'; 32]) {
        found.extend(numbers(&[bytes[at + next - 8..at + next].to_vec()]));
        at += next + 10_000;
    }
    found
}

#[test]
fn a_missing_segment_costs_what_was_in_it() {
    let setup = filled(600);
    let mut expected: Vec<u64> = (1..=600).collect();
    for index in [1, 4] {
        let lost = in_segment(&setup, index);
        assert!(lost.len() > 50, "{lost:?}");
        fs::remove_file(segment(&setup, index)).unwrap();
        let words = [&format!("segment-000000000{index}.log")[..], "messages"];
        repair(&setup, &words);
        expected.retain(|n| !lost.contains(n));
    }
    assert_eq!(numbers(&taken(&setup.start(), "bob")), expected);
}

#[test]
fn a_cut_segment_costs_what_was_cut() {
    let setup = filled(600);
    let path = segment(&setup, 1);
    let lost = in_segment(&setup, 1);
    let whole = fs::read(&path).unwrap();
    let half = find(&path, "xxxx") + 30 * 10_200;
    fs::write(&path, &whole[..half]).unwrap();
    repair(&setup, &["bytes long instead of"]);
    let got = numbers(&taken(&setup.start(), "bob"));
    let gone: Vec<u64> = (1..=600).filter(|n| !got.contains(n)).collect();
    assert!(!gone.is_empty() && gone.iter().all(|n| lost.contains(n)), "{gone:?}");
    assert!(gone.len() < lost.len() - 20, "what stood before the cut is kept: {gone:?}");
    assert!(got.is_sorted());
}

#[test]
fn a_damaged_header_costs_nothing() {
    let setup = filled(600);
    flip(&segment(&setup, 2), 20);
    repair(&setup, &["segment-0000000002.log", "What is kept: 600 messages", "  0 messages that"]);
    assert_eq!(numbers(&taken(&setup.start(), "bob")), (1..=600).collect::<Vec<_>>());
}

#[test]
fn without_any_snapshot_the_rest_of_the_log_counts() {
    let setup = filled(600);
    let lost = in_segment(&setup, 0);
    for path in snapshots(&setup) {
        flip(&path, fs::metadata(&path).unwrap().len() as usize / 2);
    }
    fs::remove_file(segment(&setup, 0)).unwrap();
    repair(&setup, &["no snapshot can be read", ".snap"]);
    let expected: Vec<u64> = (1..=600).filter(|n| !lost.contains(n)).collect();
    assert_eq!(numbers(&taken(&setup.start(), "bob")), expected);
}

/// What was written to it nobody knows, for one made ahead stands behind it.
#[test]
fn numbers_go_on_above_a_missing_end() {
    let (setup, session) = passed(300);
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let shard = &shown["shards"][0];
    let segment_bytes = shown["segment_bytes"].as_u64().unwrap();
    let index = shard["log"]["end"].as_u64().unwrap() / segment_bytes;
    fs::remove_file(segment(&setup, index as u32)).unwrap();
    let looked = json(&iris_shard("repair", setup.data_dir(), &["--json"]), 3);
    let damage = &looked["shards"][0]["damage"];
    let place = &damage["places"][0];
    let lost_to = place["position"].as_u64().unwrap() + place["bytes"].as_u64().unwrap();
    assert_eq!(lost_to, (index + 1) * segment_bytes, "{damage}");
    repair(&setup, &["is missing"]);
    check_goes_on(&setup.start(), session);
}

/// Nobody knows how far the log went on in what was cut off.
#[test]
fn numbers_go_on_above_a_cut_end() {
    let (setup, session) = passed(300);
    let (index, at) = newest_start(&setup);
    let path = segment(&setup, index);
    let bytes = fs::read(&path).unwrap();
    for cut in [at, 0] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let looked = json(&iris_shard("repair", setup.data_dir(), &["--json"]), 3);
        let damage = &looked["shards"][0]["damage"];
        let place = &damage["places"][0];
        let lost_to = place["offset"].as_u64().unwrap() + place["bytes"].as_u64().unwrap();
        assert_eq!(lost_to, bytes.len() as u64, "{damage}");
    }
    fs::write(&path, &bytes[..at]).unwrap();
    repair(&setup, &["bytes long instead of", "are not what they were"]);
    check_goes_on(&setup.start(), session);
}

/// A file under a name that it should not have, behind one made ahead.
#[test]
fn one_repair_is_enough_where_a_segment_has_a_copy() {
    let setup = written(30);
    fs::copy(segment(&setup, 1), segment(&setup, 2)).unwrap();
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    check(&iris_shard("repair", setup.data_dir(), &[]), 0, &["healthy"]);
    assert_eq!(taken(&setup.start(), "bob").len(), 30);
}

/// Its devices are still out there, and have numbers.
#[test]
fn a_shard_that_is_gone_costs_everything_but_what_comes() {
    let setup = Setup::new().shards(1);
    let server = setup.start();
    let (mut alice, mut bob) = (server.v2("alice", 1), server.v2("bob", 1));
    pass(&mut alice, &mut bob, 200);
    let session = bob.into_session();
    drop(alice);
    let setup = server.stop();
    let dir = setup.data_dir().join("shard-0000");
    fs::rename(&dir, setup.data_dir().join("../aside")).unwrap();
    setup.check_refused(3, &["shard-0000"]);
    let looked = json(&iris_shard("repair", setup.data_dir(), &["--json"]), 3);
    assert_eq!(looked["shards"][0]["cost"]["everything"], true);
    let done = json(&iris_shard("repair", setup.data_dir(), &["--json", "--yes"]), 0);
    assert_eq!(done["healthy"], true);
    assert_eq!(done["shards"][0]["still_refused"], Value::Null);
    assert_eq!(snapshots(&setup).len(), 2, "the rot of one costs nothing");
    // The log alone says it, too.
    snapshots(&setup).iter().for_each(|path| fs::remove_file(path).unwrap());
    check_goes_on(&setup.start(), session);
}

/// The log of a rewritten layout says nothing of those for whom nothing waits.
#[test]
fn numbers_go_on_without_the_snapshots_that_knew_them() {
    let setup = Setup::new();
    let server = setup.clone().shards(1).start();
    let (mut alice, mut bob) = (server.v2("alice", 1), server.v2("bob", 1));
    pass(&mut alice, &mut bob, 300);
    let session = bob.into_session();
    drop(alice);
    server.stop();
    setup.clone().shards(2).start().stop();
    for shard in fs::read_dir(setup.data_dir().join("gen-0001")).unwrap() {
        for (path, bytes) in contents(&shard.unwrap().path()) {
            if path.extension().is_some_and(|extension| extension == "snap") {
                flip(&path, bytes.len() / 2);
            }
        }
    }
    repair(&setup, &["what only a snapshot said", "far above any"]);
    // Over a snapshot, a start and a rewriting.
    setup.start().stop();
    setup.clone().shards(1).start().stop();
    check_goes_on(&setup.start(), session);
}

/// The numbers of inboxes of which nothing is left begin above the time, and
/// that may be an earlier one at the next such repair.
#[test]
fn numbers_go_on_where_the_clock_was_set_back() {
    let (setup, session) = passed(50);
    let dir = setup.data_dir();
    fs::remove_dir_all(dir.join("shard-0000")).unwrap();
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["far above any", "Repaired"]);
    let server = setup.start();
    let session = check_goes_on(&server, session);
    server.v2("carol", 1).ping(7, PATIENCE).unwrap();
    server.stop();
    // All rots that knew of bob, or where numbers begin; what is left knows the time.
    snapshots(&setup).iter().for_each(|path| flip(path, fs::read(path).unwrap().len() / 2));
    let log = segment(&setup, 0);
    flip(&log, BLOCK + 70);
    let bytes = fs::read(&log).unwrap();
    let named = |at: &usize| [&b"bob"[..], b"alice"].iter().any(|it| bytes[*at..].starts_with(it));
    (0..bytes.len()).filter(named).for_each(|at| flip(&log, at));
    let tools = tempfile::tempdir().unwrap();
    let library = preload::build("set_back", tools.path());
    let mut repair = command("repair", dir, &["--yes"]);
    repair.env("LD_PRELOAD", &library).env("BEHIND_SECONDS", "86400");
    check(&repair.output().unwrap(), 0, &["far above any", "Repaired"]);
    // The later one has an earlier time in its name: the clock was set back.
    let aside = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let aside = aside.filter(|it| it.file_name().as_encoded_bytes().starts_with(b"damaged-"));
    let mut aside: Vec<DirEntry> = aside.collect();
    aside.sort_by_key(|it| it.metadata().unwrap().modified().unwrap());
    assert!(aside.len() == 2 && aside[0].file_name() > aside[1].file_name(), "{aside:?}");
    let shown = json(&iris_shard("inspect", dir, &["--inbox", "carol", "--json"]), 0);
    assert_eq!(shown["user"], "carol");
    check_goes_on(&setup.start(), session);
}

/// Rot below the snapshot, which a start does not see.
#[test]
fn rot_in_old_messages_is_found() {
    let setup = filled(600);
    let path = segment(&setup, 0);
    flip(&path, find(&path, "xxxx") + 40_000);
    let before = contents(setup.data_dir());
    let looked = check(&iris_shard("repair", setup.data_dir(), &[]), 3, &["inbox of bob: 1 mess"]);
    assert!(contents(setup.data_dir()) == before, "{looked}");
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    let server = setup.start();
    assert_eq!(taken(&server, "bob").len(), 599);
    assert_eq!(server.metric("iris_damaged_records_total"), 0.0);
}

#[test]
fn a_repair_that_cannot_be_is_refused() {
    let server = Setup::new().shards(2).start();
    let dir = server.setup().data_dir().to_owned();
    let pid = server.pid().to_string();
    check(&iris_shard("repair", &dir, &[]), 3, &["in use", &pid]);
    let setup = server.stop();
    let manifest = dir.join("manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let newer = Manifest { format: 9, ..Manifest::decode(&text).unwrap() };
    fs::write(&manifest, newer.encode()).unwrap();
    check(&iris_shard("repair", &dir, &["--yes"]), 3, &["format 9", "or a newer one"]);
    fs::remove_file(&manifest).unwrap();
    let copy = dir.join("manifest.copy.toml");
    fs::rename(&copy, dir.join("../copy")).unwrap();
    check(&iris_shard("repair", &dir, &["--yes"]), 3, &["no manifest.toml", "backup"]);
    fs::write(&manifest, text).unwrap();
    // A shard that is gone is begun anew, an empty one.
    let shard = dir.join("shard-0001");
    let aside = dir.join("../aside");
    fs::rename(&shard, &aside).unwrap();
    let everything = "everything of this shard: its messages, devices and numbers";
    check(&iris_shard("repair", &dir, &[]), 3, &["shard-0001 is missing", everything]);
    std::os::unix::fs::symlink(&aside, &shard).unwrap();
    check(&iris_shard("repair", &dir, &["--yes"]), 3, &["is a symbolic link"]);
    fs::remove_file(&shard).unwrap();
    check(&iris_shard("repair", &dir, &["--yes"]), 0, &["Repaired"]);
    drop(setup.start());
    let other = tempfile::tempdir().unwrap();
    check(&iris_shard("repair", other.path(), &["--yes"]), 3, &["no data directory"]);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_manifest_is_brought_back_from_its_copy() {
    let setup = written(5);
    let path = setup.data_dir().join("manifest.toml");
    let whole = fs::read(&path).unwrap();
    let format = find(&path, "format = 5") + "format = 5".len() - 1;
    for damaged in [Some(whole.len() - 20), Some(format), None] {
        if let Some(at) = damaged {
            flip(&path, at);
        } else {
            fs::remove_file(&path).unwrap();
        }
        setup.check_refused(3, &["manifest.toml", "iris-shard repair"]);
        let before = contents(setup.data_dir());
        check(&iris_shard("repair", setup.data_dir(), &[]), 3, &["copy is whole"]);
        assert!(contents(setup.data_dir()) == before, "looking changes nothing");
        check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["run again"]);
        assert!(fs::read(&path).unwrap() == whole, "byte for byte");
        check(&iris_shard("repair", setup.data_dir(), &[]), 0, &["is healthy"]);
    }
    assert_eq!(taken(&setup.start(), "bob").len(), 5);
}

/// Opening one would wait for somebody who writes to it.
#[test]
fn a_pipe_under_one_of_our_names_is_not_waited_for() {
    let setup = filled(600);
    let dir = setup.data_dir();
    let names =
        ["shard-0000/segment-0000000001.log", "lock", "manifest.toml", "manifest.copy.toml"];
    for name in names {
        let (path, kept) = (dir.join(name), dir.join("../kept"));
        fs::rename(&path, &kept).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        for arguments in [["inspect"], ["repair"]] {
            let command = command(arguments[0], dir, &[]);
            let mut limited = Command::new("timeout");
            limited.arg("60").arg(command.get_program()).args(command.get_args());
            let output = limited.output().unwrap();
            let code = output.status.code().unwrap();
            assert!([0, 3].contains(&code), "{name}: {output:?}");
        }
        fs::rename(&kept, &path).unwrap();
    }
    check(&iris_shard("repair", dir, &[]), 0, &["healthy"]);
}

/// A directory that was put together by hand.
#[test]
fn segments_under_each_others_names_get_their_own() {
    let setup = filled(600);
    let before = contents(setup.data_dir());
    let [first, second] = [0, 1].map(|index| segment(&setup, index));
    let swap = || {
        let between = first.with_extension("between");
        fs::rename(&first, &between).unwrap();
        fs::rename(&second, &first).unwrap();
        fs::rename(&between, &second).unwrap();
    };
    swap();
    setup.check_refused(3, &["not where its name puts it", "iris-shard repair"]);
    let dir = setup.data_dir();
    let swapped = contents(dir);
    let words = [
        "segment-0000000000.log is in truth segment-0000000001.log",
        "0 messages that wait and whose bytes are damaged",
        "What is kept: 600 messages",
    ];
    check(&iris_shard("repair", dir, &[]), 3, &words);
    let shown = json(&iris_shard("repair", dir, &["--json"]), 3);
    let misnamed = &shown["shards"][0]["damage"]["misnamed_segments"];
    assert_eq!(misnamed.as_array().map(Vec::len), Some(2), "{shown}");
    assert!(contents(dir) == swapped, "looking changes nothing");
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["2 segments have their names", "Repaired"]);
    check(&iris_shard("repair", dir, &[]), 0, &["healthy"]);
    let after = contents(dir);
    assert!(before.iter().all(|file| after.contains(file)), "every file is what it was");
    // Damage beside that costs what it always does.
    swap();
    flip(&first, find(&first, "xxxx") + 40_000);
    check(&iris_shard("repair", dir, &[]), 3, &["inbox of bob: 1 messages", "kept: 599 messages"]);
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["Repaired"]);
    check(&iris_shard("repair", dir, &[]), 0, &["healthy"]);
    assert_eq!(taken(&setup.start(), "bob").len(), 599);
}

/// Copies that somebody made beside the log.
#[test]
fn strays_are_put_aside_and_cost_nothing() {
    let setup = filled(600);
    let strays = [8, u32::MAX].map(|index| segment(&setup, index));
    for stray in &strays {
        fs::copy(segment(&setup, 0), stray).unwrap();
    }
    setup.check_refused(3, &["not where its name puts it", "iris-shard repair"]);
    let dir = setup.data_dir();
    check(&iris_shard("repair", dir, &[]), 3, &["segment-4294967295.log", "kept: 600 messages"]);
    let shown = json(&iris_shard("repair", dir, &["--json"]), 3);
    let damage = &shown["shards"][0]["damage"];
    assert_eq!(damage["missing_segments"].as_array().map(Vec::len), Some(0), "{shown}");
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["Repaired"]);
    check(&iris_shard("repair", dir, &[]), 0, &["healthy"]);
    assert!(strays.iter().all(|stray| !stray.exists()));
    assert_eq!(taken(&setup.start(), "bob").len(), 600);
}

/// No log is read through a link, and what it leads to is not taken for lost.
#[test]
fn a_linked_segment_is_not_taken_for_a_missing_one() {
    let setup = filled(600);
    let path = segment(&setup, 1);
    let elsewhere = setup.data_dir().with_extension("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let words = ["segment-0000000001.log is a symbolic link", "put the file itself"];
    setup.check_refused(3, &words);
    let before = contents(setup.data_dir());
    for arguments in [&[][..], &["--yes"]] {
        let words = ["is a symbolic link", "put the file"];
        check(&iris_shard("repair", setup.data_dir(), arguments), 3, &words);
    }
    assert!(contents(setup.data_dir()) == before);
    fs::rename(&elsewhere, &path).unwrap();
    assert_eq!(taken(&setup.start(), "bob").len(), 600);
}

/// Rot wherever it falls, again and again: each byte costs one message at most.
#[test]
fn any_rot_can_be_repaired() {
    let setup = filled(600);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for _ in 0..100 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    drop(bob);
    server.stop();
    let mut random = 88_172_645_463_325_252_u64;
    let mut flips = 0;
    for _ in 0..6 {
        for _ in 0..2 {
            let files = contents(&setup.data_dir().join("shard-0000"));
            let mut next = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % below as u64) as usize
            };
            let (path, bytes) = &files[next(files.len())];
            flip(path, next(bytes.len()));
            flips += 1;
        }
        let repaired = iris_shard("repair", setup.data_dir(), &["--yes"]);
        let said = check(&repaired, 0, &[]);
        let again = iris_shard("repair", setup.data_dir(), &[]);
        let said = format!("{said}\n{}", String::from_utf8_lossy(&again.stdout));
        assert_eq!(again.status.code(), Some(0), "{said}");
        let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
        assert_eq!(shown["starts"], true, "{said}");
    }
    let got = numbers(&taken(&setup.start(), "bob"));
    assert!(got.is_sorted() && got.first().is_some_and(|first| *first >= 100), "{got:?}");
    assert!(got.len() >= 500 - flips, "{} of 500 after {flips} flips", got.len());
}

/// A start does not read what a snapshot covers. Who comes to a rotten message
/// there is given all others, and that one once it can be read again, however
/// far the device says that it is by then.
#[test]
fn a_rotten_message_does_not_hold_up_the_others_and_comes_back() {
    let setup = filled(600);
    let path = segment(&setup, 0);
    let at = find(&path, "xxxx") + 40_000;
    flip(&path, at);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    let mut got = Vec::new();
    while got.last() != Some(&600) {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        got.push(delivery.inbox_seq);
        bob.ack(delivery.inbox_seq).unwrap();
    }
    let missing: Vec<u64> = (1..=600).filter(|seq| !got.contains(seq)).collect();
    assert!(got.is_sorted() && missing.len() == 1, "missing: {missing:?}");
    server.wait_said("it is kept and not delivered");
    server.wait_metric("iris_damaged_records_total", |n| n >= 1.0);
    bob.ping(1, PATIENCE).unwrap();
    // The device is beyond it and says so; the bytes are still what they are.
    let server = server.crash_and_restart();
    let again = |server: &Server, session| {
        client::blocking::Client::connect_session(server.addr(), session).expect("a login")
    };
    let mut bob = again(&server, bob.into_session());
    server.v2("alice", 2).send_and_wait(b"bob", b"later", PATIENCE).unwrap();
    let later = bob.next_delivery(PATIENCE).unwrap().expect("a message");
    assert_eq!(later.body, b"later");
    bob.ack(later.inbox_seq).unwrap();
    bob.ping(1, PATIENCE).unwrap();
    server.wait_metric("iris_damaged_records_total", |n| n >= 1.0);
    let session = bob.into_session();
    let setup = server.stop();
    let shown = iris_shard("inspect", setup.data_dir(), &["--inbox", "bob"]);
    let aside = format!("{} (aside)", missing[0]);
    check(&shown, 3, &["damaged:", &aside, &format!("everything up to {}", later.inbox_seq)]);
    flip(&path, at);
    let server = setup.start();
    let mut bob = again(&server, session);
    let back = bob.next_delivery(PATIENCE).unwrap().expect("a message");
    assert!(back.inbox_seq > later.inbox_seq, "{} is behind the cursor", back.inbox_seq);
    assert_eq!(back.send_seq, missing[0]);
    bob.ack(back.inbox_seq).unwrap();
    bob.ping(1, PATIENCE).unwrap();
    let server = server.crash_and_restart();
    let mut bob = again(&server, bob.into_session());
    bob.ping(1, PATIENCE).unwrap();
    assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing comes twice");
    let setup = server.stop();
    check(&iris_shard("inspect", setup.data_dir(), &["--inbox", "bob"]), 0, &["waiting: 0"]);
}

/// A repair gives up what is aside, and says so.
#[test]
fn what_is_aside_can_be_given_up() {
    let setup = filled(600);
    let path = segment(&setup, 0);
    flip(&path, find(&path, "xxxx") + 40_000);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    let mut last = 0;
    while last != 600 {
        last = bob.next_delivery(PATIENCE).unwrap().expect("a message").inbox_seq;
        bob.ack(last).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    drop(bob);
    let setup = server.stop();
    let looked = iris_shard("repair", setup.data_dir(), &[]);
    check(&looked, 3, &["1 messages that wait and whose bytes are damaged or gone"]);
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    let shown = iris_shard("inspect", setup.data_dir(), &["--inbox", "bob"]);
    check(&shown, 0, &["waiting: 0"]);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    bob.ping(1, PATIENCE).unwrap();
    assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing is left");
    assert_eq!(server.metric("iris_damaged_records_total"), 0.0);
}
