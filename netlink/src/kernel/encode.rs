//! Our values -> messages of the kernel. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteScope, RouteType,
    RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::model::{Action, Family, NextHop, Object, Owner, Route, RouteKind, Rule};

/// The family as netlink has it.
pub(super) const fn family(family: Family) -> AddressFamily {
    match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    }
}

/// The message that puts `object` into the kernel.
pub(super) fn add(owner: &Owner, object: &Object) -> RouteNetlinkMessage {
    match object {
        Object::Route(route) => RouteNetlinkMessage::NewRoute(self::route(owner, route)),
        Object::Rule(rule) => RouteNetlinkMessage::NewRule(self::rule(owner, rule)),
    }
}

/// The message that takes `object` out of the kernel: every selector is spelt out, so that nothing else can match.
pub(super) fn remove(owner: &Owner, object: &Object) -> RouteNetlinkMessage {
    match object {
        Object::Route(route) => {
            let mut message = self::route(owner, route);
            message.header.scope = RouteScope::NoWhere;
            RouteNetlinkMessage::DelRoute(message)
        }
        Object::Rule(rule) => RouteNetlinkMessage::DelRule(self::rule(owner, rule)),
    }
}

fn route(owner: &Owner, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(Family::of(&route.prefix));
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.header.protocol = owner.protocol.into();
    message.header.table = u8::try_from(route.table).unwrap_or_default();
    if route.prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.prefix.addr().into()));
    }
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    match &route.kind {
        RouteKind::Blackhole => message.header.kind = RouteType::BlackHole,
        RouteKind::Unicast(hops) => {
            message.header.kind = RouteType::Unicast;
            if hops.iter().all(|hop| hop.gateway.is_none()) {
                // The destination itself is on the link: without this scope IPv4 refuses.
                message.header.scope = RouteScope::Link;
            }
            next_hops(&mut message, &route.prefix, hops);
        }
    }
    message
}

fn next_hops(message: &mut RouteMessage, prefix: &IpNet, hops: &[NextHop]) {
    if let [hop] = hops {
        if hop.onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        message.attributes.extend(hop.gateway.map(|gateway| self::gateway(prefix, gateway)));
        message.attributes.extend(hop.interface.map(RouteAttribute::Oif));
    } else {
        let hops = hops.iter().map(|hop| multipath(prefix, hop)).collect();
        message.attributes.push(RouteAttribute::MultiPath(hops));
    }
}

fn multipath(prefix: &IpNet, hop: &NextHop) -> RouteNextHop {
    let mut out = RouteNextHop::default();
    if hop.onlink {
        out.flags |= RouteNextHopFlags::Onlink;
    }
    // The kernel counts from 0: "hops" is the weight less one.
    out.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    out.interface_index = hop.interface.unwrap_or_default();
    out.attributes.extend(hop.gateway.map(|gateway| self::gateway(prefix, gateway)));
    out
}

/// An IPv6 gateway of an IPv4 route has an attribute of its own (RFC 5549).
fn gateway(prefix: &IpNet, gateway: IpAddr) -> RouteAttribute {
    match (prefix, gateway) {
        (IpNet::V4(_), IpAddr::V6(gateway)) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        _ => RouteAttribute::Gateway(RouteAddress::from(gateway)),
    }
}

fn rule(owner: &Owner, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    if rule.invert {
        message.header.flags |= RuleFlags::Invert;
    }
    message.attributes.push(RuleAttribute::Protocol(owner.protocol.into()));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(from.addr()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.addr()));
    }
    if let Some(mark) = rule.mark {
        message.attributes.extend([RuleAttribute::FwMark(mark.value), RuleAttribute::FwMask(mark.mask)]);
    }
    match rule.action {
        Action::Table(table) => {
            message.header.action = RuleAction::ToTable;
            message.header.table = u8::try_from(table).unwrap_or_default();
            message.attributes.push(RuleAttribute::Table(table));
        }
        Action::Goto(priority) => {
            message.header.action = RuleAction::Goto;
            message.attributes.push(RuleAttribute::Goto(priority));
        }
        Action::Blackhole => message.header.action = RuleAction::Blackhole,
    }
    message
}
