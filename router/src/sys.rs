//! Socket options that no crate offers: TCP MD5 (RFC 2385), GTSM (RFC 5082), the unsent low-water mark; interface indexes.
#![expect(unsafe_code, reason = "setsockopt and if_nametoindex have no safe form for these")]

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use libc::{c_int, socklen_t};

/// Longest password of TCP MD5, octets.
pub const MD5_MAX: usize = 80;
/// linux/tcp.h; the address is exact, not a prefix.
const TCP_MD5SIG: c_int = 14;
/// linux/tcp.h; the address is a prefix.
const TCP_MD5SIG_EXT: c_int = 32;
/// linux/tcp.h
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;
/// linux/in.h
const IP_MINTTL: c_int = 21;
/// linux/in6.h
const IPV6_MINHOPCOUNT: c_int = 73;

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct TcpMd5Sig {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: c_int,
    key: [u8; MD5_MAX],
}

fn set<T>(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let length = socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `length` octets of `value`, which is a
    // plain C value of that size, and keeps no pointer.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A TCP option whose value is plain octets.
pub fn set_tcp<const N: usize>(socket: BorrowedFd<'_>, option: c_int, value: &[u8; N]) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, option, value)
}

/// Segments from and to `address` carry the MD5 of `key`; an empty key removes it.
pub fn set_md5(socket: BorrowedFd<'_>, address: IpAddr, key: &[u8]) -> io::Result<()> {
    md5(socket, address, None, key)
}

/// The same for all addresses of a prefix.
pub fn set_md5_prefix(socket: BorrowedFd<'_>, prefix: IpNet, key: &[u8]) -> io::Result<()> {
    md5(socket, prefix.network(), Some(prefix.prefix_len()), key)
}

fn md5(socket: BorrowedFd<'_>, address: IpAddr, prefix_length: Option<u8>, key: &[u8]) -> io::Result<()> {
    let length = u16::try_from(key.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: all zeroes is a valid value of this plain C struct.
    let mut signature: TcpMd5Sig = unsafe { std::mem::zeroed() };
    let Some(room) = signature.key.get_mut(..key.len()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a TCP MD5 password has at most 80 octets"));
    };
    room.copy_from_slice(key);
    signature.key_length = length;
    signature.flags = if prefix_length.is_some() { TCP_MD5SIG_FLAG_PREFIX } else { 0 };
    signature.prefix_length = prefix_length.unwrap_or_default();
    let option = if prefix_length.is_some() { TCP_MD5SIG_EXT } else { TCP_MD5SIG };
    let name = socket2::SockAddr::from(std::net::SocketAddr::new(address, 0));
    // SAFETY: `name` holds a valid address of `name.len()` octets, which fits a `sockaddr_storage`.
    unsafe {
        let to = std::ptr::from_mut(&mut signature.address).cast::<u8>();
        let from = name.as_ptr().cast::<u8>();
        std::ptr::copy_nonoverlapping(from, to, usize::try_from(name.len()).unwrap_or(0));
    }
    match set(socket, libc::IPPROTO_TCP, option, &signature) {
        // Removing what is not there.
        Err(error) if key.is_empty() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Packets with a lower TTL (IPv4) or hop limit (IPv6) are dropped.
pub fn set_min_ttl(socket: BorrowedFd<'_>, is_v4: bool, min_ttl: u8) -> io::Result<()> {
    let value = c_int::from(min_ttl);
    if is_v4 {
        set(socket, libc::IPPROTO_IP, IP_MINTTL, &value)
    } else {
        set(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &value)
    }
}

/// The socket is writable while fewer than `octets` wait to be sent.
pub fn set_unsent_low_water(socket: BorrowedFd<'_>, octets: u32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &octets)
}

/// The index of an interface.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `name` is a C string that lives during the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}
