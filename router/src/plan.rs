//! What the kernel should hold: rules for the VIPs, blackholes that nothing may pass, and routes to the gateways.
//!
//! Pure functions of whole values. What is learned from peers is planned prefix by prefix ([`learned`]); all else is a
//! small set ([`fixed`]). It knows no socket and does not compare with what is there (see `mirror`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use martlet_bgp::{NeighborId, Path};
use martlet_netlink::{Action, Family, Link, NextHop, Object, Owner, Route, RouteKind, Rule};

use crate::intent::{Intent, Settings};

/// The protocol number of our routes and rules.
pub const PROTOCOL: u8 = 201;
/// The metric of learned and static routes.
pub const METRIC: u32 = 20;
/// The metric of the blackhole defaults: the last resort of their table.
pub const LAST_METRIC: u32 = u32::MAX;
/// `from VIP` to the learned routes.
pub const PRIORITY_EGRESS: u32 = 100;
/// `from VIP` to the blackhole.
pub const PRIORITY_EGRESS_END: u32 = 101;
/// `to VIP` to the blackhole: what the load balancer did not mark.
pub const PRIORITY_INGRESS_END: u32 = 102;

/// What we may touch.
pub fn owner(settings: &Settings) -> Owner {
    Owner {
        protocol: PROTOCOL,
        tables: vec![settings.table..=settings.blackhole_table()],
        priorities: vec![PRIORITY_EGRESS..=PRIORITY_INGRESS_END],
    }
}

/// Rules and blackholes: for every VIP, ready or not, so that none of its packets is ever routed by the main table.
pub fn fixed(intent: &Intent) -> BTreeSet<Object> {
    let settings = &intent.settings;
    let rules = intent.vips.iter().flat_map(|vip| rules(*vip, settings)).map(Object::Rule);
    let tables = [settings.table, settings.blackhole_table()];
    let defaults = [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())];
    let blackholes = tables
        .into_iter()
        .flat_map(|table| {
            defaults.map(|prefix| Route { table, prefix, metric: LAST_METRIC, kind: RouteKind::Blackhole })
        })
        .filter(|_| settings.drop_if_no_peer)
        .map(Object::Route);
    rules.chain(blackholes).collect()
}

fn rules(vip: IpNet, settings: &Settings) -> impl Iterator<Item = Rule> {
    let end = Action::Table(settings.blackhole_table());
    let all = [
        (PRIORITY_EGRESS, Some(vip), None, Action::Table(settings.table)),
        (PRIORITY_EGRESS_END, Some(vip), None, end),
        (PRIORITY_INGRESS_END, None, Some(vip), end),
    ];
    let wanted = if settings.drop_if_no_peer { 3 } else { 1 };
    let family = Family::of(&vip);
    all.into_iter().take(wanted).map(move |(priority, from, to, action)| Rule {
        family,
        priority,
        from,
        to,
        mark: None,
        invert: false,
        action,
    })
}

/// Why a next hop is no way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// There is no such interface.
    NoInterface(Arc<str>),
    /// The interface is down or has no carrier.
    LinkDown(Arc<str>),
    /// No address of the interface has it in its network.
    OffLink(IpAddr, Arc<str>),
    /// It is an address of our own.
    Own(IpAddr),
    /// It is an IPv4 address in IPv6 clothes: what FRR without zebra sends for an IPv6 route over an IPv4 session.
    Mapped(Ipv4Addr),
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInterface(name) => write!(f, "there is no interface {name}"),
            Self::LinkDown(name) => write!(f, "interface {name} is down or has no carrier"),
            Self::OffLink(hop, name) => write!(f, "{hop} is in no network of interface {name}"),
            Self::Own(hop) => write!(f, "{hop} is our own address"),
            Self::Mapped(hop) => {
                write!(f, "::ffff:{hop} is an IPv4-mapped address: the neighbour has no IPv6 address to offer")
            }
        }
    }
}

/// The links, as next hops see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    by_name: BTreeMap<Arc<str>, Link>,
    /// Where the main table leads beyond them.
    main: BTreeMap<IpNet, NextHop>,
}

impl Links {
    /// The links of a snapshot, and nothing beyond them.
    pub fn new(links: &BTreeMap<u32, Link>) -> Self {
        let by_name = links.values().map(|link| (link.name.clone(), link.clone())).collect();
        Self { by_name, main: BTreeMap::new() }
    }

    /// The same links; beyond them the main table leads there.
    #[must_use]
    pub fn beyond(self, main: &BTreeMap<IpNet, NextHop>) -> Self {
        Self { main: main.clone(), ..self }
    }

    /// The same links with what lies beyond those of `other`.
    #[must_use]
    pub fn beyond_as(self, other: &Self) -> Self {
        self.beyond(&other.main)
    }

    /// The link called `name`.
    pub fn get(&self, name: &str) -> Option<&Link> {
        self.by_name.get(name)
    }

    /// The link called `name`, if it carries packets now.
    ///
    /// # Errors
    /// There is none, or it is down.
    pub fn live(&self, name: &Arc<str>) -> Result<&Link, Unresolved> {
        let link = self.get(name).ok_or_else(|| Unresolved::NoInterface(name.clone()))?;
        if link.up && link.carrier { Ok(link) } else { Err(Unresolved::LinkDown(name.clone())) }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.by_name.values()
    }

    /// The way to `hop` over `interface`, or, where the neighbour is `multihop`, over any link whose network it is in, else
    /// as the main table leads to it. A default route over another interface is no way: it may lead into the primary network.
    ///
    /// # Errors
    /// Why there is no way.
    pub fn resolve(
        &self,
        hop: IpAddr,
        interface: &Arc<str>,
        multihop: bool,
        weight: u16,
    ) -> Result<NextHop, Unresolved> {
        if let IpAddr::V6(v6) = hop
            && let Some(mapped) = v6.to_ipv4_mapped()
        {
            return Err(Unresolved::Mapped(mapped));
        }
        if self.iter().any(|link| link.addresses.iter().any(|net| net.addr() == hop)) {
            return Err(Unresolved::Own(hop));
        }
        let link = match self.live(interface) {
            Ok(link) if on_link(link, hop) => link,
            Ok(own) if multihop => {
                if let Some(link) = self.iter().find(|link| link.up && link.carrier && on_link(link, hop)) {
                    link
                } else {
                    let way = self.recursive(hop, own.index);
                    let way = way.ok_or_else(|| Unresolved::OffLink(hop, interface.clone()))?;
                    return Ok(NextHop { weight: weight.clamp(1, 256), ..way });
                }
            }
            Ok(_) => return Err(Unresolved::OffLink(hop, interface.clone())),
            Err(error) => return Err(error),
        };
        Ok(NextHop { gateway: Some(hop), interface: Some(link.index), weight: weight.clamp(1, 256), onlink: false })
    }
}

impl Links {
    /// How the main table leads to `hop`: by the longest prefix, over a link that carries packets.
    fn recursive(&self, hop: IpAddr, own: u32) -> Option<NextHop> {
        let matching = self.main.iter().filter(|(prefix, _)| prefix.contains(&hop));
        let (prefix, way) = matching.max_by_key(|(prefix, _)| prefix.prefix_len())?;
        let link = self.iter().find(|link| Some(link.index) == way.interface && link.up && link.carrier)?;
        if prefix.prefix_len() == 0 && link.index != own {
            return None;
        }
        // Without a gateway everything there is a neighbour on the link, although no address says so.
        let (gateway, onlink) = way.gateway.map_or((hop, true), |gateway| (gateway, way.onlink));
        Some(NextHop { gateway: Some(gateway), interface: Some(link.index), weight: 1, onlink })
    }
}

/// Whether `address` is a neighbour on `link`: in the network of one of its addresses, or link-local.
pub fn on_link(link: &Link, address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    link_local || link.addresses.iter().any(|net| net.contains(&address))
}

/// What planning a route needs to know besides its paths.
#[derive(Clone, Copy, Debug)]
pub struct Ways<'a> {
    /// The wish.
    pub intent: &'a Intent,
    /// The links.
    pub links: &'a Links,
    /// The names of the static gateways that are Up.
    pub statics: &'a BTreeSet<Arc<str>>,
}

impl Ways<'_> {
    /// The next hop of `path`: the global address where it is on the link, else the link-local one (RFC 2545).
    ///
    /// # Errors
    /// Why there is no way.
    pub fn hop(&self, path: &Path) -> Result<NextHop, Unresolved> {
        let Some(neighbor) = self.intent.neighbors.get(&NeighborId(path.neighbor.0.clone())) else {
            return Err(Unresolved::NoInterface("of a neighbour that is gone".into()));
        };
        let transport = &neighbor.transport;
        let resolve = |hop| self.links.resolve(hop, &transport.interface, transport.multihop, path.weight);
        resolve(path.next_hop).or_else(|error| match path.link_local {
            Some(link_local) if !matches!(error, Unresolved::Own(_)) => resolve(IpAddr::V6(link_local)),
            _ => Err(error),
        })
    }

    /// The next hops of the static gateways of the family of `prefix`, if it is the default route, by address.
    fn static_hops(&self, prefix: &IpNet) -> impl Iterator<Item = NextHop> {
        let is_v4 = matches!(prefix, IpNet::V4(_));
        let gateways = self.statics.iter().filter(move |_| prefix.prefix_len() == 0);
        let mut hops: Vec<_> = gateways
            .filter_map(|name| self.intent.statics.get(name))
            .filter(|gateway| gateway.address.is_ipv4() == is_v4)
            .filter_map(|gateway| self.links.resolve(gateway.address, &gateway.interface, false, 1).ok())
            .collect();
        hops.sort();
        hops.into_iter()
    }
}

/// The route to `prefix` over the best `paths`, and for the default route over static gateways after them; `None` if
/// nothing leads there. One next hop, or with ECMP all.
pub fn learned(prefix: IpNet, paths: &[Path], ways: &Ways<'_>) -> Option<Object> {
    let settings = &ways.intent.settings;
    let most = if settings.ecmp { usize::MAX } else { 1 };
    let mut hops: Vec<NextHop> = Vec::new();
    for hop in paths.iter().filter_map(|path| ways.hop(path).ok()).chain(ways.static_hops(&prefix)) {
        let known = hops.iter().any(|other| (other.gateway, other.interface) == (hop.gateway, hop.interface));
        if hops.len() < most && !known {
            hops.push(hop);
        }
    }
    if let [only] = hops.as_mut_slice() {
        only.weight = 1;
    }
    hops.sort();
    let route = Route { table: settings.table, prefix, metric: METRIC, kind: RouteKind::Unicast(hops) };
    (!matches!(&route.kind, RouteKind::Unicast(hops) if hops.is_empty())).then_some(Object::Route(route))
}

#[cfg(test)]
mod tests {
    use martlet_api::view::{Bgp, GatewayRouter, ObjectName, Protocol, View};

    use super::*;

    fn settings() -> Settings {
        Settings { external_interface: "eth0".into(), ..Settings::default() }
    }

    fn intent(settings: &Settings, routers: &[(&str, &str, bool)]) -> Intent {
        let bgp = || Protocol::Bgp(Box::<Bgp>::default());
        let view = View {
            gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
            exists: true,
            routers: routers
                .iter()
                .map(|&(name, address, is_bgp)| {
                    let protocol = if is_bgp { bgp() } else { Protocol::Static(None) };
                    let address = address.parse().unwrap();
                    (name.into(), GatewayRouter { address, interface: None, description: None, protocol })
                })
                .collect(),
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            vips: ["20.0.0.1/32".parse().unwrap(), "2000::1/128".parse().unwrap()].into(),
            subnets: BTreeSet::new(),
            conditions: BTreeSet::new(),
        };
        Intent::new(&view, settings)
    }

    fn links(up: bool) -> Links {
        let link = Link {
            index: 7,
            name: "eth0".into(),
            up,
            carrier: up,
            mtu: 1500,
            addresses: ["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()].into(),
        };
        Links::new(&[(7, link)].into())
    }

    fn path(neighbor: &str, hop: &str) -> Path {
        Path {
            next_hop: hop.parse().unwrap(),
            link_local: None,
            neighbor: NeighborId::new(neighbor),
            weight: 1,
            stale: false,
        }
    }

    fn hops(object: Option<&Object>) -> Vec<String> {
        match object {
            Some(Object::Route(Route { kind: RouteKind::Unicast(hops), .. })) => {
                hops.iter().map(|hop| hop.gateway.unwrap().to_string()).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn every_vip_has_its_three_rules_and_both_families_their_blackholes() {
        let objects = fixed(&intent(&settings(), &[]));
        let rules: Vec<_> = objects.iter().filter(|object| matches!(object, Object::Rule(_))).collect();
        assert_eq!((objects.len(), rules.len()), (10, 6));
        let end = Rule {
            family: Family::Ipv4,
            priority: 102,
            from: None,
            to: Some("20.0.0.1/32".parse().unwrap()),
            mark: None,
            invert: false,
            action: Action::Table(4097),
        };
        assert!(objects.contains(&Object::Rule(end)));
    }

    #[test]
    fn without_leak_protection_only_the_way_out_is_left() {
        let objects = fixed(&intent(&Settings { drop_if_no_peer: false, ..settings() }, &[]));
        assert_eq!(objects.len(), 2);
        assert!(objects.iter().all(|object| matches!(object, Object::Rule(Rule { priority: 100, .. }))));
    }

    #[test]
    fn one_next_hop_the_best_or_all_with_ecmp() {
        let gateways = [("a", "10.0.0.2", true), ("b", "10.0.0.3", true)];
        let paths = [path("b", "10.0.0.3"), path("a", "10.0.0.2")];
        let (links, statics, prefix) = (links(true), BTreeSet::new(), "0.0.0.0/0".parse().unwrap());
        let one = intent(&settings(), &gateways);
        let ways = Ways { intent: &one, links: &links, statics: &statics };
        assert_eq!(hops(learned(prefix, &paths, &ways).as_ref()), ["10.0.0.3"]);
        let all = intent(&Settings { ecmp: true, ..settings() }, &gateways);
        let ways = Ways { intent: &all, links: &links, statics: &statics };
        assert_eq!(hops(learned(prefix, &paths, &ways).as_ref()), ["10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn a_next_hop_must_be_on_the_link_and_not_ours() {
        let intent = intent(&settings(), &[("a", "10.0.0.2", true)]);
        let (up, statics) = (links(true), BTreeSet::new());
        let ways = Ways { intent: &intent, links: &up, statics: &statics };
        let prefix = "10.9.0.0/16".parse().unwrap();
        assert_eq!(learned(prefix, &[path("a", "10.1.0.2")], &ways), None);
        assert_eq!(ways.hop(&path("a", "10.0.0.1")), Err(Unresolved::Own("10.0.0.1".parse().unwrap())));
        assert_eq!(
            hops(learned(prefix, &[path("a", "10.1.0.2"), path("a", "10.0.0.2")], &ways).as_ref()),
            ["10.0.0.2"]
        );
        let down = links(false);
        let ways = Ways { links: &down, ..ways };
        assert_eq!(learned(prefix, &[path("a", "10.0.0.2")], &ways), None);
    }

    #[test]
    fn a_next_hop_far_away_is_reached_as_the_main_table_leads_but_not_by_another_default_route() {
        let via = |gateway: Option<&str>, interface| NextHop {
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            interface: Some(interface),
            weight: 1,
            onlink: false,
        };
        let name: Arc<str> = "eth0".into();
        let main: BTreeMap<IpNet, NextHop> = [
            ("10.9.0.0/16".parse().unwrap(), via(Some("10.0.0.8"), 7)),
            ("10.9.1.0/24".parse().unwrap(), via(Some("10.0.0.9"), 7)),
            ("10.8.0.0/16".parse().unwrap(), via(None, 7)),
            ("0.0.0.0/0".parse().unwrap(), via(Some("10.244.0.1"), 2)),
        ]
        .into();
        let links = links(true).beyond(&main);
        let way = |hop: &str, multihop| {
            let hop = links.resolve(hop.parse().unwrap(), &name, multihop, 1).ok()?;
            Some((hop.gateway.unwrap().to_string(), hop.onlink))
        };
        assert_eq!(way("10.9.1.1", true), Some(("10.0.0.9".into(), false)));
        assert_eq!(way("10.9.2.1", true), Some(("10.0.0.8".into(), false)));
        assert_eq!(way("10.8.0.1", true), Some(("10.8.0.1".into(), true)));
        assert_eq!(way("10.9.1.1", false), None, "a neighbour on the link has its next hops there");
        assert_eq!(way("10.7.0.1", true), None, "the primary network is not a way out");
    }

    #[test]
    fn the_link_local_next_hop_stands_in_for_a_global_one_that_is_off_the_link() {
        let intent = intent(&settings(), &[("a", "fd00::2", true)]);
        let (links, statics) = (links(true), BTreeSet::new());
        let ways = Ways { intent: &intent, links: &links, statics: &statics };
        let both = Path { link_local: Some("fe80::2".parse().unwrap()), ..path("a", "fd99::2") };
        assert_eq!(hops(learned("::/0".parse().unwrap(), &[both], &ways).as_ref()), ["fe80::2"]);
    }

    #[test]
    fn an_ipv4_mapped_next_hop_leads_nowhere_and_says_so() {
        let intent = intent(&settings(), &[("a", "10.0.0.2", true)]);
        let (links, statics) = (links(true), BTreeSet::new());
        let ways = Ways { intent: &intent, links: &links, statics: &statics };
        let mapped = path("a", "::ffff:10.0.0.2");
        assert!(ways.hop(&mapped).unwrap_err().to_string().starts_with("::ffff:10.0.0.2 is an IPv4-mapped address"));
        assert_eq!(learned("::/0".parse().unwrap(), std::slice::from_ref(&mapped), &ways), None);
        let both = Path { link_local: Some("fe80::2".parse().unwrap()), ..mapped };
        assert_eq!(hops(learned("::/0".parse().unwrap(), &[both], &ways).as_ref()), ["fe80::2"]);
    }

    #[test]
    fn static_gateways_that_are_up_make_the_default_route_of_their_family() {
        let intent = intent(&settings(), &[("s", "10.0.0.9", false), ("t", "10.0.0.8", false)]);
        let links = links(true);
        let both = ["s".into(), "t".into()].into();
        let ways = Ways { intent: &intent, links: &links, statics: &both };
        assert_eq!(
            hops(learned("0.0.0.0/0".parse().unwrap(), &[], &ways).as_ref()),
            ["10.0.0.8"],
            "the lowest address"
        );
        assert_eq!(learned("::/0".parse().unwrap(), &[], &ways), None);
        assert_eq!(learned("10.0.0.0/8".parse().unwrap(), &[], &ways), None);
        let one = ["s".into()].into();
        let ways = Ways { statics: &one, ..ways };
        assert_eq!(hops(learned("0.0.0.0/0".parse().unwrap(), &[], &ways).as_ref()), ["10.0.0.9"]);
    }
}
