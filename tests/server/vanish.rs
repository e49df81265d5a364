//! A client whose machine is gone: its connection ends without a word.
#![allow(unsafe_code)] // one option of the kernel that has no safe wrapper

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// From the kernel's `uapi/linux/tcp.h`.
const TCP_REPAIR: libc::c_int = 19;

/// Forgets a connection on this side: no FIN and no RST, and whatever the other
/// side sends from now on is answered as by a machine that never heard of it.
///
/// # Errors
/// Without the right to do so, which root has.
pub fn vanish(stream: TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, the option's value is a live int of the
    // length given, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    // A connection under repair is closed without telling anybody.
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
