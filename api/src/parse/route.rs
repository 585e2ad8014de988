//! The spec of an `L34Route`, checked. Whether its Gateway and its Service exist is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::value::{self, LAST_OCTET};
use super::{Check, Refusal};
use crate::crd::{L34RouteSpec, Protocol};
use crate::view::{ByteMatch, Route, TransportProtocol};

/// Of destinations, sources and ports each.
const MOST_ITEMS: usize = 1024;
const MOST_BYTE_MATCHES: usize = 16;
const MOST_TRANSLATIONS: usize = 64;

/// The accepted value of a spec.
///
/// # Errors
///
/// All that is wrong with it.
pub fn route(spec: &L34RouteSpec) -> Result<Route, Vec<Refusal>> {
    let mut check = Check::default();
    references(&mut check, spec);
    let destinations = destinations(&mut check, &spec.destination_cidrs);
    let sources = sources(&mut check, spec.source_cidrs.as_deref().unwrap_or_default());
    let source_ports = ports(&mut check, "spec.sourcePorts", spec.source_ports.as_deref());
    let destination_ports = ports(&mut check, "spec.destinationPorts", spec.destination_ports.as_deref());
    let protocols: BTreeSet<TransportProtocol> = spec.protocols.iter().copied().map(TransportProtocol::from).collect();
    if protocols.is_empty() {
        check.refuse("spec.protocols", "[]", "must name at least one of TCP, UDP, SCTP");
    }
    let byte_matches = byte_matches(&mut check, spec.byte_matches.as_deref().unwrap_or_default(), &protocols);
    let port_translations = translations(&mut check, spec);
    let sctp_in_udp_port = spec.sctp_in_udp_port.and_then(|port| check.number("spec.sctpInUdpPort", port, 1..=65535));
    if spec.sctp_in_udp_port.is_some() && !protocols.contains(&TransportProtocol::Sctp) {
        check.refuse("spec.sctpInUdpPort", "", "must be removed, or SCTP must be in spec.protocols");
    }
    let priority = check.number("spec.priority", spec.priority.unwrap_or(0), i64::from(i32::MIN)..=i64::from(i32::MAX));
    let backend = spec.backend_refs.first().map_or("", |backend| backend.name.as_str());
    check.finish(priority.map(|priority| Route {
        priority,
        destinations,
        sources,
        source_ports,
        destination_ports,
        protocols,
        byte_matches,
        backend: Arc::from(backend),
        port_translations,
        sctp_in_udp_port,
    }))
}

fn references(check: &mut Check, spec: &L34RouteSpec) {
    if spec.parent_refs.len() != 1 {
        check.refuse("spec.parentRefs", format!("{} items", spec.parent_refs.len()), "must name exactly one Gateway");
    }
    if spec.backend_refs.len() != 1 {
        check.refuse("spec.backendRefs", format!("{} items", spec.backend_refs.len()), "must name exactly one Service");
    }
    let parents = spec.parent_refs.iter().map(|r| ("spec.parentRefs[0].name", &r.name));
    let backends = spec.backend_refs.iter().map(|r| ("spec.backendRefs[0].name", &r.name));
    for (field, name) in parents.chain(backends) {
        if !(1..=253).contains(&name.len()) {
            check.refuse(field, name, "must have 1 to 253 characters");
        }
    }
}

fn destinations(check: &mut Check, texts: &[String]) -> BTreeSet<IpNet> {
    let field = "spec.destinationCIDRs";
    if texts.is_empty() || texts.len() > MOST_ITEMS {
        check.refuse(field, format!("{} items", texts.len()), format!("must have 1 to {MOST_ITEMS} items"));
    }
    let remedy = "must be a unicast address with /32 (IPv4) or /128 (IPv6), such as 20.0.0.1/32";
    let vips = texts.iter().enumerate();
    vips.filter_map(|(place, text)| check.parsed(format!("{field}[{place}]"), text, value::vip(text), remedy)).collect()
}

fn sources(check: &mut Check, texts: &[String]) -> BTreeSet<IpNet> {
    let field = "spec.sourceCIDRs";
    bounded(check, field, texts.len(), MOST_ITEMS);
    let remedy = "must be a prefix such as 10.0.0.0/8 or ::/0";
    let nets = texts.iter().enumerate();
    nets.filter_map(|(place, text)| check.parsed(format!("{field}[{place}]"), text, value::prefix(text), remedy))
        .collect()
}

fn ports(check: &mut Check, field: &str, texts: Option<&[String]>) -> BTreeSet<(u16, u16)> {
    let texts = texts.unwrap_or_default();
    bounded(check, field, texts.len(), MOST_ITEMS);
    value::ports(texts).unwrap_or_else(|(place, text)| {
        check.refuse(
            format!("{field}[{place}]"),
            text,
            "must be a port from 0 to 65535, a range such as 1000-2000, or any",
        );
        BTreeSet::new()
    })
}

fn byte_matches(check: &mut Check, texts: &[String], protocols: &BTreeSet<TransportProtocol>) -> Vec<ByteMatch> {
    let field = "spec.byteMatches";
    bounded(check, field, texts.len(), MOST_BYTE_MATCHES);
    let remedy = format!(
        "must be of the form tcp[0:2] & 0xff00 = 0x1200: tcp, udp or sctp, an offset, 1, 2 or 4 octets that end before octet \
         {LAST_OCTET}, a mask within the octets, a value within the mask"
    );
    let mut matches = Vec::with_capacity(texts.len());
    for (place, text) in texts.iter().enumerate() {
        let field = format!("{field}[{place}]");
        let Some(parsed) = check.parsed(&field, text, value::byte_match(text), &remedy) else { continue };
        if protocols.contains(&parsed.protocol) {
            matches.push(parsed);
        } else {
            check.refuse(field, text, "must be of a protocol in spec.protocols");
        }
    }
    matches
}

fn translations(check: &mut Check, spec: &L34RouteSpec) -> BTreeMap<(TransportProtocol, u16), u16> {
    let field = "spec.destinationPortTranslation";
    let entries = spec.destination_port_translation.as_deref().unwrap_or_default();
    bounded(check, field, entries.len(), MOST_TRANSLATIONS);
    let mut translations = BTreeMap::new();
    for (place, entry) in entries.iter().enumerate() {
        let port = check.number(&format!("{field}[{place}].port"), entry.port, 1..=65535);
        let target = check.number(&format!("{field}[{place}].targetPort"), entry.target_port, 1..=65535);
        let (Some(port), Some(target)) = (port, target) else { continue };
        if translations.insert((TransportProtocol::from(entry.protocol), port), target).is_some() {
            check.refuse(format!("{field}[{place}].port"), port, "must not stand twice for a protocol");
        }
    }
    translations
}

fn bounded(check: &mut Check, field: &str, items: usize, most: usize) {
    if items > most {
        check.refuse(field, format!("{items} items"), format!("must have at most {most} items"));
    }
}

impl From<Protocol> for TransportProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}
