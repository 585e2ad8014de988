//! Ports that are others at the endpoint, as nftables: stateless, in both directions, for both engines.
//!
//! Pure. Whoever chooses the endpoint of a packet to a VIP knows its route, and with it the endpoint's port. That goes with
//! the mark, in its upper half, so that no table in between can be of another moment:
//!
//! ```text
//!   31        16 15         0
//!  +------------+------------+
//!  | port, or 0 | mark       |   the port's octets as they stand in a packet
//!  +------------+------------+
//! ```
//!
//! Chain `to-endpoint`, behind the queues, writes the port and takes it out of the mark before the packet is routed. Replies
//! know no route: from VIP, protocol and the endpoint's port follows the VIP's port (chain `from-endpoint`, before the
//! queues); that it is one port and no other is seen to where objects are accepted. ICMP errors carry the ports of the packet
//! that they are about: those to a VIP the source port, those from a VIP the destination port.
//!
//! Checksums are changed by the difference (RFC 1624), so that the first fragment of a UDP datagram can be written alone; a
//! UDP checksum of 0 stays 0. `CRC32c` of SCTP is made anew over the packet: SCTP in fragments must be put together before. The
//! checksum within the packet that an error quotes is left as it was: nobody has all of what it covers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use martlet_api::view::{Route, View};
use martlet_netlink::Family;
use martlet_netlink::nft::{self, Base, Chain, Checksum, Expression, Hook, MetaKey, Register, Rule, Set, Table};

use crate::flow::number;
use crate::packet::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// The half of a mark that is the endpoint's.
const ENDPOINT: u32 = 0xffff;
/// The first register; longer values take those that follow.
const FIRST: Register = Register(0);
/// Octets of an ICMP header, and of the IP headers in it without options or extension headers.
const ICMP_HEADER: u32 = 8;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

/// A port as it goes with a mark.
pub fn in_mark(port: u16) -> u32 {
    u32::from(u16::from_ne_bytes(port.to_be_bytes())) << 16
}

/// VIP, protocol and port of the endpoint -> port of the VIP.
pub type Replies = BTreeMap<(IpAddr, u8, u16), u16>;

/// What replies are translated to. Of two ports that have the same target the first route's counts: the other is not
/// accepted.
pub fn replies(view: &View) -> Replies {
    let mut replies = Replies::new();
    for route in view.routes.values() {
        for ((transport, port), target) in translations(route) {
            for vip in &route.destinations {
                replies.entry((vip.addr(), number(transport), target)).or_insert(port);
            }
        }
    }
    replies
}

/// The translations of a route that some packet of it can meet.
pub fn translations(route: &Route) -> impl Iterator<Item = ((martlet_api::view::TransportProtocol, u16), u16)> {
    let meets = |port: u16| {
        let ranges = &route.destination_ports;
        ranges.is_empty() || ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
    };
    let all = route.port_translations.iter().map(|(from, to)| (*from, *to));
    all.filter(move |((transport, port), target)| route.protocols.contains(transport) && meets(*port) && port != target)
}

/// Adds to `table` what translates; nothing if there is nothing to translate.
pub fn put_into(table: &mut Table, replies: &Replies, vips: &BTreeSet<IpNet>) {
    if replies.is_empty() {
        return;
    }
    let at = |place, priority| Some(Hook { place, priority });
    // Behind the queues at 0 and what bypasses them at 1.
    let enter = vec![any_port_in_mark().then(Expression::Goto("to-endpoint".into()))];
    table.chains.insert("translate".into(), Chain { hook: at(nft::Place::Prerouting, 2), rules: enter });
    table.chains.insert("to-endpoint".into(), Chain { hook: None, rules: to_endpoint() });
    let (mut from, mut own) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let mut map = BTreeMap::new();
        for ((vip, protocol, target), port) in replies.iter().filter(|((vip, ..), _)| is_of(*vip, family)) {
            map.insert(key(*vip, *protocol, *target), padded(&port.to_be_bytes()));
        }
        let octets = if family == Family::Ipv4 { 12 } else { 24 };
        table.sets.insert(map_of(family).into(), Set::Map { key: octets, value: 4, elements: map });
        if !vips.iter().any(|vip| is_of(vip.addr(), family)) {
            continue;
        }
        from.extend(from_endpoint(family));
        own.extend(errors(family));
    }
    from.extend(own.clone());
    table.chains.insert("from-endpoint".into(), Chain { hook: at(nft::Place::Prerouting, -1), rules: from });
    // What this machine itself says of a packet that was translated.
    table.chains.insert("from-here".into(), Chain { hook: at(nft::Place::Output, -1), rules: own });
}

/// Whether an address is of a family.
pub const fn is_of(address: IpAddr, family: Family) -> bool {
    matches!((address, family), (IpAddr::V4(_), Family::Ipv4) | (IpAddr::V6(_), Family::Ipv6))
}

const fn map_of(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "replies-4",
        Family::Ipv6 => "replies-6",
    }
}

/// Octets of a field in registers.
fn padded(octets: &[u8]) -> Vec<u8> {
    let mut octets = octets.to_vec();
    octets.resize(octets.len().next_multiple_of(4), 0);
    octets
}

fn key(vip: IpAddr, protocol: u8, target: u16) -> Vec<u8> {
    let address = match vip {
        IpAddr::V4(vip) => vip.octets().to_vec(),
        IpAddr::V6(vip) => vip.octets().to_vec(),
    };
    [address, padded(&[protocol]), padded(&target.to_be_bytes())].concat()
}

/// Where something stands in a packet.
pub type Place = (Base, u32);

/// Loads octets of the packet.
pub const fn load((base, offset): Place, length: u32, to: Register) -> Expression {
    Expression::Payload { base, offset, length, to }
}

const fn write(from: Register, offset: u32, checksum: Checksum) -> Expression {
    Expression::Write { from, base: Base::Transport, offset, length: 2, checksum }
}

/// Goes on when the octets at a place, of which `mask` counts, are (not) `value`.
pub fn test(rule: Rule, place: Place, mask: &[u8], equal: bool, value: &[u8]) -> Rule {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    // Of a whole register the kernel does it without a call.
    let bits = Expression::Bitwise { from: FIRST, to: FIRST, mask: padded(mask), xor: padded(&vec![0; mask.len()]) };
    let compare = Expression::Compare { register: FIRST, equal, value: value.to_vec() };
    rule.then(load(place, length, FIRST)).then(bits).then(compare)
}

/// Leaves these bits of a number in the first register.
pub fn masked(bits: u32) -> Expression {
    Expression::Bitwise { from: FIRST, to: FIRST, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] }
}

/// Goes on with marks that hold a port.
fn any_port_in_mark() -> Rule {
    Rule::new()
        .then(Expression::Meta { key: MetaKey::Mark, to: FIRST })
        .then(masked(!ENDPOINT))
        .then(Expression::Compare { register: FIRST, equal: false, value: vec![0; 4] })
}

/// Writes the port of the mark.
fn write_port_of_mark(rule: Rule, offset: u32, checksum: Checksum) -> Rule {
    rule.then(Expression::Meta { key: MetaKey::Mark, to: FIRST })
        .then(Expression::ShiftRight { from: FIRST, to: FIRST, bits: 16 })
        .then(write(FIRST, offset, checksum))
}

/// The protocols that have ports, with the rule that goes on with them and what covers the port.
fn transports() -> [(u8, Rule, Checksum); 4] {
    let of = |number| Rule::new().protocol(number);
    let udp = |has_checksum: bool| test(of(UDP), (Base::Transport, 6), &[0xff; 2], !has_checksum, &[0; 2]);
    [
        (TCP, of(TCP), Checksum::Internet(16)),
        (UDP, udp(true), Checksum::Internet(6)),
        (UDP, udp(false), Checksum::None),
        (SCTP, of(SCTP), Checksum::Sctp),
    ]
}

/// With the port of its mark each packet leaves the chain, and without it in the mark.
fn to_endpoint() -> Vec<Rule> {
    let done = |rule: Rule| {
        rule.then(Expression::Meta { key: MetaKey::Mark, to: FIRST })
            .then(masked(ENDPOINT))
            .then(Expression::SetMark { from: FIRST })
            .accept()
    };
    let mut rules = Vec::new();
    for (_, rule, checksum) in transports() {
        rules.push(done(write_port_of_mark(rule, 2, checksum)));
    }
    for family in Family::ALL {
        for rule in quoting(family) {
            let source = ICMP_HEADER + inner_header(family);
            rules.push(done(write_port_of_mark(rule, source, Checksum::Internet(2))));
        }
    }
    // Whatever else: only the mark.
    rules.push(done(Rule::new()));
    rules
}

const fn inner_header(family: Family) -> u32 {
    match family {
        Family::Ipv4 => IPV4_HEADER,
        Family::Ipv6 => IPV6_HEADER,
    }
}

/// Goes on with ICMP errors whose inner IP header is of the usual length, and no later fragment.
fn quoting(family: Family) -> Vec<Rule> {
    let rule = Rule::new().family(family);
    let inner = |rule, offset, mask: &[u8], value: &[u8]| {
        test(rule, (Base::Transport, ICMP_HEADER + offset), mask, true, value)
    };
    match family {
        Family::Ipv4 => [3, 4, 5, 11, 12]
            .into_iter()
            .map(|kind| {
                let rule = test(rule.clone().protocol(ICMP), (Base::Transport, 0), &[0xff], true, &[kind]);
                inner(inner(rule, 0, &[0xff], &[0x45]), 6, &[0x1f, 0xff], &[0, 0])
            })
            .collect(),
        // Errors are below 128.
        Family::Ipv6 => [TCP, UDP, SCTP]
            .into_iter()
            .map(|next| {
                let rule = test(rule.clone().protocol(ICMPV6), (Base::Transport, 0), &[0x80], true, &[0]);
                inner(rule, 6, &[0xff], &[next])
            })
            .collect(),
    }
}

/// Looks the VIP's port up and writes it.
fn write_port_of_map(rule: Rule, family: Family, offset: u32, checksum: Checksum) -> Rule {
    rule.then(Expression::Map { register: FIRST, map: map_of(family).into(), to: FIRST })
        .then(write(FIRST, offset, checksum))
}

/// After an address come protocol and port.
const fn registers(family: Family) -> (u32, Register, Register) {
    match family {
        Family::Ipv4 => (4, Register(1), Register(2)),
        Family::Ipv6 => (16, Register(4), Register(5)),
    }
}

/// Replies of endpoints: the source port.
fn from_endpoint(family: Family) -> Vec<Rule> {
    let (length, protocol, port) = registers(family);
    let source = if family == Family::Ipv4 { 12 } else { 8 };
    let rule = |(number, rule, checksum): (u8, Rule, Checksum)| {
        let rule = Rule(Rule::new().family(family).0.into_iter().chain(rule.0).collect());
        let rule = if family == Family::Ipv4 { rule.first_fragment() } else { rule };
        let key = rule
            .then(load((Base::Network, source), length, FIRST))
            .then(Expression::Immediate { to: protocol, value: padded(&[number]) })
            .then(load((Base::Transport, 0), 2, port));
        write_port_of_map(key, family, 0, checksum).accept()
    };
    transports().into_iter().map(rule).collect()
}

/// Errors about packets that were translated: the destination port of what they quote.
fn errors(family: Family) -> Vec<Rule> {
    let (length, protocol, port) = registers(family);
    let (of_protocol, of_destination) = if family == Family::Ipv4 { (9, 16) } else { (6, 24) };
    let place = ICMP_HEADER + inner_header(family) + 2;
    let rule = |rule: Rule| {
        let key = rule
            .then(load((Base::Transport, ICMP_HEADER + of_destination), length, FIRST))
            .then(load((Base::Transport, ICMP_HEADER + of_protocol), 1, protocol))
            .then(load((Base::Transport, place), 2, port));
        write_port_of_map(key, family, place, Checksum::Internet(2)).accept()
    };
    quoting(family).into_iter().map(rule).collect()
}
