//! What a shard was, put together from a damaged log.
//!
//! A start refuses whatever does not fit; here most things fit once one knows
//! that records between them are gone. A device whose registration is lost is
//! known by its acknowledgement, a message whose first copy is lost by the copy
//! that cleaning made, a number that somebody has by who acknowledged it.
//! Whatever an acknowledgement that survives says stays acknowledged.
//!
//! After it the numbering of every inbox goes on above what the lost bytes can
//! have held: a device that has seen a number takes another message under it for
//! a repetition, and would lose it. Somebody whom nothing left tells of may have
//! seen numbers, too, so there is a floor for all who come later
//! ([`Salvage::floor`]); it is in the log and in each snapshot as that of a user
//! without a name.

use std::collections::{BTreeMap, BTreeSet};

use wal::record::{Malformed, Message, Record};
use wal::salvage::{MESSAGE_BYTES_MIN, Rescue};
use wal::{Log, LogStart, Lsn, Restore};
use wire::id::UserKey;
use wire::limits::DEVICES_MAX;

use crate::dedup::{Numbering, PairKey};
use crate::inbox::{Entry, HOLES_MAX};
use crate::replay::Replay;
use crate::user::{Device, User, UserIndex, V1_DEVICE, floor_record};
use crate::{InboxContents, KeyHasher, Options, Shard};

/// Numbers that all inboxes together skip at most while messages wait in them:
/// each costs 16 bytes until those are acknowledged.
const HOLES_TOTAL_MAX: u64 = 4 << 20;

/// Numbers that an inbox skips in which something waits, when only a snapshot
/// told of those without a message: far more than logins and restarts leave. With
/// twice as many an inbox is full until its oldest messages are acknowledged.
const SKIPPED_UNKNOWN: u64 = 1 << 15;

/// Numbers that an inbox is thought to have given out in each millisecond since
/// 1970, at most: what goes on above them goes on above all there ever were, and
/// above those of an earlier repair.
const NUMBERS_PER_MS: u64 = 1000;
/// The same for a clock that says 1970.
const NUMBERS_MIN: u64 = 1 << 40;
/// Later than any clock; all numbers stay below 2^53.
const MS_MAX: u64 = 1 << 42;

/// A shard that is put together.
pub struct Salvage {
    replay: Replay,
    /// Bytes of the log that could not be read, since the snapshot.
    lost_bytes: u64,
    /// What there was before the log that is left is not known, and the wall
    /// clock says this.
    forgotten_ms: Option<u64>,
    /// By user, what is known to be missing.
    missing: BTreeMap<UserIndex, Missing>,
    /// What was given up, as runs of neighbours: user, first and last seq.
    given_up: Vec<(UserIndex, u64, u64)>,
    /// What protocol v1 acknowledged one by one while nothing stood there: copies
    /// of it may follow, of what waited behind something else.
    acked_by_v1: BTreeSet<(UserKey, u64)>,
}

/// What is missing in one inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Messages that waited and whose bytes are damaged.
    pub given_up: u64,
    /// Damaged records in the log that still show this inbox's name: most likely
    /// messages for it.
    pub recognised: u64,
    /// Numbers that no record tells of. Some were messages, some were skipped
    /// by the server when it started.
    pub unknown: u64,
}

/// A message that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    user: UserIndex,
    /// Its number in the inbox.
    pub inbox_seq: u64,
    /// Where its record stands.
    pub lsn: Lsn,
    /// How long that is, bytes.
    pub len: u32,
}

impl Salvage {
    /// An empty shard, whose log has segments of this size.
    pub fn new(options: Options, hasher: KeyHasher, segment_bytes: u64) -> Salvage {
        let replay = Replay::new(options, hasher, segment_bytes);
        Salvage {
            replay,
            lost_bytes: 0,
            forgotten_ms: None,
            missing: BTreeMap::new(),
            given_up: Vec::new(),
            acked_by_v1: BTreeSet::new(),
        }
    }

    /// What waits, in the order of the log.
    pub fn waiting(&self) -> Vec<Placed> {
        let mut all = Vec::new();
        for (user, it) in (0..).zip(self.replay.users().iter()) {
            all.extend(it.waiting_seqs().map(|(inbox_seq, entry)| Placed {
                user,
                inbox_seq,
                lsn: entry.lsn,
                len: entry.len,
            }));
        }
        all.sort_unstable_by_key(|placed| placed.lsn);
        all
    }

    /// Whether this is the message that should stand there.
    pub fn is_it(&self, placed: &Placed, message: &Message<'_>) -> bool {
        self.replay.users()[placed.user].key == message.key && placed.inbox_seq == message.inbox_seq
    }

    /// A message that waits cannot be read: its number leads to nothing.
    pub fn give_up(&mut self, placed: &Placed) {
        let inbox = self.replay.users_mut()[placed.user].inbox_mut();
        let seq = placed.inbox_seq;
        if inbox.make_hole(seq).or_else(|| inbox.take_back(seq)).is_none() {
            return;
        }
        self.missing.entry(placed.user).or_default().given_up += 1;
        match self.given_up.last_mut() {
            Some((user, _, last)) if *user == placed.user && *last + 1 == placed.inbox_seq => {
                *last = placed.inbox_seq;
            }
            _ => self.given_up.push((placed.user, placed.inbox_seq, placed.inbox_seq)),
        }
    }

    /// What was given up, as the log is to say it.
    pub fn dropped(&self) -> impl Iterator<Item = Record<'static>> {
        let users = self.replay.users();
        let record = |&(user, first, last)| Record::Dropped { key: users[user].key, first, last };
        self.given_up.iter().map(record)
    }

    /// There were users of whom nothing is left: no snapshot, and not the whole
    /// log. Numbers go on above this time, ms: the wall clock's or the log's,
    /// whichever is later, because a clock may have been set back since an
    /// earlier repair did the same.
    pub fn forget(&mut self, ms: u64) {
        self.forgotten_ms = Some(ms);
    }

    /// The highest reading of the clock that ids were drawn from, ms.
    pub fn hlc_ms(&self) -> u64 {
        self.replay.hlc_ms()
    }

    /// The number above which the inboxes of users begin who are not known, when
    /// they may have been.
    fn new_floor(&self) -> Option<u64> {
        let known = self.replay.users().floor();
        let lost_max = self.lost_max();
        match self.forgotten_ms {
            Some(ms) => {
                let ms = ms.max(self.replay.hlc_ms()).min(MS_MAX);
                Some((known + lost_max).max(NUMBERS_MIN + ms * NUMBERS_PER_MS))
            }
            None => (lost_max > 0).then_some(known + lost_max),
        }
    }

    /// What is left of the inbox of the user with this name, if the user is known.
    pub fn inbox(&self, name: &[u8]) -> Option<InboxContents> {
        self.replay.inbox(name)
    }

    /// The same as the log is to say it.
    pub fn floor(&self) -> Option<Record<'static>> {
        self.new_floor().map(floor_record)
    }

    /// Messages that the lost bytes held, at most.
    fn lost_max(&self) -> u64 {
        self.lost_bytes.div_ceil(MESSAGE_BYTES_MIN)
    }

    /// A message that waits was copied to `lsn`.
    pub fn moved_to(&mut self, placed: &Placed, lsn: Lsn, expires_ms: u64) {
        self.replay.users_mut()[placed.user].inbox_mut().repoint(placed.inbox_seq, lsn);
        self.replay.note_expiry_at(lsn, placed.len, expires_ms);
    }

    /// A record that changes nothing, so that the log has one more commit; `None`
    /// when there is nothing that it could repeat.
    pub fn idle(&self) -> Option<Record<'_>> {
        let users = self.replay.users();
        users.seen_record().or_else(|| self.floor()).or_else(|| users.floor_record())
    }

    /// The inboxes of which something is known to be missing.
    pub fn missing(&self) -> impl Iterator<Item = (&[u8], Missing)> {
        let users = self.replay.users();
        let missing = self.missing.iter().filter(|(_, it)| **it != Missing::default());
        missing.map(move |(user, missing)| (&users[*user].name[..], *missing))
    }

    /// Users known, and messages that wait for them.
    pub fn contents(&self) -> crate::Contents {
        self.replay.contents()
    }

    /// The shard, whose log goes on at `start`, as [`Replay::finish`].
    pub fn finish(
        mut self,
        start: &LogStart,
        log: Log,
        present: impl IntoIterator<Item = u64>,
    ) -> Shard {
        self.raise_floors();
        self.replay.finish(start, log, present)
    }

    /// Has every numbering go on above what can be lost of it.
    fn raise_floors(&mut self) {
        let Some(floor) = self.new_floor() else { return };
        let (is_forgotten, lost_max) = (self.forgotten_ms.is_some(), self.lost_max());
        let leapt = if is_forgotten { SKIPPED_UNKNOWN } else { 0 };
        let users = self.replay.users_mut();
        users.raise_floor(floor);
        let waits = |user: &&crate::user::User| user.waiting().next().is_some();
        let waiting = users.iter().filter(waits).count() as u64;
        let each_max = HOLES_TOTAL_MAX / waiting.max(1);
        for at in 0..users.len() as UserIndex {
            let user = &mut users[at];
            for device in 0..user.devices.len() {
                user.advance(device);
            }
            user.burn(|_| {});
            let inbox = user.inbox_mut();
            let last = inbox.last_seq();
            inbox.raise_floor(match inbox.len() {
                0 if is_forgotten => floor.max(last + lost_max),
                0 => last + lost_max,
                _ => last + (lost_max + leapt).min(each_max),
            });
        }
    }

    /// A message, or the copy of one, that may be the first that is known of it.
    fn message(&mut self, lsn: Lsn, len: u32, message: &Message<'_>) {
        let Some(at) = self.replay.users_mut().find_or_add(message.key, message.to) else { return };
        let is_lossy = self.lost_bytes > 0;
        let is_acked = self.acked_by_v1.contains(&(message.key, message.inbox_seq));
        let entry = Entry::new(lsn, len, is_acked);
        let user = &mut self.replay.users_mut()[at];
        let cursor = user.cursor_min();
        let inbox = user.inbox_mut();
        let seq = message.inbox_seq;
        let is_far_below = inbox.first_seq().saturating_sub(seq) > HOLES_MAX;
        if seq > cursor && inbox.len() == 0 && is_far_below {
            // It began at the floor of those who are not known, and was known.
            // Its devices may have been heard of before its messages.
            inbox.begin_at(seq.max(1));
        }
        let last = inbox.last_seq();
        if seq > last {
            let unknown = seq - last - 1;
            if is_lossy && (1..=HOLES_MAX).contains(&unknown) {
                self.missing.entry(at).or_default().unknown += unknown;
            }
            raise(user, seq - 1);
            user.inbox_mut().push_entry(entry);
        } else if seq > cursor && inbox.put_back(seq, entry) {
            let missing = self.missing.entry(at).or_default();
            missing.unknown = missing.unknown.saturating_sub(1);
        }
    }

    /// A copy tells what the original would have told.
    fn copy(&mut self, lsn: Lsn, len: u32, record: &Record<'_>, message: &Message<'_>) {
        let users = self.replay.users();
        let is_known = users.find(message.key).is_some_and(|at| {
            let inbox = users[at].inbox.as_deref();
            inbox.is_some_and(|inbox| inbox.waits(message.inbox_seq))
        });
        if is_known {
            return self.replay.record(lsn, len, record);
        }
        self.message(lsn, len, message);
        let numbering = Numbering::of_record(message.device, message.flags);
        let pair = PairKey::new(message.from_key, message.device);
        self.replay.note_copy(lsn, len, message, pair, numbering);
        if let Record::Returned { from, had, .. } = *record {
            self.replay.came_back(message, from, had);
        }
    }

    /// Makes room for what an acknowledgement or a registration says.
    fn expect(&mut self, record: &Record<'_>) {
        let (key, device, seq, exact) = match *record {
            Record::Ack { key, device, seq, exact } => (key, device, seq, exact),
            Record::Device { key, name, device, cursor, gone: false } => {
                let _ = self.replay.users_mut().find_or_add(key, name);
                (key, device, cursor, false)
            }
            Record::Floor { key, name, seq } if !name.is_empty() => {
                if let Some(at) = self.replay.users_mut().find_or_add(key, name) {
                    raise(&mut self.replay.users_mut()[at], seq);
                }
                return;
            }
            _ => return,
        };
        let Some(at) = self.replay.users().find(key) else { return };
        let user = &mut self.replay.users_mut()[at];
        if seq > user.last_seq() {
            raise(user, seq);
        }
        let is_known = user.device_position(device).is_some();
        if matches!(record, Record::Ack { .. }) && !is_known && user.devices.len() < DEVICES_MAX {
            // Nobody knows what v1 had acknowledged: copies of what it had not may
            // follow, also of what stood before all that is known.
            let is_v1 = exact && device == V1_DEVICE;
            user.add_device(Device::new(device, if is_v1 { 0 } else { seq }));
        }
    }

    /// Protocol v1 acknowledges a single message. Its cursor stays: it would pass
    /// over numbers that lead to nothing yet, and a copy of what waits under one
    /// of them may follow. [`Salvage::finish`] moves it.
    fn ack_by_v1(&mut self, key: UserKey, seq: u64) {
        let at = self.replay.users().find(key);
        let inbox = at.and_then(|at| self.replay.users_mut()[at].inbox.as_deref_mut());
        if !inbox.is_some_and(|inbox| inbox.mark_acked_by_v1(seq)) {
            self.acked_by_v1.insert((key, seq));
        }
    }
}

/// Has the numbering go on after `seq`. So far as a repair leaps only an inbox in
/// which nothing waited leaps: the acknowledgements of what seems to are lost.
fn raise(user: &mut User, seq: u64) {
    let inbox = user.inbox_mut();
    let last = inbox.last_seq();
    if seq.saturating_sub(last) > HOLES_MAX {
        inbox.burn(last, |_| {});
    }
    inbox.raise_floor(seq);
}

impl Rescue for Salvage {
    fn lost(&mut self, bytes: u64, likely: Option<&Record<'_>>) {
        self.lost_bytes += bytes;
        let Some(message) = likely.and_then(|it| it.message()) else { return };
        let users = self.replay.users();
        let Some(at) = users.find(message.key) else { return };
        if *users[at].name == *message.to {
            self.missing.entry(at).or_default().recognised += 1;
        }
    }
}

impl Restore for Salvage {
    fn reset(&mut self) {
        self.replay.reset();
        (self.lost_bytes, self.forgotten_ms, self.missing) = (0, None, BTreeMap::new());
        self.given_up.clear();
        self.acked_by_v1.clear();
    }

    fn state(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        self.replay.state(payload)
    }

    fn space(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        self.replay.space(payload)
    }

    fn loaded(&mut self, start: LogStart, end: Lsn) {
        self.replay.loaded(start, end);
    }

    fn record(&mut self, lsn: Lsn, len: u32, record: &Record<'_>) {
        if self.replay.is_known(lsn, record) {
            return self.replay.record(lsn, len, record);
        }
        match record {
            // The pair and the clock are the replay's, which finds the number
            // taken if the entry is here already.
            Record::Message(message) => {
                self.message(lsn, len, message);
                self.replay.record(lsn, len, record);
            }
            Record::Moved(message) | Record::Returned { message, .. } => {
                self.copy(lsn, len, record, message);
            }
            Record::Ack { key, seq, exact: true, .. } => {
                self.expect(record);
                self.ack_by_v1(*key, *seq);
            }
            _ => {
                self.expect(record);
                self.replay.record(lsn, len, record);
            }
        }
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        self.replay.needed()
    }
}

#[cfg(test)]
mod tests {
    use wire::id::{Class, MessageId, UserKey};

    use super::*;

    const NAME: &[u8] = b"bob";

    fn salvage() -> Salvage {
        let options = Options {
            shard: 0,
            shards: 1,
            node: 0,
            users_max: usize::MAX,
            waiting_messages_max: usize::MAX,
            pairs_max: usize::MAX,
            inbox_messages_max: usize::MAX,
            inbox_bytes_max: u64::MAX,
            retention_ms: 0,
            pairs_kept_ms: 1000,
            handshake_ms: 0,
            logins_per_second: 0,
            vouch_after_ms: crate::VOUCH_AFTER_MS,
        };
        Salvage::new(options, hasher(), 1 << 20)
    }

    fn hasher() -> KeyHasher {
        KeyHasher::new([1, 2])
    }

    fn key() -> UserKey {
        hasher().key(NAME)
    }

    fn message(inbox_seq: u64) -> Message<'static> {
        Message {
            key: key(),
            to: NAME,
            inbox_seq,
            id: MessageId::new(inbox_seq, 0, 0, 0),
            from: b"alice",
            from_key: UserKey(7),
            device: 1,
            send_seq: inbox_seq,
            time_ms: 5,
            expires_ms: 0,
            class: Class::Guaranteed,
            flags: 0,
            body: b"",
        }
    }

    fn ack(device: u64, seq: u64) -> Record<'static> {
        Record::Ack { key: key(), device, seq, exact: false }
    }

    fn fed(records: &[Record<'_>]) -> InboxContents {
        let mut salvage = salvage();
        salvage.lost(1000, None);
        for (lsn, record) in (100..).zip(records) {
            salvage.record(lsn, 1, record);
        }
        salvage.replay.inbox(NAME).expect("bob is known")
    }

    /// The seqs and places of what waits.
    fn waiting(records: &[Record<'_>]) -> Vec<(u64, Lsn)> {
        fed(records).waiting.iter().map(|it| (it.inbox_seq, it.lsn)).collect()
    }

    #[test]
    fn an_acknowledgement_tells_of_its_device() {
        let records = [Record::Message(message(3)), Record::Message(message(4)), ack(9, 3)];
        assert_eq!(waiting(&records), [(4, 101)]);
        assert_eq!(fed(&records).devices, [(9, 3)]);
        // And of the messages that it was for.
        let inbox = fed(&[Record::Message(message(1)), ack(9, 6)]);
        assert_eq!((inbox.last_seq, inbox.waiting.len()), (6, 0));
    }

    #[test]
    fn a_copy_stands_for_its_lost_original() {
        let (new, copy) = (|seq| Record::Message(message(seq)), |seq| Record::Moved(message(seq)));
        assert_eq!(waiting(&[copy(5)]), [(5, 100)]);
        assert_eq!(waiting(&[new(4), new(6), copy(5)]), [(4, 100), (5, 102), (6, 101)]);
        assert_eq!(waiting(&[new(6), copy(2), copy(5)]), [(2, 101), (5, 102), (6, 100)]);
        assert_eq!(waiting(&[new(5), copy(5)]), [(5, 101)]);
        // Not for one that has been acknowledged, or dropped again.
        assert_eq!(waiting(&[new(6), ack(9, 5), copy(5)]), [(6, 100)]);
        let dropped = Record::Dropped { key: key(), first: 5, last: 5 };
        assert_eq!(waiting(&[new(6), copy(5), dropped]), [(6, 100)]);
    }

    fn acked_by_v1(seq: u64) -> Record<'static> {
        Record::Ack { key: key(), device: V1_DEVICE, seq, exact: true }
    }

    fn registered(device: u64, cursor: u64) -> Record<'static> {
        Record::Device { key: key(), name: NAME, device, cursor, gone: false }
    }

    /// Protocol v1 leaves gaps in what it acknowledges; what waits in one of them
    /// may have nothing left but a copy.
    #[test]
    fn a_copy_stands_behind_single_acknowledgements() {
        let (new, copy) = (|seq| Record::Message(message(seq)), |seq| Record::Moved(message(seq)));
        let v1 = registered(V1_DEVICE, 0);
        // What is acknowledged behind it stays in line until its turn comes.
        let records = [v1, new(3), acked_by_v1(3), copy(2), new(4)];
        assert_eq!(waiting(&records), [(2, 103), (3, 101), (4, 104)]);
        let records = [&records[..], &[acked_by_v1(2)]].concat();
        assert_eq!(waiting(&records), [(4, 104)]);
        // Where its registration is lost, too.
        assert_eq!(waiting(&[new(78), acked_by_v1(66), copy(71)]), [(71, 102), (78, 100)]);
        // And not what was acknowledged, be it before its user is known.
        let records = [acked_by_v1(75), new(78), acked_by_v1(73), copy(71), copy(73), copy(75)];
        assert_eq!(waiting(&records), [(71, 103), (73, 104), (75, 105), (78, 101)]);
        let records = [&records[..], &[acked_by_v1(71)]].concat();
        assert_eq!(waiting(&records), [(78, 101)]);
    }

    /// A log that is read again after a repair without snapshots: those who are
    /// not known begin at its floor, but this one had been known.
    #[test]
    fn a_device_heard_of_first_keeps_the_floor_away() {
        let floor = Record::Floor { key: UserKey(0), name: b"", seq: 1 << 50 };
        let new = |seq| Record::Message(message(seq));
        assert_eq!(waiting(&[floor, registered(9, 4), ack(9, 5), new(7)]), [(7, 103)]);
        let records = [floor, registered(V1_DEVICE, 4), acked_by_v1(5), new(7)];
        assert_eq!(waiting(&records), [(7, 103)]);
        assert_eq!(waiting(&[floor, registered(9, 4), ack(9, 7), new(7)]), []);
    }

    /// Numbers before the first one, and the one among them that is filled.
    #[test]
    fn holes_before_a_copy_are_counted() {
        let records = [
            Record::Message(message(6)),
            Record::Moved(message(2)),
            Record::Moved(message(5)),
            ack(9, 4),
        ];
        assert_eq!(waiting(&records), [(5, 102), (6, 100)]);
        let mut inbox = crate::inbox::Inbox::default();
        inbox.raise_floor(5);
        inbox.push(100, 1);
        assert!(inbox.put_back(2, Entry::new(101, 1, false)));
        assert_eq!((inbox.len(), inbox.holes(), inbox.waiting()), (5, 3, 2));
    }

    #[test]
    fn what_a_copy_tells_of_its_sender_counts() {
        let mut salvage = salvage();
        salvage.record(1, 1, &Record::Moved(message(5)));
        assert_eq!(salvage.replay.inbox(NAME).expect("bob is known").pairs, 1);
    }

    #[test]
    fn what_is_missing_is_counted_for_its_inbox() {
        let mut salvage = salvage();
        salvage.record(1, 1, &Record::Message(message(1)));
        salvage.lost(200, Some(&Record::Message(message(2))));
        salvage.record(3, 1, &Record::Message(message(4)));
        let placed = salvage.waiting()[0];
        salvage.give_up(&placed);
        let missing = Missing { given_up: 1, recognised: 1, unknown: 2 };
        assert_eq!(salvage.missing().collect::<Vec<_>>(), [(NAME, missing)]);
        let dropped = Record::Dropped { key: key(), first: 1, last: 1 };
        assert_eq!(salvage.dropped().collect::<Vec<_>>(), [dropped]);
    }

    /// Somebody may have seen the numbers that were lost.
    #[test]
    fn numbers_go_on_above_what_was_lost() {
        let mut salvage = salvage();
        salvage.record(1, 1, &Record::Message(message(8)));
        salvage.lost(10 * MESSAGE_BYTES_MIN, None);
        salvage.raise_floors();
        let inbox = salvage.replay.inbox(NAME).expect("bob is known");
        assert_eq!((inbox.last_seq, inbox.waiting.len()), (18, 1));
        salvage.record(2, 1, &ack(9, 8));
        salvage.raise_floors();
        assert_eq!(salvage.replay.inbox(NAME).expect("bob is known").last_seq, 28);
    }

    /// So may somebody have of whom nothing is left.
    #[test]
    fn those_who_are_forgotten_begin_above_what_was_lost() {
        let mut salvage = salvage();
        salvage.lost(10 * MESSAGE_BYTES_MIN, None);
        assert_eq!(salvage.floor(), Some(Record::Floor { key: UserKey(0), name: b"", seq: 10 }));
        salvage.raise_floors();
        salvage.record(1, 1, &ack(9, 8));
        let carol = salvage.replay.users_mut().find_or_add(UserKey(5), b"carol").expect("room");
        assert_eq!(salvage.replay.users()[carol].last_seq(), 10);
    }

    /// Without a snapshot, and with a log that begins anywhere.
    #[test]
    fn what_is_forgotten_is_leapt_over() {
        let mut salvage = salvage();
        salvage.record(1, 1, &Record::Message(message(8)));
        let carol = hasher().key(b"carol");
        salvage.record(2, 1, &Record::Seen { key: carol, name: b"carol", at_s: 3 });
        salvage.forget(1_800_000_000_000);
        let floor = salvage.new_floor().expect("users are forgotten");
        assert!((1_800_000_000_000_000..1 << 53).contains(&floor), "{floor}");
        salvage.raise_floors();
        let bob = salvage.replay.inbox(NAME).expect("bob is known");
        assert_eq!((bob.last_seq, bob.waiting.len()), (8 + SKIPPED_UNKNOWN, 1));
        let carol = salvage.replay.inbox(b"carol").expect("carol is known");
        assert_eq!(carol.last_seq, floor);
        salvage.forget(1_800_000_000_001);
        assert!(salvage.new_floor().expect("again") > floor, "a later one is higher");
        // What is left may be of before an earlier leap, and numbers lost on top.
        salvage.lost(10 * MESSAGE_BYTES_MIN, None);
        salvage.raise_floors();
        let bob = salvage.replay.inbox(NAME).expect("bob is known");
        assert_eq!(bob.last_seq, 8 + 2 * SKIPPED_UNKNOWN + 10);
    }

    /// A log that is read again after such a repair, without its snapshots.
    #[test]
    fn a_leap_tells_that_nothing_waited() {
        let floor = Record::Floor { key: UserKey(0), name: b"", seq: 1 << 50 };
        let new = |seq| Record::Message(message(seq));
        let above = (1 << 50) + 1;
        assert_eq!(waiting(&[new(7), floor, new(above)]), [(above, 102)]);
        assert_eq!(waiting(&[floor, new(above), ack(9, above)]), []);
        assert_eq!(waiting(&[new(7), ack(9, above)]), []);
        let raised = Record::Floor { key: key(), name: NAME, seq: above };
        assert_eq!(waiting(&[new(7), raised]), []);
        // One in which something waited has not leapt.
        assert_eq!(waiting(&[floor, Record::Moved(message(7)), new(8)]), [(7, 101), (8, 102)]);
    }
}
