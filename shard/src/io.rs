//! What goes into a shard and what comes out: the whole surface of the brain.
//!
//! Production and the simulator are two callers of the same [`crate::Shard`];
//! everything either of them can do to it is a value of [`Input`], everything
//! it wants done is a value of [`Effect`] or a [`crate::hop::Hop`] in a parcel.

use wal::Lsn;
use wire::id::ShardId;
use wire::{v1, v2};

use crate::hop::Hop;

/// The time of one turn, read once by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic clock, nanoseconds; comparable between the cores of a node.
    pub mono_ns: u64,
    /// Wall clock, unix milliseconds; may step in both directions.
    pub wall_ms: u64,
}

impl Now {
    /// Seconds of the monotonic clock.
    pub(crate) fn mono_s(self) -> u32 {
        u32::try_from(self.mono_ns / 1_000_000_000).unwrap_or(u32::MAX)
    }
}

/// A connection of this core. The generation makes a stale name harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn {
    /// Index in the core's connection table; small and dense.
    pub slot: u32,
    /// Counts the connections this slot has held.
    pub generation: u32,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each variant says what its fields are")]
pub enum Input<'a> {
    /// A connection was accepted, or arrived from another core to log in here.
    Opened { conn: Conn },
    /// A packet of protocol v1.
    V1 { conn: Conn, packet: v1::Packet<'a> },
    /// Bytes that are no packet of protocol v1; the caller dropped them.
    V1Bad { conn: Conn },
    /// A frame of protocol v2.
    V2 { conn: Conn, request: v2::Request<'a> },
    /// Bytes that are no good frame of protocol v2.
    V2Bad { conn: Conn, wrong: v2::Wrong },
    /// Everything sent to this connection has left for the kernel, as an
    /// [`Effect::TellDrained`] asked.
    Drained { conn: Conn },
    /// The connection is gone, or moved to another core.
    Closed { conn: Conn },
    /// A message from another shard; spans refer to `bytes`.
    Hop { from: ShardId, hop: &'a Hop, bytes: &'a [u8] },
    /// A write of the log ended. `ok: false` poisons the shard.
    Written { lsn: Lsn, ok: bool },
    /// An [`Effect::Read`] ended; `None` when it failed.
    Read { conn: Conn, lsn: Lsn, bytes: Option<&'a [u8]> },
    /// An [`Effect::Survey`] ended; `None` when it failed.
    Surveyed { lsn: Lsn, bytes: Option<&'a [u8]> },
    /// The snapshot that was begun at `start` is durable under its final name.
    Snapshotted { start: Lsn, bytes: u64 },
    /// It could not be written, or was given up.
    SnapshotFailed,
    /// The log has room ahead on disk again, or has not.
    Storage { full: bool },
    /// The log's segments end there; it appends nothing behind that, and behind
    /// `common` only what gives space back.
    Place { end: Lsn, common: Lsn },
    /// One of [`crate::LOOKS`] looks at a connection within the time after which
    /// one is cut on which nothing moves.
    Looked { conn: Conn, unsent: Unsent },
    /// What the caller has measured since the last time, sent with each tick: the
    /// mean length of its turns, and how full its memories for incomplete frames
    /// and for unsent bytes are.
    Measured { turn_ns: u64, frames_permille: u64, unsent_permille: u64 },
    /// Time passed; sent a few times a second.
    Tick,
    /// The server stops: every connection is asked to leave.
    Drain,
}

/// What a connection's kernel has not taken, since the last look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// It has taken everything.
    None,
    /// Something has moved, or need not: the connection is not read either.
    Moved,
    /// The same as before.
    Same,
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Done.
    Taken,
    /// There is no room for it now and nothing has changed, but how far a batch
    /// has come and what a login is told at the end of its time. Hand it in again
    /// once [`crate::Shard::room_epoch`] has moved; until then stop reading
    /// where it came from.
    Blocked,
    /// This login belongs to another shard: move the connection there with the
    /// packet still unread.
    Move(ShardId),
}

/// One thing to do. Ranges refer to [`Effects::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant says what its fields are")]
pub enum Effect {
    /// Send these bytes to a connection. `late`: they may wait a moment to
    /// share a send with a delivery.
    Send { conn: Conn, start: usize, end: usize, late: bool },
    /// Say [`Input::Drained`] when everything sent to a connection has left.
    TellDrained { conn: Conn },
    /// Close a connection, after what was sent to it has left.
    Close { conn: Conn },
    /// Read the log for a connection that catches up. The answer may be longer
    /// or, at the end of a segment, shorter; it holds at least `len_min` bytes.
    /// Each must be answered, also when the connection is gone. `len_wide`: as far
    /// as more of it is wanted, with too much between that for one connection
    /// alone; where others read the same stretch it is read at once.
    Read { conn: Conn, lsn: Lsn, len_min: u32, len: u32, len_wide: u32 },
    /// Read the log for cleaning, like `Read` with nobody waiting for it.
    Survey { lsn: Lsn, len_min: u32, len: u32 },
    /// Delete this segment: nothing in it is needed any more, and no read of
    /// it is under way.
    Discard { segment: u64 },
    /// A stored record does not check: the operator must know.
    Damaged { lsn: Lsn },
}

/// What a shard wants done, gathered during a turn by the caller, who clears
/// it when it has acted.
#[derive(Default)]
pub struct Effects {
    /// The bytes that [`Effect::Send`] refers to.
    pub bytes: Vec<u8>,
    /// In order.
    pub list: Vec<Effect>,
}

impl Effects {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
    }

    /// Appends a send that `put` writes and returns its length.
    pub(crate) fn send(&mut self, conn: Conn, put: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.put(conn, false, put)
    }

    /// Appends a send that may wait for company.
    pub(crate) fn send_late(&mut self, conn: Conn, put: impl FnOnce(&mut Vec<u8>)) {
        self.put(conn, true, put);
    }

    /// Appends a send, unless the last one to the same connection ends with the
    /// same bytes: what is refused of a batch is told once.
    pub(crate) fn send_once(&mut self, conn: Conn, bytes: &[u8]) {
        let is_last = matches!(self.list.last(), Some(Effect::Send { conn: last, end, .. })
            if *last == conn && *end == self.bytes.len());
        if !(is_last && self.bytes.ends_with(bytes)) {
            self.send(conn, |out| out.extend_from_slice(bytes));
        }
    }

    /// Sends to one connection that follow each other become one effect, as
    /// urgent as the most urgent of them.
    fn put(&mut self, conn: Conn, is_late: bool, put: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.bytes.len();
        put(&mut self.bytes);
        let end = self.bytes.len();
        match self.list.last_mut() {
            Some(Effect::Send { conn: last, end: last_end, late, .. })
                if *last == conn && *last_end == start =>
            {
                *last_end = end;
                *late &= is_late;
            }
            _ => self.list.push(Effect::Send { conn, start, end, late: is_late }),
        }
        end - start
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }
}
