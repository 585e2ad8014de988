//! Kernel objects as plain values, compared with `==` and kept in ordered sets.
//!
//! It knows no socket. Numbers are the kernel's (tables, metrics, priorities, interface indexes).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of `prefix`.
    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Ipv4,
            IpNet::V6(_) => Self::Ipv6,
        }
    }
}

/// What an owner may touch: objects that carry its protocol number *and* lie in its range; nothing else is ever changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The protocol number of its routes and rules (201 router, 202 lb, 203 agent).
    pub protocol: u8,
    /// Its routing tables.
    pub tables: Vec<RangeInclusive<u32>>,
    /// The priorities of its rules.
    pub priorities: Vec<RangeInclusive<u32>>,
}

/// One way out of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The gateway; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the interface; `None`: the kernel finds it (IPv4 only).
    pub interface: Option<u32>,
    /// Share of the traffic, 1 to 256.
    pub weight: u16,
    /// Whether the kernel is told that the gateway is on the link although no address says so.
    pub onlink: bool,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Forwards: at least one next hop, sorted.
    Unicast(Vec<NextHop>),
    /// Drops silently.
    Blackhole,
}

/// A route. The kernel tells routes of a table apart by prefix and metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// Its destination.
    pub prefix: IpNet,
    /// Lower is preferred. (0 on IPv6 is 1024 for the kernel: never use 0.)
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
}

/// `mark & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The value.
    pub value: u32,
    /// The mask.
    pub mask: u32,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Looks the destination up in a table.
    Table(u32),
    /// Goes on at the rule of that priority.
    Goto(u32),
    /// Drops silently.
    Blackhole,
}

/// A policy routing rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Lower comes first.
    pub priority: u32,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// Forwarding mark.
    pub mark: Option<Mark>,
    /// Whether the selectors are inverted.
    pub invert: bool,
    /// What it does.
    pub action: Action,
}

/// A route or a rule that an owner wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A route.
    Route(Route),
    /// A rule.
    Rule(Rule),
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Administratively up.
    pub up: bool,
    /// Up and with carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Octets.
    pub mtu: u32,
    /// Its addresses with their prefix length; tentative ones (IPv6 DAD) are left out.
    pub addresses: BTreeSet<IpNet>,
}

/// What the kernel holds now, as far as an owner cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// The owner's routes and rules (see [`Owner`]).
    pub objects: BTreeSet<Object>,
    /// Where the main table leads, whoever owns it: the first next hop of each route, of several the one with the lowest
    /// metric.
    pub main: BTreeMap<IpNet, NextHop>,
}
