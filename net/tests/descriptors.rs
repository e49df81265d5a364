//! Running out of descriptors: the listener rests and comes back. A binary of its own, because the
//! limit is the process's.
#![allow(missing_docs, unsafe_code)]

mod world;

use std::collections::VecDeque;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use net::{After, Event, Hands, HandsOptions, listen};

/// Descriptors that the hands themselves need: ring, wake-up, doorbell, open door.
const OWN: u64 = 4;
const CLIENTS: usize = 8;
const ROOM: usize = 3;

fn limit_descriptors(to: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only use the structure given.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = to;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

fn check(options: HandsOptions) {
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listen::local_addr(&listener).unwrap();
    // All of them wait in the backlog.
    let clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    limit_descriptors(next + OWN + ROOM as u64);

    let mut hands = Hands::new(options, vec![listener]).unwrap();
    let mut open = VecDeque::new();
    let mut opened = 0;
    let mut now_ms = 0;
    let mut events = Vec::new();
    let start = Instant::now();
    while opened < CLIENTS {
        assert!(start.elapsed() < world::PATIENCE, "accepting never resumed");
        hands.wait(Duration::from_millis(5));
        hands.reap(&mut events);
        for event in events.drain(..) {
            if let Event::Opened { conn, .. } = event {
                open.push_back(conn);
                opened += 1;
            }
        }
        assert!(open.len() <= ROOM, "more than there are descriptors");
        // Once the limit is felt, one leaves for each that came.
        if hands.stats().emfile > 0 && open.len() == ROOM {
            hands.close(open.pop_front().unwrap(), After::Now);
        }
        now_ms += 50;
        hands.tick(now_ms);
    }
    assert!(hands.stats().emfile > 0, "the limit was never felt");
    limit_descriptors(1024);
    drop(clients);
}

#[test]
fn the_listener_rests_and_comes_back() {
    for options in world::ways() {
        // Direct descriptors do not count against the limit while they are accepted.
        if !options.direct_descriptors {
            check(options);
        }
    }
}
