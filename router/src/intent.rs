//! What the operator wants of this router: the accepted objects and the process options, as one whole value.
//!
//! A pure function makes it from [`View`] and [`Settings`]; it knows no link, no session and no clock. The object always
//! wins: a setting only fills what a `GatewayRouter` omits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use martlet_api::readiness::Families;
use martlet_api::view::{self, Condition, ObjectName, Protocol, View};
use martlet_bfd::{SessionConfig, SessionId};
use martlet_bgp::{
    Bfd, Export, Family, GracefulRestart, HoldTime, Import, NeighborConfig, NeighborId, PrefixLimit, PrefixRange, Role,
};

use crate::net_ao::{Algorithm, AoKey};
use crate::supervision::Supervision;

/// Seconds that a neighbour is asked to keep our routes while we restart, unless its object says otherwise.
const RESTART_TIME_S: u16 = 120;

/// What the process was told, as far as it shapes the Intent: the `NFE_*` variables of the frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The interface of what names none (`NFE_EXTERNAL_INTERFACE`).
    pub external_interface: Arc<str>,
    /// Our AS number towards a gateway that names none (`NFE_LOCAL_AS`).
    pub local_as: u32,
    /// The AS number of a gateway that names none (`NFE_REMOTE_AS`).
    pub remote_as: u32,
    /// The port that we listen on (`NFE_BGP_LOCAL_PORT`).
    pub local_port: u16,
    /// The port that we connect to (`NFE_BGP_REMOTE_PORT`).
    pub remote_port: u16,
    /// The hold time that we propose (`NFE_BGP_HOLD_TIME`).
    pub hold_time: HoldTime,
    /// The first of two consecutive tables: learned routes, and blackholes in the next one (`NFE_TABLE_ID`).
    pub table: u32,
    /// Whether a prefix has all its best next hops, or one (`NFE_ECMP`).
    pub ecmp: bool,
    /// Whether what no route takes is dropped (`NFE_DROP_IF_NO_PEER`).
    pub drop_if_no_peer: bool,
    /// Whether a VIP is announced only while a default route of its family is known.
    pub require_egress_route: bool,
    /// Static next hops without supervision (`NFE_VRRPS`).
    pub vrrps: BTreeSet<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            external_interface: "ext-vlan".into(),
            local_as: 8103,
            remote_as: 4_248_829_953,
            local_port: 10179,
            remote_port: 10179,
            hold_time: HoldTime::new(3).unwrap_or(HoldTime::DEFAULT),
            table: 4096,
            ecmp: false,
            drop_if_no_peer: true,
            require_egress_route: false,
            vrrps: BTreeSet::new(),
        }
    }
}

impl Settings {
    /// The table of the blackhole defaults: the one after `table`.
    pub const fn blackhole_table(&self) -> u32 {
        self.table.saturating_add(1)
    }
}

/// A key of TCP MD5 (RFC 2385). `Debug` never shows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub Arc<[u8]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How a BGP neighbour is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transport {
    /// Its address.
    pub address: IpAddr,
    /// The interface that everything of it belongs to.
    pub interface: Arc<str>,
    /// The port that we listen on for it.
    pub local_port: u16,
    /// The port that we connect to.
    pub remote_port: u16,
    /// Our address; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// TTL or hop limit of what we send.
    pub ttl: u8,
    /// The least TTL or hop limit that we accept (GTSM, RFC 5082).
    pub min_ttl: Option<u8>,
    /// Whether it may be off the link.
    pub multihop: bool,
    /// TCP MD5.
    pub key: Option<Key>,
    /// TCP-AO.
    pub ao: Option<AoKey>,
}

/// A BGP neighbour: what it should be, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// For the speaker.
    pub config: NeighborConfig,
    /// For the driver.
    pub transport: Transport,
    /// The BFD session that supervises it.
    pub bfd: Option<SessionId>,
    /// For a human.
    pub description: Option<Arc<str>>,
}

/// A static next hop of the default route of its family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Static {
    /// Its address.
    pub address: IpAddr,
    /// Our interface towards it.
    pub interface: Arc<str>,
    /// The BFD session that supervises it; `None`: it is taken for Up while the link has carrier.
    pub bfd: Option<SessionId>,
}

/// The whole wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Our Gateway.
    pub gateway: ObjectName,
    /// What the process was told.
    pub settings: Settings,
    /// The BGP neighbours, by the name of their `GatewayRouter`.
    pub neighbors: BTreeMap<NeighborId, Neighbor>,
    /// The static gateways by name; those of `NFE_VRRPS` are called `vrrp-ADDRESS`.
    pub statics: BTreeMap<Arc<str>, Static>,
    /// The BFD sessions of all of them.
    pub bfd: BTreeMap<SessionId, SessionConfig>,
    /// The VIPs, announced or not.
    pub vips: BTreeSet<IpNet>,
    /// `GatewayRouter`s that are accepted and yet not tried, with the reason.
    pub withheld: BTreeMap<Arc<str>, Arc<str>>,
    /// What users should know about objects.
    pub conditions: BTreeSet<Condition>,
}

/// The family of an address.
pub const fn family_of(address: &IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}

/// The default route of a family.
pub fn default_prefix(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::Ipv6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

impl Intent {
    /// The wish that `view` and `settings` make.
    pub fn new(view: &View, settings: &Settings) -> Self {
        let mut intent = Self {
            gateway: view.gateway.clone(),
            settings: settings.clone(),
            neighbors: BTreeMap::new(),
            statics: BTreeMap::new(),
            bfd: BTreeMap::new(),
            // A Gateway that is gone takes its VIPs along; its routers stay until their objects go.
            vips: if view.exists { view.vips.clone() } else { BTreeSet::new() },
            withheld: BTreeMap::new(),
            conditions: view.conditions.clone(),
        };
        let mut taken = BTreeMap::new();
        let mut supervision = Supervision::new(view, &settings.external_interface);
        for (name, router) in &view.routers {
            let interface = router.interface.clone().unwrap_or_else(|| settings.external_interface.clone());
            // A BGP neighbour may be a static next hop too.
            let place = (router.address, interface.clone(), matches!(router.protocol, Protocol::Bgp(_)));
            if let Some(first) = taken.get(&place) {
                let reason =
                    format!("{} on {interface} is already the address of GatewayRouter {first}", router.address);
                intent.withheld.insert(name.clone(), reason.into());
                continue;
            }
            if let Err(reason) = intent.add(name, router, &interface, &mut supervision) {
                intent.withheld.insert(name.clone(), reason.into());
            }
            taken.insert(place, name.clone());
        }
        intent.bfd = supervision.sessions;
        for address in &settings.vrrps {
            let (address, interface) = (*address, settings.external_interface.clone());
            intent.statics.insert(format!("vrrp-{address}").into(), Static { address, interface, bfd: None });
        }
        intent
    }

    fn add(
        &mut self,
        name: &Arc<str>,
        router: &view::GatewayRouter,
        interface: &Arc<str>,
        supervision: &mut Supervision,
    ) -> Result<(), String> {
        match &router.protocol {
            Protocol::Bgp(bgp) => {
                let neighbor = neighbor(router, interface, bgp, &self.settings)?;
                let bfd = supervision.client(name, router, interface)?;
                self.neighbors.insert(NeighborId(name.clone()), Neighbor { bfd, ..neighbor });
            }
            Protocol::Static(_) => {
                let bfd = supervision.client(name, router, interface)?;
                let gateway = Static { address: router.address, interface: interface.clone(), bfd };
                self.statics.insert(name.clone(), gateway);
            }
        }
        Ok(())
    }

    /// The neighbour that a connection from `address` over `interface` to our `port` belongs to.
    pub fn neighbor_at(&self, address: IpAddr, interface: &str, port: u16) -> Option<&NeighborId> {
        self.neighbors
            .iter()
            .find(|(_, neighbor)| {
                let transport = &neighbor.transport;
                transport.address == address && &*transport.interface == interface && transport.local_port == port
            })
            .map(|(id, _)| id)
    }
}

/// A BGP neighbour; its BFD session is not known here.
fn neighbor(
    router: &view::GatewayRouter,
    interface: &Arc<str>,
    bgp: &view::Bgp,
    settings: &Settings,
) -> Result<Neighbor, String> {
    let extra = &bgp.extra;
    let config = neighbor_config(bgp, settings, router.address);
    let ttl = match (extra.ttl_security, extra.multihop_ttl) {
        (true, _) => 255,
        (false, Some(ttl)) => ttl,
        (false, None) if config.remote_as == Some(config.local_as) => 64,
        (false, None) => 1,
    };
    let min_ttl = extra.ttl_security.then(|| 255 - extra.multihop_ttl.map_or(0, |hops| hops.saturating_sub(1)));
    let transport = Transport {
        address: router.address,
        interface: interface.clone(),
        local_port: bgp.local_port.unwrap_or(settings.local_port),
        remote_port: bgp.remote_port.unwrap_or(settings.remote_port),
        source: extra.source_address,
        ttl,
        min_ttl,
        multihop: extra.multihop_ttl.is_some(),
        key: bgp.password.as_ref().map(|password| secret(password).map(Key)).transpose()?,
        ao: extra.tcp_ao.as_ref().map(ao_key).transpose()?,
    };
    Ok(Neighbor { config, transport, bfd: None, description: router.description.clone() })
}

pub(crate) fn secret(password: &view::Password) -> Result<Arc<[u8]>, String> {
    let known = password.secret.clone();
    known.ok_or_else(|| format!("the key {} of Secret {} is not known", password.key, password.source))
}

fn ao_key(spec: &view::TcpAo) -> Result<AoKey, String> {
    let algorithm = Algorithm::named(&spec.algorithm)
        .ok_or_else(|| format!("tcpAo.algorithm {}: accepted: HMAC-SHA-1-96, AES-128-CMAC-96", spec.algorithm))?;
    Ok(AoKey::new(spec.send_id, spec.receive_id, algorithm, secret(&spec.key)?))
}

fn role(words: &str) -> Option<Role> {
    match words {
        "provider" => Some(Role::Provider),
        "rs" => Some(Role::RouteServer),
        "rs-client" => Some(Role::RouteServerClient),
        "customer" => Some(Role::Customer),
        "peer" => Some(Role::Peer),
        _ => None,
    }
}

/// Those that the object names, else that of the address and no other.
fn families(named: Option<Families>, address: IpAddr) -> BTreeSet<Family> {
    let own = Families { ipv4: address.is_ipv4(), ipv6: address.is_ipv6() };
    let named = named.filter(|named| named.ipv4 || named.ipv6).unwrap_or(own);
    [(named.ipv4, Family::Ipv4), (named.ipv6, Family::Ipv6)]
        .into_iter()
        .filter_map(|(yes, it)| yes.then_some(it))
        .collect()
}

fn neighbor_config(bgp: &view::Bgp, settings: &Settings, address: IpAddr) -> NeighborConfig {
    let extra = &bgp.extra;
    let base = NeighborConfig::new(
        bgp.local_asn.unwrap_or(settings.local_as),
        bgp.remote_asn.unwrap_or(settings.remote_as),
        families(extra.families, address),
    );
    NeighborConfig {
        hold_time: bgp.hold_time_s.and_then(HoldTime::new).unwrap_or(settings.hold_time),
        passive: extra.passive,
        connect_retry: extra.connect_retry.unwrap_or(base.connect_retry).max(Duration::from_millis(10)),
        bfd: match &bgp.bfd {
            None => Bfd::Off,
            Some(profile) if profile.strict => Bfd::Strict,
            Some(_) => Bfd::Loose,
        },
        role: extra.role.as_deref().and_then(role),
        graceful_restart: GracefulRestart {
            restart_time_s: extra.graceful_restart_s.unwrap_or(RESTART_TIME_S).min(4095),
            restarting: extra.graceful_restart_s.is_some(),
        },
        maximum_prefixes: extra.maximum_prefixes.map(|(maximum, warning_percent, restart_after)| PrefixLimit {
            maximum,
            warning_percent,
            restart_after,
        }),
        import: match &extra.import {
            None => Import::All,
            Some(view::Import::Default) => Import::Default,
            Some(view::Import::Prefixes(ranges)) => Import::Prefixes(
                ranges
                    .iter()
                    .map(|&(prefix, min_length, max_length)| PrefixRange { prefix, min_length, max_length })
                    .collect(),
            ),
        },
        export: Export {
            med: extra.med,
            local_preference: extra.local_preference.unwrap_or(100),
            prepend: extra.prepend,
            communities: extra.communities.clone(),
            large_communities: extra.large_communities.clone(),
            ..Export::default()
        },
        long_lived: extra.long_lived,
        add_path_receive: extra.add_path_receive,
        disable_family: extra.disable_family,
        shutdown: extra.shutdown.as_deref().map(str::to_owned),
        ..base
    }
}

/// Who this router is: chosen once, at the first sight of the links, and never failing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What the operator configured.
    pub router_id: Option<Ipv4Addr>,
    /// What is stable and unique of this pod: its uid, else its host name.
    pub name: String,
}

impl Identity {
    /// Configured, else the lowest IPv4 address of the external interface, else a 32-bit hash of the name.
    pub fn choose<'a>(&self, addresses: impl IntoIterator<Item = &'a IpNet>) -> Ipv4Addr {
        let from_link = || {
            addresses.into_iter().find_map(|net| match net {
                IpNet::V4(net) => Some(net.addr()),
                IpNet::V6(_) => None,
            })
        };
        self.router_id.or_else(from_link).unwrap_or_else(|| {
            // FNV-1a: the same name gives the same id for ever, whatever version runs.
            let hash = self
                .name
                .bytes()
                .fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
            Ipv4Addr::from_bits(hash.max(1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "default".into(), name: name.into() }
    }

    fn view(routers: Vec<(&str, &str, Protocol)>) -> View {
        View {
            gateway: name("sllb-a"),
            exists: true,
            routers: routers
                .into_iter()
                .map(|(name, address, protocol)| {
                    let address = address.parse().unwrap();
                    (name.into(), view::GatewayRouter { address, interface: None, description: None, protocol })
                })
                .collect(),
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            vips: ["20.0.0.1/32".parse().unwrap()].into(),
            subnets: BTreeSet::new(),
            conditions: BTreeSet::new(),
        }
    }

    fn bgp() -> view::Bgp {
        view::Bgp::default()
    }

    #[test]
    fn what_an_object_omits_the_process_fills() {
        let intent =
            Intent::new(&view(vec![("gw", "169.254.100.150", Protocol::Bgp(Box::new(bgp())))]), &Settings::default());
        let neighbor = &intent.neighbors[&NeighborId::new("gw")];
        assert_eq!((neighbor.config.local_as, neighbor.config.remote_as), (8103, Some(4_248_829_953)));
        assert_eq!((neighbor.transport.local_port, neighbor.transport.remote_port), (10179, 10179));
        assert_eq!(neighbor.config.hold_time.seconds(), 3);
        assert_eq!(&*neighbor.transport.interface, "ext-vlan");
        assert_eq!(neighbor.transport.ttl, 1);
        assert_eq!(neighbor.config.families, [Family::Ipv4].into());
        assert_eq!(neighbor.bfd, None, "no bfd in the object: no BFD");
    }

    #[test]
    fn the_object_always_wins() {
        let object = view::Bgp { hold_time_s: Some(24), local_asn: Some(1), ..bgp() };
        let settings = Settings { local_as: 2, ..Settings::default() };
        let intent = Intent::new(&view(vec![("gw", "100:100::150", Protocol::Bgp(Box::new(object)))]), &settings);
        let neighbor = &intent.neighbors[&NeighborId::new("gw")];
        assert_eq!((neighbor.config.local_as, neighbor.config.hold_time.seconds()), (1, 24));
        assert_eq!(neighbor.config.families, [Family::Ipv6].into());
    }

    #[test]
    fn a_session_does_not_come_up_without_its_password() {
        let password = view::Password { source: "bgp-keys".into(), key: "gw".into(), secret: None };
        let object = view::Bgp { password: Some(password.clone()), ..bgp() };
        let intent =
            Intent::new(&view(vec![("gw", "10.0.0.1", Protocol::Bgp(Box::new(object.clone())))]), &Settings::default());
        assert!(intent.neighbors.is_empty());
        assert_eq!(&*intent.withheld["gw"], "the key gw of Secret bgp-keys is not known");
        let known = view::Password { secret: Some(b"x".as_slice().into()), ..password };
        let object = view::Bgp { password: Some(known), ..object };
        let intent =
            Intent::new(&view(vec![("gw", "10.0.0.1", Protocol::Bgp(Box::new(object)))]), &Settings::default());
        assert_eq!(intent.neighbors.len(), 1);
        assert!(!format!("{intent:?}").contains("\"x\""));
    }

    #[test]
    fn of_two_objects_with_one_address_and_protocol_the_first_counts_and_the_other_has_a_reason() {
        let all = view(vec![
            ("a", "10.0.0.1", Protocol::Bgp(Box::new(bgp()))),
            ("b", "10.0.0.1", Protocol::Static(None)),
            ("c", "10.0.0.1", Protocol::Static(None)),
            ("d", "10.0.0.1", Protocol::Bgp(Box::new(bgp()))),
        ]);
        let intent = Intent::new(&all, &Settings::default());
        assert_eq!((intent.neighbors.len(), intent.statics.len()), (1, 1), "a neighbour may be a static next hop too");
        assert!(intent.withheld["c"].contains("GatewayRouter b") && intent.withheld["d"].contains("GatewayRouter a"));
    }

    #[test]
    fn a_gateway_that_is_gone_takes_its_vips_along() {
        let view = View { exists: false, ..view(Vec::new()) };
        assert!(Intent::new(&view, &Settings::default()).vips.is_empty());
    }

    #[test]
    fn vrrp_addresses_are_static_gateways() {
        let settings = Settings { vrrps: ["10.0.0.9".parse().unwrap()].into(), ..Settings::default() };
        let intent = Intent::new(&view(Vec::new()), &settings);
        assert_eq!(intent.statics["vrrp-10.0.0.9"].bfd, None);
    }

    #[test]
    fn a_router_id_is_always_found() {
        let identity = Identity { router_id: None, name: "pod-1".into() };
        let (v4, v6): (IpNet, IpNet) = ("10.1.2.3/24".parse().unwrap(), "fd00::1/64".parse().unwrap());
        assert_eq!(identity.choose([&v6, &v4]), Ipv4Addr::new(10, 1, 2, 3));
        let other = Identity { name: "pod-2".into(), ..identity.clone() };
        assert_eq!(identity.choose([&v6]), identity.choose([]));
        assert_ne!(identity.choose([]), other.choose([]));
        let configured = Identity { router_id: Some(Ipv4Addr::new(1, 1, 1, 1)), ..identity };
        assert_eq!(configured.choose([&v4]), Ipv4Addr::new(1, 1, 1, 1));
    }
}
