//! Bytes that may wait for more urgent ones to share a send with.
#![allow(missing_docs)]

mod world;

use std::io::Read;
use std::net::{Shutdown, TcpStream};

use net::{After, ConnId};
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
        hands.send_late(conn, b"late ");
        hands.flush();
        assert_eq!((hands.stats().sends - before, hands.unsent(conn)), (0, 5));
        hands.send(conn, b"urgent");
        hands.flush();
        assert_eq!(hands.stats().sends - before, 1, "one send for both");
        let mut got = [0; 11];
        client.read_exact(&mut got).expect("a connection of the test's own");
        assert_eq!(&got, b"late urgent");

        world.until_state("the send to end", |hands| hands.unsent(conn) == 0);
        world.hands.send_late(conn, b"alone");
        world.until_state("the late bytes to go", |hands| hands.unsent(conn) == 0);
        client.read_exact(&mut got[..5]).expect("a connection of the test's own");
        assert_eq!(&got[..5], b"alone");

        // An end does not leave them behind either.
        world.hands.send_late(conn, b"bye");
        world.hands.close(conn, After::Flush);
        client.shutdown(Shutdown::Write).expect("a connection of the test's own");
        world.assert_clean();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("a connection of the test's own");
        assert_eq!(rest, b"bye");
    }
}

/// Late bytes, and then company after so many calls of `age_late`: four end the wait. Whether
/// they waited.
fn confirm(world: &mut World, client: &mut TcpStream, conn: ConnId, ages: usize) -> bool {
    let before = world.hands.stats().sends;
    world.hands.send_late(conn, b"late ");
    world.hands.flush();
    let has_waited = world.hands.stats().sends == before;
    for _ in 0..ages {
        world.hands.age_late();
        world.hands.flush();
    }
    world.hands.send(conn, b"company");
    world.until_state("the bytes to go", |hands| hands.unsent(conn) == 0);
    let mut got = [0; 12];
    client.read_exact(&mut got).expect("a connection of the test's own");
    assert_eq!(&got, b"late company");
    has_waited
}

/// Where no company comes in time nothing waits for it any more; where it would have come again
/// and again, the next one does.
#[test]
fn whether_late_bytes_wait_is_learned_from_what_follows_them() {
    for options in ways() {
        let mut world = World::new(options);
        let (mut client, conn) = world.connect();
        let mut confirm = |ages| confirm(&mut world, &mut client, conn, ages);
        assert!(confirm(0), "at first it waits");
        let in_vain = (0..20).filter(|_| confirm(4)).count();
        // It had company once, and that has to be three times as often as not.
        assert_eq!(in_vain, 1, "it waited in vain");
        for ages in [0, 3] {
            assert!(!confirm(ages), "once is not enough");
            assert!((0..20).any(|_| confirm(ages)), "it learns");
            assert!((0..20).any(|_| !confirm(4)), "and forgets");
            (0..20).for_each(|_| assert!(!confirm(4)));
        }
    }
}
