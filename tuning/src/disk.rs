//! What the disk under a directory can do, measured in a tenth of a second.
//!
//! The measure is the log's own commit in its smallest form: overwrite one
//! already written 4 KiB block and wait until the device has it. The file it
//! writes has no name while it is measured and is gone afterwards.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;
use serde::Serialize;

use crate::without::Without;

/// Names of the two things that a commit uses where they are there.
pub const O_DIRECT: &str = "o_direct";
/// See [`O_DIRECT`].
pub const RWF_DSYNC: &str = "rwf_dsync";

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
const BUDGET: Duration = Duration::from_millis(100);
const ROUNDS_MAX: usize = 2000;

/// What was found out about the disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskProbe {
    /// Name of the file system, or its magic number in hex.
    pub fs: String,
    /// How one commit would be written: `O_DIRECT + RWF_DSYNC`,
    /// `O_DIRECT + fdatasync` or `buffered + fdatasync`.
    pub direct_mode: String,
    /// Durable 4 KiB writes a second, one after the other.
    pub fdatasync_per_s: u64,
    /// Median of one durable write, microseconds.
    pub write_p50_us: u64,
    /// 99th percentile of one durable write, microseconds.
    pub write_p99_us: u64,
    /// Bytes free for this user.
    pub free_bytes: u64,
}

impl DiskProbe {
    /// Whether every byte here is lost with the machine's power.
    pub fn is_volatile(&self) -> bool {
        matches!(self.fs.as_str(), "tmpfs" | "ramfs")
    }

    /// Whether the file system is served over a network, where locks and
    /// fsync mean less than they say.
    pub fn is_remote(&self) -> bool {
        matches!(self.fs.as_str(), "nfs" | "smb2" | "cifs" | "ceph" | "fuse")
    }
}

/// Measures the disk that holds `dir`, or would hold it: the nearest existing
/// ancestor stands in for a directory that is not there yet. What is done
/// without is not measured.
///
/// # Errors
/// What the file system says to creating, writing or syncing one small file.
pub fn probe_disk(dir: &Path, without: &Without) -> io::Result<DiskProbe> {
    let dir = nearest_existing(dir)?;
    let stat = rustix::fs::statvfs(&dir)?;
    let kind = rustix::fs::statfs(&dir)?;
    let file = nameless_file(&dir)?;
    // A journaled file system commits its journal for blocks written for the
    // first time; the log's segments are filled ahead for that reason.
    file.write_all_at(&vec![0; BLOCK * BLOCKS as usize], 0)?;
    file.sync_all()?;

    let block = AlignedBlock::new();
    let (mode, name) = choose_mode(&file, &block, without)?;
    let mut took_us = measure(&file, &block, mode)?;
    let total_us: u64 = took_us.iter().sum();
    took_us.sort_unstable();
    let at = |percent: usize| took_us[(took_us.len() - 1) * percent / 100];
    Ok(DiskProbe {
        fs: fs_name(kind.f_type as u64),
        direct_mode: name.to_owned(),
        fdatasync_per_s: took_us.len() as u64 * 1_000_000 / total_us.max(1),
        write_p50_us: at(50),
        write_p99_us: at(99),
        free_bytes: stat.f_bavail * stat.f_frsize,
    })
}

fn nearest_existing(dir: &Path) -> io::Result<std::path::PathBuf> {
    let full = std::path::absolute(dir)?;
    let found = full.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    Ok(found.to_owned())
}

/// A file without a name, so that not even a crash leaves it behind.
fn nameless_file(dir: &Path) -> io::Result<File> {
    let nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(dir);
    if nameless.is_ok() {
        return nameless;
    }
    // File systems without O_TMPFILE: name it, then take the name away.
    let path = dir.join(format!(".iris-probe-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A block whose address is a multiple of its size, as O_DIRECT demands.
struct AlignedBlock {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBlock {
    fn new() -> AlignedBlock {
        let memory = vec![0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        assert!(start < BLOCK, "bytes can be aligned");
        AlignedBlock { memory, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + BLOCK]
    }
}

/// How one write becomes durable.
#[derive(Clone, Copy)]
enum Mode {
    Dsync,
    ThenFdatasync,
}

/// Finds the best mode that really works here and leaves the file in it.
fn choose_mode(
    file: &File,
    block: &AlignedBlock,
    without: &Without,
) -> io::Result<(Mode, &'static str)> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if !without.has(O_DIRECT) && rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_ok() {
        if !without.has(RWF_DSYNC) && commit(file, block, 0, Mode::Dsync).is_ok() {
            return Ok((Mode::Dsync, "O_DIRECT + RWF_DSYNC"));
        }
        if commit(file, block, 0, Mode::ThenFdatasync).is_ok() {
            return Ok((Mode::ThenFdatasync, "O_DIRECT + fdatasync"));
        }
        rustix::fs::fcntl_setfl(file, flags)?;
    }
    commit(file, block, 0, Mode::ThenFdatasync)?;
    Ok((Mode::ThenFdatasync, "buffered + fdatasync"))
}

fn commit(file: &File, block: &AlignedBlock, offset: u64, mode: Mode) -> io::Result<()> {
    let flags = match mode {
        Mode::Dsync => ReadWriteFlags::DSYNC,
        Mode::ThenFdatasync => ReadWriteFlags::empty(),
    };
    let written =
        rustix::io::pwritev2(file.as_fd(), &[IoSlice::new(block.bytes())], offset, flags)?;
    if written != BLOCK {
        return Err(io::Error::other("the disk took only a part of a 4 KiB block"));
    }
    if let Mode::ThenFdatasync = mode {
        rustix::fs::fdatasync(file)?;
    }
    Ok(())
}

/// Microseconds of each commit; at least one.
fn measure(file: &File, block: &AlignedBlock, mode: Mode) -> io::Result<Vec<u64>> {
    let mut took_us = Vec::with_capacity(ROUNDS_MAX);
    let start = Instant::now();
    while took_us.is_empty() || (took_us.len() < ROUNDS_MAX && start.elapsed() < BUDGET) {
        let offset = took_us.len() as u64 % BLOCKS * BLOCK as u64;
        let before = Instant::now();
        commit(file, block, offset, mode)?;
        took_us.push(before.elapsed().as_micros() as u64);
    }
    Ok(took_us)
}

/// Names of the magic numbers in `statfs`.
fn fs_name(magic: u64) -> String {
    let name = match magic & 0xffff_ffff {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0xfe53_4d42 => "smb2",
        0xff53_4d42 => "cifs",
        0x00c3_6400 => "ceph",
        0x6573_5546 => "fuse",
        other => return format!("0x{other:x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_is_measured_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("not/yet");
        let found = probe_disk(&wanted, &Without::default()).unwrap();
        assert!(found.fdatasync_per_s > 0);
        assert!(found.write_p50_us <= found.write_p99_us);
        assert!(found.free_bytes > 0);
        assert!(
            found.direct_mode.ends_with("fdatasync") || found.direct_mode.ends_with("RWF_DSYNC")
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probe leaves nothing");
    }

    #[test]
    fn each_way_of_a_commit_can_be_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |names: &[&str]| {
            let without = Without::named(names).unwrap();
            probe_disk(dir.path(), &without).unwrap().direct_mode
        };
        assert_eq!(mode(&[O_DIRECT]), "buffered + fdatasync");
        assert_eq!(mode(&[O_DIRECT, RWF_DSYNC]), "buffered + fdatasync");
        assert!(mode(&[RWF_DSYNC]).ends_with("fdatasync"));
    }

    #[test]
    fn magic_numbers_have_names() {
        assert_eq!(fs_name(0xef53), "ext4");
        assert_eq!(fs_name(0x1234_5678), "0x12345678");
    }
}
