//! `kill -9` in a loop, under load: nothing that was confirmed may be missing,
//! doubled or out of order afterwards.
//!
//! Clients run in threads of their own and go on with whatever server is
//! there. The server is killed after a number of confirmed messages, not after
//! a time, and at the end everything is collected and compared.
//! `CRASH_ROUNDS` asks for more rounds than the 15 of an ordinary run.

mod server;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use client::Session;
use client::blocking::{Client, ClientV1};
use server::{PATIENCE, Setup};
use wire::id::{Class, MessageId};

/// Kills of an ordinary run.
const ROUNDS: usize = 15;
/// Longer than a client waits for anything while its server lives.
const HANG: Duration = Duration::from_secs(60);
/// How often a waiting client looks whether it is over.
const LOOK: Duration = Duration::from_millis(100);

const SENDERS: [&str; 3] = ["s0", "s1", "s2"];
const MIXED: &str = "mixed";
const OLD_SENDER: &str = "old";
const RECEIVERS: [&str; 3] = ["r0", "r1", "r2"];
const OLD_RECEIVER: &str = "elder";

/// Where the server is at present, and how far the test has come.
struct Stage {
    state: Mutex<State>,
    changed: Condvar,
    /// Senders finish what they have and send no more.
    is_enough: AtomicBool,
    /// What each recipient must have got in the end, once that is known.
    all: OnceLock<BTreeMap<&'static str, GotFrom>>,
    /// Somebody failed: all go home.
    is_over: AtomicBool,
}

struct State {
    /// Counts the servers there were.
    incarnation: usize,
    addr: SocketAddr,
    /// Messages confirmed to v2 senders.
    confirmed: usize,
}

impl Stage {
    fn new(addr: SocketAddr) -> Stage {
        Stage {
            state: Mutex::new(State { incarnation: 1, addr, confirmed: 0 }),
            changed: Condvar::new(),
            is_enough: AtomicBool::new(false),
            all: OnceLock::new(),
            is_over: AtomicBool::new(false),
        }
    }

    fn set_server(&self, addr: SocketAddr) {
        let mut state = self.state.lock().unwrap();
        state.incarnation += 1;
        state.addr = addr;
        self.changed.notify_all();
    }

    fn server(&self) -> (usize, SocketAddr) {
        let state = self.state.lock().unwrap();
        (state.incarnation, state.addr)
    }

    fn confirm(&self, messages: usize) {
        self.state.lock().unwrap().confirmed += messages;
        self.changed.notify_all();
    }

    /// Waits until this many messages were confirmed.
    fn wait_confirmed(&self, wanted: usize) -> usize {
        let state = self.state.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(state, HANG, |state| state.confirmed < wanted && !self.is_over());
        let (state, timeout) = wait.unwrap();
        assert!(!timeout.timed_out(), "only {} of {wanted} were confirmed", state.confirmed);
        state.confirmed
    }

    /// Waits for a server after the one known; `None` when it is over.
    fn wait_newer(&self, known: usize) -> Option<(usize, SocketAddr)> {
        let state = self.state.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(state, HANG, |state| state.incarnation <= known && !self.is_over());
        let (state, timeout) = wait.unwrap();
        assert!(!timeout.timed_out(), "a connection ended and its server is still there");
        (state.incarnation > known).then_some((state.incarnation, state.addr))
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn is_enough(&self) -> bool {
        self.is_enough.load(Ordering::SeqCst)
    }

    /// Whether a recipient has got everything that it must have got.
    fn has_all(&self, name: &str, got: &GotFrom) -> bool {
        self.is_over() || self.all.get().is_some_and(|all| all[name] == *got)
    }

    fn set_over(&self) {
        self.is_enough.store(true, Ordering::SeqCst);
        self.is_over.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

/// When one thread fails, the others must not wait for ever.
struct Guard<'a>(&'a Stage);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.set_over();
        }
    }
}

/// A device that goes on with the next server when its own is gone.
struct Device<'a> {
    stage: &'a Stage,
    incarnation: usize,
    client: Client,
}

impl<'a> Device<'a> {
    /// Logs in for the first time; `None` when it is over.
    fn new(stage: &'a Stage, user: &str) -> Option<Device<'a>> {
        let (mut incarnation, mut addr) = stage.server();
        loop {
            let mut session = Session::new(user.as_bytes(), 1, b"");
            session.set_window(64);
            match Client::connect_session(addr, session) {
                Ok(client) => return Some(Device { stage, incarnation, client }),
                Err(error) if is_end(&error) => {
                    (incarnation, addr) = stage.wait_newer(incarnation)?;
                }
                Err(error) => panic!("cannot log in: {error}"),
            }
        }
    }

    /// Does something with the client, again with each new server until it
    /// works; `None` when it is over.
    fn act<T>(&mut self, mut act: impl FnMut(&mut Client) -> io::Result<T>) -> Option<T> {
        loop {
            match act(&mut self.client) {
                Ok(value) => return Some(value),
                Err(error) if is_end(&error) => self.move_on()?,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn move_on(&mut self) -> Option<()> {
        loop {
            let (incarnation, addr) = self.stage.wait_newer(self.incarnation)?;
            self.incarnation = incarnation;
            match self.client.reconnect(Some(addr)) {
                Ok(()) => return Some(()),
                Err(error) if is_end(&error) => {}
                Err(error) => panic!("cannot log in again: {error}"),
            }
        }
    }
}

/// What a dying server looks like from outside.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected,
        UnexpectedEof,
    };
    matches!(
        error.kind(),
        UnexpectedEof
            | ConnectionReset
            | ConnectionRefused
            | BrokenPipe
            | ConnectionAborted
            | NotConnected
    )
}

/// A message of these tests: who, the how-manieth to this recipient, and
/// whether it is guaranteed. Bodies have many lengths, some of several blocks.
fn body(sender: &str, number: u64, is_guaranteed: bool) -> Vec<u8> {
    let length =
        (number * 7919 % 1500) as usize + if number.is_multiple_of(97) { 20_000 } else { 0 };
    let class = if is_guaranteed { 'g' } else { 'b' };
    let mut body = format!("{sender} {number} {class} ").into_bytes();
    body.resize(body.len() + length, b'.');
    body
}

fn parse(body: &[u8]) -> (String, u64, bool) {
    let text = std::str::from_utf8(body).expect("as it was sent");
    let mut words = text.splitn(4, ' ');
    let sender = words.next().expect("a sender").to_owned();
    let number = words.next().expect("a number").parse().expect("a number");
    let is_guaranteed = words.next() == Some("g");
    assert!(body == self::body(&sender, number, is_guaranteed), "the body is another: {text:.60}");
    (sender, number, is_guaranteed)
}

/// What one sender sent of class guaranteed, by recipient: all of it confirmed.
type SentTo = BTreeMap<&'static str, Vec<u64>>;
/// What one recipient got of class guaranteed, by sender.
type GotFrom = BTreeMap<String, Vec<u64>>;

/// Sends to everybody in turn, a few messages at a time, until it is enough,
/// and waits for all confirmations.
fn send_for_ever(stage: &Stage, name: &'static str, is_mixed: bool) -> SentTo {
    let _guard = Guard(stage);
    let mut sent = SentTo::new();
    let Some(mut device) = Device::new(stage, name) else { return sent };
    let mut number = 0;
    while !stage.is_enough() {
        let mut last = BTreeMap::new();
        for _ in 0..8 {
            number += 1;
            for to in RECEIVERS.into_iter().chain([OLD_RECEIVER]) {
                let is_guaranteed = !is_mixed || number % 3 == 0;
                let class = if is_guaranteed { Class::Guaranteed } else { Class::BestEffort };
                let body = body(name, number, is_guaranteed);
                // In the outbox at once, whatever becomes of the connection.
                let seq = device.client.session().send(to.as_bytes(), &body, class);
                last.insert(to, seq.expect("the outbox has room"));
                if is_guaranteed {
                    sent.entry(to).or_default().push(number);
                }
            }
        }
        for (to, seq) in last {
            let wait = |client: &mut Client| client.wait_sent(to.as_bytes(), seq, HANG);
            if device.act(wait).is_none() {
                return sent;
            }
            stage.confirm(8);
        }
    }
    sent
}

/// A v1 client: confirms nothing, so what it sent is only checked for order.
fn send_for_ever_v1(stage: &Stage) {
    let _guard = Guard(stage);
    let (mut incarnation, mut addr) = stage.server();
    let mut number = 0;
    while !stage.is_enough() {
        let attempt = ClientV1::connect(addr, OLD_SENDER.as_bytes()).and_then(|mut client| {
            while !stage.is_enough() {
                for to in RECEIVERS {
                    number += 1;
                    client.send(to.as_bytes(), &body(OLD_SENDER, number, false))?;
                }
                client.status(b"r0", HANG)?;
            }
            Ok(())
        });
        match attempt {
            Ok(()) => return,
            Err(error) if is_end(&error) => match stage.wait_newer(incarnation) {
                Some(newer) => (incarnation, addr) = newer,
                None => return,
            },
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a recipient has got so far.
struct Collected<'a> {
    stage: &'a Stage,
    name: &'static str,
    got: GotFrom,
    /// By sender and server: the last of class best effort.
    best_effort: HashMap<(String, usize), u64>,
    last_news: Instant,
}

impl<'a> Collected<'a> {
    fn new(stage: &'a Stage, name: &'static str) -> Collected<'a> {
        let (got, best_effort) = (GotFrom::new(), HashMap::new());
        Collected { stage, name, got, best_effort, last_news: Instant::now() }
    }

    /// Takes a message that did not come before.
    fn take(&mut self, body: &[u8], incarnation: usize) -> String {
        self.last_news = Instant::now();
        let (sender, number, is_guaranteed) = parse(body);
        let last = if is_guaranteed {
            let got = self.got.entry(sender.clone()).or_default();
            let last = got.last().copied();
            got.push(number);
            last
        } else {
            // Best effort may be lost by a crash and repeated after it, but
            // not within the life of one server.
            self.best_effort.insert((sender.clone(), incarnation), number)
        };
        assert!(last < Some(number), "{}: {sender} {number} after {last:?}", self.name);
        sender
    }

    /// To be asked when nothing comes: whether there is nothing more to come.
    fn is_complete(&self) -> bool {
        let is_complete = self.stage.has_all(self.name, &self.got);
        let all = self.stage.all.get().map(|all| &all[self.name]);
        assert!(
            is_complete || self.last_news.elapsed() < HANG,
            "{} got {:?} of {all:?}",
            self.name,
            self.got
        );
        is_complete
    }
}

/// Reads and acknowledges until everything is there.
fn receive_all(stage: &Stage, name: &'static str) -> Option<()> {
    let _guard = Guard(stage);
    let mut device = Device::new(stage, name)?;
    let mut collected = Collected::new(stage, name);
    let mut last = 0;
    let mut count = 0;
    loop {
        let Some(delivery) = device.act(|client| client.next_delivery(LOOK))? else {
            if collected.is_complete() {
                // Until the answer comes the server may not have read it.
                return device.act(|client| client.ack(last).and_then(|()| client.ping(1, HANG)));
            }
            continue;
        };
        if delivery.again {
            let cursor = device.client.session().cursor();
            assert!(delivery.inbox_seq > cursor, "what was acknowledged came again");
        } else {
            let sender = collected.take(&delivery.body, device.incarnation);
            assert_eq!(sender.as_bytes(), delivery.from);
        }
        last = delivery.inbox_seq;
        count += 1;
        // Not each: what is not acknowledged must come again after a crash.
        if count % 5 == 0 {
            device.act(|client| client.ack(last))?;
        }
    }
}

/// As [`receive_all`] with v1, whose acknowledgements name messages. One that
/// the server had no time to store counts for nothing, so an acknowledged
/// message may come again; but not after a login that passed it over.
fn receive_all_v1(stage: &Stage, name: &'static str) {
    let _guard = Guard(stage);
    let (mut incarnation, mut addr) = stage.server();
    let mut collected = Collected::new(stage, name);
    // By message: the login at which it was acknowledged.
    let mut acked: HashMap<MessageId, usize> = HashMap::new();
    // By login: how far it got. Ids rise within an inbox.
    let mut furthest: Vec<MessageId> = Vec::new();
    loop {
        let attempt = ClientV1::connect(addr, name.as_bytes()).and_then(|mut client| {
            let login = furthest.len();
            furthest.push(MessageId([0; 16]));
            loop {
                let Some(delivery) = client.next_delivery(LOOK)? else {
                    if collected.is_complete() {
                        return Ok(());
                    }
                    continue;
                };
                let id = delivery.id;
                assert!(furthest[login] < id, "{id} after {}", furthest[login]);
                furthest[login] = id;
                // Noted before it is written: it may arrive although that fails.
                match acked.insert(id, login) {
                    None => drop(collected.take(&delivery.body, incarnation)),
                    Some(earlier) => {
                        let between = &furthest[earlier + 1..login];
                        assert!(between.iter().all(|passed| *passed < id), "{id} is back");
                    }
                }
                client.ack(id)?;
            }
        });
        match attempt {
            Ok(()) => return,
            Err(error) if is_end(&error) => match stage.wait_newer(incarnation) {
                Some(newer) => (incarnation, addr) = newer,
                None => return,
            },
            Err(error) => panic!("{error}"),
        }
    }
}

fn rounds() -> usize {
    std::env::var("CRASH_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"))
}

#[test]
fn nothing_confirmed_is_lost_by_kill_9() {
    let setup = Setup::new().shards(2);
    let mut server = setup.start();
    let stage = Stage::new(server.addr());
    let server = thread::scope(|scope| {
        let stage = &stage;
        let _guard = Guard(stage);
        for name in RECEIVERS {
            scope.spawn(move || receive_all(stage, name));
        }
        scope.spawn(|| receive_all_v1(stage, OLD_RECEIVER));
        let senders: Vec<_> = SENDERS
            .into_iter()
            .chain([MIXED])
            .map(|name| (name, scope.spawn(move || send_for_ever(stage, name, name == MIXED))))
            .collect();
        let old = scope.spawn(|| send_for_ever_v1(stage));

        let mut confirmed = 0;
        let mut slowest = Duration::ZERO;
        for round in 0..rounds() {
            // Sometimes at once, sometimes in full swing.
            confirmed = stage.wait_confirmed(confirmed + round * 7919 % 400);
            let setup = server.kill();
            let began = Instant::now();
            server = setup.start();
            slowest = slowest.max(began.elapsed());
            stage.set_server(server.addr());
        }
        stage.wait_confirmed(confirmed + 200);
        stage.is_enough.store(true, Ordering::SeqCst);
        let mut all: BTreeMap<&str, GotFrom> = BTreeMap::new();
        for (sender, thread) in senders {
            for (recipient, numbers) in thread.join().unwrap() {
                all.entry(recipient).or_default().insert(sender.to_owned(), numbers);
            }
        }
        old.join().unwrap();
        println!("{} kills, slowest restart {slowest:?}, {confirmed} confirmed", rounds());
        assert!(stage.all.set(all).is_ok(), "it is known once");
        server
    });
    // Everybody acknowledged everything, and that survives as well. Of those
    // that confirm nothing the last messages may have come later.
    let server = server.stop().start();
    for name in RECEIVERS {
        let mut client = server.v2(name, 1);
        while let Some(delivery) = client.next_delivery(LOOK).unwrap() {
            let (sender, number, is_guaranteed) = parse(&delivery.body);
            assert!(!is_guaranteed, "{name} gets {sender}'s {number} again");
        }
    }
}

/// A server that dies while it starts leaves nothing that the next one cannot
/// use, whether the directory is new or full.
#[test]
fn a_boot_may_be_killed_at_any_line() {
    let setup = Setup::new().shards(3).argument("--log-level").argument("debug");
    for lines in 0..30 {
        setup.kill_in_boot(lines);
    }
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    for n in 0..500_u32 {
        alice.send(b"bob", &n.to_be_bytes(), Class::Guaranteed).unwrap();
    }
    alice.wait_sent(b"bob", 500, PATIENCE).unwrap();
    let setup = server.kill();
    for lines in 0..30 {
        setup.kill_in_boot(lines);
    }
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for n in 0..500_u32 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.body, n.to_be_bytes());
        bob.ack(delivery.inbox_seq).unwrap();
    }
}

/// Best effort and acknowledgements gather on their way to the disk, but get there
/// by themselves, too.
#[test]
fn what_nobody_waits_for_becomes_durable_by_itself() {
    let server = Setup::new().shards(1).start();
    let (mut alice, mut bob) = (server.v2("alice", 1), server.v2("bob", 1));
    alice.send_and_wait(b"bob", b"had", PATIENCE).unwrap();
    let had = bob.next_delivery(PATIENCE).unwrap().expect("a message");
    bob.ack(had.inbox_seq).unwrap();
    server.wait_metric("iris_acks_total", |acks| acks == 1.0);
    let seq = alice.send(b"bob", b"kept", Class::BestEffort).unwrap();
    alice.wait_sent(b"bob", seq, PATIENCE).unwrap();
    // What is published later was so later.
    server.wait_metric("iris_messages_appended_total", |appended| appended == 2.0);
    server.wait_metric("iris_log_undurable_bytes", |bytes| bytes == 0.0);
    let server = server.crash_and_restart();
    let kept = server.v2("bob", 1).next_delivery(PATIENCE).unwrap().expect("a message");
    assert_eq!(kept.body, b"kept");
}
