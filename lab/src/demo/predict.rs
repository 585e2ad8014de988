//! Where the load balancer's own arithmetic sends a flow: the Maglev table of the demo's Gateway.

use std::net::IpAddr;

use martlet_lb::hash::{Flow, Seed};
use martlet_lb::maglev::{Moves, Size, Table};

use super::topology::{Family, GATEWAY};

/// How many endpoints a Service may have if it does not say.
const MAX_ENDPOINTS: u32 = 100;

/// The table of the demo's Gateway.
#[derive(Debug)]
pub struct Prediction {
    seed: Seed,
    table: Table,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Prediction {
    /// With these applications: number n has identifier n.
    pub fn of(applications: impl IntoIterator<Item = u16>) -> Self {
        let seed = Seed::of_gateway("default", GATEWAY);
        Self { seed, table: Table::new(Size::for_endpoints(MAX_ENDPOINTS), seed, applications) }
    }

    /// The application that serves a flow of the client to the VIP.
    pub fn application(&self, family: &Family, transport: Transport, source_port: u16, port: u16) -> String {
        let (source, destination): (IpAddr, IpAddr) = (family.client, family.vip);
        let protocol = match transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        let flow = Flow { source, destination, protocol, source_port, destination_port: port };
        self.table.lookup(flow.hash(self.seed)).map_or_else(|| "nobody".to_owned(), |number| format!("app-{number}"))
    }

    /// What moves to another table.
    pub fn moves(&self, to: &Self) -> Moves {
        self.table.moves(&to.table)
    }
}
