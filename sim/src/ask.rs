//! What is asked of the world as a whole: of one pod after each of its events, of everything ten times a second.
//!
//! Names and counters of the invariants are in `check`, with those that are asked of single packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use martlet_api::view::{GatewayRouter, Protocol};
use martlet_bfd::{SessionId, SessionStatus, State};
use martlet_bgp::{Family, NeighborState};
use martlet_clock::Instant;
use martlet_netlink::Object;
use martlet_router::gate::Lb;

use crate::check::family_of;
use crate::gateway::Brain;
use crate::link::Node;
use crate::objects::{gateway_address, pod_address};
use crate::pod::{ADOPT, LEAVE, SILENCE_NS, Wire};
use crate::world::{MS, PATIENCE, World};

impl World {
    fn bfd_is_down(&self, pod: usize, remote: IpAddr) -> bool {
        let status = self.pods[pod].told_bfd.iter().find(|(id, _)| id.remote == remote).map(|(_, status)| status);
        !status.is_some_and(|status| {
            status.state == State::Up || [status.state, status.remote_state].contains(&State::AdminDown)
        })
    }

    fn is_established(&self, pod: usize, gateway: usize, ipv4: bool) -> bool {
        self.pods[pod].sessions.get(&(gateway, ipv4)) == Some(&NeighborState::Established)
    }

    /// The object of a gateway's router, if that version has it.
    fn asked_for(&self, version: usize, gateway: usize, ipv4: bool) -> Option<&GatewayRouter> {
        self.api.versions[version].view.routers.get(self.names[gateway][usize::from(ipv4)].as_str())
    }

    /// Which family has a gateway that is Up, as the router must see it.
    fn connectivity(&self, pod: usize, version: usize) -> [bool; 2] {
        let mut up = [false; 2];
        for gateway in 0..self.gateways.len() {
            for ipv4 in [false, true] {
                let Some(router) = self.asked_for(version, gateway, ipv4) else { continue };
                let down = |remote| self.bfd_is_down(pod, remote);
                up[usize::from(ipv4)] |= match &router.protocol {
                    Protocol::Bgp(bgp) => {
                        self.is_established(pod, gateway, ipv4) && (bgp.bfd.is_none() || !down(router.address))
                    }
                    Protocol::Static(_) => !down(router.address),
                };
            }
        }
        up
    }

    /// What was Up in `before` and is no longer has taken its BGP session along.
    pub fn check_supervised(&mut self, pod: usize, before: &BTreeMap<SessionId, SessionStatus>) {
        let Some(version) = self.pods[pod].version.filter(|_| self.pods[pod].router.is_some()) else { return };
        let was_up =
            |remote: IpAddr| before.iter().any(|(id, status)| id.remote == remote && status.state == State::Up);
        let both = (0..self.gateways.len()).flat_map(|gateway| [(gateway, false), (gateway, true)]);
        let survivor =
            both.filter(|(gateway, ipv4)| self.is_established(pod, *gateway, *ipv4)).find_map(|(gateway, ipv4)| {
                let router = self.asked_for(version, gateway, ipv4)?;
                let Protocol::Bgp(bgp) = &router.protocol else { return None };
                let over = bgp.bfd.is_some() && was_up(router.address) && self.bfd_is_down(pod, router.address);
                over.then_some(router.address)
            });
        self.check.ask("supervised");
        if let Some(remote) = survivor {
            let message = format!("pod-{pod} is Established with {remote} although BFD to it has gone down");
            self.check.fail(self.now, "supervised", message);
        }
    }

    /// Asks the invariants of one pod.
    pub fn check_pod(&mut self, pod: usize) {
        self.check.now = self.now;
        if !std::mem::take(&mut self.pods[pod].dirty) {
            return;
        }
        let one = &self.pods[pod];
        let Some(version) = one.version.filter(|_| one.router.is_some()) else { return };
        let wrong = self.wrongly_announced(pod, version).or_else(|| self.unbacked(pod, version));
        let wrong = wrong.or_else(|| self.forgotten(pod)).or_else(|| self.talks_twice(pod));
        for invariant in ["withdrawn", "backed", "adopted", "collision"] {
            self.check.ask(invariant);
        }
        if let Some((invariant, message)) = wrong {
            self.check.fail(self.now, invariant, message);
        }
        self.pods[pod].calm_until = self.calm_until(pod);
        let kept = |(gateway, ipv4): &(usize, bool)| !self.is_established(pod, *gateway, *ipv4);
        if self.pods[pod].kept.iter().any(|(key, one)| kept(key) && self.now < one.until) {
            self.check.saw("stale route".into());
        }
    }

    /// Until when nothing that [`World::check_pod`] asks can change if nothing happens: the first limit that is still ahead.
    fn calm_until(&self, pod: usize) -> u64 {
        let one = &self.pods[pod];
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or_default();
        if one.wires.values().any(|wire| wire.ready) {
            return 0;
        }
        let leaves = one.stopping.map(|since| since + nanos(LEAVE) + 50 * MS);
        let hung = one.lb.hung.as_ref().map_or(one.lb.woke_at, |(since, _)| *since + SILENCE_NS) + 60 * MS;
        let bad = one.bad_since.values().map(|since| hung.max(*since + 60 * MS));
        let hurt = one.kernel.hurt.map(|hurt| hurt + 40_000 * MS - 1);
        let adopts = one.configured.map(|since| since + nanos(ADOPT) + 200 * MS - 1);
        let kept = one.kept.values().map(|kept| kept.until.saturating_sub(1));
        let talks = one.wires.values().filter_map(|wire| Some(wire.talks_since? + 1100 * MS));
        let limits = [leaves, hurt, adopts].into_iter().flatten();
        limits.chain(bad).chain(kept).chain(talks).filter(|limit| *limit >= self.now).min().unwrap_or(u64::MAX)
    }

    fn wrongly_announced(&self, pod: usize, version: usize) -> Option<(&'static str, String)> {
        let one = &self.pods[pod];
        let mut up = None;
        let view = &self.api.versions[version].view;
        let over = |since: u64| self.now > since + u64::try_from(LEAVE.as_nanos()).unwrap_or_default() + 50 * MS;
        let leaving = one.draining || one.stopping.is_some_and(over);
        // What waits for room was not sent yet: withdrawals are the first of it.
        for wire in one.wires.values().filter(|wire| wire.stream.is_some() && !wire.ready) {
            for vip in wire.sent.heard.keys() {
                let said = match &one.said {
                    Lb::Said(said) if !said.draining => said.vips.get(vip).is_some_and(|vip| vip.ready),
                    _ => false,
                };
                let why = if leaving {
                    "the router ends"
                } else if !said {
                    "the load balancer's word is that it is not ready"
                } else if !up.get_or_insert_with(|| self.connectivity(pod, version))[usize::from(family_of(vip))] {
                    "no gateway of its family is Up"
                } else if !view.vips.contains(vip) {
                    "no object asks for it"
                } else {
                    ""
                };
                let remote = wire.remote;
                if !why.is_empty() {
                    return Some(("withdrawn", format!("pod-{pod} has {vip} announced to {remote:?} although {why}")));
                }
                let bad = one.bad_since.get(vip).copied().unwrap_or(u64::MAX);
                let hung = one.lb.hung.as_ref().map_or(one.lb.woke_at, |(since, _)| *since + SILENCE_NS);
                if self.now > bad.saturating_add(60 * MS).max(hung + 60 * MS) {
                    let message = format!(
                        "pod-{pod} has {vip} announced to {remote:?} although its load balancer cannot forward it since {}",
                        Instant::from_nanos(bad)
                    );
                    return Some(("truthful", message));
                }
            }
        }
        None
    }

    /// Two connections that both talk: the product takes a second to see which one the neighbour chose.
    fn talks_twice(&self, pod: usize) -> Option<(&'static str, String)> {
        let long = |wire: &&Wire| wire.talks_since.is_some_and(|since| self.now > since + 1100 * MS);
        let mut seen = BTreeSet::new();
        let talks = self.pods[pod].wires.values().filter(long);
        let twice = talks.filter_map(|wire| wire.remote).find(|remote| !seen.insert(*remote))?;
        Some(("collision", format!("pod-{pod} and {twice} have exchanged OPENs on two connections and both stay open")))
    }

    /// Whether a gateway asked that its route is kept over its restart, and may still be waited for.
    fn is_kept(&self, pod: usize, prefix: &IpNet, hop: IpAddr) -> bool {
        let Some(Node::Gateway(gateway)) = self.node_at(hop) else { return false };
        let key = (gateway, family_of(prefix));
        self.pods[pod].kept.get(&key).is_some_and(|kept| {
            let waits = self.now < kept.until || self.is_established(pod, key.0, key.1);
            waits && kept.heard.get(prefix) == Some(&hop)
        })
    }

    fn unbacked(&self, pod: usize, version: usize) -> Option<(&'static str, String)> {
        let one = &self.pods[pod];
        if one.kernel.batches() > 0
            || one.kernel.hurt.is_some_and(|hurt| self.now < hurt + 40_000 * MS)
            || one.kernel.refuses
        {
            return None;
        }
        // Without objects nobody knows what to take away: the time of adopted routes begins with the first.
        let adopting = self.now < one.configured? + u64::try_from(ADOPT.as_nanos()).unwrap_or_default() + 200 * MS;
        for (prefix, hops) in &**one.kernel.learned() {
            if adopting && one.adopted.contains(prefix) {
                continue;
            }
            for hop in hops {
                let told = one.wires.values().any(|wire| {
                    wire.received.heard.get(prefix) == Some(hop)
                        && wire.remote.and_then(|remote| self.node_at(remote)).is_some_and(|node| {
                            matches!(node, Node::Gateway(gateway) if self.is_established(pod, gateway, family_of(prefix)))
                        })
                });
                let is_static = |router: &martlet_api::view::GatewayRouter| {
                    router.address == *hop && matches!(router.protocol, Protocol::Static(_))
                };
                let is_static = prefix.prefix_len() == 0
                    && self.api.versions[version].view.routers.values().any(is_static)
                    && !self.bfd_is_down(pod, *hop);
                if !told && !is_static && !self.is_kept(pod, prefix, *hop) {
                    let message = format!(
                        "pod-{pod} has {prefix} via {hop} in its kernel although no Established session told it"
                    );
                    return Some(("backed", message));
                }
            }
        }
        None
    }

    fn forgotten(&self, pod: usize) -> Option<(&'static str, String)> {
        let one = &self.pods[pod];
        let calm = self.api.model.changed.values().all(|count| *count == 0) && one.stopping.is_none();
        if one.untold.is_empty() || !calm || self.now > one.started + 9_800 * MS {
            return None;
        }
        let there = one.kernel.learned();
        // A static gateway that was Up in between has told its default routes, without a session.
        let by_static = |prefix: &IpNet| self.script.topology.r#static && prefix.prefix_len() == 0;
        let gone = one
            .untold
            .iter()
            .find(|prefix| !there.contains_key(*prefix) && !one.sessions.is_empty() && !by_static(prefix))?;
        Some(("adopted", format!("pod-{pod} took {gone} of its former router away although nobody has told it anew")))
    }

    /// Looks at everything that takes time to go wrong.
    pub fn look(&mut self) {
        for pod in 0..self.pods.len() {
            self.pods[pod].dirty |= self.now > self.pods[pod].calm_until;
            self.check_pod(pod);
            self.look_for_leaks(pod);
            self.look_for_silence(pod);
        }
        self.check.ask("bounded");
        for (number, pod) in self.pods.iter().enumerate() {
            // Two connections a neighbour, and as many that end; batches, dumps and news of deletions.
            if pod.wires.len() > 8 * self.gateways.len() || pod.kernel.work.len() > 200 {
                let message = format!(
                    "pod-{number} holds {} connections, {} messages of its kernel wait",
                    pod.wires.len(),
                    pod.kernel.work.len()
                );
                self.check.fail(self.now, "bounded", message);
            }
        }
        if self.streams.len() > 40 * self.paths.len() + 40 || self.queue.len() > 20_000 {
            let message = format!("{} connections, {} events wait", self.streams.len(), self.queue.len());
            self.check.fail(self.now, "bounded", message);
        }
        if self.now >= self.quiet_at {
            self.check.ask("liveness");
            match self.check.disturbed.take().or_else(|| self.unwell_by_now()) {
                None => _ = self.well_since.get_or_insert(self.now),
                Some(why) => {
                    self.well_since = None;
                    if self.now > self.quiet_at + PATIENCE {
                        let message = format!("{} s after the last fault {why}", PATIENCE / MS / 1000);
                        self.check.fail(self.now, "liveness", message);
                    }
                }
            }
        }
    }

    fn look_for_leaks(&mut self, pod: usize) {
        let one = &self.pods[pod];
        let Some(version) = one.version.filter(|_| one.router.is_some() && one.stopping.is_none()) else { return };
        self.check.ask("no-leak");
        if one.kernel.whole == Some(version) {
            return;
        }
        let vips = &self.api.versions[version].vips;
        let rules = one.kernel.objects().filter(|object| match object {
            Object::Rule(rule) => rule.from.or(rule.to).is_some_and(|vip| vips.contains(&vip)),
            Object::Route(route) => route.metric == u32::MAX,
        });
        let now = self.now;
        // Three rules a VIP, four blackholes: which, the plan of the liveness check says.
        if rules.count() == 3 * vips.len() + 4 {
            let kernel = &mut self.pods[pod].kernel;
            (kernel.leaky_since, kernel.whole) = (None, Some(version));
            return;
        }
        let kernel = &mut self.pods[pod].kernel;
        let since = *kernel.leaky_since.get_or_insert(now);
        let hurt = kernel.refuses || kernel.hurt.is_some_and(|hurt| now < hurt + 40_000 * MS);
        let limit = if hurt { 45_000 * MS } else { 1000 * MS };
        if now > since + limit && !kernel.refuses {
            let message = format!(
                "pod-{pod}: rules and blackholes of its VIPs are not whole since {}: a packet could leak",
                Instant::from_nanos(since)
            );
            self.check.fail(now, "no-leak", message);
        }
    }

    fn look_for_silence(&mut self, pod: usize) {
        self.check.ask("hold-time");
        let hold = u64::from(self.script.topology.hold_time_s) * 1010 * MS + 300 * MS;
        let mut failures = Vec::new();
        for wire in self.pods[pod].wires.values() {
            let Some(Node::Gateway(gateway)) = wire.remote.and_then(|remote| self.node_at(remote)) else { continue };
            let ipv4 = wire.remote.is_some_and(|remote| remote.is_ipv4());
            let alone = self.pods[pod].wires.values().filter(|other| other.remote == wire.remote).count() == 1;
            let established = self.pods[pod].established_at.get(&(gateway, ipv4)).copied().unwrap_or_default();
            // What was held back until it was clear which connection stays counts as heard then.
            let heard = wire.heard_at.max(established);
            if alone && self.is_established(pod, gateway, ipv4) && self.now > heard + hold {
                let message = format!(
                    "pod-{pod} is Established with gateway-{gateway} and has heard nothing since {}",
                    Instant::from_nanos(wire.heard_at)
                );
                failures.push(("hold-time", message));
            }
        }
        for (id, status) in &self.pods[pod].told_bfd {
            let Some(bfd) = self.check.bfd.get(&(pod, id.remote)) else { continue };
            let late = self.now > bfd.heard_at + bfd.detection * 11 / 10 + 1000 * MS;
            if status.state == State::Up && late && self.pods[pod].external_up() {
                let message = format!("BFD of pod-{pod} to {} is Up and hears nothing", id.remote);
                failures.push(("detection", message));
            }
        }
        if let Some((invariant, message)) = failures.pop().filter(|_| self.pods[pod].router.is_some()) {
            self.check.fail(self.now, invariant, message);
        }
    }

    /// What is not well: asked anew if anything happened since the last look.
    fn unwell_by_now(&mut self) -> Option<String> {
        if self.last_look.0 != self.stirred {
            self.last_look = (self.stirred, self.unwell());
        }
        self.last_look.1.clone()
    }

    /// What is not as it should be when nothing goes wrong.
    pub fn unwell(&self) -> Option<String> {
        (0..self.pods.len()).find_map(|pod| self.unwell_pod(pod))
    }

    fn unwell_pod(&self, pod: usize) -> Option<String> {
        let one = &self.pods[pod];
        let newest = self.api.newest();
        if one.router.is_none() || one.version != Some(newest) || one.lb.version != newest || one.stopping.is_some() {
            return Some(format!("pod-{pod} is not running on the newest objects"));
        }
        let expected = &self.api.versions[newest].ready;
        for gateway in 0..self.gateways.len() {
            for ipv4 in self.api.model.families().iter().copied() {
                if let Some(why) = self.unwell_session(pod, gateway, ipv4, expected) {
                    return Some(format!(
                        "pod-{pod} and gateway-{gateway} over {}: {why}",
                        if ipv4 { "IPv4" } else { "IPv6" }
                    ));
                }
            }
        }
        let (learned, fixed) = (self.expected_routes(), self.api.versions[newest].made.fixed(&self.script.topology));
        let there = one.kernel.learned();
        for (prefix, hops) in &learned {
            let have = there.get(prefix).cloned().unwrap_or_default();
            let well = if self.script.topology.ecmp { have == *hops } else { have.len() == 1 && have.is_subset(hops) };
            if !well {
                return Some(format!("pod-{pod} has {prefix} via {have:?} instead of {hops:?} in its kernel"));
            }
        }
        if let Some(prefix) = there.keys().find(|prefix| !learned.contains_key(*prefix)) {
            return Some(format!("pod-{pod} has a route to {prefix} that nobody told"));
        }
        let rest: BTreeSet<&Object> = one.kernel.objects().filter(|object| !is_learned(object)).collect();
        (!rest.iter().copied().eq(fixed)).then(|| {
            let missing = fixed.iter().find(|object| !rest.contains(object));
            let surplus = rest.iter().find(|object| !fixed.contains(**object));
            format!("pod-{pod} misses {missing:?}, has {surplus:?} too much in its kernel")
        })
    }

    fn unwell_session(&self, pod: usize, gateway: usize, ipv4: bool, expected: &BTreeSet<IpNet>) -> Option<String> {
        let remote = gateway_address(gateway, ipv4);
        if self.api.model.bfd(gateway) {
            let ours =
                self.pods[pod].told_bfd.iter().find(|(id, _)| id.remote == remote).map(|(_, status)| status.state);
            let theirs = self.gateways[gateway].bfd.status();
            let theirs =
                theirs.iter().find(|(id, _)| id.remote == pod_address(pod, ipv4)).map(|(_, status)| status.state);
            if ours != Some(State::Up) || theirs != Some(State::Up) {
                return Some(format!("BFD is {ours:?} here and {theirs:?} there"));
            }
        }
        if self.api.model.is_static(gateway) {
            return None;
        }
        let state = self.pods[pod].sessions.get(&(gateway, ipv4)).copied().unwrap_or_default();
        if state != NeighborState::Established {
            return Some(format!("the session is {state:?}"));
        }
        let open = self.pods[pod].wires.values().filter(|wire| wire.remote == Some(remote)).count();
        if open != 1 {
            return Some(format!("there are {open} connections"));
        }
        let of_family: BTreeSet<IpNet> = expected.iter().filter(|vip| family_of(vip) == ipv4).copied().collect();
        let holds = self.gateways[gateway].holds(pod, ipv4, &self.api.versions[self.api.newest()].vips);
        if holds.as_ref() != Some(&of_family) {
            return Some(format!("the gateway holds {holds:?} instead of {of_family:?}"));
        }
        let wire = self.pods[pod].wires.values().find(|wire| wire.remote == Some(remote))?;
        let sent: BTreeSet<IpNet> = wire.sent.heard.keys().copied().collect();
        (sent != of_family).then(|| format!("{sent:?} was announced instead of {of_family:?}"))
    }

    fn expected_routes(&self) -> BTreeMap<IpNet, BTreeSet<IpAddr>> {
        let mut expected: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
        for (number, gateway) in self.gateways.iter().enumerate() {
            let defaults = [Family::Ipv4, Family::Ipv6].map(martlet_router::intent::default_prefix);
            let routes = if self.api.model.is_static(number) { defaults.to_vec() } else { gateway.routes.clone() };
            for route in routes.into_iter().filter(|route| self.api.model.families().contains(&family_of(route))) {
                expected.entry(route).or_default().insert(gateway_address(number, family_of(&route)));
            }
        }
        expected
    }

    /// Which kind of gateway there was.
    pub fn note_topology(&mut self) {
        for gateway in &self.gateways {
            let kind = if matches!(gateway.brain, Some(Brain::Naive(_))) { "naive" } else { "our own" };
            self.check.seen.insert(format!("gateway {kind}"));
        }
    }
}

fn is_learned(object: &Object) -> bool {
    matches!(object, Object::Route(route) if route.table == 4096 && route.metric == 20)
}
