//! A neighbour, or anyone else, that sends anything to the BFD ports, with and without authentication.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use martlet_bfd::{Auth, AuthKey, AuthKind, Input, Meta, Output, SessionConfig, SessionId, Sessions};
use martlet_clock::Instant;

fuzz_target!(|data: &[u8]| {
    let [choice, rest @ ..] = data else { return };
    let id = SessionId { remote: "10.0.0.2".parse().expect("an address"), interface: Some("v".into()), local: None };
    let kinds = [
        AuthKind::SimplePassword,
        AuthKind::KeyedMd5,
        AuthKind::MeticulousKeyedMd5,
        AuthKind::KeyedSha1,
        AuthKind::MeticulousKeyedSha1,
    ];
    let auth = kinds
        .get(usize::from(choice & 7))
        .map(|kind| Auth { kind: *kind, keys: vec![AuthKey { id: 1, secret: b"secret".to_vec() }] });
    let config = SessionConfig { auth, passive: choice & 8 == 8, ..SessionConfig::default() };
    let mut sessions = Sessions::new(7);
    let mut now = Instant::from_millis(1_000);
    sessions.handle(now, Input::SetSessions(&BTreeMap::from([(id, config)])));
    let meta = Meta {
        remote: "10.0.0.2".parse().expect("an address"),
        local: "10.0.0.1".parse().expect("an address"),
        interface: Some("v".into()),
        ttl: 255,
        multihop: false,
    };
    let mut sent: Vec<u8> = Vec::new();
    for datagram in rest.chunks(24) {
        // With this bit a datagram answers ours: the fuzzer need not guess the discriminator.
        let mut octets = datagram.to_vec();
        if choice & 16 == 16
            && let (Some(place), Some(ours)) = (octets.get_mut(8..12), sent.get(4..8))
        {
            place.copy_from_slice(ours);
        }
        sessions.handle(now, Input::Received(&meta, &octets));
        for round in 0.. {
            assert!(round < 100, "outputs without end");
            match sessions.poll() {
                Some(Output::Transmit(_, octets)) => sent = octets,
                Some(_) => (),
                None => break,
            }
        }
        now += Duration::from_millis(u64::from(*choice));
        for round in 0.. {
            assert!(round < 100, "a deadline that stays in the past");
            if sessions.deadline().is_none_or(|deadline| deadline > now) {
                break;
            }
            sessions.handle(now, Input::Timeout);
            while let Some(output) = sessions.poll() {
                if let Output::Transmit(_, octets) = output {
                    sent = octets;
                }
            }
        }
    }
    let _ = sessions.status();
});
