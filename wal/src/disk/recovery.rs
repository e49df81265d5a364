//! Reading one shard's state back at boot: the newest snapshot that is whole,
//! and the log from where its replay begins.
//!
//! Nothing that was acknowledged is given up silently: whatever should be there
//! and is not, or is not what it was, ends the boot with the name of the file.
//! A damaged snapshot alone ends nothing, as long as the one before it, or the
//! whole log, leads to the same state.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::data_dir::sync_dir;
use super::error::RecoverError;
use super::shard_dir::{Listing, ShardDir};
use super::snapshots::{self, Loaded};
use crate::file;
use crate::log::{LogOptions, LogStart};
use crate::recover::{Restore, Scanner, Torn};
use crate::segment::HeaderError;
use crate::{Lsn, segment};

/// What reading a log back found.
#[derive(Debug)]
pub struct Recovered {
    /// Where the log goes on. Everything before it is on the disk.
    pub start: LogStart,
    /// What was cut off its end, if anything.
    pub torn: Option<Torn>,
    /// The snapshot that was used, if any.
    pub snapshot: Option<Loaded>,
    /// Where the replays of the snapshots begin that are kept, ascending; the
    /// last one is that of the one used.
    pub snapshots: Vec<Lsn>,
    /// Snapshots that could not be used and were set aside, and why in words.
    pub damaged: Vec<(PathBuf, String)>,
    /// Numbers of the segments that are there, ascending. Below the snapshot's
    /// start some may be missing, and some may be there that nothing needs.
    pub segments: Vec<u64>,
    /// Log bytes that were replayed.
    pub replayed_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Files in the directory that are not ours; left alone.
    pub foreign: Vec<PathBuf>,
}

/// How far reading back has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being read.
    pub phase: Phase,
    /// Bytes of it read.
    pub done: u64,
    /// Bytes of it in all, at most.
    pub total: u64,
}

/// What is being read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A snapshot. It begins again when one was damaged.
    Snapshot,
    /// The log.
    Log,
}

impl ShardDir {
    /// Reads the shard's state back into `into`: the newest whole snapshot, then
    /// the log from there to its end. Removes our own unfinished files and, once
    /// all is well, sets damaged snapshots aside; changes nothing else.
    ///
    /// Needs memory for one segment while it runs. The last commits, which no
    /// later commit vouches for, may so far stand in a cache only (the process
    /// died before their fsync, or the fsync failed); they are written again and
    /// synced, so that nobody is told of a message that a power cut takes back.
    /// So are the names of the files.
    ///
    /// # Errors
    /// [`RecoverError`], which must stop the boot.
    pub fn recover(
        &self,
        into: &mut dyn Restore,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, RecoverError> {
        let listing = self.list().map_err(|error| self.io(self.path(), error))?;
        for path in &listing.leftovers {
            fs::remove_file(path).map_err(|error| self.io(path, error))?;
        }
        // A file that is there may so far have its name in a cache only: its
        // maker died before the sync. What goes into it is about to be promised.
        sync_dir(self.path()).map_err(|error| self.io(self.path(), error))?;
        let (recovered, durable) = self.read_back(listing, into, progress)?;
        self.confirm(durable, recovered.start.lsn)?;
        for (path, _) in &recovered.damaged {
            snapshots::set_aside(path).map_err(|error| self.io(path, error))?;
        }
        Ok(recovered)
    }

    /// Reads only. The second result is how far later commits vouch for the log.
    pub(super) fn read_back(
        &self,
        listing: Listing,
        into: &mut dyn Restore,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Recovered, Lsn), RecoverError> {
        let links: Vec<PathBuf> = listing.links().cloned().collect();
        self.read_files(listing, into, progress).map_err(|error| error.or_linked(&links))
    }

    fn read_files(
        &self,
        listing: Listing,
        into: &mut dyn Restore,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Recovered, Lsn), RecoverError> {
        let began = Instant::now();
        self.refuse_forbidden(&listing)?;
        self.refuse_newer_snapshots(&listing)?;
        self.refuse_strange(&listing)?;
        let (snapshot, damaged) = self.load_newest(&listing, into, progress);
        // A snapshot gets its name when the log is durable beyond its start,
        // which its name says even if its bytes say nothing any more.
        let named = listing.snapshots.last().copied().unwrap_or(0);
        let vouched = snapshot.as_ref().map_or(0, |loaded| loaded.end).max(named);
        self.check_state(snapshot.as_ref(), &damaged)?;
        self.check_segments(&listing, snapshot.as_ref(), vouched, &damaged)?;
        // The last segment is never deleted.
        if self.has_begun && listing.segments.is_empty() {
            return Err(RecoverError::NoLog { path: self.path.clone() });
        }
        let from = snapshot.as_ref().map(|loaded| loaded.start);
        let (start, torn, durable) = self.replay(&listing, from, vouched, into, progress)?;
        self.check_needed(&listing, into)?;
        let (begin, snapshots) = match from {
            Some(from) => (from.lsn, listing.snapshots.iter().copied()),
            None => (0, [].iter().copied()),
        };
        let recovered = Recovered {
            start,
            torn,
            snapshots: snapshots.filter(|start| *start <= begin).collect(),
            snapshot,
            damaged,
            segments: listing.segments,
            replayed_bytes: start.lsn - begin,
            elapsed: began.elapsed(),
            foreign: listing.foreign,
        };
        Ok((recovered, durable))
    }

    /// What this user may not read is not damaged.
    pub(super) fn refuse_forbidden(&self, listing: &Listing) -> Result<(), RecoverError> {
        let segments = listing.segments.iter().map(|index| self.segment_path(*index));
        let snapshots = listing.snapshots.iter().map(|start| self.snapshot_path(*start));
        for path in segments.chain(snapshots) {
            if let Err(error) = file::open(&path)
                && error.kind() == io::ErrorKind::PermissionDenied
            {
                return Err(self.io(&path, error));
            }
        }
        Ok(())
    }

    /// A snapshot of a newer version is none that is damaged: nothing is to be
    /// set aside, and without it something may seem to be lost that is not.
    pub(super) fn refuse_newer_snapshots(&self, listing: &Listing) -> Result<(), RecoverError> {
        let newer = listing.snapshots.iter().find_map(|start| {
            let written = snapshots::newer_format(self, *start)?;
            Some(RecoverError::NewerSnapshot { path: self.snapshot_path(*start), written })
        });
        newer.map_or(Ok(()), Err)
    }

    /// Feeds the newest snapshot that can be used, and tells of those that
    /// cannot.
    pub(super) fn load_newest(
        &self,
        listing: &Listing,
        into: &mut dyn Restore,
        progress: &mut dyn FnMut(Progress),
    ) -> (Option<Loaded>, Vec<(PathBuf, String)>) {
        let mut damaged = Vec::new();
        for &start in listing.snapshots.iter().rev() {
            into.reset();
            match snapshots::load(self, start, into, progress) {
                Ok(loaded) => return (Some(loaded), damaged),
                Err(why) => damaged.push((self.snapshot_path(start), why)),
            }
        }
        into.reset();
        (None, damaged)
    }

    /// The log of a layout that another one was rewritten into begins with what
    /// waited; who waits for it is in the snapshots alone.
    fn check_state(
        &self,
        snapshot: Option<&Loaded>,
        damaged: &[(PathBuf, String)],
    ) -> Result<(), RecoverError> {
        if snapshot.is_some() || !self.needs_snapshot() {
            return Ok(());
        }
        let damaged = damaged.first().cloned();
        Err(RecoverError::NoState { path: self.path.clone(), damaged })
    }

    /// All segments that are to be replayed must be there.
    fn check_segments(
        &self,
        listing: &Listing,
        snapshot: Option<&Loaded>,
        vouched: Lsn,
        damaged: &[(PathBuf, String)],
    ) -> Result<(), RecoverError> {
        let start = snapshot.map_or(0, |loaded| loaded.start.lsn);
        let mut next = segment::index(start, self.segment_bytes);
        for &found in listing.from(next) {
            if found != next {
                break;
            }
            next += 1;
        }
        // A segment is made before anything is written to it.
        let is_short = segment::base(next, self.segment_bytes) < vouched;
        let has_later = listing.segments.last().is_some_and(|last| *last > next);
        if !is_short && !has_later {
            return Ok(());
        }
        let path = self.segment_path(next);
        Err(match damaged {
            [(newest, why), ..] if snapshot.is_none() => RecoverError::NoSnapshot {
                snapshot: newest.clone(),
                why: why.clone(),
                missing: path,
            },
            _ => RecoverError::MissingSegment { path },
        })
    }

    fn replay(
        &self,
        listing: &Listing,
        from: Option<LogStart>,
        vouched: Lsn,
        into: &mut dyn Restore,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(LogStart, Option<Torn>, Lsn), RecoverError> {
        let options = LogOptions { segment_bytes: self.segment_bytes, ..LogOptions::default() };
        let from = from.unwrap_or(LogStart::fresh(self.salt));
        let mut scanner = Scanner::resume(from, vouched, options);
        let first = segment::index(scanner.next_base(), self.segment_bytes);
        let indexes = listing.from(first);
        let mut memory = Vec::new();
        for (n, &index) in indexes.iter().enumerate() {
            self.read(index, &mut memory)?;
            let base = segment::base(index, self.segment_bytes);
            let blank = self.blank(index);
            scanner.blank(blank.map_err(|error| self.io(&self.segment_path(index), error))?);
            scanner
                .segment(base, &memory, &mut |lsn, len, record| into.record(lsn, len, &record))
                .map_err(|damage| self.damage(damage))?;
            progress(Progress {
                phase: Phase::Log,
                done: (n as u64 + 1) * self.segment_bytes,
                total: indexes.len() as u64 * self.segment_bytes,
            });
        }
        let durable = scanner.known_durable();
        let (start, torn) = scanner.finish().map_err(|damage| self.damage(damage))?;
        Ok((start, torn, durable))
    }

    /// What waits must have its segment.
    fn check_needed(&self, listing: &Listing, into: &dyn Restore) -> Result<(), RecoverError> {
        for (index, bytes, messages) in into.needed() {
            if listing.segments.binary_search(&index).is_err() {
                let path = self.segment_path(index);
                return Err(RecoverError::MissingMessages { path, messages, bytes });
            }
            self.open_segment(index)?;
        }
        Ok(())
    }

    /// What nothing needs is not read, and deleted by its name one day: it must not
    /// be another segment, which the snapshot before the newest may need, or a file
    /// of another log. A head that is not whole says nothing.
    fn refuse_strange(&self, listing: &Listing) -> Result<(), RecoverError> {
        let heads = listing.segments.iter().filter_map(|it| Some((*it, self.head(*it)?.err()?)));
        let strange = heads.filter(|(_, why)| why.is_another_file());
        // What a repair refuses comes first.
        let first = strange.min_by_key(|(_, why)| !matches!(why, HeaderError::OtherFormat(_)));
        first.map_or(Ok(()), |(index, why)| {
            Err(RecoverError::Header { path: self.segment_path(index), why })
        })
    }

    pub(super) fn damage(&self, damage: crate::Damage) -> RecoverError {
        RecoverError::Damage { path: self.segment_path(damage.segment), damage }
    }

    pub(super) fn io(&self, path: &std::path::Path, error: io::Error) -> RecoverError {
        RecoverError::Io { path: path.into(), error }
    }
}
