//! Deadlines as data. Each kind of deadline has one length, so a queue in
//! order of arrival is in order of time and no heap or wheel is needed; a
//! connection that met its deadline leaves its entry behind to run out.

use std::collections::VecDeque;

use crate::io::Conn;

/// Connections in the order in which their time runs out.
pub(crate) struct Deadlines {
    after_ns: u64,
    queue: VecDeque<(u64, Conn)>,
    /// Length at which it is looked through for those that have ended.
    prune_at: usize,
}

/// So many are kept without a look at who has ended.
const PRUNE_MIN: usize = 1024;

impl Deadlines {
    /// A queue for deadlines this long after their start.
    pub(crate) fn new(after_ms: u64) -> Deadlines {
        Deadlines { after_ns: after_ms * 1_000_000, queue: VecDeque::new(), prune_at: PRUNE_MIN }
    }

    /// Starts the time of `conn`. The queue is at most twice as long as there are
    /// connections that `still_waits` for: whoever connects and ends at once, all
    /// the time, leaves nothing behind.
    pub(crate) fn start(&mut self, mono_ns: u64, conn: Conn, still_waits: impl Fn(Conn) -> bool) {
        if self.queue.len() >= self.prune_at {
            self.queue.retain(|(_, conn)| still_waits(*conn));
            self.prune_at = (2 * self.queue.len()).max(PRUNE_MIN);
        }
        self.queue.push_back((mono_ns + self.after_ns, conn));
    }

    /// The next connection whose time is over.
    pub(crate) fn pop_due(&mut self, mono_ns: u64) -> Option<Conn> {
        let (at, conn) = *self.queue.front()?;
        if at > mono_ns {
            return None;
        }
        self.queue.pop_front();
        Some(conn)
    }
}

#[cfg(test)]
mod tests {
    use super::{Deadlines, PRUNE_MIN};
    use crate::io::Conn;

    #[test]
    fn those_that_have_ended_are_forgotten() {
        let mut deadlines = Deadlines::new(1_000);
        for slot in 0..100 * PRUNE_MIN as u32 {
            let conn = Conn { slot, generation: 0 };
            deadlines.start(0, conn, |conn| conn.slot == 5 || conn.slot == 50_000);
            assert!(deadlines.queue.len() <= PRUNE_MIN);
        }
        assert_eq!(deadlines.pop_due(1_000_000_000).map(|conn| conn.slot), Some(5));
        assert_eq!(deadlines.pop_due(1_000_000_000).map(|conn| conn.slot), Some(50_000));
        assert_eq!(deadlines.pop_due(999_999_999), None);
    }
}
