//! How a core waits, so that neither traffic pays for sleeping nor silence
//! for waiting.
//!
//! While there is traffic the core blocks in its own ring; now and then, and
//! about every millisecond while helper threads work, it lets the executor run
//! its other tasks; after a silent window it parks in the executor and costs
//! nothing. Parking on every wait costs three
//! times the CPU per message (docs/decisions/0003-hot-ring.md).

use std::time::Duration;

use super::{Core, Doing, clock};

/// The executor runs at least this often while there is traffic, and while a
/// helper thread works whose end it has to notice.
const BREATHE_NS: u64 = 20_000_000;
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
    /// Since when something late may be waiting.
    late_ns: Option<u64>,
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
    is_high: bool,
}

/// The window in which work and rest are compared.
const LOAD_NS: u64 = 10_000_000;
/// A core that rests for less than this part of its time has a high load.
const REST_SHARE: u64 = 4;

impl Load {
    fn rested(&mut self, rested_ns: u64, now_ns: u64) {
        self.rested_ns += rested_ns;
        let elapsed_ns = now_ns.saturating_sub(self.began_ns);
        if elapsed_ns >= LOAD_NS {
            self.is_high = self.rested_ns * REST_SHARE < elapsed_ns;
            (self.began_ns, self.rested_ns) = (now_ns, 0);
        }
    }
}

/// A confirmation waits for a delivery to share its send with at most between
/// once and twice this long, and only while the core's load is high: below that
/// a send saved is worth nothing to anybody, and the wait is seen by a client.
/// Clients that answer each other do so within one trip through a saturated
/// server.
const LATE_NS: u64 = 25_000_000;
/// How long a core with nothing else to do waits for such company.
const HOLD: Duration = Duration::from_millis(1);

impl Rest {
    /// Whether the core has little time left, so that what it saves counts.
    pub(super) fn has_high_load(&self) -> bool {
        self.load.is_high
    }
}

impl Core {
    /// A send is most of what a message costs, so while the core is busy a
    /// confirmation waits for the next delivery to the same client; but not for
    /// ever.
    pub(super) fn flush_overdue(&mut self) {
        if !self.hands.has_late() {
            self.rest.late_ns = None;
            return;
        }
        let since = *self.rest.late_ns.get_or_insert(self.now.mono_ns);
        if self.now.mono_ns - since >= LATE_NS {
            self.hands.age_late();
            self.rest.late_ns = None;
        }
    }

    /// Sleeps until something happens, if nothing has already.
    pub(super) async fn sleep(&mut self) {
        let now_ns = clock().mono_ns;
        let rested_ns = self.now.mono_ns.saturating_sub(self.rest.turned_ns);
        self.rest.load.rested(rested_ns, now_ns);
        let was_busy = self.was_busy();
        if was_busy {
            self.rest.busy_ns = now_ns;
        }
        let breathe_ns = if self.is_helped() { BREATHE_HELPED_NS } else { BREATHE_NS };
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
        let is_holding = was_busy && self.rest.has_high_load() && self.hands.has_late();
        if !is_holding {
            self.hands.flush_late();
        }
        self.pulse().is(Doing::InRing);
        if self.mesh.is_stuck() {
            // A ring that cannot be emptied would keep the core awake, so sleep
            // is not announced. Room comes with the end of a write, which the
            // ring reports.
            self.hands.wait_holding(NAP);
        } else if self.mesh.sleep() {
            self.wait(is_holding, now_ns).await;
        }
        self.mesh.awake();
    }

    /// Waits in the way that suits what may come next.
    async fn wait(&mut self, is_holding: bool, now_ns: u64) {
        if is_holding {
            self.hands.wait_holding(HOLD);
        } else if self.waits_for_others() {
            self.hands.wait(NAP);
        } else if now_ns - self.rest.busy_ns < SILENCE_NS {
            self.hands.wait(WAIT);
        } else {
            let timeout = if self.is_expectant() { PARK_SHORT } else { PARK };
            self.pulse().is(Doing::Parked);
            self.hands.park(timeout).await;
        }
    }

    /// Whether something is under way whose end no completion announces.
    fn waits_for_others(&self) -> bool {
        self.mesh.is_congested() || self.log.is_awaited() || self.snapshots.is_awaited()
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
        let is_hungry = self.snapshots.is_hungry()
            || self.census.is_hungry()
            || self.catch_up.is_hungry()
            || self.log.has_reads();
        has_pending || self.has_retries() || is_hungry
    }

    /// Something will be due soon.
    fn is_expectant(&self) -> bool {
        self.draining_since.is_some() || self.log.is_held() || self.pacer.is_pacing()
    }
}

#[cfg(test)]
mod tests {
    use super::{LOAD_NS, Load};

    /// A load after turns and rests in turn, in microseconds.
    fn after(turn_us: u64, rest_us: u64) -> bool {
        let mut load = Load::default();
        let mut now_ns = 0;
        while now_ns < 2 * LOAD_NS {
            now_ns += (rest_us + turn_us) * 1_000;
            load.rested(rest_us * 1_000, now_ns);
        }
        load.is_high
    }

    #[test]
    fn a_core_that_hardly_rests_has_a_high_load() {
        assert!(after(100, 0));
        assert!(after(100, 20));
        assert!(!after(100, 50));
        assert!(!after(5, 5_000));
    }

    #[test]
    fn the_load_falls_within_two_windows() {
        let mut load = Load::default();
        load.rested(0, LOAD_NS);
        assert!(load.is_high);
        load.rested(LOAD_NS / 2, 2 * LOAD_NS);
        assert!(!load.is_high);
    }
}
