//! What each frame of protocol v2 does.

use wire::id::UserKey;
use wire::refuse::Code;
use wire::v2::{self, Request, Wrong};

use crate::Shard;
use crate::dedup::Numbering;
use crate::hop::{Post, Posted, ReplyTo};
use crate::io::{Conn, Effects, Now, Outcome};
use crate::session::{self, Kind};

/// Bad frames in a row after which a v2 connection is closed.
const BAD_FRAMES_MAX: u8 = 32;

impl Shard {
    pub(crate) fn request(
        &mut self,
        now: Now,
        conn: Conn,
        request: &Request<'_>,
        out: &mut Effects,
    ) -> Outcome {
        let Some(session) = self.sessions.get(conn) else { return Outcome::Taken };
        session.heard();
        match (session.kind, request) {
            (Kind::Fresh, Request::Hello(hello)) => self.login_v2(now, conn, hello, out),
            (Kind::Fresh | Kind::V2, Request::Ping { nonce }) => {
                let pong = v2::Reply::Pong { nonce: *nonce };
                out.send(conn, |bytes| v2::put_reply(bytes, &pong));
                Outcome::Taken
            }
            (Kind::Fresh, _) => {
                out.send(conn, |bytes| v2::put_error(bytes, Code::NotLoggedIn));
                Outcome::Taken
            }
            (Kind::V2, Request::Hello(_)) => {
                out.send(conn, |bytes| v2::put_error(bytes, Code::Malformed));
                Outcome::Taken
            }
            (Kind::V2, Request::Send(send)) => self.send_v2(now, conn, send, out),
            (Kind::V2, Request::Ack { seq }) => self.ack_v2(now, conn, *seq, out),
            (Kind::V2, Request::Credit { window }) => {
                session.window = session::window(*window);
                self.pump(now, conn.slot, out);
                Outcome::Taken
            }
            _ => Outcome::Taken,
        }
    }

    fn send_v2(&mut self, now: Now, conn: Conn, send: &v2::Send<'_>, out: &mut Effects) -> Outcome {
        let Some(to_key) = self.key_for(conn, send.to) else {
            let posted = Posted::Refused { code: Code::BadName, retry_after_ms: 0 };
            // No inbox has this name, so no number is kept for it. A name too
            // long for the answer's field cannot be decoded in the first place.
            self.tell(conn, send.to, send.seq, posted, out);
            return Outcome::Taken;
        };
        let refuse = (!v2::is_body(send.body)).then_some(Code::TooLarge);
        let body = if refuse.is_some() { &[] } else { send.body };
        if !self.has_room_to_post(to_key, body.len()) {
            return Outcome::Blocked;
        }
        let session = self.sessions.at(conn.slot);
        session.sends = session.sends.wrapping_add(1);
        let (user, device) = (session.user, usize::from(session.device));
        let expires_ms = match send.expiry_s {
            0 => 0,
            seconds => now.wall_ms + u64::from(seconds) * 1000,
        };
        let is_skip = send.flags & v2::flag::SKIP != 0;
        // The name leaves its place for the time of the call: the post borrows
        // it while the shard changes.
        let sender = &mut self.users[user];
        let from = std::mem::take(&mut sender.name);
        let post = Post {
            to: send.to,
            to_key,
            from: &from[..],
            from_key: sender.key,
            device: sender.devices[device].id,
            send_seq: send.seq,
            numbering: if is_skip { Numbering::Higher } else { Numbering::Next },
            class: send.class,
            flags: send.flags,
            expires_ms,
            refuse,
            reply: ReplyTo { shard: self.options.shard, conn },
            received_ns: now.mono_ns,
            body,
        };
        self.post(now, &post, out);
        self.users[user].name = from;
        Outcome::Taken
    }

    /// The key of a name, if it is one. To whom a connection wrote last it
    /// mostly writes again, and that name was looked at then.
    fn key_for(&mut self, conn: Conn, name: &[u8]) -> Option<UserKey> {
        match self.users.look_at(self.sessions.at(conn.slot).partner) {
            Some(partner) if partner.name[..] == *name => Some(partner.key),
            _ => v2::is_name(name).then(|| self.hasher.key(name)),
        }
    }

    /// Bytes that are no good frame. The caller skipped what could be skipped.
    pub(crate) fn bad_v2(&mut self, now: Now, conn: Conn, wrong: Wrong, out: &mut Effects) {
        self.metrics.counters.bad_packets += 1;
        let Some(session) = self.sessions.get(conn) else { return };
        if session.kind == Kind::Leaving {
            return;
        }
        let is_last = session.heard_bad() >= BAD_FRAMES_MAX;
        match wrong {
            // Nothing after a wrong length can be understood.
            Wrong::Length => self.goaway(now, conn, Code::TooLarge, 0, out),
            _ if is_last => self.goaway(now, conn, Code::Malformed, 0, out),
            Wrong::Fields(_) => {
                out.send(conn, |bytes| v2::put_error(bytes, Code::Malformed));
            }
            Wrong::UnknownType(..) => {
                out.send(conn, |bytes| v2::put_error(bytes, Code::UnknownType));
            }
        }
    }
}
