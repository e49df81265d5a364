//! The allocator's one setting: large blocks come from the kernel and go back
//! to it.
#![allow(unsafe_code)] // one call, which takes two numbers

/// Blocks from this size on are mappings of their own.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 128 << 10;

/// glibc raises its bound for such blocks to the largest one ever freed, and
/// what is below is cut from a heap that each thread keeps: the megabyte that a
/// helper thread wrote zeroes from stayed resident for every shard. Nothing on a
/// message's way allocates blocks of that size.
pub(crate) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers, and no other thread is there yet; a refusal changes
    // nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}
