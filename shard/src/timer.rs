//! Deadlines as data. Each kind of deadline has one length, so a queue in
//! order of arrival is in order of time and no heap or wheel is needed; a
//! connection that met its deadline leaves its entry behind to run out.

use std::collections::VecDeque;

use crate::io::Conn;

/// Connections in the order in which their time runs out.
pub(crate) struct Deadlines {
    after_ns: u64,
    queue: VecDeque<(u64, Conn)>,
}

impl Deadlines {
    /// A queue for deadlines this long after their start.
    pub(crate) fn new(after_ms: u64) -> Deadlines {
        Deadlines { after_ns: after_ms * 1_000_000, queue: VecDeque::new() }
    }

    /// Starts the time of `conn`. The queue is as long as connections can be
    /// accepted within one deadline; accepting is bounded by the table.
    pub(crate) fn start(&mut self, mono_ns: u64, conn: Conn) {
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
