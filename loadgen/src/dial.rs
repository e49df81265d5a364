//! Who connects next, and when: a bounded rate, a bounded number under way,
//! and back-off for those that failed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::plan::Rng;

/// Connections a worker has under way at a time: well below what a listener's
/// queue takes, so that no handshake is lost and repeated a second later.
const UNDER_WAY_MAX: usize = 256;

const BACKOFF_NS_MIN: u64 = 50_000_000;
const BACKOFF_NS_MAX: u64 = 2_000_000_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Dialer {
    waiting: VecDeque<u32>,
    later: BinaryHeap<Reverse<(u64, u32)>>,
    gap_ns: u64,
    next_ns: u64,
    under_way: usize,
    rng: Rng,
}

impl Dialer {
    /// A dialer that starts `rate` connections a second.
    pub(crate) fn new(rate: f64, seed: u64) -> Dialer {
        Dialer {
            waiting: VecDeque::new(),
            later: BinaryHeap::new(),
            gap_ns: (1e9 / rate) as u64,
            next_ns: 0,
            under_way: 0,
            rng: Rng::new(seed),
        }
    }

    /// From now on `rate` connections a second.
    pub(crate) fn set_rate(&mut self, rate: f64) {
        self.gap_ns = (1e9 / rate) as u64;
        self.next_ns = 0;
    }

    /// This user wants to connect.
    pub(crate) fn add(&mut self, user: u32) {
        self.waiting.push_back(user);
    }

    /// This user wants to connect again after its `attempt`-th failure in a
    /// row, not before `wait_ns` if the server named a time.
    pub(crate) fn again(&mut self, user: u32, attempt: u32, wait_ns: u64, now_ns: u64) {
        let backoff = (BACKOFF_NS_MIN << attempt.min(10)).min(BACKOFF_NS_MAX);
        // Up to half earlier, so that a crowd does not come back at one time;
        // and never earlier than told, but up to a quarter later.
        let spread = self.rng.below(backoff / 2 + 1);
        let told_ns = wait_ns + self.rng.below(wait_ns / 4 + 1);
        let at = now_ns + (backoff - spread).max(told_ns);
        self.later.push(Reverse((at, user)));
    }

    /// The next user to connect now; it counts as under way.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<u32> {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now_ns) {
            let Reverse((_, user)) = self.later.pop().expect("it was just seen");
            self.waiting.push_back(user);
        }
        if self.under_way >= UNDER_WAY_MAX || now_ns < self.next_ns {
            return None;
        }
        let user = self.waiting.pop_front()?;
        self.under_way += 1;
        // A late caller may catch up a little, never with a burst.
        self.next_ns = self.next_ns.max(now_ns.saturating_sub(10_000_000)) + self.gap_ns;
        Some(user)
    }

    /// A user that was under way is logged in or has failed.
    pub(crate) fn arrived(&mut self) {
        self.under_way = self.under_way.checked_sub(1).expect("each arrives once");
    }

    /// When [`Dialer::due`] may have somebody.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let later = self.later.peek().map(|Reverse((at, _))| *at);
        let waiting = !self.waiting.is_empty() && self.under_way < UNDER_WAY_MAX;
        match (waiting.then_some(self.next_ns), later) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_number_under_way_are_bounded() {
        let mut dialer = Dialer::new(1000.0, 1);
        (0..1000).for_each(|user| dialer.add(user));
        let second = 1_000_000_000;
        let mut started = 0;
        for now in (second..second + 100_000_000).step_by(500_000) {
            started += std::iter::from_fn(|| dialer.due(now)).count();
        }
        // 100 ms at 1000 a second, and 10 ms of catching up at the beginning.
        assert!((100..=112).contains(&started), "{started}");
        for now in (2 * second..10 * second).step_by(1_000_000) {
            started += std::iter::from_fn(|| dialer.due(now)).count();
        }
        assert_eq!(started, UNDER_WAY_MAX);
        dialer.arrived();
        assert!(dialer.due(11 * second).is_some());
    }

    #[test]
    fn failed_ones_come_later() {
        let mut dialer = Dialer::new(1e9, 1);
        dialer.again(7, 0, 0, 1_000);
        assert_eq!(dialer.due(1_000), None);
        let at = dialer.next_ns().expect("somebody waits");
        assert!((BACKOFF_NS_MIN / 2..=BACKOFF_NS_MIN + 1_000).contains(&at));
        assert_eq!(dialer.due(at), Some(7));
    }

    #[test]
    fn who_was_told_when_to_come_comes_later_and_not_all_at_once() {
        let mut dialer = Dialer::new(1e9, 1);
        let second = 1_000_000_000;
        (0..100).for_each(|user| dialer.again(user, 0, second, 0));
        let came: Vec<u64> = std::iter::from_fn(|| {
            let at = dialer.next_ns()?;
            dialer.due(at).map(|_| at)
        })
        .collect();
        assert_eq!(came.len(), 100);
        assert!(came[0] >= second && came[99] <= second * 5 / 4);
        assert!(came[99] - came[0] > second / 10, "{} to {}", came[0], came[99]);
    }
}
