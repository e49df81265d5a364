//! How old places of the log are, roughly and in bounded memory.
//!
//! Entries of an inbox carry no time. Now and then it is noted how far the log
//! has come, and whatever lies below such a mark is at least as old as it: a
//! lower bound always, within a second for what is recent, within a few
//! minutes for what is a day old.

use std::collections::VecDeque;

use wal::Lsn;

use crate::io::Now;

/// Marks that are kept; at more every second one goes.
const MARKS_MAX: usize = 1024;
/// Shortest time between two marks.
const EVERY_NS: u64 = 1_000_000_000;

/// Marks with rising ends and times.
pub(crate) struct Ages {
    marks: VecDeque<(Lsn, u64)>,
    every_ns: u64,
}

impl Default for Ages {
    fn default() -> Ages {
        Ages { marks: VecDeque::new(), every_ns: EVERY_NS }
    }
}

impl Ages {
    /// The log ends here now.
    pub(crate) fn note(&mut self, now: Now, end: Lsn) {
        if let Some((last_end, last_ns)) = self.marks.back()
            && (*last_end == end || now.mono_ns - last_ns < self.every_ns)
        {
            return;
        }
        if self.marks.len() == MARKS_MAX {
            let mut n = 0;
            self.marks.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.every_ns *= 2;
        }
        self.marks.push_back((end, now.mono_ns));
    }

    /// For how long at least there has been something at this place, seconds.
    pub(crate) fn seconds(&self, now: Now, lsn: Lsn) -> u64 {
        let at = self.marks.partition_point(|(end, _)| *end <= lsn);
        let since_ns = self.marks.get(at).map_or(now.mono_ns, |(_, mono_ns)| *mono_ns);
        now.mono_ns.saturating_sub(since_ns) / 1_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_lower_bound_and_not_far_off() {
        let mut ages = Ages::default();
        // 10 bytes a second for a month, looked at ten times a second at first.
        let month_s = 30 * 24 * 60 * 60;
        for tenth in 0..1000 {
            ages.note(Now { mono_ns: tenth * 100_000_000, wall_ms: 0 }, tenth);
        }
        for second in 100..month_s {
            ages.note(Now { mono_ns: second * 1_000_000_000, wall_ms: 0 }, second * 10);
        }
        assert!(ages.marks.len() <= MARKS_MAX);
        let now = Now { mono_ns: month_s * 1_000_000_000, wall_ms: 0 };
        for second in (100..month_s).step_by(997) {
            let (age, is) = (month_s - second, ages.seconds(now, second * 10));
            let step_s = ages.every_ns / 1_000_000_000;
            assert!(is <= age && is + 2 * step_s >= age, "{is} of {age}, steps of {step_s}");
        }
        assert_eq!(ages.seconds(now, month_s * 10), 0, "nothing is there yet");
    }

    #[test]
    fn a_log_that_stands_still_takes_no_marks() {
        let mut ages = Ages::default();
        for second in 0..10_000 {
            ages.note(Now { mono_ns: second * 1_000_000_000, wall_ms: 0 }, 77);
        }
        assert_eq!(ages.marks.len(), 1);
    }
}
