//! The order in which a data directory is rewritten for another number of
//! shards: a list of steps, each of which the caller carries out before it asks
//! for the next one.
//!
//! Production carries them out on files, the simulator on its disks, with a
//! crash before any of them. What makes it safe is the order alone: the layout
//! that counts is only read until [`Step::Switch`], and nothing is switched to
//! that has not been synced and read back.

use std::collections::VecDeque;

use wal::record::Record;
use wal::{LogOptions, LogStart, Lsn, Refused, Restore, Write};
use wire::id::ShardId;

use crate::Options;
use crate::regroup::{Load, Newcomer, SnapshotPart, regroup};
use crate::replay::Replay;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the new layout's directories, with nothing in them.
    Make,
    /// Walk through this segment of a shard of the old layout, and give each
    /// record in its order to [`Rewrite::take`].
    Read {
        /// A shard of the old layout.
        shard: ShardId,
        /// The segment's number.
        segment: u64,
    },
    /// Write everything that [`Rewrite::next_write`] has for this new shard.
    Write {
        /// A shard of the new layout.
        shard: ShardId,
    },
    /// Make durable what was written for this new shard.
    Sync {
        /// A shard of the new layout.
        shard: ShardId,
    },
    /// Write what [`Rewrite::snapshot`] gives to a file, sync it, and give it
    /// its name.
    Snapshot {
        /// A shard of the new layout.
        shard: ShardId,
    },
    /// Read the new shard back as the next start will, and show what was found
    /// to [`Rewrite::compare`].
    LookBack {
        /// A shard of the new layout.
        shard: ShardId,
    },
    /// Let the new layout count, durably.
    Switch,
}

/// What stands in the plan.
enum Planned {
    /// For the caller.
    Do(Step),
    /// Every message that waits must have been copied.
    Count,
    /// Something that changes nothing, so that the second snapshot has another
    /// start. Two are taken because without any nobody knows who waits for what.
    Mark(ShardId),
}

/// A new layout that is being written. See the module.
pub struct Rewrite {
    newcomers: Vec<Newcomer>,
    plan: VecDeque<Planned>,
    /// The write that the caller is carrying out.
    writing: Option<(ShardId, Write)>,
}

impl Rewrite {
    /// Deals out the users of these shards, whose logs end there, to new ones
    /// with these options and salts, in their order, and plans the rest.
    ///
    /// # Errors
    /// In words, when two shards know the same user.
    ///
    /// # Panics
    /// When there is no shard, or the options are not those of the new shards in
    /// their order.
    pub fn new(
        old: Vec<(Replay, LogStart)>,
        log: LogOptions,
        new: &[(Options, u64)],
    ) -> Result<Rewrite, String> {
        let needed = |(shard, (replay, _)): (usize, &(Replay, LogStart))| {
            let read = move |(segment, ..): (u64, u64, u64)| Step::Read {
                shard: shard as ShardId,
                segment,
            };
            replay.needed().into_iter().map(read)
        };
        let reads = old.iter().enumerate().flat_map(needed).map(Planned::Do).collect();
        let newcomers = regroup(old, log, new)?;
        let plan = plan(reads, &newcomers);
        Ok(Rewrite { newcomers, plan, writing: None })
    }

    /// The next step, when those before it have been carried out; `None` after
    /// the last.
    ///
    /// # Errors
    /// In words, what cannot be unless something is wrong with the program. The
    /// old layout still counts then.
    pub fn next_step(&mut self) -> Result<Option<Step>, String> {
        self.settle();
        while let Some(planned) = self.plan.pop_front() {
            match planned {
                Planned::Do(step) => return Ok(Some(step)),
                Planned::Count => self.count()?,
                Planned::Mark(shard) => self.mark(shard)?,
            }
        }
        Ok(None)
    }

    /// How much a new shard will hold.
    pub fn load(&self, shard: ShardId) -> Load {
        self.newcomers[usize::from(shard)].load()
    }

    /// Copies a record of the old logs if it is a message that somebody waits
    /// for. The record's length if it was copied.
    ///
    /// # Errors
    /// The new shard that must be written out first, see [`Step::Write`]; then
    /// the same record again.
    pub fn take(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<Option<u32>, ShardId> {
        let Some(message) = record.message() else { return Ok(None) };
        let owner = message.key.owner(self.newcomers.len() as u16);
        self.newcomers[usize::from(owner)].take(lsn, record).map_err(|_: Refused| owner)
    }

    /// The next write of a new shard's log, when the one before it has been
    /// carried out. Nothing of it has to be durable before [`Step::Sync`].
    pub fn next_write(&mut self, shard: ShardId) -> Option<Write> {
        self.settle();
        let write = self.newcomers[usize::from(shard)].next_write()?;
        self.writing = Some((shard, write));
        Some(write)
    }

    /// The bytes of that write.
    pub fn write_bytes(&self, shard: ShardId, write: &Write) -> &[u8] {
        self.newcomers[usize::from(shard)].log().write_bytes(write)
    }

    /// Where the next snapshot of a new shard begins.
    pub fn snapshot_start(&self, shard: ShardId) -> LogStart {
        self.newcomers[usize::from(shard)].log().checkpoint()
    }

    /// Gives the payloads of that snapshot, in the order in which they are to be
    /// framed, to `each`. Answers how far it reaches into the log.
    ///
    /// # Errors
    /// What `each` answers.
    ///
    /// # Panics
    /// When something was not written before.
    pub fn snapshot<E>(
        &mut self,
        shard: ShardId,
        each: &mut dyn FnMut(SnapshotPart<'_>) -> Result<(), E>,
    ) -> Result<Lsn, E> {
        let newcomer = &mut self.newcomers[usize::from(shard)];
        let end = newcomer.snapshot(each)?;
        assert!(newcomer.log().durable() >= end, "everything was written and synced");
        Ok(end)
    }

    /// Whether this is what the new shard should be when it is read back.
    ///
    /// # Errors
    /// In words, when it is not.
    pub fn compare(&self, shard: ShardId, found: &Replay) -> Result<(), String> {
        let (load, is) = (self.load(shard), found.contents());
        let of = (is.users, is.waiting_messages, is.waiting_bytes);
        if of != (load.users, load.messages, load.message_bytes) || found.contradictions() > 0 {
            return Err(format!("{load:?} was written and {is:?} is read back"));
        }
        Ok(())
    }

    /// Whoever asks for more has written what was given out before.
    fn settle(&mut self) {
        if let Some((shard, write)) = self.writing.take() {
            self.newcomers[usize::from(shard)].written(&write);
        }
    }

    fn count(&self) -> Result<(), String> {
        let missed = |it: &&Newcomer| it.copied() != it.load().messages;
        match self.newcomers.iter().find(missed) {
            None => Ok(()),
            Some(it) => {
                let (waiting, found) = (it.load().messages, it.copied());
                Err(format!("{waiting} messages wait and {found} were found"))
            }
        }
    }

    fn mark(&mut self, shard: ShardId) -> Result<(), String> {
        let marked = self.newcomers[usize::from(shard)].mark();
        marked.map_err(|_| "an empty log has no room for a record".to_owned())
    }
}

fn plan(reads: Vec<Planned>, newcomers: &[Newcomer]) -> VecDeque<Planned> {
    use Planned::{Count, Do, Mark};
    let mut plan = VecDeque::from([Do(Step::Make)]);
    plan.extend(reads);
    plan.push_back(Count);
    let shards = 0..newcomers.len() as ShardId;
    for shard in shards.clone() {
        let complete = || [Step::Write { shard }, Step::Sync { shard }, Step::Snapshot { shard }];
        plan.extend(complete().map(Do));
        // With neither users nor a floor there is nothing to forget.
        if newcomers[usize::from(shard)].can_mark() {
            plan.push_back(Mark(shard));
            plan.extend(complete().map(Do));
        }
    }
    plan.extend(shards.map(|shard| Do(Step::LookBack { shard })));
    plan.push_back(Do(Step::Switch));
    plan
}
