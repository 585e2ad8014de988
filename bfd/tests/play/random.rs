//! Whatever comes, whenever: no panic, no deadline in the past, no flood, no packet that breaks the RFC's own rules.

use crate::alone::Alone;
use crate::packet::{FINAL, POLL, Packet, THEIRS, UP};
use crate::world::{Network, World, at, config, meta, ms};
use martlet_bfd::{Auth, AuthKey, AuthKind, SessionConfig, State};
use proptest::prelude::*;

prop_compose! {
    fn configs()(
        (min_tx, min_rx) in (1u64..2000, 1u64..2000),
        multiplier in 1u8..,
        (passive, admin_down) in (any::<bool>(), prop::bool::weighted(0.1)),
    ) -> SessionConfig {
        SessionConfig { min_tx: ms(min_tx), min_rx: ms(min_rx), multiplier, passive, admin_down, ..SessionConfig::default() }
    }
}

prop_compose! {
    /// Nearly well formed packets: each field is right or is not.
    fn packets()(
        version in prop_oneof![9 => Just(1u8), 1 => 0u8..8],
        (diagnostic, state, flags) in (0u8..32, 0u8..4, prop_oneof![5 => Just(0u8), 3 => Just(POLL), 2 => Just(FINAL), 2 => 0u8..64]),
        multiplier in prop_oneof![9 => 1u8..10, 1 => any::<u8>()],
        length in prop_oneof![9 => Just(24u8), 1 => any::<u8>()],
        mine in prop_oneof![9 => Just(THEIRS), 1 => any::<u32>()],
        yours in prop_oneof![3 => Just(0u32), 6 => Just(1u32), 1 => any::<u32>()],
        intervals in prop::array::uniform3(prop_oneof![6 => 1000u32..2_000_000, 1 => Just(0u32), 1 => any::<u32>()]),
        auth in prop::collection::vec(any::<u8>(), 0..30),
    ) -> Packet {
        let [min_tx_us, min_rx_us, min_echo_rx_us] = intervals;
        Packet { version, diagnostic, state, flags, multiplier, length, mine, yours, min_tx_us, min_rx_us, min_echo_rx_us, auth }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Hear(Packet),
    HearOctets(Vec<u8>),
    Wait(u64),
    Configure(SessionConfig),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => packets().prop_map(Step::Hear),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Step::HearOctets),
        4 => (0u64..3000).prop_map(Step::Wait),
        1 => configs().prop_map(Step::Configure),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_comes_the_rules_hold(seed: u64, first in configs(), steps in steps()) {
        let mut end = Alone::with_seed(seed, &first);
        let (mut now, mut polls, mut sets) = (0, 0, 1);
        for step in steps {
            match step {
                Step::Hear(mut packet) => {
                    // 1 stands for our discriminator: random ones hardly ever meet it.
                    if packet.yours == 1 {
                        packet.yours = end.ours();
                    }
                    polls += usize::from(packet.has(POLL));
                    end.hears(at(now), &packet);
                }
                Step::HearOctets(octets) => end.hears_octets(at(now), &meta(0), &octets),
                Step::Wait(millis) => {
                    now += millis;
                    end.run(at(now));
                }
                Step::Configure(config) => {
                    sets += 1;
                    end.configure(at(now), &config);
                }
            }
        }
        for (_, sent) in &end.sent {
            prop_assert!(!(sent.has(POLL) && sent.has(FINAL)), "section 6.5");
            prop_assert!(sent.state == UP || sent.min_tx_us >= 1_000_000, "section 6.8.3: slow while not Up");
            prop_assert!(sent.mine == end.ours() && sent.multiplier > 0 && sent.version == 1);
        }
        // Between two packets at least 75 % of a millisecond, but for those that answer, tell or follow a change.
        let bound = now * 4 / 3 + 2;
        let extra = polls + sets + 2 * end.changes.len();
        prop_assert!(end.sent.len() <= usize::try_from(bound).unwrap() + extra, "{} packets in {now} ms", end.sent.len());
    }

    #[test]
    fn after_the_last_fault_both_ends_come_up_and_stay_up(
        seed: u64,
        (one, two) in (configs(), configs()),
        lost in 0u64..60,
        doubled in 0u64..50,
        kind in prop::option::of(0usize..5),
    ) {
        let kinds = [
            AuthKind::SimplePassword,
            AuthKind::KeyedMd5,
            AuthKind::MeticulousKeyedMd5,
            AuthKind::KeyedSha1,
            AuthKind::MeticulousKeyedSha1,
        ];
        let auth = kind.map(|kind| Auth { kind: kinds[kind], keys: vec![AuthKey { id: 7, secret: b"s3cret".to_vec() }] });
        let fair = |config: &SessionConfig, passive: bool| {
            // A Detection Time below the delay of the network fails by itself.
            let (min_tx, min_rx) = (config.min_tx.max(ms(100)), config.min_rx.max(ms(100)));
            let multiplier = config.multiplier.clamp(3, 10);
            SessionConfig { admin_down: false, passive, auth: auth.clone(), min_tx, min_rx, multiplier, ..config.clone() }
        };
        let (one, two) = (fair(&one, false), fair(&two, two.passive));
        let faulty = Network { delay_us: 100..30_000, doubled_percent: doubled, lost_percent: lost, ..Network::default() };
        let mut world = World::of(seed, faulty, [&one, &two]);
        world.run(at(60_000));
        world.network = Network::default();
        world.run(at(120_000));
        prop_assert_eq!(world.states(), [State::Up; 2]);
        world.story.clear();
        world.run(at(180_000));
        prop_assert_eq!(world.story.len(), 0, "{:?}", world.story);
    }

    #[test]
    fn the_same_seed_is_the_same_run(seed: u64, lost in 0u64..30) {
        let run = || {
            let faulty = Network { delay_us: 100..30_000, doubled_percent: 10, lost_percent: lost, ..Network::default() };
            let mut world = World::of(seed, faulty, [&config(50, 3), &config(100, 3)]);
            world.run(at(5_000));
            (world.story, world.sent)
        };
        prop_assert_eq!(run(), run());
    }
}
