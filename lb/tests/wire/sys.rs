//! The one system call that the tests need and std does not have.
#![expect(unsafe_code, reason = "setns has no safe form in std")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Moves the calling thread into a named network namespace.
pub fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    // SAFETY: a plain call with a descriptor that lives through it.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
