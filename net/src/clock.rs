//! The only reader of the clock. A turn asks once and hands the answer to everyone.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The origin of `mono_ns`, shared by all cores so that their readings can be compared.
static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since the process first asked; never steps back.
    pub mono_ns: u64,
    /// Unix time in milliseconds; may step in either direction.
    pub wall_ms: u64,
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Reads both clocks (two vDSO calls, about 50 ns).
    #[allow(clippy::disallowed_methods)] // the one place that may
    pub fn now() -> Now {
        let origin = *ORIGIN.get_or_init(Instant::now);
        // A wall clock before 1970 is nonsense; zero keeps it from becoming a panic.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ns: origin.elapsed().as_nanos() as u64, wall_ms: wall.as_millis() as u64 }
    }

    /// How long this thread has been on a processor, nanoseconds (a system call,
    /// about 0.3 µs): what something costs whatever else the machine does.
    pub fn thread_cpu_ns() -> u64 {
        let spent = clock_gettime(ClockId::ThreadCPUTime);
        spent.tv_sec as u64 * 1_000_000_000 + spent.tv_nsec as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mono_never_steps_back_and_wall_is_this_century() {
        let first = Clock::now();
        let second = Clock::now();
        assert!(second.mono_ns >= first.mono_ns);
        assert!(first.wall_ms > 1_600_000_000_000);
    }

    #[test]
    fn cpu_time_moves_with_work_and_not_with_rest() {
        let began = Clock::thread_cpu_ns();
        let mut last = began;
        while last - began < 1_000_000 {
            last = Clock::thread_cpu_ns();
        }
        // Somebody else's work is not counted.
        let other = std::thread::spawn(|| while Clock::thread_cpu_ns() < 50_000_000 {});
        other.join().expect("it only counts");
        assert!(Clock::thread_cpu_ns() - last < 25_000_000);
    }
}
