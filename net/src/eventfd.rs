//! Eventfds: counters that wake a ring or an executor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// An owned eventfd.
#[derive(Debug)]
pub(crate) struct Eventfd {
    file: File,
}

impl Eventfd {
    /// `nonblocking` makes an empty read return at once. An eventfd that is read through a ring
    /// must be blocking: the kernel answers a read of an empty non-blocking one with EAGAIN
    /// instead of waiting for a value.
    pub(crate) fn new(nonblocking: bool) -> io::Result<Eventfd> {
        let flags = libc::EFD_CLOEXEC | if nonblocking { libc::EFD_NONBLOCK } else { 0 };
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Eventfd { file: File::from(owned) })
    }

    /// Adds one to the counter. Never blocks in practice: the counter holds 2^64 - 2.
    pub(crate) fn ring(&self) {
        // The only possible failure is a full counter, which is as loud as it gets.
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }

    /// Sets the counter to zero (non-blocking eventfds only).
    pub(crate) fn clear(&self) {
        let mut count = [0u8; 8];
        // EAGAIN: it was zero already.
        let _ = (&self.file).read(&mut count);
    }
}

impl AsRawFd for Eventfd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Wakes the core that owns a [`Hands`](crate::Hands), from any thread.
///
/// The core sees one [`Event::Wake`](crate::Event::Wake) for any number of calls in between; a
/// parked one may just return from its park.
#[derive(Clone, Debug)]
pub struct Waker {
    bells: Arc<Bells>,
}

/// The two ways to wake a core.
///
/// A ring that reads an eventfd does not reliably pass its ringing on to the eventfd the ring is
/// registered with: the kernel defers a ringing out of a ringing, and Linux 6.18 was seen to do so
/// once and then never again. So whoever wakes a parked core rings its doorbell himself.
#[derive(Debug)]
pub(crate) struct Bells {
    /// Read by the hot ring.
    pub(crate) ring: Eventfd,
    /// Awaited in the executor, and rung by the ring for everything but `ring` above.
    pub(crate) doorbell: Arc<Eventfd>,
    /// The core is parked, or about to look whether it may be.
    parked: AtomicBool,
}

impl Bells {
    pub(crate) fn new() -> io::Result<Bells> {
        Ok(Bells {
            ring: Eventfd::new(false)?,
            doorbell: Arc::new(Eventfd::new(true)?),
            parked: AtomicBool::new(false),
        })
    }

    /// To be announced before the core looks a last time for something to do.
    pub(crate) fn set_parked(&self, parked: bool) {
        self.parked.store(parked, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

impl Waker {
    pub(crate) fn new(bells: Arc<Bells>) -> Waker {
        Waker { bells }
    }

    /// Wakes the core (one system call, about 6 µs with the scheduler's part when it sleeps; two
    /// when it is parked).
    pub fn wake(&self) {
        self.bells.ring.ring();
        // Either this sees the park, or the core sees what was just rung.
        fence(Ordering::SeqCst);
        if self.bells.parked.load(Ordering::SeqCst) {
            self.bells.doorbell.ring();
        }
    }
}
