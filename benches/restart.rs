//! How long a node takes to read back what waits, and what that costs in
//! memory: a directory full of waiting messages, read from the log alone, then
//! from a snapshot, each in a process of its own with one thread per shard. Then
//! the same messages otherwise, for what an inbox, one more message in it and
//! one more pair cost by themselves; and how long a slice of a snapshot takes.
//!
//! `cargo bench -p iris-shard --bench restart -- --messages 10000000 --users 1000000`
//! (several GiB of disk and a few minutes; the defaults are a hundredth of it).
//! `--dir D` keeps the directory, for a server to be started on.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use shard::{KeyHasher, Now, Options, Replay, SLICE_BYTES, Shard, Slice};
use wal::disk::{DataDir, OpenOptions, Recovered, Segments, ShardDir, SnapshotFile, probe};
use wal::snapshot::{Kind, Writer};
use wal::{Log, LogOptions, Message, Record};
use wire::id::{Class, MessageId, ShardId, UserKey};

const NOW: Now = Now { mono_ns: 1_000_000_000, wall_ms: 1_800_000_000_000 };
const SENDERS: u64 = 1000;
/// Devices that send to each user, for what a pair costs: an inbox keeps so many
/// in a list, more in a table.
const PAIRS: u64 = 8;
/// So many times longer are the inboxes of the fewer users, for what a message
/// costs.
const LONGER: u64 = 100;
/// Messages into one inbox, each from a device of its own.
const HOT: u64 = 1_000_000;
/// Of so many of those devices one has sent since the others were forgotten.
const STILL_KNOWN: u64 = 6;
const FORGOTTEN_MS: u64 = PAIRS_KEPT_MS + 24 * 60 * 60 * 1000;
const PAIRS_KEPT_MS: u64 = 7 << 30;

struct Asked {
    messages: u64,
    users: u64,
    /// For each user.
    pairs: u64,
    /// One pair in so many is from today, the others are to be forgotten; 0 for none.
    known: u64,
    shards: u16,
    body: usize,
    dir: Option<PathBuf>,
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (messages, users, shards) = (100_000, 10_000, 2);
    let mut asked = Asked { messages, users, pairs: 1, known: 0, shards, body: 100, dir: None };
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{name} needs a value"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{name}: {value} is no number"));
        match name.as_str() {
            "--messages" => asked.messages = number(),
            "--users" => asked.users = number(),
            "--shards" => asked.shards = number() as u16,
            "--body" => asked.body = number() as usize,
            "--dir" => asked.dir = Some(value.into()),
            // What this process starts itself with.
            "--recover" => return report(Path::new(&value)),
            "--snapshot" => return take_snapshots(Path::new(&value)),
            _ => panic!("unknown argument {name}"),
        }
    }
    let temporary = tempfile::tempdir().expect("a directory for the data");
    let dir = asked.dir.clone().unwrap_or_else(|| temporary.path().join("data"));
    let Asked { messages, users, shards, body, .. } = asked;
    println!("{messages} messages of {body} B wait for {users} users on {shards} shards");

    let without = temporary.path().join("users");
    fill(&without, &Asked { messages: 0, dir: None, ..asked });
    let began = Instant::now();
    fill(&dir, &asked);
    println!("written in {:.1} s, {} MiB", began.elapsed().as_secs_f64(), mib(&dir));

    let empty = measure("users only, from the log", &without);
    let log = measure("from the log alone", &dir);
    println!("    {:.0} B per waiting message", per(log.saturating_sub(empty), messages));
    println!("    {:.0} B per user", per(empty, users));
    print!("{}", again("--snapshot", &dir));
    measure("from a snapshot", &dir);
    if asked.dir.is_none() {
        fs::remove_dir_all(&dir).expect("it is ours");
    }
    measure_parts(temporary.path(), &asked, empty, log);
}

/// What an inbox, a message and a pair cost, by difference to `empty`, the users
/// alone, and `log`, their messages from one pair each.
fn measure_parts(temporary: &Path, asked: &Asked, empty: u64, log: u64) {
    let Asked { messages, users, .. } = *asked;
    let dir = temporary.join("parts");
    let resident = |what: &str, users: u64, pairs: u64| {
        fill(&dir, &Asked { users, pairs, dir: None, ..*asked });
        let bytes = measure(what, &dir);
        fs::remove_dir_all(&dir).expect("it is ours");
        bytes
    };
    let few = (users / LONGER).max(asked.shards.into());
    let long = resident("few users, long inboxes", few, 1);
    let message = per(long.saturating_sub(empty / users * few), messages);
    println!("    {message:.1} B for one more message in an inbox of {}", messages / few);
    let inbox = per(log.saturating_sub(empty), users) - message * per(messages, users);
    println!("    {inbox:.0} B for an inbox with one pair, without its messages");
    for (users, pairs, without) in [(users, PAIRS, log), (few, messages / few, long)] {
        if (2..=messages / users).contains(&pairs) {
            let bytes = resident(&format!("{pairs} pairs for each of {users} users"), users, pairs);
            let pair = per(bytes.saturating_sub(without), users * (pairs - 1));
            println!("    {pair:.0} B for one more pair");
        }
    }
    let pairs = messages.min(HOT);
    let hot = Asked { messages: pairs, users: 1, pairs, known: STILL_KNOWN, dir: None, ..*asked };
    fill(&dir, &hot);
    println!("one user with {pairs} pairs, five of six to be forgotten");
    print!("{}", again("--snapshot", &dir));
}

fn per(bytes: u64, count: u64) -> f64 {
    bytes as f64 / count.max(1) as f64
}

fn mib(dir: &Path) -> u64 {
    let bytes = |path: &Path| -> u64 {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .filter(fs::Metadata::is_file)
            .map(|found| found.len())
            .sum()
    };
    let shards = fs::read_dir(dir).into_iter().flatten().flatten();
    shards.map(|entry| bytes(&entry.path())).sum::<u64>() >> 20
}

/// Reads a directory back in a process of its own; resident bytes that took.
fn measure(what: &str, dir: &Path) -> u64 {
    let said = again("--recover", dir);
    let mut words = said.split_whitespace();
    let mut number = || -> u64 { words.next().and_then(|word| word.parse().ok()).unwrap_or(0) };
    let (ms, bytes, snapshot, log) = (number(), number(), number(), number());
    println!(
        "{what}: {ms} ms ({} MiB of snapshots, {} MiB of log), {} MiB resident",
        snapshot >> 20,
        log >> 20,
        bytes >> 20
    );
    bytes
}

fn again(argument: &str, dir: &Path) -> String {
    let me = std::env::current_exe().expect("this program has a path");
    let output = Command::new(me).arg(argument).arg(dir).output().expect("it starts again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

fn open(dir: &Path, shards: Option<u16>) -> DataDir {
    let segment_bytes = LogOptions::default().segment_bytes;
    let options = OpenOptions { shards, default_shards: 2, segment_bytes };
    DataDir::open(dir, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Writes what a server would have written.
fn fill(dir: &Path, asked: &Asked) {
    let data = open(dir, Some(asked.shards));
    let hasher = KeyHasher::new(data.manifest().seed);
    std::thread::scope(|scope| {
        for id in 0..asked.shards {
            let (shard, hasher) = (data.shard(id), &hasher);
            scope.spawn(move || fill_shard(&shard, id, hasher, asked));
        }
    });
}

/// A log that is written out as it grows.
struct Output {
    log: Log,
    segments: Segments,
}

impl Output {
    fn append(&mut self, record: &Record<'_>) {
        if self.log.append(record, NOW.wall_ms).is_err() {
            self.write_out();
            self.log.append(record, NOW.wall_ms).expect("everything before is written");
        }
    }

    #[allow(unsafe_code)]
    fn write_out(&mut self) {
        while let Some(write) = self.log.next_write() {
            let end = write.lsn + u64::from(write.len);
            while !self.segments.has_space_for(end) {
                let job = self.segments.wants_next(end).expect("one is missing");
                self.segments.adopt(job.run().unwrap_or_else(|error| panic!("{error}")));
            }
            let (fd, offset) = self.segments.locate(write.lsn).expect("it has space");
            // SAFETY: the segments keep the descriptor open.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let bytes = self.log.write_bytes(&write);
            let wrote = rustix::io::pwrite(fd, bytes, offset).expect("the disk takes it");
            assert_eq!(wrote, bytes.len());
            self.log.written(write.lsn, true);
        }
    }
}

fn fill_shard(dir: &ShardDir, id: ShardId, hasher: &KeyHasher, asked: &Asked) {
    let (start, segments) = {
        let mut replay = replay(id, asked.shards, hasher);
        let recovered = recover(dir, &mut replay);
        let segments = dir.open_segments(recovered.start.lsn, probe(dir.path()));
        (recovered.start, segments.unwrap_or_else(|error| panic!("{error}")))
    };
    let options = LogOptions { commit_bytes_max: 1 << 20, ..LogOptions::default() };
    let mut output = Output { log: Log::new(options, start), segments };
    let names: Vec<(String, UserKey)> = (0..asked.users)
        .map(|user| format!("user-{user:010}"))
        .map(|name| (name.clone(), hasher.key(name.as_bytes())))
        .filter(|(_, key)| key.owner(asked.shards) == id)
        .collect();
    for (name, key) in &names {
        let name = name.as_bytes();
        output.append(&Record::Device { key: *key, name, device: 1, cursor: 0, gone: false });
    }
    let body = vec![7; asked.body];
    let mine = asked.messages * names.len() as u64 / asked.users;
    for n in 0..mine {
        let (user, round) = (n % names.len() as u64, n / names.len() as u64);
        let (to, key) = &names[user as usize];
        let from = format!("sender-{:08}", user % SENDERS);
        let device = round % asked.pairs + 1;
        let is_stale = asked.known > 0 && !device.is_multiple_of(asked.known);
        output.append(&Record::Message(Message {
            key: *key,
            to: to.as_bytes(),
            inbox_seq: round + 1,
            id: MessageId::new(NOW.wall_ms, n as u32, 0, id),
            from: from.as_bytes(),
            from_key: hasher.key(from.as_bytes()),
            device,
            send_seq: round / asked.pairs + 1,
            time_ms: NOW.wall_ms - if is_stale { FORGOTTEN_MS } else { 0 },
            expires_ms: NOW.wall_ms + (30 << 30),
            class: Class::Guaranteed,
            flags: 0,
            body: &body,
        }));
    }
    output.write_out();
}

fn replay(id: ShardId, shards: u16, hasher: &KeyHasher) -> Replay {
    let options = Options {
        shard: id,
        shards,
        node: 0,
        users_max: usize::MAX >> 1,
        waiting_messages_max: usize::MAX >> 1,
        pairs_max: usize::MAX >> 1,
        inbox_messages_max: usize::MAX >> 1,
        inbox_bytes_max: u64::MAX >> 1,
        retention_ms: 30 << 30,
        pairs_kept_ms: PAIRS_KEPT_MS,
        handshake_ms: 10_000,
        logins_per_second: 0,
        vouch_after_ms: shard::VOUCH_AFTER_MS,
    };
    Replay::new(options, *hasher, LogOptions::default().segment_bytes)
}

fn recover(dir: &ShardDir, replay: &mut Replay) -> Recovered {
    let recovered = dir.recover(replay, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(replay.contradictions(), 0, "what was written is a log");
    recovered
}

/// Every shard as it comes back, all of them at once.
fn shards(data: &DataDir) -> Vec<(Shard, Recovered)> {
    let hasher = KeyHasher::new(data.manifest().seed);
    let shards = data.manifest().shards;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..shards)
            .map(|id| {
                let (dir, hasher) = (data.shard(id), hasher);
                scope.spawn(move || {
                    let mut replay = replay(id, shards, &hasher);
                    let recovered = recover(&dir, &mut replay);
                    let log = Log::new(LogOptions::default(), recovered.start);
                    let segments = recovered.segments.clone();
                    (replay.finish(&recovered.start, log, segments), recovered)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no shard panics")).collect()
    })
}

/// Prints: milliseconds, resident bytes, bytes of snapshots, bytes of log.
fn report(dir: &Path) {
    let data = open(dir, None);
    let before = resident();
    let began = Instant::now();
    let back = shards(&data);
    let ms = began.elapsed().as_millis();
    let bytes = resident().saturating_sub(before);
    let snapshot: u64 =
        back.iter().filter_map(|(_, it)| it.snapshot.as_ref()).map(|it| it.bytes).sum();
    let log: u64 = back.iter().map(|(_, it)| it.replayed_bytes).sum();
    println!("{ms} {bytes} {snapshot} {log}");
}

fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is there");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") << 10
}

/// Prints how long their slices took.
fn take_snapshots(dir: &Path) {
    let data = open(dir, None);
    let mut took_us = Vec::new();
    for (id, (mut shard, _)) in shards(&data).into_iter().enumerate() {
        let start = shard.begin_snapshot(NOW);
        let mut bytes = Vec::new();
        let mut writer = Writer::new(id as ShardId, &start, &mut bytes);
        let dir = data.shard(id as ShardId);
        let mut file = SnapshotFile::create(&dir, start.lsn).expect("the disk has room");
        let mut payload = Vec::new();
        let end = loop {
            payload.clear();
            let began = Instant::now();
            let slice = shard.snapshot_slice(SLICE_BYTES, &mut payload);
            took_us.push(began.elapsed().as_micros());
            writer.frame(Kind::State, &payload, &mut bytes);
            file.write(&bytes).expect("the disk has room");
            bytes.clear();
            if let Slice::Done { end } = slice {
                break end;
            }
        };
        let mut next = Some(0);
        while let Some(from) = next {
            payload.clear();
            next = shard.snapshot_space(from, &mut payload);
            writer.frame(Kind::Space, &payload, &mut bytes);
        }
        writer.end(end, &mut bytes);
        file.write(&bytes).and_then(|()| file.finish()).expect("the disk has room");
    }
    took_us.sort_unstable();
    let at = |share: usize| took_us[(took_us.len() - 1) * share / 1000];
    let (half, most, longest) = (at(500), at(990), at(1000));
    let count = took_us.len();
    println!("{count} slices of a snapshot: p50 {half} µs, p99 {most} µs, longest {longest} µs");
}
