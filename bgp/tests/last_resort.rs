//! What is less than the end of a session: long-lived graceful restart (RFC 9494), and a family given up (RFC 7606 section 2).

mod puppet;

use std::collections::BTreeSet;
use std::time::Duration;

use martlet_bgp::{CloseReason, ConnectionId, Event, Export, Family, Import, Input, NeighborConfig, NeighborState};
use puppet::{Heard, Stage, attribute, keepalive, modern, name, net, next_hop, open, origin, path, update, usual};

/// Graceful restart of ten seconds for IPv4, forwarding kept.
const RESTART: [u8; 8] = [64, 6, 0, 10, 0, 1, 1, 0x80];
/// Restart time 0: nothing is kept by RFC 4724.
const NO_RESTART: [u8; 4] = [64, 2, 0, 0];
/// A hundred seconds more, forwarding kept.
const LONG: [u8; 9] = [71, 7, 0, 1, 1, 0x80, 0, 0, 100];
/// The same, but forwarding was lost.
const LOST: [u8; 9] = [71, 7, 0, 1, 1, 0, 0, 0, 100];

fn transit(asn: u32) -> NeighborConfig {
    let export = Export { transit: Import::All, ..Export::default() };
    NeighborConfig {
        export,
        long_lived: Some(Duration::from_hours(1)),
        ..NeighborConfig::new(65000, asn, [Family::Ipv4])
    }
}

/// Neighbour 2 tells, 3 knows RFC 9494, 4 does not.
fn stage(theirs: &[&[u8]]) -> (Stage, [ConnectionId; 3]) {
    let mut stage = Stage::new([(2, transit(65001)), (3, transit(65003)), (4, transit(65004))]);
    let two = stage.establish(2, 65001, &[&modern(65001)[..], &theirs.concat()].concat());
    let three = stage.establish(3, 65003, &[&modern(65003)[..], &NO_RESTART, &[71, 0]].concat());
    let four = stage.establish(4, 65004, &modern(65004));
    (stage, [two, three, four])
}

fn said(heard: &[Heard]) -> (BTreeSet<String>, BTreeSet<String>) {
    let announced = heard.iter().flat_map(|one| one.nlri.clone()).collect();
    (announced, heard.iter().flat_map(|one| one.withdrawn.clone()).collect())
}

fn set(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|&one| one.to_owned()).collect()
}

/// `NO_LLGR` on 10.3.0.0/16, nothing on 10.1.0.0/16.
fn tell(stage: &mut Stage, id: ConnectionId) {
    stage.say(id, &update(&[], &usual(), &net(1)));
    let not_long = [usual(), attribute(0xc0, 8, &[0xff, 0xff, 0, 7])].concat();
    stage.say(id, &update(&[], &not_long, &net(3)));
}

#[test]
fn after_the_restart_time_routes_are_a_last_resort_for_those_who_know_what_that_is() {
    let (mut stage, [two, three, four]) = stage(&[&RESTART, &LONG]);
    tell(&mut stage, two);
    assert!(stage.speaker.status()[&name(2)].capabilities.contains("long-lived-graceful-restart"));
    stage.heard(three);
    stage.heard(four);
    stage.handle(Input::Closed(two, CloseReason::Reset));
    assert!(stage.heard(three).is_empty() && stage.heard(four).is_empty(), "RFC 4724: as if nothing had happened");
    stage.until(9_000);
    assert_eq!(stage.routes(), set(&["10.1.0.0/16", "10.3.0.0/16"]));
    stage.until(10_500);
    assert_eq!(stage.routes(), set(&["10.1.0.0/16"]), "NO_LLGR");
    let heard = stage.heard(three);
    assert_eq!(said(&heard), (set(&["10.1.0.0/16"]), set(&["10.3.0.0/16"])));
    let marked = heard.iter().find(|one| !one.nlri.is_empty()).unwrap();
    assert_eq!(marked.attributes[&8].1, [0xff, 0xff, 0, 6], "LLGR_STALE");
    assert_eq!(said(&stage.heard(four)), (set(&[]), set(&["10.1.0.0/16", "10.3.0.0/16"])));
    for (millis, left) in [(60_000, 1), (109_000, 1), (111_000, 0)] {
        stage.until(millis);
        for id in [three, four] {
            stage.say(id, &keepalive());
        }
        assert_eq!(stage.routes().len(), left);
    }
    assert_eq!(said(&stage.heard(three)), (set(&[]), set(&["10.1.0.0/16"])));
}

#[test]
fn a_restart_time_of_zero_makes_them_a_last_resort_at_once() {
    let (mut stage, [two, three, _]) = stage(&[&NO_RESTART, &LONG]);
    tell(&mut stage, two);
    stage.heard(three);
    stage.handle(Input::Closed(two, CloseReason::Reset));
    assert_eq!(said(&stage.heard(three)), (set(&["10.1.0.0/16"]), set(&["10.3.0.0/16"])));
}

#[test]
fn anything_else_is_better_than_a_last_resort() {
    let (mut stage, [two, three, _]) = stage(&[&NO_RESTART, &LONG]);
    stage.say(two, &update(&[], &usual(), &net(1)));
    let longer = [origin(), path(&[65003, 65009, 65010]), next_hop(3)].concat();
    stage.say(three, &update(&[], &longer, &net(1)));
    let best = |stage: &Stage| {
        let paths = stage.speaker.paths(&"10.1.0.0/16".parse().unwrap());
        paths.iter().map(|path| path.next_hop.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(best(&stage), ["10.0.0.2"]);
    stage.handle(Input::Closed(two, CloseReason::Reset));
    assert_eq!(best(&stage), ["10.0.0.3"]);
}

#[test]
fn who_comes_back_renews_its_routes_or_loses_them() {
    for (again, kept) in [(&LONG, true), (&LOST, false)] {
        let (mut stage, [two, ..]) = stage(&[&RESTART, &LONG]);
        stage.say(two, &update(&[], &usual(), &[net(1), net(2)].concat()));
        stage.handle(Input::Closed(two, CloseReason::Reset));
        stage.until(50_000);
        let two = stage.establish(2, 65001, &[&modern(65001)[..], &RESTART, again].concat());
        assert_eq!(!stage.routes().is_empty(), kept);
        stage.say(two, &update(&[], &usual(), &net(1)));
        assert_eq!(stage.routes().len(), if kept { 2 } else { 1 });
        // End-of-RIB.
        stage.say(two, &update(&[], &[], &[]));
        assert_eq!(stage.routes(), set(&["10.1.0.0/16"]));
        let kept = stage.speaker.paths(&"10.1.0.0/16".parse().unwrap());
        assert!(!kept[0].stale);
        // And it lives on: no timer of its first life is left.
        stage.say(two, &keepalive());
        stage.until(120_000);
        stage.say(two, &keepalive());
        assert_eq!(stage.routes(), set(&["10.1.0.0/16"]));
    }
}

#[test]
fn the_time_goes_on_while_a_neighbour_comes_and_goes() {
    let (mut stage, [two, ..]) = stage(&[&RESTART, &LONG]);
    stage.say(two, &update(&[], &usual(), &net(1)));
    stage.handle(Input::Closed(two, CloseReason::Reset));
    for second in [30, 60, 90] {
        stage.until(second * 1000);
        let two = stage.establish(2, 65001, &[&modern(65001)[..], &RESTART, &LONG].concat());
        assert_eq!(stage.routes(), set(&["10.1.0.0/16"]));
        stage.handle(Input::Closed(two, CloseReason::Reset));
    }
    stage.until(112_000);
    assert_eq!(stage.routes(), set(&[]));
}

#[test]
fn we_keep_nothing_longer_than_we_are_told_or_if_we_are_not_told() {
    for (most, gone) in [(Some(Duration::from_secs(5)), 16_000), (None, 10_500)] {
        let config = NeighborConfig { long_lived: most, ..transit(65001) };
        let mut stage = Stage::new([(2, config)]);
        let two = stage.establish(2, 65001, &[&modern(65001)[..], &RESTART, &LONG].concat());
        stage.say(two, &update(&[], &usual(), &net(1)));
        stage.handle(Input::Closed(two, CloseReason::Reset));
        stage.until(gone - 1_500);
        assert_eq!(stage.routes().len(), 1);
        stage.until(gone);
        assert_eq!(stage.routes().len(), 0);
    }
}

/// An `MP_REACH_NLRI` of IPv6 whose prefix is longer than the attribute.
fn cut() -> Vec<u8> {
    let hop = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    [&[0, 2, 1, 16][..], &hop, &[0, 64, 0x20]].concat()
}

fn six() -> Vec<u8> {
    let hop = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    attribute(0x80, 14, &[&[0, 2, 1, 16][..], &hop, &[0, 16, 0x2a, 0]].concat())
}

fn both(disable_family: bool) -> (Stage, ConnectionId) {
    let config = NeighborConfig::new(65000, 65001, [Family::Ipv4, Family::Ipv6]);
    let mut stage = Stage::new([(2, NeighborConfig { disable_family, ..config })]);
    let two = stage.establish(2, 65001, &modern(65001));
    stage.say(two, &update(&[], &usual(), &net(1)));
    stage.say(two, &update(&[], &[origin(), path(&[65001]), six()].concat(), &[]));
    assert_eq!(stage.routes(), set(&["10.1.0.0/16", "2a00::/16"]));
    (stage, two)
}

#[test]
fn a_family_that_cannot_be_read_is_given_up_and_the_other_goes_on() {
    let (mut stage, two) = both(true);
    let malformed = [origin(), path(&[65001]), attribute(0x80, 14, &cut())].concat();
    stage.say(two, &update(&[], &malformed, &[]));
    assert_eq!(stage.state(2), NeighborState::Established);
    assert_eq!(stage.routes(), set(&["10.1.0.0/16"]));
    let told = |event: &Event| matches!(event, Event::AttributeDiscard { kind: 14, text, .. } if text.contains("Ipv6"));
    assert!(stage.events.iter().any(told));
    // What follows of it is not heard, the other family is.
    stage.say(two, &update(&[], &[origin(), path(&[65001]), six()].concat(), &[]));
    stage.say(two, &update(&[], &usual(), &net(2)));
    assert_eq!(stage.routes(), set(&["10.1.0.0/16", "10.2.0.0/16"]));
    // Ours are still told.
    stage.messages(two);
    stage.handle(Input::SetAnnounced(&BTreeSet::from(["2001:db8:1::/48".parse().unwrap()])));
    assert_eq!(said(&stage.heard(two)).0, set(&["2001:db8:1::/48"]));
    // Another session begins anew.
    stage.handle(Input::Closed(two, CloseReason::Reset));
    let two = stage.connect(2).unwrap();
    stage.say(two, &open(65001, 2, &modern(65001)));
    stage.say(two, &keepalive());
    stage.say(two, &update(&[], &[origin(), path(&[65001]), six()].concat(), &[]));
    assert_eq!(stage.routes(), set(&["2a00::/16"]));
}

#[test]
fn without_the_wish_or_another_family_the_session_ends() {
    let malformed =
        |nlri: &[u8]| update(&[], &[origin(), path(&[65001]), next_hop(2), attribute(0x80, 14, &cut())].concat(), nlri);
    let (mut stage, two) = both(false);
    stage.say(two, &malformed(&[]));
    assert_eq!(stage.notification(two).map(|(code, subcode, _)| (code, subcode)), Some((3, 9)));
    // IPv4 prefixes in the same message: more than the family would be lost.
    let (mut stage, two) = both(true);
    stage.say(two, &malformed(&net(4)));
    assert_eq!(stage.notification(two).map(|(code, subcode, _)| (code, subcode)), Some((3, 9)));
    let alone = NeighborConfig { disable_family: true, ..NeighborConfig::new(65000, 65001, [Family::Ipv6]) };
    let mut stage = Stage::new([(2, alone)]);
    let two = stage.establish(2, 65001, &modern(65001));
    stage.say(two, &malformed(&[]));
    assert_eq!(stage.notification(two).map(|(code, subcode, _)| (code, subcode)), Some((3, 9)));
}
