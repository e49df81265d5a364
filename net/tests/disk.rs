//! The disk transport on real files: durable writes both ways, reads back, errors.
#![allow(missing_docs, unsafe_code)]

mod world;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use net::{Event, HandsOptions, NoBuffer, READ_BYTES_MAX, ReadBuf, WriteMode};
use world::{World, pattern, ways};

/// Page-aligned memory, as direct I/O wants it.
#[repr(align(4096))]
struct Page([u8; 8192]);

/// With `O_DIRECT` where the file system has it.
fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    options.clone().custom_flags(libc::O_DIRECT).open(path).or_else(|_| options.open(path)).unwrap()
}

fn written(world: &mut World, tag: u64) -> io::Result<u32> {
    world.until("the write", |_, event| match event {
        Event::Written { tag: t, result } if t == tag => Some(result),
        _ => None,
    })
}

fn read(world: &mut World, tag: u64) -> io::Result<(ReadBuf, u32)> {
    world.until("the read", |_, event| match event {
        Event::Read { tag: t, result } if t == tag => Some(result),
        _ => None,
    })
}

#[test]
fn what_is_written_is_read_back() {
    for options in ways() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = open(&dir.path().join("segment"));
        let mut page = Box::new(Page([0; 8192]));
        page.0.copy_from_slice(&pattern(8192));
        let mut world = World::new(options);
        for (tag, mode) in [WriteMode::Dsync, WriteMode::ThenFdatasync].into_iter().enumerate() {
            let offset = tag as u64 * 8192;
            // SAFETY: `page` lives to the end of the test and is not changed.
            unsafe {
                let ptr = page.0.as_ptr();
                world.hands.write(tag as u64, file.as_raw_fd(), ptr, 8192, offset, mode);
            }
            assert_eq!(written(&mut world, tag as u64).unwrap(), 8192);
            world.hands.read(77, file.as_raw_fd(), offset + 4096, 4096).unwrap();
            let (buf, len) = read(&mut world, 77).unwrap();
            assert_eq!(len, 4096);
            assert_eq!(world.hands.read_bytes(&buf), &page.0[4096..]);
            world.hands.release(buf);
        }
        // Behind the end there is nothing.
        world.hands.read(78, file.as_raw_fd(), 1 << 20, 4096).unwrap();
        let (buf, len) = read(&mut world, 78).unwrap();
        assert_eq!((len, world.hands.read_bytes(&buf)), (0, &[][..]));
        world.hands.release(buf);
    }
}

#[test]
fn failures_are_told_with_their_reason() {
    for options in ways() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("read-only");
        std::fs::write(&path, b"x").unwrap();
        let file = File::open(&path).unwrap();
        let page = Box::new(Page([0; 8192]));
        let mut world = World::new(options);
        for (tag, mode) in [WriteMode::Dsync, WriteMode::ThenFdatasync].into_iter().enumerate() {
            // SAFETY: `page` lives to the end of the test and is not changed.
            unsafe {
                let ptr = page.0.as_ptr();
                world.hands.write(tag as u64, file.as_raw_fd(), ptr, 4096, 0, mode);
            }
            let error = written(&mut world, tag as u64).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
        let write_only = OpenOptions::new().write(true).open(&path).unwrap();
        world.hands.read(9, write_only.as_raw_fd(), 0, 4096).unwrap();
        let error = read(&mut world, 9).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}

/// A pipe takes bytes and cannot sync them: what a disk's cache says that learns of an error only
/// when it is emptied. The bytes of the write alone are no success.
#[test]
fn a_sync_that_fails_behind_its_write_is_a_failure() {
    for options in ways() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut page = Box::new(Page([0; 8192]));
        page.0.copy_from_slice(&pattern(8192));
        let mut world = World::new(options);
        // SAFETY: `page` lives to the end of the test and is not changed.
        unsafe {
            let (ptr, mode) = (page.0.as_ptr(), WriteMode::ThenFdatasync);
            world.hands.write(1, writer.as_raw_fd(), ptr, 8192, 0, mode);
        }
        let error = written(&mut world, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let mut through = [0; 8192];
        reader.read_exact(&mut through).unwrap();
        assert!(through == page.0, "the write itself succeeded");
    }
}

#[test]
fn read_buffers_are_bounded_and_come_back() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("big");
    let bytes = pattern(READ_BYTES_MAX as usize);
    std::fs::write(&path, &bytes).unwrap();
    let file = File::open(&path).unwrap();
    let mut world = World::new(HandsOptions::default());
    for round in 0..3 {
        let mut asked = 0;
        while world.hands.read(asked, file.as_raw_fd(), 0, READ_BYTES_MAX).is_ok() {
            asked += 1;
        }
        assert!(asked >= 2, "round {round}");
        assert_eq!(world.hands.read(99, file.as_raw_fd(), 0, 1), Err(NoBuffer));
        for tag in 0..asked {
            let (buf, len) = read(&mut world, tag).unwrap();
            assert_eq!(len, READ_BYTES_MAX);
            assert!(world.hands.read_bytes(&buf) == bytes);
            world.hands.release(buf);
        }
    }
}

#[test]
fn dropping_the_hands_waits_for_writes_in_flight() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("last-words");
    let file = open(&path);
    let mut page = Box::new(Page([0; 8192]));
    page.0.copy_from_slice(&pattern(8192));
    let mut world = World::new(HandsOptions::default());
    // SAFETY: the hands are dropped before `page`.
    unsafe {
        let (ptr, mode) = (page.0.as_ptr(), WriteMode::ThenFdatasync);
        world.hands.write(1, file.as_raw_fd(), ptr, 8192, 0, mode);
    }
    drop(world);
    let mut back = vec![0; 8192];
    File::open(&path).unwrap().read_exact_at(&mut back, 0).unwrap();
    assert!(back == page.0);
}

/// The name of the variable that makes the test below the process that dies.
const VICTIM: &str = "NET_TEST_DROP_WITH_A_WRITE_THAT_HANGS";

/// A pipe that nobody reads stands for a disk that does not answer. The process that drops its
/// hands then must not go on, since it would free memory that is still to be written.
#[test]
fn dropping_the_hands_before_a_write_that_hangs_aborts() {
    if std::env::var_os(VICTIM).is_some() {
        drop_with_a_write_that_hangs();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "dropping_the_hands_before_a_write_that_hangs_aborts"])
        .env(VICTIM, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{told}");
    assert!(told.contains("a write to the disk does not end"), "{told}");
}

fn drop_with_a_write_that_hangs() {
    let (_reader, writer) = io::pipe().unwrap();
    let page = Box::new(Page([0; 8192]));
    let mut world = World::new(HandsOptions::default());
    // SAFETY: `page` is dropped behind the hands. What is more than a pipe holds must wait.
    unsafe {
        for tag in 0..256 {
            let (ptr, mode) = (page.0.as_ptr(), WriteMode::Dsync);
            world.hands.write(tag, writer.as_raw_fd(), ptr, 8192, 0, mode);
        }
    }
    drop(world);
}
