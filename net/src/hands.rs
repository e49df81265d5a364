//! The hands themselves: one ring, one table of connections, the pools, and who does what next.
//!
//! Completions are taken in batches and each goes to the file of its noun: `listen` (accept),
//! `receive`, `send`, `close`, `relocate`, `disk`. Handlers only change state, queue operations
//! and note events; the kernel is entered in `reap`, `flush`, `wait` and `park` and nowhere else
//! (`detach` settles a send in flight, which is the rare exception).
//!
//! Invariant: a slot of the table has at most one poll, one receive and one send in flight, and is
//! freed only when it has none.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::bridge::Bridge;
use crate::buf::Buffers;
use crate::conn::{ConnId, Flags, Table};
use crate::disk::DiskOps;
use crate::event::Event;
use crate::eventfd::{Bells, Waker};
use crate::late::Late;
use crate::listen::Listener;
use crate::options::{Features, HandsOptions};
use crate::relocate::Moved;
use crate::ring::{Completion, Op, Ring, Token};
use crate::stats::HandsStats;

/// One round of waiting for the last operations, at most.
const ROUND: Duration = Duration::from_millis(10);

/// Only the disk may take its time; a second is far beyond what a healthy one needs.
const ROUNDS_MAX: usize = 100;

/// A write is waited for ten times as long: to give up on it costs the process.
const WRITE_ROUNDS_MAX: usize = 10 * ROUNDS_MAX;

/// The hands of one core. They belong to the thread that made them.
#[derive(Debug)]
pub struct Hands {
    pub(crate) options: HandsOptions,
    pub(crate) ring: Ring,
    pub(crate) table: Table,
    /// Boxed so that it can be leaked whole if the kernel does not let go of it.
    pub(crate) buffers: Box<Buffers>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) disk: DiskOps,
    /// Connections on their way into another ring's table, by slot.
    pub(crate) moving: HashMap<u32, Box<Moved>>,
    /// Events noted since the last reap.
    pub(crate) pending: Vec<Event>,
    /// Readable connections that wait for their receive.
    pub(crate) ready: VecDeque<ConnId>,
    /// Connections that hold an arena slice with bytes.
    pub(crate) lent: Vec<ConnId>,
    /// Connections with something new to send.
    pub(crate) dirty: Vec<ConnId>,
    /// Connections with something to send that may wait for company.
    pub(crate) late: Late,
    /// Bytes that all connections together have to send, those that are closing included.
    pub(crate) unsent_bytes: usize,
    /// Connections that may flush or linger until the time given; the times only rise.
    pub(crate) closing: VecDeque<(u64, ConnId)>,
    /// As of the last tick.
    pub(crate) now_ms: u64,
    pub(crate) stats: HandsStats,
    bells: Arc<Bells>,
    bridge: Bridge,
    /// Reused, so that reaping allocates nothing.
    batch: Vec<Completion>,
}

impl Hands {
    /// Makes the ring on this thread and arms accept on every listener.
    ///
    /// # Errors
    /// What the kernel says when it refuses the ring or the table of direct descriptors.
    ///
    /// # Panics
    /// If `arena_slices` is zero.
    pub fn new(options: HandsOptions, listeners: Vec<OwnedFd>) -> io::Result<Hands> {
        let mut ring = Ring::new(&options)?;
        let bells = Arc::new(Bells::new()?);
        let bridge = Bridge::new(Arc::clone(&bells.doorbell))?;
        ring.register_doorbell(bridge.doorbell_fd())?;
        let mut hands = Hands {
            buffers: Box::new(Buffers::new(options.arena_slices, options.partial_bytes_max_total)),
            ring,
            options,
            table: Table::new(),
            listeners: listeners.into_iter().map(Listener::new).collect(),
            disk: DiskOps::default(),
            moving: HashMap::new(),
            pending: Vec::new(),
            ready: VecDeque::new(),
            lent: Vec::new(),
            dirty: Vec::new(),
            late: Late::default(),
            unsent_bytes: 0,
            closing: VecDeque::new(),
            now_ms: 0,
            stats: HandsStats::default(),
            bells,
            bridge,
            batch: Vec::new(),
        };
        hands.arm_wake();
        hands.arm_all_listeners();
        hands.ring.submit();
        Ok(hands)
    }

    /// The kernel features in use.
    pub fn features(&self) -> Features {
        self.ring.features()
    }

    /// Wakes this core from any other thread.
    pub fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.bells))
    }

    /// The counters.
    pub fn stats(&self) -> HandsStats {
        HandsStats {
            enters: self.ring.enters(),
            partial_bytes: self.buffers.partials.held(),
            conns: self.table.live(),
            table_bytes: self.table.bytes(),
            send_buffers: self.buffers.outgoing.used(),
            unsent_bytes: self.unsent_bytes,
            slices: self.buffers.arena.used(),
            inflight: self.ring.inflight(),
            ..self.stats
        }
    }

    /// What incomplete frames hold, per mille of what is there for large ones: with
    /// small ones it may exceed a thousand.
    pub fn frames_permille(&self) -> u64 {
        let partials = &self.buffers.partials;
        permille(partials.held(), partials.bytes_max())
    }

    /// Bytes unsent, per mille of what all connections together may have.
    pub fn unsent_permille(&self) -> u64 {
        permille(self.unsent_bytes, self.options.unsent_bytes_max_total)
    }

    /// Appends everything that has happened to `events`, and receives from whoever has something
    /// to read and is not paused.
    ///
    /// Bytes of an earlier `Received` that were not [consumed](Hands::consume) since move to a
    /// buffer of their own first; nothing is lost, but nothing is free either.
    pub fn reap(&mut self, events: &mut Vec<Event>) {
        self.reclaim_slices();
        self.dispatch_completions();
        // Receives end as they are submitted, so their bytes are part of this same turn.
        if self.issue_receives() {
            self.ring.submit();
            self.dispatch_completions();
        }
        events.append(&mut self.pending);
    }

    /// Is there something to reap at once? Then do not sleep.
    pub fn has_pending(&mut self) -> bool {
        let has_noted = !self.pending.is_empty() || !self.ready.is_empty();
        has_noted || self.ring.has_completions() || self.ring.has_quiet()
    }

    /// Submits everything that was queued: the sends of this turn, disk operations, closes. Does
    /// not wait. Quiet sends end here, and with them whatever else has completed is taken.
    pub fn flush(&mut self) {
        self.launch_sends();
        self.ring.submit();
        if self.ring.has_quiet() {
            // Their buffers are warm, and nobody has to come back for them.
            self.dispatch_completions();
            self.ring.submit();
        }
    }

    /// Runs what the kernel has ready and says whether there is something to reap.
    pub fn peek(&mut self) -> bool {
        self.ring.poke();
        self.has_pending()
    }

    /// Flushes everything, then blocks this thread until something completes or `timeout` has
    /// passed.
    pub fn wait(&mut self, timeout: Duration) {
        self.flush_late();
        self.wait_holding(timeout);
    }

    /// As [`wait`](Hands::wait), but what is late goes on waiting for company.
    pub fn wait_holding(&mut self, timeout: Duration) {
        self.flush();
        if !self.has_pending() {
            self.ring.wait(timeout);
        }
    }

    /// Flushes, then sleeps in the executor until something completes or `timeout` has passed.
    /// For silent times: each park costs several system calls and a trip through the reactor.
    ///
    /// # Panics
    /// Outside a glommio executor.
    pub async fn park(&mut self, timeout: Duration) {
        self.flush_late();
        self.flush();
        self.bells.set_parked(true);
        self.ring.doorbell_on();
        // What completed before the bell was on must not be slept through.
        self.ring.poke();
        if !self.has_pending() {
            self.bridge.doorbell(timeout).await;
        }
        self.ring.doorbell_off();
        self.bells.set_parked(false);
    }

    /// Flushes, then lets the executor's reactor and its other tasks run once.
    ///
    /// # Panics
    /// Outside a glommio executor.
    pub async fn breathe(&mut self) {
        self.flush();
        self.bridge.step_outside().await;
    }

    /// Looks at the deadlines; to be called about every 100 ms. `now_ms` must not step back.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.end_overdue();
        self.resume_listeners();
    }

    /// Takes all completions from the ring and handles them.
    pub(crate) fn dispatch_completions(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        self.ring.take(&mut batch);
        for completion in batch.drain(..) {
            self.dispatch(completion);
        }
        self.batch = batch;
    }

    fn dispatch(&mut self, completion: Completion) {
        let Completion { token: Token { op, slot }, result, more } = completion;
        match op {
            Op::Poll => self.on_poll(slot, result, more),
            Op::Receive => self.on_receive(slot, result),
            Op::Send | Op::QuietSend => self.on_send(slot, result),
            Op::Accept => self.on_accept(slot, result, more),
            Op::Hush => self.on_hush(slot),
            Op::Close => self.on_close(slot),
            Op::Move => self.on_move(slot, result),
            Op::Wake => self.on_wake(result),
            Op::Write => self.on_write(slot, result),
            Op::Sync => self.on_sync(slot, result),
            Op::Read => self.on_read(slot, result),
            Op::Forget => {}
        }
    }

    fn arm_wake(&mut self) {
        let area = self.buffers.wake.lend(0, 8);
        self.ring.read_wake(self.bells.ring.as_raw_fd(), &area);
    }

    fn on_wake(&mut self, result: i32) {
        if result == -libc::ECANCELED {
            return;
        }
        self.pending.push(Event::Wake);
        self.arm_wake();
    }

    /// Ends every operation and waits for its completion. `false`: the kernel kept some, but none
    /// that touches the memory of others.
    fn quiesce(&mut self) -> bool {
        for slot in 0..self.listeners.len() as u32 {
            self.stop_listener(slot);
        }
        self.ring.cancel(Token { op: Op::Wake, slot: 0 });
        for slot in 0..self.table.slots() {
            let flags = self.table[slot].flags;
            for (flag, op) in [(Flags::POLL, Op::Poll), (Flags::SEND, Op::Send)] {
                if flags.any(flag) {
                    self.ring.cancel(Token { op, slot });
                }
            }
        }
        let mut batch = Vec::new();
        for round in 0..WRITE_ROUNDS_MAX {
            if self.ring.inflight() == 0 {
                return true;
            }
            if round >= ROUNDS_MAX && self.disk.writing == 0 {
                return false;
            }
            self.ring.wait(ROUND);
            batch.clear();
            self.ring.take(&mut batch);
            // Closed by the drop below, not twice; and what got its descriptor meanwhile is.
            for completion in &batch {
                self.forget(completion);
            }
        }
        if self.disk.writing > 0 {
            // Our own buffers can be leaked, but whoever lent us theirs frees them when we return.
            eprintln!("a write to the disk does not end: aborting, so that it writes no garbage");
            std::process::abort();
        }
        self.ring.inflight() == 0
    }

    /// What a completion leaves behind when nobody is interested any more.
    fn forget(&mut self, completion: &Completion) {
        let Token { op, slot } = completion.token;
        match op {
            Op::Accept if completion.result >= 0 && self.ring.table() == 0 => {
                drop(crate::ring::own(completion.result));
            }
            // The descriptor is closed: keep `drop` from closing a stranger's.
            Op::Close => self.table[slot].flags.set(Flags::GONE),
            Op::Write => self.disk.writing -= 1,
            _ => {}
        }
    }
}

fn permille(held: usize, most: usize) -> u64 {
    held as u64 * 1000 / most.max(1) as u64
}

impl Drop for Hands {
    fn drop(&mut self) {
        let quiet = self.quiesce();
        for slot in 0..self.table.slots() {
            self.close_plain(slot);
        }
        if !quiet {
            // Memory that the kernel may still write to is never given back.
            let buffers = std::mem::replace(&mut self.buffers, Box::new(Buffers::new(1, 0)));
            Box::leak(buffers);
        }
    }
}
