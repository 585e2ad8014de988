//! Why a VIP is announced, or is not: the whole chain in order, so that the first broken link is seen.

use std::net::IpAddr;

use ipnet::IpNet;
use martlet_bgp::Family;
use martlet_clock::Instant;
use martlet_netlink::Object;
use serde::{Deserialize, Serialize};

use super::Router;
use crate::gate::{Lb, has, words};
use crate::mirror::Key;

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// What is asked.
    pub question: String,
    /// Whether it holds.
    pub holds: bool,
    /// The answer in words, with the remedy where one is known.
    pub answer: String,
}

fn link(question: &str, holds: bool, answer: impl Into<String>) -> Link {
    Link { question: question.into(), holds, answer: answer.into() }
}

impl Router {
    /// The chain of `vip` at `now`. The first link that does not hold is the reason.
    pub fn explain(&self, now: Instant, vip: IpAddr) -> Vec<Link> {
        let prefix = IpNet::from(vip);
        let family = Family::of(&prefix);
        let Some(intent) = &self.intent else {
            return vec![link("source", false, "no objects have been read yet")];
        };
        let known = intent.vips.contains(&prefix);
        let mut chain = vec![link("VIP", known, self.vip_words(&prefix, known))];
        if !known {
            return chain;
        }
        let (holds, answer) = self.lb_verdict(&prefix);
        chain.push(link("load balancer", holds, answer));
        let holds = has(self.connectivity, family);
        chain.push(link("connectivity", holds, self.gateway_words(now, family)));
        let verdict = self.verdicts.get(&prefix);
        let announced = matches!(verdict, Some(Ok(())));
        let answer = match verdict {
            Some(Err(reason)) => reason.to_string(),
            Some(Ok(())) => self.announcement_words(now, family),
            None => "not judged yet".into(),
        };
        chain.push(link("announced", announced, answer));
        let (holds, answer) = self.rule_words(&prefix);
        chain.push(link("rules", holds, answer));
        let (holds, answer) = self.egress_words(family);
        chain.push(link("egress", holds, answer));
        chain
    }

    fn vip_words(&self, vip: &IpNet, known: bool) -> String {
        let Some(intent) = &self.intent else { return String::new() };
        if known {
            return format!("it is a VIP of Gateway {}", intent.gateway);
        }
        let refused: Vec<String> = intent
            .conditions
            .iter()
            .filter(|condition| &*condition.kind == "L34Route" && !condition.status)
            .map(|condition| format!("{}: {}", condition.object, condition.message))
            .collect();
        let refused = if refused.is_empty() { String::new() } else { format!("; refused: {}", refused.join("; ")) };
        format!("no accepted L34Route of Gateway {} has {vip} among its destinationCIDRs{refused}", intent.gateway)
    }

    fn lb_verdict(&self, vip: &IpNet) -> (bool, String) {
        match &self.lb {
            Lb::Ungated => (true, "there is none to ask: every VIP counts as ready".into()),
            Lb::Silent(why) => (false, why.to_string()),
            Lb::Said(said) if said.draining => (false, "it is draining".into()),
            Lb::Said(said) => match said.vips.get(vip) {
                None => (false, format!("it does not know the VIP; it speaks for Gateway {}", said.gateway)),
                Some(vip) if vip.ready => (true, "it is ready for the VIP".into()),
                Some(vip) => (false, format!("it is not ready for the VIP: {}", vip.reason)),
            },
        }
    }

    fn gateway_words(&self, now: Instant, family: Family) -> String {
        let of_family = |view: &super::PeerView| match view.protocol.as_str() {
            "Static" => view.address.is_some_and(|address| address.is_ipv4() == (family == Family::Ipv4)),
            _ => view.families.is_empty() || view.families.iter().any(|of| of == words(family)),
        };
        let status = self.status(now);
        let lines: Vec<String> = status
            .peers
            .iter()
            .filter(|(_, view)| of_family(view))
            .map(|(name, view)| {
                let bfd = view.bfd.as_ref().and_then(|bfd| status.bfd.get(bfd));
                let bfd = bfd.map(|bfd| format!(", BFD {}", bfd.state)).unwrap_or_default();
                let error = view.last_error.as_ref().filter(|_| !view.up);
                let error = error.map(|error| format!(" ({error})")).unwrap_or_default();
                format!("{name} {} {}{bfd}{error}", view.protocol, view.state)
            })
            .collect();
        if lines.is_empty() { format!("there is no {} GatewayRouter", words(family)) } else { lines.join("; ") }
    }

    fn announcement_words(&self, now: Instant, family: Family) -> String {
        let status = self.status(now);
        let peers: Vec<&str> = status
            .peers
            .iter()
            .filter(|(_, view)| view.state == "Established" && view.families.iter().any(|of| of == words(family)))
            .map(|(name, _)| name.as_str())
            .collect();
        if peers.is_empty() { "by no session: static gateways only".into() } else { format!("to {}", peers.join(", ")) }
    }

    fn rule_words(&self, vip: &IpNet) -> (bool, String) {
        let of_vip = |key: &Key| match key {
            Key::Rule(rule) => rule.from.or(rule.to) == Some(*vip),
            Key::Route { .. } => false,
        };
        let wanted = self.mirror.objects().take_while(|(key, ..)| matches!(key, Key::Rule(_)));
        let held: Vec<bool> =
            wanted.filter(|(key, want, _)| want.is_some() && of_vip(key)).map(|(_, _, have)| have.is_some()).collect();
        let count = held.iter().filter(|held| **held).count();
        (count == held.len(), format!("{count} of {} are in the kernel", held.len()))
    }

    fn egress_words(&self, family: Family) -> (bool, String) {
        let prefix = crate::intent::default_prefix(family);
        match self.mirror.learned_route(prefix) {
            Some(Object::Route(route)) => (true, format!("{prefix} in table {}", route.table)),
            _ => (false, format!("NoEgressRoute: no {} default route was learned or is static", words(family))),
        }
    }
}
