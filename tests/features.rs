//! The same server with the ways of older kernels and other disks, and with
//! connections in the rings' own tables: everything works as with the newest.
//!
//! `scripts/test --ways` runs all the other tests under each of them, too.

mod server;

use server::peer::{Peer, hello, send};
use server::skipped::skipped;
use server::{PATIENCE, Server, Setup};
use tuning::without::{ALL, NAMES};
use wire::id::Class;
use wire::v1::Packet;
use wire::v2::{self, Reply, Request};

/// A little of everything, across three shards and a crash.
fn check_all(setup: Setup, what: &str) {
    let server = setup.start();
    talk_v2(&server, what);
    talk_v1(&server, what);
    come_and_go(&server, what);
    large_bodies(&server, what);
    let mut sender = server.v2("sender", 1);
    for n in 0..100_u8 {
        sender.send(b"later", &[n], Class::Guaranteed).unwrap();
    }
    sender.wait_sent(b"later", 100, PATIENCE).unwrap();
    let server = server.crash_and_restart();
    let mut later = server.v2("later", 1);
    for n in 0..100_u8 {
        let delivery = later.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.body, [n], "{what}");
        later.ack(delivery.inbox_seq).unwrap();
    }
    drop(later);
    server.wait_metric("iris_connections", |conns| conns == 0.0);
    // Clients are gone, so nothing holds up the stop.
    server.stop();
}

fn talk_v2(server: &Server, what: &str) {
    // Enough users that connections move between all cores.
    let mut peers: Vec<Peer> = (0..8)
        .map(|n| {
            let name = format!("user-{n}");
            let mut stream = v2::PREFACE.to_vec();
            v2::put_request(&mut stream, &Request::Hello(hello(&name, 1)));
            v2::put_request(&mut stream, &Request::Send(send("sink", 1, b"behind the login")));
            let mut peer = Peer::connect(server.addr());
            peer.write(&stream);
            assert!(matches!(peer.reply().get(), Reply::Welcome(_)), "{what}");
            peer.expect_sent(1);
            peer
        })
        .collect();
    for peer in &mut peers {
        for n in 0..8 {
            peer.send_v2(&format!("user-{n}"), 1, b"hello");
        }
    }
    for peer in &mut peers {
        let (mut sent, mut got) = (0, 0);
        while sent < 8 || got < 8 {
            let reply = peer.reply();
            match reply.get() {
                Reply::Sent { seq: 1, .. } => sent += 1,
                Reply::Deliver(deliver) => {
                    assert_eq!(deliver.body, b"hello", "{what}");
                    got += 1;
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        peer.request(&Request::Ack { seq: 8 });
        peer.expect_quiet_v2(3);
    }
}

fn talk_v1(server: &Server, what: &str) {
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    for n in 0..300 {
        let body = format!("{what} {n}");
        alice.packet(&Packet::Send { target: b"bob", body: body.as_bytes() });
    }
    for n in 0..300 {
        let id = bob.expect_message(format!("{what} {n}").as_bytes());
        bob.packet(&Packet::Ack { id });
    }
    alice.drip(b"\x02\x00\x03bob\x00\x04drip");
    bob.expect_message(b"drip");
    assert_eq!(bob.status("alice"), (true, 0), "{what}");
}

/// Ends of all kinds: nobody stays behind.
fn come_and_go(server: &Server, what: &str) {
    for n in 0..60 {
        let mut peer = Peer::v1(server.addr(), &format!("guest-{n}"));
        match n % 3 {
            0 => {}
            // Bytes and the end right behind them.
            1 => peer.write(b"\x02\x00\x03bob\x00\x02hi"),
            _ => peer.write(b"\x02\x00\x03bob\x00\x02h"),
        }
    }
    server.wait_metric("iris_connections", |conns| conns == 0.0);
    let mut peer = Peer::connect(server.addr());
    for n in 0..60 {
        assert!(!peer.status(&format!("guest-{n}")).0, "{what}: guest {n} is still there");
    }
}

/// Frames of many receives and many sends, both ways at once.
fn large_bodies(server: &Server, what: &str) {
    let mut sender = server.v2("large-a", 1);
    let mut receiver = server.v2("large-b", 1);
    let body: Vec<u8> = (0..65_536_u32).map(|at| (at % 253) as u8).collect();
    for _ in 0..40 {
        sender.send(b"large-b", &body, Class::Guaranteed).unwrap();
    }
    for _ in 0..40 {
        let delivery = receiver.next_delivery(PATIENCE).unwrap().expect("a message");
        assert!(delivery.body == body, "{what}");
        receiver.ack(delivery.inbox_seq).unwrap();
    }
    sender.wait_sent(b"large-b", 40, PATIENCE).unwrap();
}

fn direct(setup: Setup, when: &str) -> Setup {
    setup.argument("--direct-descriptors").argument(when)
}

fn without(names: &[&str]) -> Setup {
    direct(Setup::new().shards(3), "auto").set("debug.without", &names.join(","))
}

#[test]
fn with_everything() {
    check_all(without(&[]), "everything");
}

#[test]
fn without_each_one() {
    for (name, _) in NAMES {
        check_all(without(&[name]), &format!("without {name}"));
    }
}

#[test]
fn without_any() {
    check_all(without(&[ALL]), "without any");
}

#[test]
fn with_direct_descriptors() {
    let setup = direct(Setup::new().shards(3).set("debug.without", ""), "on");
    match setup.try_start() {
        Ok(server) => drop(server),
        Err(ended) if ended.code == Some(5) => {
            return skipped(format!("not on this kernel: {}", ended.stderr));
        }
        Err(ended) => panic!("{ended:?}"),
    }
    check_all(setup, "direct");
    for feature in ["ext_arg", "multishot_poll", "coop_taskrun", "single_issuer", "defer_taskrun"] {
        let setup = Setup::new().shards(3).set("debug.without", feature);
        check_all(direct(setup, "on"), &format!("direct, without {feature}"));
    }
}

/// What direct descriptors need and an older kernel lacks is said, not guessed.
#[test]
fn direct_descriptors_need_their_features() {
    for feature in ["sparse_files", "msg_ring_fd"] {
        let setup = direct(Setup::new().shards(3).set("debug.without", feature), "on");
        setup.check_refused(5, &["direct_descriptors = \"on\"", "auto"]);
    }
}

/// What was given up by hand is said in the boot's log, so that nobody looks
/// for a slow server's reason elsewhere.
#[test]
fn what_is_done_without_is_said() {
    let server = without(&["multishot_poll", "o_direct"]).start();
    server.wait_said("debug.without: multishot_poll, o_direct not used");
    server.stop();
    without(&["warp_drive"]).check_refused(2, &["'warp_drive'", "multishot_poll", "o_direct"]);
}
