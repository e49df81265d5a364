//! The size of a data directory under store and deliver: twice what waits, and
//! a few segments.

mod server;

use std::fs;
use std::path::Path;

use client::blocking::Client;
use server::{Deadline, PATIENCE, Server, Setup};
use wire::id::Class;

const SEGMENT: u64 = 1 << 20;
/// The one being written, one made ahead, and another one made ahead by a log
/// that fills them quickly.
const SEGMENTS: u64 = 3;
/// The manifest and its copy, the lock, and small snapshots.
const BESIDE: u64 = 64 << 10;
static BODY: [u8; 20_000] = [b'x'; 20_000];

fn size(dir: &Path) -> u64 {
    // What is deleted meanwhile has no size any more.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Stores so many messages, and delivers them.
fn store_and_deliver(alice: &mut Client, bob: &mut Client, count: u64) {
    let mut last = 0;
    for _ in 0..count {
        last = alice.send(b"bob", &BODY, Class::Guaranteed).unwrap();
    }
    alice.wait_sent(b"bob", last, PATIENCE).unwrap();
    for _ in 0..count {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
}

/// Waits for the directory to be as small as it should be, with nobody sending
/// anything. Bytes and how many segments they are beyond twice what waits.
#[track_caller]
fn settled(server: &Server) -> (u64, u64) {
    let deadline = Deadline::new();
    loop {
        let live = server.metric("iris_inbox_bytes") as u64;
        let bytes = size(server.setup().data_dir());
        let surplus = bytes.saturating_sub(2 * live + BESIDE);
        if surplus <= SEGMENTS * (SEGMENT + 4096) {
            return (bytes, surplus.div_ceil(SEGMENT + 4096));
        }
        deadline.pause(|| format!("{bytes} bytes for {live} that wait"));
    }
}

#[test]
fn a_directory_stays_within_twice_what_waits() {
    let server = Setup::new().shards(1).set("storage.segment_bytes", "1MiB").start();
    let (mut alice, mut bob) = (server.v2("alice", 1), server.v2("bob", 1));
    let mut most = 0;
    for round in 0..8 {
        store_and_deliver(&mut alice, &mut bob, 100);
        if round % 2 == 0 {
            // For somebody who stays away.
            let mut last = 0;
            for _ in 0..20 {
                last = alice.send(b"carol", &BODY, Class::Guaranteed).unwrap();
            }
            alice.wait_sent(b"carol", last, PATIENCE).unwrap();
        }
        most = most.max(settled(&server).1);
    }
    let (bytes, _) = settled(&server);
    println!("{bytes} bytes at the end, at most {most} segments beyond twice what waits");
    // Acknowledgements reach the disk a moment later, and nobody is told.
    server.wait_metric("iris_acks_total", |acks| acks == 800.0);
    server.wait_metric("iris_log_undurable_bytes", |bytes| bytes == 0.0);
    // Neither a kill nor an acknowledgement of everything changes that.
    let server = server.crash_and_restart();
    settled(&server);
    let mut carol = server.v2("carol", 1);
    for _ in 0..80 {
        let delivery = carol.next_delivery(PATIENCE).unwrap().expect("a message");
        carol.ack(delivery.inbox_seq).unwrap();
    }
    carol.ping(1, PATIENCE).unwrap();
    // What is published is up to a second old.
    server.wait_metric("iris_inbox_bytes", |bytes| bytes == 0.0);
    let (bytes, _) = settled(&server);
    assert!(bytes <= SEGMENTS * (SEGMENT + 4096) + BESIDE, "{bytes}");
    server.stop();
}
