//! The same promises whatever the number of shards, more than there are cores
//! included: every pair of shards, order, moving connections, status.

mod server;

use std::io::ErrorKind;

use client::blocking::Client;
use server::halt::Halted;
use server::peer::{Peer, hello, send};
use server::skipped::skipped;
use server::{PATIENCE, Setup};
use wire::id::Class;
use wire::v1::Packet;
use wire::v2::{self, Reply, Request};

const COUNTS: [u16; 4] = [1, 2, 3, 7];

/// What the tuner chose and why, where the data is, and what to try next.
#[test]
fn a_start_says_what_was_chosen_and_what_to_try() {
    for (setup, why) in [(Setup::new(), "core"), (Setup::new().shards(3), "set by shards")] {
        let server = setup.start();
        server.wait_said("try: ");
        let said = server.stderr();
        let line = |words: &str| {
            let found = said.lines().find(|line| line.contains(words));
            found.unwrap_or_else(|| panic!("'{words}' is not said: {said}"))
        };
        assert!(line(" shards: ").contains(why), "{said}");
        for chosen in [" memory: ", " connections: "] {
            assert!(line(chosen).ends_with(')'), "no reason: {said}");
        }
        let serves = line("protocols v1 and v2");
        assert!(serves.contains(&server.addr().to_string()), "{said}");
        assert!(serves.contains(&server.setup().data_dir().display().to_string()), "{said}");
        assert!(line("/latency, ").contains(&server.admin().to_string()), "{said}");
        assert!(line("try: ").contains("iris-loadgen"), "{said}");
    }
}

/// Every user sends to every user, itself included; each pair stays in order.
#[test]
fn every_pair_of_shards_keeps_its_order() {
    const EACH: usize = 40;
    for shards in COUNTS {
        let server = Setup::new().shards(shards).start();
        let names = server.names("user", 2);
        let mut clients: Vec<Client> = names.iter().map(|name| server.v2(name, 1)).collect();
        for n in 0..EACH {
            for client in &mut clients {
                for to in &names {
                    let body = format!("{n}");
                    client.send(to.as_bytes(), body.as_bytes(), Class::Guaranteed).unwrap();
                }
            }
        }
        for (client, name) in clients.iter_mut().zip(&names) {
            let mut next = vec![0; names.len()];
            for _ in 0..EACH * names.len() {
                let delivery = client.next_delivery(PATIENCE).unwrap().expect("a message");
                let from = names.iter().position(|name| name.as_bytes() == delivery.from).unwrap();
                let expected = format!("{}", next[from]);
                assert_eq!(delivery.body, expected.as_bytes(), "{} → {name}", names[from]);
                assert_eq!(delivery.send_seq, next[from] + 1);
                next[from] += 1;
                client.ack(delivery.inbox_seq).unwrap();
            }
        }
        for client in &mut clients {
            for to in &names {
                client.wait_sent(to.as_bytes(), EACH as u64, PATIENCE).unwrap();
            }
        }
        // Each sits on the core of its user.
        let (_, metrics) = server.get("/metrics");
        for shard in 0..shards {
            assert!(metrics.contains(&format!("iris_sessions{{shard=\"{shard}\"}}")), "{metrics}");
        }
        server.wait_metric("iris_sessions", |sessions| sessions == names.len() as f64);
        server.wait_metric("iris_inbox_messages", |waiting| waiting == 0.0);
    }
}

/// Much more than any queue between two shards holds at once.
#[test]
fn a_flood_across_shards_keeps_its_order() {
    const COUNT: u64 = 6_000;
    for shards in [2, 7] {
        let server = Setup::new().shards(shards).start();
        let names = server.names("user", 1);
        let (from, to) = (&names[0], &names[names.len() - 1]);
        let mut receiver = server.v2(to, 1);
        let mut sender = Peer::v2(server.addr(), &hello(from, 1)).0;
        let mut stream = Vec::new();
        for seq in 1..=COUNT {
            let body = format!("{seq} {}", ".".repeat((seq % 700) as usize));
            v2::put_request(&mut stream, &Request::Send(send(to, seq, body.as_bytes())));
        }
        std::thread::scope(|scope| {
            // Answers are read meanwhile: who does not read is not read.
            let writer = scope.spawn({
                let mut writer = sender.stream().try_clone().unwrap();
                move || std::io::Write::write_all(&mut writer, &stream)
            });
            let reader = scope.spawn(move || {
                let mut settled = 0;
                while settled < COUNT {
                    let reply = sender.reply();
                    match reply.get() {
                        Reply::Sent { seq, .. } if seq > settled => settled = seq,
                        other => panic!("{other:?} after {settled}"),
                    }
                }
            });
            for seq in 1..=COUNT {
                let delivery = receiver.next_delivery(PATIENCE).unwrap().expect("a message");
                assert_eq!(delivery.send_seq, seq);
                assert!(delivery.body.starts_with(format!("{seq} ").as_bytes()));
                receiver.ack(delivery.inbox_seq).unwrap();
            }
            writer.join().unwrap().unwrap();
            reader.join().unwrap();
        });
    }
}

/// The connection moves to another core while frames are right behind HELLO.
#[test]
fn what_is_behind_the_login_moves_along() {
    for shards in COUNTS {
        let server = Setup::new().shards(shards).start();
        let names = server.names("user", 6);
        for name in &names {
            let mut stream = v2::PREFACE.to_vec();
            v2::put_request(&mut stream, &Request::Hello(hello(name, 1)));
            for seq in 1..=30 {
                let body = vec![b'x'; 400];
                v2::put_request(&mut stream, &Request::Send(send("sink", seq, &body)));
            }
            v2::put_request(&mut stream, &Request::Ping { nonce: 1 });
            let mut peer = Peer::connect(server.addr());
            peer.write(&stream);
            let mut settled = 0;
            let mut pong = false;
            assert!(matches!(peer.reply().get(), Reply::Welcome(_)));
            while settled < 30 || !pong {
                let reply = peer.reply();
                match reply.get() {
                    Reply::Sent { seq, .. } if seq > settled => settled = seq,
                    Reply::Pong { nonce: 1 } => pong = true,
                    other => panic!("{other:?}"),
                }
            }
        }
        let mut sink = server.v2("sink", 1);
        let mut left = 30 * names.len();
        while left > 0 {
            let delivery = sink.next_delivery(PATIENCE).unwrap().expect("a message");
            assert_eq!(delivery.body.len(), 400);
            sink.ack(delivery.inbox_seq).unwrap();
            left -= 1;
        }
    }
}

#[test]
fn status_is_known_everywhere() {
    for shards in COUNTS {
        let server = Setup::new().shards(shards).start();
        let names = server.names("user", 3);
        let mut peers: Vec<Peer> = names.iter().map(|name| Peer::v1(server.addr(), name)).collect();
        let mut stranger = Peer::connect(server.addr());
        for asking in peers.iter_mut().chain([&mut stranger]) {
            for name in &names {
                assert_eq!(asking.status(name), (true, 0));
            }
            assert_eq!(asking.status("nobody"), (false, 0));
        }
        // All questions at once: answers from many shards, each complete.
        for name in &names {
            stranger.packet(&Packet::GetStatus { user: name.as_bytes() });
        }
        let mut answers: Vec<Vec<u8>> = Vec::new();
        for _ in &names {
            let answer = stranger.answer();
            let wire::v1::Answer::Status { user, online: true, .. } = answer.get() else {
                panic!("{answer:?}")
            };
            answers.push(user.to_vec());
        }
        answers.sort();
        let mut expected: Vec<Vec<u8>> = names.iter().cloned().map(String::into_bytes).collect();
        expected.sort();
        assert_eq!(answers, expected);
    }
}

#[test]
fn v1_users_of_all_shards_reach_each_other() {
    for shards in COUNTS {
        let server = Setup::new().shards(shards).start();
        let names = server.names("user", 1);
        let mut peers: Vec<Peer> = names.iter().map(|name| Peer::v1(server.addr(), name)).collect();
        for (peer, from) in peers.iter_mut().zip(&names) {
            for to in &names {
                for n in 0..10 {
                    let body = format!("{from} {n}");
                    peer.packet(&Packet::Send { target: to.as_bytes(), body: body.as_bytes() });
                }
            }
        }
        for peer in &mut peers {
            let mut next = vec![0; names.len()];
            for _ in 0..10 * names.len() {
                let (id, body) = peer.delivery();
                let text = String::from_utf8(body).unwrap();
                let (from, n) = text.split_once(' ').unwrap();
                let from = names.iter().position(|name| name == from).unwrap();
                assert_eq!(n, next[from].to_string(), "from {}", names[from]);
                next[from] += 1;
                peer.packet(&Packet::Ack { id });
            }
            peer.expect_quiet_v1();
        }
    }
}

#[test]
fn every_address_serves_everybody() {
    let server = Setup::new()
        .shards(3)
        .argument("--listen")
        .argument("127.0.0.1:0")
        .argument("--listen")
        .argument("127.0.0.2:0")
        .start();
    let addrs = server.addrs().to_vec();
    assert_eq!(addrs.len(), 3);
    let mut peers: Vec<Peer> =
        addrs.iter().enumerate().map(|(n, addr)| Peer::v1(*addr, &format!("user-{n}"))).collect();
    for peer in &mut peers {
        for n in 0..3 {
            let target = format!("user-{n}");
            peer.packet(&Packet::Send { target: target.as_bytes(), body: b"hello" });
        }
    }
    for peer in &mut peers {
        for _ in 0..3 {
            peer.expect_message(b"hello");
        }
    }
}

#[test]
fn a_restart_finds_every_shard_again() {
    for shards in COUNTS {
        let server = Setup::new().shards(shards).start();
        let names = server.names("user", 3);
        let mut sender = server.v2("sender", 1);
        for name in &names {
            for n in 0..20_u8 {
                sender.send(name.as_bytes(), &[n], Class::Guaranteed).unwrap();
            }
        }
        for name in &names {
            sender.wait_sent(name.as_bytes(), 20, PATIENCE).unwrap();
        }
        let server = server.crash_and_restart();
        for name in &names {
            let mut client = server.v2(name, 1);
            for n in 0..20_u8 {
                let delivery = client.next_delivery(PATIENCE).unwrap().expect("a message");
                assert_eq!(delivery.body, [n]);
                client.ack(delivery.inbox_seq).unwrap();
            }
        }
    }
}

/// A core that is kept from turning is noticed and named, the others serve
/// meanwhile, and it goes on where it was.
#[test]
fn a_core_that_stands_still_is_named_and_rung() {
    let server = Setup::new().shards(2).start();
    let names = server.names("user", 2);
    let (here, there) = names.split_at(2);
    let mut clients: Vec<Client> = names.iter().map(|name| server.v2(name, 1)).collect();
    let halted = match Halted::new(server.pid(), "shard-1") {
        Ok(halted) => halted,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return skipped(format!("tracing a child is forbidden here: {error}"));
        }
        Err(error) => panic!("{error}"),
    };
    server.wait_said("this shard has not turned for 3 s");
    assert!(server.stderr().contains("shard=1"), "{}", server.stderr());
    clients[0].send(here[1].as_bytes(), b"meanwhile", Class::Guaranteed).unwrap();
    let delivery = clients[1].next_delivery(PATIENCE).unwrap().expect("a message");
    assert_eq!(delivery.body, b"meanwhile");
    clients[2].send(there[1].as_bytes(), b"later", Class::Guaranteed).unwrap();
    drop(halted);
    server.wait_said("this shard turns again");
    let delivery = clients[3].next_delivery(PATIENCE).unwrap().expect("a message");
    assert_eq!(delivery.body, b"later");
}
