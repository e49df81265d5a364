//! How many logins a shard takes at a time.
//!
//! A login costs far more than a message: when everybody comes back at once,
//! taking all of them would stop those who are there. So logins have a rate.
//! Beyond it a client is told when to come back, and each later than the one
//! before, as if all stood in a line; nothing is kept of them but the length
//! of that line. What the shard has to bear besides lowers the rate.
//!
//! The answer to a login with protocol v1 has no time in it, so such a client has
//! no place in the line. One that ignores its time takes another place with each
//! attempt: nothing tells it from others, and what bounds it is the longest time.

use crate::flow::Level;
use crate::io::{Conn, Now};

/// Logins that may come at once, as time at the full rate.
const BURST_NS: u64 = 250_000_000;
/// Nobody is told to wait for longer, jitter not included.
const WAIT_NS_MAX: u64 = 60_000_000_000;
/// Whoever is told to come back gets up to this share of its wait on top, so
/// that those of several shards do not come as one.
const JITTER_SHARE: u64 = 4;
/// How many times the usual time a login takes of the rate, by level.
const COSTS: [u64; Level::COUNT] = [1, 2, 4, 16];

/// One shard's logins. Times are nanoseconds of the monotonic clock.
pub(crate) struct Admission {
    /// Time that a login takes of the full rate; 0 for no bound.
    interval_ns: u64,
    /// Until when the rate is used up by those who were taken.
    taken_until: u64,
    /// Until when it is promised to those who were told to come back.
    promised_until: u64,
}

impl Admission {
    /// So many logins a second; 0 for no bound.
    pub(crate) fn new(per_second: u32) -> Admission {
        let interval_ns = 1_000_000_000_u64.checked_div(per_second.into()).unwrap_or(0);
        Admission { interval_ns, taken_until: 0, promised_until: 0 }
    }

    /// Takes a login, if there is room for it now.
    pub(crate) fn takes(&mut self, now: Now, level: Level) -> bool {
        let interval_ns = self.interval_ns(level);
        let taken_until = self.taken_until.max(now.mono_ns);
        let is_taken = interval_ns == 0 || taken_until - now.mono_ns <= BURST_NS;
        if is_taken {
            self.taken_until = taken_until + interval_ns;
        }
        is_taken
    }

    /// How long a client should stay away whose login was not taken,
    /// milliseconds, never 0: until the place behind those who were told before.
    /// For whoever hears of it; others have no place in that line.
    pub(crate) fn put_off_ms(&mut self, now: Now, conn: Conn, level: Level) -> u32 {
        let first = now.mono_ns + BURST_NS;
        let last = now.mono_ns + WAIT_NS_MAX;
        let promised_until = self.promised_until.max(first) + self.interval_ns(level);
        self.promised_until = promised_until.min(last);
        let wait_ms = (self.promised_until - now.mono_ns) / 1_000_000;
        with_jitter(wait_ms, wait_ms / JITTER_SHARE, now, conn)
    }

    fn interval_ns(&self, level: Level) -> u64 {
        self.interval_ns * COSTS[level as usize]
    }

    /// When the client of `conn` should come back if all of `sessions` have to
    /// go now: at least `wait_ms`, and later by up to the time that their
    /// logins take.
    pub(crate) fn comeback_ms(&self, now: Now, conn: Conn, sessions: u64, wait_ms: u32) -> u32 {
        let spread_ns = self.interval_ns.saturating_mul(sessions).min(WAIT_NS_MAX);
        let wait_ms = u64::from(wait_ms);
        with_jitter(wait_ms, wait_ms.max(spread_ns / 1_000_000), now, conn)
    }
}

/// A shard draws no randomness. Connections differ, and so do moments.
fn with_jitter(wait_ms: u64, jitter_ms: u64, now: Now, conn: Conn) -> u32 {
    let name = u64::from(conn.slot) << 32 | u64::from(conn.generation);
    let jitter_ms = mix(name ^ now.mono_ns.rotate_left(17)) % (jitter_ms + 1);
    u32::try_from(wait_ms + jitter_ms).unwrap_or(u32::MAX).max(1)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use super::*;

    fn at(mono_ns: u64) -> Now {
        Now { mono_ns, wall_ms: 0 }
    }

    fn conn(slot: u32) -> Conn {
        Conn { slot, generation: 1 }
    }

    /// One login of a client that hears when to come back.
    fn admit(admission: &mut Admission, now: Now, conn: Conn, level: Level) -> Result<(), u32> {
        let is_taken = admission.takes(now, level);
        if is_taken { Ok(()) } else { Err(admission.put_off_ms(now, conn, level)) }
    }

    #[test]
    fn without_a_bound_everybody_comes_in() {
        let mut admission = Admission::new(0);
        for slot in 0..100_000 {
            assert_eq!(admit(&mut admission, at(7), conn(slot), Level::Critical), Ok(()));
        }
    }

    #[test]
    fn beyond_the_rate_each_is_told_a_later_time() {
        let mut admission = Admission::new(100);
        let (mut taken, mut waits) = (0, Vec::new());
        for slot in 0..1000 {
            match admit(&mut admission, at(5), conn(slot), Level::Calm) {
                Ok(()) => taken += 1,
                Err(wait_ms) => waits.push(u64::from(wait_ms)),
            }
        }
        // A quarter of a second's, and the one that finds it used up.
        assert_eq!(taken, 26);
        for (place, wait_ms) in waits.into_iter().enumerate() {
            let promised_ms = 250 + 10 * (place as u64 + 1);
            let range = promised_ms..=promised_ms + promised_ms / JITTER_SHARE;
            assert!(range.contains(&wait_ms), "{place}: {wait_ms} is not in {range:?}");
        }
    }

    /// Whoever is not told a time takes none of the others'.
    #[test]
    fn clients_that_hear_of_no_time_have_no_place_in_the_line() {
        let mut admission = Admission::new(100);
        let refused = (0..10_000).filter(|_| !admission.takes(at(5), Level::Calm)).count();
        assert_eq!(refused, 10_000 - 26);
        let wait_ms = admit(&mut admission, at(5), conn(1), Level::Calm).unwrap_err();
        assert!((260..=325).contains(&wait_ms), "{wait_ms}");
    }

    #[test]
    fn nobody_is_sent_away_for_longer_than_the_longest_time() {
        let mut admission = Admission::new(1);
        let longest =
            (0..10_000).filter_map(|n| admit(&mut admission, at(n), conn(9), Level::Calm).err());
        let longest = longest.max().unwrap();
        assert!((60_000..=75_000).contains(&longest), "{longest}");
    }

    /// A storm of clients that do as they are told: all of them get in, in the
    /// time the rate needs and a little, and none more often than a few times.
    #[track_caller]
    fn check_storm(per_second: u32, level: Level, clients: u32) {
        let mut admission = Admission::new(per_second);
        let mut arrivals: BinaryHeap<_> =
            (0..clients).map(|slot| std::cmp::Reverse((0_u64, slot))).collect();
        let (mut ended_ns, mut refusals, mut taken_at) = (0, 0_u64, Vec::new());
        while let Some(std::cmp::Reverse((now_ns, slot))) = arrivals.pop() {
            match admit(&mut admission, at(now_ns), conn(slot), level) {
                Ok(()) => {
                    taken_at.push(now_ns);
                    ended_ns = now_ns;
                }
                Err(wait_ms) => {
                    refusals += 1;
                    let again_ns = now_ns + u64::from(wait_ms) * 1_000_000;
                    arrivals.push(std::cmp::Reverse((again_ns, slot)));
                }
            }
        }
        let rate = u64::from(per_second) / COSTS[level as usize];
        // In no second more than the rate and one burst.
        let mut from = 0;
        for (n, at_ns) in taken_at.iter().enumerate() {
            while at_ns - taken_at[from] >= 1_000_000_000 {
                from += 1;
            }
            assert!((n - from) as u64 <= rate + rate / 4 + 2, "{} in a second", n - from);
        }
        let needed_ns = u64::from(clients) * 1_000_000_000 / rate;
        assert!(ended_ns <= 2 * needed_ns + 1_000_000_000, "{ended_ns} ns, needed {needed_ns}");
        assert!(refusals <= 6 * u64::from(clients), "{refusals} refusals of {clients}");
    }

    #[test]
    fn a_storm_passes_in_the_time_that_the_rate_needs() {
        check_storm(5, Level::Calm, 50);
        check_storm(1_000, Level::Calm, 20_000);
        check_storm(20_000, Level::Calm, 500_000);
        check_storm(20_000, Level::High, 100_000);
    }

    #[test]
    fn who_has_to_go_comes_back_spread_over_the_time_that_logins_need() {
        let admission = Admission::new(1_000);
        let waits: Vec<u32> =
            (0..10_000).map(|n| admission.comeback_ms(at(3), conn(n), 10_000, 1_000)).collect();
        assert!(waits.iter().all(|wait| (1_000..=11_000).contains(wait)));
        for from in (1_000..11_000).step_by(1_000) {
            let there = waits.iter().filter(|wait| (from..from + 1_000).contains(*wait)).count();
            assert!((800..1_200).contains(&there), "{there} from {from} ms on");
        }
        let unbounded = Admission::new(0).comeback_ms(at(3), conn(1), 10_000, 1_000);
        assert!((1_000..=2_000).contains(&unbounded));
    }
}
