//! Connections over real sockets: bytes in, bytes out, and every way to end.
#![allow(missing_docs)]

mod world;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use net::{After, CloseReason, ConnId, Event, Hands, HandsOptions};
use world::{World, pattern, ways};

/// Sends everything back that has come.
fn echo(hands: &mut Hands, conn: ConnId) {
    let bytes = hands.received(conn).to_vec();
    hands.consume(conn, bytes.len());
    hands.send(conn, &bytes);
}

fn closed(world: &mut World, which: ConnId) -> CloseReason {
    world.until("the end", |_, event| match event {
        Event::Closed { conn, reason } if conn == which => Some(reason),
        _ => None,
    })
}

fn small_window(addr: std::net::SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&addr.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(world::PATIENCE)).unwrap();
    stream
}

fn connect_small_window(world: &mut World) -> (TcpStream, ConnId) {
    let client = small_window(world.addr);
    let conn = world.until("a connection", |_, event| match event {
        Event::Opened { conn, .. } => Some(conn),
        _ => None,
    });
    (client, conn)
}

/// Sends until the kernel takes no more and `unsent` bytes wait here.
fn fill(world: &mut World, conn: ConnId, unsent: usize) -> usize {
    let mut total = 0;
    while world.hands.unsent(conn) <= unsent {
        let chunk = pattern(16 << 10);
        world.hands.send(conn, &chunk);
        total += chunk.len();
        world.turn();
    }
    total
}

#[test]
fn echo_to_many() {
    const CLIENTS: usize = 20;
    const ROUNDS: usize = 50;
    for options in ways() {
        let mut world = World::new(options);
        let addr = world.addr;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|i| {
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(addr).unwrap();
                    stream.set_read_timeout(Some(world::PATIENCE)).unwrap();
                    for round in 0..ROUNDS {
                        // From one byte to several slices.
                        let sent = pattern(1 + (i * 37 + round * 613) % 20_000);
                        stream.write_all(&sent).unwrap();
                        let mut back = vec![0; sent.len()];
                        stream.read_exact(&mut back).unwrap();
                        assert_eq!(back, sent);
                    }
                })
            })
            .collect();
        let mut left = CLIENTS;
        world.until("all clients to leave", |hands, event| {
            match event {
                Event::Received { conn } => echo(hands, conn),
                Event::Closed { reason, .. } => {
                    assert_eq!(reason, CloseReason::Peer);
                    left -= 1;
                }
                _ => {}
            }
            (left == 0).then_some(())
        });
        clients.into_iter().for_each(|c| c.join().unwrap());
        let stats = world.hands.stats();
        assert_eq!(stats.accepted, CLIENTS as u64);
        assert_eq!(stats.bytes_in, stats.bytes_out);
        world.assert_clean();
    }
}

#[test]
fn what_is_not_consumed_comes_back_in_front() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        client.write_all(b"abc").unwrap();
        let expect = |world: &mut World, bytes: &[u8], consume: usize| {
            world.until("bytes", |hands, event| match event {
                Event::Received { conn } if hands.received(conn) == bytes => {
                    hands.consume(conn, consume);
                    Some(())
                }
                // Split differently than expected: wait for the rest.
                Event::Received { conn } => {
                    hands.consume(conn, 0);
                    None
                }
                _ => None,
            });
        };
        expect(&mut world, b"abc", 1);
        assert_eq!(world.hands.received(conn), b"bc");
        assert!(world.hands.stats().partial_bytes > 0);
        client.write_all(b"de").unwrap();
        expect(&mut world, b"bcde", 4);
        assert_eq!(world.hands.received(conn), b"");
        assert_eq!(world.hands.stats().partial_bytes, 0, "idle means no heap");
        // Not consuming at all keeps everything, too.
        client.write_all(b"x").unwrap();
        world.until("x", |_, event| matches!(event, Event::Received { .. }).then_some(()));
        world.turn();
        assert_eq!(world.hands.received(conn), b"x");
        client.write_all(b"y").unwrap();
        expect(&mut world, b"xy", 2);
        drop(client);
        world.assert_clean();
    }
}

/// Bytes and the end can be one event of the poll; the receive shows only the bytes.
#[test]
fn an_end_right_behind_bytes_is_seen() {
    for options in ways() {
        for consume in [true, false] {
            let mut world = World::new(options.clone());
            let (mut client, conn) = world.connect();
            client.write_all(b"bye").unwrap();
            drop(client);
            // Both are in the socket before it is looked at for the first time.
            world.until("bytes", |hands, event| match event {
                Event::Received { conn } => {
                    hands.consume(conn, if consume { 3 } else { 0 });
                    Some(())
                }
                _ => None,
            });
            assert_eq!(closed(&mut world, conn), CloseReason::Peer);
            world.assert_clean();
        }
    }
}

#[test]
fn a_large_frame_in_many_pieces() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let frame = pattern(1 << 20);
        let sent = frame.clone();
        let writer = thread::spawn(move || {
            for piece in sent.chunks(10_007) {
                client.write_all(piece).unwrap();
            }
            client
        });
        world.until("the whole frame", |hands, event| match event {
            Event::Received { conn } => {
                let whole = hands.received(conn).len() == frame.len();
                if whole {
                    assert!(hands.received(conn) == frame);
                }
                hands.consume(conn, if whole { frame.len() } else { 0 });
                whole.then_some(())
            }
            _ => None,
        });
        assert!(world.hands.received(conn).is_empty());
        assert_eq!(world.hands.stats().partial_bytes, 0);
        drop(writer.join().unwrap());
        world.assert_clean();
    }
}

#[test]
fn incomplete_frames_are_bounded_together() {
    let mut world =
        World::new(HandsOptions { partial_bytes_max_total: 64 << 10, ..HandsOptions::default() });
    let (mut greedy, conn) = world.connect();
    greedy.write_all(&pattern(100 << 10)).unwrap();
    let reason = world.until("the cut", |hands, event| match event {
        Event::Received { conn } => {
            hands.consume(conn, 0);
            None
        }
        Event::Closed { conn: c, reason } if c == conn => Some(reason),
        _ => None,
    });
    assert_eq!(reason, CloseReason::Overload);
    world.assert_clean();
}

/// The shard has room for a little at a time, the client sends as fast as it can.
#[test]
fn resumed_again_and_again_gathers_nothing() {
    const TOTAL: usize = 3 << 20;
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let writer = thread::spawn(move || client.write_all(&pattern(TOTAL)).map(|()| client));
        let mut all = Vec::new();
        while all.len() < TOTAL {
            world.until("bytes", |hands, event| match event {
                Event::Received { .. } => {
                    let little = hands.received(conn).len().min(500);
                    all.extend_from_slice(&hands.received(conn)[..little]);
                    hands.consume(conn, little);
                    hands.pause(conn);
                    Some(())
                }
                Event::Closed { reason, .. } => panic!("{reason:?} after {} bytes", all.len()),
                _ => None,
            });
            let held = world.hands.stats().partial_bytes;
            assert!(held <= 128 << 10, "{held} bytes gathered");
            world.hands.resume(conn);
        }
        assert!(all == pattern(TOTAL));
        drop(writer.join().unwrap().unwrap());
        world.assert_clean();
    }
}

#[test]
fn paused_means_not_read_and_resumed_means_all_of_it() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        client.write_all(b"one").unwrap();
        world.until("the first", |hands, event| match event {
            Event::Received { conn } => {
                hands.pause(conn);
                hands.consume(conn, 1);
                Some(())
            }
            _ => None,
        });
        client.write_all(b" two").unwrap();
        // Another connection proves that the hands have gone around with the bytes there.
        let (other, _) = world.connect();
        world.turn();
        assert_eq!(world.hands.received(conn), b"ne");
        world.hands.resume(conn);
        let mut all = Vec::new();
        world.until("the rest", |hands, event| match event {
            Event::Received { conn: c } if c == conn => {
                all.extend_from_slice(hands.received(conn));
                let n = hands.received(conn).len();
                hands.consume(conn, n);
                (all == b"ne two").then_some(())
            }
            _ => None,
        });
        drop((client, other));
        world.assert_clean();
    }
}

/// The client leaves while it is paused, or as it is resumed: its end must not overtake its last
/// words.
#[test]
fn an_end_does_not_overtake_resumed_bytes() {
    for (options, early) in ways().into_iter().flat_map(|way| [(way.clone(), true), (way, false)]) {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        client.write_all(b"last words").unwrap();
        world.until("the words", |hands, event| match event {
            Event::Received { conn } => {
                assert_eq!(hands.received(conn), b"last words");
                hands.consume(conn, 5);
                hands.pause(conn);
                Some(())
            }
            _ => None,
        });
        if early {
            drop(client);
            // Another connection proves that the hands have gone around with the end there.
            drop(world.connect());
            world.turn();
            world.hands.resume(conn);
        } else {
            world.hands.flush(); // the poll is armed
            world.hands.resume(conn);
            drop(client);
        }
        world.until("the rest", |hands, event| match event {
            Event::Received { conn } => {
                assert_eq!(hands.received(conn), b"words");
                hands.consume(conn, 5);
                Some(())
            }
            Event::Closed { conn: gone, .. } => {
                assert_ne!(gone, conn, "closed before its words were heard");
                None
            }
            _ => None,
        });
        assert_eq!(closed(&mut world, conn), CloseReason::Peer);
        world.assert_clean();
    }
}

/// Whoever closes instead of consuming does not wait for bytes that nobody will look at.
#[test]
fn a_resumed_connection_can_be_closed_at_once() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        client.write_all(b"nobody cares").unwrap();
        world.until("the words", |hands, event| match event {
            Event::Received { conn } => {
                hands.consume(conn, 0);
                hands.pause(conn);
                hands.resume(conn);
                hands.close(conn, After::Flush);
                Some(())
            }
            _ => None,
        });
        assert_eq!(closed(&mut world, conn), CloseReason::Local);
        drop(client);
        world.assert_clean();
    }
}

#[test]
fn a_slow_reader_is_not_read_until_it_reads() {
    for options in ways() {
        let pause = options.send_pause_bytes;
        let mut world = World::new(options);
        let (mut client, conn) = connect_small_window(&mut world);
        let total = fill(&mut world, conn, pause);
        client.write_all(b"more work").unwrap();
        let (other, _) = world.connect();
        world.turn();
        assert_eq!(world.hands.received(conn), b"", "read although it reads nothing");

        let reader = thread::spawn(move || {
            let mut got = vec![0; total];
            client.read_exact(&mut got).unwrap();
            (client, got)
        });
        let mut drained = false;
        world.hands.tell_drained(conn);
        let bytes = world.until("the work", |hands, event| match event {
            Event::Drained { conn: c } if c == conn => {
                assert_eq!(hands.unsent(conn), 0);
                drained = true;
                None
            }
            Event::Received { conn: c } if c == conn => {
                let bytes = hands.received(conn).to_vec();
                hands.consume(conn, bytes.len());
                Some(bytes)
            }
            _ => None,
        });
        assert_eq!(bytes, b"more work");
        if !drained {
            world.until("the rest to be sent", |hands, event| {
                matches!(event, Event::Drained { conn: c } if c == conn)
                    .then(|| assert_eq!(hands.unsent(conn), 0))
            });
        }
        let (client, got) = reader.join().unwrap();
        let chunk = pattern(16 << 10);
        assert!(got.chunks(chunk.len()).all(|c| c == chunk), "damaged");
        drop((client, other));
        world.assert_clean();
    }
}

/// Sends of what fits end as they are handed over, whether or not the ring had room for all of them
/// at once; what does not fit goes out when there is room.
#[test]
fn sends_end_in_the_flush_that_starts_them() {
    const CLIENTS: usize = 40;
    for mut options in ways() {
        // Fewer entries than sends.
        options.ring_entries = 8;
        let mut world = World::new(options);
        let is_quiet = world.hands.features().quiet_send;
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| world.connect()).collect();
        let chunk = pattern(300);
        for round in 1..=5 {
            for (_, conn) in &clients {
                world.hands.send(*conn, &chunk);
            }
            world.hands.flush();
            let all_sent = |hands: &mut Hands| hands.stats().unsent_bytes == 0;
            assert!(!is_quiet || all_sent(&mut world.hands), "round {round} is not over");
            world.until_state("everything to be sent", all_sent);
        }
        assert_eq!(world.hands.stats().bytes_out, (5 * CLIENTS * chunk.len()) as u64);
        for (client, _) in &mut clients {
            let mut got = vec![0; 5 * chunk.len()];
            client.read_exact(&mut got).unwrap();
            assert!(got.chunks(chunk.len()).all(|c| c == chunk), "damaged");
        }
        drop(clients);
        world.assert_clean();
    }
}

#[test]
fn drained_is_said_when_it_was_asked_for() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        // Nothing is unsent: at once, and once.
        world.hands.tell_drained(conn);
        let drained = |_: &mut Hands, event| matches!(event, Event::Drained { .. }).then_some(());
        world.until("the word", drained);
        world.hands.send(conn, b"a");
        world.until_state("it to be sent", |hands| hands.unsent(conn) == 0);
        client.write_all(b"b").unwrap();
        world.until("the answer", |hands, event| match event {
            Event::Received { conn } => {
                hands.consume(conn, 1);
                Some(())
            }
            Event::Drained { .. } => panic!("nobody asked"),
            _ => None,
        });
        drop(client);
        world.assert_clean();
    }
}

#[test]
fn a_reader_that_never_reads_is_cut() {
    for mut options in ways() {
        options.send_buffer_bytes_max = 256 << 10;
        let mut world = World::new(options);
        let (client, conn) = connect_small_window(&mut world);
        let chunk = pattern(64 << 10);
        let reason = loop {
            world.hands.send(conn, &chunk);
            assert!(world.hands.unsent(conn) <= 256 << 10);
            world.turn();
            if world.hands.stats().closed[CloseReason::SlowReader as usize] > 0 {
                break closed(&mut world, conn);
            }
        };
        assert_eq!(reason, CloseReason::SlowReader);
        world.hands.send(conn, &chunk); // stale by now: ignored
        assert_eq!(world.hands.unsent(conn), 0);
        world.assert_clean();
        drop(client);
    }
}

/// Many that do not read are bounded together, below what each may have, and only those that have
/// much pay for it.
#[test]
fn slow_readers_are_bounded_together() {
    const TOTAL: usize = 1 << 20;
    const ONE: usize = 16 << 10;
    for mut options in ways() {
        options.unsent_bytes_max_total = TOTAL;
        assert!(options.send_buffer_bytes_max >= TOTAL, "the bound of one would hide that of all");
        let mut world = World::new(options);
        let (mut reading, reader) = world.connect();
        let slow: Vec<_> = (0..4).map(|_| connect_small_window(&mut world)).collect();
        // Everyone gets the same in turn; nothing is flushed, so nothing is taken.
        let chunk = pattern(ONE);
        for _ in 0..TOTAL / ONE / slow.len() {
            slow.iter().for_each(|(_, conn)| world.hands.send(*conn, &chunk));
        }
        let held = |world: &World| world.hands.stats().unsent_bytes;
        let cuts = |world: &World| world.hands.stats().closed[CloseReason::SlowReader as usize];
        assert_eq!((held(&world), cuts(&world)), (TOTAL, 0));

        // Full: whoever has little is served, the one that has much and asks for more is cut.
        world.hands.send(reader, b"yours");
        assert_eq!((held(&world), cuts(&world)), (TOTAL + 5, 0));
        world.hands.send(slow[1].1, b"!");
        assert_eq!(closed(&mut world, slow[1].1), CloseReason::SlowReader);
        let mut got = [0; 5];
        reading.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"yours");

        // What it held is room for others.
        world.until_state("room", |hands| hands.stats().unsent_bytes <= TOTAL * 3 / 4);
        world.hands.send(slow[0].1, &chunk);
        assert_eq!(cuts(&world), 1);
        drop((slow, reading));
        world.assert_clean();
    }
}

#[test]
fn peers_leave() {
    for options in ways() {
        let mut world = World::new(options);
        let (client, conn) = world.connect();
        drop(client);
        assert_eq!(closed(&mut world, conn), CloseReason::Peer);

        // A reset: linger 0 drops everything.
        let (client, conn) = world.connect();
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(closed(&mut world, conn), CloseReason::Reset);
        world.assert_clean();
    }
}

#[test]
fn half_closed_peers_still_get_their_answers() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = connect_small_window(&mut world);
        let total = fill(&mut world, conn, 0);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(closed(&mut world, conn), CloseReason::Peer);
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            got.len()
        });
        world.assert_clean();
        assert_eq!(reader.join().unwrap(), total);
    }
}

#[test]
fn what_a_leaving_client_sent_is_not_lost() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        // Unread answers make the client's close a reset.
        world.hands.send(conn, b"an answer that nobody reads");
        world.hands.flush();
        let mut byte = [0];
        client.peek(&mut byte).unwrap();
        client.write_all(b"last words").unwrap();
        drop(client);
        world.hands.send(conn, b"into the void");
        assert_eq!(world.receive(conn, 10), b"last words");
        closed(&mut world, conn);
        world.assert_clean();
    }
}

#[test]
fn close_after_flush_delivers_everything_and_then_the_end() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = connect_small_window(&mut world);
        let total = fill(&mut world, conn, 0);
        // Input that nobody will read must not turn the end into a reset.
        client.write_all(&pattern(10_000)).unwrap();
        world.hands.close(conn, After::Flush);
        world.hands.close(conn, After::Now); // stale: ignored
        assert_eq!(closed(&mut world, conn), CloseReason::Local);
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            got.len()
        });
        world.assert_clean();
        assert_eq!(reader.join().unwrap(), total);
    }
}

/// The place in the ring's table goes to the next connection only when nothing
/// of the last one is under way.
#[test]
fn an_end_is_not_said_to_who_comes_next() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, mut conn) = world.connect();
        for _ in 0..500 {
            drop(client);
            world.hands.close(conn, After::Flush);
            // Saying the end is a worker's job, which may be late: whoever finds
            // no place is turned away.
            world.until_state("a place", |hands| hands.stats().conns < 100);
            (client, conn) = world.connect();
            world.hands.send(conn, b"x");
            world.until_state("the answer to go", |hands| hands.stats().unsent_bytes == 0);
            let mut got = [0];
            client.read_exact(&mut got).unwrap();
        }
        drop(client);
        world.hands.close(conn, After::Now);
        world.assert_clean();
    }
}

#[test]
fn close_now_drops_what_is_unsent() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = connect_small_window(&mut world);
        fill(&mut world, conn, 0);
        world.hands.close(conn, After::Now);
        assert_eq!(closed(&mut world, conn), CloseReason::Local);
        world.assert_clean();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest); // an end or a reset, but not for ever
    }
}

/// Bytes of the very turn that closes are dropped like any other, while the poll is still being
/// taken back.
#[test]
fn close_now_starts_no_send() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        world.hands.send(conn, b"too late");
        world.hands.close(conn, After::Now);
        assert_eq!(closed(&mut world, conn), CloseReason::Local);
        world.assert_clean();
        assert_eq!(world.hands.stats().sends, 0);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest); // an end or a reset
        assert_eq!(rest, b"");
    }
}

#[test]
fn nobody_lingers_for_ever() {
    for options in ways() {
        let mut world = World::new(options);
        // One takes nothing, one never closes.
        let (_deaf, first) = connect_small_window(&mut world);
        fill(&mut world, first, 0);
        let (_stubborn, second) = world.connect();
        world.hands.send(second, b"bye");
        for conn in [first, second] {
            world.hands.close(conn, After::Flush);
            assert_eq!(closed(&mut world, conn), CloseReason::Local);
        }
        world.pass(2_000);
        world.turn();
        assert_eq!(world.hands.stats().conns, 2, "too early");
        world.pass(2_000);
        world.assert_clean();
    }
}

#[test]
fn stale_ids_are_ignored_everywhere() {
    for options in ways() {
        let mut world = World::new(options);
        let (client, old) = world.connect();
        drop(client);
        closed(&mut world, old);
        world.assert_clean();
        let (mut client, new) = world.connect();
        assert_eq!(new.slot, old.slot, "the slot is used again");
        assert_ne!(new.generation, old.generation);
        client.write_all(b"mine").unwrap();

        let hands = &mut world.hands;
        hands.send(old, b"stray");
        hands.pause(old);
        hands.consume(old, 1_000);
        hands.close(old, After::Now);
        assert!(hands.detach(old).is_none());
        let peer = hands.peer();
        assert!(!hands.detach_to(old, &peer));
        assert_eq!((hands.received(old), hands.unsent(old)), (&[][..], 0));
        hands.resume(old);

        assert_eq!(world.receive(new, 4), b"mine");
        world.hands.send(new, b"yours");
        world.hands.flush();
        let mut got = [0; 5];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"yours");
    }
}

#[test]
fn too_many_connections_are_turned_away() {
    for mut options in ways() {
        options.conns_max = 2;
        let mut world = World::new(options);
        let (first, _) = world.connect();
        let (_second, _) = world.connect();
        let mut third = TcpStream::connect(world.addr).unwrap();
        world.until_state("the refusal", |hands| hands.stats().refused == 1);
        world.hands.flush();
        assert_eq!(third.read(&mut [0]).unwrap_or(0), 0);
        drop(first);
        world.until_state("room", |hands| hands.stats().conns == 1);
        world.connect();
    }
}

#[test]
fn accepting_stops_when_told() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        world.hands.stop_accepting();
        world.turn();
        let _waiting = TcpStream::connect(world.addr).unwrap(); // in the backlog
        client.write_all(b"still here").unwrap();
        assert_eq!(world.receive(conn, 10), b"still here");
        assert_eq!(world.hands.stats().accepted, 1);
    }
}

#[test]
fn more_readable_connections_than_slices() {
    for mut options in ways() {
        options.arena_slices = 2;
        let mut world = World::new(options);
        let mut pairs: Vec<_> = (0..30).map(|_| world.connect()).collect();
        for (i, (client, _)) in pairs.iter_mut().enumerate() {
            client.write_all(&[i as u8; 6000]).unwrap();
        }
        let mut got = vec![0; pairs.len()];
        world.until("everyone's bytes", |hands, event| {
            if let Event::Received { conn } = event {
                let i = pairs.iter().position(|p| p.1 == conn).unwrap();
                let bytes = hands.received(conn);
                assert!(bytes.iter().all(|&b| b == i as u8), "somebody else's bytes");
                got[i] += bytes.len();
                let n = bytes.len();
                hands.consume(conn, n);
            }
            got.iter().all(|&n| n == 6000).then_some(())
        });
        assert!(world.hands.stats().arena_empty > 0);
        drop(pairs);
        world.assert_clean();
    }
}

#[test]
fn hands_can_be_dropped_in_the_middle_of_everything() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut reading, conn) = connect_small_window(&mut world);
        fill(&mut world, conn, 0);
        let (mut closing, conn) = connect_small_window(&mut world);
        fill(&mut world, conn, 0);
        world.hands.close(conn, After::Flush);
        let (_idle, _) = world.connect();
        drop(world);
        let mut rest = Vec::new();
        let _ = reading.read_to_end(&mut rest);
        let _ = closing.read_to_end(&mut rest);
    }
}
