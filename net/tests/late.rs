//! Bytes that may wait for more urgent ones to share a send with.
#![allow(missing_docs)]

mod world;

use std::io::Read;
use std::net::{Shutdown, TcpStream};

use net::{After, ConnId, Patience};
use world::{World, ways};

/// Late bytes stay through a flush, go out in order with something urgent, and never wait while
/// the core sleeps.
#[test]
fn late_bytes_wait_for_company_but_not_for_ever() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let hands = &mut world.hands;
        let before = hands.stats().sends;
        hands.send_late(conn, b"late ", Patience::Likely);
        hands.flush();
        assert_eq!((hands.stats().sends - before, hands.unsent(conn)), (0, 5));
        hands.send(conn, b"urgent");
        hands.flush();
        assert_eq!(hands.stats().sends - before, 1, "one send for both");
        let mut got = [0; 11];
        client.read_exact(&mut got).expect("a connection of the test's own");
        assert_eq!(&got, b"late urgent");

        world.until_state("the send to end", |hands| hands.unsent(conn) == 0);
        world.hands.send_late(conn, b"alone", Patience::Likely);
        world.until_state("the late bytes to go", |hands| hands.unsent(conn) == 0);
        client.read_exact(&mut got[..5]).expect("a connection of the test's own");
        assert_eq!(&got[..5], b"alone");

        // An end does not leave them behind either.
        world.hands.send_late(conn, b"bye", Patience::Likely);
        world.hands.close(conn, After::Flush);
        client.shutdown(Shutdown::Write).expect("a connection of the test's own");
        world.assert_clean();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("a connection of the test's own");
        assert_eq!(rest, b"bye");
    }
}

/// How long late bytes are alone.
#[derive(Clone, Copy)]
enum Alone {
    /// So many calls of `age_late`; four end a wait.
    Ages(usize),
    /// Until a core that has nothing to do flushes everything.
    Idle,
}

/// Late bytes, and then company. Whether they waited.
fn confirm(
    world: &mut World,
    client: &mut TcpStream,
    conn: ConnId,
    patience: Patience,
    alone: Alone,
) -> bool {
    let before = world.hands.stats().sends;
    world.hands.send_late(conn, b"late ", patience);
    world.hands.flush();
    let has_waited = world.hands.stats().sends == before;
    match alone {
        Alone::Ages(ages) => (0..ages).for_each(|_| {
            world.hands.age_late();
            world.hands.flush();
        }),
        Alone::Idle => world.hands.flush_late(),
    }
    world.hands.send(conn, b"company");
    world.until_state("the bytes to go", |hands| hands.unsent(conn) == 0);
    let mut got = [0; 12];
    client.read_exact(&mut got).expect("a connection of the test's own");
    assert_eq!(&got, b"late company");
    has_waited
}

/// A connection of each kind, on which one confirmation follows the other.
fn on_each(check: impl Fn(&mut dyn FnMut(Alone) -> bool)) {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        check(&mut |alone| confirm(&mut world, &mut client, conn, Patience::Likely, alone));
    }
}

/// Where no company comes in time nothing waits for it any more; where it would have come again
/// and again, the next one does.
#[test]
fn whether_late_bytes_wait_is_learned_from_what_follows_them() {
    on_each(|confirm| {
        assert!(confirm(Alone::Ages(0)), "at first it waits");
        assert!(confirm(Alone::Ages(4)), "company has come");
        for ages in [0, 3] {
            let mut met = || confirm(Alone::Ages(ages));
            assert!((0..5).all(|_| !met()), "once in vain takes six times of company");
            assert!((0..10).all(|_| met()), "it has learned");
            assert!(confirm(Alone::Ages(4)), "and there is no more to learn");
            assert!(confirm(Alone::Ages(4)), "once in vain is not enough then");
            assert!(!confirm(Alone::Ages(4)), "twice is");
            // Up to where the next round begins.
            assert!((0..3).all(|_| !confirm(Alone::Ages(0))));
        }
    });
}

/// Where company is chance, what waits has to have met it without an end, and what
/// does not is watched all the same.
#[test]
fn where_company_is_chance_late_bytes_want_proof() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let mut confirm = |alone| confirm(&mut world, &mut client, conn, Patience::Proven, alone);
        assert!((0..7).all(|_| !confirm(Alone::Ages(0))), "a new connection has proved nothing");
        assert!(confirm(Alone::Ages(0)), "now it has");
        assert!(confirm(Alone::Ages(4)), "company has come");
        assert!(
            (0..6).all(|_| !confirm(Alone::Ages(0))),
            "once in vain takes six times of company"
        );
        assert!(confirm(Alone::Ages(0)), "it has learned again");
    }
}

/// A stall of everybody does not say that company is not coming.
#[test]
fn a_flush_of_everything_costs_little_trust() {
    on_each(|confirm| {
        assert!((0..7).all(|_| confirm(Alone::Ages(0))));
        assert!((0..8).all(|_| confirm(Alone::Idle)));
        assert!(!confirm(Alone::Idle), "but it costs some");
    });
}

/// What may not wait takes along what does, and is no company to it.
#[test]
fn what_may_not_wait_leaves_at_once() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let before = world.hands.stats();
        world.hands.send_late(conn, b"late ", Patience::Likely);
        world.hands.send_late(conn, b"now", Patience::None);
        world.until_state("the bytes to go", |hands| hands.unsent(conn) == 0);
        let after = world.hands.stats();
        assert_eq!((after.sends - before.sends, after.late_joined), (1, before.late_joined));
        let mut got = [0; 8];
        client.read_exact(&mut got).expect("a connection of the test's own");
        assert_eq!(&got, b"late now");
    }
}
