//! The relay of `relay.rs` once more with epoll and plain reads and writes: what the kernel costs
//! whoever does not use its ring.
//!
//! Same arguments, same bytes on the wire. One thread; a descriptor is read when it is readable,
//! until nothing is there, and what was read is written to the partner at once. Written as one
//! would for speed: edge-triggered, registered once, no system call that is not a read, a write or
//! a wait. Nothing here is bounded or robust, on purpose.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::thread::{CpuSet, sched_setaffinity};

const CHUNK_BYTES: usize = 4096;
const EVENTS_MAX: usize = 1024;
const LISTENER: u64 = u64::MAX;

struct Conn {
    socket: OwnedFd,
    /// First bytes until the pair's number is complete.
    greeting: Vec<u8>,
    partner: Option<usize>,
    /// What the socket did not take, or what came before the partner did.
    unwritten: Vec<u8>,
    closed: bool,
}

struct Relay {
    epoll: OwnedFd,
    listener: OwnedFd,
    conns: Vec<Conn>,
    waiting: HashMap<u64, usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut listen: SocketAddr = "127.0.0.1:0".parse()?;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or("usage: relay_epoll --listen ADDR --core N")?;
        match name.as_str() {
            "--listen" => listen = value.parse()?,
            "--core" => {
                let mut cores = CpuSet::new();
                cores.set(value.parse()?);
                sched_setaffinity(None, &cores)?;
            }
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let listener = net::listen::bind(listen)?;
    println!("ready {}", net::listen::local_addr(&listener)?);
    std::io::stdout().flush()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    Relay { epoll, listener, conns: Vec::new(), waiting: HashMap::new() }.run()
}

impl Relay {
    fn run(&mut self) -> Result<(), Box<dyn Error>> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == LISTENER {
                    self.accept()?;
                    continue;
                }
                let id = token as usize;
                if flags.contains(EventFlags::OUT) && !self.conns[id].unwritten.is_empty() {
                    self.write(id, &[]);
                }
                if flags.intersects(!EventFlags::OUT) {
                    let ending = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
                    self.read(id, flags.intersects(ending), &mut chunk);
                }
            }
        }
    }

    fn accept(&mut self) -> Result<(), Box<dyn Error>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        sockopt::set_tcp_nodelay(&socket, true)?;
        let token = EventData::new_u64(self.conns.len() as u64);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket.as_fd(), token, flags)?;
        self.conns.push(Conn {
            socket,
            greeting: Vec::new(),
            partner: None,
            unwritten: Vec::new(),
            closed: false,
        });
        Ok(())
    }

    fn read(&mut self, id: usize, ending: bool, chunk: &mut [u8]) {
        while !self.conns[id].closed {
            match rustix::io::read(&self.conns[id].socket, &mut *chunk) {
                Ok(0) => self.close(id),
                Ok(n) => {
                    self.received(id, &chunk[..n]);
                    // Less than asked for: whatever comes later is a new edge.
                    if n < chunk.len() && !ending {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.close(id),
            }
        }
    }

    fn received(&mut self, id: usize, bytes: &[u8]) {
        let missing = (8 - self.conns[id].greeting.len()).min(bytes.len());
        let (greeting, rest) = bytes.split_at(missing);
        if !greeting.is_empty() {
            self.conns[id].greeting.extend_from_slice(greeting);
            if let Ok(number) = self.conns[id].greeting.as_slice().try_into() {
                self.greeted(id, u64::from_be_bytes(number));
            }
        }
        if rest.is_empty() {
            return;
        }
        match self.conns[id].partner {
            Some(partner) => self.write(partner, rest),
            // Kept with who sent it until there is somebody to send it to.
            None => self.conns[id].unwritten.extend_from_slice(rest),
        }
    }

    /// The pair's number is known: the second of a pair finds the first.
    fn greeted(&mut self, id: usize, number: u64) {
        let Some(partner) = self.waiting.remove(&number) else {
            self.waiting.insert(number, id);
            return;
        };
        self.conns[id].partner = Some(partner);
        self.conns[partner].partner = Some(id);
        let early = std::mem::take(&mut self.conns[partner].unwritten);
        if !early.is_empty() {
            self.write(id, &early);
        }
    }

    /// Writes what is left over and then `bytes`, as much as the socket takes.
    fn write(&mut self, id: usize, bytes: &[u8]) {
        let conn = &mut self.conns[id];
        if conn.partner.is_none() || conn.closed {
            return;
        }
        if !conn.unwritten.is_empty() {
            conn.unwritten.extend_from_slice(bytes);
            let n = written(&conn.socket, &conn.unwritten);
            conn.unwritten.drain(..n);
        } else {
            let n = written(&conn.socket, bytes);
            conn.unwritten.extend_from_slice(&bytes[n..]);
        }
    }

    /// Both of a pair go together. Slots are never used again: a run has one crowd.
    fn close(&mut self, id: usize) {
        let partner = self.conns[id].partner;
        for id in [Some(id), partner].into_iter().flatten() {
            let conn = &mut self.conns[id];
            if !std::mem::replace(&mut conn.closed, true) {
                // The other side may have gone already. The descriptor itself stays open until
                // the process ends.
                let _gone = rustix::net::shutdown(&conn.socket, rustix::net::Shutdown::Both);
            }
        }
    }
}

/// How much of it a socket took; a broken one shows when it is read.
fn written(socket: &OwnedFd, bytes: &[u8]) -> usize {
    rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap_or(0)
}
