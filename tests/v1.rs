//! Protocol v1 against the real process, byte for byte as existing clients
//! speak it.

mod server;

use std::time::{Duration, Instant};

use server::peer::Peer;
use server::{Deadline, Server, Setup};
use wire::id::MessageId;
use wire::limits::{NAME_BYTES_MAX, V1_BATCH_BYTES_MAX, V1_CBOR_BYTES_MAX, V1_WINDOW};
use wire::v1::{Answer, BatchEntries, LOGIN_OK, Packet, put_packet};

fn packet(packet: &Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_packet(&mut bytes, packet);
    bytes
}

fn send(target: &str, body: &[u8]) -> Vec<u8> {
    packet(&Packet::Send { target: target.as_bytes(), body })
}

fn ack(id: MessageId) -> Vec<u8> {
    packet(&Packet::Ack { id })
}

fn blob(messages: &[&[u8]]) -> Vec<u8> {
    let mut blob = Vec::new();
    for message in messages {
        blob.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
        blob.extend_from_slice(message);
    }
    blob
}

/// Expects these messages in this order and acknowledges each.
#[track_caller]
fn take_all(peer: &mut Peer, bodies: &[Vec<u8>]) {
    for body in bodies {
        let id = peer.expect_message(body);
        peer.write(&ack(id));
    }
    peer.expect_quiet_v1();
}

fn numbered(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("message {n}").into_bytes()).collect()
}

/// What waits for a user, without acknowledging it.
#[track_caller]
fn check_waiting(server: &Server, user: &str, bodies: &[&[u8]]) {
    let mut peer = Peer::v1(server.addr(), user);
    for body in bodies {
        peer.expect_message(body);
    }
    peer.expect_quiet_v1();
}

#[test]
fn a_login_is_answered_as_clients_expect() {
    let server = Server::start();
    let ok = |data: &[u8]| {
        let mut peer = Peer::connect(server.addr());
        peer.write(&[b"\x01", data].concat());
        peer.expect(b"\x03LOGIN_OK");
        peer.expect_quiet_v1();
    };
    ok(b"alice");
    ok(b"alice:secret");
    ok(b"alice:");
    ok(b"alice:a:b:c");
    ok(b"al\0ice");
    ok(&[0xff; 16]);
    // 256 bytes of login data are the most there may be.
    ok(&[b'x'; 256]);
    ok(format!("{}:{}", "u".repeat(100), "t".repeat(155)).as_bytes());

    let refused = |data: &[u8]| {
        let mut peer = Peer::connect(server.addr());
        peer.write(&[b"\x01", data].concat());
        peer.expect(b"AUTH_FAILED");
        peer.expect_closed();
    };
    refused(b"");
    refused(b":token");
    refused(&[b'x'; 257]);
    refused(&[b'x'; 3000]);
}

#[test]
fn the_name_ends_at_the_first_colon() {
    let server = Server::start();
    let mut peer = Peer::connect(server.addr());
    peer.write(b"\x01carol:token:with:colons");
    peer.expect(LOGIN_OK);
    assert_eq!(peer.status("carol"), (true, 0));
    assert_eq!(peer.status("carol:token"), (false, 0));
}

#[test]
fn a_message_has_the_bytes_of_the_original() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    // 02 | s16("bob") | s16("hi")
    alice.write(b"\x02\x00\x03bob\x00\x02hi");
    // 10 | s16(id) | s32("hi")
    bob.expect(b"\x10\x00\x10");
    let id = bob.take(16);
    bob.expect(b"\x00\x00\x00\x02hi");
    // 03 | id
    bob.write(&[b"\x03", &id[..]].concat());
    bob.expect_quiet_v1();
    drop(bob);
    check_waiting(&server, "bob", &[]);
    alice.expect_quiet_v1();
}

#[test]
fn bodies_of_every_length_arrive() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    let bodies: Vec<Vec<u8>> = [0, 1, 2, 255, 256, 4095, 4096, 4097, 16_384, 65_534, 65_535]
        .iter()
        .map(|&len| (0..len).map(|at| (at % 251) as u8).collect())
        .collect();
    bodies.iter().for_each(|body| alice.write(&send("bob", body)));
    take_all(&mut bob, &bodies);
}

#[test]
fn names_of_every_length_arrive() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    for len in [1, 2, 255, NAME_BYTES_MAX] {
        let name = "n".repeat(len);
        alice.write(&send(&name, name.as_bytes()));
        alice.expect_quiet_v1();
        let mut peer = Peer::v1(server.addr(), &name);
        peer.expect_message(name.as_bytes());
    }
}

#[test]
fn a_message_to_oneself_arrives() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    alice.write(&send("alice", b"note"));
    let id = alice.expect_message(b"note");
    alice.write(&ack(id));
    alice.expect_quiet_v1();
}

#[test]
fn every_kind_of_message_arrives() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    alice.write(&send("bob", b"plain"));
    alice.packet(&Packet::SendSeq { target: b"bob", seq: 1, body: b"numbered" });
    alice.packet(&Packet::Cbor { target: b"bob", map: b"\xa1\x41a\x41b" });
    alice.packet(&Packet::Encrypted { target: b"bob", header: b"\xa0", ciphertext: b"dark" });
    let batch = blob(&[b"one", b"", b"three"]);
    alice.packet(&Packet::Batch { target: b"bob", entries: BatchEntries::new(&batch) });
    bob.expect_message(b"plain");
    bob.expect_message(b"numbered");
    bob.expect_message(b"\xa1\x41a\x41b");
    // 24 | s16(sender) | s16(header) | s32(ciphertext)
    bob.expect_message(b"\x24\x00\x05alice\x00\x01\xa0\x00\x00\x00\x04dark");
    bob.expect_message(b"one");
    bob.expect_message(b"");
    bob.expect_message(b"three");
    bob.expect_quiet_v1();
    alice.expect_quiet_v1();
}

#[test]
fn the_largest_of_each_kind_arrives() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    let map = vec![0xa0; V1_CBOR_BYTES_MAX];
    alice.packet(&Packet::Cbor { target: b"bob", map: &map });
    bob.expect_message(&map);
    let (header, ciphertext) = (vec![1; 1024], vec![2; 65_536]);
    alice.packet(&Packet::Encrypted { target: b"bob", header: &header, ciphertext: &ciphertext });
    let (_, body) = bob.delivery();
    assert_eq!(body.len(), 1 + 2 + 5 + 2 + 1024 + 4 + 65_536);
    // A full batch: 1000 entries in exactly 1 MiB.
    let mut entries = vec![vec![b'e'; V1_BATCH_BYTES_MAX / 1000 - 2]; 1000];
    let rest = V1_BATCH_BYTES_MAX - entries.iter().map(|entry| entry.len() + 2).sum::<usize>();
    entries[999].extend(vec![b'l'; rest]);
    let slices: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
    let batch = blob(&slices);
    assert_eq!(batch.len(), V1_BATCH_BYTES_MAX);
    alice.packet(&Packet::Batch { target: b"bob", entries: BatchEntries::new(&batch) });
    // The two before were never acknowledged and take two of the window.
    let (mut window, mut taken) = (Vec::new(), 0);
    while taken < entries.len() {
        let (id, body) = bob.delivery();
        assert!(body == entries[taken], "entry {taken} is another");
        taken += 1;
        window.push(id);
        if window.len() == 100 {
            bob.write(&window.drain(..).flat_map(ack).collect::<Vec<u8>>());
        }
    }
    bob.expect_quiet_v1();
}

/// The only word that v1 has for it: not accepted, wait. Once for what is
/// refused in a row, and also when the inbox is another core's.
#[test]
fn a_refusal_is_told() {
    for shards in [1, 4] {
        let setup = Setup::new().shards(shards).set("limits.inbox_messages_max", "2");
        let server = setup.start();
        let mut alice = Peer::v1(server.addr(), "alice");
        for target in ["bob", "carol", "dave", "erin"] {
            alice.write(&send(target, b"first"));
            alice.write(&send(target, b"second"));
            alice.expect_quiet_v1();
            alice.write(&send(target, b"too much"));
            expect_wait(&mut alice);
            let entries = BatchEntries::new(b"\0\x01a\0\x01b\0\x01c");
            alice.packet(&Packet::Batch { target: target.as_bytes(), entries });
            expect_wait(&mut alice);
            alice.expect_quiet_v1();
            check_waiting(&server, target, &[b"first", b"second"]);
        }
        server.stop();
    }
}

#[track_caller]
fn expect_wait(peer: &mut Peer) {
    let answer = peer.answer();
    assert!(matches!(answer.get(), Answer::RateLimited { wait_ms: 1.. }), "{answer:?}");
}

#[test]
fn a_batch_ends_where_an_entry_is_cut_off_and_after_a_thousand() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    let mut cut = blob(&[b"whole", b"also whole"]);
    cut.extend_from_slice(b"\x00\x09cut");
    alice.packet(&Packet::Batch { target: b"bob", entries: BatchEntries::new(&cut) });
    alice.packet(&Packet::Batch { target: b"bob", entries: BatchEntries::new(b"") });
    take_all(&mut bob, &[b"whole".to_vec(), b"also whole".to_vec()]);
    let many = numbered(1005);
    let slices: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let batch = blob(&slices);
    alice.packet(&Packet::Batch { target: b"bob", entries: BatchEntries::new(&batch) });
    alice.write(&send("bob", b"after"));
    let mut expected = many[..1000].to_vec();
    expected.push(b"after".to_vec());
    take_all(&mut bob, &expected);
}

fn send_numbered(peer: &mut Peer, target: &str, seqs: &[u64]) {
    for &seq in seqs {
        let body = format!("number {seq}");
        let (target, body) = (target.as_bytes(), body.as_bytes());
        peer.packet(&Packet::SendSeq { target, seq, body });
    }
}

#[track_caller]
fn expect_numbered(peer: &mut Peer, seqs: &[u64]) {
    for seq in seqs {
        peer.expect_message(format!("number {seq}").as_bytes());
    }
}

#[track_caller]
fn expect_too_late(peer: &mut Peer) {
    let answer = peer.answer();
    assert!(matches!(answer.get(), Answer::Error { text: b"out_of_order" }), "{answer:?}");
}

/// Each number once, in the order of the numbers, over lost connections and a
/// crash; one that was passed over is told to be too late, whichever core the
/// recipient is on.
#[test]
fn numbered_sends_are_stored_once_and_in_order() {
    for shards in [1, 3] {
        let server = Setup::new().shards(shards).start();
        let mut bob = Peer::v1(server.addr(), "bob");
        let mut alice = Peer::v1(server.addr(), "alice");
        // What has been delivered is stored: v1 has no other word for it.
        send_numbered(&mut alice, "bob", &[1, 2, 2, 1, 4, 3, 4]);
        expect_numbered(&mut bob, &[1, 2, 4]);
        expect_too_late(&mut alice);
        // Repeated by a client that lost its connection and is not sure.
        drop(alice);
        let mut alice = Peer::v1(server.addr(), "alice");
        send_numbered(&mut alice, "bob", &[2, 4, 5]);
        expect_numbered(&mut bob, &[5]);
        let server = server.crash_and_restart();
        let mut bob = Peer::v1(server.addr(), "bob");
        expect_numbered(&mut bob, &[1, 2, 4, 5]);
        let mut alice = Peer::v1(server.addr(), "alice");
        send_numbered(&mut alice, "bob", &[5, 4, 3, 6]);
        expect_numbered(&mut bob, &[6]);
        expect_too_late(&mut alice);
        alice.expect_quiet_v1();
        // Another sender has numbers of its own.
        let mut carol = Peer::v1(server.addr(), "carol");
        carol.packet(&Packet::SendSeq { target: b"bob", seq: 1, body: b"from carol" });
        bob.expect_message(b"from carol");
        bob.expect_quiet_v1();
        server.stop();
    }
}

/// What is sent behind a refused number does not overtake it: a client that
/// waits as it is told and goes on from there has lost nothing.
#[test]
fn numbered_sends_do_not_overtake_one_that_was_refused() {
    for shards in [1, 4] {
        let server = Setup::new().shards(shards).set("limits.inbox_messages_max", "2").start();
        let mut alice = Peer::v1(server.addr(), "alice");
        for target in ["bob", "carol", "dave", "erin"] {
            let began = Instant::now();
            send_numbered(&mut alice, target, &[1, 2, 3]);
            expect_wait(&mut alice);
            let mut reader = Peer::v1(server.addr(), target);
            for seq in [1, 2] {
                let id = reader.expect_message(format!("number {seq}").as_bytes());
                reader.packet(&Packet::Ack { id });
            }
            reader.expect_quiet_v1();
            // There is room again, and 3 is still to come; on a machine so slow
            // that the time is over it has been given up.
            send_numbered(&mut alice, target, &[4, 3, 4]);
            let answer = alice.answer();
            match answer.get() {
                Answer::RateLimited { wait_ms: 1.. } => expect_numbered(&mut reader, &[3, 4]),
                Answer::Error { text: b"out_of_order" } => {
                    assert!(began.elapsed() >= Duration::from_secs(1), "4 overtook 3");
                    expect_numbered(&mut reader, &[4]);
                }
                other => panic!("{other:?}"),
            }
            reader.expect_quiet_v1();
            alice.expect_quiet_v1();
        }
        server.stop();
    }
}

#[test]
fn what_is_not_built_is_answered() {
    let server = Server::start();
    let mut peer = Peer::connect(server.addr());
    let keys = |peer: &mut Peer| {
        let answer = peer.answer();
        match answer.get() {
            Answer::Prekeys { map } => map.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    // Before the login keys are refused in this way.
    peer.packet(&Packet::FetchPrekeys { user: b"bob" });
    peer.expect(b"\x22\x00\x00\x00\x00");
    peer.write(b"\x01alice");
    peer.expect(LOGIN_OK);
    peer.packet(&Packet::UploadPrekeys { map: b"\xa0" });
    assert_eq!(keys(&mut peer), b"\xa2\x46status\x45error\x46reason\x4bunsupported");
    peer.packet(&Packet::FetchPrekeys { user: b"bob" });
    assert_eq!(keys(&mut peer), b"\xa1\x46status\x49not_found");
    peer.packet(&Packet::GroupCreate { name: b"friends" });
    peer.expect(b"\xfe\x00\x0bunsupported");
    for packet in [
        Packet::GroupLeave { group: b"g" },
        Packet::GroupMessage { group: b"g", header: b"\xa0", ciphertext: b"c" },
        Packet::GroupRoster { group: b"g" },
        Packet::SenderKey { group: b"g", data: b"k" },
    ] {
        peer.packet(&packet);
        peer.expect(b"\xfe\x00\x0fgroup_not_found");
    }
    // Read and dropped.
    peer.packet(&Packet::Typing { target: b"bob", on: true });
    peer.packet(&Packet::Typing { target: b"bob", on: false });
    peer.packet(&Packet::Read { id: b"0123456789abcdef", sender: b"bob" });
    peer.expect_quiet_v1();
}

#[test]
fn before_the_login_only_status_is_answered() {
    let server = Server::start();
    let mut peer = Peer::connect(server.addr());
    peer.write(&send("bob", b"lost"));
    peer.write(&ack(MessageId([7; 16])));
    peer.packet(&Packet::GroupCreate { name: b"g" });
    assert_eq!(peer.status("bob"), (false, 0));
    let mut bob = Peer::v1(server.addr(), "bob");
    assert_eq!(peer.status("bob"), (true, 0));
    bob.expect_quiet_v1();
    // And the login still works.
    peer.write(b"\x01alice");
    peer.expect(LOGIN_OK);
    peer.write(&send("bob", b"arrives"));
    bob.expect_message(b"arrives");
}

#[test]
fn the_status_has_the_bytes_of_the_original() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    alice.write(b"\x05\x00\x05alice");
    alice.expect(b"\x06\x00\x05alice\x01\x00\x00\x00\x00\x00\x00\x00\x00");
    alice.write(b"\x05\x00\x05never");
    alice.expect(b"\x06\x00\x05never\x00\x00\x00\x00\x00\x00\x00\x00\x00");
    alice.write(b"\x05\x00\x00");
    alice.expect(b"\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
}

#[test]
fn last_seen_survives_a_restart() {
    let server = Server::start();
    let before = unix_seconds();
    let mut alice = Peer::v1(server.addr(), "alice");
    drop(Peer::v1(server.addr(), "bob"));
    let seen = wait_offline(&mut alice, "bob");
    assert!((before..=unix_seconds()).contains(&seen), "{seen}");
    let server = server.stop().start();
    let mut alice = Peer::v1(server.addr(), "alice");
    assert_eq!(alice.status("bob"), (false, seen));
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Asks until the end of a connection has reached the shard.
#[track_caller]
fn wait_offline(peer: &mut Peer, user: &str) -> u64 {
    let deadline = Deadline::new();
    loop {
        let (online, seen) = peer.status(user);
        if !online {
            return seen;
        }
        deadline.check(|| format!("{user} stays online"));
    }
}

#[test]
fn packets_may_come_byte_by_byte() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    let batch = blob(&[b"b1", b"b2"]);
    let mut stream = send("bob", b"s");
    put_packet(&mut stream, &Packet::SendSeq { target: b"bob", seq: 9, body: b"n" });
    put_packet(&mut stream, &Packet::Batch { target: b"bob", entries: BatchEntries::new(&batch) });
    put_packet(&mut stream, &Packet::Cbor { target: b"bob", map: b"\xa0" });
    put_packet(&mut stream, &Packet::Typing { target: b"bob", on: true });
    put_packet(&mut stream, &Packet::Encrypted { target: b"bob", header: b"h", ciphertext: b"c" });
    stream.extend_from_slice(&send("bob", b"end"));
    alice.drip(&stream);
    for body in [&b"s"[..], b"n", b"b1", b"b2", b"\xa0"] {
        let id = bob.expect_message(body);
        bob.drip(&ack(id));
    }
    bob.expect_message(b"\x24\x00\x05alice\x00\x01h\x00\x00\x00\x01c");
    bob.expect_message(b"end");
}

#[test]
fn packets_may_be_split_anywhere() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let batch = blob(&[b"b1", b"b2"]);
    let mut stream = send("bob", b"first");
    put_packet(&mut stream, &Packet::Batch { target: b"bob", entries: BatchEntries::new(&batch) });
    put_packet(&mut stream, &Packet::GetStatus { user: b"bob" });
    stream.extend_from_slice(&send("bob", b"last"));
    let mut alice = Peer::v1(server.addr(), "alice");
    for cut in 1..stream.len() {
        alice.write(&stream[..cut]);
        alice.write(&stream[cut..]);
        let answer = alice.answer();
        assert!(matches!(answer.get(), Answer::Status { online: true, .. }), "cut at {cut}");
        take_all(&mut bob, &["first", "b1", "b2", "last"].map(Vec::from));
    }
}

#[test]
fn thousands_of_packets_in_one_write_are_kept_in_order() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    let bodies = numbered(5000);
    let stream: Vec<u8> = bodies.iter().flat_map(|body| send("bob", body)).collect();
    alice.write(&stream);
    let mut bob = Peer::v1(server.addr(), "bob");
    take_all(&mut bob, &bodies);
}

#[test]
fn acks_in_one_read_all_count() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    let bodies = numbered(100);
    bodies.iter().for_each(|body| alice.write(&send("bob", body)));
    let mut bob = Peer::v1(server.addr(), "bob");
    let ids: Vec<MessageId> = bodies.iter().map(|body| bob.expect_message(body)).collect();
    // A run of ACKs with other packets between and behind them, in one write.
    let mut run: Vec<u8> = ids[..50].iter().copied().flat_map(ack).collect();
    run.extend(send("alice", b"between"));
    run.extend(ids[50..].iter().copied().flat_map(ack));
    run.extend(packet(&Packet::GetStatus { user: b"alice" }));
    bob.write(&run);
    let answer = bob.answer();
    assert!(matches!(answer.get(), Answer::Status { online: true, .. }));
    alice.expect_message(b"between");
    drop(bob);
    check_waiting(&server, "bob", &[]);
}

#[test]
fn an_ack_may_be_split_between_reads() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    alice.write(&send("bob", b"one"));
    alice.write(&send("bob", b"two"));
    let mut bob = Peer::v1(server.addr(), "bob");
    let run: Vec<u8> = [bob.expect_message(b"one"), bob.expect_message(b"two")]
        .into_iter()
        .flat_map(ack)
        .collect();
    bob.write(&run[..20]);
    bob.write(&run[20..]);
    bob.expect_quiet_v1();
    drop(bob);
    check_waiting(&server, "bob", &[]);
}

#[test]
fn unknown_acks_are_ignored() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    alice.write(&send("bob", b"stays"));
    let mut bob = Peer::v1(server.addr(), "bob");
    let id = bob.expect_message(b"stays");
    bob.write(&ack(MessageId([0; 16])));
    bob.write(&ack(MessageId([0xff; 16])));
    // Somebody else's id, from somebody else.
    alice.write(&ack(id));
    alice.expect_quiet_v1();
    bob.expect_quiet_v1();
    drop(bob);
    check_waiting(&server, "bob", &[b"stays"]);
}

#[test]
fn what_is_not_acknowledged_comes_again_in_order() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    let bodies = numbered(10);
    bodies.iter().for_each(|body| alice.write(&send("bob", body)));
    let mut bob = Peer::v1(server.addr(), "bob");
    let ids: Vec<MessageId> = bodies.iter().map(|body| bob.expect_message(body)).collect();
    // Not in order, with holes.
    for at in [7, 0, 2, 3] {
        bob.write(&ack(ids[at]));
    }
    bob.expect_quiet_v1();
    drop(bob);
    let left = [1, 4, 5, 6, 8, 9];
    let mut bob = Peer::v1(server.addr(), "bob");
    for at in left {
        assert_eq!(bob.expect_message(&bodies[at]), ids[at], "the id stays");
    }
    bob.expect_quiet_v1();
    drop(bob);
    let server = server.stop().start();
    let mut bob = Peer::v1(server.addr(), "bob");
    for at in left {
        assert_eq!(bob.expect_message(&bodies[at]), ids[at], "after a restart, too");
        bob.write(&ack(ids[at]));
    }
    bob.expect_quiet_v1();
    drop(bob);
    let server = server.stop().start();
    check_waiting(&server, "bob", &[]);
}

#[test]
fn more_than_a_window_waits_and_acks_open_it() {
    let server = Server::start();
    let window = V1_WINDOW as usize;
    let mut alice = Peer::v1(server.addr(), "alice");
    let bodies = numbered(3 * window + 10);
    bodies.iter().for_each(|body| alice.write(&send("bob", body)));
    alice.expect_quiet_v1();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut ids: Vec<MessageId> =
        bodies[..window].iter().map(|body| bob.expect_message(body)).collect();
    bob.expect_quiet_v1();
    // One ACK makes room for one.
    bob.write(&ack(ids[17]));
    ids.push(bob.expect_message(&bodies[window]));
    bob.expect_quiet_v1();
    // All the rest at once makes room for a window.
    let rest: Vec<u8> =
        ids.iter().enumerate().filter(|(at, _)| *at != 17).flat_map(|(_, id)| ack(*id)).collect();
    bob.write(&rest);
    take_all(&mut bob, &bodies[window + 1..]);
    drop(bob);
    check_waiting(&server, "bob", &[]);
}

#[test]
fn who_never_acknowledges_gets_a_window_each_time() {
    let server = Server::start();
    let window = V1_WINDOW as usize;
    let mut alice = Peer::v1(server.addr(), "alice");
    let bodies = numbered(window + 50);
    bodies.iter().for_each(|body| alice.write(&send("bob", body)));
    alice.expect_quiet_v1();
    for _ in 0..3 {
        let mut bob = Peer::v1(server.addr(), "bob");
        bodies[..window].iter().for_each(|body| assert_ne!(bob.expect_message(body).ms(), 0));
        bob.expect_quiet_v1();
    }
}

/// Sends something bad and waits until it has been read: what arrives together
/// with it is dropped. It is in one segment with a question, whose answer is
/// sent when all of it has been looked at.
#[track_caller]
fn misbehave(peer: &mut Peer, bad: &[u8]) {
    let question = packet(&Packet::GetStatus { user: b"nobody" });
    peer.write(&[&question[..], bad].concat());
    let answer = peer.answer();
    assert!(matches!(answer.get(), Answer::Status { .. }), "{answer:?}");
}

#[test]
fn bad_packets_do_not_end_the_connection() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    let too_long_name = packet(&Packet::Send { target: &[b'n'; 257], body: b"" });
    let bad: [&[u8]; 9] = [
        b"\x00",
        b"\x7fgarbage behind an unknown opcode",
        b"\xff\xff\xff\xff",
        &too_long_name[..3],
        b"\x04\x00\x03bob\x00\x10\x00\x01",
        b"\x10\x00\x03bob\x00\x04\x00\x01",
        b"\x20\x00\x00\x20\x01",
        b"\x23\x00\x03bob\x04\x01",
        b"\x74\x00\x41",
    ];
    for bytes in bad {
        misbehave(&mut alice, bytes);
        alice.write(&send("bob", b"still here"));
        bob.expect_message(b"still here");
    }
    alice.expect_quiet_v1();
}

#[test]
fn bad_packets_in_a_row_end_the_connection() {
    let server = Server::start();
    let mut patient = Peer::v1(server.addr(), "patient");
    for _ in 0..40 {
        // A good packet between two bad ones takes the count back.
        misbehave(&mut patient, b"\x00");
    }
    let mut bad = Peer::v1(server.addr(), "bad");
    // Bytes that are read together are dropped together and count once.
    let deadline = Deadline::new();
    while bad.try_write(b"\x00") && !bad.has_ended() {
        deadline.check(|| "bad packets do not end the connection".to_owned());
    }
    bad.expect_closed();
    wait_offline(&mut patient, "bad");
}

#[test]
fn the_newest_login_takes_over() {
    let server = Server::start();
    let mut alice = Peer::v1(server.addr(), "alice");
    let mut old = Peer::v1(server.addr(), "bob");
    alice.write(&send("bob", b"first"));
    let id = old.expect_message(b"first");
    let mut new = Peer::v1(server.addr(), "bob");
    // Not acknowledged on the older connection, so it comes here.
    assert_eq!(new.expect_message(b"first"), id);
    alice.write(&send("bob", b"second"));
    new.expect_message(b"second");
    // The older one stays open and gets nothing; its ACK counts for nothing.
    old.write(&ack(id));
    old.expect_quiet_v1();
    assert_eq!(alice.status("bob"), (true, 0));
    // Its end does not mark the user offline.
    old.finish_writing();
    old.expect_closed();
    assert_eq!(alice.status("bob"), (true, 0));
    alice.write(&send("bob", b"third"));
    new.expect_message(b"third");
    drop(new);
    wait_offline(&mut alice, "bob");
    check_waiting(&server, "bob", &[b"first", b"second", b"third"]);
}

#[test]
fn a_connection_may_log_in_again_as_somebody_else() {
    let server = Setup::new().shards(3).start();
    let mut alice = Peer::v1(server.addr(), "alice");
    let mut peer = Peer::v1(server.addr(), "user-0");
    for n in 1..10 {
        let (before, name) = (format!("user-{}", n - 1), format!("user-{n}"));
        peer.write(&[b"\x01", name.as_bytes()].concat());
        peer.expect(LOGIN_OK);
        assert_eq!(alice.status(&name), (true, 0));
        assert!(!alice.status(&before).0, "{before} is gone");
        alice.write(&send(&name, b"hello again"));
        peer.expect_message(b"hello again");
    }
}

#[test]
fn half_a_packet_at_the_end_is_dropped() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    let mut alice = Peer::v1(server.addr(), "alice");
    alice.write(&send("bob", b"whole"));
    let cut = send("bob", b"cut off");
    alice.write(&cut[..cut.len() - 1]);
    drop(alice);
    bob.expect_message(b"whole");
    wait_offline(&mut bob, "alice");
    bob.expect_quiet_v1();
}

#[test]
fn what_was_sent_before_leaving_arrives() {
    let server = Server::start();
    let mut bob = Peer::v1(server.addr(), "bob");
    for round in 0..50 {
        let body = format!("fire and forget {round}");
        let mut alice = Peer::v1(server.addr(), "alice");
        alice.write(&send("bob", body.as_bytes()));
        drop(alice);
        let id = bob.expect_message(body.as_bytes());
        bob.write(&ack(id));
    }
}
