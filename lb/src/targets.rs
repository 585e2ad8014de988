//! From a view of the objects and the links of the machine to what packets and kernel are told: tables, marks, next hops.
//!
//! Identifiers are per Service, marks are per pod: each Service owns a block of marks, `first mark + identifier`, as long
//! as it may have endpoints. The first Service by name of a new process begins at 5000, so that with one Service the mark
//! is `5000 + identifier`, and so is the table (but see [`table`](crate::rules::table)). A mark says nothing to another
//! pod: only the choice of the endpoint is a contract between replicas. A block stays where it is while its Service
//! exists, and is given to another one step after that at the earliest, so that no packet in flight can reach a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use martlet_api::view::{Endpoint, Service, View};
use martlet_netlink::Link;

use crate::direct;
use crate::engine::{Backend, FIRST_MARK, Policy, Tables};
use crate::flow::Classifier;
use crate::hash::Seed;
use crate::maglev::{Permutation, Size, Table};
use crate::nfqlb;

/// Marks and tables end here (the agent's tables begin).
pub const END_OF_MARKS: u32 = 50_000;

/// Consecutive marks of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The mark of identifier 0.
    pub first: u32,
    /// How many.
    pub size: u32,
}

impl Block {
    /// The mark after the last.
    pub const fn end(self) -> u32 {
        self.first + self.size
    }
}

/// Which Service has which marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    blocks: BTreeMap<Arc<str>, Block>,
    /// Given back at the last step: not to be used in this one.
    resting: Vec<Block>,
}

impl Marks {
    /// Gives each Service its block; one that finds no room has none.
    pub fn assign(&mut self, services: &BTreeMap<Arc<str>, Service>) {
        let rested = std::mem::take(&mut self.resting);
        let fits = |name: &Arc<str>, block: &Block| services.get(name).is_some_and(|s| s.max_endpoints <= block.size);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.blocks).into_iter().partition(|(name, block)| fits(name, block));
        self.blocks = kept;
        self.resting = gone.into_values().collect();
        for (name, service) in services {
            if self.blocks.contains_key(name) {
                continue;
            }
            let mut taken: Vec<Block> = self.blocks.values().chain(&self.resting).chain(&rested).copied().collect();
            taken.sort();
            if let Some(block) = first_gap(&taken, service.max_endpoints.max(1)) {
                self.blocks.insert(Arc::clone(name), block);
            }
        }
    }

    /// The block of a Service.
    pub fn of(&self, service: &str) -> Option<Block> {
        self.blocks.get(service).copied()
    }

    /// The mark after the last that is in use.
    pub fn end(&self) -> u32 {
        self.blocks.values().map(|block| block.end()).max().unwrap_or(FIRST_MARK)
    }
}

/// The first place for `size` marks between blocks that are sorted.
fn first_gap(taken: &[Block], size: u32) -> Option<Block> {
    let mut first = FIRST_MARK;
    for block in taken {
        if block.first >= first.checked_add(size)? {
            break;
        }
        first = first.max(block.end());
    }
    (first.checked_add(size)? <= END_OF_MARKS).then_some(Block { first, size })
}

/// An endpoint's address and the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// Its mark.
    pub mark: u32,
    /// The endpoint.
    pub address: IpAddr,
    /// The index of the interface.
    pub interface: u32,
    /// No address of the interface says that the endpoint is on its link.
    pub onlink: bool,
}

/// What is made of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// What packets are asked against.
    pub tables: Arc<Tables>,
    /// A way to each endpoint, by mark and family.
    pub hops: BTreeSet<Hop>,
    /// The mark after the last block.
    pub end_of_marks: u32,
    /// The VIPs of all routes.
    pub vips: BTreeSet<IpNet>,
    /// What cannot be served, for a human.
    pub complaints: BTreeSet<String>,
    /// The link that endpoints are reached by directly: see [`crate::direct`].
    pub direct: Option<u32>,
    /// Maglev tables have this part of the size that they would have; 1, or 0 before the first view: all of it.
    pub part: u32,
}

impl Targets {
    /// The way of packets of a mark to an address of the family of `vip`.
    pub fn hop(&self, mark: u32, vip: IpAddr) -> Option<&Hop> {
        let lowest: IpAddr = if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let next = self.hops.range(Hop { mark, address: lowest, interface: 0, onlink: false }..).next();
        next.filter(|hop| hop.mark == mark && hop.address.is_ipv4() == vip.is_ipv4())
    }
}

/// How to look at a view.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The interface to the endpoints; `None`: whichever has an address of their network.
    pub internal_interface: Option<Arc<str>>,
    /// What the operator chose.
    pub policy: Policy,
    /// Addresses of endpoints that do not answer on their link: no new flows for them.
    pub dead: BTreeSet<IpAddr>,
    /// See [`direct::link`].
    pub direct_from: Option<usize>,
    /// The size of all Maglev tables; `None`: by the most endpoints that a Service may have.
    pub size: Option<Size>,
    /// Slots that all tables together should not exceed, for which they may be made smaller.
    pub most_slots: Option<usize>,
}

/// A table is made smaller by this at most: a hundred slots for each endpoint remain, as the paper wants it.
const SMALLEST_PART: u32 = 6;

/// By how much tables must be smaller, so that those of `services`, one a family, have at most so many slots together; 1 if
/// nothing helps. From what all replicas know alike: not from which endpoints are ready.
fn part(services: &BTreeMap<Arc<str>, Service>, most: usize) -> u32 {
    let slots = |part: &u32| {
        let of = |service: &Service| Size::part_for_endpoints(service.max_endpoints, *part).slots();
        services.values().map(|service| 2 * usize::try_from(of(service)).unwrap_or(usize::MAX / 2)).sum::<usize>()
    };
    (1..=SMALLEST_PART).find(|part| slots(part) <= most).unwrap_or(1)
}

/// What packets and kernel are to be told of `view`. Maglev tables that are as in `before` are taken from there.
pub fn targets(
    view: &View,
    links: &BTreeMap<u32, Link>,
    marks: &mut Marks,
    settings: &Settings,
    before: &Tables,
) -> Targets {
    marks.assign(&view.services);
    let seed = Seed::of_gateway(&view.gateway.namespace, &view.gateway.name);
    let part = settings.most_slots.map_or(1, |most| part(&view.services, most));
    let mut made = Targets { end_of_marks: marks.end(), vips: view.vips.clone(), part, ..Targets::default() };
    let mut backends: BTreeMap<&str, Arc<Backend>> = BTreeMap::new();
    for (name, service) in &view.services {
        let Some(block) = marks.of(name) else {
            made.complaints.insert(format!(
                "Service {name}: {} endpoints do not fit into what is left of marks {FIRST_MARK} to {END_OF_MARKS}",
                service.max_endpoints
            ));
            continue;
        };
        let mut members: [BTreeSet<u16>; 2] = Default::default();
        for (identifier, endpoint) in &service.endpoints {
            let Some(short) = u16::try_from(*identifier).ok().filter(|_| *identifier < service.max_endpoints) else {
                made.complaints.insert(format!("Service {name}: identifier {identifier} is too large"));
                continue;
            };
            for address in addresses(endpoint) {
                match way(address, block.first + identifier, links, settings) {
                    // A route is kept as long as the endpoint answers; new flows go to ready ones only.
                    Some(hop) if endpoint.ready || endpoint.serving => {
                        made.hops.insert(hop);
                        let [ipv4, ipv6] = &mut members;
                        let of_family = if address.is_ipv4() { ipv4 } else { ipv6 };
                        if endpoint.ready && !settings.dead.contains(&address) {
                            of_family.insert(short);
                        }
                    }
                    Some(_) => {}
                    None => {
                        made.complaints.insert(format!("Service {name}: no interface leads to endpoint {address}"));
                    }
                }
            }
        }
        let (size, permutation) = if settings.policy.nfqlb {
            let Some(size) = nfqlb::slots(service.max_endpoints).and_then(|slots| Size::new(slots).ok()) else {
                let most = service.max_endpoints;
                made.complaints.insert(format!("Service {name}: nfqlb has no table for {most} endpoints"));
                continue;
            };
            (size, Permutation::Nfqlb)
        } else {
            let by_default = || Size::part_for_endpoints(service.max_endpoints, part);
            (settings.size.unwrap_or_else(by_default), Permutation::Seeded(seed))
        };
        let [ipv4, ipv6] = members;
        let ipv4 = table(before, size, permutation, ipv4, None);
        let ipv6 = table(before, size, permutation, ipv6, Some(&ipv4));
        let backend = Backend { service: Arc::clone(name), first_mark: block.first, marks: block.size, ipv4, ipv6 };
        backends.insert(name, Arc::new(backend));
    }
    made.direct = direct::link(&made.hops, made.end_of_marks, settings.direct_from);
    let classifier = Classifier::new(&view.routes);
    let of_route = |name| view.routes.get(name).and_then(|route| backends.get(&*route.backend)).map(Arc::clone);
    let by_rank = classifier.names().iter().map(of_route).collect();
    let mtus = mtus(&made.hops, links);
    let smallest = mtus.iter().copied().filter(|mtu| *mtu > 0).min();
    let is_outside = |link: &&Link| !made.hops.iter().any(|hop| hop.interface == link.index) && &*link.name != "lo";
    let largest = links.values().filter(is_outside).map(|link| link.mtu).max();
    let tables = Tables::new(seed, classifier, by_rank).with(mtus, settings.policy);
    made.tables = Arc::new(tables.with_segments(smallest < largest && smallest.is_some()));
    made
}

/// What fits through the links, by mark less the first; 0: unknown, or no such mark. Both families of an endpoint have the
/// smaller one.
fn mtus(hops: &BTreeSet<Hop>, links: &BTreeMap<u32, Link>) -> Vec<u32> {
    let mut mtus = Vec::new();
    for hop in hops {
        let Some(link) = links.get(&hop.interface) else { continue };
        let number = usize::try_from(hop.mark - FIRST_MARK).unwrap_or_default();
        if mtus.len() <= number {
            mtus.resize(number + 1, 0);
        }
        if let Some(mtu) = mtus.get_mut(number) {
            *mtu = if *mtu == 0 { link.mtu } else { link.mtu.min(*mtu) };
        }
    }
    mtus
}

/// The addresses of an endpoint.
fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    endpoint.ipv4.map(IpAddr::from).into_iter().chain(endpoint.ipv6.map(IpAddr::from))
}

/// The table of these endpoints: `twin` if it is the same, one of `before` if it is the same, else a new one.
fn table(
    before: &Tables,
    size: Size,
    permutation: Permutation,
    members: BTreeSet<u16>,
    twin: Option<&Arc<Table>>,
) -> Arc<Table> {
    let known = before.services().iter().flat_map(|backend| [&backend.ipv4, &backend.ipv6]);
    let is_same = |table: &&Arc<Table>| table.is_of(size, permutation, &members);
    match twin.into_iter().chain(known).find(is_same) {
        Some(table) => Arc::clone(table),
        None => Arc::new(Table::new(size, permutation, members)),
    }
}

/// The way to an endpoint: the named interface, else the one with the longest network around the address.
fn way(address: IpAddr, mark: u32, links: &BTreeMap<u32, Link>, settings: &Settings) -> Option<Hop> {
    let named = settings.internal_interface.as_deref();
    links
        .values()
        .filter(|link| named.is_none_or(|name| *link.name == *name))
        .filter_map(|link| {
            let around =
                link.addresses.iter().filter(|net| net.contains(&address) && net.prefix_len() < net.max_prefix_len());
            let longest = around.map(IpNet::prefix_len).max();
            (longest.is_some() || named.is_some()).then_some((longest, link.index))
        })
        .max_by_key(|(longest, index)| (*longest, std::cmp::Reverse(*index)))
        .map(|(longest, interface)| Hop { mark, address, interface, onlink: longest.is_none() })
}

#[cfg(test)]
mod tests;
