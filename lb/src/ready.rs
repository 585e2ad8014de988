//! Which VIPs are ready, and why the others are not: pure, of whole values.
//!
//! A VIP is ready iff at least one of its accepted routes has a ready endpoint with an address of the VIP's family, the way
//! to that endpoint is in the kernel and its interface has carrier, and nothing stops the pod as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use martlet_api::readiness::{Readiness, VERSION, VipReadiness};
use martlet_api::view::{Condition, View};
use martlet_netlink::{Family, Link, Object};

use crate::rules::table;
use crate::targets::{Hop, Targets};

/// What the machine says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// What the kernel did not take of ours.
    pub refused: BTreeSet<Object>,
    /// Why no packet of a family can be forwarded.
    pub blocked: BTreeMap<Family, String>,
}

/// The whole value for the router.
pub fn readiness(view: &View, targets: &Targets, facts: &Facts, draining: bool) -> Readiness {
    let vips = view.vips.iter().map(|vip| {
        let reason = unready(view, targets, facts, *vip);
        (*vip, VipReadiness { ready: reason.is_none(), reason: reason.unwrap_or_default() })
    });
    Readiness { version: VERSION, gateway: view.gateway.name.to_string(), draining, vips: vips.collect() }
}

/// `now` without the VIPs that are not ready in `next`: what is true before the kernel has been told of `next`.
pub fn meanwhile(now: &Readiness, next: &Readiness) -> Readiness {
    let vips = next.vips.iter().map(|(vip, next)| {
        let was_ready = now.vips.get(vip).is_some_and(|now| now.ready);
        let reason = if next.ready { "the kernel is being told".to_owned() } else { next.reason.clone() };
        (*vip, if was_ready && next.ready { next.clone() } else { VipReadiness { ready: false, reason } })
    });
    Readiness { vips: vips.collect(), ..next.clone() }
}

/// A condition of the Gateway for each VIP that is ready although some of its routes are not served: their packets are lost.
pub fn partially_served(view: &View, targets: &Targets, facts: &Facts) -> BTreeSet<Condition> {
    let condition = |vip: &IpNet| {
        let routes = view.routes.iter().filter(|(_, route)| route.destinations.contains(vip));
        let unserved: Vec<String> = routes
            .filter_map(|(name, route)| {
                let reason = unserved(view, targets, facts, &route.backend, vip.addr())?;
                Some(format!("L34Route {name}: {reason}"))
            })
            .collect();
        let is_partial = !unserved.is_empty() && unready(view, targets, facts, *vip).is_none();
        is_partial.then(|| Condition {
            kind: "Gateway".into(),
            object: view.gateway.clone(),
            condition: "PartiallyServed".into(),
            status: true,
            reason: "NoEndpoint".into(),
            message: format!("VIP {}: {}", vip.addr(), unserved.join("; ")).into(),
        })
    };
    view.vips.iter().filter_map(condition).collect()
}

/// Why a VIP is not ready; `None`: it is.
fn unready(view: &View, targets: &Targets, facts: &Facts, vip: IpNet) -> Option<String> {
    if let Some(reason) = facts.blocked.get(&Family::of(&vip)) {
        return Some(reason.clone());
    }
    let mut reasons = BTreeSet::new();
    for (name, route) in view.routes.iter().filter(|(_, route)| route.destinations.contains(&vip)) {
        match unserved(view, targets, facts, &route.backend, vip.addr()) {
            None => return None,
            Some(reason) => drop(reasons.insert(format!("L34Route {name}: {reason}"))),
        }
    }
    if reasons.is_empty() {
        reasons.insert("no accepted L34Route has this VIP as a destination".into());
    }
    Some(reasons.into_iter().collect::<Vec<_>>().join("; "))
}

/// Why nobody of a Service serves the family of `vip`.
fn unserved(view: &View, targets: &Targets, facts: &Facts, service: &str, vip: IpAddr) -> Option<String> {
    let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
    if !view.services.contains_key(service) {
        return Some(format!("Service {service} does not exist or is not of this Gateway"));
    }
    let Some(backend) = targets.tables.services().iter().find(|backend| *backend.service == *service) else {
        return Some(format!("Service {service} has no marks"));
    };
    let mut reason = format!("Service {service} has no ready endpoint with an {family} address");
    for identifier in backend.table(vip).identifiers() {
        let mark = backend.first_mark + u32::from(*identifier);
        match targets.hop(mark, vip).map(|hop| obstacle(hop, facts)) {
            Some(None) => return None,
            Some(Some(obstacle)) => reason = obstacle,
            None => {}
        }
    }
    Some(reason)
}

/// What stands between us and an endpoint.
fn obstacle(hop: &Hop, facts: &Facts) -> Option<String> {
    let Hop { address, mark, .. } = hop;
    let is_its = |object: &&Object| match object {
        Object::Route(route) => route.table == table(*mark) && route.prefix.addr().is_ipv4() == address.is_ipv4(),
        Object::Rule(rule) => (rule.family == Family::Ipv4) == address.is_ipv4(),
    };
    match facts.links.get(&hop.interface) {
        None => Some(format!("the interface to endpoint {address} is gone")),
        Some(link) if !link.carrier => Some(format!("interface {} to endpoint {address} has no carrier", link.name)),
        Some(_) if facts.refused.iter().any(|object| is_its(&object)) => {
            Some(format!("the kernel refused the way to endpoint {address}"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
