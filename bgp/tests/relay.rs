//! Routes of one neighbour told to others: attributes, policies, packing, and the choice between several paths.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod puppet;

use std::collections::BTreeSet;

use martlet_bgp::{ConnectionId, Export, Family, Import, Input, NeighborConfig, Role};
use puppet::{Heard, Stage, attribute, modern, name, net, next_hop, open, origin, path, update, usual};

fn transit(ours: u32, theirs: u32) -> NeighborConfig {
    let export = Export { transit: Import::All, ..Export::default() };
    NeighborConfig { export, ..NeighborConfig::new(ours, theirs, [Family::Ipv4, Family::Ipv6]) }
}

/// Two external neighbours, 65001 and 65002, of a transit AS 65000.
fn two() -> (Stage, ConnectionId, ConnectionId) {
    two_with(transit(65000, 65001), transit(65000, 65002), 65002)
}

fn two_with(one: NeighborConfig, two: NeighborConfig, asn: u16) -> (Stage, ConnectionId, ConnectionId) {
    let from = u16::try_from(one.remote_as.expect("a test names it")).expect("two octets");
    let mut stage = Stage::new([(2, one), (3, two)]);
    let two = stage.establish(3, asn, &modern(u32::from(asn)));
    let one = stage.establish(2, from, &modern(u32::from(from)));
    stage.messages(one);
    stage.messages(two);
    (stage, one, two)
}

fn value(heard: &Heard, kind: u8) -> Option<Vec<u8>> {
    heard.attributes.get(&kind).map(|(_, value)| value.clone())
}

fn nets(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn an_external_route_is_passed_on_with_our_as_and_our_next_hop() {
    let (mut stage, one, two) = two();
    let attributes = [
        usual(),
        attribute(0x80, 4, &[0, 0, 0, 9]),
        attribute(0xc0, 8, &[0, 1, 0, 2]),
        attribute(0xc0, 16, &[0, 2, 0, 1, 0, 0, 0, 1, 0x40, 4, 0, 1, 0, 0, 0, 1]),
        attribute(0xc0, 200, &[7]),
        attribute(0x80, 201, &[7]),
        attribute(0xe0, 32, &[9; 12]),
    ];
    stage.say(one, &update(&[], &attributes.concat(), &net(1)));
    let heard = stage.heard(two);
    assert_eq!(heard.len(), 1);
    assert_eq!((&heard[0].nlri, &heard[0].next_hop), (&nets(&["10.1.0.0/16"]), &vec![10, 0, 0, 1]));
    assert_eq!(value(&heard[0], 2), Some(vec![2, 2, 0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe9]));
    // MULTI_EXIT_DISC and what is not transitive do not cross the border; what we do not know becomes partial, what was stays.
    assert_eq!(value(&heard[0], 4), None);
    assert_eq!(value(&heard[0], 8), Some(vec![0, 1, 0, 2]));
    assert_eq!(value(&heard[0], 16), Some(vec![0, 2, 0, 1, 0, 0, 0, 1]));
    assert_eq!(heard[0].attributes[&200], (0xe0, vec![7]));
    assert_eq!(value(&heard[0], 201), None);
    assert_eq!(heard[0].attributes[&32], (0xe0, vec![9; 12]));
    assert_eq!(stage.heard(one), []);
    stage.say(one, &update(&net(1), &[], &[]));
    assert_eq!(stage.heard(two)[0].withdrawn, nets(&["10.1.0.0/16"]));
}

#[test]
fn ipv6_is_passed_on_beside_the_classic_fields() {
    let (mut stage, one, two) = two();
    let reach =
        [&[0, 2, 1, 32][..], &[0x20; 16], &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], &[0, 16, 0x20, 5]];
    stage.say(one, &update(&[], &[attribute(0x80, 14, &reach.concat()), origin(), path(&[65001])].concat(), &[]));
    let paths = stage.speaker.paths(&"2005::/16".parse().unwrap());
    assert_eq!(paths[0].link_local, Some("fe80::9".parse().unwrap()));
    let heard = stage.heard(two);
    assert_eq!(heard[0].nlri, nets(&["2005::/16"]));
    assert_eq!(heard[0].next_hop, [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    stage.say(one, &update(&[], &attribute(0x80, 15, &[0, 2, 1, 16, 0x20, 5]), &[]));
    assert_eq!(stage.heard(two)[0].withdrawn, nets(&["2005::/16"]));
}

#[test]
fn a_neighbour_without_four_octet_numbers_gets_both_paths() {
    let mut stage = Stage::new([(2, transit(65000, 65001)), (3, transit(65000, 65002))]);
    let two = stage.connect(3).unwrap();
    stage.say(two, &open(65002, 3, &[]));
    stage.say(two, &puppet::keepalive());
    let one = stage.establish(2, 65001, &modern(65001));
    stage.messages(two);
    let attributes =
        [origin(), path(&[65001, 4_200_000_000]), next_hop(2), attribute(0xc0, 7, &[0xfa, 0x56, 0xea, 0, 1, 2, 3, 4])];
    stage.say(one, &update(&[], &attributes.concat(), &net(1)));
    let heard = stage.heard(two).remove(0);
    assert_eq!(value(&heard, 2), Some(vec![2, 3, 0xfd, 0xe8, 0xfd, 0xe9, 0x5b, 0xa0]));
    assert_eq!(value(&heard, 17), Some(vec![2, 3, 0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe9, 0xfa, 0x56, 0xea, 0]));
    assert_eq!(value(&heard, 7), Some(vec![0x5b, 0xa0, 1, 2, 3, 4]));
    assert_eq!(value(&heard, 18), Some(vec![0xfa, 0x56, 0xea, 0, 1, 2, 3, 4]));
}

#[test]
fn what_an_old_neighbour_could_not_read_is_put_together_again() {
    let mut stage = Stage::new([(2, transit(65000, 65001)), (3, transit(65000, 65002))]);
    let two = stage.establish(3, 65002, &modern(65002));
    let one = stage.connect(2).unwrap();
    stage.say(one, &open(65001, 2, &[]));
    stage.say(one, &puppet::keepalive());
    stage.messages(two);
    let attributes = [
        origin(),
        attribute(0x40, 2, &[2, 3, 0xfd, 0xe9, 0x5b, 0xa0, 0, 7]),
        next_hop(2),
        attribute(0xe0, 17, &[2, 2, 0xfa, 0x56, 0xea, 0, 0, 0, 0, 7]),
    ];
    stage.say(one, &update(&[], &attributes.concat(), &net(1)));
    let expected =
        [&[2, 4][..], &[0, 0, 0xfd, 0xe8], &[0, 0, 0xfd, 0xe9], &[0xfa, 0x56, 0xea, 0], &[0, 0, 0, 7]].concat();
    assert_eq!(value(&stage.heard(two)[0], 2), Some(expected));
}

#[test]
fn within_an_as_local_preference_goes_along_and_reflection_has_its_marks() {
    // From without to within: LOCAL_PREF and MED, next hop self.
    let (mut stage, one, two) = two_with(transit(65000, 65001), transit(65000, 65000), 65000);
    stage.say(one, &update(&[], &[usual(), attribute(0x80, 4, &[0, 0, 0, 9])].concat(), &net(1)));
    let heard = stage.heard(two).remove(0);
    assert_eq!((value(&heard, 5), value(&heard, 4)), (Some(vec![0, 0, 0, 100]), Some(vec![0, 0, 0, 9])));
    assert_eq!((value(&heard, 2), &heard.next_hop), (Some(vec![2, 1, 0, 0, 0xfd, 0xe9]), &vec![10, 0, 0, 1]));

    // From within to within: only to or from a client, and then the next hop stays.
    let attributes = [origin(), attribute(0x40, 2, &[]), next_hop(9), attribute(0x40, 5, &[0, 0, 0, 200])].concat();
    let (mut stage, one, two) = two_with(transit(65000, 65000), transit(65000, 65000), 65000);
    stage.say(one, &update(&[], &attributes, &net(1)));
    assert_eq!(stage.heard(two), []);
    let client = NeighborConfig { route_reflector_client: true, ..transit(65000, 65000) };
    let (mut stage, one, two) = two_with(client, transit(65000, 65000), 65000);
    stage.say(one, &update(&[], &attributes, &net(1)));
    let heard = stage.heard(two).remove(0);
    assert_eq!((value(&heard, 9), value(&heard, 10)), (Some(vec![10, 0, 0, 2]), Some(vec![10, 0, 0, 1])));
    assert_eq!((value(&heard, 5), &heard.next_hop), (Some(vec![0, 0, 0, 200]), &vec![10, 0, 0, 9]));
    // What comes back to us is not taken.
    let ours = [attributes, attribute(0x80, 10, &[9, 9, 9, 9, 10, 0, 0, 1])].concat();
    stage.say(one, &update(&[], &ours, &net(1)));
    assert!(stage.routes().is_empty());
}

#[test]
fn well_known_communities_are_obeyed() {
    for (community, external, internal) in
        [([0xff, 0xff, 0xff, 0x01], false, true), ([0xff, 0xff, 0xff, 0x02], false, false), ([0, 1, 0, 1], true, true)]
    {
        for (config, asn, expected) in
            [(transit(65000, 65002), 65002, external), (transit(65000, 65000), 65000, internal)]
        {
            let (mut stage, one, two) = two_with(transit(65000, 65001), config, asn);
            stage.say(one, &update(&[], &[usual(), attribute(0xc0, 8, &community)].concat(), &net(1)));
            assert_eq!(!stage.heard(two).is_empty(), expected, "{community:?} to AS {asn}");
        }
    }
}

#[test]
fn only_to_customer_goes_where_its_name_says() {
    let with = |role, config: NeighborConfig| NeighborConfig { role: Some(role), ..config };
    // From our provider: marked on the way in, not told to a peer, told to a customer.
    for (role, told) in
        [(Role::Peer, false), (Role::Customer, false), (Role::Provider, true), (Role::RouteServer, true)]
    {
        let (mut stage, one, two) =
            two_with(with(Role::Customer, transit(65000, 65001)), with(role, transit(65000, 65002)), 65002);
        stage.say(one, &update(&[], &usual(), &net(1)));
        let heard = stage.heard(two);
        assert_eq!(!heard.is_empty(), told, "as {role:?}");
        if told {
            assert_eq!(value(&heard[0], 35), Some(vec![0, 0, 0xfd, 0xe9]));
        }
    }
    // From a customer, unmarked: marked with our AS on the way to a peer; already marked: a leak.
    let (mut stage, one, two) =
        two_with(with(Role::Provider, transit(65000, 65001)), with(Role::Peer, transit(65000, 65002)), 65002);
    stage.say(one, &update(&[], &usual(), &net(1)));
    assert_eq!(value(&stage.heard(two)[0], 35), Some(vec![0, 0, 0xfd, 0xe8]));
    stage.say(one, &update(&[], &[usual(), attribute(0xc0, 35, &[0, 0, 0, 7])].concat(), &net(1)));
    assert!(stage.routes().is_empty());
    assert_eq!(stage.heard(two)[0].withdrawn, nets(&["10.1.0.0/16"]));
}

#[test]
fn the_export_policy_decides_what_is_added() {
    let export = Export {
        med: Some(7),
        prepend: 2,
        communities: BTreeSet::from([0x0001_0002]),
        large_communities: BTreeSet::from([(1, 2, 3)]),
        graceful_shutdown: true,
        ..Export::default()
    };
    let mut stage = Stage::new([(2, NeighborConfig { export, ..NeighborConfig::new(65000, 65001, [Family::Ipv4]) })]);
    let one = stage.establish(2, 65001, &modern(65001));
    stage.handle(Input::SetAnnounced(&BTreeSet::from(["20.0.0.1/32".parse().unwrap()])));
    let heard = stage.heard(one).remove(0);
    assert_eq!(value(&heard, 1), Some(vec![0]));
    assert_eq!(value(&heard, 2), Some([&[2, 3][..], &[0, 0, 0xfd, 0xe8].repeat(3)].concat()));
    assert_eq!(value(&heard, 4), Some(vec![0, 0, 0, 7]));
    assert_eq!(value(&heard, 5), None);
    assert_eq!(value(&heard, 8), Some(vec![0, 1, 0, 2, 0xff, 0xff, 0, 0]));
    assert_eq!(value(&heard, 32), Some(vec![0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]));
}

fn hops(stage: &Stage) -> Vec<String> {
    stage.speaker.paths(&"10.1.0.0/16".parse().unwrap()).iter().map(|path| path.next_hop.to_string()).collect()
}

#[test]
fn equal_paths_of_different_ases_share_the_traffic() {
    let (mut stage, one, two) = two();
    stage.say(one, &update(&[], &[origin(), path(&[65001, 7]), next_hop(2)].concat(), &net(1)));
    stage.say(two, &update(&[], &[origin(), path(&[65002, 7]), next_hop(3)].concat(), &net(1)));
    assert_eq!(hops(&stage), ["10.0.0.2", "10.0.0.3"]);
    // Each other attribute breaks the tie.
    for (worse, better) in [
        ([origin(), path(&[65002, 7, 7]), next_hop(3)].concat(), "10.0.0.2"),
        ([attribute(0x40, 1, &[1]), path(&[65002, 7]), next_hop(3)].concat(), "10.0.0.2"),
        ([origin(), path(&[65002]), next_hop(3)].concat(), "10.0.0.3"),
        // GRACEFUL_SHUTDOWN: about to go (RFC 8326).
        ([origin(), path(&[65002]), next_hop(3), attribute(0xc0, 8, &[0xff, 0xff, 0, 0])].concat(), "10.0.0.2"),
    ] {
        stage.say(two, &update(&[], &worse, &net(1)));
        assert_eq!(hops(&stage), [better]);
    }
    stage.say(one, &update(&net(1), &[], &[]));
    assert_eq!(hops(&stage), ["10.0.0.3"]);
}

#[test]
fn med_counts_within_one_neighbouring_as_only() {
    let same = |config| two_with(transit(65000, 65001), config, 65001);
    let (mut stage, one, two) = same(transit(65000, 65001));
    let med = |hop, med| {
        update(&[], &[origin(), path(&[65001]), next_hop(hop), attribute(0x80, 4, &[0, 0, 0, med])].concat(), &net(1))
    };
    stage.say(one, &med(2, 20));
    stage.say(two, &med(3, 10));
    assert_eq!(hops(&stage), ["10.0.0.3"]);
    stage.say(one, &med(2, 10));
    assert_eq!(hops(&stage), ["10.0.0.2", "10.0.0.3"]);
    let (mut stage, one, two) = self::two();
    stage.say(one, &med(2, 20));
    stage.say(
        two,
        &update(&[], &[origin(), path(&[65002]), next_hop(3), attribute(0x80, 4, &[0, 0, 0, 10])].concat(), &net(1)),
    );
    assert_eq!(hops(&stage), ["10.0.0.2", "10.0.0.3"]);
}

#[test]
fn external_beats_internal_and_bandwidth_makes_weights() {
    let (mut stage, one, two) = two_with(transit(65000, 65001), transit(65000, 65000), 65000);
    stage.say(two, &update(&[], &[origin(), path(&[65009]), next_hop(3)].concat(), &net(1)));
    stage.say(one, &update(&[], &usual(), &net(1)));
    assert_eq!(hops(&stage), ["10.0.0.2"]);

    let (mut stage, one, two) = self::two();
    let wide = |asn, hop, bandwidth: f32| {
        let community = [&[0x40, 4, 0, 1][..], &bandwidth.to_be_bytes()].concat();
        update(&[], &[origin(), path(&[asn]), next_hop(hop), attribute(0xc0, 16, &community)].concat(), &net(1))
    };
    stage.say(one, &wide(65001, 2, 1e9));
    stage.say(two, &wide(65002, 3, 3e9));
    let weights =
        stage.speaker.paths(&"10.1.0.0/16".parse().unwrap()).iter().map(|path| path.weight).collect::<Vec<_>>();
    assert_eq!(weights, [1, 3]);
}

#[test]
fn the_other_path_is_told_when_the_best_goes() {
    let mut stage = Stage::new([(2, transit(65000, 65001)), (3, transit(65000, 65002)), (4, transit(65000, 65004))]);
    let ids =
        [(2, 65001), (3, 65002), (4, 65004)].map(|(last, asn)| stage.establish(last, asn, &modern(u32::from(asn))));
    for id in ids {
        stage.messages(id);
    }
    stage.say(ids[0], &update(&[], &[origin(), path(&[65001, 5]), next_hop(2)].concat(), &net(1)));
    stage.say(ids[1], &update(&[], &[origin(), path(&[65002]), next_hop(3)].concat(), &net(1)));
    // The better path came from the second: the first hears of it, the second is told no more.
    assert_eq!(stage.heard(ids[0]).len(), 1);
    assert_eq!(stage.heard(ids[1]).last().map(|heard| heard.withdrawn.clone()), Some(nets(&["10.1.0.0/16"])));
    assert_eq!(stage.heard(ids[2]).len(), 2);
    stage.say(ids[1], &update(&net(1), &[], &[]));
    assert_eq!(value(&stage.heard(ids[2])[0], 2), Some(vec![2, 3, 0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe9, 0, 0, 0, 5]));
    assert_eq!(stage.heard(ids[0])[0].withdrawn.len(), 1);
    // The session of the last teller ends: all hear of it.
    stage.handle(Input::Reset(&name(2), ""));
    assert_eq!(stage.heard(ids[2])[0].withdrawn, nets(&["10.1.0.0/16"]));
}

/// 10 000 prefixes with 100 sets of attributes, told in turn: the worst order.
fn interleaved(stage: &mut Stage, from: ConnectionId) {
    for n in 0..10_000u32 {
        let [_, _, high, low] = n.to_be_bytes();
        stage.say(
            from,
            &update(&[], &[origin(), path(&[65001, 1000 + n % 100]), next_hop(2)].concat(), &[24, 30, high, low]),
        );
    }
}

#[test]
fn a_relay_is_packed_by_attributes_in_the_first_dump_and_to_a_slow_reader() {
    let (mut stage, one, two) = two();
    stage.room = 0;
    interleaved(&mut stage, one);
    stage.room = 1 << 20;
    stage.drain();
    let relayed = stage.heard(two);
    assert_eq!(relayed.iter().map(|heard| heard.nlri.len()).sum::<usize>(), 10_000);
    assert_eq!(relayed.len(), 100);
    // A neighbour that comes later.
    let mut configs = stage.configs.clone();
    configs.insert(name(4), NeighborConfig { passive: true, ..transit(65000, 65004) });
    stage.handle(Input::SetNeighbors(&configs));
    let late = stage.establish(4, 65004, &modern(65004));
    let dumped = stage.heard(late);
    assert_eq!(dumped.len(), 100);
    assert!(dumped.iter().chain(&relayed).all(|heard| heard.length <= 4096));
    // All at once away.
    stage.room = 0;
    stage.handle(Input::Reset(&name(2), ""));
    stage.room = 1 << 20;
    stage.drain();
    let gone = stage.heard(late);
    assert_eq!(gone.iter().map(|heard| heard.withdrawn.len()).sum::<usize>(), 10_000);
    assert!(gone.len() <= 11, "{} messages", gone.len());
}

#[test]
fn our_own_prefixes_overtake_a_full_table() {
    let (mut stage, one, two) = two();
    stage.room = 0;
    interleaved(&mut stage, one);
    stage.handle(Input::SetAnnounced(&BTreeSet::from(["20.0.0.1/32".parse().unwrap()])));
    stage.room = 1;
    stage.drain();
    assert_eq!(stage.heard(two)[0].nlri, nets(&["20.0.0.1/32"]));
}

#[test]
fn attributes_that_leave_no_room_for_a_prefix_are_not_passed_on() {
    let (mut stage, one, two) = two();
    let huge = [usual(), attribute(0xc0, 200, &[7; 4000])].concat();
    stage.say(one, &update(&[], &huge, &net(1)));
    assert_eq!(stage.routes().len(), 1);
    assert_eq!(stage.heard(two), []);
    stage.say(one, &update(&[], &usual(), &net(1)));
    assert_eq!(stage.heard(two).len(), 1);
    stage.say(one, &update(&[], &huge, &net(1)));
    assert_eq!(stage.heard(two)[0].withdrawn, nets(&["10.1.0.0/16"]));
    stage.say(one, &update(&[], &usual(), &net(2)));
    assert_eq!(stage.heard(two).len(), 1);
}

#[test]
fn a_route_can_be_looked_at() {
    let (mut stage, one, _) = two();
    let attributes =
        [usual(), attribute(0x80, 4, &[0, 0, 0, 9]), attribute(0xc0, 8, &[0, 1, 0, 2]), attribute(0xc0, 32, &[0; 12])];
    stage.say(one, &update(&[], &attributes.concat(), &net(1)));
    let prefix = "10.1.0.0/16".parse().unwrap();
    let route = stage.speaker.route(&name(2), &prefix).unwrap();
    assert_eq!((route.origin, &route.as_path[..], route.med), ("igp", &[65001][..], Some(9)));
    assert_eq!((&route.communities[..], &route.large_communities[..]), (&[0x0001_0002][..], &[(0, 0, 0)][..]));
    assert_eq!(route.next_hop.to_string(), "10.0.0.2");
    // All but the next hop, as they came.
    assert_eq!(route.octets, [origin(), path(&[65001]), attributes[1..].concat()].concat());
    assert_eq!(stage.speaker.route(&name(3), &prefix), None);
}

#[test]
fn what_the_policy_and_the_teller_take_back_together_is_withdrawn() {
    let (mut stage, one, two) = two();
    stage.say(one, &update(&[], &usual(), &[net(1), net(2)].concat()));
    assert_eq!(stage.heard(two)[0].nlri.len(), 2);
    // The neighbour reads nothing while it is to hear no transit any more, and while one of the routes goes.
    stage.room = 0;
    let mut configs = stage.configs.clone();
    configs.get_mut(&name(3)).unwrap().export.transit = Import::None;
    stage.handle(Input::SetNeighbors(&configs));
    stage.say(one, &update(&net(1), &[], &[]));
    stage.room = 1 << 16;
    stage.drain();
    assert_eq!(stage.heard(two)[0].withdrawn, nets(&["10.1.0.0/16", "10.2.0.0/16"]));
    assert_eq!(stage.speaker.status()[&name(3)].announced, 0);
}

#[test]
fn each_change_of_one_of_several_paths_is_told_once() {
    let (mut stage, one, two) = two();
    let changed = |stage: &mut Stage| stage.speaker.changed(10).iter().map(ToString::to_string).collect::<Vec<_>>();
    let route = |asn, hop| update(&[], &[origin(), path(&[asn, 7]), next_hop(hop)].concat(), &net(1));
    for (from, octets, told) in [
        (one, route(65001, 2), true),
        (two, route(65002, 3), true),
        (two, route(65002, 3), false),
        (two, route(65002, 4), true),
        (one, update(&net(1), &[], &[]), true),
        (one, update(&net(1), &[], &[]), false),
        (two, update(&net(1), &[], &[]), true),
    ] {
        stage.say(from, &octets);
        assert_eq!(changed(&mut stage), if told { vec!["10.1.0.0/16"] } else { vec![] });
    }
}

#[test]
fn what_a_neighbour_does_not_repeat_between_its_marks_is_gone() {
    let (mut stage, one, two) = two();
    stage.say(one, &update(&[], &usual(), &[net(1), net(2)].concat()));
    stage.say(one, &puppet::message(5, &[0, 1, 1, 1]));
    stage.say(one, &update(&[], &usual(), &net(2)));
    assert_eq!(stage.routes(), nets(&["10.1.0.0/16", "10.2.0.0/16"]));
    assert!(!stage.speaker.paths(&"10.1.0.0/16".parse().unwrap())[0].stale);
    stage.messages(two);
    stage.say(one, &puppet::message(5, &[0, 1, 2, 1]));
    assert_eq!(stage.routes(), nets(&["10.2.0.0/16"]));
    assert_eq!(stage.heard(two)[0].withdrawn, nets(&["10.1.0.0/16"]));
}
