//! The status of a Gateway: its conditions, its addresses, and what is told of its listeners.
//!
//! Pure. What pods and Deployments there are is told by others; listeners are information only, no value of them changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use martlet_api::accept::ACCEPTED;
use martlet_api::crd::MAX_ENDPOINTS_ANNOTATION;
use martlet_api::view::{Endpoint, View};
use serde::{Deserialize, Serialize};

use crate::conditions::{Say, conditions, sort};
use crate::networks::Problem;
use crate::pods::Unattached;

/// The most addresses that a Gateway's status may hold.
pub const MOST_ADDRESSES: usize = 16;
/// The longest name of a Gateway: its name is the value of a label.
pub const LONGEST_NAME: usize = 63;

/// The types of the conditions that we write.
const CONDITIONS: [&str; 9] = [
    ACCEPTED,
    "Programmed",
    "Ready",
    "NetworksResolved",
    "SubnetsAccepted",
    "AddressesTruncated",
    "PodsAttached",
    "EndpointsAccepted",
    "PartiallyServed",
];

/// What we write of a Gateway's status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The VIPs, at most [`MOST_ADDRESSES`].
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// See the functions of this module.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// One for each listener.
    #[serde(default)]
    pub listeners: Vec<Listener>,
}

impl Status {
    /// What is ours of a status, in the order in which it is compared.
    #[must_use]
    pub fn ours(mut self) -> Self {
        self.conditions.retain(|condition| CONDITIONS.contains(&condition.type_.as_str()));
        sort(&mut self.conditions);
        for listener in &mut self.listeners {
            sort(&mut listener.conditions);
        }
        self
    }
}

/// A VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `IPAddress`.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// The address.
    pub value: String,
}

/// The status of a listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// How many routes the Gateway has.
    pub attached_routes: usize,
    /// Always `L34Route`.
    #[serde(default)]
    pub supported_kinds: Vec<RouteKind>,
    /// Always accepted.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A kind of route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteKind {
    /// Its group.
    pub group: String,
    /// Its kind.
    pub kind: String,
}

/// What became of the Deployment of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deployed {
    /// It does not exist yet.
    Missing,
    /// An object of that name exists which is not ours.
    Foreign(String),
    /// It exists.
    Pods {
        /// How many are wanted.
        wanted: i32,
        /// How many can be used.
        available: i32,
    },
}

/// What is known of a Gateway of ours besides what acceptance says.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// What is accepted.
    pub view: &'a View,
    /// Names of its listeners.
    pub listeners: &'a [String],
    /// Its generation.
    pub generation: Option<i64>,
    /// What is wrong with its annotations.
    pub networks: Option<&'a Problem>,
    /// What is wrong with its parameters.
    pub parameters: Option<&'a str>,
    /// Its Deployment.
    pub deployed: &'a Deployed,
    /// Load-balancer pods without an address where the endpoints are: pod, and what is missing.
    pub unattached: &'a BTreeMap<String, Unattached>,
    /// What is wrong with Services and the network status of their pods.
    pub services: &'a [String],
    /// Services with more pods than they may have: Service, and the pods that are left out.
    pub over_capacity: &'a BTreeMap<String, BTreeSet<String>>,
}

/// The status of a Gateway of ours.
pub fn gateway_status(known: &Known<'_>, existing: &Status, now: &Time) -> Status {
    let vips = vips(known.view);
    let mut say = vec![accepted(known)];
    let works = say.iter().all(|say| say.status == Some(true));
    let programmed = programmed(known, works);
    say.push(Say {
        condition: "Ready",
        reason: if programmed.status == Some(true) { "Ready" } else { "NotReady" }.into(),
        ..programmed.clone()
    });
    say.push(programmed);
    say.push(known.networks.map_or_else(
        || Say::new("NetworksResolved", true, "NetworksResolved", ""),
        |problem| Say::new("NetworksResolved", false, problem.reason(), problem.to_string()),
    ));
    say.extend(subnets(known.view));
    if vips.len() > MOST_ADDRESSES {
        let message = format!("{} VIPs, the first {MOST_ADDRESSES} of them are shown", vips.len());
        say.push(Say::new("AddressesTruncated", true, "TooManyAddresses", message));
    }
    if !known.unattached.is_empty() {
        say.push(Say::new(
            "PodsAttached",
            false,
            "AddressMissing",
            listed(known.unattached.values().map(|unattached| &unattached.fault)),
        ));
    }
    say.extend(endpoints(known));
    say.extend(partially_served(known.view));
    let shown = vips.iter().take(MOST_ADDRESSES);
    Status {
        addresses: shown.map(|vip| Address { type_: "IPAddress".to_owned(), value: vip.clone() }).collect(),
        conditions: conditions(&existing.conditions, &say, known.generation, now),
        listeners: known.listeners.iter().map(|name| listener(name, known, existing, now)).collect(),
    }
}

/// Whether every pod of every Service is an endpoint.
fn endpoints(known: &Known<'_>) -> Option<Say> {
    const TYPE: &str = "EndpointsAccepted";
    let left_out = known.over_capacity.iter().map(|(service, pods)| {
        let names = listed(pods);
        format!("Service {service} has no identifier for {}: {names}: raise {MAX_ENDPOINTS_ANNOTATION}", pods.len())
    });
    let faults: Vec<_> = left_out.chain(known.services.iter().cloned()).collect();
    let reason = if known.over_capacity.is_empty() { "Malformed" } else { "CapacityExceeded" };
    (!faults.is_empty()).then(|| Say::new(TYPE, false, reason, listed(&faults)))
}

/// VIPs that are announced, because one of their routes has a ready endpoint, although another has none: its packets are lost.
fn partially_served(view: &View) -> Option<Say> {
    let has_endpoint = |service: &str, vip: &IpNet| {
        let endpoints = view.services.get(service).into_iter().flat_map(|service| service.endpoints.values());
        let has_family =
            |endpoint: &&Endpoint| if vip.addr().is_ipv4() { endpoint.ipv4.is_some() } else { endpoint.ipv6.is_some() };
        endpoints.filter(|endpoint| endpoint.ready).any(|endpoint| has_family(&endpoint))
    };
    let mut by_vip = BTreeMap::<_, (usize, Vec<&str>)>::new();
    for (name, route) in &view.routes {
        for vip in &route.destinations {
            let (served, unserved) = by_vip.entry(vip).or_default();
            if has_endpoint(&route.backend, vip) {
                *served += 1;
            } else {
                unserved.push(name);
            }
        }
    }
    let partial = by_vip.into_iter().filter(|(_, (served, unserved))| *served > 0 && !unserved.is_empty());
    let texts: Vec<_> = partial
        .map(|(vip, (_, unserved))| {
            format!("VIP {}: no ready endpoint of its family behind L34Route {}", vip.addr(), listed(unserved))
        })
        .collect();
    (!texts.is_empty()).then(|| Say::new("PartiallyServed", true, "NoEndpoint", listed(&texts)))
}

/// The VIPs of the accepted routes, in order.
fn vips(view: &View) -> Vec<String> {
    let vips: BTreeSet<_> = view.routes.values().flat_map(|route| &route.destinations).collect();
    vips.into_iter().map(|vip| vip.addr().to_string()).collect()
}

fn accepted(known: &Known<'_>) -> Say {
    let name = &known.view.gateway.name;
    if name.len() > LONGEST_NAME {
        let message = format!("metadata.name: `{name}`: must have at most {LONGEST_NAME} characters: labels name it");
        return Say::new(ACCEPTED, false, "Invalid", message);
    }
    if let Some(message) = known.parameters {
        return Say::new(ACCEPTED, false, "InvalidParameters", message);
    }
    Say::new(ACCEPTED, true, ACCEPTED, "")
}

fn programmed(known: &Known<'_>, accepted: bool) -> Say {
    const PROGRAMMED: &str = "Programmed";
    match known.deployed {
        Deployed::Foreign(name) => {
            let message = format!("Deployment {name} exists and is not ours: remove it, or rename the Gateway");
            Say::new(PROGRAMMED, false, "Conflict", message)
        }
        Deployed::Pods { available, .. } if *available > 0 && accepted => Say::new(PROGRAMMED, true, PROGRAMMED, ""),
        _ if !accepted => Say::new(PROGRAMMED, false, "Invalid", "the Gateway is not accepted"),
        Deployed::Missing => Say::new(PROGRAMMED, false, "Pending", "the Deployment does not exist yet"),
        Deployed::Pods { wanted, .. } => {
            Say::new(PROGRAMMED, false, "Pending", format!("0 of {wanted} load-balancer pods are available"))
        }
    }
}

/// What acceptance says of the annotation with the subnets, all faults together.
fn subnets(view: &View) -> Option<Say> {
    let faults =
        view.conditions.iter().filter(|found| found.object == view.gateway && &*found.condition == "SubnetsAccepted");
    let faults: Vec<_> = faults.map(|found| found.message.to_string()).collect();
    (!faults.is_empty()).then(|| Say::new("SubnetsAccepted", false, "InvalidAnnotation", listed(&faults)))
}

fn listener(name: &str, known: &Known<'_>, existing: &Status, now: &Time) -> Listener {
    let old = existing.listeners.iter().find(|old| old.name == name).map_or(&[][..], |old| &old.conditions);
    let said = "listeners are ignored: L34Routes say what is served";
    let say = [
        Say::new(ACCEPTED, true, ACCEPTED, said),
        Say::new("Programmed", true, "Programmed", said),
        Say::new("ResolvedRefs", true, "ResolvedRefs", ""),
    ];
    Listener {
        name: name.to_owned(),
        attached_routes: known.view.routes.len(),
        supported_kinds: vec![RouteKind { group: martlet_api::crd::GROUP.to_owned(), kind: "L34Route".to_owned() }],
        conditions: conditions(old, &say, known.generation, now),
    }
}

/// Some of them, and how many more there are.
fn listed(all: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    const SHOWN: usize = 5;
    let mut text = String::new();
    let mut more = 0_usize;
    for (place, one) in all.into_iter().enumerate() {
        if place >= SHOWN {
            more += 1;
        } else {
            let _ = write!(text, "{}{}", if place == 0 { "" } else { "; " }, one.as_ref());
        }
    }
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    text
}
