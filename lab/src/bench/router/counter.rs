//! Counts many routes as the kernel tells of them, at next to no cost: no text, no memory for a message.
//!
//! It looks once a millisecond: a reader that slept in its socket would be woken by every route, and who programs them would
//! pay for it. It knows IPv4 routes of one length in one table, and counts a prefix once however often the kernel tells of it.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::namespace::Namespace;
use crate::sys;

/// The table.
pub const TABLE: u32 = 4096;
/// The length of the prefixes.
const BITS: u8 = 24;
/// The first prefix; the others follow without a gap.
const FIRST: u32 = 0x6400_0000;
/// Room for everything that is told of 100 000 routes, octets.
const RECEIVE_OCTETS: i32 = 256 << 20;
/// The largest message.
const MESSAGE_MAX: usize = 4096;
/// Between two looks that found nothing.
const PAUSE: Duration = Duration::from_millis(1);

/// The octets of prefix 0, 1, .. as an UPDATE has them.
pub fn nlri(number: u32) -> [u8; 4] {
    let [one, two, three, _] = (FIRST + (number << 8)).to_be_bytes();
    [BITS, one, two, three]
}

/// Prefix 0, 1, ..
pub fn prefix(number: u32) -> IpNet {
    let [_, one, two, three] = nlri(number);
    Ipv4Net::new_assert([one, two, three, 0].into(), BITS).into()
}

/// When the kernel told of the first and of the last of them, to the millisecond.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Of the first.
    pub first: Instant,
    /// Of the last.
    pub last: Instant,
}

/// Which of the routes are there, by what the kernel told.
pub struct Counter {
    socket: Socket,
    buffer: Vec<u8>,
    there: Vec<bool>,
    count: usize,
}

impl Counter {
    /// Of so many routes, none of which is there yet.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub fn open(namespace: &Namespace, routes: u32) -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            sys::receive_buffer(socket.as_fd(), RECEIVE_OCTETS)?;
            socket.add_membership(libc::RTNLGRP_IPV4_ROUTE)?;
            Ok(socket)
        };
        let socket = namespace.inside(open)?.context("listen to the kernel's routes")?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(MESSAGE_MAX),
            there: vec![false; usize::try_from(routes)?],
            count: 0,
        })
    }

    /// Waits until all routes are there, or none is.
    ///
    /// # Errors
    /// That takes longer than `limit`, or the kernel told more than the socket could hold.
    pub fn wait(&mut self, there: bool, limit: Duration) -> Result<Span> {
        let wanted = if there { self.there.len() } else { 0 };
        let start = Instant::now();
        let mut first = None;
        while self.count != wanted {
            let before = self.count;
            let told = self.look()?;
            if self.count != before {
                first.get_or_insert_with(Instant::now);
            }
            ensure!(start.elapsed() < limit, "{} of {} routes are there, not {wanted}", self.count, self.there.len());
            if !told {
                std::thread::sleep(PAUSE);
            }
        }
        let last = Instant::now();
        Ok(Span { first: first.unwrap_or(last), last })
    }

    /// Takes the next message; false: there is none.
    fn look(&mut self) -> Result<bool> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                bail!("the kernel told of more routes than the socket holds: they cannot be counted")
            }
            Err(error) => return Err(error).context("listen to the kernel's routes"),
        }
        if let Some((came, number)) = read(&self.buffer)
            && let Some(there) = self.there.get_mut(number)
            && *there != came
        {
            *there = came;
            self.count = if came { self.count + 1 } else { self.count - 1 };
        }
        Ok(true)
    }
}

/// Whether a route came or went, and its number. The kernel tells of each route in a datagram of its own:
///
/// ```text
/// nlmsghdr   length 4, type 2, flags 2, sequence 4, port 4
/// rtmsg      family 1, destination length 1, 10 more
/// rtattr ..  length 2, type 2, value, padded to 4
/// ```
fn read(message: &[u8]) -> Option<(bool, usize)> {
    let (&[_, _, _, _, low, high, ..], rest) = message.split_first_chunk::<16>()?;
    let came = match u16::from_ne_bytes([low, high]) {
        libc::RTM_NEWROUTE => true,
        libc::RTM_DELROUTE => false,
        _ => return None,
    };
    let (&[family, bits, ..], mut rest) = rest.split_first_chunk::<12>()?;
    let (mut table, mut address) = (0, 0);
    while let Some(&[low, high, kind, more]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let value = rest.get(4..length)?;
        match u16::from_ne_bytes([kind, more]) {
            libc::RTA_DST => address = u32::from_be_bytes(*value.first_chunk()?),
            libc::RTA_TABLE => table = u32::from_ne_bytes(*value.first_chunk()?),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let counts = i32::from(family) == libc::AF_INET && bits == BITS && table == TABLE;
    let number = usize::try_from(address.checked_sub(FIRST)? >> 8).ok()?;
    counts.then_some((came, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, bits: u8, table: u32, address: [u8; 4]) -> Vec<u8> {
        let mut message = vec![0; 28];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[16..18].copy_from_slice(&[2, bits]);
        for (kind, value) in [(libc::RTA_TABLE, table.to_ne_bytes()), (libc::RTA_DST, address)] {
            message.extend([8_u16.to_ne_bytes(), kind.to_ne_bytes()].concat());
            message.extend(value);
        }
        message
    }

    #[test]
    fn a_route_that_counts_is_told_from_all_others() {
        let (new, gone) = (libc::RTM_NEWROUTE, libc::RTM_DELROUTE);
        assert_eq!(read(&message(new, 24, 4096, [100, 0, 1, 0])), Some((true, 1)));
        assert_eq!(read(&message(gone, 24, 4096, [101, 134, 159, 0])), Some((false, 99_999)));
        assert_eq!(nlri(99_999), [24, 101, 134, 159]);
        assert_eq!(read(&message(new, 32, 4096, [100, 0, 1, 0])), None);
        assert_eq!(read(&message(new, 24, 254, [100, 0, 1, 0])), None);
        assert_eq!(read(&message(new, 24, 4096, [10, 0, 1, 0])), None);
        assert_eq!(read(&message(libc::RTM_NEWRULE, 24, 4096, [100, 0, 1, 0])), None);
        let mut broken = message(new, 24, 4096, [100, 0, 1, 0]);
        broken[28] = 0;
        assert_eq!(read(&broken), None, "an attribute without a length");
    }
}
