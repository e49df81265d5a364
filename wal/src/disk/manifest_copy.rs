//! A second copy of the manifest, for the day on which the first one rots.
//!
//! Everything else in a data directory can be read around its damage; without
//! the seed and the salts nothing can. A start that has read the manifest keeps
//! a copy beside it; only a repair ever takes that for the manifest.
//!
//! It says one thing more: that the logs of this layout have begun, which is to
//! say that every shard has got its first segment. One without any has lost all
//! of them then. That the copy says it, and not the manifest, spares a new
//! format: versions that do not know the line pass over it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::data_dir::{refuse_other_owner, shard_path, sync_dir, take_lock};
use super::error::DataDirError;
use crate::file;
use crate::manifest::{FILE_NAME, Manifest};

/// The copy's file name.
pub(super) const COPY_NAME: &str = "manifest.copy.toml";
/// Where the next copy is written before it replaces the present one.
pub(super) const COPY_TEMPORARY_NAME: &str = "manifest.copy.toml.tmp";

/// What the copy says behind the manifest's text once the logs have begun.
const BEGUN: &str = "begun = true";

/// Makes sure that the copy says what the manifest says, and whether the logs
/// have begun. On a full disk, say, it does not, and the next start tries again.
pub(super) fn refresh(dir: &Path, manifest: &Manifest, has_begun: bool) {
    let mut text = manifest.encode();
    if has_begun {
        text += BEGUN;
        text += "\n";
    }
    if file::read_to_string(&dir.join(COPY_NAME)).is_ok_and(|copy| copy == text) {
        return;
    }
    let _ = write(dir, &text);
}

/// Whether the copy says that the logs of this layout have begun.
pub(super) fn says_begun(dir: &Path, manifest: &Manifest) -> bool {
    let Ok(text) = file::read_to_string(&dir.join(COPY_NAME)) else { return false };
    let is_of_layout =
        |copy: Manifest| copy.salts == manifest.salts && copy.generation == manifest.generation;
    text.lines().any(|line| line == BEGUN) && Manifest::decode(&text).is_ok_and(is_of_layout)
}

fn write(dir: &Path, text: &str) -> io::Result<()> {
    let temporary = dir.join(COPY_TEMPORARY_NAME);
    // As secret as the manifest.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(COPY_NAME))?;
    File::open(dir)?.sync_all()
}

/// Whether the directory's copy is whole and could take the manifest's place:
/// the shards that it names are there.
pub fn has_copy(dir: &Path) -> bool {
    load(dir).is_some()
}

fn load(dir: &Path) -> Option<Manifest> {
    let manifest = Manifest::decode(&file::read_to_string(&dir.join(COPY_NAME)).ok()?).ok()?;
    let is_there = |shard| shard_path(dir, manifest.generation, shard).is_dir();
    (0..manifest.shards).any(is_there).then_some(manifest)
}

/// Puts the copy in the manifest's place; a manifest that is there is moved to
/// `aside`.
///
/// # Errors
/// [`DataDirError`], also when somebody holds the directory or there is no copy.
pub fn restore(dir: &Path, aside: &Path) -> Result<(), DataDirError> {
    refuse_other_owner(dir)?;
    let _lock = take_lock(dir)?;
    let Some(manifest) = load(dir) else {
        return Err(DataDirError::NotADataDir { path: dir.into() });
    };
    let attempt = || {
        let damaged = dir.join(FILE_NAME);
        if damaged.try_exists()? {
            DirBuilder::new().recursive(true).mode(0o700).create(aside)?;
            // It stays until the copy replaces it: a crash in between leaves one.
            fs::copy(&damaged, aside.join(FILE_NAME))?;
            File::open(aside.join(FILE_NAME))?.sync_all()?;
            sync_dir(aside)?;
        }
        manifest.store(dir)
    };
    attempt().map_err(|error| DataDirError::from_io(dir, error))
}
