//! The smoke of interoperability: every peer, both families, and both sides opening at once. Needs root, the peers' packages and the
//! product (`MARTLET_BIN`, else `target/lab/martlet`). `martlet-lab interop` plays the whole matrix.

use martlet_lab::interop::{Feature, Variant, collide, play_all};
use martlet_lab::peer::Make;
use martlet_lab::preflight;

#[test]
fn every_peer_exchanges_routes_of_both_families_and_is_told_why_we_end() {
    preflight::check().unwrap();
    preflight::peers().unwrap();
    let variants: Vec<Variant> = [false, true]
        .into_iter()
        .flat_map(|ipv6| {
            Make::ALL.map(|make| Variant { make, ipv6, internal: false, md5: false, wide: ipv6, old: false })
        })
        .collect();
    let outcomes = play_all(&variants, &Feature::SMOKE, 5).unwrap();
    let failures: Vec<_> =
        outcomes.iter().flat_map(|one| one.failures().map(|(feature, why)| (one.variant, feature, why))).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(outcomes.len(), variants.len());
}

#[test]
fn both_sides_open_at_once_and_one_session_stays() {
    preflight::check().unwrap();
    preflight::peers().unwrap();
    std::thread::scope(|scope| {
        let plays = [Make::Frr, Make::Bird].map(|make| scope.spawn(move || collide(make, 10).unwrap()));
        for play in plays {
            let found = play.join().unwrap();
            println!("{found:?}");
            assert!(found.faults.is_empty(), "{:#?}", found.faults);
            assert_eq!(found.twice, 0, "the first session did not stay");
            assert!(found.simultaneous > 0, "no round had both connections up: nothing was tested");
        }
    });
}
