//! When a core commits what its shard has appended.
//!
//! A commit costs as much as several messages, so what is appended gathers for
//! a moment; longer while nobody and nothing waits for it to be durable. The
//! core asks in each turn, the simulator does, too.

use crate::Shard;
use crate::io::Now;

/// How long appends gather while the core goes from turn to turn without a rest.
pub const GATHER_NS: u64 = 300_000;

/// So much has gathered: what is saved by more is less than what waiting costs.
const GATHER_BYTES: u64 = 8 << 10;

/// How long they do, busy or not, while nobody waits for them to be durable:
/// acknowledgements, and best effort that has been confirmed already. A commit
/// for each of them would cost more than the message, and fills a block of the
/// disk with a few bytes. So it is for everything on a full disk, whose last
/// blocks must do until snapshots have let go of what is dead.
pub const LAZY_NS: u64 = 4_000_000;

/// More than this is committed in any case.
const LAZY_BYTES: u64 = 64 << 10;

/// What outside a shard waits for its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Nothing does.
    None,
    /// Input without room.
    Input,
    /// A core that stops.
    Stop,
}

/// What one shard has appended and its core has not committed yet.
#[derive(Default)]
pub struct Gather {
    since_ns: Option<u64>,
    is_lazy: bool,
}

impl Gather {
    /// Whether to commit now. What nothing waits for gathers for [`LAZY_NS`], on a full disk
    /// everything does; other things do for [`GATHER_NS`] in a turn that another one follows at
    /// once (`is_busy`), unless they are much or a write is under way already.
    pub fn is_due(&mut self, shard: &Shard, now: Now, is_busy: bool, pressure: Pressure) -> bool {
        let log = shard.log();
        let undurable = log.end() - log.durable();
        if undurable == 0 {
            self.since_ns = None;
            return false;
        }
        let since_ns = *self.since_ns.get_or_insert(now.mono_ns);
        let is_awaited = match pressure {
            Pressure::Stop => true,
            // What is left of a full disk is not for those who are impatient.
            _ if shard.storage_full => false,
            Pressure::Input => true,
            Pressure::None => shard.awaits_log(),
        };
        self.is_lazy = undurable < LAZY_BYTES && !is_awaited;
        let gather_ns = match undurable {
            _ if self.is_lazy => LAZY_NS,
            ..GATHER_BYTES if is_busy && log.in_flight() == 0 => GATHER_NS,
            _ => 0,
        };
        now.mono_ns - since_ns >= gather_ns
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Conn;
    use crate::snapshot::tests::{log_options, options};
    use crate::{KeyHasher, Replay};
    use wal::record::Record;
    use wal::{Log, LogStart};
    use wire::id::UserKey;

    fn at(mono_ns: u64) -> Now {
        Now { mono_ns, wall_ms: 1 }
    }

    /// A shard that has logged so many acknowledgements, for which nobody waits.
    fn shard(acks: u64) -> Shard {
        let log = log_options();
        let start = LogStart::fresh(7);
        let replay = Replay::new(options(), KeyHasher::new([1, 2]), log.segment_bytes);
        let mut shard = replay.finish(&start, Log::new(log, start), 0..0);
        for seq in 1..=acks {
            shard.append(at(0), &Record::Ack { key: UserKey(1), device: 1, seq, exact: false });
        }
        shard
    }

    #[test]
    fn what_nobody_waits_for_gathers_for_long() {
        let (mut gather, shard) = (Gather::default(), shard(1));
        assert!(!gather.is_due(&shard, at(5), false, Pressure::None));
        assert!(!gather.is_awaited());
        assert!(!gather.is_due(&shard, at(4 + LAZY_NS), true, Pressure::None));
        assert!(gather.is_due(&shard, at(5 + LAZY_NS), true, Pressure::None));
        gather.committed();
        assert_eq!(gather.since_ns(), None);
    }

    #[test]
    fn what_somebody_waits_for_gathers_for_a_moment() {
        let (mut gather, shard) = (Gather::default(), shard(1));
        assert!(!gather.is_due(&shard, at(5), true, Pressure::Input));
        assert!(gather.is_awaited());
        assert!(gather.is_due(&shard, at(5), false, Pressure::Input));
        assert!(gather.is_due(&shard, at(5 + GATHER_NS), true, Pressure::Input));
    }

    #[test]
    fn everything_gathers_for_long_on_a_full_disk() {
        let (mut gather, mut shard) = (Gather::default(), shard(1));
        shard.starved.push(Conn { slot: 0, generation: 0 });
        assert!(gather.is_due(&shard, at(5), false, Pressure::None), "somebody waits");
        shard.storage_full = true;
        assert!(!gather.is_due(&shard, at(4 + LAZY_NS), false, Pressure::None));
        assert!(gather.is_due(&shard, at(5 + LAZY_NS), false, Pressure::None));
        assert!(!gather.is_due(&shard, at(5), false, Pressure::Input), "nor does input press");
        assert!(gather.is_due(&shard, at(5), false, Pressure::Stop), "a core stops");
    }

    #[test]
    fn much_does_not_gather() {
        let len = shard(1).log().end();
        let mut much = 1;
        while shard(much).log().end() < GATHER_BYTES {
            much += GATHER_BYTES / len;
        }
        assert!(Gather::default().is_due(&shard(much), at(5), true, Pressure::Input));
        assert!(!Gather::default().is_due(&shard(much), at(5), true, Pressure::None));
    }

    #[test]
    fn nothing_is_not_committed() {
        let mut gather = Gather::default();
        assert!(!gather.is_due(&shard(0), at(5), false, Pressure::Input));
        assert_eq!(gather.since_ns(), None);
    }
}
