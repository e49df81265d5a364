//! How a core waits, so that neither traffic pays for sleeping nor silence
//! for waiting.
//!
//! While there is traffic the core blocks in its own ring; about every
//! millisecond it lets the executor run its other tasks; after a silent window
//! it parks in the executor and costs nothing. Parking on every wait costs three
//! times the CPU per message (docs/decisions/0003-hot-ring.md).

use std::time::Duration;

use super::{Core, clock};

/// The executor runs at least this often while there is traffic.
const BREATHE_NS: u64 = 1_000_000;
/// Without traffic for this long the core parks.
const SILENCE_NS: u64 = 20_000_000;
/// Longest wait in the ring.
const WAIT: Duration = Duration::from_millis(5);
/// Longest park; deadlines and counters are looked at this often.
const PARK: Duration = Duration::from_millis(500);
/// The same while deadlines run, somebody leaves, or a segment is awaited.
const PARK_SHORT: Duration = Duration::from_millis(50);

/// A confirmation waits no longer than this for a delivery to share its send
/// with, and only while the core has other work.
const LATE_NS_MAX: u64 = 10_000_000;

/// When a core did what.
#[derive(Default)]
pub(super) struct Rest {
    breathed_ns: u64,
    busy_ns: u64,
    completions: u64,
    /// Since when something late may be waiting.
    late_ns: Option<u64>,
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
        if self.now.mono_ns - since >= LATE_NS_MAX {
            self.rest.late_ns = None;
            self.hands.flush_late();
        }
    }

    /// Sleeps until something happens, if nothing has already.
    pub(super) async fn sleep(&mut self) {
        let now_ns = clock().mono_ns;
        if self.was_busy() {
            self.rest.busy_ns = now_ns;
        }
        if now_ns - self.rest.breathed_ns >= BREATHE_NS {
            self.rest.breathed_ns = now_ns;
            self.hands.breathe().await;
        }
        if self.must_go_on() {
            return;
        }
        let is_silent = now_ns - self.rest.busy_ns >= SILENCE_NS;
        if self.mesh.sleep() {
            if is_silent {
                let timeout = if self.is_expectant() { PARK_SHORT } else { PARK };
                self.hands.park(timeout).await;
            } else {
                self.hands.wait(WAIT);
            }
        }
        self.mesh.awake();
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
        // With something late at hand, one look into the kernel is cheaper than
        // the sends it may save.
        let has_pending = self.hands.has_pending() || self.hands.has_late() && self.hands.peek();
        has_pending || self.has_retries()
    }

    /// Something will be due soon.
    fn is_expectant(&self) -> bool {
        self.draining_since.is_some() || self.log.is_held() || self.mesh.is_congested()
    }
}
