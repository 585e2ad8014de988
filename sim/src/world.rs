//! The world: one queue of events, one seed, every process of the product as its pure core.
//!
//! An event is popped, time jumps there, a core is asked, and what it wants becomes new events; then the invariants are asked
//! (`check`). Streams are in `tcp`, faults in `act`. Nothing here knows the wall clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use martlet_bfd::{Meta, Output as BfdOutput};
use martlet_bgp::{Input as BgpInput, NeighborId, Output as BgpOutput};
use martlet_clock::{Dice, Instant};
use martlet_router::core::{Input, Output};

use crate::check::Check;
use crate::decode::is_keepalive;
use crate::gateway::{Brain, Gateway, pod_name};
use crate::kernel::Work;
use crate::link::{Node, Path, Stream};
use crate::log::Log;
use crate::objects::{Api, gateway_address, name, pod_address};
use crate::peer::Want;
use crate::pod::{self, Pod};
use crate::queue::Queue;
use crate::script::Script;
use crate::tcp::PORT;

/// A millisecond, in nanoseconds.
pub const MS: u64 = 1_000_000;
/// Outputs of one step, and events of one run, from which on there is no end to them.
const ENDLESS: (usize, u64) = (100_000, 3_000_000);
/// Time after the last fault until everything must be well again.
pub const PATIENCE: u64 = 75_000 * MS;

/// What happens at a point in time.
#[derive(Clone, Debug)]
pub enum Event {
    /// A process wants to be woken.
    Wake(Node, u64),
    /// Something may have arrived in a stream.
    Arrive(usize, usize),
    /// A connect arrives: from whom, in which of its lives, which connection, where.
    Syn(Box<(Node, u64, u64, Node, bool)>),
    /// The answer: the stream, or a refusal.
    SynAnswer(Box<(Node, u64, u64, Option<usize>)>),
    /// A datagram.
    Datagram(Node, Box<(Meta, Vec<u8>)>),
    /// An echo packet of a pod comes back.
    Echo(usize, Box<(IpAddr, Vec<u8>)>),
    /// The kernel has time for one piece of work.
    Kernel(usize, u64),
    /// The router reads objects: the newest, or an old version.
    Objects(usize, Option<usize>),
    /// The load balancer reads objects.
    LbObjects(usize, Option<usize>),
    /// The router hears the load balancer.
    LbTell(usize),
    /// The router hears BFD.
    BfdTell(usize, u64),
    /// A fault begins.
    Begin(usize),
    /// A fault goes on.
    Again(usize),
    /// A fault ends.
    End(usize),
    /// A link of a swizzle is clogged, or free.
    Clog(usize, usize, bool),
    /// Time to look at everything.
    Look,
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// Nanoseconds since the start.
    pub now: u64,
    /// What will happen.
    pub queue: Queue<Event>,
    /// All chance.
    pub dice: Dice,
    /// What is played.
    pub script: Script,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The gateways.
    pub gateways: Vec<Gateway>,
    /// Pod by pod, gateway by gateway: towards the gateway, and back.
    pub paths: Vec<[Path; 2]>,
    /// TCP.
    pub streams: BTreeMap<usize, Stream>,
    /// Names of streams and tickets.
    pub next: usize,
    /// The operator.
    pub api: Api,
    /// What each gateway's routers are called: of IPv6, of IPv4.
    pub names: Vec<[String; 2]>,
    /// Which faults last.
    pub active: Vec<bool>,
    /// Links that a swizzle has clogged.
    pub clogged: BTreeSet<usize>,
    /// The index of the next link that is plugged in.
    pub replugged: u32,
    /// When the last fault ends.
    pub quiet_at: u64,
    /// Since when everything is well.
    pub well_since: Option<u64>,
    /// The invariants.
    pub check: Check,
    /// The story.
    pub log: Log,
    /// Events so far.
    pub events: u64,
    /// Counts whatever may change what the invariants ask about.
    pub stirred: u64,
    /// What was not well at that count.
    pub last_look: (u64, Option<String>),
}

impl World {
    /// A world before its first event.
    pub fn new(script: &Script, log: Log) -> Self {
        let topology = &script.topology;
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            dice: Dice::new(script.seed),
            script: script.clone(),
            pods: (0..topology.pods).map(Pod::new).collect(),
            gateways: (0..topology.gateways).map(Gateway::new).collect(),
            paths: vec![<[Path; 2]>::default(); topology.pods * topology.gateways],
            streams: BTreeMap::new(),
            next: 0,
            api: Api::new(topology),
            names: (0..topology.gateways).map(|one| [name(one, false), name(one, true)]).collect(),
            active: vec![false; script.faults.len()],
            clogged: BTreeSet::new(),
            replugged: 20,
            quiet_at: script.faults.iter().map(|fault| (fault.at_ms + fault.for_ms) * MS).max().unwrap_or_default(),
            well_since: None,
            check: Check::default(),
            log,
            events: 0,
            stirred: 1,
            last_look: (0, None),
        };
        for (number, fault) in script.faults.iter().enumerate() {
            world.at(fault.at_ms * MS, Event::Begin(number));
            world.at((fault.at_ms + fault.for_ms) * MS, Event::End(number));
        }
        for gateway in 0..topology.gateways {
            world.start_gateway(gateway);
        }
        for pod in 0..topology.pods {
            world.start_lb(pod);
            world.start_router(pod);
        }
        world.at(100 * MS, Event::Look);
        world
    }

    /// Lets `event` happen at `time`.
    pub fn at(&mut self, time: u64, event: Event) {
        self.queue.push(time.max(self.now), event);
    }

    /// Lets `event` happen within `least` and `most` microseconds.
    pub fn soon(&mut self, least_us: u64, most_us: u64, event: Event) {
        let wait = (least_us + self.dice.below(most_us - least_us + 1)) * 1000;
        self.at(self.now + wait, event);
    }

    /// Plays until everything is well, a promise is broken, or `until`.
    pub fn play(&mut self, until: u64) {
        while let Some(time) = self.queue.next_at() {
            if time > until || self.check.failure.is_some() || self.is_done() {
                return;
            }
            let Some(event) = self.queue.pop() else { return };
            self.now = time;
            self.events += 1;
            if self.events > ENDLESS.1 {
                self.check.fail(time, "bounded", format!("more than {} events in one run", ENDLESS.1));
            }
            self.happen(event);
        }
    }

    /// Whether all is well for long enough.
    pub fn is_done(&self) -> bool {
        let hold = u64::from(self.script.topology.hold_time_s) + 1;
        self.well_since.is_some_and(|since| self.now >= since + hold * 1000 * MS)
    }

    /// Something changed that the invariants ask about a process.
    pub fn stir(&mut self, node: Node) {
        self.stirred += 1;
        if let Node::Pod(pod) = node {
            self.pods[pod].dirty = true;
        }
    }

    /// ..that may concern anyone, by the next look.
    pub fn stir_all(&mut self) {
        self.stirred += 1;
        for pod in &mut self.pods {
            pod.calm_until = 0;
        }
    }

    fn happen(&mut self, event: Event) {
        // These stir only what they turn out to touch: see where they end.
        let is_traffic =
            matches!(event, Event::Wake(..) | Event::Arrive(..) | Event::Datagram(..) | Event::Echo(..) | Event::Look);
        if !is_traffic {
            self.stir_all();
        }
        match event {
            Event::Wake(node, epoch) => self.wake(node, epoch),
            Event::Arrive(stream, side) => self.arrive(stream, side),
            Event::Syn(syn) => self.syn(*syn),
            Event::SynAnswer(answer) => self.syn_answer(*answer),
            Event::Datagram(to, datagram) => self.datagram(to, datagram),
            Event::Echo(pod, echo) => self.echo(pod, echo.0, &echo.1),
            Event::Kernel(pod, epoch) => self.kernel_work(pod, epoch),
            Event::Objects(pod, version) => {
                if let Some(version) = self.readable(pod, version) {
                    self.tell_objects(pod, version);
                }
            }
            Event::LbObjects(pod, version) => {
                if let Some(version) = self.readable(pod, version).filter(|_| self.pods[pod].lb.alive) {
                    self.pods[pod].lb.view = Some(Rc::clone(&self.api.versions[version].made));
                    self.pods[pod].lb.version = version;
                    self.lb_follow(pod);
                }
            }
            Event::LbTell(pod) => {
                let lb = self.pods[pod].lb.told(self.now);
                if self.pods[pod].router.is_some() && lb != self.pods[pod].said {
                    self.pods[pod].said = lb.clone();
                    self.router(pod, Input::Lb(&lb));
                }
            }
            Event::BfdTell(pod, epoch) => {
                if self.pods[pod].epoch == epoch {
                    let status = self.pods[pod].bfd.status();
                    if status != self.pods[pod].told_bfd {
                        let before = std::mem::replace(&mut self.pods[pod].told_bfd, status.clone());
                        self.router(pod, Input::Bfd(&status));
                        self.check_supervised(pod, &before);
                    }
                }
            }
            Event::Begin(number) => self.begin(number),
            Event::Again(number) => self.again(number),
            Event::End(number) => self.end(number),
            Event::Clog(number, link, yes) => self.clog(number, link, yes),
            Event::Look => {
                self.look();
                self.at(self.now + 100 * MS, Event::Look);
            }
        }
    }

    /// The pod's or the gateway's time.
    pub fn local(&self, node: Node) -> Instant {
        match node {
            Node::Pod(pod) => self.pods[pod].clock.local(self.now),
            Node::Gateway(_) => Instant::from_nanos(self.now),
        }
    }

    /// Starts a router process.
    pub fn start_router(&mut self, pod: usize) {
        let seed = self.dice.roll();
        let now = self.now;
        let one = &mut self.pods[pod];
        one.forget();
        one.router = Some(pod::router(pod, seed));
        one.bfd = martlet_bfd::Sessions::new(seed ^ 0xbfd);
        one.started = now;
        one.adopted = one.kernel.learned().keys().copied().collect();
        one.untold.clone_from(&one.adopted);
        one.kernel.work.push_back(Work::Dump);
        let epoch = one.epoch;
        self.log.line(now, || format!("pod-{pod} router starts"));
        self.soon(500, 3000, Event::Kernel(pod, epoch));
        self.soon(1000, 60_000, Event::Objects(pod, None));
        self.soon(100, 50_000, Event::LbTell(pod));
    }

    /// Starts a load balancer process.
    pub fn start_lb(&mut self, pod: usize) {
        let lb = &mut self.pods[pod].lb;
        lb.alive = true;
        (lb.view, lb.word) = (None, None);
        self.soon(1000, 100_000, Event::LbObjects(pod, None));
    }

    /// Starts a gateway's process.
    pub fn start_gateway(&mut self, gateway: usize) {
        let seed = self.dice.roll();
        let now = self.local(Node::Gateway(gateway));
        let topology = self.script.topology.clone();
        self.gateways[gateway].forget();
        self.gateways[gateway].host = true;
        self.gateways[gateway].start(now, gateway, &topology, seed);
        self.log.line(self.now, || format!("gateway-{gateway} starts"));
        self.after_gateway(gateway);
    }

    /// Something changed for the load balancer: its word may be another.
    pub fn lb_follow(&mut self, pod: usize) {
        let one = &mut self.pods[pod];
        if one.lb.alive {
            one.lb.follow(&one.kernel.links);
        }
        self.check.note_truth(self.now, &self.api, &mut self.pods[pod]);
        self.soon(100, 2000, Event::LbTell(pod));
    }

    fn tell_objects(&mut self, pod: usize, version: usize) {
        if self.pods[pod].router.is_none() {
            return;
        }
        self.pods[pod].version = Some(version);
        if self.pods[pod].stopping.is_none() {
            self.pods[pod].configured.get_or_insert(self.now);
        }
        self.pods[pod].dirty = true;
        if self.api.versions[version].view.routers != self.api.versions[0].view.routers {
            // Who is no longer asked for, or not yet again, need not be waited for.
            self.pods[pod].untold.clear();
        }
        let made = Rc::clone(&self.api.versions[version].made);
        self.router(pod, Input::Intent(made.intent(&self.script.topology.clone())));
    }

    fn kernel_work(&mut self, pod: usize, epoch: u64) {
        let one = &mut self.pods[pod];
        if one.epoch != epoch || one.router.is_none() {
            return;
        }
        // What the router asks comes before what the kernel tells.
        let asked = one.kernel.work.iter().position(|work| !matches!(work, Work::Removed(_))).unwrap_or_default();
        let Some(work) = one.kernel.work.remove(asked) else { return };
        one.dirty = true;
        if !one.kernel.work.is_empty() {
            self.soon(50, 1000, Event::Kernel(pod, epoch));
        }
        match work {
            Work::Apply(changes) => {
                let failures = self.pods[pod].kernel.apply(&changes);
                if !failures.is_empty() {
                    self.pods[pod].kernel.hurt = Some(self.now);
                }
                self.router(pod, Input::Applied(&failures));
            }
            Work::Dump => {
                let snapshot = self.pods[pod].kernel.snapshot();
                let first = self.pods[pod].dumped.is_none();
                let learned = self.pods[pod].kernel.learned().len();
                self.pods[pod].dumped.get_or_insert(learned);
                self.router(pod, Input::Kernel(&snapshot));
                self.check.took(self.now, pod, first.then_some(learned), self.pods[pod].took);
            }
            Work::Removed(removed) => {
                let input = Input::KernelChanged { removed: &removed, appeared: &BTreeSet::new() };
                self.router(pod, input);
            }
        }
    }

    /// Gives the kernel of a pod something to do.
    pub fn kernel_push(&mut self, pod: usize, work: Work) {
        let epoch = self.pods[pod].epoch;
        if self.pods[pod].router.is_some() {
            self.pods[pod].kernel.work.push_back(work);
            self.soon(50, 1500, Event::Kernel(pod, epoch));
        }
    }

    fn wake(&mut self, node: Node, epoch: u64) {
        let now = self.local(node);
        match node {
            Node::Pod(pod) => {
                let one = &mut self.pods[pod];
                if one.epoch != epoch || one.wake != Some(self.now) {
                    return;
                }
                one.wake = None;
                if one.bfd.deadline().is_some_and(|at| at <= now) {
                    one.bfd.handle(now, martlet_bfd::Input::Timeout);
                    self.check.deadline("BFD", now, self.pods[pod].bfd.deadline());
                }
                let due = self.pods[pod].router.as_ref().and_then(martlet_router::core::Router::deadline);
                if due.is_some_and(|at| at <= now) {
                    let spins = &mut self.pods[pod].spins;
                    *spins = if spins.0 == self.now { (self.now, spins.1 + 1) } else { (self.now, 0) };
                    self.check.spins("the router", spins.1);
                    self.router(pod, Input::Timeout);
                    let deadline = self.pods[pod].router.as_ref().and_then(martlet_router::core::Router::deadline);
                    self.check.deadline("the router", now, deadline);
                } else {
                    self.after_pod(pod);
                }
            }
            Node::Gateway(gateway) => {
                let one = &mut self.gateways[gateway];
                if one.epoch != epoch || one.wake != Some(self.now) {
                    return;
                }
                one.wake = None;
                one.spins = if one.spins.0 == self.now { (self.now, one.spins.1 + 1) } else { (self.now, 0) };
                self.check.spins("the gateway's speaker", one.spins.1);
                if one.bfd.deadline().is_some_and(|at| at <= now) {
                    one.bfd.handle(now, martlet_bfd::Input::Timeout);
                }
                match &mut one.brain {
                    Some(Brain::Ours(speaker)) if speaker.deadline().is_some_and(|at| at <= now) => {
                        speaker.handle(now, BgpInput::Timeout);
                        let deadline = speaker.deadline();
                        self.check.deadline("the gateway's speaker", now, deadline);
                    }
                    Some(Brain::Naive(peer)) => {
                        let deaf = one.deaf > 0;
                        peer.tick(self.now, self.script.topology.pods, self.api.model.families(), deaf);
                    }
                    _ => {}
                }
                self.after_gateway(gateway);
            }
        }
    }

    /// Hands something to a router and does what it wants.
    pub fn router(&mut self, pod: usize, input: Input<'_>) {
        let now = self.local(Node::Pod(pod));
        // What follows from these is seen in what comes out.
        self.pods[pod].dirty |= !matches!(input, Input::Received(..) | Input::Timeout);
        if let Some(router) = &mut self.pods[pod].router {
            router.handle(now, input);
            self.after_pod(pod);
        }
    }

    /// Does what the processes of a pod want, then asks the invariants.
    pub fn after_pod(&mut self, pod: usize) {
        let mut outputs = 0_usize;
        while let Some(output) = self.pods[pod].router.as_mut().and_then(martlet_router::core::Router::poll) {
            outputs += 1;
            if !matches!(output, Output::Ready(_)) {
                self.stir(Node::Pod(pod));
            }
            self.pod_output(pod, output);
            if outputs > ENDLESS.0 {
                break;
            }
        }
        self.check.outputs(pod, outputs);
        if self.pods[pod].router.is_some() {
            self.pod_bfd(pod);
        }
        let ready: Vec<u64> = self.pods[pod].wires.iter().filter(|(_, wire)| wire.ready).map(|(id, _)| *id).collect();
        for id in ready {
            self.flush(Node::Pod(pod), id);
        }
        let one = &self.pods[pod];
        if let Some(router) = &one.router
            && let Some(at) = [router.deadline(), one.bfd.deadline()].into_iter().flatten().min()
        {
            let at = one.clock.global(at).max(self.now);
            if one.wake.is_none_or(|wake| wake > at) {
                let epoch = one.epoch;
                self.pods[pod].wake = Some(at);
                self.at(at, Event::Wake(Node::Pod(pod), epoch));
            }
        }
        self.check_pod(pod);
    }

    fn pod_output(&mut self, pod: usize, output: Output) {
        let node = Node::Pod(pod);
        match output {
            Output::Connect(id, transport) => {
                let ipv4 = transport.address.is_ipv4();
                let other_source = transport.source.is_some_and(|source| source != pod_address(pod, ipv4));
                if other_source || transport.remote_port != PORT {
                    return self.connect_in_vain(node, id.0);
                }
                // Who signs is not answered by one that does not.
                let to = self.node_at(transport.address).filter(|_| transport.key.is_none());
                self.connect(node, id.0, to, ipv4);
            }
            Output::Accept(ticket, id, _) => self.accept(node, ticket.0, id.0),
            Output::Refuse(ticket) => self.refuse(node, ticket.0),
            Output::Rekey(id, _, key) => self.rekey(node, id.0, key.is_some()),
            Output::Connectivity(_) => {}
            Output::Ready(id) => self.make_ready(node, id.0),
            Output::Close(id) => self.close(node, id.0),
            Output::Listen(listeners) => self.pods[pod].listeners = listeners,
            Output::SetBfd(sessions) => {
                let now = self.local(node);
                self.pods[pod].bfd.handle(now, martlet_bfd::Input::SetSessions(&sessions));
                let epoch = self.pods[pod].epoch;
                self.soon(10, 50, Event::BfdTell(pod, epoch));
            }
            Output::Apply(changes) => {
                let count = changes.len();
                self.kernel_push(pod, Work::Apply(changes));
                self.check.batch(count, self.pods[pod].kernel.batches());
            }
            Output::Dump => self.kernel_push(pod, Work::Dump),
            Output::Event(event) => {
                let local = self.now;
                self.log.line(local, || {
                    let subject = event.subject();
                    let space = if subject.is_empty() { "" } else { " " };
                    format!("pod-{pod} {}{space}{subject} {event}", event.kind())
                });
                self.check.event(self.now, &mut self.pods[pod], &event);
            }
            Output::Stopped => self.router_ended(pod),
        }
    }

    fn pod_bfd(&mut self, pod: usize) {
        let mut changed = false;
        while let Some(output) = self.pods[pod].bfd.poll() {
            match output {
                BfdOutput::Transmit(id, payload) => {
                    let to = self.node_at(id.remote);
                    let link = self.pods[pod].external().filter(|link| link.up && link.carrier);
                    let from = pod_address(pod, id.remote.is_ipv4());
                    let source = id.local.unwrap_or(from);
                    if source == from && link.is_some_and(|link| id.interface.as_ref() == Some(&link.name)) {
                        self.check.bfd_sent(self.now, pod, id.remote, &payload);
                        self.send_datagram(Node::Pod(pod), to, (from, id.remote), payload);
                    }
                }
                BfdOutput::Echo(id, payload) => {
                    let Some(to @ Node::Gateway(gateway)) = self.node_at(id.remote) else { continue };
                    let (there, back) = (self.path(Node::Pod(pod), to), self.path(to, Node::Pod(pod)));
                    let lost = there.loses(&mut self.dice) || back.loses(&mut self.dice);
                    if !lost && self.gateways[gateway].host {
                        let wait = there.travel(&mut self.dice) + back.travel(&mut self.dice);
                        self.at(self.now + wait, Event::Echo(pod, Box::new((id.remote, payload))));
                    }
                }
                BfdOutput::Changed(change) => {
                    changed = true;
                    self.check.bfd_changed(self.now, &self.api, pod, &change);
                }
            }
        }
        if changed {
            let epoch = self.pods[pod].epoch;
            self.soon(10, 50, Event::BfdTell(pod, epoch));
        }
    }

    fn echo(&mut self, pod: usize, remote: IpAddr, payload: &[u8]) {
        let Some(link) = self.pods[pod].external().filter(|link| link.up && link.carrier) else { return };
        let interface = Some(link.name.clone());
        let local = pod_address(pod, remote.is_ipv4());
        let meta = Meta { remote: local, local, interface, ttl: 254, multihop: false };
        if self.pods[pod].router.is_some() {
            let now = self.local(Node::Pod(pod));
            self.pods[pod].bfd.handle(now, martlet_bfd::Input::EchoReceived(&meta, payload));
            self.after_pod(pod);
        }
    }

    /// Does what the process of a gateway wants.
    pub fn after_gateway(&mut self, gateway: usize) {
        let node = Node::Gateway(gateway);
        let mut outputs = 0_usize;
        while outputs <= ENDLESS.0 {
            outputs += 1;
            match &mut self.gateways[gateway].brain {
                Some(Brain::Ours(speaker)) => {
                    let Some(output) = speaker.poll() else { break };
                    if !matches!(output, BgpOutput::Ready(_)) {
                        self.stir(node);
                    }
                    self.gateway_output(gateway, output);
                }
                Some(Brain::Naive(peer)) => {
                    if peer.wants.is_empty() {
                        break;
                    }
                    for want in std::mem::take(&mut peer.wants) {
                        if !matches!(&want, Want::Send(_, octets) if is_keepalive(octets)) {
                            self.stir(node);
                        }
                        match want {
                            Want::Send(stream, octets) => self.naive_send(gateway, stream, octets),
                            Want::Close(stream) => self.close(node, u64::try_from(stream).unwrap_or_default()),
                            Want::Connect(pod, ipv4) => {
                                self.next += 1;
                                let id = u64::try_from(self.next).unwrap_or_default();
                                self.connect(node, id, Some(Node::Pod(pod)), ipv4);
                            }
                        }
                    }
                }
                None => break,
            }
        }
        let Gateway { brain, states, .. } = &mut self.gateways[gateway];
        match brain {
            None => return,
            Some(Brain::Ours(speaker)) if outputs > 1 => {
                for (id, last) in states {
                    let state = speaker.state(id).unwrap_or_default();
                    if state != *last {
                        self.check.saw(format!("fsm {last:?} -> {state:?}"));
                        *last = state;
                    }
                }
            }
            Some(_) => {}
        }
        self.gateway_bfd(gateway);
        let ready: Vec<u64> =
            self.gateways[gateway].wires.iter().filter(|(_, wire)| wire.ready).map(|(id, _)| *id).collect();
        for id in ready {
            self.flush(node, id);
        }
        let one = &self.gateways[gateway];
        let brain = match &one.brain {
            Some(Brain::Ours(speaker)) => speaker.deadline(),
            Some(Brain::Naive(_)) => Some(Instant::from_nanos(self.now + 500 * MS)),
            None => None,
        };
        if let Some(at) = [brain, one.bfd.deadline()].into_iter().flatten().min() {
            let at = at.as_nanos().max(self.now);
            if one.wake.is_none_or(|wake| wake > at) {
                let epoch = one.epoch;
                self.gateways[gateway].wake = Some(at);
                self.at(at, Event::Wake(node, epoch));
            }
        }
    }

    fn gateway_output(&mut self, gateway: usize, output: BgpOutput) {
        let node = Node::Gateway(gateway);
        match output {
            BgpOutput::Connect(name, id) => {
                if let Some((pod, ipv4)) = crate::gateway::pod_of(&name.0) {
                    self.connect(node, id.0, Some(Node::Pod(pod)), ipv4);
                }
            }
            BgpOutput::Accept(ticket, id) => self.accept(node, ticket.0, id.0),
            BgpOutput::Refuse(ticket) => self.refuse(node, ticket.0),
            BgpOutput::Ready(id) => self.make_ready(node, id.0),
            BgpOutput::Close(id) => self.close(node, id.0),
            BgpOutput::RoutesChanged => {
                if let Some(Brain::Ours(speaker)) = &mut self.gateways[gateway].brain {
                    while !speaker.changed(1000).is_empty() {}
                }
            }
            BgpOutput::Event(event) => {
                self.check.bgp_event(&event);
                let now = self.now;
                self.log.line(now, || format!("gateway-{gateway} {}", martlet_router::core::Event::Bgp(event.clone())));
            }
        }
    }

    fn gateway_bfd(&mut self, gateway: usize) {
        let mut changed = false;
        while let Some(output) = self.gateways[gateway].bfd.poll() {
            match output {
                BfdOutput::Transmit(id, payload) => {
                    let from = gateway_address(gateway, id.remote.is_ipv4());
                    let to = self.node_at(id.remote);
                    self.send_datagram(Node::Gateway(gateway), to, (from, id.remote), payload);
                }
                BfdOutput::Echo(..) => {}
                BfdOutput::Changed(_) => changed = true,
            }
        }
        self.stirred += u64::from(changed);
        let local = self.local(Node::Gateway(gateway));
        let Gateway { brain, bfd, .. } = &mut self.gateways[gateway];
        if changed && let Some(Brain::Ours(speaker)) = brain {
            let states = bfd.status().into_iter().filter_map(|(id, status)| {
                let ipv4 = id.remote.is_ipv4();
                let pod = (0..self.script.topology.pods).find(|pod| pod_address(*pod, ipv4) == id.remote)?;
                let admin = [status.state, status.remote_state].contains(&martlet_bfd::State::AdminDown);
                let state = match status.state {
                    martlet_bfd::State::Up => martlet_bgp::BfdState::Up,
                    _ if admin => martlet_bgp::BfdState::AdminDown,
                    _ => martlet_bgp::BfdState::Down,
                };
                Some((NeighborId::new(&pod_name(pod, ipv4)), state))
            });
            speaker.handle(local, BgpInput::SetBfd(&states.collect()));
            self.after_gateway(gateway);
        }
    }

    /// Who has this address.
    pub fn node_at(&self, address: IpAddr) -> Option<Node> {
        let ipv4 = address.is_ipv4();
        let gateway = (0..self.gateways.len()).find(|number| gateway_address(*number, ipv4) == address);
        let pod = || (0..self.pods.len()).find(|number| pod_address(*number, ipv4) == address).map(Node::Pod);
        gateway.map(Node::Gateway).or_else(pod)
    }

    /// The path from one to the other.
    pub fn path(&self, from: Node, to: Node) -> Path {
        let (pod, gateway, back) = match (from, to) {
            (Node::Pod(pod), Node::Gateway(gateway)) => (pod, gateway, 0),
            (Node::Gateway(gateway), Node::Pod(pod)) => (pod, gateway, 1),
            _ => return Path { cut: true, ..Path::default() },
        };
        self.paths[pod * self.gateways.len() + gateway][back]
    }

    fn send_datagram(&mut self, from: Node, to: Option<Node>, (source, target): (IpAddr, IpAddr), payload: Vec<u8>) {
        let Some(to) = to else { return };
        let path = self.path(from, to);
        self.log.datagram(self.now, source, target, &payload);
        if path.loses(&mut self.dice) {
            return;
        }
        let meta = Meta { remote: source, local: target, interface: None, ttl: 255, multihop: false };
        let mut wait = path.travel(&mut self.dice);
        if path.reorder > 0 && self.dice.chance(path.reorder, 100) {
            wait += self.dice.below(400 * MS);
        }
        let twice = path.duplicate > 0 && self.dice.chance(path.duplicate, 100);
        let copy = twice.then(|| Box::new((meta.clone(), payload.clone())));
        self.at(self.now + wait, Event::Datagram(to, Box::new((meta, payload))));
        if let Some(copy) = copy {
            self.at(self.now + wait + MS, Event::Datagram(to, copy));
        }
    }

    fn datagram(&mut self, to: Node, mut datagram: Box<(Meta, Vec<u8>)>) {
        let (meta, payload) = &mut *datagram;
        let from = self.node_at(meta.remote);
        if let Some(path) = from.map(|from| self.path(from, to)) {
            if path.clog {
                return self.at(self.now + 20 * MS, Event::Datagram(to, datagram));
            }
            if path.cut {
                return;
            }
        }
        let now = self.local(to);
        match to {
            Node::Pod(pod) => {
                let Some(link) = self.pods[pod].external().filter(|link| link.up && link.carrier) else { return };
                meta.interface = Some(Arc::clone(&link.name));
                if self.pods[pod].router.is_some() {
                    if !self.wants_signature(pod, meta.remote) {
                        self.check.bfd_heard(self.now, pod, meta.remote, payload);
                    }
                    self.pods[pod].bfd.handle(now, martlet_bfd::Input::Received(meta, payload));
                    self.after_pod(pod);
                }
            }
            Node::Gateway(gateway) => {
                meta.interface = Some(Arc::clone(&self.gateways[gateway].interface));
                if self.gateways[gateway].brain.is_some() {
                    self.gateways[gateway].bfd.handle(now, martlet_bfd::Input::Received(meta, payload));
                    self.after_gateway(gateway);
                }
            }
        }
    }

    /// Whether a pod takes only signed BFD packets from there: gateways sign none.
    fn wants_signature(&self, pod: usize, remote: IpAddr) -> bool {
        let Some(version) = self.pods[pod].version else { return false };
        self.api.versions[version].made.signs.contains(&remote)
    }
}
