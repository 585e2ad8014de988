//! Packets that no ordinary socket sends: fragments in any order, extension headers, errors, SCTP.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub const CLIENT4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 1));
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1));

/// The client's address in the family of `vip`.
pub const fn client(vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() { CLIENT4 } else { CLIENT6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("16 bits").to_be_bytes()
}

/// The Internet checksum.
pub fn checksum(octets: &[u8]) -> [u8; 2] {
    let words = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("16 bits")).to_be_bytes()
}

/// `CRC32c` (RFC 9260 appendix A).
pub fn crc32c(octets: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !octets.iter().fold(u32::MAX, |crc, octet| (0..8).fold(crc ^ u32::from(*octet), step))
}

/// An SCTP packet with an INIT chunk and its checksum.
pub fn sctp(ports: [u16; 2]) -> Vec<u8> {
    let [from, to] = ports.map(u16::to_be_bytes);
    let mut packet = [&from[..], &to, &[0; 8], &[1, 0, 0, 20], &[0; 16]].concat();
    let crc = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&crc);
    packet
}

/// Whether the checksum of an SCTP packet is right.
pub fn sctp_is_right(packet: &[u8]) -> bool {
    let mut blank = packet.to_vec();
    blank[8..12].fill(0);
    packet[8..12] == crc32c(&blank).to_le_bytes()
}

/// A UDP datagram with its checksum.
pub fn udp(from: IpAddr, to: IpAddr, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let length = short(8 + payload.len());
    let mut datagram = [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &length, &[0, 0], payload].concat();
    let pseudo = [&octets(from)[..], &octets(to), &[0, 17], &length, &datagram].concat();
    datagram[6..8].copy_from_slice(&checksum(&pseudo));
    datagram
}

/// A whole IP packet. `fragment`: identification, offset in octets, whether more follow. `headers` are IPv6 extension
/// headers before the rest, each of which names itself by its first value and is then of the given octets; of IPv4: options.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, fragment: Option<(u16, usize, bool)>, payload: &[u8]) -> Vec<u8> {
    let (id, offset, more) = fragment.unwrap_or((0, 0, false));
    if from.is_ipv4() {
        let place = short((offset / 8) | if more { 0x2000 } else { 0 });
        let mut packet =
            [&[0x45, 0][..], &short(20 + payload.len()), &id.to_be_bytes(), &place, &[64, protocol, 0, 0]].concat();
        packet.extend(octets(from));
        packet.extend(octets(to));
        packet.extend(payload);
        return packet;
    }
    let (next, between) = match fragment {
        None => (protocol, vec![]),
        Some(_) => (44, [&[protocol, 0][..], &short(offset | usize::from(more)), &[0, 0], &id.to_be_bytes()].concat()),
    };
    let mut packet = [&[0x60, 0, 0, 0][..], &short(between.len() + payload.len()), &[next, 64]].concat();
    packet.extend(octets(from));
    packet.extend(octets(to));
    packet.extend(between);
    packet.extend(payload);
    packet
}

/// A datagram as fragments of `size` octets.
pub fn fragments(from: IpAddr, to: IpAddr, protocol: u8, id: u16, size: usize, datagram: &[u8]) -> Vec<Vec<u8>> {
    let count = datagram.len().div_ceil(size);
    let part =
        |(number, part): (usize, &[u8])| ip(from, to, protocol, Some((id, number * size, number + 1 < count)), part);
    datagram.chunks(size).enumerate().map(part).collect()
}

/// A socket that sends whole IP packets.
pub fn raw(family_of: IpAddr) -> Socket {
    let domain = if family_of.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::from(255))).expect("a raw socket")
}

/// Sends a whole IP packet.
pub fn send(socket: &Socket, to: IpAddr, packet: &[u8]) {
    let sent = socket.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))).expect("send");
    assert_eq!(sent, packet.len());
}
