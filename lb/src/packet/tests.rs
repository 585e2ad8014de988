//! Packets written octet by octet, and packets that nobody would write.

use proptest::prelude::*;

use super::*;

/// An IPv4 header (with `options`) before `payload`.
fn v4(protocol: u8, flags: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let total = u16::try_from(header + payload.len()).unwrap();
    let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(flags.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 192, 168, 1, 1, 20, 0, 0, 1]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// An IPv6 header before `payload`.
fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("2000::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

const UDP_HEADER: [u8; 8] = [0x9c, 0x40, 0x0f, 0xa0, 0, 8, 0, 0];
const PORTS: Content<'static> = Content::Ports { source: 40000, destination: 4000 };

#[test]
fn addresses_and_ports_are_read() {
    for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let octets = v4(number, 0, &[], &UDP_HEADER);
        let packet = parse(&octets).unwrap();
        assert_eq!((packet.content, packet.protocol, packet.length), (PORTS, number, 28));
        assert_eq!(packet.source, "192.168.1.1".parse::<IpAddr>().unwrap());
        assert_eq!(packet.destination, "20.0.0.1".parse::<IpAddr>().unwrap());
        let octets = v6(number, &UDP_HEADER);
        let packet = parse(&octets).unwrap();
        assert_eq!((packet.content, packet.protocol, packet.length), (PORTS, number, 48));
        assert_eq!(packet.destination, "2000::1".parse::<IpAddr>().unwrap());
    }
}

#[test]
fn ipv4_options_are_skipped() {
    let octets = v4(17, 0, &[7, 39, 4, 0, 0, 0, 0, 1], &UDP_HEADER);
    assert_eq!(parse(&octets).unwrap().content, PORTS);
    assert_eq!(parse(&v4(17, 0, &[1; 40], &UDP_HEADER)).unwrap().content, PORTS);
}

/// An extension header of `units` times 8 octets beyond the first 8.
fn extension_header(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![next, units];
    header.resize((usize::from(units) + 1) * 8, 0);
    header
}

#[test]
fn extension_headers_of_every_kind_and_length_are_skipped() {
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
        for units in [0, 1, 5] {
            let octets = v6(kind, &[extension_header(17, units), UDP_HEADER.to_vec()].concat());
            assert_eq!(parse(&octets).unwrap().content, PORTS, "header {kind}, {units} units");
        }
    }
    // AH counts in fours, less two.
    let octets = v6(AUTHENTICATION, &[[17, 4].to_vec(), vec![0; 22], UDP_HEADER.to_vec()].concat());
    assert_eq!(parse(&octets).unwrap().content, PORTS);
    let authenticated = [[17, 4].to_vec(), vec![0; 22], UDP_HEADER.to_vec()].concat();
    let octets = v4(AUTHENTICATION, 0, &[], &authenticated);
    assert_eq!(parse(&octets).unwrap().content, PORTS);
    assert_eq!(parse(&v4(AUTHENTICATION, 0, &[], &authenticated[..20])), Err(Malformed::TruncatedNetwork));
    assert_eq!(parse(&v4(AUTHENTICATION, 0x2000, &[], &authenticated)), Err(Malformed::Transport));
    let all = [
        extension_header(ROUTING, 0),
        extension_header(DESTINATION_OPTIONS, 1),
        extension_header(17, 0),
        UDP_HEADER.to_vec(),
    ];
    assert_eq!(parse(&v6(HOP_BY_HOP, &all.concat())).unwrap().content, PORTS);
}

#[test]
fn a_chain_of_extension_headers_without_end_is_refused() {
    let chain: Vec<u8> = (0..20).flat_map(|_| extension_header(DESTINATION_OPTIONS, 0)).collect();
    assert_eq!(parse(&v6(DESTINATION_OPTIONS, &chain)), Err(Malformed::ExtensionHeaders));
    assert_eq!(parse(&v6(NO_NEXT_HEADER, &[])), Err(Malformed::NoNextHeader));
}

#[test]
fn a_fragment_knows_its_place() {
    let octets = v4(17, 0x2000, &[], &UDP_HEADER);
    let first = parse(&octets).unwrap();
    assert_eq!(first.fragment, Some(Fragment { id: 0x1234, offset: 0, more: true }));
    assert_eq!(first.content, PORTS);
    let octets = v4(17, 0x0003, &[], &[1, 2, 3]);
    let last = parse(&octets).unwrap();
    assert_eq!(last.fragment, Some(Fragment { id: 0x1234, offset: 24, more: false }));
    assert_eq!((last.content, last.transport), (Content::LaterFragment, &[][..]));

    let fragment = |place: u16| [&[17, 0][..], &place.to_be_bytes(), &[0xde, 0xad, 0xbe, 0xef], &UDP_HEADER].concat();
    let octets = v6(FRAGMENT, &fragment(1));
    let first = parse(&octets).unwrap();
    assert_eq!(first.fragment, Some(Fragment { id: 0xdead_beef, offset: 0, more: true }));
    assert_eq!(first.content, PORTS);
    let octets = v6(FRAGMENT, &fragment(8));
    assert_eq!(parse(&octets).unwrap().content, Content::LaterFragment);
    let octets = v6(FRAGMENT, &fragment(0));
    let atomic = parse(&octets).unwrap();
    assert_eq!((atomic.fragment, atomic.content), (None, PORTS));
}

#[test]
fn fragments_that_end_beyond_a_datagram_or_overlap_the_tcp_header_are_refused() {
    assert_eq!(parse(&v4(17, 0x1fff, &[], &[0; 64])), Err(Malformed::FragmentEnd));
    assert_eq!(parse(&v4(17, 0x2000, &[], &[0; 9])), Err(Malformed::FragmentEnd));
    assert_eq!(parse(&v4(6, 0x0001, &[], &[0; 8])), Err(Malformed::FragmentOverlap));
}

#[test]
fn an_echo_has_an_identifier_and_an_error_the_packet_that_it_is_about() {
    let echo = v4(1, 0, &[], &[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
    assert_eq!(parse(&echo).unwrap().content, Content::Echo { id: 0x1234 });
    let echo = v6(58, &[128, 0, 0, 0, 0x12, 0x34, 0, 1]);
    assert_eq!(parse(&echo).unwrap().content, Content::Echo { id: 0x1234 });
    let inner = v4(6, 0x4000, &[], &UDP_HEADER);
    for kind in [3, 4, 5, 11, 12] {
        let error = v4(1, 0, &[], &[&[kind, 0, 0, 0, 0, 0, 0, 0], &inner[..]].concat());
        assert_eq!(parse(&error).unwrap().content, Content::Error(&inner));
    }
    for kind in [1, 2, 3, 4, 127] {
        let error = v6(58, &[&[kind, 0, 0, 0, 0, 0, 0, 0], &inner[..]].concat());
        assert_eq!(parse(&error).unwrap().content, Content::Error(&inner));
    }
}

#[test]
fn each_fault_has_its_name() {
    assert_eq!(parse(&[]), Err(Malformed::Empty));
    assert_eq!(parse(&[0x50; 40]), Err(Malformed::Version));
    assert_eq!(parse(&[0x45; 19]), Err(Malformed::TruncatedNetwork));
    assert_eq!(parse(&[0x60; 39]), Err(Malformed::TruncatedNetwork));
    assert_eq!(parse(&v4(17, 0, &[], &UDP_HEADER[..3])), Err(Malformed::TruncatedTransport));
    assert_eq!(parse(&v4(47, 0, &[], &UDP_HEADER)), Err(Malformed::Transport));
    assert_eq!(parse(&v4(58, 0, &[], &UDP_HEADER)), Err(Malformed::Transport), "ICMPv6 in IPv4");
    assert_eq!(parse(&v4(1, 0, &[], &[13, 0, 0, 0, 0, 0, 0, 0])), Err(Malformed::Transport), "a timestamp request");
    let mut short_header = v4(17, 0, &[], &UDP_HEADER);
    short_header[0] = 0x44;
    assert_eq!(parse(&short_header), Err(Malformed::HeaderLength));
    let mut short_packet = v4(17, 0, &[], &UDP_HEADER);
    short_packet[3] = 19;
    assert_eq!(parse(&short_packet), Err(Malformed::TotalLength));
    let mut ends_in_udp = v4(17, 0, &[], &UDP_HEADER);
    ends_in_udp[3] = 22;
    assert_eq!(parse(&ends_in_udp), Err(Malformed::TruncatedTransport), "what lies after the packet is not of it");
    let mut ends_in_extension = v6(HOP_BY_HOP, &[extension_header(17, 1), UDP_HEADER.to_vec()].concat());
    ends_in_extension[5] = 8;
    assert_eq!(parse(&ends_in_extension), Err(Malformed::TruncatedNetwork));
}

#[test]
fn a_packet_beyond_64_kib_does_not_say_its_length() {
    let mut large = v4(6, 0, &[], &UDP_HEADER);
    large[2..4].fill(0);
    assert_eq!(parse(&large).map(|packet| (packet.length, packet.content)), Ok((0, PORTS)));
    let mut large = v6(6, &UDP_HEADER);
    large[4..6].fill(0);
    assert_eq!(parse(&large).map(|packet| (packet.length, packet.content)), Ok((0, PORTS)));
}

proptest! {
    #[test]
    fn no_octets_make_it_panic(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&octets);
    }

    /// Random octets hardly ever get past the version: lead them on.
    #[test]
    fn no_headers_make_it_panic(
        six: bool, next in prop::sample::select(vec![0_u8, 1, 6, 17, 43, 44, 51, 58, 59, 60, 132]),
        more in prop::collection::vec((prop::sample::select(vec![0_u8, 6, 43, 44, 51, 60]), 0_u8..4), 0..12),
        payload in prop::collection::vec(any::<u8>(), 0..120), length: Option<u16>, keep in 0_usize..400,
    ) {
        let mut octets = if six {
            let chain: Vec<u8> = more.iter().flat_map(|(next, units)| extension_header(*next, *units)).collect();
            v6(next, &[chain, payload].concat())
        } else {
            v4(next, u16::from(payload.first().copied().unwrap_or(0)), &[], &payload)
        };
        if let Some(length) = length {
            let place = if six { 4 } else { 2 };
            octets[place..place + 2].copy_from_slice(&length.to_be_bytes());
        }
        octets.truncate(keep);
        if let Ok(packet) = parse(&octets)
            && let Content::Error(inner) = packet.content
        {
            let _ = parse(inner);
        }
    }

    /// What is cut off is either not needed or missed, never guessed.
    #[test]
    fn a_cut_packet_is_the_same_packet_or_truncated(keep in 0_usize..80, options in 0_usize..10, six: bool) {
        let whole = if six {
            v6(HOP_BY_HOP, &[extension_header(17, 2), UDP_HEADER.to_vec()].concat())
        } else {
            v4(17, 0, &vec![1; options * 4], &UDP_HEADER)
        };
        let keep = keep.min(whole.len());
        match parse(&whole[..keep]) {
            Ok(packet) => {
                let full = parse(&whole).unwrap();
                prop_assert_eq!(Packet { transport: full.transport, ..packet }, full);
            }
            Err(error) => prop_assert!(matches!(
                error,
                Malformed::Empty | Malformed::TruncatedNetwork | Malformed::TruncatedTransport
            )),
        }
    }
}
