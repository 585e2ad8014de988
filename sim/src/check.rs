//! The invariants: what must hold after every event, and what must come true after the last fault.
//!
//! Each has a name, a counter and a message for a human. What was *sent* and *heard* is read from the wires by a second,
//! naive decoder, readiness from the plain model: the product's own opinion is asked only for what it says of its sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use martlet_bfd::{Change, Diagnostic, State};
use martlet_bgp::{Event as BgpEvent, Family, NeighborState};
use martlet_clock::Instant;
use martlet_netlink::Object;
use martlet_router::core::Event;
use martlet_router::gate::Lb;
use martlet_router::intent::Intent;
use martlet_router::plan;

use crate::decode::{Message, Tap};
use crate::gateway::Brain;
use crate::link::Node;
use crate::objects::{Api, gateway_address, name, pod_address};
use crate::pod::{ADOPT, LEAVE, Pod, SILENCE_NS, settings};
use crate::world::{MS, PATIENCE, World};

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub time: u64,
    /// The name of the invariant.
    pub invariant: &'static str,
    /// What happened, for a human.
    pub message: String,
}

/// The invariants, with their names and what they say.
pub const INVARIANTS: &[(&str, &str)] = &[
    (
        "withdrawn",
        "no VIP stays announced once the router was told that it may not be: the withdrawal leaves in that step",
    ),
    (
        "truthful",
        "no VIP stays announced while its load balancer cannot forward it, beyond the time that its silence takes",
    ),
    ("backed", "every learned route in the kernel was told by an Established session, or is adopted, or static and Up"),
    ("no-leak", "rules and blackholes of every VIP are in the kernel, or back in time"),
    ("adopted", "routes of a former router stay until someone tells them anew or their time is over"),
    ("hold-time", "a session that hears nothing for its hold time is not Established"),
    ("detection", "BFD goes down after the detection time: not earlier, not later"),
    ("poll", "a changed BFD interval is announced with a Poll"),
    ("jitter", "BFD intervals are jittered"),
    ("deadline", "no deadline in the past remains, no deadline is asked for without end"),
    ("bounded", "outputs of one step, batches, connections and queues are bounded"),
    ("farewell", "a router that ends has withdrawn its VIPs and taken its learned routes along"),
    ("liveness", "after the last fault everything is well in time"),
];

/// What is seen of one BFD session from outside.
#[derive(Clone, Copy, Debug, Default)]
struct Bfd {
    ours: [u8; 4],
    state: u8,
    intervals: (u64, u64),
    changed_at: u64,
    owes_poll: bool,
    sent_at: u64,
    gap: u64,
    equal: u32,
    heard_at: u64,
    detection: u64,
}

/// What was broken, what was counted, what was seen.
#[derive(Debug, Default)]
pub struct Check {
    /// The first broken promise.
    pub failure: Option<Failure>,
    /// How often each invariant was asked.
    pub asked: BTreeMap<&'static str, u64>,
    /// What was seen at least once.
    pub seen: BTreeSet<String>,
    /// A session ended since the last look: that may be shorter than what lies between two.
    disturbed: Option<String>,
    now: u64,
    bfd: BTreeMap<(usize, IpAddr), Bfd>,
}

fn word(payload: &[u8], at: usize) -> u64 {
    payload.get(at..at + 4).map_or(0, |octets| octets.iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet)))
}

impl Check {
    fn fail(&mut self, now: u64, invariant: &'static str, message: String) {
        self.failure.get_or_insert(Failure { time: now, invariant, message });
    }

    fn ask(&mut self, invariant: &'static str) {
        *self.asked.entry(invariant).or_default() += 1;
    }

    /// Something that should happen sometimes happened.
    pub fn saw(&mut self, what: String) {
        self.seen.insert(what);
    }

    /// The deadline of a core after a timeout.
    pub fn deadline(&mut self, who: &str, now: Instant, deadline: Option<Instant>) {
        self.ask("deadline");
        if deadline.is_some_and(|at| at < now) {
            let time = self.now;
            self.fail(time, "deadline", format!("{who} leaves a deadline in the past after its timeout: {deadline:?}"));
        }
    }

    /// Timeouts in a row at one instant.
    pub fn spins(&mut self, count: u32) {
        if count > 100 {
            let time = self.now;
            self.fail(time, "deadline", "the router asks for a timeout at the same instant more than 100 times".into());
        }
    }

    /// Outputs of one step.
    pub fn outputs(&mut self, pod: usize, count: usize) {
        if count > 1000 {
            let time = self.now;
            self.fail(time, "bounded", format!("the router of pod-{pod} made {count} outputs in one step"));
        }
    }

    /// The size of a batch.
    pub fn batch(&mut self, count: usize) {
        if count > martlet_router::mirror::BATCH {
            let time = self.now;
            self.fail(time, "bounded", format!("a batch of {count} changes for the kernel"));
        }
    }

    /// What a core gave for sending.
    pub fn transmitted(&mut self, octets: usize, room: usize) {
        self.ask("bounded");
        if octets > room + 4096 + 19 {
            let time = self.now;
            self.fail(time, "bounded", format!("{octets} octets were given where there was room for {room}"));
        }
    }

    /// The last words of a connection.
    pub fn said(&mut self, octets: &[u8]) {
        let messages = Tap::default().feed(octets);
        for message in messages {
            if let Message::Notification(code, subcode) = message {
                self.saw(format!("notification sent {code}/{subcode}"));
            }
        }
    }

    /// Messages that arrived.
    pub fn heard(&mut self, messages: &[Message]) {
        for message in messages {
            if let Message::Notification(code, subcode) = message {
                self.saw(format!("notification received {code}/{subcode}"));
            }
        }
    }

    /// Something that a speaker told.
    pub fn bgp_event(&mut self, event: &BgpEvent) {
        match event {
            BgpEvent::State { from, to, .. } => self.saw(format!("fsm {from:?} -> {to:?}")),
            BgpEvent::TreatAsWithdraw { .. } => self.saw("treat-as-withdraw".into()),
            BgpEvent::AttributeDiscard { .. } => self.saw("attribute-discard".into()),
            BgpEvent::PrefixWarning { .. } => self.saw("prefix-warning".into()),
            _ => {}
        }
    }

    /// Something that a router told.
    pub fn event(&mut self, now: u64, pod: &mut Pod, event: &Event) {
        self.now = now;
        match event {
            Event::Bgp(event) => {
                self.bgp_event(event);
                if let BgpEvent::State { neighbor, from: NeighborState::Established, .. } = event {
                    self.disturbed = Some(format!("the session {neighbor} of a pod ended, nobody knows why"));
                }
                if let BgpEvent::State { neighbor, to, .. } = event
                    && let Some((gateway, family)) = neighbor.0.strip_prefix('g').and_then(|name| name.split_once("-v"))
                    && let Ok(gateway) = gateway.parse()
                {
                    pod.sessions.insert((gateway, family == "4"), *to);
                    if *to == NeighborState::Established {
                        pod.untold.retain(|prefix| family_of(prefix) != (family == "4"));
                    }
                }
            }
            Event::Withheld(_, reason) => self.saw(format!("withheld {}", reason.word())),
            Event::Draining(_) | Event::Stopping => pod.draining = true,
            Event::Announced(_) => self.saw("announced".into()),
            Event::Bfd { from, to, diagnostic, .. } => {
                self.saw(format!("bfd {from:?} -> {to:?}"));
                self.saw(format!("bfd diagnostic {diagnostic:?}"));
            }
            Event::KernelConflict(_) => self.saw("kernel conflict".into()),
            Event::Refused(_) => self.saw("kernel refusal".into()),
            Event::Adopted(_) => self.saw("adoption".into()),
            Event::AdoptionEnded(..) => self.saw("adoption ended by time".into()),
            Event::Repaired(_) => self.saw("repair".into()),
            Event::Unresolved(..) => self.saw("unresolved next hop".into()),
            _ => {}
        }
    }

    /// Since when a load balancer cannot forward what it could.
    pub fn note_truth(&mut self, now: u64, api: &Api, pod: &mut Pod) {
        self.now = now;
        let version = api.versions.get(pod.lb.version).filter(|_| pod.lb.view.is_some());
        let works = pod.lb.alive && pod.internal_up();
        let ready = version.filter(|_| works).map(|version| &*version.ready);
        let all = api.versions.iter().flat_map(|version| version.vips.iter());
        // Every VIP that ever was.
        for vip in all.copied().collect::<BTreeSet<_>>() {
            if ready.is_some_and(|ready| ready.contains(&vip)) {
                pod.bad_since.remove(&vip);
            } else {
                pod.bad_since.entry(vip).or_insert(now);
            }
        }
        if let Some(said) = &pod.lb.word
            && let Some(version) = version.filter(|_| works)
        {
            let ready: BTreeSet<IpNet> = said.vips.iter().filter(|(_, vip)| vip.ready).map(|(vip, _)| *vip).collect();
            self.ask("truthful");
            if ready != *version.ready {
                let message =
                    format!("the load balancer says {ready:?} is ready, the objects make it {:?}", version.ready);
                self.fail(now, "truthful", message);
            }
        }
    }

    /// A BFD packet of a pod.
    pub fn bfd_sent(&mut self, now: u64, pod: usize, remote: IpAddr, payload: &[u8]) {
        self.now = now;
        let bfd = self.bfd.entry((pod, remote)).or_default();
        let (state, poll, last) = (payload[1] >> 6, payload[1] & 0x20 != 0, payload[1] & 0x10 != 0);
        let intervals = (word(payload, 12), word(payload, 16));
        let ours = [payload[4], payload[5], payload[6], payload[7]];
        let before = *bfd;
        let same = before.ours == ours && before.state == 3 && state == 3;
        if intervals != before.intervals {
            bfd.changed_at = now;
        }
        // An answer may tell of the change first; the next packet of our own must ask.
        bfd.owes_poll = same && !poll && (before.owes_poll || intervals != before.intervals);
        let overdue = bfd.owes_poll && !last;
        let gap = now - before.sent_at;
        let periodic = same && !poll && !last;
        bfd.equal = if periodic && gap == before.gap { before.equal + 1 } else { 0 };
        let even = bfd.equal >= 5;
        (bfd.ours, bfd.state, bfd.intervals, bfd.sent_at, bfd.gap) = (ours, state, intervals, now, gap);
        self.ask("poll");
        self.ask("jitter");
        if overdue {
            let message =
                format!("pod-{pod} changed its BFD intervals towards {remote} to {intervals:?} us without a Poll");
            self.fail(now, "poll", message);
        }
        if even {
            self.fail(now, "jitter", format!("pod-{pod} sends BFD to {remote} every {gap} ns without jitter"));
        }
    }

    /// A BFD packet for a pod: what a second reading makes of it.
    pub fn bfd_heard(&mut self, now: u64, pod: usize, remote: IpAddr, payload: &[u8]) {
        let Some(bfd) = self.bfd.get_mut(&(pod, remote)) else { return };
        let good = payload.len() == 24 && payload[0] >> 5 == 1 && payload[3] == 24 && payload[2] != 0;
        if good && payload.get(8..12) == Some(&bfd.ours) {
            bfd.heard_at = now;
            bfd.detection = u64::from(payload[2]) * bfd.intervals.1.max(word(payload, 12)) * 1000;
        }
    }

    /// BFD of a pod changed.
    pub fn bfd_changed(&mut self, now: u64, _api: &Api, pod: usize, change: &Change) {
        let Some(bfd) = self.bfd.get(&(pod, change.session.remote)).copied() else { return };
        let settled = now > bfd.changed_at + 3000 * MS;
        if change.from == State::Up && change.diagnostic == Diagnostic::DetectionTimeExpired && settled {
            self.ask("detection");
            let (silence, detection) = (now - bfd.heard_at, bfd.detection);
            if silence * 1000 < detection * 985 || silence > detection / 1000 * 1015 + 10 * MS {
                let message = format!(
                    "BFD of pod-{pod} to {} went down after {silence} ns of silence, the detection time is {detection} ns",
                    change.session.remote
                );
                self.fail(now, "detection", message);
            }
        }
    }

    /// A router has ended.
    pub fn router_ended(&mut self, now: u64, pod: &Pod) {
        self.ask("farewell");
        let left: Vec<_> = pod.kernel.learned(4096, 20).into_keys().collect();
        let hurt = pod.kernel.hurt.is_some_and(|hurt| now < hurt + 40_000 * MS) || pod.kernel.refuses;
        if !left.is_empty() && !hurt && pod.version.is_some() {
            self.fail(now, "farewell", format!("a router has ended and left its learned routes: {left:?}"));
        }
    }
}

fn family_of(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}

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

    /// Which family has a gateway that is Up, as the router must see it.
    fn connectivity(&self, pod: usize, version: usize) -> [bool; 2] {
        let view = &self.api.versions[version].view;
        let mut up = [false; 2];
        for gateway in 0..self.gateways.len() {
            for ipv4 in [false, true] {
                let Some(router) = view.routers.get(name(gateway, ipv4).as_str()) else { continue };
                let down = |remote| self.bfd_is_down(pod, remote);
                up[usize::from(ipv4)] |= match &router.protocol {
                    martlet_api::view::Protocol::Bgp(bgp) => {
                        self.is_established(pod, gateway, ipv4) && (bgp.bfd.is_none() || !down(router.address))
                    }
                    martlet_api::view::Protocol::Static(_) => !down(router.address),
                };
            }
        }
        up
    }

    /// Asks the invariants of one pod.
    pub fn check_pod(&mut self, pod: usize) {
        self.check.now = self.now;
        if !std::mem::take(&mut self.pods[pod].dirty) {
            return;
        }
        let one = &self.pods[pod];
        let Some(version) = one.version.filter(|_| one.router.is_some()) else { return };
        let wrong = self.wrongly_announced(pod, version).or_else(|| self.unbacked(pod)).or_else(|| self.forgotten(pod));
        for invariant in ["withdrawn", "backed", "adopted"] {
            self.check.ask(invariant);
        }
        if let Some((invariant, message)) = wrong {
            self.check.fail(self.now, invariant, message);
        }
    }

    fn wrongly_announced(&self, pod: usize, version: usize) -> Option<(&'static str, String)> {
        let one = &self.pods[pod];
        let up = self.connectivity(pod, version);
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
                } else if !up[usize::from(family_of(vip))] {
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
                let hung = one.lb.hung.as_ref().map_or(0, |(since, _)| *since + SILENCE_NS);
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

    fn unbacked(&self, pod: usize) -> Option<(&'static str, String)> {
        let one = &self.pods[pod];
        if one.applying || one.kernel.hurt.is_some_and(|hurt| self.now < hurt + 40_000 * MS) || one.kernel.refuses {
            return None;
        }
        let adopting = self.now < one.started + u64::try_from(ADOPT.as_nanos()).unwrap_or_default() + 200 * MS;
        for (prefix, hops) in one.kernel.learned(4096, 20) {
            if adopting && one.adopted.contains(&prefix) {
                continue;
            }
            for hop in hops {
                let told = one.wires.values().any(|wire| {
                    wire.received.heard.get(&prefix) == Some(&hop)
                        && wire.remote.and_then(|remote| self.node_at(remote)).is_some_and(|node| {
                            matches!(node, Node::Gateway(gateway) if self.is_established(pod, gateway, family_of(&prefix)))
                        })
                });
                let is_static = prefix.prefix_len() == 0
                    && matches!(self.node_at(hop), Some(Node::Gateway(g)) if self.api.model.is_static(g))
                    && !self.bfd_is_down(pod, hop);
                if !told && !is_static {
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
        let there = one.kernel.learned(4096, 20);
        let gone = one.untold.iter().find(|prefix| !there.contains_key(*prefix) && !one.sessions.is_empty())?;
        Some(("adopted", format!("pod-{pod} took {gone} of its former router away although nobody has told it anew")))
    }

    /// Looks at everything that takes time to go wrong.
    pub fn look(&mut self) {
        for pod in 0..self.pods.len() {
            self.pods[pod].dirty = true;
            self.check_pod(pod);
            self.look_for_leaks(pod);
            self.look_for_silence(pod);
        }
        self.check.ask("bounded");
        if self.streams.len() > 40 * self.paths.len() + 40 || self.queue.len() > 20_000 {
            let message = format!("{} connections, {} events wait", self.streams.len(), self.queue.len());
            self.check.fail(self.now, "bounded", message);
        }
        if self.now >= self.quiet_at {
            self.check.ask("liveness");
            match self.check.disturbed.take().or_else(|| self.unwell()) {
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

    /// The fixed part of the kernel that a pod's version asks for.
    fn fixed(&self, version: usize) -> BTreeSet<Object> {
        plan::fixed(&Intent::new(&self.api.versions[version].view, &settings(&self.script.topology)))
    }

    fn look_for_leaks(&mut self, pod: usize) {
        let one = &self.pods[pod];
        let Some(version) = one.version.filter(|_| one.router.is_some() && one.stopping.is_none()) else { return };
        self.check.ask("no-leak");
        let vips = &self.api.versions[version].vips;
        let rules = one.kernel.objects.iter().filter(|object| match object {
            Object::Rule(rule) => rule.from.or(rule.to).is_some_and(|vip| vips.contains(&vip)),
            Object::Route(route) => route.metric == u32::MAX,
        });
        let now = self.now;
        // Three rules a VIP, four blackholes: which, the plan of the liveness check says.
        if rules.count() == 3 * vips.len() + 4 {
            self.pods[pod].kernel.leaky_since = None;
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
            if alone && self.is_established(pod, gateway, ipv4) && self.now > wire.heard_at + hold {
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
        let (learned, fixed) = (self.expected_routes(), self.fixed(newest));
        let there = one.kernel.learned(4096, 20);
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
        let rest: BTreeSet<Object> = one.kernel.objects.iter().filter(|object| !is_learned(object)).cloned().collect();
        (rest != fixed).then(|| {
            let (missing, surplus) = (fixed.difference(&rest).next(), rest.difference(&fixed).next());
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
