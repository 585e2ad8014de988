//! A gateway: our own speaker in that role, or the naive peer; BFD is our own sessions in both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use martlet_bfd::{SessionConfig, SessionId, Sessions};
use martlet_bgp::{Bfd, Export, Family, GracefulRestart, HoldTime, Input, Local, NeighborConfig, NeighborId};
use martlet_bgp::{NeighborState, Speaker};
use martlet_clock::Instant;

use crate::objects::{LOCAL_AS, asn, gateway_address, pod_address};
use crate::peer::{Peer, RESTART_S};
use crate::pod::Wire;
use crate::script::Topology;

/// The interface of a gateway.
pub const INTERFACE: &str = "lan0";

/// Who speaks.
#[derive(Debug)]
pub enum Brain {
    /// Our speaker.
    Ours(Box<Speaker>),
    /// The naive peer.
    Naive(Peer),
}

/// A gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Who speaks, while the process lives.
    pub brain: Option<Brain>,
    /// BFD.
    pub bfd: Sessions,
    /// The life of the process.
    pub epoch: u64,
    /// The machine answers, if only with resets.
    pub host: bool,
    /// When it wants to be woken.
    pub wake: Option<u64>,
    /// Connections: by the speaker's id, or by the stream's number.
    pub wires: BTreeMap<u64, Wire>,
    /// Incoming ones that are not judged.
    pub tickets: BTreeMap<u64, (usize, usize)>,
    /// It does not read.
    pub deaf: usize,
    /// What it announces.
    pub routes: Vec<IpNet>,
    /// Its interface.
    pub interface: Arc<str>,
    /// It has kept forwarding over its restart.
    pub kept: bool,
    /// Timeouts in a row at one instant.
    pub spins: (u64, u32),
    /// Our speaker's neighbours, and the state that each was seen in.
    pub states: Vec<(NeighborId, NeighborState)>,
}

/// The name of a pod at a gateway.
pub fn pod_name(pod: usize, ipv4: bool) -> String {
    format!("p{pod}-v{}", if ipv4 { 4 } else { 6 })
}

/// The pod and the family of a name.
pub fn pod_of(name: &str) -> Option<(usize, bool)> {
    let (pod, family) = name.strip_prefix('p')?.split_once("-v")?;
    Some((pod.parse().ok()?, family == "4"))
}

/// What a gateway announces: the defaults, and a prefix of its own.
pub fn routes(gateway: usize) -> Vec<IpNet> {
    let texts = ["0.0.0.0/0".to_owned(), "::/0".into(), format!("30.{gateway}.0.0/16"), format!("2600:{gateway}::/32")];
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The BFD sessions of a gateway.
pub fn bfd_sessions(topology: &Topology, is_static: bool) -> BTreeMap<SessionId, SessionConfig> {
    if !topology.bfd && !is_static {
        return BTreeMap::new();
    }
    let families: &[bool] = if topology.ipv6 { &[true, false] } else { &[true] };
    let echo_rx = Some(Duration::from_millis(50));
    let config = SessionConfig { multiplier: 3, echo_rx, ..SessionConfig::default() };
    let id = |pod, ipv4| SessionId { remote: pod_address(pod, ipv4), interface: Some(INTERFACE.into()), local: None };
    let ids = (0..topology.pods).flat_map(|pod| families.iter().map(move |ipv4| id(pod, *ipv4)));
    ids.map(|id| (id, config.clone())).collect()
}

impl Gateway {
    /// A gateway whose process has not started.
    pub fn new(gateway: usize) -> Self {
        Self {
            brain: None,
            bfd: Sessions::new(0),
            epoch: 0,
            host: true,
            wake: None,
            wires: BTreeMap::new(),
            tickets: BTreeMap::new(),
            deaf: 0,
            routes: routes(gateway),
            interface: INTERFACE.into(),
            kept: false,
            spins: (0, 0),
            states: Vec::new(),
        }
    }

    /// The process is gone.
    pub fn forget(&mut self) {
        self.brain = None;
        self.epoch += 1;
        self.wires.clear();
        self.tickets.clear();
        self.wake = None;
    }

    /// The process starts.
    pub fn start(&mut self, now: Instant, gateway: usize, topology: &Topology, seed: u64) {
        let naive = gateway + topology.naive >= topology.gateways;
        let id = Ipv4Addr::new(10, 0, 0, u8::try_from(101 + gateway).unwrap_or(u8::MAX));
        let is_static = topology.r#static && gateway + 1 == topology.gateways;
        self.bfd = Sessions::new(seed ^ 0x0b0f_00d0);
        let sessions = bfd_sessions(topology, is_static);
        self.bfd.handle(now, martlet_bfd::Input::SetSessions(&sessions));
        let kept = std::mem::take(&mut self.kept);
        self.states.clear();
        if naive {
            let address = [gateway_address(gateway, false), gateway_address(gateway, true)];
            // Above our identifiers, and below them.
            let id = if gateway.is_multiple_of(2) { id } else { Ipv4Addr::new(9, 0, 0, 1) };
            let mut peer = Peer::new(asn(gateway), id, address, self.routes.clone());
            peer.graceful = topology.graceful.then_some(kept);
            self.brain = Some(Brain::Naive(peer));
            return;
        }
        let local = Local { router_id: id, forwarding_preserved: kept };
        let mut speaker = Speaker::new(local, seed);
        let families: &[bool] = if topology.ipv6 { &[true, false] } else { &[true] };
        let mut neighbors = BTreeMap::new();
        for pod in (0..topology.pods).filter(|_| !is_static) {
            for ipv4 in families {
                let family = if *ipv4 { Family::Ipv4 } else { Family::Ipv6 };
                let base = NeighborConfig::new(asn(gateway), LOCAL_AS, [family]);
                let config = NeighborConfig {
                    hold_time: HoldTime::new(topology.hold_time_s).unwrap_or(HoldTime::DEFAULT),
                    // Nobody configured us for it.
                    bfd: if topology.bfd { Bfd::Loose } else { Bfd::Off },
                    connect_retry: Duration::from_millis(if gateway.is_multiple_of(2) { 200 } else { 1000 }),
                    export: Export::default(),
                    graceful_restart: GracefulRestart {
                        restarting: topology.graceful,
                        restart_time_s: RESTART_S.into(),
                    },
                    ..base
                };
                neighbors.insert(NeighborId::new(&pod_name(pod, *ipv4)), config);
            }
        }
        let announced: BTreeSet<IpNet> = self.routes.iter().copied().collect();
        self.states = neighbors.keys().map(|id| (id.clone(), NeighborState::Idle)).collect();
        speaker.handle(now, Input::SetNeighbors(&neighbors));
        speaker.handle(now, Input::SetAnnounced(&announced));
        self.brain = Some(Brain::Ours(Box::new(speaker)));
    }

    /// From now on it announces these.
    pub fn set_routes(&mut self, now: Instant, routes: Vec<IpNet>) {
        self.routes = routes;
        match &mut self.brain {
            Some(Brain::Ours(speaker)) => {
                let announced: BTreeSet<IpNet> = self.routes.iter().copied().collect();
                speaker.handle(now, Input::SetAnnounced(&announced));
            }
            Some(Brain::Naive(peer)) => peer.set_routes(self.routes.clone()),
            None => {}
        }
    }

    /// The VIPs that it holds of a pod; `None`: there is no session.
    pub fn holds(&self, pod: usize, ipv4: bool, vips: &BTreeSet<IpNet>) -> Option<BTreeSet<IpNet>> {
        match self.brain.as_ref()? {
            Brain::Naive(peer) => Some(peer.heard(pod, ipv4)?.keys().copied().collect()),
            Brain::Ours(speaker) => {
                let name = NeighborId::new(&pod_name(pod, ipv4));
                let of_family = vips.iter().filter(|vip| matches!(vip, IpNet::V4(_)) == ipv4);
                Some(of_family.filter(|vip| speaker.route(&name, vip).is_some()).copied().collect())
            }
        }
    }
}
