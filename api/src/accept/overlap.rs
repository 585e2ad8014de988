//! Routes of equal priority that match the same packets: the first by name wins, and the other one is told.
//!
//! Pure set arithmetic on classifiers; what a packet looks like is the load balancer's business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::view::{ByteMatch, ObjectName, Route};

/// How a route loses to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    /// It does not.
    None,
    /// The named one wins some of its packets.
    Partly(Arc<str>),
    /// The named one wins all of its packets.
    Wholly(Arc<str>),
}

/// The first and the last destination port of a route, and its place.
type Hull = (u16, u16, usize);

/// For each of `routes`, which are in the order of their names, how it loses. Only routes that share a VIP and whose ports
/// are not apart are compared: a thousand routes of one VIP differ in their ports.
pub(super) fn find(routes: &[(&ObjectName, Route)]) -> Vec<Overlap> {
    let mut earlier: BTreeMap<(i32, IpNet), Vec<Hull>> = BTreeMap::new();
    let mut overlaps = Vec::with_capacity(routes.len());
    for (place, (_, route)) in routes.iter().enumerate() {
        let keys = || route.destinations.iter().map(|vip| (route.priority, *vip));
        let (first, last) = hull(&route.destination_ports);
        let near = keys().filter_map(|key| earlier.get(&key)).flatten().filter(|(f, l, _)| *f <= last && first <= *l);
        let rivals: BTreeSet<usize> = near.map(|(_, _, rival)| *rival).collect();
        let overlap = against(route, rivals.into_iter().filter_map(|rival| routes.get(rival)));
        if !matches!(overlap, Overlap::Wholly(_)) {
            for key in keys() {
                earlier.entry(key).or_default().push((first, last, place));
            }
        }
        overlaps.push(overlap);
    }
    overlaps
}

fn against<'a>(route: &Route, rivals: impl Iterator<Item = &'a (&'a ObjectName, Route)>) -> Overlap {
    let mut overlap = Overlap::None;
    for (name, rival) in rivals {
        if covers(rival, route) {
            return Overlap::Wholly(name.name.clone());
        }
        if overlap == Overlap::None && overlaps_with(rival, route) && !same_target(rival, route) {
            overlap = Overlap::Partly(name.name.clone());
        }
    }
    overlap
}

fn hull(ports: &BTreeSet<(u16, u16)>) -> (u16, u16) {
    match (ports.first(), ports.last()) {
        (Some((first, _)), Some((_, last))) => (*first, *last),
        _ => (0, u16::MAX),
    }
}

fn same_target(a: &Route, b: &Route) -> bool {
    a.backend == b.backend && a.port_translations == b.port_translations
}

/// Some packet matches both.
fn overlaps_with(a: &Route, b: &Route) -> bool {
    !a.protocols.is_disjoint(&b.protocols)
        && ranges_meet(&a.destination_ports, &b.destination_ports)
        && ranges_meet(&a.source_ports, &b.source_ports)
        && !contradict(&a.byte_matches, &b.byte_matches)
        && a.destinations.intersection(&b.destinations).any(|vip| sources_meet(a, b, vip))
}

/// Every packet of `b` matches `a`.
fn covers(a: &Route, b: &Route) -> bool {
    a.sctp_in_udp_port == b.sctp_in_udp_port
        && a.protocols.is_superset(&b.protocols)
        && ranges_cover(&a.destination_ports, &b.destination_ports)
        && ranges_cover(&a.source_ports, &b.source_ports)
        && a.byte_matches.iter().all(|m| b.byte_matches.contains(m))
        && b.destinations.iter().all(|vip| a.destinations.contains(vip) && sources_cover(a, b, vip))
}

/// Empty: any port. The ranges of a set are apart from each other.
fn ranges_meet(a: &BTreeSet<(u16, u16)>, b: &BTreeSet<(u16, u16)>) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|(first, last)| b.iter().any(|(f, l)| first <= l && f <= last))
}

fn ranges_cover(a: &BTreeSet<(u16, u16)>, b: &BTreeSet<(u16, u16)>) -> bool {
    a.is_empty() || !b.is_empty() && b.iter().all(|(f, l)| a.iter().any(|(first, last)| first <= f && l <= last))
}

/// The sources of the VIP's family; `None`: any.
fn sources<'a>(route: &'a Route, vip: &IpNet) -> Option<impl Iterator<Item = &'a IpNet> + use<'a>> {
    let family = vip.addr().is_ipv4();
    let of_family = route.sources.iter().filter(move |net| net.addr().is_ipv4() == family);
    (!route.sources.is_empty()).then_some(of_family)
}

fn sources_meet(a: &Route, b: &Route, vip: &IpNet) -> bool {
    match (sources(a, vip), sources(b, vip)) {
        (None, None) => true,
        (Some(mut some), None) | (None, Some(mut some)) => some.next().is_some(),
        (Some(mut of_a), Some(_)) => of_a.any(|net| {
            sources(b, vip).is_some_and(|mut of_b| of_b.any(|other| net.contains(other) || other.contains(net)))
        }),
    }
}

fn sources_cover(a: &Route, b: &Route, vip: &IpNet) -> bool {
    let inside = |net: &IpNet| sources(a, vip).is_none_or(|mut of_a| of_a.any(|outer| outer.contains(net)));
    let all = if vip.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    match sources(b, vip) {
        None => all.parse().is_ok_and(|all| inside(&all)),
        Some(mut of_b) => of_b.all(inside),
    }
}

/// No packet fulfils both: the same bits must have different values.
fn contradict(a: &[ByteMatch], b: &[ByteMatch]) -> bool {
    let same_place =
        |m: &ByteMatch, n: &ByteMatch| (m.protocol, m.offset, m.octets) == (n.protocol, n.offset, n.octets);
    a.iter().any(|m| b.iter().any(|n| same_place(m, n) && (m.value ^ n.value) & m.mask & n.mask != 0))
}
