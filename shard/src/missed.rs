//! What could not be read when its turn came, and who has gone on without it.
//!
//! A record whose bytes are damaged, or that the disk does not give, is passed
//! over for a device, and what follows is handed out. The entry stays in its
//! inbox, marked, and the device's cursor stays before it: acknowledgements are
//! cumulative, and one of what follows would call it delivered. How far beyond
//! the device is stands here, in memory only; after a restart the device says it
//! itself, and only then does the entry count as one that it has.

use std::collections::BTreeMap;

use wire::limits::DEVICES_MAX;

use crate::Shard;
use crate::inbox::Inbox;
use crate::io::{Conn, Effect, Effects};
use crate::user::{UserIndex, V1_DEVICE};

/// By user of whom an entry was passed over: for each device, up to which inbox
/// seq it has acknowledged everything but what it was not given.
#[derive(Default)]
pub(crate) struct Missed {
    users: BTreeMap<UserIndex, [u64; DEVICES_MAX]>,
}

impl Missed {
    fn reached(&self, user: UserIndex, device: usize) -> u64 {
        // Nearly always there is nothing, and this is asked for all the time.
        if self.users.is_empty() {
            return 0;
        }
        self.users.get(&user).map_or(0, |devices| devices[device])
    }
}

impl Shard {
    /// Whether no device of any user was ever passed over: nearly always, and
    /// then cursors need no second look.
    pub(crate) fn is_nothing_missed(&self) -> bool {
        self.missed.users.is_empty()
    }

    /// The device has everything up to here, but for what could not be read.
    pub(crate) fn reached(&self, user: UserIndex, device: usize) -> u64 {
        let cursor = self.users[user].devices[device].cursor;
        cursor.max(self.missed.reached(user, device))
    }

    /// The device acknowledges up to `seq`, or with protocol v1 what is marked.
    pub(crate) fn reaches(&mut self, user: UserIndex, device: usize, seq: u64) {
        if self.missed.users.is_empty() {
            return;
        }
        let mut reached = self.reached(user, device).max(seq);
        let Some(devices) = self.missed.users.get_mut(&user) else { return };
        let it = &self.users[user];
        if it.devices[device].id == V1_DEVICE
            && let Some(inbox) = it.inbox.as_deref()
        {
            while let Some(entry) = inbox.entry(reached + 1)
                && (entry.acked_by_v1 || entry.is_missed_by(device))
            {
                reached += 1;
            }
        }
        devices[device] = reached;
    }

    /// How far the cursor of a device may move for an acknowledgement of `seq`:
    /// not over what the device was not given.
    pub(crate) fn cursor_max(&self, user: UserIndex, device: usize, seq: u64) -> u64 {
        if self.missed.users.is_empty() || !self.missed.users.contains_key(&user) {
            return seq;
        }
        let user = &self.users[user];
        let Some(inbox) = user.inbox.as_deref() else { return seq };
        let first = user.devices[device].cursor.max(inbox.first_seq() - 1) + 1;
        let is_missed = |seq: &u64| is_missed(inbox, *seq, device);
        (first..=seq.min(inbox.last_seq())).find(is_missed).map_or(seq, |missed| missed - 1)
    }

    /// The entry cannot be read: the operator hears of it, the connection goes
    /// on without it.
    pub(crate) fn set_aside(&mut self, conn: Conn, seq: u64, out: &mut Effects) {
        let session = self.sessions.at(conn.slot);
        let (user, device) = (session.user, usize::from(session.device));
        let inbox = self.users[user].inbox_mut();
        let Some(entry) = inbox.entry(seq) else { return };
        out.push(Effect::Damaged { lsn: entry.lsn });
        inbox.miss(seq, device);
        self.metrics.counters.damaged += 1;
        self.missed.users.entry(user).or_default();
    }
}

/// Whether the device was not given this entry because it could not be read.
pub(crate) fn is_missed(inbox: &Inbox, seq: u64, device: usize) -> bool {
    inbox.entry(seq).is_some_and(|entry| entry.is_missed_by(device))
}
