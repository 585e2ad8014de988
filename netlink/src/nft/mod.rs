//! nftables: a table as one plain value, made true in one atomic batch.
//!
//! A [`Table`] says what the kernel should hold; [`Connection::apply`] compares it with what was applied before and
//! sends the difference, or replaces the whole table: either way packets see the old table or the new one, never
//! something in between. [`Connection::watch`] tells when somebody else had a hand in it. `rule` holds the vocabulary,
//! `batch` and `expression` turn values into messages, `connection` sends them.
//! Tables are of the family `inet`, so that one serves IPv4 and IPv6, or `netdev`, whose chains see what comes in by a link
//! before anything else of the kernel does, or what goes out by it after everything else.
//!
//! ```no_run
//! use std::collections::BTreeSet;
//! use martlet_netlink::Family::{Ipv4, Ipv6};
//! use martlet_netlink::nft::{Address, Chain, Connection, Layer, Place, Queue, Rule, Set, Table};
//!
//! # fn main() -> Result<(), martlet_netlink::Error> {
//! let mut nft = Connection::open()?;
//! let queue = Queue { first: 0, total: 4, bypass: false, fanout: true, form: nft.probe_queue()? };
//! let four = BTreeSet::from(["20.0.0.1/32".parse().expect("a prefix")]);
//! let six = BTreeSet::from(["2000::1/128".parse().expect("a prefix")]);
//!
//! // What is for a VIP goes to four queues.
//! let mut table = Table::new("martlet-lb")
//!     .set("vips-4", Set::Prefixes { family: Ipv4, elements: four })
//!     .set("vips-6", Set::Prefixes { family: Ipv6, elements: six })
//!     .chain("prerouting", Chain::at(Place::Prerouting, -150, vec![
//!         Rule::new().address_in(Ipv4, Address::Destination, "vips-4").counter().queue(queue),
//!         Rule::new().address_in(Ipv6, Address::Destination, "vips-6").counter().queue(queue),
//!     ]));
//! nft.apply(&table, None)?;
//!
//! // Later: TCP is decided in the kernel. Only what changed is sent.
//! let before = table.clone();
//! let tcp = Rule::new().address_in(Ipv4, Address::Destination, "vips-4").first_fragment().protocol(6);
//! table.chains.get_mut("prerouting").expect("there").rules.insert(0, tcp.set_mark(5001).accept());
//! nft.apply(&table, Some(&before))?;
//!
//! nft.delete(Layer::Inet, "martlet-lb")
//! # }
//! ```

mod batch;
mod connection;
mod counts;
mod expression;
mod rule;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use connection::Connection;
pub use rule::{Address, Base, Checksum, Expression, MetaKey, Queue, QueueForm, Register, Rule};
pub use watch::Watch;

use crate::Family;

/// Which packets the chains of a table see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// IPv4 and IPv6, at the hooks of the IP stack: the family `inet`.
    #[default]
    Inet,
    /// Whatever comes in by some links, before the IP stack, or goes out by them, behind it: the family `netdev`.
    Netdev,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its name: each layer has names of its own.
    pub name: String,
    /// Its layer.
    pub layer: Layer,
    /// Its sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
}

impl Table {
    /// An empty table of the family `inet`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// An empty table of the family `netdev`.
    pub fn netdev(name: &str) -> Self {
        Self { layer: Layer::Netdev, ..Self::new(name) }
    }

    /// With one more set, or another in its place.
    #[must_use]
    pub fn set(mut self, name: &str, set: Set) -> Self {
        self.sets.insert(name.to_owned(), set);
        self
    }

    /// With one more chain, or another in its place.
    #[must_use]
    pub fn chain(mut self, name: &str, chain: Chain) -> Self {
        self.chains.insert(name.to_owned(), chain);
        self
    }
}

/// Slots in an element of [`Set::Marks`]: as many as there are registers.
pub const SLOTS: usize = 16;

/// A set or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Prefixes of one family: an interval set.
    Prefixes {
        /// Their family.
        family: Family,
        /// They may overlap and touch.
        elements: BTreeSet<IpNet>,
    },
    /// Addresses of one family: found by a hash, which is cheaper than intervals.
    Addresses {
        /// Their family.
        family: Family,
        /// All of that family.
        elements: BTreeSet<IpAddr>,
    },
    /// Slot -> mark, for `jhash .. mod M`: the slots are the indexes. [`SLOTS`] of them are one element, so that a big table
    /// takes a tenth of the memory, and mostly lies in the caches: the key is the first of its slots, and the value fills all
    /// registers, one with each mark.
    Marks(Arc<[u32]>),
    /// Number -> "go to this chain": the numbers are the indexes.
    Chains(Vec<String>),
    /// Mark -> address of a neighbour and index of its link, which fill registers in this order; each with a counter of the
    /// packets that were looked up: see [`Connection::counts`].
    Ways {
        /// Of all addresses.
        family: Family,
        /// What is in it.
        elements: BTreeMap<u32, (IpAddr, u32)>,
    },
    /// Octets -> octets: what registers hold, so that fields of a key are filled up to 4 octets each.
    Map {
        /// Octets of each key.
        key: u32,
        /// Octets of each value.
        value: u32,
        /// What is in it.
        elements: BTreeMap<Vec<u8>, Vec<u8>>,
    },
    /// Marks, each with a counter of the packets that were looked up: see [`Connection::counts`].
    Counted(BTreeSet<u32>),
    /// Mark -> Ethernet address.
    Ethernet(BTreeMap<u32, [u8; 6]>),
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where the kernel enters it; `None`: only by jump or goto.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that the kernel enters.
    pub const fn at(place: Place, priority: i32, rules: Vec<Rule>) -> Self {
        Self { hook: Some(Hook { place, priority }), rules }
    }
}

/// Where the kernel enters a chain of the type `filter`. What no rule decides is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The place.
    pub place: Place,
    /// Lower comes first.
    pub priority: i32,
}

/// A hook: one of [`Layer::Inet`], or one of the two of [`Layer::Netdev`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// From these links, which must be there, before anything else.
    Ingress(BTreeSet<String>),
    /// To these links, which must be there, behind anything else: the frame is whole (Linux 5.16).
    Egress(BTreeSet<String>),
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}
