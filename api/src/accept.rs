//! The one acceptance function: all objects of a source in, what the pod of one Gateway may use out.
//!
//! Pure, and the same for the controller, the router and the load balancer: what one of them refuses, all refuse. One bad object
//! never hurts another: it is left out, and a condition on it says why. An object of ours has at most one condition of a type;
//! a Service or an `EndpointSlice` may have several, one for each thing that is wrong.

mod endpoints;
mod overlap;
mod routers;
mod routes;
mod tell;
mod translations;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::crd::{self, CONTROLLER, GATEWAY_LABEL, SUBNETS_ANNOTATION};
use crate::objects::{Kind, Objects};
use crate::view::{Condition, ObjectName, View};
pub(crate) use endpoints::max_endpoints;
pub use endpoints::{MAX_ENDPOINTS, MOST_ENDPOINTS};
use tell::Told;

/// The type of the condition that an object counts.
pub const ACCEPTED: &str = "Accepted";
/// The type of the condition that what an object names exists.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// The type of the condition that a Service has more endpoints than it may have.
pub const CAPACITY_EXCEEDED: &str = "CapacityExceeded";
/// The type of the condition that an endpoint is used.
pub const ENDPOINT_ACCEPTED: &str = "EndpointAccepted";

/// What `objects` mean for the Gateway `gateway`.
pub fn view(objects: &Objects, gateway: &ObjectName) -> View {
    let mut told = Told::default();
    let mut view = View {
        gateway: gateway.clone(),
        exists: false,
        routers: BTreeMap::new(),
        routes: BTreeMap::new(),
        services: BTreeMap::new(),
        vips: BTreeSet::new(),
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    };
    if let Some(object) = accepted_gateway(objects, gateway, &mut told) {
        view.exists = true;
        let subnets = subnets(object, gateway, &mut told);
        view.routers = routers::accept(objects, gateway, &mut told);
        let services = endpoints::accept(objects, gateway, subnets.as_ref(), &mut told);
        view.routes = routes::accept(objects, gateway, &services, &mut told);
        view.services = services.into_iter().map(|(name, known)| (name, known.service)).collect();
        view.subnets = subnets.unwrap_or_default();
        view.vips = if objects.absent.contains(&Kind::L34Route) {
            addresses(object, gateway, &mut told)
        } else {
            view.routes.values().flat_map(|route| &route.destinations).copied().collect()
        };
    }
    view.conditions = told.conditions;
    view.conditions.extend(unattached(objects, &gateway.namespace));
    // Where the source refused an object, its last good value is in use: that the object is accepted is not said of it.
    let subject = |c: &Condition| (c.kind.clone(), c.object.clone(), c.condition.clone());
    let refused: BTreeSet<_> = objects.conditions.iter().map(subject).collect();
    view.conditions.retain(|condition| !(condition.status && refused.contains(&subject(condition))));
    view.conditions.extend(objects.conditions.iter().cloned());
    view
}

/// Whether a Gateway is of our class: by our controller's name as the name of the class, unless a class of that name belongs
/// to someone else, or through any class of our controller.
pub fn ours(objects: &Objects, gateway: &crd::Gateway) -> bool {
    let class = gateway.spec.gateway_class_name.as_str();
    match objects.gateway_classes.get(&ObjectName::new("", class)) {
        Some(object) => object.spec.controller_name == CONTROLLER,
        None => class == CONTROLLER,
    }
}

/// Conditions on the objects of a namespace that name a Gateway which is not there: they count nowhere.
pub fn unattached(objects: &Objects, namespace: &str) -> BTreeSet<Condition> {
    let mut told = Told::default();
    let exists = |name: &str| objects.gateways.contains_key(&ObjectName::new(namespace, name));
    for (name, router) in objects.routers.iter().filter(|(name, _)| &*name.namespace == namespace) {
        let label = router.metadata.labels.as_ref().and_then(|labels| labels.get(GATEWAY_LABEL));
        match label {
            Some(gateway) if exists(gateway) => {}
            Some(gateway) => {
                let message = format!(
                    "metadata.labels[{GATEWAY_LABEL}]: `{gateway}`: must be the name of a Gateway in namespace {namespace}"
                );
                told.refused(Kind::GatewayRouter, name, ACCEPTED, "NoMatchingParent", message);
            }
            None => {
                let message = format!("metadata.labels: must have {GATEWAY_LABEL} with the name of a Gateway");
                told.refused(Kind::GatewayRouter, name, ACCEPTED, "NoMatchingParent", message);
            }
        }
    }
    for (name, route) in objects.routes.iter().filter(|(name, _)| &*name.namespace == namespace) {
        match routes::parent(name, route) {
            Ok(gateway) if exists(gateway) => {}
            Ok(gateway) => {
                let message = format!(
                    "spec.parentRefs[0].name: `{gateway}`: must be the name of a Gateway in namespace {namespace}"
                );
                told.refused(Kind::L34Route, name, ACCEPTED, "NoMatchingParent", message);
            }
            Err((reason, message)) => told.refused(Kind::L34Route, name, ACCEPTED, reason, message),
        }
    }
    told.conditions
}

fn accepted_gateway<'a>(objects: &'a Objects, gateway: &ObjectName, told: &mut Told) -> Option<&'a crd::Gateway> {
    let Some(object) = objects.gateways.get(gateway) else {
        if objects.synced {
            told.refused(Kind::Gateway, gateway, ACCEPTED, "NotFound", "no such Gateway: create it, or name another");
        }
        return None;
    };
    if object.metadata.deletion_timestamp.is_some() {
        told.refused(Kind::Gateway, gateway, ACCEPTED, "Deleting", "is being deleted: its VIPs are withdrawn");
        return None;
    }
    // Who may not read classes cannot tell; the controller, which can, asks `ours` before it asks here.
    if ours(objects, object) || objects.absent.contains(&Kind::GatewayClass) {
        told.accepted(Kind::Gateway, gateway, "");
        return Some(object);
    }
    let class = &object.spec.gateway_class_name;
    let message =
        format!("spec.gatewayClassName: `{class}`: must be {CONTROLLER}, or a GatewayClass with that controllerName");
    told.refused(Kind::Gateway, gateway, ACCEPTED, "InvalidClass", message);
    None
}

/// Where endpoints must be: `None`: no address is accepted, because the annotation is broken throughout.
fn subnets(object: &crd::Gateway, gateway: &ObjectName, told: &mut Told) -> Option<BTreeSet<IpNet>> {
    let annotations = object.spec.infrastructure.as_ref().and_then(|i| i.annotations.as_ref());
    let Some(text) = annotations.and_then(|annotations| annotations.get(SUBNETS_ANNOTATION)) else {
        return Some(BTreeSet::new());
    };
    let (subnets, faults) = parse_subnets(text);
    for message in faults {
        told.refused(Kind::Gateway, gateway, "SubnetsAccepted", "InvalidAnnotation", message);
    }
    (!subnets.is_empty()).then_some(subnets)
}

/// The prefixes of the annotation, and what is wrong with it.
pub(crate) fn parse_subnets(text: &str) -> (BTreeSet<IpNet>, Vec<String>) {
    let field = format!("spec.infrastructure.annotations[{SUBNETS_ANNOTATION}]");
    let texts: Vec<String> = serde_json::from_str(text).unwrap_or_default();
    if texts.is_empty() {
        return (
            BTreeSet::new(),
            vec![format!("{field}: `{text}`: must be a JSON list of prefixes such as [\"169.111.100.0/24\"]")],
        );
    }
    let mut subnets = BTreeSet::new();
    let mut faults = Vec::new();
    for (place, text) in texts.iter().enumerate() {
        match crate::parse::value::prefix(text) {
            Some(subnet) => drop(subnets.insert(subnet)),
            None => faults.push(format!("{field}[{place}]: `{text}`: must be a prefix such as 169.111.100.0/24")),
        }
    }
    (subnets, faults)
}

/// The VIPs that the controller wrote, for a pod that may not read routes.
fn addresses(object: &crd::Gateway, gateway: &ObjectName, told: &mut Told) -> BTreeSet<IpNet> {
    let addresses = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut vips = BTreeSet::new();
    for (place, address) in addresses.iter().enumerate() {
        let host = crate::parse::value::unicast(&address.value).map(|ip| IpNet::from(ip).to_string());
        if let Some(vip) = host.as_deref().and_then(crate::parse::value::vip) {
            vips.insert(vip);
        } else {
            let message = format!("status.addresses[{place}].value: `{}`: must be a unicast address", address.value);
            told.refused(Kind::Gateway, gateway, "AddressesAccepted", "InvalidAddress", message);
        }
    }
    vips
}
