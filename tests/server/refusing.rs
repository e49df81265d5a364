//! Loaded into a process before the C library: reads of `REFUSED_FILE` that touch
//! the bytes from the first number in `REFUSED_BYTES` up to the second one fail
//! with EIO, as those of a disk that has gone bad there. A library of its own, see
//! `preload.rs`.
#![allow(unsafe_code)] // it stands in for a function of the C library

use std::env;
use std::ffi::{c_char, c_int, c_void};
use std::fs;
use std::sync::OnceLock;

type Pread = unsafe extern "C" fn(c_int, *mut c_void, usize, i64) -> isize;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

/// The next library's function of this name.
const NEXT: *mut c_void = -1_isize as *mut c_void;
const EIO: c_int = 5;

fn is_refused(fd: c_int, from: i64, to: i64) -> Option<bool> {
    let path = env::var("REFUSED_FILE").ok()?;
    let bytes = env::var("REFUSED_BYTES").ok()?;
    let (begin, end) = bytes.split_once(' ')?;
    let is_it = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.as_os_str() == path.as_str();
    Some(is_it && from < end.parse().ok()? && begin.parse::<i64>().ok()? < to)
}

/// As the C library's.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(fd: c_int, to: *mut c_void, count: usize, at: i64) -> isize {
    static REAL: OnceLock<Pread> = OnceLock::new();
    if is_refused(fd, at, at + count as i64) == Some(true) {
        // SAFETY: it is this thread's own.
        unsafe { *__errno_location() = EIO };
        return -1;
    }
    // SAFETY: the name ends with a zero, and is that of a function of this type.
    let real = REAL.get_or_init(|| unsafe {
        std::mem::transmute::<*mut c_void, Pread>(dlsym(NEXT, c"pread64".as_ptr()))
    });
    // SAFETY: as promised to us.
    unsafe { real(fd, to, count, at) }
}
