//! Every error of RFC 4271 section 6 and of what amends it: what comes in, and the code that goes out.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod puppet;

use martlet_bgp::{Event, Family, NeighborConfig, NeighborState, Role};
use puppet::{Stage, attribute, keepalive, message, modern, net, next_hop, open, origin, path, update, usual};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

fn config() -> NeighborConfig {
    NeighborConfig::new(65000, 65001, FAMILIES)
}

/// What the speaker answers to `octets` as the first message of a connection: the NOTIFICATION, or nothing.
fn first(config: NeighborConfig, octets: &[u8]) -> Option<(u8, u8)> {
    let mut stage = Stage::new([(2, config)]);
    let id = stage.connect(2).unwrap();
    stage.say(id, octets);
    let answer = stage.notification(id).map(|(code, subcode, _)| (code, subcode));
    assert_eq!(answer.is_some(), stage.closed.contains(&id), "a NOTIFICATION closes");
    answer
}

/// What it answers to them in Established.
fn later(octets: &[u8]) -> Option<(u8, u8)> {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.establish(2, 65001, &modern(65001));
    stage.say(id, octets);
    stage.notification(id).map(|(code, subcode, _)| (code, subcode))
}

fn header(length: u16, kind: u8) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    octets.extend(length.to_be_bytes());
    octets.push(kind);
    octets.resize(usize::from(length).clamp(19, 5000), 0);
    octets
}

#[test]
fn message_header_errors() {
    let mut marker = keepalive();
    marker[7] = 0xfe;
    assert_eq!(first(config(), &marker), Some((1, 1)));
    for (length, kind) in [(18, 4), (0, 4), (20, 4), (28, 1), (4097, 1), (20, 3), (22, 2), (65535, 4)] {
        assert_eq!(first(config(), &header(length, kind)), Some((1, 2)), "length {length} of type {kind}");
    }
    for (length, kind) in [(22, 2), (4097, 2), (65535, 2), (20, 3), (22, 5), (20, 4)] {
        assert_eq!(later(&header(length, kind)), Some((1, 2)), "length {length} of type {kind}");
    }
    for kind in [0, 6, 255] {
        assert_eq!(first(config(), &header(19, kind)), Some((1, 3)));
        assert_eq!(later(&header(19, kind)), Some((1, 3)));
    }
}

#[test]
fn a_bad_length_and_a_bad_type_carry_what_was_bad() {
    for (octets, data) in [(header(18, 4), vec![0, 18]), (header(19, 77), vec![77])] {
        let mut stage = Stage::new([(2, config())]);
        let id = stage.connect(2).unwrap();
        stage.say(id, &octets);
        assert_eq!(stage.notification(id).unwrap().2, data);
    }
}

/// An OPEN whose body is written octet by octet.
fn raw_open(version: u8, asn: u16, hold: u16, router_id: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut body = vec![version];
    body.extend(asn.to_be_bytes());
    body.extend(hold.to_be_bytes());
    body.extend(router_id);
    body.extend(rest);
    message(1, &body)
}

/// What it is, the octets, and the code and subcode that answer them.
type Case = (&'static str, Vec<u8>, Option<(u8, u8)>);

#[test]
fn open_message_errors() {
    let id = [10, 0, 0, 2];
    let cases: Vec<Case> = vec![
        ("version 3", raw_open(3, 65001, 90, id, &[0]), Some((2, 1))),
        ("version 5", raw_open(5, 65001, 90, id, &[0]), Some((2, 1))),
        ("AS 0", raw_open(4, 0, 90, id, &[0]), Some((2, 2))),
        ("another AS", raw_open(4, 65009, 90, id, &[0]), Some((2, 2))),
        ("AS_TRANS without the capability", raw_open(4, 23456, 90, id, &[0]), Some((2, 2))),
        ("AS 0 in the capability", open(65001, 2, &[65, 4, 0, 0, 0, 0]), Some((2, 2))),
        ("two AS numbers", open(65001, 2, &[65, 4, 0, 0, 253, 232]), Some((2, 2))),
        ("identifier 0", raw_open(4, 65001, 90, [0; 4], &[0]), Some((2, 3))),
        ("our identifier, another AS", raw_open(4, 65001, 90, [10, 0, 0, 1], &[0]), None),
        ("a multicast identifier (RFC 6286)", raw_open(4, 65001, 90, [224, 0, 0, 1], &[0]), None),
        ("hold time 1", raw_open(4, 65001, 1, id, &[0]), Some((2, 6))),
        ("hold time 2", raw_open(4, 65001, 2, id, &[0]), Some((2, 6))),
        ("hold time 0", raw_open(4, 65001, 0, id, &[0]), None),
        ("hold time 3", raw_open(4, 65001, 3, id, &[0]), None),
        ("hold time 65535", raw_open(4, 65001, 65535, id, &[0]), None),
        ("parameters beyond the message", raw_open(4, 65001, 90, id, &[9, 2, 0]), Some((2, 0))),
        ("parameters shorter than the message", raw_open(4, 65001, 90, id, &[0, 2, 0]), Some((2, 0))),
        ("an unknown parameter", raw_open(4, 65001, 90, id, &[3, 99, 1, 0]), Some((2, 4))),
        ("the authentication parameter", raw_open(4, 65001, 90, id, &[3, 1, 1, 0]), Some((2, 4))),
        ("one octet of parameters", raw_open(4, 65001, 90, id, &[1, 2]), Some((2, 0))),
        ("a capability beyond its parameter", raw_open(4, 65001, 90, id, &[4, 2, 2, 65, 4]), Some((2, 0))),
        ("an unknown capability", open(65001, 2, &[200, 2, 1, 2]), None),
        ("a capability twice", open(65001, 2, &[1, 4, 0, 1, 0, 1, 1, 4, 0, 1, 0, 1]), None),
        ("a graceful restart capability with a cut tuple", open(65001, 2, &[64, 4, 0, 120, 0, 1]), None),
        ("only a family that we do not have", open(65001, 2, &[1, 4, 0, 25, 0, 70]), Some((2, 7))),
        (
            "three parameters of capabilities",
            raw_open(4, 65001, 90, id, &[16, 2, 6, 1, 4, 0, 1, 0, 1, 2, 2, 2, 0, 2, 2, 70, 0]),
            None,
        ),
    ];
    for (case, octets, expected) in cases {
        assert_eq!(first(config(), &octets), expected, "{case}");
    }
}

#[test]
fn extended_optional_parameters() {
    let id = [10, 0, 0, 2];
    let rest = [255, 255, 0, 9, 2, 0, 6, 1, 4, 0, 1, 0, 1];
    assert_eq!(first(config(), &raw_open(4, 65001, 90, id, &rest)), None);
    // RFC 9072 section 2: the length octet before the type is not to be trusted.
    assert_eq!(first(config(), &raw_open(4, 65001, 90, id, &[&[7], &rest[1..]].concat())), None);
    let mut long = rest;
    long[6] = 7;
    assert_eq!(first(config(), &raw_open(4, 65001, 90, id, &long)), Some((2, 0)));
}

#[test]
fn an_unsupported_version_is_told_ours_and_a_missing_family_is_named() {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.connect(2).unwrap();
    stage.say(id, &raw_open(3, 65001, 90, [10, 0, 0, 2], &[0]));
    assert_eq!(stage.notification(id), Some((2, 1, vec![0, 4])));
    let id = stage.connect(2).unwrap();
    stage.say(id, &open(65001, 2, &[1, 4, 0, 25, 0, 70]));
    assert_eq!(stage.notification(id), Some((2, 7, vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1])));
}

#[test]
fn within_an_as_an_identifier_must_differ() {
    let ibgp = NeighborConfig::new(65001, 65001, FAMILIES);
    assert_eq!(first(ibgp, &raw_open(4, 65001, 90, [10, 0, 0, 1], &[0])), Some((2, 3)));
}

#[test]
fn roles() {
    let customer = || NeighborConfig { role: Some(Role::Customer), ..config() };
    assert_eq!(first(customer(), &open(65001, 2, &[9, 1, 0])), None);
    assert_eq!(first(customer(), &open(65001, 2, &[9, 1, 3])), Some((2, 11)));
    assert_eq!(first(customer(), &open(65001, 2, &[9, 1, 0, 9, 1, 0])), None);
    assert_eq!(first(customer(), &open(65001, 2, &[9, 1, 0, 9, 1, 4])), Some((2, 11)));
    assert_eq!(first(customer(), &open(65001, 2, &[])), None);
}

#[test]
fn fsm_errors_name_the_state() {
    let refresh = message(5, &[0, 1, 0, 1]);
    for octets in [keepalive(), update(&[], &[], &[]), refresh.clone()] {
        assert_eq!(first(config(), &octets), Some((5, 1)));
        let mut stage = Stage::new([(2, config())]);
        let id = stage.connect(2).unwrap();
        stage.say(id, &open(65001, 2, &modern(65001)));
        assert_eq!(stage.state(2), NeighborState::OpenConfirm);
        if octets == keepalive() {
            continue;
        }
        stage.say(id, &octets);
        assert_eq!(stage.notification(id), Some((5, 2, vec![])));
    }
    assert_eq!(later(&open(65001, 2, &modern(65001))), Some((5, 3)));
}

#[test]
fn a_notification_is_never_answered() {
    for body in
        [&[6, 2][..], &[6, 2, 5, b'h'], &[6, 2, 4, b'd', b'o', b'n', b'e'], &[99, 99], &[6, 9, 6, 2], &[6, 10], &[8, 0]]
    {
        for established in [false, true] {
            let mut stage = Stage::new([(2, config())]);
            let id = if established { stage.establish(2, 65001, &modern(65001)) } else { stage.connect(2).unwrap() };
            stage.say(id, &message(3, body));
            assert!(stage.closed.contains(&id));
            assert_eq!(stage.notification(id), None);
            let told = |event: &Event| matches!(event, Event::Closed { code, sent: false, .. } if *code == Some((body[0], body[1])));
            assert!(stage.events.iter().any(told));
        }
    }
}

#[test]
fn route_refresh_errors() {
    assert_eq!(later(&message(5, &[0, 1, 0, 1])), None);
    assert_eq!(later(&message(5, &[0, 1, 9, 1])), None);
    assert_eq!(later(&message(5, &[0, 1, 0, 128])), None);
    assert_eq!(later(&message(5, &[0, 1, 1, 1, 0])), Some((7, 1)));
    let mut stage = Stage::new([(2, config())]);
    let id = stage.establish(2, 65001, &modern(65001));
    let bad = message(5, &[0, 1, 2, 1, 0]);
    stage.say(id, &bad);
    assert_eq!(stage.notification(id), Some((7, 1, bad)));
}

#[test]
fn update_message_errors_that_end_the_session() {
    let reach = |value: &[u8]| [origin(), path(&[65001]), attribute(0x80, 14, value)].concat();
    let cases: [(&str, Vec<u8>, (u8, u8)); 14] = [
        ("withdrawn length beyond the message", message(2, &[0, 9, 0, 0]), (3, 1)),
        ("attribute length beyond the message", message(2, &[0, 0, 0, 9, 1, 2, 3, 4]), (3, 1)),
        ("a withdrawn prefix of 33 bits", update(&[33, 1, 2, 3, 4, 5], &[], &[]), (3, 10)),
        ("a cut withdrawn prefix", update(&[24, 1, 2], &[], &[]), (3, 10)),
        ("a prefix of 33 bits", update(&[], &usual(), &[33, 1, 2, 3, 4, 5]), (3, 10)),
        ("a cut prefix", update(&[], &usual(), &[24, 1]), (3, 10)),
        (
            "an unknown well-known attribute",
            update(&[], &[usual(), attribute(0x40, 99, &[1])].concat(), &net(1)),
            (3, 2),
        ),
        ("a reserved attribute", update(&[], &[usual(), attribute(0x40, 0, &[1])].concat(), &net(1)), (3, 2)),
        (
            "MP_REACH_NLRI twice",
            update(
                &[],
                &[reach(&[0, 1, 1, 4, 10, 0, 0, 2, 0]), attribute(0x80, 14, &[0, 1, 1, 4, 10, 0, 0, 2, 0])].concat(),
                &net(1),
            ),
            (3, 1),
        ),
        (
            "MP_UNREACH_NLRI twice",
            update(&[], &[attribute(0x80, 15, &[0, 2, 1]), attribute(0x80, 15, &[0, 2, 1])].concat(), &[]),
            (3, 1),
        ),
        ("a next hop of five octets", update(&[], &reach(&[0, 2, 1, 5, 1, 2, 3, 4, 5, 0, 16, 0x20, 1]), &[]), (3, 9)),
        (
            "an IPv6 prefix of 129 bits",
            update(&[], &reach(&[&[0, 2, 1, 16][..], &[0x20; 16], &[0, 129]].concat()), &[]),
            (3, 9),
        ),
        ("a cut IPv6 withdrawal", update(&[], &attribute(0x80, 15, &[0, 2, 1, 64, 1]), &[]), (3, 9)),
        ("a withdrawal without a SAFI", update(&[], &attribute(0x80, 15, &[0, 2]), &[]), (3, 9)),
    ];
    for (case, octets, expected) in cases {
        assert_eq!(later(&octets), Some(expected), "{case}");
    }
}

#[test]
fn an_attribute_error_carries_the_attribute() {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.establish(2, 65001, &modern(65001));
    let bad = attribute(0x40, 99, &[1, 2]);
    stage.say(id, &update(&[], &[usual(), bad.clone()].concat(), &net(1)));
    assert_eq!(stage.notification(id), Some((3, 2, bad)));
}

#[test]
fn an_update_without_routes_and_with_a_broken_attribute_ends_the_session() {
    // RFC 7606 section 5.2: nobody knows which routes were meant.
    assert_eq!(later(&update(&[], &attribute(0x40, 1, &[9]), &[])), Some((3, 6)));
    assert_eq!(later(&update(&net(1), &attribute(0x40, 3, &[1]), &[])), Some((3, 5)));
    // But not for what is only discarded.
    assert_eq!(later(&update(&net(1), &attribute(0x40, 6, &[1]), &[])), None);
}

#[test]
fn the_hold_timer_says_so() {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.establish(2, 65001, &modern(65001));
    stage.until(89_000);
    assert_eq!(stage.state(2), NeighborState::Established);
    stage.until(91_000);
    assert_eq!(stage.notification(id), Some((4, 0, vec![])));
}

#[test]
fn a_process_that_slept_hears_its_neighbours_before_it_blames_them() {
    for speaks in [true, false] {
        let mut stage = Stage::new([(2, config())]);
        let id = stage.establish(2, 65001, &modern(65001));
        stage.now = martlet_clock::Instant::from_millis(200_000);
        stage.handle(martlet_bgp::Input::Timeout);
        assert_eq!(stage.state(2), NeighborState::Established);
        if speaks {
            stage.say(id, &keepalive());
        }
        stage.until(201_500);
        assert_eq!(stage.state(2) == NeighborState::Established, speaks);
    }
}

#[test]
fn a_neighbour_that_never_sends_an_open_is_given_up() {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.connect(2).unwrap();
    stage.until(239_000);
    assert!(!stage.closed.contains(&id));
    stage.until(241_000);
    assert!(stage.closed.contains(&id));
}

#[test]
fn a_neighbour_that_never_reads_is_given_up() {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.establish(2, 65001, &modern(65001));
    stage.room = 0;
    for second in 1..=600u64 {
        stage.until(second * 1000);
        if stage.state(2) == NeighborState::Established {
            stage.say(id, &keepalive());
        }
    }
    assert!(stage.closed.contains(&id));
    let ended = |event: &Event| matches!(event, Event::Closed { code: Some((8, 0)), sent: true, .. });
    assert!(stage.events.iter().any(ended));
}

#[test]
fn a_collision_is_resolved_by_identifier() {
    // Theirs, 10.0.0.2, is the higher: the connection that they opened stays.
    for (last, theirs_stays) in [(2u8, true), (0, false)] {
        let config = NeighborConfig { passive: false, ..config() };
        let mut stage = Stage::new([(2, config)]);
        let mut configs = stage.configs.clone();
        for config in configs.values_mut() {
            config.passive = false;
        }
        stage.handle(martlet_bgp::Input::SetNeighbors(&configs));
        let (_, ours) = stage.connects[0].clone();
        let theirs = stage.connect(2).unwrap();
        stage.handle(martlet_bgp::Input::Connected(ours, puppet::endpoints(2)));
        stage.say(theirs, &open(65001, last.max(1) + u8::from(last == 2), &modern(65001)));
        let open = if last == 2 { open(65001, 3, &modern(65001)) } else { raw_open(4, 65001, 90, [9, 0, 0, 1], &[0]) };
        stage.say(ours, &open);
        let (loser, winner) = if theirs_stays { (ours, theirs) } else { (theirs, ours) };
        // In OpenConfirm the one that loses may be chosen by the neighbour already: it has a second to say so.
        stage.until(1_100);
        assert!(stage.closed.contains(&loser));
        assert!(!stage.closed.contains(&winner));
        assert_eq!(stage.notification(loser), Some((6, 7, vec![])));
        stage.say(winner, &keepalive());
        assert_eq!(stage.state(2), NeighborState::Established);
        assert!(stage.connect(2).is_none(), "a second session");
    }
}

#[test]
fn next_hop_attribute_is_used_as_written() {
    let mut stage = Stage::new([(2, config())]);
    let id = stage.establish(2, 65001, &modern(65001));
    stage.say(id, &update(&[], &[origin(), path(&[65001]), next_hop(77)].concat(), &net(1)));
    let paths = stage.speaker.paths(&"10.1.0.0/16".parse().unwrap());
    assert_eq!(paths[0].next_hop.to_string(), "10.0.0.77");
}
