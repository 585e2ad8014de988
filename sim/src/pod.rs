//! A load balancer pod: the product's router core and BFD sessions, a load balancer's control part, and what was observed.
//!
//! It holds state and makes processes; what flows between them is in `world`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use martlet_api::readiness::Readiness;
use martlet_api::view::View;
use martlet_bfd::{SessionId, SessionStatus, Sessions};
use martlet_bgp::NeighborState;
use martlet_clock::Instant;
use martlet_lb::engine::Tables;
use martlet_lb::maglev::Size;
use martlet_lb::ready::{Facts, readiness};
use martlet_lb::targets::{Marks, Settings as LbSettings, Targets, targets};
use martlet_netlink::Link;
use martlet_router::core::{Config, Listeners, Router};
use martlet_router::gate::Lb;
use martlet_router::intent::{Identity, Settings};

use crate::decode::Tap;
use crate::kernel::Kernel;
use crate::objects::{LOCAL_AS, Made, asn, pod_address};
use crate::script::Topology;

/// The index of the external link, until it is replugged.
pub const EXTERNAL: u32 = 7;
/// The index of the internal link.
pub const INTERNAL: u32 = 9;
/// How long adopted routes are kept.
pub const ADOPT: Duration = Duration::from_secs(10);
/// How long a router drains.
pub const DRAIN: Duration = Duration::from_secs(1);
/// How long a router announces with `GRACEFUL_SHUTDOWN` before it withdraws.
pub const LEAVE: Duration = Duration::from_millis(500);
/// How long a load balancer may be silent.
pub const SILENCE_NS: u64 = 3_000_000_000;

/// A clock that may run too fast or too slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    base: u64,
    local: u64,
    ppm: i64,
}

impl Clock {
    /// What it shows.
    pub fn local(&self, now: u64) -> Instant {
        let gone = now.saturating_sub(self.base);
        if self.ppm == 0 {
            return Instant::from_nanos(self.local + gone);
        }
        let more = i128::from(gone) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        Instant::from_nanos(self.local + u64::try_from(more).unwrap_or_default())
    }

    /// When it will show `at`, or a little later.
    pub fn global(&self, at: Instant) -> u64 {
        if self.ppm == 0 {
            return self.base.saturating_add(at.as_nanos().saturating_sub(self.local));
        }
        let wait = i128::from(at.as_nanos().saturating_sub(self.local));
        let gone = wait * 1_000_000 / i128::from(1_000_000 + self.ppm);
        let mut global = self.base.saturating_add(u64::try_from(gone).unwrap_or(u64::MAX));
        while self.local(global) < at {
            global += 1;
        }
        global
    }

    /// From now on it runs this much faster.
    pub fn set(&mut self, now: u64, ppm: i64) {
        *self = Self { base: now, local: self.local(now).as_nanos(), ppm };
    }
}

/// A connection of a process.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// The stream and our side of it; `None`: not connected yet.
    pub stream: Option<(usize, usize)>,
    /// The core has something to send.
    pub ready: bool,
    /// What it said.
    pub sent: Tap,
    /// What it heard.
    pub received: Tap,
    /// When it heard something last.
    pub heard_at: u64,
    /// The other end.
    pub remote: Option<IpAddr>,
    /// Since when both ends have said OPEN.
    pub talks_since: Option<u64>,
}

impl Wire {
    /// Takes note of what was said on it.
    pub fn note(&mut self, now: u64) {
        if self.sent.open.is_some() && self.received.open.is_some() {
            self.talks_since.get_or_insert(now);
        }
    }
}

/// The load balancer's control part.
#[derive(Debug, Default)]
pub struct Balancer {
    /// The process lives.
    pub alive: bool,
    /// It says nothing since then; its last word.
    pub hung: Option<(u64, Lb)>,
    /// When it spoke again.
    pub woke_at: u64,
    /// It drains.
    pub draining: bool,
    /// What it writes is broken until then.
    pub garbage: bool,
    /// The objects that it has read.
    pub view: Option<Rc<Made>>,
    /// ..their version.
    pub version: usize,
    marks: Marks,
    made: Targets,
    /// What it says.
    pub word: Option<Readiness>,
}

impl Balancer {
    /// Makes its tables and its word anew.
    pub fn follow(&mut self, links: &BTreeMap<u32, Link>) {
        let Some(known) = &self.view else { return };
        let Self { made, marks, draining, .. } = self;
        // The same for all that read the same: which marks endpoints have is not in it.
        let word =
            known.word(links.get(&INTERNAL), *draining, || Self::make(&known.view, links, marks, made, *draining));
        self.word = Some(word);
    }

    fn make(
        view: &View,
        links: &BTreeMap<u32, Link>,
        marks: &mut Marks,
        made: &mut Targets,
        draining: bool,
    ) -> Readiness {
        // The choice of endpoints is not what is looked at here: small tables.
        let settings =
            LbSettings { internal_interface: Some("net1".into()), size: Size::new(17).ok(), ..LbSettings::default() };
        let before: Arc<Tables> = Arc::clone(&made.tables);
        *made = targets(view, links, marks, &settings, &before);
        let facts = Facts { links: links.clone(), ..Facts::default() };
        readiness(view, made, &facts, draining)
    }

    /// What the router's client makes of it at `now`.
    pub fn told(&self, now: u64) -> Lb {
        if !self.alive {
            return Lb::Silent("it closed the connection".into());
        }
        if let Some((since, last)) = &self.hung {
            let silent = now >= since + SILENCE_NS;
            return if silent { Lb::Silent("no word for 3 s: it hangs".into()) } else { last.clone() };
        }
        if self.garbage {
            return Lb::Silent("a line that is no readiness".into());
        }
        self.word.clone().map_or_else(Lb::unknown, Lb::Said)
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// The router, while its process lives.
    pub router: Option<Router>,
    /// BFD, in the same process.
    pub bfd: Sessions,
    /// The life of the router's process.
    pub epoch: u64,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its clock.
    pub clock: Clock,
    /// When it wants to be woken.
    pub wake: Option<u64>,
    /// Connections by id.
    pub wires: BTreeMap<u64, Wire>,
    /// Incoming ones that are not judged.
    pub tickets: BTreeMap<u64, (usize, usize)>,
    /// Where it listens.
    pub listeners: Listeners,
    /// The load balancer.
    pub lb: Balancer,
    /// The version of the objects that the router has.
    pub version: Option<usize>,
    /// What the router was told of the load balancer.
    pub said: Lb,
    /// What the router was told of BFD.
    pub told_bfd: BTreeMap<SessionId, SessionStatus>,
    /// What the router said of its neighbours.
    pub sessions: BTreeMap<(usize, bool), NeighborState>,
    /// ..and since when they are Established.
    pub established_at: BTreeMap<(usize, bool), u64>,
    /// Since when the router ends.
    pub stopping: Option<u64>,
    /// It says that it has withdrawn its VIPs.
    pub draining: bool,
    /// When the process started.
    pub started: u64,
    /// When it was given its first objects: adopted routes are kept from then on.
    pub configured: Option<u64>,
    /// Learned routes that were there when it started and nobody may take away yet.
    pub adopted: BTreeSet<IpNet>,
    /// Those of them whose family nobody has told anew.
    pub untold: BTreeSet<IpNet>,
    /// Since when the load balancer cannot forward a VIP that it could.
    pub bad_since: BTreeMap<IpNet, u64>,
    /// Something changed that the invariants ask about.
    pub dirty: bool,
    /// Until then time alone cannot break a promise.
    pub calm_until: u64,
    /// Timeouts in a row at one instant.
    pub spins: (u64, u32),
    /// What gateways told whose sessions ended and who asked that it is kept (RFC 4724): gateway and family.
    pub kept: BTreeMap<(usize, bool), Kept>,
    /// How many learned routes its first dump showed; `None`: there was none yet.
    pub dumped: Option<usize>,
    /// How many it said that it has adopted.
    pub took: usize,
}

/// Routes that may outlive their session.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Until then, if there is no new session.
    pub until: u64,
    /// With their next hops.
    pub heard: BTreeMap<IpNet, IpAddr>,
}

/// The process options of a router.
pub fn settings(topology: &Topology) -> Settings {
    Settings {
        external_interface: "eth0".into(),
        local_as: LOCAL_AS,
        remote_as: asn(0),
        hold_time: martlet_bgp::HoldTime::new(topology.hold_time_s).unwrap_or(martlet_bgp::HoldTime::DEFAULT),
        ecmp: topology.ecmp,
        ..Settings::default()
    }
}

fn external(pod: usize) -> Link {
    let four = IpNet::new(pod_address(pod, true), 24);
    let six = IpNet::new(pod_address(pod, false), 64);
    let addresses = [four, six].into_iter().filter_map(Result::ok).collect();
    Link { index: EXTERNAL, name: "eth0".into(), up: true, carrier: true, mtu: 1500, addresses }
}

fn internal() -> Link {
    let addresses = ["169.111.100.1/24", "fd00:111:100::1/64"].iter().filter_map(|net| net.parse().ok()).collect();
    Link { index: INTERNAL, name: "net1".into(), up: true, carrier: true, mtu: 1500, addresses }
}

/// The links of a new pod.
pub fn links(pod: usize) -> BTreeMap<u32, Link> {
    [(EXTERNAL, external(pod)), (INTERNAL, internal())].into()
}

/// A router that knows nothing yet.
pub fn router(pod: usize, seed: u64) -> Router {
    Router::new(Config {
        identity: Identity { router_id: None, name: format!("pod-{pod}") },
        external_interface: "eth0".into(),
        table: 4096,
        adopt: ADOPT,
        drain: DRAIN,
        leave: LEAVE,
        seed,
    })
}

impl Pod {
    /// A pod whose processes have not started.
    pub fn new(pod: usize) -> Self {
        Self {
            router: None,
            bfd: Sessions::new(0),
            epoch: 0,
            kernel: Kernel::new(links(pod)),
            clock: Clock::default(),
            wake: None,
            wires: BTreeMap::new(),
            tickets: BTreeMap::new(),
            listeners: Listeners::new(),
            lb: Balancer::default(),
            version: None,
            said: Lb::unknown(),
            told_bfd: BTreeMap::new(),
            sessions: BTreeMap::new(),
            established_at: BTreeMap::new(),
            stopping: None,
            draining: false,
            started: 0,
            configured: None,
            adopted: BTreeSet::new(),
            untold: BTreeSet::new(),
            bad_since: BTreeMap::new(),
            dirty: false,
            calm_until: 0,
            spins: (0, 0),
            kept: BTreeMap::new(),
            dumped: None,
            took: 0,
        }
    }

    /// The process is gone: all that it knew.
    pub fn forget(&mut self) {
        self.router = None;
        self.epoch += 1;
        self.wires.clear();
        self.tickets.clear();
        self.listeners.clear();
        self.kept.clear();
        self.dumped = None;
        self.took = 0;
        self.version = None;
        self.configured = None;
        self.said = Lb::unknown();
        self.told_bfd.clear();
        self.sessions.clear();
        self.kernel.work.clear();
        self.draining = false;
        (self.stopping, self.wake) = (None, None);
    }

    /// The links that carry no packets to the endpoints or do.
    pub fn internal_up(&self) -> bool {
        self.kernel.links.get(&INTERNAL).is_some_and(|link| link.up && link.carrier)
    }

    /// The index and the link to the outside, whatever it is called.
    pub fn external(&self) -> Option<&Link> {
        self.kernel.links.values().find(|link| link.index != INTERNAL)
    }

    /// Whether the outside is reached through it.
    pub fn external_up(&self) -> bool {
        self.external().is_some_and(|link| link.up && link.carrier)
    }
}
