//! SIGINT and SIGTERM: the parent notes them, the workers leave them to it.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

static REQUESTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_signal: libc::c_int) {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM are counted instead of ending the process.
pub(crate) fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler touches one atomic only, which is allowed in a
        // signal handler, and lives as long as the process.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// From now on SIGINT is ignored: the terminal sends it to every process of
/// the group, and the parent decides what it means.
pub(crate) fn leave_to_parent() {
    // SAFETY: ignoring a signal involves no code of ours.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

/// How often the process was asked to end.
pub(crate) fn requests() -> u32 {
    REQUESTS.load(Ordering::Relaxed)
}
