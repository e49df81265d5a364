//! The data directory: who may use it, for how many shards it was written.
//!
//! ```text
//! <data dir>/manifest.toml         format, shards, seed, salts
//!            lock                  held by the running server, its pid inside
//!            shard-0000/           one log
//!              segment-0000000000.log …
//!              snapshot-00000000000000000000.snap …
//!            gen-0001/shard-0000/  the same after the number of shards changed
//! ```
//!
//! (see `generation`).
//!
//! The manifest is written last when a directory is made, so a directory is
//! either complete or still counts as empty.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::id::{PARTITIONS, ShardId};

use super::error::DataDirError;
use super::generation::generation_path;
use super::shard_dir::{ShardDir, is_leftover};
use super::{manifest_copy, sys};
use crate::file;
use crate::manifest::{self, Manifest, ManifestError};
use crate::{BLOCK_LSN, FORMAT};

/// The smallest segment a data directory is made with, bytes.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// The largest one, bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
pub(super) const LOCK_NAME: &str = "lock";

/// How to open a data directory.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// The number of shards for a new directory; an existing one keeps its own
    /// until [`DataDir::switch`].
    pub shards: Option<u16>,
    /// The same when none was asked for.
    pub default_shards: u16,
    /// Log bytes per segment for a new directory; an existing one keeps its own.
    pub segment_bytes: u64,
}

/// A data directory, held by this process until this value and every
/// [`ShardDir`] of it is dropped.
pub struct DataDir {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    /// Whether every shard has a segment, unless it lost it.
    pub(super) has_begun: bool,
    pub(super) lock: Arc<File>,
}

impl DataDir {
    /// Opens the directory, or makes it when there is none or an empty one.
    ///
    /// # Errors
    /// [`DataDirError`]; nothing that was there has changed then.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<DataDir, DataDirError> {
        let path = path.as_ref();
        options.check()?;
        make_dir(path)?;
        refuse_foreign_or_held(path)?;
        refuse_other_owner(path)?;
        let lock = take_lock(path)?;
        let manifest = match Manifest::load(path) {
            Ok(manifest) => manifest,
            Err(ManifestError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                // Again, now that nobody else can be making it.
                refuse_foreign(path)?;
                make(path, &options)?
            }
            Err(error) => return Err(manifest_error(path, error)),
        };
        remove_leftovers(path).map_err(|error| DataDirError::from_io(path, error))?;
        let has_begun = manifest_copy::says_begun(path, &manifest);
        let dir = DataDir { path: path.into(), manifest, has_begun, lock: Arc::new(lock) };
        shard_paths(path, &dir.manifest)?;
        let dir = dir.upgrade()?;
        manifest_copy::refresh(path, &dir.manifest, has_begun);
        dir.sync_names()?;
        Ok(dir)
    }

    /// What the directory says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One shard's part of it.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn shard(&self, shard: ShardId) -> ShardDir {
        ShardDir::new(&self.path, &self.manifest, shard, self.has_begun, &self.lock)
    }

    /// Waits until no write is under way any more of a server that is gone. A
    /// process may end before what it has handed to the disk arrives, and then the
    /// directory's lock is free while a block of the log is still to come: it must
    /// not come over what the next server has written there. But a write keeps its
    /// file open, and with it the lock that a server has on each of its segments.
    /// To be done before anything is read. `tell` hears which file it has to wait
    /// for.
    ///
    /// # Errors
    /// What the system said.
    pub fn await_writes(&self, tell: &mut dyn FnMut(&Path)) -> Result<(), DataDirError> {
        (0..self.manifest.shards).try_for_each(|shard| self.shard(shard).await_writes(tell))
    }

    /// Every shard has its segments now: from the next start on, one that has
    /// none has lost them. Writes a file, unless it is known already.
    pub fn note_begun(&self) {
        manifest_copy::refresh(&self.path, &self.manifest, true);
    }

    /// The process before may have died between giving a file its name and
    /// syncing that name: a power cut could still take it back, with all that
    /// would be confirmed from now on.
    fn sync_names(&self) -> Result<(), DataDirError> {
        let layout = match self.manifest.generation {
            0 => None,
            generation => Some(generation_path(&self.path, generation)),
        };
        [self.path.clone()]
            .iter()
            .chain(&layout)
            .try_for_each(|path| sync_dir(path).map_err(|error| DataDirError::from_io(path, error)))
    }

    /// Says in the manifest of an older format that this version's records may
    /// follow, so that a version that does not know them refuses it.
    pub(super) fn upgrade(mut self) -> Result<DataDir, DataDirError> {
        if self.manifest.format < FORMAT {
            self.manifest.format = FORMAT;
            let stored = self.manifest.store(&self.path);
            stored.map_err(|error| DataDirError::from_io(&self.path, error))?;
        }
        Ok(self)
    }
}

/// The shards' directories, all of which are there.
pub(super) fn shard_paths(dir: &Path, manifest: &Manifest) -> Result<Vec<PathBuf>, DataDirError> {
    let there = |shard| {
        let path = shard_path(dir, manifest.generation, shard);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(path),
            Ok(_) => Err(DataDirError::NotADirectory { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DataDirError::ShardMissing { path })
            }
            Err(error) => Err(DataDirError::from_io(&path, error)),
        }
    };
    (0..manifest.shards).map(there).collect()
}

impl OpenOptions {
    fn check(&self) -> Result<(), DataDirError> {
        check_shards(self.shards.unwrap_or(self.default_shards))?;
        let possible = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes);
        if !possible || !self.segment_bytes.is_multiple_of(BLOCK_LSN) {
            let why = "the segment size must be a multiple of 4096 bytes from 1 MiB to 1 GiB";
            return Err(DataDirError::Options { why });
        }
        Ok(())
    }
}

pub(super) fn check_shards(shards: u16) -> Result<(), DataDirError> {
    if shards == 0 || shards > PARTITIONS {
        let why = "the number of shards must be between 1 and 4096";
        return Err(DataDirError::Options { why });
    }
    Ok(())
}

/// Where a shard's log is, for the generation that the manifest says.
pub(super) fn shard_path(dir: &Path, generation: u64, shard: ShardId) -> PathBuf {
    let name = format!("shard-{shard:04}");
    match generation {
        0 => dir.join(name),
        _ => generation_path(dir, generation).join(name),
    }
}

fn make_dir(path: &Path) -> Result<(), DataDirError> {
    let failed = |error| DataDirError::from_io(path, error);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(DataDirError::NotADirectory { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Messages of strangers: nobody but the owner looks in.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| DataDirError::making(path, error))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent).map_err(failed),
        _ => Ok(()),
    }
}

/// Without a manifest only what a crash while making the directory leaves
/// behind may be there.
pub(super) fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let failed = |error| DataDirError::from_io(path, error);
    if path.join(manifest::FILE_NAME).try_exists().map_err(failed)? {
        return Ok(());
    }
    let mut has_copy = false;
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == manifest_copy::COPY_NAME {
            has_copy = true;
            continue;
        }
        // A fresh ext4 file system brings lost+found along.
        let known = [LOCK_NAME, manifest::TEMPORARY_NAME, "lost+found"];
        let empty_shard = name.starts_with("shard-")
            && fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
        if !known.contains(&&name[..]) && !is_leftover(&name) && !empty_shard {
            return Err(DataDirError::Foreign { path: path.into(), found: name });
        }
    }
    if has_copy {
        // Last, because other names tell more.
        let found = manifest_copy::COPY_NAME.into();
        return Err(DataDirError::Foreign { path: path.into(), found });
    }
    Ok(())
}

/// The same before the lock is taken, which would be a file more in a directory
/// that is not ours: one that another process is making looks foreign, too.
pub(super) fn refuse_foreign_or_held(path: &Path) -> Result<(), DataDirError> {
    let judged = refuse_foreign(path);
    if !matches!(judged, Err(DataDirError::Foreign { .. })) {
        return judged;
    }
    match holder(path) {
        Some(Holder { pid }) => Err(DataDirError::Locked { path: path.into(), pid }),
        // It may have been made, and let go, since it was looked at.
        None => refuse_foreign(path),
    }
}

/// What root makes in somebody else's directory its owner cannot read.
pub(super) fn refuse_other_owner(path: &Path) -> Result<(), DataDirError> {
    let names = [manifest::FILE_NAME, manifest_copy::COPY_NAME];
    let found = names.iter().find_map(|name| fs::metadata(path.join(name)).ok());
    let Some(found) = found else { return Ok(()) };
    let (owner, user) = (found.uid(), sys::user());
    // Anybody else may not do it anyway; and some file systems say that all is
    // somebody's.
    if owner == user || user != 0 || owner_of_new(path).is_none_or(|it| it == owner) {
        return Ok(());
    }
    Err(DataDirError::OtherOwner { path: path.into(), owner, user })
}

/// Whose a file is that this process makes here.
fn owner_of_new(path: &Path) -> Option<u32> {
    let probe = path.join("probe-owner.tmp");
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe);
    let owner = made.and_then(|file| file.metadata()).map(|found| found.uid());
    let _ = fs::remove_file(probe);
    owner.ok()
}

/// Gives a lock that root has just made to look at a directory to its owner.
pub(super) fn give_to_owner(lock: &File, path: &Path) {
    if let Ok(found) = fs::metadata(path.join(manifest::FILE_NAME))
        && sys::user() == 0
    {
        let _ = std::os::unix::fs::fchown(lock, Some(found.uid()), Some(found.gid()));
    }
}

/// The kernel lets go of the lock with the process, however it ends.
pub(super) fn take_lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK_NAME);
    refuse_linked_lock(dir)?;
    let failed = |error| DataDirError::from_io(&path, error);
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // The process id would be written over whatever a link leads to.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(file::no_file()));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            return Err(DataDirError::Locked { path: dir.into(), pid: text.trim().parse().ok() });
        }
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Only for people to read; a full disk must not keep the server from
    // starting and freeing it.
    let _ = write_pid(&mut file);
    Ok(file)
}

/// A lock that is a link would lock, and overwrite, somebody else's file.
pub(super) fn refuse_linked_lock(dir: &Path) -> Result<(), DataDirError> {
    let path = dir.join(LOCK_NAME);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_symlink() => Err(DataDirError::LinkedLock { path }),
        _ => Ok(()),
    }
}

/// Who holds a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process, when it said so.
    pub pid: Option<u32>,
}

/// Who holds the directory's lock, if anybody does. Asking takes it for a
/// moment, shared, which only a server that starts in that moment could notice.
pub(super) fn holder(dir: &Path) -> Option<Holder> {
    let mut file = file::open(&dir.join(LOCK_NAME)).ok()?;
    match file.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            Some(Holder { pid: text.trim().parse().ok() })
        }
        _ => None,
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    let text = format!("{}\n", std::process::id());
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn make(path: &Path, options: &OpenOptions) -> Result<Manifest, DataDirError> {
    let shards = options.shards.unwrap_or(options.default_shards);
    let attempt = || {
        for shard in 0..shards {
            let dir = shard_path(path, 0, shard);
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        sync_dir(path)?;
        let manifest = Manifest {
            format: FORMAT,
            shards,
            seed: [sys::random()?, sys::random()?],
            salts: (0..shards).map(|_| sys::random()).collect::<io::Result<_>>()?,
            segment_bytes: options.segment_bytes,
            generation: 0,
        };
        manifest.store(path)?;
        Ok(manifest)
    };
    attempt().map_err(|error| DataDirError::from_io(path, error))
}

pub(super) fn manifest_error(dir: &Path, error: ManifestError) -> DataDirError {
    let path = dir.join(manifest::FILE_NAME);
    match error {
        ManifestError::OtherFormat(written) => {
            DataDirError::OtherFormat { path: dir.into(), written }
        }
        ManifestError::Broken(why) => DataDirError::Manifest { path, why },
        ManifestError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            DataDirError::Manifest { path, why: "it is not text, so it is damaged".into() }
        }
        ManifestError::Io(error) => DataDirError::from_io(&path, error),
    }
}

fn remove_leftovers(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name == manifest::TEMPORARY_NAME
            || name == manifest_copy::COPY_TEMPORARY_NAME
            || name.to_str().is_some_and(is_leftover);
        if ours && !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes what was created or renamed in a directory survive a power cut.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    SYNCED.with_borrow_mut(|synced| synced.push(path.into()));
    File::open(path)?.sync_all()
}

#[cfg(test)]
std::thread_local! {
    /// The directories that this thread has synced: nothing else shows it but a
    /// power cut.
    pub(super) static SYNCED: std::cell::RefCell<Vec<PathBuf>> =
        const { std::cell::RefCell::new(Vec::new()) };
}
