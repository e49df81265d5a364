//! Users: who is known to this shard, their devices, their place in the table.
//!
//! A user that is known, absent and has no messages costs its table entry, its
//! name and one device; the inbox comes with the first message.

use std::hash::Hasher;

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128, SipHasher13};
use smallvec::SmallVec;
use wal::Record;
use wire::id::UserKey;

use crate::chunks::Chunks;
use crate::inbox::{Entry, Inbox};

/// Place of a user in the table.
pub(crate) type UserIndex = u32;

/// The device of protocol v1, which has no name for its devices.
pub(crate) const V1_DEVICE: u64 = 0;

/// No connection slot.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// Hashes names to user keys; the seed lives in the data directory.
#[derive(Clone, Copy, Debug)]
pub struct KeyHasher {
    seed: [u64; 2],
}

impl KeyHasher {
    /// A hasher with the data directory's seed.
    pub fn new(seed: [u64; 2]) -> KeyHasher {
        KeyHasher { seed }
    }

    /// The key of this name.
    pub fn key(&self, name: &[u8]) -> UserKey {
        let mut hasher = SipHasher13::new_with_keys(self.seed[0], self.seed[1]);
        hasher.write(name);
        UserKey(hasher.finish128().as_u128())
    }
}

/// One registered device of a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    /// 0 is the device of protocol v1.
    pub(crate) id: u64,
    /// It has acknowledged everything up to and including this inbox seq.
    pub(crate) cursor: u64,
    /// Slot of the connection it is logged in on, or [`NO_SLOT`].
    pub(crate) slot: u32,
    /// When that was, seconds of the monotonic clock.
    pub(crate) since_s: u32,
}

const _: () = assert!(size_of::<Device>() <= 24, "a million devices must stay small");

impl Device {
    /// A device that is not connected.
    pub(crate) fn new(id: u64, cursor: u64) -> Device {
        Device { id, cursor, slot: NO_SLOT, since_s: 0 }
    }
}

/// A user's name: those of up to 16 bytes, most numbers and many names, without
/// memory of their own.
pub(crate) type Name = SmallVec<[u8; 16]>;

/// A user's devices: most users have one.
pub(crate) type Devices = SmallVec<[Device; 1]>;

/// One user.
pub(crate) struct User {
    pub(crate) key: UserKey,
    pub(crate) name: Name,
    pub(crate) devices: Devices,
    pub(crate) inbox: Option<Box<Inbox>>,
    /// Unix seconds; 0 for never.
    pub(crate) last_seen_s: u32,
}

const _: () = assert!(size_of::<User>() <= 96, "a million users must stay small");

impl Default for User {
    /// A place without one.
    fn default() -> User {
        User {
            key: UserKey(0),
            name: Name::new(),
            devices: Devices::new(),
            inbox: None,
            last_seen_s: 0,
        }
    }
}

impl User {
    pub(crate) fn is_online(&self) -> bool {
        self.devices.iter().any(|device| device.slot != NO_SLOT)
    }

    pub(crate) fn device_position(&self, id: u64) -> Option<usize> {
        self.devices.iter().position(|device| device.id == id)
    }

    /// Adds a device. Rare, so the list stays as small as it is.
    pub(crate) fn add_device(&mut self, device: Device) -> usize {
        self.devices.reserve_exact(1);
        self.devices.push(device);
        self.devices.len() - 1
    }

    pub(crate) fn remove_device(&mut self, id: u64) {
        if let (Some(at), Some(inbox)) = (self.device_position(id), self.inbox.as_deref_mut()) {
            inbox.forget_device(at);
        }
        self.devices.retain(|device| device.id != id);
        self.devices.shrink_to_fit();
    }

    /// The lowest cursor of all devices: what lies up to it may be burned.
    /// Without a device nothing may.
    pub(crate) fn cursor_min(&self) -> u64 {
        self.devices.iter().map(|device| device.cursor).min().unwrap_or(0)
    }

    /// Moves a device's cursor over what it will never acknowledge (holes, and
    /// what it has had under another number) or, with protocol v1, has
    /// acknowledged one by one; returns where it is now.
    pub(crate) fn advance(&mut self, position: usize) -> u64 {
        self.move_cursor(position, 0)
    }

    /// The same after an acknowledgement of everything up to `seq`.
    pub(crate) fn move_cursor(&mut self, position: usize, seq: u64) -> u64 {
        let device = &mut self.devices[position];
        device.cursor = device.cursor.max(seq);
        let cursor = self.advanced(position);
        self.devices[position].cursor = cursor;
        cursor
    }

    fn advanced(&self, position: usize) -> u64 {
        let device = &self.devices[position];
        let mut cursor = device.cursor;
        if let Some(inbox) = self.inbox.as_deref() {
            cursor = cursor.max(inbox.first_seq() - 1);
            while let Some(entry) = inbox.entry(cursor + 1)
                && (entry.is_hole()
                    || entry.is_had_by(position)
                    || device.id == V1_DEVICE && entry.acked_by_v1)
            {
                cursor += 1;
            }
        }
        cursor
    }

    /// What will wait once every cursor has been advanced, and what is on the
    /// shelf.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.waiting_seqs().map(|(_, entry)| entry)
    }

    /// The same with the inbox seq of each; the shelf comes first.
    pub(crate) fn waiting_seqs(&self) -> impl Iterator<Item = (u64, &Entry)> {
        let cursors = (0..self.devices.len()).map(|at| self.advanced(at));
        let cursor = cursors.min().unwrap_or(0);
        let inbox = self.inbox.as_deref();
        let shelf = inbox.and_then(|inbox| inbox.shelf()).into_iter().flat_map(|it| it.iter());
        let entries = inbox.into_iter().flat_map(|inbox| inbox.entries());
        let in_line = entries.filter(move |(seq, entry)| *seq > cursor && !entry.is_hole());
        shelf.map(|it| (it.seq, &it.entry)).chain(in_line)
    }

    /// Removes what every device has, and holes that stand before all that
    /// waits; `gone` hears of each message.
    pub(crate) fn burn(&mut self, gone: impl FnMut(&Entry)) {
        let cursor = self.cursor_min();
        if let Some(inbox) = self.inbox.as_deref_mut() {
            inbox.burn(cursor, gone);
            inbox.give_back();
        }
    }

    /// The same among messages that come and go; whether the inbox is to give
    /// its memory back at the next tick.
    pub(crate) fn burn_in_passing(&mut self, gone: impl FnMut(&Entry)) -> bool {
        let cursor = self.cursor_min();
        self.inbox.as_deref_mut().is_some_and(|inbox| {
            inbox.burn(cursor, gone);
            inbox.give_back_later()
        })
    }

    /// Advances every cursor and removes what need not wait any more.
    pub(crate) fn settle(&mut self) {
        for device in 0..self.devices.len() {
            self.advance(device);
        }
        self.burn(|_| {});
    }

    /// Highest inbox seq given out.
    pub(crate) fn last_seq(&self) -> u64 {
        self.inbox.as_ref().map_or(0, |inbox| inbox.last_seq())
    }

    pub(crate) fn inbox_mut(&mut self) -> &mut Inbox {
        self.inbox.get_or_insert_with(Default::default)
    }
}

/// Parts of the index. A part that is full is built anew, twice as large, within
/// one turn: of a million users a part holds 16,000.
const PARTS: usize = 64;

/// Has the inboxes of all users who come after it begin above `seq`.
pub(crate) const fn floor_record(seq: u64) -> Record<'static> {
    Record::Floor { key: UserKey(0), name: b"", seq }
}

/// All users of a shard. Indices are stable; users are never removed.
pub(crate) struct Users {
    list: Chunks<User>,
    index: Box<[HashTable<UserIndex>; PARTS]>,
    users_max: usize,
    floor: u64,
}

/// The part of the index for a key: by its upper bits, since the table uses the
/// lower ones.
fn part(key: UserKey) -> usize {
    (key.0 >> 122) as usize
}

impl Users {
    pub(crate) fn new(users_max: usize) -> Users {
        let index = Box::new(std::array::from_fn(|_| HashTable::new()));
        Users { list: Chunks::default(), index, users_max, floor: 0 }
    }

    /// Bounds the table from now on; what is in it stays.
    pub(crate) fn bound(&mut self, users_max: usize) {
        self.users_max = users_max;
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The number above which the inbox of whoever is not known yet begins: 0,
    /// unless a repair had to leave users out that may have seen numbers.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// A record that changes nothing; nothing where there is nobody to name.
    pub(crate) fn seen_record(&self) -> Option<Record<'_>> {
        let user = self.iter().next()?;
        Some(Record::Seen { key: user.key, name: &user.name, at_s: user.last_seen_s.into() })
    }

    /// That floor as the log says it; nothing where there is none.
    pub(crate) fn floor_record(&self) -> Option<Record<'static>> {
        (self.floor > 0).then_some(floor_record(self.floor))
    }

    /// Has the inboxes of all users who come from now on begin above `seq`.
    pub(crate) fn raise_floor(&mut self, seq: u64) {
        self.floor = self.floor.max(seq);
    }

    pub(crate) fn find(&self, key: UserKey) -> Option<UserIndex> {
        let list = &self.list;
        self.index[part(key)].find(key.0 as u64, |at| list[*at as usize].key == key).copied()
    }

    /// The same, when it is likely to be the one at `guess`.
    pub(crate) fn find_at(&self, guess: UserIndex, key: UserKey) -> Option<UserIndex> {
        match self.list.get(guess as usize) {
            Some(user) if user.key == key => Some(guess),
            _ => self.find(key),
        }
    }

    /// The user with this key, made if absent; `None` when the table is full.
    pub(crate) fn find_or_add(&mut self, key: UserKey, name: &[u8]) -> Option<UserIndex> {
        if let Some(at) = self.find(key) {
            return Some(at);
        }
        if self.list.len() >= self.users_max {
            return None;
        }
        let at = UserIndex::try_from(self.list.len()).ok()?;
        self.list.push(User {
            key,
            name: Name::from_slice(name),
            devices: Devices::new(),
            inbox: self.first_inbox(),
            last_seen_s: 0,
        });
        self.enter(key, at);
        Some(at)
    }

    /// What a new user begins with: nothing, where nothing has to be known of it.
    fn first_inbox(&self) -> Option<Box<Inbox>> {
        let mut inbox = (self.floor > 0).then(Box::<Inbox>::default)?;
        inbox.raise_floor(self.floor);
        Some(inbox)
    }

    fn enter(&mut self, key: UserKey, at: UserIndex) {
        let list = &self.list;
        let index = &mut self.index[part(key)];
        index.insert_unique(key.0 as u64, at, |at| list[*at as usize].key.0 as u64);
    }

    /// Takes a user with all that is known of it.
    ///
    /// # Errors
    /// The user, when one with this key is there.
    pub(crate) fn adopt(&mut self, user: User) -> Result<(), User> {
        if self.find(user.key).is_some() {
            return Err(user);
        }
        let at = UserIndex::try_from(self.list.len()).expect("users are fewer than 2^32");
        let key = user.key;
        self.list.push(user);
        self.enter(key, at);
        Ok(())
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = User> {
        self.list.into_iter()
    }

    /// The user at a place, if there is one.
    pub(crate) fn look_at(&self, at: UserIndex) -> Option<&User> {
        self.list.get(at as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &User> {
        self.list.iter()
    }
}

impl std::ops::Index<UserIndex> for Users {
    type Output = User;
    fn index(&self, at: UserIndex) -> &User {
        &self.list[at as usize]
    }
}

impl std::ops::IndexMut<UserIndex> for Users {
    fn index_mut(&mut self, at: UserIndex) -> &mut User {
        &mut self.list[at as usize]
    }
}
