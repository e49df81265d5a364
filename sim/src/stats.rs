//! How often what happened, in one world or in many: a fault that is never hit
//! shows nothing.

/// What was counted in one world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events that happened.
    pub steps: u64,
    /// Times the server died and came back.
    pub crashes: u64,
    /// Letters that clients wrote.
    pub messages: u64,
    /// Deliveries that clients received, repeated ones included.
    pub deliveries: u64,
    /// Writes that failed on purpose.
    pub failed_writes: u64,
    /// Syncs that failed, their writes being there or not.
    pub failed_syncs: u64,
    /// Reads of the log that failed although the bytes are good.
    pub failed_reads: u64,
    /// Records that set something aside, or that say that a device has it.
    pub aside: u64,
    /// Records by which it came back, their copies included.
    pub returned: u64,
    /// Times that a shard found no space for its next segment.
    pub full: u64,
    /// Times that it found some again.
    pub space_again: u64,
    /// Messages refused meanwhile.
    pub refused_when_full: u64,
    /// Acknowledgements logged meanwhile.
    pub acks_when_full: u64,
    /// Turns that left it to a later one to commit.
    pub gathered: u64,
    /// Snapshots that found no space.
    pub snapshots_without_space: u64,
    /// Times that nothing but more space could help.
    pub rescues: u64,
    /// Sectors in which durable bytes rotted.
    pub decayed: u64,
    /// Places in segments that could not be read any more.
    pub holes: u64,
    /// Manifests in which a bit flipped.
    pub manifests_rotten: u64,
    /// Times that segments got other names.
    pub misnamed: u64,
    /// Exchanges of two names in repairs.
    pub renamed: u64,
    /// Times that a newer version had written one.
    pub newer: u64,
    /// Times that a shard came across them while it was up.
    pub told_damaged: u64,
    /// Starts refused because of them.
    pub refused_for_damage: u64,
    /// Log ends that rotted and were cut.
    pub cut_by_rot: u64,
    /// Shards repaired.
    pub repairs: u64,
    /// Of them died in the middle of a write.
    pub torn_repairs: u64,
    /// Ranges that these told to be lost.
    pub lost_ranges: u64,
    /// Repairs without any snapshot and without the whole log.
    pub forgotten: u64,
    /// Letters that damage took.
    pub excused: u64,
    /// Starts that found none.
    pub starts_refused: u64,
    /// Reads of the log for devices that catch up.
    pub reads: u64,
    /// Inputs that found no room.
    pub blocked: u64,
    /// Logins that took over.
    pub takeovers: u64,
    /// Numbers that were given up with SKIP.
    pub skips: u64,
    /// Numbered letters of v1 that a later one came before.
    pub late: u64,
    /// Devices that a server with older data had begin again.
    pub started_over: u64,
    /// Snapshots that got their name.
    pub snapshots: u64,
    /// Starts from a snapshot.
    pub loads: u64,
    /// Snapshots in which a bit flipped.
    pub rotten: u64,
    /// Deleted ones that a crash brought back.
    pub snapshots_back: u64,
    /// Messages copied by cleaning.
    pub moved: u64,
    /// Segments deleted.
    pub deleted: u64,
    /// Times that another number of shards came to count.
    pub reshardings: u64,
    /// Times that the server died on the way.
    pub reshard_deaths: u64,
    /// Messages that came along.
    pub carried: u64,
    /// Starts of a later version.
    pub upgrades: u64,
}

impl Stats {
    /// Adds what another world counted.
    pub fn add(&mut self, other: &Stats) {
        self.steps += other.steps;
        self.crashes += other.crashes;
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.failed_writes += other.failed_writes;
        self.failed_syncs += other.failed_syncs;
        self.failed_reads += other.failed_reads;
        self.aside += other.aside;
        self.returned += other.returned;
        self.full += other.full;
        self.space_again += other.space_again;
        self.refused_when_full += other.refused_when_full;
        self.acks_when_full += other.acks_when_full;
        self.gathered += other.gathered;
        self.snapshots_without_space += other.snapshots_without_space;
        self.rescues += other.rescues;
        self.decayed += other.decayed;
        self.holes += other.holes;
        self.manifests_rotten += other.manifests_rotten;
        self.misnamed += other.misnamed;
        self.renamed += other.renamed;
        self.newer += other.newer;
        self.told_damaged += other.told_damaged;
        self.refused_for_damage += other.refused_for_damage;
        self.cut_by_rot += other.cut_by_rot;
        self.repairs += other.repairs;
        self.torn_repairs += other.torn_repairs;
        self.lost_ranges += other.lost_ranges;
        self.forgotten += other.forgotten;
        self.excused += other.excused;
        self.starts_refused += other.starts_refused;
        self.reads += other.reads;
        self.blocked += other.blocked;
        self.takeovers += other.takeovers;
        self.skips += other.skips;
        self.late += other.late;
        self.started_over += other.started_over;
        self.snapshots += other.snapshots;
        self.loads += other.loads;
        self.rotten += other.rotten;
        self.snapshots_back += other.snapshots_back;
        self.moved += other.moved;
        self.deleted += other.deleted;
        self.reshardings += other.reshardings;
        self.reshard_deaths += other.reshard_deaths;
        self.carried += other.carried;
        self.upgrades += other.upgrades;
    }
}
