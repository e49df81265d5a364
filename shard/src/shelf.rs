//! What could not be read when its turn came, and how it comes back.
//!
//! A record whose bytes are damaged, or that the disk does not give, is set
//! aside: its number becomes a hole, so that every device goes on, and the
//! message is kept on a shelf of its inbox until it can be read, has expired or
//! is given up by a repair. An acknowledgement of what follows says nothing about
//! it any more, in this life or a later one. Each login tries what is on the
//! shelf; what can be read is stored again under a new number, the only one that
//! a device takes which is beyond the old one.
//!
//! Some devices may have been handed a message before another one of the user
//! found it unreadable. When such a device acknowledges it after that, the log
//! says so with a second record.
//!
//! Invariant: nobody is handed what follows before the log says, durably, that
//! the message is on the shelf. Who has it already does not get it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::ops::RangeInclusive;

use smallvec::SmallVec;
use wal::record::{Devices, Message, Record};
use wal::{Lsn, record};
use wire::limits::DEVICES_MAX;

use crate::Shard;
use crate::commit::Waiting;
use crate::deliver::is_expired;
use crate::hop::{Posted, ReplyTo};
use crate::inbox::{Entry, without_device};
use crate::io::{Conn, Effect, Effects, Now};
use crate::user::{NO_SLOT, User, UserIndex, V1_DEVICE};

/// Log bytes of a record that sets a message aside, or of one that gives it up.
pub(crate) const ASIDE_LOG_BYTES: usize = 256;

/// A message on the shelf of an inbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shelved {
    /// The number it had.
    pub(crate) seq: u64,
    pub(crate) entry: Entry,
    /// The operator has heard of it in this life of the server.
    is_told: bool,
}

/// The messages of one inbox that could not be read, by the number they had.
#[derive(Default)]
pub(crate) struct Shelf {
    /// Ascending. Taken from the front, one after the other, when they come back.
    list: VecDeque<Shelved>,
    /// By number: devices, by position, that were handed it before it was set
    /// aside, and of which nobody knows whether they have it. Not in the log: a
    /// crash makes them devices that do not.
    handed: BTreeMap<u64, u8>,
}

impl Shelf {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Shelved> {
        self.list.iter()
    }

    fn position(&self, seq: u64) -> Result<usize, usize> {
        self.list.binary_search_by_key(&seq, |it| it.seq)
    }

    /// Puts a message there; `false` when it is there. More devices may have had
    /// it since.
    pub(crate) fn put(&mut self, seq: u64, entry: Entry) -> bool {
        let place = self.position(seq);
        match place {
            Ok(at) => self.list[at].entry.had_by |= entry.had_by,
            Err(at) => self.list.insert(at, Shelved { seq, entry, is_told: false }),
        }
        place.is_err()
    }

    /// These devices were handed it before.
    fn note_handed(&mut self, seq: u64, devices: u8) {
        if devices != 0 {
            self.handed.insert(seq, devices);
        }
    }

    /// The devices that were handed this one and have not said anything since.
    fn handed_to(&self, seq: u64) -> u8 {
        self.handed.get(&seq).copied().unwrap_or(0)
    }

    /// One of these that this device was handed.
    fn handed_of(&self, seqs: &RangeInclusive<u64>, device: usize) -> Option<u64> {
        let mut handed = self.handed.range(seqs.clone());
        handed.find(|(_, devices)| *devices & 1 << device != 0).map(|(seq, _)| *seq)
    }

    /// The device has this one.
    fn note_had(&mut self, seq: u64, device: usize) {
        if let Some(entry) = self.get_mut(seq) {
            entry.had_by |= 1 << device;
        }
        if let btree_map::Entry::Occupied(mut handed) = self.handed.entry(seq) {
            *handed.get_mut() &= !(1 << device);
            if *handed.get() == 0 {
                handed.remove();
            }
        }
    }

    /// Whether the device was handed anything of this and has not said anything
    /// since.
    pub(crate) fn is_owed_by(&self, device: usize) -> bool {
        self.handed.values().any(|devices| devices & 1 << device != 0)
    }

    /// What else the device was handed beyond this number never arrived there.
    fn note_lost(&mut self, device: usize, beyond: u64) {
        self.change_handed(|seq, devices| match seq > beyond {
            true => devices & !(1 << device),
            false => devices,
        });
    }

    /// The device at this position is forgotten.
    pub(crate) fn forget_device(&mut self, device: usize) {
        self.list.iter_mut().for_each(|it| it.entry.forget_device(device));
        self.change_handed(|_, devices| without_device(devices, device));
    }

    fn change_handed(&mut self, left: impl Fn(u64, u8) -> u8) {
        self.handed.retain(|seq, devices| {
            *devices = left(*seq, *devices);
            *devices != 0
        });
    }

    pub(crate) fn get(&self, seq: u64) -> Option<&Entry> {
        Some(&self.list[self.position(seq).ok()?].entry)
    }

    pub(crate) fn get_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        let at = self.position(seq).ok()?;
        Some(&mut self.list[at].entry)
    }

    /// The first one with this number or a higher one.
    pub(crate) fn from(&self, seq: u64) -> Option<&Shelved> {
        self.list.get(self.position(seq).unwrap_or_else(|at| at))
    }

    pub(crate) fn take(&mut self, seq: u64) -> Option<Entry> {
        let at = self.position(seq).ok()?;
        self.handed.remove(&seq);
        Some(self.list.remove(at)?.entry)
    }

    /// The operator hears of it; whether for the first time.
    fn tell(&mut self, seq: u64) -> bool {
        let at = self.position(seq);
        at.is_ok_and(|at| !std::mem::replace(&mut self.list[at].is_told, true))
    }
}

/// What is under way between shelves, the log and the disk.
#[derive(Default)]
pub(crate) struct Shelves {
    /// Users of whom something was set aside, and how far the log must be
    /// durable before they are handed anything.
    held: VecDeque<(Lsn, UserIndex)>,
    /// What is being read once more: at most one for each user.
    tries: Vec<Try>,
    /// The same, when the log had no room for what would have come back.
    postponed: Vec<Try>,
    /// Whose shelf is tried at the next tick: a device that was handed something
    /// of it has spoken, or gone, or what is on it was on its way to the disk.
    again: BTreeSet<UserIndex>,
}

/// A message on a shelf that is tried, and at whose login.
#[derive(Clone, Copy)]
struct Try {
    conn: Conn,
    user: UserIndex,
    seq: u64,
    lsn: Lsn,
}

impl Shelves {
    /// Whether somebody waits for the log.
    pub(crate) fn hold_back(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether something of this user's shelf is being read, or waits for the log's room.
    fn is_trying(&self, user: UserIndex) -> bool {
        self.tries.iter().chain(&self.postponed).any(|it| it.user == user)
    }

    /// Whether a device of this user must wait for the log.
    pub(crate) fn holds(&self, user: UserIndex) -> bool {
        // Nearly always there is nothing, and this is asked for all the time.
        !self.held.is_empty() && self.held.iter().any(|(_, held)| *held == user)
    }
}

impl User {
    /// By position: the devices that have this entry.
    fn had_by(&self, seq: u64, entry: &Entry) -> u8 {
        let has = |&(at, device): &(usize, &crate::user::Device)| {
            let is_acked = device.id == V1_DEVICE && entry.acked_by_v1;
            device.cursor >= seq || entry.is_had_by(at) || is_acked
        };
        self.devices.iter().enumerate().filter(has).fold(0, |mask, (at, _)| mask | 1 << at)
    }

    /// Whether one of these devices is.
    fn is_connected(&self, devices: u8) -> bool {
        let mut all = self.devices.iter().enumerate();
        devices != 0 && all.any(|(at, it)| devices & 1 << at != 0 && it.slot != NO_SLOT)
    }

    /// The ids of these devices.
    fn ids(&self, had_by: u8) -> SmallVec<[[u8; 8]; DEVICES_MAX]> {
        let devices = self.devices.iter().enumerate().filter(|(at, _)| had_by & 1 << at != 0);
        devices.map(|(_, device)| device.id.to_le_bytes()).collect()
    }

    /// Whether the message that had this number is on the shelf.
    pub(crate) fn is_aside(&self, seq: u64) -> bool {
        let shelf = self.inbox.as_deref().and_then(|inbox| inbox.shelf());
        shelf.is_some_and(|shelf| shelf.get(seq).is_some())
    }

    /// By position: the devices with these ids.
    pub(crate) fn positions(&self, ids: Devices<'_>) -> u8 {
        let places = ids.iter().filter_map(|id| self.device_position(id));
        places.fold(0, |mask, at| mask | 1 << at)
    }
}

impl Shard {
    /// The entry cannot be read: it goes to the shelf, in the log first. `false`
    /// when that has no room.
    pub(crate) fn set_aside(&mut self, now: Now, conn: Conn, seq: u64, out: &mut Effects) -> bool {
        if self.log.is_poisoned() || !self.log.room(ASIDE_LOG_BYTES) {
            return false;
        }
        let session = self.sessions.at(conn.slot);
        let (at, device) = (session.user, usize::from(session.device));
        let user = &self.users[at];
        let inbox = user.inbox.as_deref();
        let entry = *inbox.and_then(|it| it.entry(seq)).expect("what cannot be read waits");
        let had_by = user.had_by(seq, &entry);
        let handed_to = self.handed_to(at, seq) & !had_by;
        let user = &self.users[at];
        let (key, ids, Entry { lsn, len, .. }) = (user.key, user.ids(had_by), entry);
        let record = Record::Aside { key, seq, lsn, len, had: Devices::new(&ids) };
        self.append(now, &record);
        let inbox = self.users[at].inbox_mut();
        inbox.set_aside(seq, Entry::had(lsn, len, had_by));
        if let Some(shelf) = inbox.shelf_mut() {
            shelf.note_handed(seq, handed_to);
        }
        self.sessions.at(conn.slot).pass(seq);
        self.note_hole(at, seq, &entry, conn.slot);
        self.advance(at, device);
        self.burn(at);
        self.shelves.held.push_back((self.log.end(), at));
        self.tell_unreadable(at, seq, lsn, out);
        true
    }

    /// By position: the devices that are connected and were handed this number.
    fn handed_to(&self, user: UserIndex, seq: u64) -> u8 {
        let has_sent = |slot| self.sessions.peek(slot).is_some_and(|session| session.sent >= seq);
        let devices = self.users[user].devices.iter().enumerate();
        let handed = devices.filter(|(_, it)| it.slot != NO_SLOT && has_sent(it.slot));
        handed.fold(0, |mask, (at, _)| mask | 1 << at)
    }

    /// A device has all of these numbers: also what it was handed of them before
    /// that was set aside.
    pub(crate) fn acknowledge_shelved(
        &mut self,
        now: Now,
        user: UserIndex,
        device: usize,
        seqs: RangeInclusive<u64>,
    ) {
        while let Some(shelf) = self.users[user].inbox.as_deref().and_then(|it| it.shelf())
            && let Some(seq) = shelf.handed_of(&seqs, device)
            && self.log.room(2 * ASIDE_LOG_BYTES)
        {
            self.note_had(now, user, device, seq);
            self.shelves.again.insert(user);
        }
    }

    /// A device has gone; nobody needs to wait for what it might have said.
    pub(crate) fn gone_from_shelf(&mut self, user: UserIndex, device: usize) {
        let shelf = self.users[user].inbox.as_deref().and_then(|it| it.shelf());
        if shelf.is_some_and(|shelf| shelf.is_owed_by(device)) {
            self.shelves.again.insert(user);
        }
    }

    /// Tries for somebody who is connected what nobody else speaks for any more.
    pub(crate) fn try_shelves_again(&mut self, out: &mut Effects) {
        for user in std::mem::take(&mut self.shelves.again) {
            let mut slots = self.users[user].devices.iter().map(|device| device.slot);
            if let Some(slot) = slots.find(|slot| *slot != NO_SLOT) {
                let generation = self.sessions.at(slot).generation;
                self.try_shelf(Conn { slot, generation }, out);
            }
        }
    }

    /// A device turns out to have what is on the shelf. Another one still has not:
    /// the one that found it unreadable.
    fn note_had(&mut self, now: Now, user: UserIndex, device: usize, seq: u64) {
        let it = &mut self.users[user];
        let shelf = it.inbox_mut().shelf_mut().expect("looked at by the caller");
        shelf.note_had(seq, device);
        let Entry { lsn, len, had_by, .. } = *shelf.get(seq).expect("looked at by the caller");
        let (key, ids) = (it.key, it.ids(had_by));
        self.append(now, &Record::Aside { key, seq, lsn, len, had: Devices::new(&ids) });
    }

    /// The device begins anew: it has what it says that it has, and nothing else
    /// that it was handed is under way any more.
    pub(crate) fn begin_anew(&mut self, user: UserIndex, device: usize, has: u64) {
        let shelf = self.users[user].inbox.as_deref_mut().and_then(|inbox| inbox.shelf_mut());
        if let Some(shelf) = shelf {
            shelf.note_lost(device, has);
        }
    }

    fn tell_unreadable(&mut self, user: UserIndex, seq: u64, lsn: Lsn, out: &mut Effects) {
        let shelf = self.users[user].inbox_mut().shelf_mut();
        if shelf.is_some_and(|shelf| shelf.tell(seq)) {
            out.push(Effect::Damaged { lsn });
            self.metrics.counters.damaged += 1;
        }
    }

    /// The log is durable up to here: who waited for it is served, and what had
    /// no room is tried.
    pub(crate) fn go_on_with_shelves(&mut self, now: Now, durable: Lsn, out: &mut Effects) {
        while let Some(&(until, user)) = self.shelves.held.front()
            && until <= durable
        {
            self.shelves.held.pop_front();
            self.pump_user(now, user, out);
        }
        while self.has_room_to_return()
            && let Some(it) = self.shelves.postponed.pop()
        {
            self.try_from(it, out);
        }
    }

    fn has_room_to_return(&self) -> bool {
        !self.storage_full && self.log.room(self.log.options().record_bytes_max())
    }

    /// Somebody has logged in: what is on the shelf is tried, one after the other,
    /// beside what is delivered.
    pub(crate) fn try_shelf(&mut self, conn: Conn, out: &mut Effects) {
        let user = self.sessions.at(conn.slot).user;
        if self.shelves.is_trying(user) {
            // It may be past what is to be tried.
            self.shelves.again.insert(user);
        } else {
            self.try_from(Try { conn, user, seq: 0, lsn: 0 }, out);
        }
    }

    /// Reads the first one with this number or a higher one.
    fn try_from(&mut self, from: Try, out: &mut Effects) {
        let inbox = self.users[from.user].inbox.as_deref();
        let durable = self.log.durable();
        let Some(shelf) = inbox.and_then(|inbox| inbox.shelf()) else { return };
        let mut seq = from.seq;
        while let Some(it) = shelf.from(seq) {
            let Entry { lsn, len, .. } = it.entry;
            // If cleaning has just copied it, it is not on the disk yet.
            let is_copied = lsn + u64::from(len) > durable;
            if is_copied {
                self.shelves.again.insert(from.user);
            }
            // A connected device may say any time that it has it.
            if is_copied || self.users[from.user].is_connected(shelf.handed_to(it.seq)) {
                seq = it.seq + 1;
                continue;
            }
            self.shelves.tries.push(Try { seq: it.seq, lsn, ..from });
            self.metrics.counters.reads += 1;
            self.cleaner.read_begins(lsn);
            return out.push(Effect::Read {
                conn: from.conn,
                lsn,
                len_min: len,
                len,
                len_wide: len,
            });
        }
    }

    /// Bytes arrived: whether they are of a try. If a device's own read of the
    /// same place is under way, each may get the other's answer.
    pub(crate) fn tried(
        &mut self,
        now: Now,
        conn: Conn,
        lsn: Lsn,
        bytes: Option<&[u8]>,
        out: &mut Effects,
    ) -> bool {
        let mut tries = self.shelves.tries.iter();
        let Some(at) = tries.position(|it| it.conn == conn && it.lsn == lsn) else { return false };
        let it = self.shelves.tries.remove(at);
        let shelf = self.users[it.user].inbox.as_deref().and_then(|inbox| inbox.shelf());
        let entry = shelf.and_then(|shelf| shelf.get(it.seq));
        if entry.is_some_and(|entry| entry.lsn != lsn) {
            // Cleaning has copied it meanwhile.
            self.try_from(it, out);
            return true;
        }
        if let Some(&entry) = entry {
            let record = bytes.and_then(|bytes| bytes.get(..entry.len as usize));
            let record = record.and_then(|it| record::verify(it, self.salt, lsn).ok());
            let key = self.users[it.user].key;
            let is_it = |found: &&Message<'_>| (found.key, found.inbox_seq) == (key, it.seq);
            match record.as_ref().and_then(Record::message).filter(is_it) {
                Some(_) if self.log.is_poisoned() => return true,
                Some(_) if !self.has_room_to_return() => {
                    self.shelves.postponed.push(it);
                    return true;
                }
                Some(message) if is_expired(now, message) => self.give_up_shelved(now, &it),
                Some(message) => self.bring_back(now, &it, &entry, message),
                None => self.tell_unreadable(it.user, it.seq, lsn, out),
            }
        }
        self.try_from(Try { seq: it.seq + 1, ..it }, out);
        true
    }

    fn give_up_shelved(&mut self, now: Now, it: &Try) {
        let key = self.users[it.user].key;
        self.append(now, &Record::Dropped { key, first: it.seq, last: it.seq });
        if let Some(entry) = self.users[it.user].inbox_mut().take_back(it.seq) {
            self.expire(&entry);
        }
    }

    /// Stores it again, as the last one in its inbox, for those who do not have
    /// it. It is handed out like any other, when the log is durable.
    fn bring_back(&mut self, now: Now, it: &Try, was: &Entry, message: &Message<'_>) {
        let leap = self.leap;
        let inbox_seq = self.users[it.user].inbox_mut().next_seq(leap);
        let ids = self.users[it.user].ids(was.had_by);
        let message = Message { inbox_seq, ..*message };
        let had = Devices::new(&ids);
        let appended = self.append(now, &Record::Returned { message, from: it.seq, had });
        let space = &mut self.cleaner.space;
        space.add(appended.lsn, appended.len, message.expires_ms);
        space.sub(was.lsn, was.len, self.log.end());
        let inbox = self.users[it.user].inbox_mut();
        inbox.take_back(it.seq);
        let entry = Entry::had(appended.lsn, appended.len, was.had_by);
        assert_eq!(inbox.push_entry(entry), inbox_seq, "the number asked for is the next one");
        inbox.start_waiting();
        let counters = &mut self.metrics.counters;
        counters.waiting_bytes += u64::from(appended.len);
        counters.waiting_bytes -= u64::from(was.len);
        // Who has it and is away waits for nothing here.
        for device in 0..self.users[it.user].devices.len() {
            self.advance(it.user, device);
        }
        let reply = ReplyTo { shard: self.options.shard, conn: it.conn };
        self.gate.push(Waiting {
            until: self.log.end(),
            reply,
            user: it.user,
            send_seq: message.send_seq,
            posted: Posted::Quiet,
            inbox_seq,
            received_ns: now.mono_ns,
            appended_ns: now.mono_ns,
        });
    }
}
