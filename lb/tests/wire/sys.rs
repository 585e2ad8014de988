//! The system calls that the tests need and std does not have.
#![expect(unsafe_code, reason = "setns and ptrace have no safe form in std")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr::null_mut;

/// Moves the calling thread into a named network namespace.
pub fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    // SAFETY: a plain call with a descriptor that lives through it.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stops one thread of this process as a debugger does, until the child (the debugger) ends.
pub fn hang(thread: libc::pid_t) -> io::Result<Child> {
    let any_tracer = libc::c_ulong::MAX;
    // SAFETY: plain numbers; it permits our children to trace us where only ancestors may.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, any_tracer) };
    let mut debugger = Command::new("sleep");
    debugger.arg("600");
    let attach = move || {
        let nothing = null_mut::<libc::c_void>;
        // SAFETY: plain numbers; nothing of our memory is touched. The kernel keeps the tie when this child becomes `sleep`.
        let tied = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, nothing(), nothing()) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing(), nothing()) == 0
        };
        if tied { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: `attach` makes system calls only, which is allowed between fork and exec.
    unsafe { debugger.pre_exec(attach) };
    debugger.spawn()
}
