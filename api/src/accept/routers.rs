//! The `GatewayRouter`s of a Gateway, with their keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::tell::Told;
use super::{ACCEPTED, RESOLVED_REFS};
use crate::crd::GATEWAY_LABEL;
use crate::objects::{Kind, Objects};
use crate::parse;
use crate::view::{Bfd, GatewayRouter, ObjectName, Password, Protocol};

/// The longest key of TCP MD5 and TCP-AO that Linux takes, octets.
const LONGEST_TCP_KEY: usize = 80;

pub(super) fn accept(objects: &Objects, gateway: &ObjectName, told: &mut Told) -> BTreeMap<Arc<str>, GatewayRouter> {
    let mut routers: BTreeMap<Arc<str>, GatewayRouter> = BTreeMap::new();
    let mut taken = BTreeMap::new();
    for (name, object) in &objects.routers {
        let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(GATEWAY_LABEL));
        if name.namespace != gateway.namespace || label.map(String::as_str) != Some(&*gateway.name) {
            continue;
        }
        let mut router = match parse::router(&object.spec) {
            Ok(router) => router,
            Err(refusals) => {
                let message = parse::together(&refusals);
                told.refused(Kind::GatewayRouter, name, ACCEPTED, "Invalid", message);
                continue;
            }
        };
        // A session is found by the neighbour's address: two of one protocol could not be told apart.
        let (own, other) = protocols(&router);
        let place = |protocol| (router.address, router.interface.clone(), protocol);
        if let Some(first) = taken.get(&place(own)) {
            let message =
                format!("spec.address: `{}`: GatewayRouter {first} has it already on this interface", router.address);
            told.refused(Kind::GatewayRouter, name, ACCEPTED, "Conflict", message);
            continue;
        }
        // A BGP neighbour may be a static next hop too: they share one BFD session.
        let other = taken.get(&place(other)).and_then(|other| Some((other, routers.get(other)?)));
        if let Some((other, field)) = other.and_then(|(name, other)| Some((name, contradiction(&router, other)?))) {
            let message = format!(
                "spec.{own}.bfd.{field}: is not that of GatewayRouter {other}, which has the address {} too: they share \
                 one BFD session",
                router.address
            );
            told.refused(Kind::GatewayRouter, name, ACCEPTED, "Conflict", message);
            continue;
        }
        taken.insert(place(own), name.name.clone());
        told.accepted(Kind::GatewayRouter, name, "");
        resolve(objects, name, &mut router, told);
        routers.insert(name.name.clone(), router);
    }
    routers
}

/// The field in which the BFD sessions of two users of one neighbour contradict each other.
fn contradiction(router: &GatewayRouter, other: &GatewayRouter) -> Option<&'static str> {
    router.protocol.bfd()?.contradicts(other.protocol.bfd()?)
}

/// Its protocol, and the other one, as the spec names them.
const fn protocols(router: &GatewayRouter) -> (&'static str, &'static str) {
    match router.protocol {
        Protocol::Bgp(_) => ("bgp", "static"),
        Protocol::Static(_) => ("static", "bgp"),
    }
}

/// Puts in the keys that the Secrets hold.
fn resolve(objects: &Objects, name: &ObjectName, router: &mut GatewayRouter, told: &mut Told) {
    let mut faults = Vec::new();
    let mut keys = 0_u32;
    let mut fill = |field: &str, password: &mut Password, longest: usize| {
        keys += 1;
        match key(objects, name, password, longest) {
            Ok(secret) => password.secret = Some(secret),
            Err(fault) => faults.push(format!("{field}.{fault}")),
        }
    };
    match &mut router.protocol {
        Protocol::Bgp(bgp) => {
            if let Some(password) = &mut bgp.password {
                fill("spec.bgp.auth", password, LONGEST_TCP_KEY);
            }
            if let Some(tcp_ao) = &mut bgp.extra.tcp_ao {
                fill("spec.bgp.tcpAo", &mut tcp_ao.key, LONGEST_TCP_KEY);
            }
            for (field, longest, password) in bgp.bfd.iter_mut().flat_map(bfd_keys) {
                fill(&format!("spec.bgp.bfd.authentication{field}"), password, longest);
            }
        }
        Protocol::Static(bfd) => {
            for (field, longest, password) in bfd.iter_mut().flat_map(bfd_keys) {
                fill(&format!("spec.static.bfd.authentication{field}"), password, longest);
            }
        }
    }
    match faults.is_empty() {
        true if keys > 0 => told.say(Kind::GatewayRouter, name, RESOLVED_REFS, true, RESOLVED_REFS, ""),
        true => {}
        false => told.refused(Kind::GatewayRouter, name, RESOLVED_REFS, "InvalidKey", faults.join("; ")),
    }
}

/// The keys of a BFD session, which fields they are and how long they may be: RFC 5880 sections 4.2 to 4.4.
fn bfd_keys(bfd: &mut Bfd) -> Vec<(String, usize, &mut Password)> {
    let Bfd { auth: Some((kind, _, password)), auth_accepts, .. } = bfd else { return Vec::new() };
    let longest = if kind.ends_with("SHA1") { 20 } else { 16 };
    let accepted = auth_accepts.iter_mut().enumerate();
    let accepted = accepted.map(|(place, (_, password))| (format!(".accept[{place}]"), longest, password));
    std::iter::once((String::new(), longest, password)).chain(accepted).collect()
}

fn key(objects: &Objects, router: &ObjectName, password: &Password, longest: usize) -> Result<Arc<[u8]>, String> {
    let Password { source, key, .. } = password;
    let secret = ObjectName::new(router.namespace.clone(), source.clone());
    let Some(secret) = objects.secrets.get(&secret) else {
        return Err(format!("keySource: `{source}`: must be the name of a Secret in namespace {}", router.namespace));
    };
    match secret.data.get(&**key) {
        None => Err(format!("keyName: `{key}`: must be a key in the data of Secret {source}")),
        Some(value) if value.is_empty() || value.len() > longest => Err(format!(
            "keyName: `{key}`: the value in Secret {source} has {} octets, must have 1 to {longest}",
            value.len()
        )),
        Some(value) => Ok(value.clone()),
    }
}
