//! The router without sockets, threads or a clock: gate -> Speaker -> plan.
//!
//! [`Router`] holds whole values (Intent, what the load balancer, BFD and the kernel say) and compares what should follow
//! from them with what it told before; only the wire has edges, and those it passes to the [`Speaker`]. Withdrawals never
//! wait: they are given to the speaker in the step that learned their reason. It knows nothing of how bytes, changes and
//! messages travel (see `driver`).

mod connections;
pub mod explain;
mod io;
mod lesson;
mod life;
mod routes;
mod settle;
mod sighting;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use martlet_api::readiness::Families;
use martlet_bfd::{SessionConfig, SessionId, SessionStatus, State};
use martlet_bgp::{
    BfdState, ConnectionId, Family, Input as BgpInput, Local, NeighborId, NeighborState, Output as BgpOutput, Speaker,
    Ticket,
};
use martlet_clock::Instant;
use martlet_netlink::{Object, Snapshot};

pub use io::{Caller, Event, Incoming, Input, Listener, Listeners, Output};
pub use status::{BfdView, PeerView, RouteView, Status, VipView};

use crate::gate::{Gate, Lb, Question, Verdict};
use crate::intent::{Identity, Intent, Neighbor};
use crate::mirror::{Learned, Mirror};
use crate::plan::{self, Links, METRIC};
use life::Life;

/// After the end of a session, the time until the next is tried: a neighbour that is still cleaning up behind the old one
/// (FRR 8.4: a dynamic neighbour and its BFD session) loses the new one otherwise.
const PACE: Duration = Duration::from_millis(100);
/// Connects in a row without an answer, from which on it is said.
const UNANSWERED: u32 = 5;
/// Strangers that are named in the log; more are only refused.
const STRANGERS: usize = 64;

/// What a router is told once, at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who it is.
    pub identity: Identity,
    /// The interface whose address may become the router id.
    pub external_interface: Arc<str>,
    /// The table of learned routes.
    pub table: u32,
    /// How long routes of a former router are kept without being told again.
    pub adopt: Duration,
    /// How long VIPs are announced with `GRACEFUL_SHUTDOWN` before they are withdrawn at the end; zero: not at all.
    pub leave: Duration,
    /// How long forwarding goes on after the VIPs were withdrawn at the end.
    pub drain: Duration,
    /// Decides jitter.
    pub seed: u64,
}

/// What is known of a neighbour's session.
#[derive(Clone, Debug, Default)]
struct Session {
    state: NeighborState,
    end_of_rib: BTreeSet<Family>,
    /// The NOTIFICATION that ended it last.
    said: Option<lesson::Said>,
}

/// An open or opening connection.
#[derive(Clone, Debug)]
struct Connection {
    neighbor: NeighborId,
    open: bool,
    interface: Arc<str>,
    local: Option<IpAddr>,
}

/// The router.
#[derive(Debug)]
pub struct Router {
    config: Config,
    speaker: Speaker,
    mirror: Mirror,
    gate: Gate,
    links: Links,
    intent: Option<Intent>,
    /// The Intent is in force: it was given and the kernel was seen.
    configured: bool,
    identifier: Option<std::net::Ipv4Addr>,
    lb: Lb,
    bfd: BTreeMap<SessionId, SessionStatus>,
    sessions: BTreeMap<NeighborId, Session>,
    connections: BTreeMap<ConnectionId, Connection>,
    tickets: BTreeMap<Ticket, (NeighborId, IpAddr)>,
    /// Connects in a row that nobody answered.
    unanswered: BTreeMap<NeighborId, u32>,
    /// When a neighbour whose session ended may be tried again.
    paced: BTreeMap<NeighborId, Instant>,
    /// Connections that wait for that.
    held: BTreeMap<ConnectionId, (Instant, NeighborId)>,
    /// The BFD sessions that were asked for.
    supervised: BTreeMap<SessionId, SessionConfig>,
    sightings: sighting::Sightings,
    strangers: BTreeSet<IpAddr>,
    listeners: Listeners,
    verdicts: BTreeMap<IpNet, Verdict>,
    announced: BTreeSet<IpNet>,
    connectivity: Families,
    ways: settle::Ways,
    statics_up: BTreeSet<Arc<str>>,
    routes: routes::Backlog,
    life: Life,
    reconsider: bool,
    outputs: VecDeque<Output>,
}

impl Router {
    /// A router that knows nothing yet.
    pub fn new(config: Config) -> Self {
        let local = Local { router_id: std::net::Ipv4Addr::new(0, 0, 0, 1), forwarding_preserved: false };
        Self {
            speaker: Speaker::new(local, config.seed),
            mirror: Mirror::new(Learned { table: config.table, metric: METRIC }),
            gate: Gate::default(),
            links: Links::default(),
            intent: None,
            configured: false,
            identifier: None,
            lb: Lb::unknown(),
            bfd: BTreeMap::new(),
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            tickets: BTreeMap::new(),
            paced: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            held: BTreeMap::new(),
            supervised: BTreeMap::new(),
            sightings: sighting::Sightings::default(),
            strangers: BTreeSet::new(),
            listeners: Listeners::new(),
            verdicts: BTreeMap::new(),
            announced: BTreeSet::new(),
            connectivity: Families::default(),
            ways: settle::Ways::default(),
            statics_up: BTreeSet::new(),
            routes: routes::Backlog::default(),
            life: Life::Running,
            reconsider: false,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// Takes note of what happened at `now`; what follows from it is in [`Router::poll`].
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Intent(intent) => self.on_intent(now, intent),
            Input::Lb(lb) => self.on_lb(lb),
            Input::Bfd(sessions) => self.on_bfd(now, sessions),
            Input::Kernel(snapshot) => self.on_kernel(now, snapshot),
            Input::Links(links) => self.on_links(now, Links::new(links).beyond_as(&self.links)),
            Input::KernelChanged { removed, appeared } => self.on_kernel_changed(now, removed, appeared),
            Input::Applied(failures) => self.on_applied(now, failures),
            Input::Connected(id, local, remote) => self.on_connected(now, id, local, remote),
            Input::Incoming(incoming) => self.on_incoming(now, &incoming),
            Input::Received(id, bytes) => self.speaker.handle(now, BgpInput::Received(id, bytes)),
            Input::Closed(id, reason) => {
                if let Some(connection) = self.connections.get(&id) {
                    self.unanswered.remove(&connection.neighbor);
                }
                self.forget(id);
                self.speaker.handle(now, BgpInput::Closed(id, reason));
            }
            Input::Refresh(neighbor) => self.speaker.handle(now, BgpInput::Refresh(neighbor)),
            Input::Reset(neighbor, text) => self.speaker.handle(now, BgpInput::Reset(neighbor, text)),
            Input::Stop => self.on_stop(now),
            Input::Timeout => self.on_timeout(now),
        }
        self.drain_speaker(now);
        if std::mem::take(&mut self.reconsider) {
            self.decide(now);
            self.drain_speaker(now);
        }
        self.plan_routes(now);
        self.settle(now);
        self.end_if_done(now);
    }

    /// The next thing to do or to tell; call it until it is `None`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        [
            self.speaker.deadline(),
            self.gate.deadline(),
            self.mirror.deadline(),
            self.routes.deadline,
            self.life.deadline(),
            self.ways.deadline(),
            self.sightings.deadline(),
        ]
        .into_iter()
        .chain([self.routes.adoption, self.held.values().map(|(at, _)| *at).min()])
        .flatten()
        .min()
    }

    /// What waits for `connection`: see [`Speaker::transmit`].
    pub fn transmit(&mut self, now: Instant, connection: ConnectionId, buffer: &mut BytesMut, room: usize) -> bool {
        self.speaker.transmit(now, connection, buffer, room)
    }

    /// Whether an Intent is in force and the end has not begun.
    pub fn is_running(&self) -> bool {
        self.configured && self.life == Life::Running
    }

    /// Which family has a gateway router that is Up.
    pub const fn connectivity(&self) -> Families {
        self.connectivity
    }

    fn forget(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        self.held.remove(&id);
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn on_timeout(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.speaker.deadline()) {
            self.speaker.handle(now, BgpInput::Timeout);
        }
        self.reconsider |= due(self.gate.deadline());
        if due(self.routes.adoption) {
            self.end_adoption(now);
        }
        self.mirror.expire(now);
        self.on_life_timeout(now);
        self.look_again(now);
        self.paced.retain(|_, at| *at > now);
        let held = std::mem::take(&mut self.held).into_iter();
        let (due, held): (BTreeMap<_, _>, _) = held.partition(|(_, (at, _))| *at <= now);
        self.held = held;
        for (connection, (_, neighbor)) in due {
            self.connect(now, &neighbor, connection);
        }
    }

    fn on_intent(&mut self, now: Instant, intent: &Intent) {
        if self.intent.as_ref() == Some(intent) {
            return;
        }
        if self.life != Life::Running {
            // Who leaves changes nothing any more, but what is no longer wanted is withdrawn at once even now.
            if let Some(old) = &mut self.intent {
                old.vips.retain(|vip| intent.vips.contains(vip));
                self.reconsider = true;
            }
            return;
        }
        let before = self.intent.replace(intent.clone());
        if self.mirror.is_dumped() {
            self.configure(now);
            if let Some(before) = before {
                self.update_transports(now, &before);
            }
        }
    }

    /// Puts the Intent in force. The kernel has been seen.
    fn configure(&mut self, now: Instant) {
        let Some(intent) = self.intent.clone() else { return };
        let first = !std::mem::replace(&mut self.configured, true);
        self.strangers.clear();
        for (name, reason) in &intent.withheld {
            self.tell(Event::NotTried(name.clone(), reason.clone()));
        }
        self.mirror.want_fixed(&plan::fixed(&intent));
        self.mirror.settle();
        if first {
            self.start_adoption(now);
        }
        self.speaker.handle(now, BgpInput::SetOwn(&intent.vips));
        let neighbors = intent.neighbors.iter().map(|(id, neighbor)| (id.clone(), neighbor.config.clone())).collect();
        // Before the neighbours: one that is Up by BFD already need not wait for the next word.
        self.set_bfd(now, &intent);
        self.speaker.handle(now, BgpInput::SetNeighbors(&neighbors));
        self.sessions.retain(|id, _| intent.neighbors.contains_key(id));
        self.unanswered.retain(|id, _| intent.neighbors.contains_key(id));
        self.sightings.retain(&intent.bfd);
        self.set_bfd(now, &intent);
        self.supervise();
        self.listen();
        self.replan();
        self.reconsider = true;
    }

    fn on_lb(&mut self, lb: &Lb) {
        if *lb == self.lb {
            return;
        }
        let text = match (&self.lb, lb) {
            (_, Lb::Ungated) => Some("there is none to ask (empty URL): every VIP counts as ready".into()),
            (_, Lb::Silent(why)) => Some(format!("nothing is ready: {why}")),
            (Lb::Said(before), Lb::Said(said)) if before.draining == said.draining => None,
            (_, Lb::Said(said)) if said.draining => Some("it is draining".into()),
            (_, Lb::Said(said)) => Some(format!("it speaks for Gateway {}", said.gateway)),
        };
        if let Some(text) = text {
            self.tell(Event::Lb(text));
        }
        self.lb = lb.clone();
        self.reconsider = true;
    }

    fn on_bfd(&mut self, now: Instant, sessions: &BTreeMap<SessionId, SessionStatus>) {
        // Up anew since the last word: the Down in between was not seen, but BGP must end its session by it (RFC 5882
        // section 4.2). A static gateway is not bounced: it is Up now.
        let is_anew = |id: &SessionId, after: &SessionStatus| {
            let up = |status: &SessionStatus| status.state == State::Up;
            self.bfd.get(id).is_some_and(|before| up(before) && up(after) && before.since != after.since)
        };
        let mut between = sessions.clone();
        for (id, status) in &mut between {
            if is_anew(id, status) {
                status.state = State::Down;
            }
        }
        if between != *sessions {
            self.take_bfd(now, &between);
            self.drain_speaker(now);
        }
        self.take_bfd(now, sessions);
    }

    fn take_bfd(&mut self, now: Instant, sessions: &BTreeMap<SessionId, SessionStatus>) {
        for (id, status) in sessions {
            let from = self.bfd.get(id).map_or(State::Down, |before| before.state);
            if from != status.state {
                self.tell(Event::Bfd {
                    session: id.clone(),
                    from,
                    to: status.state,
                    diagnostic: status.diagnostic,
                    remote: status.remote_state,
                });
            }
        }
        self.bfd = sessions.clone();
        if let Some(intent) = self.intent.take() {
            self.set_bfd(now, &intent);
            self.intent = Some(intent);
        }
        self.reconsider = true;
    }

    fn set_bfd(&mut self, now: Instant, intent: &Intent) {
        let supervised = intent.neighbors.iter().filter_map(|(id, neighbor)| Some((id, neighbor.bfd.as_ref()?)));
        let states = supervised.map(|(id, session)| (id.clone(), self.bfd_state(session))).collect();
        self.speaker.handle(now, BgpInput::SetBfd(&states));
    }

    /// BFD sessions on links that carry packets: one that stayed Up over a loss of carrier would end the next BGP session.
    fn supervise(&mut self) {
        let Some(intent) = &self.intent else { return };
        let is_live = |id: &SessionId| id.interface.as_ref().is_none_or(|name| self.links.live(name).is_ok());
        let told = |(id, config): (&SessionId, &SessionConfig)| (id.clone(), self.sightings.told(id, config));
        let wanted: BTreeMap<_, _> = intent.bfd.iter().filter(|(id, _)| is_live(id)).map(told).collect();
        if wanted != self.supervised {
            self.supervised.clone_from(&wanted);
            self.outputs.push_back(Output::SetBfd(wanted));
        }
    }

    /// What BFD says of a path. Administratively down, at either end, says nothing (RFC 5882 section 3.2).
    fn bfd_state(&self, session: &SessionId) -> BfdState {
        match self.bfd.get(session) {
            Some(status) if status.state == State::Up => BfdState::Up,
            Some(status) if status.state == State::AdminDown || status.remote_state == State::AdminDown => {
                BfdState::AdminDown
            }
            _ => BfdState::Down,
        }
    }

    fn on_kernel(&mut self, now: Instant, snapshot: &Snapshot) {
        let links = Links::new(&snapshot.links).beyond(&snapshot.main);
        let first = !self.mirror.is_dumped();
        let adopted = self.mirror.dumped(&snapshot.objects);
        if first {
            self.links = links;
            if adopted > 0 {
                self.tell(Event::Adopted(adopted));
            }
            let addresses = self.links.get(&self.config.external_interface).map(|link| &link.addresses);
            let router_id = self.config.identity.choose(addresses.into_iter().flatten());
            self.identifier = Some(router_id);
            self.tell(Event::RouterId(router_id));
            self.speaker.handle(now, BgpInput::SetLocal(&Local { router_id, forwarding_preserved: adopted > 0 }));
            self.configure(now);
        } else {
            self.on_links(now, links);
        }
    }

    fn on_links(&mut self, now: Instant, links: Links) {
        if !self.mirror.is_dumped() || links == self.links {
            return;
        }
        let before = std::mem::replace(&mut self.links, links);
        if self.configured {
            self.close_dead(now, &before);
            self.supervise();
            self.listen();
            self.replan();
            self.reconsider = true;
        }
    }

    fn on_kernel_changed(&mut self, now: Instant, removed: &BTreeSet<Object>, appeared: &BTreeSet<Object>) {
        let mut repaired = 0;
        for object in removed {
            if self.mirror.gone(now, object) {
                self.tell(Event::KernelConflict(object.clone()));
            } else if self.mirror.is_wanted(object) {
                repaired += 1;
            }
        }
        for object in appeared {
            self.mirror.appeared(object);
        }
        if repaired > 0 {
            self.tell(Event::Repaired(repaired));
        }
    }

    /// Whether there is a BGP neighbour of that name.
    pub fn has_neighbor(&self, id: &NeighborId) -> bool {
        self.neighbor(id).is_some()
    }

    fn neighbor(&self, id: &NeighborId) -> Option<&Neighbor> {
        self.intent.as_ref()?.neighbors.get(id)
    }

    fn drain_speaker(&mut self, now: Instant) {
        while let Some(output) = self.speaker.poll() {
            match output {
                BgpOutput::Connect(neighbor, id) => self.connect(now, &neighbor, id),
                BgpOutput::Accept(ticket, id) => self.accept(ticket, id),
                BgpOutput::Refuse(ticket) => {
                    self.tickets.remove(&ticket);
                    self.outputs.push_back(Output::Refuse(ticket));
                }
                BgpOutput::Ready(id) => self.outputs.push_back(Output::Ready(id)),
                BgpOutput::Close(id) => {
                    self.count_unanswered(id);
                    self.forget(id);
                    self.outputs.push_back(Output::Close(id));
                }
                BgpOutput::RoutesChanged => self.routes.changed = true,
                BgpOutput::Event(event) => self.on_event(now, event),
            }
        }
    }

    fn on_event(&mut self, now: Instant, event: martlet_bgp::Event) {
        match &event {
            martlet_bgp::Event::State { neighbor, from, to } => {
                if *from == NeighborState::Established {
                    self.paced.insert(neighbor.clone(), now + PACE);
                }
                self.look(now, neighbor, *to);
                let session = self.sessions.entry(neighbor.clone()).or_default();
                session.state = *to;
                if *to != NeighborState::Established {
                    session.end_of_rib.clear();
                }
                self.reconsider = true;
            }
            martlet_bgp::Event::Closed { neighbor, code: Some(code), sent, text, .. } => {
                if let Some(said) = lesson::Said::new(*code, *sent, text) {
                    self.sessions.entry(neighbor.clone()).or_default().said = Some(said);
                }
            }
            martlet_bgp::Event::EndOfRib { neighbor, family } => {
                self.sessions.entry(neighbor.clone()).or_default().end_of_rib.insert(*family);
            }
            _ => {}
        }
        self.tell(Event::Bgp(event));
    }

    /// Whether a BGP neighbour is Up: Established, and BFD Up if it is switched on.
    fn is_up(&self, id: &NeighborId, neighbor: &Neighbor) -> bool {
        let established = self.sessions.get(id).is_some_and(|session| session.state == NeighborState::Established);
        established && neighbor.bfd.as_ref().is_none_or(|session| self.bfd_state(session) != BfdState::Down)
    }

    /// Asks the gate, and tells the speaker and the load balancer what changed.
    fn decide(&mut self, now: Instant) {
        if !self.configured {
            return;
        }
        let Some(intent) = self.intent.take() else { return };
        let mut connectivity = Families::default();
        for (id, neighbor) in &intent.neighbors {
            if self.is_up(id, neighbor) {
                connectivity.ipv4 |= neighbor.config.families.contains(&Family::Ipv4);
                connectivity.ipv6 |= neighbor.config.families.contains(&Family::Ipv6);
            }
        }
        let statics_up = self.statics_up(&intent);
        for gateway in statics_up.iter().filter_map(|name| intent.statics.get(name)) {
            connectivity.ipv4 |= gateway.address.is_ipv4();
            connectivity.ipv6 |= gateway.address.is_ipv6();
        }
        if statics_up != self.statics_up {
            self.statics_up = statics_up;
            self.replan_defaults();
        }
        if connectivity != self.connectivity {
            self.connectivity = connectivity;
            self.tell(Event::Connectivity(connectivity));
            self.outputs.push_back(Output::Connectivity(connectivity));
        }
        let question = Question {
            gateway: &intent.gateway.name,
            vips: &intent.vips,
            lb: &self.lb,
            connectivity,
            egress: intent.settings.require_egress_route.then(|| self.egress()),
            stopping: !self.life.announces(),
        };
        let verdicts = self.gate.decide(now, &question);
        self.intent = Some(intent);
        let announced: BTreeSet<IpNet> =
            verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(vip, _)| *vip).collect();
        if announced != self.announced {
            self.speaker.handle(now, BgpInput::SetAnnounced(&announced));
            self.announced = announced;
        }
        self.tell_verdicts(verdicts);
    }

    fn tell_verdicts(&mut self, verdicts: BTreeMap<IpNet, Verdict>) {
        for (vip, verdict) in &verdicts {
            if self.verdicts.get(vip) != Some(verdict) {
                self.tell(match verdict {
                    Ok(()) => Event::Announced(*vip),
                    Err(reason) => Event::Withheld(*vip, reason.clone()),
                });
            }
        }
        self.verdicts = verdicts;
    }

    /// The static gateways that are Up: BFD Up, or without BFD the link has carrier.
    fn statics_up(&self, intent: &Intent) -> BTreeSet<Arc<str>> {
        let is_up = |gateway: &crate::intent::Static| {
            let supervised = gateway.bfd.as_ref().is_none_or(|session| self.bfd_state(session) == BfdState::Up);
            supervised && self.links.resolve(gateway.address, &gateway.interface, false, 1).is_ok()
        };
        intent.statics.iter().filter(|(_, gateway)| is_up(gateway)).map(|(name, _)| name.clone()).collect()
    }
}
