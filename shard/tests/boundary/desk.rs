//! A shard on a desk: one script of inputs and of the effects they must have.
//!
//! Lines are inputs; lines that begin with `>` are what must have come out
//! since, in this order and nothing else. Numbers in front are connection
//! slots, opened on first use. Writes complete only when the script says so.
//!
//! ```text
//! 0 hello alice 1 [last=N] [credit=N]     0 login alice        commit
//! 0 send bob 1 hi [best] [skip] [ttl=S]   0 say bob hi         write | done | fail
//! 0 ack 1    0 credit 5    0 ping 9       0 number bob 7 hi    tick MS | jump MS
//! 0 bad                                   0 batch bob a,b,c    storage full | ok
//! 0 close    0 drained    0 open          0 got 1              drain    restart
//! snapshot   snapshot begin | slice | end | fail | due         reads hold | go
//! logins N (first of all: so many a second)                   memory PERMILLE
//! 0 looked [same | moved]                                      rot LETTER   reads fail | work | wide
//! reads were N (since the start)             reads within N (the longest, in bytes)
//! surveys short (they bring no more than they have to)
//! place N M (blocks behind the end, M of them for all)
//! ```
//!
//! A restart begins with the newest snapshot that has ended; discarded segments
//! are wiped. Reads and surveys are answered at once unless they are held.

use std::collections::{BTreeMap, BTreeSet};

use shard::snapshot::{SLICE_BYTES, Slice};
use shard::{
    Conn, Effect, Effects, Input, KeyHasher, Now, Options, Outcome, Replay, Shard, Unsent,
};
use wal::recover::Scanner;
use wal::{Log, LogOptions, LogStart, Lsn, Restore, Write};
use wire::id::{Class, MessageId};
use wire::refuse::Code;
use wire::{v1, v2};

const SALT: u64 = 7;
const START_MS: u64 = 1_800_000_000_000;

/// Pushes everything before it out of the log's memory. Of a script in which
/// alice is on connection 0 and has not written to carol.
pub(crate) const PUSH_OUT: &str = "
    0 send carol 1 d*20000
    0 send carol 2 e*20000
    commit
    > 0 sent carol 1
    > 0 sent carol 2
    0 send carol 3 f*20000
    0 send carol 4 g*20000
    commit
    > 0 sent carol 3
    > 0 sent carol 4\n";

/// Runs a script. Small limits: users 8, inbox 4 messages.
#[track_caller]
pub(crate) fn check(script: &str) {
    let mut desk = Desk::new();
    for line in script.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_prefix("> ") {
            Some(expected) => desk.expect(expected, line),
            None => desk.step(line),
        }
    }
    desk.expect_nothing("the end of the script");
}

struct Desk {
    shard: Shard,
    logins_per_second: u32,
    out: Effects,
    now_ms: u64,
    /// How far the wall clock was set forward.
    jumped_ms: u64,
    disk: Vec<u8>,
    /// Writes handed out, oldest first.
    flying: Vec<(Write, Vec<u8>)>,
    /// Slots in use: generation and protocol.
    links: BTreeMap<u32, (u32, bool)>,
    generation: u32,
    /// Those that the shard wants to hear of when they have drained.
    awaited: BTreeSet<Conn>,
    /// Ids delivered to each v1 connection.
    ids: BTreeMap<u32, Vec<MessageId>>,
    /// The newest snapshot that counts.
    snapshot: Option<Snapshot>,
    taking: Option<Snapshot>,
    /// Reads and surveys (no connection) that wait, when they are held.
    held: Vec<(Option<Conn>, Lsn, u32)>,
    holds_reads: bool,
    fails_reads: bool,
    /// As where devices read a part of what a survey asks for.
    surveys_short: bool,
    /// As where others read the same stretch.
    reads_wide: bool,
    read_bytes_max: u32,
    /// Effects not compared yet.
    seen: std::collections::VecDeque<String>,
}

/// What a snapshot's file says.
struct Snapshot {
    start: LogStart,
    slices: Vec<Vec<u8>>,
    end: Option<Lsn>,
}

fn options(logins_per_second: u32) -> Options {
    Options {
        shard: 0,
        shards: 1,
        node: 1,
        users_max: 8,
        waiting_messages_max: 1000,
        pairs_max: 24,
        inbox_messages_max: 4,
        inbox_bytes_max: 1 << 20,
        retention_ms: 1_000_000,
        pairs_kept_ms: 7 * 24 * 60 * 60 * 1000,
        handshake_ms: 1000,
        logins_per_second,
        // Nothing that a script does not ask for.
        vouch_after_ms: u64::MAX,
    }
}

fn log_options() -> LogOptions {
    LogOptions {
        tail_bytes: 64 << 10,
        segment_bytes: 64 << 10,
        commit_bytes_max: 32 << 10,
        writes_in_flight_max: 2,
        pipeline_bytes: 0,
    }
}

fn recover(disk: &[u8], snapshot: Option<&Snapshot>, logins_per_second: u32) -> Shard {
    let segment_bytes = log_options().segment_bytes;
    let mut replay = Replay::new(options(logins_per_second), KeyHasher::new([1, 2]), segment_bytes);
    let mut from = (LogStart::fresh(SALT), 0);
    if let Some(snapshot) = snapshot {
        for slice in &snapshot.slices {
            replay.state(slice).expect("a good slice");
        }
        from = (snapshot.start, snapshot.end.expect("it is whole"));
        replay.loaded(from.0, from.1);
    }
    let mut scanner = Scanner::resume(from.0, from.1, log_options());
    let first = (from.0.lsn / segment_bytes) as usize;
    for (n, segment) in disk.chunks(64 << 10).enumerate().skip(first) {
        let sink: wal::recover::Sink<'_> = &mut |lsn, len, record| replay.record(lsn, len, &record);
        scanner.segment(n as u64 * segment_bytes, segment, sink).expect("no damage");
    }
    let (start, _) = scanner.finish().expect("no damage");
    assert_eq!(replay.contradictions(), 0);
    let present = 0..=start.lsn / segment_bytes;
    replay.finish(&start, Log::new(log_options(), start), present)
}

impl Desk {
    fn new() -> Desk {
        Desk {
            shard: recover(&[], None, 0),
            logins_per_second: 0,
            out: Effects::default(),
            now_ms: 0,
            jumped_ms: 0,
            disk: Vec::new(),
            flying: Vec::new(),
            links: BTreeMap::new(),
            awaited: BTreeSet::new(),
            generation: 0,
            ids: BTreeMap::new(),
            snapshot: None,
            taking: None,
            held: Vec::new(),
            holds_reads: false,
            fails_reads: false,
            surveys_short: false,
            reads_wide: false,
            read_bytes_max: 0,
            seen: std::collections::VecDeque::new(),
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: &str, line: &str) {
        let seen = self.seen.pop_front();
        assert_eq!(seen.as_deref(), Some(expected), "at `{line}`, then {:?}", self.seen);
    }

    #[track_caller]
    fn expect_nothing(&self, line: &str) {
        assert!(self.seen.is_empty(), "unexpected before `{line}`: {:?}", self.seen);
    }

    #[track_caller]
    fn step(&mut self, line: &str) {
        self.expect_nothing(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0].parse::<u32>() {
            Ok(slot) => self.of_link(slot, &words[1..]),
            Err(_) => self.of_desk(&words),
        }
        self.collect();
    }

    fn now(&self) -> Now {
        Now { mono_ns: self.now_ms * 1_000_000, wall_ms: START_MS + self.jumped_ms + self.now_ms }
    }

    fn feed(&mut self, input: Input<'_>) {
        let now = self.now();
        match self.shard.handle(now, input, &mut self.out) {
            Outcome::Taken => {}
            Outcome::Blocked => self.seen.push_back("blocked".into()),
            Outcome::Move(to) => self.seen.push_back(format!("move {to}")),
        }
    }

    fn of_desk(&mut self, words: &[&str]) {
        match words {
            ["write"] => self.write(),
            ["done"] => self.complete(true),
            ["fail"] => self.complete(false),
            ["commit"] => {
                self.write();
                while !self.flying.is_empty() {
                    self.complete(true);
                    self.write();
                }
            }
            ["tick", ms] => {
                self.now_ms += number(ms);
                self.feed(Input::Tick);
            }
            ["logins", per_second] => {
                assert!(self.disk.is_empty() && self.links.is_empty(), "first of all");
                self.logins_per_second = number(per_second) as u32;
                self.shard = recover(&[], None, self.logins_per_second);
            }
            ["memory", permille] => {
                let frames_permille = number(permille);
                let (turn_ns, unsent_permille) = (0, 0);
                self.feed(Input::Measured { turn_ns, frames_permille, unsent_permille });
                self.seen.push_back(format!("{:?}", self.shard.level()).to_lowercase());
            }
            ["jump", ms] => self.jumped_ms += number(ms),
            ["storage", how] => self.feed(Input::Storage { full: *how == "full" }),
            // Blocks behind the log's end, and how many of them are for all.
            ["place", blocks, common] => {
                let from = wal::block_end(self.shard.log().end());
                let at = |blocks: &str| from + number(blocks) * wal::BLOCK as Lsn;
                self.feed(Input::Place { end: at(blocks), common: at(common) });
            }
            ["drain"] => self.feed(Input::Drain),
            ["snapshot"] => {
                self.of_snapshot("begin");
                while self.taking.as_ref().is_some_and(|it| it.end.is_none()) {
                    self.of_snapshot("slice");
                }
                self.of_snapshot("end");
            }
            ["snapshot", "due"] => {
                assert!(self.shard.wants_snapshot(), "no snapshot is due");
                self.step("snapshot");
            }
            ["snapshot", step] => self.of_snapshot(step),
            ["reads", "hold"] => self.holds_reads = true,
            ["reads", "go"] => {
                self.holds_reads = false;
                for (conn, lsn, len) in std::mem::take(&mut self.held) {
                    self.answer(conn, lsn, len);
                }
            }
            // Not those that follow from them.
            ["reads", "held"] => {
                for (conn, lsn, len) in std::mem::take(&mut self.held) {
                    self.give(conn, lsn, len);
                }
            }
            ["reads", "were", count] => {
                assert_eq!(self.shard.metrics().counters.reads, count.parse::<u64>().unwrap());
            }
            ["reads", "within", bytes] => {
                let (longest, bytes) = (self.read_bytes_max, bytes.parse::<u32>().unwrap());
                assert!(longest <= bytes, "a read of {longest} bytes");
            }
            ["surveys", "short"] => self.surveys_short = true,
            ["reads", "wide"] => self.reads_wide = true,
            ["reads", how] => self.fails_reads = *how == "fail",
            ["rot", letter] => self.rot(letter.as_bytes()[0]),
            ["restart"] => {
                self.flying.clear();
                self.links.clear();
                self.awaited.clear();
                self.held.clear();
                self.taking = None;
                let snapshot = self.snapshot.as_ref();
                self.shard = recover(&self.disk, snapshot, self.logins_per_second);
            }
            _ => panic!("no such step: {words:?}"),
        }
    }

    fn of_snapshot(&mut self, step: &str) {
        if step == "begin" {
            let start = self.shard.begin_snapshot(self.now());
            self.taking = Some(Snapshot { start, slices: Vec::new(), end: None });
            return;
        }
        let mut taking = self.taking.take().expect("a snapshot was begun");
        match step {
            "slice" => {
                let mut slice = Vec::new();
                if let Slice::Done { end } = self.shard.snapshot_slice(SLICE_BYTES, &mut slice) {
                    taking.end = Some(end);
                }
                taking.slices.push(slice);
                self.taking = Some(taking);
            }
            "end" => {
                let bytes = taking.slices.iter().map(|slice| slice.len() as u64).sum();
                let start = taking.start.lsn;
                assert!(taking.end <= Some(self.shard.log().durable()), "commit before");
                self.snapshot = Some(taking);
                self.feed(Input::Snapshotted { start, bytes });
            }
            "fail" => self.feed(Input::SnapshotFailed),
            _ => panic!("no such step of a snapshot: {step}"),
        }
    }

    fn answer(&mut self, conn: Option<Conn>, lsn: Lsn, len: u32) {
        self.read_bytes_max = self.read_bytes_max.max(len);
        if self.holds_reads {
            return self.held.push((conn, lsn, len));
        }
        self.give(conn, lsn, len);
    }

    fn give(&mut self, conn: Option<Conn>, lsn: Lsn, len: u32) {
        let segment_end = ((lsn >> 16) + 1) << 16;
        let end = (lsn + Lsn::from(len)).min(segment_end).min(self.disk.len() as Lsn);
        let bytes = self.disk[lsn as usize..end as usize].to_vec();
        let bytes = (!self.fails_reads).then_some(&bytes[..]);
        self.feed(match conn {
            Some(conn) => Input::Read { conn, lsn, bytes },
            None => Input::Surveyed { lsn, bytes },
        });
    }

    /// Turns a bit in the first long body that is made of this letter; done twice
    /// everything is as it was.
    fn rot(&mut self, letter: u8) {
        let body = self.disk.windows(100).position(|window| window == [letter; 100]);
        self.disk[body.expect("such a body is on the disk") + 200] ^= 1;
    }

    /// Nothing may look at it any more.
    fn wipe(&mut self, segment: u64) {
        let start = (segment as usize) << 16;
        self.disk[start..start + (64 << 10)].fill(0xee);
        self.seen.push_back(format!("discard {segment}"));
    }

    fn write(&mut self) {
        while let Some(write) = self.shard.next_write() {
            let bytes = self.shard.log().write_bytes(&write).to_vec();
            self.flying.push((write, bytes));
        }
    }

    fn complete(&mut self, ok: bool) {
        let (write, bytes) = self.flying.remove(0);
        if ok {
            let end = write.lsn as usize + bytes.len();
            self.disk.resize(self.disk.len().max(end), 0);
            self.disk[write.lsn as usize..end].copy_from_slice(&bytes);
        }
        self.feed(Input::Written { lsn: write.lsn, ok });
    }

    /// The connection on a slot, opened if it is not.
    fn conn(&mut self, slot: u32) -> Conn {
        if !self.links.contains_key(&slot) {
            self.generation += 1;
            self.links.insert(slot, (self.generation, false));
            let conn = Conn { slot, generation: self.generation };
            self.feed(Input::Opened { conn });
        }
        Conn { slot, generation: self.links[&slot].0 }
    }

    fn of_link(&mut self, slot: u32, words: &[&str]) {
        let conn = self.conn(slot);
        match words {
            ["open"] => {}
            ["close"] => {
                self.links.remove(&slot);
                self.feed(Input::Closed { conn });
            }
            ["looked", unsent @ ..] => {
                let unsent = match unsent {
                    ["same"] => Unsent::Same,
                    ["moved"] => Unsent::Moved,
                    _ => Unsent::None,
                };
                self.feed(Input::Looked { conn, unsent });
            }
            ["drained"] => {
                assert!(self.awaited.remove(&conn), "nobody asked whether {slot} has drained");
                self.feed(Input::Drained { conn });
            }
            ["login" | "say" | "number" | "batch" | "got" | "status" | "bad1", ..] => {
                self.links.insert(slot, (conn.generation, true));
                self.of_v1(slot, conn, words);
            }
            _ => self.of_v2(conn, words),
        }
    }

    fn of_v1(&mut self, slot: u32, conn: Conn, words: &[&str]) {
        let packet = match *words {
            ["login", user] => v1::Packet::Login { user: user.as_bytes(), token: None },
            ["login"] => v1::Packet::Login { user: b"", token: None },
            ["say", to, body] => v1::Packet::Send { target: to.as_bytes(), body: body.as_bytes() },
            ["number", to, seq, body] => v1::Packet::SendSeq {
                target: to.as_bytes(),
                seq: number(seq),
                body: body.as_bytes(),
            },
            ["batch", to, entries] => return self.batch(conn, to, entries),
            // The n-th delivery of this connection, from 1.
            ["got", nth] => v1::Packet::Ack { id: self.ids[&slot][number(nth) as usize - 1] },
            ["status", user] => v1::Packet::GetStatus { user: user.as_bytes() },
            ["bad1"] => return self.feed(Input::V1Bad { conn }),
            _ => panic!("no such packet: {words:?}"),
        };
        self.feed(Input::V1 { conn, packet });
    }

    fn batch(&mut self, conn: Conn, to: &str, entries: &str) {
        let mut blob = Vec::new();
        for entry in entries.split(',') {
            let body = body(entry);
            blob.extend_from_slice(&(body.len() as u16).to_be_bytes());
            blob.extend_from_slice(&body);
        }
        let entries = v1::BatchEntries::new(&blob);
        let packet = v1::Packet::Batch { target: to.as_bytes(), entries };
        self.feed(Input::V1 { conn, packet });
    }

    fn of_v2(&mut self, conn: Conn, words: &[&str]) {
        let option = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
        let request = match *words {
            ["hello", user, device, ..] => v2::Request::Hello(v2::Hello {
                version_min: 1,
                version_max: 1,
                capabilities: 0,
                device: number(device),
                last_seq: option("last=").map_or(0, number),
                credit: option("credit=").map_or(100, number) as u32,
                user: user.as_bytes(),
                token: b"",
            }),
            ["send", to, seq, text, ..] => {
                let skip = if words.contains(&"skip") { v2::flag::SKIP } else { 0 };
                let asks = words.contains(&"delivered");
                let body = body(text);
                let send = v2::Send {
                    seq: number(seq),
                    class: if words.contains(&"best") {
                        Class::BestEffort
                    } else {
                        Class::Guaranteed
                    },
                    flags: skip | if asks { v2::flag::WANTS_DELIVERED } else { 0 },
                    expiry_s: option("ttl=").map_or(0, number) as u32,
                    to: to.as_bytes(),
                    body: &body,
                };
                return self.feed(Input::V2 { conn, request: v2::Request::Send(send) });
            }
            ["ack", seq] => v2::Request::Ack { seq: number(seq) },
            ["credit", window] => v2::Request::Credit { window: number(window) as u32 },
            ["ping", nonce] => v2::Request::Ping { nonce: number(nonce) },
            ["bad"] => return self.feed(Input::V2Bad { conn, wrong: v2::Wrong::Fields(8) }),
            _ => panic!("no such request: {words:?}"),
        };
        self.feed(Input::V2 { conn, request });
    }

    /// Turns effects into words. Reads are answered at once.
    fn collect(&mut self) {
        while !self.out.list.is_empty() {
            let out = std::mem::take(&mut self.out);
            for effect in &out.list {
                match *effect {
                    Effect::Send { conn, start, end, .. } => {
                        self.tell(conn.slot, &out.bytes[start..end]);
                    }
                    Effect::TellDrained { conn } => assert!(self.awaited.insert(conn)),
                    Effect::Close { conn } => self.seen.push_back(format!("{} close", conn.slot)),
                    Effect::Read { conn, lsn, len, len_wide, .. } => {
                        let len = if self.reads_wide { len_wide } else { len };
                        self.answer(Some(conn), lsn, len);
                    }
                    Effect::Survey { lsn, len_min, len } => {
                        self.answer(None, lsn, if self.surveys_short { len_min } else { len });
                    }
                    Effect::Discard { segment } => self.wipe(segment),
                    Effect::Damaged { lsn } => self.seen.push_back(format!("damaged {lsn}")),
                }
            }
        }
    }

    fn tell(&mut self, slot: u32, mut bytes: &[u8]) {
        let is_v1 = self.links.get(&slot).is_some_and(|(_, is_v1)| *is_v1);
        while !bytes.is_empty() {
            let (words, len) = if is_v1 {
                let (answer, len) = v1::decode_answer(bytes).expect("good").expect("whole");
                if let v1::Answer::Deliver { id, .. } = answer {
                    self.ids.entry(slot).or_default().push(id);
                }
                (answer_words(&answer), len)
            } else {
                let (reply, len) = v2::decode_reply(bytes).expect("good").expect("whole");
                (reply_words(&reply), len)
            };
            self.seen.push_back(format!("{slot} {words}"));
            bytes = &bytes[len..];
        }
    }
}

fn answer_words(answer: &v1::Answer<'_>) -> String {
    match *answer {
        v1::Answer::LoginOk => "login_ok".into(),
        v1::Answer::AuthFailed => "auth_failed".into(),
        v1::Answer::LoginRateLimited => "rate_limited".into(),
        v1::Answer::Deliver { body, .. } => format!("message {}", text(body)),
        v1::Answer::RateLimited { wait_ms } => format!("wait {wait_ms}"),
        v1::Answer::Error { text: what } => format!("error {}", text(what)),
        v1::Answer::Status { user, online, last_seen_s } => {
            let seen = if last_seen_s == 0 { 0 } else { last_seen_s * 1000 - START_MS };
            format!("status {} {online} {seen}", text(user))
        }
        _ => format!("{answer:?}"),
    }
}

fn reply_words(reply: &v2::Reply<'_>) -> String {
    match *reply {
        v2::Reply::Welcome(it) => format!("welcome {}..{}", it.first_seq, it.last_seq),
        v2::Reply::Sent { seq, id, to, .. } => {
            let again = if id.0 == [0; 16] { " again" } else { "" };
            format!("sent {} {seq}{again}", text(to))
        }
        v2::Reply::Gap { expected, to } => format!("gap {} {expected}", text(to)),
        v2::Reply::Refused { seq, code, to, .. } => {
            format!("refused {} {seq} {}", text(to), code_name(code))
        }
        v2::Reply::Deliver(it) => {
            format!("deliver {} {} {}", it.inbox_seq, text(it.from), text(it.body))
        }
        v2::Reply::Pong { nonce } => format!("pong {nonce}"),
        v2::Reply::Goaway { code, reconnect_after_ms, .. } => {
            let after = match reconnect_after_ms {
                0 => "",
                1..10_000 => " come back",
                _ => " come back late",
            };
            format!("goaway {}{after}", code_name(code))
        }
        v2::Reply::Error { code, .. } => format!("error {}", code_name(code)),
        v2::Reply::Delivered { seq, to, .. } => format!("delivered {} {seq}", text(to)),
    }
}

fn code_name(code: u16) -> String {
    format!("{:?}", Code::from_u16(code).expect("a known code"))
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() > 20 { format!("{}…{}", bytes[0] as char, bytes.len()) } else { plain(bytes) }
}

fn plain(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A body: as it stands, or `x*5000` for 5000 of one letter.
fn body(text: &str) -> Vec<u8> {
    match text.split_once('*') {
        Some((letter, count)) => letter.repeat(number(count) as usize).into_bytes(),
        None => text.as_bytes().to_vec(),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}
