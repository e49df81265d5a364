//! The server's process, as `/proc` and its CPU clock tell it, and the kernel's memory.

use std::fs;

use serde::Serialize;

use crate::cpu_clock;

/// When a look is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Moment {
    /// Before the first connection.
    Start,
    /// With everyone there, and with every step before.
    Held,
    /// Before an ordeal.
    Before,
    /// At its end.
    During,
    /// While messages are measured.
    Sending,
    /// After the run.
    End,
}

/// One look at the server and the kernel.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    /// When it was taken.
    pub(crate) moment: Moment,
    /// Logged-in connections at that time.
    pub(crate) connections: u32,
    /// The server's resident memory, bytes.
    pub(crate) rss_bytes: u64,
    /// The part of it that is not backed by files, bytes, where that is known.
    pub(crate) anon_bytes: Option<u64>,
    /// CPU time the server has used, nanoseconds.
    pub(crate) cpu_ns: u64,
    /// The kernel's slab of the whole machine, bytes.
    pub(crate) slab_bytes: u64,
}

/// Looks at a process now; `None` when it is gone.
pub(crate) fn sample(pid: u32, moment: Moment, connections: u32) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Sample {
        moment,
        connections,
        rss_bytes: kib(&status, "VmRSS:")? * 1024,
        anon_bytes: Some(kib(&status, "RssAnon:")? * 1024),
        cpu_ns: cpu_clock::read(pid)?,
        slab_bytes: slab_bytes()?,
    })
}

/// The kernel's slab of this machine, bytes.
pub(crate) fn slab_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kib(&meminfo, "Slab:")? * 1024)
}

fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Bytes that one more connection costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Slope {
    /// The server's resident memory.
    pub(crate) rss_bytes: f64,
    /// Its part that is not backed by files, where that is known.
    pub(crate) anon_bytes: Option<f64>,
    /// The kernel's slab: both ends of the connection where the load generator
    /// runs on the same machine.
    pub(crate) slab_bytes: f64,
}

/// The cost per connection between two samples, if there are more at the
/// second one.
pub(crate) fn slope(first: &Sample, last: &Sample) -> Option<Slope> {
    let more = f64::from(last.connections.checked_sub(first.connections).filter(|n| *n > 0)?);
    let per = |first: u64, last: u64| (last as f64 - first as f64) / more;
    Some(Slope {
        rss_bytes: per(first.rss_bytes, last.rss_bytes),
        anon_bytes: first.anon_bytes.zip(last.anon_bytes).map(|(first, last)| per(first, last)),
        slab_bytes: per(first.slab_bytes, last.slab_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let sample = sample(std::process::id(), Moment::Start, 1).expect("it runs");
        assert!(sample.rss_bytes > 0 && sample.anon_bytes <= Some(sample.rss_bytes));
        assert!(sample.slab_bytes > 0);
    }

    #[test]
    fn slope_is_per_added_connection() {
        let at = |connections, rss_bytes| Sample {
            moment: Moment::Held,
            connections,
            rss_bytes,
            anon_bytes: None,
            cpu_ns: 0,
            slab_bytes: 0,
        };
        let slope = slope(&at(100, 1_000), &at(200, 41_000)).expect("there are more");
        assert_eq!(slope.rss_bytes, 400.0);
        assert!(super::slope(&at(100, 0), &at(100, 0)).is_none());
    }
}
