//! The socket options that no crate offers.
#![expect(unsafe_code, reason = "setsockopt is a C function; its arguments live on our stack")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets the receive and send buffers of `fd` to `octets`; beyond the system's limit where we are allowed to.
pub(crate) fn set_buffers(fd: BorrowedFd<'_>, octets: i32) -> io::Result<()> {
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set(fd, forced, octets).is_err() {
            set(fd, plain, octets)?;
        }
    }
    Ok(())
}

fn set(fd: BorrowedFd<'_>, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `value`, which outlives the call; `fd` is open while borrowed.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
