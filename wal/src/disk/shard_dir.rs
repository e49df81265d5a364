//! One shard's directory: reading its log back at boot.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::id::ShardId;

use super::error::{DataDirError, RecoverError};
use super::probe::DirectMode;
use super::segments::Segments;
use super::sys;
use crate::log::{LogOptions, LogStart};
use crate::recover::{Scanner, Sink, Torn};
use crate::segment::{self, SegmentHeader};
use crate::{BLOCK, BLOCK_LSN, Lsn};

/// One shard's part of the data directory. Keeps the directory locked.
#[derive(Clone)]
pub struct ShardDir {
    pub(super) path: PathBuf,
    pub(super) shard: ShardId,
    pub(super) salt: u64,
    pub(super) segment_bytes: u64,
    pub(super) _lock: Arc<File>,
}

/// What reading a log back found.
#[derive(Debug)]
pub struct Recovered {
    /// Where the log goes on. Everything before it is on the disk.
    pub start: LogStart,
    /// What was cut off its end, if anything.
    pub torn: Option<Torn>,
    /// Segment files found.
    pub segments: u32,
    /// Log bytes from the first record to the end.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Files in the directory that are not ours; left alone.
    pub foreign: Vec<PathBuf>,
}

impl ShardDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the log from its first record to its end, giving each record to
    /// `sink` in order. Removes our own unfinished files, changes nothing else.
    ///
    /// Needs memory for one segment while it runs. The last commits, which no
    /// later commit vouches for, may so far stand in a cache only (the process
    /// died before their fsync, or the fsync failed); they are written again and
    /// synced, so that nobody is told of a message that a power cut takes back.
    ///
    /// # Errors
    /// [`RecoverError`], which must stop the boot.
    pub fn recover(&self, sink: Sink<'_>) -> Result<Recovered, RecoverError> {
        let began = Instant::now();
        let listing = self.list().map_err(|error| self.io(&self.path, error))?;
        for path in &listing.leftovers {
            fs::remove_file(path).map_err(|error| self.io(path, error))?;
        }
        self.check_order(&listing.segments)?;
        let options = LogOptions { segment_bytes: self.segment_bytes, ..LogOptions::default() };
        let mut scanner = Scanner::new(self.salt, options, 0);
        let mut memory = Vec::new();
        for &index in &listing.segments {
            self.read(index, &mut memory)?;
            let base = segment::base(index, self.segment_bytes);
            scanner.segment(base, &memory, sink).map_err(|damage| self.damage(damage))?;
        }
        let durable = scanner.known_durable();
        let (start, torn) = scanner.finish().map_err(|damage| self.damage(damage))?;
        self.confirm(durable, start.lsn)?;
        Ok(Recovered {
            start,
            torn,
            segments: listing.segments.len() as u32,
            bytes: start.lsn,
            elapsed: began.elapsed(),
            foreign: listing.foreign,
        })
    }

    /// Opens the segments for reading and appending, and makes the one that
    /// holds `end` if it is not there yet.
    ///
    /// # Errors
    /// [`DataDirError`], most likely `Full`.
    pub fn open_segments(&self, end: Lsn, mode: DirectMode) -> Result<Segments, DataDirError> {
        let opened =
            self.list().and_then(|listing| Segments::open(self, &listing.segments, end, mode));
        opened.map_err(|error| DataDirError::from_io(&self.path, error))
    }

    pub(super) fn segment_path(&self, index: u64) -> PathBuf {
        self.path.join(format!("segment-{index:010}.log"))
    }

    pub(super) fn header(&self, index: u64) -> SegmentHeader {
        SegmentHeader {
            log_id: self.salt,
            shard: self.shard,
            base: segment::base(index, self.segment_bytes),
            segment_bytes: self.segment_bytes,
        }
    }

    fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match segment_index(name) {
                Some(index) => listing.segments.push(index),
                None if is_leftover(name) => listing.leftovers.push(path),
                None => listing.foreign.push(path),
            }
        }
        listing.segments.sort_unstable();
        listing.foreign.sort_unstable();
        Ok(listing)
    }

    /// Nothing deletes segments yet, so the log begins with the first.
    fn check_order(&self, segments: &[u64]) -> Result<(), RecoverError> {
        match (0..).zip(segments).find(|(expected, found)| expected != *found) {
            None => Ok(()),
            Some((index, _)) => {
                Err(RecoverError::MissingSegment { path: self.segment_path(index) })
            }
        }
    }

    /// Reads a segment's log part into `memory`, after checking that it is the
    /// file that belongs there.
    fn read(&self, index: u64, memory: &mut Vec<u8>) -> Result<(), RecoverError> {
        let path = self.segment_path(index);
        let failed = |error| self.io(&path, error);
        let file = File::open(&path).map_err(failed)?;
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
        memory.resize(self.segment_bytes as usize, 0);
        file.read_exact_at(memory, BLOCK_LSN).map_err(failed)?;
        sys::drop_cached(&file);
        Ok(())
    }

    /// Writes the log from `from` to `to` over itself and syncs it.
    fn confirm(&self, from: Lsn, to: Lsn) -> Result<(), RecoverError> {
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

    fn damage(&self, damage: crate::Damage) -> RecoverError {
        RecoverError::Damage { path: self.segment_path(damage.segment), damage }
    }

    fn io(&self, path: &Path, error: io::Error) -> RecoverError {
        RecoverError::Io { path: path.into(), error }
    }
}

/// What lies in a shard's directory.
#[derive(Default)]
struct Listing {
    /// Numbers of the segments, in order.
    segments: Vec<u64>,
    /// Unfinished files of ours.
    leftovers: Vec<PathBuf>,
    foreign: Vec<PathBuf>,
}

/// The number in a segment's file name.
fn segment_index(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    let canonical = digits.len() >= 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    canonical.then(|| digits.parse().ok())?
}

/// Whether a file is one of ours that was never finished.
pub(super) fn is_leftover(name: &str) -> bool {
    (name.starts_with("segment-") || name.starts_with("probe-")) && name.ends_with(".tmp")
}
