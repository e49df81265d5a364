//! What a shard's files take while it works, looked at every tick of minutes
//! under load, with snapshots larger than a segment; and what expires in
//! segments from which nothing is copied.

use wire::v2;

use super::{Life, SEGMENT, Taken};
use crate::snapshot::{SLICE_BYTES, Slice};
use crate::{Conn, Input};

const TICK_MS: u64 = 100;
/// Slices written in a tick: a snapshot takes some ticks.
const SLICES: usize = 4;
const ALICE: u32 = 0;
const BOB: u32 = 1;
const CAROL: u32 = 2;

/// A life in which time passes in ticks.
struct Load {
    life: Life,
    sent: [u64; 3],
    /// The largest number of bytes beyond twice those that wait.
    most: u64,
    /// Slices written in a tick.
    slices: usize,
}

impl Load {
    fn new() -> Load {
        let mut life = Life::new(SLICE_BYTES);
        life.log_in(ALICE, 0);
        life.log_in(BOB, 0);
        Load { life, sent: [0; 3], most: 0, slices: SLICES }
    }

    /// From alice, 0 seconds for as long as messages are kept.
    fn send(&mut self, to: u32, bytes: usize, expiry_s: u32) {
        let conn = Conn { slot: ALICE, generation: self.life.conns[&ALICE] };
        let seq = &mut self.sent[to as usize];
        *seq += 1;
        let (to, body) = (super::NAMES[to as usize].as_bytes(), vec![b'x'; bytes]);
        let send = v2::Send {
            seq: *seq,
            class: wire::id::Class::Guaranteed,
            flags: 0,
            expiry_s,
            to,
            body: &body,
        };
        self.life.feed(Input::V2 { conn, request: v2::Request::Send(send) });
    }

    /// Sends to bob and has him acknowledge it.
    fn chat(&mut self, bytes: usize) {
        self.send(BOB, bytes, 0);
        self.life.commit();
        self.life.acknowledge(BOB, 0);
        self.life.carry_out();
    }

    /// Time passes, and a snapshot is taken if one is due, some slices at once.
    fn tick(&mut self) {
        self.life.now.wall_ms += TICK_MS;
        self.life.now.mono_ns += TICK_MS * 1_000_000;
        self.life.feed(Input::Tick);
        self.life.carry_out();
        self.life.commit();
        self.life.carry_out();
        if self.life.taking.is_some() || self.life.shard.wants_snapshot() {
            self.write_snapshot();
        }
        self.most = self.most.max(self.bytes().saturating_sub(2 * self.live()));
    }

    fn write_snapshot(&mut self) {
        for _ in 0..self.slices {
            self.life.take_snapshot();
            if self.life.taking.is_none() {
                break;
            }
        }
        if let Some(it) = self.life.kept.last() {
            assert!(it.bytes() <= it.reserve, "{} of {}", it.bytes(), it.reserve);
        }
        self.life.carry_out();
    }

    fn live(&self) -> u64 {
        self.life.shard.metrics.counters.waiting_bytes
    }

    /// The segments up to the one being written and one made ahead, and the
    /// snapshots.
    fn bytes(&self) -> u64 {
        let made = self.life.shard.log().end() / SEGMENT + 2;
        let segments = made - self.life.discarded.len() as u64;
        let kept = self.life.kept.iter().rev().take(2);
        let snapshots: u64 = kept.chain(&self.life.taking).map(Taken::bytes).sum();
        segments * SEGMENT + snapshots
    }
}

#[test]
fn a_shard_under_load_stays_within_twice_what_waits() {
    stays_within_twice_what_waits(|_| SLICES);
}

/// The disk takes four times as long for every third snapshot or so.
#[test]
fn it_does_so_on_a_disk_that_is_slow_now_and_then() {
    stays_within_twice_what_waits(|tick| if tick % 60 < 20 { SLICES / 4 } else { SLICES });
}

/// 25,000 small messages wait for somebody who is away, scattered among others
/// that were acknowledged; beside it two people talk for three minutes, and
/// some of what they say waits, too. So many slices are written in each tick.
fn stays_within_twice_what_waits(slices: impl Fn(usize) -> usize) {
    let mut load = Load::new();
    for n in 0..25_000 {
        load.send(CAROL, 100, 0);
        load.chat(64);
        if n % 100 == 99 {
            load.tick();
        }
    }
    // What was filled faster than snapshots are taken has its time.
    (0..50).for_each(|_| load.tick());
    let snapshot = load.life.kept.last().map_or(0, Taken::bytes);
    assert!(snapshot > 3 * SEGMENT, "{snapshot} bytes of a snapshot");
    load.most = 0;
    let began = (load.life.shard.log().end(), load.life.kept.len());
    for n in 0..1800 {
        (0..12).for_each(|_| load.chat(1000));
        if n % 4 == 0 {
            load.send(CAROL, 300, 0);
        }
        load.slices = slices(n);
        load.tick();
    }
    let appended = (load.life.shard.log().end() - began.0) / SEGMENT;
    let snapshots = load.life.kept.len() - began.1;
    let (live, most) = (load.live() / SEGMENT, load.most.div_ceil(SEGMENT));
    println!(
        "{live} segments of live bytes, a snapshot of {snapshot} bytes, {appended} segments \
         appended, {snapshots} snapshots, at most {most} segments beyond twice the live bytes"
    );
    assert!(appended > 250 && snapshots > 10);
    assert!(load.most <= 2 * SEGMENT, "{most} segments more");
}

/// Bob comes back to a full inbox and takes segment after segment. What lies
/// between his messages is copied when he is through with a segment, and of his
/// own next to nothing.
#[test]
fn what_is_being_collected_is_not_copied() {
    let mut load = Load::new();
    load.life.close(BOB);
    let (bobs, carols) = (1200, 60);
    for n in 0..bobs {
        load.send(BOB, 100, 0);
        if n % (bobs / carols) == 0 {
            load.send(CAROL, 100, 0);
        }
        if n % 100 == 99 {
            load.tick();
        }
    }
    let before = load.life.shard.metrics().counters;
    assert_eq!((before.waiting_messages, before.moved), (bobs + carols, 0));
    load.life.log_in(BOB, 0);
    while load.life.shard.metrics().counters.waiting_messages > carols {
        (0..6).for_each(|_| load.life.acknowledge(BOB, 0));
        load.tick();
    }
    (0..20).for_each(|_| load.tick());
    let after = load.life.shard.metrics().counters;
    assert_eq!((after.burned, after.waiting_messages), (before.burned + bobs, carols));
    // All of Carol's, some of them twice.
    assert!((carols..2 * carols).contains(&after.moved), "{} were copied", after.moved);
}

/// Four fifths wait for long, the rest for half an hour: nobody asks for it and
/// nothing is copied, yet it is given up, and its memory with it.
#[test]
fn a_sweep_gives_up_without_copying() {
    let mut load = Load::new();
    for n in 0..1000 {
        load.send(CAROL, 500, if n % 5 == 0 { 1800 } else { 0 });
        if n % 40 == 39 {
            load.life.commit();
            load.life.carry_out();
        }
    }
    load.tick();
    assert_eq!(load.life.shard.metrics().counters.waiting_messages, 1000);
    load.life.pass(95); // Half an hour, and the rest of its hour.
    load.life.carry_out();
    load.life.commit();
    load.tick();
    let counters = load.life.shard.metrics().counters;
    let full = load.life.shard.log().durable() / SEGMENT;
    assert!(full >= 8 && counters.segments_cleaned == full, "each once: {counters:?}");
    assert_eq!(counters.moved, 0);
    // The segment that is being written has to wait.
    assert!((800..840).contains(&counters.waiting_messages), "{counters:?}");
    assert_eq!(counters.waiting_messages + counters.expired, 1000);
    (0..20).for_each(|_| load.tick());
    assert_eq!(load.life.shard.metrics().counters.segments_cleaned, full, "and not again");
    let (live, messages) = load.life.shard.cleaner.space.total_live();
    assert_eq!((live, messages), (counters.waiting_bytes, counters.waiting_messages));
}

/// Whatever a snapshot has to say, a slice is bounded: a turn waits for one.
#[test]
fn slices_are_short() {
    let mut load = Load::new();
    for n in 0..30_000u32 {
        load.send(CAROL, 1, 0);
        load.chat(usize::try_from(n % 3).expect("small"));
    }
    load.life.carry_out();
    load.life.commit();
    load.life.shard.begin_snapshot(load.life.now);
    let (mut slices, mut longest) = (0, 0);
    loop {
        let mut payload = Vec::new();
        let slice = load.life.shard.snapshot_slice(SLICE_BYTES, &mut payload);
        (slices, longest) = (slices + 1, longest.max(payload.len()));
        if let Slice::Done { .. } = slice {
            break;
        }
    }
    assert!(slices > 10 && longest <= SLICE_BYTES + 1024, "{slices} slices, {longest} bytes");
}
