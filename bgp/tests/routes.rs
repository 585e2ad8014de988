//! Routes between two speakers: what is told, with which attributes, and what becomes of it.

mod world;

use std::collections::BTreeSet;

use martlet_bgp::{Export, Family, Import, Input, NeighborConfig, PrefixRange};
use world::{World, id, nets};

fn config(ours: u32, theirs: u32, families: &[Family]) -> NeighborConfig {
    NeighborConfig::new(ours, theirs, families.iter().copied())
}

fn pair(families: &[Family]) -> World {
    let mut world = World::new(config(65001, 65002, families), config(65002, 65001, families));
    world.until(10);
    world
}

#[test]
fn a_prefix_is_announced_and_withdrawn() {
    let mut world = pair(&[Family::Ipv4]);
    world.announce(0, &["20.0.0.1/32", "20.0.0.2/32"]);
    assert_eq!(
        world.routes(1).into_iter().collect::<Vec<_>>(),
        [("20.0.0.1/32".into(), "10.0.0.1".into()), ("20.0.0.2/32".into(), "10.0.0.1".into())]
    );
    assert_eq!(world.sides[0].speaker.status()[&id("b")].announced, 2);
    world.announce(0, &["20.0.0.2/32"]);
    assert_eq!(world.routes(1).len(), 1);
    assert_eq!(
        world.sides[1].speaker.changed(10).into_iter().collect::<BTreeSet<_>>(),
        nets(&["20.0.0.1/32", "20.0.0.2/32"])
    );
    assert!(world.sides[1].speaker.changed(10).is_empty());
    world.announce(0, &[]);
    assert_eq!(world.sides[0].speaker.status()[&id("b")].announced, 0);
}

#[test]
fn a_default_route_that_changes_waits_for_no_other() {
    let mut world = pair(&[Family::Ipv4]);
    world.announce(0, &["10.1.0.0/16", "10.2.0.0/16"]);
    world.announce(0, &["0.0.0.0/0", "10.1.0.0/16", "10.2.0.0/16"]);
    let changed = world.sides[1].speaker.changed(10);
    assert_eq!(changed.len(), 3);
    assert_eq!(changed[0], "0.0.0.0/0".parse().unwrap());
}

#[test]
fn what_is_announced_before_the_session_is_told_when_it_is_up() {
    let mut world = World::new(config(1, 2, &[Family::Ipv4]), config(2, 1, &[Family::Ipv4]));
    world.announce(0, &["20.0.0.1/32"]);
    world.until(10);
    assert_eq!(world.routes(1).len(), 1);
}

#[test]
fn ipv6_goes_beside_the_classic_fields() {
    let both = [Family::Ipv6];
    let mut world = World::with(config(1, 2, &both), config(2, 1, &both), ["2001:db8::1", "2001:db8::2"]);
    world.announce(0, &["2000::1/128", "20.0.0.1/32"]);
    world.until(10);
    assert_eq!(world.routes(1).into_iter().collect::<Vec<_>>(), [("2000::1/128".into(), "2001:db8::1".into())]);
    world.announce(0, &[]);
    assert_eq!(world.routes(1).len(), 0);
}

#[test]
fn ipv4_prefixes_have_an_ipv6_next_hop_where_both_can() {
    let four = [Family::Ipv4, Family::Ipv6];
    let mut world = World::with(config(1, 2, &four), config(2, 1, &four), ["2001:db8::1", "2001:db8::2"]);
    world.announce(0, &["2000::1/128", "20.0.0.1/32"]);
    world.until(10);
    let hops: Vec<_> = world.routes(1).into_values().collect();
    assert_eq!(hops, ["2001:db8::1", "2001:db8::1"]);
    world.announce(0, &[]);
    assert_eq!(world.routes(1).len(), 0);
}

#[test]
fn without_an_address_of_the_family_nothing_is_announced() {
    let both = [Family::Ipv4, Family::Ipv6];
    let mut world = World::new(config(1, 2, &both), config(2, 1, &both));
    world.announce(0, &["2000::1/128", "20.0.0.1/32"]);
    world.until(10);
    assert_eq!(world.routes(1).keys().collect::<Vec<_>>(), ["20.0.0.1/32"]);
}

#[test]
fn our_own_prefixes_and_loops_and_martians_stay_out() {
    let mut world = World::new(config(1, 2, &[Family::Ipv4]), config(2, 1, &[Family::Ipv4]));
    world.handle(0, Input::SetOwn(&nets(&["20.0.0.1/32"])));
    world.announce(1, &["20.0.0.1/32", "127.0.0.0/8", "10.9.0.0/16"]);
    world.until(10);
    assert_eq!(world.routes(0).keys().collect::<Vec<_>>(), ["10.9.0.0/16"]);
    world.handle(0, Input::SetOwn(&nets(&["10.9.0.0/16"])));
    // What is ours no longer is asked for again.
    assert_eq!(world.routes(0).keys().collect::<Vec<_>>(), ["20.0.0.1/32"]);
}

#[test]
fn an_import_policy_that_changes_is_applied_to_what_is_there_and_to_what_was_refused() {
    let mut world = pair(&[Family::Ipv4]);
    world.announce(1, &["0.0.0.0/0", "10.1.0.0/16", "10.2.3.0/24"]);
    assert_eq!(world.routes(0).len(), 3);
    let range = PrefixRange { prefix: "10.0.0.0/8".parse().unwrap(), min_length: 24, max_length: 32 };
    for (import, left) in [
        (Import::Default, vec!["0.0.0.0/0"]),
        (Import::Prefixes(vec![range]), vec!["10.2.3.0/24"]),
        (Import::None, vec![]),
        (Import::All, vec!["0.0.0.0/0", "10.1.0.0/16", "10.2.3.0/24"]),
    ] {
        world.configure(0, NeighborConfig { import, ..config(65001, 65002, &[Family::Ipv4]) });
        assert_eq!(world.routes(0).keys().collect::<Vec<_>>(), left);
        assert_eq!(world.established_count(0), 1);
    }
}

#[test]
fn an_export_policy_that_changes_is_told() {
    let mut world = pair(&[Family::Ipv4]);
    world.announce(0, &["20.0.0.1/32"]);
    let export = Export { own: false, ..Export::default() };
    world.configure(0, NeighborConfig { export, ..config(65001, 65002, &[Family::Ipv4]) });
    assert_eq!(world.routes(1).len(), 0);
    world.configure(0, config(65001, 65002, &[Family::Ipv4]));
    assert_eq!(world.routes(1).len(), 1);
}

#[test]
fn a_refresh_tells_all_again_between_its_marks() {
    let mut world = pair(&[Family::Ipv4]);
    world.announce(0, &["20.0.0.1/32", "20.0.0.2/32"]);
    let before = world.sides[0].speaker.counters()[&id("b")];
    world.handle(1, Input::Refresh(&id("a")));
    let after = world.sides[0].speaker.counters()[&id("b")];
    assert_eq!(after.prefixes_out - before.prefixes_out, 2);
    // BoRR, one UPDATE, EoRR.
    assert_eq!(after.messages_out - before.messages_out, 3);
    assert_eq!(world.routes(1).len(), 2);
}

#[test]
fn prefixes_of_one_set_of_attributes_leave_in_few_messages() {
    let mut world = pair(&[Family::Ipv4]);
    let many: Vec<String> = (0..4000).map(|n| format!("20.{}.{}.1/32", n / 250, n % 250)).collect();
    world.announce(0, &many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(world.routes(1).len(), 4000);
    // 4000 x 5 octets and 65535 octets a message: one, and the End-of-RIB before it.
    assert_eq!(world.sides[0].speaker.counters()[&id("b")].updates_out, 2);
    world.announce(0, &[]);
    assert_eq!(world.sides[0].speaker.counters()[&id("b")].updates_out, 3);
}

#[test]
fn a_slow_reader_is_told_the_last_word_only() {
    let mut world = pair(&[Family::Ipv4]);
    world.announce(0, &["20.0.0.9/32"]);
    let before = world.sides[0].speaker.counters()[&id("b")].updates_out;
    // Between two calls of transmit the wish changes many times.
    let speaker = &mut world.sides[0].speaker;
    for round in 0..1000 {
        let set = if round % 2 == 0 { nets(&["20.0.0.1/32"]) } else { nets(&["20.0.0.9/32"]) };
        speaker.handle(world.now, Input::SetAnnounced(&set));
    }
    world.announce(0, &["20.0.0.1/32"]);
    assert_eq!(world.routes(1).keys().collect::<Vec<_>>(), ["20.0.0.1/32"]);
    assert_eq!(world.sides[0].speaker.counters()[&id("b")].updates_out - before, 2);
}
