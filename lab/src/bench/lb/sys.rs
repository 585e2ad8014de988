//! The system calls of the load balancer's benchmark: many packets a call, one CPU for a thread.
#![expect(unsafe_code, reason = "sendmmsg and sched_setaffinity have no safe form in std")]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Whole IP packets to one destination, ready to be sent again and again.
pub struct Packets {
    /// What the headers point to.
    _octets: Vec<Vec<u8>>,
    _vectors: Vec<libc::iovec>,
    _address: Box<libc::sockaddr_in>,
    headers: Vec<libc::mmsghdr>,
}

impl Packets {
    /// Of these octets each, all to one address.
    pub fn new(mut octets: Vec<Vec<u8>>, to: Ipv4Addr) -> Self {
        // SAFETY: all zeros is a valid sockaddr_in.
        let mut address: Box<libc::sockaddr_in> = Box::new(unsafe { mem::zeroed() });
        address.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
        address.sin_addr.s_addr = u32::from_ne_bytes(SocketAddrV4::new(to, 0).ip().octets());
        let vector = |one: &mut Vec<u8>| libc::iovec { iov_base: one.as_mut_ptr().cast(), iov_len: one.len() };
        let mut vectors: Vec<libc::iovec> = octets.iter_mut().map(vector).collect();
        let headers = vectors.iter_mut().map(|vector| {
            // SAFETY: all zeros is a valid mmsghdr.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = std::ptr::from_mut(&mut *address).cast();
            header.msg_hdr.msg_namelen = u32::try_from(size_of::<libc::sockaddr_in>()).unwrap_or_default();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        });
        let headers = headers.collect();
        Self { _octets: octets, _vectors: vectors, _address: address, headers }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// Sends up to `count` of them from the one at `first` on: how many left.
    pub fn send(&mut self, socket: BorrowedFd<'_>, first: usize, count: usize) -> io::Result<usize> {
        let end = (first + count).min(self.headers.len());
        let some = self.headers.get_mut(first..end).unwrap_or_default();
        let length = libc::c_uint::try_from(some.len()).unwrap_or_default();
        // SAFETY: the headers point to vectors, octets and an address that `self` owns and never moves.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), some.as_mut_ptr(), length, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Keeps the calling thread on one CPU, where there is one of that number.
pub fn pin(cpu: usize) {
    // SAFETY: a set of zeros is valid and lives through the call; a CPU that is not there is refused.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}
