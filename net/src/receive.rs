//! Receiving: poll → receive into a borrowed slice → the turn looks at the bytes → the rest stays.
//!
//! An idle connection holds nothing but its poll. A slice is borrowed from the receive to the
//! consumption, both in one turn; only an incomplete frame gets a buffer of its own, and while it
//! has one, bytes are received straight into it.

use crate::close::CloseReason;
use crate::conn::{Conn, ConnId, Flags, NONE};
use crate::event::Event;
use crate::hands::Hands;
use crate::ring::{Op, Token};

/// What a poll says of a peer that has ended. A multishot poll tells of bytes and of an end right
/// behind them in one event, and the receive that follows shows the bytes only.
const POLL_ENDS: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

impl Conn {
    /// Holds a slice that the kernel is done with.
    fn has_slice_bytes(&self) -> bool {
        self.slice != NONE && !self.flags.any(Flags::RECEIVE)
    }

    fn wants_receive(&self) -> bool {
        let may = self.flags.any(Flags::OPEN.or(Flags::LINGERING));
        let held = Flags::RECEIVE.or(Flags::PAUSED).or(Flags::CHOKED).or(Flags::REVISIT);
        may && self.flags.any(Flags::READABLE) && !self.flags.any(held) && self.slice == NONE
    }
}

impl Hands {
    /// All bytes received and not consumed yet, in one piece. Empty for a stale id.
    pub fn received(&self, conn: ConnId) -> &[u8] {
        self.table.open_entry(conn).map_or(&[], |entry| self.unconsumed(entry))
    }

    /// Says that the first `n` of the [received](Hands::received) bytes are done with. The rest is
    /// kept and shows up again in front of the bytes to come. To be called after each `Received`,
    /// with 0 if nothing could be used.
    ///
    /// A connection whose rest finds no room in the bounded pool of incomplete frames is cut
    /// (`CloseReason::Overload`).
    ///
    /// # Panics
    /// If fewer than `n` bytes were received.
    pub fn consume(&mut self, conn: ConnId, n: usize) {
        let Some(entry) = self.table.open_entry_mut(conn) else {
            return;
        };
        entry.flags.clear(Flags::REVISIT);
        if entry.partial != NONE {
            self.consume_partial(conn.slot, n);
        } else if entry.has_slice_bytes() {
            assert!(n <= usize::from(entry.end - entry.start), "consumed what never came");
            entry.start += n as u16;
            self.retire_slice(conn.slot);
        } else {
            assert!(n == 0, "consumed what never came");
        }
        self.queue_receive(conn.slot);
    }

    /// Stops receiving. Bytes already received stay where they are.
    pub fn pause(&mut self, conn: ConnId) {
        if let Some(slot) = self.table.open(conn) {
            self.table[slot].flags.set(Flags::PAUSED);
        }
    }

    /// Whether it was paused by the caller and not resumed since.
    pub fn is_paused(&self, conn: ConnId) -> bool {
        self.table.open(conn).is_some_and(|slot| self.table[slot].flags.any(Flags::PAUSED))
    }

    /// Whether more is received from a connection: it is not paused, and reads
    /// what it is sent. `None` when it has ended.
    pub fn is_read(&self, conn: ConnId) -> Option<bool> {
        let slot = self.table.open(conn)?;
        Some(!self.table[slot].flags.any(Flags::PAUSED.or(Flags::CHOKED)))
    }

    /// Receives again. If bytes are waiting unconsumed, the next reap says `Received`, and more is
    /// received only when they have been looked at: whoever is paused and resumed again and again,
    /// and uses little each time, must not gather more and more.
    pub fn resume(&mut self, conn: ConnId) {
        let Some(slot) = self.table.open(conn) else {
            return;
        };
        if !self.table[slot].flags.any(Flags::PAUSED) {
            return;
        }
        self.table[slot].flags.clear(Flags::PAUSED);
        if !self.unconsumed(&self.table[slot]).is_empty() {
            return self.revisit(slot);
        }
        self.queue_receive(slot);
    }

    /// Shows bytes that were received before once more. Nothing is received until they are
    /// [consumed](Hands::consume), not even by this reap.
    pub(crate) fn revisit(&mut self, slot: u32) {
        let conn = self.table.id(slot);
        self.table[slot].flags.set(Flags::REVISIT);
        self.pending.push(Event::Received { conn });
    }

    pub(crate) fn unconsumed(&self, entry: &Conn) -> &[u8] {
        if entry.partial != NONE {
            self.buffers.partials.bytes(entry.partial)
        } else if entry.has_slice_bytes() {
            self.buffers.arena.bytes(entry.slice, entry.start, entry.end)
        } else {
            &[]
        }
    }

    fn consume_partial(&mut self, slot: u32, n: usize) {
        let index = self.table[slot].partial;
        self.buffers.partials.consume(index, n);
        let filling = self.table[slot].flags.any(Flags::RECEIVE);
        if self.buffers.partials.bytes(index).is_empty() && !filling {
            self.buffers.partials.release(index);
            self.table[slot].partial = NONE;
        }
    }

    /// Gives the slice back; what is left in it moves to a buffer of its own.
    fn retire_slice(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        let slice = std::mem::replace(&mut entry.slice, NONE);
        let (start, end) = (entry.start, entry.end);
        let mut kept = Ok(());
        if start < end {
            let partials = &mut self.buffers.partials;
            if entry.partial == NONE {
                entry.partial = partials.take();
            }
            let rest = self.buffers.arena.bytes(slice, start, end);
            kept = partials.append(entry.partial, rest);
        }
        self.buffers.arena.release(slice);
        if kept.is_err() {
            self.cut(slot, CloseReason::Overload);
        }
    }

    /// Slices belong to one turn: whatever the last one left in them moves out.
    pub(crate) fn reclaim_slices(&mut self) {
        let mut lent = std::mem::take(&mut self.lent);
        for conn in lent.drain(..) {
            if self.table.open_entry(conn).is_some_and(Conn::has_slice_bytes) {
                self.retire_slice(conn.slot);
                self.queue_receive(conn.slot);
            }
        }
        self.lent = lent;
    }

    pub(crate) fn arm_poll(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        if !entry.flags.any(Flags::POLL) {
            entry.flags.set(Flags::POLL);
            self.ring.poll(entry.target(), slot);
        }
    }

    pub(crate) fn cancel_poll(&mut self, slot: u32) {
        if self.table[slot].flags.any(Flags::POLL) {
            self.ring.cancel(Token { op: Op::Poll, slot });
        }
    }

    pub(crate) fn on_poll(&mut self, slot: u32, result: i32, more: bool) {
        let entry = &mut self.table[slot];
        if !more {
            entry.flags.clear(Flags::POLL);
        }
        if !entry.flags.any(Flags::OPEN.or(Flags::FLUSHING).or(Flags::LINGERING)) {
            return self.finish(slot);
        }
        // An error here says nothing that the receive will not say better.
        if result != -libc::ECANCELED {
            entry.flags.set(Flags::READABLE);
            if result & POLL_ENDS != 0 {
                entry.flags.set(Flags::ENDING);
            }
            self.queue_receive(slot);
        }
        // A multishot poll ends by itself when the completion queue was full. A one-shot poll
        // would fire at once: it is armed again when the socket is empty.
        if !more && (self.ring.features().multishot_poll || result < 0) {
            self.arm_poll(slot);
        }
    }

    /// Puts the connection into the list of those to receive from, if it should be there.
    pub(crate) fn queue_receive(&mut self, slot: u32) {
        let entry = &mut self.table[slot];
        if entry.wants_receive() && !entry.flags.any(Flags::QUEUED) {
            entry.flags.set(Flags::QUEUED);
            self.ready.push_back(ConnId { slot, generation: entry.generation });
        }
    }

    /// Queues a receive for every connection in the list, as long as there are slices.
    pub(crate) fn issue_receives(&mut self) -> bool {
        let mut issued = false;
        while let Some(&conn) = self.ready.front() {
            if let Some(slot) = self.table.current(conn) {
                if self.table[slot].wants_receive() && !self.issue_receive(slot) {
                    self.stats.arena_empty += 1;
                    break;
                }
                let flags = &mut self.table[slot].flags;
                issued |= flags.any(Flags::RECEIVE);
                flags.clear(Flags::QUEUED);
            }
            self.ready.pop_front();
        }
        issued
    }

    /// `false`: no free slice.
    fn issue_receive(&mut self, slot: u32) -> bool {
        let entry = &mut self.table[slot];
        let area = if entry.partial != NONE {
            match self.buffers.partials.lend(entry.partial) {
                Ok(area) => area,
                Err(_) => {
                    self.cut(slot, CloseReason::Overload);
                    return true;
                }
            }
        } else {
            let Some((slice, area)) = self.buffers.arena.lend() else {
                return false;
            };
            entry.slice = slice;
            area
        };
        entry.asked = area.len() as u16;
        entry.flags.clear(Flags::READABLE);
        entry.flags.set(Flags::RECEIVE);
        self.stats.receives += 1;
        self.ring.receive(entry.target(), &area, slot);
        true
    }

    pub(crate) fn on_receive(&mut self, slot: u32, result: i32) {
        let got = usize::try_from(result).unwrap_or(0);
        self.take_receive_back(slot, got);
        let flags = &mut self.table[slot].flags;
        if flags.any(Flags::FLUSHING) {
            // Not of interest before it lingers.
            flags.set(Flags::READABLE);
            return;
        }
        let open = flags.any(Flags::OPEN);
        if !open && !flags.any(Flags::LINGERING) {
            return self.finish(slot);
        }
        match -result {
            n if n < 0 => self.on_bytes(slot, got),
            // Under way since before the pause. An end comes again, once the bytes before it have
            // been looked at.
            _ if self.table[slot].flags.any(Flags::REVISIT) => {
                self.table[slot].flags.set(Flags::READABLE);
            }
            libc::EAGAIN | libc::EINTR => self.on_empty(slot),
            0 if open => self.end(slot, CloseReason::Peer),
            _ if open => self.end(slot, CloseReason::Reset),
            // While lingering, any end will do.
            _ => self.tear_down(slot),
        }
    }

    /// The kernel is done with the memory of the receive.
    fn take_receive_back(&mut self, slot: u32, got: usize) {
        let entry = &mut self.table[slot];
        entry.flags.clear(Flags::RECEIVE);
        if entry.slice == NONE {
            self.buffers.partials.returned(entry.partial, got);
        } else {
            self.buffers.arena.returned(entry.slice);
            (entry.start, entry.end) = (0, got as u16);
            if got == 0 {
                self.buffers.arena.release(entry.slice);
                entry.slice = NONE;
            }
        }
        if !entry.flags.any(Flags::OPEN) {
            self.release_received(slot);
        }
    }

    fn on_bytes(&mut self, slot: u32, got: usize) {
        self.stats.bytes_in += got as u64;
        let entry = &mut self.table[slot];
        let full = got == entry.asked as usize;
        if full {
            entry.flags.set(Flags::READABLE); // there may be more
        }
        if entry.flags.any(Flags::OPEN) {
            let conn = ConnId { slot, generation: entry.generation };
            if entry.slice == NONE {
                // A receive that ends late, seen by a reap that goes on to receive more.
                entry.flags.set(Flags::REVISIT);
            } else {
                self.lent.push(conn);
            }
            self.pending.push(Event::Received { conn });
        }
        self.read_on(slot);
    }

    /// Nothing was there after all.
    fn on_empty(&mut self, slot: u32) {
        self.table[slot].flags.clear(Flags::ENDING);
        let entry = &self.table[slot];
        let empty = entry.partial != NONE && self.buffers.partials.bytes(entry.partial).is_empty();
        if empty {
            // Everything was consumed while the receive was under way.
            self.consume_partial(slot, 0);
        }
        if self.table[slot].flags.any(Flags::DEAF) {
            // The peer is not to be reached and has said all it had to say.
            return self.end(slot, CloseReason::Reset);
        }
        self.read_on(slot);
    }

    /// After a receive: there is more (or the end, or a failed send wants the rest), or wait for
    /// the poll.
    fn read_on(&mut self, slot: u32) {
        let flags = &mut self.table[slot].flags;
        if flags.any(Flags::DEAF.or(Flags::ENDING)) {
            flags.set(Flags::READABLE);
        }
        if flags.any(Flags::READABLE) {
            self.queue_receive(slot);
        } else {
            self.arm_poll(slot);
        }
    }
}
