//! The layouts of a data directory: the one that counts, the next one while it
//! is being made, and what is left of others.
//!
//! Another number of shards means other logs. They are written beside the
//! present ones as a new *generation*, in a directory of its own, and count from
//! the moment on at which the manifest that names them has replaced the one
//! before. A crash leaves the old layout or the new one, each whole; what the
//! manifest does not name is a leftover, and removed once the layout that counts
//! has been read back.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::id::ShardId;

use super::data_dir::{DataDir, check_shards, shard_path, sync_dir};
use super::error::DataDirError;
use super::shard_dir::{ShardDir, is_ours};
use super::{manifest_copy, sys};
use crate::FORMAT;
use crate::manifest::Manifest;

/// A layout for another number of shards. It counts for nothing before
/// [`DataDir::switch`].
pub struct Generation {
    path: PathBuf,
    /// What the manifest will be.
    manifest: Manifest,
    lock: Arc<File>,
}

/// Directories of layouts that do not count (any more).
pub struct Leftovers {
    paths: Vec<PathBuf>,
    /// Nobody else may begin to write meanwhile.
    _lock: Arc<File>,
}

impl DataDir {
    /// Chooses the next layout, with new salts. Nothing is written yet.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn next_generation(&self, shards: u16) -> Result<Generation, DataDirError> {
        check_shards(shards)?;
        let attempt = || -> io::Result<Manifest> {
            // What could not be removed keeps its number.
            let taken = layouts(&self.path)?.into_iter().map(|(generation, _)| generation).max();
            Ok(Manifest {
                format: FORMAT,
                shards,
                salts: (0..shards).map(|_| sys::random()).collect::<io::Result<_>>()?,
                generation: self.manifest.generation.max(taken.unwrap_or(0)) + 1,
                ..self.manifest.clone()
            })
        };
        let manifest = attempt().map_err(|error| DataDirError::from_io(&self.path, error))?;
        Ok(Generation { path: self.path.clone(), manifest, lock: Arc::clone(&self.lock) })
    }

    /// Makes the layout the one that counts. Everything in it must be on the
    /// disk. The one before is a leftover from now on.
    ///
    /// # Errors
    /// [`DataDirError`]. The manifest is the one before or the new one then, and
    /// the next start finds out which.
    pub fn switch(&mut self, next: Generation) -> Result<(), DataDirError> {
        let attempt = || {
            sync_dir(&next.dir())?;
            sync_dir(&next.path)?;
            next.manifest.store(&next.path)
        };
        if let Err(error) = attempt() {
            let before = Manifest::load(&self.path);
            if before.is_ok_and(|found| found.generation == self.manifest.generation) {
                next.abandon();
            }
            return Err(DataDirError::from_io(&self.path, error));
        }
        self.manifest = next.manifest;
        self.has_begun = false;
        manifest_copy::refresh(&self.path, &self.manifest, false);
        Ok(())
    }

    /// Directories of layouts that do not count: of a change of the number of
    /// shards that a crash ended, or of before one. To be removed only when the
    /// layout that counts has been read back, because a manifest from a backup
    /// may name the wrong one.
    ///
    /// # Errors
    /// What the system said.
    pub fn leftovers(&self) -> io::Result<Leftovers> {
        let all = layouts(&self.path)?.into_iter();
        let others = all.filter(|(generation, _)| *generation != self.manifest.generation);
        let mut paths: Vec<PathBuf> = others.map(|(_, path)| path).collect();
        paths.sort_unstable();
        Ok(Leftovers { paths, _lock: Arc::clone(&self.lock) })
    }

    /// How many bytes may still be written to the file system it is on.
    ///
    /// # Errors
    /// What the system said.
    pub fn free_bytes(&self) -> io::Result<u64> {
        sys::free_bytes(&self.path)
    }
}

impl Generation {
    /// What the directory will say about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Makes the shards' directories, all empty.
    ///
    /// # Errors
    /// [`DataDirError`]; nothing is left of them then, if that is possible.
    pub fn make(&self) -> Result<(), DataDirError> {
        let attempt = || {
            DirBuilder::new().mode(0o700).create(self.dir())?;
            for shard in 0..self.manifest.shards {
                let path = shard_path(&self.path, self.manifest.generation, shard);
                DirBuilder::new().mode(0o700).create(path)?;
            }
            Ok(())
        };
        attempt().map_err(|error| {
            let _ = remove(&self.dir()); // otherwise the next start does
            DataDirError::from_io(&self.dir(), error)
        })
    }

    /// One shard's part of it.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn shard(&self, shard: ShardId) -> ShardDir {
        ShardDir::new(&self.path, &self.manifest, shard, false, &self.lock)
    }

    /// Gives it up and frees its space.
    pub fn abandon(self) {
        let _ = remove(&self.dir()); // otherwise the next start does
    }

    fn dir(&self) -> PathBuf {
        generation_path(&self.path, self.manifest.generation)
    }
}

impl Leftovers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Deletes them, as far as they are this program's: a foreign file stays,
    /// with the directory it is in. What became of each. Blocks.
    pub fn remove(self) -> Vec<(PathBuf, io::Result<()>)> {
        let removed = |path: PathBuf| {
            let outcome = remove(&path);
            (path, outcome)
        };
        self.paths.into_iter().map(removed).collect()
    }
}

/// The directory of a generation after the first one.
pub(super) fn generation_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("gen-{generation:04}"))
}

/// Every directory of a layout, with its generation.
fn layouts(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let generation = if number(name, "shard-").is_some() {
            Some(0)
        } else {
            // 0 has no such directory; one that says so is not ours.
            number(name, "gen-").filter(|generation| *generation > 0)
        };
        // A link is somebody's own arrangement.
        if let Some(generation) = generation
            && entry.file_type()?.is_dir()
        {
            found.push((generation, entry.path()));
        }
    }
    Ok(found)
}

fn number(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    let is_number = digits.len() >= 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// Removes a directory of ours: the directories of shards in it, the files of a
/// log, nothing else.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() && number(name, "shard-").is_some() {
            remove(&entry.path())?;
        } else if kind.is_file() && is_ours(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
