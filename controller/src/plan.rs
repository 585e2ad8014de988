//! What is to be done: the whole world in, actions and notes out. Pure; done twice it has nothing to do.
//!
//! Only objects of our namespace are touched, and of these only what belongs to a Gateway of our class. What has our name but not
//! our Gateway as its controller is left alone and told.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt as _};
use martlet_api::crd::{
    CONTROLLER, GATEWAY_LABEL, Gateway, GatewayRouterStatus, L34RouteStatus, MANAGED_BY_LABEL, SERVICE_LABEL,
};
use martlet_api::view::{Condition, ObjectName, View};
use martlet_api::{Objects, accept};
use serde_json::{Value, json};

use crate::conditions::{Say, conditions, sort};
use crate::deployment::{self, Settings, budget, holds, name_of, selector_of};
use crate::endpoints::{DUMMY_SELECTOR, Endpoints, MANAGER, endpoint_slices};
use crate::gateway::{Deployed, Known, gateway_status};
use crate::networks::Networks;
use crate::notes::{self, Note};
use crate::pods::{gates, unattached};
use crate::routers::gateway_router_status;
use crate::routes::l34route_status;
use crate::world::{GatewayExtra, Kind, World};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make an object that must not exist.
    Create(Kind, String, Value),
    /// Apply our fields of an object.
    Apply(Kind, String, Value),
    /// Apply our fields of the status of an object.
    Status(Kind, String, Value),
    /// Remove the object of this name and uid.
    Delete(Kind, String, String),
}

impl Action {
    /// What it is done to.
    pub fn of(&self) -> (Kind, &str) {
        match self {
            Self::Create(kind, name, _)
            | Self::Apply(kind, name, _)
            | Self::Status(kind, name, _)
            | Self::Delete(kind, name, _) => (*kind, name),
        }
    }
}

/// Everything that is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order: what carries traffic first, then what is told.
    pub actions: Vec<Action>,
    /// Events to be told once the actions are done.
    pub notes: Vec<Note>,
}

/// What there is to do. `per_slice` is the most endpoints of a slice.
pub fn plan(world: &World, settings: &Settings, per_slice: usize, now: &Time) -> Plan {
    let mut plan = Plan::default();
    let mut wanted = Wanted::default();
    let pods = Labelled::new(world);
    let slices = slices_by_service(world);
    let none = Objects::default();
    let parts = parts(world);
    let mut told = accept::unattached(&world.objects, &world.namespace);
    for (name, gateway) in world.objects.gateways.iter().filter(|(name, _)| name.namespace == world.namespace) {
        if !accept::ours(&world.objects, gateway) || gateway.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let view = accept::view(parts.get(&*name.name).unwrap_or(&none), name);
        of_gateway(world, &pods, &slices, settings, per_slice, gateway, &view, now, &mut wanted, &mut plan);
        told.extend(view.conditions);
    }
    remove_what_is_not_wanted(world, &wanted, &mut plan);
    tell_routes_and_routers(world, &told, &wanted, now, &mut plan);
    tell_classes(world, now, &mut plan);
    plan.actions.sort_by_key(|action| match action.of().0 {
        Kind::Slice => 0,
        Kind::Pod => 1,
        Kind::Deployment | Kind::Budget => 2,
        _ => 3,
    });
    plan
}

/// What the Gateways of our class want, gathered.
#[derive(Default)]
struct Wanted {
    slices: BTreeSet<String>,
    deployments: BTreeSet<String>,
    budgets: BTreeSet<String>,
    /// Pods left out, by Service.
    over_capacity: BTreeMap<String, BTreeSet<String>>,
}

#[expect(clippy::too_many_arguments, reason = "whole values; bundled they would only be unbundled again")]
fn of_gateway(
    world: &World,
    labelled: &Labelled<'_>,
    slices: &Slices<'_>,
    settings: &Settings,
    per_slice: usize,
    gateway: &Gateway,
    view: &View,
    now: &Time,
    wanted: &mut Wanted,
    plan: &mut Plan,
) {
    let default = GatewayExtra::default();
    let extra = world.gateways.get(&view.gateway).unwrap_or(&default);
    let annotations = gateway.spec.infrastructure.as_ref().and_then(|i| i.annotations.clone()).unwrap_or_default();
    let networks = Networks::parse(&annotations, &world.namespace);
    let services = of_services(world, labelled, slices, per_slice, view, networks.as_ref().ok(), wanted, plan);
    let (deployed, parameters) = of_deployment(world, settings, gateway, wanted, plan);
    let pods = load_balancers(labelled, &view.gateway.name);
    let unattached = networks.as_ref().map(|networks| unattached(&pods, networks)).unwrap_or_default();
    if settings.gates && world.rights.gates && world.rights.states {
        for pod in &pods {
            plan.actions.extend(gates(world, view, pod, unattached.get(&pod.name_any()), now));
        }
    }
    let known = Known {
        view,
        listeners: &extra.listeners,
        generation: gateway.metadata.generation,
        networks: networks.as_ref().err(),
        parameters: parameters.as_deref(),
        deployed: &deployed,
        unattached: &unattached,
        services: &services.faults,
        over_capacity: &services.over_capacity,
    };
    let status = gateway_status(&known, &extra.status, now);
    if status != extra.status {
        plan.notes.extend(notes::of_conditions(gateway, &extra.status.conditions, &status.conditions));
        plan.actions.push(status_of(Kind::Gateway, gateway, &status));
    }
}

/// What is to be told of the Services of a Gateway.
#[derive(Default)]
struct Services {
    over_capacity: BTreeMap<String, BTreeSet<String>>,
    faults: Vec<String>,
}

/// The slices of the Services of a Gateway.
#[expect(clippy::too_many_arguments, reason = "whole values; bundled they would only be unbundled again")]
fn of_services(
    world: &World,
    labelled: &Labelled<'_>,
    slices: &Slices<'_>,
    per_slice: usize,
    view: &View,
    networks: Option<&Networks>,
    wanted: &mut Wanted,
    plan: &mut Plan,
) -> Services {
    let mut services = Services::default();
    for told in view.conditions.iter().filter(|told| &*told.kind == "Service" && !told.status) {
        services.faults.push(format!("Service {}: {}", told.object.name, told.message));
    }
    for service in view.services.keys() {
        let Some(object) = world.objects.services.get(&world.name(service)) else { continue };
        if object.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let existing = slices.get(&**service).map_or(&[][..], Vec::as_slice);
        let pods = labelled.candidates(object.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
        let Endpoints { slices, over_capacity, malformed, .. } =
            endpoint_slices(object, &view.gateway.name, pods, networks, existing, per_slice);
        for (name, slice) in slices {
            match world.objects.slices.get(&world.name(&name)) {
                None => plan.actions.push(Action::Create(Kind::Slice, name.clone(), slice_body(&slice, None))),
                Some(old) if **old != slice => {
                    plan.actions.push(Action::Apply(
                        Kind::Slice,
                        name.clone(),
                        slice_body(&slice, Some(&old.metadata)),
                    ));
                }
                Some(_) => {}
            }
            wanted.slices.insert(name);
        }
        services.faults.extend(malformed.into_iter().map(|(pod, fault)| format!("pod {pod}: {fault}")));
        if !over_capacity.is_empty() {
            services.over_capacity.insert(service.to_string(), over_capacity);
        }
    }
    wanted.over_capacity.extend(services.over_capacity.clone());
    services
}

/// The slices that are ours, by Service.
type Slices<'a> = BTreeMap<&'a str, Vec<&'a EndpointSlice>>;

fn slices_by_service(world: &World) -> Slices<'_> {
    let mut slices = Slices::new();
    for slice in our_slices(world) {
        if let Some(service) = slice.labels().get(SERVICE_LABEL) {
            slices.entry(service.as_str()).or_default().push(slice);
        }
    }
    slices
}

/// What acceptance has to see of each Gateway, so that hundreds of them need not look at thousands of objects each: what names it, and
/// the Services that its routes name.
fn parts(world: &World) -> BTreeMap<&str, Objects> {
    let all = &world.objects;
    let shared = Objects {
        gateway_classes: all.gateway_classes.clone(),
        conditions: all.conditions.clone(),
        absent: all.absent.clone(),
        synced: all.synced,
        ..Objects::default()
    };
    let of_ours = all.gateways.iter().filter(|(name, _)| name.namespace == world.namespace);
    let mut parts: BTreeMap<&str, Objects> = of_ours
        .map(|(name, gateway)| {
            (&*name.name, Objects { gateways: [(name.clone(), gateway.clone())].into(), ..shared.clone() })
        })
        .collect();
    for (name, router) in &all.routers {
        if let Some(part) = router.labels().get(GATEWAY_LABEL).and_then(|gateway| parts.get_mut(gateway.as_str())) {
            part.routers.insert(name.clone(), router.clone());
        }
    }
    for (name, route) in &all.routes {
        let parent = route.spec.parent_refs.first();
        let Some(part) = parent.and_then(|parent| parts.get_mut(parent.name.as_str())) else { continue };
        part.routes.insert(name.clone(), route.clone());
        if let Some(backend) = route.spec.backend_refs.first() {
            let service = world.name(&backend.name);
            part.services.extend(all.services.get(&service).map(|object| (service, object.clone())));
        }
    }
    let mut gateways = BTreeMap::new();
    for (name, service) in &all.services {
        let Some(gateway) = service.labels().get(GATEWAY_LABEL) else { continue };
        if let Some(part) = parts.get_mut(gateway.as_str()) {
            part.services.insert(name.clone(), service.clone());
            gateways.insert(&*name.name, gateway.as_str());
        }
    }
    for (name, slice) in &all.slices {
        let gateway = slice.labels().get(SERVICE_LABEL).and_then(|service| gateways.get(service.as_str()));
        if let Some(part) = gateway.and_then(|gateway| parts.get_mut(*gateway)) {
            part.slices.insert(name.clone(), slice.clone());
        }
    }
    parts
}

fn our_slices(world: &World) -> impl Iterator<Item = &EndpointSlice> {
    world
        .objects
        .slices
        .iter()
        .filter(|(name, _)| name.namespace == world.namespace)
        .map(|(_, slice)| &**slice)
        .filter(|slice| slice.labels().get(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGER))
}

/// A slice as it is sent. The version of the old one makes the server refuse if someone else was faster.
fn slice_body(slice: &EndpointSlice, old: Option<&ObjectMeta>) -> Value {
    let mut body = serde_json::to_value(slice).unwrap_or_default();
    body["metadata"] = json!({
        "name": slice.metadata.name,
        "namespace": slice.metadata.namespace,
        "labels": slice.metadata.labels,
        "ownerReferences": slice.metadata.owner_references,
    });
    if let Some(version) = old.and_then(|old| old.resource_version.as_ref()) {
        body["metadata"]["resourceVersion"] = Value::String(version.clone());
    }
    body
}

/// The Deployment and the budget of a Gateway. Returns what there is, and what is wrong with the parameters.
fn of_deployment(
    world: &World,
    settings: &Settings,
    gateway: &Gateway,
    wanted: &mut Wanted,
    plan: &mut Plan,
) -> (Deployed, Option<String>) {
    let name = name_of(&gateway.name_any());
    let existing = world.deployments.get(&name);
    // Whatever comes of it: what exists of a Gateway of ours stays.
    wanted.deployments.insert(name.clone());
    wanted.budgets.insert(name.clone());
    let (deployed, replicas_set) = match existing {
        None => (Deployed::Missing, false),
        Some(deployment) if !is_controlled(&deployment.metadata, gateway) => {
            return (Deployed::Foreign(name), None);
        }
        Some(deployment) => (pods_of(deployment), replicas_set_by_others(deployment)),
    };
    let made = template(world, gateway)
        .and_then(|template| deployment::deployment(gateway, settings, template.as_deref(), replicas_set));
    match made {
        Err(fault) => return (deployed, Some(fault)),
        Ok(made) => match existing {
            None => plan.actions.push(Action::Create(Kind::Deployment, name.clone(), made)),
            Some(existing) => {
                let existing = serde_json::to_value(&**existing).unwrap_or_default();
                if !holds(&existing, &made) {
                    plan.actions.push(Action::Apply(Kind::Deployment, name.clone(), made));
                }
            }
        },
    }
    if world.rights.budgets {
        let made = budget(gateway);
        match world.budgets.get(&name) {
            None => plan.actions.push(Action::Create(Kind::Budget, name, made)),
            Some(existing) if is_controlled(&existing.metadata, gateway) => {
                if !holds(&serde_json::to_value(&**existing).unwrap_or_default(), &made) {
                    plan.actions.push(Action::Apply(Kind::Budget, name, made));
                }
            }
            Some(_) => {}
        }
    }
    (deployed, None)
}

/// The operator's template, if the Gateway names one.
fn template(world: &World, gateway: &Gateway) -> Result<Option<String>, String> {
    const FIELD: &str = "spec.infrastructure.parametersRef";
    let Some(reference) = gateway.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref()) else {
        return Ok(None);
    };
    let (group, kind, name) = (&reference.group, &reference.kind, &reference.name);
    if !group.is_empty() || kind != "ConfigMap" {
        return Err(format!("{FIELD}: `{group}/{kind}`: must be a ConfigMap of the core group"));
    }
    if !world.rights.config_maps {
        return Err(format!("{FIELD}: `{name}`: the controller has no right to read ConfigMaps: see its Role `extra`"));
    }
    let map = world.config_maps.get(name);
    let map =
        map.ok_or_else(|| format!("{FIELD}.name: `{name}`: must be a ConfigMap in namespace {}", world.namespace))?;
    let data = map.data.as_ref().and_then(|data| data.get(deployment::TEMPLATE_KEY));
    let text =
        data.ok_or_else(|| format!("{FIELD}.name: `{name}`: must have the key `{}`", deployment::TEMPLATE_KEY))?;
    Ok(Some(text.clone()))
}

fn is_controlled(metadata: &ObjectMeta, gateway: &Gateway) -> bool {
    let owners = metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    controllers.any(|owner| owner.kind == "Gateway" && Some(&owner.uid) == gateway.metadata.uid.as_ref())
}

/// An autoscaler, or a human with `kubectl scale`, has set the replicas.
fn replicas_set_by_others(deployment: &Deployment) -> bool {
    let fields = deployment.metadata.managed_fields.iter().flatten();
    let mut others = fields.filter(|fields| fields.manager.as_deref() != Some(crate::FIELD_MANAGER));
    others.any(|fields| {
        let fields = fields.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields["f:spec"].get("f:replicas").is_some())
    })
}

fn pods_of(deployment: &Deployment) -> Deployed {
    Deployed::Pods {
        wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        available: deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0),
    }
}

/// The load-balancer pods of a Gateway.
fn load_balancers<'a>(labelled: &Labelled<'a>, gateway: &str) -> Vec<&'a Pod> {
    let selector = selector_of(gateway);
    let selected = |pod: &&Pod| selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value));
    labelled.candidates(Some(&selector)).filter(selected).collect()
}

/// Pods by label and its value: thousands of Pods need not be looked at for each of hundreds of Services.
struct Labelled<'a>(BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Pod>>>);

impl<'a> Labelled<'a> {
    fn new(world: &'a World) -> Self {
        let mut labelled = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
        for pod in world.pods.values() {
            for (key, value) in pod.labels() {
                labelled.entry(key.as_str()).or_default().entry(value.as_str()).or_default().push(&**pod);
            }
        }
        Self(labelled)
    }

    /// All Pods that `selector` may select, and perhaps others: those with the rarest of its labels.
    fn candidates(&self, selector: Option<&BTreeMap<String, String>>) -> impl Iterator<Item = &'a Pod> + use<'_, 'a> {
        let labels = selector.into_iter().flatten().filter(|(key, _)| *key != DUMMY_SELECTOR);
        let pods = labels.map(|(key, value)| self.with(key, value));
        pods.min_by_key(|pods| pods.len()).unwrap_or_default().iter().copied()
    }

    fn with(&self, key: &str, value: &str) -> &[&'a Pod] {
        self.0.get(key).and_then(|values| values.get(value)).map_or(&[], Vec::as_slice)
    }
}

/// Whose Gateway it is cannot be known without the right to read its class: what was made of it stays.
fn is_unjudged(world: &World, gateway: &Gateway) -> bool {
    !world.rights.classes && gateway.spec.gateway_class_name != CONTROLLER
}

/// Slices of Services that are not (or no longer) of a Gateway of ours, and Deployments of Gateways that are no longer ours.
fn remove_what_is_not_wanted(world: &World, wanted: &Wanted, plan: &mut Plan) {
    let delete = |kind, metadata: &ObjectMeta| {
        Action::Delete(kind, metadata.name.clone().unwrap_or_default(), metadata.uid.clone().unwrap_or_default())
    };
    for slice in our_slices(world) {
        let gateway = slice.labels().get(GATEWAY_LABEL).and_then(|name| world.objects.gateways.get(&world.name(name)));
        if !wanted.slices.contains(&slice.name_any())
            && slice.metadata.deletion_timestamp.is_none()
            && !gateway.is_some_and(|gateway| is_unjudged(world, gateway))
        {
            plan.actions.push(delete(Kind::Slice, &slice.metadata));
        }
    }
    // What a Gateway of the past owns, the garbage collector removes; here: the Gateway is there, of another class.
    let left = |metadata: &ObjectMeta| {
        let gateways = world.objects.gateways.values().filter(|gateway| gateway.metadata.deletion_timestamp.is_none());
        let mut owned = gateways.filter(|gateway| is_controlled(metadata, gateway) && !is_unjudged(world, gateway));
        owned.next().is_some()
            && metadata.deletion_timestamp.is_none()
            && metadata.labels.iter().flatten().any(|(key, _)| key == deployment::GATEWAY_NAME)
    };
    for (name, deployment) in &world.deployments {
        if !wanted.deployments.contains(name) && left(&deployment.metadata) {
            plan.actions.push(delete(Kind::Deployment, &deployment.metadata));
        }
    }
    for (name, budget) in world.budgets.iter().filter(|_| world.rights.budgets) {
        if !wanted.budgets.contains(name) && left(&budget.metadata) {
            plan.actions.push(delete(Kind::Budget, &budget.metadata));
        }
    }
}

fn tell_routes_and_routers(world: &World, told: &BTreeSet<Condition>, wanted: &Wanted, now: &Time, plan: &mut Plan) {
    let mut by_object = BTreeMap::<_, Vec<_>>::new();
    for told in told {
        by_object.entry((&*told.kind, &told.object)).or_default().push(told);
    }
    let found = |kind: &'static str, name| by_object.get(&(kind, name)).map_or(&[][..], Vec::as_slice);
    if world.rights.route_status {
        for (name, route) in world.objects.routes.iter().filter(|(name, _)| name.namespace == world.namespace) {
            let service = route.spec.backend_refs.first().map(|backend| backend.name.as_str()).unwrap_or_default();
            let over_capacity = wanted.over_capacity.get(service);
            let status = l34route_status(route, found("L34Route", name), over_capacity, now);
            let mut old = route.status.clone().unwrap_or_default();
            old.parents.iter_mut().for_each(|parent| sort(&mut parent.conditions));
            if status != old {
                let told = |status: &L34RouteStatus| -> Vec<_> {
                    status.parents.iter().flat_map(|parent| parent.conditions.clone()).collect()
                };
                plan.notes.extend(notes::of_conditions(&**route, &told(&old), &told(&status)));
                plan.actions.push(status_of(Kind::L34Route, &**route, &status));
            }
        }
    }
    if world.rights.routers {
        for (name, router) in world.objects.routers.iter().filter(|(name, _)| name.namespace == world.namespace) {
            let found = found("GatewayRouter", name);
            let gateway = router.labels().get(GATEWAY_LABEL);
            let states = world.states.values().map(AsRef::as_ref).filter(|state| Some(&state.spec.gateway) == gateway);
            let mut told = gateway_router_status(router, found, states, now);
            if found.is_empty() {
                // It belongs to a Gateway of someone else's class.
                told = GatewayRouterStatus::default();
            }
            let mut old = router.status.clone().unwrap_or_default();
            sort(&mut old.conditions);
            if told != old {
                plan.notes.extend(notes::of_conditions(&**router, &old.conditions, &told.conditions));
                plan.actions.push(status_of(Kind::GatewayRouter, &**router, &told));
            }
        }
    }
}

/// A class of our controller is accepted; nothing can be wrong with it.
fn tell_classes(world: &World, now: &Time, plan: &mut Plan) {
    if !world.rights.classes {
        return;
    }
    for class in world.objects.gateway_classes.values() {
        if class.spec.controller_name != CONTROLLER {
            continue;
        }
        let key = ObjectName::new("", class.name_any());
        let default = GatewayExtra::default();
        let old = &world.gateways.get(&key).unwrap_or(&default).status.conditions;
        let say = [Say::new(accept::ACCEPTED, true, accept::ACCEPTED, "")];
        let conditions = conditions(old, &say, class.metadata.generation, now);
        if *old != conditions {
            plan.actions.push(status_of(Kind::GatewayClass, &**class, &json!({"conditions": conditions})));
        }
    }
}

fn status_of<K: Resource<DynamicType = ()>>(kind: Kind, object: &K, status: &impl serde::Serialize) -> Action {
    let name = object.name_any();
    // The uid: an object of the same name that came in between must not be told what is not true of it.
    let body = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()),
        "metadata": {"name": name, "namespace": object.namespace(), "uid": object.uid()},
        "status": status,
    });
    Action::Status(kind, name, body)
}

/// A reference to an object, for an Event.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}
