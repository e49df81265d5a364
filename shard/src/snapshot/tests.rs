//! Any life with a snapshot taken somewhere in it: read back from that
//! snapshot, the shard is what it was.

mod load;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wal::recover::Scanner;
use wal::{Log, LogOptions, LogStart, Lsn, Restore, segment};
use wire::id::{Class, MessageId, UserKey};
use wire::{v1, v2};

use super::slice::{Part, Walk, put_floor, put_head, put_pairs};
use super::{Slice, files, load::Loader};
use crate::dedup::{PAIR_BYTES, Pair, PairKey};
use crate::user::Users;
use crate::{Conn, Effect, Effects, Input, KeyHasher, Now, Options, Outcome, Replay, Shard};

const SALT: u64 = 7;
pub(crate) const SEGMENT: u64 = 64 << 10;
const NAMES: [&str; 3] = ["alice", "bob", "carol"];
/// Slots from here on speak protocol v1.
const V1_FROM: u32 = 6;
const MINUTE_MS: u64 = 60_000;

pub(crate) fn options() -> Options {
    Options {
        shard: 0,
        shards: 1,
        node: 1,
        users_max: 8,
        waiting_messages_max: 100_000,
        pairs_max: 1000,
        inbox_messages_max: 40_000,
        inbox_bytes_max: 1 << 30,
        retention_ms: 600 * MINUTE_MS,
        pairs_kept_ms: 180 * MINUTE_MS,
        handshake_ms: 1 << 40,
        logins_per_second: 0,
        vouch_after_ms: crate::VOUCH_AFTER_MS,
    }
}

pub(crate) fn log_options() -> LogOptions {
    LogOptions {
        tail_bytes: 64 << 10,
        segment_bytes: SEGMENT,
        commit_bytes_max: 32 << 10,
        writes_in_flight_max: 1,
        pipeline_bytes: 0,
    }
}

fn replay() -> Replay {
    Replay::new(options(), KeyHasher::new([1, 2]), SEGMENT)
}

/// A snapshot while it is taken, and afterwards.
#[derive(Clone)]
pub(crate) struct Taken {
    start: LogStart,
    slices: Vec<Vec<u8>>,
    spaces: Vec<Vec<u8>>,
    end: Option<Lsn>,
    /// What the disk was to have left for this one.
    reserve: u64,
}

impl Taken {
    /// What is written so far.
    fn bytes(&self) -> u64 {
        self.slices.iter().chain(&self.spaces).map(|payload| payload.len() as u64).sum()
    }
}

pub(crate) struct Life {
    pub(crate) shard: Shard,
    out: Effects,
    now: Now,
    pub(crate) disk: Vec<u8>,
    pub(crate) discarded: BTreeSet<u64>,
    conns: BTreeMap<u32, u32>,
    generation: u32,
    ids: BTreeMap<u32, Vec<MessageId>>,
    sent: BTreeMap<(u32, usize), u64>,
    taking: Option<Taken>,
    pub(crate) kept: Vec<Taken>,
    slice_bytes: usize,
    /// Records that cannot be read for now.
    rotten: BTreeSet<Lsn>,
    /// Places that were called damaged.
    pub(crate) told: Vec<Lsn>,
}

/// What happens next: which, who, to whom, how much.
pub(crate) type Step = (u8, u8, u8, u16);

impl Life {
    pub(crate) fn new(slice_bytes: usize) -> Life {
        let start = LogStart::fresh(SALT);
        Life {
            shard: replay().finish(&start, Log::new(log_options(), start), [0]),
            out: Effects::default(),
            now: Now { mono_ns: 0, wall_ms: 1_800_000_000_000 },
            disk: Vec::new(),
            discarded: BTreeSet::new(),
            conns: BTreeMap::new(),
            generation: 0,
            ids: BTreeMap::new(),
            sent: BTreeMap::new(),
            taking: None,
            kept: Vec::new(),
            slice_bytes,
            rotten: BTreeSet::new(),
            told: Vec::new(),
        }
    }

    pub(crate) fn step(&mut self, (what, who, whom, much): Step) {
        let slot = u32::from(who) % 9;
        match what % 16 {
            0..3 => self.send(slot, usize::from(whom) % 3, much, usize::from(much) % 900),
            3 => (0..much % 60).for_each(|n| self.send(slot, usize::from(whom) % 3, n + 1, 40)),
            4 => self.send(slot % V1_FROM, usize::from(whom) % 3, 1, 65_537),
            5 | 6 => self.acknowledge(slot, much),
            7 => self.close(slot),
            8 => self.log_in(slot, u64::from(much) % 5),
            9 => self.pass(u64::from(much) % 100),
            10 | 11 => self.commit(),
            12 => self.rot(usize::from(whom) % 3, much),
            _ => self.take_snapshot(),
        }
        self.carry_out();
    }

    pub(crate) fn now(&self) -> Now {
        self.now
    }

    fn feed(&mut self, input: Input<'_>) {
        for _ in 0..3 {
            match self.shard.handle(self.now, input, &mut self.out) {
                Outcome::Taken => return,
                Outcome::Blocked => self.commit(),
                Outcome::Move(_) => panic!("there is one shard"),
            }
        }
        panic!("no room though everything is durable: {input:?}");
    }

    fn conn(&mut self, slot: u32) -> Conn {
        if !self.conns.contains_key(&slot) {
            self.log_in(slot, 0);
        }
        Conn { slot, generation: self.conns[&slot] }
    }

    fn log_in(&mut self, slot: u32, ahead: u64) {
        self.close(slot);
        self.generation += 1;
        self.conns.insert(slot, self.generation);
        let conn = Conn { slot, generation: self.generation };
        let user = NAMES[slot as usize % 3].as_bytes();
        self.feed(Input::Opened { conn });
        if slot >= V1_FROM {
            return self.feed(Input::V1 { conn, packet: v1::Packet::Login { user, token: None } });
        }
        let key = self.shard.hasher.key(user);
        let known = self.shard.users.find(key).map_or(0, |at| self.shard.users[at].last_seq());
        let hello = v2::Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            device: u64::from(slot / 3 + 1),
            last_seq: if ahead == 4 { known + 3 } else { 0 },
            credit: 20,
            user,
            token: b"",
        };
        self.feed(Input::V2 { conn, request: v2::Request::Hello(hello) });
    }

    fn close(&mut self, slot: u32) {
        if let Some(generation) = self.conns.remove(&slot) {
            self.ids.remove(&slot);
            self.feed(Input::Closed { conn: Conn { slot, generation } });
        }
    }

    fn send(&mut self, slot: u32, to: usize, much: u16, bytes: usize) {
        let conn = self.conn(slot);
        let (target, body) = (NAMES[to].as_bytes(), vec![b'x'; bytes]);
        let seq = self.sent.entry((slot, to)).or_default();
        *seq += 1 + u64::from(much.is_multiple_of(7));
        let seq = *seq;
        if slot < V1_FROM {
            let send = v2::Send {
                seq,
                class: if much % 5 == 2 { Class::BestEffort } else { Class::Guaranteed },
                flags: v2::flag::SKIP,
                expiry_s: if much.is_multiple_of(4) { 60 * (u32::from(much) % 300 + 1) } else { 0 },
                to: target,
                body: &body,
            };
            self.feed(Input::V2 { conn, request: v2::Request::Send(send) });
        } else if much.is_multiple_of(2) {
            let packet = v1::Packet::SendSeq { target, seq: seq ^ 3, body: &body };
            self.feed(Input::V1 { conn, packet });
        } else {
            self.feed(Input::V1 { conn, packet: v1::Packet::Send { target, body: &body } });
        }
    }

    fn acknowledge(&mut self, slot: u32, much: u16) {
        let conn = self.conn(slot);
        self.carry_out();
        if slot < V1_FROM {
            let at = self.shard.sessions.get(conn).map_or(0, |session| session.sent);
            let seq = at.saturating_sub(u64::from(much) % 4);
            return self.feed(Input::V2 { conn, request: v2::Request::Ack { seq } });
        }
        let ids = self.ids.entry(slot).or_default();
        if !ids.is_empty() {
            let id = ids.remove(usize::from(much) % ids.len().min(3));
            self.feed(Input::V1 { conn, packet: v1::Packet::Ack { id } });
        }
    }

    /// Something that waits cannot be read any more, or all can again.
    fn rot(&mut self, whom: usize, much: u16) {
        if much.is_multiple_of(3) {
            return self.rotten.clear();
        }
        let key = self.shard.hasher.key(NAMES[whom].as_bytes());
        let Some(at) = self.shard.users.find(key) else { return };
        let waiting: Vec<Lsn> = self.shard.users[at].waiting().map(|entry| entry.lsn).collect();
        if !waiting.is_empty() {
            self.rotten.insert(waiting[usize::from(much) % waiting.len()]);
        }
    }

    fn pass(&mut self, minutes: u64) {
        self.now.wall_ms += minutes * MINUTE_MS;
        self.now.mono_ns += minutes * MINUTE_MS * 1_000_000;
        self.feed(Input::Tick);
    }

    fn commit(&mut self) {
        while let Some(write) = self.shard.next_write() {
            let bytes = self.shard.log().write_bytes(&write).to_vec();
            let end = write.lsn as usize + bytes.len();
            self.disk.resize(self.disk.len().max(end), 0);
            self.disk[write.lsn as usize..end].copy_from_slice(&bytes);
            self.feed(Input::Written { lsn: write.lsn, ok: true });
        }
    }

    /// Begins one, goes on with it, or has it count.
    fn take_snapshot(&mut self) {
        let Some(mut taken) = self.taking.take() else {
            let newest = self.kept.last().map(|it| it.start.lsn);
            if newest == Some(self.shard.log().checkpoint().lsn) {
                return;
            }
            let start = self.shard.begin_snapshot(self.now);
            let (slices, spaces) = (Vec::new(), Vec::new());
            let reserve = self.shard.reserve().least / files(self.shard.snapshots.count());
            self.taking = Some(Taken { start, slices, spaces, end: None, reserve });
            return;
        };
        match taken.end {
            None => {
                let mut payload = Vec::new();
                if let Slice::Done { end } =
                    self.shard.snapshot_slice(self.slice_bytes, &mut payload)
                {
                    taken.end = Some(end);
                    taken.spaces = spaces(&self.shard);
                }
                taken.slices.push(payload);
            }
            Some(end) => {
                self.commit();
                assert!(self.shard.log().durable() >= end);
                let bytes = taken.bytes();
                self.feed(Input::Snapshotted { start: taken.start.lsn, bytes });
                self.kept.push(taken);
                return;
            }
        }
        self.taking = Some(taken);
    }

    fn bytes(&self, lsn: Lsn, len: u32) -> Vec<u8> {
        assert!(!self.discarded.contains(&segment::index(lsn, SEGMENT)), "{lsn} was discarded");
        let end =
            segment::base(segment::index(lsn, SEGMENT) + 1, SEGMENT).min(lsn + u64::from(len));
        let mut bytes = self.disk[lsn as usize..self.disk.len().min(end as usize)].to_vec();
        for rotten in self.rotten.range(lsn..lsn + bytes.len() as u64) {
            bytes[(rotten - lsn) as usize] ^= 1;
        }
        bytes
    }

    fn carry_out(&mut self) {
        while !self.out.list.is_empty() {
            let out = std::mem::take(&mut self.out);
            for effect in &out.list {
                match *effect {
                    Effect::Send { conn, start, end, .. } => {
                        self.note_ids(conn, &out.bytes[start..end]);
                    }
                    Effect::TellDrained { conn } => self.feed(Input::Drained { conn }),
                    Effect::Close { conn } => self.close(conn.slot),
                    Effect::Read { conn, lsn, len, .. } => {
                        let bytes = self.bytes(lsn, len);
                        self.feed(Input::Read { conn, lsn, bytes: Some(&bytes) });
                    }
                    Effect::Survey { lsn, len, .. } => {
                        let bytes = self.bytes(lsn, len);
                        self.feed(Input::Surveyed { lsn, bytes: Some(&bytes) });
                    }
                    Effect::Discard { segment } => assert!(self.discarded.insert(segment)),
                    Effect::Damaged { lsn } => self.told.push(lsn),
                }
            }
        }
    }

    fn note_ids(&mut self, conn: Conn, mut bytes: &[u8]) {
        while conn.slot >= V1_FROM && !bytes.is_empty() {
            let (answer, len) = v1::decode_answer(bytes).expect("good").expect("whole");
            if let v1::Answer::Deliver { id, .. } = answer {
                self.ids.entry(conn.slot).or_default().push(id);
            }
            bytes = &bytes[len..];
        }
    }

    /// Ends what is under way; everything is durable.
    pub(crate) fn rest(&mut self) {
        while self.taking.is_some() {
            self.take_snapshot();
            self.carry_out();
        }
        self.commit();
        self.carry_out();
        self.commit();
    }

    /// The shard that the snapshot and the log give.
    fn read_back(&mut self, taken: &Taken) -> Shard {
        let (replay, start) = self.replayed(taken);
        let present =
            (0..=segment::index(start.lsn, SEGMENT)).filter(|it| !self.discarded.contains(it));
        replay.finish(&start, Log::new(log_options(), start), present)
    }

    /// What they give, and where the log ends.
    pub(crate) fn replayed(&mut self, taken: &Taken) -> (Replay, LogStart) {
        let mut replay = replay();
        taken.slices.iter().for_each(|slice| replay.state(slice).expect("a good slice"));
        taken.spaces.iter().for_each(|space| Restore::space(&mut replay, space).expect("good"));
        replay.loaded(taken.start, taken.end.expect("it is complete"));
        let mut scanner = Scanner::resume(taken.start, taken.end.expect("complete"), log_options());
        let first = segment::index(taken.start.lsn, SEGMENT);
        for (index, bytes) in self.disk.chunks(SEGMENT as usize).enumerate() {
            if index as u64 >= first {
                assert!(!self.discarded.contains(&(index as u64)), "the log goes on there");
                let base = index as u64 * SEGMENT;
                let sink: wal::recover::Sink<'_> =
                    &mut |lsn, len, record| replay.record(lsn, len, &record);
                scanner.segment(base, bytes, sink).expect("no damage");
            }
        }
        let (start, _) = scanner.finish().expect("no damage");
        assert_eq!(replay.contradictions(), 0);
        for (segment, ..) in replay.needed() {
            if self.discarded.contains(&segment) {
                let was = view(&mut self.shard);
                let present = 0..=segment::index(taken.start.lsn, SEGMENT);
                let start = LogStart { salt: SALT, ..taken.start };
                let mut back = replay.finish(&start, Log::new(log_options(), start), present);
                let is = view(&mut back);
                let only = |a: &Vec<String>, b: &Vec<String>| -> Vec<String> {
                    a.iter().filter(|line| !b.contains(line)).cloned().collect()
                };
                panic!(
                    "segment {segment} is needed: live {:#?} read back {:#?}",
                    only(&was, &is),
                    only(&is, &was)
                );
            }
        }
        (replay, start)
    }
}

fn spaces(shard: &Shard) -> Vec<Vec<u8>> {
    let (mut spaces, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let mut payload = Vec::new();
        from = shard.snapshot_space(at, &mut payload);
        spaces.push(payload);
    }
    spaces
}

/// It outlives a snapshot, and lowers nobody's numbers.
#[test]
fn the_floor_of_new_users_is_kept() {
    let mut users = Users::new(10);
    let bob = users.find_or_add(UserKey(1), b"bob").expect("there is room");
    users[bob].inbox_mut().begin_at(2);
    users.raise_floor(1 << 50);
    let (mut payload, mut loader) = (Vec::new(), Loader::default());
    put_floor(users.floor(), 9, &mut payload);
    let _ = put_head(&users[bob], 9, &mut payload);
    let mut loaded = Users::new(10);
    loader.slice(&payload, &mut loaded).expect("what was encoded");
    loader.finish(&mut loaded);
    assert_eq!((loaded.len(), loaded.floor()), (1, 1 << 50));
    let inbox = loaded[bob].inbox_mut();
    assert_eq!((inbox.last_seq(), inbox.visible()), (1, 1));
    let carol = loaded.find_or_add(UserKey(2), b"carol").expect("there is room");
    assert_eq!(loaded[carol].last_seq(), 1 << 50);
}

/// Everything that a restart keeps, in words.
pub(crate) fn view(shard: &mut Shard) -> Vec<String> {
    let mut lines = Vec::new();
    for at in 0..shard.users.len() as u32 {
        for device in 0..shard.users[at].devices.len() {
            shard.users[at].advance(device);
        }
        shard.burn(at);
        let user = &shard.users[at];
        let devices: Vec<_> = user.devices.iter().map(|it| (it.id, it.cursor)).collect();
        let name = String::from_utf8_lossy(&user.name);
        lines.push(format!("{name} seen {} devices {devices:?}", user.last_seen_s));
        let Some(inbox) = &user.inbox else { continue };
        lines.push(format!("  {}..={} {}", inbox.first_seq(), inbox.last_seq(), inbox.bytes()));
        lines.extend(inbox.entries().map(|(seq, entry)| format!("  {seq} {entry:?}")));
        let shelf = inbox.shelf().into_iter().flat_map(|shelf| shelf.iter());
        lines.extend(shelf.map(|it| format!("  aside {} {:?}", it.seq, it.entry)));
        let mut pairs: Vec<_> = inbox.pairs().iter().map(|pair| format!("  {pair:?}")).collect();
        pairs.sort();
        lines.extend(pairs);
    }
    lines.push(format!("{:?}", shard.cleaner.space.needed()));
    let counters = &shard.metrics.counters;
    lines.push(format!("{} {}", counters.waiting_messages, counters.waiting_bytes));
    lines.push(format!("{} pairs", counters.pairs));
    lines
}

/// `touched` of a number used up by a refusal is the log's clock after a
/// restart, which may be ahead of the wall's.
fn without_hours(lines: Vec<String>) -> Vec<String> {
    let hours = |line: &String| line.find(" touched_h").zip(line.find(" last"));
    lines
        .into_iter()
        .map(|line| match hours(&line) {
            Some((from, to)) => format!("{}{}", &line[..from], &line[to..]),
            None => line,
        })
        .collect()
}

/// While pairs are walked more come, everything in a table moves, and tables are
/// split.
#[test]
fn pairs_that_become_more_are_walked_to_their_end() {
    for (before, after) in [(50, 500), (3000, 9000)] {
        let pair = |device| Pair::new(PairKey::new(UserKey(u128::from(device) << 40), device));
        let mut users = Users::new(1);
        let at = users.find_or_add(UserKey(1), b"bob").expect("there is room");
        (0..before).for_each(|device| {
            users[at].inbox_mut().put_pair(pair(device));
        });
        let walk = Walk::begin(users[at].inbox_mut().pairs());
        let (mut part, mut found) = (Part::Pairs(walk), BTreeSet::new());
        let mut device = before;
        while let Part::Pairs(walk) = part {
            let mut out = Vec::new();
            (part, _) = put_pairs(&mut users[at], walk, 0, PAIR_BYTES, &mut out);
            if !out.is_empty() {
                found.extend(out[5..].chunks(PAIR_BYTES).map(<[u8]>::to_vec));
            }
            if device < after {
                users[at].inbox_mut().put_pair(pair(device));
                device += 1;
            }
        }
        assert!(device > before + (after - before) / 2, "they came meanwhile");
        assert!((0..before).all(|device| found.contains(&pair(device).to_bytes()[..])));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_read_back_is_what_it_was(
        steps in prop::collection::vec(any::<Step>(), 1..400),
        slice_bytes in prop::sample::select(vec![1usize, 60, 400, 4000, super::SLICE_BYTES]),
    ) {
        let mut life = Life::new(slice_bytes);
        for step in steps {
            life.step(step);
        }
        life.rest();
        let kept: Vec<Taken> = life.kept.iter().rev().take(2).cloned().collect();
        for (n, taken) in kept.iter().enumerate() {
            let mut back = life.read_back(taken);
            let (is, was) = (view(&mut back), view(&mut life.shard));
            let (is, was) = (without_hours(is), without_hours(was));
            // The older one may have pairs that were forgotten since.
            let pairs = |line: &&String| n == 0 || !line.contains("Pair") && !line.contains("pairs");
            let is: Vec<&String> = is.iter().filter(pairs).collect();
            let was: Vec<&String> = was.iter().filter(pairs).collect();
            prop_assert_eq!(is, was);
        }
    }

    #[test]
    fn garbage_never_panics(slice in prop::collection::vec(any::<u8>(), 0..300), tag in 0u8..5) {
        let mut users = Users::new(10);
        let mut loader = Loader::default();
        let _ = loader.slice(&slice, &mut users);
        let _ = loader.slice(&[&[tag], &slice[..]].concat(), &mut users);
        loader.finish(&mut users);
    }
}
