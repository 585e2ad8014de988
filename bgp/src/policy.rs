//! What is let in, what is let out, and with which attributes (RFC 8212: nothing without a policy).
//!
//! Pure functions of a neighbour's configuration, of what its session negotiated, and of a route.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::intern::{AttributesId, Interner, NeighborIndex, OWN, SELF, Scope, Stored};
use crate::rib::Path;
use crate::session::Negotiated;
use crate::wire::as_path::AsPath;
use crate::wire::attribute::{Attributes, NextHop, Origin, PARTIAL, TRANSITIVE};
use crate::wire::prefix::Prefix;
use crate::{Endpoints, Export, Family, Import, NeighborConfig, Role};

/// Whether `import` lets `prefix` in.
pub fn accepts<P: Prefix>(import: &Import, prefix: P) -> bool {
    match import {
        Import::None => false,
        Import::All => true,
        Import::Default => prefix.length() == 0,
        Import::Prefixes(ranges) => ranges.iter().any(|range| {
            let length = range.prefix.prefix_len();
            P::of(&range.prefix).is_some_and(|outer| {
                prefix.length() >= length
                    && prefix.truncated(length) == outer
                    && (range.min_length..=range.max_length).contains(&prefix.length())
            })
        }),
    }
}

/// Our own prefixes of one family, quick to ask: most of what is asked has a length that none of them has.
#[derive(Clone, Debug)]
pub struct OwnPrefixes<P> {
    all: BTreeSet<P>,
    lengths: BTreeSet<u8>,
}

impl<P: Prefix> OwnPrefixes<P> {
    /// Those of the family.
    pub fn new(prefixes: &BTreeSet<IpNet>) -> Self {
        let all: BTreeSet<P> = prefixes.iter().filter_map(P::of).collect();
        let lengths = all.iter().map(|prefix| prefix.length()).collect();
        Self { all, lengths }
    }

    /// Whether `prefix` is one.
    pub fn contains(&self, prefix: P) -> bool {
        self.lengths.contains(&prefix.length()) && self.all.contains(&prefix)
    }
}

/// Whether a route with OTC from a neighbour to which we are `role` is a leak (RFC 9234 section 5, ingress).
pub fn leaked(role: Option<Role>, only_to_customer: Option<u32>, remote_as: u32) -> bool {
    match (role, only_to_customer) {
        (Some(Role::Provider | Role::RouteServer), Some(_)) => true,
        (Some(Role::Peer), Some(asn)) => asn != remote_as,
        _ => false,
    }
}

/// The OTC that a route gets when it has none (RFC 9234 section 5, ingress): it came from above or beside us.
pub const fn marked(role: Option<Role>, remote_as: u32) -> Option<u32> {
    match role {
        Some(Role::Customer | Role::Peer | Role::RouteServerClient) => Some(remote_as),
        _ => None,
    }
}

/// Everything that decides what a neighbour hears.
#[derive(Clone, Copy, Debug)]
pub struct Exporter<'a> {
    /// Its place.
    pub neighbor: NeighborIndex,
    /// Its configuration.
    pub config: &'a NeighborConfig,
    /// What its session negotiated.
    pub negotiated: &'a Negotiated,
    /// The ends of its connection.
    pub endpoints: &'a Endpoints,
    /// Our BGP identifier, which is also our cluster id (RFC 4456).
    pub router_id: Ipv4Addr,
}

impl Exporter<'_> {
    /// The attributes with which the neighbour should hear of `prefix` by `path`, if it should.
    pub fn wanted<P: Prefix>(&self, prefix: P, path: Option<Path>, interner: &Interner) -> Option<AttributesId> {
        let path = path?;
        let export = &self.config.export;
        self.own_next_hop(P::FAMILY)?;
        if path.neighbor == SELF {
            return export.own.then_some(OWN);
        }
        if path.neighbor == self.neighbor || matches!(export.transit, Import::None) {
            return None;
        }
        let stored = interner.get(path.attributes);
        let within = !stored.external && !self.negotiated.external;
        let reflected = stored.client || self.config.route_reflector_client;
        if within && !reflected || !accepts(&export.transit, prefix) {
            return None;
        }
        // RFC 9494 section 4.3: only who knows what it means hears of a last resort.
        if stored.last_resort && self.negotiated.long_lived.is_none() {
            return None;
        }
        match stored.scope {
            Scope::Here => return None,
            Scope::As if self.negotiated.external => return None,
            Scope::As | Scope::Anywhere => (),
        }
        // RFC 9234 section 5, egress: what is only for customers goes to nobody else. The octets are read only then.
        let upwards = matches!(self.config.role, Some(Role::Customer | Role::Peer | Role::RouteServerClient));
        if upwards && self.negotiated.external && stored.attributes().only_to_customer.is_some() {
            return None;
        }
        Some(path.attributes)
    }

    /// Our address as the neighbour should use it for routes of `family`; `None`: we have none, nothing can be announced.
    pub fn own_next_hop(&self, family: Family) -> Option<NextHop> {
        let local = self.endpoints.local.ip();
        let other = self.endpoints.local_other;
        let link_local = self.endpoints.local_link_local;
        match (family, local) {
            (Family::Ipv4, IpAddr::V4(_)) => Some(NextHop { address: local, link_local: None }),
            (Family::Ipv4, IpAddr::V6(_)) if self.negotiated.extended_next_hop => {
                Some(NextHop { address: local, link_local })
            }
            (Family::Ipv6, IpAddr::V6(address)) if address.is_unicast_link_local() => {
                // RFC 2545 wants a global address before the link-local one; a link may have none.
                let global = other.filter(IpAddr::is_ipv6).unwrap_or(local);
                Some(NextHop { address: global, link_local: Some(address) })
            }
            (Family::Ipv6, IpAddr::V6(_)) => Some(NextHop { address: local, link_local }),
            (Family::Ipv4, IpAddr::V6(_)) => {
                other.filter(IpAddr::is_ipv4).map(|address| NextHop { address, link_local: None })
            }
            (Family::Ipv6, IpAddr::V4(_)) => {
                // A link with IPv4 addresses only still has a link-local one.
                let own = other.filter(IpAddr::is_ipv6).or(link_local.map(IpAddr::V6));
                own.map(|address| NextHop { address, link_local })
            }
        }
    }

    /// Writes the attributes of `id` as the neighbour should see them, but for the next hop, which is returned.
    pub fn attributes(
        &self,
        id: AttributesId,
        family: Family,
        interner: &Interner,
        out: &mut Vec<u8>,
    ) -> Option<NextHop> {
        let own = self.own_next_hop(family)?;
        let export = &self.config.export;
        let external = self.negotiated.external;
        let stored = interner.get(id);
        let mut attributes = if id == OWN {
            Attributes { origin: Some(Origin::Igp), as_path: Some(AsPath::empty()), ..Attributes::default() }
        } else {
            stored.attributes()
        };
        let mut hop = own;
        let cluster_list;
        let extended;
        if external {
            let path = attributes.as_path.take().unwrap_or_else(AsPath::empty);
            attributes.as_path = Some(path.prepended(self.config.local_as, 1 + usize::from(export.prepend)));
            attributes.local_pref = None;
            attributes.multi_exit_disc = export.med;
            attributes.originator_id = None;
            attributes.cluster_list = &[];
            // RFC 4360 section 6: what is not transitive does not cross the border.
            extended = attributes
                .extended_communities
                .chunks_exact(8)
                .filter(|one| one[0] & 0x40 == 0)
                .collect::<Vec<_>>()
                .concat();
            attributes.extended_communities = &extended;
            let downwards = matches!(self.config.role, Some(Role::Provider | Role::Peer | Role::RouteServer));
            if downwards && attributes.only_to_customer.is_none() {
                attributes.only_to_customer = Some(self.config.local_as);
            }
        } else {
            attributes.local_pref = attributes.local_pref.or(Some(export.local_preference));
            attributes.multi_exit_disc = attributes.multi_exit_disc.or(export.med);
            if id != OWN && !stored.external {
                // RFC 4456 section 8.
                hop = stored.next_hop;
                attributes.originator_id = attributes.originator_id.or(Some(stored.router_id));
                cluster_list = [&self.router_id.octets(), attributes.cluster_list].concat();
                attributes.cluster_list = &cluster_list;
            }
        }
        for unknown in &mut attributes.unknown {
            // RFC 4271 section 5: we did not know it either.
            unknown.flags |= PARTIAL | TRANSITIVE;
        }
        let (communities, large) = communities(export, &attributes);
        attributes.communities = &communities;
        attributes.large_communities = &large;
        if !beside(family, &hop) {
            attributes.next_hop = match hop.address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            };
        }
        attributes.put(self.negotiated.width, out);
        Some(hop)
    }
}

/// Whether prefixes of `family` with this next hop go into `MP_REACH_NLRI`.
pub fn beside(family: Family, hop: &NextHop) -> bool {
    family == Family::Ipv6 || hop.address.is_ipv6()
}

/// The communities of a route and those that the policy adds, in order and once each.
fn communities(export: &Export, attributes: &Attributes<'_>) -> (Vec<u8>, Vec<u8>) {
    let mut standard: BTreeSet<u32> = attributes.communities().collect();
    standard.extend(&export.communities);
    if export.graceful_shutdown {
        standard.insert(crate::intern::community::GRACEFUL_SHUTDOWN);
    }
    let mut large: BTreeSet<[u8; 12]> =
        attributes.large_communities.chunks_exact(12).filter_map(|one| one.try_into().ok()).collect();
    for (global, first, second) in &export.large_communities {
        let mut octets = [0; 12];
        let words = [global, first, second];
        octets.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_be_bytes()));
        large.insert(octets);
    }
    (standard.into_iter().flat_map(u32::to_be_bytes).collect(), large.into_iter().flatten().collect())
}

/// What of a set of attributes keeps a route out, whatever its prefix.
pub fn refused(
    attributes: &Attributes<'_>,
    hop: &NextHop,
    config: &NeighborConfig,
    own: &Stance<'_>,
) -> Option<Refusal> {
    let path = attributes.as_path.as_ref();
    if path.is_some_and(|path| path.numbers().any(|asn| asn == config.local_as)) {
        return Some(Refusal::AsLoop);
    }
    if !own.negotiated.external {
        // RFC 4456 section 8.
        let clusters = attributes.cluster_list.chunks_exact(4);
        if attributes.originator_id == Some(own.router_id)
            || clusters.into_iter().any(|one| one == own.router_id.octets())
        {
            return Some(Refusal::Reflected);
        }
    } else if leaked(config.role, attributes.only_to_customer, own.negotiated.remote_as) {
        return Some(Refusal::Leak);
    }
    // RFC 4271 section 6.3: it is not the address of who receives it.
    let ours = [Some(own.endpoints.local.ip()), own.endpoints.local_other];
    ours.contains(&Some(hop.address)).then_some(Refusal::OwnNextHop)
}

/// Where we stand towards who told a route.
#[derive(Clone, Copy, Debug)]
pub struct Stance<'a> {
    /// What the session negotiated.
    pub negotiated: &'a Negotiated,
    /// The ends of the connection.
    pub endpoints: &'a Endpoints,
    /// Our BGP identifier.
    pub router_id: Ipv4Addr,
}

/// Why routes are not used though nothing is wrong with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// We are in its path already.
    AsLoop,
    /// We reflected it ourselves.
    Reflected,
    /// Only for customers (RFC 9234).
    Leak,
    /// We are its next hop.
    OwnNextHop,
}

/// How many shares of the traffic each path gets, by the bandwidth that it tells; all 1 if one of them tells none.
pub fn weights(paths: &[&Stored]) -> Vec<u16> {
    let least = paths.iter().map(|path| path.bandwidth).fold(f32::INFINITY, f32::min);
    let share = |path: &&Stored| {
        if least > 0.0 && least.is_finite() { whole((path.bandwidth / least).min(256.0)) } else { 1 }
    };
    paths.iter().map(share).collect()
}

#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and 256"
)]
fn whole(share: f32) -> u16 {
    share.round().clamp(1.0, 256.0) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrefixRange;
    use crate::wire::prefix::{Prefix4, Prefix6};

    fn four(net: &str) -> Prefix4 {
        Prefix4::of(&net.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_listed_prefix_has_bounds_on_what_is_inside_it() {
        let range = PrefixRange { prefix: "10.0.0.0/8".parse().unwrap(), min_length: 16, max_length: 24 };
        let import = Import::Prefixes(vec![range]);
        let accepted = ["10.1.0.0/16", "10.1.2.0/24"].map(|net| accepts(&import, four(net)));
        let refused = ["10.0.0.0/8", "10.1.2.3/32", "11.1.0.0/16", "0.0.0.0/0"].map(|net| accepts(&import, four(net)));
        assert_eq!((accepted, refused), ([true; 2], [false; 4]));
        assert!(!accepts(&import, Prefix6::new(&[10], 16)));
    }

    #[test]
    fn the_default_route_only() {
        assert!(accepts(&Import::Default, four("0.0.0.0/0")));
        assert!(!accepts(&Import::Default, four("0.0.0.0/1")));
        assert!(!accepts(&Import::None, four("0.0.0.0/0")));
    }

    #[test]
    fn a_route_for_customers_only_is_a_leak_from_a_customer_and_from_a_foreign_peer() {
        assert!(leaked(Some(Role::Provider), Some(5), 7));
        assert!(leaked(Some(Role::Peer), Some(5), 7));
        assert!(!leaked(Some(Role::Peer), Some(7), 7));
        assert!(!leaked(Some(Role::Customer), Some(5), 7));
        assert!(!leaked(None, Some(5), 7));
        assert_eq!(marked(Some(Role::Customer), 7), Some(7));
        assert_eq!(marked(Some(Role::Provider), 7), None);
    }
}
