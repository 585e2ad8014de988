//! Ports that are others at the endpoint: what a reply is turned back to must be one port.
//!
//! Replies know no route: VIP, protocol and the endpoint's port are all that a load balancer has to find the VIP's port by.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::view::{ObjectName, Route, TransportProtocol};

/// What is to be said of the translations of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing.
    None,
    /// They cannot be: why, and the remedy.
    Refused(String),
    /// They can be, but a port of the VIP cannot be reached any more.
    Hidden(String),
}

/// For each of `routes`, which are in the order of their names.
pub(super) fn find(routes: &[(&ObjectName, Route)]) -> Vec<Finding> {
    let mut taken: BTreeMap<(IpNet, TransportProtocol, u16), (u16, Arc<str>)> = BTreeMap::new();
    let mut findings = Vec::with_capacity(routes.len());
    for (name, route) in routes {
        let mut finding = Finding::None;
        let places = |(transport, port, target): (TransportProtocol, u16, u16)| {
            route.destinations.iter().map(move |vip| (*vip, transport, port, target))
        };
        let wanted: Vec<_> = translations(route).flat_map(places).collect();
        for (vip, transport, port, target) in &wanted {
            let (first, by) = taken.entry((*vip, *transport, *target)).or_insert_with(|| (*port, name.name.clone()));
            if first != port {
                finding = Finding::Refused(format!(
                    "spec.destinationPortTranslation: `{port}`: L34Route {by} turns port {first} of {} into {target} too, \
                     and their replies could not be told apart: must have a targetPort of its own",
                    vip.addr()
                ));
                break;
            }
        }
        if matches!(finding, Finding::Refused(_)) {
            taken.retain(|_, (_, by)| *by != name.name);
        } else if let Some(hidden) = hidden(&wanted, routes) {
            finding = Finding::Hidden(hidden);
        }
        findings.push(finding);
    }
    findings
}

/// Protocol, port of the VIP, port of the endpoint: of what a packet of the route can meet.
fn translations(route: &Route) -> impl Iterator<Item = (TransportProtocol, u16, u16)> {
    let all = route.port_translations.iter().map(|((transport, port), target)| (*transport, *port, *target));
    all.filter(|(transport, port, target)| port != target && matches(route, *transport, *port))
}

fn matches(route: &Route, transport: TransportProtocol, port: u16) -> bool {
    let ranges = &route.destination_ports;
    let meets = ranges.is_empty() || ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
    meets && route.protocols.contains(&transport)
}

/// Some route takes packets to the port of the endpoint as it is: their replies would come from another port.
fn hidden(wanted: &[(IpNet, TransportProtocol, u16, u16)], routes: &[(&ObjectName, Route)]) -> Option<String> {
    wanted.iter().find_map(|(vip, transport, port, target)| {
        let takes = |route: &Route| {
            route.destinations.contains(vip)
                && matches(route, *transport, *target)
                && !route.port_translations.contains_key(&(*transport, *target))
        };
        let (other, _) = routes.iter().find(|(_, route)| takes(route))?;
        Some(format!(
            "spec.destinationPortTranslation: `{port}`: L34Route {} takes packets to port {target} of {} as they are: no \
             flow to it can work, because replies from {target} are turned into {port}",
            other.name,
            vip.addr()
        ))
    })
}
