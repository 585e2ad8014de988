//! What the pod of one Gateway needs to know of all objects: the accepted ones, parsed into values that cannot be wrong.
//!
//! One function makes it ([`crate::accept::view`]), for the controller, the router and the load balancer alike: a route
//! that one of them refuses is refused by all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::readiness::Families;

/// Namespace and name of an object; of a file or an object of the whole cluster: no namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name of an object.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What is wrong, or to be known, about one object: names object, field, value and remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// The kind of the object, such as `GatewayRouter`; of a file that holds no object: `File`.
    pub kind: Arc<str>,
    /// The object (or the file's name).
    pub object: ObjectName,
    /// The condition's type, such as `Accepted`.
    pub condition: Arc<str>,
    /// `True` or `False` of the Kubernetes condition.
    pub status: bool,
    /// One `CamelCase` word.
    pub reason: Arc<str>,
    /// For a human: field, value, what would be accepted.
    pub message: Arc<str>,
}

/// Everything accepted that concerns one Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The Gateway.
    pub gateway: ObjectName,
    /// Whether the Gateway object exists (and is of our class). If not, all that follows is empty but the conditions.
    pub exists: bool,
    /// The accepted `GatewayRouter`s by name.
    pub routers: BTreeMap<Arc<str>, GatewayRouter>,
    /// The accepted `L34Route`s by name.
    pub routes: BTreeMap<Arc<str>, Route>,
    /// The Services of the Gateway by name, with their endpoints.
    pub services: BTreeMap<Arc<str>, Service>,
    /// The VIPs: host prefixes, from the accepted routes, else from `Gateway.status.addresses`.
    pub vips: BTreeSet<IpNet>,
    /// Networks that endpoints must lie in (`meridio-experiment/network-subnets`); empty: anywhere.
    pub subnets: BTreeSet<IpNet>,
    /// What users should know about objects, good and bad.
    pub conditions: BTreeSet<Condition>,
}

/// A gateway router to reach, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRouter {
    /// Its address.
    pub address: IpAddr,
    /// Our interface towards it; `None`: the default of the process (`NFE_EXTERNAL_INTERFACE`).
    pub interface: Option<Arc<str>>,
    /// For a human.
    pub description: Option<Arc<str>>,
    /// How it is reached.
    pub protocol: Protocol,
}

/// How a gateway router is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// It is a BGP neighbour.
    Bgp(Box<Bgp>),
    /// It is a static next hop, supervised by BFD if there is a profile.
    Static(Option<Bfd>),
}

impl Protocol {
    /// The BFD session that supervises it.
    pub fn bfd(&self) -> Option<&Bfd> {
        match self {
            Self::Bgp(bgp) => bgp.bfd.as_ref(),
            Self::Static(bfd) => bfd.as_ref(),
        }
    }
}

/// A BGP neighbour. What is `None` takes the default of the process (`NFE_*`), else of the house.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bgp {
    /// Our AS number.
    pub local_asn: Option<u32>,
    /// Its AS number.
    pub remote_asn: Option<u32>,
    /// Seconds: 0, or at least 3.
    pub hold_time_s: Option<u16>,
    /// The port that we listen on.
    pub local_port: Option<u16>,
    /// The port that we connect to.
    pub remote_port: Option<u16>,
    /// BFD, if it is switched on.
    pub bfd: Option<Bfd>,
    /// TCP MD5 (RFC 2385): the key, once its Secret is known.
    pub password: Option<Password>,
    /// The additions of Martlet.
    pub extra: BgpExtra,
}

/// A key for TCP MD5 and where it comes from. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    /// The Secret's name.
    pub source: Arc<str>,
    /// The key in the Secret.
    pub key: Arc<str>,
    /// Its value; `None` while the Secret is not known: the session must not come up without it.
    pub secret: Option<Arc<[u8]>>,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Password {{ {}/{}, known: {} }}", self.source, self.key, self.secret.is_some())
    }
}

/// Optional additions to the seed's `bgp`: `None` or empty is the behaviour of the seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct BgpExtra {
    /// Only wait for the neighbour's connection.
    pub passive: bool,
    /// TTL of a multihop session; `None`: the neighbour is on the link.
    pub multihop_ttl: Option<u8>,
    /// GTSM (RFC 5082).
    pub ttl_security: bool,
    /// Our address.
    pub source_address: Option<IpAddr>,
    /// Between two attempts while the path is silent.
    pub connect_retry: Option<Duration>,
    /// Standard communities.
    pub communities: BTreeSet<u32>,
    /// Large communities.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// `MULTI_EXIT_DISC`.
    pub med: Option<u32>,
    /// `LOCAL_PREF` (iBGP).
    pub local_preference: Option<u32>,
    /// How many more times our AS number stands in the path.
    pub prepend: u8,
    /// What is accepted; `None`: anything of the family that no rule forbids.
    pub import: Option<Import>,
    /// The most prefixes: maximum, warning percent, restart after.
    pub maximum_prefixes: Option<(u32, u8, Option<Duration>)>,
    /// Restarting role of graceful restart, with its time in seconds.
    pub graceful_restart_s: Option<u16>,
    /// How long routes are kept as a last resort (RFC 9494).
    pub long_lived: Option<Duration>,
    /// Several paths to a prefix are taken (RFC 7911).
    pub add_path_receive: bool,
    /// A malformed message ends its family only (RFC 7606).
    pub disable_family: bool,
    /// The role of RFC 9234, in its words: provider, rs, rs-client, customer, peer.
    pub role: Option<Arc<str>>,
    /// Administratively shut down, with a text.
    pub shutdown: Option<Arc<str>>,
    /// The families of the session; `None`: that of the neighbour's address.
    pub families: Option<Families>,
    /// TCP authentication option (RFC 5925).
    pub tcp_ao: Option<TcpAo>,
}

/// A key of the TCP authentication option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAo {
    /// The key id that we send.
    pub send_id: u8,
    /// The key id that the neighbour sends.
    pub receive_id: u8,
    /// `HMAC-SHA-1-96` or `AES-128-CMAC-96` (RFC 5926).
    pub algorithm: Arc<str>,
    /// The master key.
    pub key: Password,
}

/// What is accepted from a gateway router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// The default route only.
    Default,
    /// A prefix, and bounds on the length of what lies in it.
    Prefixes(Vec<(IpNet, u8, u8)>),
}

/// Parameters of a BFD session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bfd {
    /// Least transmit interval.
    pub min_tx: Duration,
    /// Least receive interval.
    pub min_rx: Duration,
    /// 1 to 255.
    pub multiplier: u8,
    /// The BGP session waits for BFD.
    pub strict: bool,
    /// Echo interval.
    pub echo: Option<Duration>,
    /// How often the neighbour may echo by way of us.
    pub echo_receive: Option<Duration>,
    /// The neighbour only forwards our echo packets back (RFC 9747): there is an echo interval, and one hop.
    pub unaffiliated: bool,
    /// Authentication: kind in words (`SimplePassword`, `KeyedMD5`, `MeticulousKeyedMD5`, `KeyedSHA1`,
    /// `MeticulousKeyedSHA1`), key id, the key once its Secret is known.
    pub auth: Option<(Arc<str>, u8, Password)>,
    /// More keys that are accepted, by their ids.
    pub auth_accepts: Vec<(u8, Password)>,
    /// The hops of RFC 5883 (the least TTL that is accepted is 255 less these; 64 or more: any); `None`: single hop.
    pub multihop_hops: Option<u8>,
}

impl Default for Bfd {
    /// The values of the seed: 300 ms, 300 ms, 5.
    fn default() -> Self {
        Self {
            min_tx: Duration::from_millis(300),
            min_rx: Duration::from_millis(300),
            multiplier: 5,
            strict: false,
            echo: None,
            echo_receive: None,
            unaffiliated: false,
            auth: None,
            auth_accepts: Vec::new(),
            multihop_hops: None,
        }
    }
}

impl Bfd {
    /// Why two users of one neighbour cannot share its session (RFC 5882 section 2): the field in which they contradict each
    /// other. One that goes over several hops and one that does not are two sessions.
    pub fn contradicts(&self, other: &Self) -> Option<&'static str> {
        let names = |(id, password): &(u8, Password)| (*id, password.source.clone(), password.key.clone());
        let keys = |bfd: &Self| {
            let auth = bfd.auth.as_ref().map(|(kind, id, password)| (kind.clone(), names(&(*id, password.clone()))));
            (auth, bfd.auth_accepts.iter().map(names).collect::<Vec<_>>())
        };
        if self.multihop_hops.is_some() != other.multihop_hops.is_some() {
            None
        } else if self.unaffiliated != other.unaffiliated {
            Some("unaffiliated")
        } else if keys(self) != keys(other) {
            Some("authentication")
        } else {
            None
        }
    }

    /// What a session is that both use: of each parameter the more aggressive one, so that none hears of a failure later than it
    /// asked for.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Self {
        let least = |one: Option<_>, other: Option<_>| one.into_iter().chain(other).min();
        Self {
            min_tx: self.min_tx.min(other.min_tx),
            min_rx: self.min_rx.min(other.min_rx),
            multiplier: self.multiplier.min(other.multiplier),
            strict: self.strict || other.strict,
            echo: least(self.echo, other.echo),
            echo_receive: least(self.echo_receive, other.echo_receive),
            multihop_hops: self.multihop_hops.into_iter().chain(other.multihop_hops).min(),
            ..self.clone()
        }
    }
}

/// A classifier of packets towards a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The highest wins; of equal ones the first by name.
    pub priority: i32,
    /// Host prefixes: the VIPs.
    pub destinations: BTreeSet<IpNet>,
    /// Sources by family; empty: any.
    pub sources: BTreeSet<IpNet>,
    /// Inclusive ranges; empty: any.
    pub source_ports: BTreeSet<(u16, u16)>,
    /// Inclusive ranges; empty: any.
    pub destination_ports: BTreeSet<(u16, u16)>,
    /// At least one.
    pub protocols: BTreeSet<TransportProtocol>,
    /// Byte matches, in the seed's words (`tcp[0:2] & 0xff00 = 0x1200`), checked.
    pub byte_matches: Vec<ByteMatch>,
    /// The Service; it may be missing from [`View::services`] (`ResolvedRefs` is then false).
    pub backend: Arc<str>,
    /// Stateless translation of destination ports: protocol and port of the VIP -> port of the endpoint.
    pub port_translations: BTreeMap<(TransportProtocol, u16), u16>,
    /// SCTP in UDP (RFC 6951): UDP packets to this port are classified and hashed as the SCTP packet in them.
    pub sctp_in_udp_port: Option<u16>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransportProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// `protocol[offset : octets] & mask = value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteMatch {
    /// Of this protocol's header (and what follows it).
    pub protocol: TransportProtocol,
    /// Octets from its start.
    pub offset: u16,
    /// 1, 2 or 4.
    pub octets: u8,
    /// All ones if not given.
    pub mask: u32,
    /// What is compared.
    pub value: u32,
}

/// A Service and its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// By identifier, which is stable and chooses Maglev slots, mark and table.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `meridio-experiment/service-max-endpoints`; 100 if not said. Identifiers are below it.
    pub max_endpoints: u32,
}

/// An application pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod (target reference, or the host name), for a human.
    pub name: Arc<str>,
    /// Its addresses on the internal network; at most one of each family.
    pub ipv4: Option<Ipv4Addr>,
    /// See `ipv4`.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// Receives new flows.
    pub ready: bool,
    /// Still answers, though it may be terminating.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
}
