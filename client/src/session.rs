//! One device's session in protocol v2, without I/O and without a clock.
//!
//! It survives connections: [`Session::connect`] starts each one with the
//! cursor the device has reached, and repeats what the server has not yet
//! confirmed. Every message is kept until its SENT; every number is used for
//! one body only, so that the server's exact deduplication does its part.

use std::collections::BTreeMap;

use wire::id::{Class, MessageId};
use wire::limits::{BODY_BYTES_MAX, CREDIT_MAX};
use wire::refuse::Code;
use wire::v2::{self, Deliver, Hello, Reply, Request, Welcome, Wrong};

use crate::outbox::{Gone, Outbox};

/// Messages all outboxes of a session hold together unless
/// [`Session::set_outbox_max`] says otherwise.
pub const OUTBOX_MESSAGES_MAX: usize = 4096;
/// Messages to one recipient on the wire without their SENT, unless
/// [`Session::set_window`] says otherwise.
pub const WINDOW: usize = 256;
/// Deliveries ahead of the acknowledgements, unless [`Session::set_credit`]
/// says otherwise.
pub const CREDIT: u32 = 256;

/// The id in a SENT for a message that had been stored before.
const UNKNOWN_ID: MessageId = MessageId([0; 16]);

/// What the server told, or what follows from it. Borrows from the bytes
/// given to [`Session::receive`] or from the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant names its layout")]
pub enum Event<'a> {
    /// Logged in; everything unconfirmed has been put on the wire again.
    Welcome(Welcome),
    /// The server confirmed this message. `id` is known for the one that the
    /// SENT named, not for those below it which it confirmed as well, nor for
    /// one that had been stored before.
    Sent { to: &'a [u8], seq: u64, id: Option<MessageId>, class: Class, body: &'a [u8] },
    /// The server missed a number; the session repeats from there.
    Gap { to: &'a [u8], expected: u64 },
    /// The server confirmed these numbers once and has lost them, and their
    /// bodies are gone here too. Allowed for best effort after a crash only.
    Lost { to: &'a [u8], first: u64, last: u64 },
    /// The server confirmed these numbers once and does not remember it: a
    /// device that has sent nothing new to a recipient for seven days, or what
    /// the server is set to, begins anew there. The messages were stored, and
    /// nothing is lost. Sooner than that it would mean that the server came back
    /// with older data.
    Forgotten { to: &'a [u8], first: u64, last: u64 },
    /// Not taken now; the session repeats it after that time.
    Held { to: &'a [u8], seq: u64, code: u16, retry_after_ms: u32 },
    /// Refused for good, never stored.
    Refused { to: &'a [u8], seq: u64, code: u16, body: &'a [u8] },
    /// A message. `again` is set when it was handed out before, on an earlier
    /// connection, and not acknowledged since; or by a faulty server.
    Deliver { deliver: Deliver<'a>, again: bool },
    /// A device of the recipient has the message.
    Delivered { to: &'a [u8], seq: u64, id: MessageId },
    /// The answer to [`Session::ping`].
    Pong { nonce: u64 },
    /// The login was refused because the server's data is older than what this
    /// device has: a backup was put back, or damaged data repaired. The next
    /// connection begins at the beginning and gets whatever waits. What comes
    /// again has the id that it had. Numbers of before mean nothing any more:
    /// drop what is not acknowledged yet.
    StartsOver { cursor: u64 },
    /// The connection is about to end, or the login was refused.
    Goaway { code: u16, reconnect_after_ms: u32, text: &'a [u8] },
    /// Something was wrong with a frame; the connection goes on.
    Error { code: u16, text: &'a [u8] },
}

/// Why a message was not taken into the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The outbox is full: wait for SENTs.
    Full,
    /// Longer than [`BODY_BYTES_MAX`].
    TooLarge,
    /// Not a name, see [`v2::is_name`].
    BadName,
}

/// The server sent bytes that no server of this protocol sends; the connection
/// cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offline,
    /// HELLO is out.
    Greeting,
    /// WELCOME is in.
    Online,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    user: Box<[u8]>,
    token: Box<[u8]>,
    device: u64,
    credit: u32,
    phase: Phase,
    /// Highest inbox seq this device acknowledged.
    cursor: u64,
    /// Highest inbox seq handed out, on any connection.
    handed: u64,
    outboxes: BTreeMap<Box<[u8]>, Outbox>,
    /// Messages in all outboxes together.
    queued: usize,
    outbox_max: usize,
    window: usize,
    auto_ack: bool,
    /// Bytes for the wire.
    out: Vec<u8>,
    /// The beginning of a frame whose end has not come.
    partial: Vec<u8>,
}

impl Session {
    /// A session that has never been connected; `device` is unique within its
    /// user, 0 belongs to protocol v1.
    pub fn new(user: &[u8], device: u64, token: &[u8]) -> Session {
        Session {
            user: user.into(),
            token: token.into(),
            device,
            credit: CREDIT,
            phase: Phase::Offline,
            cursor: 0,
            handed: 0,
            outboxes: BTreeMap::new(),
            queued: 0,
            outbox_max: OUTBOX_MESSAGES_MAX,
            window: WINDOW,
            auto_ack: false,
            out: Vec::new(),
            partial: Vec::new(),
        }
    }

    /// The delivery window asked for; counts from the next connection, or from
    /// the next [`Session::credit`].
    pub fn set_credit(&mut self, credit: u32) {
        self.credit = credit.min(CREDIT_MAX);
    }

    /// Messages to one recipient that may be on the wire without their SENT.
    pub fn set_window(&mut self, window: usize) {
        self.window = window.max(1);
    }

    /// Messages that may wait for their SENT, all recipients together.
    pub fn set_outbox_max(&mut self, messages: usize) {
        self.outbox_max = messages;
    }

    /// With auto-acknowledge on, [`Session::receive`] acknowledges what it
    /// handed out when it returns.
    pub fn set_auto_ack(&mut self, on: bool) {
        self.auto_ack = on;
    }

    /// The user's name.
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// Highest inbox seq this device acknowledged: what the next HELLO says.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Sets the cursor, for a device that kept it elsewhere.
    pub fn set_cursor(&mut self, seq: u64) {
        self.cursor = seq;
        self.handed = seq;
    }

    /// Whether WELCOME came on the present connection.
    pub fn is_online(&self) -> bool {
        self.phase == Phase::Online
    }

    /// Messages that wait for their SENT.
    pub fn unsent(&self) -> usize {
        self.queued
    }

    /// Starts a new connection (the first or a further one) and gives the first
    /// bytes for its wire: preface and HELLO.
    pub fn connect(&mut self) -> Vec<u8> {
        self.disconnected();
        self.phase = Phase::Greeting;
        let mut out = v2::PREFACE.to_vec();
        let hello = Hello {
            version_min: v2::VERSION,
            version_max: v2::VERSION,
            capabilities: v2::CAPABILITIES,
            device: self.device,
            last_seq: self.cursor,
            credit: self.credit,
            user: &self.user,
            token: &self.token,
        };
        v2::put_request(&mut out, &Request::Hello(hello));
        out
    }

    /// The connection ended. Sends go on into the outbox.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Offline;
        self.out = Vec::new();
        self.partial = Vec::new();
        for outbox in self.outboxes.values_mut() {
            outbox.reconnect();
        }
    }

    /// Queues a message and, when online and inside the window, puts it on the
    /// wire. Gives the number it got: 1, 2, 3 … per recipient.
    pub fn send(&mut self, to: &[u8], body: &[u8], class: Class) -> Result<u64, SendError> {
        self.send_with(to, body, class, 0, 0)
    }

    /// As [`Session::send`], with [`v2::flag`] bits and an expiry in seconds
    /// (0 for the server's retention).
    pub fn send_with(
        &mut self,
        to: &[u8],
        body: &[u8],
        class: Class,
        flags: u8,
        expiry_s: u32,
    ) -> Result<u64, SendError> {
        if !v2::is_name(to) {
            return Err(SendError::BadName);
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        if self.queued >= self.outbox_max {
            return Err(SendError::Full);
        }
        if !self.outboxes.contains_key(to) {
            self.outboxes.insert(to.into(), Outbox::default());
        }
        let outbox = self.outboxes.get_mut(to).expect("it was put there");
        let seq = outbox.push(class, flags, expiry_s, body);
        self.queued += 1;
        if self.phase == Phase::Online {
            put_sends(&mut self.out, to, outbox, self.window);
        }
        Ok(seq)
    }

    /// Acknowledges everything up to and including `seq`; cheap to call for
    /// the last of many only.
    pub fn ack(&mut self, seq: u64) {
        // Beyond what was handed out is only what came before the device began
        // again, see `Event::StartsOver`.
        if seq <= self.cursor || seq > self.handed {
            return;
        }
        self.cursor = seq;
        if self.phase == Phase::Online {
            v2::put_request(&mut self.out, &Request::Ack { seq });
        }
    }

    /// Changes the delivery window now and for later connections.
    pub fn credit(&mut self, window: u32) {
        self.set_credit(window);
        if self.phase == Phase::Online {
            v2::put_request(&mut self.out, &Request::Credit { window: self.credit });
        }
    }

    /// Asks for a PONG.
    pub fn ping(&mut self, nonce: u64) {
        v2::put_request(&mut self.out, &Request::Ping { nonce });
    }

    /// When [`Session::tick`] has something to do, in the caller's
    /// milliseconds.
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.phase != Phase::Online {
            return None;
        }
        self.outboxes.values().filter_map(Outbox::deadline_ms).min()
    }

    /// Repeats what a refusal or a gap has delayed until now.
    pub fn tick(&mut self, now_ms: u64) {
        if self.phase != Phase::Online {
            return;
        }
        for (to, outbox) in &mut self.outboxes {
            if outbox.deadline_ms().is_some_and(|deadline| now_ms >= deadline) {
                outbox.tick(now_ms);
                put_sends(&mut self.out, to, outbox, self.window);
            }
        }
    }

    /// Whether there are bytes for the wire.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Appends the bytes for the wire to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.out);
        if self.out.capacity() > 4096 {
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
    }

    /// Takes bytes from the wire, split anywhere, and tells what they say.
    /// `now_ms` is any clock that never goes back.
    ///
    /// # Errors
    /// When the bytes are not those of a server; the connection must be closed.
    pub fn receive(
        &mut self,
        now_ms: u64,
        bytes: &[u8],
        mut on: impl FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let handed_before = self.handed;
        if self.partial.is_empty() {
            let used = self.frames(now_ms, bytes, &mut on)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            let used = self.frames(now_ms, &joined, &mut on)?;
            if used < joined.len() {
                joined.drain(..used);
                self.partial = joined;
            }
        }
        if self.auto_ack && self.handed > handed_before {
            self.ack(self.handed);
        }
        Ok(())
    }

    fn frames(
        &mut self,
        now_ms: u64,
        bytes: &[u8],
        on: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, Broken> {
        let mut used = 0;
        loop {
            match v2::decode_reply(&bytes[used..]) {
                Ok(Some((reply, len))) => {
                    self.reply(now_ms, reply, on);
                    used += len;
                }
                Ok(None) => return Ok(used),
                // A newer server may say things that this version does not know.
                Err(Wrong::UnknownType(_, len)) => used += len,
                Err(Wrong::Length | Wrong::Fields(_)) => return Err(Broken),
            }
        }
    }

    fn reply(&mut self, now_ms: u64, reply: Reply<'_>, on: &mut impl FnMut(Event<'_>)) {
        match reply {
            Reply::Welcome(welcome) => {
                self.phase = Phase::Online;
                for (to, outbox) in &mut self.outboxes {
                    put_sends(&mut self.out, to, outbox, self.window);
                }
                on(Event::Welcome(welcome));
            }
            Reply::Sent { seq, id, class, to } => self.sent(now_ms, (seq, id, class), to, on),
            Reply::Gap { expected, to } => self.gap(now_ms, expected, to, on),
            Reply::Refused { seq, code, retry_after_ms, to } => {
                // A code of a later version tells by its time whether to repeat.
                let permanent =
                    Code::from_u16(code).map_or(retry_after_ms == 0, Code::is_permanent);
                if permanent {
                    self.refused(seq, code, to, on);
                } else {
                    if let Some(outbox) = self.outboxes.get_mut(to) {
                        outbox.hold(seq, retry_after_ms, now_ms);
                    }
                    on(Event::Held { to, seq, code, retry_after_ms });
                }
            }
            Reply::Deliver(deliver) => {
                let again = deliver.inbox_seq <= self.handed;
                self.handed = self.handed.max(deliver.inbox_seq);
                on(Event::Deliver { deliver, again });
            }
            Reply::Pong { nonce } => on(Event::Pong { nonce }),
            Reply::Goaway { code, reconnect_after_ms, text } => {
                on(Event::Goaway { code, reconnect_after_ms, text });
                if Code::from_u16(code) == Some(Code::BadCursor) && self.phase == Phase::Greeting {
                    on(Event::StartsOver { cursor: self.cursor });
                    self.set_cursor(0);
                }
            }
            Reply::Error { code, text } => on(Event::Error { code, text }),
            Reply::Delivered { seq, id, to } => on(Event::Delivered { to, seq, id }),
        }
    }

    fn sent(
        &mut self,
        now_ms: u64,
        (seq, id, class): (u64, MessageId, Class),
        to: &[u8],
        on: &mut impl FnMut(Event<'_>),
    ) {
        let Some(outbox) = self.outboxes.get_mut(to) else { return };
        let queued = &mut self.queued;
        outbox.sent(seq, now_ms, |pending| {
            *queued -= 1;
            let id = (pending.seq == seq && id != UNKNOWN_ID).then_some(id);
            on(Event::Sent { to, seq: pending.seq, id, class, body: &pending.body });
        });
        put_sends(&mut self.out, to, outbox, self.window);
    }

    fn gap(&mut self, now_ms: u64, expected: u64, to: &[u8], on: &mut impl FnMut(Event<'_>)) {
        let Some(outbox) = self.outboxes.get_mut(to) else { return };
        let gone = outbox.gap(expected, now_ms);
        on(Event::Gap { to, expected });
        match gone {
            None => {}
            Some(Gone::Lost(it)) => on(Event::Lost { to, first: *it.start(), last: *it.end() }),
            Some(Gone::Forgotten(it)) => {
                on(Event::Forgotten { to, first: *it.start(), last: *it.end() });
            }
        }
        put_sends(&mut self.out, to, outbox, self.window);
    }

    fn refused(&mut self, seq: u64, code: u16, to: &[u8], on: &mut impl FnMut(Event<'_>)) {
        let Some(outbox) = self.outboxes.get_mut(to) else { return };
        if let Some(pending) = outbox.refused(seq) {
            self.queued -= 1;
            on(Event::Refused { to, seq, code, body: &pending.body });
        }
        put_sends(&mut self.out, to, outbox, self.window);
    }
}

fn put_sends(out: &mut Vec<u8>, to: &[u8], outbox: &mut Outbox, window: usize) {
    while let Some(pending) = outbox.transmit(window) {
        let send = v2::Send {
            seq: pending.seq,
            class: pending.class,
            flags: pending.flags,
            expiry_s: pending.expiry_s,
            to,
            body: &pending.body,
        };
        v2::put_request(out, &Request::Send(send));
    }
}
