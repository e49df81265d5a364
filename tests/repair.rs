//! `iris-shard repair` on directories that the real server wrote: what it says,
//! what it changes, and what a server makes of it.

mod server;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use client::Session;
use client::blocking::Client;
use serde_json::Value;
use server::files::{
    body, check, contents, fill, filled, find, flip, iris_shard, json, numbers, segment, snapshots,
    taken, waiting, written,
};
use server::mounted::Mounted;
use server::peer::{Peer, hello, send};
use server::{Deadline, PATIENCE, Server, Setup};
use wire::id::Class;
use wire::v2::{self, Request};

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
    // Every byte that was there still is, somewhere. The log may have gone on in
    // the zeroes of a segment that was made ahead.
    let after = contents(setup.data_dir());
    for (path, bytes) in &before {
        let name = path.file_name();
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let is_kept = after.iter().any(|(path, it)| {
            path.file_name() == name && it.len() == bytes.len() && it.starts_with(&bytes[..written])
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

/// Sends this many messages, which are taken and acknowledged as they come.
fn pass(alice: &mut Client, bob: &mut Client, messages: usize) {
    for n in 1..=messages {
        let seq = alice.send(b"bob", body(n).as_bytes(), Class::Guaranteed).unwrap();
        if n % 100 != 0 && n != messages {
            continue;
        }
        alice.wait_sent(b"bob", seq, PATIENCE).unwrap();
        for _ in 0..(n - 1) % 100 + 1 {
            let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
            bob.ack(delivery.inbox_seq).unwrap();
        }
    }
    bob.ping(7, PATIENCE).unwrap();
}

/// What is confirmed after a repair reaches a device that was there before it.
#[track_caller]
fn check_goes_on(server: &Server, session: Session) {
    let mut alice = server.v2("alice", 2);
    let bodies: Vec<Vec<u8>> = (1..=5).map(|n| body(100_000 + n).into_bytes()).collect();
    for body in &bodies {
        alice.send_and_wait(b"bob", body, PATIENCE).unwrap();
    }
    let mut bob = Client::connect_session(server.addr(), session).unwrap();
    for body in bodies {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!((delivery.body, delivery.again), (body, false));
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(7, PATIENCE).unwrap();
}

/// What was written to it nobody knows, for one made ahead stands behind it.
#[test]
fn numbers_go_on_above_a_missing_end() {
    let setup = Setup::new().shards(1);
    let server = setup.start();
    let (mut alice, mut bob) = (server.v2("alice", 1), server.v2("bob", 1));
    while snapshots(&setup).len() < 2 {
        pass(&mut alice, &mut bob, 100);
    }
    pass(&mut alice, &mut bob, 300);
    let session = bob.into_session();
    drop(alice);
    let setup = server.stop();
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
    fs::write(&manifest, text.replace("format = 3\n", "format = 9\n")).unwrap();
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
    for damaged in [true, false] {
        if damaged {
            flip(&path, whole.len() - 20);
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

/// Files that were moved aside by a repair go back to where they were.
fn move_back(setup: &Setup) {
    for entry in fs::read_dir(setup.data_dir()).unwrap() {
        let aside = entry.unwrap().path();
        if aside.file_name().unwrap().to_string_lossy().starts_with("damaged-") {
            for entry in fs::read_dir(aside.join("shard-0000")).unwrap() {
                let from = entry.unwrap().path();
                let to = setup.data_dir().join("shard-0000").join(from.file_name().unwrap());
                fs::rename(&from, &to).unwrap();
            }
            fs::remove_dir_all(aside).unwrap();
        }
    }
}

/// A repair that dies before it moves anything aside has done its work; one that
/// dies before the snapshot has its name has changed nothing that counts.
#[test]
fn a_repair_may_die_anywhere() {
    let setup = filled(300);
    let (path, whole) = (segment(&setup, 1), 300 - 1);
    flip(&path, find(&path, "xxxx") + 40_000);
    let old = snapshots(&setup);
    for cut in [false, true] {
        check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
        move_back(&setup);
        if cut {
            let new = snapshots(&setup).into_iter().filter(|path| !old.contains(path));
            new.for_each(|path| fs::remove_file(path).unwrap());
        }
        assert_eq!(waiting(&setup), whole);
    }
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    assert_eq!(taken(&setup.start(), "bob").len(), whole);
}

/// Copies what is below a directory.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &there)
        } else {
            assert!(fs::copy(&path, there).is_ok())
        }
    }
}

/// The names below a directory.
fn names(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // It may have changed its name since.
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        found.extend(if path.is_dir() { names(&path) } else { vec![path] });
    }
    found.sort();
    found
}

/// Kills a repair when so many changes of names were seen below the directory.
/// Whether it was over before that.
#[track_caller]
fn kill_at(mut child: Child, dir: &Path, changes: i32) -> bool {
    let (mut last, mut left) = (names(dir), changes);
    let deadline = Deadline::new();
    loop {
        deadline.check(|| format!("it does not end, {left} of {changes} changes left"));
        if let Some(status) = child.try_wait().expect("our own child") {
            assert_eq!(status.code(), Some(0));
            return true;
        }
        let now = names(dir);
        left -= i32::from(now != last);
        if left <= 0 {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            return false;
        }
        last = now;
    }
}

/// Killed whenever one name more is there: what was damaged is still somewhere,
/// and a repair that is begun again brings back all that the first one would have.
#[test]
fn a_repair_may_be_killed_at_any_name() {
    let setup = filled(300);
    let (path, whole) = (segment(&setup, 1), 300 - 1);
    flip(&path, find(&path, "xxxx") + 40_000);
    let damaged = fs::read(&path).unwrap();
    let (dir, pristine) = (setup.data_dir(), setup.data_dir().with_extension("pristine"));
    copy_all(dir, &pristine);
    let mut killed = 0;
    for changes in 1.. {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
        command.args(["repair", "--yes", "--data-dir"]).arg(dir).stdout(Stdio::null());
        let is_over = kill_at(command.spawn().expect("the binary runs"), dir, changes);
        assert!(contents(dir).iter().any(|(_, bytes)| *bytes == damaged), "after {changes}");
        if is_over {
            break;
        }
        killed += 1;
        // Whoever starts a server now is refused in words, or served.
        match setup.try_start() {
            Ok(server) => drop(server.stop()),
            Err(ended) => assert_eq!(ended.code, Some(3), "after {changes}: {}", ended.stderr),
        }
        let again = check(&iris_shard("repair", dir, &["--yes"]), 0, &[]);
        assert_eq!(waiting(&setup), whole, "after {changes}: {again}");
        let server = setup.start();
        assert_eq!(taken(&server, "bob").len(), whole, "after {changes}");
        server.stop();
        assert!(contents(dir).iter().any(|(_, bytes)| *bytes == damaged), "after {changes}");
        fs::remove_dir_all(dir).unwrap();
        copy_all(&pristine, dir);
    }
    assert!(killed > 0, "it ended before anything was seen of it");
    assert_eq!(waiting(&setup), whole);
}

/// A server that is started between the new snapshot and the move needs the
/// damaged segment no more and deletes it; what was set aside stays.
#[test]
fn what_is_set_aside_outlives_a_server_that_comes_too_early() {
    let setup = filled(300);
    let path = segment(&setup, 1);
    flip(&path, find(&path, "xxxx") + 40_000);
    let damaged = fs::read(&path).unwrap();
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    let aside = contents(setup.data_dir()).into_iter().map(|(path, _)| path);
    let aside = aside.filter(|it| it.file_name() == path.file_name()).collect::<Vec<_>>();
    fs::hard_link(&aside[0], &path).unwrap();
    let server = setup.start();
    let deadline = Deadline::new();
    while path.exists() {
        deadline.pause(|| "the segment is not deleted".to_owned());
    }
    // Its space is given back some time later.
    let is_open = || server.open_files().iter().any(|it| it.contains("segment-0000000001.log"));
    while is_open() {
        deadline.pause(|| "the segment stays open".to_owned());
    }
    assert!(fs::read(&aside[0]).unwrap() == damaged);
}

/// A shard that has lost everything is begun anew above all that there can have
/// been; killed on the way, it is not taken for one that was never written to.
#[test]
fn a_repair_of_a_lost_shard_may_be_killed_at_any_name() {
    let setup = written(5);
    let (dir, shard) = (setup.data_dir(), setup.data_dir().join("shard-0000"));
    fs::remove_dir_all(&shard).unwrap();
    let mut killed = 0;
    for changes in 1.. {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
        command.args(["repair", "--yes", "--data-dir"]).arg(dir).stdout(Stdio::null());
        let is_over = kill_at(command.spawn().expect("the binary runs"), dir, changes);
        killed += i32::from(!is_over);
        if !shard.join("segment-0000000000.log").exists() {
            setup.check_refused(3, &["shard-0000"]);
        }
        check(&iris_shard("repair", dir, &["--yes"]), 0, &[]);
        let server = setup.start();
        let (_, welcome) = Peer::v2(server.addr(), &hello("bob", 1));
        assert!(welcome.last_seq > 1_000_000_000, "after {changes}: {welcome:?}");
        server.stop();
        if is_over {
            break;
        }
        fs::remove_dir_all(&shard).unwrap();
    }
    assert!(killed > 0, "it ended before anything was seen of it");
}

/// A repair needs room for what it copies and for its snapshots.
#[test]
fn a_repair_without_space_changes_nothing() {
    let Some(disk) = Mounted::tmpfs("32m") else { return };
    let setup = fill(&Setup::in_dir(&disk.path().join("data")).shards(1), 300);
    let (path, dir) = (segment(&setup, 1), setup.data_dir());
    flip(&path, find(&path, "xxxx") + 40_000);
    let before = contents(dir);
    let ballast = disk.path().join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    for _ in 0..2 {
        check(&iris_shard("repair", dir, &["--yes"]), 3, &["no space is left"]);
        let after = contents(dir);
        assert!(before.iter().all(|(path, bytes)| {
            // The log may have gone on in the zeroes of a segment that was made ahead.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            after.iter().any(|(it, now)| it == path && now.starts_with(&bytes[..used]))
        }));
    }
    drop(file);
    fs::remove_file(ballast).unwrap();
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["Repaired"]);
    assert_eq!(taken(&setup.start(), "bob").len(), 300 - 1);
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
        "segment-0000000000.log is by its head segment-0000000001.log",
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

/// What was never confirmed is not brought back by a repair that is begun again
/// because the first one was interrupted, either: a sender's later message would
/// be there, and an earlier one would count as known and never arrive.
#[test]
fn a_repair_begun_again_keeps_nothing_of_a_torn_end() {
    let setup = Setup::new().shards(1);
    let server = setup.start();
    let (mut alice, _) = Peer::v2(server.addr(), &hello("alice", 1));
    for (seq, body) in [(1, "it stays"), (2, "it rots")] {
        alice.send_v2("bob", seq, body.as_bytes());
        alice.expect_sent(seq);
    }
    // One write, one commit: a crash tears it.
    let mut bytes = Vec::new();
    for (seq, body) in [(3, "it is torn"), (4, "it is behind that")] {
        v2::put_request(&mut bytes, &Request::Send(send("bob", seq, body.as_bytes())));
    }
    alice.write(&bytes);
    alice.expect_sent(3);
    alice.expect_sent(4);
    drop((alice, server.kill()));
    let path = segment(&setup, 0);
    flip(&path, find(&path, "it rots"));
    flip(&path, find(&path, "it is torn"));
    for _ in 0..2 {
        check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
        assert_eq!(waiting(&setup), 1);
        // It died before the snapshots had their names.
        move_back(&setup);
        snapshots(&setup).into_iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    assert_eq!(waiting(&setup), 1);
    let server = setup.start();
    let (mut alice, _) = Peer::v2(server.addr(), &hello("alice", 1));
    let all = ["it stays", "it rots", "it is torn", "it is behind that"];
    for (seq, body) in (1..).zip(all) {
        alice.send_v2("bob", seq, body.as_bytes());
        alice.expect_sent(seq);
    }
    server.wait_metric("iris_inbox_messages", |waiting| waiting == 4.0);
    assert_eq!(taken(&server, "bob"), all.map(str::as_bytes));
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
