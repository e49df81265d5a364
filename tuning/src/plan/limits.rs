//! What holds the server back, and the commands that lift it.

use super::capacity::{Capacity, nofile_for};
use super::{
    ADDRESS_SPACE_BASE, ADDRESS_SPACE_PER_SHARD, Draft, MEMORY_BYTES_MIN, SEGMENT_HEADER_BYTES,
    SHARDS_MAX, Wishes,
};
use crate::quantity::{bytes, count};

/// The oldest kernel that is supported.
const KERNEL_FLOOR: (u32, u32) = (5, 10);
/// The release from which on nothing is missing.
const KERNEL_FULL: (u32, u32) = (6, 1);
/// From here on rings are accounted to the control group, not to memlock.
const KERNEL_WITHOUT_MEMLOCK: (u32, u32) = (5, 12);
/// What a core's executor insists on, whatever the kernel accounts.
const MEMLOCK_MIN: u64 = 512 << 10;
/// How lockable memory is raised.
const MEMLOCK_LIFTS: [&str; 2] = [
    "prlimit --pid $$ --memlock=unlimited   # as root, in the shell that starts the server",
    "LimitMEMLOCK=infinity   # in the systemd unit",
];
/// The accept queue that the listeners ask for.
const BACKLOG: u32 = 4096;
/// The kernel asks one in so many silent connections for a sign of life at once.
const PROBED_PART: u64 = 30;
/// Fewer connections than this serve nobody.
const CONNS_MIN: u64 = 64;
/// What a fully grown installation wants of one process.
const MILLION: u64 = 1_000_000;

impl Draft<'_> {
    pub(super) fn note_limits(&mut self) {
        self.note_connection_limit();
        self.note_processor_limit();
        self.note_network_limits();
        self.note_kernel_limits();
        self.note_disk_limits();
    }

    fn note_connection_limit(&mut self) {
        if self.wishes.conns_max.is_some() {
            // Either it fits, and nothing holds the server back, or it is a stop.
            return;
        }
        let capacity = self.capacity();
        let holds_at = format!("{} connections", count(self.plan.conns_max as u64));
        let share =
            if self.plan.direct_descriptors { capacity.direct } else { Some(capacity.plain) };
        let by_descriptors = share.is_some_and(|share| share.total < capacity.memory);
        if !by_descriptors {
            let lift = match self.machine.cgroup_memory_bytes {
                Some(allowed) if allowed < self.machine.ram_bytes => {
                    vec!["raise memory.max of the control group (systemd: MemoryMax=, docker: --memory)".to_owned()]
                }
                _ => vec!["more memory".to_owned()],
            };
            self.limit(
                format!("connections by memory ({})", bytes(self.plan.memory_bytes)),
                holds_at,
                lift,
            );
        } else {
            let wanted = MILLION.max(2 * self.plan.conns_max as u64).min(capacity.memory);
            let lift = self.descriptor_lifts(wanted, &capacity);
            let nofile = count(self.machine.nofile_hard);
            self.limit(format!("connections by RLIMIT_NOFILE ({nofile})"), holds_at, lift);
        }
    }

    /// Ways to more descriptors: a higher limit, or more tables of the present one.
    fn descriptor_lifts(&self, wanted: u64, capacity: &Capacity) -> Vec<String> {
        let nofile = nofile_for(wanted, u64::from(self.plan.shards));
        let mut lift = Vec::new();
        if nofile > self.machine.nr_open {
            lift.push(format!("sysctl -w fs.nr_open={nofile}"));
        }
        lift.push(format!(
            "prlimit --pid $$ --nofile={nofile}   # as root, in the shell that starts the server"
        ));
        lift.push(format!("LimitNOFILE={nofile}   # in the systemd unit"));
        lift.extend(self.shards_for(wanted, capacity).map(|shards| {
            format!(
                "iris-shard --shards {shards} --set limits.conns_max={wanted}   \
                 # each shard adds a table of direct descriptors"
            )
        }));
        lift
    }

    /// The number of shards whose tables of direct descriptors hold `wanted`
    /// connections, if a plan with them works: a suggestion that fails is worse
    /// than none.
    fn shards_for(&self, wanted: u64, capacity: &Capacity) -> Option<u16> {
        if self.wishes.direct_descriptors == Some(false) || self.wishes.written.is_some() {
            return None;
        }
        let table = capacity.direct?.per_shard;
        let shards = wanted.div_ceil(table.max(1)).max(u64::from(self.plan.shards));
        // A table is not used to its last slot, so the first guess may be low.
        let tries = shards..=u64::from(SHARDS_MAX).min(shards + shards / 8 + 1);
        tries.map(|shards| shards as u16).find(|shards| {
            let wishes =
                Wishes { shards: Some(*shards), conns_max: Some(wanted), ..self.wishes.clone() };
            let mut draft = Draft::new(self.machine, &wishes);
            draft.choose();
            draft.stop_without_memory();
            draft.plan.conns_max as u64 >= wanted && draft.plan.stops.is_empty()
        })
    }

    fn note_processor_limit(&mut self) {
        let cores = self.machine.cores.len();
        if let Some(cpus) = self.machine.cgroup_cpus.filter(|cpus| *cpus < cores as f64) {
            self.limit(
                "CPU time by the control group",
                format!("{cpus} of {cores} cores"),
                vec![
                    "raise cpu.max of the control group (systemd: CPUQuota=, docker: --cpus)"
                        .to_owned(),
                ],
            );
        }
    }

    fn note_network_limits(&mut self) {
        let conns = self.plan.conns_max as u64;
        if self.machine.somaxconn < BACKLOG {
            let holds_at = format!("{} connections waiting for accept", self.machine.somaxconn);
            let lift = vec![format!("sysctl -w net.core.somaxconn={BACKLOG}")];
            self.limit("connection bursts by net.core.somaxconn", holds_at, lift);
        }
        if let Some(tracked) = self.machine.conntrack_max.filter(|max| *max < conns + conns / 4) {
            let lift = vec![
                format!(
                    "sysctl -w net.netfilter.nf_conntrack_max={}",
                    (conns * 2).next_power_of_two()
                ),
                "or do not track the server's ports (iptables -t raw … -j NOTRACK)".to_owned(),
            ];
            self.limit(
                "connections by nf_conntrack",
                format!("{} tracked connections", count(tracked)),
                lift,
            );
        }
        let backlog = self.machine.netdev_backlog.filter(|max| *max * PROBED_PART < conns);
        if let Some(backlog) = backlog {
            self.limit(
                "silent connections over loopback and virtual interfaces by \
                 net.core.netdev_max_backlog",
                format!(
                    "about {} connections, beyond which some of the kernel's probes are dropped",
                    count(backlog * PROBED_PART)
                ),
                vec![format!("sysctl -w net.core.netdev_max_backlog={}", conns.div_ceil(10))],
            );
        }
        if self.machine.file_max < conns + conns / 8 {
            let lift = vec![format!("sysctl -w fs.file-max={}", (conns * 2).next_power_of_two())];
            self.limit(
                "open files by fs.file-max",
                format!("{} on this machine", count(self.machine.file_max)),
                lift,
            );
        }
    }

    fn note_kernel_limits(&mut self) {
        let mut missing = self.machine.ring.missing();
        missing.retain(|name| !self.machine.without.has(name));
        if self.machine.ring.unavailable.is_none() && !missing.is_empty() {
            let (major, minor) = KERNEL_FULL;
            self.limit(
                format!("speed by the kernel: {} of io_uring missing", missing.join(", ")),
                "the older ways are used, which cost more CPU per message",
                vec![format!("run a kernel from {major}.{minor} on")],
            );
        }
        let given_up = self.machine.without.names();
        if !given_up.is_empty() {
            self.limit(
                format!("speed by debug.without: {} not used", given_up.join(", ")),
                "the older ways are used, which cost more CPU per message",
                vec!["leave debug.without (IRIS_DEBUG_WITHOUT) out".to_owned()],
            );
        }
        let rings = u64::from(self.plan.shards) * u64::from(self.plan.ring_entries) * 96;
        if self.machine.kernel < KERNEL_WITHOUT_MEMLOCK && self.machine.memlock < rings {
            self.limit(
                "rings by RLIMIT_MEMLOCK",
                format!("{} of {} for the rings", bytes(self.machine.memlock), bytes(rings)),
                MEMLOCK_LIFTS.map(str::to_owned).to_vec(),
            );
        }
    }

    fn note_disk_limits(&mut self) {
        let Some(disk) = self.machine.disk.clone() else {
            return;
        };
        if disk.is_volatile() {
            let what = format!("durability by {}: messages are in memory only", disk.fs);
            let lift = vec!["put data_dir on a disk (--data-dir)".to_owned()];
            self.limit(what, "the next loss of power", lift);
        }
        if disk.is_remote() {
            let what =
                format!("durability by {}: it is only as good as the other side's fsync", disk.fs);
            self.limit(
                what,
                "whatever that promises",
                vec!["put data_dir on a local disk (--data-dir)".to_owned()],
            );
        }
        if disk.fdatasync_per_s < 200 {
            let holds_at = format!(
                "{} durable writes a second, one after the other",
                count(disk.fdatasync_per_s)
            );
            let lift = vec!["put data_dir on a disk with power-loss protection".to_owned()];
            self.limit("durable latency by the disk", holds_at, lift);
        }
        let ahead =
            self.plan.segment_bytes.saturating_mul(u64::from(self.plan.shards)).saturating_mul(4);
        if disk.free_bytes < ahead {
            let holds_at = format!(
                "{} free, {} wanted for the first segments",
                bytes(disk.free_bytes),
                bytes(ahead)
            );
            self.limit(
                "the log by disk space",
                holds_at,
                vec!["free space or another data_dir".to_owned()],
            );
        }
    }

    pub(super) fn note_stops(&mut self) {
        self.stop_without_ring();
        self.stop_without_lockable_memory();
        self.stop_without_memory();
        self.stop_without_address_space();
        self.stop_without_large_files();
        self.stop_without_connections();
    }

    fn stop_without_ring(&mut self) {
        let (major, minor) = self.machine.kernel;
        if self.machine.kernel < KERNEL_FLOOR {
            let (floor_major, floor_minor) = KERNEL_FLOOR;
            self.stop(
                format!("Linux {major}.{minor} is too old: {floor_major}.{floor_minor} is the oldest that works"),
                vec![format!("run a kernel from {floor_major}.{floor_minor} on")],
            );
        }
        if let Some(why) = self.machine.ring.unavailable.clone() {
            let lift = if why.contains("io_uring_disabled") {
                vec!["sysctl -w kernel.io_uring_disabled=0".to_owned()]
            } else if why.contains("seccomp") || why.contains("sandbox") {
                vec!["docker run --security-opt seccomp=unconfined …   # or a profile that allows io_uring".to_owned()]
            } else if why.contains("lockable") {
                MEMLOCK_LIFTS.map(str::to_owned).to_vec()
            } else {
                Vec::new()
            };
            self.stop(format!("the server needs io_uring, but {why}"), lift);
        }
        if self.wishes.direct_descriptors == Some(true)
            && !self.machine.ring.can_use_direct_descriptors()
        {
            self.stop(
                "direct_descriptors = \"on\" needs sparse tables, multishot accept and descriptors sent between rings, \
                 which this kernel lacks",
                vec!["set direct_descriptors = \"auto\"".to_owned(), "run a kernel from 6.0 on".to_owned()],
            );
        }
    }

    fn stop_without_lockable_memory(&mut self) {
        let memlock = self.machine.memlock;
        if memlock < MEMLOCK_MIN {
            self.stop(
                format!(
                    "each core's executor wants {} of lockable memory and RLIMIT_MEMLOCK allows {}",
                    bytes(MEMLOCK_MIN),
                    bytes(memlock)
                ),
                MEMLOCK_LIFTS.map(str::to_owned).to_vec(),
            );
        }
    }

    fn stop_without_memory(&mut self) {
        let memory = self.plan.memory_bytes;
        let there = self.machine.memory_bytes();
        if memory > there {
            self.stop(
                format!("memory_bytes asks for {}, but there are {}", bytes(memory), bytes(there)),
                vec![format!("--set memory_bytes={}", there / 5 * 4)],
            );
        }
        if memory < MEMORY_BYTES_MIN {
            self.stop(
                format!(
                    "{} of memory is too little: {} is the least",
                    bytes(memory),
                    bytes(MEMORY_BYTES_MIN)
                ),
                vec!["more memory, or a larger memory_bytes".to_owned()],
            );
        } else if self.plan.fixed_bytes > memory / 4 * 3 {
            self.stop(
                format!(
                    "{} shards take {} at boot, more than three quarters of {}",
                    self.plan.shards,
                    bytes(self.plan.fixed_bytes),
                    bytes(memory)
                ),
                vec!["fewer shards, a smaller storage.tail_bytes or more memory".to_owned()],
            );
        }
    }

    /// An allocation that fails ends the process without a word, so that it is
    /// told before the first one.
    fn stop_without_address_space(&mut self) {
        let there = self.machine.address_space;
        let shards = u64::from(self.plan.shards);
        let per_shard = ADDRESS_SPACE_PER_SHARD + self.plan.segment_bytes;
        let wanted = ADDRESS_SPACE_BASE + shards * per_shard + self.plan.fixed_bytes;
        if there < wanted {
            self.stop(
                format!(
                    "{shards} shards take {} of address space at boot and RLIMIT_AS allows {}",
                    bytes(wanted),
                    bytes(there)
                ),
                vec![
                    "prlimit --pid $$ --as=unlimited   # or `ulimit -v unlimited`, in the shell that starts the server".to_owned(),
                    "LimitAS=infinity   # in the systemd unit".to_owned(),
                ],
            );
        }
    }

    fn stop_without_large_files(&mut self) {
        let there = self.machine.file_bytes_max;
        let wanted = self.plan.segment_bytes + SEGMENT_HEADER_BYTES;
        if there < wanted {
            self.stop(
                format!(
                    "a segment of the log is a file of {} bytes and RLIMIT_FSIZE allows {}",
                    count(wanted),
                    count(there)
                ),
                vec![
                    "prlimit --pid $$ --fsize=unlimited   # or `ulimit -f unlimited`, in the shell that starts the server".to_owned(),
                    "LimitFSIZE=infinity   # in the systemd unit".to_owned(),
                ],
            );
        }
    }

    fn stop_without_connections(&mut self) {
        let conns = self.plan.conns_max as u64;
        let shards = u64::from(self.plan.shards);
        if let Some(wish) = self.wishes.conns_max.filter(|wish| *wish > conns) {
            let capacity = self.capacity();
            // Where both lack, the one that ends first.
            let by_memory = capacity.memory <= conns;
            let what = if by_memory { "memory" } else { "RLIMIT_NOFILE" };
            let lift = if by_memory {
                vec![format!("--set limits.conns_max={conns}, or more memory")]
            } else {
                self.descriptor_lifts(wish.min(capacity.memory), &capacity)
            };
            let (wish, conns) = (count(wish), count(conns));
            self.stop(
                format!("limits.conns_max asks for {wish} connections, but {what} allows {conns}"),
                lift,
            );
        } else if conns < CONNS_MIN && self.wishes.conns_max.is_none() {
            let nofile = nofile_for(1000, shards);
            self.stop(
                format!("this machine allows only {conns} connections (RLIMIT_NOFILE {})", self.machine.nofile_hard),
                vec![format!("prlimit --pid $$ --nofile={nofile}   # as root, in the shell that starts the server")],
            );
        }
    }
}
