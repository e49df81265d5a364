//! Another number of shards than the data directory was written for: everything
//! is there afterwards, whatever happens meanwhile.

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use client::blocking::{Client, ClientV1, Delivery};
use server::mounted::Mounted;
use server::peer::{Peer, hello};
use server::{Deadline, PATIENCE, Server, Setup};
use wal::manifest::Manifest;
use wire::id::{Class, MessageId};

const SENDERS: [&str; 3] = ["s0", "s1", "s2"];
const ELDER: &str = "elder";
/// Sends last in each round: when it is told SENT, all before is durable.
const BARRIER: &str = "barrier";
/// Nobody logs in as one of them before the end.
const AWAY: [&str; 6] = ["away-0", "away-1", "away-2", "away-3", "away-4", "away-5"];
/// Read everything and acknowledge most of it, each on two devices.
const HERE: [&str; 3] = ["here-0", "here-1", "here-2"];
const EACH: u64 = 40;

fn body(sender: &str, number: u64) -> Vec<u8> {
    let mut body = format!("{sender} {number} ").into_bytes();
    body.resize(body.len() + (number * 7919 % 3000) as usize, b'.');
    body
}

fn parse(delivered: &[u8]) -> (String, u64) {
    let text = std::str::from_utf8(delivered).expect("as it was sent");
    let mut words = text.splitn(3, ' ');
    let sender = words.next().expect("a sender").to_owned();
    let number = words.next().expect("a number").parse().expect("a number");
    assert!(delivered == body(&sender, number), "the body is another: {text:.60}");
    (sender, number)
}

fn layout(dir: &Path) -> Manifest {
    Manifest::load(dir).expect("the server wrote it")
}

/// The directories of logs.
fn layouts(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().expect("plain names"));
    names.filter(|name| name.starts_with("shard-") || name.starts_with("gen-")).collect()
}

/// A device that knows what it has got, by sender, and goes on with the next
/// server.
struct Device {
    client: Client,
    got: BTreeMap<String, Vec<u64>>,
}

impl Device {
    fn new(server: &Server, user: &str, device: u64) -> Device {
        Device { client: server.v2(user, device), got: BTreeMap::new() }
    }

    fn take(&mut self, delivery: &Delivery) {
        if delivery.again {
            let cursor = self.client.session().cursor();
            assert!(delivery.inbox_seq > cursor, "what was acknowledged came again");
            return;
        }
        let (sender, number) = parse(&delivery.body);
        let got = self.got.entry(sender).or_default();
        assert!(got.last() < Some(&number), "{number} after {got:?}");
        got.push(number);
    }

    /// Everything up to this many from each; acknowledges all or most of it.
    /// The rest and the leap after a restart must fit the window.
    fn read(&mut self, each: u64, acknowledges_all: bool) {
        let is_complete = |got: &BTreeMap<String, Vec<u64>>| {
            let of = |sender: &&str| got.get(*sender).map_or(0, Vec::len) as u64;
            SENDERS.iter().all(|sender| of(sender) == each)
        };
        let mut seqs = Vec::new();
        while !is_complete(&self.got) {
            let delivery = self.client.next_delivery(PATIENCE).unwrap();
            let delivery = delivery.unwrap_or_else(|| panic!("{:?} of {each} each", self.got));
            self.take(&delivery);
            seqs.push(delivery.inbox_seq);
            if acknowledges_all && seqs.len() % 50 == 0 {
                self.client.ack(delivery.inbox_seq).unwrap();
            }
        }
        let at = if acknowledges_all { seqs.len() } else { seqs.len() * 3 / 4 };
        if at > 0 {
            self.client.ack(seqs[at - 1]).unwrap();
        }
        self.client.ping(1, PATIENCE).unwrap();
    }
}

/// What a v1 user has got.
#[derive(Default)]
struct Old {
    acknowledged: BTreeSet<MessageId>,
    got: BTreeSet<(String, u64)>,
}

impl Old {
    /// Acknowledges every second message.
    fn read(&mut self, server: &Server, each: u64) {
        let mut client: ClientV1 = server.v1(ELDER);
        let mut n = 0;
        let is_counted = |got: &&(String, u64)| got.0 != BARRIER;
        while (self.got.iter().filter(is_counted).count() as u64) < each * SENDERS.len() as u64 {
            let delivery = client.next_delivery(PATIENCE).unwrap().expect("more must come");
            assert!(!self.acknowledged.contains(&delivery.id), "{} is back", delivery.id);
            self.got.insert(parse(&delivery.body));
            n += 1;
            if n % 2 == 0 {
                client.ack(delivery.id).unwrap();
                self.acknowledged.insert(delivery.id);
            }
        }
        client.status(b"s0", PATIENCE).unwrap();
    }
}

/// Everybody sends `EACH` messages to everybody who reads, confirmed.
fn send_round(senders: &mut [Client], round: u64) {
    let recipients = || AWAY.into_iter().chain(HERE).chain([ELDER]);
    for (client, name) in senders.iter_mut().zip(SENDERS) {
        for number in round * EACH + 1..=(round + 1) * EACH {
            for to in recipients() {
                client.send(to.as_bytes(), &body(name, number), Class::Guaranteed).unwrap();
            }
        }
    }
    for client in senders {
        for to in recipients() {
            client.wait_sent(to.as_bytes(), (round + 1) * EACH, PATIENCE).unwrap();
        }
    }
}

/// A number from before is known; nothing is stored for it.
fn check_repetition(server: &Server, last: u64) {
    for (name, to) in SENDERS.iter().zip(AWAY) {
        let (mut peer, _) = Peer::v2(server.addr(), &hello(name, 1));
        for seq in [1, last] {
            peer.send_v2(to, seq, b"a repetition that nobody must get");
            peer.expect_sent(seq);
        }
    }
}

#[test]
fn everything_survives_every_change_of_the_number() {
    const COUNTS: [u16; 5] = [2, 3, 1, 4, 2];
    let setup = Setup::new();
    let dir = setup.data_dir().to_owned();
    let mut server = setup.clone().shards(COUNTS[0]).start();
    let mut senders: Vec<Client> = SENDERS.map(|name| server.v2(name, 1)).into();
    let mut devices: Vec<Device> = Vec::new();
    for name in HERE {
        devices.extend([1, 2].map(|device| Device::new(&server, name, device)));
    }
    let mut barrier = server.v2(BARRIER, 1);
    let mut old = Old::default();
    // Known and never written to.
    drop(server.v2("silent", 1));

    for (round, &shards) in COUNTS.iter().enumerate() {
        let round = round as u64;
        if round > 0 {
            let setup = setup.clone().shards(shards);
            let was = layout(&dir).generation;
            if round.is_multiple_of(2) {
                server.stop();
            } else {
                server.kill();
            }
            server = setup.start();
            assert_eq!(layout(&dir).generation, was + 1);
            assert_eq!(server.metric("iris_shards"), f64::from(shards));
            // Only what counts is left.
            let deadline = Deadline::new();
            while layouts(&dir) != BTreeSet::from([format!("gen-{:04}", was + 1)]) {
                deadline.pause(|| format!("{:?} are left", layouts(&dir)));
            }
            check_repetition(&server, round * EACH);
            let devices = devices.iter_mut().map(|device| &mut device.client);
            for client in senders.iter_mut().chain(devices).chain([&mut barrier]) {
                client.reconnect(Some(server.addr())).unwrap();
            }
        }
        send_round(&mut senders, round);
        for (n, device) in devices.iter_mut().enumerate() {
            device.read((round + 1) * EACH, n % 2 == 0);
        }
        old.read(&server, (round + 1) * EACH);
        // Durable behind what has been acknowledged.
        for to in HERE.into_iter().chain([ELDER]) {
            barrier.send_and_wait(to.as_bytes(), &body(BARRIER, round + 1), PATIENCE).unwrap();
        }
    }

    // Nobody is told anything twice, and those who were away get all of it.
    let total = COUNTS.len() as u64 * EACH;
    let all: Vec<u64> = (1..=total).collect();
    for name in AWAY {
        let mut device = Device::new(&server, name, 9);
        device.read(total, true);
        assert!(SENDERS.iter().all(|sender| device.got[*sender] == all), "{:?}", device.got);
        assert!(device.client.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
    }
    for device in &devices {
        assert!(SENDERS.iter().all(|sender| device.got[*sender] == all), "{:?}", device.got);
    }
    drop(server);
}

/// A message that nobody acknowledges.
fn long_body(n: u64) -> Vec<u8> {
    let mut body = format!("message {n} ").into_bytes();
    body.resize(20_000 + (n * 7919 % 3000) as usize, b'.');
    body
}

/// Some megabytes for users who are away.
fn fill(server: &Server, each: u64) {
    let mut alice = server.v2("alice", 1);
    for n in 1..=each {
        for to in AWAY {
            alice.send(to.as_bytes(), &long_body(n), Class::Guaranteed).unwrap();
        }
    }
    for to in AWAY {
        alice.wait_sent(to.as_bytes(), each, PATIENCE).unwrap();
    }
}

/// All of it is there; nothing is acknowledged.
#[track_caller]
fn check_filled(server: &Server, each: u64) {
    for name in AWAY {
        let mut client = server.v2(name, 1);
        for n in 1..=each {
            let delivery = client.next_delivery(PATIENCE).unwrap().expect("a message");
            assert!(delivery.body == long_body(n), "{name}: message {n} is another");
        }
        client.ping(1, PATIENCE).unwrap();
        assert!(client.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
    }
    let (mut peer, _) = Peer::v2(server.addr(), &hello("alice", 1));
    for to in AWAY {
        peer.send_v2(to, each, b"a repetition that nobody must get");
        peer.expect_sent(each);
    }
}

/// Every file of the layouts that do not count yet.
fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_of(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// When the server is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The new layout has its directory and so many segments.
    Segments(usize),
    /// It has so many snapshots, be they complete or not.
    Snapshots(usize),
    /// It counts, and the old one has lost so many files.
    Switched(usize),
}

impl Moment {
    /// Early ones first; some come too late for a layout of few files.
    fn all() -> impl Iterator<Item = Moment> {
        let segments = (0..9).map(Moment::Segments);
        let snapshots = (0..4).map(|n| Moment::Snapshots(1 + n % 2));
        segments.chain(snapshots).chain([0, 0, 1, 4].map(Moment::Switched))
    }
}

fn count(files: &[PathBuf], part: &str) -> usize {
    files.iter().filter(|path| path.to_string_lossy().contains(part)).count()
}

#[test]
fn it_may_be_killed_at_any_moment() {
    const EACH: u64 = 60;
    let setup = Setup::new();
    let dir = setup.data_dir().to_owned();
    let server = setup.clone().shards(2).start();
    fill(&server, EACH);
    server.kill();
    let (mut before, mut after) = (0, 0);
    for (round, moment) in Moment::all().enumerate() {
        let was = layout(&dir);
        let mut asked = [1, 3, 2, 4].into_iter().cycle().skip(round % 4);
        let asked = asked.find(|count| *count != was.shards).expect("another one");
        let new = dir.join(format!("gen-{:04}", was.generation + 1));
        let old: Vec<PathBuf> = match was.generation {
            0 => (0..was.shards).map(|shard| dir.join(format!("shard-{shard:04}"))).collect(),
            generation => vec![dir.join(format!("gen-{generation:04}"))],
        };
        let old_files = || old.iter().map(|path| files_of(path).len()).sum::<usize>();
        let there = old_files();
        let said = setup.clone().shards(asked).kill_in_boot_when(|_| match moment {
            Moment::Segments(n) => new.exists() && count(&files_of(&new), "/segment-") >= n,
            Moment::Snapshots(n) => count(&files_of(&new), "/snapshot-") >= n,
            Moment::Switched(removed) => {
                layout(&dir).generation > was.generation && old_files() + removed <= there
            }
        });
        assert!(said.contains("until that is complete the old layout"), "{said}");
        let now = layout(&dir);
        let is_new = now.generation > was.generation;
        assert_eq!(now.shards, if is_new { asked } else { was.shards });
        (before, after) = (before + usize::from(!is_new), after + usize::from(is_new));
        let server = setup.start();
        assert_eq!(server.metric("iris_shards"), f64::from(now.shards));
        check_filled(&server, EACH);
        let kept = match now.generation {
            0 => (0..now.shards).map(|shard| format!("shard-{shard:04}")).collect(),
            generation => BTreeSet::from([format!("gen-{generation:04}")]),
        };
        let deadline = Deadline::new();
        while layouts(&dir) != kept {
            deadline.pause(|| format!("{:?} instead of {kept:?}", layouts(&dir)));
        }
        server.kill();
    }
    println!("killed {before} times before the switch, {after} times after it");
    assert!(before >= 5 && after >= 2, "{before} before, {after} after");
}

#[test]
fn it_says_how_far_it_is() {
    const EACH: u64 = 10;
    let setup = Setup::new();
    let server = setup.clone().shards(2).start();
    fill(&server, EACH);
    server.kill();
    let server = setup.shards(3).set("debug.progress_ms", "0").start();
    let said = server.said_in_boot(" INFO ");
    let is_copied = |words: &&String| words.starts_with("copied ");
    // First how far reading each shard of the old layout is.
    let reading: Vec<&String> = said.iter().take_while(|words| !is_copied(words)).collect();
    for shard in 0..2 {
        let begin = format!("shard {shard}: read ");
        let mut of_it = reading.iter().filter(|words| words.starts_with(&begin));
        assert!(of_it.any(|words| words.ends_with(" of the log")), "{said:?}");
    }
    // Then a word for every message, the last one of all of it.
    let copied: Vec<&String> = said.iter().filter(is_copied).collect();
    assert_eq!(copied.len() as u64, EACH * AWAY.len() as u64, "{said:?}");
    let last = copied.last().and_then(|words| words.strip_prefix("copied ")?.split_once(" of "));
    let (done, total) = last.expect("of so many");
    assert_eq!(done, total);
}

/// The old layout is as it was, and serves.
#[track_caller]
fn check_kept(setup: &Setup, each: u64) {
    let manifest = layout(setup.data_dir());
    assert_eq!((manifest.shards, manifest.generation), (2, 0));
    let server = setup.start();
    assert_eq!(server.metric("iris_shards"), 2.0);
    check_filled(&server, each);
    server.kill();
    let kept = BTreeSet::from(["shard-0000".to_owned(), "shard-0001".to_owned()]);
    assert_eq!(layouts(setup.data_dir()), kept);
}

#[test]
fn without_space_nothing_is_changed() {
    const EACH: u64 = 40;
    let Some(mounted) = Mounted::tmpfs("40m") else { return };
    let setup = Setup::in_dir(&mounted.path().join("data"));
    let server = setup.clone().shards(2).start();
    fill(&server, EACH);
    server.kill();
    let ballast = mounted.path().join("ballast");
    // Fails when it is full, and has filled it then.
    let _ = fs::write(&ballast, vec![1; 40 << 20]);
    let words = ["must be free", "nothing was changed", "--shards 2"];
    setup.clone().shards(3).check_refused(3, &words);
    assert!(!setup.data_dir().join("gen-0001").exists());
    fs::OpenOptions::new().write(true).open(&ballast).unwrap().set_len(0).unwrap();
    check_kept(&setup, EACH);
    let server = setup.clone().shards(3).start();
    assert_eq!(server.metric("iris_shards"), 3.0);
    check_filled(&server, EACH);
}

#[test]
fn a_disk_that_fills_up_meanwhile_changes_nothing() {
    const EACH: u64 = 40;
    // Bytes enough, but too few files for the new layout's.
    let Some(mounted) = Mounted::tmpfs("200m,nr_inodes=28") else { return };
    let setup = Setup::in_dir(&mounted.path().join("data"));
    let server = setup.clone().shards(2).start();
    fill(&server, EACH);
    server.kill();
    let said = setup.clone().shards(3).check_refused(3, &["no space is left"]);
    assert!(said.contains("the old layout was not changed"), "{said}");
    check_kept(&setup, EACH);
}

/// Turns one bit of the first place where `text` stands in one of the files.
#[track_caller]
fn damage(files: &[PathBuf], text: &str) {
    for path in files {
        let mut bytes = fs::read(path).unwrap();
        let found = bytes.windows(text.len()).position(|window| window == text.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 1;
            return fs::write(path, bytes).unwrap();
        }
    }
    panic!("'{text}' is not in {files:?}");
}

#[test]
fn damage_in_the_old_layout_leaves_it_as_it_is() {
    const EACH: u64 = 5;
    let setup = Setup::new();
    let dir = setup.data_dir().to_owned();
    let server = setup.clone().shards(2).start();
    fill(&server, EACH);
    server.kill();
    // From here on the log is below the snapshots.
    setup.clone().shards(1).start().kill();
    let files = files_of(&dir.join("gen-0001"));
    damage(&files, "message 3");
    let words = ["is damaged at file offset", "was not changed", "--shards 1"];
    setup.clone().shards(3).check_refused(3, &words);
    assert_eq!(layouts(&dir), BTreeSet::from(["gen-0001".to_owned()]));
    setup.start().kill();

    // One snapshot is enough, and none is too few.
    let snapshots = files.iter().filter(|path| path.extension().is_some_and(|it| it == "snap"));
    let snapshots: Vec<&PathBuf> = snapshots.collect();
    assert_eq!(snapshots.len(), 2);
    let newest = snapshots.iter().max().unwrap();
    let mut bytes = fs::read(newest).unwrap();
    bytes[100] ^= 1;
    fs::write(newest, bytes).unwrap();
    let server = setup.start();
    server.wait_said("could not be used");
    server.kill();
    fs::remove_file(snapshots.iter().min().unwrap()).unwrap();
    setup.check_refused(3, &["only a snapshot says who waits", "backup"]);
    // The messages are still there, and a repair knows what is not.
    let repair = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
        let output = command.args(["repair", "--yes", "--data-dir"]).arg(&dir).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = repair();
    assert!(code == Some(0) && said.contains("what only a snapshot said"), "{said}");
    let server = setup.start();
    let mut client = server.v2(AWAY[0], 1);
    let first = client.next_delivery(PATIENCE).unwrap().expect("a message");
    assert!(first.body == long_body(1));
}
