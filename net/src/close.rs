//! The end of a connection.
//!
//! ```text
//! open ──close(Now), cut──────────────────────────────┐
//!  ├──close(Flush)──► flushing ──► lingering ──EOF──► tear down ──last completion──► close ──► free
//!  └──end (peer gone)► flushing ─────────────────────►┘
//! ```
//!
//! Lingering: closing a socket with unread input makes the kernel send a reset, which can overtake
//! the last bytes sent (the refusal that explains the close). So "no more from here" is said
//! first, and input is thrown away until the peer closes too. Both stages share one deadline.

use crate::conn::{ConnId, Flags, NONE};
use crate::event::Event;
use crate::hands::Hands;
use crate::ring::{Op, Target, Token, own};

/// How long a closed connection may take to deliver its last bytes and to see the peer's end.
const CLOSE_MS_MAX: u64 = 3_000;

/// What must happen before a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// What is unsent goes out first, for a few seconds at most.
    Flush,
    /// Nothing: unsent bytes are dropped.
    Now,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer said goodbye.
    Peer,
    /// The connection broke (reset, timeout).
    Reset,
    /// [`Hands::close`] was called.
    Local,
    /// It left too much unread: more than `send_buffer_bytes_max` was waiting for it.
    SlowReader,
    /// A bounded pool had no room for it: incomplete frames, or the table of the core it was to
    /// move to.
    Overload,
}

impl CloseReason {
    /// How many reasons there are.
    pub const COUNT: usize = 5;
}

/// So many deadlines of closing connections are kept without a look at who is gone.
const CLOSING_MIN: usize = 1024;

impl Hands {
    /// Ends a connection. Its id is stale at once; `Closed` with `CloseReason::Local` follows in
    /// the next reap, so that there is one place to clean up.
    pub fn close(&mut self, conn: ConnId, after: After) {
        let Some(slot) = self.table.open(conn) else {
            return;
        };
        match after {
            After::Now => self.cut(slot, CloseReason::Local),
            After::Flush => {
                self.announce_end(slot, CloseReason::Local);
                self.set_deadline(slot);
                self.table[slot].flags.set(Flags::FLUSHING);
                if self.unsent_in(slot) == 0 {
                    self.linger(slot);
                } else {
                    self.mark_dirty(slot);
                }
            }
        }
    }

    /// Ends a connection at once and drops what is unsent.
    pub(crate) fn cut(&mut self, slot: u32, reason: CloseReason) {
        self.announce_end(slot, reason);
        self.tear_down(slot);
    }

    /// The peer is gone. It may only have said that it sends no more, so what is unsent goes out.
    pub(crate) fn end(&mut self, slot: u32, reason: CloseReason) {
        self.announce_end(slot, reason);
        if self.unsent_in(slot) == 0 || reason != CloseReason::Peer {
            return self.tear_down(slot);
        }
        self.set_deadline(slot);
        // Readable: lingering will see the same end again and not last.
        let states = Flags::FLUSHING.or(Flags::READABLE);
        self.table[slot].flags.set(states);
    }

    /// Makes the id stale and tells the caller.
    fn announce_end(&mut self, slot: u32, reason: CloseReason) {
        assert!(self.table[slot].flags.any(Flags::OPEN), "ended twice");
        self.table[slot].flags.clear(Flags::OPEN);
        self.stats.closed[reason as usize] += 1;
        let conn = self.table.id(slot);
        self.pending.push(Event::Closed { conn, reason });
        self.release_received(slot);
    }

    fn set_deadline(&mut self, slot: u32) {
        let conn = self.table.id(slot);
        // Most are gone long before: twice as many as are there keeps this cheap.
        if self.closing.len() > CLOSING_MIN + 2 * self.table.live() {
            self.closing.retain(|(_, conn)| self.table.current(*conn).is_some());
        }
        self.closing.push_back((self.now_ms + CLOSE_MS_MAX, conn));
    }

    /// Everything is with the kernel: waits for the peer's end.
    pub(crate) fn linger(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        let held = Flags::PAUSED.or(Flags::CHOKED).or(Flags::REVISIT);
        entry.flags.clear(Flags::FLUSHING.or(held));
        entry.flags.set(Flags::LINGERING);
        if self.ring.shut_sending(entry.target(), slot) {
            entry.flags.set(Flags::HUSH);
        }
        if entry.flags.any(Flags::READABLE) {
            self.queue_receive(slot);
        } else {
            self.arm_poll(slot);
        }
    }

    /// The peer has been told. Whoever wanted to close meanwhile does so now.
    pub(crate) fn on_hush(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        entry.flags.clear(Flags::HUSH);
        if !entry.flags.any(Flags::LINGERING) {
            self.finish(slot);
        }
    }

    /// Stops everything that is in flight; the rest happens when it has stopped.
    pub(crate) fn tear_down(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        assert!(!entry.flags.any(Flags::OPEN));
        entry.flags.clear(Flags::FLUSHING.or(Flags::LINGERING));
        let sending = entry.flags.any(Flags::SEND);
        self.cancel_poll(slot);
        if sending {
            self.ring.cancel(Token { op: Op::Send, slot });
        }
        self.finish(slot);
    }

    /// Closes and frees the connection once nothing is in flight any more; until then it is called
    /// again by each completion.
    pub(crate) fn finish(&mut self, slot: u32) {
        let flags = self.table[slot].flags;
        assert!(!flags.any(Flags::OPEN.or(Flags::FLUSHING).or(Flags::LINGERING)));
        if flags.any(Flags::BUSY) {
            return;
        }
        self.release_received(slot);
        self.release_outgoing(slot);
        if flags.any(Flags::GONE) {
            self.free(slot);
        } else {
            self.table[slot].flags.set(Flags::SHUT);
            let target = self.table[slot].target();
            self.ring.close(target, Token { op: Op::Close, slot });
        }
    }

    pub(crate) fn on_close(&mut self, slot: u32) {
        self.table[slot].flags.clear(Flags::SHUT);
        self.free(slot);
    }

    fn free(&mut self, slot: u32) {
        if !self.table[slot].flags.any(Flags::MOVED) {
            self.options.quota.leave();
        }
        self.table.remove(slot);
    }

    /// Gives back what was received, unless the kernel is still writing to it.
    pub(crate) fn release_received(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        if entry.flags.any(Flags::RECEIVE) {
            return;
        }
        if entry.slice != NONE {
            self.buffers.arena.release(entry.slice);
            entry.slice = NONE;
        }
        if entry.partial != NONE {
            self.buffers.partials.release(entry.partial);
            entry.partial = NONE;
        }
    }

    /// Cuts short whoever has been closing for too long.
    pub(crate) fn end_overdue(&mut self) {
        while let Some(&(deadline_ms, conn)) = self.closing.front() {
            if deadline_ms > self.now_ms {
                break;
            }
            self.closing.pop_front();
            if let Some(slot) = self.table.current(conn)
                && self.table[slot].flags.any(Flags::FLUSHING.or(Flags::LINGERING))
            {
                self.tear_down(slot);
            }
        }
    }

    /// For the end of the hands: closes a connection's descriptor if it is one of the process.
    pub(crate) fn close_plain(&mut self, slot: u32) {
        let entry = &self.table[slot];
        if !entry.flags.any(Flags::USED) || entry.flags.any(Flags::GONE) {
            return;
        }
        if let Target::Plain(fd) = entry.target() {
            drop(own(fd));
        }
    }
}
