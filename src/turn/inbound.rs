//! From received bytes to inputs of the shard.

use net::{After, ConnId};
use shard::{Conn, Effects, Input, Now, Outcome, Shard};
use wire::id::ShardId;
use wire::sniff::{Protocol, V2_PREFACE, sniff};
use wire::{v1, v2};

use super::Core;
use super::partial::Rest;

/// What a browser or a health check hears on the messaging port.
const HTTP_REFUSAL: &[u8] = b"HTTP/1.1 501 Not Implemented\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 60\r\n\r\n\
    This port speaks the messaging protocol; see docs/WIRE.md.\r\n";

/// So many blocked connections are remembered without a look at who has ended.
const BLOCKED_MIN: usize = 64;

/// What a connection has turned out to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Too few bytes to tell.
    #[default]
    Unknown,
    V1,
    V2,
}

/// What is known of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    pub(super) speaks: Speaks,
    pub(super) rest: Rest,
}

/// What is known of incoming bytes beyond the hands' buffers.
#[derive(Default)]
pub(super) struct Inbound {
    /// By connection slot.
    slots: Vec<Slot>,
    /// Paused because the shard had no room for what they sent; some may have
    /// ended since.
    blocked: Vec<ConnId>,
    /// How many there may be before those that have ended are looked for.
    prune_at: usize,
    /// The shard's room when they were last tried.
    tried_epoch: u64,
}

/// Why decoding a connection's bytes stopped.
enum Stop {
    /// Nothing whole is left.
    Dry,
    /// The shard has no room.
    Blocked,
    /// The login belongs to another core.
    Move(ShardId),
    /// A protocol that is not served here; say so and close.
    Foreign(&'static [u8]),
}

/// The shard's name of a connection.
pub(super) fn name(conn: ConnId) -> Conn {
    Conn { slot: conn.slot, generation: conn.generation }
}

/// The hands' name of a connection.
pub(super) fn id(conn: Conn) -> ConnId {
    ConnId { slot: conn.slot, generation: conn.generation }
}

impl Core {
    pub(super) fn opened(&mut self, conn: ConnId) {
        self.begin(conn, Speaks::Unknown);
        self.tell(Input::Opened { conn: name(conn) });
        if self.draining_since.is_some() {
            // Accepted just before the listeners were closed; those that were
            // there have been asked to leave already.
            self.hands.close(conn, After::Now);
        }
    }

    /// A connection arrived from another core, with its login still unread. A
    /// shard that drains refuses that and closes.
    pub(super) fn arrived(&mut self, moved: net::Moved, speaks: Speaks) {
        let conn = self.hands.attach(moved);
        self.begin(conn, speaks);
        self.tell(Input::Opened { conn: name(conn) });
    }

    pub(super) fn closed(&mut self, conn: ConnId) {
        // The other core may have had no room for it.
        self.mesh.forget_departure(conn);
        self.tell(Input::Closed { conn: name(conn) });
    }

    /// Forgets what another connection has left in the slot.
    fn begin(&mut self, conn: ConnId, speaks: Speaks) {
        let slot = conn.slot as usize;
        if self.inbound.slots.len() <= slot {
            self.inbound.slots.resize(slot + 1, Slot::default());
        }
        *self.inbound.slot(conn) = Slot { speaks, rest: Rest::default() };
    }

    pub(super) fn received(&mut self, conn: ConnId) {
        let Slot { speaks, .. } = &mut self.inbound.slots[conn.slot as usize];
        let bytes = self.hands.received(conn);
        let mut intake = Intake {
            conn: name(conn),
            now: self.now,
            shard: &mut self.shard,
            out: &mut self.out,
            bytes,
            used: 0,
        };
        let stop = intake.take_all(speaks);
        let used = intake.used;
        let is_partial = matches!(stop, Stop::Dry) && bytes.len() > used;
        self.left(conn, is_partial, used > 0);
        self.hands.consume(conn, used);
        match stop {
            Stop::Dry => self.pace(conn, used),
            Stop::Blocked => {
                self.hands.pause(conn);
                self.block(conn);
            }
            Stop::Move(to) => self.depart(conn, to),
            Stop::Foreign(answer) => {
                self.hands.send(conn, answer);
                self.hands.close(conn, After::Flush);
            }
        }
    }

    /// Remembers who found no room. While the log stands still nobody is tried
    /// again, and connections that come, block and go must not add up.
    fn block(&mut self, conn: ConnId) {
        let Inbound { blocked, prune_at, .. } = &mut self.inbound;
        if blocked.len() >= *prune_at {
            // What a blocked connection sent is still unread, what an ended one
            // sent is gone. Twice as many as live keeps this cheap.
            blocked.retain(|conn| !self.hands.received(*conn).is_empty());
            *prune_at = (2 * blocked.len()).max(BLOCKED_MIN);
        }
        blocked.push(conn);
    }

    /// Lets everybody try again who found no room, if there may be some now.
    pub(super) fn retry_blocked(&mut self) {
        let epoch = self.shard.room_epoch();
        if self.inbound.blocked.is_empty() || self.inbound.tried_epoch == epoch {
            return;
        }
        self.inbound.tried_epoch = epoch;
        for conn in self.inbound.blocked.drain(..) {
            self.hands.resume(conn);
        }
    }

    /// Whether somebody waits for the shard to have room.
    pub(super) fn has_blocked(&self) -> bool {
        !self.inbound.blocked.is_empty()
    }

    /// Whether somebody who was blocked can be tried again now.
    pub(super) fn has_retries(&self) -> bool {
        !self.inbound.blocked.is_empty() && self.inbound.tried_epoch != self.shard.room_epoch()
    }

    /// Sends a connection to the core that owns its user.
    fn depart(&mut self, conn: ConnId, to: ShardId) {
        let speaks = self.inbound.slot(conn).speaks;
        // What the connection was told before its login goes first.
        self.apply();
        let peer = self.shared.peers[usize::from(to)].get().copied();
        if peer.is_some_and(|peer| self.hands.detach_to(conn, &peer)) {
            self.tell(Input::Closed { conn: name(conn) });
            self.mesh.expect_departure(conn, to, speaks);
        } else {
            self.hands.close(conn, After::Now);
        }
    }
}

impl Inbound {
    /// What is known of a connection that was announced.
    pub(super) fn slot(&mut self, conn: ConnId) -> &mut Slot {
        &mut self.slots[conn.slot as usize]
    }
}

/// The bytes that one connection has sent, on their way into the shard.
struct Intake<'a> {
    conn: Conn,
    now: Now,
    shard: &'a mut Shard,
    out: &'a mut Effects,
    bytes: &'a [u8],
    /// So many of them are done with.
    used: usize,
}

impl Intake<'_> {
    /// Decodes and handles one packet or frame after the other.
    fn take_all(&mut self, speaks: &mut Speaks) -> Stop {
        loop {
            let rest = &self.bytes[self.used..];
            if rest.is_empty() {
                return Stop::Dry;
            }
            let stop = match speaks {
                Speaks::V1 => self.take_v1(rest),
                Speaks::V2 => self.take_v2(rest),
                Speaks::Unknown => self.listen(rest, speaks),
            };
            if let Some(stop) = stop {
                return stop;
            }
        }
    }

    /// Learns from the first bytes what is spoken; `None` to go on.
    fn listen(&mut self, bytes: &[u8], speaks: &mut Speaks) -> Option<Stop> {
        match sniff(bytes) {
            None => return Some(Stop::Dry),
            Some(Protocol::V1) => *speaks = Speaks::V1,
            Some(Protocol::V2) => {
                self.used += V2_PREFACE.len();
                *speaks = Speaks::V2;
            }
            Some(Protocol::Http) => return Some(Stop::Foreign(HTTP_REFUSAL)),
            Some(Protocol::Tls) => return Some(Stop::Foreign(b"")),
        }
        None
    }

    fn take_v1(&mut self, bytes: &[u8]) -> Option<Stop> {
        match v1::decode(bytes) {
            v1::Decoded::Incomplete => Some(Stop::Dry),
            v1::Decoded::Packet(packet, len) => {
                self.hand_in(Input::V1 { conn: self.conn, packet }, len)
            }
            v1::Decoded::Bad => {
                // As the original: what was read is dropped, the connection
                // stays.
                self.used += bytes.len();
                self.tell(Input::V1Bad { conn: self.conn });
                Some(Stop::Dry)
            }
        }
    }

    fn take_v2(&mut self, bytes: &[u8]) -> Option<Stop> {
        match v2::decode_request(bytes) {
            Ok(None) => Some(Stop::Dry),
            Ok(Some((request, len))) => self.hand_in(Input::V2 { conn: self.conn, request }, len),
            Err(wrong) => {
                self.used += match wrong {
                    v2::Wrong::Length => bytes.len(),
                    v2::Wrong::Fields(len) | v2::Wrong::UnknownType(_, len) => len,
                };
                self.tell(Input::V2Bad { conn: self.conn, wrong });
                None
            }
        }
    }

    /// Something whole of `len` bytes, which the shard may not take.
    fn hand_in(&mut self, input: Input<'_>, len: usize) -> Option<Stop> {
        match self.shard.handle(self.now, input, self.out) {
            Outcome::Taken => {
                self.used += len;
                None
            }
            Outcome::Blocked => Some(Stop::Blocked),
            Outcome::Move(to) => Some(Stop::Move(to)),
        }
    }

    /// Something that is always taken.
    fn tell(&mut self, input: Input<'_>) {
        let outcome = self.shard.handle(self.now, input, self.out);
        debug_assert_eq!(outcome, Outcome::Taken);
    }
}
