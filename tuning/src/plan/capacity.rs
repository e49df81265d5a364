//! How many connections: descriptors, tables, memory, whichever ends first.

use super::{CONN_KERNEL_BYTES, CONN_USER_BYTES, Draft};
use crate::quantity::{bytes, count};

/// The kernel's largest table of direct descriptors.
const TABLE_MAX: u64 = 1 << 20;
/// No process is planned for more connections than this.
const CONNS_MAX: u64 = 16 << 20;

/// What each resource would allow for the whole process, after headroom for
/// chance.
pub(super) struct Capacity {
    /// By the process's table of descriptors.
    pub(super) plain: Share,
    /// By the rings' own tables; `None` when this kernel cannot.
    pub(super) direct: Option<Share>,
    /// By memory.
    pub(super) memory: u64,
}

/// A resource that is divided among shards before anybody connects.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Connections one shard can hold.
    pub(super) per_shard: u64,
    /// Connections all of them hold for certain, although chance spreads them.
    pub(super) total: u64,
}

impl Share {
    fn new(per_shard: u64, shards: u64) -> Share {
        Share { per_shard, total: (per_shard - spread(per_shard, shards)) * shards }
    }
}

/// What chance adds to the fullest of several shards: hashing spreads n
/// connections with a deviation of about √n, and four of them happen to nobody.
fn spread(per_shard: u64, shards: u64) -> u64 {
    if shards == 1 { 0 } else { (4 * per_shard.isqrt()).min(per_shard / 2) }
}

/// Descriptors that are not connections: the three standard ones, rings, wake
/// and listen descriptors of each shard, and the log's segments, which are
/// more the longer the log is.
pub(super) fn reserved_descriptors(nofile: u64, shards: u64) -> u64 {
    64 + 32 * shards + (nofile / 10).min(8192)
}

/// The smallest hard limit of descriptors with which `conns` plain
/// connections fit.
pub(super) fn nofile_for(conns: u64, shards: u64) -> u64 {
    let fits = |nofile: u64, conns: u64| {
        let per_shard = nofile.saturating_sub(reserved_descriptors(nofile, shards)) / shards;
        Share::new(per_shard, shards).total >= conns
    };
    let conns = conns.min(CONNS_MAX);
    // A round number is what an operator types.
    let mut nofile = conns.max(1024).next_power_of_two();
    while !fits(nofile, conns) {
        nofile *= 2;
    }
    nofile
}

impl Draft<'_> {
    pub(super) fn capacity(&self) -> Capacity {
        let shards = u64::from(self.plan.shards);
        let nofile = self.machine.nofile_hard;
        let plain =
            nofile.saturating_sub(reserved_descriptors(nofile, shards)).min(CONNS_MAX) / shards;
        let direct = self
            .machine
            .ring
            .can_use_direct_descriptors()
            .then(|| Share::new(nofile.min(TABLE_MAX), shards));
        Capacity {
            plain: Share::new(plain, shards),
            direct,
            memory: (self.free_memory() / 2 / (CONN_USER_BYTES + CONN_KERNEL_BYTES)).min(CONNS_MAX),
        }
    }

    pub(super) fn choose_connections(&mut self) {
        let capacity = self.capacity();
        let direct = self.choose_descriptors(&capacity);
        let share = match capacity.direct {
            Some(share) if direct => share,
            _ => capacity.plain,
        };
        let fits = share.total.min(capacity.memory);
        let conns = self.wishes.conns_max.map_or(fits, |wish| wish.min(fits));
        let shards = u64::from(self.plan.shards);
        let even = conns.div_ceil(shards);
        let lot = if shards == 1 { even } else { even + 4 * even.isqrt() + 64 };
        self.plan.direct_descriptors = direct;
        self.plan.conns_max = conns as usize;
        self.plan.conns_max_per_shard = lot.min(share.per_shard).max(even) as usize;
        let because = if self.wishes.conns_max.is_some_and(|wish| wish <= fits) {
            "set by limits.conns_max".to_owned()
        } else if capacity.memory < share.total {
            format!(
                "half of the free memory at {} each, the kernel's part included",
                bytes(CONN_USER_BYTES + CONN_KERNEL_BYTES)
            )
        } else if direct {
            format!(
                "each ring's table may hold {} (RLIMIT_NOFILE)",
                count(self.machine.nofile_hard)
            )
        } else {
            format!(
                "RLIMIT_NOFILE is {}, files and chance subtracted",
                count(self.machine.nofile_hard)
            )
        };
        self.because("connections", count(conns), because);
    }

    /// Plain descriptors unless somebody wants more connections than the
    /// process's table holds: a plain one can be handed to any other process,
    /// and needs nothing newer than the floor.
    fn choose_descriptors(&mut self, capacity: &Capacity) -> bool {
        let wanted = self.wishes.conns_max.unwrap_or(0);
        let (direct, because) = match (self.wishes.direct_descriptors, &capacity.direct) {
            (Some(false), _) => (false, "set by direct_descriptors".to_owned()),
            (Some(true), Some(_)) => (true, "set by direct_descriptors".to_owned()),
            (_, None) => (false, "this kernel cannot move direct ones between rings".to_owned()),
            (None, Some(direct))
                if wanted > capacity.plain.total && direct.total > capacity.plain.total =>
            {
                (
                    true,
                    format!(
                        "{} connections exceed what RLIMIT_NOFILE gives the process",
                        count(wanted)
                    ),
                )
            }
            (None, Some(_)) => (
                false,
                "no more connections are asked for than the process's table holds".to_owned(),
            ),
        };
        self.because("descriptors", if direct { "direct" } else { "plain" }, because);
        direct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_limit_is_enough() {
        for (conns, shards) in [(1, 1), (15_000, 2), (1_000_000, 2), (1_000_000, 64)] {
            let nofile = nofile_for(conns, shards);
            let per_shard = (nofile - reserved_descriptors(nofile, shards)) / shards;
            assert!(Share::new(per_shard, shards).total >= conns);
        }
    }

    #[test]
    fn one_shard_needs_no_headroom_for_chance() {
        assert_eq!(Share::new(1000, 1).total, 1000);
        assert_eq!(Share::new(10_000, 2).total, 2 * (10_000 - 400));
        assert_eq!(Share::new(0, 2).total, 0);
    }
}
