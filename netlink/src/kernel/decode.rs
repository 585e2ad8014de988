//! Messages of the kernel -> our values. Pure. What our values cannot express is nobody's but another owner's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::diff::Key;
use crate::link::{Neighbor, Reachability};
use crate::model::{Action, Family, Link, Mark, NextHop, Object, Owner, Route, RouteKind, Rule};

/// What a route message is to an owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Carries its protocol number and lies in its tables.
    Ours(Object),
    /// Lies in its tables, but is another's (or none that we can express).
    Foreign(Key),
    /// In the main table, with its metric and its first next hop.
    Main(IpNet, u32, NextHop),
    /// None of its business.
    Elsewhere,
}

/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

/// What a route is to `owner`.
pub(super) fn route(owner: &Owner, message: &RouteMessage) -> Seen {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut destination = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(address) => destination = self::address(address),
            _ => {}
        }
    }
    let is_owned = owner.tables.iter().any(|tables| tables.contains(&table));
    if !is_owned && table != MAIN || header.flags.contains(RouteFlags::Cloned) {
        return Seen::Elsewhere;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Seen::Elsewhere,
    };
    let Ok(prefix) = IpNet::new(destination.unwrap_or(unspecified), header.destination_prefix_length) else {
        return Seen::Elsewhere;
    };
    if !is_owned {
        return match kind(message) {
            Some(RouteKind::Unicast(hops)) => {
                hops.into_iter().next().map_or(Seen::Elsewhere, |hop| Seen::Main(prefix, metric, hop))
            }
            _ => Seen::Elsewhere,
        };
    }
    let ours = u8::from(header.protocol) == owner.protocol && header.tos == 0 && header.source_prefix_length == 0;
    match kind(message).filter(|_| ours) {
        Some(kind) => Seen::Ours(Route { table, prefix, metric, kind }.into()),
        None => Seen::Foreign((table, prefix, metric)),
    }
}

fn kind(message: &RouteMessage) -> Option<RouteKind> {
    match message.header.kind {
        RouteType::BlackHole => return Some(RouteKind::Blackhole),
        RouteType::Unicast => {}
        _ => return None,
    }
    let mut single = NextHop {
        gateway: None,
        interface: None,
        weight: 1,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::MultiPath(hops) => {
                let mut hops: Vec<_> = hops.iter().map(next_hop).collect();
                hops.sort();
                return Some(RouteKind::Unicast(hops));
            }
            RouteAttribute::Oif(index) => single.interface = Some(*index),
            other => single.gateway = single.gateway.or_else(|| gateway(other)),
        }
    }
    Some(RouteKind::Unicast(vec![single]))
}

pub(super) fn next_hop(hop: &RouteNextHop) -> NextHop {
    NextHop {
        gateway: hop.attributes.iter().find_map(gateway),
        interface: Some(hop.interface_index).filter(|index| *index > 0),
        // The kernel counts from 0.
        weight: u16::from(hop.hops) + 1,
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
    }
}

pub(super) fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(gateway) => address(gateway),
        RouteAttribute::Via(RouteVia::Inet(gateway)) => Some((*gateway).into()),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some((*gateway).into()),
        _ => None,
    }
}

pub(super) const fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The rule, if it is of `owner` and our values can express it.
pub(super) fn rule(owner: &Owner, message: &RuleMessage) -> Option<Object> {
    let header = &message.header;
    let family = match header.family {
        AddressFamily::Inet => Family::Ipv4,
        AddressFamily::Inet6 => Family::Ipv6,
        _ => return None,
    };
    let invert = header.flags.contains(RuleFlags::Invert);
    let mut rule = Rule {
        family,
        priority: 0,
        from: None,
        to: None,
        mark: None,
        invert,
        action: Action::Table(header.table.into()),
    };
    let (mut protocol, mut goto) = (0, None);
    let none = Mark { value: 0, mask: 0 };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(number) => protocol = u8::from(*number),
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(from) => rule.from = IpNet::new(*from, header.src_len).ok(),
            RuleAttribute::Destination(to) => rule.to = IpNet::new(*to, header.dst_len).ok(),
            RuleAttribute::FwMark(value) => rule.mark.get_or_insert(none).value = *value,
            RuleAttribute::FwMask(mask) => rule.mark.get_or_insert(none).mask = *mask,
            RuleAttribute::Table(table) => rule.action = Action::Table(*table),
            RuleAttribute::Goto(priority) => goto = Some(*priority),
            // The kernel always shows these two; all ones means unset.
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::L3MDev(false) => {}
            _ => return None,
        }
    }
    match header.action {
        RuleAction::ToTable => {}
        RuleAction::Goto => rule.action = Action::Goto(goto?),
        RuleAction::Blackhole => rule.action = Action::Blackhole,
        _ => return None,
    }
    let ours = protocol == owner.protocol && owner.priorities.iter().any(|range| range.contains(&rule.priority));
    (ours && header.tos == 0).then(|| rule.into())
}

/// The link, without its addresses.
pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let up = flags.contains(LinkFlags::Up);
    let mut link = Link {
        index: message.header.index,
        name: "".into(),
        up,
        carrier: up && flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        addresses: [].into(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.as_str().into(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// The index of the link and the address; none while it may not be used (duplicate address detection).
pub(super) fn link_address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let header = &message.header;
    let mut address = None;
    let mut local = None;
    let mut failed = header.flags.contains(AddressHeaderFlags::Dadfailed);
    let mut tentative =
        header.flags.contains(AddressHeaderFlags::Tentative) && !header.flags.contains(AddressHeaderFlags::Optimistic);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // On a point-to-point link this one is ours, the other the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(flags) => {
                failed |= flags.contains(AddressFlags::Dadfailed);
                tentative |= flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
            }
            _ => {}
        }
    }
    if failed || tentative {
        return None;
    }
    Some((header.index, IpNet::new(local.or(address)?, header.prefix_len).ok()?))
}

/// The neighbour entry; none for those that say nothing (multicast and loopback entries without ARP).
pub(super) fn neighbor(message: &NeighbourMessage) -> Option<Neighbor> {
    let reachability = match message.header.state {
        NeighbourState::Incomplete => Reachability::Incomplete,
        NeighbourState::Reachable => Reachability::Reachable,
        NeighbourState::Permanent => Reachability::Permanent,
        NeighbourState::Stale => Reachability::Stale,
        NeighbourState::Delay | NeighbourState::Probe => Reachability::Probe,
        NeighbourState::Failed => Reachability::Failed,
        _ => return None,
    };
    let link_layer = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => Some(octets.clone()),
        _ => None,
    });
    let address = neighbor_address(message)?;
    Some(Neighbor { interface: message.header.ifindex, address, link_layer, reachability })
}

/// Of whom a neighbour entry is.
pub(super) fn neighbor_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use proptest::prelude::*;

    use super::*;
    use crate::datagram;
    use crate::kernel::encode;

    fn owner() -> Owner {
        Owner { protocol: 201, tables: vec![100..=5000], priorities: vec![50..=102] }
    }

    /// Through octets and back, as another owner would see it.
    fn seen_by(reader: &Owner, object: &Object) -> Option<Object> {
        let mut octets = Vec::new();
        datagram::append(&mut octets, encode::add(&owner(), object), NLM_F_REQUEST, 7);
        let message = datagram::messages(&octets).next().unwrap();
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).unwrap().payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message)) => match route(reader, &message) {
                Seen::Ours(object) => Some(object),
                Seen::Foreign(_) | Seen::Main(..) | Seen::Elsewhere => None,
            },
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(message)) => rule(reader, &message),
            other => panic!("{other:?}"),
        }
    }

    fn any_prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0..=32u8).prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits).into(), length)),
            (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from(bits).into(), length)),
        ]
        .prop_map(|prefix| prefix.unwrap().trunc())
    }

    fn any_hop(six: bool) -> impl Strategy<Value = NextHop> {
        let address = (any::<u128>(), any::<u32>(), any::<bool>()).prop_map(move |(long, short, over_six)| {
            if six || over_six { IpAddr::from(long.to_be_bytes()) } else { IpAddr::from(short.to_be_bytes()) }
        });
        let interface = prop::option::of(1..1000u32);
        (prop::option::of(address), interface, 1..=256u16, any::<bool>())
            .prop_map(|(gateway, interface, weight, onlink)| NextHop { gateway, interface, weight, onlink })
    }

    fn any_route() -> impl Strategy<Value = Object> {
        (100..=5000u32, any_prefix(), any::<u32>()).prop_flat_map(|(table, prefix, metric)| {
            let six = Family::of(&prefix) == Family::Ipv6;
            let kind = prop_oneof![
                Just(RouteKind::Blackhole),
                any_hop(six).prop_map(|hop| RouteKind::Unicast(vec![NextHop { weight: 1, ..hop }])),
                prop::collection::btree_set(any_hop(six), 2..5)
                    .prop_map(|hops| RouteKind::Unicast(hops.into_iter().collect())),
            ];
            kind.prop_map(move |kind| Route { table, prefix, metric, kind }.into())
        })
    }

    fn any_rule() -> impl Strategy<Value = Object> {
        let action = prop_oneof![
            any::<u32>().prop_map(Action::Table),
            any::<u32>().prop_map(Action::Goto),
            Just(Action::Blackhole)
        ];
        let mark = prop::option::of((any::<u32>(), any::<u32>()).prop_map(|(value, mask)| Mark { value, mask }));
        (any_prefix(), any::<[bool; 3]>(), 50..=102u32, mark, action).prop_map(
            |(prefix, [from, to, invert], priority, mark, action)| {
                let family = Family::of(&prefix);
                let (from, to) = (from.then_some(prefix), to.then_some(prefix));
                Rule { family, priority, from, to, mark, invert, action }.into()
            },
        )
    }

    proptest! {
        #[test]
        fn an_object_survives_the_way_to_the_kernel_and_back(object in prop_oneof![any_route(), any_rule()]) {
            prop_assert_eq!(seen_by(&owner(), &object), Some(object));
        }

        #[test]
        fn an_object_of_another_protocol_or_range_is_not_ours(object in prop_oneof![any_route(), any_rule()]) {
            prop_assert_eq!(seen_by(&Owner { protocol: 202, ..owner() }, &object), None);
            let elsewhere = Owner { tables: vec![1..=99, 5001..=u32::MAX], priorities: vec![0..=49], ..owner() };
            prop_assert_eq!(seen_by(&elsewhere, &object), None);
        }
    }
}
