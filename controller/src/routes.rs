//! The status of an `L34Route`: what acceptance says, for the one parent that it may have.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use martlet_api::accept::{ACCEPTED, RESOLVED_REFS};
use martlet_api::crd::{CONTROLLER, L34Route, L34RouteStatus, ParentStatus};
use martlet_api::view::Condition;

use crate::conditions::{Say, conditions};

/// The status of a route, from what acceptance says of it (`found`) and the pods of its Service that found no identifier.
///
/// What others wrote of other parents stays.
pub fn l34route_status(
    route: &L34Route,
    found: &[&Condition],
    over_capacity: Option<&BTreeSet<String>>,
    now: &Time,
) -> L34RouteStatus {
    let existing = route.status.clone().unwrap_or_default();
    let mut say: BTreeMap<&str, Say> = BTreeMap::new();
    for condition in [ACCEPTED, RESOLVED_REFS] {
        if let Some(found) = found.iter().find(|found| &*found.condition == condition) {
            say.insert(condition, Say::of(condition, found));
        }
    }
    if let Some(pods) = over_capacity.filter(|pods| !pods.is_empty())
        && say.get(RESOLVED_REFS).is_some_and(|say| say.status == Some(true))
    {
        let names: Vec<_> = pods.iter().take(5).map(String::as_str).collect();
        let message = format!("{} pods of the Service have no identifier, among them {}", pods.len(), names.join(", "));
        say.insert(RESOLVED_REFS, Say::new(RESOLVED_REFS, true, "CapacityExceeded", message));
    }
    let say: Vec<_> = say.into_values().collect();
    let mut parents: Vec<_> =
        existing.parents.iter().filter(|parent| parent.controller_name != CONTROLLER).cloned().collect();
    if let (Some(parent_ref), false) = (route.spec.parent_refs.first(), say.is_empty()) {
        let ours =
            existing.parents.iter().find(|old| old.controller_name == CONTROLLER && old.parent_ref == *parent_ref);
        let old = ours.map_or(&[][..], |old| &old.conditions);
        parents.push(ParentStatus {
            parent_ref: parent_ref.clone(),
            controller_name: CONTROLLER.to_owned(),
            conditions: conditions(old, &say, route.metadata.generation, now),
        });
    }
    L34RouteStatus { parents }
}
