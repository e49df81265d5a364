//! Non-blocking sockets and epoll.
//!
//! Edge-triggered, both directions registered once: a connection costs one
//! `epoll_ctl` in its life. One option of the kernel has no safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, ipproto, recv,
    send, socket_with, sockopt,
};

/// Readiness of one descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// What it was registered with.
    pub(crate) token: u64,
    /// Bytes, the end or an error may be read.
    pub(crate) readable: bool,
    /// Bytes may be written again.
    pub(crate) writable: bool,
    /// The peer has closed or an error waits: read until it shows.
    pub(crate) ending: bool,
}

/// An epoll instance with its list of events.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    /// The kernel has no `epoll_pwait2` (before 5.11): whole milliseconds only.
    coarse: bool,
}

impl Poller {
    /// A poller that gives up to `events_max` events at a time.
    pub(crate) fn new(events_max: usize) -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll, events: Vec::with_capacity(events_max), coarse: false })
    }

    /// Registers a connection, for good: closing it takes it off.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        use epoll::EventFlags;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Registers a pipe that is read in small pieces.
    pub(crate) fn add_pipe(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Waits until something is ready or the time is over.
    pub(crate) fn wait(&mut self, timeout_ns: u64) -> io::Result<()> {
        let mut ns = timeout_ns;
        if self.coarse {
            ns = ns.next_multiple_of(1_000_000);
        }
        let timeout =
            Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
        self.events.clear();
        let events = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, events, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(Errno::NOSYS) => {
                self.coarse = true;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How many events the last wait gave.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// One event of the last wait.
    pub(crate) fn ready(&self, at: usize) -> Ready {
        use epoll::EventFlags;
        let event = self.events[at];
        let flags = event.flags;
        let ending = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        Ready {
            token: event.data.u64(),
            readable: ending || flags.contains(EventFlags::IN),
            writable: flags.contains(EventFlags::OUT),
            ending,
        }
    }
}

/// Starts a connection; it is there when the socket becomes writable.
pub(crate) fn dial(target: SocketAddr, from: Option<IpAddr>) -> io::Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(from) = from {
        bind_address_no_port(&socket)?;
        bind(&socket, &SocketAddr::new(from, 0))?;
    }
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Leaves the choice of the port to `connect`, which knows the other end: every
/// source address then has its 28,000 ports per target instead of once.
fn bind_address_no_port(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, the option's value is a live int of the
    // length given, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a connection came about.
pub(crate) fn connected(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::socket_error(socket)??)
}

/// Reads what is there; `WouldBlock` when nothing is.
pub(crate) fn read(socket: &OwnedFd, chunk: &mut [u8]) -> io::Result<usize> {
    let (n, _) = recv(socket, chunk, RecvFlags::DONTWAIT)?;
    Ok(n)
}

/// Writes what fits; 0 when nothing does.
pub(crate) fn write(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(n) => Ok(n),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
