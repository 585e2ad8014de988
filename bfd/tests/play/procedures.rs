//! RFC 5880 section 6.8 beyond reception: when packets leave, what they say, when silence is too long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::alone::Alone;
use crate::packet::{ADMIN_DOWN, DOWN, FINAL, INIT, POLL, UP, packet};
use crate::world::{Network, World, at, config, meta, ms};
use martlet_bfd::{
    Auth, AuthKey, AuthKind, Change, Diagnostic, Discard, Input, Meta, Output, SessionConfig, SessionId, SessionStatus,
    Sessions, State,
};

#[test]
fn a_session_that_is_not_up_sends_at_most_once_a_second_and_at_least_once_a_quarter_less() {
    let mut end = Alone::new(&config(10, 3));
    end.run(at(60_000));
    let times: Vec<_> = end.sent.iter().map(|&(at, _)| at).collect();
    assert_eq!(times[0], at(0));
    for pair in times.windows(2) {
        let gap = pair[1].since(pair[0]);
        assert!((ms(750)..=ms(1000)).contains(&gap), "{gap:?}");
    }
    assert!(end.sent.iter().all(|(_, sent)| sent.min_tx_us == 1_000_000 && sent.min_rx_us == 10_000));
}

#[test]
fn a_multiplier_of_one_takes_at_least_a_tenth_off_every_interval() {
    let mut end = Alone::new(&config(10, 1));
    end.run(at(60_000));
    for pair in end.sent.windows(2) {
        let gap = pair[1].0.since(pair[0].0);
        assert!((ms(750)..=ms(900)).contains(&gap), "{gap:?}");
    }
}

#[test]
fn silence_takes_the_session_down_after_the_detection_time_and_no_sooner() {
    // Theirs: Desired Min TX 100 ms, Detect Mult 3. Ours: Required Min RX 200 ms.
    let mut end = Alone::up(&SessionConfig { min_rx: ms(200), ..config(100, 9) });
    assert_eq!(end.status().detection_time, ms(600));
    end.run(at(1599));
    assert_eq!(end.state(), State::Up);
    end.run(at(1600));
    let status = end.status();
    assert_eq!((status.state, status.diagnostic), (State::Down, Diagnostic::DetectionTimeExpired));
    assert_eq!((status.since, status.remote_discriminator), (at(1600), 0));
    let (sent_at, sent) = end.sent.last().unwrap();
    assert_eq!((*sent_at, sent.state, sent.diagnostic, sent.yours), (at(1600), DOWN, 1, 0));
    assert_eq!(sent.min_tx_us, 1_000_000);
}

#[test]
fn silence_in_state_init_ends_it_and_in_state_down_the_other_end_is_forgotten() {
    let mut end = Alone::new(&config(100, 3));
    end.hears(at(0), &packet(DOWN, 0));
    assert_eq!(end.state(), State::Init);
    end.run(at(300));
    assert_eq!((end.state(), end.status().diagnostic), (State::Down, Diagnostic::DetectionTimeExpired));
    let told = packet(UP, end.ours());
    end.hears(at(400), &told);
    assert_ne!(end.status().remote_discriminator, 0);
    end.run(at(700));
    assert_eq!((end.state(), end.status().remote_discriminator), (State::Down, 0));
}

#[test]
fn a_passive_end_says_nothing_until_it_hears_something() {
    let mut end = Alone::new(&SessionConfig { passive: true, ..config(100, 3) });
    end.run(at(5000));
    assert_eq!(end.sent, []);
    end.hears(at(5000), &packet(DOWN, 0));
    end.run(at(5100));
    assert_eq!(end.sent.first().map(|(_, sent)| sent.state), Some(INIT));
}

#[test]
fn discriminators_are_unique_nonzero_and_differ_with_the_seed() {
    let wanted: BTreeMap<SessionId, SessionConfig> = (0..500_u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let id =
                SessionId { remote: IpAddr::from([10, 0, high, low]), interface: Some("eth0".into()), local: None };
            (id, config(100, 3))
        })
        .collect();
    let of = |seed| {
        let mut sessions = Sessions::new(seed);
        sessions.handle(at(0), Input::SetSessions(&wanted));
        let all: BTreeSet<u32> = sessions.status().values().map(|status| status.local_discriminator).collect();
        all
    };
    let (one, two) = (of(1), of(2));
    assert_eq!((one.len(), two.len()), (500, 500));
    assert!(!one.contains(&0) && one.is_disjoint(&two));
    assert_eq!(one, of(1), "the same seed is the same run");
}

#[test]
fn repeating_the_wish_does_nothing() {
    let mut end = Alone::up(&config(100, 3));
    let deadline = end.sessions.deadline();
    end.configure(at(1001), &config(100, 3));
    assert_eq!((end.sent.len(), end.changes.len(), end.sessions.deadline()), (0, 0, deadline));
}

fn sighted(times: u32) -> SessionConfig {
    SessionConfig { sightings: times, ..config(100, 3) }
}

#[test]
fn a_sighting_makes_a_session_that_is_down_ask_at_once_and_the_answer_need_not_wait_either() {
    let mut end = Alone::up(&config(100, 3));
    end.run(at(1500));
    assert_eq!(end.status().diagnostic, Diagnostic::DetectionTimeExpired);
    let before = end.status();
    end.sent.clear();
    end.configure(at(1510), &sighted(1));
    let after = end.status();
    assert_ne!(after.local_discriminator, before.local_discriminator);
    assert_eq!(SessionStatus { local_discriminator: before.local_discriminator, ..after }, before, "nothing else");
    let [(sent_at, sent)] = &end.sent[..] else { panic!("{:?}", end.sent) };
    assert_eq!((*sent_at, sent.state, sent.yours, sent.mine), (at(1510), DOWN, 0, end.ours()));
    assert!(sent.has(POLL), "who is slow too answers a poll at once");
    let mut answer = packet(INIT, end.ours());
    answer.flags = FINAL;
    end.hears(at(1511), &answer);
    assert_eq!(end.state(), State::Up);
    end.run(at(1700));
    assert!(end.sent.iter().any(|(_, sent)| sent.state == UP));
}

#[test]
fn a_session_that_was_sighted_is_slow_again_and_forgets_its_old_name() {
    let mut end = Alone::new(&config(100, 3));
    let before = end.ours();
    end.configure(at(100), &sighted(1));
    end.configure(at(200), &sighted(1));
    end.run(at(5000));
    let sent: Vec<_> = end.sent.iter().skip(1).map(|(at, _)| *at).collect();
    assert_eq!(sent[0], at(100));
    for pair in sent.windows(2) {
        assert!((ms(750)..=ms(1000)).contains(&pair[1].since(pair[0])), "{sent:?}");
    }
    end.hears(at(5000), &packet(INIT, before));
    assert_eq!((end.state(), end.discarded(Discard::UnknownDiscriminator)), (State::Down, 1));
}

#[test]
fn an_init_that_nobody_can_answer_any_more_is_taken_back_by_a_sighting_and_no_other() {
    for (sighted_at, asks) in [(at(299), false), (at(300), true)] {
        let mut end = Alone::new(&config(100, 9));
        // Told at 100 ms: not so soon after what said Down.
        end.hears(at(1), &packet(DOWN, 0));
        end.run(sighted_at);
        assert_eq!(end.sent.last().map(|(at, sent)| (*at, sent.state)), Some((at(100), INIT)));
        let before = end.ours();
        end.configure(sighted_at, &SessionConfig { sightings: 1, ..config(100, 9) });
        let told = end.sent.last().map(|(at, sent)| (*at, sent.state, sent.yours, sent.has(POLL)));
        if asks {
            assert_eq!((told, end.state()), (Some((sighted_at, DOWN, 0, true)), State::Down));
            end.hears(at(301), &packet(UP, before));
            assert_eq!((end.state(), end.discarded(Discard::UnknownDiscriminator)), (State::Down, 1));
        } else {
            assert_eq!((told.map(|told| told.1), end.state(), end.ours()), (Some(INIT), State::Init, before));
        }
    }
}

#[test]
fn who_is_made_anew_meanwhile_is_answered_at_once() {
    let mut end = Alone::new(&config(100, 9));
    end.hears(at(1), &packet(DOWN, 0));
    end.run(at(200));
    end.sent.clear();
    end.hears(at(201), &packet(DOWN, 0));
    assert_eq!(end.sent, [], "the same has been told");
    let mut other = packet(DOWN, 0);
    other.mine += 1;
    end.hears(at(202), &other);
    let [(sent_at, sent)] = &end.sent[..] else { panic!("{:?}", end.sent) };
    assert_eq!((*sent_at, sent.state, sent.yours), (at(202), INIT, other.mine));
}

#[test]
fn a_sighting_is_no_news_to_a_session_that_is_not_waiting() {
    let mut up = Alone::up(&config(100, 3));
    let mut told_down = Alone::up(&config(100, 3));
    told_down.hears(at(1000), &packet(ADMIN_DOWN, told_down.ours()));
    for (end, state) in [(&mut up, State::Up), (&mut told_down, State::Down)] {
        end.run(at(1010));
        end.sent.clear();
        let before = end.ours();
        end.configure(at(1010), &sighted(1));
        assert_eq!((end.state(), end.sent.len(), end.ours()), (state, 0, before));
    }
    let passive = SessionConfig { passive: true, ..config(100, 3) };
    let mut end = Alone::new(&passive);
    end.configure(at(10), &SessionConfig { sightings: 1, ..passive });
    end.run(at(5000));
    assert_eq!(end.sent, [], "it says nothing before it hears something");
}

#[test]
fn a_new_multiplier_is_told_with_the_next_packet_and_polled_only_in_demand_mode() {
    for flags in [0, crate::packet::DEMAND] {
        let mut end = Alone::up(&config(100, 3));
        let mut told = packet(UP, end.ours());
        (told.flags, told.multiplier) = (flags, 20);
        end.hears(at(1000), &told);
        end.sent.clear();
        end.configure(at(1000), &config(100, 7));
        end.run(at(1100));
        let first = &end.sent[0].1;
        assert_eq!((first.multiplier, first.has(POLL)), (7, flags != 0));
    }
}

#[test]
fn admin_down_is_told_at_once_and_for_as_long_as_it_lasts() {
    let mut end = Alone::up(&config(100, 3));
    let held = SessionConfig { admin_down: true, ..config(100, 3) };
    end.configure(at(1001), &held);
    let (sent_at, sent) = &end.sent[0];
    assert_eq!((*sent_at, sent.state, sent.diagnostic), (at(1001), ADMIN_DOWN, 7));
    assert_eq!(end.changes.last().map(|change| (change.from, change.to)), Some((State::Up, State::AdminDown)));
    end.run(at(5000));
    assert!(end.sent.len() > 3 && end.sent.iter().all(|(_, sent)| sent.state == ADMIN_DOWN));
    end.configure(at(5000), &config(100, 3));
    assert_eq!(end.state(), State::Down);
    assert_eq!(end.sent.last().map(|(_, sent)| sent.state), Some(DOWN));
}

#[test]
fn a_session_that_is_no_more_wanted_says_admin_down_for_a_detection_time_then_is_gone() {
    let mut end = Alone::up(&config(100, 3));
    end.handle(at(1001), Input::SetSessions(&BTreeMap::new()));
    assert_eq!(end.sent[0].1.state, ADMIN_DOWN);
    assert_eq!(end.sessions.status(), BTreeMap::new());
    end.run(at(60_000));
    let last = end.sent.last().unwrap().0;
    assert!(last > at(2001) && last <= at(4001), "{last}");
    assert_eq!((end.sessions.deadline(), end.sessions.ids().count()), (None, 0));
}

#[test]
fn a_session_that_is_wanted_again_in_time_goes_on_with_its_discriminator() {
    let mut end = Alone::up(&config(100, 3));
    let ours = end.ours();
    end.handle(at(1001), Input::SetSessions(&BTreeMap::new()));
    end.configure(at(1500), &config(100, 3));
    assert_eq!((end.ours(), end.state()), (ours, State::Down));
}

#[test]
fn one_whose_place_another_takes_says_admin_down_once_and_then_nothing_that_could_take_the_other_down() {
    for is_leaving in [false, true] {
        let mut end = Alone::up(&config(100, 3));
        let replaced_at = if is_leaving { at(2500) } else { at(1001) };
        if is_leaving {
            end.handle(at(1001), Input::SetSessions(&BTreeMap::new()));
            end.run(at(2499));
            end.sent.clear();
        }
        end.id.local = Some(meta(0).local);
        end.configure(replaced_at, &config(100, 3));
        end.run(at(9000));
        let of_the_old: Vec<_> =
            end.sent.iter().filter(|(_, sent)| sent.mine != end.ours()).map(|(at, sent)| (*at, sent.state)).collect();
        assert_eq!(of_the_old, if is_leaving { vec![] } else { vec![(replaced_at, ADMIN_DOWN)] });
        assert_eq!(end.sessions.ids().count(), 1);
    }
}

#[test]
fn what_else_is_known_of_the_path_is_told() {
    for diagnostic in [Diagnostic::ForwardingPlaneReset, Diagnostic::PathDown] {
        let mut end = Alone::up(&config(100, 3));
        let id = end.id.clone();
        end.handle(at(1001), Input::Path(&id, diagnostic));
        assert_eq!((end.state(), end.status().diagnostic), (State::Down, diagnostic));
    }
    for diagnostic in [Diagnostic::ConcatenatedPathDown, Diagnostic::ReverseConcatenatedPathDown] {
        let mut end = Alone::up(&config(100, 3));
        let id = end.id.clone();
        end.handle(at(1001), Input::Path(&id, diagnostic));
        assert_eq!((end.state(), end.status().diagnostic), (State::Up, diagnostic));
        let told = end.sent.last().map(|(at, sent)| (*at, sent.state));
        assert_eq!(told, Some((at(1001), UP)));
        end.handle(at(1002), Input::Path(&id, Diagnostic::None));
        assert_eq!(end.sent.last().map(|(_, sent)| sent.diagnostic), Some(0));
    }
}

#[test]
fn an_admin_down_that_is_no_longer_repeated_has_still_not_become_a_failure() {
    let mut end = Alone::up(&config(100, 3));
    end.hears(at(1400), &packet(ADMIN_DOWN, end.ours()));
    end.run(at(60_000));
    let status = end.status();
    assert_eq!((status.state, status.remote_state), (State::Down, State::AdminDown));
    assert_eq!(status.remote_discriminator, 0, "forgotten after a Detection Time (section 6.8.1)");
    end.hears(at(60_100), &packet(DOWN, 0));
    let status = end.status();
    assert_eq!((status.state, status.remote_state), (State::Init, State::Down));
    end.run(at(120_000));
    let status = end.status();
    assert_eq!((status.state, status.remote_state), (State::Down, State::Down), "silence is silence");
}

#[test]
fn who_slept_gives_one_interval_more_once() {
    let mut end = Alone::up(&config(100, 3));
    end.handle(at(1500), Input::Stalled(ms(400)));
    end.handle(at(1500), Input::Timeout);
    assert_eq!(end.state(), State::Up);
    end.handle(at(1600), Input::Stalled(ms(400)));
    end.handle(at(1600), Input::Timeout);
    assert_eq!(end.state(), State::Down);
}

#[test]
fn what_waited_while_we_slept_proves_nothing_of_the_time_after_it_arrived() {
    let mut end = Alone::up(&config(100, 3));
    let told = packet(UP, end.ours());
    // It arrived at 1400, the other end died then, and we slept on until 2000.
    end.handle(at(2000), Input::ReceivedLate(&meta(0), &told.octets(), ms(600)));
    end.handle(at(2000), Input::Stalled(ms(500)));
    end.handle(at(2000), Input::Timeout);
    assert_eq!(end.state(), State::Up, "one interval more");
    end.handle(at(2099), Input::Timeout);
    assert_eq!(end.state(), State::Up);
    end.handle(at(2100), Input::Timeout);
    assert_eq!(end.state(), State::Down);
}

#[test]
fn what_arrived_before_something_newer_does_not_shorten_its_time() {
    let mut end = Alone::up(&config(100, 3));
    let told = packet(UP, end.ours());
    end.hears(at(1400), &told);
    end.handle(at(1410), Input::ReceivedLate(&meta(0), &told.octets(), ms(200)));
    end.run(at(1699));
    assert_eq!(end.state(), State::Up);
    end.run(at(1700));
    assert_eq!(end.state(), State::Down);
}

#[test]
fn who_slept_and_then_hears_is_as_before() {
    let mut end = Alone::up(&config(100, 3));
    end.handle(at(1500), Input::Stalled(ms(400)));
    let told = packet(UP, end.ours());
    end.hears(at(1550), &told);
    end.run(at(1849));
    assert_eq!(end.state(), State::Up);
    end.run(at(1850));
    assert_eq!(end.state(), State::Down);
}

#[test]
fn two_ends_come_up_within_little_more_than_a_second_and_then_keep_their_pace() {
    let mut world = World::of(3, Network::default(), [&config(50, 3), &config(50, 3)]);
    world.run(at(10_000));
    assert_eq!(world.states(), [State::Up; 2]);
    assert!(world.reached(0, State::Up).unwrap() < at(1300), "{:?}", world.story);
    world.sent.clear();
    world.run(at(20_000));
    let ours: Vec<_> = world.sent.iter().filter(|(_, end, _)| *end == 0).collect();
    assert!((200..=267).contains(&ours.len()), "{} packets in 10 s", ours.len());
    assert!(ours.iter().all(|(_, _, octets)| octets[1] & POLL == 0));
}

#[test]
fn a_cut_is_noticed_by_the_end_that_hears_nothing_and_told_to_the_other() {
    let mut world = World::of(4, Network::default(), [&config(50, 3), &config(50, 3)]);
    world.run(at(10_000));
    world.network.cut[1] = true;
    world.story.clear();
    world.run(at(10_500));
    let told: Vec<_> = world.story.iter().map(|(_, end, change)| (*end, change.to, change.diagnostic)).collect();
    assert_eq!(told[0], (0, State::Down, Diagnostic::DetectionTimeExpired));
    assert_eq!(told[1], (1, State::Down, Diagnostic::NeighborSignaledDown));
    assert!(world.story[0].0.since(at(10_000)) <= ms(151));
}

#[test]
fn an_operator_s_admin_down_is_told_apart_from_a_failure() {
    let mut world = World::of(4, Network::default(), [&config(50, 3), &config(50, 3)]);
    world.run(at(10_000));
    world.story.clear();
    world.configure(1, &SessionConfig { admin_down: true, ..config(50, 3) });
    world.run(at(12_000));
    let seen: Vec<&Change> = world.story.iter().filter(|(_, end, _)| *end == 0).map(|(.., change)| change).collect();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].to, seen[0].remote_state), (State::Down, State::AdminDown));
}

#[test]
fn a_neighbour_that_restarts_is_noticed_at_once_and_comes_back() {
    let mut world = World::of(5, Network::default(), [&config(50, 3), &config(50, 3)]);
    world.run(at(10_000));
    world.story.clear();
    world.ends[1] = Sessions::new(77);
    world.configure(1, &config(50, 3));
    world.run(at(10_010));
    let (_, end, change) = &world.story[0];
    assert_eq!((*end, change.to, change.diagnostic), (0, State::Down, Diagnostic::NeighborSignaledDown));
    world.run(at(13_000));
    assert_eq!(world.states(), [State::Up; 2]);
}

#[test]
fn a_neighbour_that_restarts_may_number_its_packets_anew_after_twice_the_detection_time() {
    let keys = vec![AuthKey { id: 1, secret: b"secret".to_vec() }];
    let auth = Some(Auth { kind: AuthKind::MeticulousKeyedSha1, keys });
    let config = SessionConfig { auth, ..config(300, 5) };
    let mut world = World::of(5, Network::default(), [&config, &config]);
    world.run(at(10_000));
    world.ends[1] = Sessions::new(77);
    world.configure(1, &config);
    world.run(at(12_900));
    assert_eq!(world.status(0).state, State::Down, "its packets look like replayed ones");
    assert!(world.ends[0].discarded().contains_key(&Discard::AuthSequence));
    world.run(at(20_000));
    assert_eq!(world.states(), [State::Up; 2]);
}

fn echoing() -> SessionConfig {
    SessionConfig { echo: Some(ms(50)), ..config(100, 3) }
}

/// A session that is Up with a neighbour that lets us echo every 20 ms.
fn with_echo() -> Alone {
    let mut end = Alone::up(&echoing());
    let mut told = packet(UP, end.ours());
    told.min_echo_rx_us = 20_000;
    (told.min_tx_us, told.multiplier) = (1_000_000, 10);
    end.hears(at(1000), &told);
    end
}

#[test]
fn echo_packets_go_out_while_the_other_end_allows_it_and_control_packets_become_rare() {
    let mut end = with_echo();
    assert_eq!(end.echoes.len(), 1);
    end.run(at(1050));
    assert_eq!(end.echoes.len(), 2);
    let told = end.sent.last().unwrap().1.min_rx_us;
    assert_eq!(told, 1_000_000, "section 6.8.3: control packets need not be fast now");
    let mut refused = packet(UP, end.ours());
    refused.min_echo_rx_us = 0;
    end.hears(at(1060), &refused);
    end.echoes.clear();
    end.run(at(1140));
    assert_eq!(end.echoes, []);
}

#[test]
fn echoes_that_do_not_come_back_take_the_session_down() {
    let mut end = with_echo();
    let returned = end.echoes[0].1.clone();
    end.handle(at(1020), Input::EchoReceived(&Meta { ttl: 254, ..meta(0) }, &returned));
    end.run(at(1169));
    assert_eq!(end.state(), State::Up);
    end.run(at(1170));
    assert_eq!((end.state(), end.status().diagnostic), (State::Down, Diagnostic::EchoFailed));
}

#[test]
fn an_echo_that_came_from_too_far_or_from_nobody_is_discarded() {
    let mut end = with_echo();
    let mut returned = end.echoes[0].1.clone();
    end.handle(at(1020), Input::EchoReceived(&Meta { ttl: 253, ..meta(0) }, &returned));
    assert_eq!(end.discarded(Discard::Ttl), 1);
    returned[0] ^= 1;
    end.handle(at(1020), Input::EchoReceived(&Meta { ttl: 254, ..meta(0) }, &returned));
    assert_eq!(end.discarded(Discard::Echo), 1);
}

/// A neighbour that only forwards (RFC 9747): what we send comes back a millisecond later, with one hop less.
fn loop_back(sessions: &mut Sessions, from_ms: u64, to_ms: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut flying: Vec<(u64, Vec<u8>)> = Vec::new();
    for now in from_ms..to_ms {
        sessions.handle(at(now), Input::Timeout);
        let back: Vec<_> = flying.extract_if(.., |(due, _)| *due <= now).collect();
        for (_, octets) in back {
            sessions.handle(at(now), Input::EchoReceived(&Meta { ttl: 254, ..meta(0) }, &octets));
        }
        while let Some(output) = sessions.poll() {
            match output {
                Output::Echo(_, octets) => flying.push((now + 1, octets)),
                Output::Changed(change) => changes.push(change),
                Output::Transmit(..) => panic!("nobody there understands control packets"),
            }
        }
    }
    changes
}

#[test]
fn a_neighbour_without_bfd_is_supervised_by_our_own_packets() {
    let config = SessionConfig { echo: Some(ms(50)), unaffiliated: true, ..config(100, 3) };
    let mut sessions = Sessions::new(9);
    sessions.handle(at(0), Input::SetSessions(&BTreeMap::from([(crate::world::session(0), config)])));
    let up: Vec<State> = loop_back(&mut sessions, 0, 5000).iter().map(|change| change.to).collect();
    assert_eq!(up, [State::Init, State::Up]);
    let status = sessions.status()[&crate::world::session(0)].clone();
    assert_eq!((status.transmit_interval, status.detection_time), (ms(50), ms(150)));
    sessions.handle(at(5200), Input::Timeout);
    let status = sessions.status()[&crate::world::session(0)].clone();
    assert_eq!((status.state, status.diagnostic), (State::Down, Diagnostic::EchoFailed));
    assert_eq!(status.transmit_interval, Duration::from_secs(1));
}
