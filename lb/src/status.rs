//! What the load balancer knows, as one whole value: for `show`, `trace`, metrics and health.
//!
//! Pure: [`crate::control`], [`crate::metrics`] and [`crate::health`] take it from a channel, and so may another (see
//! [`crate::run::Options`]). [`crate::show`] makes JSON of it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use martlet_api::readiness::{Families, Readiness};
use martlet_api::view::{Condition, View};
use serde::{Deserialize, Serialize};

use crate::counters::{Counters, Reason};
use crate::engine::{Backend, Choice};
use crate::hash::Flow;
use crate::maglev::Moves;
use crate::ready::Facts;
use crate::rules::table;
use crate::targets::Targets;

/// All of it, renewed with every beat and every change.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The accepted objects; `None`: not read yet.
    pub view: Option<Arc<View>>,
    /// Tables, marks, ways to endpoints.
    pub targets: Arc<Targets>,
    /// What the machine says.
    pub facts: Facts,
    /// What the router was told last.
    pub readiness: Option<Readiness>,
    /// What the router says.
    pub connectivity: Families,
    /// Who decides, and why, in words.
    pub engine: String,
    /// Addresses of endpoints that are reached directly, and the link to them; `None`: none by design. See [`crate::direct`].
    pub direct: Option<(u32, Arc<str>)>,
    /// Whether all queue threads answer.
    pub alive: bool,
    /// What was counted, at most a second ago.
    pub counters: Counters,
    /// Addresses of endpoints that do not answer on their link.
    pub dead: BTreeSet<IpAddr>,
    /// Whether the source has said what exists.
    pub source_reached: bool,
    /// VIPs that are ready although some of their routes are not served: see [`crate::ready::partially_served`].
    pub partial: BTreeSet<Condition>,
}

/// The way of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Its `L34Route`.
    pub route: Arc<str>,
    /// Its Service.
    pub service: Arc<str>,
    /// Slot, identifier and mark.
    pub choice: Choice,
    /// Slots of the Maglev table.
    pub slots: u32,
    /// The endpoint's pod.
    pub endpoint: Option<Arc<str>>,
    /// Its address and the interface that leads there.
    pub way: Option<(IpAddr, Arc<str>)>,
    /// What would move if this endpoint left.
    pub if_leaves: Moves,
    /// The endpoint that this flow would go to then.
    pub heir: Option<u16>,
}

impl Status {
    /// The way of a flow, by the tables of the moment.
    ///
    /// # Errors
    /// Why it would be dropped.
    pub fn trace(&self, flow: &Flow) -> Result<Trace, Reason> {
        let tables = &self.targets.tables;
        let choice = tables.choose(flow, None)?;
        let rank = usize::try_from(choice.rank).map_err(|_| Reason::NoRoute)?;
        let route = tables.classifier().names().get(rank).ok_or(Reason::NoRoute)?;
        let backend = tables.backend(rank).ok_or(Reason::NoEndpoint)?;
        let table = backend.table(flow.destination);
        let without = table.without(choice.identifier);
        let hop = self.targets.hop(choice.mark, flow.destination);
        let link = |index| self.facts.links.get(index).map_or_else(|| "?".into(), |link| Arc::clone(&link.name));
        Ok(Trace {
            route: Arc::clone(route),
            service: Arc::clone(&backend.service),
            choice,
            slots: table.size().slots(),
            endpoint: self.name_of(backend, choice.identifier),
            way: hop.map(|hop| (hop.address, link(&hop.interface))),
            if_leaves: table.moves(&without),
            heir: without.owner(choice.slot),
        })
    }

    /// The pod of an identifier.
    fn name_of(&self, backend: &Backend, identifier: u16) -> Option<Arc<str>> {
        let service = self.view.as_ref()?.services.get(&*backend.service)?;
        service.endpoints.get(&u32::from(identifier)).map(|endpoint| Arc::clone(&endpoint.name))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { slot, identifier, mark, target_port, .. } = self.choice;
        writeln!(f, "L34Route   {}", self.route)?;
        writeln!(f, "Service    {}", self.service)?;
        writeln!(f, "slot       {slot} of {}", self.slots)?;
        writeln!(f, "endpoint   {identifier} ({})", self.endpoint.as_deref().unwrap_or("unknown"))?;
        writeln!(f, "mark       {mark:#x}, table {}", table(mark))?;
        if let Some(port) = target_port {
            writeln!(f, "port       {port} at the endpoint")?;
        }
        match &self.way {
            Some((address, interface)) => writeln!(f, "next hop   {address} dev {interface}")?,
            None => writeln!(f, "next hop   none")?,
        }
        writeln!(f, "if {identifier} leaves: {}", self.if_leaves)?;
        match self.heir {
            Some(heir) => writeln!(f, "            this flow goes to endpoint {heir}"),
            None => writeln!(f, "            nobody is left for this flow"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use martlet_api::view::{Endpoint, ObjectName, Route, Service, TransportProtocol};
    use martlet_netlink::Link;

    use super::*;
    use crate::engine::Tables;
    use crate::targets::{Marks, Settings, targets};

    /// One route, one Service, one endpoint.
    pub(crate) fn example() -> Status {
        let endpoint = Endpoint {
            name: "pod-7".into(),
            ipv4: Some("10.0.0.7".parse().unwrap()),
            ipv6: None,
            ready: true,
            serving: true,
            terminating: false,
        };
        let route = Route {
            destinations: ["20.0.0.1/32".parse().unwrap()].into(),
            protocols: [TransportProtocol::Tcp].into(),
            backend: "a".into(),
            ..Route::default()
        };
        let view = View {
            gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
            exists: true,
            routers: BTreeMap::new(),
            routes: [("vip".into(), route)].into(),
            services: [("a".into(), Service { endpoints: [(7, endpoint)].into(), max_endpoints: 100 })].into(),
            vips: ["20.0.0.1/32".parse().unwrap()].into(),
            subnets: BTreeSet::new(),
            conditions: BTreeSet::new(),
        };
        let addresses = ["10.0.0.1/24".parse().unwrap()].into();
        let link = Link { index: 3, name: "int".into(), up: true, carrier: true, mtu: 1500, addresses };
        let facts = Facts { links: [(3, link)].into(), ..Facts::default() };
        let made = targets(&view, &facts.links, &mut Marks::default(), &Settings::default(), &Tables::default());
        Status {
            view: Some(Arc::new(view)),
            targets: Arc::new(made),
            facts,
            alive: true,
            source_reached: true,
            ..Status::default()
        }
    }

    /// A flow to the VIP of [`example`].
    pub(crate) fn flow(port: u16) -> Flow {
        Flow {
            source: "192.168.1.1".parse().unwrap(),
            destination: "20.0.0.1".parse().unwrap(),
            protocol: 6,
            source_port: 40000,
            destination_port: port,
        }
    }

    #[test]
    fn a_trace_tells_the_whole_way() {
        let status = example();
        let trace = status.trace(&flow(4000)).unwrap().to_string();
        for line in
            ["L34Route   vip", "endpoint   7 (pod-7)", "mark       0x138f, table 5007", "next hop   10.0.0.7 dev int"]
        {
            assert!(trace.contains(line), "{trace}");
        }
        let end = "if 7 leaves: 65537 of 65537 slots must move, 0 of others move too\n            nobody is left for this flow\n";
        assert!(trace.ends_with(end), "{trace}");
        let udp = Flow { protocol: 17, ..flow(4000) };
        assert_eq!(status.trace(&udp), Err(Reason::NoRoute));
    }
}
