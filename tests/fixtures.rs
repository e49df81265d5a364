//! Data directories that earlier versions wrote are loaded by this one: what
//! waited is delivered, what was acknowledged is not, and no number counts
//! twice.
//!
//! A format gets its fixtures when it is new, written by the real server:
//! `cargo test --test fixtures -- --ignored`. The files are never written again.

#[path = "fixtures/dump.rs"]
mod dump;
#[path = "fixtures/mended.rs"]
mod mended;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::blocking::{Client, ClientV1};
use rustix::process::Signal;
use server::peer::{Peer, hello};
use server::{Deadline, PATIENCE, Server, Setup};
use tempfile::TempDir;
use wire::id::Class;
use wire::v2::Reply;

/// Each format with a directory of it, and with what zoe gets from that.
const FORMATS: [(u32, &str, &[&str]); 5] = [
    (1, include_str!("fixtures/format-1.hex"), &[]),
    (2, include_str!("fixtures/format-2.hex"), &[]),
    (3, include_str!("fixtures/format-3.hex"), &ASIDE),
    (4, include_str!("fixtures/format-4.hex"), &ASIDE),
    (5, include_str!("fixtures/format-5.hex"), &ASIDE),
];
/// What was aside, see [`set_aside`].
const ASIDE: [&str; 1] = ["for zoe 2"];

/// Of [`Setup`].
const SEGMENT_BYTES: u64 = 1 << 20;
/// Messages for each of the crowd, of which some are on either shard.
const CROWD: usize = 6;
/// For bob, and how many of them he has acknowledged.
const BOB: u64 = 20;
const BOB_ACKED: u64 = 12;

/// A server on a fixture, whose pairs get older every day: it remembers them for
/// as long as the messages wait there, ten years.
fn setup(dir: &Path) -> Setup {
    Setup::in_dir(dir).set("limits.pairs_kept_days", "3650")
}

/// How a fixture is written: what waits in it expires in ten years.
fn lasting() -> Setup {
    Setup::new().set("limits.retention_days", "3650").set("limits.pairs_kept_days", "3650")
}

fn name(n: usize) -> String {
    format!("user-{n}")
}

fn send(client: &mut Client, to: &str, body: &str) {
    client.send_and_wait(to.as_bytes(), body.as_bytes(), PATIENCE).unwrap();
}

/// What every fixture holds. The years of retention keep it readable, and
/// [`setup`] its numbers known.
fn write(server: &Server) {
    let mut alice = server.v2("alice", 1);
    for n in 1..=BOB {
        send(&mut alice, "bob", &format!("for bob {n}"));
    }
    for n in 0..CROWD {
        send(&mut alice, &name(n), &format!("for the crowd {n}"));
    }
    let mut bob = server.v2("bob", 7);
    for seq in 1..=BOB_ACKED {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.send_seq, seq);
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    let mut carol = v1(server, "carol");
    let mut dave = server.v1("dave");
    for n in 1..=5 {
        dave.send_seq(b"carol", n, format!("for carol {n}").as_bytes()).unwrap();
    }
    for n in 1..=5 {
        let delivery = carol.next_delivery(PATIENCE).unwrap().expect("a message");
        if n == 2 {
            carol.ack(delivery.id).unwrap();
        }
    }
    carol.status(b"dave", PATIENCE).unwrap();
    (1..=3).for_each(|n| send(&mut alice, "zoe", &format!("for zoe {n}")));
}

/// Where this text stands in a segment below a directory: the file, its number
/// and the offset. Cleaning may have left older copies.
fn copies(dir: &Path, text: &str) -> Vec<(PathBuf, u64, usize)> {
    let mut found = Vec::new();
    for shard in 0..2 {
        for entry in fs::read_dir(dir.join(format!("shard-{shard:04}"))).unwrap() {
            let path = entry.unwrap().path();
            let index = number(&path, "segment-");
            // Cleaning may be at work.
            let (Some(index), Ok(bytes)) = (index, fs::read(&path)) else { continue };
            let all = bytes.windows(text.len()).enumerate();
            let all = all.filter(|(_, window)| *window == text.as_bytes());
            found.extend(all.map(|(at, _)| (path.clone(), index, at)));
        }
    }
    found
}

/// The number in a file's name.
fn number(path: &Path, before: &str) -> Option<u64> {
    path.file_stem()?.to_str()?.strip_prefix(before)?.parse().ok()
}

/// Stops the server when the newest snapshot covers every copy of a message: a
/// start is refused for what rots behind it. Cleaning copies the message now and
/// then, perhaps while the server stops.
fn stop_when_covered(mut server: Server, text: &str) -> Setup {
    let dir = server.setup().data_dir().to_owned();
    let is_covered = || {
        copies(&dir, text).iter().all(|(path, index, _)| {
            let newest = snapshots(path.parent().unwrap()).pop();
            newest.and_then(|path| number(&path, "snapshot-")) >= Some((index + 1) * SEGMENT_BYTES)
        })
    };
    let deadline = Deadline::new();
    let mut lives = 0;
    loop {
        exchange(&server, &format!("move {lives}"), is_covered);
        let setup = server.stop();
        if is_covered() {
            return setup;
        }
        deadline.check(|| format!("'{text}' is moved whenever the server stops"));
        server = setup.start();
        lives += 1;
    }
}

/// A message for zoe cannot be read while she is there, and can be afterwards.
fn set_aside(setup: Setup) -> Setup {
    let copies = copies(setup.data_dir(), ASIDE[0]);
    copies.iter().for_each(|(path, _, at)| rot(path, *at));
    let server = setup.start();
    let mut zoe = server.v2("zoe", 9);
    let next = |patience| Some(zoe.next_delivery(patience).unwrap()?.body);
    assert_eq!(bodies(next, 2), ["for zoe 1", "for zoe 3"]);
    zoe.ack(3).unwrap();
    zoe.ping(1, PATIENCE).unwrap();
    drop(zoe);
    let setup = server.stop();
    // The one that counts is not moved while it cannot be read; a segment with an
    // older one may have gone.
    let left = copies.iter().filter(|(path, _, _)| path.exists());
    assert!(left.clone().count() > 0, "{copies:?}");
    left.for_each(|(path, _, at)| rot(path, *at));
    setup
}

/// Sends to a crowd of its own, who acknowledge, until it is done.
fn exchange(server: &Server, from: &str, is_done: impl Fn() -> bool) {
    let body = vec![b'x'; 60_000];
    let mut sender = server.v2(from, 1);
    // Somebody in each shard.
    let names = server.names(&from[..1], CROWD / 2);
    let mut readers: Vec<Client> = names.iter().map(|name| server.v2(name, 1)).collect();
    let deadline = Deadline::new();
    for round in 1.. {
        if is_done() {
            return;
        }
        deadline.check(|| format!("{from} has sent for nothing"));
        for name in &names {
            sender.send(name.as_bytes(), &body, Class::Guaranteed).unwrap();
        }
        for (name, reader) in names.iter().zip(&mut readers) {
            sender.wait_sent(name.as_bytes(), round, PATIENCE).unwrap();
            let delivery = reader.next_delivery(PATIENCE).unwrap().expect("a message");
            reader.ack(delivery.inbox_seq).unwrap();
        }
    }
}

/// Until the first segment of every shard is gone: what waited in it has been
/// moved, and snapshots tell where it is.
fn churn(server: &Server) {
    let dir = server.setup().data_dir();
    let firsts = [0, 1].map(|shard| dir.join(format!("shard-000{shard}/segment-0000000000.log")));
    assert!(firsts.iter().all(|path| path.exists()));
    exchange(server, "churn", || !firsts.iter().any(|path| path.exists()));
    server.wait_metric("iris_log_moved_total", |moved| moved > 0.0);
}

fn v1(server: &Server, user: &str) -> ClientV1 {
    let mut client = server.v1(user);
    client.session().set_auto_ack(false);
    client
}

fn bodies(mut next: impl FnMut(Duration) -> Option<Vec<u8>>, count: usize) -> Vec<String> {
    let text = |body| String::from_utf8(body).unwrap();
    (0..count).map(|_| text(next(PATIENCE).expect("a message"))).collect()
}

/// What [`write`] wrote, of which zoe gets this.
fn check(server: &Server, for_zoe: &[&str]) {
    if !for_zoe.is_empty() {
        let mut zoe = server.v2("zoe", 9);
        let next = |patience| Some(zoe.next_delivery(patience).unwrap()?.body);
        assert_eq!(bodies(next, for_zoe.len()), for_zoe);
    }
    let mut alice = server.v2("alice", 1);
    // Numbers that are taken: confirmed again, and stored no second time.
    send(&mut alice, "bob", "not again");
    send(&mut alice, &name(0), "not again");
    let mut bob = server.v2("bob", 7);
    let expected: Vec<String> = (BOB_ACKED + 1..=BOB).map(|n| format!("for bob {n}")).collect();
    let next = |patience| Some(bob.next_delivery(patience).unwrap()?.body);
    assert_eq!(bodies(next, expected.len()), expected);
    bob.ping(1, PATIENCE).unwrap();
    assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
    for n in 0..CROWD {
        let mut user = server.v2(&name(n), 1);
        let next = |patience| Some(user.next_delivery(patience).unwrap()?.body);
        assert_eq!(bodies(next, 1), [format!("for the crowd {n}")]);
        user.ping(1, PATIENCE).unwrap();
        assert!(user.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
    }
    let mut dave = server.v1("dave");
    dave.send_seq(b"carol", 5, b"not again").unwrap();
    dave.status(b"carol", PATIENCE).unwrap();
    let mut carol = v1(server, "carol");
    let next = |patience| Some(carol.next_delivery(patience).unwrap()?.body);
    assert_eq!(bodies(next, 4), ["for carol 1", "for carol 3", "for carol 4", "for carol 5"]);
    carol.status(b"dave", PATIENCE).unwrap();
    assert!(carol.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
}

/// By a server, and once more after a crash: the directory and that server.
fn check_loaded(format: u32, text: &str, check: impl Fn(&Server)) -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    dump::restore(text, dir.path());
    let manifest = fs::read_to_string(dir.path().join("manifest.toml")).unwrap();
    assert!(manifest.contains(&format!("format = {format}\n")), "{manifest}");
    let server = setup(dir.path()).start();
    check(&server);
    // And by what this version makes of it.
    let server = server.crash_and_restart();
    check(&server);
    (dir, server)
}

#[test]
fn directories_of_every_format_are_loaded() {
    for (format, text, for_zoe) in FORMATS {
        let (_dir, server) = check_loaded(format, text, |server| check(server, for_zoe));
        server.stop();
    }
}

/// The snapshots of a shard, ascending.
fn snapshots(shard: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(shard).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "snap")).collect();
    found.sort();
    found
}

/// Those of the directory of format 2, as it was written.
fn both_snapshots(dir: &Path, shard: u16) -> [PathBuf; 2] {
    snapshots(&dir.join(format!("shard-{shard:04}"))).try_into().expect("two of them")
}

fn rot(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Pairs of [`write`] in format 2, and of [`churn`].
const PAIRS: usize = 1 + CROWD + 1 + CROWD;

/// Until every shard has a newer snapshot. Makes a pair with each of a crowd.
fn pass_snapshots(server: &Server) {
    let dir = server.setup().data_dir();
    let newest = || ["shard-0000", "shard-0001"].map(|shard| snapshots(&dir.join(shard)).pop());
    let before = newest();
    exchange(server, "passing", || newest().iter().zip(&before).all(|(now, was)| now != was));
}

/// The last number that alice used is known, or others are missing before it.
fn check_numbers(server: &Server, are_known: bool) {
    let (mut alice, _) = Peer::v2(server.addr(), &hello("alice", 1));
    alice.send_v2("bob", BOB, b"not again");
    match (are_known, alice.reply().get()) {
        (true, Reply::Sent { seq: BOB, .. }) | (false, Reply::Gap { expected: 1, .. }) => {}
        (_, other) => panic!("{other:?}, are the numbers known: {are_known}"),
    }
}

/// What a silent device has sent before is forgotten when it is old enough, and
/// not sooner, by a snapshot, and for good. The directory of format 2 was written
/// on 2026-11-21, so for more than a day and less than ten years nobody in it has
/// sent anything.
#[test]
fn numbers_are_forgotten_in_their_time() {
    for (days, are_known) in [("1", false), ("3650", true)] {
        let dir = tempfile::tempdir().unwrap();
        dump::restore(FORMATS[1].1, dir.path());
        let server = Setup::in_dir(dir.path()).set("limits.pairs_kept_days", days).start();
        pass_snapshots(&server);
        let expected = CROWD + if are_known { PAIRS } else { 0 };
        let is_expected = |pairs| pairs == expected as f64;
        server.wait_metric("iris_pairs", is_expected);
        check_numbers(&server, are_known);
        let server = server.crash_and_restart();
        server.wait_metric("iris_pairs", is_expected);
        check_numbers(&server, are_known);
        // Whoever begins anew is taken anew.
        let mut bob = server.v2("bob", 7);
        send(&mut server.v2("alice", 1), "bob", "a new one");
        let next = |patience| Some(bob.next_delivery(patience).unwrap()?.body);
        let waited = (BOB_ACKED + 1..=BOB).map(|n| format!("for bob {n}"));
        let anew = (!are_known).then(|| "a new one".to_owned());
        let expected: Vec<String> = waited.chain(anew).collect();
        assert_eq!(bodies(next, expected.len()), expected);
        bob.ping(1, PATIENCE).unwrap();
        assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
    }
}

#[test]
fn a_rotten_snapshot_is_told_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    dump::restore(FORMATS[1].1, dir.path());
    let newest = [0, 1].map(|shard| both_snapshots(dir.path(), shard)[1].clone());
    rot(&newest[0], 300);
    fs::write(&newest[1], b"").unwrap();
    let server = setup(dir.path()).start();
    for path in &newest {
        // Until there are two that are newer, which takes minutes.
        assert!(path.with_extension("snap.damaged").exists(), "it is kept for whoever looks");
    }
    check(&server, &[]);
    server.signal(Signal::TERM);
    let stderr = server.wait().stderr;
    for path in &newest {
        assert!(stderr.contains(&format!("{} could not be used", path.display())), "{stderr}");
    }
}

#[test]
fn without_snapshots_and_the_first_segment_the_start_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    dump::restore(FORMATS[1].1, dir.path());
    let both = both_snapshots(dir.path(), 1);
    both.iter().for_each(|path| rot(path, 300));
    let newest = both[1].to_str().unwrap();
    let setup = setup(dir.path());
    let told =
        [newest, "the checksum of a frame is wrong at file offset", "segment-0000000000.log"];
    setup.check_refused(3, &told);
    // Nothing was changed: the same bits again, and all is well.
    both.iter().for_each(|path| rot(path, 300));
    check(&setup.start(), &[]);
}

#[test]
fn a_dump_is_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::create_dir_all(one.join("sub")).unwrap();
    let bytes = [vec![0; 100], vec![7; 333], vec![0; 1000], b"end".to_vec(), vec![0]].concat();
    fs::write(one.join("sub/file"), &bytes).unwrap();
    fs::write(one.join("empty"), b"").unwrap();
    let text = dump::dump(&one);
    dump::restore(&text, &two);
    assert_eq!(dump::dump(&two), text);
    assert_eq!(fs::read(two.join("sub/file")).unwrap(), bytes);
}

/// A directory of the present format, as text.
fn written() -> String {
    let server = lasting().shards(2).start();
    write(&server);
    churn(&server);
    let setup = set_aside(stop_when_covered(server, ASIDE[0]));
    dump::dump(setup.data_dir())
}

/// Whoever changes the format can write its fixtures, at any time.
#[test]
fn what_is_written_today_is_loaded() {
    let (_dir, server) = check_loaded(wal::FORMAT, &written(), |server| check(server, &ASIDE));
    server.stop();
}

#[test]
fn what_is_mended_today_is_loaded() {
    mended::check_loaded(wal::FORMAT, &mended::written());
}

/// Writes the fixtures of the present format that are not there yet.
#[test]
#[ignore = "for whoever changes the format"]
fn write_fixtures() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let write = |name: String, text: &dyn Fn() -> String| {
        let path = dir.join(name);
        if path.exists() {
            println!("{} is never written again", path.display());
        } else {
            fs::write(path, text()).unwrap();
        }
    };
    write(format!("format-{}.hex", wal::FORMAT), &written);
    write(format!("format-{}-mended.hex", wal::FORMAT), &mended::written);
}
