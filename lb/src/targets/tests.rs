//! Services that come, go and grow; endpoints in all their states.

use martlet_api::view::{ObjectName, Route};
use proptest::prelude::*;

use super::*;

fn link(index: u32, name: &str, addresses: &[&str]) -> Link {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Link { index, name: name.into(), up: true, carrier: true, mtu: 1500, addresses }
}

fn endpoint(ipv4: Option<&str>, ipv6: Option<&str>) -> Endpoint {
    let (ipv4, ipv6) = (ipv4.map(|address| address.parse().unwrap()), ipv6.map(|address| address.parse().unwrap()));
    Endpoint { name: "pod".into(), ipv4, ipv6, ready: true, serving: true, terminating: false }
}

fn service(max_endpoints: u32, endpoints: &[(u32, Endpoint)]) -> Service {
    Service { endpoints: endpoints.iter().cloned().collect(), max_endpoints }
}

fn view(services: &[(&str, Service)]) -> View {
    let route = Route {
        destinations: ["20.0.0.1/32".parse().unwrap()].into(),
        protocols: [martlet_api::view::TransportProtocol::Tcp].into(),
        backend: "a".into(),
        ..Route::default()
    };
    View {
        gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
        exists: true,
        routers: BTreeMap::new(),
        routes: [("route".into(), route)].into(),
        services: services.iter().map(|(name, service)| ((*name).into(), service.clone())).collect(),
        vips: ["20.0.0.1/32".parse().unwrap()].into(),
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    }
}

fn by_index(links: &[Link]) -> BTreeMap<u32, Link> {
    links.iter().map(|link| (link.index, link.clone())).collect()
}

fn look(view: &View, links: &[Link], settings: &Settings) -> Targets {
    targets(view, &by_index(links), &mut Marks::default(), settings, &Tables::default())
}

#[test]
fn with_one_service_the_mark_is_5000_and_the_identifier() {
    let view = view(&[("a", service(100, &[(7, endpoint(Some("10.0.0.7"), Some("fd00::7")))]))]);
    let made = look(&view, &[link(3, "int", &["10.0.0.1/24", "fd00::1/64"])], &Settings::default());
    let hop = |address: &str| Hop { mark: 5007, address: address.parse().unwrap(), interface: 3, onlink: false };
    assert_eq!(made.hops, [hop("10.0.0.7"), hop("fd00::7")].into());
    assert_eq!((made.end_of_marks, made.complaints), (5100, BTreeSet::new()));
    let backend = &made.tables.services()[0];
    assert!(Arc::ptr_eq(&backend.ipv4, &backend.ipv6), "the same endpoints in both families: one table");
}

#[test]
fn an_endpoint_serves_the_families_that_it_has() {
    let endpoints = [(1, endpoint(Some("10.0.0.1"), None)), (2, endpoint(None, Some("fd00::2")))];
    let made = look(
        &view(&[("a", service(10, &endpoints))]),
        &[link(1, "i", &["10.0.0.9/24", "fd00::9/64"])],
        &Settings::default(),
    );
    let backend = &made.tables.services()[0];
    assert_eq!(backend.ipv4.identifiers(), &[1].into());
    assert_eq!(backend.ipv6.identifiers(), &[2].into());
}

#[test]
fn only_a_ready_endpoint_gets_flows_and_a_serving_one_keeps_its_way() {
    let state = |ready, serving| Endpoint { ready, serving, terminating: !ready, ..endpoint(Some("10.0.0.1"), None) };
    for (ready, serving, members, hops) in [(true, true, 1, 1), (false, true, 0, 1), (false, false, 0, 0)] {
        let made = look(
            &view(&[("a", service(10, &[(1, state(ready, serving))]))]),
            &[link(1, "i", &["10.0.0.9/24"])],
            &Settings::default(),
        );
        assert_eq!((made.tables.services()[0].ipv4.identifiers().len(), made.hops.len()), (members, hops));
    }
}

#[test]
fn the_interface_is_the_named_one_or_the_nearest() {
    let view = view(&[("a", service(10, &[(1, endpoint(Some("10.0.0.1"), None))]))]);
    let links = [
        link(1, "lo", &["10.0.0.1/32"]),
        link(2, "wide", &["10.9.9.9/8"]),
        link(3, "near", &["10.0.0.9/24"]),
        link(4, "far", &["192.168.0.1/24"]),
    ];
    let hop = |settings: &Settings| look(&view, &links, settings).hops.first().copied();
    assert_eq!(hop(&Settings::default()).map(|hop| (hop.interface, hop.onlink)), Some((3, false)));
    let named = |name: &str| Settings { internal_interface: Some(name.into()), ..Settings::default() };
    assert_eq!(hop(&named("far")).map(|hop| (hop.interface, hop.onlink)), Some((4, true)));
    assert_eq!(hop(&named("nosuch")), None);
    let made = look(&view, &links[3..], &Settings::default());
    assert_eq!(made.complaints, ["Service a: no interface leads to endpoint 10.0.0.1".to_owned()].into());
    assert_eq!(made.tables.services()[0].ipv4.identifiers().len(), 0, "nobody is sent where no way leads");
}

#[test]
fn an_unchanged_table_is_not_built_again() {
    let links = [link(1, "i", &["10.0.0.9/24"])];
    let one = view(&[("a", service(10, &[(1, endpoint(Some("10.0.0.1"), None))]))]);
    let mut marks = Marks::default();
    let first = targets(&one, &by_index(&links), &mut marks, &Settings::default(), &Tables::default());
    let moved = view(&[("a", service(10, &[(1, endpoint(Some("10.0.0.2"), None))]))]);
    let second = targets(&moved, &by_index(&links), &mut marks, &Settings::default(), &first.tables);
    assert!(Arc::ptr_eq(&first.tables.services()[0].ipv4, &second.tables.services()[0].ipv4));
    assert_ne!(first.hops, second.hops);
}

fn sizes(sizes: &[(&str, u32)]) -> BTreeMap<Arc<str>, Service> {
    sizes.iter().map(|(name, size)| ((*name).into(), service(*size, &[]))).collect()
}

#[test]
fn a_block_stays_and_a_gap_rests_before_it_is_used_again() {
    let mut marks = Marks::default();
    marks.assign(&sizes(&[("b", 10), ("c", 10)]));
    assert_eq!((marks.of("b").unwrap().first, marks.of("c").unwrap().first), (5000, 5010));
    marks.assign(&sizes(&[("a", 10), ("c", 10)]));
    assert_eq!((marks.of("a").unwrap().first, marks.of("c").unwrap().first), (5020, 5010), "b has just left 5000");
    marks.assign(&sizes(&[("a", 10), ("c", 10)]));
    marks.assign(&sizes(&[("a", 10), ("c", 10), ("d", 10)]));
    assert_eq!(marks.of("d").unwrap().first, 5000);
}

#[test]
fn a_service_that_finds_no_marks_is_named() {
    let view = view(&[("a", service(40_000, &[])), ("b", service(10_000, &[]))]);
    let made = look(&view, &[], &Settings::default());
    assert!(
        made.complaints.first().unwrap().starts_with("Service b: 10000 endpoints do not fit"),
        "{:?}",
        made.complaints
    );
}

proptest! {
    #[test]
    fn blocks_never_overlap_and_never_move_without_need(
        steps in prop::collection::vec(prop::collection::btree_map("[a-f]", prop::sample::select(vec![1_u32, 50, 100, 20_000]), 0..6), 1..12),
    ) {
        let mut marks = Marks::default();
        for wanted in steps {
            let services: BTreeMap<Arc<str>, Service> =
                wanted.iter().map(|(name, size)| (name.as_str().into(), service(*size, &[]))).collect();
            let before = marks.clone();
            marks.assign(&services);
            let mut blocks: Vec<(Block, Arc<str>)> = marks.blocks.iter().map(|(name, block)| (*block, Arc::clone(name))).collect();
            blocks.sort();
            for pair in blocks.windows(2) {
                prop_assert!(pair[0].0.end() <= pair[1].0.first);
            }
            for (block, name) in blocks {
                prop_assert!(block.first >= FIRST_MARK && block.end() <= END_OF_MARKS && block.size >= wanted[&*name]);
                match before.of(&name) {
                    Some(old) if old.size >= wanted[&*name] => prop_assert_eq!(block, old),
                    _ => prop_assert!(before.blocks.values().all(|old| old.end() <= block.first || block.end() <= old.first)),
                }
            }
        }
    }
}

#[test]
fn tables_of_many_services_are_smaller_where_they_must_fit() {
    let of = |count: u32| {
        let service = Service { endpoints: BTreeMap::new(), max_endpoints: 100 };
        part(&(0..count).map(|number| (format!("s{number}").into(), service.clone())).collect(), 2_000_000)
    };
    assert_eq!([of(1), of(15), of(16), of(30), of(31)], [1, 1, 2, 2, 3]);
    assert_eq!((of(91), of(100)), (6, 1), "what does not fit at all is left as it is: it is for the queue");
    assert_eq!(Size::part_for_endpoints(100, 6).slots(), 10_937);
    assert_eq!(Size::part_for_endpoints(1000, 6), Size::for_endpoints(1000), "it has no more than a hundred for each");
    assert_eq!(Size::part_for_endpoints(100, 1), Size::for_endpoints(100));
}

#[test]
fn many_endpoints_are_reached_directly_if_that_is_wanted() {
    let endpoints: Vec<(u32, Endpoint)> =
        (0..4).map(|number| (number, endpoint(Some(&format!("10.0.0.{}", 10 + number)), None))).collect();
    let view = view(&[("a", service(100, &endpoints))]);
    let links = [link(3, "int", &["10.0.0.1/24"])];
    let direct = |from| look(&view, &links, &Settings { direct_from: from, ..Settings::default() }).direct;
    assert_eq!([None, Some(4), Some(5)].map(direct), [None, Some(3), None]);
}
