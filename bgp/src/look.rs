//! A look at one route with all its attributes, for those who show routes (`martlet speaker --json`).
//!
//! It reads what `rib` and `intern` store; it changes nothing.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::rib::Tables;
use crate::wire::attribute::Origin;
use crate::wire::prefix::{Prefix as _, Prefix4, Prefix6};
use crate::{NeighborId, NeighborState, Speaker};

/// One route of one neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteDetails {
    /// ORIGIN in a word: igp, egp, incomplete.
    pub origin: &'static str,
    /// The AS numbers of `AS_PATH` in order, those of sets included.
    pub as_path: Vec<u32>,
    /// Where packets go.
    pub next_hop: IpAddr,
    /// The link-local address that came with it (RFC 2545).
    pub link_local: Option<Ipv6Addr>,
    /// `MULTI_EXIT_DISC`.
    pub med: Option<u32>,
    /// `LOCAL_PREF`.
    pub local_preference: Option<u32>,
    /// Standard communities (RFC 1997).
    pub communities: Vec<u32>,
    /// Large communities (RFC 8092).
    pub large_communities: Vec<(u32, u32, u32)>,
    /// All path attributes but the next hop, in octets as on the wire, with AS numbers of four octets.
    pub octets: Vec<u8>,
}

impl Speaker {
    /// The state of `neighbor` (of its more advanced connection); `None` if there is no such neighbour.
    pub fn state(&self, neighbor: &NeighborId) -> Option<NeighborState> {
        let index = self.names.get(neighbor).copied().map(usize::from)?;
        self.neighbors.get(index)?.as_ref().map(|neighbor| neighbor.state())
    }

    /// The route to `prefix` that `neighbor` told; `None` if there is none.
    pub fn route(&self, neighbor: &NeighborId, prefix: &IpNet) -> Option<RouteDetails> {
        match prefix {
            IpNet::V4(_) => self.family_route(neighbor, Prefix4::of(prefix)?),
            IpNet::V6(_) => self.family_route(neighbor, Prefix6::of(prefix)?),
        }
    }

    fn family_route<P: Tables>(&self, neighbor: &NeighborId, prefix: P) -> Option<RouteDetails> {
        let table = P::table(&self.rib);
        let told = |path: &crate::rib::Path| {
            let teller = self.neighbors.get(usize::from(path.neighbor)).and_then(Option::as_ref);
            teller.is_some_and(|teller| teller.id == *neighbor)
        };
        let path = table.paths(table.find(prefix)?).find(told)?;
        let stored = self.rib.interner.get(path.attributes);
        let attributes = stored.attributes();
        let large = attributes.large_communities.chunks_exact(12).filter_map(|one| {
            let number = |at: usize| Some(u32::from_be_bytes(one.get(at..at + 4)?.try_into().ok()?));
            Some((number(0)?, number(4)?, number(8)?))
        });
        Some(RouteDetails {
            origin: match stored.origin {
                Origin::Igp => "igp",
                Origin::Egp => "egp",
                Origin::Incomplete => "incomplete",
            },
            as_path: attributes.as_path.as_ref().map(|path| path.numbers().collect()).unwrap_or_default(),
            next_hop: stored.next_hop.address,
            link_local: stored.next_hop.link_local,
            med: attributes.multi_exit_disc,
            local_preference: attributes.local_pref,
            communities: attributes.communities().collect(),
            large_communities: large.collect(),
            octets: stored.octets().to_vec(),
        })
    }
}
