//! File systems of their own for tests: small ones, full ones, failing ones.
//!
//! Mounting needs privileges; where they are missing a test is skipped, and
//! [says so](super::skipped).
#![allow(unsafe_code)] // one request to ext4 that has no safe wrapper

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::ioctl::{Setter, ioctl};

use super::deadline::Deadline;
use super::skipped::skipped;

/// From the kernel's `fs/ext4/ext4.h`.
const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
/// Not even its journal is written any more.
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

/// A file system of a test, gone with it.
pub struct Mounted {
    dir: tempfile::TempDir,
    /// The file behind a loop device, which nobody else holds open: what it lies
    /// on can be unmounted.
    image: Option<tempfile::TempPath>,
}

impl Mounted {
    /// In memory; `None`, as everywhere here, where that does not work: the test
    /// is skipped, and has said so.
    pub fn tmpfs(size: &str) -> Option<Mounted> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=700");
        let path = dir.path().to_str().expect("a plain path");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", path])?;
        Some(Mounted { dir, image: None })
    }

    /// On a loop device.
    pub fn ext4(bytes: u64) -> Option<Mounted> {
        Mounted::ext4_in(&std::env::temp_dir(), bytes)
    }

    /// On a loop device whose file is in this directory.
    pub fn ext4_in(images: &Path, bytes: u64) -> Option<Mounted> {
        let dir = tempfile::tempdir().unwrap();
        let image = tempfile::NamedTempFile::new_in(images).unwrap();
        image.as_file().set_len(bytes).unwrap();
        let image = image.into_temp_path();
        let (file, path) = (image.to_str()?, dir.path().to_str()?);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", file])?;
        run("mount", &["-o", "loop", file, path])?;
        Some(Mounted { dir, image: Some(image) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file behind the loop device loses all its blocks. Where it finds no
    /// new ones the disk fails from now on.
    pub fn punch(&self) {
        let image = self.image.as_ref().expect("a loop device");
        let image = File::options().write(true).open(image).unwrap();
        let bytes = image.metadata().unwrap().len();
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&image, how, 0, bytes).unwrap();
    }

    /// From now on, until it is mounted again, ext4 answers whatever is asked of
    /// it there with EIO, and leaves its journal as it is. Where another disk's
    /// image lies on it, that is a device that fails.
    pub fn fail_with_eio(&self) -> Option<()> {
        let root = File::open(self.path()).unwrap();
        // SAFETY: the request reads one u32 and keeps no pointer to it.
        let result = unsafe {
            let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
            ioctl(&root, Setter::<EXT4_IOC_SHUTDOWN, u32>::new(flags))
        };
        result.map_err(|error| skipped(format!("ext4 does not shut down: {error}"))).ok()
    }

    /// Takes it away, and with it all that its file system knew and had not
    /// written.
    pub fn unmount(&self) {
        let path = self.path().to_str().expect("a plain path");
        let deadline = Deadline::new();
        // A ring of io_uring lets go of its files a moment after its process has
        // ended.
        while let Err(said) = try_run("umount", &[path]) {
            deadline.pause(|| said.clone());
        }
    }

    /// Mounts it again: ext4 makes good what is in its journal.
    pub fn mount(&self) {
        let image = self.image.as_ref().expect("a loop device");
        let (file, path) = (image.to_str().expect("plain"), self.path().to_str().expect("plain"));
        try_run("mount", &["-o", "loop", file, path]).expect("it was mounted before");
    }

    /// Whatever is written there waits until the guard is gone. Where another disk's
    /// image lies on it, that is a device that hangs.
    pub fn freeze(&self) -> Option<Frozen<'_>> {
        let path = self.path().to_str().expect("a plain path");
        // Whatever becomes of the test: what waits for a frozen file system cannot be killed.
        let thaw = format!("read -t 60; fsfreeze --unfreeze '{path}'");
        let mut guard = Command::new("/bin/bash");
        let guard = guard.args(["-c", &thaw]).stdin(Stdio::piped()).spawn().expect("a shell");
        let frozen = Frozen { of: self, guard };
        run("fsfreeze", &["--freeze", path]).map(|()| frozen)
    }

    /// The file system writes its journal when it is asked to and not by itself.
    pub fn commit_when_asked(&self) -> Option<()> {
        let path = self.path().to_str().expect("a plain path");
        run("mount", &["-o", "remount,commit=86400", path])
    }

    /// From now on nothing there can be changed.
    pub fn make_read_only(&self) -> Option<()> {
        run("mount", &["-o", "remount,ro", self.path().to_str().expect("a plain path")])
    }
}

/// See [`Mounted::freeze`].
pub struct Frozen<'a> {
    of: &'a Mounted,
    guard: Child,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let path = self.of.path().to_str().expect("a plain path");
        let _ = try_run("fsfreeze", &["--unfreeze", path]);
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = try_run("umount", &["-l", self.path().to_str().expect("a plain path")]);
    }
}

/// Runs a program of the system; `None` when that does not work here.
fn run(program: &str, arguments: &[&str]) -> Option<()> {
    try_run(program, arguments).map_err(skipped).ok()
}

/// Runs a program of the system; what it said when that does not work.
fn try_run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    match Command::new(program).args(arguments).env("PATH", path).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {arguments:?}: {}", said.trim()))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}
