//! The real process when it is asked for more than it can give: logins beyond
//! their rate, clients that do not read, and what it says of them.

mod server;

use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use client::blocking::{Client, ClientV1, LoginRefused};
use serde_json::Value;
use server::peer::{Peer, hello};
use server::{Deadline, PATIENCE, Server, Setup};
use wire::id::Class;
use wire::refuse::Code;
use wire::v2::{Hello, Reply, Request};

/// Everybody at once: some are served, the others are told when to come back,
/// all are in at the end, and who was there before notices nothing.
#[test]
fn a_storm_of_logins_is_put_off_and_comes_in() {
    const CLIENTS: u64 = 50;
    let server = Setup::new().shards(2).set("limits.logins_per_second", "5").start();
    let addr = server.addr();
    let mut alice = Client::connect_within(addr, b"alice", 1, PATIENCE).unwrap();
    let is_over = AtomicBool::new(false);
    let clients: Vec<Client> = thread::scope(|scope| {
        let witness = scope.spawn(|| {
            let mut told = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                alice.send_and_wait(b"alice", b"still here", PATIENCE).unwrap();
                let delivery = alice.next_delivery(PATIENCE).unwrap().expect("a message");
                alice.ack(delivery.inbox_seq).unwrap();
                told += 1;
            }
            told
        });
        let enter = |n: u64| {
            let user = format!("user-{n}");
            Client::connect_within(addr, user.as_bytes(), 1, PATIENCE).unwrap()
        };
        let enters: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || enter(n))).collect();
        let clients = enters.into_iter().map(|it| it.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(witness.join().unwrap() > 0, "the witness was served");
        clients
    });
    let put_off: u32 = clients.iter().map(Client::put_off).sum();
    assert!(put_off > 0, "five a second are not enough for all of them");
    assert!(clients.iter().any(|client| client.put_off() == 0), "some come in at once");
    server.wait_metric("iris_sessions", |sessions| sessions == (CLIENTS + 1) as f64);
    server.wait_metric("iris_logins_put_off_total", |count| count >= f64::from(put_off));
    // Nobody who was put off has become a user by that alone.
    assert_eq!(server.metric("iris_users"), (CLIENTS + 1) as f64);
    alice.ping(1, PATIENCE).unwrap();
    server.stop();
}

/// v2 is told a code and a time, v1 the word it knows.
#[test]
fn each_protocol_has_its_word_for_too_many() {
    let server = Setup::new().shards(1).set("limits.logins_per_second", "1").start();
    let addr = server.addr();
    let error = first_refusal(|user| Client::connect(addr, user, 1).err());
    let word = *error.get_ref().unwrap().downcast_ref::<LoginRefused>().unwrap();
    assert_eq!(word.code, Code::RateLimited as u16);
    assert!((250..=2_000).contains(&word.retry_after_ms), "{word:?}");
    let error = first_refusal(|user| ClientV1::connect(addr, user).err());
    assert!(error.to_string().contains("LoginRateLimited"), "{error}");
}

/// Logs in again and again until that is refused.
#[track_caller]
fn first_refusal(connect: impl Fn(&[u8]) -> Option<Error>) -> Error {
    let deadline = Deadline::new();
    loop {
        deadline.check(|| "more than one login a second comes in".to_owned());
        if let Some(error) = connect(b"somebody") {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            return error;
        }
    }
}

/// Who does not read and who is written to most stand at the top, with names,
/// also while a shard does nothing else.
#[test]
fn top_names_the_worst() {
    let server = Setup::new().shards(2).start();
    let mut sender = server.v2("sender", 1);
    let mut reader = server.v2("reader", 7);
    let mut deaf = Peer::v2(server.addr(), &Hello { credit: 3, ..hello("deaf", 9) }).0;
    for n in 0..40_u64 {
        sender.send(b"absent", &n.to_be_bytes(), Class::Guaranteed).unwrap();
        sender.send(b"deaf", &n.to_be_bytes(), Class::Guaranteed).unwrap();
    }
    sender.wait_sent(b"absent", 40, PATIENCE).unwrap();
    sender.wait_sent(b"deaf", 40, PATIENCE).unwrap();
    sender.send_and_wait(b"reader", b"hi", PATIENCE).unwrap();
    let delivery = reader.next_delivery(PATIENCE).unwrap().expect("a message");
    reader.ack(delivery.inbox_seq).unwrap();
    reader.ping(1, PATIENCE).unwrap();
    let mut first = server.v1("first");
    first.send(b"sender", b"x").unwrap();
    first.status(b"sender", PATIENCE).unwrap();

    let row = wait_top(&server, "inbox", |rows| rows[0]["inbox_messages"] == 40).swap_remove(0);
    assert!(row["inbox_bytes"].as_u64() > Some(40 * 8), "{row}");
    let rows = wait_top(&server, "inbox", |rows| rows.len() >= 3);
    let named = |user: &str| rows.iter().find(|row| row["user"] == user).expect(user);
    assert_eq!(named("absent")["connected"], 0);
    assert_eq!(named("deaf")["connected"], 1);
    assert!(named("deaf").get("unsent_bytes").is_none(), "a user is no connection");

    let rows = wait_top(&server, "sent", |rows| rows.len() == 2);
    assert_eq!((&rows[0]["user"], &rows[0]["sent"]), (&"sender".into(), &81.into()));
    assert_eq!((&rows[1]["user"], &rows[1]["protocol"]), (&"first".into(), &1.into()));
    let rows = wait_top(&server, "received", |rows| rows.len() == 3);
    assert_eq!((&rows[0]["user"], &rows[0]["received"]), (&"deaf".into(), &3.into()));
    let rows = wait_top(&server, "unacknowledged", |rows| rows.len() == 2);
    assert_eq!((&rows[0]["user"], &rows[0]["device"]), (&"deaf".into(), &9.into()));
    assert_eq!(rows[0]["unacknowledged"], 3);

    let (status, table) = server.get("/top?by=unacknowledged&limit=1");
    assert_eq!(status, 200, "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.lines().nth(2).unwrap().starts_with("deaf "), "{table}");
    for wrong in ["/top?by=beauty", "/top.json?limit=0", "/top?limit=101", "/top?limit=x"] {
        assert_eq!(server.get(wrong).0, 400, "{wrong}");
    }
    deaf.request(&Request::Ping { nonce: 1 });
}

/// Whoever does not read its socket has unsent bytes.
#[test]
fn top_shows_what_is_not_read() {
    let server = Setup::new().shards(1).start();
    let mut sender = server.v2("sender", 1);
    let _deaf = Peer::v2(server.addr(), &Hello { credit: 60_000, ..hello("deaf", 9) });
    // More than the kernel's buffers on both ends take.
    let body = vec![b'x'; 60_000];
    let mut last = 0;
    for _ in 0..400 {
        last = sender.send(b"deaf", &body, Class::Guaranteed).unwrap();
    }
    sender.wait_sent(b"deaf", last, PATIENCE).unwrap();
    let rows = wait_top(&server, "unsent", |rows| !rows.is_empty());
    assert_eq!(rows[0]["user"], "deaf");
    assert!(rows[0]["unsent_bytes"].as_u64() > Some(0));
}

/// The rows of `/top.json`, once they are as expected.
#[track_caller]
fn wait_top(server: &Server, by: &str, is_fine: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Deadline::new();
    loop {
        let (status, text) = server.get(&format!("/top.json?by={by}"));
        assert_eq!(status, 200, "{text}");
        let top: Value = serde_json::from_str(&text).expect("JSON");
        let rows = top["rows"].as_array().expect("rows").clone();
        if !rows.is_empty() && top["silent_shards"] == Value::Array(vec![]) && is_fine(&rows) {
            return rows;
        }
        deadline.pause(|| format!("by {by}: {text}"));
    }
}

/// The highest level, by incomplete frames that fill their memory: who sends
/// much is read more slowly, receipts are shed, nothing else is lost, and all of
/// it ends by itself.
#[test]
fn at_the_highest_level_senders_are_paced_and_nothing_is_lost() {
    const MESSAGES: u64 = 60;
    // The least memory: 4 MiB of it for incomplete frames.
    let server = Setup::new().shards(1).set("memory_bytes", "64MiB").start();
    let mut alice = server.v2("alice", 1);
    let mut asks = Peer::v2(server.addr(), &hello("asks", 1)).0;
    let mut bob = server.v2("bob", 1);
    // The beginnings of packets of v1. Those that find no memory are cut.
    let begin = [b"\x10\x00\x01x\x00\x04\x00\x00".to_vec(), vec![0; 60_000]].concat();
    let mut holders = Vec::new();
    for n in 0..90 {
        let mut holder = Peer::v1(server.addr(), &format!("holder-{n}"));
        if holder.try_write(&begin) {
            holders.push(holder);
        }
    }
    server.wait_metric("iris_flow_level", |level| level == 3.0);

    // All of them at once, in pieces that hold much.
    let body = vec![b'x'; 2_000];
    for _ in 0..MESSAGES {
        alice.send(b"bob", &body, Class::Guaranteed).unwrap();
    }
    alice.wait_sent(b"bob", MESSAGES, PATIENCE).unwrap();
    let send = wire::v2::Send {
        seq: 1,
        class: Class::Guaranteed,
        flags: wire::v2::flag::WANTS_DELIVERED,
        expiry_s: 0,
        to: b"bob",
        body: b"last",
    };
    asks.request(&Request::Send(send));
    assert!(matches!(asks.reply().get(), Reply::Sent { seq: 1, .. }));
    for n in 0..=MESSAGES {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("nothing is lost");
        assert_eq!(delivery.body.len(), if n < MESSAGES { 2_000 } else { 4 });
        bob.ack(delivery.inbox_seq).unwrap();
    }
    server.wait_metric("iris_flow_shed_total", |shed| shed == 1.0);
    assert!(server.metric("iris_flow_paced_total") > 0.0);

    drop(holders);
    server.wait_metric("iris_flow_level", |level| level == 0.0);
    assert!(server.metric("iris_flow_transitions_total") >= 4.0, "up at once and down in steps");
    asks.request(&Request::Send(wire::v2::Send { seq: 2, ..send }));
    assert!(matches!(asks.reply().get(), Reply::Sent { seq: 2, .. }));
    let delivery = bob.next_delivery(PATIENCE).unwrap().expect("one more");
    bob.ack(delivery.inbox_seq).unwrap();
    assert!(matches!(asks.reply().get(), Reply::Delivered { seq: 2, .. }));
}

/// Who owes something and gives no sign is cut and loses nothing; everybody
/// else stays, however slow.
#[test]
fn who_gives_no_sign_is_cut_and_who_is_slow_is_not() {
    let server = Setup::new().shards(1).set("limits.stalled_ms", "3000").start();
    let mut sender = server.v2("sender", 1);
    let mut idle = server.v2("idle", 1);
    // Reads and acknowledges nothing; says something all the time.
    let mut lazy = server.v2("lazy", 1);
    let mut silent = Peer::v2(server.addr(), &hello("silent", 1)).0;
    let deaf = Peer::v2(server.addr(), &Hello { credit: 60_000, ..hello("deaf", 1) }).0;
    let mut first = server.v1("first");
    sender.send_and_wait(b"lazy", b"x", PATIENCE).unwrap();
    sender.send_and_wait(b"silent", b"x", PATIENCE).unwrap();
    sender.send_and_wait(b"first", b"x", PATIENCE).unwrap();
    // More than the kernel's buffers on both ends take.
    let body = vec![b'x'; 60_000];
    for _ in 0..400 {
        sender.send(b"deaf", &body, Class::Guaranteed).unwrap();
    }
    sender.wait_sent(b"deaf", 400, PATIENCE).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talk = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                lazy.ping(1, PATIENCE).unwrap();
            }
        });
        assert!(matches!(silent.reply().get(), Reply::Deliver(_)));
        let reply = silent.reply();
        let Reply::Goaway { code, reconnect_after_ms, .. } = reply.get() else {
            panic!("{reply:?}")
        };
        assert_eq!((code, reconnect_after_ms > 0), (Code::Timeout as u16, true));
        server.wait_metric("iris_stalled_total", |cut| cut == 2.0);
        // The time for another round passes before those who stay are asked.
        server.wait_metric("iris_uptime_seconds", |seconds| seconds > 10.0);
        assert_eq!(server.metric("iris_stalled_total"), 2.0);
        is_over.store(true, Ordering::Relaxed);
        talk.join().unwrap();
    });
    idle.ping(1, PATIENCE).unwrap();
    first.status(b"idle", PATIENCE).unwrap();
    drop(deaf);
    // Whoever was cut finds everything when it comes back.
    let mut silent = server.v2("silent", 1);
    assert_eq!(silent.next_delivery(PATIENCE).unwrap().expect("it waits").body, b"x");
    let mut deaf = server.v2("deaf", 1);
    for _ in 0..400 {
        let delivery = deaf.next_delivery(PATIENCE).unwrap().expect("they wait");
        deaf.ack(delivery.inbox_seq).unwrap();
    }
    server.wait_metric("iris_inbox_messages", |waiting| waiting == 3.0);
}
