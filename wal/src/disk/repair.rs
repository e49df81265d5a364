//! The disk's side of a repair: reading whatever can still be read of a shard,
//! writing what is to be kept, and moving aside, never deleting, what is not.
//!
//! The order makes it safe to be interrupted anywhere: what is to go has a second
//! name where it goes, copies go behind the end of the log or into segments that
//! nothing refers to yet, then a snapshot gets its name that makes them count, and
//! only then do old files lose their first names. Done again, it goes on from
//! there.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::data_dir::{DataDir, refuse_other_owner, sync_dir};
use super::error::{DataDirError, RecoverError};
use super::inspect::Inspection;
use super::manifest_copy;
use super::probe::DirectMode;
use super::recovery::{Phase, Progress};
use super::segments::{Unnamed, make_unnamed};
use super::shard_dir::{Listing, ShardDir};
use super::snapshots::Loaded;
use crate::clean::Walker;
use crate::file;
use crate::log::LogStart;
use crate::record::Record;
use crate::salvage::{Piece, Rescue, Salvage, Survey, fresh_segment};
use crate::sector::Blank;
use crate::segment::HeaderError;
use crate::{BLOCK, BLOCK_LSN, Damage, Lsn, segment};

/// Lost ranges that are told of one by one.
const RANGES_MAX: usize = 1000;

/// A segment whose number is so much higher than that of any known one may still be
/// one of the log that cannot be read, and those between be missing.
const GAP_MAX: u64 = 4096;

/// What reading a damaged shard found.
#[derive(Debug)]
pub struct Salvaged {
    /// Where the log can go on.
    pub fresh: LogStart,
    /// What was read from this position to the other one may so far stand in a
    /// cache only.
    pub unconfirmed: (Lsn, Lsn),
    /// The snapshot that was read back, if any could be.
    pub snapshot: Option<Loaded>,
    /// Snapshots that cannot be used, and why in words.
    pub damaged_snapshots: Vec<(PathBuf, String)>,
    /// Segments that are not whole, and why in words.
    pub flawed: Vec<(PathBuf, String)>,
    /// Segments that should be there.
    pub missing: Vec<PathBuf>,
    /// What had been acknowledged in the log and cannot be read, the first ones.
    pub lost: Vec<Lost>,
    /// How many those are in all, and their bytes.
    pub lost_total: (u64, u64),
    /// Without a snapshot the log is not complete: what stood before this
    /// position is gone.
    pub lost_before: Option<Lsn>,
    /// Numbers of the segments that a repaired shard goes on without, ascending.
    pub aside: Vec<u64>,
    /// Files that are not ours.
    pub foreign: Vec<PathBuf>,
}

/// A range of bytes that had been acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The segment's file.
    pub path: PathBuf,
    /// Where it begins in the file.
    pub offset: u64,
    /// The first position in the log.
    pub lsn: Lsn,
    /// How many bytes.
    pub bytes: u64,
}

/// What can be read of a segment's log part.
#[derive(Default)]
struct Loose {
    /// All of it, zeroes in its holes.
    bytes: Vec<u8>,
    /// What the disk refuses or the file does not have.
    holes: Vec<Range<Lsn>>,
    /// Why the first of them cannot be read.
    error: Option<io::Error>,
}

impl Loose {
    fn refuse(&mut self, hole: Range<Lsn>, error: io::Error) {
        self.error.get_or_insert(error);
        match self.holes.last_mut() {
            Some(last) if last.end == hole.start => last.end = hole.end,
            _ => self.holes.push(hole),
        }
    }
}

impl Salvaged {
    /// Where the log that was found ends.
    pub fn end(&self) -> Lsn {
        self.unconfirmed.1
    }
}

impl DataDir {
    /// Opens a directory that is there as it is, and keeps servers out of it.
    ///
    /// # Errors
    /// [`DataDirError`]; nothing has changed then, nor otherwise.
    pub fn open_as_it_is(path: &Path) -> Result<DataDir, DataDirError> {
        // Says what is wrong before anything is made, a lock's file included.
        let manifest = Inspection::open(path)?.manifest().clone();
        let lock = super::data_dir::take_lock(path)?;
        super::data_dir::give_to_owner(&lock, path);
        let has_begun = manifest_copy::says_begun(path, &manifest);
        Ok(DataDir { path: path.into(), manifest, has_begun, lock: Arc::new(lock) })
    }

    /// Says in the manifest that this version has written to the directory.
    ///
    /// # Errors
    /// What the system said, with the path.
    pub fn begin_to_write(self) -> Result<DataDir, DataDirError> {
        refuse_other_owner(&self.path)?;
        self.upgrade()
    }
}

impl ShardDir {
    /// Reads whatever is left into `into`: the newest whole snapshot and every
    /// valid record of the log since then. Changes nothing. Looks at every byte
    /// of every segment.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn salvage(
        &self,
        into: &mut dyn Rescue,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Salvaged, RecoverError> {
        let mut listing = match self.list() {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Listing::default(),
            Err(error) => return Err(self.io(self.path(), error)),
        };
        self.refuse_newer(&listing)?;
        let (snapshot, damaged_snapshots) = self.load_newest(&listing, into, progress);
        let known = snapshot.as_ref().map_or(0, |loaded| loaded.end);
        let newest = self.newest_own(&listing, known, into);
        let is_near = |lsn: &&Lsn| segment::index(**lsn, self.segment_bytes) <= newest + GAP_MAX;
        let named = listing.snapshots.iter().rev().find(is_near).copied().unwrap_or(0);
        let vouched = known.max(named);
        let strays = self.take_strays(&mut listing, newest);
        let mut lost_before = None;
        let (start, is_exact) = match &snapshot {
            Some(loaded) => (loaded.start, true),
            None => {
                let first = listing.segments.first().copied().unwrap_or(0);
                let lsn = segment::base(first, self.segment_bytes);
                lost_before = (lsn > 0).then_some(lsn);
                (LogStart { lsn, ..LogStart::fresh(self.salt) }, lsn == 0)
            }
        };
        if let Some(lsn) = lost_before {
            into.lost(lsn, None);
        }
        let mut survey = Survey::new(self.salt, vouched);
        for &index in listing.from(segment::index(start.lsn, self.segment_bytes)) {
            let found = self.read_loosely(index);
            survey.segment(segment::base(index, self.segment_bytes), &found.bytes);
        }
        let mut found = Salvaged {
            fresh: start,
            unconfirmed: (start.lsn, start.lsn),
            snapshot,
            damaged_snapshots,
            flawed: Vec::new(),
            missing: Vec::new(),
            lost: Vec::new(),
            lost_total: (0, 0),
            lost_before,
            aside: Vec::new(),
            foreign: listing.foreign.clone(),
        };
        let mut salvage = Salvage::new(start, is_exact, self.segment_bytes, &survey);
        self.read_pieces(&listing, &survey, &mut salvage, into, &mut found, progress);
        let end = salvage.end();
        self.check_each(&listing, end.lsn, &mut found);
        for index in &strays {
            let file = self.segment_file(*index);
            found.flawed.push((file.path, file.flaw.expect("it is another file")));
        }
        // The log goes on behind those that are near, as behind all that is given up;
        // it never comes to the others.
        let (near, far) = strays.split_at(strays.partition_point(|it| *it <= newest + GAP_MAX));
        found.aside.extend(near);
        found.fresh = self.goes_on(&listing, &survey, end, &mut found);
        found.aside.extend(far);
        let is_gone = |index: &u64| listing.segments.binary_search(index).is_err();
        let needed = into.needed().into_iter().map(|(index, ..)| index).filter(is_gone);
        found.missing.extend(needed.map(|index| self.segment_path(index)));
        found.missing.sort_unstable();
        found.missing.dedup();
        found.unconfirmed = (survey.durable.max(start.lsn), end.lsn);
        Ok(found)
    }

    /// What a newer version wrote is not damaged, and not for this one to judge.
    fn refuse_newer(&self, listing: &Listing) -> Result<(), RecoverError> {
        self.refuse_forbidden(listing)?;
        self.refuse_newer_snapshots(listing)?;
        for index in &listing.segments {
            if let Err(error @ RecoverError::Header { why: HeaderError::OtherFormat(_), .. }) =
                self.open_segment(*index)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The newest segment that is surely one of this log: by its head, by any commit
    /// in it, or by what the snapshot says, which knows the log up to `known`.
    fn newest_own(&self, listing: &Listing, known: Lsn, into: &dyn Rescue) -> u64 {
        let is_own = |index: &u64| self.head(*index) == Some(Ok(())) || self.has_commit(*index);
        let newest = listing.segments.iter().copied().rev().find(is_own);
        let waits_in = into.needed().into_iter().map(|(index, ..)| index).max();
        let said = (known > 0).then(|| segment::index(known - 1, self.segment_bytes));
        newest.max(waits_in).max(said).or(listing.segments.first().copied()).unwrap_or(0)
    }

    fn has_commit(&self, index: u64) -> bool {
        let mut survey = Survey::new(self.salt, 0);
        let base = segment::base(index, self.segment_bytes);
        survey.segment(base, &self.read_loosely(index).bytes);
        survey.end > 0
    }

    /// Takes files out that stand behind the newest segment of this log and are none:
    /// another one by the head, or nothing that anybody can tell, far behind it. They
    /// do not say that what is between was ever made.
    fn take_strays(&self, listing: &mut Listing, newest: u64) -> Vec<u64> {
        let behind = listing.segments.partition_point(|index| *index <= newest);
        let is_stray = |index: &u64| match self.head(*index) {
            Some(Err(why)) if why.is_another_file() => true,
            Some(Ok(())) => false,
            _ => *index > newest + GAP_MAX,
        };
        listing.segments.extract_if(behind.., |index| is_stray(index)).collect()
    }

    /// Where the log goes on. If nothing of it is lost, at its end: whatever
    /// happens to the repair then, a start still finds a whole log. Otherwise
    /// in a segment of its own, and all that is unfinished before is given up.
    fn goes_on(
        &self,
        listing: &Listing,
        survey: &Survey,
        end: LogStart,
        found: &mut Salvaged,
    ) -> LogStart {
        let unfinished = segment::index(end.lsn, self.segment_bytes);
        let is_whole = found.lost.is_empty()
            && found.missing.is_empty()
            && found.lost_before.is_none()
            && found.aside.last().is_none_or(|last| *last < unfinished);
        if is_whole {
            return end;
        }
        let fresh = fresh_segment(survey, end.lsn, self.segment_bytes);
        let mut aside = BTreeSet::from_iter(found.aside.drain(..));
        // The log may not go on in one that is given up.
        let fresh = aside.last().map_or(fresh, |last| fresh.max(last + 1));
        // Whoever cleans those before it later would find no whole log in them.
        aside.extend(listing.from(unfinished).iter().filter(|index| **index < fresh));
        found.aside = aside.into_iter().collect();
        LogStart { lsn: segment::base(fresh, self.segment_bytes), ..end }
    }

    /// Goes through the log from the snapshot on.
    fn read_pieces(
        &self,
        listing: &Listing,
        survey: &Survey,
        salvage: &mut Salvage,
        into: &mut dyn Rescue,
        found: &mut Salvaged,
        progress: &mut dyn FnMut(Progress),
    ) {
        let first = segment::index(salvage.end().lsn, self.segment_bytes);
        let newest = listing.segments.last().copied().unwrap_or(0);
        let behind = listing.segments.last().map_or(0, |newest| newest + 1);
        let last = fresh_segment(survey, salvage.end().lsn, self.segment_bytes).max(behind);
        for index in first..last {
            let base = segment::base(index, self.segment_bytes);
            let is_there = listing.segments.binary_search(&index).is_ok();
            // They are made one after the other.
            let was_made = !is_there && index < newest;
            if !is_there && (base < survey.durable || was_made) {
                found.missing.push(self.segment_path(index));
            }
            let mut sink = |piece: Piece<'_>| match piece {
                Piece::Record { lsn, len, record } => into.record(lsn, len, &record),
                Piece::Lost { from, to, likely } => {
                    into.lost(to - from, likely.as_ref());
                    self.note_lost(from, to, found);
                }
            };
            if was_made {
                salvage.missing(base, &mut sink);
            } else if !salvage.is_over() {
                let found = if is_there { self.read_loosely(index) } else { Loose::default() };
                salvage.blank(self.blank_in(index, &found.bytes));
                salvage.segment(base, &found.bytes, &found.holes, &mut sink);
            }
            let (done, total) = (index + 1 - first, last - first);
            progress(Progress {
                phase: Phase::Log,
                done: done * self.segment_bytes,
                total: total * self.segment_bytes,
            });
        }
    }

    /// What stands in a segment where nothing was written: as its head says, or what
    /// shows that when the head is damaged.
    fn blank_in(&self, index: u64, bytes: &[u8]) -> Blank {
        let pattern = Blank::of_log(self.salt);
        match self.blank(index).unwrap_or_default() {
            Blank::Unknown if bytes.chunks(BLOCK).any(|it| pattern.is(it)) => pattern,
            said => said,
        }
    }

    fn note_lost(&self, from: Lsn, to: Lsn, found: &mut Salvaged) {
        found.lost_total.0 += 1;
        found.lost_total.1 += to - from;
        if found.lost.len() < RANGES_MAX {
            let (path, offset) = self.place(from);
            found.lost.push(Lost { path, offset, lsn: from, bytes: to - from });
        }
        found.aside.push(segment::index(from, self.segment_bytes));
    }

    /// Looks at each segment by itself; which ones are given up.
    fn check_each(&self, listing: &Listing, end: Lsn, found: &mut Salvaged) {
        let mut aside = BTreeSet::from_iter(found.aside.drain(..));
        for &index in &listing.segments {
            let file = self.segment_file(index);
            if let Some(flaw) = file.flaw.or_else(|| self.flaw_within(index, end)) {
                found.flawed.push((file.path, flaw));
                aside.insert(index);
            }
        }
        aside.retain(|index| listing.segments.binary_search(index).is_ok());
        found.aside = aside.into_iter().collect();
    }

    /// What is wrong with a segment whose length and head are right, in words.
    fn flaw_within(&self, index: u64, end: Lsn) -> Option<String> {
        let found = self.read_loosely(index);
        if let Some(hole) = found.holes.first() {
            let refused: Lsn = found.holes.iter().map(|hole| hole.end - hole.start).sum();
            let offset = segment::file_offset(hole.start, self.segment_bytes);
            let why = found.error.map_or("it ends there".into(), |error| error.to_string());
            return Some(format!(
                "{refused} bytes of it cannot be read, the first of them at file offset {offset}: {why}"
            ));
        }
        if index > segment::index(end, self.segment_bytes) {
            return None;
        }
        let damage = self.walk(index, &found.bytes).err();
        // Behind the log's end there need not be anything.
        damage.filter(|damage| damage.lsn < end).map(|damage| damage.to_string())
    }

    /// Whether a full segment is whole, as cleaning will want it.
    fn walk(&self, index: u64, bytes: &[u8]) -> Result<(), Damage> {
        let base = segment::base(index, self.segment_bytes);
        let mut walker =
            Walker::new(self.salt, index, self.segment_bytes, self.segment_bytes as u32);
        walker.feed(base, bytes, &mut |_, _, _| ControlFlow::Continue(()))
    }

    /// The log part of a segment as far as it can be read. Whose file it is its
    /// records will tell.
    fn read_loosely(&self, index: u64) -> Loose {
        let base = segment::base(index, self.segment_bytes);
        let mut found = Loose { bytes: vec![0; self.segment_bytes as usize], ..Loose::default() };
        let opened = file::open(&self.segment_path(index))
            .and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
        let (file, len) = match opened {
            Ok(it) => it,
            Err(error) => {
                found.refuse(base..base + self.segment_bytes, error);
                return found;
            }
        };
        let len = len.saturating_sub(BLOCK_LSN).min(self.segment_bytes);
        let bytes = &mut found.bytes[..len as usize];
        if file.read_exact_at(bytes, BLOCK_LSN).is_err() {
            let mut refused = Vec::new();
            for (block, at) in bytes.chunks_mut(BLOCK).zip((0..).step_by(BLOCK)) {
                if let Err(error) = file.read_exact_at(block, BLOCK_LSN + at) {
                    block.fill(0);
                    refused.push((base + at..base + at + block.len() as Lsn, error));
                }
            }
            refused.into_iter().for_each(|(block, error)| found.refuse(block, error));
        }
        if len < self.segment_bytes {
            found
                .refuse(base + len..base + self.segment_bytes, io::ErrorKind::UnexpectedEof.into());
        }
        found
    }

    /// The names here that are symbolic links: what they point to would stay
    /// where it is when they are moved.
    pub fn links(&self) -> Vec<PathBuf> {
        let listing = self.list().unwrap_or_default();
        let own = self.path.is_symlink().then_some(&self.path);
        own.into_iter().chain(listing.links()).cloned().collect()
    }

    /// Makes the directory if it is gone, and removes our own unfinished files,
    /// as every start does.
    ///
    /// # Errors
    /// What the system said.
    pub fn make_ready(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        self.path.parent().map_or(Ok(()), sync_dir)?;
        self.list()?.leftovers.iter().try_for_each(fs::remove_file)
    }

    /// Makes sure that the disk has what was read from the end of the log, and
    /// nothing where it goes on, as a start does.
    ///
    /// # Errors
    /// What the system said, with the file.
    pub fn confirm_end(&self, found: &Salvaged) -> Result<(), RecoverError> {
        let (mut at, to) = found.unconfirmed;
        while at < to {
            let index = segment::index(at, self.segment_bytes);
            let end = to.min(segment::base(index + 1, self.segment_bytes));
            // What is given up is copied.
            if found.aside.binary_search(&index).is_err() && self.segment_path(index).exists() {
                self.confirm(at, end)?;
            }
            at = end;
        }
        self.blank_behind(found.fresh.lsn).map_err(|error| self.io(self.path(), error))
    }

    /// Moves a damaged snapshot out of the way of the one that is to begin at
    /// the same place. What was moved, if one was there.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_aside_snapshot(&self, to: &Path, start: Lsn) -> io::Result<Option<PathBuf>> {
        let path = self.snapshot_path(start);
        if !path.try_exists()? {
            return Ok(None);
        }
        self.move_to(to, std::slice::from_ref(&path))?;
        Ok(Some(path))
    }

    /// What is moved there already goes from here only.
    fn move_to(&self, to: &Path, paths: &[PathBuf]) -> io::Result<()> {
        make_all(to)?;
        for path in paths {
            let there = name_in(to, path);
            match fs::symlink_metadata(&there) {
                Ok(it) if is_same(&it, &fs::symlink_metadata(path)?) => fs::remove_file(path)?,
                Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => fs::rename(path, there)?,
            }
        }
        sync_dir(to)?;
        sync_dir(&self.path)
    }

    /// Gives what [`ShardDir::set_aside`] is to move its name in this directory,
    /// too. To be done before anything is written: once the new snapshots count, a
    /// server that is started before the move may find that nothing needs these
    /// files, and delete them. Returns those that cannot have a second name.
    ///
    /// # Errors
    /// What the system said; nothing can be moved there then either.
    pub fn keep(&self, to: &Path, segments: &[u64], but: Option<Lsn>) -> io::Result<Vec<PathBuf>> {
        let outgoing = self.outgoing(segments, but.as_slice())?;
        let mut single = Vec::new();
        if outgoing.is_empty() {
            return Ok(single);
        }
        make_all(to)?;
        for path in outgoing {
            match fs::hard_link(&path, name_in(to, &path)) {
                Ok(()) => {}
                Err(error) if has_no_link(&error) => single.push(path),
                Err(error) => return Err(error),
            }
        }
        sync_dir(to)?;
        Ok(single)
    }

    /// Moves these segments, and all snapshots but those that begin at `but`, into
    /// this directory, which is made. Returns what was moved.
    ///
    /// # Errors
    /// What the system said; what has been moved is there.
    pub fn set_aside(
        &self,
        to: &Path,
        segments: &[u64],
        but: [Lsn; 2],
    ) -> io::Result<Vec<PathBuf>> {
        let moved = self.outgoing(segments, &but)?;
        if !moved.is_empty() {
            self.move_to(to, &moved)?;
        }
        Ok(moved)
    }

    /// The files of a repair that are to go.
    fn outgoing(&self, segments: &[u64], but: &[Lsn]) -> io::Result<Vec<PathBuf>> {
        let listing = self.list()?;
        let snapshots = listing.snapshots.iter().filter(|start| !but.contains(start));
        let mut files: Vec<PathBuf> = segments.iter().map(|it| self.segment_path(*it)).collect();
        files.extend(snapshots.map(|start| self.snapshot_path(*start)));
        files.extend(listing.aside);
        Ok(files)
    }
}

/// Makes a directory and those above it, and has the disk keep their names.
fn make_all(path: &Path) -> io::Result<()> {
    if path.try_exists()? {
        return Ok(());
    }
    let above = path.parent().expect("below the data directory");
    make_all(above)?;
    DirBuilder::new().mode(0o700).create(path)?;
    sync_dir(above)
}

fn name_in(to: &Path, path: &Path) -> PathBuf {
    to.join(path.file_name().expect("a file has a name"))
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Whether this file cannot have two names.
fn has_no_link(error: &io::Error) -> bool {
    let codes = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::EMLINK];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Writes the commits with which a repaired log goes on.
pub struct Continuation {
    dir: ShardDir,
    mode: DirectMode,
    open: Option<(u64, File)>,
    /// The open one has no name yet.
    unnamed: Option<Unnamed>,
}

impl Continuation {
    /// Of this shard's log.
    pub fn new(dir: &ShardDir, mode: DirectMode) -> Continuation {
        Continuation { dir: dir.clone(), mode, open: None, unnamed: None }
    }

    /// Writes whole blocks at this position and makes them durable, in a new
    /// segment if there is none.
    ///
    /// # Errors
    /// What the system said, most likely that no space is left.
    pub fn write(&mut self, lsn: Lsn, bytes: &[u8]) -> io::Result<()> {
        self.prepare(lsn)?;
        let (_, file) = self.open.as_ref().expect("opened above");
        file.write_all_at(bytes, segment::file_offset(lsn, self.dir.segment_bytes))?;
        file.sync_data()?;
        self.name()
    }

    /// Has the segment that holds this position. If it is a new one it gets its
    /// name with the first commit in it: of a log that has lost all others, an
    /// empty one would pass for one that was never written to.
    ///
    /// # Errors
    /// As for [`Continuation::write`].
    pub fn prepare(&mut self, lsn: Lsn) -> io::Result<()> {
        let index = segment::index(lsn, self.dir.segment_bytes);
        if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            self.name()?;
            let path = self.dir.segment_path(index);
            let file = if path.try_exists()? {
                if self.dir.head(index) != Some(Ok(())) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::OpenOptions::new().read(true).write(true).open(path)?
            } else {
                let unnamed = make_unnamed(&self.dir, index, self.mode, || Ok(()))?;
                self.unnamed.insert(unnamed).file()?
            };
            self.open = Some((index, file));
        }
        Ok(())
    }

    /// Everything is written: a segment that nothing had to be written to counts.
    ///
    /// # Errors
    /// As for [`Continuation::write`].
    pub fn name(&mut self) -> io::Result<()> {
        self.unnamed.take().map_or(Ok(()), |unnamed| unnamed.name().map(|_| ()))
    }
}

/// Reads records one after the other, in the order of the log.
pub struct Records {
    dir: ShardDir,
    open: Option<(u64, Option<File>)>,
    memory: Vec<u8>,
}

impl Records {
    /// Of this shard's log.
    pub fn new(dir: &ShardDir) -> Records {
        Records { dir: dir.clone(), open: None, memory: Vec::new() }
    }

    /// The record of this length at this position, if it is there and valid.
    pub fn get(&mut self, lsn: Lsn, len: u32) -> Option<Record<'_>> {
        let index = segment::index(lsn, self.dir.segment_bytes);
        if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            self.open = Some((index, file::open(&self.dir.segment_path(index)).ok()));
        }
        let (_, file) = self.open.as_ref().expect("opened above");
        self.memory.resize(len as usize, 0);
        let offset = segment::file_offset(lsn, self.dir.segment_bytes);
        file.as_ref()?.read_exact_at(&mut self.memory, offset).ok()?;
        crate::record::verify(&self.memory, self.dir.salt, lsn).ok()
    }
}
