//! What we answer ourselves, as the VIP: too big, unreachable, reset. Whole IP packets in octets, with right checksums.
//!
//! The source is the VIP and not an address of the pod: the client knows no other, and firewalls on the way expect it.
//! Nothing is answered to an ICMP error, to a later fragment, or to a source that is no single host (RFC 1122 section
//! 3.2.2, RFC 4443 section 2.4 (e)). Formats: RFC 792, RFC 1191 (next-hop MTU), RFC 4443, RFC 9293 section 3.5.2 (reset).
#![warn(clippy::indexing_slicing)]

use std::net::IpAddr;

use nom::number::complete::{be_u8, be_u16, be_u32};
use nom::{IResult, Parser};

use crate::packet::{Content, Packet, protocol};

/// An IPv4 error fits into what every host must take, an IPv6 error into the smallest MTU.
const QUOTE_V4: usize = 576 - 28;
const QUOTE_V6: usize = 1280 - 48;
const HOP_LIMIT: u8 = 64;

/// Why we answer in place of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It does not fit through the link to the endpoint, of this MTU, and must not be fragmented.
    TooBig(u32),
    /// Nobody is there: a reset for TCP, port unreachable for all else.
    Rejected,
}

/// The packet that answers `packet`, whose first octets are `octets`; `None`: it must not, or cannot be answered.
pub fn answer(octets: &[u8], packet: &Packet<'_>, cause: Cause) -> Option<Vec<u8>> {
    let is_later = packet.fragment.is_some_and(|fragment| fragment.offset > 0);
    if is_later || matches!(packet.content, Content::Error(_)) || !is_host(packet.source) {
        return None;
    }
    match cause {
        Cause::TooBig(mtu) => Some(error(octets, packet, &Kind::too_big(mtu))),
        Cause::Rejected if packet.protocol == protocol::TCP => reset(packet),
        Cause::Rejected => Some(error(octets, packet, &Kind::PORT_UNREACHABLE)),
    }
}

fn is_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    !special && !matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// Type and code in both families, and the four octets after the checksum.
struct Kind {
    v4: [u8; 2],
    v6: [u8; 2],
    rest: u32,
}

impl Kind {
    const PORT_UNREACHABLE: Self = Self { v4: [3, 3], v6: [1, 4], rest: 0 };

    /// Both have the MTU in the last octets: 16 bits of IPv4 (RFC 1191), 32 of IPv6.
    const fn too_big(mtu: u32) -> Self {
        Self { v4: [3, 4], v6: [2, 0], rest: mtu }
    }
}

fn error(octets: &[u8], packet: &Packet<'_>, kind: &Kind) -> Vec<u8> {
    let (number, head, room) = match packet.source {
        IpAddr::V4(_) => (protocol::ICMP, kind.v4, QUOTE_V4),
        IpAddr::V6(_) => (protocol::ICMPV6, kind.v6, QUOTE_V6),
    };
    let mut body = [&head[..], &[0, 0], &kind.rest.to_be_bytes()].concat();
    body.extend(octets.iter().take(room));
    ip(packet, number, body, 2)
}

/// A reset that the client takes for an answer to its segment.
fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    type Header = (u16, u16, u32, u32, u8, u8);
    let parsed: IResult<&[u8], Header> = (be_u16, be_u16, be_u32, be_u32, be_u8, be_u8).parse(packet.transport);
    let (_, (source, destination, sequence, acknowledged, offset, flags)) = parsed.ok()?;
    // Of a packet beyond 64 KiB nobody knows the length: no answer is better than a wrong one.
    let payload = packet.payload_length?.checked_sub(u32::from(offset >> 4) * 4)?;
    if flags & RST != 0 {
        return None;
    }
    let (sequence, acknowledge, flags) = if flags & ACK != 0 {
        (acknowledged, 0, RST)
    } else {
        let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, sequence.wrapping_add(payload).wrapping_add(controls), RST | ACK)
    };
    let mut body = [destination.to_be_bytes(), source.to_be_bytes()].concat();
    body.extend(sequence.to_be_bytes());
    body.extend(acknowledge.to_be_bytes());
    body.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    Some(ip(packet, protocol::TCP, body, 16))
}

/// `body` in an IP packet from the VIP to the sender of `packet`; the checksum of the body is at `checksum_at`.
fn ip(packet: &Packet<'_>, number: u8, mut body: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = Vec::new();
    let mut sum = Sum::default();
    match (packet.destination, packet.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // No identification, don't fragment: an atomic datagram (RFC 6864).
            header.extend([0x45, 0]);
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, HOP_LIMIT, number, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let mut of_header = Sum::default();
            of_header.add(&header);
            put(&mut header, 10, of_header.finish());
            // ICMP of IPv4 has no pseudo header.
            if number != protocol::ICMP {
                sum.add(&from.octets());
                sum.add(&to.octets());
                sum.add(&[[0, number], length.to_be_bytes()].concat());
            }
        }
        (from, to) => {
            let [from, to] = [from, to].map(|address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            });
            header.extend([0x60, 0, 0, 0]);
            header.extend(length.to_be_bytes());
            header.extend([number, HOP_LIMIT]);
            header.extend(from);
            header.extend(to);
            // RFC 8200 section 8.1.
            sum.add(&from);
            sum.add(&to);
            sum.add(&[[0, number], length.to_be_bytes()].concat());
        }
    }
    sum.add(&body);
    put(&mut body, checksum_at, sum.finish());
    header.extend(body);
    header
}

fn put(octets: &mut [u8], at: usize, value: u16) {
    for (octet, value) in octets.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *octet = value;
    }
}

/// The Internet checksum (RFC 1071). Parts are of even length, but for the last.
#[derive(Default)]
struct Sum(u32);

impl Sum {
    fn add(&mut self, octets: &[u8]) {
        for pair in octets.chunks(2) {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            self.0 += u32::from(u16::from_be_bytes([high, low]));
        }
    }

    fn finish(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        !u16::try_from(twice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::parse;

    fn syn(flags: u8) -> [u8; 20] {
        [0x9c, 0x40, 0x0f, 0xa0, 0, 0, 0, 100, 0, 0, 0, 200, 0x50, flags, 0, 0, 0, 0, 0, 0]
    }

    fn v4(number: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let [high, low] = flags.to_be_bytes();
        let header = [&[0x45, 0], &length[..], &[0, 1, high, low, 64, number, 0, 0, 192, 168, 1, 1, 20, 0, 0, 1]];
        [&header.concat(), payload].concat()
    }

    fn v6(number: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let addresses = ["fd00::1", "2000::1"].map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        [&[0x60, 0, 0, 0], &length[..], &[number, 64], &addresses.concat(), payload].concat()
    }

    /// The sum over everything that a checksum covers is zero when it is right.
    fn is_right(answer: &[u8]) -> bool {
        let packet = parse(answer).unwrap();
        let mut sum = Sum::default();
        let body = if packet.source.is_ipv4() {
            let mut header = Sum::default();
            header.add(&answer[..20]);
            assert_eq!(header.finish(), 0, "the IPv4 header's");
            &answer[20..]
        } else {
            &answer[40..]
        };
        if packet.protocol != protocol::ICMP {
            sum.add(&answer[if packet.source.is_ipv4() { 12..20 } else { 8..40 }]);
            sum.add(&[0, packet.protocol]);
            sum.add(&u16::try_from(body.len()).unwrap().to_be_bytes());
        }
        sum.add(body);
        sum.finish() == 0
    }

    #[test]
    fn too_big_says_the_mtu_as_the_vip() {
        let big = v4(6, 0x4000, &syn(16));
        let told = answer(&big, &parse(&big).unwrap(), Cause::TooBig(1400)).unwrap();
        assert_eq!(&told[12..20], &[20, 0, 0, 1, 192, 168, 1, 1]);
        assert_eq!((&told[20..22], &told[24..28], &told[28..]), (&[3, 4][..], &[0, 0, 5, 120][..], &big[..]));
        assert!(is_right(&told));
        let big = v6(6, &syn(16));
        let told = answer(&big, &parse(&big).unwrap(), Cause::TooBig(1400)).unwrap();
        assert_eq!((&told[40..42], &told[44..48], &told[48..]), (&[2, 0][..], &[0, 0, 5, 120][..], &big[..]));
        assert_eq!(parse(&told).unwrap().source, "2000::1".parse::<IpAddr>().unwrap());
        assert!(is_right(&told));
    }

    #[test]
    fn a_syn_is_answered_by_a_reset_that_acknowledges_it() {
        for packet in [v4(6, 0, &syn(2)), v6(6, &syn(2))] {
            let told = answer(&packet, &parse(&packet).unwrap(), Cause::Rejected).unwrap();
            let tcp = parse(&told).unwrap().transport;
            assert_eq!(tcp[..4], [0x0f, 0xa0, 0x9c, 0x40]);
            assert_eq!((&tcp[4..8], &tcp[8..12], tcp[13]), (&[0; 4][..], &[0, 0, 0, 101][..], 0x14));
            assert!(is_right(&told));
        }
    }

    #[test]
    fn a_segment_of_a_connection_is_reset_at_what_it_acknowledges() {
        let packet = v4(6, 0, &[&syn(16)[..], b"data"].concat());
        let told = answer(&packet, &parse(&packet).unwrap(), Cause::Rejected).unwrap();
        let tcp = parse(&told).unwrap().transport;
        assert_eq!((&tcp[4..8], tcp[13]), (&[0, 0, 0, 200][..], 4));
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let silent = |octets: &[u8]| answer(octets, &parse(octets).unwrap(), Cause::Rejected).is_none();
        assert!(silent(&v4(6, 0, &syn(4))), "a reset");
        assert!(silent(&v4(17, 3, &[0; 8])), "a later fragment");
        assert!(silent(&v4(1, 0, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &v4(17, 0, &[0; 8])].concat())), "an error");
        let mut from_all = v4(17, 0, &[0; 8]);
        from_all[12..16].fill(255);
        assert!(silent(&from_all), "a source that is no host");
        assert!(!silent(&v4(17, 0, &[0; 8])));
    }

    proptest! {
        #[test]
        fn every_answer_can_be_read_and_its_checksums_are_right(
            six: bool, number in prop::sample::select(vec![6_u8, 17, 132]),
            payload in prop::collection::vec(any::<u8>(), 4..1400), mtu: Option<u16>,
        ) {
            let octets = if six { v6(number, &payload) } else { v4(number, 0x4000, &payload) };
            let cause = mtu.map_or(Cause::Rejected, |mtu| Cause::TooBig(mtu.into()));
            if let Some(told) = answer(&octets, &parse(&octets).unwrap(), cause) {
                prop_assert!(is_right(&told));
                let most = if six { 1280 } else { 576 };
                prop_assert!(told.len() <= most);
            }
        }
    }
}
