//! The two messages between a load balancer and a router in the same pod.
//!
//! One JSON object is one line and one whole value, sent on change and every second over a unix stream socket on which the
//! load balancer listens. End of file, a bad line or [`SILENCE`] without a line: nothing is ready.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The version of both messages.
pub const VERSION: u32 = 1;
/// How often a whole value is repeated.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// After how long without a line nothing is ready.
pub const SILENCE: Duration = Duration::from_secs(3);
/// How often the router tries to connect.
pub const RETRY: Duration = Duration::from_millis(50);
/// The longest line, octets; a longer one is a bad line.
pub const MAX_LINE: usize = 1 << 20;
/// Where the load balancer listens, unless told otherwise (`NFE_LB_SOCKET`).
pub const DEFAULT_SOCKET: &str = "unix:///var/lib/meridio/lb.sock";

/// What a load balancer can forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// [`VERSION`].
    pub version: u32,
    /// The name of its Gateway.
    pub gateway: String,
    /// It is about to end: nothing is to be announced, what still comes is forwarded.
    pub draining: bool,
    /// Each VIP (a host prefix) that it knows.
    pub vips: BTreeMap<IpNet, VipReadiness>,
}

/// Whether a VIP can be forwarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipReadiness {
    /// Whether packets to it reach an endpoint.
    pub ready: bool,
    /// If not: why, for a human.
    #[serde(default)]
    pub reason: String,
}

/// What a router tells its load balancer: whether a family has external connectivity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connectivity {
    /// [`VERSION`].
    pub version: u32,
    /// By family.
    pub connectivity: Families,
}

/// A yes or no of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Families {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}
