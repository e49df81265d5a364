//! A write of the log that really fails, in the real server: it says so, ends in
//! order, and goes on from what is stored when it is started again.
//!
//! Where no disk can be made to fail, the kernel refuses the write because of a
//! file size limit that is lowered while the server runs: for the server a
//! failure like any other.

mod server;

use std::fs;
use std::io::Write;
use std::time::Duration;

use client::blocking::{Client, Notice};
use rustix::process::Resource;
use server::mounted::Mounted;
use server::{Deadline, PATIENCE, Server, Setup};
use wire::id::Class;
use wire::refuse::Code;

/// So many that both shards have some.
const CROWD: usize = 40;

/// The segment's header is as far as a file may reach.
fn fail_writes(server: &Server) {
    server.limit(Resource::Fsize, Some(4096));
}

/// Why the server asks this client to go.
#[track_caller]
fn goodbye(client: &mut Client) -> u16 {
    loop {
        match client.next_notice(PATIENCE).unwrap() {
            Some(Notice::Goaway { code, .. }) => return code,
            Some(_) => {}
            None => panic!("no GOAWAY"),
        }
    }
}

/// While anybody is still connected `/health` tells.
#[track_caller]
fn wait_until_told(server: &Server) {
    let deadline = Deadline::new();
    loop {
        let (status, health) = server.get("/health");
        if status == 503 && health.contains("exit code 74") {
            return;
        }
        deadline.pause(|| format!("{status} {health}"));
    }
}

#[test]
fn a_failed_write_ends_the_server_and_the_next_one_has_everything() {
    let server = Setup::new().shards(2).start();
    let mut alice = server.v2("alice", 1);
    let mut crowd: Vec<Client> = (0..CROWD).map(|n| server.v2(&format!("user {n}"), 1)).collect();
    for n in 1..=20 {
        alice.send_and_wait(b"bob", format!("message {n}").as_bytes(), PATIENCE).unwrap();
    }
    fail_writes(&server);
    alice.send(b"bob", b"message 21", Class::Guaranteed).unwrap();

    let codes: Vec<u16> = crowd.iter_mut().map(goodbye).collect();
    wait_until_told(&server);
    let of = |code: Code| codes.iter().filter(|told| **told == code as u16).count();
    let (failed, draining) = (of(Code::StorageFailed), of(Code::Draining));
    // Mostly one shard fails and the other drains; but that may have had a write
    // to do as well, of somebody who had just logged in.
    assert!(failed > 0 && failed + draining == CROWD, "{codes:?}");
    assert_eq!(alice.session().unsent(), 1, "nothing says that the last one is stored");
    drop(crowd);
    let setup = server.setup().clone();
    let ended = server.wait();
    assert_eq!(ended.code, Some(74), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("start the server again"), "{}", ended.stderr);

    let server = setup.start();
    alice.reconnect(Some(server.addr())).unwrap();
    alice.wait_sent(b"bob", 21, PATIENCE).unwrap();
    let mut bob = server.v2("bob", 1);
    for n in 1..=21 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(String::from_utf8_lossy(&delivery.body), format!("message {n}"));
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    assert_eq!(bob.next_delivery(Duration::ZERO).unwrap(), None);
    server.stop();
}

/// A real disk: its blocks are gone, and there is no room for others.
#[test]
fn a_disk_that_fails_ends_the_server() {
    let Some(memory) = Mounted::tmpfs("48m") else { return };
    let Some(disk) = Mounted::ext4_in(memory.path(), 32 << 20) else { return };
    let server = Setup::in_dir(&disk.path().join("data")).shards(1).start();
    let mut alice = server.v2("alice", 1);
    alice.send_and_wait(b"bob", b"first", PATIENCE).unwrap();
    disk.punch();
    let mut ballast = fs::File::create(memory.path().join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    alice.send(b"bob", b"second", Class::Guaranteed).unwrap();
    assert_eq!(goodbye(&mut alice), Code::StorageFailed as u16);
    assert_eq!(alice.session().unsent(), 1, "nothing says that it is stored");
    drop(alice);
    let ended = server.wait();
    assert_eq!(ended.code, Some(74), "{}", ended.stderr);
    println!("{}", ended.stderr.lines().last().unwrap_or_default());
}

/// The other way of writing, for file systems that lack the first.
#[test]
fn a_failed_write_before_an_fsync_counts_as_well() {
    let Some(memory) = std::path::Path::new("/dev/shm").exists().then_some("/dev/shm") else {
        return;
    };
    let dir = tempfile::tempdir_in(memory).unwrap();
    let server = Setup::in_dir(&dir.path().join("data")).shards(1).start();
    let mut alice = server.v2("alice", 1);
    alice.send_and_wait(b"bob", b"first", PATIENCE).unwrap();
    fail_writes(&server);
    alice.send(b"bob", b"second", Class::Guaranteed).unwrap();
    assert_eq!(goodbye(&mut alice), Code::StorageFailed as u16);
    let setup = server.setup().clone();
    // With everybody gone nothing holds it up.
    drop(alice);
    assert_eq!(server.wait().code, Some(74));
    let server = setup.start();
    let first = server.v2("bob", 1).next_delivery(PATIENCE).unwrap().expect("a message");
    assert_eq!(first.body, b"first");
    server.stop();
}

/// A segment that cannot be made is not a failed write: nothing of the log is in
/// doubt.
#[test]
fn a_segment_beyond_the_limit_is_not_a_fault() {
    let server = Setup::new().shards(1).set("storage.segment_bytes", "8MiB").start();
    let mut alice = server.v2("alice", 1);
    let second = server.setup().data_dir().join("shard-0000/segment-0000000001.log");
    let deadline = Deadline::new();
    while !second.exists() {
        deadline.pause(|| "the second segment is not made".into());
    }
    // One block less than a segment and its header. The third segment is due halfway
    // through the first; the log stays there until it has failed, as it may not
    // write the last block of a segment either.
    let before = server.limit(Resource::Fsize, Some(8 << 20));
    let body = [b'x'; 20_000];
    let halfway = (5 << 20) / body.len() as u64;
    for _ in 0..halfway {
        alice.send(b"bob", &body, Class::Guaranteed).unwrap();
    }
    server.wait_said("ulimit -f");
    alice.send(b"bob", &body, Class::Guaranteed).unwrap();
    let notice = alice.next_notice(PATIENCE).unwrap();
    let Some(Notice::Held { code, .. }) = notice else { panic!("{notice:?}") };
    assert_eq!(code, Code::StorageFull as u16);
    server.limit(Resource::Fsize, before);
    alice.wait_sent(b"bob", halfway + 1, PATIENCE).unwrap();
    server.stop();
}
