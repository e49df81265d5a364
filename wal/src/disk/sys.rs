//! The few system calls that the standard library does not have.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A random number from the kernel.
pub(super) fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the pointer and length name a live buffer of our own.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole or not at all once the kernel is seeded.
    if got != bytes.len() as isize {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// Reserves the file's blocks, so that a full disk shows now and the extents
/// are few. A file system that cannot is fine: the blocks come when it is filled.
pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: a plain call on a descriptor that lives as long as `file`.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}

/// Bytes of the file system that holds `path` that may still be written.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero, and the answer has its place.
    free(|stat| unsafe { libc::statvfs(path.as_ptr(), stat) })
}

/// The same of the one that holds this file, which may be deleted.
pub(super) fn free_bytes_beside(file: &File) -> io::Result<u64> {
    // SAFETY: the descriptor is open, and the answer has its place.
    free(|stat| unsafe { libc::fstatvfs(file.as_raw_fd(), stat) })
}

fn free(ask: impl FnOnce(*mut libc::statvfs) -> libc::c_int) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    if ask(stat.as_mut_ptr()) != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the answer.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// As whom this process makes files.
pub(super) fn user() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// An error unless this process may write to what is there.
pub(super) fn check_writable(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero.
    let code =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the file's cached pages back. Only advice, so the answer is ignored.
pub(super) fn drop_cached(file: &File) {
    // SAFETY: a plain call on a descriptor that lives as long as `file`.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Has the kernel write this part of the file now, waits for it and gives its
/// cached pages back. Makes nothing durable, and may do nothing at all where the
/// file system has no such thing.
///
/// # Errors
/// What became of writes to this file since the last time that anybody asked: no
/// later sync tells it again.
pub(super) fn push(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    const NOW: libc::c_uint = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (fd, from, bytes) = (file.as_raw_fd(), from as libc::off64_t, bytes as libc::off64_t);
    // SAFETY: a plain call on a descriptor that lives as long as `file`.
    if unsafe { libc::sync_file_range(fd, from, bytes, NOW) } != 0 {
        let error = io::Error::last_os_error();
        // A sandbox without the call.
        return if error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) };
    }
    // SAFETY: the same. Only advice, so the answer is ignored.
    unsafe { libc::posix_fadvise(fd, from, bytes, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

/// Writes all of `bytes` and makes them durable in the same call.
pub(super) fn write_dsync(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: one iovec that names a live buffer; a write only reads from it.
    let wrote =
        unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_DSYNC) };
    match wrote {
        -1 => Err(io::Error::last_os_error()),
        n if n as usize == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Gives the file `from` the name `to`, and what has that name, if anything, its
/// own: at no moment is either without a name.
pub(super) fn exchange(from: &Path, to: &Path) -> io::Result<()> {
    let flags = if to.try_exists()? { libc::RENAME_EXCHANGE } else { libc::RENAME_NOREPLACE };
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (from, to) = (from?, to?);
    // SAFETY: both paths end with a zero.
    let done = unsafe {
        libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
