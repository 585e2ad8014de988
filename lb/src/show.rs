//! What `martlet show` and the metrics are made of: the whole [`Status`] as plain values that can be written as JSON.
//!
//! Pure. Packets and octets are those of both engines; of segments that the kernel put together, nftables counts one packet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use martlet_api::readiness::{Families, VipReadiness};
use martlet_api::view::Endpoint;
use serde::{Deserialize, Serialize};

use crate::counters::{Count, Latency};
use crate::engine::Backend;
use crate::maglev::Table;
use crate::queue::depth::Depth;
use crate::status::Status;

/// All that can be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `namespace/name`; empty: nothing was read yet.
    pub gateway: String,
    /// Who chooses endpoints, and why.
    pub engine: String,
    /// Addresses of endpoints that are reached directly: see [`crate::direct`].
    pub direct_addresses: u32,
    /// Whether all queue threads answer.
    pub alive: bool,
    /// Whether it is about to end.
    pub draining: bool,
    /// What the router says of the families.
    pub connectivity: Families,
    /// What the router was told.
    pub vips: BTreeMap<IpNet, VipReadiness>,
    /// What an operator should know.
    pub notes: Vec<String>,
    /// `L34Route`s, in the order in which they are asked.
    pub flows: Vec<FlowState>,
    /// By name.
    pub services: BTreeMap<String, ServiceState>,
    /// By Service and identifier.
    pub endpoints: Vec<EndpointState>,
    /// By number.
    pub queues: BTreeMap<u16, QueueState>,
    /// Dropped packets by reason: one word with underscores.
    pub drops: BTreeMap<String, u64>,
}

/// An `L34Route`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowState {
    /// Its name.
    pub name: String,
    /// Its priority: higher ones are asked first.
    pub priority: i32,
    /// Its VIPs.
    pub vips: Vec<IpNet>,
    /// Its Service.
    pub service: String,
    /// What went by it.
    pub count: Count,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Routes that lead to it.
    pub flows: usize,
    /// Endpoints that get new flows over IPv4.
    pub ready_ipv4: usize,
    /// Endpoints that get new flows over IPv6.
    pub ready_ipv6: usize,
    /// Endpoints that exist.
    pub endpoints: usize,
    /// The most endpoints that it may have.
    pub max_endpoints: u32,
    /// Slots of its Maglev table; 0: it has none, because no route leads to it.
    pub slots: u32,
    /// The mark of its identifier 0.
    pub first_mark: u32,
}

/// An endpoint of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// Its Service.
    pub service: String,
    /// Its identifier.
    pub identifier: u32,
    /// Its pod.
    pub pod: String,
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address.
    pub ipv6: Option<Ipv6Addr>,
    /// In words: ready, draining, not ready, no answer, no way.
    pub state: String,
    /// Its mark; 0: none.
    pub mark: u32,
    /// The interface to it.
    pub interface: String,
    /// Its slots in the IPv4 table.
    pub slots_ipv4: u32,
    /// Its slots in the IPv6 table.
    pub slots_ipv6: u32,
    /// What was forwarded to it.
    pub count: Count,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Packets received.
    pub packets: u64,
    /// System calls that they were received in.
    pub batches: u64,
    /// Packets that wait in the kernel; `None`: only root may know.
    pub waiting: Option<u64>,
    /// Dropped by the kernel because too many waited.
    pub dropped_full: Option<u64>,
    /// Dropped by the kernel because the socket's buffer was full.
    pub dropped_unsent: Option<u64>,
    /// How long packets were with us.
    #[serde(default)]
    pub latency: Latency,
}

/// Everything at this moment; `depths` is what the kernel says of the queues.
pub fn state(status: &Status, depths: &BTreeMap<u16, Depth>) -> State {
    let told = status.readiness.as_ref();
    let drops = status.counters.drops.iter().fold(BTreeMap::<String, u64>::new(), |mut drops, (reason, count)| {
        *drops.entry(reason.label().to_owned()).or_default() += count;
        drops
    });
    let queues = status.counters.queues.iter().map(|(queue, (batches, packets))| {
        let depth = depths.get(queue);
        let state = QueueState {
            packets: *packets,
            batches: *batches,
            waiting: depth.map(|depth| depth.waiting),
            dropped_full: depth.map(|depth| depth.dropped_full),
            dropped_unsent: depth.map(|depth| depth.dropped_unsent),
            latency: status.counters.latencies.get(queue).copied().unwrap_or_default(),
        };
        (*queue, state)
    });
    let (services, endpoints) = services(status);
    State {
        gateway: status.view.as_ref().map(|view| view.gateway.to_string()).unwrap_or_default(),
        engine: engine(status),
        direct_addresses: status.direct.as_ref().map_or(0, |(addresses, _)| *addresses),
        alive: status.alive,
        draining: told.is_some_and(|told| told.draining),
        connectivity: status.connectivity,
        vips: told.map(|told| told.vips.clone()).unwrap_or_default(),
        notes: notes(status),
        flows: flows(status),
        services,
        endpoints,
        queues: queues.collect(),
        drops,
    }
}

fn engine(status: &Status) -> String {
    let direct =
        status.direct.as_ref().map(|(addresses, link)| format!("; directly to {addresses} addresses on {link}"));
    status.engine.clone() + &direct.unwrap_or_default()
}

fn notes(status: &Status) -> Vec<String> {
    let partial = status.partial.iter().map(|condition| format!("{}: {}", condition.condition, condition.message));
    status.targets.complaints.iter().cloned().chain(partial).collect()
}

fn flows(status: &Status) -> Vec<FlowState> {
    let Some(view) = &status.view else { return Vec::new() };
    let names = status.targets.tables.classifier().names().iter();
    let shown = names.filter_map(|name| {
        let route = view.routes.get(name)?;
        Some(FlowState {
            name: name.to_string(),
            priority: route.priority,
            vips: route.destinations.iter().copied().collect(),
            service: route.backend.to_string(),
            count: status.counters.routes.get(name).copied().unwrap_or_default(),
        })
    });
    shown.collect()
}

fn services(status: &Status) -> (BTreeMap<String, ServiceState>, Vec<EndpointState>) {
    let (mut services, mut endpoints) = (BTreeMap::new(), Vec::new());
    let Some(view) = &status.view else { return (services, endpoints) };
    let interfaces: BTreeMap<u32, &str> = status
        .targets
        .hops
        .iter()
        .map(|hop| (hop.mark, status.facts.links.get(&hop.interface).map_or("?", |link| &*link.name)))
        .collect();
    for (name, service) in &view.services {
        let backend = status.targets.tables.services().iter().find(|backend| backend.service == *name);
        let ready = |table: fn(&Backend) -> &Table| backend.map_or(0, |backend| table(backend).identifiers().len());
        services.insert(
            name.to_string(),
            ServiceState {
                flows: view.routes.values().filter(|route| route.backend == *name).count(),
                ready_ipv4: ready(|backend| &backend.ipv4),
                ready_ipv6: ready(|backend| &backend.ipv6),
                endpoints: service.endpoints.len(),
                max_endpoints: service.max_endpoints,
                slots: backend.map_or(0, |backend| backend.ipv4.size().slots()),
                first_mark: backend.map_or(0, |backend| backend.first_mark),
            },
        );
        let shares = backend.map(|backend| (shares(&backend.ipv4), shares(&backend.ipv6))).unwrap_or_default();
        for (identifier, endpoint) in &service.endpoints {
            let mark = backend.map_or(0, |backend| backend.first_mark + identifier);
            let short = u16::try_from(*identifier).ok();
            let share = |shares: &BTreeMap<u16, u32>| short.and_then(|short| shares.get(&short)).copied();
            let key = short.map(|short| (name.clone(), short));
            endpoints.push(EndpointState {
                service: name.to_string(),
                identifier: *identifier,
                pod: endpoint.name.to_string(),
                ipv4: endpoint.ipv4,
                ipv6: endpoint.ipv6,
                state: word(status, endpoint, interfaces.contains_key(&mark)).to_owned(),
                mark,
                interface: interfaces.get(&mark).copied().unwrap_or_default().to_owned(),
                slots_ipv4: share(&shares.0).unwrap_or_default(),
                slots_ipv6: share(&shares.1).unwrap_or_default(),
                count: key.and_then(|key| status.counters.endpoints.get(&key)).copied().unwrap_or_default(),
            });
        }
    }
    (services, endpoints)
}

/// How many slots each endpoint has.
fn shares(table: &Table) -> BTreeMap<u16, u32> {
    let mut shares = BTreeMap::new();
    for owner in table.slots() {
        *shares.entry(*owner).or_default() += 1;
    }
    shares
}

/// An endpoint's state in a word or two.
fn word(status: &Status, endpoint: &Endpoint, has_way: bool) -> &'static str {
    let addresses = [endpoint.ipv4.map(IpAddr::from), endpoint.ipv6.map(IpAddr::from)];
    match endpoint {
        _ if addresses.iter().flatten().any(|address| status.dead.contains(address)) => "no answer",
        Endpoint { ready: true, .. } if !has_way => "no way",
        Endpoint { ready: true, .. } => "ready",
        Endpoint { serving: true, .. } => "draining",
        _ => "not ready",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::counters::Reason;
    use crate::packet::Malformed;
    use crate::status::tests::example;

    #[test]
    fn flows_services_endpoints_and_queues_are_shown() {
        let mut status = example();
        let count = Count { packets: 3, octets: 300 };
        status.counters.routes.insert("vip".into(), count);
        status.counters.endpoints.insert(("a".into(), 7), count);
        status.counters.drops.extend([(Reason::NoRoute, 2), (Reason::Malformed(Malformed::Empty), 1)]);
        status.counters.queues.extend([(0, (2, 9)), (1, (0, 0))]);
        let depths = BTreeMap::from([(0, Depth { waiting: 5, ..Depth::default() })]);
        let shown = state(&status, &depths);
        assert_eq!((&*shown.flows[0].name, &*shown.flows[0].service, shown.flows[0].count), ("vip", "a", count));
        let service = &shown.services["a"];
        assert_eq!((service.flows, service.ready_ipv4, service.ready_ipv6, service.slots), (1, 1, 0, 65_537));
        let endpoint = &shown.endpoints[0];
        assert_eq!((endpoint.slots_ipv4, endpoint.slots_ipv6, endpoint.mark), (65_537, 0, 5007));
        assert_eq!((&*endpoint.interface, &*endpoint.pod, endpoint.count), ("int", "pod-7", count));
        assert_eq!((shown.queues[&0].packets, shown.queues[&0].waiting), (9, Some(5)));
        assert_eq!(shown.queues[&1].waiting, None);
        assert_eq!(shown.drops, BTreeMap::from([("empty".into(), 1), ("no_route".into(), 2)]));
        let text = serde_json::to_string(&shown).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), shown);
    }

    #[test]
    fn who_does_not_answer_is_told_apart_from_who_leaves() {
        let mut status = example();
        status.dead.insert("10.0.0.7".parse().unwrap());
        assert_eq!(state(&status, &BTreeMap::new()).endpoints[0].state, "no answer");
        status.dead.clear();
        let view = Arc::make_mut(status.view.as_mut().unwrap());
        view.services.get_mut("a").unwrap().endpoints.get_mut(&7).unwrap().ready = false;
        assert_eq!(state(&status, &BTreeMap::new()).endpoints[0].state, "draining");
    }
}
