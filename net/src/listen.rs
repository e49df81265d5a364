//! Listening: sockets that share a port between cores, and accepting within limits.
//!
//! When descriptors or memory run out the kernel ends the accept; asking again at once would only
//! burn the core, so a listener rests for 100 ms, twice as long each time, up to a second. The
//! backlog holds the callers meanwhile.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::event::Event;
use crate::hands::Hands;
use crate::ring::{Op, Target, Token};

/// Callers that may wait to be accepted (the kernel caps it at `net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A silent peer is asked after this long, and declared dead a minute later.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Sent bytes may stay unacknowledged this long before the connection counts as broken.
///
/// Not shorter than all the probes together: the kernel measures it from the last byte received
/// and then no longer counts probes, so that with a shorter one a single probe that is lost ends a
/// healthy connection.
const USER_TIMEOUT: Duration = Duration::from_secs(
    KEEPALIVE_IDLE.as_secs() + KEEPALIVE_INTERVAL.as_secs() * KEEPALIVE_PROBES as u64,
);

const REST_MS_MIN: u64 = 100;
const REST_MS_MAX: u64 = 1_000;

/// A TCP listener for one core. Any number of them may share an address; the kernel spreads the
/// callers. With port 0 the kernel chooses one: see [`local_addr`] for the others to join it.
///
/// Accepted sockets inherit `TCP_NODELAY`, keepalive and the user timeout, which saves four system
/// calls for each of them. The listener is blocking on purpose: it never blocks a thread (only the
/// ring accepts from it), and up to Linux 5.18 the ring answers EAGAIN for a non-blocking one
/// instead of waiting.
///
/// # Errors
/// What the kernel says: address in use, not available, no permission.
pub fn bind(addr: SocketAddr) -> io::Result<OwnedFd> {
    let socket = prepared(addr)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// As [`bind`], for the first of them: refused while anybody else listens there, sharing or not,
/// and the others may join it.
///
/// # Errors
/// What the kernel says. Of two who ask at the same moment it may refuse both.
pub fn bind_first(addr: SocketAddr) -> io::Result<OwnedFd> {
    let socket = prepared(addr)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    // Not before: the kernel compares when a socket is bound and when it begins to listen, and who
    // shares is let in beside all of the same user who share.
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

fn prepared(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(socket)
}

/// The address a listener got.
///
/// # Errors
/// What the kernel says, or `InvalidInput` for a socket that is not of the internet kind.
pub fn local_addr(listener: &OwnedFd) -> io::Result<SocketAddr> {
    SockRef::from(listener)
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// One listener and whether it rests.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    /// An accept is in flight.
    armed: bool,
    /// No more callers, ever.
    stopped: bool,
    /// Accept again at this time.
    resume_ms: Option<u64>,
    /// How long the next rest takes.
    rest_ms: u64,
}

impl Listener {
    pub(crate) fn new(fd: OwnedFd) -> Listener {
        Listener { fd, armed: false, stopped: false, resume_ms: None, rest_ms: REST_MS_MIN }
    }
}

/// Worth asking again at once: the caller, not this machine, had a problem.
fn is_callers_fault(errno: i32) -> bool {
    matches!(errno, libc::ECONNABORTED | libc::EPROTO | libc::EAGAIN | libc::EINTR)
}

impl Hands {
    /// Accepts no more connections; those that exist go on.
    pub fn stop_accepting(&mut self) {
        for slot in 0..self.listeners.len() as u32 {
            self.stop_listener(slot);
        }
    }

    pub(crate) fn stop_listener(&mut self, slot: u32) {
        let listener = &mut self.listeners[slot as usize];
        listener.stopped = true;
        listener.resume_ms = None;
        if listener.armed {
            self.ring.cancel(Token { op: Op::Accept, slot });
        }
    }

    pub(crate) fn arm_all_listeners(&mut self) {
        assert!(self.listeners.len() <= usize::from(u16::MAX));
        for slot in 0..self.listeners.len() as u32 {
            self.arm_listener(slot);
        }
    }

    fn arm_listener(&mut self, slot: u32) {
        let listener = &mut self.listeners[slot as usize];
        listener.resume_ms = None;
        if !listener.armed && !listener.stopped {
            listener.armed = true;
            self.ring.accept(listener.fd.as_raw_fd(), slot);
        }
    }

    /// Listeners that have rested long enough accept again.
    pub(crate) fn resume_listeners(&mut self) {
        for slot in 0..self.listeners.len() as u32 {
            let due = self.listeners[slot as usize].resume_ms;
            if due.is_some_and(|at| at <= self.now_ms) {
                self.arm_listener(slot);
            }
        }
    }

    pub(crate) fn on_accept(&mut self, slot: u32, result: i32, more: bool) {
        let listener = &mut self.listeners[slot as usize];
        listener.armed = more;
        match u32::try_from(result) {
            Ok(descriptor) => {
                listener.rest_ms = REST_MS_MIN;
                self.admit(descriptor, slot as u16);
            }
            Err(_) if listener.stopped || is_callers_fault(-result) => {}
            Err(_) => {
                // Out of descriptors, memory or table: rest.
                listener.resume_ms = Some(self.now_ms + listener.rest_ms);
                listener.rest_ms = (listener.rest_ms * 2).min(REST_MS_MAX);
                self.stats.emfile += 1;
                // The kernel looks for a place in the table when it has taken
                // the caller already, and hangs up on it.
                if self.ring.table() > 0 && -result == libc::ENFILE {
                    self.stats.refused += 1;
                }
                return;
            }
        }
        self.arm_listener(slot);
    }

    fn admit(&mut self, descriptor: u32, listener: u16) {
        let target = if self.ring.table() > 0 {
            Target::Direct(descriptor)
        } else {
            Target::Plain(descriptor as i32)
        };
        if self.table.live() >= self.options.conns_max || !self.options.quota.admit() {
            self.stats.refused += 1;
            return self.ring.discard(target);
        }
        let slot = self.table.insert(target, listener);
        self.stats.accepted += 1;
        self.arm_poll(slot);
        let conn = self.table.id(slot);
        self.pending.push(Event::Opened { conn, listener });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_listeners_share_one_port() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = local_addr(&first).unwrap();
        let second = bind(addr).unwrap();
        assert_eq!(local_addr(&second).unwrap(), addr);
    }

    #[test]
    fn a_silent_peer_has_all_its_probes() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = std::net::TcpStream::connect(local_addr(&listener).unwrap()).unwrap();
        let accepted = std::net::TcpListener::from(listener).accept().unwrap().0;
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        let (idle, interval) =
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        let probes = socket.tcp_keepalive_retries().unwrap();
        assert_eq!(
            (idle, interval, probes),
            (KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES)
        );
        // The kernel takes a shorter one for the end after the first probe.
        let timeout = socket.tcp_user_timeout().unwrap().expect("one is set");
        assert!(timeout >= idle + interval * probes, "{timeout:?}");
        drop(client);
    }

    #[test]
    fn six_is_spoken_too() {
        match bind("[::1]:0".parse().unwrap()) {
            Ok(listener) => assert!(local_addr(&listener).unwrap().is_ipv6()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable),
        }
    }
}
