//! Protocol v2 against the real process, as docs/WIRE.md specifies it.

mod server;

use client::Session;
use client::blocking::{Client, Notice};
use server::peer::{Peer, hello, send};
use server::{Deadline, PATIENCE, Server, Setup};
use wire::id::{Class, MessageId};
use wire::limits::{BODY_BYTES_MAX, CREDIT_MAX, V2_FRAME_BYTES_MAX};
use wire::refuse::Code;
use wire::v1::{self, Packet};
use wire::v2::{self, Hello, Reply, Request, Welcome, flag};

const ZERO: MessageId = MessageId([0; 16]);

fn login(server: &Server, user: &str, device: u64) -> Peer {
    Peer::v2(server.addr(), &hello(user, device)).0
}

fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    v2::put_request(&mut bytes, request);
    bytes
}

/// A frame with this type and these fields, right or wrong.
fn raw_frame(kind: u8, fields: &[u8]) -> Vec<u8> {
    let len = u32::try_from(fields.len() + 2).unwrap();
    [&len.to_be_bytes()[..], &[kind, 0], fields].concat()
}

#[track_caller]
fn expect_error(peer: &mut Peer, expected: Code) {
    let reply = peer.reply();
    match reply.get() {
        Reply::Error { code, text } if code == expected as u16 => assert!(!text.is_empty()),
        other => panic!("{other:?} is not ERROR {expected:?}"),
    }
}

#[track_caller]
fn expect_refused(peer: &mut Peer, expected_seq: u64, expected: Code) -> u32 {
    let reply = peer.reply();
    match reply.get() {
        Reply::Refused { seq, code, retry_after_ms, .. }
            if seq == expected_seq && code == expected as u16 =>
        {
            retry_after_ms
        }
        other => panic!("{other:?} is not REFUSED {expected_seq} {expected:?}"),
    }
}

#[track_caller]
fn expect_gap(peer: &mut Peer, expected: u64) {
    let reply = peer.reply();
    match reply.get() {
        Reply::Gap { expected: told, to: b"bob" } if told == expected => {}
        other => panic!("{other:?} is not GAP {expected}"),
    }
}

#[track_caller]
fn expect_sents(peer: &mut Peer, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        assert_ne!(peer.expect_sent(seq), ZERO, "it is new");
    }
}

#[track_caller]
fn expect_delivers(peer: &mut Peer, count: usize, body: &[u8]) {
    let mut last = 0;
    for _ in 0..count {
        let seq = peer.expect_deliver(body);
        assert!(seq > last, "{seq} after {last}");
        last = seq;
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[test]
fn a_conversation_has_the_bytes_of_the_specification() {
    let server = Server::start();
    let mut bob = login(&server, "bob", 1);
    let mut alice = Peer::connect(server.addr());
    alice.write(b"IRS2");
    // Versions 1 to 1, device 7, nothing yet, window 256, "alice", no token.
    alice.write(
        b"\x00\x00\x00\x25\x01\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\
          \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x05alice\x00\x00",
    );
    alice.expect(b"\x00\x00\x00\x2b\x81\x00\x01\x00\x00\x00\x00");
    let time = u64::from_be_bytes(alice.take(8).try_into().unwrap());
    assert!(time.abs_diff(now_ms()) < 60_000, "{time}");
    alice.expect(&1_u64.to_be_bytes());
    alice.expect(&0_u64.to_be_bytes());
    alice.expect(b"\x00\x01\x04\x00\x00\x01\x00\x00\x00\x00\xff\xff");
    // Number 1 to bob, guaranteed, wants DELIVERED: "hi".
    alice.write(b"\x00\x00\x00\x16\x02\x01\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x00\x03bobhi");
    alice.expect(b"\x00\x00\x00\x20\x82\x00\0\0\0\0\0\0\0\x01");
    let id = alice.take(16);
    alice.expect(b"\x01\x00\x03bob");
    bob.expect(b"\x00\x00\x00\x3b\x85\x00\0\0\0\0\0\0\0\x01");
    bob.expect(&id);
    bob.expect(b"\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01");
    let stored = u64::from_be_bytes(bob.take(8).try_into().unwrap());
    assert!(stored.abs_diff(now_ms()) < 60_000, "{stored}");
    bob.expect(b"\x00\x05alicehi");
    bob.write(b"\x00\x00\x00\x0a\x03\x00\0\0\0\0\0\0\0\x01");
    alice.expect(b"\x00\x00\x00\x1f\x89\x00\0\0\0\0\0\0\0\x01");
    alice.expect(&id);
    alice.expect(b"\x00\x03bob");
    alice.write(b"\x00\x00\x00\x0a\x05\x00\x01\x02\x03\x04\x05\x06\x07\x08");
    alice.expect(b"\x00\x00\x00\x0a\x86\x00\x01\x02\x03\x04\x05\x06\x07\x08");
}

#[test]
fn welcome_tells_limits_and_what_waits() {
    let server = Server::start();
    let (mut alice, welcome) = Peer::v2(server.addr(), &hello("alice", 1));
    let Welcome { version, capabilities, frame_bytes_max, body_bytes_max, credit_max, .. } =
        welcome;
    assert_eq!((version, capabilities), (1, 0));
    assert_eq!(frame_bytes_max as usize, V2_FRAME_BYTES_MAX);
    assert_eq!((body_bytes_max as usize, credit_max), (BODY_BYTES_MAX, CREDIT_MAX));
    assert_eq!((welcome.first_seq, welcome.last_seq), (1, 0));
    drop(login(&server, "bob", 1));
    for seq in 1..=5 {
        alice.send_v2("bob", seq, b"waits");
        alice.expect_sent(seq);
    }
    let (mut bob, welcome) = Peer::v2(server.addr(), &hello("bob", 1));
    assert_eq!((welcome.first_seq, welcome.last_seq), (1, 5));
    (1..=5).for_each(|seq| assert_eq!(bob.expect_deliver(b"waits"), seq));
    // The HELLO acknowledges, too.
    let (mut bob, welcome) = Peer::v2(server.addr(), &Hello { last_seq: 3, ..hello("bob", 1) });
    assert_eq!((welcome.first_seq, welcome.last_seq), (4, 5));
    assert_eq!(bob.expect_deliver(b"waits"), 4);
    assert_eq!(bob.expect_deliver(b"waits"), 5);
    bob.expect_quiet_v2(1);
}

#[test]
fn logins_that_cannot_be_are_refused_with_their_code() {
    let server = Server::start();
    let refused = |hello: Hello<'_>, code: Code| {
        let mut peer = Peer::connect(server.addr());
        peer.write(v2::PREFACE);
        peer.request(&Request::Hello(hello));
        peer.expect_goaway(code);
    };
    let good = hello("alice", 1);
    refused(Hello { version_min: 2, version_max: 9, ..good }, Code::Version);
    refused(Hello { version_min: 0, version_max: 0, ..good }, Code::Version);
    refused(Hello { user: b"", ..good }, Code::BadName);
    refused(Hello { user: b"a:b", ..good }, Code::BadName);
    refused(Hello { user: b"a\x1fb", ..good }, Code::BadName);
    refused(Hello { user: b"a\x7f", ..good }, Code::BadName);
    refused(Hello { user: &[b'x'; 257], ..good }, Code::BadName);
    refused(Hello { device: 0, ..good }, Code::Malformed);
    refused(Hello { last_seq: 131_073, ..good }, Code::BadCursor);
    refused(Hello { last_seq: u64::MAX, ..good }, Code::BadCursor);
    let accepted = |hello: Hello<'_>| Peer::v2(server.addr(), &hello).1;
    assert_eq!(accepted(Hello { version_min: 0, version_max: 255, ..good }).version, 1);
    assert_eq!(accepted(Hello { capabilities: u32::MAX, ..good }).capabilities, 0);
    accepted(Hello { user: &[0xff; 256], ..good });
    accepted(Hello { token: &[0; 4096], ..good });
    accepted(Hello { credit: u32::MAX, ..good });
    accepted(Hello { device: u64::MAX, ..good });
    // Numbers that a crash took: the inbox goes on above them.
    let welcome = accepted(Hello { last_seq: 131_072, ..hello("carol", 1) });
    assert_eq!((welcome.first_seq, welcome.last_seq), (131_073, 131_072));
}

#[test]
fn a_token_that_is_too_long_is_malformed() {
    let server = Server::start();
    let mut peer = Peer::connect(server.addr());
    peer.write(v2::PREFACE);
    peer.request(&Request::Hello(Hello { token: &[0; 4097], ..hello("alice", 1) }));
    expect_error(&mut peer, Code::Malformed);
    peer.request(&Request::Hello(hello("alice", 1)));
    assert!(matches!(peer.reply().get(), Reply::Welcome(_)));
}

#[test]
fn numbers_are_stored_once_and_in_order() {
    let server = Server::start();
    let mut bob = login(&server, "bob", 1);
    let mut alice = login(&server, "alice", 1);
    alice.send_v2("bob", 1, b"one");
    let first = alice.expect_sent(1);
    assert_ne!(first, ZERO);
    // The same number again: SENT again, nothing stored.
    alice.send_v2("bob", 1, b"one, changed");
    assert_eq!(alice.expect_sent(1), ZERO);
    // A hole: nothing is stored until it is filled.
    alice.send_v2("bob", 3, b"three");
    expect_gap(&mut alice, 2);
    alice.send_v2("bob", 4, b"four");
    expect_gap(&mut alice, 2);
    for (seq, body) in [(2, &b"two"[..]), (3, b"three")] {
        alice.send_v2("bob", seq, body);
        assert!(alice.expect_sent(seq) > first, "ids rise");
    }
    // What lies between is given up for good.
    alice.request(&Request::Send(v2::Send { flags: flag::SKIP, ..send("bob", 9, b"nine") }));
    alice.expect_sent(9);
    alice.send_v2("bob", 5, b"five");
    assert_eq!(alice.expect_sent(5), ZERO);
    alice.send_v2("bob", 10, b"ten");
    alice.expect_sent(10);
    for body in [&b"one"[..], b"two", b"three", b"nine", b"ten"] {
        bob.expect_deliver(body);
    }
    bob.expect_quiet_v2(1);
}

#[test]
fn numbers_belong_to_a_device_and_a_recipient() {
    let server = Setup::new().shards(3).start();
    let mut phone = login(&server, "alice", 1);
    let mut tablet = login(&server, "alice", 2);
    let mut other = login(&server, "alison", 1);
    for to in ["bob", "carol", "alice"] {
        for peer in [&mut phone, &mut tablet, &mut other] {
            peer.send_v2(to, 1, b"first");
            let mut sent = peer.reply();
            while matches!(sent.get(), Reply::Deliver(_)) {
                sent = peer.reply();
            }
            let Reply::Sent { seq: 1, id, to: told, .. } = sent.get() else {
                panic!("{sent:?} is not SENT 1")
            };
            assert_eq!(told, to.as_bytes());
            assert_ne!(id, ZERO, "not a repetition");
        }
    }
}

#[test]
fn numbers_survive_a_restart() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    for seq in 1..=3 {
        alice.send_v2("bob", seq, b"kept");
        alice.expect_sent(seq);
    }
    let server = server.crash_and_restart();
    let mut alice = login(&server, "alice", 1);
    for seq in 1..=3 {
        alice.send_v2("bob", seq, b"again");
        assert_eq!(alice.expect_sent(seq), ZERO);
    }
    alice.send_v2("bob", 5, b"five");
    expect_gap(&mut alice, 4);
    alice.send_v2("bob", 4, b"kept");
    assert_ne!(alice.expect_sent(4), ZERO);
    let mut bob = login(&server, "bob", 1);
    expect_delivers(&mut bob, 4, b"kept");
    bob.expect_quiet_v2(1);
}

#[test]
fn a_permanent_refusal_consumes_the_number() {
    let server = Server::start();
    let mut bob = login(&server, "bob", 1);
    let mut alice = login(&server, "alice", 1);
    let too_large = vec![b'x'; BODY_BYTES_MAX + 1];
    alice.send_v2("bob", 1, &too_large);
    assert_eq!(expect_refused(&mut alice, 1, Code::TooLarge), 0);
    let largest = vec![b'y'; BODY_BYTES_MAX];
    alice.send_v2("bob", 2, &largest);
    alice.expect_sent(2);
    bob.expect_deliver(&largest);
    // Also after a crash.
    alice.send_v2("bob", 3, &too_large);
    expect_refused(&mut alice, 3, Code::TooLarge);
    let server = server.crash_and_restart();
    let mut alice = login(&server, "alice", 1);
    alice.send_v2("bob", 4, b"four");
    assert_ne!(alice.expect_sent(4), ZERO);
}

#[test]
fn a_name_that_is_none_keeps_no_number() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    for name in ["", "a:b", "tab\t", &"n".repeat(257), &"n".repeat(900)] {
        for seq in [1, 7] {
            alice.send_v2(name, seq, b"");
            assert_eq!(expect_refused(&mut alice, seq, Code::BadName), 0);
        }
    }
    alice.expect_quiet_v2(1);
}

#[test]
fn a_full_inbox_refuses_until_there_is_room() {
    let server = Setup::new().shards(2).set("limits.inbox_messages_max", "3").start();
    let mut bob = login(&server, "bob", 1);
    let mut alice = login(&server, "alice", 1);
    for seq in 1..=3 {
        alice.send_v2("bob", seq, b"fits");
        alice.expect_sent(seq);
    }
    alice.send_v2("bob", 4, b"late");
    assert!(expect_refused(&mut alice, 4, Code::InboxFull) > 0, "it says when to try again");
    // The refusal did not take the number, so the next one leaves a hole.
    alice.send_v2("bob", 5, b"later");
    expect_gap(&mut alice, 4);
    (1..=3).for_each(|seq| assert_eq!(bob.expect_deliver(b"fits"), seq));
    bob.request(&Request::Ack { seq: 1 });
    bob.expect_quiet_v2(1);
    alice.send_v2("bob", 4, b"late");
    alice.expect_sent(4);
    bob.expect_deliver(b"late");
    alice.send_v2("bob", 5, b"later");
    expect_refused(&mut alice, 5, Code::InboxFull);
}

#[test]
fn the_window_bounds_what_is_delivered() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    for seq in 1..=20 {
        alice.send_v2("bob", seq, b"m");
    }
    expect_sents(&mut alice, 1..=20);
    let (mut bob, _) = Peer::v2(server.addr(), &Hello { credit: 3, ..hello("bob", 1) });
    let expect = |bob: &mut Peer, seqs: std::ops::RangeInclusive<u64>| {
        seqs.for_each(|seq| assert_eq!(bob.expect_deliver(b"m"), seq));
        bob.expect_quiet_v2(0);
    };
    expect(&mut bob, 1..=3);
    bob.request(&Request::Ack { seq: 1 });
    expect(&mut bob, 4..=4);
    // Cumulative; lower ones and repeated ones change nothing.
    bob.request(&Request::Ack { seq: 4 });
    bob.request(&Request::Ack { seq: 2 });
    bob.request(&Request::Ack { seq: 4 });
    expect(&mut bob, 5..=7);
    bob.request(&Request::Credit { window: 5 });
    expect(&mut bob, 8..=9);
    bob.request(&Request::Credit { window: 0 });
    bob.request(&Request::Ack { seq: 8 });
    bob.expect_quiet_v2(1);
    bob.request(&Request::Credit { window: 2 });
    expect(&mut bob, 10..=10);
    // More than was delivered counts as what was.
    bob.request(&Request::Ack { seq: u64::MAX });
    expect(&mut bob, 11..=12);
    bob.request(&Request::Credit { window: u32::MAX });
    expect(&mut bob, 13..=20);
}

#[test]
fn redelivery_starts_at_the_cursor() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    let mut bob = login(&server, "bob", 1);
    let mut ids = Vec::new();
    for seq in 1..=6 {
        alice.send_v2("bob", seq, b"m");
        ids.push(alice.expect_sent(seq));
        bob.expect_deliver(b"m");
    }
    bob.request(&Request::Ack { seq: 2 });
    bob.expect_quiet_v2(1);
    drop(bob);
    // The device knows less than it has acknowledged: nothing comes twice.
    let (mut bob, welcome) = Peer::v2(server.addr(), &hello("bob", 1));
    assert_eq!(welcome.first_seq, 3);
    for seq in 3..=6 {
        let reply = bob.reply();
        let Reply::Deliver(deliver) = reply.get() else { panic!("{reply:?}") };
        assert_eq!((deliver.inbox_seq, deliver.id), (seq, ids[seq as usize - 1]));
        assert_eq!((deliver.from, deliver.from_device), (&b"alice"[..], 1));
        assert_eq!(deliver.send_seq, seq);
    }
    bob.expect_quiet_v2(2);
    let server = server.stop().start();
    let mut bob = login(&server, "bob", 1);
    (3..=6).for_each(|seq| assert_eq!(bob.expect_deliver(b"m"), seq));
    bob.request(&Request::Ack { seq: 6 });
    bob.expect_quiet_v2(3);
    let server = server.stop().start();
    let mut bob = login(&server, "bob", 1);
    bob.expect_quiet_v2(4);
}

#[test]
fn every_device_gets_all_and_the_last_ack_frees_it() {
    let server = Setup::new().shards(2).set("limits.inbox_messages_max", "4").start();
    let mut alice = login(&server, "alice", 1);
    let mut phone = login(&server, "bob", 1);
    let mut tablet = login(&server, "bob", 2);
    for seq in 1..=4 {
        alice.send_v2("bob", seq, b"m");
        alice.expect_sent(seq);
    }
    for device in [&mut phone, &mut tablet] {
        (1..=4).for_each(|seq| assert_eq!(device.expect_deliver(b"m"), seq));
    }
    phone.request(&Request::Ack { seq: 4 });
    phone.expect_quiet_v2(1);
    // The tablet has not: the inbox is still full.
    alice.send_v2("bob", 5, b"m");
    expect_refused(&mut alice, 5, Code::InboxFull);
    tablet.request(&Request::Ack { seq: 3 });
    tablet.expect_quiet_v2(1);
    alice.send_v2("bob", 5, b"m");
    alice.expect_sent(5);
    // A new device starts at the first entry still there.
    let (mut watch, welcome) = Peer::v2(server.addr(), &hello("bob", 3));
    assert_eq!((welcome.first_seq, welcome.last_seq), (4, 5));
    assert_eq!(watch.expect_deliver(b"m"), 4);
    assert_eq!(watch.expect_deliver(b"m"), 5);
    assert_eq!(phone.expect_deliver(b"m"), 5);
    assert_eq!(tablet.expect_deliver(b"m"), 5);
}

#[test]
fn a_fifth_device_is_refused() {
    let server = Server::start();
    let _four: Vec<Peer> = (1..=4).map(|device| login(&server, "bob", device)).collect();
    let mut fifth = Peer::connect(server.addr());
    fifth.write(v2::PREFACE);
    fifth.request(&Request::Hello(hello("bob", 5)));
    fifth.expect_goaway(Code::TooManyDevices);
    // v1 is a device, too.
    let mut old = Peer::connect(server.addr());
    old.write(b"\x01bob");
    old.expect(v1::RATE_LIMITED);
    old.expect_closed();
    // Those that are registered come back at any time.
    login(&server, "bob", 3).expect_quiet_v2(1);
}

#[test]
fn delivered_is_told_to_the_device_that_asked() {
    let server = Setup::new().shards(3).start();
    let mut alice = login(&server, "alice", 1);
    let mut other = login(&server, "alice", 2);
    let mut bob = login(&server, "bob", 1);
    let wants = |seq| {
        let flags = flag::WANTS_DELIVERED;
        Request::Send(v2::Send { flags, ..send("bob", seq, b"m") })
    };
    alice.request(&wants(1));
    let id = alice.expect_sent(1);
    alice.send_v2("bob", 2, b"m");
    alice.expect_sent(2);
    alice.request(&wants(3));
    alice.expect_sent(3);
    expect_delivers(&mut bob, 3, b"m");
    bob.request(&Request::Ack { seq: 2 });
    let reply = alice.reply();
    assert_eq!(reply.get(), Reply::Delivered { seq: 1, id, to: b"bob" });
    alice.expect_quiet_v2(1);
    bob.request(&Request::Ack { seq: 3 });
    assert!(matches!(alice.reply().get(), Reply::Delivered { seq: 3, .. }));
    other.expect_quiet_v2(1);
}

#[test]
fn before_hello_only_ping_is_answered() {
    let server = Server::start();
    let mut peer = Peer::connect(server.addr());
    peer.write(v2::PREFACE);
    peer.expect_quiet_v2(7);
    peer.send_v2("bob", 1, b"too early");
    expect_error(&mut peer, Code::NotLoggedIn);
    peer.request(&Request::Ack { seq: 1 });
    expect_error(&mut peer, Code::NotLoggedIn);
    peer.request(&Request::Credit { window: 1 });
    expect_error(&mut peer, Code::NotLoggedIn);
    peer.request(&Request::Hello(hello("alice", 1)));
    assert!(matches!(peer.reply().get(), Reply::Welcome(_)));
    peer.request(&Request::Hello(hello("alice", 1)));
    expect_error(&mut peer, Code::Malformed);
    peer.send_v2("bob", 1, b"now");
    assert_ne!(peer.expect_sent(1), ZERO);
}

#[test]
fn bad_frames_are_answered_and_skipped() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    let bad: [(Vec<u8>, Code); 9] = [
        (raw_frame(0x77, b""), Code::UnknownType),
        (raw_frame(0x00, &[9; 5000]), Code::UnknownType),
        (raw_frame(0x82, &[0; 40]), Code::UnknownType),
        (raw_frame(0x02, b""), Code::Malformed),
        (raw_frame(0x03, &[0; 7]), Code::Malformed),
        (raw_frame(0x04, &[0; 3]), Code::Malformed),
        // A number 0, a class 2, a name that is not there.
        (raw_frame(0x02, b"\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\x03bob"), Code::Malformed),
        (raw_frame(0x02, b"\0\0\0\0\0\0\0\x01\x02\0\0\0\0\0\x03bob"), Code::Malformed),
        (raw_frame(0x02, b"\0\0\0\0\0\0\0\x01\x01\0\0\0\0\0\x09bob"), Code::Malformed),
    ];
    for (bytes, code) in &bad {
        alice.write(bytes);
        expect_error(&mut alice, *code);
    }
    // Longer frames and unknown flags are for later versions.
    alice.write(&raw_frame(0x05, b"\0\0\0\0\0\0\0\x05and more"));
    assert_eq!(alice.reply().get(), Reply::Pong { nonce: 5 });
    alice.request(&Request::Send(v2::Send { flags: 0xfc, ..send("bob", 1, b"flags") }));
    assert_ne!(alice.expect_sent(1), ZERO);
}

#[test]
fn bad_frames_in_a_row_end_the_connection() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    for _ in 0..40 {
        alice.write(&raw_frame(0x77, b""));
        expect_error(&mut alice, Code::UnknownType);
        alice.expect_quiet_v2(1);
    }
    alice.write(&raw_frame(0x77, b"").repeat(40));
    (0..31).for_each(|_| expect_error(&mut alice, Code::UnknownType));
    alice.expect_goaway(Code::Malformed);
}

#[test]
fn a_length_out_of_bounds_ends_the_connection() {
    let server = Server::start();
    let longest = u32::try_from(V2_FRAME_BYTES_MAX).unwrap();
    for length in [0, 1, longest + 1, u32::MAX] {
        let mut alice = login(&server, "alice", 1);
        alice.write(&length.to_be_bytes());
        alice.expect_goaway(Code::TooLarge);
    }
    // The longest there may be is read, and found to be of no known type.
    let mut alice = login(&server, "alice", 1);
    alice.write(&raw_frame(0x66, &vec![0; V2_FRAME_BYTES_MAX - 2]));
    expect_error(&mut alice, Code::UnknownType);
}

#[test]
fn frames_may_come_byte_by_byte_and_behind_the_hello() {
    let server = Server::start();
    let mut stream = v2::PREFACE.to_vec();
    stream.extend(frame(&Request::Hello(hello("alice", 1))));
    stream.extend(frame(&Request::Send(send("alice", 1, b"to myself"))));
    stream.extend(frame(&Request::Ping { nonce: 1 }));
    let check = |peer: &mut Peer, device: u64| {
        assert!(matches!(peer.reply().get(), Reply::Welcome(_)));
        // In whatever order a core has them ready.
        let (mut sent, mut pong) = (false, false);
        while !(sent && pong) {
            let reply = peer.reply();
            match reply.get() {
                Reply::Sent { seq: 1, .. } => sent = true,
                Reply::Pong { nonce: 1 } => pong = true,
                Reply::Deliver(deliver) => assert_eq!(deliver.body, b"to myself"),
                other => panic!("device {device}: {other:?}"),
            }
        }
    };
    let mut peer = Peer::connect(server.addr());
    peer.drip(&stream);
    check(&mut peer, 1);
    for cut in 1..stream.len() {
        let mut peer = Peer::connect(server.addr());
        peer.write(&stream[..cut]);
        peer.write(&stream[cut..]);
        check(&mut peer, 1);
    }
}

#[test]
fn v1_and_v2_reach_each_other() {
    let server = Setup::new().shards(3).start();
    let mut old = Peer::v1(server.addr(), "olga");
    let mut new = login(&server, "nora", 7);
    old.packet(&Packet::Send { target: b"nora", body: b"from v1" });
    let reply = new.reply();
    let Reply::Deliver(deliver) = reply.get() else { panic!("{reply:?}") };
    assert_eq!((deliver.from, deliver.from_device, deliver.send_seq), (&b"olga"[..], 0, 0));
    assert_eq!(deliver.body, b"from v1");
    old.packet(&Packet::SendSeq { target: b"nora", seq: 5, body: b"numbered" });
    let reply = new.reply();
    let Reply::Deliver(deliver) = reply.get() else { panic!("{reply:?}") };
    assert_eq!((deliver.send_seq, deliver.body), (5, &b"numbered"[..]));
    // Larger than a v2 client may send, and yet delivered.
    let map = vec![0xa0; 200 * 1024];
    old.packet(&Packet::Cbor { target: b"nora", map: &map });
    new.request(&Request::Send(v2::Send {
        flags: flag::WANTS_DELIVERED,
        ..send("olga", 1, b"from v2")
    }));
    let id = old.expect_message(b"from v2");
    old.packet(&Packet::Ack { id });
    let (mut sent, mut told, mut large) = (false, false, false);
    while !(sent && told && large) {
        let reply = new.reply();
        match reply.get() {
            Reply::Sent { seq: 1, id: told, .. } => sent = told == id,
            Reply::Delivered { seq: 1, id: about, .. } => told = about == id,
            Reply::Deliver(deliver) => large = deliver.body == map,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(old.status("nora"), (true, 0));
}

#[test]
fn one_user_may_have_devices_of_both_protocols() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    let mut phone = login(&server, "bob", 7);
    let mut old = Peer::v1(server.addr(), "bob");
    alice.send_v2("bob", 1, b"to both");
    assert_eq!(phone.expect_deliver(b"to both"), 1);
    let id = old.expect_message(b"to both");
    phone.request(&Request::Ack { seq: 1 });
    phone.expect_quiet_v2(1);
    // The older client has not acknowledged and gets it again.
    drop(old);
    let mut old = Peer::v1(server.addr(), "bob");
    assert_eq!(old.expect_message(b"to both"), id);
    // Online for as long as one of them is.
    drop(phone);
    assert_eq!(old.status("bob"), (true, 0));
}

#[test]
fn best_effort_is_delivered_and_said_to_be() {
    let server = Setup::new().shards(3).start();
    let mut bob = login(&server, "bob", 1);
    let mut alice = login(&server, "alice", 1);
    let best_effort = |seq| v2::Send { class: Class::BestEffort, ..send("bob", seq, b"quick") };
    for seq in 1..=100 {
        if seq % 10 == 0 {
            alice.send_v2("bob", seq, b"quick");
        } else {
            alice.request(&Request::Send(best_effort(seq)));
        }
    }
    // In order, whatever the class: no answer overtakes another.
    for expected in 1..=100 {
        let reply = alice.reply();
        let Reply::Sent { seq, class, .. } = reply.get() else { panic!("{reply:?}") };
        let wanted = if seq % 10 == 0 { Class::Guaranteed } else { Class::BestEffort };
        assert_eq!((seq, class), (expected, wanted));
    }
    (1..=100).for_each(|seq| assert_eq!(bob.expect_deliver(b"quick"), seq));
}

#[test]
fn what_expired_is_not_delivered() {
    let server = Server::start();
    let mut alice = login(&server, "alice", 1);
    drop(login(&server, "bob", 1));
    let expiring =
        |seq, expiry_s| Request::Send(v2::Send { expiry_s, ..send("bob", seq, b"short-lived") });
    alice.request(&expiring(1, 1));
    alice.request(&expiring(2, 3600));
    alice.request(&expiring(3, 1));
    expect_sents(&mut alice, 1..=3);
    // Until the server's own clock is past it.
    let sent_ms = Peer::v2(server.addr(), &hello("clock", 1)).1.server_time_ms;
    let deadline = Deadline::new();
    while Peer::v2(server.addr(), &hello("clock", 1)).1.server_time_ms <= sent_ms + 1_000 {
        deadline.pause(|| "the server's clock stands still".to_owned());
    }
    let mut bob = login(&server, "bob", 1);
    assert_eq!(bob.expect_deliver(b"short-lived"), 2);
    bob.expect_quiet_v2(1);
    bob.request(&Request::Ack { seq: 2 });
    bob.expect_quiet_v2(2);
    // The numbers are taken all the same, and nothing is left behind.
    alice.send_v2("bob", 4, b"next");
    alice.expect_sent(4);
    assert_eq!(bob.expect_deliver(b"next"), 4);
    bob.request(&Request::Ack { seq: 4 });
    server.wait_metric("iris_inbox_messages", |waiting| waiting == 0.0);
}

#[test]
fn the_newest_login_of_a_device_takes_over() {
    let server = Setup::new().shards(3).start();
    let mut alice = login(&server, "alice", 1);
    let mut old = login(&server, "bob", 1);
    alice.send_v2("bob", 1, b"first");
    old.expect_deliver(b"first");
    let mut other = login(&server, "bob", 2);
    other.expect_deliver(b"first");
    let mut new = login(&server, "bob", 1);
    old.expect_goaway(Code::Replaced);
    new.expect_deliver(b"first");
    alice.expect_sent(1);
    alice.send_v2("bob", 2, b"second");
    new.expect_deliver(b"second");
    other.expect_deliver(b"second");
    let mut watch = Peer::connect(server.addr());
    assert_eq!(watch.status("bob"), (true, 0));
}

#[test]
fn takeovers_in_a_row_leave_one_that_is_served() {
    let server = Setup::new().shards(3).start();
    let mut alice = login(&server, "alice", 1);
    let mut peers = Vec::new();
    for round in 1..=40 {
        peers.push(login(&server, "bob", 1));
        alice.send_v2("bob", round, b"m");
        alice.expect_sent(round);
    }
    let mut last = peers.pop().unwrap();
    (1..=40).for_each(|seq| assert_eq!(last.expect_deliver(b"m"), seq));
    for mut peer in peers {
        // What was on its way, and then why it ends.
        loop {
            let reply = peer.reply();
            match reply.get() {
                Reply::Deliver(_) => {}
                Reply::Goaway { code, .. } => {
                    assert_eq!(code, Code::Replaced as u16);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    server.wait_metric("iris_connections", |conns| conns == 2.0);
}

#[test]
fn a_beginning_of_the_preface_may_still_be_v1() {
    let server = Server::start();
    for (round, bytes) in [&b"IRS3"[..], b"IX"].into_iter().enumerate() {
        // An unknown opcode of v1, so the connection survives.
        let mut peer = Peer::connect(server.addr());
        peer.write(bytes);
        // A login that is read together with it would be dropped with it.
        server.wait_metric("iris_bad_packets_total", |bad| bad > round as f64);
        peer.write(b"\x01alice");
        peer.expect(v1::LOGIN_OK);
    }
    let mut peer = Peer::connect(server.addr());
    peer.drip(b"IRS2");
    peer.expect_quiet_v2(3);
}

#[test]
fn the_client_library_repeats_what_was_not_confirmed() {
    let server = Setup::new().shards(3).start();
    let mut alice = server.v2("alice", 1);
    let mut bob = server.v2("bob", 1);
    let mut last = 0;
    for round in 0..20 {
        for n in 0..30 {
            let body = format!("{round} {n}");
            last = alice.send(b"bob", body.as_bytes(), Class::Guaranteed).unwrap();
        }
        // In the middle of everything.
        alice.reconnect(None).unwrap();
    }
    alice.wait_sent(b"bob", last, PATIENCE).unwrap();
    for round in 0..20 {
        for n in 0..30 {
            let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
            assert_eq!(delivery.body, format!("{round} {n}").as_bytes());
            bob.ack(delivery.inbox_seq).unwrap();
        }
    }
    bob.ping(1, PATIENCE).unwrap();
    assert_eq!(alice.session().unsent(), 0);
}

#[test]
fn a_refused_login_is_an_error_of_the_client_library() {
    let server = Server::start();
    let error = Client::connect(server.addr(), b"a:b", 1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    let devices: Vec<Client> = (1..=4).map(|device| server.v2("alice", device)).collect();
    let error = Client::connect(server.addr(), b"alice", 5).unwrap_err();
    assert!(error.to_string().contains("all the devices it may have"), "{error}");
    drop(devices);
}

/// Asked again from the beginning, and told.
#[test]
fn a_cursor_beyond_the_inbox_is_given_up_by_the_client_library() {
    let server = Server::start();
    let mut session = Session::new(b"alice", 1, b"");
    session.set_cursor(1 << 40);
    let mut alice = Client::connect_session(server.addr(), session).unwrap();
    let refused = alice.next_notice(PATIENCE).unwrap().expect("the refusal");
    assert!(matches!(refused, Notice::Goaway { code: 15, .. }), "{refused:?}");
    let told = alice.next_notice(PATIENCE).unwrap();
    assert_eq!(told, Some(Notice::StartsOver { cursor: 1 << 40 }));
    assert_eq!(alice.send_and_wait(b"alice", b"note", PATIENCE).unwrap().seq, 1);
    let delivery = alice.next_delivery(PATIENCE).unwrap().expect("it is not taken for an old one");
    assert_eq!((&delivery.body[..], delivery.again), (&b"note"[..], false));
}

#[test]
fn a_held_message_is_repeated_by_the_client_library() {
    let server = Setup::new().shards(2).set("limits.inbox_messages_max", "2").start();
    let mut alice = server.v2("alice", 1);
    let mut bob = server.v2("bob", 1);
    for n in 0..6_u8 {
        alice.send(b"bob", &[n], Class::Guaranteed).unwrap();
    }
    let held = alice.next_notice(PATIENCE).unwrap().expect("a refusal");
    assert!(matches!(held, Notice::Held { seq: 3, code: 7, .. }), "{held:?}");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for n in 0..6_u8 {
                let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
                assert_eq!(delivery.body, [n]);
                bob.ack(delivery.inbox_seq).unwrap();
            }
        });
        alice.wait_sent(b"bob", 6, PATIENCE).unwrap();
        reader.join().unwrap();
    });
}
