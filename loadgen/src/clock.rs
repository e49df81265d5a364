//! The one clock of a run: monotonic nanoseconds, the same in every process of
//! a machine, so that workers can be given a common start and a message may
//! carry its time from one to another.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock.
pub(crate) fn now_ns() -> u64 {
    nanos(ClockId::Monotonic)
}

/// Nanoseconds of CPU time, user and kernel, of this process.
pub(crate) fn cpu_ns() -> u64 {
    nanos(ClockId::ProcessCPUTime)
}

/// Unix milliseconds, for what people and other programs compare.
pub(crate) fn unix_ms() -> u64 {
    nanos(ClockId::Realtime) / 1_000_000
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A number of seconds as nanoseconds.
pub(crate) fn seconds_ns(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
