//! Users on their way to other shards, because the number of shards changes.
//!
//! The shards as they were read back are dealt out anew. Devices, cursors,
//! numbering and pairs go with their user; where the messages lie is known of
//! the old logs only, until each has been copied to the log of its new shard.
//! Nobody is served meanwhile.

#[cfg(test)]
mod tests;

use wal::record::Record;
use wal::{Log, LogOptions, LogStart, Lsn, Refused, Write};

use crate::replay::Replay;
use crate::user::{User, Users};
use crate::{Now, Options, SLICE_BYTES, Shard, Slice};

/// A regrouping happens at no time: nothing grows old or expires in it.
const NOW: Now = Now { mono_ns: 0, wall_ms: 0 };

/// One of the new shards: its users, and its log while it is being filled.
pub(crate) struct Newcomer {
    shard: Shard,
    load: Load,
    copied: u64,
}

/// How much a new shard holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Users.
    pub users: u64,
    /// Messages that wait.
    pub messages: u64,
    /// Their log bytes.
    pub message_bytes: u64,
    /// What a snapshot of it takes, about.
    pub snapshot_bytes: u64,
}

/// How much each of this many shards will hold of what these hold.
pub fn weigh(old: &[(Replay, LogStart)], shards: u16) -> Vec<Load> {
    let mut loads = vec![Load::default(); usize::from(shards)];
    for user in old.iter().flat_map(|(replay, _)| replay.users().iter()) {
        loads[usize::from(user.key.owner(shards))].add(user);
    }
    loads
}

impl Load {
    fn add(&mut self, user: &User) {
        self.users += 1;
        // As in `snapshot::slice`.
        self.snapshot_bytes += 64 + user.name.len() as u64 + 16 * user.devices.len() as u64;
        for entry in user.waiting() {
            self.messages += 1;
            self.message_bytes += u64::from(entry.len);
            self.snapshot_bytes += 12;
        }
        let pairs = user.inbox.as_ref().map_or(0, |inbox| inbox.pairs().len());
        self.snapshot_bytes += 32 * pairs as u64;
    }
}

/// Deals the users of all shards, whose logs end there, out to the new ones, each
/// of which gets these options and an empty log with this salt.
///
/// # Errors
/// In words, when two shards know the same user.
///
/// # Panics
/// When there is no shard, or the options are not those of the new shards in
/// their order.
pub(crate) fn regroup(
    mut old: Vec<(Replay, LogStart)>,
    log: LogOptions,
    new: &[(Options, u64)],
) -> Result<Vec<Newcomer>, String> {
    let hasher = *old.first().expect("a directory has a shard").0.hasher();
    old.iter_mut().for_each(|(replay, start)| replay.end_at(start));
    // Ids of messages go on above those of every shard that there was.
    let hlc_ms = old.iter().map(|(replay, _)| replay.hlc_ms()).max().unwrap_or(0);
    let newcomer = |&(options, salt): &(Options, u64)| {
        let log = Log::new(log, LogStart { hlc_ms, ..LogStart::fresh(salt) });
        let mut shard = Shard::new(options, hasher, salt, log);
        shard.users = Users::new(usize::MAX);
        Newcomer { shard, load: Load::default(), copied: 0 }
    };
    let mut newcomers: Vec<Newcomer> = new.iter().map(newcomer).collect();
    // Whoever is not known may have been known to any of them.
    let floor = old.iter().map(|(replay, _)| replay.users().floor()).max().unwrap_or(0);
    newcomers.iter_mut().for_each(|it| it.shard.users.raise_floor(floor));
    for (at, newcomer) in newcomers.iter().enumerate() {
        let Options { shard, shards, .. } = newcomer.shard.options;
        assert!((usize::from(shard), usize::from(shards)) == (at, new.len()), "in their order");
    }
    for user in old.into_iter().flat_map(|(replay, _)| replay.into_users()) {
        let owner = user.key.owner(new.len() as u16);
        newcomers[usize::from(owner)].adopt(user)?;
    }
    Ok(newcomers)
}

impl Newcomer {
    fn adopt(&mut self, mut user: User) -> Result<(), String> {
        user.settle();
        self.load.add(&user);
        self.shard.users.adopt(user).map_err(|user| {
            let name = String::from_utf8_lossy(&user.name);
            format!("two shards know the user {name}")
        })
    }

    /// How much it holds once everything has been copied.
    pub(crate) fn load(&self) -> Load {
        self.load
    }

    /// Messages copied so far.
    pub(crate) fn copied(&self) -> u64 {
        self.copied
    }

    /// Copies a record of the old logs if it is a message that waits here.
    /// Each old log must be walked through once, in its order. The record's
    /// length if it was copied.
    ///
    /// # Errors
    /// When the log has no room before what it has is written.
    pub(crate) fn take(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<Option<u32>, Refused> {
        let Some(message) = record.message() else { return Ok(None) };
        let Some(user) = self.shard.users.find(message.key) else { return Ok(None) };
        let Some(inbox) = self.shard.users[user].inbox.as_deref_mut() else { return Ok(None) };
        if !inbox.stands_at(message.inbox_seq, lsn) {
            return Ok(None);
        }
        // What is copied now stands last in the one old log that has this
        // inbox, so that its new place is never taken for one in there.
        let copy = record.copied().expect("a message stands there");
        let moved = self.shard.log.append(&copy, 0)?;
        inbox.repoint(message.inbox_seq, moved.lsn);
        self.shard.cleaner.space.add(moved.lsn, moved.len, message.expires_ms);
        self.copied += 1;
        Ok(Some(moved.len))
    }

    /// Adds a record to the log that changes nothing, so that another snapshot
    /// has another start.
    ///
    /// # Errors
    /// As for [`Newcomer::take`].
    pub(crate) fn mark(&mut self) -> Result<(), Refused> {
        let users = &self.shard.users;
        let named = users.iter().next().map(|user| Record::Floor {
            key: user.key,
            name: &user.name,
            seq: user.last_seq(),
        });
        let Some(record) = named.or_else(|| users.floor_record()) else { return Ok(()) };
        self.shard.log.append(&record, 0).map(|_| ())
    }

    /// Whether there is anything that [`Newcomer::mark`] can repeat.
    pub(crate) fn can_mark(&self) -> bool {
        self.load.users > 0 || self.shard.users.floor() > 0
    }

    /// The next write of its log.
    pub(crate) fn next_write(&mut self) -> Option<Write> {
        self.shard.next_write()
    }

    /// Its log.
    pub(crate) fn log(&self) -> &Log {
        &self.shard.log
    }

    /// A write has been carried out. What was written must be synced before a
    /// snapshot gets its name.
    pub(crate) fn written(&mut self, write: &Write) {
        self.shard.log.written(write.lsn, true);
    }

    /// Encodes a whole snapshot, which begins at the log's checkpoint. Each
    /// payload goes to `each`, in the order in which they are to be framed.
    /// Answers how far the log must be durable.
    ///
    /// # Errors
    /// What `each` answers.
    pub(crate) fn snapshot<E>(
        &mut self,
        each: &mut dyn FnMut(SnapshotPart<'_>) -> Result<(), E>,
    ) -> Result<Lsn, E> {
        // It begins at the log's checkpoint, which the caller knows.
        let _ = self.shard.begin_snapshot(NOW);
        let mut payload = Vec::new();
        let end = loop {
            payload.clear();
            let slice = self.shard.snapshot_slice(SLICE_BYTES, &mut payload);
            each(SnapshotPart::State(&payload))?;
            if let Slice::Done { end } = slice {
                break end;
            }
        };
        let mut next = Some(0);
        while let Some(from) = next {
            payload.clear();
            next = self.shard.snapshot_space(from, &mut payload);
            each(SnapshotPart::Space(&payload))?;
        }
        // Counted or not is the new layout's business; another one may begin.
        self.shard.snapshot_failed(NOW);
        Ok(end)
    }
}

/// A piece of a snapshot.
#[derive(Clone, Copy, Debug)]
pub enum SnapshotPart<'a> {
    /// A payload of users.
    State(&'a [u8]),
    /// A payload of the table of what expires where.
    Space(&'a [u8]),
}
