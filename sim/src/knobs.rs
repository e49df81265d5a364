//! The knobs of one world, drawn from its seed.
//!
//! Swarm testing: not every fault in every world. A world without crashes runs
//! long enough to show what a crash would hide, and tiny sizes bring every
//! edge near.

use wal::{BLOCK, LogOptions};

use crate::chance::Chance;
use crate::filling::Filling;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// See the module. Times are nanoseconds, shares are per mille.
#[derive(Clone, Debug)]
pub struct Knobs {
    pub(crate) shards: u16,
    pub(crate) users: u16,
    pub(crate) devices_max: u64,
    pub(crate) v1_devices: u32,
    pub(crate) log: LogOptions,
    pub(crate) inbox_messages_max: usize,
    pub(crate) ring_parcels: usize,

    /// How long faults and traffic last before everything must settle.
    pub(crate) run_ns: u64,
    pub(crate) wake_ns: u64,
    pub(crate) net_ns: u64,
    pub(crate) mesh_ns: u64,
    pub(crate) disk_ns: u64,
    pub(crate) read_ns: u64,
    /// How long inputs gather before a turn ends; 0: each input is a turn.
    pub(crate) turn_ns: u64,
    pub(crate) drain_ns: u64,

    pub(crate) sends: u64,
    pub(crate) body_grain: usize,
    pub(crate) body_grains: u64,
    pub(crate) best_effort: u32,
    pub(crate) too_large: u32,
    pub(crate) expires: u32,
    pub(crate) batch_entries: u64,
    pub(crate) window_max: u64,

    pub(crate) crash: u32,
    /// A restart is followed by the next crash after a few writes.
    pub(crate) relapse: u32,
    pub(crate) garbage_sectors: u32,
    pub(crate) write_fails: u32,
    pub(crate) disconnect: u32,
    pub(crate) half_open: u32,
    pub(crate) takeover: u32,
    pub(crate) long_absence: u32,
    pub(crate) never_acks: u32,
    pub(crate) clock_jump: u32,
    pub(crate) storage_full: u32,
    pub(crate) split: u32,
    pub(crate) stranger: u32,
    pub(crate) drain: u32,

    /// Snapshots are taken and segments cleaned; see [`STORE_FROM`].
    pub(crate) stores: bool,
    /// A snapshot is begun now and then, due or not.
    pub(crate) snapshot: u32,
    pub(crate) slice_bytes: usize,
    pub(crate) slice_ns: u64,
    pub(crate) snapshot_fails: u32,
    /// A bit of the newest snapshot flips at a crash.
    pub(crate) rot: u32,
    /// The wall clock moves on by hours.
    pub(crate) hours: u32,
    /// Logins that a shard takes in a second; 0 for no bound.
    pub(crate) logins_per_second: u32,
    /// What a turn measures calls for some level.
    pub(crate) pressure: u32,

    /// A start asks for another number of shards; see [`RESIZE_FROM`].
    pub(crate) resize: u32,
    /// The operator restarts the server, to that end.
    pub(crate) restart: u32,
    /// The server dies while it rewrites its directory.
    pub(crate) resize_dies: u32,

    /// A write arrives, or part of it, and its sync fails; see [`FAULTS_FROM`].
    pub(crate) sync_fails: u32,
    /// The volume has place for so many segments of each shard; 0 for no bound.
    pub(crate) segments_max: u64,
    /// Others fill the volume, or leave it, now and then.
    pub(crate) others_write: u32,
    /// What found no space is tried again after this long.
    pub(crate) space_retry_ns: u64,
    /// At the end there is only a little more space.
    pub(crate) stays_tight: bool,
    /// Durable bytes rot while the server is down.
    pub(crate) decay: u32,
    /// Durable bytes rot while it is up.
    pub(crate) decay_awake: u32,
    /// They do at some time in this world.
    pub(crate) may_decay: bool,

    /// A read of the log fails, though its bytes are good; see [`READS_FROM`].
    pub(crate) read_fails: u32,

    /// Appends gather for a commit; so many turns end without a rest. 0: each
    /// turn commits; see [`GATHER_FROM`].
    pub(crate) busy: u32,

    /// A repair dies in the middle of a write; see [`TEAR_FROM`].
    pub(crate) repair_tears: u32,

    /// A crash may bring back the snapshot that was deleted last; see
    /// [`RETURN_FROM`].
    pub(crate) snapshots_return: bool,

    /// What rots may not be readable at all, or be cut off; see [`REFUSE_FROM`].
    pub(crate) refuses: bool,

    /// How long a log rests before it is vouched for; see [`VOUCH_FROM`].
    pub(crate) vouch_after_ms: u64,

    /// Space is left for snapshots; see [`RESERVE_FROM`].
    pub(crate) reserves: bool,
    /// How the first version of the server fills segments; see [`ZERO_FROM`] and
    /// [`PATTERN_FROM`].
    pub(crate) filling: Filling,
    /// A start is one of a later version; see [`UPGRADE_FROM`].
    pub(crate) upgrade: u32,

    /// Segments get each other's names while the server is down, and one of them a
    /// head of a newer format; see [`NAMES_FROM`].
    pub(crate) misnames: u32,
    pub(crate) newer: u32,

    /// Nothing goes wrong, so that the size of the directory has its bound; see
    /// [`STEADY_PER`].
    pub(crate) is_steady: bool,
}

/// Seeds below this one have neither snapshots nor cleaning: the seeds that the
/// tests keep, because they once noticed a defect, live on as they did.
pub(crate) const STORE_FROM: u64 = 1200;
/// Below this one the number of shards stays what it is, for the same reason.
pub(crate) const RESIZE_FROM: u64 = 3_000_000;
/// Below this one a sync does not fail by itself, and there is always space, for
/// the same reason.
pub(crate) const FAULTS_FROM: u64 = 6_000_000;
/// Below this one no read fails of good bytes, for the same reason.
pub(crate) const READS_FROM: u64 = 7_000_000;
/// Below this one each turn commits what it has appended, for the same reason.
pub(crate) const GATHER_FROM: u64 = 8_000_000;
/// Below this one a repair dies between its steps only, for the same reason.
pub(crate) const TEAR_FROM: u64 = 10_000_000;
/// Below this one a snapshot that was deleted stays so, for the same reason; from
/// it on the writes of repairs are torn in every other world only.
pub(crate) const RETURN_FROM: u64 = 11_000_000;
/// Below this one every byte of a segment can be read, for the same reason.
pub(crate) const REFUSE_FROM: u64 = 12_000_000;
/// Below this one a log is vouched for after a minute of rest, which next to none
/// has, for the same reason.
pub(crate) const VOUCH_FROM: u64 = 14_000_000;
/// Below this one what a torn tail has left stays where it is, for the same reason;
/// from it on in every other world only, as in segments of older formats.
pub(crate) const ZERO_FROM: u64 = 15_000_000;
/// Below this one only disks on which it stays may leave garbage in a sector, for
/// the same reason: on the others that is damage, and somebody has to repair it.
pub(crate) const GARBAGE_FROM: u64 = 16_000_000;
/// Below this one a log takes a volume to its last bytes, for the same reason.
pub(crate) const RESERVE_FROM: u64 = 16_000_000;
/// Below this one every file is what its name says, for the same reason.
pub(crate) const NAMES_FROM: u64 = 17_000_000;
/// Below this one segments are filled with zeroes, for the same reason; from it on
/// those in which that tells something are not.
pub(crate) const PATTERN_FROM: u64 = 19_000_000;
/// Below this one a server keeps its version, for the same reason.
pub(crate) const UPGRADE_FROM: u64 = 20_000_000;
/// One of so many seeds from [`RESIZE_FROM`] on is steady.
const STEADY_PER: u64 = 32;

impl Knobs {
    /// The knobs of a seed.
    pub(crate) fn draw(seed: u64, chance: &mut Chance) -> Knobs {
        // A stream of its own, for the same reason.
        let store = &mut Chance::new(!seed);
        let resize = &mut Chance::new(seed.rotate_left(40));
        let resizes = seed >= RESIZE_FROM;
        let fault = &mut Chance::new(seed.rotate_left(24));
        let fails = seed >= FAULTS_FROM;
        let tears = seed >= TEAR_FROM && (seed < RETURN_FROM || !seed.is_multiple_of(2));
        let body_grain = chance.pick(&[1, 64, 512, 512]);
        let body_bytes_max = chance.pick(&[64, 600, 3000]);
        let is_bounded = fails && fault.below(3) == 0;
        let decay = if fails { rarely(fault, 900) } else { 0 };
        // A stream of its own: it came later.
        let decay_awake = if fails { rarely(&mut Chance::new(seed.rotate_left(8)), 8) } else { 0 };
        let read = &mut Chance::new(seed.rotate_left(56));
        let read_fails = if seed >= READS_FROM { some(read, 300) } else { 0 };
        let gather = &mut Chance::new(!seed.rotate_left(40));
        let busy = if seed >= GATHER_FROM { gather.within(1, 900) as u32 } else { 0 };
        let vouch = &mut Chance::new(!seed.rotate_left(24));
        let vouch_after_ms =
            if seed >= VOUCH_FROM { vouch.pick(&[0, 100, 1000, 60_000]) } else { 60_000 };
        let names = &mut Chance::new(!seed.rotate_left(8));
        let has_names = seed >= NAMES_FROM;
        let knobs = Knobs {
            shards: chance.within(1, 4) as u16,
            users: chance.within(2, 6) as u16,
            devices_max: chance.pick(&[1, 1, 2, 3]),
            v1_devices: chance.pick(&[0, 150, 300, 1000]),
            log: log_options(chance),
            inbox_messages_max: chance.pick(&[1_000_000, 1_000_000, 1_000_000, 3, 20]),
            ring_parcels: chance.pick(&[1, 2, 16]),

            run_ns: chance.within(500, 3000) * MS,
            wake_ns: chance.pick(&[10 * MS, 30 * MS, 100 * MS]),
            net_ns: chance.pick(&[20 * US, 200 * US, 5 * MS]),
            mesh_ns: chance.pick(&[US, 30 * US, 2 * MS]),
            disk_ns: chance.pick(&[80 * US, 500 * US, 10 * MS]),
            read_ns: chance.pick(&[50 * US, 5 * MS]),
            turn_ns: chance.pick(&[0, 5 * US, 50 * US, MS]),
            drain_ns: chance.pick(&[10 * US, 10 * US, 20 * MS]),

            sends: chance.pick(&[1, 2, 6]),
            body_grain,
            body_grains: (body_bytes_max / body_grain).max(1) as u64,
            best_effort: some(chance, 500),
            too_large: rarely(chance, 20),
            expires: rarely(chance, 200),
            batch_entries: chance.pick(&[2, 2, 10, 60]),
            window_max: chance.pick(&[1, 3, 16, 256]),

            crash: some(chance, 30),
            relapse: some(chance, 400),
            garbage_sectors: rarely(chance, 200),
            write_fails: rarely(chance, 10),
            disconnect: some(chance, 60),
            half_open: some(chance, 300),
            takeover: some(chance, 40),
            long_absence: some(chance, 30),
            never_acks: rarely(chance, 300),
            clock_jump: rarely(chance, 300),
            storage_full: rarely(chance, 150),
            split: some(chance, 300),
            stranger: rarely(chance, 100),
            drain: rarely(chance, 5),

            stores: seed >= STORE_FROM,
            snapshot: some(store, 400),
            slice_bytes: store.pick(&[1, 150, 1000, shard::snapshot::SLICE_BYTES]),
            slice_ns: store.pick(&[US, 50 * US, 2 * MS]),
            snapshot_fails: rarely(store, 20),
            rot: some(store, 500),
            hours: rarely(store, 30),
            logins_per_second: if seed < STORE_FROM { 0 } else { store.pick(&[0, 0, 20, 200]) },
            pressure: if seed < STORE_FROM { 0 } else { rarely(store, 300) },

            resize: if resizes { resize.pick(&[0, 300, 700, 1000]) } else { 0 },
            restart: if resizes { some(resize, 150) } else { 0 },
            resize_dies: some(resize, 700),

            sync_fails: if fails { rarely(fault, 20) } else { 0 },
            segments_max: if is_bounded { fault.pick(&[3, 4, 6, 12]) } else { 0 },
            others_write: if is_bounded { some(fault, 300) } else { 0 },
            space_retry_ns: fault.pick(&[50, 200, 1000]) * MS,
            stays_tight: fault.below(2) == 0,
            decay,
            decay_awake,
            may_decay: decay + decay_awake > 0,

            read_fails,

            busy,

            // Where none is torn, one that goes on at the log's end may die behind
            // its write, too; see `damage::Tears`.
            repair_tears: if tears { 200 } else { 0 },

            snapshots_return: seed >= RETURN_FROM,

            refuses: seed >= REFUSE_FROM,

            vouch_after_ms,

            reserves: seed >= RESERVE_FROM,

            filling: Filling::of_seed(seed),
            upgrade: 0,

            misnames: if has_names { rarely(names, 600) } else { 0 },
            newer: if has_names { rarely(names, 300) } else { 0 },

            is_steady: false,
        };
        // Only the volume itself says whether it is full.
        let storage_full = if is_bounded { 0 } else { knobs.storage_full };
        let tells = knobs.filling != Filling::Unknown;
        let garbage_sectors = if tells && seed < GARBAGE_FROM { 0 } else { knobs.garbage_sectors };
        let version = &mut Chance::new(!seed.rotate_left(48));
        let upgrades = seed >= UPGRADE_FROM && version.below(2) == 0;
        let (filling, upgrade) = if upgrades {
            (version.pick(&[Filling::Unknown, Filling::Zeroes]), version.within(1, 1000) as u32)
        } else {
            (knobs.filling, 0)
        };
        let may_decay = knobs.may_decay || (tells || upgrades) && garbage_sectors > 0;
        let knobs = Knobs { storage_full, garbage_sectors, may_decay, filling, upgrade, ..knobs };
        if resizes && seed.is_multiple_of(STEADY_PER) { knobs.steady(resize) } else { knobs }
    }

    /// Store and deliver for some seconds, at a pace at which a segment lasts
    /// longer than the snapshots that let go of it. People come and go.
    fn steady(self, chance: &mut Chance) -> Knobs {
        let tail_bytes = 64 * BLOCK;
        Knobs {
            users: self.users.max(4),
            log: LogOptions {
                tail_bytes,
                segment_bytes: tail_bytes as u64 * chance.pick(&[1, 2]),
                commit_bytes_max: tail_bytes,
                writes_in_flight_max: 2,
                pipeline_bytes: 4 * BLOCK,
            },
            inbox_messages_max: 1_000_000,
            run_ns: 8_000 * MS,
            wake_ns: chance.pick(&[30 * MS, 100 * MS]),
            net_ns: 200 * US,
            mesh_ns: 30 * US,
            disk_ns: chance.pick(&[80 * US, 500 * US]),
            read_ns: 50 * US,
            drain_ns: 10 * US,
            sends: 6,
            body_grain: 512,
            body_grains: 5,
            expires: 0,
            window_max: 256,
            crash: 0,
            relapse: 0,
            garbage_sectors: 0,
            write_fails: 0,
            never_acks: 0,
            clock_jump: 0,
            storage_full: 0,
            drain: 0,
            snapshot: 0,
            slice_bytes: shard::snapshot::SLICE_BYTES,
            slice_ns: 50 * US,
            snapshot_fails: 0,
            rot: 0,
            hours: 0,
            resize: 0,
            restart: 0,
            sync_fails: 0,
            segments_max: 0,
            decay: 0,
            decay_awake: 0,
            may_decay: false,
            read_fails: 0,
            misnames: 0,
            newer: 0,
            is_steady: true,
            ..self
        }
    }
}

/// On in three worlds of four.
fn some(chance: &mut Chance, most: u64) -> u32 {
    if chance.below(4) == 0 { 0 } else { chance.within(1, most) as u32 }
}

/// On in one world of four.
fn rarely(chance: &mut Chance, most: u64) -> u32 {
    if chance.below(4) == 0 { chance.within(1, most) as u32 } else { 0 }
}

fn log_options(chance: &mut Chance) -> LogOptions {
    let tail_blocks = chance.pick(&[4, 8, 16, 64]);
    let tail_bytes = tail_blocks * BLOCK;
    LogOptions {
        tail_bytes,
        segment_bytes: tail_bytes as u64 * chance.pick(&[1, 2, 4]),
        commit_bytes_max: chance.within(2, tail_blocks as u64) as usize * BLOCK,
        writes_in_flight_max: chance.pick(&[1, 2, 2, 2, 3]),
        pipeline_bytes: chance.pick(&[0, 0, BLOCK, 4 * BLOCK]),
    }
}
