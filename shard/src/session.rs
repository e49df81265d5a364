//! Sessions: what the shard knows of each connection, and logging in and out.
//!
//! A session holds no messages, only how far into the inbox its connection
//! has been served.

use std::collections::VecDeque;

use wal::record::Record;
use wire::id::{MessageId, UserKey};
use wire::limits::{
    BODY_BYTES_MAX, CREDIT_MAX, DEVICES_MAX, NAME_BYTES_MAX, V1_WINDOW, V2_FRAME_BYTES_MAX,
};
use wire::refuse::Code;
use wire::{v1, v2};

use crate::Shard;
use crate::chunks::Chunks;
use crate::inbox::{Inbox, RAISE_EMPTY_MAX};
use crate::io::{Conn, Effect, Effects, Now, Outcome};
use crate::user::{Device, NO_SLOT, User, UserIndex, V1_DEVICE};

/// Log bytes that must be free before a login is looked at: for three records
/// with a name each, and a block because they may not stand together.
const LOGIN_LOG_BYTES: usize = 4 * NAME_BYTES_MAX + wal::BLOCK;
/// A client that was refused for load comes back after this long.
pub(crate) const RETRY_MS: u32 = 1_000;

/// Bytes handed to a connection before it must have drained.
const BURST_BYTES_MAX: usize = 64 * 1024;

/// No user.
pub(crate) const NOBODY: UserIndex = UserIndex::MAX;

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The slot is free.
    Free,
    /// Connected, nothing valid received yet.
    Fresh,
    /// Protocol v1, not logged in.
    Anonymous,
    /// Logged in with protocol v1.
    V1,
    /// Logged in with protocol v2.
    V2,
    /// Protocol v1, and a newer login took over: stays open, gets nothing.
    Replaced,
    /// Told to go; whatever it still says is ignored.
    Leaving,
}

/// One connection's session.
pub(crate) struct Session {
    pub(crate) generation: u32,
    pub(crate) kind: Kind,
    /// Index of the device among its user's.
    pub(crate) device: u8,
    /// Since it was last heard: bad packets in the lower bits, looks at which
    /// nothing had moved in the upper.
    unheard: u8,
    /// What it waits for, see [`READING`] and those below.
    pub(crate) waits: u8,
    pub(crate) user: UserIndex,
    /// To whom of this shard it wrote last, or [`NOBODY`]: most likely the next
    /// one, too.
    pub(crate) partner: UserIndex,
    /// Deliveries that may be unacknowledged.
    pub(crate) window: u16,
    /// Bytes of deliveries handed out since the connection was last said to have drained, in
    /// units of [`BURST_UNIT`].
    burst: u16,
    /// v2: holes between the device's cursor and `sent`.
    pub(crate) passed: u32,
    /// Messages it has sent and been handed since its login, for who looks.
    pub(crate) sends: u32,
    pub(crate) deliveries: u32,
    /// Highest inbox seq handed to the connection.
    pub(crate) sent: u64,
    /// Made when there is something in it.
    pub(crate) v1: Option<Box<OfV1>>,
}

/// What a session needs for protocol v1 only.
#[derive(Default)]
pub(crate) struct OfV1 {
    /// Deliveries not yet acknowledged, oldest first.
    pub(crate) outstanding: VecDeque<(MessageId, u64)>,
    /// Entries posted of a batch that did not find room for all of them.
    pub(crate) batch_done: u16,
}

/// The bits of bad packets; those above them count looks.
const BAD_BITS: u32 = 6;
const BAD_MASK: u8 = (1 << BAD_BITS) - 1;

/// A read of the log is under way for the session.
const READING: u8 = 1;
/// The log had no room to give up what expired on the way to it, or to set aside
/// what could not be read.
const STARVED: u8 = 2;
/// Nor for its login, see `handshake`.
pub(crate) const LOGIN: u8 = 4;

/// Bytes that count as one in [`Session::burst`].
const BURST_UNIT: usize = 16;

const _: () = assert!(CREDIT_MAX <= u16::MAX as u32, "a session keeps it in 16 bits");

/// The window for what a client asks for.
pub(crate) fn window(credit: u32) -> u16 {
    credit.min(CREDIT_MAX) as u16
}

const _: () = assert!(size_of::<Session>() <= 48, "a million sessions must stay small");

impl Default for Session {
    /// A free slot.
    fn default() -> Session {
        Session::new(0, Kind::Free)
    }
}

impl Session {
    fn new(generation: u32, kind: Kind) -> Session {
        Session {
            generation,
            kind,
            device: 0,
            unheard: 0,
            waits: 0,
            user: 0,
            partner: NOBODY,
            window: 0,
            burst: 0,
            passed: 0,
            sends: 0,
            deliveries: 0,
            sent: 0,
            v1: None,
        }
    }

    /// Something good came from it.
    pub(crate) fn heard(&mut self) {
        self.unheard = 0;
    }

    /// Something bad came from it; how often in a row.
    pub(crate) fn heard_bad(&mut self) -> u8 {
        self.unheard = (self.unheard & BAD_MASK).saturating_add(1).min(BAD_MASK);
        self.unheard
    }

    /// Something moved, or need not.
    pub(crate) fn progressed(&mut self) {
        self.unheard &= BAD_MASK;
    }

    /// Nothing has moved at another look; how often in a row, at most 4.
    pub(crate) fn look(&mut self) -> u8 {
        let looks = self.unheard >> BAD_BITS;
        if looks < u8::MAX >> BAD_BITS {
            self.unheard += 1 << BAD_BITS;
        }
        looks + 1
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.waits & READING != 0
    }

    pub(crate) fn set_reading(&mut self, is_reading: bool) {
        self.waits = self.waits & !READING | if is_reading { READING } else { 0 };
    }

    pub(crate) fn is_starved(&self) -> bool {
        self.waits & STARVED != 0
    }

    pub(crate) fn set_starved(&mut self, is_starved: bool) {
        self.waits = self.waits & !STARVED | if is_starved { STARVED } else { 0 };
    }

    /// Deliveries that the device has not acknowledged, with its cursor here.
    pub(crate) fn unacknowledged(&self, cursor: u64) -> u64 {
        match self.kind {
            Kind::V1 => self.v1.as_ref().map_or(0, |v1| v1.outstanding.len() as u64),
            _ => self.sent.saturating_sub(cursor).saturating_sub(self.passed.into()),
        }
    }

    /// Bytes of deliveries were handed out.
    pub(crate) fn add_burst(&mut self, bytes: usize) {
        let units = u16::try_from(bytes.div_ceil(BURST_UNIT)).unwrap_or(u16::MAX);
        self.burst = self.burst.saturating_add(units);
    }

    /// The connection has to drain before it is handed more.
    pub(crate) fn is_burst_full(&self) -> bool {
        usize::from(self.burst) * BURST_UNIT >= BURST_BYTES_MAX
    }

    /// Bytes that it may be handed before it drains.
    pub(crate) fn burst_left(&self) -> usize {
        BURST_BYTES_MAX.saturating_sub(usize::from(self.burst) * BURST_UNIT)
    }

    /// The connection has drained; whether it had to.
    pub(crate) fn drain_burst(&mut self) -> bool {
        let was_full = self.is_burst_full();
        self.burst = 0;
        was_full
    }

    pub(crate) fn is_logged_in(&self) -> bool {
        matches!(self.kind, Kind::V1 | Kind::V2)
    }
}

/// All sessions of a core, by connection slot.
#[derive(Default)]
pub(crate) struct Sessions {
    list: Chunks<Session>,
}

impl Sessions {
    pub(crate) fn open(&mut self, conn: Conn) {
        let slot = conn.slot as usize;
        while self.list.len() <= slot {
            self.list.push(Session::default());
        }
        self.list[slot] = Session::new(conn.generation, Kind::Fresh);
    }

    pub(crate) fn free(&mut self, conn: Conn) {
        self.list[conn.slot as usize] = Session::new(conn.generation, Kind::Free);
    }

    /// The session of a connection that is still the one meant.
    pub(crate) fn get(&mut self, conn: Conn) -> Option<&mut Session> {
        let session = self.list.get_mut(conn.slot as usize)?;
        (session.generation == conn.generation && session.kind != Kind::Free).then_some(session)
    }

    /// Whether it is there and not logged in yet: only a login ends the time for
    /// one.
    pub(crate) fn waits_for_login(&self, conn: Conn) -> bool {
        self.list.get(conn.slot as usize).is_some_and(|session| {
            session.generation == conn.generation
                && matches!(session.kind, Kind::Fresh | Kind::Anonymous)
        })
    }

    /// How many slots have ever been in use.
    pub(crate) fn slots(&self) -> u32 {
        self.list.len() as u32
    }

    /// What is on a slot, if anything is.
    pub(crate) fn look_at(&self, slot: u32) -> Option<&Session> {
        self.list.get(slot as usize).filter(|session| session.kind != Kind::Free)
    }

    /// The session on a slot that a device says it is logged in on.
    pub(crate) fn at(&mut self, slot: u32) -> &mut Session {
        &mut self.list[slot as usize]
    }

    /// Whatever is on this slot now.
    pub(crate) fn peek(&self, slot: u32) -> Option<&Session> {
        self.list.get(slot as usize)
    }

    pub(crate) fn conns(&self) -> impl Iterator<Item = (Conn, Kind)> {
        self.list.iter().enumerate().map(|(slot, session)| {
            (Conn { slot: slot as u32, generation: session.generation }, session.kind)
        })
    }
}

/// A login that is not taken, and when to come back; 0 where that would be
/// refused again, and where nobody is told.
struct Refusal {
    code: Code,
    retry_ms: u32,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Refusal {
        let retry_ms = match code {
            Code::BadCursor | Code::TooManyDevices => 0,
            _ => RETRY_MS,
        };
        Refusal { code, retry_ms }
    }
}

/// A login as either protocol brings it.
struct Login<'a> {
    name: &'a [u8],
    key: UserKey,
    device: u64,
    /// The device has everything up to this inbox seq.
    last_seq: u64,
}

impl Shard {
    pub(crate) fn opened(&mut self, now: Now, conn: Conn) {
        self.sessions.open(conn);
        let sessions = &self.sessions;
        self.handshakes.start(now.mono_ns, conn, |conn| sessions.waits_for_login(conn));
    }

    pub(crate) fn login_v1(
        &mut self,
        now: Now,
        conn: Conn,
        name: &[u8],
        out: &mut Effects,
    ) -> Outcome {
        if name.is_empty() {
            return self.refuse_v1(now, conn, v1::AUTH_FAILED, out);
        }
        let key = self.hasher.key(name);
        let login = Login { name, key, device: V1_DEVICE, last_seq: 0 };
        match self.login(now, conn, &login, out) {
            Ok(Outcome::Taken) => {}
            Ok(elsewhere) => return elsewhere,
            Err(_) => return self.refuse_v1(now, conn, v1::RATE_LIMITED, out),
        }
        let session = self.sessions.at(conn.slot);
        session.kind = Kind::V1;
        session.window = window(V1_WINDOW);
        out.send(conn, |bytes| bytes.extend_from_slice(v1::LOGIN_OK));
        self.pump(now, conn.slot, out);
        self.try_shelf(conn, out);
        Outcome::Taken
    }

    fn refuse_v1(
        &mut self,
        now: Now,
        conn: Conn,
        word: &'static [u8],
        out: &mut Effects,
    ) -> Outcome {
        self.metrics.counters.logins_refused += 1;
        out.send(conn, |bytes| bytes.extend_from_slice(word));
        self.dismiss(now, conn, out);
        Outcome::Taken
    }

    pub(crate) fn login_v2(
        &mut self,
        now: Now,
        conn: Conn,
        hello: &v2::Hello<'_>,
        out: &mut Effects,
    ) -> Outcome {
        if hello.version_min > v2::VERSION || hello.version_max < v2::VERSION {
            return self.refuse_v2(now, conn, Code::Version, 0, out);
        }
        if !v2::is_name(hello.user) {
            return self.refuse_v2(now, conn, Code::BadName, 0, out);
        }
        if hello.device == 0 {
            return self.refuse_v2(now, conn, Code::Malformed, 0, out);
        }
        let key = self.hasher.key(hello.user);
        let login = Login { name: hello.user, key, device: hello.device, last_seq: hello.last_seq };
        match self.login(now, conn, &login, out) {
            Ok(Outcome::Taken) => {}
            Ok(elsewhere) => return elsewhere,
            Err(Refusal { code, retry_ms }) => {
                return self.refuse_v2(now, conn, code, retry_ms, out);
            }
        }
        self.welcome(now, conn, hello, out);
        self.pump(now, conn.slot, out);
        self.try_shelf(conn, out);
        Outcome::Taken
    }

    fn refuse_v2(
        &mut self,
        now: Now,
        conn: Conn,
        code: Code,
        retry_ms: u32,
        out: &mut Effects,
    ) -> Outcome {
        self.metrics.counters.logins_refused += 1;
        self.goaway(now, conn, code, retry_ms, out);
        Outcome::Taken
    }

    fn welcome(&mut self, now: Now, conn: Conn, hello: &v2::Hello<'_>, out: &mut Effects) {
        let session = self.sessions.at(conn.slot);
        session.kind = Kind::V2;
        session.window = window(hello.credit);
        let cursor = session.sent;
        let user = &self.users[session.user];
        let inbox_first = user.inbox.as_ref().map_or(1, |inbox| inbox.first_seq());
        let welcome = v2::Welcome {
            version: v2::VERSION,
            capabilities: hello.capabilities & v2::CAPABILITIES,
            server_time_ms: now.wall_ms,
            first_seq: inbox_first.max(cursor + 1),
            last_seq: user.last_seq(),
            frame_bytes_max: V2_FRAME_BYTES_MAX as u32,
            body_bytes_max: BODY_BYTES_MAX as u32,
            credit_max: CREDIT_MAX,
        };
        out.send(conn, |bytes| v2::put_reply(bytes, &v2::Reply::Welcome(welcome)));
    }

    /// Makes `conn` the connection of a device, wherever it was before.
    fn login(
        &mut self,
        now: Now,
        conn: Conn,
        login: &Login<'_>,
        out: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let owner = login.key.owner(self.options.shards);
        if owner != self.options.shard {
            return Ok(Outcome::Move(owner));
        }
        if self.draining {
            return Err(Code::Draining.into());
        }
        if self.log.is_poisoned() {
            return Err(Code::StorageFailed.into());
        }
        if !self.log.room(LOGIN_LOG_BYTES) {
            // It is told if there is none before its time is over.
            self.sessions.at(conn.slot).waits |= LOGIN;
            return Ok(Outcome::Blocked);
        }
        self.admit(now, conn, login)?;
        self.log_out(now, conn);
        // Nobody is put into the table by a login that is refused.
        self.check_device(login)?;
        let user = self.users.find_or_add(login.key, login.name).ok_or(Code::Busy)?;
        self.raise_floor(now, user, login);
        let device = self.register(now, user, login);
        let sent = self.users[user].devices[device].cursor;
        self.acknowledge_shelved(now, user, device, 0..=login.last_seq);
        self.begin_anew(user, device, login.last_seq);
        self.send_receipts(user, sent, out);
        self.take_over(now, user, device, out);
        self.users[user].devices[device].slot = conn.slot;
        self.users[user].devices[device].since_s = now.mono_s();
        let session = self.sessions.at(conn.slot);
        session.user = user;
        session.device = device as u8;
        session.sent = sent;
        session.passed = 0;
        session.v1 = None;
        (session.sends, session.deliveries) = (0, 0);
        self.metrics.counters.logins += 1;
        self.metrics.counters.sessions += 1;
        Ok(Outcome::Taken)
    }

    /// Refuses a login where there are more than the shard takes at a time.
    fn admit(&mut self, now: Now, conn: Conn, login: &Login<'_>) -> Result<(), Refusal> {
        let level = self.flow.level();
        if self.admission.takes(now, level) {
            return Ok(());
        }
        self.metrics.counters.logins_put_off += 1;
        // The answer to a login with v1 has no time, and its clients come when they want to.
        let retry_ms = match login.device {
            V1_DEVICE => 0,
            _ => self.admission.put_off_ms(now, conn, level),
        };
        Err(Refusal { code: Code::RateLimited, retry_ms })
    }

    /// A device may have best-effort messages that a crash took from the
    /// server; their numbers must not be given out again.
    fn raise_floor(&mut self, now: Now, user: UserIndex, login: &Login<'_>) {
        if login.last_seq <= self.users[user].last_seq() {
            return;
        }
        let record = Record::Floor { key: login.key, name: login.name, seq: login.last_seq };
        self.append(now, &record);
        self.users[user].inbox_mut().raise_by_login(login.last_seq);
    }

    /// Everything that refuses a device, before anything changes.
    fn check_device(&self, login: &Login<'_>) -> Result<(), Code> {
        let user = self.users.find(login.key).map(|user| &self.users[user]);
        let is_new = user.is_some_and(|user| user.device_position(login.device).is_none());
        if is_new && user.is_some_and(|user| user.devices.len() >= DEVICES_MAX) {
            return Err(Code::TooManyDevices);
        }
        let inbox = user.and_then(|user| user.inbox.as_deref());
        let raise_max = inbox.map_or(RAISE_EMPTY_MAX, Inbox::raise_max);
        let last_seq = user.map_or(self.users.floor(), User::last_seq);
        if login.last_seq > last_seq.saturating_add(raise_max) {
            return Err(Code::BadCursor);
        }
        Ok(())
    }

    fn register(&mut self, now: Now, user: UserIndex, login: &Login<'_>) -> usize {
        if let Some(device) = self.users[user].device_position(login.device) {
            if login.last_seq > self.users[user].devices[device].cursor {
                self.acknowledge(now, user, device, login.last_seq);
            }
            return device;
        }
        let first = self.users[user].inbox.as_ref().map_or(1, |inbox| inbox.first_seq());
        let cursor = login.last_seq.max(first - 1);
        self.append(
            now,
            &Record::Device {
                key: login.key,
                name: login.name,
                device: login.device,
                cursor,
                gone: false,
            },
        );
        let device = Device::new(login.device, cursor);
        let position = self.users[user].add_device(device);
        self.burn(user);
        position
    }

    /// Newest login wins. A v1 connection stays open and gets nothing more, as
    /// existing clients expect; a v2 connection is told and closed.
    fn take_over(&mut self, now: Now, user: UserIndex, device: usize, out: &mut Effects) {
        let slot = self.users[user].devices[device].slot;
        if slot == NO_SLOT {
            return;
        }
        self.metrics.counters.takeovers += 1;
        self.metrics.counters.sessions -= 1;
        let session = self.sessions.at(slot);
        let conn = Conn { slot, generation: session.generation };
        let kind = std::mem::replace(&mut session.kind, Kind::Replaced);
        session.v1 = None;
        if kind == Kind::V2 {
            self.goaway(now, conn, Code::Replaced, 0, out);
        }
    }

    /// Ends the login of a connection, if it has one.
    fn log_out(&mut self, now: Now, conn: Conn) {
        let Some(session) = self.sessions.get(conn) else { return };
        if !session.is_logged_in() {
            return;
        }
        let (user, device) = (session.user, usize::from(session.device));
        session.kind = Kind::Anonymous;
        session.v1 = None;
        self.gone_from_shelf(user, device);
        self.metrics.counters.sessions -= 1;
        let at_s = u32::try_from(now.wall_ms / 1000).unwrap_or(u32::MAX);
        let gone = &mut self.users[user];
        gone.devices[device].slot = NO_SLOT;
        gone.last_seen_s = at_s;
        let key = gone.key;
        let name = std::mem::take(&mut gone.name);
        // Nothing is lost when the log has no room for this one: the time of a
        // last visit is a courtesy.
        let record = Record::Seen { key, name: &name, at_s: u64::from(at_s) };
        if self.log.room(wal::record::encoded_len(&record)) {
            self.append(now, &record);
        }
        self.users[user].name = name;
    }

    pub(crate) fn closed(&mut self, now: Now, conn: Conn) {
        if self.sessions.get(conn).is_some() {
            self.log_out(now, conn);
            self.sessions.free(conn);
        }
    }

    /// Tells a v2 connection to go and closes it.
    pub(crate) fn goaway(
        &mut self,
        now: Now,
        conn: Conn,
        code: Code,
        retry_ms: u32,
        out: &mut Effects,
    ) {
        out.send(conn, |bytes| v2::put_goaway(bytes, code, retry_ms));
        self.dismiss(now, conn, out);
    }

    /// Closes a connection and ends its login: nothing it still says is looked
    /// at, and nothing more is sent to it.
    pub(crate) fn dismiss(&mut self, now: Now, conn: Conn, out: &mut Effects) {
        self.log_out(now, conn);
        if let Some(session) = self.sessions.get(conn) {
            session.kind = Kind::Leaving;
            out.push(Effect::Close { conn });
        }
    }

    /// Asks every connection to leave.
    pub(crate) fn drain(&mut self, now: Now, out: &mut Effects) {
        self.draining = true;
        self.dismiss_all(now, Code::Draining, out);
    }

    /// Tells everybody to go. They come back to logins that have a rate.
    pub(crate) fn dismiss_all(&mut self, now: Now, code: Code, out: &mut Effects) {
        let sessions = self.metrics.counters.sessions;
        let conns: Vec<(Conn, Kind)> = self.sessions.conns().collect();
        for (conn, kind) in conns {
            if kind == Kind::Free {
                continue;
            }
            if kind == Kind::V2 {
                let retry_ms = self.admission.comeback_ms(now, conn, sessions, RETRY_MS);
                out.send(conn, |bytes| v2::put_goaway(bytes, code, retry_ms));
            }
            self.dismiss(now, conn, out);
        }
    }
}
