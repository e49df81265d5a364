//! What a server leaves behind when it has stopped: its files, and the commands
//! that look at them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use client::Session;
use client::blocking::Client;
use serde_json::Value;
use wal::sector::SECTOR;
use wire::id::Class;

use super::{Deadline, PATIENCE, Server, Setup};

/// Runs a command of the binary on this directory.
pub fn iris_shard(name: &str, data_dir: &Path, arguments: &[&str]) -> Output {
    command(name, data_dir, arguments).output().expect("the binary runs")
}

/// A command of the binary on this directory, to be run.
pub fn command(name: &str, data_dir: &Path, arguments: &[&str]) -> Command {
    let mut process = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IRIS_") {
            process.env_remove(name);
        }
    }
    process.arg(name).arg("--data-dir").arg(data_dir).args(arguments);
    process
}

/// Expects this code and these words, wherever they are said.
#[track_caller]
pub fn check(output: &Output, code: i32, told: &[&str]) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in told {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[track_caller]
pub fn json(output: &Output, code: i32) -> Value {
    let said = check(output, code, &[]);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Every file below a directory with its bytes, the lock's apart.
pub fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// A start is refused with code 3 and these words, and not a byte has changed.
#[track_caller]
pub fn check_untouched(setup: &Setup, told: &[&str]) -> String {
    // What a kill left unfinished every boot removes.
    let is_tmp = |path: &Path| path.extension().is_some_and(|extension| extension == "tmp");
    let finished = || {
        let mut found = contents(setup.data_dir());
        found.retain(|(path, _)| !is_tmp(path));
        found
    };
    let before = finished();
    let stderr = setup.check_refused(3, told);
    assert!(finished() == before, "something has changed: {stderr}");
    stderr
}

/// One can be found in a file.
pub fn body(n: usize) -> String {
    format!("this is message number {n:06}")
}

/// This many messages for "bob" in one shard, each confirmed and each in a
/// commit of its own.
pub fn written(messages: usize) -> Setup {
    let setup = Setup::new().shards(1);
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    for n in 0..messages {
        alice.send_and_wait(b"bob", body(n).as_bytes(), PATIENCE).unwrap();
    }
    // A server that stops waits seconds for clients that stay.
    drop(alice);
    server.stop()
}

/// The snapshots of the one shard, oldest first.
pub fn snapshots(setup: &Setup) -> Vec<PathBuf> {
    let entries = fs::read_dir(setup.data_dir().join("shard-0000")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "snap"));
    paths.sort();
    paths
}

/// Messages of 10,000 bytes, so that there are segments and snapshots.
pub fn filled(messages: u64) -> Setup {
    fill(&Setup::new().shards(1), messages)
}

/// The same where somebody else says.
pub fn fill(setup: &Setup, messages: u64) -> Setup {
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    for n in 1..=messages {
        let body = [format!("{n:08}").as_bytes(), &[b'x'; 10_000]].concat();
        let seq = alice.send(b"bob", &body, Class::Guaranteed).unwrap();
        if n % 50 == 0 || n == messages {
            alice.wait_sent(b"bob", seq, PATIENCE).unwrap();
        }
        // Each of them is due when enough was appended since the one before.
        if n == messages / 2 || n == messages {
            let expected = if n == messages { 2 } else { 1 };
            let deadline = Deadline::new();
            while snapshots(setup).len() < expected {
                deadline.pause(|| format!("{expected} snapshots are not taken"));
            }
        }
    }
    drop(alice);
    server.stop()
}

/// All that waits for this user, in order. The last one is not acknowledged, so
/// that what was sent after it is told from it.
#[track_caller]
pub fn taken(server: &Server, user: &str) -> Vec<Vec<u8>> {
    let waiting = server.wait_metric("iris_inbox_messages", |waiting| waiting > 0.0) as usize;
    let mut client = server.v2(user, 1);
    let mut got = Vec::new();
    while got.len() < waiting {
        let delivery = client.next_delivery(PATIENCE).unwrap().expect("a message");
        got.push(delivery.body);
        if got.len() < waiting {
            client.ack(delivery.inbox_seq).unwrap();
        }
    }
    client.ping(7, PATIENCE).unwrap();
    assert!(client.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
    got
}

pub fn segment(setup: &Setup, index: u32) -> PathBuf {
    setup.data_dir().join(format!("shard-0000/segment-{index:010}.log"))
}

/// Turns one bit.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// What a file holds before the rest of it, in which nothing was written yet.
pub fn used(bytes: &[u8]) -> &[u8] {
    let blank = wal::segment::blank(bytes);
    let last = bytes.chunks(SECTOR).rposition(|sector| !blank.is(sector));
    &bytes[..bytes.len().min(last.map_or(0, |last| (last + 1) * SECTOR))]
}

/// Has what stood there before show in the sector that holds this place, as a crash
/// does that tears a write.
pub fn lose_sector(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let from = at / SECTOR * SECTOR;
    wal::segment::blank(&bytes).fill(&mut bytes[from..from + SECTOR]);
    fs::write(path, bytes).unwrap();
}

/// Makes zeroes of it, which no crash does.
pub fn wipe_sector(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let from = at / SECTOR * SECTOR;
    bytes[from..from + SECTOR].fill(0);
    fs::write(path, bytes).unwrap();
}

/// Has nothing stand in the blocks behind this place, as if the server had died at
/// once: one that lives on for a second vouches there for what it has written.
pub fn tear_behind(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let blank = wal::segment::blank(&bytes);
    blank.fill(&mut bytes[(at + 1).next_multiple_of(wal::BLOCK)..]);
    fs::write(path, bytes).unwrap();
}

/// Waits until the log of the one shard rests behind this text of its first
/// segment, which stands in a commit of one block: a record is durable that vouches
/// for it.
pub fn wait_vouched(server: &Server, text: &str) {
    let at = find(&segment(server.setup(), 0), text);
    // Where that block ends, because the head of the file is one, too.
    let end = at / wal::BLOCK * wal::BLOCK;
    server.wait_metric("iris_log_bytes_total", |bytes| bytes > end as f64);
    server.wait_metric("iris_log_undurable_bytes", |bytes| bytes == 0.0);
}

/// Where this text stands first in a file.
#[track_caller]
pub fn find(path: &Path, text: &str) -> usize {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes());
    at.unwrap_or_else(|| panic!("'{text}' is not in {}", path.display()))
}

/// Which of the messages of [`filled`] these are.
pub fn numbers(bodies: &[Vec<u8>]) -> Vec<u64> {
    let number = |body: &Vec<u8>| String::from_utf8_lossy(&body[..8]).parse().unwrap();
    bodies.iter().map(number).collect()
}

/// How many messages wait, as `inspect` has it.
#[track_caller]
pub fn waiting(setup: &Setup) -> usize {
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    shown["shards"][0]["holds"]["waiting_messages"].as_u64().expect("a number") as usize
}

/// Sends this many messages, which are taken and acknowledged as they come.
pub fn pass(alice: &mut Client, bob: &mut Client, messages: usize) {
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

/// What is confirmed after a repair reaches a device that was there before it;
/// its session then.
#[track_caller]
pub fn check_goes_on(server: &Server, session: Session) -> Session {
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
    bob.into_session()
}

/// A shard whose messages were all taken, so many of them since its second
/// snapshot, and the session of bob, who took them.
pub fn passed(messages: usize) -> (Setup, Session) {
    let setup = Setup::new().shards(1);
    let server = setup.start();
    let (mut alice, mut bob) = (server.v2("alice", 1), server.v2("bob", 1));
    while snapshots(&setup).len() < 2 {
        pass(&mut alice, &mut bob, 100);
    }
    pass(&mut alice, &mut bob, messages);
    let session = bob.into_session();
    drop(alice);
    (server.stop(), session)
}

/// Where the replay of the newest snapshot begins: the segment and the offset in
/// its file.
pub fn newest_start(setup: &Setup) -> (u32, usize) {
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let segment_bytes = shown["segment_bytes"].as_u64().expect("a number");
    let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    let newest = snapshots(setup).into_iter().map(name).max().expect("a snapshot");
    let start: u64 = newest.trim_start_matches("snapshot-").parse().expect("a number");
    ((start / segment_bytes) as u32, (start % segment_bytes) as usize + wal::BLOCK)
}
