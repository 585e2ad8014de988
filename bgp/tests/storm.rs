//! Random sequences of events: every one is answered, no deadline stays in the past, outputs are bounded, and what is left
//! is what a calm sequence would have left.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod puppet;

use std::collections::BTreeSet;

use ipnet::IpNet;
use martlet_bgp::{
    Bfd, BfdState, CloseReason, ConnectionId, Export, Family, Import, Input, NeighborConfig, NeighborState, Ticket,
};
use martlet_clock::Instant;
use proptest::prelude::*;
use puppet::{
    Stage, attribute, endpoints, keepalive, message, modern, name, net, next_hop, open, origin, path, update,
};

/// One thing that happens to one of two neighbours.
#[derive(Clone, Debug)]
enum Happening {
    Wait(u64),
    Establish(u8),
    Incoming(u8),
    Connected(usize),
    Closed(usize, bool),
    Open(usize, u8),
    Keepalive(usize),
    Announce(usize, u8, u8),
    Withdraw(usize, u8),
    EndOfRib(usize),
    Refresh(usize, u8),
    Notification(usize, u8, u8),
    Noise(usize, Vec<u8>),
    Damaged(usize, u8, u8),
    SetAnnounced(u8),
    SetOwn(u8),
    Bfd(u8, u8),
    Configure(u8, u8),
    Room(bool),
    Ask(u8),
    Reset(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let which = 0..6usize;
    let who = 2..4u8;
    prop_oneof![
        3 => (1..20_000u64).prop_map(Wait),
        1 => (20_000..100_000u64).prop_map(Wait),
        4 => who.clone().prop_map(Establish),
        4 => who.clone().prop_map(Incoming),
        2 => which.clone().prop_map(Connected),
        2 => (which.clone(), any::<bool>()).prop_map(|(one, reset)| Closed(one, reset)),
        8 => (which.clone(), 0..4u8).prop_map(|(one, kind)| Open(one, kind)),
        8 => which.clone().prop_map(Keepalive),
        8 => (which.clone(), 0..6u8, 0..4u8).prop_map(|(one, prefix, kind)| Announce(one, prefix, kind)),
        3 => (which.clone(), 0..6u8).prop_map(|(one, prefix)| Withdraw(one, prefix)),
        1 => which.clone().prop_map(EndOfRib),
        1 => (which.clone(), 0..4u8).prop_map(|(one, kind)| Refresh(one, kind)),
        1 => (which.clone(), 0..10u8, 0..12u8).prop_map(|(one, code, subcode)| Notification(one, code, subcode)),
        1 => (which.clone(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(one, octets)| Noise(one, octets)),
        2 => (which, any::<u8>(), any::<u8>()).prop_map(|(one, at, value)| Damaged(one, at, value)),
        2 => any::<u8>().prop_map(SetAnnounced),
        1 => any::<u8>().prop_map(SetOwn),
        1 => (who.clone(), 0..3u8).prop_map(|(who, state)| Bfd(who, state)),
        1 => (who.clone(), 0..8u8).prop_map(|(who, kind)| Configure(who, kind)),
        1 => any::<bool>().prop_map(Room),
        1 => who.clone().prop_map(Ask),
        1 => who.prop_map(Reset),
    ]
}

fn config(last: u8, kind: u8) -> NeighborConfig {
    let export = Export { transit: Import::All, ..Export::default() };
    let mut config =
        NeighborConfig { export, ..NeighborConfig::new(65000, 65000 + u32::from(last), [Family::Ipv4, Family::Ipv6]) };
    match kind {
        1 => config.bfd = Bfd::Loose,
        2 => config.bfd = Bfd::Strict,
        3 => config.passive = true,
        4 => config.import = Import::Default,
        5 => config.shutdown = Some("enough".into()),
        6 => config.delay_open = Some(std::time::Duration::from_secs(3)),
        7 => config.graceful_restart.restarting = true,
        _ => (),
    }
    config
}

fn own(bits: u8) -> BTreeSet<IpNet> {
    let all = ["20.0.0.1/32", "20.0.0.2/32", "2000::1/128", "10.3.0.0/16"];
    (0..4u8).filter(|bit| bits >> bit & 1 == 1).map(|bit| all[usize::from(bit)].parse().unwrap()).collect()
}

fn announcement(prefix: u8, kind: u8) -> Vec<u8> {
    let mut attributes = vec![origin(), path(&[65002, u32::from(kind) + 1]), next_hop(2)];
    if kind == 3 {
        attributes.push(attribute(0x80, 4, &[1]));
    }
    update(&[], &attributes.concat(), &net(prefix))
}

struct Storm {
    stage: Stage,
}

impl Storm {
    fn new() -> Self {
        let mut stage = Stage::new([(2, config(2, 0)), (3, config(3, 0))]);
        let mut storm = Self {
            stage: {
                stage.room = 1 << 16;
                stage
            },
        };
        storm.happen(&Happening::Configure(2, 0));
        storm.happen(&Happening::Configure(3, 0));
        storm
    }

    /// Connections that live, the latest first; the last choice is one that does not.
    fn pick(&self, one: usize) -> ConnectionId {
        let connects = self.stage.connects.iter().map(|(_, id)| *id);
        let all: BTreeSet<_> = connects.chain(self.stage.accepted.values().copied()).collect();
        let gone = self.stage.closed.last().copied().unwrap_or(ConnectionId(9999));
        all.into_iter().rev().filter(|id| !self.stage.closed.contains(id)).chain([gone]).nth(one).unwrap_or(gone)
    }

    fn say(&mut self, one: usize, octets: &[u8]) {
        let id = self.pick(one);
        // A driver delivers nothing of a connection that it was told to close, mostly.
        self.stage.say(id, octets);
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Wait(millis) => {
                let now = self.stage.now.as_nanos() / 1_000_000;
                self.stage.until(now + millis);
            }
            Happening::Establish(who) => {
                if let Some(id) = self.stage.connect(*who) {
                    self.stage.say(
                        id,
                        &open(
                            65000 + u16::from(*who),
                            *who,
                            &[modern(65000 + u32::from(*who)), vec![64, 6, 0x40, 10, 0, 1, 1, 0x80]].concat(),
                        ),
                    );
                    self.stage.say(id, &keepalive());
                }
            }
            Happening::Incoming(who) => drop(self.stage.connect(*who)),
            Happening::Connected(one) => {
                let id = self.pick(*one);
                if let Some((who, _)) = self.stage.connects.iter().find(|(_, asked)| *asked == id) {
                    let last = if *who == name(2) { 2 } else { 3 };
                    self.stage.handle(Input::Connected(id, endpoints(last)));
                }
            }
            Happening::Closed(one, reset) => {
                let id = self.pick(*one);
                let reason = if *reset { CloseReason::Reset } else { CloseReason::NoAnswer };
                self.stage.handle(Input::Closed(id, reason));
            }
            Happening::Open(one, kind) => {
                let capabilities = match kind {
                    0 => Vec::new(),
                    1 => [modern(65002), vec![64, 6, 0x40, 10, 0, 1, 1, 0x80]].concat(),
                    _ => modern(65002 + u32::from(*kind) % 2),
                };
                self.say(*one, &open(65002 + u16::from(*kind % 2 == 1 && *kind != 1), 2 + kind % 2, &capabilities));
            }
            Happening::Keepalive(one) => self.say(*one, &keepalive()),
            Happening::Announce(one, prefix, kind) => self.say(*one, &announcement(*prefix, *kind)),
            Happening::Withdraw(one, prefix) => self.say(*one, &update(&net(*prefix), &[], &[])),
            Happening::EndOfRib(one) => self.say(*one, &update(&[], &[], &[])),
            Happening::Refresh(one, kind) => self.say(*one, &message(5, &[0, 1, *kind, 1])),
            Happening::Notification(one, code, subcode) => self.say(*one, &message(3, &[*code, *subcode])),
            Happening::Noise(one, octets) => self.say(*one, octets),
            Happening::Damaged(one, at, value) => {
                let mut octets = announcement(1, 2);
                let at = 19 + usize::from(*at) % (octets.len() - 19);
                octets[at] = *value;
                self.say(*one, &octets);
            }
            Happening::SetAnnounced(bits) => self.stage.handle(Input::SetAnnounced(&own(*bits))),
            Happening::SetOwn(bits) => self.stage.handle(Input::SetOwn(&own(*bits))),
            Happening::Bfd(who, state) => {
                let state = [BfdState::Down, BfdState::Up, BfdState::AdminDown][usize::from(*state)];
                self.stage.handle(Input::SetBfd(&[(name(*who), state)].into()));
            }
            Happening::Configure(who, kind) => {
                self.stage.configs.insert(name(*who), config(*who, *kind));
                let configs = self.stage.configs.clone();
                self.stage.handle(Input::SetNeighbors(&configs));
            }
            Happening::Room(some) => {
                self.stage.room = if *some { 1 << 16 } else { 0 };
                self.stage.drain();
            }
            Happening::Ask(who) => self.stage.handle(Input::Refresh(&name(*who))),
            Happening::Reset(who) => self.stage.handle(Input::Reset(&name(*who), "storm")),
        }
    }

    /// What must hold after everything.
    fn check(&self) {
        let now = self.stage.now;
        assert!(self.stage.speaker.deadline().is_none_or(|at| at > now));
        let status = self.stage.speaker.status();
        let told: usize = status.values().map(|one| one.received).sum();
        let mut paths = 0;
        for net in self.stage.speaker.prefixes() {
            let all = self.stage.speaker.paths(&net);
            for path in &all {
                let neighbor = &status[&path.neighbor];
                // RFC 4271: a route lives as long as its session, or a negotiated time longer.
                assert!(neighbor.state == NeighborState::Established || path.stale, "{net} of nobody");
            }
            paths += all.len();
        }
        assert!(paths <= told, "{paths} paths, {told} told");
        for one in status.values() {
            assert!(one.state == NeighborState::Established || one.announced == 0);
            assert!(one.announced <= 20);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_storm_leaves_no_deadline_in_the_past_and_nothing_of_nobody(storm in prop::collection::vec(happening(), 1..120)) {
        let mut play = Storm::new();
        for happening in &storm {
            play.happen(happening);
            play.check();
        }
        // When all is calm and configured, a session can be had again, and the neighbour hears exactly what is announced.
        play.stage.room = 1 << 16;
        play.stage.drain();
        play.stage.handle(Input::SetBfd(&[].into()));
        play.stage.handle(Input::SetNeighbors(&[].into()));
        assert_eq!(play.stage.speaker.prefixes().count(), 0);
        play.stage.configs = [(name(2), NeighborConfig { passive: true, ..config(2, 0) })].into();
        let configs = play.stage.configs.clone();
        play.stage.handle(Input::SetNeighbors(&configs));
        play.stage.handle(Input::SetAnnounced(&own(0b0111)));
        let id = play.stage.establish(2, 65002, &modern(65002));
        let heard = play.stage.heard(id);
        let nets: BTreeSet<String> = heard.iter().flat_map(|one| one.nlri.clone()).collect();
        prop_assert_eq!(nets, own(0b0111).iter().map(ToString::to_string).collect());
        prop_assert!(heard.iter().all(|one| one.withdrawn.is_empty()));
    }
}

/// A neighbour that hears what another tells, whatever the pace: after each storm of routes it knows just what is there.
fn follow(heard: &[puppet::Heard], known: &mut BTreeSet<String>) {
    for one in heard {
        for gone in &one.withdrawn {
            assert!(known.remove(gone), "{gone} was never told");
        }
        known.extend(one.nlri.iter().cloned());
    }
}

proptest! {
    #[test]
    fn a_listener_knows_what_there_is_once_it_is_quiet(
        steps in prop::collection::vec((0..5u8, 0..12u8, 0..3u8, 0..5u8), 1..200),
    ) {
        let mut stage = Stage::new([(2, config(2, 3)), (3, config(3, 3)), (4, config(4, 3))]);
        let ids = [2u8, 3, 4].map(|last| {
            stage.establish(last, 65000 + u16::from(last), &modern(65000 + u32::from(last)))
        });
        stage.messages(ids[2]);
        let mut known = BTreeSet::new();
        for (what, prefix, kind, pace) in steps {
            let from = ids[usize::from(what % 2)];
            match what {
                0 | 1 => stage.say(from, &update(&[], &[origin(), path(&[65000 + u32::from(what) + 2, u32::from(kind) + 1]), next_hop(2 + what)].concat(), &net(prefix))),
                2 | 3 => stage.say(from, &update(&net(prefix), &[], &[])),
                _ => stage.handle(Input::SetAnnounced(&own(prefix))),
            }
            stage.room = if pace == 0 { 1 << 16 } else { 0 };
            stage.drain();
            follow(&stage.heard(ids[2]), &mut known);
        }
        stage.room = 1 << 16;
        stage.drain();
        follow(&stage.heard(ids[2]), &mut known);
        let mut there: BTreeSet<String> = stage.routes();
        there.extend(own(0).iter().map(ToString::to_string));
        let announced = stage.speaker.status()[&name(4)].announced;
        prop_assert_eq!(known.len(), announced);
        prop_assert!(there.is_subset(&known), "{:?} is not in {:?}", there, known);
    }
}

#[test]
fn what_is_said_to_a_connection_that_nobody_has_is_dropped() {
    let mut stage = Stage::new([(2, config(2, 3))]);
    stage.say(ConnectionId(77), &keepalive());
    stage.handle(Input::Connected(ConnectionId(78), endpoints(2)));
    stage.handle(Input::Incoming(Ticket(5), &name(9), endpoints(9)));
    assert!(stage.refused.contains(&Ticket(5)));
    assert_eq!(stage.now, Instant::from_millis(1));
}

/// A storm that never brought a session up would prove nothing: over fixed seeds each kind of end was seen at least once.
#[test]
fn storms_reach_what_matters() {
    use martlet_bgp::Event;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let storms = prop::collection::vec(happening(), 120..121);
    let (mut codes, mut established, mut stale) = (BTreeSet::new(), 0, 0);
    for _ in 0..150 {
        let mut play = Storm::new();
        for happening in storms.new_tree(&mut runner).unwrap().current() {
            play.happen(&happening);
            stale += play
                .stage
                .speaker
                .prefixes()
                .filter(|net| play.stage.speaker.paths(net).iter().any(|path| path.stale))
                .count();
        }
        for event in &play.stage.events {
            match event {
                Event::Established { .. } => established += 1,
                Event::Closed { code: Some(code), sent: true, .. } => drop(codes.insert(*code)),
                _ => (),
            }
        }
    }
    assert!(established > 150, "{established} sessions");
    assert!(stale > 0);
    for code in [(1, 1), (2, 2), (3, 1), (4, 0), (5, 1), (5, 2), (5, 3), (6, 7), (6, 2), (6, 4), (6, 6)] {
        assert!(codes.contains(&code), "{code:?} was never sent: {codes:?}");
    }
}
