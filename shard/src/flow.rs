//! How much a shard has to bear, as a level, and what each level still allows.
//!
//! Five measures are taken some ten times a second, each has a level, and the
//! highest counts. It rises at once and falls by one step when for a second
//! every measure has been clearly below it: what hangs on it must not flap. It
//! decides about what is optional, about logins and about how fast senders are
//! read; never about a message.

use wal::Lsn;

use crate::io::Now;

/// How much a shard has to bear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Level {
    /// Everything is done.
    #[default]
    Calm = 0,
    /// Fewer logins; nothing that only says what somebody does just now.
    Busy = 1,
    /// Fewer still, and no receipts.
    High = 2,
    /// Few, and who sends much at once is read more slowly.
    Critical = 3,
}

impl Level {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them, in rising order, with their names in metrics.
    pub const ALL: [(Level, &'static str); Level::COUNT] = [
        (Level::Calm, "calm"),
        (Level::Busy, "busy"),
        (Level::High, "high"),
        (Level::Critical, "critical"),
    ];

    /// Whether this is still done. What is shed is counted by who sheds it.
    pub fn allows(self, optional: Optional) -> bool {
        match optional {
            Optional::Typing | Optional::Presence => self < Level::Busy,
            Optional::Receipt => self < Level::High,
        }
    }
}

/// What nobody loses anything by, in the order in which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optional {
    /// Somebody is typing.
    Typing,
    /// Somebody has come or gone.
    Presence,
    /// A device has a message that its sender asked about.
    Receipt,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Measure {
    /// Length of a turn, nanoseconds, in the mean.
    Turn = 0,
    /// Undurable bytes as a share of what the log's tail can hold, per mille.
    Log = 1,
    /// What the memory for incomplete frames holds, per mille.
    Frames = 2,
    /// For how long the disk has not ended a write, nanoseconds.
    Disk = 3,
    /// Bytes that clients have not taken as a share of what there may be, per
    /// mille.
    Unsent = 4,
}

impl Measure {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All of them with their names in metrics.
    pub const ALL: [(Measure, &'static str); Measure::COUNT] = [
        (Measure::Turn, "turn"),
        (Measure::Log, "log"),
        (Measure::Frames, "frames"),
        (Measure::Disk, "disk"),
        (Measure::Unsent, "unsent"),
    ];

    /// From where on it calls for the levels above calm. Two never call for the
    /// highest: a full tail holds senders back by itself, and nobody is read
    /// more slowly because others do not read.
    const fn thresholds(self) -> [u64; 3] {
        const MS: u64 = 1_000_000;
        match self {
            Measure::Turn => [10 * MS, 40 * MS, 150 * MS],
            Measure::Log | Measure::Unsent => [500, 900, u64::MAX],
            Measure::Frames => [500, 750, 900],
            Measure::Disk => [250 * MS, 2_000 * MS, 10_000 * MS],
        }
    }

    /// Whether one value says little: what is momentary and normal in bursts
    /// counts as the least of the last few.
    const fn is_momentary(self) -> bool {
        matches!(self, Measure::Turn | Measure::Log)
    }
}

/// Values of which the least counts.
const SUSTAINED: usize = 4;
/// For so long everything must be lower before the level falls by one.
const QUIET_NS: u64 = 1_000_000_000;

/// What was measured, by [`Measure`].
pub type Measured = [u64; Measure::COUNT];

/// The level and what it comes from.
#[derive(Debug, Default)]
pub struct Flow {
    level: Level,
    /// Levels that the single measures call for.
    by_measure: [Level; Measure::COUNT],
    recent: [Measured; SUSTAINED],
    at: usize,
    /// Since when every measure has been clearly below the level.
    quiet_since_ns: Option<u64>,
}

impl Flow {
    /// Takes what was measured at `mono_ns`; the times must not step back.
    pub fn feed(&mut self, mono_ns: u64, measured: Measured) -> Level {
        self.recent[self.at % SUSTAINED] = measured;
        self.at += 1;
        let mut held = Level::Calm;
        for (measure, _) in Measure::ALL {
            let value = self.value(measure);
            let (rises, stays) = levels(measure, value);
            self.by_measure[measure as usize] = rises;
            held = held.max(stays);
        }
        let wanted = self.by_measure.into_iter().max().unwrap_or_default();
        if wanted > self.level {
            self.level = wanted;
            self.quiet_since_ns = None;
        } else if held >= self.level {
            self.quiet_since_ns = None;
        } else if mono_ns - *self.quiet_since_ns.get_or_insert(mono_ns) >= QUIET_NS {
            self.level = Level::ALL[self.level as usize - 1].0;
            self.quiet_since_ns = None;
        }
        self.level
    }

    /// The level now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The levels that single measures call for now, by [`Measure`].
    pub fn by_measure(&self) -> [Level; Measure::COUNT] {
        self.by_measure
    }

    fn value(&self, measure: Measure) -> u64 {
        let of = |measured: &Measured| measured[measure as usize];
        if measure.is_momentary() {
            self.recent.iter().map(of).min().unwrap_or(0)
        } else {
            of(&self.recent[(self.at - 1) % SUSTAINED])
        }
    }
}

/// The level that a value calls for, and the one it holds where that has been
/// reached: a quarter below where it began.
fn levels(measure: Measure, value: u64) -> (Level, Level) {
    let reached = |value: u64| {
        let count = measure.thresholds().iter().filter(|at| value >= **at).count();
        Level::ALL[count].0
    };
    (reached(value), reached(value.saturating_add(value.div_ceil(3))))
}

/// For how long the log's durable end has stood still with something waiting.
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    durable: Lsn,
    since_ns: u64,
}

impl Standstill {
    /// Nanoseconds until now.
    pub(crate) fn measure(&mut self, now: Now, durable: Lsn, end: Lsn) -> u64 {
        if durable != self.durable || durable >= end {
            *self = Standstill { durable, since_ns: now.mono_ns };
        }
        now.mono_ns - self.since_ns
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK_NS: u64 = 100_000_000;

    fn frames(permille: u64) -> Measured {
        let mut measured = Measured::default();
        measured[Measure::Frames as usize] = permille;
        measured
    }

    /// Feeds a value each tick; the level after each.
    fn levels_of(values: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let mut flow = Flow::default();
        let values = values.into_iter().zip(1..);
        values.map(|(value, n)| flow.feed(n * TICK_NS, frames(value)) as usize).collect()
    }

    #[test]
    fn rises_at_once_and_falls_by_one_each_quiet_second() {
        let levels = levels_of([0, 950].into_iter().chain([0; 40]));
        assert_eq!(levels[..3], [0, 3, 3]);
        let fall = |from: usize| levels.iter().rposition(|level| *level == from).unwrap();
        // Ten ticks of quiet, counted from the first quiet one.
        assert_eq!((fall(3), fall(2), fall(1)), (11, 22, 33));
    }

    #[test]
    fn what_is_a_little_lower_holds_the_level() {
        assert_eq!(levels_of([900].into_iter().chain([700; 40])).last(), Some(&3));
        assert_eq!(levels_of([900].into_iter().chain([670; 40])).last(), Some(&2));
        assert_eq!(levels_of([500].into_iter().chain([380; 40])).last(), Some(&1));
        assert_eq!(levels_of([500].into_iter().chain([370; 40])).last(), Some(&0));
    }

    #[test]
    fn one_long_turn_is_nothing_and_many_are() {
        let turn = |ms: u64| [ms * 1_000_000, 0, 0, 0, 0];
        let mut flow = Flow::default();
        assert_eq!(flow.feed(1, turn(500)), Level::Calm);
        for _ in 0..SUSTAINED - 2 {
            assert_eq!(flow.feed(1, turn(500)), Level::Calm);
        }
        assert_eq!(flow.feed(1, turn(500)), Level::Critical);
        assert_eq!(flow.by_measure()[Measure::Turn as usize], Level::Critical);
    }

    #[test]
    fn a_full_tail_and_deaf_clients_are_high_and_a_disk_that_stands_still_critical() {
        let mut flow = Flow::default();
        let levels: Vec<Level> =
            (0..SUSTAINED).map(|_| flow.feed(1, [0, 1000, 0, 0, 1000])).collect();
        assert_eq!(levels.last(), Some(&Level::High));
        assert_eq!(flow.feed(1, [0, 0, 0, 10_000_000_000, 0]), Level::Critical);
    }

    #[test]
    fn what_is_optional_goes_in_its_order() {
        let order = [Optional::Typing, Optional::Presence, Optional::Receipt];
        for (level, _) in Level::ALL {
            let allowed = order.map(|optional| level.allows(optional));
            assert!(allowed.is_sorted(), "{level:?} {allowed:?}");
        }
        assert!(order.iter().all(|optional| Level::Calm.allows(*optional)));
        assert!(order.iter().all(|optional| !Level::Critical.allows(*optional)));
    }

    #[test]
    fn a_log_that_moves_or_waits_for_nothing_does_not_stand_still() {
        let at = |ms: u64| Now { mono_ns: ms * 1_000_000, wall_ms: 0 };
        let mut still = Standstill::default();
        assert_eq!(still.measure(at(100), 0, 0), 0);
        assert_eq!(still.measure(at(200), 0, 10), 100_000_000);
        assert_eq!(still.measure(at(900), 0, 20), 800_000_000);
        assert_eq!(still.measure(at(1000), 10, 20), 0);
        assert_eq!(still.measure(at(1100), 20, 20), 0);
    }

    fn any_measured() -> impl Strategy<Value = Measured> {
        let turn = prop_oneof![Just(0), 0..300_000_000_u64];
        let share = || prop_oneof![Just(0), 0..1100_u64];
        let disk = prop_oneof![8 => Just(0), 1 => 0..20_000_000_000_u64];
        (turn, share(), share(), disk, share()).prop_map(<[u64; 5]>::from)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Who bears more is never on a lower level.
        #[test]
        fn the_level_is_monotonic(
            steps in proptest::collection::vec((any_measured(), any_measured(), 1..2_000_u64), 1..200),
        ) {
            let (mut less, mut more) = (Flow::default(), Flow::default());
            let mut now_ns = 0;
            for (measured, extra, ms) in steps {
                now_ns += ms * 1_000_000;
                let mut sum = measured;
                sum.iter_mut().zip(extra).for_each(|(value, extra)| *value += extra);
                prop_assert!(less.feed(now_ns, measured) <= more.feed(now_ns, sum));
            }
        }

        /// It is never below what is called for, falls by single steps, and
        /// not sooner than a second after whatever held it.
        #[test]
        fn the_level_falls_slowly(
            steps in proptest::collection::vec((any_measured(), 1..1_500_u64), 1..200),
        ) {
            let mut flow = Flow::default();
            let (mut now_ns, mut before, mut held_ns) = (0, Level::Calm, 0);
            for (measured, ms) in steps {
                now_ns += ms * 1_000_000;
                let level = flow.feed(now_ns, measured);
                let wanted = flow.by_measure().into_iter().max().unwrap();
                prop_assert!(level >= wanted);
                prop_assert!(level <= before.max(wanted));
                if level < before {
                    prop_assert_eq!(level as usize + 1, before as usize);
                    prop_assert!(now_ns - held_ns >= QUIET_NS);
                }
                if level != before || wanted == level {
                    held_ns = now_ns;
                }
                before = level;
            }
        }
    }
}
