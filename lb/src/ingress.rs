//! The table of the short way ([`offload::ingress`](crate::offload::ingress)) as the kernel holds it. Nobody misses it where the
//! kernel cannot do it: packets take the longer way.

use std::collections::BTreeMap;

use martlet_netlink::nft::{Connection, Layer, Place, Table};
use martlet_netlink::{Error, Family};

use crate::counters::Counters;
use crate::engine::Tables;
use crate::offload::counts::{self, Counts, Reading};
use crate::offload::ways_of;
use crate::rules::NFT_TABLE;

/// It, and what it has counted.
#[derive(Default)]
pub struct Ingress {
    /// Whether it is known what is there.
    known: bool,
    table: Option<Table>,
    /// By route (`None`), and by endpoint of each family.
    counts: BTreeMap<Option<Family>, Counts>,
}

impl Ingress {
    /// Makes it what is wanted, or takes it away; what is to be said of it, after what is said of the engine.
    pub fn apply(&mut self, nft: &mut Connection, want: Option<Table>) -> String {
        if !self.known || self.table != want {
            let before = self.table.take();
            let applied = want.as_ref().map_or(Ok(()), |table| nft.apply(table, before.as_ref()));
            self.known = true;
            match applied {
                Ok(()) if want.is_some() => self.table = want,
                refused => {
                    // What is there, if anything, is of another moment.
                    let _ = nft.delete(Layer::Netdev, NFT_TABLE);
                    return refused
                        .err()
                        .map_or_else(String::new, |error| format!("; not where they come in: {error}"));
                }
            }
        }
        let hooks = self.table.iter().flat_map(|table| table.chains.values()).filter_map(|chain| chain.hook.as_ref());
        let links: Vec<&str> = hooks
            .flat_map(|hook| match &hook.place {
                Place::Ingress(links) => links.iter().map(String::as_str).collect(),
                _ => Vec::new(),
            })
            .collect();
        if links.is_empty() { String::new() } else { format!("; where they come in, on {}", links.join(", ")) }
    }

    /// Another had a hand in it.
    pub fn forget(&mut self) {
        (self.known, self.table) = (false, None);
    }

    /// Whether it is known what is there.
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// Reads what it counted while `tables` were in force.
    ///
    /// # Errors
    /// Somebody deleted it.
    pub fn count(&mut self, nft: &mut Connection, tables: &Tables) -> Result<(), Error> {
        let Some(table) = &self.table else { return Ok(()) };
        let routes = nft.counts(Layer::Netdev, NFT_TABLE, counts::ROUTES)?;
        self.counts.entry(None).or_default().take(routes, Reading::new(), tables);
        for family in Family::ALL.into_iter().filter(|family| table.sets.contains_key(ways_of(*family))) {
            let endpoints = nft.counts(Layer::Netdev, NFT_TABLE, ways_of(family))?;
            self.counts.entry(Some(family)).or_default().take(Reading::new(), endpoints, tables);
        }
        Ok(())
    }

    /// Adds what was counted.
    pub fn add_to(&self, counters: &mut Counters) {
        self.counts.values().for_each(|counts| counts.add_to(counters));
    }
}
