//! The Services of a Gateway and their endpoints, put together from slices of both families.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::discovery::v1 as discovery;

use super::tell::Told;
use super::{ACCEPTED, CAPACITY_EXCEEDED, ENDPOINT_ACCEPTED};
use crate::crd::{GATEWAY_LABEL, MANAGED_BY_LABEL, MAX_ENDPOINTS_ANNOTATION, SERVICE_LABEL};
use crate::objects::{Kind, Objects};
use crate::view::{Endpoint, ObjectName, Service};

/// How many endpoints a Service may have that does not say.
pub const MAX_ENDPOINTS: u32 = 100;
/// The most that a Service may ask for: marks and tables are 5000 + identifier, and 50000 belongs to the application pods.
pub const MOST_ENDPOINTS: u32 = 45_000;
/// Who makes slices of the pods' primary addresses: these are never ours.
const BUILT_IN: [&str; 2] = ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];

/// A Service, and whether it has more endpoints than it may have.
#[derive(Debug)]
pub(super) struct Known {
    pub service: Service,
    pub capacity_exceeded: bool,
}

/// The Services of `gateway`. `subnets`: where addresses must be; empty: anywhere; `None`: nowhere.
pub(super) fn accept(
    objects: &Objects,
    gateway: &ObjectName,
    subnets: Option<&BTreeSet<IpNet>>,
    told: &mut Told,
) -> BTreeMap<Arc<str>, Known> {
    let mut services = BTreeMap::new();
    for (name, object) in &objects.services {
        let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(GATEWAY_LABEL));
        if name.namespace != gateway.namespace || label.map(String::as_str) != Some(&*gateway.name) {
            continue;
        }
        let annotation = object.metadata.annotations.as_ref().and_then(|a| a.get(MAX_ENDPOINTS_ANNOTATION));
        let max_endpoints = match annotation.map_or(Ok(MAX_ENDPOINTS), |text| max_endpoints(text)) {
            Ok(max) => {
                told.accepted(Kind::Service, name, "");
                max
            }
            Err(message) => {
                let message = format!("{message}; {MAX_ENDPOINTS} is used");
                told.say(Kind::Service, name, ACCEPTED, true, "InvalidAnnotation", message);
                MAX_ENDPOINTS
            }
        };
        let service = Service { endpoints: BTreeMap::new(), max_endpoints };
        services.insert(name.name.clone(), Pods { service, found: BTreeMap::new(), too_many: BTreeSet::new() });
    }
    for (name, slice) in objects.slices.iter().filter(|(name, _)| name.namespace == gateway.namespace) {
        let label = |key: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let service = label(SERVICE_LABEL).and_then(|service| services.get_mut(service));
        if let Some(service) = service
            && !label(MANAGED_BY_LABEL).is_some_and(|by| BUILT_IN.contains(&by))
        {
            service.add(name, slice, subnets, told);
        }
    }
    let finish = |(name, pods): (Arc<str>, Pods)| {
        let object = ObjectName::new(gateway.namespace.clone(), name.clone());
        (name, pods.finish(&object, told))
    };
    services.into_iter().map(finish).collect()
}

/// The value of the annotation.
///
/// # Errors
///
/// What is wrong with it, for a human.
pub(crate) fn max_endpoints(text: &str) -> Result<u32, String> {
    let parsed = text.parse().ok().filter(|max| (1..=MOST_ENDPOINTS).contains(max));
    parsed.ok_or_else(|| {
        format!(
            "metadata.annotations[{MAX_ENDPOINTS_ANNOTATION}]: `{text}`: must be a number from 1 to {MOST_ENDPOINTS}"
        )
    })
}

/// A Service while its slices are read: by identifier and name of the pod.
#[derive(Debug)]
struct Pods {
    service: Service,
    found: BTreeMap<u32, BTreeMap<Arc<str>, Endpoint>>,
    /// Identifiers that are beyond the limit.
    too_many: BTreeSet<u32>,
}

impl Pods {
    fn add(
        &mut self,
        name: &ObjectName,
        slice: &discovery::EndpointSlice,
        subnets: Option<&BTreeSet<IpNet>>,
        told: &mut Told,
    ) {
        for (place, endpoint) in slice.endpoints.iter().enumerate() {
            let mut refuse = |reason: &str, fault: String| {
                let message = format!("endpoints[{place}] ({}): {fault}", called(endpoint));
                told.refused(Kind::EndpointSlice, name, ENDPOINT_ACCEPTED, reason, message);
            };
            let zone = endpoint.zone.as_deref().unwrap_or("");
            let number = zone.bytes().all(|octet| octet.is_ascii_digit()).then(|| zone.parse::<u32>().ok()).flatten();
            let Some(identifier) = number else {
                refuse("NoIdentifier", format!("zone: `{zone}`: must be the number of the endpoint, such as \"1\""));
                continue;
            };
            if identifier >= self.service.max_endpoints {
                let max = self.service.max_endpoints;
                refuse("CapacityExceeded", format!("zone: `{zone}`: must be below {max}, the limit of the Service"));
                self.too_many.insert(identifier);
                continue;
            }
            let address = match address(&slice.address_type, endpoint, subnets) {
                Ok(address) => address,
                Err((reason, fault)) => {
                    refuse(reason, fault);
                    continue;
                }
            };
            if let Err(fault) = self.merge(identifier, endpoint, address) {
                refuse("Conflict", fault);
            }
        }
    }

    fn merge(&mut self, identifier: u32, endpoint: &discovery::Endpoint, address: IpAddr) -> Result<(), String> {
        let pod = pod(endpoint).unwrap_or("");
        let shown = if pod.is_empty() { format!("#{identifier}") } else { pod.to_owned() };
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let merged = self.found.entry(identifier).or_default().entry(Arc::from(pod)).or_insert_with(|| Endpoint {
            name: Arc::from(shown),
            ipv4: None,
            ipv6: None,
            ready: true,
            serving: true,
            terminating: false,
        });
        let known = match address {
            IpAddr::V4(v4) => IpAddr::V4(*merged.ipv4.get_or_insert(v4)),
            IpAddr::V6(v6) => IpAddr::V6(*merged.ipv6.get_or_insert(v6)),
        };
        // An entry for each family: the pod is ready when both say so.
        merged.ready &= ready;
        merged.serving &= conditions.and_then(|c| c.serving).unwrap_or(ready);
        merged.terminating |= conditions.and_then(|c| c.terminating).unwrap_or(false);
        if known == address {
            return Ok(());
        }
        Err(format!(
            "addresses[0]: `{address}`: endpoint {identifier} has {known} already: one address of each family counts"
        ))
    }

    fn finish(mut self, name: &ObjectName, told: &mut Told) -> Known {
        for (identifier, mut pods) in self.found {
            let Some((_, first)) = pods.pop_first() else { continue };
            for other in pods.into_values() {
                let message = format!(
                    "identifier {identifier}: endpoint {} is unused, endpoint {} has it already",
                    other.name, first.name
                );
                told.refused(Kind::Service, name, ENDPOINT_ACCEPTED, "Conflict", message);
            }
            self.service.endpoints.insert(identifier, first);
        }
        let capacity_exceeded = !self.too_many.is_empty();
        if capacity_exceeded {
            let message = format!(
                "{} endpoints are unused: metadata.annotations[{MAX_ENDPOINTS_ANNOTATION}] permits {} endpoints",
                self.too_many.len(),
                self.service.max_endpoints
            );
            told.say(Kind::Service, name, CAPACITY_EXCEEDED, true, CAPACITY_EXCEEDED, message);
        }
        Known { service: self.service, capacity_exceeded }
    }
}

fn pod(endpoint: &discovery::Endpoint) -> Option<&str> {
    let target = endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref());
    target.or(endpoint.hostname.as_deref())
}

fn called(endpoint: &discovery::Endpoint) -> &str {
    pod(endpoint).or(endpoint.addresses.first().map(String::as_str)).unwrap_or("without a name")
}

/// The address of an endpoint: the first counts, as Kubernetes has it.
fn address(
    family: &str,
    endpoint: &discovery::Endpoint,
    subnets: Option<&BTreeSet<IpNet>>,
) -> Result<IpAddr, (&'static str, String)> {
    let text = endpoint.addresses.first().map_or("", String::as_str);
    let parsed = match family {
        "IPv4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "IPv6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        other => {
            return Err(("InvalidAddressType", format!("addressType: `{other}`: must be IPv4 or IPv6")));
        }
    };
    let usable = parsed.filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
    let Some(address) = usable else {
        return Err(("InvalidAddress", format!("addresses[0]: `{text}`: must be an {family} unicast address")));
    };
    match subnets {
        None => {
            Err(("OutsideSubnets", format!("addresses[0]: `{address}`: the Gateway's network-subnets are not known")))
        }
        Some(subnets) if !subnets.is_empty() && !subnets.iter().any(|net| net.contains(&address)) => {
            let subnets = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err((
                "OutsideSubnets",
                format!("addresses[0]: `{address}`: must lie in {subnets}, the Gateway's network-subnets"),
            ))
        }
        Some(_) => Ok(address),
    }
}
