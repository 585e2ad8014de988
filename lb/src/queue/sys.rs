//! The system calls of a queue: a netlink socket, many datagrams a call, a wake-up, a thread's priority.
#![expect(unsafe_code, reason = "recvmmsg, poll, netlink addresses and scheduling have no safe form in std")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, c_void, socklen_t};

/// The result of a call that returns -1 on failure.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The size of `T` as the socket calls want it.
fn size_of<T>() -> socklen_t {
    socklen_t::try_from(mem::size_of::<T>()).unwrap_or_default()
}

fn set(socket: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the value lives through the call and its size is right.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), size_of::<c_int>())
    })
    .map(drop)
}

/// A socket to the kernel's netfilter, with a receive buffer of `octets` (as near as permitted), that drops silently when
/// it is full: the kernel counts that.
pub fn open_netfilter(octets: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a plain call; the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER))?) };
    // SAFETY: all zeros is a valid sockaddr_nl: the kernel, or "choose a port".
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or_default();
    let pointer = ptr::from_ref(&address).cast();
    // SAFETY: the address lives through both calls and its size is right.
    unsafe {
        check(libc::bind(socket.as_raw_fd(), pointer, size_of::<libc::sockaddr_nl>()))?;
        check(libc::connect(socket.as_raw_fd(), pointer, size_of::<libc::sockaddr_nl>()))?;
    }
    set(&socket, libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, octets)
        .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, octets))?;
    Ok(socket)
}

/// Sends one buffer.
pub fn send(socket: BorrowedFd<'_>, octets: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    let sent = unsafe { libc::send(socket.as_raw_fd(), octets.as_ptr().cast(), octets.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Buffers for many datagrams at once.
pub struct Batch {
    /// One after the other, `size` octets each.
    buffers: Vec<u8>,
    size: usize,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    /// For `count` datagrams of at most `size` octets.
    pub fn new(count: usize, size: usize) -> Self {
        // SAFETY: all zeros is a valid mmsghdr (no address, no vectors, no control) and a valid iovec (nothing).
        let (vectors, headers) = unsafe {
            let headers = (0..count).map(|_| mem::zeroed()).collect();
            ((0..count).map(|_| mem::zeroed()).collect(), headers)
        };
        Self { buffers: vec![0; count * size], size, vectors, headers }
    }

    /// Receives what there is, without waiting: the number of datagrams.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let buffers = self.buffers.chunks_exact_mut(self.size);
        for ((header, vector), buffer) in self.headers.iter_mut().zip(&mut self.vectors).zip(buffers) {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: self.size };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or_default();
        // SAFETY: each header points to one vector and each vector to one buffer of its length, set just now; all are
        // borrowed by `self` through the call.
        let received = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_DONTWAIT, ptr::null_mut())
        };
        check(received).map(|received| usize::try_from(received).unwrap_or_default())
    }

    /// The datagrams of the last `receive`.
    pub fn datagrams(&self, received: usize) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().zip(self.buffers.chunks_exact(self.size)).take(received).filter_map(|(header, buffer)| {
            let length = usize::try_from(header.msg_len).ok()?;
            buffer.get(..length)
        })
    }
}

/// Waits until one of both can be read.
pub fn wait(one: RawFd, other: BorrowedFd<'_>) -> io::Result<()> {
    let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(one), entry(other.as_raw_fd())];
    // SAFETY: pointer and count are of one array.
    match check(unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// A counter that wakes whoever waits for it: written and read as a file.
pub fn event() -> io::Result<OwnedFd> {
    // SAFETY: a plain call; the descriptor is new and nobody else's.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?)) }
}

/// Lets the calling thread run before all ordinary ones.
pub fn real_time(priority: c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters live through the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) }).map(drop)
}
