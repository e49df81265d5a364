//! When a core commits what its shard has appended.
//!
//! A commit costs as much as several messages, so what is appended gathers for
//! a moment; longer while nobody and nothing waits for it to be durable. The
//! core asks in each turn, the simulator does, too.

use crate::Shard;
use crate::io::Now;

/// How long appends gather while the core goes from turn to turn without a rest.
pub const GATHER_NS: u64 = 300_000;

/// How long they do, busy or not, while nobody waits for them to be durable:
/// acknowledgements, and best effort that has been confirmed already. A commit
/// for each of them would cost more than the message, and fills a block of the
/// disk with a few bytes.
pub const LAZY_NS: u64 = 4_000_000;

/// More than this is committed in any case.
const LAZY_BYTES: u64 = 64 << 10;

/// What one shard has appended and its core has not committed yet.
#[derive(Default)]
pub struct Gather {
    since_ns: Option<u64>,
    is_lazy: bool,
}

impl Gather {
    /// Whether to commit now: something was appended at least `gather_ns` ago, or [`LAZY_NS`] if
    /// nothing waits for it. `is_pressed` says that something outside the shard does: input
    /// without room, a commit without a place, a core that stops.
    pub fn is_due(&mut self, shard: &Shard, now: Now, gather_ns: u64, is_pressed: bool) -> bool {
        let log = shard.log();
        let undurable = log.end() - log.durable();
        if undurable == 0 {
            self.since_ns = None;
            return false;
        }
        let since_ns = *self.since_ns.get_or_insert(now.mono_ns);
        self.is_lazy = !is_pressed && undurable < LAZY_BYTES && !shard.awaits_log();
        now.mono_ns - since_ns >= if self.is_lazy { LAZY_NS } else { gather_ns }
    }

    /// What was appended so far is on its way.
    pub fn committed(&mut self) {
        self.since_ns = None;
    }

    /// Since when something gathers, if anything does.
    pub fn since_ns(&self) -> Option<u64> {
        self.since_ns
    }

    /// Whether something gathers that somebody waits for.
    pub fn is_awaited(&self) -> bool {
        self.since_ns.is_some() && !self.is_lazy
    }
}
