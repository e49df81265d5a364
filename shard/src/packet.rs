//! What each packet of protocol v1 does.

use wire::id::Class;
use wire::v1::{self, Packet};

use crate::Shard;
use crate::dedup::Numbering;
use crate::hop::{Hop, Post, ReplyTo};
use crate::io::{Conn, Effects, Now, Outcome};
use crate::session::Kind;

/// Bad packets in a row after which a v1 connection is closed.
const BAD_PACKETS_MAX: u8 = 32;

impl Shard {
    pub(crate) fn packet(
        &mut self,
        now: Now,
        conn: Conn,
        packet: &Packet<'_>,
        out: &mut Effects,
    ) -> Outcome {
        let Some(session) = self.sessions.get(conn) else { return Outcome::Taken };
        match session.kind {
            Kind::Leaving | Kind::V2 | Kind::Free => return Outcome::Taken,
            Kind::Fresh => session.kind = Kind::Anonymous,
            Kind::Anonymous | Kind::V1 | Kind::Replaced => {}
        }
        session.heard();
        let is_logged_in = session.kind == Kind::V1;
        match *packet {
            // What else a login carries is a token; loopback needs none.
            Packet::Login { user, token: _ } => self.login_v1(now, conn, user, out),
            Packet::LoginTooLong => self.login_v1(now, conn, b"", out),
            Packet::GetStatus { user } => self.ask_status(conn, user, out),
            Packet::FetchPrekeys { .. } if !is_logged_in => {
                out.send(conn, v1::put_prekeys_none);
                Outcome::Taken
            }
            _ if !is_logged_in => Outcome::Taken,
            Packet::Ack { id } => self.ack_v1(now, conn, id, out),
            _ => self.packet_of_user(now, conn, packet, out),
        }
    }

    fn packet_of_user(
        &mut self,
        now: Now,
        conn: Conn,
        packet: &Packet<'_>,
        out: &mut Effects,
    ) -> Outcome {
        use Numbering::{Ascending, None as Unnumbered};
        match *packet {
            Packet::Send { target, body } => {
                self.send_v1(now, conn, target, body, Unnumbered, 0, out)
            }
            Packet::SendSeq { target, seq, body } => {
                self.send_v1(now, conn, target, body, Ascending, seq, out)
            }
            Packet::Cbor { target, map } => {
                self.send_v1(now, conn, target, map, Unnumbered, 0, out)
            }
            Packet::Encrypted { target, header, ciphertext } => {
                self.send_encrypted(now, conn, target, header, ciphertext, out)
            }
            Packet::Batch { target, entries } => self.send_batch(now, conn, target, entries, out),
            _ => self.not_built_yet(conn, packet, out),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the packet, once")]
    fn send_v1(
        &mut self,
        now: Now,
        conn: Conn,
        target: &[u8],
        body: &[u8],
        numbering: Numbering,
        send_seq: u64,
        out: &mut Effects,
    ) -> Outcome {
        let to_key = self.hasher.key(target);
        if target.is_empty() {
            return Outcome::Taken;
        }
        if !self.has_room_to_post(to_key, body.len()) {
            return Outcome::Blocked;
        }
        let session = self.sessions.at(conn.slot);
        session.sends = session.sends.wrapping_add(1);
        let user = session.user;
        // The name leaves its place for the time of the call: the post borrows
        // it while the shard changes.
        let from = std::mem::take(&mut self.users[user].name);
        let post = Post {
            to: target,
            to_key,
            from: &from[..],
            from_key: self.users[user].key,
            device: 0,
            send_seq,
            numbering,
            class: Class::Guaranteed,
            flags: 0,
            expires_ms: 0,
            refuse: None,
            reply: ReplyTo { shard: self.options.shard, conn },
            received_ns: now.mono_ns,
            body,
        };
        self.post(now, &post, out);
        self.users[user].name = from;
        Outcome::Taken
    }

    fn send_encrypted(
        &mut self,
        now: Now,
        conn: Conn,
        target: &[u8],
        header: &[u8],
        ciphertext: &[u8],
        out: &mut Effects,
    ) -> Outcome {
        let user = self.sessions.at(conn.slot).user;
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        v1::put_encrypted_body(&mut body, &self.users[user].name, header, ciphertext);
        let outcome = self.send_v1(now, conn, target, &body, Numbering::None, 0, out);
        self.scratch = body;
        outcome
    }

    /// A batch may be larger than the room there is. What was posted of it is
    /// remembered, and when the packet is handed in again it goes on there.
    fn send_batch(
        &mut self,
        now: Now,
        conn: Conn,
        target: &[u8],
        entries: v1::BatchEntries<'_>,
        out: &mut Effects,
    ) -> Outcome {
        let v1 = self.sessions.at(conn.slot).v1.as_ref();
        let before = v1.map_or(0, |v1| v1.batch_done);
        for (done, body) in (before..).zip(entries.skip(usize::from(before))) {
            let outcome = self.send_v1(now, conn, target, body, Numbering::None, 0, out);
            if outcome != Outcome::Taken {
                self.sessions.at(conn.slot).v1.get_or_insert_default().batch_done = done;
                return outcome;
            }
        }
        if before > 0 {
            self.sessions.at(conn.slot).v1.get_or_insert_default().batch_done = 0;
        }
        Outcome::Taken
    }

    /// Answers in the words that existing clients know for a thing that is not
    /// there: no keys, no such group.
    fn not_built_yet(&mut self, conn: Conn, packet: &Packet<'_>, out: &mut Effects) -> Outcome {
        match packet {
            Packet::UploadPrekeys { .. } => {
                out.send(conn, |bytes| v1::put_prekeys_status(bytes, "error", "unsupported"));
            }
            Packet::FetchPrekeys { .. } => {
                out.send(conn, |bytes| v1::put_prekeys_status(bytes, "not_found", ""));
            }
            Packet::GroupCreate { .. } => {
                out.send(conn, |bytes| v1::put_error(bytes, "unsupported"));
            }
            Packet::GroupLeave { .. }
            | Packet::GroupMessage { .. }
            | Packet::GroupRoster { .. }
            | Packet::SenderKey { .. } => {
                out.send(conn, |bytes| v1::put_error(bytes, "group_not_found"));
            }
            // Typing and read receipts are never stored and may be shed.
            _ => {}
        }
        Outcome::Taken
    }

    pub(crate) fn bad_v1(&mut self, now: Now, conn: Conn, out: &mut Effects) {
        self.metrics.counters.bad_packets += 1;
        let Some(session) = self.sessions.get(conn) else { return };
        if session.heard_bad() == BAD_PACKETS_MAX {
            self.dismiss(now, conn, out);
        }
    }

    fn ask_status(&mut self, conn: Conn, user: &[u8], out: &mut Effects) -> Outcome {
        let key = self.hasher.key(user);
        let owner = key.owner(self.options.shards);
        if owner == self.options.shard {
            let (online, last_seen_s) = self.status(key);
            self.tell_status(conn, user, online, last_seen_s, out);
            return Outcome::Taken;
        }
        if !self.outbox.has_room(owner, user.len()) {
            return Outcome::Blocked;
        }
        let reply = ReplyTo { shard: self.options.shard, conn };
        self.outbox.push(owner, |parcel| Hop::Status { reply, user: parcel.put(user), key });
        Outcome::Taken
    }

    /// Online, and when last seen (unix seconds; 0 while online or for never).
    pub(crate) fn status(&self, key: wire::id::UserKey) -> (bool, u64) {
        let Some(user) = self.users.find(key) else { return (false, 0) };
        let user = &self.users[user];
        if user.is_online() { (true, 0) } else { (false, u64::from(user.last_seen_s)) }
    }

    pub(crate) fn tell_status(
        &mut self,
        conn: Conn,
        user: &[u8],
        online: bool,
        last_seen_s: u64,
        out: &mut Effects,
    ) {
        if self.sessions.get(conn).is_some_and(|session| session.kind != Kind::V2) {
            out.send(conn, |bytes| v1::put_status(bytes, user, online, last_seen_s));
        }
    }
}
