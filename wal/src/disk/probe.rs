//! How this file system can make a write durable: by trying.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sys;
use crate::BLOCK;

/// How a commit is written and made durable, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirectMode {
    /// O_DIRECT, and RWF_DSYNC on the write itself.
    DirectDsync,
    /// O_DIRECT, then fdatasync.
    DirectFdatasync,
    /// Through the page cache, then fdatasync.
    BufferedFdatasync,
}

impl DirectMode {
    /// Whether files are opened with O_DIRECT.
    pub fn is_direct(self) -> bool {
        self != DirectMode::BufferedFdatasync
    }

    /// The same, or `best` if that is less.
    pub fn at_best(self, best: DirectMode) -> DirectMode {
        // The best stands first.
        self.max(best)
    }

    /// The flags for opening a segment's file.
    pub(super) fn open_flags(self) -> i32 {
        if self.is_direct() { libc::O_DIRECT } else { 0 }
    }
}

/// Finds out which mode works in `dir`, by writing a block to a file of its own
/// there and removing it. When even that fails, for whatever reason, the answer
/// is the mode that works everywhere; opening the segments will tell the reason.
pub fn probe(dir: &Path) -> DirectMode {
    // Shards may probe at the same time.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("probe-{}-{number}.tmp", std::process::id()));
    let mode = try_direct(&path).unwrap_or(DirectMode::BufferedFdatasync);
    let _ = fs::remove_file(&path); // a leftover is removed at the next boot
    mode
}

fn try_direct(path: &Path) -> io::Result<DirectMode> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let memory = vec![0; 2 * BLOCK];
    let block = &memory[memory.as_ptr().align_offset(BLOCK)..][..BLOCK];
    write_both(&file, block)
}

/// Some file systems accept the flag on open and refuse the write.
fn write_both(file: &File, block: &[u8]) -> io::Result<DirectMode> {
    file.write_all_at(block, 0)?;
    file.sync_data()?;
    match sys::write_dsync(file, block, 0) {
        Ok(()) => Ok(DirectMode::DirectDsync),
        Err(_) => Ok(DirectMode::DirectFdatasync),
    }
}
