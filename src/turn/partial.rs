//! Frames whose end does not come: the connection that holds one for too long
//! is closed.
//!
//! An incomplete frame holds memory of a bounded pool, so whoever never ends
//! one would in time keep others from beginning any. A frame has its time from
//! its first byte on, and more the longer it is, so that a slow line is none.
//! Whom the server itself does not read just now has all the time.
//!
//! One entry in a queue for each watched connection, looked at a few times
//! within the deadline: nothing is done per frame but setting a flag.

use std::collections::VecDeque;

use net::{After, ConnId};
use wire::refuse::Code;
use wire::v2;

use super::Core;
use super::inbound::Speaks;

/// Looks within one deadline; a connection is closed up to one look late.
const LOOKS: u64 = 4;
/// A frame that is dripped at less than this rate is not waited for, bytes/s.
const RATE_MIN: u64 = 1_000;
/// When a client that was too slow may come back, milliseconds.
const RETRY_MS: u32 = 1_000;

/// What is known of a connection's last frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    /// It is incomplete.
    is_partial: bool,
    /// It began after the last look.
    is_new: bool,
    /// The connection has an entry in the queue.
    is_watched: bool,
}

/// One connection to look at.
struct Watch {
    look_ns: u64,
    conn: ConnId,
    /// No later than this the present frame began.
    began_ns: u64,
}

/// Everybody who held an incomplete frame at the last look or since.
pub(super) struct Partials {
    limit_ns: u64,
    /// In the order of `look_ns`.
    queue: VecDeque<Watch>,
    /// Length at which it is looked through for those that have ended.
    prune_at: usize,
    /// Connections closed.
    pub(super) closed: u64,
}

/// What a look shows.
enum Look {
    /// The connection has ended; another one may have its slot.
    Gone,
    /// Nothing waits for its end.
    Done,
    /// Another frame than last time, or one that the server does not read.
    Anew,
    /// The same as last time.
    Same,
    Late,
}

/// So many are watched without a look at who has ended.
const PRUNE_MIN: usize = 1024;

impl Partials {
    pub(super) fn new(limit_ms: u64) -> Partials {
        Partials {
            limit_ns: limit_ms * 1_000_000,
            queue: VecDeque::new(),
            prune_at: PRUNE_MIN,
            closed: 0,
        }
    }

    fn watch(&mut self, now_ns: u64, conn: ConnId, began_ns: u64) {
        let look_ns = now_ns + self.limit_ns / LOOKS;
        self.queue.push_back(Watch { look_ns, conn, began_ns });
    }

    fn pop_due(&mut self, now_ns: u64) -> Option<Watch> {
        if self.queue.front()?.look_ns > now_ns {
            return None;
        }
        self.queue.pop_front()
    }
}

impl Core {
    /// What has been received was decoded; whether something incomplete is
    /// left, and whether something whole stood before it.
    pub(super) fn left(&mut self, conn: ConnId, is_partial: bool, is_behind: bool) {
        let rest = &mut self.inbound.slot(conn).rest;
        rest.is_new |= is_behind || !rest.is_partial;
        rest.is_partial = is_partial;
        if is_partial && !rest.is_watched {
            *rest = Rest { is_partial, is_new: false, is_watched: true };
            if self.partials.queue.len() >= self.partials.prune_at {
                self.forget_ended();
            }
            self.partials.watch(self.now.mono_ns, conn, self.now.mono_ns);
        }
    }

    /// Whoever begins frames and ends, all the time, leaves nothing behind.
    fn forget_ended(&mut self) {
        let Partials { queue, prune_at, .. } = &mut self.partials;
        queue.retain(|watch| self.hands.is_read(watch.conn).is_some());
        *prune_at = (2 * queue.len()).max(PRUNE_MIN);
    }

    /// Closes whoever holds an incomplete frame for too long.
    pub(super) fn close_late_frames(&mut self) {
        let now_ns = self.now.mono_ns;
        while let Some(Watch { conn, began_ns, .. }) = self.partials.pop_due(now_ns) {
            match self.look(conn, began_ns) {
                Look::Gone => {}
                Look::Done => self.inbound.slot(conn).rest.is_watched = false,
                Look::Anew => {
                    self.inbound.slot(conn).rest.is_new = false;
                    self.partials.watch(now_ns, conn, now_ns);
                }
                Look::Same => self.partials.watch(now_ns, conn, began_ns),
                Look::Late => self.close_late_frame(conn),
            }
        }
    }

    fn look(&mut self, conn: ConnId, began_ns: u64) -> Look {
        let Some(is_read) = self.hands.is_read(conn) else { return Look::Gone };
        let Rest { is_partial, is_new, .. } = self.inbound.slot(conn).rest;
        let bytes = self.hands.received(conn).len() as u64;
        let time_ns = self.partials.limit_ns + bytes * (1_000_000_000 / RATE_MIN);
        if !is_partial {
            Look::Done
        } else if is_new || !is_read {
            Look::Anew
        } else if self.now.mono_ns - began_ns < time_ns {
            Look::Same
        } else {
            Look::Late
        }
    }

    fn close_late_frame(&mut self, conn: ConnId) {
        self.partials.closed += 1;
        if self.inbound.slot(conn).speaks == Speaks::V2 {
            let mut bytes = Vec::new();
            v2::put_goaway(&mut bytes, Code::Timeout, RETRY_MS);
            self.hands.send(conn, &bytes);
        }
        self.hands.close(conn, After::Flush);
    }
}
