//! The kernel engine: routes, hash and Maglev tables as nftables, so that most packets never come to a queue.
//!
//! Pure: from the routes and the tables of the moment to chains, sets and maps. Rules stand in the order of the routes, so
//! that the first that matches is the best; each ends a packet's way, with the mark of its slot or in the queue:
//!
//! - What nftables can say of a route (VIP, source networks, protocol, ports) and a service with endpoints: a mark.
//! - Byte matches, SCTP in UDP, or nobody to serve it: to the queue, and with it whatever such a route
//!   could take before a later one.
//! - All else of a VIP (echoes, ICMP errors, what no route takes): to the queue.
//!
//! - Fragments of IPv4 and all that has extension headers of IPv6: to the queue, unless the kernel has put fragments together
//!   before. (That costs every packet more than the whole engine does.)
//!
//! The hash is the one of [`crate::hash`]: both engines send a flow to the same endpoint. It is not for everybody: a map of 65537 slots costs 6 MB of kernel memory, rules are walked
//! one by one, and the kernel itself answers what is too big (not as the VIP). What it forwards is counted by route and by
//! endpoint in elements of sets: see [`counts`].

pub mod counts;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use martlet_api::view::{Route, View};
use martlet_netlink::Family;
use martlet_netlink::nft::{Address, Base, Chain, Expression, MetaKey, Queue, Register, Rule, Set, Table};

use crate::engine::{Backend, Tables};
use crate::flow::number as number_of;
use crate::hash::Seed;
use crate::packet::protocol;
use crate::translate::{in_mark, translations};

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
    /// Rules of all chains.
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

/// Routes and tables as chains and maps. What the kernel cannot decide goes to `queue`.
pub fn offload(view: &View, tables: &Tables, queue: Queue) -> Offload {
    let mut made = Offload::default();
    for family in Family::ALL {
        let mut chain = Chain { hook: None, rules: vec![to_queue_first(family, queue)] };
        for (rank, name) in tables.classifier().names().iter().enumerate() {
            let Some(route) = view.routes.get(name) else { continue };
            let backend = tables.backend(rank).filter(|_| is_simple(route) && !tables.policy().nfqlb);
            let way = backend.and_then(|backend| Way::new(family, backend, tables.seed(), &mut made.sets));
            // Before the route as a whole, each of its ports that is another at the endpoint.
            let translated = translations(route).filter(|_| way.is_some()).map(|((transport, port), target)| {
                let protocols = [transport].into();
                let one = Route { protocols, destination_ports: [(port, port)].into(), ..route.clone() };
                (one, Some(target))
            });
            let translated: Vec<(Route, Option<u16>)> = translated.collect();
            for (route, target) in translated.iter().map(|(route, target)| (route, *target)).chain([(route, None)]) {
                for rule in conditions(family, rank, route, &mut made.sets).into_iter().flatten() {
                    chain.rules.push(match &way {
                        Some(way) => way.take(counted(rule, name), target),
                        None => rule.counter().queue(queue),
                    });
                }
            }
        }
        chain.rules.push(Rule::new().counter().queue(queue));
        made.rules += chain.rules.len();
        made.chains.insert(chain_of(family).into(), chain);
    }
    let marks = |backend: &Arc<Backend>| {
        let identifiers = backend.ipv4.identifiers() | backend.ipv6.identifiers();
        identifiers.into_iter().map(|identifier| backend.first_mark + u32::from(identifier)).collect::<Vec<_>>()
    };
    let routes = tables.classifier().names().iter().map(|name| counts::number_of(name)).collect();
    made.sets.insert(counts::ROUTES.into(), Set::Counted(routes));
    made.sets.insert(counts::ENDPOINTS.into(), Set::Counted(tables.services().iter().flat_map(marks).collect()));
    let slots = |set: &Set| match set {
        Set::Marks(marks) => marks.len(),
        _ => 0,
    };
    made.elements = made.sets.values().map(slots).sum();
    made
}

/// Counts a packet for a route: it is always among the counted. By way of the mark, which is set for good later: what the
/// `nft` program can show is a test of a field.
fn counted(rule: Rule, route: &str) -> Rule {
    count_by_mark(rule.set_mark(counts::number_of(route)), counts::ROUTES)
}

fn count_by_mark(rule: Rule, set: &str) -> Rule {
    rule.then(Expression::Meta { key: MetaKey::Mark, to: SCRATCH }).then(Expression::Lookup {
        register: SCRATCH,
        set: set.into(),
        found: true,
    })
}

/// Whether nftables can say all of a route.
fn is_simple(route: &Route) -> bool {
    route.byte_matches.is_empty() && route.sctp_in_udp_port.is_none()
}

/// The beginnings of the rules of a route: one for each protocol and each aligned block of its ports. They match what the
/// route matches, but for what [`is_simple`] says. `None`: nothing of the family.
fn conditions(family: Family, rank: usize, route: &Route, sets: &mut BTreeMap<String, Set>) -> Option<Vec<Rule>> {
    let of_family = |nets: &std::collections::BTreeSet<IpNet>| -> std::collections::BTreeSet<IpNet> {
        nets.iter().filter(|net| Family::of(net) == family).copied().collect()
    };
    let number = if family == Family::Ipv4 { 4 } else { 6 };
    // Last what costs most. The chain has packets of its family only.
    let mut addresses = Vec::new();
    for (what, address, nets) in
        [("vips", Address::Destination, &route.destinations), ("sources", Address::Source, &route.sources)]
    {
        let elements = of_family(nets);
        match (elements.is_empty(), nets.is_empty()) {
            (true, true) => continue,
            (true, false) => return None,
            (false, _) => {}
        }
        let (offset, length) = place_of(family, address);
        addresses.push(Expression::Payload { base: Base::Network, offset, length, to: SCRATCH });
        if let (Address::Destination, 1, Some(vip)) = (address, elements.len(), elements.first()) {
            let value = match vip.addr() {
                IpAddr::V4(vip) => vip.octets().to_vec(),
                IpAddr::V6(vip) => vip.octets().to_vec(),
            };
            addresses.push(Expression::Compare { register: SCRATCH, equal: true, value });
            continue;
        }
        let set = format!("{what}-{rank}-{number}");
        addresses.push(Expression::Lookup { register: SCRATCH, set: set.clone(), found: true });
        let elements = match address {
            Address::Source => Set::Prefixes { family, elements },
            Address::Destination => Set::Addresses { family, elements: elements.iter().map(IpNet::addr).collect() },
        };
        sets.insert(set, elements);
    }
    let whole = |rule: Rule| Rule(rule.0.into_iter().chain(addresses.iter().cloned()).collect());
    let mut rules = Vec::new();
    for transport in &route.protocols {
        let of_protocol = next_header(Rule::new(), family, number_of(*transport), true);
        for source in blocks(&route.source_ports) {
            for destination in blocks(&route.destination_ports) {
                rules.push(whole(port(port(of_protocol.clone(), 2, destination), 0, source)));
            }
        }
    }
    if let Some(port_of_udp) = route.sctp_in_udp_port {
        let udp = next_header(Rule::new(), family, protocol::UDP, true);
        rules.push(whole(port(udp, 2, (port_of_udp, u16::MAX))));
    }
    Some(rules)
}

/// Where an address stands in the IP header, and how long it is.
const fn place_of(family: Family, address: Address) -> (u32, u32) {
    match (family, address) {
        (Family::Ipv4, Address::Source) => (12, 4),
        (Family::Ipv4, Address::Destination) => (16, 4),
        (Family::Ipv6, Address::Source) => (8, 16),
        (Family::Ipv6, Address::Destination) => (24, 16),
    }
}

/// Goes on when the IP header says that this comes next: in IPv6 that excludes extension headers, of which a fragment's is one.
fn next_header(rule: Rule, family: Family, number: u8, equal: bool) -> Rule {
    let offset = if family == Family::Ipv4 { 9 } else { 6 };
    rule.then(Expression::Payload { base: Base::Network, offset, length: 1, to: SCRATCH }).then(Expression::Compare {
        register: SCRATCH,
        equal,
        value: vec![number],
    })
}

/// What the routes' rules must not see, to the queue: IPv4 fragments, and whatever has IPv6 extension headers.
fn to_queue_first(family: Family, queue: Queue) -> Rule {
    match family {
        Family::Ipv4 => {
            let (mask, xor) = (vec![0x3f, 0xff], vec![0, 0]);
            Rule::new()
                .then(Expression::Payload { base: Base::Network, offset: 6, length: 2, to: SCRATCH })
                .then(Expression::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor })
                .then(Expression::Compare { register: SCRATCH, equal: false, value: vec![0, 0] })
        }
        Family::Ipv6 => [protocol::TCP, protocol::UDP, protocol::SCTP]
            .into_iter()
            .fold(Rule::new(), |rule, number| next_header(rule, family, number, false)),
    }
    .counter()
    .queue(queue)
}

/// Port ranges as aligned powers of two: the first port and the mask. No range: any port.
fn blocks(ranges: &std::collections::BTreeSet<(u16, u16)>) -> Vec<(u16, u16)> {
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

/// Goes on when the port at `offset` of the transport's header lies in the block.
fn port(rule: Rule, offset: u32, (first, mask): (u16, u16)) -> Rule {
    if mask == 0 {
        return rule;
    }
    let rule = rule.then(Expression::Payload { base: Base::Transport, offset, length: 2, to: SCRATCH });
    let rule = if mask == u16::MAX {
        rule
    } else {
        let (mask, xor) = (mask.to_be_bytes().to_vec(), vec![0, 0]);
        rule.then(Expression::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor })
    };
    rule.then(Expression::Compare { register: SCRATCH, equal: true, value: first.to_be_bytes().to_vec() })
}

/// From a flow to the mark of its endpoint.
struct Way {
    family: Family,
    modulus: u32,
    seed: Seed,
    map: String,
}

impl Way {
    /// By the table of a service; `None`: it has no endpoint of the family.
    fn new(family: Family, backend: &Backend, seed: Seed, sets: &mut BTreeMap<String, Set>) -> Option<Self> {
        let any = match family {
            Family::Ipv4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Family::Ipv6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let table = backend.table(any);
        if table.identifiers().is_empty() {
            return None;
        }
        let modulus = table.size().slots();
        // A table that both families share is one map.
        let number = if family == Family::Ipv6 && !Arc::ptr_eq(&backend.ipv4, &backend.ipv6) { "-6" } else { "" };
        let map = format!("slots-{}-{modulus}{number}", backend.first_mark);
        sets.entry(map.clone()).or_insert_with(|| {
            Set::Marks(table.slots().iter().map(|identifier| backend.first_mark + u32::from(*identifier)).collect())
        });
        Some(Self { family, modulus, seed, map })
    }

    /// The words of [`crate::hash`], their hash, its slot, its mark; and with it the endpoint's port, if it is another.
    fn take(&self, mut rule: Rule, target_port: Option<u16>) -> Rule {
        let (registers, length, places) = match self.family {
            Family::Ipv4 => (1, 4, [12, 16]),
            Family::Ipv6 => (4, 16, [8, 24]),
        };
        let mut next = 0;
        for (offset, port) in places.into_iter().zip([0, 2]) {
            rule = rule.then(Expression::Payload { base: Base::Network, offset, length, to: Register(next) });
            next += registers;
            rule =
                rule.then(Expression::Payload { base: Base::Transport, offset: port, length: 2, to: Register(next) });
            next += 1;
        }
        let length = u32::from(next + 1) * 4;
        let hash = Expression::Hash { from: SCRATCH, length, modulus: self.modulus, seed: self.seed.0, to: SCRATCH };
        rule = rule
            .then(Expression::Meta { key: MetaKey::Protocol, to: Register(next) })
            .then(hash)
            .then(Expression::Map { register: SCRATCH, map: self.map.clone(), to: SCRATCH })
            .then(Expression::SetMark { from: SCRATCH });
        rule = count_by_mark(rule, counts::ENDPOINTS);
        if let Some(port) = target_port {
            let (mask, xor) = (vec![0xff; 4], in_mark(port).to_ne_bytes().to_vec());
            rule = rule.then(Expression::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor });
            rule = rule.then(Expression::SetMark { from: SCRATCH });
        }
        rule.accept()
    }
}

#[cfg(test)]
mod tests;
