//! Loaded into a process before the C library: its wall clock is behind by
//! `BEHIND_SECONDS`. A library of its own, see `preload.rs`.
#![allow(unsafe_code)] // it stands in for a function of the C library

use std::env;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

/// The C library's `timespec` of 64-bit systems.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

type ClockGettime = unsafe extern "C" fn(c_int, *mut Timespec) -> c_int;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The next library's function of this name.
const NEXT: *mut c_void = -1_isize as *mut c_void;
const CLOCK_REALTIME: c_int = 0;

fn behind_seconds() -> i64 {
    env::var("BEHIND_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

/// As the C library's.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, to: *mut Timespec) -> c_int {
    static REAL: OnceLock<ClockGettime> = OnceLock::new();
    // SAFETY: the name ends with a zero, and is that of a function of this type.
    let real = REAL.get_or_init(|| unsafe {
        std::mem::transmute::<*mut c_void, ClockGettime>(dlsym(NEXT, c"clock_gettime".as_ptr()))
    });
    // SAFETY: as promised to us.
    let result = unsafe { real(clock, to) };
    if clock == CLOCK_REALTIME && result == 0 {
        // SAFETY: the real one has just written there.
        unsafe { (*to).seconds -= behind_seconds() };
    }
    result
}
