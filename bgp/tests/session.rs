//! Sessions between two speakers: how they begin, live and end.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use martlet_bgp::{
    Bfd, BfdState, CloseReason, Event, Family, GracefulRestart, HoldTime, Import, Input, NeighborConfig, NeighborState,
    PrefixLimit, Role,
};
use world::{NAMES, World, at, id};

fn config(ours: u32, theirs: u32) -> NeighborConfig {
    NeighborConfig { hold_time: HoldTime::new(9).unwrap(), ..NeighborConfig::new(ours, theirs, [Family::Ipv4]) }
}

fn pair() -> World {
    let mut world = World::new(config(65001, 65002), config(65002, 65001));
    world.until(10);
    world
}

fn bfd(world: &mut World, side: usize, state: BfdState) {
    world.handle(side, Input::SetBfd(&BTreeMap::from([(id(NAMES[side]), state)])));
}

#[test]
fn two_speakers_agree_on_one_session_at_once() {
    let world = pair();
    assert!(world.both_established());
    for side in [0, 1] {
        assert_eq!(world.established_count(side), 1);
        let status = &world.sides[side].speaker.status()[&id(NAMES[side])];
        assert_eq!((status.hold_time_s, status.families.len(), status.end_of_rib.len()), (9, 1, 1));
    }
}

#[test]
fn both_sides_open_at_once_a_hundred_times_and_one_session_stays() {
    for seed in 0..100u64 {
        let mut world = World::new(config(65001, 65002), config(65002, 65001));
        world.cut = true;
        world.until(300 + seed);
        world.mend();
        world.until(2000);
        assert!(world.both_established(), "seed {seed}");
        world.until(60_000);
        assert_eq!((world.established_count(0), world.established_count(1)), (1, 1), "seed {seed}");
    }
}

#[test]
fn a_connection_that_never_was_is_not_said_to_be_closed_with_a_notification() {
    let mut world = World::new(NeighborConfig { passive: true, ..config(1, 2) }, config(2, 1));
    world.until(300);
    assert!(world.both_established());
    assert_eq!(world.closes(0), []);
    assert_eq!(world.sides[0].speaker.status()[&id("b")].last_error, None);
}

#[test]
fn a_session_lives_as_long_as_keepalives_pass() {
    let mut world = pair();
    world.until(600_000);
    assert!(world.both_established());
    assert_eq!(world.established_count(0), 1);
}

#[test]
fn silence_ends_a_session_after_the_hold_time() {
    let mut world = pair();
    world.until(20);
    world.cut = true;
    world.until(8_000);
    assert!(world.both_established());
    world.until(13_000);
    assert_eq!(world.state(0), NeighborState::Connect);
    assert!(world.closes(0).contains(&(Some((4, 0)), true)));
}

#[test]
fn a_hold_time_of_zero_needs_no_keepalives() {
    let zero = |ours, theirs| NeighborConfig { hold_time: HoldTime::new(0).unwrap(), ..config(ours, theirs) };
    let mut world = World::new(zero(1, 2), zero(2, 1));
    world.until(10);
    world.cut = true;
    world.until(3_600_000);
    assert!(world.both_established());
}

#[test]
fn a_session_is_back_within_300_ms_of_the_path() {
    let loose = |ours, theirs| NeighborConfig { bfd: Bfd::Loose, ..config(ours, theirs) };
    for silence in [3_000, 3_077, 49_123, 200_001] {
        let mut world = World::new(loose(1, 2), loose(2, 1));
        world.until(10);
        for side in [0, 1] {
            bfd(&mut world, side, BfdState::Up);
        }
        world.until(1000);
        world.cut = true;
        for side in [0, 1] {
            bfd(&mut world, side, BfdState::Down);
        }
        world.until(1000 + silence);
        assert_ne!(world.state(0), NeighborState::Established);
        world.mend();
        world.until(1300 + silence);
        assert!(world.both_established(), "after {silence} ms");
    }
}

#[test]
fn bfd_down_is_told_and_its_routes_are_out_until_it_is_up() {
    let loose = |ours, theirs| NeighborConfig { bfd: Bfd::Loose, ..config(ours, theirs) };
    let mut world = World::new(loose(1, 2), loose(2, 1));
    world.announce(1, &["0.0.0.0/0"]);
    world.until(10);
    bfd(&mut world, 0, BfdState::Up);
    assert_eq!(world.routes(0).len(), 1);
    bfd(&mut world, 0, BfdState::Down);
    // With the N bit a stop is a Hard Reset around the real reason (RFC 8538).
    assert!(world.closes(0).contains(&(Some((6, 9)), true)));
    assert!(
        world.sides[1]
            .events
            .iter()
            .any(|event| matches!(event, Event::Closed { text, .. } if text.contains("BFD Down")))
    );
    world.until(2000);
    assert!(world.both_established());
    assert_eq!(world.routes(0).len(), 0);
    bfd(&mut world, 0, BfdState::Up);
    assert_eq!(world.routes(0).len(), 1);
}

#[test]
fn bfd_admin_down_says_nothing() {
    let loose = |ours, theirs| NeighborConfig { bfd: Bfd::Loose, ..config(ours, theirs) };
    let mut world = World::new(loose(1, 2), loose(2, 1));
    world.until(10);
    bfd(&mut world, 0, BfdState::Up);
    bfd(&mut world, 0, BfdState::AdminDown);
    world.until(20_000);
    assert_eq!(world.established_count(0), 1);
}

#[test]
fn a_strict_session_waits_for_bfd() {
    let strict = NeighborConfig { bfd: Bfd::Strict, ..config(1, 2) };
    let mut world = World::new(strict, config(2, 1));
    world.until(20_000);
    assert_eq!(world.state(0), NeighborState::Idle);
    bfd(&mut world, 0, BfdState::Up);
    world.until(60_000);
    assert!(world.both_established());
    bfd(&mut world, 0, BfdState::Down);
    assert_eq!(world.state(0), NeighborState::Idle);
}

#[test]
fn a_neighbour_that_is_not_there_is_tried_five_times_a_second_and_told_once() {
    let mut world = World::new(config(1, 2), config(2, 1));
    world.sides[1].listens = false;
    world.restart(1, NeighborConfig { shutdown: Some("later".into()), ..config(2, 1) }, true);
    let before = world.sides[0].speaker.counters()[&id("b")].connects;
    world.sides[0].events.clear();
    world.until(10_001);
    let tries = world.sides[0].speaker.counters()[&id("b")].connects - before;
    assert!((45..=60).contains(&tries), "{tries} tries in ten seconds");
    assert!(world.sides[0].events.len() <= 3, "{:?}", world.sides[0].events);
    world.sides[1].listens = true;
    world.configure(1, config(2, 1));
    world.until(10_300);
    assert!(world.both_established());
}

#[test]
fn a_neighbour_that_keeps_refusing_our_open_is_tried_less_and_less() {
    let mut world = World::new(config(1, 2), config(2, 9));
    world.until(120_000);
    let tries = world.sides[0].speaker.counters()[&id("b")].connects;
    assert!((5..=40).contains(&tries), "{tries} tries in two minutes");
    assert!(world.closes(1).contains(&(Some((2, 2)), true)));
    let error = world.sides[1].speaker.status()[&id("a")].last_error.clone().unwrap();
    assert!(error.contains("the neighbour is AS 1, AS 9 is configured"), "{error}");
}

#[test]
fn two_passive_sides_wait_and_one_active_side_is_enough() {
    let passive = |ours, theirs| NeighborConfig { passive: true, ..config(ours, theirs) };
    let mut world = World::new(passive(1, 2), passive(2, 1));
    world.until(5_000);
    assert_eq!((world.state(0), world.state(1)), (NeighborState::Active, NeighborState::Active));
    world.configure(0, config(1, 2));
    world.until(5_300);
    assert!(world.both_established());
}

#[test]
fn an_open_may_be_delayed_until_the_neighbours_came() {
    let slow = NeighborConfig { delay_open: Some(Duration::from_secs(2)), ..config(1, 2) };
    let mut world = World::new(slow.clone(), config(2, 1));
    world.until(10);
    assert!(world.both_established());
    let mut world = World::new(slow.clone(), NeighborConfig { local_as: 2, remote_as: Some(1), ..slow });
    world.until(1_900);
    assert!(!world.both_established());
    world.until(3_000);
    assert!(world.both_established());
}

#[test]
fn a_stop_tells_why_and_nothing_begins_after_it() {
    let mut world = pair();
    world.handle(0, Input::Stop("node drained"));
    assert!(
        world.sides[1]
            .events
            .iter()
            .any(|event| matches!(event, Event::Closed { text, .. } if text.contains("node drained")))
    );
    world.until(60_000);
    assert_eq!(world.state(0), NeighborState::Idle);
    assert_eq!(world.established_count(0), 1);
}

#[test]
fn a_reset_ends_the_session_and_begins_another() {
    let mut world = pair();
    world.handle(0, Input::Reset(&id("b"), "try again"));
    world.until(2_000);
    assert!(world.both_established());
    assert_eq!(world.established_count(0), 2);
    assert!(world.closes(0).contains(&(Some((6, 9)), true)));
}

#[test]
fn a_neighbour_that_is_no_longer_configured_is_told_so_and_its_routes_go() {
    let mut world = pair();
    world.announce(1, &["10.1.0.0/16"]);
    assert_eq!(world.routes(0).len(), 1);
    world.handle(0, Input::SetNeighbors(&BTreeMap::new()));
    assert_eq!(world.routes(0).len(), 0);
    assert!(
        world.sides[1]
            .events
            .iter()
            .any(|event| matches!(event, Event::Closed { text, .. } if text.contains("Peer De-configured")))
    );
    assert!(world.sides[0].speaker.status().is_empty());
    assert_eq!(world.sides[0].speaker.changed(10).len(), 1);
}

#[test]
fn a_shutdown_neighbour_is_idle_and_takes_no_connection() {
    let mut world = pair();
    world.configure(0, NeighborConfig { shutdown: Some("maintenance".into()), ..config(65001, 65002) });
    world.until(10_000);
    assert_eq!(world.state(0), NeighborState::Idle);
    world.configure(0, config(65001, 65002));
    world.until(50_000);
    assert!(world.both_established());
}

#[test]
fn what_does_not_touch_a_session_does_not_end_it() {
    let mut world = pair();
    let mut other = config(65001, 65002);
    other.connect_retry = Duration::from_secs(5);
    other.export.prepend = 2;
    other.import = Import::Default;
    other.hold_time = HoldTime::new(30).unwrap();
    world.configure(0, other);
    world.until(1_000);
    assert_eq!(world.established_count(0), 1);
}

#[test]
fn roles_that_do_not_fit_are_a_mismatch() {
    let role = |role, ours, theirs| NeighborConfig { role: Some(role), ..config(ours, theirs) };
    let mut world = World::new(role(Role::Customer, 1, 2), role(Role::Customer, 2, 1));
    world.until(100);
    assert!(world.closes(0).iter().chain(&world.closes(1)).any(|close| *close == (Some((2, 11)), true)));
    let mut world = World::new(role(Role::Customer, 1, 2), role(Role::Provider, 2, 1));
    world.until(100);
    assert!(world.both_established());
}

#[test]
fn too_many_prefixes_end_the_session_until_the_restart_time() {
    let limit = PrefixLimit { maximum: 2, warning_percent: 50, restart_after: Some(Duration::from_mins(1)) };
    let limited = NeighborConfig { maximum_prefixes: Some(limit), ..config(1, 2) };
    let mut world = World::new(limited, config(2, 1));
    world.until(10);
    world.announce(1, &["10.1.0.0/16"]);
    assert!(world.sides[0].events.iter().any(|event| matches!(event, Event::PrefixWarning { count: 1, .. })));
    world.announce(1, &["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]);
    assert_eq!(world.state(0), NeighborState::Idle);
    assert!(
        world.sides[1]
            .events
            .iter()
            .any(|event| matches!(event, Event::Closed { text, .. } if text.contains("Maximum Number")))
    );
    assert_eq!(world.routes(0).len(), 0);
    world.announce(1, &["10.1.0.0/16"]);
    world.until(59_000);
    assert_eq!(world.state(0), NeighborState::Idle);
    world.until(120_000);
    assert!(world.both_established());
}

#[test]
fn a_neighbour_that_tells_more_than_we_can_hold_is_left_alone_for_a_while() {
    let mut world = pair();
    world.sides[0].speaker.limit_octets(0);
    world.announce(1, &["10.1.0.0/16"]);
    assert_eq!(world.state(0), NeighborState::Idle);
    let told = |event: &Event| matches!(event, Event::Closed { text, .. } if text.contains("Out of Resources"));
    assert!(world.sides[1].events.iter().any(told));
    assert_eq!(world.routes(0).len(), 0);
    world.sides[0].speaker.limit_octets(1000);
    world.until(299_000);
    assert_eq!(world.state(0), NeighborState::Idle);
    world.until(340_000);
    assert_eq!(world.routes(0).len(), 1);
}

#[test]
fn a_killed_neighbour_is_back_as_soon_as_it_listens() {
    let mut world = pair();
    world.restart(1, NeighborConfig { shutdown: Some(String::new()), ..config(65002, 65001) }, true);
    world.sides[1].listens = false;
    world.until(3_000);
    world.sides[1].listens = true;
    world.configure(1, config(65002, 65001));
    world.until(3_300);
    assert!(world.both_established());
}

#[test]
fn a_neighbour_that_lost_the_session_silently_is_found_out_when_it_connects() {
    let mut world = pair();
    world.sides[1].events.clear();
    world.restart(1, config(65002, 65001), false);
    // Its kernel would answer our KEEPALIVE with a reset; here the hold time must do.
    world.until(30_000);
    assert!(world.both_established());
}

fn gracious(ours: u32, theirs: u32) -> NeighborConfig {
    let graceful_restart = GracefulRestart { restart_time_s: 20, restarting: true };
    NeighborConfig { graceful_restart, ..config(ours, theirs) }
}

fn forwarding(world: &mut World, side: usize) {
    let local = martlet_bgp::Local { forwarding_preserved: true, ..world::local(u8::try_from(side).unwrap() + 1) };
    world.handle(side, Input::SetLocal(&local));
}

#[test]
fn routes_of_a_neighbour_that_restarts_gracefully_stay() {
    let mut world = World::new(config(1, 2), gracious(2, 1));
    world.announce(1, &["10.1.0.0/16", "10.2.0.0/16"]);
    world.until(10);
    world.restart(1, NeighborConfig { shutdown: Some(String::new()), ..gracious(2, 1) }, true);
    assert_eq!(world.routes(0).len(), 2);
    assert!(world.sides[0].speaker.paths(&"10.1.0.0/16".parse().unwrap())[0].stale);
    forwarding(&mut world, 1);
    world.configure(1, gracious(2, 1));
    world.until(2_000);
    assert!(world.both_established());
    // Its End-of-RIB waits until it knows its own prefixes, or three seconds.
    assert_eq!(world.routes(0).len(), 2);
    world.announce(1, &["10.1.0.0/16"]);
    world.until(2_001);
    assert_eq!(world.routes(0).keys().collect::<Vec<_>>(), ["10.1.0.0/16"]);
    assert!(!world.sides[0].speaker.paths(&"10.1.0.0/16".parse().unwrap())[0].stale);
}

#[test]
fn stale_routes_go_after_the_restart_time_or_when_forwarding_was_lost() {
    let mut world = World::new(config(1, 2), gracious(2, 1));
    world.announce(1, &["10.1.0.0/16"]);
    world.until(10);
    world.restart(1, NeighborConfig { shutdown: Some(String::new()), ..gracious(2, 1) }, true);
    world.until(19_000);
    assert_eq!(world.routes(0).len(), 1);
    world.until(21_000);
    assert_eq!(world.routes(0).len(), 0);

    let mut world = World::new(config(1, 2), gracious(2, 1));
    world.announce(1, &["10.1.0.0/16"]);
    world.until(10);
    world.restart(1, gracious(2, 1), true);
    world.until(2_000);
    assert!(world.both_established());
    assert_eq!(world.routes(0).len(), 0);
}

#[test]
fn a_hard_reset_keeps_nothing() {
    let mut world = World::new(config(1, 2), gracious(2, 1));
    world.announce(1, &["10.1.0.0/16"]);
    world.until(10);
    world.handle(1, Input::Reset(&id("a"), "anew"));
    assert!(world.sides[0].events.iter().any(|event| matches!(event, Event::Lost { .. })));
}

#[test]
fn a_late_event_of_a_closed_connection_is_dropped() {
    let mut world = pair();
    world.handle(0, Input::Received(martlet_bgp::ConnectionId(999), &[0; 40]));
    world.handle(0, Input::Closed(martlet_bgp::ConnectionId(999), CloseReason::Reset));
    assert!(world.both_established());
    assert_eq!(world.now, at(10));
    assert_eq!(world.sides[0].speaker.status()[&id("b")].families, BTreeSet::from([Family::Ipv4]));
}
