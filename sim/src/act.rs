//! What faults do: at their begin, while they last, at their end.
//!
//! Whatever can be is derived anew from the set of faults that last now, so that faults compose in any order: a path is the
//! worst of all that lie on it, a process is dead while any fault holds it.

use std::sync::Arc;

use martlet_bgp::{Input as BgpInput, NeighborId};
use martlet_clock::Dice;
use martlet_router::core::Input;

use crate::faults::{CONFIG_FIELDS, Fault, What};
use crate::gateway::{Brain, routes};
use crate::kernel::Work;
use crate::link::{Node, Path, Segment};
use crate::objects::{gateway_address, name, pod_address};
use crate::peer::{NONSENSE, RUDE};
use crate::pod;
use crate::world::{Event, MS, World};

/// While one of these lasts, no router starts.
const ROUTER_IS_HELD: &[What] = &[What::RouterCrash, What::RouterClean, What::PodCrash, What::RouterStop];
/// ..and no gateway.
const GATEWAY_IS_HELD: &[What] = &[What::GatewayCrash, What::GatewayLoss, What::GatewayStop, What::GatewayGraceful];

impl World {
    /// The fault and whom it hits.
    fn fault(&self, number: usize) -> (Fault, usize, usize) {
        let fault = self.script.faults[number].clone();
        let (pod, gateway) = (fault.pod % self.pods.len(), fault.gateway % self.gateways.len());
        (fault, pod, gateway)
    }

    /// Whether a fault of these kinds lasts for a pod.
    fn lasts(&self, pod: usize, kinds: &[What]) -> bool {
        self.lasting().any(|fault| kinds.contains(&fault.what) && fault.pod % self.pods.len() == pod)
    }

    fn lasts_at_gateway(&self, gateway: usize, kinds: &[What]) -> bool {
        self.lasting().any(|fault| kinds.contains(&fault.what) && fault.gateway % self.gateways.len() == gateway)
    }

    fn lasting(&self) -> impl Iterator<Item = &Fault> {
        self.script.faults.iter().zip(&self.active).filter(|(_, active)| **active).map(|(fault, _)| fault)
    }

    /// A fault begins.
    pub fn begin(&mut self, number: usize) {
        self.active[number] = true;
        let (fault, pod, gateway) = self.fault(number);
        self.check.saw(format!("fault {}", fault.what.name()));
        self.log.line(self.now, || format!("FAULT {} begins (pod-{pod}, gateway-{gateway})", fault.what.name()));
        self.change(number, true);
    }

    /// A fault ends.
    pub fn end(&mut self, number: usize) {
        self.active[number] = false;
        let (fault, pod, gateway) = self.fault(number);
        self.log.line(self.now, || format!("FAULT {} ends (pod-{pod}, gateway-{gateway})", fault.what.name()));
        self.change(number, false);
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each kind of fault")]
    fn change(&mut self, number: usize, begins: bool) {
        let (fault, pod, gateway) = self.fault(number);
        match fault.what {
            What::Delay
            | What::Jitter
            | What::Loss
            | What::Duplication
            | What::Reordering
            | What::CutOneWay
            | What::Partition
            | What::Clog => self.draw_paths(),
            What::SwizzleClog => self.swizzle(number, begins),
            What::SlowReader => {
                let deaf = &mut self.gateways[gateway].deaf;
                *deaf = if begins { *deaf + 1 } else { deaf.saturating_sub(1) };
                self.poke_streams();
            }
            What::HalfOpen if begins => self.half_open(pod, gateway),
            What::Reset if begins => self.reset(pod, gateway),
            What::RouterCrash | What::RouterClean | What::PodCrash => self.router_life(pod, fault.what, begins),
            What::RouterStop => self.router_stop(pod, begins),
            What::GatewayCrash | What::GatewayLoss | What::GatewayStop | What::GatewayGraceful => {
                self.gateway_life(gateway, fault.what, begins);
            }
            What::LbCrash | What::LbHang | What::LbGarbage | What::LbDrain => self.lb_life(pod),
            What::ClockDrift => {
                let ppm = i64::try_from(fault.amount).unwrap_or_default() - 5000;
                self.pods[pod].clock.set(self.now, if begins { ppm } else { 0 });
                self.pods[pod].wake = None;
                self.after_pod(pod);
            }
            What::LinkDown | What::LinkRename | What::LinkReplug => self.external(pod, fault.what, begins),
            What::InternalDown => {
                let down = self.lasts(pod, &[What::InternalDown]);
                if let Some(link) = self.pods[pod].kernel.links.get_mut(&pod::INTERNAL) {
                    link.carrier = !down;
                }
                self.kernel_push(pod, Work::Dump);
                self.lb_follow(pod);
            }
            What::ForeignDelete | What::NetlinkOverrun | What::EndpointStorm | What::EndpointFlap | What::RouteFlap
                if begins =>
            {
                self.again(number);
            }
            What::KernelRefusal => self.pods[pod].kernel.refuses = self.lasts(pod, &[What::KernelRefusal]),
            What::EndpointStorm | What::EndpointFlap
                if !self.lasting().any(|other| [What::EndpointStorm, What::EndpointFlap].contains(&other.what)) =>
            {
                for endpoint in &mut self.api.model.endpoints {
                    (endpoint.present, endpoint.ready) = (true, true);
                }
                self.publish();
            }
            What::RouteFlap => {
                let now = self.local(Node::Gateway(gateway));
                self.gateways[gateway].set_routes(now, routes(gateway));
                self.after_gateway(gateway);
            }
            What::ApiOutage if !begins => self.tell_pod(pod),
            What::StaleObjects => {
                if begins {
                    let old = self.dice.below(u64::try_from(self.api.versions.len()).unwrap_or(1));
                    let old = usize::try_from(old).unwrap_or_default();
                    self.soon(100, 50_000, Event::Objects(pod, Some(old)));
                    self.soon(100, 50_000, Event::LbObjects(pod, Some(old)));
                } else {
                    self.tell_pod(pod);
                }
            }
            What::BadObject => {
                let count = self.api.model.bad.entry(fault.amount % 6).or_default();
                *count = if begins { *count + 1 } else { count.saturating_sub(1) };
                self.publish();
            }
            What::ConfigChange => {
                self.check.saw(format!("field {}", fault.amount % CONFIG_FIELDS));
                let count = self.api.model.changed.entry((fault.amount % CONFIG_FIELDS, gateway)).or_default();
                *count = if begins { *count + 1 } else { count.saturating_sub(1) };
                self.publish();
            }
            What::VipChange => {
                let number = usize::try_from(fault.amount).unwrap_or_default() % (self.script.topology.vips + 2);
                if !self.api.model.vips.remove(&number) {
                    self.api.model.vips.insert(number);
                }
                self.publish();
            }
            What::RouteGone if begins => {
                let mut routes = self.gateways[gateway].routes.clone();
                let own: Vec<_> =
                    crate::gateway::routes(gateway).into_iter().filter(|one| one.prefix_len() > 0).collect();
                if own.iter().any(|one| routes.contains(one)) {
                    routes.retain(|one| !own.contains(one));
                } else {
                    routes.extend(own);
                }
                let now = self.local(Node::Gateway(gateway));
                self.gateways[gateway].set_routes(now, routes);
                self.after_gateway(gateway);
            }
            What::OffLinkHop => {
                if let Some(Brain::Naive(peer)) = &mut self.gateways[gateway].brain {
                    peer.off_link(begins);
                    self.after_gateway(gateway);
                }
            }
            What::OperatorReset if begins => {
                for ipv4 in [true, false] {
                    let neighbor = NeighborId::new(&name(gateway, ipv4));
                    let reset = Input::Reset(&neighbor, "the operator says so");
                    let input = if fault.amount.is_multiple_of(2) { reset } else { Input::Refresh(&neighbor) };
                    self.router(pod, input);
                }
            }
            What::MalformedBgp => self.malformed_bgp(gateway, fault.amount, begins),
            What::MalformedBfd if begins => self.again(number),
            _ => {}
        }
    }

    /// A fault goes on.
    pub fn again(&mut self, number: usize) {
        if !self.active[number] {
            return;
        }
        let (fault, pod, gateway) = self.fault(number);
        let wait = match fault.what {
            What::ForeignDelete | What::NetlinkOverrun => self.foreign_delete(pod, &fault),
            What::EndpointStorm => {
                let Self { api, dice, .. } = self;
                for endpoint in &mut api.model.endpoints {
                    (endpoint.present, endpoint.ready) = (dice.chance(2, 3), dice.chance(1, 2));
                }
                self.publish();
                50
            }
            What::EndpointFlap => {
                let count = self.api.model.endpoints.len();
                let at = usize::try_from(fault.amount).unwrap_or_default() % count;
                self.api.model.endpoints[at].ready ^= true;
                self.publish();
                400 + fault.amount
            }
            What::RouteFlap => {
                let now = self.local(Node::Gateway(gateway));
                let (all, dice) = (routes(gateway), &mut self.dice);
                let some = all.into_iter().filter(|_| dice.chance(1, 2)).collect();
                self.gateways[gateway].set_routes(now, some);
                self.after_gateway(gateway);
                100 + fault.amount
            }
            What::MalformedBfd => {
                self.malformed_bfd(pod, gateway);
                30
            }
            _ => return,
        };
        self.at(self.now + wait * MS, Event::Again(number));
    }

    fn foreign_delete(&mut self, pod: usize, fault: &Fault) -> u64 {
        let one = &mut self.pods[pod];
        let removed = one.kernel.foreign_delete(usize::try_from(fault.amount).unwrap_or(1));
        one.kernel.hurt = Some(self.now);
        one.dirty = true;
        let lost = fault.what == What::NetlinkOverrun;
        if lost {
            one.kernel.work.retain(|work| !matches!(work, Work::Removed(_)));
        }
        for prefix in removed.iter().filter_map(|object| match object {
            martlet_netlink::Object::Route(route) => Some(route.prefix),
            martlet_netlink::Object::Rule(_) => None,
        }) {
            self.pods[pod].adopted.remove(&prefix);
            self.pods[pod].untold.remove(&prefix);
        }
        self.kernel_push(pod, if lost { Work::Dump } else { Work::Removed(removed) });
        if fault.amount.is_multiple_of(2) { 60 } else { 700 }
    }

    /// Each direction of each path: the worst of all that lies on it.
    fn draw_paths(&mut self) {
        let gateways = self.gateways.len();
        let mut paths = vec![<[Path; 2]>::default(); self.pods.len() * gateways];
        for fault in self.lasting() {
            let (pod, gateway) = (fault.pod % self.pods.len(), fault.gateway % gateways);
            for (back, path) in paths[pod * gateways + gateway].iter_mut().enumerate() {
                match fault.what {
                    What::Delay => path.delay_us += fault.amount * 1000,
                    What::Jitter => path.jitter_us += fault.amount * 1000,
                    What::Loss => path.loss = path.loss.max(fault.amount.min(95)),
                    What::Duplication => path.duplicate = path.duplicate.max(fault.amount),
                    What::Reordering => path.reorder = path.reorder.max(fault.amount),
                    What::CutOneWay => path.cut |= fault.amount % 2 == u64::from(back == 1),
                    What::Partition => path.cut = true,
                    What::Clog => path.clog = true,
                    _ => {}
                }
            }
        }
        for (number, both) in paths.iter_mut().enumerate() {
            let pod = number / gateways;
            let dead = !self.pods[pod].external_up() || self.lasts(pod, &[What::PodCrash]);
            for path in both {
                path.cut |= dead;
                path.clog |= self.clogged.contains(&number);
            }
        }
        self.paths = paths;
        self.poke_streams();
    }

    /// Clogs a random subset of all links one by one, and sets them free in another order.
    fn swizzle(&mut self, number: usize, begins: bool) {
        if begins {
            // The plan is the fault's own chance: it does not depend on what happens meanwhile.
            let fault = self.script.faults[number].clone();
            let mut dice = Dice::new(fault.at_ms ^ fault.amount << 32);
            let links = self.paths.len();
            for link in 0..links {
                if dice.chance(1, 2) || links == 1 {
                    let (mut from, mut to) = (dice.below(fault.for_ms), dice.below(fault.for_ms));
                    if from > to {
                        std::mem::swap(&mut from, &mut to);
                    }
                    let now = self.now;
                    self.at(now + from * MS, Event::Clog(number, link, true));
                    self.at(now + to * MS, Event::Clog(number, link, false));
                }
            }
        } else {
            self.clogged.clear();
            self.draw_paths();
        }
    }

    /// A link of a swizzle is clogged, or free.
    pub fn clog(&mut self, number: usize, link: usize, yes: bool) {
        if self.active[number] {
            if yes {
                self.clogged.insert(link);
            } else {
                self.clogged.remove(&link);
            }
            self.draw_paths();
        }
    }

    fn between(&self, pod: usize, gateway: usize) -> Vec<usize> {
        let are = |nodes: [Node; 2]| nodes.contains(&Node::Pod(pod)) && nodes.contains(&Node::Gateway(gateway));
        let streams = self.streams.iter().filter(|(_, stream)| are([stream.ends[0].node, stream.ends[1].node]));
        streams.map(|(number, _)| *number).collect()
    }

    fn half_open(&mut self, pod: usize, gateway: usize) {
        for number in self.between(pod, gateway) {
            let Some(stream) = self.streams.get_mut(&number) else { continue };
            let Some(side) = stream.ends.iter().position(|end| end.node == Node::Gateway(gateway)) else { continue };
            stream.ends[side].open = false;
            if let Some(id) = stream.ends[side].id.filter(|id| self.gateways[gateway].wires.contains_key(id)) {
                self.gateways[gateway].wires.remove(&id);
                let now = self.local(Node::Gateway(gateway));
                match &mut self.gateways[gateway].brain {
                    Some(Brain::Ours(speaker)) => {
                        let reason = martlet_bgp::CloseReason::Other("forgotten".into());
                        speaker.handle(now, BgpInput::Closed(martlet_bgp::ConnectionId(id), reason));
                    }
                    Some(Brain::Naive(peer)) => peer.closed(number),
                    None => {}
                }
                self.after_gateway(gateway);
            }
        }
    }

    fn reset(&mut self, pod: usize, gateway: usize) {
        for number in self.between(pod, gateway) {
            self.send(number, 0, Segment::Reset);
            self.send(number, 1, Segment::Reset);
        }
    }

    fn router_life(&mut self, pod: usize, what: What, begins: bool) {
        let whole = what == What::PodCrash;
        if begins {
            self.drop_streams(Node::Pod(pod), !whole);
            if what == What::RouterClean {
                self.pods[pod].kernel.clear();
            }
            if whole {
                self.pods[pod].kernel = crate::kernel::Kernel::default();
                self.pods[pod].kernel.refuses = self.lasts(pod, &[What::KernelRefusal]);
                self.pods[pod].kernel.links = pod::links(pod);
                self.redo_links(pod);
            }
            self.pods[pod].forget();
        }
        if whole {
            self.lb_life(pod);
            self.draw_paths();
        }
        if !begins {
            self.restart_router(pod);
        }
    }

    fn restart_router(&mut self, pod: usize) {
        let held = self.lasts(pod, ROUTER_IS_HELD);
        if !held && self.pods[pod].router.is_none() {
            self.start_router(pod);
        }
    }

    fn router_stop(&mut self, pod: usize, begins: bool) {
        if begins {
            if self.pods[pod].router.is_some() {
                self.pods[pod].stopping.get_or_insert(self.now);
                self.router(pod, Input::Stop);
            }
        } else {
            self.restart_router(pod);
        }
    }

    /// A router has said goodbye.
    pub fn router_ended(&mut self, pod: usize) {
        self.log.line(self.now, || format!("pod-{pod} router has ended"));
        self.check.router_ended(self.now, &self.pods[pod]);
        self.drop_streams(Node::Pod(pod), true);
        self.pods[pod].forget();
        if !self.lasts(pod, ROUTER_IS_HELD) {
            self.start_router(pod);
        }
    }

    fn gateway_life(&mut self, gateway: usize, what: What, begins: bool) {
        let node = Node::Gateway(gateway);
        if begins {
            if what == What::GatewayStop {
                let now = self.local(node);
                if let Some(Brain::Ours(speaker)) = &mut self.gateways[gateway].brain {
                    speaker.handle(now, BgpInput::Stop("maintenance"));
                    self.after_gateway(gateway);
                }
            }
            self.drop_streams(node, what != What::GatewayLoss);
            self.gateways[gateway].forget();
            self.gateways[gateway].kept = what == What::GatewayGraceful;
        }
        self.gateways[gateway].host = !self.lasts_at_gateway(gateway, &[What::GatewayLoss]);
        let held = self.lasts_at_gateway(gateway, GATEWAY_IS_HELD);
        if !held && self.gateways[gateway].brain.is_none() {
            self.start_gateway(gateway);
        }
    }

    fn lb_life(&mut self, pod: usize) {
        let dead = self.lasts(pod, &[What::LbCrash, What::PodCrash]);
        let hung = self.lasts(pod, &[What::LbHang]);
        let (garbage, draining) = (self.lasts(pod, &[What::LbGarbage]), self.lasts(pod, &[What::LbDrain]));
        let now = self.now;
        let last = self.pods[pod].lb.told(now);
        let lb = &mut self.pods[pod].lb;
        (lb.garbage, lb.draining) = (garbage, draining);
        if dead {
            (lb.alive, lb.hung) = (false, None);
        } else if !lb.alive {
            self.start_lb(pod);
        }
        let lb = &mut self.pods[pod].lb;
        if !hung {
            lb.woke_at = if lb.hung.take().is_some() { now } else { lb.woke_at };
        } else if lb.hung.is_none() && lb.alive {
            lb.hung = Some((now, last));
            self.at(now + pod::SILENCE_NS, Event::LbTell(pod));
        }
        self.lb_follow(pod);
    }

    /// The external link as the lasting faults want it.
    fn redo_links(&mut self, pod: usize) {
        let down = self.lasts(pod, &[What::LinkDown]);
        let renamed = self.lasts(pod, &[What::LinkRename]);
        let gone = self.lasts(pod, &[What::LinkReplug]);
        let kernel = &mut self.pods[pod].kernel;
        let before = kernel.links.clone();
        let index = kernel.links.keys().copied().find(|index| *index != pod::INTERNAL);
        if gone && let Some(index) = index {
            kernel.links.remove(&index);
            kernel.flush_link(index);
        } else if !gone && index.is_none() {
            let most = self.replugged;
            self.replugged += 1;
            let kernel = &mut self.pods[pod].kernel;
            if let Some(mut link) = pod::links(pod).remove(&pod::EXTERNAL) {
                link.index = most;
                kernel.links.insert(most, link);
            }
        }
        let kernel = &mut self.pods[pod].kernel;
        let mut flush = None;
        for link in kernel.links.values_mut().filter(|link| link.index != pod::INTERNAL) {
            if down && link.up {
                flush = Some(link.index);
            }
            (link.up, link.carrier) = (!down, !down);
            link.name = Arc::from(if renamed { "eth0x" } else { "eth0" });
        }
        if let Some(index) = flush {
            kernel.flush_link(index);
        }
        if self.pods[pod].kernel.links != before {
            self.pods[pod].kernel.hurt = Some(self.now);
            self.pods[pod].adopted.clear();
            self.pods[pod].untold.clear();
        }
    }

    fn external(&mut self, pod: usize, _what: What, _begins: bool) {
        self.redo_links(pod);
        self.draw_paths();
        self.kernel_push(pod, Work::Dump);
        self.lb_follow(pod);
    }

    /// The operator's objects changed.
    fn publish(&mut self) {
        self.api.publish();
        for pod in 0..self.pods.len() {
            if !self.lasts(pod, &[What::ApiOutage]) {
                self.tell_pod(pod);
            }
        }
    }

    fn tell_pod(&mut self, pod: usize) {
        self.soon(1000, 30_000, Event::Objects(pod, None));
        self.soon(1000, 30_000, Event::LbObjects(pod, None));
    }

    /// The version that a pod reads now, if it can: what is old is only told while the fault lasts.
    pub fn readable(&self, pod: usize, old: Option<usize>) -> Option<usize> {
        match old {
            Some(_) => old.filter(|_| self.lasts(pod, &[What::StaleObjects])),
            None => Some(self.api.newest()).filter(|_| !self.lasts(pod, &[What::ApiOutage])),
        }
    }

    fn malformed_bgp(&mut self, gateway: usize, amount: u64, begins: bool) {
        let kind = amount % (NONSENSE + RUDE);
        let Self { gateways, dice, .. } = self;
        if let Some(Brain::Naive(peer)) = &mut gateways[gateway].brain {
            if kind < NONSENSE && begins {
                peer.misbehave(kind, dice);
            } else if kind >= NONSENSE {
                peer.rude = begins.then_some(kind - NONSENSE);
            }
            self.after_gateway(gateway);
            // What it said in between is forgotten with the session.
            if kind >= NONSENSE || !begins {
                for pod in 0..self.pods.len() {
                    self.reset(pod, gateway);
                }
            }
        }
    }

    fn malformed_bfd(&mut self, pod: usize, gateway: usize) {
        let ipv4 = self.dice.chance(1, 2);
        let mut octets: Vec<u8> = vec![0x20, 0xc0, 3, 24];
        octets.extend((0..20).map(|_| u8::try_from(self.dice.below(256)).unwrap_or_default()));
        for _ in 0..self.dice.below(4) {
            let at = usize::try_from(self.dice.below(24)).unwrap_or_default();
            octets[at] = u8::try_from(self.dice.below(256)).unwrap_or_default();
        }
        // Your Discriminator zero, a plausible state that does not say Down: nobody may believe it.
        octets.truncate(usize::try_from(self.dice.below(26)).unwrap_or_default());
        let meta = martlet_bfd::Meta {
            remote: gateway_address(gateway, ipv4),
            local: pod_address(pod, ipv4),
            interface: None,
            ttl: if self.dice.chance(1, 2) { 255 } else { 254 },
            multihop: false,
        };
        self.at(self.now, Event::Datagram(Node::Pod(pod), Box::new((meta, octets))));
    }
}
