//! Several paths to a prefix from one neighbour (RFC 7911).
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod puppet;

use martlet_bgp::{Family, NeighborConfig, NeighborState};
use puppet::{Stage, modern, net, next_hop, origin, path, update};

const BOTH_WAYS: [u8; 6] = [69, 4, 0, 1, 1, 3];

fn stage(receive: bool, capability: &[u8]) -> (Stage, martlet_bgp::ConnectionId) {
    let config = NeighborConfig { add_path_receive: receive, ..NeighborConfig::new(65000, 65001, [Family::Ipv4]) };
    let mut stage = Stage::new([(2, config)]);
    let id = stage.establish(2, 65001, &[&modern(65001)[..], capability].concat());
    (stage, id)
}

fn with_id(id: u8) -> Vec<u8> {
    [&[0, 0, 0, id][..], &net(1)].concat()
}

fn announce(hop: u8) -> Vec<u8> {
    [origin(), path(&[65001]), next_hop(hop)].concat()
}

fn hops(stage: &Stage) -> Vec<String> {
    stage.speaker.paths(&"10.1.0.0/16".parse().unwrap()).iter().map(|path| path.next_hop.to_string()).collect()
}

#[test]
fn two_paths_of_a_neighbour_share_the_traffic_and_go_one_by_one() {
    let (mut stage, id) = stage(true, &BOTH_WAYS);
    stage.say(id, &update(&[], &announce(7), &with_id(1)));
    stage.say(id, &update(&[], &announce(8), &with_id(2)));
    assert_eq!(hops(&stage), ["10.0.0.7", "10.0.0.8"]);
    // The same identifier again replaces.
    stage.say(id, &update(&[], &announce(9), &with_id(2)));
    assert_eq!(hops(&stage), ["10.0.0.7", "10.0.0.9"]);
    stage.say(id, &update(&with_id(1), &[], &[]));
    assert_eq!(hops(&stage), ["10.0.0.9"]);
    stage.say(id, &update(&with_id(7), &[], &[]));
    assert_eq!(hops(&stage), ["10.0.0.9"]);
    stage.say(id, &puppet::message(3, &[6, 2]));
    assert!(stage.routes().is_empty());
}

#[test]
fn without_the_agreement_there_is_no_identifier() {
    for (receive, capability) in
        [(false, &BOTH_WAYS[..]), (true, &[]), (true, &[69, 4, 0, 1, 1, 1]), (true, &[69, 4, 0, 2, 1, 2])]
    {
        let (mut stage, id) = stage(receive, capability);
        stage.say(id, &update(&[], &announce(7), &net(1)));
        assert_eq!(hops(&stage), ["10.0.0.7"], "{receive} {capability:?}");
    }
}

#[test]
fn an_identifier_that_is_cut_is_an_invalid_network_field() {
    let (mut stage, id) = stage(true, &BOTH_WAYS);
    stage.say(id, &update(&[], &announce(7), &[0, 0, 0]));
    assert_eq!(stage.notification(id).map(|(code, subcode, _)| (code, subcode)), Some((3, 10)));
    assert_ne!(stage.state(2), NeighborState::Established);
}
