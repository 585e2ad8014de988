//! Single values as text: addresses, prefixes, ports, communities, byte matches.
#![warn(clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case, take_while_m_n};
use nom::character::complete::{char, digit1, space0};
use nom::combinator::{all_consuming, map_opt, map_res, opt, value};
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};

use crate::view::{ByteMatch, TransportProtocol};

/// A byte match must lie in what every packet of a 1500-octet link can hold after an IPv4 header.
pub const LAST_OCTET: u16 = 1480;

/// See [`crate::duration::parse`].
pub fn duration(text: &str) -> Option<Duration> {
    crate::duration::parse(text).ok()
}

/// The address of a router: not unspecified, not multicast, not broadcast, not IPv4 in IPv6.
pub fn unicast(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let good = match address {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none(),
    };
    (good && !address.is_unspecified() && !address.is_multicast()).then_some(address)
}

/// A VIP: a unicast host prefix that is neither loopback nor IPv6 link-local.
pub fn vip(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    let address = unicast(&net.addr().to_string())?;
    let local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (net.prefix_len() == net.max_prefix_len() && !local && !address.is_loopback()).then_some(net)
}

/// A prefix; host bits are cleared.
pub fn prefix(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().map(|net| net.trunc())
}

/// The name of a network interface.
pub fn interface(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "_.@+=-".contains(c);
    (1..=15).contains(&text.len()) && text.chars().all(legal) && text != "." && text != ".."
}

/// Ports, ranges and `any` -> inclusive ranges, merged; empty: any. An error is the text that was refused, and its place.
///
/// # Errors
///
/// What is neither a port, nor a range that goes up, nor `any`.
pub fn ports(texts: &[String]) -> Result<BTreeSet<(u16, u16)>, (usize, &str)> {
    let mut ranges = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        ranges.push(port_range(text).ok_or((place, text.as_str()))?);
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    Ok(merged.into_iter().filter(|range| *range != (0, u16::MAX)).collect())
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let port = || map_res(digit1::<&str, nom::error::Error<&str>>, str::parse::<u16>);
    let any = value((0, u16::MAX), tag("any"));
    let range = (port(), opt(preceded(char('-'), port()))).map(|(first, last)| (first, last.unwrap_or(first)));
    let (_, (first, last)) = all_consuming(alt((any, range))).parse(text).ok()?;
    (first <= last).then_some((first, last))
}

/// A standard community: `65000:100`, or by its name.
pub fn community(text: &str) -> Option<u32> {
    match text {
        "graceful-shutdown" => Some(0xffff_0000),
        "blackhole" => Some(0xffff_029a),
        "no-export" => Some(0xffff_ff01),
        "no-advertise" => Some(0xffff_ff02),
        "no-export-subconfed" => Some(0xffff_ff03),
        "no-peer" => Some(0xffff_ff04),
        numbers => {
            let (high, low) = numbers.split_once(':')?;
            Some(u32::from(digits::<u16>(high)?) << 16 | u32::from(digits::<u16>(low)?))
        }
    }
}

/// A large community: `4248829953:1:2`.
pub fn large_community(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split(':').map(digits::<u32>);
    let community = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(community)
}

/// Digits only: the standard parser takes a sign.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|octet| octet.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `tcp[0:2] & 0xff00 = 0x1200`: octets 1, 2 or 4, numbers decimal or with `0x`; without a mask all bits count.
pub fn byte_match(text: &str) -> Option<ByteMatch> {
    let (_, (protocol, offset, octets, mask, value)) = all_consuming(byte_match_parts).parse(text).ok()?;
    let all = u32::MAX >> (32 - 8 * u32::from(octets));
    let mask = mask.unwrap_or(all);
    let end = offset.checked_add(u16::from(octets))?;
    // A value outside of the mask can never be equal; a mask outside of the octets has no meaning.
    let good = mask & !all == 0 && value & !mask == 0 && end <= LAST_OCTET;
    good.then_some(ByteMatch { protocol, offset, octets, mask, value })
}

type Parts = (TransportProtocol, u16, u8, Option<u32>, u32);

fn byte_match_parts(input: &str) -> IResult<&str, Parts> {
    let mut protocol = delimited(
        space0,
        alt((
            value(TransportProtocol::Tcp, tag("tcp")),
            value(TransportProtocol::Udp, tag("udp")),
            value(TransportProtocol::Sctp, tag("sctp")),
        )),
        space0,
    );
    let (input, protocol) = protocol.parse(input)?;
    let offset = delimited(space0, map_res(digit1, str::parse::<u16>), space0);
    let octets = delimited(space0, alt((value(1_u8, char('1')), value(2, char('2')), value(4, char('4')))), space0);
    let (input, (_, offset, _, octets, _)) = (char('['), offset, char(':'), octets, char(']')).parse(input)?;
    let (input, mask) = opt(preceded((space0, char('&'), space0), number)).parse(input)?;
    let (input, value) = delimited((space0, char('='), space0), number, space0).parse(input)?;
    Ok((input, (protocol, offset, octets, mask, value)))
}

fn number(input: &str) -> IResult<&str, u32> {
    let hexadecimal =
        map_opt(preceded(tag_no_case("0x"), take_while_m_n(1, 8, |c: char| c.is_ascii_hexdigit())), |digits: &str| {
            u32::from_str_radix(digits, 16).ok()
        });
    alt((hexadecimal, map_res(digit1, str::parse::<u32>))).parse(input)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_are_merged_and_all_of_them_are_any() {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            ports(&texts(&["4001", "4000", "10-20", "15-30", "0"])),
            Ok([(0, 0), (10, 30), (4000, 4001)].into())
        );
        assert_eq!(ports(&texts(&["any"])), Ok(BTreeSet::new()));
        assert_eq!(ports(&texts(&["0-65535"])), Ok(BTreeSet::new()));
        assert_eq!(ports(&texts(&["0-100", "101-65535"])), Ok(BTreeSet::new()));
        for bad in ["65536", "2-1", "-1", "1-", "Any", " 1", "1-2-3", "+1", ""] {
            let bad = texts(&["1", bad]);
            assert_eq!(ports(&bad), Err((1, bad[1].as_str())));
        }
    }

    #[test]
    fn byte_matches_are_read_with_and_without_a_mask() {
        let expected =
            ByteMatch { protocol: TransportProtocol::Tcp, offset: 0, octets: 2, mask: 0xff00, value: 0x1200 };
        assert_eq!(byte_match("tcp[0:2] & 0xff00 = 0x1200"), Some(expected));
        assert_eq!(byte_match("tcp[0:2]&0xff00=4608"), Some(expected));
        let all = byte_match("udp[8 : 4] = 0xdeadbeef").expect("without a mask");
        assert_eq!((all.offset, all.octets, all.mask, all.value), (8, 4, u32::MAX, 0xdead_beef));
        for bad in [
            "tcp[0:3] = 1",
            "icmp[0:1] = 1",
            "tcp[0:1] = 256",
            "tcp[0:1] & 0x1ff = 1",
            "tcp[0:2] & 0xff00 = 0x12",
            "tcp[1479:2] = 1",
            "tcp[65535:4] = 1",
            "tcp[70000:1] = 1",
            "tcp[0:2]",
            "tcp[0:2] = 1 2",
            "tcp[-1:2] = 1",
            "",
        ] {
            assert_eq!(byte_match(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_vip_is_a_host_prefix_of_a_unicast_address() {
        assert_eq!(vip("20.0.0.1/32"), "20.0.0.1/32".parse().ok());
        assert_eq!(vip("2000::1/128"), "2000::1/128".parse().ok());
        for bad in [
            "20.0.0.1",
            "20.0.0.0/24",
            "20.0.0.1/33",
            "0.0.0.0/32",
            "127.0.0.1/32",
            "224.0.0.1/32",
            "255.255.255.255/32",
            "::1/128",
            "::/128",
            "fe80::1/128",
            "ff02::1/128",
            "::ffff:1.2.3.4/128",
            "2000::1/64",
            "x",
        ] {
            assert_eq!(vip(bad), None, "{bad}");
        }
    }

    #[test]
    fn communities_have_numbers_or_names() {
        assert_eq!(community("65000:100"), Some(0xfde8_0064));
        assert_eq!(community("no-export"), Some(0xffff_ff01));
        assert_eq!(large_community("4248829953:1:2"), Some((4_248_829_953, 1, 2)));
        for bad in ["65536:1", "1", "1:2:3", "+1:2", "NO-EXPORT", ":"] {
            assert_eq!(community(bad), None, "{bad}");
        }
        for bad in ["1:2", "4294967296:1:1", "1:2:3:4", "1:+2:3"] {
            assert_eq!(large_community(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = (unicast(&text), vip(&text), prefix(&text), byte_match(&text));
            let _ = (ports(std::slice::from_ref(&text)), community(&text), large_community(&text));
        }
    }
}
