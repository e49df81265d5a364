//! From the inbox to the connection: cursors, windows, catching up from disk.
//!
//! Nothing is queued for a connection. Whenever something may have changed
//! (a message became visible, an acknowledgement came, the connection drained)
//! the pump hands out what fits.

use wal::Lsn;
use wal::record::{Message, Record};
use wire::limits::V1_WINDOW;
use wire::{v1, v2};

use crate::Shard;
use crate::inbox::{Entry, Inbox};
use crate::io::{Conn, Effect, Effects, Now};
use crate::metrics::Stage;
use crate::receipt::Receipt;
use crate::session::{Kind, Session};
use crate::shelf::ASIDE_LOG_BYTES;
use crate::user::{NO_SLOT, UserIndex};

/// Most bytes of one read of the log for a device that catches up, those of
/// others between its own included.
const READ_BYTES_MAX: u32 = 256 * 1024;
/// What a record in the log has more than its frame on the wire, about.
const RECORD_ONLY_BYTES: u32 = 64;
/// A read bridges this much of other users' records between two entries.
const READ_GAP_MAX: u64 = 16 * 1024;

impl Shard {
    /// Serves every connected device of a user.
    pub(crate) fn pump_user(&mut self, now: Now, user: UserIndex, out: &mut Effects) {
        let mut at = 0;
        while let Some(device) = self.users[user].devices.get(at) {
            if device.slot != NO_SLOT {
                self.pump(now, device.slot, out);
            }
            at += 1;
        }
    }

    /// Hands a connection what its window and its burst allow.
    pub(crate) fn pump(&mut self, now: Now, slot: u32, out: &mut Effects) {
        // After most acknowledgements there is nothing.
        if self.has_more(slot) {
            // What expired on the way leaves room in the window again.
            while self.hand_out_window(now, slot, out) {}
        }
    }

    /// Whether something is visible that was not handed out.
    fn has_more(&mut self, slot: u32) -> bool {
        let session = self.sessions.at(slot);
        let inbox = session.is_logged_in().then(|| self.users[session.user].inbox.as_deref());
        inbox.flatten().is_some_and(|inbox| inbox.visible() > session.sent)
    }

    /// One round of [`Shard::pump`]; whether another one may hand out more. Not
    /// part of it, so that having nothing to hand out costs next to nothing.
    #[inline(never)]
    fn hand_out_window(&mut self, now: Now, slot: u32, out: &mut Effects) -> bool {
        let session = self.sessions.at(slot);
        if !session.is_logged_in() || session.is_reading() {
            return false;
        }
        let (at, device) = (session.user, usize::from(session.device));
        let conn = Conn { slot, generation: session.generation };
        if self.shelves.holds(at) {
            return false;
        }
        let cursor = self.advance(at, device);
        let session = self.sessions.at(slot);
        let Some(inbox) = self.users[at].inbox.as_deref_mut() else { return false };
        debug_assert!(session.is_passed_right(inbox, cursor), "every hole counts once");
        let mut expired = Expired::default();
        while let Some((seq, entry)) = next_entry(session, inbox, cursor) {
            let Some(record) = self.log.get(entry.lsn, entry.len) else {
                session.set_reading(true);
                self.metrics.counters.reads += 1;
                self.cleaner.read_begins(entry.lsn);
                let room = Room::of(session, cursor);
                out.push(read_ahead(conn, inbox, (seq, &entry), &room, self.log.durable()));
                break;
            };
            let message = expect_message(&record);
            if is_expired(now, message) {
                if !expired.has_room_for(seq, &self.log) {
                    break;
                }
                expired.take(seq, session, inbox);
                continue;
            }
            hand_out(conn, session, inbox, seq, message, out);
            self.metrics.counters.delivered += 1;
            let durable_ns = self.durables.when(entry.lsn + u64::from(entry.len));
            if let Some(durable_ns) = durable_ns {
                self.metrics.record_late(Stage::DurableToDelivered, durable_ns, now.mono_ns);
            }
        }
        self.bury(now, conn, &expired)
    }

    /// Bytes of the log arrived for a connection that catches up.
    pub(crate) fn read(
        &mut self,
        now: Now,
        conn: Conn,
        lsn: Lsn,
        bytes: Option<&[u8]>,
        out: &mut Effects,
    ) {
        self.cleaner.read_ends(lsn);
        if self.tried(now, conn, lsn, bytes, out) {
            return;
        }
        let Some(session) = self.sessions.get(conn) else { return };
        session.set_reading(false);
        if !session.is_logged_in() {
            return;
        }
        loop {
            match self.hand_out_read(now, conn, (lsn, bytes), out) {
                // The rest of what has expired is among the same bytes.
                Handed::PartOfIt => {}
                // An entry that has moved since is not among them; the pump
                // reads it again where it is now.
                Handed::All => return self.pump(now, conn.slot, out),
                // Without room another read would come back before there is some.
                Handed::Starved => return,
            }
        }
    }

    /// Hands out what is among these bytes, up to the second run of what has
    /// expired: each run is a record of its own.
    fn hand_out_read(
        &mut self,
        now: Now,
        conn: Conn,
        (lsn, bytes): (Lsn, Option<&[u8]>),
        out: &mut Effects,
    ) -> Handed {
        let session = self.sessions.at(conn.slot);
        let (at, device) = (session.user, usize::from(session.device));
        if self.shelves.holds(at) {
            return Handed::All;
        }
        let cursor = self.advance(at, device);
        let session = self.sessions.at(conn.slot);
        let Some(inbox) = self.users[at].inbox.as_deref_mut() else { return Handed::Starved };
        let mut expired = Expired::default();
        let (mut damaged, mut is_cut) = (None, false);
        while let Some((seq, entry)) = next_entry(session, inbox, cursor) {
            let Some(bytes) = bytes else {
                damaged = (entry.lsn == lsn).then_some(seq);
                break;
            };
            let Some(record) = record_at(bytes, lsn, &entry) else { break };
            let record = wal::record::verify(record, self.salt, entry.lsn).ok();
            let Some(message) = record.as_ref().and_then(Record::message) else {
                damaged = Some(seq);
                break;
            };
            if is_expired(now, message) {
                if !expired.has_room_for(seq, &self.log) {
                    is_cut = true;
                    break;
                }
                expired.take(seq, session, inbox);
                continue;
            }
            hand_out(conn, session, inbox, seq, message, out);
            self.metrics.counters.delivered += 1;
        }
        self.bury(now, conn, &expired);
        if let Some(seq) = damaged
            && !self.set_aside(now, conn, seq, out)
        {
            self.starve(conn);
            return Handed::Starved;
        }
        match (expired.is_starved, is_cut) {
            (true, _) => Handed::Starved,
            (false, true) => Handed::PartOfIt,
            (false, false) => Handed::All,
        }
    }

    /// Takes what expired on its way to a connection out of the inbox, in the
    /// log as well: a restart must not bring it back, its segment may be gone
    /// by then. Whether there may be more to hand out now.
    fn bury(&mut self, now: Now, conn: Conn, expired: &Expired) -> bool {
        if expired.entries.is_empty() && !expired.is_starved {
            return false;
        }
        let session = self.sessions.at(conn.slot);
        let (user, device) = (session.user, usize::from(session.device));
        if expired.is_starved {
            self.starve(conn);
        }
        if expired.entries.is_empty() {
            return false;
        }
        let key = self.users[user].key;
        self.append(now, &Record::Dropped { key, first: expired.first, last: expired.last() });
        for (seq, entry) in (expired.first..).zip(&expired.entries) {
            self.expire(entry);
            self.note_hole(user, seq, entry, conn.slot);
        }
        self.advance(user, device);
        self.burn(user);
        !expired.is_starved
    }

    /// The log has no room for what must be said before more is handed out.
    fn starve(&mut self, conn: Conn) {
        let session = self.sessions.at(conn.slot);
        if !session.is_starved() && !self.log.is_poisoned() {
            session.set_starved(true);
            self.starved.push(conn);
        }
    }

    /// Moves a device's cursor over what it will never acknowledge; returns
    /// where it is now. What it was the last to wait for is removed.
    pub(crate) fn advance(&mut self, user: UserIndex, device: usize) -> u64 {
        let before = self.users[user].devices[device].cursor;
        let cursor = self.move_cursor(user, device, 0);
        if cursor > before {
            self.burn(user);
        }
        cursor
    }

    /// Moves a device's cursor to `seq`, if it is not there yet, and over what
    /// follows there and will never be acknowledged. Before a burn: what has been
    /// burned without an acknowledgement counts as a hole.
    pub(crate) fn move_cursor(&mut self, user: UserIndex, device: usize, seq: u64) -> u64 {
        let it = &mut self.users[user];
        let before = it.devices[device].cursor;
        let cursor = it.move_cursor(device, seq);
        if cursor > before {
            self.cursor_moved(user, device, before, cursor);
        }
        cursor
    }

    fn cursor_moved(&mut self, user: UserIndex, device: usize, before: u64, cursor: u64) {
        let it = &self.users[user];
        let slot = it.devices[device].slot;
        if slot != NO_SLOT
            && let Some(inbox) = it.inbox.as_deref()
        {
            self.sessions.at(slot).cursor_moved(inbox, before, cursor);
        }
    }

    /// The windows of the other connections hear of a new hole, and what stood
    /// there. Who was not given that has counted it.
    pub(crate) fn note_hole(&mut self, user: UserIndex, seq: u64, was: &Entry, except: u32) {
        for at in 0..self.users[user].devices.len() {
            let slot = self.users[user].devices[at].slot;
            if slot == NO_SLOT || slot == except || was.is_had_by(at) {
                continue;
            }
            let cursor = self.users[user].devices[at].cursor;
            let session = self.sessions.at(slot);
            let is_between = cursor < seq && seq <= session.sent;
            session.passed += u32::from(is_between && session.kind == Kind::V2);
        }
    }

    /// Accounts for an entry that has become a hole.
    pub(crate) fn expire(&mut self, entry: &Entry) {
        let counters = &mut self.metrics.counters;
        counters.expired += 1;
        counters.waiting_messages -= 1;
        counters.waiting_bytes -= u64::from(entry.len);
        self.cleaner.space.sub(entry.lsn, entry.len, self.log.end());
    }

    /// Serves those again for whom the log had no room.
    pub(crate) fn serve_starved(&mut self, now: Now, out: &mut Effects) {
        while !self.starved.is_empty() && self.log.room(ASIDE_LOG_BYTES) {
            let conn = self.starved.pop().expect("looked at above");
            if let Some(session) = self.sessions.get(conn) {
                session.set_starved(false);
                self.pump(now, conn.slot, out);
            }
        }
    }

    pub(crate) fn drained(&mut self, now: Now, conn: Conn, out: &mut Effects) {
        let Some(session) = self.sessions.get(conn) else { return };
        if session.drain_burst() {
            self.pump(now, conn.slot, out);
        }
    }
}

/// Holes take up no window, and neither does what the device has had under
/// another number: it cannot acknowledge them one by one. Each is counted when
/// it is passed and once more when the cursor comes there; to count them whenever
/// the window is asked for would cost a walk through it.
impl Session {
    /// Goes over a hole.
    pub(crate) fn pass(&mut self, seq: u64) {
        self.sent = seq;
        self.passed += u32::from(self.kind == Kind::V2);
    }

    /// The cursor has moved; the holes that it left behind count no more.
    fn cursor_moved(&mut self, inbox: &Inbox, from: u64, to: u64) {
        if self.passed > 0 {
            let end = to.min(self.sent);
            let holes = (from + 1..=end).filter(|seq| self.is_hole(inbox, *seq)).count();
            self.passed = self.passed.saturating_sub(holes as u32);
        }
    }

    /// Whether `passed` is what it must be. For small windows only: the test
    /// builds that ask for large ones should not spend their time here.
    fn is_passed_right(&self, inbox: &Inbox, cursor: u64) -> bool {
        if self.kind != Kind::V2 || self.window > 1000 || self.sent <= cursor {
            return true;
        }
        let holes = (cursor + 1..=self.sent).filter(|seq| self.is_hole(inbox, *seq)).count();
        holes == self.passed as usize
    }

    /// What is burned and was not acknowledged was a hole.
    fn is_hole(&self, inbox: &Inbox, seq: u64) -> bool {
        let device = usize::from(self.device);
        inbox.entry(seq).is_none_or(|it| it.is_hole() || it.is_had_by(device))
    }
}

/// The next entry to hand out, or `None` when the inbox, the window or the
/// burst is at its end. Moves over what the device has already.
fn next_entry(session: &mut Session, inbox: &Inbox, cursor: u64) -> Option<(u64, Entry)> {
    // What every device has is burned; what this one has lies below its cursor.
    if session.sent < cursor {
        (session.sent, session.passed) = (cursor, 0);
    }
    loop {
        if session.sent >= inbox.visible() || session.is_burst_full() {
            return None;
        }
        let seq = session.sent + 1;
        let entry = *inbox.entry(seq).expect("visible entries are there");
        if entry.is_hole() {
            session.pass(seq);
            continue;
        }
        if session.kind == Kind::V1 && entry.acked_by_v1 {
            session.sent = seq;
            continue;
        }
        if entry.is_had_by(session.device.into()) {
            session.pass(seq);
            continue;
        }
        let has_window = session.unacknowledged(cursor) < u64::from(session.window);
        return has_window.then_some((seq, entry));
    }
}

fn expect_message<'a, 'b>(record: &'b Record<'a>) -> &'b Message<'a> {
    record.message().expect("an inbox entry points at a message")
}

/// The bytes of one entry's record inside what was read from `lsn` on.
fn record_at<'a>(bytes: &'a [u8], lsn: Lsn, entry: &Entry) -> Option<&'a [u8]> {
    let start = usize::try_from(entry.lsn.checked_sub(lsn)?).ok()?;
    bytes.get(start..start.checked_add(entry.len as usize)?)
}

/// What a connection may be handed before it drains and acknowledges.
struct Room {
    messages: u64,
    bytes: usize,
}

impl Room {
    fn of(session: &Session, cursor: u64) -> Room {
        let window = u64::from(session.window);
        Room {
            messages: window.saturating_sub(session.unacknowledged(cursor)),
            bytes: session.burst_left(),
        }
    }

    /// Whether more fits than this; by a little too much, because to read a few
    /// again costs less than to read for a few.
    fn takes(&self, messages: u64, bytes: usize) -> bool {
        messages < self.messages && bytes < self.bytes
    }
}

/// One read for as many of the following entries as lie close together and may
/// be handed out when it comes back: the disk has more to do than to read what
/// is thrown away. It ends where the durable log does: what is not on the disk
/// yet may be by the time the bytes come back, and they would not be it.
fn read_ahead(
    conn: Conn,
    inbox: &Inbox,
    (seq, first): (u64, &Entry),
    room: &Room,
    durable: Lsn,
) -> Effect {
    let mut wide_end = first.lsn + u64::from(first.len);
    // Where the first gap is that is too wide for one alone.
    let mut end = None;
    let mut next = seq + 1;
    let mut bytes = frame_bytes(first);
    let end_max = durable.min(first.lsn + u64::from(READ_BYTES_MAX));
    while room.takes(next - seq, bytes)
        && let Some(entry) = inbox.entry(next)
    {
        if entry.is_hole() {
            break;
        }
        let entry_end = entry.lsn + u64::from(entry.len);
        // Behind a copy made by cleaning the next one may lie before it.
        if entry.lsn < wide_end || entry_end > end_max {
            break;
        }
        if entry.lsn > wide_end + READ_GAP_MAX {
            end.get_or_insert(wide_end);
        }
        wide_end = entry_end;
        bytes += frame_bytes(entry);
        next += 1;
    }
    let to = |end: Lsn| (end - first.lsn) as u32;
    let len = to(end.unwrap_or(wide_end));
    Effect::Read { conn, lsn: first.lsn, len_min: first.len, len, len_wide: to(wide_end) }
}

fn frame_bytes(entry: &Entry) -> usize {
    entry.len.saturating_sub(RECORD_ONLY_BYTES) as usize
}

pub(crate) fn is_expired(now: Now, message: &Message<'_>) -> bool {
    message.expires_ms != 0 && message.expires_ms <= now.wall_ms
}

/// How far a read has been handed out.
enum Handed {
    All,
    /// The log had room for one record of what expired, and there is more.
    PartOfIt,
    /// The log has no room, or nothing waits any more.
    Starved,
}

/// A run of entries that a pump found to be expired.
#[derive(Default)]
struct Expired {
    first: u64,
    entries: Vec<Entry>,
    /// The log has no room to say so.
    is_starved: bool,
}

impl Expired {
    fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// Whether this entry can join the run: one record speaks of all of it.
    fn has_room_for(&mut self, seq: u64, log: &wal::Log) -> bool {
        if self.entries.is_empty() {
            self.first = seq;
            self.is_starved = !log.room(ASIDE_LOG_BYTES);
            return !self.is_starved;
        }
        seq == self.last() + 1
    }

    /// From now on nobody gets it any more.
    fn take(&mut self, seq: u64, session: &mut Session, inbox: &mut Inbox) {
        session.pass(seq);
        self.entries.push(inbox.make_hole(seq).expect("an entry that waits"));
    }
}

fn hand_out(
    conn: Conn,
    session: &mut Session,
    inbox: &mut Inbox,
    seq: u64,
    message: &Message<'_>,
    out: &mut Effects,
) {
    session.sent = seq;
    session.deliveries = session.deliveries.wrapping_add(1);
    let bytes = if session.kind == Kind::V1 {
        let outstanding = &mut session.v1.get_or_insert_default().outstanding;
        debug_assert!(outstanding.len() < V1_WINDOW as usize);
        outstanding.push_back((message.id, seq));
        out.send(conn, |bytes| v1::put_deliver(bytes, message.id, message.body))
    } else {
        out.send(conn, |bytes| put_deliver(bytes, seq, message))
    };
    session.add_burst(bytes);
    if session.is_burst_full() {
        out.push(Effect::TellDrained { conn });
    }
    if message.flags & v2::flag::WANTS_DELIVERED != 0 {
        inbox.expect_receipt(Receipt {
            inbox_seq: seq,
            from_key: message.from_key,
            device: message.device,
            send_seq: message.send_seq,
            id: message.id,
        });
    }
}

fn put_deliver(bytes: &mut Vec<u8>, seq: u64, message: &Message<'_>) {
    let deliver = v2::Deliver {
        inbox_seq: seq,
        id: message.id,
        flags: 0,
        from_device: message.device,
        send_seq: message.send_seq,
        time_ms: message.time_ms,
        from: message.from,
        body: message.body,
    };
    v2::put_deliver(bytes, &deliver);
}
