//! Connections move between cores: two hands on two threads, joined by a mesh.
#![allow(missing_docs)]

mod world;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use net::{CloseReason, Event, Hands, HandsOptions, Mesh, Moved, Quota};
use world::{World, pattern, ways};

/// A core that attaches whatever comes and echoes, until nothing comes any more and nobody is
/// left. Gives its counters back.
fn echoing_core(
    options: HandsOptions,
    mesh: &Mesh<Option<Box<Moved>>>,
) -> (net::Peer, thread::JoinHandle<net::HandsStats>) {
    let port = mesh.port(1);
    let (tell, told) = mpsc::channel();
    let handle = thread::spawn(move || {
        let mut hands = Hands::new(options, Vec::new()).unwrap();
        port.set_waker(hands.waker());
        tell.send(hands.peer()).unwrap();
        let mut events = Vec::new();
        let mut more = true;
        while more || hands.stats().conns > 0 {
            if !port.has_incoming() && port.sleep() {
                hands.wait(Duration::from_millis(5));
            }
            port.awake();
            while let Some(cargo) = port.pop(0) {
                match cargo {
                    Some(moved) => {
                        hands.attach(*moved);
                    }
                    None => more = false,
                }
            }
            hands.reap(&mut events);
            for event in events.drain(..) {
                if let Event::Received { conn } = event {
                    let bytes = hands.received(conn).to_vec();
                    hands.consume(conn, bytes.len());
                    hands.send(conn, &bytes);
                }
            }
        }
        hands.stats()
    });
    (told.recv().unwrap(), handle)
}

/// Greets, is moved in the middle of a word, and goes on talking.
fn talk(mut stream: TcpStream, word: &[u8]) {
    stream.write_all(&word[..word.len() / 2]).unwrap();
    let mut got = vec![0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, b"there"); // sent before the move, by the old core
    stream.write_all(&word[word.len() / 2..]).unwrap();
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, word);
}

#[test]
fn connections_move_with_their_bytes() {
    const CLIENTS: usize = 12;
    for options in ways() {
        let mesh: Mesh<Option<Box<Moved>>> = Mesh::new(2, 4);
        let port = mesh.port(0);
        let (peer, other) = echoing_core(options.clone(), &mesh);
        let mut world = World::new(options);
        let addr = world.addr;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|i| {
                thread::spawn(move || {
                    let stream = TcpStream::connect(addr).unwrap();
                    stream.set_read_timeout(Some(world::PATIENCE)).unwrap();
                    talk(stream, &pattern(2 + i * 700));
                })
            })
            .collect();

        let mut departed = 0;
        world.until("everyone to be gone", |hands, event| {
            match event {
                Event::Received { conn } => {
                    // Nothing consumed: the half word travels.
                    hands.send(conn, b"there");
                    assert!(hands.detach_to(conn, &peer));
                    assert!(!hands.detach_to(conn, &peer), "stale at once");
                    assert!(hands.received(conn).is_empty());
                }
                Event::Moved { moved, .. } => {
                    let mut cargo = Some(moved);
                    while let Err(back) = port.push(1, cargo) {
                        cargo = back;
                        port.wake(1);
                        thread::yield_now();
                    }
                    port.wake(1);
                    departed += 1;
                }
                Event::Closed { reason, .. } => panic!("closed: {reason:?}"),
                _ => {}
            }
            (departed == CLIENTS).then_some(())
        });
        world.assert_clean();
        clients.into_iter().for_each(|c| c.join().unwrap());
        while port.push(1, None).is_err() {
            port.wake(1);
        }
        port.wake(1);
        let there = other.join().unwrap();
        assert_eq!(there.attached, CLIENTS as u64);
        assert_eq!(there.closed[CloseReason::Peer as usize], CLIENTS as u64);
        assert_eq!(world.hands.stats().detached, CLIENTS as u64);
    }
}

/// The send in flight is stuck because the client does not read. What the kernel has not taken
/// travels, in order.
#[test]
fn unsent_bytes_travel_too() {
    for options in ways() {
        let mesh: Mesh<Option<Box<Moved>>> = Mesh::new(2, 4);
        let port = mesh.port(0);
        let (peer, other) = echoing_core(options.clone(), &mesh);
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let chunk = pattern(100_000);
        let mut sent = 0;
        while world.hands.unsent(conn) == 0 {
            for _ in 0..8 {
                world.hands.send(conn, &chunk);
                sent += 1;
            }
            world.turn();
        }
        assert!(world.hands.detach_to(conn, &peer));
        let moved = world.until("the departure", |_, event| match event {
            Event::Moved { moved, .. } => Some(moved),
            _ => None,
        });
        port.push(1, Some(moved)).unwrap();
        port.push(1, None).unwrap();
        port.wake(1);
        let mut back = vec![0; chunk.len()];
        for _ in 0..sent {
            client.read_exact(&mut back).unwrap();
            assert!(back == chunk, "damaged on the way");
        }
        world.assert_clean();
        drop(client);
        other.join().unwrap();
    }
}

#[test]
fn a_connection_that_ends_on_the_way_is_closed_by_the_next_core() {
    for options in ways() {
        let mesh: Mesh<Option<Box<Moved>>> = Mesh::new(2, 4);
        let port = mesh.port(0);
        let (peer, other) = echoing_core(options.clone(), &mesh);
        let mut world = World::new(options);
        let (client, conn) = world.connect();
        assert!(world.hands.detach_to(conn, &peer));
        drop(client);
        let moved = world.until("the departure", |_, event| match event {
            Event::Moved { moved, .. } => Some(moved),
            _ => None,
        });
        port.push(1, Some(moved)).unwrap();
        port.push(1, None).unwrap();
        port.wake(1);
        let there = other.join().unwrap();
        assert_eq!(there.closed[CloseReason::Peer as usize], 1);
        world.assert_clean();
    }
}

/// Plain descriptors need no round trip: out of one, into the other, on one thread.
#[test]
fn plain_ones_move_at_once() {
    let mut from = World::new(HandsOptions::default());
    let mut to = World::new(HandsOptions::default());
    let (mut client, conn) = from.connect();
    let moved = from.hands.detach(conn).unwrap();
    assert!(from.hands.detach(conn).is_none());
    let conn = to.hands.attach(moved);
    client.write_all(b"here").unwrap();
    assert_eq!(to.receive(conn, 4), b"here");
    from.assert_clean();
    drop(client);
    to.assert_clean();
}

/// What travelled is shown first and alone, although the client's next bytes, or its end, are in
/// the socket already.
#[test]
fn what_travelled_is_looked_at_first() {
    for options in ways().into_iter().filter(|options| !options.direct_descriptors) {
        for leaves in [false, true] {
            let mut from = World::new(options.clone());
            let mut to = World::new(options.clone());
            let (mut client, conn) = from.connect();
            client.write_all(b"login").unwrap();
            let moved = from.until("the login", |hands, event| match event {
                Event::Received { conn } => hands.detach(conn),
                _ => None,
            });
            assert!(from.hands.received(conn).is_empty());
            client.write_all(b"next").unwrap();
            if leaves {
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
            let conn = to.hands.attach(moved);
            let mut expected = [&b"login"[..], &b"next"[..]].into_iter();
            for _ in 0..2 {
                to.until("bytes", |hands, event| match event {
                    Event::Received { conn } => {
                        assert_eq!(Some(hands.received(conn)), expected.next());
                        let n = hands.received(conn).len();
                        hands.consume(conn, n);
                        Some(())
                    }
                    Event::Closed { .. } => panic!("closed before everything was shown"),
                    _ => None,
                });
            }
            assert_eq!(to.hands.received(conn), b"");
            from.assert_clean();
            drop(client);
            to.assert_clean();
        }
    }
}

/// Where connections go does not change how many there may be.
#[test]
fn cores_share_one_quota() {
    for options in ways().into_iter().filter(|options| !options.direct_descriptors) {
        let quota = Quota::new(3);
        let options = HandsOptions { quota: Arc::clone(&quota), ..options };
        let mut from = World::new(options.clone());
        let mut to = World::new(options);
        let mut clients = Vec::new();
        for _ in 0..3 {
            let (client, conn) = from.connect();
            let moved = from.hands.detach(conn).unwrap();
            to.hands.attach(moved);
            clients.push(client);
        }
        from.until_state("the departures", |hands| hands.stats().conns == 0);
        assert_eq!(quota.held(), 3);
        let mut refused = TcpStream::connect(from.addr).unwrap();
        from.until_state("the refusal", |hands| hands.stats().refused == 1);
        from.hands.flush();
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0);
        clients.pop();
        to.until_state("room", |hands| hands.stats().conns == 2);
        let (_client, conn) = from.connect();
        // Dropped on its way, its place is free again.
        drop(from.hands.detach(conn).unwrap());
        assert_eq!(quota.held(), 2);
        drop(clients);
        to.assert_clean();
        assert_eq!(quota.held(), 0);
    }
}

/// No room in the other table: the connection is cut and says why.
#[test]
fn a_full_table_there_cuts_the_connection_here() {
    let options = HandsOptions {
        direct_descriptors: true,
        conns_max: 0, // a table of 16
        ..HandsOptions::default()
    };
    if !World::new(HandsOptions::default()).hands.features().send_descriptor {
        return;
    }
    let mesh: Mesh<Option<Box<Moved>>> = Mesh::new(2, 32);
    let port = mesh.port(0);
    let (peer, other) = echoing_core(options.clone(), &mesh);
    let mut world = World::new(HandsOptions { conns_max: 64, ..options });
    let pairs: Vec<_> = (0..20).map(|_| world.connect()).collect();
    for (_, conn) in &pairs {
        assert!(world.hands.detach_to(*conn, &peer));
    }
    let (mut moves, mut cuts) = (0, 0);
    world.until("all fates", |_, event| {
        match event {
            Event::Moved { moved, .. } => {
                moves += 1;
                port.push(1, Some(moved)).unwrap();
            }
            Event::Closed { reason, .. } => {
                assert_eq!(reason, CloseReason::Overload);
                cuts += 1;
            }
            _ => {}
        }
        (moves + cuts == 20).then_some(())
    });
    assert_eq!(moves, 16);
    world.assert_clean();
    drop(pairs);
    port.push(1, None).unwrap();
    port.wake(1);
    assert_eq!(other.join().unwrap().attached, 16);
}
