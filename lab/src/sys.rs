//! The few system calls of the lab that std does not offer: enter a network namespace, die with the parent, send a signal,
//! ask who we are, take a CPU, a buffer beyond the limit.
#![expect(unsafe_code, reason = "setns, prctl, kill, geteuid, setsockopt and the scheduler have no safe form in std")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What is sent to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end in good order.
    Term,
    /// SIGKILL: be gone.
    Kill,
    /// SIGSTOP: stand still.
    Stop,
    /// SIGCONT: go on.
    Cont,
    /// SIGINT: Ctrl-C.
    Int,
    /// SIGHUP: read everything anew.
    Hup,
}

impl Signal {
    const fn number(self) -> libc::c_int {
        match self {
            Self::Term => libc::SIGTERM,
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Cont => libc::SIGCONT,
            Self::Int => libc::SIGINT,
            Self::Hup => libc::SIGHUP,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// What setns says.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns reads the descriptor, which is open for as long as the call takes.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Gives the calling thread a network namespace of its own, nameless and empty.
///
/// # Errors
/// What unshare says.
pub fn leave() -> io::Result<()> {
    // SAFETY: unshare takes a number and changes the calling thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Lets `command` start in a network namespace, and, if asked, be killed when the thread that started it ends.
pub fn confine(command: &mut Command, namespace: Option<OwnedFd>, dies_with_parent: bool) {
    let hook = move || {
        if let Some(namespace) = &namespace {
            // SAFETY: setns reads the descriptor, which the closure owns.
            check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        }
        if dies_with_parent {
            // SAFETY: PR_SET_PDEATHSIG takes one number.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Sends a signal to a process.
///
/// # Errors
/// What kill says, and a process id beyond `i32`.
pub fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill takes two numbers.
    check(unsafe { libc::kill(pid, signal.number()) })
}

/// Sets the receive buffer of a socket, beyond the system's limit.
///
/// # Errors
/// What setsockopt says.
pub fn receive_buffer(socket: BorrowedFd<'_>, octets: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
    // SAFETY: the pointer and the length describe `octets`, which outlives the call; the descriptor is open while borrowed.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const octets).cast(), length) })
}

/// Keeps the calling thread on one CPU, before every other that has no higher real-time priority.
///
/// # Errors
/// What the kernel says: there is no such CPU, or we may not.
pub fn take_cpu(cpu: usize) -> io::Result<()> {
    // SAFETY: a set and a parameter of zeros are valid, and live until after the calls that read them.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))?;
        let mut parameter: libc::sched_param = std::mem::zeroed();
        parameter.sched_priority = 50;
        check(libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter))
    }
}

/// Whether we are root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
