//! The kernel engine: routes, hash and Maglev tables as nftables, so that most packets never come to a queue.
//!
//! Pure: from the routes and the tables of the moment to chains, sets and maps. Rules stand in the order of the routes, so
//! that the first that matches is the best; each ends a packet's way, with the mark of its slot or in the queue:
//!
//! - What nftables can say of a route (VIP, source networks, protocol, ports) and a service with endpoints: a mark.
//! - Byte matches, SCTP in UDP, or nobody to serve it: to the queue, and with it whatever such a route
//!   could take before a later one.
//! - An ICMP error about a plain packet of such a flow: the mark of the flow, by the same rules over what it quotes.
//! - All else of a VIP (echoes, other ICMP errors, what no route takes): to the queue.
//!
//! - Fragments of IPv4 and all that has extension headers of IPv6: to the queue, unless the kernel has put fragments together
//!   before. (That costs every packet more than the whole engine does.)
//!
//! - What is longer than a link to endpoints takes, where such packets can come: to the queue, which answers as the VIP.
//!
//! The hash is the one of [`crate::hash`]: both engines send a flow to the same endpoint. It is not for everybody: rules are
//! walked one by one, and tables take kernel memory. What it forwards is counted by route and by endpoint in elements of sets:
//! see [`counts`]. Most packets do not even come so far: see [`ingress()`].

pub mod counts;
mod ingress;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use martlet_api::view::{Route, View};
use martlet_netlink::nft::{Base, Chain, Expression, MetaKey, Queue, Register, Rule, Set, Table};
use martlet_netlink::{Family, Link};

pub use ingress::{ingress, ways_of};

use crate::engine::{Backend, Tables};
use crate::flow::number as number_of;
use crate::packet::protocol;
use crate::targets::Hop;
use crate::translate::{Place, in_mark, load, test, translations};
use way::Way;

/// Elements of all maps together; more is for the queue.
pub const MOST_ELEMENTS: usize = 2_000_000;
/// Rules that a packet may have to walk.
pub const MOST_RULES: usize = 512;

/// Which engine an operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Every packet comes to a queue.
    #[default]
    Queue,
    /// The kernel decides what it can.
    Kernel,
    /// The kernel, if that is not too much for it.
    Auto,
}

impl std::str::FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "queue" => Ok(Self::Queue),
            "kernel" => Ok(Self::Kernel),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("engine {text:?}: must be queue, kernel or auto")),
        }
    }
}

/// What the kernel is to hold for its engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The chain of each family, to be entered with packets to VIPs; each packet leaves it marked or in a queue.
    pub chains: BTreeMap<String, Chain>,
    /// What the chains look up.
    pub sets: BTreeMap<String, Set>,
    /// Elements of all maps.
    pub elements: usize,
    /// Rules that a flow may have to walk, of both families. (Errors have as many of their own.)
    pub rules: usize,
}

impl Offload {
    /// Why this is too much for a kernel; `None`: it is not.
    pub fn excess(&self) -> Option<String> {
        match self {
            Self { elements, .. } if *elements > MOST_ELEMENTS => {
                Some(format!("the Maglev tables have {elements} slots together, more than {MOST_ELEMENTS}"))
            }
            Self { rules, .. } if *rules > MOST_RULES => {
                Some(format!("the routes take {rules} rules of nftables, more than {MOST_RULES}"))
            }
            _ => None,
        }
    }

    /// The name of the chains that give a packet the mark of its endpoint, and with it the endpoint's port, if it is another.
    fn end(&mut self, way: &Way, target: Option<u16>) -> String {
        let ends = format!("{}{}", way.map, target.map_or_else(String::new, |port| format!("-to-{port}")));
        way.end(&ends, &mut self.sets, &mut self.chains, |rule, mark| marked(rule, mark, target))
    }

    /// Adds sets and chains to `table`.
    pub fn put_into(self, table: &mut Table) {
        table.sets.extend(self.sets);
        table.chains.extend(self.chains);
    }
}

/// The name of the chain of a family.
pub const fn chain_of(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "flows-4",
        Family::Ipv6 => "flows-6",
    }
}

/// The chain of what is neither TCP, UDP nor SCTP, and the set of VIPs that errors quote.
const fn names_of(family: Family) -> [&'static str; 2] {
    match family {
        Family::Ipv4 => ["others-4", "quoted-4"],
        Family::Ipv6 => ["others-6", "quoted-6"],
    }
}

/// The chain of ICMP errors.
const fn errors_of(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "errors-4",
        Family::Ipv6 => "errors-6",
    }
}

/// What fits through the links to all of `hops`, if longer packets can come by another link.
pub fn limit(hops: &BTreeSet<Hop>, links: &BTreeMap<u32, Link>) -> Option<u32> {
    let out = hops.iter().map(|hop| hop.interface).collect();
    let (room, mut others) = beside(&out, links)?;
    others.any(|link| link.mtu > room).then_some(room)
}

/// What fits through all links of `out`, and the other links.
fn beside<'a>(out: &BTreeSet<u32>, links: &'a BTreeMap<u32, Link>) -> Option<(u32, impl Iterator<Item = &'a Link>)> {
    let room = out.iter().filter_map(|index| Some(links.get(index)?.mtu)).min()?;
    let others = links.values().filter(move |link| !out.contains(&link.index) && &*link.name != LOOPBACK);
    Some((room, others))
}

/// It is no way in.
const LOOPBACK: &str = "lo";

/// Routes and tables as chains and maps. What the kernel cannot decide goes to `queue`, and what is longer than `limit`: who
/// sent it shall hear of that from the VIP.
pub fn offload(view: &View, tables: &Tables, queue: Queue, limit: Option<u32>) -> Offload {
    let mut made = Offload::default();
    let shared = counts::counted(tables);
    for family in Family::ALL {
        let layouts @ [of_packet, of_quoted] = [Layout::packet(family), Layout::quoted(family)];
        let mut rules: [Vec<Rule>; 2] = Default::default();
        for (rank, name) in tables.classifier().names().iter().enumerate() {
            let Some(route) = view.routes.get(name) else { continue };
            let way = way(family, tables, rank, route, &mut made.sets);
            // Before the route as a whole, each of its ports that is another at the endpoint.
            let translated = translated(route).filter(|_| way.is_some()).map(|(route, target)| (route, Some(target)));
            for (route, target) in translated.chain([(route.clone(), None)]) {
                let way = way.as_ref().map(|way| (way, made.end(way, target)));
                for (layout, rules) in layouts.iter().zip(&mut rules) {
                    for rule in conditions(layout, rank, &route, &view.vips, &mut made.sets).into_iter().flatten() {
                        rules.push(match &way {
                            Some((way, ends)) => way.take(layout, counted(rule, name, &shared), ends),
                            None => rule.counter().queue(queue),
                        });
                    }
                }
            }
        }
        let [flows, errors] = rules;
        let (chain, [others, quotes]) = (chain_of(family), names_of(family));
        let (rest, to_others) = (Rule::new().counter().queue(queue), Expression::Goto(others.into()));
        let flows: Vec<Rule> = match family {
            Family::Ipv4 => [fragment().counter().queue(queue)].into_iter().chain(flows).collect(),
            Family::Ipv6 => [no_transport(of_packet).then(to_others.clone())].into_iter().chain(flows).collect(),
        };
        let too_long = limit.and_then(|limit| longer_than(limit, family)).map(|rule| rule.counter().queue(queue));
        let flows: Vec<Rule> = too_long.into_iter().chain(flows).collect();
        made.rules += flows.len() + 1;
        let vips = pairs(view.vips.iter().map(IpNet::addr).filter(|vip| vip.is_ipv4() == (family == Family::Ipv4)));
        made.sets.insert(quotes.into(), vips);
        let is_plain = plain_errors(of_packet, of_quoted, quotes);
        let to_errors = Expression::Goto(errors_of(family).into());
        let is_plain = is_plain.into_iter().map(|rule| rule.then(to_errors.clone())).chain([rest.clone()]);
        for (name, rules) in [
            (others, is_plain.collect()),
            (errors_of(family), errors.into_iter().chain([rest]).collect()),
            (chain, flows.into_iter().chain([Rule::new().then(to_others)]).collect()),
        ] {
            made.chains.insert(name.into(), Chain { hook: None, rules });
        }
    }
    let marks = |backend: &Arc<Backend>| {
        let identifiers = backend.ipv4.identifiers() | backend.ipv6.identifiers();
        identifiers.into_iter().map(|identifier| backend.first_mark + u32::from(identifier)).collect::<Vec<_>>()
    };
    made.sets.insert(counts::ROUTES.into(), routes(&shared));
    made.sets.insert(counts::ENDPOINTS.into(), Set::Counted(tables.services().iter().flat_map(marks).collect()));
    let slots = |set: &Set| match set {
        Set::Marks(marks) => marks.len(),
        _ => 0,
    };
    made.elements = made.sets.values().map(slots).sum();
    made
}

/// The way of what a route takes, if nftables can say all of it and there is an endpoint.
fn way(family: Family, tables: &Tables, rank: usize, route: &Route, sets: &mut BTreeMap<String, Set>) -> Option<Way> {
    let backend = tables.backend(rank).filter(|_| is_simple(route) && !tables.policy().nfqlb)?;
    Way::new(family, backend, tables.seed(), sets)
}

/// The part of a route that is of a port that is another at the endpoint, and that port.
fn translated(route: &Route) -> impl Iterator<Item = (Route, u16)> {
    translations(route).map(|((transport, port), target)| {
        let protocols = [transport].into();
        (Route { protocols, destination_ports: [(port, port)].into(), ..route.clone() }, target)
    })
}

/// The set of the routes that are counted.
fn routes(shared: &BTreeSet<&Arc<str>>) -> Set {
    Set::Counted(shared.iter().map(|name| counts::number_of(name)).collect())
}

/// Counts a packet for a route that shares its service. By way of the mark, which is set for good later: what the `nft`
/// program can show is a test of a field.
fn counted(rule: Rule, route: &Arc<str>, shared: &BTreeSet<&Arc<str>>) -> Rule {
    if !shared.contains(route) {
        return rule;
    }
    rule.set_mark(counts::number_of(route))
        .then(Expression::Meta { key: MetaKey::Mark, to: SCRATCH })
        .then(count(SCRATCH, counts::ROUTES))
}

fn count(register: Register, set: &str) -> Expression {
    Expression::Lookup { register, set: set.into(), found: true }
}

/// Counts a packet with its endpoint's mark, gives it that, and lets it go on.
fn marked(rule: Rule, mark: Register, target: Option<u16>) -> Rule {
    let mut rule = rule.then(count(mark, counts::ENDPOINTS));
    if let Some(port) = target {
        let xor = in_mark(port).to_ne_bytes().to_vec();
        rule = rule.then(Expression::Bitwise { from: mark, to: mark, mask: vec![0xff; 4], xor });
    }
    rule.then(Expression::SetMark { from: mark }).accept()
}

/// Whether nftables can say all of a route.
fn is_simple(route: &Route) -> bool {
    route.byte_matches.is_empty() && route.sctp_in_udp_port.is_none()
}

/// The beginnings of the rules of a route: one for each protocol and each aligned block of its ports. Of packets to `vips`
/// they match what the route matches, but for what [`is_simple`] says. `None`: nothing of the family.
fn conditions(
    layout: &Layout,
    rank: usize,
    route: &Route,
    vips: &BTreeSet<IpNet>,
    sets: &mut BTreeMap<String, Set>,
) -> Option<Vec<Rule>> {
    let family = layout.family;
    let of_family = |nets: &BTreeSet<IpNet>| -> BTreeSet<IpNet> {
        nets.iter().filter(|net| Family::of(net) == family).copied().collect()
    };
    let number = if family == Family::Ipv4 { 4 } else { 6 };
    // Last what costs most. The chain has packets of its family only.
    let mut addresses = Vec::new();
    for (what, place, nets) in [("vips", layout.vip, &route.destinations), ("sources", layout.client, &route.sources)] {
        let elements = of_family(nets);
        match (elements.is_empty(), nets.is_empty()) {
            (true, true) => continue,
            (true, false) => return None,
            (false, _) => {}
        }
        if what == "vips" && of_family(vips).is_subset(&elements) {
            continue;
        }
        addresses.push(layout.address(place, SCRATCH));
        let set = format!("{what}-{rank}-{number}");
        addresses.push(if what == "vips" {
            one_of(family, elements.iter().map(IpNet::addr).collect(), &set, sets)
        } else {
            sets.insert(set.clone(), Set::Prefixes { family, elements });
            Expression::Lookup { register: SCRATCH, set, found: true }
        });
    }
    let whole = |rule: Rule| Rule(rule.0.into_iter().chain(addresses.iter().cloned()).collect());
    let mut rules = Vec::new();
    for transport in &route.protocols {
        let of_protocol = layout.next_header(Rule::new(), number_of(*transport), true);
        for source in blocks(&route.source_ports) {
            for destination in blocks(&route.destination_ports) {
                let rule = port(of_protocol.clone(), layout.vip_port, destination);
                rules.push(whole(port(rule, layout.client_port, source)));
            }
        }
    }
    if let Some(port_of_udp) = route.sctp_in_udp_port {
        let udp = layout.next_header(Rule::new(), protocol::UDP, true);
        rules.push(whole(port(udp, layout.vip_port, (port_of_udp, u16::MAX))));
    }
    Some(rules)
}

/// Goes on when the register is one of these addresses; they become a set, unless there is only one.
fn one_of(family: Family, elements: BTreeSet<IpAddr>, set: &str, sets: &mut BTreeMap<String, Set>) -> Expression {
    if let (1, Some(only)) = (elements.len(), elements.first()) {
        return Expression::Compare { register: SCRATCH, equal: true, value: octets(*only) };
    }
    sets.insert(set.to_owned(), Set::Addresses { family, elements });
    Expression::Lookup { register: SCRATCH, set: set.to_owned(), found: true }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Octets of an ICMP header.
const ICMP_HEADER: u32 = 8;

/// Where the parts of a flow to a VIP stand.
#[derive(Clone, Copy)]
struct Layout {
    family: Family,
    client: Place,
    vip: Place,
    client_port: Place,
    vip_port: Place,
    protocol: Place,
}

impl Layout {
    /// In a packet of the flow.
    const fn packet(family: Family) -> Self {
        let (client, vip, protocol) = match family {
            Family::Ipv4 => (12, 16, 9),
            Family::Ipv6 => (8, 24, 6),
        };
        Self {
            family,
            client: (Base::Network, client),
            vip: (Base::Network, vip),
            client_port: (Base::Transport, 0),
            vip_port: (Base::Transport, 2),
            protocol: (Base::Network, protocol),
        }
    }

    /// In an ICMP error about a packet that the endpoint sent, so that its source is the VIP; an IP header without options
    /// or extension headers.
    const fn quoted(family: Family) -> Self {
        let (vip, client, protocol, header) = match family {
            Family::Ipv4 => (12, 16, 9, 20),
            Family::Ipv6 => (8, 24, 6, 40),
        };
        Self {
            family,
            client: (Base::Transport, ICMP_HEADER + client),
            vip: (Base::Transport, ICMP_HEADER + vip),
            client_port: (Base::Transport, ICMP_HEADER + header + 2),
            vip_port: (Base::Transport, ICMP_HEADER + header),
            protocol: (Base::Transport, ICMP_HEADER + protocol),
        }
    }

    /// Octets and registers of an address.
    const fn sizes(&self) -> (u32, u8) {
        match self.family {
            Family::Ipv4 => (4, 1),
            Family::Ipv6 => (16, 4),
        }
    }

    /// Loads an address.
    const fn address(&self, place: Place, to: Register) -> Expression {
        load(place, self.sizes().0, to)
    }

    /// Goes on when the IP header says that this comes next: in IPv6 that excludes extension headers, of which a fragment's
    /// is one.
    fn next_header(&self, rule: Rule, number: u8, equal: bool) -> Rule {
        let is_it = Expression::Compare { register: SCRATCH, equal, value: vec![number] };
        rule.then(load(self.protocol, 1, SCRATCH)).then(is_it)
    }
}

/// "More fragments" and the offset of an IPv4 header.
const FRAGMENT: [u8; 2] = [0x3f, 0xff];

/// Goes on with fragments of IPv4.
fn fragment() -> Rule {
    test(Rule::new(), (Base::Network, 6), &FRAGMENT, false, &[0; 2])
}

/// Goes on with packets of more octets; `None`: there are none.
fn longer_than(limit: u32, family: Family) -> Option<Rule> {
    // IPv6 does not count its own header.
    let (offset, header) = if family == Family::Ipv4 { (2, 0) } else { (4, 40) };
    let value = u16::try_from((limit + 1).saturating_sub(header)).ok()?.to_be_bytes().to_vec();
    let rule = Rule::new().then(load((Base::Network, offset), 2, SCRATCH));
    Some(rule.then(Expression::AtLeast { register: SCRATCH, value }))
}

/// Goes on with whatever has extension headers, and with `ICMPv6`.
fn no_transport(layout: Layout) -> Rule {
    let all = [protocol::TCP, protocol::UDP, protocol::SCTP].into_iter();
    all.fold(Rule::new(), |rule, number| layout.next_header(rule, number, false))
}

/// Each VIP beside itself: what nftables can say of "equal".
fn pairs(vips: impl Iterator<Item = IpAddr> + Clone) -> Set {
    let key = vips.clone().next().map_or(8, |vip| if vip.is_ipv4() { 8 } else { 32 });
    let elements = vips.map(|vip| (octets(vip).repeat(2), vec![0; 4])).collect();
    Set::Map { key, value: 4, elements }
}

/// Goes on with ICMP errors that quote a packet from the VIP that they are sent to, where the ports stand at a known place.
fn plain_errors(packet: Layout, quoted: Layout, pairs: &str) -> Vec<Rule> {
    let kind = (Base::Transport, 0);
    let errors: Vec<Rule> = match packet.family {
        Family::Ipv4 => [3, 4, 5, 11, 12]
            .into_iter()
            .map(|number| {
                let rule = packet.next_header(Rule::new(), protocol::ICMP, true);
                let rule = test(rule, kind, &[0xff], true, &[number]);
                let rule = test(rule, (Base::Transport, ICMP_HEADER), &[0xff], true, &[0x45]);
                test(rule, (Base::Transport, ICMP_HEADER + 6), &FRAGMENT, true, &[0; 2])
            })
            .collect(),
        // Errors are below 128.
        Family::Ipv6 => {
            let rule = packet.next_header(Rule::new(), protocol::ICMPV6, true);
            let rule = test(rule, kind, &[0x80], true, &[0]);
            vec![test(rule, (Base::Transport, ICMP_HEADER), &[0xf0], true, &[0x60])]
        }
    };
    let second = Register(packet.sizes().1);
    let are_equal =
        |rule: Rule| {
            rule.then(packet.address(packet.vip, SCRATCH))
                .then(quoted.address(quoted.vip, second))
                .then(Expression::Map { register: SCRATCH, map: pairs.into(), to: SCRATCH })
        };
    errors.into_iter().map(are_equal).collect()
}

/// Port ranges as aligned powers of two: the first port and the mask. No range: any port.
fn blocks(ranges: &BTreeSet<(u16, u16)>) -> Vec<(u16, u16)> {
    if ranges.is_empty() {
        return vec![(0, 0)];
    }
    let mut blocks = Vec::new();
    for (first, last) in ranges {
        let (mut next, end) = (u32::from(*first), u32::from(*last) + 1);
        while next < end {
            let bits = next.trailing_zeros().min((end - next).ilog2()).min(16);
            let mask = u16::try_from(0xffff_u32 << bits & 0xffff).unwrap_or_default();
            blocks.push((u16::try_from(next).unwrap_or_default(), mask));
            next += 1 << bits;
        }
    }
    blocks
}

const SCRATCH: Register = Register(0);

/// Goes on when the port at a place lies in the block.
fn port(rule: Rule, place: Place, (first, mask): (u16, u16)) -> Rule {
    match mask {
        0 => rule,
        u16::MAX => {
            let is_it = Expression::Compare { register: SCRATCH, equal: true, value: first.to_be_bytes().to_vec() };
            rule.then(load(place, 2, SCRATCH)).then(is_it)
        }
        _ => test(rule, place, &mask.to_be_bytes(), true, &first.to_be_bytes()),
    }
}

#[cfg(test)]
mod tests;
