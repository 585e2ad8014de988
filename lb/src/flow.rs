//! Which `L34Route` a packet belongs to: the matching one with the highest priority, of equal ones the first by name.
//!
//! The routes are sorted once, in that order. Their VIPs and protocols lead to a `Group`; in a group, each of three
//! dimensions (source address, source port, destination port) is cut at every border that a route names, and each piece
//! holds the set of the group's routes that accept it, as bits in their order (the bit vectors of Lakshman and Stiliadis,
//! SIGCOMM 1998, with the summaries of Baboescu and Varghese, 2001). A packet costs one binary search for the VIP, one a
//! dimension, and the "and" of three bit vectors until the first bit: a word for 64 routes, a summary word for 4096.
//! Only byte matches are tried one after the other.
//!
//! It knows nothing of endpoints: a match is the number of a route in the sorted order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use martlet_api::view::{ByteMatch, Route, TransportProtocol};

use crate::hash::Flow;
use crate::packet::protocol;

/// What is looked at without any byte match: a TCP header, for a reset.
const TRANSPORT_OCTETS: u16 = 20;

/// All routes of a Gateway, ready to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classifier {
    /// By rank: the first is asked first.
    names: Vec<Arc<str>>,
    /// By rank, of the routes that take SCTP behind a UDP port: that port.
    sctp_in_udp: BTreeMap<u32, u16>,
    /// By rank: protocol number and port of the VIP -> port of the endpoint.
    translations: Vec<BTreeMap<(u8, u16), u16>>,
    /// Sorted by VIP.
    vips: Vec<(IpAddr, Groups)>,
    /// See [`Classifier::transport_octets`].
    transport_octets: u16,
}

/// The routes of a VIP by what they are asked for. An echo has no ports: any route of the VIP may answer it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Groups {
    tcp: Group,
    udp: Group,
    sctp: Group,
    echo: Group,
    /// UDP ports behind which SCTP is looked for (RFC 6951).
    sctp_in_udp: BTreeSet<u16>,
}

/// Routes of one VIP and one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    /// Local number -> rank and byte matches.
    routes: Vec<(u32, Vec<ByteMatch>)>,
    source: Dimension<u128>,
    source_port: Dimension<u16>,
    destination_port: Dimension<u16>,
}

/// Pieces of a number range, and for each the routes that accept it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dimension<K> {
    /// Where each piece begins, sorted; the first at 0.
    starts: Vec<K>,
    /// The set of each piece.
    sets: Vec<Arc<Bits>>,
}

/// A set of small numbers, with a summary: which words are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Bits {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl Classifier {
    /// Sorts and indexes `routes`.
    pub fn new<'a>(routes: impl IntoIterator<Item = (&'a Arc<str>, &'a Route)>) -> Self {
        let mut sorted: Vec<(&Arc<str>, &Route)> = routes.into_iter().collect();
        sorted.sort_by(|(name, route), (other, than)| than.priority.cmp(&route.priority).then_with(|| name.cmp(other)));
        let mut by_vip: BTreeMap<IpAddr, Vec<(u32, &Route)>> = BTreeMap::new();
        for (rank, (_, route)) in (0..).zip(&sorted) {
            for destination in &route.destinations {
                by_vip.entry(destination.addr()).or_default().push((rank, route));
            }
        }
        let vips = by_vip.into_iter().map(|(vip, routes)| (vip, Groups::new(vip, &routes))).collect();
        let sctp_in_udp =
            (0..).zip(&sorted).filter_map(|(rank, (_, route))| Some((rank, route.sctp_in_udp_port?))).collect();
        let translations = sorted.iter().map(|(_, route)| {
            let all = crate::translate::translations(route);
            all.map(|((transport, port), target)| ((number(transport), port), target)).collect()
        });
        let translations = translations.collect();
        let ends = sorted.iter().flat_map(|(_, route)| &route.byte_matches);
        let transport_octets = ends.map(|wanted| wanted.offset.saturating_add(wanted.octets.into())).max();
        Self {
            names: sorted.into_iter().map(|(name, _)| Arc::clone(name)).collect(),
            sctp_in_udp,
            translations,
            vips,
            transport_octets: transport_octets.unwrap_or_default().max(TRANSPORT_OCTETS),
        }
    }

    /// Octets from the transport's header on that some route looks at.
    pub const fn transport_octets(&self) -> u16 {
        self.transport_octets
    }

    /// The names of the routes by rank.
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Whether any route has this VIP.
    pub fn has(&self, vip: IpAddr) -> bool {
        self.groups(vip).is_some()
    }

    /// The ranks of the routes that match a flow, best first. `transport` are the octets from its header on, for byte
    /// matches; `None`: there are none to look at (the packet inside an error, an echo), byte matches are taken as met.
    pub fn matches<'a>(&'a self, flow: &Flow, transport: Option<&'a [u8]>) -> impl Iterator<Item = u32> + use<'a> {
        let found = self.group(flow).and_then(|group| {
            let sets = [
                group.source.find(&bits(flow.source))?,
                group.source_port.find(&flow.source_port)?,
                group.destination_port.find(&flow.destination_port)?,
            ];
            Some((group, Intersection::new(sets)))
        });
        ranks(found, transport)
    }

    /// Whether some route of the VIP looks for SCTP in UDP packets to this port.
    pub fn has_sctp_in_udp(&self, vip: IpAddr, port: u16) -> bool {
        // Mostly nobody does: that is known without the VIP.
        !self.sctp_in_udp.is_empty() && self.groups(vip).is_some_and(|groups| groups.sctp_in_udp.contains(&port))
    }

    /// The UDP port behind which the route of a rank takes SCTP.
    pub fn sctp_in_udp_port(&self, rank: u32) -> Option<u16> {
        self.sctp_in_udp.get(&rank).copied()
    }

    /// The endpoint's port for a port of the VIP, if the route of a rank translates it.
    pub fn translation(&self, rank: u32, protocol: u8, port: u16) -> Option<u16> {
        let translations = self.translations.get(usize::try_from(rank).ok()?)?;
        if translations.is_empty() { None } else { translations.get(&(protocol, port)).copied() }
    }

    /// The ranks of the routes of the flow's VIP and protocol that accept its source, whatever its ports, best first.
    pub fn matches_any_port(&self, flow: &Flow) -> impl Iterator<Item = u32> + use<'_> {
        let found = self.group(flow).and_then(|group| {
            let set = group.source.find(&bits(flow.source))?;
            Some((group, Intersection::new([set; 3])))
        });
        ranks(found, None)
    }

    fn group(&self, flow: &Flow) -> Option<&Group> {
        self.groups(flow.destination).map(|groups| match flow.protocol {
            protocol::TCP => &groups.tcp,
            protocol::UDP => &groups.udp,
            protocol::SCTP => &groups.sctp,
            _ => &groups.echo,
        })
    }

    fn groups(&self, vip: IpAddr) -> Option<&Groups> {
        let place = self.vips.binary_search_by_key(&vip, |(vip, _)| *vip).ok()?;
        self.vips.get(place).map(|(_, groups)| groups)
    }
}

/// The ranks of a group's routes, best first; byte matches are asked of `transport`, without it they are taken as met.
fn ranks<'a>(
    mut found: Option<(&'a Group, Intersection<'a>)>,
    transport: Option<&'a [u8]>,
) -> impl Iterator<Item = u32> + use<'a> {
    std::iter::from_fn(move || {
        let (group, locals) = found.as_mut()?;
        locals.find_map(|local| {
            let (rank, byte_matches) = group.routes.get(local)?;
            let met = |octets| byte_matches.iter().all(|byte_match| is_met(byte_match, octets));
            transport.is_none_or(met).then_some(*rank)
        })
    })
}

/// The number of a protocol.
pub const fn number(transport: TransportProtocol) -> u8 {
    match transport {
        TransportProtocol::Tcp => protocol::TCP,
        TransportProtocol::Udp => protocol::UDP,
        TransportProtocol::Sctp => protocol::SCTP,
    }
}

/// Whether the octets of a transport (of the right protocol: the group's) hold what is wanted.
fn is_met(byte_match: &ByteMatch, transport: &[u8]) -> bool {
    let start = usize::from(byte_match.offset);
    let Some(octets) = transport.get(start..start + usize::from(byte_match.octets)) else { return false };
    let value = octets.iter().fold(0_u32, |value, octet| value << 8 | u32::from(*octet));
    value & byte_match.mask == byte_match.value & byte_match.mask
}

/// An address as a number; the families never meet in one group.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Groups {
    fn new(vip: IpAddr, routes: &[(u32, &Route)]) -> Self {
        let of = |protocol| Group::new(vip, routes, Some(protocol));
        Self {
            tcp: of(TransportProtocol::Tcp),
            udp: of(TransportProtocol::Udp),
            sctp: of(TransportProtocol::Sctp),
            echo: Group::new(vip, routes, None),
            sctp_in_udp: routes.iter().filter_map(|(_, route)| route.sctp_in_udp_port).collect(),
        }
    }
}

/// Any port: what a route means that names none.
const ANY_PORT: (u16, u16) = (0, u16::MAX);

impl Group {
    fn new(vip: IpAddr, routes: &[(u32, &Route)], transport: Option<TransportProtocol>) -> Self {
        let mut group = Self::default();
        let (mut sources, mut source_ports, mut destination_ports) = (Vec::new(), Vec::new(), Vec::new());
        for (rank, route) in routes {
            let Some(accepted) = accepted_sources(vip, &route.sources) else { continue };
            let byte_matches = match transport {
                Some(transport) if !route.protocols.contains(&transport) => continue,
                // A byte match of another protocol cannot be met.
                Some(transport) if route.byte_matches.iter().any(|wanted| wanted.protocol != transport) => continue,
                Some(_) => route.byte_matches.clone(),
                None => Vec::new(),
            };
            let local = group.routes.len();
            group.routes.push((*rank, byte_matches));
            sources.extend(accepted.into_iter().map(|range| (range, local)));
            for (ranges, all) in
                [(&route.source_ports, &mut source_ports), (&route.destination_ports, &mut destination_ports)]
            {
                if ranges.is_empty() || transport.is_none() {
                    all.push((ANY_PORT, local));
                } else {
                    all.extend(ranges.iter().map(|range| (*range, local)));
                }
            }
        }
        let routes = group.routes.len();
        group.source = Dimension::new(routes, &sources, |address| address.checked_add(1));
        group.source_port = Dimension::new(routes, &source_ports, |port| port.checked_add(1));
        group.destination_port = Dimension::new(routes, &destination_ports, |port| port.checked_add(1));
        group
    }
}

/// The ranges of addresses of the VIP's family that a route accepts; `None`: not a single one.
fn accepted_sources(vip: IpAddr, sources: &BTreeSet<IpNet>) -> Option<Vec<(u128, u128)>> {
    if sources.is_empty() {
        return Some(vec![(0, u128::MAX)]);
    }
    let of_family: Vec<(u128, u128)> = sources
        .iter()
        .filter(|source| source.addr().is_ipv4() == vip.is_ipv4())
        .map(|source| (bits(source.network()), bits(source.broadcast())))
        .collect();
    (!of_family.is_empty()).then_some(of_family)
}

impl<K: Copy + Ord + Default> Dimension<K> {
    /// From inclusive ranges, each with a route out of `routes`; `next` is the number after, if there is one.
    fn new(routes: usize, ranges: &[((K, K), usize)], next: impl Fn(K) -> Option<K>) -> Self {
        // At each border: which routes begin (+1) and which end (-1) there. Ranges of one route may overlap: count.
        let mut borders: BTreeMap<K, Vec<(usize, i32)>> = BTreeMap::new();
        borders.entry(K::default()).or_default();
        for ((first, last), route) in ranges {
            borders.entry(*first).or_default().push((*route, 1));
            if let Some(end) = next(*last) {
                borders.entry(end).or_default().push((*route, -1));
            }
        }
        let mut covers = vec![0_i32; routes];
        let mut current = Bits::empty(routes);
        // Equal sets are kept once: a group of many routes is mostly made of few different sets.
        let mut known: BTreeSet<Arc<Bits>> = BTreeSet::new();
        let mut dimension = Self { starts: Vec::new(), sets: Vec::new() };
        for (start, changes) in borders {
            for (route, change) in changes {
                if let Some(count) = covers.get_mut(route) {
                    *count += change;
                    current.set(route, *count > 0);
                }
            }
            let set = known.get(&current).cloned().unwrap_or_else(|| Arc::new(current.clone()));
            known.insert(Arc::clone(&set));
            if dimension.sets.last() != Some(&set) {
                dimension.starts.push(start);
                dimension.sets.push(set);
            }
        }
        dimension
    }

    fn find(&self, key: &K) -> Option<&Bits> {
        let after = self.starts.partition_point(|start| start <= key);
        self.sets.get(after.checked_sub(1)?).map(AsRef::as_ref)
    }
}

impl Bits {
    fn empty(capacity: usize) -> Self {
        let words = capacity.div_ceil(64);
        Self { words: vec![0; words], summary: vec![0; words.div_ceil(64)] }
    }

    fn set(&mut self, number: usize, on: bool) {
        let Some(word) = self.words.get_mut(number / 64) else { return };
        *word = *word & !(1 << (number % 64)) | u64::from(on) << (number % 64);
        let is_used = u64::from(*word != 0);
        let place = number / 64;
        if let Some(summary) = self.summary.get_mut(place / 64) {
            *summary = *summary & !(1 << (place % 64)) | is_used << (place % 64);
        }
    }
}

/// The numbers that are in all three sets, ascending.
struct Intersection<'a> {
    sets: [&'a Bits; 3],
    /// Words that may have more, of the summary word before `next_summary`.
    open_words: u64,
    next_summary: usize,
    /// Bits left in the word `word`.
    open_bits: u64,
    word: usize,
}

impl<'a> Intersection<'a> {
    const fn new(sets: [&'a Bits; 3]) -> Self {
        Self { sets, open_words: 0, next_summary: 0, open_bits: 0, word: 0 }
    }
}

impl Iterator for Intersection<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let [a, b, c] = self.sets;
        while self.open_bits == 0 {
            while self.open_words == 0 {
                let at = self.next_summary;
                self.open_words = a.summary.get(at)? & b.summary.get(at)? & c.summary.get(at)?;
                self.next_summary += 1;
            }
            self.word = (self.next_summary - 1) * 64 + lowest(self.open_words);
            self.open_words &= self.open_words - 1;
            self.open_bits = a.words.get(self.word)? & b.words.get(self.word)? & c.words.get(self.word)?;
        }
        let bit = lowest(self.open_bits);
        self.open_bits &= self.open_bits - 1;
        Some(self.word * 64 + bit)
    }
}

/// The place of the lowest bit that is set.
fn lowest(word: u64) -> usize {
    usize::try_from(word.trailing_zeros()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
