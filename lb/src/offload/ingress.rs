//! The short way of the kernel engine: a packet that needs nothing else goes to its endpoint where it comes in, before routing,
//! policy rules and the hooks of IP. Pure.
//!
//! The table is beside the one of [`offload`](super::offload), of the family `netdev`, on every link that no endpoint is
//! behind. It takes a packet that is for this machine, to a VIP, with hops left, whole and without IPv4 options or IPv6 extension
//! headers, of a route that nftables can say; it counts it and hands it to the neighbour with a hop less. All else is let go on, and finds what it would have found without this table: TTLs that
//! end, fragments, ICMP, ports that are others at the endpoint.
//!
//! What is forwarded here is not asked whether it fits into the endpoints' link. Nor need it be: a link whose packets may
//! be longer than that is left out, and segments that were put together are taken apart again as they were.

use std::collections::{BTreeMap, BTreeSet};

use martlet_api::view::View;
use martlet_netlink::nft::{Base, Chain, Expression, MetaKey, Place, Register, Rule, Set, Table};
use martlet_netlink::{Family, Link};

use super::way::Way;
use super::{
    FRAGMENT, Layout, SCRATCH, beside, chain_of, conditions, counted, counts, one_of, routes, translated, way,
};
use crate::engine::Tables;
use crate::targets::Hop;
use crate::translate::{is_of, load, test};

/// Before other chains on the link.
const PRIORITY: i32 = -100;

/// The table; `None`: there is nothing that it could forward.
pub fn ingress(
    name: &str,
    view: &View,
    tables: &Tables,
    hops: &BTreeSet<Hop>,
    links: &BTreeMap<u32, Link>,
) -> Option<Table> {
    let mut table = Table::netdev(name);
    let shared = counts::counted(tables);
    let mut enter = Vec::new();
    // The links of endpoints.
    let mut out = BTreeSet::new();
    for family in Family::ALL {
        let layout = Layout::packet(family);
        let mut rules = Vec::new();
        let mut ways = BTreeMap::new();
        let hops: BTreeMap<u32, &Hop> =
            hops.iter().filter(|hop| is_of(hop.address, family)).map(|hop| (hop.mark, hop)).collect();
        for (rank, name) in tables.classifier().names().iter().enumerate() {
            let Some(route) = view.routes.get(name) else { continue };
            // What this table leaves to others leaves it here, so that no later route takes it.
            for (route, _) in translated(route) {
                let left = conditions(&layout, rank, &route, &view.vips, &mut table.sets).into_iter().flatten();
                rules.extend(left.map(Rule::accept));
            }
            let taken = conditions(&layout, rank, route, &view.vips, &mut table.sets).into_iter().flatten();
            let Some(way) = way(family, tables, rank, route, &mut table.sets) else {
                rules.extend(taken.map(Rule::accept));
                continue;
            };
            let ours = way.marks.iter().filter_map(|mark| hops.get(mark));
            ways.extend(ours.map(|hop| (hop.mark, (hop.address, hop.interface))));
            let ends = end(&mut table, &way, family);
            rules.extend(taken.map(|rule| way.take(&layout, counted(rule, name, &shared), &ends)));
        }
        if ways.is_empty() {
            continue;
        }
        out.extend(ways.values().map(|(_, interface)| *interface));
        let vips = view.vips.iter().map(ipnet::IpNet::addr).filter(|vip| is_of(*vip, family)).collect();
        enter.push(entry(family, one_of(family, vips, vips_of(family), &mut table.sets)));
        table.sets.insert(ways_of(family).into(), Set::Ways { family, elements: ways });
        table.chains.insert(chain_of(family).into(), Chain { hook: None, rules });
    }
    let (room, others) = beside(&out, links)?;
    let names: BTreeSet<String> = others.filter(|link| link.mtu <= room).map(|link| link.name.to_string()).collect();
    if names.is_empty() {
        return None;
    }
    table.sets.insert(counts::ROUTES.into(), routes(&shared));
    Some(table.chain("ingress", Chain::at(Place::Ingress(names), PRIORITY, enter)))
}

/// Where an Ethernet header says what follows.
const ETHER_TYPE: u32 = 12;

/// The ways to endpoints by mark, with what was forwarded to each.
pub const fn ways_of(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "endpoints-4",
        Family::Ipv6 => "endpoints-6",
    }
}

const fn vips_of(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "vips-4",
        Family::Ipv6 => "vips-6",
    }
}

/// Goes on with plain packets to a VIP for this machine that may go one hop farther.
fn entry(family: Family, is_vip: Expression) -> Rule {
    let layout = Layout::packet(family);
    let is = |value: &[u8]| Expression::Compare { register: SCRATCH, equal: true, value: value.to_vec() };
    let (ether_type, hops): ([u8; 2], u32) = match family {
        Family::Ipv4 => ([0x08, 0x00], 8),
        Family::Ipv6 => ([0x86, 0xdd], 7),
    };
    let rule = Rule::new()
        // Of a frame that has a tag still, this is the tag's.
        .then(load((Base::LinkLayer, ETHER_TYPE), 2, SCRATCH))
        .then(is(&ether_type))
        .then(layout.address(layout.vip, SCRATCH))
        .then(is_vip)
        .then(Expression::Meta { key: MetaKey::PacketType, to: SCRATCH })
        .then(is(&[0]));
    // Two or more.
    let rule = test(rule, (Base::Network, hops), &[0xfe], false, &[0]);
    let rule = match family {
        // A header without options; neither a fragment nor followed by one.
        Family::Ipv4 => {
            let rule = rule.then(load((Base::Network, 0), 1, SCRATCH)).then(is(&[0x45]));
            test(rule, (Base::Network, 6), &FRAGMENT, true, &[0; 2])
        }
        // The rules ask for the next header.
        Family::Ipv6 => rule,
    };
    rule.then(Expression::Goto(chain_of(family).into()))
}

/// The chains that forward to the endpoint.
fn end(table: &mut Table, way: &Way, family: Family) -> String {
    let ends = format!("{}-{}", way.map, if family == Family::Ipv4 { 4 } else { 6 });
    let (address, interface) = (SCRATCH, Register(Layout::packet(family).sizes().1));
    way.end(&ends, &mut table.sets, &mut table.chains, |rule, mark| {
        rule.then(Expression::Map { register: mark, map: ways_of(family).into(), to: address })
            .then(Expression::Forward { family, address, interface })
    })
}
