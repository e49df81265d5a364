//! How fast segments empty by themselves.

/// What is empty within so many ticks is not copied from.
const TICKS: u64 = 10;

/// Bytes of one segment that were acknowledged in one tick and in the one before.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    tick: u64,
    taken: u64,
    before: u64,
}

impl Pace {
    /// So many bytes were acknowledged.
    pub(super) fn add(&mut self, tick: u64, bytes: u64) {
        (self.taken, self.before) = self.at(tick);
        self.taken += bytes;
        self.tick = tick;
    }

    /// Bytes in a tick: the one before, unless this one has seen more already.
    pub(super) fn get(&self, tick: u64) -> u64 {
        let (taken, before) = self.at(tick);
        taken.max(before)
    }

    fn at(&self, tick: u64) -> (u64, u64) {
        match tick - self.tick {
            0 => (self.taken, self.before),
            1 => (0, self.taken),
            _ => (0, 0),
        }
    }
}

/// Those who collect what waits in one segment after the other.
#[derive(Default)]
pub(super) struct Collectors {
    ahead: u64,
    pace: u64,
}

impl Collectors {
    /// The next segment: whether its `live` bytes are soon gone, at its own pace
    /// or at that of the segments before it, whose collectors come here next. To
    /// them it is `room` bytes if that is more, so that they reach no more
    /// segments than cleaning could make of what they collect.
    pub(super) fn reach(&mut self, live: u64, room: u64, pace: u64) -> bool {
        let alone = (live, pace);
        let together = (self.ahead + live.max(room), self.pace + pace);
        let is_soon = |&(live, pace): &(u64, u64)| live < TICKS.saturating_mul(pace);
        let soon = [together, alone].into_iter().find(is_soon);
        (self.ahead, self.pace) = soon.unwrap_or_default();
        soon.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_of_two_ticks_counts() {
        let mut pace = Pace::default();
        assert_eq!(pace.get(0), 0);
        pace.add(5, 30);
        pace.add(5, 70);
        assert_eq!(pace.get(5), 100);
        pace.add(6, 10);
        assert_eq!(pace.get(6), 100, "this one has just begun");
        assert_eq!(pace.get(7), 10);
        assert_eq!(pace.get(8), 0);
        pace.add(9, 20);
        assert_eq!(pace.get(9), 20);
    }

    fn reached(room: u64, segments: &[(u64, u64)]) -> Vec<bool> {
        let mut collectors = Collectors::default();
        segments.iter().map(|&(live, pace)| collectors.reach(live, room, pace)).collect()
    }

    #[test]
    fn collectors_go_on_as_far_as_they_come_in_ten_ticks() {
        let reached = |segments| reached(0, segments);
        assert_eq!(reached(&[(999, 100), (1000, 100)]), [true, true], "each has its own");
        assert_eq!(reached(&[(1000, 100)]), [false]);
        assert_eq!(reached(&[(300, 100), (300, 0), (399, 0), (1, 0)]), [true, true, true, false]);
        assert_eq!(reached(&[(700, 0), (300, 100)]), [false, true], "what lies behind them stays");
        assert_eq!(reached(&[(5, 1), (700, 0), (1, 0)]), [true, false, false]);
        assert_eq!(reached(&[(9, 1), (600, 100), (401, 0)]), [true, true, false]);
    }

    /// What others have left of many segments is not theirs to protect.
    #[test]
    fn collectors_reach_few_segments_however_little_is_left_in_them() {
        let nearly_dead = [(300, 100), (1, 0), (1, 0), (1, 0), (1, 0)];
        assert_eq!(reached(300, &nearly_dead), [true, true, true, false, false]);
        assert_eq!(reached(300, &[(20, 0), (1, 1), (1, 0)]), [false, true, false]);
    }
}
