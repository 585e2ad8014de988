//! When a pod counts as a way out, for those who send through it.
//!
//! A VIP is announced as soon as a gateway is Up. What an application answers may go by way of any load balancer that is ready,
//! and one whose gateway has not told its routes yet has nowhere to send it: until then the pod is not ready. A gateway that
//! tells nothing is waited for only [`PATIENCE`]: that no route was learned is a condition of its own (`NoEgressRoute`).

use std::time::Duration;

use martlet_api::readiness::Families;
use martlet_bgp::Family;
use martlet_clock::Instant;

use super::Router;
use crate::gate::has;

/// How long a gateway that is Up may take to tell its routes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way out of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    /// No gateway router is Up.
    #[default]
    None,
    /// One is, since a moment: its routes are waited for until then.
    Waits(Instant),
    /// One is, and its routes were told.
    Open,
}

/// Of IPv4 and of IPv6.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ways([Way; 2]);

impl Ways {
    pub(super) fn open(self) -> Families {
        let [ipv4, ipv6] = self.0.map(|way| way == Way::Open);
        Families { ipv4, ipv6 }
    }

    pub(super) fn deadline(self) -> Option<Instant> {
        let until = |way| if let Way::Waits(until) = way { Some(until) } else { None };
        self.0.into_iter().filter_map(until).min()
    }
}

impl Router {
    /// Takes note of which family's gateways have told their routes.
    pub(super) fn settle(&mut self, now: Instant) {
        let mut ways = self.ways;
        for (way, family) in ways.0.iter_mut().zip([Family::Ipv4, Family::Ipv6]) {
            *way = match *way {
                _ if !has(self.connectivity, family) => Way::None,
                Way::None if !self.has_told(family) => Way::Waits(now + PATIENCE),
                Way::Waits(until) if now < until && !self.has_told(family) => *way,
                Way::None | Way::Waits(_) | Way::Open => Way::Open,
            };
        }
        self.ways = ways;
    }

    /// Whether there is a default route, or a neighbour has told all that it has.
    fn has_told(&self, family: Family) -> bool {
        has(self.egress(), family) || self.sessions.values().any(|session| session.end_of_rib.contains(&family))
    }
}
