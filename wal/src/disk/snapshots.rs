//! The snapshot files of one shard: writing one, finding those that are there,
//! reading one back.
//!
//! A snapshot is written under a temporary name and gets its own only when it
//! is complete, on the disk, and the log is durable as far as it needs. Two are
//! kept: if the newest cannot be read, the one before it and the log since then
//! lead to the same state.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::data_dir::sync_dir;
use super::recovery::{Phase, Progress};
use super::shard_dir::ShardDir;
use super::sys;
use crate::file;
use crate::log::LogStart;
use crate::recover::Restore;
use crate::snapshot::{Broken, FRAME_BYTES_MAX, Flaw, Part, Reader};
use crate::{FORMAT, Lsn};

/// Snapshots that are kept.
pub const SNAPSHOTS_KEPT: usize = 2;

/// So much is given to the disk at once, and then forgotten by the page cache:
/// commits wait behind what is under way.
const PUSH_BYTES: usize = 256 << 10;
/// After so much everything is on the disk, also where a file system keeps what
/// it is given (overlayfs, ZFS): nothing piles up.
const SYNC_BYTES: u64 = 8 << 20;

/// The suffix of a snapshot that could not be read and was set aside.
const DAMAGED: &str = "damaged";

/// A snapshot that is being written. Everything here blocks; it belongs on a
/// helper thread. When it is dropped, or the process dies, nothing has happened.
pub struct SnapshotFile {
    dir: ShardDir,
    start: Lsn,
    file: File,
    /// How much the disk was given, in whole pieces of [`PUSH_BYTES`].
    pushed: u64,
    /// What follows, less than a piece.
    rest: Vec<u8>,
}

/// A snapshot that counts.
#[derive(Debug)]
pub struct Finished {
    /// How long the file is.
    pub bytes: u64,
    /// Snapshots that had been set aside as damaged and were deleted: both that
    /// are kept are newer, so nothing is to be learned for them any more.
    pub forgotten: Vec<PathBuf>,
}

impl SnapshotFile {
    /// Begins the snapshot whose replay starts at `start`.
    ///
    /// # Errors
    /// What the system said.
    pub fn create(dir: &ShardDir, start: Lsn) -> io::Result<SnapshotFile> {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(temporary(&dir.snapshot_path(start)))?;
        let rest = Vec::with_capacity(PUSH_BYTES);
        Ok(SnapshotFile { dir: dir.clone(), start, file, pushed: 0, rest })
    }

    /// Adds bytes that [`crate::snapshot::Writer`] made.
    ///
    /// # Errors
    /// What the system said, most likely that no space is left; abandon it then.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes;
        while self.rest.len() + bytes.len() >= PUSH_BYTES {
            let (part, later) = bytes.split_at(PUSH_BYTES - self.rest.len());
            self.rest.extend_from_slice(part);
            self.file.write_all(&self.rest)?;
            sys::push(&self.file, self.pushed, PUSH_BYTES as u64)?;
            self.pushed += PUSH_BYTES as u64;
            if self.pushed.is_multiple_of(SYNC_BYTES) {
                self.file.sync_data()?;
                sys::drop_cached(&self.file);
            }
            self.rest.clear();
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes it durable, gives it its name, and deletes those that are older
    /// than the [`SNAPSHOTS_KEPT`] newest. Call it only when the log is durable
    /// up to what the last frame says.
    ///
    /// # Errors
    /// What the system said. Nobody knows then whether the snapshot has its
    /// name, so it must not be counted on; if it has, it is whole.
    pub fn finish(self) -> io::Result<Finished> {
        let dir = self.dir.clone();
        let bytes = self.finish_beside()?;
        // What stays behind takes space until the next one is finished.
        let forgotten = delete_older(dir.path()).unwrap_or_default();
        Ok(Finished { bytes, forgotten })
    }

    /// The same, deleting nothing. Returns how long the file is, bytes.
    ///
    /// # Errors
    /// As for [`SnapshotFile::finish`].
    pub fn finish_beside(self) -> io::Result<u64> {
        let SnapshotFile { dir, start, file, pushed, rest } = self;
        let path = dir.snapshot_path(start);
        if let Err(error) = name(file, &rest, &path) {
            // On a full disk its space is what is needed.
            let _ = fs::remove_file(temporary(&path));
            return Err(error);
        }
        sync_dir(dir.path())?;
        Ok(pushed + rest.len() as u64)
    }

    /// Gives it up and frees its space.
    pub fn abandon(self) {
        let path = temporary(&self.dir.snapshot_path(self.start));
        let _ = fs::remove_file(path); // otherwise the next boot does
    }
}

/// Writes the rest, makes everything durable and gives it its name.
fn name(mut file: File, rest: &[u8], path: &Path) -> io::Result<()> {
    file.write_all(rest)?;
    file.sync_all()?;
    sys::drop_cached(&file);
    fs::rename(temporary(path), path)
}

/// Deletes all snapshots but the newest ones, and those that were set aside and
/// are older than these; which of the latter.
pub(super) fn delete_older(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut whole, mut aside) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue; // not ours, whatever its name
        }
        let path = entry.path();
        match snapshot_name(&path) {
            Some((start, false)) => whole.push((start, path)),
            Some((start, true)) => aside.push((start, path)),
            None => {}
        }
    }
    whole.sort_unstable();
    if whole.len() < SNAPSHOTS_KEPT {
        return Ok(Vec::new());
    }
    let older = whole.len() - SNAPSHOTS_KEPT;
    let oldest_kept = whole[older].0;
    aside.retain(|(start, _)| *start < oldest_kept);
    let forgotten = aside.iter().map(|(_, path)| path.clone()).collect();
    for (_, path) in whole.drain(..older).chain(aside) {
        fs::remove_file(path)?;
    }
    Ok(forgotten)
}

/// The start in the name of a snapshot's file, and whether it was set aside.
pub(super) fn snapshot_name(path: &Path) -> Option<(Lsn, bool)> {
    let name = path.file_name()?.to_str()?.strip_prefix("snapshot-")?;
    let (digits, rest) = name.split_at_checked(20)?;
    let is_aside = match rest {
        ".snap" => false,
        _ if rest.strip_prefix(".snap.") == Some(DAMAGED) => true,
        _ => return None,
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let start = is_number.then(|| digits.parse().ok())??;
    // No log gets there, and there is room for what comes behind.
    (start < Lsn::MAX / 2).then_some((start, is_aside))
}

/// Renames a snapshot that could not be read, so that it does not count as one
/// of those that are kept.
pub(super) fn set_aside(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(DAMAGED);
    fs::rename(path, PathBuf::from(name))
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("snap.tmp")
}

/// What a snapshot was read back as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its file.
    pub path: PathBuf,
    /// Where the replay begins.
    pub start: LogStart,
    /// How far the log was durable when it got its name.
    pub end: Lsn,
    /// How long the file is, bytes.
    pub bytes: u64,
}

/// The frame that says the format is shorter, in later formats as well.
const FIRST_BYTES_MAX: u64 = 4096;

/// The format of a snapshot of a newer version, which its checksum vouches for.
pub(super) fn newer_format(dir: &ShardDir, start: Lsn) -> Option<u32> {
    let mut bytes = Vec::new();
    let file = file::open(&dir.snapshot_path(start)).ok()?;
    file.take(FIRST_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    match Reader::new(dir.salt, dir.shard).frame(&bytes) {
        Err(Broken { what: Flaw::OtherFormat(format), .. }) if format > FORMAT => Some(format),
        _ => None,
    }
}

/// Reads a snapshot into `into`. Every frame is checked before it is given on;
/// when a later one is damaged, the caller resets.
///
/// # Errors
/// In words, with the offset: why it cannot be used.
pub(super) fn load(
    dir: &ShardDir,
    start: Lsn,
    into: &mut dyn Restore,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded, String> {
    let path = dir.snapshot_path(start);
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    let mut file = file::open(&path).map_err(cannot)?;
    let total = file.metadata().map_err(cannot)?.len();
    let mut reader = Reader::new(dir.salt, dir.shard);
    let mut began = None;
    // A whole frame and what is read at once.
    let mut buffer = vec![0; 2 * FRAME_BYTES_MAX];
    let (mut have, mut used) = (0, 0);
    loop {
        let offset = reader.offset();
        match reader.frame(&buffer[used..have]).map_err(|broken| broken.to_string())? {
            Some((len, part)) => {
                used += len;
                let taken = match part {
                    Part::Start(start) => {
                        began = Some(start);
                        Ok(())
                    }
                    Part::State(payload) => into.state(payload),
                    Part::Space(payload) => into.space(payload),
                    Part::End(_) => Ok(()),
                };
                taken.map_err(|why| {
                    format!("what it says at file offset {offset} cannot be understood: {why}")
                })?;
            }
            None => {
                buffer.copy_within(used..have, 0);
                (have, used) = (have - used, 0);
                let got = file.read(&mut buffer[have..]).map_err(cannot)?;
                have += got;
                if got == 0 {
                    break;
                }
                let done = (offset + have as u64).min(total);
                progress(Progress { phase: Phase::Snapshot, done, total });
            }
        }
    }
    sys::drop_cached(&file);
    let end = reader.finish(have - used).map_err(|broken| broken.to_string())?;
    let began = began.expect("no end without a start");
    if began.lsn != start || end < start {
        return Err("it does not begin where its name says".into());
    }
    into.loaded(began, end);
    Ok(Loaded { path, start: began, end, bytes: total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DataDir;
    use crate::disk::tests::options;

    #[test]
    fn the_disk_is_given_whole_pieces_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let shard = DataDir::open(dir.path(), options(Some(1))).unwrap().shard(0);
        let mut file = SnapshotFile::create(&shard, 0).unwrap();
        let path = temporary(&shard.snapshot_path(0));
        let mut all = Vec::new();
        let piece = PUSH_BYTES;
        for (part, len) in [1, piece - 1, piece, 7, 3 * piece + 3, piece - 11, 5].iter().enumerate()
        {
            let bytes: Vec<u8> = (0..*len).map(|at| (at % 251 + part) as u8).collect();
            file.write(&bytes).unwrap();
            all.extend(bytes);
            let whole = all.len() / piece * piece;
            assert_eq!(file.pushed, whole as u64);
            assert!(fs::read(&path).unwrap() == all[..whole], "{} bytes", all.len());
        }
        assert_eq!(file.finish_beside().unwrap(), all.len() as u64);
        assert!(fs::read(shard.snapshot_path(0)).unwrap() == all);
    }
}
