//! From the slices of a snapshot back to users and inboxes.
//!
//! The bytes come from a file whose checksums fit. Whatever they are, nothing
//! here panics or takes more memory than a few times theirs, but for holes.

use wal::Lsn;
use wal::record::Malformed;
use wire::id::UserKey;
use wire::limits::DEVICES_MAX;

use super::slice::{ACKED_BY_V1, ASIDE, ENTRIES, ENTRY_BYTES, HAD_BY, PAIRS, SHELVED_BYTES, USER};
use crate::dedup::{PAIR_BYTES, Pair};
use crate::inbox::{Entry, HOLES_MAX, Inbox};
use crate::user::{Device, Devices, UserIndex, Users};

/// Reads slices back, one after the other.
#[derive(Default)]
pub(crate) struct Loader {
    /// The user whose entries and pairs come next, and its last seq.
    current: Option<(UserIndex, u64)>,
    /// For each user, from which position on the log adds to it.
    as_of: Vec<Lsn>,
}

impl Loader {
    /// From which position on the log adds to this user.
    pub(crate) fn as_of(&self, user: UserIndex) -> Lsn {
        self.as_of.get(user as usize).copied().unwrap_or(0)
    }

    /// Takes one slice.
    pub(crate) fn slice(&mut self, payload: &[u8], users: &mut Users) -> Result<(), Malformed> {
        let mut take = Take(payload);
        while !take.0.is_empty() {
            self.item(&mut take, users).ok_or(Malformed::Payload)?;
        }
        Ok(())
    }

    /// The last slice was taken.
    pub(crate) fn finish(&mut self, users: &mut Users) {
        if let Some((user, last)) = self.current.take() {
            let inbox = users[user].inbox.as_deref_mut();
            if let Some(inbox) = inbox.filter(|inbox| inbox.last_seq() < last) {
                inbox.raise_floor(last);
            }
        }
    }

    fn item(&mut self, take: &mut Take<'_>, users: &mut Users) -> Option<()> {
        match take.u8()? {
            USER => {
                self.finish(users);
                self.user(take, users)
            }
            ENTRIES => {
                let (inbox, last) = self.inbox(users)?;
                load_entries(take, inbox, last)
            }
            ASIDE => {
                let (inbox, _) = self.inbox(users)?;
                let count = take.u32()? as usize;
                for bytes in
                    take.bytes(count.checked_mul(SHELVED_BYTES)?)?.as_chunks::<SHELVED_BYTES>().0
                {
                    let (seq, entry) = bytes.split_first_chunk().expect("a number stands first");
                    let entry = take_entry(entry.try_into().expect("and a place after it"));
                    inbox.set_aside(u64::from_le_bytes(*seq), entry);
                }
                Some(())
            }
            PAIRS => {
                let (inbox, _) = self.inbox(users)?;
                let count = take.u32()? as usize;
                for bytes in take.bytes(count.checked_mul(PAIR_BYTES)?)?.as_chunks().0 {
                    inbox.put_pair(Pair::from_bytes(bytes));
                }
                Some(())
            }
            _ => None,
        }
    }

    fn inbox<'a>(&self, users: &'a mut Users) -> Option<(&'a mut Inbox, u64)> {
        let (user, last) = self.current?;
        Some((users[user].inbox.as_deref_mut()?, last))
    }

    fn user(&mut self, take: &mut Take<'_>, users: &mut Users) -> Option<()> {
        let key = UserKey(u128::from_le_bytes(take.array()?));
        let last_seen_s = take.u32()?;
        let (as_of, first, last) = (take.u64()?, take.u64()?, take.u64()?);
        let has_inbox = take.u8()? != 0;
        let devices = (0..take.u8()?).map(|_| take_device(take)).collect::<Option<Devices>>()?;
        let name_len = usize::from(take.u16()?);
        let name = take.bytes(name_len)?;
        let is_range =
            (1..=last.checked_add(1)?).contains(&first) && last - (first - 1) <= HOLES_MAX;
        if !is_range || devices.len() > DEVICES_MAX || users.find(key).is_some() {
            return None;
        }
        if name.is_empty() {
            users.raise_floor(last);
            return Some(());
        }
        let at = users.find_or_add(key, name)?;
        let user = &mut users[at];
        (user.last_seen_s, user.devices) = (last_seen_s, devices);
        if has_inbox {
            user.inbox_mut().begin_at(first);
        }
        assert!(self.as_of.len() == at as usize, "a snapshot's users come first");
        self.as_of.push(as_of);
        self.current = Some((at, last));
        Some(())
    }
}

fn take_device(take: &mut Take<'_>) -> Option<Device> {
    Some(Device::new(take.u64()?, take.u64()?))
}

fn load_entries(take: &mut Take<'_>, inbox: &mut Inbox, last: u64) -> Option<()> {
    let (start, count) = (take.u64()?, take.u32()? as usize);
    let bytes = take.bytes(count.checked_mul(ENTRY_BYTES)?)?;
    if start.checked_add(count as u64)? > last + 1 {
        return None;
    }
    let entries = bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(take_entry);
    inbox.load(start, entries).then_some(())
}

fn take_entry(bytes: &[u8; ENTRY_BYTES]) -> Entry {
    let parts = bytes.as_chunks::<4>().0;
    let word = |n: usize| u32::from_le_bytes(parts[n]);
    let (lsn, len) = (u64::from(word(1)) << 32 | u64::from(word(0)), word(2));
    let had_by = (len & HAD_BY) >> HAD_BY.trailing_zeros();
    let acked_by_v1 = len & ACKED_BY_V1 != 0;
    Entry { lsn, len: len & !(ACKED_BY_V1 | HAD_BY), acked_by_v1, had_by: had_by as u8 }
}

/// Reads fields off the front of a slice; `None` once they run out.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
