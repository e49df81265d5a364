//! What is done to the server and its clients beside the load: which kinds of
//! trouble, and how much of each.

use serde::{Deserialize, Serialize};

/// One kind of trouble as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Every so many milliseconds a connection is cut.
    Kill(u32),
    /// Every so many milliseconds a reader stops for a while.
    Stall(u32),
    /// So many connections say everything byte by byte.
    Drip(u32),
    /// So many connections say nothing, or half a word.
    HalfOpen(u32),
    /// So many threads use up the machine.
    Burn(u32),
    /// Everything.
    All,
}

/// `KIND` or `KIND:N`.
pub(crate) fn trouble(text: &str) -> Result<Trouble, String> {
    let (kind, n) = match text.split_once(':') {
        Some((kind, n)) => (kind, Some(n)),
        None => (text, None),
    };
    let number = |usual: u32| match n {
        None => Ok(usual),
        Some(n) => match n.parse() {
            Ok(n @ 1..=1_000_000) => Ok(n),
            _ => Err(format!("{text}: {n} is not a number from 1 on")),
        },
    };
    match kind {
        "kill" => Ok(Trouble::Kill(number(KILL_MS)?)),
        "stall" => Ok(Trouble::Stall(number(STALL_MS)?)),
        "drip" => Ok(Trouble::Drip(number(DRIPS)?)),
        "half-open" => Ok(Trouble::HalfOpen(number(HALF_OPEN)?)),
        "burn" => Ok(Trouble::Burn(number(cores())?)),
        "all" if n.is_none() => Ok(Trouble::All),
        _ => Err(format!("{text}: kill, stall, drip, half-open, burn (each with :N) or all")),
    }
}

const KILL_MS: u32 = 100;
const STALL_MS: u32 = 200;
const DRIPS: u32 = 8;
const HALF_OPEN: u32 = 64;

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// How much of each; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chaos {
    /// Between two connections that are cut, milliseconds.
    pub(crate) kill_ms: u32,
    /// Between two readers that stop, milliseconds.
    pub(crate) stall_ms: u32,
    /// Connections that say everything byte by byte.
    pub(crate) drips: u32,
    /// Connections that say nothing, or half a word.
    pub(crate) half_open: u32,
    /// Threads that use up the machine.
    pub(crate) burners: u32,
}

impl Chaos {
    /// What was asked for, later words before earlier ones.
    pub(crate) fn of(troubles: &[Trouble]) -> Chaos {
        let mut chaos = Chaos::default();
        for trouble in troubles {
            match *trouble {
                Trouble::Kill(ms) => chaos.kill_ms = ms,
                Trouble::Stall(ms) => chaos.stall_ms = ms,
                Trouble::Drip(n) => chaos.drips = n,
                Trouble::HalfOpen(n) => chaos.half_open = n,
                Trouble::Burn(n) => chaos.burners = n,
                Trouble::All => chaos = Chaos::all(),
            }
        }
        chaos
    }

    /// Every kind.
    pub(crate) fn all() -> Chaos {
        Chaos {
            kill_ms: KILL_MS,
            stall_ms: STALL_MS,
            drips: DRIPS,
            half_open: HALF_OPEN,
            burners: cores(),
        }
    }

    /// Whether there is none.
    pub(crate) fn is_none(&self) -> bool {
        *self == Chaos::default()
    }

    /// One worker's part: fewer connections each, and longer pauses.
    pub(crate) fn share(&self, workers: u32, index: u32) -> Chaos {
        let some = |n: u32| n / workers + u32::from(index < n % workers);
        Chaos {
            kill_ms: self.kill_ms.saturating_mul(workers),
            stall_ms: self.stall_ms.saturating_mul(workers),
            drips: some(self.drips),
            half_open: some(self.half_open),
            burners: self.burners,
        }
    }
}

/// What was done of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Connections cut.
    pub(crate) killed: u64,
    /// Readers stopped.
    pub(crate) stalled: u64,
    /// Bytes said one by one.
    pub(crate) dripped_bytes: u64,
    /// Messages that were sent in that way, confirmed, and arrived.
    pub(crate) dripped_messages: u64,
    /// Dripping connections that the server ended.
    pub(crate) drips_lost: u64,
    /// Half-open connections.
    pub(crate) half_opened: u64,
    /// Those of them that the server closed.
    pub(crate) half_closed: u64,
    /// Those that did not come about.
    pub(crate) half_failed: u64,
}

impl Done {
    /// Adds what another worker did.
    pub(crate) fn add(&mut self, other: Done) {
        self.killed += other.killed;
        self.stalled += other.stalled;
        self.dripped_bytes += other.dripped_bytes;
        self.dripped_messages += other.dripped_messages;
        self.drips_lost += other.drips_lost;
        self.half_opened += other.half_opened;
        self.half_closed += other.half_closed;
        self.half_failed += other.half_failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_numbers_and_usual_ones() {
        assert_eq!(trouble("kill"), Ok(Trouble::Kill(KILL_MS)));
        assert_eq!(trouble("kill:5"), Ok(Trouble::Kill(5)));
        assert_eq!(trouble("half-open:7"), Ok(Trouble::HalfOpen(7)));
        for wrong in ["kill:0", "kill:x", "fire", "all:3", ""] {
            assert!(trouble(wrong).is_err(), "{wrong}");
        }
        let chaos = Chaos::of(&[Trouble::All, Trouble::Kill(5)]);
        assert_eq!(chaos, Chaos { kill_ms: 5, ..Chaos::all() });
        assert!(Chaos::of(&[]).is_none());
    }

    #[test]
    fn workers_share_the_trouble() {
        let all = Chaos { drips: 5, half_open: 2, kill_ms: 10, ..Chaos::default() };
        let shares: Vec<Chaos> = (0..3).map(|index| all.share(3, index)).collect();
        assert_eq!(shares.iter().map(|chaos| chaos.drips).sum::<u32>(), 5);
        assert_eq!(shares.iter().map(|chaos| chaos.half_open).sum::<u32>(), 2);
        assert!(shares.iter().all(|chaos| chaos.kill_ms == 30));
    }
}
