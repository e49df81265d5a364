//! How a core waits, so that neither traffic pays for sleeping nor silence
//! for waiting.
//!
//! While there is traffic the core blocks in its own ring; now and then, and
//! about every millisecond while it waits for helper threads, it lets the executor run
//! its other tasks; after a silent window it parks in the executor and costs
//! nothing. Parking on every wait costs up to twice the CPU per message
//! (docs/decisions/0003-hot-ring.md).

use std::time::Duration;

use net::Patience;

use super::company::Company;
use super::{Core, Doing, clock};

/// The executor runs at least this often while there is traffic.
const BREATHE_NS: u64 = 100_000_000;
/// The same while a segment is being deleted, and in the two seconds before its space
/// is given back in eight steps, of which each begins and ends with the executor.
const BREATHE_REMOVING_NS: u64 = 20_000_000;
/// The same while a helper thread works on what a turn has to go on with.
const BREATHE_HELPED_NS: u64 = 1_000_000;
/// Without traffic for this long the core parks.
const SILENCE_NS: u64 = 20_000_000;
/// Longest wait in the ring.
const WAIT: Duration = Duration::from_millis(5);
/// The same while something waits that no completion announces: room in another
/// core's ring, a segment from a helper thread.
const NAP: Duration = Duration::from_millis(1);
/// Longest park; deadlines and counters are looked at this often.
const PARK: Duration = Duration::from_millis(500);
/// The same while somebody leaves or the disk has no room.
const PARK_SHORT: Duration = Duration::from_millis(50);

/// When a core did what.
#[derive(Default)]
pub(super) struct Rest {
    breathed_ns: u64,
    busy_ns: u64,
    completions: u64,
    pub(super) company: Company,
    /// When the last turn ended.
    turned_ns: u64,
    load: Load,
}

/// How much of its time the core has worked lately.
#[derive(Default)]
struct Load {
    /// When the window began, and how long the core has rested in it.
    began_ns: u64,
    rested_ns: u64,
    /// Windows with hardly any rest, less those with more.
    busy: u64,
}

/// The window in which work and rest are compared.
const LOAD_NS: u64 = 10_000_000;
/// In a busy one a core rests for less than this part of its time.
const REST_SHARE: u64 = 3;
/// So many busy windows more than others make a high load, and no more are
/// remembered than that many again: a stall of the disk or of a client does not
/// end it, nor does one begin it.
const BUSY_MIN: u64 = 8;
const BUSY_MAX: u64 = 15;

impl Load {
    fn rested(&mut self, rested_ns: u64, now_ns: u64) {
        self.rested_ns += rested_ns;
        let elapsed_ns = now_ns.saturating_sub(self.began_ns);
        if elapsed_ns >= LOAD_NS {
            self.busy = if self.rested_ns * REST_SHARE < elapsed_ns {
                BUSY_MAX.min(self.busy + 1)
            } else {
                // One that sleeps sees many windows at once.
                self.busy.saturating_sub(elapsed_ns / LOAD_NS)
            };
            (self.began_ns, self.rested_ns) = (now_ns, 0);
        }
    }

    fn is_high(&self) -> bool {
        self.busy >= BUSY_MIN
    }
}

/// How long a core with nothing else to do lets confirmations wait for company.
/// Clients and disks that stall for a moment do so for less, mostly.
const HOLD_NS: u64 = 5_000_000;

impl Rest {
    /// Whether the core has little time left, so that what it saves counts: below
    /// that a send saved is worth nothing to anybody, and the wait is seen by a
    /// client.
    fn has_high_load(&self) -> bool {
        self.load.is_high()
    }

    /// Where confirmations wait for company now.
    pub(super) fn patience(&self) -> Patience {
        match self.has_high_load() {
            false => Patience::None,
            true if self.company.is_chance() => Patience::Proven,
            true => Patience::Likely,
        }
    }
}

impl Core {
    /// What waits for company has waited a little longer. At the end of a turn, so
    /// that what came in it counts.
    pub(super) fn age_overdue(&mut self) {
        for _ in 0..self.rest.company.ended(self.now.mono_ns) {
            self.hands.age_late();
        }
    }

    /// Sleeps until something happens, if nothing has already.
    pub(super) async fn sleep(&mut self) {
        let now_ns = clock().mono_ns;
        let rested_ns = self.now.mono_ns.saturating_sub(self.rest.turned_ns);
        self.rest.load.rested(rested_ns, now_ns);
        if self.was_busy() {
            self.rest.busy_ns = now_ns;
        }
        let breathe_ns = match () {
            () if self.awaits_help() => BREATHE_HELPED_NS,
            () if self.log.is_removing() => BREATHE_REMOVING_NS,
            () => BREATHE_NS,
        };
        if now_ns - self.rest.breathed_ns >= breathe_ns {
            self.rest.breathed_ns = now_ns;
            self.pulse().is(Doing::Outside);
            self.hands.breathe().await;
            self.pulse().is(Doing::Turning);
            // What other tasks did meanwhile was work, too.
            self.rest.turned_ns = clock().mono_ns;
        } else {
            self.rest.turned_ns = now_ns;
        }
        if self.must_go_on() {
            return;
        }
        self.commit_before_rest();
        let hold = self.holds_for(self.rest.turned_ns);
        if hold.is_none() {
            self.hands.flush_late();
        }
        self.pulse().is(Doing::InRing);
        if self.mesh.is_stuck() {
            // A ring that cannot be emptied would keep the core awake, so sleep
            // is not announced. Room comes with the end of a write, which the
            // ring reports.
            self.hands.wait_holding(NAP);
        } else if self.mesh.sleep() {
            self.wait(hold, now_ns).await;
        }
        self.mesh.awake();
    }

    /// How much longer confirmations may wait for company, if any do. A turn in
    /// which nothing but its own sends ended is no reason to give up.
    fn holds_for(&self, now_ns: u64) -> Option<Duration> {
        let is_holding = self.rest.has_high_load() && self.hands.has_late();
        let left_ns = HOLD_NS.checked_sub(now_ns - self.rest.busy_ns)?;
        (is_holding && left_ns > 0).then(|| Duration::from_nanos(left_ns))
    }

    /// Waits in the way that suits what may come next.
    async fn wait(&mut self, hold: Option<Duration>, now_ns: u64) {
        if self.waits_for_others() {
            self.hands.wait_holding(NAP);
        } else if let Some(left) = hold {
            self.hands.wait_holding(left);
        } else if now_ns - self.rest.busy_ns < SILENCE_NS || self.log.is_sparing() {
            self.hands.wait(WAIT);
        } else {
            let timeout = if self.is_expectant() { PARK_SHORT } else { PARK };
            self.pulse().is(Doing::Parked);
            self.hands.park(timeout).await;
        }
    }

    /// Whether something is under way whose end no completion announces.
    fn waits_for_others(&self) -> bool {
        let is_segment_awaited = self.log.is_preparing() && self.shard.lacks_place();
        self.mesh.is_congested() || is_segment_awaited || self.snapshots.is_awaited()
    }

    /// Whether the last turn had anything to do.
    fn was_busy(&mut self) -> bool {
        let stats = self.hands.stats();
        let log = self.shard.log().end();
        let completions =
            stats.receives + stats.sends + stats.accepted + stats.attached + stats.detached + log;
        std::mem::replace(&mut self.rest.completions, completions) != completions
    }

    /// Something is ready or blocked only by this core's own progress.
    fn must_go_on(&mut self) -> bool {
        // With something held back, or watched as if it were, one look into the
        // kernel is cheaper than what holding on may save.
        let is_holding = self.hands.has_late() || self.log.is_gathering();
        let has_pending = self.hands.has_pending() || is_holding && self.hands.peek();
        let is_hungry = self.catch_up.is_hungry()
            || self.background.is_hungry()
            || self.snapshots.is_hungry()
            || self.census.is_hungry()
            || self.log.has_reads();
        has_pending || self.has_retries() || is_hungry
    }

    /// Something will be due soon.
    fn is_expectant(&self) -> bool {
        let is_waiting = self.shard.lacks_place() || self.pacer.is_pacing();
        self.draining_since.is_some() || is_waiting
    }
}

#[cfg(test)]
mod tests {
    use shard::Conn;

    use super::{BUSY_MAX, BUSY_MIN, LOAD_NS, Load, Patience, Rest};

    /// A load after turns and rests in turn, in microseconds.
    fn after(turn_us: u64, rest_us: u64) -> bool {
        let mut load = Load::default();
        let mut now_ns = 0;
        while now_ns < 2 * BUSY_MIN * LOAD_NS {
            now_ns += (rest_us + turn_us) * 1_000;
            load.rested(rest_us * 1_000, now_ns);
        }
        load.is_high()
    }

    #[test]
    fn a_core_that_hardly_rests_has_a_high_load() {
        assert!(after(100, 0));
        assert!(after(100, 40));
        assert!(!after(100, 60));
        assert!(!after(5, 5_000));
    }

    #[test]
    fn a_stall_ends_no_high_load_and_a_busy_moment_begins_none() {
        let (mut load, mut now_ns) = (Load::default(), 0);
        let mut lives = |windows: u64, rested_ns: u64| {
            for _ in 0..windows {
                now_ns += LOAD_NS;
                load.rested(rested_ns, now_ns);
            }
            load.is_high()
        };
        assert!(!lives(BUSY_MIN - 1, 0));
        assert!(lives(1, 0));
        assert!(lives(100, 0));
        assert!(lives(BUSY_MAX - BUSY_MIN, LOAD_NS / 2));
        assert!(!lives(1, LOAD_NS / 2));
        assert!(!lives(100, LOAD_NS / 2));
        assert!(!lives(BUSY_MIN - 1, 0));
        assert!(lives(BUSY_MAX, 0));
    }

    /// What the hands are told about confirmations, by load and by company.
    #[test]
    fn confirmations_wait_under_a_high_load_and_for_what_is_no_chance() {
        let mut rest = Rest::default();
        assert_eq!(rest.patience(), Patience::None);
        rest.load.busy = BUSY_MIN;
        assert_eq!(rest.patience(), Patience::Likely);
        let conn = |slot| Conn { slot, generation: 1 };
        for _ in 0..20 {
            // Nothing comes for longer than any wait.
            rest.company.confirmed(conn(1));
            (0..200_000).for_each(|_| rest.company.sent(conn(2)));
        }
        assert_eq!(rest.patience(), Patience::Proven);
        rest.load.busy = 0;
        assert_eq!(rest.patience(), Patience::None);
    }

    #[test]
    fn a_sleep_ends_a_high_load() {
        let mut load = Load { busy: BUSY_MAX, ..Load::default() };
        load.rested(50 * LOAD_NS, 50 * LOAD_NS);
        assert!(!load.is_high());
    }
}
