//! Looking into a data directory without changing a byte of it.
//!
//! Nothing is locked: whoever looks must never keep a server from starting.
//! When a server runs, what is seen may change while it is read; the caller
//! says so.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::id::ShardId;

use super::data_dir::{self, Holder, manifest_error};
use super::error::{DataDirError, RecoverError};
use super::manifest_copy;
use super::recovery::{Progress, Recovered};
use super::shard_dir::ShardDir;
use super::snapshots::{self, Loaded};
use crate::Lsn;
use crate::commit::{COMMIT_BYTES, Commit};
use crate::file;
use crate::log::LogStart;
use crate::manifest::{self, Manifest};
use crate::record::{self, HEADER_BYTES, Header, KIND_COMMIT, Malformed, Record};
use crate::recover::Restore;
use crate::segment;

/// A data directory that is only looked at.
pub struct Inspection {
    path: PathBuf,
    manifest: Manifest,
    has_begun: bool,
    /// Stands where a lock would.
    dir: Arc<File>,
}

impl Inspection {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// [`DataDirError`] in the words of a start.
    pub fn open(path: &Path) -> Result<Inspection, DataDirError> {
        let failed = |error| DataDirError::from_io(path, error);
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(DataDirError::NotADirectory { path: path.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataDirError::NotADataDir { path: path.into() });
            }
            Err(error) => return Err(failed(error)),
        }
        let manifest = match Manifest::load(path) {
            Ok(manifest) => manifest,
            Err(manifest::ManifestError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                data_dir::refuse_foreign(path)?;
                return Err(DataDirError::NotADataDir { path: path.into() });
            }
            Err(error) => return Err(manifest_error(path, error)),
        };
        let dir = Arc::new(File::open(path).map_err(failed)?);
        let has_begun = manifest_copy::says_begun(path, &manifest);
        Ok(Inspection { path: path.into(), manifest, has_begun, dir })
    }

    /// What the directory says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Who holds the directory at this moment, if anybody does.
    pub fn holder(&self) -> Option<Holder> {
        data_dir::holder(&self.path)
    }

    /// One shard's part of it. Only what reads may be called.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn shard(&self, shard: ShardId) -> ShardDir {
        ShardDir::new(&self.path, &self.manifest, shard, self.has_begun, &self.dir)
    }
}

/// The files of one shard, each looked at by itself.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The segments, by number.
    pub segments: Vec<SegmentFile>,
    /// The snapshots, by where their replay begins.
    pub snapshots: Vec<SnapshotSeen>,
    /// Snapshots that an earlier start could not use and set aside.
    pub aside: Vec<PathBuf>,
    /// Unfinished files of ours, which the next start removes.
    pub leftovers: Vec<PathBuf>,
    /// Files that are not ours.
    pub foreign: Vec<PathBuf>,
}

/// One segment's file.
#[derive(Clone, Debug)]
pub struct SegmentFile {
    /// Its number.
    pub index: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
    /// What is wrong with its length or its first block, in words.
    pub flaw: Option<String>,
}

/// One snapshot's file.
#[derive(Clone, Debug)]
pub struct SnapshotSeen {
    /// Where it is.
    pub path: PathBuf,
    /// Where the replay begins, as its name says.
    pub start: Lsn,
    /// Its length, bytes.
    pub bytes: u64,
    /// What was read back, or in words why it cannot be used.
    pub read: Result<Loaded, String>,
    /// Its format, if a newer version wrote it.
    pub newer: Option<u32>,
}

/// What stands at a place of the log.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// The record that a write begins with.
    Commit(Commit),
    /// Any other.
    Record(Record<'a>),
}

/// Why there is no record at a place.
#[derive(Debug)]
pub enum NoRecord {
    /// Its segment is not there: this file.
    NoSegment(PathBuf),
    /// The bytes at this offset of this file are none.
    Malformed(PathBuf, u64, Malformed),
    /// The system said no.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for NoRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoRecord::NoSegment(path) => write!(f, "{} is not there", path.display()),
            NoRecord::Malformed(path, offset, why) => write!(
                f,
                "no record stands at file offset {offset} of {}, or it is damaged: {why}",
                path.display()
            ),
            NoRecord::Io(path, error) => {
                write!(f, "{} could not be read: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for NoRecord {}

impl ShardDir {
    /// Reads the state back as a start would, and changes nothing.
    ///
    /// # Errors
    /// [`RecoverError`], with which the start would be refused.
    pub fn look_back(
        &self,
        into: &mut dyn Restore,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, RecoverError> {
        let listing = self.list().map_err(|error| self.io(self.path(), error))?;
        self.read_back(listing, into, progress).map(|(recovered, _)| recovered)
    }

    /// Looks at each file by itself; every byte of the snapshots is checked.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn files(&self) -> io::Result<Files> {
        let listing = self.list()?;
        let segments = listing.segments.iter().map(|index| self.segment_file(*index));
        let snapshots = listing.snapshots.iter().map(|start| self.snapshot_seen(*start));
        Ok(Files {
            segments: segments.collect(),
            snapshots: snapshots.collect(),
            aside: listing.aside.clone(),
            leftovers: listing.leftovers.clone(),
            foreign: listing.foreign.clone(),
        })
    }

    /// The file that holds this position, and where in it.
    pub fn place(&self, lsn: Lsn) -> (PathBuf, u64) {
        let index = segment::index(lsn, self.segment_bytes);
        (self.segment_path(index), segment::file_offset(lsn, self.segment_bytes))
    }

    /// Reads the record at this position into `memory` and checks it.
    ///
    /// # Errors
    /// [`NoRecord`].
    pub fn record_at<'a>(&self, lsn: Lsn, memory: &'a mut Vec<u8>) -> Result<Stored<'a>, NoRecord> {
        let (path, offset) = self.place(lsn);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => NoRecord::NoSegment(path.clone()),
            io::ErrorKind::UnexpectedEof => {
                NoRecord::Malformed(path.clone(), offset, Malformed::Length)
            }
            _ => NoRecord::Io(path.clone(), error),
        };
        let malformed = |why| NoRecord::Malformed(path.clone(), offset, why);
        let file = file::open(&path).map_err(failed)?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, offset).map_err(failed)?;
        let header = Header::read(&head).expect("as long as a header");
        let rest = self.segment_bytes - lsn % self.segment_bytes;
        if (header.len as usize) < HEADER_BYTES || u64::from(header.len) > rest {
            return Err(malformed(Malformed::Length));
        }
        memory.resize(header.len as usize, 0);
        file.read_exact_at(memory, offset).map_err(failed)?;
        if header.kind == KIND_COMMIT && memory.len() == COMMIT_BYTES {
            let (_, commit) = Commit::read(memory, self.salt, lsn).map_err(malformed)?;
            return Ok(Stored::Commit(commit));
        }
        record::verify(memory, self.salt, lsn).map(Stored::Record).map_err(malformed)
    }

    pub(super) fn segment_file(&self, index: u64) -> SegmentFile {
        let path = self.segment_path(index);
        let bytes = fs::metadata(&path).map_or(0, |found| found.len());
        let flaw = match self.open_segment(index) {
            Ok(_) => None,
            Err(RecoverError::Header { why, .. }) => Some(why.to_string()),
            Err(RecoverError::WrongSize { found, expected, .. }) => {
                Some(format!("is {found} bytes long instead of {expected}"))
            }
            Err(RecoverError::Io { error, .. }) => Some(format!("cannot be read: {error}")),
            Err(other) => Some(other.to_string()),
        };
        SegmentFile { index, path, bytes, flaw }
    }

    fn snapshot_seen(&self, start: Lsn) -> SnapshotSeen {
        let path = self.snapshot_path(start);
        let bytes = fs::metadata(&path).map_or(0, |found| found.len());
        let read = snapshots::load(self, start, &mut Nowhere, &mut |_| {});
        let newer = snapshots::newer_format(self, start);
        SnapshotSeen { path, start, bytes, read, newer }
    }
}

/// Takes payloads and records to nowhere: only the bytes are checked.
pub struct Nowhere;

impl Restore for Nowhere {
    fn reset(&mut self) {}

    fn state(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn space(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn loaded(&mut self, _: LogStart, _: Lsn) {}

    fn record(&mut self, _: Lsn, _: u32, _: &Record<'_>) {}

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        Vec::new()
    }
}
