//! One core's brain: sessions, users, inboxes. `handle(now, input, &mut out)`.
//!
//! It takes one input at a time and gives back what it wants done. It does no
//! I/O, reads no clock, starts no thread, draws no randomness and holds no
//! `async`: production and the simulator call the same struct, and the same
//! inputs give the same outputs.
//!
//! Modules are listed in the order in which a message meets them.
#![forbid(unsafe_code)]

pub mod io;

pub mod flow;

mod admission;
mod session;
mod stall;

mod packet;
mod request;

pub mod hop;
mod route;

mod dedup;
mod handshake;
mod held;
mod inbox;
mod pairs;
mod user;

mod commit;
mod deliver;
pub mod gather;
mod receipt;
mod shelf;

mod chunks;
mod clean;
pub mod snapshot;
mod vouch;

mod ages;
mod foresee;
mod hlc;
mod timer;

pub mod metrics;

mod contents;
mod glance;
mod regroup;
mod replay;
mod rewrite;
mod salvage;

pub use contents::{Contents, InboxContents, Waiting};
pub use dedup::{Numbering, PAIRS_KEPT_MS_MIN};
pub use foresee::Ahead;
pub use glance::{SessionGlance, UserGlance};
pub use io::{Conn, Effect, Effects, Input, Now, Outcome, Unsent};
pub use regroup::{Load, SnapshotPart, weigh};
pub use replay::Replay;
pub use rewrite::{Rewrite, Step};
pub use salvage::{Missing, Placed, Salvage};
pub use snapshot::{SLICE_BYTES, Slice};
pub use stall::LOOKS;
pub use user::KeyHasher;
pub use vouch::VOUCH_AFTER_MS;

use admission::Admission;
use ages::Ages;
use clean::Cleaner;
use commit::{Durables, Gate};
use flow::{Flow, Level, Standstill};
use held::Held;
use hlc::Hlc;
use hop::{Hop, Outbox, Parcel, ReplyTo};
use metrics::{Metrics, Stage};
use receipt::Receipt;
use session::Sessions;
use shelf::Shelves;
use snapshot::Snapshots;
use timer::Deadlines;
use user::{UserIndex, Users};
use vouch::Vouched;
use wal::Log;
use wire::id::ShardId;

/// What a shard must know of its place and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// This shard.
    pub shard: ShardId,
    /// How many shards the node has.
    pub shards: u16,
    /// This node, part of message ids.
    pub node: u16,
    /// Users this shard may know; further ones are refused with Busy.
    pub users_max: usize,
    /// Messages all inboxes of this shard may hold together; further ones are
    /// refused with Busy.
    pub waiting_messages_max: usize,
    /// Sending devices all inboxes of this shard may know together; messages of
    /// further ones are refused with Busy.
    pub pairs_max: usize,
    /// Messages one inbox may hold.
    pub inbox_messages_max: usize,
    /// Log bytes one inbox may hold.
    pub inbox_bytes_max: u64,
    /// How long a message waits whose sender did not say, milliseconds.
    pub retention_ms: u64,
    /// How long a sending device is remembered that sends nothing, milliseconds;
    /// a server's is [`PAIRS_KEPT_MS_MIN`] at least.
    pub pairs_kept_ms: u64,
    /// Time a connection has to say something valid, milliseconds.
    pub handshake_ms: u64,
    /// Logins taken in a second while the shard has little else to do; 0 for no
    /// bound.
    pub logins_per_second: u32,
    /// How long a log rests before it gets a record that vouches for all before
    /// it, milliseconds; a server's is [`VOUCH_AFTER_MS`].
    pub vouch_after_ms: u64,
}

/// The state of one shard. [`Shard::handle`] is the only way to change it.
pub struct Shard {
    options: Options,
    hasher: KeyHasher,
    salt: u64,
    sessions: Sessions,
    flow: Flow,
    standstill: Standstill,
    admission: Admission,
    users: Users,
    log: Log,
    gate: Gate,
    durables: Durables,
    outbox: Outbox,
    held: Held,
    hlc: Hlc,
    ages: Ages,
    handshakes: Deadlines,
    cleaner: Cleaner,
    snapshots: Snapshots,
    vouched: Vouched,
    /// Connections for which the log had no room to give up what expired.
    starved: Vec<Conn>,
    /// Inboxes that give memory back at the next tick.
    drained: Vec<UserIndex>,
    shelves: Shelves,
    metrics: Metrics,
    /// Grows whenever something that was blocked may fit now.
    room_epoch: u64,
    storage_full: bool,
    draining: bool,
    /// Numbers every inbox skips before its first message of this life.
    leap: u64,
    /// For bodies that are put together from parts.
    scratch: Vec<u8>,
}

impl Shard {
    fn new(options: Options, hasher: KeyHasher, salt: u64, log: Log) -> Shard {
        assert!(options.shard < options.shards, "a shard is one of its node's shards");
        Shard {
            sessions: Sessions::default(),
            flow: Flow::default(),
            standstill: Standstill::default(),
            admission: Admission::new(options.logins_per_second),
            users: Users::new(options.users_max),
            cleaner: Cleaner::new(log.options().segment_bytes),
            snapshots: Snapshots::default(),
            vouched: Vouched::default(),
            starved: Vec::new(),
            drained: Vec::new(),
            shelves: Shelves::default(),
            log,
            gate: Gate::default(),
            durables: Durables::default(),
            outbox: Outbox::new(options.shards),
            held: Held::default(),
            hlc: Hlc::new(options.node, options.shard),
            ages: Ages::default(),
            handshakes: Deadlines::new(options.handshake_ms),
            metrics: Metrics::new(),
            room_epoch: 0,
            storage_full: false,
            draining: false,
            leap: 0,
            scratch: Vec::new(),
            options,
            hasher,
            salt,
        }
    }

    /// Takes one input; what it leads to is appended to `out` and to the
    /// parcels. Only packets, frames and hops can be [`Outcome::Blocked`] or
    /// [`Outcome::Move`].
    pub fn handle(&mut self, now: Now, input: Input<'_>, out: &mut Effects) -> Outcome {
        // By reference, so that no frame is copied once more.
        let outcome = match &input {
            Input::V1 { conn, packet } => self.packet(now, *conn, packet, out),
            Input::V2 { conn, request } => self.request(now, *conn, request, out),
            Input::Hop { from, hop, bytes } => self.hop(now, *from, hop, bytes, out),
            // As frequent as they are.
            Input::Drained { conn } => {
                self.drained(now, *conn, out);
                Outcome::Taken
            }
            _ => {
                self.notice(now, input, out);
                Outcome::Taken
            }
        };
        self.metrics.counters.blocked += u64::from(outcome == Outcome::Blocked);
        outcome
    }

    /// The other inputs that are always taken.
    fn notice(&mut self, now: Now, input: Input<'_>, out: &mut Effects) {
        match input {
            Input::Opened { conn } => self.opened(now, conn),
            Input::V1Bad { conn } => self.bad_v1(now, conn, out),
            Input::V2Bad { conn, wrong } => self.bad_v2(now, conn, wrong, out),
            Input::Closed { conn } => self.closed(now, conn),
            Input::Written { lsn, ok } => self.written(now, lsn, ok, out),
            Input::Read { conn, lsn, bytes } => self.read(now, conn, lsn, bytes, out),
            Input::Storage { full } => self.storage(now, full, out),
            Input::Place { end, common } => {
                self.log.give_place(end, common);
                self.place_changed(now, out);
            }
            Input::Surveyed { lsn, bytes } => self.surveyed(now, lsn, bytes, out),
            Input::Snapshotted { start, bytes } => {
                self.snapshotted(start, bytes);
                self.clean(now, out);
            }
            Input::SnapshotFailed => self.snapshot_failed(now),
            Input::Looked { conn, unsent } => self.looked(now, conn, unsent, out),
            Input::Measured { turn_ns, frames_permille, unsent_permille } => {
                self.measured(now, turn_ns, frames_permille, unsent_permille);
            }
            Input::Tick => self.tick(now, out),
            Input::Drain => self.drain(now, out),
            Input::V1 { .. } | Input::V2 { .. } | Input::Hop { .. } | Input::Drained { .. } => {
                unreachable!("handled by the caller")
            }
        }
    }

    fn tick(&mut self, now: Now, out: &mut Effects) {
        self.close_late_handshakes(now, out);
        self.ages.note(now, self.log.end());
        self.try_shelves_again(out);
        self.cleaner.space.reach(self.log.end());
        self.cleaner.space.tick();
        self.clean(now, out);
        self.give_back();
        self.held.tick(now);
        self.leave_segment();
        self.schedule_snapshot(now);
        self.vouch_at_rest(now);
    }

    /// Takes the caller's measures and adds those of the log.
    fn measured(&mut self, now: Now, turn_ns: u64, frames: u64, unsent: u64) {
        let (durable, end) = (self.log.durable(), self.log.end());
        let log_permille = (end - durable) * 1000 / self.log.options().tail_bytes as u64;
        let disk_ns = self.standstill.measure(now, durable, end);
        let before = self.flow.level();
        let measured = [turn_ns, log_permille, frames, disk_ns, unsent];
        let level = self.flow.feed(now.mono_ns, measured);
        let counters = &mut self.metrics.counters;
        counters.flow_level = level as u64;
        counters.flow_measures = self.flow.by_measure().map(|level| level as u64);
        counters.flow_entered[level as usize] += u64::from(level != before);
    }

    /// How much there is to bear, as of the last [`Input::Measured`].
    pub fn level(&self) -> Level {
        self.flow.level()
    }

    fn storage(&mut self, now: Now, full: bool, out: &mut Effects) {
        self.storage_full = full;
        self.metrics.counters.storage_full = u64::from(full);
        self.snapshots_may_fit();
        self.room_epoch += 1;
        self.go_on_with_shelves(now, self.log.durable(), out);
    }

    /// There is place for more, perhaps: whatever waits for room is tried again.
    fn place_changed(&mut self, now: Now, out: &mut Effects) {
        self.room_epoch += 1;
        self.go_on_with_shelves(now, self.log.durable(), out);
        self.serve_starved(now, out);
        self.clean(now, out);
    }

    fn hop(
        &mut self,
        now: Now,
        from: ShardId,
        hop: &Hop,
        bytes: &[u8],
        out: &mut Effects,
    ) -> Outcome {
        match *hop {
            Hop::Post(ref post) => {
                return self.post_arrived(now, &route::with_bytes(post, bytes), out);
            }
            Hop::Posted { reply, to, send_seq, posted } => {
                self.tell(reply.conn, to.of(bytes), send_seq, posted, out);
            }
            Hop::Status { reply, user, key } => self.answer_status(reply, user.of(bytes), key),
            Hop::StatusIs { reply, user, online, last_seen_s } => {
                self.tell_status(reply.conn, user.of(bytes), online, last_seen_s, out);
            }
            Hop::Receipt { from_key, device, send_seq, id, to } => {
                let receipt = Receipt { inbox_seq: 0, from_key, device, send_seq, id };
                self.receipt_arrived(&receipt, to.of(bytes), out);
            }
        }
        if hop.is_reply() {
            self.outbox.answered(from);
            self.room_epoch += 1;
        }
        Outcome::Taken
    }

    fn answer_status(&mut self, reply: ReplyTo, user: &[u8], key: wire::id::UserKey) {
        let (online, last_seen_s) = self.status(key);
        self.outbox.push(reply.shard, |parcel| Hop::StatusIs {
            reply,
            user: parcel.put(user),
            online,
            last_seen_s,
        });
    }

    /// The parcel for another shard, if there is anything in it. The caller
    /// takes it with [`Shard::take_parcel`] when the mesh has room.
    pub fn has_parcel(&self, to: ShardId) -> bool {
        !self.outbox.parcels[usize::from(to)].is_empty()
    }

    /// Takes the parcel for `to` and leaves `spare`, an empty one, in its place.
    pub fn take_parcel(&mut self, to: ShardId, spare: Parcel) -> Parcel {
        debug_assert!(spare.is_empty());
        self.room_epoch += 1;
        std::mem::replace(&mut self.outbox.parcels[usize::from(to)], spare)
    }

    /// Moves whenever something that was [`Outcome::Blocked`] may fit.
    pub fn room_epoch(&self) -> u64 {
        self.room_epoch
    }

    /// The next write the log wants, if its pipeline allows one now.
    pub fn next_write(&mut self) -> Option<wal::Write> {
        self.log.next_write()
    }

    /// The log: what to write, how far it is durable.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Which shard owns the user with this name.
    pub fn owner_of(&self, name: &[u8]) -> ShardId {
        self.hasher.key(name).owner(self.options.shards)
    }

    /// Counters and histograms; gauges are brought up to date first.
    pub fn metrics(&mut self) -> &Metrics {
        self.metrics.counters.users = self.users.len() as u64;
        &self.metrics
    }

    /// Everything appended so far in this turn was so by this time.
    pub fn stamp_appended(&mut self, mono_ns: u64) {
        self.metrics.stamp(Stage::ReceiveToAppend, mono_ns);
    }

    /// Everything delivered so far in this turn was handed over by this time.
    pub fn stamp_delivered(&mut self, mono_ns: u64) {
        self.metrics.stamp(Stage::DurableToDelivered, mono_ns);
        self.metrics.stamp(Stage::EndToEnd, mono_ns);
    }

    /// Every user of this shard with what waits: name, first and last inbox
    /// seq of what waits (last below first when nothing does). For tools and
    /// the simulator.
    pub fn inboxes(&self) -> impl Iterator<Item = (&[u8], u64, u64)> {
        self.users.iter().map(|user| {
            let first = user.inbox.as_ref().map_or(1, |inbox| inbox.first_seq());
            (&user.name[..], first, user.last_seq())
        })
    }
}
