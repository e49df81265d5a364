//! Counters of one core's hands, since start.

use crate::close::CloseReason;

/// A copy of the counters. Bytes in bytes, everything else in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct HandsStats {
    /// Connections accepted and kept.
    pub accepted: u64,
    /// Connections accepted and closed at once because `conns_max` was reached.
    pub refused: u64,
    /// Connections that came from another core.
    pub attached: u64,
    /// Connections that went to another core.
    pub detached: u64,
    /// Ended connections by [`CloseReason`] (index with `reason as usize`).
    pub closed: [u64; CloseReason::COUNT],
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes the kernel took for sending.
    pub bytes_out: u64,
    /// Receive operations.
    pub receives: u64,
    /// Send operations.
    pub sends: u64,
    /// Sends saved because what could wait went out with something urgent.
    pub late_joined: u64,
    /// Sends of what had waited in vain.
    pub late_alone: u64,
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Times accepting stopped because descriptors or memory ran out.
    pub emfile: u64,
    /// Times a readable connection had to wait for a free slice.
    pub arena_empty: u64,
    /// Memory of incomplete frames, now.
    pub partial_bytes: usize,
    /// Connections in the table, now (those still closing included).
    pub conns: usize,
    /// Memory of the table of connections, now.
    pub table_bytes: usize,
    /// Connections with something to send, now.
    pub send_buffers: usize,
    /// Bytes the kernel has not taken yet, of all connections, now.
    pub unsent_bytes: usize,
    /// Arena slices in use, now.
    pub slices: usize,
    /// Operations in flight in the ring, now.
    pub inflight: usize,
}
