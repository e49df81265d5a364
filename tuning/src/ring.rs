//! What io_uring can do on this kernel.
//!
//! Every feature is tried rather than derived from the kernel's version:
//! distributions carry features backwards and sandboxes take them away. All
//! rings made here are gone when the probe returns; nothing in it can block.
#![allow(unsafe_code)]

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use serde::Serialize;

/// Which ways of the ring this kernel offers. Without a ring all are false.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RingFeatures {
    /// Why there is no ring at all, as a sentence; `None` when there is one.
    pub unavailable: Option<String>,
    /// `enter` takes a timeout (5.11).
    pub ext_arg: bool,
    /// One poll request reports every readiness (5.13).
    pub multishot_poll: bool,
    /// One ring can put a completion into another (5.18).
    pub msg_ring: bool,
    /// One accept request takes every connection (5.19).
    pub multishot_accept: bool,
    /// Tables of direct descriptors start empty and give out slots (5.19).
    pub sparse_files: bool,
    /// Completions do not interrupt the core (5.19).
    pub coop_taskrun: bool,
    /// One thread submits (6.0).
    pub single_issuer: bool,
    /// A direct descriptor moves to another ring (6.0).
    pub msg_ring_fd: bool,
    /// A send that takes everything at once needs no completion (6.1).
    pub quiet_send: bool,
    /// Completions run when they are asked for (6.1).
    pub defer_taskrun: bool,
}

/// Names that [`RingFeatures::without`] knows.
pub const FEATURES: [&str; 10] = [
    "ext_arg",
    "multishot_poll",
    "msg_ring",
    "multishot_accept",
    "sparse_files",
    "coop_taskrun",
    "single_issuer",
    "msg_ring_fd",
    "quiet_send",
    "defer_taskrun",
];

impl RingFeatures {
    /// Every feature: what a kernel from 6.1 on has.
    pub fn all() -> RingFeatures {
        RingFeatures {
            unavailable: None,
            ext_arg: true,
            multishot_poll: true,
            msg_ring: true,
            multishot_accept: true,
            sparse_files: true,
            coop_taskrun: true,
            single_issuer: true,
            msg_ring_fd: true,
            quiet_send: true,
            defer_taskrun: true,
        }
    }

    /// Tries each feature on this kernel. Takes about a millisecond.
    pub fn probe() -> RingFeatures {
        let ring = match IoUring::new(8) {
            Ok(ring) => ring,
            Err(error) => {
                return RingFeatures {
                    unavailable: Some(why_not(&error)),
                    ..RingFeatures::default()
                };
            }
        };
        let mut ops = Probe::new();
        let ops_known = ring.submitter().register_probe(&mut ops).is_ok();
        let has = |code: u8| ops_known && ops.is_supported(code);
        RingFeatures {
            unavailable: None,
            ext_arg: ring.params().is_feature_ext_arg(),
            multishot_poll: tries_multishot_poll().unwrap_or(false),
            msg_ring: has(opcode::MsgRingData::CODE),
            multishot_accept: tries_multishot_accept().unwrap_or(false),
            sparse_files: ring.submitter().register_files_sparse(8).is_ok(),
            coop_taskrun: builder().setup_coop_taskrun().build(8).is_ok(),
            single_issuer: builder().setup_single_issuer().build(8).is_ok(),
            // Sending descriptors has no operation code of its own; it came
            // in the same release as zero-copy send, which has one.
            msg_ring_fd: has(opcode::MsgRingData::CODE) && has(opcode::SendZc::CODE),
            // Older kernels have the flags, but forget how much a short one has taken.
            quiet_send: has(opcode::SendMsgZc::CODE) && tries_quiet_send().unwrap_or(false),
            defer_taskrun: builder().setup_single_issuer().setup_defer_taskrun().build(8).is_ok(),
        }
    }

    /// Forgets one feature by name, so that the way of an older kernel runs on
    /// this one.
    ///
    /// # Errors
    /// A sentence with the known names.
    pub fn without(&mut self, name: &str) -> Result<(), String> {
        let flag = match name {
            "ext_arg" => &mut self.ext_arg,
            "multishot_poll" => &mut self.multishot_poll,
            "msg_ring" => &mut self.msg_ring,
            "multishot_accept" => &mut self.multishot_accept,
            "sparse_files" => &mut self.sparse_files,
            "coop_taskrun" => &mut self.coop_taskrun,
            "single_issuer" => &mut self.single_issuer,
            "msg_ring_fd" => &mut self.msg_ring_fd,
            "quiet_send" => &mut self.quiet_send,
            "defer_taskrun" => &mut self.defer_taskrun,
            _ => {
                return Err(format!(
                    "'{name}' is no ring feature; known are {}",
                    FEATURES.join(", ")
                ));
            }
        };
        *flag = false;
        Ok(())
    }

    /// Names of the features that are missing, in the order of [`FEATURES`].
    pub fn missing(&self) -> Vec<&'static str> {
        let present = [
            self.ext_arg,
            self.multishot_poll,
            self.msg_ring,
            self.multishot_accept,
            self.sparse_files,
            self.coop_taskrun,
            self.single_issuer,
            self.msg_ring_fd,
            self.quiet_send,
            self.defer_taskrun,
        ];
        FEATURES
            .into_iter()
            .zip(present)
            .filter(|(_, present)| !present)
            .map(|(name, _)| name)
            .collect()
    }

    /// Whether connections can live in a ring's own table instead of the
    /// process's: they are accepted into it and move between rings.
    pub fn can_use_direct_descriptors(&self) -> bool {
        self.sparse_files && self.multishot_accept && self.msg_ring_fd
    }
}

/// Setup options for the plain kind of ring.
fn builder() -> io_uring::Builder {
    IoUring::builder()
}

/// The sentence for a ring that could not be made.
fn why_not(error: &io::Error) -> String {
    let disabled =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (error.raw_os_error().map(rustix::io::Errno::from_raw_os_error), disabled.trim()) {
        (_, "2") => {
            "io_uring is switched off for everyone (kernel.io_uring_disabled = 2)".to_owned()
        }
        (_, "1") => {
            "io_uring is switched off for this user (kernel.io_uring_disabled = 1)".to_owned()
        }
        (Some(rustix::io::Errno::NOSYS), _) => {
            "this kernel has no io_uring, or a sandbox hides it (ENOSYS from io_uring_setup)"
                .to_owned()
        }
        (Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS), _) => {
            "a seccomp or security policy forbids io_uring (EPERM from io_uring_setup)".to_owned()
        }
        (Some(rustix::io::Errno::NOMEM), _) => {
            "there is too little lockable memory for a ring (ENOMEM from io_uring_setup)".to_owned()
        }
        _ => format!("io_uring_setup failed: {error}"),
    }
}

/// A multishot poll on a readable socket stays armed after its first report.
fn tries_multishot_poll() -> io::Result<bool> {
    use io::Write;
    const POLLIN: u32 = 1;

    let (mut here, there) = UnixStream::pair()?;
    here.write_all(&[1])?;
    let poll = opcode::PollAdd::new(types::Fd(there.as_raw_fd()), POLLIN).multi(true).build();
    let mut ring = IoUring::new(8)?;
    // SAFETY: a poll carries no pointer, and `there` outlives `ring`, which is
    // declared later and thus dropped first.
    unsafe { push(&mut ring, &poll) };
    ring.submit_and_wait(1)?;
    Ok(ring.completion().next().is_some_and(|done| done.result() > 0 && cqueue::more(done.flags())))
}

/// A kernel without multishot accept completes the request at once, as invalid.
fn tries_multishot_accept() -> io::Result<bool> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build();
    let mut ring = IoUring::new(8)?;
    // SAFETY: a multishot accept carries no pointer, and `listener` outlives
    // `ring`, which is declared later and thus dropped first.
    unsafe { push(&mut ring, &accept) };
    ring.submit()?;
    Ok(ring.completion().next().is_none())
}

/// A send without a completion has taken everything, and one for which there is no room says how
/// much it took.
fn tries_quiet_send() -> io::Result<bool> {
    const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
    /// More than a socket takes; only what it takes is ever touched.
    const MUCH: usize = 16 << 20;

    let bytes = vec![0_u8; MUCH];
    let (here, mut there) = UnixStream::pair()?;
    let mut ring = IoUring::new(8)?;
    let mut send = |len: u32| -> io::Result<Option<i32>> {
        let send = opcode::Send::new(types::Fd(here.as_raw_fd()), bytes.as_ptr(), len).flags(FLAGS);
        // SAFETY: the bytes and the socket outlive the ring, which is declared later and thus
        // dropped first; nothing writes to them.
        unsafe { push(&mut ring, &send.build().flags(squeue::Flags::SKIP_SUCCESS)) };
        ring.submit()?;
        Ok(ring.completion().next().map(|done| done.result()))
    };
    let is_quiet = send(1)?.is_none();
    let took = send(MUCH as u32)?.unwrap_or(0);
    drop(ring);
    drop(here);
    // As many bytes as it says, and then the end.
    let arrived = io::copy(&mut there, &mut io::sink())?;
    Ok(is_quiet && took > 0 && arrived == 1 + took as u64)
}

/// # Safety
/// Everything that `entry` points to must outlive the ring.
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: passed on to the caller.
    unsafe { ring.submission().push(entry) }.expect("a fresh ring of 8 has room for one entry");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_switches_one_feature_off() {
        for name in FEATURES {
            let mut features = RingFeatures::all();
            features.without(name).unwrap();
            assert_eq!(features.missing(), [name]);
        }
        assert!(RingFeatures::all().without("warp_drive").unwrap_err().contains("multishot_poll"));
        assert_eq!(RingFeatures::default().missing(), FEATURES);
    }

    #[test]
    fn probing_answers_on_any_machine() {
        let features = RingFeatures::probe();
        if features.unavailable.is_some() {
            assert_eq!(features.missing(), FEATURES);
        } else {
            // Deferred task-run is only offered to a single issuer.
            assert!(!features.defer_taskrun || features.single_issuer);
        }
    }
}
