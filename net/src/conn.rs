//! One connection's entry, and the table of them.
//!
//! An entry has no heap of its own: bytes live in pools and the entry holds indices. A slot is
//! reused only after the last completion of its former owner, and every reuse raises the slot's
//! generation, so that a stale [`ConnId`] never reaches a stranger.

use std::ops::{Index, IndexMut};

use crate::late::{LATE_PERIODS, TRUST_MIN};
use crate::ring::Target;

/// Names one connection of one core. Ids of connections that have ended are ignored everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Position in the table.
    pub slot: u32,
    /// How often that position has been given away.
    pub generation: u32,
}

/// "No index": an entry without a slice, a buffer or a successor.
pub(crate) const NONE: u32 = u32::MAX;

/// A set of the states below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

impl Flags {
    /// The caller may use it: no end has been announced.
    pub(crate) const OPEN: Flags = Flags(1);
    /// `fd` is an index into the ring's own table.
    pub(crate) const DIRECT: Flags = Flags(1 << 1);
    /// A poll is in flight.
    pub(crate) const POLL: Flags = Flags(1 << 2);
    /// A receive is in flight.
    pub(crate) const RECEIVE: Flags = Flags(1 << 3);
    /// A send is in flight.
    pub(crate) const SEND: Flags = Flags(1 << 4);
    /// The hand-over to another ring is in flight.
    pub(crate) const MOVE: Flags = Flags(1 << 5);
    /// The close is in flight.
    pub(crate) const SHUT: Flags = Flags(1 << 6);
    /// There may be bytes (or an end) in the socket.
    pub(crate) const READABLE: Flags = Flags(1 << 7);
    /// Waits in the list of connections to receive from.
    pub(crate) const QUEUED: Flags = Flags(1 << 8);
    /// Waits in the list of connections to send on.
    pub(crate) const DIRTY: Flags = Flags(1 << 9);
    /// The caller does not want bytes.
    pub(crate) const PAUSED: Flags = Flags(1 << 10);
    /// Too much is unsent to read more.
    pub(crate) const CHOKED: Flags = Flags(1 << 11);
    /// A send failed. What the peer sent before that is still read.
    pub(crate) const DEAF: Flags = Flags(1 << 12);
    /// Ended, but what is unsent still goes out.
    pub(crate) const FLUSHING: Flags = Flags(1 << 13);
    /// Everything is sent and said to be; input is thrown away until the peer closes too.
    pub(crate) const LINGERING: Flags = Flags(1 << 14);
    /// Its descriptor belongs to somebody else now.
    pub(crate) const GONE: Flags = Flags(1 << 15);

    /// The slot is taken.
    pub(crate) const USED: Flags = Flags(1 << 16);

    /// The peer has ended: receive until nothing is left, no poll will tell again.
    pub(crate) const ENDING: Flags = Flags(1 << 17);

    /// The caller is told of bytes outside of a slice: received straight into an incomplete frame,
    /// or waiting since before a pause or a move. Nothing is received until it has looked at them:
    /// more would be taken for a part of them, and an end would take them away.
    pub(crate) const REVISIT: Flags = Flags(1 << 18);

    /// What is unsent may wait for company.
    pub(crate) const LATE: Flags = Flags(1 << 19);

    /// What could have waited for company left at once: would any have come?
    pub(crate) const LONE: Flags = Flags(1 << 26);

    /// Saying that no more is sent is in flight.
    pub(crate) const HUSH: Flags = Flags(1 << 25);

    /// It counts where it went.
    pub(crate) const MOVED: Flags = Flags(1 << 24);

    /// The caller waits for everything to be sent.
    pub(crate) const AWAITED: Flags = Flags(1 << 29);

    /// Something the kernel still works on.
    pub(crate) const BUSY: Flags = Flags(
        Self::POLL.0 | Self::RECEIVE.0 | Self::SEND.0 | Self::MOVE.0 | Self::SHUT.0 | Self::HUSH.0,
    );

    pub(crate) const fn or(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Is any of `others` set?
    pub(crate) const fn any(self, others: Flags) -> bool {
        self.0 & others.0 != 0
    }

    pub(crate) fn set(&mut self, others: Flags) {
        self.0 |= others.0;
    }

    pub(crate) fn clear(&mut self, others: Flags) {
        self.0 &= !others.0;
    }

    /// How often company has come lately where something waited for it or could have, from 0
    /// (never) to [`TRUST_MAX`](Self::TRUST_MAX).
    pub(crate) const fn trust(self) -> u32 {
        self.0 >> Self::TRUST_SHIFT & Self::TRUST_MAX
    }

    pub(crate) fn set_trust(&mut self, trust: u32) {
        let trust = if trust > Self::TRUST_MAX { Self::TRUST_MAX } else { trust };
        self.0 = self.0 & !(Self::TRUST_MAX << Self::TRUST_SHIFT) | trust << Self::TRUST_SHIFT;
    }

    /// Which generation of [`Hands::age_late`](crate::Hands::age_late) what waits or is watched is
    /// of.
    pub(crate) const fn generation(self) -> usize {
        (self.0 >> Self::GENERATION_SHIFT) as usize & (LATE_PERIODS - 1)
    }

    pub(crate) fn set_generation(&mut self, generation: usize) {
        let mask = (LATE_PERIODS as u32 - 1) << Self::GENERATION_SHIFT;
        self.0 = self.0 & !mask | (generation as u32) << Self::GENERATION_SHIFT;
    }

    pub(crate) const TRUST_MAX: u32 = 15;
    const TRUST_SHIFT: u32 = 20;
    const GENERATION_SHIFT: u32 = 27;
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) generation: u32,
    /// Plain descriptor or index into the ring's table; the next free slot while unused.
    fd: u32,
    /// Arena slice with received bytes (or being filled), or `NONE`.
    pub(crate) slice: u32,
    /// Buffer of an incomplete frame, or `NONE`.
    pub(crate) partial: u32,
    /// Send buffer, or `NONE`.
    pub(crate) outgoing: u32,
    /// Unconsumed bytes within the slice.
    pub(crate) start: u16,
    pub(crate) end: u16,
    /// How many bytes the receive in flight asked for.
    pub(crate) asked: u16,
    /// Which listener it came by.
    pub(crate) listener: u16,
    pub(crate) flags: Flags,
}

// The promise of the design: one cache line at most. It is half of one.
const _: () = assert!(size_of::<Conn>() <= 32);

impl Conn {
    const VACANT: Conn = Conn {
        generation: 0,
        fd: NONE,
        slice: NONE,
        partial: NONE,
        outgoing: NONE,
        start: 0,
        end: 0,
        asked: 0,
        listener: 0,
        flags: Flags(0),
    };

    /// What operations on it are aimed at.
    pub(crate) fn target(&self) -> Target {
        if self.flags.any(Flags::DIRECT) {
            Target::Direct(self.fd)
        } else {
            Target::Plain(self.fd as i32)
        }
    }
}

/// Entries per allocation: growing never copies and never doubles.
const CHUNK: usize = 1024;

/// The connections of one core.
#[derive(Debug)]
pub(crate) struct Table {
    /// Arrays, so that a place in one needs no check.
    chunks: Vec<Box<[Conn; CHUNK]>>,
    /// First free slot, linked through `fd`.
    free: u32,
    live: usize,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { chunks: Vec::new(), free: NONE, live: 0 }
    }

    /// Entries in use, those still closing included.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Memory held.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Conn>()
    }

    /// One past the highest slot ever used.
    pub(crate) fn slots(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// Puts a new, open connection into the table.
    pub(crate) fn insert(&mut self, target: Target, listener: u16) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let slot = self.free;
        let entry = &mut self[slot];
        let generation = entry.generation;
        let next = entry.fd;
        *entry = Conn { generation, listener, ..Conn::VACANT };
        entry.flags.set(Flags::USED.or(Flags::OPEN));
        // One try, which the first success confirms and the first failure ends.
        entry.flags.set_trust(TRUST_MIN);
        match target {
            Target::Plain(fd) => entry.fd = fd as u32,
            Target::Direct(index) => {
                entry.fd = index;
                entry.flags.set(Flags::DIRECT);
            }
        }
        self.free = next;
        self.live += 1;
        slot
    }

    /// Frees a slot: nothing may be in flight and nothing borrowed.
    pub(crate) fn remove(&mut self, slot: u32) {
        let next = self.free;
        let entry = &mut self[slot];
        assert!(entry.flags.any(Flags::USED));
        assert!(!entry.flags.any(Flags::BUSY.or(Flags::OPEN)));
        assert!(entry.slice == NONE && entry.partial == NONE && entry.outgoing == NONE);
        let generation = entry.generation.wrapping_add(1);
        *entry = Conn { generation, fd: next, ..Conn::VACANT };
        self.free = slot;
        self.live -= 1;
    }

    /// The current id of a slot.
    pub(crate) fn id(&self, slot: u32) -> ConnId {
        ConnId { slot, generation: self[slot].generation }
    }

    /// The slot, if the id still means the connection it was given for, in whatever state.
    pub(crate) fn current(&self, conn: ConnId) -> Option<u32> {
        let entry = &self.chunks.get(conn.slot as usize / CHUNK)?[conn.slot as usize % CHUNK];
        (entry.generation == conn.generation).then_some(conn.slot)
    }

    /// The slot, if the caller may still use the connection.
    pub(crate) fn open(&self, conn: ConnId) -> Option<u32> {
        self.open_entry(conn).map(|_| conn.slot)
    }

    /// Where the entry of a slot is; nowhere for a slot that there is none of.
    pub(crate) fn place(&self, slot: u32) -> *const Conn {
        let chunk = self.chunks.get(slot as usize / CHUNK);
        chunk.map_or(std::ptr::null(), |chunk| &raw const chunk[slot as usize % CHUNK])
    }

    /// The entry itself, if the caller may still use the connection.
    pub(crate) fn open_entry(&self, conn: ConnId) -> Option<&Conn> {
        let entry = &self.chunks.get(conn.slot as usize / CHUNK)?[conn.slot as usize % CHUNK];
        (entry.generation == conn.generation && entry.flags.any(Flags::OPEN)).then_some(entry)
    }

    /// The same, to change it.
    pub(crate) fn open_entry_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        let chunk = self.chunks.get_mut(conn.slot as usize / CHUNK)?;
        let entry = &mut chunk[conn.slot as usize % CHUNK];
        (entry.generation == conn.generation && entry.flags.any(Flags::OPEN)).then_some(entry)
    }

    fn grow(&mut self) {
        let first = self.slots();
        assert!(first < NONE - CHUNK as u32, "the table is full");
        let chunk: Box<[Conn]> = (0..CHUNK as u32)
            .map(|i| Conn {
                fd: if i + 1 < CHUNK as u32 { first + i + 1 } else { NONE },
                ..Conn::VACANT
            })
            .collect();
        self.chunks.push(chunk.try_into().expect("as many as a chunk has"));
        self.free = first;
    }
}

impl Index<u32> for Table {
    type Output = Conn;

    fn index(&self, slot: u32) -> &Conn {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}

impl IndexMut<u32> for Table {
    fn index_mut(&mut self, slot: u32) -> &mut Conn {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_has_another_id() {
        let mut table = Table::new();
        let slot = table.insert(Target::Plain(7), 0);
        let old = table.id(slot);
        assert_eq!(table.open(old), Some(slot));
        table[slot].flags.clear(Flags::OPEN);
        assert_eq!(table.open(old), None);
        table.remove(slot);
        assert_eq!(table.current(old), None);

        let again = table.insert(Target::Direct(9), 1);
        assert_eq!(again, slot, "the free list is a stack");
        assert_ne!(table.id(again), old);
        assert!(matches!(table[again].target(), Target::Direct(9)));
    }

    #[test]
    fn grows_by_chunks_and_forgets_nothing() {
        let mut table = Table::new();
        let slots: Vec<u32> = (0..3000).map(|i| table.insert(Target::Plain(i), 0)).collect();
        assert_eq!(table.live(), 3000);
        assert_eq!(table.bytes(), 3 * CHUNK * size_of::<Conn>());
        for (i, &slot) in slots.iter().enumerate() {
            assert!(matches!(table[slot].target(), Target::Plain(fd) if fd as usize == i));
        }
    }

    #[test]
    fn ids_from_nowhere_are_ignored() {
        let table = Table::new();
        let stray = ConnId { slot: 5, generation: 0 };
        assert_eq!(table.current(stray), None);
    }
}
