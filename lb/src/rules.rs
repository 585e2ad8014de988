//! From marks to endpoints: what the kernel's routing and nftables hold, as values.
//!
//! Each endpoint has a table of the number of its mark, with a default route to its address. Marks find their table by a
//! tree, because the kernel walks rules one by one: entered at priority 50 by marks of ours alone, 16 ways at each level.
//!
//! ```text
//!     50  fwmark 0x1388/0xfffffff8 goto 50624     what is below 5000 is not ours: the entry is cut at powers of two
//!     50  fwmark 0x1390/0xfffffff0 goto 50626
//!     50  fwmark 0x13c0/0xffffffc0 goto 49038     ...
//!  49038  fwmark 0x13c0/0xfffffff0 goto 50632
//!  49039  fwmark 0x1300/0xffffff00 blackhole      a mark of ours that leads nowhere ends here, never in the main table
//!  50632  fwmark 0x13c1 lookup 5057
//!  50633  fwmark 0x13c0/0xfffffff0 blackhole      (also when the table has lost its route)
//! ```
//!
//! The place of a node depends on its marks alone, so that an endpoint more or less touches nothing of the others.
//! Marks with [`direct::BIT`] come before the tree: see [`crate::direct`].
//!
//! The kernel keeps tables in 256 lists, by the low octet of their number, and walks those of the tables `default`, `main` and
//! `local` (253 to 255) to their ends for every packet. From mark 6144 on none of ours is put there: see [`table`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use martlet_netlink::nft::Rule as NftRule;
use martlet_netlink::nft::{Address, Chain, Expression, Hook, Place, Queue, Set, Table};
use martlet_netlink::{Action, Family, Mark, NextHop, Object, Owner, Route, RouteKind, Rule};

use crate::direct;
use crate::engine::FIRST_MARK;
use crate::offload::{Offload, chain_of};
use crate::targets::{END_OF_MARKS, Hop, Targets};
use crate::translate::{self, Replies, is_of};

/// The protocol number of all that is the load balancer's.
pub const PROTOCOL: u8 = 202;
/// The name of its nftables table.
pub const NFT_TABLE: &str = "martlet-lb";
/// Where marks enter the tree: before the router's rules at 100.
const ENTRY: u32 = 50;
/// Where those do that go directly, whatever their endpoint; what finds no way drops at the entry.
const DIRECT: u32 = ENTRY - 1;
/// The metric of its routes.
const METRIC: u32 = 20;

/// What the load balancer may touch.
pub fn owner() -> Owner {
    Owner {
        protocol: PROTOCOL,
        tables: vec![FIRST_MARK..=END_OF_MARKS - 1, BESIDE..=table((END_OF_MARKS - 1) | 0xff)],
        priorities: vec![DIRECT..=ENTRY, LEVELS[2].priority..=LEVELS[0].priority + 2 * (0xffff >> 4) + 1],
    }
}

/// Low octets from here on are those of tables that every packet is asked against.
const BUSY: u32 = 253;
/// From here on (a mark without its low octet) it matters: the fifteen tables of lower marks that are there do no harm.
const MANY: u32 = 24;
/// The first of the tables that are not of their mark's number.
const BESIDE: u32 = 1 << 16;

/// The marks of packets that go directly.
const DIRECT_MARK: Mark = marks(direct::BIT, direct::BIT.trailing_zeros());
/// The table of packets that go directly: in a list that is short because of [`table`], with the table `default`, which packets
/// of ours never ask.
const DIRECT_TABLE: u32 = BESIDE + BUSY;

/// The table of a mark: of the same number, except that from 6144 on none is in a list that every packet walks.
pub const fn table(mark: u32) -> u32 {
    let (high, low) = (mark >> 8, mark & 0xff);
    if high < MANY || low < BUSY {
        return mark;
    }
    let number = (high - MANY) * (256 - BUSY) + low - BUSY;
    BESIDE + ((number / BUSY) << 8) + number % BUSY
}

/// A level of the tree: nodes of equal width.
struct Level {
    /// Each node has the marks of one value above this many bits.
    bits: u32,
    /// The priority of the node of the lowest marks; each has two, the second drops.
    priority: u32,
}

/// From the leaves up.
const LEVELS: [Level; 3] =
    [Level { bits: 4, priority: 50_000 }, Level { bits: 8, priority: 49_000 }, Level { bits: 12, priority: 48_000 }];

impl Level {
    const fn node(&self, mark: u32) -> u32 {
        self.priority + 2 * (mark >> self.bits)
    }

    const fn marks(&self, mark: u32) -> Mark {
        marks(mark, self.bits)
    }
}

/// All marks that are as `mark` above the lowest `bits`.
const fn marks(mark: u32, bits: u32) -> Mark {
    let high = u32::MAX << bits;
    Mark { value: mark & high, mask: high }
}

/// Routes and rules that lead marks to endpoints.
pub fn objects(targets: &Targets) -> BTreeSet<Object> {
    let routes = targets.hops.iter().map(|hop| Object::Route(route(hop)));
    let rules = Family::ALL.into_iter().flat_map(|family| {
        let leaves = targets.hops.iter().filter(|hop| hop.address.is_ipv4() == (family == Family::Ipv4));
        tree(family, &leaves.map(|hop| hop.mark).collect(), targets.end_of_marks)
    });
    let hops = |family: &Family| {
        targets.hops.iter().any(|hop| targets.direct == Some(hop.interface) && is_of(hop.address, *family))
    };
    let direct = targets
        .direct
        .into_iter()
        .flat_map(|link| Family::ALL.into_iter().filter(hops).flat_map(move |family| direct(link, family)));
    routes.chain(rules.map(Object::Rule)).chain(direct).collect()
}

/// Route and rules of packets that go directly to endpoints on a link: see [`crate::direct`].
pub fn direct(link: u32, family: Family) -> [Object; 3] {
    let hop = Hop { mark: 0, address: direct::gateway(family), interface: link, onlink: true };
    [
        Object::Route(Route { table: DIRECT_TABLE, ..route(&hop) }),
        Object::Rule(rule(family, DIRECT, DIRECT_MARK, Action::Table(DIRECT_TABLE))),
        Object::Rule(rule(family, ENTRY, DIRECT_MARK, Action::Blackhole)),
    ]
}

/// Whether it is one of those, of whatever link.
pub fn is_direct(object: &Object) -> bool {
    match object {
        Object::Route(route) => route.table == DIRECT_TABLE,
        Object::Rule(rule) => rule.mark == Some(DIRECT_MARK),
    }
}

/// A rule for marks.
const fn rule(family: Family, priority: u32, mark: Mark, action: Action) -> Rule {
    Rule { family, priority, from: None, to: None, mark: Some(mark), invert: false, action }
}

/// The default route of an endpoint's table.
fn route(hop: &Hop) -> Route {
    let prefix = match hop.address {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    let next_hop =
        NextHop { gateway: Some(hop.address), interface: Some(hop.interface), weight: 1, onlink: hop.onlink };
    Route { table: table(hop.mark), prefix, metric: METRIC, kind: RouteKind::Unicast(vec![next_hop]) }
}

/// The tree of one family: a leaf for each of `leaves`, and a drop for every other mark from 5000 to `end`.
fn tree(family: Family, leaves: &BTreeSet<u32>, end: u32) -> BTreeSet<Rule> {
    let rule = |priority, mark, action| rule(family, priority, mark, action);
    let mut rules = BTreeSet::new();
    // By level: the nodes that exist, each by the lowest mark that it holds.
    let mut nodes: [BTreeMap<u32, u32>; 3] = Default::default();
    for leaf in leaves {
        let mut way_in = (marks(*leaf, 0), Action::Table(table(*leaf)));
        for (level, nodes) in LEVELS.iter().zip(&mut nodes) {
            let node = level.node(*leaf);
            rules.insert(rule(node, way_in.0, way_in.1));
            rules.insert(rule(node + 1, level.marks(*leaf), Action::Blackhole));
            nodes.insert(node, *leaf);
            way_in = (level.marks(*leaf), Action::Goto(node));
        }
    }
    for (first, bits) in entries(FIRST_MARK, end) {
        // The smallest node that holds the whole entry.
        let level = LEVELS.iter().zip(&nodes).find(|(level, _)| level.bits >= bits);
        let action = match level {
            Some((level, nodes)) if nodes.contains_key(&level.node(first)) => Action::Goto(level.node(first)),
            _ => Action::Blackhole,
        };
        rules.insert(rule(ENTRY, marks(first, bits), action));
    }
    rules
}

/// `first..end`, rounded up to 256, as aligned powers of two of at most 4096: the first mark and the bits of each.
fn entries(first: u32, end: u32) -> Vec<(u32, u32)> {
    let end = if end > first { end.next_multiple_of(256).min(END_OF_MARKS) } else { first };
    let mut entries = Vec::new();
    let mut mark = first;
    while mark < end {
        let fits = (end - mark).ilog2();
        let bits = mark.trailing_zeros().min(fits).min(12);
        entries.push((mark, bits));
        mark += 1 << bits;
    }
    entries
}

/// What is done with packets to VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer<'a> {
    /// All to the queues.
    Queue,
    /// All to the queues, and while nobody listens there the kernel decides what it can.
    QueueOr(&'a Offload),
    /// The kernel decides what it can, the rest goes to the queues.
    Kernel(&'a Offload),
}

/// The table that steers packets to VIPs.
///
/// `replies`: see [`crate::translate`]. `defragment`: fragments are put together before. The kernel does so where a transparent proxy could want to see whole
/// packets, even if its rule never matches; connection tracking, which would do so too, is not needed.
pub fn nftables(vips: &BTreeSet<IpNet>, replies: &Replies, queue: Queue, defragment: bool, steer: Steer<'_>) -> Table {
    let mut table = Table::new(NFT_TABLE);
    translate::put_into(&mut table, replies, vips);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (family, set) in [(Family::Ipv4, "vips-4"), (Family::Ipv6, "vips-6")] {
        let elements = vips.iter().filter(|vip| Family::of(vip) == family).map(IpNet::addr).collect();
        table = table.set(set, Set::Addresses { family, elements });
        let to_vip = NftRule::new().address_in(family, Address::Destination, set);
        let by_kernel = Expression::Goto(chain_of(family).into());
        match steer {
            Steer::Queue => first.push(to_vip.counter().queue(queue)),
            Steer::Kernel(_) => first.push(to_vip.counter().then(by_kernel)),
            Steer::QueueOr(_) => {
                first.push(to_vip.clone().counter().queue(queue));
                second.push(to_vip.mark(0).counter().then(by_kernel));
            }
        }
    }
    if let Steer::QueueOr(offload) | Steer::Kernel(offload) = steer {
        offload.clone().put_into(&mut table);
    }
    if !second.is_empty() {
        // What bypasses a queue goes on at the next hook, not at the next rule.
        let hook = Some(Hook { place: Place::Prerouting, priority: 1 });
        table = table.chain("bypassed", Chain { hook, rules: second });
    }
    if defragment {
        let hook = Some(Hook { place: Place::Prerouting, priority: -300 });
        let rules = Family::ALL.map(NftRule::defragment).to_vec();
        table = table.chain("defragment", Chain { hook, rules });
    }
    let hook = Some(Hook { place: Place::Prerouting, priority: 0 });
    table.chain("prerouting", Chain { hook, rules: first })
}

/// Slots that one batch may load: some tenths of a second, in which nothing else is done.
const SLOTS_AT_ONCE: usize = 150_000;

/// The tables to apply one after the other, the last being `to`. Where there is much to load, one map at a time: whoever applies
/// them can give signs of life in between. If `from` cannot simply grow, `plain` comes first, with which all goes to the queue.
pub fn steps(from: Option<&Table>, to: Table, plain: Table) -> Vec<Table> {
    let mut steps = Vec::new();
    let grown = from.filter(|from| grows(from, &to));
    let slots = |set: &Set| if let Set::Marks(marks) = set { marks.len() } else { 0 };
    let has = |name: &String| grown.is_some_and(|from| from.sets.contains_key(name));
    let missing: Vec<(&String, &Set)> = to.sets.iter().filter(|(name, set)| slots(set) > 0 && !has(name)).collect();
    if missing.iter().map(|(_, set)| slots(set)).sum::<usize>() > SLOTS_AT_ONCE {
        let mut now = grown.cloned().unwrap_or_else(|| {
            steps.push(plain.clone());
            plain
        });
        for (name, set) in missing {
            now.sets.insert(name.clone(), set.clone());
            steps.push(now.clone());
        }
    }
    steps.push(to);
    steps
}

/// Whether everything of `from` is in `to`, in the same shape.
fn grows(from: &Table, to: &Table) -> bool {
    let same = |old: &Set, new: &Set| match (old, new) {
        (Set::Marks(old), Set::Marks(new)) => old.len() == new.len(),
        (old, new) => std::mem::discriminant(old) == std::mem::discriminant(new),
    };
    from.sets.iter().all(|(name, set)| to.sets.get(name).is_some_and(|new| same(set, new)))
        && from.chains.iter().all(|(name, chain)| to.chains.get(name).is_some_and(|new| new.hook == chain.hook))
}

#[cfg(test)]
mod tests;
