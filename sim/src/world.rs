//! One world: a server of several shards, its disks, its links and its crowd,
//! in one thread and in virtual time.
//!
//! The events of the queue happen one after the other; everything that is
//! drawn is drawn from the seed. The world's other halves stand in `boot` (lives and
//! deaths of the server), `turn` (its turns), `crowd` (the clients), `watch` (the
//! oracle at the server's door) and `settle` (the oracle at the end).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use shard::gather::Gather;
use shard::hop::Parcel;
use shard::{Conn, Effects, Input, KeyHasher, Now, Shard};
use wal::Lsn;

use crate::chance::Chance;
use crate::device::Device;
use crate::filling::Filling;
use crate::knobs::Knobs;
use crate::layout::Layout;
use crate::ledger::{Ledger, LetterId};
use crate::link::{Link, LinkId};
use crate::model::Model;
use crate::plant::Plant;
use crate::snapshots::Writing;
use crate::space::Pace;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::volume::{Ahead, SPARE_SEGMENTS, Volume};

/// Unix time at which every world begins, milliseconds.
const WALL_MS: u64 = 1_800_000_000_000;
/// After the faults end, everything must have settled within this time.
const SETTLE_NS_MAX: u64 = 120_000_000_000;
/// The same where logins have a rate: somebody may be told to come back in a
/// minute, and again.
const SETTLE_PUT_OFF_NS_MAX: u64 = 600_000_000_000;
/// Records that all looks back at deletions may take together.
const LOOKS_BACK: usize = 100_000;
/// And within this many steps.
const STEPS_MAX: u64 = 3_000_000;

/// One thing that will happen.
pub(crate) enum Event {
    EndTurn {
        life: u32,
        shard: usize,
    },
    Written {
        life: u32,
        shard: usize,
        id: u64,
        lsn: Lsn,
    },
    Read {
        life: u32,
        shard: usize,
        conn: Conn,
        lsn: Lsn,
        /// Nothing when the read has failed.
        bytes: Option<Vec<u8>>,
    },
    ReadLate {
        life: u32,
        shard: usize,
        conn: Conn,
        lsn: Lsn,
        len: u32,
    },
    Survey {
        life: u32,
        shard: usize,
        lsn: Lsn,
        len: u32,
    },
    Slice {
        life: u32,
        shard: usize,
    },
    Prepared {
        life: u32,
        shard: usize,
    },
    Parcel {
        life: u32,
        from: usize,
        to: usize,
    },
    Arrive {
        link: LinkId,
        to: usize,
    },
    Up {
        link: LinkId,
        bytes: Vec<u8>,
    },
    Down {
        link: LinkId,
        bytes: Vec<u8>,
    },
    /// The client sees the end of the connection.
    End {
        link: LinkId,
    },
    /// The server sees it.
    Gone {
        link: LinkId,
    },
    Drained {
        link: LinkId,
        bytes: usize,
        deliveries: usize,
    },
    Wake {
        device: usize,
    },
    Tick {
        life: u32,
    },
    Chaos,
    Crash {
        life: u32,
    },
    Restart,
}

struct Scheduled {
    at_ns: u64,
    number: u64,
    event: Event,
}

impl Ord for Scheduled {
    /// The heap gives the greatest first: that is the earliest.
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (other.at_ns, other.number).cmp(&(self.at_ns, self.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

/// One core of the server: its brain and what production keeps around it.
pub(crate) struct Core {
    pub(crate) brain: Shard,
    pub(crate) out: Effects,
    pub(crate) slots: Vec<Option<LinkId>>,
    pub(crate) generations: Vec<u32>,
    pub(crate) free: Vec<u32>,
    /// Links whose next frame found no room.
    pub(crate) blocked: Vec<LinkId>,
    pub(crate) turn_wanted: bool,
    pub(crate) gather: Gather,
    /// The snapshot that is being written.
    pub(crate) writing: Option<Writing>,
    pub(crate) pace: Pace,
    pub(crate) place: Ahead,
}

/// The ring from one core to another.
#[derive(Default)]
pub(crate) struct Ring {
    pub(crate) parcels: VecDeque<Parcel>,
    /// How many of them have arrived.
    pub(crate) ready: usize,
    /// Hops of the first that were taken.
    pub(crate) taken: usize,
    /// The shard had no room for the next hop; its room then.
    pub(crate) blocked: Option<u64>,
}

/// See the module.
pub struct World {
    pub(crate) knobs: Knobs,
    pub(crate) chance: Chance,
    pub(crate) trace: Trace,
    pub(crate) plant: Plant,
    pub(crate) now_ns: u64,
    /// For what belongs to snapshots and cleaning.
    pub(crate) store_chance: Chance,
    /// For what belongs to other numbers of shards.
    pub(crate) resize_chance: Chance,
    /// For what else goes wrong with disks.
    pub(crate) fault_chance: Chance,
    /// For what happens to names.
    pub(crate) names_chance: Chance,
    /// For what starts of later versions there are.
    pub(crate) version_chance: Chance,
    /// For when commits are due.
    pub(crate) gather_chance: Chance,
    /// Where reads have failed of bytes that are good: shard and place.
    pub(crate) unread: BTreeSet<(usize, Lsn)>,
    /// Records that may still be looked at again when a segment is deleted.
    pub(crate) looks_back: usize,
    wall_offset_ms: i64,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,

    pub(crate) hasher: KeyHasher,
    /// What the hasher was made of.
    pub(crate) seed: [u64; 2],
    pub(crate) names: Vec<String>,
    /// Counts the lives of the server; 0 before the first.
    pub(crate) life: u32,
    /// Empty while the server is down.
    pub(crate) cores: Vec<Core>,
    /// From × to.
    pub(crate) rings: Vec<Ring>,
    /// How the version that runs fills new segments.
    pub(crate) filling: Filling,
    /// The layout that counts.
    pub(crate) layout: Layout,
    /// The one before it, as long as it is not removed.
    pub(crate) leftover: Option<Layout>,
    /// What they lie on, where its space has a bound.
    pub(crate) volume: Option<Volume>,
    /// Layouts begun after the first one.
    pub(crate) layouts_made: u64,
    /// The server dies in its start after so many more steps.
    pub(crate) steps_to_live: Option<u64>,
    pub(crate) writes: u64,
    /// The server dies after so many more completed writes.
    pub(crate) writes_to_live: Option<u64>,
    pub(crate) storage_full: bool,
    pub(crate) draining: bool,

    pub(crate) links: Vec<Link>,
    pub(crate) devices: Vec<Device>,

    pub(crate) ledger: Ledger,
    /// Which letter a user's device has seen under which inbox seq.
    pub(crate) shown: BTreeMap<(u16, u64), LetterId>,
    pub(crate) model: Model,
    pub(crate) stats: Stats,
    /// Faults have ended; everything must settle.
    pub(crate) quiet_since: Option<u64>,
    violation: Option<String>,
    pub(crate) images: Option<Vec<crate::Image>>,
    /// The same of disks before repairs.
    pub(crate) wrecks: Vec<crate::Wreck>,
}

/// What became of one world.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The hash of everything that happened.
    pub hash: u64,
    /// What was counted.
    pub stats: Stats,
    /// What was wrong, if anything.
    pub violation: Option<String>,
}

impl World {
    /// The world of a seed, before anything has happened.
    pub fn new(seed: u64, plant: Plant, prints: bool) -> World {
        let mut chance = Chance::new(seed);
        let knobs = Knobs::draw(seed, &mut chance);
        let hash_seed = [chance.bits(), chance.bits()];
        let hasher = KeyHasher::new(hash_seed);
        let names: Vec<String> = (0..knobs.users).map(|n| format!("user{n}")).collect();
        let keys = names.iter().map(|name| hasher.key(name.as_bytes()));
        let mut world = World {
            model: Model::new(keys),
            layout: Layout::first(&knobs),
            filling: knobs.filling,
            leftover: None,
            volume: (knobs.segments_max > 0).then(|| Volume {
                bytes_max: (knobs.segments_max + if knobs.reserves { SPARE_SEGMENTS } else { 0 })
                    * u64::from(knobs.shards)
                    * knobs.log.segment_bytes,
                foreign_bytes: 0,
            }),
            layouts_made: 0,
            steps_to_live: None,
            knobs,
            chance,
            trace: Trace::new(prints),
            plant,
            now_ns: 0,
            store_chance: Chance::new(seed.rotate_left(32)),
            resize_chance: Chance::new(seed.rotate_left(48)),
            fault_chance: Chance::new(seed.rotate_left(16)),
            names_chance: Chance::new(!seed.rotate_left(32)),
            version_chance: Chance::new(!seed.rotate_left(56)),
            gather_chance: Chance::new(!seed.rotate_left(16)),
            unread: BTreeSet::new(),
            looks_back: LOOKS_BACK,
            wall_offset_ms: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            hasher,
            seed: hash_seed,
            images: None,
            wrecks: Vec::new(),
            names,
            life: 0,
            cores: Vec::new(),
            rings: Vec::new(),
            writes: 0,
            writes_to_live: None,
            storage_full: false,
            draining: false,
            links: Vec::new(),
            devices: Vec::new(),
            ledger: Ledger::default(),
            shown: BTreeMap::new(),
            stats: Stats::default(),
            quiet_since: None,
            violation: None,
        };
        world.gather_crowd();
        world
    }

    /// Lives to the end, or to the first violation.
    pub fn live(&mut self) -> Outcome {
        self.boot();
        for device in 0..self.devices.len() {
            self.schedule_wake(device);
        }
        self.after(50_000_000, Event::Chaos);
        while self.violation.is_none() && !self.is_over() {
            let Some(next) = self.queue.pop() else {
                self.violate("nothing will ever happen again".into());
                break;
            };
            self.now_ns = next.at_ns;
            self.stats.steps += 1;
            self.happen(next.event);
        }
        self.stats.messages = self.ledger.len() as u64;
        Outcome { hash: self.trace.hash(), stats: self.stats, violation: self.violation.take() }
    }

    /// The trace, to print after a violation.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The knobs that the seed drew.
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::EndTurn { life, shard } if life == self.life => self.end_turn(shard),
            Event::Written { life, shard, id, lsn } if life == self.life => {
                self.written(shard, id, lsn);
            }
            Event::Read { life, shard, conn, lsn, bytes } if life == self.life => {
                self.read_done(shard, conn, lsn, bytes.as_deref());
            }
            Event::ReadLate { life, shard, conn, lsn, len } if life == self.life => {
                let bytes = self.read_disk(shard, lsn, len);
                self.read_done(shard, conn, lsn, Some(&bytes));
            }
            Event::Survey { life, shard, lsn, len } if life == self.life => {
                let bytes = (!self.read_fails(shard, lsn)).then(|| self.read_disk(shard, lsn, len));
                self.notice(shard, Input::Surveyed { lsn, bytes: bytes.as_deref() });
            }
            Event::Slice { life, shard } if life == self.life => self.write_slice(shard),
            Event::Prepared { life, shard } if life == self.life => self.prepared(shard),
            Event::Parcel { life, from, to } if life == self.life => self.parcel(from, to),
            Event::Tick { life } if life == self.life => self.tick(),
            Event::Crash { life } if life == self.life => self.crash(),
            Event::EndTurn { .. }
            | Event::Written { .. }
            | Event::Read { .. }
            | Event::ReadLate { .. }
            | Event::Survey { .. }
            | Event::Slice { .. }
            | Event::Prepared { .. }
            | Event::Parcel { .. }
            | Event::Tick { .. }
            | Event::Crash { .. } => {} // of a life that is over
            Event::Arrive { link, to } => self.arrive(link, to),
            Event::Up { link, bytes } => self.up(link, &bytes),
            Event::Down { link, bytes } => self.down(link, &bytes),
            Event::End { link } => self.end(link),
            Event::Gone { link } => self.gone(link),
            Event::Drained { link, bytes, deliveries } => self.drained(link, bytes, deliveries),
            Event::Wake { device } => self.wake(device),
            Event::Chaos => self.chaos(),
            Event::Restart => self.boot(),
        }
    }

    /// Ends the faults when their time is over, and the world when everything
    /// has settled.
    fn is_over(&mut self) -> bool {
        let Some(since) = self.quiet_since else {
            if self.now_ns > self.knobs.run_ns {
                self.quiet_since = Some(self.now_ns);
                self.calm();
            }
            return false;
        };
        if self.stats.steps.is_multiple_of(32) && self.has_settled() {
            self.judge();
            return true;
        }
        let may_put_off = self.knobs.logins_per_second > 0;
        let ns_max = if may_put_off { SETTLE_PUT_OFF_NS_MAX } else { SETTLE_NS_MAX };
        if self.now_ns > since + ns_max || self.stats.steps > STEPS_MAX {
            let waiting = self.what_waits();
            self.violate(format!("something waits for ever: {waiting}"));
        }
        false
    }

    /// Something that must not be.
    pub(crate) fn violate(&mut self, what: String) {
        self.note("VIOLATION", [0; 4]);
        self.violation.get_or_insert(what);
    }

    /// The violation of an error, if it is one.
    pub(crate) fn require(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violate(what);
        }
    }

    pub(crate) fn note(&mut self, what: &'static str, args: [u64; 4]) {
        self.trace.note(self.now_ns, what, args);
    }

    /// Lets something happen after so many nanoseconds.
    pub(crate) fn after(&mut self, delay_ns: u64, event: Event) {
        self.at(self.now_ns + delay_ns, event);
    }

    pub(crate) fn at(&mut self, at_ns: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled { at_ns, number: self.scheduled, event });
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet_since.is_some()
    }

    /// The clock as a turn reads it.
    pub(crate) fn now(&self) -> Now {
        let wall_ms = (WALL_MS + self.now_ns / 1_000_000) as i64 + self.wall_offset_ms;
        Now { mono_ns: self.now_ns, wall_ms: wall_ms as u64 }
    }

    pub(crate) fn jump_clock(&mut self) {
        self.wall_offset_ms += self.chance.within(0, 60_000) as i64 - 30_000;
        self.note("clock jumps", [self.wall_offset_ms as u64, 0, 0, 0]);
    }

    pub(crate) fn pass_hours(&mut self) {
        self.wall_offset_ms += self.store_chance.within(1, 3) as i64 * 3_600_000;
        self.note("hours pass", [self.wall_offset_ms as u64, 0, 0, 0]);
    }
}
