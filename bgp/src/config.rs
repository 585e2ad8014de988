//! What a speaker and its neighbours should be: plain values, compared with `==`.
//!
//! Transport (addresses, ports, passwords, TTL, interface) is the driver's: the speaker names a neighbour, the driver
//! knows how to reach it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// The name of a neighbour: in a cluster the name of its `GatewayRouter`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighborId(pub Arc<str>);

impl NeighborId {
    /// The neighbour called `name`.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for NeighborId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address family of unicast routes (RFC 4760: AFI 1 or 2, SAFI 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 unicast.
    Ipv4,
    /// IPv6 unicast.
    Ipv6,
}

impl Family {
    /// The family of `prefix`.
    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Ipv4,
            IpNet::V6(_) => Self::Ipv6,
        }
    }
}

/// Seconds without a KEEPALIVE or UPDATE until a session ends: zero (never), or at least three (RFC 4271 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HoldTime(u16);

impl HoldTime {
    /// The hold time of RFC 4271's suggestion, 90 s.
    pub const DEFAULT: Self = Self(90);

    /// `seconds`, unless it is 1 or 2.
    pub const fn new(seconds: u16) -> Option<Self> {
        match seconds {
            1 | 2 => None,
            seconds => Some(Self(seconds)),
        }
    }

    /// Seconds; 0 means that no hold timer runs.
    pub const fn seconds(self) -> u16 {
        self.0
    }
}

/// A standard community (RFC 1997).
pub type Community = u32;

/// The speaker itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The BGP identifier (RFC 6286): any non-zero value, unique within the AS.
    pub router_id: Ipv4Addr,
    /// Whether forwarding state survived our restart (RFC 4724, the F bit): kernel state was adopted.
    pub forwarding_preserved: bool,
}

/// How BFD steers a neighbour (RFC 5882).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bfd {
    /// BFD does not matter.
    #[default]
    Off,
    /// The session may establish before BFD; Up -> Down (not by `AdminDown`) ends it, and it is out until BFD is Up again.
    Loose,
    /// The session waits for BFD.
    Strict,
}

/// BGP roles (RFC 9234): ours towards the neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We are its provider.
    Provider,
    /// We are a route server.
    RouteServer,
    /// We are a client of a route server.
    RouteServerClient,
    /// We are its customer.
    Customer,
    /// We are a lateral peer.
    Peer,
}

/// Graceful restart (RFC 4724, RFC 8538). We are always a helper for the families that we negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// Seconds that the neighbour should keep our routes (12 bits: at most 4095).
    pub restart_time_s: u16,
    /// Whether we claim to keep forwarding over our own restart.
    pub restarting: bool,
}

/// The most prefixes that a neighbour may announce in a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimit {
    /// Above this the session ends with Cease/Maximum Number of Prefixes Reached (RFC 4486).
    pub maximum: u32,
    /// Percent of `maximum` at which a warning is told.
    pub warning_percent: u8,
    /// After this the session is tried again; `None`: only by an operator.
    pub restart_after: Option<Duration>,
}

/// A prefix with bounds on the length of what is inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrefixRange {
    /// What lies within this prefix..
    pub prefix: IpNet,
    /// ..and is at least this long..
    pub min_length: u8,
    /// ..and at most this long.
    pub max_length: u8,
}

/// What is accepted from a neighbour (RFC 8212: an explicit policy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// Nothing.
    None,
    /// Anything but what no policy may let in: our own prefixes, AS loops, martians.
    All,
    /// The default route only.
    Default,
    /// What matches one of these.
    Prefixes(Vec<PrefixRange>),
}

/// What is announced to a neighbour, and with which attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Our own prefixes ([`crate::Input::SetAnnounced`]).
    pub own: bool,
    /// What other neighbours announced is passed on (transit; `martlet speaker` only): what matches is.
    pub transit: Import,
    /// `MULTI_EXIT_DISC`.
    pub med: Option<u32>,
    /// `LOCAL_PREF`, towards an iBGP neighbour.
    pub local_preference: u32,
    /// How many more times our AS number stands in the path.
    pub prepend: u8,
    /// Standard communities.
    pub communities: BTreeSet<Community>,
    /// Large communities (RFC 8092).
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// Whether `GRACEFUL_SHUTDOWN` (RFC 8326) is added to what is announced.
    pub graceful_shutdown: bool,
}

impl Default for Export {
    fn default() -> Self {
        Self {
            own: true,
            transit: Import::None,
            med: None,
            local_preference: 100,
            prepend: 0,
            communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
            graceful_shutdown: false,
        }
    }
}

/// One neighbour, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct NeighborConfig {
    /// Our AS number towards it.
    pub local_as: u32,
    /// Its AS number; equal to `local_as`: iBGP. `None` accepts any (dynamic neighbours of `martlet speaker`).
    pub remote_as: Option<u32>,
    /// The families that the session carries, no others.
    pub families: BTreeSet<Family>,
    /// The hold time that we propose.
    pub hold_time: HoldTime,
    /// Whether we only wait for its connection.
    pub passive: bool,
    /// How long we wait between two attempts while the path is silent.
    pub connect_retry: Duration,
    /// How long we wait for its OPEN before we send ours (RFC 4271 section 8.1.1, `DelayOpenTime`).
    pub delay_open: Option<Duration>,
    /// How BFD steers the session.
    pub bfd: Bfd,
    /// Our role, if roles are used.
    pub role: Option<Role>,
    /// Graceful restart.
    pub graceful_restart: GracefulRestart,
    /// The most prefixes of each family.
    pub maximum_prefixes: Option<PrefixLimit>,
    /// What is accepted.
    pub import: Import,
    /// What is announced.
    pub export: Export,
    /// Route reflector client (RFC 4456; `martlet speaker` only).
    pub route_reflector_client: bool,
    /// Whether the neighbour may tell several paths to a prefix (RFC 7911).
    pub add_path_receive: bool,
    /// Routes of a neighbour that is away longer than its restart time are kept for the time that it asks for, but no longer
    /// than this, as a last resort (RFC 9494); `None`: they go.
    pub long_lived: Option<Duration>,
    /// Whether a malformed `MP_REACH_NLRI` or `MP_UNREACH_NLRI` ends only its family, not the session, where the session
    /// carries another one (RFC 7606 section 2: AFI/SAFI disable).
    pub disable_family: bool,
    /// Administratively shut down, with the text that the neighbour is told (RFC 9003).
    pub shutdown: Option<String>,
}

impl NeighborConfig {
    /// A neighbour with the defaults of the house: active, hold time 90 s, retry 200 ms, import anything, export our own.
    pub fn new(local_as: u32, remote_as: u32, families: impl IntoIterator<Item = Family>) -> Self {
        Self {
            local_as,
            remote_as: Some(remote_as),
            families: families.into_iter().collect(),
            hold_time: HoldTime::DEFAULT,
            passive: false,
            connect_retry: Duration::from_millis(200),
            delay_open: None,
            bfd: Bfd::Off,
            role: None,
            graceful_restart: GracefulRestart { restart_time_s: 120, restarting: false },
            maximum_prefixes: None,
            import: Import::All,
            export: Export::default(),
            route_reflector_client: false,
            add_path_receive: false,
            long_lived: None,
            disable_family: false,
            shutdown: None,
        }
    }
}
