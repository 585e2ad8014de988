//! A network that reorders and doubles packets takes no session down: not at the start, not while parameters change.

use crate::world::{Network, World, at, config};
use martlet_bfd::State;
use proptest::prelude::*;

/// Reorders within 90 ms and doubles every third packet: the worst that `schedule` promises to bear.
fn shuffling() -> Network {
    Network { delay_us: 100..90_000, doubled_percent: 33, ..Network::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_session_comes_up_without_a_flap_whatever_the_order_of_its_first_packets(seed: u64, offset in 0u64..1000) {
        let mut world = World::new(seed, shuffling());
        world.configure(0, &config(300, 5));
        world.run(at(offset));
        world.configure(1, &config(300, 5));
        world.run(at(10_000));
        prop_assert_eq!(world.states(), [State::Up; 2]);
        prop_assert_eq!(world.flaps(), 0, "{:?}", world.story);
    }

    #[test]
    fn sightings_while_it_comes_up_make_no_flap_either(
        seed: u64,
        sightings in prop::collection::vec((0usize..2, 0u64..700), 1..6),
    ) {
        let mut configs = [config(300, 5), config(300, 5)];
        let mut world = World::of(seed, shuffling(), [&configs[0], &configs[1]]);
        for (end, pause) in sightings {
            world.run(world.now + crate::world::ms(pause));
            configs[end].sightings += 1;
            world.configure(end, &configs[end]);
        }
        world.run(world.now + crate::world::ms(10_000));
        prop_assert_eq!(world.states(), [State::Up; 2]);
        prop_assert_eq!(world.flaps(), 0, "{:?}", world.story);
    }

    #[test]
    fn one_passive_end_changes_nothing_about_that(seed: u64) {
        let mut passive = config(300, 5);
        passive.passive = true;
        let mut world = World::of(seed, shuffling(), [&config(300, 5), &passive]);
        world.run(at(10_000));
        prop_assert_eq!(world.states(), [State::Up; 2]);
        prop_assert_eq!(world.flaps(), 0, "{:?}", world.story);
    }

    #[test]
    fn parameters_change_in_flight_without_a_flap(
        seed: u64,
        changes in prop::collection::vec((0usize..2, 100u64..2000, 100u64..2000, 0u64..1500), 1..6),
    ) {
        let mut world = World::of(seed, shuffling(), [&config(300, 5), &config(300, 5)]);
        world.run(at(8_000));
        for (end, min_tx, min_rx, pause) in changes {
            let mut changed = config(min_tx, 5);
            changed.min_rx = crate::world::ms(min_rx);
            world.configure(end, &changed);
            world.run(world.now + crate::world::ms(pause));
        }
        world.run(world.now + crate::world::ms(60_000));
        prop_assert_eq!(world.states(), [State::Up; 2]);
        prop_assert_eq!(world.flaps(), 0, "{:?}", world.story);
    }
}
