//! From the log back to the state: what a shard is after a restart.
//!
//! Replay does to users and inboxes what the live path did when it appended
//! each record, and nothing else: no delivery, no reply.

use wal::record::{Malformed, Message, Record};
use wal::{Log, LogStart, Lsn, Restore};
use wire::id::UserKey;

use crate::dedup::{Numbering, PairKey};
use crate::hlc::Hlc;
use crate::inbox::EARLY_MAX;
use crate::metrics::Metrics;
use crate::user::{Device, KeyHasher, NO_SLOT, UserIndex, Users};
use crate::{Options, Shard};

/// A shard that is being read back from its log.
pub struct Replay {
    options: Options,
    hasher: KeyHasher,
    users: Users,
    hlc: Hlc,
    metrics: Metrics,
    /// Records that fit no state: a defect of the writer or of the log.
    contradictions: u64,
}

impl Replay {
    /// An empty shard.
    pub fn new(options: Options, hasher: KeyHasher) -> Replay {
        Replay {
            users: Users::new(usize::MAX),
            hlc: Hlc::new(options.node, options.shard),
            metrics: Metrics::new(),
            options,
            hasher,
            contradictions: 0,
        }
    }

    /// Takes the next record of the log.
    pub fn record(&mut self, lsn: Lsn, len: u32, record: &Record<'_>) {
        match *record {
            Record::Message(ref message) => self.message(lsn, len, message),
            Record::Ack { key, device, seq, exact } => self.ack(key, device, seq, exact),
            Record::Device { key, name, device, cursor, gone } => {
                self.device(key, name, device, cursor, gone);
            }
            Record::Seen { key, name, at_s } => {
                let user = self.user(key, name);
                self.users[user].last_seen_s = u32::try_from(at_s).unwrap_or(u32::MAX);
            }
            Record::Floor { key, name, seq } => {
                let user = self.user(key, name);
                self.users[user].inbox_mut().raise_floor(seq);
            }
            Record::Consumed { key, name, from_key, device, send_seq } => {
                let user = self.user(key, name);
                self.number(user, from_key, device, send_seq, Numbering::Higher);
            }
            Record::Moved(ref message) => self.moved(lsn, message),
            Record::Dropped { key, first, last } => self.dropped(key, first, last),
        }
    }

    /// Records that did not fit what came before them; 0 for every log that
    /// this code wrote.
    pub fn contradictions(&self) -> u64 {
        self.contradictions
    }

    /// The shard as it was, with its log going on where it ended.
    pub fn finish(mut self, start: &LogStart, log: Log) -> Shard {
        self.hlc.saw(start.hlc_ms);
        for at in 0..self.users.len() as UserIndex {
            if let Some(inbox) = self.users[at].inbox.as_deref_mut() {
                inbox.make_visible(inbox.last_seq());
            }
        }
        let mut users = self.users;
        users.bound(self.options.users_max);
        let mut shard = Shard::new(self.options, self.hasher, start.salt, log);
        shard.users = users;
        shard.hlc = self.hlc;
        shard.metrics = self.metrics;
        if start.lsn > 0 {
            shard.leap = EARLY_MAX;
        }
        shard
    }

    fn user(&mut self, key: UserKey, name: &[u8]) -> UserIndex {
        self.users.find_or_add(key, name).expect("replay has no bound of its own")
    }

    fn message(&mut self, lsn: Lsn, len: u32, message: &Message<'_>) {
        self.hlc.saw(message.id.ms());
        let user = self.user(message.key, message.to);
        let numbering = Numbering::of_record(message.device, message.flags);
        self.number(user, message.from_key, message.device, message.send_seq, numbering);
        let inbox = self.users[user].inbox_mut();
        if message.inbox_seq <= inbox.last_seq() {
            self.contradictions += 1;
            return;
        }
        // The first message after a restart leaps, see Inbox::next_seq.
        inbox.raise_floor(message.inbox_seq - 1);
        inbox.push(lsn, len);
        self.metrics.counters.waiting_messages += 1;
        self.metrics.counters.waiting_bytes += u64::from(len);
    }

    /// What has been acknowledged since stays so.
    fn moved(&mut self, lsn: Lsn, message: &Message<'_>) {
        let Some(at) = self.users.find(message.key) else {
            self.contradictions += 1;
            return;
        };
        if let Some(inbox) = self.users[at].inbox.as_deref_mut() {
            inbox.repoint(message.inbox_seq, lsn);
        }
    }

    fn dropped(&mut self, key: UserKey, first: u64, last: u64) {
        let Some(at) = self.users.find(key) else {
            self.contradictions += 1;
            return;
        };
        let Some(inbox) = self.users[at].inbox.as_deref_mut() else { return };
        for seq in first.max(inbox.first_seq())..=last.min(inbox.last_seq()) {
            if inbox.entry(seq).is_some_and(|entry| !entry.is_hole()) {
                self.metrics.counters.waiting_messages -= 1;
                self.metrics.counters.waiting_bytes -= inbox.make_hole(seq);
            }
        }
    }

    fn number(&mut self, user: UserIndex, from: UserKey, device: u64, seq: u64, how: Numbering) {
        if how == Numbering::None {
            return;
        }
        let inbox = self.users[user].inbox_mut();
        let mut pair = inbox.pair(PairKey::new(from, device));
        if pair.judge(how, seq) == crate::dedup::Verdict::New {
            pair.accept(how, seq);
            self.metrics.counters.pairs += u64::from(inbox.put_pair(pair));
        } else {
            self.contradictions += 1;
        }
    }

    fn ack(&mut self, key: UserKey, device: u64, seq: u64, exact: bool) {
        let Some(at) = self.users.find(key) else {
            self.contradictions += 1;
            return;
        };
        let user = &mut self.users[at];
        let Some(position) = user.device_position(device) else {
            self.contradictions += 1;
            return;
        };
        if exact {
            user.inbox_mut().mark_acked_by_v1(seq);
            user.advance(position);
        } else {
            let cursor = &mut user.devices[position].cursor;
            *cursor = (*cursor).max(seq);
        }
        self.burn(at);
    }

    fn device(&mut self, key: UserKey, name: &[u8], device: u64, cursor: u64, gone: bool) {
        let at = self.user(key, name);
        let user = &mut self.users[at];
        if gone {
            user.remove_device(device);
        } else if user.device_position(device).is_none() {
            user.add_device(Device { id: device, cursor, slot: NO_SLOT });
        }
        self.burn(at);
    }

    fn burn(&mut self, at: UserIndex) {
        let (entries, bytes) = self.users[at].burn();
        self.metrics.counters.waiting_messages -= entries;
        self.metrics.counters.waiting_bytes -= bytes;
    }
}

impl Restore for Replay {
    fn reset(&mut self) {
        *self = Replay::new(self.options, self.hasher);
    }

    fn state(&mut self, _payload: &[u8]) -> Result<(), Malformed> {
        Err(Malformed::Payload) // nothing writes snapshots yet
    }

    fn space(&mut self, _payload: &[u8]) -> Result<(), Malformed> {
        Err(Malformed::Payload)
    }

    fn loaded(&mut self, _start: LogStart, _end: Lsn) {}

    fn record(&mut self, lsn: Lsn, len: u32, record: &Record<'_>) {
        Replay::record(self, lsn, len, record);
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        Vec::new() // nothing deletes segments yet
    }
}
