//! A disk without space: what is refused, what goes on, and that space comes
//! back by itself.

mod server;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use client::blocking::{Client, LoginRefused, Notice};
use rustix::process::Resource;
use server::mounted::Mounted;
use server::peer::Peer;
use server::{Deadline, PATIENCE, Setup};
use wire::id::Class;
use wire::refuse::Code;
use wire::v1::{Answer, Packet};

#[test]
fn a_full_disk_at_the_start_is_told() {
    let Some(mounted) = Mounted::tmpfs("1m") else { return };
    let setup = Setup::in_dir(&mounted.path().join("data")).shards(2);
    setup.check_refused(3, &["no space is left", "free some"]);
}

/// Fills the disk with messages until they are refused, and makes room again.
fn check_full_disk(mounted: &Mounted) {
    let ballast = mounted.path().join("ballast");
    fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let setup = Setup::in_dir(&mounted.path().join("data")).shards(1);
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    let body = |n: u64| [&n.to_be_bytes()[..], &[b'x'; 20_000]].concat();
    let mut sent = 0;
    let deadline = Deadline::new();
    let refused = loop {
        match refused_for_space(&mut alice) {
            Some(refused) => break refused,
            None => {
                sent += 1;
                alice.send(b"bob", &body(sent), Class::Guaranteed).unwrap();
                deadline.check(|| format!("{sent} messages fit a full disk"));
            }
        }
    };
    // A refusal overtakes the confirmations of what is still on its way to the disk.
    let confirmed = refused - 1;
    let mut unsent = alice.session().unsent() as u64;
    while sent - unsent != confirmed {
        deadline.check(|| format!("{confirmed} of {sent} were taken, and {unsent} wait"));
        refused_for_space(&mut alice);
        unsent = alice.session().unsent() as u64;
    }
    server.wait_metric("iris_storage_full", |full| full == 1.0);
    let (status, health) = server.get("/health");
    assert!(status == 200 && health.contains("refuses new messages"), "{status} {health}");
    println!("{confirmed} of {sent} confirmed");
    assert!(confirmed > 0);
    // Crashes in this state lose nothing, and each next server knows at once:
    // one that took a few messages before it had found out would use up what
    // acknowledgements need, and in the end not start any more.
    let mut server = server;
    for _ in 0..5 {
        server = server.crash_and_restart();
        assert_eq!(server.metric("iris_storage_full"), 1.0);
        alice.reconnect(Some(server.addr())).unwrap();
        let deadline = Deadline::new();
        let refused = loop {
            deadline.check(|| "nothing is refused after the crash".to_owned());
            if let Some(refused) = refused_for_space(&mut alice) {
                break refused;
            }
        };
        assert_eq!(refused, confirmed + 1, "one was taken");
        assert_eq!(alice.session().unsent() as u64, sent - confirmed, "one was taken");
    }
    // v1 has one word for it, and forgets the message.
    let mut old = Peer::v1(server.addr(), "old");
    old.packet(&Packet::Send { target: b"friend", body: b"without room" });
    let answer = old.answer();
    assert_eq!(answer.get(), Answer::RateLimited { wait_ms: RETRY_MS });
    old.expect_quiet_v1();
    // Deliveries and acknowledgements go on, logins as well.
    let mut bob = server.v2("bob", 1);
    let take = |bob: &mut Client, numbers: std::ops::RangeInclusive<u64>| {
        for n in numbers {
            let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
            assert!(delivery.body == body(n), "message {n} is another");
            bob.ack(delivery.inbox_seq).unwrap();
        }
    };
    take(&mut bob, 1..=confirmed);
    bob.ping(1, PATIENCE).unwrap();
    let mut friend = Peer::v1(server.addr(), "friend");
    friend.expect_quiet_v1();
    // What bob has fetched needs no space any more: what was refused is taken,
    // by itself, with the disk as full as before.
    alice.wait_sent(b"bob", sent, PATIENCE).unwrap();
    take(&mut bob, confirmed + 1..=sent);
    // And the more so with space from elsewhere.
    fs::remove_file(&ballast).unwrap();
    for _ in 0..100 {
        sent += 1;
        alice.send(b"bob", &body(sent), Class::Guaranteed).unwrap();
    }
    alice.wait_sent(b"bob", sent, PATIENCE).unwrap();
    take(&mut bob, sent - 99..=sent);
    bob.ping(2, PATIENCE).unwrap();
    server.wait_metric("iris_storage_full", |full| full == 0.0);
    old.packet(&Packet::Send { target: b"friend", body: b"with room" });
    let id = friend.expect_message(b"with room");
    friend.packet(&Packet::Ack { id });
    friend.expect_quiet_v1();
    server.wait_metric("iris_inbox_messages", |waiting| waiting == 0.0);
    server.stop();
}

/// When to come back to a full disk: as often as the server tries to make a segment.
const RETRY_MS: u32 = 1_000;

/// Looks for a moment whether a message was refused because the disk is full,
/// and which.
#[track_caller]
fn refused_for_space(client: &mut Client) -> Option<u64> {
    match client.next_notice(std::time::Duration::from_millis(2)).unwrap() {
        Some(Notice::Held { code, seq, retry_after_ms, .. }) => {
            assert_eq!((code, retry_after_ms), (Code::StorageFull as u16, RETRY_MS));
            Some(seq)
        }
        Some(Notice::Gap { .. }) | None => None,
        Some(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_full_memory_disk_refuses_and_recovers() {
    if let Some(mounted) = Mounted::tmpfs("14m") {
        check_full_disk(&mounted);
    }
}

#[test]
fn a_full_real_disk_refuses_and_recovers() {
    if let Some(mounted) = Mounted::ext4(24 << 20) {
        check_full_disk(&mounted);
    }
}

/// A segment needs a descriptor, too.
#[test]
fn without_descriptors_messages_wait_as_on_a_full_disk() {
    let server = Setup::new().shards(1).start();
    let mut alice = server.v2("alice", 1);
    let mut bob = server.v2("bob", 1);
    let body = [b'x'; 20_000];
    let mut sent = 0;
    let all = server.limit(Resource::Nofile, Some(4));
    let deadline = Deadline::new();
    while refused_for_space(&mut alice).is_none() {
        sent += 1;
        alice.send(b"bob", &body, Class::Guaranteed).unwrap();
        deadline.check(|| format!("{sent} messages need no segment"));
    }
    server.wait_said("raise its `nofile` limit");
    server.limit(Resource::Nofile, all);
    alice.wait_sent(b"bob", sent, PATIENCE).unwrap();
    for _ in 0..sent {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        bob.ack(delivery.inbox_seq).unwrap();
    }
    server.stop();
}

/// Sends the same message until one is refused for want of space: how many were
/// sent, and the number of that one.
fn send_until_refused(client: &mut Client, to: &[u8], body: &[u8]) -> (u64, u64) {
    let (mut sent, deadline) = (0, Deadline::new());
    loop {
        if let Some(refused) = refused_for_space(client) {
            return (sent, refused);
        }
        sent += 1;
        client.send(to, body, Class::Guaranteed).unwrap();
        deadline.check(|| format!("{sent} messages fit a full disk"));
    }
}

/// So many strangers wait for a word each that a snapshot takes more than what
/// whole segments leave of a disk.
const STRANGERS: usize = 20_000;
/// And so much for somebody else that what dies lies mostly behind the snapshots
/// there are.
const KEPT: usize = 1_100;

fn stranger(n: usize) -> String {
    format!("stranger{n:05}")
}

#[test]
fn a_log_that_fills_the_disk_leaves_room_for_snapshots() {
    check_room_for_snapshots("48m", 1);
}

/// Also for those of a shard that does not fill it.
#[test]
fn logs_that_fill_the_disk_leave_room_for_the_snapshots_of_all() {
    check_room_for_snapshots("60m", 2);
}

/// Nothing is deleted without two snapshots, so the log must not take the space
/// of these.
#[track_caller]
fn check_room_for_snapshots(disk: &str, shards: u16) {
    let Some(mounted) = Mounted::tmpfs(disk) else { return };
    let server = Setup::in_dir(&mounted.path().join("data")).shards(shards).start();
    let mut alice = server.v2("alice", 1);
    for from in (0..STRANGERS).step_by(500) {
        for n in from..from + 500 {
            alice.send(stranger(n).as_bytes(), b"a word", Class::Guaranteed).unwrap();
        }
        for n in from..from + 500 {
            alice.wait_sent(stranger(n).as_bytes(), 1, PATIENCE).unwrap();
        }
    }
    let body = [b'x'; 20_000];
    let mut last = 0;
    for _ in 0..KEPT {
        last = alice.send(b"carol", &body, Class::Guaranteed).unwrap();
    }
    alice.wait_sent(b"carol", last, PATIENCE).unwrap();
    let deadline = Deadline::new();
    let (sent, refused) = send_until_refused(&mut alice, b"bob", &body);
    server.wait_metric("iris_storage_full", |full| full >= 1.0);
    // Less while one is being written.
    let (left, snapshot) = loop {
        let stat = rustix::fs::statvfs(mounted.path()).unwrap();
        let left = stat.f_bavail * stat.f_frsize;
        let snapshot = server.metric("iris_log_snapshot_bytes") as u64;
        if left > 2 * snapshot {
            break (left, snapshot);
        }
        deadline.pause(|| format!("{left} bytes are left, a snapshot has {snapshot}"));
    };
    assert!(snapshot > 1 << 20, "a whole segment leaves no room for one of {snapshot} bytes");
    println!("{refused} is refused, {left} bytes are left, a snapshot has {snapshot}");
    let mut bob = server.v2("bob", 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..sent {
                let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
                bob.ack(delivery.inbox_seq).unwrap();
            }
            bob.ping(1, PATIENCE).unwrap();
        });
        alice.wait_sent(b"bob", sent, PATIENCE).unwrap();
    });
    server.wait_metric("iris_storage_full", |full| full == 0.0);
    for n in [0, STRANGERS - 1] {
        let mut stranger = server.v2(&stranger(n), 1);
        assert_eq!(stranger.next_delivery(PATIENCE).unwrap().expect("a word").body, b"a word");
    }
    server.stop();
}

/// What logins and acknowledgements take of the log comes back, also where
/// nothing else does: what waits on the disk waits on, and two segments are
/// filled in turn.
#[test]
fn a_full_disk_lasts_for_as_many_logins_as_there_are() {
    const TURNS: f64 = 4.0 * (1 << 20) as f64;
    let Some(mounted) = Mounted::tmpfs("24m") else { return };
    let setup = Setup::in_dir(&mounted.path().join("data")).shards(1);
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    let (sent, refused) = send_until_refused(&mut alice, b"carol", &[b'x'; 20_000]);
    server.wait_metric("iris_storage_full", |full| full == 1.0);
    let began = server.metric("iris_log_bytes_total");
    let deadline = Deadline::new();
    let (mut logins, mut taken) = (0, 0.0);
    while taken < TURNS {
        for _ in 0..500 {
            let mut bob = Client::connect_within(server.addr(), b"bob", 1, PATIENCE).unwrap();
            bob.ping(1, PATIENCE).unwrap();
            logins += 1;
        }
        taken = server.metric("iris_log_bytes_total") - began;
        deadline.check(|| format!("{logins} logins took {taken} bytes"));
    }
    println!("{logins} logins took {taken} bytes of the log of a full disk");
    assert_eq!(server.metric("iris_storage_full"), 1.0, "nothing has made room");
    // It is not only alive: what is taken makes room.
    let mut carol = server.v2("carol", 1);
    for _ in 0..refused - 1 {
        let delivery = carol.next_delivery(PATIENCE).unwrap().expect("a message");
        carol.ack(delivery.inbox_seq).unwrap();
    }
    carol.ping(1, PATIENCE).unwrap();
    alice.wait_sent(b"carol", sent, PATIENCE).unwrap();
    server.wait_metric("iris_storage_full", |full| full == 0.0);
    server.stop();
}

/// Where others have taken what is kept as well, a login waits for a place, and is
/// told when its time is over.
#[test]
fn a_login_for_which_the_disk_has_no_block_is_told() {
    let Some(mounted) = Mounted::tmpfs("24m") else { return };
    let ballast = mounted.path().join("ballast");
    let setup = Setup::in_dir(&mounted.path().join("data")).shards(1);
    // Longer than a server waits before it tries to make a segment again.
    let server = setup.set("limits.handshake_ms", "2000").start();
    let mut alice = server.v2("alice", 1);
    let (sent, refused) = send_until_refused(&mut alice, b"carol", &[b'x'; 20_000]);
    fill(&ballast);
    let (mut logins, deadline) = (0, Deadline::new());
    loop {
        match Client::connect(server.addr(), b"bob", 1) {
            Ok(_) => logins += 1,
            Err(error) => match login_refused(&error) {
                Some(refused) if refused.code == Code::StorageFull as u16 => break,
                // Space for a moment, or late on a machine with other things to do.
                _ => println!("{error}"),
            },
        }
        // What a snapshot lets go of is anybody's.
        fill(&ballast);
        deadline.check(|| format!("{logins} logins fit a full disk"));
    }
    println!("{logins} logins fitted");
    while !is_told_with_v1(server.addr()) {
        fill(&ballast);
        deadline.check(|| "v1 always found room".to_owned());
    }
    fs::remove_file(&ballast).unwrap();
    let mut carol = Client::connect_within(server.addr(), b"carol", 1, PATIENCE).unwrap();
    for _ in 0..refused - 1 {
        let delivery = carol.next_delivery(PATIENCE).unwrap().expect("a message");
        carol.ack(delivery.inbox_seq).unwrap();
    }
    carol.ping(1, PATIENCE).unwrap();
    alice.wait_sent(b"carol", sent, PATIENCE).unwrap();
    server.stop();
}

/// Whether a login with v1 finds no room, or else takes what there was.
fn is_told_with_v1(addr: SocketAddr) -> bool {
    let mut old = Peer::connect(addr);
    old.packet(&Packet::Login { user: b"old", token: None });
    let answer = old.answer();
    let is_told = answer.get() == Answer::LoginRateLimited;
    assert!(is_told || answer.get() == Answer::LoginOk, "{answer:?}");
    if is_told {
        old.expect_closed();
    }
    is_told
}

fn login_refused(error: &std::io::Error) -> Option<LoginRefused> {
    error.get_ref()?.downcast_ref().copied()
}

/// Writes to the file until nothing more fits its disk.
fn fill(file: &Path) {
    let mut file = File::options().create(true).append(true).open(file).unwrap();
    let full = std::iter::repeat_with(|| file.write_all(&[1; 4096])).find_map(Result::err);
    assert_eq!(full.map(|it| it.kind()), Some(ErrorKind::StorageFull));
}
