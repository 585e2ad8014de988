//! Events for humans: differences between what was said and what is said. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use martlet_api::accept::{ACCEPTED, RESOLVED_REFS};
use martlet_api::crd::{GROUP, RouterState, SessionState, VERSION};

use crate::plan::reference;

/// One Event.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The object that it is about.
    pub regarding: ObjectReference,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// For a human.
    pub text: String,
}

/// Events for conditions that turned bad, or bad in another way.
pub fn of_conditions<K: Resource<DynamicType = ()>>(
    object: &K,
    before: &[Condition],
    after: &[Condition],
) -> Vec<Note> {
    let mut notes = Vec::new();
    for now in after {
        let reason = match now.type_.as_str() {
            ACCEPTED | RESOLVED_REFS | "SubnetsAccepted" if now.status == "False" => "ConfigRejected",
            "PodsAttached" | "NetworksResolved" if now.status == "False" => "NotAttached",
            "EndpointsAccepted" if now.reason == "CapacityExceeded" => "CapacityExceeded",
            "EndpointsAccepted" => "ConfigRejected",
            _ => continue,
        };
        let same = |old: &Condition| (&old.type_, &old.status, &old.message) == (&now.type_, &now.status, &now.message);
        if !before.iter().any(same) {
            notes.push(Note { regarding: reference(object), warning: true, reason, text: now.message.clone() });
        }
    }
    notes
}

/// Events for what a router tells anew: sessions on their `GatewayRouter`, VIPs on the Pod's Gateway.
///
/// The first that a router tells is news too.
pub fn of_states(before: Option<&RouterState>, after: &RouterState) -> Vec<Note> {
    let pod = &after.spec.pod;
    let of = |kind: &str, api_version: String, name: &str| ObjectReference {
        api_version: Some(api_version),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        namespace: after.metadata.namespace.clone(),
        ..ObjectReference::default()
    };
    let mut notes = Vec::new();
    for session in &after.spec.sessions {
        let regarding = of("GatewayRouter", format!("{GROUP}/{VERSION}"), &session.router);
        let old = before.and_then(|before| before.spec.sessions.iter().find(|old| old.router == session.router));
        notes.extend(of_session(pod, &regarding, old, session));
    }
    let gateway = of("Gateway", "gateway.networking.k8s.io/v1".to_owned(), &after.spec.gateway);
    let mut announced = Vec::new();
    let mut withdrawn = BTreeMap::<(bool, &str), Vec<&str>>::new();
    for vip in &after.spec.vips {
        let old = before.and_then(|before| before.spec.vips.iter().find(|old| old.vip == vip.vip));
        match (old.is_some_and(|old| old.announced), vip.announced) {
            (false, true) => announced.push(&*vip.vip),
            (true, false) => {
                let why = vip.reason.as_deref().unwrap_or("not said");
                withdrawn.entry((true, why)).or_default().push(&vip.vip);
            }
            _ => {}
        }
    }
    for old in before.iter().flat_map(|before| &before.spec.vips) {
        if old.announced && !after.spec.vips.iter().any(|vip| vip.vip == old.vip) {
            withdrawn.entry((false, "it is no VIP any more")).or_default().push(&old.vip);
        }
    }
    // What happens at once is told at once: forty VIPs are no forty Events.
    let note = |warning, reason, text| Note { regarding: gateway.clone(), warning, reason, text };
    if !announced.is_empty() {
        notes.push(note(false, "VipAnnounced", format!("{pod}: {}", announced.join(", "))));
    }
    for ((warning, why), vips) in withdrawn {
        notes.push(note(warning, "VipWithdrawn", format!("{pod}: {}: {why}", vips.join(", "))));
    }
    notes
}

fn of_session(pod: &str, regarding: &ObjectReference, old: Option<&SessionState>, now: &SessionState) -> Vec<Note> {
    let mut notes = Vec::new();
    let note = |warning, reason, text| Note { regarding: regarding.clone(), warning, reason, text };
    let up = |session: &SessionState| session.bfd.as_deref() == Some("Up");
    if old.is_some_and(up) && !up(now) && now.bfd.is_some() {
        let why = now.last_error.as_deref().unwrap_or("no diagnostic");
        notes.push(note(true, "BfdDown", format!("{pod}: BFD is {}: {why}", now.bfd.as_deref().unwrap_or_default())));
    }
    match (old.is_some_and(|old| old.up), now.up) {
        (false, true) => notes.push(note(false, "SessionUp", format!("{pod}: {}", now.state))),
        (true, false) => {
            let why = now.last_error.as_deref().unwrap_or("no error was told");
            notes.push(note(true, "SessionDown", format!("{pod}: {}: {why}", now.state)));
        }
        _ => {}
    }
    notes
}
