//! Short turns on the processor, so that whoever else needs this core waits
//! less.
#![allow(unsafe_code)]

use std::time::Duration;

use rustix::process::getpriority_process;

/// The shortest that the kernel grants.
const SLICE: Duration = Duration::from_micros(100);

/// Asks the scheduler for short slices instead of some milliseconds. A worker
/// in a closed loop hardly ever sleeps, and on a small machine the kernel's
/// threads that finish a server's durable writes run on the same core; for a
/// whole slice of ours they would wait, and with them every confirmation.
///
/// Before Linux 6.12 there is no such wish, and nothing changes.
pub(crate) fn shorten() {
    // SAFETY: all zeroes is a value of each of its fields.
    let mut wish: libc::sched_attr = unsafe { std::mem::zeroed() };
    wish.size = size_of::<libc::sched_attr>() as u32;
    wish.sched_flags = libc::SCHED_FLAG_KEEP_POLICY as u64;
    wish.sched_runtime = SLICE.as_nanos() as u64;
    // It would be set, too.
    wish.sched_nice = getpriority_process(None).unwrap_or(0);
    // SAFETY: the kernel reads as many bytes as `size` says. A refusal leaves
    // everything as it was.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
}
