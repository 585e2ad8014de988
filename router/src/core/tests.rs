//! Plays in time: a router between a set that stands for the kernel and neighbours that are spoken to by hand.

use std::ops::Range;

use martlet_api::readiness::{Readiness, VERSION, VipReadiness};
use martlet_api::view::{self, Bgp, GatewayRouter, ObjectName, Protocol, View};
use martlet_bfd::Diagnostic;
use martlet_netlink::{Change, Link, NextHop, Route, RouteKind};

use super::*;
use crate::gate::Reason;
use crate::intent::Settings;
use crate::mirror::{BATCH, Failure};

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A router, its kernel, and what it wanted.
struct Stage {
    router: Router,
    kernel: BTreeSet<Object>,
    links: BTreeMap<u32, Link>,
    outputs: Vec<Output>,
    events: Vec<Event>,
}

fn link(up: bool) -> Link {
    let addresses = [net("10.0.0.1/24"), net("fd00::1/64"), net("fe80::1/64")].into();
    Link { index: 7, name: "eth0".into(), up, carrier: up, mtu: 1500, addresses }
}

fn config() -> Config {
    Config {
        identity: Identity { router_id: None, name: "pod".into() },
        external_interface: "eth0".into(),
        table: 4096,
        adopt: Duration::from_secs(10),
        leave: Duration::ZERO,
        drain: Duration::from_secs(5),
        seed: 1,
    }
}

fn supervised() -> Protocol {
    Protocol::Static(Some(view::Bfd::default()))
}

fn bgp() -> Protocol {
    Protocol::Bgp(Box::<Bgp>::default())
}

fn supervised_bgp() -> Protocol {
    Protocol::Bgp(Box::new(Bgp { bfd: Some(view::Bfd::default()), ..Bgp::default() }))
}

fn intent(routers: &[(&str, &str, Protocol)], vips: &[&str]) -> Intent {
    let view = View {
        gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
        exists: true,
        routers: routers
            .iter()
            .map(|(name, address, protocol)| {
                let address = address.parse().unwrap();
                let protocol = protocol.clone();
                (Arc::from(*name), GatewayRouter { address, interface: None, description: None, protocol })
            })
            .collect(),
        routes: BTreeMap::new(),
        services: BTreeMap::new(),
        vips: vips.iter().map(|vip| net(vip)).collect(),
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    };
    Intent::new(&view, &Settings { external_interface: "eth0".into(), ..Settings::default() })
}

fn ready(vips: &[&str]) -> Lb {
    let ready = |vip: &&str| (net(vip), VipReadiness { ready: true, reason: String::new() });
    let vips = vips.iter().map(ready).collect();
    Lb::Said(Readiness { version: VERSION, gateway: "sllb-a".into(), draining: false, vips })
}

fn session(remote: &str) -> SessionId {
    SessionId { remote: remote.parse().unwrap(), interface: Some("eth0".into()), local: None }
}

fn status(state: State, remote_state: State) -> SessionStatus {
    SessionStatus {
        state,
        since: at(0),
        diagnostic: Diagnostic::None,
        remote_state,
        remote_diagnostic: Diagnostic::None,
        local_discriminator: 1,
        remote_discriminator: 2,
        transmit_interval: Duration::from_millis(300),
        detection_time: Duration::from_millis(1500),
    }
}

fn default_via(hop: &str) -> Object {
    let gateway = Some(hop.parse::<IpAddr>().unwrap());
    let hops = vec![NextHop { gateway, interface: Some(7), weight: 1, onlink: false }];
    let prefix = if hop.contains(':') { net("::/0") } else { net("0.0.0.0/0") };
    Object::Route(Route { table: 4096, prefix, metric: 20, kind: RouteKind::Unicast(hops) })
}

impl Stage {
    fn new(kernel: BTreeSet<Object>) -> Self {
        let links = [(7, link(true))].into();
        let mut stage = Self { router: Router::new(config()), kernel, links, outputs: Vec::new(), events: Vec::new() };
        stage.dump(0);
        stage
    }

    fn dump(&mut self, millis: u64) {
        let snapshot = Snapshot { links: self.links.clone(), objects: self.kernel.clone(), ..Snapshot::default() };
        self.handle(millis, &Input::Kernel(&snapshot));
    }

    /// Lets the time pass, then hands `input` in.
    fn handle(&mut self, millis: u64, input: &Input<'_>) {
        while let Some(due) = self.router.deadline().filter(|due| *due < at(millis)) {
            self.step(due, &Input::Timeout);
        }
        self.step(at(millis), input);
    }

    /// Hands `input` in; plays the kernel.
    fn step(&mut self, now: Instant, input: &Input<'_>) {
        self.router.handle(now, input.clone());
        while let Some(output) = self.router.poll() {
            match output {
                Output::Apply(changes) => {
                    for change in changes {
                        match change {
                            Change::Add(object) => assert!(self.kernel.insert(object)),
                            Change::Remove(object) => assert!(self.kernel.remove(&object)),
                            Change::Replace { from, to } => {
                                assert!(self.kernel.remove(&from) && self.kernel.insert(to));
                            }
                        }
                    }
                    self.router.handle(now, Input::Applied(&[]));
                }
                Output::Event(event) => self.events.push(event),
                output => self.outputs.push(output),
            }
        }
        if let Some(deadline) = self.router.deadline() {
            assert!(deadline >= now, "a deadline in the past remains");
            assert!(deadline > now || !matches!(input, Input::Timeout), "a timeout does not help");
        }
    }

    fn bfd(&mut self, millis: u64, states: &[(&str, State, State)]) {
        let sessions = states.iter().map(|(remote, state, other)| (session(remote), status(*state, *other))).collect();
        self.handle(millis, &Input::Bfd(&sessions));
    }

    fn routes(&self) -> Vec<String> {
        let learned = |object: &Object| match object {
            Object::Route(Route { metric: 20, prefix, kind: RouteKind::Unicast(hops), .. }) => {
                let hops: Vec<_> = hops.iter().map(|hop| hop.gateway.unwrap().to_string()).collect();
                Some(format!("{prefix} via {}", hops.join(" ")))
            }
            _ => None,
        };
        self.kernel.iter().filter_map(learned).collect()
    }

    fn announced(&self) -> Vec<String> {
        self.router.announced.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn rules_and_blackholes_stand_before_anybody_is_up() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp())], &["20.0.0.1/32", "2000::1/128"])));
    assert_eq!(stage.kernel.len(), 6 + 4);
    assert!(stage.announced().is_empty());
    let said: Vec<_> = stage.events.iter().filter(|event| matches!(event, Event::Withheld(..))).collect();
    assert_eq!(said.len(), 2);
}

#[test]
fn a_static_gateway_is_a_route_and_connectivity_exactly_while_bfd_is_up() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", supervised())], &["20.0.0.1/32"])));
    stage.handle(0, &Input::Lb(&ready(&["20.0.0.1/32"])));
    assert_eq!((stage.routes().len(), stage.announced().len()), (0, 0));
    stage.bfd(10, &[("10.0.0.2", State::Up, State::Up)]);
    assert_eq!(stage.routes(), ["0.0.0.0/0 via 10.0.0.2"]);
    assert_eq!(stage.announced(), ["20.0.0.1/32"]);
    assert!(stage.outputs.contains(&Output::Connectivity(Families { ipv4: true, ipv6: false })));
    assert_eq!(stage.router.ways.open(), Families { ipv4: true, ipv6: false }, "its route is there at once");
    stage.bfd(20, &[("10.0.0.2", State::Down, State::Up)]);
    assert_eq!((stage.routes().len(), stage.announced().len()), (0, 0));
}

/// A family is no way out before its routes were told, and waits for nobody for ever.
#[test]
fn a_pod_is_connected_when_a_gateway_has_told_its_routes_or_tells_nothing_for_five_seconds() {
    let connected = |router: &mut Router, millis| {
        router.settle(at(millis));
        router.ways.open()
    };
    let both = Families { ipv4: true, ipv6: true };
    let router = &mut Router::new(config());
    assert_eq!(connected(router, 0), Families::default());
    router.connectivity = both;
    assert_eq!(connected(router, 1_000), Families::default());
    router.sessions.entry(NeighborId::new("gw")).or_default().end_of_rib.insert(Family::Ipv4);
    assert_eq!(connected(router, 1_300), Families { ipv4: true, ipv6: false });
    assert_eq!(router.deadline(), Some(at(6_000)));
    assert_eq!(connected(router, 5_999), Families { ipv4: true, ipv6: false });
    assert_eq!(connected(router, 6_000), both);
    router.connectivity = Families { ipv4: false, ipv6: true };
    assert_eq!(connected(router, 7_000), Families { ipv4: false, ipv6: true }, "lost at once");
}

#[test]
fn the_next_static_gateway_takes_over_in_one_replacement() {
    let both = [("a", "10.0.0.2", supervised()), ("b", "10.0.0.3", supervised())];
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&both, &["20.0.0.1/32"])));
    stage.bfd(10, &[("10.0.0.2", State::Up, State::Up), ("10.0.0.3", State::Up, State::Up)]);
    assert_eq!(stage.routes(), ["0.0.0.0/0 via 10.0.0.2"]);
    stage.bfd(20, &[("10.0.0.2", State::Down, State::Down), ("10.0.0.3", State::Up, State::Up)]);
    assert_eq!(stage.routes(), ["0.0.0.0/0 via 10.0.0.3"]);
}

#[test]
fn a_link_without_carrier_takes_its_static_gateway_along() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", Protocol::Static(None))], &["20.0.0.1/32"])));
    assert_eq!(stage.routes(), ["0.0.0.0/0 via 10.0.0.2"]);
    // The kernel drops the IPv4 routes of a link that goes down, without a word.
    stage.kernel.remove(&default_via("10.0.0.2"));
    stage.links.insert(7, link(false));
    stage.dump(10);
    assert!(stage.routes().is_empty());
    stage.links.insert(7, link(true));
    stage.dump(20);
    assert_eq!(stage.routes(), ["0.0.0.0/0 via 10.0.0.2"]);
}

#[test]
fn an_adopted_route_stays_until_it_is_told_again_or_ten_seconds_are_over() {
    let mut stage = Stage::new([default_via("10.0.0.2"), default_via("fd00::2")].into());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", supervised()), ("gw6", "fd00::2", bgp())], &[])));
    assert_eq!(stage.routes().len(), 2);
    stage.bfd(1000, &[("10.0.0.2", State::Up, State::Up)]);
    assert_eq!(stage.routes().len(), 2, "told again: not touched; the other family has not spoken");
    stage.handle(9_999, &Input::Timeout);
    assert_eq!(stage.routes().len(), 2);
    stage.handle(10_000, &Input::Timeout);
    assert_eq!(stage.routes(), ["0.0.0.0/0 via 10.0.0.2"]);
    assert!(stage.events.contains(&Event::AdoptionEnded(Family::Ipv6, 1)));
}

#[test]
fn before_the_source_has_synced_nothing_is_removed() {
    let leftover =
        Object::Route(Route { table: 4096, prefix: net("0.0.0.0/0"), metric: 33, kind: RouteKind::Blackhole });
    let mut stage = Stage::new([leftover.clone()].into());
    stage.handle(5_000, &Input::Lb(&ready(&[])));
    assert!(stage.kernel.contains(&leftover));
    stage.handle(6_000, &Input::Intent(&intent(&[], &[])));
    assert!(!stage.kernel.contains(&leftover));
}

#[test]
fn what_others_delete_is_put_back_in_the_same_step() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[], &["20.0.0.1/32"])));
    let removed: BTreeSet<Object> = stage.kernel.iter().filter(|o| matches!(o, Object::Rule(_))).cloned().collect();
    stage.kernel.retain(|object| !removed.contains(object));
    stage.handle(1, &Input::KernelChanged { removed: &removed, appeared: &BTreeSet::new() });
    assert!(removed.is_subset(&stage.kernel));
    assert!(stage.events.contains(&Event::Repaired(3)));
}

#[test]
fn the_end_withdraws_then_drains_then_takes_learned_routes_along_and_leaves_the_rest() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", Protocol::Static(None))], &["20.0.0.1/32"])));
    stage.handle(0, &Input::Lb(&ready(&["20.0.0.1/32"])));
    assert_eq!(stage.announced().len(), 1);
    stage.handle(100, &Input::Stop);
    assert_eq!((stage.announced().len(), stage.routes().len()), (0, 1));
    assert!(stage.events.contains(&Event::Withheld(net("20.0.0.1/32"), Reason::Stopping)));
    assert_eq!(stage.router.deadline(), Some(at(5_100)));
    stage.handle(5_100, &Input::Timeout);
    assert_eq!((stage.routes().len(), stage.kernel.len()), (0, 3 + 4));
    assert_eq!(stage.outputs.last(), Some(&Output::Stopped));
}

#[test]
fn who_is_in_a_hurry_asks_twice() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", Protocol::Static(None))], &[])));
    stage.handle(100, &Input::Stop);
    stage.handle(101, &Input::Stop);
    assert_eq!(stage.outputs.last(), Some(&Output::Stopped));
    let mut idle = Stage::new(BTreeSet::new());
    idle.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp())], &[])));
    idle.handle(1, &Input::Stop);
    assert!(idle.events.contains(&Event::Stopping), "nobody sends us anything: nothing to drain");
}

#[test]
fn a_connection_from_nowhere_is_refused_before_a_byte_is_read() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp())], &[])));
    let local: std::net::SocketAddr = "10.0.0.1:10179".parse().unwrap();
    let strange = [("eth0", "10.0.0.3:4000"), ("eth1", "10.0.0.2:4000")];
    for (number, (interface, remote)) in (1..).zip(strange) {
        let remote = remote.parse().unwrap();
        stage.handle(1, &Input::Incoming(Incoming { ticket: Ticket(number), interface, local, remote }));
        assert_eq!(stage.outputs.last(), Some(&Output::Refuse(Ticket(number))));
    }
    assert_eq!(stage.events.iter().filter(|event| matches!(event, Event::Stranger(..))).count(), 2);
}

#[test]
fn listeners_follow_their_interface() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp()), ("gw6", "fd00::2", bgp())], &[])));
    let Some(Output::Listen(listeners)) = stage.outputs.iter().rfind(|o| matches!(o, Output::Listen(_))).cloned()
    else {
        panic!("no listeners")
    };
    assert_eq!(listeners.len(), 2);
    assert!(listeners.keys().all(|listener| listener.port == 10179 && listener.index == 7));
    stage.links.remove(&7);
    stage.dump(1);
    assert!(stage.outputs.contains(&Output::Listen(Listeners::new())));
}

#[test]
fn a_kernel_that_refuses_is_asked_again_and_dumped() {
    let mut router = Router::new(config());
    let snapshot = Snapshot { links: [(7, link(true))].into(), objects: BTreeSet::new(), ..Snapshot::default() };
    router.handle(at(0), Input::Kernel(&snapshot));
    router.handle(at(0), Input::Intent(&intent(&[], &["20.0.0.1/32"])));
    let mut outputs = std::iter::from_fn(|| router.poll());
    let Some(Output::Apply(changes)) = outputs.find(|output| matches!(output, Output::Apply(_))) else { panic!() };
    let failure = Failure { change: changes[0].clone(), error: "no".into() };
    router.handle(at(1), Input::Applied(&[failure]));
    let outputs: Vec<_> = std::iter::from_fn(|| router.poll()).collect();
    assert!(outputs.contains(&Output::Dump));
    assert!(router.status(at(1)).kernel[0].contains("no"));
}

#[test]
fn repeating_a_value_does_nothing() {
    let mut stage = Stage::new(BTreeSet::new());
    let wish = intent(&[("gw", "10.0.0.2", supervised()), ("n", "10.0.0.3", bgp())], &["20.0.0.1/32"]);
    let lb = ready(&["20.0.0.1/32"]);
    stage.handle(0, &Input::Intent(&wish));
    stage.handle(0, &Input::Lb(&lb));
    stage.bfd(0, &[("10.0.0.2", State::Up, State::Up)]);
    let (outputs, events) = (stage.outputs.len(), stage.events.len());
    stage.handle(0, &Input::Intent(&wish));
    stage.handle(0, &Input::Lb(&lb));
    stage.bfd(0, &[("10.0.0.2", State::Up, State::Up)]);
    stage.dump(0);
    assert_eq!((stage.outputs.len(), stage.events.len()), (outputs, events));
}

fn connects(stage: &Stage) -> Vec<ConnectionId> {
    let connect = |output: &Output| if let Output::Connect(id, _) = output { Some(*id) } else { None };
    stage.outputs.iter().filter_map(connect).collect()
}

/// The one connection that was asked for, to 10.0.0.2, opens.
fn connected(stage: &mut Stage, millis: u64) -> ConnectionId {
    let [id] = connects(stage)[..] else { panic!("{:?}", stage.outputs) };
    stage.handle(millis, &Input::Connected(id, "10.0.0.1:4000".parse().unwrap(), "10.0.0.2:10179".parse().unwrap()));
    id
}

/// How often the other end of the one session was sighted, each time that BFD was told its sessions.
fn sightings(stage: &Stage) -> Vec<u32> {
    let told = stage.outputs.iter().filter_map(|output| match output {
        Output::SetBfd(sessions) => sessions.values().map(|config| config.sightings).next(),
        _ => None,
    });
    told.collect()
}

fn with_password(password: &str) -> Protocol {
    let password = view::Password { source: "s".into(), key: "k".into(), secret: Some(password.as_bytes().into()) };
    Protocol::Bgp(Box::new(Bgp { password: Some(password), ..Bgp::default() }))
}

#[test]
fn a_password_is_rolled_on_the_living_connection_and_a_new_address_starts_anew() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", with_password("old"))], &[])));
    let id = connected(&mut stage, 1);
    stage.handle(2, &Input::Intent(&intent(&[("gw", "10.0.0.2", with_password("new"))], &[])));
    let key = crate::intent::Key(b"new".as_slice().into());
    assert!(stage.outputs.contains(&Output::Rekey(id, "10.0.0.2".parse().unwrap(), Some(key))));
    assert!(!stage.outputs.contains(&Output::Close(id)));
    stage.handle(3, &Input::Intent(&intent(&[("gw", "10.0.0.3", with_password("new"))], &[])));
    assert!(stage.outputs.contains(&Output::Close(id)));
}

#[test]
fn a_gateway_off_the_link_is_not_tried_and_says_why() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.9.0.2", bgp())], &[])));
    stage.handle(1_000, &Input::Timeout);
    assert!(connects(&stage).is_empty());
    let error = stage.router.status(at(1_000)).peers["gw"].last_error.clone().unwrap_or_default();
    assert!(error.contains("10.9.0.2 is in no network of interface eth0"), "{error}");
}

#[test]
fn a_link_that_loses_its_carrier_takes_connections_and_bfd_along_at_once() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", supervised_bgp())], &[])));
    let id = connected(&mut stage, 1);
    stage.links.insert(7, link(false));
    stage.dump(10);
    assert!(stage.outputs.contains(&Output::Close(id)));
    assert_eq!(stage.outputs.iter().rfind(|o| matches!(o, Output::SetBfd(_))), Some(&Output::SetBfd(BTreeMap::new())));
    stage.links.insert(7, link(true));
    stage.dump(20);
    stage.handle(1_000, &Input::Timeout);
    assert!(connects(&stage).len() > 1, "and is tried again");
}

#[test]
fn a_bfd_session_that_went_down_and_up_unseen_ends_the_bgp_session_all_the_same() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", supervised_bgp())], &[])));
    let up_since = |millis| {
        BTreeMap::from([(session("10.0.0.2"), SessionStatus { since: at(millis), ..status(State::Up, State::Up) })])
    };
    stage.handle(1, &Input::Bfd(&up_since(1)));
    let id = connected(&mut stage, 2);
    stage.handle(3, &Input::Bfd(&up_since(1)));
    assert!(!stage.outputs.contains(&Output::Close(id)), "nothing has changed");
    stage.handle(4, &Input::Bfd(&up_since(4)));
    assert!(stage.outputs.contains(&Output::Close(id)));
    let told = stage.events.iter().filter_map(|event| match event {
        Event::Bfd { from, to, .. } => Some((*from, *to)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told, [(State::Down, State::Up), (State::Up, State::Down), (State::Down, State::Up)]);
}

/// The OPEN of the seed's gateway.
fn open_of_the_gateway() -> Vec<u8> {
    let asn = 4_248_829_953_u32.to_be_bytes();
    let capability = [&[2, 6, 65, 4][..], &asn].concat();
    [&[0xff; 16][..], &[0, 37, 1, 4, 0x5b, 0xa0, 0, 3, 10, 0, 0, 2, 8], &capability].concat()
}

const KEEPALIVE: [u8; 19] = {
    let mut message = [0xff; 19];
    [message[16], message[17], message[18]] = [0, 19, 4];
    message
};

#[test]
fn bgp_tells_a_bfd_session_that_is_down_that_its_other_end_is_there() {
    // How often: by the OPEN, when BGP is Established, and later.
    let seen = |states: [State; 2]| {
        let mut stage = Stage::new(BTreeSet::new());
        stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", supervised_bgp())], &[])));
        stage.bfd(1, &[("10.0.0.2", states[0], states[1])]);
        let id = connected(&mut stage, 2);
        let asked = |stage: &Stage| sightings(stage).last().copied();
        assert_eq!(asked(&stage), Some(0), "a connection alone says little: any host may answer");
        let mut seen = Vec::new();
        stage.handle(3, &Input::Received(id, &open_of_the_gateway()));
        seen.extend(asked(&stage));
        stage.handle(4, &Input::Received(id, &KEEPALIVE));
        for millis in [4, 53, 54, 303, 304, 5_000] {
            stage.handle(millis, &Input::Timeout);
            seen.extend(asked(&stage));
        }
        seen
    };
    let never = [0; 7];
    assert_eq!(seen([State::Down, State::Down]), [0, 0, 0, 1, 1, 2, 2]);
    assert_eq!(seen([State::Init, State::Down]), [0, 0, 0, 1, 1, 2, 2]);
    assert_eq!(seen([State::Up, State::Up]), never);
    assert_eq!(seen([State::Down, State::AdminDown]), never, "held down on purpose");
}

#[test]
fn a_neighbour_that_left_again_is_not_looked_for() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", supervised_bgp())], &[])));
    let id = connected(&mut stage, 2);
    stage.handle(3, &Input::Received(id, &open_of_the_gateway()));
    stage.handle(4, &Input::Received(id, &KEEPALIVE));
    stage.handle(60, &Input::Closed(id, martlet_bgp::CloseReason::Reset));
    stage.handle(90, &Input::Timeout);
    assert_eq!(sightings(&stage), [0, 1]);
    stage.handle(400, &Input::Timeout);
    assert_eq!(stage.outputs.iter().filter(|output| matches!(output, Output::SetBfd(_))).count(), 2);
}

#[test]
fn a_neighbor_that_does_not_answer_is_named_with_the_remedies() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp())], &[])));
    stage.handle(5_000, &Input::Timeout);
    let error = stage.router.status(at(5_000)).peers["gw"].last_error.clone().unwrap_or_default();
    assert!(error.starts_with("no answer from 10.0.0.2 port 10179 over eth0") && error.contains("MD5"), "{error}");
    assert_eq!(stage.events.iter().filter(|event| matches!(event, Event::NoAnswer(..))).count(), 1);
    let id = *connects(&stage).last().expect("an attempt");
    stage.handle(5_001, &Input::Connected(id, "10.0.0.1:4000".parse().unwrap(), "10.0.0.2:10179".parse().unwrap()));
    assert_eq!(stage.router.status(at(5_001)).peers["gw"].last_error, None);
}

#[test]
fn who_leaves_gracefully_says_so_before_it_withdraws() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.router.config.leave = Duration::from_secs(2);
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", Protocol::Static(None))], &["20.0.0.1/32"])));
    stage.handle(0, &Input::Lb(&ready(&["20.0.0.1/32"])));
    stage.handle(100, &Input::Stop);
    assert_eq!(stage.announced().len(), 1);
    stage.handle(2_100, &Input::Timeout);
    assert_eq!((stage.announced().len(), stage.routes().len()), (0, 1));
    stage.handle(7_100, &Input::Timeout);
    assert_eq!(stage.outputs.last(), Some(&Output::Stopped));
}

#[test]
fn a_vip_that_is_deleted_while_the_router_leaves_is_withdrawn_at_once() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.router.config.leave = Duration::from_secs(2);
    let wish = |vips: &[&str]| intent(&[("gw", "10.0.0.2", Protocol::Static(None))], vips);
    stage.handle(0, &Input::Intent(&wish(&["20.0.0.1/32", "20.0.0.2/32"])));
    stage.handle(0, &Input::Lb(&ready(&["20.0.0.1/32", "20.0.0.2/32"])));
    stage.handle(100, &Input::Stop);
    assert_eq!(stage.announced().len(), 2);
    stage.handle(200, &Input::Intent(&wish(&["20.0.0.1/32"])));
    assert_eq!(stage.announced(), ["20.0.0.1/32"]);
}

#[test]
fn adoption_ends_in_time_although_the_kernel_is_busy() {
    let mut router = Router::new(config());
    let snapshot =
        Snapshot { links: [(7, link(true))].into(), objects: [default_via("10.0.0.2")].into(), ..Snapshot::default() };
    router.handle(at(0), Input::Kernel(&snapshot));
    router.handle(at(0), Input::Intent(&intent(&[], &["20.0.0.1/32"])));
    let applies = |router: &mut Router| {
        std::iter::from_fn(|| router.poll()).filter(|output| matches!(output, Output::Apply(_))).count()
    };
    assert_eq!(applies(&mut router), 1, "a batch that the kernel takes its time for");
    router.handle(at(0), Input::Intent(&intent(&[("gw", "10.0.0.2", supervised())], &["20.0.0.1/32"])));
    router.handle(at(10_000), Input::Timeout);
    assert!(router.deadline().is_none_or(|deadline| deadline > at(10_000)), "no deadline in the past remains");
}

/// The router wants so many more routes, and the speaker may have more.
fn learn(router: &mut Router, numbers: Range<usize>) {
    for number in numbers {
        let prefix = net(&format!("100.{}.{}.0/24", number / 256, number % 256));
        let route = Route { table: 4096, prefix, metric: 20, kind: RouteKind::Blackhole };
        router.mirror.want_learned(prefix, Some(route.into()));
    }
    router.routes.changed = true;
}

fn next_batch(router: &mut Router) -> Option<usize> {
    match router.poll() {
        Some(Output::Apply(changes)) => Some(changes.len()),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_planned_goes_to_the_kernel_before_more_is_planned() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp())], &[])));
    let router = &mut stage.router;
    learn(router, 0..BATCH);
    router.handle(at(1), Input::Timeout);
    assert_eq!(next_batch(router), Some(BATCH));
    assert!(router.routes.changed, "the speaker was not asked yet");
    assert_eq!(router.deadline(), Some(at(1)), "but is next");
}

#[test]
fn the_kernel_has_a_batch_to_go_on_with_and_no_more() {
    let mut stage = Stage::new(BTreeSet::new());
    stage.handle(0, &Input::Intent(&intent(&[("gw", "10.0.0.2", bgp())], &[])));
    let router = &mut stage.router;
    learn(router, 0..4 * BATCH);
    router.handle(at(1), Input::Timeout);
    assert_eq!((next_batch(router), next_batch(router)), (Some(BATCH), None));
    assert_eq!(router.deadline(), Some(at(1)), "the next is due");
    router.handle(at(1), Input::Timeout);
    assert_eq!((next_batch(router), next_batch(router)), (Some(BATCH), None));
    assert!(router.deadline() > Some(at(1)), "the kernel has enough to do");
    router.handle(at(2), Input::Timeout);
    assert_eq!(next_batch(router), None);
    router.handle(at(3), Input::Applied(&[]));
    assert_eq!((next_batch(router), next_batch(router)), (Some(BATCH), None));
    assert!(!router.mirror.is_clean());
    for (millis, left) in [(4, Some(BATCH)), (5, None), (6, None)] {
        router.handle(at(millis), Input::Applied(&[]));
        assert_eq!(next_batch(router), left);
    }
    assert!(router.mirror.is_clean());
}
