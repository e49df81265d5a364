//! A message's way to its inbox: to this shard or another, judged there, and
//! the answer's way back.

use wal::record::{Message, Record};
use wire::id::{Class, MessageId, UserKey};
use wire::limits::NAME_BYTES_MAX;
use wire::refuse::Code;
use wire::{v1, v2};

use crate::commit::Waiting;
use crate::dedup::{Numbering, Pair, PairKey, RECORD_NUMBERED_V1, Verdict, hours};
use crate::hop::{Hop, Post, Posted, ReplyTo, Span};
use crate::inbox::Inbox;
use crate::io::{Conn, Effects, Now, Outcome};
use crate::metrics::Stage;
use crate::session::{Kind, NOBODY, RETRY_MS};
use crate::user::UserIndex;
use crate::{Options, Shard};

/// Log bytes of a message's record beyond its names and body.
const RECORD_OVERHEAD: usize = 256;
/// An inbox may have as many holes as messages, and these at least: what expires
/// behind a message that waits takes up memory until that one is gone.
const HOLES_ALLOWED: usize = 1 << 16;

impl Shard {
    /// Whether a post to this user with a body of this length finds room now.
    pub(crate) fn has_room_to_post(&self, to: UserKey, body_bytes: usize) -> bool {
        let owner = to.owner(self.options.shards);
        let bytes = body_bytes + 2 * NAME_BYTES_MAX;
        if owner == self.options.shard {
            self.has_room_to_log(bytes)
        } else {
            self.outbox.has_room(owner, bytes)
        }
    }

    /// Whether the log has room for a post. What is refused for want of space, or
    /// because the log failed, needs none: it must not hold up others.
    fn has_room_to_log(&self, bytes: usize) -> bool {
        let is_refused = self.storage_full || self.log.is_poisoned();
        is_refused || self.log.room(bytes + RECORD_OVERHEAD)
    }

    /// Sends a message towards its inbox; room was checked before.
    pub(crate) fn post(&mut self, now: Now, post: &Post<&[u8]>, out: &mut Effects) {
        self.metrics.counters.sends += 1;
        let owner = post.to_key.owner(self.options.shards);
        if owner == self.options.shard {
            let partner = &mut self.sessions.at(post.reply.conn.slot).partner;
            let user = self.users.find_at(*partner, post.to_key);
            *partner = user.unwrap_or(NOBODY);
            return self.accept(now, user, post, out);
        }
        self.metrics.counters.hops += 1;
        self.outbox.push(owner, |parcel| {
            let (to, from) = (parcel.put(post.to), parcel.put(post.from));
            let body = parcel.put(post.body);
            Hop::Post(with_spans(post, to, from, body))
        });
    }

    /// Takes a message that came from another shard.
    pub(crate) fn post_arrived(
        &mut self,
        now: Now,
        post: &Post<&[u8]>,
        out: &mut Effects,
    ) -> Outcome {
        let bytes = post.to.len() + post.from.len() + post.body.len();
        if !self.has_room_to_log(bytes) {
            return Outcome::Blocked;
        }
        let user = self.users.find(post.to_key);
        self.accept(now, user, post, out);
        Outcome::Taken
    }

    /// Takes a message into an inbox of this shard, or says why not; room was
    /// checked before. `user` is the recipient, if known.
    fn accept(&mut self, now: Now, user: Option<UserIndex>, post: &Post<&[u8]>, out: &mut Effects) {
        if self.log.is_poisoned() {
            return self.refuse(now, post, Code::StorageFailed, out);
        }
        // Nobody is put into the table before there is something to keep.
        let key = PairKey::new(post.from_key, post.device);
        let inbox = user.and_then(|user| self.users[user].inbox.as_deref());
        let pair = inbox.map_or(Pair::new(key), |inbox| inbox.pair(key));
        match (pair.judge(post.numbering, post.send_seq), user) {
            (Verdict::Gap { expected }, _) => {
                self.metrics.counters.gaps += 1;
                let gap = Posted::Gap { expected };
                self.reply(post.reply, post.to, post.send_seq, gap, out);
            }
            (Verdict::Late, _) => {
                self.metrics.counters.late += 1;
                self.reply(post.reply, post.to, post.send_seq, Posted::Late, out);
            }
            (Verdict::Known, Some(user)) => self.accept_known(now, user, post, out),
            _ if self.waits_for_lower(now, post, key, out) => {}
            _ if self.is_overfull(user, &pair) => self.refuse(now, post, Code::Busy, out),
            // Nor is anybody put into it for what is refused.
            _ if self.storage_full && user.is_none() => {
                self.refuse(now, post, Code::StorageFull, out);
            }
            _ => {
                let user = user.or_else(|| self.users.find_or_add(post.to_key, post.to));
                let user = user.expect("an overfull table was refused");
                self.accept_new(now, user, post, key, out);
            }
        }
    }

    /// Whether a lower number of v1 was refused a moment ago and is to come
    /// again first.
    fn waits_for_lower(
        &mut self,
        now: Now,
        post: &Post<&[u8]>,
        key: PairKey,
        out: &mut Effects,
    ) -> bool {
        if post.numbering != Numbering::Ascending {
            return false;
        }
        let wait = self.held.wait_ms(now, post.to_key, key, post.send_seq);
        let Some(retry_after_ms) = wait else { return false };
        self.metrics.counters.refused += 1;
        let posted = Posted::Refused { code: Code::Busy, retry_after_ms };
        self.reply(post.reply, post.to, post.send_seq, posted, out);
        true
    }

    /// Whether the shard's own tables have no place for what a new message
    /// would add to them.
    fn is_overfull(&self, user: Option<UserIndex>, pair: &Pair) -> bool {
        let Options { users_max, pairs_max, waiting_messages_max, .. } = self.options;
        let counters = &self.metrics.counters;
        // The last quarter is for those who log in: whoever writes to random
        // names must not lock them out.
        let has_no_place = user.is_none() && self.users.len() >= users_max - users_max / 4;
        has_no_place
            || pair.is_new() && counters.pairs >= pairs_max as u64
            || counters.waiting_messages >= waiting_messages_max as u64
    }

    /// It was taken before. That one may still be on its way to the disk; then
    /// this answer waits, too.
    fn accept_known(&mut self, now: Now, user: UserIndex, post: &Post<&[u8]>, out: &mut Effects) {
        self.metrics.counters.duplicates += 1;
        let posted = match (post.reply_kind(), post.refuse) {
            (ReplyKind::Quiet, _) => Posted::Quiet,
            // The refusal may never have arrived, and SENT would be a lie.
            (_, Some(code)) => Posted::Refused { code, retry_after_ms: 0 },
            (ReplyKind::Told, None) => Posted::Sent { id: MessageId([0; 16]), class: post.class },
        };
        self.when_durable(now, user, post, posted, 0, out);
    }

    fn accept_new(
        &mut self,
        now: Now,
        user: UserIndex,
        post: &Post<&[u8]>,
        pair: PairKey,
        out: &mut Effects,
    ) {
        if let Some(code) = post.refuse {
            // On a full disk nobody has asked for room.
            if self.storage_full && !self.log.room(2 * NAME_BYTES_MAX + RECORD_OVERHEAD) {
                return self.refuse(now, post, Code::StorageFull, out);
            }
            return self.consume(now, user, post, pair, code, out);
        }
        let inbox = self.users[user].inbox_mut();
        let messages_max = self.options.inbox_messages_max;
        let is_full = inbox.waiting() >= messages_max
            || inbox.holes() >= messages_max.max(HOLES_ALLOWED)
            || inbox.bytes() + post.body.len() as u64 > self.options.inbox_bytes_max;
        if is_full {
            self.refuse(now, post, Code::InboxFull, out);
        } else if self.storage_full {
            self.refuse(now, post, Code::StorageFull, out);
        } else {
            self.store(now, user, post, pair, out);
        }
    }

    /// A permanent refusal takes up the number, durably.
    fn consume(
        &mut self,
        now: Now,
        user: UserIndex,
        post: &Post<&[u8]>,
        pair: PairKey,
        code: Code,
        out: &mut Effects,
    ) {
        self.metrics.counters.refused += 1;
        self.append(
            now,
            &Record::Consumed {
                key: post.to_key,
                name: post.to,
                from_key: post.from_key,
                device: post.device,
                send_seq: post.send_seq,
            },
        );
        let inbox = self.users[user].inbox_mut();
        self.metrics.counters.pairs += u64::from(note_number(now, inbox, post, pair));
        let posted = Posted::Refused { code, retry_after_ms: 0 };
        self.when_durable(now, user, post, posted, 0, out);
    }

    fn store(
        &mut self,
        now: Now,
        user: UserIndex,
        post: &Post<&[u8]>,
        pair: PairKey,
        out: &mut Effects,
    ) {
        let id = self.hlc.next_id(now.wall_ms);
        let inbox_seq = self.users[user].inbox_mut().next_seq(self.leap);
        let expires_ms = self.expires_ms(now, post);
        // Put together before the append: copying it waits until it is in memory, behind whatever
        // else was written first, and the log's lines are cold.
        let posted = match post.reply_kind() {
            ReplyKind::Quiet => Posted::Quiet,
            ReplyKind::Told => Posted::Sent { id, class: post.class },
        };
        let appended = self.append(
            now,
            &Record::Message(Message {
                key: post.to_key,
                to: post.to,
                inbox_seq,
                id,
                from: post.from,
                from_key: post.from_key,
                device: post.device,
                send_seq: post.send_seq,
                time_ms: now.wall_ms,
                expires_ms,
                class: post.class,
                flags: record_flags(post),
                body: post.body,
            }),
        );
        self.cleaner.space.add(appended.lsn, appended.len, expires_ms);
        if post.numbering == Numbering::Ascending {
            self.held.release(post.to_key, pair, post.send_seq);
        }
        let inbox = self.users[user].inbox_mut();
        self.metrics.counters.pairs += u64::from(note_number(now, inbox, post, pair));
        let seq = inbox.push(appended.lsn, appended.len);
        debug_assert_eq!(seq, inbox_seq);
        let counters = &mut self.metrics.counters;
        counters.appended += 1;
        counters.waiting_messages += 1;
        counters.waiting_bytes += u64::from(appended.len);
        self.metrics.record_late(Stage::ReceiveToAppend, post.received_ns, now.mono_ns);
        self.when_durable(now, user, post, posted, inbox_seq, out);
    }

    /// The server's retention is also the longest that a sender can ask for.
    fn expires_ms(&self, now: Now, post: &Post<&[u8]>) -> u64 {
        let retention = now.wall_ms.saturating_add(self.options.retention_ms);
        if post.expires_ms == 0 { retention } else { post.expires_ms.min(retention) }
    }

    /// Shows and answers a post once everything appended so far is durable; at
    /// once when it does not ask for that (or was stored before) and no earlier
    /// answer about this inbox waits.
    fn when_durable(
        &mut self,
        now: Now,
        user: UserIndex,
        post: &Post<&[u8]>,
        posted: Posted,
        inbox_seq: u64,
        out: &mut Effects,
    ) {
        let (durable, end) = (self.log.durable(), self.log.end());
        let inbox = self.users[user].inbox_mut();
        // What was stored as best effort and is repeated as guaranteed has to be
        // on the disk, too.
        let is_early = post.class == Class::BestEffort
            && (inbox_seq == 0 || inbox.may_be_early(inbox_seq, durable, end));
        // When everything is durable, no write will come to open the gate.
        if (is_early || durable >= end) && !inbox.has_waiting() {
            if inbox_seq > 0 {
                self.make_visible(now, user, inbox_seq, post.received_ns, out);
            }
            self.reply(post.reply, post.to, post.send_seq, posted, out);
            return;
        }
        inbox.start_waiting();
        self.gate.push(Waiting {
            until: end,
            reply: post.reply,
            user,
            send_seq: post.send_seq,
            posted,
            inbox_seq,
            received_ns: post.received_ns,
            appended_ns: now.mono_ns,
        });
    }

    /// Refuses it for now: the same number may come again.
    fn refuse(&mut self, now: Now, post: &Post<&[u8]>, code: Code, out: &mut Effects) {
        if post.numbering == Numbering::Ascending {
            let pair = PairKey::new(post.from_key, post.device);
            self.held.hold(now, post.to_key, pair, post.send_seq);
        }
        self.metrics.counters.refused += 1;
        let posted = Posted::Refused { code, retry_after_ms: RETRY_MS };
        self.reply(post.reply, post.to, post.send_seq, posted, out);
    }

    /// Answers about a recipient of this shard by its place in the table.
    pub(crate) fn reply_about_user(
        &mut self,
        reply: ReplyTo,
        user: UserIndex,
        send_seq: u64,
        posted: Posted,
        out: &mut Effects,
    ) {
        let name = std::mem::take(&mut self.users[user].name);
        self.reply(reply, &name, send_seq, posted, out);
        self.users[user].name = name;
    }

    fn reply(
        &mut self,
        reply: ReplyTo,
        to: &[u8],
        send_seq: u64,
        posted: Posted,
        out: &mut Effects,
    ) {
        if reply.shard == self.options.shard {
            self.tell(reply.conn, to, send_seq, posted, out);
            return;
        }
        self.outbox.push(reply.shard, |parcel| {
            let to = if posted == Posted::Quiet { parcel.put(&[]) } else { parcel.put(to) };
            Hop::Posted { reply, to, send_seq, posted }
        });
    }

    /// Tells the connection that sent it, if it is still there and cares.
    pub(crate) fn tell(
        &mut self,
        conn: Conn,
        to: &[u8],
        send_seq: u64,
        posted: Posted,
        out: &mut Effects,
    ) {
        let Some(session) = self.sessions.get(conn) else { return };
        match (session.kind, posted) {
            (Kind::V2, _) => {}
            // The only word of v1 that fits: not accepted, wait so long.
            (Kind::V1, Posted::Refused { retry_after_ms, .. }) => {
                return out.send_once(conn, &v1::rate_limited(retry_after_ms));
            }
            (Kind::V1, Posted::Late) => {
                out.send(conn, |bytes| v1::put_error(bytes, "out_of_order"));
                return;
            }
            _ => return,
        }
        let reply = match posted {
            Posted::Quiet | Posted::Late => return,
            Posted::Sent { id, class } => v2::Reply::Sent { seq: send_seq, id, class, to },
            Posted::Gap { expected } => v2::Reply::Gap { expected, to },
            Posted::Refused { code, retry_after_ms } => {
                v2::Reply::Refused { seq: send_seq, code: code as u16, retry_after_ms, to }
            }
        };
        // A confirmation may share a send with the partner's answer; what the
        // client must act on goes at once.
        if matches!(posted, Posted::Sent { .. }) {
            out.send_late(conn, |bytes| v2::put_reply(bytes, &reply));
        } else {
            out.send(conn, |bytes| v2::put_reply(bytes, &reply));
        }
    }
}

/// Takes note of the number of a post that was accepted; whether its sender is
/// new to the inbox.
fn note_number(now: Now, inbox: &mut Inbox, post: &Post<&[u8]>, key: PairKey) -> bool {
    if post.numbering == Numbering::None {
        return false;
    }
    let note = |pair: &mut Pair| {
        pair.accept(post.numbering, post.send_seq);
        pair.touch(hours(now.wall_ms));
    };
    // Field by field where it stands: to copy one that was just changed waits
    // for every write before it, among them those into the log.
    if let Some(known) = inbox.pair_mut(key) {
        note(known);
        return false;
    }
    let mut pair = Pair::new(key);
    note(&mut pair);
    inbox.put_pair(pair)
}

/// The wire's flags that matter after the append, and whether v1 numbered it.
fn record_flags(post: &Post<&[u8]>) -> u8 {
    let is_numbered = post.device == 0 && post.numbering != Numbering::None;
    let numbered = if is_numbered { RECORD_NUMBERED_V1 } else { 0 };
    post.flags & v2::flag::WANTS_DELIVERED | numbered
}

/// Whether the sender hears what became of a post.
enum ReplyKind {
    Quiet,
    Told,
}

impl Post<&[u8]> {
    fn reply_kind(&self) -> ReplyKind {
        if self.device == 0 { ReplyKind::Quiet } else { ReplyKind::Told }
    }
}

/// The same post with its names and body as spans of a parcel.
fn with_spans(post: &Post<&[u8]>, to: Span, from: Span, body: Span) -> Post<Span> {
    Post {
        to,
        from,
        body,
        to_key: post.to_key,
        from_key: post.from_key,
        device: post.device,
        send_seq: post.send_seq,
        numbering: post.numbering,
        class: post.class,
        flags: post.flags,
        expires_ms: post.expires_ms,
        refuse: post.refuse,
        reply: post.reply,
        received_ns: post.received_ns,
    }
}

/// The post that a hop carries, with its names and body out of the parcel.
pub(crate) fn with_bytes<'a>(post: &Post<Span>, bytes: &'a [u8]) -> Post<&'a [u8]> {
    Post {
        to: post.to.of(bytes),
        from: post.from.of(bytes),
        body: post.body.of(bytes),
        to_key: post.to_key,
        from_key: post.from_key,
        device: post.device,
        send_seq: post.send_seq,
        numbering: post.numbering,
        class: post.class,
        flags: post.flags,
        expires_ms: post.expires_ms,
        refuse: post.refuse,
        reply: post.reply,
        received_ns: post.received_ns,
    }
}
