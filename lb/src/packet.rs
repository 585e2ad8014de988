//! Octets of an IP packet to what a load balancer needs of it: addresses, ports, fragment, the packet inside an ICMP error.
//!
//! The octets may end early: a queue copies only the first part of a packet. What a header says and what it would take to
//! read on is checked against both; nothing here panics, and everything that is wrong has a name ([`Malformed`]). Checksums
//! are not verified: the kernel has seen the IPv4 header's, the endpoint sees the rest.
//!
//! Headers: RFC 791, RFC 8200 (IPv6 and its extension headers), RFC 4302 (AH), RFC 792 and RFC 4443 (ICMP), ports of TCP
//! (RFC 9293), UDP (RFC 768) and SCTP (RFC 9260), all of which begin with two 16-bit ports.
#![warn(clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv6Addr};

use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16, be_u32, be_u128};
use nom::{IResult, Parser};

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP of IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

/// More extension headers than any sane sender writes.
const MAX_EXTENSION_HEADERS: usize = 8;

/// A packet, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom: a VIP, or inside of an ICMP error: a client.
    pub destination: IpAddr,
    /// The transport's protocol number; of a later fragment: what the fragment header says.
    pub protocol: u8,
    /// Octets of the whole packet with its IP header, as that says; 0: it does not say (GSO beyond 64 KiB).
    pub length: u32,
    /// IPv4 with DF, or IPv6: routers must not fragment it.
    pub dont_fragment: bool,
    /// If it is one of several fragments.
    pub fragment: Option<Fragment>,
    /// What it carries.
    pub content: Content<'a>,
    /// From the transport's header on, as far as copied; empty in a later fragment.
    pub transport: &'a [u8],
    /// Octets of the transport's header and what follows it, if the IP headers say so.
    pub payload_length: Option<u32>,
}

/// The place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, 16 bits of IPv4 or 32 bits of IPv6.
    pub id: u32,
    /// Octets before it.
    pub offset: u32,
    /// Whether others follow.
    pub more: bool,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// TCP, UDP or SCTP.
    Ports {
        /// Of the sender.
        source: u16,
        /// Of the receiver.
        destination: u16,
    },
    /// An echo of ICMP or `ICMPv6`, or its reply.
    Echo {
        /// Its identifier.
        id: u16,
    },
    /// An error of ICMP or `ICMPv6`: the packet that it is about, as far as it is quoted.
    Error(&'a [u8]),
    /// A fragment that is not the first: no transport header.
    LaterFragment,
}

/// Why a packet is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// Not a single octet.
    #[error("empty packet")]
    Empty,
    /// Neither 4 nor 6.
    #[error("IP version is neither 4 nor 6")]
    Version,
    /// Ends within the IP header or an extension header.
    #[error("ends within the IP headers")]
    TruncatedNetwork,
    /// Ends within the first octets of the transport header.
    #[error("ends within the transport header")]
    TruncatedTransport,
    /// The IPv4 header says that it is shorter than 20 octets.
    #[error("IPv4 header length below 20 octets")]
    HeaderLength,
    /// The IP length is less than the headers'.
    #[error("IP length is less than that of the headers")]
    TotalLength,
    /// More than 8.
    #[error("more than 8 extension headers")]
    ExtensionHeaders,
    /// IPv6 without anything in it.
    #[error("no next header")]
    NoNextHeader,
    /// The fragment would end after octet 65535, or not the last and no multiple of 8 long.
    #[error("fragment ends where no datagram can")]
    FragmentEnd,
    /// A second TCP fragment that could overwrite the header of the first (RFC 3128).
    #[error("fragment overlaps the transport header")]
    FragmentOverlap,
    /// A transport that cannot be balanced.
    #[error("transport is not TCP, UDP, SCTP, ICMP echo or ICMP error")]
    Transport,
}

type Parsed<'a, T> = IResult<&'a [u8], T>;

/// What the IP headers say.
struct Network<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: u32,
    dont_fragment: bool,
    fragment: Option<Fragment>,
    /// After the headers, cut where the packet says that it ends.
    payload: &'a [u8],
    /// Octets after the headers by the packet's own account; `None` if it does not say.
    payload_length: Option<u32>,
}

impl<'a> Network<'a> {
    /// Goes on behind an extension header.
    fn skip(&mut self, header: Parsed<'a, (u8, u32)>) -> Result<(), Malformed> {
        let (rest, (next, octets)) = header.map_err(|_| Malformed::TruncatedNetwork)?;
        if let Some(length) = &mut self.payload_length {
            *length = length.checked_sub(octets).ok_or(Malformed::TotalLength)?;
        }
        (self.protocol, self.payload) = (next, rest);
        Ok(())
    }
}

/// Reads an IP packet of which `octets` are the first.
///
/// # Errors
/// When it cannot be balanced, with the reason.
pub fn parse(octets: &[u8]) -> Result<Packet<'_>, Malformed> {
    let network = match octets.first().map(|first| first >> 4) {
        Some(4) => ipv4(octets)?,
        Some(6) => ipv6(octets)?,
        Some(_) => return Err(Malformed::Version),
        None => return Err(Malformed::Empty),
    };
    let content = match network.fragment {
        Some(fragment) => {
            check_fragment(&network, fragment)?;
            if fragment.offset == 0 { content(&network)? } else { Content::LaterFragment }
        }
        None => content(&network)?,
    };
    let Network { source, destination, protocol, length, dont_fragment, fragment, payload, payload_length } = network;
    let transport = if content == Content::LaterFragment { &[][..] } else { payload };
    Ok(Packet { source, destination, protocol, length, dont_fragment, fragment, content, transport, payload_length })
}

/// `octets` up to `length`, if the packet is copied that far.
fn cut(octets: &[u8], length: u32) -> &[u8] {
    usize::try_from(length).ok().and_then(|length| octets.get(..length)).unwrap_or(octets)
}

fn ipv4(octets: &[u8]) -> Result<Network<'_>, Malformed> {
    // What nearly every packet begins with, taken apart at once.
    let [first, _, l0, l1, i0, i1, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *octets.first_chunk().ok_or(Malformed::TruncatedNetwork)?;
    let [length, id, flags] = [[l0, l1], [i0, i1], [f0, f1]].map(u16::from_be_bytes);
    let [source, destination] = [[s0, s1, s2, s3], [d0, d1, d2, d3]].map(|octets| IpAddr::V4(octets.into()));
    let header = u32::from(first & 0xf) * 4;
    if header < 20 {
        return Err(Malformed::HeaderLength);
    }
    let length = u32::from(length);
    // 0 is what the kernel writes into packets that it put together beyond 64 KiB.
    let (octets, payload_length) = match length {
        0 => (octets, None),
        _ => (cut(octets, length), Some(length.checked_sub(header).ok_or(Malformed::TotalLength)?)),
    };
    let payload = usize::try_from(header).ok().and_then(|header| octets.get(header..));
    let payload = payload.ok_or(Malformed::TruncatedNetwork)?;
    let (more, offset) = (flags & 0x2000 != 0, u32::from(flags & 0x1fff) * 8);
    let fragment = (more || offset > 0).then_some(Fragment { id: u32::from(id), offset, more });
    let mut network = Network {
        source,
        destination,
        protocol,
        length,
        dont_fragment: flags & 0x4000 != 0,
        fragment,
        payload,
        payload_length,
    };
    // Of what is in fragments only the first would show what is behind it.
    if protocol == AUTHENTICATION && network.fragment.is_none() {
        let header = extension(payload, authentication_octets);
        network.skip(header)?;
    }
    Ok(network)
}

fn ipv6(octets: &[u8]) -> Result<Network<'_>, Malformed> {
    let parsed: Parsed<'_, (u32, u16, u8, u8, u128, u128)> =
        (be_u32, be_u16, be_u8, be_u8, be_u128, be_u128).parse(octets);
    let (rest, (_, payload_length, next, _, source, destination)) = parsed.map_err(|_| Malformed::TruncatedNetwork)?;
    // 0: put together beyond 64 KiB (or a jumbogram, which looks the same from here).
    let payload_length = (payload_length > 0).then_some(u32::from(payload_length));
    let mut network = Network {
        source: Ipv6Addr::from_bits(source).into(),
        destination: Ipv6Addr::from_bits(destination).into(),
        protocol: next,
        length: payload_length.map_or(0, |length| length + 40),
        dont_fragment: true,
        fragment: None,
        payload: payload_length.map_or(rest, |length| cut(rest, length)),
        payload_length,
    };
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let header = match network.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => extension(network.payload, |length| (length + 1) * 8),
            AUTHENTICATION => extension(network.payload, authentication_octets),
            FRAGMENT => {
                let parsed: Parsed<'_, (u8, u8, u16, u32)> = (be_u8, be_u8, be_u16, be_u32).parse(network.payload);
                parsed.map(|(rest, (next, _, place, id))| {
                    let (offset, more) = (u32::from(place & 0xfff8), place & 1 != 0);
                    // An atomic fragment (RFC 6946) is a whole datagram.
                    network.fragment = (more || offset > 0).then_some(Fragment { id, offset, more });
                    (rest, (next, 8))
                })
            }
            NO_NEXT_HEADER => return Err(Malformed::NoNextHeader),
            _ => return Ok(network),
        };
        network.skip(header)?;
        if network.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Ok(network);
        }
    }
    Err(Malformed::ExtensionHeaders)
}

/// RFC 4302 section 2.2.
const fn authentication_octets(length: u32) -> u32 {
    (length + 2) * 4
}

/// An extension header of the common shape: what comes next, and its own length in octets.
fn extension(octets: &[u8], length: impl Fn(u32) -> u32) -> Parsed<'_, (u8, u32)> {
    let (_, (next, units)) = (be_u8, be_u8).parse(octets)?;
    let length = length(u32::from(units));
    let (rest, _) = take(length).parse(octets)?;
    Ok((rest, (next, length)))
}

fn check_fragment(network: &Network<'_>, fragment: Fragment) -> Result<(), Malformed> {
    if network.protocol == protocol::TCP && fragment.offset == 8 {
        return Err(Malformed::FragmentOverlap);
    }
    match network.payload_length {
        Some(length) if fragment.offset + length > 65_535 => Err(Malformed::FragmentEnd),
        Some(length) if fragment.more && (length % 8 != 0 || length == 0) => Err(Malformed::FragmentEnd),
        _ => Ok(()),
    }
}

fn content<'a>(network: &Network<'a>) -> Result<Content<'a>, Malformed> {
    let octets = network.payload;
    match (network.protocol, network.source) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => {
            let [a, b, c, d] = *octets.first_chunk().ok_or(Malformed::TruncatedTransport)?;
            Ok(Content::Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) })
        }
        (protocol::ICMP, IpAddr::V4(_)) => icmp(octets, |kind| matches!(kind, 3 | 4 | 5 | 11 | 12), [8, 0]),
        (protocol::ICMPV6, IpAddr::V6(_)) => icmp(octets, |kind| kind < 128, [128, 129]),
        _ => Err(Malformed::Transport),
    }
}

/// Both versions of ICMP have type, code, checksum and four octets that are the type's own, then what the type carries.
fn icmp(octets: &[u8], is_error: impl Fn(u8) -> bool, echo: [u8; 2]) -> Result<Content<'_>, Malformed> {
    let parsed: Parsed<'_, (u8, u8, u16, u16, u16)> = (be_u8, be_u8, be_u16, be_u16, be_u16).parse(octets);
    let (rest, (kind, _, _, id, _)) = parsed.map_err(|_| Malformed::TruncatedTransport)?;
    match kind {
        kind if is_error(kind) => Ok(Content::Error(rest)),
        kind if echo.contains(&kind) => Ok(Content::Echo { id }),
        _ => Err(Malformed::Transport),
    }
}

#[cfg(test)]
mod tests;
