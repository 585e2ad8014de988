//! A capture that Wireshark opens: raw IP packets with the BGP and BFD octets of a run, at their simulated times.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::link::Segment;

/// `LINKTYPE_RAW`.
const RAW: u32 = 101;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A capture.
#[derive(Debug)]
pub struct Capture {
    /// The file so far.
    pub file: Vec<u8>,
    /// The next sequence number of each direction of each connection.
    sequence: BTreeMap<(SocketAddr, SocketAddr), u32>,
}

impl Default for Capture {
    /// An empty one: nanosecond timestamps.
    fn default() -> Self {
        let mut file = Vec::new();
        file.extend(0xa1b2_3c4d_u32.to_le_bytes());
        file.extend(2_u16.to_le_bytes());
        file.extend(4_u16.to_le_bytes());
        file.extend([0; 8]);
        file.extend(65_535_u32.to_le_bytes());
        file.extend(RAW.to_le_bytes());
        Self { file, sequence: BTreeMap::new() }
    }
}

fn short(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let all: Vec<u8> = parts.concat();
    let mut sum: u32 =
        all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |o| u32::from(*o))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

impl Capture {
    fn packet(&mut self, now: u64, (from, to): (IpAddr, IpAddr), protocol: u8, mut body: Vec<u8>) {
        // Where the checksum stands, and the hop limit: GTSM of BFD (RFC 5881 section 5).
        let (sum_at, ttl) = if protocol == UDP { (6, 255) } else { (16, 64) };
        let (source, target) = (octets(from), octets(to));
        let length = short(body.len()).to_be_bytes();
        let sum = checksum(&[&source, &target, &[0, protocol], &length, &body]);
        body[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut packet = if from.is_ipv4() {
            let mut header = vec![0x45, 0xc0];
            header.extend((short(body.len()) + 20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, ttl, protocol, 0, 0]);
            header.extend(source);
            header.extend(target);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        } else {
            let mut header = vec![0x6c, 0, 0, 0];
            header.extend(length);
            header.extend([protocol, ttl]);
            header.extend(source);
            header.extend(target);
            header
        };
        packet.extend(body);
        let seconds = u32::try_from(now / 1_000_000_000).unwrap_or(u32::MAX);
        let nanos = u32::try_from(now % 1_000_000_000).unwrap_or_default();
        let size = u32::from(short(packet.len()));
        for number in [seconds, nanos, size, size] {
            self.file.extend(number.to_le_bytes());
        }
        self.file.extend(packet);
    }

    /// A BFD control packet.
    pub fn datagram(&mut self, now: u64, from: IpAddr, to: IpAddr, payload: &[u8]) {
        let mut body = 49_152_u16.to_be_bytes().to_vec();
        body.extend(3784_u16.to_be_bytes());
        body.extend((short(payload.len()) + 8).to_be_bytes());
        body.extend([0, 0]);
        body.extend(payload);
        self.packet(now, (from, to), UDP, body);
    }

    /// A TCP segment. The product's port is shown as BGP's own, so that dissectors know it.
    pub fn segment(&mut self, now: u64, from: SocketAddr, to: SocketAddr, segment: &Segment) {
        let sequence = *self.sequence.entry((from, to)).or_insert(1);
        let heard = self.sequence.get(&(to, from)).copied().unwrap_or(1);
        let port = |address: SocketAddr| if address.port() == 10179 { 179 } else { address.port() };
        let (payload, flags): (&[u8], u8) = match segment {
            Segment::Data(octets) => (octets, 0x18),
            Segment::Fin => (&[], 0x11),
            Segment::Reset => (&[], 0x14),
        };
        let mut body = port(from).to_be_bytes().to_vec();
        body.extend(port(to).to_be_bytes());
        body.extend(sequence.to_be_bytes());
        body.extend(heard.to_be_bytes());
        body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend(payload);
        self.sequence.insert((from, to), sequence.wrapping_add(u32::from(short(payload.len()))));
        self.packet(now, (from.ip(), to.ip()), TCP, body);
    }
}
