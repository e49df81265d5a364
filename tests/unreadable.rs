//! Repairs where the disk refuses bytes of the log: what may have stood there is
//! told, nothing is written over it, and everything else is kept.

mod server;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use client::blocking::Client;
use server::files::{check, check_goes_on, contents, find, json, newest_start, passed, segment};
use server::files::{iris_shard, taken};
use server::{PATIENCE, Server, Setup, unreadable};
use wal::BLOCK;
use wire::id::Class;

/// Looks, and repairs, while these bytes of a file are refused; what it looked
/// like. The file is kept as it was, and the directory is healthy then.
#[track_caller]
fn repair_without(setup: &Setup, path: &Path, bytes: &Range<u64>) -> String {
    let tools = tempfile::tempdir().unwrap();
    let library = unreadable::build(tools.path());
    let dir = setup.data_dir();
    let repair = |arguments: &[&str]| {
        unreadable::iris_shard(&library, (path, bytes), "repair", dir, arguments)
    };
    let before = contents(dir);
    let words = ["cannot be read", "Input/output error", "Nothing was changed"];
    let looked = check(&repair(&[]), 3, &words);
    assert!(contents(dir) == before, "something has changed: {looked}");
    let was = fs::read(path).unwrap();
    check(&repair(&["--yes"]), 0, &["Repaired"]);
    let is_it = |(other, bytes): &(_, Vec<u8>)| {
        let other: &PathBuf = other;
        other.file_name() == path.file_name() && other != path && *bytes == was
    };
    assert!(contents(dir).iter().any(is_it), "{} was not moved aside", path.display());
    check(&iris_shard("repair", dir, &[]), 0, &["healthy"]);
    looked
}

/// Where the log ends: the segment and the offset in its file.
fn end(setup: &Setup) -> (u32, u64) {
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let segment_bytes = shown["segment_bytes"].as_u64().unwrap();
    let end = shown["shards"][0]["log"]["end"].as_u64().unwrap();
    ((end / segment_bytes) as u32, end % segment_bytes + BLOCK as u64)
}

#[test]
fn numbers_go_on_above_an_end_that_cannot_be_read() {
    let (setup, session) = passed(300);
    let (index, at) = newest_start(&setup);
    let path = segment(&setup, index);
    let looked = repair_without(&setup, &path, &(at as u64..fs::metadata(&path).unwrap().len()));
    assert!(looked.contains("are not what they were"), "{looked}");
    check_goes_on(&setup.start(), session);
}

#[test]
fn what_stands_behind_an_unreadable_block_is_kept() {
    let (setup, session) = passed(20);
    let server = setup.start();
    let text = |n: u64| format!("{n:04} for carol {}", "x".repeat(1000));
    let send = |alice: &mut Client, range: Range<u64>| {
        let sent =
            range.map(|n| alice.send(b"carol", text(n).as_bytes(), Class::Guaranteed).unwrap());
        let last = sent.last().expect("some");
        alice.wait_sent(b"carol", last, PATIENCE).unwrap();
    };
    let mut alice = server.v2("alice", 2);
    send(&mut alice, 0..20);
    send(&mut alice, 20..40);
    // A commit behind it, which vouches for those before.
    send(&mut alice, 40..41);
    drop(alice);
    let setup = server.kill();
    // The log may have gone on in the next segment since.
    let (last, _) = end(&setup);
    let has_it = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes.windows(14).any(|it| it == b"0030 for carol")
    };
    let mut segments = (0..=last).rev().map(|index| segment(&setup, index));
    let path = segments.find(has_it).expect("it is somewhere");
    // The block in which the 31st ends.
    let at = (find(&path, "0030 for carol") as u64 + 1000) / BLOCK as u64 * BLOCK as u64;
    let looked = repair_without(&setup, &path, &(at..at + BLOCK as u64));
    let server = setup.start();
    let got = taken(&server, "carol");
    let got: Vec<u64> =
        got.iter().map(|body| String::from_utf8_lossy(&body[..4]).parse().unwrap()).collect();
    let gone: Vec<u64> = (0..41).filter(|n| !got.contains(n)).collect();
    assert!(gone.contains(&30) && gone.len() <= 6, "{gone:?}: {looked}");
    assert!(got.is_sorted());
    check_goes_on(&server, session);
}

#[test]
fn nothing_is_lost_where_nothing_stood() {
    for place in 0..3 {
        let block = BLOCK as u64;
        // Where the log ends depends on the commits; now and then that is near the
        // segment's end.
        let has_room = |setup: &Setup| {
            let (index, at) = end(setup);
            at + 3 * block < fs::metadata(segment(setup, index)).unwrap().len()
        };
        let lived = (1..=5).map(|n| passed(20 * n)).find(|(setup, _)| has_room(setup));
        let (setup, session) = lived.expect("one of them");
        let (index, at) = end(&setup);
        let path = segment(&setup, index);
        let len = fs::metadata(&path).unwrap().len();
        let bytes = [at + block..at + 2 * block, at + block..at + 3 * block, len - block..len];
        let looked = repair_without(&setup, &path, &bytes[place]);
        assert!(looked.contains("  0 messages that"), "{looked}");
        assert!(!looked.contains("are not what they were"), "{looked}");
        let server: Server = setup.start();
        check_goes_on(&server, session);
    }
}
