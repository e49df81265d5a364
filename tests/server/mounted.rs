//! File systems of their own for tests: small ones, full ones, failing ones.
//!
//! Mounting needs privileges; where they are missing a test is skipped, and
//! says so on stdout.

use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

/// A file system of a test, gone with it.
pub struct Mounted {
    dir: tempfile::TempDir,
    /// The file behind a loop device.
    image: Option<tempfile::NamedTempFile>,
}

impl Mounted {
    /// In memory; `None`, with the reason on stdout, where that is not allowed.
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
        let (file, path) = (image.path().to_str()?, dir.path().to_str()?);
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
        let image = self.image.as_ref().expect("a loop device").as_file();
        let bytes = image.metadata().unwrap().len();
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(image, how, 0, bytes).unwrap();
    }

    /// From now on nothing there can be changed.
    pub fn make_read_only(&self) -> Option<()> {
        run("mount", &["-o", "remount,ro", self.path().to_str().expect("a plain path")])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.path().to_str().expect("a plain path")]);
    }
}

/// Runs a program of the system; `None` when that does not work here.
fn run(program: &str, arguments: &[&str]) -> Option<()> {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    match Command::new(program).args(arguments).env("PATH", path).output() {
        Ok(output) if output.status.success() => Some(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("skipped: {program} {arguments:?}: {said}");
            None
        }
        Err(error) => {
            println!("skipped: {program}: {error}");
            None
        }
    }
}
