//! What is to be said of a router, as one whole value: what `martlet show` prints, health tells and metrics count.
//!
//! A pure function of the router's state; counters are apart ([`Router::counters`]), so that a status compares equal while
//! nothing happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use martlet_api::readiness::Families;
use martlet_bfd::SessionStatus;
use martlet_bgp::{Counters, NeighborId, NeighborState, NeighborStatus};
use martlet_clock::Instant;
use martlet_netlink::{Object, RouteKind};
use serde::{Deserialize, Serialize};

use super::{Router, lesson};
use crate::gate::{Lb, words};
use crate::intent::Neighbor;
use crate::mirror::Key;

/// A router in words and numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Namespace and name of its Gateway; empty before the first Intent.
    pub gateway: String,
    /// Its router id.
    pub router_id: Option<Ipv4Addr>,
    /// `Starting`, `Running`, `Leaving`, `Draining`, `Ending` or `Stopped`.
    pub life: String,
    /// What the load balancer says, in words.
    pub lb: String,
    /// Which family has a gateway router that is Up.
    pub connectivity: Families,
    /// Of which family such a router has told its routes, too: a pod is ready for it.
    #[serde(default)]
    pub settled: Families,
    /// Which family has a default route.
    pub egress: Families,
    /// Words that users know from conditions: `LeakProtectionOff`, `NoEgressRoute`, `KernelConflict`, `Ungated`.
    pub notes: BTreeSet<String>,
    /// The gateway routers by name.
    pub peers: BTreeMap<String, PeerView>,
    /// The BFD sessions by name.
    pub bfd: BTreeMap<String, BfdView>,
    /// The VIPs.
    pub vips: BTreeMap<IpNet, VipView>,
    /// What is wrong, or to be known, about objects.
    pub conditions: Vec<String>,
    /// What the kernel refused, or others keep deleting.
    pub kernel: Vec<String>,
}

/// A gateway router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its address, if it is tried.
    pub address: Option<IpAddr>,
    /// Our interface towards it.
    pub interface: String,
    /// `BGP`, `Static`, or `-` if it is not tried.
    pub protocol: String,
    /// The state of its session in the words of RFC 4271; `Up` or `Down` of a static one.
    pub state: String,
    /// Whether it counts for external connectivity.
    pub up: bool,
    /// Seconds since the state was entered.
    pub since_s: u64,
    /// Our AS number towards it.
    pub local_as: u32,
    /// Its AS number.
    pub remote_as: u32,
    /// Its router id.
    pub router_id: Option<Ipv4Addr>,
    /// The families that it is asked for.
    pub families: Vec<String>,
    /// The families that were negotiated; empty while there is no session.
    #[serde(default)]
    pub negotiated: Vec<String>,
    /// The families of which it has told all its routes.
    #[serde(default)]
    pub end_of_rib: Vec<String>,
    /// The negotiated hold time, seconds; zero: without, or no session.
    pub hold_time_s: u16,
    /// How often we send a KEEPALIVE at the latest, seconds: a third of the hold time (RFC 4271 section 4.4).
    #[serde(default)]
    pub keepalive_s: u16,
    /// The name of its BFD session, if one supervises it.
    pub bfd: Option<String>,
    /// Prefixes held from it.
    pub received: usize,
    /// Prefixes that it was told.
    pub announced: usize,
    /// Why it is not, or last was not, Established, with the remedy where one is known.
    pub last_error: Option<String>,
    /// For a human.
    pub description: Option<String>,
}

/// A BFD session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BfdView {
    /// Its state.
    pub state: String,
    /// Seconds since the state was entered.
    pub since_s: u64,
    /// Why it last left Up.
    pub diagnostic: String,
    /// The other end's state.
    pub remote_state: String,
    /// The other end's diagnostic.
    pub remote_diagnostic: String,
    /// Our discriminator.
    pub local_discriminator: u32,
    /// The other end's.
    pub remote_discriminator: u32,
    /// The interval at which we send, milliseconds.
    pub transmit_interval_ms: u64,
    /// After how long a silence it goes down, milliseconds.
    pub detection_time_ms: u64,
}

/// A VIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VipView {
    /// Whether it is announced.
    pub announced: bool,
    /// If not: one word.
    pub reason: String,
    /// If not: in words.
    pub message: String,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// Its table.
    pub table: u32,
    /// Its destination.
    pub prefix: IpNet,
    /// Its metric.
    pub metric: u32,
    /// The next hops, or `blackhole`.
    pub via: Vec<String>,
    /// `installed`, `pending`, `adopted` (of a former router, not told again), `surplus` or `unresolved: why`.
    pub state: String,
}

fn age_s(now: Instant, since: Instant) -> u64 {
    now.since(since).as_secs()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Router {
    /// What is to be said at `now`.
    pub fn status(&self, now: Instant) -> Status {
        let mut status = Status {
            gateway: self.intent.as_ref().map(|intent| intent.gateway.to_string()).unwrap_or_default(),
            router_id: self.identifier,
            life: self.life_word().into(),
            lb: self.lb_words(),
            connectivity: self.connectivity,
            settled: self.ways.open(),
            egress: self.egress(),
            notes: self.notes(),
            peers: self.peers(now),
            bfd: self.bfd.iter().map(|(id, session)| (id.to_string(), bfd_view(now, session))).collect(),
            vips: BTreeMap::new(),
            conditions: Vec::new(),
            kernel: Vec::new(),
        };
        for (vip, verdict) in &self.verdicts {
            let view = match verdict {
                Ok(()) => VipView { announced: true, ..VipView::default() },
                Err(reason) => VipView { announced: false, reason: reason.word().into(), message: reason.to_string() },
            };
            status.vips.insert(*vip, view);
        }
        for condition in self.intent.iter().flat_map(|intent| &intent.conditions) {
            let truth = if condition.status { "True" } else { "False" };
            status.conditions.push(format!(
                "{} {} {}={truth} {}: {}",
                condition.kind, condition.object, condition.condition, condition.reason, condition.message
            ));
        }
        status.conditions.extend(self.session_conditions(&status.peers));
        for (key, wait) in self.mirror.waits().iter().filter(|(_, wait)| wait.active) {
            let why = wait.error.as_deref().unwrap_or("someone else keeps deleting it");
            status.kernel.push(format!("{}: {why}; tried again at {}", key_words(key), wait.until));
        }
        status
    }

    /// What was counted of each neighbour.
    pub fn counters(&self) -> BTreeMap<NeighborId, Counters> {
        self.speaker.counters()
    }

    /// At most `max` of our routes, in order.
    pub fn route_views(&self, max: usize) -> Vec<RouteView> {
        let views = self.mirror.objects().filter_map(|(_, want, have)| self.route_view(want, have)).take(max);
        let unresolved = self.routes.unresolved.iter().map(|(prefix, (neighbor, why))| RouteView {
            table: self.config.table,
            prefix: *prefix,
            metric: crate::plan::METRIC,
            via: vec![neighbor.to_string()],
            state: format!("unresolved: {why}"),
        });
        views.chain(unresolved).collect()
    }

    fn route_view(&self, want: Option<&Object>, have: Option<&Object>) -> Option<RouteView> {
        let Object::Route(route) = want.or(have)? else { return None };
        let state = match (want, have) {
            (Some(want), Some(have)) if want == have => "installed",
            (Some(_), _) => "pending",
            (None, _) if self.mirror.is_adopted(route.prefix) => "adopted",
            (None, _) => "surplus",
        };
        let via = match &route.kind {
            RouteKind::Blackhole => vec!["blackhole".into()],
            RouteKind::Unicast(hops) => hops.iter().map(|hop| self.hop_words(hop)).collect(),
        };
        Some(RouteView { table: route.table, prefix: route.prefix, metric: route.metric, via, state: state.into() })
    }

    fn hop_words(&self, hop: &martlet_netlink::NextHop) -> String {
        let name = self.links.iter().find(|link| Some(link.index) == hop.interface).map(|link| link.name.to_string());
        let gateway = hop.gateway.map_or_else(|| "link".into(), |gateway| gateway.to_string());
        format!("{gateway}%{}", name.unwrap_or_else(|| "?".into()))
    }

    const fn life_word(&self) -> &'static str {
        use super::life::Life;
        match self.life {
            Life::Running if !self.configured => "Starting",
            Life::Running => "Running",
            Life::Leaving(_) => "Leaving",
            Life::Draining(_) => "Draining",
            Life::Ending(_) => "Ending",
            Life::Stopped => "Stopped",
        }
    }

    fn lb_words(&self) -> String {
        match &self.lb {
            Lb::Ungated => "none to ask: every VIP counts as ready".into(),
            Lb::Silent(why) => format!("silent: {why}"),
            Lb::Said(said) => {
                let ready = said.vips.values().filter(|vip| vip.ready).count();
                let draining = if said.draining { ", draining" } else { "" };
                format!("ready for {ready} of {} VIPs{draining}", said.vips.len())
            }
        }
    }

    fn notes(&self) -> BTreeSet<String> {
        let mut notes = BTreeSet::new();
        let egress = self.egress();
        let missing = (self.connectivity.ipv4 && !egress.ipv4) || (self.connectivity.ipv6 && !egress.ipv6);
        let leaky = self.intent.as_ref().is_some_and(|intent| !intent.settings.drop_if_no_peer);
        let conflict = self.mirror.waits().values().any(|wait| wait.active && wait.error.is_none());
        let words = [
            (missing, "NoEgressRoute"),
            (leaky, "LeakProtectionOff"),
            (conflict, "KernelConflict"),
            (self.lb == Lb::Ungated, "Ungated"),
        ];
        notes.extend(words.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word.to_owned()));
        notes
    }

    fn peers(&self, now: Instant) -> BTreeMap<String, PeerView> {
        let Some(intent) = &self.intent else { return BTreeMap::new() };
        let statuses = self.speaker.status();
        let mut peers = BTreeMap::new();
        for (id, neighbor) in &intent.neighbors {
            let (config, transport) = (&neighbor.config, &neighbor.transport);
            let status = statuses.get(id);
            let view = PeerView {
                address: Some(transport.address),
                interface: transport.interface.to_string(),
                protocol: "BGP".into(),
                state: format!("{:?}", status.map_or(NeighborState::Idle, |status| status.state)),
                up: self.is_up(id, neighbor),
                since_s: status.map_or(0, |status| age_s(now, status.since)),
                local_as: config.local_as,
                remote_as: config.remote_as.unwrap_or(0),
                router_id: status.and_then(|status| status.remote_router_id),
                families: family_words(&config.families),
                negotiated: status.map(|status| family_words(&status.families)).unwrap_or_default(),
                end_of_rib: status.map(|status| family_words(&status.end_of_rib)).unwrap_or_default(),
                hold_time_s: status.map_or(0, |status| status.hold_time_s),
                keepalive_s: status.map_or(0, |status| status.hold_time_s / 3),
                bfd: neighbor.bfd.as_ref().map(ToString::to_string),
                received: status.map_or(0, |status| status.received),
                announced: status.map_or(0, |status| status.announced),
                last_error: self.lesson(now, id, neighbor, status),
                description: neighbor.description.as_deref().map(str::to_owned),
            };
            peers.insert(id.to_string(), view);
        }
        for (name, gateway) in &intent.statics {
            let up = self.statics_up.contains(name);
            let why = self.links.resolve(gateway.address, &gateway.interface, false, 1).err();
            let view = PeerView {
                address: Some(gateway.address),
                interface: gateway.interface.to_string(),
                protocol: "Static".into(),
                state: if up { "Up".into() } else { "Down".into() },
                up,
                bfd: gateway.bfd.as_ref().map(ToString::to_string),
                last_error: why.map(|why| why.to_string()),
                ..PeerView::default()
            };
            peers.insert(name.to_string(), view);
        }
        for (name, reason) in &intent.withheld {
            let view = PeerView { protocol: "-".into(), last_error: Some(reason.to_string()), ..PeerView::default() };
            peers.insert(name.to_string(), view);
        }
        peers
    }
}

impl Router {
    /// Why a neighbour is not as it should be, or why its last session ended, with the remedy.
    fn lesson(
        &self,
        now: Instant,
        id: &NeighborId,
        neighbor: &Neighbor,
        status: Option<&NeighborStatus>,
    ) -> Option<String> {
        let config = &neighbor.config;
        let said = self.sessions.get(id).and_then(|session| session.said.as_ref());
        let bfd = neighbor.bfd.as_ref().and_then(|session| self.bfd.get(session));
        let error = || {
            let text = status?.last_error.as_deref()?;
            let gave_way = text.starts_with("Cease/Connection Collision");
            (!gave_way).then(|| lesson::of_error(text, said, config))
        };
        let silence = || status.and_then(|s| lesson::of_silence(now, s.state, s.since));
        let session = || status.and_then(|s| lesson::of_session(now, s.state, config, &s.families, bfd));
        let last = || said.map(|said| said.words(config));
        self.no_answer(id).or_else(silence).or_else(session).or_else(error).or_else(last)
    }

    /// What is wrong with gateway routers, in the form of conditions.
    fn session_conditions(&self, peers: &BTreeMap<String, PeerView>) -> Vec<String> {
        let Some(intent) = &self.intent else { return Vec::new() };
        // Of one that is Up only what is missing of it now, not why its last session ended.
        let is_faulty = |view: &&PeerView| !view.up || view.negotiated.len() < view.families.len();
        let faulty = peers
            .iter()
            .filter(|(_, view)| is_faulty(view))
            .filter_map(|(name, view)| Some((name, view.up, view.last_error.as_deref()?)));
        let namespace = &intent.gateway.namespace;
        faulty
            .map(|(name, up, error)| {
                let truth = if up { "True" } else { "False" };
                format!("GatewayRouter {namespace}/{name} Programmed={truth} Degraded: {error}")
            })
            .collect()
    }
}

fn family_words(families: &BTreeSet<martlet_bgp::Family>) -> Vec<String> {
    families.iter().map(|family| words(*family).to_owned()).collect()
}

fn bfd_view(now: Instant, session: &SessionStatus) -> BfdView {
    BfdView {
        state: format!("{:?}", session.state),
        since_s: age_s(now, session.since),
        diagnostic: format!("{:?}", session.diagnostic),
        remote_state: format!("{:?}", session.remote_state),
        remote_diagnostic: format!("{:?}", session.remote_diagnostic),
        local_discriminator: session.local_discriminator,
        remote_discriminator: session.remote_discriminator,
        transmit_interval_ms: millis(session.transmit_interval),
        detection_time_ms: millis(session.detection_time),
    }
}

fn key_words(key: &Key) -> String {
    match key {
        Key::Rule(rule) => format!("rule {rule:?}"),
        Key::Route { table, metric, prefix } => format!("route {prefix} table {table} metric {metric}"),
    }
}
