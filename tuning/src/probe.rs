//! What this machine is, as far as a messaging server cares.
//!
//! [`Machine::probe`] only reads `/proc`, `/sys` and a few system calls and
//! makes some tiny rings: about two milliseconds. A file that is not there is
//! a default, never an error: the plan for an unknown machine is a careful one.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::disk::{DiskProbe, probe_disk};
use crate::ring::RingFeatures;
use crate::without::Without;

/// Everything that a plan depends on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Numbers of the cores this process may run on, increasing, at least one.
    pub cores: Vec<usize>,
    /// Memory nodes, at least 1.
    pub numa_nodes: usize,
    /// Installed memory, bytes.
    pub ram_bytes: u64,
    /// Memory the control group allows, bytes.
    pub cgroup_memory_bytes: Option<u64>,
    /// CPU time the control group allows, cores.
    pub cgroup_cpus: Option<f64>,
    /// Soft limit of open descriptors.
    pub nofile_soft: u64,
    /// Hard limit of open descriptors: the soft one can be raised to it.
    pub nofile_hard: u64,
    /// The kernel's ceiling for the hard limit (`fs.nr_open`).
    pub nr_open: u64,
    /// Open files on the whole machine (`fs.file-max`).
    pub file_max: u64,
    /// Hard limit of lockable memory, bytes; it counts for rings before 5.12.
    pub memlock: u64,
    /// Largest file this process may write, bytes.
    pub file_bytes_max: u64,
    /// Address space of this process, bytes.
    pub address_space: u64,
    /// Kernel version, major and minor.
    pub kernel: (u32, u32),
    /// What io_uring offers, less what is done without.
    pub ring: RingFeatures,
    /// What is taken as missing although it may be there.
    pub without: Without,
    /// Longest accept queue (`net.core.somaxconn`).
    pub somaxconn: u32,
    /// First and last port the kernel picks for outgoing connections.
    pub port_range: (u16, u16),
    /// Most tracked connections when connection tracking is loaded.
    pub conntrack_max: Option<u64>,
    /// Packets that wait for a core when they come over loopback or a virtual
    /// interface (`net.core.netdev_max_backlog`).
    pub netdev_backlog: Option<u64>,
    /// The disk under the data directory, once [`Machine::probe_disk`] ran.
    pub disk: Option<DiskProbe>,
}

impl Machine {
    /// Looks at everything except the disk.
    pub fn probe() -> Machine {
        let cgroup = Cgroup::probe();
        let nofile = getrlimit(Resource::Nofile);
        let unlimited = u64::MAX;
        Machine {
            cores: allowed_cores(),
            numa_nodes: numa_nodes(Path::new("/sys/devices/system/node")),
            ram_bytes: fs::read_to_string("/proc/meminfo")
                .ok()
                .and_then(|text| mem_total(&text))
                .unwrap_or(1 << 30),
            cgroup_memory_bytes: cgroup.memory_bytes,
            cgroup_cpus: cgroup.cpus,
            nofile_soft: nofile.current.unwrap_or(unlimited),
            nofile_hard: nofile.maximum.unwrap_or(unlimited),
            nr_open: number("/proc/sys/fs/nr_open").unwrap_or(1 << 20),
            file_max: number("/proc/sys/fs/file-max").unwrap_or(unlimited),
            memlock: getrlimit(Resource::Memlock).maximum.unwrap_or(unlimited),
            file_bytes_max: getrlimit(Resource::Fsize).current.unwrap_or(unlimited),
            address_space: getrlimit(Resource::As).current.unwrap_or(unlimited),
            kernel: kernel_version(&rustix::system::uname().release().to_string_lossy()),
            ring: RingFeatures::probe(),
            without: Without::default(),
            somaxconn: number("/proc/sys/net/core/somaxconn")
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(128),
            port_range: fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
                .ok()
                .and_then(|text| port_range(&text))
                .unwrap_or((32768, 60999)),
            conntrack_max: number("/proc/sys/net/netfilter/nf_conntrack_max"),
            netdev_backlog: number("/proc/sys/net/core/netdev_max_backlog"),
            disk: None,
        }
    }

    /// Takes these ways as missing. Before the disk is measured: it is measured
    /// the way it will be used.
    pub fn do_without(&mut self, without: &Without) {
        for name in without.of_ring() {
            self.ring.without(name).expect("a name of the ring's");
        }
        self.without = without.clone();
    }

    /// Measures the disk under `dir` for at most about 150 ms on a healthy
    /// disk and keeps the result in [`Machine::disk`].
    ///
    /// # Errors
    /// See [`probe_disk`]; `disk` is `None` then.
    pub fn probe_disk(&mut self, dir: &Path) -> std::io::Result<()> {
        self.disk = None;
        self.disk = Some(probe_disk(dir, &self.without)?);
        Ok(())
    }

    /// Memory that exists for this process: installed or allowed, the smaller.
    /// Of a bounded address space it is half: stacks and the allocator's arenas
    /// take room there that is never touched.
    pub fn memory_bytes(&self) -> u64 {
        let allowed = self.cgroup_memory_bytes.unwrap_or(u64::MAX).min(self.address_space / 2);
        allowed.min(self.ram_bytes)
    }
}

fn allowed_cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return vec![0];
    };
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

fn numa_nodes(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else {
        return 1;
    };
    let is_node =
        |name: &str| name.strip_prefix("node").is_some_and(|rest| rest.parse::<u32>().is_ok());
    entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_node)).count().max(1)
}

/// Bytes from `/proc/meminfo`, which counts in KiB.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Major and minor from a release such as `6.18.4-fc`; what cannot be read is 0.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        assert_eq!(kernel_version("6.18.44-fc-v445"), (6, 18));
        assert_eq!(kernel_version("5.10"), (5, 10));
        assert_eq!(kernel_version("nonsense"), (0, 0));
        assert_eq!(
            mem_total("MemTotal:       24689012 kB\nMemFree: 1 kB\n"),
            Some(24689012 * 1024)
        );
        assert_eq!(mem_total("MemTotal: lots"), None);
        assert_eq!(port_range("32768\t60999\n"), Some((32768, 60999)));
        assert_eq!(port_range("32768"), None);
        assert_eq!(numa_nodes(Path::new("/nowhere/at/all")), 1);
    }

    #[test]
    fn this_machine_is_plausible() {
        let machine = Machine::probe();
        assert!(machine.cores.is_sorted() && !machine.cores.is_empty());
        assert!(machine.memory_bytes() >= 1 << 20);
        assert!(machine.nofile_soft <= machine.nofile_hard);
        assert!(machine.kernel >= (4, 0));
    }
}
