//! The `EndpointSlice`s of one Service: its Pods by selector, with their addresses on the networks of the Gateway.
//!
//! [`endpoint_slices`] is a pure function of whole values. A Pod keeps its identifier (the field `zone`, the same for both
//! families) and its slice for as long as it is there; a new Pod takes the lowest identifier that is free. What changes nothing
//! returns the slices that exist.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt as _;
use martlet_api::crd::{GATEWAY_LABEL, MANAGED_BY_LABEL, MAX_ENDPOINTS_ANNOTATION, SERVICE_LABEL};

use crate::networks::{Addresses, Networks, STATUS};

/// A selector label that selects nothing: it keeps the EndpointSlice controller of Kubernetes away.
pub const DUMMY_SELECTOR: &str = "meridio-experiment/dummy-service-selector";
/// How many if it does not say.
pub const DEFAULT_MAX_ENDPOINTS: u32 = 100;
/// The most that it may say: marks and tables of the load balancer end there.
pub const MOST_ENDPOINTS: u32 = 45_000;
/// Who makes these slices: the value of their label [`MANAGED_BY_LABEL`].
pub const MANAGER: &str = "stateless-load-balancer.meridio-experiment";
/// Endpoints in one slice, unless told otherwise.
pub const PER_SLICE: usize = 100;

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The address family of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    const fn address_type(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

/// What a Service needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoints {
    /// All slices that shall exist, by name. What is ours and not here shall be deleted.
    pub slices: BTreeMap<String, EndpointSlice>,
    /// Pods that found no free identifier, by name.
    pub over_capacity: BTreeSet<String>,
    /// Pods whose network status cannot be read, and why.
    pub malformed: BTreeMap<String, String>,
    /// The annotation that bounds the endpoints, if it is no number from 1 to [`MOST_ENDPOINTS`]: its value.
    pub bad_limit: Option<String>,
}

/// An endpoint before it has a slice.
struct Candidate<'a> {
    pod: &'a Pod,
    uid: &'a str,
    addresses: Addresses,
    identifier: u32,
}

/// The slices of `service`, whose Gateway is `gateway`. `networks` is `None` where the annotations of the Gateway cannot be used:
/// then Pods keep the addresses that they have, and no Pod is added. `existing` are the slices of the Service that are ours.
///
/// A Service without a selector has slices that someone else writes: it needs none of ours.
pub fn endpoint_slices<'a>(
    service: &Service,
    gateway: &str,
    pods: impl IntoIterator<Item = &'a Pod>,
    networks: Option<&Networks>,
    existing: &[&EndpointSlice],
    per_slice: usize,
) -> Endpoints {
    let mut endpoints = Endpoints::default();
    let Some(selector) = selector(service) else { return endpoints };
    let (limit, bad_limit) = limit(service);
    endpoints.bad_limit = bad_limit;
    let old = Old::read(existing);
    let mut candidates = Vec::new();
    for pod in pods {
        let Some(uid) = pod.metadata.uid.as_deref() else { continue };
        if !selects(&selector, pod) || finished(pod) {
            continue;
        }
        let addresses = match (networks, pod.annotations().get(STATUS)) {
            (None, _) => old.addresses.get(uid).copied().unwrap_or_default(),
            (Some(_), None) => Addresses::default(),
            (Some(networks), Some(status)) => networks.addresses(status).unwrap_or_else(|error| {
                endpoints.malformed.insert(pod.name_any(), error);
                Addresses::default()
            }),
        };
        if !addresses.is_empty() {
            candidates.push(Candidate { pod, uid, addresses, identifier: 0 });
        }
    }
    let candidates = identify(candidates, &old, limit, &mut endpoints.over_capacity);
    for family in FAMILIES {
        pack(service, gateway, family, &candidates, &old, per_slice, &mut endpoints.slices);
    }
    endpoints
}

/// The selector without the dummy label; `None` if nothing is left of it.
fn selector(service: &Service) -> Option<BTreeMap<&str, &str>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    let wanted: BTreeMap<_, _> = selector
        .iter()
        .filter(|(key, _)| *key != DUMMY_SELECTOR)
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    (!wanted.is_empty()).then_some(wanted)
}

fn selects(selector: &BTreeMap<&str, &str>, pod: &Pod) -> bool {
    selector.iter().all(|(key, value)| pod.labels().get(*key).is_some_and(|label| label == value))
}

/// It ran to its end: its address may be another's already.
fn finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// How many endpoints a Service may have; and the value of the annotation, if it is none.
fn limit(service: &Service) -> (u32, Option<String>) {
    match service.annotations().get(MAX_ENDPOINTS_ANNOTATION) {
        None => (DEFAULT_MAX_ENDPOINTS, None),
        Some(text) => match text.parse() {
            Ok(limit) if (1..=MOST_ENDPOINTS).contains(&limit) => (limit, None),
            _ => (DEFAULT_MAX_ENDPOINTS, Some(text.clone())),
        },
    }
}

/// What the existing slices say of each Pod, by uid.
#[derive(Default)]
struct Old<'a> {
    slices: Vec<&'a EndpointSlice>,
    identifiers: BTreeMap<&'a str, u32>,
    addresses: BTreeMap<&'a str, Addresses>,
    /// The slice of an endpoint.
    places: BTreeMap<(Family, &'a str), &'a str>,
}

impl<'a> Old<'a> {
    fn read(existing: &[&'a EndpointSlice]) -> Self {
        let mut old = Self { slices: existing.to_vec(), ..Self::default() };
        // IPv4 first: if a Pod has two identifiers, it counts.
        old.slices.sort_by_key(|slice| (&slice.address_type, &slice.metadata.name));
        for slice in &old.slices {
            let Some(name) = slice.metadata.name.as_deref() else { continue };
            for endpoint in &slice.endpoints {
                let Some(uid) = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()) else { continue };
                if let Some(identifier) = endpoint.zone.as_deref().and_then(|zone| zone.parse().ok()) {
                    old.identifiers.entry(uid).or_insert(identifier);
                }
                let addresses = old.addresses.entry(uid).or_default();
                let family = match endpoint.addresses.first().and_then(|address| address.parse().ok()) {
                    Some(std::net::IpAddr::V4(address)) => {
                        addresses.ipv4 = Some(address);
                        Family::Ipv4
                    }
                    Some(std::net::IpAddr::V6(address)) => {
                        addresses.ipv6 = Some(address);
                        Family::Ipv6
                    }
                    None => continue,
                };
                old.places.entry((family, uid)).or_insert(name);
            }
        }
        old
    }
}

/// Gives every candidate its identifier: its old one, else the lowest that is free.
fn identify<'a>(
    mut candidates: Vec<Candidate<'a>>,
    old: &Old<'_>,
    limit: u32,
    over_capacity: &mut BTreeSet<String>,
) -> Vec<Candidate<'a>> {
    // Who was there first comes first; the name only decides between equals.
    candidates.sort_by_key(|candidate| (candidate.pod.creation_timestamp(), candidate.pod.name_any()));
    let mut taken = BTreeSet::new();
    let mut placed = Vec::new();
    let mut new = Vec::new();
    for mut candidate in candidates {
        match old.identifiers.get(candidate.uid) {
            Some(identifier) if *identifier < limit && taken.insert(*identifier) => {
                candidate.identifier = *identifier;
                placed.push(candidate);
            }
            _ => new.push(candidate),
        }
    }
    let mut free = (0..limit).filter(|identifier| !taken.contains(identifier));
    for mut candidate in new {
        // What is already on its way out is not worth an identifier.
        if candidate.pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if let Some(identifier) = free.next() {
            candidate.identifier = identifier;
            placed.push(candidate);
        } else {
            over_capacity.insert(candidate.pod.name_any());
        }
    }
    placed.sort_by_key(|candidate| candidate.identifier);
    placed
}

/// Puts the endpoints of one family into slices: each where it was, a new one into the first that has room.
fn pack(
    service: &Service,
    gateway: &str,
    family: Family,
    candidates: &[Candidate<'_>],
    old: &Old<'_>,
    per_slice: usize,
    slices: &mut BTreeMap<String, EndpointSlice>,
) {
    let mut filled: BTreeMap<String, Vec<Endpoint>> = old
        .slices
        .iter()
        .filter(|slice| slice.address_type == family.address_type())
        .map(|slice| (slice.name_any(), Vec::new()))
        .collect();
    let mut new = Vec::new();
    for candidate in candidates {
        let address = match family {
            Family::Ipv4 => candidate.addresses.ipv4.map(|address| address.to_string()),
            Family::Ipv6 => candidate.addresses.ipv6.map(|address| address.to_string()),
        };
        let Some(address) = address else { continue };
        let endpoint = endpoint(service, candidate, address);
        let place = old.places.get(&(family, candidate.uid)).and_then(|name| filled.get_mut(*name));
        match place {
            Some(place) if place.len() < per_slice => place.push(endpoint),
            _ => new.push(endpoint),
        }
    }
    for endpoint in new {
        let name = filled
            .iter()
            .find(|(_, endpoints)| endpoints.len() < per_slice)
            .map_or_else(|| unused_name(service, family, &filled), |(name, _)| name.clone());
        filled.entry(name).or_default().push(endpoint);
    }
    for (name, mut endpoints) in filled {
        if endpoints.is_empty() {
            continue;
        }
        let existing = old.slices.iter().find(|slice| slice.metadata.name.as_deref() == Some(name.as_str()));
        endpoints.sort_by_key(|endpoint| endpoint.zone.as_deref().and_then(|zone| zone.parse::<u32>().ok()));
        let metadata = metadata(service, gateway, name.clone(), existing.map(|slice| &slice.metadata));
        let address_type = family.address_type().to_owned();
        slices.insert(name, EndpointSlice { metadata, address_type, endpoints, ports: None });
    }
}

/// `<service>-ipv4-<n>`, the lowest n that is not used.
fn unused_name(service: &Service, family: Family, used: &BTreeMap<String, Vec<Endpoint>>) -> String {
    let service = service.name_any();
    let prefix = family.address_type().to_lowercase();
    let mut names = (0_u64..).map(|n| format!("{service}-{prefix}-{n}")).filter(|name| !used.contains_key(name));
    names.next().unwrap_or_default()
}

fn metadata(service: &Service, gateway: &str, name: String, existing: Option<&ObjectMeta>) -> ObjectMeta {
    // Labels that others put on it stay, so that what did not change compares equal.
    let mut labels = existing.and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    for (key, value) in
        [(SERVICE_LABEL, service.name_any().as_str()), (MANAGED_BY_LABEL, MANAGER), (GATEWAY_LABEL, gateway)]
    {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.name_any(),
        uid: service.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        // True would need the right to update the finalizers of Services.
        block_owner_deletion: Some(false),
    };
    ObjectMeta {
        name: Some(name),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![owner]),
        ..existing.cloned().unwrap_or_default()
    }
}

fn endpoint(service: &Service, candidate: &Candidate<'_>, address: String) -> Endpoint {
    let pod = candidate.pod;
    let running = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some((running || publish) && !terminating),
            serving: Some(running || (publish && !terminating)),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: Some(candidate.identifier.to_string()),
        ..Endpoint::default()
    }
}

/// Whether the Pod's condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
