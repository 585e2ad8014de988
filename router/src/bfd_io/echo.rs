//! Echo packets on the wire: to our own address, by way of the neighbour's link-layer address (RFC 5880 section 6.4).
//!
//! The kernel would deliver a packet to our own address to ourselves, and drops one that comes from outside with our own
//! address as its source. So these packets leave and arrive through a packet socket, with their IP and UDP headers made
//! and read here; the neighbour's link-layer address is the kernel's own neighbour entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use martlet_bfd::{Meta, SessionId};
use martlet_clock::Instant;
use socket2::{Domain, Protocol, Socket, Type};

use super::sockets::Place;
use super::sys;

/// Echo packets (RFC 5881 section 4).
pub(super) const PORT: u16 = 3785;
/// How long a path is used before the kernel is asked again.
const FRESH: Duration = Duration::from_secs(1);
const UDP: u8 = 17;
/// Class selector 6, network control.
const CS6: u8 = 48 << 2;
const HOPS: u8 = 255;

/// How an echo packet gets to the neighbour and back.
#[derive(Debug)]
struct Path {
    source: IpAddr,
    link_layer: Vec<u8>,
    learned_at: Instant,
}

#[derive(Debug)]
struct Open {
    socket: File,
    index: u32,
    paths: BTreeMap<SessionId, Path>,
}

/// The packet sockets of all interfaces with sessions that echo.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    open: BTreeMap<Place, Open>,
}

impl Echoes {
    /// Opens what is wanted, closes what is not, or whose interface went; says what went wrong.
    pub fn refresh(&mut self, wanted: &BTreeSet<Place>) -> Vec<String> {
        self.open.retain(|place, open| wanted.contains(place) && index(place) == Some(open.index));
        let mut problems = Vec::new();
        for place in wanted {
            let Some(index) = index(place).filter(|_| !self.open.contains_key(place)) else { continue };
            match sys::packet_socket(index, place.is_ipv6(), PORT) {
                Ok(socket) => {
                    let open = Open { socket: File::from(socket), index, paths: BTreeMap::new() };
                    self.open.insert(place.clone(), open);
                }
                Err(error) => problems.push(format!("echo packets: {error}")),
            }
        }
        problems
    }

    /// The sockets to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.open.values().map(|open| open.socket.as_fd())
    }

    /// Sends an echo packet of `session`.
    ///
    /// # Errors
    /// `NotConnected` while the neighbour's link-layer address is not known, and what the kernel says.
    pub fn send(&mut self, now: Instant, session: &SessionId, payload: &[u8]) -> io::Result<()> {
        let place = Place::of(session);
        let open = self.open.get_mut(&place).ok_or(io::ErrorKind::NotFound)?;
        let fresh = open.paths.get(session).filter(|path| now.since(path.learned_at) < FRESH);
        if fresh.is_none() {
            let path = learn(now, session, open.index)?;
            open.paths.insert(session.clone(), path);
        }
        let path = open.paths.get(session).ok_or(io::ErrorKind::NotConnected)?;
        let packet = wrap(path.source, payload);
        sys::send_packet(open.socket.as_fd(), open.index, place.is_ipv6(), &path.link_layer, &packet)
    }

    /// Reads what waits and hands each echo packet on, at most `most` of one socket.
    pub fn receive(&mut self, most: usize, mut hand_on: impl FnMut(&Meta, &[u8])) {
        let mut buffer = [0; 512];
        for (place, open) in &mut self.open {
            for _ in 0..most {
                let Ok(read) = open.socket.read(&mut buffer) else { break };
                let Some((address, ttl, payload)) = buffer.get(..read).and_then(unwrap) else { continue };
                let interface = place.interface.clone();
                hand_on(&Meta { remote: address, local: address, interface, ttl, multihop: false }, payload);
            }
        }
    }
}

fn index(place: &Place) -> Option<u32> {
    sys::interface_index(place.interface.as_deref()?)
}

fn learn(now: Instant, session: &SessionId, index: u32) -> io::Result<Path> {
    let source = match session.local {
        Some(local) => local,
        None => source_towards(session, index)?,
    };
    let link_layer = sys::link_layer_address(index, session.remote)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok(Path { source, link_layer, learned_at: now })
}

/// The address that the kernel would choose towards the neighbour.
fn source_towards(session: &SessionId, index: u32) -> io::Result<IpAddr> {
    let domain = if session.remote.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(session.interface.as_deref().map(str::as_bytes))?;
    let mut to = SocketAddr::new(session.remote, PORT);
    if let SocketAddr::V6(to) = &mut to {
        to.set_scope_id(index);
    }
    socket.connect(&to.into())?;
    let source = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(source.ip())
}

/// `payload` in UDP in IP, from and to `address`.
fn wrap(address: IpAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut udp = Vec::new();
    for word in [PORT, PORT, length, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(payload);
    let own = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let pseudo = [own.as_slice(), &own, &[0, UDP], &length.to_be_bytes()].concat();
    // Zero means "no checksum": a sum of zero is sent as its other form (RFC 768).
    let sum = match checksum(&[pseudo, udp.clone()].concat()) {
        0 => 0xffff,
        sum => sum,
    };
    udp.splice(6..8, sum.to_be_bytes());
    let header = match address {
        IpAddr::V4(_) => {
            let [high, low] = (length + 20).to_be_bytes();
            let before = [0x45, CS6, high, low, 0, 0, 0x40, 0, HOPS, UDP];
            let sum = checksum(&[&before[..], &[0, 0], &own, &own].concat());
            [&before[..], &sum.to_be_bytes(), &own, &own].concat()
        }
        IpAddr::V6(_) => {
            let [high, low] = length.to_be_bytes();
            let before = [0x60 | CS6 >> 4, CS6 << 4, 0, 0, high, low, UDP, HOPS];
            [&before[..], &own, &own].concat()
        }
    };
    [header, udp].concat()
}

/// Source address, TTL and payload of an echo packet that came back.
fn unwrap(packet: &[u8]) -> Option<(IpAddr, u8, &[u8])> {
    let (address, ttl, udp): (IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let address: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (Ipv4Addr::from(address).into(), *packet.get(8)?, packet.get(header..)?)
        }
        6 => {
            let address: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Ipv6Addr::from(address).into(), *packet.get(7)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let length: [u8; 2] = udp.get(4..6)?.try_into().ok()?;
    Some((address, ttl, udp.get(8..usize::from(u16::from_be_bytes(length)))?))
}

/// The Internet checksum (RFC 1071).
fn checksum(octets: &[u8]) -> u16 {
    let word = |pair: &[u8]| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    };
    let sum: u32 = octets.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_unwraps_and_its_checksums_are_right() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            for payload in [&b"sixteen octets.."[..], b"odd"] {
                let packet = wrap(address, payload);
                assert_eq!(unwrap(&packet), Some((address, 255, payload)));
                let (header, own) = if address.is_ipv4() { (20, &packet[12..20]) } else { (40, &packet[8..40]) };
                let udp = &packet[header..];
                assert_eq!(checksum(&[own, &[0, UDP], &udp[4..6], udp].concat()), 0);
                assert!(address.is_ipv6() || checksum(&packet[..20]) == 0);
            }
        }
    }

    #[test]
    fn a_packet_cut_anywhere_is_no_echo_and_no_panic() {
        let packet = wrap("2001:db8::1".parse().unwrap(), b"sixteen octets..");
        assert!((0..packet.len()).all(|end| unwrap(&packet[..end]).is_none()));
    }
}
