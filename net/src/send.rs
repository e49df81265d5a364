//! Sending: everything released in a turn shares one send, one send in flight per connection.
//!
//! The kernel's send is most of what a message costs, so coalescing is where the speed is. What a
//! connection may leave unsent is bounded twice: above `send_pause_bytes` it is not read any more,
//! above `send_buffer_bytes_max` it is cut. What all of them leave is bounded, too: above
//! `unsent_bytes_max_total` those that have more than a little are cut when they ask for more.

use crate::close::CloseReason;
use crate::conn::{Conn, ConnId, Flags, NONE};
use crate::event::Event;
use crate::hands::Hands;
use crate::prefetch::prefetch;

/// What any connection may have unsent, however much the others have: whoever reads is not to
/// suffer from those that do not.
const LITTLE_BYTES: usize = 16 << 10;

/// How many sends ahead the memory of one is asked for: its entry, then its buffer.
const AHEAD: [usize; 2] = [6, 3];

impl Conn {
    /// Has something to send, and is on the list of those who have.
    pub(crate) fn mark_dirty(&mut self, slot: u32, dirty: &mut Vec<ConnId>) {
        if !self.flags.any(Flags::DIRTY) {
            self.flags.set(Flags::DIRTY);
            dirty.push(ConnId { slot, generation: self.generation });
        }
    }
}

impl Hands {
    /// Appends `bytes` to what the connection has to send; nothing goes out before
    /// [`flush`](Hands::flush), [`wait`](Hands::wait) or [`park`](Hands::park).
    ///
    /// More than `send_buffer_bytes_max` unsent cuts the connection (`CloseReason::SlowReader`). So
    /// does asking for more while all connections together are at their bound
    /// (`unsent_bytes_max_total`) and this one has more than 16 KiB unsent already.
    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        if self.append(conn, bytes).is_none() {
            return;
        }
        let entry = &mut self.table[conn.slot];
        self.stats.late_joined += u64::from(entry.find_company());
        entry.mark_dirty(conn.slot, &mut self.dirty);
    }

    /// Whether a connection with `unsent` bytes may have `more`.
    fn has_send_room(&self, unsent: usize, more: usize) -> bool {
        let crowded = self.unsent_bytes + more > self.options.unsent_bytes_max_total;
        unsent + more <= self.options.send_buffer_bytes_max && !(crowded && unsent > LITTLE_BYTES)
    }

    /// Puts bytes behind what is unsent, and says how much that was; `None` when nobody is there to
    /// get them.
    pub(crate) fn append(&mut self, conn: ConnId, bytes: &[u8]) -> Option<usize> {
        let entry = self.table.open_entry(conn)?;
        if bytes.is_empty() || entry.flags.any(Flags::DEAF) {
            return None;
        }
        let unsent = self.unsent_of(entry);
        if !self.has_send_room(unsent, bytes.len()) {
            self.cut(conn.slot, CloseReason::SlowReader);
            return None;
        }
        let entry = &mut self.table[conn.slot];
        if entry.outgoing == NONE {
            entry.outgoing = self.buffers.outgoing.take();
        }
        self.buffers.outgoing.append(entry.outgoing, bytes);
        self.unsent_bytes += bytes.len();
        if unsent + bytes.len() > self.options.send_pause_bytes {
            entry.flags.set(Flags::CHOKED);
        }
        Some(unsent)
    }

    /// Says `Drained` once, when the kernel has taken everything; in the next reap if it has. Never
    /// of a connection that takes nothing any more: that one is about to be closed.
    pub fn tell_drained(&mut self, conn: ConnId) {
        let Some(slot) = self.table.open(conn) else { return };
        if self.table[slot].flags.any(Flags::DEAF) {
            return;
        }
        if self.unsent_in(slot) == 0 {
            self.pending.push(Event::Drained { conn });
        } else {
            self.table[slot].flags.set(Flags::AWAITED);
        }
    }

    /// Bytes that the kernel has not taken yet. 0 for a stale id.
    pub fn unsent(&self, conn: ConnId) -> usize {
        self.table.open_entry(conn).map_or(0, |entry| self.unsent_of(entry))
    }

    pub(crate) fn unsent_in(&self, slot: u32) -> usize {
        self.unsent_of(&self.table[slot])
    }

    fn unsent_of(&self, entry: &Conn) -> usize {
        match entry.outgoing {
            NONE => 0,
            index => self.buffers.outgoing.unsent(index),
        }
    }

    pub(crate) fn mark_dirty(&mut self, slot: u32) {
        self.table[slot].mark_dirty(slot, &mut self.dirty);
    }

    /// Queues a send for every connection that has something new and none in flight.
    pub(crate) fn launch_sends(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for (at, &conn) in dirty.iter().enumerate() {
            self.foresee(|ahead| dirty.get(at + ahead).copied());
            if let Some(slot) = self.table.current(conn) {
                self.table[slot].flags.clear(Flags::DIRTY);
                self.launch_send(slot, self.ring.features().quiet_send);
            }
        }
        dirty.clear();
        self.dirty = dirty;
    }

    /// Asks for the memory that sends to come will touch; `coming` says to whom the one so many
    /// further on goes.
    #[inline]
    pub fn foresee(&self, coming: impl Fn(usize) -> Option<ConnId>) {
        if let Some(conn) = coming(AHEAD[0]) {
            prefetch(self.table.place(conn.slot));
        }
        if let Some(entry) = coming(AHEAD[1]).and_then(|conn| self.table.open_entry(conn))
            && entry.outgoing != NONE
        {
            prefetch(self.buffers.outgoing.place(entry.outgoing));
        }
    }

    /// `is_quiet`: the socket probably has room.
    fn launch_send(&mut self, slot: u32, is_quiet: bool) {
        let entry = &mut self.table[slot];
        // Whoever is torn down may still be in the list; what it had to send is dropped.
        let may = entry.flags.any(Flags::OPEN.or(Flags::FLUSHING));
        if !may || entry.outgoing == NONE || entry.flags.any(Flags::SEND) {
            return;
        }
        if let Some(area) = self.buffers.outgoing.lend(entry.outgoing) {
            entry.flags.set(Flags::SEND);
            entry.flags.clear(Flags::LATE);
            self.stats.sends += 1;
            if is_quiet {
                self.ring.send_quietly(entry.target(), &area, slot);
            } else {
                self.ring.send(entry.target(), &area, slot);
            }
        }
    }

    pub(crate) fn on_send(&mut self, slot: u32, result: i32) {
        let entry = &mut self.table[slot];
        entry.flags.clear(Flags::SEND);
        let sent = usize::try_from(result).unwrap_or(0);
        self.buffers.outgoing.returned(entry.outgoing, sent);
        self.unsent_bytes -= sent;
        self.stats.bytes_out += sent as u64;
        if !entry.flags.any(Flags::OPEN.or(Flags::FLUSHING)) {
            return self.finish(slot);
        }
        match -result {
            // A cancelled one is being settled by a move, which takes the rest along.
            libc::ECANCELED => {}
            n if n < 0 || n == libc::EINTR || n == libc::EAGAIN => self.on_sent(slot),
            _ => self.on_send_failed(slot),
        }
    }

    fn on_sent(&mut self, slot: u32) {
        let entry = &self.table[slot];
        let unsent = self.unsent_of(entry);
        if entry.flags.any(Flags::CHOKED) && unsent <= self.options.send_pause_bytes / 2 {
            self.table[slot].flags.clear(Flags::CHOKED);
            self.queue_receive(slot);
        }
        if unsent > 0 {
            return self.launch_send(slot, false);
        }
        let entry = &mut self.table[slot];
        let index = std::mem::replace(&mut entry.outgoing, NONE);
        self.buffers.outgoing.release(index);
        if !entry.flags.any(Flags::OPEN) {
            self.linger(slot);
        } else if entry.flags.any(Flags::AWAITED) {
            entry.flags.clear(Flags::AWAITED);
            let conn = ConnId { slot, generation: entry.generation };
            self.pending.push(Event::Drained { conn });
        }
    }

    /// The peer takes nothing more. What it sent before is still in the socket and is read first:
    /// a client that fires messages and leaves without reading answers must not lose them.
    fn on_send_failed(&mut self, slot: u32) {
        self.release_outgoing(slot);
        let flags = &mut self.table[slot].flags;
        if !flags.any(Flags::OPEN) {
            return self.tear_down(slot);
        }
        flags.set(Flags::DEAF.or(Flags::READABLE));
        flags.clear(Flags::CHOKED);
        self.queue_receive(slot);
    }

    pub(crate) fn release_outgoing(&mut self, slot: u32) {
        self.unsent_bytes -= self.unsent_in(slot);
        let index = std::mem::replace(&mut self.table[slot].outgoing, NONE);
        if index != NONE {
            self.buffers.outgoing.release(index);
        }
    }
}
