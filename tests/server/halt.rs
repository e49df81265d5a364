//! One thread of a running server, held for a while: what the scheduler, a
//! hypervisor or a hanging disk can do to a core.
#![allow(unsafe_code)] // ptrace has no safe wrapper

use std::fs;
use std::io;
use std::ptr;

/// A thread that stands still until this is dropped, which has to happen on the
/// thread that made it.
pub struct Halted {
    tid: libc::pid_t,
}

impl Halted {
    /// Stops the thread of a child of this process whose name begins so.
    ///
    /// # Errors
    /// Where tracing children is forbidden.
    pub fn new(pid: u32, name: &str) -> io::Result<Halted> {
        let tid = thread(pid, name)?;
        request(libc::PTRACE_SEIZE, tid)?;
        let halted = Halted { tid };
        request(libc::PTRACE_INTERRUPT, tid)?;
        // SAFETY: no status is asked for.
        let stopped = unsafe { libc::waitpid(tid, ptr::null_mut(), libc::__WALL) };
        if stopped == tid { Ok(halted) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // Where the process has ended there is nothing to let go.
        let _ = request(libc::PTRACE_DETACH, self.tid);
    }
}

fn thread(pid: u32, name: &str) -> io::Result<libc::pid_t> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if fs::read_to_string(task.path().join("comm"))?.starts_with(name) {
            return Ok(task.file_name().to_string_lossy().parse().expect("a thread's number"));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no thread is called {name}")))
}

fn request(what: libc::c_uint, tid: libc::pid_t) -> io::Result<()> {
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: the requests made here read and write no memory of this process.
    let result = unsafe { libc::ptrace(what, tid, none, none) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
