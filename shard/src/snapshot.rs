//! When a snapshot is due, and which of them the log must still serve.
//!
//! A snapshot is the state of all users beside a position of the log from which
//! a replay completes it. The shard encodes it in slices while it works on; the
//! caller frames them, writes the file, and says when it counts.

mod load;
mod slice;
#[cfg(test)]
pub(crate) mod tests;

use wal::{LogStart, Lsn};

use crate::Shard;
use crate::dedup::{PAIR_BYTES, hours};
use crate::io::Now;

pub(crate) use load::Loader;
use slice::{ENTRY_BYTES, Taking};

/// What a slice should be at most, bytes: little enough to be encoded within a
/// fraction of a millisecond. A single user's head may exceed it by its name.
pub const SLICE_BYTES: usize = 32 << 10;
/// After a failure nothing is tried for so long.
const REST_NS: u64 = 10_000_000_000;
/// And on a full disk for so long at first, and twice as long after each other
/// one: what is left of it is being used up.
const REST_FULL_NS: u64 = 1_000_000_000;
/// Dead segments of a shard at rest are worth a snapshot after so long.
const PATIENCE_NS: u64 = 60_000_000_000;

/// Dead segments are worth their two snapshots when they are so many times as
/// large as the last one.
const DEAD_PER_SNAPSHOT: u64 = 2;

/// A disk that was slow may be so again: what a slow snapshot has shown is
/// forgotten by one part in so many with each one.
const SPAN_FORGOTTEN: u64 = 8;

/// About what a user's head takes in a snapshot, with a name and a device.
const USER_BYTES: u64 = 128;
/// A snapshot may be larger than what was reckoned by one part in so many, and by
/// what one such part of a segment adds to it.
const RESERVE_SLACK: u64 = 8;
const RESERVE_GROWTH: u64 = 4;

/// The newest one, and the one before it in case the newest is damaged.
const SNAPSHOTS_KEPT: u64 = 2;

/// Whether a snapshot has more slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Slice {
    /// Another one follows.
    More,
    /// That was the last one. The snapshot counts once the log is durable up
    /// to `end`.
    Done {
        /// The log's end now.
        end: Lsn,
    },
}

/// The snapshots of a shard.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// The one that is being encoded.
    taking: Option<Taking>,
    /// Where the one begins that has been begun and not ended yet.
    begun: Option<Lsn>,
    /// Where the newest one that counts begins, and the one before it.
    kept: (Option<Lsn>, Option<Lsn>),
    /// How large the newest one is.
    bytes: u64,
    /// How much was appended while it was written, or while others were that took
    /// longer: of those a part is forgotten with each one that does not.
    spanned: u64,
    /// When the newest one was begun or, after a failure, when to try again.
    begun_ns: u64,
    rests_until_ns: u64,
    /// How many have failed since one has not.
    failed: u32,
    is_due: bool,
    /// What the clocks said then.
    first_tick: Option<Now>,
}

/// What is left of a disk for the next snapshots of a shard, bytes: without two
/// that are newer nothing dead is deleted, and each is written before the oldest
/// of those there are goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// What a segment that is made ahead of need leaves.
    pub whole: u64,
    /// What one leaves that is made because the log has no other place.
    pub least: u64,
}

impl Reserve {
    /// For snapshots like one of so many bytes, of which so many are kept already.
    pub fn new(snapshot_bytes: u64, segment_bytes: u64, kept: u64) -> Reserve {
        let files = files(kept);
        let growth = segment_bytes / RESERVE_GROWTH;
        let grown = snapshot_bytes + snapshot_bytes / RESERVE_SLACK;
        // The difference is for snapshots that have become larger meanwhile.
        Reserve { whole: files * grown + growth, least: files * snapshot_bytes + growth / 2 }
    }

    /// So much of it has been used for the next one.
    pub fn less(self, bytes: u64) -> Reserve {
        let Reserve { whole, least } = self;
        Reserve { whole: whole.saturating_sub(bytes), least: least.saturating_sub(bytes) }
    }
}

/// With so many kept: how many there is to be room for.
fn files(kept: u64) -> u64 {
    SNAPSHOTS_KEPT + 1 - kept.min(SNAPSHOTS_KEPT)
}

impl Snapshots {
    /// After a start from the snapshot that begins here.
    pub(crate) fn starting_from(lsn: Option<Lsn>) -> Snapshots {
        Snapshots { kept: (lsn, None), ..Snapshots::default() }
    }

    /// How many are kept that are known.
    fn count(&self) -> u64 {
        u64::from(self.kept.0.is_some()) + u64::from(self.kept.1.is_some())
    }

    /// Segments that end at or before this position are not needed to read the
    /// log back, not even if the newest snapshot should turn out damaged.
    pub(crate) fn needed_from(&self) -> Lsn {
        self.kept.1.unwrap_or(0)
    }
}

impl Shard {
    /// Whether the caller should begin a snapshot.
    pub fn wants_snapshot(&self) -> bool {
        self.snapshots.is_due && self.snapshots.begun.is_none() && !self.log.is_poisoned()
    }

    /// Begins a snapshot: what its file is named after and begins with.
    ///
    /// # Panics
    /// When one has been begun and has neither counted nor failed.
    pub fn begin_snapshot(&mut self, now: Now) -> LogStart {
        assert!(self.snapshots.begun.is_none(), "one snapshot at a time");
        let start = self.log.checkpoint();
        let kept_from_ms = self.steady_ms(now).saturating_sub(self.options.pairs_kept_ms);
        self.snapshots.taking = Some(Taking::new(hours(kept_from_ms)));
        self.snapshots.begun = Some(start.lsn);
        self.snapshots.begun_ns = now.mono_ns;
        self.snapshots.is_due = false;
        start
    }

    /// The wall clock, but no further than time has passed since this life's
    /// first tick: a clock that is set forward must not make a shard forget its
    /// pairs.
    fn steady_ms(&mut self, now: Now) -> u64 {
        let first = *self.snapshots.first_tick.get_or_insert(now);
        let passed_ms = now.mono_ns.saturating_sub(first.mono_ns) / 1_000_000;
        now.wall_ms.min(first.wall_ms.saturating_add(passed_ms))
    }

    /// Encodes the next slice of about `bytes_max` bytes to the end of `out`,
    /// the payload of one frame. It may be empty.
    ///
    /// # Panics
    /// When no snapshot has been begun, or the last slice was taken.
    pub fn snapshot_slice(&mut self, bytes_max: usize, out: &mut Vec<u8>) -> Slice {
        let mut taking = self.snapshots.taking.take().expect("a snapshot was begun");
        let slice = self.encode_slice(&mut taking, bytes_max, out);
        if slice == Slice::More {
            self.snapshots.taking = Some(taking);
        }
        slice
    }

    /// Appends one payload of the table of what expires where, which comes
    /// after the slices, from segment `from` on (0 at first). Answers from
    /// where on the next payload is, `None` after the last.
    pub fn snapshot_space(&self, from: u64, out: &mut Vec<u8>) -> Option<u64> {
        self.cleaner.space.encode(from, self.log.end(), out)
    }

    /// The snapshot that begins at `start` is durable under its final name.
    pub(crate) fn snapshotted(&mut self, start: Lsn, bytes: u64) {
        assert!(self.snapshots.begun.take() == Some(start), "the snapshot that was begun");
        self.snapshots.taking = None;
        self.snapshots.failed = 0;
        self.snapshots.kept = (Some(start), self.snapshots.kept.0);
        self.snapshots.bytes = bytes;
        let lately = self.snapshots.spanned - self.snapshots.spanned / SPAN_FORGOTTEN;
        self.snapshots.spanned = lately.max(self.log.end() - start);
        self.metrics.counters.snapshots += 1;
        self.metrics.counters.snapshot_bytes = bytes;
    }

    /// It could not be written, or was given up.
    pub(crate) fn snapshot_failed(&mut self, now: Now) {
        self.snapshots.taking = None;
        self.snapshots.begun = None;
        let full_ns = REST_FULL_NS << self.snapshots.failed.min(4);
        let rest_ns = if self.storage_full { full_ns.min(REST_NS) } else { REST_NS };
        self.snapshots.rests_until_ns = now.mono_ns + rest_ns;
        self.snapshots.failed += 1;
        self.metrics.counters.snapshots_failed += 1;
    }

    /// Whether the disk is full has changed, and a failure was most likely of that.
    pub(crate) fn snapshots_may_fit(&mut self) {
        self.snapshots.rests_until_ns = 0;
    }

    /// Looks whether a snapshot has become due.
    ///
    /// Two of them let go of a segment that is dead, so they follow each other
    /// as long as there is one. They should not cost more than they free.
    pub(crate) fn schedule_snapshot(&mut self, now: Now) {
        self.snapshots.first_tick.get_or_insert(now);
        let segment_bytes = self.log.options().segment_bytes;
        self.snapshots.is_due = false;
        let it = &self.snapshots;
        if it.begun.is_some() || now.mono_ns < it.rests_until_ns {
            return;
        }
        let begin = self.log.checkpoint().lsn;
        let appended = begin - it.kept.0.unwrap_or(0);
        let dead_bytes = self.dead_but_needed(begin) * segment_bytes;
        let is_long = appended >= segment_bytes.max(2 * it.bytes);
        let frees_more = dead_bytes >= DEAD_PER_SNAPSHOT * it.bytes
            || self.storage_full && dead_bytes >= it.bytes;
        let is_late = now.mono_ns >= it.begun_ns + PATIENCE_NS;
        // Whatever it lets go of is the next place there is.
        let is_stuck = self.storage_full && self.lacks_place();
        let is_waited_for = dead_bytes > 0 && (frees_more || is_late || is_stuck);
        if appended > 0 {
            self.snapshots.is_due = is_long || is_waited_for;
        } else if is_waited_for && !self.draining {
            // Where nothing is sent any more no other record would come, and the
            // next snapshot needs another start: on a full disk everything might
            // wait for what it frees.
            self.mark(now);
        }
    }

    /// What may lie on the disk, under a steady load, beside the segments that
    /// hold something and the two that are always there: two snapshots and one
    /// being written; the dead that these let go of, which are worth it when
    /// they are twice a snapshot or a segment, and what dies meanwhile; a second
    /// segment made ahead; one for a load that grows or a disk that gets slower.
    pub(crate) fn bytes_beside(&self) -> u64 {
        let it = &self.snapshots;
        let snapshots = 3 * it.bytes;
        let dead = DEAD_PER_SNAPSHOT * it.bytes + 2 * it.spanned;
        snapshots + dead + 3 * self.log.options().segment_bytes
    }

    /// What the disk must have left for this shard's next snapshots, which let go of
    /// what is dead: each as large as the last one, or as what there is to encode,
    /// holes and what is aside left out. A log that takes this as well is one that
    /// nothing can be deleted from.
    pub fn reserve(&self) -> Reserve {
        let there = &self.metrics.counters;
        let entries = there.waiting_messages * ENTRY_BYTES as u64;
        let pairs = there.pairs * PAIR_BYTES as u64;
        let space = self.cleaner.space.encoded_bytes() as u64;
        let likely = entries + pairs + self.users.len() as u64 * USER_BYTES + space;
        let it = &self.snapshots;
        Reserve::new(likely.max(it.bytes), self.log.options().segment_bytes, it.count())
    }

    /// Segments that would be deleted if the snapshots that are kept began at
    /// `begin` or behind it.
    fn dead_but_needed(&self, begin: Lsn) -> u64 {
        let (space, durable) = (&self.cleaner.space, self.log.durable());
        let deleted = space.dead(self.snapshots.needed_from(), durable).count();
        (space.dead(begin, durable).count() - deleted) as u64
    }
}
