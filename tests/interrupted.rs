//! `iris-shard repair` that does not come to its end: killed, or without space,
//! and begun again.

mod server;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use server::files::{
    check, contents, fill, filled, find, flip, iris_shard, lose_sector, segment, snapshots, taken,
    tear_behind, used, waiting, written,
};
use server::mounted::Mounted;
use server::peer::{Peer, hello, send};
use server::{Deadline, Setup};
use wire::v2::{self, Request};

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
            // The log may have gone on in a segment that was made ahead.
            after.iter().any(|(it, now)| it == path && now.starts_with(used(bytes)))
        }));
    }
    drop(file);
    fs::remove_file(ballast).unwrap();
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["Repaired"]);
    assert_eq!(taken(&setup.start(), "bob").len(), 300 - 1);
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
    let torn = "it is torn ".repeat(200);
    for (seq, body) in [(3, &torn[..]), (4, "it is behind that")] {
        v2::put_request(&mut bytes, &Request::Send(send("bob", seq, body.as_bytes())));
    }
    alice.write(&bytes);
    alice.expect_sent(3);
    alice.expect_sent(4);
    drop((alice, server.kill()));
    let path = segment(&setup, 0);
    flip(&path, find(&path, "it rots"));
    lose_sector(&path, find(&path, &torn) + torn.len() / 2);
    tear_behind(&path, find(&path, "it is behind that"));
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
    let all = ["it stays", "it rots", &torn, "it is behind that"];
    for (seq, body) in (1..).zip(all) {
        alice.send_v2("bob", seq, body.as_bytes());
        alice.expect_sent(seq);
    }
    server.wait_metric("iris_inbox_messages", |waiting| waiting == 4.0);
    assert_eq!(taken(&server, "bob"), all.map(str::as_bytes));
}
