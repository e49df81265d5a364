//! One simulated user: its session, its socket, and bytes the socket did not
//! take yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use client::{Session, v1};

use crate::foreign;
use crate::scenario::Scenario;
use crate::socket;
use crate::spec::{Deafness, Protocol, Spec};

/// Where a user stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not connected and, for now, not wanting to be.
    Away,
    /// In the dialer's hands.
    Waiting,
    /// The socket is connecting.
    Connecting,
    /// The login is out.
    Greeting,
    /// Logged in.
    Online,
}

/// What a user speaks.
#[derive(Debug)]
pub(crate) enum Side {
    /// Protocol v2.
    V2(Session),
    /// Protocol v1.
    V1(v1::Session),
    /// The bare relay: messages of one size after a pair number.
    Relay(RelayEnd),
    /// Another server's protocol.
    Foreign(foreign::End),
}

/// One end of a relayed pair.
#[derive(Debug, Default)]
pub(crate) struct RelayEnd {
    pair: u64,
    out: Vec<u8>,
    partial: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) side: Side,
    pub(crate) stage: Stage,
    pub(crate) socket: Option<OwnedFd>,
    /// Connections so far, to tell events of old ones.
    pub(crate) generation: u32,
    /// Failures in a row.
    pub(crate) attempts: u32,
    /// When the present connection was started, monotonic nanoseconds.
    pub(crate) began_ns: u64,
    /// It has been logged in before and is to be again.
    pub(crate) missed: bool,
    /// It does not read what arrives once it is logged in.
    pub(crate) deaf: bool,
    /// When it began to read after that, monotonic nanoseconds.
    pub(crate) awake_ns: u64,
    /// Its visit, while one is on.
    pub(crate) visit: Option<Visit>,
    /// An alarm for the session's next repeat is set.
    pub(crate) ticking: bool,
    /// It stands in the list of those with bytes to write.
    pub(crate) dirty: bool,
    /// Messages that were due while the session could take none, in order.
    pub(crate) overdue: VecDeque<Overdue>,
    unwritten: Vec<u8>,
}

/// A connection that comes, says something and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// When it was meant to begin, monotonic nanoseconds.
    pub(crate) intended_ns: u64,
    /// How it ends.
    pub(crate) leave: Leave,
}

/// How a visit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// When everything is confirmed, by closing.
    Close,
    /// When everything is confirmed, by a reset.
    Reset,
    /// By a reset as soon as everything is written, whatever is confirmed.
    Abrupt,
}

/// A message that was due and could not be handed to its session yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overdue {
    pub(crate) flow: u32,
    /// When it was meant to leave, monotonic nanoseconds.
    pub(crate) intended_ns: u64,
}

impl User {
    /// A user of the run that has never been connected.
    pub(crate) fn new(spec: &Spec, index: u32) -> User {
        let name = spec.name(index);
        let foreign = foreign::End::new(spec.protocol, spec.class, &name);
        let side = match (spec.cast.scenario, foreign) {
            (Scenario::Relay, _) => {
                let pair = (spec.run << 32) | u64::from((spec.base + index) / 2);
                Side::Relay(RelayEnd { pair, ..RelayEnd::default() })
            }
            (_, Some(end)) => Side::Foreign(end),
            (_, None) if spec.protocol == Protocol::V1 => {
                Side::V1(v1::Session::new(name.as_bytes(), None))
            }
            (_, None) => {
                let mut session = Session::new(name.as_bytes(), 1, b"");
                session.set_window(spec.window);
                session.set_outbox_max(spec.window.max(client::session::OUTBOX_MESSAGES_MAX));
                if let Some(credit) = first_credit(spec, index) {
                    session.set_credit(credit);
                }
                Side::V2(session)
            }
        };
        User {
            side,
            stage: Stage::Away,
            socket: None,
            generation: 0,
            attempts: 0,
            began_ns: 0,
            missed: false,
            deaf: spec.cast.scenario == Scenario::Slow
                && spec.cast.is_absent(index)
                && spec.ordeal.is_some_and(|ordeal| ordeal.deafness == Deafness::Socket),
            awake_ns: 0,
            visit: None,
            ticking: false,
            dirty: false,
            overdue: VecDeque::new(),
            unwritten: Vec::new(),
        }
    }

    /// The socket is connected: puts the login on its way.
    pub(crate) fn greet(&mut self) {
        self.unwritten = match &mut self.side {
            Side::V2(session) => session.connect(),
            Side::V1(session) => session.connect(),
            Side::Relay(end) => {
                *end = RelayEnd { pair: end.pair, ..RelayEnd::default() };
                end.pair.to_be_bytes().to_vec()
            }
            Side::Foreign(end) => end.connect(),
        };
        self.stage = Stage::Greeting;
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        match &mut self.side {
            Side::V2(session) => session.disconnected(),
            Side::V1(session) => session.disconnected(),
            Side::Relay(_) | Side::Foreign(_) => {}
        }
        self.socket = None;
        self.unwritten = Vec::new();
    }

    /// Writes as much as the socket takes; `scratch` is empty memory to use.
    pub(crate) fn flush(&mut self, scratch: &mut Vec<u8>) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        if !self.unwritten.is_empty() {
            let n = socket::write(socket, &self.unwritten)?;
            if n < self.unwritten.len() {
                self.unwritten.drain(..n);
                return Ok(());
            }
            self.unwritten = Vec::new();
        }
        scratch.clear();
        match &mut self.side {
            Side::V2(session) => session.take_output(scratch),
            Side::V1(session) => session.take_output(scratch),
            Side::Relay(end) => scratch.append(&mut end.out),
            Side::Foreign(end) => end.take_output(scratch),
        }
        if scratch.is_empty() {
            return Ok(());
        }
        let n = socket::write(socket, scratch)?;
        self.unwritten.extend_from_slice(&scratch[n..]);
        Ok(())
    }
}

/// The delivery window that a user of an ordeal begins with, where it is not
/// the usual one.
fn first_credit(spec: &Spec, index: u32) -> Option<u32> {
    let cast = &spec.cast;
    match (cast.scenario, spec.ordeal?.deafness) {
        // What is to wait for it must not be delivered before the cut.
        (Scenario::Storm, _) if !cast.is_witness(index) => Some(0),
        (Scenario::Slow, Deafness::Credit) if cast.is_absent(index) => Some(0),
        // As much as it can get: that it does not read is what stops it.
        (Scenario::Slow, Deafness::Socket) if cast.is_absent(index) => {
            Some(wire::limits::CREDIT_MAX)
        }
        _ => None,
    }
}

impl RelayEnd {
    /// Queues a message.
    pub(crate) fn send(&mut self, body: &[u8]) {
        self.out.extend_from_slice(body);
    }

    /// Tells a relay that answers that messages have arrived: as many bytes as
    /// one, and none of a message.
    pub(crate) fn acknowledge(&mut self, size: usize) {
        self.out.resize(self.out.len() + size, 0);
    }

    /// Cuts what arrived into messages of `size` bytes.
    pub(crate) fn receive(&mut self, bytes: &[u8], size: usize, mut on: impl FnMut(&[u8])) {
        let mut rest = bytes;
        if !self.partial.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(size - self.partial.len()));
            self.partial.extend_from_slice(head);
            rest = tail;
            if self.partial.len() < size {
                return;
            }
            on(&std::mem::take(&mut self.partial));
        }
        let whole = rest.chunks_exact(size);
        self.partial.extend_from_slice(whole.remainder());
        whole.for_each(on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relayed_bytes_are_cut_into_messages_wherever_they_split() {
        let bytes: Vec<u8> = (0..30).collect();
        for first in 0..=30 {
            let mut end = RelayEnd::default();
            let mut got: Vec<Vec<u8>> = Vec::new();
            for part in [&bytes[..first], &bytes[first..]] {
                end.receive(part, 10, |message| got.push(message.to_vec()));
            }
            assert_eq!(got, bytes.chunks(10).map(<[u8]>::to_vec).collect::<Vec<_>>());
        }
    }
}
