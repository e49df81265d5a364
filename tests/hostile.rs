//! Bad clients against the real process: whatever they do, the server lives,
//! its memory stays bounded, and the others are served.

mod server;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use client::blocking::Client;
use server::peer::{Peer, hello, send};
use server::skipped::skipped;
use server::vanish::vanish;
use server::{Deadline, PATIENCE, Server, Setup};
use wire::refuse::Code;
use wire::v1::{self, BatchEntries, Packet};
use wire::v2::{self, Hello, Reply, Request};

const MIB: u64 = 1 << 20;

/// Two that talk while others misbehave.
struct Witness {
    from: Client,
    to: Client,
    said: u64,
}

impl Witness {
    fn new(server: &Server) -> Witness {
        Witness { from: server.v2("witness-a", 1), to: server.v2("witness-b", 1), said: 0 }
    }

    /// A message goes through, confirmed and delivered.
    #[track_caller]
    fn check(&mut self) {
        self.said += 1;
        let body = self.said.to_be_bytes();
        self.from.send_and_wait(b"witness-b", &body, PATIENCE).expect("it is stored");
        let delivery = self.to.next_delivery(PATIENCE).expect("served").expect("in time");
        assert_eq!(delivery.body, body);
        self.to.ack(delivery.inbox_seq).expect("served");
    }
}

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Good packets of v1, one after the other.
fn good_v1() -> Vec<u8> {
    let mut stream = Vec::new();
    let batch = b"\x00\x02b1\x00\x02b2";
    for packet in [
        Packet::Send { target: b"victim", body: b"hello" },
        Packet::SendSeq { target: b"victim", seq: 3, body: b"numbered" },
        Packet::Batch { target: b"victim", entries: BatchEntries::new(batch) },
        Packet::Cbor { target: b"victim", map: b"\xa1\x41a\x41b" },
        Packet::GetStatus { user: b"victim" },
        Packet::Encrypted { target: b"victim", header: b"\xa0", ciphertext: b"c" },
        Packet::GroupCreate { name: b"group" },
    ] {
        v1::put_packet(&mut stream, &packet);
    }
    stream
}

/// Good frames of v2, login included.
fn good_v2(user: &str) -> Vec<u8> {
    let mut stream = v2::PREFACE.to_vec();
    v2::put_request(&mut stream, &Request::Hello(hello(user, 1)));
    for seq in 1..=5 {
        v2::put_request(&mut stream, &Request::Send(send("victim", seq, b"hello")));
    }
    v2::put_request(&mut stream, &Request::Ack { seq: 1 });
    v2::put_request(&mut stream, &Request::Credit { window: 9 });
    v2::put_request(&mut stream, &Request::Ping { nonce: 1 });
    stream
}

/// Whoever was here is gone; nothing of them is left.
#[track_caller]
fn check_only_left(server: &Server, connections: f64) {
    server.wait_metric("iris_connections", |now| now == connections);
    server.wait_metric("iris_partial_bytes", |now| now == 0.0);
}

#[test]
fn garbage_hurts_nobody() {
    let server = Setup::new().shards(3).start();
    let mut witness = Witness::new(&server);
    let seed = 20_241_121;
    let mut random = Random(seed);
    for round in 0..150 {
        let garbage = match round % 5 {
            0 => {
                let length = 1 + random.below(20_000);
                random.bytes(length)
            }
            // Behind a good beginning.
            1 => [&b"\x01garbage"[..], &random.bytes(5_000)].concat(),
            2 => [&v2::PREFACE[..], &random.bytes(5_000)].concat(),
            // Good bytes with a few wrong ones.
            3 => damaged(good_v1(), &mut random),
            _ => damaged(good_v2("garbler"), &mut random),
        };
        let mut peer = if round % 5 == 3 {
            Peer::v1(server.addr(), "garbler")
        } else {
            Peer::connect(server.addr())
        };
        // The server may close before all is written.
        let _ = peer.try_write(&garbage);
        if round % 2 == 0 {
            // Until it has looked at all of it and answered what there was.
            peer.finish_writing();
            peer.read_to_end();
        }
        if round % 10 == 0 {
            witness.check();
        }
    }
    witness.check();
    check_only_left(&server, 2.0);
}

fn damaged(mut stream: Vec<u8>, random: &mut Random) -> Vec<u8> {
    for _ in 0..1 + random.below(4) {
        let at = random.below(stream.len());
        stream[at] = random.next() as u8;
    }
    stream
}

#[test]
fn streams_cut_at_every_byte_leave_nothing_behind() {
    let server = Setup::new().shards(2).start();
    let mut witness = Witness::new(&server);
    let stream = good_v2("cutter");
    for cut in 0..stream.len() {
        let mut peer = Peer::connect(server.addr());
        peer.write(&stream[..cut]);
    }
    let stream = good_v1();
    for cut in 0..stream.len() {
        let mut peer = Peer::v1(server.addr(), "cutter");
        peer.write(&stream[..cut]);
    }
    witness.check();
    check_only_left(&server, 2.0);
    // The last login of each was that of nobody who is still here.
    let mut peer = Peer::connect(server.addr());
    assert!(!peer.status("cutter").0);
}

#[test]
fn many_that_drip_are_served_side_by_side() {
    const PEERS: usize = 60;
    let server = Setup::new().shards(2).start();
    let mut witness = Witness::new(&server);
    let mut drippers: Vec<(Peer, Vec<u8>)> = (0..PEERS)
        .map(|n| {
            let stream = good_v2(&format!("dripper-{n}"));
            (Peer::connect(server.addr()), stream)
        })
        .collect();
    let longest = drippers.iter().map(|(_, stream)| stream.len()).max().unwrap();
    for at in 0..longest {
        for (peer, stream) in &mut drippers {
            peer.write(stream.get(at..at + 1).unwrap_or_default());
        }
        if at % 100 == 0 {
            witness.check();
        }
    }
    for (peer, _) in &mut drippers {
        assert!(matches!(peer.reply().get(), Reply::Welcome(_)));
        // Five SENT, perhaps together, and the PONG.
        let (mut settled, mut pong) = (0, false);
        while settled < 5 || !pong {
            let reply = peer.reply();
            match reply.get() {
                Reply::Sent { seq, .. } => settled = seq,
                Reply::Pong { nonce: 1 } => pong = true,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Thousands of messages for somebody who never reads: they wait on disk.
#[test]
fn who_never_reads_costs_no_memory() {
    const COUNT: u64 = 8_000;
    let server = Setup::new().shards(2).start();
    let mut witness = Witness::new(&server);
    let _deaf = Peer::v1(server.addr(), "deaf");
    let greedy = Hello { credit: u32::MAX, ..hello("deaf", 7) };
    let _greedy = Peer::v2(server.addr(), &greedy);
    let mut sender = server.v2("sender", 1);
    let body = vec![b'x'; 4_000];
    let before = server.resident_bytes();
    for n in 1..=COUNT {
        let seq = sender.send(b"deaf", &body, wire::id::Class::Guaranteed).unwrap();
        if n % 200 == 0 {
            sender.wait_sent(b"deaf", seq, PATIENCE).unwrap();
        }
        if n % 1_000 == 0 {
            witness.check();
        }
    }
    let grown = server.resident_bytes().saturating_sub(before);
    let sent = COUNT * body.len() as u64;
    println!("{} KiB more for {} KiB unread", grown / 1024, sent / 1024);
    assert!(grown < 12 * MIB, "{grown} bytes more after {sent}");
    // And nothing of it is lost: a device that does read gets all of it.
    let mut reader = server.v2("deaf", 8);
    for n in 1..=COUNT {
        let delivery = reader.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.send_seq, n);
        if n % 100 == 0 {
            reader.ack(delivery.inbox_seq).unwrap();
        }
    }
}

/// Asks and asks and never reads an answer: the server stops reading.
#[test]
fn who_asks_and_never_reads_is_not_read_any_more() {
    let server = Setup::new().shards(2).start();
    let mut witness = Witness::new(&server);
    let before = server.resident_bytes();
    let mut question = Vec::new();
    v2::put_request(&mut question, &Request::Ping { nonce: 1 });
    let pings = question.repeat(2_000);
    let status = b"\x05\x00\x05alice".repeat(2_000);
    for (mut peer, questions) in [
        (Peer::v2(server.addr(), &hello("asker", 1)).0, pings),
        (Peer::v1(server.addr(), "asker"), status),
    ] {
        let stream = peer.stream();
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut written = 0;
        let refused = loop {
            match stream.write(&questions) {
                Ok(count) => written += count as u64,
                Err(error) => break error,
            }
            assert!(written < 512 * MIB, "it is read for ever");
            if written % (4 * MIB) < questions.len() as u64 {
                witness.check();
            }
        };
        if refused.kind() != ErrorKind::WouldBlock {
            let (_, metrics) = server.get("/metrics");
            let closed = metrics.lines().filter(|line| line.contains("_closed_total{"));
            let closed: Vec<&str> = closed.collect();
            panic!("after {written} bytes: {refused}; it is to be held back, not cut: {closed:?}");
        }
        witness.check();
        // Whoever starts to read is served on.
        let mut chunk = [0; 64 * 1024];
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut read = 0;
        while read < written / 4 {
            read += std::io::Read::read(stream, &mut chunk).unwrap() as u64;
        }
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes more");
}

#[test]
fn who_says_nothing_is_closed_in_time() {
    const PEERS: usize = 400;
    let server = Setup::new().shards(2).set("limits.handshake_ms", "1000").start();
    let mut witness = Witness::new(&server);
    // The last three are whole packets of v1 that are no login.
    let begun: [&[u8]; 8] = [
        b"",
        b"I",
        b"IRS",
        b"IRS2",
        b"\x02\x00\x05al",
        b"\x03\x00\x100123456789abcdef",
        b"\x05\x00\x05alice",
        b"\x02\x00\x05alice\x00\x02hi",
    ];
    let mut silent: Vec<Peer> = (0..PEERS)
        .map(|n| {
            let mut peer = Peer::connect(server.addr());
            peer.write(begun[n % begun.len()]);
            peer
        })
        .collect();
    witness.check();
    for peer in &mut silent {
        peer.read_to_end();
    }
    server.wait_metric("iris_handshake_timeouts_total", |closed| closed >= PEERS as f64);
    witness.check();
    drop(silent);
    check_only_left(&server, 2.0);
}

#[test]
fn who_is_logged_in_may_be_silent() {
    let server = Setup::new().shards(2).set("limits.handshake_ms", "100").start();
    let mut v1 = Peer::v1(server.addr(), "quiet");
    let mut v2 = Peer::v2(server.addr(), &hello("silent", 1)).0;
    // A stranger that connected later has been closed for its silence.
    Peer::connect(server.addr()).expect_closed();
    v1.expect_quiet_v1();
    v2.expect_quiet_v2(1);
}

/// Logged in or not, an incomplete frame is not kept for ever; a connection
/// with a new one each time it is looked at may stay.
#[test]
fn who_never_ends_a_frame_is_closed() {
    let server = Setup::new().shards(2).set("limits.frame_ms", "2000").start();
    let mut witness = Witness::new(&server);
    let mut frame = Vec::new();
    v2::put_request(&mut frame, &Request::Send(send("victim", 1, b"hello")));
    let mut half_v2 = Peer::v2(server.addr(), &hello("half", 1)).0;
    half_v2.write(&frame[..frame.len() - 1]);
    let packet = b"\x02\x00\x06victim\x00\x05hell";
    let mut half_v1 = Peer::v1(server.addr(), "half");
    half_v1.write(packet);
    let mut stranger = Peer::connect(server.addr());
    stranger.packet(&Packet::GetStatus { user: b"victim" });
    stranger.answer();
    stranger.write(packet);
    // One byte after the other of a frame that does not end soon.
    let mut dripping = Peer::v2(server.addr(), &hello("drip", 1)).0;
    dripping.write(&60_000_u32.to_be_bytes());
    let mut ping = Vec::new();
    v2::put_request(&mut ping, &Request::Ping { nonce: 7 });
    let mut steady = Peer::v2(server.addr(), &hello("steady", 1)).0;
    steady.write(&ping[..5]);

    let mut pongs = 0;
    let deadline = Deadline::new();
    while !dripping.has_ended() {
        deadline.pause(|| "it still drips".to_owned());
        // It may have been closed since.
        let _ = dripping.try_write(b"\0");
        steady.write(&ping[5..]);
        steady.write(&ping[..5]);
        let reply = steady.reply();
        assert_eq!(reply.get(), Reply::Pong { nonce: 7 });
        pongs += 1;
    }
    assert!(pongs > 10, "{pongs} in two seconds");
    steady.write(&ping[5..]);
    assert_eq!(steady.reply().get(), Reply::Pong { nonce: 7 });
    half_v2.expect_goaway(Code::Timeout);
    half_v1.expect_closed();
    stranger.expect_closed();
    server.wait_metric("iris_frame_timeouts_total", |closed| closed == 4.0);
    witness.check();
}

#[test]
fn thousands_come_and_go() {
    // Where the process's descriptors can be counted.
    let setup = Setup::new().shards(2).argument("--direct-descriptors").argument("off");
    let server = setup.start();
    let mut witness = Witness::new(&server);
    witness.check();
    check_only_left(&server, 2.0);
    // Listeners, the admin's, and the two witnesses.
    let sockets = 2 + 1 + 2;
    server.wait_sockets(sockets);
    for round in 0..3_000 {
        match round % 4 {
            0 => drop(Peer::connect(server.addr())),
            1 => {
                let mut peer = Peer::connect(server.addr());
                peer.write(b"\x01come-and-go");
            }
            2 => {
                // Leaves with an answer unread, so that a reset is sent.
                let mut peer = Peer::connect(server.addr());
                peer.write(b"\x05\x00\x05alice");
                assert!(peer.has_ended() || !peer.has_ended());
            }
            _ => drop(Peer::v2(server.addr(), &hello("come-and-go", 1))),
        }
        if round % 500 == 0 {
            witness.check();
        }
    }
    witness.check();
    check_only_left(&server, 2.0);
    server.wait_sockets(sockets);
    let mut peer = Peer::connect(server.addr());
    assert!(!peer.status("come-and-go").0);
}

#[test]
fn other_protocols_are_told_to_go() {
    let server = Setup::new().shards(2).start();
    let mut browser = Peer::connect(server.addr());
    browser.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = String::from_utf8(browser.read_to_end()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = format!("Content-Length: {}", body.len());
    assert!(head.contains(&length), "{} bytes follow: {answer}", body.len());
    let mut secure = Peer::connect(server.addr());
    secure.write(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03 and so on");
    secure.expect_closed();
    // Byte by byte as well.
    let mut slow = Peer::connect(server.addr());
    let _ = slow.try_write(b"G");
    let _ = slow.try_write(b"ET / HTTP/1.0\r\n\r\n");
    assert!(slow.read_to_end().starts_with(b"HTTP/1.1 501 "));
    check_only_left(&server, 0.0);
}

/// Many frames of which the end never comes: the memory for them is bounded
/// together, and whoever goes beyond it is cut.
#[test]
fn halves_of_large_packets_are_bounded_together() {
    const PEERS: usize = 300;
    let limit = 128 * MIB;
    let server = Setup::new().shards(2).set("memory_bytes", "128MiB").start();
    let mut witness = Witness::new(&server);
    let mut batch = b"\x04\x00\x06victim\x00\x10\x00\x00".to_vec();
    batch.resize(900_000, 0);
    let mut halves = Vec::new();
    for n in 0..PEERS {
        let mut peer = Peer::v1(server.addr(), &format!("half-{n}"));
        // Cut in the middle of it when there is no more room.
        let _ = peer.try_write(&batch);
        halves.push(peer);
        if n % 50 == 0 {
            witness.check();
        }
    }
    server.wait_metric("iris_connections_closed_total", |closed| closed > 0.0);
    let resident = server.resident_bytes();
    println!("{} MiB resident of {} MiB", resident / MIB, limit / MIB);
    assert!(resident < limit, "{resident} bytes");
    witness.check();
    // Small ones are served all the while, and a large one as soon as there is
    // room again.
    drop(halves);
    check_only_left(&server, 2.0);
    let mut peer = Peer::v1(server.addr(), "whole");
    let entries = b"\x00\x01x".repeat(300);
    peer.packet(&Packet::Batch { target: b"whole", entries: BatchEntries::new(&entries) });
    peer.expect_message(b"x");
}

/// Both ends of one connection may close in any way while messages fly.
#[test]
fn half_closed_connections_get_their_answers() {
    let server = Setup::new().shards(2).start();
    let mut peer = Peer::v1(server.addr(), "half");
    peer.write(&b"\x05\x00\x04half".repeat(100));
    peer.finish_writing();
    let answers = peer.read_to_end();
    assert_eq!(answers.len(), 100 * (1 + 2 + 4 + 1 + 8));
    let (mut peer, _) = Peer::v2(server.addr(), &hello("half", 1));
    for seq in 1..=100 {
        peer.send_v2("sink", seq, b"m");
    }
    peer.finish_writing();
    peer.read_to_end();
    let mut sink = server.v2("sink", 1);
    for seq in 1..=100 {
        let delivery = sink.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.send_seq, seq);
        sink.ack(delivery.inbox_seq).unwrap();
    }
}

/// A reader that reads slowly gets everything; nobody is cut for being slow.
#[test]
fn who_reads_slowly_gets_all_of_it() {
    const COUNT: u64 = 400;
    let server = Setup::new().shards(2).start();
    let mut sender = server.v2("sender", 1);
    let body = vec![b's'; 16_000];
    let (mut slow, _) = Peer::v2(server.addr(), &Hello { credit: 65_536, ..hello("slow", 1) });
    for n in 1..=COUNT {
        let seq = sender.send(b"slow", &body, wire::id::Class::Guaranteed).unwrap();
        if n % 50 == 0 {
            sender.wait_sent(b"slow", seq, PATIENCE).unwrap();
        }
    }
    // Everything that fits has piled up in the sockets by now.
    for seq in 1..=COUNT {
        assert_eq!(slow.expect_deliver(&body), seq);
    }
    server.wait_metric("iris_connections_closed_total", |closed| closed == 0.0);
}

/// One address that opens more than there is room for keeps others out only
/// until it leaves; those that are in are not hurt.
#[test]
fn more_connections_than_fit_are_turned_away() {
    let server = Setup::new().shards(1).set("limits.conns_max", "64").start();
    let mut witness = Witness::new(&server);
    let crowd: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
    server.wait_metric("iris_connections_refused_total", |refused| refused >= 138.0);
    witness.check();
    drop(crowd);
    server.wait_metric("iris_connections", |now| now == 2.0);
    drop(Peer::v1(server.addr(), "later"));
}

/// The bound is one of the whole process: a connection that moves to its user's
/// core leaves no room behind for another.
#[test]
fn connections_that_move_make_no_room_for_more() {
    const MAX: usize = 40;
    const ATTEMPTS: usize = 300;
    let server = Setup::new().shards(4).set("limits.conns_max", "40").start();
    let mut witness = Witness::new(&server);
    let mut held = Vec::new();
    for n in 0..ATTEMPTS {
        let mut peer = Peer::connect(server.addr());
        // All to one core, whatever core has accepted them; refused ones may be
        // closed already.
        let _ = peer.try_write(b"\x01crowd");
        peer.stream().set_read_timeout(Some(PATIENCE)).unwrap();
        if std::io::Read::read(peer.stream(), &mut [0; 64]).is_ok_and(|read| read > 0) {
            held.push(peer);
        }
        assert!(held.len() <= MAX - 2, "{} logged in after {n} attempts", held.len());
    }
    assert_eq!(held.len(), MAX - 2, "two are the witness's");
    witness.check();
    drop(held);
    server.wait_metric("iris_connections", |now| now == 2.0);
    drop(Peer::v1(server.addr(), "later"));
}

/// Half-open: the server still has a connection of which the other side knows
/// nothing any more. It finds out when it says something, and nothing is lost.
#[test]
fn a_peer_that_vanishes_loses_nothing() {
    let server = Setup::new().shards(2).start();
    let mut alice = server.v2("alice", 1);
    let (mut bob, _) = Peer::v2(server.addr(), &hello("bob", 1));
    let stream = bob.stream().try_clone().expect("a second handle");
    drop(bob);
    if let Err(error) = vanish(stream) {
        return skipped(format!("a connection cannot vanish without root: {error}"));
    }
    server.wait_metric("iris_sessions", |count| count == 2.0);
    alice.send_and_wait(b"bob", b"are you there", PATIENCE).expect("it is stored");
    server.wait_metric("iris_sessions", |count| count == 1.0);
    let (mut bob, _) = Peer::v2(server.addr(), &hello("bob", 1));
    bob.expect_deliver(b"are you there");
    bob.expect_quiet_v2(1);
}
