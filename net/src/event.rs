//! What happened, as the turn sees it.

use std::io;

use crate::buf::ReadBuf;
use crate::close::CloseReason;
use crate::conn::ConnId;
use crate::relocate::Moved;

/// One thing that happened since the last [`Hands::reap`](crate::Hands::reap).
///
/// For a connection the order is `Opened` (unless it came by
/// [`attach`](crate::Hands::attach)), any number of `Received` and `Drained`, then exactly one end:
/// `Closed`, `Moved`, or a [`detach`](crate::Hands::detach) by the caller.
#[derive(Debug)]
pub enum Event {
    /// A connection was accepted.
    Opened {
        /// The new connection.
        conn: ConnId,
        /// Index of the listener it came by, in the order given to `Hands::new`.
        listener: u16,
    },
    /// Bytes wait in [`Hands::received`](crate::Hands::received).
    Received {
        /// Whose bytes.
        conn: ConnId,
    },
    /// Nothing is left to send, as [`Hands::tell_drained`](crate::Hands::tell_drained) asked.
    Drained {
        /// Whose buffer is empty.
        conn: ConnId,
    },
    /// The connection is over, for whatever reason; its id is stale from here on.
    Closed {
        /// Which one.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// A connection given to [`Hands::detach_to`](crate::Hands::detach_to) is ready to travel.
    Moved {
        /// Its id here, stale from here on.
        conn: ConnId,
        /// The connection itself, for [`Hands::attach`](crate::Hands::attach) on the other core.
        moved: Box<Moved>,
    },
    /// Somebody rang this core's [`Waker`](crate::Waker).
    Wake,
    /// A write ended: bytes written and, by its mode, durable.
    Written {
        /// The caller's tag.
        tag: u64,
        /// Bytes written. Fewer than asked for means that the disk took no more.
        result: io::Result<u32>,
    },
    /// A read ended.
    Read {
        /// The caller's tag.
        tag: u64,
        /// The buffer, to be looked at with `read_bytes` and given back with `release`, and how
        /// many bytes are in it (0: end of file).
        result: io::Result<(ReadBuf, u32)>,
    },
}
