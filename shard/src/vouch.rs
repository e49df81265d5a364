//! The record behind which nothing of the log is doubtful.
//!
//! Every commit says how far the log was durable when it was sealed, so what is
//! missing before that is told from a torn tail. Of the last commit none says so:
//! if the disk has confirmed it and does not have it, or only some of its sectors,
//! it looks like a write that a crash tore, and what had been confirmed would be
//! cut. So a log that comes to rest gets one more record,
//! which changes nothing, and if that one is lost nothing is lost with it.
//!
//! Invariant: at rest the log ends with one of them, and there is none while
//! anything waits for the disk.

use wal::{Lsn, block_end};

use crate::Shard;
use crate::io::Now;

/// A log at rest gets its record after so long, milliseconds, or a tick of the
/// caller's later. Until then a crash leaves a commit, or two of which both were
/// under way, of which lost sectors look like a torn tail; and a log with a message now and
/// then writes twice as many blocks, one a second at most.
pub const VOUCH_AFTER_MS: u64 = 1000;

/// What of the log is vouched for.
#[derive(Default)]
pub(crate) struct Vouched {
    /// Where the log ends if such a record is its last one.
    until: Option<Lsn>,
    /// Where it ended at the last look, and since when it does.
    rests: (Lsn, u64),
}

impl Shard {
    /// Has the log end with a record that vouches for all before it, unless it
    /// does or something is under way. Whether one was appended; it is to be
    /// written like any other. For a server that is about to stop.
    pub fn vouch(&mut self, now: Now) -> bool {
        self.vouched.until != Some(block_end(self.log.end())) && self.mark(now)
    }

    /// Something else is appended: behind that record, or into its block.
    pub(crate) fn no_more_vouched(&mut self) {
        self.vouched.until = None;
    }

    /// The same after a while in which nothing was appended.
    pub(crate) fn vouch_at_rest(&mut self, now: Now) {
        let end = block_end(self.log.end());
        let (seen, since_ns) = self.vouched.rests;
        let rest_ns = self.options.vouch_after_ms.saturating_mul(1_000_000);
        if seen != end {
            self.vouched.rests = (end, now.mono_ns);
        } else if now.mono_ns - since_ns >= rest_ns && !self.draining && !self.storage_full {
            self.vouch(now);
        }
    }

    /// Appends a record that changes nothing to a log that is at rest; whether
    /// it did. Without users it repeats where a repair has numbers begin.
    pub(crate) fn mark(&mut self, now: Now) -> bool {
        let is_at_rest = self.log.end() == self.log.durable();
        let record = self.users.seen_record().or_else(|| self.users.floor_record());
        let Some(record) = record.filter(|_| is_at_rest) else { return false };
        // At rest the tail has room; without a place on the disk there is nothing to mark.
        let is_marked = self.log.append(&record, self.hlc.ms().max(now.wall_ms)).is_ok();
        if is_marked {
            self.vouched.until = Some(block_end(self.log.end()));
        }
        is_marked
    }
}

#[cfg(test)]
mod tests {
    use wal::recover::{Proof, Scanner, What};
    use wal::{BLOCK, Damage, Lsn, Record};

    use super::VOUCH_AFTER_MS;
    use crate::snapshot::tests::{Life, SEGMENT, log_options};

    const SEND: (u8, u8, u8, u16) = (0, 0, 1, 100);
    const COMMIT: (u8, u8, u8, u16) = (10, 0, 0, 0);

    fn read_back(life: &Life) -> Result<(Lsn, bool), Damage> {
        let mut scanner = Scanner::new(life.shard.salt, log_options(), 0);
        for (segment, base) in
            life.disk.chunks(SEGMENT as usize).zip((0..).step_by(SEGMENT as usize))
        {
            scanner.segment(base, segment, &mut |_, _, _| {})?;
        }
        scanner.finish().map(|(start, torn)| (start.lsn, torn.is_some()))
    }

    /// A shard whose last message is confirmed, and where its commit begins.
    fn at_rest() -> (Life, usize) {
        let mut life = Life::new(1000);
        life.step(SEND);
        life.step(COMMIT);
        let last = life.disk.len();
        life.step(SEND);
        life.step(COMMIT);
        (life, last)
    }

    #[test]
    fn rot_in_the_last_message_is_no_torn_tail() {
        let (mut life, last) = at_rest();
        let end = life.disk.len();
        life.disk[last + 100] ^= 1;
        let cut = read_back(&life).expect("without the record it looks torn");
        assert_eq!(cut, (last as Lsn, true));
        let now = life.now();
        assert!(life.shard.vouch(now) && !life.shard.vouch(now), "one is enough");
        life.step(COMMIT);
        assert!(!life.shard.vouch(now), "one is enough");
        assert_eq!(life.disk.len(), end + BLOCK);
        let damage = read_back(&life).expect_err("it had been confirmed");
        assert_eq!(damage.proof, Some(Proof::Commit(end as Lsn)));
        assert!(
            matches!(damage.what, What::Commit(_) | What::Record(_)) && damage.lsn == last as Lsn
        );
        // Rot in the record itself costs nothing.
        life.disk[last + 100] ^= 1;
        life.disk[end + 50] ^= 1;
        assert_eq!(read_back(&life).expect("torn"), (end as Lsn, true));
    }

    /// It is not durable at once, and what joins its block is in its commit.
    #[test]
    fn what_is_appended_beside_the_record_is_vouched_for_by_another() {
        let (mut life, _) = at_rest();
        assert!(life.shard.vouch(life.now()));
        let record = life.disk.len();
        life.step(SEND);
        life.step(COMMIT);
        assert_eq!(life.disk.len(), record + BLOCK, "they are one commit");
        assert!(life.shard.vouch(life.now()), "the message is not vouched for");
        life.step(COMMIT);
        assert!(!life.shard.vouch(life.now()), "one is enough");
        life.disk[record + 300] ^= 1;
        let damage = read_back(&life).expect_err("it had been confirmed");
        assert_eq!(damage.lsn, record as Lsn);
    }

    /// As a repair may leave it.
    #[test]
    fn a_shard_without_users_is_vouched_for_by_its_floor() {
        let mut life = Life::new(1000);
        let now = life.now();
        assert!(!life.shard.vouch(now), "there is nothing to say");
        life.shard.users.raise_floor(7);
        let record = life.shard.users.floor_record().expect("one");
        life.shard.log.append(&record, 0).expect("room");
        assert!(!life.shard.vouch(now), "what is under way comes first");
        life.step(COMMIT);
        assert!(life.shard.vouch(now) && !life.shard.vouch(now), "one is enough");
        life.step(COMMIT);
        assert!(!life.shard.vouch(now), "one is enough");
        let mut said = Vec::new();
        let mut scanner = Scanner::new(life.shard.salt, log_options(), 0);
        let sink = &mut |_, _, record: Record<'_>| said.push(format!("{record:?}"));
        scanner.segment(0, &life.disk, sink).expect("whole");
        assert_eq!(said, vec![format!("{record:?}"); 2]);
    }

    #[test]
    fn a_rest_is_as_long_as_is_said() {
        let (mut life, _) = at_rest();
        let mut now = life.now();
        life.shard.vouch_at_rest(now);
        now.mono_ns += 1_000_000 * VOUCH_AFTER_MS - 1;
        life.shard.vouch_at_rest(now);
        assert_eq!(life.shard.log.end(), life.shard.log.durable());
        now.mono_ns += 1;
        life.shard.vouch_at_rest(now);
        assert!(life.shard.log.end() > life.shard.log.durable());
    }

    #[test]
    fn a_rest_is_vouched_for_once() {
        let (mut life, _) = at_rest();
        let minute = (9, 0, 0, 1);
        for expected in [0, 1, 0, 0] {
            let before = life.disk.len();
            life.step(minute);
            life.step(COMMIT);
            assert_eq!((life.disk.len() - before) / BLOCK, expected);
        }
        life.step(SEND);
        assert!(!life.shard.vouch(life.now()), "what is under way comes first");
    }
}
