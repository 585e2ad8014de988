//! The socket options that no crate offers, and a socket's place in tokio.
#![expect(unsafe_code, reason = "setsockopt is a C function; tokio wants a promise about descriptors")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;

/// Has tokio watch `socket`.
pub(crate) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor, always shows the same one, and closes it only when it is dropped, which
    // `AsyncFd` does after it stopped watching.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// The send buffer: the largest batch in one call.
const SEND_OCTETS: i32 = 16 << 20;

/// Sets the receive buffer of `fd`, and raises its send buffer; beyond the system's limit where we are allowed to.
pub(crate) fn set_buffers(fd: BorrowedFd<'_>, receive_octets: i32) -> io::Result<()> {
    let receive = (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_octets);
    for (forced, plain, octets) in [receive, (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_OCTETS)] {
        if set(fd, forced, octets).is_err() {
            set(fd, plain, octets)?;
        }
    }
    Ok(())
}

fn set(fd: BorrowedFd<'_>, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `value`, which outlives the call; `fd` is open while borrowed.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
