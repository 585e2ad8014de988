//! From a flow to the mark of its endpoint. Pure.
//!
//! A map of nftables takes 92 octets for a slot of four: too much to stay in the caches. So [`SLOTS`] slots are one element,
//! whose value fills all registers, and the place of a slot in its element chooses the chain that goes on with the right one:
//!
//! ```text
//!  mark = jhash(words of the flow) * M >> 32         the slot
//!  goto chain of mark & 15
//!      chain 5: registers 0 .. 15 = map[mark & ~15]; register 5 is the endpoint's mark
//! ```
//!
//! (The `nft` program lists such a chain without the last step, and says that it knows no expression for it.)

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use martlet_netlink::Family;
use martlet_netlink::nft::{Chain, Expression, MetaKey, Register, Rule, SLOTS, Set};

use super::{Layout, SCRATCH};
use crate::engine::Backend;
use crate::hash::Seed;
use crate::translate::{load, masked};

/// The bits of a slot that are its place in its element.
const PLACE: u32 = 15;
const _: () = assert!(SLOTS == 16, "as many as these bits can say");

/// The table of a service as a map.
#[derive(Clone, Debug)]
pub(super) struct Way {
    modulus: u32,
    seed: Seed,
    /// The name of the map.
    pub map: String,
    /// What is in it.
    pub marks: BTreeSet<u32>,
}

impl Way {
    /// By the table of a service; `None`: it has no endpoint of the family.
    pub fn new(family: Family, backend: &Backend, seed: Seed, sets: &mut BTreeMap<String, Set>) -> Option<Self> {
        let any: IpAddr = match family {
            Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let table = backend.table(any);
        if table.identifiers().is_empty() {
            return None;
        }
        let modulus = table.size().slots();
        // A table that both families share is one map.
        let number = if family == Family::Ipv6 && !Arc::ptr_eq(&backend.ipv4, &backend.ipv6) { "-6" } else { "" };
        let map = format!("slots-{}-{modulus}{number}", backend.first_mark);
        let mark = |identifier: &u16| backend.first_mark + u32::from(*identifier);
        sets.entry(map.clone()).or_insert_with(|| Set::Marks(table.slots().iter().map(mark).collect()));
        Some(Self { modulus, seed, map, marks: table.identifiers().iter().map(mark).collect() })
    }

    /// The words of [`crate::hash`], their hash, its slot, and to one of the chains `ends`.
    pub fn take(&self, layout: &Layout, mut rule: Rule, ends: &str) -> Rule {
        let mut next = 0;
        for (address, port) in [(layout.client, layout.client_port), (layout.vip, layout.vip_port)] {
            rule = rule.then(layout.address(address, Register(next)));
            next += layout.sizes().1;
            rule = rule.then(load(port, 2, Register(next)));
            next += 1;
        }
        let length = u32::from(next + 1) * 4;
        rule.then(load(layout.protocol, 1, Register(next)))
            .then(Expression::Hash { from: SCRATCH, length, modulus: self.modulus, seed: self.seed.0, to: SCRATCH })
            .then(Expression::SetMark { from: SCRATCH })
            .then(masked(PLACE))
            .then(Expression::Choose { register: SCRATCH, map: ends.to_owned() })
    }

    /// Adds chains `ends`, one for each place in an element, and the map that chooses one of them, whose name is returned: with
    /// the endpoint's mark in a register each goes on as `end` does.
    pub fn end(
        &self,
        ends: &str,
        sets: &mut BTreeMap<String, Set>,
        chains: &mut BTreeMap<String, Chain>,
        end: impl Fn(Rule, Register) -> Rule,
    ) -> String {
        let made = (0..).take(SLOTS).map(|place| {
            let (mark, read_mark) = (Register(place), Expression::Meta { key: MetaKey::Mark, to: SCRATCH });
            let mut rule = Rule::new().then(read_mark.clone()).then(masked(!PLACE)).then(Expression::Map {
                register: SCRATCH,
                map: self.map.clone(),
                to: SCRATCH,
            });
            if mark == SCRATCH {
                // The `nft` program ends with an assertion when what a lookup gave is looked up; not by way of the mark.
                rule = rule.then(Expression::SetMark { from: mark }).then(read_mark);
            }
            (format!("{ends}-{place}"), Chain { hook: None, rules: vec![end(rule, mark)] })
        });
        let made: Vec<(String, Chain)> = made.collect();
        let name = format!("{ends}-chains");
        sets.insert(name.clone(), Set::Chains(made.iter().map(|(name, _)| name.clone()).collect()));
        chains.extend(made);
        name
    }
}
