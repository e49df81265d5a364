//! Whether a data directory could be opened, found out without opening it: no
//! byte changes, nothing is made and nothing stays locked.
//!
//! It refuses what [`DataDir::open`] would, in the same words; what only shows
//! when it is written to (a disk that is full or fails) is left to that.

use std::fs;
use std::io;
use std::path::Path;

use super::data_dir::{self, DataDir, manifest_error};
use super::error::DataDirError;
use super::sys;
use crate::manifest::{Manifest, ManifestError};

impl DataDir {
    /// Looks whether [`DataDir::open`] would take this directory, or could make
    /// it.
    ///
    /// # Errors
    /// [`DataDirError`], as opening it would give.
    pub fn check(path: impl AsRef<Path>) -> Result<(), DataDirError> {
        let path = path.as_ref();
        let failed = |error| DataDirError::from_io(path, error);
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(DataDirError::NotADirectory { path: path.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return check_place(path),
            Err(error) => return Err(failed(error)),
        }
        data_dir::refuse_foreign_or_held(path)?;
        data_dir::refuse_linked_lock(path)?;
        data_dir::refuse_other_owner(path)?;
        if let Some(holder) = data_dir::holder(path) {
            return Err(DataDirError::Locked { path: path.into(), pid: holder.pid });
        }
        check_writable(path)?;
        check_writable(&path.join(data_dir::LOCK_NAME))?;
        match Manifest::load(path) {
            Ok(manifest) => data_dir::shard_paths(path, &manifest)?
                .iter()
                .try_for_each(|shard| check_writable(shard)),
            Err(ManifestError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(manifest_error(path, error)),
        }
    }
}

/// What is not there yet must have a place where it can be made.
fn check_place(path: &Path) -> Result<(), DataDirError> {
    if fs::symlink_metadata(path).is_ok() {
        // A link that leads nowhere.
        let error = io::Error::from_raw_os_error(libc::EEXIST);
        return Err(DataDirError::from_io(path, error));
    }
    let absolute = std::path::absolute(path).map_err(|e| DataDirError::from_io(path, e))?;
    let there = absolute.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        return Err(DataDirError::NotADirectory { path: path.into() });
    }
    check_writable(there)
}

/// That this user may write it, if it is there.
fn check_writable(path: &Path) -> Result<(), DataDirError> {
    match sys::check_writable(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| DataDirError::from_io(path, error)),
    }
}
