//! What a caller may choose: sizes, bounds and which kernel features to use.

use std::sync::Arc;

use crate::quota::Quota;

/// Kernel features, as a wish or as a finding.
///
/// In [`HandsOptions`] they are an upper bound: a feature is used when it is allowed *and* the
/// kernel has it. Turning one off forces the older way, so that it can be tested on any kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// One poll entry reports readiness for ever (5.13); otherwise it is re-armed each time.
    pub multishot_poll: bool,
    /// One accept entry accepts for ever (5.19); otherwise it is re-armed each time.
    pub multishot_accept: bool,
    /// Waiting takes a timeout argument (5.11); otherwise a timeout entry is queued.
    pub wait_timeout: bool,
    /// The ring is told that one thread submits (6.0).
    pub single_issuer: bool,
    /// Completions run when the thread enters the kernel anyway (5.19).
    pub coop_taskrun: bool,
    /// Completions run only when the thread asks for them (6.1, needs `single_issuer`).
    pub defer_taskrun: bool,
    /// Sockets can live in the ring's own table instead of the process's (5.19).
    pub direct_descriptors: bool,
    /// A direct descriptor can be handed to another ring (6.0).
    pub send_descriptor: bool,
    /// A send that takes everything at once needs no completion (6.1).
    pub quiet_send: bool,
}

impl Features {
    /// Everything the kernel turns out to have.
    pub const ALL: Features = Features {
        multishot_poll: true,
        multishot_accept: true,
        wait_timeout: true,
        single_issuer: true,
        coop_taskrun: true,
        defer_taskrun: true,
        direct_descriptors: true,
        send_descriptor: true,
        quiet_send: true,
    };

    /// Nothing beyond Linux 5.10.
    pub const FLOOR: Features = Features {
        multishot_poll: false,
        multishot_accept: false,
        wait_timeout: false,
        single_issuer: false,
        coop_taskrun: false,
        defer_taskrun: false,
        direct_descriptors: false,
        send_descriptor: false,
        quiet_send: false,
    };

    /// What is in both.
    pub(crate) fn and(self, other: Features) -> Features {
        Features {
            multishot_poll: self.multishot_poll && other.multishot_poll,
            multishot_accept: self.multishot_accept && other.multishot_accept,
            wait_timeout: self.wait_timeout && other.wait_timeout,
            single_issuer: self.single_issuer && other.single_issuer,
            coop_taskrun: self.coop_taskrun && other.coop_taskrun,
            defer_taskrun: self.defer_taskrun && other.defer_taskrun,
            direct_descriptors: self.direct_descriptors && other.direct_descriptors,
            send_descriptor: self.send_descriptor && other.send_descriptor,
            quiet_send: self.quiet_send && other.quiet_send,
        }
    }
}

impl Default for Features {
    fn default() -> Features {
        Features::ALL
    }
}

/// Sizes and bounds of one core's hands.
#[derive(Clone, Debug)]
pub struct HandsOptions {
    /// Entries of the submission queue, rounded up to a power of two by the kernel. The
    /// completion queue is four times as long.
    pub ring_entries: u32,
    /// Slices of 16 KiB in the receive arena. They are borrowed for one turn only, so a few hundred
    /// serve any number of connections.
    pub arena_slices: usize,
    /// A connection with more unsent bytes than this is cut as a slow reader.
    pub send_buffer_bytes_max: usize,
    /// A connection with more unsent bytes than this is not read until half of them are gone.
    pub send_pause_bytes: usize,
    /// Bound on the bytes that all connections of the core together may leave unsent. While they
    /// are above it, a connection that asks for more and has more than 16 KiB unsent already is
    /// cut as a slow reader.
    pub unsent_bytes_max_total: usize,
    /// Bound on the memory of all incomplete frames together. The connection that would exceed it
    /// is cut.
    pub partial_bytes_max_total: usize,
    /// Connections beyond this are accepted and closed at once.
    pub conns_max: usize,
    /// The same bound for all cores of the process together.
    pub quota: Arc<Quota>,
    /// Keep sockets in the ring's own table. The table's size is `conns_max` plus a quarter for
    /// connections that move here, and `RLIMIT_NOFILE` caps it.
    pub direct_descriptors: bool,
    /// Kernel features that may be used.
    pub features: Features,
}

impl Default for HandsOptions {
    fn default() -> HandsOptions {
        HandsOptions {
            ring_entries: 1024,
            arena_slices: 256,
            send_buffer_bytes_max: 1 << 20,
            send_pause_bytes: 64 << 10,
            unsent_bytes_max_total: 256 << 20,
            partial_bytes_max_total: 64 << 20,
            conns_max: 1 << 20,
            quota: Quota::new(usize::MAX),
            direct_descriptors: false,
            features: Features::ALL,
        }
    }
}
