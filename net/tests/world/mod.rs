//! A small world for the tests: hands on the test's own thread, blocking clients around them.
#![allow(dead_code, unreachable_pub)]

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use net::{ConnId, Event, Features, Hands, HandsOptions, listen};

/// Far beyond what a slow machine needs; reaching it means that something never happens.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub hands: Hands,
    pub addr: SocketAddr,
    events: VecDeque<Event>,
    /// The clock given to `tick`.
    pub now_ms: u64,
}

/// Every way of driving the ring that this kernel has.
pub fn ways() -> Vec<HandsOptions> {
    let plain = HandsOptions {
        ring_entries: 64,
        arena_slices: 8,
        conns_max: 256,
        ..HandsOptions::default()
    };
    let with = |features, direct_descriptors| HandsOptions {
        features,
        direct_descriptors,
        ..plain.clone()
    };
    let coop = Features { defer_taskrun: false, single_issuer: false, ..Features::ALL };
    let one_shot = Features { multishot_poll: false, multishot_accept: false, ..Features::ALL };
    let mut ways = vec![
        with(Features::ALL, false),
        with(coop, false),
        with(one_shot, false),
        with(Features::FLOOR, false),
    ];
    let found = Hands::new(plain.clone(), Vec::new()).unwrap().features();
    if found.direct_descriptors {
        ways.push(with(Features::ALL, true));
        ways.push(with(one_shot, true));
    }
    ways
}

impl World {
    pub fn new(options: HandsOptions) -> World {
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listen::local_addr(&listener).unwrap();
        World {
            hands: Hands::new(options, vec![listener]).unwrap(),
            addr,
            events: VecDeque::new(),
            now_ms: 0,
        }
    }

    /// A client and its connection here.
    pub fn connect(&mut self) -> (TcpStream, ConnId) {
        let client = TcpStream::connect(self.addr).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let conn = self.until("a connection", |_, event| match event {
            Event::Opened { conn, .. } => Some(conn),
            _ => None,
        });
        (client, conn)
    }

    /// Turns until `look` has seen what it waits for. Events behind that one stay for later.
    pub fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Hands, Event) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(found) = look(&mut self.hands, event) {
                    return found;
                }
            }
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
            self.turn();
        }
    }

    /// Turns until the hands are in the state wanted; events are thrown away.
    pub fn until_state(&mut self, what: &str, mut reached: impl FnMut(&mut Hands) -> bool) {
        let start = Instant::now();
        while !reached(&mut self.hands) {
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
            self.turn();
            self.events.clear();
        }
    }

    pub fn turn(&mut self) {
        self.hands.wait(Duration::from_millis(5));
        let mut events = Vec::new();
        self.hands.reap(&mut events);
        self.events.extend(events);
    }

    /// Collects at least `bytes` bytes from one connection.
    pub fn receive(&mut self, from: ConnId, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            self.until("bytes", |hands, event| match event {
                Event::Received { conn } if conn == from => {
                    let n = hands.received(conn).len();
                    all.extend_from_slice(hands.received(conn));
                    hands.consume(conn, n);
                    Some(())
                }
                Event::Closed { conn, reason } if conn == from => {
                    panic!("closed ({reason:?}) after {} bytes", all.len())
                }
                _ => None,
            });
        }
        all
    }

    /// Time passes for the deadlines.
    pub fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.hands.tick(self.now_ms);
    }

    /// Every slot, slice and buffer has come back.
    pub fn assert_clean(&mut self) {
        self.until_state("the last connection to go", |hands| hands.stats().conns == 0);
        let stats = self.hands.stats();
        assert_eq!(stats.slices, 0, "{stats:?}");
        assert_eq!(stats.partial_bytes, 0, "{stats:?}");
        assert_eq!((stats.send_buffers, stats.unsent_bytes), (0, 0), "{stats:?}");
    }
}

/// Bytes that are different everywhere.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}
