//! RFC 7606: each attribute by name, malformed in each way, and what it costs. The session stays where it must.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod puppet;

use martlet_bgp::{Event, Family, NeighborConfig, NeighborState};
use puppet::{Stage, attribute, modern, net, next_hop, origin, path, update, usual};

/// What became of the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is there, nothing was wrong.
    Accepted,
    /// It is there, without an attribute.
    Discarded,
    /// It, and what was told of it before, is gone.
    Withdrawn,
    /// The session is gone, with this subcode of 3.
    Reset(u8),
}

use Fate::{Accepted, Discarded, Reset, Withdrawn};

fn fate_with(external: bool, capabilities: &[u8], attributes: &[u8], prefixes: &[u8]) -> Fate {
    let local_as = if external { 65000 } else { 65001 };
    let config = NeighborConfig::new(local_as, 65001, [Family::Ipv4, Family::Ipv6]);
    let mut stage = Stage::new([(2, config)]);
    let id = stage.establish(2, 65001, capabilities);
    // The route is there before, so that a withdrawal is seen.
    let four = capabilities.contains(&65);
    let before = if four {
        [origin(), attribute(0x40, 2, &[2, 1, 0, 0, 0, 7]), next_hop(2)].concat()
    } else {
        [origin(), attribute(0x40, 2, &[2, 1, 0, 7]), next_hop(2)].concat()
    };
    stage.say(id, &update(&[], &before, &net(1)));
    assert_eq!(stage.routes().len(), 1);
    stage.say(id, &update(&[], attributes, prefixes));
    let withdrawn = stage.events.iter().any(|event| matches!(event, Event::TreatAsWithdraw { .. }));
    let discarded = stage.events.iter().any(|event| matches!(event, Event::AttributeDiscard { .. }));
    if stage.state(2) != NeighborState::Established {
        let (code, subcode, _) = stage.notification(id).unwrap();
        assert_eq!(code, 3);
        return Reset(subcode);
    }
    assert_eq!(stage.notification(id), None);
    assert_eq!(withdrawn, stage.routes().is_empty(), "an event for a withdrawal");
    match (withdrawn, discarded) {
        (true, _) => Withdrawn,
        (false, true) => Discarded,
        (false, false) => Accepted,
    }
}

fn fate(attributes: &[u8]) -> Fate {
    fate_with(true, &modern(65001), attributes, &net(1))
}

fn internal(attributes: &[u8]) -> Fate {
    fate_with(false, &modern(65001), attributes, &net(1))
}

/// The usual attributes, one of them replaced or added.
fn with(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let one = attribute(flags, kind, value);
    let others = [(1, origin()), (2, path(&[7])), (3, next_hop(2))];
    let others = others.into_iter().filter(|(other, _)| *other != kind).map(|(_, octets)| octets);
    others.chain([one]).flatten().collect()
}

#[test]
fn what_is_right_is_accepted() {
    let right: [(u8, u8, &[u8]); 26] = [
        (0x40, 1, &[0]),
        (0x40, 1, &[2]),
        (0x60, 1, &[0]),
        (0x4f, 1, &[0]),
        (0x50, 1, &[1]),
        (0x40, 2, &[]),
        (0x40, 2, &[1, 1, 0, 0, 0, 9]),
        (0x80, 4, &[0, 0, 0, 9]),
        (0x40, 6, &[]),
        (0xc0, 7, &[0, 0, 0, 9, 1, 2, 3, 4]),
        (0xe0, 7, &[0, 0, 0, 9, 1, 2, 3, 4]),
        (0xc0, 8, &[1, 2, 3, 4]),
        (0xe0, 8, &[1, 2, 3, 4, 5, 6, 7, 8]),
        (0xc0, 16, &[0, 2, 0, 0, 0, 0, 0, 1]),
        (0xc0, 25, &[0; 20]),
        (0xc0, 32, &[0; 12]),
        (0xc0, 35, &[0, 0, 0, 9]),
        (0xc0, 40, &[1, 0, 1, 0]),
        (0xc0, 128, &[0, 0, 0, 9, 0x40, 1, 1, 0]),
        (0x80, 26, &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 1]),
        (0x80, 26, &[9]),
        (0xc0, 17, &[9]),
        (0xc0, 18, &[9]),
        (0xc0, 200, &[1, 2, 3]),
        (0x80, 200, &[1, 2, 3]),
        (0xe0, 200, &[]),
    ];
    for (flags, kind, value) in right {
        assert_eq!(fate(&with(flags, kind, value)), Accepted, "{flags:#x} {kind} {value:?}");
    }
}

#[test]
fn flags_that_conflict_are_a_withdrawal() {
    let good: [(u8, u8, &[u8]); 13] = [
        (0x40, 1, &[0]),
        (0x40, 2, &[2, 1, 0, 0, 0, 9]),
        (0x40, 3, &[10, 0, 0, 2]),
        (0x80, 4, &[0; 4]),
        (0x40, 6, &[]),
        (0xc0, 7, &[0, 0, 0, 9, 1, 2, 3, 4]),
        (0xc0, 8, &[0; 4]),
        (0x80, 14, &[0, 1, 1, 4, 10, 0, 0, 2, 0]),
        (0x80, 15, &[0, 2, 1]),
        (0xc0, 16, &[0; 8]),
        (0xc0, 25, &[0; 20]),
        (0xc0, 32, &[0; 12]),
        (0xc0, 35, &[0; 4]),
    ];
    for (flags, kind, value) in good {
        for wrong in [flags ^ 0x80, flags ^ 0x40, flags ^ 0xc0] {
            assert_eq!(fate(&with(wrong, kind, value)), Withdrawn, "{wrong:#x} {kind}");
        }
    }
    for (flags, kind, value) in [(0x40, 5, &[0, 0, 0, 9][..]), (0x80, 9, &[1, 2, 3, 4]), (0x80, 10, &[1, 2, 3, 4])] {
        assert_eq!(internal(&with(flags, kind, value)), Accepted, "{flags:#x} {kind}");
        assert_eq!(internal(&with(flags ^ 0xc0, kind, value)), Withdrawn, "{kind}");
    }
}

#[test]
fn values_that_are_malformed_are_a_withdrawal() {
    let wrong: [(&str, u8, u8, &[u8]); 38] = [
        ("ORIGIN 3", 0x40, 1, &[3]),
        ("ORIGIN 255", 0x40, 1, &[255]),
        ("ORIGIN without a value", 0x40, 1, &[]),
        ("ORIGIN of two octets", 0x40, 1, &[0, 0]),
        ("AS_PATH of one octet", 0x40, 2, &[2]),
        ("AS_PATH with an unknown segment", 0x40, 2, &[5, 1, 0, 0, 0, 9]),
        ("AS_PATH with segment 0", 0x40, 2, &[0, 1, 0, 0, 0, 9]),
        ("AS_PATH with a confederation", 0x40, 2, &[3, 1, 0, 0, 0, 9]),
        ("AS_PATH with an empty segment", 0x40, 2, &[2, 0]),
        ("AS_PATH with an overrun", 0x40, 2, &[2, 2, 0, 0, 0, 9]),
        ("AS_PATH with an underrun", 0x40, 2, &[2, 1, 0, 0, 0, 9, 2]),
        ("AS_PATH with half a number", 0x40, 2, &[2, 1, 0, 9]),
        ("AS_PATH with AS 0", 0x40, 2, &[2, 1, 0, 0, 0, 0]),
        ("NEXT_HOP of three octets", 0x40, 3, &[10, 0, 0]),
        ("NEXT_HOP of five octets", 0x40, 3, &[10, 0, 0, 2, 9]),
        ("NEXT_HOP without a value", 0x40, 3, &[]),
        ("NEXT_HOP of sixteen octets", 0x40, 3, &[0x20; 16]),
        ("NEXT_HOP 0.0.0.0", 0x40, 3, &[0, 0, 0, 0]),
        ("NEXT_HOP 127.0.0.1", 0x40, 3, &[127, 0, 0, 1]),
        ("NEXT_HOP 224.0.0.5", 0x40, 3, &[224, 0, 0, 5]),
        ("NEXT_HOP 255.255.255.255", 0x40, 3, &[255, 255, 255, 255]),
        ("MULTI_EXIT_DISC of three octets", 0x80, 4, &[0; 3]),
        ("MULTI_EXIT_DISC without a value", 0x80, 4, &[]),
        ("MULTI_EXIT_DISC of eight octets", 0x80, 4, &[0; 8]),
        ("COMMUNITIES of three octets", 0xc0, 8, &[0; 3]),
        ("COMMUNITIES of five octets", 0xc0, 8, &[0; 5]),
        ("COMMUNITIES without a value", 0xc0, 8, &[]),
        ("EXTENDED COMMUNITIES of seven octets", 0xc0, 16, &[0; 7]),
        ("EXTENDED COMMUNITIES without a value", 0xc0, 16, &[]),
        ("IPv6 EXTENDED COMMUNITIES of 19 octets", 0xc0, 25, &[0; 19]),
        ("IPv6 EXTENDED COMMUNITIES without a value", 0xc0, 25, &[]),
        ("LARGE_COMMUNITY of 11 octets", 0xc0, 32, &[0; 11]),
        ("LARGE_COMMUNITY without a value", 0xc0, 32, &[]),
        ("OTC of three octets", 0xc0, 35, &[0; 3]),
        ("OTC of five octets", 0xc0, 35, &[0; 5]),
        ("TRAFFIC ENGINEERING of four octets", 0x80, 24, &[0; 4]),
        ("ATTR_SET of three octets", 0xc0, 128, &[0; 3]),
        ("ATTR_SET with a cut attribute", 0xc0, 128, &[0, 0, 0, 9, 0x40, 1, 2, 0]),
    ];
    for (case, flags, kind, value) in wrong {
        assert_eq!(fate(&with(flags, kind, value)), Withdrawn, "{case}");
    }
    assert_eq!(fate(&with(0xc0, 128, &[0, 0, 0, 9, 0x80, 15, 3, 0, 2, 1])), Withdrawn, "ATTR_SET with MP_UNREACH_NLRI");
}

#[test]
fn of_an_internal_neighbour_these_are_a_withdrawal() {
    for (case, flags, kind, value) in [
        ("LOCAL_PREF of three octets", 0x40, 5, &[0, 0, 9][..]),
        ("LOCAL_PREF without a value", 0x40, 5, &[]),
        ("ORIGINATOR_ID of five octets", 0x80, 9, &[0; 5]),
        ("ORIGINATOR_ID without a value", 0x80, 9, &[]),
        ("CLUSTER_LIST of five octets", 0x80, 10, &[0; 5]),
        ("CLUSTER_LIST without a value", 0x80, 10, &[]),
    ] {
        assert_eq!(internal(&with(flags, kind, value)), Withdrawn, "{case}");
    }
}

#[test]
fn these_are_discarded_and_the_route_stays() {
    for (case, flags, kind, value) in [
        ("ATOMIC_AGGREGATE with a value", 0x40, 6, &[0][..]),
        ("AGGREGATOR of six octets with four-octet numbers", 0xc0, 7, &[0, 9, 1, 2, 3, 4]),
        ("AGGREGATOR of seven octets", 0xc0, 7, &[0; 7]),
        ("AGGREGATOR without a value", 0xc0, 7, &[]),
        ("AGGREGATOR of AS 0", 0xc0, 7, &[0, 0, 0, 0, 1, 2, 3, 4]),
        ("LOCAL_PREF from without", 0x40, 5, &[0, 0, 0, 9]),
        ("a malformed LOCAL_PREF from without", 0x40, 5, &[9]),
        ("ORIGINATOR_ID from without", 0x80, 9, &[1, 2, 3, 4]),
        ("CLUSTER_LIST from without", 0x80, 10, &[1, 2, 3]),
        ("PREFIX_SID that is cut", 0xc0, 40, &[1, 0, 7, 0]),
        ("PREFIX_SID without a value", 0xc0, 40, &[]),
    ] {
        assert_eq!(fate(&with(flags, kind, value)), Discarded, "{case}");
    }
}

#[test]
fn of_an_old_speaker_malformed_four_octet_attributes_are_discarded() {
    let usual = [origin(), attribute(0x40, 2, &[2, 2, 0xfd, 0xe9, 0x5b, 0xa0]), next_hop(2)].concat();
    let old = [1, 4, 0, 1, 0, 1];
    for (case, kind, value, expected) in [
        ("AS4_PATH", 17, &[2, 1, 0, 1, 0, 0][..], Accepted),
        ("a cut AS4_PATH", 17, &[2, 1, 0, 1], Discarded),
        ("AS4_PATH without a value", 17, &[], Discarded),
        ("AS4_PATH with an unknown segment", 17, &[9, 1, 0, 1, 0, 0], Discarded),
        ("AS4_PATH with AS 0", 17, &[2, 1, 0, 0, 0, 0], Discarded),
        ("AS4_AGGREGATOR of six octets", 18, &[0; 6], Discarded),
        ("AGGREGATOR of eight octets with two-octet numbers", 7, &[0, 0, 0, 9, 1, 2, 3, 4], Discarded),
    ] {
        let attributes = [usual.clone(), attribute(0xc0, kind, value)].concat();
        assert_eq!(fate_with(true, &old, &attributes, &net(1)), expected, "{case}");
    }
}

#[test]
fn a_mandatory_attribute_that_is_missing_is_a_withdrawal() {
    assert_eq!(fate(&[path(&[65001]), next_hop(2)].concat()), Withdrawn);
    assert_eq!(fate(&[origin(), next_hop(2)].concat()), Withdrawn);
    assert_eq!(fate(&[origin(), path(&[65001])].concat()), Withdrawn);
    assert_eq!(fate(&[]), Withdrawn);
}

#[test]
fn an_attribute_again_is_discarded_and_the_first_holds() {
    assert_eq!(fate(&[usual(), next_hop(3)].concat()), Discarded);
    // Even one that would be malformed.
    assert_eq!(fate(&[usual(), attribute(0x40, 1, &[9, 9])].concat()), Discarded);
    assert_eq!(fate(&[usual(), attribute(0xc0, 200, &[1]), attribute(0xc0, 200, &[2])].concat()), Discarded);
}

#[test]
fn a_list_that_cannot_be_read_to_its_end_is_a_withdrawal() {
    assert_eq!(fate(&[usual(), vec![0x80]].concat()), Withdrawn);
    assert_eq!(fate(&[usual(), vec![0x80, 4]].concat()), Withdrawn);
    assert_eq!(fate(&[usual(), vec![0x90, 4, 0]].concat()), Withdrawn);
    assert_eq!(fate(&[usual(), vec![0x80, 4, 9, 0, 0]].concat()), Withdrawn);
}

#[test]
fn the_strongest_approach_wins() {
    let discard = attribute(0x40, 6, &[1]);
    let withdraw = attribute(0x80, 4, &[1]);
    let reset = attribute(0x40, 99, &[1]);
    assert_eq!(fate(&[usual(), discard.clone(), withdraw.clone()].concat()), Withdrawn);
    assert_eq!(fate(&[usual(), withdraw, discard, reset].concat()), Reset(2));
}

#[test]
fn a_foreign_family_is_neither_a_route_nor_an_error() {
    // MP_REACH_NLRI and MP_UNREACH_NLRI of L2VPN EVPN, with what could not be prefixes.
    let foreign = attribute(0x80, 14, &[0, 25, 70, 4, 10, 0, 0, 2, 0, 200, 1, 2]);
    assert_eq!(fate_with(true, &modern(65001), &[usual(), foreign].concat(), &net(1)), Accepted);
    assert_eq!(fate_with(true, &modern(65001), &attribute(0x80, 15, &[0, 25, 70, 200, 1]), &[]), Accepted);
}

#[test]
fn what_is_treated_as_withdrawn_takes_ipv6_with_it() {
    let config = NeighborConfig::new(65000, 65001, [Family::Ipv4, Family::Ipv6]);
    let mut stage = Stage::new([(2, config)]);
    let id = stage.establish(2, 65001, &modern(65001));
    let reach = |origin: u8| {
        let value = [&[0, 2, 1, 16][..], &[0x20; 16], &[0, 16, 0x20, 1]].concat();
        [attribute(0x80, 14, &value), attribute(0x40, 1, &[origin]), path(&[65001])].concat()
    };
    stage.say(id, &update(&[], &reach(0), &[]));
    assert_eq!(stage.routes().into_iter().collect::<Vec<_>>(), ["2001::/16"]);
    stage.say(id, &update(&[], &reach(7), &[]));
    assert!(stage.routes().is_empty());
    assert_eq!(stage.state(2), NeighborState::Established);
}

#[test]
fn a_prefix_both_withdrawn_and_announced_is_announced() {
    let mut stage = Stage::new([(2, NeighborConfig::new(65000, 65001, [Family::Ipv4]))]);
    let id = stage.establish(2, 65001, &modern(65001));
    stage.say(id, &update(&net(1), &usual(), &net(1)));
    assert_eq!(stage.routes().len(), 1);
}

#[test]
fn an_end_of_rib_is_no_error_for_either_family_and_none_of_a_foreign_one() {
    let mut stage = Stage::new([(2, NeighborConfig::new(65000, 65001, [Family::Ipv4, Family::Ipv6]))]);
    let id = stage.establish(2, 65001, &modern(65001));
    stage.say(id, &update(&[], &attribute(0x80, 15, &[0, 25, 70]), &[]));
    assert!(!stage.events.iter().any(|event| matches!(event, Event::EndOfRib { .. })));
    stage.say(id, &update(&[], &[], &[]));
    stage.say(id, &update(&[], &attribute(0x80, 15, &[0, 2, 1]), &[]));
    // A legal 31-octet End-of-RIB for IPv4 in MP_UNREACH_NLRI, which kills others.
    stage.say(id, &update(&[], &attribute(0x90, 15, &[0, 1, 1]), &[]));
    let told = stage.events.iter().filter(|event| matches!(event, Event::EndOfRib { .. })).count();
    assert_eq!(told, 3);
}

#[test]
fn routes_that_are_refused_replace_what_was_there() {
    // A loop, our own next hop: no error, no route, and what was told before does not hold any more.
    let mut stage = Stage::new([(2, NeighborConfig::new(65000, 65001, [Family::Ipv4]))]);
    let id = stage.establish(2, 65001, &modern(65001));
    for refused in
        [[origin(), path(&[65001, 65000]), next_hop(2)].concat(), [origin(), path(&[65001]), next_hop(1)].concat()]
    {
        stage.say(id, &update(&[], &usual(), &net(1)));
        assert_eq!(stage.routes().len(), 1);
        stage.say(id, &update(&[], &refused, &net(1)));
        assert!(stage.routes().is_empty());
        assert_eq!(stage.state(2), NeighborState::Established);
    }
}
