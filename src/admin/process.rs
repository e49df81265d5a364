//! What the kernel says about this process. Whatever it does not say is left
//! out.

use std::fs;

/// A reading of `/proc/self`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// Memory in use, bytes.
    pub(super) resident_bytes: Option<u64>,
    /// Descriptors open. Connections in a ring's own table are none.
    pub(super) open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub(super) fds_max: Option<u64>,
    /// Processor time used, all threads, seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// The whole machine's kernel objects, sockets among them, bytes.
    pub(super) slab_bytes: Option<u64>,
}

impl Process {
    /// Reads it now.
    pub(super) fn read() -> Process {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Process {
            resident_bytes: in_kib(&read("/proc/self/status"), "VmRSS:"),
            open_fds: open_fds(),
            fds_max: fds_max(&read("/proc/self/limits")),
            cpu_seconds: cpu_seconds(&read("/proc/self/stat")),
            slab_bytes: in_kib(&read("/proc/meminfo"), "Slab:"),
        }
    }
}

fn in_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Linux 6.2 tells the number as the size of the directory; counting a million
/// entries one by one, as before it, takes about a second.
fn open_fds() -> Option<u64> {
    let told = fs::metadata("/proc/self/fd").ok()?.len();
    if told > 0 {
        return Some(told);
    }
    // The directory being read is one of them.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn fds_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The fields after the name, which is in brackets and may hold anything; user
/// and system time are the 12th and 13th of them, in hundredths of a second on
/// every machine this runs on.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let status = "VmHWM:\t  20 kB\nVmRSS:\t   1234 kB\n";
        assert_eq!(in_kib(status, "VmRSS:"), Some(1234 * 1024));
        assert_eq!(in_kib("", "VmRSS:"), None);
        let limits =
            "Limit   Soft Limit   Hard Limit  Units\nMax open files   20000  40000  files\n";
        assert_eq!(fds_max(limits), Some(20_000));
        assert_eq!(fds_max("Max open files            unlimited            unlimited"), None);
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 75 0 0 20";
        assert_eq!(cpu_seconds(stat), Some(2.25));
        assert_eq!(cpu_seconds("nonsense"), None);
    }

    #[test]
    fn this_process_has_all_of_it() {
        let process = Process::read();
        assert!(process.resident_bytes.unwrap() > 100_000);
        assert!(process.open_fds.unwrap() >= 3);
        assert!(process.cpu_seconds.is_some());
        assert!(process.slab_bytes.unwrap() > 100_000);
    }
}
