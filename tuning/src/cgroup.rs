//! The limits that control groups put on this process, versions 1 and 2.
//!
//! A limit may sit on any ancestor of the process's own group, so the whole
//! way up to the root is read and the smallest wins. Inside a container the
//! path in `/proc/self/cgroup` may not exist under the mount; the ancestors
//! that do exist still count.

use std::fs;
use std::path::{Path, PathBuf};

/// What the control groups allow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cgroup {
    /// Bytes of memory, sockets' kernel memory included; `None` is unlimited.
    pub memory_bytes: Option<u64>,
    /// Cores' worth of CPU time; `None` is unlimited.
    pub cpus: Option<f64>,
}

/// Version 1 writes "no limit" as a number of about 2^63.
const UNLIMITED_FROM: u64 = 1 << 60;

impl Cgroup {
    /// Reads the limits of this process.
    pub fn probe() -> Cgroup {
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Cgroup::read(Path::new("/sys/fs/cgroup"), &membership)
    }

    /// Reads the limits below `root` for the groups named in `membership`
    /// (the text of `/proc/self/cgroup`).
    pub fn read(root: &Path, membership: &str) -> Cgroup {
        let mut limits = Cgroup::default();
        for line in membership.lines() {
            // hierarchy-id:controllers:path
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(group)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                for mount in [root.to_owned(), root.join("unified")] {
                    limits.narrow_v2(&ancestry(&mount, group));
                }
            } else {
                for controller in controllers.split(',') {
                    // The mount is named after the controller or, where two
                    // share a hierarchy, after the pair.
                    for mount in [root.join(controller), root.join(controllers)] {
                        limits.narrow_v1(controller, &ancestry(&mount, group));
                    }
                }
            }
        }
        limits
    }

    fn narrow_v2(&mut self, groups: &[PathBuf]) {
        for group in groups {
            self.narrow_memory(number(&group.join("memory.max")));
            self.narrow_memory(number(&group.join("memory.high")));
            if let Ok(text) = fs::read_to_string(group.join("cpu.max")) {
                let mut words = text.split_whitespace().map(|word| word.parse::<f64>().ok());
                if let (Some(Some(quota)), Some(Some(period))) = (words.next(), words.next()) {
                    self.narrow_cpus(quota, period);
                }
            }
        }
    }

    fn narrow_v1(&mut self, controller: &str, groups: &[PathBuf]) {
        for group in groups {
            match controller {
                "memory" => self.narrow_memory(number(&group.join("memory.limit_in_bytes"))),
                "cpu" => {
                    // A quota of -1 is no limit and no u64.
                    let quota = number(&group.join("cpu.cfs_quota_us"));
                    let period = number(&group.join("cpu.cfs_period_us"));
                    if let (Some(quota), Some(period)) = (quota, period) {
                        self.narrow_cpus(quota as f64, period as f64);
                    }
                }
                _ => {}
            }
        }
    }

    fn narrow_memory(&mut self, bytes: Option<u64>) {
        if let Some(bytes) = bytes.filter(|bytes| *bytes < UNLIMITED_FROM) {
            self.memory_bytes = Some(self.memory_bytes.map_or(bytes, |old| old.min(bytes)));
        }
    }

    fn narrow_cpus(&mut self, quota: f64, period: f64) {
        if quota > 0.0 && period > 0.0 {
            let cpus = quota / period;
            self.cpus = Some(self.cpus.map_or(cpus, |old| old.min(cpus)));
        }
    }
}

/// The group's directory and those above it, down to the mount itself.
fn ancestry(mount: &Path, group: &str) -> Vec<PathBuf> {
    let leaf = mount.join(group.trim_start_matches('/'));
    leaf.ancestors().take_while(|dir| dir.starts_with(mount)).map(Path::to_owned).collect()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        files: &[(&str, &str)],
        membership: &str,
        memory_bytes: Option<u64>,
        cpus: Option<f64>,
    ) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(Cgroup::read(root.path(), membership), Cgroup { memory_bytes, cpus });
    }

    #[test]
    fn nothing_is_no_limit() {
        check(&[], "", None, None);
        check(&[], "garbage\n0::/nowhere\n", None, None);
    }

    #[test]
    fn version_2_takes_the_smallest_of_all_ancestors() {
        check(
            &[
                ("a/memory.max", "1000\n"),
                ("a/b/memory.max", "max\n"),
                ("a/b/c/memory.max", "2000\n"),
                ("a/cpu.max", "150000 100000\n"),
                ("a/b/c/cpu.max", "max 100000\n"),
            ],
            "0::/a/b/c\n",
            Some(1000),
            Some(1.5),
        );
    }

    #[test]
    fn a_container_whose_path_is_not_mounted_reads_the_root() {
        check(
            &[("memory.max", "4096\n"), ("cpu.max", "50000 100000")],
            "0::/docker/4711\n",
            Some(4096),
            Some(0.5),
        );
    }

    #[test]
    fn version_1_reads_each_controller() {
        check(
            &[
                ("memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory/memory.limit_in_bytes", "5000\n"),
                ("cpu,cpuacct/x/cpu.cfs_quota_us", "200000\n"),
                ("cpu,cpuacct/x/cpu.cfs_period_us", "100000\n"),
                ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
                ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ],
            "4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n",
            Some(5000),
            Some(2.0),
        );
    }
}
