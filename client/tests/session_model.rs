//! Two sessions against a tiny model of a server, with bytes split anywhere,
//! connections cut anywhere, and a server that is busy at times: everything
//! arrives exactly once and in order, and everything is confirmed.

use std::collections::VecDeque;

use client::{Event, Session};
use proptest::prelude::*;
use wire::id::{Class, MessageId};
use wire::refuse::Code;
use wire::v2::{self, Deliver, Reply, Request, Welcome};

/// One connection: bytes under way in both directions.
#[derive(Default)]
struct Link {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// What the server has read and not yet decoded.
    read: Vec<u8>,
    greeted: bool,
    logged_in: bool,
}

/// The server: one sender (client 0), one inbox (client 1).
#[derive(Default)]
struct Server {
    accepted: u64,
    inbox: Vec<(u64, Vec<u8>)>,
    /// Deliveries on the receiver's present connection, up to this seq.
    delivered: u64,
    busy: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    ToServer(usize, usize),
    ToClient(usize, usize),
    Cut(usize),
    Connect(usize),
    Busy(bool),
    Time(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Send),
        5 => (0..2usize, 1..200usize).prop_map(|(who, n)| Step::ToServer(who, n)),
        5 => (0..2usize, 1..200usize).prop_map(|(who, n)| Step::ToClient(who, n)),
        1 => (0..2usize).prop_map(Step::Cut),
        2 => (0..2usize).prop_map(Step::Connect),
        1 => any::<bool>().prop_map(Step::Busy),
        2 => (1..300u64).prop_map(Step::Time),
    ];
    proptest::collection::vec(step, 1..200)
}

struct World {
    clients: [Session; 2],
    links: [Option<Link>; 2],
    server: Server,
    now_ms: u64,
    given: u64,
    sent: Vec<u64>,
    got: Vec<(u64, Vec<u8>)>,
}

impl World {
    fn new(window: usize) -> World {
        let mut clients = [Session::new(b"alice", 1, b""), Session::new(b"bob", 1, b"")];
        clients[0].set_window(window);
        clients[1].set_auto_ack(true);
        World {
            clients,
            links: [None, None],
            server: Server::default(),
            now_ms: 0,
            given: 0,
            sent: Vec::new(),
            got: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send => {
                self.given += 1;
                let body = self.given.to_string();
                let seq = self.clients[0].send(b"bob", body.as_bytes(), Class::Guaranteed);
                assert_eq!(seq, Ok(self.given));
                self.flush(0);
            }
            Step::ToServer(who, n) => self.server_reads(who, n),
            Step::ToClient(who, n) => self.client_reads(who, n),
            Step::Cut(who) => {
                self.links[who] = None;
                self.clients[who].disconnected();
            }
            Step::Connect(who) => {
                let hello = self.clients[who].connect();
                let link = Link { to_server: hello.into(), ..Link::default() };
                self.links[who] = Some(link);
            }
            Step::Busy(busy) => self.server.busy = busy,
            Step::Time(ms) => {
                self.now_ms += ms;
                for who in 0..2 {
                    self.clients[who].tick(self.now_ms);
                    self.flush(who);
                }
            }
        }
    }

    fn flush(&mut self, who: usize) {
        let mut out = Vec::new();
        self.clients[who].take_output(&mut out);
        if let Some(link) = &mut self.links[who] {
            link.to_server.extend(out);
        }
    }

    fn client_reads(&mut self, who: usize, n: usize) {
        let Some(link) = &mut self.links[who] else { return };
        let n = n.min(link.to_client.len());
        let bytes: Vec<u8> = link.to_client.drain(..n).collect();
        let (sent, got) = (&mut self.sent, &mut self.got);
        self.clients[who]
            .receive(self.now_ms, &bytes, |event| match event {
                Event::Sent { to, seq, body, .. } => {
                    assert_eq!(to, b"bob");
                    assert_eq!(body, seq.to_string().as_bytes());
                    sent.push(seq);
                }
                Event::Deliver { deliver, again } => {
                    assert!(!again, "everything is acknowledged when it is handed out");
                    got.push((deliver.inbox_seq, deliver.body.to_vec()));
                }
                Event::Lost { .. }
                | Event::Forgotten { .. }
                | Event::Refused { .. }
                | Event::Error { .. } => {
                    panic!("the model does no such thing: {event:?}")
                }
                _ => {}
            })
            .expect("the model speaks the protocol");
        self.flush(who);
    }

    fn server_reads(&mut self, who: usize, n: usize) {
        let Some(link) = &mut self.links[who] else { return };
        let n = n.min(link.to_server.len());
        link.read.extend(link.to_server.drain(..n));
        let mut used = 0;
        if !link.greeted {
            if link.read.len() < 4 {
                return;
            }
            assert_eq!(&link.read[..4], v2::PREFACE);
            link.greeted = true;
            used = 4;
        }
        let mut replies = Vec::new();
        while let Some((request, len)) =
            v2::decode_request(&link.read[used..]).expect("a session sends good frames")
        {
            used += len;
            match request {
                Request::Hello(hello) => {
                    assert!(hello.last_seq <= self.server.inbox.len() as u64);
                    link.logged_in = true;
                    if who == 1 {
                        self.server.delivered = hello.last_seq;
                    }
                    v2::put_reply(&mut replies, &welcome());
                }
                Request::Send(send) => {
                    assert!(link.logged_in, "nothing is sent before WELCOME");
                    v2::put_reply(&mut replies, &self.server.send(send.seq, send.body));
                }
                Request::Ack { seq } => assert!(seq <= self.server.delivered),
                Request::Credit { .. } | Request::Ping { .. } => {}
            }
        }
        link.read.drain(..used);
        link.to_client.extend(replies);
        self.deliver();
    }

    fn deliver(&mut self) {
        let Some(link) = self.links[1].as_mut().filter(|link| link.logged_in) else { return };
        let mut bytes = Vec::new();
        for (seq, body) in &self.server.inbox[self.server.delivered as usize..] {
            self.server.delivered += 1;
            let deliver = Deliver {
                inbox_seq: self.server.delivered,
                id: MessageId([0; 16]),
                flags: 0,
                from_device: 1,
                send_seq: *seq,
                time_ms: 0,
                from: b"alice",
                body,
            };
            v2::put_reply(&mut bytes, &Reply::Deliver(deliver));
        }
        link.to_client.extend(bytes);
    }

    /// No more trouble: everything must come to rest.
    fn settle(&mut self) {
        self.server.busy = false;
        self.step(&Step::Connect(0));
        self.step(&Step::Connect(1));
        for _ in 0..10_000 {
            for who in 0..2 {
                self.server_reads(who, usize::MAX);
                self.client_reads(who, usize::MAX);
            }
            if self.sent.len() as u64 == self.given && self.got.len() as u64 == self.given {
                return;
            }
            self.step(&Step::Time(50));
        }
        panic!("stuck: {} given, {} sent, {} got", self.given, self.sent.len(), self.got.len());
    }
}

impl Server {
    fn send(&mut self, seq: u64, body: &[u8]) -> Reply<'static> {
        if seq > self.accepted + 1 {
            return Reply::Gap { expected: self.accepted + 1, to: b"bob" };
        }
        if seq == self.accepted + 1 {
            if self.busy {
                let code = Code::Busy as u16;
                return Reply::Refused { seq, code, retry_after_ms: 20, to: b"bob" };
            }
            self.accepted = seq;
            self.inbox.push((seq, body.to_vec()));
        }
        Reply::Sent { seq, id: MessageId([0; 16]), class: Class::Guaranteed, to: b"bob" }
    }
}

fn welcome() -> Reply<'static> {
    Reply::Welcome(Welcome {
        version: v2::VERSION,
        capabilities: 0,
        server_time_ms: 0,
        first_seq: 1,
        last_seq: 0,
        frame_bytes_max: 0,
        body_bytes_max: 0,
        credit_max: 0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_once_and_in_order(steps in steps(), window in 1..12usize) {
        let mut world = World::new(window);
        for step in &steps {
            world.step(step);
        }
        world.settle();
        let sent: Vec<u64> = (1..=world.given).collect();
        prop_assert_eq!(&world.sent, &sent);
        let got: Vec<(u64, Vec<u8>)> =
            sent.iter().map(|seq| (*seq, seq.to_string().into_bytes())).collect();
        prop_assert_eq!(&world.got, &got);
    }

    #[test]
    fn no_bytes_of_a_server_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..300usize) {
        let mut session = Session::new(b"alice", 1, b"");
        session.connect();
        let cut = cut.min(bytes.len());
        if session.receive(0, &bytes[..cut], |_| {}).is_ok() {
            let _broken = session.receive(1, &bytes[cut..], |_| {});
        }
        let mut old = client::v1::Session::new(b"alice", None);
        old.connect();
        if old.receive(&bytes[..cut], |_| {}).is_ok() {
            let _broken = old.receive(&bytes[cut..], |_| {});
        }
    }
}

/// The server's data is older than the device's: it begins again, once it is
/// told so at a login, and nowhere else.
#[test]
fn a_device_that_is_ahead_of_the_server_starts_over() {
    let mut session = Session::new(b"bob", 1, b"");
    session.set_cursor(300_000);
    let goaway = |code: Code| {
        let mut bytes = Vec::new();
        v2::put_reply(
            &mut bytes,
            &Reply::Goaway { code: code as u16, reconnect_after_ms: 0, text: b"" },
        );
        bytes
    };
    let hear = |session: &mut Session, bytes: &[u8]| {
        let mut over = Vec::new();
        session
            .receive(0, bytes, |event| {
                if let Event::StartsOver { cursor } = event {
                    over.push(cursor);
                }
            })
            .expect("good bytes");
        over
    };
    let _ = session.connect();
    assert_eq!(hear(&mut session, &goaway(Code::Draining)), []);
    assert_eq!(session.cursor(), 300_000);
    let _ = session.connect();
    assert_eq!(hear(&mut session, &goaway(Code::BadCursor)), [300_000]);
    assert_eq!(session.cursor(), 0);
    // An application that still has some of before says nothing by that.
    session.ack(300_001);
    assert_eq!(session.cursor(), 0);
    let hello = session.connect();
    let (request, _) = v2::decode_request(&hello[4..]).expect("good").expect("whole");
    assert!(matches!(request, Request::Hello(hello) if hello.last_seq == 0), "{request:?}");
}
