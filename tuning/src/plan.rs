//! From a machine and the operator's wishes to every size the server uses.
//!
//! [`plan`] is a pure function: same machine, same wishes, same plan. Each
//! choice carries its reason; everything that stops the server from more is a
//! [`Limit`] with the commands that lift it; what makes a start senseless is a
//! [`Stop`]. Sizes are chosen for a *core* and divided when several shards
//! share one, so that `--shards 51` on two cores is a working server and not
//! 51 servers' worth of memory.

mod capacity;
mod limits;

use serde::Serialize;

use crate::probe::Machine;
use crate::quantity::{bytes, count};

/// Most shards of one process: every ordered pair of them has a ring.
pub const SHARDS_MAX: u16 = 256;
/// Memory below which no plan holds.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Smallest log tail: it must hold one commit of the largest size.
pub const TAIL_BYTES_MIN: u64 = 1 << 20;
/// Smallest log segment.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Largest log segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// One buffer for reading the log back.
pub const READ_BUFFER_BYTES: u64 = 320 << 10;
/// How many of them one shard makes, at most.
pub const READ_BUFFERS: u64 = 8;
/// User-space memory of one idle logged-in connection, upper estimate: its
/// slab entry, its session, its user.
pub const CONN_USER_BYTES: u64 = 400;
/// Kernel memory of one idle TCP connection on the server's side: socket,
/// descriptor, a multishot poll. Half of the slab's slope with both ends on one
/// machine, 3.9 to 5.2 KB by processor and kernel (docs/CAPACITY.md).
pub const CONN_KERNEL_BYTES: u64 = 5_200;

/// One message waiting in an inbox: its 16 bytes of index, and what the index
/// leaves free while it grows.
pub const WAITING_BYTES: u64 = 24;
/// One pair of a sending device and an inbox: its 32 bytes in a hash table, and
/// what such a table leaves free on average.
pub const PAIR_BYTES: u64 = 46;
/// One known user, without messages.
pub const USER_BYTES: u64 = 128;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// One slice of the receive arena, with what keeps it off the next one's lines.
const SLICE_BYTES: u64 = 16 * KIB + 320;
/// Upper estimate of one message between shards, its share of the ring.
const MESH_SLOT_BYTES: u64 = 128;
/// Address space of a process before its first shard: the program, its threads
/// for signals, log and admin with their arenas (measured 354 MiB, see below).
const ADDRESS_SPACE_BASE: u64 = 384 * MIB;
/// Address space that one shard takes beside the segment that it reads back at
/// once: stacks and arenas of its two threads (measured 76 MiB), touched or not.
const ADDRESS_SPACE_PER_SHARD: u64 = 80 * MIB;
/// What a segment's file has beside the log's bytes.
const SEGMENT_HEADER_BYTES: u64 = 4 * KIB;
/// Stack, executor, tables and counters of one shard, without its buffers.
const SHARD_BASE_BYTES: u64 = 2 * MIB;
/// Most memory for the rings between shards: beyond it longer rings only hide
/// that a shard is too slow.
const MESH_BYTES_MAX: u64 = 256 * MIB;
/// Memory without which one more shard is not worth having.
const SHARD_BYTES_MIN: u64 = 16 * MIB;

/// What the configuration fixed; `None` leaves the choice to the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// Number of shards, 1 to [`SHARDS_MAX`].
    pub shards: Option<u16>,
    /// Memory for the whole process, kernel side of its connections included.
    pub memory_bytes: Option<u64>,
    /// Connections the whole process must be able to hold.
    pub conns_max: Option<u64>,
    /// The log's window in memory, per shard; a power of two.
    pub tail_bytes: Option<u64>,
    /// Size of one log segment; a multiple of the tail.
    pub segment_bytes: Option<u64>,
    /// Connections in the rings' own tables instead of the process's.
    pub direct_descriptors: Option<bool>,
    /// What the data directory was written with, if there is one.
    pub written: Option<Written>,
}

/// What an existing data directory has decided: it keeps this for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its number of shards. A wish for another one is planned for; the
    /// directory itself refuses it.
    pub shards: u16,
    /// The size of its log segments, whatever is wished.
    pub segment_bytes: u64,
}

/// Every size the server uses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Shards, each with its thread.
    pub shards: u16,
    /// Number of the core on which each shard is pinned.
    pub core_of_shard: Vec<usize>,
    /// Whether shards stay on their cores. Not when a control group's quota
    /// gives less time than there are cores: every container on the host would
    /// pin itself to the same first ones.
    pub pin: bool,
    /// Memory the process may use, kernel side of its connections included.
    pub memory_bytes: u64,
    /// Memory that is taken at boot, whatever the load.
    pub fixed_bytes: u64,
    /// Entries of each hot ring's submission queue.
    pub ring_entries: u32,
    /// 16 KiB slices in each shard's receive arena.
    pub arena_slices: usize,
    /// `io_memory` of each shard's executor.
    pub executor_memory_bytes: usize,
    /// The log's window in memory, per shard; a power of two.
    pub tail_bytes: usize,
    /// Size of one log segment of a new data directory; a multiple of the tail.
    pub segment_bytes: u64,
    /// Slots of the ring between each ordered pair of shards.
    pub mesh_capacity: usize,
    /// Connections live in the rings' own tables.
    pub direct_descriptors: bool,
    /// Connections that the whole process promises to hold. Chance spreads
    /// them unevenly, so this is less than the sum over the shards.
    pub conns_max: usize,
    /// Connections one shard accepts before it refuses more.
    pub conns_max_per_shard: usize,
    /// Bytes of half-received frames in the whole process.
    pub partial_bytes_max_total: usize,
    /// Bytes of half-received frames in one shard.
    pub partial_bytes_max_per_shard: usize,
    /// Unsent bytes after which a connection is cut as a slow reader.
    pub send_buffer_bytes_max: usize,
    /// Unsent bytes above which a connection is not read.
    pub send_pause_bytes: usize,
    /// Unsent bytes of all connections of one shard together, above which those
    /// that have more than a little are cut.
    pub unsent_bytes_max_per_shard: usize,
    /// Users that one shard keeps known, [`USER_BYTES`] each.
    pub users_max_per_shard: usize,
    /// Messages waiting in all inboxes of one shard, [`WAITING_BYTES`] each.
    pub waiting_messages_max_per_shard: usize,
    /// Pairs of a sending device and an inbox that one shard remembers,
    /// [`PAIR_BYTES`] each.
    pub pairs_max_per_shard: usize,
    /// The soft limit of descriptors to raise to.
    pub nofile_target: u64,
    /// What was chosen and why, in the order of choosing.
    pub reasons: Vec<Reason>,
    /// What stops this server from more.
    pub limits: Vec<Limit>,
    /// What stops it from starting at all; empty when the plan can run.
    pub stops: Vec<Stop>,
}

/// One choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What was chosen, e.g. `shards`.
    pub what: String,
    /// The value as a person reads it.
    pub chosen: String,
    /// Why this value.
    pub because: String,
}

/// One thing that holds the server back while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What is limited and by what.
    pub what: String,
    /// Where it holds, as a person reads it.
    pub holds_at: String,
    /// Commands or settings that lift it, one per line of a terminal.
    pub lift: Vec<String>,
}

/// One thing that makes a start senseless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// A sentence for the operator.
    pub sentence: String,
    /// Commands or settings that lift it.
    pub lift: Vec<String>,
}

/// Chooses every size for this machine.
pub fn plan(machine: &Machine, wishes: &Wishes) -> Plan {
    let mut draft = Draft::new(machine, wishes);
    draft.choose();
    draft.note_limits();
    draft.note_stops();
    draft.check();
    draft.plan
}

/// A plan while it is made, with what it is made from.
struct Draft<'a> {
    machine: &'a Machine,
    wishes: &'a Wishes,
    /// Shards on the fullest core, rounded up to a power of two: what a core's
    /// sizes are divided by.
    crowd: u64,
    plan: Plan,
}

impl<'a> Draft<'a> {
    fn new(machine: &'a Machine, wishes: &'a Wishes) -> Draft<'a> {
        let plan = Plan {
            shards: 1,
            core_of_shard: Vec::new(),
            pin: true,
            memory_bytes: 0,
            fixed_bytes: 0,
            ring_entries: 0,
            arena_slices: 0,
            executor_memory_bytes: (64 * KIB) as usize,
            tail_bytes: 0,
            segment_bytes: 0,
            mesh_capacity: 0,
            direct_descriptors: false,
            conns_max: 0,
            conns_max_per_shard: 0,
            partial_bytes_max_total: 0,
            partial_bytes_max_per_shard: 0,
            send_buffer_bytes_max: MIB as usize,
            send_pause_bytes: (64 * KIB) as usize,
            unsent_bytes_max_per_shard: 0,
            users_max_per_shard: 0,
            waiting_messages_max_per_shard: 0,
            pairs_max_per_shard: 0,
            nofile_target: machine.nofile_hard,
            reasons: Vec::new(),
            limits: Vec::new(),
            stops: Vec::new(),
        };
        Draft { machine, wishes, crowd: 1, plan }
    }

    /// Every size, in the order in which one depends on another.
    fn choose(&mut self) {
        self.choose_memory();
        self.choose_shards();
        self.choose_buffers();
        self.choose_log();
        self.choose_mesh();
        self.add_up_fixed();
        self.choose_traffic();
        self.choose_connections();
        self.choose_tables();
    }

    fn because(&mut self, what: &str, chosen: impl Into<String>, because: impl Into<String>) {
        self.plan.reasons.push(Reason {
            what: what.to_owned(),
            chosen: chosen.into(),
            because: because.into(),
        });
    }

    fn limit(&mut self, what: impl Into<String>, holds_at: impl Into<String>, lift: Vec<String>) {
        self.plan.limits.push(Limit { what: what.into(), holds_at: holds_at.into(), lift });
    }

    fn stop(&mut self, sentence: impl Into<String>, lift: Vec<String>) {
        self.plan.stops.push(Stop { sentence: sentence.into(), lift });
    }

    fn choose_memory(&mut self) {
        let there = self.machine.memory_bytes();
        let (chosen, because) = match self.wishes.memory_bytes {
            Some(wish) => (wish, "set by memory_bytes".to_owned()),
            None if there < self.machine.ram_bytes && there == self.machine.address_space / 2 => (
                there / 5 * 4,
                format!(
                    "four fifths of half the address space of {} that `ulimit -v` allows",
                    bytes(self.machine.address_space)
                ),
            ),
            None if self
                .machine
                .cgroup_memory_bytes
                .is_some_and(|allowed| allowed < self.machine.ram_bytes) =>
            {
                (there / 5 * 4, format!("four fifths of the control group's {}", bytes(there)))
            }
            None => (there / 5 * 4, format!("four fifths of the machine's {}", bytes(there))),
        };
        self.plan.memory_bytes = chosen;
        self.because("memory", bytes(chosen), because);
    }

    fn choose_shards(&mut self) {
        let cores = self.machine.cores.len().max(1) as u64;
        let quota = self.machine.cgroup_cpus.map_or(u64::MAX, |cpus| cpus.floor().max(1.0) as u64);
        let fit_memory = (self.plan.memory_bytes / 2 / SHARD_BYTES_MIN).max(1);
        let most = u64::from(SHARDS_MAX);
        let written = self.wishes.written.map(|written| written.shards);
        let chosen = match self.wishes.shards.or(written) {
            Some(wish) => u64::from(wish).clamp(1, most),
            None => cores.min(quota).min(fit_memory).min(most),
        };
        let because = match self.wishes.shards {
            Some(wish) if written.is_some_and(|written| written != wish) => format!(
                "set by shards; the data directory was written for {} and is rewritten at the start",
                written.unwrap_or(wish)
            ),
            Some(_) if chosen > cores => {
                format!("set by shards; {} share a core", chosen.div_ceil(cores))
            }
            Some(_) => "set by shards".to_owned(),
            None if written.is_some() => {
                "the data directory was written for as many and keeps them".to_owned()
            }
            None if chosen == cores => "one for each core this process may use".to_owned(),
            None if chosen == quota => {
                "the control group's CPU quota allows no more at once".to_owned()
            }
            None if chosen == fit_memory => {
                "more would leave too little memory for each".to_owned()
            }
            None => "the most that one process runs".to_owned(),
        };
        self.plan.shards = chosen as u16;
        self.plan.core_of_shard = (0..chosen).map(|shard| self.core(shard)).collect();
        // A quota makes cores slower, not fewer; what counts is who shares one.
        self.crowd = chosen.div_ceil(cores).next_power_of_two();
        self.because("shards", count(chosen), because);
        self.plan.pin = self.machine.cgroup_cpus.is_none_or(|cpus| cpus >= cores as f64);
        let (pin, because) = if self.plan.pin {
            ("yes", "each shard to its core: nobody else's work moves a shard")
        } else {
            ("no", "with a CPU quota, every container of the host would choose the same cores")
        };
        self.because("pinned", pin, because);
    }

    fn core(&self, shard: u64) -> usize {
        let cores = &self.machine.cores;
        if cores.is_empty() { 0 } else { cores[shard as usize % cores.len()] }
    }

    fn choose_buffers(&mut self) {
        let small = self.plan.memory_bytes / u64::from(self.plan.shards) < 128 * MIB;
        let (entries, slices) = if small { (1024, 128) } else { (4096, 256) };
        self.plan.ring_entries = (entries / self.crowd).max(256) as u32;
        self.plan.arena_slices = (slices / self.crowd).max(32) as usize;
        let arena = bytes(self.plan.arena_slices as u64 * SLICE_BYTES);
        let because = match (self.crowd, small) {
            (1, false) => {
                "a turn consumes what it received, so a few hundred slices serve every connection"
            }
            (1, true) => "small, because memory is",
            _ => "divided, because shards share a core",
        };
        self.because("receive arena per shard", arena, because);
        self.because(
            "ring entries",
            count(u64::from(self.plan.ring_entries)),
            because_of_ring(self.crowd, small),
        );
    }

    fn choose_log(&mut self) {
        let per_core = self.plan.memory_bytes / u64::from(self.plan.shards) * self.crowd;
        let wanted = self.wishes.tail_bytes.unwrap_or_else(|| {
            let share = floor_power_of_two(per_core / 16).clamp(TAIL_BYTES_MIN, 8 * MIB);
            (share / self.crowd).max(TAIL_BYTES_MIN)
        });
        let tail = wanted.min(self.fixed_segment().map_or(u64::MAX, power_of_two_in));
        self.plan.tail_bytes = tail as usize;
        let because = match self.wishes.tail_bytes {
            Some(wish) if wish > tail => {
                "storage.tail_bytes is more, but tails must fill a segment exactly"
            }
            Some(_) => "set by storage.tail_bytes",
            None => "recent messages are delivered from it without reading the disk",
        };
        self.because("log tail per shard", bytes(tail), because);

        let (segment, because) = self.segment(tail);
        self.plan.segment_bytes = segment;
        self.because("log segment", bytes(segment), because);
    }

    /// The size of a segment, where the plan does not choose it.
    fn fixed_segment(&self) -> Option<u64> {
        self.wishes.written.map(|written| written.segment_bytes).or(self.wishes.segment_bytes)
    }

    /// Segments are filled before use, one ahead: many shards on a small disk must
    /// not fill it with what says nothing.
    fn segment(&self, tail: u64) -> (u64, &'static str) {
        if let Some(written) = self.wishes.written {
            return (written.segment_bytes, "the data directory's segments have this size");
        }
        if let Some(wish) = self.wishes.segment_bytes {
            return (wish, "set by storage.segment_bytes");
        }
        let least = (8 * MIB).max(tail);
        let crowded = (64 * MIB / self.crowd).max(least);
        let free = self.machine.disk.as_ref().map_or(u64::MAX, |disk| disk.free_bytes);
        let mut segment = crowded;
        while segment > least && segment.saturating_mul(2 * u64::from(self.plan.shards)) > free / 4
        {
            segment /= 2;
        }
        let because = match (segment < crowded, self.crowd) {
            (true, _) => "small, because little of the disk is free",
            (false, 1) => "filled ahead of need, so that a commit costs no file system journal",
            (false, _) => "divided, because shards share a core",
        };
        (segment, because)
    }

    fn choose_mesh(&mut self) {
        let shards = u64::from(self.plan.shards);
        let pairs = shards * (shards - 1);
        let share = (self.plan.memory_bytes / 64).min(MESH_BYTES_MAX);
        let slots = share.checked_div(pairs * MESH_SLOT_BYTES).unwrap_or(0);
        self.plan.mesh_capacity = floor_power_of_two(slots).clamp(64, 4096) as usize;
        if pairs > 0 {
            let because = format!(
                "{} ordered pairs of shards share at most a 64th of the memory",
                count(pairs)
            );
            self.because("mesh slots per pair", count(self.plan.mesh_capacity as u64), because);
        }
    }

    fn add_up_fixed(&mut self) {
        let plan = &self.plan;
        let shards = u64::from(plan.shards);
        let queues = u64::from(plan.ring_entries) * (64 + 2 * 16);
        let per_shard = SHARD_BASE_BYTES
            + plan.tail_bytes as u64
            + plan.arena_slices as u64 * SLICE_BYTES
            + READ_BUFFERS * READ_BUFFER_BYTES
            + plan.executor_memory_bytes as u64
            + queues;
        let mesh = shards * (shards - 1) * plan.mesh_capacity as u64 * MESH_SLOT_BYTES;
        self.plan.fixed_bytes = shards * per_shard + mesh;
        let because = format!("{} for each shard, {} for the mesh", bytes(per_shard), bytes(mesh));
        self.because("taken at boot", bytes(self.plan.fixed_bytes), because);
    }

    /// What connections may hold together while bytes are on their way.
    fn choose_traffic(&mut self) {
        let shards = u64::from(self.plan.shards);
        // A protocol-v1 batch may be a megabyte: a few of them must fit.
        let per_shard = (self.plan.memory_bytes / 16 / shards).clamp(4 * MIB, 256 * MIB);
        self.plan.partial_bytes_max_per_shard = per_shard as usize;
        self.plan.partial_bytes_max_total = (per_shard * shards) as usize;
        self.plan.unsent_bytes_max_per_shard = per_shard as usize;
        self.because(
            "bytes on their way",
            bytes(2 * per_shard * shards),
            "a sixteenth of the memory for half-received frames, as much for what is unsent",
        );
    }

    /// What is left after everything fixed, all half-received frames and all
    /// unsent bytes.
    fn free_memory(&self) -> u64 {
        let plan = &self.plan;
        let unsent = plan.unsent_bytes_max_per_shard as u64 * u64::from(plan.shards);
        let taken = plan.fixed_bytes + plan.partial_bytes_max_total as u64 + unsent;
        plan.memory_bytes.saturating_sub(taken)
    }

    /// Half of the free memory is for connections. Of the other half, users,
    /// what waits for them, and pairs take a quarter each; the last quarter is
    /// room to breathe.
    fn choose_tables(&mut self) {
        let shards = u64::from(self.plan.shards);
        let share = self.free_memory() / 8 / shards;
        self.plan.users_max_per_shard = (share / USER_BYTES) as usize;
        self.plan.waiting_messages_max_per_shard = (share / WAITING_BYTES) as usize;
        self.plan.pairs_max_per_shard = (share / PAIR_BYTES) as usize;
        let tables = [
            ("known users", USER_BYTES, "each"),
            ("waiting messages", WAITING_BYTES, "of index each"),
            ("remembered senders", PAIR_BYTES, "for each device and recipient,"),
        ];
        for (what, each, of) in tables {
            let because = format!("{each} bytes {of} from an eighth of the free memory");
            self.because(what, count(share / each * shards), because);
        }
    }

    /// What every plan keeps, whatever the machine: asserted, because a plan
    /// that breaks it would fail later and stranger.
    fn check(&self) {
        let plan = &self.plan;
        assert_eq!(plan.core_of_shard.len(), usize::from(plan.shards), "each shard has a core");
        assert!(plan.shards >= 1 && plan.shards <= SHARDS_MAX, "shards within bounds");
        assert!(plan.ring_entries.is_power_of_two(), "the kernel rounds ring sizes up");
        assert!(plan.mesh_capacity >= 1, "a ring holds something");
        if plan.stops.is_empty() {
            assert!(
                plan.tail_bytes >= 1 && plan.segment_bytes.is_multiple_of(plan.tail_bytes as u64),
                "tails fill a segment"
            );
            assert!(
                plan.conns_max >= 1
                    && plan.conns_max <= plan.conns_max_per_shard * usize::from(plan.shards)
            );
        }
    }
}

fn because_of_ring(crowd: u64, small: bool) -> &'static str {
    match (crowd, small) {
        (1, false) => "one turn of a busy core submits no more",
        (1, true) => "small, because memory is",
        _ => "divided, because shards share a core",
    }
}

/// The largest power of two that divides `n`, which is not 0.
fn power_of_two_in(n: u64) -> u64 {
    1 << n.trailing_zeros().min(63)
}

/// The largest power of two that is not above `n`; 0 stays 0.
fn floor_power_of_two(n: u64) -> u64 {
    n.checked_ilog2().map_or(0, |log| 1 << log)
}
