//! The open-loop schedule: when each message is meant to leave, and from whom.
//!
//! The times are fixed before anything is sent and never wait for the server:
//! a slow answer cannot make the next message later, so every latency that is
//! measured from the intended time contains the waiting that a real user would
//! have seen (no coordinated omission).

use serde::{Deserialize, Serialize};

/// How messages are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arrivals {
    /// Equal distances.
    Constant,
    /// Exponential distances, as from many independent users.
    Poisson,
}

/// One message that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shot {
    /// When it is meant to leave, monotonic nanoseconds.
    pub(crate) intended_ns: u64,
    /// Which of the senders, 0-based.
    pub(crate) sender: u32,
    /// Whether it goes to that sender's absent friend.
    pub(crate) to_absent: bool,
}

/// What a schedule is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    /// Messages per second of all senders together.
    pub(crate) rate: f64,
    pub(crate) arrivals: Arrivals,
    /// Number of senders.
    pub(crate) senders: u32,
    /// Part of the messages that go to absent users, 0 to 1.
    pub(crate) absent_share: f64,
    pub(crate) seed: u64,
    /// Where between two messages the first one falls, 0 to 1: spreads the
    /// schedules of several workers.
    pub(crate) offset: f64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Plan {
    rhythm: Rhythm,
    rng: Rng,
    start_ns: u64,
    end_ns: u64,
    /// Distance of the next message from the start, nanoseconds.
    next_ns: f64,
    gap_ns: f64,
    count: u64,
    stride: u64,
}

impl Plan {
    /// A schedule from `start_ns` for `duration_ns`.
    pub(crate) fn new(rhythm: Rhythm, start_ns: u64, duration_ns: u64) -> Plan {
        let mut rng = Rng::new(rhythm.seed);
        let gap_ns = 1e9 / rhythm.rate;
        let senders = u64::from(rhythm.senders.max(1));
        let stride = coprime_near(senders, (rng.unit() * senders as f64) as u64);
        let first = match rhythm.arrivals {
            Arrivals::Constant => gap_ns * rhythm.offset,
            Arrivals::Poisson => rng.exponential() * gap_ns,
        };
        let end_ns = start_ns.saturating_add(duration_ns);
        Plan { rhythm, rng, start_ns, end_ns, next_ns: first, gap_ns, count: 0, stride }
    }

    /// When the next message is meant to leave; `None` after the last.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let at = self.start_ns.saturating_add(self.next_ns as u64);
        (self.rhythm.senders > 0 && self.rhythm.rate > 0.0 && at < self.end_ns).then_some(at)
    }

    /// The next message, when its time has come.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<Shot> {
        let intended_ns = self.next_ns().filter(|at| *at <= now_ns)?;
        let senders = u64::from(self.rhythm.senders);
        let sender = match self.rhythm.arrivals {
            // Every sender in turn, in an order that is not their number's.
            Arrivals::Constant => {
                (u128::from(self.count) * u128::from(self.stride) % u128::from(senders)) as u32
            }
            Arrivals::Poisson => self.rng.below(senders) as u32,
        };
        let share = self.rhythm.absent_share;
        let to_absent = share > 0.0 && self.rng.unit() < share;
        self.count += 1;
        self.next_ns += match self.rhythm.arrivals {
            Arrivals::Constant => self.gap_ns,
            Arrivals::Poisson => self.rng.exponential() * self.gap_ns,
        };
        Some(Shot { intended_ns, sender, to_absent })
    }

    /// Nothing is meant to leave after this time.
    pub(crate) fn stop_at(&mut self, at_ns: u64) {
        self.end_ns = self.end_ns.min(at_ns);
    }

    /// When the schedule ends.
    pub(crate) fn end_ns(&self) -> u64 {
        self.end_ns
    }
}

/// The smallest number from `from` on that has no divisor in common with `n`.
fn coprime_near(n: u64, from: u64) -> u64 {
    (from.max(1)..).find(|candidate| gcd(*candidate, n) == 1).expect("every prime above n is one")
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// splitmix64: small, seeded, good enough for schedules.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The sequence that belongs to a seed.
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least 0, below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Exponentially distributed with mean 1.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rhythm(arrivals: Arrivals, senders: u32) -> Rhythm {
        Rhythm { rate: 1000.0, arrivals, senders, absent_share: 0.25, seed: 7, offset: 0.0 }
    }

    fn all(mut plan: Plan) -> Vec<Shot> {
        std::iter::from_fn(|| plan.due(u64::MAX)).collect()
    }

    #[test]
    fn constant_rate_visits_every_sender_equally() {
        let shots = all(Plan::new(rhythm(Arrivals::Constant, 50), 5_000, 1_000_000_000));
        assert_eq!(shots.len(), 1000);
        assert_eq!(shots[0].intended_ns, 5_000);
        assert_eq!(shots[1].intended_ns, 1_005_000);
        let mut visits = [0; 50];
        for shot in &shots {
            visits[shot.sender as usize] += 1;
        }
        assert_eq!(visits, [20; 50]);
    }

    #[test]
    fn poisson_keeps_the_rate_and_the_seed_decides() {
        let plan = || Plan::new(rhythm(Arrivals::Poisson, 50), 0, 10_000_000_000);
        let shots = all(plan());
        assert!((9_500..10_500).contains(&shots.len()), "{}", shots.len());
        assert!(shots.windows(2).all(|two| two[0].intended_ns <= two[1].intended_ns));
        assert_eq!(shots, all(plan()));
        let absent = shots.iter().filter(|shot| shot.to_absent).count();
        assert!((2_200..2_800).contains(&absent), "{absent}");
    }

    #[test]
    fn late_callers_get_the_intended_times() {
        let mut plan = Plan::new(rhythm(Arrivals::Constant, 2), 0, 1_000_000_000);
        assert_eq!(plan.due(0).map(|shot| shot.intended_ns), Some(0));
        assert_eq!(plan.due(999_999), None);
        assert_eq!(plan.due(500_000_000).map(|shot| shot.intended_ns), Some(1_000_000));
        plan.stop_at(2_000_000);
        assert_eq!(plan.due(500_000_000), None);
        assert_eq!(plan.next_ns(), None);
    }
}
