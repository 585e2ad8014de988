//! RFC 5880 section 6.8.6, rule by rule, in its order and by its words; then RFC 5881 section 5 and RFC 5883 section 4.

use std::net::IpAddr;

use crate::alone::Alone;
use crate::packet::{
    ADMIN_DOWN, AUTHENTICATED, DEMAND, DOWN, FINAL, INIT, MULTIPOINT, POLL, Packet, THEIRS, UP, packet,
};
use crate::world::{at, config, meta, ms};
use martlet_bfd::{Auth, AuthKey, AuthKind, Diagnostic, Discard, Input, SessionConfig, State};

/// A session at 100 ms x 3 that is Up hears one packet that breaks one rule: it is discarded for that rule, and is not
/// "received" as far as the Detection Time is concerned.
fn discards(spoil: impl FnOnce(&mut Packet), rule: Discard) {
    let mut end = Alone::up(&config(100, 3));
    let before = end.status();
    let mut spoiled = packet(UP, end.ours());
    spoil(&mut spoiled);
    end.hears(at(1200), &spoiled);
    assert_eq!(end.discarded(rule), 1, "{:?}", end.sessions.discarded());
    assert_eq!(end.status(), before);
    end.run(at(1300));
    assert_eq!(end.state(), State::Down, "the Detection Time counts from the last packet that was accepted");
}

#[test]
fn if_the_version_number_is_not_correct() {
    discards(|packet| packet.version = 0, Discard::Version);
    discards(|packet| packet.version = 2, Discard::Version);
    discards(|packet| packet.version = 7, Discard::Version);
}

#[test]
fn if_the_length_is_less_than_24_or_26_with_authentication() {
    discards(|packet| packet.length = 23, Discard::LengthTooSmall);
    discards(|packet| packet.length = 0, Discard::LengthTooSmall);
    let authenticated = |packet: &mut Packet| (packet.flags, packet.length) = (AUTHENTICATED, 25);
    discards(authenticated, Discard::LengthTooSmall);
}

#[test]
fn if_the_length_is_greater_than_the_payload() {
    discards(|packet| packet.length = 25, Discard::LengthTooLarge);
}

#[test]
fn if_the_payload_is_greater_than_the_length_the_rest_is_ignored() {
    let mut end = Alone::up(&config(100, 3));
    let mut octets = packet(UP, end.ours()).octets();
    octets.extend([0xff; 8]);
    end.hears_octets(at(1200), &meta(0), &octets);
    assert_eq!(end.discarded_in_all(), 0);
    end.run(at(1499));
    assert_eq!(end.state(), State::Up);
}

#[test]
fn if_detect_mult_is_zero() {
    discards(|packet| packet.multiplier = 0, Discard::MultiplierZero);
}

#[test]
fn if_the_multipoint_bit_is_nonzero() {
    discards(|packet| packet.flags = MULTIPOINT, Discard::Multipoint);
}

#[test]
fn if_my_discriminator_is_zero() {
    discards(|packet| packet.mine = 0, Discard::MyDiscriminatorZero);
}

#[test]
fn if_your_discriminator_is_nonzero_it_selects_the_session() {
    discards(|packet| packet.yours ^= 1, Discard::UnknownDiscriminator);
    let mut end = Alone::up(&config(100, 3));
    let elsewhere = martlet_bfd::Meta { remote: IpAddr::from([198, 51, 100, 9]), ..meta(0) };
    let octets = packet(UP, end.ours()).octets();
    end.hears_octets(at(1200), &elsewhere, &octets);
    assert_eq!(end.discarded_in_all(), 0, "the address does not matter any more (section 6.3)");
}

#[test]
fn if_your_discriminator_is_zero_and_the_state_is_not_down_or_admin_down() {
    discards(|packet| packet.yours = 0, Discard::YourDiscriminatorZero);
    discards(|packet| (packet.yours, packet.state) = (0, INIT), Discard::YourDiscriminatorZero);
}

#[test]
fn if_your_discriminator_is_zero_the_sender_selects_the_session() {
    let mut end = Alone::new(&config(100, 3));
    for stranger in [
        martlet_bfd::Meta { remote: IpAddr::from([192, 0, 2, 3]), ..meta(0) },
        martlet_bfd::Meta { interface: Some("eth1".into()), ..meta(0) },
    ] {
        end.hears_octets(at(0), &stranger, &packet(DOWN, 0).octets());
    }
    assert_eq!((end.discarded(Discard::NoSession), end.state()), (2, State::Down));
    end.hears(at(0), &packet(DOWN, 0));
    assert_eq!(end.state(), State::Init);
}

#[test]
fn if_the_a_bit_is_set_and_no_authentication_is_in_use() {
    let authenticated = |packet: &mut Packet| {
        (packet.flags, packet.length) = (AUTHENTICATED, 30);
        packet.auth = vec![1, 6, 1, b'k', b'e', b'y'];
    };
    discards(authenticated, Discard::AuthUnexpected);
}

fn password(secret: &str) -> SessionConfig {
    let keys = vec![AuthKey { id: 1, secret: secret.into() }];
    SessionConfig { auth: Some(Auth { kind: AuthKind::SimplePassword, keys }), ..config(100, 3) }
}

#[test]
fn if_the_a_bit_is_clear_and_authentication_is_in_use() {
    let mut end = Alone::new(&password("key"));
    end.hears(at(0), &packet(DOWN, 0));
    assert_eq!((end.discarded(Discard::AuthMissing), end.state()), (1, State::Down));
}

#[test]
fn if_the_a_bit_is_set_the_packet_must_be_authenticated() {
    for (secret, state) in [("key", State::Init), ("yek", State::Down)] {
        let mut end = Alone::new(&password(secret));
        let mut authenticated = packet(DOWN, 0);
        (authenticated.flags, authenticated.length) = (AUTHENTICATED, 30);
        authenticated.auth = vec![1, 6, 1, b'k', b'e', b'y'];
        end.hears(at(0), &authenticated);
        assert_eq!(end.state(), state);
    }
}

#[test]
fn what_the_packet_tells_is_kept() {
    let mut end = Alone::up(&config(100, 3));
    let mut told = packet(UP, end.ours());
    (told.mine, told.diagnostic, told.multiplier, told.min_tx_us) = (77, 5, 4, 250_000);
    end.hears(at(1100), &told);
    let status = end.status();
    assert_eq!((status.remote_discriminator, status.remote_diagnostic), (77, Diagnostic::PathDown));
    assert_eq!(status.remote_state, State::Up);
    assert_eq!(status.detection_time, ms(1000));
    end.run(at(1200));
    assert_eq!(end.sent.last().unwrap().1.yours, 77);
}

#[test]
fn remote_min_rx_interval_changes_the_pace_at_once() {
    let mut end = Alone::up(&config(100, 3));
    let mut told = packet(UP, end.ours());
    told.min_rx_us = 400_000;
    told.min_tx_us = 2_000_000;
    end.hears(at(1100), &told);
    assert_eq!(end.status().transmit_interval, ms(400));
    told.min_rx_us = 0;
    end.hears(at(1200), &told);
    end.sent.clear();
    end.run(at(2500));
    assert_eq!(end.sent, [], "zero: no periodic packets");
    told.min_rx_us = 50_000;
    end.hears(at(2600), &told);
    assert_eq!(end.sent.len(), 1, "the last packet is longer ago than the new interval");
}

#[test]
fn a_final_ends_the_poll_sequence() {
    let mut end = Alone::up(&config(100, 3));
    end.configure(at(1000), &config(200, 3));
    end.run(at(1300));
    assert!(!end.sent.is_empty() && end.sent.iter().all(|(_, sent)| sent.has(POLL)));
    let mut answer = packet(UP, end.ours());
    answer.flags = FINAL;
    end.hears(at(1300), &answer);
    end.sent.clear();
    end.run(at(1500));
    assert!(!end.sent.is_empty() && !end.sent.iter().any(|(_, sent)| sent.has(POLL)));
}

#[test]
fn the_poll_bit_rides_on_periodic_packets_and_makes_none() {
    let mut end = Alone::up(&config(100, 3));
    end.run(at(1010));
    let before = end.sessions.deadline();
    end.sent.clear();
    end.configure(at(1011), &config(50, 3));
    assert_eq!(end.sent, [], "section 6.5: additional packets must not be sent");
    assert!(end.sessions.deadline() <= before);
}

#[test]
fn if_our_state_is_admin_down_the_packet_is_discarded() {
    let held = SessionConfig { admin_down: true, ..config(100, 3) };
    let mut end = Alone::new(&held);
    let mut poll = packet(UP, end.ours());
    poll.flags = POLL;
    end.sent.clear();
    end.hears(at(10), &poll);
    assert_eq!((end.discarded(Discard::AdminDown), end.state()), (1, State::AdminDown));
    assert_eq!(end.status().remote_discriminator, THEIRS, "what stands before that rule was done");
    assert_eq!(end.sent, []);
}

#[test]
fn if_the_received_state_is_admin_down_the_session_goes_down() {
    let mut end = Alone::up(&config(100, 3));
    let told = packet(ADMIN_DOWN, end.ours());
    end.hears(at(1100), &told);
    let status = end.status();
    assert_eq!((status.state, status.diagnostic), (State::Down, Diagnostic::NeighborSignaledDown));
    assert_eq!(end.changes.last().unwrap().remote_state, State::AdminDown, "BGP can tell this from a failure");
    let (sent_at, sent) = end.sent.last().unwrap();
    assert_eq!((*sent_at, sent.state, sent.diagnostic), (at(1100), DOWN, 3), "told at once");
}

#[test]
fn the_state_follows_the_table() {
    use State::{AdminDown, Down, Init, Up};
    let table = [
        (Down, [Down, Init, Up, Down]),
        (Init, [Down, Init, Up, Up]),
        (Up, [Down, Down, Up, Up]),
        (AdminDown, [AdminDown; 4]),
    ];
    for (state, after) in table {
        for (remote, expected) in [AdminDown, Down, Init, Up].into_iter().zip(after) {
            assert_eq!(state.after(remote), expected, "{state:?} hears {remote:?}");
        }
    }
}

#[test]
fn down_and_up_stays_down() {
    let mut end = Alone::new(&config(100, 3));
    let told = packet(UP, end.ours());
    end.hears(at(10), &told);
    assert_eq!(end.state(), State::Down);
}

#[test]
fn remote_demand_mode_stops_periodic_packets_while_both_are_up_and_silence_is_still_noticed() {
    let mut end = Alone::up(&config(100, 3));
    let mut demand = packet(UP, end.ours());
    demand.flags = DEMAND;
    end.hears(at(1050), &demand);
    end.sent.clear();
    end.run(at(1349));
    assert_eq!(end.sent, []);
    end.run(at(1350));
    assert_eq!(end.state(), State::Down);
    assert_eq!(end.sent.first().map(|(_, sent)| (sent.state, sent.diagnostic)), Some((DOWN, 1)));
}

#[test]
fn in_demand_mode_a_change_of_ours_is_polled_and_their_polls_are_answered() {
    let mut end = Alone::up(&config(100, 3));
    let mut demand = packet(UP, end.ours());
    demand.flags = DEMAND;
    (demand.min_tx_us, demand.multiplier) = (1_000_000, 10);
    end.hears(at(1050), &demand);
    end.sent.clear();
    end.configure(at(2000), &config(200, 3));
    end.run(at(2500));
    assert!(end.sent.len() >= 2 && end.sent.iter().all(|(_, sent)| sent.has(POLL)));
    demand.flags = DEMAND | FINAL;
    end.hears(at(2500), &demand);
    end.sent.clear();
    end.run(at(4000));
    assert_eq!(end.sent, []);
    demand.flags = DEMAND | POLL;
    end.hears(at(4000), &demand);
    assert_eq!(end.sent.len(), 1);
    assert!(end.sent[0].1.has(FINAL));
    demand.flags = 0;
    end.hears(at(4100), &demand);
    end.run(at(4300));
    assert!(end.sent.len() > 1, "the D bit is gone: periodic packets are back");
}

#[test]
fn a_poll_is_answered_at_once_with_a_final_and_without_a_poll() {
    let mut end = Alone::up(&config(100, 3));
    end.configure(at(1001), &config(300, 3));
    end.run(at(1010));
    end.sent.clear();
    let mut poll = packet(UP, end.ours());
    poll.flags = POLL;
    end.hears(at(1011), &poll);
    let (sent_at, sent) = &end.sent[0];
    assert_eq!(*sent_at, at(1011));
    assert!(sent.has(FINAL) && !sent.has(POLL));
    assert_eq!(sent.min_tx_us, 300_000, "section 6.8.3: new values may be carried in it");
}

#[test]
fn a_poll_is_answered_in_state_down_too() {
    let mut end = Alone::new(&config(100, 3));
    end.sent.clear();
    let mut poll = packet(UP, end.ours());
    poll.flags = POLL;
    end.hears(at(10), &poll);
    assert!(end.sent.len() == 1 && end.sent[0].1.has(FINAL) && end.sent[0].1.state == DOWN);
}

#[test]
fn a_packet_with_poll_and_final_is_taken_for_both() {
    let mut end = Alone::up(&config(100, 3));
    let mut both = packet(UP, end.ours());
    both.flags = POLL | FINAL;
    end.sent.clear();
    end.hears(at(1010), &both);
    assert!(end.sent[0].1.has(FINAL) && !end.sent[0].1.has(POLL));
    assert_eq!(end.discarded_in_all(), 0);
}

#[test]
fn extreme_intervals_are_borne() {
    for extreme in [0, 1, u32::MAX] {
        let mut end = Alone::up(&config(100, 3));
        let mut told = packet(UP, end.ours());
        (told.min_tx_us, told.multiplier) = (extreme, 255);
        end.hears(at(1010), &told);
        let micros = u64::from(extreme.max(100_000)) * 255;
        assert_eq!(end.status().detection_time, std::time::Duration::from_micros(micros));
        told.min_rx_us = extreme;
        end.hears(at(1020), &told);
        end.run(at(1100));
        assert_eq!(end.state(), State::Up);
    }
}

#[test]
fn if_the_ttl_is_not_255_on_a_single_hop() {
    let mut end = Alone::new(&config(100, 3));
    end.hears_octets(at(0), &martlet_bfd::Meta { ttl: 254, ..meta(0) }, &packet(DOWN, 0).octets());
    assert_eq!((end.discarded(Discard::Ttl), end.state()), (1, State::Down));
}

#[test]
fn a_single_hop_session_does_not_listen_on_the_multihop_port() {
    let mut end = Alone::new(&config(100, 3));
    let octets = packet(UP, end.ours()).octets();
    end.hears_octets(at(0), &martlet_bfd::Meta { multihop: true, interface: None, ..meta(0) }, &octets);
    assert_eq!(end.discarded(Discard::WrongPort), 1);
}

#[test]
fn a_multihop_session_is_selected_by_both_addresses_and_accepts_a_lower_ttl() {
    let mut sessions = martlet_bfd::Sessions::new(1);
    let id = |last| martlet_bfd::SessionId {
        remote: IpAddr::from([203, 0, 113, 1]),
        interface: None,
        local: Some(IpAddr::from([192, 0, 2, last])),
    };
    let config = SessionConfig { min_ttl: 250, ..config(100, 3) };
    let wanted = [(id(1), config.clone()), (id(2), config)].into_iter().collect();
    sessions.handle(at(0), Input::SetSessions(&wanted));
    let meta = martlet_bfd::Meta {
        remote: IpAddr::from([203, 0, 113, 1]),
        local: IpAddr::from([192, 0, 2, 2]),
        interface: None,
        ttl: 250,
        multihop: true,
    };
    sessions.handle(at(0), Input::Received(&meta, &packet(DOWN, 0).octets()));
    let states: Vec<State> = sessions.status().values().map(|status| status.state).collect();
    assert_eq!(states, [State::Down, State::Init]);
    sessions.handle(at(0), Input::Received(&martlet_bfd::Meta { ttl: 249, ..meta }, &packet(DOWN, 0).octets()));
    assert_eq!(sessions.discarded().get(&Discard::Ttl), Some(&1));
}
