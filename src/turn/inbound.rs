//! From received bytes to inputs of the shard.

use net::{After, ConnId};
use shard::{Conn, Input, Outcome};
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

    fn speak(&mut self, conn: ConnId, speaks: Speaks) {
        self.inbound.slot(conn).speaks = speaks;
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
        let mut used = 0;
        let stop = loop {
            if let Some(stop) = self.decode_one(conn, &mut used) {
                break stop;
            }
        };
        let is_partial = matches!(stop, Stop::Dry) && self.hands.received(conn).len() > used;
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

    /// Decodes and handles what is at the front; `None` to go on.
    fn decode_one(&mut self, conn: ConnId, used: &mut usize) -> Option<Stop> {
        let bytes = &self.hands.received(conn)[*used..];
        if bytes.is_empty() {
            return Some(Stop::Dry);
        }
        match self.inbound.slot(conn).speaks {
            Speaks::V1 => self.decode_v1(conn, used),
            Speaks::V2 => self.decode_v2(conn, used),
            Speaks::Unknown => match sniff(bytes) {
                None => Some(Stop::Dry),
                Some(Protocol::V1) => {
                    self.speak(conn, Speaks::V1);
                    None
                }
                Some(Protocol::V2) => {
                    *used += V2_PREFACE.len();
                    self.speak(conn, Speaks::V2);
                    None
                }
                Some(Protocol::Http) => Some(Stop::Foreign(HTTP_REFUSAL)),
                Some(Protocol::Tls) => Some(Stop::Foreign(b"")),
            },
        }
    }

    fn decode_v1(&mut self, conn: ConnId, used: &mut usize) -> Option<Stop> {
        let bytes = &self.hands.received(conn)[*used..];
        match v1::decode(bytes) {
            v1::Decoded::Incomplete => Some(Stop::Dry),
            v1::Decoded::Packet(packet, len) => {
                let input = Input::V1 { conn: name(conn), packet };
                let outcome = self.shard.handle(self.now, input, &mut self.out);
                taken(outcome, used, len)
            }
            v1::Decoded::Bad => {
                // As the original: what was read is dropped, the connection
                // stays.
                *used += bytes.len();
                self.tell(Input::V1Bad { conn: name(conn) });
                Some(Stop::Dry)
            }
        }
    }

    fn decode_v2(&mut self, conn: ConnId, used: &mut usize) -> Option<Stop> {
        let bytes = &self.hands.received(conn)[*used..];
        match v2::decode_request(bytes) {
            Ok(None) => Some(Stop::Dry),
            Ok(Some((request, len))) => {
                let input = Input::V2 { conn: name(conn), request };
                let outcome = self.shard.handle(self.now, input, &mut self.out);
                taken(outcome, used, len)
            }
            Err(wrong) => {
                *used += match wrong {
                    v2::Wrong::Length => bytes.len(),
                    v2::Wrong::Fields(len) | v2::Wrong::UnknownType(_, len) => len,
                };
                self.tell(Input::V2Bad { conn: name(conn), wrong });
                None
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

fn taken(outcome: Outcome, used: &mut usize, len: usize) -> Option<Stop> {
    match outcome {
        Outcome::Taken => {
            *used += len;
            None
        }
        Outcome::Blocked => Some(Stop::Blocked),
        Outcome::Move(to) => Some(Stop::Move(to)),
    }
}
