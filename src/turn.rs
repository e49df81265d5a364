//! One core's turn: reap → handle → commit → send → sleep.
//!
//! The order is the promise. Completions come first, so that what became
//! durable is known; then everything that arrived is handled; then one write
//! carries all appends of the turn to the disk; only then replies and
//! deliveries leave, and the shard has released none of them that a finished
//! fsync does not cover. Who catches up comes behind all this, and what no message
//! waits for comes last, a portion a turn. Nothing here waits for anything but
//! the end of a turn.
//! A core with more to do than it can may let the appends of several turns
//! gather for one write, never for longer than `shard::gather` says, and
//! into a rest only if nobody waits for them or the disk is full.

mod background;
mod catch_up;
mod census;
mod company;
mod deliver;
mod inbound;
mod log_io;
mod mesh_io;
mod pace;
mod partial;
mod reads;
mod rest;
mod snapshot;
mod stall;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use net::{Clock, Event, Hands, Peer, Port};
use shard::hop::Parcel;
use shard::snapshot::Reserve;
use shard::{Ahead, Effects, Input, Now, Shard};
use std::sync::OnceLock;
use wal::disk::{Segments, ShardDir, spare_to_leave};
use wire::id::ShardId;

use crate::admin::{self, Board};
use crate::exit::Exit;
use crate::pulse::{Doing, Pulse};
use background::Background;
use catch_up::CatchUp;
use census::Census;
use inbound::Inbound;
use log_io::LogIo;
use mesh_io::{Cargo, MeshIo};
use pace::Pacer;
use partial::Partials;
use rest::Rest;
use snapshot::SnapshotIo;
use stall::Stalls;

pub(crate) use mesh_io::Cargo as MeshCargo;

/// A tick of the shard's and the hands' deadlines, nanoseconds.
const TICK_NS: u64 = 100_000_000;
/// How many events ahead which step of looking ahead is taken.
const AHEAD: [(usize, Ahead); 4] =
    [(11, Ahead::Session), (8, Ahead::Users), (5, Ahead::Inboxes), (2, Ahead::Entries)];
/// How often counters and histograms are copied out, nanoseconds.
const PUBLISH_NS: u64 = 1_000_000_000;
/// Empty parcels kept between the cores, for each of them.
const PARCELS_SPARE_PER_SHARD: usize = 24;
/// How long a stopping core waits for its connections and its log.
const DRAIN_NS_MAX: u64 = 5_000_000_000;

/// What every core of the process shares.
pub(crate) struct Shared {
    /// Set once: the process stops. A core whose log failed sets it, too.
    pub(crate) stop: AtomicBool,
    /// Where each core's connections can be sent, as soon as its ring exists.
    pub(crate) peers: Vec<OnceLock<Peer>>,
    pub(crate) board: Arc<Board>,
    /// By shard: whether it turns.
    pub(crate) pulses: Vec<CachePadded<Pulse>>,
    /// Time for the rest of a frame, milliseconds.
    pub(crate) frame_ms: u64,
    /// Time after which a connection is cut on which nothing moves,
    /// milliseconds; 0 for never.
    pub(crate) stalled_ms: u64,
    /// Empty parcels that one core has too many of and another too few.
    pub(crate) empties: ArrayQueue<Parcel>,
    /// By shard: what its next snapshots may need of the disk, see [`Reserve`], and
    /// how many segments its log has left to go on in when that is full.
    reserves: Vec<[AtomicU64; 3]>,
}

impl Shared {
    pub(crate) fn new(shards: u16, board: Arc<Board>, frame_ms: u64, stalled_ms: u64) -> Shared {
        Shared {
            stop: AtomicBool::new(false),
            peers: (0..shards).map(|_| OnceLock::new()).collect(),
            board,
            pulses: (0..shards).map(|_| CachePadded::default()).collect(),
            frame_ms,
            stalled_ms,
            empties: ArrayQueue::new(PARCELS_SPARE_PER_SHARD * usize::from(shards)),
            reserves: (0..shards).map(|_| Default::default()).collect(),
        }
    }

    /// A shard needs that much of the disk, which the others leave alone.
    pub(crate) fn reserve(&self, shard: ShardId, it: Reserve, spare: u64) {
        let mine = &self.reserves[usize::from(shard)];
        for (place, bytes) in mine.iter().zip([it.whole, it.least, spare]) {
            place.store(bytes, Ordering::Relaxed);
        }
    }

    /// What is kept for the snapshots of all shards.
    fn reserved(&self) -> u64 {
        self.reserves.iter().map(|[whole, ..]| whole.load(Ordering::Relaxed)).sum()
    }

    /// What the log of this shard leaves when it has no other place: the least that
    /// snapshots need, and segments for the logs of others.
    fn reserved_from(&self, shard: ShardId, segment_bytes: u64) -> u64 {
        let (before, rest) = self.reserves.split_at(shard.into());
        let (mine, behind) = rest.split_first().expect("each shard has its own");
        let spare = |[_, _, spare]: &[AtomicU64; 3]| spare.load(Ordering::Relaxed);
        let others = before.iter().chain(behind).map(spare);
        let least = self.reserves.iter().map(|[_, least, _]| least.load(Ordering::Relaxed));
        least.sum::<u64>() + spare_to_leave(spare(mine), others) * segment_bytes
    }
}

/// One core: its brain, its hands, and what joins them.
pub(crate) struct Core {
    id: ShardId,
    shared: Arc<Shared>,
    // Before the shard: dropping the hands waits for writes whose bytes are the
    // shard's.
    hands: Hands,
    shard: Shard,
    inbound: Inbound,
    partials: Partials,
    pacer: Pacer,
    stalls: Stalls,
    mesh: MeshIo,
    log: LogIo,
    catch_up: CatchUp,
    background: Background,
    snapshots: SnapshotIo,
    census: Census,
    rest: Rest,
    /// Reused every turn.
    events: Vec<Event>,
    out: Effects,
    doing: Effects,
    now: Now,
    turns: u64,
    turn_ns: hdrhistogram::Histogram<u64>,
    ticked_ns: u64,
    /// Nanoseconds in turns since the last tick, and how many turns.
    since_tick: (u64, u64),
    published_ns: u64,
    /// When the stop was seen.
    draining_since: Option<u64>,
    /// Why the log takes nothing more.
    fault: Option<Exit>,
}

impl Core {
    /// Joins a shard to its hands. Must run on the thread that will turn it.
    pub(crate) fn new(
        id: ShardId,
        shared: Arc<Shared>,
        hands: Hands,
        shard: Shard,
        dir: ShardDir,
        segments: Segments,
        port: Port<Cargo>,
    ) -> Core {
        port.set_waker(hands.waker());
        let known = shared.peers[usize::from(id)].set(hands.peer());
        assert!(known.is_ok(), "a core has one ring");
        let mut core = Core {
            id,
            inbound: Inbound::default(),
            partials: Partials::new(shared.frame_ms),
            pacer: Pacer::default(),
            stalls: Stalls::new(clock().mono_ns, shared.stalled_ms),
            mesh: MeshIo::new(port),
            log: LogIo::new(segments),
            catch_up: CatchUp::default(),
            background: Background::default(),
            snapshots: SnapshotIo::new(dir),
            census: Census::default(),
            rest: Rest::default(),
            events: Vec::new(),
            out: Effects::default(),
            doing: Effects::default(),
            now: clock(),
            turns: 0,
            turn_ns: admin::histogram(),
            ticked_ns: 0,
            since_tick: (0, 0),
            published_ns: 0,
            draining_since: None,
            fault: None,
            shared,
            hands,
            shard,
        };
        core.tell_reserve();
        core.look_for_space();
        // Whoever is told that the server is ready may ask how it is.
        core.publish();
        core
    }

    /// Turns until the process stops and everything is on the disk.
    ///
    /// # Errors
    /// A write of the log failed. What was acknowledged is on the disk.
    pub(crate) async fn run(mut self) -> Result<(), Exit> {
        self.pulse().begin();
        while !self.is_done() {
            self.pulse().turn(self.turns);
            self.now = clock();
            let began_ns = self.now.mono_ns;
            self.reap();
            self.take_from_mesh();
            self.shard.stamp_appended(clock().mono_ns);
            self.commit_in_time();
            self.prepare_segment();
            self.send();
            self.shard.stamp_delivered(clock().mono_ns);
            self.tick();
            self.catch_up();
            self.background();
            self.turns += 1;
            let turn_ns = clock().mono_ns - began_ns;
            self.turn_ns.saturating_record(turn_ns);
            self.since_tick.0 += turn_ns;
            self.since_tick.1 += 1;
            self.sleep().await;
        }
        self.publish();
        self.pulse().is(Doing::Nothing);
        self.fault.take().map_or(Ok(()), Err)
    }

    /// What others see of this core.
    fn pulse(&self) -> &Pulse {
        &self.shared.pulses[usize::from(self.id)]
    }

    /// What the kernel has done since the last turn, and what clients sent.
    fn reap(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.retry_blocked();
        self.hands.reap(&mut events);
        let mut coming = events.drain(..);
        while let Some(event) = coming.next() {
            self.foresee(coming.as_slice());
            self.event(event);
        }
        drop(coming);
        self.events = events;
        self.apply();
    }

    /// Asks for the memory that the events to come will touch.
    fn foresee(&self, coming: &[Event]) {
        for (ahead, step) in AHEAD {
            if let Some(Event::Received { conn }) = coming.get(ahead) {
                self.shard.foresee(inbound::name(*conn), step, net::prefetch);
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Received { conn } => self.received(conn),
            Event::Opened { conn, listener: _ } => self.opened(conn),
            Event::Drained { conn } => self.drained(conn),
            Event::Closed { conn, reason: _ } => self.closed(conn),
            Event::Moved { conn, moved } => self.departed(conn, moved),
            Event::Wake => {}
            Event::Written { tag, result } => self.written(tag, result),
            Event::Read { tag, result } => self.read_done(tag, result),
        }
    }

    /// Hands the shard an input that is always taken.
    fn tell(&mut self, input: Input<'_>) {
        let outcome = self.shard.handle(self.now, input, &mut self.out);
        debug_assert_eq!(outcome, shard::Outcome::Taken);
    }

    /// Everything that is due by time.
    fn tick(&mut self) {
        if self.now.mono_ns - self.ticked_ns >= TICK_NS {
            self.ticked_ns = self.now.mono_ns;
            self.hands.tick(self.now.mono_ns / 1_000_000);
            self.measure();
            self.tell(Input::Tick);
            self.close_late_frames();
            self.look_for_stalled();
            self.resume_paced();
            self.retry_reads();
            self.begin_census();
            self.drain_if_asked();
            self.apply();
        }
        if self.now.mono_ns - self.published_ns >= PUBLISH_NS {
            self.published_ns = self.now.mono_ns;
            self.publish();
        }
    }

    /// How much there is to bear.
    fn measure(&mut self) {
        let (sum_ns, turns) = std::mem::take(&mut self.since_tick);
        let turn_ns = sum_ns.checked_div(turns).unwrap_or(0);
        let frames_permille = self.hands.frames_permille();
        let unsent_permille = self.hands.unsent_permille();
        self.tell(Input::Measured { turn_ns, frames_permille, unsent_permille });
    }

    fn drain_if_asked(&mut self) {
        if self.draining_since.is_none() && self.shared.stop.load(Ordering::Relaxed) {
            self.draining_since = Some(self.now.mono_ns);
            self.hands.stop_accepting();
            self.tell(Input::Drain);
        }
    }

    /// Whether the core may end: everybody has left and the log is on the disk,
    /// or that took too long.
    fn is_done(&mut self) -> bool {
        let Some(since) = self.draining_since else { return false };
        // The executor must outlive what it has given to its helper threads.
        if self.is_helped() {
            return false;
        }
        let log = self.shard.log();
        let is_idle = self.hands.stats().conns == 0
            && self.out.list.is_empty()
            && (log.durable() >= log.end() || log.is_poisoned());
        // A log that goes to rest ends with a record that vouches for the others,
        // if there is a place for it.
        self.now.mono_ns - since > DRAIN_NS_MAX || is_idle && !self.shard.vouch(self.now)
    }

    /// Whether a helper thread works for this core, or will.
    fn is_helped(&self) -> bool {
        self.awaits_help() || self.log.is_removing()
    }

    /// Whether a helper thread works on what a turn has to go on with.
    fn awaits_help(&self) -> bool {
        self.log.is_preparing() || self.snapshots.is_writing()
    }

    /// Has the other cores leave that much of the disk alone.
    fn tell_reserve(&self) {
        let reserve = self.shard.reserve().less(self.snapshots.written());
        self.shared.reserve(self.id, reserve, self.log.spare_segments());
    }

    fn publish(&mut self) {
        self.tell_reserve();
        let kept_bytes = self.kept_bytes();
        let (shard, hands, now) = (&mut self.shard, &self.hands, self.now);
        let (turns, turn_ns) = (self.turns, &self.turn_ns);
        let (frame_timeouts, paced) = (self.partials.closed, self.pacer.paced);
        let (log_segments, log_disk_bytes) = self.log.space();
        let snapshot_slice = self.snapshots.longest();
        let reserve = shard.reserve().whole + kept_bytes;
        self.shared.board.publish(self.id, |snapshot| {
            snapshot.at_mono_ns = now.mono_ns;
            snapshot.log_end = shard.log().end();
            snapshot.log_durable = shard.log().durable();
            snapshot.hands = hands.stats();
            snapshot.turns = turns;
            snapshot.frame_timeouts = frame_timeouts;
            snapshot.paced = paced;
            (snapshot.log_segments, snapshot.log_disk_bytes) = (log_segments, log_disk_bytes);
            snapshot.log_reserve_bytes = reserve;
            snapshot.snapshot_slice = snapshot_slice;
            snapshot.copy(shard.metrics(), turn_ns);
        });
    }
}

fn clock() -> Now {
    let now = Clock::now();
    Now { mono_ns: now.mono_ns, wall_ms: now.wall_ms }
}
