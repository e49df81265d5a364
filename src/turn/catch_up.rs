//! Those who catch up, a portion at a time.
//!
//! A read of the log that has come back, and a connection that has taken all it
//! was given and has more to come, are each good for hundreds of messages to be
//! checked, framed and copied. That comes late in a turn, when the commit and
//! everything for others are with the kernel, and no more of it than takes a
//! moment; the rest waits for the next turn, in the order in which it came. New
//! reads go to the disk behind the commit, too.

use std::collections::VecDeque;

use net::ConnId;
use shard::{Input, Outcome};

use super::background::Task;
use super::{Core, clock, inbound, log_io};

/// After this long no other portion is begun, nanoseconds. One takes about as
/// long again, so nobody else waits much longer than twice this.
const BEGIN_NS_MAX: u64 = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    waiting: VecDeque<Portion>,
    /// Somebody was handed a burst at once in this turn.
    has_handed: bool,
}

/// What leads to one burst.
#[derive(Debug)]
enum Portion {
    /// The read with this tag has something for somebody.
    Read(usize),
    Drained(ConnId),
}

impl CatchUp {
    /// Whether the next turn has something to do for it.
    pub(super) fn is_hungry(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Core {
    /// A connection has taken everything it was sent. Nearly all have all there
    /// is; the first that has not gets more at once.
    pub(super) fn drained(&mut self, conn: ConnId) {
        if self.catch_up.has_handed {
            return self.catch_up.waiting.push_back(Portion::Drained(conn));
        }
        let before = self.out.bytes.len();
        self.tell(Input::Drained { conn: inbound::name(conn) });
        self.catch_up.has_handed = self.out.bytes.len() > before;
    }

    /// Hands out as much as takes a moment, and starts what is to be read next.
    pub(super) fn catch_up(&mut self) {
        self.catch_up.has_handed = false;
        if !self.catch_up.is_hungry() && !self.log.has_reads() {
            return;
        }
        let began_ns = clock().mono_ns;
        while let Some(portion) = self.catch_up.waiting.pop_front() {
            self.serve(portion);
            if clock().mono_ns - began_ns >= BEGIN_NS_MAX {
                break;
            }
        }
        self.hand_out();
    }

    /// Lets out what work behind the commit has led to.
    pub(super) fn hand_out(&mut self) {
        self.apply();
        self.start_reads();
        self.send();
    }

    fn serve(&mut self, portion: Portion) {
        match portion {
            // It has been given something else since then, and will be empty
            // once more.
            Portion::Drained(conn) if self.hands.unsent(conn) > 0 => self.hands.tell_drained(conn),
            Portion::Drained(conn) => self.tell(Input::Drained { conn: inbound::name(conn) }),
            Portion::Read(tag) => self.serve_reader(tag),
        }
    }

    /// The read with this tag has something for somebody. Devices do not wait for
    /// the cleaner that has read with them.
    pub(super) fn queue_read(&mut self, tag: usize) {
        if self.log.reads.is_for_devices(tag) {
            self.catch_up.waiting.push_back(Portion::Read(tag));
        } else {
            self.background.add(Task::Survey(tag));
        }
    }

    /// The first of those for whom a read was made; the others come when everybody
    /// else has had a portion.
    pub(super) fn serve_reader(&mut self, tag: usize) {
        let (read, buffer, len, start) = self.log.reads.reader(tag);
        let bytes = &self.hands.read_bytes(buffer)[..len as usize];
        let bytes = bytes.get((read.lsn - start) as usize..);
        let bytes = bytes.filter(|bytes| bytes.len() >= read.len_min as usize);
        let input = log_io::answer(read.reader, read.lsn, bytes);
        let outcome = self.shard.handle(self.now, input, &mut self.out);
        debug_assert_eq!(outcome, Outcome::Taken);
        match self.log.reads.served(tag) {
            Some(buffer) => {
                self.hands.release(buffer);
                self.log.buffer_is_back();
            }
            None => self.queue_read(tag),
        }
    }
}
