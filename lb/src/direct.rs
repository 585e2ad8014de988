//! The direct way: past the routing tables, to endpoints whose Ethernet address is known.
//!
//! Each endpoint has a routing table (see [`rules`]), and of ten thousand the kernel walks a list of forty for
//! each packet. So where there are many endpoints on a link, the queue threads put a bit into the mark of a packet whose
//! endpoint the kernel is sure of, and all such packets take one route:
//!
//! ```text
//!     49  fwmark 0x8000/0xffff8000 lookup 65789     default via 192.0.0.8 dev int: a neighbour that is written down
//!     50  fwmark 0x8000/0xffff8000 blackhole        (also when the table has lost its route)
//!  netdev martlet-lb-direct, egress of int: the frame's destination = map[mark & 0xffff]
//! ```
//!
//! The kernel does with them all that it does with a packet that it forwards (hop limit, MTU, errors, hooks, segments); only
//! who is written on the frame at last is ours to say. We say it while the kernel itself would: of an entry that is reachable
//! or permanent. When it goes stale the bit is taken away, the next packet takes its table, and the kernel asks; when there is
//! an answer, the bit is back. (While the kernel asks by itself, the bit stays.) So who is gone is found out as ever, and what
//! nftables holds hardly ever changes.
//!
//! [`Direct`] decides; [`Bits`] is what the threads see of it. What came by the endpoints' own link does not go directly: the
//! kernel would tell its sender of a better gateway, which is nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use martlet_netlink::link::{Neighbor, Reachability};
use martlet_netlink::nft::{self, Base, Chain, Checksum, Expression, Layer, MetaKey, Place, Register, Set, Table};
use martlet_netlink::{Change, Error, Family, Kernel, Link, NeighborChange, Object, diff};

use crate::rules;
use crate::targets::{Hop, Targets};
use crate::translate::masked;

/// In a mark: directly. Marks of endpoints must be below it.
pub const BIT: u32 = 0x8000;
/// From so many addresses of endpoints on a link on. Below, the lists are short, and the bit costs more than it saves.
pub const MANY: usize = 500;
/// Neighbours are read anew after this, and what was refused is tried again.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// The name of its nftables table.
pub const NFT_TABLE: &str = "martlet-lb-direct";
/// Its map, from marks with the bit.
const MAP: &str = "endpoints";
/// The Ethernet address of [`gateway`]: one of those for documentation (RFC 9542 section 2.1.2), which nobody has.
const NOBODY: Ethernet = [0x00, 0x00, 0x5e, 0x00, 0x53, 0x08];

type Ethernet = [u8; 6];

/// The gateway of the route that all take: the IPv4 dummy address (RFC 7600 section 5), or one to be discarded (RFC 6666).
pub const fn gateway(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8)),
    }
}

/// The gateways of both families.
pub fn gateways() -> [IpAddr; 2] {
    Family::ALL.map(gateway)
}

/// The link that endpoints are reached by directly: the one with most of their addresses, if these are `from` or more. `None`
/// for `from`: never.
pub fn link(hops: &BTreeSet<Hop>, end_of_marks: u32, from: Option<usize>) -> Option<u32> {
    let addresses: BTreeSet<(u32, IpAddr)> = hops.iter().map(|hop| (hop.interface, hop.address)).collect();
    let mut count: BTreeMap<u32, usize> = BTreeMap::new();
    for (link, _) in addresses {
        *count.entry(link).or_default() += 1;
    }
    let (link, most) = count.into_iter().max_by_key(|(link, count)| (*count, std::cmp::Reverse(*link)))?;
    (most >= from? && end_of_marks <= BIT).then_some(link)
}

/// The number of a family.
const fn index(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}

/// Whose packets go directly now: what the queue threads ask for each packet, and only [`Direct`] changes.
#[derive(Debug)]
pub struct Bits {
    /// 0: nobody's.
    link: AtomicU32,
    /// By family: one bit for each mark below [`BIT`].
    marks: [Box<[AtomicU64]>; 2],
}

impl Default for Bits {
    fn default() -> Self {
        let none = || (0..BIT / u64::BITS).map(|_| AtomicU64::default()).collect();
        Self { link: AtomicU32::default(), marks: [none(), none()] }
    }
}

impl Bits {
    /// What to add to the mark of a packet that came in by link `from`: [`BIT`] or nothing.
    pub fn of(&self, mark: u32, family: Family, from: u32) -> u32 {
        let link = self.link.load(Ordering::Acquire);
        if link == 0 || link == from {
            return 0;
        }
        if self.is_set(mark, family) { BIT } else { 0 }
    }

    fn is_set(&self, mark: u32, family: Family) -> bool {
        self.word(mark, family).is_some_and(|word| word.load(Ordering::Acquire) & of_word(mark) != 0)
    }

    fn word(&self, mark: u32, family: Family) -> Option<&AtomicU64> {
        let number = usize::try_from(mark / u64::BITS).ok()?;
        self.marks.get(index(family))?.get(number)
    }

    fn set(&self, mark: u32, family: Family, on: bool) {
        let Some(word) = self.word(mark, family) else { return };
        if on {
            word.fetch_or(of_word(mark), Ordering::AcqRel);
        } else {
            word.fetch_and(!of_word(mark), Ordering::AcqRel);
        }
    }

    fn clear(&self) {
        self.link.store(0, Ordering::Release);
        self.marks.iter().flatten().for_each(|word| word.store(0, Ordering::Release));
    }
}

const fn of_word(mark: u32) -> u64 {
    1 << (mark % u64::BITS)
}

/// Which endpoints are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Index and name; `None`: nobody is reached directly.
    link: Option<(u32, Arc<str>)>,
    /// The marks of each address on it: a pod may be of several Services.
    marks: BTreeMap<IpAddr, BTreeSet<u32>>,
}

impl Plan {
    fn new(targets: &Targets, links: &BTreeMap<u32, Link>) -> Self {
        let Some(link) = targets.direct.and_then(|index| links.get(&index)) else { return Self::default() };
        let mut marks: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for hop in targets.hops.iter().filter(|hop| hop.interface == link.index) {
            marks.entry(hop.address).or_default().insert(hop.mark);
        }
        Self { link: Some((link.index, Arc::clone(&link.name))), marks }
    }

    /// Address and mark.
    fn pairs(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.marks.iter().flat_map(|(address, marks)| marks.iter().map(|mark| (*address, *mark)))
    }
}

/// Who decides, and makes the kernel ready for it.
#[derive(Debug, Default)]
pub struct Direct {
    bits: Arc<Bits>,
    plan: Plan,
    /// What the kernel knows of the link's addresses; `None`: to be read.
    neighbors: Option<BTreeMap<IpAddr, Neighbor>>,
    /// What nftables holds; `None`: who knows.
    table: Option<Table>,
    /// The map in it, by marks without the bit.
    map: BTreeMap<u32, Ethernet>,
    /// When it was read last: now and then it is read again, should a change have been missed.
    read_at: Option<Instant>,
    /// Marks whose families are at different places.
    torn: BTreeSet<u32>,
    /// Families that have their route and rules, and their gateway.
    routed: BTreeSet<Family>,
    /// Nothing is to be done: not so at the start, when another process may have left something.
    settled: bool,
    /// What could not be had, said once.
    refused: Option<String>,
    /// When nftables refused.
    refused_at: Option<Instant>,
}

impl Direct {
    /// What the threads ask.
    pub fn bits(&self) -> Arc<Bits> {
        Arc::clone(&self.bits)
    }

    /// To be told of new targets before threads or kernel hear of them. True: threads must answer before they do.
    pub fn prepare(&mut self, targets: &Targets, links: &BTreeMap<u32, Link>) -> bool {
        let next = Plan::new(targets, links);
        let before = std::mem::replace(&mut self.plan, next);
        self.settled = false;
        if before.link == self.plan.link {
            for (address, mark) in before.pairs() {
                if !self.plan.marks.get(&address).is_some_and(|marks| marks.contains(&mark)) {
                    self.bits.set(mark, family_of(address), false);
                }
            }
            return false;
        }
        self.forget();
        self.neighbors = None;
        self.routed.clear();
        if let Some((_, link)) = &self.plan.link {
            tracing::info!(%link, "endpoints are many: those that answer are reached directly");
        } else {
            tracing::info!("endpoints are reached by their tables alone");
        }
        before.link.is_some()
    }

    /// What it takes may not be there any more: nobody is reached directly until that is settled.
    pub fn forget(&mut self) {
        self.bits.clear();
        (self.table, self.refused_at) = (None, None);
        self.settled = false;
    }

    /// Whether our routes and rules are all there, in `have`: else nobody of that family is reached directly.
    pub fn look_at(&mut self, have: &BTreeSet<Object>) {
        let Some((link, _)) = self.plan.link else { return };
        let have: BTreeSet<Object> = have.iter().filter(|object| rules::is_direct(object)).cloned().collect();
        let lacks = |family| {
            let changes = diff(&have, &rules::direct(link, family).into());
            changes.iter().any(|change| !matches!(change, Change::Remove(_)))
        };
        let routed = Family::ALL.into_iter().filter(|family| !lacks(*family)).collect();
        if !self.routed.is_subset(&routed) {
            self.bits.clear();
        }
        self.settled &= self.routed == routed;
        self.routed = routed;
    }

    /// Takes note of what became of neighbours: who is in doubt is not reached directly from now on.
    pub fn neighbors_changed(&mut self, changes: Vec<NeighborChange>) {
        let Some((link, _)) = self.plan.link else { return };
        for change in changes {
            let (interface, address, entry) = match change {
                NeighborChange::Is(entry) => (entry.interface, entry.address, Some(entry)),
                NeighborChange::Gone(interface, address) => (interface, address, None),
                NeighborChange::Overrun => {
                    self.bits.clear();
                    self.neighbors = None;
                    self.settled = false;
                    return;
                }
            };
            let Some(neighbors) = &mut self.neighbors else {
                // They are to be read anyway.
                self.bits.clear();
                return;
            };
            if interface != link {
                continue;
            }
            match entry {
                Some(entry) => drop(neighbors.insert(address, entry)),
                None => drop(neighbors.remove(&address)),
            }
            if !gateways().contains(&address) {
                self.refresh(address);
            } else if !self.has_gateway(family_of(address)) {
                self.bits.clear();
                self.settled = false;
            }
        }
    }

    /// Makes everything follow: the gateways, nftables, and at last the bits. Nothing to be done for most beats.
    pub async fn settle(&mut self, kernel: &mut Kernel, nft: &mut nft::Connection) {
        if self.read_at.is_some_and(|at| at.elapsed() > READ_AGAIN) {
            (self.neighbors, self.settled) = (None, false);
        }
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let Some((link, name)) = self.plan.link.clone() else {
            self.read_at = None;
            self.map.clear();
            if let Err(error) = remove(kernel, nft).await {
                tracing::debug!(%error, "what reached endpoints directly cannot be removed");
                self.settled = false;
            }
            return;
        };
        if self.neighbors.is_none() {
            match kernel.neighbors().await {
                Ok(all) => self.learn(link, all),
                Err(error) => {
                    self.refuse(&error);
                    self.settled = false;
                    return;
                }
            }
        }
        for address in gateways() {
            let family = family_of(address);
            if self.routed.contains(&family) && !self.has_gateway(family) {
                match kernel.write_neighbor(link, address, &NOBODY) {
                    Ok(()) => self.learn_gateway(link, address),
                    Err(error) => self.refuse(&error),
                }
            }
        }
        self.write(&name, |table, before| nft.apply(table, before));
        self.open(link);
    }

    /// Says once what could not be had.
    fn refuse(&mut self, error: &Error) {
        let words = error.to_string();
        if self.refused.as_ref() != Some(&words) {
            tracing::warn!(%error, "endpoints are reached by their tables alone (the direct way needs Linux 5.16)");
            self.refused = Some(words);
        }
    }

    /// Makes nftables hold the addresses that are known.
    fn write(&mut self, link: &str, apply: impl FnOnce(&Table, Option<&Table>) -> Result<(), Error>) {
        if self.refused_at.is_some_and(|at| at.elapsed() < READ_AGAIN) {
            return;
        }
        let map = self.wanted();
        let table = table(link, &map);
        if self.table.as_ref() == Some(&table) {
            return;
        }
        // Who is about to be elsewhere, or nowhere, is not reached directly meanwhile.
        for (mark, _) in self.map.iter().filter(|(mark, held)| map.get(mark) != Some(held)) {
            for family in Family::ALL {
                self.bits.set(*mark, family, false);
            }
        }
        match apply(&table, self.table.as_ref()) {
            Ok(()) => {
                (self.table, self.map) = (Some(table), map);
                (self.refused, self.refused_at) = (None, None);
            }
            Err(error) => {
                self.bits.clear();
                (self.table, self.refused_at) = (None, Some(Instant::now()));
                self.map.clear();
                self.refuse(&error);
            }
        }
    }

    /// Lets the threads use it.
    fn open(&mut self, link: u32) {
        self.bits.link.store(link, Ordering::Release);
        let addresses: Vec<IpAddr> = self.plan.marks.keys().copied().collect();
        for address in addresses {
            self.refresh(address);
        }
    }

    /// Addresses that are reached directly, and the link that leads there; `None`: none by design.
    pub fn reached(&self) -> Option<(u32, &str)> {
        let (_, name) = self.plan.link.as_ref()?;
        let is_reached = |address: IpAddr, marks: &BTreeSet<u32>| {
            marks.iter().all(|mark| self.bits.is_set(*mark, family_of(address)))
        };
        let count = self.plan.marks.iter().filter(|(address, marks)| is_reached(**address, marks)).count();
        Some((u32::try_from(count).unwrap_or(u32::MAX), name))
    }

    /// Remembers what was read of the link.
    fn learn(&mut self, link: u32, all: Vec<Neighbor>) {
        let of_link = all.into_iter().filter(|entry| entry.interface == link);
        self.neighbors = Some(of_link.map(|entry| (entry.address, entry)).collect());
        self.read_at = Some(Instant::now());
    }

    fn learn_gateway(&mut self, interface: u32, address: IpAddr) {
        let (link_layer, reachability) = (Some(NOBODY.to_vec()), Reachability::Permanent);
        let entry = Neighbor { interface, address, link_layer, reachability };
        self.neighbors.get_or_insert_default().insert(address, entry);
    }

    fn has_gateway(&self, family: Family) -> bool {
        self.known(gateway(family)) == Some((NOBODY, Known::Sure))
    }

    /// The Ethernet address of a neighbour, and what the kernel thinks of it.
    fn known(&self, address: IpAddr) -> Option<(Ethernet, Known)> {
        let entry = self.neighbors.as_ref()?.get(&address)?;
        let known = match entry.reachability {
            Reachability::Reachable | Reachability::Permanent => Known::Sure,
            Reachability::Probe => Known::Asked,
            Reachability::Incomplete | Reachability::Stale | Reachability::Failed => Known::Doubted,
        };
        Some((entry.link_layer.as_deref()?.try_into().ok()?, known))
    }

    /// The map as it should be: of each mark one address, which is not taken out while it may be true. A pod has one link: where
    /// its two families are said to be at different places, it is not reached directly.
    fn wanted(&mut self) -> BTreeMap<u32, Ethernet> {
        let mut wanted: BTreeMap<u32, Ethernet> = BTreeMap::new();
        self.torn.clear();
        for (address, mark) in self.plan.pairs() {
            let Some((ethernet, known)) = self.known(address) else { continue };
            if known != Known::Sure && self.map.get(&mark) != Some(&ethernet) {
                continue;
            }
            if wanted.insert(mark, ethernet).is_some_and(|other| other != ethernet) {
                self.torn.insert(mark);
            }
        }
        wanted.retain(|mark, _| !self.torn.contains(mark));
        wanted
    }

    /// Makes the bits of an address true.
    fn refresh(&mut self, address: IpAddr) {
        let family = family_of(address);
        let is_possible = self.has_gateway(family) && self.routed.contains(&family) && self.table.is_some();
        let known = self.known(address);
        for mark in self.plan.marks.get(&address).into_iter().flatten() {
            let (may_be, is_there) = match known {
                Some((ethernet, Known::Sure)) => (true, self.map.get(mark) == Some(&ethernet)),
                Some((ethernet, Known::Asked)) => {
                    (false, self.map.get(mark) == Some(&ethernet) && self.bits.is_set(*mark, family))
                }
                _ => (false, false),
            };
            self.bits.set(*mark, family, is_there && is_possible);
            self.settled &= is_there || !may_be || self.torn.contains(mark) || self.refused.is_some();
        }
    }
}

/// What the kernel thinks of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It has answered lately, or somebody wrote it down.
    Sure,
    /// It is being asked, and used meanwhile.
    Asked,
    /// It is asked when a packet comes for it.
    Doubted,
}

/// The table that writes on frames whose they are.
fn table(link: &str, map: &BTreeMap<u32, Ethernet>) -> Table {
    let elements = map.iter().map(|(mark, address)| (mark | BIT, *address)).collect();
    let (mark, address) = (Register(0), Register(1));
    let rule = nft::Rule::new()
        .then(Expression::Meta { key: MetaKey::Mark, to: mark })
        // The upper half is anybody's: of a port before, and of other hooks behind.
        .then(masked(0xffff))
        .then(Expression::Map { register: mark, map: MAP.into(), to: address })
        .then(Expression::Write {
            from: address,
            base: Base::LinkLayer,
            offset: 0,
            length: 6,
            checksum: Checksum::None,
        });
    Table::netdev(NFT_TABLE)
        .set(MAP, Set::Ethernet(elements))
        .chain("egress", Chain::at(Place::Egress([link.to_owned()].into()), 0, vec![rule]))
}

/// Removes what is in nftables and among the neighbours; routes and rules are removed with all others.
///
/// # Errors
/// When it could not be removed.
pub async fn remove(kernel: &mut Kernel, nft: &mut nft::Connection) -> anyhow::Result<()> {
    // A kernel without that family holds nothing of it, and says so.
    let _ = nft.delete(Layer::Netdev, NFT_TABLE);
    Ok(kernel.forget_neighbors(&gateways(), &NOBODY).await?)
}

#[cfg(test)]
mod tests;
