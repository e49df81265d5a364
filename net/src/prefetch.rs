//! A hint that a place in memory will be needed soon.
#![allow(unsafe_code)]

/// Asks for the cache line at `place`, without waiting for it. Any address will do: one that leads
/// nowhere costs a moment and does no harm.
#[inline]
pub fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program could see, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
