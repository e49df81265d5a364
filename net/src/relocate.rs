//! A connection moves to another core: everything it is travels as one value.
//!
//! A plain descriptor simply changes hands. A direct one lives in its ring's table, so the kernel
//! carries it into the other ring's (`MSG_RING`), and only then the rest follows by the mesh. The
//! old slot is freed when its poll has ended; until then the old ring keeps the socket alive, which
//! is harmless.

use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::close::CloseReason;
use crate::conn::{ConnId, Flags, NONE};
use crate::event::Event;
use crate::hands::Hands;
use crate::quota::Place;
use crate::ring::{Op, Target, Token, own};

/// A connection between two cores: its descriptor and the bytes that were under way.
///
/// One with a direct descriptor must be attached by the core it was sent to; dropping it would
/// leave its place in that core's table taken for ever.
#[derive(Debug)]
pub struct Moved {
    carrier: Carrier,
    listener: u16,
    /// Received, not consumed.
    unread: Vec<u8>,
    /// Given to `send`, not taken by the kernel.
    unsent: Vec<u8>,
    place: Place,
}

#[derive(Debug)]
enum Carrier {
    Plain(OwnedFd),
    /// A place in the table of the ring with this descriptor.
    Direct {
        index: u32,
        ring: RawFd,
    },
}

/// Where another core's connections can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    ring: RawFd,
    direct: bool,
}

impl Hands {
    /// This core's address for the [`detach_to`](Hands::detach_to) of others. Valid as long as
    /// these hands exist.
    pub fn peer(&self) -> Peer {
        Peer {
            ring: self.ring.fd(),
            direct: self.ring.table() > 0 && self.ring.features().send_descriptor,
        }
    }

    /// Takes a connection with a plain descriptor out of these hands. Its id is stale at once and
    /// no `Closed` follows. `None`: stale id, the connection ended just now, or its descriptor is
    /// a direct one (see [`detach_to`](Hands::detach_to)).
    pub fn detach(&mut self, conn: ConnId) -> Option<Moved> {
        let slot = self.table.open(conn)?;
        let Target::Plain(fd) = self.table[slot].target() else {
            return None;
        };
        self.settle(conn)?;
        let moved = self.pack(slot, Carrier::Plain(own(fd)));
        self.table[slot].flags.set(Flags::GONE);
        self.stats.detached += 1;
        self.cancel_poll(slot);
        self.finish(slot);
        Some(moved)
    }

    /// Sends a connection on its way to another core, whatever its descriptor is. Its id is stale
    /// at once; a later reap brings [`Event::Moved`] with what that core needs to attach it, or
    /// `Closed` with `CloseReason::Overload` if its table has no room.
    ///
    /// `false`: stale id, or a direct descriptor and a peer without a table; nothing happened.
    pub fn detach_to(&mut self, conn: ConnId, peer: &Peer) -> bool {
        let Some(slot) = self.table.open(conn) else {
            return false;
        };
        let Target::Direct(index) = self.table[slot].target() else {
            let moved = self.detach(conn).map(Box::new);
            let departed = moved.is_some();
            self.pending.extend(moved.map(|moved| Event::Moved { conn, moved }));
            return departed;
        };
        if !peer.direct || self.settle(conn).is_none() {
            return false;
        }
        let carrier = Carrier::Direct {
            index: NONE, // known when the kernel has found a place
            ring: peer.ring,
        };
        let moved = self.pack(slot, carrier);
        self.moving.insert(slot, Box::new(moved));
        self.table[slot].flags.set(Flags::MOVE);
        self.cancel_poll(slot);
        self.ring.send_descriptor(index, peer.ring, slot);
        true
    }

    /// Takes a connection from another core in. If bytes came along, the next reap says
    /// `Received` and shows exactly them: more is received only when they have been
    /// [consumed](Hands::consume). What was unsent goes out with the next flush.
    ///
    /// `conns_max` does not apply: the connection was admitted elsewhere, and keeps its place in
    /// the [`Quota`](crate::Quota) of all cores.
    ///
    /// # Panics
    /// If its direct descriptor was sent to another core than this one.
    pub fn attach(&mut self, moved: Moved) -> ConnId {
        let Moved { carrier, listener, unread, unsent, place } = moved;
        self.options.quota.enter();
        drop(place);
        let target = match carrier {
            Carrier::Plain(fd) => Target::Plain(fd.into_raw_fd()),
            Carrier::Direct { index, ring } => {
                assert_eq!(ring, self.ring.fd(), "attached to the wrong core");
                Target::Direct(index)
            }
        };
        let slot = self.table.insert(target, listener);
        let conn = self.table.id(slot);
        self.stats.attached += 1;
        self.arm_poll(slot);
        self.restore(slot, &unread);
        self.send(conn, &unsent);
        conn
    }

    fn restore(&mut self, slot: u32, unread: &[u8]) {
        if unread.is_empty() {
            return;
        }
        let index = self.buffers.partials.take();
        self.table[slot].partial = index;
        if self.buffers.partials.append(index, unread).is_err() {
            return self.cut(slot, CloseReason::Overload);
        }
        self.revisit(slot);
    }

    /// Waits until the connection has no receive and no send in flight. Both end at once: a
    /// receive never waits, and a send that does is cancelled.
    fn settle(&mut self, conn: ConnId) -> Option<u32> {
        loop {
            let slot = self.table.open(conn)?;
            let flags = self.table[slot].flags;
            if !flags.any(Flags::SEND.or(Flags::RECEIVE)) {
                return Some(slot);
            }
            if flags.any(Flags::SEND) {
                self.ring.cancel(Token { op: Op::Send, slot });
            }
            self.ring.wait(Duration::from_millis(1));
            self.dispatch_completions();
        }
    }

    /// Everything but the descriptor leaves the table.
    fn pack(&mut self, slot: u32, carrier: Carrier) -> Moved {
        let unread = self.unconsumed(&self.table[slot]).to_vec();
        let entry = &mut self.table[slot];
        let unsent = match entry.outgoing {
            NONE => Vec::new(),
            index => self.buffers.outgoing.unsent_bytes(index),
        };
        entry.flags.clear(Flags::OPEN);
        entry.flags.set(Flags::MOVED);
        let place = Place::of(&self.options.quota);
        let listener = entry.listener;
        self.release_received(slot);
        self.release_outgoing(slot);
        Moved { carrier, listener, unread, unsent, place }
    }

    pub(crate) fn on_move(&mut self, slot: u32, result: i32) {
        self.table[slot].flags.clear(Flags::MOVE);
        let conn = self.table.id(slot);
        let mut moved = self.moving.remove(&slot).expect("it was on its way");
        match (u32::try_from(result), &mut moved.carrier) {
            (Ok(place), Carrier::Direct { index, .. }) => {
                *index = place;
                self.stats.detached += 1;
                self.pending.push(Event::Moved { conn, moved });
            }
            _ => {
                let reason = CloseReason::Overload;
                self.stats.closed[reason as usize] += 1;
                self.pending.push(Event::Closed { conn, reason });
            }
        }
        self.finish(slot);
    }
}
