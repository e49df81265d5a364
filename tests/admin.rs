//! The admin HTTP of the real process, quiet and under load, and how the
//! server stops.

mod server;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use client::blocking::Notice;
use rustix::process::Signal;
use serde_json::Value;
use server::peer::{Peer, hello};
use server::{Deadline, PATIENCE, Server, Setup, get};
use wire::id::Class;
use wire::refuse::Code;
use wire::v2::{self, Request};

const STAGES: [&str; 5] =
    ["receive_to_append", "append_to_durable", "durable_to_delivered", "end_to_end", "turn"];

#[track_caller]
fn json(server: &Server, path: &str) -> Value {
    let (status, body) = server.get(path);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// `count` messages from one user to another, delivered and acknowledged.
#[track_caller]
fn talk(server: &Server, from: &str, to: &str, count: u32) {
    let mut sender = server.v2(from, 1);
    let mut receiver = server.v2(to, 1);
    for n in 0..count {
        sender.send(to.as_bytes(), &n.to_be_bytes(), Class::Guaranteed).unwrap();
    }
    // More than a window is on its way: the rest goes out as answers come.
    sender.wait_sent(to.as_bytes(), count.into(), PATIENCE).unwrap();
    for _ in 0..count {
        let delivery = receiver.next_delivery(PATIENCE).unwrap().expect("a message");
        receiver.ack(delivery.inbox_seq).unwrap();
    }
    receiver.ping(1, PATIENCE).unwrap();
}

#[test]
fn health_is_good_from_the_first_moment() {
    for _ in 0..5 {
        let server = Setup::new().shards(3).start();
        let health = json(&server, "/health");
        assert_eq!(health["status"], "ok", "{health}");
        assert_eq!(health["shards"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn counts_are_those_of_what_happened() {
    let server = Setup::new().shards(2).start();
    talk(&server, "alice", "bob", 300);
    server.wait_metric("iris_messages_appended_total", |count| count == 300.0);
    server.wait_metric("iris_sends_total", |count| count == 300.0);
    server.wait_metric("iris_deliveries_total", |count| count == 300.0);
    server.wait_metric("iris_messages_burned_total", |count| count == 300.0);
    server.wait_metric("iris_inbox_messages", |count| count == 0.0);
    server.wait_metric("iris_users", |count| count == 2.0);
    server.wait_metric("iris_logins_total", |count| count == 2.0);
    server.wait_metric("iris_sessions", |count| count == 0.0);
    assert!(server.metric("iris_log_bytes_total") > 300.0 * 4.0);
    assert!(server.metric("process_resident_memory_bytes") > 1e6);
}

#[test]
fn what_a_connection_costs_is_told_in_parts() {
    let server = Setup::new().shards(1).start();
    let part = |name: &str| {
        let (_, metrics) = server.get("/metrics");
        let series = format!("iris_connection_bytes{{part=\"{name}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    assert_eq!(part("resident"), None, "nobody is there");
    let crowd: Vec<_> = (0..50).map(|n| server.v2(&format!("u{n}"), 1)).collect();
    server.wait_metric("iris_sessions", |count| count == 50.0);
    assert!(part("tables").unwrap() > 0.0);
    assert!(part("resident").is_some() && part("kernel").is_some());
    drop(crowd);
}

#[test]
fn latencies_are_there_with_their_percentiles() {
    let server = Setup::new().shards(2).start();
    talk(&server, "alice", "bob", 500);
    server.wait_metric("iris_deliveries_total", |count| count == 500.0);
    let latency = json(&server, "/latency?by=shard");
    for stage in STAGES {
        let found = &latency["since_start"]["stages"][stage];
        let at = |name: &str| found[name].as_u64().unwrap_or_else(|| panic!("{stage} {found}"));
        if stage != "turn" {
            assert!(at("count") >= 1, "{stage} {found}");
            // The clock is read more than once in a turn.
            assert!(at("p50") > 0 && at("max") > at("min"), "{stage} {found}");
        }
        let order = ["min", "p50", "p75", "p90", "p99", "p99_9", "p99_99", "p99_999", "max"];
        let values: Vec<u64> = order.into_iter().map(at).collect();
        assert!(values.is_sorted(), "{stage} {values:?}");
        let (status, text) = server.get(&format!("/latency.hgrm?stage={stage}"));
        assert_eq!(status, 200);
        assert!(text.contains("Percentile") && text.contains("#[Mean"), "{text}");
    }
    let count = latency["since_start"]["stages"]["append_to_durable"]["count"].as_u64().unwrap();
    assert_eq!(count, 500);
    let by_shard: u64 = latency["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["since_start"]["stages"]["append_to_durable"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(by_shard, 500);
}

/// What happened since the start stays, what happened lately is forgotten.
#[test]
fn the_last_interval_is_another_window_than_the_whole_life() {
    let server = Setup::new().shards(2).start();
    talk(&server, "alice", "bob", 100);
    server.wait_metric("iris_deliveries_total", |count| count == 100.0);
    let count = |window: &str| {
        let latency = json(&server, "/latency");
        latency[window]["stages"]["append_to_durable"]["count"].as_u64().expect("a count")
    };
    let deadline = Deadline::new();
    while count("last_interval") != 0 {
        deadline.pause(|| format!("{} of the last interval", count("last_interval")));
    }
    assert_eq!(count("since_start"), 100);
    let total = |window: &str| {
        let path = format!("/latency.hgrm?stage=append_to_durable&window={window}");
        let (status, text) = server.get(&path);
        assert_eq!(status, 200, "{text}");
        let (_, footer) = text.split_once("Total count").expect("a footer");
        let numbers = footer.split(|c: char| !c.is_ascii_digit());
        numbers.filter_map(|number| number.parse::<u64>().ok()).next()
    };
    assert_eq!((total("start"), total("interval")), (Some(100), Some(0)));
}

#[test]
fn what_is_not_there_is_said_to_be_missing() {
    let server = Server::start();
    for (path, status) in [
        ("/", 200),
        ("/nothing", 404),
        ("/latency.hgrm", 404),
        ("/latency.hgrm?stage=none", 404),
        ("/latency?by=user", 400),
        ("/latency.hgrm?stage=turn&window=year", 400),
    ] {
        assert_eq!(server.get(path).0, status, "{path}");
    }
}

/// Every core does nothing but messages, and the admin answers beside it.
#[test]
fn it_answers_while_all_cores_are_busy() {
    const PAIRS: usize = 6;
    let server = Setup::new().shards(2).start();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for pair in 0..PAIRS {
            let is_over = &is_over;
            let (from, to) = (format!("from-{pair}"), format!("to-{pair}"));
            let (mut sender, mut receiver) = (server.v2(&from, 1), server.v2(&to, 1));
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut last = 0;
                    for _ in 0..100 {
                        last = sender.send(to.as_bytes(), b"load", Class::BestEffort).unwrap();
                    }
                    for _ in 0..100 {
                        let delivery = receiver.next_delivery(PATIENCE).unwrap().expect("served");
                        receiver.ack(delivery.inbox_seq).unwrap();
                    }
                    sender.wait_sent(to.as_bytes(), last, PATIENCE).unwrap();
                }
            });
        }
        let _over = Over(&is_over);
        server.wait_metric("iris_deliveries_total", |count| count > 1_000.0);
        let mut before = 0.0;
        let mut slowest = std::time::Duration::ZERO;
        for _ in 0..20 {
            for path in ["/health", "/metrics", "/latency", "/latency.hgrm?stage=end_to_end"] {
                let began = Instant::now();
                assert_eq!(server.get(path).0, 200, "{path}");
                slowest = slowest.max(began.elapsed());
            }
            before = server.wait_metric("iris_turns_total", |turns| turns >= before);
        }
        println!("slowest answer {slowest:?}");
        assert!(slowest < PATIENCE / 3, "{slowest:?}");
        let latency = json(&server, "/latency");
        let interval = &latency["last_interval"]["stages"]["end_to_end"];
        assert!(interval["p99_999"].as_u64().unwrap() > 0, "{latency}");
    });
}

/// Tells the others when this test ends, however it does.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_stop_says_goodbye_and_loses_nothing() {
    let server = Setup::new().shards(3).start();
    let admin = server.admin();
    let addr = server.addr();
    let mut alice = server.v2("alice", 1);
    for n in 0..200_u8 {
        alice.send(b"bob", &[n], Class::Guaranteed).unwrap();
    }
    alice.wait_sent(b"bob", 200, PATIENCE).unwrap();
    let mut device = Peer::v2(addr, &hello("carol", 1)).0;
    let mut old = Peer::v1(addr, "dave");
    let mut fresh = Peer::connect(addr);
    server.signal(Signal::TERM);
    device.expect_goaway(Code::Draining);
    old.expect_closed();
    fresh.expect_closed();
    let goodbye = alice.next_notice(PATIENCE).unwrap().expect("a goodbye");
    let Notice::Goaway { code, reconnect_after_ms } = goodbye else { panic!("{goodbye:?}") };
    assert_eq!(code, Code::Draining as u16);
    assert!(reconnect_after_ms > 0, "it says when to come back");
    let setup = server.setup().clone();
    drop((device, old, fresh));
    let session = alice.into_session();
    let ended = server.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("SIGTERM"), "{}", ended.stderr);
    assert!(get(admin, "/health").is_err(), "the admin has ended, too");
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for n in 0..200_u8 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.body, [n]);
        bob.ack(delivery.inbox_seq).unwrap();
    }
    let mut alice =
        client::blocking::Client::connect_session(server.addr(), session).expect("again");
    alice.send_and_wait(b"bob", b"after", PATIENCE).unwrap();
}

/// In the middle of everything, again and again: what was not confirmed is
/// sent again by its client, and nothing comes twice.
#[test]
fn a_stop_under_load_loses_nothing() {
    let mut server = Setup::new().shards(2).start();
    let mut alice = server.v2("alice", 1);
    let mut sent = 0_u32;
    for _ in 0..5 {
        for _ in 0..200 {
            alice.session().send(b"bob", &sent.to_be_bytes(), Class::Guaranteed).unwrap();
            sent += 1;
        }
        // Some are confirmed, some are under way.
        let first = alice.session().unsent();
        while alice.session().unsent() == first {
            alice.ping(1, PATIENCE).unwrap();
        }
        server.signal(Signal::INT);
        // Reads on until the end, as a good client does.
        while alice.next_notice(PATIENCE).is_ok() {}
        let setup = server.setup().clone();
        let ended = server.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        server = setup.start();
        alice.reconnect(Some(server.addr())).unwrap();
    }
    alice.wait_sent(b"bob", sent.into(), PATIENCE).unwrap();
    let mut bob = server.v2("bob", 1);
    for n in 0..sent {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.body, n.to_be_bytes());
        bob.ack(delivery.inbox_seq).unwrap();
    }
}

/// Somebody who does not leave holds up a stop for seconds only.
#[test]
fn who_does_not_leave_is_left() {
    let server = Setup::new().shards(2).start();
    let _deaf: Vec<Peer> = (0..20).map(|n| Peer::v1(server.addr(), &format!("deaf-{n}"))).collect();
    let began = Instant::now();
    server.stop();
    println!("stopped after {:?}", began.elapsed());
}

/// Logins keep arriving from the other cores while the server stops: all of
/// them are sent away or closed, and none holds up the stop.
#[test]
fn who_moves_while_the_server_stops_is_sent_away() {
    for _ in 0..3 {
        let server = Setup::new().shards(4).start();
        let addr = server.addr();
        let welcomed = AtomicU32::new(0);
        let ended = thread::scope(|scope| {
            for crowd in 0..4 {
                let welcomed = &welcomed;
                scope.spawn(move || crowd_until_refused(addr, crowd, welcomed));
            }
            let deadline = Deadline::new();
            while welcomed.load(Ordering::Relaxed) < 50 {
                deadline.pause(|| "nobody logs in".to_owned());
            }
            server.signal(Signal::TERM);
            server.wait()
        });
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("everything acknowledged is on the disk"));
    }
}

/// Logs in again and again, each time as another user, until nobody listens
/// any more. Every connection comes to an end.
fn crowd_until_refused(addr: SocketAddr, crowd: u32, welcomed: &AtomicU32) {
    let mut kept = Vec::new();
    for n in 0.. {
        let Ok(mut stream) = TcpStream::connect(addr) else { break };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut login = v2::PREFACE.to_vec();
        let user = format!("crowd-{crowd}-{n}");
        v2::put_request(&mut login, &Request::Hello(hello(&user, 1)));
        let mut first = [0; 6];
        if stream.write_all(&login).is_ok() && stream.read_exact(&mut first).is_ok() {
            welcomed.fetch_add(1, Ordering::Relaxed);
            // Some stay, some go.
            if n % 4 == 0 {
                kept.push(stream);
            }
        }
    }
    for mut stream in kept {
        // What it says in the end, and a reset counts as an end; a timeout does not.
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}
