//! A bare io_uring relay without any logic: what the kernel alone costs.
//!
//! The baseline that the server's message rate is compared with, in the same run on the same
//! machine. One thread, one ring, no protocol: the first 8 bytes of a connection are the number of
//! its pair (big-endian), everything after is forwarded verbatim to the other connection with that
//! number. Nothing here is bounded or robust, on purpose.
//!
//! With `--confirm SIZE` it answers, as whoever promises something must: the bytes are messages of
//! that many bytes, each goes to its sender, too, and those that begin with a zero tell of an
//! arrival and end here. That is what sending and receiving alone cost a server whose clients
//! acknowledge; for rates at which messages come one by one: of several in one piece the first
//! leaves alone.
//!
//! `relay --listen 127.0.0.1:0 --core 1` prints `ready ADDR` when it listens.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};

const SLICE: usize = 4096;
const SLICES: usize = 8192;

const ACCEPT: u64 = 0;
const POLL: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const NOBODY: u64 = 4;

/// Bytes on their way: a part of one slice.
struct Chunk {
    slice: usize,
    start: usize,
    end: usize,
}

struct Conn {
    fd: RawFd,
    /// First bytes until the pair's number is complete.
    greeting: Vec<u8>,
    partner: Option<usize>,
    /// To be sent to this connection, the first one is in flight.
    queue: VecDeque<Chunk>,
    /// The beginning of a message, with `--confirm`.
    partial: Vec<u8>,
    /// Received before the partner came.
    early: Vec<Chunk>,
    /// Slice of the receive in flight.
    receiving: Option<usize>,
    readable: bool,
    closed: bool,
}

struct Relay {
    ring: IoUring,
    listener: RawFd,
    arena: Vec<u8>,
    free: Vec<usize>,
    conns: Vec<Conn>,
    waiting: HashMap<u64, usize>,
    /// Bytes of a message, to answer them.
    confirm: Option<usize>,
    /// Readable, but there was no slice.
    starved: Vec<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut listen: SocketAddr = "127.0.0.1:0".parse()?;
    let (mut core, mut confirm) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or("usage: relay --listen ADDR --core N --confirm SIZE")?;
        match name.as_str() {
            "--listen" => listen = value.parse()?,
            "--core" => core = Some(value.parse::<usize>()?),
            "--confirm" => confirm = Some(value.parse::<NonZero<usize>>()?.get()),
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    if let Some(core) = core {
        pin(core)?;
    }
    let listener = net::listen::bind(listen)?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(32 << 10)
        .build(8 << 10)?;
    let mut relay = Relay {
        ring,
        listener: listener.as_raw_fd(),
        arena: vec![0; SLICE * SLICES],
        free: (0..SLICES).collect(),
        conns: Vec::new(),
        waiting: HashMap::new(),
        confirm,
        starved: Vec::new(),
    };
    relay.accept();
    println!("ready {}", net::listen::local_addr(&listener)?);
    std::io::stdout().flush()?;
    relay.run()
}

impl Relay {
    fn run(&mut self) -> Result<(), Box<dyn Error>> {
        let mut batch = Vec::new();
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
                Err(e) => return Err(e.into()),
            }
            batch.extend(
                self.ring
                    .completion()
                    .map(|c| (c.user_data(), c.result(), cqueue::more(c.flags()))),
            );
            for (token, result, more) in batch.drain(..) {
                self.completed(token & 7, (token >> 3) as usize, result, more);
            }
            for id in std::mem::take(&mut self.starved) {
                self.receive(id);
            }
        }
    }

    fn completed(&mut self, op: u64, id: usize, result: i32, more: bool) {
        match op {
            ACCEPT => {
                if result >= 0 {
                    self.opened(result);
                }
                if !more {
                    self.accept();
                }
            }
            POLL => {
                self.conns[id].readable = true;
                if !more && !self.conns[id].closed {
                    self.poll(id);
                }
                self.receive(id);
            }
            RECEIVE => self.received(id, result),
            SEND => self.sent(id, result),
            _ => {}
        }
    }

    fn push(&mut self, entry: squeue::Entry, op: u64, id: usize) {
        let entry = entry.user_data(op | (id as u64) << 3);
        // SAFETY: pointers point into the arena, which is never moved or freed.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // Full queue; a refusal shows up again in the main loop.
            let _ = self.ring.submit();
        }
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(Fd(self.listener)).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry, ACCEPT, 0);
    }

    fn opened(&mut self, fd: RawFd) {
        self.conns.push(Conn {
            fd,
            greeting: Vec::new(),
            partial: Vec::new(),
            partner: None,
            queue: VecDeque::new(),
            early: Vec::new(),
            receiving: None,
            readable: false,
            closed: false,
        });
        self.poll(self.conns.len() - 1);
    }

    fn poll(&mut self, id: usize) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let entry = opcode::PollAdd::new(Fd(self.conns[id].fd), events).multi(true).build();
        self.push(entry, POLL, id);
    }

    fn receive(&mut self, id: usize) {
        let conn = &mut self.conns[id];
        if conn.closed || !conn.readable || conn.receiving.is_some() {
            return;
        }
        let Some(slice) = self.free.pop() else {
            return self.starved.push(id);
        };
        conn.receiving = Some(slice);
        conn.readable = false;
        // SAFETY: the slice lies within the arena.
        let ptr = unsafe { self.arena.as_mut_ptr().add(slice * SLICE) };
        let entry =
            opcode::Recv::new(Fd(conn.fd), ptr, SLICE as u32).flags(libc::MSG_DONTWAIT).build();
        self.push(entry, RECEIVE, id);
    }

    fn received(&mut self, id: usize, result: i32) {
        let conn = &mut self.conns[id];
        let slice = conn.receiving.take().expect("a receive was in flight");
        if result <= 0 {
            self.free.push(slice);
            if result == -libc::EAGAIN {
                return self.receive(id);
            }
            return self.close(id);
        }
        let end = result as usize;
        conn.readable |= end == SLICE;
        let missing = 8 - conn.greeting.len();
        let start = missing.min(end);
        if start > 0 {
            let from = slice * SLICE;
            conn.greeting.extend_from_slice(&self.arena[from..from + start]);
            if conn.greeting.len() == 8 {
                self.greeted(id);
            }
        }
        self.forward(id, Chunk { slice, start, end });
        self.receive(id);
    }

    /// The pair's number is known: the second of a pair finds the first.
    fn greeted(&mut self, id: usize) {
        let number = self.conns[id].greeting.as_slice().try_into().map(u64::from_be_bytes);
        let number = number.expect("eight bytes");
        let Some(partner) = self.waiting.remove(&number) else {
            self.waiting.insert(number, id);
            return;
        };
        self.conns[id].partner = Some(partner);
        self.conns[partner].partner = Some(id);
        for chunk in std::mem::take(&mut self.conns[partner].early) {
            self.forward(partner, chunk);
        }
    }

    fn forward(&mut self, id: usize, chunk: Chunk) {
        if chunk.start == chunk.end {
            return self.free.push(chunk.slice);
        }
        let Some(partner) = self.conns[id].partner else {
            return self.conns[id].early.push(chunk);
        };
        if let Some(size) = self.confirm {
            return self.answer(id, partner, size, &chunk);
        }
        self.conns[partner].queue.push_back(chunk);
        if self.conns[partner].queue.len() == 1 {
            self.send(partner);
        }
    }

    /// Each message goes to the partner and back.
    fn answer(&mut self, id: usize, partner: usize, size: usize, chunk: &Chunk) {
        let mut bytes = std::mem::take(&mut self.conns[id].partial);
        let from = chunk.slice * SLICE;
        bytes.extend_from_slice(&self.arena[from + chunk.start..from + chunk.end]);
        self.free.push(chunk.slice);
        let whole = bytes.len() / size * size;
        for message in bytes[..whole].chunks_exact(size).filter(|message| message[0] != 0) {
            self.put(partner, message);
            self.put(id, message);
        }
        bytes.drain(..whole);
        self.conns[id].partial = bytes;
    }

    /// Appends to what waits behind the send in flight; that shares a send.
    fn put(&mut self, id: usize, bytes: &[u8]) {
        let queue = &self.conns[id].queue;
        let last = queue.back().filter(|last| queue.len() > 1 && last.end + bytes.len() <= SLICE);
        let (slice, end) = match last {
            Some(last) => (last.slice, last.end),
            None => match self.free.pop() {
                Some(slice) => (slice, 0),
                None => return self.close(id),
            },
        };
        let at = slice * SLICE + end;
        self.arena[at..at + bytes.len()].copy_from_slice(bytes);
        let queue = &mut self.conns[id].queue;
        if end > 0 {
            queue.back_mut().expect("it has room").end += bytes.len();
            return;
        }
        queue.push_back(Chunk { slice, start: 0, end: bytes.len() });
        if queue.len() == 1 {
            self.send(id);
        }
    }

    fn send(&mut self, id: usize) {
        let conn = &self.conns[id];
        let Some(chunk) = conn.queue.front() else { return };
        let len = (chunk.end - chunk.start) as u32;
        // SAFETY: the chunk lies within the arena.
        let ptr = unsafe { self.arena.as_ptr().add(chunk.slice * SLICE + chunk.start) };
        let entry = opcode::Send::new(Fd(conn.fd), ptr, len).flags(libc::MSG_NOSIGNAL).build();
        self.push(entry, SEND, id);
    }

    fn sent(&mut self, id: usize, result: i32) {
        let chunk = self.conns[id].queue.front_mut().expect("a send was in flight");
        chunk.start += result.max(0) as usize;
        if result < 0 || chunk.start == chunk.end {
            let slice = chunk.slice;
            self.conns[id].queue.pop_front();
            self.free.push(slice);
        }
        self.send(id);
    }

    /// Both of a pair go together. Slots are never used again: a run has one crowd.
    fn close(&mut self, id: usize) {
        let partner = self.conns[id].partner;
        for id in [Some(id), partner].into_iter().flatten() {
            if !std::mem::replace(&mut self.conns[id].closed, true) {
                let fd = self.conns[id].fd;
                // SAFETY: takes no pointers. Ends the poll and any send; the descriptor itself
                // stays open until the process ends.
                unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
                self.push(opcode::AsyncCancel::new(POLL | (id as u64) << 3).build(), NOBODY, 0);
            }
        }
    }
}

fn pin(core: usize) -> Result<(), Box<dyn Error>> {
    // SAFETY: a cpu_set_t is plain bits; the call only reads the one given.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
