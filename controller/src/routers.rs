//! The status of a `GatewayRouter`: what acceptance says, and what the routers of all pods see of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use martlet_api::accept::ACCEPTED;
use martlet_api::crd::{GatewayRouter, GatewayRouterStatus, PodSession, RouterState};
use martlet_api::view::Condition;

use crate::conditions::{Say, conditions};

/// The status of a `GatewayRouter`, from what acceptance says of it (`found`) and the states of the pods of its Gateway.
pub fn gateway_router_status<'a>(
    router: &GatewayRouter,
    found: &[&Condition],
    states: impl IntoIterator<Item = &'a RouterState>,
    now: &Time,
) -> GatewayRouterStatus {
    let name = router.name_any();
    let existing = router.status.clone().unwrap_or_default();
    let sessions: BTreeMap<&str, _> = states
        .into_iter()
        .filter_map(|state| {
            let session = state.spec.sessions.iter().find(|session| session.router == name)?;
            Some((state.spec.pod.as_str(), session))
        })
        .collect();
    // Whether its Secrets are there, only the pods know: the controller may not read them.
    let mut say: Vec<_> =
        found.iter().filter(|found| &*found.condition == ACCEPTED).map(|found| Say::of(ACCEPTED, found)).collect();
    let all = sessions.len();
    let up = sessions.values().filter(|session| session.up).count();
    let accepted = say.iter().any(|say| say.condition == ACCEPTED && say.status == Some(true));
    say.push(match (accepted, all) {
        (false, _) => Say::new("Programmed", false, "Invalid", "it is not accepted"),
        (true, 0) => Say::new("Programmed", false, "Pending", "no load-balancer pod has told of it yet"),
        (true, _) if up == all => Say::new("Programmed", true, "Programmed", ""),
        (true, _) => Say::new("Programmed", up > 0, "Degraded", format!("up in {up} of {all} load-balancer pods")),
    });
    let established = sessions.values().filter(|session| session.state == "Established").count();
    let is_static = sessions.values().all(|session| session.state == "Static");
    let with_bfd = sessions.values().filter(|session| session.bfd.is_some()).count();
    let bfd_up = sessions.values().filter(|session| session.bfd.as_deref() == Some("Up")).count();
    // Times are RFC 3339 in UTC: the greatest is the last.
    let last = sessions.values().filter(|session| session.last_error.is_some()).max_by_key(|session| &session.since);
    GatewayRouterStatus {
        conditions: conditions(&existing.conditions, &say, router.metadata.generation, now),
        bgp: (all > 0 && !is_static).then(|| format!("{established}/{all} Established")),
        bfd: (with_bfd > 0).then(|| format!("{bfd_up}/{with_bfd} Up")),
        since: sessions.values().filter_map(|session| session.since.clone()).max(),
        last_error: last.and_then(|session| session.last_error.clone()),
        pods: sessions
            .into_iter()
            .map(|(pod, session)| PodSession {
                pod: pod.to_owned(),
                state: session.state.clone(),
                bfd: session.bfd.clone(),
                since: session.since.clone(),
            })
            .collect(),
    }
}
