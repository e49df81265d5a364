//! From the snapshot and the log back to the state: what a shard is after a
//! restart.
//!
//! Replay does to users and inboxes what the live path did when it appended
//! each record, and nothing else: no delivery, no reply. What a snapshot has of
//! a user already is skipped; what it may have (see `snapshot::slice`) is done
//! again, which changes nothing.

use wal::clean::Space;
use wal::record::{Devices, Malformed, Message, Record};
use wal::{Log, LogStart, Lsn, Restore};
use wire::id::UserKey;

use crate::clean::Cleaner;
use crate::dedup::{Numbering, PAIRS_KEPT_MS_MIN, Pair, PairKey, Verdict, hours};
use crate::hlc::Hlc;
use crate::inbox::{EARLY_MAX, Entry};
use crate::snapshot::{Loader, Snapshots};
use crate::user::{Device, KeyHasher, User, UserIndex, Users};
use crate::{Options, Shard};

/// A shard that is being read back.
pub struct Replay {
    options: Options,
    hasher: KeyHasher,
    users: Users,
    hlc: Hlc,
    loader: Loader,
    /// What expires where; what is live is counted at the end.
    space: Space,
    segment_bytes: u64,
    /// Where the snapshot begins that was loaded.
    snapshot: Option<Lsn>,
    /// Records before this position may be known to the snapshot.
    certain_from: Lsn,
    /// Pairs whose last number was used up at a time that the log does not say.
    undated: Vec<(UserIndex, PairKey)>,
    /// Records that fit no state: a defect of the writer or of the log.
    contradictions: u64,
}

impl Replay {
    /// An empty shard, whose log has segments of this size.
    pub fn new(options: Options, hasher: KeyHasher, segment_bytes: u64) -> Replay {
        Replay {
            users: Users::new(usize::MAX),
            hlc: Hlc::new(options.node, options.shard),
            loader: Loader::default(),
            space: Space::new(segment_bytes),
            segment_bytes,
            snapshot: None,
            certain_from: 0,
            undated: Vec::new(),
            options,
            hasher,
            contradictions: 0,
        }
    }

    pub(crate) fn users(&self) -> &Users {
        &self.users
    }

    pub(crate) fn users_mut(&mut self) -> &mut Users {
        &mut self.users
    }

    /// The log ends there.
    pub(crate) fn end_at(&mut self, start: &LogStart) {
        self.hlc.saw(start.hlc_ms);
        self.date_pairs(hours(start.hlc_ms));
    }

    pub(crate) fn into_users(self) -> impl Iterator<Item = User> {
        self.users.into_iter()
    }

    /// The highest reading of the clock that ids were drawn from.
    pub(crate) fn hlc_ms(&self) -> u64 {
        self.hlc.ms()
    }

    pub(crate) fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    /// Records that did not fit what came before them; 0 for every log that
    /// this code wrote.
    pub fn contradictions(&self) -> u64 {
        self.contradictions
    }

    /// The shard as it was, with its log going on where it ended. `present`
    /// are the segments that are on the disk.
    pub fn finish(
        mut self,
        start: &LogStart,
        log: Log,
        present: impl IntoIterator<Item = u64>,
    ) -> Shard {
        self.end_at(start);
        self.users.bound(self.options.users_max);
        let mut shard = Shard::new(self.options, self.hasher, start.salt, log);
        shard.users = self.users;
        shard.hlc = self.hlc;
        shard.cleaner = Cleaner::new(self.segment_bytes);
        shard.cleaner.space = self.space;
        shard.snapshots = Snapshots::starting_from(self.snapshot);
        shard.settle();
        shard.cleaner.space.present(present, start.lsn);
        // A log may be empty although numbers were given out, see `regroup`.
        if start.lsn > 0 || shard.users.len() > 0 {
            shard.leap = EARLY_MAX;
        }
        shard
    }
}

impl Shard {
    /// Brings everything to rest that has been read back, and counts it.
    fn settle(&mut self) {
        for at in 0..self.users.len() as UserIndex {
            let user = &mut self.users[at];
            user.settle();
            let Some(inbox) = user.inbox.as_deref_mut() else { continue };
            inbox.make_visible(inbox.last_seq());
            let counters = &mut self.metrics.counters;
            counters.pairs += inbox.pairs().len() as u64;
            for entry in user.waiting() {
                counters.waiting_messages += 1;
                counters.waiting_bytes += u64::from(entry.len);
                self.cleaner.space.restore(entry.lsn, entry.len);
            }
        }
    }
}

impl Restore for Replay {
    fn reset(&mut self) {
        *self = Replay::new(self.options, self.hasher, self.segment_bytes);
    }

    fn state(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        self.loader.slice(payload, &mut self.users)
    }

    fn space(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        self.space.decode(payload)
    }

    fn loaded(&mut self, start: LogStart, end: Lsn) {
        self.loader.finish(&mut self.users);
        self.hlc.saw(start.hlc_ms);
        self.snapshot = Some(start.lsn);
        self.certain_from = end;
    }

    fn record(&mut self, lsn: Lsn, len: u32, record: &Record<'_>) {
        if self.is_known(lsn, record) {
            return self.skip(lsn, len, record);
        }
        match *record {
            Record::Message(ref message) => self.message(lsn, len, message),
            Record::Ack { key, device, seq, exact } => self.ack(lsn, key, device, seq, exact),
            Record::Device { key, name, device, cursor, gone } => {
                self.device(key, name, device, cursor, gone);
            }
            Record::Seen { key, name, at_s } => {
                let user = self.user(key, name);
                self.users[user].last_seen_s = u32::try_from(at_s).unwrap_or(u32::MAX);
            }
            Record::Floor { name: b"", seq, .. } => self.users.raise_floor(seq),
            Record::Floor { key, name, seq } => {
                let user = self.user(key, name);
                self.users[user].inbox_mut().raise_floor(seq);
            }
            Record::Consumed { key, name, from_key, device, send_seq } => {
                let user = self.user(key, name);
                let pair = PairKey::new(from_key, device);
                // The record does not say when; the end of the replay will do.
                self.number(lsn, user, pair, send_seq, Numbering::Higher, u64::MAX);
                self.undated.push((user, pair));
            }
            Record::Moved(ref message) => self.moved(lsn, len, message),
            Record::Dropped { key, first, last } => self.dropped(lsn, key, first, last),
            Record::Aside { key, seq, lsn: at, len, had } => {
                self.aside(lsn, key, seq, (at, len), had);
            }
            Record::Returned { ref message, from, had } => {
                self.returned(lsn, len, message, from, had);
            }
        }
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        let mut space = Space::new(self.segment_bytes);
        for entry in self.users.iter().flat_map(|user| user.waiting()) {
            space.restore(entry.lsn, entry.len);
        }
        space.needed()
    }
}

/// Whose record it is.
fn key_of(record: &Record<'_>) -> UserKey {
    match *record {
        Record::Message(ref message)
        | Record::Moved(ref message)
        | Record::Returned { ref message, .. } => message.key,
        Record::Ack { key, .. }
        | Record::Device { key, .. }
        | Record::Seen { key, .. }
        | Record::Floor { key, .. }
        | Record::Consumed { key, .. }
        | Record::Dropped { key, .. }
        | Record::Aside { key, .. } => key,
    }
}

impl Replay {
    /// Whether the snapshot knows what this record says.
    pub(crate) fn is_known(&self, lsn: Lsn, record: &Record<'_>) -> bool {
        let known = |user: UserIndex| lsn < self.loader.as_of(user);
        lsn < self.certain_from && self.users.find(key_of(record)).is_some_and(known)
    }

    /// A copy stands here of a message whose first record is lost.
    pub(crate) fn note_copy(
        &mut self,
        lsn: Lsn,
        len: u32,
        message: &Message<'_>,
        pair: PairKey,
        how: Numbering,
    ) {
        self.hlc.saw(message.id.ms());
        self.note_expiry(lsn, len, message);
        let user = self.user(message.key, message.to);
        // A lower number than the last one is as old as the message.
        let known = self.users[user].inbox_mut().pair(pair);
        if known.judge(how, message.send_seq) == Verdict::New {
            self.number(lsn, user, pair, message.send_seq, how, message.time_ms);
        }
    }

    /// A message that expires then was copied to `lsn`.
    pub(crate) fn note_expiry_at(&mut self, lsn: Lsn, len: u32, expires_ms: u64) {
        self.space.add(lsn, len, expires_ms);
        self.space.sub(lsn, len, 0);
    }

    /// What the snapshot knows of the user. The clock and the table of what
    /// expires are not the user's.
    fn skip(&mut self, lsn: Lsn, len: u32, record: &Record<'_>) {
        if let Some(message) = record.message() {
            self.hlc.saw(message.id.ms());
            self.note_expiry(lsn, len, message);
        }
    }

    fn note_expiry(&mut self, lsn: Lsn, len: u32, message: &Message<'_>) {
        self.note_expiry_at(lsn, len, message.expires_ms);
    }

    /// Something does not fit; what a snapshot may know already may be so.
    fn contradict(&mut self, lsn: Lsn) {
        self.contradictions += u64::from(lsn >= self.certain_from);
    }

    fn user(&mut self, key: UserKey, name: &[u8]) -> UserIndex {
        self.users.find_or_add(key, name).expect("replay has no bound of its own")
    }

    fn message(&mut self, lsn: Lsn, len: u32, message: &Message<'_>) {
        self.hlc.saw(message.id.ms());
        self.note_expiry(lsn, len, message);
        let user = self.user(message.key, message.to);
        let numbering = Numbering::of_record(message.device, message.flags);
        let pair = PairKey::new(message.from_key, message.device);
        self.number(lsn, user, pair, message.send_seq, numbering, message.time_ms);
        let inbox = self.users[user].inbox_mut();
        if message.inbox_seq <= inbox.last_seq() {
            return self.contradict(lsn);
        }
        // The first message after a restart leaps, see Inbox::next_seq.
        inbox.raise_floor(message.inbox_seq - 1);
        inbox.push(lsn, len);
    }

    /// What has been acknowledged since stays so.
    fn moved(&mut self, lsn: Lsn, len: u32, message: &Message<'_>) {
        self.hlc.saw(message.id.ms());
        self.note_expiry(lsn, len, message);
        let Some(at) = self.users.find(message.key) else { return self.contradict(lsn) };
        if let Some(inbox) = self.users[at].inbox.as_deref_mut() {
            inbox.repoint(message.inbox_seq, lsn);
        }
    }

    fn aside(&mut self, lsn: Lsn, key: UserKey, seq: u64, place: (Lsn, u32), had: Devices<'_>) {
        let Some(at) = self.users.find(key) else { return self.contradict(lsn) };
        let user = &mut self.users[at];
        let entry = Entry::had(place.0, place.1, user.positions(had));
        if !user.inbox_mut().set_aside(seq, entry) {
            self.contradict(lsn);
        }
        self.burn(at);
    }

    /// Its pair was told of when it was stored.
    fn returned(&mut self, lsn: Lsn, len: u32, message: &Message<'_>, from: u64, had: Devices<'_>) {
        self.hlc.saw(message.id.ms());
        self.note_expiry(lsn, len, message);
        let at = self.user(message.key, message.to);
        let inbox = self.users[at].inbox_mut();
        if message.inbox_seq <= inbox.last_seq() {
            inbox.repoint(message.inbox_seq, lsn);
        } else {
            inbox.raise_floor(message.inbox_seq - 1);
            inbox.push(lsn, len);
        }
        self.came_back(message, from, had);
    }

    /// The message waits under its new number, and under no other.
    pub(crate) fn came_back(&mut self, message: &Message<'_>, from: u64, had: Devices<'_>) {
        let Some(at) = self.users.find(message.key) else { return };
        let had_by = self.users[at].positions(had);
        let inbox = self.users[at].inbox_mut();
        if inbox.take_back(from).is_none() {
            let _ = inbox.make_hole(from);
        }
        inbox.mark_had(message.inbox_seq, had_by);
        self.burn(at);
    }

    fn dropped(&mut self, lsn: Lsn, key: UserKey, first: u64, last: u64) {
        let Some(at) = self.users.find(key) else { return self.contradict(lsn) };
        let Some(inbox) = self.users[at].inbox.as_deref_mut() else {
            return self.contradict(lsn);
        };
        for seq in first.max(inbox.first_seq())..=last.min(inbox.last_seq()) {
            let _ = inbox.make_hole(seq);
        }
        while let Some(seq) = inbox.shelf().and_then(|shelf| shelf.from(first)).map(|it| it.seq)
            && seq <= last
        {
            let _ = inbox.take_back(seq);
        }
        self.burn(at);
    }

    /// A number was accepted. It may be lower than the last one known if the
    /// pair was forgotten in between.
    fn number(
        &mut self,
        lsn: Lsn,
        user: UserIndex,
        key: PairKey,
        seq: u64,
        how: Numbering,
        time_ms: u64,
    ) {
        if how == Numbering::None {
            return;
        }
        let inbox = self.users[user].inbox_mut();
        let mut pair = inbox.pair(key);
        let hour = hours(time_ms);
        if pair.judge(how, seq) != Verdict::New {
            // Clocks that were set make this a guess: well before its time is
            // over no pair is forgotten, unless time ran backwards. Whoever wrote
            // this may have been told another time than we are.
            let kept_ms = self.options.pairs_kept_ms.min(PAIRS_KEPT_MS_MIN);
            let kept_h = hours(kept_ms) / 2;
            let is_fresh = (pair.touched_h..pair.touched_h.saturating_add(kept_h)).contains(&hour);
            if lsn < self.certain_from || is_fresh {
                return self.contradict(lsn);
            }
            pair = Pair::new(key);
        }
        pair.accept(how, seq);
        pair.touch(hour);
        inbox.put_pair(pair);
    }

    /// Pairs of which only a refusal is in the log count as used when it ended:
    /// later than they were, so that none is forgotten too early.
    fn date_pairs(&mut self, hour: u32) {
        for (user, key) in std::mem::take(&mut self.undated) {
            let inbox = self.users[user].inbox_mut();
            let mut pair = inbox.pair(key);
            if !pair.is_new() && pair.touched_h == u32::MAX {
                pair.touched_h = hour;
                inbox.put_pair(pair);
            }
        }
    }

    fn ack(&mut self, lsn: Lsn, key: UserKey, device: u64, seq: u64, exact: bool) {
        let Some(at) = self.users.find(key) else { return self.contradict(lsn) };
        let user = &mut self.users[at];
        let Some(position) = user.device_position(device) else { return self.contradict(lsn) };
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
            user.add_device(Device::new(device, cursor));
        }
        self.burn(at);
    }

    fn burn(&mut self, at: UserIndex) {
        self.users[at].burn(|_| {});
    }
}

#[cfg(test)]
mod tests {
    use wire::id::{Class, MessageId};

    use super::*;
    use crate::dedup::RECORD_NUMBERED_V1;
    use crate::snapshot::tests::{SEGMENT, options};

    const HOUR_MS: u64 = 3_600_000;

    /// Whether a log is refused in which alice writes to bob at these times
    /// under these numbers.
    fn is_refused(options: Options, device: u64, flags: u8, sent: &[(u64, u64)]) -> bool {
        let hasher = KeyHasher::new([1, 2]);
        let mut replay = Replay::new(options, hasher, SEGMENT);
        for (n, &(time_ms, send_seq)) in (1..).zip(sent) {
            let message = Message {
                key: hasher.key(b"bob"),
                to: b"bob",
                inbox_seq: n,
                id: MessageId::new(time_ms, n as u32, 0, 0),
                from: b"alice",
                from_key: hasher.key(b"alice"),
                device,
                send_seq,
                time_ms,
                expires_ms: u64::MAX,
                class: Class::Guaranteed,
                flags,
                body: b"",
            };
            replay.record(100 * n, 10, &Record::Message(message));
        }
        replay.contradictions() > 0
    }

    /// Before decision 0015 a number of v1 was taken that came late.
    #[test]
    fn late_numbers_of_older_logs_are_read_back() {
        let sent = |seqs: &[u64]| seqs.iter().map(|&seq| (HOUR_MS, seq)).collect::<Vec<_>>();
        assert!(!is_refused(options(), 0, RECORD_NUMBERED_V1, &sent(&[1, 2, 4, 3, 5])));
        assert!(is_refused(options(), 0, RECORD_NUMBERED_V1, &sent(&[1, 2, 4, 2])));
        assert!(is_refused(options(), 7, 0, &sent(&[1, 2, 4, 3])));
    }

    /// A longer memory than the log was written with refuses nothing that was
    /// right then.
    #[test]
    fn a_log_may_be_of_a_shorter_memory() {
        for (days, apart_h, expected) in
            [(1, 1, true), (1, 24, false), (7, 1, true), (7, 24, false), (3650, 24, false)]
        {
            let options = Options { pairs_kept_ms: days * 24 * HOUR_MS, ..options() };
            let sent = [(HOUR_MS, 1), ((1 + apart_h) * HOUR_MS, 1)];
            let is_refused = is_refused(options, 1, 0, &sent);
            assert_eq!(is_refused, expected, "{days} days, {apart_h} hours");
        }
    }
}
