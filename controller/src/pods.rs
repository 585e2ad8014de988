//! The load-balancer pods of a Gateway: whether they have the way to its endpoints, and their readiness gates. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use martlet_api::view::View;
use serde_json::json;

use crate::deployment::GATES;
use crate::networks::{Networks, STATUS};
use crate::plan::Action;
use crate::world::{Kind, World};

/// What a load-balancer pod lacks on the networks of its Gateway's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattached {
    /// The pod, the subnets, and the remedy.
    pub fault: String,
    /// Families of which it has no address at all in any subnet, although there are subnets: IPv4, IPv6.
    pub families: [bool; 2],
}

/// The load-balancer pods among `pods` that run without an address in a subnet of the endpoints, by name.
pub fn unattached(pods: &[&Pod], networks: &Networks) -> BTreeMap<String, Unattached> {
    let mut found = BTreeMap::new();
    for pod in pods {
        let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        if !running || pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let name = pod.name_any();
        let status = pod.annotations().get(STATUS).map_or("[]", String::as_str);
        let (missing, fault) = match networks.without_address(status) {
            Ok(missing) if missing.is_empty() => continue,
            Ok(missing) => {
                let subnets: Vec<_> = missing.iter().map(ToString::to_string).collect();
                let fault = format!("pod {name} has no address in {}: attach it to that network", subnets.join(", "));
                (missing, fault)
            }
            Err(fault) => (networks.subnets().to_vec(), format!("pod {name}: {fault}")),
        };
        let families = [true, false].map(|ipv4| {
            let mut subnets = networks.subnets().iter().filter(|net| is_ipv4(net) == ipv4).peekable();
            subnets.peek().is_some() && subnets.all(|subnet| missing.contains(subnet))
        });
        found.insert(name, Unattached { fault, families });
    }
    found
}

const fn is_ipv4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// The readiness gates of a load-balancer pod, if they have to change. A pod without the way to the endpoints of a family is not
/// ready, however well it is connected.
pub fn gates(world: &World, view: &View, pod: &Pod, unattached: Option<&Unattached>, now: &Time) -> Option<Action> {
    let name = pod.name_any();
    let asked: BTreeSet<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten())
        .map(|gate| gate.condition_type.as_str())
        .collect();
    let state = world.states.values().find(|state| state.spec.pod == name && state.spec.gateway == *view.gateway.name);
    let existing = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut changed = false;
    let mut said = Vec::new();
    let lacks = unattached.map_or([false; 2], |unattached| unattached.families);
    for ((gate, ipv4), lacks) in GATES.into_iter().zip([true, false]).zip(lacks) {
        if !asked.contains(gate) {
            continue;
        }
        let routers = view.routers.values().any(|router| router.address.is_ipv4() == ipv4);
        let connected = state.map(|s| if ipv4 { s.spec.ipv4_connectivity } else { s.spec.ipv6_connectivity });
        let (status, reason) = match (routers, connected) {
            (false, _) => ("True", "NoGatewayRouter"),
            (true, _) if lacks => ("False", "AddressMissing"),
            (true, Some(true)) => ("True", "Connected"),
            (true, Some(false)) => ("False", "NotConnected"),
            (true, None) => ("False", "Pending"),
        };
        let message = unattached.filter(|_| reason == "AddressMissing").map_or("", |unattached| &unattached.fault);
        let old = existing.iter().find(|old| old.type_ == gate);
        let same = old.is_some_and(|old| {
            old.status == status
                && old.reason.as_deref() == Some(reason)
                && old.message.as_deref().unwrap_or_default() == message
        });
        changed |= !same;
        let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
        said.push(json!({
            "type": gate, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| now.clone()),
        }));
    }
    let body = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "uid": pod.metadata.uid},
        "status": {"conditions": said},
    });
    changed.then_some(Action::Status(Kind::Pod, name, body))
}
