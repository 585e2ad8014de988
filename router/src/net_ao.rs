//! TCP-AO (RFC 5925) as Linux takes it since 6.7: the octets of its socket options, and what a kernel without it says.
//!
//! Plain values; the system call is in `sys`. The layout is that of `struct tcp_ao_add` and `struct tcp_ao_del` in
//! linux/tcp.h. Not run: no kernel that this was built on has TCP-AO, so the octets are compared with the header's layout only.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};

use crate::intent::Key;
use crate::sys;

/// linux/tcp.h
const TCP_AO_ADD_KEY: i32 = 38;
/// linux/tcp.h
const TCP_AO_DEL_KEY: i32 = 39;
/// Octets of the longest master key.
pub const KEY_MAX: usize = 80;
/// Octets of the MAC: 96 bits (RFC 5926).
const MAC: u8 = 12;

/// How the MAC is made (RFC 5926).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// `HMAC-SHA-1-96`.
    HmacSha1,
    /// `AES-128-CMAC-96`.
    AesCmac,
}

impl Algorithm {
    /// By its name in RFC 5926.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "HMAC-SHA-1-96" => Some(Self::HmacSha1),
            "AES-128-CMAC-96" => Some(Self::AesCmac),
            _ => None,
        }
    }

    /// Its name in the kernel's crypto.
    const fn kernel(self) -> &'static str {
        match self {
            Self::HmacSha1 => "hmac(sha1)",
            Self::AesCmac => "cmac(aes128)",
        }
    }
}

/// A master key tuple for one neighbour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AoKey {
    /// `SendID`.
    pub send_id: u8,
    /// `RecvID`.
    pub receive_id: u8,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The master key; `Debug` never shows it.
    pub key: Key,
}

impl AoKey {
    /// A key tuple; at most [`KEY_MAX`] octets of `key`.
    pub fn new(send_id: u8, receive_id: u8, algorithm: Algorithm, key: Arc<[u8]>) -> Self {
        Self { send_id, receive_id, algorithm, key: Key(key) }
    }
}

/// Writes fields one after the other into a structure of zeroes.
struct Fields<const N: usize>([u8; N], usize);

impl<const N: usize> Fields<N> {
    /// `octets`, in a field of `width`.
    fn put(&mut self, octets: &[u8], width: usize) {
        if let Some(field) = self.0.get_mut(self.1..self.1 + octets.len().min(width)) {
            field.iter_mut().zip(octets).for_each(|(to, from)| *to = *from);
        }
        self.1 += width;
    }

    /// A `sockaddr_storage` without a port.
    fn put_address(&mut self, address: IpAddr) {
        let start = self.1;
        match address {
            IpAddr::V4(v4) => {
                self.put(&family(libc::AF_INET), 4);
                self.put(&v4.octets(), 4);
            }
            IpAddr::V6(v6) => {
                self.put(&family(libc::AF_INET6), 8);
                self.put(&v6.octets(), 16);
            }
        }
        self.1 = start + 128;
    }
}

fn family(number: i32) -> [u8; 2] {
    u16::try_from(number).unwrap_or_default().to_ne_bytes()
}

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `struct tcp_ao_add`: address, algorithm (64), interface, flags (4 + 2), prefix, ids, MAC length, key flags, key length, key.
fn add_key(address: IpAddr, key: &AoKey) -> [u8; 288] {
    let mut fields = Fields([0; 288], 0);
    fields.put_address(address);
    fields.put(key.algorithm.kernel().as_bytes(), 64);
    fields.put(&[], 4 + 4 + 2);
    let length = u8::try_from(key.key.0.len()).unwrap_or(u8::MAX);
    fields.put(&[bits(address), key.send_id, key.receive_id, MAC, 0, length], 6);
    fields.put(&key.key.0, KEY_MAX);
    fields.0
}

/// `struct tcp_ao_del`: address, interface, flags (4 + 2), prefix, ids, current and next key, key flags.
fn delete_key(address: IpAddr, key: &AoKey) -> [u8; 144] {
    let mut fields = Fields([0; 144], 0);
    fields.put_address(address);
    fields.put(&[], 4 + 4 + 2);
    fields.put(&[bits(address), key.send_id, key.receive_id], 6);
    fields.0
}

/// The kernel's refusal with its remedy.
fn explained(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no TCP-AO (RFC 5925; Linux 6.7 with CONFIG_TCP_AO has): use bgp.auth (TCP MD5), or such a kernel",
        ),
        _ => error,
    }
}

/// Segments from and to `address` are authenticated with `key`.
pub(crate) fn add(socket: BorrowedFd<'_>, address: IpAddr, key: &AoKey) -> io::Result<()> {
    if key.key.0.is_empty() || key.key.0.len() > KEY_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a TCP-AO key has 1 to 80 octets"));
    }
    sys::set_tcp(socket, TCP_AO_ADD_KEY, &add_key(address, key)).map_err(explained)
}

/// They are no more.
pub(crate) fn delete(socket: BorrowedFd<'_>, address: IpAddr, key: &AoKey) -> io::Result<()> {
    sys::set_tcp(socket, TCP_AO_DEL_KEY, &delete_key(address, key)).map_err(explained)
}

/// Whether this kernel has TCP-AO: asked with a key on a socket that is thrown away.
///
/// # Errors
/// It has not: why, and what to do.
pub fn probe() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let key = AoKey::new(1, 1, Algorithm::HmacSha1, (*b"probe").into());
    add(socket.as_fd(), Ipv4Addr::LOCALHOST.into(), &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AoKey {
        AoKey::new(100, 200, Algorithm::HmacSha1, (*b"secret").into())
    }

    /// Offset and octets of what is not zero.
    fn written(octets: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, octet) in octets.iter().enumerate().filter(|(_, octet)| **octet != 0) {
            match runs.last_mut().filter(|(start, run)| start + run.len() == at) {
                Some((_, run)) => run.push(*octet),
                None => runs.push((at, vec![*octet])),
            }
        }
        runs
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_octets_of_an_ipv4_key_are_those_of_the_kernels_header() {
        let octets = add_key(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), &key());
        let expected = [
            (0, vec![2]),
            (4, vec![10, 1, 2, 3]),
            (128, b"hmac(sha1)".to_vec()),
            (202, vec![32, 100, 200, 12]),
            (207, [&[6][..], b"secret"].concat()),
        ];
        assert_eq!(written(&octets), expected);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_octets_of_an_ipv6_key_are_those_of_the_kernels_header() {
        let key = AoKey { algorithm: Algorithm::AesCmac, ..key() };
        let octets = add_key("2001:db8::1".parse().unwrap(), &key);
        let expected = [
            (0, vec![10]),
            (8, vec![0x20, 1, 0x0d, 0xb8]),
            (23, vec![1]),
            (128, b"cmac(aes128)".to_vec()),
            (202, vec![128, 100, 200, 12]),
            (207, [&[6][..], b"secret"].concat()),
        ];
        assert_eq!(written(&octets), expected);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_key_is_removed_by_address_and_ids() {
        let octets = delete_key(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), &key());
        assert_eq!(written(&octets), [(0, vec![2]), (4, vec![10, 1, 2, 3]), (138, vec![32, 100, 200])]);
    }

    #[test]
    fn a_kernel_without_it_is_named_with_the_remedy() {
        let refused = explained(io::Error::from_raw_os_error(libc::ENOPROTOOPT));
        assert!(refused.to_string().contains("this kernel has no TCP-AO"), "{refused}");
        assert!(refused.to_string().contains("bgp.auth"), "{refused}");
        // Whatever this kernel has, the probe knows.
        if let Err(error) = probe() {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn a_key_that_is_too_long_or_empty_never_reaches_the_kernel() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        for length in [0, 81] {
            let key = AoKey::new(1, 1, Algorithm::HmacSha1, vec![7; length].into());
            let error = add(socket.as_fd(), Ipv4Addr::LOCALHOST.into(), &key).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        assert!(!format!("{:?}", key()).contains("secret"));
    }
}
