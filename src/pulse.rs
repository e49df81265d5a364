//! Whether every core still turns, seen from outside.
//!
//! A core turns at least every half second, idle or not. One that does not is
//! overrun by other programs, waits for a disk that hangs, or sleeps through
//! what it sleeps for. The main thread looks once a second, says what such a
//! core was doing, and rings it: a sleeper goes on.

use std::cmp::Ordering;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use net::Waker;

/// How often the main thread looks.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// After so many looks without a turn a core counts as silent. Looks are
/// counted and not seconds: they stop with the process.
const LOOKS_MAX: u32 = 3;

/// What a core is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It works.
    Turning,
    /// It waits in its own ring.
    InRing,
    /// It lets the executor's other tasks run.
    Outside,
    /// It sleeps in the executor.
    Parked,
    /// It has ended.
    Nothing,
}

impl Doing {
    const ALL: [Doing; 5] =
        [Doing::Turning, Doing::InRing, Doing::Outside, Doing::Parked, Doing::Nothing];

    fn sentence(self) -> &'static str {
        match self {
            Doing::Turning => "in the middle of a turn",
            Doing::InRing => "waiting in its ring",
            Doing::Outside => "letting the executor's other tasks run",
            Doing::Parked => "asleep in the executor",
            Doing::Nothing => "at its end",
        }
    }
}

/// What one core lets others see of it. Written by the core alone, a plain
/// store each time, several in a turn: no two may share a line of the cache.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    turns: AtomicU64,
    doing: AtomicU8,
    /// The core's thread below `/proc`, as "PID/task/TID".
    thread: OnceLock<String>,
}

impl Pulse {
    /// To be called on the core's own thread.
    pub(crate) fn begin(&self) {
        if let Ok(thread) = fs::read_link("/proc/thread-self") {
            self.thread.get_or_init(|| thread.display().to_string());
        }
    }

    /// A turn begins.
    pub(crate) fn turn(&self, turns: u64) {
        self.turns.store(turns, Relaxed);
        self.is(Doing::Turning);
    }

    pub(crate) fn is(&self, doing: Doing) {
        self.doing.store(doing as u8, Relaxed);
    }

    fn doing(&self) -> Doing {
        Doing::ALL[usize::from(self.doing.load(Relaxed))]
    }

    /// What the kernel knows of the core's thread: its state, the function it
    /// sleeps in and its system call.
    fn thread_state(&self) -> String {
        let Some(thread) = self.thread.get() else { return "unknown".to_owned() };
        let read = |name| fs::read_to_string(Path::new("/proc").join(thread).join(name));
        let status = read("status").unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("?");
        let wchan = read("wchan").unwrap_or_default();
        let call = read("syscall").unwrap_or_default();
        format!("{} in {:?}, system call {:?}", state.trim(), wchan.trim(), call.trim())
    }
}

/// What the main thread remembers of its looks.
pub(crate) struct Watch {
    seen: Vec<Seen>,
}

#[derive(Clone, Default)]
struct Seen {
    turns: u64,
    /// Looks since the last turn.
    looks: u32,
}

/// What a look at one core found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Turning,
    /// For too long, just now.
    Silent,
    /// Silent as before.
    StillSilent,
    /// It was silent and turns again.
    Back,
}

impl Watch {
    pub(crate) fn new(cores: usize) -> Watch {
        Watch { seen: vec![Seen::default(); cores] }
    }

    /// Looks at every core, and rings those that are silent.
    pub(crate) fn look(&mut self, pulses: &[CachePadded<Pulse>], wakers: &[Waker]) {
        for (shard, (pulse, seen)) in pulses.iter().zip(&mut self.seen).enumerate() {
            if pulse.doing() == Doing::Nothing {
                continue;
            }
            match seen.look(pulse.turns.load(Relaxed)) {
                Found::Turning => {}
                Found::Back => tracing::warn!(shard, "this shard turns again"),
                Found::StillSilent => wakers[shard].wake(),
                Found::Silent => {
                    tracing::warn!(
                        shard,
                        "this shard has not turned for {LOOKS_MAX} s; it is {}, its thread is {}; \
                         it is rung now",
                        pulse.doing().sentence(),
                        pulse.thread_state()
                    );
                    wakers[shard].wake();
                }
            }
        }
    }
}

impl Seen {
    fn look(&mut self, turns: u64) -> Found {
        if turns != self.turns {
            let was_silent = self.looks >= LOOKS_MAX;
            *self = Seen { turns, looks: 0 };
            return if was_silent { Found::Back } else { Found::Turning };
        }
        self.looks += 1;
        match self.looks.cmp(&LOOKS_MAX) {
            Ordering::Less => Found::Turning,
            Ordering::Equal => Found::Silent,
            Ordering::Greater => Found::StillSilent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_silent_after_some_looks_and_told_once() {
        let mut seen = Seen::default();
        assert_eq!(seen.look(7), Found::Turning);
        for _ in 1..LOOKS_MAX {
            assert_eq!(seen.look(7), Found::Turning);
        }
        assert_eq!(seen.look(7), Found::Silent);
        assert_eq!(seen.look(7), Found::StillSilent);
        assert_eq!(seen.look(8), Found::Back);
        assert_eq!(seen.look(9), Found::Turning);
    }

    #[test]
    fn a_pulse_tells_what_the_core_does() {
        let pulse = Pulse::default();
        assert_eq!(pulse.thread_state(), "unknown");
        pulse.begin();
        for doing in Doing::ALL {
            pulse.is(doing);
            assert_eq!(pulse.doing(), doing);
        }
        pulse.turn(3);
        assert_eq!((pulse.doing(), pulse.turns.load(Relaxed)), (Doing::Turning, 3));
        assert!(pulse.thread_state().starts_with("R (running)"), "{}", pulse.thread_state());
    }
}
