//! Getting space back: which messages wait in which segment, copying what is
//! left of a mostly dead one to the log's end, having the dead deleted.
//!
//! One segment is walked through at a time, piece by piece: a `Survey` asks for
//! bytes, `Surveyed` brings them, and each message of them that an inbox still
//! points at is copied, or given up if it has expired. A sweep only gives up.
//! Segments whose readers are about to empty them are left to those. Deleting
//! needs more than emptiness: the log must be durable up to what emptied the
//! segment, no snapshot that is kept may need it, and nobody may be reading from
//! it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

use wal::clean::{Space, Walker};
use wal::record::{Message, Record};
use wal::{BLOCK, Lsn, segment};
use wire::id::UserKey;

use crate::Shard;
use crate::deliver::is_expired;
use crate::io::{Effect, Effects, Now};
use crate::user::{NO_SLOT, UserIndex};

/// Log bytes copied for one survey before others have their turn.
const COPY_BYTES_MAX: u64 = 64 << 10;
/// After so long a segment that could not be read is tried again.
const RETRY_NS: u64 = 30_000_000_000;
/// The longest read of a survey; longer than any record.
const SURVEY_BYTES_MAX: u32 = 256 << 10;

/// More than what gives up a run takes in the log.
const RUN_BYTES_MAX: usize = 256;

/// See the module.
pub(crate) struct Cleaner {
    pub(crate) space: Space,
    segment_bytes: u64,
    walk: Option<Walk>,
    /// A survey has not been answered.
    is_surveying: bool,
    /// What has expired there and is not given up yet.
    run: Option<Run>,
    /// When segments that could not be read are tried again.
    retries: VecDeque<(u64, u64)>,
    /// Of these, and of those that are damaged, the operator has heard.
    unreadable: BTreeSet<u64>,
    /// Reads for devices under way, by segment.
    reads: BTreeMap<u64, u32>,
}

/// Through the segment that is being cleaned.
struct Walk {
    walker: Walker,
    /// A sweep, and when it began: what has expired is given up, nothing is
    /// copied.
    sweep_ms: Option<u64>,
}

impl Walk {
    /// Whether the segment goes on behind these bytes.
    fn lacks(&self, bytes: &[u8]) -> bool {
        self.walker.want().is_some_and(|want| bytes.len() < want.len as usize)
    }
}

/// Neighbours in one inbox that have expired: one record gives all of them up.
struct Run {
    user: UserIndex,
    first: u64,
    last: u64,
}

impl Cleaner {
    pub(crate) fn new(segment_bytes: u64) -> Cleaner {
        Cleaner {
            space: Space::new(segment_bytes),
            segment_bytes,
            walk: None,
            is_surveying: false,
            run: None,
            retries: VecDeque::new(),
            unreadable: BTreeSet::new(),
            reads: BTreeMap::new(),
        }
    }

    /// A read of the log for a device begins at `lsn`.
    pub(crate) fn read_begins(&mut self, lsn: Lsn) {
        *self.reads.entry(segment::index(lsn, self.segment_bytes)).or_default() += 1;
    }

    /// It has ended.
    pub(crate) fn read_ends(&mut self, lsn: Lsn) {
        let segment = segment::index(lsn, self.segment_bytes);
        let Some(count) = self.reads.get_mut(&segment) else { return };
        *count -= 1;
        if *count == 0 {
            self.reads.remove(&segment);
        }
    }

    /// Whether somebody reads from this segment.
    fn is_read(&self, segment: u64) -> bool {
        let is_walked = self.walk.as_ref().is_some_and(|walk| walk.walker.segment() == segment);
        is_walked || self.reads.contains_key(&segment)
    }
}

impl Shard {
    /// Goes on with cleaning as far as it can.
    pub(crate) fn clean(&mut self, now: Now, out: &mut Effects) {
        if self.log.is_poisoned() {
            return;
        }
        self.return_to_unread(now);
        if !self.draining {
            self.survey(now, out);
        }
        self.discard(out);
    }

    /// Whether a turn should look at cleaning once more after a write.
    pub(crate) fn is_cleaning(&self) -> bool {
        self.cleaner.walk.is_some()
    }

    /// Asks for the next piece, of another segment if this one is done.
    fn survey(&mut self, now: Now, out: &mut Effects) {
        while !self.cleaner.is_surveying {
            self.leave_what_does_not_fit(now);
            if !self.has_room_to_copy(self.walked()) {
                return self.end_dead_walk();
            }
            self.give_up_run(now);
            let Some(Walk { walker, .. }) = &self.cleaner.walk else {
                match self.choose(now) {
                    Some(walk) => self.cleaner.walk = Some(walk),
                    None => return,
                }
                continue;
            };
            let is_dead = self.cleaner.space.live(walker.segment()).1 == 0;
            match walker.want() {
                Some(want) if !is_dead => {
                    let (lsn, len) = (want.lsn, want.len);
                    let len_min = if self.copies_at_once() { len } else { want.len_min };
                    self.cleaner.is_surveying = true;
                    out.push(Effect::Survey { lsn, len_min, len });
                }
                _ => self.end_walk(),
            }
        }
    }

    /// The segment that is being cleaned.
    fn walked(&self) -> Option<u64> {
        self.cleaner.walk.as_ref().map(|walk| walk.walker.segment())
    }

    /// What was appended leaves at least half of the log's room to others, and
    /// the longest record that may be copied next would still fit.
    fn has_room_to_copy(&self, segment: Option<u64>) -> bool {
        let options = self.log.options();
        let undurable = self.log.end() - self.log.durable();
        let left = segment.map_or(0, |segment| self.cleaner.space.live(segment).0);
        let longest = options.record_bytes_max().min(left as usize + RUN_BYTES_MAX);
        undurable <= options.tail_bytes as Lsn / 2 && self.log.room_to_clean(longest)
    }

    fn choose(&self, now: Now) -> Option<Walk> {
        let (space, durable) = (&self.cleaner.space, self.log.durable());
        // On a full disk the reserve must last until what it emptied is gone.
        if self.storage_full && space.dead(durable, durable).next().is_some() {
            return None;
        }
        let victim = if self.is_at_the_end_of_its_place() {
            space.victim_for(now.wall_ms, durable, self.copied_max())
        } else {
            space.victim(now.wall_ms, durable, self.bytes_beside())
        };
        let sweep_ms = victim.is_none().then_some(now.wall_ms);
        let segment = victim.or_else(|| space.expired(now.wall_ms, durable))?;
        let bytes = self.cleaner.segment_bytes;
        let walker = Walker::new(self.salt, segment, bytes, SURVEY_BYTES_MAX);
        Some(Walk { walker, sweep_ms })
    }

    /// Whether the next records, or the longest that there may be, have to wait
    /// for a place on the disk.
    pub fn lacks_place(&self) -> bool {
        self.is_at_the_end_of_its_place() || self.log.lacks_place()
    }

    /// On a full disk nothing but what gives space back has any place left.
    fn is_at_the_end_of_its_place(&self) -> bool {
        self.storage_full && !self.log.room(BLOCK)
    }

    /// Whether a segment has to be read and copied as a whole: what is left of the
    /// place goes into one write, which the first part of it would close.
    fn copies_at_once(&self) -> bool {
        let one_write = COPY_BYTES_MAX.min(self.log.options().tail_bytes as Lsn / 2);
        self.is_at_the_end_of_its_place()
            && self.cleaner.segment_bytes <= SURVEY_BYTES_MAX.into()
            && self.log.place_left() <= one_write
    }

    /// So much can be copied to the place that is left: at once all but what frames
    /// one write, with many that may not be full half of it.
    fn copied_max(&self) -> u64 {
        let left = self.log.place_left();
        if self.copies_at_once() { left.saturating_sub(2 * RUN_BYTES_MAX as Lsn) } else { left / 2 }
    }

    /// Copying a part of a segment wins nothing.
    fn leave_what_does_not_fit(&mut self, now: Now) {
        let Some(Walk { walker, sweep_ms: None }) = &self.cleaner.walk else { return };
        let left = self.cleaner.space.unexpired(walker.segment(), now.wall_ms);
        if self.is_at_the_end_of_its_place() && left > self.copied_max() {
            self.cleaner.walk = None;
        }
    }

    /// A segment can be let go of when the log goes on in the next one. Where only
    /// cleaning has a place there, nothing else would bring it there.
    pub(crate) fn leave_segment(&mut self) {
        let is_at_rest = self.log.end() == self.log.durable();
        if self.is_at_the_end_of_its_place() && is_at_rest && self.log.leave_segment() {
            self.no_more_vouched();
        }
    }

    /// Where there is no place for anything, a walk that has nothing to do keeps
    /// its segment from being deleted.
    fn end_dead_walk(&mut self) {
        let is_dead = |segment| self.cleaner.space.live(segment).1 == 0;
        if self.lacks_place() && self.walked().is_some_and(is_dead) {
            self.end_walk();
        }
    }

    fn end_walk(&mut self) {
        let Walk { walker, sweep_ms } = self.cleaner.walk.take().expect("a walk ends once");
        self.metrics.counters.segments_cleaned += 1;
        if let Some(began_ms) = sweep_ms {
            return self.cleaner.space.swept(walker.segment(), began_ms);
        }
        let (_, left) = self.cleaner.space.live(walker.segment());
        debug_assert!(left == 0, "{left} messages of segment {} not found", walker.segment());
        if left > 0 {
            // Nothing is deleted that something still points at.
            self.cleaner.space.leave(walker.segment());
        }
    }

    /// The bytes of a survey arrived; `None` when they could not be read.
    pub(crate) fn surveyed(&mut self, now: Now, lsn: Lsn, bytes: Option<&[u8]>, out: &mut Effects) {
        if !std::mem::take(&mut self.cleaner.is_surveying) || self.log.is_poisoned() {
            return;
        }
        let mut walk = self.cleaner.walk.take().expect("a survey is of a walk");
        let is_sound = match bytes {
            // Others may have taken the room while the read was under way.
            Some(_) if !self.has_room_to_copy(Some(walk.walker.segment())) => true,
            // It was asked for when there was place for several writes.
            Some(bytes) if self.copies_at_once() && walk.lacks(bytes) => true,
            Some(bytes) => self.copy(now, &mut walk, lsn, bytes),
            None => false,
        };
        if is_sound {
            self.cleaner.walk = Some(walk);
        } else {
            self.leave(now, walk.walker.segment(), (lsn, bytes.is_some()), out);
        }
        self.clean(now, out);
    }

    /// The segment is left alone: for good if its bytes are not what they should
    /// be, until later if the disk did not give them.
    fn leave(&mut self, now: Now, segment: u64, (lsn, is_read): (Lsn, bool), out: &mut Effects) {
        self.cleaner.space.leave(segment);
        if !is_read {
            self.cleaner.retries.push_back((now.mono_ns + RETRY_NS, segment));
        }
        if self.cleaner.unreadable.insert(segment) {
            self.metrics.counters.damaged += 1;
            out.push(Effect::Damaged { lsn });
        }
    }

    /// Time has passed since these could not be read.
    fn return_to_unread(&mut self, now: Now) {
        while let Some((due_ns, segment)) = self.cleaner.retries.front().copied()
            && due_ns <= now.mono_ns
        {
            self.cleaner.retries.pop_front();
            self.cleaner.space.return_to(segment);
        }
    }

    /// Copies what is left in these bytes, or the beginning of it, or gives up
    /// what has expired; whether they are what they should be.
    fn copy(&mut self, now: Now, walk: &mut Walk, lsn: Lsn, bytes: &[u8]) -> bool {
        let Walk { walker, sweep_ms } = walk;
        // Were the clock set back, less would be given up from here on.
        *sweep_ms = sweep_ms.map(|began_ms| began_ms.min(now.wall_ms));
        let (before, segment) = (walker.want(), walker.segment());
        let copied_max = self.log.end() + COPY_BYTES_MAX;
        let walked = walker.feed(lsn, bytes, &mut |lsn, len, record| {
            if let Some(message) = record.message() {
                self.keep(now, lsn, len, (&record, message), sweep_ms.is_some());
            }
            let is_enough = self.log.end() >= copied_max || !self.has_room_to_copy(Some(segment));
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        walked.is_ok() && walker.want() != before
    }

    /// Copies a message to the log's end if somebody still waits for it, unless
    /// this is a sweep; or gives it up.
    fn keep(
        &mut self,
        now: Now,
        lsn: Lsn,
        len: u32,
        (record, message): (&Record<'_>, &Message<'_>),
        is_sweep: bool,
    ) {
        let Some(user) = self.users.find(message.key) else { return };
        let Some(inbox) = self.users[user].inbox.as_deref_mut() else { return };
        let seq = message.inbox_seq;
        if !inbox.stands_at(seq, lsn) {
            return;
        }
        if is_expired(now, message) {
            return self.add_to_run(now, user, seq);
        }
        if is_sweep {
            return;
        }
        let moved = self.append(now, &record.copied().expect("a message stands there"));
        debug_assert_eq!(moved.len, len, "a copy is as long as its original");
        self.users[user].inbox_mut().repoint(seq, moved.lsn);
        let space = &mut self.cleaner.space;
        space.add(moved.lsn, moved.len, message.expires_ms);
        space.sub(lsn, len, self.log.end());
        self.metrics.counters.moved += 1;
        self.metrics.counters.moved_bytes += u64::from(len);
    }

    fn add_to_run(&mut self, now: Now, user: UserIndex, seq: u64) {
        match &mut self.cleaner.run {
            Some(run) if run.user == user && run.last + 1 == seq => run.last = seq,
            _ => {
                // There is room for one more record, see `has_room_to_copy`.
                self.give_up_run(now);
                self.cleaner.run = Some(Run { user, first: seq, last: seq });
            }
        }
    }

    /// What has expired is given up, in the log first.
    fn give_up_run(&mut self, now: Now) {
        let Some(Run { user, first, last }) = self.cleaner.run.take() else { return };
        let key: UserKey = self.users[user].key;
        self.append(now, &Record::Dropped { key, first, last });
        for seq in first..=last {
            if let Some(entry) = self.users[user].inbox_mut().make_hole(seq) {
                self.expire(&entry);
                self.note_hole(user, seq, &entry, NO_SLOT);
            } else if let Some(entry) = self.users[user].inbox_mut().take_back(seq) {
                self.expire(&entry);
            }
        }
        for device in 0..self.users[user].devices.len() {
            self.advance(user, device);
        }
        self.burn(user);
    }

    /// Has dead segments deleted.
    fn discard(&mut self, out: &mut Effects) {
        let (below, durable) = (self.snapshots.needed_from(), self.log.durable());
        if below == 0 {
            return;
        }
        let dead = self.cleaner.space.dead(below, durable);
        let dead: Vec<u64> = dead.filter(|segment| !self.cleaner.is_read(*segment)).collect();
        for segment in dead {
            self.cleaner.space.forget(segment);
            self.cleaner.unreadable.remove(&segment);
            self.metrics.counters.segments_discarded += 1;
            out.push(Effect::Discard { segment });
        }
    }
}
