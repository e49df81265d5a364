//! Those who catch up, a portion at a time.
//!
//! A read of the log that has come back, and a connection that has taken all it
//! was given and has more to come, are each good for hundreds of messages to be
//! checked, framed and copied. That comes last in a turn, when the commit and
//! everything for others are with the kernel, and no more of it than takes a
//! moment; the rest waits for the next turn, in the order in which it came. New
//! reads go to the disk behind the commit, too.

use std::collections::VecDeque;
use std::ops::Range;

use net::{ConnId, ReadBuf};
use shard::{Input, Outcome};
use wal::{BLOCK, Lsn};

use super::reads::{JOINED_MAX, Read};
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

/// What leads to one burst for each of those it concerns.
#[derive(Debug)]
enum Portion {
    Read(Arrived),
    Drained(ConnId),
}

/// What a read has brought.
#[derive(Debug)]
struct Arrived {
    /// Those who wait for their part of it.
    readers: VecDeque<Read>,
    buffer: ReadBuf,
    len: u32,
    /// Where its first byte stands.
    start: Lsn,
    /// What it is good for.
    good: Range<Lsn>,
}

impl CatchUp {
    /// A read up to `end` has brought so many bytes.
    pub(super) fn arrived(&mut self, reads: Vec<Read>, end: Lsn, buffer: ReadBuf, len: u32) {
        let first = reads.first().expect("a completion has its read").lsn;
        let start = first / BLOCK as Lsn * BLOCK as Lsn;
        let good = first..end.min(start + Lsn::from(len));
        let read = Arrived { readers: reads.into(), buffer, len, start, good };
        self.waiting.push_back(Portion::Read(read));
    }

    /// Whether a read that has come back, and is held for others, serves this one,
    /// too; the read, if none does.
    pub(super) fn join(&mut self, read: Read) -> Option<Read> {
        let serves = |portion: &&mut Portion| match portion {
            Portion::Read(arrived) => {
                arrived.readers.len() < JOINED_MAX && read.is_served_by(&arrived.good)
            }
            Portion::Drained(_) => false,
        };
        let Some(Portion::Read(arrived)) = self.waiting.iter_mut().find(serves) else {
            return Some(read);
        };
        arrived.readers.push_back(read);
        None
    }

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
            Portion::Read(read) => self.serve_reader(read),
        }
    }

    /// The first of those for whom a read was made; the others come when everybody
    /// else has had a portion.
    fn serve_reader(&mut self, mut read: Arrived) {
        let Read { reader, lsn, len_min, .. } = read.readers.pop_front().expect("one waits");
        let bytes = &self.hands.read_bytes(&read.buffer)[..read.len as usize];
        let bytes = bytes.get((lsn - read.start) as usize..);
        let bytes = bytes.filter(|bytes| bytes.len() >= len_min as usize);
        let input = log_io::answer(reader, lsn, bytes);
        let outcome = self.shard.handle(self.now, input, &mut self.out);
        debug_assert_eq!(outcome, Outcome::Taken);
        if read.readers.is_empty() {
            self.hands.release(read.buffer);
            self.log.buffer_is_back();
        } else {
            self.catch_up.waiting.push_back(Portion::Read(read));
        }
    }
}
