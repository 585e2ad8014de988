//! The `L34Route`s of a Gateway.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::endpoints::Known;
use super::overlap::{self, Overlap};
use super::tell::Told;
use super::translations::{self, Finding};
use super::{ACCEPTED, CAPACITY_EXCEEDED, RESOLVED_REFS};
use crate::crd::{GATEWAY_LABEL, L34Route};
use crate::objects::{Kind, Objects};
use crate::parse;
use crate::view::{ObjectName, Route};

/// The Gateway that a route names, in its own namespace.
///
/// # Errors
///
/// The reason and the message why it names none that it may name.
pub(super) fn parent<'a>(name: &ObjectName, route: &'a L34Route) -> Result<&'a str, (&'static str, String)> {
    let [parent] = route.spec.parent_refs.as_slice() else {
        let items = route.spec.parent_refs.len();
        return Err(("Invalid", format!("spec.parentRefs: `{items} items`: must name exactly one Gateway")));
    };
    let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != ("gateway.networking.k8s.io", "Gateway") {
        let message =
            format!("spec.parentRefs[0]: `{group}/{kind}`: must be gateway.networking.k8s.io/Gateway, or not said");
        return Err(("InvalidKind", message));
    }
    match parent.namespace.as_deref() {
        Some(other) if other != &*name.namespace => {
            let message = format!("spec.parentRefs[0].namespace: `{other}`: must be {}, or not said", name.namespace);
            Err(("RefNotPermitted", message))
        }
        _ => Ok(&parent.name),
    }
}

pub(super) fn accept(
    objects: &Objects,
    gateway: &ObjectName,
    services: &BTreeMap<Arc<str>, Known>,
    told: &mut Told,
) -> BTreeMap<Arc<str>, Route> {
    let mut parsed: Vec<(&ObjectName, Route)> = Vec::new();
    for (name, object) in &objects.routes {
        if name.namespace != gateway.namespace || parent(name, object) != Ok(&*gateway.name) {
            continue;
        }
        match parse::route(&object.spec) {
            Ok(mut route) => {
                route.backend = resolve(objects, gateway, name, object, services, told);
                parsed.push((name, route));
            }
            Err(refusals) => told.refused(Kind::L34Route, name, ACCEPTED, "Invalid", parse::together(&refusals)),
        }
    }
    let findings = translations::find(&parsed);
    let (mut kept, mut hidden) = (Vec::with_capacity(parsed.len()), Vec::with_capacity(parsed.len()));
    for ((name, route), finding) in parsed.into_iter().zip(findings) {
        if let Finding::Refused(message) = finding {
            told.refused(Kind::L34Route, name, ACCEPTED, "Conflict", message);
        } else {
            hidden.push(if let Finding::Hidden(message) = finding { Some(message) } else { None });
            kept.push((name, route));
        }
    }
    let overlaps = overlap::find(&kept);
    let mut routes = BTreeMap::new();
    for (((name, route), overlap), hidden) in kept.into_iter().zip(overlaps).zip(hidden) {
        match overlap {
            Overlap::None => match hidden {
                Some(message) => told.say(Kind::L34Route, name, ACCEPTED, true, "PortHidden", message),
                None => told.accepted(Kind::L34Route, name, ""),
            },
            Overlap::Partly(winner) => {
                let message = format!(
                    "spec.priority: `{}`: L34Route {winner} has the same priority and wins the packets that both match: \
                     give them different priorities",
                    route.priority
                );
                told.say(Kind::L34Route, name, ACCEPTED, true, "Overlap", message);
            }
            Overlap::Wholly(winner) => {
                let message = format!(
                    "spec.priority: `{}`: L34Route {winner} has the same priority and wins every packet of this one: give \
                     this one a higher priority, or remove it",
                    route.priority
                );
                told.refused(Kind::L34Route, name, ACCEPTED, "Overlap", message);
                continue;
            }
        }
        routes.insert(name.name.clone(), route);
    }
    routes
}

/// The name of the backend as it is to be found among the services of the view.
fn resolve(
    objects: &Objects,
    gateway: &ObjectName,
    name: &ObjectName,
    object: &L34Route,
    services: &BTreeMap<Arc<str>, Known>,
    told: &mut Told,
) -> Arc<str> {
    let Some(backend) = object.spec.backend_refs.first() else { return Arc::from("") };
    let service = backend.name.as_str();
    let mut unresolved = |reason: &str, message: String| {
        told.refused(Kind::L34Route, name, RESOLVED_REFS, reason, message);
    };
    let group = backend.group.as_deref().unwrap_or("");
    let kind = backend.kind.as_deref().unwrap_or("Service");
    // What may not be referred to must not be found by its name: no Service has a slash in it.
    if (group, kind) != ("", "Service") {
        unresolved(
            "InvalidKind",
            format!("spec.backendRefs[0]: `{group}/{kind}`: must be a Service of the core group"),
        );
        return Arc::from(format!("{group}/{kind}/{service}"));
    }
    if let Some(other) = backend.namespace.as_deref()
        && other != &*name.namespace
    {
        let message = format!("spec.backendRefs[0].namespace: `{other}`: must be {}, or not said", name.namespace);
        unresolved("RefNotPermitted", message);
        return Arc::from(format!("{other}/{service}"));
    }
    if let Some(known) = services.get(service) {
        if known.capacity_exceeded {
            let message = format!("Service {service} has more endpoints than it may have: see its conditions");
            told.say(Kind::L34Route, name, RESOLVED_REFS, true, CAPACITY_EXCEEDED, message);
        } else {
            told.say(Kind::L34Route, name, RESOLVED_REFS, true, RESOLVED_REFS, "");
        }
        return Arc::from(service);
    }
    if objects.absent.contains(&Kind::Service) {
        // Who may not read Services cannot tell.
        return Arc::from(service);
    }
    let field = format!("spec.backendRefs[0].name: `{service}`");
    match objects.services.get(&ObjectName::new(name.namespace.clone(), service)) {
        Some(found) => {
            let label = found.metadata.labels.as_ref().and_then(|labels| labels.get(GATEWAY_LABEL));
            let label = label.map_or("no such label".to_owned(), |label| format!("`{label}`"));
            let message = format!(
                "{field}: must be a Service whose label {GATEWAY_LABEL} is `{}`; this one has {label}",
                gateway.name
            );
            unresolved("ServiceOfAnotherGateway", message);
        }
        None => unresolved("BackendNotFound", format!("{field}: must be a Service in namespace {}", name.namespace)),
    }
    Arc::from(service)
}
