//! The plain speaker: BGP (and BFD) without Kubernetes, load balancer or, unless asked, kernel routes.
//!
//! The same [`martlet_bgp::Speaker`] as in the router, driven by the same wires, with a configuration that does not change:
//! a lab gateway, a looking glass, the subject of benchmarks. It knows no file format; see the command line.

use std::collections::{BTreeMap, BTreeSet, hash_map::RandomState};
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use martlet_bfd::{SessionConfig, SessionId, SessionStatus, State};
use martlet_bgp::{
    BfdState, CloseReason, ConnectionId, Endpoints, Event, Input, Local, NeighborConfig, NeighborId, Output, Speaker,
    Ticket,
};
use martlet_clock::Instant;
use martlet_netlink::{NextHop, Object, Owner, Route, RouteKind};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::bfd_io;
use crate::core::Caller;
use crate::driver::{Accepted, Bfd as _, Clock, Kernel as _, Net as _, News, Signal};
use crate::intent::{Key, Transport};
use crate::mirror::{Learned, Mirror};
use crate::net_plain::PlainNet;
use crate::plan::{Links, METRIC, on_link};
use crate::watch::{BfdTask, KernelTask};
use crate::wires::{Happened, Wires};

/// The protocol number of its routes in the kernel: not the router's, both may share a machine.
const PROTOCOL: u8 = 204;
/// The most neighbours that dynamic ones may grow to.
const MAX_DYNAMIC: usize = 4096;
/// How many changed prefixes are planned for the kernel in a turn.
const PULL: usize = 1000;
/// BGP turns in a row while others wait.
const BGP_TURNS: u32 = 64;

/// One neighbour, or a whole prefix of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// What the speaker knows.
    pub config: NeighborConfig,
    /// Its address; of a dynamic one the prefix that it comes from.
    pub address: IpNet,
    /// Whether any address of the prefix may connect.
    pub dynamic: bool,
    /// The port that we connect to.
    pub port: u16,
    /// TCP MD5.
    pub key: Option<Key>,
    /// Our address.
    pub source: Option<IpAddr>,
    /// TTL of a multihop session.
    pub multihop: Option<u8>,
    /// The kernel table that its routes are written to; else that of [`Options`].
    pub kernel_table: Option<u32>,
    /// BFD.
    pub bfd: Option<SessionConfig>,
}

/// What it is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Who it is.
    pub local: Local,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Its neighbours.
    pub neighbors: BTreeMap<NeighborId, Neighbor>,
    /// What it announces of its own.
    pub originate: BTreeSet<IpNet>,
    /// The kernel table that learned routes are written to. All tables that are named are the same one.
    pub kernel_table: Option<u32>,
    /// Whether every route that is learned or lost is an event.
    pub tell_routes: bool,
    /// What neighbours are told at the end.
    pub goodbye: String,
}

/// Hears every event; may look at the speaker for what the event speaks of.
pub type Listener = Box<dyn FnMut(&Event, &Speaker)>;

/// Runs the speaker until `signals` says stop.
///
/// # Errors
/// When an address cannot be listened on, or the machine gives no netlink or thread.
pub async fn run(options: Options, signals: mpsc::Receiver<Signal>, tell: Listener) -> Result<()> {
    let keys = options.neighbors.values().filter_map(|one| Some((one.address.trunc(), one.key.clone()?))).collect();
    let kernel_table = options.kernel_table.or(options.neighbors.values().find_map(|one| one.kernel_table));
    let net = PlainNet::bind(&options.listen, &keys).context("cannot listen")?;
    // Not guessable: discriminators and source ports of BFD come from it.
    let seed = RandomState::new().build_hasher().finish();
    let owner = Owner {
        protocol: PROTOCOL,
        tables: kernel_table.map(|table| table..=table).into_iter().collect(),
        priorities: Vec::new(),
    };
    let mut speaker = Speaker::new(options.local.clone(), seed);
    speaker.tell_every_route(options.tell_routes);
    let plain = Plain {
        speaker,
        net,
        bfd: BfdTask::start(crate::bfd_io::Options::new(seed)).context("cannot start the BFD thread")?,
        kernel: KernelTask::open(owner).context("cannot open netlink")?,
        clock: Clock::new(bfd_io::now()),
        wires: Wires::default(),
        waiting: BTreeMap::new(),
        tickets: 0,
        members: BTreeMap::new(),
        links: Links::default(),
        mirror: Mirror::new(Learned { table: kernel_table.unwrap_or_default(), metric: METRIC }),
        kernel_table,
        connections: BTreeMap::new(),
        held: BTreeMap::new(),
        changed: false,
        stopping: false,
        tell,
        options,
    };
    plain.run(signals).await;
    Ok(())
}

/// The loop and what it holds.
struct Plain {
    options: Options,
    speaker: Speaker,
    net: PlainNet,
    bfd: BfdTask,
    kernel: KernelTask,
    clock: Clock,
    wires: Wires<TcpStream>,
    waiting: BTreeMap<Ticket, (TcpStream, NeighborId)>,
    tickets: u64,
    /// Every neighbour that there is now: the configured ones and the dynamic ones that came.
    members: BTreeMap<NeighborId, Neighbor>,
    links: Links,
    mirror: Mirror,
    /// The table of all that have one.
    kernel_table: Option<u32>,
    /// Whose each connection is, tried ones included.
    connections: BTreeMap<ConnectionId, NeighborId>,
    /// Those that are not tried because their interface has no carrier: an unanswered question for a link address would be
    /// repeated once a second, so that the first SYN after the carrier's return would wait for it.
    held: BTreeMap<ConnectionId, NeighborId>,
    changed: bool,
    stopping: bool,
    tell: Listener,
}

/// What BFD says of a path. Administratively down, at either end, says nothing (RFC 5882 section 3.2).
fn path(status: &SessionStatus) -> BfdState {
    match (status.state, status.remote_state) {
        (State::Up, _) => BfdState::Up,
        (State::AdminDown, _) | (_, State::AdminDown) => BfdState::AdminDown,
        (State::Down | State::Init, _) => BfdState::Down,
    }
}

impl Plain {
    async fn run(mut self, mut signals: mpsc::Receiver<Signal>) {
        let fixed = self.options.neighbors.iter().filter(|(_, neighbor)| !neighbor.dynamic);
        self.members = fixed.map(|(id, neighbor)| (id.clone(), neighbor.clone())).collect();
        let originate = self.options.originate.clone();
        self.speaker.handle(self.clock.now(), Input::SetOwn(&originate));
        self.speaker.handle(self.clock.now(), Input::SetAnnounced(&originate));
        self.set_neighbors();
        let mut turns = 0;
        loop {
            self.act();
            if self.stopping && self.wires.is_empty() {
                return;
            }
            let deadline = self.speaker.deadline();
            let tired = turns >= BGP_TURNS;
            let clock = self.clock;
            tokio::select! {
                biased;
                sessions = self.bfd.next() => {
                    let states = sessions.into_iter().map(|(id, status)| (id, path(&status))).collect();
                    self.on_bfd(&states);
                }
                signal = signals.recv(), if !self.stopping => {
                    if signal.is_none_or(|Signal::Stop| true) {
                        self.stopping = true;
                        self.speaker.handle(clock.now(), Input::Stop(&self.options.goodbye));
                        self.withdraw_routes();
                    }
                }
                news = self.kernel.next() => self.on_kernel(news),
                () = clock.sleep_until(deadline) => self.speaker.handle(clock.now(), Input::Timeout),
                happened = self.wires.next(&mut self.net, &mut self.speaker, clock), if !tired => {
                    turns += 1;
                    self.on_wire(happened);
                    continue;
                }
                () = std::future::ready(()), if tired => {}
            }
            turns = 0;
        }
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn set_neighbors(&mut self) {
        let configs = self.members.iter().map(|(id, neighbor)| (id.clone(), neighbor.config.clone())).collect();
        self.speaker.handle(self.now(), Input::SetNeighbors(&configs));
        self.set_bfd();
    }

    /// A single-hop session belongs to the interface whose network the neighbour is in. Without a carrier there is none: its
    /// packets would make the kernel ask for a link address in vain, once a second, and the first SYN after the carrier's
    /// return would wait for the next time.
    fn session(&self, neighbor: &Neighbor) -> Option<SessionId> {
        neighbor.bfd.as_ref()?;
        let remote = neighbor.address.addr();
        let interface = if neighbor.multihop.is_some() {
            None
        } else {
            let link = self.links.iter().find(|link| on_link(link, remote))?;
            Some((link.up && link.carrier).then(|| link.name.clone())?)
        };
        Some(SessionId { remote, interface, local: neighbor.source })
    }

    fn set_bfd(&mut self) {
        let sessions = self.members.values().filter_map(|one| Some((self.session(one)?, one.bfd.clone()?)));
        let sessions = sessions.collect();
        self.bfd.set(sessions);
    }

    fn on_bfd(&mut self, sessions: &BTreeMap<SessionId, BfdState>) {
        let states = self.members.iter().filter_map(|(id, neighbor)| {
            neighbor.bfd.as_ref()?;
            let state = self.session(neighbor).and_then(|session| sessions.get(&session).copied());
            Some((id.clone(), state.unwrap_or(BfdState::Down)))
        });
        let states = states.collect();
        self.speaker.handle(self.now(), Input::SetBfd(&states));
    }

    fn on_kernel(&mut self, news: News) {
        match news {
            News::Snapshot(snapshot) => {
                let links = Links::new(&snapshot.links);
                self.mirror.dumped(&snapshot.objects);
                self.mirror.settle();
                if links != self.links {
                    self.links = links;
                    self.set_bfd();
                    self.follow_carrier();
                    let prefixes: Vec<IpNet> = self.speaker.prefixes().chain(self.mirror.learned()).collect();
                    for prefix in prefixes {
                        self.plan(prefix);
                    }
                }
            }
            // The snapshot that follows shows them too.
            News::Links(_) => {}
            News::Changed(removed, appeared) => {
                let now = self.now();
                for object in &removed {
                    self.mirror.gone(now, object);
                }
                for object in &appeared {
                    self.mirror.appeared(object);
                }
            }
            News::Applied(failures) => {
                let now = self.now();
                for failure in &failures {
                    tracing::warn!(error = %failure.error, change = ?failure.change, "the kernel refused a route");
                }
                if self.mirror.done(now, &failures) {
                    self.kernel.dump();
                }
            }
        }
    }

    fn withdraw_routes(&mut self) {
        let prefixes: Vec<IpNet> = self.mirror.learned().collect();
        for prefix in prefixes {
            self.mirror.want_learned(prefix, None);
        }
        self.changed = false;
    }

    /// The route to `prefix` over the best next hops that are on a link.
    fn plan(&mut self, prefix: IpNet) {
        let Some(table) = self.kernel_table else { return };
        let written = |id: &NeighborId| {
            let own = self.members.get(id).and_then(|one| one.kernel_table);
            own.or(self.options.kernel_table).is_some()
        };
        let hop = |hop: IpAddr, weight: u16| {
            let link = self.links.iter().find(|link| on_link(link, hop))?;
            Some(NextHop { gateway: Some(hop), interface: Some(link.index), weight, onlink: false })
        };
        let paths = self.speaker.paths(&prefix);
        let paths = paths.iter().filter(|path| written(&path.neighbor));
        let mut hops: Vec<NextHop> = paths.filter_map(|path| hop(path.next_hop, path.weight.max(1))).collect();
        hops.sort();
        hops.dedup();
        let kind = RouteKind::Unicast(hops);
        let route = match &kind {
            RouteKind::Unicast(hops) if hops.is_empty() => None,
            _ => Some(Object::Route(Route { table, prefix, metric: METRIC, kind })),
        };
        self.mirror.want_learned(prefix, route);
    }

    fn on_wire(&mut self, happened: Happened<TcpStream>) {
        let now = self.now();
        match happened {
            Happened::Sent => {}
            Happened::Connected(id, local, remote) => {
                let endpoints = self.endpoints(local, remote);
                self.speaker.handle(now, Input::Connected(id, endpoints));
            }
            Happened::Received(id) => self.speaker.handle(now, Input::Received(id, self.wires.received())),
            Happened::Closed(id, reason) => {
                self.connections.remove(&id);
                self.speaker.handle(now, Input::Closed(id, reason));
            }
            Happened::Accepted(accepted) => self.on_accepted(accepted),
        }
    }

    fn endpoints(&self, local: SocketAddr, remote: SocketAddr) -> Endpoints {
        let link = self.links.iter().find(|link| link.addresses.iter().any(|net| net.addr() == local.ip()));
        let addresses = || link.into_iter().flat_map(|link| &link.addresses).map(IpNet::addr);
        let v6 = |address: IpAddr| if let IpAddr::V6(v6) = address { Some(v6) } else { None };
        let is_link_local = |address: &IpAddr| v6(*address).is_some_and(|v6| v6.is_unicast_link_local());
        let local_link_local = addresses().filter(is_link_local).find_map(v6);
        let other = addresses().find(|one| one.is_ipv4() != local.is_ipv4() && !is_link_local(one));
        // A looking glass has to show IPv6 routes over IPv4 sessions whatever addresses it has: then the mapped address stands
        // there, as others have it.
        let mapped = match local.ip() {
            IpAddr::V4(v4) if local_link_local.is_none() => Some(IpAddr::V6(v4.to_ipv6_mapped())),
            _ => None,
        };
        Endpoints { local, remote, local_link_local, local_other: other.or(mapped) }
    }

    /// A neighbour of its own address, else a dynamic one whose prefix it comes from; anybody else is closed unread.
    fn on_accepted(&mut self, accepted: Accepted<TcpStream>) {
        let Accepted { stream, local, remote, .. } = accepted;
        let address = remote.ip().to_canonical();
        let Some(id) = self.member(address) else {
            tracing::info!(%remote, "no neighbour has this address: closed");
            return;
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.insert(ticket, (stream, id.clone()));
        let endpoints = self.endpoints(local, remote);
        self.speaker.handle(self.clock.now(), Input::Incoming(ticket, &id, endpoints));
    }

    fn member(&mut self, address: IpAddr) -> Option<NeighborId> {
        let known = self.members.iter().find(|(_, one)| one.address.addr() == address).map(|(id, _)| id.clone());
        if known.is_some() {
            return known;
        }
        if self.members.len() >= MAX_DYNAMIC {
            return None;
        }
        let prefix = self.options.neighbors.values().find(|one| one.dynamic && one.address.contains(&address))?;
        let neighbor = Neighbor { address: address.into(), dynamic: false, ..prefix.clone() };
        let id = NeighborId::new(&address.to_string());
        self.members.insert(id.clone(), neighbor);
        self.set_neighbors();
        Some(id)
    }

    fn transport(&self, id: &NeighborId) -> Option<Transport> {
        let neighbor = self.members.get(id)?;
        Some(Transport {
            address: neighbor.address.addr(),
            interface: Arc::from(""),
            local_port: 0,
            remote_port: neighbor.port,
            source: neighbor.source,
            ttl: neighbor.multihop.unwrap_or(64),
            min_ttl: None,
            multihop: neighbor.multihop.is_some(),
            key: neighbor.key.clone(),
            ao: None,
        })
    }

    /// Does what the speaker wants.
    fn act(&mut self) {
        while let Some(output) = self.speaker.poll() {
            match output {
                Output::Connect(neighbor, id) => self.connect(&neighbor, id),
                Output::Accept(ticket, id) => {
                    if let Some((stream, neighbor)) = self.waiting.remove(&ticket) {
                        if let Some(transport) = self.transport(&neighbor) {
                            let caller = Caller { key: transport.key, ao: None, ttl: transport.ttl, min_ttl: None };
                            self.net.set_up(&stream, &caller);
                        }
                        self.connections.insert(id, neighbor);
                        self.wires.open(id, stream);
                    }
                }
                Output::Refuse(ticket) => drop(self.waiting.remove(&ticket)),
                Output::Ready(id) => self.wires.ready(id),
                Output::Close(id) => {
                    self.connections.remove(&id);
                    self.held.remove(&id);
                    let (speaker, now) = (&mut self.speaker, self.clock.now());
                    self.wires.close(id, |out| speaker.transmit(now, id, out, usize::MAX));
                }
                Output::RoutesChanged => self.changed = true,
                Output::Event(event) => (self.tell)(&event, &self.speaker),
            }
        }
        self.program();
    }

    fn connect(&mut self, neighbor: &NeighborId, id: ConnectionId) {
        if self.lost_carrier(neighbor).is_some() {
            self.held.insert(id, neighbor.clone());
        } else if let Some(transport) = self.transport(neighbor) {
            self.connections.insert(id, neighbor.clone());
            self.wires.connect(id, self.net.connect(&transport));
        }
    }

    /// The interface of a neighbour that is on a link, if that has no carrier.
    fn lost_carrier(&self, neighbor: &NeighborId) -> Option<Arc<str>> {
        let neighbor = self.members.get(neighbor).filter(|one| one.multihop.is_none())?;
        let link = self.links.iter().find(|link| on_link(link, neighbor.address.addr()))?;
        (!(link.up && link.carrier)).then(|| link.name.clone())
    }

    /// A session over a link that lost its carrier ends at once, and is tried as soon as it is back.
    fn follow_carrier(&mut self) {
        let all: Vec<_> = self.connections.iter().map(|(id, neighbor)| (*id, neighbor.clone())).collect();
        for (id, neighbor) in all {
            if let Some(interface) = self.lost_carrier(&neighbor) {
                self.connections.remove(&id);
                self.wires.close(id, |_| false);
                let reason = CloseReason::Other(format!("interface {interface} lost its carrier").into());
                self.speaker.handle(self.now(), Input::Closed(id, reason));
            }
        }
        for (id, neighbor) in std::mem::take(&mut self.held) {
            self.connect(&neighbor, id);
        }
    }

    /// Gives the kernel its next batch.
    fn program(&mut self) {
        if self.mirror.is_busy() || !self.mirror.is_dumped() {
            return;
        }
        while self.changed {
            let prefixes = self.speaker.changed(PULL);
            self.changed = !prefixes.is_empty();
            if self.kernel_table.is_some() && !self.stopping {
                for prefix in prefixes {
                    self.plan(prefix);
                }
                break;
            }
        }
        let changes = self.mirror.batch();
        if !changes.is_empty() {
            self.kernel.apply(changes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_that_takes_its_bfd_down_on_purpose_has_not_failed() {
        let status = |state, remote_state| SessionStatus {
            state,
            since: Instant::ORIGIN,
            diagnostic: martlet_bfd::Diagnostic::NeighborSignaledDown,
            remote_state,
            remote_diagnostic: martlet_bfd::Diagnostic::None,
            local_discriminator: 1,
            remote_discriminator: 2,
            transmit_interval: std::time::Duration::from_secs(1),
            detection_time: std::time::Duration::from_secs(3),
        };
        assert_eq!(path(&status(State::Down, State::AdminDown)), BfdState::AdminDown);
        assert_eq!(path(&status(State::AdminDown, State::Up)), BfdState::AdminDown);
        assert_eq!(path(&status(State::Down, State::Down)), BfdState::Down);
        assert_eq!(path(&status(State::Init, State::Init)), BfdState::Down);
        assert_eq!(path(&status(State::Up, State::Up)), BfdState::Up);
    }
}
