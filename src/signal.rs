//! Signals as values: blocked in every thread, waited for in one.
#![allow(unsafe_code)] // sigprocmask and sigwait have no safe wrapper in the standard library

use std::io;
use std::mem::MaybeUninit;

/// Blocks SIGXFSZ in this thread and in all it starts from now on, so that a
/// write beyond a file size limit is an error like any other.
///
/// # Errors
/// What the system says.
pub(crate) fn make_large_files_an_error() -> io::Result<()> {
    block(&[libc::SIGXFSZ]).map(drop)
}

fn block(signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set it is given, and the other
    // calls get an initialised one.
    let (set, code) = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        let none = std::ptr::null_mut();
        (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, none))
    };
    if code == 0 { Ok(set) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// The signals that end the process politely.
pub(crate) struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks them in this thread and in all it starts from now on.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn block() -> io::Result<Signals> {
        Ok(Signals { set: block(&[libc::SIGTERM, libc::SIGINT])? })
    }

    /// Waits for one of them and says which.
    pub(crate) fn wait(&self) -> &'static str {
        let mut number = 0;
        // SAFETY: both pointers are valid for the call.
        let code = unsafe { libc::sigwait(&raw const self.set, &raw mut number) };
        assert_eq!(code, 0, "sigwait fails only for an invalid set");
        if number == libc::SIGINT { "SIGINT" } else { "SIGTERM" }
    }
}
