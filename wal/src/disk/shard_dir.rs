//! One shard's directory: what lies in it, and the bytes of its segments.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::id::ShardId;

use super::data_dir::{SEGMENT_BYTES_MAX, shard_path};
use super::error::{DataDirError, RecoverError};
use super::misnamed::Names;
use super::probe::DirectMode;
use super::segments::Segments;
use super::snapshots::snapshot_name;
use super::sys;
use crate::clean::Walker;
use crate::file;
use crate::log::LogOptions;
use crate::manifest::Manifest;
use crate::record::Record;
use crate::sector::Blank;
use crate::segment::{self, HeaderError, SegmentHeader};
use crate::{BLOCK, BLOCK_LSN, Lsn};

/// A walk reads so much at once; longer than any record.
const WALK_BYTES: u32 = 2 << 20;

/// One shard's part of the data directory. Keeps the directory locked.
#[derive(Clone)]
pub struct ShardDir {
    pub(super) path: PathBuf,
    pub(super) shard: ShardId,
    pub(super) salt: u64,
    pub(super) segment_bytes: u64,
    pub(super) generation: u64,
    /// Whether the log has a segment, unless it lost it.
    pub(super) has_begun: bool,
    /// Of segments that do not have their own.
    pub(super) names: Arc<Names>,
    _lock: Arc<File>,
}

impl ShardDir {
    pub(super) fn new(
        dir: &Path,
        manifest: &Manifest,
        shard: ShardId,
        has_begun: bool,
        lock: &Arc<File>,
    ) -> ShardDir {
        ShardDir {
            path: shard_path(dir, manifest.generation, shard),
            shard,
            salt: manifest.salts[usize::from(shard)],
            segment_bytes: manifest.segment_bytes,
            generation: manifest.generation,
            has_begun,
            names: Arc::default(),
            _lock: Arc::clone(lock),
        }
    }

    /// Which shard's.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Whether only a snapshot says who waits for what: the log began with what
    /// was copied from another layout.
    pub fn needs_snapshot(&self) -> bool {
        self.generation > 0
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As [`DataDir::await_writes`](super::DataDir::await_writes).
    pub(super) fn await_writes(&self, tell: &mut dyn FnMut(&Path)) -> Result<(), DataDirError> {
        let failed = |error| DataDirError::from_io(&self.path, error);
        for index in self.list().unwrap_or_default().segments {
            let path = self.segment_path(index);
            // Whoever reads what cannot be opened will say so.
            let Ok(file) = file::open(&path) else { continue };
            match file.try_lock_shared() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    tell(&path);
                    file.lock_shared().map_err(failed)?;
                }
                Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Opens the segments for reading and appending, and makes the one that
    /// holds `end` if it is not there yet. The log goes on at `end`: what a torn
    /// write has left behind it is made blank.
    ///
    /// # Errors
    /// [`DataDirError`], most likely `Full`.
    pub fn open_segments(&self, end: Lsn, mode: DirectMode) -> Result<Segments, DataDirError> {
        let opened = self
            .blank_behind(end)
            .and_then(|()| self.list())
            .and_then(|listing| Segments::open(self, &listing.segments, end, mode));
        opened.map_err(|error| DataDirError::from_io(&self.path, error))
    }

    /// Reads a segment of a log that ends at `end`, and gives each record in it
    /// to `sink` until that breaks off. Needs memory for a piece of it.
    ///
    /// # Errors
    /// [`RecoverError`], also for damage of what nobody waits for.
    pub fn each_record(
        &self,
        index: u64,
        end: Lsn,
        sink: &mut dyn FnMut(Lsn, u32, Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), RecoverError> {
        let file = self.open_segment(index)?;
        let path = self.segment_path(index);
        let mut walker = Walker::new(self.salt, index, self.segment_bytes, WALK_BYTES);
        let mut memory = vec![0; WALK_BYTES as usize];
        let mut is_over = false;
        while let Some(want) = walker.want().filter(|_| !is_over) {
            let len = end.saturating_sub(want.lsn).min(want.len.into()) as usize;
            if len < want.len_min as usize {
                break;
            }
            let bytes = &mut memory[..len];
            let offset = segment::file_offset(want.lsn, self.segment_bytes);
            file.read_exact_at(bytes, offset).map_err(|error| self.io(&path, error))?;
            let mut sink = |lsn, len, record: Record<'_>| {
                let flow = sink(lsn, len, record);
                is_over = flow.is_break();
                flow
            };
            walker.feed(want.lsn, bytes, &mut sink).map_err(|damage| self.damage(damage))?;
        }
        sys::drop_cached(&file);
        Ok(())
    }

    pub(super) fn segment_path(&self, index: u64) -> PathBuf {
        self.path.join(segment_name(self.names.of(index)))
    }

    pub(super) fn snapshot_path(&self, start: Lsn) -> PathBuf {
        self.path.join(format!("snapshot-{start:020}.snap"))
    }

    pub(super) fn header(&self, index: u64) -> SegmentHeader {
        SegmentHeader {
            log_id: self.salt,
            shard: self.shard,
            base: segment::base(index, self.segment_bytes),
            segment_bytes: self.segment_bytes,
        }
    }

    /// How large the newest snapshot is, 0 without one.
    pub fn newest_snapshot_bytes(&self) -> u64 {
        let newest = self.list().ok().and_then(|listing| listing.snapshots.last().copied());
        let found = newest.and_then(|start| fs::metadata(self.snapshot_path(start)).ok());
        found.map_or(0, |found| found.len())
    }

    pub(super) fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let kind = entry.file_type()?;
            // A directory or a link with one of our names is somebody's own
            // arrangement, and no log was ever written through it. But nothing
            // must be written through a link that stands where a file will be.
            if !(kind.is_file() || kind.is_symlink() && is_leftover(name)) {
                listing.foreign.push(path);
                continue;
            }
            match segment_index(name) {
                Some(name) => listing.segments.push(self.names.bearer(name)),
                None if is_leftover(name) => listing.leftovers.push(path),
                None => match snapshot_name(&path) {
                    Some((start, false)) => listing.snapshots.push(start),
                    // Goes with the snapshots of its time.
                    Some((_, true)) => listing.aside.push(path),
                    None => listing.foreign.push(path),
                },
            }
        }
        listing.segments.sort_unstable();
        listing.snapshots.sort_unstable();
        listing.aside.sort_unstable();
        listing.foreign.sort_unstable();
        Ok(listing)
    }

    /// Reads a segment's log part into `memory`, after checking that it is the
    /// file that belongs there.
    pub(super) fn read(&self, index: u64, memory: &mut Vec<u8>) -> Result<(), RecoverError> {
        let file = self.open_segment(index)?;
        memory.resize(self.segment_bytes as usize, 0);
        file.read_exact_at(memory, BLOCK_LSN)
            .map_err(|error| self.io(&self.segment_path(index), error))?;
        sys::drop_cached(&file);
        Ok(())
    }

    /// Opens a segment's file for reading, if it is the one that belongs there.
    pub(super) fn open_segment(&self, index: u64) -> Result<File, RecoverError> {
        let path = self.segment_path(index);
        let failed = |error| self.io(&path, error);
        let file = file::open(&path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        let mut block = vec![0; BLOCK.min(found as usize)];
        file.read_exact_at(&mut block, 0).map_err(failed)?;
        if let Err(why) = self.header(index).expect(&block) {
            return Err(RecoverError::Header { path, why });
        }
        let expected = segment::file_bytes(self.segment_bytes);
        if found != expected {
            return Err(RecoverError::WrongSize { path, found, expected });
        }
        Ok(file)
    }

    /// Whether this file is by its head the segment that belongs there; `None` when
    /// that cannot be read.
    pub(super) fn head(&self, index: u64) -> Option<Result<(), HeaderError>> {
        let mut head = [0; segment::HEAD_BYTES];
        let file = file::open(&self.segment_path(index)).ok()?;
        file.read_exact_at(&mut head, 0).ok()?;
        Some(self.header(index).expect(&head))
    }

    /// What stands in a segment where nothing was written yet.
    pub(super) fn blank(&self, index: u64) -> io::Result<Blank> {
        let mut head = [0; segment::HEAD_BYTES];
        file::open(&self.segment_path(index))?.read_exact_at(&mut head, 0)?;
        Ok(segment::blank(&head))
    }

    /// Makes it blank, and syncs that, wherever a crash can have found writes under
    /// way behind the end of the log: what a torn write will have lost there must
    /// not look like something that was written. Whatever is read there now: what a
    /// start has put there that was interrupted, or whose sync failed, may stand in a
    /// cache only. May be interrupted anywhere: what looks torn now does then. Segments
    /// of formats that are not judged by that stay as they are.
    pub(super) fn blank_behind(&self, end: Lsn) -> io::Result<()> {
        let listing = self.list()?;
        let to = end + under_way_bytes();
        for &index in listing.from(segment::index(end, self.segment_bytes)) {
            let base = segment::base(index, self.segment_bytes);
            let (from, to) = (end.max(base), to.min(base + self.segment_bytes));
            let blank = self.blank(index)?;
            if from < to && blank != Blank::Unknown {
                self.fill_in(&self.segment_path(index), from, to, blank)?;
            }
        }
        Ok(())
    }

    fn fill_in(&self, path: &Path, from: Lsn, to: Lsn, blank: Blank) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        let mut bytes = vec![0; (to - from) as usize];
        blank.fill(&mut bytes);
        file.write_all_at(&bytes, segment::file_offset(from, self.segment_bytes))?;
        file.sync_data()?;
        sys::drop_cached(&file);
        Ok(())
    }

    /// Writes the log from `from` to `to` over itself and syncs it.
    pub(super) fn confirm(&self, from: Lsn, to: Lsn) -> Result<(), RecoverError> {
        let mut at = from;
        while at < to {
            let index = segment::index(at, self.segment_bytes);
            let end = to.min(segment::base(index + 1, self.segment_bytes));
            let path = self.segment_path(index);
            self.confirm_in(&path, at, end).map_err(|error| self.io(&path, error))?;
            at = end;
        }
        Ok(())
    }

    fn confirm_in(&self, path: &Path, from: Lsn, to: Lsn) -> io::Result<()> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let offset = segment::file_offset(from, self.segment_bytes);
        let mut bytes = vec![0; (to - from) as usize];
        file.read_exact_at(&mut bytes, offset)?;
        file.write_all_at(&bytes, offset)?;
        file.sync_data()?;
        sys::drop_cached(&file);
        Ok(())
    }
}

/// So far behind the log's end a crash can find writes under way, bytes.
fn under_way_bytes() -> Lsn {
    let options = LogOptions::default();
    (options.writes_in_flight_max * options.commit_bytes_max) as Lsn
}

/// What lies in a shard's directory.
#[derive(Default)]
pub(super) struct Listing {
    /// Numbers of the segments, ascending.
    pub(super) segments: Vec<u64>,
    /// Where the replays of the snapshots begin, ascending.
    pub(super) snapshots: Vec<Lsn>,
    /// Snapshots that were set aside.
    pub(super) aside: Vec<PathBuf>,
    /// Unfinished files of ours.
    pub(super) leftovers: Vec<PathBuf>,
    pub(super) foreign: Vec<PathBuf>,
}

impl Listing {
    /// Symbolic links with names of ours.
    pub(super) fn links(&self) -> impl Iterator<Item = &PathBuf> {
        self.foreign.iter().filter(|path| is_ours(path) && path.is_symlink())
    }

    /// The segments from this one on.
    pub(super) fn from(&self, index: u64) -> &[u64] {
        &self.segments[self.segments.partition_point(|found| *found < index)..]
    }
}

pub(super) fn segment_name(index: u64) -> String {
    format!("segment-{index:010}.log")
}

/// The number in a segment's file name. Two names never have the same one, and
/// every position in a segment that counts is one.
fn segment_index(name: &str) -> Option<u64> {
    let index: u64 = name.strip_prefix("segment-")?.strip_suffix(".log")?.parse().ok()?;
    let has_positions = index < Lsn::MAX / SEGMENT_BYTES_MAX;
    (has_positions && segment_name(index) == name).then_some(index)
}

/// Whether a file in a shard's directory is one of a log.
pub(super) fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    segment_index(name).is_some() || is_leftover(name) || snapshot_name(path).is_some()
}

/// Whether a file is one of ours that was never finished.
pub(super) fn is_leftover(name: &str) -> bool {
    let kinds = ["segment-", "snapshot-", "probe-"];
    kinds.iter().any(|kind| name.starts_with(kind)) && name.ends_with(".tmp")
}
